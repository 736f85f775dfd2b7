//! The next epoch of a key set: another pair, in every repository, and no object rewritten (decision 0060).
//!
//! Everything is planned before anything is written. The pair is durable on this host before a repository has it, every repository has it
//! before the file for hosts is made, and no host seals before it has that file. So a run goes on wherever one was killed.

mod directory;
mod places;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;
use zeroize::Zeroizing;

use self::directory::Directory;
pub use self::directory::State;
use self::places::{KeySet, Place};
use super::keys::{Passphrase, to_passphrase, to_public};
use super::rewrap::{PROVEN_MIN, too_few};
use super::session::Session;
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::repo::keyring::{
    self, PublicFile, ReaderFile, WriterFile, draw, give_access, system_random,
};
use crate::seal::{
    Access, Contents, FIRST_EPOCH, MacKey, PrivateHalf, Recipient, public_of, random_pair,
};
use crate::text;

/// The operator's request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The directory of the files that are made.
    pub dir: PathBuf,
    /// The .pub files of recipients of the new epoch.
    pub add: Vec<PathBuf>,
    /// A recipient of the new epoch who has a passphrase.
    pub add_passphrase: Option<String>,
    /// The place of that passphrase.
    pub source: Passphrase,
    /// Key files of recipients of the new epoch.
    pub proof: Vec<PathBuf>,
}

/// A rotation.
#[derive(Serialize)]
pub struct Plan {
    pub key_set: String,
    /// The epoch that it gets, or that repositories get which lack it.
    pub epoch: u32,
    /// How far it is.
    pub state: State,
    /// Who reads the epoch.
    pub recipients: Vec<String>,
    /// Who has keys of former epochs alone.
    pub left_out: Vec<String>,
    /// The repositories of the key set.
    pub repositories: Vec<Given>,
    /// Repositories of the configuration that have other keys, or none.
    pub others: Vec<String>,
    /// The file for hosts that write, once it is finished.
    pub writer_file: Option<String>,
    /// The directory has the file that hosts have already, and no other.
    #[serde(skip)]
    is_of_hosts: bool,
    #[serde(skip)]
    work: Work,
}

/// The objects that a repository lacks, and got.
#[derive(Serialize)]
pub struct Given {
    pub repository: String,
    /// Keys of objects that are still to be stored.
    pub to_store: Vec<String>,
    /// Keys of objects that this run stored.
    pub stored: Vec<String>,
}

/// The means of a rotation.
struct Work {
    directory: Directory,
    file: WriterFile,
    mac: MacKey,
    places: Vec<Place>,
    hand: Hand,
}

/// The recipients that the operator names, and their keys that are at hand.
pub(super) struct Hand {
    /// Name and public key of those with a pair.
    pub keys: Vec<(String, String)>,
    pub passphrase: Option<(String, Zeroizing<Vec<u8>>)>,
    /// Private keys of recipients.
    pub proofs: Vec<(String, PrivateHalf)>,
}

impl Hand {
    fn of(session: &Session, asked: &Asked) -> Result<Hand> {
        keyring::forbid_core_dumps()?;
        let key = |path: &PathBuf| {
            let file = PublicFile::read(path)?;
            let key = text::hex(&file.public(path)?.0);
            Ok((file.recipient, key))
        };
        let proof = |path: &PathBuf| {
            let file = ReaderFile::read(path)?;
            Ok((file.recipient.clone(), file.private(path)?))
        };
        let passphrase = match &asked.add_passphrase {
            Some(name) => Some((name.clone(), asked.source.read(session)?)),
            None => None,
        };
        let hand = Hand {
            keys: asked.add.iter().map(key).collect::<Result<_>>()?,
            passphrase,
            proofs: asked.proof.iter().map(proof).collect::<Result<_>>()?,
        };
        hand.check()?;
        Ok(hand)
    }

    /// The names of the recipients.
    pub fn names(&self) -> Vec<&str> {
        let keys = self.keys.iter().map(|(name, _)| name.as_str());
        let passphrase = self.passphrase.iter().map(|(name, _)| name.as_str());
        let mut names: Vec<&str> = keys.chain(passphrase).collect();
        names.sort_unstable();
        names
    }

    fn check(&self) -> Result<()> {
        let names = self.names();
        let own: BTreeSet<&str> = names.iter().copied().collect();
        if own.len() < names.len() {
            return Err(err!(Usage, "two recipients have the same name"));
        }
        if names.len() < PROVEN_MIN {
            return Err(err!(
                Usage,
                "{} recipients are named, and {PROVEN_MIN} are needed",
                names.len()
            )
            .hint("Name everybody who is to read what is sealed from now on: --add FILE.pub, several times. When the only key is lost, everything is."));
        }
        for (name, private) in &self.proofs {
            let public = text::hex(&public_of(private)?.0);
            if !self.keys.contains(&(name.clone(), public)) {
                return Err(err!(
                    Usage,
                    "the key file of recipient \"{name}\" is not that of any .pub file that is named"
                )
                .hint("--proof takes the key file of a recipient of the new epoch."));
            }
        }
        Ok(())
    }

