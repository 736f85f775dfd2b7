//! The recipients of a secrets pair: who may read originals.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::failures::Failures;
use crate::operate::keys::to_public;
use crate::operate::session::Session;
use crate::repo::json;
use crate::repo::keyring::{
    ReaderFile, Version, Withdrawn, WriterFile, forbid_core_dumps, names_below, take_away,
};
use crate::repo::repository::Repository;
use crate::repo::scope;
use crate::seal::{Access, Contents, KeySetId, MacKey, Recipient};
use crate::store::{self, Published, Store};

/// The kind in the JSON of a recipient.
const KIND: &str = "secrets_recipient";
/// A pair has so many recipients, and so many besides the withdrawn ones must be proven.
const PROVEN_MIN: usize = 2;

/// The operator's request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The .pub files of recipients who get access.
    pub add: Vec<PathBuf>,
    /// Recipients whose access is withdrawn.
    pub withdraw: Vec<String>,
    /// Key files of recipients who keep access; the first opens the pair.
    pub keys: Vec<PathBuf>,
}

/// A repository, and who reads originals in it.
#[derive(Debug, Serialize)]
pub struct Readers {
    /// The repository.
    pub name: String,
    pub secrets_pair: String,
    pub recipients: Vec<String>,
}

/// Returns what a repository keeps for a recipient of a pair.
pub(in crate::operate) fn stored(
    store: &dyn Store,
    pair: KeySetId,
    name: &str,
) -> Result<Option<Recipient>> {
    let key = scope::secrets_recipient(&pair.to_string(), name)?;
    let read: Option<Recipient> = json::read(store, &key, KIND, json::LIMIT_BYTES)?;
    match read {
        Some(r) if r.recipient != name || r.key_set != pair.to_string() => {
            Err(err!(Damaged, "object \"{key}\" is of another recipient"))
        }
        other => Ok(other),
    }
}

/// Names of a pair's recipients, sorted.
pub(in crate::operate) fn names(store: &dyn Store, pair: KeySetId) -> Result<Vec<String>> {
    names_below(store, &scope::secrets_recipients(&pair.to_string()))
}

