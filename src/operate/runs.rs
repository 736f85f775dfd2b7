//! Runs of jobs, as they stand on this host: one small file when a run begins, and one when it ends.
//!
//! The files are created and never changed, so that nobody who is killed leaves a run half told. A run that is under way holds the lock of its
//! job, and so does its command: the lock is free when both are gone, however they went. A run is named for its scheduled time and its
//! attempt, and begins once.
//!
//! Root works on behalf of the account whose directory it is.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::counters::make;
use crate::behalf;
use crate::durable::{self, Published};
use crate::err;
use crate::error::{Error, Result};
use crate::lock;
use crate::pg::time::TimestampTz;

/// The directory of jobs, below `state_dir`.
const FOLDER: &str = "jobs";
/// The lock of a job.
const LOCK: &str = "lock";
/// How long one who only looks may hold it.
const PATIENCE: Duration = Duration::from_millis(500);
/// The file that tells when the job was first seen.
const SINCE: &str = "since";
/// Runs that are kept.
const KEPT: usize = 60;
/// The least time between two names of runs.
const NEXT: Duration = Duration::from_micros(1);
/// A record further ahead of the clock than this is of a clock that was wrong, and counts for nothing until its time has come.
const AHEAD: Duration = Duration::from_secs(3600);
/// So much of what a command printed stands in the record.
const SAID_BYTES: u64 = 2_000;
/// The output of a command is cut to its end when it is longer.
const LOG_MAX_BYTES: u64 = 8 << 20;

/// The name of a run: the time for which it was scheduled, and the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId {
    /// When it was due.
    pub scheduled: TimestampTz,
    /// 0, and more after failures.
    pub attempt: u32,
}

impl RunId {
    /// The first attempt at a time.
    pub fn first(scheduled: TimestampTz) -> RunId {
        RunId {
            scheduled,
            attempt: 0,
        }
    }

    /// The name of a run that nothing has scheduled. After a clock that went back it follows the newest one all the same: an older name never begins.
    pub fn unscheduled(now: TimestampTz, newest: Option<RunId>) -> RunId {
        let after = newest.map(|newest| newest.scheduled.saturating_add(NEXT));
        RunId::first(after.map_or(now, |after| after.max(now)))
    }

    /// Whether it lies so far in the future that a wrong clock made it.
    fn is_ahead(self, now: TimestampTz) -> bool {
        self.scheduled > now.saturating_add(AHEAD)
    }
}

/// The file of a run that begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// When it began.
    pub started: TimestampTz,
    /// The process that looks after the command.
    pub pid: u32,
    /// The tick at which that began.
    pub tick: Option<u64>,
}

/// The file of a run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub ended: TimestampTz,
    /// The status of the command; none where a signal ended it.
    pub status: Option<i32>,
    /// The end of what it printed.
    #[serde(default)]
    pub said: String,
    /// The host whose agent claimed the run, where it is another one: nothing was run here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
    /// It was stopped, because it took too long.
    #[serde(default)]
    pub is_over_time: bool,
}

impl Ended {
    /// A run that ended here, and within its time.
    pub fn new(ended: TimestampTz, status: Option<i32>, said: String) -> Ended {
        Ended {
            ended,
            status,
            said,
            elsewhere: None,
            is_over_time: false,
        }
    }
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// How it began.
    pub begun: Begun,
    /// How it ended; none while it runs, and where it was killed with its record.
    pub ended: Option<Ended>,
}

impl Run {
    /// Whether another agent had it: it neither succeeded nor failed here.
    pub fn is_elsewhere(&self) -> bool {
        self.ended.as_ref().is_some_and(|e| e.elsewhere.is_some())
    }

    /// Whether it ended well.
    pub fn is_success(&self) -> bool {
        self.ended.as_ref().is_some_and(|e| e.status == Some(0))
    }
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    /// When it was first seen: nothing before that is due.
    pub since: TimestampTz,
    /// Whether a run is under way.
    pub is_running: bool,
    /// Its newest runs, the newest last.
    pub runs: Vec<Run>,
    /// Records that lie in the future.
    pub ahead: usize,
}

impl JobState {
    /// Whether it is the run that is under way. An older one without its end was killed.
    pub fn is_going(&self, run: &Run) -> bool {
        self.is_running && run.ended.is_none() && self.runs.last() == Some(run)
    }

