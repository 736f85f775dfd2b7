//! Sizes and periods as people write them: `16MiB`, `7d`.
//!
//! A number never stands without its unit (but for `0`): `10` could be bytes or gigabytes, seconds or days. Decimal and
//! binary units are distinct, unlike in PostgreSQL's settings, where `MB` is 2^20: `MB` is 10^6 here and `MiB` is 2^20.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::err;
use crate::error::Error;

/// A number of bytes. Prints in the largest unit that divides it, so that reading gives the same number again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A length of time in whole seconds. Prints in the largest unit that divides it, so that reading gives the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub u64);

impl Period {
    /// The same length for the standard library.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

/// From the largest to the smallest.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// From the largest to the smallest. The first of two names for one unit is printed.
const PERIODS: [(&str, u64); 6] = [
    ("w", 7 * 86_400),
    ("d", 86_400),
    ("h", 3_600),
    ("m", 60),
    ("min", 60),
    ("s", 1),
];

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millis(pub u64);

const MILLIS: [(&str, u64); 2] = [("s", 1000), ("ms", 1)];

impl FromStr for Millis {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        parse(s, &MILLIS).map(Millis).map_err(|problem| {
            err!(
                Usage,
                "\"{}\" is not a length of time: {problem}",
                s.escape_debug()
            )
            .hint("Write a whole number and ms or s, as in 50ms.")
        })
    }
}

const SIZE_HINT: &str = "Write a whole number and one of B KB MB GB TB KiB MiB GiB TiB, as in 16MiB (KB, MB, GB, TB are powers of ten).";
const PERIOD_HINT: &str = "Write a whole number and one of s m (or min) h d w, as in 26h or 7d.";

impl FromStr for Size {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        parse(s, &SIZES).map(Size).map_err(|problem| {
            err!(Usage, "\"{}\" is not a size: {problem}", s.escape_debug()).hint(SIZE_HINT)
        })
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        parse(s, &PERIODS).map(Period).map_err(|problem| {
            err!(
                Usage,
                "\"{}\" is not a length of time: {problem}",
                s.escape_debug()
            )
            .hint(PERIOD_HINT)
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, &SIZES, f)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, &PERIODS, f)
    }
}

fn print(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let exact = units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    match exact.or(units.last()) {
        Some((unit, factor)) => f.pad(&format!("{}{unit}", value / factor)),
        None => Ok(()),
    }
}

fn parse(s: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let digits_end = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at_checked(digits_end).unwrap_or((s, ""));
    let unit = unit.trim_start_matches(' ');
    if number.is_empty() {
        return Err("a whole number is needed".into());
    }
    let number: u64 = number.parse().map_err(|_| "the number is too large")?;
    if unit.is_empty() {
        return match number {
            0 => Ok(0),
            _ => Err("the unit is missing".into()),
        };
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let near = units
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit));
        return Err(match near {
            Some((name, _)) => format!("did you mean {number}{name}?"),
            None => format!("\"{}\" is not a unit", unit.escape_debug()),
        });
    };
    number
        .checked_mul(*factor)
        .ok_or_else(|| "the number is too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_unit_has_its_factor() {
        for (text, bytes) in [
            ("0", 0),
            ("0B", 0),
            ("1B", 1),
            ("1KB", 1_000),
            ("1KiB", 1_024),
            ("16MiB", 16_777_216),
            ("16 MiB", 16_777_216),
            ("16MB", 16_000_000),
            ("1GB", 1_000_000_000),
            ("1GiB", 1_073_741_824),
            ("2TB", 2_000_000_000_000),
            ("2TiB", 2_199_023_255_552),
            ("18446744073709551615B", u64::MAX),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        for (text, seconds) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30),
            ("15m", 900),
            ("15min", 900),
            ("26h", 93_600),
            ("7d", 604_800),
            ("1w", 604_800),
        ] {
            assert_eq!(text.parse::<Period>().unwrap(), Period(seconds), "{text}");
        }
    }

    #[test]
    fn the_message_says_what_is_wrong() {
        for (text, message) in [
            ("", "\"\" is not a size: a whole number is needed"),
            ("MB", "\"MB\" is not a size: a whole number is needed"),
            ("-1MB", "\"-1MB\" is not a size: a whole number is needed"),
            ("10", "\"10\" is not a size: the unit is missing"),
            ("10 GBB", "\"10 GBB\" is not a size: \"GBB\" is not a unit"),
            ("10mb", "\"10mb\" is not a size: did you mean 10MB?"),
            ("1.5GB", "\"1.5GB\" is not a size: \".5GB\" is not a unit"),
            (
                "99999999TiB",
                "\"99999999TiB\" is not a size: the number is too large",
            ),
            (
                "99999999999999999999B",
                "\"99999999999999999999B\" is not a size: the number is too large",
            ),
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert_eq!(error.to_string(), message);
            assert_eq!(error.hint_text(), Some(SIZE_HINT));
        }
        let error = "5 fortnights".parse::<Period>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"5 fortnights\" is not a length of time: \"fortnights\" is not a unit"
        );
        assert_eq!(error.hint_text(), Some(PERIOD_HINT));
    }

    #[test]
    fn printing_takes_the_largest_unit_that_divides() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (16 << 20, "16MiB"),
            (1_000_000_000, "1GB"),
            (1023, "1023B"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        for (seconds, text) in [
            (0, "0s"),
            (93_600, "26h"),
            (604_800, "1w"),
            (86_400, "1d"),
            (90, "90s"),
        ] {
            assert_eq!(Period(seconds).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            prop_assert_eq!(Size(value).to_string().parse::<Size>().unwrap(), Size(value));
            prop_assert_eq!(Period(value).to_string().parse::<Period>().unwrap(), Period(value));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,20}") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Period>();
        }
    }
}
