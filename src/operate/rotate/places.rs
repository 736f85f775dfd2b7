//! The repositories of one key set: the epochs that each shows, and what it lacks of a rotation.

use std::collections::BTreeSet;

use super::{Hand, State};
use crate::config::{self, Flags, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::repo::epochs::{self, Epoch};
use crate::repo::keyring::{self, Keys, WriterFile, recipient, recipient_names};
use crate::repo::repository::Repository;
use crate::repo::scope;
use crate::seal::{Contents, FIRST_EPOCH, MacKey, PublicHalf, Recipient, public_of};
use crate::store::Store;
use crate::text;

/// The key of the object of a recipient.
pub(super) fn key_of(recipient: &Recipient) -> Result<String> {
    let key = scope::recipient(recipient.epoch, &recipient.recipient)?;
    Ok(key.as_str().to_owned())
}

/// A key set, in all repositories of the configuration.
pub(super) struct KeySet {
    /// In the order of their uuids, whatever the configuration: of two rotations at once, one finds the other in the first repository.
    pub places: Vec<Place>,
    /// The file for hosts that is configured.
    pub current: WriterFile,
    /// Repositories with other keys, or none.
    pub others: Vec<String>,
}

/// A repository of the key set.
pub(super) struct Place {
    pub name: String,
    repository: Repository,
    keys: Keys,
}

/// The state of a repository before a rotation.
pub(super) struct Seen {
    pub to_store: Vec<String>,
    pub proven: BTreeSet<String>,
    pub left_out: BTreeSet<String>,
}

impl KeySet {
    /// Opens every repository of the configuration.
    ///
    /// # Errors
    /// `Usage` where there are several key sets and none is chosen; `Config` without the file for hosts; `Key` without a recipient's key; what
    /// the stores say.
    pub fn open(session: &Session) -> Result<KeySet> {
        let flags = Flags {
            repository: None,
            ..session.flags.clone()
        };
        let settings = Settings::load(&flags, &session.environment)?;
        let mut opened = Vec::new();
        for configured in &settings.repositories {
            let repository = session.open(configured).map_err(|e| {
                e.context(format!(
                    "open repository \"{}\" (nothing was stored: a rotation needs every repository of the configuration)",
                    configured.name
                ))
            })?;
            opened.push((configured, repository));
        }
        let id = chosen(session.flags.repository.as_deref(), &opened)?;
        let is_of = |(_, repository): &(&config::Repository, Repository)| {
            repository.marker().key_set.as_ref() == Some(&id)
        };
        let (of_set, others): (Vec<_>, Vec<_>) = opened.into_iter().partition(is_of);
        let current = current(of_set.iter().map(|(configured, _)| *configured))?;
        let mut places = Vec::new();
        for (configured, repository) in of_set {
            places.push(Place::new(configured, repository)?);
        }
        places.sort_by(|a, b| a.uuid().cmp(b.uuid()));
        Ok(KeySet {
            places,
            current,
            others: others.into_iter().map(|(c, _)| c.name.clone()).collect(),
        })
    }

    /// The MAC key.
    pub fn mac(&self) -> Result<&MacKey> {
        let mac = self
            .places
            .first()
            .and_then(|place| place.keys.mac.as_ref());
        mac.ok_or_else(no_key)
    }

    /// Requires that every repository shows the epochs of the configured file, and those alone.
    ///
    /// # Errors
    /// `Refused` where one does not; what the stores say.
    pub fn check_former(&self, mac: &MacKey) -> Result<()> {
        for place in &self.places {
            epochs::shown(place.store())
                .and_then(|shown| {
                    place.check_epochs((State::New, &self.current), &self.current, &shown, mac)
                })
                .map_err(|e| e.context(format!("look at repository \"{}\"", place.name)))?;
        }
        Ok(())
    }

    /// The first public half, and the keys of every epoch so far, which are the same in all repositories.
    pub fn former(&self) -> Result<(PublicHalf, Vec<Contents>)> {
        let place = self.places.first().ok_or_else(no_key)?;
        let mut all = Vec::new();
        for epoch in FIRST_EPOCH..=self.current.epoch() {
            let own = place.keys.open(place.store(), epoch)?;
            let (own, _) = own.ok_or_else(no_key)?;
            let public = text::hex(&public_of(&own.private)?.0);
            if epoch > FIRST_EPOCH && self.current.pair_of(epoch) != Some(public.as_str()) {
                return Err(place.other_pair(epoch));
            }
            all.push(own);
        }
        let first = all.first().ok_or_else(no_key)?;
        Ok((public_of(&first.private)?, all))
    }
}

/// The key set that is rotated.
fn chosen(wanted: Option<&str>, opened: &[(&config::Repository, Repository)]) -> Result<String> {
    let id = |repository: &Repository| repository.marker().key_set.clone();
    if let Some(wanted) = wanted {
        let found = opened
            .iter()
            .find(|(configured, _)| configured.name == wanted);
        let found = found.ok_or_else(|| {
            err!(
                Usage,
                "no repository of the configuration is called \"{wanted}\""
            )
        })?;
        return id(&found.1)
            .ok_or_else(|| err!(Refused, "repository \"{wanted}\" is not encrypted"));
    }
    let ids: BTreeSet<String> = opened.iter().filter_map(|(_, r)| id(r)).collect();
    let mut all = ids.into_iter();
    match (all.next(), all.next()) {
        (None, _) => Err(err!(Refused, "no repository is encrypted")),
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(err!(Usage, "the repositories have several key sets")
            .hint("Nothing was stored. --repository NAME chooses the key set of that repository; every repository of it is rotated.")),
    }
}

/// The file for hosts that the repositories of a key set are configured with.
fn current<'a>(places: impl Iterator<Item = &'a config::Repository>) -> Result<WriterFile> {
    let mut found: Option<WriterFile> = None;
    let files = places.filter_map(|configured| configured.encryption.as_ref()?.key_set.as_ref());
    for path in files {
        let file = WriterFile::read(path)?;
        file.keys(path)?;
        let is_same = |known: &WriterFile| {
            known.epoch() == file.epoch() && known.public_half() == file.public_half()
        };
        if found.as_ref().is_some_and(|known| !is_same(known)) {
            return Err(err!(
                Config,
                "the files of key_set are not of one epoch: \"{}\" is of another than the one before",
                path.display()
            )
            .hint("Nothing was stored. Name the current writer.key for every repository of the key set."));
        }
        found = Some(file);
    }
    found.ok_or_else(|| {
        err!(
            Config,
            "no key_set is configured, and a rotation follows on the current writer.key"
        )
        .hint("Nothing was stored. Name it as key_set beside the recipient's key.")
    })
}

