//! Who can read the epochs of an encrypted repository, as far as its own keys tell.

use crate::error::Result;
use crate::repo::epochs::{self, Epoch};
use crate::repo::keyring;
use crate::repo::repository::Repository;
use crate::seal::{FIRST_EPOCH, MacKey, Recipient};
use crate::store::Store;

/// Who reads an epoch.
pub(super) struct Readable {
    /// The number of the epoch.
    pub number: u32,
    /// The public halves that its recipients name.
    pub pairs: Vec<String>,
    /// Recipients whose keys open it.
    pub working: Vec<String>,
    /// Recipients of which the repository keeps what is damaged or forged.
    pub broken: Vec<String>,
}

impl Readable {
    /// Returns its name among others.
    pub fn name(&self, noun: &str) -> String {
        match self.number {
            FIRST_EPOCH => noun.to_owned(),
            later => format!("{noun} of epoch {later}"),
        }
    }
}

/// How many recipients can read a repository, as far as the keys of this host tell the genuine ones: of its epochs, in the one that has the
/// fewest. None where it is not encrypted.
///
/// # Errors
/// Errors of the store.
pub(super) fn working(repository: &Repository) -> Result<Option<usize>> {
    let Some((id, keys)) = repository.marker().key_set.as_ref().zip(repository.keys()) else {
        return Ok(None);
    };
    let epochs = see_epochs(repository.store(), id, keys.mac.as_ref())?;
    Ok(epochs.iter().map(|epoch| epoch.working.len()).min())
}

/// Reads who reads which epoch.
///
/// # Errors
/// Errors of the store.
pub(super) fn see_epochs(
    store: &dyn Store,
    id: &str,
    mac: Option<&MacKey>,
) -> Result<Vec<Readable>> {
    let mut counting = vec![Epoch {
        number: FIRST_EPOCH,
        pairs: Vec::new(),
    }];
    counting.extend(epochs::later(store, mac)?);
    let mut seen = Vec::new();
    for epoch in counting {
        let mut readable = Readable {
            number: epoch.number,
            pairs: epoch.pairs,
            working: Vec::new(),
            broken: Vec::new(),
        };
        let works = |r: &Recipient| r.key_set == id && mac.is_none_or(|mac| r.is_genuine(mac));
        for name in keyring::recipient_names(store, readable.number)? {
            match keyring::recipient(store, readable.number, &name) {
                Ok(Some(stored)) if works(&stored) => readable.working.push(name),
                Ok(None) => {}
                Ok(Some(_)) => readable.broken.push(name),
                Err(e) if e.is_damage() => readable.broken.push(name),
                Err(e) => return Err(e),
            }
        }
        seen.push(readable);
    }
    Ok(seen)
}
