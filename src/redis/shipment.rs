//! The thread that brings a history's log from the journal into one repository.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::Reader;
use super::history::History;
use super::kind::NAME;
use super::log::{self, LogKeys, Mark, Piece, SEGMENT_BYTES, segment_of};
use super::record::{Record, Records, State};
use crate::err;
use crate::error::Result;
use crate::host::Clock;
use crate::journal::frame::Frames;
use crate::journal::shipping::{Attempts, Ship};
use crate::journal::{Segment, Wake};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::{Position, TimelineId};
use crate::repo;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::repo::source;

/// How often increments are written while keys change.
const EVERY: Duration = Duration::from_secs(2);
/// How often they are written while nothing comes that changes any: so that a plan knows how far time has gone on.
const EVERY_IDLE: Duration = Duration::from_secs(60);
/// So many increments are merged for readers.
const MERGE_COUNT: u32 = 64;
/// So many files of the journal wait for the end of one segment.
const FINISHED_MAX: usize = 4;
/// A remote repository is used for so long before its marker is read again.
const KEPT_OPEN: Duration = Duration::from_secs(60);

/// Bytes of one segment of a history, as far as they were read from the journal.
struct Assembly {
    state: State,
    /// The reader in front of its bytes.
    begin: Reader,
    /// The reader behind them.
    end: Reader,
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Behind the last byte that the repository has; none before it was asked.
    shipped: Option<u64>,
    /// Increments since the last merged one.
    count: u32,
    /// Whether something came that changes keys and is not stored.
    is_changed: bool,
}

impl Assembly {
    fn new(state: State) -> Assembly {
        let reader = state.reader.clone();
        Assembly {
            state,
            begin: reader.clone(),
            end: reader,
            bytes: Vec::new(),
            marks: Vec::new(),
            shipped: None,
            count: 0,
            is_changed: false,
        }
    }

    fn from(&self) -> u64 {
        self.begin.position()
    }

    fn to(&self) -> u64 {
        self.end.position()
    }

    /// Behind its segment.
    fn limit(&self) -> u64 {
        segment_of(self.from()) + SEGMENT_BYTES
    }

    /// Whether a whole segment begins with it: at its start, or at the fork.
    fn is_whole_segment(&self) -> bool {
        let fork = self.state.parent.as_ref().map(|(_, fork)| *fork);
        self.from() == segment_of(self.from()) || fork == Some(self.from())
    }

    fn append(&mut self, arrived_us: i64, bytes: &[u8]) -> Result<()> {
        let is_changed = &mut self.is_changed;
        self.end.read(bytes, &mut |command| {
            *is_changed |= command.effect != super::command::Effect::None;
            Ok(())
        })?;
        // A long value changes nothing before its end; but it is worth storing.
        *is_changed |= !self.end.is_between_commands();
        self.bytes.extend_from_slice(bytes);
        log::add_mark(&mut self.marks, self.end.position(), arrived_us);
        Ok(())
    }

    /// The bytes from a position on.
    fn piece(&self, from: u64) -> Result<(Reader, &[u8])> {
        let offset = usize::try_from(from - self.from()).unwrap_or(usize::MAX);
        let (before, bytes) = self
            .bytes
            .split_at_checked(offset)
            .ok_or_else(|| err!(Internal, "position {from} is not in the segment"))?;
        let mut reader = self.begin.clone();
        reader.read(before, &mut |_| Ok(()))?;
        Ok((reader, bytes))
    }

    /// The segment that follows.
    fn next(&self) -> Assembly {
        let state = State {
            reader: self.end.clone(),
            ..self.state.clone()
        };
        Assembly::new(state)
    }
}

/// A place in the journal.
struct Cursor {
    name: SegmentName,
    frames: Frames<File>,
}

/// The server whose log it is.
#[derive(Clone)]
pub struct Origin {
    /// Its place in the repository.
    pub scope: Scope,
    /// The text that tells the server from others.
    pub identity: String,
    /// The clock, for the registration.
    pub clock: Clock,
}

