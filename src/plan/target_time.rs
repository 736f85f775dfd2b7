//! The times that people type: `--target-time`, and the zone it is read in.
//!
//! A target time decides which transactions survive, so it has exactly one reading or none: a time without a zone is refused when the
//! hour occurs twice or never, and when the cluster's own zone would read it differently. Reading takes two steps, because the
//! words are wrong or right before any repository is opened, while the zones are known only after.
//!
//! PostgreSQL: src/backend/utils/adt/datetime.c (`ParseDateTime`, `DecodeTimezone`: fractions are rounded to microseconds, offsets
//! reach 15:59), src/timezone/localtime.c (POSIX zones count west of Greenwich).

use std::fmt;
use std::str::FromStr;

use chrono::{FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::{Civil, TimestampTz};

/// Every form that is accepted, for the hint of a refusal.
pub const ACCEPTED_FORMS: &str = "Accepted are 2026-11-20T05:40:49.5Z, \"2026-11-20 06:40:49+01\", \"2026-11-20 06:40 Europe/Berlin\", \"2026-11-20 06:40:49\" (read in the zone of --timezone) and @1795153249 (seconds since 1970).";

const MICROS_PER_SECOND: i64 = 1_000_000;
/// PostgreSQL: src/include/datatype/timestamp.h, `MAX_TZDISP_HOUR`.
const OFFSET_HOURS_MAX: i32 = 15;

/// A time zone: a name of the IANA database, or a fixed distance east of Greenwich.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// A zone with its rules.
    Named(Tz),
    /// Always the same offset.
    Fixed(FixedOffset),
}

impl Zone {
    /// Universal time.
    pub const UTC: Zone = Zone::Named(Tz::UTC);

    /// Reads PostgreSQL's setting `timezone`, as a server shows it, or the host's; none when its rules are not known here.
    ///
    /// Besides names it knows the POSIX form that `SET TIME ZONE 2` leaves: `<+02>-02`, counted westward.
    pub fn from_setting(text: &str) -> Option<Zone> {
        if let Ok(tz) = text.parse::<Tz>() {
            return Some(Zone::Named(tz));
        }
        let (name, west) = text.strip_prefix('<')?.split_once('>')?;
        if name.is_empty() {
            return None;
        }
        let signed = if west.starts_with(['+', '-']) {
            west.to_owned()
        } else {
            format!("+{west}")
        };
        let seconds = offset_seconds(&signed)?;
        FixedOffset::west_opt(seconds).map(Zone::Fixed)
    }

    /// Returns the moments that a local time means in this zone.
    fn read(self, local: NaiveDateTime) -> Reading {
        match self {
            Zone::Named(tz) => read_in(&tz, local),
            Zone::Fixed(offset) => read_in(&offset, local),
        }
    }

    /// Seconds east of Greenwich at a moment of UTC.
    fn offset_at(self, utc: NaiveDateTime) -> FixedOffset {
        match self {
            Zone::Named(tz) => tz.offset_from_utc_datetime(&utc).fix(),
            Zone::Fixed(offset) => offset,
        }
    }

    /// The day on which a moment falls in this zone.
    pub fn date(self, time: TimestampTz) -> Option<NaiveDate> {
        let utc = naive(time.civil()?)?;
        Some(utc.checked_add_offset(self.offset_at(utc))?.date())
    }

    /// The first moment of a day in this zone, but for a change of the clocks that very night.
    pub fn begin(self, date: NaiveDate) -> Option<TimestampTz> {
        let utc = date.and_hms_opt(0, 0, 0)?;
        let utc = utc.checked_sub_offset(self.offset_at(utc))?.and_utc();
        TimestampTz::from_unix_micros(utc.timestamp_micros())
    }

    /// The moment as clocks in this zone show it: `2026-11-20 06:40:49.000000+01:00`; none outside the years 1–9999.
    pub fn show(self, time: TimestampTz) -> Option<String> {
        let utc = naive(time.civil()?)?;
        let offset = self.offset_at(utc);
        Some(shown_with(utc.checked_add_offset(offset)?, offset))
    }
}

impl FromStr for Zone {
    type Err = Error;

