//! Access to an encrypted repository, given and withdrawn. No data is touched.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::keys::{Passphrase, to_passphrase, to_public};
use super::session::Session;
use crate::config;
use crate::err;
use crate::error::{Error, Result};
use crate::repo::keyring::{self, Keys, ReaderFile};
use crate::repo::repository::Repository;
use crate::seal::{Access, Contents, Recipient};

/// So many recipients besides the withdrawn ones must be proven.
pub(super) const PROVEN_MIN: usize = 2;

/// The operator's request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The .pub files of recipients who get access.
    pub add: Vec<PathBuf>,
    /// A recipient who gets access by a passphrase.
    pub add_passphrase: Option<String>,
    /// The place of that passphrase.
    pub source: Passphrase,
    /// Recipients whose access is withdrawn.
    pub withdraw: Vec<String>,
    /// Key files of recipients who keep access.
    pub proof: Vec<PathBuf>,
}

impl Asked {
    /// Requires that something is to be changed.
    pub(super) fn check(&self) -> Result<()> {
        match self.add.is_empty() && self.add_passphrase.is_none() && self.withdraw.is_empty() {
            true => Err(err!(Usage, "nothing is to be changed")
                .hint("Give access with --add FILE.pub or --add-passphrase NAME, take it with --withdraw NAME.")),
            false => Ok(()),
        }
    }
}

/// A repository, and who reads it.
#[derive(Debug, Serialize)]
pub struct Readers {
    /// The repository.
    pub name: String,
    /// Its recipients.
    pub recipients: Vec<String>,
}

/// Changes the recipients of each repository.
///
/// # Errors
/// `Usage` when nothing is to be changed; `Key` without a key that reads; `Refused` when too few recipients would be proven.
pub fn run(session: &Session, asked: &Asked) -> Result<Vec<Readers>> {
    asked.check()?;
    let settings = session.settings()?;
    let one = |configured: &config::Repository| {
        let repository = session.open(configured)?;
        let recipients = rewrap(asked, configured, &repository, session)
            .map_err(|e| e.context(format!("repository \"{}\"", configured.name)))?;
        Ok(Readers {
            name: configured.name.clone(),
            recipients,
        })
    };
    settings.repositories.iter().map(one).collect()
}

/// Gives first, takes last: killed in between, there are more recipients than wanted, never fewer.
fn rewrap(
    asked: &Asked,
    configured: &config::Repository,
    repository: &Repository,
    session: &Session,
) -> Result<Vec<String>> {
    let Some(id) = &repository.marker().key_set else {
        return Err(err!(Refused, "it is not encrypted"));
    };
    keyring::check_epochs(repository.store())?;
    let from = configured.encryption.as_ref();
    let keys = Keys::load(repository.store(), id.parse()?, from)?;
    let mut proven: BTreeSet<String> = keys.recipient.into_iter().collect();
    let (Some(private), Some(mac)) = (keys.private, keys.mac) else {
        return Err(err!(Key, "no key that reads it is configured").hint(
            "Only a recipient who has access can give it or withdraw it: configure key_file, key_command or a passphrase.",
        ));
    };
    let contents = Contents { private, mac };
    give(asked, repository, &contents, &mut proven, session)?;
    if !asked.withdraw.is_empty() {
        prove(asked, repository, &contents, &mut proven)?;
        withdraw(asked, repository, &proven)?;
    }
    keyring::recipient_names(repository.store())
}

fn give(
    asked: &Asked,
    repository: &Repository,
    contents: &Contents,
    proven: &mut BTreeSet<String>,
    session: &Session,
) -> Result<()> {
    let mut added: Vec<Recipient> = Vec::new();
    for path in &asked.add {
        added.push(to_public(contents, path)?);
    }
    for recipient in &added {
        give_once(repository, contents, recipient)?;
    }
    let Some(name) = &asked.add_passphrase else {
        return Ok(());
    };
    let passphrase = asked.source.read(session)?;
    give_once(
        repository,
        contents,
        &to_passphrase(contents, name, &passphrase)?,
    )?;
    let stored = keyring::recipient(repository.store(), name)?;
    read_back(stored, name, &passphrase)?;
    proven.insert(name.clone());
    Ok(())
}

/// Requires that what was stored for a passphrase opens by it.
pub(super) fn read_back(stored: Option<Recipient>, name: &str, passphrase: &[u8]) -> Result<()> {
    let stored = stored.ok_or_else(|| err!(ReadBack, "recipient \"{name}\" is gone"))?;
    stored.open(&Access::Passphrase(passphrase)).map(|_| ())
}

/// Given before, by a run that was killed, it stays as it is: what is wrapped differs each time, what it opens does not.
fn give_once(repository: &Repository, contents: &Contents, recipient: &Recipient) -> Result<()> {
    let store = repository.store();
    let is_same = |stored: &Recipient| {
        stored.is_genuine(&contents.mac)
            && stored.public_key.is_some()
            && stored.public_key == recipient.public_key
    };
    match keyring::recipient(store, &recipient.recipient)? {
        Some(stored) if is_same(&stored) => Ok(()),
        _ => keyring::give_access(store, recipient),
    }
}

/// Opens what the repository keeps for those whose key files are at hand.
fn prove(
    asked: &Asked,
    repository: &Repository,
    contents: &Contents,
    proven: &mut BTreeSet<String>,
) -> Result<()> {
    for path in &asked.proof {
        let file = ReaderFile::read(path)?;
        let name = &file.recipient;
        let stored = keyring::recipient(repository.store(), name)?;
        let stored = stored.ok_or_else(|| err!(Key, "recipient \"{name}\" has no access"))?;
        let opened = stored.open(&Access::Key(&file.private(path)?))?;
        if opened.private != contents.private || opened.mac.id() != contents.mac.id() {
            return Err(err!(Key, "recipient \"{name}\" opens another key set"));
        }
        proven.insert(name.clone());
    }
    Ok(())
}

fn withdraw(asked: &Asked, repository: &Repository, proven: &BTreeSet<String>) -> Result<()> {
    let store = repository.store();
    let there = keyring::recipient_names(store)?;
    if let Some(unknown) = asked.withdraw.iter().find(|n| !there.contains(n)) {
        return Err(
            err!(NotFound, "there is no recipient \"{unknown}\"").hint(format!(
                "Nothing was withdrawn. Recipients: {}",
                there.join(", ")
            )),
        );
    }
    let stay = |name: &&String| there.contains(name) && !asked.withdraw.contains(name);
    let staying: Vec<&String> = proven.iter().filter(stay).collect();
    if staying.len() < PROVEN_MIN {
        return Err(too_few(&staying));
    }
    for name in &asked.withdraw {
        keyring::withdraw(store, name)?;
    }
    Ok(())
}

pub(super) fn too_few(staying: &[&String]) -> Error {
    let names: Vec<&str> = staying.iter().map(|n| n.as_str()).collect();
    let shown = match names.as_slice() {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    err!(
        Refused,
        "{PROVEN_MIN} recipients who keep access must be proven; proven so far: {shown}"
    )
    .hint("Nothing was withdrawn. The configured key or passphrase counts; show the others' key files with --proof FILE.")
}
