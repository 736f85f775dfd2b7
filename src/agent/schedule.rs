//! When a job is due: a cron expression in a zone.
//!
//! The crate's rule for changes of the clock is Vixie cron's. A job of a fixed hour runs once a day: just after the gap in which its hour would
//! have been, and in the first of two hours that are alike. A job of every hour or every so many minutes runs as time goes by.

use std::cell::Cell;
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};

use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;

/// How far back a due time is looked for, step by step: what is due each minute is found in the first, what is due each year in the last.
const LOOKS: [u64; 3] = [86_400, 40 * 86_400, 5 * 366 * 86_400];

/// A cron expression in a zone.
#[derive(Debug)]
pub struct Schedule {
    cron: croner::Cron,
    zone: Tz,
    /// The last due time that was found, and the next one: between them there is none.
    known: Cell<Option<(TimestampTz, TimestampTz)>>,
}

/// The zone of this name.
///
/// # Errors
/// `Config` for one that is not known.
pub fn named_zone(name: &str) -> Result<Tz> {
    name.parse().map_err(|_| {
        err!(Config, "\"{}\" is no zone", name.escape_debug())
            .hint("Name one of the tz database, such as Europe/Berlin.")
    })
}

impl Schedule {
    /// Reads an expression of five fields, or one of `@daily` and its like.
    ///
    /// # Errors
    /// `Config` for one that has no meaning or is never due, and for a zone that is not known.
    pub fn new(text: &str, zone: Option<&str>) -> Result<Schedule> {
        let zone = named_zone(zone.unwrap_or("UTC"))?;
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let wrong = |why: String| -> Error {
            err!(Config, "\"{}\" is no schedule: {why}", text.escape_debug()).hint(
                "Write minute, hour, day, month and weekday, such as \"0 2 * * *\", or \"always\".",
            )
        };
        let cron = parser.parse(text).map_err(|e| wrong(e.to_string()))?;
        let schedule = Schedule {
            cron,
            zone,
            known: Cell::new(None),
        };
        // A moment of no importance: the 30th of February comes never.
        match schedule.next(TimestampTz(0)) {
            Some(_) => Ok(schedule),
            None => Err(wrong("it is never due".to_owned())),
        }
    }

    /// The next due time.
    pub fn next(&self, after: TimestampTz) -> Option<TimestampTz> {
        let from = DateTime::<Utc>::from_timestamp_micros(after.unix_micros()?)?;
        let next = self
            .cron
            .find_next_occurrence(&from.with_timezone(&self.zone), false)
            .ok()?;
        TimestampTz::from_unix_micros(next.with_timezone(&Utc).timestamp_micros())
    }

    /// The last due time that is not after `now`, and after `floor`.
    pub fn last(&self, floor: TimestampTz, now: TimestampTz) -> Option<TimestampTz> {
        if let Some((last, next)) = self.known.get()
            && (last..next).contains(&now)
        {
            return Some(last).filter(|last| *last > floor);
        }
        for seconds in LOOKS {
            let earliest = now.saturating_sub(Duration::from_secs(seconds));
            let mut last = None;
            let mut at = earliest.max(floor);
            while let Some(next) = self.next(at) {
                if next > now {
                    self.known.set(last.map(|last| (last, next)));
                    break;
                }
                (last, at) = (Some(next), next);
            }
            if last.is_some() || earliest <= floor {
                return last;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> TimestampTz {
        format!("{text}Z").parse().unwrap()
    }

    fn all(text: &str, from: &str, to: &str) -> Vec<String> {
        let schedule = Schedule::new(text, Some("Europe/Berlin")).unwrap();
        let (mut at, to) = (time(from), time(to));
        let mut found = Vec::new();
        while let Some(next) = schedule.next(at).filter(|n| *n <= to) {
            found.push(next.to_string());
            at = next;
        }
        found
    }

    #[test]
    fn expressions_without_meaning_are_refused() {
        for bad in [
            "",
            "x",
            "* * * *",
            "* * * * * *",
            "61 * * * *",
            "0 0 30 2 *",
        ] {
            assert!(Schedule::new(bad, None).is_err(), "{bad}");
        }
        assert!(Schedule::new("0 2 * * *", Some("Mars/Olympus")).is_err());
        assert!(Schedule::new("@daily", Some("Europe/Berlin")).is_ok());
    }

    #[test]
    fn a_fixed_hour_comes_once_on_the_days_when_the_clock_changes() {
        // Europe/Berlin: 02:00 to 03:00 is missing on 2026-03-29, and comes twice on 2026-10-25.
        let spring = all("30 2 * * *", "2026-03-28T12:00:00", "2026-03-30T12:00:00");
        assert_eq!(spring.len(), 2, "{spring:?}");
        assert!(spring[0].starts_with("2026-03-29T01:"), "{spring:?}");
        let autumn = all("30 2 * * *", "2026-10-24T12:00:00", "2026-10-26T12:00:00");
        assert_eq!(autumn.len(), 2, "{autumn:?}");
        assert!(autumn[0].starts_with("2026-10-25T00:30"), "{autumn:?}");
    }

    #[test]
    fn every_quarter_of_an_hour_comes_each_time() {
        let spring = all("*/15 * * * *", "2026-03-29T00:00:00", "2026-03-29T03:00:00");
        assert_eq!(spring.len(), 12, "{spring:?}");
        let autumn = all("*/15 * * * *", "2026-10-24T23:00:00", "2026-10-25T03:00:00");
        assert_eq!(autumn.len(), 16, "{autumn:?}");
    }

    #[test]
    fn the_last_due_time_is_the_newest_one_behind_the_floor() {
        let daily = Schedule::new("0 2 * * *", None).unwrap();
        let last =
            |floor: &str, now: &str| daily.last(time(floor), time(now)).map(|t| t.to_string());
        let due = Some(time("2026-11-20T02:00:00").to_string());
        assert_eq!(last("2026-11-01T00:00:00", "2026-11-20T12:00:00"), due);
        assert_eq!(last("2026-11-20T02:00:00", "2026-11-20T12:00:00"), None);
        assert_eq!(last("2026-11-20T01:59:59", "2026-11-20T02:00:00"), due);
        assert_eq!(last("2026-11-20T01:00:00", "2026-11-20T01:59:59"), None);
        // After a year without the host.
        assert_eq!(last("2025-01-01T00:00:00", "2026-11-21T01:00:00"), due);
        let yearly = Schedule::new("0 0 1 1 *", None).unwrap();
        let last = yearly.last(time("2025-06-01T00:00:00"), time("2026-11-20T00:00:00"));
        assert_eq!(last, Some(time("2026-01-01T00:00:00")));
    }

    #[test]
    fn the_last_due_time_is_the_same_whatever_was_asked_before() {
        let fresh = || Schedule::new("*/7 3-5 * * *", Some("Europe/Berlin")).unwrap();
        let kept = fresh();
        let start = time("2026-10-24T00:00:00");
        let mut random = 7_u64;
        for _ in 0..300 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let now = start.saturating_add(Duration::from_secs(random >> 16 & 0x3_FFFF));
            let floor = now.saturating_sub(Duration::from_secs(random >> 40 & 0x1_FFFF));
            assert_eq!(kept.last(floor, now), fresh().last(floor, now));
        }
    }
}
