//! Alert sinks that take nothing, as the agent of this host noted them last.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::behalf;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;

/// The file of the agent's notices, below `state_dir`.
pub const FILE: &str = "alerts.json";

/// A sink that does not take what it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    pub since: TimestampTz,
    /// Why.
    pub error: String,
}

/// The part of the file that tells of them.
#[derive(Default, Deserialize)]
struct Noted {
    #[serde(default)]
    failing: BTreeMap<String, Failing>,
}

/// Reads those that are configured. The agent gives a damaged file up and writes it anew, so it tells of none.
///
/// # Errors
/// Those of the system, apart from a file that is not there: nothing was sent yet.
pub fn read(settings: &Settings, state_dir: &Path) -> Result<BTreeMap<String, Failing>> {
    let path = state_dir.join(FILE);
    let noted = match behalf::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(e) if e.kind() == ErrorKind::NotFound => Noted::default(),
        Err(e) => return Err(Error::from_io(format!("read \"{}\"", path.display()), e)),
    };
    let mut failing = noted.failing;
    failing.retain(|name, _| settings.alerts.iter().any(|sink| sink.name == *name));
    Ok(failing)
}
