//! The names of a cluster's shards, kept beside the journals: a receiver starts by them when no repository answers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Redis;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::redis::nodes::Known;

/// The version of the file.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    shards: Vec<Known>,
}

/// The file of a cluster in the directory of its journals.
pub(super) fn path(directory: &Path, cluster: &str) -> PathBuf {
    directory.join(format!("cluster-{cluster}.json"))
}

/// Reads the names; no file has none.
///
/// # Errors
/// `Damaged`; those of the system.
pub(super) fn read(section: &Redis) -> Result<Vec<Known>> {
    let Some(directory) = &section.journal else {
        return Ok(Vec::new());
    };
    let path = path(directory, &section.name);
    let shown = path.display();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::from_io(format!("read \"{shown}\""), e)),
    };
    let damaged = |text: &str| {
        err!(Damaged, "\"{shown}\" has no names of shards: {text}")
            .hint("Where all repositories answer, it is not needed: move it away.")
    };
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|e| damaged(&e.to_string()))?;
    match kept.version {
        VERSION => Ok(kept.shards),
        other => Err(damaged(&format!("it is of version {other}"))),
    }
}

/// Writes them durably.
///
/// # Errors
/// Those of the system.
pub(super) fn write(path: &Path, known: &[Known], nonce: u64) -> Result<()> {
    let kept = Kept {
        version: VERSION,
        shards: known.to_vec(),
    };
    let bytes = serde_json::to_vec(&kept);
    let bytes = bytes.map_err(|e| err!(Internal, "names of shards are no JSON").source(e))?;
    durable::replace(path, &bytes, nonce)
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}
