//! The private halves that open objects: one of each epoch, each asked for when the first object of it is opened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::healed::is_of_the_object;
use super::keyring::{self, Keys};
use crate::config::Encryption;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::seal::{FIRST_EPOCH, PrivateHalf};
use crate::store::Store;

/// The private halves that a host gets at.
pub struct Halves {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
    /// The configuration of a host that seals with its own files and opens by a command: it is asked when the first object is opened, so that
    /// archiving needs no command.
    late: Option<Encryption>,
    /// A command that failed is not run for each object.
    asked: OnceLock<std::result::Result<Keys, Refusal>>,
    /// Of later epochs. A recipient that has no access to one is not looked for with each object.
    later: Mutex<BTreeMap<u32, std::result::Result<PrivateHalf, Refusal>>>,
}

/// The message and the next step of an error that comes again.
struct Refusal(String, Option<String>);

impl Refusal {
    fn of(e: &Error) -> Refusal {
        Refusal(e.to_string(), e.hint_text().map(str::to_owned))
    }

    fn error(&self) -> Error {
        let Refusal(message, hint) = self;
        let e = err!(Key, "{message}");
        match hint {
            Some(hint) => e.hint(hint.clone()),
            None => e,
        }
    }
}

impl Halves {
    /// What `keys` give access to in the store of their repository.
    pub fn new(store: Arc<dyn Store>, keys: Arc<Keys>, late: Option<Encryption>) -> Halves {
        Halves {
            store,
            keys,
            late,
            asked: OnceLock::new(),
            later: Mutex::default(),
        }
    }

    /// Whether this host opens objects.
    pub fn can_open(&self) -> bool {
        self.keys.private.is_some() || self.late.is_some()
    }

    /// Returns the private half of an epoch; none on a host that opens nothing.
    ///
    /// # Errors
    /// `Key` without access to the epoch; what the store says.
    pub fn of(&self, epoch: u32) -> Result<Option<PrivateHalf>> {
        let keys = match &self.late {
            None => self.keys.as_ref(),
            Some(from) => self.late_keys(from)?,
        };
        match epoch {
            FIRST_EPOCH => Ok(keys.private.clone()),
            later => self.later(keys, later),
        }
    }

    fn late_keys(&self, from: &Encryption) -> Result<&Keys> {
        let answer = match self.asked.get() {
            Some(known) => known,
            None => match Keys::load(self.store.as_ref(), self.keys.id, Some(from)) {
                Ok(keys) => self.asked.get_or_init(|| Ok(keys)),
                Err(e) if e.code() == Code::Key => {
                    let refusal = Refusal::of(&e);
                    self.asked.get_or_init(|| Err(refusal))
                }
                Err(e) => return Err(e),
            },
        };
        answer.as_ref().map_err(Refusal::error)
    }

    fn later(&self, keys: &Keys, epoch: u32) -> Result<Option<PrivateHalf>> {
        let (Some(own), Some(mac)) = (&keys.own, &keys.mac) else {
            return Ok(None);
        };
        // Held while it is opened: a passphrase costs a second, once.
        let mut known = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&epoch) {
            return known.clone_half().map(Some);
        }
        let access = (own.recipient.as_str(), &own.access());
        let opened = keyring::open_later(self.store.as_ref(), epoch, access, mac);
        let opened = match opened.map(|contents| contents.private) {
            // The recipient's object is damaged, and not the object that is to be opened.
            Err(e) if e.is_damage() || is_of_the_object(&e) => Err(e.with_code(Code::Key)),
            other => other,
        };
        let answer = match opened {
            Ok(private) => Ok(private),
            Err(e) if e.code() == Code::Key => Err(Refusal::of(&e)),
            Err(e) => return Err(e),
        };
        known.entry(epoch).or_insert(answer).clone_half().map(Some)
    }
}

trait Answer {
    fn clone_half(&self) -> Result<PrivateHalf>;
}

impl Answer for std::result::Result<PrivateHalf, Refusal> {
    fn clone_half(&self) -> Result<PrivateHalf> {
        match self {
            Ok(private) => Ok(private.clone()),
            Err(refusal) => Err(refusal.error()),
        }
    }
}
