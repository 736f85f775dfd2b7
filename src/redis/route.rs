//! The way from a data set to a later moment: which bytes of which histories follow it.

use std::sync::mpsc;

use super::command::Reader;
use super::directory::Take;
use super::history::{Beginning, Lineage, Parent, descends, leaving};
use super::log::Mark;
use super::overview;
use super::walk::{self, Known};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::log_keys::{LogKeys, SEGMENT_BYTES, segment_of};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;

/// The moment that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The last one at or before a time: microseconds since 1970, by the receiver's clock.
    Time(i64),
    /// The last one at or before a position.
    Position(u64),
    /// The last one that is stored.
    End,
}

/// The moment, and the history in which it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub moment: Moment,
    /// The history; none: the one that the server went on with.
    pub replid: Option<String>,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// The bytes, in their order.
    pub legs: Vec<Leg>,
    /// When the last bytes of the way had arrived, where a mark tells; microseconds since 1970.
    pub arrived_us: Option<i64>,
    /// When more had arrived, behind a target that is a time.
    pub next_us: Option<i64>,
}

impl Route {
    /// The history and the position at its end.
    pub fn end(&self) -> Option<(&str, u64)> {
        self.legs.last().map(|leg| (leg.replid.as_str(), leg.to))
    }

    /// When the last bytes of the way had arrived, where a mark tells.
    pub fn arrived(&self) -> Option<TimestampTz> {
        self.arrived_us.and_then(TimestampTz::from_unix_micros)
    }

    /// Bytes on the way.
    pub fn bytes(&self) -> u64 {
        self.legs.iter().map(|leg| leg.to - leg.from).sum()
    }
}

/// Finds the way on from a position of a history.
///
/// # Errors
/// `OutOfReach` when the target lies behind what is stored, or in another history; `Refused` where it is not known with which of two histories the server went
/// on; `Damaged`; those of the store.
pub fn plan(
    repository: &Repository,
    scope: &Scope,
    from: (&str, u64),
    target: &Target,
) -> Result<Route> {
    plan_while(repository, scope, from, target, &|| Ok(()))
}

/// As [`plan`], and asks before each object whether it shall go on.
///
/// # Errors
/// Those of [`plan`] and of `check`.
pub fn plan_while(
    repository: &Repository,
    scope: &Scope,
    (replid, offset): (&str, u64),
    target: &Target,
    check: &dyn Fn() -> Result<()>,
) -> Result<Route> {
    let histories = walk::histories(repository, scope)?;
    let chain = match &target.replid {
        Some(wanted) => Some(chain(&histories, (replid, offset), wanted)?),
        None => None,
    };
    let mut search = Search {
        repository,
        scope,
        histories: &histories,
        chain,
        moment: target.moment,
        legs: Vec::new(),
        last: None,
        next_us: None,
        check,
    };
    search.go(replid, offset)?;
    let arrived_us = search.last.map(|mark| mark.arrived_us);
    Ok(Route {
        legs: search.legs,
        arrived_us,
        next_us: search.next_us,
    })
}

/// Pure: whether a place lies in a history that leads to where one was left, and not behind that.
pub fn is_before(histories: &[Known], from: (&str, u64), left: &Parent) -> bool {
    from.1 <= left.fork && leads_to(histories, from, &left.replid).is_ok()
}

/// Pure: requires that a history leads from a place of it to another one, whether or not the bytes between are stored.
///
/// # Errors
/// `OutOfReach`.
pub fn leads_to(histories: &[Known], from: (&str, u64), wanted: &str) -> Result<()> {
    chain(histories, from, wanted).map(|_| ())
}

