//! How much a run reads: everything, nothing but what leads to the content, or what was read back longest ago.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::packs::Chosen;
use crate::error::Result;
use crate::fault;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::part_names;
use crate::repo::event::{self, Recorded};
use crate::repo::id::PartName;
use crate::repo::portion::{Gathered, Portion};

/// Stored bytes that are read before it is recorded that they were.
const STEP_BYTES: usize = 1 << 30;
/// Steps of a run without a time limit, at most, and one: each of them leaves an event.
const STEPS_MAX: usize = 200;

/// Returns how many stored bytes are read before it is recorded that they were.
pub(super) fn step_bytes() -> u64 {
    fault::lowered(STEP_BYTES) as u64
}

/// How much is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Depth {
    /// Every byte.
    Everything,
    /// Roots, layers, maps, small objects, the ends of segments; of packs only that they are there in their length.
    Fast,
    /// Packs and segments that were never read back come first, then what was read longest ago; and as [`Depth::Fast`] as many backups as the limits
    /// allow, one at least.
    Oldest(Budget),
}

impl Depth {
    /// How much is read of each pack, where a backup is looked at as such.
    ///
    /// A backup in which damage is recorded is compared anew, so that the damage can end; so is one that was never read back.
    pub(super) fn of_packs(&self, events: &[Recorded]) -> Chosen<'static> {
        let is_verified = !event::standing(events, "verified", "").is_empty();
        match self {
            Depth::Everything if is_verified && event::damage(events).is_empty() => Chosen::Rest,
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
    /// For how long, from the beginning of the run on.
    pub time: Option<Duration>,
}

impl Budget {
    /// When the reading of content makes way for the structure of backups: a quarter of the time is left.
    fn content_end(&self, started: Instant) -> Option<Instant> {
        let time = self.time.map(|time| time.saturating_sub(time / 4));
        time.and_then(|time| started.checked_add(time))
    }

    /// When nothing more is begun.
    pub(super) fn end(&self, started: Instant) -> Option<Instant> {
        self.time.and_then(|time| started.checked_add(time))
    }

    /// Whether no other backup is looked at. Maps are no content: they get as many bytes for themselves, and a step's at least.
    pub(super) fn is_over(&self, started: Instant, map_bytes: u64) -> bool {
        let end = self.end(started);
        let is_late = end.is_some_and(|end| Instant::now() >= end);
        let is_read = |most: u64| map_bytes >= most.max(step_bytes());
        is_late || self.max_bytes.is_some_and(is_read)
    }
}

/// A pack, or a segment of WAL or of a log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unit {
    Pack(PartName),
    Segment(TimelineId, SegmentNumber),
    Log(String, SegmentNumber),
}

/// Packs and segments that would take the limits of the others.
#[derive(Debug, Default)]
pub(super) struct Slow {
    /// Packs in a class from which the store must thaw them: as a rule nothing of them is read.
    pub cold: BTreeSet<PartName>,
    /// Those that a check found damaged: they stay due.
    pub damaged: BTreeSet<Unit>,
}

/// The packs and segments that a run still has to read, in order.
pub(super) struct Queue {
    units: VecDeque<Vec<Unit>>,
    damaged: BTreeSet<Unit>,
    /// The bytes taken of these; none before the first one.
    damaged_bytes: Option<u64>,
    /// The damaged ones that wait for all others.
    later: Vec<Unit>,
    max_bytes: Option<u64>,
    /// Packs and segments of a step, at least.
    step_units: usize,
    left_bytes: Option<u64>,
    until: Option<Instant>,
    is_first: bool,
}

impl Queue {
    /// Orders the packs and segments that are there, which [`crate::repo::portion::ReadBack::by_age`] has divided.
    /// Within one age, the newest backup comes first. Cold packs come behind all others.
    pub fn new(
        ages: &[(Option<TimestampTz>, Portion)],
        budget: &Budget,
        started: Instant,
        slow: Slow,
    ) -> Queue {
        let is_cold = |unit: &Unit| matches!(unit, Unit::Pack(part) if slow.cold.contains(part));
        let divided = ages.iter().map(|(_, portion)| {
            let units = units(portion).into_iter();
            units.partition::<Vec<Unit>, _>(is_cold)
        });
        let (cold, others): (Vec<_>, Vec<_>) = divided.unzip();
        let units: VecDeque<Vec<Unit>> = others.into_iter().chain(cold).collect();
        let all = units.iter().map(Vec::len).sum::<usize>();
        Queue {
            // The limit of time is looked at between two steps.
            step_units: if budget.time.is_some() {
                1
            } else {
                (all / STEPS_MAX).max(1)
            },
            units,
            damaged: slow.damaged,
            damaged_bytes: None,
            later: Vec::new(),
            max_bytes: budget.max_bytes,
            left_bytes: budget.max_bytes,
            until: budget.content_end(started),
            is_first: true,
        }
    }

