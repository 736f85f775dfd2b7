//! The proof of a backup's WAL, with a server and its double made by hand: both wrote the same records at the same
//! positions, but for bytes without meaning.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::proof::{Landmarks, Proof, Prover};
use super::source::{Archiver, Receivers, ServerFacts, Source, WalSource, WantedWal};
use super::wal::{Circumstances, Needed, Waiter};
use super::witness::Witness;
use crate::archive::push::{Content, Push, push_content};
use crate::err;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::craft::Craft;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::progress::Silent;
use crate::repo::claim::Claim;
use crate::repo::container::Codec;
use crate::repo::crafted;
use crate::repo::event::Writer;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::wal_proof::{RawHash, WalProof};
use crate::store::file::FileStore;
use crate::store::{Key, NewObject, Object, Store};
use crate::wal::increment;
use crate::wire::basebackup::{BackupEvent, BaseBackupOptions};
use crate::wire::client::Rows;

const SEGMENT: usize = 1 << 20;
const XLOG: u8 = 0;
const NOOP: u8 = 0x20;
const CHECKPOINT: u8 = 0x10;
const BACKUP_END: u8 = 0x50;

/// The places of the backup's records in a life; the same in every life.
#[derive(Clone, Copy)]
struct Places {
    start: Lsn,
    checkpoint: Lsn,
    /// A later checkpoint, and its redo point.
    later: (Lsn, Lsn),
    stop: Lsn,
}

/// A server's WAL from segment 1 on. Its backup lies in the segments 2 to 4.
#[derive(Clone)]
struct Server {
    wal: Vec<u8>,
    is_gone: bool,
    /// Requests for WAL from the begin of segment 4 on that it refuses yet.
    refusals: u32,
}

fn checkpoint(craft: &mut Craft, redo: Lsn) -> Lsn {
    let mut main = vec![0; 88];
    main[0..8].copy_from_slice(&redo.0.to_le_bytes());
    (main[8], main[12], main[20]) = (1, 1, 1);
    craft.main(XLOG, CHECKPOINT, 0, &main).0
}

fn life(byte: u8) -> (Server, Places) {
    let mut craft = Craft::new(Major::V17);
    craft.main(XLOG, NOOP, 0, &[byte; 40]);
    craft.switch();
    let (start, _) = craft.main(XLOG, NOOP, 0, &[0; 40]);
    let first = checkpoint(&mut craft, start);
    craft.main(XLOG, NOOP, 0, &[byte; 40]);
    craft.switch();
    let (redo, _) = craft.main(XLOG, NOOP, 0, &[byte; 40]);
    let later = (checkpoint(&mut craft, redo), redo);
    craft.switch();
    craft.main(XLOG, NOOP, 0, &[byte; 40]);
    let (_, stop) = craft.main(XLOG, BACKUP_END, 0, &start.0.to_le_bytes());
    craft.main(XLOG, NOOP, 0, &[byte; 40]);
    craft.switch();
    let server = Server {
        wal: craft.bytes,
        is_gone: false,
        refusals: 0,
    };
    let places = Places {
        start,
        checkpoint: first,
        later,
        stop,
    };
    (server, places)
}

impl WalSource for Server {
    fn stream_wal(
        &mut self,
        what: &WantedWal,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.is_gone {
            return Err(err!(Gap, "it was removed"));
        }
        if self.refusals > 0 && what.range.start == Lsn(4 * SEGMENT as u64) {
            self.refusals -= 1;
            return Err(err!(Server, "no walsender is left"));
        }
        let at = |lsn: Lsn| usize::try_from(lsn.0).unwrap() - SEGMENT;
        sink(&self.wal[at(what.range.start)..at(what.range.end)])
    }
}

impl Source for Server {
    fn facts(&mut self) -> Result<ServerFacts> {
        Err(err!(Internal, "nobody asks"))
    }

    fn clock(&mut self) -> Option<TimestampTz> {
        None
    }

    fn archiver(&mut self) -> Option<Archiver> {
        None
    }

    fn receivers(&mut self) -> Option<Receivers> {
        None
    }

    fn query(&mut self, _: &str) -> Result<Rows> {
        Err(err!(Internal, "nobody asks"))
    }

    fn begin(&mut self, _: &BaseBackupOptions) -> Result<()> {
        Err(err!(Internal, "nobody asks"))
    }

    fn next_event(&mut self, _: &mut dyn FnMut() -> Result<()>) -> Result<Option<BackupEvent>> {
        Ok(None)
    }

    fn beside(&mut self, _: Arc<AtomicBool>) -> Box<dyn WalSource + Send> {
        Box::new(self.clone())
    }