/// The histories on the way from a position of one to another, each with the position at which the one before it is left, last first.
fn chain(
    histories: &[Known],
    (replid, offset): (&str, u64),
    wanted: &str,
) -> Result<Vec<(String, u64)>> {
    let mut chain: Vec<(String, u64)> = Vec::new();
    let mut seen = Vec::new();
    let mut at = wanted;
    while at != replid {
        let parents = histories.iter().find(|(id, _)| id == at).map(|(_, p)| p);
        let on_way =
            |parent: &str| parent == replid || histories.iter().any(|(id, _)| id == parent);
        let parent = parents.and_then(|p| p.iter().find(|parent| on_way(&parent.replid)));
        let Some(parent) = parent.filter(|_| !seen.contains(&at)) else {
            return Err(err!(
                OutOfReach,
                "history {wanted} does not go on from history {replid} of the backup"
            )
            .hint("Nothing was written.\npitr redis info NAME shows the histories."));
        };
        // A history that is left at or before its own beginning is not on the way: the next one has bytes of the one before alone.
        if chain.last().is_none_or(|(_, left)| *left > parent.fork) {
            chain.push((at.to_owned(), parent.fork));
        }
        seen.push(at);
        at = &parent.replid;
    }
    match chain.last() {
        Some((_, fork)) if *fork < offset => Err(err!(
            OutOfReach,
            "history {wanted} left history {replid} at position {fork}, before the backup of position {offset}"
        )
        .hint("Nothing was written.\nAn older backup, or one of that history, leads there.")),
        _ => Ok(chain),
    }
}

/// A history that left another one, at this position, and its first mark behind that.
type Leaves = (String, u64, Mark);

struct Search<'a> {
    repository: &'a Repository,
    scope: &'a Scope,
    histories: &'a [Known],
    /// The histories that follow, last first, where one is wanted.
    chain: Option<Vec<(String, u64)>>,
    moment: Moment,
    legs: Vec<Leg>,
    /// The last mark of time on the way.
    last: Option<Mark>,
    /// When the mark behind a target that is a time had arrived.
    next_us: Option<i64>,
    /// Fails when the search shall end.
    check: &'a dyn Fn() -> Result<()>,
}

/// How far a history was followed.
enum Reached {
    /// To the target.
    Target(u64),
    /// To where the next history goes on.
    Fork(u64),
    /// To the end of what is stored, or to a gap.
    End(u64),
}

impl<'a> Search<'a> {
    fn go(&mut self, replid: &str, offset: u64) -> Result<()> {
        let mut replid = replid.to_owned();
        let mut from = offset;
        loop {
            let next = self.next(&replid, from)?;
            let reached = self.walk(&replid, from, next.as_ref())?;
            let to = match reached {
                Reached::Fork(position) => position,
                Reached::Target(position) | Reached::End(position) => {
                    self.cut(&replid, from, position)?
                }
            };
            if to < from {
                return Err(err!(
                    Internal,
                    "the way through history {replid} leads from position {from} back to {to}"
                ));
            }
            self.legs.push(Leg {
                replid: replid.clone(),
                from,
                to,
            });
            match (reached, next) {
                (Reached::Fork(position), Some((child, _))) => (replid, from) = (child, position),
                (Reached::Target(_), _) => return Ok(()),
                (Reached::End(position), None)
                    if self.moment == Moment::End && !self.goes_on_behind(&replid, position)? =>
                {
                    return Ok(());
                }
                (Reached::Fork(position) | Reached::End(position), next) => {
                    return Err(self.too_late(&replid, position, next.as_ref()));
                }
            }
        }
    }

    /// The history that goes on from this one behind a position, and where.
    fn next(&mut self, replid: &str, from: u64) -> Result<Option<(String, u64)>> {
        if let Some(chain) = &mut self.chain {
            return Ok(chain.pop());
        }
        let until = match self.moment {
            Moment::Time(wanted) => wanted,
            Moment::Position(_) | Moment::End => i64::MAX,
        };
        let mut found: Option<Leaves> = None;
        let lineage = |(id, parents): &'a Known| (id.as_str(), parents.as_slice());
        let all: Vec<_> = self.histories.iter().map(lineage).collect();
        for (child, fork) in leaving(&all, replid) {
            if fork < from {
                continue;
            }
            let keys = LogKeys::new(self.scope, child);
            let Some((first, _)) = walk::life(self.repository, &keys, fork)? else {
                continue;
            };
            // At that time the server had not gone on with it.
            if first.arrived_us > until {
                continue;
            }
            let candidate = (child.to_owned(), fork, first);
            found = Some(match found {
                None => candidate,
                Some(other) if descends(&all, child, &other.0) => {
                    self.later((replid, &all), other, candidate)?
                }
                Some(other) if descends(&all, &other.0, child) => {
                    self.later((replid, &all), candidate, other)?
                }
                Some((other, ..)) => return Err(undecided(replid, &other, child)),
            });
        }
        let Some((child, fork, first)) = found else {
            return Ok(None);
        };
        let keys = LogKeys::new(self.scope, replid);
        let tail = walk::life(self.repository, &keys, fork)?;
        match tail.is_some_and(|(_, last)| last.arrived_us > first.arrived_us) {
            true => Err(undecided(replid, replid, &child)),
            false => Ok(Some((child, fork))),
        }
    }

