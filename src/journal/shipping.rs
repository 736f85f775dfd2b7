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
use crate::host::Clock;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::Position;
use crate::progress::Progress;

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
    /// How many segments were let go that it does not hold, since it began to fail.
    missed: u64,
    /// Set when its thread has ended: whether it holds all that is durable.
    ended: Option<bool>,
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

    /// A repository takes nothing at present, or takes something again.
    pub fn set_error(&self, index: usize, error: Option<String>) {
        if let Some(row) = self.table().rows.get_mut(index) {
            if error.is_none() && row.missed > 0 {
                self.progress.warn(&format!(
                    "repository \"{}\" lacks {} segments that were let go while it failed; the required repositories have them",
                    row.shipped.repository, row.missed
                ));
                row.missed = 0;
            }
            row.shipped.error = error;
        }
        // An optional repository that fails holds no file back.
        self.let_go();
    }

    /// A repository holds everything before `position`.
    pub fn reached(&self, index: usize, position: Position) {
        let mut table = self.table();
        if let Some(row) = table.rows.get_mut(index) {
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
        if let Some(row) = self.table().rows.get_mut(index) {
            row.stored.insert(name);
        }
        self.let_go();
    }

    /// Lets files go that every required repository holds, and every other one that takes anything.
    fn let_go(&self) {
        let mut table = self.table();
        let segments = self.follower.segments();
        for row in &mut table.rows {
            row.stored
                .retain(|name| segments.binary_search_by_key(name, |s| s.name).is_ok());
        }
        let is_needed = |name: &SegmentName| {
            table.rows.iter().any(|row| {
                let waits = row.shipped.is_required || row.shipped.error.is_none();
                waits && !row.stored.contains(name)
            })
        };
        // In the table's lock, so that two threads do not let the same file go.
        let unneeded: Vec<SegmentName> = segments
            .iter()
            .map(|s| s.name)
            .filter(|name| !is_needed(name) && !self.follower.is_witness(*name))
            .collect();
        for name in unneeded {
            if let Some(mark) = table.marks.get(&name).copied() {
                // It is evidence, which another one stands for where it is lacking.
                let _ = let_go::write(&self.directory, (name, mark), self.next_nonce());
                table.marks.retain(|older, _| *older >= name);
            }
            if let Err(e) = self.follower.release(name) {
                self.progress.warn(&e.to_string());
            }
            for row in table.rows.iter_mut().filter(|r| !r.stored.contains(&name)) {
                row.missed += 1;
                if row.missed == 1 {
                    self.progress.warn(&format!(
                        "repository \"{}\" is not required and fails: segment \"{name}\" is let go without it",
                        row.shipped.repository
                    ));
                }
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
            ship,
        };
        for index in 0..shipper.ship.places.len() {
            shipper.threads.push(start_one(&shipper.ship, index, work)?);
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