/// Recipients whose stored keys were made by a holder of the pair's MAC key.
fn genuine_count(store: &dyn Store, mac: &MacKey) -> Result<usize> {
    let mut count = 0;
    for name in names(store, mac.id())? {
        match stored(store, mac.id(), &name) {
            Ok(found) => count += usize::from(found.is_some_and(|one| one.is_genuine(mac))),
            Err(e) if e.code() == Code::Damaged => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count)
}

/// Stores what a recipient opens; the same key being there is fine.
pub(in crate::operate) fn give(
    store: &dyn Store,
    mac: &MacKey,
    recipient: &Recipient,
) -> Result<()> {
    let pair = mac.id();
    let name = &recipient.recipient;
    let key = scope::secrets_recipient(&pair.to_string(), name)?;
    if json::write(store, &key, KIND, recipient)? == Published::Created {
        return Ok(());
    }
    match stored(store, pair, name)? {
        Some(stored) if !stored.is_genuine(mac) => Err(err!(
            Damaged,
            "what \"{}\" has for recipient \"{name}\" was not made by a holder of the secrets' key",
            store.location()
        )
        .hint(format!(
            "Nothing was changed. Find out who wrote object \"{key}\", delete it, and repeat the command."
        ))),
        // The wrapped bytes differ each time; the keys in them do not.
        Some(stored) if stored.public_key == recipient.public_key => Ok(()),
        _ => Err(err!(
            Refused,
            "recipient \"{name}\" has keys in \"{}\" already",
            store.location()
        )
        .hint("Nothing was changed. Choose another name.")),
    }
}

/// Stores what the recipients of the host's file open, where the repository has too few of the pair.
pub(super) fn ensure(configured: &config::Repository, repository: &Repository) -> Result<()> {
    let Some(path) = configured.secrets_file() else {
        return Ok(());
    };
    let file = WriterFile::read_secrets(path)?;
    let (_, mac) = file.keys(path)?;
    let store = repository.store();
    if genuine_count(store, &mac)? >= PROVEN_MIN {
        return Ok(());
    }
    let genuine = file.recipients().iter().filter(|one| one.is_genuine(&mac));
    let count = genuine.clone().count();
    if count < PROVEN_MIN {
        return Err(err!(
            Key,
            "\"{}\" has {count} recipients of its own pair, and {PROVEN_MIN} are needed",
            path.display()
        )
        .hint("Nothing was stored. When the only key is lost, every secret is. Make a pair with two recipients: pitr repo keygen --secrets --dir DIR --recipient NAME --recipient escrow"));
    }
    let mut genuine = genuine;
    genuine.try_for_each(|recipient| give(store, &mac, recipient))
}

/// The recipients of a pair that a repository has got from another one.
#[derive(Debug, Serialize)]
pub struct Brought {
    /// The repository that gives.
    pub from: String,
    /// The repository that gets.
    pub to: String,
    pub secrets_pair: String,
    /// Recipients whose keys were copied; that would be in a dry run.
    pub copied: Vec<String>,
    /// Recipients that the giving one has alone: the other one has withdrawn them, or never had them.
    pub not_copied: Vec<String>,
}

/// Gives a repository the recipients of each secrets pair that it lacks.
///
/// A pair has two recipients at least, for a withdrawal leaves as many. A repository with two is left alone: a copy would give access back that
/// was withdrawn there.
///
/// # Errors
/// `Damaged` for an object that is no recipient of its pair; what the stores say.
pub fn bring(
    (from_name, from): (&str, &Repository),
    (to_name, to): (&str, &Repository),
    is_dry_run: bool,
) -> Result<Vec<Brought>> {
    let (from, to) = (from.store(), to.store());
    let mut brought = Vec::new();
    for pair in pairs(from)? {
        let there = names(to, pair)?;
        let mut lacking = names(from, pair)?;
        lacking.retain(|name| !there.contains(name));
        if lacking.is_empty() {
            continue;
        }
        let is_lacking = there.len() < PROVEN_MIN;
        let mut copied = lacking.iter().filter(|_| is_lacking && !is_dry_run);
        copied.try_for_each(|name| copy(from, to, pair, name))?;
        let (copied, not_copied) = match is_lacking {
            true => (lacking, Vec::new()),
            false => (Vec::new(), lacking),
        };
        brought.push(Brought {
            from: from_name.to_owned(),
            to: to_name.to_owned(),
            secrets_pair: pair.to_string(),
            copied,
            not_copied,
        });
    }
    Ok(brought)
}

/// The secrets pairs that a repository has recipients of.
pub(in crate::operate) fn pairs(store: &dyn Store) -> Result<Vec<KeySetId>> {
    let listed = store.list(scope::KEYS)?.into_iter();
    let mut pairs: Vec<KeySetId> = listed
        .filter(|found| found.is_prefix)
        .filter_map(|found| found.name.strip_prefix(scope::SECRETS)?.parse().ok())
        .collect();
    pairs.sort_unstable_by_key(ToString::to_string);
    Ok(pairs)
}

/// Copies a recipient byte by byte: a newer version may have written more into it.
fn copy(from: &dyn Store, to: &dyn Store, pair: KeySetId, name: &str) -> Result<()> {
    if stored(from, pair, name)?.is_none() {
        // Withdrawn meanwhile.
        return Ok(());
    }
    let key = scope::secrets_recipient(&pair.to_string(), name)?;
    let Some(bytes) = store::get(from, &key, json::LIMIT_BYTES)? else {
        return Ok(());
    };
    store::put(to, &key, &bytes).map(|_| ())
}

/// Opens a pair with the key file of one of its recipients.
pub(super) fn open(store: &dyn Store, pair: KeySetId, path: &Path) -> Result<(String, Contents)> {
    forbid_core_dumps()?;
    let file = ReaderFile::read(path)?;
    let name = &file.recipient;
    let recipient = stored(store, pair, name)?.ok_or_else(|| {
        err!(Key, "\"{}\" has no keys of secrets pair {pair} for recipient \"{name}\"", store.location())
            .hint("Nothing was read. Its access was withdrawn, or was never given: somebody who has access gives it with pitr config recipients --add FILE.pub.")
    })?;
    let contents = recipient.open(&Access::Key(&file.private(path)?))?;
    match contents.mac.id() == pair {
        true => Ok((name.clone(), contents)),
        false => Err(err!(
            Damaged,
            "recipient \"{name}\" opens another pair than {pair}"
        )),
    }
}

/// A repository with a secrets pair, and the keys at hand that open it.
struct Place<'a> {
    configured: &'a config::Repository,
    repository: Repository,
    pair: KeySetId,
    proven: Vec<(String, Contents)>,
    /// Recipients to be withdrawn that it has.
    withdraw: Vec<&'a String>,
}