    /// The newest run that is over, of those that were this host's.
    pub fn newest_over(&self) -> Option<&Run> {
        let is_over = |run: &&Run| !run.is_elsewhere() && !self.is_going(run);
        self.runs.iter().rfind(is_over)
    }
}

/// The runs of one job.
pub struct Runs {
    place: PathBuf,
}

/// A run that holds the lock of its job.
pub struct Held {
    /// The lock, which the command inherits as its standard input.
    pub lock: File,
}

impl Runs {
    /// Those of a job.
    pub fn of(state_dir: &Path, job: &str) -> Runs {
        Runs {
            place: state_dir.join(FOLDER).join(job),
        }
    }

    /// Makes the directory of a job that was never seen. A job that was first seen by a clock that was ahead is seen now.
    ///
    /// # Errors
    /// Those of the system.
    pub fn begin(&self, now: TimestampTz, nonce: u64) -> Result<()> {
        make(&self.place)?;
        match self.read::<TimestampTz>(SINCE)? {
            None => self.write_new(SINCE, &now, nonce).map(drop),
            Some(since) if since <= now => Ok(()),
            Some(_) => {
                let text = text_of(&now)?;
                self.on(|| durable::replace(&self.place.join(SINCE), &text, nonce))
            }
        }
    }

    /// The name of a run by hand.
    ///
    /// # Errors
    /// Those of [`Runs::begin`].
    pub fn by_hand(&self, now: TimestampTz, nonce: u64) -> Result<RunId> {
        self.begin(now, nonce)?;
        let ids = self.ids()?.into_iter();
        Ok(RunId::unscheduled(
            now,
            ids.filter(|id| !id.is_ahead(now)).max(),
        ))
    }

    /// Reads how the job stands.
    ///
    /// # Errors
    /// Those of the system, and `Damaged`, for the newest record. An older one that cannot be read is passed over.
    pub fn state(&self, now: TimestampTz) -> Result<JobState> {
        let since: TimestampTz = self
            .read(SINCE)?
            .ok_or_else(|| err!(NotFound, "the job was never seen here"))?;
        let all = self.ids()?;
        let ids: Vec<RunId> = all.iter().filter(|id| !id.is_ahead(now)).copied().collect();
        let mut runs = Vec::new();
        for id in &ids {
            match self.run(*id) {
                Ok(run) => runs.extend(run),
                // The newest one decides what starts.
                Err(e) if ids.last() == Some(id) => return Err(e),
                Err(_) => {}
            }
        }
        let is_running = self.is_locked()?;
        // A run that ended between the two looks: its record is there now.
        if !is_running && let Some(last) = runs.last_mut().filter(|run| run.ended.is_none()) {
            last.ended = self.read(&name(last.id, "ended"))?;
        }
        Ok(JobState {
            since: since.min(now),
            is_running,
            runs,
            ahead: all.len() - ids.len() + usize::from(since > now.saturating_add(AHEAD)),
        })
    }

    /// A run that began; none where it is forgotten meanwhile.
    fn run(&self, id: RunId) -> Result<Option<Run>> {
        let Some(begun) = self.read(&name(id, "begun"))? else {
            return Ok(None);
        };
        let ended = self.read(&name(id, "ended"))?;
        Ok(Some(Run { id, begun, ended }))
    }

    /// Whether a run has begun.
    ///
    /// # Errors
    /// Those of the system, and `Damaged`.
    pub fn has_begun(&self, id: RunId) -> Result<bool> {
        Ok(self.read::<Begun>(&name(id, "begun"))?.is_some())
    }

    /// When something of it last changed: a run began or ended.
    pub fn changed(&self) -> Option<std::time::SystemTime> {
        let modified = || std::fs::metadata(&self.place)?.modified();
        self.on(modified).ok()
    }

    /// Whether a run is under way.
    ///
    /// # Errors
    /// Those of the system.
    pub fn is_locked(&self) -> Result<bool> {
        self.on(|| lock::is_held(&self.place.join(LOCK)))
    }

    /// Takes the lock; none while a run is under way.
    ///
    /// # Errors
    /// Those of the system.
    pub fn hold(&self) -> Result<Option<Held>> {
        let lock = self.on(|| lock::take(&self.place.join(LOCK), PATIENCE))?;
        Ok(lock.map(|lock| Held { lock }))
    }