impl Origin {
    /// Registers the scope, or requires that this server may write it.
    fn require(&self, repository: &Repository) -> Result<()> {
        let (store, scope) = (repository.store(), &self.scope);
        let own = source::source_of(NAME, &self.identity);
        let named = (Some(own.as_str()), Some(self.identity.as_str()));
        let registered = source::register(store, scope, named, (self.clock)())?;
        source::require(store, scope, &registered, Some(&own))
    }
}

/// One repository, and what is known to be in it.
pub struct Shipment {
    ship: Arc<Ship>,
    index: usize,
    origin: Origin,
    attempts: Attempts,
    cursor: Option<Cursor>,
    /// The last file that was read to its end.
    last_read: Option<SegmentName>,
    assembly: Option<Assembly>,
    /// A record that did not fit into the assembly.
    waiting: Option<Record>,
    /// Files of the journal that were read to their end, with the number of the assembly that has their last byte.
    finished: Vec<(SegmentName, u64)>,
    /// The number of the present assembly.
    number: u64,
    last_put: Option<Instant>,
    /// The history whose object was stored last.
    known: Option<String>,
    open: Option<(Repository, Instant)>,
}

/// The step that was taken.
enum Step {
    Stored,
    Wait(Duration),
    Done,
}

impl Shipment {
    /// The thread's work for the repository of this number.
    pub fn new(ship: Arc<Ship>, index: usize, origin: Origin) -> Shipment {
        Shipment {
            attempts: Attempts::new(&ship, index, "the log"),
            ship,
            index,
            origin,
            cursor: None,
            last_read: None,
            assembly: None,
            waiting: None,
            finished: Vec::new(),
            number: 0,
            last_put: None,
            known: None,
            open: None,
        }
    }

