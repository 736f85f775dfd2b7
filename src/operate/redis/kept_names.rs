//! The names of a cluster's shards, kept beside the journals: a receiver starts by them when no repository answers.

use std::path::{Path, PathBuf};

use crate::config::Redis;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::redis::nodes::Known;

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
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            err!(Damaged, "\"{shown}\" has no names of shards")
                .source(e)
                .hint("Where all repositories answer, it is not needed: move it away.")
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::from_io(format!("read \"{shown}\""), e)),
    }
}

/// Writes them durably.
///
/// # Errors
/// Those of the system.
pub(super) fn write(path: &Path, known: &[Known], nonce: u64) -> Result<()> {
    let bytes = serde_json::to_vec(known);
    let bytes = bytes.map_err(|e| err!(Internal, "names of shards are no JSON").source(e))?;
    durable::replace(path, &bytes, nonce)
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}
