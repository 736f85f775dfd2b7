//! The part of a segment that PostgreSQL can get although the segment is not stored whole: its tail, padded and marked.
//!
//! A server may have more of the segment than the archive, as a streaming standby has. Its own file is never replaced
//! by a shorter one: at its promotion PostgreSQL reads its last record again, after asking restore_command for the
//! segment.

use std::path::Path;

use super::backfill;
use super::datadir::DataDirectory;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::wal::increment::OpenSegment;
use crate::wal::remnant::Remnant;

/// A tail in one repository.
pub struct Offer {
    name: SegmentName,
    layout: ClusterLayout,
    remnant: Remnant,
}

impl Offer {
    /// Finds the tail of a segment; one in which no record ends is none.
    ///
    /// # Errors
    /// Those of [`Remnant::find`].
    pub fn find(
        repository: &Repository,
        layout: &ClusterLayout,
        name: SegmentName,
    ) -> Result<Option<Offer>> {
        let registration = repository.require_readable(layout)?;
        let segment = OpenSegment {
            name,
            size: SegmentSize::new(registration.segment_size_bytes)?,
            major: registration.major,
        };
        let found = Remnant::find(repository, layout, &segment)?;
        Ok(found.filter(|r| !r.is_empty()).map(|remnant| Offer {
            name,
            layout: layout.clone(),
            remnant,
        }))
    }

    /// Returns the position at which its WAL ends.
    pub fn valid_end(&self) -> Lsn {
        self.remnant.valid_end()
    }

    /// Returns whether the offered content is the whole segment.
    pub fn is_complete(&self) -> bool {
        self.remnant.is_complete()
    }

    /// Whether the next segment may follow.
    pub fn goes_on(&self) -> bool {
        self.remnant.goes_on()
    }

    /// Whether the server that asks has at least as much of it in its pg_wal.
    pub fn is_known_to(&self, target: &Path) -> Result<bool> {
        let directory = DataDirectory::of_wal_file(target);
        let path = directory.wal().join(self.name.to_string());
        if path == target || !path.exists() {
            return Ok(false);
        }
        let summary = match backfill::decode(&path, self.name, true) {
            Ok(summary) => summary,
            Err(e) if matches!(e.code(), Code::Io | Code::Denied) => return Err(e),
            // A file that was recycled for later use holds other WAL, or none.
            Err(_) => None,
        };
        Ok(summary.is_some_and(|own| {
            // That the rest of a record from the segment before is all there shows only by one behind it.
            own.last_complete.is_some() && own.valid_end >= self.valid_end()
        }))
    }

    /// Streams a file of the segment's size.
    ///
    /// # Errors
    /// Those of [`Remnant::read_padded`].
    pub fn read(
        &self,
        repository: &Repository,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.remnant.read_padded(repository, &self.layout, sink)
    }
}
