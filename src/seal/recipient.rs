//! The private half and the MAC key, wrapped for those who may read.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::key::{KeySetId, MacKey, PrivateHalf, PublicHalf, Secret32};
use super::{FIRST_EPOCH, wrap};
use crate::err;
use crate::error::{Error, Result};
use crate::text;

const DOMAIN: &[u8] = b"pitr/1/recipient";
/// The accepted parameters of a stored recipient, checked before memory is taken for it. New recipients keep these
/// limits.
const MEMORY_KIB: std::ops::RangeInclusive<u32> = 8 << 10..=64 << 10;
const PASSES: std::ops::RangeInclusive<u32> = 1..=16;
const LANES: std::ops::RangeInclusive<u32> = 1..=4;

/// `keys/<epoch>/<recipient>`: the wrapped keys, which a recipient opens with a private key or a passphrase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// 32 hexadecimal digits.
    pub key_set: String,
    /// Which pair of the key set.
    pub epoch: u32,
    /// The recipient's name.
    pub recipient: String,
    /// A recipient with a pair: its public half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The encapsulated key that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulated: Option<String>,
    /// A recipient with a passphrase: how its key is derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argon2id: Option<Argon2>,
    /// Private half and MAC key, encrypted.
    pub wrapped: String,
    /// The public half of a later epoch: the id of the key set covers that of the first one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_half: Option<String>,
    /// The key set's MAC over all other fields.
    pub mac: String,
}

/// Parameters of argon2id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argon2 {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    pub lanes: u32,
    /// 32 hexadecimal digits.
    pub salt: String,
}

impl Argon2 {
    /// Returns the parameters of a recipient that is made today; `salt` is random.
    pub fn usual(salt: [u8; 16]) -> Argon2 {
        Argon2 {
            memory_kib: *MEMORY_KIB.end(),
            passes: 4,
            lanes: 1,
            salt: text::hex(&salt),
        }
    }

    /// The key that the passphrase gives.
    fn key(&self, passphrase: &[u8]) -> Result<Secret32> {
        let salt: Option<[u8; 16]> = text::unhex_array(&self.salt);
        let is_sane = MEMORY_KIB.contains(&self.memory_kib)
            && PASSES.contains(&self.passes)
            && LANES.contains(&self.lanes);
        let (Some(salt), true) = (salt, is_sane) else {
            return Err(err!(
                Damaged,
                "the recipient asks for {} KiB of memory and {} passes, which no recipient of pitr does",
                self.memory_kib,
                self.passes
            ));
        };
        let failed = |_| err!(Internal, "the passphrase could not be made a key");
        let params = argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(32));
        let argon2 = argon2::Argon2::new(
            argon2::Algorithm::Argon2id,
            argon2::Version::V0x13,
            params.map_err(failed)?,
        );
        let mut key = [0; 32];
        let derived = argon2.hash_password_into(passphrase, &salt, &mut key);
        let secret = Secret32::new(key);
        key.zeroize();
        derived.map_err(failed).map(|()| secret)
    }
}

