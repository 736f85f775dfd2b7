//! Objects of a history's log (format, section 16.7): its bytes between two positions, and what tells where it may be cut.
//!
//! A whole segment has the bytes between two multiples of [`SEGMENT_BYTES`]. All else is stored in increments, which a whole segment supersedes.

use serde_json::{Map, Value};

use super::command::{Command, Effect, Reader};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::repo::container::{Codec, Container, ContainerWriter, Identity, Kind, Section, tag};
use crate::repo::log_keys::{self, LogKeys, SEGMENT_BYTES, parse_range, segment_of};
use crate::repo::repository::Repository;
use crate::repo::varint;
use crate::store::{Key, Published};

/// Marks of time are at least so far apart.
const MARK_EVERY_US: i64 = 1000;
/// No object has more marks of time: some are left out then, evenly.
const MARKS_MAX: usize = 1 << 18;
/// No object names more events.
const EVENTS_MAX: usize = 4096;
/// Tags of sections.
const SUMMARY: u8 = tag::SUMMARY;
const EVENTS: u8 = tag::EVENTS;
const TIMES: u8 = 9;
/// Facts: the last cut, and the database that is selected there.
const LAST_CUT: &str = "last_cut";
const LAST_CUT_DB: &str = "last_cut_db";
/// The flag of a summary that names not all events.
const MORE_EVENTS: u64 = 1;

/// A moment of arrival: all bytes before the position had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub position: u64,
    /// Microseconds since 1970, as the receiver's clock was: it may have been set back.
    pub arrived_us: i64,
}

/// Adds a mark of time. One that comes so soon that the mark before the last is as good moves the last one.
pub fn add_mark(marks: &mut Vec<Mark>, position: u64, arrived_us: i64) {
    let mark = Mark {
        position,
        arrived_us,
    };
    let is_soon = |before: &Mark| (0..MARK_EVERY_US).contains(&(arrived_us - before.arrived_us));
    match marks.as_mut_slice() {
        [.., before, last] if is_soon(before) => *last = mark,
        _ => marks.push(mark),
    }
}

/// A place where a history may be cut: behind a command, outside of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub position: u64,
    /// The database that is selected there, where it is known.
    pub db: Option<u32>,
}

/// A command that an operator may want to go back before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The kind: [`Effect::FlushAll`], [`Effect::FlushDb`], [`Effect::Swap`] or [`Effect::Function`].
    pub effect: Effect,
    /// The position of its first byte.
    pub position: u64,
    /// The database that was selected.
    pub db: Option<u32>,
}

/// The summary of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The first place where a reading may begin; none where no command begins.
    pub first: Option<Cut>,
    /// The last place where the history may end.
    pub last: Option<Cut>,
    /// Commands that end here.
    pub commands: u64,
    /// Those of them that change keys.
    pub writes: u64,
    /// Whether there are more events than are named.
    pub has_more_events: bool,
}

/// Bytes of a history, to be stored.
pub struct Piece<'a> {
    pub bytes: &'a [u8],
    /// The reader in front of them.
    pub reader: &'a Reader,
    /// Marks of time between their ends, ascending, those before them too.
    pub marks: &'a [Mark],
}

impl Piece<'_> {
    fn from(&self) -> u64 {
        self.reader.position()
    }

    fn to(&self) -> u64 {
        self.from() + self.bytes.len() as u64
    }

    fn identity(&self, keys: &LogKeys) -> Identity {
        Identity {
            hash: *blake3::hash(self.bytes).as_bytes(),
            raw_bytes: self.bytes.len() as u64,
            name: keys.name(segment_of(self.from())),
            from_lsn: self.from(),
            to_lsn: self.to(),
            ..Identity::default()
        }
    }

    /// Reads the commands, and returns what a reader of the object wants to know, and what of it stays plain in an encrypted repository.
    fn sections(&self) -> Result<(Vec<Section>, Map<String, Value>)> {
        let (summary, events) = summarize(self.reader, self.bytes)?;
        let sections = vec![
            section(SUMMARY, summary.encode(self.from())),
            section(EVENTS, encode_events(&events, self.from())),
            section(TIMES, encode_marks(self.marks, self.from(), self.to())),
        ];
        let mut facts = Map::new();
        if let Some(cut) = summary.last {
            facts.insert(LAST_CUT.to_owned(), cut.position.into());
            facts.insert(LAST_CUT_DB.to_owned(), cut.db.into());
        }
        Ok((sections, facts))
    }
}

