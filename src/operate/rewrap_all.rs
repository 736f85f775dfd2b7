//! Access to repositories in every epoch, and to the secrets pairs in them, changed in one go.
//!
//! Everything is planned before anything is written. Then access is given everywhere, and withdrawn afterwards: wherever a run stops, who is to
//! keep access has it. A repetition finds what is done, and goes on with the rest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use zeroize::Zeroizing;

use super::configuration::recipients as secrets;
use super::failures::Failures;
use super::keys::{to_passphrase, to_public};
use super::rewrap::{self, Asked, PROVEN_MIN, Readers};
use super::session::Session;
use crate::config;
use crate::err;
use crate::error::{Code, Result};
use crate::repo::epochs;
use crate::repo::keyring::{self, Keys, PublicFile, ReaderFile, Version, Withdrawn, WriterFile};
use crate::repo::repository::Repository;
use crate::seal::{Access, Contents, FIRST_EPOCH, KeySetId, Recipient, public_of};
use crate::text;

/// The kind of a set of recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// They read the repository.
    Data,
    /// They read the originals of configuration files with secrets.
    Secrets,
}

/// The recipients of one key set, or of one secrets pair, in one repository.
#[derive(Serialize)]
pub struct Set {
    pub repository: String,
    pub kind: Kind,
    id: String,
    /// The epoch of the key set; a secrets pair has one.
    pub epoch: u32,
    /// Who has access now.
    pub recipients: Vec<String>,
    /// Who is still to get it.
    pub to_give: Vec<String>,
    /// Who is still to lose it.
    pub to_withdraw: Vec<String>,
    /// Who got it in this run.
    pub given: Vec<String>,
    /// Who lost it in this run.
    pub withdrawn: Vec<String>,
    /// The ones among those of whom the store keeps a version, or may.
    #[serde(skip)]
    hidden: Vec<(String, Version)>,
    #[serde(skip)]
    key_set: KeySetId,
    #[serde(skip)]
    place: Arc<Repository>,
    #[serde(skip)]
    opened: Option<Opened>,
}

/// A set that a key opened.
struct Opened {
    contents: Contents,
    /// Recipients whose keys were seen to open it.
    proven: BTreeSet<String>,
    /// Recipients to be stored.
    new: Vec<Recipient>,
}

impl Opened {
    fn by(contents: Contents, recipient: String) -> Opened {
        Opened {
            contents,
            proven: BTreeSet::from([recipient]),
            new: Vec::new(),
        }
    }
}

/// The whole change.
#[derive(Serialize)]
pub struct Plan {
    /// The sets, in the order of the configuration.
    pub sets: Vec<Set>,
    /// Repositories that are not encrypted.
    pub plain: Vec<String>,
    #[serde(skip)]
    withdraw: Vec<String>,
    #[serde(skip)]
    passphrase: Option<(String, Zeroizing<Vec<u8>>)>,
    /// Sets from which nobody could be withdrawn.
    #[serde(skip)]
    pub failures: Failures,
}

/// The keys at hand, and those who get access.
struct Hand<'a> {
    asked: &'a Asked,
    added: Vec<(PathBuf, String, String)>,
    proofs: Vec<(PathBuf, ReaderFile)>,
    /// Whether the secrets pairs belong to the plan; those who are added get access to them.
    secrets: Option<bool>,
}

