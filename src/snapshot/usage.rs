//! Which packs a map leads to, and how much of each: what the root of an incremental says of packs that it shares.

use super::frames::Frames;
use super::reader::FramePlace;
use crate::repo::root::PackRef;

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
}

impl Counter {
    /// Begins with so many packs.
    pub fn new(packs: usize) -> Counter {
        Counter {
            frames: Frames::default(),
            bytes: vec![0; packs],
        }
    }

    /// Counts bytes that come from a frame.
    pub fn add(&mut self, at: FramePlace, bytes: u64) {
        if let Some(counted) = self.bytes.get_mut(at.pack) {
            *counted += bytes;
            self.frames.add(at.pack, at.frame);
        }
    }

    /// Returns those of `packs` that have a visible byte, with what was counted.
    pub fn finish(self, packs: &[PackRef]) -> Vec<PackRef> {
        let counted = packs.iter().zip(self.bytes).enumerate();
        let visible = counted.filter(|(_, (_, bytes))| *bytes > 0);
        visible
            .map(|(index, (pack, bytes))| PackRef {
                live_frames: self.frames.count(index),
                live_bytes: bytes,
                // The one that wrote it named all of it as live.
                all_frames: Some(pack.all_frames.unwrap_or(pack.live_frames)),
                all_bytes: Some(pack.all_bytes.unwrap_or(pack.live_bytes)),
                ..pack.clone()
            })
            .collect()
    }
}
