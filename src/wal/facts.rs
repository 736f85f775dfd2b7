//! What a plan asks of archived WAL, as plain data: which segments there are, what each of them says, which records decide.
//!
//! The questions are a trait, so that the planner does no I/O: `rollup` answers them from a repository, tests from memory.

use super::index::{HeadEnd, TailClass};
use super::link::Brief;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::parameters::Parameters;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::wal_proof::RawHash;

/// Numbers of segments, as runs: 100 000 segments without a hole take the room of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Runs(Vec<(u64, u64)>);

impl Runs {
    /// Makes runs from numbers in any order.
    pub fn from_numbers(mut numbers: Vec<u64>) -> Runs {
        numbers.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some((_, last)) if number <= last.saturating_add(1) => *last = number.max(*last),
                _ => runs.push((number, number)),
            }
        }
        Runs(runs)
    }

    /// Joins two sets.
    #[must_use]
    pub fn union(self, other: Runs) -> Runs {
        let mut all = self.0;
        all.extend(other.0);
        all.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (first, end) in all {
            match runs.last_mut() {
                Some((_, last)) if first <= last.saturating_add(1) => *last = end.max(*last),
                _ => runs.push((first, end)),
            }
        }
        Runs(runs)
    }

    /// Makes runs of runs that ascend and do not touch.
    pub fn from_runs(runs: Vec<(SegmentNumber, SegmentNumber)>) -> Runs {
        let runs = runs.into_iter().map(|(first, last)| (first.0, last.0));
        Runs::default().union(Runs(runs.collect()))
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Runs) -> Runs {
        let mut rest = Vec::new();
        for (first, last) in &self.0 {
            let mut at = Some(*first);
            let from = other.0.partition_point(|(_, end)| end < first);
            for (start, end) in other.0.iter().skip(from) {
                let Some(next) = at.filter(|_| start <= last) else {
                    break;
                };
                if *start > next {
                    rest.push((next, start - 1));
                }
                at = end.checked_add(1).filter(|n| n <= last);
            }
            rest.extend(at.map(|next| (next, *last)));
        }
        Runs(rest)
    }

    /// Whether the segment is there.
    pub fn contains(&self, number: SegmentNumber) -> bool {
        self.next_from(number) == Some(number)
    }

    /// The first segment at or behind `number` that is there.
    pub fn next_from(&self, number: SegmentNumber) -> Option<SegmentNumber> {
        let at = self.0.partition_point(|(_, last)| *last < number.0);
        self.0
            .get(at)
            .map(|(first, _)| SegmentNumber(number.0.max(*first)))
    }

    /// The last segment of the run that a segment is in; none where the segment is not there.
    pub fn run_end(&self, number: SegmentNumber) -> Option<SegmentNumber> {
        let at = self.0.partition_point(|(_, last)| *last < number.0);
        let run = self.0.get(at).filter(|(first, _)| *first <= number.0);
        run.map(|(_, last)| SegmentNumber(*last))
    }

    /// The runs, ascending: first and last number of each.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (SegmentNumber, SegmentNumber)> + '_ {
        self.0
            .iter()
            .map(|(first, last)| (SegmentNumber(*first), SegmentNumber(*last)))
    }

    /// The first and the last segment of all.
    pub fn bounds(&self) -> Option<(SegmentNumber, SegmentNumber)> {
        match (self.0.first(), self.0.last()) {
            (Some((first, _)), Some((_, last))) => {
                Some((SegmentNumber(*first), SegmentNumber(*last)))
            }
            _ => None,
        }
    }

    /// How many segments there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Bits of [`Facts::flags`] beyond those of [`super::index::flag`].
pub mod flag {
    /// The segment holds restore points, or it is not known that it holds none.
    pub const RESTORE_POINTS: u16 = 1 << 8;
    /// Which transactions end here is not recorded.
    pub const XIDS_UNKNOWN: u16 = 1 << 9;
    /// The segment holds a change of parameters, or it is not known that it holds none.
    pub const PARAMETERS: u16 = 1 << 10;
}

