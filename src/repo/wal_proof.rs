//! The proof of WAL in a backup's root, so that WAL of another life of the cluster is never taken for it (format,
//! section 8.1).
//!
//! System identifier, timeline and LSN do not identify WAL: a clone and a machine that was set back to a snapshot write other WAL under
//! equal names. A root has the hashes of the first and the last segment as the backup's own server had them.

use serde::{Deserialize, Serialize};

use super::container::Container;
use super::layout::ClusterLayout;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::store::Store;

/// The proof of a backup's WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalProof {
    /// The segment of the start LSN.
    pub first: FirstSegment,
    /// The segment of the byte before the stop LSN.
    pub last: LastSegment,
    /// The checkpoint record from which a restore replays; none where the host that took the backup could not read WAL.
    pub checkpoint: Option<CheckpointMark>,
}

/// The segment in which a backup starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstSegment {
    pub name: SegmentName,
    /// BLAKE3 of the whole raw segment; none where the backup stops in it, too.
    pub hash: Option<RawHash>,
}

/// The segment in which a backup stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSegment {
    pub name: SegmentName,
    /// Bytes from its start up to the stop LSN.
    pub length_bytes: u64,
    /// BLAKE3 of these bytes; none in what stays plain of a sealed root.
    pub hash: Option<RawHash>,
    /// BLAKE3 of the whole raw segment, where it was whole in the repository when the root was written.
    pub segment_hash: Option<RawHash>,
}

/// A checkpoint record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMark {
    pub lsn: Lsn,
    /// Its CRC, 8 hexadecimal digits.
    pub crc: String,
}

/// A BLAKE3 hash, in JSON 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RawHash(pub [u8; 32]);

impl From<RawHash> for String {
    fn from(hash: RawHash) -> String {
        blake3::Hash::from_bytes(hash.0).to_hex().to_string()
    }
}

impl TryFrom<String> for RawHash {
    type Error = blake3::HexError;

    fn try_from(text: String) -> std::result::Result<RawHash, blake3::HexError> {
        blake3::Hash::from_hex(text).map(|hash| RawHash(hash.into()))
    }
}

impl WalProof {
    /// Returns the part of it that stays plain in an encrypted repository.
    ///
    /// # Errors
    /// Errors of `keyed`.
    pub fn keyed(&self, keyed: &dyn Fn(&[u8; 32]) -> Result<[u8; 32]>) -> Result<WalProof> {
        let keyed = |hash: &Option<RawHash>| match hash {
            Some(hash) => keyed(&hash.0).map(|hash| Some(RawHash(hash))),
            None => Ok(None),
        };
        Ok(WalProof {
            first: FirstSegment {
                name: self.first.name,
                hash: keyed(&self.first.hash)?,
            },
            last: LastSegment {
                hash: None,
                segment_hash: keyed(&self.last.segment_hash)?,
                ..self.last.clone()
            },
            checkpoint: None,
        })
    }

    /// The segments that it has a hash of.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentName, RawHash)> {
        let first = self.first.hash.map(|hash| (self.first.name, hash));
        let last = self.last.segment_hash.map(|hash| (self.last.name, hash));
        first.into_iter().chain(last)
    }

    /// The last segment, how many of its bytes were proven and their hash.
    pub fn end(&self) -> Option<(SegmentName, u64, RawHash)> {
        let last = &self.last;
        Some((last.name, last.length_bytes, last.hash?))
    }

    /// The same, where that segment was not whole when the root was written.
    pub fn tail(&self) -> Option<(SegmentName, u64, RawHash)> {
        self.end().filter(|_| self.last.segment_hash.is_none())
    }

    /// Returns the first segment of the proof that is stored with other content, as the stored objects describe
    /// themselves. An object that is absent or damaged, or cannot be read from its disk, disagrees with nothing.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn disagreement(
        &self,
        store: &dyn Store,
        layout: &ClusterLayout,
    ) -> Result<Option<SegmentName>> {
        for (name, hash) in self.segments() {
            match Container::stored(store, &layout.segment(name)) {
                Ok(Some(container)) if !hash.is_of(&container) => return Ok(Some(name)),
                Err(e) if !e.is_lost() => {
                    return Err(e.context(format!("open segment \"{name}\"")));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

impl RawHash {
    /// Whether it is the hash of a stored segment, or the keyed one where that alone can be known.
    pub fn is_of(self, container: &Container) -> bool {
        container.has_hash(&self.0)
            || (container.is_opaque() && container.identity().hash == self.0)
    }
}

/// Returns why a backup cannot use a stored segment that another server of the cluster wrote.
pub fn foreign(name: SegmentName) -> String {
    format!("segment \"{name}\" in the repository is another server's, not that of the backup's")
}

/// Hashes the first bytes of a stream.
#[derive(Debug, Clone)]
pub struct Prefix {
    left: u64,
    hasher: blake3::Hasher,
}

impl Prefix {
    /// Creates the hash of the first `length_bytes` bytes.
    pub fn new(length_bytes: u64) -> Prefix {
        Prefix {
            left: length_bytes,
            hasher: blake3::Hasher::new(),
        }
    }

    /// Takes the next bytes; those behind the end do not count.
    pub fn update(&mut self, bytes: &[u8]) {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX);
        let bytes = bytes.get(..wanted).unwrap_or(bytes);
        self.hasher.update(bytes);
        self.left -= bytes.len() as u64;
    }

    /// The hash; none when there were not so many bytes.
    pub fn finish(&self) -> Option<RawHash> {
        (self.left == 0).then(|| RawHash(self.hasher.finalize().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_hashed_only_when_all_of_it_came() {
        let bytes = [7; 10];
        let of = |wanted: u64, pieces: &[&[u8]]| {
            let mut prefix = Prefix::new(wanted);
            pieces.iter().for_each(|piece| prefix.update(piece));
            prefix.finish()
        };
        let own = RawHash(blake3::hash(&bytes).into());
        assert_eq!(of(10, &[&bytes]), Some(own));
        assert_eq!(of(10, &[&bytes[..4], &bytes[..6]]), Some(own));
        // Bytes behind the end do not count, be it in the same piece or in a later one.
        assert_eq!(
            of(10, &[&bytes[..4], &[7, 7, 7, 7, 7, 7, 1], &[2]]),
            Some(own)
        );
        assert_eq!(of(10, &[&bytes[..9]]), None);
        assert_eq!(of(10, &[]), None);
    }
}
