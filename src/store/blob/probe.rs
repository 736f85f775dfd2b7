//! Whether a service can keep what a repository promises: the contract, tried under a temporary prefix, which is removed again.

use std::sync::Arc;

use super::{BlobStore, listing};
use crate::durable::TEMPORARY_PREFIX;
use crate::err;
use crate::error::{Code, Result};
use crate::store::conformance::CLAUSES;
use crate::store::runtime::wait;

/// The promises that a repository cannot do without.
const NEEDED: [&str; 4] = [
    "an object is created once, and read back",
    "an object of several requests is created once",
    "a listing shows what was created",
    "of those who create at the same time one wins",
];

impl BlobStore {
    /// Returns a store of its own inside this one, below a temporary prefix. The janitor takes away what is left of it.
    pub fn aside(&self, nonce: u64) -> BlobStore {
        let own = &self.place.prefix;
        let prefix = format!("{own}{TEMPORARY_PREFIX}probe.{nonce:016x}");
        let client = Arc::clone(&self.place.client);
        let service = client.service.clone();
        BlobStore::within(client, &service, &self.place.bucket, &prefix, nonce)
    }

    /// Takes away everything in this place; `false` when the service refuses.
    ///
    /// # Errors
    /// Other answers than a refusal.
    pub fn clear(&self) -> Result<bool> {
        let place = Arc::clone(&self.place);
        match wait(async move { listing::clear(&place).await })? {
            Ok(()) => Ok(true),
            Err(failure) if matches!(failure.error.code(), Code::Denied | Code::Locked) => {
                Ok(false)
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// Tries the service; returns whether these credentials may delete.
    ///
    /// # Errors
    /// `Refused` when it does not keep a promise; what it says when it cannot be tried.
    pub fn probe(&self, nonce: u64) -> Result<bool> {
        let aside = self.aside(nonce);
        let needed = CLAUSES.iter().filter(|c| NEEDED.contains(&c.name));
        let mut tried = Ok(());
        for (n, clause) in needed.enumerate() {
            tried = (clause.check)(&aside, &format!("probe-{n}"));
            if tried.is_err() {
                break;
            }
        }
        let cleared = aside.clear();
        tried.map_err(|e| match e.code() {
            Code::Refused => err!(Refused, "{e}: \"{}\"", self.place.url).hint(
                "No repository was created. Archived WAL could be replaced by other bytes unnoticed. Emulators and gateways often ignore conditions; the services themselves do not.",
            ),
            _ => e,
        })?;
        cleared
    }
}
