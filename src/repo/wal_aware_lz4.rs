//! LZ4 blocks of WAL, compressed by what is known of WAL: a record resembles the one before it of the same kind.
//!
//! A general compressor hashes every position to find out what it has seen; on WAL of small transactions that takes more of the
//! processor than everything else that archiving does. Here each record is compared, byte for byte at the same place, with the last
//! record of the same resource manager, opcode, length and relation, and the bytes that agree become matches. The result is a block like
//! any other: every LZ4 decoder reads it. On WAL that is not made of small records it compresses badly, so the caller compares
//! (`lz4`, decisions/0009).
//!
//! Nothing here has to be right about the WAL: what looks like a record is only a guess where to compare, and a match is only made
//! of bytes that were compared. A lie costs room.
//!
//! Knowledge: the LZ4 block format (lz4_Block_format.md), src/include/access/{xlog_internal,xlogrecord}.h.

use super::same_bytes::same_bytes;
use crate::pg::cursor;
use crate::pg::page::{FIRST_IS_CONTRECORD, LONG, LONG_HEADER, SHORT_HEADER};
use crate::pg::record::HEADER;

/// The only page size of WAL that repositories take.
const PAGE: usize = 8192;
/// Kinds of records that the compressor distinguishes.
const KINDS: usize = 1024;
/// The farthest that a match can reach back.
const FAR: usize = 65_535;
/// The last match of a block ends at least this far from its end: rule of the format.
const LAST_LITERALS: usize = 12;
/// Shorter matches do not exist.
const MATCH_MIN: usize = 4;
/// Literals are copied in pieces of this length; what is too much is overwritten.
const WIDE: usize = 32;

/// Room that [`Alike::compress`] needs for `raw` bytes whatever they are.
pub fn room(raw: usize) -> usize {
    // Matches only shrink; literals cost one byte in 255 and one a run.
    raw + raw / 255 + 2 * WIDE
}

/// Finds what resembles what, block after block.
pub struct Alike {
    /// Offset in the block at which the last record of each kind begins.
    last: Vec<u32>,
}

impl Default for Alike {
    fn default() -> Self {
        Alike {
            last: vec![u32::MAX; KINDS],
        }
    }
}

impl Alike {
    /// Compresses one block, which begins with a page, into the front of `out`; gives the length. `None` if it does not fit.
    pub fn compress(&mut self, raw: &[u8], out: &mut [u8]) -> Option<usize> {
        self.last.fill(u32::MAX);
        let mut block = Block::new(raw, out);
        for page in (0..raw.len()).step_by(PAGE) {
            let Some(bytes) = raw.get(page..page + PAGE) else {
                break;
            };
            let flags = cursor::u16_at(bytes, 2)?;
            let header = if flags & LONG == 0 {
                SHORT_HEADER
            } else {
                LONG_HEADER
            };
            if let Some(before) = page.checked_sub(PAGE) {
                block.compare(page, before, header)?;
            }
            let mut at = header;
            if flags & FIRST_IS_CONTRECORD != 0 {
                at = at.saturating_add(align8(cursor::u32_at(bytes, 16)? as usize));
            }
            self.records(&mut block, page, bytes, at)?;
        }
        block.end()
    }

    /// Compares the records that begin on a page, from `at` on.
    #[inline]
    fn records(
        &mut self,
        block: &mut Block<'_>,
        page: usize,
        bytes: &[u8],
        mut at: usize,
    ) -> Option<()> {
        while let Some(record) = bytes.get(at..).and_then(|rest| rest.first_chunk::<40>()) {
            let length = cursor::u32_at(record, 0)? as usize;
            if length < HEADER {
                break;
            }
            let next = at.saturating_add(align8(length)).min(PAGE);
            let place = page + at;
            let last = self.last.get_mut(kind(record, length))?;
            let before = usize::try_from(*last).unwrap_or(usize::MAX);
            *last = u32::try_from(place).ok()?;
            if before < place && place - before <= FAR {
                block.compare(place, before, next - at)?;
            }
            at = next;
        }
        Some(())
    }
}

