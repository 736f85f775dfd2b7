//! The record of a recovery on this host: what is done, step by step, so that a run that was killed goes on and one that is done can be undone.
//!
//! Each run has a folder below the state directory. `run.json` says what is to be done, and is written once. A step writes `NN-begun.json` before it changes
//! anything, with what its undo needs, and `NN-done.json` behind it. The undo writes `NN-undone.json`; `ended.json` ends the run.

use std::fs::{File, TryLockError};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::durable::{self, Published};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::plan::sets::{Extent, Step};
use crate::repo::event::{self, STAMP_CHARS};

const FORMAT: u32 = 1;
const RECORD: &str = "run.json";
const ENDED: &str = "ended.json";
/// More than any record has.
const RECORD_BYTES: u64 = 16 << 20;

/// A member, and what it is restored with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedMember {
    /// The member's text.
    pub member: String,
    /// The words of its target on a command line.
    pub words: Vec<String>,
    /// A cluster: where its new timeline begins.
    pub position: Option<String>,
    /// Bytes that are written; none in records of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Files: why entries that the backup lacks stay. None where they go, and in records of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<String>,
}

/// The task of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Its name.
    pub id: String,
    pub set: String,
    /// The members.
    pub extent: Extent,
    /// The moment in words, by which the same command is known again.
    pub moment: String,
    pub began: TimestampTz,
    pub members: Vec<RecordedMember>,
    pub steps: Vec<Step>,
}

impl Record {
    /// A record of a run that begins now.
    pub fn new(
        host: &Host,
        (set, extent, moment): (&str, Extent, String),
        members: Vec<RecordedMember>,
        steps: Vec<Step>,
    ) -> Record {
        let began = host.now();
        Record {
            id: format!("{}Z-{set}", event::stamp(began)),
            extent,
            moment,
            began,
            ..Record::example(set, members, steps)
        }
    }

    /// A record that nobody carries out.
    pub fn example(set: &str, members: Vec<RecordedMember>, steps: Vec<Step>) -> Record {
        Record {
            format: FORMAT,
            id: String::new(),
            set: set.to_owned(),
            extent: Extent::Full,
            moment: String::new(),
            began: TimestampTz::default(),
            members,
            steps,
        }
    }

    /// Whether it has a member in common with another run.
    pub fn shares_a_member(&self, other: &Record) -> bool {
        let is_there = |one: &RecordedMember| other.members.iter().any(|o| o.member == one.member);
        self.members.iter().any(is_there)
    }

    /// The member of a step.
    pub fn member(&self, step: &Step) -> Option<&RecordedMember> {
        let text = step.member()?;
        self.members.iter().find(|one| one.member == text)
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Every step is done.
    Complete,
    /// Every step that was begun is undone.
    RolledBack,
}

/// The directories of runs, locked: one recovery at a time.
pub struct Runs {
    /// That of new runs, and then those of before.
    folders: Vec<PathBuf>,
    _locks: Vec<File>,
}

/// A run.
pub struct Run {
    folder: PathBuf,
    /// Its task.
    pub record: Record,
}

impl Runs {
    /// Opens the directory that new runs go to, and those that have older ones, and keeps others out.
    ///
    /// # Errors
    /// `Locked` while another recovery runs; those of the system.
    pub fn open(folder: &Path, older: Vec<PathBuf>) -> Result<Runs> {
        let mut folders = older;
        folders.insert(0, folder.to_owned());
        let locks: Result<Vec<File>> = folders.iter().map(|folder| lock(folder)).collect();
        Ok(Runs {
            _locks: locks?,
            folders,
        })
    }

    /// The directories, for people.
    pub fn places(&self) -> String {
        let places = self.folders.iter().map(|at| at.display().to_string());
        places.collect::<Vec<_>>().join(", ")
    }

