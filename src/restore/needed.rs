//! The frames that are fetched, where that is not all of them: databases are left out, or the target has what other frames hold.

use std::collections::HashMap;

use super::extract::{Copying, Survey, check_stop};
use crate::error::Result;
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;

/// How much of a file's map is looked up at once.
const STEP_BYTES: u64 = 64 << 20;

/// The frames to read, by the number of their pack; a bit costs a byte, so a backup of a terabyte takes a few megabytes.
#[derive(Debug, Default)]
pub struct Needed(HashMap<usize, Vec<bool>>);

impl Needed {
    /// Walks the map of every file whose content is restored.
    ///
    /// # Errors
    /// `Interrupted`; `Damaged` when the map fails a check.
    pub fn find(snapshot: &Snapshot<'_>, survey: &Survey, how: &mut Copying<'_>) -> Result<Needed> {
        let mut needed = Needed::default();
        for item in snapshot.items() {
            let item = item?;
            let Metadata::File { length, .. } = item.metadata else {
                continue;
            };
            if survey.leaves_out(&item.key) {
                continue;
            }
            let mut from = 0;
            while from < length {
                check_stop(how.stop)?;
                let to = length.min(from + STEP_BYTES);
                for place in snapshot.places(&item.key, from, to)? {
                    if let Some(at) = place.at {
                        needed.add(at.pack, at.frame);
                    }
                }
                from = to;
            }
            (how.tick)();
        }
        Ok(needed)
    }

    /// Adds a frame.
    pub fn add(&mut self, pack: usize, frame: u32) {
        let frame = frame as usize;
        let frames = self.0.entry(pack).or_default();
        if frames.len() <= frame {
            frames.resize(frame + 1, false);
        }
        if let Some(frame) = frames.get_mut(frame) {
            *frame = true;
        }
    }

    /// Removes a frame.
    pub fn remove(&mut self, pack: usize, frame: u32) {
        let frames = self.0.get_mut(&pack);
        if let Some(frame) = frames.and_then(|frames| frames.get_mut(frame as usize)) {
            *frame = false;
        }
    }

    /// Whether a frame is read.
    pub fn contains(&self, pack: usize, frame: u32) -> bool {
        let frames = self.0.get(&pack);
        frames.is_some_and(|frames| frames.get(frame as usize) == Some(&true))
    }

    /// Whether any frame of a pack is read.
    pub fn has_pack(&self, pack: usize) -> bool {
        let frames = self.0.get(&pack);
        frames.is_some_and(|frames| frames.contains(&true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_were_not_named_are_not_read() {
        let mut needed = Needed::default();
        needed.add(3, 5);
        needed.add(3, 2);
        assert!(needed.contains(3, 5) && needed.contains(3, 2));
        assert!(!needed.contains(3, 4) && !needed.contains(3, 6) && !needed.contains(0, 0));
        assert!(needed.has_pack(3) && !needed.has_pack(0));
        needed.remove(3, 5);
        assert!(needed.has_pack(3) && !needed.contains(3, 5));
        needed.remove(3, 2);
        needed.remove(4, 0);
        assert!(!needed.has_pack(3));
    }
}
