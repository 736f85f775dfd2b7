//! Moments that an operator writes and that are no target: a time, a day, or a length of time from now.

use std::str::FromStr;
use std::time::Duration;

use crate::config::Period;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::plan::target_time::WrittenTime;

/// The forms that are accepted, for a refusal.
const ACCEPTED: &str = "accepted are a time such as \"2026-11-20 06:40:49+01\", a day such as 2026-11-20, and a length of time such as 1h or 30d";

/// A moment, as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// A time, perhaps without a zone.
    At(WrittenTime),
    /// A day, without a zone.
    Day {
        /// Its first moment.
        begin: WrittenTime,
        /// Its last microsecond.
        end: WrittenTime,
    },
    /// So far from now. It is refused (`Usage`) where that is out of range.
    Distant(Duration),
}

impl Moment {
    /// Returns the time, of a day its begin; a length of time reaches back from `now`.
    pub fn before(&self, now: TimestampTz) -> Result<WrittenTime> {
        self.written(|distance| now.saturating_sub(distance))
    }

    /// Returns the last time that belongs to it, of a day its end; a length of time reaches back from `now`.
    pub fn end_before(&self, now: TimestampTz) -> Result<WrittenTime> {
        match self {
            Moment::Day { end, .. } => Ok(end.clone()),
            _ => self.before(now),
        }
    }

    /// Returns the time, of a day its begin; a length of time reaches forward from `now`.
    pub fn after(&self, now: TimestampTz) -> Result<WrittenTime> {
        self.written(|distance| now.saturating_add(distance))
    }

    fn written(&self, distant: impl Fn(Duration) -> TimestampTz) -> Result<WrittenTime> {
        match self {
            Moment::At(written) | Moment::Day { begin: written, .. } => Ok(written.clone()),
            Moment::Distant(distance) => distant(*distance).to_string().parse(),
        }
    }
}

impl FromStr for Moment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Moment> {
        if let Ok(period) = text.parse::<Period>() {
            return Ok(Moment::Distant(period.duration()));
        }
        // The message names the forms: that of an option shows no hint.
        let read = |time: &str| {
            let written = time.parse::<WrittenTime>();
            written.map_err(|e: Error| err!(Usage, "{}; {ACCEPTED}", e.message()))
        };
        if !is_day(text) {
            return read(text).map(Moment::At);
        }
        Ok(Moment::Day {
            begin: read(&format!("{text} 00:00"))?,
            end: read(&format!("{text} 23:59:59.999999"))?,
        })
    }
}

/// Whether a text has the form of a day: 2026-11-20.
pub(super) fn is_day(text: &str) -> bool {
    text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::target_time::{Zone, Zones};

    fn at(written: &WrittenTime) -> String {
        let zones = Zones {
            given: Some(Zone::UTC),
            ..Zones::default()
        };
        written.resolve(&zones).unwrap().at.to_string()
    }

    #[test]
    fn times_days_and_lengths_of_time_are_read() {
        let now: TimestampTz = "2026-11-20T06:40:49.5Z".parse().unwrap();
        for (text, before, after) in [
            ("1h", "2026-11-20T05:40:49.5", "2026-11-20T07:40:49.5"),
            ("30d", "2026-10-21T06:40:49.5", "2026-12-20T06:40:49.5"),
            ("2027-01-01", "2027-01-01T00:00:00", "2027-01-01T00:00:00"),
            (
                "2027-01-01 12:00+01",
                "2027-01-01T11:00:00",
                "2027-01-01T11:00:00",
            ),
        ] {
            let moment: Moment = text.parse().unwrap();
            let (back, forth) = (moment.before(now).unwrap(), moment.after(now).unwrap());
            assert!(at(&back).starts_with(before), "{text}: {}", at(&back));
            assert!(at(&forth).starts_with(after), "{text}: {}", at(&forth));
        }
    }

    #[test]
    fn a_day_ends_with_its_last_microsecond_in_its_zone() {
        let now: TimestampTz = "2026-11-20T06:40:49.5Z".parse().unwrap();
        let zones = Zones {
            given: Some("Europe/Berlin".parse().unwrap()),
            ..Zones::default()
        };
        for (text, end) in [
            ("2026-11-20", "2026-11-20T22:59:59.999999"),
            // The clocks change in these days.
            ("2026-03-29", "2026-03-29T21:59:59.999999"),
            ("2026-10-25", "2026-10-25T22:59:59.999999"),
            ("2026-11-20 12:00+01", "2026-11-20T11:00:00"),
            ("1h", "2026-11-20T05:40:49.5"),
        ] {
            let moment: Moment = text.parse().unwrap();
            let written = moment.end_before(now).unwrap();
            let found = written.resolve(&zones).unwrap().at.to_string();
            assert!(found.starts_with(end), "{text}: {found}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_accepted() {
        for text in ["tomorrow", "1 fortnight", "2026-13-01", ""] {
            let refused = text.parse::<Moment>().unwrap_err().to_string();
            assert!(refused.contains("is not a time"), "{refused}");
            assert!(refused.contains("a day such as 2026-11-20"), "{refused}");
            assert!(refused.contains("1h or 30d"), "{refused}");
        }
    }
}
