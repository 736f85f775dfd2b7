//! Which blocks of a file are there.

use std::ops::Range;

/// The unit: PostgreSQL's own.
pub const BLOCK_BYTES: u64 = 8192;
const BITS: u64 = 64;

/// The blocks of a file whose content is in a repository. A block that is there stays there.
#[derive(Debug)]
pub struct Blocks {
    /// The bytes that the repository may still give: what lies behind is the file's own.
    length: u64,
    /// A bit for each block that is there; shorter than needed as long as none is.
    there: Vec<u64>,
}

impl Blocks {
    /// The blocks of a file of this length, of which none is there.
    pub fn new(length: u64) -> Blocks {
        Blocks {
            length,
            there: Vec::new(),
        }
    }

    fn is_there(&self, block: u64) -> bool {
        let word = usize::try_from(block / BITS).ok();
        let word = word.and_then(|at| self.there.get(at));
        word.is_some_and(|word| word & (1 << (block % BITS)) != 0)
    }

    /// The first stretch of absent blocks that the bytes `[from, to)` touch, in bytes: it begins and ends with blocks.
    pub fn absent(&self, from: u64, to: u64) -> Option<Range<u64>> {
        let to = to.min(self.length);
        if from >= to {
            return None;
        }
        let blocks = from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES);
        let first = blocks.clone().find(|block| !self.is_there(*block))?;
        let end = (first..blocks.end).find(|block| self.is_there(*block));
        let end = end.unwrap_or(blocks.end);
        Some(first * BLOCK_BYTES..(end * BLOCK_BYTES).min(self.length))
    }

    /// Takes down that the blocks which lie wholly in `[from, to)` are there; the last one ends with the file.
    pub fn add(&mut self, from: u64, to: u64) {
        let first = from.div_ceil(BLOCK_BYTES);
        let end = match to >= self.length {
            true => self.length.div_ceil(BLOCK_BYTES),
            false => to / BLOCK_BYTES,
        };
        for block in first..end {
            let Ok(at) = usize::try_from(block / BITS) else {
                return;
            };
            if self.there.len() <= at {
                self.there.resize(at + 1, 0);
            }
            if let Some(word) = self.there.get_mut(at) {
                *word |= 1 << (block % BITS);
            }
        }
    }

    /// Takes down that the file was cut: nothing behind comes from the repository any more.
    pub fn cut(&mut self, length: u64) {
        self.length = self.length.min(length);
    }

    /// Whether the whole file is there.
    pub fn is_whole(&self) -> bool {
        self.absent(0, self.length).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = BLOCK_BYTES;

    #[test]
    fn a_block_is_there_once_all_of_it_was_added() {
        let mut blocks = Blocks::new(10 * B + 5);
        assert_eq!(blocks.absent(0, u64::MAX), Some(0..10 * B + 5));
        blocks.add(B - 1, 3 * B + 1);
        assert_eq!(blocks.absent(0, 4 * B), Some(0..B));
        assert_eq!(blocks.absent(B, 3 * B), None);
        assert_eq!(blocks.absent(B, 3 * B + 1), Some(3 * B..4 * B));
        blocks.add(10 * B, 10 * B + 5);
        assert_eq!(blocks.absent(10 * B, 20 * B), None);
        blocks.add(0, 10 * B);
        assert!(blocks.is_whole());
    }

    #[test]
    fn what_was_cut_off_never_comes_back() {
        let mut blocks = Blocks::new(4 * B);
        blocks.add(B, 2 * B);
        blocks.cut(B + 100);
        assert_eq!(blocks.absent(0, 4 * B), Some(0..B));
        assert_eq!(blocks.absent(B, 4 * B), None);
        // Longer again, by zeros of its own.
        blocks.cut(3 * B);
        assert_eq!(blocks.absent(B, 4 * B), None);
        blocks.add(0, B);
        assert!(blocks.is_whole());
        let mut emptied = Blocks::new(3 * B);
        emptied.cut(0);
        assert!(emptied.is_whole() && Blocks::new(0).is_whole());
    }
}