fn section(tag: u8, bytes: Vec<u8>) -> Section {
    Section {
        tag,
        bytes,
        compress: tag != SUMMARY,
    }
}

fn summarize(reader: &Reader, bytes: &[u8]) -> Result<(Summary, Vec<Event>)> {
    let mut reader = reader.clone();
    let begins = reader.is_at_cut().then(|| Cut {
        position: reader.position(),
        db: reader.db(),
    });
    let mut summary = Summary {
        first: begins,
        last: begins,
        commands: 0,
        writes: 0,
        has_more_events: false,
    };
    let mut events = Vec::new();
    let mut db = reader.db();
    reader.read(bytes, &mut |command| {
        summary.commands += 1;
        summary.writes += u64::from(command.effect == Effect::Write);
        if !command.is_in_transaction {
            let cut = Cut {
                position: command.end,
                db: command.db,
            };
            summary.first.get_or_insert(cut);
            summary.last = Some(cut);
        }
        if let Some(event) = event_of(command, db) {
            match events.len() < EVENTS_MAX {
                true => events.push(event),
                false => summary.has_more_events = true,
            }
        }
        db = command.db;
        Ok(())
    })?;
    Ok((summary, events))
}

impl Summary {
    fn encode(&self, from: u64) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, if self.has_more_events { MORE_EVENTS } else { 0 });
        for cut in [self.first, self.last] {
            varint::put(&mut out, cut.map_or(0, |cut| cut.position - from + 1));
            varint::put(&mut out, database(cut.and_then(|cut| cut.db)));
        }
        varint::put(&mut out, self.commands);
        varint::put(&mut out, self.writes);
        out
    }

    fn decode(bytes: &[u8], (from, to): (u64, u64)) -> Result<Summary> {
        let mut r = varint::Reader::new(bytes, "summary of a log");
        let flags = r.varint()?;
        let mut cut = || -> Result<Option<Cut>> {
            let (position, db) = (r.varint()?, r.varint()?);
            let Some(offset) = position.checked_sub(1) else {
                return Ok(None);
            };
            let position = from.checked_add(offset).filter(|position| *position <= to);
            Ok(Some(Cut {
                position: position.ok_or_else(|| r.damaged())?,
                db: of_database(db),
            }))
        };
        let (first, last) = (cut()?, cut()?);
        Ok(Summary {
            first,
            last,
            commands: r.varint()?,
            writes: r.varint()?,
            has_more_events: flags & MORE_EVENTS != 0,
        })
    }
}

fn database(db: Option<u32>) -> u64 {
    db.map_or(0, |db| u64::from(db) + 1)
}

fn of_database(number: u64) -> Option<u32> {
    u32::try_from(number.checked_sub(1)?).ok()
}

/// The event that a command is, in front of which this database was selected.
fn event_of(command: &Command<'_>, db: Option<u32>) -> Option<Event> {
    event_number(command.effect).map(|_| Event {
        effect: command.effect,
        position: command.start,
        db,
    })
}

/// Pure: adds the events behind those that an object names, from its bytes behind the first place where a reading may begin.
fn add_events(events: &mut Vec<Event>, first: Cut, bytes: &[u8]) -> Result<()> {
    let named = events.last().map(|event| event.position);
    let mut db = first.db;
    Reader::new(first.position, first.db).read(bytes, &mut |command| {
        let event = event_of(command, db);
        events.extend(event.filter(|event| named.is_none_or(|named| named < event.position)));
        db = command.db;
        Ok(())
    })
}

