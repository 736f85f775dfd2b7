//! The path of recovery to a timeline: under whose name each segment is read.
//!
//! Planning, retention, verification, the receiver and the proof of absence follow this one path. They differ in what they ask about a
//! segment, never in which segment comes next.
//!
//! PostgreSQL: src/backend/access/transam/xlogrecovery.c (13, 14: xlog.c), XLogFileReadAnyTLI; timeline.c, tliOfPointInHistory.

use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::{History, Interval, Position, TimelineId};

/// The WAL that a path leads through, as far as names tell.
pub trait Listing {
    /// Returns the last of the consecutive whole segments of a timeline that begin with this one; `None` where it is not whole.
    fn run(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber>;

    /// Returns how far the stored part of a segment reaches; not farther than its start where its name does not tell.
    fn part(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Lsn>;

    /// Returns the first segment of a timeline at or behind `number` that is stored, whole or in part.
    fn next_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber>;
}

/// The file that recovery reads of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// The timeline in its name.
    pub timeline: TimelineId,
    /// Its WAL counts up to here only, where its timeline was left inside the segment and the newer timeline's file is not there.
    pub limit: Option<Lsn>,
}

/// Consecutive segments of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The timeline in their names.
    pub timeline: TimelineId,
    /// The first of them.
    pub first: SegmentNumber,
    pub last: SegmentNumber,
}

/// A timeline under whose name recovery looks for segments.
#[derive(Debug, Clone)]
struct Candidate {
    timeline: TimelineId,
    begin: Lsn,
    segment: SegmentNumber,
}

/// The path to a timeline.
#[derive(Debug, Clone)]
pub struct Path {
    history: History,
    size: SegmentSize,
    intervals: Vec<Interval>,
    /// Newest timeline first.
    candidates: Vec<Candidate>,
}

impl Path {
    /// Makes the path that a history describes.
    pub fn new(history: History, size: SegmentSize) -> Path {
        let mut begin = Lsn(0);
        let mut candidates = Vec::new();
        let ancestors = history.ancestors().iter();
        let ends = ancestors.map(|a| (a.timeline, a.switch_lsn));
        for (timeline, end) in ends.chain([(history.timeline(), Lsn(u64::MAX))]) {
            candidates.push(Candidate {
                timeline,
                begin,
                segment: SegmentNumber::of(begin, size),
            });
            begin = end;
        }
        candidates.reverse();
        Path {
            intervals: history.path(),
            history,
            size,
            candidates,
        }
    }

    /// Returns the history that the path follows.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Returns the segment size.
    pub fn size(&self) -> SegmentSize {
        self.size
    }

    /// Returns the stretches of the timelines on the path, oldest first.
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// Returns the timeline whose file of a segment holds the pages of all: the newest that begins at or before it.
    pub fn holder(&self, number: SegmentNumber) -> TimelineId {
        self.candidates
            .iter()
            .find(|c| c.segment <= number)
            .map_or(self.history.timeline(), |c| c.timeline)
    }

    /// Returns the name of the file that should be there of a segment; `None` behind the last LSN.
    pub fn name(&self, number: SegmentNumber) -> Option<SegmentName> {
        number.name(self.holder(number), self.size)
    }

    /// Tells whether the path leads through `timeline` just before `lsn`, so that a state there can be rolled forward to its end.
    ///
    /// PostgreSQL: src/backend/access/transam/xlogrecovery.c, InitWalRecovery and CheckRecoveryConsistency compare the same positions.
    pub fn leads_through(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.history.holder(Lsn(lsn.0.saturating_sub(1))) == timeline
    }

