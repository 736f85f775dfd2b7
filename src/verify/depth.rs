//! How much a run reads: everything, nothing but what leads to the content, or what was read back longest ago.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::packs::Chosen;
use crate::error::Result;
use crate::fault;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::part_names;
use crate::repo::id::PartName;
use crate::repo::portion::{Gathered, Portion};

/// Stored bytes that are read before it is recorded that they were.
const STEP_BYTES: usize = 1 << 30;
/// Steps of a run without a time limit, at most, and one: each of them leaves an event.
const STEPS_MAX: usize = 200;

/// How much is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Depth {
    /// Every byte.
    Everything,
    /// Roots, layers, maps, small objects, the ends of segments; of packs only that they are there in their length.
    Fast,
    /// As [`Depth::Fast`], and of packs and segments first what was never read back, then what was read longest ago.
    Oldest(Budget),
}

impl Depth {
    /// How much is read of each pack, whether or not it is read whole later.
    pub(super) fn of_packs(&self) -> Chosen<'static> {
        match self {
            Depth::Everything => Chosen::All,
            Depth::Fast | Depth::Oldest(_) => Chosen::Directories,
        }
    }
}

/// How much of it is read in one run; all of it without a limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Budget {
    /// Stored bytes of packs and segments. At least one of them is read.
    pub max_bytes: Option<u64>,
    /// For how long.
    pub time: Option<Duration>,
}

/// A pack, or a segment of WAL or of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unit {
    Pack(PartName),
    Segment(TimelineId, SegmentNumber),
    Log(String, SegmentNumber),
}

/// The packs and segments that a run still has to read, in order.
pub(super) struct Queue {
    units: VecDeque<Vec<Unit>>,
    /// Packs and segments of a step, at least.
    step_units: usize,
    left_bytes: Option<u64>,
    until: Option<Instant>,
    is_first: bool,
}

impl Queue {
    /// Orders the packs and segments that are there, which [`crate::repo::portion::ReadBack::by_age`] has divided.
    /// Within one age, the newest backup comes first.
    pub fn new(ages: &[(Option<TimestampTz>, Portion)], budget: &Budget) -> Queue {
        let units: VecDeque<Vec<Unit>> = ages.iter().map(|(_, portion)| units(portion)).collect();
        let all = units.iter().map(Vec::len).sum::<usize>();
        Queue {
            // The limit of time is looked at between two steps.
            step_units: if budget.time.is_some() {
                1
            } else {
                (all / STEPS_MAX).max(1)
            },
            units,
            left_bytes: budget.max_bytes,
            until: budget
                .time
                .and_then(|time| Instant::now().checked_add(time)),
            is_first: true,
        }
    }

    /// Takes what is read next; `None` when nothing is left, or the limit is reached. `size_of` tells stored lengths.
    pub fn next(
        &mut self,
        size_of: &mut dyn FnMut(&Unit) -> Result<u64>,
    ) -> Result<Option<Portion>> {
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        if is_late && !self.is_first {
            return Ok(None);
        }
        let mut taken = Gathered::default();
        let mut taken_bytes = 0;
        let mut count = 0;
        let step_bytes = fault::lowered(STEP_BYTES) as u64;
        while let Some(unit) = self.front() {
            let size = size_of(&unit)?;
            if self.left_bytes.is_some_and(|left| left < size) && !self.is_first {
                self.units.clear();
                break;
            }
            if count >= self.step_units && taken_bytes + size > step_bytes {
                break;
            }
            self.is_first = false;
            self.left_bytes = self.left_bytes.map(|left| left.saturating_sub(size));
            taken_bytes += size;
            count += 1;
            match &unit {
                Unit::Pack(part) => taken.pack(part),
                Unit::Segment(timeline, number) => taken.segment(*timeline, *number),
                Unit::Log(replid, number) => taken.log(replid, *number),
            }
            self.units.front_mut().and_then(Vec::pop);
        }
        let taken = taken.portion();
        Ok(Some(taken).filter(|t| !t.is_empty()))
    }

    fn front(&mut self) -> Option<Unit> {
        while self.units.front().is_some_and(Vec::is_empty) {
            self.units.pop_front();
        }
        self.units.front()?.last().cloned()
    }
}

/// The parts of a portion, the first one last.
fn units(portion: &Portion) -> Vec<Unit> {
    let segments = portion.segments.iter().flat_map(|(timeline, runs)| {
        let numbers = runs.iter().flat_map(|(a, b)| a.0..=b.0);
        numbers.map(|n| Unit::Segment(*timeline, SegmentNumber(n)))
    });
    let logs = portion.logs.iter().flat_map(|(replid, runs)| {
        let numbers = runs.iter().flat_map(|(a, b)| a.0..=b.0);
        numbers.map(|n| Unit::Log(replid.clone(), SegmentNumber(n)))
    });
    let newest = portion.packs.iter().rev();
    let packs = newest.flat_map(|(id, runs)| part_names(id, runs).map(Unit::Pack));
    let mut units: Vec<Unit> = segments.chain(logs).chain(packs).collect();
    units.reverse();
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portion(packs: &[u32], segments: &[u64]) -> Portion {
        let mut gathered = Gathered::default();
        for number in packs {
            gathered.pack(&PartName {
                id: "20261120T064049Z-full".parse().unwrap(),
                number: *number,
            });
        }
        for number in segments {
            gathered.segment(TimelineId::FIRST, SegmentNumber(*number));
        }
        gathered.portion()
    }

    fn taken(budget: &Budget, size: u64) -> Vec<(u64, u64)> {
        let ages = [
            (None, portion(&[4], &[9])),
            (Some(TimestampTz(1)), portion(&[0, 1], &[])),
        ];
        let mut queue = Queue::new(&ages, budget);
        let mut all = Vec::new();
        while let Some(next) = queue.next(&mut |_| Ok(size)).unwrap() {
            all.push(next.counts());
        }
        all
    }

    #[test]
    fn a_run_takes_what_its_budget_allows_in_steps_and_at_least_one_object() {
        let limit = |max_bytes| Budget {
            max_bytes: Some(max_bytes),
            time: None,
        };
        assert_eq!(taken(&Budget::default(), 1), [(3, 1)]);
        assert_eq!(
            taken(&Budget::default(), STEP_BYTES as u64),
            [(0, 1), (1, 0), (1, 0), (1, 0)]
        );
        assert_eq!(taken(&limit(25), 10), [(1, 1)]);
        assert_eq!(taken(&limit(0), 10), [(0, 1)]);
        let many: Vec<u32> = (0..1000).collect();
        let mut queue = Queue::new(&[(None, portion(&many, &[]))], &Budget::default());
        let step = queue.next(&mut |_| Ok(STEP_BYTES as u64)).unwrap().unwrap();
        assert_eq!(step.counts(), (5, 0));
        let over = Budget {
            max_bytes: None,
            time: Some(Duration::ZERO),
        };
        assert_eq!(taken(&over, STEP_BYTES as u64), [(0, 1)]);
    }
}
