//! Records put together from WAL pages, page after page and segment after segment, in bounded memory.
//!
//! A [`Reader`] takes whole pages in order. It hands every record whose CRC is right to a [`Sink`], borrowed from the
//! page itself where the record lies on one. It also reports to the sink every fault that it finds. If recovery would
//! end for good, the reader looks for the next place from which records can be read. An archive must keep such a
//! segment and say what is in it. WAL may end inside a segment: only the caller knows whether that is the end of a
//! timeline or damage.
//!
//! States, and what ends them:
//!
//! | state | meaning |
//! |---|---|
//! | `Seek` | nothing is known about the next page but its own header: start, and after damage |
//! | `Next` | a record ends exactly where the next page begins |
//! | `Within` | a record (or the rest of one whose beginning was not seen) continues on the next page |
//! | `Switched` | a switch record was read: the rest of the segment is zero |
//! | `Ended` | WAL ended inside the segment; a valid page behind it shows that the end was a hole |
//!
//! Memory: [`KEEP`] for a record in pieces, twice [`FRAGMENT_KEEP`] for the two edges of a segment; a claimed length is never
//! allocated. Knowledge: src/backend/access/transam/xlogreader.c (XLogDecodeNextRecord), PostgreSQL 13–19.

use crate::err;
use crate::error::Result;

use super::cursor;
use super::lsn::Lsn;
use super::page::{Expected, FIRST_IS_CONTRECORD, PageFault, PageHeader, WalIdentity};
use super::record::{self, Record, RecordHeader};
use super::segment::SegmentSize;
use super::timeline::TimelineId;
use super::version::Version;
use super::xlog;
use super::zeros::is_zero;

pub use super::finding::{Finding, FindingKind};
pub use super::summary::{Fragment, SegmentEnd, SegmentSummary};

/// Bytes of a record that are kept and handed out; the CRC of a longer one is checked all the same.
pub const KEEP: usize = 4 << 20;

/// A fragment at the edge of a segment is kept up to this length.
pub const FRAGMENT_KEEP: usize = 64 << 10;

/// Receives what a [`Reader`] finds, in the order of the WAL.
pub trait Sink {
    /// A record whose CRC is right.
    fn record(&mut self, record: &Record<'_>);

    /// Something that is wrong. Recovery would end here; records that follow come from behind the damage.
    fn finding(&mut self, _finding: Finding) {}
}

impl<F: FnMut(&Record<'_>)> Sink for F {
    #[inline]
    fn record(&mut self, record: &Record<'_>) {
        self(record);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Seek,
    Next,
    Within,
    Switched,
    Ended,
}

/// A record in pieces; its bytes are in `Reader::kept`.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    /// Start of the record; 0/0 if it was not seen.
    start_lsn: Lsn,
    /// Length, or the rest of it that was announced.
    total: u32,
    /// Bytes seen.
    got: u32,
    /// CRC of the bytes behind the header.
    crc: u32,
    /// The header has been looked at.
    header_seen: bool,
}

impl Pending {
    fn is_orphan(&self) -> bool {
        self.start_lsn == Lsn::INVALID
    }

    fn missing(&self) -> u32 {
        self.total - self.got
    }
}

/// Reads records from pages. See the module's head.
#[derive(Debug)]
pub struct Reader {
    version: &'static Version,
    expected: Expected,
    page_size: usize,
    state: State,
    /// The next page.
    position: Lsn,
    segment_end: Lsn,
    /// Start of the record before the next one, where it is known.
    prev: Option<Lsn>,
    pending: Pending,
    kept: Vec<u8>,
    /// The unfinished record that an overwrite record must name.
    overwritten: Option<Lsn>,
    /// The pending record, or its rest, reaches into this segment from before it.
    in_head: bool,
    head: Vec<u8>,
    /// The end that was found is reported as a hole if valid pages follow.
    hole: Finding,
    summary: SegmentSummary,
}

impl Reader {
    /// A reader for the WAL of one cluster, as the first page of any of its segments describes it.
    ///
    /// # Errors
    /// `Unsupported` for WAL of a major newer than every supported one.
    pub fn new(identity: &WalIdentity) -> Result<Self> {
        let version = identity.version()?;
        Ok(Reader {
            version,
            expected: Expected {
                version,
                system_identifier: Some(identity.system_identifier),
                segment_size: identity.segment_size,
                page_size: identity.page_size,
                address: Lsn::INVALID,
                lowest_timeline: 0,
                highest_timeline: u32::MAX,
            },
            page_size: identity.page_size as usize,
            state: State::Seek,
            position: Lsn::INVALID,
            segment_end: Lsn::INVALID,
            prev: None,
            pending: Pending::default(),
            kept: Vec::new(),
            overwritten: None,
            in_head: false,
            head: Vec::new(),
            hole: FindingKind::Header.at(Lsn::INVALID),
            summary: SegmentSummary::of(Lsn::INVALID),
        })
    }

    /// Size of the pages that are fed.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Segment size of the WAL.
    pub fn segment_size(&self) -> SegmentSize {
        self.expected.segment_size
    }

    /// Begins with the first page of a segment, filed under `timeline`.
    ///
    /// If the segment follows the one that was read before, records continue across the edge and are checked against each
    /// other; otherwise the reader starts anew, as it does after WAL that ended inside a segment.
    ///
    /// # Errors
    /// `Internal` if `start_lsn` is not the start of a segment.
    pub fn start_segment(&mut self, start_lsn: Lsn, timeline: TimelineId) -> Result<()> {
        let size = self.expected.segment_size.bytes();
        let Some(end) = start_lsn
            .0
            .checked_add(size)
            .filter(|_| start_lsn.0.is_multiple_of(size))
        else {
            return Err(err!(Internal, "{start_lsn} is not the start of a segment"));
        };
        if start_lsn != self.position || matches!(self.state, State::Ended | State::Seek) {
            self.seek();
            self.expected.lowest_timeline = 0;
        } else if self.state == State::Switched {
            self.state = State::Next;
        }
        self.position = start_lsn;
        self.segment_end = Lsn(end);
        self.expected.highest_timeline = timeline.get();
        self.in_head = false;
        self.head.clear();
        self.summary = SegmentSummary::of(start_lsn);
        Ok(())
    }

