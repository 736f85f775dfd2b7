//! How long recovery takes, from the durations of drills; a pure function of these and of the work.
//!
//! Copy and replay follow a law of two numbers: a fixed part, and time for each byte. Both are found as Theil and Sen do: the median slope of
//! all pairs of drills whose sizes differ enough, and the median of what is left. One drill that was disturbed moves neither. The other phases
//! take the median. A part that no drill measured is taken from defaults, and says so.

use serde::Serialize;

use crate::repo::drilled::{Phase, Timed};

/// Two sizes tell a fixed part from a rate only where one is this many times the other.
const SPREAD: u64 = 2;
/// Work that is this many times the largest that was tried is a guess.
const FAR: u64 = 10;
/// Picoseconds of a millisecond.
const PS: i128 = 1_000_000_000;
/// By default: 100 MiB/s are copied. A hard disk or a good network manages it.
const COPY: Law = Law {
    fixed_ms: 0,
    ps_per_byte: 9_537,
};
/// By default: 50 MiB/s of WAL are replayed. Replay has one process.
const REPLAY: Law = Law {
    fixed_ms: 0,
    ps_per_byte: 19_073,
};
/// By default each of the other phases takes this long.
const STEP_MS: u64 = 1_000;

/// By default: 50 MiB/s of a data set of Redis are written and loaded.
const DATA_SET: Law = Law {
    fixed_ms: 0,
    ps_per_byte: 19_073,
};

/// Content without WAL that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// Files, which are copied.
    Files,
    /// A data set, which a server loads besides.
    DataSet,
}

/// The work of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Raw bytes of the backup's files.
    pub copy: u64,
    /// WAL from the backup's start to where recovery ends.
    pub replay: u64,
}

/// The origin of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Drills on this host.
    Measured,
    /// Nobody measured it here.
    Default,
}

/// One phase of a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    pub phase: Phase,
    /// How long it probably takes.
    pub ms: u64,
    /// The bytes that it goes through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The origin of the estimate.
    pub basis: Basis,
    /// How many drills measured it.
    #[serde(skip)]
    pub drills: usize,
    /// Whether it is far larger than anything that was tried.
    pub is_far: bool,
}

/// How long recovery probably takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// All parts together.
    pub ms: u64,
    /// The phases, in the order in which they happen.
    pub parts: Vec<Part>,
    /// How many drills it rests on: as many as measured the part that fewest of them measured, defaults aside.
    pub drills: usize,
}

/// A fixed part, and time for each byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Law {
    fixed_ms: u64,
    ps_per_byte: u64,
}

impl Law {
    fn ms(self, bytes: u64) -> u64 {
        let ps = i128::from(self.ps_per_byte).saturating_mul(i128::from(bytes));
        let ms = u64::try_from(ps / PS).unwrap_or(u64::MAX);
        self.fixed_ms.saturating_add(ms)
    }
}

/// Estimates the recovery; `drills` are the phases of each drill that passed on this host.
pub fn estimate(drills: &[&[Timed]], work: Work) -> Estimate {
    let parts = [
        of_step(drills, Phase::Plan),
        of_bytes(drills, Phase::Copy, work.copy, COPY),
        of_step(drills, Phase::Start),
        of_bytes(drills, Phase::Replay, work.replay, REPLAY),
        of_step(drills, Phase::Checkpoint),
    ];
    let measured = parts.iter().filter(|p| p.basis == Basis::Measured);
    Estimate {
        drills: measured.map(|p| p.drills).min().unwrap_or(0),
        ms: parts.iter().fold(0, |sum, p| sum.saturating_add(p.ms)),
        parts: parts.into(),
    }
}

/// Says how long a restore of so many bytes takes. `runs` have bytes and milliseconds of restores on this host.
pub fn restore(runs: &[(u64, u64)], bytes: u64, of: Restored) -> (u64, Basis) {
    let tried: Vec<(u64, u64)> = runs.iter().copied().filter(|run| run.0 > 0).collect();
    let default = match of {
        Restored::Files => COPY,
        Restored::DataSet => DATA_SET,
    };
    match fitted(&tried) {
        Some(law) => (law.ms(bytes), Basis::Measured),
        None => (default.ms(bytes), Basis::Default),
    }
}

impl Estimate {
    /// The origin of the whole: it is measured where each part is.
    pub fn basis(&self) -> Basis {
        let is_default = |part: &Part| part.basis == Basis::Default;
        match self.parts.iter().any(is_default) {
            true => Basis::Default,
            false => Basis::Measured,
        }
    }
}

