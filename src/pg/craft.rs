//! WAL made to order, for tests: records laid on pages as a server lays them.
//!
//! PostgreSQL: src/backend/access/transam/xlog.c, CopyXLogRecordToWAL and AdvanceXLInsertBuffer.

use super::lsn::Lsn;
use super::page::{FIRST_IS_CONTRECORD, LONG, LONG_HEADER, SHORT_HEADER, WalIdentity};
use super::record;
use super::rmgr;
use super::segment::SegmentSize;
use super::timeline::TimelineId;
use super::version::Major;

/// Makes WAL from the start of a segment on.
#[derive(Debug, Clone)]
pub struct Craft {
    /// Identity that the pages carry.
    pub identity: WalIdentity,
    /// Everything so far; the first byte is that of `identity.start_lsn`.
    pub bytes: Vec<u8>,
    /// Start of the last record.
    pub prev: Lsn,
    /// Timeline of the pages to come.
    pub timeline: TimelineId,
}

impl Craft {
    /// Begins at segment 1 with segments of 1 MiB and pages of 8 KiB.
    pub fn new(major: Major) -> Self {
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        Craft {
            identity: WalIdentity {
                major: Some(major),
                page_magic: major.version().page_magic,
                system_identifier: 7_000_000_000_000_000_001,
                segment_size,
                page_size: 8192,
                start_lsn: Lsn(segment_size.bytes()),
                timeline: TimelineId::FIRST,
            },
            bytes: Vec::new(),
            prev: Lsn(0),
            timeline: TimelineId::FIRST,
        }
    }

    /// The position of the next byte.
    pub fn position(&self) -> Lsn {
        Lsn(self.identity.start_lsn.0 + self.bytes.len() as u64)
    }

    /// How many bytes of records fit on the page at hand.
    pub fn room(&self) -> usize {
        let page = self.identity.page_size as usize;
        match self.bytes.len() % page {
            0 => page - self.header_size(),
            used => page - used,
        }
    }

    fn header_size(&self) -> usize {
        let size = self.identity.segment_size.bytes();
        let first = self.position().0.is_multiple_of(size);
        if first { LONG_HEADER } else { SHORT_HEADER }
    }