    /// Reads whole pages.
    ///
    /// # Errors
    /// `Damaged` if these are not whole pages, or more than the segment has: nothing was read then.
    pub fn feed<S: Sink>(&mut self, pages: &[u8], sink: &mut S) -> Result<()> {
        let left = self.segment_end.0.saturating_sub(self.position.0);
        if !pages.len().is_multiple_of(self.page_size) || pages.len() as u64 > left {
            return Err(err!(
                Damaged,
                "{} bytes at {} are not whole WAL pages of one segment",
                pages.len(),
                self.position
            ));
        }
        for page in pages.chunks_exact(self.page_size) {
            self.page(page, sink);
            self.position.0 += self.page_size as u64;
        }
        Ok(())
    }

    /// Ends the segment and tells what it holds. It may be called before the segment's last page was fed.
    pub fn finish_segment(&mut self) -> SegmentSummary {
        let start = self.summary.start_lsn;
        let within = self.state == State::Within;
        if within {
            self.close_head(None);
        }
        if within && self.pending.start_lsn >= start && !self.pending.is_orphan() {
            let pending = self.pending;
            self.summary.last_begun = Some(pending.start_lsn);
            self.summary.tail = Some(Fragment {
                start_lsn: pending.start_lsn,
                length: pending.got,
                total: pending.total,
                end_lsn: None,
                bytes: if pending.got as usize <= FRAGMENT_KEEP {
                    self.kept.clone()
                } else {
                    Vec::new()
                },
            });
        }
        if !matches!(self.state, State::Ended | State::Switched) {
            self.summary.end = SegmentEnd::Full;
            self.summary.valid_end = self.position;
        }
        let next = SegmentSummary::of(self.position);
        std::mem::replace(&mut self.summary, next)
    }

    fn page<S: Sink>(&mut self, page: &[u8], sink: &mut S) {
        let lsn = self.position;
        if self.state == State::Switched {
            self.expect_zero(lsn, page, sink);
            return;
        }
        self.expected.address = lsn;
        let header = PageHeader::read(page).ok_or(PageFault::Zero);
        let header = match header.and_then(|h| self.expected.check(&h).map(|()| h)) {
            Ok(header) => header,
            Err(fault) => return self.bad_page(lsn, fault, sink),
        };
        if self.state == State::Ended {
            // There is WAL behind what looked like its end.
            self.find(self.hole.lsn, self.hole, sink);
            self.summary.undecoded += 1;
            self.seek();
        }
        self.expected.lowest_timeline = header.timeline;
        let first = self.summary.timelines.map_or(header.timeline, |(f, _)| f);
        self.summary.timelines = Some((first, header.timeline));
        self.connect(lsn, &header, sink);
        let mut at = header.size();
        if self.state == State::Within {
            let rest = page.get(at..).unwrap_or_default();
            let take = rest.len().min(self.pending.missing() as usize);
            self.append(rest.get(..take).unwrap_or_default());
            if !self.pending.header_seen && !self.look_at_header(sink) {
                self.drop_pending();
                return;
            }
            if self.pending.missing() > 0 {
                return;
            }
            at = align8(at + take);
            self.state = State::Next;
            self.complete(Lsn(lsn.0 + at as u64), sink);
            if self.switched(page, at, sink) {
                return;
            }
        }
        self.records(page, at, sink);
    }

    /// Settles, by the header of a page, what its first bytes belong to.
    fn connect<S: Sink>(&mut self, lsn: Lsn, header: &PageHeader, sink: &mut S) {
        let announced = if header.has(FIRST_IS_CONTRECORD) {
            header.remaining
        } else {
            0
        };
        if header.overwrites(self.expected.version) {
            self.summary.overwritten = true;
            if self.state == State::Within {
                self.close_head(None);
                if !self.pending.is_orphan() {
                    self.overwritten = Some(self.pending.start_lsn);
                    if self.pending.start_lsn >= self.summary.start_lsn {
                        self.summary.last_begun = Some(self.pending.start_lsn);
                    }
                }
                self.state = State::Next;
            }
        }
        let missing = match self.state {
            State::Within => self.pending.missing(),
            State::Seek => announced,
            _ => 0,
        };
        if missing != announced
            || (header.has(FIRST_IS_CONTRECORD) && announced == 0)
            || announced > record::MAX_LENGTH
        {
            let kind = FindingKind::Continuation {
                expected: missing,
                found: announced,
            };
            self.find(self.stop(lsn), kind.at(lsn), sink);
            self.drop_pending();
        }
        if self.state == State::Seek {
            self.kept.clear();
            self.pending = Pending {
                total: announced.min(record::MAX_LENGTH),
                header_seen: true,
                ..Pending::default()
            };
            self.state = if self.pending.total > 0 {
                State::Within
            } else {
                State::Next
            };
        }
        if lsn == self.summary.start_lsn && self.state == State::Within {
            self.in_head = true;
            self.summary.head = Some(Fragment {
                start_lsn: self.pending.start_lsn,
                length: 0,
                total: self.pending.missing(),
                end_lsn: None,
                bytes: Vec::new(),
            });
        }
    }

