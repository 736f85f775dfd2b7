//! One WAL record: its header and its CRC-32C.
//!
//! How records are put together from pages is `reader`'s business; what is in them, `body`'s; what single resource managers
//! say, that of `xact`, `xlog` and `change`. Knowledge: src/include/access/xlogrecord.h, src/backend/access/transam/xlogreader.c
//! (ValidXLogRecordHeader, ValidXLogRecord, DecodeXLogRecord), PostgreSQL 13–19.

use crate::err;
use crate::error::Result;

use super::crc;
use super::cursor::Cursor;
use super::lsn::Lsn;
use super::rmgr;
use super::version::{Major, Version};
use super::xact::Xid;

pub use super::body::{Block, Blocks, Body, Fork, Image, ImageCodec, Reference, Relation};

/// Size of the header of every record.
pub const HEADER: usize = 24;

/// No record is longer: 1020 MiB by rule since 16 (XLogRecordMaxSize), below 1 GiB by the allocator before.
pub const MAX_LENGTH: u32 = 0x3FFF_FFFF;

/// Block size (`BLCKSZ`) of every build that was not configured otherwise.
pub const DEFAULT_BLOCK_SIZE: u32 = 8192;

/// The header of a record as it stands there.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | `total_len` |
/// | 4 | 4 | `xid` |
/// | 8 | 8 | `prev` |
/// | 16 | 1 | `info` |
/// | 17 | 1 | `rmid` |
/// | 20 | 4 | `crc` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of the record, header included, page headers and padding not.
    pub total_len: u32,
    /// Transaction, or 0.
    pub xid: Xid,
    /// Start of the record before.
    pub prev: Lsn,
    /// Opcode in the high half, flags in the low.
    pub info: u8,
    /// Resource manager.
    pub rmid: u8,
    /// CRC-32C of everything else.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads the header at the front of `bytes`; `None` if there are too few.
    #[inline]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut c = Cursor::new(bytes.get(..HEADER)?);
        let total_len = c.u32()?;
        let xid = Xid(c.u32()?);
        let prev = Lsn(c.u64()?);
        let [info, rmid, _, _] = c.array::<4>()?;
        Some(RecordHeader {
            total_len,
            xid,
            prev,
            info,
            rmid,
            crc: c.u32()?,
        })
    }

    /// Whether length and resource manager are possible at all.
    #[inline]
    pub fn is_possible(&self, version: &Version) -> bool {
        (24..=MAX_LENGTH).contains(&self.total_len)
            && (self.rmid <= version.max_rmid
                || (version.has_custom_rmgrs && self.rmid >= rmgr::CUSTOM))
    }
}

/// The CRC of a record whose body (all behind the header) has the CRC `body`: the header without its CRC comes last.
#[inline]
pub fn finish_crc(body: u32, header: &[u8]) -> u32 {
    crc::behind(body, header)
}

/// Whether a whole record carries the CRC of its bytes.
#[inline]
pub fn crc_matches(header: &RecordHeader, record: &[u8]) -> bool {
    let Some((head, body)) = record.split_first_chunk() else {
        return false;
    };
    crc::of_record(head, body) == header.crc
}