/// A number for the kind of a record: opcode, resource manager, length, and the relation of its first block.
#[inline]
fn kind(record: &[u8; 40], length: usize) -> usize {
    let word = |at: usize| cursor::u64_at(record, at).unwrap_or(0);
    let of_header = word(16) & 0xFFFF | (length as u64) << 16;
    let first = word(24);
    let of_block = match first & 0xFF {
        // Flags and length of the data, and where the relation's number is if there is no image.
        0 => (first & 0xFFFF_FFFF) ^ (word(32) >> 32) << 8,
        no_block => no_block,
    };
    let mixed = (of_header ^ of_block << 20).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    usize::try_from(mixed >> 54).unwrap_or(0)
}

#[inline]
fn align8(n: usize) -> usize {
    n.saturating_add(7) & !7
}

/// A block being written: sequences of literals and a match.
struct Block<'a> {
    raw: &'a [u8],
    out: &'a mut [u8],
    /// Bytes of `out` that are written.
    written: usize,
    /// From here on nothing is written yet.
    literals_from: usize,
    /// The match that may grow still; none if its length is 0.
    match_at: usize,
    match_length: usize,
    match_distance: usize,
    /// Matches end here.
    stop: usize,
}

impl<'a> Block<'a> {
    fn new(raw: &'a [u8], out: &'a mut [u8]) -> Self {
        Block {
            raw,
            out,
            written: 0,
            literals_from: 0,
            match_at: 0,
            match_length: 0,
            match_distance: 0,
            stop: raw.len().saturating_sub(LAST_LITERALS),
        }
    }

    /// Makes matches of what agrees in the `length` bytes from `at` and from `before`.
    #[inline(always)]
    fn compare(&mut self, at: usize, before: usize, length: usize) -> Option<()> {
        let end = (at + length).min(self.stop);
        let distance = at - before;
        let mut at = at;
        while at < end {
            // Near the end of the block it is not worth while.
            let Some(bytes) = self.raw.get(at..).and_then(|r| r.first_chunk::<64>()) else {
                break;
            };
            let old = self.raw.get(at - distance..)?.first_chunk::<64>()?;
            let mut same = same_bytes(bytes, old);
            if end - at < 64 {
                same &= (1 << (end - at)) - 1;
            }
            // Bits at which four equal bytes in a row begin.
            let mut starts = same & (same >> 1);
            starts &= starts >> 2;
            while starts != 0 {
                let first = starts.trailing_zeros();
                let run = (!(same >> first)).trailing_zeros().min(64 - first);
                self.matched(at + first as usize, run as usize, distance)?;
                if first + run == 64 {
                    break;
                }
                starts &= !0 << (first + run);
            }
            at += 64;
        }
        Some(())
    }

    #[inline(always)]
    fn matched(&mut self, at: usize, length: usize, distance: usize) -> Option<()> {
        if at == self.match_at + self.match_length && distance == self.match_distance {
            self.match_length += length;
            return Some(());
        }
        self.sequence()?;
        self.match_at = at;
        self.match_length = length;
        self.match_distance = distance;
        Some(())
    }

    /// Writes the literals before the match, and the match.
    #[inline(always)]
    fn sequence(&mut self) -> Option<()> {
        if self.match_length == 0 {
            return Some(());
        }
        let extra = self.match_length - MATCH_MIN;
        self.literals(self.match_at, extra)?;
        let distance = u16::try_from(self.match_distance).ok()?.to_le_bytes();
        let to = self.out.get_mut(self.written..)?;
        *to.first_chunk_mut::<2>()? = distance;
        self.written += 2;
        if extra >= 15 {
            self.number(extra - 15)?;
        }
        self.literals_from = self.match_at + self.match_length;
        self.match_length = 0;
        Some(())
    }

