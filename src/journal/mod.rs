//! The journal: what a receiver got, WAL or the log of another server, on the local disk, and how far it is durable (`docs/journal-format.md`).
//!
//! One thread writes: all that has arrived becomes one write and one `fdatasync`, then the position is published; what arrives
//! meanwhile is the next round.

pub mod files;
pub mod frame;
pub mod growth;
pub mod let_go;
pub mod shipping;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use self::files::{Files, Recovered, StandIn};
use self::frame::{Frames, PAYLOAD_MAX};
use self::writer::{Message, Piece, Writer};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{Position, TimelineId};
use crate::progress::Progress;

/// Received WAL that waits for the disk, at most.
pub const QUEUE_BYTES: usize = 8 << 20;

/// The place of a journal, and the cluster that it belongs to.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configured directory; the journal is below it, under the system identifier.
    pub directory: PathBuf,
    /// The cluster's.
    pub system_identifier: u64,
    /// The cluster's.
    pub segment_size: SegmentSize,
    /// How much room its files may take.
    pub limit_bytes: Option<u64>,
    /// Whether the source is asked again for what a damaged file held. Otherwise a file may end early: each process begins one of its own.
    pub is_mended: bool,
    /// Random, for names and for what tells one use of a file from the next.
    pub nonce: u64,
    /// When it is opened, for the lock.
    pub now: TimestampTz,
}

/// WAL that the journal holds without a hole, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The timeline it was streamed on.
    pub timeline: TimelineId,
    /// Its first byte: the start of a segment.
    pub from: Lsn,
    /// Behind its last byte.
    pub to: Lsn,
}

/// How the journal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// WAL is written as it comes.
    Writing,
    /// There is no room: nothing is written or acknowledged until there is.
    Full,
    /// Writing has failed for good, and the process must end; [`Journal::failure`] says why.
    Failed,
}

/// The state that is published after every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// Behind the last byte that is durable; none before the first.
    pub position: Option<Position>,
    /// Whether writing goes on.
    pub condition: Condition,
}

/// The state that the threads of a journal share.
struct Shared {
    files: Files,
    segment_size: SegmentSize,
    is_mended: bool,
    state: Mutex<State>,
    /// After every round.
    rounds: Condvar,
    /// When a segment is complete or let go, and when somebody is to look up.
    marks: Condvar,
    watch: watch::Sender<Durable>,
    is_closing: AtomicBool,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    /// How far each segment's file is durable.
    segments: BTreeMap<SegmentName, Lsn>,
    /// Segments of which more was durable than their files hold, and which nobody has settled yet.
    damaged: BTreeSet<SegmentName>,
    /// Position of the next byte.
    expected: Option<Position>,
    failure: Option<Error>,
    version: Version,
}

/// Counts changes, so that none is missed between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    rounds: u64,
    marks: u64,
}

/// The state to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Anything that becomes durable.
    AnyRound,
    /// A segment that is complete.
    SegmentEnd,
}

