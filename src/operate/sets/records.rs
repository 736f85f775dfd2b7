//! The directories of the records of recoveries on this host.
//!
//! A record says what a recovery and its rollback do, with the rights of the account that runs them. So it lies where no other account may change it. It is
//! no cache: what is lost can neither go on nor be taken back.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::recover::UNCHANGED;
use super::run::Runs;
use crate::config::{RecoverySet, Settings, trust};
use crate::err;
use crate::error::Result;
use crate::operate::session::Session;

/// The directory of the host, where no other one is configured.
const STATE_DIR: &str = "/var/lib/pitr";
/// The folder of records.
const FOLDER: &str = "recover";

/// The directories that may have records.
struct Places {
    /// Those that a new record may go to, in order of preference.
    new: Vec<PathBuf>,
    /// Those of older versions.
    old: Vec<PathBuf>,
}

/// Opens the records of a set, and keeps other recoveries out.
///
/// # Errors
/// `Config` where no directory can be trusted and written; those of [`Runs::open`].
pub fn open(session: &Session, settings: &Settings, set: &RecoverySet) -> Result<Runs> {
    let state = |dir: &Path| dir.join(FOLDER);
    let mut new: Vec<PathBuf> = settings.agent.state_dir.iter().map(|d| state(d)).collect();
    new.push(state(Path::new(STATE_DIR)));
    let configured = settings.clusters.iter().find_map(|c| c.cache_dir.clone());
    let caches = [configured, session.environment.cache_dir()];
    let mut old: Vec<PathBuf> = caches.into_iter().flatten().map(|d| state(&d)).collect();
    if let Some(own) = &set.state_dir {
        old.splice(0..0, std::mem::replace(&mut new, vec![own.clone()]));
    }
    // A recovery of another set that has a member of this one keeps this one out.
    let others = settings.sets.iter().filter(|other| {
        other.name != set.name && other.members.iter().any(|m| set.members.contains(m))
    });
    old.extend(others.filter_map(|other| other.state_dir.clone()));
    Places { new, old }.open(set, &|text| session.warn(text))
}

impl Places {
    fn open(self, set: &RecoverySet, warn: &dyn Fn(&str)) -> Result<Runs> {
        let mut why = Vec::new();
        let mut chosen = None;
        for place in &self.new {
            match make(place) {
                Ok(real) => {
                    chosen = Some(real);
                    break;
                }
                Err(cause) => why.push(format!("\"{}\" {cause}", place.display())),
            }
        }
        let Some(chosen) = chosen else {
            return Err(err!(
                Config,
                "a recovery has no place for its record: {}",
                why.join("; ")
            )
            .hint(format!(
                "{UNCHANGED} Set state_dir in [sets.{}] to a directory of this user, with mode 0700.",
                set.name
            )));
        };
        let others = self.new.into_iter().chain(self.old);
        let mut read: Vec<PathBuf> = Vec::new();
        for place in others {
            match with_records(&place) {
                Ok(Some(real)) if real != chosen && !read.contains(&real) => read.push(real),
                Ok(_) => {}
                Err(cause) => warn(&format!(
                    "records of recoveries in \"{}\" are not read: it {cause}",
                    place.display()
                )),
            }
        }
        Runs::open(&chosen, read)
    }
}

/// Makes a directory for records, or says why none of this user's can lie there. Returns it without links.
fn make(place: &Path) -> std::result::Result<PathBuf, String> {
    use rustix::fs::{Access, AtFlags, CWD};
    let builder = |mode| {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(mode);
        builder
    };
    let there = place.ancestors().find(|at| at.exists());
    require_closed(there.unwrap_or(place))?;
    // Other accounts have directories of their own beside this one.
    let shared = place
        .parent()
        .filter(|parent| *parent == Path::new(STATE_DIR));
    let shared = shared.map_or(Ok(()), |parent| builder(0o755).create(parent));
    let made = shared.and_then(|()| builder(0o700).create(place));
    made.map_err(|e| format!("cannot be made: {e}"))?;
    let access = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    let is_ours = rustix::fs::accessat(CWD, place, access, AtFlags::EACCESS);
    is_ours.map_err(|e| format!("cannot be written: {}", std::io::Error::from(e)))?;
    require_closed(place)
}

