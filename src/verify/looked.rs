//! The objects that a run has looked at: backups share layers and packs, and each of these is read once, not once for each backup.
//!
//! Only what passed is kept. A fault is looked at again as each backup's, so that each backup which names the object has a finding of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::repo::root::{LayerRef, PackRef};

/// A hash of all that a root and its layers say of an object: 100 000 of them take 3 MiB.
pub(super) type Identity = [u8; 16];

/// The outcome of a look that no other backup has to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Tiers have moved it to where it must be thawed first.
    Archived,
    /// All of a layer passed; of a pack at least its directory, or every byte, though not every page carries its checksum.
    Sound,
    /// Every byte of a pack passed, and each page in it carries its checksum, whichever backup needs it.
    Whole,
}

/// The objects that a run has looked at.
#[derive(Default)]
pub(super) struct Looked(Mutex<HashMap<Identity, Verdict>>);

impl Looked {
    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Verdict>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what this run knows of an object.
    pub fn verdict(&self, object: &Identity) -> Option<Verdict> {
        self.lock().get(object).copied()
    }

    /// Remembers a verdict. An object that passed whole stays so.
    pub fn set(&self, object: Identity, verdict: Verdict) {
        match self.lock().entry(object) {
            Entry::Occupied(known) if *known.get() == Verdict::Whole => {}
            Entry::Occupied(mut known) => {
                known.insert(verdict);
            }
            Entry::Vacant(free) => {
                free.insert(verdict);
            }
        }
    }
}

/// A layer as a root names it.
pub(super) fn layer(reference: &LayerRef) -> Identity {
    let place = [reference.offset, reference.length].map(u64::to_le_bytes);
    let part = reference.key.to_string();
    identity(&[
        b"layer",
        part.as_bytes(),
        reference.hash.as_bytes(),
        place.as_flattened(),
    ])
}

/// A pack as a root names it, with the hash that the layers have.
pub(super) fn pack(pack: &PackRef, hash: Option<&[u8; 32]>) -> Identity {
    let part = pack.key.to_string();
    let hash: &[u8] = hash.map_or(&[], |hash| hash.as_slice());
    let size = pack.size_bytes.to_le_bytes();
    identity(&[b"pack", part.as_bytes(), hash, &size])
}

/// The length of each part comes before it, so that no two lists give the same bytes.
fn identity(parts: &[&[u8]]) -> Identity {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut identity = Identity::default();
    hasher.finalize_xof().fill(&mut identity);
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(number: u32, offset: u64, length: u64) -> LayerRef {
        LayerRef {
            key: format!("20261120T064049Z-full/{number:06}")
                .parse()
                .unwrap(),
            offset,
            length,
            hash: "0".repeat(64),
        }
    }

    #[test]
    fn v46_an_object_is_known_only_as_it_was_looked_at() {
        let one = reference(1, 10, 20);
        assert_eq!(layer(&one), layer(&one.clone()));
        let hash = "1".repeat(64);
        let others = [
            reference(2, 10, 20),
            reference(1, 20, 10),
            reference(1, 10, 21),
            LayerRef {
                hash,
                ..one.clone()
            },
        ];
        for other in &others {
            assert_ne!(layer(&one), layer(other));
        }
        let named = PackRef {
            key: one.key.clone(),
            size_bytes: 7,
            live_frames: 1,
            live_bytes: 2,
            all_frames: None,
            all_bytes: None,
        };
        // A pack is the same one whatever a backup reads of it.
        let of_another = PackRef {
            live_frames: 9,
            ..named.clone()
        };
        let longer = PackRef {
            size_bytes: 8,
            ..named.clone()
        };
        assert_eq!(
            pack(&named, Some(&[1; 32])),
            pack(&of_another, Some(&[1; 32]))
        );
        assert_ne!(pack(&named, Some(&[1; 32])), pack(&named, Some(&[2; 32])));
        assert_ne!(pack(&named, Some(&[1; 32])), pack(&named, None));
        assert_ne!(pack(&named, None), pack(&longer, None));
    }

    #[test]
    fn v46_what_passed_whole_stays_so_and_nothing_is_known_of_the_rest() {
        let looked = Looked::default();
        let (one, two) = (identity(&[b"one"]), identity(&[b"two"]));
        looked.set(one, Verdict::Sound);
        assert_eq!(looked.verdict(&one), Some(Verdict::Sound));
        looked.set(one, Verdict::Whole);
        looked.set(one, Verdict::Sound);
        assert_eq!(looked.verdict(&one), Some(Verdict::Whole));
        assert_eq!(looked.verdict(&two), None);
    }
}
