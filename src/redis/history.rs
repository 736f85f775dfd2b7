//! The objects that say of a history who sent it, which others it goes on from, and where its reception began (format, section 16.7).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::json;
use crate::repo::log_keys::{self, LogKeys};
use crate::repo::repository::Repository;
use crate::store::Key;

const HISTORY: &str = "log_history";
const PARENT: &str = "log_parent";
const BEGINNING: &str = "log_beginning";
const LIMIT_BYTES: u64 = 1 << 20;

/// A history: the commands that one server carried out, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The server that was registered when its first bytes were stored.
    pub source: String,
    /// The process that sent these.
    pub run_id: String,
    /// The version of that process, as it names it.
    pub server_version: String,
    /// The family of that process.
    pub flavor: String,
}

impl History {
    /// Reads it; none where there is none.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    pub fn read(repository: &Repository, keys: &LogKeys) -> Result<Option<History>> {
        json::read(repository.store(), &keys.history()?, HISTORY, LIMIT_BYTES)
    }

    /// Stores it, where none is there: the first one stays.
    ///
    /// # Errors
    /// Those of the store.
    pub fn put(&self, repository: &Repository, keys: &LogKeys) -> Result<()> {
        put_once(repository, &keys.history()?, HISTORY, self)
    }
}

/// Another history, with whose first bytes this one begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Parent {
    /// Its name.
    pub replid: String,
    /// How many bytes of it. A replica may name fewer than there are: of several the largest number counts.
    pub fork: u64,
}

impl Parent {
    /// Stores it, where it is not there.
    ///
    /// # Errors
    /// Those of the store.
    pub fn put(&self, repository: &Repository, keys: &LogKeys) -> Result<()> {
        put_once(
            repository,
            &keys.parent(&self.replid, self.fork)?,
            PARENT,
            self,
        )
    }

    /// Reads those of a history: of each parent the largest number.
    ///
    /// # Errors
    /// Those of the store.
    pub fn of(repository: &Repository, keys: &LogKeys) -> Result<Vec<Parent>> {
        let mut found: Vec<Parent> = Vec::new();
        for listed in repository.store().list(&keys.parents())? {
            let parsed = log_keys::parse_parent(&listed.name).filter(|_| !listed.is_prefix);
            let Some((replid, fork)) = parsed else {
                continue;
            };
            let parent = Parent {
                replid: replid.to_owned(),
                fork,
            };
            match found.iter_mut().find(|p| p.replid == parent.replid) {
                Some(known) => known.fork = known.fork.max(parent.fork),
                None => found.push(parent),
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// The last byte before a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its history.
    pub replid: String,
    /// The position behind it.
    pub position: u64,
}

/// A place where reception began without the bytes before it: the start, or the end of a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    /// The first byte.
    pub position: u64,
    /// The bytes that the receiver had before; none at its start.
    pub after: Option<Held>,
    /// Why there is a gap.
    pub reason: Option<String>,
    /// By the receiver's clock.
    pub time: TimestampTz,
}

impl Beginning {
    /// Stores it, where none is there: the first one stays.
    ///
    /// # Errors
    /// Those of the store.
    pub fn put(&self, repository: &Repository, keys: &LogKeys) -> Result<()> {
        put_once(repository, &keys.beginning(self.position)?, BEGINNING, self)
    }

    /// Reads those of a history, ascending by position.
    ///
    /// # Errors
    /// `Damaged`; `Key` where they cannot be read; those of the store.
    pub fn of(repository: &Repository, keys: &LogKeys) -> Result<Vec<Beginning>> {
        let listed = repository.store().list(&keys.beginnings())?;
        let mut positions: Vec<u64> = listed
            .iter()
            .filter(|listed| !listed.is_prefix)
            .filter_map(|listed| log_keys::parse_position(&listed.name))
            .collect();
        positions.sort_unstable();
        let read = |position: u64| {
            let key = keys.beginning(position)?;
            json::read(repository.store(), &key, BEGINNING, LIMIT_BYTES)
        };
        let found: Result<Vec<Option<Beginning>>> = positions.into_iter().map(read).collect();
        Ok(found?.into_iter().flatten().collect())
    }
}

/// Stores an object of which the first one counts: its fields are facts, too.
fn put_once(repository: &Repository, key: &Key, kind: &str, value: &impl Serialize) -> Result<()> {
    if let Some(object) = repository.store().open(key)? {
        return object.settle();
    }
    let mut object = repository.store().create(key)?;
    object
        .write_all(&json::encode(key, kind, value)?)
        .map_err(|e| Error::from_io(format!("write object \"{key}\""), e))?;
    let facts = match serde_json::to_value(value)? {
        Value::Object(facts) => facts,
        _ => Map::new(),
    };
    object.describe(facts, None);
    object.publish().map(|_| ())
}