fn timed<'a>(drills: &'a [&[Timed]], phase: Phase) -> impl Iterator<Item = &'a Timed> {
    let of = move |phases: &&'a [Timed]| phases.iter().find(|timed| timed.phase == phase);
    drills.iter().filter_map(of)
}

fn of_step(drills: &[&[Timed]], phase: Phase) -> Part {
    let all: Vec<i128> = timed(drills, phase).map(|t| i128::from(t.ms)).collect();
    let count = all.len();
    let measured = median(all).and_then(|ms| u64::try_from(ms).ok());
    Part {
        phase,
        ms: measured.unwrap_or(STEP_MS),
        bytes: None,
        basis: measured.map_or(Basis::Default, |_| Basis::Measured),
        drills: count,
        is_far: false,
    }
}

fn of_bytes(drills: &[&[Timed]], phase: Phase, bytes: u64, default: Law) -> Part {
    let all = timed(drills, phase).filter_map(|t| Some((t.bytes?, t.ms)));
    let tried: Vec<(u64, u64)> = all.filter(|(bytes, _)| *bytes > 0).collect();
    let largest = tried.iter().map(|(bytes, _)| *bytes).max();
    let law = fitted(&tried);
    Part {
        phase,
        ms: law.unwrap_or(default).ms(bytes),
        bytes: Some(bytes),
        basis: law.map_or(Basis::Default, |_| Basis::Measured),
        drills: tried.len(),
        is_far: largest.is_some_and(|largest| bytes / FAR > largest),
    }
}

/// The law of what was tried; none where nothing was.
fn fitted(tried: &[(u64, u64)]) -> Option<Law> {
    let pairs = tried.iter().enumerate();
    let pairs = pairs.flat_map(|(at, a)| tried.iter().skip(at + 1).map(move |b| (a, b)));
    let slopes = pairs.filter_map(|(a, b)| {
        let (small, large) = if a.0 < b.0 { (a, b) } else { (b, a) };
        let is_wide = large.0 / SPREAD >= small.0;
        let ps = (i128::from(large.1) - i128::from(small.1)) * PS;
        is_wide.then(|| ps / (i128::from(large.0) - i128::from(small.0)).max(1))
    });
    // A slope that is mostly noise may say that more bytes take no longer: it must not promise that of any size.
    if let Some(slope) = median(slopes.collect()).filter(|slope| *slope > 0) {
        let fixed = |(bytes, ms): &(u64, u64)| i128::from(*ms) - slope * i128::from(*bytes) / PS;
        let fixed = median(tried.iter().map(fixed).collect())?.max(0);
        return Some(Law {
            fixed_ms: u64::try_from(fixed).ok()?,
            ps_per_byte: u64::try_from(slope).ok()?,
        });
    }
    let rate = |(bytes, ms): &(u64, u64)| i128::from(*ms) * PS / i128::from(*bytes).max(1);
    let rate = median(tried.iter().map(rate).collect())?;
    Some(Law {
        fixed_ms: 0,
        ps_per_byte: u64::try_from(rate).ok()?,
    })
}