impl Shared {
    fn new(files: Files, options: &Options, recovered: &Recovered) -> Shared {
        let found = &recovered.found;
        let segments: BTreeMap<SegmentName, Lsn> =
            found.iter().map(|f| (f.header.name(), f.to)).collect();
        let damaged = recovered.damaged.iter().copied();
        let last = found.last().map(|f| Position {
            timeline: f.header.timeline,
            lsn: f.to,
        });
        let (watch, _) = watch::channel(Durable {
            position: last,
            condition: Condition::Writing,
        });
        Shared {
            files,
            segment_size: options.segment_size,
            is_mended: options.is_mended,
            state: Mutex::new(State {
                segments,
                damaged: damaged.filter(|_| options.is_mended).collect(),
                expected: last,
                failure: None,
                version: Version::default(),
            }),
            rounds: Condvar::new(),
            marks: Condvar::new(),
            watch,
            is_closing: AtomicBool::new(false),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment: what a thread that panicked left is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn segment(&self, state: &State, name: SegmentName) -> Option<Segment> {
        let range = name.number(self.segment_size).ok()?;
        let range = range.range(self.segment_size);
        Some(Segment {
            name,
            from: range.start,
            to: state.segments.get(&name).copied().unwrap_or(range.start),
            end: range.end,
            is_last: state.segments.keys().next_back() == Some(&name),
            is_damaged: state.damaged.contains(&name),
        })
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = self.state();
        how(&mut state);
        state.version.rounds += 1;
        state.version.marks += 1;
        drop(state);
        self.rounds.notify_all();
        self.marks.notify_all();
    }

    /// A round is on the disk.
    fn publish(&self, segment: SegmentName, to: Lsn) {
        let mut state = self.state();
        state.segments.insert(segment, to);
        state.version.rounds += 1;
        let is_end = to.0.is_multiple_of(self.segment_size.bytes());
        state.version.marks += u64::from(is_end);
        drop(state);
        self.rounds.notify_all();
        if is_end {
            self.marks.notify_all();
        }
        self.watch.send_replace(Durable {
            position: Some(Position {
                timeline: segment.timeline,
                lsn: to,
            }),
            condition: Condition::Writing,
        });
    }

    fn set_condition(&self, condition: Condition) {
        self.watch.send_if_modified(|durable| {
            let is_new = durable.condition != condition;
            durable.condition = condition;
            is_new
        });
    }

    /// Writing has ended, for good.
    fn fail(&self, error: Error) {
        self.change(|state| state.failure = Some(error));
        self.room.close();
        self.set_condition(Condition::Failed);
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Waits for a file to be let go, for the end, or for `time`.
    fn wait(&self, time: Duration) {
        let state = self.state();
        if !self.is_closing() {
            let _ = self.marks.wait_timeout(state, time);
        }
    }
}

/// An open journal. There is one for a directory: it is locked for as long as this, its feeders or its followers live.
pub struct Journal {
    shared: Arc<Shared>,
    sender: mpsc::Sender<Message>,
    writer: JoinHandle<()>,
}

impl Journal {
    /// Locks and recovers the journal, creating it where there is none, and starts the thread that writes.
    ///
    /// A torn end is cut, and what is kept is synced before it counts. Notes, and warnings about room, go to `progress`.
    ///
    /// # Errors
    /// `Locked` when another process has it; `Config` when the limit is too small; `Refused` when its segments have another size; what
    /// the filesystem says.
    pub fn open(options: &Options, progress: Arc<dyn Progress>) -> Result<Journal> {
        let files = Files::open(options)?;
        let recovered = files.recover(progress.as_ref())?;
        let open = match recovered.found.last().filter(|f| !f.is_complete()) {
            Some(last) => Some(files.resume(last).map_err(|e| {
                Error::from_io(
                    format!("open the file of segment \"{}\"", last.header.name()),
                    e,
                )
            })?),
            None => None,
        };
        let shared = Arc::new(Shared::new(files, options, &recovered));
        let (sender, inbox) = mpsc::channel();
        let writer = Writer::new(Arc::clone(&shared), inbox, open, progress)?;
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| Error::from_io("start the thread that writes the journal", e))?;
        Ok(Journal {
            shared,
            sender,
            writer,
        })
    }

    /// Returns the durable WAL: every contiguous run, ascending by timeline and position. Between two runs of a timeline WAL is
    /// missing here (a repository may have it).
    pub fn held(&self) -> Vec<Held> {
        let mut runs: Vec<Held> = Vec::new();
        for segment in Follower::of(&self.shared).segments() {
            match runs.last_mut() {
                Some(run) if run.timeline == segment.name.timeline && run.to == segment.from => {
                    run.to = segment.to;
                }
                _ => runs.push(Held {
                    timeline: segment.name.timeline,
                    from: segment.from,
                    to: segment.to,
                }),
            }
        }
        runs
    }

    /// Returns the segments of which the journal has lost durable WAL: the caller mends each, or gives it up.
    pub fn damaged(&self) -> Vec<Segment> {
        let state = self.shared.state();
        let damaged = state.damaged.iter();
        damaged
            .filter_map(|name| self.shared.segment(&state, *name))
            .collect()
    }

    /// Begins to write a segment anew, from its start.
    ///
    /// # Errors
    /// `Full` when there is no room; what the filesystem says.
    pub fn mend(&self, name: SegmentName) -> Result<Mending> {
        Ok(Mending {
            made: Some(self.shared.files.stand_in(name)?),
            shared: Arc::clone(&self.shared),
            name,
            waiting: Vec::new(),
        })
    }

    /// Leaves a damaged segment as it is: what it lacks is in a repository, or recorded as lost.
    pub fn give_up(&self, name: SegmentName) {
        self.shared.change(|state| {
            state.damaged.remove(&name);
        });
    }

    /// How far it is durable, after every round. It starts with the end of the last run of [`Journal::held`].
    pub fn watch(&self) -> watch::Receiver<Durable> {
        self.shared.watch.subscribe()
    }

    /// The way in.
    pub fn feeder(&self) -> Feeder {
        Feeder {
            shared: Arc::clone(&self.shared),
            sender: self.sender.clone(),
        }
    }

    /// The way out.
    pub fn follower(&self) -> Follower {
        Follower::of(&self.shared)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.shared.files.path()
    }

    /// How much room its files take.
    pub fn bytes(&self) -> u64 {
        self.shared.files.bytes()
    }

    /// Why writing has failed: once, when the condition is [`Condition::Failed`].
    pub fn failure(&self) -> Option<Error> {
        self.shared.state().failure.take()
    }

    /// Waits until all that was fed is durable, and ends the writing thread. Room that is missing is not waited for.
    ///
    /// # Errors
    /// Why writing has failed; `Full` when there is no room for the rest.
    pub fn close(self) -> Result<()> {
        self.shared.is_closing.store(true, Ordering::Release);
        self.shared.change(|_| {});
        // It may have ended by itself.
        let _ = self.sender.send(Message::Close);
        let ended = self.writer.join();
        match self.shared.state().failure.take() {
            Some(e) => Err(e),
            None => {
                ended.map_err(|_| err!(Internal, "the thread that writes the journal panicked"))
            }
        }
    }
}

/// A segment that is written anew, in frames as long as they can be. The damaged file stays until all of it is there.
pub struct Mending {
    shared: Arc<Shared>,
    name: SegmentName,
    /// Taken when it is put in place.
    made: Option<StandIn>,
    /// Bytes of the next frame.
    waiting: Vec<u8>,
}

impl Mending {
    /// Writes the next bytes of the segment.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn write(&mut self, mut wal: &[u8]) -> Result<()> {
        while !wal.is_empty() {
            let (now, later) = wal.split_at(wal.len().min(PAYLOAD_MAX - self.waiting.len()));
            self.waiting.extend_from_slice(now);
            wal = later;
            if self.waiting.len() == PAYLOAD_MAX {
                self.write_frame()?;
            }
        }
        Ok(())
    }

    fn write_frame(&mut self) -> Result<()> {
        if let Some(made) = self.made.as_mut().filter(|_| !self.waiting.is_empty()) {
            made.write(&self.waiting)?;
        }
        self.waiting.clear();
        Ok(())
    }

    /// Puts what was written in the place of the damaged file, durably.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn finish(mut self) -> Result<()> {
        self.write_frame()?;
        if let Some(made) = self.made.take() {
            let to = made.lsn();
            self.shared.files.put_in_place(made)?;
            self.shared.change(|state| {
                state.segments.insert(self.name, to);
                state.damaged.remove(&self.name);
            });
        }
        Ok(())
    }
}