    /// Returns names and directories of all runs, newest first.
    fn names(&self) -> Result<Vec<(String, &Path)>> {
        let mut names = Vec::new();
        for folder in &self.folders {
            let failed = |e| Error::from_io(format!("read \"{}\"", folder.display()), e);
            for entry in std::fs::read_dir(folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.path().join(RECORD).is_file() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    names.push((name, folder.as_path()));
                }
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// Returns the run that neither came to its end nor was rolled back.
    ///
    /// # Errors
    /// `Damaged` for a record that cannot be read; those of the system.
    pub fn unfinished(&self) -> Result<Option<Run>> {
        self.first(&Run::is_unfinished)
    }

    fn first(&self, is_wanted: &dyn Fn(&Run) -> Result<bool>) -> Result<Option<Run>> {
        for (name, folder) in self.names()? {
            let run = self.find_in(folder, &name)?;
            if is_wanted(&run)? {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// Returns the newest run of those that are wanted.
    ///
    /// # Errors
    /// `Damaged` for a record that cannot be read; those of the system.
    pub fn newest(&self, is_wanted: &dyn Fn(&Record) -> bool) -> Result<Option<Run>> {
        self.first(&|run| Ok(is_wanted(&run.record)))
    }

    /// Returns the newest runs, so many of them.
    ///
    /// # Errors
    /// `Damaged` for a record that cannot be read; those of the system.
    pub fn latest(&self, count: usize) -> Result<Vec<Run>> {
        let names = self.names()?.into_iter().take(count);
        names
            .map(|(name, folder)| self.find_in(folder, &name))
            .collect()
    }

    /// Opens a run.
    fn find_in(&self, folder: &Path, id: &str) -> Result<Run> {
        let folder = folder.join(id);
        let record: Option<Record> = read(&folder.join(RECORD))?;
        let none = || err!(NotFound, "\"{}\" has no record", folder.display());
        let record = record.ok_or_else(none)?;
        if record.format != FORMAT || record.id != id {
            return Err(err!(
                Damaged,
                "\"{}\" is the record of another program or run",
                folder.display()
            ));
        }
        Ok(Run { folder, record })
    }

    /// Returns the name for a new run. The newest run is found by its name, so this one sorts behind all others: also where another run of the same
    /// second has the name, and where the clock was set back.
    fn name_behind(&self, wanted: &str) -> Result<String> {
        let newest = self.names()?.into_iter().next().map(|(name, _)| name);
        let is_behind = |name: &String| {
            let sorts_behind = newest.as_ref().is_none_or(|newest| name > newest);
            sorts_behind && !self.folders.iter().any(|f| f.join(name).exists())
        };
        let later = newest.as_deref();
        let later = later.and_then(|newest| second_behind(newest, wanted));
        for named in [Some(wanted.to_owned()), later].into_iter().flatten() {
            let numbered = (2..100).map(|number| format!("{named}-{number}"));
            let mut names = std::iter::once(named.clone()).chain(numbered);
            if let Some(name) = names.find(is_behind) {
                return Ok(name);
            }
        }
        Err(err!(Internal, "run \"{wanted}\" has no free name"))
    }

    /// Begins a run.
    ///
    /// # Errors
    /// Those of the system.
    pub fn begin(&self, host: &Host, mut record: Record) -> Result<Run> {
        record.id = self.name_behind(&record.id)?;
        let Some(new) = self.folders.first() else {
            return Err(err!(Internal, "runs without a directory"));
        };
        let folder = new.join(&record.id);
        let failed = |e| Error::from_io(format!("make directory \"{}\"", folder.display()), e);
        let parent = File::open(new).map_err(failed)?;
        durable::create_directory(parent.as_fd(), &record.id).map_err(failed)?;
        let run = Run { folder, record };
        run.write(host, RECORD, &run.record)?;
        Ok(run)
    }
}

/// Pure: the name with the second behind that of another one; none where the other one begins with no time.
fn second_behind(other: &str, name: &str) -> Option<String> {
    let time = event::time_of_stamp(other.get(..STAMP_CHARS)?)?;
    let behind = event::stamp(time.saturating_add(Duration::from_secs(1)));
    Some(format!("{behind}{}", name.get(STAMP_CHARS..)?))
}

/// Keeps other recoveries out of a directory.
fn lock(folder: &Path) -> Result<File> {
    let failed = |e| Error::from_io(format!("lock directory \"{}\"", folder.display()), e);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(err!(Locked, "another recovery of this host runs")
            .hint("Nothing was changed. Wait until it has ended, then run the command again.")),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let doing = || format!("read \"{}\"", path.display());
    let length = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(|e| Error::from_io(doing(), e))?.len(),
    };
    if length > RECORD_BYTES {
        return Err(err!(Damaged, "\"{}\" is too long", path.display()));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::from_io(doing(), e))?;
    let read = serde_json::from_slice(&bytes);
    read.map(Some)
        .map_err(|e| err!(Damaged, "\"{}\" cannot be read", path.display()).source(e))
}

impl Run {
    /// The file that a command's words go to.
    pub fn log(&self, step: usize) -> PathBuf {
        self.folder.join(format!("{step:02}.log"))
    }

    /// Returns the facts that a step wrote down before it changed anything; none where it has not begun.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn begun(&self, step: usize) -> Result<Option<Value>> {
        read(&self.folder.join(format!("{step:02}-begun.json")))
    }

    /// The result of a step; none where it is not done.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn done(&self, step: usize) -> Result<Option<Value>> {
        read(&self.folder.join(format!("{step:02}-done.json")))
    }

    /// The number of a step.
    pub fn number_of(&self, step: &Step) -> Option<usize> {
        self.record.steps.iter().position(|one| one == step)
    }

    /// The result of a step; none where there is no such step, or it is not done.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn done_of(&self, step: &Step) -> Result<Option<Value>> {
        let done = self.number_of(step).map(|number| self.done(number));
        Ok(done.transpose()?.flatten())
    }

    /// Whether a step was begun.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn has_begun(&self, step: &Step) -> Result<bool> {
        let begun = self.number_of(step).map(|number| self.begun(number));
        Ok(begun.transpose()?.flatten().is_some())
    }

