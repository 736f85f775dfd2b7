//! `pitr wal`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Context, wal_conflicts, wal_gaps, wal_list, wal_show};
use crate::archive::backfill;
use crate::archive::fetch::Fetched;
use crate::command;
use crate::command::restore::Job;
use crate::config::Flags;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};

/// Look at archived WAL, bring it in and out by hand
///
/// Example: pitr wal list
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with WAL.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Archive one WAL, history or backup history file
    ///
    /// Does what pitr-archive does. Example: pitr wal push pg_wal/000000010000000000000042
    Push {
        /// The file, as %p in archive_command
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Fetch one file from the archive
    ///
    /// Does what pitr-restore does. Example: pitr wal fetch 000000010000000000000042 /tmp/segment
    Fetch {
        /// The name of the file, as %f in restore_command
        #[arg(value_name = "NAME")]
        name: OsString,
        /// Where it goes, as %p in restore_command
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// List the archived segments
    List {},
    /// Show what is in a segment: its index
    ///
    /// Example: pitr wal show 000000010000000000000042
    Show {
        /// The name of the segment
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Show WAL that should be there and is not
    ///
    /// Exit status 4 when there is a gap.
    Gaps {},
    /// Show segments that were offered again with other content
    ///
    /// Example: pitr wal conflicts 000000010000000000000042
    Conflicts {
        /// Only those of this segment
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Archive what a failover left behind in a server's pg_wal
    ///
    /// Takes only segments whose records reach their end. Example: pitr wal backfill --from /var/lib/postgresql/17/old/pg_wal
    Backfill {
        /// The directory with the segments
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    match &args.command {
        Command::Push { path } => push(cx, path),
        Command::Fetch { name, path } => fetch(cx, name, path),
        Command::List {} => wal_list::list(cx),
        Command::Show { name } => wal_show::show(cx, name),
        Command::Gaps {} => wal_gaps::gaps(cx),
        Command::Conflicts { name } => wal_conflicts::conflicts(cx, name.as_deref()),
        Command::Backfill { from } => backfill(cx, from),
    }
}

fn arguments(cx: &Context, files: Vec<OsString>) -> command::Arguments {
    command::Arguments {
        flags: Flags {
            config: cx.global.config.clone(),
            cluster: cx.global.cluster.clone(),
            repository: cx.global.repository.clone(),
        },
        system_identifier: cx.global.system_identifier,
        files,
        ..command::Arguments::default()
    }
}

fn push(cx: &Context, path: &Path) -> Result<u8> {
    let arguments = arguments(cx, vec![path.into()]);
    let archived = command::archive::run(&arguments, &cx.environment, cx.random(), &|| {})?;
    for warning in &archived.warnings {
        cx.out.warn(warning);
    }
    let outcome = if archived.is_new { STORED } else { THERE };
    if cx.out.is_json() {
        cx.out.json(&serde_json::json!({ "outcome": outcome }))?;
    } else {
        cx.out.note(outcome.replace('_', " ").as_str());
    }
    Ok(exit::SUCCESS)
}

fn fetch(cx: &Context, name: &OsStr, path: &Path) -> Result<u8> {
    let job = Job::new(arguments(cx, vec![name.to_owned(), path.into()]))?;
    match job.run(&cx.environment, cx.random(), &cx.progress())? {
        Fetched::Delivered => {
            if cx.out.is_json() {
                cx.out.json(&serde_json::json!({ "outcome": DELIVERED }))?;
            }
            Ok(exit::SUCCESS)
        }
        Fetched::DeliveredTail { valid_end } => {
            cx.out.warn(&format!(
                "of \"{}\" only a part is archived: its WAL ends at {valid_end}, zeros follow",
                name.display()
            ));
            if cx.out.is_json() {
                cx.out.json(
                    &serde_json::json!({ "outcome": DELIVERED, "valid_end_lsn": valid_end }),
                )?;
            }
            Ok(exit::SUCCESS)
        }
        Fetched::ProvenAbsent => Err(err!(
            NotFound,
            "\"{}\" is not in the archive",
            name.display()
        )),
    }
}

const DELIVERED: &str = "delivered";
const STORED: &str = "stored";
const THERE: &str = "already_there";
const LEFT_OUT: &str = "left_out";
const REFUSED: &str = "refused";

/// What became of one file.
#[derive(Serialize)]
struct Backfilled {
    name: String,
    outcome: &'static str,
    reason: Option<String>,
}

fn backfill(cx: &Context, from: &Path) -> Result<u8> {
    let mut files = Vec::new();
    let mut refused: Option<Error> = None;
    let mut failed: Option<Error> = None;
    for candidate in backfill::candidates(&cx.environment.absolute(from))? {
        let (outcome, reason) = match candidate.left_out {
            Some(reason) => (LEFT_OUT, Some(reason)),
            None => {
                let arguments = arguments(cx, vec![candidate.path.into()]);
                match command::archive::run(&arguments, &cx.environment, cx.random(), &|| {}) {
                    Ok(archived) => {
                        for warning in &archived.warnings {
                            cx.out.warn(warning);
                        }
                        (if archived.is_new { STORED } else { THERE }, None)
                    }
                    Err(e) => match e.code() {
                        // A padded tail, a file that was cut, or one that a running server has just recycled.
                        Code::SourceHeader
                        | Code::SourceSize
                        | Code::SourceChanged
                        | Code::SourceMissing => (LEFT_OUT, Some(e.to_string())),
                        // One conflict must not keep the rest from the archive.
                        Code::Conflict | Code::TimelineReused => {
                            let reason = e.to_string();
                            refused.get_or_insert(e);
                            (REFUSED, Some(reason))
                        }
                        _ => {
                            failed = Some(e);
                            break;
                        }
                    },
                }
            }
        };
        files.push(Backfilled {
            name: candidate.name.to_string(),
            outcome,
            reason,
        });
    }
    if cx.out.is_json() {
        cx.out.json(&serde_json::json!({ "files": files }))?;
    } else {
        show(cx, &files, failed.is_none())?;
    }
    // What came before it is in the archive, and was told.
    if let Some(e) = failed {
        return Err(e);
    }
    match refused {
        None => Ok(exit::SUCCESS),
        // The object on standard output says it already.
        Some(e) if cx.out.is_json() => Ok(exit::status(Program::Pitr, e.code())),
        Some(e) => Err(e),
    }
}

fn show(cx: &Context, files: &[Backfilled], is_complete: bool) -> Result<()> {
    if files.is_empty() && is_complete {
        return cx.out.line("There is no WAL file in this directory.");
    }
    for file in files {
        let outcome = file.outcome.replace('_', " ");
        cx.out.line(&match &file.reason {
            Some(reason) => format!("{outcome:14}{}  ({reason})", file.name),
            None => format!("{outcome:14}{}", file.name),
        })?;
    }
    let count = |wanted| files.iter().filter(|f| f.outcome == wanted).count();
    cx.out.note(&format!(
        "{} stored, {} were there, {} left out, {} refused",
        count(STORED),
        count(THERE),
        count(LEFT_OUT),
        count(REFUSED)
    ));
    Ok(())
}
