//! Hours of the day.

use std::fmt;
use std::str::FromStr;

use crate::err;
use crate::error::{Error, Result};

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// Stretches of each day, as a clock on the wall tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours(Vec<(u16, u16)>);

impl Hours {
    /// Whether a minute of the day, counted from midnight, is one of them.
    pub fn contains(&self, minute: u16) -> bool {
        let is_in = |(from, to): &(u16, u16)| match from < to {
            true => (*from..*to).contains(&minute),
            // Across midnight.
            false => minute >= *from || minute < *to,
        };
        self.0.iter().any(is_in)
    }
}

impl FromStr for Hours {
    type Err = Error;

    /// Reads `08:00-18:00`, or several such stretches with commas between.
    fn from_str(text: &str) -> Result<Hours> {
        let wrong = || {
            err!(
                Config,
                "\"{}\" are no hours of the day",
                text.escape_debug()
            )
            .hint("Write them like 08:00-18:00, or 22:00-06:00,12:00-13:00.")
        };
        let stretch = |stretch: &str| {
            let (from, to) = stretch.trim().split_once('-')?;
            let (from, to) = (minute(from)?, minute(to)?);
            (from != to && from < DAY).then_some((from, to))
        };
        let stretches: Option<Vec<_>> = text.split(',').map(stretch).collect();
        stretches.map(Hours).ok_or_else(wrong)
    }
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number = |text: &str| -> Option<u16> {
        let is_two = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        is_two.then(|| text.parse().ok())?
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let all = hour * 60 + minute;
    (minute < 60 && all <= DAY).then_some(all)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (from, to)) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let (a, b, c, d) = (from / 60, from % 60, to / 60, to % 60);
            write!(f, "{comma}{a:02}:{b:02}-{c:02}:{d:02}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_in_the_hours_or_not() {
        let hours: Hours = "08:00-18:00, 22:30-06:00".parse().unwrap();
        for (hour, minute, is_in) in [
            (8, 0, true),
            (7, 59, false),
            (17, 59, true),
            (18, 0, false),
            (22, 29, false),
            (22, 30, true),
            (0, 0, true),
            (5, 59, true),
            (6, 0, false),
        ] {
            assert_eq!(hours.contains(hour * 60 + minute), is_in, "{hour}:{minute}");
        }
        assert_eq!(hours.to_string(), "08:00-18:00,22:30-06:00");
        assert_eq!(hours.to_string().parse::<Hours>().unwrap(), hours);
        let whole: Hours = "00:00-24:00".parse().unwrap();
        assert!((0..DAY).all(|minute| whole.contains(minute)));
        for bad in [
            "",
            "8-18",
            "08:00",
            "08:00-08:00",
            "25:00-26:00",
            "08:60-09:00",
            "24:00-06:00",
            "08:00-18:00,",
        ] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }
}
