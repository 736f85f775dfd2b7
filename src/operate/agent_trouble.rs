//! The configuration that the agent of this host could not take, as the agent noted it: at its start, or while it goes on with the one before.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::human;
use super::session::Session;
use crate::behalf;
use crate::durable;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;

/// The file, below `state_dir`.
const FILE: &str = "agent-trouble.json";

/// The fault of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub since: TimestampTz,
    /// Why.
    pub error: String,
    /// The agent goes on with the configuration before; else it did not start.
    pub goes_on: bool,
}

impl Trouble {
    /// Says what it means.
    pub fn meaning(&self) -> String {
        let at = human::time(self.since);
        match self.goes_on {
            true => format!("the agent goes on with the configuration before since {at}"),
            false => format!("the agent did not start at {at}"),
        }
    }
}

/// Notes it, or that there is none any more.
///
/// # Errors
/// Those of the system.
pub fn note(session: &Session, state_dir: &Path, trouble: Option<(&str, bool)>) -> Result<()> {
    let path = state_dir.join(FILE);
    let Some((error, goes_on)) = trouble else {
        let failed = |e| Error::from_io(format!("write \"{}\"", path.display()), e);
        return behalf::of(&path, || durable::remove(&path)).map_err(failed);
    };
    let trouble = Trouble {
        since: session.host.now(),
        error: error.to_owned(),
        goes_on,
    };
    session.keep_json(&path, "the agent's trouble", &trouble)
}

/// Reads it. A file that is damaged or cannot be read tells of nothing: the agent writes it anew.
pub fn read(state_dir: &Path) -> Option<Trouble> {
    let bytes = behalf::read(&state_dir.join(FILE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}