fn event_number(effect: Effect) -> Option<u64> {
    match effect {
        Effect::FlushAll => Some(1),
        Effect::FlushDb => Some(2),
        Effect::Swap => Some(3),
        Effect::Function => Some(4),
        Effect::None | Effect::Select | Effect::Transaction | Effect::Write => None,
    }
}

fn encode_events(events: &[Event], from: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for event in events {
        let Some(number) = event_number(event.effect) else {
            continue;
        };
        varint::put(&mut out, number);
        // It may begin in an earlier object.
        varint::put(&mut out, from.saturating_sub(event.position));
        varint::put(&mut out, event.position.saturating_sub(from));
        varint::put(&mut out, database(event.db));
    }
    out
}

fn decode_events(bytes: &[u8], from: u64) -> Result<Vec<Event>> {
    let mut r = varint::Reader::new(bytes, "events of a log");
    let mut events = Vec::new();
    while r.remaining() > 0 {
        let number = r.varint()?;
        let (before, behind, db) = (r.varint()?, r.varint()?, r.varint()?);
        let position = from.checked_sub(before).and_then(|p| p.checked_add(behind));
        let position = position.ok_or_else(|| r.damaged())?;
        let known = [
            Effect::FlushAll,
            Effect::FlushDb,
            Effect::Swap,
            Effect::Function,
        ];
        let known = known.into_iter().find(|e| event_number(*e) == Some(number));
        // A later version may know more kinds.
        events.extend(known.map(|effect| Event {
            effect,
            position,
            db: of_database(db),
        }));
    }
    Ok(events)
}

fn encode_marks(marks: &[Mark], from: u64, to: u64) -> Vec<u8> {
    let begin = marks.partition_point(|mark| mark.position <= from);
    let marks = marks.get(begin..).unwrap_or_default();
    let end = marks.partition_point(|mark| mark.position < to);
    // The mark at or behind the end says when the last byte had come.
    let last = marks.get(end).map(|mark| Mark {
        position: to,
        ..*mark
    });
    let marks = marks.get(..end).unwrap_or_default();
    let step = marks.len() / MARKS_MAX + 1;
    let mut out = Vec::new();
    let (mut position, mut time) = (from, 0);
    for mark in marks
        .iter()
        .skip(step - 1)
        .step_by(step)
        .copied()
        .chain(last)
    {
        varint::put(&mut out, mark.position - position);
        varint::put_zigzag(&mut out, mark.arrived_us.wrapping_sub(time));
        (position, time) = (mark.position, mark.arrived_us);
    }
    out
}

fn decode_marks(bytes: &[u8], (from, to): (u64, u64)) -> Result<Vec<Mark>> {
    let mut r = varint::Reader::new(bytes, "times of a log");
    let mut marks: Vec<Mark> = Vec::new();
    let (mut position, mut time) = (from, 0_i64);
    while r.remaining() > 0 {
        let (behind, later) = (r.varint()?, r.zigzag()?);
        let next = position.checked_add(behind).filter(|next| *next <= to);
        position = next.ok_or_else(|| r.damaged())?;
        time = time.checked_add(later).ok_or_else(|| r.damaged())?;
        if behind == 0 {
            return Err(r.damaged());
        }
        marks.push(Mark {
            position,
            arrived_us: time,
        });
    }
    Ok(marks)
}

/// Stores a piece under a key of its history; `Exists` means that the same bytes were there, and are durable.
///
/// # Errors
/// `Conflict` when other bytes have the key; `Damaged` for bytes that are no commands, and when the stored copy cannot be compared; those of the store.
pub fn put(
    repository: &Repository,
    keys: &LogKeys,
    key: &Key,
    piece: &Piece<'_>,
) -> Result<Published> {
    let identity = piece.identity(keys);
    if let Some(published) = compare_identity(repository, key, &identity)? {
        return Ok(published);
    }
    let (sections, facts) = piece.sections()?;
    let failed = |e| Error::from_io(format!("write object \"{key}\""), e);
    let object = repository.store().create(key)?;
    let mut writer = ContainerWriter::new(object, Kind::Log, Codec::Lz4).map_err(failed)?;
    writer.write(piece.bytes).map_err(failed)?;
    let mut object = writer.complete(&identity, sections).map_err(failed)?;
    object.describe(facts, None);
    if object.publish()? == Published::Created {
        return Ok(Published::Created);
    }
    compare_identity(repository, key, &identity)?
        .ok_or_else(|| err!(Unreachable, "object \"{key}\" came and went"))
}

