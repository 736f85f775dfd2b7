//! The marker of a padded segment (format, section 7.2): a tail that pitr-restore completed with zeros must not be archived as if
//! it were the whole.

use crate::error::Result;
use crate::pg::lsn::Lsn;

/// The last bytes of a segment that hold the long marker.
pub const LONG: usize = 40;
const MAGIC: &[u8; 8] = b"PITRTAIL";

/// Whose tail it is; part of the marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Where valid WAL ends.
    pub valid_end: Lsn,
    /// Of the cluster.
    pub system_identifier: u64,
    /// Of the segment's name.
    pub timeline: u32,
}

impl Tail {
    fn body(&self) -> [u8; 28] {
        let mut out = [0; 28];
        let parts = MAGIC
            .iter()
            .copied()
            .chain(self.valid_end.0.to_le_bytes())
            .chain(self.system_identifier.to_le_bytes())
            .chain(self.timeline.to_le_bytes());
        for (slot, byte) in out.iter_mut().zip(parts) {
            *slot = byte;
        }
        out
    }

    /// The long marker, for the last 40 bytes.
    pub fn long(&self) -> [u8; LONG] {
        let mut out = [0; LONG];
        let body = self.body();
        let mut crc_input = body.to_vec();
        crc_input.extend_from_slice(&[0; 4]);
        let parts = crc_input
            .iter()
            .copied()
            .chain(crc32c::crc32c(&crc_input).to_le_bytes());
        for (slot, byte) in out.iter_mut().zip(parts) {
            *slot = byte;
        }
        out
    }

    /// The short marker, for 8 to 40 bytes behind the valid end.
    pub fn short(&self) -> [u8; 8] {
        let mut out = [0; 8];
        let crc = crc32c::crc32c(&self.body()).to_le_bytes();
        for (slot, byte) in out.iter_mut().skip(4).zip(crc) {
            *slot = byte;
        }
        out
    }
}

impl Tail {
    /// What follows the valid bytes up to `end`, the segment's end: zeros and the marker that fits, piece by piece.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn pad(&self, end: Lsn, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let left = end.0.saturating_sub(self.valid_end.0);
        let long = LONG as u64;
        match left {
            0 => Ok(()),
            1..8 => zeros(left, sink),
            // At 40 the long one would stand where the next record begins, and its length would not be zero.
            _ if left <= long => {
                sink(&self.short())?;
                zeros(left - 8, sink)
            }
            _ => {
                zeros(left - long, sink)?;
                sink(&self.long())
            }
        }
    }
}

fn zeros(mut count: u64, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let zeros = [0; 64 << 10];
    while count > 0 {
        let now = count.min(zeros.len() as u64);
        sink(
            zeros
                .get(..usize::try_from(now).unwrap_or(0))
                .unwrap_or_default(),
        )?;
        count -= now;
    }
    Ok(())
}

/// Whether the last 40 bytes of a segment hold a marker of this cluster; `end` is the segment's end LSN.
pub fn is_marked(last: &[u8; LONG], end: Lsn, system_identifier: u64, timeline: u32) -> bool {
    let tail = |valid_end| Tail {
        valid_end,
        system_identifier,
        timeline,
    };
    let stated = last
        .get(8..16)
        .and_then(|b| <[u8; 8]>::try_from(b).ok())
        .map(|b| Lsn(u64::from_le_bytes(b)));
    if stated.is_some_and(|lsn| tail(lsn).long() == *last) {
        return true;
    }
    // The short form stands at the valid end itself, whose position its checksum covers.
    (8..=LONG).any(|left| {
        let at = LONG - left;
        let marker = tail(Lsn(end.0 - left as u64)).short();
        last.get(at..at + 8) == Some(&marker[..])
            && last
                .get(at + 8..)
                .is_some_and(|rest| rest.iter().all(|b| *b == 0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_fills_the_segment_and_is_found() {
        let end = Lsn(0x200_0000);
        for left in [0, 3, 7, 8, 16, 32, 40, 48, 100_000, 1 << 20] {
            let tail = Tail {
                valid_end: Lsn(end.0 - left),
                system_identifier: 7,
                timeline: 2,
            };
            // What stands before the padding in the last bytes.
            let mut bytes = vec![0xEE; LONG];
            tail.pad(end, &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
            assert_eq!(bytes.len() as u64, LONG as u64 + left);
            let last = bytes.last_chunk::<LONG>().unwrap();
            assert_eq!(is_marked(last, end, 7, 2), left >= 8, "{left}");
            if let Some(length) = bytes.get(LONG..LONG + 4).filter(|_| left >= 4) {
                assert_eq!(length, [0; 4], "PostgreSQL sees a record of length zero");
            }
        }
    }

    #[test]
    fn both_markers_are_found_and_nothing_else() {
        let end = Lsn(0x200_0000);
        let tail = Tail {
            valid_end: Lsn(0x100_5000),
            system_identifier: 7,
            timeline: 2,
        };
        assert!(is_marked(&tail.long(), end, 7, 2));
        assert!(!is_marked(&tail.long(), end, 8, 2));
        assert!(!is_marked(&[0; LONG], end, 7, 2));
        for left in 8..=LONG {
            let short = Tail {
                valid_end: Lsn(end.0 - left as u64),
                ..tail
            }
            .short();
            let mut last = [0; LONG];
            last[..LONG - left].fill(0xEE);
            last[LONG - left..LONG - left + 8].copy_from_slice(&short);
            assert!(is_marked(&last, end, 7, 2), "{left}");
            assert!(!is_marked(&last, Lsn(end.0 + 8), 7, 2));
        }
    }
}