    /// The means by which recipients are proven.
    pub fn proving(&self) -> impl Iterator<Item = (&str, Access<'_>)> {
        let keys = self.proofs.iter();
        let keys = keys.map(|(name, private)| (name.as_str(), Access::Key(private)));
        let passphrase = self.passphrase.iter();
        let passphrase =
            passphrase.map(|(name, text)| (name.as_str(), Access::Passphrase(text.as_slice())));
        keys.chain(passphrase)
    }

    /// Wraps the keys of an epoch for each recipient.
    fn wrap(&self, contents: &Contents, asked: &Asked) -> Result<Vec<Recipient>> {
        let mut recipients = Vec::new();
        for path in &asked.add {
            recipients.push(to_public(contents, path)?);
        }
        if let Some((name, passphrase)) = &self.passphrase {
            recipients.push(to_passphrase(contents, name, passphrase)?);
        }
        recipients.sort_by(|a, b| a.recipient.cmp(&b.recipient));
        Ok(recipients)
    }
}

/// Plans the next epoch, or what is left of it.
///
/// # Errors
/// `Usage`; `Config` without the file for hosts; `Key` without a recipient's key; `Refused` where a repository shows other epochs than the file, a
/// recipient has no access to the former epochs, or too few are proven; what the stores say. Nothing was stored then.
pub fn plan(session: &Session, asked: &Asked) -> Result<Plan> {
    let hand = Hand::of(session, asked)?;
    let directory = Directory::of(session, &asked.dir);
    let set = KeySet::open(session)?;
    let mac = set.mac()?.clone();
    let (state, file) = match directory.read(&set)? {
        Some((state, file)) => {
            directory.check_follows((state, &file), &set)?;
            (state, file)
        }
        None => {
            set.check_former(&mac)?;
            (State::New, make(&set, &hand, asked)?)
        }
    };
    check_named(state, &file, &hand)?;
    let mut proven: Option<BTreeSet<String>> = None;
    let mut left_out = BTreeSet::new();
    let mut repositories = Vec::new();
    for place in &set.places {
        let seen = place
            .look((state, &file), &set.current, &hand, &mac)
            .map_err(|e| e.context(format!("look at repository \"{}\"", place.name)))?;
        left_out.extend(seen.left_out);
        proven = Some(match proven {
            None => seen.proven,
            Some(before) => before.intersection(&seen.proven).cloned().collect(),
        });
        repositories.push(Given {
            repository: place.name.clone(),
            to_store: seen.to_store,
            stored: Vec::new(),
        });
    }
    let proven: Vec<String> = proven.unwrap_or_default().into_iter().collect();
    if proven.len() < PROVEN_MIN {
        return Err(too_few(&proven.iter().collect::<Vec<_>>()).hint("Nothing was stored. The configured key or passphrase counts, where its recipient is named; show the others' key files with --proof FILE."));
    }
    Ok(Plan {
        key_set: mac.id().to_string(),
        epoch: file.epoch(),
        state,
        recipients: hand.names().into_iter().map(str::to_owned).collect(),
        left_out: left_out.into_iter().collect(),
        repositories,
        is_of_hosts: state == State::Finished && file.epoch() == set.current.epoch(),
        others: set.others,
        writer_file: (state == State::Finished).then(|| directory.shown_writer()),
        work: Work {
            directory,
            file,
            mac,
            places: set.places,
            hand,
        },
    })
}

/// Draws the pair of the next epoch, and wraps the keys of every epoch for those who are named. Nobody else is in the file: who was withdrawn
/// does not come back by it.
fn make(set: &KeySet, hand: &Hand, asked: &Asked) -> Result<WriterFile> {
    let (first, former) = set.former()?;
    let epoch = set.current.epoch().checked_add(1);
    let epoch = epoch.ok_or_else(|| err!(Refused, "there are no more epochs"))?;
    let (private, _) = random_pair(&draw(system_random)?);
    let next = Contents {
        private,
        mac: set.mac()?.clone(),
        epoch,
    };
    let mut recipients = Vec::new();
    for contents in former.iter().chain([&next]) {
        recipients.extend(hand.wrap(contents, asked)?);
    }
    WriterFile::of_rotation(&next, &first, recipients)
}

/// A run that goes on is for the recipients for whom the pair was wrapped.
fn check_named(state: State, file: &WriterFile, hand: &Hand) -> Result<()> {
    let has: BTreeSet<&str> = file
        .recipients_of(file.epoch())
        .map(|r| r.recipient.as_str())
        .collect();
    let named: BTreeSet<&str> = hand.names().into_iter().collect();
    let fits = match state {
        State::Finished => named.is_subset(&has),
        State::New | State::Unfinished => named == has,
    };
    let has: Vec<&str> = has.into_iter().collect();
    match fits {
        true => Ok(()),
        false => Err(err!(
            Usage,
            "the file in the directory has epoch {} for {}",
            file.epoch(),
            has.join(", ")
        )
        .hint("Nothing was stored. Name the same recipients, or take the rotation back (--take-back) and begin another one. Once it is finished, pitr repo rewrap gives access to others.")),
    }
}

