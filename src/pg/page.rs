//! Headers of WAL pages.
//!
//! Knowledge: src/include/access/xlog_internal.h (XLogPageHeaderData, XLogLongPageHeaderData),
//! src/backend/access/transam/xlogreader.c (XLogReaderValidatePageHeader), PostgreSQL 13–19.

use std::fmt;

use crate::err;
use crate::error::{Error, Result};

use super::cursor::Cursor;
use super::lsn::Lsn;
use super::segment::{SegmentName, SegmentSize};
use super::timeline::TimelineId;
use super::version::{Major, Version};

/// Size of the header of every page but the first of a segment.
pub const SHORT_HEADER: usize = 24;

/// Size of the header of the first page of a segment.
pub const LONG_HEADER: usize = 40;

/// The page size (`XLOG_BLCKSZ`) of every build that was not configured otherwise.
pub const DEFAULT_PAGE_SIZE: u32 = 8192;

/// The page begins with the continuation of a record (XLP_FIRST_IS_CONTRECORD).
pub const FIRST_IS_CONTRECORD: u16 = 0x0001;

/// The header is a long one (XLP_LONG_HEADER).
pub const LONG: u16 = 0x0002;

/// The header of a WAL page as it stands there, not judged yet.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 2 | `magic` |
/// | 2 | 2 | `info` |
/// | 4 | 4 | `timeline` |
/// | 8 | 8 | `address` |
/// | 16 | 4 | `remaining` |
/// | 24 | 16 | `long`, if the flag is set |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Magic number of the major.
    pub magic: u16,
    /// Flags.
    pub info: u16,
    /// Timeline of the WAL on the page; at or below that of the file name.
    pub timeline: u32,
    /// Position of the page in the WAL.
    pub address: Lsn,
    /// How many bytes of a record that began on an earlier page are still to come, this page included.
    pub remaining: u32,
    /// Fields that only the first page of a segment has.
    pub long: Option<LongHeader>,
}

/// The fields that only the first page of a segment has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// System identifier of the cluster.
    pub system_identifier: u64,
    /// Segment size in bytes.
    pub segment_size: u32,
    /// Page size in bytes (`XLOG_BLCKSZ`).
    pub page_size: u32,
}

impl PageHeader {
    /// Reads the header at the front of `page`; `None` if there are too few bytes.
    #[inline]
    pub fn read(page: &[u8]) -> Option<Self> {
        let mut c = Cursor::new(page.get(..SHORT_HEADER)?);
        let mut header = PageHeader {
            magic: c.u16()?,
            info: c.u16()?,
            timeline: c.u32()?,
            address: Lsn(c.u64()?),
            remaining: c.u32()?,
            long: None,
        };
        if header.has(LONG) {
            let mut c = Cursor::new(page.get(SHORT_HEADER..LONG_HEADER)?);
            header.long = Some(LongHeader {
                system_identifier: c.u64()?,
                segment_size: c.u32()?,
                page_size: c.u32()?,
            });
        }
        Some(header)
    }

    /// Whether the page replaces the continuation of a record that was never finished (XLP_FIRST_IS_OVERWRITE_CONTRECORD; 13.5, 14.1).
    #[inline]
    pub fn overwrites(&self, version: &Version) -> bool {
        self.has(version.overwrite_flag)
    }

    /// Whether a flag is set that the major does not have. The one between (XLP_BKP_REMOVABLE, before 19) only informs.
    #[inline]
    fn has_strange_flag(&self, version: &Version) -> bool {
        self.info >= version.overwrite_flag << 1
    }

    /// Whether `flag` is set.
    #[inline]
    pub fn has(&self, flag: u16) -> bool {
        self.info & flag != 0
    }

    /// Size of the header itself: what follows belongs to records.
    #[inline]
    pub fn size(&self) -> usize {
        if self.long.is_some() {
            LONG_HEADER
        } else {
            SHORT_HEADER
        }
    }
}

/// The facts in the first page of a segment about the WAL that follows; every field has been checked for sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalIdentity {
    /// Major version of the server that wrote it; `None` for one that is newer than every supported major. The basics of page headers have
    /// been the same from 13 to 19 and are taken to be the same there; nothing else of its WAL can be read.
    pub major: Option<Major>,
    /// `xlp_magic` of its pages.
    pub page_magic: u16,
    /// System identifier of its cluster.
    pub system_identifier: u64,
    pub segment_size: SegmentSize,
    /// Page size (`XLOG_BLCKSZ`).
    pub page_size: u32,
    /// Position of the segment.
    pub start_lsn: Lsn,
    /// Timeline of the first page; at or below that of the file name.
    pub timeline: TimelineId,
}