/// Plans the change of each repository that the configuration or the operator names, without the secrets pairs.
///
/// # Errors
/// Those of [`plan`]; `NotFound` for a recipient to be withdrawn whom a repository does not have.
pub fn plan_data(session: &Session, asked: &Asked) -> Result<Plan> {
    asked.check()?;
    let plan = make(session, asked, None)?;
    if let Some(plain) = plan.plain.first() {
        return Err(err!(Refused, "repository \"{plain}\" is not encrypted")
            .hint("Nothing was changed in any repository."));
    }
    for name in &asked.withdraw {
        let has = |readers: &&Readers| {
            plan.sets_of(&readers.name)
                .any(|set| set.recipients.contains(name))
        };
        let all = plan.readers();
        let lacking: Vec<&Readers> = all.iter().filter(|one| !has(one)).collect();
        // A run that was interrupted had withdrawn the first: the same command goes on.
        let goes_on = lacking.len() < all.len();
        for readers in lacking {
            let missing = format!(
                "there is no recipient \"{name}\" in repository \"{}\"",
                readers.name
            );
            if !goes_on {
                return Err(err!(NotFound, "{missing}").hint(format!(
                    "Nothing was changed. Recipients: {}",
                    readers.recipients.join(", ")
                )));
            }
            session.warn(&missing);
        }
    }
    Ok(plan)
}

/// Plans the change of every repository of the configuration; `with_secrets` says that access to the secrets pairs is given, too.
///
/// # Errors
/// `Usage` when nothing is to be changed, or one repository is named; `Refused` when no repository is encrypted, a name is taken, or too few recipients
/// would be proven; `Key` without a key that opens a set; what the stores say. Nothing was changed then.
pub fn plan(session: &Session, asked: &Asked, with_secrets: bool) -> Result<Plan> {
    asked.check()?;
    if let Some(one) = &session.flags.repository {
        return Err(err!(
            Usage,
            "--all is every repository of the configuration, and --repository names one, \"{one}\""
        )
        .hint("Nothing was changed. Leave out one of the two."));
    }
    let plan = make(session, asked, Some(with_secrets))?;
    if plan.sets.is_empty() {
        return Err(err!(Refused, "no repository is encrypted").hint("Nothing was changed."));
    }
    for name in &asked.withdraw {
        if !plan.sets.iter().any(|set| set.to_withdraw.contains(name)) {
            session.warn(&format!("no repository has a recipient \"{name}\""));
        }
    }
    Ok(plan)
}

fn make(session: &Session, asked: &Asked, secrets: Option<bool>) -> Result<Plan> {
    keyring::forbid_core_dumps()?;
    let passphrase = match &asked.add_passphrase {
        Some(name) => Some((name.clone(), asked.source.read(session)?)),
        None => None,
    };
    let hand = Hand::of(asked, secrets)?;
    let mut plan = Plan {
        sets: Vec::new(),
        plain: Vec::new(),
        withdraw: asked.withdraw.clone(),
        passphrase,
        failures: Failures::default(),
    };
    for configured in &session.settings_with_repositories()?.repositories {
        let planned = plan.add(session, configured, &hand);
        planned.map_err(|e| {
            e.context(format!(
                "plan the change of repository \"{}\" (nothing was changed)",
                configured.name
            ))
        })?;
    }
    Ok(plan)
}

