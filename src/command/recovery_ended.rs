//! `pitr-restore --recovery-ended`: the recovery_end_command that takes the settings of a restore away again.
//!
//! A recovery target that is left behind stops the next standby made from the cluster. A failure must never stop the server: it has
//! recovered, and `pitr adopt` can do the same later. The caller leaves with status 0 or 1.
//!
//! PostgreSQL runs it in the data directory, after the signal files are gone (src/backend/access/transam/xlog.c,
//! `CleanupAfterArchiveRecovery`; 13, 14: `StartupXLOG`).

use std::path::Path;

use super::Arguments;
use crate::archive::datadir::DataDirectory;
use crate::archive::guard::{self, Which};
use crate::archive::prefetched;
use crate::err;
use crate::error::Result;

/// The option that asks for it.
pub const SWITCH: &str = "recovery-ended";

/// Takes the settings away from the data directory that the arguments name, else the working directory; returns how many there were.
///
/// # Errors
/// `Usage`; those of [`guard::take_away`].
pub fn run(arguments: &Arguments, nonce: u64) -> Result<usize> {
    let root = match arguments.files.as_slice() {
        [] => Path::new("."),
        [directory] => Path::new(directory),
        more => {
            return Err(err!(
                Usage,
                "at most one argument expected, got {}",
                more.len()
            ));
        }
    };
    let directory = DataDirectory::at(root);
    // The worker sees for itself that it is over, unless it was killed.
    prefetched::sweep_leftovers(&directory);
    let removed = guard::take_away(&directory, Which::Recovery, nonce)
        .map_err(|e| e.hint("The server goes on. Run pitr adopt, or remove the recovery settings from postgresql.auto.conf by hand."))?;
    Ok(removed.len())
}