fn no_key() -> Error {
    err!(Key, "no key that reads the repository is configured").hint(
        "Nothing was stored. Rotate where a recipient's key is: configure key_file, key_command or a passphrase beside key_set.",
    )
}

impl Place {
    fn new(configured: &config::Repository, repository: Repository) -> Result<Place> {
        let id = repository.marker().key_set.clone().unwrap_or_default();
        let from = configured.encryption.as_ref();
        let keys = Keys::load(repository.store(), id.parse()?, from)?;
        match keys.own.is_some() {
            true => Ok(Place {
                name: configured.name.clone(),
                repository,
                keys,
            }),
            false => Err(no_key().context(format!("repository \"{}\"", configured.name))),
        }
    }

    fn uuid(&self) -> &str {
        &self.repository.marker().uuid
    }

    pub fn store(&self) -> &dyn Store {
        self.repository.store()
    }

    /// Looks at the epochs and recipients of the repository, and what it lacks.
    ///
    /// # Errors
    /// `Refused` where it is not as the rotation needs it; `Key` where a key does not open an epoch; what the store says.
    pub fn look(
        &self,
        (state, file): (State, &WriterFile),
        current: &WriterFile,
        hand: &Hand,
        mac: &MacKey,
    ) -> Result<Seen> {
        let shown = epochs::shown(self.store())?;
        self.check_epochs((state, file), current, &shown, mac)?;
        // Access to the epoch that is made comes by the rotation; to those before it is there already.
        let former: Vec<u32> = shown
            .iter()
            .copied()
            .filter(|epoch| *epoch < file.epoch())
            .collect();
        let names = hand.names();
        let mut left_out = BTreeSet::new();
        for epoch in former {
            let there = recipient_names(self.store(), epoch)?;
            left_out.extend(
                there
                    .into_iter()
                    .filter(|name| !names.contains(&name.as_str())),
            );
            self.check_access(epoch, hand, mac)?;
            self.prove_epoch(epoch, hand, mac)?;
        }
        Ok(Seen {
            to_store: self.lacking((state, file), &names, mac)?,
            proven: self.provable(hand).collect(),
            left_out,
        })
    }