    /// Writes the header of a page, at a page boundary.
    pub fn page_header(&mut self, flags: u16, remaining: u32) {
        let long = self.header_size() == LONG_HEADER;
        let address = self.position();
        let flags = if long { flags | LONG } else { flags };
        let out = &mut self.bytes;
        out.extend_from_slice(&self.identity.page_magic.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&self.timeline.get().to_le_bytes());
        out.extend_from_slice(&address.0.to_le_bytes());
        out.extend_from_slice(&remaining.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        if long {
            out.extend_from_slice(&self.identity.system_identifier.to_le_bytes());
            let size = u32::try_from(self.identity.segment_size.bytes()).unwrap();
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(&self.identity.page_size.to_le_bytes());
        }
    }

    fn at_page_start(&self) -> bool {
        self.bytes
            .len()
            .is_multiple_of(self.identity.page_size as usize)
    }

    /// Lays bytes of a record, with page headers between them.
    fn lay(&mut self, mut data: &[u8], mut begun: bool) {
        while !data.is_empty() {
            if self.at_page_start() {
                let (flags, rest) = if begun {
                    (FIRST_IS_CONTRECORD, u32::try_from(data.len()).unwrap())
                } else {
                    (0, 0)
                };
                self.page_header(flags, rest);
            }
            let (now, later) = data.split_at(data.len().min(self.room()));
            self.bytes.extend_from_slice(now);
            data = later;
            begun = true;
        }
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
    }

    /// Lays a record whose bytes behind the header are `payload`; gives its start and its end (EndRecPtr).
    pub fn record(&mut self, rmid: u8, info: u8, xid: u32, payload: &[u8]) -> (Lsn, Lsn) {
        let bytes = header_and(rmid, info, xid, self.prev, payload);
        if self.at_page_start() {
            self.page_header(0, 0);
        }
        let start = self.position();
        self.lay(&bytes, false);
        self.prev = start;
        (start, self.position())
    }

    /// Lays a record with main data only.
    pub fn main(&mut self, rmid: u8, info: u8, xid: u32, data: &[u8]) -> (Lsn, Lsn) {
        self.record(rmid, info, xid, &main_data(data))
    }

    /// Lays a record without meaning (XLOG NOOP) so long that the page at hand has `left` bytes left behind it, a multiple
    /// of 8.
    pub fn leave(&mut self, left: usize) -> (Lsn, Lsn) {
        let header = record::HEADER + 5;
        let size = self.room() - left;
        self.record(
            rmgr::XLOG,
            0x20,
            0,
            &long_main_data(&vec![0xAB; size - header]),
        )
    }

    /// Lays records without meaning that leave `left` bytes of the segment.
    pub fn leave_of_segment(&mut self, left: usize) {
        let size = usize::try_from(self.identity.segment_size.bytes()).unwrap();
        let page = self.identity.page_size as usize;
        loop {
            let is_last_page = self.bytes.len() % size >= size - page;
            if is_last_page && self.room() > left + 40 {
                self.leave(left);
                return;
            }
            self.leave(0);
        }
    }

    /// Ends the segment with a switch record.
    pub fn switch(&mut self) -> (Lsn, Lsn) {
        let (start, _) = self.record(rmgr::XLOG, 0x40, 0, &[]);
        self.fill_segment();
        (start, self.position())
    }

    /// Zeros up to the end of the segment.
    pub fn fill_segment(&mut self) {
        let size = usize::try_from(self.identity.segment_size.bytes()).unwrap();
        self.bytes
            .resize(self.bytes.len().next_multiple_of(size), 0);
    }

    /// Leaves the last record unfinished: what is behind the page that holds `at` is replaced, as after a crash.
    pub fn overwrite_from(&mut self, page: Lsn, valid: Lsn, dead: Lsn) -> (Lsn, Lsn) {
        let offset = usize::try_from(page.0 - self.identity.start_lsn.0).unwrap();
        self.bytes.truncate(offset);
        self.page_header(self.identity.version().unwrap().overwrite_flag, 0);
        self.prev = valid;
        let mut data = dead.0.to_le_bytes().to_vec();
        data.extend_from_slice(&848_473_241_090_090i64.to_le_bytes());
        self.main(rmgr::XLOG, 0xD0, 0, &data)
    }
}

/// A record's bytes: the header with its CRC, and `payload`.
pub fn header_and(rmid: u8, info: u8, xid: u32, prev: Lsn, payload: &[u8]) -> Vec<u8> {
    let total = u32::try_from(record::HEADER + payload.len()).unwrap();
    let mut out = Vec::with_capacity(total as usize);
    out.extend_from_slice(&total.to_le_bytes());
    out.extend_from_slice(&xid.to_le_bytes());
    out.extend_from_slice(&prev.0.to_le_bytes());
    out.extend_from_slice(&[info, rmid, 0, 0]);
    let crc = record::finish_crc(crc32c::crc32c(payload), &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Main data with the shortest header.
pub fn main_data(data: &[u8]) -> Vec<u8> {
    match u8::try_from(data.len()) {
        Ok(0) => Vec::new(),
        Ok(len) => [&[255, len], data].concat(),
        Err(_) => long_main_data(data),
    }
}

/// Main data with the long header.
pub fn long_main_data(data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&[254][..], &len.to_le_bytes(), data].concat()
}

/// The header of a block reference without image; `data` follows all headers.
pub fn block_reference(
    id: u8,
    flags: u8,
    relation: (u32, u32, u32),
    block: u32,
    data: u16,
) -> Vec<u8> {
    let mut out = vec![id, if data > 0 { flags | 0x20 } else { flags }];
    out.extend_from_slice(&data.to_le_bytes());
    if flags & 0x80 == 0 {
        for part in [relation.0, relation.1, relation.2] {
            out.extend_from_slice(&part.to_le_bytes());
        }
    }
    out.extend_from_slice(&block.to_le_bytes());
    out
}
