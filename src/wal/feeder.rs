//! Feeds the bytes of segments, in pieces of any length, to a reader of records.

use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::reader::{Reader, Sink};
use crate::pg::segment::SegmentName;
use crate::pg::summary::{SegmentEnd, SegmentSummary};

/// Cuts a stream of bytes into whole pages for the reader.
#[derive(Default)]
pub struct Feeder {
    reader: Option<Reader>,
    segment: Option<(SegmentName, Lsn)>,
    /// Bytes that are no whole page yet.
    rest: Vec<u8>,
    started: bool,
}

impl Feeder {
    /// Begins a segment, or goes on with the next one.
    pub fn begin(&mut self, name: SegmentName, start: Lsn) {
        self.segment = Some((name, start));
        self.started = false;
        self.rest.clear();
    }

    /// Reads the next bytes of the segment.
    ///
    /// # Errors
    /// `Damaged` when these are no pages of WAL.
    pub fn feed<S: Sink>(&mut self, piece: &[u8], sink: &mut S) -> Result<()> {
        // Pieces are whole pages as a rule: these are read where they lie.
        if self.started
            && self.rest.is_empty()
            && let Some(reader) = &mut self.reader
        {
            let whole = piece.len() - piece.len() % reader.page_size();
            let (pages, rest) = piece.split_at(whole);
            self.rest.extend_from_slice(rest);
            return reader.feed(pages, sink);
        }
        self.rest.extend_from_slice(piece);
        if !self.started {
            if self.rest.len() < 40 {
                return Ok(());
            }
            let Some((name, start)) = self.segment else {
                return Err(err!(Internal, "no segment was begun"));
            };
            let reader = match self.reader.take() {
                Some(reader) => reader,
                None => Reader::new(&WalIdentity::read(&self.rest)?)?,
            };
            let reader = self.reader.insert(reader);
            reader.start_segment(start, name.timeline)?;
            self.started = true;
        }
        let Some(reader) = &mut self.reader else {
            return Ok(());
        };
        let whole = self.rest.len() - self.rest.len() % reader.page_size();
        if let Some(pages) = self.rest.get(..whole) {
            reader.feed(pages, sink)?;
        }
        self.rest.drain(..whole);
        Ok(())
    }

    /// Ends the segment, and tells what it holds; `None` when nothing was fed.
    pub fn end(&mut self) -> Option<SegmentSummary> {
        let reader = self.reader.as_mut().filter(|_| self.started);
        reader.map(Reader::finish_segment)
    }

    /// Ends the segment.
    pub fn finish(&mut self) -> Ended {
        let Some(summary) = self.end() else {
            return Ended::default();
        };
        let whole_middle = summary.first_record.is_none()
            && summary
                .head
                .as_ref()
                .is_some_and(|head| head.end_lsn.is_none());
        let is_full = matches!(summary.end, SegmentEnd::Full | SegmentEnd::Switch(_));
        Ended {
            goes_on: summary.tail.is_some() || whole_middle,
            is_whole: is_full && summary.findings == 0,
        }
    }
}

/// The end of a segment that was fed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended {
    /// A record continues in the next segment.
    pub goes_on: bool,
    /// Records follow one another up to the segment's end or a switch, each with its CRC, and nothing is wrong with a page.
    pub is_whole: bool,
}