    /// Reads the records that begin on a page, from offset `at` on.
    fn records<S: Sink>(&mut self, page: &[u8], mut at: usize, sink: &mut S) {
        let page_lsn = self.position.0;
        while let Some(rest) = page.get(at..).filter(|r| !r.is_empty()) {
            let lsn = Lsn(page_lsn + at as u64);
            let total = cursor::u32_at(rest, 0).unwrap_or_default();
            if total == 0 {
                self.end_at(lsn, lsn, SegmentEnd::ZeroLength, FindingKind::Header);
                return;
            }
            let header = RecordHeader::read(rest);
            let possible = match &header {
                Some(header) => header.is_possible(self.version),
                // The rest of the header is looked at when it is there.
                None => (24..=record::MAX_LENGTH).contains(&total),
            };
            if !possible {
                self.lose(lsn, FindingKind::Header, sink);
                return;
            }
            let mut linked = true;
            if let Some(header) = &header {
                linked = self.check_prev(lsn, header, sink);
                self.begun(lsn, header.prev);
            } else {
                self.begun(lsn, Lsn::INVALID);
            }
            let (Some(header), Some(bytes)) = (header, rest.get(..total as usize)) else {
                self.begin_pending(lsn, total, header.is_some(), rest);
                return;
            };
            let next = align8(at + bytes.len());
            if record::crc_matches(&header, bytes) {
                self.accept(lsn, Lsn(page_lsn + next as u64), &header, bytes, sink);
                if self.switched(page, next, sink) {
                    return;
                }
            } else {
                self.lose(lsn, FindingKind::Crc, sink);
                if !linked {
                    return;
                }
                // The header looks right: its length leads to the next record.
                self.state = State::Next;
                self.prev = Some(lsn);
            }
            at = next;
        }
        self.state = State::Next;
    }

    /// Whether a switch record has just been read; checks the rest of its page.
    fn switched<S: Sink>(&mut self, page: &[u8], at: usize, sink: &mut S) -> bool {
        if self.state != State::Switched {
            return false;
        }
        let lsn = Lsn(self.position.0 + at as u64);
        self.expect_zero(lsn, page.get(at..).unwrap_or_default(), sink);
        true
    }

    fn begun(&mut self, lsn: Lsn, prev: Lsn) {
        if self.summary.first_record.is_none() {
            self.summary.first_record = Some((lsn, prev));
        }
    }

    fn begin_pending(&mut self, lsn: Lsn, total: u32, header_seen: bool, rest: &[u8]) {
        self.kept.clear();
        self.pending = Pending {
            start_lsn: lsn,
            total,
            header_seen,
            ..Pending::default()
        };
        self.state = State::Within;
        self.append(rest);
    }

    /// Adds a piece to the pending record: its CRC, its bytes up to the limit, and the head of the segment.
    fn append(&mut self, piece: &[u8]) {
        let pending = &mut self.pending;
        if !pending.is_orphan() {
            let header_part = record::HEADER
                .saturating_sub(pending.got as usize)
                .min(piece.len());
            let body = piece.get(header_part..).unwrap_or_default();
            pending.crc = crc32c::crc32c_append(pending.crc, body);
            let room = KEEP.saturating_sub(self.kept.len()).min(piece.len());
            let needed = self.kept.len() + room;
            if needed > self.kept.capacity() {
                // Doubled like any vector, but never above the limit.
                let aim = needed.max(2 * self.kept.capacity()).min(KEEP);
                self.kept.reserve_exact(aim - self.kept.len());
            }
            self.kept
                .extend_from_slice(piece.get(..room).unwrap_or_default());
        }
        // Pieces are parts of pages: their lengths fit.
        let len = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        pending.got = pending.got.saturating_add(len).min(pending.total);
        if self.in_head
            && let Some(head) = &mut self.summary.head
        {
            head.length = head.length.saturating_add(len);
            if head.total as usize <= FRAGMENT_KEEP {
                self.head.extend_from_slice(piece);
            }
        }
    }

    /// Looks at the header of the pending record once it is whole; false if it is impossible.
    fn look_at_header<S: Sink>(&mut self, sink: &mut S) -> bool {
        let Some(header) = RecordHeader::read(&self.kept) else {
            return true;
        };
        self.pending.header_seen = true;
        let lsn = self.pending.start_lsn;
        if let Some((first, prev)) = &mut self.summary.first_record
            && *first == lsn
        {
            *prev = header.prev;
        }
        if !header.is_possible(self.version) {
            self.find(lsn, FindingKind::Header.at(lsn), sink);
            return false;
        }
        self.check_prev(lsn, &header, sink);
        true
    }

    /// All bytes of the pending record are there; it ends at `end`.
    fn complete<S: Sink>(&mut self, end: Lsn, sink: &mut S) {
        let pending = self.pending;
        self.close_head(Some(end));
        if pending.is_orphan() {
            // Its beginning was not seen, so the next record cannot be checked against it.
            self.prev = None;
            return;
        }
        let lsn = pending.start_lsn;
        let Some(header) = RecordHeader::read(&self.kept) else {
            return;
        };
        if record::finish_crc(pending.crc, &self.kept) != header.crc {
            self.lose(lsn, FindingKind::Crc, sink);
            // The pages agreed on its length: it leads to the next record.
            self.state = State::Next;
            self.prev = Some(lsn);
            return;
        }
        let kept = std::mem::take(&mut self.kept);
        self.accept(lsn, end, &header, &kept, sink);
        self.kept = kept;
    }

    /// Hands out a record whose checksum is right; one that began in an earlier segment is not counted for this one.
    #[inline]
    fn accept<S: Sink>(
        &mut self,
        lsn: Lsn,
        mut end: Lsn,
        header: &RecordHeader,
        bytes: &[u8],
        sink: &mut S,
    ) {
        self.overwrite_check(lsn, header, bytes, sink);
        if xlog::is_switch(header.rmid, header.info) {
            self.summary.end = SegmentEnd::Switch(lsn);
            self.summary.valid_end = end;
            self.state = State::Switched;
            end = end.align_up(self.expected.segment_size.bytes());
        }
        if lsn >= self.summary.start_lsn {
            self.summary.records += 1;
            self.summary.last_begun = Some(lsn);
            self.summary.last_complete = Some((lsn, end));
        }
        self.prev = Some(lsn);
        let block_size = record::DEFAULT_BLOCK_SIZE;
        let record = Record::checked(header, bytes, (lsn, end), self.version, block_size);
        sink.record(&record);
    }

