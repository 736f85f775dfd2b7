//! HPKE (RFC 9180), base mode: X25519, HKDF-SHA256, AES-256-GCM.

use std::convert::Infallible;

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use zeroize::{Zeroize, Zeroizing};

use super::key::{PrivateHalf, PublicHalf, Secret32};
use crate::err;
use crate::error::Result;

/// Random bytes that were drawn before, for a library that draws them itself.
pub(super) struct Given([u8; 32]);

impl Given {
    pub(super) fn new(random: &Secret32) -> Given {
        Given(*random.expose())
    }
}

impl TryRng for Given {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> std::result::Result<(), Infallible> {
        // One draw of 32 bytes is all that an encapsulation or a pair takes; what would be asked besides is derived, never repeated.
        let mut stream = blake3::Hasher::new_keyed(&self.0).finalize_xof();
        stream.fill(out);
        let mut next = [0; 32];
        stream.fill(&mut next);
        self.0 = next;
        Ok(())
    }
}

impl TryCryptoRng for Given {}

impl Drop for Given {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A pair made of 32 random bytes.
pub fn random_pair(seed: &Secret32) -> (PrivateHalf, PublicHalf) {
    let (private, public) = X25519HkdfSha256::gen_keypair_with_rng(&mut Given::new(seed));
    let mut bytes = private.to_bytes();
    let mut secret = [0; 32];
    secret.copy_from_slice(&bytes);
    bytes.as_mut_slice().zeroize();
    let pair = (PrivateHalf(Secret32::new(secret)), public_bytes(&public));
    secret.zeroize();
    pair
}

fn public_bytes(public: &<X25519HkdfSha256 as Kem>::PublicKey) -> PublicHalf {
    let mut bytes = [0; 32];
    public.write_exact(&mut bytes);
    PublicHalf(bytes)
}

/// The public half of a private one.
pub fn public_of(private: &PrivateHalf) -> Result<PublicHalf> {
    let failed = |_| err!(Key, "a private key cannot be used");
    let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(private.0.expose());
    Ok(public_bytes(&X25519HkdfSha256::sk_to_pk(
        &private.map_err(failed)?,
    )))
}

/// Wraps `secret` to `public`: the encapsulated key and what was encrypted under it.
pub(super) fn wrap(
    public: &PublicHalf,
    info: &[u8],
    secret: &[u8],
    random: &Secret32,
) -> Result<([u8; 32], Vec<u8>)> {
    let failed = |_| err!(Key, "a public key cannot be used");
    let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&public.0).map_err(failed)?;
    let (encapsulated, wrapped) =
        hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            info,
            secret,
            b"",
            &mut Given::new(random),
        )
        .map_err(failed)?;
    let mut bytes = [0; 32];
    encapsulated.write_exact(&mut bytes);
    Ok((bytes, wrapped))
}

/// Opens what was wrapped; `None` when it was not wrapped to this key, or was changed.
pub(super) fn unwrap(
    private: &PrivateHalf,
    info: &[u8],
    encapsulated: &[u8; 32],
    wrapped: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(private.0.expose()).ok()?;
    let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).ok()?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private,
        &encapsulated,
        info,
        wrapped,
        b"",
    )
    .ok()
    .map(Zeroizing::new)
}
