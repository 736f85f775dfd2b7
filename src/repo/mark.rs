//! The mark of a segment, by which the one after it is joined to it (format, section 5).

use crate::error::Result;

/// Bytes of WAL that a mark covers, at most.
pub const WINDOW_BYTES: u64 = 256 << 10;

/// Bytes read at once: they stay in the processor's nearest memory.
const PIECE: usize = 32 << 10;

/// The hash of the last WAL in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub [u8; 32]);

impl Mark {
    /// Computes the mark of a segment whose last WAL ends at `end`, an offset in it; `read` fills a buffer from an offset on.
    ///
    /// # Errors
    /// Errors of `read`.
    pub fn compute(end: u64, read: &mut dyn FnMut(&mut [u8], u64) -> Result<()>) -> Result<Mark> {
        let mut at = end.saturating_sub(WINDOW_BYTES);
        let mut hasher = blake3::Hasher::new();
        let mut buffer = [0; PIECE];
        while at < end {
            let length = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            let piece = buffer.get_mut(..length).unwrap_or_default();
            read(piece, at)?;
            hasher.update(piece);
            at += length as u64;
        }
        Ok(Mark(*hasher.finalize().as_bytes()))
    }
}