impl WalIdentity {
    /// Reads the first bytes (at least 40) of a segment, without expecting anything of them.
    ///
    /// # Errors
    /// `Damaged` if this is no first page of a segment, `Unsupported` if an older major wrote it.
    pub fn read(segment: &[u8]) -> Result<Self> {
        let header = PageHeader::read(segment)
            .ok_or_else(|| err!(Damaged, "WAL page header is cut short"))?;
        let major = Major::from_page_magic(header.magic)?;
        if major.is_some_and(|m| header.has_strange_flag(m.version())) {
            return Err(PageFault::Flags(header.info).into());
        }
        let long = header.long.ok_or_else(|| Error::from(PageFault::NotLong))?;
        let segment_size = SegmentSize::new(u64::from(long.segment_size))?;
        // PostgreSQL: configure.ac, --with-wal-blocksize.
        if !long.page_size.is_power_of_two() || !(1024..=65536).contains(&long.page_size) {
            return Err(PageFault::PageSize(long.page_size).into());
        }
        if header.address.0 % segment_size.bytes() != 0 {
            return Err(err!(
                Damaged,
                "WAL page address {} is not the start of a segment",
                header.address
            ));
        }
        Ok(WalIdentity {
            major,
            page_magic: header.magic,
            system_identifier: long.system_identifier,
            segment_size,
            page_size: long.page_size,
            start_lsn: header.address,
            timeline: TimelineId::new(header.timeline)
                .ok_or_else(|| Error::from(PageFault::Timeline(0)))?,
        })
    }

    /// The row of the major that wrote it.
    ///
    /// # Errors
    /// `Unsupported` for a major newer than every supported one.
    pub fn version(&self) -> Result<&'static Version> {
        self.major.map(Major::version).ok_or_else(|| {
            err!(
                Unsupported,
                "its WAL was written by a PostgreSQL newer than {} (page magic {:04X}), which this pitr cannot read",
                Major::NEWEST,
                self.page_magic
            )
            .hint("It is archived and handed out as it is, and nothing can be proven of it. Install a newer pitr.")
        })
    }

    /// Checks that the first page belongs to the name: its position, and a timeline not above the name's.
    ///
    /// # Errors
    /// `SourceHeader` if it does not.
    pub fn matches(&self, name: SegmentName) -> Result<()> {
        let fits = name.number(self.segment_size);
        let expected = fits
            .map_err(|e| e.with_code(crate::error::Code::SourceHeader))?
            .start_lsn(self.segment_size);
        if self.start_lsn != expected {
            return Err(err!(
                SourceHeader,
                "WAL segment \"{name}\" begins with page address {}, expected {expected}",
                self.start_lsn
            ));
        }
        if self.timeline > name.timeline {
            return Err(err!(
                SourceHeader,
                "WAL segment \"{name}\" begins with a page of timeline {}, above its own",
                self.timeline.decimal()
            ));
        }
        Ok(())
    }
}

/// The values that a page of known WAL must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The row of the major that wrote it.
    pub version: &'static Version,
    /// System identifier, where it is known.
    pub system_identifier: Option<u64>,
    pub segment_size: SegmentSize,
    pub page_size: u32,
    /// Position of the page.
    pub address: Lsn,
    /// Lowest timeline: that of the page before. 0 if there is none.
    pub lowest_timeline: u32,
    /// Highest timeline: that of the file name.
    pub highest_timeline: u32,
}

impl Expected {
    /// Judges a header as the server does, in its order; the upper limit for the timeline is ours.
    ///
    /// # Errors
    /// The first thing that is wrong.
    ///
    /// PostgreSQL: src/backend/access/transam/xlogreader.c, XLogReaderValidatePageHeader.
    #[inline]
    pub fn check(&self, header: &PageHeader) -> std::result::Result<(), PageFault> {
        if header.magic != self.version.page_magic {
            return Err(if header.magic == 0 {
                PageFault::Zero
            } else {
                PageFault::Magic(header.magic)
            });
        }
        if header.has_strange_flag(self.version) {
            return Err(PageFault::Flags(header.info));
        }
        let first = self.address.0 & (self.segment_size.bytes() - 1) == 0;
        match header.long {
            Some(long) => self.check_long(long)?,
            None if first => return Err(PageFault::NotLong),
            None => {}
        }
        if header.address != self.address {
            return Err(if header.address < self.address {
                PageFault::Stale(header.address)
            } else {
                PageFault::Address(header.address)
            });
        }
        if header.long.is_some() && !first {
            return Err(PageFault::Long);
        }
        if header.timeline == 0
            || header.timeline < self.lowest_timeline
            || header.timeline > self.highest_timeline
        {
            return Err(PageFault::Timeline(header.timeline));
        }
        Ok(())
    }

