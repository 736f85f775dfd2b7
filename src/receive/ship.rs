//! Ships the durable WAL of the journal into the repositories: whole segments by the engine of archiving, the open one as increments.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::belonging::{Evidence, Place, Proof};
use super::histories::Histories;
use super::shipment::{Known, Shipment};
use crate::archive::push::push_history;
use crate::config::Acknowledge;
use crate::err;
use crate::error::Result;
use crate::journal::Journal;
use crate::journal::shipping::{self, Shipped, Work};
use crate::pg::timeline::{Position, TimelineId};
use crate::progress::Progress;
use crate::repo;
use crate::repo::layout::ClusterLayout;

/// The cluster whose WAL is shipped, and how.
pub struct Options {
    /// The cluster's name in the repositories.
    pub cluster: String,
    /// With `Repository`, increments go out at once.
    pub acknowledge: Acknowledge,
    /// The repositories.
    pub shipping: shipping::Options,
}

/// The threads that ship WAL, one for each repository.
pub struct Shipper {
    layout: ClusterLayout,
    evidence: Arc<Evidence>,
    histories: Arc<Histories>,
    inner: shipping::Shipper,
}

impl Shipper {
    /// Starts them. Each looks at what its repository holds, and assumes nothing.
    ///
    /// # Errors
    /// `Usage` when the cluster's name is none; `Io` when a thread cannot be started or the journal's directory cannot be read.
    pub fn start(
        journal: &Journal,
        options: Options,
        progress: Arc<dyn Progress>,
    ) -> Result<Shipper> {
        let system_identifier = journal.follower().system_identifier();
        let layout = ClusterLayout::new(&options.cluster, system_identifier)?;
        let (of, acknowledge) = (layout.clone(), options.acknowledge);
        let evidence = Arc::new(Evidence::default());
        let segments = journal.follower().segments();
        let count = options.shipping.repositories.len();
        let histories = Arc::new(Histories::begin(journal.path(), &segments, count)?);
        let known = Known {
            evidence: Arc::clone(&evidence),
            histories: Arc::clone(&histories),
        };
        let work: Work = Arc::new(move |ship, index| {
            let known = known.clone();
            Shipment::new(Arc::clone(ship), (index, acknowledge), of.clone(), known).run()
        });
        Ok(Shipper {
            layout,
            evidence,
            histories,
            inner: shipping::Shipper::start(journal, options.shipping, &work, progress)?,
        })
    }

    /// Behind the last byte that every required repository holds.
    pub fn archived(&self) -> watch::Receiver<Option<Position>> {
        self.inner.archived()
    }

    /// Returns what was compared with the server so far.
    pub fn proof(&self) -> Proof {
        self.evidence.best()
    }

    /// Returns what was proven of WAL at a place.
    pub fn proof_at(&self, place: Place) -> Proof {
        self.evidence.at(place)
    }

    /// A server begins to send from a place on.
    pub fn streams(&self, from: Place) {
        self.evidence.streams(from);
    }

    /// The journal was compared with the server, and agrees from a place on: what was waiting for that goes on.
    pub fn compared(&self, proof: Proof, from: Place) {
        self.evidence.found(proof, from);
        self.inner.ship().follower.wake();
    }

    /// Returns the WAL that each repository holds.
    pub fn shipped(&self) -> Vec<Shipped> {
        self.inner.shipped()
    }

    /// As [`shipping::Shipper::finish`].
    pub fn finish(self, deadline: Duration) -> bool {
        self.inner.finish(deadline)
    }

    /// Stores a timeline's history file, as the server gave it, in every required repository.
    ///
    /// # Errors
    /// Those of [`push_history`], of the first one that failed.
    pub fn archive_history(&self, timeline: TimelineId, content: &[u8]) -> Result<()> {
        let ship = self.inner.ship();
        let shipped = self.shipped();
        for (index, row) in shipped.iter().enumerate().filter(|(_, s)| s.is_required) {
            repo::open(ship.place(index), ship.next_nonce())
                .and_then(|r| push_history(&r, &self.layout, timeline, content))
                .map_err(|e| e.context(format!("repository \"{}\"", row.repository)))?;
        }
        Ok(())
    }

