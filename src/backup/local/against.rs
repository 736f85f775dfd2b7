//! Reads a file against the prior: pages that changed, and no others.
//!
//! For the main and the init fork of a relation, WAL tells which pages these are. Every other file is read whole. If
//! WAL does not tell, all files are: then hashes of pages are compared with the prior's. A page that is equal is not
//! stored again, unless it lies in a pack that is given up.

use std::ops::Range;

use super::reader::{Opened, Reader};
use crate::backup::incremental::Prior;
use crate::backup::incremental::compare::Compare;
use crate::error::Result;
use crate::progress::Progress;
use crate::snapshot::filekey::Fork;
use crate::snapshot::frame::PAGE_BYTES;
use crate::snapshot::layer::Metadata;
use crate::snapshot::page_hashes;
use crate::snapshot::sink::CHANGED_FRAME_BYTES;
use crate::wal::changed::{Changed, Segment, Wanted};

const PAGE: u64 = PAGE_BYTES as u64;

/// The prior, and what changed since.
pub struct Against<'p> {
    /// The prior's pages.
    pub compare: Compare<'p>,
    /// Changes by WAL; `None` if every page is compared.
    changed: Option<Changed>,
}

impl<'p> Against<'p> {
    /// Compares with `prior`, and tells `progress` what is stored again.
    pub fn new(
        prior: &'p Prior<'p>,
        changed: Option<Changed>,
        progress: &'p dyn Progress,
    ) -> Against<'p> {
        Against {
            compare: Compare::new(prior, progress),
            changed,
        }
    }

    /// Whether every page is compared.
    pub fn compares_all(&self) -> bool {
        self.changed.is_none()
    }

    /// Reads a file that the prior has, too, with `prior_length` bytes.
    ///
    /// # Errors
    /// `Interrupted`; those of the filesystem, of the prior and of the sink.
    pub(super) fn read(
        &self,
        reader: &mut Reader<'_, '_, '_>,
        opened: &Opened<'_>,
        prior: &Metadata,
        prior_length: u64,
    ) -> Result<()> {
        let now = Metadata::File {
            mode: opened.mode,
            mtime: opened.mtime,
            length: opened.length,
        };
        reader.sink.limit_frames(CHANGED_FRAME_BYTES);
        reader.sink.begin(opened.key.clone())?;
        let again = self
            .compare
            .stored_again(opened.key, prior_length.min(opened.length))?;
        let has_new = match self.wanted(reader, opened, prior_length) {
            Some(wanted) => {
                let runs = joined(&wanted.runs, &again);
                named(reader, opened, &Wanted { runs, ..wanted })?
            }
            None => self.compared(reader, opened, &again)?,
        };
        match !has_new && now == *prior {
            true => {
                reader.sink.abandon();
                Ok(())
            }
            false => reader.sink.end(opened.mode, opened.mtime).map(|_| ()),
        }
    }

    /// Returns the pages of a file that WAL names; `None` if every page has to be compared.
    fn wanted(
        &self,
        reader: &Reader<'_, '_, '_>,
        opened: &Opened<'_>,
        prior_length: u64,
    ) -> Option<Wanted> {
        let (changed, file) = (self.changed.as_ref()?, opened.key.relation()?);
        if !matches!(file.fork, Fork::Main | Fork::Init) {
            return None;
        }
        Some(changed.wanted(&Segment {
            fork: (
                file.tablespace,
                file.database,
                file.relation,
                file.fork as u8,
            ),
            first_block: reader.first_block(&file),
            // The end of a file that is no whole page is read always.
            blocks: opened.length.div_ceil(PAGE),
            prior_blocks: prior_length.min(opened.length - opened.length % PAGE) / PAGE,
        }))
    }

    /// Stores the pages that differ from the prior's, and those of `again`; whether there are any, or the file has been truncated meanwhile.
    fn compared(
        &self,
        reader: &mut Reader<'_, '_, '_>,
        opened: &Opened<'_>,
        again: &[Range<u64>],
    ) -> Result<bool> {
        let known = self.compare.known(opened.key, again)?;
        let mut known = known.into_iter();
        let mut has_new = false;
        let is_whole = reader.stretch(opened, 0, opened.length, &mut |sink, bytes| {
            for page in bytes.chunks(PAGE_BYTES) {
                if known.next().flatten() == Some(page_hashes::hash(page)) {
                    sink.skip(page.len() as u64)?;
                } else {
                    has_new = true;
                    sink.append(page)?;
                }
            }
            Ok(())
        })?;
        if !is_whole {
            reader.fill_up(opened)?;
        }
        Ok(has_new || !is_whole)
    }
}

/// Stores the pages that are named; whether there are any. A file that has been truncated meanwhile ends where no more can be read, or has zeros
/// from there on.
fn named(reader: &mut Reader<'_, '_, '_>, opened: &Opened<'_>, wanted: &Wanted) -> Result<bool> {
    if let Some(limit) = wanted.limit.filter(|_| !wanted.runs.is_empty()) {
        reader.sink.limit(opened.key, limit)?;
    }
    let mut at = 0;
    for run in &wanted.runs {
        let (start, end) = (run.start * PAGE, (run.end * PAGE).min(opened.length));
        reader.sink.skip(start - at)?;
        if !reader.stretch(opened, start, end, &mut |sink, bytes| sink.append(bytes))? {
            reader.fill_up(opened)?;
            return Ok(true);
        }
        at = end;
    }
    reader.sink.skip(opened.length - at)?;
    Ok(!wanted.runs.is_empty())
}

/// Runs of either, ascending and without overlap.
fn joined(one: &[Range<u64>], two: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = one.iter().chain(two).cloned().collect();
    all.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(all.len());
    for run in all {
        match joined.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_two_sources_become_one_list() {
        let joined = |one: &[Range<u64>], two: &[Range<u64>]| joined(one, two);
        assert_eq!(joined(&[], &[]), []);
        assert_eq!(joined(&[1..2, 5..6], &[]), [1..2, 5..6]);
        assert_eq!(
            joined(&[1..3, 8..9, 20..30], &[2..4, 4..5, 9..10, 22..23]),
            [1..5, 8..10, 20..30]
        );
    }
}