impl Plan {
    /// Whether something is to be done.
    pub fn is_change(&self) -> bool {
        self.state != State::Finished || self.repositories.iter().any(|r| !r.to_store.is_empty())
    }

    /// Says that nothing is rotated, where the directory has the file of `key_set` and no repository lacks its epochs.
    pub fn rotates_nothing(&self) -> Option<Error> {
        (self.is_of_hosts && !self.is_change()).then(|| {
            err!(
                Refused,
                "nothing was rotated: \"{}\" has the file of key_set, and no repository lacks its epochs",
                self.work.directory.shown()
            )
            .hint("Name an empty directory to give the key set another pair: --dir DIR")
        })
    }

    /// Whether the directory is that of `pitr repo keygen`: no rotation was ever done in it.
    pub fn is_of_keygen(&self) -> bool {
        self.epoch == FIRST_EPOCH
    }

    /// Gives every repository the epoch, looks that it has this one and no other, and makes the file for hosts.
    ///
    /// # Errors
    /// `Refused` where another rotation was there first; `Locked`; `Interrupted`; what the stores and the disk say. The same command goes on.
    pub fn carry_out(&mut self, session: &Session) -> Result<()> {
        if self.state == State::New {
            self.work.directory.begin(&self.work.file, session)?;
            self.state = State::Unfinished;
        }
        let _lock = self.work.directory.lock()?;
        self.work.directory.check_unchanged(self.state)?;
        fault::pause("rotate-begun");
        for (place, given) in self.work.places.iter().zip(&mut self.repositories) {
            session.host.check_stop()?;
            give(&self.work, place, given)
                .map_err(|e| e.context(format!("give repository \"{}\" the epoch", place.name)))?;
        }
        fault::pause("rotate-stored");
        for place in &self.work.places {
            session.host.check_stop()?;
            place
                .prove(
                    (self.state, &self.work.file),
                    &self.work.hand,
                    &self.work.mac,
                )
                .map_err(|e| {
                    e.context(format!("prove the epoch in repository \"{}\"", place.name))
                })?;
        }
        if self.state == State::Unfinished {
            self.work
                .directory
                .finish(&self.work.file, &self.work.mac, session)?;
            self.state = State::Finished;
        }
        self.work.directory.name()?;
        self.writer_file = Some(self.work.directory.shown_writer());
        Ok(())
    }
}

fn give(work: &Work, place: &Place, given: &mut Given) -> Result<()> {
    for recipient in work.file.recipients() {
        let key = places::key_of(recipient)?;
        if !given.to_store.contains(&key) {
            continue;
        }
        give_access(place.store(), recipient)?;
        given.to_store.retain(|other| *other != key);
        given.stored.push(key);
    }
    Ok(())
}

/// The objects of a rotation that is not finished.
#[derive(Serialize)]
pub struct TakenBack {
    pub epoch: u32,
    pub repositories: Vec<Deleted>,
    /// Whether it was done.
    pub confirmed: bool,
}

/// The objects of a repository that are to be deleted, or were.
#[derive(Serialize)]
pub struct Deleted {
    pub repository: String,
    pub keys: Vec<String>,
}

/// Deletes what a rotation has stored that is not finished: nothing can have been sealed to it.
///
/// # Errors
/// `Refused` where the directory has none, or it is finished; `Locked`; what the stores say. The same command goes on.
pub fn take_back(session: &Session, dir: &std::path::Path, confirm: bool) -> Result<TakenBack> {
    keyring::forbid_core_dumps()?;
    let directory = Directory::of(session, dir);
    let set = KeySet::open(session)?;
    let unfinished = match directory.read(&set)? {
        Some((State::Unfinished, file)) => file,
        Some(_) => {
            return Err(err!(
                Refused,
                "the rotation in \"{}\" is finished: hosts may have sealed to it",
                directory.shown()
            )
            .hint("Nothing was deleted. The next pair is another pitr repo rotate, with an empty directory."));
        }
        None => {
            return Err(err!(
                Refused,
                "\"{}\" has no rotation that is not finished",
                directory.shown()
            )
            .hint("Nothing was deleted."));
        }
    };
    let _lock = directory.lock()?;
    directory.check_unchanged(State::Unfinished)?;
    let mac = set.mac()?;
    let mut repositories = Vec::new();
    for place in &set.places {
        let keys = place
            .take_back(&unfinished, mac, confirm)
            .map_err(|e| e.context(format!("take back from repository \"{}\"", place.name)))?;
        repositories.push(Deleted {
            repository: place.name.clone(),
            keys,
        });
    }
    if confirm {
        // A rewrap may have given access meanwhile, and without the file nobody could take that back.
        for (place, deleted) in set.places.iter().zip(&mut repositories) {
            let later = place
                .take_back(&unfinished, mac, true)
                .map_err(|e| e.context(format!("take back from repository \"{}\"", place.name)))?;
            let keys = later.into_iter().filter(|key| !deleted.keys.contains(key));
            let keys: Vec<String> = keys.collect();
            deleted.keys.extend(keys);
        }
        directory.forget()?;
    }
    Ok(TakenBack {
        epoch: unfinished.epoch(),
        repositories,
        confirmed: confirm,
    })
}
