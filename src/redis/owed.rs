//! The base that a receiver owes behind a gap: before it is stored, nothing is acknowledged.
//!
//! The server counts positions alone: an acknowledgement behind a gap answers a client that still waits for a command inside the gap, too. That command is in no
//! log. The next base has it.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::history::{Held, Parent};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};

const LIMIT_BYTES: u64 = 1 << 16;

/// The base that is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The place that it has to hold: a history, and the position behind the gap.
    #[serde(flatten)]
    pub place: Held,
    /// The history that was left there before its end: a base from which its log leads to that position serves as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Parent>,
}

/// The base that is owed, in memory and in a file beside the journal: another process must not forget it.
pub struct Owed {
    path: PathBuf,
    behind: Mutex<Option<Base>>,
}

impl Owed {
    /// Reads the file. One that cannot be read counts as a base that is owed, of no known history.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: PathBuf) -> Result<Owed> {
        let behind = match std::fs::metadata(&path) {
            Ok(found) if found.len() <= LIMIT_BYTES => {
                let bytes = std::fs::read(&path).map_err(|e| failed("read", &path, e))?;
                Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| unknown()))
            }
            Ok(_) => Some(unknown()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("read", &path, e)),
        };
        Ok(Owed {
            path,
            behind: Mutex::new(behind),
        })
    }

    fn behind(&self) -> MutexGuard<'_, Option<Base>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The base, as long as it is owed.
    pub fn get(&self) -> Option<Base> {
        self.behind().clone()
    }

    /// Owes a base from this place on. The file is synced then.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set(&self, behind: Base, nonce: u64) -> Result<()> {
        let mut known = self.behind();
        if known.as_ref() == Some(&behind) {
            return Ok(());
        }
        let text = serde_json::to_vec(&behind)
            .map_err(|e| err!(Internal, "a position has no text").source(e))?;
        durable::replace(&self.path, &text, nonce).map_err(|e| failed("write", &self.path, e))?;
        *known = Some(behind);
        Ok(())
    }

    /// A history goes on as another one: the base has to be of that, for its server has the former no more.
    ///
    /// # Errors
    /// Those of the system.
    pub fn follow(&self, to: Held, nonce: u64) -> Result<()> {
        match self.get() {
            Some(behind) if behind.place.replid != to.replid => self.set(Base::behind(to), nonce),
            _ => Ok(()),
        }
    }

    /// Whether a base at this position is the one that is owed.
    pub fn is_met_by(&self, (replid, offset): (&str, u64)) -> bool {
        let known = self.behind();
        known
            .as_ref()
            .is_some_and(|Base { place, .. }| place.replid == replid && place.position <= offset)
    }

    /// The base for this place is stored. A later gap has another place, and stays.
    ///
    /// # Errors
    /// Those of the system: another process would owe it again.
    pub fn settle(&self, met: &Base) -> Result<()> {
        let mut known = self.behind();
        if known.as_ref() != Some(met) {
            return Ok(());
        }
        *known = None;
        durable::remove(&self.path).map_err(|e| failed("remove", &self.path, e))
    }
}

impl Base {
    /// One behind a gap.
    pub fn behind(place: Held) -> Base {
        Base { place, left: None }
    }
}

fn unknown() -> Base {
    Base::behind(Held {
        replid: String::new(),
        position: 0,
    })
}

fn failed(what: &str, path: &std::path::Path, error: std::io::Error) -> Error {
    Error::from_io(format!("{what} \"{}\"", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(replid: &str, position: u64) -> Held {
        Held {
            replid: replid.to_owned(),
            position,
        }
    }

    fn base(replid: &str, position: u64) -> Base {
        Base::behind(held(replid, position))
    }

    #[test]
    fn what_is_owed_outlives_the_process_until_it_is_met() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.owed");
        let owed = Owed::open(path.clone()).unwrap();
        assert_eq!(owed.get(), None);
        // Nothing is owed: a failover changes nothing.
        owed.follow(held("b", 5), 1).unwrap();
        assert_eq!(owed.get(), None);
        owed.set(base("a", 100), 2).unwrap();
        let next = Owed::open(path.clone()).unwrap();
        assert_eq!(next.get(), Some(base("a", 100)));
        assert!(!next.is_met_by(("a", 99)) && !next.is_met_by(("b", 200)));
        assert!(next.is_met_by(("a", 100)));
        next.follow(held("a", 300), 3).unwrap();
        assert_eq!(next.get(), Some(base("a", 100)));
        next.follow(held("b", 120), 4).unwrap();
        assert!(!next.is_met_by(("a", 200)) && next.is_met_by(("b", 120)));
        // A gap that came meanwhile is not met by a base for the former one.
        next.settle(&base("a", 100)).unwrap();
        assert_eq!(next.get(), Some(base("b", 120)));
        next.settle(&base("b", 120)).unwrap();
        assert_eq!(next.get(), None);
        assert_eq!(Owed::open(path).unwrap().get(), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_base_that_is_owed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.owed");
        std::fs::write(&path, b"{\"repl").unwrap();
        let owed = Owed::open(path).unwrap();
        assert_eq!(owed.get(), Some(unknown()));
        owed.follow(held("a", 9), 1).unwrap();
        assert_eq!(owed.get(), Some(base("a", 9)));
    }

    #[test]
    fn the_file_of_an_older_version_is_read() {
        let of = |text: &str| serde_json::from_str::<Base>(text).unwrap();
        assert_eq!(of(r#"{"replid":"a","position":7}"#), base("a", 7));
        let left = Base {
            left: Some(Parent {
                replid: "a".to_owned(),
                fork: 7,
            }),
            ..base("b", 7)
        };
        assert_eq!(of(&serde_json::to_string(&left).unwrap()), left);
    }
}
