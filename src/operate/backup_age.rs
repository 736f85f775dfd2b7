//! The age of the newest backup of a scope.

use std::time::Duration;

use super::human;
use crate::pg::time::TimestampTz;
use crate::repo::clock;

/// Explains that the newest backup, complete at `time`, is older than `max_backup_age`, or that nothing tells its age.
pub fn trouble(time: TimestampTz, limit: Option<Duration>, now: TimestampTz) -> Option<String> {
    if is_ahead(time, now) {
        return Some(format!("the newest backup is dated {time}: {AHEAD}"));
    }
    let age = now.duration_since(time)?;
    let limit = limit.filter(|limit| age > *limit)?;
    Some(format!(
        "the newest backup is {} old, max_backup_age is {}",
        human::duration(age),
        human::duration(limit)
    ))
}

/// Why a backup of a time to come has no age.
pub const AHEAD: &str = "a clock was ahead, and nothing tells its age";

/// The newest of some times, but for those of a clock that was ahead; one of these where there is no other.
pub fn newest(times: impl Iterator<Item = TimestampTz>, now: TimestampTz) -> Option<TimestampTz> {
    times.max_by_key(|time| order(*time, now))
}

/// The order of times, in which those of a clock that was ahead come first.
pub fn order(time: TimestampTz, now: TimestampTz) -> (bool, TimestampTz) {
    (!is_ahead(time, now), time)
}

/// Whether a time has not come yet, as far as clocks agree.
pub fn is_ahead(time: TimestampTz, now: TimestampTz) -> bool {
    time > now.saturating_add(clock::MAY_DIFFER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_too_old_or_of_a_time_to_come() {
        let now = TimestampTz::from_unix_seconds(1_800_000_000).unwrap();
        let told = |seconds: i64, limit| {
            let time = TimestampTz(now.0 - seconds * 1_000_000);
            trouble(time, limit, now)
        };
        let hour = Some(Duration::from_secs(3600));
        for (seconds, is_old) in [(-600, false), (0, false), (3600, false), (3601, true)] {
            assert_eq!(told(seconds, hour).is_some(), is_old, "{seconds}");
        }
        assert_eq!(told(1 << 30, None), None);
        let at = |seconds: i64| TimestampTz(now.0 + seconds * 1_000_000);
        for (times, of) in [
            (vec![-9, 601, -5], Some(-5)),
            (vec![601], Some(601)),
            (vec![], None),
        ] {
            let times = times.into_iter().map(at);
            assert_eq!(newest(times, now), of.map(at));
        }
        let ahead = told(-601, None).unwrap();
        assert!(ahead.contains("nothing tells its age"), "{ahead}");
    }
}
