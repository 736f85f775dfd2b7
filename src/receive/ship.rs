//! What is durable in the journal goes into the repositories: whole segments by the engine of archiving, the open one as increments;
//! and the journal's files are let go.
//!
//! Each repository has a thread of its own, so that one that hangs holds up nothing but itself.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::journal::{Follower, Journal, Position};
use super::shipment::Shipment;
use crate::archive::push::push_history;
use crate::config::{self, Acknowledge, Location};
use crate::error::{Error, Result};
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;
use crate::repo;
use crate::repo::layout::ClusterLayout;

/// Where to ship to, and how.
pub struct Options {
    /// The cluster's name in the repositories.
    pub cluster: String,
    /// The repositories. Required ones hold journal files back until they have them; without any required one, all are.
    pub repositories: Vec<config::Repository>,
    /// With `Repository`, increments go out at once.
    pub acknowledge: Acknowledge,
    /// Random, for temporary names.
    pub nonce: u64,
    /// The clock, for the times in [`Shipped`].
    pub clock: fn() -> TimestampTz,
}

/// What one repository holds.
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

/// What the threads share.
pub(super) struct Ship {
    pub(super) follower: Follower,
    pub(super) layout: ClusterLayout,
    pub(super) acknowledge: Acknowledge,
    pub(super) progress: Arc<dyn Progress>,
    clock: fn() -> TimestampTz,
    nonce: AtomicU64,
    locations: Vec<Location>,
    table: Mutex<Table>,
    /// A thread has ended, or all shall.
    changed: Condvar,
    archived: watch::Sender<Option<Position>>,
    is_stopping: AtomicBool,
}

struct Table {
    rows: Vec<Row>,
}

struct Row {
    shipped: Shipped,
    /// Segments in the journal that it holds.
    stored: BTreeSet<SegmentName>,
    /// Set when its thread has ended: whether it holds all that is durable.
    ended: Option<bool>,
}

impl Ship {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Rows are changed field by field, and each field is right by itself.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn location(&self, index: usize) -> &Location {
        &self.locations[index]
    }

    pub(super) fn name(&self, index: usize) -> String {
        let table = self.table();
        table
            .rows
            .get(index)
            .map_or(String::new(), |r| r.shipped.repository.clone())
    }

    pub(super) fn next_nonce(&self) -> u64 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Waits before something is tried again; not when all shall end.
    pub(super) fn pause(&self, time: Duration) {
        let table = self.table();
        let _ = self
            .changed
            .wait_timeout_while(table, time, |_| !self.is_stopping());
    }

    pub(super) fn set_error(&self, index: usize, error: Option<String>) {
        if let Some(row) = self.table().rows.get_mut(index) {
            row.shipped.error = error;
        }
        // An optional repository that fails holds no file back.
        self.let_go();
    }

    /// A repository holds everything before `position`.
    pub(super) fn reached(&self, index: usize, position: Position) {
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

    /// A repository holds all that there will be of a segment.
    pub(super) fn stored(&self, index: usize, name: SegmentName) {
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
        for segment in segments.iter().filter(|s| !is_needed(&s.name)) {
            if let Err(e) = self.follower.release(segment.name) {
                self.progress.warn(&e.to_string());
            }
        }
    }
}

/// The threads that ship, one for each repository.
pub struct Shipper {
    ship: Arc<Ship>,
}

impl Shipper {
    /// Starts them. What is in the repositories already is found out, not assumed.
    ///
    /// # Errors
    /// `Usage` when the cluster's name is none; `Io` when a thread cannot be started.
    pub fn start(
        journal: &Journal,
        options: Options,
        progress: Arc<dyn Progress>,
    ) -> Result<Shipper> {
        let follower = journal.follower();
        let layout = ClusterLayout::new(&options.cluster, follower.system_identifier())?;
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
            ended: None,
        });
        let (archived, _) = watch::channel(None);
        let ship = Arc::new(Ship {
            follower,
            layout,
            acknowledge: options.acknowledge,
            progress,
            clock: options.clock,
            nonce: AtomicU64::new(options.nonce),
            table: Mutex::new(Table {
                rows: rows.collect(),
            }),
            locations: options
                .repositories
                .iter()
                .map(|r| r.location.clone())
                .collect(),
            changed: Condvar::new(),
            archived,
            is_stopping: AtomicBool::new(false),
        });
        for index in 0..ship.locations.len() {
            start_one(&ship, index)?;
        }
        Ok(Shipper { ship })
    }

    /// Behind the last byte that every required repository holds.
    pub fn archived(&self) -> watch::Receiver<Option<Position>> {
        self.ship.archived.subscribe()
    }

    /// What each repository holds.
    pub fn shipped(&self) -> Vec<Shipped> {
        let table = self.ship.table();
        table.rows.iter().map(|r| r.shipped.clone()).collect()
    }

    /// Stores a timeline's history file, as the server gave it, in every repository. Call it before WAL of that timeline is fed.
    ///
    /// # Errors
    /// Those of [`push_history`], of the first required repository that failed. Others only cause a warning.
    pub fn archive_history(&self, timeline: TimelineId, content: &[u8]) -> Result<()> {
        let ship = &self.ship;
        for (shipped, location) in self.shipped().iter().zip(&ship.locations) {
            let stored = repo::open(location, ship.next_nonce())
                .and_then(|r| push_history(&r, &ship.layout, timeline, content))
                .map_err(|e| e.context(format!("repository \"{}\"", shipped.repository)));
            match stored {
                Ok(_) => {}
                Err(e) if shipped.is_required => return Err(e),
                Err(e) => ship.progress.warn(&e.to_string()),
            }
        }
        Ok(())
    }

    /// Brings what is durable into the repositories, the open segment as an increment, and ends. `false` when a required one does not
    /// hold all of it within `deadline`: what is missing stays in the journal.
    pub fn finish(self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.stop();
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

fn start_one(ship: &Arc<Ship>, index: usize) -> Result<()> {
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
    std::thread::Builder::new()
        .name(format!("ship-{index}"))
        .spawn(move || {
            // All of it: the closure would take a copy of the flag alone.
            let mut ended = ended;
            ended.2 = Shipment::new(Arc::clone(&ended.0), index).run();
        })
        .map_err(|e| Error::from_io("start a thread that ships WAL", e))?;
    Ok(())
}
