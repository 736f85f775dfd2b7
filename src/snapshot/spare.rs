//! Other repositories, from which an object is taken that is damaged or missing in the one that is read.
//!
//! They are opened when the first object fails its check, not before: one that is away costs nothing as long as all is well. What they give
//! has to pass the same checks, down from the root that was read.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use crate::error::{Code, Error, Result};
use crate::repo::repository::Repository;
use crate::store::{Key, Store};

/// An object that another repository gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its key.
    pub object: String,
    /// What is wrong with it in the repository that was read.
    pub detail: String,
    /// Where it was taken from instead.
    pub from: String,
}

/// The repositories to fall back on, in order.
pub struct Spares<'a> {
    open: Box<dyn Fn() -> Vec<Repository> + Send + Sync + 'a>,
    opened: OnceLock<Vec<Repository>>,
    taken: Mutex<BTreeMap<String, Taken>>,
}

impl<'a> Spares<'a> {
    /// Those that `open` gives, which is called at most once.
    pub fn new(open: impl Fn() -> Vec<Repository> + Send + Sync + 'a) -> Spares<'a> {
        Spares {
            open: Box::new(open),
            opened: OnceLock::new(),
            taken: Mutex::default(),
        }
    }

    /// What `read` makes of the first of them that has the object whole, where `own` says that it is not so where it was looked for.
    ///
    /// # Errors
    /// `own`, when none has.
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
        for spare in self.opened.get_or_init(|| (self.open)()) {
            if let Ok(found) = read(spare.store()) {
                self.note(key, &e, spare.store());
                return Ok(found);
            }
        }
        Err(e)
    }

    fn note(&self, key: &Key, e: &Error, from: &dyn Store) {
        if let Ok(mut taken) = self.taken.lock() {
            taken.entry(key.to_string()).or_insert_with(|| Taken {
                object: key.to_string(),
                detail: e.to_string(),
                from: from.location(),
            });
        }
    }

    /// What was taken from them so far, by object.
    pub fn taken(&self) -> Vec<Taken> {
        let taken = self.taken.lock();
        taken.map_or_else(|_| Vec::new(), |t| t.values().cloned().collect())
    }
}

/// Whether an error says that this copy of an object is of no use.
pub fn is_of_the_object(e: &Error) -> bool {
    e.code() == Code::Damaged || e.is_medium()
}