impl Hand<'_> {
    fn of(asked: &Asked, secrets: Option<bool>) -> Result<Hand<'_>> {
        let public = |path: &PathBuf| {
            let file = PublicFile::read(path)?;
            let key = text::hex(&file.public(path)?.0);
            Ok((path.clone(), file.recipient, key))
        };
        let proof = |path: &PathBuf| Ok((path.clone(), ReaderFile::read(path)?));
        let hand = Hand {
            asked,
            added: asked.add.iter().map(public).collect::<Result<_>>()?,
            proofs: asked.proof.iter().map(proof).collect::<Result<_>>()?,
            secrets,
        };
        let added = hand.added.iter().map(|(_, name, _)| name);
        let mut names = added.chain(&asked.add_passphrase);
        match names.find(|name| asked.withdraw.contains(name)) {
            Some(both) => Err(err!(
                Usage,
                "recipient \"{both}\" is to get access and to lose it"
            )
            .hint("Nothing was changed. Give the new key another name.")),
            None => Ok(hand),
        }
    }

    /// Whether the private key of a recipient who gets access is at hand.
    fn holds(&self, name: &str, public: &str) -> Result<bool> {
        for (path, file) in self.proofs.iter().filter(|(_, f)| f.recipient == name) {
            if text::hex(&public_of(&file.private(path)?)?.0) == public {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Plan {
    fn add(
        &mut self,
        session: &Session,
        configured: &config::Repository,
        hand: &Hand<'_>,
    ) -> Result<()> {
        let place = Arc::new(session.open(configured)?);
        let mut all: Vec<(Kind, KeySetId, u32)> = Vec::new();
        let mut keys = None;
        match &place.marker().key_set {
            Some(id) => {
                let id: KeySetId = id.parse()?;
                let from = configured.encryption.as_ref();
                let known = keys.insert(Keys::load(place.store(), id, from)?);
                let epochs = epochs::counting(place.store(), known.mac.as_ref())?;
                // The newest first: it is the first to be withdrawn from. Who gets access has it with that to the first epoch.
                let newest_first = epochs.into_iter().rev();
                all.extend(newest_first.map(|epoch| (Kind::Data, id, epoch)));
            }
            None => self.plain.push(configured.name.clone()),
        }
        if hand.secrets.is_some() {
            let pairs = secrets::pairs(place.store())?;
            let pairs = pairs.into_iter();
            all.extend(pairs.map(|pair| (Kind::Secrets, pair, FIRST_EPOCH)));
        }
        for (kind, key_set, epoch) in all {
            let mut set = Set::look(configured, &place, (kind, key_set, epoch))?;
            set.plan(configured, keys.as_ref(), hand, self.passphrase.as_ref())
                .map_err(|e| e.context(set.words()))?;
            self.sets.push(set);
        }
        Ok(())
    }

    /// The sets of a repository's data.
    fn sets_of(&self, repository: &str) -> impl Iterator<Item = &Set> {
        let sets = self.sets.iter().filter(|set| set.kind == Kind::Data);
        sets.filter(move |set| set.repository == repository)
    }

    /// Who reads the data of each repository.
    pub fn readers(&self) -> Vec<Readers> {
        let mut all: Vec<Readers> = Vec::new();
        for set in self.sets.iter().filter(|set| set.kind == Kind::Data) {
            if all.iter().any(|known| known.name == set.repository) {
                continue;
            }
            let names: BTreeSet<&String> = self
                .sets_of(&set.repository)
                .flat_map(|s| &s.recipients)
                .collect();
            let reads_all = |name: &&String| {
                self.sets_of(&set.repository)
                    .all(|s| s.recipients.contains(name))
            };
            let (every, some) = names
                .into_iter()
                .cloned()
                .partition(|name| reads_all(&name));
            all.push(Readers {
                name: set.repository.clone(),
                recipients: every,
                some_epochs_alone: some,
            });
        }
        all
    }

    /// Whether something is to be changed.
    pub fn is_change(&self) -> bool {
        let is_change = |set: &Set| !set.to_give.is_empty() || !set.to_withdraw.is_empty();
        self.sets.iter().any(is_change)
    }

    /// Gives access in every set, and only then withdraws it. A set that cannot be given access to ends it, and one from which nobody can be
    /// withdrawn keeps no other from it: the sets say what is done.
    ///
    /// # Errors
    /// `Interrupted`; what the stores say, where nothing was done; `Refused` when recipients vanished meanwhile.
    pub fn carry_out(&mut self, session: &Session) -> Result<()> {
        let passphrase = self.passphrase.as_ref();
        for set in &mut self.sets {
            session.host.check_stop()?;
            set.give(passphrase).map_err(|e| e.context(set.doing()))?;
        }
        for set in &mut self.sets {
            session.host.check_stop()?;
            let withdrawn = set.withdraw();
            set.warn_of_versions(session);
            if let Err(e) = withdrawn
                && !self.failures.add(e, set.doing())
            {
                break;
            }
        }
        let is_done = |set: &Set| !set.given.is_empty() || !set.withdrawn.is_empty();
        let is_nothing_done = !self.sets.iter().any(is_done);
        self.failures.first_if(session, is_nothing_done)?;
        self.warn_of_files(session)
    }

    /// Names the files on this host by which a repository that is made later would give access back.
    fn warn_of_files(&self, session: &Session) -> Result<()> {
        let mut told: BTreeSet<PathBuf> = BTreeSet::new();
        for configured in &session.settings()?.repositories {
            let key_set = configured.encryption.as_ref();
            let key_set = key_set.and_then(|from| from.key_set.as_deref());
            let files = [
                key_set.map(|path| (path, WriterFile::read(path))),
                configured
                    .secrets_file()
                    .map(|path| (path, WriterFile::read_secrets(path))),
            ];
            for (path, file) in files.into_iter().flatten() {
                let file = file?;
                let is_listed =
                    |name: &&String| file.recipients().iter().any(|r| r.recipient == **name);
                let listed = self.withdraw.iter();
                let listed: Vec<&str> = listed.filter(is_listed).map(String::as_str).collect();
                if !listed.is_empty() && told.insert(path.to_owned()) {
                    session.warn(&format!(
                        "\"{}\" still lists {}: a repository that is made with it gives access again; withdraw it there once more",
                        path.display(),
                        listed.join(", ")
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Set {
    fn look(
        configured: &config::Repository,
        place: &Arc<Repository>,
        (kind, key_set, epoch): (Kind, KeySetId, u32),
    ) -> Result<Set> {
        let mut set = Set {
            repository: configured.name.clone(),
            kind,
            id: key_set.to_string(),
            epoch,
            recipients: Vec::new(),
            to_give: Vec::new(),
            to_withdraw: Vec::new(),
            given: Vec::new(),
            withdrawn: Vec::new(),
            hidden: Vec::new(),
            key_set,
            place: Arc::clone(place),
            opened: None,
        };
        set.recipients = set.names()?;
        Ok(set)
    }

    /// Its kind, for people.
    pub fn words(&self) -> String {
        match self.kind {
            Kind::Data if self.epoch == FIRST_EPOCH => "data".to_owned(),
            Kind::Data => format!("data of epoch {}", self.epoch),
            Kind::Secrets => format!("secrets pair {}", self.id),
        }
    }

    fn doing(&self) -> String {
        format!(
            "change the recipients in repository \"{}\", {}",
            self.repository,
            self.words()
        )
    }

    fn names(&self) -> Result<Vec<String>> {
        match self.kind {
            Kind::Data => keyring::recipient_names(self.place.store(), self.epoch),
            Kind::Secrets => secrets::names(self.place.store(), self.key_set),
        }
    }

    fn stored(&self, name: &str) -> Result<Option<Recipient>> {
        match self.kind {
            Kind::Data => keyring::recipient(self.place.store(), self.epoch, name),
            Kind::Secrets => secrets::stored(self.place.store(), self.key_set, name),
        }
    }

    fn plan(
        &mut self,
        configured: &config::Repository,
        keys: Option<&Keys>,
        hand: &Hand<'_>,
        passphrase: Option<&(String, Zeroizing<Vec<u8>>)>,
    ) -> Result<()> {
        let asked = hand.asked;
        let gets = self.kind == Kind::Data || hand.secrets == Some(true);
        let is_given = gets && (!hand.added.is_empty() || passphrase.is_some());
        let here = asked.withdraw.iter();
        let here = here.filter(|name| self.recipients.contains(name));
        self.to_withdraw = here.cloned().collect();
        if !is_given && self.to_withdraw.is_empty() {
            return Ok(());
        }
        let mut opened = self.open(configured, keys, hand)?;
        if is_given {
            self.plan_keys(&mut opened, hand)?;
        }
        // A secrets pair has recipients with key files alone.
        if let (Kind::Data, Some((name, passphrase))) = (self.kind, passphrase) {
            self.plan_passphrase(&mut opened, name, passphrase)?;
        }
        self.to_give = opened.new.iter().map(|r| r.recipient.clone()).collect();
        self.opened = Some(opened);
        match self.to_withdraw.is_empty() {
            true => Ok(()),
            false => self.check_proven(self.to_give.as_slice()),
        }
    }

    /// Opens it by every key at hand.
    fn open(
        &self,
        configured: &config::Repository,
        keys: Option<&Keys>,
        hand: &Hand<'_>,
    ) -> Result<Opened> {
        let mut opened = None;
        let mut left_out = None;
        if self.kind == Kind::Data {
            let own = keys.map(|keys| keys.open(self.place.store(), self.epoch));
            match own.transpose() {
                Ok(own) => {
                    opened = own
                        .flatten()
                        .map(|(contents, name)| Opened::by(contents, name));
                }
                Err(e) if e.code() == Code::Key => left_out = Some(e),
                Err(e) => return Err(e),
            }
        } else if let Some(path) = configured.secrets_key_file() {
            self.try_key(&mut opened, path, &ReaderFile::read(path)?)?;
        }
        for (path, file) in &hand.proofs {
            self.try_key(&mut opened, path, file)?;
        }
        opened.ok_or_else(|| {
            if let Some(e) = left_out {
                return e;
            }
            let key = match self.kind {
                Kind::Data => "key_file, key_command or a passphrase",
                Kind::Secrets => "secrets_key",
            };
            err!(Key, "no key that opens it is given").hint(format!("Only a recipient who has access can give it or withdraw it: configure {key}, or name key files with --proof."))
        })
    }

    /// Tries a key file. One of somebody else opens nothing here, and proves nothing.
    fn try_key(&self, opened: &mut Option<Opened>, path: &Path, file: &ReaderFile) -> Result<()> {
        if !file.may_open(self.key_set) {
            return Ok(());
        }
        let Some(contents) = self.opened_by(&Access::Key(&file.private(path)?), file)? else {
            return Ok(());
        };
        if contents.mac.id() != self.key_set {
            return Err(err!(
                Damaged,
                "recipient \"{}\" opens another key set",
                file.recipient
            ));
        }
        let name = file.recipient.clone();
        match opened {
            Some(opened) => {
                opened.proven.insert(name);
            }
            None => *opened = Some(Opened::by(contents, name)),
        }
        Ok(())
    }

    /// The keys that a recipient's own key opens; none where it is not the recipient's.
    fn opened_by(&self, access: &Access<'_>, file: &ReaderFile) -> Result<Option<Contents>> {
        let store = self.place.store();
        let name = file.recipient.as_str();
        let contents = match (self.kind, self.epoch) {
            (Kind::Data, FIRST_EPOCH) | (Kind::Secrets, _) => {
                let Some(stored) = self.stored(name)? else {
                    return Ok(None);
                };
                stored.open(access)
            }
            // The first epoch proves the MAC key.
            (Kind::Data, later) => {
                let Some(first) = keyring::recipient(store, FIRST_EPOCH, name)? else {
                    return Ok(None);
                };
                let first = first.open(access);
                first
                    .and_then(|first| keyring::open_later(store, later, (name, access), &first.mac))
            }
        };
        match contents {
            Err(e) if e.code() == Code::Key => Ok(None),
            other => other.map(Some),
        }
    }

    fn plan_keys(&self, opened: &mut Opened, hand: &Hand<'_>) -> Result<()> {
        for (path, name, key) in &hand.added {
            match self.stored(name)? {
                None => {
                    opened.new.push(to_public(&opened.contents, path)?);
                    if hand.holds(name, key)? {
                        opened.proven.insert(name.clone());
                    }
                }
                Some(there)
                    if there.is_genuine(&opened.contents.mac)
                        && there.public_key.as_ref() == Some(key) => {}
                Some(_) => return Err(taken(name)),
            }
        }
        Ok(())
    }

    fn plan_passphrase(&self, opened: &mut Opened, name: &str, passphrase: &[u8]) -> Result<()> {
        match self.stored(name)? {
            None => {
                let new = to_passphrase(&opened.contents, name, passphrase)?;
                opened.new.push(new);
            }
            Some(there) => {
                if check_passphrase(&there, passphrase, &opened.contents).is_err() {
                    return Err(taken(name));
                }
            }
        }
        opened.proven.insert(name.to_owned());
        Ok(())
    }

    /// Requires that enough recipients stay whose keys were seen to open it; `coming` are those who get access first.
    fn check_proven(&self, coming: &[String]) -> Result<()> {
        let there = self.names()?;
        let stays = |name: &&String| {
            (there.contains(name) || coming.contains(name)) && !self.to_withdraw.contains(name)
        };
        let opened = self.opened.as_ref();
        let proven = opened.into_iter().flat_map(|opened| &opened.proven);
        let staying: Vec<&String> = proven.filter(stays).collect();
        match staying.len() < PROVEN_MIN {
            true => Err(rewrap::too_few(&staying)),
            false => Ok(()),
        }
    }

    fn give(&mut self, passphrase: Option<&(String, Zeroizing<Vec<u8>>)>) -> Result<()> {
        let Some(opened) = &self.opened else {
            return Ok(());
        };
        let store = self.place.store();
        for new in &opened.new {
            match self.kind {
                Kind::Data => keyring::give_access(store, new)?,
                Kind::Secrets => secrets::give(store, &opened.contents.mac, new)?,
            }
            let passphrase = passphrase.filter(|_| new.has_passphrase());
            if let Some((name, passphrase)) = passphrase {
                let stored = self.stored(name)?;
                let stored =
                    stored.ok_or_else(|| err!(ReadBack, "recipient \"{name}\" is gone"))?;
                check_passphrase(&stored, passphrase, &opened.contents)?;
            }
            self.to_give.retain(|name| *name != new.recipient);
            self.given.push(new.recipient.clone());
        }
        self.recipients = self.names()?;
        Ok(())
    }

    /// Tells of keys that the store still has.
    fn warn_of_versions(&self, session: &Session) {
        for (name, version) in &self.hidden {
            let words = self.words();
            let next = match self.kind {
                Kind::Data => "rotate the keys: pitr repo rotate",
                Kind::Secrets => secrets::NEXT,
            };
            let told = secrets::kept_version((&self.repository, &words), name, (*version, next));
            session.warn(&told);
        }
    }

    fn withdraw(&mut self) -> Result<()> {
        if self.to_withdraw.is_empty() {
            return Ok(());
        }
        // Somebody else may have withdrawn others meanwhile.
        self.check_proven(&[])?;
        let store = self.place.store();
        let mut refused = None;
        // One that the store keeps does not keep the others.
        for name in std::mem::take(&mut self.to_withdraw) {
            let gone = match self.kind {
                Kind::Data => keyring::withdraw(store, self.epoch, &name),
                Kind::Secrets => secrets::withdraw_one(store, self.key_set, &name),
            };
            match gone {
                Ok(gone) => {
                    if let Withdrawn::Hidden(version) = gone {
                        self.hidden.push((name.clone(), version));
                    }
                    self.withdrawn.push(name);
                }
                Err(e) => {
                    self.to_withdraw.push(name);
                    refused = refused.or(Some(e));
                }
            }
        }
        self.recipients = self.names()?;
        refused.map_or(Ok(()), Err)
    }
}

/// Requires that a passphrase opens what is stored for it: the keys that are at hand.
fn check_passphrase(stored: &Recipient, passphrase: &[u8], of: &Contents) -> Result<()> {
    let access = Access::Passphrase(passphrase);
    let opened = match of.epoch {
        FIRST_EPOCH => stored.open(&access)?,
        _ => stored.open_later(&access, &of.mac)?,
    };
    match opened.private == of.private && opened.mac.id() == of.mac.id() {
        true => Ok(()),
        false => Err(err!(
            ReadBack,
            "recipient \"{}\" opens another key set",
            stored.recipient
        )),
    }
}

fn taken(name: &str) -> crate::error::Error {
    err!(Refused, "recipient \"{name}\" has other keys there already")
        .hint("Nothing was changed in any repository. Choose another name.")
}
