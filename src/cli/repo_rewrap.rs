//! `pitr repo rewrap`: who may read an encrypted repository from now on. No data is touched.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Context;
use super::repo_keys::{Passphrase, to_passphrase, to_public};
use crate::config;
use crate::err;
use crate::error::{Error, Result};
use crate::exit;
use crate::repo::keyring::{self, Keys, ReaderFile};
use crate::repo::repository::Repository;
use crate::seal::{Access, Contents, Recipient};

/// So many recipients besides the withdrawn ones must be proven.
const PROVEN_MIN: usize = 2;

/// What `pitr repo rewrap` takes.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Give access to the recipient whose .pub file this is. May be given several times
    #[arg(long, value_name = "FILE")]
    pub add: Vec<PathBuf>,

    /// Give access to a recipient with a passphrase
    #[arg(long, value_name = "NAME")]
    pub add_passphrase: Option<String>,

    #[command(flatten)]
    pub source: Passphrase,

    /// Withdraw a recipient's access. May be given several times
    #[arg(long, value_name = "NAME")]
    pub withdraw: Vec<String>,

    /// The key file of a recipient who keeps access, to prove that it opens the repository. May be given several times
    #[arg(long, value_name = "FILE")]
    pub proof: Vec<PathBuf>,
}

/// Runs the command on each repository.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    if args.add.is_empty() && args.add_passphrase.is_none() && args.withdraw.is_empty() {
        return Err(err!(Usage, "nothing is to be changed")
            .hint("Give access with --add FILE.pub or --add-passphrase NAME, take it with --withdraw NAME."));
    }
    let settings = cx.session.settings()?;
    let mut answers = Vec::new();
    for configured in &settings.repositories {
        let repository = cx.session.open(configured)?;
        let names = rewrap(args, configured, &repository, cx)
            .map_err(|e| e.context(format!("repository \"{}\"", configured.name)))?;
        answers.push((configured.name.clone(), names));
    }
    if cx.out.is_json() {
        let answers = answers.iter().map(
            |(name, recipients)| serde_json::json!({ "name": name, "recipients": recipients }),
        );
        let answers: Vec<_> = answers.collect();
        cx.out
            .json(&serde_json::json!({ "repositories": answers }))?;
        return Ok(exit::SUCCESS);
    }
    for (name, recipients) in &answers {
        let recipients = recipients.join(", ");
        cx.out
            .line(&format!("Repository {name} is read by: {recipients}"))?;
    }
    Ok(exit::SUCCESS)
}

/// Gives first, takes last: killed in between, there are more recipients than wanted, never fewer.
fn rewrap(
    args: &Args,
    configured: &config::Repository,
    repository: &Repository,
    cx: &Context,
) -> Result<Vec<String>> {
    let Some(id) = &repository.marker().key_set else {
        return Err(err!(Refused, "it is not encrypted"));
    };
    let from = configured.encryption.as_ref();
    let keys = Keys::load(repository.store(), id.parse()?, from)?;
    let mut proven: BTreeSet<String> = keys.recipient.into_iter().collect();
    let (Some(private), Some(mac)) = (keys.private, keys.mac) else {
        return Err(err!(Key, "no key that reads it is configured").hint(
            "Whoever gives or takes access must have it: configure key_file or a passphrase.",
        ));
    };
    let contents = Contents { private, mac };
    give(args, repository, &contents, &mut proven, cx)?;
    if !args.withdraw.is_empty() {
        prove(args, repository, &contents, &mut proven)?;
        withdraw(args, repository, &proven)?;
    }
    keyring::recipient_names(repository.store())
}

fn give(
    args: &Args,
    repository: &Repository,
    contents: &Contents,
    proven: &mut BTreeSet<String>,
    cx: &Context,
) -> Result<()> {
    let mut added: Vec<Recipient> = Vec::new();
    for path in &args.add {
        added.push(to_public(contents, path)?);
    }
    for recipient in &added {
        give_once(repository, contents, recipient)?;
    }
    let Some(name) = &args.add_passphrase else {
        return Ok(());
    };
    let passphrase = args.source.read(cx)?;
    give_once(
        repository,
        contents,
        &to_passphrase(contents, name, &passphrase)?,
    )?;
    let stored = keyring::recipient(repository.store(), name)?;
    let stored = stored.ok_or_else(|| err!(ReadBack, "recipient \"{name}\" is gone"))?;
    stored.open(&Access::Passphrase(&passphrase))?;
    proven.insert(name.clone());
    Ok(())
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
    args: &Args,
    repository: &Repository,
    contents: &Contents,
    proven: &mut BTreeSet<String>,
) -> Result<()> {
    for path in &args.proof {
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

fn withdraw(args: &Args, repository: &Repository, proven: &BTreeSet<String>) -> Result<()> {
    let store = repository.store();
    let there = keyring::recipient_names(store)?;
    if let Some(unknown) = args.withdraw.iter().find(|n| !there.contains(n)) {
        return Err(
            err!(NotFound, "there is no recipient \"{unknown}\"").hint(format!(
                "Nothing was withdrawn. Recipients: {}",
                there.join(", ")
            )),
        );
    }
    let stay = |name: &&String| there.contains(name) && !args.withdraw.contains(name);
    let staying: Vec<&String> = proven.iter().filter(stay).collect();
    if staying.len() < PROVEN_MIN {
        return Err(too_few(&staying));
    }
    for name in &args.withdraw {
        keyring::withdraw(store, name)?;
    }
    Ok(())
}

fn too_few(staying: &[&String]) -> Error {
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
