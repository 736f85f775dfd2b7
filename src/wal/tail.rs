//! Padded segments (format, section 7.2): valid WAL, and nothing but padding behind it up to the segment's size. Decoding alone finds where
//! valid WAL ends: everything in WAL may have been chosen by an SQL user.

use super::index::{Summary, flag};
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::zeros::is_zero;

/// Length of the marker that pitr 0.1 wrote into the last bytes of what it padded.
const LONG: usize = 40;
const MAGIC: &[u8; 8] = b"PITRTAIL";
/// Bytes made or compared at once.
const CHUNK: usize = 64 << 10;

/// The WAL of a segment that is not there to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    pub valid_end: Lsn,
    /// System identifier of the cluster.
    pub system_identifier: u64,
    /// Timeline in the segment's name.
    pub timeline: u32,
}

impl Tail {
    /// Returns the position and the bytes of the marker of pitr 0.1. That version put zeros and this marker after the
    /// valid bytes, up to `end`, the segment's end. The marker stands in the last 40 bytes, or at the valid end where
    /// fewer are left.
    fn marker(&self, end: Lsn) -> (Lsn, Vec<u8>) {
        let mut body = MAGIC.to_vec();
        body.extend_from_slice(&self.valid_end.0.to_le_bytes());
        body.extend_from_slice(&self.system_identifier.to_le_bytes());
        body.extend_from_slice(&self.timeline.to_le_bytes());
        let left = end.0.saturating_sub(self.valid_end.0);
        if left < 8 {
            return (end, Vec::new());
        }
        if left <= LONG as u64 {
            let mut short = vec![0; 4];
            short.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
            return (self.valid_end, short);
        }
        body.extend_from_slice(&[0; 4]);
        let crc = crc32c::crc32c(&body);
        body.extend_from_slice(&crc.to_le_bytes());
        body.extend_from_slice(&[0; 4]);
        (Lsn(end.0 - LONG as u64), body)
    }

    /// Whether only padding lies between the valid end and `end`, the segment's end: zeros, or what pitr 0.1 put there. `read` fills a buffer from
    /// a position on.
    ///
    /// # Errors
    /// Errors of `read`.
    pub fn is_padded(
        &self,
        end: Lsn,
        read: &mut dyn FnMut(&mut [u8], Lsn) -> Result<()>,
    ) -> Result<bool> {
        let (at, marker) = self.marker(end);
        let (mut zeros, mut marked) = (true, true);
        let mut position = self.valid_end;
        let mut buffer = vec![0; CHUNK];
        while position < end && (zeros || marked) {
            let length = usize::try_from(end.0 - position.0).map_or(CHUNK, |l| l.min(CHUNK));
            let Some(piece) = buffer.get_mut(..length) else {
                break;
            };
            read(piece, position)?;
            let is_zero = is_zero(piece);
            zeros &= is_zero;
            marked &= match position.0 + length as u64 > at.0 {
                false => is_zero,
                true => is_marked(piece, position.0, at.0, &marker),
            };
            position.0 += length as u64;
        }
        Ok(zeros || marked)
    }
}

/// Whether the bytes at `position` are zeros, but for the marker, which begins at `at`.
fn is_marked(piece: &[u8], position: u64, at: u64, marker: &[u8]) -> bool {
    piece.iter().zip(position..).all(|(byte, here)| {
        let of_marker = here.checked_sub(at).and_then(|o| usize::try_from(o).ok());
        let expected = of_marker.and_then(|o| marker.get(o)).copied();
        *byte == expected.unwrap_or(0)
    })
}

/// Whether valid WAL ends inside, so that padding may follow: behind a switch record a whole segment has zeros, too.
pub fn may_be_padded(summary: &Summary) -> bool {
    summary.has(flag::ENDS_INSIDE) && !summary.has(flag::SWITCH)
}

/// Whether whole pages follow the one in which valid WAL ends, none of which is the segment's own: the stale pages of a recycled file, or zeros. A
/// segment that was completed has no such pages, except behind a switch record; where its own pages follow, decoding has found damage.
pub fn is_left_unfinished(summary: &Summary, end: Lsn) -> bool {
    const PAGE: u64 = 8192;
    may_be_padded(summary)
        && !summary.has(flag::DAMAGED)
        && summary.valid_end.0 / PAGE < end.0.saturating_sub(1) / PAGE
}

/// Hands zeros for everything from `from` to `end` to `sink`.
///
/// # Errors
/// Errors of `sink`.
pub fn pad(from: Lsn, end: Lsn, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let zeros = [0; CHUNK];
    let mut left = end.0.saturating_sub(from.0);
    while left > 0 {
        let now = usize::try_from(left).map_or(CHUNK, |l| l.min(CHUNK));
        sink(zeros.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Lsn = Lsn(0x200_0000);

    fn padding(left: u64, marked: bool) -> (Tail, Vec<u8>) {
        let tail = Tail {
            valid_end: Lsn(END.0 - left),
            system_identifier: 7,
            timeline: 2,
        };
        let mut bytes = Vec::new();
        pad(tail.valid_end, END, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        if marked {
            let (at, marker) = tail.marker(END);
            let at = usize::try_from(at.0 - tail.valid_end.0).unwrap();
            bytes[at..at + marker.len()].copy_from_slice(&marker);
        }
        (tail, bytes)
    }

    fn is_padded(tail: &Tail, bytes: &[u8]) -> bool {
        let mut read = |buffer: &mut [u8], at: Lsn| {
            let at = usize::try_from(at.0 - tail.valid_end.0).unwrap();
            buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
            Ok(())
        };
        tail.is_padded(END, &mut read).unwrap()
    }

    #[test]
    fn zeros_and_the_old_marker_in_its_place_are_padding_and_nothing_else_is() {
        for left in [0, 3, 7, 8, 16, 32, 40, 41, 48, 100_000, 1 << 20] {
            for marked in [false, true] {
                let (tail, mut bytes) = padding(left, marked);
                assert_eq!(bytes.len() as u64, left);
                assert!(is_padded(&tail, &bytes), "{left} {marked}");
                let other = Tail {
                    timeline: 3,
                    ..tail
                };
                assert_eq!(is_padded(&other, &bytes), !marked || left < 8, "{left}");
                for at in [0, bytes.len() / 2, bytes.len().saturating_sub(1)] {
                    let Some(byte) = bytes.get_mut(at) else {
                        continue;
                    };
                    *byte ^= 1;
                    assert!(!is_padded(&tail, &bytes), "{left} {marked} {at}");
                    bytes[at] ^= 1;
                }
            }
        }
    }
}
