//! Which packs a map leads to, and how much of each: what the root of an incremental says of packs that it shares.

use std::collections::HashSet;

use super::reader::{FramePlace, Place};
use crate::repo::root::PackRef;

/// Chunks that are known to be counted: 7 MB are enough for an estimate. Further ones that several files share may count more than once.
const CHUNKS: usize = 450_000;

/// The visible part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Every pack with a visible byte, and no other.
    pub packs: Vec<PackRef>,
    /// Regular files.
    pub file_count: u64,
    /// Their raw bytes.
    pub size_bytes: u64,
}

/// Counts frames and bytes of packs while a map is walked.
pub(super) struct Counter {
    packs: Vec<Counted>,
    /// Pack, frame and offset of chunks.
    chunks: HashSet<(u32, u32, u32)>,
}

#[derive(Clone, Default)]
struct Counted {
    /// A bit for each frame.
    frames: Vec<u64>,
    bytes: u64,
}

impl Counter {
    /// Begins with so many packs.
    pub fn new(packs: usize) -> Counter {
        Counter {
            packs: vec![Counted::default(); packs],
            chunks: HashSet::new(),
        }
    }

    /// Counts bytes that come from a frame; a chunk once, and whole.
    pub fn add(&mut self, at: FramePlace, place: &Place) {
        let bytes = match place.chunk {
            None => place.length,
            Some(whole) => {
                let index = u32::try_from(at.pack).unwrap_or(u32::MAX);
                let chunk = (index, at.frame, whole.offset);
                if self.chunks.contains(&chunk) {
                    return;
                }
                if self.chunks.len() < CHUNKS {
                    self.chunks.insert(chunk);
                }
                u64::from(whole.length)
            }
        };
        let Some(pack) = self.packs.get_mut(at.pack) else {
            return;
        };
        let (word, bit) = (at.frame as usize / 64, at.frame % 64);
        if pack.frames.len() <= word {
            pack.frames.resize(word + 1, 0);
        }
        if let Some(word) = pack.frames.get_mut(word) {
            *word |= 1 << bit;
        }
        pack.bytes += bytes;
    }

    /// Returns those of `packs` that have a visible byte, with what was counted.
    pub fn finish(self, packs: &[PackRef]) -> Vec<PackRef> {
        let counted = packs.iter().zip(self.packs);
        let visible = counted.filter(|(_, counted)| counted.bytes > 0);
        visible
            .map(|(pack, counted)| {
                // The one that wrote it named all of it as live.
                let all_bytes = pack.all_bytes.unwrap_or(pack.live_bytes);
                (pack, counted, all_bytes)
            })
            .map(|(pack, counted, all_bytes)| PackRef {
                live_frames: counted
                    .frames
                    .iter()
                    .map(|w| u64::from(w.count_ones()))
                    .sum(),
                live_bytes: counted.bytes.min(all_bytes),
                all_frames: Some(pack.all_frames.unwrap_or(pack.live_frames)),
                all_bytes: Some(all_bytes),
                ..pack.clone()
            })
            .collect()
    }
}
