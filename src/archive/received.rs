//! The increments of a segment, compared with the whole segment before that one supersedes them.
//!
//! A clone's receiver and the origin's archiver may write one segment. Without this comparison the whole segment hid commits that the receiver had
//! acknowledged, and no command led to them. The receiver does its part: after each increment it looks for the whole segment.

use super::push::{Checked, Content};
use crate::error::{Code, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::wal::increment::{self, OpenSegment};
use crate::wal::increments::{self, Run};
use crate::wal::remnant::Remnant;

/// Bytes read at once.
const CHUNK: u64 = 256 << 10;
/// So many bytes that are not zero prove one server: no record is shorter, and each holds a CRC.
const PROOF_BYTES: usize = 32;

/// Finds the end of the WAL that a receiver archived of a segment from another server; `None` where the offered content holds all of it.
///
/// # Errors
/// Errors of the store and the content.
pub(super) fn end_of_other(source: &dyn Content, checked: &Checked<'_>) -> Result<Option<Lsn>> {
    let segment = checked.open_segment();
    let listed = match increments_of(checked) {
        // A host that may not look there is not kept from archiving.
        Err(e) if e.code() == Code::Denied => return Ok(None),
        listed => listed?,
    };
    let Some(run) = Run::of(segment, &listed)? else {
        return Ok(None);
    };
    let comparison = Comparison {
        source,
        checked,
        segment,
    };
    match comparison.ends_alike(&run)? {
        true => Ok(None),
        false => comparison.end_of_difference(&run),
    }
}

/// Returns the increments of the segment. If a process ships many segments to a remote store, one request shows for all
/// of them, for a moment, that no receiver streams.
fn increments_of(checked: &Checked<'_>) -> Result<Vec<LsnRange>> {
    let (repository, name) = (checked.repository, checked.segment);
    if checked.what.beside_others && repository.store().is_remote() {
        let prefix = checked.layout.home_of(name).open_segments();
        let is_any = match repository.has_streams(&prefix) {
            Some(is_any) => is_any,
            None => {
                let is_any = !repository.store().list(&prefix)?.is_empty();
                repository.found_streams(prefix, is_any);
                is_any
            }
        };
        if !is_any {
            return Ok(Vec::new());
        }
    }
    increment::list(repository, &checked.layout, name)
}

struct Comparison<'a> {
    source: &'a dyn Content,
    checked: &'a Checked<'a>,
    segment: OpenSegment,
}

impl Comparison<'_> {
    /// Whether the last increments have the hash of the offered bytes. Two servers agree nowhere behind the place where they parted.
    fn ends_alike(&self, run: &Run) -> Result<bool> {
        for piece in run.pieces().iter().rev() {
            let (repository, layout) = (self.checked.repository, &self.checked.layout);
            let stored = match increments::open(repository, layout, &self.segment, *piece) {
                Ok(stored) => stored,
                // Damage is verify's to report.
                Err(e) if matches!(e.code(), Code::Damaged | Code::Denied) => continue,
                Err(e) => return Err(e),
            };
            let (hash, proof) = self.hash(*piece)?;
            if !stored.has_hash(&hash) {
                return Ok(false);
            }
            if proof >= PROOF_BYTES {
                break;
            }
        }
        Ok(true)
    }

    /// The hash of a range of the offered bytes, and how many of them are not zero.
    fn hash(&self, range: LsnRange) -> Result<([u8; 32], usize)> {
        let (mut hasher, mut proof) = (blake3::Hasher::new(), 0);
        let mut at = range.start.0;
        while at < range.end.0 {
            let length = CHUNK.min(range.end.0 - at);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
            let offset = at - self.checked.wal.start_lsn.0;
            self.source.read_at(&mut bytes, offset)?;
            hasher.update(&bytes);
            proof += bytes.iter().filter(|byte| **byte != 0).count();
            at += length;
        }
        Ok((*hasher.finalize().as_bytes(), proof))
    }

    /// The end of what readers would take from the increments, where the offered content differs before it. A server that crashed writes other
    /// bytes after its last whole record: those are nobody's commit.
    fn end_of_difference(&self, run: &Run) -> Result<Option<Lsn>> {
        let (repository, layout) = (self.checked.repository, &self.checked.layout);
        let remnant = match Remnant::find(repository, layout, &self.segment) {
            Ok(Some(remnant)) => remnant,
            Ok(None) => return Ok(None),
            Err(e) if e.code() == Code::Damaged => return Ok(None),
            // Without the key, and of WAL that cannot be decoded, only the hash speaks.
            Err(e) if matches!(e.code(), Code::Key | Code::Unsupported) => {
                return Ok(Some(run.end()));
            }
            Err(e) => return Err(e),
        };
        let end = remnant.valid_end();
        let mut read = |buffer: &mut [u8], at| self.source.read_at(buffer, at);
        let length = end.0 - self.checked.wal.start_lsn.0;
        let mut prefix = Prefix::new(length, &mut read);
        remnant.read_pages(repository, layout, &mut |bytes| prefix.compare(bytes))?;
        Ok((!prefix.is_same()).then_some(end))
    }
}

/// Compares the first bytes of a segment's content with a copy that is read in order.
pub struct Prefix<'a> {
    length: u64,
    at: u64,
    is_same: bool,
    /// Fills a buffer from an offset of the content; the offsets ascend.
    read: &'a mut dyn FnMut(&mut [u8], u64) -> Result<()>,
    own: Vec<u8>,
}

impl<'a> Prefix<'a> {
    /// Compares `length` bytes.
    pub fn new(length: u64, read: &'a mut dyn FnMut(&mut [u8], u64) -> Result<()>) -> Prefix<'a> {
        Prefix {
            length,
            at: 0,
            is_same: true,
            read,
            own: Vec::new(),
        }
    }

    /// Compares the next bytes of the copy; those after the length do not count.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn compare(&mut self, bytes: &[u8]) -> Result<()> {
        let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
        let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
        if self.is_same && !bytes.is_empty() {
            self.own.resize(bytes.len(), 0);
            (self.read)(&mut self.own, self.at)?;
            self.is_same = self.own == bytes;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Whether the copy has all of these bytes.
    pub fn is_same(&self) -> bool {
        self.is_same && self.at == self.length
    }
}
