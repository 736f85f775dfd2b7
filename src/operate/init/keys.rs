//! The recipients of a repository that is encrypted from its first object on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::Encryption;
use crate::err;
use crate::error::Result;
use crate::repo::keyring::{self, WriterFile};
use crate::repo::scope;
use crate::seal::{FIRST_EPOCH, KeySetId, MacKey, Recipient};
use crate::store::Store;

/// A key set, and what its recipients open.
pub(super) struct KeySet {
    pub(super) id: KeySetId,
    mac: MacKey,
    recipients: Vec<Recipient>,
}

impl KeySet {
    /// Reads the writer's file; with a single recipient where one is enough.
    pub(super) fn read(from: &Encryption, is_one_enough: bool) -> Result<KeySet> {
        let Some(path) = &from.key_set else {
            return Err(err!(Config, "no key set is configured for the new repository")
                .hint("Make one with pitr repo keygen, and name its writer.key as key_set in [repositories.NAME.encryption]."));
        };
        let file = WriterFile::read(path)?;
        let (_, mac) = file.keys(path)?;
        let recipients = file.recipients().to_vec();
        if let Some(strange) = recipients.iter().find(|r| !r.is_genuine(&mac)) {
            return Err(err!(
                Key,
                "recipient \"{}\" in \"{}\" is not of this key set",
                strange.recipient,
                path.display()
            ));
        }
        let counts = (FIRST_EPOCH..=file.epoch()).map(|epoch| file.recipients_of(epoch).count());
        let fewest = counts.min().unwrap_or(0);
        let is_enough = fewest > 1 || (fewest == 1 && is_one_enough);
        if !is_enough {
            return Err(err!(
                Refused,
                "the key set has {fewest} recipient, and two are needed"
            )
            .hint("Nothing was written. When the only key is lost, everything is. Make a key set with two recipients, one of them for the safe; --one-recipient does without."));
        }
        Ok(KeySet {
            id: mac.id(),
            mac,
            recipients,
        })
    }

    /// Stores what each recipient opens.
    pub(super) fn give_access(&self, store: &dyn Store) -> Result<()> {
        for recipient in &self.recipients {
            keyring::give_access(store, recipient)?;
        }
        Ok(())
    }

    /// Whether a repository has lost the keys of all recipients, so that nobody opens it.
    pub(super) fn is_lost(&self, store: &dyn Store) -> Result<bool> {
        Ok(!keyring::has_genuine(store, FIRST_EPOCH, &self.mac)?)
    }

    /// Stores again what each recipient opens, of the epochs that nobody opens. The others were withdrawn where a genuine recipient is left.
    pub(super) fn give_back(&self, store: &dyn Store) -> Result<Vec<String>> {
        let mut lost = BTreeSet::new();
        for epoch in self.recipients.iter().map(|r| r.epoch) {
            if !lost.contains(&epoch) && !keyring::has_genuine(store, epoch, &self.mac)? {
                lost.insert(epoch);
            }
        }
        let mut given = BTreeSet::new();
        for recipient in self.recipients.iter().filter(|r| lost.contains(&r.epoch)) {
            // Nothing that is there is genuine.
            keyring::withdraw(store, recipient.epoch, &recipient.recipient)?;
            keyring::give_access(store, recipient)?;
            given.insert(recipient.recipient.clone());
        }
        Ok(given.into_iter().collect())
    }

    /// The files that this makes in a directory, highest first.
    pub(super) fn made_in(&self, path: &Path) -> Vec<PathBuf> {
        let mut made = vec![path.join(scope::KEYS)];
        let epochs: BTreeSet<u32> = self.recipients.iter().map(|r| r.epoch).collect();
        let folder = |epoch: &u32| path.join(scope::recipients(*epoch));
        made.extend(epochs.iter().map(folder));
        let files = self.recipients.iter();
        made.extend(files.map(|r| folder(&r.epoch).join(&r.recipient)));
        made
    }
}