impl Drop for Mending {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            self.shared.files.give_back(made);
        }
    }
}

/// Room in the queue; given back when it is dropped or its bytes are written.
pub struct Room(OwnedSemaphorePermit);

/// Feeds the journal, from the session.
#[derive(Clone)]
pub struct Feeder {
    shared: Arc<Shared>,
    sender: mpsc::Sender<Message>,
}

/// The least cost of one message in the queue.
const PIECE_BYTES: usize = 256;

impl Feeder {
    /// Waits for room for `length` bytes. Cancelling the wait loses nothing: answer keepalives meanwhile.
    ///
    /// # Errors
    /// `Internal` when the writing thread has ended; [`Journal::failure`] has the cause.
    pub async fn room(&self, length: usize) -> Result<Room> {
        let length = length.clamp(PIECE_BYTES, QUEUE_BYTES);
        let permits = u32::try_from(length).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.shared.room).acquire_many_owned(permits);
        room.await.map(Room).map_err(|_| ended())
    }

    /// Hands over WAL that begins at `lsn` of `timeline`; does not wait.
    ///
    /// It goes on where the last fed bytes ended (at the start: where the last run of [`Journal::held`] ends), or begins a segment
    /// behind that: on another timeline, or behind WAL that a repository has already. Anything else is refused, for it would make a hole
    /// or an overlap.
    ///
    /// # Errors
    /// `Internal` when the position is refused or the writing thread has ended; [`Journal::failure`] has the cause.
    pub fn feed(&self, room: Room, timeline: TimelineId, lsn: Lsn, wal: Bytes) -> Result<()> {
        let offered = Position { timeline, lsn };
        let mut state = self.shared.state();
        let is_next = state.expected == Some(offered);
        let begins = lsn.0.is_multiple_of(self.shared.segment_size.bytes())
            && state.expected.is_none_or(|e| e < offered);
        let end = lsn.0.checked_add(wal.len() as u64);
        let (true, Some(end)) = (is_next || begins, end) else {
            let expected = state
                .expected
                .map_or("the start of a segment".to_owned(), |e| {
                    format!("{} of timeline {}", e.lsn, e.timeline.decimal())
                });
            return Err(err!(
                Internal,
                "WAL from {lsn} of timeline {} on was offered to the journal, expected {expected}",
                timeline.decimal()
            ));
        };
        let piece = Piece {
            timeline,
            lsn,
            wal,
            _room: Some(room.0),
        };
        self.sender.send(Message::Wal(piece)).map_err(|_| ended())?;
        state.expected = Some(Position {
            timeline,
            lsn: Lsn(end),
        });
        Ok(())
    }

    /// Returns the position of the next byte: the end of all that was fed, durable or not. Streaming goes on here after a lost connection.
    pub fn expected(&self) -> Option<Position> {
        self.shared.state().expected
    }
}