/// The middle one; of two the mean.
fn median(mut values: Vec<i128>) -> Option<i128> {
    values.sort_unstable();
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    match values.len() % 2 {
        0 => Some(values.get(middle - 1)?.midpoint(upper)),
        _ => Some(upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn drill(copy: (u64, u64), replay: (u64, u64), step: u64) -> Vec<Timed> {
        let timed = |phase, ms, bytes| Timed { phase, ms, bytes };
        vec![
            timed(Phase::Plan, step, None),
            timed(Phase::Copy, copy.1, Some(copy.0 * MIB)),
            timed(Phase::Start, step, None),
            timed(Phase::Replay, replay.1, Some(replay.0 * MIB)),
            timed(Phase::Checkpoint, step, None),
        ]
    }

    fn of(drills: &[Vec<Timed>], copy: u64, replay: u64) -> Estimate {
        let drills: Vec<&[Timed]> = drills.iter().map(Vec::as_slice).collect();
        let work = Work {
            copy: copy * MIB,
            replay: replay * MIB,
        };
        estimate(&drills, work)
    }

    fn ms(estimate: &Estimate, phase: Phase) -> u64 {
        let part = estimate.parts.iter().find(|p| p.phase == phase);
        part.unwrap().ms
    }

    #[test]
    fn without_a_drill_every_part_is_a_default_and_says_so() {
        let told = of(&[], 1000, 500);
        assert!(told.parts.iter().all(|p| p.basis == Basis::Default));
        assert_eq!(ms(&told, Phase::Copy) / 100, 100);
        assert_eq!(ms(&told, Phase::Replay) / 100, 99);
        assert_eq!(told.ms, told.parts.iter().map(|p| p.ms).sum::<u64>());
        assert_eq!(told.drills, 0);
        // Sizes that no cluster has break nothing.
        let all = estimate(
            &[],
            Work {
                copy: u64::MAX,
                replay: u64::MAX,
            },
        );
        assert!(all.ms > 1 << 40);
    }

    #[test]
    fn two_sizes_tell_the_fixed_part_from_the_rate() {
        // Copy: 400 ms and 10 ms each MiB. Replay: 100 ms and 20 ms each MiB.
        let drills = [
            drill((100, 1_400), (10, 300), 50),
            drill((400, 4_400), (80, 1_700), 70),
        ];
        let told = of(&drills, 1000, 40);
        assert!(ms(&told, Phase::Copy).abs_diff(10_400) <= 1, "{told:?}");
        assert!(ms(&told, Phase::Replay).abs_diff(900) <= 1, "{told:?}");
        assert_eq!(ms(&told, Phase::Start), 60);
        assert!(told.parts.iter().all(|p| p.basis == Basis::Measured));
    }

    #[test]
    fn one_drill_that_was_disturbed_moves_the_estimate_little() {
        let mut drills: Vec<_> = [100, 200, 300, 400, 600]
            .map(|mib| drill((mib, 400 + 10 * mib), (mib, 20 * mib), 100))
            .into();
        drills.push(drill((500, 60_000), (500, 90_000), 9_000));
        let told = of(&drills, 500, 500);
        assert!(ms(&told, Phase::Copy).abs_diff(5_400) < 540, "{told:?}");
        assert!(ms(&told, Phase::Replay).abs_diff(10_000) < 1_000);
        assert_eq!(ms(&told, Phase::Checkpoint), 100);
    }

    #[test]
    fn drills_of_one_size_and_noise_give_a_rate_and_no_free_bytes() {
        let alike = [
            drill((100, 1_000), (10, 100), 1),
            drill((110, 1_100), (10, 120), 1),
        ];
        let told = of(&alike, 1000, 10);
        assert!(ms(&told, Phase::Copy).abs_diff(10_000) <= 1, "{told:?}");
        // The larger one was faster.
        let noise = [
            drill((100, 1_000), (10, 100), 1),
            drill((300, 900), (40, 90), 1),
        ];
        let told = of(&noise, 3000, 10);
        assert!(ms(&told, Phase::Copy) > 9_000, "{told:?}");
    }

    #[test]
    fn a_part_that_no_drill_measured_is_a_default_beside_measured_ones() {
        // A moment at the backup's own end replays nothing.
        let told = of(&[drill((100, 1_000), (0, 5), 30)], 100, 50);
        let basis = |phase| told.parts.iter().find(|p| p.phase == phase).unwrap().basis;
        assert_eq!(basis(Phase::Copy), Basis::Measured);
        assert_eq!(basis(Phase::Replay), Basis::Default);
    }

    #[test]
    fn the_part_that_fewest_drills_measured_says_how_many_it_rests_on() {
        let mut drills = vec![drill((100, 1_000), (0, 5), 30); 8];
        drills.push(drill((100, 1_000), (16, 320), 30));
        let told = of(&drills, 100, 50);
        let count = |phase| told.parts.iter().find(|p| p.phase == phase).unwrap().drills;
        assert_eq!((count(Phase::Copy), count(Phase::Replay)), (9, 1));
        assert_eq!(told.drills, 1);
        // A part that is a default rests on none, and the others still on theirs.
        drills.pop();
        assert_eq!(of(&drills, 100, 50).drills, 8);
    }

    #[test]
    fn a_restore_takes_as_long_as_those_before_it_and_by_default_a_rate() {
        let told = |runs: &[(u64, u64)], of| restore(runs, 100 * MIB, of);
        assert_eq!(told(&[], Restored::Files), (1_000, Basis::Default));
        assert_eq!(told(&[(0, 70)], Restored::DataSet), (1_999, Basis::Default));
        let runs = [(10 * MIB, 700), (20 * MIB, 900), (40 * MIB, 1_300)];
        let (ms, basis) = told(&runs, Restored::DataSet);
        assert!(ms.abs_diff(2_500) <= 2, "{ms}");
        assert_eq!(basis, Basis::Measured);
    }

    #[test]
    fn work_far_beyond_what_was_tried_is_called_that() {
        let drills = [drill((100, 1_000), (10, 100), 1)];
        let is_far = |copy| of(&drills, copy, 1).parts.iter().any(|p| p.is_far);
        assert!(!is_far(1_000));
        assert!(is_far(1_200));
    }
}
