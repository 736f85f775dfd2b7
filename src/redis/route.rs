//! The way from a data set to a later moment: which bytes of which histories follow it.

use super::command::Reader;
use super::history::History;
use super::log::{LogKeys, Mark, SEGMENT_BYTES, Stored, segment_of};
use super::walk;
use crate::err;
use crate::error::Result;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;

/// The moment that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The last one at or before a time: microseconds since 1970, by the receiver's clock.
    Time(i64),
    /// The last one at or before a position.
    Position(u64),
    /// The last one that is stored.
    End,
}

/// Bytes of one history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The history.
    pub replid: String,
    /// Its first position.
    pub from: u64,
    /// Behind its last byte.
    pub to: u64,
}

/// The way to a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The bytes, in their order.
    pub legs: Vec<Leg>,
    /// When the last bytes of the way had arrived, where a mark tells; microseconds since 1970.
    pub arrived_us: Option<i64>,
}

impl Route {
    /// The history and the position at its end.
    pub fn end(&self) -> Option<(&str, u64)> {
        self.legs.last().map(|leg| (leg.replid.as_str(), leg.to))
    }

    /// Bytes on the way.
    pub fn bytes(&self) -> u64 {
        self.legs.iter().map(|leg| leg.to - leg.from).sum()
    }
}

/// Finds the way on from a position of a history.
///
/// # Errors
/// `OutOfReach` when the target lies behind what is stored; `Refused` where two histories go on from one; `Damaged`; those
/// of the store.
pub fn plan(
    repository: &Repository,
    scope: &Scope,
    (replid, offset): (&str, u64),
    target: Target,
) -> Result<Route> {
    let histories = walk::histories(repository, scope)?;
    let mut search = Search {
        repository,
        scope,
        histories: &histories,
        target,
        legs: Vec::new(),
        last: None,
    };
    search.go(replid, offset)?;
    let arrived_us = search.last.map(|mark| mark.arrived_us);
    Ok(Route {
        legs: search.legs,
        arrived_us,
    })
}

struct Search<'a> {
    repository: &'a Repository,
    scope: &'a Scope,
    histories: &'a [(String, History)],
    target: Target,
    legs: Vec<Leg>,
    /// The last mark of time on the way.
    last: Option<Mark>,
}

