//! `pitr wal`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Context, wal_conflicts, wal_gaps, wal_list, wal_resolve, wal_show};
use crate::archive::fetch::Fetched;
use crate::command;
use crate::command::restore::Job;
use crate::err;
use crate::error::Result;
use crate::exit::{self, Program};
use crate::operate::backfill::{
    self, Backfill, Backfilled, LEFT_OUT, REFUSED, STORED, THERE, arguments,
};
use crate::operate::human;
use crate::progress::Progress;

/// Look at archived WAL, bring it in and out by hand
///
/// Example: pitr wal list
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Archive one WAL, history or backup history file
    ///
    /// Does what pitr-archive does. Example: pitr wal push pg_wal/000000010000000000000042
    Push {
        /// The file, as %p in archive_command
        path: PathBuf,
    },
    /// Fetch one file from the archive
    ///
    /// Does what pitr-restore does. Example: pitr wal fetch 000000010000000000000042 /tmp/segment
    Fetch {
        /// The name of the file, as %f in restore_command
        name: OsString,
        /// The path that it is written to, as %p in restore_command
        path: PathBuf,
    },
    /// List the archived segments
    List {},
    /// Show what is in a segment: its index
    ///
    /// Example: pitr wal show 000000010000000000000042
    Show {
        /// The name of the segment
        name: String,
    },
    /// Show WAL that should be there and is not
    ///
    /// Exit status 4 when there is a gap.
    Gaps {
        /// Fill the gaps of every repository, and heal segments of which damage is recorded
        ///
        /// All configured places are asked: the pg_wal of the configured data directory, where that is on this host, and the other repositories.
        /// Exit status 4 when a gap or a damaged segment is left.
        #[arg(long)]
        heal: bool,
        /// With --heal: show what would come, and write nothing
        #[arg(long, requires = "heal")]
        dry_run: bool,
    },
    /// Show segments that were offered again with other content
    ///
    /// Example: pitr wal conflicts 000000010000000000000042
    Conflicts {
        /// Only those of this segment
        name: Option<String>,
    },
    /// Give a timeline, from a segment on, to the server whose copy was refused
    ///
    /// A clone or a machine that was set back may have archived first: then the cluster's own server waits. Stop the other one; then this makes the
    /// copy that was refused the one that is followed, with everything that continues it. Nothing is deleted: the other life stays, and pitr plan and restore
    /// --as-stored lead there. Without --confirm it shows what follows, and changes nothing. --undo ends the decision.
    ///
    /// Example: pitr wal resolve 000000010000000000000042 --keep 0123456789abcdef --confirm
    Resolve(wal_resolve::Args),
    /// Archive what a failover left behind in a server's pg_wal
    ///
    /// Takes only segments whose records reach their end. It prints the command that archives the last one of a server that does not
    /// run: there are the newest commits. Example: pitr wal backfill --from /var/lib/postgresql/17/old/pg_wal
    Backfill {
        /// The directory with the segments: a server's pg_wal, or its data directory
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    match command {
        Command::Push { path } => push(cx, path),
        Command::Fetch { name, path } => fetch(cx, name, path),
        Command::List {} => wal_list::list(cx),
        Command::Show { name } => wal_show::show(cx, name),
        Command::Gaps {
            heal: true,
            dry_run,
        } => wal_gaps::heal(cx, *dry_run),
        Command::Gaps { .. } => wal_gaps::gaps(cx),
        Command::Conflicts { name } => wal_conflicts::run(cx, name.as_deref()),
        Command::Resolve(args) => wal_resolve::run(cx, args),
        Command::Backfill { from } => backfill(cx, from),
    }
}

fn push(cx: &Context, path: &Path) -> Result<u8> {
    let arguments = arguments(&cx.session, vec![path.into()]);
    let settings = command::settings(&arguments, &cx.session.environment)?;
    let archived = command::archive::run(&arguments, &settings, cx.session.host.random(), &|| {})?;
    cx.warn_all(&archived.warnings);
    let outcome = if archived.is_new { STORED } else { THERE };
    cx.answered(&serde_json::json!({ "outcome": outcome }), || {
        cx.note(&outcome.replace('_', " "));
        Ok(())
    })
}

fn fetch(cx: &Context, name: &OsStr, path: &Path) -> Result<u8> {
    let job = Job::new(arguments(&cx.session, vec![name.to_owned(), path.into()]))?;
    let progress: Arc<dyn Progress> = cx.progress();
    let mut shown = serde_json::json!({ "outcome": "delivered" });
    match job.run(&cx.session.environment, cx.session.host.random(), &progress)? {
        Fetched::Delivered => {}
        Fetched::DeliveredTail { valid_end } => {
            cx.warn(&format!(
                "of \"{}\" only a part is archived: its WAL ends at {valid_end}, zeros follow",
                name.display()
            ));
            shown["valid_end_lsn"] = serde_json::json!(valid_end);
        }
        Fetched::ProvenAbsent => {
            let name = name.display();
            return Err(err!(NotFound, "\"{name}\" is not in the archive"));
        }
    }
    cx.answered(&shown, || Ok(()))
}

fn backfill(cx: &Context, from: &Path) -> Result<u8> {
    let Backfill {
        files,
        spare,
        failed,
        refused,
        next,
    } = backfill::run(&cx.session, from)?;
    let shown = serde_json::json!({ "files": files, "next": next });
    cx.answer(&shown, || {
        show(cx, &files, &spare)?;
        for command in &next {
            cx.note(&format!(
                "next, if that server never runs again, for the commits in its last segment: {command}"
            ));
        }
        Ok(())
    })?;
    // The files before the failed one are in the archive, and have been shown.
    if let Some(e) = failed {
        return Err(e);
    }
    match refused {
        None => Ok(exit::SUCCESS),
        // The object on standard output says it already.
        Some(e) if cx.is_json() => Ok(exit::status(Program::Pitr, e.code())),
        Some(e) => Err(e),
    }
}

fn show(cx: &Context, files: &[Backfilled], spare: &[String]) -> Result<()> {
    let count = |wanted| files.iter().filter(|f| f.outcome == wanted).count();
    for file in files.iter().filter(|f| !spare.contains(&f.name)) {
        let outcome = file.outcome.replace('_', " ");
        cx.report(&match &file.reason {
            Some(reason) => format!("{outcome:14}{}  ({reason})", file.name),
            None => format!("{outcome:14}{}", file.name),
        })?;
    }
    if let (Some(first), Some(last)) = (spare.first(), spare.last()) {
        cx.report(&format!(
            "not used yet  {first} to {last}  ({}, preallocated or recycled for WAL to come)",
            human::count(spare.len() as u64, "file")
        ))?;
    }
    cx.note(&format!(
        "{} stored, {} were there, {} left out, {} refused, {} not used yet",
        count(STORED),
        count(THERE),
        count(LEFT_OUT) - spare.len(),
        count(REFUSED),
        spare.len()
    ));
    Ok(())
}
