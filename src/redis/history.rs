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

/// A history, and those that it goes on from.
pub type Lineage<'a> = (&'a str, &'a [Parent]);

/// Pure: the histories that left one, and where. One that left another at or before its beginning left the one before that: a replica that was promoted had
/// nothing of its own of the one between.
pub fn leaving<'a>(all: &[Lineage<'a>], replid: &str) -> Vec<(&'a str, u64)> {
    let mut found: Vec<(&str, u64)> = Vec::new();
    let mut next = vec![(replid, 0)];
    while let Some((left, begins)) = next.pop() {
        for (child, parents) in all {
            let fork = parents.iter().find(|p| p.replid == left).map(|p| p.fork);
            let is_new = *child != replid && found.iter().all(|(known, _)| known != child);
            // Behind its beginning a history has bytes of its own.
            if let Some(fork) = fork.filter(|fork| is_new && (left == replid || *fork <= begins)) {
                found.push((child, fork));
                next.push((child, fork));
            }
        }
    }
    found.sort_unstable();
    found
}

/// Pure: whether a history goes on from another one, by any number of steps.
pub fn descends(all: &[Lineage<'_>], replid: &str, from: &str) -> bool {
    let (mut seen, mut next) = (Vec::new(), vec![replid]);
    while let Some(at) = next.pop() {
        let own = all.iter().filter(|(id, _)| *id == at);
        for parent in own.flat_map(|(_, parents)| *parents) {
            if parent.replid == from {
                return true;
            }
            if !seen.contains(&parent.replid.as_str()) {
                seen.push(&parent.replid);
                next.push(&parent.replid);
            }
        }
    }
    false
}

/// The last byte before a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_is_left_before_its_beginning_is_passed_over() {
        let parents = |of: &[(&str, u64)]| -> Vec<Parent> {
            let parent = |(replid, fork): &(&str, u64)| Parent {
                replid: (*replid).to_owned(),
                fork: *fork,
            };
            of.iter().map(parent).collect()
        };
        // The server went on with b at 100; c had 90 bytes, d 100, e 150.
        let forks = [
            ("a", parents(&[])),
            ("b", parents(&[("a", 100)])),
            ("c", parents(&[("b", 90)])),
            ("d", parents(&[("b", 100)])),
            ("e", parents(&[("b", 150)])),
            ("f", parents(&[("c", 80)])),
        ];
        let all: Vec<Lineage<'_>> = forks.iter().map(|(id, of)| (*id, of.as_slice())).collect();
        let left = [("b", 100), ("c", 90), ("d", 100), ("f", 80)];
        assert_eq!(leaving(&all, "a"), left);
        assert_eq!(
            leaving(&all, "b"),
            [("c", 90), ("d", 100), ("e", 150), ("f", 80)]
        );
        assert!(descends(&all, "f", "a") && descends(&all, "c", "b"));
        assert!(!descends(&all, "a", "f") && !descends(&all, "c", "d"));
        // A wrong record of two that go on from each other ends, too.
        let (a, b) = (parents(&[("b", 5)]), parents(&[("a", 5)]));
        let circle = [("a", a.as_slice()), ("b", b.as_slice())];
        assert_eq!(leaving(&circle, "a"), [("b", 5)]);
        assert!(!descends(&circle, "a", "c"));
    }
}