    /// Checks the link to the record before; false if it is wrong.
    #[inline]
    fn check_prev<S: Sink>(&mut self, lsn: Lsn, header: &RecordHeader, sink: &mut S) -> bool {
        let expected = match self.prev {
            Some(prev) if prev == header.prev => return true,
            Some(prev) => prev,
            None if header.prev < lsn => return true,
            None => lsn,
        };
        let kind = FindingKind::Prev {
            expected,
            found: header.prev,
        };
        self.find(lsn, kind.at(lsn), sink);
        false
    }

    /// After a record was dropped because its continuation was replaced: the next one must say so.
    #[inline]
    fn overwrite_check<S: Sink>(
        &mut self,
        lsn: Lsn,
        header: &RecordHeader,
        bytes: &[u8],
        sink: &mut S,
    ) {
        let Some(expected) = self.overwritten.take() else {
            return;
        };
        if xlog::overwritten_lsn(header, bytes) != Some(expected) {
            self.find(lsn, FindingKind::Overwrite.at(lsn), sink);
        }
    }

    fn expect_zero<S: Sink>(&mut self, lsn: Lsn, bytes: &[u8], sink: &mut S) {
        // The reader reports only the first place: the rest of a file may be anything.
        if self.hole.kind == FindingKind::AfterSwitch
            && self.hole.lsn >= self.summary.start_lsn
            && self.hole.lsn < self.segment_end
        {
            return;
        }
        if !is_zero(bytes) {
            self.hole = FindingKind::AfterSwitch.at(lsn);
            self.find(lsn, self.hole, sink);
        }
    }

    /// The end of WAL that has a fault at a position: the start of the record that continues there.
    fn stop(&self, lsn: Lsn) -> Lsn {
        match self.state == State::Within && !self.pending.is_orphan() {
            true => self.pending.start_lsn,
            false => lsn,
        }
    }

    /// A page that is not the expected one.
    fn bad_page<S: Sink>(&mut self, lsn: Lsn, fault: PageFault, sink: &mut S) {
        if self.state == State::Ended {
            return;
        }
        let within = self.state == State::Within;
        let stop = self.stop(lsn);
        let end = match fault {
            PageFault::Zero => SegmentEnd::ZeroPage,
            PageFault::Stale(_) => SegmentEnd::StalePage,
            _ => {
                self.find(stop, FindingKind::Page(fault).at(lsn), sink);
                self.drop_pending();
                return;
            }
        };
        let valid_end = if within && self.in_head {
            self.close_head(None);
            self.summary.start_lsn
        } else {
            stop
        };
        self.end_at(valid_end, lsn, end, FindingKind::Page(fault));
    }

    /// WAL ends at `valid_end`, because of what is at `lsn`.
    fn end_at(&mut self, valid_end: Lsn, lsn: Lsn, end: SegmentEnd, kind: FindingKind) {
        self.state = State::Ended;
        self.summary.end = end;
        self.summary.valid_end = valid_end;
        self.hole = kind.at(lsn);
    }

    /// A record is lost; the next page decides how to go on.
    fn lose<S: Sink>(&mut self, lsn: Lsn, kind: FindingKind, sink: &mut S) {
        self.find(lsn, kind.at(lsn), sink);
        self.summary.undecoded += 1;
        self.seek();
    }

    /// Gives a pending record up, after a finding; the next page decides how to go on.
    fn drop_pending(&mut self) {
        if self.state == State::Within {
            self.close_head(None);
            self.summary.undecoded += 1;
            self.kept.clear();
        }
        self.seek();
    }

    fn seek(&mut self) {
        self.state = State::Seek;
        self.prev = None;
        self.overwritten = None;
    }

    fn close_head(&mut self, end: Option<Lsn>) {
        if std::mem::take(&mut self.in_head)
            && let Some(head) = &mut self.summary.head
        {
            head.end_lsn = end;
            head.bytes = std::mem::take(&mut self.head);
        }
    }

