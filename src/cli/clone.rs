//! `pitr clone`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Context;
use super::erasure::ConsentArgs;
use super::target::TargetArgs;
use crate::config::Period;
use crate::err;
use crate::error::{Code, Result};
use crate::exit::{self, Program};
use crate::operate::clone::begin::{self, Begun, End, FOLDER};
use crate::operate::clone::folder::{self, Folder, Stage, State};
use crate::operate::clone::{self, Asked, below, namespace, stop};
use crate::operate::human;

/// Have a moment as a running server before anything is copied
///
/// Lays the restored data directory out, mounts it, starts PostgreSQL on it, lets it replay to the target and prints how to connect. Its
/// files are read from the repository as PostgreSQL asks for them. The server takes writes, reaches nothing, and nobody but this user
/// reaches it. It goes on in the background until it is stopped; then it is thrown away, unless it was kept.
///
/// Example: pitr clone --target-time "2026-03-01 12:00:00+01"
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub make: MakeArgs,
}

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List the clones below a directory
    List {
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Stop a clone: it is thrown away, unless it was kept and is whole
    Stop {
        /// The clone, as list shows it
        id: String,
        /// Throw away a clone that was to be kept, before it is whole
        #[arg(long)]
        confirm: bool,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Keep a clone: the rest is copied while it serves, and stopped it is a plain data directory
    Keep {
        /// The clone, as list shows it
        id: String,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

#[derive(clap::Args, Debug, Clone)]
pub struct PlaceArgs {
    /// The directory below which clones lie; else clone_dir of the configuration, else where temporary files go
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub struct MakeArgs {
    /// Listen on this port of 127.0.0.1, too, where the cluster's own passwords count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// End the clone after this time, as 2h
    #[arg(long = "for", value_name = "PERIOD")]
    pub lasts: Option<Period>,

    #[command(flatten)]
    pub moment: MomentArgs,
}

#[derive(clap::Args, Debug)]
pub struct MomentArgs {
    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR")]
    pub bin: Option<PathBuf>,

    #[command(flatten)]
    pub place: PlaceArgs,

    #[command(flatten)]
    pub target: TargetArgs,

    #[command(flatten)]
    pub erasures: ConsentArgs,
}

impl MomentArgs {
    /// The clone of the moment, as a command wants it that keeps it to itself.
    pub(super) fn asked(&self) -> Result<Asked> {
        Ok(Asked {
            target: self.target.parse()?,
            bin: self.bin.clone(),
            port: None,
            lasts: None,
            clients: &[],
            consent: Some(self.erasures.consent()),
        })
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    match &args.command {
        None => make(&args.make, cx),
        Some(Command::List { place }) => list(&place.below(cx)?, cx),
        Some(Command::Stop { id, confirm, place }) => stop(place, id, *confirm, cx),
        Some(Command::Keep { id, place }) => keep(place, id, cx),
    }
}

impl PlaceArgs {
    /// The directory below which clones lie.
    fn below(&self, cx: &Context) -> Result<PathBuf> {
        below::directory(&cx.session, self.dir.as_deref())
    }

    /// The options with which another command finds the same clones.
    fn options(&self, cx: &Context) -> String {
        below::options(&cx.session, self.dir.as_deref())
    }
}

/// Goes inside, for a clone that a command keeps to itself; the directory below which it lies.
pub(super) fn enter(args: &PlaceArgs, cx: &Context) -> Result<PathBuf> {
    clone::check_user()?;
    namespace::enter(&cx.session)?;
    let below = args.below(cx)?;
    cx.stop_with_cleanup()?;
    Ok(below)
}

fn make(args: &MakeArgs, cx: &Context) -> Result<u8> {
    let asked = Asked {
        port: args.port,
        lasts: args.lasts.map(Period::duration),
        ..args.moment.asked()?
    };
    if let Some(at) = cx.session.environment.get(FOLDER) {
        cx.stop_with_cleanup()?;
        clone::serve(&cx.session, &asked, Path::new(at))?;
        return Ok(exit::SUCCESS);
    }
    clone::check_possible()?;
    let place = &args.moment.place;
    let below = place.below(cx)?;
    let at = Folder::choose(&below, cx.session.host.random())?;
    let passing = below::passing(&cx.session, place.dir.as_deref(), &below)?;
    if let Some(why) = &passing {
        cx.session.note(&format!(
            "the clone cannot be kept: {why}. For one that may be kept name a directory on a disk: --dir DIR, or clone_dir"
        ));
    }
    cx.stop_with_cleanup()?;
    let Begun {
        end,
        said,
        answered,
    } = begin::begin(&cx.session, &at, std::env::args_os().skip(1))?;
    let _ = std::io::stderr().write_all(&said);
    let _ = std::io::stdout().write_all(&answered);
    let (status, state) = match end {
        End::Serves(state) => (None, Some(state)),
        End::Ended(status, state) => {
            cx.session.host.check_stop()?;
            (status, state)
        }
    };
    match (state, status) {
        // Another command has kept and stopped it since.
        (Some(state), _) if state.stage == Stage::Kept => {
            let id = state.id.clone();
            stopped(&id, Some(*state), cx)
        }
        (Some(state), _) => {
            let text = ready(&state, &place.options(cx), passing.is_none());
            cx.answered(&state, || cx.line(text.trim_end()))
        }
        // It has said why.
        (None, Some(0)) => Ok(exit::status(Program::Pitr, Code::Internal)),
        (None, Some(status)) => Ok(status),
        (None, None) => Err(err!(Io, "the process of the clone was killed")
            .hint("Nothing of the original was touched: pitr clone list removes what is left.")),
    }
}

/// The words for a clone that takes queries; `options` lead other commands to it.
fn ready(state: &State, options: &str, may_be_kept: bool) -> String {
    let mut text = format!(
        "clone {} is ready: {}, from backup {} of cluster \"{}\"\n",
        state.id, state.target, state.backup, state.cluster
    );
    if let Some(ms) = state.ready_after_ms {
        let took = human::duration(Duration::from_millis(ms));
        text.push_str(&format!(
            "it takes queries after {took}; nothing was copied but what was read\n"
        ));
    }
    if let Some(connection) = &state.connection {
        text.push_str(&format!("\n  psql \"{connection}\"\n"));
    }
    text.push_str(&match state.ends {
        Some(ends) => format!("\nIt is thrown away at {}", human::time(ends)),
        None => "\nIt is thrown away when it is stopped".to_owned(),
    });
    let id = &state.id;
    text.push_str(&format!(": pitr clone stop {id}{options}"));
    if may_be_kept {
        text.push_str(&format!(" · pitr clone keep {id}{options}"));
    }
    text.push('\n');
    text
}

fn list(below: &Path, cx: &Context) -> Result<u8> {
    let all = folder::list(below);
    cx.answered(&all, || {
        if all.is_empty() {
            cx.line(&format!("no clones below \"{}\"", below.display()))?;
        }
        all.iter().try_for_each(|state| print(state, cx))
    })
}

fn print(state: &State, cx: &Context) -> Result<()> {
    let how = match (state.stage, &state.connection) {
        (Stage::Kept, _) | (Stage::Settling | Stage::Whole, None) => {
            format!("data directory \"{}\"", state.data.display())
        }
        (_, Some(connection)) => format!("psql \"{connection}\""),
        (_, None) => String::new(),
    };
    let line = format!(
        "{}  {:<9} {}  cluster \"{}\", {}  {how}",
        state.id,
        state.stage.word(),
        human::time(state.began),
        state.cluster,
        state.target
    );
    cx.line(line.trim_end())?;
    let not_kept = state.not_kept.iter();
    cx.lines(not_kept.map(|why| format!("          it is not kept: {why}")))
}

fn stop(place: &PlaceArgs, id: &str, is_confirmed: bool, cx: &Context) -> Result<u8> {
    let (below, options) = (place.below(cx)?, place.options(cx));
    let left = stop::stop(&cx.session, (&below, id), is_confirmed, &options)?;
    stopped(id, left, cx)
}

fn stopped(id: &str, left: Option<State>, cx: &Context) -> Result<u8> {
    let text = match &left {
        Some(state) => format!(
            "clone {id} is stopped and kept: its data directory is \"{}\"\nIt must not archive until it is adopted: pitr adopt",
            state.data.display()
        ),
        None => format!("clone {id} is stopped, and nothing of it is left"),
    };
    cx.answered(&left, || cx.line(&text))
}

fn keep(place: &PlaceArgs, id: &str, cx: &Context) -> Result<u8> {
    let below = place.below(cx)?;
    let (path, state) = folder::find(&below, id)?;
    if let Some(why) = below::passing(&cx.session, place.dir.as_deref(), &below)? {
        return Err(err!(Refused, "clone {id} cannot be kept: {why}").hint("Nothing was done. Make the clone again on a disk: --dir DIR, or clone_dir. A directory for temporary files that lasts is named with --dir here, too."));
    }
    let options = place.options(cx);
    if let Some(why) = stop::not_settled(&path, &state, &options) {
        return Err(why);
    }
    match state.stage {
        Stage::Kept => {}
        _ => folder::ask_to_keep(&path)?,
    }
    let text = match state.stage {
        Stage::Whole | Stage::Kept => format!("clone {id} is whole"),
        _ => format!(
            "clone {id} is kept: the rest is copied while it serves, and pitr clone list{options} says \"whole\" once it is there and on the disk.\nUntil then a power cut costs it; from then on pitr clone stop {id}{options} leaves a data directory."
        ),
    };
    cx.answered(&folder::state(&path), || cx.line(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::time::TimestampTz;

    #[test]
    fn the_line_of_a_clone_leads_to_it_and_offers_nothing_that_is_refused() {
        let state = State {
            id: "0fccf7".into(),
            cluster: "main".into(),
            repository: "local".into(),
            backup: "20261120T064049Z-000001-full".into(),
            target: "its end".into(),
            stage: Stage::Ready,
            began: TimestampTz(0),
            ends: None,
            pid: 1,
            data: PathBuf::from("/srv/run/pitr-clone-0fccf7/data"),
            reached_lsn: None,
            connection: None,
            ready_after_ms: None,
            not_kept: None,
        };
        let line = ready(&state, " --dir /srv/run", true);
        let commands =
            ": pitr clone stop 0fccf7 --dir /srv/run · pitr clone keep 0fccf7 --dir /srv/run\n";
        assert!(line.ends_with(commands), "{line}");
        let line = ready(&state, "", false);
        assert!(line.ends_with(": pitr clone stop 0fccf7\n"), "{line}");
    }
}
