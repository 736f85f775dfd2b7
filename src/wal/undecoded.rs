//! The index of WAL that may be too new to be decoded: then the headers of its pages alone are read.
//!
//! Magic number, timeline and address of a page, and what the first page of a segment says besides, have been the same from PostgreSQL 13
//! to 19. Nothing else of a newer major is taken to be known.

use super::index::{SegmentIndex, Summary, flag};
use super::indexer::Indexer;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::page::{PageHeader, WalIdentity};
use crate::pg::timeline::TimelineId;
use crate::repo::container::{Body, Container, Kind};

/// Bytes decoded at once; a multiple of every WAL page size.
const PAGES_BYTES: usize = 256 << 10;

/// Builds an index of whatever WAL a segment holds.
pub enum Indexing {
    /// Decodes its records.
    Records(Box<Indexer>),
    /// Reads its page headers: a PostgreSQL newer than every supported one wrote it.
    Headers(Headers),
}

/// The pages that belong to the segment, from its first one on.
pub struct Headers {
    identity: WalIdentity,
    timeline: TimelineId,
    last_timeline: u32,
    valid_end: Lsn,
    has_ended: bool,
}

impl Indexing {
    /// Begins the segment that `identity` was read from, filed under `timeline`.
    ///
    /// # Errors
    /// Those of [`Indexer::new`].
    pub fn new(identity: &WalIdentity, timeline: TimelineId) -> Result<Indexing> {
        if identity.major.is_some() {
            let indexer = Indexer::new(identity, identity.start_lsn, timeline)?;
            return Ok(Indexing::Records(Box::new(indexer)));
        }
        Ok(Indexing::Headers(Headers {
            identity: *identity,
            timeline,
            last_timeline: 0,
            valid_end: identity.start_lsn,
            has_ended: false,
        }))
    }

    /// Reads whole pages.
    ///
    /// # Errors
    /// Those of [`Indexer::feed`].
    pub fn feed(&mut self, pages: &[u8]) -> Result<()> {
        match self {
            Indexing::Records(indexer) => indexer.feed(pages),
            Indexing::Headers(headers) => {
                headers.feed(pages);
                Ok(())
            }
        }
    }

    /// Ends the segment; `is_partial` allows WAL to end anywhere.
    pub fn finish(self, is_partial: bool) -> SegmentIndex {
        match self {
            Indexing::Records(indexer) => indexer.finish(is_partial),
            Indexing::Headers(headers) => headers.finish(),
        }
    }
}

/// Decodes a stored segment that its archiver could not decode; `None` where this program cannot either.
///
/// # Errors
/// `Damaged`; what the store says.
pub fn decode(container: &Container) -> Result<Option<SegmentIndex>> {
    let stated = container.identity();
    let timeline = TimelineId::new(stated.timeline);
    let timeline = timeline.ok_or_else(|| err!(Damaged, "it names no timeline"))?;
    let mut body = container.body()?;
    let mut indexing = None;
    let mut pages = vec![0; PAGES_BYTES];
    loop {
        let filled = fill(&mut body, &mut pages)?;
        let Some(piece) = pages.get(..filled).filter(|piece| !piece.is_empty()) else {
            break;
        };
        if indexing.is_none() {
            let identity = WalIdentity::read(piece)?;
            if identity.major.is_none() {
                return Ok(None);
            }
            indexing = Some(Indexing::new(&identity, timeline)?);
        }
        if let Some(indexing) = &mut indexing {
            indexing.feed(piece)?;
        }
    }
    Ok(indexing.map(|indexing| indexing.finish(container.kind() == Kind::Partial)))
}

fn fill(body: &mut Body<'_>, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match body.read(rest)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

impl Headers {
    fn feed(&mut self, pages: &[u8]) {
        for page in pages.chunks_exact(self.identity.page_size as usize) {
            if self.has_ended {
                return;
            }
            match PageHeader::read(page).filter(|header| self.is_own(header)) {
                Some(header) => {
                    self.last_timeline = header.timeline;
                    self.valid_end.0 += page.len() as u64;
                }
                None => self.has_ended = true,
            }
        }
    }

    fn is_own(&self, header: &PageHeader) -> bool {
        header.magic == self.identity.page_magic
            && header.address == self.valid_end
            && (self.last_timeline..=self.timeline.get()).contains(&header.timeline)
    }

    fn finish(self) -> SegmentIndex {
        let first_timeline = self.identity.timeline.get();
        let parent_pages = match first_timeline == self.timeline.get() {
            true => 0,
            false => flag::PARENT_PAGES,
        };
        let nothing = SegmentIndex::nothing(self.identity.start_lsn);
        SegmentIndex {
            summary: Summary {
                flags: flag::UNDECODED | parent_pages,
                first_timeline,
                last_timeline: self.last_timeline,
                valid_end: self.valid_end,
                ..nothing.summary
            },
            xids: None,
            events: None,
            blocks: None,
            ..nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::Craft;
    use crate::pg::version::Major;

    const PAGE: usize = 8192;

    /// A segment of the newest major, as if a newer one had written it.
    fn newer() -> Vec<u8> {
        let mut craft = Craft::new(Major::NEWEST);
        craft.identity.page_magic = 0xD1F0;
        while craft.bytes.len() < 4 * PAGE {
            craft.main(0, 0x20, 0, &[7; 3000]);
        }
        craft.bytes.truncate(4 * PAGE);
        craft.bytes
    }

    fn index(bytes: &[u8]) -> SegmentIndex {
        let identity = WalIdentity::read(bytes).unwrap();
        let mut indexing = Indexing::new(&identity, TimelineId::FIRST).unwrap();
        indexing.feed(bytes).unwrap();
        indexing.finish(false)
    }

    #[test]
    fn page_headers_alone_are_read_of_a_newer_major() {
        let mut bytes = newer();
        let start = WalIdentity::read(&bytes).unwrap().start_lsn;
        let whole = index(&bytes);
        assert_eq!(whole.summary.flags, flag::UNDECODED);
        assert_eq!(whole.summary.valid_end.0 - start.0, 4 * PAGE as u64);
        assert_eq!((whole.xids, whole.events, whole.blocks), (None, None, None));
        assert_eq!(
            Summary::decode(&whole.summary.encode()).unwrap(),
            whole.summary
        );
        // A recycled page is none of the segment's, whatever follows it.
        bytes[2 * PAGE + 8] ^= 1;
        let cut = index(&bytes);
        assert_eq!(cut.summary.valid_end.0 - start.0, 2 * PAGE as u64);
    }
}