/// Whether a piece is stored under a key, and durable; none where nothing is.
///
/// # Errors
/// As [`put`].
pub fn compare(
    repository: &Repository,
    keys: &LogKeys,
    key: &Key,
    piece: &Piece<'_>,
) -> Result<Option<Published>> {
    compare_identity(repository, key, &piece.identity(keys))
}

fn compare_identity(
    repository: &Repository,
    key: &Key,
    offered: &Identity,
) -> Result<Option<Published>> {
    let Some(object) = repository.store().open(key)? else {
        return Ok(None);
    };
    let damaged = |e: Error| match e.code() {
        Code::Damaged => err!(Damaged, "the copy stored under \"{key}\" is damaged").source(e),
        _ => e,
    };
    let stored = Container::open(object)
        .and_then(|c| c.check_stored().map(|()| c))
        .map_err(damaged)?;
    if stored.kind() != Kind::Log || !stored.is(offered) {
        return Err(err!(
            Conflict,
            "\"{key}\" is already stored with other content"
        )
        .hint("Nothing was overwritten. Likely two servers go on with the same history: a clone, or one that was set back. Stop the receiver of the wrong one."));
    }
    stored.object().settle()?;
    Ok(Some(Published::Exists))
}

/// An object that is read.
pub struct Stored {
    container: Container,
    /// Its first position.
    pub from: u64,
    /// Behind its last byte.
    pub to: u64,
}

impl Stored {
    /// Opens an object of a history; none where there is none. Without the key its bytes cannot be read, but what is asked of it before.
    ///
    /// # Errors
    /// `Damaged` when it is not what its key says; those of the store.
    pub fn open(repository: &Repository, key: &Key) -> Result<Option<Stored>> {
        let damaged = |e: Error| e.context(format!("read object \"{key}\""));
        let container = Container::stored(repository.store(), key).map_err(damaged)?;
        let Some(container) = container else {
            return Ok(None);
        };
        log_keys::check(&container, key).map_err(damaged)?;
        let (from, to) = (container.identity().from_lsn, container.identity().to_lsn);
        Ok(Some(Stored {
            container,
            from,
            to,
        }))
    }

    /// The summary.
    ///
    /// # Errors
    /// `Damaged`; `Key` where it cannot be read; those of the store.
    pub fn summary(&self) -> Result<Summary> {
        let bytes = self.container.section(SUMMARY)?;
        let bytes = bytes.ok_or_else(|| err!(Damaged, "an object of the log has no summary"))?;
        Summary::decode(&bytes, (self.from, self.to))
    }

    /// The last place where the history may end; known without the key, too.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    fn last_cut(&self) -> Result<Option<Cut>> {
        let Some(opaque) = self.container.object().opaque() else {
            return Ok(self.summary()?.last);
        };
        let position = opaque.facts().get(LAST_CUT).and_then(Value::as_u64);
        let db = opaque.facts().get(LAST_CUT_DB).and_then(Value::as_u64);
        let is_inside = |position: &u64| (self.from..=self.to).contains(position);
        Ok(position.filter(is_inside).map(|position| Cut {
            position,
            db: db.and_then(|db| u32::try_from(db).ok()),
        }))
    }

    /// As `last_cut`, once the object is found whole, for which no key is needed.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    pub fn whole_cut(&self) -> Result<Option<Cut>> {
        self.container.check_stored()?;
        self.last_cut()
    }

    /// When its bytes had arrived.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    pub fn marks(&self) -> Result<Vec<Mark>> {
        let bytes = self.container.section(TIMES)?.unwrap_or_default();
        decode_marks(&bytes, (self.from, self.to))
    }

    /// Its events. Its bytes are read where there are more than it names.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    pub fn events(&self) -> Result<Vec<Event>> {
        let bytes = self.container.section(EVENTS)?.unwrap_or_default();
        let mut events = decode_events(&bytes, self.from)?;
        let summary = self.summary()?;
        if let Some(first) = summary.first.filter(|_| summary.has_more_events) {
            let bytes = self.bytes()?;
            let begin = usize::try_from(first.position - self.from).unwrap_or(usize::MAX);
            add_events(&mut events, first, bytes.get(begin..).unwrap_or_default())?;
        }
        Ok(events)
    }

    /// The bytes, checked against their hash.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        self.container.read_small(SEGMENT_BYTES)
    }
}

