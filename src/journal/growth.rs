//! Warns while there is time: a journal that grows because a repository takes nothing, WAL that the server keeps because the journal does not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Shares of the room, in percent, at which a warning is due.
const LEVELS: [u64; 3] = [50, 75, 90];
/// The rate is that of the last minutes.
const LOOK_BACK: Duration = Duration::from_secs(300);
const LEAST: Duration = Duration::from_secs(5);
const SAMPLES_MAX: usize = 64;

/// A level was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// How much of the room is taken.
    pub percent: u64,
    /// When all of it is, at the present rate; unknown at first, and while nothing grows.
    pub left: Option<Duration>,
}

impl Reached {
    /// The time that is left, in words that follow `what`; nothing where it is unknown.
    pub fn in_words(&self, what: &str) -> String {
        self.left.map_or(String::new(), |left| {
            format!("; at the present rate {what} in {}", human(left))
        })
    }
}

/// How something grows that has a limit.
pub struct Growth {
    samples: VecDeque<(Instant, u64)>,
    /// How many levels were warned about, and when the last of them was.
    warned: usize,
    warned_at: Instant,
}

impl Growth {
    /// Begins with `bytes`.
    pub fn new(now: Instant, bytes: u64) -> Growth {
        Growth {
            samples: VecDeque::from([(now, bytes)]),
            warned: 0,
            warned_at: now,
        }
    }

    /// It has `bytes`, and may have `ceiling`; what to warn about when that is due.
    pub fn observe(&mut self, now: Instant, bytes: u64, ceiling: u64) -> Option<Reached> {
        while self.samples.len() > 1
            && self
                .samples
                .front()
                .is_some_and(|(at, _)| now.duration_since(*at) > LOOK_BACK)
        {
            self.samples.pop_front();
        }
        let left = self.time_left(now, bytes, ceiling);
        if self.samples.len() == SAMPLES_MAX {
            // The oldest stays: it is what the rate is measured from.
            self.samples.remove(1);
        }
        self.samples.push_back((now, bytes));
        let percent = bytes.saturating_mul(100) / ceiling.max(1);
        let level = LEVELS.iter().filter(|l| percent >= **l).count();
        let is_due = level > self.warned;
        // A size that swings around a level is warned about once: that of a full journal does so with each segment.
        if is_due || now.duration_since(self.warned_at) > LOOK_BACK {
            (self.warned, self.warned_at) = (level, now);
        }
        is_due.then_some(Reached { percent, left })
    }

    fn time_left(&self, now: Instant, bytes: u64, ceiling: u64) -> Option<Duration> {
        let (at, before) = self.samples.front()?;
        let grown = bytes.checked_sub(*before).filter(|n| *n > 0)?;
        // The first moments say little.
        let observed = now.duration_since(*at);
        let micros = Some(observed).filter(|o| *o >= LEAST)?.as_micros();
        let left = u128::from(ceiling.saturating_sub(bytes)) * micros / u128::from(grown);
        Some(Duration::from_micros(u64::try_from(left).ok()?))
    }
}

fn human(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_warned_about_once_with_the_time_that_is_left() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut growth = Growth::new(start, 0);
        assert_eq!(growth.observe(at(10), 100, 1000), None);
        let first = growth.observe(at(50), 500, 1000).unwrap();
        assert_eq!(first.percent, 50);
        assert_eq!(
            first.in_words("it is full"),
            "; at the present rate it is full in 50 s"
        );
        assert_eq!(growth.observe(at(60), 600, 1000), None);
        let last = growth.observe(at(95), 950, 1000).unwrap();
        assert_eq!(last.percent, 95);
        assert_eq!(last.left, Some(Duration::from_secs(5)));
        // It swings: nothing new until it has stayed below for a while.
        assert_eq!(growth.observe(at(96), 10, 1000), None);
        assert_eq!(growth.observe(at(97), 960, 1000), None);
        assert_eq!(growth.observe(at(400), 10, 1000), None);
        assert_eq!(growth.observe(at(401), 760, 1000).unwrap().percent, 76);
        // Less than at first: no rate, but a warning all the same.
        let mut shrinking = Growth::new(start, 990);
        let reached = shrinking.observe(at(50), 900, 1000).unwrap();
        assert_eq!((reached.percent, reached.in_words("")), (90, String::new()));
    }

    #[test]
    fn samples_are_few_and_recent() {
        let start = Instant::now();
        let mut growth = Growth::new(start, 0);
        for second in 1..1000 {
            growth.observe(start + Duration::from_secs(second), 0, 1 << 40);
        }
        assert!(growth.samples.len() <= SAMPLES_MAX);
        let oldest = growth.samples.front().unwrap().0;
        assert!(oldest >= start + Duration::from_secs(650));
    }
}
