//! The object that says where a history came from (format, section 17.1).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::log::LogKeys;
use super::record::State;
use crate::err;
use crate::error::{Error, Result};
use crate::repo::json;
use crate::repo::repository::Repository;

const KIND: &str = "log_history";
const LIMIT_BYTES: u64 = 1 << 20;

/// A history: the commands that one server carried out, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The history that it goes on from.
    pub parent: Option<String>,
    /// How many bytes of that one it begins with.
    pub fork: Option<u64>,
    /// The process that sent its first bytes.
    pub run_id: String,
    /// The version of that server, as it names it.
    pub server_version: String,
    /// The family of that server.
    pub flavor: String,
}

impl History {
    /// That of received bytes.
    pub fn of(state: &State) -> History {
        let (parent, fork) = state.parent.clone().unzip();
        History {
            parent,
            fork,
            run_id: state.run_id.clone(),
            server_version: state.server_version.clone(),
            flavor: state.flavor.clone(),
        }
    }

    /// Reads it; none where there is none.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    pub fn read(repository: &Repository, keys: &LogKeys<'_>) -> Result<Option<History>> {
        json::read(repository.store(), &keys.history()?, KIND, LIMIT_BYTES)
    }

    /// Stores it, where it is not there.
    ///
    /// # Errors
    /// `Conflict` when the stored one has another parent or fork; those of the store.
    pub fn put(&self, repository: &Repository, keys: &LogKeys<'_>) -> Result<()> {
        let key = keys.history()?;
        if self.is_there(repository, keys)? {
            return Ok(());
        }
        let mut object = repository.store().create(&key)?;
        object
            .write_all(&json::encode(&key, KIND, self)?)
            .map_err(|e| Error::from_io(format!("write object \"{key}\""), e))?;
        object.describe(self.facts(), None);
        object.publish()?;
        match self.is_there(repository, keys)? {
            true => Ok(()),
            false => Err(err!(Unreachable, "object \"{key}\" came and went")),
        }
    }

    /// The facts that stay plain in an encrypted repository.
    fn facts(&self) -> Map<String, Value> {
        Map::from_iter([
            ("parent".to_owned(), self.parent.clone().into()),
            ("fork".to_owned(), self.fork.into()),
        ])
    }

    fn is_there(&self, repository: &Repository, keys: &LogKeys<'_>) -> Result<bool> {
        let Some(stored) = History::read(repository, keys)? else {
            return Ok(false);
        };
        if (&stored.parent, stored.fork) != (&self.parent, self.fork) {
            return Err(err!(
                Conflict,
                "\"{}\" is already stored with another parent",
                keys.history()?
            )
            .hint("Nothing was overwritten. Likely two servers go on with the same history: a clone, or one that was set back. Stop the receiver of the wrong one."));
        }
        Ok(true)
    }
}