    /// Requires that the repository shows the epochs of the file, and those alone.
    fn check_epochs(
        &self,
        (state, file): (State, &WriterFile),
        current: &WriterFile,
        shown: &[u32],
        mac: &MacKey,
    ) -> Result<()> {
        let list = |epochs: &[u32]| {
            let epochs: Vec<String> = epochs.iter().map(u32::to_string).collect();
            epochs.join(", ")
        };
        let newest = match state {
            State::New => current.epoch(),
            State::Unfinished | State::Finished => file.epoch(),
        };
        if let Some(more) = shown.iter().find(|epoch| **epoch > newest) {
            return Err(err!(
                Refused,
                "it shows epoch {more}, and the file is of epoch {newest}"
            )
            .hint(format!("Nothing was stored. If somebody has rotated the key set, their writer.key is the current one: name it as key_set. If nobody has finished a rotation, no host has sealed to it: take it back with its directory (--take-back), or delete what lies below {}/ in each repository.", scope::recipients(*more))));
        }
        let lacks = (FIRST_EPOCH..=current.epoch()).find(|epoch| !shown.contains(epoch));
        if let (Some(lacks), true) = (lacks, state != State::Finished) {
            return Err(err!(
                Refused,
                "it shows the epochs {}, and the file is of epoch {}: it hides epoch {lacks}, or was never given it",
                list(shown),
                current.epoch()
            )
            .hint("Nothing was stored. Give it the epochs that it lacks first: the same command, with the current writer.key in the directory."));
        }
        for epoch in shown.iter().filter(|epoch| **epoch > FIRST_EPOCH) {
            let seen = Epoch::look(self.store(), *epoch, Some(mac))?;
            let of = match *epoch <= current.epoch() {
                true => current,
                false => file,
            };
            let own: Vec<String> = of.pair_of(*epoch).map(str::to_owned).into_iter().collect();
            if seen.pairs != own && (seen.counts() || state != State::Unfinished) {
                return Err(self.other_pair(*epoch));
            }
        }
        Ok(())
    }

    fn other_pair(&self, epoch: u32) -> Error {
        err!(
            Refused,
            "epoch {epoch} has another pair there than the file, or keys that no holder of the MAC key has made"
        )
        .hint(format!("Nothing was changed by this step. Somebody else rotates, or has rotated, the key set: only one of the two can be finished. Take back the one that is not (--take-back, with its directory), or delete below {}/ what nobody's rotation made.", scope::recipients(epoch)))
    }

    /// Requires that those who are named read a former epoch.
    fn check_access(&self, epoch: u32, hand: &Hand, mac: &MacKey) -> Result<()> {
        let lacks = |name: &str| {
            err!(
                Refused,
                "recipient \"{name}\" has no access to epoch {epoch} there, or by another key"
            )
            .hint("Nothing was stored. Who reads the new epoch reads those before: give access first, by pitr repo rewrap --all --add FILE.pub.")
        };
        for (name, public) in &hand.keys {
            let stored = recipient(self.store(), epoch, name)?;
            let is_own = |stored: &Recipient| {
                stored.is_of(mac) && stored.public_key.as_ref() == Some(public)
            };
            if !stored.as_ref().is_some_and(is_own) {
                return Err(lacks(name));
            }
        }
        if let Some((name, _)) = &hand.passphrase {
            let stored = recipient(self.store(), epoch, name)?;
            if !stored.is_some_and(|stored| stored.is_of(mac) && stored.has_passphrase()) {
                return Err(lacks(name));
            }
        }
        Ok(())
    }

    /// Recipients whose keys are at hand.
    fn provable(&self, hand: &Hand) -> impl Iterator<Item = String> {
        let own = self.keys.own.as_ref().map(|own| own.recipient.clone());
        let names = hand
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let own = own.filter(|own| names.contains(own));
        let proving: Vec<String> = hand.proving().map(|(name, _)| name.to_owned()).collect();
        own.into_iter().chain(proving)
    }

