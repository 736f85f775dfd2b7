//! The thread that brings a history's log from the journal into one repository.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::command::Reader;
use super::history::{Beginning, Held, History, Parent};
use super::kind::NAME;
use super::log::{self, Mark, Piece};
use super::record::{Record, Records, State};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Clock;
use crate::journal::frame::Frames;
use crate::journal::shipping::{Attempts, Ship};
use crate::journal::{Segment, Wake};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{Position, TimelineId};
use crate::repo::event::Writer;
use crate::repo::kept_open::KeptOpen;
use crate::repo::log_keys::{LogKeys, SEGMENT_BYTES, segment_of};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::repo::slot_map;
use crate::repo::source;
use crate::store::Key;

/// How often increments are written while keys change.
const EVERY: Duration = Duration::from_secs(2);
/// How often they are written while nothing comes that changes any: so that a plan knows how far time has gone on.
const EVERY_IDLE: Duration = Duration::from_secs(60);
/// So many increments are merged for readers, and so many merged ones again.
const MERGE_COUNT: u32 = 64;
/// So many files of the journal wait for the end of one segment.
const FINISHED_MAX: usize = 4;

/// Increments since the last merged ones, so that a byte is stored three times at most.
#[derive(Default)]
struct Runs {
    /// Small ones since the last merged one, and merged ones since the last that has all of the segment.
    counts: [u32; 2],
    /// Behind the last merged one; none before the first.
    merged: Option<u64>,
}

impl Runs {
    /// The position from which the next increment goes on: what came since, or with what was stored before.
    fn next(&mut self, (segment, shipped): (u64, u64)) -> u64 {
        let merged = *self.merged.get_or_insert(shipped);
        let [small, large] = &mut self.counts;
        *small += 1;
        if *small < MERGE_COUNT {
            return shipped;
        }
        (*small, *large) = (0, *large + 1);
        if *large < MERGE_COUNT {
            return merged;
        }
        *large = 0;
        segment
    }

    /// The increment that [`Runs::next`] wanted is stored.
    fn stored(&mut self, to: u64) {
        if self.counts[0] == 0 {
            self.merged = Some(to);
        }
    }
}

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
    /// The reader behind the last increment: what comes before it is not read again.
    ready: Reader,
    runs: Runs,
    /// Whether something came that changes keys and is not stored.
    is_changed: bool,
}

