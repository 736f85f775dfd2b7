//! The epochs of a key set, as a repository shows them (decision 0060). Nothing that it shows moves a host that seals.

use super::keyring::{Keys, recipient, recipient_names};
use super::scope;
use crate::err;
use crate::error::{Error, Result};
use crate::seal::{FIRST_EPOCH, MacKey, Recipient};
use crate::store::Store;
use crate::text;

/// So many later epochs are looked at. Each is some requests, and a stranger may have made thousands of names.
const EPOCHS_READ: usize = 64;
/// So many recipients of an epoch are read to find one that counts.
const RECIPIENTS_READ: usize = 64;

/// The epochs of which there is an object, whoever made it; sorted, the first one always.
pub fn shown(store: &dyn Store) -> Result<Vec<u32>> {
    let listed = store.list(scope::KEYS)?;
    let number = |name: &str| {
        let number: u32 = name.parse().ok()?;
        (number.to_string() == name && number > FIRST_EPOCH).then_some(number)
    };
    let later = listed
        .iter()
        .filter(|l| l.is_prefix)
        .filter_map(|l| number(&l.name));
    let mut epochs = vec![FIRST_EPOCH];
    for epoch in later {
        // The directory of an epoch that was taken back stays in a directory.
        let prefix = format!("{}/{epoch}", scope::KEYS);
        if epochs.len() > EPOCHS_READ || !store.list(&prefix)?.is_empty() {
            epochs.push(epoch);
        }
    }
    epochs.sort_unstable();
    Ok(epochs)
}

/// The later epochs that count, each with the public halves that its recipients name: one, unless something is wrong. Without the MAC key
/// everybody is believed.
///
/// # Errors
/// `Refused` when there are too many to look at; what the store says.
pub fn later(store: &dyn Store, mac: Option<&MacKey>) -> Result<Vec<Epoch>> {
    let mut found = Vec::new();
    let shown = shown(store)?;
    let later = shown.iter().filter(|epoch| **epoch != FIRST_EPOCH);
    if later.clone().count() > EPOCHS_READ {
        return Err(err!(
            Refused,
            "\"{}\" shows {} epochs of its key set",
            store.location(),
            shown.len()
        )
        .hint(format!("Nobody rotates so often. Delete those below {}/ that no pitr repo rotate of yours has made.", scope::KEYS)));
    }
    for epoch in later {
        let seen = Epoch::look(store, *epoch, mac)?;
        if seen.counts() {
            found.push(seen);
        }
    }
    Ok(found)
}

/// The numbers of the epochs that count, sorted: the first one, and later ones.
///
/// # Errors
/// Those of [`later`].
pub fn counting(store: &dyn Store, mac: Option<&MacKey>) -> Result<Vec<u32>> {
    let later = later(store, mac)?;
    let later = later.iter().map(|epoch| epoch.number);
    Ok(std::iter::once(FIRST_EPOCH).chain(later).collect())
}

/// A later epoch, as the recipients of a repository tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    pub number: u32,
    /// The public halves that recipients name who count, sorted.
    pub pairs: Vec<String>,
}

impl Epoch {
    /// Reads its recipients.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn look(store: &dyn Store, number: u32, mac: Option<&MacKey>) -> Result<Epoch> {
        let mut pairs = Vec::new();
        let names = recipient_names(store, number)?;
        for name in names.iter().take(RECIPIENTS_READ) {
            let stored = match recipient(store, number, name) {
                Err(e) if e.is_damage() => continue,
                other => other?,
            };
            let counts = |stored: &Recipient| mac.is_none_or(|mac| stored.is_of(mac));
            pairs.extend(stored.filter(counts).and_then(|stored| stored.public_half));
        }
        pairs.sort();
        pairs.dedup();
        Ok(Epoch { number, pairs })
    }

    /// Whether somebody made it who holds the MAC key.
    pub fn counts(&self) -> bool {
        !self.pairs.is_empty()
    }
}

/// A recipient who cannot read an epoch.
pub fn no_access(store: &dyn Store, epoch: u32, name: &str) -> Error {
    err!(
        Key,
        "\"{}\" has no keys of epoch {epoch} for recipient \"{name}\"",
        store.location()
    )
    .hint("It reads what was sealed in the epochs that it has keys of. Somebody who has access to all gives it: pitr repo rewrap --add FILE.pub. A repository that lacks the epoch gets it by pitr repo rotate.")
}

/// How the epoch in which a host seals fits those of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sealing {
    /// It is the newest one.
    Newest(u32),
    /// The repository has a later one.
    Former {
        /// The epoch of the host's file.
        own: u32,
        /// The newest epoch of the repository.
        newest: u32,
    },
    /// The repository has no such epoch, or another pair in it.
    Unreadable {
        /// The epoch of the host's file.
        own: u32,
        /// The newest epoch of the repository.
        newest: u32,
    },
    /// The host has a recipient's key alone, and the repository was rotated.
    Nowhere {
        /// The newest epoch of the repository.
        newest: u32,
    },
}

/// Compares the keys of a host with the later epochs of a repository; none on a host that seals nothing.
pub fn sealing(keys: &Keys, later: &[Epoch]) -> Option<Sealing> {
    let newest = later.last().map_or(FIRST_EPOCH, |epoch| epoch.number);
    let (own, half) = keys.public?;
    if !keys.is_of_file {
        return Some(match newest {
            FIRST_EPOCH => Sealing::Newest(newest),
            newest => Sealing::Nowhere { newest },
        });
    }
    let half = text::hex(&half.0);
    let has_pair = |epoch: &Epoch| epoch.number == own && epoch.pairs.contains(&half);
    let is_readable = own == FIRST_EPOCH || later.iter().any(has_pair);
    Some(match (newest > own, is_readable) {
        (true, _) => Sealing::Former { own, newest },
        (false, false) => Sealing::Unreadable { own, newest },
        (false, true) => Sealing::Newest(own),
    })
}
