//! Keys: what they are derived from, and that they do not stay in memory.

use std::fmt;
use std::str::FromStr;

use ring::{hkdf, hmac};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::err;
use crate::error::{Error, Result};
use crate::text;

/// The first bytes under the MAC of an object that stays plain.
const PLAIN: &[u8] = b"pitr/1/plain";

/// 32 secret bytes: wiped when they are dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret32([u8; 32]);

impl Secret32 {
    /// Takes the bytes in.
    pub fn new(bytes: [u8; 32]) -> Secret32 {
        Secret32(bytes)
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Secret32> {
        text::unhex_array(text).map(Secret32)
    }

    /// The bytes, for the one place that uses them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Secret32 {}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA256 (RFC 5869): `out` from `secret`.
pub(super) fn derive(secret: &[u8], salt: &[u8], info: &[u8], out: &mut [u8]) -> Result<()> {
    let failed = |_| err!(Internal, "a key could not be derived");
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let info = [info];
    let stream = key.expand(&info, Length(out.len())).map_err(failed)?;
    stream.fill(out).map_err(failed)
}

/// The name of a key set: what its MAC key and its public half give together, so that neither another MAC key nor another pair can stand in
/// for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeySetId(pub [u8; 16]);

impl fmt::Display for KeySetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::hex(&self.0))
    }
}

impl FromStr for KeySetId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let shown: String = text.escape_debug().take(40).collect();
            err!(Damaged, "\"{shown}\" is not the id of a key set")
        };
        text::unhex_array(text).map(KeySetId).ok_or_else(wrong)
    }
}

/// The key that makes objects genuine, and hashes of contents comparable without revealing the contents.
#[derive(Clone)]
pub struct MacKey {
    secret: Secret32,
    id: KeySetId,
    mac: hmac::Key,
    content: hmac::Key,
    chunks: Secret32,
    chunker: u64,
}

impl MacKey {
    /// Derives what is used of it, in the key set of this public half.
    pub fn new(secret: Secret32, public: &PublicHalf) -> Result<MacKey> {
        let mut id = [0; 16];
        let info = [b"pitr/1/key-set".as_slice(), &public.0].concat();
        derive(secret.expose(), b"", &info, &mut id)?;
        let key = |info: &[u8]| -> Result<hmac::Key> {
            let mut bytes = [0; 32];
            derive(secret.expose(), b"", info, &mut bytes)?;
            let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
            bytes.zeroize();
            Ok(key)
        };
        let mut chunks = [0; 32];
        derive(secret.expose(), b"", b"pitr/1/chunks", &mut chunks)?;
        let mut chunker = [0; 8];
        derive(secret.expose(), b"", b"pitr/1/chunker", &mut chunker)?;
        let made = MacKey {
            chunks: Secret32(chunks),
            chunker: u64::from_le_bytes(chunker),
            id: KeySetId(id),
            mac: key(b"pitr/1/mac")?,
            content: key(b"pitr/1/content")?,
            secret,
        };
        chunks.zeroize();
        Ok(made)
    }

    /// The hash that names a chunk of content.
    pub fn chunk(&self, bytes: &[u8]) -> [u8; 32] {
        blake3::keyed_hash(self.chunks.expose(), bytes).into()
    }

    /// The seed by which content is cut into chunks.
    pub fn chunk_seed(&self) -> u64 {
        self.chunker
    }

    /// The key set it belongs to.
    pub fn id(&self) -> KeySetId {
        self.id
    }

    /// Itself, to be wrapped or written to a key file.
    pub fn secret(&self) -> &Secret32 {
        &self.secret
    }

    /// The hash of a content as others may see it.
    pub fn content(&self, hash: &[u8; 32]) -> [u8; 32] {
        tag(&self.content, &[hash])
    }

    /// The MAC of an object that stays plain: of the key it lies under, and of what stands in it before the MAC.
    pub fn sign_plain(&self, key: &str, content: &[u8]) -> Result<[u8; 32]> {
        Ok(self.sign(&[
            PLAIN,
            &self.id.0,
            &key_length(key)?,
            key.as_bytes(),
            content,
        ]))
    }

    /// Whether `mac` is that of such an object; takes the same time whatever it is.
    pub fn is_genuine_plain(&self, key: &str, content: &[u8], mac: &[u8]) -> bool {
        key_length(key).is_ok_and(|length| {
            self.is_genuine(&[PLAIN, &self.id.0, &length, key.as_bytes(), content], mac)
        })
    }

    /// The MAC of a file of the key set on a host.
    pub fn sign_file(&self, content: &[u8]) -> [u8; 32] {
        self.sign(&[content])
    }

    /// The MAC of `parts`, one behind the other.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        tag(&self.mac, parts)
    }

    /// Whether `mac` is that of `parts`; takes the same time whatever it is.
    pub(super) fn is_genuine(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        let whole = parts.concat();
        hmac::verify(&self.mac, &whole, mac).is_ok()
    }
}

fn key_length(key: &str) -> Result<[u8; 2]> {
    u16::try_from(key.len())
        .map(u16::to_le_bytes)
        .map_err(|_| err!(Internal, "the key of an object is too long"))
}

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(context.sign().as_ref()) {
        *to = *from;
    }
    out
}

/// The public half of a key pair: objects are sealed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicHalf(pub [u8; 32]);

/// The private half of a key pair: it opens sealed objects.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateHalf(pub Secret32);