    fn from_str(s: &str) -> Result<Zone> {
        if s == "Z" || s == "z" {
            return Ok(Zone::Named(Tz::UTC));
        }
        if s.starts_with(['+', '-']) {
            let zone = offset_seconds(s).and_then(FixedOffset::east_opt);
            return zone.map(Zone::Fixed).ok_or_else(|| {
                err!(
                    Usage,
                    "\"{}\" is not an offset from UTC: +02, +0200 or +02:00 up to 15:59 is needed",
                    s.escape_debug()
                )
            });
        }
        s.parse::<Tz>().map(Zone::Named).map_err(|_| {
            err!(Usage, "\"{}\" is not a time zone", s.escape_debug())
                .hint("Write a name such as Europe/Berlin (upper and lower case matter), UTC, or an offset such as +01:00.")
        })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Zone::Named(tz) => f.pad(tz.name()),
            Zone::Fixed(offset) => f.pad(&offset.to_string()),
        }
    }
}

/// A time as written: its words are right, but what moment it is may still depend on zones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenTime {
    text: String,
    meaning: Meaning,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    Instant(TimestampTz, Zone),
    Local(NaiveDateTime, Option<Zone>),
}

/// The zones in which a time without one may be read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Zones<'a> {
    /// `--timezone`.
    pub given: Option<Zone>,
    /// The configuration's `timezone`.
    pub configured: Option<Zone>,
    /// The zone of this host, where it is known.
    pub host: Option<Zone>,
    /// The cluster's own setting `timezone`, as recorded in its backups.
    pub cluster: Option<&'a str>,
}

/// A moment, and the zone it was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetTime {
    /// The moment.
    pub at: TimestampTz,
    /// The zone it was read in, to show it again as it was meant.
    pub zone: Zone,
}

impl WrittenTime {
    /// Finds the moment.
    ///
    /// The zone is the one written with the time, else `--timezone`, else the configuration's, else the host's. One that was not given
    /// with the command must agree with the cluster's own.
    ///
    /// # Errors
    /// `Usage`, with both readings, for an hour that occurs twice or never in the zone, and where the cluster's zone reads the
    /// time differently or is not known here.
    pub fn resolve(&self, zones: &Zones<'_>) -> Result<TargetTime> {
        let (local, written) = match &self.meaning {
            Meaning::Instant(at, zone) => {
                return Ok(TargetTime {
                    at: *at,
                    zone: *zone,
                });
            }
            Meaning::Local(local, zone) => (*local, zone.or(zones.given)),
        };
        let text = &self.text;
        if let Some(zone) = written {
            let at = self.only_reading(local, zone)?;
            return Ok(TargetTime { at, zone });
        }
        let (zone, whose) = match (zones.configured, zones.host) {
            (Some(zone), _) => (zone, "the configuration's zone"),
            (None, Some(zone)) => (zone, "this host's zone"),
            (None, None) => {
                return Err(err!(
                    Usage,
                    "time \"{text}\" has no zone, and the zone of this host cannot be told"
                )
                .hint(SAY_THE_ZONE));
            }
        };
        let at = self.only_reading(local, zone)?;
        let Some(cluster) = zones.cluster else {
            return Ok(TargetTime { at, zone });
        };
        let own = Zone::from_setting(cluster).ok_or_else(|| {
            err!(
                Usage,
                "time \"{text}\" has no zone, and the cluster's own zone \"{}\" is not known here",
                cluster.escape_debug()
            )
            .hint(SAY_THE_ZONE)
        })?;
        let other = self.only_reading(local, own)?;
        if other != at {
            return Err(err!(
                Usage,
                "time \"{text}\" has two readings: {} in {whose} {zone}, {} in the cluster's own zone {own}",
                utc(at),
                utc(other)
            )
            .hint(SAY_THE_ZONE));
        }
        Ok(TargetTime { at, zone })
    }

    fn only_reading(&self, local: NaiveDateTime, zone: Zone) -> Result<TimestampTz> {
        let text = &self.text;
        let both = |a: NaiveDateTime, b: NaiveDateTime| {
            let (a, b) = (stamp(a), stamp(b));
            let show = |t: Option<TimestampTz>, o: Option<FixedOffset>| match (t, o) {
                (Some(t), Some(o)) => format!("{} ({})", shown_with(local, o), utc(t)),
                _ => "a time out of range".into(),
            };
            let offset = |t: Option<TimestampTz>| {
                let micros = i128::from(stamp(local)?.0) - i128::from(t?.0);
                let seconds = i32::try_from(micros / i128::from(MICROS_PER_SECOND)).ok()?;
                FixedOffset::east_opt(seconds)
            };
            format!("{} and {}", show(a, offset(a)), show(b, offset(b)))
        };
        match zone.read(local) {
            Reading::One(moment) => in_range(text, stamp(moment)),
            Reading::Twice(a, b) => Err(err!(
                Usage,
                "time \"{text}\" occurs twice in {zone}: {}",
                both(a, b)
            )
            .hint("Nothing was changed.\nWrite the one you mean, with its offset.")),
            Reading::Never(a, b) => Err(err!(
                Usage,
                "time \"{text}\" does not occur in {zone}, where clocks skip it; it could mean {}",
                both(a, b)
            )
            .hint("Nothing was changed.\nWrite the one you mean, with its offset.")),
        }
    }
}

