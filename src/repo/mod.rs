//! The meaning of a repository's keys: format 1, `docs/repository-format.md`.
//!
//! The page is the authority; a change here that it does not say is a defect.

#[cfg(feature = "full")]
pub mod audit;
#[cfg(feature = "full")]
pub mod audit_chain;
#[cfg(feature = "full")]
pub mod catalog;
#[cfg(feature = "full")]
pub mod claim;
pub mod clock;
pub mod container;
#[cfg(test)]
pub(crate) mod crafted;
pub mod decision;
#[cfg(all(test, feature = "full"))]
mod decision_tests;
#[cfg(feature = "full")]
pub mod deletion;
#[cfg(feature = "full")]
pub mod drilled;
#[cfg(feature = "full")]
pub mod epochs;
#[cfg(feature = "full")]
pub mod erasure;
pub mod event;
mod evidence;
#[cfg(feature = "full")]
pub mod halves;
pub mod healed;
pub mod id;
pub mod json;
#[cfg(feature = "full")]
pub mod kept;
#[cfg(feature = "full")]
pub mod kept_open;
#[cfg(feature = "full")]
pub mod key_command;
#[cfg(feature = "full")]
pub mod key_kms;
#[cfg(feature = "full")]
pub mod keyring;
pub mod layout;
pub mod lives;
#[cfg(feature = "full")]
pub mod log_keys;
mod lz4;
pub mod mark;
#[cfg(feature = "full")]
pub mod portion;
pub mod relations;
pub mod repository;
pub mod root;
#[cfg(feature = "full")]
pub mod run_claim;
pub mod runbook;
#[cfg(feature = "full")]
pub mod runs;
mod same_bytes;
pub mod scope;
#[cfg(feature = "full")]
pub mod sealed;
#[cfg(feature = "full")]
pub mod set_mark;
#[cfg(feature = "full")]
pub mod slot_map;
#[cfg(feature = "full")]
pub mod source;
#[cfg(feature = "full")]
pub mod stored_log;
pub mod trimmed;
pub mod varint;
pub mod wal_aware_lz4;
pub mod wal_proof;
#[cfg(feature = "full")]
mod writer_file;

use crate::config;
use crate::error::Result;
use crate::store;
use repository::Repository;

/// Opens the repository at `place`; `nonce` is random, for temporary names.
///
/// # Errors
/// `NoRepository` when there is none; what the store says.
pub fn open(place: &config::Repository, nonce: u64) -> Result<Repository> {
    Repository::open_with(store::open(place, nonce)?, place.encryption.as_ref())
}

/// As [`open`], for the WAL that a server offers: a host that seals with files of its own runs no command for that, and is one that only writes.
///
/// # Errors
/// Those of [`open`].
pub fn open_to_archive(place: &config::Repository, nonce: u64) -> Result<Repository> {
    let encryption = place.encryption.as_ref();
    let late = encryption.filter(|from| from.opens_later());
    let sealing = late.map(config::Encryption::without_helpers);
    Repository::open_with(store::open(place, nonce)?, sealing.as_ref().or(encryption))
}

/// As [`open`], with the bytes of objects at a pace. Whatever archives WAL, receives it or fetches it for recovery takes [`open`].
///
/// # Errors
/// Those of [`open`].
#[cfg(feature = "full")]
pub fn open_at_pace(
    place: &config::Repository,
    nonce: u64,
    pace: std::sync::Arc<store::pace::Pace>,
) -> Result<Repository> {
    let store = store::open(place, nonce)?;
    let store: Box<dyn store::Store> = match pace.is_free() {
        true => store,
        false => Box::new(store::pace::store::PacedStore::new(store, pace)),
    };
    Repository::open_with(store, place.encryption.as_ref())
}
