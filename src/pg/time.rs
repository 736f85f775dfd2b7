//! Moments as PostgreSQL counts them: microseconds since 2000-01-01 00:00:00 UTC.
//!
//! Owns the type and its one text form, RFC 3339 in UTC with six digits; what people type is read by `plan::target`. The
//! calendar is computed here, so that the two small programs need no date library.
//!
//! PostgreSQL: src/include/datatype/timestamp.h (epoch, range, infinities), src/backend/utils/adt/datetime.c (`date2j`).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::err;
use crate::error::Error;
use crate::text::as_text;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// From 1970-01-01 to 2000-01-01.
const UNIX_TO_POSTGRES_MICROS: i64 = 10_957 * MICROS_PER_DAY;

/// A moment: microseconds since 2000-01-01 00:00:00 UTC, as `TimestampTz` in WAL records.
///
/// Prints as RFC 3339 in UTC with microseconds (`2026-11-20T06:40:49.000000Z`); years outside 0000–9999 carry a sign and at least six
/// digits, and PostgreSQL's two infinities print as `infinity` and `-infinity`. Reading is the exact inverse; it also takes
/// offsets and fewer digits of the fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimestampTz(pub i64);

impl TimestampTz {
    /// PostgreSQL's `infinity` (`DT_NOEND`).
    pub const INFINITY: TimestampTz = TimestampTz(i64::MAX);
    /// PostgreSQL's `-infinity` (`DT_NOBEGIN`).
    pub const NEG_INFINITY: TimestampTz = TimestampTz(i64::MIN);

    /// The moment that lies `micros` microseconds after 1970-01-01 00:00:00 UTC; `None` where it does not fit.
    pub fn from_unix_micros(micros: i64) -> Option<TimestampTz> {
        micros
            .checked_sub(UNIX_TO_POSTGRES_MICROS)
            .map(TimestampTz)
            .filter(|t| t.is_finite())
    }

    /// Microseconds since 1970-01-01 00:00:00 UTC; `None` for the infinities and where it does not fit.
    pub fn unix_micros(self) -> Option<i64> {
        self.is_finite()
            .then(|| self.0.checked_add(UNIX_TO_POSTGRES_MICROS))
            .flatten()
    }

    /// The moment that begins `seconds` after 1970-01-01 00:00:00 UTC (`pg_time_t`, as in pg_control); `None` where it does not fit.
    pub fn from_unix_seconds(seconds: i64) -> Option<TimestampTz> {
        seconds
            .checked_mul(MICROS_PER_SECOND)
            .and_then(TimestampTz::from_unix_micros)
    }

    /// The system's clock reading as a moment, cut to microseconds; saturates outside the range.
    pub fn from_system_time(time: SystemTime) -> TimestampTz {
        let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        let unix = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => micros(after),
            Err(before) => -micros(before.duration()),
        };
        TimestampTz(unix.saturating_sub(UNIX_TO_POSTGRES_MICROS))
    }

    /// Whether this is a moment and not one of the infinities.
    pub fn is_finite(self) -> bool {
        self != Self::INFINITY && self != Self::NEG_INFINITY
    }

    /// How long after `earlier` this is; `None` when it is before it, or infinite.
    pub fn duration_since(self, earlier: TimestampTz) -> Option<Duration> {
        if !self.is_finite() || !earlier.is_finite() {
            return None;
        }
        let micros = i128::from(self.0) - i128::from(earlier.0);
        u64::try_from(micros).ok().map(Duration::from_micros)
    }

    /// The moment `duration` later; saturates at infinity.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> TimestampTz {
        TimestampTz(
            self.0
                .saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// The moment `duration` earlier; saturates at minus infinity.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> TimestampTz {
        TimestampTz(
            self.0
                .saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// The moment of a date and a time of day in UTC; `None` where there is no such date or time, or it does not fit.
    pub fn from_civil(civil: Civil) -> Option<TimestampTz> {
        let Civil {
            year,
            month,
            day,
            hour,
            minute,
            second,
            micros,
        } = civil;
        let in_range = (-300_000..=300_000).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60
            && micros < 1_000_000;
        if !in_range {
            return None;
        }
        let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        (days_from_civil(year, month, day) - days_from_civil(2000, 1, 1))
            .checked_mul(MICROS_PER_DAY)?
            .checked_add(seconds * MICROS_PER_SECOND + i64::from(micros))
            .map(TimestampTz)
            .filter(|t| t.is_finite())
    }

    /// Date and time of day in UTC; `None` for the infinities.
    pub fn civil(self) -> Option<Civil> {
        if !self.is_finite() {
            return None;
        }
        let days = self.0.div_euclid(MICROS_PER_DAY);
        let rest = self.0.rem_euclid(MICROS_PER_DAY);
        let (year, month, day) = civil_from_days(days + days_from_civil(2000, 1, 1));
        let seconds = rest / MICROS_PER_SECOND;
        Some(Civil {
            year,
            month,
            day,
            hour: small(seconds / 3600),
            minute: small(seconds / 60 % 60),
            second: small(seconds % 60),
            micros: small(rest % MICROS_PER_SECOND),
        })
    }
}

/// A date of the proleptic Gregorian calendar (year 0 is 1 BC) and a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// The year; 0 is 1 BC.
    pub year: i64,
    /// 1–12.
    pub month: u32,
    /// 1–31.
    pub day: u32,
    /// 0–23.
    pub hour: u32,
    /// 0–59.
    pub minute: u32,
    /// 0–59: PostgreSQL knows no leap seconds.
    pub second: u32,
    /// 0–999999.
    pub micros: u32,
}