impl FromStr for WrittenTime {
    type Err = Error;

    fn from_str(s: &str) -> Result<WrittenTime> {
        let shown: String = s.chars().take(100).flat_map(char::escape_debug).collect();
        let meaning = parse(s).map_err(|problem| {
            let error = err!(Usage, "\"{shown}\" is not a time: {problem}");
            match s.bytes().all(|b| b.is_ascii_digit()) && !s.is_empty() {
                true => error.hint(format!("Did you mean @{s} (seconds since 1970)?")),
                false => error.hint(ACCEPTED_FORMS),
            }
        })?;
        if let Meaning::Instant(at, _) = meaning {
            in_range(&shown, Some(at))?;
        }
        Ok(WrittenTime {
            text: shown,
            meaning,
        })
    }
}

/// The moment as `recovery_target_time` takes it: `2026-11-20 05:40:49.000000+00`.
pub fn for_postgresql(time: TimestampTz) -> String {
    let text = time.to_string().replacen('T', " ", 1);
    match text.strip_suffix('Z') {
        Some(text) => format!("{text}+00"),
        None => text,
    }
}

const SAY_THE_ZONE: &str = "Nothing was changed.\nWrite the zone with the time, such as 06:40:49+01 or 06:40:49Z, or add --timezone.";

/// The moments of UTC that a local time means in a zone.
enum Reading {
    One(NaiveDateTime),
    Twice(NaiveDateTime, NaiveDateTime),
    /// The readings by the clock before the hour that is skipped, and after it.
    Never(NaiveDateTime, NaiveDateTime),
}

fn read_in<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Reading {
    let utc = |offset: FixedOffset| {
        local
            .checked_sub_offset(offset)
            .unwrap_or(NaiveDateTime::MIN)
    };
    match zone.offset_from_local_datetime(&local) {
        MappedLocalTime::Single(offset) => Reading::One(utc(offset.fix())),
        MappedLocalTime::Ambiguous(a, b) => {
            let (a, b) = (utc(a.fix()), utc(b.fix()));
            Reading::Twice(a.min(b), a.max(b))
        }
        MappedLocalTime::None => {
            // A day and two hours: the largest jump ever is one day (Samoa, 2011-12-30), and no zone jumps twice in two days.
            let around = TimeDelta::hours(26);
            let offset = |at: Option<NaiveDateTime>| {
                zone.offset_from_utc_datetime(&at.unwrap_or(local)).fix()
            };
            Reading::Never(
                utc(offset(local.checked_sub_signed(around))),
                utc(offset(local.checked_add_signed(around))),
            )
        }
    }
}

type Problem = &'static str;

fn parse(s: &str) -> std::result::Result<Meaning, Problem> {
    const FORM: Problem = "it has none of the accepted forms";
    if let Some(epoch) = s.strip_prefix('@') {
        return parse_epoch(epoch).map(|t| Meaning::Instant(t, Zone::Named(Tz::UTC)));
    }
    let (date, rest) = s.split_once(['T', 't', ' ']).ok_or(FORM)?;
    let mut parts = date.split('-');
    let (Some(year), Some(month), Some(day), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(FORM);
    };
    if year.len() > 4 && year.bytes().all(|b| b.is_ascii_digit()) {
        return Err("years end with 9999");
    }
    let date = [(year, 4), (month, 2), (day, 2)].map(|(text, length)| digits(text, length));
    let [Some(year), Some(month), Some(day)] = date else {
        return Err(FORM);
    };
    if year == 0 {
        return Err("there is no year 0");
    }
    let date = i32::try_from(year)
        .ok()
        .and_then(|year| NaiveDate::from_ymd_opt(year, month, day))
        .ok_or("there is no such date")?;
    let zone_at = rest
        .find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.'))
        .unwrap_or(rest.len());
    let (time, zone) = rest.split_at_checked(zone_at).ok_or(FORM)?;
    let local = parse_clock(date, time)?;
    if zone.is_empty() {
        return Ok(Meaning::Local(local, None));
    }
    let zone = parse_zone(zone)?;
    match zone {
        Zone::Fixed(offset) => {
            let utc = local.checked_sub_offset(offset).and_then(stamp);
            Ok(Meaning::Instant(utc.ok_or("it is out of range")?, zone))
        }
        // A name may have two readings, or none; `resolve` says so with both.
        Zone::Named(_) => Ok(Meaning::Local(local, Some(zone))),
    }
}