    fn find<S: Sink>(&mut self, stop: Lsn, finding: Finding, sink: &mut S) {
        if self.summary.findings == 0 {
            self.summary.last_before_damage = self.summary.last_complete;
        }
        self.summary.findings += 1;
        self.summary.first_damage = Some(self.summary.first_damage.map_or(stop, |d| d.min(stop)));
        sink.finding(finding);
    }
}

/// MAXALIGN of every platform in use.
#[inline]
fn align8(n: usize) -> usize {
    (n + 7) & !7
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::{self, Craft};
    use crate::pg::page::SHORT_HEADER;
    use crate::pg::timeline::tli;
    use crate::pg::version::Major;
    use crate::pg::xact::{self, TransactionRecord};
    use proptest::prelude::*;

    const PAGE: usize = 8192;
    const SEGMENT: usize = 1 << 20;

    #[derive(Default, Debug, PartialEq)]
    struct Seen {
        records: Vec<(Lsn, Lsn, u32)>,
        findings: Vec<Finding>,
        truncated: usize,
    }

    impl Sink for Seen {
        fn record(&mut self, r: &Record<'_>) {
            if r.is_truncated() {
                self.truncated += 1;
                assert_eq!(r.payload().len() + record::HEADER, KEEP);
            } else {
                assert_eq!(r.payload().len() + record::HEADER, r.total_len as usize);
            }
            self.records.push((r.start_lsn, r.end_lsn, r.total_len));
        }

        fn finding(&mut self, finding: Finding) {
            self.findings.push(finding);
        }
    }

    impl Seen {
        fn spans(&self) -> Vec<(Lsn, Lsn)> {
            self.records.iter().map(|r| (r.0, r.1)).collect()
        }

        fn kinds(&self) -> Vec<FindingKind> {
            self.findings.iter().map(|f| f.kind).collect()
        }
    }

    /// Reads segments one after the other with one reader.
    fn read(craft: &Craft, step: usize) -> (Seen, Vec<SegmentSummary>) {
        let mut bytes = craft.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
        read_bytes(craft, &bytes, step)
    }

    fn read_bytes(craft: &Craft, bytes: &[u8], step: usize) -> (Seen, Vec<SegmentSummary>) {
        let mut reader = Reader::new(&craft.identity).unwrap();
        let mut seen = Seen::default();
        let mut lsn = craft.identity.start_lsn;
        let mut summaries = Vec::new();
        for segment in bytes.chunks(SEGMENT) {
            reader.start_segment(lsn, tli(9)).unwrap();
            for pages in segment.chunks(step) {
                reader.feed(pages, &mut seen).unwrap();
            }
            summaries.push(reader.finish_segment());
            lsn = Lsn(lsn.0 + SEGMENT as u64);
        }
        (seen, summaries)
    }

    fn clean(craft: &Craft) -> (Seen, Vec<SegmentSummary>) {
        let (seen, summaries) = read(craft, SEGMENT);
        assert_eq!(seen.findings, []);
        let (again, same) = read(craft, PAGE);
        assert!(again == seen && same == summaries);
        (seen, summaries)
    }

    fn noop(craft: &mut Craft, length: usize) -> (Lsn, Lsn) {
        let data = vec![0x5A; length];
        craft.record(rmgr_xlog(), 0x20, 0, &craft::long_main_data(&data))
    }

    fn rmgr_xlog() -> u8 {
        crate::pg::rmgr::XLOG
    }

    #[test]
    fn records_are_found_wherever_they_end_on_a_page() {
        // Bytes of the page after a record: none, less than a header, just a header, more than a header.
        for left in [0, 8, 16, 24, 32] {
            let mut craft = Craft::new(Major::V15);
            let mut expected = vec![noop(&mut craft, 10)];
            expected.push(craft.leave(left));
            expected.push(noop(&mut craft, 100));
            expected.push(noop(&mut craft, 3 * PAGE));
            expected.push(noop(&mut craft, 1));
            let (seen, summaries) = clean(&craft);
            assert_eq!(seen.spans(), expected, "{left}");
            if left == 0 {
                assert_eq!(
                    expected[1].1.0 % PAGE as u64,
                    0,
                    "EndRecPtr stays at the boundary"
                );
                assert_eq!(expected[2].0.0 % PAGE as u64, SHORT_HEADER as u64);
            }
            let summary = &summaries[0];
            assert_eq!(summary.end, SegmentEnd::ZeroLength);
            assert_eq!(summary.valid_end, expected[4].1);
            assert_eq!(summary.first_record, Some((expected[0].0, Lsn(0))));
            assert_eq!(summary.last_complete, Some(expected[4]));
            assert_eq!(summary.records, 5);
            assert_eq!(summary.undecoded, 0);
            assert_eq!(summary.first_damage, None);
        }
    }

    #[test]
    fn a_record_may_end_exactly_with_its_last_page() {
        let mut craft = Craft::new(Major::V17);
        let first = craft.leave(24);
        // 24 bytes here, the rest fills the next page: payload of a page and not a byte more.
        let header = record::HEADER + 5;
        let second = noop(&mut craft, 24 + PAGE - SHORT_HEADER - header);
        assert_eq!(second.1.0 % PAGE as u64, 0);
        let third = noop(&mut craft, 5);
        let (seen, _) = clean(&craft);
        assert_eq!(seen.spans(), [first, second, third]);
    }

    #[test]
    fn a_record_continues_over_whole_segments() {
        let mut craft = Craft::new(Major::V13);
        let first = noop(&mut craft, 100);
        let long = noop(&mut craft, 2 * SEGMENT + 1000);
        let last = noop(&mut craft, 100);
        let (seen, summaries) = clean(&craft);
        assert_eq!(seen.spans(), [first, long, last]);
        let [a, b, c] = &summaries[..] else { panic!() };
        let tail = a.tail.as_ref().unwrap();
        assert_eq!((tail.start_lsn, tail.bytes.len()), (long.0, 0));
        assert_eq!((a.last_begun, a.last_complete), (Some(long.0), Some(first)));
        let head = b.head.as_ref().unwrap();
        assert!(b.tail.is_none() && b.first_record.is_none() && head.end_lsn.is_none());
        assert_eq!(head.total, tail.total - tail.length);
        assert!(head.length < head.total);
        let end = c.head.as_ref().unwrap();
        assert_eq!(end.total, head.total - head.length);
        assert_eq!(end.length, end.total);
        assert_eq!(end.end_lsn, Some(long.1));
        assert_eq!(c.first_record, Some((last.0, long.0)));
        assert_eq!((a.records, b.records, c.records), (1, 0, 1));
    }

    /// The edges that each segment's summary has are enough to put the record together again.
    #[test]
    fn fragments_of_segments_read_apart_join_to_the_record() {
        let mut craft = Craft::new(Major::V18);
        noop(&mut craft, SEGMENT - 20_000);
        let (start, end) = noop(&mut craft, 30_000);
        noop(&mut craft, 10);
        craft.fill_segment();
        let mut joined = Vec::new();
        for (i, segment) in craft.bytes.chunks(SEGMENT).enumerate() {
            let mut reader = Reader::new(&WalIdentity::read(segment).unwrap()).unwrap();
            let lsn = Lsn(craft.identity.start_lsn.0 + (i * SEGMENT) as u64);
            reader.start_segment(lsn, tli(1)).unwrap();
            let mut seen = Seen::default();
            reader.feed(segment, &mut seen).unwrap();
            assert_eq!((seen.records.len(), seen.findings.len()), (1, 0));
            let summary = reader.finish_segment();
            if let Some(head) = summary.head {
                assert_eq!((head.start_lsn, head.end_lsn), (Lsn(0), Some(end)));
                joined.extend(head.bytes);
            }
            if let Some(tail) = summary.tail {
                assert_eq!(tail.start_lsn, start);
                joined.extend(tail.bytes);
            }
        }
        let record = Record::parse(Major::V18, 8192, start, end, &joined).unwrap();
        assert_eq!(record.body().unwrap().main_data.len(), 30_000);
    }

    #[test]
    fn a_record_above_the_limit_is_checked_but_not_kept_whole() {
        let mut craft = Craft::new(Major::V16);
        let mut main = 77i64.to_le_bytes().to_vec();
        main.extend_from_slice(&2u32.to_le_bytes());
        main.extend_from_slice(&1_500_000i32.to_le_bytes());
        main.resize(main.len() + 6_000_000, 1);
        let (start, end) = craft.main(crate::pg::rmgr::TRANSACTION, 0x80, 50, &main);
        noop(&mut craft, 8);
        let (seen, _) = clean(&craft);
        assert_eq!(seen.truncated, 1);
        assert_eq!(seen.records[0].0, start);
        assert_eq!(seen.records[0].1, end);
        let mut reader = Reader::new(&craft.identity).unwrap();
        let mut ends = Vec::new();
        for (i, segment) in craft.bytes.chunks(SEGMENT).enumerate() {
            let lsn = Lsn(craft.identity.start_lsn.0 + (i * SEGMENT) as u64);
            reader.start_segment(lsn, tli(1)).unwrap();
            let whole = segment.len().next_multiple_of(PAGE);
            let mut segment = segment.to_vec();
            segment.resize(whole, 0);
            let mut sink = |r: &Record<'_>| {
                let body = r.body().unwrap();
                if let Ok(Some(TransactionRecord::End(e))) = xact::decode(r, body.main_data) {
                    ends.push((e.xid.0, e.time.0, e.truncated));
                }
            };
            reader.feed(&segment, &mut sink).unwrap();
            reader.finish_segment();
        }
        assert_eq!(ends, [(50, 77, true)]);
        assert!(reader.kept.capacity() <= KEEP);
        // One flipped bit far behind the limit is found.
        let mut bytes = craft.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
        bytes[5_500_000] ^= 1;
        let (seen, _) = read_bytes(&craft, &bytes, SEGMENT);
        assert_eq!(seen.kinds(), [FindingKind::Crc]);
        assert_eq!(seen.records.len(), 1);
    }

