//! Archives what a failover left behind in a server's pg_wal.

use std::ffi::OsString;
use std::path::Path;

use serde::Serialize;

use super::archive_command::shell_word;
use super::session::Session;
use crate::archive::backfill::{self, Candidate, Ending};
use crate::archive::datadir::DataDirectory;
use crate::command;
use crate::config::Settings;
use crate::err;
use crate::error::{Code, Error, Result, causes};
use crate::pg::segment::SegmentName;
use crate::process;

/// It was stored.
pub const STORED: &str = "stored";
/// It was there.
pub const THERE: &str = "already_there";
/// It is not to be archived.
pub const LEFT_OUT: &str = "left_out";
/// The repository has other content under its name, or a damaged copy of which nothing proves that it was this content.
pub const REFUSED: &str = "refused";

/// The arguments of a command that PostgreSQL runs, for these files.
pub fn arguments(session: &Session, files: Vec<OsString>) -> command::Arguments {
    command::Arguments {
        flags: session.flags.clone(),
        system_identifier: session.system_identifier,
        files,
        ..command::Arguments::default()
    }
}

/// The outcome of one file.
#[derive(Serialize)]
pub struct Backfilled {
    pub name: String,
    /// One of the words above.
    pub outcome: &'static str,
    /// Why it was left out or refused.
    pub reason: Option<String>,
}

/// The outcome of a directory.
pub struct Backfill {
    /// File by file, up to the one that failed.
    pub files: Vec<Backfilled>,
    /// Files that the server keeps for WAL to come.
    pub spare: Vec<String>,
    /// The error that ended the run early.
    pub failed: Option<Error>,
    /// The first refusal.
    pub refused: Option<Error>,
    /// The commands that archive the last WAL of a server that never runs again; none where one runs there.
    pub next: Vec<String>,
}

/// Archives the segments of a directory whose records reach their end.
///
/// # Errors
/// `NotFound` when there is no WAL file in it.
pub fn run(session: &Session, from: &Path) -> Result<Backfill> {
    let directory = backfill::directory(&session.environment.absolute(from))?;
    let candidates = backfill::candidates(&directory)?;
    if candidates.is_empty() {
        return Err(err!(
            NotFound,
            "there is no WAL file in \"{}\"",
            directory.display()
        )
        .hint("Nothing was archived.\nName the pg_wal of a server: pitr wal backfill --from /var/lib/postgresql/17/main/pg_wal"));
    }
    let next = match is_running(&directory) {
        true => Vec::new(),
        false => last_ones(session, &candidates),
    };
    let done = archive(session, candidates)?;
    Ok(Backfill { next, ..done })
}

/// Whether the server lives whose pg_wal this is: it archives its last segment itself, once that is full.
fn is_running(wal: &Path) -> bool {
    let server = DataDirectory::of_wal_file(&wal.join("-")).server();
    server.is_some_and(|(pid, _)| process::is_alive(pid))
}

/// A dead server's newest commits lie in a segment that it did not fill, and never offered. `push` archives it as a partial one.
fn last_ones(session: &Session, candidates: &[Candidate]) -> Vec<String> {
    let named = session.flags.cluster.clone();
    let cluster = named.or_else(|| cluster_of(session, candidates));
    let options = session.options(cluster.as_deref());
    let push = |c: &Candidate| {
        let path = shell_word(&c.path.to_string_lossy());
        match c.ending? {
            Ending::Sound => Some(format!("pitr wal push{options} {path}")),
            // Under its own name it would be a whole segment, and damaged.
            Ending::Torn => Some(format!(
                "cp {path} {name}.partial && pitr wal push{options} {name}.partial",
                name = c.name
            )),
        }
    };
    candidates.iter().filter_map(push).collect()
}

/// The cluster of the directory, where it is one of several: a copy elsewhere does not tell.
fn cluster_of(session: &Session, candidates: &[Candidate]) -> Option<String> {
    let first = candidates.first()?.path.clone().into();
    let of_first = arguments(session, vec![first]);
    let settings = command::settings(&of_first, &session.environment).ok()?;
    let cluster = settings.cluster_if_named().ok()??;
    (settings.clusters.len() > 1).then(|| cluster.name.to_string())
}