/// The means to open a recipient.
pub enum Access<'a> {
    /// The private key of the recipient's own pair.
    Key(&'a PrivateHalf),
    /// A passphrase.
    Passphrase(&'a [u8]),
}

/// The keys that a recipient gives access to.
#[derive(Clone)]
pub struct Contents {
    /// Opens objects.
    pub private: PrivateHalf,
    /// Proves them.
    pub mac: MacKey,
    /// The epoch of the private half.
    pub epoch: u32,
}

/// Whether a recipient may be called so: it is a part of a key, and names a file.
pub fn is_recipient_name(name: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 63
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(|b| first(b) || b == b'-' || b == b'_')
}

fn info(key_set: KeySetId, epoch: u32, name: &str) -> Vec<u8> {
    [DOMAIN, &key_set.0, &epoch.to_le_bytes(), name.as_bytes()].concat()
}

impl Contents {
    /// The key set of this pair and this MAC key.
    pub fn new(private: PrivateHalf, mac: Secret32) -> Result<Contents> {
        let mac = MacKey::new(mac, &wrap::public_of(&private)?)?;
        Ok(Contents {
            private,
            mac,
            epoch: FIRST_EPOCH,
        })
    }

    /// The public half, where the id of the key set does not cover it.
    fn later_half(&self) -> Result<Option<String>> {
        match self.epoch {
            FIRST_EPOCH => Ok(None),
            _ => Ok(Some(text::hex(&wrap::public_of(&self.private)?.0))),
        }
    }

    fn plain(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([*self.private.0.expose(), *self.mac.secret().expose()].concat())
    }

    /// Wraps it for a recipient with a pair; `random` is fresh.
    pub fn wrap_to_key(
        &self,
        name: &str,
        public: &PublicHalf,
        random: &Secret32,
    ) -> Result<Recipient> {
        let info = info(self.mac.id(), self.epoch, name);
        let (encapsulated, wrapped) = wrap::wrap(public, &info, &self.plain(), random)?;
        let recipient = Recipient {
            public_key: Some(text::hex(&public.0)),
            encapsulated: Some(text::hex(&encapsulated)),
            argon2id: None,
            ..self.unsigned(name, &wrapped)?
        };
        Ok(recipient.signed(&self.mac))
    }

    /// Wraps it for a recipient with a passphrase; the salt in `argon2` is fresh.
    pub fn wrap_to_passphrase(
        &self,
        name: &str,
        passphrase: &[u8],
        argon2: Argon2,
    ) -> Result<Recipient> {
        let info = info(self.mac.id(), self.epoch, name);
        let key = argon2.key(passphrase)?;
        let mut wrapped = self.plain();
        passphrase_key(&key)?
            .seal_in_place_append_tag(zero_nonce(), Aad::from(&info), &mut *wrapped)
            .map_err(|_| err!(Internal, "a key could not be wrapped"))?;
        let recipient = Recipient {
            argon2id: Some(argon2),
            ..self.unsigned(name, &wrapped)?
        };
        Ok(recipient.signed(&self.mac))
    }

    fn unsigned(&self, name: &str, wrapped: &[u8]) -> Result<Recipient> {
        Ok(Recipient {
            key_set: self.mac.id().to_string(),
            epoch: self.epoch,
            recipient: name.to_owned(),
            public_key: None,
            encapsulated: None,
            argon2id: None,
            wrapped: text::hex(wrapped),
            public_half: self.later_half()?,
            mac: String::new(),
        })
    }
}

fn passphrase_key(key: &Secret32) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key.expose())
        .map(LessSafeKey::new)
        .map_err(|_| err!(Internal, "a key could not be used"))
}