    /// Returns the second of two histories that left one, where it goes on from the first, unless what goes on from the first without it arrived later.
    fn later(
        &self,
        (parent, all): (&str, &[Lineage<'a>]),
        first: Leaves,
        second: Leaves,
    ) -> Result<Leaves> {
        for (id, _) in all {
            let is_first = *id == first.0 || descends(all, id, &first.0);
            if !is_first || *id == second.0 || descends(all, id, &second.0) {
                continue;
            }
            let life = walk::life(self.repository, &LogKeys::new(self.scope, id), first.1)?;
            if life.is_some_and(|(_, last)| last.arrived_us > second.2.arrived_us) {
                return Err(undecided(parent, &first.0, &second.0));
            }
        }
        Ok(second)
    }

    /// Whether more is stored of a history, behind bytes that are not.
    fn goes_on_behind(&self, replid: &str, reached: u64) -> Result<bool> {
        let ranges = walk::ranges(self.repository, &LogKeys::new(self.scope, replid))?;
        Ok(ranges.iter().any(|(from, _)| *from > reached))
    }

    /// Goes on in a history up to the target or to where the next one goes on.
    fn walk(&mut self, replid: &str, from: u64, next: Option<&(String, u64)>) -> Result<Reached> {
        let keys = LogKeys::new(self.scope, replid);
        let limit = next.map_or(u64::MAX, |(_, fork)| *fork);
        let mut reached = from;
        loop {
            if let Moment::Position(wanted) = self.moment
                && reached >= wanted
            {
                return Ok(Reached::Target(wanted.max(from)));
            }
            if reached >= limit {
                return Ok(Reached::Fork(limit));
            }
            (self.check)()?;
            let Some(object) = walk::object_at(self.repository, &keys, reached)? else {
                return self.goes_on_in(next, reached);
            };
            for mark in object.marks.iter().filter(|mark| mark.position > reached) {
                if let Moment::Time(wanted) = self.moment
                    && mark.arrived_us > wanted
                {
                    self.next_us = Some(mark.arrived_us);
                    return Ok(Reached::Target(self.seen(from, limit)));
                }
                if mark.position <= limit {
                    self.last = Some(*mark);
                }
            }
            reached = object.to.min(limit);
        }
    }

    /// The position of the last mark, in the history that is walked along.
    fn seen(&self, from: u64, limit: u64) -> u64 {
        self.last
            .map_or(from, |mark| mark.position.clamp(from, limit))
    }

    /// The next step where nothing more is stored of a history: the next one may have the bytes of both.
    fn goes_on_in(&self, next: Option<&(String, u64)>, reached: u64) -> Result<Reached> {
        let Some((child, _)) = next else {
            return Ok(Reached::End(reached));
        };
        let keys = LogKeys::new(self.scope, child);
        Ok(match walk::object_at(self.repository, &keys, reached)? {
            Some(_) => Reached::Fork(reached),
            None => Reached::End(reached),
        })
    }

    /// The last place at or before a position where the history may end.
    fn cut(&self, replid: &str, from: u64, limit: u64) -> Result<u64> {
        let keys = LogKeys::new(self.scope, replid);
        let mut behind = limit;
        while behind > from {
            (self.check)()?;
            let found = walk::bytes_at(self.repository, &keys, behind - 1)?;
            let (object, bytes) = found.ok_or_else(|| lost(replid, behind))?;
            if let Some(first) = object.first_cut.filter(|cut| cut.position <= limit) {
                let cut = last_cut((object.from, &bytes), first.position, limit)?;
                return Ok(cut.max(from));
            }
            behind = object.from.min(behind - 1);
        }
        Ok(from)
    }

    /// Why the bytes before a place are missing, where that is known.
    fn reason(&self, keys: &LogKeys, position: u64) -> String {
        let begun = Beginning::of(self.repository, keys).unwrap_or_default();
        let own = begun.into_iter().find(|b| b.position == position);
        let why = own.and_then(|beginning| beginning.reason);
        why.map_or(String::new(), |why| format!(" ({why})"))
    }

    fn too_late(&self, replid: &str, reached: u64, next: Option<&(String, u64)>) -> Error {
        let time = self
            .last
            .and_then(|mark| TimestampTz::from_unix_micros(mark.arrived_us));
        let until = time.map_or(String::new(), |time| format!(", of {time}"));
        let keys = LogKeys::new(self.scope, replid);
        let ranges = walk::ranges(self.repository, &keys).unwrap_or_default();
        let behind = ranges.iter().find(|(from, _)| *from > reached);
        let gap = match (behind, next) {
            (Some((from, _)), _) => Some(format!(
                "the bytes up to position {from} were never received{}",
                self.reason(&keys, *from)
            )),
            (None, Some((child, fork))) => {
                Some(format!("history {child} goes on at position {fork}"))
            }
            (None, None) => None,
        };
        match gap {
            Some(gap) => err!(
                OutOfReach,
                "the target lies behind a gap: what is stored of history {replid} ends at position {reached}{until}, and {gap}"
            )
            .hint(format!("Nothing was written.\nA backup that was taken behind the gap leads there; pitr redis info NAME shows both. The end before the gap: --target-offset {}", overview::target(replid, reached))),
            None => err!(
                OutOfReach,
                "the target lies behind all that is stored: history {replid} ends at position {reached}{until}"
            )
            .hint("Nothing was written.\nA receiver that runs stores more within a minute: pitr redis receive NAME. --latest takes all there is."),
        }
    }
}

/// Whether the last byte before a position had arrived behind a time, by the clock of the receiver that stored it.
///
/// # Errors
/// Those of the store.
pub fn arrived_later(
    repository: &Repository,
    scope: &Scope,
    (replid, position): (&str, u64),
    time_us: i64,
) -> Result<bool> {
    let Some(last) = position.checked_sub(1) else {
        return Ok(false);
    };
    let keys = LogKeys::new(scope, replid);
    let seen = match walk::object_at(repository, &keys, last) {
        // A way that needs it says so.
        Err(e) if e.is_damage() => None,
        other => other?,
    };
    let mark = seen.and_then(|seen| seen.marks.into_iter().find(|m| m.position >= position));
    Ok(mark.is_some_and(|mark| mark.arrived_us > time_us))
}

fn undecided(parent: &str, one: &str, other: &str) -> Error {
    err!(
        Refused,
        "two histories go on from {parent} at that time: {one} and {other}"
    )
    .hint("Nothing was written.\nSay which one is wanted: --history REPLID. pitr redis info NAME shows when each was received.")
}

/// Reads bytes from one of their cuts on, and returns the last cut up to a limit.
fn last_cut((start, bytes): (u64, &[u8]), first: u64, limit: u64) -> Result<u64> {
    let mut reader = Reader::new(first, None);
    let index = |position: u64| {
        let offset = usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX);
        offset.min(bytes.len())
    };
    let part = bytes.get(index(first)..index(limit)).unwrap_or_default();
    reader.read(part, &mut |_| Ok(()))?;
    Ok(reader.cut())
}

/// Reads the bytes of a way. Each piece was checked before it is handed on.
///
/// # Errors
/// `Damaged` when some are gone or wrong; those of the store and of `out`.
pub fn read(repository: &Repository, scope: &Scope, route: &Route, out: Take<'_>) -> Result<()> {
    std::thread::scope(|threads| {
        let (ready, next) = mpsc::sync_channel(0);
        // While the bytes of one object are written, the next one is read and unpacked.
        threads.spawn(move || {
            let read = pieces(repository, scope, route, &|piece| {
                ready.send(Ok(piece)).is_ok()
            });
            if let Err(e) = read {
                let _ = ready.send(Err(e));
            }
        });
        for piece in next {
            let (bytes, part, marks) = piece?;
            out(bytes.get(part).unwrap_or_default(), &marks)?;
        }
        Ok(())
    })
}

/// Bytes of an object, which of them belong to a way, and when they arrived.
type Piece = (Vec<u8>, std::ops::Range<usize>, Vec<Mark>);

/// Reads the objects of a way, as long as `put` takes their bytes.
fn pieces(
    repository: &Repository,
    scope: &Scope,
    route: &Route,
    put: &dyn Fn(Piece) -> bool,
) -> Result<()> {
    for leg in &route.legs {
        let keys = LogKeys::new(scope, &leg.replid);
        let mut reached = leg.from;
        while reached < leg.to {
            let found = walk::bytes_at(repository, &keys, reached)?;
            let (object, bytes) = found.ok_or_else(|| lost(&leg.replid, reached))?;
            let (start, end) = (object.from, object.to.min(leg.to));
            let index = |position: u64| usize::try_from(position - start).unwrap_or(usize::MAX);
            if !put((bytes, index(reached)..index(end), object.marks)) {
                return Ok(());
            }
            reached = end;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::redis::log::{self, Piece};
    use crate::redis::resp;
    use crate::repo::crafted;

    /// Each command has so many bytes.
    const BYTES: u64 = 14;

    struct Log {
        repository: Repository,
        scope: Scope,
        _directory: tempfile::TempDir,
    }

    /// The name of a history.
    fn named(letter: &str) -> String {
        letter.repeat(40)
    }

    /// When a command of a history that began at a time had arrived.
    fn at(begun: i64, command: u64) -> i64 {
        (begun + i64::try_from(command).unwrap()) * 10_000
    }

    impl Log {
        fn new() -> Log {
            let (directory, repository, _) = crafted::empty();
            Log {
                repository,
                scope: Scope::aux("redis", "cache").unwrap(),
                _directory: directory,
            }
        }

        /// Stores commands of a history, by their numbers. The command of number n arrives n after it began.
        fn store(&self, letter: &str, (from, to): (u64, u64), begun: i64) {
            let command = resp::command(&[b"PING"]);
            assert_eq!(command.len() as u64, BYTES);
            let marks: Vec<Mark> = (from + 1..=to)
                .map(|n| Mark {
                    position: n * BYTES,
                    arrived_us: at(begun, n),
                })
                .collect();
            let piece = Piece {
                bytes: &command.repeat(usize::try_from(to - from).unwrap()),
                reader: &Reader::new(from * BYTES, Some(0)),
                marks: &marks,
            };
            let keys = LogKeys::new(&self.scope, &named(letter));
            let key = keys.increment(from * BYTES, to * BYTES).unwrap();
            log::put(&self.repository, &keys, &key, &piece).unwrap();
        }

        fn goes_on(&self, letter: &str, parent: &str, fork: u64) {
            let parent = Parent {
                replid: named(parent),
                fork: fork * BYTES,
            };
            let keys = LogKeys::new(&self.scope, &named(letter));
            parent.put(&self.repository, &keys).unwrap();
        }

        /// The legs of a way, by numbers of commands.
        fn legs(
            &self,
            (letter, from): (&str, u64),
            (history, moment): (Option<&str>, Moment),
        ) -> Result<Vec<(String, u64, u64)>> {
            let target = Target {
                moment,
                replid: history.map(named),
            };
            let base = (&*named(letter), from * BYTES);
            let route = plan(&self.repository, &self.scope, base, &target)?;
            let legs = route.legs.into_iter();
            Ok(legs
                .map(|leg| (leg.replid[..1].to_owned(), leg.from / BYTES, leg.to / BYTES))
                .collect())
        }
    }

    fn leg(letter: &str, from: u64, to: u64) -> (String, u64, u64) {
        (letter.to_owned(), from, to)
    }

    /// The server went on with b at 100. The replica that was promoted next had stood at 90 of a, and had nothing of b.
    fn twice_failed_over() -> Log {
        let log = Log::new();
        log.store("a", (0, 100), 0);
        log.store("b", (100, 150), 200);
        log.store("c", (90, 500), 1000);
        log.goes_on("b", "a", 100);
        log.goes_on("c", "b", 90);
        log
    }

    #[test]
    fn r146_a_replica_from_before_the_first_failover_has_nothing_of_the_one_between() {
        let log = twice_failed_over();
        let position = Moment::Position(500 * BYTES);
        let whole = [leg("a", 50, 90), leg("c", 90, 500)];
        assert_eq!(log.legs(("a", 50), (Some("c"), position)).unwrap(), whole);
        for base in [("a", 95), ("b", 120)] {
            let refused = log.legs(base, (Some("c"), position)).unwrap_err();
            assert_eq!(refused.code(), Code::OutOfReach, "{base:?}: {refused}");
        }
        let own = log.legs(("a", 50), (Some("b"), Moment::End)).unwrap();
        assert_eq!(own, [leg("a", 50, 100), leg("b", 100, 150)]);
    }

    #[test]
    fn a_place_behind_a_fork_or_in_another_history_is_not_before_it() {
        let log = twice_failed_over();
        let histories = walk::histories(&log.repository, &log.scope).unwrap();
        let is_before = |(letter, at): (&str, u64), (left, fork): (&str, u64)| {
            let left = Parent {
                replid: named(left),
                fork: fork * BYTES,
            };
            super::is_before(&histories, (&*named(letter), at * BYTES), &left)
        };
        assert!(is_before(("a", 50), ("a", 50)) && is_before(("a", 50), ("b", 120)));
        assert!(!is_before(("a", 51), ("a", 50)));
        // History b left history a at 100, and history c did at 90.
        assert!(!is_before(("a", 110), ("b", 120)) && !is_before(("a", 95), ("c", 120)));
        assert!(!is_before(("b", 100), ("a", 120)));
        assert!(!is_before(("d", 50), ("a", 120)));
    }

    #[test]
    fn a_search_ends_when_it_is_told_to() {
        let log = Log::new();
        for from in [0, 10, 20] {
            log.store("a", (from, from + 10), 0);
        }
        let target = Target {
            moment: Moment::Position(30 * BYTES),
            replid: None,
        };
        let asked = std::cell::Cell::new(0);
        let plan = |stops_at: u32| {
            asked.set(0);
            let check = || {
                asked.set(asked.get() + 1);
                match asked.get() < stops_at {
                    true => Ok(()),
                    false => Err(err!(Interrupted, "stop")),
                }
            };
            let base = (&*named("a"), 0);
            plan_while(&log.repository, &log.scope, base, &target, &check)
        };
        assert!(plan(u32::MAX).is_ok() && asked.get() > 3);
        assert_eq!(plan(2).unwrap_err().code(), Code::Interrupted);
        assert_eq!(asked.get(), 2);
    }

    #[test]
    fn r146_a_time_finds_the_history_that_the_server_had_then() {
        let log = twice_failed_over();
        let legs = |moment| log.legs(("a", 50), (None, moment)).unwrap();
        let whole = [leg("a", 50, 90), leg("c", 90, 500)];
        assert_eq!(legs(Moment::End), whole);
        let early = legs(Moment::Time(at(200, 130)));
        assert_eq!(early, [leg("a", 50, 100), leg("b", 100, 130)]);
        let late = legs(Moment::Time(at(1000, 190)));
        assert_eq!(late, [leg("a", 50, 90), leg("c", 90, 190)]);
        // Something that went on from b arrived later: nobody knows which one is wanted.
        log.store("d", (150, 160), 2000);
        log.goes_on("d", "b", 150);
        let undecided = log.legs(("a", 50), (None, Moment::End)).unwrap_err();
        assert_eq!(undecided.code(), Code::Refused, "{undecided}");
    }

    #[test]
    fn the_end_of_a_history_lies_behind_its_gaps() {
        let log = Log::new();
        log.store("a", (0, 100), 0);
        log.store("a", (120, 130), 10);
        let behind = log.legs(("a", 120), (None, Moment::End)).unwrap();
        assert_eq!(behind, [leg("a", 120, 130)]);
        for history in [None, Some("a")] {
            let refused = log.legs(("a", 50), (history, Moment::End)).unwrap_err();
            assert_eq!(refused.code(), Code::OutOfReach, "{refused}");
            let hint = refused.hint_text().unwrap().to_owned();
            assert!(
                hint.ends_with(&format!("{}:{}", named("a"), 100 * BYTES)),
                "{hint}"
            );
        }
        let position = Moment::Position(100 * BYTES);
        let explicit = log.legs(("a", 50), (None, position)).unwrap();
        assert_eq!(explicit, [leg("a", 50, 100)]);
    }

    #[test]
    fn a_data_set_is_late_when_its_last_byte_arrived_behind_the_target() {
        let log = Log::new();
        log.store("a", (0, 100), 0);
        let is_late = |command: u64, time: i64| {
            let position = (&*named("a"), command * BYTES);
            arrived_later(&log.repository, &log.scope, position, time).unwrap()
        };
        assert!(is_late(80, at(0, 79)));
        assert!(!is_late(80, at(0, 80)));
        // Nothing is known of what is not stored.
        assert!(!is_late(0, 0) && !is_late(200, 0));
    }
}
