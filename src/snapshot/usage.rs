//! Which packs a map leads to, and how much of each: what the root of an incremental says of packs that it shares.

use std::collections::HashSet;

use super::frames::Frames;
use super::reader::{FramePlace, Place};
use crate::repo::root::PackRef;

/// Chunks that are known to be counted: 8 MB are enough for an estimate. Further ones that several files share may count more than once.
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
    frames: Frames,
    /// By the index of the pack in the root.
    bytes: Vec<u64>,
    /// Pack, frame and offset of chunks.
    chunks: HashSet<(usize, u32, u32)>,
}

impl Counter {
    /// Begins with so many packs.
    pub fn new(packs: usize) -> Counter {
        Counter {
            frames: Frames::default(),
            bytes: vec![0; packs],
            chunks: HashSet::new(),
        }
    }

    /// Counts bytes that come from a frame; a chunk once, and whole.
    pub fn add(&mut self, at: FramePlace, place: &Place) {
        let Some(counted) = self.bytes.get_mut(at.pack) else {
            return;
        };
        let bytes = match place.chunk {
            None => place.length,
            Some(whole) => {
                let chunk = (at.pack, at.frame, whole.offset);
                if self.chunks.contains(&chunk) {
                    return;
                }
                if self.chunks.len() < CHUNKS {
                    self.chunks.insert(chunk);
                }
                u64::from(whole.length)
            }
        };
        *counted += bytes;
        self.frames.add(at.pack, at.frame);
    }

    /// Returns those of `packs` that have a visible byte, with what was counted.
    pub fn finish(self, packs: &[PackRef]) -> Vec<PackRef> {
        let counted = packs.iter().zip(self.bytes).enumerate();
        let visible = counted.filter(|(_, (_, bytes))| *bytes > 0);
        visible
            .map(|(index, (pack, bytes))| {
                // The one that wrote it named all of it as live.
                let all_bytes = pack.all_bytes.unwrap_or(pack.live_bytes);
                PackRef {
                    live_frames: self.frames.count(index),
                    live_bytes: bytes.min(all_bytes),
                    all_frames: Some(pack.all_frames.unwrap_or(pack.live_frames)),
                    all_bytes: Some(all_bytes),
                    ..pack.clone()
                }
            })
            .collect()
    }
}