    /// Goes on until another moment.
    pub fn go_on(&mut self, until: Option<Instant>) {
        self.until = until;
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
        let step_bytes = step_bytes();
        while let Some(unit) = self.front() {
            let is_damaged = self.damaged.contains(&unit);
            // The size of each one that waits would cost a request.
            if is_damaged && self.must_all_wait() {
                self.put_off(unit);
                continue;
            }
            let size = size_of(&unit)?;
            if is_damaged && self.must_wait(size) {
                self.put_off(unit);
                continue;
            }
            let charged = match self.max_bytes {
                Some(max_bytes) if is_damaged => size.min(max_bytes / 2),
                _ => size,
            };
            if self.left_bytes.is_some_and(|left| left < charged) && !self.is_first {
                self.units.clear();
                self.later.clear();
                break;
            }
            if count >= self.step_units && taken_bytes + size > step_bytes {
                break;
            }
            match is_damaged {
                true => *self.damaged_bytes.get_or_insert(0) += size,
                false => self.is_first = false,
            }
            self.left_bytes = self.left_bytes.map(|left| left.saturating_sub(charged));
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

    /// Lets what comes first wait for all others.
    fn put_off(&mut self, unit: Unit) {
        self.units.front_mut().and_then(Vec::pop);
        self.later.push(unit);
    }

    /// Whether everything that is damaged waits, whatever its size. One is taken in any case.
    fn must_all_wait(&self) -> bool {
        let is_one_taken = self.damaged_bytes.is_some();
        is_one_taken && (self.until.is_some() || !self.later.is_empty())
    }

    /// Whether something damaged waits for all others: where limits hold, such things take half of them at most, and one in any case.
    fn must_wait(&self, size: u64) -> bool {
        let half = self.max_bytes.map(|max_bytes| max_bytes / 2);
        let taken = self.damaged_bytes.zip(half);
        taken.is_some_and(|(before, half)| before.saturating_add(size) > half)
    }

    fn front(&mut self) -> Option<Unit> {
        while self.units.front().is_some_and(Vec::is_empty) {
            self.units.pop_front();
        }
        if self.units.is_empty() && !self.later.is_empty() {
            self.later.reverse();
            self.units.push_back(std::mem::take(&mut self.later));
            self.damaged.clear();
            self.is_first = false;
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
        let mut queue = Queue::new(&ages, budget, Instant::now(), Slow::default());
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
        let ages = [(None, portion(&many, &[]))];
        let mut queue = Queue::new(&ages, &Budget::default(), Instant::now(), Slow::default());
        let step = queue.next(&mut |_| Ok(STEP_BYTES as u64)).unwrap().unwrap();
        assert_eq!(step.counts(), (5, 0));
        let over = Budget {
            max_bytes: None,
            time: Some(Duration::ZERO),
        };
        assert_eq!(taken(&over, STEP_BYTES as u64), [(0, 1)]);
    }

    fn pack(number: u32) -> PartName {
        PartName {
            id: "20261120T064049Z-full".parse().unwrap(),
            number,
        }
    }

    /// The packs that a run takes, each as long as a step, in order.
    fn packs_taken(budget: &Budget, slow: Slow) -> Vec<u64> {
        let ages = [
            (None, portion(&[0, 1, 2, 3], &[])),
            (Some(TimestampTz(1)), portion(&[4, 5, 6], &[])),
        ];
        let mut queue = Queue::new(&ages, budget, Instant::now(), slow);
        queue.step_units = 1;
        let mut all = Vec::new();
        while let Some(next) = queue.next(&mut |_| Ok(STEP_BYTES as u64)).unwrap() {
            let runs = next.packs.values().flat_map(|runs| runs.iter());
            all.extend(runs.flat_map(|(first, last)| first.0..=last.0));
        }
        all
    }

    fn bytes(packs: u64) -> Budget {
        Budget {
            max_bytes: Some(packs * STEP_BYTES as u64),
            time: None,
        }
    }

    #[test]
    fn v50_packs_that_must_be_thawed_come_behind_all_others() {
        let slow = || Slow {
            cold: [pack(0), pack(1), pack(4)].into(),
            ..Slow::default()
        };
        assert_eq!(packs_taken(&bytes(3), slow()), [2, 3, 5]);
        assert_eq!(
            packs_taken(&Budget::default(), slow()),
            [2, 3, 5, 6, 0, 1, 4]
        );
    }

    #[test]
    fn v51_damaged_packs_take_half_of_a_limit_at_most() {
        let slow = || Slow {
            damaged: [0, 1, 2].map(|n| Unit::Pack(pack(n))).into(),
            ..Slow::default()
        };
        // One of them is read, whatever the limit: the run tells of damage.
        assert_eq!(packs_taken(&bytes(0), slow()), [0, 3]);
        assert_eq!(packs_taken(&bytes(2), slow()), [0, 3]);
        assert_eq!(packs_taken(&bytes(4), slow()), [0, 1, 3, 4]);
        assert_eq!(packs_taken(&bytes(9), slow()), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(
            packs_taken(&Budget::default(), slow()),
            [0, 1, 2, 3, 4, 5, 6]
        );
        let late = Budget {
            max_bytes: None,
            time: Some(Duration::ZERO),
        };
        assert_eq!(packs_taken(&late, slow()), [0, 3]);
    }

    #[test]
    fn v53_damaged_segments_leave_half_of_a_limit_and_are_not_all_asked_for_their_size() {
        let segments: Vec<u64> = (0..70).collect();
        let ages = [
            (None, portion(&[], &segments)),
            (Some(TimestampTz(1)), portion(&[0, 1, 2], &[])),
        ];
        let taken = |budget: &Budget| {
            let damaged = segments.iter().map(|n| SegmentNumber(*n));
            let slow = Slow {
                damaged: damaged
                    .map(|n| Unit::Segment(TimelineId::FIRST, n))
                    .collect(),
                ..Slow::default()
            };
            let mut queue = Queue::new(&ages, budget, Instant::now(), slow);
            queue.step_units = 1;
            let (mut all, mut asked) = ((0, 0), 0);
            let mut size_of = |_: &Unit| -> Result<u64> {
                asked += 1;
                Ok(STEP_BYTES as u64)
            };
            while let Some(next) = queue.next(&mut size_of).unwrap() {
                let (packs, segments) = next.counts();
                all = (all.0 + packs, all.1 + segments);
            }
            assert!(asked < 20, "{asked}");
            all
        };
        assert_eq!(taken(&bytes(4)), (2, 2));
        let late = Budget {
            max_bytes: None,
            time: Some(Duration::ZERO),
        };
        assert_eq!(taken(&late), (1, 1));
    }

    #[test]
    fn v47_content_leaves_time_for_structure_and_takes_what_that_leaves() {
        let limit = |max_bytes, seconds: Option<u64>| Budget {
            max_bytes,
            time: seconds.map(Duration::from_secs),
        };
        let before = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        let Some(started) = before(80) else {
            return;
        };
        // 80 of 100 seconds are over: content waits, structure has its turn.
        let budget = limit(None, Some(100));
        let ages = [(None, portion(&[1, 2, 3], &[]))];
        let mut queue = Queue::new(&ages, &budget, started, Slow::default());
        let next = |queue: &mut Queue| queue.next(&mut |_| Ok(STEP_BYTES as u64)).unwrap();
        assert!(next(&mut queue).is_some() && next(&mut queue).is_none());
        assert!(!budget.is_over(started, u64::MAX));
        queue.go_on(budget.end(started));
        assert!(next(&mut queue).is_some());
        // All of it is over.
        let budget = limit(None, Some(70));
        assert!(budget.is_over(started, 0));
        queue.go_on(budget.end(started));
        assert!(next(&mut queue).is_none());
        // Bytes of maps have the limit of the content to themselves, and a step's at least.
        let (few, many) = (limit(Some(1), None), limit(Some(3 << 30), None));
        assert!(!few.is_over(started, (1 << 30) - 1) && few.is_over(started, 1 << 30));
        assert!(!many.is_over(started, (3 << 30) - 1) && many.is_over(started, 3 << 30));
        assert!(!limit(None, None).is_over(started, u64::MAX));
    }

    #[test]
    fn v48_only_a_backup_that_was_read_back_and_is_not_damaged_shares_what_is_read() {
        let event = |kind: &str| Recorded {
            name: kind.to_owned(),
            event: event::Event {
                event: kind.to_owned(),
                ..event::Event::default()
            },
            stored: TimestampTz(0),
            is_doubted: false,
        };
        let of = |kinds: &[&str]| {
            let events: Vec<Recorded> = kinds.iter().map(|kind| event(kind)).collect();
            matches!(Depth::Everything.of_packs(&events), Chosen::Rest)
        };
        assert!(of(&["verified"]));
        assert!(!of(&[]) && !of(&["damaged"]) && !of(&["verified", "damaged"]));
    }
}