    fn history(&mut self, _: TimelineId) -> Result<Bytes> {
        Err(err!(Internal, "nobody asks"))
    }
}

/// A segment that is offered without its neighbours.
struct Alone(Vec<u8>, usize);

impl Content for Alone {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let rest = &self.0[self.1..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.1 += n;
        Ok(n)
    }

    fn rewind(&mut self) -> Result<()> {
        self.1 = 0;
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
        Ok(())
    }

    fn read_other(&self, _: SegmentName, _: &mut [u8], _: u64) -> Result<bool> {
        Ok(false)
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT as u64).unwrap()
}

fn name(number: u64) -> SegmentName {
    let number = SegmentNumber(number);
    number.name(TimelineId::FIRST, size()).unwrap()
}

fn needed() -> Needed {
    let (_, places) = life(0);
    Needed {
        timeline: TimelineId::FIRST,
        start_lsn: places.start,
        stop_lsn: places.stop,
        segment_size: size(),
    }
}

/// A store that keeps the keys of objects that were made durable again.
struct Watched {
    inner: FileStore,
    settled: Settled,
}

type Settled = Arc<Mutex<Vec<Key>>>;

struct WatchedObject {
    inner: Box<dyn Object>,
    key: Key,
    settled: Settled,
}

impl Store for Watched {
    crate::store::pass_on!();

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let watched = |inner| -> Box<dyn Object> {
            Box::new(WatchedObject {
                inner,
                key: key.clone(),
                settled: Arc::clone(&self.settled),
            })
        };
        Ok(self.inner.open(key)?.map(watched))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.inner.create(key)
    }
}

impl Object for WatchedObject {
    crate::store::forward! {
        fn size_bytes(&self) -> u64;
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
    }

    fn settle(&self) -> Result<()> {
        self.settled.lock().unwrap().push(self.key.clone());
        self.inner.settle()
    }
}

struct Bench {
    directory: tempfile::TempDir,
    settled: Settled,
    repository: Repository,
    layout: ClusterLayout,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        let (_, registration) = crafted::create(&path, &Craft::new(Major::V17));
        let settled = Settled::default();
        let store = Watched {
            inner: FileStore::open(&path, 9).unwrap(),
            settled: Arc::clone(&settled),
        };
        Bench {
            directory,
            settled,
            repository: Repository::open(Box::new(store)).unwrap(),
            layout: ClusterLayout::new("main", registration.system_identifier).unwrap(),
        }
    }

    /// With all the segments of a life that a backup needs.
    fn of(life: &Server) -> Bench {
        let bench = Bench::new();
        (2..=4).for_each(|n| bench.offer(life, n));
        bench
    }

    /// Offers a segment of a life; another copy under its name is kept as refused.
    fn offer(&self, life: &Server, number: u64) {
        let path = std::path::PathBuf::from(name(number).to_string());
        let what = Push {
            repository: &self.repository,
            cluster: "main",
            path: &path,
            name: WalFileName::Segment(name(number)),
            codec: Codec::Lz4,
            beside_others: true,
            known: None,
            is_backfill: false,
        };
        let at = (usize::try_from(number).unwrap() - 1) * SEGMENT;
        let bytes = life.wal[at..at + SEGMENT].to_vec();
        match push_content(&what, Alone(bytes, 0)) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.code(), Code::Conflict, "{e}"),
        }
    }

    fn prover(&self, server: &mut Server) -> Result<Prover<'_>> {
        let needed = needed();
        let bounds = needed.bounds();
        assert_eq!(bounds, (SegmentNumber(2), SegmentNumber(4)));
        let witness = Witness::new(None, needed.timeline, bounds, needed.stop_lsn, size());
        let places = (&self.repository, &self.layout);
        Prover::new(places, 17, needed, witness, server, &Silent)
    }

    /// Proves the backup of a server by what is stored.
    fn prove(&self, server: &mut Server, landmarks: &Landmarks) -> Result<WalProof> {
        let mut prover = self.prover(server)?;
        for number in 2..=4 {
            assert_eq!(prover.check(name(number), server)?, Proof::Proven);
        }
        assert_eq!(prover.check_conflicts(server)?, Proof::Proven);
        prover.finish(landmarks)
    }
}

impl Bench {
    /// The file of a stored segment.
    fn object(&self, number: u64) -> std::path::PathBuf {
        let key = self.layout.segment(name(number));
        self.directory.path().join("r").join(key.as_str())
    }