/// `HH:MM[:SS[.fraction]]`. PostgreSQL rounds a fraction to microseconds; so is it here.
fn parse_clock(date: NaiveDate, time: &str) -> std::result::Result<NaiveDateTime, Problem> {
    const FORM: Problem = "the time of day must be HH:MM, HH:MM:SS or HH:MM:SS.ffffff";
    let (clock, fraction) = match time.split_once('.') {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (time, None),
    };
    let parts: Vec<Option<u32>> = clock.split(':').map(|part| digits(part, 2)).collect();
    let (hour, minute, second) = match (parts.as_slice(), fraction) {
        (&[Some(hour), Some(minute)], None) => (hour, minute, 0),
        (&[Some(hour), Some(minute), Some(second)], _) => (hour, minute, second),
        _ => return Err(FORM),
    };
    if second == 60 {
        return Err(
            "PostgreSQL knows no leap seconds: the last moment of a minute is second 59.999999",
        );
    }
    let base = date
        .and_hms_opt(hour, minute, second)
        .ok_or("there is no such time of day")?;
    let micros = match fraction {
        Some(fraction) => parse_fraction(fraction).ok_or(FORM)?,
        None => 0,
    };
    base.checked_add_signed(TimeDelta::microseconds(micros))
        .ok_or("it is out of range")
}

/// Digits behind the point, as microseconds; more than six are rounded.
fn parse_fraction(text: &str) -> Option<i64> {
    if text.is_empty() || text.len() > 18 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scale = 10_i64.pow(u32::try_from(text.len()).ok()?);
    let value: i64 = text.parse().ok()?;
    let micros = (i128::from(value) * i128::from(MICROS_PER_SECOND) * 2 + i128::from(scale))
        / (i128::from(scale) * 2);
    i64::try_from(micros).ok()
}

fn parse_epoch(text: &str) -> std::result::Result<TimestampTz, Problem> {
    const FORM: Problem = "\"@\" must be followed by seconds since 1970, as in @1795153249";
    let (seconds, fraction) = match text.split_once('.') {
        Some((seconds, fraction)) => (seconds, parse_fraction(fraction).ok_or(FORM)?),
        None => (text, 0),
    };
    if seconds.is_empty() || !seconds.bytes().all(|b| b.is_ascii_digit()) {
        return Err(FORM);
    }
    let too_late = "years end with 9999";
    let seconds: i64 = seconds.parse().map_err(|_| too_late)?;
    seconds
        .checked_mul(MICROS_PER_SECOND)
        .and_then(|micros| micros.checked_add(fraction))
        .and_then(TimestampTz::from_unix_micros)
        .ok_or(too_late)
}

/// Parses the text after the time of day: an offset or `Z`, with or without a space before it, or a space and a name.
///
/// Abbreviations are refused: in PostgreSQL `CET` behind a time is +01 in summer too, as a zone it is +02 then.
fn parse_zone(text: &str) -> std::result::Result<Zone, Problem> {
    const FORM: Problem = "what follows the time of day is no zone: Z, an offset such as +01 or +01:00, UTC, or a name such as Europe/Berlin is needed";
    let spaced = text.strip_prefix(' ');
    let bare = spaced.unwrap_or(text);
    let is_name = bare == "UTC" || bare == "GMT" || bare.contains('/');
    let is_offset = matches!(bare, "Z" | "z") || bare.starts_with(['+', '-']);
    if !is_offset && bare.len() <= 5 && bare.bytes().all(|b| b.is_ascii_alphabetic()) && !is_name {
        return Err(
            "an abbreviated zone can mean several: write an offset or a name such as Europe/Berlin",
        );
    }
    if is_offset || (is_name && spaced.is_some()) {
        return bare.parse().map_err(|_| FORM);
    }
    Err(FORM)
}