    /// Whether it neither came to its end nor was rolled back. One that goes back has not ended until all is back.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn is_unfinished(&self) -> Result<bool> {
        Ok(match self.end()? {
            None => true,
            Some(End::Complete) => self.back()?.is_some(),
            Some(End::RolledBack) => false,
        })
    }

    /// Whether a step was undone.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn is_undone(&self, step: usize) -> Result<bool> {
        let undone: Option<Value> = read(&self.folder.join(format!("{step:02}-undone.json")))?;
        Ok(undone.is_some())
    }

    /// How it ended; none where it has not.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn end(&self) -> Result<Option<End>> {
        match read::<End>(&self.folder.join("rolled-back.json"))? {
            Some(end) => Ok(Some(end)),
            None => read(&self.folder.join(ENDED)),
        }
    }

    /// Returns the facts that a rollback wrote down before it changed anything; none where none has begun.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn back(&self) -> Result<Option<Value>> {
        read(&self.folder.join("back.json"))
    }

    /// Records that a step begins.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write_begun(&self, host: &Host, step: usize, facts: &Value) -> Result<()> {
        self.write(host, &format!("{step:02}-begun.json"), facts)
    }

    /// Records that a step is done.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write_done(&self, host: &Host, step: usize, result: &Value) -> Result<()> {
        self.write(host, &format!("{step:02}-done.json"), result)
    }

    /// Records that a step is undone.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write_undone(&self, host: &Host, step: usize) -> Result<()> {
        self.write(host, &format!("{step:02}-undone.json"), &Value::Bool(true))
    }

    /// Records that it goes back from now on.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write_back(&self, host: &Host, facts: &Value) -> Result<()> {
        self.write(host, "back.json", facts)
    }

    /// Records its end.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write_end(&self, host: &Host, end: End) -> Result<()> {
        let name = match end {
            End::Complete => ENDED,
            End::RolledBack => "rolled-back.json",
        };
        self.write(host, name, &end)
    }

    /// The first record of a name stays.
    fn write(&self, host: &Host, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.folder.join(name);
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| err!(Internal, "write a record").source(e))?;
        let written = durable::write_new(&path, &bytes, host.random());
        match written.map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))? {
            Published::Created | Published::Exists => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn record(host: &Host) -> Record {
        let task = ("shop", Extent::Full, "mark m".to_owned());
        Record::new(host, task, Vec::new(), vec![Step::Health])
    }

    #[test]
    fn a_run_goes_on_where_it_was_and_ends_once() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::still("2026-11-20T06:40:49Z".parse().unwrap(), 1);
        let runs = Runs::open(dir.path(), Vec::new()).unwrap();
        assert!(runs.unfinished().unwrap().is_none());
        let run = runs.begin(&host, record(&host)).unwrap();
        assert_eq!(run.record.id, "20261120T064049Z-shop");
        assert!(run.begun(0).unwrap().is_none() && run.done(0).unwrap().is_none());
        run.write_begun(&host, 0, &Value::from(7)).unwrap();
        // The first one stays: a step that is repeated finds what was there before it.
        run.write_begun(&host, 0, &Value::from(8)).unwrap();
        assert_eq!(run.begun(0).unwrap(), Some(Value::from(7)));
        run.write_done(&host, 0, &Value::Null).unwrap();
        let again = runs.unfinished().unwrap().unwrap();
        assert_eq!(again.record, run.record);
        run.write_end(&host, End::Complete).unwrap();
        assert!(runs.unfinished().unwrap().is_none());
        // It goes back, and was interrupted: no other one may begin on what is half back.
        run.write_back(&host, &Value::Null).unwrap();
        assert!(runs.unfinished().unwrap().is_some());
        run.write_end(&host, End::RolledBack).unwrap();
        assert_eq!(run.end().unwrap(), Some(End::RolledBack));
        assert!(runs.unfinished().unwrap().is_none());
        assert_eq!(runs.newest(&|_| true).unwrap().unwrap().record, run.record);
        let other = runs.begin(&host, record(&host)).unwrap();
        assert_eq!(other.record.id, "20261120T064049Z-shop-2");
        let newest = runs.newest(&|_| true).unwrap().unwrap();
        assert_eq!(newest.record, other.record);
    }

    #[test]
    fn r212_the_newest_run_is_the_last_one_though_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let runs = Runs::open(dir.path(), Vec::new()).unwrap();
        let mut ids = Vec::new();
        for (time, set) in [
            ("2026-11-20T12:00:00Z", "shop"),
            ("2026-11-20T11:10:00Z", "shop"),
            ("2026-11-20T11:10:00Z", "app"),
            ("2026-11-20T12:00:01Z", "app"),
            ("2026-11-20T12:00:03Z", "shop"),
        ] {
            let host = Host::still(time.parse().unwrap(), 1);
            let task = (set, Extent::Full, "mark m".to_owned());
            let record = Record::new(&host, task, Vec::new(), vec![Step::Health]);
            let began = record.began;
            let run = runs.begin(&host, record).unwrap();
            assert_eq!(run.record.began, began, "the time itself stays");
            let newest = runs.newest(&|_| true).unwrap().unwrap();
            assert_eq!(newest.record.id, run.record.id);
            ids.push(run.record.id);
        }
        assert_eq!(
            ids,
            [
                "20261120T120000Z-shop",
                "20261120T120001Z-shop",
                "20261120T120002Z-app",
                "20261120T120003Z-app",
                "20261120T120003Z-shop",
            ]
        );
    }

    #[test]
    fn one_recovery_runs_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let runs = Runs::open(dir.path(), Vec::new()).unwrap();
        let other = Runs::open(dir.path(), Vec::new());
        assert_eq!(other.err().unwrap().code(), Code::Locked);
        // A folder without a record is of a run that never began.
        std::fs::create_dir(dir.path().join("20261120T064049Z-shop")).unwrap();
        assert!(runs.newest(&|_| true).unwrap().is_none());
    }
}