impl fmt::Display for TimestampTz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(c) = self.civil() else {
            return f.pad(if self.0 > 0 { "infinity" } else { "-infinity" });
        };
        let year = if (0..=9999).contains(&c.year) {
            format!("{:04}", c.year)
        } else {
            format!("{:+07}", c.year)
        };
        f.pad(&format!(
            "{year}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            c.month, c.day, c.hour, c.minute, c.second, c.micros
        ))
    }
}

impl FromStr for TimestampTz {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        parse(s).ok_or_else(|| {
            err!(
                Usage,
                "\"{}\" is not a time in RFC 3339, as in 2026-11-20T06:40:49.000000Z",
                s.escape_debug()
            )
        })
    }
}

as_text!(TimestampTz);

fn parse(s: &str) -> Option<TimestampTz> {
    match s {
        "infinity" => return Some(TimestampTz::INFINITY),
        "-infinity" => return Some(TimestampTz::NEG_INFINITY),
        _ => {}
    }
    let (date, rest) = s.split_once('T')?;
    let (year, month, day) = parse_date(date)?;
    let time_end = rest.find(['Z', '+', '-'])?;
    let (time, zone) = rest.split_at_checked(time_end)?;
    let (clock, fraction) = match time.split_once('.') {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (time, None),
    };
    let mut parts = clock.split(':');
    let civil = Civil {
        year,
        month,
        day,
        hour: digits(parts.next()?, 2)?,
        minute: digits(parts.next()?, 2)?,
        second: digits(parts.next()?, 2)?,
        micros: fraction.map_or(Some(0), parse_fraction)?,
    };
    if parts.next().is_some() {
        return None;
    }
    let offset = parse_offset(zone)?;
    let local = TimestampTz::from_civil(civil)?;
    local
        .0
        .checked_sub(offset * MICROS_PER_SECOND)
        .map(TimestampTz)
        .filter(|t| t.is_finite())
}

fn parse_date(date: &str) -> Option<(i64, u32, u32)> {
    let signed = date.starts_with(['+', '-']);
    let (sign, unsigned) = match date.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, date.strip_prefix('+').unwrap_or(date)),
    };
    let mut parts = unsigned.split('-');
    let year = parts.next()?;
    let year = if signed {
        (6..=9).contains(&year.len()).then_some(())?;
        digits(year, year.len())?
    } else {
        digits(year, 4)?
    };
    let date = (
        sign * i64::from(year),
        digits(parts.next()?, 2)?,
        digits(parts.next()?, 2)?,
    );
    parts.next().is_none().then_some(date)
}

/// A fraction of one to six digits, in microseconds: more could not be kept.
fn parse_fraction(s: &str) -> Option<u32> {
    if !(1..=6).contains(&s.len()) {
        return None;
    }
    Some(digits(s, s.len())? * 10_u32.pow(6 - u32::try_from(s.len()).ok()?))
}

/// `Z` or `±HH:MM`, in seconds east of UTC.
fn parse_offset(s: &str) -> Option<i64> {
    if s == "Z" {
        return Some(0);
    }
    let sign = match s.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let (hours, minutes) = s.get(1..)?.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60)
        .then_some(sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60))
}

fn digits(s: &str, count: usize) -> Option<u32> {
    (s.len() == count && s.bytes().all(|b| b.is_ascii_digit()))
        .then(|| s.parse().ok())
        .flatten()
}

/// Values below a million only: parts of a day.
fn small(value: i64) -> u32 {
    u32::try_from(value).unwrap_or_default()
}

/// Days in a month of the proleptic Gregorian calendar; 0 for a month that does not exist.
fn days_in_month(year: i64, month: u32) -> u32 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    }
}