/// What the index of a segment says, reduced to what plans need. LSNs are 0/0 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// First position of the segment.
    pub start_lsn: Lsn,
    /// Bits of [`super::index::flag`] and [`flag`].
    pub flags: u16,
    /// What becomes of the record that reaches in from before.
    pub head_end: HeadEnd,
    /// What the record is that continues in the next segment.
    pub tail_class: TailClass,
    /// Bytes of the head that lie here.
    pub head_length: u32,
    /// Bytes that the first page says are missing of it.
    pub head_remaining: u32,
    /// Bytes here of the record that continues in the next segment; 0 = none does.
    pub tail_length: u32,
    /// Its whole length.
    pub tail_total: u32,
    /// The first record that begins here.
    pub first_record: Lsn,
    /// The record before it, as it says; 0/0 where its header is cut.
    pub first_prev: Lsn,
    /// The last record that begins here, complete or not.
    pub last_begun: Lsn,
    /// Start of the last record inside.
    pub last_complete: Lsn,
    /// Its end.
    pub last_complete_end: Lsn,
    /// Where valid WAL ends.
    pub valid_end: Lsn,
    /// Commits inside.
    pub commits: u32,
    /// Commits and aborts inside.
    pub ends: u32,
    /// Smallest and largest time of a transaction end inside; only where `ends` is not 0.
    pub times: (TimestampTz, TimestampTz),
    /// Smallest and largest xid of a transaction end inside, as plain numbers.
    pub xids: (u32, u32),
    /// What joins the segment to the one before it.
    pub link: Brief,
}

impl Facts {
    /// Facts of a segment in which no record begins or ends.
    pub fn empty(start_lsn: Lsn) -> Facts {
        Facts {
            start_lsn,
            flags: 0,
            head_end: HeadEnd::None,
            tail_class: TailClass::Unknown,
            head_length: 0,
            head_remaining: 0,
            tail_length: 0,
            tail_total: 0,
            first_record: Lsn(0),
            first_prev: Lsn(0),
            last_begun: Lsn(0),
            last_complete: Lsn(0),
            last_complete_end: Lsn(0),
            valid_end: start_lsn,
            commits: 0,
            ends: 0,
            times: (TimestampTz(0), TimestampTz(0)),
            xids: (0, 0),
            link: Brief::default(),
        }
    }

    /// Whether a bit of `flags` is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What the record is that begins in a segment and ends in a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// There is none, or it decides nothing.
    Nothing,
    /// It ends a transaction; the xid is 0 where it is not known.
    End {
        /// Effective xid.
        xid: u32,
        /// Its time.
        time: TimestampTz,
        /// Whether it is a commit.
        is_commit: bool,
    },
    /// It is a restore point.
    RestorePoint,
    /// It is a change of parameters.
    ParameterChange,
    /// It may be anything: the body has to tell.
    Unknown,
}

/// A record of the WAL, as far as it matters to where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its LSN.
    pub start: Lsn,
    /// Where it ends (EndRecPtr).
    pub end: Lsn,
    /// What it is.
    pub kind: EntryKind,
}

/// What a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// It ends a transaction, prepared ones too.
    End {
        /// Effective xid.
        xid: u32,
        /// Its time.
        time: TimestampTz,
        /// Commit or abort.
        is_commit: bool,
    },
    /// Another record of the transaction manager.
    Transaction,
    /// A restore point.
    RestorePoint {
        /// When it was made.
        time: TimestampTz,
        /// Its name, in the server's encoding.
        name: Vec<u8>,
    },
    /// A checkpoint.
    Checkpoint {
        /// Next xid with its epoch in the upper half.
        next_xid: u64,
    },
    /// The server was started with other parameters.
    ParameterChange(Parameters),
    /// Anything else.
    Other,
}