/// Returns a directory without links where records lie in it, and nobody else may have changed them.
fn with_records(place: &Path) -> std::result::Result<Option<PathBuf>, String> {
    match std::fs::read_dir(place) {
        Ok(mut entries) => match entries.next() {
            None => Ok(None),
            Some(_) => require_closed(place).map(Some),
        },
        // It is not there, or this user may not know whether it is.
        Err(_) if !place.exists() => Ok(None),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
}

fn require_closed(place: &Path) -> std::result::Result<PathBuf, String> {
    let failed = |e| format!("cannot be looked at: {e}");
    let real = std::fs::canonicalize(place).map_err(failed)?;
    match trust::changeable(&real) {
        Ok(None) => Ok(real),
        Ok(Some(at)) => Err(format!(
            "can be changed by other users: \"{}\" is not of this user alone",
            at.display()
        )),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::{Record, Run};
    use super::*;
    use crate::error::Code;
    use crate::host::Host;
    use crate::plan::sets::{Extent, Step};
    use std::os::unix::fs::PermissionsExt;

    fn set() -> RecoverySet {
        RecoverySet {
            name: "shop".into(),
            ..RecoverySet::default()
        }
    }

    fn open(new: &[&Path], old: &[&Path]) -> (Result<Runs>, Vec<String>) {
        let warnings = std::cell::RefCell::new(Vec::new());
        let [new, old] = [new, old].map(|places| places.iter().map(|p| p.to_path_buf()).collect());
        let places = Places { new, old };
        let runs = places.open(&set(), &|text| warnings.borrow_mut().push(text.to_owned()));
        (runs, warnings.into_inner())
    }

    fn begin(runs: &Runs, second: u32) -> Run {
        let now = format!("2026-11-20T06:40:{second:02}Z").parse().unwrap();
        let host = Host::still(now, 1);
        let task = ("shop", Extent::Full, "mark m".to_owned());
        let record = Record::new(&host, task, Vec::new(), vec![Step::Health]);
        runs.begin(&host, record).unwrap()
    }

    #[test]
    fn records_go_to_the_first_place_and_those_of_before_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, host) = (dir.path().join("agent/recover"), dir.path().join("host"));
        let cache = dir.path().join("cache/recover");
        let old = begin(&open(&[&cache], &[]).0.unwrap(), 1);
        let (runs, warnings) = open(&[&agent, &host], &[&cache, &cache]);
        let runs = runs.unwrap();
        assert_eq!(warnings, [""; 0]);
        assert!(!host.exists());
        let unfinished = runs.unfinished().unwrap().unwrap();
        assert_eq!(unfinished.record, old.record);
        let new = begin(&runs, 2);
        assert!(agent.join(&new.record.id).join("run.json").exists());
        assert_eq!(runs.newest(&|_| true).unwrap().unwrap().record, new.record);
        let is_old = |record: &Record| record.id == old.record.id;
        assert!(runs.newest(&is_old).unwrap().is_some());
        // Nobody who looks in the old place only goes on meanwhile.
        assert_eq!(open(&[&cache], &[]).0.err().unwrap().code(), Code::Locked);
        let places = runs.places();
        assert!(
            places.contains("agent/recover") && places.contains("cache/recover"),
            "{places}"
        );
    }

    #[test]
    fn a_directory_that_others_may_change_has_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let (open_to_all, own) = (dir.path().join("all"), dir.path().join("own"));
        std::fs::create_dir(&open_to_all).unwrap();
        mode(&open_to_all, 0o777);
        let below = open_to_all.join("recover");
        let (runs, _) = open(&[&below], &[]);
        let refused = runs.err().unwrap();
        assert_eq!(refused.code(), Code::Config);
        assert!(refused.to_string().contains("all\""), "{refused}");
        assert!(refused.hint_text().unwrap().contains("[sets.shop]"));
        assert!(!below.exists());
        // The next one is taken, and what lies in the first is not believed.
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("x"), "").unwrap();
        let (runs, warnings) = open(&[&below, &own], &[]);
        begin(&runs.unwrap(), 1);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("are not read"), "{warnings:?}");
    }
}
