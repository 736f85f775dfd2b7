//! The mark of a segment, by which the one after it is joined to it (format, section 5).

use crate::error::Result;

/// Bytes of WAL that a mark covers, at most.
pub const WINDOW_BYTES: u64 = 256 << 10;

/// The hash of the last WAL in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub [u8; 32]);

impl Mark {
    /// Computes the mark of a segment whose last WAL ends at `end`, an offset in it; `read` fills a buffer from an offset on.
    ///
    /// # Errors
    /// Errors of `read`.
    pub fn compute(end: u64, read: &mut dyn FnMut(&mut [u8], u64) -> Result<()>) -> Result<Mark> {
        let begin = end.saturating_sub(WINDOW_BYTES);
        let mut window = vec![0; usize::try_from(end - begin).unwrap_or(0)];
        read(&mut window, begin)?;
        Ok(Mark(*blake3::hash(&window).as_bytes()))
    }
}
