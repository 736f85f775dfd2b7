//! Threads that ship what is durable in a journal into the repositories, and the journal's files that are let go.
//!
//! Each repository has a thread of its own, so that one that hangs holds up nothing but itself. The receiver tells what a thread does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::let_go::{self, Mark};
use super::{Follower, Journal};
use crate::config;
use crate::error::{Error, Result};
use crate::fault;
use crate::host::Clock;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::Position;
use crate::progress::Progress;

/// How long files wait for a repository that is not required, and for which nothing is read or stored without an error.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// The share of the journal's room, in percent, up to which files wait for a repository that is not required.
const ROOM_PERCENT: u64 = 90;
/// How often it is looked whether files still wait for such a repository.
const LOOK: Duration = Duration::from_secs(1);

/// The repository to ship to, and how.
pub struct Options {
    /// The repositories. Required ones hold journal files back until they have them; without any required one, all are.
    pub repositories: Vec<config::Repository>,
    /// Random, for temporary names.
    pub nonce: u64,
    /// The clock, for the times in [`Shipped`].
    pub clock: Clock,
}

/// The bytes of the journal that one repository holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipped {
    /// Its name in the configuration.
    pub repository: String,
    /// Whether it is required.
    pub is_required: bool,
    /// Behind the last byte that it holds, of what came through this journal; none before anything is known.
    pub position: Option<Position>,
    /// When that position was reached.
    pub since: Option<TimestampTz>,
    /// Why it goes no further, while it does not.
    pub error: Option<String>,
}

/// The state that the threads share.
pub struct Ship {
    /// The way out of the journal.
    pub follower: Follower,
    /// Takes warnings and notes.
    pub progress: Arc<dyn Progress>,
    clock: Clock,
    nonce: AtomicU64,
    places: Vec<config::Repository>,
    /// The journal's.
    directory: PathBuf,
    table: Mutex<Table>,
    /// A thread has ended, or all shall.
    changed: Condvar,
    archived: watch::Sender<Option<Position>>,
    is_stopping: AtomicBool,
}

struct Table {
    rows: Vec<Row>,
    /// The marks of segments that a repository holds whole, and of the last one that was let go.
    marks: BTreeMap<SegmentName, Mark>,
}

struct Row {
    shipped: Shipped,
    /// Segments in the journal that it holds.
    stored: BTreeSet<SegmentName>,
    /// How many segments the journal let go without it since the last warning.
    missed: u64,
    /// The first of them since it stored one: the one that it may be storing even so.
    missed_first: Option<SegmentName>,
    /// Bytes that were read of segments on their way to it: a large one takes a slow repository long.
    read: Arc<AtomicU64>,
    /// How many there were when it was looked last.
    read_before: u64,
    /// Since when files wait for it, and it takes nothing.
    silent_since: Option<Instant>,
    /// Its error is silence.
    is_silent: bool,
    /// Set when its thread has ended: whether it holds all that is durable.
    ended: Option<bool>,
}

impl Row {
    /// Whether files wait for it.
    fn counts(&self) -> bool {
        self.shipped.is_required || self.shipped.error.is_none()
    }

    /// It takes something.
    fn moves(&mut self) {
        self.silent_since = None;
        if std::mem::take(&mut self.is_silent) {
            self.shipped.error = None;
        }
    }

