//! The position at which streaming begins: derived from journal, repositories, slot and server, and from nothing else.
//!
//! The answer is the first position that nobody holds, on the way that the server's history takes. WAL that the server cannot give
//! any more is named as a gap, never passed over.

use super::compare::IF_IT_IS_THE_CLUSTER;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::{History, Position, TimelineId};
use crate::wal::path::Path;

/// The facts from which the start of streaming is derived.
pub struct Known<'a> {
    /// The path to the server's timeline.
    pub path: &'a Path,
    /// End of the journal.
    pub journal: Option<Position>,
    /// End of the last whole segment that every required repository has, on the way of the server's history.
    pub repository: Option<Position>,
    /// From where on the slot keeps WAL.
    pub slot: Option<Lsn>,
    /// The end of the server's WAL.
    pub server_end: Lsn,
    /// The server has said that WAL before this is gone.
    pub removed_before: Option<Lsn>,
    /// How far, from its start, every required repository has a segment: its end when it is whole, its start when there is nothing.
    pub covered: &'a dyn Fn(SegmentName) -> Result<Lsn>,
}

/// WAL of a timeline that is in no repository and that the server does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub timeline: TimelineId,
    /// The first byte that is missing.
    pub from: Lsn,
    /// The first byte behind.
    pub to: Lsn,
}

/// WAL that was received of a timeline behind the place where the server's history leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhang {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// The position at which it was left.
    pub switch_lsn: Lsn,
    /// End of the WAL that was received of it.
    pub end: Lsn,
}

/// The start of streaming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The timeline and position to ask for. Either the journal's end or the start of a segment.
    pub position: Position,
    /// Gaps that have to be recorded before.
    pub gaps: Vec<Gap>,
    /// WAL that was received and is not part of the server's history.
    pub overhang: Option<Overhang>,
}

/// Derives where streaming begins.
///
/// # Errors
/// `Diverged` when the server is not where what is held leads: an older timeline, another branch, or an end before ours.
pub fn derive(known: &Known<'_>) -> Result<Start> {
    let mut overhang = None;
    let journal = match known.journal {
        Some(position) => {
            let server = (known.path.history(), known.server_end);
            check_end(server, position, position.lsn)?;
            overhang = overhang_of(known, position);
            Some(known.path.onward(position))
        }
        None => None,
    };
    let base = match journal {
        Some(position) => position,
        None => base_without_journal(known)?,
    };
    let mut position = walk(known, base)?;
    let mut gaps = Vec::new();
    if let Some(first) = known.removed_before.map(|lsn| known.path.position(lsn).lsn)
        && position.lsn < first
    {
        gaps = gaps_between(known, position, first)?;
        position = walk(known, known.path.position(first))?;
    }
    Ok(Start {
        position,
        gaps,
        overhang,
    })
}

/// Requires that the WAL held up to `position` is part of the server's, by its history and its end, or of a timeline that its history left.
///
/// # Errors
/// As [`derive()`].
pub fn check_end(
    (history, server_end): (&History, Lsn),
    position: Position,
    end: Lsn,
) -> Result<()> {
    let timeline = position.timeline;
    if !history.contains(timeline) {
        return Err(err!(
            Diverged,
            "WAL was received up to {end} on timeline {}, and the server is on timeline {}, whose history does not lead there",
            timeline.decimal(),
            history.timeline().decimal()
        )
        .hint("Nothing was received, and nothing that is there was touched. Likely this is an old primary that was left behind by a failover, or a copy: name the right server in conninfo. If it was restored to an earlier moment on purpose, let the receiver begin anew: move its journal away once \"pitr info\" says that everything is archived."));
    }
    if timeline == history.timeline() && end > server_end {
        return Err(err!(
            Diverged,
            "WAL was received up to {end} on timeline {}, and the server's ends at {server_end}: the server went back",
            timeline.decimal()
        )
        .hint(format!("Nothing was received. The server lost WAL that was already received, or is an older copy. What was received is in journal and repository: restore it with \"pitr restore\". {IF_IT_IS_THE_CLUSTER}")));
    }
    Ok(())
}