    #[test]
    fn a_switch_record_ends_its_segment_and_what_follows_is_zero() {
        let mut craft = Craft::new(Major::V14);
        let first = noop(&mut craft, 9000);
        let before = craft.position();
        let switch = craft.switch();
        let next = noop(&mut craft, 8);
        let (seen, summaries) = clean(&craft);
        assert_eq!(seen.spans(), [first, switch, next]);
        assert_eq!(summaries[0].end, SegmentEnd::Switch(switch.0));
        assert_eq!(summaries[0].valid_end, Lsn(before.0 + 24));
        assert_eq!(switch.1, Lsn(2 * SEGMENT as u64));
        assert_eq!(summaries[1].first_record, Some((next.0, switch.0)));
        for at in [switch.0.0 + 24, switch.0.0 + 20_000, 2 * SEGMENT as u64 - 1] {
            let mut bytes = craft.bytes.clone();
            bytes.resize(2 * SEGMENT, 0);
            bytes[usize::try_from(at).unwrap() - SEGMENT] = 1;
            let (seen, summaries) = read_bytes(&craft, &bytes, SEGMENT);
            assert_eq!(seen.kinds(), [FindingKind::AfterSwitch]);
            assert_eq!(summaries[0].end, SegmentEnd::Switch(switch.0));
            assert_eq!(seen.records.len(), 3);
        }
    }

    #[test]
    fn a_switch_record_split_by_a_page_boundary_is_one_too() {
        let mut craft = Craft::new(Major::V17);
        craft.leave(16);
        let switch = craft.switch();
        let (seen, summaries) = clean(&craft);
        assert_eq!(seen.spans()[1], switch);
        assert_eq!(summaries[0].end, SegmentEnd::Switch(switch.0));
        assert_eq!(
            summaries[0].valid_end,
            Lsn(switch.0.0 + 16 + SHORT_HEADER as u64 + 8)
        );
    }

    #[test]
    fn pages_left_over_from_an_earlier_use_end_the_wal() {
        let mut craft = Craft::new(Major::V15);
        craft.leave(0);
        let end = craft.position();
        // The same file served as segment 0 before: right in all but the address.
        let mut old = Craft::new(Major::V15);
        old.identity.start_lsn = Lsn(0);
        old.leave(0);
        noop(&mut old, 3 * PAGE);
        let mut bytes = craft.bytes.clone();
        bytes.extend_from_slice(&old.bytes[PAGE..]);
        bytes.resize(SEGMENT, 0);
        let (seen, summaries) = read_bytes(&craft, &bytes, SEGMENT);
        assert_eq!((seen.records.len(), seen.findings.len()), (1, 0));
        assert_eq!(summaries[0].end, SegmentEnd::StalePage);
        assert_eq!(summaries[0].valid_end, end);
    }

    #[test]
    fn a_record_cut_off_by_the_end_of_the_wal_does_not_count() {
        for stale in [false, true] {
            let mut craft = Craft::new(Major::V16);
            let first = noop(&mut craft, 100);
            let (torn, _) = noop(&mut craft, 3 * PAGE);
            let mut bytes = craft.bytes.clone();
            bytes.truncate(2 * PAGE);
            bytes.resize(SEGMENT, 0);
            if stale {
                bytes.copy_within(PAGE..PAGE + 24, 2 * PAGE);
            }
            let (seen, summaries) = read_bytes(&craft, &bytes, SEGMENT);
            assert_eq!((seen.spans(), seen.findings.len()), (vec![first], 0));
            assert_eq!(summaries[0].valid_end, torn);
            assert!(summaries[0].tail.is_none());
        }
    }

