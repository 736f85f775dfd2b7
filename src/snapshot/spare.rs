//! Other repositories, from which an object is taken that is damaged or missing in the one that is read.
//!
//! They are opened when the first object fails its check, not before: a repository that is away costs nothing as long
//! as all is well. Objects that they give have to pass the same checks, down from the root that was read. A repository
//! that cannot be asked has given no answer: then nothing is lost yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use crate::error::{Code, Error, Result};
use crate::repo::healed;
use crate::repo::repository::Repository;
use crate::store::{Key, Store};

/// An object that another repository gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its key.
    pub object: String,
    /// The error of the repository that was read.
    pub detail: String,
    /// Its store must thaw it there: nothing is known to be wrong with it.
    pub is_frozen: bool,
    /// Location of the store that gave it instead.
    pub from: String,
}

/// A repository to fall back on: its name, and the repository, or why it cannot be asked.
pub type Spare = (String, Result<Repository>);

/// The repositories to fall back on, in order.
pub struct Spares<'a> {
    open: Box<dyn Fn() -> Vec<Spare> + Send + Sync + 'a>,
    opened: OnceLock<Vec<Spare>>,
    taken: Mutex<BTreeMap<String, Taken>>,
}

impl<'a> Spares<'a> {
    /// Those that `open` gives, which is called at most once.
    pub fn new(open: impl Fn() -> Vec<Spare> + Send + Sync + 'a) -> Spares<'a> {
        Spares {
            open: Box::new(open),
            opened: OnceLock::new(),
            taken: Mutex::default(),
        }
    }

    /// Returns the result of `read` on the first of them that has the object whole, if `own` says that the first place
    /// does not.
    ///
    /// # Errors
    /// `own`, when none has; when one could not be asked, why not. Those of the place that `read` writes to.
    pub fn or_other<T>(
        &self,
        key: &Key,
        own: Result<T>,
        read: impl Fn(&dyn Store) -> Result<T>,
    ) -> Result<T> {
        let e = match own {
            Err(e) if is_of_the_object(&e) => e,
            other => return other,
        };
        let mut silent = None;
        for (name, spare) in self.opened.get_or_init(|| (self.open)()) {
            let spare = match spare {
                Ok(spare) => spare.store(),
                Err(why) => {
                    silent.get_or_insert_with(|| could_not_ask(&e, name, why));
                    continue;
                }
            };
            match read(spare) {
                Ok(found) => {
                    self.note(key, &e, spare);
                    return Ok(found);
                }
                Err(why) if is_of_the_object(&why) => {}
                Err(why) if is_of_the_target(&why) => return Err(why),
                Err(why) => {
                    silent.get_or_insert_with(|| could_not_ask(&e, name, &why));
                }
            }
        }
        Err(silent.unwrap_or(e))
    }

    fn note(&self, key: &Key, e: &Error, from: &dyn Store) {
        if let Ok(mut taken) = self.taken.lock() {
            taken.entry(key.to_string()).or_insert_with(|| Taken {
                object: key.to_string(),
                detail: e.to_string(),
                is_frozen: e.is_frozen(),
                from: from.location(),
            });
        }
    }

    /// Returns the objects that were taken from them so far, by key.
    pub fn taken(&self) -> Vec<Taken> {
        let taken = self.taken.lock();
        taken.map_or_else(|_| Vec::new(), |t| t.values().cloned().collect())
    }
}

/// The repository that is read, and those to fall back on.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub store: &'a dyn Store,
    pub spares: Option<&'a Spares<'a>>,
}

impl Sources<'_> {
    /// Returns the result of `read` on the store, or on another one that has the object whole.
    pub fn proven<T>(&self, key: &Key, read: impl Fn(&dyn Store) -> Result<T>) -> Result<T> {
        let own = healed::read(self.store, key, &read);
        match self.spares {
            Some(spares) => spares.or_other(key, own, |store| healed::read(store, key, &read)),
            None => own,
        }
    }

    /// As [`Sources::proven`], of a part that is open: `own` is what it gave.
    pub fn proven_again<T>(
        &self,
        key: &Key,
        own: Result<T>,
        read: impl Fn(&dyn Store) -> Result<T>,
    ) -> Result<T> {
        match own {
            Err(e) if healed::is_of_the_object(&e) || e.is_frozen() => {}
            other => return other,
        }
        self.proven(key, read)
    }
}

/// The answer of a repository that may have the object whole is missing.
fn could_not_ask(own: &Error, name: &str, why: &Error) -> Error {
    let code = match why.code() {
        // Its marker: that says nothing about the object.
        Code::Damaged => Code::Unreachable,
        code => code,
    };
    let message = format!(
        "{own}, and repository \"{name}\", which may have it whole, could not be asked: {why}"
    );
    Error::new(code, message)
        .hint("Nothing is known to be lost. Run the same command again when that repository can be reached: it goes on where this one ended.")
}

fn is_of_the_target(e: &Error) -> bool {
    matches!(e.code(), Code::TargetWrite | Code::Interrupted)
}

/// Whether an error says that this copy of an object is of no use.
pub fn is_of_the_object(e: &Error) -> bool {
    e.code() == Code::Damaged || e.is_medium()
}
