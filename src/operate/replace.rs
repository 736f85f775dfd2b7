//! A restored cluster that takes the place of another one: a replacement that has begun, and its undo.

use std::path::Path;

use super::archive_command::shell_word;
use super::opened::{self, Opened};
use super::reading::Reading;
use super::restore::Asked;
use super::session::Session;
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard::{self, SETTINGS, WrittenSettings};
use crate::err;
use crate::error::{Code, Result};
use crate::pg::segment::WalFileName;
use crate::pg::timeline::TimelineId;
use crate::plan::recovery::Plan;
use crate::repo::lives::Followed;
use crate::restore::job::Job;
use crate::restore::replace::{Standing, State};

/// A replacement of an earlier run.
#[derive(Debug)]
pub enum Earlier {
    /// There is none that the same command has begun.
    None,
    /// It was interrupted while names were exchanged.
    Interrupted(Box<Standing>),
    /// It is complete, and no server has run since.
    Complete(Box<Standing>),
}

/// The request in the record, by which the same command is known again.
pub fn words(session: &Session, asked: &Asked) -> String {
    let life = match session.followed {
        Followed::Resolved => "",
        Followed::AsStored => " as stored",
    };
    let identifier = session.system_identifier;
    let identifier = identifier.map(|one| format!(" system identifier {one}"));
    format!(
        "{}{life}{}",
        words_of_before(session, asked),
        identifier.unwrap_or_default()
    )
}

/// The request as earlier versions recorded it: without the life that is followed, and without the system identifier.
fn words_of_before(session: &Session, asked: &Asked) -> String {
    let flags = (&session.flags.cluster, &session.flags.repository);
    let what = (&asked.target, asked.action, &asked.mappings);
    format!("{flags:?} {what:?} {:?} {}", asked.databases, asked.adopt)
}

/// Whether the same command has begun a replacement. A record of an earlier version does not name the life: the restored cluster's own record does.
fn is_same(standing: &Standing, session: &Session, asked: &Asked) -> bool {
    let is_of = |words: String| standing.is_of(&words);
    let job = job_of(standing);
    let is_wanted = |job: &Job| {
        let identifier = session.system_identifier;
        let is_named = identifier.is_none_or(|one| one == job.system_identifier);
        job.request.as_stored == (session.followed == Followed::AsStored) && is_named
    };
    match &job {
        Some(job) => {
            let is_asked = is_of(words(session, asked)) || is_of(words_of_before(session, asked));
            is_asked && is_wanted(job)
        }
        None => is_of(words(session, asked)),
    }
}

/// The job in the restored cluster's own record, as long as that is there.
fn job_of(standing: &Standing) -> Option<Job> {
    serde_json::from_value(written_of(standing)?.job).ok()
}

fn written_of(standing: &Standing) -> Option<WrittenSettings> {
    let wal = standing.restored_wal().ok()??;
    guard::read_json(&wal.join(SETTINGS)).ok()?
}

/// Whether erasures have begun to be run in the restored cluster, and some of them have not succeeded.
fn is_half_erased(standing: &Standing) -> bool {
    written_of(standing).is_some_and(|written| written.is_erasing)
}

/// The repository and the plan of a restored cluster; none where its own record does not tell the plan.
///
/// # Errors
/// Those of [`Reading::open`] and [`opened::open`].
pub fn source_of(session: &Session, standing: &Standing) -> Result<Option<(Opened, Plan)>> {
    let Some(job) = job_of(standing) else {
        return Ok(None);
    };
    let opened = opened::open(session, Reading::open(session)?)?;
    let opened = opened.where_it_began(session, &job)?;
    Ok(job.plan.map(|plan| (opened, plan)))
}

/// Finds what an earlier run has left at the data directory; `erases` is whether erasures are to be repeated in it.
///
/// # Errors
/// `Refused` for an interrupted replacement of another request, for an interrupted undo, and where erasures were begun and have not succeeded; those of
/// [`Standing::find`].
pub fn earlier(session: &Session, asked: &Asked, erases: bool) -> Result<Earlier> {
    let to = session.environment.absolute(&asked.to);
    let Some(standing) = Standing::find(&to)? else {
        return Ok(Earlier::None);
    };
    let is_same = is_same(&standing, session, asked);
    let undo = undo_line(&to);
    match standing.state() {
        State::Switching if is_same => Ok(Earlier::Interrupted(Box::new(standing))),
        State::Switching => Err(err!(
            Refused,
            "another replacement of \"{}\" was interrupted, of {}",
            to.display(),
            standing.began()
        )
        .hint(format!(
            "Nothing was changed. Run the command that began it, or put the old cluster back: {undo}"
        ))),
        State::Undoing => Err(err!(
            Refused,
            "an undo at \"{}\" was interrupted",
            to.display()
        )
        .hint(format!("Nothing was changed. Complete it first: {undo}"))),
        // Whoever has moved the directories by hand wants another restore.
        State::Switched if is_same && standing.is_untouched().unwrap_or(false) => {
            Ok(Earlier::Complete(Box::new(standing)))
        }
        // Its undo has to lead back to the cluster that was there first.
        State::Switched if is_same && erases && is_half_erased(&standing) => {
            let data = shell_word(&to.to_string_lossy());
            let options = session.options(session.flags.cluster.as_deref());
            Err(err!(
                Refused,
                "the cluster in \"{}\" was put there by this command, and its erasures were begun and have not all succeeded",
                to.display()
            )
            .hint(format!(
                "Nothing was changed. Let nobody connect before this has ended with 0: pitr erasure apply{options} --pgdata {data} --confirm\nTo begin anew, put the old cluster back first: {undo}"
            )))
        }
        State::Switched => Ok(Earlier::None),
    }
}