impl Assembly {
    /// In front of a state's position. The room is that of the assembly before, which is done: a segment is held once, and nothing is moved as it grows.
    fn new(state: State, mut room: Vec<u8>) -> Assembly {
        let reader = state.reader.clone();
        room.clear();
        room.reserve_exact(usize::try_from(SEGMENT_BYTES).unwrap_or_default());
        Assembly {
            state,
            begin: reader.clone(),
            ready: reader.clone(),
            end: reader,
            bytes: room,
            marks: Vec::new(),
            shipped: None,
            runs: Runs::default(),
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

    /// Whether it has the segment from its start on.
    fn is_whole_segment(&self) -> bool {
        self.from() == segment_of(self.from())
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

    /// The piece from a position on, up to another.
    fn piece<'a>(&'a self, reader: &'a mut Reader, (from, to): (u64, u64)) -> Result<Piece<'a>> {
        let index = |position: u64| {
            let offset = position.saturating_sub(self.from());
            usize::try_from(offset).unwrap_or(usize::MAX)
        };
        let (begin, end) = (index(from), index(to));
        let outside = || err!(Internal, "positions {from} to {to} are not in the segment");
        let bytes = self.bytes.get(begin..end).ok_or_else(outside)?;
        let is_ready = self.ready.position() <= from;
        *reader = if is_ready { &self.ready } else { &self.begin }.clone();
        let before = self.bytes.get(index(reader.position())..begin);
        reader.read(before.ok_or_else(outside)?, &mut |_| Ok(()))?;
        Ok(Piece {
            bytes,
            reader,
            marks: &self.marks,
        })
    }

    /// Stores all from a position on.
    fn put(&self, repository: &Repository, keys: &LogKeys, key: &Key, from: u64) -> Result<()> {
        let mut reader = self.begin.clone();
        let piece = self.piece(&mut reader, (from, self.to()))?;
        log::put(repository, keys, key, &piece).map(|_| ())
    }

    /// How far the repository has these bytes without a gap, each object compared and durable.
    fn stored(&self, repository: &Repository, keys: &LogKeys) -> Result<u64> {
        let listed = log::increments(repository, keys, segment_of(self.from()))?;
        let is_inside = |(from, to): &(u64, u64)| *from >= self.from() && *to <= self.to();
        let mut left: Vec<(u64, u64)> = listed.into_iter().filter(is_inside).collect();
        let mut reached = self.from();
        loop {
            let next = left
                .iter()
                .filter(|(from, to)| *from <= reached && reached < *to);
            let Some(range) = next.max_by_key(|(_, to)| *to).copied() else {
                return Ok(reached);
            };
            left.retain(|other| *other != range);
            let mut reader = self.begin.clone();
            let piece = self.piece(&mut reader, range)?;
            let key = keys.increment(range.0, range.1)?;
            match log::compare(repository, keys, &key, &piece) {
                Ok(Some(_)) => reached = range.1,
                Ok(None) => {}
                // It is stored once more, in another one.
                Err(e) if e.code() == Code::Damaged => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Says of a state that follows in the journal whether bytes between are lost.
    fn before(&self, state: &mut State, now: TimestampTz) {
        let position = state.reader.position();
        // The journal has bytes twice that were damaged for another repository.
        let goes_on = state.replid == self.state.replid && position <= self.to();
        let is_child = state.parent.as_ref().is_some_and(|parent| {
            parent.replid == self.state.replid && parent.fork == position && position <= self.to()
        });
        if state.beginning.is_some() || goes_on || is_child {
            return;
        }
        state.beginning = Some(Beginning {
            position,
            after: Some(Held {
                replid: self.state.replid.clone(),
                position: self.to(),
            }),
            reason: Some("the journal was damaged".to_owned()),
            time: now,
        });
    }

    /// Whether a state at the beginning of a file goes on where this one ends, or says that the server cannot.
    fn answered(&self, state: &State, file: SegmentName) -> Answer {
        let (replid, to) = (&self.state.replid, self.to());
        let position = state.reader.position();
        let after = state.beginning.as_ref().and_then(|b| b.after.as_ref());
        // The server may have gone on with another history meanwhile, and without the last of these bytes.
        let leaves = |p: &Parent| p.replid == *replid && p.fork == position && position <= to;
        if after.is_some_and(|after| after.replid == *replid && after.position == to) {
            Answer::Gone
        } else if (state.replid == *replid && position == to)
            || state.parent.as_ref().is_some_and(leaves)
        {
            Answer::Again(file)
        } else {
            Answer::None
        }
    }

    /// The segment that follows.
    fn next(self) -> Assembly {
        let state = State {
            reader: self.end,
            ..self.state
        };
        Assembly::new(state, self.bytes)
    }
}

/// A place in the journal.
struct Cursor {
    name: SegmentName,
    frames: Frames<File>,
    /// Behind the last record that was read whole.
    place: Lsn,
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
    /// Whether its slots have to be recorded before anything else of it is stored: it is a shard.
    pub is_shard: bool,
}

impl Origin {
    /// Registers the scope, or requires that this server may write it, which it may from now on where the operator of `confirmed` said so. Returns the text
    /// that stands for the server there.
    ///
    /// # Errors
    /// `Refused` for a server that is another one; `Unreachable` before the slots of a shard are recorded; those of the store.
    pub fn require(
        &self,
        repository: &Repository,
        confirmed: Option<&Writer<'_>>,
    ) -> Result<String> {
        let (store, scope) = (repository.store(), &self.scope);
        let own = source::source_of(NAME, &self.identity);
        let named = (Some(own.as_str()), Some(self.identity.as_str()));
        let registered = source::register(store, scope, named, (self.clock)())?;
        source::require_or_continue(store, scope, &registered, Some(&own), confirmed)?;
        if self.is_shard && !slot_map::is_any(store, scope)? {
            return Err(err!(
                Unreachable,
                "the slots of the shard are not recorded there yet"
            ));
        }
        Ok(own)
    }
}

/// Stores what is known of a history.
fn tell(repository: &Repository, keys: &LogKeys, state: &State, source: String) -> Result<()> {
    let history = History {
        source,
        run_id: state.run_id.clone(),
        server_version: state.server_version.clone(),
        flavor: state.flavor.clone(),
    };
    history.put(repository, keys)?;
    if let Some(parent) = &state.parent {
        parent.put(repository, keys)?;
    }
    match &state.beginning {
        Some(beginning) => beginning.put(repository, keys),
        None => Ok(()),
    }
}

/// One repository, and what is known to be in it.
pub struct Shipment {
    ship: Arc<Ship>,
    index: usize,
    origin: Origin,
    /// Clients wait until the repository has what they wrote.
    is_waited_for: bool,
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
    /// The facts of the history that the repository has.
    known: Option<Told>,
    /// The place in the journal that could not be read.
    unreadable: Option<(SegmentName, Lsn)>,
    /// The way to ask the session for what the journal lost.
    rewind: Rewind,
    /// The place in the journal for which it was asked, while no answer has come.
    lost: Option<(SegmentName, Lsn)>,
    open: KeptOpen,
}

/// The state in front of bytes that the journal has lost: a session that finds it asks the server for them once more.
pub type Rewind = Arc<Mutex<Option<State>>>;

/// The words of a session for what follows a damage of the journal.
enum Answer {
    /// The files up to this one hold nothing that it does not send again.
    Again(SegmentName),
    /// The server has these bytes no more.
    Gone,
    /// None came so far.
    None,
}

/// A history, the one that it goes on from, and where its reception began.
type Told = (String, Option<Parent>, Option<Beginning>);

/// The step that was taken.
enum Step {
    Stored,
    Wait(Duration),
    Done,
}

impl Shipment {
    /// The thread's work for the repository of this number.
    pub fn new(
        ship: Arc<Ship>,
        index: usize,
        (origin, is_waited_for): (Origin, bool),
        rewind: Rewind,
    ) -> Shipment {
        Shipment {
            attempts: Attempts::new(&ship, index, "the log"),
            ship,
            index,
            origin,
            is_waited_for,
            cursor: None,
            last_read: None,
            assembly: None,
            waiting: None,
            finished: Vec::new(),
            number: 0,
            last_put: None,
            known: None,
            unreadable: None,
            rewind,
            lost: None,
            open: KeptOpen::default(),
        }
    }

    /// Ships until it shall stop; returns whether all that is durable is stored.
    pub fn run(&mut self) -> bool {
        loop {
            let version = self.ship.follower.version();
            match self.step() {
                Ok(Step::Stored) => self.attempts.succeeded(),
                Ok(Step::Wait(time)) => self.ship.follower.wait(version, Wake::AnyRound, time),
                Ok(Step::Done) => return self.lost.is_none(),
                Err(e) if self.ship.is_stopping() => {
                    self.attempts.report(&e);
                    return false;
                }
                Err(e) => {
                    if let Some(assembly) = &mut self.assembly {
                        assembly.shipped = None;
                    }
                    self.known = None;
                    self.open.forget();
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
            self.reached();
            return Ok(match self.ship.is_stopping() {
                true => Step::Done,
                false => Step::Wait(EVERY_IDLE),
            });
        }
        let every = match (assembly.is_changed, self.is_waited_for) {
            (true, true) => Duration::ZERO,
            (true, false) => EVERY,
            (false, _) => EVERY_IDLE,
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
                (Some(Record::State(state)), None) => {
                    self.assembly = Some(Assembly::new(*state, Vec::new()));
                }
                (Some(Record::State(state)), Some(assembly)) => {
                    let goes_on = state.replid == assembly.state.replid
                        && state.reader.position() == assembly.to();
                    if !goes_on {
                        self.waiting = Some(Record::State(state));
                        return Ok(());
                    }
                    // Another process, or more is known of where it comes from. A gap before it may not be stored yet.
                    let beginning = assembly.state.beginning.take();
                    assembly.state = State {
                        beginning: state.beginning.clone().or(beginning),
                        ..*state
                    };
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
            let Some(cursor) = self.cursor_in(segment.name)? else {
                return Ok(None);
            };
            cursor.frames.look_again();
            let place = cursor.place;
            let left = segment.to.0.saturating_sub(place.0);
            let frames = &mut cursor.frames;
            let mut records = Records::new(left, |buffer: &mut [u8]| fill(frames, buffer));
            let record = match records.read() {
                Ok(record) => record,
                Err(e)
                    if self.unreadable != Some((segment.name, place))
                        || segment.is_last && self.assembly.is_none() =>
                {
                    // It is read once more from the record's beginning.
                    self.unreadable = Some((segment.name, place));
                    self.cursor = None;
                    return Err(e);
                }
                Err(e) => match self.answer((segment.name, place), &segments, &e)? {
                    Answer::None => return Ok(None),
                    Answer::Again(name) => {
                        let passed = segments
                            .iter()
                            .filter(|s| (segment.name..name).contains(&s.name));
                        passed.for_each(|passed| self.read_to_its_end(passed.name));
                        continue;
                    }
                    Answer::Gone => {
                        // The rest of the file is lost: the next one begins with a state, which tells how much that is.
                        self.read_to_its_end(segment.name);
                        continue;
                    }
                },
            };
            let left_behind = records.left();
            cursor.place = cursor.frames.lsn();
            let is_filled = left_behind == 0 && record.is_none() && left > 0;
            if record.is_some() {
                return Ok(record);
            }
            // Nothing follows in this file: it is read to its end, or to the zeros that fill it up.
            if segment.is_last && !(is_filled && segment.is_complete()) {
                return Ok(None);
            }
            self.read_to_its_end(segment.name);
        }
    }

    /// Asks the session for what follows the last record that was read, and looks in the files behind the damage for its answer. The position of the repository
    /// stays where it is meanwhile: nothing behind it is acknowledged.
    fn answer(
        &mut self,
        place: (SegmentName, Lsn),
        segments: &[Segment],
        error: &Error,
    ) -> Result<Answer> {
        self.cursor = None;
        let Some(assembly) = &self.assembly else {
            return Ok(Answer::Gone);
        };
        let to = assembly.to();
        for behind in segments.iter().filter(|s| s.name > place.0) {
            let state = self.first_state(behind);
            let answer = state.map_or(Answer::None, |state| assembly.answered(&state, behind.name));
            if !matches!(answer, Answer::None) {
                self.lost = None;
                return Ok(answer);
            }
        }
        if self.lost != Some(place) {
            let state = State {
                beginning: None,
                reader: assembly.end.clone(),
                ..assembly.state.clone()
            };
            self.ship.progress.warn(&format!(
                "{error}: the server is asked once more for what follows position {to}"
            ));
            *self.rewind.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
            self.lost = Some(place);
        }
        Ok(Answer::None)
    }

    /// The state with which a file of the journal begins; none where it cannot be read.
    fn first_state(&self, segment: &Segment) -> Option<State> {
        let mut frames = self.ship.follower.open(segment.name).ok()?;
        let left = segment.to.0.saturating_sub(segment.from.0);
        let mut records = Records::new(left, |buffer: &mut [u8]| fill(&mut frames, buffer));
        match records.read() {
            Ok(Some(Record::State(state))) => Some(*state),
            _ => None,
        }
    }

    fn read_to_its_end(&mut self, name: SegmentName) {
        self.last_read = Some(name);
        self.finished.push((name, self.number));
        self.cursor = None;
    }

    /// The cursor, in a file of this name: where it was, or where a reading failed.
    fn cursor_in(&mut self, name: SegmentName) -> Result<Option<&mut Cursor>> {
        if self.cursor.as_ref().is_none_or(|c| c.name != name) {
            let mut frames = self.ship.follower.open(name)?;
            if let Some((_, place)) = self.unreadable.filter(|(failed, _)| *failed == name) {
                let skipped = frames.skip_to(place);
                skipped.map_err(|e| Error::from_io(format!("read the journal at {place}"), e))?;
            }
            let place = frames.lsn();
            self.cursor = Some(Cursor {
                name,
                frames,
                place,
            });
        }
        Ok(self.cursor.as_mut())
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
        let place = self.ship.place(self.index);
        let open = self.open.take(place, || self.ship.next_nonce())?;
        let repository = &open.0;
        work(self, repository)?;
        self.open.keep(open);
        Ok(())
    }

    /// Tells the repository of the history, and asks what it has of the segment.
    fn begin(&mut self, repository: &Repository) -> Result<()> {
        let Some(assembly) = &mut self.assembly else {
            return Ok(());
        };
        let state = &assembly.state;
        let keys = LogKeys::new(&self.origin.scope, &state.replid);
        let told = (
            state.replid.clone(),
            state.parent.clone(),
            state.beginning.clone(),
        );
        if self.known.as_ref() != Some(&told) {
            let source = self.origin.require(repository, None)?;
            tell(repository, &keys, state, source)?;
            self.known = Some(told);
        }
        if assembly.shipped.is_none() {
            assembly.shipped = Some(assembly.stored(repository, &keys)?);
        }
        Ok(())
    }

    fn increment(&mut self, repository: &Repository) -> Result<()> {
        self.begin(repository)?;
        let Some(assembly) = &mut self.assembly else {
            return Ok(());
        };
        let keys = LogKeys::new(&self.origin.scope, &assembly.state.replid);
        let shipped = assembly.shipped.unwrap_or(assembly.from());
        let to = assembly.to();
        if shipped < to {
            let from = assembly.runs.next((assembly.from(), shipped));
            let key = keys.increment(from, to)?;
            assembly.put(repository, &keys, &key, from)?;
            assembly.runs.stored(to);
        }
        assembly.shipped = Some(to);
        assembly.ready = assembly.end.clone();
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
            let key = keys.whole(assembly.from())?;
            assembly.put(repository, &keys, &key, assembly.from())?;
            self.last_put = Some(Instant::now());
        } else {
            self.increment(repository)?;
        }
        self.reached();
        self.assembly = match (self.waiting.take(), self.assembly.take()) {
            (Some(Record::State(mut state)), done) => {
                if let Some(done) = &done {
                    done.before(&mut state, (self.origin.clock)());
                }
                Some(Assembly::new(
                    *state,
                    done.map(|d| d.bytes).unwrap_or_default(),
                ))
            }
            (other, done) => {
                self.waiting = other;
                done.map(Assembly::next)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_journal_answers_for_what_was_lost_before_it() {
        let state = State::sample;
        let begun = |after: Option<u64>| Beginning {
            position: 150,
            after: after.map(|position| Held {
                replid: "a".to_owned(),
                position,
            }),
            reason: None,
            time: TimestampTz(0),
        };
        let child = |position: u64, fork: u64| State {
            parent: Some(Parent {
                replid: "a".to_owned(),
                fork,
            }),
            ..state("b", position)
        };
        let behind = |after: Option<u64>| State {
            beginning: Some(begun(after)),
            ..state("a", 150)
        };
        let assembly = Assembly::new(state("a", 100), Vec::new());
        let name: SegmentName = "000000010000000000000003".parse().unwrap();
        let answered = |state: State| match assembly.answered(&state, name) {
            Answer::Again(_) => "again",
            Answer::Gone => "gone",
            Answer::None => "none",
        };
        assert_eq!(answered(state("a", 100)), "again");
        assert_eq!(answered(state("a", 150)), "none");
        assert_eq!(answered(behind(Some(100))), "gone");
        // The gap of another time is none of this one.
        assert_eq!(answered(behind(Some(70))), "none");
        assert_eq!(answered(behind(None)), "none");
        assert_eq!(answered(child(90, 90)), "again");
        assert_eq!(answered(child(200, 200)), "none");
    }

    #[test]
    fn a_byte_is_stored_three_times_at_most_and_a_reader_opens_few_objects() {
        let mut runs = Runs::default();
        let (mut stored, mut shipped) = (0, 0);
        let mut objects: Vec<(u64, u64)> = Vec::new();
        for to in 1..=u64::from(MERGE_COUNT * MERGE_COUNT) {
            let from = runs.next((0, shipped));
            runs.stored(to);
            objects.push((from, to));
            stored += to - from;
            shipped = to;
            if to.is_multiple_of(997) {
                let (mut reached, mut opened) = (0, 0);
                while reached < to {
                    let inside = objects
                        .iter()
                        .filter(|(from, to)| *from <= reached && reached < *to);
                    reached = inside.map(|(_, to)| *to).max().unwrap();
                    opened += 1;
                }
                assert!(opened <= 2 * MERGE_COUNT, "{opened} up to {to}");
            }
        }
        assert!(stored <= 3 * shipped, "{stored} of {shipped}");
        assert_eq!(objects.last(), Some(&(0, shipped)));
    }
}
