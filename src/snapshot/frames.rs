//! Sets of frames of a snapshot's packs.

use std::collections::BTreeMap;

/// Frames, by the index of their pack in the root. Each costs a bit.
#[derive(Debug, Default)]
pub struct Frames(BTreeMap<usize, Vec<u64>>);

impl Frames {
    /// Adds a frame.
    pub fn add(&mut self, pack: usize, frame: u32) {
        let words = self.0.entry(pack).or_default();
        let (at, bit) = place(frame);
        if words.len() <= at {
            words.resize(at + 1, 0);
        }
        if let Some(word) = words.get_mut(at) {
            *word |= bit;
        }
    }

    /// Removes a frame.
    pub fn remove(&mut self, pack: usize, frame: u32) {
        let (at, bit) = place(frame);
        let words = self.0.get_mut(&pack);
        if let Some(word) = words.and_then(|words| words.get_mut(at)) {
            *word &= !bit;
        }
    }

    /// Whether it has a frame.
    pub fn contains(&self, pack: usize, frame: u32) -> bool {
        let (at, bit) = place(frame);
        let word = self.0.get(&pack).and_then(|words| words.get(at));
        word.is_some_and(|word| word & bit != 0)
    }

    /// How many frames of a pack it has.
    pub fn count(&self, pack: usize) -> u64 {
        let words = self.0.get(&pack).into_iter().flatten();
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether it has any frame of a pack.
    pub fn has_pack(&self, pack: usize) -> bool {
        let words = self.0.get(&pack);
        words.is_some_and(|words| words.iter().any(|word| *word != 0))
    }

    /// The packs of which frames were added, ascending.
    pub fn packs(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.keys().copied()
    }
}

fn place(frame: u32) -> (usize, u64) {
    (frame as usize / 64, 1 << (frame % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_were_not_added_are_not_there() {
        let mut frames = Frames::default();
        frames.add(3, 65);
        frames.add(3, 2);
        assert!(frames.contains(3, 65) && frames.contains(3, 2));
        assert!(!frames.contains(3, 1) && !frames.contains(3, 66) && !frames.contains(0, 0));
        assert!(frames.has_pack(3) && !frames.has_pack(0));
        assert_eq!((frames.count(3), frames.count(0)), (2, 0));
        frames.remove(3, 65);
        assert!(frames.has_pack(3) && !frames.contains(3, 65));
        frames.remove(3, 2);
        frames.remove(4, 0);
        assert!(!frames.has_pack(3));
        assert_eq!(frames.packs().collect::<Vec<_>>(), [3]);
    }
}