fn overhang_of(known: &Known<'_>, position: Position) -> Option<Overhang> {
    let switch_lsn = known.path.history().switch_point(position.timeline)?;
    (position.lsn > switch_lsn).then_some(Overhang {
        timeline: position.timeline,
        switch_lsn,
        end: position.lsn,
    })
}

/// Without a journal: what slot or repository lead to, whichever is earlier; with neither, the server's present segment.
fn base_without_journal(known: &Known<'_>) -> Result<Position> {
    let slot = known.slot.map(|lsn| known.path.position(lsn));
    let repository = match known.repository {
        Some(position) => {
            // The last segment may have been ended by a switch: its end is not yet the server's.
            let last = Lsn(position.lsn.0.saturating_sub(known.path.size().bytes()));
            let server = (known.path.history(), known.server_end);
            check_end(server, position, last)?;
            Some(known.path.onward(position))
        }
        None => None,
    };
    Ok(match (slot, repository) {
        (Some(slot), Some(repository)) => {
            std::cmp::min_by_key(slot, repository, |p| (p.lsn, p.timeline))
        }
        (Some(position), None) | (None, Some(position)) => position,
        (None, None) => known.path.position(known.server_end),
    })
}

/// The first position from `position` on that is not in whole segments of the repositories.
fn walk(known: &Known<'_>, mut position: Position) -> Result<Position> {
    loop {
        position = known.path.onward(position);
        let (range, until) = known.path.segment_at(position)?;
        if position.lsn >= known.server_end || (known.covered)(range)? < until {
            return Ok(position);
        }
        position.lsn = until;
    }
}