fn ended() -> Error {
    err!(Internal, "the thread that writes the journal has ended")
}

/// The part of one segment that the journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub name: SegmentName,
    /// Its first position.
    pub from: Lsn,
    /// Behind the last byte that is durable.
    pub to: Lsn,
    /// Behind the segment.
    pub end: Lsn,
    /// Whether more of it may come: it is the last one.
    pub is_last: bool,
    /// Whether more of it was durable, which is asked for again.
    pub is_damaged: bool,
}

impl Segment {
    /// Whether all of it is there.
    pub fn is_complete(&self) -> bool {
        self.to == self.end
    }
}

/// Follows what is durable, and lets go what is not needed any more.
#[derive(Clone)]
pub struct Follower {
    shared: Arc<Shared>,
}

impl Follower {
    fn of(shared: &Arc<Shared>) -> Follower {
        Follower {
            shared: Arc::clone(shared),
        }
    }

    /// The durable runs, ascending by timeline and position.
    pub fn segments(&self) -> Vec<Segment> {
        let state = self.shared.state();
        let names = state.segments.keys();
        names
            .filter_map(|name| self.shared.segment(&state, *name))
            .collect()
    }

    /// The names of the segments of which the journal has lost durable WAL.
    pub fn damaged(&self) -> BTreeSet<SegmentName> {
        self.shared.state().damaged.clone()
    }

    /// Reads the file of a segment that could not be read again. The segment counts as damaged where it ends early, and another file follows.
    /// Returns whether it does.
    ///
    /// # Errors
    /// `Usage` when the name is none of this segment size.
    pub fn find_damage(&self, name: SegmentName) -> Result<bool> {
        let to = self.shared.files.readable_end(name)?;
        let mut state = self.shared.state();
        let is_last = state.segments.keys().next_back() == Some(&name);
        let is_shorter = state.segments.get(&name).is_some_and(|known| to < *known);
        if self.shared.is_mended && is_shorter && !is_last {
            state.segments.insert(name, to);
            state.damaged.insert(name);
        }
        Ok(state.damaged.contains(&name))
    }

    /// Bytes that the files of segments take beyond so many percent of the journal's room.
    pub fn bytes_beyond(&self, percent: u64) -> u64 {
        let files = &self.shared.files;
        let share = files.ceiling_bytes() / 100 * percent;
        files.segment_bytes().saturating_sub(share)
    }

    /// Bytes that the file of a segment takes.
    pub fn bytes_of(&self, name: SegmentName) -> u64 {
        self.shared.files.bytes_of(name)
    }

    /// Whether the segment before is damaged. After a restart, a file behind it alone tells that it was here.
    pub fn is_witness(&self, name: SegmentName) -> bool {
        let state = self.shared.state();
        let mut damaged = state.damaged.iter();
        damaged.any(|damaged| damaged.next(self.shared.segment_size) == Some(name))
    }

    /// The present version, for [`Follower::wait`]: ask before looking at what is there.
    pub fn version(&self) -> Version {
        self.shared.state().version
    }

    /// Waits, at most for `time`, until there was something to wake up for since the version `since`.
    pub fn wait(&self, since: Version, wake: Wake, time: Duration) {
        let state = self.shared.state();
        // A thread that waits for the end of a segment is not woken a thousand times a second.
        let _ = match wake {
            Wake::AnyRound => self
                .shared
                .rounds
                .wait_timeout_while(state, time, |s| s.version.rounds == since.rounds),
            Wake::SegmentEnd => self
                .shared
                .marks
                .wait_timeout_while(state, time, |s| s.version.marks == since.marks),
        };
    }

