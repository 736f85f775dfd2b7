//! Sealed objects (format, section 11): the cryptography, without I/O and without a source of randomness.
//!
//! An object's bytes are cut into chunks and encrypted under a key of its own. That key is wrapped to the public half
//! of the key set. The facts that may be known without a key stand in a foot, under the key set's MAC. A holder of the
//! MAC key can check that an object is genuine. A holder of the private half can open it.

mod aead;
pub mod envelope;
mod foot;
mod head;
mod key;
mod opener;
mod recipient;
mod sealer;
pub mod share;
mod wrap;

pub use foot::{FOOT_LIMIT_BYTES, Foot, TAIL, foot_length};
pub use head::{HEAD, Head, MAGIC};
pub use key::{KeySetId, MacKey, PrivateHalf, PublicHalf, Secret32};
pub use opener::Opener;
pub use recipient::{Access, Argon2, Contents, Recipient, is_recipient_name};
pub use sealer::{Drawn, Sealer};
pub use wrap::{public_of, random_pair};

/// Raw bytes of a chunk; the last one of an object may be shorter.
pub const CHUNK: usize = 1 << 16;
/// Bytes that encryption adds to a chunk.
pub const TAG: usize = 16;
/// The epoch that every key set begins with. `pitr repo rotate` makes later ones (decision 0060).
pub const FIRST_EPOCH: u32 = 1;

/// How many chunks hold so many raw bytes: at least one, so that "nothing" is authenticated as well.
pub fn chunks(plain_bytes: u64) -> u64 {
    plain_bytes.div_ceil(CHUNK as u64).max(1)
}

/// The length of a sealed object without its foot, if it can exist.
pub fn sealed_bytes(plain_bytes: u64) -> Option<u64> {
    let chunks = chunks(plain_bytes);
    // The counter in the nonce has 32 bits.
    u32::try_from(chunks).ok()?;
    plain_bytes
        .checked_add(chunks * TAG as u64)?
        .checked_add(HEAD as u64)
}

#[cfg(test)]
mod tests;