/// Returns the gaps that nobody fills from `position` to `to`.
fn gaps_between(known: &Known<'_>, mut position: Position, to: Lsn) -> Result<Vec<Gap>> {
    let mut gaps: Vec<Gap> = Vec::new();
    loop {
        position = known.path.onward(position);
        if position.lsn >= to {
            return Ok(gaps);
        }
        let (name, until) = known.path.segment_at(position)?;
        let until = until.min(to);
        let from = (known.covered)(name)?.max(position.lsn);
        if from < until {
            match gaps.last_mut() {
                Some(last) if last.timeline == position.timeline && last.to == from => {
                    last.to = until;
                }
                _ => gaps.push(Gap {
                    timeline: position.timeline,
                    from,
                    to: until,
                }),
            }
        }
        position.lsn = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::segment::SegmentSize;
    use crate::pg::timeline::tli;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const MIB: u64 = 1 << 20;

    fn at(timeline: u32, lsn: u64) -> Position {
        Position {
            timeline: tli(timeline),
            lsn: Lsn(lsn),
        }
    }

    fn gap(timeline: u32, from: u64, to: u64) -> Gap {
        Gap {
            timeline: tli(timeline),
            from: Lsn(from),
            to: Lsn(to),
        }
    }

    /// A case in segments of 1 MiB; `stored` has the part of each segment that is covered.
    #[derive(Clone, Default)]
    struct Case {
        journal: Option<Position>,
        repository: Option<Position>,
        slot: Option<u64>,
        /// Timelines 1 … n, each left at its switch point.
        switches: Vec<u64>,
        server_end: u64,
        removed_before: Option<u64>,
        stored: BTreeMap<(u32, u64), u64>,
    }

    impl Case {
        fn new(server_end: u64) -> Case {
            Case {
                server_end,
                ..Case::default()
            }
        }

        fn whole(mut self, timeline: u32, segments: std::ops::Range<u64>) -> Case {
            for n in segments {
                self.stored.insert((timeline, n), MIB);
                self.repository = Some(at(timeline, (n + 1) * MIB));
            }
            self
        }

        fn history(&self) -> History {
            let mut history = History::root(tli(1));
            for (index, switch) in self.switches.iter().enumerate() {
                let number = u32::try_from(index).unwrap() + 2;
                history = history.child(tli(number), Lsn(*switch), b"promoted");
            }
            history
        }

        fn derive(&self) -> Result<Start> {
            let size = SegmentSize::new(MIB).unwrap();
            derive(&Known {
                path: &Path::new(self.history(), size),
                journal: self.journal,
                repository: self.repository,
                slot: self.slot.map(Lsn),
                server_end: Lsn(self.server_end),
                removed_before: self.removed_before.map(Lsn),
                covered: &|name| {
                    let number = name.number(size)?;
                    let part = self.stored.get(&(name.timeline.get(), number.0));
                    Ok(Lsn(number.start_lsn(size).0 + part.copied().unwrap_or(0)))
                },
            })
        }

        fn position(&self) -> Position {
            let start = self.derive().unwrap();
            assert_eq!(start.gaps, []);
            start.position
        }

        fn refused(&self) -> String {
            let error = self.derive().unwrap_err();
            assert_eq!(error.code(), Code::Diverged, "{error}");
            error.to_string()
        }
    }

    #[test]
    fn first_start_follows_the_slot_and_else_the_server() {
        let mut case = Case::new(9 * MIB + 700);
        assert_eq!(case.position(), at(1, 9 * MIB));
        case.slot = Some(7 * MIB + 5);
        assert_eq!(case.position(), at(1, 7 * MIB));
    }

    #[test]
    fn journal_decides_and_the_repository_carries_it_on() {
        let mut case = Case::new(9 * MIB + 700);
        case.slot = Some(3 * MIB);
        case.journal = Some(at(1, 5 * MIB + 40));
        assert_eq!(case.position(), at(1, 5 * MIB + 40));
        // Archiving went on while the receiver was away.
        let case = case.whole(1, 5..8);
        assert_eq!(case.position(), at(1, 8 * MIB));
        // A hole in what archiving has is streamed, as long as the server has it.
        let mut case = case;
        case.stored.remove(&(1, 6));
        assert_eq!(case.position(), at(1, 6 * MIB));
        // Increments do not make a segment.
        case.stored.insert((1, 6), 700);
        assert_eq!(case.position(), at(1, 6 * MIB));
    }

    #[test]
    fn a_lost_journal_is_made_up_for_by_repository_and_slot() {
        let mut case = Case::new(9 * MIB + 700).whole(1, 2..6);
        assert_eq!(case.position(), at(1, 6 * MIB));
        // The slot is ahead: the server may still have what lies between.
        case.slot = Some(8 * MIB + 3);
        assert_eq!(case.position(), at(1, 6 * MIB));
        // The slot is behind, and the repository has a hole there.
        case.slot = Some(3 * MIB + 3);
        case.stored.remove(&(1, 4));
        assert_eq!(case.position(), at(1, 4 * MIB));
    }

    #[test]
    fn what_the_server_has_no_more_is_named() {
        let mut case = Case::new(9 * MIB + 700);
        case.journal = Some(at(1, 3 * MIB + 40));
        case.removed_before = Some(8 * MIB + 9);
        let start = case.derive().unwrap();
        assert_eq!(start.position, at(1, 8 * MIB));
        assert_eq!(start.gaps, [gap(1, 3 * MIB + 40, 8 * MIB)]);
        // WAL that a repository has is no gap, whole or not.
        case.stored.insert((1, 5), MIB);
        case.stored.insert((1, 7), 500);
        let start = case.derive().unwrap();
        assert_eq!(
            start.gaps,
            [
                gap(1, 3 * MIB + 40, 5 * MIB),
                gap(1, 6 * MIB, 7 * MIB),
                gap(1, 7 * MIB + 500, 8 * MIB)
            ]
        );
        // Nothing is lost if all of it is stored.
        let case = case.whole(1, 3..8);
        assert_eq!(case.position(), at(1, 8 * MIB));
    }

    #[test]
    fn gaps_follow_the_history() {
        let mut case = Case::new(9 * MIB + 700);
        case.switches = vec![5 * MIB + 600];
        case.journal = Some(at(1, 4 * MIB + 1));
        case.removed_before = Some(7 * MIB);
        let start = case.derive().unwrap();
        assert_eq!(start.position, at(2, 7 * MIB));
        assert_eq!(
            start.gaps,
            [gap(1, 4 * MIB + 1, 5 * MIB + 600), gap(2, 5 * MIB, 7 * MIB)]
        );
    }

    #[test]
    fn timelines_are_followed_in_their_order() {
        let mut case = Case::new(9 * MIB + 700);
        case.switches = vec![5 * MIB + 600, 7 * MIB];
        case.journal = Some(at(1, 4 * MIB + 1));
        assert_eq!(case.position(), at(1, 4 * MIB + 1));
        // At the very end of the old one, the next begins with its segment.
        case.journal = Some(at(1, 5 * MIB + 600));
        assert_eq!(case.position(), at(2, 5 * MIB));
        case.journal = Some(at(2, 5 * MIB + 900));
        assert_eq!(case.position(), at(2, 5 * MIB + 900));
        case.journal = Some(at(2, 7 * MIB));
        assert_eq!(case.position(), at(3, 7 * MIB));
        // The old timeline's last segment is whole in the repository: enough up to the switch.
        case.journal = Some(at(1, 5 * MIB + 10));
        case.stored.insert((1, 5), 600);
        assert_eq!(case.position(), at(2, 5 * MIB));
    }

    #[test]
    fn what_was_received_behind_a_switch_is_told() {
        let mut case = Case::new(9 * MIB + 700);
        case.switches = vec![5 * MIB + 600];
        case.journal = Some(at(1, 6 * MIB + 1));
        let start = case.derive().unwrap();
        assert_eq!(start.position, at(2, 5 * MIB));
        assert_eq!(
            start.overhang,
            Some(Overhang {
                timeline: tli(1),
                switch_lsn: Lsn(5 * MIB + 600),
                end: Lsn(6 * MIB + 1)
            })
        );
    }

    #[test]
    fn a_server_that_went_back_is_refused() {
        let mut case = Case::new(5 * MIB);
        case.journal = Some(at(1, 5 * MIB + 1));
        assert!(case.refused().ends_with("the server went back"));
        case.journal = Some(at(2, 4 * MIB));
        assert!(case.refused().contains("does not lead there"));
        let case = Case::new(5 * MIB).whole(1, 2..7);
        assert!(case.refused().ends_with("the server went back"));
        // A switch ended the last segment: the next has not begun.
        assert_eq!(
            Case::new(5 * MIB + 24).whole(1, 2..6).position(),
            at(1, 6 * MIB)
        );
    }

    proptest! {
        /// For any facts, the start is the journal's end or a segment's start, and every byte from the journal's end to it is
        /// stored or named.
        #[test]
        fn nothing_is_passed_over(
            journal in proptest::option::of(0u64..9 * MIB),
            slot in proptest::option::of(0u64..9 * MIB),
            removed in proptest::option::of(0u64..9 * MIB),
            switch in proptest::option::of(1u64..9 * MIB),
            stored in proptest::collection::btree_map((1u32..3, 0u64..9), prop_oneof![Just(MIB), 1..MIB], 0..12),
        ) {
            let mut case = Case::new(9 * MIB);
            case.switches = switch.into_iter().collect();
            case.journal = journal.map(|lsn| at(1, lsn));
            (case.slot, case.removed_before, case.stored) = (slot, removed, stored);
            let start = case.derive().unwrap();
            let position = start.position;
            prop_assert!(Some(position) == case.journal || position.lsn.0.is_multiple_of(MIB));
            prop_assert!(position.lsn.0 <= 9 * MIB);
            let Some(journal) = journal else { return Ok(()) };
            let switch = switch.unwrap_or(u64::MAX);
            let mut at = journal.min(switch);
            let mut timeline = 1;
            loop {
                if at >= switch && timeline == 1 {
                    (timeline, at) = (2, switch / MIB * MIB);
                }
                if timeline == position.timeline.get() && at >= position.lsn.0 || at >= 9 * MIB {
                    break;
                }
                let part = case.stored.get(&(timeline, at / MIB)).copied().unwrap_or(0);
                let named = start.gaps.iter().any(|g| {
                    g.timeline.get() == timeline && g.from.0 <= at && at < g.to.0
                });
                prop_assert!(at % MIB < part || named, "{at:X} of timeline {timeline}");
                // The next byte at which something may change.
                let mut next = (at / MIB + 1) * MIB;
                for edge in [at / MIB * MIB + part, switch] {
                    if edge > at && edge < next {
                        next = edge;
                    }
                }
                at = next;
            }
        }
    }
}