    /// Returns what to warn of, once files have waited too long for a repository that takes nothing. `waiting` are those that wait for no
    /// required one.
    fn look(&mut self, waiting: &[SegmentName], now: Instant) -> Option<String> {
        let read = self.read.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.read_before, read) != read {
            self.silent_since = None;
        }
        let lacks = |name: &SegmentName| !self.stored.contains(name);
        if self.shipped.is_required || !self.counts() || !waiting.iter().any(lacks) {
            self.silent_since = None;
            return None;
        }
        let since = *self.silent_since.get_or_insert(now);
        let silence = now.duration_since(since);
        if silence < fault::shortened(SILENCE_MAX) {
            return None;
        }
        self.is_silent = true;
        let why = format!("it has taken nothing for {} s", silence.as_secs());
        let told = format!(
            "repository \"{}\" is not required, and {why}: the journal keeps no WAL for it until it does",
            self.shipped.repository
        );
        self.shipped.error = Some(why);
        Some(told)
    }

    /// A segment is let go that it does not hold; returns what to warn of for the first one.
    fn misses(&mut self, name: SegmentName) -> Option<String> {
        self.missed += 1;
        self.missed_first.get_or_insert(name);
        let why = match self.counts() {
            true => "does not keep up, and the journal has little room",
            false => "fails",
        };
        (self.missed == 1).then(|| {
            format!(
                "repository \"{}\" is not required and {why}: segment \"{name}\" is let go without it",
                self.shipped.repository
            )
        })
    }

    /// Returns what to warn of where segments were let go without it.
    fn take_missed(&mut self) -> Option<String> {
        self.missed_first = None;
        let missed = std::mem::take(&mut self.missed);
        (missed > 0).then(|| {
            format!(
                "repository \"{}\" lacks {missed} segments that were let go while it failed or did not keep up; the required repositories have them",
                self.shipped.repository
            )
        })
    }
}

impl Ship {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Rows are changed field by field, and each field is right by itself.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration of a repository.
    pub fn place(&self, index: usize) -> &config::Repository {
        &self.places[index]
    }

    /// The name of a repository.
    pub fn name(&self, index: usize) -> String {
        let table = self.table();
        table
            .rows
            .get(index)
            .map_or(String::new(), |r| r.shipped.repository.clone())
    }

    /// A number that was not used before.
    pub fn next_nonce(&self) -> u64 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether what is durable is to be stored, and nothing waited for.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Waits before something is tried again; not when all shall end.
    pub fn pause(&self, time: Duration) {
        let table = self.table();
        let _ = self
            .changed
            .wait_timeout_while(table, time, |_| !self.is_stopping());
    }

    /// Counts bytes that are read of a segment on its way to a repository: while they become more, that one is not silent.
    pub fn reading(&self, index: usize) -> Arc<AtomicU64> {
        let table = self.table();
        let row = table.rows.get(index);
        row.map_or_else(Arc::default, |row| Arc::clone(&row.read))
    }

    /// A repository takes nothing at present, or takes something again.
    pub fn set_error(&self, index: usize, error: Option<String>) {
        if let Some(row) = self.table().rows.get_mut(index) {
            if error.is_none()
                && let Some(told) = row.take_missed()
            {
                self.progress.warn(&told);
            }
            row.is_silent = false;
            row.shipped.error = error;
        }
        // An optional repository that fails holds no file back.
        self.let_go();
    }

    /// A repository holds everything before `position`.
    pub fn reached(&self, index: usize, position: Position) {
        let mut table = self.table();
        if let Some(row) = table.rows.get_mut(index) {
            row.moves();
            row.shipped.position = Some(position);
            row.shipped.since = Some((self.clock)());
        }
        // None, where nothing is known yet, is the smallest.
        let required = table.rows.iter().filter(|r| r.shipped.is_required);
        let least = required.map(|r| r.shipped.position).min().flatten();
        drop(table);
        self.archived.send_if_modified(|archived| {
            let is_new = *archived < least;
            if is_new {
                *archived = least;
            }
            is_new
        });
    }

    /// Remembers the own mark of a segment of the journal, also for the next process.
    pub fn keep_mark(&self, name: SegmentName, mark: Mark) {
        self.table().marks.insert(name, mark);
    }

    /// The own mark of a segment that was shipped or let go, where it is known.
    pub fn mark(&self, name: SegmentName) -> Option<(SegmentName, Mark)> {
        let mark = self.table().marks.get(&name).copied();
        mark.map(|mark| (name, mark))
    }

    /// A repository holds all that there will be of a segment.
    pub fn stored(&self, index: usize, name: SegmentName) {
        let segments = self.follower.segments();
        if let Some(row) = self.table().rows.get_mut(index) {
            row.moves();
            row.stored.insert(name);
            // It was let go while it was being stored.
            if row.missed_first.take() == Some(name) {
                row.missed = row.missed.saturating_sub(1);
            }
            let mut whole = segments.iter().filter(|s| s.is_complete());
            if row.counts()
                && whole.all(|s| row.stored.contains(&s.name))
                && let Some(told) = row.take_missed()
            {
                self.progress.warn(&told);
            }
        }
        self.let_go();
    }