/// `±HH`, `±HHMM` or `±HH:MM`, in seconds with that sign.
fn offset_seconds(text: &str) -> Option<i32> {
    let (sign, rest) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(rest), _) => (1, rest),
        (_, Some(rest)) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match (rest.len(), rest.split_once(':')) {
        (_, Some((hours, minutes))) => (hours, minutes),
        (4, None) => rest.split_at_checked(2)?,
        (_, None) => (rest, "00"),
    };
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    let (hours, minutes) = (i32::try_from(hours).ok()?, i32::try_from(minutes).ok()?);
    (hours <= OFFSET_HOURS_MAX && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn digits(text: &str, count: usize) -> Option<u32> {
    (text.len() == count && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// A moment of UTC in PostgreSQL's count.
fn stamp(utc: NaiveDateTime) -> Option<TimestampTz> {
    TimestampTz::from_unix_micros(utc.and_utc().timestamp_micros())
}

fn naive(civil: Civil) -> Option<NaiveDateTime> {
    NaiveDate::from_ymd_opt(i32::try_from(civil.year).ok()?, civil.month, civil.day)?
        .and_hms_micro_opt(civil.hour, civil.minute, civil.second, civil.micros)
}

/// Refuses what PostgreSQL's setting could not take: outside the years 1–9999 of UTC.
fn in_range(text: &str, time: Option<TimestampTz>) -> Result<TimestampTz> {
    time.filter(|t| t.civil().is_some_and(|c| (1..=9999).contains(&c.year)))
        .ok_or_else(|| {
            err!(
                Usage,
                "time \"{text}\" lies outside the years 1 to 9999 of UTC"
            )
            .hint(ACCEPTED_FORMS)
        })
}

fn utc(time: TimestampTz) -> String {
    short(time.to_string().replacen('T', " ", 1).trim_end_matches('Z')) + "Z"
}

fn shown_with(local: NaiveDateTime, offset: FixedOffset) -> String {
    let local = local.format("%Y-%m-%d %H:%M:%S%.6f").to_string();
    format!("{}{offset}", short(&local))
}

/// Without a fraction that says nothing.
fn short(text: &str) -> String {
    text.strip_suffix(".000000").unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    fn zone(name: &str) -> Option<Zone> {
        Some(name.parse().unwrap())
    }

    fn resolve(text: &str, zones: &Zones<'_>) -> Result<TargetTime> {
        text.parse::<WrittenTime>()?.resolve(zones)
    }

    /// The moment of a time whose zone is written with it.
    fn moment(text: &str) -> String {
        resolve(text, &Zones::default()).unwrap().at.to_string()
    }

    #[test]
    fn k03_every_form_with_a_zone_is_one_moment() {
        for (text, at) in [
            ("2026-11-20T05:40:49Z", "2026-11-20T05:40:49.000000Z"),
            ("2026-11-20t05:40:49z", "2026-11-20T05:40:49.000000Z"),
            ("2026-11-20T05:40:49.5Z", "2026-11-20T05:40:49.500000Z"),
            ("2026-11-20T05:40:49.123456Z", "2026-11-20T05:40:49.123456Z"),
            ("2026-11-20T06:40:49+01:00", "2026-11-20T05:40:49.000000Z"),
            ("2026-11-20T00:10:49-05:30", "2026-11-20T05:40:49.000000Z"),
            ("2026-11-20T05:40:49-00:00", "2026-11-20T05:40:49.000000Z"),
            ("2026-11-20 06:40:49+01", "2026-11-20T05:40:49.000000Z"),
            ("2026-11-20 06:40:49 +01", "2026-11-20T05:40:49.000000Z"),
            (
                "2026-11-20 06:40:49.25 +0100",
                "2026-11-20T05:40:49.250000Z",
            ),
            ("2026-11-20 06:40+01:00", "2026-11-20T05:40:00.000000Z"),
            ("2026-11-20 05:40 UTC", "2026-11-20T05:40:00.000000Z"),
            ("2026-11-20 05:40 GMT", "2026-11-20T05:40:00.000000Z"),
            ("2026-11-20 05:40 Z", "2026-11-20T05:40:00.000000Z"),
            (
                "2026-11-20 06:40:49 Europe/Berlin",
                "2026-11-20T05:40:49.000000Z",
            ),
            (
                "2026-07-20 06:40:49 Europe/Berlin",
                "2026-07-20T04:40:49.000000Z",
            ),
            (
                "2026-11-20 06:40 America/Argentina/Buenos_Aires",
                "2026-11-20T09:40:00.000000Z",
            ),
            (
                "2026-11-20 06:40 Asia/Kathmandu",
                "2026-11-20T00:55:00.000000Z",
            ),
            ("2024-02-29 23:59:59.999999Z", "2024-02-29T23:59:59.999999Z"),
            // The form that PostgreSQL prints and takes itself.
            (
                "2026-11-20 05:40:49.123456+00",
                "2026-11-20T05:40:49.123456Z",
            ),
            // Nanoseconds are rounded, as PostgreSQL does.
            (
                "2026-11-20T05:40:49.123456499Z",
                "2026-11-20T05:40:49.123456Z",
            ),
            (
                "2026-11-20T05:40:49.1234565Z",
                "2026-11-20T05:40:49.123457Z",
            ),
            (
                "2026-12-31T23:59:59.9999999Z",
                "2027-01-01T00:00:00.000000Z",
            ),
            ("@1795153249", "2026-11-20T05:40:49.000000Z"),
            ("@1795153249.000001", "2026-11-20T05:40:49.000001Z"),
            ("@0", "1970-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(moment(text), at, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_the_accepted_forms() {
        for (problem, texts) in [
            (
                "it has none of the accepted forms",
                &[
                    "yesterday",
                    "now",
                    "",
                    "infinity",
                    "2026-11-20",
                    "2026-13-40",
                    "20.11.2026 06:40",
                    "11/20/2026 06:40",
                    "26-11-20 06:40",
                    "-2026-11-20 06:40",
                ][..],
            ),
            (
                "there is no such date",
                &["2026-13-01 06:40", "2026-02-29 06:40", "2026-11-00 06:40"],
            ),
            ("there is no year 0", &["0000-11-20 06:40"]),
            (
                "years end with 9999",
                &["10000-01-01 00:00Z", "@99999999999999999999"],
            ),
            (
                "there is no such time of day",
                &[
                    "2026-11-20 24:00",
                    "2026-11-20 06:60",
                    "2026-11-20 06:59:61",
                ],
            ),
            (
                "PostgreSQL knows no leap seconds: the last moment of a minute is second 59.999999",
                &["2016-12-31T23:59:60Z"],
            ),
            (
                "the time of day must be HH:MM, HH:MM:SS or HH:MM:SS.ffffff",
                &[
                    "2026-11-20 6:40",
                    "2026-11-20 06",
                    "2026-11-20 06:40.5",
                    "2026-11-20 06:40:49.",
                    "2026-11-20  06:40",
                ],
            ),
            (
                "an abbreviated zone can mean several: write an offset or a name such as Europe/Berlin",
                &["2026-11-20 06:40:49 CET", "2026-11-20 06:40:49 PM"],
            ),
            (
                "what follows the time of day is no zone: Z, an offset such as +01 or +01:00, UTC, or a name such as Europe/Berlin is needed",
                &[
                    "2026-11-20 06:40:49 Europe/Atlantis",
                    "2026-11-20 06:40:49Europe/Berlin",
                    "2026-11-20 06:40:49+16",
                    "2026-11-20 06:40:49+1",
                    "2026-11-20 06:40:49Z ",
                ],
            ),
            (
                "\"@\" must be followed by seconds since 1970, as in @1795153249",
                &["@", "@-5", "@1e9"],
            ),
        ] {
            for text in texts {
                let error = text.parse::<WrittenTime>().unwrap_err();
                assert_eq!(error.code(), Code::Usage, "{text}");
                assert_eq!(
                    error.to_string(),
                    format!("\"{text}\" is not a time: {problem}")
                );
                assert_eq!(error.hint_text(), Some(ACCEPTED_FORMS), "{text}");
            }
        }
        let error = "1700000000".parse::<WrittenTime>().unwrap_err();
        assert_eq!(
            error.hint_text(),
            Some("Did you mean @1700000000 (seconds since 1970)?")
        );
        for text in [
            "9999-12-31T23:59:59-01:00",
            "0001-01-01T00:00:00+01:00",
            "@253402300800",
        ] {
            let error = resolve(text, &Zones::default()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("time \"{text}\" lies outside the years 1 to 9999 of UTC")
            );
        }
        assert_eq!(
            moment("9999-12-31T23:59:59.999999Z"),
            "9999-12-31T23:59:59.999999Z"
        );
        assert_eq!(
            moment("0001-01-01T00:00:00Z"),
            "0001-01-01T00:00:00.000000Z"
        );
    }

    #[test]
    fn k02_a_time_without_a_zone_is_read_by_the_rule() {
        let berlin = zone("Europe/Berlin");
        let tokyo = zone("Asia/Tokyo");
        let utc = zone("UTC");
        let zones = |given, configured, host, cluster| Zones {
            given,
            configured,
            host,
            cluster,
        };
        for (zones, at) in [
            (zones(tokyo, berlin, utc, Some("America/Lima")), "19T21"),
            (zones(zone("+02"), berlin, utc, None), "20T04"),
            (zones(None, berlin, utc, Some("Europe/Paris")), "20T05"),
            (zones(None, berlin, utc, None), "20T05"),
            (zones(None, None, utc, Some("Etc/UTC")), "20T06"),
            (zones(None, None, zone("+01:00"), Some("<+01>-01")), "20T05"),
        ] {
            let time = resolve("2026-11-20 06:00", &zones).unwrap();
            assert_eq!(time.at.to_string(), format!("2026-11-{at}:00:00.000000Z"));
        }
        for (zones, message) in [
            (
                zones(None, berlin, utc, Some("UTC")),
                "time \"2026-11-20 06:00\" has two readings: 2026-11-20 05:00:00Z in the configuration's zone Europe/Berlin, 2026-11-20 06:00:00Z in the cluster's own zone UTC",
            ),
            (
                zones(None, None, utc, Some("Asia/Tokyo")),
                "time \"2026-11-20 06:00\" has two readings: 2026-11-20 06:00:00Z in this host's zone UTC, 2026-11-19 21:00:00Z in the cluster's own zone Asia/Tokyo",
            ),
            (
                zones(None, None, utc, Some("localtime")),
                "time \"2026-11-20 06:00\" has no zone, and the cluster's own zone \"localtime\" is not known here",
            ),
            (
                zones(None, None, None, Some("UTC")),
                "time \"2026-11-20 06:00\" has no zone, and the zone of this host cannot be told",
            ),
        ] {
            let error = resolve("2026-11-20 06:00", &zones).unwrap_err();
            assert_eq!(error.code(), Code::Usage);
            assert_eq!(error.to_string().as_str(), message);
            assert_eq!(error.hint_text(), Some(SAY_THE_ZONE));
        }
        // A zone written with the time needs nobody's agreement.
        let zones = zones(tokyo, berlin, utc, Some("localtime"));
        let time = resolve("2026-11-20 06:00 Europe/Berlin", &zones).unwrap();
        assert_eq!(time.at.to_string(), "2026-11-20T05:00:00.000000Z");
    }

    #[test]
    fn k04_hours_that_occur_twice_or_never_are_refused_with_both_readings() {
        for (text, message) in [
            (
                "2026-10-25 02:30 Europe/Berlin",
                "occurs twice in Europe/Berlin: 2026-10-25 02:30:00+02:00 (2026-10-25 00:30:00Z) and 2026-10-25 02:30:00+01:00 (2026-10-25 01:30:00Z)",
            ),
            (
                "2026-03-29 02:30:00.5 Europe/Berlin",
                "does not occur in Europe/Berlin, where clocks skip it; it could mean 2026-03-29 02:30:00.500000+01:00 (2026-03-29 01:30:00.500000Z) and 2026-03-29 02:30:00.500000+02:00 (2026-03-29 00:30:00.500000Z)",
            ),
            (
                "2026-11-01 01:30 America/New_York",
                "occurs twice in America/New_York: 2026-11-01 01:30:00-04:00 (2026-11-01 05:30:00Z) and 2026-11-01 01:30:00-05:00 (2026-11-01 06:30:00Z)",
            ),
            // Half an hour only.
            (
                "2026-04-05 01:45 Australia/Lord_Howe",
                "occurs twice in Australia/Lord_Howe: 2026-04-05 01:45:00+11:00 (2026-04-04 14:45:00Z) and 2026-04-05 01:45:00+10:30 (2026-04-04 15:15:00Z)",
            ),
            // A whole day.
            (
                "2011-12-30 12:00 Pacific/Apia",
                "does not occur in Pacific/Apia, where clocks skip it; it could mean 2011-12-30 12:00:00-10:00 (2011-12-30 22:00:00Z) and 2011-12-30 12:00:00+14:00 (2011-12-29 22:00:00Z)",
            ),
        ] {
            let error = resolve(text, &Zones::default()).unwrap_err();
            assert_eq!(error.code(), Code::Usage);
            assert_eq!(error.to_string(), format!("time \"{text}\" {message}"));
        }
        for (text, at) in [
            (
                "2026-10-25 01:59:59.999999 Europe/Berlin",
                "2026-10-24T23:59:59.999999Z",
            ),
            (
                "2026-10-25 03:00 Europe/Berlin",
                "2026-10-25T02:00:00.000000Z",
            ),
            ("2026-10-25 02:30+02", "2026-10-25T00:30:00.000000Z"),
            ("2026-10-25 02:30+01", "2026-10-25T01:30:00.000000Z"),
            (
                "2026-03-29 01:59:59 Europe/Berlin",
                "2026-03-29T00:59:59.000000Z",
            ),
            (
                "2026-03-29 03:00 Europe/Berlin",
                "2026-03-29T01:00:00.000000Z",
            ),
        ] {
            assert_eq!(moment(text), at, "{text}");
        }
        // The cluster's own zone may be the one in which the hour is ambiguous.
        let zones = Zones {
            host: zone("UTC"),
            cluster: Some("Europe/Berlin"),
            ..Zones::default()
        };
        let error = resolve("2026-10-25 02:30", &zones).unwrap_err();
        assert!(error.to_string().contains("occurs twice in Europe/Berlin"));
    }

    #[test]
    fn zones_are_names_or_offsets() {
        for (text, shown) in [
            ("UTC", "UTC"),
            ("Z", "UTC"),
            ("Europe/Berlin", "Europe/Berlin"),
            ("+02", "+02:00"),
            ("-0530", "-05:30"),
            ("+14:00", "+14:00"),
        ] {
            assert_eq!(text.parse::<Zone>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "Mars/Olympus",
            "europe/berlin",
            "+2",
            "+16",
            "02:00",
            "+02:60",
            "+é",
        ] {
            let error = text.parse::<Zone>().unwrap_err();
            assert_eq!(error.code(), Code::Usage, "{text}");
        }
        for (setting, offset) in [
            ("<+02>-02", "+02:00"),
            ("<-05:30>+05:30", "-05:30"),
            ("<X>5", ""),
        ] {
            let shown = Zone::from_setting(setting).map(|z| z.to_string());
            assert_eq!(shown.unwrap_or_default(), offset, "{setting}");
        }
    }

    #[test]
    fn a_target_is_shown_in_utc_and_in_its_own_zone() {
        let time = resolve("2026-11-20 06:40:49.5 Europe/Berlin", &Zones::default()).unwrap();
        assert_eq!(for_postgresql(time.at), "2026-11-20 05:40:49.500000+00");
        assert_eq!(
            time.zone.show(time.at).as_deref(),
            Some("2026-11-20 06:40:49.500000+01:00")
        );
        assert_eq!(time.zone.show(TimestampTz::INFINITY), None);
    }

    proptest! {
        #[test]
        fn what_is_written_for_postgresql_is_read_as_the_same_microsecond(
            micros in -63_082_281_600_000_000_i64..=252_455_615_999_999_999
        ) {
            let time = TimestampTz(micros);
            prop_assert_eq!(moment(&for_postgresql(time)), time.to_string());
            prop_assert_eq!(moment(&time.to_string()), time.to_string());
        }

        #[test]
        fn local_readings_come_back(micros in 0_i64..2_000_000_000_000_000, name in proptest::sample::select(
            vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "UTC"]
        )) {
            let time = TimestampTz(micros);
            let zone: Zone = name.parse().unwrap();
            // With its offset the shown time is exact; without, it is the same moment or refused.
            let shown = zone.show(time).unwrap();
            prop_assert_eq!(moment(&shown), time.to_string());
            let local = shown.rfind(['+', '-']).map(|at| &shown[..at]).unwrap();
            let zones = Zones { given: Some(zone), ..Zones::default() };
            if let Ok(read) = resolve(local, &zones) {
                prop_assert_eq!(read.at, time);
            }
        }

        #[test]
        fn reading_never_panics(text in "[-0-9T:.+Z@ a-zA-Zé/]{0,40}") {
            let _ = resolve(&text, &Zones::default());
            let _ = text.parse::<Zone>();
            let _ = Zone::from_setting(&text);
        }
    }
}