    /// Opens an epoch by every key at hand: all open the same pair.
    fn prove_epoch(&self, epoch: u32, hand: &Hand, mac: &MacKey) -> Result<Contents> {
        let own = self.keys.open(self.store(), epoch)?;
        let (own, _) = own.ok_or_else(no_key)?;
        for (name, access) in hand.proving() {
            let opened = match epoch {
                FIRST_EPOCH => {
                    let stored = recipient(self.store(), epoch, name)?;
                    stored
                        .ok_or_else(|| epochs::no_access(self.store(), epoch, name))?
                        .open(&access)?
                }
                later => keyring::open_later(self.store(), later, (name, &access), mac)?,
            };
            if opened.private != own.private {
                return Err(err!(
                    Key,
                    "recipient \"{name}\" opens another pair of epoch {epoch}"
                ));
            }
        }
        Ok(own)
    }

    /// The keys of objects of the file that are not there.
    fn lacking(
        &self,
        (state, file): (State, &WriterFile),
        names: &[&str],
        mac: &MacKey,
    ) -> Result<Vec<String>> {
        let later = file.recipients().iter().filter(|r| r.epoch > FIRST_EPOCH);
        let mut lacking = Vec::new();
        for wanted in later.filter(|r| names.contains(&r.recipient.as_str())) {
            let key = key_of(wanted)?;
            let is_same = |there: &Recipient| {
                let is_being_made = wanted.epoch == file.epoch() && state != State::Finished;
                let opens_the_same = there.is_of(mac)
                    && there.public_half == wanted.public_half
                    && there.public_key == wanted.public_key;
                *there == *wanted || (opens_the_same && !is_being_made)
            };
            match recipient(self.store(), wanted.epoch, &wanted.recipient)? {
                None => lacking.push(key),
                Some(there) if is_same(&there) => {}
                Some(_) => {
                    return Err(err!(Refused, "object \"{key}\" is there, and is another one")
                        .hint("Nothing was stored. Somebody else rotates the key set, or has put it there: look who can write to the store, and delete it."));
                }
            }
        }
        Ok(lacking)
    }

    /// Requires that the epoch is in the repository as the file has it, and opens: the epoch that is made with this pair alone.
    ///
    /// # Errors
    /// `Refused` where another rotation stored something meanwhile; `ReadBack` and `Key` where it does not open.
    pub fn prove(
        &self,
        (state, file): (State, &WriterFile),
        hand: &Hand,
        mac: &MacKey,
    ) -> Result<()> {
        if state != State::Finished {
            let made = self.of_pair(file, mac)?;
            let there = recipient_names(self.store(), file.epoch())?;
            if there.iter().any(|name| !made.contains(name)) {
                return Err(self.other_pair(file.epoch()));
            }
        }
        let names = hand.names();
        if !self.lacking((state, file), &names, mac)?.is_empty() {
            return Err(err!(ReadBack, "objects that were stored are gone"));
        }
        for epoch in FIRST_EPOCH..=file.epoch() {
            let opened = self.prove_epoch(epoch, hand, mac)?;
            let public = text::hex(&public_of(&opened.private)?.0);
            if epoch > FIRST_EPOCH && file.pair_of(epoch) != Some(public.as_str()) {
                return Err(self.other_pair(epoch));
            }
        }
        Ok(())
    }

    /// The recipients of the epoch that is made: those of the file, and those who got access to its pair by a rewrap meanwhile.
    fn of_pair(&self, file: &WriterFile, mac: &MacKey) -> Result<Vec<String>> {
        let epoch = file.epoch();
        let is_own = |there: &Recipient| {
            let half = there.public_half.as_deref();
            let has_pair = half.is_some() && half == file.pair_of(epoch);
            file.recipients_of(epoch).any(|wanted| wanted == there)
                || (there.is_of(mac) && has_pair)
        };
        let mut own = Vec::new();
        for name in recipient_names(self.store(), epoch)? {
            match recipient(self.store(), epoch, &name) {
                // One of a name of the file is damage of this rotation, and no sign of another.
                Err(e) if e.is_damage() => {
                    let mut wanted = file.recipients_of(epoch);
                    own.extend(wanted.any(|r| r.recipient == name).then_some(name));
                }
                there => own.extend(there?.filter(is_own).map(|_| name)),
            }
        }
        Ok(own)
    }

    /// Deletes the objects of a rotation that is not finished; returns their keys.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn take_back(&self, file: &WriterFile, mac: &MacKey, confirm: bool) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for name in self.of_pair(file, mac)? {
            let key = scope::recipient(file.epoch(), &name)?;
            keys.push(key.as_str().to_owned());
            if confirm {
                keyring::withdraw(self.store(), file.epoch(), &name)?;
            }
        }
        Ok(keys)
    }
}