/// The key is used once: its salt is fresh.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl Recipient {
    /// Whether it is opened with a passphrase.
    pub fn has_passphrase(&self) -> bool {
        self.argon2id.is_some()
    }

    /// Returns the bytes that its MAC covers: every field, each with its end.
    fn fields(&self) -> Vec<u8> {
        let argon2 = self
            .argon2id
            .as_ref()
            .map(|a| format!("{},{},{},{}", a.memory_kib, a.passes, a.lanes, a.salt));
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        [
            std::str::from_utf8(DOMAIN).unwrap_or_default().to_owned(),
            self.key_set.clone(),
            self.epoch.to_string(),
            self.recipient.clone(),
            text(&self.public_key),
            text(&self.encapsulated),
            text(&argon2),
            self.wrapped.clone(),
        ]
        .into_iter()
        .chain(self.public_half.clone())
        .collect::<Vec<_>>()
        .join("\n")
        .into_bytes()
    }

    fn signed(mut self, mac: &MacKey) -> Recipient {
        self.mac = text::hex(&mac.sign(&[&self.fields()]));
        self
    }

    /// Whether a holder of the MAC key made it.
    pub fn is_genuine(&self, mac: &MacKey) -> bool {
        text::unhex_array::<32>(&self.mac)
            .is_some_and(|tag| mac.is_genuine(&[&self.fields()], &tag))
    }

    /// Opens one of the first epoch.
    ///
    /// # Errors
    /// `Key` when key or passphrase are others; `Damaged` when it is no recipient of this key set.
    pub fn open(&self, access: &Access<'_>) -> Result<Contents> {
        let (private, mac) = self.unwrap(access)?;
        let contents = Contents::new(private, mac)?;
        // Whoever only writes holds the MAC key, too; but another private half gives another id.
        let is_own = self.epoch == FIRST_EPOCH
            && contents.mac.id().to_string() == self.key_set
            && self.is_genuine(&contents.mac);
        match is_own {
            true => Ok(contents),
            false => Err(self.not_of_set()),
        }
    }

    /// Opens one of a later epoch; the first epoch has given the MAC key.
    ///
    /// # Errors
    /// `Key` when key or passphrase are others; `Damaged` when it is no recipient of this key set.
    pub fn open_later(&self, access: &Access<'_>, mac: &MacKey) -> Result<Contents> {
        // Before the passphrase costs a second.
        if !self.is_of(mac) {
            return Err(self.not_of_set());
        }
        let (private, secret) = self.unwrap(access)?;
        let public = text::hex(&wrap::public_of(&private)?.0);
        if secret != *mac.secret() || self.public_half.as_ref() != Some(&public) {
            return Err(self.not_of_set());
        }
        Ok(Contents {
            private,
            mac: mac.clone(),
            epoch: self.epoch,
        })
    }

    /// Whether a holder of the MAC key made it for this key set.
    pub fn is_of(&self, mac: &MacKey) -> bool {
        self.key_set == mac.id().to_string() && self.is_genuine(mac)
    }

    fn not_of_set(&self) -> Error {
        err!(
            Damaged,
            "recipient \"{}\": it does not hold the keys of its key set",
            self.recipient
        )
    }

    /// Private half and MAC key, as they were wrapped.
    fn unwrap(&self, access: &Access<'_>) -> Result<(PrivateHalf, Secret32)> {
        let damaged = |why: &str| err!(Damaged, "recipient \"{}\": {why}", self.recipient);
        let key_set: KeySetId = self.key_set.parse()?;
        let info = info(key_set, self.epoch, &self.recipient);
        let wrapped = self.wrapped.as_bytes();
        let wrapped: [u8; 80] = (wrapped.len() == 160)
            .then(|| text::unhex_array(&self.wrapped))
            .flatten()
            .ok_or_else(|| damaged("what is wrapped has another length"))?;
        let plain = match access {
            Access::Key(private) => {
                let encapsulated = self.encapsulated.as_deref().and_then(text::unhex_array);
                let encapsulated = encapsulated.ok_or_else(|| {
                    err!(Key, "it is opened with a passphrase, not with a key file")
                })?;
                wrap::unwrap(private, &info, &encapsulated, &wrapped)
            }
            Access::Passphrase(passphrase) => {
                let argon2 = self.argon2id.as_ref();
                let argon2 = argon2.ok_or_else(|| {
                    err!(Key, "it is opened with a key file, not with a passphrase")
                })?;
                let key = argon2.key(passphrase)?;
                let mut plain = Zeroizing::new(wrapped.to_vec());
                let opened = passphrase_key(&key)?
                    .open_in_place(zero_nonce(), Aad::from(&info), &mut plain)
                    .is_ok();
                opened.then_some(plain)
            }
        };
        let wrong = match access {
            Access::Key(_) => "the key file is not that of",
            Access::Passphrase(_) => "the passphrase is not that of",
        };
        let plain = plain.ok_or_else(|| err!(Key, "{wrong} recipient \"{}\"", self.recipient))?;
        let (private, rest) = plain
            .split_first_chunk::<32>()
            .ok_or_else(|| damaged("it is too short"))?;
        let mac = rest
            .first_chunk::<32>()
            .ok_or_else(|| damaged("it is too short"))?;
        Ok((PrivateHalf(Secret32::new(*private)), Secret32::new(*mac)))
    }
}
