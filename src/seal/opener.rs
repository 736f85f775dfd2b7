//! Opening: chunks of a sealed object become raw bytes.

use super::aead::ChunkKeys;
use super::foot::Foot;
use super::key::{MacKey, PrivateHalf, Secret32};
use super::{CHUNK, chunks, sealer, wrap};
use crate::err;
use crate::error::Result;

/// Decrypts the chunks of one object.
pub struct Opener {
    keys: ChunkKeys,
    chunks: u64,
    plain_bytes: u64,
}

impl Opener {
    /// Unwraps the key of an object whose foot was found genuine.
    ///
    /// # Errors
    /// `Key` when the private half is another one.
    pub fn new(foot: &Foot, mac: &MacKey, private: &PrivateHalf) -> Result<Opener> {
        let head = foot.decoded_head()?;
        let wrong = || err!(Key, "the private half of the key set does not open it");
        let info = sealer::info(mac, head.epoch);
        let key = wrap::unwrap(private, &info, &head.encapsulated, &head.wrapped);
        let key = key.ok_or_else(wrong)?;
        let key = Secret32::new(*key.first_chunk().ok_or_else(wrong)?);
        let keys = ChunkKeys::new(&key, &foot.head, head.key_set, &foot.key)?;
        if keys.commitment != foot.commitment {
            return Err(err!(
                Damaged,
                "it was sealed under another key than it says"
            ));
        }
        Ok(Opener {
            keys,
            chunks: chunks(foot.plain_bytes),
            plain_bytes: foot.plain_bytes,
        })
    }

    /// The raw length of a chunk.
    pub fn chunk_bytes(&self, number: u64) -> usize {
        let from = number.saturating_mul(CHUNK as u64);
        let left = self.plain_bytes.saturating_sub(from).min(CHUNK as u64);
        usize::try_from(left).unwrap_or(0)
    }

    /// Decrypts chunk `number` in place; the raw bytes are at its front.
    ///
    /// # Errors
    /// `Damaged` when one bit of it is another, or it is not the chunk of this number of this object under this key.
    pub fn open(&self, number: u64, chunk: &mut [u8]) -> Result<usize> {
        let is_last = number + 1 == self.chunks;
        let number = u32::try_from(number).map_err(|_| err!(Damaged, "no chunk {number}"))?;
        self.keys.open(number, is_last, chunk)
    }
}
