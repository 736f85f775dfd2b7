//! Chunks of one object: AES-256-GCM in STREAM construction.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroize;

use super::TAG;
use super::head::HEAD;
use super::key::{KeySetId, Secret32, derive};
use crate::err;
use crate::error::Result;

/// The keys that encrypt the chunks of one object, derived from its key.
pub(super) struct ChunkKeys {
    key: LessSafeKey,
    prefix: [u8; 7],
    /// Tells that an object's key is the one that the writer used.
    pub(super) commitment: [u8; 32],
    aad: Vec<u8>,
}

impl ChunkKeys {
    pub(super) fn new(
        object_key: &Secret32,
        head: &[u8; HEAD],
        key_set: KeySetId,
        key: &str,
    ) -> Result<ChunkKeys> {
        let hash = ring::digest::digest(&ring::digest::SHA256, head);
        let mut derived = [0; 71];
        derive(
            object_key.expose(),
            hash.as_ref(),
            b"pitr/1/object",
            &mut derived,
        )?;
        let failed = || err!(Internal, "a chunk key could not be derived");
        let (chunk_key, rest) = derived.split_at(32);
        let unbound = UnboundKey::new(&AES_256_GCM, chunk_key).map_err(|_| failed())?;
        let (prefix, commitment) = rest.split_at(7);
        let keys = ChunkKeys {
            key: LessSafeKey::new(unbound),
            prefix: *prefix.first_chunk().ok_or_else(failed)?,
            commitment: *commitment.first_chunk().ok_or_else(failed)?,
            aad: [
                b"pitr/1/chunk".as_slice(),
                &key_set.0,
                hash.as_ref(),
                key.as_bytes(),
            ]
            .concat(),
        };
        derived.zeroize();
        Ok(keys)
    }

    fn nonce(&self, number: u32, is_last: bool) -> Nonce {
        let mut nonce = [0; 12];
        let number = number.to_be_bytes();
        let last = [u8::from(is_last)];
        let fields = self.prefix.iter().chain(&number).chain(&last);
        for (to, from) in nonce.iter_mut().zip(fields) {
            *to = *from;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts a chunk in place; its tag goes behind it.
    pub(super) fn seal(&self, number: u32, is_last: bool, chunk: &mut [u8]) -> Result<Tag> {
        let nonce = self.nonce(number, is_last);
        self.key
            .seal_in_place_separate_tag(nonce, Aad::from(&self.aad), chunk)
            .map_err(|_| err!(Internal, "a chunk could not be encrypted"))
    }

    /// Decrypts a chunk with its tag in place; the raw bytes are at its front.
    pub(super) fn open(&self, number: u32, is_last: bool, chunk: &mut [u8]) -> Result<usize> {
        let nonce = self.nonce(number, is_last);
        let length = chunk.len().saturating_sub(TAG);
        match self.key.open_in_place(nonce, Aad::from(&self.aad), chunk) {
            Ok(_) => Ok(length),
            Err(_) => Err(err!(
                Damaged,
                "its chunk {number} was changed since it was sealed"
            )),
        }
    }
}