    /// Keeps a timeline's history for the repositories that are not known to have it: those that are not required, or all. Each of them gets it
    /// before WAL of that timeline. Call it before such WAL is fed.
    ///
    /// # Errors
    /// `TimelineReused` when the journal has WAL of another history of that number; `Full` or `Io` when a required repository lacks it, and the
    /// journal's disk does not take it.
    pub fn keep_history(
        &self,
        (timeline, content): (TimelineId, &[u8]),
        is_archived: bool,
    ) -> Result<()> {
        let ship = self.inner.ship();
        self.check_kept(timeline, content)?;
        let mut lacking = BTreeSet::new();
        for (index, row) in self.shipped().iter().enumerate() {
            match is_archived && row.is_required {
                true => self.histories.stored(index, timeline),
                false => _ = lacking.insert(index),
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let kept = self
            .histories
            .keep((timeline, content), lacking, ship.next_nonce());
        match kept {
            // A repository that is not required holds up nothing.
            Err(e) if is_archived => ship.progress.warn(&e.to_string()),
            kept => kept?,
        }
        Ok(())
    }

    /// Requires that the journal has no WAL of another history of a timeline. Call it before that history goes anywhere.
    ///
    /// # Errors
    /// `TimelineReused`.
    pub fn check_kept(&self, timeline: TimelineId, content: &[u8]) -> Result<()> {
        let segments = self.inner.ship().follower.segments();
        let has_wal = segments.iter().any(|s| s.name.timeline == timeline);
        match self.histories.of(timeline) {
            Some(kept) if has_wal && *kept != *content => Err(err!(
                TimelineReused,
                "the journal has WAL of another timeline {} than the server's",
                timeline.decimal()
            )
            .hint("Nothing was received. Two servers were promoted to the same timeline number: stop the one that is not the cluster.")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;

    use std::time::Instant;

    use super::*;
    use crate::config::{self, Location};
    use crate::error::Code;
    use crate::journal;
    use crate::pg::craft::{self, Craft};
    use crate::pg::lsn::{Lsn, LsnRange};
    use crate::pg::rmgr;
    use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
    use crate::pg::time::TimestampTz;
    use crate::pg::timeline::History;
    use crate::pg::version::Major;
    use crate::progress::Collector;
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
            let lsn = Lsn(self.start().0 + number * SEGMENT);
            SegmentName::of(TimelineId::FIRST, lsn, self.craft.identity.segment_size)
        }

        fn journal(&self) -> Journal {
            let options = journal::Options {
                directory: self.path("journal"),
                system_identifier: self.craft.identity.system_identifier,
                segment_size: self.craft.identity.segment_size,
                limit_bytes: None,
                is_mended: true,
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
                acknowledge,
                shipping: shipping::Options {
                    repositories: repositories.collect(),
                    nonce: 99,
                    clock: Arc::new(|| TimestampTz(5)),
                },
            };
            Shipper::start(journal, options, self.progress()).unwrap()
        }

        /// Feeds the WAL between two offsets, and waits until it is durable.
        fn feed(&self, journal: &Journal, from: u64, to: u64) {
            self.feed_of(TimelineId::FIRST, journal, from, to);
        }

        fn feed_of(&self, timeline: TimelineId, journal: &Journal, from: u64, to: u64) {
            let feeder = journal.feeder();
            crate::wire::runtime::start().unwrap().block_on(async {
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
            let relative = |r: LsnRange| (r.start.0 - start, r.end.0 - start);
            listed.unwrap().into_iter().map(relative).collect()
        }
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
        bench.feed(&journal, 0, end);
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
        bench.feed(&journal, end, end + 100);
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
            bench.feed(&journal, (piece - 1) * 1000, piece * 1000);
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
            bench.feed(&journal, 0, SEGMENT + 100_000);
            bench.feed(&journal, SEGMENT + 100_000, end);
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
            bench.feed(&journal, end, end + 5);
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
            bench.feed(&journal, 0, 4000);
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(4000)));
            archive(&bench, &content);
            bench.feed(&journal, 4000, 4500);
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(4500)));
            bench.feed(&journal, 4500, 6000);
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
        let (layout, start) = (bench.layout(), bench.start());
        increment::put(&repository, &layout, &segment, start, &foreign).unwrap();
        let journal = bench.journal();
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
        bench.feed(&journal, 0, 6000);
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
        bench.feed(&journal, 0, end);
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
        bench.feed(&journal, 0, end);
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(end)));
        wait_until(|| journal.follower().segments().len() == 1);
        assert_eq!(position(&shipper, "two?"), None);
        std::fs::rename(&away, bench.path("two")).unwrap();
        wait_until(|| position(&shipper, "two?") == Some(bench.at(end)));
        bench.feed(&journal, end, 3 * SEGMENT);
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
        bench.feed(&journal, 0, SEGMENT + 10_000);
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(SEGMENT + 10_000)));
        bench.feed(&journal, SEGMENT + 10_000, switch);
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(switch)));
        let second = second();
        let history = history(&bench, switch, b"no recovery target");
        let archive = |bytes: &[u8]| shipper.archive_history(second, bytes);
        archive(&history).unwrap();
        archive(&history).unwrap();
        let refused = archive(b"1\t0/100\tother\n").unwrap_err();
        assert_eq!(refused.code(), Code::TimelineReused);
        let key = bench.layout().wal_file(WalFileName::History(second));
        let stored = bench.repository("one").store().open(&key).unwrap();
        assert!(stored.is_some());
        bench.feed_of(second, &journal, SEGMENT, SEGMENT + 60_000);
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

    fn second() -> TimelineId {
        TimelineId::new(2).unwrap()
    }

    /// The history of timeline 2, which begins behind so many bytes, for this reason.
    fn history(bench: &Bench, switch: u64, reason: &[u8]) -> Vec<u8> {
        let lsn = Lsn(bench.start().0 + switch);
        let history = History::root(TimelineId::FIRST).child(second(), lsn, reason);
        history.to_bytes()
    }

    fn has_history(bench: &Bench, name: &str) -> bool {
        let key = bench.layout().wal_file(WalFileName::History(second()));
        bench.repository(name).store().open(&key).unwrap().is_some()
    }

    /// Row W68.
    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "it stands for an unmounted disk, not for a durable rename"
    )]
    fn w68_wal_of_a_timeline_waits_for_its_history_also_behind_a_restart() {
        let bench = bench(2);
        let switch = 40_000;
        let content = history(&bench, switch, b"no recovery target");
        let at = Position {
            timeline: second(),
            lsn: Lsn(bench.start().0 + 60_000),
        };
        let away = bench.path("away");
        {
            let journal = bench.journal();
            let shipper = bench.shipper(&journal, &["one", "two?"], Acknowledge::Repository);
            bench.feed(&journal, 0, switch);
            wait_until(|| *shipper.archived().borrow() == Some(bench.at(switch)));
            std::fs::rename(bench.path("one"), &away).unwrap();
            let refused = shipper.archive_history(second(), &content).unwrap_err();
            assert_eq!(refused.code(), Code::NoRepository);
            shipper.keep_history((second(), &content), false).unwrap();
            bench.feed_of(second(), &journal, 0, 60_000);
            // The other one waits for nobody.
            wait_until(|| position(&shipper, "two?") == Some(at));
            assert!(has_history(&bench, "two"));
            wait_until(|| shipper.shipped()[0].error.is_some());
            assert!(!shipper.finish(Duration::from_secs(60)));
            journal.close().unwrap();
        }
        std::fs::rename(&away, bench.path("one")).unwrap();
        assert!(!has_history(&bench, "one"));
        let journal = bench.journal();
        let kept = journal.path().join("history-00000002");
        assert!(kept.exists());
        // No server tells of it again.
        let shipper = bench.shipper(&journal, &["one", "two?"], Acknowledge::Repository);
        wait_until(|| *shipper.archived().borrow() == Some(at));
        assert!(has_history(&bench, "one"));
        wait_until(|| !kept.exists());
        assert!(shipper.finish(Duration::from_secs(60)));
    }

    #[test]
    fn no_wal_of_a_timeline_is_stored_where_its_history_is_refused() {
        let bench = bench(1);
        let other = history(&bench, 50_000, b"another server");
        let own = history(&bench, 40_000, b"no recovery target");
        let repository = bench.repository("one");
        push_history(&repository, &bench.layout(), second(), &other).unwrap();
        let journal = bench.journal();
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
        bench.feed(&journal, 0, 40_000);
        shipper.keep_history((second(), &own), false).unwrap();
        bench.feed_of(second(), &journal, 0, 60_000);
        wait_until(|| shipper.shipped()[0].error.is_some());
        let error = shipper.shipped()[0].error.clone().unwrap();
        assert!(
            error.contains("already belongs to another history"),
            "{error}"
        );
        let name = SegmentName::of(second(), bench.start(), bench.craft.identity.segment_size);
        let stored = increment::list(&repository, &bench.layout(), name).unwrap();
        assert_eq!(stored, []);
        // The journal has WAL of the one that is kept.
        let refused = shipper.check_kept(second(), &other);
        assert_eq!(refused.unwrap_err().code(), Code::TimelineReused);
        let refused = shipper.keep_history((second(), &other), false);
        assert_eq!(refused.unwrap_err().code(), Code::TimelineReused);
        assert!(!shipper.finish(Duration::from_secs(60)));
    }

    #[test]
    fn a_history_that_the_journal_cannot_keep_counts_where_a_required_repository_lacks_it() {
        let bench = bench(1);
        let journal = bench.journal();
        let shipper = bench.shipper(&journal, &["one", "two?"], Acknowledge::Journal);
        // A directory in the place of its file.
        std::fs::create_dir(journal.path().join("history-00000002")).unwrap();
        let content = history(&bench, 40_000, b"no recovery target");
        let lacked = shipper.keep_history((second(), &content), false);
        assert_eq!(lacked.unwrap_err().code(), Code::Io);
        assert_eq!(bench.said.lines(), Vec::<String>::new());
        shipper.archive_history(second(), &content).unwrap();
        shipper.keep_history((second(), &content), true).unwrap();
        let lines = bench.said.lines().join("\n");
        assert!(lines.contains("keep the history of timeline 2"), "{lines}");
        bench.feed_of(second(), &journal, 0, 60_000);
        wait_until(|| has_history(&bench, "one") && has_history(&bench, "two"));
        assert!(shipper.finish(Duration::from_secs(60)));
    }

    #[test]
    fn a_damaged_journal_file_is_passed_over_when_the_repository_has_the_segment() {
        let bench = bench(2);
        let journal = bench.journal();
        bench.feed(&journal, 0, SEGMENT + 1000);
        crafted::rot(&journal.follower().file(bench.name(0)), 500_000);
        let whole = usize::try_from(SEGMENT).unwrap();
        archive(&bench, &bench.craft.bytes[..whole]);
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Journal);
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(SEGMENT + 1000)));
        wait_until(|| journal.follower().segments().len() == 1);
        assert!(shipper.finish(Duration::from_secs(60)));
        let lines = bench.said.lines().join("\n");
        assert!(lines.contains("is damaged at"), "{lines}");
    }

    /// Row W61: nothing behind the damage waits, nothing behind it counts as archived, and the file stays until the damage is settled.
    #[test]
    fn w61_what_lies_behind_damage_is_shipped_and_not_reported_as_archived() {
        let bench = bench(3);
        let journal = bench.journal();
        let end = 2 * SEGMENT + 1000;
        bench.feed(&journal, 0, end);
        crafted::rot(&journal.follower().file(bench.name(0)), 500_000);
        let shipper = bench.shipper(&journal, &["one"], Acknowledge::Repository);
        wait_until(|| bench.stored("one", 1));
        wait_until(|| !bench.increments("one", 2).is_empty());
        let damaged = journal.damaged();
        assert_eq!(damaged.len(), 1);
        assert_eq!(*shipper.archived().borrow(), position_of(damaged[0].to));
        assert!(journal.follower().file(bench.name(0)).exists());
        assert_eq!(shipper.shipped()[0].error, None);
        let whole = usize::try_from(SEGMENT).unwrap();
        let mut mending = journal.mend(damaged[0].name).unwrap();
        mending.write(&bench.craft.bytes[..whole]).unwrap();
        mending.finish().unwrap();
        wait_until(|| *shipper.archived().borrow() == Some(bench.at(end)));
        assert!(bench.stored("one", 0));
        wait_until(|| journal.follower().segments().len() == 1);
        assert!(shipper.finish(Duration::from_secs(60)));
    }

    fn position_of(lsn: Lsn) -> Option<Position> {
        let timeline = TimelineId::FIRST;
        Some(Position { timeline, lsn })
    }
}
