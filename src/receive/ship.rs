//! Ships the durable WAL of the journal into the repositories: whole segments by the engine of archiving, the open one as increments;
//! and the journal's files are let go.
//!
//! Each repository has a thread of its own, so that one that hangs holds up nothing but itself.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::journal::{Follower, Journal};
use super::shipment::Shipment;
use crate::archive::push::push_history;
use crate::config::{self, Acknowledge};
use crate::error::{Error, Result};
use crate::host::Clock;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{Position, TimelineId};
use crate::progress::Progress;
use crate::repo;
use crate::repo::layout::ClusterLayout;

/// The repository to ship to, and how.
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
    pub clock: Clock,
}

/// The WAL that one repository holds.
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
pub(super) struct Ship {
    pub(super) follower: Follower,
    pub(super) layout: ClusterLayout,
    pub(super) acknowledge: Acknowledge,
    pub(super) progress: Arc<dyn Progress>,
    clock: Clock,
    nonce: AtomicU64,
    places: Vec<config::Repository>,
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

    pub(super) fn place(&self, index: usize) -> &config::Repository {
        &self.places[index]
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
        let let_go: Vec<SegmentName> = segments
            .iter()
            .map(|s| s.name)
            .filter(|name| !is_needed(name))
            .collect();
        for name in let_go {
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

/// The threads that ship, one for each repository.
pub struct Shipper {
    ship: Arc<Ship>,
    threads: Vec<JoinHandle<()>>,
}

impl Shipper {
    /// Starts them. Each looks at what its repository holds, and assumes nothing.
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
            missed: 0,
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
            shipper.threads.push(start_one(&shipper.ship, index)?);
        }
        Ok(shipper)
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

    /// Stores a timeline's history file, as the server gave it, in every repository. Call it before WAL of that timeline is fed.
    ///
    /// # Errors
    /// Those of [`push_history`], of the first required repository that failed. Others only cause a warning.
    pub fn archive_history(&self, timeline: TimelineId, content: &[u8]) -> Result<()> {
        let ship = &self.ship;
        for (shipped, place) in self.shipped().iter().zip(&ship.places) {
            let stored = repo::open(place, ship.next_nonce())
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

fn start_one(ship: &Arc<Ship>, index: usize) -> Result<JoinHandle<()>> {
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
        .map_err(|e| Error::from_io("start a thread that ships WAL", e))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use bytes::Bytes;

    use super::*;
    use crate::config::Location;
    use crate::error::Code;
    use crate::pg::craft::{self, Craft};
    use crate::pg::lsn::Lsn;
    use crate::pg::rmgr;
    use crate::pg::segment::{SegmentSize, WalFileName};
    use crate::pg::timeline::History;
    use crate::pg::version::Major;
    use crate::progress::Collector;
    use crate::receive::journal;
    use crate::repo::container::{Container, Kind};
    use crate::repo::crafted;
    use crate::repo::repository::Repository;
    use crate::wal::increment::{self, OpenSegment};

    const SEGMENT: u64 = 1 << 20;

    /// A journal and repositories in one directory, and WAL to feed.
    struct Bench {
        directory: tempfile::TempDir,
        craft: Craft,
        said: Arc<Collector>,
    }

    fn bench(segments: u64) -> Bench {
        let mut craft = Craft::new(Major::V17);
        let end = craft.position().0 + segments * SEGMENT;
        while craft.position().0 < end {
            let data = vec![0x5A; 3000];
            craft.record(rmgr::XLOG, 0x20, 0, &craft::long_main_data(&data));
        }
        let bench = Bench {
            directory: tempfile::tempdir().unwrap(),
            craft,
            said: Arc::new(Collector::default()),
        };
        for name in ["one", "two"] {
            bench.create(name);
        }
        bench
    }

    impl Bench {
        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn create(&self, name: &str) {
            crafted::create(&self.path(name), &self.craft);
        }

        fn repository(&self, name: &str) -> Repository {
            repo::open(&config::Repository::at(Location::File(self.path(name))), 9).unwrap()
        }

        fn layout(&self) -> ClusterLayout {
            ClusterLayout::new("main", self.craft.identity.system_identifier).unwrap()
        }

        fn progress(&self) -> Arc<dyn Progress> {
            Arc::clone(&self.said) as _
        }

        fn start(&self) -> Lsn {
            self.craft.identity.start_lsn
        }

        fn at(&self, offset: u64) -> Position {
            Position {
                timeline: TimelineId::FIRST,
                lsn: Lsn(self.start().0 + offset),
            }
        }

        fn name(&self, number: u64) -> SegmentName {
            let size = self.craft.identity.segment_size;
            SegmentName::of(
                TimelineId::FIRST,
                Lsn(self.start().0 + number * SEGMENT),
                size,
            )
        }

        fn journal(&self) -> Journal {
            let options = journal::Options {
                directory: self.path("journal"),
                system_identifier: self.craft.identity.system_identifier,
                segment_size: self.craft.identity.segment_size,
                limit_bytes: None,
                nonce: 77,
                now: TimestampTz(0),
            };
            Journal::open(&options, self.progress()).unwrap()
        }

        /// `names`, those with a `?` not required.
        fn shipper(&self, journal: &Journal, names: &[&str], acknowledge: Acknowledge) -> Shipper {
            let repositories = names.iter().map(|name| config::Repository {
                name: (*name).to_owned(),
                required: !name.ends_with('?'),
                ..config::Repository::at(Location::File(self.path(name.trim_end_matches('?'))))
            });
            let options = Options {
                cluster: "main".to_owned(),
                repositories: repositories.collect(),
                acknowledge,
                nonce: 99,
                clock: Arc::new(|| TimestampTz(5)),
            };
            Shipper::start(journal, options, self.progress()).unwrap()
        }

        /// Feeds the WAL between two offsets, and waits until it is durable.
        fn feed(&self, journal: &Journal, timeline: TimelineId, from: u64, to: u64) {
            let feeder = journal.feeder();
            let runtime = tokio::runtime::Builder::new_current_thread();
            runtime_of(runtime).block_on(async {
                let mut at = from;
                while at < to {
                    let end = to.min(at + 50_000);
                    let range = usize::try_from(at).unwrap()..usize::try_from(end).unwrap();
                    let wal = Bytes::copy_from_slice(&self.craft.bytes[range]);
                    let room = feeder.room(wal.len()).await.unwrap();
                    let lsn = Lsn(self.start().0 + at);
                    feeder.feed(room, timeline, lsn, wal).unwrap();
                    at = end;
                }
                let mut watch = journal.watch();
                let lsn = Lsn(self.start().0 + to);
                let end = Some(Position { timeline, lsn });
                watch.wait_for(|d| d.position >= end).await.unwrap();
            });
        }

        fn stored(&self, name: &str, number: u64) -> bool {
            let repository = self.repository(name);
            let key = self.layout().segment(self.name(number));
            let Some(object) = repository.store().open(&key).unwrap() else {
                return false;
            };
            let from = usize::try_from(number * SEGMENT).unwrap();
            let mut at = from;
            let container = Container::open(object).unwrap();
            assert_eq!(container.kind(), Kind::Segment);
            let whole = container.read_body(&mut |bytes| {
                assert!(self.craft.bytes[at..].starts_with(bytes));
                at += bytes.len();
                Ok(())
            });
            whole.unwrap();
            assert_eq!((at - from) as u64, SEGMENT);
            true
        }

        fn increments(&self, name: &str, number: u64) -> Vec<(u64, u64)> {
            let listed = increment::list(&self.repository(name), &self.layout(), self.name(number));
            let start = self.start().0;
            let relative = listed.unwrap();
            relative
                .iter()
                .map(|r| (r.start.0 - start, r.end.0 - start))
                .collect()
        }
    }

    fn runtime_of(mut builder: tokio::runtime::Builder) -> tokio::runtime::Runtime {
        builder.enable_all().build().unwrap()
    }

    #[track_caller]
    fn wait_until(mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "it does not come"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn position(shipper: &Shipper, name: &str) -> Option<Position> {
        let shipped = shipper.shipped();
        let row = shipped.iter().find(|s| s.repository == name).unwrap();
        row.position
    }

    #[test]
    fn all_that_is_fed_is_in_every_repository_and_files_are_let_go() {
        let bench = bench(3);
        let journal = bench.journal();
        let shipper = bench.shipper(&journal, &["one", "two?"], Acknowledge::Journal);
        let end = 2 * SEGMENT + 300_000;
        bench.feed(&journal, TimelineId::FIRST, 0, end);
        for name in ["one", "two?"] {
            wait_until(|| position(&shipper, name) == Some(bench.at(end)));
        }
        assert_eq!(*shipper.archived().borrow(), Some(bench.at(end)));
        wait_until(|| journal.follower().segments().len() == 1);
        for name in ["one", "two"] {
            assert!(bench.stored(name, 0) && bench.stored(name, 1));
            let increments = bench.increments(name, 2);
            assert_eq!(increments.first().unwrap().0, 2 * SEGMENT);
            assert_eq!(increments.last().unwrap().1, end);
        }
        bench.feed(&journal, TimelineId::FIRST, end, end + 100);
        assert!(shipper.finish(Duration::from_secs(60)));
        assert_eq!(bench.increments("one", 2).last().unwrap().1, end + 100);
        assert_eq!(bench.said.lines(), Vec::<String>::new());
    }

    #[test]
    fn with_acknowledge_repository_every_piece_is_stored_at_once() {
        let bench = bench(1);
        let journal = bench.journal();
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
        for piece in 1..=70 {
            bench.feed(
                &journal,
                TimelineId::FIRST,
                (piece - 1) * 1000,
                piece * 1000,
            );
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(piece * 1000)));
        }
        let increments = bench.increments("one", 0);
        // One at least is merged, from the start.
        assert!(increments.contains(&(0, 64_000)), "{increments:?}");
        assert_eq!(increments.len(), 71);
    }

    #[test]
    fn after_a_restart_what_is_stored_is_compared_and_taken_over() {
        let bench = bench(2);
        let end = SEGMENT + 200_000;
        {
            let journal = bench.journal();
            let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
            bench.feed(&journal, TimelineId::FIRST, 0, SEGMENT + 100_000);
            bench.feed(&journal, TimelineId::FIRST, SEGMENT + 100_000, end);
            assert!(shipper.finish(Duration::from_secs(60)));
            journal.close().unwrap();
        }
        let before = bench.increments("one", 1);
        assert!(bench.stored("one", 0));
        {
            let journal = bench.journal();
            let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(end)));
            assert_eq!(bench.increments("one", 1), before);
            bench.feed(&journal, TimelineId::FIRST, end, end + 5);
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(end + 5)));
            assert!(bench.increments("one", 1).contains(&(end, end + 5)));
            assert!(shipper.finish(Duration::from_secs(60)));
            journal.close().unwrap();
        }
    }