    /// Wakes who waits.
    pub fn wake(&self) {
        self.shared.change(|_| {});
    }

    /// The cluster's.
    pub fn system_identifier(&self) -> u64 {
        self.shared.files.system_identifier()
    }

    /// The size of segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.shared.segment_size
    }

    /// The frames of a segment's file. Only what lies before its durable end may be used.
    ///
    /// # Errors
    /// `Damaged` when the file is not what its name says; what the filesystem says.
    pub fn open(&self, name: SegmentName) -> Result<Frames<std::fs::File>> {
        self.shared.files.read(name)
    }

    /// Returns the path of a segment's file.
    pub fn file(&self, name: SegmentName) -> PathBuf {
        self.shared.files.path_of(name)
    }

    /// Lets the file of a segment go.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn release(&self, name: SegmentName) -> Result<()> {
        let released = self.shared.files.release(name);
        self.shared.change(|state| {
            state.segments.remove(&name);
        });
        released.map_err(|e| Error::from_io(format!("let the file of segment \"{name}\" go"), e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "patterns of bytes")]

    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::frame::FRAME_HEADER;
    use super::*;
    use crate::error::Code;
    use crate::progress::{Collector, Silent};
    use std::time::Instant;

    const SIZE: u64 = 1 << 20;
    const START: Lsn = Lsn(0x300_0000);

    fn options(directory: &Path) -> Options {
        Options {
            directory: directory.to_owned(),
            system_identifier: 7,
            segment_size: SegmentSize::new(SIZE).unwrap(),
            limit_bytes: None,
            is_mended: true,
            nonce: 0x1234,
            now: TimestampTz(0),
        }
    }

    fn open(directory: &Path) -> Journal {
        open_telling(directory, Arc::new(Silent))
    }

    /// A process that another test starts holds all open files, and so the lock, until it executes its program.
    fn open_telling(directory: &Path, progress: Arc<dyn Progress>) -> Journal {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match Journal::open(&options(directory), Arc::clone(&progress)) {
                Err(e) if e.code() == Code::Locked && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn wal(from: Lsn, length: usize) -> Vec<u8> {
        let byte = |i: u64| (i ^ (i >> 8) ^ (i >> 13)) as u8;
        (from.0..from.0 + length as u64).map(byte).collect()
    }

    fn runtime() -> tokio::runtime::Runtime {
        crate::wire::runtime::start().unwrap()
    }

    async fn feed(feeder: &Feeder, timeline: TimelineId, lsn: Lsn, length: usize) {
        let room = feeder.room(length).await.unwrap();
        let wal = Bytes::from(wal(lsn, length));
        feeder.feed(room, timeline, lsn, wal).unwrap();
    }

    /// Feeds up to a position, so many bytes at a time.
    async fn feed_to(feeder: &Feeder, timeline: TimelineId, mut at: Lsn, end: u64, step: u64) {
        while at.0 < end {
            let length = usize::try_from((end - at.0).min(step)).unwrap();
            feed(feeder, timeline, at, length).await;
            at.0 += length as u64;
        }
    }

    async fn durable(journal: &Journal, timeline: TimelineId, lsn: u64) {
        let position = Position {
            timeline,
            lsn: Lsn(lsn),
        };
        let mut watch = journal.watch();
        let reached = watch.wait_for(|d| d.position >= Some(position)).await;
        assert_eq!(reached.unwrap().condition, Condition::Writing);
    }

    /// Returns a reader of a segment's WAL.
    fn read(follower: &Follower, segment: &Segment) -> Vec<u8> {
        let mut frames = follower.open(segment.name).unwrap();
        let mut out = vec![0; usize::try_from(segment.to.0 - segment.from.0).unwrap()];
        let mut at = 0;
        while at < out.len() {
            let n = frames.read(&mut out[at..]).unwrap();
            assert!(n > 0, "the file ends at {}", frames.lsn());
            at += n;
        }
        out
    }

    /// Requires that all segments have the bytes that were fed.
    fn check(follower: &Follower) {
        for segment in follower.segments() {
            let length = usize::try_from(segment.to.0 - segment.from.0).unwrap();
            let is_right = read(follower, &segment) == wal(segment.from, length);
            assert!(is_right, "{}", segment.name);
        }
    }

    fn held(timeline: TimelineId, from: u64, to: u64) -> Held {
        let (from, to) = (Lsn(from), Lsn(to));
        Held { timeline, from, to }
    }

    #[test]
    fn what_was_durable_is_held_again_across_segments_timelines_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let journal = open(directory.path());
        assert_eq!(journal.held(), []);
        let (first, second) = (timeline(1), timeline(2));
        let switch = START.0 + 2 * SIZE + 5000;
        runtime().block_on(async {
            let feeder = journal.feeder();
            feed_to(&feeder, first, START, switch, 100_000).await;
            feed(&feeder, second, Lsn(START.0 + 2 * SIZE), 6000).await;
            durable(&journal, second, START.0 + 2 * SIZE + 6000).await;
        });
        let expected = [
            held(first, START.0, switch),
            held(second, START.0 + 2 * SIZE, START.0 + 2 * SIZE + 6000),
        ];
        assert_eq!(journal.held(), expected);
        journal.close().unwrap();
        let journal = open(directory.path());
        assert_eq!(journal.held(), expected);
        let follower = journal.follower();
        let segments = follower.segments();
        assert_eq!(segments.len(), 4);
        assert_eq!(segments.iter().filter(|s| s.is_complete()).count(), 2);
        check(&follower);
        // Released files are used again, and go on being right.
        for segment in &segments[..3] {
            follower.release(segment.name).unwrap();
        }
        runtime().block_on(async {
            let feeder = journal.feeder();
            let from = Lsn(START.0 + 2 * SIZE + 6000);
            // The last segment is begun, in a file that was used before.
            let end = START.0 + 6 * SIZE + 1696;
            feed_to(&feeder, second, from, end, 2000).await;
            durable(&journal, second, end).await;
        });
        check(&follower);
    }

    #[test]
    fn only_what_continues_or_begins_a_later_segment_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let journal = open(directory.path());
        let feeder = journal.feeder();
        let offer = |number, lsn, length: usize| {
            runtime().block_on(async {
                let room = feeder.room(length).await.unwrap();
                let wal = Bytes::from(vec![1; length]);
                feeder.feed(room, timeline(number), Lsn(lsn), wal)
            })
        };
        let refused = |number, lsn| offer(number, lsn, 10).unwrap_err().code();
        assert_eq!(refused(1, START.0 + 1), Code::Internal);
        offer(2, START.0, 100).unwrap();
        for (number, lsn) in [
            (2, START.0),
            (2, START.0 + 99),
            (2, START.0 + 101),
            (1, START.0 + 100),
            (1, START.0 + SIZE),
            (2, START.0 - SIZE),
            (3, START.0 + 100),
        ] {
            assert_eq!(refused(number, lsn), Code::Internal, "{number} {lsn:X}");
        }
        offer(2, START.0 + 100, 10).unwrap();
        offer(2, START.0 + 4 * SIZE, 10).unwrap();
        offer(3, START.0 + SIZE, 10).unwrap();
        drop(feeder);
        journal.close().unwrap();
        let runs = open(directory.path()).held();
        assert_eq!(
            runs,
            [
                held(timeline(2), START.0, START.0 + 110),
                held(timeline(2), START.0 + 4 * SIZE, START.0 + 4 * SIZE + 10),
                held(timeline(3), START.0 + SIZE, START.0 + SIZE + 10),
            ]
        );
    }

    #[test]
    fn w10_a_second_one_is_told_who_has_the_journal_and_since_when() {
        let directory = tempfile::tempdir().unwrap();
        let journal = open(directory.path());
        let refused = Journal::open(&options(directory.path()), Arc::new(Silent));
        let refused = refused.err().unwrap();
        assert_eq!(refused.code(), Code::Locked);
        let who = format!("process {} since 2000-01-01", std::process::id());
        assert!(refused.to_string().contains(&who), "{refused}");
        journal.close().unwrap();
        open(directory.path()).close().unwrap();
    }

    #[test]
    fn w11_at_its_limit_nothing_is_taken_until_a_file_is_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        options.limit_bytes = Some(1000);
        let refused = Journal::open(&options, Arc::new(Silent)).err().unwrap();
        assert_eq!(refused.code(), Code::Config);
        options.limit_bytes = Some(3 * (SIZE + SIZE / 16 + 4096));
        let said = Arc::new(Collector::default());
        let progress: Arc<dyn Progress> = Arc::clone(&said) as _;
        let journal = Journal::open(&options, progress).unwrap();
        let feeder = journal.feeder();
        let follower = journal.follower();
        runtime().block_on(async {
            for at in (START.0..START.0 + 4 * SIZE).step_by(1 << 16) {
                feed(&feeder, timeline(1), Lsn(at), 1 << 16).await;
            }
            let mut watch = journal.watch();
            let full = watch.wait_for(|d| d.condition == Condition::Full).await;
            let position = full.unwrap().position.unwrap();
            assert_eq!(position.lsn, Lsn(START.0 + 3 * SIZE));
            assert!(journal.bytes() <= options.limit_bytes.unwrap());
            follower.release(follower.segments()[0].name).unwrap();
            durable(&journal, timeline(1), START.0 + 4 * SIZE).await;
        });
        let lines = said.lines().join("\n");
        assert!(lines.contains("no WAL is acknowledged"), "{lines}");
        assert!(lines.contains("% of the room"), "{lines}");
        assert!(lines.contains("has room again"), "{lines}");
    }

    #[test]
    fn a_journal_that_stays_full_while_segments_leave_it_is_logged_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        options.limit_bytes = Some(3 * (SIZE + SIZE / 16 + 4096));
        let said = Arc::new(Collector::default());
        let progress: Arc<dyn Progress> = Arc::clone(&said) as _;
        let journal = Journal::open(&options, progress).unwrap();
        let (feeder, follower) = (journal.feeder(), journal.follower());
        runtime().block_on(async {
            let mut watch = journal.watch();
            for segment in 0..6 {
                let start = START.0 + segment * SIZE;
                for at in (start..start + SIZE).step_by(1 << 16) {
                    feed(&feeder, timeline(1), Lsn(at), 1 << 16).await;
                }
                if segment >= 3 {
                    let full = watch.wait_for(|d| d.condition == Condition::Full).await;
                    drop(full.unwrap());
                    follower.release(follower.segments()[0].name).unwrap();
                }
                durable(&journal, timeline(1), start + SIZE).await;
            }
        });
        let lines = said.lines();
        let count = |words: &str| lines.iter().filter(|l| l.contains(words)).count();
        assert_eq!(count("no WAL is acknowledged"), 1, "{lines:?}");
        assert_eq!(count("has room again"), 1, "{lines:?}");
        assert!(count("% of the room") <= 3, "{lines:?}");
    }

    #[test]
    fn a_file_that_is_none_of_this_cluster_is_set_aside_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let journal = open(directory.path());
        let feeder = journal.feeder();
        runtime().block_on(feed(&feeder, timeline(1), START, 10));
        drop(feeder);
        journal.close().unwrap();
        let name = SegmentName::of(timeline(1), START, SegmentSize::new(SIZE).unwrap());
        let path = directory.path().join(format!("7/{name}.wal"));
        let mut larger = options(directory.path());
        larger.segment_size = SegmentSize::new(2 * SIZE).unwrap();
        let refused = Journal::open(&larger, Arc::new(Silent)).err().unwrap();
        assert_eq!(refused.code(), Code::Refused);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"x", 20).unwrap();
        let said = Arc::new(Collector::default());
        let progress: Arc<dyn Progress> = Arc::clone(&said) as _;
        let journal = open_telling(directory.path(), progress);
        assert_eq!(journal.held(), []);
        assert!(said.lines()[0].contains("set aside"), "{:?}", said.lines());
        assert!(!path.exists());
        let aside = std::fs::read_dir(path.parent().unwrap()).unwrap();
        let names = aside.map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|n| n.starts_with("damaged-")).count(), 1);
    }

    /// Row W60: what a lost file held is asked for until it is there again, or the file behind it is let go.
    #[test]
    fn w60_a_lost_segment_is_known_from_the_one_behind_it_and_mended_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let journal = open(directory.path());
        let end = Lsn(START.0 + 3 * SIZE + 5000);
        runtime().block_on(async {
            let feeder = journal.feeder();
            feed_to(&feeder, timeline(1), START, end.0, 100_000).await;
        });
        let size = SegmentSize::new(SIZE).unwrap();
        let name = |n| SegmentName::of(timeline(1), Lsn(START.0 + n * SIZE), size);
        let names = [0, 1, 2, 3].map(name);
        journal.close().unwrap();
        let spoil = |name: SegmentName, offset| {
            let path = directory.path().join(format!("7/{name}.wal"));
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(b"x", offset).unwrap();
        };
        let damaged = |journal: &Journal| {
            let damaged = journal.damaged();
            damaged.iter().map(|s| s.name).collect::<Vec<_>>()
        };
        // The header of the file, and that of its first frame.
        for (name, offset) in [(names[0], 20), (names[1], 4096)] {
            spoil(name, offset);
            for _ in 0..2 {
                let journal = open(directory.path());
                assert_eq!(damaged(&journal), [name]);
                assert!(journal.follower().is_witness(name.next(size).unwrap()));
                journal.close().unwrap();
            }
            let journal = open(directory.path());
            let start = name.start_lsn(size).unwrap();
            // One that does not come to its end changes nothing.
            let mut mending = journal.mend(name).unwrap();
            mending.write(&wal(start, 700_000)).unwrap();
            drop(mending);
            assert_eq!(damaged(&journal), [name]);
            let whole = wal(start, usize::try_from(SIZE).unwrap());
            let mut mending = journal.mend(name).unwrap();
            for piece in whole.chunks(9999) {
                mending.write(piece).unwrap();
            }
            mending.finish().unwrap();
            assert_eq!(damaged(&journal), []);
            journal.close().unwrap();
            let journal = open(directory.path());
            assert_eq!(journal.held(), [held(timeline(1), START.0, end.0)]);
            let follower = journal.follower();
            let segment = follower.segments().into_iter().find(|s| s.name == name);
            assert!(read(&follower, &segment.unwrap()) == whole);
            journal.close().unwrap();
        }
        // Nobody needs it any more once the one behind it is gone.
        spoil(names[2], 20);
        let journal = open(directory.path());
        assert_eq!(damaged(&journal), [names[2]]);
        journal.give_up(names[2]);
        journal.follower().release(names[3]).unwrap();
        assert_eq!(damaged(&journal), []);
        journal.close().unwrap();
        assert_eq!(damaged(&open(directory.path())), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// A power cut may leave any part of the WAL that was not durable: the durable WAL is held, and no byte of it differs.
        #[test]
        fn after_any_crash_the_durable_is_held_and_writing_goes_on(
            rounds in prop::collection::vec(1_usize..60_000, 1..30),
            crash in 0_usize..30,
            garbage in prop::collection::vec(any::<u8>(), 0..3000),
            at in 0_usize..4000,
            is_cut in any::<bool>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let runtime = runtime();
            let journal = open(directory.path());
            let feeder = journal.feeder();
            let one = timeline(1);
            let mut end = START;
            for length in &rounds {
                runtime.block_on(feed(&feeder, one, end, *length));
                end.0 += *length as u64;
                runtime.block_on(durable(&journal, one, end.0));
            }
            drop(feeder);
            journal.close().unwrap();
            // The rounds from `crash` on were not yet synced: their bytes are lost, in part or wholly.
            let kept = rounds.len().saturating_sub(crash);
            let safe = START.0 + rounds[..kept].iter().sum::<usize>() as u64;
            spoil(directory.path(), Lsn(safe), &garbage, at, is_cut);
            let journal = open(directory.path());
            let runs = journal.held();
            let to = runs.last().map_or(START.0, |r| r.to.0);
            prop_assert!(runs.len() <= 1);
            prop_assert!(to >= safe && to <= end.0, "{safe} {to} {}", end.0);
            let feeder = journal.feeder();
            let last = to + 3 * 50_000;
            runtime.block_on(feed_to(&feeder, one, Lsn(to), last, 50_000));
            drop(feeder);
            journal.close().unwrap();
            let journal = open(directory.path());
            prop_assert_eq!(journal.held(), [held(one, START.0, last)]);
            check(&journal.follower());
        }
    }

    /// Overwrites what lies behind the position `safe` in its file with `garbage`, `at` bytes behind it, and removes later files.
    fn spoil(directory: &Path, safe: Lsn, garbage: &[u8], at: usize, is_cut: bool) {
        let size = SegmentSize::new(SIZE).unwrap();
        let of_safe = SegmentName::of(timeline(1), safe, size);
        for entry in std::fs::read_dir(directory.join("7")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let Ok(name) = name.parse::<SegmentName>() else {
                continue;
            };
            if name > of_safe {
                std::fs::remove_file(&path).unwrap();
            } else if name == of_safe {
                let file = std::fs::File::options()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .unwrap();
                let mut head = vec![0; 64];
                file.read_exact_at(&mut head, 0).unwrap();
                let header = super::frame::FileHeader::decode(&head).unwrap();
                let mut frames = Frames::new(file, header);
                assert!(frames.skip_to(safe).unwrap());
                let offset = frames.offset() + at as u64;
                let file = frames.into_file();
                file.write_all_at(garbage, offset).unwrap();
                if is_cut {
                    file.set_len(offset + (FRAME_HEADER / 2) as u64).unwrap();
                }
            }
        }
    }
}