    /// Returns the files of the path from `from` to before `to`, with both of a segment in which a timeline was left: the older one may be
    /// the only copy of its first pages.
    pub fn pieces(&self, from: Lsn, to: Lsn) -> impl Iterator<Item = Piece> + '_ {
        self.intervals
            .iter()
            .filter(move |i| i.range.end > from && i.range.start < to)
            .map(move |i| Piece {
                timeline: i.timeline,
                first: SegmentNumber::of(i.range.start.max(from), self.size),
                last: match i.range.end.min(to) {
                    Lsn(u64::MAX) => SegmentNumber(u64::MAX),
                    lsn => SegmentNumber::ending_at(lsn, self.size),
                },
            })
    }

    /// Returns the file that recovery reads of a segment: that of the newest timeline that has one, never of one older than `floor`, the
    /// timeline of the file before.
    ///
    /// # Errors
    /// Those of `is_there`.
    pub fn pick(
        &self,
        number: SegmentNumber,
        floor: Option<TimelineId>,
        mut is_there: impl FnMut(TimelineId) -> Result<bool>,
    ) -> Result<Option<Pick>> {
        let mut limit: Option<Lsn> = None;
        for candidate in self.candidates.iter().filter(|c| c.segment <= number) {
            let is_older = floor.is_some_and(|f| candidate.timeline < f);
            if is_older || limit.is_some_and(|l| l <= number.start_lsn(self.size)) {
                break;
            }
            if is_there(candidate.timeline)? {
                let timeline = candidate.timeline;
                return Ok(Some(Pick { timeline, limit }));
            }
            limit = Some(limit.map_or(candidate.begin, |l| l.min(candidate.begin)));
        }
        Ok(None)
    }

    /// Returns the file of a later timeline that recovery reads in the place of a segment, where one is there.
    ///
    /// A timeline that begins inside a segment has a copy of all that comes before its switch point. PostgreSQL: xlog.c, XLogFileCopy.
    ///
    /// # Errors
    /// Those of `is_there`.
    pub fn in_place_of(
        &self,
        name: SegmentName,
        is_there: impl FnMut(TimelineId) -> Result<bool>,
    ) -> Result<Option<SegmentName>> {
        // The cluster may have had another segment size then.
        let Ok(number) = name.number(self.size) else {
            return Ok(None);
        };
        let pick = self.pick(number, None, is_there)?;
        let later = pick.filter(|pick| pick.timeline > name.timeline);
        Ok(later.and_then(|pick| number.name(pick.timeline, self.size)))
    }

    /// Returns the first segment of the path at or behind `number` that is stored, whole or in part.
    pub fn next_there(&self, number: SegmentNumber, held: &dyn Listing) -> Option<SegmentNumber> {
        let pieces = self.pieces(number.start_lsn(self.size), Lsn(u64::MAX));
        let found = pieces.filter_map(|piece| {
            let next = held.next_from(piece.timeline, piece.first.max(number))?;
            (next <= piece.last).then_some(next)
        });
        found.min()
    }

    /// Returns the first hole behind `start`, and where WAL goes on; `None` where nothing follows it.
    pub fn hole_behind(
        &self,
        start: Lsn,
        held: &dyn Listing,
    ) -> Option<(SegmentNumber, SegmentNumber)> {
        let from = SegmentNumber::of(self.reach(start, held), self.size);
        match self.next_there(from, held)? {
            // Only a part is stored of the segment in which the hole begins.
            next if next == from => Some((from, self.next_there(from.next(), held)?)),
            next => Some((from, next)),
        }
    }

    /// Returns how far WAL is stored without a hole from the segment of `start` on, as far as names tell.
    pub fn reach(&self, start: Lsn, held: &dyn Listing) -> Lsn {
        let mut number = SegmentNumber::of(start, self.size);
        let mut floor = None;
        loop {
            let range = number.range(self.size);
            let is_there = |t| Ok(held.run(t, number).is_some() || held.part(t, number).is_some());
            let Ok(Some(pick)) = self.pick(number, floor, is_there) else {
                return range.start;
            };
            floor = Some(pick.timeline);
            let end = pick.limit.unwrap_or(range.end);
            let run = held.run(pick.timeline, number);
            let reach = match (run, held.part(pick.timeline, number)) {
                (Some(_), _) => end,
                // A partial of a timeline that was left is taken for one that reaches its switch point.
                (None, Some(part)) if part <= range.start && pick.limit.is_some() => end,
                (None, part) => part.unwrap_or(range.start).clamp(range.start, end),
            };
            if pick.limit.is_some() || reach < range.end {
                return reach;
            }
            number = self.behind_run(number, run.unwrap_or(number));
        }
    }

    /// Returns the segment at which another file is asked for: behind the run, or where the next timeline begins.
    fn behind_run(&self, number: SegmentNumber, last: SegmentNumber) -> SegmentNumber {
        let begins = self.candidates.iter().map(|c| c.segment);
        let begin = begins.filter(|begin| *begin > number).min();
        begin.map_or(last.next(), |begin| begin.min(last.next()))
    }

    /// Returns the start of the segment that holds `lsn`, on the timeline that holds `lsn`.
    pub fn position(&self, lsn: Lsn) -> Position {
        self.begin(self.history.holder(lsn), lsn)
    }

    /// Returns the position itself, or the beginning of the timeline that the path takes up at or before it.
    ///
    /// A timeline begins at the start of the segment of its switch point: the bytes before it are filed under the new timeline, too.
    pub fn onward(&self, mut position: Position) -> Position {
        loop {
            let end = self.history.switch_point(position.timeline);
            let next = self.history.next_of(position.timeline);
            match (end, next) {
                (Some(end), Some(next)) if position.lsn >= end => position = self.begin(next, end),
                _ => return position,
            }
        }
    }

    fn begin(&self, timeline: TimelineId, lsn: Lsn) -> Position {
        Position {
            timeline,
            lsn: SegmentNumber::of(lsn, self.size).start_lsn(self.size),
        }
    }

    /// Returns the segment at `position`, and where it ends, or its timeline inside it.
    ///
    /// # Errors
    /// `Server` behind the last LSN.
    pub fn segment_at(&self, position: Position) -> Result<(SegmentName, Lsn)> {
        let number = SegmentNumber::of(position.lsn, self.size);
        let end = number.range(self.size).end;
        let left = self.history.switch_point(position.timeline);
        let name = number
            .name(position.timeline, self.size)
            .ok_or_else(|| -> Error { err!(Server, "position {} has no segment", position.lsn) })?;
        Ok((name, left.map_or(end, |left| end.min(left))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pg::timeline::tli;

    const MIB: u64 = 1 << 20;

    /// Timeline 2 leaves 1 in segment 4, and 3 leaves 2 in segment 6.
    fn path() -> Path {
        let first = History::root(tli(1));
        let second = first.child(tli(2), Lsn(4 * MIB + 64), b"x");
        let third = second.child(tli(3), Lsn(6 * MIB + 64), b"x");
        Path::new(third, SegmentSize::new(MIB).unwrap())
    }

    /// Segments by timeline and number, with how much of each is stored.
    #[derive(Default)]
    struct Stored(BTreeMap<(u32, u64), u64>);

    impl Stored {
        fn whole(mut self, timeline: u32, numbers: std::ops::RangeInclusive<u64>) -> Stored {
            self.0.extend(numbers.map(|n| ((timeline, n), MIB)));
            self
        }

        fn part(mut self, timeline: u32, number: u64, bytes: u64) -> Stored {
            self.0.insert((timeline, number), bytes);
            self
        }

        fn get(&self, timeline: TimelineId, number: SegmentNumber) -> Option<u64> {
            self.0.get(&(timeline.get(), number.0)).copied()
        }
    }

    impl Listing for Stored {
        fn run(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
            let is_whole = |n: SegmentNumber| self.get(timeline, n) == Some(MIB);
            let mut last = Some(number).filter(|n| is_whole(*n))?;
            while is_whole(last.next()) {
                last = last.next();
            }
            Some(last)
        }

        fn part(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Lsn> {
            let bytes = self.get(timeline, number).filter(|bytes| *bytes < MIB)?;
            Some(Lsn(number.0 * MIB + bytes))
        }

        fn next_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
            let all = self
                .0
                .range((timeline.get(), number.0)..(timeline.get() + 1, 0));
            all.map(|((_, n), _)| SegmentNumber(*n)).next()
        }
    }

    #[test]
    fn a_segment_belongs_to_the_newest_timeline_that_has_begun() {
        let path = path();
        let holders: Vec<u32> = (3..=7)
            .map(|n| path.holder(SegmentNumber(n)).get())
            .collect();
        assert_eq!(holders, [1, 2, 2, 3, 3]);
        assert!(path.leads_through(tli(1), Lsn(4 * MIB + 64)));
        assert!(!path.leads_through(tli(1), Lsn(4 * MIB + 65)));
        let pieces: Vec<_> = path
            .pieces(Lsn(3 * MIB), Lsn(6 * MIB + 65))
            .map(|p| (p.timeline.get(), p.first.0, p.last.0))
            .collect();
        assert_eq!(pieces, [(1, 3, 4), (2, 4, 6), (3, 6, 6)]);
    }

    #[test]
    fn wal_reaches_as_far_as_the_path_finds_files() {
        let path = path();
        let reach = |stored: &Stored| path.reach(Lsn(2 * MIB + 8), stored).0;
        let whole = || {
            Stored::default()
                .whole(1, 2..=4)
                .whole(2, 4..=6)
                .whole(3, 6..=9)
        };
        assert_eq!(reach(&Stored::default()), 2 * MIB);
        assert_eq!(reach(&whole()), 10 * MIB);
        assert_eq!(reach(&whole().part(3, 10, 500)), 10 * MIB + 500);
        assert_eq!(reach(&Stored::default().whole(1, 2..=9)), 4 * MIB + 64);
        let partial = Stored::default().whole(1, 2..=3).part(1, 4, 0);
        assert_eq!(reach(&partial), 4 * MIB + 64);
        let short = Stored::default().whole(1, 2..=3).part(1, 4, 40);
        assert_eq!(reach(&short), 4 * MIB + 40);
        let mut holed = whole();
        holed.0.remove(&(3, 7));
        assert_eq!(reach(&holed), 7 * MIB);
        assert_eq!(
            path.next_there(SegmentNumber(7), &holed),
            Some(SegmentNumber(8))
        );
        assert_eq!(path.next_there(SegmentNumber(11), &holed), None);
    }

    #[test]
    fn recovery_never_goes_back_to_an_older_timeline() {
        let pick = |number, floor, there: &[u32]| {
            let number = SegmentNumber(number);
            let is_there = |t: TimelineId| Ok(there.contains(&t.get()));
            let pick = path().pick(number, floor, is_there).unwrap();
            pick.map(|p| (p.timeline.get(), p.limit.map(|l| l.0)))
        };
        assert_eq!(pick(6, None, &[1, 2, 3]), Some((3, None)));
        assert_eq!(pick(6, None, &[1, 2]), Some((2, Some(6 * MIB + 64))));
        assert_eq!(pick(6, None, &[1]), None);
        assert_eq!(pick(6, Some(tli(3)), &[1, 2]), None);
    }

    #[test]
    fn a_position_behind_the_end_of_its_timeline_is_at_the_beginning_of_the_next() {
        let onward = |timeline, lsn| {
            let position = Position {
                timeline: tli(timeline),
                lsn: Lsn(lsn),
            };
            let onward = path().onward(position);
            (onward.timeline.get(), onward.lsn.0)
        };
        assert_eq!(onward(1, 4 * MIB), (1, 4 * MIB));
        assert_eq!(onward(1, 4 * MIB + 64), (2, 4 * MIB));
        assert_eq!(onward(1, 9 * MIB), (2, 4 * MIB));
        assert_eq!(onward(2, 7 * MIB), (3, 6 * MIB));
        let at = path().position(Lsn(6 * MIB + 63));
        let (name, end) = path().segment_at(at).unwrap();
        assert_eq!(name.to_string().as_str(), "000000020000000000000006");
        assert_eq!(end, Lsn(6 * MIB + 64));
    }
}