    fn check_long(&self, long: LongHeader) -> std::result::Result<(), PageFault> {
        if self
            .system_identifier
            .is_some_and(|s| s != long.system_identifier)
        {
            return Err(PageFault::SystemIdentifier(long.system_identifier));
        }
        if u64::from(long.segment_size) != self.segment_size.bytes() {
            return Err(PageFault::SegmentSize(long.segment_size));
        }
        if long.page_size != self.page_size {
            return Err(PageFault::PageSize(long.page_size));
        }
        Ok(())
    }
}

/// Why a page is not the WAL page that is expected at its place; with the value found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFault {
    /// The page was never written (its magic number is 0).
    Zero,
    /// The page is left over from an earlier use of the file: its address is too small.
    Stale(Lsn),
    /// Another magic number.
    Magic(u16),
    /// A flag that does not exist.
    Flags(u16),
    /// The first page of a segment has a short header.
    NotLong,
    /// A page inside a segment has a long header.
    Long,
    /// Another cluster.
    SystemIdentifier(u64),
    /// Another segment size.
    SegmentSize(u32),
    /// Another page size.
    PageSize(u32),
    /// The address is too large.
    Address(Lsn),
    /// A timeline that cannot be here: 0, below the page before, or above the file name's.
    Timeline(u32),
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageFault::Zero => write!(f, "WAL page was never written"),
            PageFault::Stale(lsn) => {
                write!(
                    f,
                    "WAL page is left over from an earlier use, address {lsn}"
                )
            }
            PageFault::Magic(magic) => {
                write!(f, "WAL page has unexpected magic number {magic:04X}")
            }
            PageFault::Flags(info) => write!(f, "WAL page has invalid flags {info:04X}"),
            PageFault::NotLong => write!(f, "first WAL page of a segment has no long header"),
            PageFault::Long => write!(f, "WAL page inside a segment has a long header"),
            PageFault::SystemIdentifier(id) => write!(f, "WAL page is of system identifier {id}"),
            PageFault::SegmentSize(size) => write!(f, "WAL page is of segment size {size}"),
            PageFault::PageSize(size) => write!(f, "WAL page is of page size {size}"),
            PageFault::Address(lsn) => write!(f, "WAL page has unexpected address {lsn}"),
            PageFault::Timeline(timeline) => {
                write!(f, "WAL page is of unexpected timeline {timeline}")
            }
        }
    }
}