    #[test]
    fn the_continuation_of_an_unfinished_record_may_be_replaced() {
        let mut craft = Craft::new(Major::V15);
        let (valid, end) = noop(&mut craft, 100);
        let (dead, _) = noop(&mut craft, 4 * PAGE);
        let page = Lsn(craft.identity.start_lsn.0 + 2 * PAGE as u64);
        let marker = craft.overwrite_from(page, valid, dead);
        let next = noop(&mut craft, 50);
        let (seen, summaries) = clean(&craft);
        assert_eq!(seen.spans(), [(valid, end), marker, next]);
        assert!(summaries[0].overwritten);
        assert_eq!(summaries[0].undecoded, 0);
        assert_eq!(summaries[0].first_damage, None);
        // The replacement must name the record that was replaced.
        let mut wrong = craft.clone();
        wrong.bytes.truncate(2 * PAGE);
        wrong.prev = valid;
        let marker = wrong.overwrite_from(page, valid, Lsn(dead.0 + 8));
        let (seen, _) = read(&wrong, PAGE);
        assert_eq!(seen.findings, [FindingKind::Overwrite.at(marker.0)]);
    }

    #[test]
    fn a_replaced_continuation_may_lie_in_the_next_segment() {
        let mut craft = Craft::new(Major::V18);
        noop(&mut craft, SEGMENT - 30_000);
        let (valid, _) = noop(&mut craft, 50);
        let (dead, _) = noop(&mut craft, 60_000);
        let page = Lsn(2 * SEGMENT as u64 + PAGE as u64);
        let marker = craft.overwrite_from(page, valid, dead);
        let (seen, summaries) = clean(&craft);
        assert_eq!(seen.spans()[2], marker);
        assert_eq!(summaries[0].tail.as_ref().unwrap().start_lsn, dead);
        let head = summaries[1].head.as_ref().unwrap();
        assert_eq!((head.end_lsn, head.bytes.len()), (None, PAGE - 40));
        assert!(summaries[1].overwritten && !summaries[0].overwritten);
        // Read alone, the second segment tells the same.
        let (seen, alone) = read_bytes(
            &Craft {
                identity: WalIdentity::read(&craft.bytes[SEGMENT..]).unwrap(),
                ..craft.clone()
            },
            &{
                let mut b = craft.bytes[SEGMENT..].to_vec();
                b.resize(SEGMENT, 0);
                b
            },
            PAGE,
        );
        assert_eq!((seen.spans(), seen.findings.len()), (vec![marker], 0));
        assert_eq!(alone[0].head.as_ref().unwrap().bytes, head.bytes);
    }

    #[test]
    fn a_broken_record_is_told_and_the_next_ones_are_read() {
        let mut craft = Craft::new(Major::V15);
        let mut spans: Vec<_> = (0..400).map(|_| noop(&mut craft, 200)).collect();
        let victim = spans[7].0;
        let at = usize::try_from(victim.0).unwrap() - SEGMENT;
        let mut bytes = craft.bytes.clone();
        bytes.resize(SEGMENT, 0);
        // In the body: its length leads on, nothing else is lost.
        let mut body = bytes.clone();
        body[at + 100] ^= 0x10;
        let (seen, summaries) = read_bytes(&craft, &body, PAGE);
        assert_eq!(seen.findings, [FindingKind::Crc.at(victim)]);
        assert_eq!(
            (
                seen.records.len(),
                summaries[0].undecoded,
                summaries[0].first_damage
            ),
            (399, 1, Some(victim))
        );
        // In the length: the rest of the page is lost, reading goes on with the next.
        let mut length = bytes.clone();
        length[at + 3] = 0x7F;
        let (seen, summaries) = read_bytes(&craft, &length, PAGE);
        assert_eq!(seen.findings, [FindingKind::Header.at(victim)]);
        assert_eq!(summaries[0].first_damage, Some(victim));
        assert_eq!(seen.spans().last(), spans.last());
        assert!(seen.records.len() > 350);
        // In the link to the record before: the record itself is whole.
        let mut link = bytes.clone();
        let forged = craft::header_and(rmgr_xlog(), 0x20, 0, Lsn(8), &bytes[at + 24..at + 229]);
        link[at..at + 229].copy_from_slice(&forged);
        let (seen, _) = read_bytes(&craft, &link, PAGE);
        assert_eq!(
            seen.kinds(),
            [FindingKind::Prev {
                expected: spans[6].0,
                found: Lsn(8)
            }]
        );
        assert_eq!(seen.spans(), spans);
        spans.clear();
    }

    #[test]
    fn a_broken_page_header_costs_the_records_on_its_edges() {
        let mut craft = Craft::new(Major::V15);
        for _ in 0..400 {
            noop(&mut craft, 200);
        }
        craft.bytes.resize(SEGMENT, 0);
        let whole = read_bytes(&craft, &craft.bytes, PAGE).0.records.len();
        let magic = |b: &mut Vec<u8>| b[2 * PAGE] = 0x99;
        let zero = |b: &mut Vec<u8>| b[2 * PAGE..3 * PAGE].fill(0);
        let rest = |b: &mut Vec<u8>| b[2 * PAGE + 16] ^= 8;
        let flag = |b: &mut Vec<u8>| b[2 * PAGE + 2] ^= 1;
        let damages: [fn(&mut Vec<u8>); 4] = [magic, zero, rest, flag];
        for (i, damage) in damages.iter().enumerate() {
            let mut bytes = craft.bytes.clone();
            damage(&mut bytes);
            let (seen, summaries) = read_bytes(&craft, &bytes, PAGE);
            assert!(!seen.findings.is_empty(), "{i}");
            assert!(summaries[0].first_damage.unwrap().0 <= (SEGMENT + 2 * PAGE) as u64);
            assert!(summaries[0].undecoded > 0);
            assert!(
                whole - seen.records.len() < 90,
                "{i}: {}",
                whole - seen.records.len()
            );
            assert_eq!(summaries[0].end, SegmentEnd::ZeroLength);
        }
    }

