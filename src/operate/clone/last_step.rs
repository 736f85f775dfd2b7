//! The last step of a clone that is kept: it becomes a plain data directory.
//!
//! All that it needs is in the folder, and each part of it may be done twice. So a power cut that comes in between, or instead, costs
//! nothing: the next command that looks at clones does the step again.

use std::path::Path;

use super::folder::{self, Folder, Stage, State};
use crate::archive::guard::{AUTO_CONF, COMMENT};
use crate::durable;
use crate::error::{Error, Result};
use crate::pg::conf;
use crate::restore::hollow;

/// The file of the folder that holds the cluster's own postgresql.auto.conf, which the quarantine has taken out.
const BROUGHT: &str = "auto.conf";

/// Writes down what the last step needs.
///
/// # Errors
/// `Io`.
pub(super) fn prepare(folder: &Folder, brought: &[u8], nonce: u64) -> Result<()> {
    let path = folder.path().join(BROUGHT);
    durable::replace(&path, brought, nonce)
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}

/// Does the step for a clone that is whole, whose server has ended and which is not mounted any more.
///
/// # Errors
/// `Io`, `TargetWrite`.
pub(super) fn take(folder: &Path, state: &State) -> Result<State> {
    let path = state.data.join(AUTO_CONF);
    let read = |path: &Path| {
        std::fs::read(path).map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))
    };
    let (brought, now) = (read(&folder.join(BROUGHT))?, read(&path)?);
    let is_done = !brought.is_empty() && now.starts_with(&brought);
    if !is_done {
        let text = conf::append(&brought, COMMENT, &conf::settings(&now))?;
        durable::rewrite(&path, &text, u64::from(state.pid))
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
    }
    hollow::commit(&folder::tree_of(folder), &state.data)?;
    let kept = State {
        stage: Stage::Kept,
        connection: None,
        ends: None,
        not_kept: None,
        ..state.clone()
    };
    folder::put(folder, &kept)?;
    Ok(kept)
}