    /// Writes a token for a match of `extra` bytes above the least, and the literals up to `end`.
    #[inline(always)]
    fn literals(&mut self, end: usize, extra: usize) -> Option<()> {
        let length = end - self.literals_from;
        let token = length.min(15) << 4 | extra.min(15);
        *self.out.get_mut(self.written)? = u8::try_from(token).ok()?;
        self.written += 1;
        if length >= 15 {
            self.number(length - 15)?;
        }
        let from = self.raw.get(self.literals_from..)?;
        let to = self.out.get_mut(self.written..)?;
        let pieces = length.div_ceil(WIDE);
        match (from.get(..pieces * WIDE), to.get_mut(..pieces * WIDE)) {
            (Some(from), Some(to)) => {
                for (from, to) in from
                    .as_chunks::<WIDE>()
                    .0
                    .iter()
                    .zip(to.as_chunks_mut::<WIDE>().0)
                {
                    *to = *from;
                }
            }
            _ => to.get_mut(..length)?.copy_from_slice(from.get(..length)?),
        }
        self.written += length;
        Some(())
    }

    /// Writes the part of a length that does not fit into the token.
    #[inline]
    fn number(&mut self, mut n: usize) -> Option<()> {
        while n >= 255 {
            *self.out.get_mut(self.written)? = 255;
            self.written += 1;
            n -= 255;
        }
        *self.out.get_mut(self.written)? = u8::try_from(n).ok()?;
        self.written += 1;
        Some(())
    }

    /// Writes what is left; gives the length of the whole.
    fn end(mut self) -> Option<usize> {
        self.sequence()?;
        self.literals(self.raw.len(), 0)?;
        Some(self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::Craft;
    use crate::pg::version::Major;
    use proptest::prelude::*;

    fn round_trip(raw: &[u8]) -> usize {
        let mut out = vec![0; room(raw.len())];
        let mut alike = Alike::default();
        let length = alike.compress(raw, &mut out).unwrap();
        let back = lz4_flex::block::decompress(&out[..length], raw.len()).unwrap();
        assert!(back == raw, "{} bytes came back other", raw.len());
        length
    }

    #[test]
    fn records_of_one_kind_shrink_and_come_back() {
        let mut craft = Craft::new(Major::V15);
        for n in 0..20_000_u32 {
            let mut payload = vec![0xFF, 46];
            payload.extend_from_slice(b"a payload that does not change but in places ");
            payload.extend_from_slice(&n.to_le_bytes()[..1]);
            craft.record(10, 0, n / 4, &payload);
            if craft.bytes.len() > (512 << 10) {
                break;
            }
        }
        let whole = craft.bytes.len() / PAGE * PAGE;
        for raw in [&craft.bytes[..], &craft.bytes[..whole]] {
            let length = round_trip(raw);
            assert!(length * 2 < raw.len(), "{length} of {}", raw.len());
        }
    }

    #[test]
    fn what_is_no_wal_comes_back() {
        for length in [0, 1, 11, 12, 13, 63, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE] {
            for fill in [0, 1, 24, 0xFF] {
                round_trip(&vec![fill; length]);
            }
        }
    }

    #[test]
    fn too_little_room_is_said() {
        let raw: Vec<u8> = (0..3 * PAGE)
            .map(|n| (n * n / 7).to_le_bytes()[0])
            .collect();
        let mut alike = Alike::default();
        assert_eq!(alike.compress(&raw, &mut [0; 100]), None);
        assert_eq!(alike.compress(&raw, &mut []), None);
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(
            lengths in proptest::collection::vec((0u32..400, any::<u8>(), 0u8..4), 0..600),
            flags in any::<u8>(), rest in any::<u32>(), odd in 0usize..PAGE,
        ) {
            // Bytes that look like records here and there, of lengths that lie now and then.
            let mut raw = Vec::new();
            for (length, byte, lie) in lengths {
                let at = raw.len();
                raw.resize(at + align8(length as usize) + 24, byte);
                let said = if lie == 0 { length.wrapping_mul(77) } else { length + 24 };
                raw[at..at + 4].copy_from_slice(&said.to_le_bytes());
                raw[at + 4] = lie;
            }
            for page in raw.chunks_exact_mut(PAGE) {
                page[2] = flags;
                page[16..20].copy_from_slice(&(rest % 9000).to_le_bytes());
            }
            raw.truncate(raw.len().saturating_sub(odd));
            round_trip(&raw);
        }
    }
}