    fn let_go(&self) {
        self.let_go_at(Instant::now());
    }

    /// Lets files go that every required repository holds, and every other one that takes something while there is room.
    fn let_go_at(&self, now: Instant) {
        let mut table = self.table();
        let segments = self.follower.segments();
        for row in &mut table.rows {
            row.stored
                .retain(|name| segments.binary_search_by_key(name, |s| s.name).is_ok());
        }
        let lacks = |row: &Row, name: &SegmentName| !row.stored.contains(name);
        let is_required = |name: &SegmentName| {
            let mut rows = table.rows.iter().filter(|row| row.shipped.is_required);
            rows.any(|row| lacks(row, name))
        };
        let waiting: Vec<SegmentName> = segments
            .iter()
            .map(|s| s.name)
            .filter(|name| !is_required(name) && !self.follower.is_witness(*name))
            .collect();
        for row in &mut table.rows {
            if let Some(told) = row.look(&waiting, now) {
                self.progress.warn(&told);
            }
        }
        if waiting.is_empty() {
            return;
        }
        // In the table's lock, so that two threads do not let the same file go.
        let mut excess = self.follower.bytes_beyond(ROOM_PERCENT);
        for name in waiting {
            let is_wanted = table.rows.iter().any(|r| r.counts() && lacks(r, &name));
            if !is_wanted || excess > 0 {
                excess = excess.saturating_sub(self.follower.bytes_of(name));
                self.let_one_go(&mut table, name);
            }
        }
    }

    fn let_one_go(&self, table: &mut Table, name: SegmentName) {
        if let Some(mark) = table.marks.get(&name).copied() {
            // It is evidence, which another one stands for where it is lacking.
            let _ = let_go::write(&self.directory, (name, mark), self.next_nonce());
            table.marks.retain(|older, _| *older >= name);
        }
        if let Err(e) = self.follower.release(name) {
            self.progress.warn(&e.to_string());
        }
        for row in table.rows.iter_mut().filter(|r| !r.stored.contains(&name)) {
            if let Some(told) = row.misses(name) {
                self.progress.warn(&told);
            }
        }
    }
}

/// How long after a failure it is tried again; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// How often a failure that lasts is reported.
const REPEAT: Duration = Duration::from_secs(30);

/// Failures of one repository, told and waited for.
pub struct Attempts {
    ship: Arc<Ship>,
    index: usize,
    /// The things that it takes, or does not.
    what: &'static str,
    failing: Option<Failing>,
}

struct Failing {
    since: Instant,
    said: Instant,
    pause: Duration,
}

impl Attempts {
    /// None so far.
    pub fn new(ship: &Arc<Ship>, index: usize, what: &'static str) -> Attempts {
        Attempts {
            ship: Arc::clone(ship),
            index,
            what,
            failing: None,
        }
    }

    /// Something was stored.
    pub fn succeeded(&mut self) {
        if let Some(failing) = self.failing.take() {
            self.ship.set_error(self.index, None);
            self.ship.progress.note(&format!(
                "repository \"{}\" takes {} again after {} s",
                self.ship.name(self.index),
                self.what,
                failing.since.elapsed().as_secs()
            ));
        }
    }

    /// Tells why nothing is stored.
    pub fn report(&self, error: &Error) {
        self.ship.set_error(self.index, Some(error.to_string()));
        let hint = error.hint_text().unwrap_or_default();
        self.ship.progress.warn(&format!(
            "repository \"{}\" does not take {}, which stays in the journal: {error}. {hint}",
            self.ship.name(self.index),
            self.what
        ));
    }

    /// Waits before the next attempt, and reports now and then.
    pub fn failed(&mut self, error: &Error) {
        let now = Instant::now();
        let is_first = self.failing.is_none();
        let failing = self.failing.get_or_insert(Failing {
            since: now,
            said: now,
            pause: RETRY_FIRST,
        });
        let is_due = is_first || now.duration_since(failing.said) >= REPEAT;
        if is_due {
            failing.said = now;
        }
        let pause = failing.pause;
        failing.pause = (pause * 2).min(RETRY_LAST);
        if is_due {
            self.report(error);
        }
        self.ship.pause(pause);
    }
}