/// The line that puts the old cluster back.
pub fn undo_line(to: &Path) -> String {
    let to = shell_word(&to.to_string_lossy());
    format!("pitr restore --undo --to {to} --confirm")
}

/// A replacement whose undo was asked for.
pub struct Undone {
    /// As it was before the undo.
    pub standing: Standing,
    /// The timeline of the new cluster, where it was adopted and has one of its own.
    pub adopted: Option<TimelineId>,
}

/// Puts the old cluster back where that is confirmed; returns what was found.
///
/// # Errors
/// `NotFound` without a replacement; those of [`Standing::undo`].
pub fn undo(session: &Session, to: &Path, discards: bool, is_confirmed: bool) -> Result<Undone> {
    let to = session.environment.absolute(to);
    let mut standing = Standing::find(&to)?.ok_or_else(|| {
        err!(
            NotFound,
            "no replacement of \"{}\" is recorded",
            to.display()
        )
        .hint("Nothing was changed. A restore that did not come to its end has moved nothing: the data directory is as it was.")
    })?;
    match standing.check_undo(discards) {
        // The plan says it.
        Err(e)
            if !is_confirmed && e.code() == Code::Refused && standing.has_accepted_writes()? => {}
        answer => answer?,
    }
    let adopted = adopted(&standing);
    if is_confirmed {
        standing.clone().undo(discards, &session.host)?;
    }
    Ok(Undone { standing, adopted })
}

