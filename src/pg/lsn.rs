//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use crate::err;
use crate::error::Error;
use crate::text::as_text;

/// A byte position in the WAL stream; `0/0` is invalid in PostgreSQL.
///
/// Prints as PostgreSQL 13–19 do (`0/3000060`), reads the zero-padded form of 19 too.
/// PostgreSQL: src/include/access/xlogdefs.h, src/backend/utils/adt/pg_lsn.c.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The LSN that PostgreSQL calls invalid.
    pub const INVALID: Lsn = Lsn(0);

    /// The LSN rounded up to a multiple of `alignment` (a power of two).
    #[must_use]
    pub fn align_up(self, alignment: u64) -> Lsn {
        Lsn((self.0 + alignment - 1) & !(alignment - 1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let parse = || {
            let (high, low) = s.split_once('/')?;
            Some(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
        };
        parse().ok_or_else(|| err!(Usage, "\"{s}\" is not an LSN: two hexadecimal numbers up to FFFFFFFF are needed, as in 0/3000060"))
    }
}

fn half(s: &str) -> Option<u32> {
    ((1..=8).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u32::from_str_radix(s, 16).ok())?
}

as_text!(Lsn);

/// WAL positions `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LsnRange {
    /// First position inside.
    pub start: Lsn,
    /// First position behind.
    pub end: Lsn,
}

impl LsnRange {
    /// Whether all of another range lies in it.
    pub fn holds(self, other: LsnRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_and_parsing_are_inverse() {
        for value in [0, 1, 0x300_0060, 0x1_0000_0000, u64::MAX, 0xABCD_0000_1234] {
            assert_eq!(Lsn(value).to_string().parse::<Lsn>().unwrap(), Lsn(value));
        }
        assert_eq!("0/00ABCDEF".parse::<Lsn>().unwrap(), Lsn(0xAB_CDEF));
        for bad in [
            "",
            "0",
            "0/",
            "/0",
            "0/xyz",
            "16/B374D8480",
            "0/-1",
            "+1/0",
            "1/2/3",
            " 0/1",
        ] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
