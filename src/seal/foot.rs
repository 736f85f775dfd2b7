//! The foot of a sealed object: what may be known without a key, under the MAC of the key set.

use super::head::{HEAD, Head};
use super::key::MacKey;
use super::{chunks, sealed_bytes};
use crate::err;
use crate::error::Result;

/// The last bytes of an object: length of the foot, its checksum, magic.
pub const TAIL: usize = 12;
/// No foot is longer: the facts of a root name runs of packs and layers.
pub const FOOT_LIMIT_BYTES: u64 = 16 << 20;

const MAGIC: &[u8; 4] = b"PSEA";
const DOMAIN: &[u8] = b"pitr/1/foot";
/// Between facts and tail: commitment, hash of what is stored, raw length, MAC.
const FIXED: usize = 32 + 32 + 8 + 32;

/// The foot, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foot {
    /// Copy of the head, as stored.
    pub head: [u8; HEAD],
    /// The relative key that the object was made for.
    pub key: String,
    /// Facts about the object that are readable without a key: JSON.
    pub facts: Vec<u8>,
    /// Tells that an object's key is the one that the writer used.
    pub commitment: [u8; 32],
    /// BLAKE3 of head and chunks as stored.
    pub stored: [u8; 32],
    /// Raw length.
    pub plain_bytes: u64,
    mac: [u8; 32],
    /// The bytes that the MAC covers.
    signed: Vec<u8>,
}

/// The length of the foot that an object ends with; `None` when it ends with none.
pub fn foot_length(tail: &[u8; TAIL]) -> Option<u64> {
    let (length, rest) = tail.split_first_chunk::<4>()?;
    rest.ends_with(MAGIC)
        .then(|| u64::from(u32::from_le_bytes(*length)))
}

/// A foot as it is stored.
pub(super) fn encode(
    head: &[u8; HEAD],
    key: &str,
    facts: &[u8],
    commitment: &[u8; 32],
    stored: &[u8; 32],
    plain_bytes: u64,
    mac: &MacKey,
) -> Result<Vec<u8>> {
    let too_long = |_| err!(Internal, "the facts of object \"{key}\" are too long");
    let mut out = head.to_vec();
    out.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(&u32::try_from(facts.len()).map_err(too_long)?.to_le_bytes());
    out.extend_from_slice(facts);
    out.extend_from_slice(commitment);
    out.extend_from_slice(stored);
    out.extend_from_slice(&plain_bytes.to_le_bytes());
    out.extend_from_slice(&mac.sign(&[DOMAIN, &out]));
    let length = u32::try_from(out.len() + TAIL).map_err(too_long)?;
    if u64::from(length) > FOOT_LIMIT_BYTES {
        return Err(err!(Internal, "the facts of object \"{key}\" are too long"));
    }
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out.extend_from_slice(MAGIC);
    Ok(out)
}

impl Foot {
    /// Takes a foot apart; nothing of it is proven yet.
    ///
    /// # Errors
    /// `Damaged` when its bytes were changed by accident.
    pub fn decode(bytes: &[u8]) -> Result<Foot> {
        let damaged = |why: &str| err!(Damaged, "its foot is damaged: {why}");
        let short = || damaged("it is too short");
        let end = bytes.len().checked_sub(TAIL).ok_or_else(short)?;
        let (body, tail) = bytes.split_at(end);
        let (length, rest) = tail.split_first_chunk::<4>().ok_or_else(short)?;
        let crc = rest.first_chunk::<4>().ok_or_else(short)?;
        let own = crc32c::crc32c_append(crc32c::crc32c(body), length);
        if !rest.ends_with(MAGIC) || u32::from_le_bytes(*crc) != own {
            return Err(damaged("its checksum is wrong"));
        }
        if u32::from_le_bytes(*length) as usize != bytes.len() {
            return Err(damaged("its length is wrong"));
        }
        let (head, rest) = body.split_first_chunk::<HEAD>().ok_or_else(short)?;
        let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
        let length = usize::from(u16::from_le_bytes(*length));
        let (key, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        let key = std::str::from_utf8(key).map_err(|_| damaged("its key is no text"))?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (facts, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        if rest.len() != FIXED {
            return Err(damaged("its parts do not fit"));
        }
        let signed = body.len() - 32;
        let (commitment, rest) = rest.split_first_chunk::<32>().ok_or_else(short)?;
        let (stored, rest) = rest.split_first_chunk::<32>().ok_or_else(short)?;
        let (plain, mac) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        Ok(Foot {
            head: *head,
            key: key.to_owned(),
            facts: facts.to_vec(),
            commitment: *commitment,
            stored: *stored,
            plain_bytes: u64::from_le_bytes(*plain),
            mac: *mac.first_chunk().ok_or_else(short)?,
            signed: body.get(..signed).unwrap_or_default().to_vec(),
        })
    }

    /// The head that it copies.
    pub fn decoded_head(&self) -> Result<Head> {
        Head::decode(&self.head)
    }

    /// Whether a writer of the key set made it.
    pub fn is_genuine(&self, mac: &MacKey) -> bool {
        mac.is_genuine(&[DOMAIN, &self.signed], &self.mac)
    }

    /// Requires that an object of so many bytes, its foot included, can hold what this says.
    pub fn check_length(&self, object_bytes: u64, foot_bytes: u64) -> Result<()> {
        let expected = sealed_bytes(self.plain_bytes).and_then(|n| n.checked_add(foot_bytes));
        if expected == Some(object_bytes) {
            return Ok(());
        }
        Err(err!(
            Damaged,
            "it was cut or lengthened: its foot tells of {} chunks, and its {object_bytes} bytes hold others",
            chunks(self.plain_bytes)
        ))
    }
}