/// The increments of a segment: their first positions, and those behind their last bytes, ascending.
///
/// # Errors
/// Those of the store.
pub fn increments(
    repository: &Repository,
    keys: &LogKeys,
    segment: u64,
) -> Result<Vec<(u64, u64)>> {
    let listed = repository.store().list(&keys.increments(segment))?;
    let mut ranges: Vec<(u64, u64)> = listed
        .iter()
        .filter(|listed| !listed.is_prefix)
        .filter_map(|listed| parse_range(&listed.name))
        .filter(|(from, to)| {
            segment_of(*from) == segment && *to <= segment.saturating_add(SEGMENT_BYTES)
        })
        .collect();
    ranges.sort_unstable();
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::resp;

    #[test]
    fn events_behind_those_that_an_object_names_are_read_from_its_bytes() {
        let mut bytes = resp::command(&[b"SELECT", b"3"]);
        for _ in 0..EVENTS_MAX + 2 {
            bytes.extend(resp::command(&[b"FLUSHDB"]));
            bytes.extend(resp::command(&[b"SET", b"key", b"value"]));
        }
        let (summary, mut events) = summarize(&Reader::new(70, None), &bytes).unwrap();
        assert!(summary.has_more_events);
        assert_eq!(events.len(), EVENTS_MAX);
        add_events(&mut events, summary.first.unwrap(), &bytes).unwrap();
        assert_eq!(events.len(), EVENTS_MAX + 2);
        assert!(events.is_sorted_by_key(|event| event.position));
        let last = bytes.len() as u64 + 70
            - resp::command(&[b"FLUSHDB"]).len() as u64
            - resp::command(&[b"SET", b"key", b"value"]).len() as u64;
        assert_eq!(events.last().map(|event| event.position), Some(last));
        assert!(events.iter().all(|event| event.db == Some(3)));
    }

    #[test]
    fn marks_tell_within_a_millisecond_when_bytes_came_also_after_a_pause_and_a_clock_that_was_set_back()
     {
        let mut marks = Vec::new();
        let arrivals = [
            (10, 0),
            (20, 400),
            (30, 900),
            (40, 5_000_000),
            (50, 5_000_400),
            (60, 5_000_900),
            (70, 5_001_100),
            (80, 100),
        ];
        for (position, at) in arrivals {
            add_mark(&mut marks, position, at);
        }
        let kept: Vec<u64> = marks.iter().map(|mark| mark.position).collect();
        assert_eq!(kept, [10, 30, 40, 60, 70, 80]);
        for (position, at) in arrivals {
            let known = marks.iter().find(|mark| mark.position >= position).unwrap();
            assert!((known.arrived_us - at).abs() < MARK_EVERY_US, "{position}");
        }
        let bytes = encode_marks(&marks, 15, 75);
        let read = decode_marks(&bytes, (15, 75)).unwrap();
        let read: Vec<(u64, i64)> = read.iter().map(|m| (m.position, m.arrived_us)).collect();
        let expected = [
            (30, 900),
            (40, 5_000_000),
            (60, 5_000_900),
            (70, 5_001_100),
            (75, 100),
        ];
        assert_eq!(read, expected);
    }
}
