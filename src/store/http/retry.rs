//! How often and how long a request is tried, and the pauses between two tries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::attempt::Attempt;
use super::calm::Calm;
use super::failure::{Failure, Kind};
use crate::config::S3Settings;
use crate::store::runtime;

/// The longest pause after the first failure; doubled by each one that follows.
pub(in crate::store) const PAUSE: Duration = Duration::from_millis(200);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// So long an upload in parts may take to be completed: the store puts the parts together, which S3 says can take minutes.
const COMPLETION: Duration = Duration::from_secs(300);

/// The special purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Purpose {
    /// Nothing.
    Plain,
    /// It names an object if the name is free.
    Creating,
    /// The same, after parts; one attempt may take longer than others are tried.
    Completing,
}

/// A sequence of numbers that looks random (splitmix64).
pub(in crate::store) struct Random(AtomicU64);

impl Random {
    pub(in crate::store) fn new(nonce: u64) -> Random {
        Random(AtomicU64::new(nonce))
    }

    /// The next number.
    pub(in crate::store) fn draw(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let seed = self.0.fetch_add(STEP, Ordering::Relaxed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// Anything up to `most`, so that those who failed together do not come back together.
pub(in crate::store) fn part(most: Duration, random: u64) -> Duration {
    let micros = most.as_micros().saturating_mul(u128::from(random)) >> 64;
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// How long a request is tried.
pub(in crate::store) struct Time {
    /// So long nothing may come or go in one attempt.
    pub(in crate::store) stall: Duration,
    /// Time left for all attempts and the pauses between them. Time in which bytes come or go is not taken from it.
    budget: Duration,
    /// When the whole process must be done, however it gets on.
    pub(in crate::store) last: Option<Instant>,
    purpose: Purpose,
}

impl Time {
    pub(in crate::store) fn of(settings: &S3Settings, purpose: Purpose) -> Time {
        let stall = settings.stall_timeout;
        Time {
            stall: match purpose {
                Purpose::Completing => stall.max(COMPLETION),
                Purpose::Plain | Purpose::Creating => stall,
            },
            budget: settings.retry_budget,
            last: runtime::end(),
            purpose,
        }
    }

    pub(in crate::store) fn spend(&mut self, time: Duration) {
        self.budget = self.budget.saturating_sub(time);
    }

    /// Waits, and then for as long as the store wants less of everybody; whether there was time for it.
    pub(in crate::store) async fn pause(
        &mut self,
        mut pause: Duration,
        calm: &Calm,
        random: &Random,
    ) -> bool {
        loop {
            if self.left() <= pause {
                return false;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
                self.spend(pause);
            }
            pause = calm.left(Instant::now());
            if pause.is_zero() {
                return true;
            }
            // The throttled request goes first, and the others not together.
            pause += part(PAUSE, random.draw());
        }
    }

    /// Returns the time that is left.
    pub(in crate::store) fn left(&self) -> Duration {
        let whole = |last: Instant| last.saturating_duration_since(Instant::now());
        self.last
            .map_or(self.budget, |last| whole(last).min(self.budget))
    }

    /// How long an attempt may be silent. The first is not cut short by a small budget.
    pub(in crate::store) fn of_attempt(&self, is_first: bool) -> Duration {
        match is_first || self.purpose == Purpose::Completing {
            true => self.stall,
            false => self.left().min(self.stall),
        }
    }
}

/// An attempt that was given up. One that was cut short says less than the failure before it.
pub(in crate::store) fn given_up(
    attempt: &Attempt,
    is_cut: bool,
    before: Option<Failure>,
) -> Failure {
    match before {
        Some(before) if is_cut => Failure {
            kind: Kind::Again,
            ..before
        },
        _ => Failure::again(attempt.given_up()),
    }
}

/// The repairs and repetitions that a request has had so far.
#[derive(Debug, Default)]
pub(in crate::store) struct Tried {
    pub(in crate::store) again: u32,
    pub(in crate::store) renewed: bool,
    skewed: bool,
    moved: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum Next {
    Fail,
    Now,
    Renew(Option<String>),
    Pause(Duration),
}

impl Tried {
    /// The failure with its message: the deed, the place, and how often it was tried.
    pub(in crate::store) fn told(&self, doing: &str, place: &str, failure: Failure) -> Failure {
        let times = match self.again {
            0 | 1 => String::new(),
            n => format!(", tried {n} times"),
        };
        let what = format!("could not {doing} in \"{place}\"{times}");
        Failure {
            error: failure.error.context(what),
            is_ambiguous: self.again > 0,
            ..failure
        }
    }

    pub(in crate::store) fn next(&mut self, kind: &Kind, random: u64) -> Next {
        match kind {
            Kind::Again => {
                let most = PAUSE.saturating_mul(1 << self.again.min(10));
                self.again += 1;
                Next::Pause(part(most.min(PAUSE_MAX), random))
            }
            Kind::Expired | Kind::Wordless if !std::mem::replace(&mut self.renewed, true) => {
                Next::Renew(None)
            }
            Kind::Skewed if !std::mem::replace(&mut self.skewed, true) => Next::Now,
            Kind::Elsewhere(region) if !std::mem::replace(&mut self.moved, true) => {
                Next::Renew(Some(region.clone()))
            }
            _ => Next::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn pauses_are_drawn_below_a_ceiling_that_grows_and_ends() {
        let pauses = |random: u64| {
            let mut tried = Tried::default();
            let next = || match tried.next(&Kind::Again, random) {
                Next::Pause(pause) => pause,
                other => panic!("{other:?}"),
            };
            std::iter::repeat_with(next).take(20).collect::<Vec<_>>()
        };
        let (middle, last) = (pauses(1 << 63), pauses(u64::MAX));
        for (n, ceiling) in [(0, PAUSE), (3, PAUSE * 8), (19, PAUSE_MAX)] {
            assert_eq!(middle[n], ceiling / 2);
            assert_eq!(last[n], ceiling - Duration::from_micros(1));
        }
        assert!(pauses(0).iter().all(Duration::is_zero));
    }

    #[test]
    fn all_attempts_end_with_the_budget_but_the_first_is_whole() {
        let seconds = Duration::from_secs;
        let time = |budget, last: Option<u64>, purpose| Time {
            stall: seconds(1000),
            budget: seconds(budget),
            last: last.map(|s| Instant::now() + seconds(s)),
            purpose,
        };
        assert_eq!(
            time(10, None, Purpose::Plain).of_attempt(true),
            seconds(1000)
        );
        assert_eq!(
            time(10, None, Purpose::Plain).of_attempt(false),
            seconds(10)
        );
        let completing = time(10, None, Purpose::Completing);
        assert_eq!(completing.of_attempt(false), seconds(1000));
        let ends = time(900, Some(20), Purpose::Creating);
        assert!(ends.of_attempt(false) <= seconds(20) && ends.left() <= seconds(20));
        let mut spent = time(10, None, Purpose::Plain);
        spent.spend(seconds(7));
        assert_eq!(spent.left(), seconds(3));
        spent.spend(seconds(7));
        assert_eq!(
            (spent.left(), spent.of_attempt(false)),
            (Duration::ZERO, Duration::ZERO)
        );
    }

    #[test]
    fn an_attempt_that_was_cut_short_does_not_hide_the_cause() {
        let cause = || Some(Failure::again("SlowDown"));
        let told = |is_cut, before| {
            given_up(&Attempt::new(&Arc::default()), is_cut, before)
                .error
                .to_string()
        };
        assert_eq!(told(true, cause()), "SlowDown");
        for (is_cut, before) in [(false, cause()), (true, None)] {
            assert!(told(is_cut, before).starts_with("no whole answer within "));
        }
    }

    #[test]
    fn what_is_tried_once_is_not_tried_twice() {
        for kind in [
            Kind::Expired,
            Kind::Wordless,
            Kind::Skewed,
            Kind::Elsewhere("eu-west-1".into()),
        ] {
            let mut tried = Tried::default();
            assert_ne!(tried.next(&kind, 0), Next::Fail, "{kind:?}");
            assert_eq!(tried.next(&kind, 0), Next::Fail, "{kind:?}");
        }
        assert_eq!(Tried::default().next(&Kind::Final, 0), Next::Fail);
    }
}