/// A restore point, as the index names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPoint {
    /// Start of the record.
    pub lsn: Lsn,
    /// When it was made.
    pub time: TimestampTz,
    /// Its name, in the server's encoding.
    pub name: Vec<u8>,
}

/// Answers what a plan asks of archived WAL. Only segments that the inventory lists are asked for.
///
/// `Damaged` and `Unsupported` are answers about a segment; every other error ends the plan.
pub trait Wal {
    /// Tells which segments will be asked for, so that they can be read together.
    ///
    /// # Errors
    /// As [`Wal::facts`], but nothing about single segments.
    fn prefetch(
        &self,
        _timeline: TimelineId,
        _first: SegmentNumber,
        _last: SegmentNumber,
    ) -> Result<()> {
        Ok(())
    }

    /// What the index of a segment says.
    fn facts(&self, name: SegmentName) -> Result<Facts>;

    /// What the record is that begins in `name` and ends in `next`, the segment that follows on the path.
    fn crossing(&self, name: SegmentName, next: Option<SegmentName>) -> Result<Crossing>;

    /// Whether a transaction of this xid may end inside the segment; false is certain.
    fn may_end(&self, name: SegmentName, xid: u32) -> Result<bool>;

    /// The restore points inside the segment; `None` where the index does not record them.
    fn restore_points(&self, name: SegmentName) -> Result<Option<Vec<NamedPoint>>>;

    /// Decodes the segment's body and shows every record that begins in it, in order, up to the first that is damaged.
    ///
    /// `next` gives the segment that follows on the path: the last record may end there.
    fn scan(
        &self,
        name: SegmentName,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()>;

    /// Whether a segment has this hash, as the stored object says; one that is damaged, or not stored whole, has every hash.
    ///
    /// # Errors
    /// As [`Wal::facts`], apart from damage.
    fn has_hash(&self, name: SegmentName, hash: RawHash) -> Result<bool>;

    /// Whether the first bytes of a segment have this hash, as [`Wal::has_hash`].
    ///
    /// # Errors
    /// As [`Wal::has_hash`].
    fn has_prefix(&self, name: SegmentName, length_bytes: u64, hash: RawHash) -> Result<bool>;

    /// Makes sure that what was said of a segment is still what is stored.
    ///
    /// # Errors
    /// As [`Wal::facts`].
    fn confirm(&self, _name: SegmentName) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_runs() {
        let runs = Runs::from_numbers(vec![7, 3, 5, 4, 4, 9]);
        let pairs: Vec<_> = runs.iter().map(|(a, b)| (a.0, b.0)).collect();
        assert_eq!(pairs, [(3, 5), (7, 7), (9, 9)]);
        assert_eq!(runs.count(), 5);
        assert_eq!(runs.bounds(), Some((SegmentNumber(3), SegmentNumber(9))));
        for n in 0..12 {
            let there = [3, 4, 5, 7, 9].contains(&n);
            assert_eq!(runs.contains(SegmentNumber(n)), there, "{n}");
        }
        assert_eq!(runs.next_from(SegmentNumber(6)), Some(SegmentNumber(7)));
        assert_eq!(runs.next_from(SegmentNumber(10)), None);
        let joined = runs.union(Runs::from_numbers(vec![6, 8, 20]));
        let pairs: Vec<_> = joined.iter().map(|(a, b)| (a.0, b.0)).collect();
        assert_eq!(pairs, [(3, 9), (20, 20)]);
        assert!(Runs::default().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn a_difference_is_that_of_the_sets(
            a in proptest::collection::btree_set(0u64..40, 0..30),
            b in proptest::collection::btree_set(0u64..40, 0..30),
        ) {
            let runs = |set: &std::collections::BTreeSet<u64>| {
                Runs::from_numbers(set.iter().copied().collect())
            };
            let rest = Runs::from_numbers(a.difference(&b).copied().collect());
            proptest::prop_assert_eq!(runs(&a).minus(&runs(&b)), rest);
        }
    }
}