/// Changes the recipients in each repository that has a secrets pair; returns them, and what could not be changed. Everything is looked at before
/// anything is written. Then access is given everywhere, and withdrawn afterwards; one repository in which that fails keeps no other from it.
///
/// # Errors
/// `Config` without a pair; `Key` without a key that opens it; `Refused` when too few recipients would be proven; `NotFound` for a recipient to be
/// withdrawn whom no repository has. Nothing was changed then.
pub fn run(session: &Session, asked: &Asked) -> Result<(Vec<Readers>, Failures)> {
    forbid_core_dumps()?;
    let settings = session.settings_with_repositories()?;
    let mut places = Vec::new();
    for configured in &settings.repositories {
        let place = Place::open(session, asked, configured);
        let place = place.map_err(|e| of_repository(e, configured))?;
        places.extend(place);
    }
    if places.is_empty() {
        return Err(err!(Config, "no repository has a secrets pair")
            .hint("Make one with pitr repo keygen --secrets, and name it: secrets = \"…/secrets.key\" in [repositories.NAME.encryption]."));
    }
    check_known(session, asked, &places)?;
    let mut failures = Failures::default();
    let mut done = 0;
    for (at, place) in places.iter().enumerate() {
        session.host.check_stop()?;
        let given = place.give(asked);
        given.map_err(|e| match (of_repository(e, place.configured), at) {
            (e, 0) => e,
            (e, _) => e.hint("Nothing was withdrawn, and what repositories before it were given stays. The same command goes on with the rest."),
        })?;
    }
    for place in &places {
        session.host.check_stop()?;
        match place.take(session) {
            Ok(()) => done += 1,
            Err(e) => {
                let name = &place.configured.name;
                failures.add(e, format!("change the recipients in repository \"{name}\""));
            }
        }
    }
    failures.first_if(session, done == 0)?;
    let readers = places.iter().map(Place::readers);
    Ok((readers.collect::<Result<_>>()?, failures))
}

fn of_repository(e: Error, configured: &config::Repository) -> Error {
    e.context(format!("repository \"{}\"", configured.name))
}