    /// Ships until it shall stop; returns whether all that is durable is stored.
    pub fn run(&mut self) -> bool {
        loop {
            let version = self.ship.follower.version();
            match self.step() {
                Ok(Step::Stored) => self.attempts.succeeded(),
                Ok(Step::Wait(time)) => self.ship.follower.wait(version, Wake::AnyRound, time),
                Ok(Step::Done) => return true,
                Err(e) if self.ship.is_stopping() => {
                    self.attempts.report(&e);
                    return false;
                }
                Err(e) => {
                    if let Some(assembly) = &mut self.assembly {
                        assembly.shipped = None;
                    }
                    self.known = None;
                    self.open = None;
                    self.attempts.failed(&e);
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step> {
        self.read_on()?;
        let Some(assembly) = &self.assembly else {
            return Ok(match self.ship.is_stopping() {
                true => Step::Done,
                false => Step::Wait(EVERY_IDLE),
            });
        };
        let is_full = assembly.to() == assembly.limit();
        if is_full || matches!(self.waiting, Some(Record::State(_))) {
            self.with_repository(Shipment::close)?;
            return Ok(Step::Stored);
        }
        let is_stored = assembly
            .shipped
            .is_some_and(|shipped| shipped >= assembly.to());
        if is_stored || assembly.bytes.is_empty() {
            return Ok(match self.ship.is_stopping() {
                true => Step::Done,
                false => Step::Wait(EVERY_IDLE),
            });
        }
        let every = if assembly.is_changed {
            EVERY
        } else {
            EVERY_IDLE
        };
        let since = self.last_put.map_or(every, |at| at.elapsed());
        if since < every && !self.ship.is_stopping() {
            return Ok(Step::Wait((every - since).min(EVERY)));
        }
        self.with_repository(Shipment::increment)?;
        Ok(Step::Stored)
    }

    /// Reads what is durable in the journal, up to the end of the segment, or to where another history begins.
    fn read_on(&mut self) -> Result<()> {
        loop {
            let is_full = self
                .assembly
                .as_ref()
                .is_some_and(|assembly| assembly.to() == assembly.limit());
            if is_full {
                return Ok(());
            }
            let record = match self.waiting.take() {
                Some(record) => Some(record),
                None => self.next_record()?,
            };
            match (record, &mut self.assembly) {
                (None, _) => return Ok(()),
                (Some(Record::State(state)), None) => self.assembly = Some(Assembly::new(*state)),
                (Some(Record::State(state)), Some(assembly)) => {
                    let goes_on = state.replid == assembly.state.replid
                        && state.reader.position() == assembly.to();
                    if !goes_on {
                        self.waiting = Some(Record::State(state));
                        return Ok(());
                    }
                }
                (Some(Record::Bytes { .. }), None) => {
                    return Err(err!(Damaged, "the journal has bytes of no history"));
                }
                (
                    Some(Record::Bytes {
                        arrived_us,
                        mut bytes,
                    }),
                    Some(assembly),
                ) => {
                    let room = assembly.limit() - assembly.to();
                    let room = usize::try_from(room).unwrap_or(usize::MAX);
                    let now = bytes.split_to(room.min(bytes.len()));
                    assembly.append(arrived_us, &now)?;
                    if !bytes.is_empty() {
                        self.waiting = Some(Record::Bytes { arrived_us, bytes });
                    }
                }
            }
        }
    }

    /// The next record that is durable.
    fn next_record(&mut self) -> Result<Option<Record>> {
        loop {
            let segments = self.ship.follower.segments();
            let Some(segment) = self.current(&segments) else {
                return Ok(None);
            };
            if self.cursor.as_ref().is_none_or(|c| c.name != segment.name) {
                self.cursor = Some(Cursor {
                    name: segment.name,
                    frames: self.ship.follower.open(segment.name)?,
                });
            }
            let Some(cursor) = &mut self.cursor else {
                return Ok(None);
            };
            cursor.frames.look_again();
            let left = segment.to.0.saturating_sub(cursor.frames.lsn().0);
            let frames = &mut cursor.frames;
            let mut records = Records::new(left, |buffer: &mut [u8]| fill(frames, buffer));
            let record = records.read()?;
            let is_filled = records.left() == 0 && record.is_none() && left > 0;
            if record.is_some() {
                return Ok(record);
            }
            // Nothing follows in this file: it is read to its end, or to the zeros that fill it up.
            if segment.is_last && !(is_filled && segment.is_complete()) {
                return Ok(None);
            }
            self.last_read = Some(segment.name);
            self.finished.push((segment.name, self.number));
            self.cursor = None;
        }
    }

    /// The file to read from: the first one behind those that were read.
    fn current(&self, segments: &[Segment]) -> Option<Segment> {
        let is_next = |s: &&Segment| self.last_read.is_none_or(|last| s.name > last);
        segments.iter().find(is_next).copied()
    }

    fn with_repository(
        &mut self,
        work: impl FnOnce(&mut Shipment, &Repository) -> Result<()>,
    ) -> Result<()> {
        let (repository, since) = match self.open.take() {
            Some((open, since)) if since.elapsed() < KEPT_OPEN => (open, since),
            _ => {
                let place = self.ship.place(self.index);
                (repo::open(place, self.ship.next_nonce())?, Instant::now())
            }
        };
        work(self, &repository)?;
        self.open = Some((repository, since)).filter(|(r, _)| r.store().is_remote());
        Ok(())
    }

    /// Stores the history's own object, and asks what there is of the segment.
    fn begin(&mut self, repository: &Repository) -> Result<()> {
        let Some(assembly) = &mut self.assembly else {
            return Ok(());
        };
        let state = &assembly.state;
        let keys = LogKeys::new(&self.origin.scope, &state.replid);
        if self.known.as_ref() != Some(&state.replid) {
            self.origin.require(repository)?;
            History::of(state).put(repository, &keys)?;
            self.known = Some(state.replid.clone());
        }
        if assembly.shipped.is_none() {
            let found = log::increments(repository, &keys, segment_of(assembly.from()))?;
            assembly.shipped = Some(log::covered(&found, assembly.from()).min(assembly.to()));
            assembly.count = u32::try_from(found.len()).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    fn increment(&mut self, repository: &Repository) -> Result<()> {
        self.begin(repository)?;
        let Some(assembly) = &mut self.assembly else {
            return Ok(());
        };
        let keys = LogKeys::new(&self.origin.scope, &assembly.state.replid);
        let is_merged = assembly.count >= MERGE_COUNT;
        let shipped = assembly.shipped.unwrap_or(assembly.from());
        let from = if is_merged { assembly.from() } else { shipped };
        if shipped < assembly.to() {
            let (reader, bytes) = assembly.piece(from)?;
            let piece = Piece {
                replid: &assembly.state.replid,
                bytes,
                reader: &reader,
                marks: &assembly.marks,
            };
            log::put(
                repository,
                &keys,
                &keys.increment(from, assembly.to())?,
                &piece,
            )?;
            assembly.count = if is_merged {
                0
            } else {
                assembly.count.saturating_add(1)
            };
        }
        assembly.shipped = Some(assembly.to());
        assembly.is_changed = false;
        self.last_put = Some(Instant::now());
        self.reached();
        // A receiver that is started again and again begins a file each time. Without them the segment may never be whole; its increments are.
        if self.finished.len() > FINISHED_MAX {
            for (name, _) in self.finished.drain(..) {
                self.ship.stored(self.index, name);
            }
        }
        Ok(())
    }

    /// Stores all there is of the segment, and goes on with the next one, or with the history that waits.
    fn close(&mut self, repository: &Repository) -> Result<()> {
        self.begin(repository)?;
        let Some(assembly) = &self.assembly else {
            return Ok(());
        };
        let is_full = assembly.to() == assembly.limit();
        if is_full && assembly.is_whole_segment() {
            let keys = LogKeys::new(&self.origin.scope, &assembly.state.replid);
            let piece = Piece {
                replid: &assembly.state.replid,
                bytes: &assembly.bytes,
                reader: &assembly.begin,
                marks: &assembly.marks,
            };
            let key = keys.whole(segment_of(assembly.from()))?;
            log::put(repository, &keys, &key, &piece)?;
            self.last_put = Some(Instant::now());
        } else {
            self.increment(repository)?;
        }
        self.reached();
        self.assembly = match self.waiting.take() {
            Some(Record::State(state)) => Some(Assembly::new(*state)),
            other => {
                self.waiting = other;
                self.assembly.as_ref().map(Assembly::next)
            }
        };
        let number = self.number;
        self.number += 1;
        let done = self.finished.iter().filter(|(_, of)| *of <= number);
        for (name, _) in done {
            self.ship.stored(self.index, *name);
        }
        self.finished.retain(|(_, of)| *of > number);
        Ok(())
    }

    /// The repository has everything that was read from the journal.
    fn reached(&self) {
        let place = match (&self.cursor, self.last_read) {
            (Some(cursor), _) => cursor.frames.lsn(),
            (None, Some(name)) => {
                let size = self.ship.follower.segment_size();
                match name.number(size) {
                    Ok(number) => number.range(size).end,
                    Err(_) => return,
                }
            }
            (None, None) => return,
        };
        let lsn = match &self.waiting {
            // It was read, but is not stored.
            Some(Record::Bytes { .. }) => return,
            _ => place,
        };
        self.ship.reached(
            self.index,
            Position {
                timeline: TimelineId::FIRST,
                lsn,
            },
        );
    }
}

/// Fills a buffer with durable bytes of the journal.
///
/// # Errors
/// `SourceMissing` when the journal does not hold them.
pub fn fill(frames: &mut Frames<File>, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let damaged = |lsn: Lsn| err!(SourceMissing, "the journal is damaged at {lsn}");
        match frames.read(rest) {
            Ok(0) => return Err(damaged(frames.lsn())),
            Ok(n) => filled += n,
            Err(e) => return Err(damaged(frames.lsn()).source(e)),
        }
    }
    Ok(())
}
