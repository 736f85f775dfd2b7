//! Names of the files in `pg_wal`: segments, partial segments, history and backup history files.
//!
//! Knowledge: src/include/access/xlog_internal.h (XLogFileName, IsXLogFileName …), PostgreSQL 13–19. Names are upper-case
//! hexadecimal; the same name means another position under another segment size.

use std::fmt;
use std::str::FromStr;

use crate::err;
use crate::error::{Error, Result};
use crate::text::as_text;

use super::lsn::{Lsn, LsnRange};
use super::timeline::TimelineId;

/// The size of a WAL segment: a power of two from 1 MiB to 1 GiB, fixed when the cluster is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 16 MiB, what `initdb` chooses by itself.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// The size of `bytes` bytes.
    ///
    /// # Errors
    /// `Damaged` if PostgreSQL knows no such segment size (src/include/access/xlog_internal.h, IsValidWalSegSize).
    pub fn new(bytes: u64) -> Result<Self> {
        match u32::try_from(bytes) {
            Ok(b) if b.is_power_of_two() && (1 << 20..=1 << 30).contains(&b) => Ok(SegmentSize(b)),
            _ => Err(err!(
                Damaged,
                "WAL segment size {bytes} is not a power of two from 1 MiB to 1 GiB"
            )),
        }
    }

    /// Reads `16MB` or `1GB`, as `SHOW wal_segment_size` prints it.
    pub fn from_setting(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text.get(digits.len()..)? {
            "kB" => 1 << 10,
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            _ => return None,
        };
        SegmentSize::new(digits.parse::<u64>().ok()?.checked_mul(unit)?).ok()
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// How many segments share the middle part of a name: 4 GiB divided by the size.
    pub const fn per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        SegmentSize::DEFAULT
    }
}

impl<'de> serde::Deserialize<'de> for SegmentSize {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        SegmentSize::new(u64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The number of a segment: its start LSN divided by the segment size. Timelines share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The segment that holds the byte at `lsn`.
    pub fn of(lsn: Lsn, size: SegmentSize) -> Self {
        SegmentNumber(lsn.0 / size.bytes())
    }

    /// The segment that holds the byte before `lsn`: the one needed for a record that ends there.
    pub fn ending_at(lsn: Lsn, size: SegmentSize) -> Self {
        SegmentNumber(lsn.0.saturating_sub(1) / size.bytes())
    }

    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        SegmentNumber(self.0.saturating_add(1))
    }

    /// First position of the segment.
    pub fn start_lsn(self, size: SegmentSize) -> Lsn {
        Lsn(self.0.saturating_mul(size.bytes()))
    }

    /// The positions of the segment.
    pub fn range(self, size: SegmentSize) -> LsnRange {
        LsnRange {
            start: self.start_lsn(size),
            end: self.next().start_lsn(size),
        }
    }

    /// The name of this segment on `timeline`; `None` for a number behind the last LSN.
    pub fn name(self, timeline: TimelineId, size: SegmentSize) -> Option<SegmentName> {
        Some(SegmentName {
            timeline,
            log: u32::try_from(self.0 / size.per_log()).ok()?,
            seg: u32::try_from(self.0 % size.per_log()).ok()?,
        })
    }
}

/// The name of a segment: 24 upper-case hexadecimal digits in three parts.
///
/// Order is that of the text: timeline first, then position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline under which the segment is filed. Its first pages may belong to an ancestor.
    pub timeline: TimelineId,
    /// The middle part: the high half of the LSN.
    pub log: u32,
    /// The last part: which segment of these 4 GiB.
    pub seg: u32,
}

impl SegmentName {
    /// The segment of `timeline` that holds the byte at `lsn`.
    pub fn of(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        // Both halves fit: the high half is 32 bits wide, and the low half is divided.
        let half = |v: u64| u32::try_from(v & 0xFFFF_FFFF).unwrap_or_default();
        SegmentName {
            timeline,
            log: half(lsn.0 >> 32),
            seg: half((lsn.0 & 0xFFFF_FFFF) / size.bytes()),
        }
    }