fn archive(session: &Session, candidates: Vec<Candidate>) -> Result<Backfill> {
    let first = candidates.first().map(|c| c.path.clone().into());
    let of_first = arguments(session, first.into_iter().collect());
    let settings = command::settings(&of_first, &session.environment)?;
    let mut files = Vec::new();
    let mut spare = Vec::new();
    let mut refused: Option<Error> = None;
    let mut failed: Option<Error> = None;
    let mut unproven = Vec::new();
    for candidate in candidates {
        if candidate.is_spare {
            spare.push(candidate.name.to_string());
        }
        let name = candidate.name.to_string();
        match backfill_one(session, &settings, &candidate, &mut refused) {
            Ok((outcome, reason)) => files.push(Backfilled {
                name,
                outcome,
                reason,
            }),
            // The segment after it may prove it, and may be missing itself.
            Err(e) if is_of_damage(&e) => {
                let reason = Some(e.to_string());
                unproven.push((files.len(), candidate, e));
                files.push(Backfilled {
                    name,
                    outcome: REFUSED,
                    reason,
                });
            }
            Err(e) => {
                failed = Some(e);
                break;
            }
        }
    }
    // The newest goes first: each that is healed proves the one before.
    for (at, candidate, e) in unproven.into_iter().rev() {
        if failed.is_some() {
            break;
        }
        if !is_followed(&files, at) {
            refused.get_or_insert(e);
            continue;
        }
        match backfill_one(session, &settings, &candidate, &mut refused) {
            Ok((outcome, reason)) => {
                if let Some(file) = files.get_mut(at) {
                    file.outcome = outcome;
                    file.reason = reason;
                }
            }
            Err(e) if is_of_damage(&e) => {
                refused.get_or_insert(e);
            }
            Err(e) => failed = Some(e),
        }
    }
    Ok(Backfill {
        files,
        spare,
        failed,
        refused,
        next: Vec::new(),
    })
}

/// Archives one file, if it is to be; one that is refused must not keep the rest from the archive.
fn backfill_one(
    session: &Session,
    settings: &Settings,
    candidate: &Candidate,
    refused: &mut Option<Error>,
) -> Result<(&'static str, Option<String>)> {
    if let Some(reason) = &candidate.left_out {
        return Ok((LEFT_OUT, Some(reason.clone())));
    }
    let arguments = arguments(session, vec![candidate.path.clone().into()]);
    match command::archive::backfill(&arguments, settings, session.host.random()) {
        Ok(archived) => {
            for warning in &archived.warnings {
                session.warn(warning);
            }
            Ok((if archived.is_new { STORED } else { THERE }, None))
        }
        Err(e) => match e.code() {
            // A padded tail, a file that was cut, or one that a running server has just recycled.
            Code::SourceHeader | Code::SourceSize | Code::SourceChanged | Code::SourceMissing => {
                Ok((LEFT_OUT, Some(e.to_string())))
            }
            Code::Conflict | Code::TimelineReused => {
                let reason = e.to_string();
                refused.get_or_insert(e);
                Ok((REFUSED, Some(reason)))
            }
            _ => Err(e),
        },
    }
}

/// Whether this run has stored the segment behind a file: only that can prove what nothing proved before.
fn is_followed(files: &[Backfilled], at: usize) -> bool {
    let is_segment = |file: &&Backfilled| file.name.parse::<SegmentName>().is_ok();
    let next = files.iter().skip(at + 1).find(is_segment);
    next.is_some_and(|next| next.outcome == STORED)
}

/// Whether a file was not archived because the stored copy is damaged; also where another repository has it. A frozen copy may be whole.
fn is_of_damage(e: &Error) -> bool {
    if e.is_frozen() {
        return false;
    }
    match e.code() {
        Code::Damaged => true,
        Code::Partial => causes(e)
            .filter_map(|cause| cause.downcast_ref::<Error>())
            .any(|cause| cause.code() == Code::Damaged),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v56_damage_in_one_repository_of_several_is_damage() {
        let damaged = || err!(Damaged, "it was cut").context("archive a file");
        let partial = |e: Error| err!(Partial, "not in every repository").source(e);
        assert!(is_of_damage(&damaged()));
        assert!(is_of_damage(&partial(damaged())));
        assert!(!is_of_damage(&partial(err!(Unreachable, "it is away"))));
        assert!(!is_of_damage(&err!(Conflict, "other content")));
        // A frozen object is no damage.
        let frozen = || err!(Damaged, "it must be thawed").frozen();
        assert!(!is_of_damage(&frozen().context("archive a file")));
        assert!(!is_of_damage(&partial(frozen())));
    }

    #[test]
    fn v56_a_damaged_one_is_offered_again_only_before_one_that_was_stored() {
        let files = [
            ("000000010000000000000001", REFUSED),
            ("000000010000000000000001.00000028.backup", THERE),
            ("000000010000000000000002", STORED),
            ("000000010000000000000003", REFUSED),
            ("000000010000000000000004", THERE),
            ("000000010000000000000005", REFUSED),
            ("000000010000000000000006", REFUSED),
        ];
        let files = files.map(|(name, outcome)| Backfilled {
            name: name.to_owned(),
            outcome,
            reason: None,
        });
        let refused = (0..files.len()).filter(|at| files[*at].outcome == REFUSED);
        let again = refused.filter(|at| is_followed(&files, *at));
        assert_eq!(again.collect::<Vec<_>>(), [0]);
    }
}