/// A record whose CRC is right. Borrowed from the page it lies on, or from the reader that put it together.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Start of the record: PostgreSQL calls it the LSN of the record.
    pub start_lsn: Lsn,
    /// First possible start of the next record (EndRecPtr), aligned to 8. It is a page boundary where this record fills
    /// its page, and the end of the segment for a switch record.
    pub end_lsn: Lsn,
    /// Length, header included.
    pub total_len: u32,
    /// Transaction, or 0.
    pub xid: Xid,
    /// Start of the record before.
    pub prev: Lsn,
    /// Opcode in the high half, flags in the low.
    pub info: u8,
    /// Resource manager.
    pub rmid: u8,
    /// CRC-32C of everything else.
    pub crc: u32,
    /// Format of the major that wrote it.
    pub version: &'static Version,
    /// Block size of the relations, for images.
    pub block_size: u32,
    payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Puts a record together that has been checked already; `bytes` may be only its first part.
    #[inline]
    pub(super) fn checked(
        header: &RecordHeader,
        bytes: &'a [u8],
        (start_lsn, end_lsn): (Lsn, Lsn),
        version: &'static Version,
        block_size: u32,
    ) -> Self {
        Record {
            start_lsn,
            end_lsn,
            total_len: header.total_len,
            xid: header.xid,
            prev: header.prev,
            info: header.info,
            rmid: header.rmid,
            crc: header.crc,
            version,
            block_size,
            payload: bytes.get(HEADER..).unwrap_or_default(),
        }
    }

    /// Reads a record from exactly its bytes, page headers removed: fragments that were kept apart, joined.
    ///
    /// # Errors
    /// `Damaged` if the length, the resource manager or the CRC is wrong.
    pub fn parse(
        major: Major,
        block_size: u32,
        start_lsn: Lsn,
        end_lsn: Lsn,
        bytes: &'a [u8],
    ) -> Result<Self> {
        let version = major.version();
        let damaged = |what: &str| err!(Damaged, "WAL record at {start_lsn} has {what}");
        let header =
            RecordHeader::read(bytes).ok_or_else(|| damaged("fewer bytes than its header"))?;
        if !header.is_possible(version) {
            return Err(damaged("an impossible header"));
        }
        if usize::try_from(header.total_len) != Ok(bytes.len()) {
            return Err(damaged("another length than its bytes"));
        }
        if !crc_matches(&header, bytes) {
            return Err(damaged("an incorrect checksum"));
        }
        Ok(Record::checked(
            &header,
            bytes,
            (start_lsn, end_lsn),
            version,
            block_size,
        ))
    }

    /// The opcode: the high half of `info`. Some resource managers use fewer bits of it.
    #[inline]
    pub fn opcode(&self) -> u8 {
        self.info & 0xF0
    }

    /// Whether only the first part of the record was kept.
    #[inline]
    pub fn is_truncated(&self) -> bool {
        self.payload.len() + HEADER < self.total_len as usize
    }

    /// The bytes behind the header, as far as they were kept.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Takes the record apart.
    ///
    /// # Errors
    /// `Damaged` where the server would say that the record is invalid although its CRC is right.
    #[inline]
    pub fn body(&self) -> Result<Body<'a>> {
        self.body_telling(|_| ())
    }

    /// Reads the body as [`Record::body`], and calls `found` with every block reference on the way. One walk is enough
    /// where most readers want nothing else of the blocks.
    ///
    /// # Errors
    /// As [`Record::body`]; the references that `found` received before may be anything then.
    #[inline]
    pub fn body_telling(&self, found: impl FnMut(Reference)) -> Result<Body<'a>> {
        Body::read(self, found)
            .map_err(|what| err!(Damaged, "WAL record at {} has {what}", self.start_lsn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::craft;

    fn parse(major: Major, bytes: &[u8]) -> Result<Record<'_>> {
        Record::parse(major, DEFAULT_BLOCK_SIZE, Lsn(0x100), Lsn(0x200), bytes)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        crate::text::unhex(hex).unwrap()
    }

    /// A switch record of a 15.
    const SWITCH: &str = "1800000000000000a02a85000000000040000000d6b1b287";

    #[test]
    fn a_record_of_a_server_passes_its_checksum_and_one_flipped_bit_does_not() {
        let mut record = bytes(SWITCH);
        let read = parse(Major::V15, &record).unwrap();
        assert_eq!(read.rmid, rmgr::XLOG);
        assert_eq!(read.info, 0x40);
        assert_eq!(read.total_len, 24);
        assert_eq!(read.prev, Lsn(0x85_2AA0));
        assert!(read.body().unwrap().blocks().next().is_none());
        for bit in 0..record.len() * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                parse(Major::V15, &record).unwrap_err().code(),
                Code::Damaged
            );
            record[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(parse(Major::V15, &record[..23]).is_err());
    }

    #[test]
    fn custom_resource_managers_exist_from_15_on() {
        let record = craft::header_and(200, 0, 0, Lsn(0), &[]);
        assert!(parse(Major::V14, &record).is_err());
        assert!(parse(Major::V15, &record).is_ok());
        let record = craft::header_and(22, 0, 0, Lsn(0), &[]);
        assert!(parse(Major::V18, &record).is_err());
    }
}