impl From<PageFault> for Error {
    fn from(fault: PageFault) -> Self {
        err!(Damaged, "{fault}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    /// The first bytes of segment 8 of a 17 with 1 MiB segments.
    fn long_header() -> Vec<u8> {
        let mut page = Vec::new();
        page.extend_from_slice(&[0x16, 0xD1, 0x07, 0x00, 1, 0, 0, 0]);
        page.extend_from_slice(&0x80_0000u64.to_le_bytes());
        page.extend_from_slice(&6369u32.to_le_bytes());
        page.extend_from_slice(&[0; 4]);
        page.extend_from_slice(&7_123_456_789_012_345_678u64.to_le_bytes());
        page.extend_from_slice(&[0x00, 0x00, 0x10, 0x00, 0x00, 0x20, 0x00, 0x00]);
        page
    }

    fn expected() -> Expected {
        Expected {
            version: Major::V17.version(),
            system_identifier: Some(7_123_456_789_012_345_678),
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            page_size: 8192,
            address: Lsn(0x80_0000),
            lowest_timeline: 1,
            highest_timeline: 1,
        }
    }

    #[test]
    fn a_long_header_says_whose_wal_it_is() {
        let header = PageHeader::read(&long_header()).unwrap();
        assert_eq!((header.remaining, header.size()), (6369, LONG_HEADER));
        let version = Major::V17.version();
        assert!(header.has(FIRST_IS_CONTRECORD) && !header.overwrites(version));
        // 19 has one flag less, and another number for this one.
        let flagged = |info| PageHeader { info, ..header };
        for (info, version, overwrites, is_strange) in [
            (0x4, version, false, false),
            (0x8, version, true, false),
            (0x10, version, false, true),
            (0x4, Major::V19.version(), true, false),
            (0x8, Major::V19.version(), false, true),
        ] {
            let header = flagged(info);
            assert_eq!(header.overwrites(version), overwrites, "{info}");
            assert_eq!(header.has_strange_flag(version), is_strange, "{info}");
        }
        assert_eq!(expected().check(&header), Ok(()));
        let identity = WalIdentity::read(&long_header()).unwrap();
        assert_eq!(identity.major, Some(Major::V17));
        assert_eq!(identity.start_lsn, Lsn(0x80_0000));
        identity
            .matches("000000010000000000000008".parse().unwrap())
            .unwrap();
        identity
            .matches("000000020000000000000008".parse().unwrap())
            .unwrap();
        for (name, why) in [
            ("000000010000000000000009", "expected 0/900000"),
            ("000000010000000000001000", "does not fit segments"),
        ] {
            let error = identity.matches(name.parse().unwrap()).unwrap_err();
            assert_eq!(error.code(), Code::SourceHeader);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn each_expectation_is_checked() {
        let good = PageHeader::read(&long_header()).unwrap();
        let long = good.long.unwrap();
        let short = PageHeader {
            info: 0,
            address: Lsn(0x80_2000),
            long: None,
            ..good
        };
        let inside = Expected {
            address: Lsn(0x80_2000),
            ..expected()
        };
        assert_eq!(inside.check(&short), Ok(()));
        let with_magic = |magic| PageHeader { magic, ..good };
        let with_long = |long| PageHeader {
            long: Some(long),
            ..good
        };
        let at = |address| PageHeader {
            address: Lsn(address),
            ..short
        };
        let (system_identifier, segment_size, page_size) = (1, 1, 1);
        let cases = [
            (expected(), with_magic(0), PageFault::Zero),
            (expected(), with_magic(0xD118), PageFault::Magic(0xD118)),
            (
                expected(),
                PageHeader { info: 0x10, ..good },
                PageFault::Flags(0x10),
            ),
            (expected(), short, PageFault::NotLong),
            (
                expected(),
                with_long(LongHeader {
                    system_identifier,
                    ..long
                }),
                PageFault::SystemIdentifier(1),
            ),
            (
                expected(),
                with_long(LongHeader {
                    segment_size,
                    ..long
                }),
                PageFault::SegmentSize(1),
            ),
            (
                expected(),
                with_long(LongHeader { page_size, ..long }),
                PageFault::PageSize(1),
            ),
            (inside, at(0x10_2000), PageFault::Stale(Lsn(0x10_2000))),
            (inside, at(0x90_0000), PageFault::Address(Lsn(0x90_0000))),
            (
                inside,
                PageHeader {
                    address: Lsn(0x80_2000),
                    ..good
                },
                PageFault::Long,
            ),
            (
                inside,
                PageHeader {
                    timeline: 0,
                    ..short
                },
                PageFault::Timeline(0),
            ),
            (
                inside,
                PageHeader {
                    timeline: 2,
                    ..short
                },
                PageFault::Timeline(2),
            ),
        ];
        for (expected, header, fault) in cases {
            assert_eq!(expected.check(&header), Err(fault));
            assert_eq!(Error::from(fault).code(), Code::Damaged);
        }
    }

    #[test]
    fn what_is_no_segment_is_refused() {
        let zero = [0u8; 40];
        assert_eq!(WalIdentity::read(&zero).unwrap_err().code(), Code::Damaged);
        assert_eq!(WalIdentity::read(&[]).unwrap_err().code(), Code::Damaged);
        let mut newer = long_header();
        newer[0] = 0x20;
        assert_eq!(
            WalIdentity::read(&newer).unwrap_err().code(),
            Code::Unsupported
        );
        let mut odd = long_header();
        odd[9] = 1;
        assert_eq!(WalIdentity::read(&odd).unwrap_err().code(), Code::Damaged);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = WalIdentity::read(&bytes);
            if let Some(b) = bytes.first_chunk_mut::<2>() { *b = [0x18, 0xD1]; }
            let _ = WalIdentity::read(&bytes);
            if let Some(header) = PageHeader::read(&bytes) { let _ = expected().check(&header); }
        }
    }
}
