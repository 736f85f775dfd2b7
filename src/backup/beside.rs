//! The files of a stream beside those of the prior: pages that are equal are not stored again, and what did not arrive is gone.
//!
//! A server sends files in the order of its directories. So each file is looked up in the prior, and its pages are compared as they pass; the
//! names that arrived are sorted, and laid beside the prior's at the end.

use std::path::Path;

use super::incremental::Prior;
use super::incremental::compare::Compare;
use crate::error::Result;
use crate::progress::Progress;
use crate::snapshot::arrived::Arrived;
use crate::snapshot::filekey::{ClusterNaming, FileKey};
use crate::snapshot::frame::PAGE_BYTES;
use crate::snapshot::layer::Metadata;
use crate::snapshot::page_hashes;
use crate::snapshot::sink::{CHANGED_FRAME_BYTES, FRAME_BYTES, FileSink};

/// The pages of the prior, and the files that have arrived.
pub struct Beside<'p> {
    compare: Compare<'p>,
    arrived: Arrived,
}

/// A file whose pages are compared as they pass.
pub struct Compared {
    before: Metadata,
    known: std::vec::IntoIter<Option<u64>>,
    page: Vec<u8>,
    has_new: bool,
}

impl<'p> Beside<'p> {
    /// Lays files beside those of `prior`; `scratch` takes names that do not fit into memory.
    pub fn new(prior: &'p Prior<'p>, scratch: &Path, progress: &'p dyn Progress) -> Beside<'p> {
        progress.note(&format!(
            "every page is compared with backup \"{}\", and stored where it differs",
            prior.root.head.id
        ));
        Beside {
            compare: Compare::new(prior, progress),
            arrived: Arrived::new(scratch),
        }
    }

    /// Takes a directory or link down; whether it has changed.
    ///
    /// # Errors
    /// Those of the scratch file and of the prior's map.
    pub fn has_changed(&mut self, key: &FileKey, now: &Metadata) -> Result<bool> {
        self.arrived.add(key)?;
        let before = self.compare.prior.snapshot.metadata(key)?;
        Ok(before.as_ref() != Some(now))
    }

    /// Takes a file down whose content follows; `None` where the prior has none to compare with.
    ///
    /// # Errors
    /// Those of the scratch file, and of the prior's map and packs.
    pub fn file(
        &mut self,
        key: &FileKey,
        length: u64,
        sink: &mut FileSink<'_>,
    ) -> Result<Option<Compared>> {
        self.arrived.add(key)?;
        let before = self.compare.prior.snapshot.metadata(key)?;
        let prior_length = before.as_ref().and_then(Metadata::file_length);
        let Some((before, prior_length)) = before.zip(prior_length) else {
            sink.limit_frames(FRAME_BYTES);
            return Ok(None);
        };
        sink.limit_frames(CHANGED_FRAME_BYTES);
        let again = self.compare.stored_again(key, prior_length.min(length))?;
        let known = self.compare.known(key, &again)?;
        Ok(Some(Compared {
            before,
            known: known.into_iter(),
            page: Vec::with_capacity(PAGE_BYTES),
            has_new: false,
        }))
    }

    /// Records what the prior has and the stream did not bring.
    ///
    /// # Errors
    /// Those of the scratch file, and of the prior's map.
    pub fn finish(self, naming: &ClusterNaming, sink: &FileSink<'_>) -> Result<()> {
        let prior = &self.compare.prior.snapshot;
        self.arrived.finish(prior, naming, sink, &mut || Ok(()))
    }
}

impl Compared {
    /// Compares the next bytes, page by page, and stores the pages that differ.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn append(&mut self, mut bytes: &[u8], sink: &mut FileSink<'_>) -> Result<()> {
        while !bytes.is_empty() {
            if self.page.is_empty()
                && let Some((page, rest)) = bytes.split_at_checked(PAGE_BYTES)
            {
                self.page(page, sink)?;
                bytes = rest;
                continue;
            }
            let wanted = (PAGE_BYTES - self.page.len()).min(bytes.len());
            let (now, later) = bytes.split_at(wanted);
            self.page.extend_from_slice(now);
            bytes = later;
            if self.page.len() == PAGE_BYTES {
                self.rest(sink)?;
            }
        }
        Ok(())
    }

    fn page(&mut self, page: &[u8], sink: &mut FileSink<'_>) -> Result<()> {
        if self.known.next().flatten() == Some(page_hashes::hash(page)) {
            return sink.skip(page.len() as u64);
        }
        self.has_new = true;
        sink.append(page)
    }

    fn rest(&mut self, sink: &mut FileSink<'_>) -> Result<()> {
        let page = std::mem::take(&mut self.page);
        let taken = self.page(&page, sink);
        self.page = page;
        self.page.clear();
        taken
    }

    /// Ends the file; one that is as it was leaves nothing behind. Returns its length.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn end(mut self, mode: u32, mtime: i64, sink: &mut FileSink<'_>) -> Result<u64> {
        if !self.page.is_empty() {
            self.rest(sink)?;
        }
        let (mode, length) = (mode & 0o7777, sink.position());
        let now = Metadata::File {
            mode,
            mtime,
            length,
        };
        match self.has_new || now != self.before {
            true => sink.end(mode, mtime),
            false => {
                sink.abandon();
                Ok(length)
            }
        }
    }
}
