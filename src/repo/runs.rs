//! Sets of numbers: segments of a timeline, parts of a backup.

use crate::pg::segment::SegmentNumber;

/// Numbers of segments, layers or packs, as runs: 100 000 without a hole take the room of one.
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

    /// Returns the numbers that are here and not in `other`.
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