impl Search<'_> {
    fn go(&mut self, replid: &str, offset: u64) -> Result<()> {
        let mut replid = replid.to_owned();
        let mut from = offset;
        loop {
            let next = self.child(&replid, from)?;
            let limit = next.as_ref().map(|(_, fork)| *fork);
            let (reached, is_end) = self.walk(&replid, from, limit)?;
            let goes_on = !is_end && limit == Some(reached);
            let to = match (is_end || !goes_on, &next) {
                (true, _) => self.cut(&replid, from, reached)?,
                (false, _) => reached,
            };
            self.legs.push(Leg {
                replid: replid.clone(),
                from,
                to,
            });
            match next {
                Some((child, fork)) if goes_on => (replid, from) = (child, fork),
                _ if is_end || self.target == Target::End => return Ok(()),
                _ => return Err(self.too_late(&replid, reached)),
            }
        }
    }

    /// The history that goes on from this one behind a position.
    fn child(&self, replid: &str, from: u64) -> Result<Option<(String, u64)>> {
        let mut children = self.histories.iter().filter_map(|(id, history)| {
            let fork = history.fork.filter(|fork| *fork >= from)?;
            (history.parent.as_deref() == Some(replid)).then(|| (id.clone(), fork))
        });
        match (children.next(), children.next()) {
            (Some((one, _)), Some((two, _))) => Err(err!(
                Refused,
                "two histories go on from {replid}: {one} and {two}"
            )
            .hint("Nothing was written.\nRestore a backup of the one that is wanted: --backup ID")),
            (child, _) => Ok(child),
        }
    }

    /// Goes on in a history up to the target or to a limit. Returns how far, and whether the target is there.
    fn walk(&mut self, replid: &str, from: u64, limit: Option<u64>) -> Result<(u64, bool)> {
        let keys = LogKeys::new(self.scope, replid);
        let mut reached = from;
        loop {
            if let Target::Position(wanted) = self.target
                && reached >= wanted
            {
                return Ok((wanted.max(from), true));
            }
            if limit.is_some_and(|limit| reached >= limit) {
                return Ok((limit.unwrap_or(reached), false));
            }
            let Some(object) = walk::object_at(self.repository, &keys, reached)? else {
                return Ok((reached, false));
            };
            for mark in object.marks()? {
                if let Target::Time(wanted) = self.target
                    && mark.arrived_us > wanted
                {
                    return Ok((reached, true));
                }
                if limit.is_none_or(|limit| mark.position <= limit) {
                    reached = reached.max(mark.position);
                    self.last = Some(mark);
                }
            }
            reached = reached.max(object.to);
            if let Some(limit) = limit {
                reached = reached.min(limit);
            }
        }
    }

    /// The last place at or before a position where the history may end.
    fn cut(&self, replid: &str, from: u64, limit: u64) -> Result<u64> {
        let keys = LogKeys::new(self.scope, replid);
        let mut behind = limit;
        while behind > from {
            let Some(object) = walk::object_at(self.repository, &keys, behind - 1)? else {
                return Err(lost(replid, behind));
            };
            if let Some(first) = object.summary.first.filter(|cut| cut.position <= limit) {
                return Ok(last_cut(&object, first.position, limit)?.max(from));
            }
            behind = object.from.min(behind - 1);
        }
        Ok(from)
    }

    fn too_late(&self, replid: &str, reached: u64) -> crate::error::Error {
        let until = self.last.and_then(|mark| {
            crate::pg::time::TimestampTz::from_unix_micros(mark.arrived_us).map(|t| t.to_string())
        });
        let until = until.map_or(String::new(), |time| format!(", of {time}"));
        err!(
            OutOfReach,
            "the target lies behind all that is stored: history {replid} ends at position {reached}{until}"
        )
        .hint("Nothing was written.\nA receiver that runs stores more within a minute: pitr redis receive NAME. --latest takes all there is.")
    }
}

/// Reads an object from one of its cuts on, and returns its last cut up to a limit.
fn last_cut(object: &Stored, first: u64, limit: u64) -> Result<u64> {
    let mut reader = Reader::new(first, None);
    let mut position = object.from;
    object.read(&mut |bytes| {
        let end = position + bytes.len() as u64;
        let from = first.clamp(position, end) - position;
        let to = limit.clamp(position, end) - position;
        let (from, to) = (
            usize::try_from(from).unwrap_or(0),
            usize::try_from(to).unwrap_or(0),
        );
        position = end;
        reader.read(bytes.get(from..to).unwrap_or_default(), &mut |_| Ok(()))
    })?;
    Ok(reader.cut())
}

/// Reads the bytes of a way.
///
/// # Errors
/// `Damaged` when some are gone or wrong; those of the store and of `out`.
pub fn read(
    repository: &Repository,
    scope: &Scope,
    route: &Route,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    for leg in &route.legs {
        let keys = LogKeys::new(scope, &leg.replid);
        let mut reached = leg.from;
        while reached < leg.to {
            let Some(object) = walk::object_at(repository, &keys, reached)? else {
                return Err(lost(&leg.replid, reached));
            };
            let mut position = object.from;
            let (from, to) = (reached, leg.to.min(object.to));
            object.read(&mut |bytes| {
                let end = position + bytes.len() as u64;
                let begin = from.clamp(position, end) - position;
                let stop = to.clamp(position, end) - position;
                position = end;
                let range = usize::try_from(begin).unwrap_or(0)..usize::try_from(stop).unwrap_or(0);
                match bytes.get(range).unwrap_or_default() {
                    [] => Ok(()),
                    part => out(part),
                }
            })?;
            reached = to;
        }
    }
    Ok(())
}

fn lost(replid: &str, position: u64) -> crate::error::Error {
    err!(
        Damaged,
        "the log of history {replid} lacks what follows position {position}, in segment {:016X}",
        segment_of(position) / SEGMENT_BYTES
    )
}