    /// Waits for the backup's WAL for so long at most.
    fn wait(&self, server: &mut Server, from_standby: bool, seconds: u64) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let host = Host::still(TimestampTz(0), COUNT.fetch_add(1 << 32, Ordering::Relaxed));
        let id = "20261120T064049Z-000001-full".parse().unwrap();
        let store = self.repository.store();
        let mut claim = Claim::take(
            (store, &self.layout),
            Writer::of(&host),
            &id,
            "backup",
            None,
        )?;
        let keep = &mut || claim.keep();
        self.wait_keeping((server, &host), from_standby, seconds, keep)
    }

    fn wait_keeping(
        &self,
        (server, host): (&mut Server, &Host),
        from_standby: bool,
        seconds: u64,
        keep: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let prover = self.prover(server)?;
        let mut waiter = Waiter {
            repository: &self.repository,
            major: 17,
            layout: &self.layout,
            host,
            source: server,
            circumstances: Circumstances {
                from_standby,
                archive_off: false,
            },
            prover,
        };
        waiter.wait(&needed(), Duration::from_secs(seconds), keep)
    }
}

fn landmarks(places: Places) -> Landmarks {
    Landmarks {
        checkpoint: places.checkpoint,
        control: places.later,
        from_standby: false,
    }
}

/// Requires a refusal because of another server's WAL.
fn refused(proof: Result<WalProof>, words: &str) {
    let error = proof.err().unwrap();
    assert_eq!(error.code(), Code::Conflict, "{error}");
    assert!(error.to_string().contains(words), "{words}: {error}");
}

#[test]
fn a1_the_own_wal_is_proven_with_its_hashes() {
    let (mut own, places) = life(1);
    let bench = Bench::of(&own);
    let proof = bench.prove(&mut own, &landmarks(places)).unwrap();
    let hash = |bytes: &[u8]| Some(RawHash(blake3::hash(bytes).into()));
    assert_eq!(proof.first.name, name(2));
    assert_eq!(proof.first.hash, hash(&own.wal[SEGMENT..2 * SEGMENT]));
    let length = usize::try_from(proof.last.length_bytes).unwrap();
    let last = &own.wal[3 * SEGMENT..4 * SEGMENT];
    assert_eq!(proof.last.hash, hash(&last[..length]));
    assert_eq!(proof.last.segment_hash, hash(last));
    assert_eq!(proof.checkpoint.unwrap().lsn, places.checkpoint);
}

#[test]
fn a1_the_first_and_the_last_segment_of_a_double_are_refused() {
    let (mut own, places) = life(1);
    let (double, _) = life(2);
    for foreign in [2, 4] {
        let bench = Bench::new();
        for number in 2..=4 {
            let writer = if number == foreign { &double } else { &own };
            bench.offer(writer, number);
        }
        let words = format!("segment \"{}\" in the repository", name(foreign));
        refused(bench.prove(&mut own, &landmarks(places)), &words);
    }
}

#[test]
fn a1_a_segment_between_of_which_another_copy_was_refused_is_compared() {
    let (mut own, places) = life(1);
    let (double, _) = life(2);
    let stored = |writers: [&Server; 2]| {
        let bench = Bench::new();
        [2, 4].into_iter().for_each(|n| bench.offer(&own, n));
        writers.iter().for_each(|w| bench.offer(w, 3));
        bench
    };
    let (good, bad) = (stored([&own, &double]), stored([&double, &own]));
    good.prove(&mut own, &landmarks(places)).unwrap();
    good.wait(&mut own, false, 60).unwrap();
    let words = format!("segment \"{}\" in the repository", name(3));
    refused(bad.prove(&mut own, &landmarks(places)), &words);
    let error = bad.wait(&mut own, false, 60).unwrap_err();
    assert_eq!(error.code(), Code::Conflict, "{error}");
}

#[test]
fn a1_the_records_that_a_restore_begins_and_ends_with_have_to_be_there() {
    let (mut own, places) = life(1);
    let bench = Bench::of(&own);
    let right = landmarks(places);
    let no_checkpoint = Landmarks {
        checkpoint: places.start,
        ..right
    };
    refused(bench.prove(&mut own, &no_checkpoint), "checkpoint record");
    // A checkpoint of another redo point is another checkpoint.
    let other_redo = Landmarks {
        checkpoint: places.later.0,
        ..right
    };
    refused(bench.prove(&mut own, &other_redo), "checkpoint record");
    let no_control = Landmarks {
        control: (places.later.1, places.later.1),
        ..right
    };
    refused(bench.prove(&mut own, &no_control), "checkpoint record");
    // A checkpoint behind the stop is not needed, and may not be archived.
    let behind = Landmarks {
        control: (Lsn(places.stop.0 + 8), places.start),
        ..right
    };
    bench.prove(&mut own, &behind).unwrap();
}