/// Requires that some repository has each recipient that is to be withdrawn. A run that was interrupted had withdrawn it from others: the same
/// command goes on.
fn check_known(session: &Session, asked: &Asked, places: &[Place<'_>]) -> Result<()> {
    for name in &asked.withdraw {
        let (having, lacking): (Vec<_>, Vec<_>) = places
            .iter()
            .partition(|place| place.withdraw.contains(&name));
        if having.is_empty() {
            let there = places.first().map(Place::readers).transpose()?;
            let there = there.map_or_else(String::new, |one| one.recipients.join(", "));
            return Err(err!(NotFound, "there is no recipient \"{name}\"")
                .hint(format!("Nothing was changed. Recipients: {there}")));
        }
        for place in lacking {
            session.warn(&format!(
                "there is no recipient \"{name}\" in repository \"{}\"",
                place.configured.name
            ));
        }
    }
    Ok(())
}

impl<'a> Place<'a> {
    /// Opens a repository, and its pair where something is to be changed; none where it has no pair.
    fn open(
        session: &Session,
        asked: &'a Asked,
        configured: &'a config::Repository,
    ) -> Result<Option<Place<'a>>> {
        let Some(path) = configured.secrets_file() else {
            return Ok(None);
        };
        let (_, mac) = WriterFile::read_secrets(path)?.keys(path)?;
        let repository = session.open(configured)?;
        ensure(configured, &repository)?;
        let pair = mac.id();
        let there = names(repository.store(), pair)?;
        let withdraw = asked.withdraw.iter().filter(|name| there.contains(name));
        let mut place = Place {
            configured,
            pair,
            proven: Vec::new(),
            withdraw: withdraw.collect(),
            repository,
        };
        if !asked.add.is_empty() || !asked.withdraw.is_empty() {
            place.prove(asked)?;
        }
        Ok(Some(place))
    }

    /// Opens the pair with each key at hand. One of a recipient that is to be withdrawn proves nothing where it is withdrawn already.
    fn prove(&mut self, asked: &Asked) -> Result<()> {
        let keys = self.configured.secrets_key_file().into_iter();
        for path in keys.chain(asked.keys.iter().map(PathBuf::as_path)) {
            let name = ReaderFile::read(path)?.recipient;
            if asked.withdraw.contains(&name) && !self.withdraw.contains(&&name) {
                continue;
            }
            let one = open(self.repository.store(), self.pair, path).map_err(|e| match e.code() {
                Code::Key => e.hint(
                    "Nothing was changed. Its access was withdrawn there, or was never given. Each key has to open the pair of every repository: where they have pairs of their own, change one at a time with --repository NAME.",
                ),
                _ => e,
            })?;
            self.proven.retain(|(name, _)| *name != one.0);
            self.proven.push(one);
        }
        if self.proven.is_empty() {
            return Err(err!(Key, "no key that opens the secrets pair is given").hint(
                "Nothing was changed. Only a recipient who has access can give it or withdraw it: add --secrets-key FILE.",
            ));
        }
        let proven = self.proven.iter();
        let staying = proven.filter(|(name, _)| !asked.withdraw.contains(name));
        match staying.count() {
            few if few < PROVEN_MIN && !self.withdraw.is_empty() => Err(too_few(few)),
            _ => Ok(()),
        }
    }

    fn give(&self, asked: &Asked) -> Result<()> {
        let Some((_, contents)) = self.proven.first() else {
            return Ok(());
        };
        let store = self.repository.store();
        let mut added = asked.add.iter();
        added.try_for_each(|path| give(store, &contents.mac, &to_public(contents, path)?))
    }

    fn take(&self, session: &Session) -> Result<()> {
        let mut refused = None;
        // One that the store keeps does not keep the others.
        for name in &self.withdraw {
            match withdraw_one(self.repository.store(), self.pair, name) {
                Ok(Withdrawn::Hidden(version)) => {
                    let words = format!("secrets pair {}", self.pair);
                    let place = (&self.configured.name, &words);
                    session.warn(&kept_version(place, name, (version, NEXT)));
                }
                Ok(_) => {}
                Err(e) => refused = refused.or(Some(e.context(format!("withdraw \"{name}\"")))),
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn readers(&self) -> Result<Readers> {
        Ok(Readers {
            name: self.configured.name.clone(),
            secrets_pair: self.pair.to_string(),
            recipients: names(self.repository.store(), self.pair)?,
        })
    }
}

/// The step after access to a secrets pair was withdrawn, and a version of it is left.
pub(in crate::operate) const NEXT: &str =
    "make a new pair: pitr repo keygen --secrets, and change the secrets";

/// Tells that a store keeps a version of what a recipient opens, or may.
pub(in crate::operate) fn kept_version(
    (repository, set): (&String, &String),
    name: &str,
    (version, next): (Version, &str),
) -> String {
    let (keeps, lock) = match version {
        Version::Until(until) => (
            "keeps",
            format!(" Nobody can delete that version before {until}."),
        ),
        Version::There => ("keeps", String::new()),
        Version::Untold => ("may keep", " That could not be found out.".to_owned()),
    };
    format!(
        "the store {keeps} a version of what recipient \"{name}\" opens in repository \"{repository}\" ({set}): with the right to read versions, the key still opens it.{lock} That version stays until a rule for noncurrent versions or somebody deletes it. What is stored from now on is safe once you {next}"
    )
}

/// Takes away what one recipient opens.
pub(in crate::operate) fn withdraw_one(
    store: &dyn Store,
    pair: KeySetId,
    name: &str,
) -> Result<Withdrawn> {
    take_away(store, &scope::secrets_recipient(&pair.to_string(), name)?)
}

fn too_few(staying: usize) -> Error {
    err!(
        Refused,
        "{PROVEN_MIN} recipients who keep access must be proven, and {staying} are"
    )
    .hint("Nothing was changed. Show their key files with --secrets-key FILE, once for each.")
}
