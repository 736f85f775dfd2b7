//! The log of a server at a glance: its histories, what is stored of each, gaps, and the commands that somebody may want to go back before.

use serde::Serialize;

use super::command::Effect;
use super::history::{Beginning, History, Parent};
use super::log::Event;
use super::walk::{self, Seen};
use crate::error::{Code, Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::log_keys::{self, LogKeys, SEGMENT_BYTES, segment_of};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;

/// Bytes of a history without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The first position.
    pub from: u64,
    /// Behind the last byte.
    pub to: u64,
    /// When the first bytes had arrived; none where it cannot be read.
    pub from_time: Option<TimestampTz>,
    /// When all had arrived; none where it cannot be read.
    pub to_time: Option<TimestampTz>,
}

/// A command that somebody may want to go back before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notable {
    /// `FLUSHALL`, `FLUSHDB`, `SWAPDB` or `FUNCTION`.
    pub command: &'static str,
    /// The position of its first byte.
    pub position: u64,
    /// When its last byte had arrived.
    pub time: Option<TimestampTz>,
    /// The database that was selected.
    pub db: Option<u32>,
}

/// A history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its name.
    pub replid: String,
    /// The server that sent its first bytes; none where it cannot be read.
    pub server: Option<History>,
    /// The histories that it goes on from.
    pub parents: Vec<Parent>,
    /// The bytes that are stored, ascending.
    pub ranges: Vec<Range>,
    /// The places where reception began; those with a reason end a gap.
    pub beginnings: Vec<Beginning>,
    /// The commands, ascending, where they were asked for.
    pub notable: Vec<Notable>,
}

/// Hears what is not known because of damage. Its error ends the look.
pub type Passes<'p> = &'p dyn Fn(Error) -> Result<()>;

/// Looks at all histories of a server, the one whose bytes arrived first at the front. `with_commands` reads the index of each object. `passes` hears
/// of each object of the log that is damaged.
///
/// # Errors
/// Those of `passes`; `Damaged` where it is not known which histories there are; those of the store.
pub fn read(
    repository: &Repository,
    scope: &Scope,
    with_commands: bool,
    passes: Passes<'_>,
) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (replid, parents) in walk::histories(repository, scope)? {
        let keys = LogKeys::new(scope, &replid);
        let look = Look {
            repository,
            keys: &keys,
            replid: &replid,
            passes,
        };
        let ranges = walk::ranges(repository, &keys)?;
        let notable = match with_commands {
            true => look.notable(&ranges)?,
            false => Vec::new(),
        };
        let ranges: Result<Vec<Range>> =
            ranges.into_iter().map(|range| look.timed(range)).collect();
        let server = look.readable("the server", History::read(repository, &keys))?;
        let beginnings = Beginning::of(repository, &keys).map(Some);
        let beginnings = look.readable("each beginning", beginnings)?;
        lines.push(Line {
            server,
            parents,
            ranges: ranges?,
            beginnings: beginnings.unwrap_or_default(),
            notable,
            replid,
        });
    }
    lines.sort_by_key(|line| line.ranges.first().and_then(|range| range.from_time));
    Ok(lines)
}

/// A look at one history.
struct Look<'l> {
    repository: &'l Repository,
    keys: &'l LogKeys,
    replid: &'l str,
    passes: Passes<'l>,
}

impl Look<'_> {
    /// A fact; none where the key is missing, and where its object is damaged.
    fn readable<T>(&self, what: &str, read: Result<Option<T>>) -> Result<Option<T>> {
        match read {
            Err(e) if e.code() == Code::Key => Ok(None),
            other => Ok(self.undamaged(what, other)?.flatten()),
        }
    }

    /// A fact; none where its object is damaged.
    fn undamaged<T>(&self, what: &str, read: Result<T>) -> Result<Option<T>> {
        match read {
            Err(e) if e.is_lost() => {
                let text = format!("{what} of history {} is not known", self.replid);
                (self.passes)(e.context(text)).map(|()| None)
            }
            other => other.map(Some),
        }
    }

    /// The times of the first and the last byte of a range.
    fn timed(&self, (from, to): (u64, u64)) -> Result<Range> {
        let time = |position: u64, is_first: bool| -> Result<Option<TimestampTz>> {
            let what = format!("the time of the bytes at offset {position}");
            let seen = walk::object_at(self.repository, self.keys, position);
            let seen = self.readable(&what, seen)?;
            let mark = seen.and_then(|seen| match is_first {
                true => seen.marks.first().copied(),
                false => seen.marks.last().copied(),
            });
            Ok(mark.and_then(|mark| TimestampTz::from_unix_micros(mark.arrived_us)))
        };
        Ok(Range {
            from,
            to,
            from_time: time(from, true)?,
            to_time: time(to.saturating_sub(1), false)?,
        })
    }

    fn notable(&self, ranges: &[(u64, u64)]) -> Result<Vec<Notable>> {
        let mut found: Vec<Notable> = Vec::new();
        for (from, to) in ranges {
            let mut reached = *from;
            while reached < *to {
                let behind = segment_of(reached).saturating_add(SEGMENT_BYTES);
                let last = behind.min(*to);
                let what = format!("each command between offsets {reached} and {last}");
                let seen = walk::events_at(self.repository, self.keys, reached);
                reached = match self.undamaged(&what, seen)? {
                    Some(Some((seen, events))) => {
                        note(&mut found, &seen, events);
                        seen.to
                    }
                    Some(None) => break,
                    None => behind,
                };
            }
        }
        Ok(found)
    }
}

/// Adds the commands of an object that are not there yet.
fn note(found: &mut Vec<Notable>, seen: &Seen, events: Vec<Event>) {
    for event in events {
        let last = found.last();
        let is_new = last.is_none_or(|last| last.position < event.position);
        if is_new && let Some(command) = name(event) {
            let behind = seen.marks.iter().find(|m| m.position > event.position);
            found.push(Notable {
                command,
                position: event.position,
                time: behind.and_then(|m| TimestampTz::from_unix_micros(m.arrived_us)),
                db: event.db,
            });
        }
    }
}

fn name(event: Event) -> Option<&'static str> {
    match event.effect {
        Effect::FlushAll => Some("FLUSHALL"),
        Effect::FlushDb => Some("FLUSHDB"),
        Effect::Swap => Some("SWAPDB"),
        Effect::Function => Some("FUNCTION"),
        Effect::None | Effect::Select | Effect::Transaction | Effect::Write => None,
    }
}

/// The value of `--target-offset` for a position.
pub fn target(replid: &str, position: u64) -> String {
    format!("{replid}:{position}")
}

/// Reads it.
pub fn parse_target(text: &str) -> Option<(String, u64)> {
    let (replid, position) = text.split_once(':')?;
    let is_number = !position.is_empty() && position.bytes().all(|b| b.is_ascii_digit());
    let position = position.parse().ok().filter(|_| is_number)?;
    log_keys::is_replid(replid).then(|| (replid.to_owned(), position))
}