    #[test]
    fn timelines_never_go_back_and_stay_below_the_name() {
        let mut craft = Craft::new(Major::V15);
        craft.timeline = tli(2);
        craft.leave(0);
        craft.timeline = tli(3);
        craft.leave(0);
        let (seen, summaries) = clean(&craft);
        assert_eq!(seen.records.len(), 2);
        assert_eq!(summaries[0].timelines, Some((2, 3)));
        craft.timeline = tli(2);
        craft.leave(0);
        assert_eq!(
            read(&craft, PAGE).0.kinds(),
            [FindingKind::Page(PageFault::Timeline(2))]
        );
        let mut reader = Reader::new(&craft.identity).unwrap();
        reader
            .start_segment(craft.identity.start_lsn, tli(1))
            .unwrap();
        let mut seen = Seen::default();
        reader.feed(&craft.bytes[..PAGE], &mut seen).unwrap();
        assert_eq!(seen.kinds(), [FindingKind::Page(PageFault::Timeline(2))]);
    }

    #[test]
    fn what_is_not_fed_as_whole_pages_is_refused() {
        let craft = Craft::new(Major::V15);
        let mut reader = Reader::new(&craft.identity).unwrap();
        let mut seen = Seen::default();
        assert!(reader.feed(&[0; PAGE], &mut seen).is_err());
        assert!(reader.start_segment(Lsn(8192), tli(1)).is_err());
        assert!(
            reader
                .start_segment(Lsn(u64::MAX - (SEGMENT as u64) + 1), tli(1))
                .is_err()
        );
        reader.start_segment(Lsn(SEGMENT as u64), tli(1)).unwrap();
        assert!(reader.feed(&[0; 100], &mut seen).is_err());
        assert!(reader.feed(&vec![0; SEGMENT + PAGE], &mut seen).is_err());
        reader.feed(&vec![0; SEGMENT], &mut seen).unwrap();
        assert!(reader.feed(&[0; PAGE], &mut seen).is_err());
        let summary = reader.finish_segment();
        assert_eq!(summary.end, SegmentEnd::ZeroPage);
        assert_eq!(summary.valid_end, Lsn(SEGMENT as u64));
        assert_eq!(seen, Seen::default());
    }

    /// A segment of records of many lengths.
    fn varied(lengths: &[usize], major: Major) -> Craft {
        let mut craft = Craft::new(major);
        for &length in lengths {
            noop(&mut craft, length);
        }
        craft
    }

    proptest! {
        #[test]
        fn all_records_are_found_and_none_else(lengths in proptest::collection::vec(prop_oneof![1usize..300, 7900usize..8300, 1usize..40_000], 1..60), major in 0usize..7) {
            let mut craft = Craft::new(Major::ALL[major]);
            let expected: Vec<_> = lengths.iter().map(|&l| noop(&mut craft, l)).collect();
            let (seen, summaries) = clean(&craft);
            prop_assert_eq!(seen.spans(), expected);
            prop_assert_eq!(summaries.iter().map(|s| s.undecoded + s.findings).sum::<u64>(), 0);
        }

        /// Damage costs something or nothing, but whatever is handed out is what was written.
        #[test]
        fn damaged_wal_yields_only_records_that_were_written(
            lengths in proptest::collection::vec(prop_oneof![1usize..300, 1usize..20_000], 1..80),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0usize..3), 1..6),
        ) {
            let craft = varied(&lengths, Major::V17);
            let (whole, _) = clean(&craft);
            let mut bytes = craft.bytes.clone();
            bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
            for (at, value, kind) in damage {
                let at = at.index(craft.bytes.len());
                match kind {
                    0 => bytes[at] = value,
                    1 => bytes[at / PAGE * PAGE + at % 24] ^= value,
                    _ => { let to = (at / 512 + 1) * 512; bytes[at / 512 * 512..to].fill(value); }
                }
            }
            let (seen, summaries) = read_bytes(&craft, &bytes, PAGE);
            prop_assert!(seen.records.iter().all(|r| whole.records.contains(r)));
            prop_assert!(seen.records.windows(2).all(|w| w[0].0 < w[1].0));
            let whole_chunks = read_bytes(&craft, &bytes, SEGMENT);
            prop_assert_eq!(&whole_chunks.0, &seen);
            // Nothing is lost in silence: a record is missing only behind an end or with a finding.
            if seen.records != whole.records {
                let ended = summaries.iter().any(|s| s.findings > 0 || s.valid_end < craft.position());
                prop_assert!(ended);
            }
        }

        #[test]
        fn any_pages_are_survived(seed: u64, frames in proptest::collection::vec((0u8..16, any::<u32>(), any::<u32>()), 1..40)) {
            let craft = Craft::new(Major::V18);
            let mut state = seed;
            let mut bytes = Vec::new();
            for (flags, remaining, length) in frames {
                let mut page = Craft { bytes: Vec::new(), ..craft.clone() };
                page.identity.start_lsn = Lsn(craft.identity.start_lsn.0 + bytes.len() as u64);
                page.page_header(u16::from(flags & !2), if length % 3 == 0 { remaining % 9000 } else { remaining });
                let used = page.bytes.len();
                page.bytes.resize(PAGE, 0);
                for b in &mut page.bytes[used..] {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *b = state.to_le_bytes()[7] % if length % 2 == 0 { 255 } else { 3 };
                }
                page.bytes[used..used + 4].copy_from_slice(&(length % 20_000).to_le_bytes());
                bytes.extend(page.bytes);
            }
            let (seen, summaries) = read_bytes(&craft, &bytes, PAGE);
            prop_assert!(seen.findings.len() as u64 == summaries.iter().map(|s| s.findings).sum::<u64>());
            prop_assert!(seen.findings.len() < 20 * bytes.len() / PAGE + 20);
        }
    }
}