/// The timeline that the new cluster began, where nothing keeps it from the archive: `pitr adopt` has put its history there.
fn adopted(standing: &Standing) -> Option<TimelineId> {
    // Halfway through an undo its pg_wal may be that of the old cluster.
    if standing.state() != State::Switched {
        return None;
    }
    let directory = DataDirectory::at(standing.restored().ok()??);
    let guard = format!("pg_wal/{GUARD}");
    let mut unlike = [guard.as_str(), "recovery.signal", "standby.signal"].into_iter();
    if unlike.any(|name| directory.has(name)) {
        return None;
    }
    let entries = std::fs::read_dir(directory.wal()).ok()?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let timelines = names.filter_map(|name| match name.to_str()?.parse() {
        Ok(WalFileName::History(timeline)) => Some(timeline),
        _ => None,
    });
    timelines.max()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use serde_json::json;

    use super::*;
    use crate::config::{Environment, Flags};
    use crate::host::Host;
    use crate::operate::away::Away;
    use crate::operate::pacing::Pacing;
    use crate::operate::target::{AskedTarget, Point};
    use crate::pg::time::TimestampTz;
    use crate::plan::recovery::Action;
    use crate::plan::target::{RecoveryTarget, Target};
    use crate::restore::job::{Purpose, Request};

    fn session(followed: Followed, system_identifier: Option<u64>) -> Session {
        Session {
            host: Host::still(TimestampTz(0), 0),
            environment: Environment::default(),
            flags: Flags::default(),
            system_identifier,
            followed,
            away: Away::default(),
            pacing: Pacing::default(),
        }
    }

    fn asked(to: &Path) -> Asked {
        Asked {
            to: to.to_owned(),
            target: AskedTarget::at(Point::Known(Target::End)),
            action: Action::Promote,
            mappings: Vec::new(),
            databases: None,
            delta: false,
            is_hollow: false,
            is_private: false,
            replace: true,
            aside: false,
            adopt: false,
            is_confirmed: true,
            dry_run: false,
        }
    }

    fn job(as_stored: bool) -> Job {
        Job {
            format: Job::FORMAT,
            lives: None,
            request: Request {
                to: "/data".into(),
                cluster: "main".into(),
                repository: None,
                backup: None,
                as_stored,
                delta: false,
                tablespace_mappings: Vec::new(),
                databases: None,
                purpose: Purpose::Restore {
                    target: RecoveryTarget::default(),
                    action: Action::Promote,
                    adopt: false,
                },
            },
            planned: TimestampTz(0),
            repository: "file:///r".into(),
            system_identifier: 7,
            backup: "20261120T064049Z-full".parse().unwrap(),
            backup_nonce: "7".into(),
            tablespaces: Vec::new(),
            left_out: Vec::new(),
            restore_command: "r".into(),
            plan: None,
            timeline: None,
            parameters: BTreeMap::new(),
        }
    }

    /// A directory at `place`, and the names beside it.
    fn pair(place: &Path, old: Option<&Path>, new: &Path) -> serde_json::Value {
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        json!({
            "place": place,
            "waiting": place.with_added_extension("pitr-new"),
            "replaced": place.with_added_extension("replaced"),
            "undone": place.with_added_extension("undone"),
            "old": old.map(inode),
            "new": inode(new),
        })
    }

    /// The record of a replacement whose new cluster is in `data`.
    fn record(data: &Path, (asked, state): (&str, &str), others: &[serde_json::Value]) {
        let record = json!({
            "format": 1,
            "note": "",
            "asked": asked,
            "backup": "",
            "target": "",
            "began": TimestampTz(0),
            "state": state,
            "control": "",
            "data": pair(data, None, data),
            "others": others,
        });
        let path = data.with_added_extension("pitr-replaced");
        std::fs::write(path, record.to_string()).unwrap();
    }

    fn settings(job: &Job) -> Vec<u8> {
        let record = WrittenSettings {
            job: serde_json::to_value(job).unwrap(),
            ..WrittenSettings::default()
        };
        serde_json::to_vec(&record).unwrap()
    }

    #[test]
    fn r200_the_record_of_the_old_cluster_is_not_taken_for_that_of_the_new_one() {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let [data, wal] = ["data", "wal"].map(|name| folder.join(name));
        let waiting = wal.with_added_extension("pitr-new");
        for directory in [&data, &wal, &waiting] {
            std::fs::create_dir(directory).unwrap();
        }
        // The old cluster was restored as stored once; its pg_wal is still in its place.
        std::os::unix::fs::symlink(&wal, data.join("pg_wal")).unwrap();
        std::fs::write(wal.join(SETTINGS), settings(&job(true))).unwrap();
        std::fs::write(waiting.join(SETTINGS), settings(&job(false))).unwrap();
        let (asked, session) = (asked(&data), session(Followed::Resolved, None));
        let others = [pair(&wal, Some(&wal), &waiting)];
        record(&data, (&words(&session, &asked), "switching"), &others);
        let found = earlier(&session, &asked, false);
        assert!(matches!(found, Ok(Earlier::Interrupted(_))), "{found:?}");
    }

    #[test]
    fn a_replacement_whose_undo_was_interrupted_names_no_timeline() {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().canonicalize().unwrap().join("data");
        std::fs::create_dir_all(data.join("pg_wal")).unwrap();
        std::fs::write(data.join("pg_wal/00000003.history"), "").unwrap();
        for (state, timeline) in [("switched", TimelineId::new(3)), ("undoing", None)] {
            record(&data, ("", state), &[]);
            let standing = Standing::find(&data).unwrap().unwrap();
            assert_eq!(adopted(&standing), timeline, "{state}");
        }
    }

    #[test]
    fn r200_a_replacement_of_the_other_life_is_not_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().canonicalize().unwrap().join("data");
        std::fs::create_dir_all(data.join("pg_wal")).unwrap();
        let asked = asked(&data);
        let [resolved, stored] =
            [Followed::Resolved, Followed::AsStored].map(|followed| session(followed, None));
        let before = words_of_before(&resolved, &asked);
        assert_eq!(words(&resolved, &asked), before);
        let of_stored = words(&stored, &asked);
        let of_named = words(&session(Followed::Resolved, Some(7)), &asked);
        assert!(of_stored != before && of_named != before && of_named != of_stored);
        if rustix::process::geteuid().is_root() {
            return;
        }
        let written = |as_stored: bool| {
            let path = data.join("pg_wal").join(SETTINGS);
            std::fs::write(path, settings(&job(as_stored))).unwrap();
        };
        let recorded = |words: &str| record(&data, (words, "switching"), &[]);
        let is_taken = |session: &Session| match earlier(session, &asked, false) {
            Ok(Earlier::Interrupted(_)) => true,
            Err(e) if e.code() == Code::Refused => false,
            other => panic!("{other:?}"),
        };
        // Records of this version, and of earlier ones, which did not name the life.
        for (words, is_stored) in [(&before, false), (&of_stored, true), (&before, true)] {
            written(is_stored);
            recorded(words);
            assert_eq!(is_taken(&resolved), !is_stored, "{words}");
            assert_eq!(is_taken(&stored), is_stored, "{words}");
        }
        // Another system identifier is another cluster.
        written(false);
        recorded(&before);
        assert!(is_taken(&session(Followed::Resolved, Some(7))));
        assert!(!is_taken(&session(Followed::Resolved, Some(8))));
        recorded(&of_named);
        assert!(!is_taken(&resolved));
    }
}
