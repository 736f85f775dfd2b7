//! WAL of one segment as it is read from the journal.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::archive::push::Content;
use crate::err;
use crate::error::Result;
use crate::journal::frame::Frames;
use crate::journal::{Follower, Segment};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;

/// The bytes of a segment's file, from any position on. Bytes that are read have been checked, and do not reach beyond the range asked for.
pub struct Received {
    follower: Follower,
    segment: Segment,
    frames: Frames<File>,
    has_own_increments: bool,
    /// Bytes that were read: see [`Received::counted_by`].
    read: Arc<AtomicU64>,
}

impl Received {
    /// Begins at the segment's start.
    ///
    /// # Errors
    /// `SourceMissing` when the journal does not hold it.
    pub fn open(follower: &Follower, segment: Segment) -> Result<Received> {
        let frames = follower.open(segment.name).map_err(|e| {
            err!(
                SourceMissing,
                "could not open the journal's file of segment \"{}\"",
                segment.name
            )
            .source(e)
        })?;
        Ok(Received {
            follower: follower.clone(),
            segment,
            frames,
            has_own_increments: false,
            read: Arc::default(),
        })
    }

    /// The same content, of whose segment the stored increments were compared.
    pub fn with_own_increments(self, has_own_increments: bool) -> Received {
        Received {
            has_own_increments,
            ..self
        }
    }

    /// The same content, whose bytes are counted as they are read.
    pub fn counted_by(self, read: Arc<AtomicU64>) -> Received {
        Received { read, ..self }
    }

    /// The position of the next byte.
    pub fn lsn(&self) -> Lsn {
        self.frames.lsn()
    }

    /// Goes to `lsn`, and sees what has been written since.
    ///
    /// # Errors
    /// `SourceMissing` when the journal does not reach so far.
    pub fn seek(&mut self, lsn: Lsn) -> Result<()> {
        self.frames.look_again();
        match self.frames.skip_to(lsn) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.damaged()),
            Err(e) => Err(self.damaged().source(e)),
        }
    }

    /// Returns how many bytes can be read from the beginning on, and goes there.
    pub fn readable_bytes(&mut self) -> u64 {
        self.frames.rewind();
        let from = self.frames.lsn();
        // Damage ends what can be read.
        let _ = self.frames.read_to_end();
        let length = self.frames.lsn().0 - from.0;
        self.frames.rewind();
        length
    }

    /// Fills `buffer`, whose bytes are durable in the journal.
    ///
    /// # Errors
    /// `SourceMissing` when the file does not hold them any more: it is damaged.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
            match self.frames.read(rest) {
                Ok(0) => return Err(self.damaged()),
                Ok(n) => {
                    filled += n;
                    self.read.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(e) => return Err(self.damaged().source(e)),
            }
        }
        Ok(())
    }

    fn damaged(&self) -> crate::error::Error {
        err!(
            SourceMissing,
            "the journal's file of segment \"{}\" is damaged at {}",
            self.segment.name,
            self.frames.lsn()
        )
        .hint("The server was told that this WAL is safe, and may not have it any more. Archive the segment from a server that has it (\"pitr wal backfill\"), and take a base backup.")
    }
}

impl Content for Received {
    fn size(&self) -> u64 {
        self.segment.end.0 - self.segment.from.0
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.segment.to.0.saturating_sub(self.frames.lsn().0);
        let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.fill(buffer.get_mut(..length).unwrap_or_default())?;
        Ok(length)
    }

    fn rewind(&mut self) -> Result<()> {
        self.frames.rewind();
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut other = Received::open(&self.follower, self.segment)?;
        other.seek(Lsn(self.segment.from.0 + offset))?;
        other.fill(buffer)
    }

    fn read_other(&self, name: SegmentName, buffer: &mut [u8], offset: u64) -> Result<bool> {
        let segments = self.follower.segments();
        let held = segments.iter().find(|s| s.name == name && s.is_complete());
        let Some(held) = held else {
            return Ok(false);
        };
        let read =
            Received::open(&self.follower, *held).and_then(|other| other.read_at(buffer, offset));
        Ok(read.is_ok())
    }

    fn has_own_increments(&self) -> bool {
        self.has_own_increments
    }

    fn check_unchanged(&self) -> Result<()> {
        // Nobody else writes into a journal, and what is durable is not written again.
        Ok(())
    }
}
