//! A value over time, as looks noted it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pg::time::TimestampTz;

/// The notes, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Trend(Vec<(TimestampTz, u64)>);

impl Trend {
    /// Notes a value, unless the last note is younger than `every`. Notes that are older than `longest` go.
    pub fn note(&mut self, now: TimestampTz, value: u64, (every, longest): (Duration, Duration)) {
        // A clock that was set back forgets what lies ahead of it.
        let age = |at: &TimestampTz| now.duration_since(*at);
        self.0
            .retain(|(at, _)| *at <= now && age(at) <= Some(longest));
        if self.last().is_none_or(|at| age(&at) >= Some(every)) {
            self.0.push((now, value));
        }
    }

    /// When a value was noted last.
    pub fn last(&self) -> Option<TimestampTz> {
        self.0.last().map(|(at, _)| *at)
    }

    /// The newest value that is at least so old.
    pub fn before(&self, now: TimestampTz, age: Duration) -> Option<u64> {
        let is_old = |(at, _): &&(TimestampTz, u64)| now.duration_since(*at) >= Some(age);
        self.0.iter().rfind(is_old).map(|(_, value)| *value)
    }

    /// Seconds until nothing of `free` is left, at the rate since the first note; none without a loss, and from notes of a time shorter
    /// than `span`.
    pub fn gone_in_s(&self, now: TimestampTz, free: u64, span: Duration) -> Option<u64> {
        let (since, then) = self.0.first()?;
        let passed = now.duration_since(*since).filter(|time| *time >= span)?;
        let taken = then.checked_sub(free).filter(|taken| *taken > 0)?;
        let seconds = u128::from(free) * u128::from(passed.as_secs()) / u128::from(taken);
        u64::try_from(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_rate_is_that_of_the_notes_and_of_no_short_time() {
        let start: TimestampTz = "2026-11-20T00:00:00Z".parse().unwrap();
        let at = |hours: u32| start.saturating_add(HOUR * hours);
        let mut trend = Trend::default();
        let mut note = |hours, free| {
            trend.note(at(hours), free, (HOUR, HOUR * 10));
            trend.gone_in_s(at(hours), free, HOUR * 2)
        };
        assert_eq!(note(0, 500), None);
        assert_eq!(note(1, 450), None, "too short");
        assert_eq!(note(2, 400), Some(8 * 3600));
        assert_eq!(note(3, 600), None, "room was made");
        assert_eq!(trend.before(at(3), HOUR * 2), Some(450));
        assert_eq!(trend.before(at(3), HOUR * 4), None);
        trend.note(at(12), 300, (HOUR, HOUR * 10));
        assert_eq!(trend.before(at(12), HOUR * 10), Some(400), "older ones go");
        trend.note(at(2), 300, (HOUR, HOUR * 10));
        assert_eq!(trend.last(), Some(at(2)), "the clock was set back");
    }
}