    /// The number of the segment.
    ///
    /// # Errors
    /// `WalName` if the last part is too large for this segment size: the name belongs to a cluster of smaller segments.
    pub fn number(self, size: SegmentSize) -> Result<SegmentNumber> {
        if u64::from(self.seg) >= size.per_log() {
            return Err(err!(
                WalName,
                "WAL file name \"{self}\" does not fit segments of {} bytes: its last part is above {:08X}",
                size.bytes(),
                size.per_log() - 1
            ));
        }
        Ok(SegmentNumber(
            u64::from(self.log) * size.per_log() + u64::from(self.seg),
        ))
    }

    /// First position of the segment.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn start_lsn(self, size: SegmentSize) -> Result<Lsn> {
        self.number(size).map(|n| n.start_lsn(size))
    }

    /// The name that the segment before has where it is one of `timeline`; `None` before the first position.
    pub fn before(self, timeline: TimelineId, size: SegmentSize) -> Option<Self> {
        let number = self.number(size).ok()?.0.checked_sub(1)?;
        SegmentNumber(number).name(timeline, size)
    }

    /// The name after this one on the same timeline; `None` behind the last LSN there is.
    pub fn next(self, size: SegmentSize) -> Option<Self> {
        if u64::from(self.seg) + 1 < size.per_log() {
            return Some(SegmentName {
                seg: self.seg + 1,
                ..self
            });
        }
        Some(SegmentName {
            log: self.log.checked_add(1)?,
            seg: 0,
            ..self
        })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline, self.log, self.seg)
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.parse()? {
            WalFileName::Segment(name) => Ok(name),
            _ => Err(err!(WalName, "\"{s}\" is not the name of a WAL segment")),
        }
    }
}

as_text!(SegmentName);

/// A file that PostgreSQL archives or asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A whole segment.
    Segment(SegmentName),
    /// The last segment of a timeline that was left; recovery never asks for it.
    Partial(SegmentName),
    /// The history of a timeline.
    History(TimelineId),
    /// The record of a base backup that was taken: the segment of its start LSN and the offset in it.
    BackupHistory {
        /// Segment that holds the start LSN.
        segment: SegmentName,
        /// Offset of the start LSN in that segment.
        offset: u32,
    },
}

impl WalFileName {
    /// The timeline in the name.
    pub fn timeline(self) -> TimelineId {
        match self {
            WalFileName::Segment(s)
            | WalFileName::Partial(s)
            | WalFileName::BackupHistory { segment: s, .. } => s.timeline,
            WalFileName::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalFileName::Segment(segment) => write!(f, "{segment}"),
            WalFileName::Partial(segment) => write!(f, "{segment}.partial"),
            WalFileName::History(timeline) => write!(f, "{timeline}.history"),
            WalFileName::BackupHistory { segment, offset } => {
                write!(f, "{segment}.{offset:08X}.backup")
            }
        }
    }
}

impl FromStr for WalFileName {
    type Err = Error;

    /// # Errors
    /// `WalName`, with what is wrong about the name.
    fn from_str(s: &str) -> Result<Self> {
        if let Some(stem) = s.strip_suffix(".history") {
            return whole(s, stem, 8)
                .and_then(|()| timeline(s, stem))
                .map(WalFileName::History);
        }
        if let Some(stem) = s.strip_suffix(".partial") {
            return segment(s, stem).map(WalFileName::Partial);
        }
        if let Some(stem) = s.strip_suffix(".backup") {
            let Some((stem, offset)) = stem.split_once('.') else {
                return Err(refuse(s, "an offset is missing before \".backup\""));
            };
            let name = segment(s, stem)?;
            whole(s, offset, 8)?;
            let offset = hex8(offset).ok_or_else(|| refuse(s, NOT_HEX))?;
            return Ok(WalFileName::BackupHistory {
                segment: name,
                offset,
            });
        }
        segment(s, s).map(WalFileName::Segment)
    }
}

as_text!(WalFileName);

const NOT_HEX: &str = "a character is not a hexadecimal digit";

fn refuse(name: &str, why: &str) -> Error {
    // A name from a hostile place must not flood a log.
    let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
    err!(
        WalName,
        "\"{shown}\" is not a WAL, history or backup file name: {why}"
    )
}

fn segment(name: &str, stem: &str) -> Result<SegmentName> {
    whole(name, stem, 24)?;
    let part = |from: usize| stem.get(from..from + 8).unwrap_or_default();
    Ok(SegmentName {
        timeline: timeline(name, part(0))?,
        log: hex8(part(8)).ok_or_else(|| refuse(name, NOT_HEX))?,
        seg: hex8(part(16)).ok_or_else(|| refuse(name, NOT_HEX))?,
    })
}

