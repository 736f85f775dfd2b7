//! The head of a sealed object.

use super::key::KeySetId;
use crate::err;
use crate::error::Result;

/// Its length.
pub const HEAD: usize = 112;
/// The bytes that it begins with.
pub const MAGIC: &[u8; 8] = b"PITRSEA1";

const VERSION: u8 = 1;
const CHUNK_EXPONENT: u8 = 16;

/// How the object's key is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which pair of the key set it is wrapped to.
    pub epoch: u32,
    pub key_set: KeySetId,
    /// Encapsulated X25519 key.
    pub encapsulated: [u8; 32],
    /// The object's key, encrypted.
    pub wrapped: [u8; 48],
}

impl Head {
    /// As it is stored.
    pub fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let fields: [&[u8]; 6] = [
            MAGIC,
            &[VERSION, CHUNK_EXPONENT, 0, 0],
            &self.epoch.to_le_bytes(),
            &self.key_set.0,
            &self.encapsulated,
            &self.wrapped,
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The key set that a head of any version names.
    pub fn key_set_of(bytes: &[u8; HEAD]) -> KeySetId {
        let id = bytes.get(16..).and_then(|rest| rest.first_chunk());
        KeySetId(id.copied().unwrap_or_default())
    }

    /// # Errors
    /// `Damaged` when it is none, `Unsupported` for another version.
    pub fn decode(bytes: &[u8; HEAD]) -> Result<Head> {
        let (magic, rest) = bytes.split_at(8);
        if magic != MAGIC {
            return Err(err!(Damaged, "the head of the sealed object is damaged"));
        }
        let fixed = rest.first_chunk::<4>();
        if fixed != Some(&[VERSION, CHUNK_EXPONENT, 0, 0]) {
            return Err(err!(Unsupported, "the object is sealed in another way")
                .hint("Use the version of pitr that wrote it, or a newer one."));
        }
        let field = |at: usize| bytes.get(at..).unwrap_or_default();
        let missing = || err!(Damaged, "the head of the sealed object is too short");
        Ok(Head {
            epoch: u32::from_le_bytes(*field(12).first_chunk().ok_or_else(missing)?),
            key_set: KeySetId(*field(16).first_chunk().ok_or_else(missing)?),
            encapsulated: *field(32).first_chunk().ok_or_else(missing)?,
            wrapped: *field(64).first_chunk().ok_or_else(missing)?,
        })
    }
}