/// The work of a thread, for the repository of this number: it ends when all shall, and returns whether all that is durable is stored.
pub type Work = Arc<dyn Fn(&Arc<Ship>, usize) -> bool + Send + Sync>;

/// The threads that ship, one for each repository.
pub struct Shipper {
    ship: Arc<Ship>,
    threads: Vec<JoinHandle<()>>,
    /// The thread that looks after room, where a repository is not required.
    watch: Option<JoinHandle<()>>,
}

impl Shipper {
    /// Starts them. Each looks at what its repository holds, and assumes nothing.
    ///
    /// # Errors
    /// `Io` when a thread cannot be started.
    pub fn start(
        journal: &Journal,
        options: Options,
        work: &Work,
        progress: Arc<dyn Progress>,
    ) -> Result<Shipper> {
        let follower = journal.follower();
        let none_required = options.repositories.iter().all(|r| !r.required);
        let rows = options.repositories.iter().map(|r| Row {
            shipped: Shipped {
                repository: r.name.clone(),
                is_required: r.required || none_required,
                position: None,
                since: None,
                error: None,
            },
            stored: BTreeSet::new(),
            missed: 0,
            missed_first: None,
            read: Arc::default(),
            read_before: 0,
            silent_since: None,
            is_silent: false,
            ended: None,
        });
        let (archived, _) = watch::channel(None);
        let ship = Arc::new(Ship {
            progress,
            clock: options.clock,
            nonce: AtomicU64::new(options.nonce),
            table: Mutex::new(Table {
                rows: rows.collect(),
                marks: let_go::begin(journal.path(), &follower.segments()),
            }),
            directory: journal.path().to_owned(),
            follower,
            places: options.repositories.clone(),
            changed: Condvar::new(),
            archived,
            is_stopping: AtomicBool::new(false),
        });
        let mut shipper = Shipper {
            threads: Vec::new(),
            watch: None,
            ship,
        };
        for index in 0..shipper.ship.places.len() {
            shipper.threads.push(start_one(&shipper.ship, index, work)?);
        }
        if shipper.shipped().iter().any(|row| !row.is_required) {
            shipper.watch = Some(start_watch(&shipper.ship)?);
        }
        Ok(shipper)
    }

    /// The state that the threads share.
    pub fn ship(&self) -> &Arc<Ship> {
        &self.ship
    }

    /// Behind the last byte that every required repository holds.
    pub fn archived(&self) -> watch::Receiver<Option<Position>> {
        self.ship.archived.subscribe()
    }

    /// Returns the WAL that each repository holds.
    pub fn shipped(&self) -> Vec<Shipped> {
        let table = self.ship.table();
        table.rows.iter().map(|r| r.shipped.clone()).collect()
    }

    /// Brings what is durable into the repositories, the open segment as an increment, and ends. `false` when a required one does not
    /// hold all of it within `deadline`: what is missing stays in the journal.
    pub fn finish(mut self, deadline: Duration) -> bool {
        self.stop();
        let is_done = self.wait(Instant::now() + deadline);
        // Those that hang are left behind. The others share the journal's lock until they are gone.
        let has_ended: Vec<bool> = {
            let table = self.ship.table();
            table.rows.iter().map(|r| r.ended.is_some()).collect()
        };
        for (thread, _) in self.threads.drain(..).zip(has_ended).filter(|(_, e)| *e) {
            let _ = thread.join();
        }
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
        is_done
    }