fn timeline(name: &str, part: &str) -> Result<TimelineId> {
    let number = hex8(part).ok_or_else(|| refuse(name, NOT_HEX))?;
    TimelineId::new(number).ok_or_else(|| refuse(name, "timeline 0 does not exist"))
}

/// Checks that `part` is `length` upper-case hexadecimal digits.
fn whole(name: &str, part: &str, length: usize) -> Result<()> {
    let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    if part.len() == length && part.bytes().all(upper) {
        return Ok(());
    }
    if part.bytes().all(|b| b.is_ascii_hexdigit()) && !part.bytes().all(upper) {
        return Err(refuse(name, "lower-case letters are not used in WAL names"));
    }
    if !part.bytes().all(upper) && part.chars().count() == length {
        return Err(refuse(name, NOT_HEX));
    }
    let seen = part.chars().count();
    Err(refuse(name, &format!("{seen} characters, {length} needed")))
}

/// Eight upper-case hexadecimal digits.
pub(super) fn hex8(s: &str) -> Option<u32> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    };
    (s.len() == 8).then_some(())?;
    s.bytes()
        .try_fold(0, |n, b| Some(n << 4 | u32::from(digit(b)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::timeline::tli;
    use proptest::prelude::*;

    fn size(bytes: u64) -> SegmentSize {
        SegmentSize::new(bytes).unwrap()
    }

    #[test]
    fn sizes_are_read_as_the_server_prints_them() {
        for (text, bytes) in [("16MB", 16 << 20), ("1MB", 1 << 20), ("1GB", 1 << 30)] {
            assert_eq!(SegmentSize::from_setting(text).unwrap().bytes(), bytes);
        }
        for bad in ["", "16", "MB", "3MB", "16 MB", "16TB"] {
            assert!(SegmentSize::from_setting(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn only_the_sizes_of_postgresql_exist() {
        for shift in 20..=30 {
            assert_eq!(size(1 << shift).bytes(), 1 << shift);
        }
        for bad in [
            0,
            1,
            1 << 19,
            (1 << 20) + 1,
            3 << 20,
            1 << 31,
            1 << 32,
            u64::MAX,
        ] {
            assert_eq!(SegmentSize::new(bad).unwrap_err().code(), Code::Damaged);
        }
    }

    /// LSN, size, timeline and name as the server's pg_walfile_name gives them.
    #[test]
    fn names_are_those_of_the_server() {
        let cases = [
            ("0/1000028", 16 << 20, 1, "000000010000000000000001"),
            ("0/FF000000", 16 << 20, 1, "0000000100000000000000FF"),
            ("1/0", 16 << 20, 1, "000000010000000100000000"),
            ("0/900028", 1 << 20, 1, "000000010000000000000009"),
            ("0/FFF00000", 1 << 20, 2, "000000020000000000000FFF"),
            ("1/0", 1 << 20, 2, "000000020000000100000000"),
            ("3/C0000000", 1 << 30, 10, "0000000A0000000300000003"),
            ("0/4000000", 64 << 20, 1, "000000010000000000000001"),
        ];
        for (lsn, bytes, timeline, name) in cases {
            let (lsn, size): (Lsn, _) = (lsn.parse().unwrap(), size(bytes));
            let segment = SegmentName::of(tli(timeline), lsn, size);
            assert_eq!(segment.to_string(), name);
            let number = segment.number(size).unwrap();
            assert_eq!(number, SegmentNumber::of(lsn, size));
            assert_eq!(number.name(tli(timeline), size), Some(segment));
            assert_eq!(name.parse::<SegmentName>().unwrap(), segment);
        }
    }

    #[test]
    fn the_next_name_carries_into_the_middle_part() {
        let s: SegmentName = "0000000100000000000000FF".parse().unwrap();
        let whole = SegmentSize::DEFAULT;
        for (size, next) in [
            (whole, "000000010000000100000000"),
            (size(1 << 20), "000000010000000000000100"),
        ] {
            assert_eq!(s.next(size).unwrap().to_string(), next);
        }
        let last: SegmentName = "00000001FFFFFFFF000000FF".parse().unwrap();
        assert_eq!(last.next(whole), None);
        let behind = last.number(whole).unwrap().next();
        assert_eq!(behind.name(tli(1), whole), None);
    }

    #[test]
    fn a_name_of_another_segment_size_is_refused() {
        let s: SegmentName = "000000010000000000000100".parse().unwrap();
        let error = s.number(SegmentSize::DEFAULT).unwrap_err();
        assert_eq!(error.code(), Code::WalName);
        assert!(error.to_string().contains("above 000000FF"), "{error}");
        assert_eq!(s.start_lsn(size(1 << 20)).unwrap(), Lsn(0x1000_0000));
    }

    #[test]
    fn the_segment_of_an_end_holds_the_byte_before_it() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(SegmentNumber::ending_at(Lsn(0x200_0000), size).0, 1);
        assert_eq!(SegmentNumber::of(Lsn(0x200_0000), size).0, 2);
        assert_eq!(SegmentNumber::ending_at(Lsn(0), size).0, 0);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let cases = [
            (
                "foo",
                "\"foo\" is not a WAL, history or backup file name: 3 characters, 24 needed",
            ),
            ("00000001000000000000004", "23 characters, 24 needed"),
            ("0000000100000000000000042", "25 characters, 24 needed"),
            (
                "00000001000000000000000a",
                "lower-case letters are not used",
            ),
            ("00000001000000000000000G", "not a hexadecimal digit"),
            ("000000000000000000000001", "timeline 0 does not exist"),
            ("00000000.history", "timeline 0 does not exist"),
            ("0000001.history", "7 characters, 8 needed"),
            ("0000000a.history", "lower-case letters are not used"),
            (".history", "0 characters, 8 needed"),
            ("000000010000000000000001.backup", "an offset is missing"),
            (
                "000000010000000000000001.28.backup",
                "2 characters, 8 needed",
            ),
            (
                "000000010000000000000001.00000028.00.backup",
                "11 characters, 8 needed",
            ),
            ("000000010000000000000001.gz", "27 characters, 24 needed"),
            (
                "000000010000000000000001.partial.partial",
                "32 characters, 24 needed",
            ),
            ("../../etc/passwd", "16 characters, 24 needed"),
            ("", "0 characters, 24 needed"),
            ("+00000010000000000000001", "not a hexadecimal digit"),
            ("00000001000000000000000é", "not a hexadecimal digit"),
            ("RECOVERYXLOG", "12 characters, 24 needed"),
        ];
        for (name, why) in cases {
            let error = name.parse::<WalFileName>().unwrap_err();
            assert_eq!(error.code(), Code::WalName);
            assert!(error.to_string().contains(why), "{error}");
        }
        let long = "x".repeat(5000).parse::<WalFileName>().unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    #[test]
    fn every_kind_of_name_is_recognised() {
        let segment: SegmentName = "00000002000000000000000A".parse().unwrap();
        let cases = [
            ("00000002000000000000000A", WalFileName::Segment(segment)),
            (
                "00000002000000000000000A.partial",
                WalFileName::Partial(segment),
            ),
            ("00000002.history", WalFileName::History(tli(2))),
            (
                "00000002000000000000000A.00000028.backup",
                WalFileName::BackupHistory {
                    segment,
                    offset: 0x28,
                },
            ),
        ];
        for (text, name) in cases {
            assert_eq!(text.parse::<WalFileName>().unwrap(), name);
            assert_eq!(name.to_string(), text);
            assert_eq!(name.timeline(), tli(2));
        }
        assert!("00000002.history".parse::<SegmentName>().is_err());
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(timeline in 1u32.., log: u32, seg: u32) {
            let name = SegmentName { timeline: tli(timeline), log, seg };
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
        }

        #[test]
        fn any_text_is_a_name_or_refused(text in "[0-9A-Fa-f.é]{0,40}(.history|.partial|.backup)?") {
            if let Ok(name) = text.parse::<WalFileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn a_segment_holds_its_lsn(lsn: u64, shift in 20u32..=30) {
            let size = size(1 << shift);
            let name = SegmentName::of(tli(1), Lsn(lsn), size);
            let start = name.start_lsn(size).unwrap();
            prop_assert!(start.0 <= lsn && lsn - start.0 < size.bytes());
            prop_assert_eq!(name.next(size), name.number(size).unwrap().next().name(tli(1), size));
        }
    }
}