#[test]
fn a1_a_primary_has_written_the_end_of_the_backup_and_a_standby_has_not() {
    let (mut own, places) = life(1);
    // As the server would have it with another start: the record of the end names that one.
    let at = usize::try_from(places.stop.0).unwrap() - SEGMENT;
    let mut craft = Craft::new(Major::V17);
    craft.bytes = own.wal[..3 * SEGMENT].to_vec();
    craft.prev = Lsn(0);
    craft.main(XLOG, NOOP, 0, &[1; 40]);
    craft.main(XLOG, BACKUP_END, 0, &places.stop.0.to_le_bytes());
    craft.main(XLOG, NOOP, 0, &[1; 40]);
    craft.switch();
    assert!(craft.bytes.len() > at);
    own.wal = craft.bytes;
    let bench = Bench::of(&own);
    refused(
        bench.prove(&mut own, &landmarks(places)),
        "end of the backup",
    );
    let from_standby = Landmarks {
        from_standby: true,
        ..landmarks(places)
    };
    bench.prove(&mut own, &from_standby).unwrap();
}

#[test]
fn a1_wal_that_the_server_has_no_more_proves_nothing() {
    let (mut own, places) = life(1);
    let bench = Bench::of(&own);
    own.is_gone = true;
    let error = bench.prove(&mut own, &landmarks(places)).err().unwrap();
    assert_eq!(error.code(), Code::Refused, "{error}");
}

#[test]
fn a1_a_proof_disagrees_for_ever_with_the_wal_of_a_double() {
    let (mut own, places) = life(1);
    let (double, _) = life(2);
    let (bench, other) = (Bench::of(&own), Bench::of(&double));
    let proof = bench.prove(&mut own, &landmarks(places)).unwrap();
    let disagreement = || {
        let store = bench.repository.store();
        proof.disagreement(store, &bench.layout).unwrap()
    };
    assert_eq!(disagreement(), None);
    for number in [2, 4] {
        let sound = std::fs::read(bench.object(number)).unwrap();
        std::fs::copy(other.object(number), bench.object(number)).unwrap();
        assert_eq!(disagreement(), Some(name(number)));
        std::fs::write(bench.object(number), sound).unwrap();
    }
    assert_eq!(disagreement(), None);
}

/// A long backup has thousands of segments, and each is looked at.
#[test]
fn b52_the_claims_are_kept_while_archived_segments_are_looked_at() {
    let (mut own, _) = life(1);
    let bench = Bench::of(&own);
    let host = Host::still(TimestampTz(0), 7);
    let mut kept = 0;
    let mut keep = || {
        kept += 1;
        Ok(())
    };
    bench
        .wait_keeping((&mut own, &host), false, 60, &mut keep)
        .unwrap();
    assert!(kept >= 3, "{kept}");
}

/// The first to be refused is the question of the proof, the second that of the wait.
#[test]
fn b53_a_standby_that_does_not_stream_its_last_wal_at_once_is_asked_again() {
    let (mut own, _) = life(1);
    let bench = Bench::new();
    [2, 3].into_iter().for_each(|n| bench.offer(&own, n));
    own.refusals = 2;
    bench.wait(&mut own, true, 60).unwrap();
    let stored = increment::list(&bench.repository, &bench.layout, name(4));
    assert_eq!(stored.unwrap().len(), 1);
}

#[test]
fn a_standby_that_sends_other_wal_than_it_was_asked_for_has_none_stored() {
    let (mut own, _) = life(1);
    let bench = Bench::new();
    [2, 3].into_iter().for_each(|n| bench.offer(&own, n));
    let stored = || {
        let stored = increment::list(&bench.repository, &bench.layout, name(4));
        stored.unwrap().len()
    };
    // Instead of the last segment it sends the one before.
    let mut late = own.clone();
    late.wal.copy_within(2 * SEGMENT..3 * SEGMENT, 3 * SEGMENT);
    let error = bench.wait(&mut late, true, 1).unwrap_err();
    assert_eq!(error.code(), Code::Deadline, "{error}");
    assert_eq!(stored(), 0);
    bench.wait(&mut own, true, 60).unwrap();
    assert_eq!(stored(), 1);
    // Whoever put it may have died before it was durable: a root relies on it only now.
    let settled = bench.settled.lock().unwrap();
    let is_increment = |key: &Key| key.as_str().contains("/open/");
    assert!(settled.iter().any(is_increment), "{settled:?}");
}