    /// Begins a run under the lock; whether it did, and nobody before it, nor a later one.
    ///
    /// # Errors
    /// Those of the system.
    pub fn record_begin(&self, _held: &Held, id: RunId, begun: &Begun, nonce: u64) -> Result<bool> {
        // A run that comes after a later one was overtaken while it started.
        let is_later = |other: &RunId| *other > id && !other.is_ahead(begun.started);
        if self.ids()?.iter().any(is_later) {
            return Ok(false);
        }
        let published = self.write_new(&name(id, "begun"), begun, nonce)?;
        Ok(published == Published::Created)
    }

    /// Ends a run, and forgets the oldest ones.
    ///
    /// # Errors
    /// Those of the system.
    pub fn record_end(&self, _held: &Held, id: RunId, ended: &Ended, nonce: u64) -> Result<()> {
        self.write_new(&name(id, "ended"), ended, nonce)?;
        let mut ids = self.ids()?;
        // Else those that lie in the future would push out each new one.
        ids.sort_by_key(|id| (!id.is_ahead(ended.ended), *id));
        self.on(|| {
            for old in ids.iter().take(ids.len().saturating_sub(KEPT)) {
                // The beginning goes last: a run without it is none.
                for end in ["log", "ended", "begun"] {
                    // A leftover costs room only.
                    let _ = std::fs::remove_file(self.place.join(name(*old, end)));
                }
            }
            Ok(())
        })
    }

    /// The file that has what a run printed.
    pub fn log(&self, id: RunId) -> PathBuf {
        self.place.join(name(id, "log"))
    }

    /// The end of what a run printed.
    pub fn said(&self, id: RunId) -> String {
        let bytes = self.on(|| tail(&behalf::opened(&self.log(id))?));
        let bytes = bytes.unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Makes the file for what a run prints, to which the command appends: it may be cut meanwhile.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new_log(&self, id: RunId) -> io::Result<File> {
        behalf::of(&self.place, || {
            let mut options = File::options();
            options.create(true).append(true).mode(0o600);
            options.custom_flags(behalf::unwaited()).open(self.log(id))
        })
    }

    /// Cuts that file to its end where it has become too long. Lines that are printed in this moment may be lost.
    ///
    /// # Errors
    /// Those of the system.
    pub fn cut_log(&self, id: RunId) -> io::Result<()> {
        behalf::of(&self.place, || {
            let path = self.log(id);
            if std::fs::metadata(&path)?.len() <= LOG_MAX_BYTES {
                return Ok(());
            }
            let mut log = File::options().read(true).append(true).open(path)?;
            let end = tail(&log)?;
            log.set_len(0)?;
            log.write_all(&end)
        })
    }

    /// The runs that began, oldest first.
    fn ids(&self) -> Result<Vec<RunId>> {
        let names = || -> io::Result<Vec<OsString>> {
            let entries = std::fs::read_dir(&self.place)?;
            entries.map(|entry| Ok(entry?.file_name())).collect()
        };
        let names = self.on(names)?;
        let ids = names.iter().filter_map(|name| id_of(name.to_str()?));
        let mut ids: Vec<RunId> = ids.collect();
        ids.sort_unstable();
        Ok(ids)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.place.join(name);
        match behalf::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| {
                    err!(Damaged, "\"{}\" cannot be read", path.display())
                        .source(e)
                        .hint("The job does not start. Move the file away: a run without its end counts as killed, one without its beginning as none.")
                }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed(e)),
        }
    }

    fn write_new<T: Serialize>(&self, name: &str, value: &T, nonce: u64) -> Result<Published> {
        let text = text_of(value)?;
        self.on(|| durable::write_new(&self.place.join(name), &text, nonce))
    }

    fn on<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        let done = behalf::of(&self.place, work);
        done.map_err(|e| self.failed(e))
    }

    fn failed(&self, e: io::Error) -> Error {
        Error::from_io(
            format!("keep the runs of a job in \"{}\"", self.place.display()),
            e,
        )
    }
}

fn text_of<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| err!(Internal, "a record cannot be written").source(e))
}