    /// Waits until all threads have ended; returns whether the required ones have shipped everything.
    fn wait(&self, until: Instant) -> bool {
        let mut table = self.ship.table();
        loop {
            let is_running = table.rows.iter().any(|r| r.ended.is_none());
            let left = until.saturating_duration_since(Instant::now());
            if !is_running || left.is_zero() {
                let mut required = table.rows.iter().filter(|r| r.shipped.is_required);
                return required.all(|r| r.ended == Some(true));
            }
            table = match self.ship.changed.wait_timeout(table, left) {
                Ok((table, _)) => table,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn stop(&self) {
        self.ship.is_stopping.store(true, Ordering::Release);
        // With the lock in hand: nobody is between a look at the flag and the wait.
        drop(self.ship.table());
        self.ship.changed.notify_all();
        self.ship.follower.wake();
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start_one(ship: &Arc<Ship>, index: usize, work: &Work) -> Result<JoinHandle<()>> {
    /// A thread that panics has ended, too.
    struct Ended(Arc<Ship>, usize, bool);
    impl Drop for Ended {
        fn drop(&mut self) {
            if let Some(row) = self.0.table().rows.get_mut(self.1) {
                row.ended = Some(self.2);
            }
            self.0.changed.notify_all();
        }
    }
    let ended = Ended(Arc::clone(ship), index, false);
    let work = Arc::clone(work);
    std::thread::Builder::new()
        .name(format!("ship-{index}"))
        .spawn(move || {
            // All of it: the closure would take a copy of the flag alone.
            let mut ended = ended;
            ended.2 = work(&ended.0, index);
        })
        .map_err(|e| Error::from_io("start a thread that ships", e))
}

/// A repository that hangs says nothing: so this looks whether files wait for it too long, or for want of room no longer.
fn start_watch(ship: &Arc<Ship>) -> Result<JoinHandle<()>> {
    let ship = Arc::clone(ship);
    std::thread::Builder::new()
        .name("ship-watch".to_owned())
        .spawn(move || {
            while !ship.is_stopping() {
                ship.let_go();
                ship.pause(LOOK);
            }
        })
        .map_err(|e| Error::from_io("start a thread that looks after room", e))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Location;
    use crate::journal;
    use crate::pg::lsn::Lsn;
    use crate::pg::segment::SegmentSize;
    use crate::pg::timeline::TimelineId;
    use crate::progress::Collector;

    const SIZE: u64 = 1 << 20;
    const FILE: u64 = SIZE + SIZE / 16 + 4096;

    struct Bench {
        directory: tempfile::TempDir,
        said: Arc<Collector>,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                directory: tempfile::tempdir().unwrap(),
                said: Arc::new(Collector::default()),
            }
        }

        fn progress(&self) -> Arc<dyn Progress> {
            Arc::clone(&self.said) as _
        }

        /// A journal that has room for so many files.
        fn journal(&self, files: u64) -> Journal {
            let options = journal::Options {
                directory: self.directory.path().to_owned(),
                system_identifier: 7,
                segment_size: SegmentSize::new(SIZE).unwrap(),
                limit_bytes: Some(files * FILE),
                is_mended: true,
                nonce: 1,
                now: TimestampTz(0),
            };
            Journal::open(&options, self.progress()).unwrap()
        }

        /// A required repository that takes each segment at once, and another that hangs.
        fn shipper(&self, journal: &Journal) -> Shipper {
            let repositories = ["takes", "hangs"].map(|name| config::Repository {
                name: name.to_owned(),
                required: name == "takes",
                ..config::Repository::at(Location::File(self.directory.path().join(name)))
            });
            let options = Options {
                repositories: repositories.to_vec(),
                nonce: 2,
                clock: Arc::new(|| TimestampTz(5)),
            };
            let work: Work = Arc::new(|ship, index| {
                while !ship.is_stopping() {
                    for segment in ship.follower.segments() {
                        if index == 0 && segment.is_complete() {
                            ship.stored(index, segment.name);
                        }
                    }
                    ship.pause(Duration::from_millis(5));
                }
                index == 0
            });
            Shipper::start(journal, options, &work, self.progress()).unwrap()
        }

        /// Whether a message has this text.
        fn has_said(&self, words: &str) -> bool {
            self.said.lines().join("\n").contains(words)
        }
    }

    /// Feeds whole segments, and waits until they are durable: for a minute.
    fn feed(journal: &Journal, numbers: std::ops::Range<u64>) {
        let feeder = journal.feeder();
        let timeline = TimelineId::FIRST;
        let all = async {
            for number in numbers.clone() {
                let wal = Bytes::from(vec![7; usize::try_from(SIZE).unwrap()]);
                let room = feeder.room(wal.len()).await.unwrap();
                let lsn = Lsn(number * SIZE);
                feeder.feed(room, timeline, lsn, wal).unwrap();
            }
            let lsn = Lsn(numbers.end * SIZE);
            let end = Some(Position { timeline, lsn });
            let mut watch = journal.watch();
            watch.wait_for(|d| d.position >= end).await.unwrap();
        };
        let runtime = crate::wire::runtime::start().unwrap();
        let limit = Duration::from_secs(60);
        let in_time = runtime.block_on(async { tokio::time::timeout(limit, all).await });
        in_time.expect("the journal takes it");
    }

    #[track_caller]
    fn wait_until(mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            let is_late = begun.elapsed() >= Duration::from_secs(60);
            assert!(!is_late, "it does not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn name(number: u64) -> SegmentName {
        let size = SegmentSize::new(SIZE).unwrap();
        SegmentName::of(TimelineId::FIRST, Lsn(number * SIZE), size)
    }

    /// Row W69: the journal would be full for a repository that is not required.
    #[test]
    fn w69_files_wait_for_a_repository_that_hangs_only_while_there_is_room() {
        let bench = Bench::new();
        let journal = bench.journal(12);
        let shipper = bench.shipper(&journal);
        feed(&journal, 1..5);
        let stored = || shipper.ship.table().rows[0].stored.len();
        wait_until(|| stored() == 4);
        assert_eq!(journal.follower().segments().len(), 4);
        assert!(!bench.has_said("is let go"));
        feed(&journal, 5..40);
        let follower = journal.follower();
        // The lock of the table comes last: it waits for who lets files go.
        wait_until(|| {
            follower.bytes_beyond(ROOM_PERCENT) == 0 && stored() == follower.segments().len()
        });
        let told =
            "\"hangs\" is not required and does not keep up, and the journal has little room";
        assert!(bench.has_said(told), "{:?}", bench.said.lines());
        assert_eq!(shipper.shipped()[1].error, None);
        // The journal still has the newest segments for it. A warning counts the others.
        let held = journal.follower().segments();
        assert!(held.len() > 5, "{}", held.len());
        let lacks = held[0].from.0 / SIZE - 1;
        for segment in held {
            shipper.ship.stored(1, segment.name);
        }
        let told = format!("\"hangs\" lacks {lacks} segments");
        assert!(bench.has_said(&told), "{:?}", bench.said.lines());
        assert!(shipper.finish(Duration::from_secs(60)));
    }

    #[test]
    fn w69_files_wait_for_a_silent_repository_only_so_long() {
        let bench = Bench::new();
        let journal = bench.journal(100);
        let shipper = bench.shipper(&journal);
        feed(&journal, 1..4);
        let ship = Arc::clone(shipper.ship());
        wait_until(|| ship.table().rows[0].stored.len() == 3);
        let now = Instant::now();
        ship.let_go_at(now);
        assert_eq!(journal.follower().segments().len(), 3);
        // A segment is on its way to it.
        ship.reading(1).fetch_add(1, Ordering::Relaxed);
        ship.let_go_at(now + SILENCE_MAX);
        assert_eq!(journal.follower().segments().len(), 3);
        ship.let_go_at(now + 2 * SILENCE_MAX);
        assert_eq!(journal.follower().segments().len(), 0);
        let error = shipper.shipped()[1].error.clone().unwrap();
        assert!(error.starts_with("it has taken nothing for "), "{error}");
        assert!(bench.has_said("the journal keeps no WAL for it until it does"));
        feed(&journal, 4..5);
        wait_until(|| journal.follower().segments().is_empty());
        // It had one of them under way.
        ship.stored(1, name(1));
        assert_eq!(shipper.shipped()[1].error, None);
        assert!(bench.has_said("\"hangs\" lacks 3 segments"));
        feed(&journal, 5..6);
        wait_until(|| ship.table().rows[0].stored.contains(&name(5)));
        assert_eq!(journal.follower().segments().len(), 1);
        ship.stored(1, name(5));
        assert_eq!(journal.follower().segments().len(), 0);
        drop(ship);
        assert!(shipper.finish(Duration::from_secs(60)));
    }
}