    /// Archives the first segment as `archive_command` does, with this content.
    fn archive(bench: &Bench, content: &[u8]) {
        let path = bench.path(&bench.name(0).to_string());
        std::fs::write(&path, content).unwrap();
        let repository = bench.repository("one");
        let push = crate::archive::push::Push {
            repository: &repository,
            cluster: "main",
            path: &path,
            name: WalFileName::Segment(bench.name(0)),
            codec: crate::repo::container::Codec::Lz4,
            beside_others: false,
            known: None,
            is_backfill: false,
        };
        crate::archive::push::push(&push).unwrap();
    }

    #[test]
    fn what_is_received_of_a_segment_that_another_server_has_archived_does_not_count() {
        for is_own in [true, false] {
            let bench = bench(1);
            let mut content = bench.craft.bytes[..usize::try_from(SEGMENT).unwrap()].to_vec();
            if !is_own {
                content[5000] ^= 1;
            }
            let journal = bench.journal();
            let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
            bench.feed(&journal, TimelineId::FIRST, 0, 4000);
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(4000)));
            archive(&bench, &content);
            bench.feed(&journal, TimelineId::FIRST, 4000, 4500);
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(4500)));
            bench.feed(&journal, TimelineId::FIRST, 4500, 6000);
            if is_own {
                wait_until(|| *shipper.archived().borrow() == Some(bench.at(6000)));
                assert!(shipper.finish(Duration::from_secs(60)));
                continue;
            }
            wait_until(|| shipper.shipped()[0].error.is_some());
            let error = shipper.shipped()[0].error.clone().unwrap();
            assert!(error.contains("archived with other content"), "{error}");
            assert_eq!(*shipper.archived().borrow(), Some(bench.at(4500)));
            assert!(!shipper.finish(Duration::from_secs(60)));
        }
    }

    #[test]
    fn increments_of_other_content_are_a_conflict_and_nothing_counts() {
        let bench = bench(1);
        let segment = OpenSegment {
            name: bench.name(0),
            size: SegmentSize::new(SEGMENT).unwrap(),
            major: 17,
        };
        let repository = bench.repository("one");
        let foreign = vec![7; 5000];
        increment::put(
            &repository,
            &bench.layout(),
            &segment,
            bench.start(),
            &foreign,
        )
        .unwrap();
        let journal = bench.journal();
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
        bench.feed(&journal, TimelineId::FIRST, 0, 6000);
        wait_until(|| shipper.shipped()[0].error.is_some());
        let error = shipper.shipped()[0].error.clone().unwrap();
        assert!(error.contains("other content"), "{error}");
        assert_eq!(*shipper.archived().borrow(), None);
        assert!(!shipper.finish(Duration::from_secs(60)));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "it stands for an unmounted disk, not for a durable rename"
    )]
    fn a_repository_that_was_away_gets_what_it_missed() {
        let bench = bench(3);
        let journal = bench.journal();
        let away = bench.path("away");
        std::fs::rename(bench.path("one"), &away).unwrap();
        let shipper = bench.shipper(&journal, &["one", "two?"], Acknowledge::Journal);
        let end = 2 * SEGMENT + 1000;
        bench.feed(&journal, TimelineId::FIRST, 0, end);
        wait_until(|| shipper.shipped()[0].error.is_some());
        wait_until(|| position(&shipper, "two?") == Some(bench.at(end)));
        assert_eq!(journal.follower().segments().len(), 3);
        assert_eq!(*shipper.archived().borrow(), None);
        std::fs::rename(&away, bench.path("one")).unwrap();
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(end)));
        wait_until(|| journal.follower().segments().len() == 1);
        assert!(bench.stored("one", 0) && bench.stored("one", 1));
        let lines = bench.said.lines().join("\n");
        assert!(lines.contains("does not take WAL"), "{lines}");
        assert!(lines.contains("takes WAL again"), "{lines}");
        assert_eq!(shipper.shipped()[0].error, None);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "it stands for an unmounted disk, not for a durable rename"
    )]
    fn an_optional_repository_that_fails_holds_nothing_back_and_what_it_lacks_is_said() {
        let bench = bench(4);
        let journal = bench.journal();
        let away = bench.path("away");
        std::fs::rename(bench.path("two"), &away).unwrap();
        let shipper = bench.shipper(&journal, &["one", "two?"], Acknowledge::Journal);
        let end = 2 * SEGMENT + 1000;
        bench.feed(&journal, TimelineId::FIRST, 0, end);
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(end)));
        wait_until(|| journal.follower().segments().len() == 1);
        assert_eq!(position(&shipper, "two?"), None);
        std::fs::rename(&away, bench.path("two")).unwrap();
        wait_until(|| position(&shipper, "two?") == Some(bench.at(end)));
        bench.feed(&journal, TimelineId::FIRST, end, 3 * SEGMENT);
        wait_until(|| position(&shipper, "two?") == Some(bench.at(3 * SEGMENT)));
        assert!(bench.stored("two", 2) && !bench.stored("two", 0));
        wait_until(|| bench.said.lines().join("\n").contains("lacks 2 segments"));
        let lines = bench.said.lines().join("\n");
        assert!(lines.contains("is let go without it"), "{lines}");
        assert!(shipper.finish(Duration::from_secs(60)));
    }

    #[test]
    fn the_last_piece_of_an_ended_timeline_stays_as_one_increment_and_is_let_go() {
        let bench = bench(2);
        let journal = bench.journal();
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
        let switch = SEGMENT + 40_000;
        bench.feed(&journal, TimelineId::FIRST, 0, SEGMENT + 10_000);
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(SEGMENT + 10_000)));
        bench.feed(&journal, TimelineId::FIRST, SEGMENT + 10_000, switch);
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(switch)));
        let second = TimelineId::new(2).unwrap();
        let lsn = Lsn(bench.start().0 + switch);
        let history = History::root(TimelineId::FIRST).child(second, lsn, b"no recovery target");
        shipper
            .archive_history(second, &history.to_bytes())
            .unwrap();
        shipper
            .archive_history(second, &history.to_bytes())
            .unwrap();
        let refused = shipper
            .archive_history(second, b"1\t0/100\tother\n")
            .unwrap_err();
        assert_eq!(refused.code(), Code::TimelineReused);
        let name = WalFileName::History(second);
        let key = bench.layout().wal_file(name);
        assert!(
            bench
                .repository("one")
                .store()
                .open(&key)
                .unwrap()
                .is_some()
        );
        bench.feed(&journal, second, SEGMENT, SEGMENT + 60_000);
        let lsn = Lsn(bench.start().0 + SEGMENT + 60_000);
        let end = Some(Position {
            timeline: second,
            lsn,
        });
        wait_until(|| *shipper.archived().borrow() == end);
        assert!(bench.increments("one", 1).contains(&(SEGMENT, switch)));
        wait_until(|| journal.follower().segments().len() == 1);
        assert!(journal.follower().segments()[0].name.timeline == second);
    }

    #[test]
    fn a_damaged_journal_file_is_named_and_passed_over_when_the_repository_has_the_segment() {
        let bench = bench(2);
        let journal = bench.journal();
        bench.feed(&journal, TimelineId::FIRST, 0, SEGMENT + 1000);
        damage(&journal.follower().file(bench.name(0)));
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Journal);
        wait_until(|| shipper.shipped()[0].error.is_some());
        let error = shipper.shipped()[0].error.clone().unwrap();
        assert!(error.contains("is damaged at"), "{error}");
        archive(
            &bench,
            &bench.craft.bytes[..usize::try_from(SEGMENT).unwrap()],
        );
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(SEGMENT + 1000)));
        wait_until(|| journal.follower().segments().len() == 1);
        assert!(shipper.finish(Duration::from_secs(60)));
    }

    /// Flips a byte in the middle of the frames.
    fn damage(path: &Path) {
        let mut content = std::fs::read(path).unwrap();
        content[500_000] ^= 0xFF;
        std::fs::write(path, content).unwrap();
    }
}