/// The end of a file.
fn tail(mut file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SAID_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(SAID_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Microseconds since the epoch, in as many digits as keep names in the order of time.
fn name(id: RunId, end: &str) -> String {
    let micros = id.scheduled.unix_micros().unwrap_or_default();
    format!("{micros:018}-{}.{end}", id.attempt)
}

fn id_of(name: &str) -> Option<RunId> {
    let (micros, attempt) = name.strip_suffix(".begun")?.split_once('-')?;
    Some(RunId {
        scheduled: TimestampTz::from_unix_micros(micros.parse().ok()?)?,
        attempt: attempt.parse().ok()?,
    })
}

#[cfg(test)]
impl Begun {
    /// A run that began then.
    pub fn sample(started: TimestampTz) -> Begun {
        Begun {
            started,
            pid: 1,
            tick: None,
        }
    }
}

#[cfg(test)]
impl Ended {
    /// A run that ended then, with this status.
    pub fn sample(ended: TimestampTz, status: i32) -> Ended {
        Ended::new(ended, Some(status), String::new())
    }
}

#[cfg(test)]
impl JobState {
    /// A job with these runs, of which none goes on.
    pub fn sample(since: TimestampTz, runs: Vec<Run>) -> JobState {
        JobState {
            since,
            is_running: false,
            runs,
            ahead: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-20T02:00:00Z";

    fn time(text: &str) -> TimestampTz {
        text.parse().unwrap()
    }

    fn after(at: TimestampTz, seconds: u64) -> TimestampTz {
        at.saturating_add(Duration::from_secs(seconds))
    }

    /// A job that was first seen then.
    fn seen(at: TimestampTz) -> (tempfile::TempDir, Runs) {
        let folder = tempfile::tempdir().unwrap();
        let runs = Runs::of(folder.path(), "x");
        runs.begin(at, 0).unwrap();
        (folder, runs)
    }

    fn begins(runs: &Runs, held: &Held, id: RunId, nonce: u64) -> bool {
        let begun = Begun::sample(id.scheduled);
        runs.record_begin(held, id, &begun, nonce).unwrap()
    }

    /// Records a run from its begin to its end; whether it could begin.
    fn ends(runs: &Runs, held: &Held, at: TimestampTz, nonce: u64) -> bool {
        let is_begun = begins(runs, held, RunId::first(at), nonce);
        let ended = Ended::sample(at, 0);
        runs.record_end(held, RunId::first(at), &ended, nonce)
            .unwrap();
        is_begun
    }

    #[test]
    fn a_run_begins_once_and_holds_the_lock_of_its_job() {
        let folder = tempfile::tempdir().unwrap();
        let runs = Runs::of(folder.path(), "full");
        let now = time(NOW);
        assert!(runs.state(now).is_err());
        runs.begin(now, 1).unwrap();
        runs.begin(time("2026-11-21T02:00:00Z"), 2).unwrap();
        assert_eq!(runs.state(now).unwrap().since, now);
        let held = runs.hold().unwrap().unwrap();
        assert!(runs.hold().unwrap().is_none());
        let id = RunId::first(now);
        assert!(begins(&runs, &held, id, 3) && !begins(&runs, &held, id, 4));
        let state = runs.state(now).unwrap();
        assert!(state.is_running && state.runs[0].ended.is_none());
        let ended = Ended::sample(now, 0);
        runs.record_end(&held, id, &ended, 5).unwrap();
        drop(held);
        let state = runs.state(now).unwrap();
        assert!(!state.is_running && state.runs[0].is_success());
    }

    #[test]
    fn a_run_that_was_killed_is_the_newest_that_is_over_while_another_one_runs() {
        let at = time(NOW);
        let run = |minutes: u64, status: Option<i32>| Run {
            id: RunId::first(after(at, minutes * 60)),
            begun: Begun::sample(at),
            ended: status.map(|status| Ended::sample(at, status)),
        };
        let all = vec![run(0, Some(0)), run(1, None), run(2, None)];
        let mut state = JobState::sample(at, all);
        state.is_running = true;
        assert!(state.is_going(&run(2, None)) && !state.is_going(&run(1, None)));
        assert_eq!(state.newest_over(), Some(&run(1, None)));
        state.is_running = false;
        assert_eq!(state.newest_over(), Some(&run(2, None)));
    }

    #[test]
    fn a_damaged_record_is_passed_over_unless_it_is_the_newest() {
        let start = time(NOW);
        let (folder, runs) = seen(start);
        let held = runs.hold().unwrap().unwrap();
        let id = |n: u64| RunId::first(after(start, n));
        for n in 0..3 {
            begins(&runs, &held, id(n), n);
        }
        let place = folder.path().join("jobs/x");
        std::fs::write(place.join(name(id(0), "begun")), "").unwrap();
        std::fs::create_dir(place.join(name(id(1), "ended"))).unwrap();
        let left = runs.state(start).unwrap().runs.into_iter();
        assert_eq!(left.map(|r| r.id).collect::<Vec<_>>(), [id(2)]);
        std::fs::write(place.join(name(id(2), "ended")), "{").unwrap();
        let error = runs.state(start).unwrap_err();
        assert_eq!(error.code(), crate::error::Code::Damaged);
    }

    #[test]
    fn records_of_a_clock_that_was_ahead_hold_up_nothing() {
        let (now, wrong) = (time(NOW), time("2027-11-20T02:00:00Z"));
        let (_folder, runs) = seen(wrong);
        let held = runs.hold().unwrap().unwrap();
        for n in 0..KEPT as u64 {
            assert!(ends(&runs, &held, after(wrong, n), n));
        }
        let state = runs.state(now).unwrap();
        let ahead = (state.since, state.runs.len(), state.ahead);
        assert_eq!(ahead, (now, 0, KEPT + 1), "the first look is ahead, too");
        assert!(ends(&runs, &held, now, 100), "it is no later run");
        let state = runs.state(now).unwrap();
        assert_eq!(state.runs.last().map(|r| r.id.scheduled), Some(now));
        assert_eq!(state.ahead, KEPT, "a record went, and the first look stays");
        // Some difference between two looks at a clock is none.
        let before = now.saturating_sub(Duration::from_secs(60));
        assert_eq!(runs.state(before).unwrap().runs.len(), 1);
        assert!(!ends(&runs, &held, before, 101));
    }

    #[test]
    fn j51_a_job_first_seen_by_a_clock_that_was_ahead_is_seen_by_the_right_one() {
        let (now, wrong) = (time(NOW), time("2027-11-20T02:00:00Z"));
        let (_folder, runs) = seen(wrong);
        assert_eq!(runs.state(now).unwrap().ahead, 1);
        runs.begin(now, 1).unwrap();
        let later = after(now, 7200);
        runs.begin(later, 2).unwrap();
        let state = runs.state(later).unwrap();
        assert_eq!((state.since, state.ahead), (now, 0));
    }

    #[test]
    fn j50_after_a_clock_that_went_back_a_run_by_hand_follows_the_newest_one() {
        let folder = tempfile::tempdir().unwrap();
        let runs = Runs::of(folder.path(), "x");
        let now = time(NOW);
        let before = now.saturating_sub(Duration::from_secs(1800));
        for at in [now, before, before] {
            let id = runs.by_hand(at, 0).unwrap();
            let held = runs.hold().unwrap().unwrap();
            assert!(begins(&runs, &held, id, 1), "{id:?}");
        }
        let later = after(now, 1);
        assert_eq!(runs.by_hand(later, 2).unwrap().scheduled, later);
    }

    #[test]
    fn what_is_printed_is_cut_to_its_end_and_goes_on() {
        let now = time(NOW);
        let (_folder, runs) = seen(now);
        let id = RunId::first(now);
        assert_eq!(runs.said(id), "");
        let mut log = runs.new_log(id).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&log.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let lines = "line\n".repeat(1000);
        log.write_all(lines.as_bytes()).unwrap();
        runs.cut_log(id).unwrap();
        assert_eq!(log.metadata().unwrap().len(), 5000, "it is short");
        // Read as a whole, this would need more memory than there is.
        log.set_len(1 << 36).unwrap();
        log.write_all(lines.as_bytes()).unwrap();
        assert_eq!(runs.said(id), "line\n".repeat(400).trim());
        runs.cut_log(id).unwrap();
        assert_eq!(log.metadata().unwrap().len(), SAID_BYTES);
        log.write_all(b"last").unwrap();
        assert_eq!(log.metadata().unwrap().len(), SAID_BYTES + 4);
        assert!(runs.said(id).ends_with("line\nlast"));
    }

    #[test]
    fn old_runs_are_forgotten_and_the_newest_stay() {
        let start = time(NOW);
        let (_folder, runs) = seen(start);
        let held = runs.hold().unwrap().unwrap();
        for n in 0..KEPT as u64 + 5 {
            let id = RunId::first(after(start, n));
            begins(&runs, &held, id, n);
            let failed = Ended::sample(id.scheduled, 1);
            runs.record_end(&held, id, &failed, n).unwrap();
        }
        let state = runs.state(start).unwrap();
        assert_eq!(state.runs.len(), KEPT);
        assert_eq!(state.runs[0].id.scheduled, after(start, 5));
    }
}
