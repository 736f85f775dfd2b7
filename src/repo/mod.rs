//! What the keys of a repository mean: format 1, `docs/repository-format.md`.
//!
//! The page is the authority; a change here that it does not say is a defect.

pub mod alike;
pub mod backup;
#[cfg(feature = "full")]
pub mod claim;
pub mod clock;
pub mod container;
pub mod decision;
#[cfg(all(test, feature = "full"))]
mod decision_tests;
#[cfg(feature = "full")]
pub mod deletion;
#[cfg(feature = "full")]
pub mod edge;
pub mod event;
mod evidence;
#[cfg(feature = "full")]
pub mod facts;
#[cfg(feature = "full")]
mod feeder;
pub mod increment;
pub mod index;
pub mod indexer;
#[cfg(feature = "full")]
pub mod inventory;
pub mod json;
#[cfg(feature = "full")]
pub mod keyring;
pub mod layout;
pub mod link;
#[cfg(test)]
mod link_tests;
pub mod lives;
mod lz4;
mod outline;
#[cfg(feature = "full")]
pub mod presence;
pub mod remnant;
pub mod repository;
#[cfg(feature = "full")]
pub mod rollup;
#[cfg(feature = "full")]
pub mod rollup_cache;
pub mod run;
mod same_bytes;
#[cfg(feature = "full")]
pub mod sealed;
#[cfg(feature = "full")]
pub mod stored_wal;
#[cfg(feature = "full")]
pub mod survey;
pub mod tail;
pub mod varint;
pub mod wal_proof;

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
