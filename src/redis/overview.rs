//! The log of a server at a glance: its histories, what is stored of each, gaps, and the commands that somebody may want to go back before.

use serde::Serialize;

use super::command::Effect;
use super::history::{Beginning, History, Parent};
use super::log::Event;
use super::walk;
use crate::error::{Code, Result};
use crate::pg::time::TimestampTz;
use crate::repo::log_keys::{self, LogKeys};
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

/// Looks at all histories of a server, the one whose bytes arrived first at the front. `with_commands` reads the index of each object.
///
/// # Errors
/// `Damaged`; those of the store.
pub fn read(repository: &Repository, scope: &Scope, with_commands: bool) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (replid, parents) in walk::histories(repository, scope)? {
        let keys = LogKeys::new(scope, &replid);
        let ranges = walk::ranges(repository, &keys)?;
        let notable = match with_commands {
            true => notable(repository, &keys, &ranges)?,
            false => Vec::new(),
        };
        let ranges: Result<Vec<Range>> = ranges
            .into_iter()
            .map(|range| timed(repository, &keys, range))
            .collect();
        lines.push(Line {
            server: readable(History::read(repository, &keys))?.flatten(),
            parents,
            ranges: ranges?,
            beginnings: readable(Beginning::of(repository, &keys))?.unwrap_or_default(),
            notable,
            replid,
        });
    }
    lines.sort_by_key(|line| line.ranges.first().and_then(|range| range.from_time));
    Ok(lines)
}

/// None where the key is missing.
fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(e) if e.code() == Code::Key => Ok(None),
        other => other.map(Some),
    }
}

fn timed(repository: &Repository, keys: &LogKeys, (from, to): (u64, u64)) -> Result<Range> {
    let time = |position: u64, is_first: bool| -> Result<Option<TimestampTz>> {
        let seen = readable(walk::object_at(repository, keys, position))?.flatten();
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

fn notable(repository: &Repository, keys: &LogKeys, ranges: &[(u64, u64)]) -> Result<Vec<Notable>> {
    let mut found: Vec<Notable> = Vec::new();
    for (from, to) in ranges {
        let mut reached = *from;
        while reached < *to {
            let Some((seen, events)) = walk::events_at(repository, keys, reached)? else {
                break;
            };
            for event in events {
                let is_new = found
                    .last()
                    .is_none_or(|last| last.position < event.position);
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
            reached = seen.to;
        }
    }
    Ok(found)
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