/// Days from 0000-03-01 to the date. The year is counted from March, so that the leap day is its last.
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, small(month), small(day))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_print_as_postgresql_counts_them() {
        for (micros, text) in [
            (0, "2000-01-01T00:00:00.000000Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            (-946_684_800_000_000, "1970-01-01T00:00:00.000000Z"),
            (848_500_849_123_456, "2026-11-20T14:40:49.123456Z"),
            (5_097_600_000_000, "2000-02-29T00:00:00.000000Z"),
            (252_455_615_999_999_999, "9999-12-31T23:59:59.999999Z"),
            (252_455_616_000_000_000, "+010000-01-01T00:00:00.000000Z"),
            (-63_113_904_000_000_001, "-000001-12-31T23:59:59.999999Z"),
            (i64::MAX, "infinity"),
            (i64::MIN, "-infinity"),
        ] {
            assert_eq!(TimestampTz(micros).to_string(), text);
            assert_eq!(text.parse::<TimestampTz>().unwrap(), TimestampTz(micros));
        }
    }

    #[test]
    fn offsets_and_short_fractions_are_read() {
        for (text, utc) in [
            ("2026-11-20T06:40:49Z", "2026-11-20T06:40:49.000000Z"),
            ("2026-11-20T06:40:49.5Z", "2026-11-20T06:40:49.500000Z"),
            ("2026-01-01T00:30:00+02:00", "2025-12-31T22:30:00.000000Z"),
            (
                "2026-11-20T06:40:49.000001-05:30",
                "2026-11-20T12:10:49.000001Z",
            ),
        ] {
            assert_eq!(text.parse::<TimestampTz>().unwrap().to_string(), utc);
        }
    }

    #[test]
    fn what_is_not_rfc_3339_is_refused() {
        for text in [
            "",
            "Z",
            "T",
            "2026-11-20",
            "2026-11-20T06:40:49",
            "2026-11-20 06:40:49Z",
            "2026-11-20T06:40Z",
            "2026-13-20T06:40:49Z",
            "2026-02-29T06:40:49Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T23:59:60Z",
            "2026-11-20T06:40:49.Z",
            "2026-11-20T06:40:49.1234567Z",
            "2026-11-20T06:40:49+2:00",
            "2026-11-20T06:40:49+02",
            "2026-11-20T06:40:49ZZ",
            "26-11-20T06:40:49Z",
            "+2026-11-20T06:40:49Z",
            "2026-11-20T06:40:49+é:0",
            "+999999999-01-01T00:00:00Z",
        ] {
            assert!(text.parse::<TimestampTz>().is_err(), "{text}");
        }
    }

    #[test]
    fn unix_time_converts_both_ways_and_never_wraps() {
        let t: TimestampTz = "2026-11-20T06:40:49.000007Z".parse().unwrap();
        let unix = t.unix_micros().unwrap();
        assert_eq!(unix, 1_795_156_849_000_007);
        assert_eq!(TimestampTz::from_unix_micros(unix), Some(t));
        assert_eq!(TimestampTz(i64::MAX - 1).unix_micros(), None);
        assert_eq!(TimestampTz::from_unix_micros(i64::MIN), None);
        assert_eq!(TimestampTz::from_unix_seconds(i64::MAX), None);
        let clock = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_156_849_000_007);
        assert_eq!(TimestampTz::from_system_time(clock), t);
    }

    #[test]
    fn distances_have_no_sign_and_know_no_infinity() {
        let (a, b) = (TimestampTz(10), TimestampTz(35));
        assert_eq!(b.duration_since(a), Some(Duration::from_micros(25)));
        assert_eq!(a.duration_since(b), None);
        assert_eq!(TimestampTz::INFINITY.duration_since(a), None);
        assert_eq!(a.saturating_add(Duration::from_micros(25)), b);
        assert_eq!(b.saturating_sub(Duration::from_micros(25)), a);
    }

    #[test]
    fn serde_form_is_the_text() {
        let t = TimestampTz(848_500_849_123_456);
        let json = serde_json::to_string(&t).unwrap();
        assert_eq!(json, "\"2026-11-20T14:40:49.123456Z\"");
        assert_eq!(serde_json::from_str::<TimestampTz>(&json).unwrap(), t);
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(micros: i64) {
            let t = TimestampTz(micros);
            prop_assert_eq!(t.to_string().parse::<TimestampTz>().unwrap(), t);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<TimestampTz>();
        }

        #[test]
        fn neighbouring_days_have_neighbouring_numbers(day in -100_000_000_i64..100_000_000) {
            let (y, m, d) = civil_from_days(day);
            prop_assert_eq!(days_from_civil(y, m, d), day);
            prop_assert!(d >= 1 && d <= days_in_month(y, m));
        }
    }
}
