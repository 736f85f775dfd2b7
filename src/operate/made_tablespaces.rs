//! The tablespaces that recovery makes behind a backup. It takes a directory that is there, with all files in it: those of the cluster itself, where
//! that lives on this host.
//!
//! PostgreSQL: src/backend/commands/tablespace.c (`create_tablespace_directories`): only outside of recovery is a directory refused that is in use.

use std::path::{Path, PathBuf};

use crate::err;
use crate::error::{Error, Result};
use crate::restore::replace::Old;
use crate::wal::tablespaces::Made;

/// Requires that no files lie where recovery makes a tablespace. Those of the cluster that is replaced are moved aside before.
///
/// # Errors
/// `Refused`.
pub fn require_free(made: &Made, major: u32, replaces: Option<&Old>) -> Result<()> {
    for (oid, path) in made {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if replaces.is_some_and(|old| old.has_tablespace(&real)) {
            continue;
        }
        if let Some(files) = in_the_way(&real, major) {
            return Err(err!(
                Refused,
                "recovery makes tablespace {oid} in \"{}\", and would write into the files of \"{}\"",
                path.display(),
                files.display()
            )
            .hint("Nothing was written. These may be the files of the cluster itself.\nA backup that has the tablespace leads it elsewhere: take one with pitr backup, and name a later moment.\nFor this moment, restore on another host. If no cluster needs the files, move that directory away."));
        }
    }
    Ok(())
}

/// Refuses a server that is to leave the host as it is.
///
/// # Errors
/// `Refused`.
pub fn refuse(made: &Made) -> Result<()> {
    match made.first_key_value() {
        None => Ok(()),
        Some((oid, path)) => Err(outside(*oid, path)),
    }
}

fn outside(oid: u32, path: &Path) -> Error {
    err!(
        Refused,
        "recovery to this moment makes tablespace {oid} in \"{}\", outside of the copy",
        path.display()
    )
    .hint("Nothing was started: the server would write there, into the files of the cluster itself where it lives on this host.\nA backup that has the tablespace leads it elsewhere: take one with pitr backup, and name a later moment.\nFor this moment, restore on another host: pitr restore")
}

/// The directory of a tablespace that is not empty.
fn in_the_way(path: &Path, major: u32) -> Option<PathBuf> {
    let beginning = format!("PG_{major}_");
    let entries = std::fs::read_dir(path).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        name.as_encoded_bytes()
            .starts_with(beginning.as_bytes())
            .then(|| entry.path())
    });
    let is_used =
        |at: &PathBuf| std::fs::read_dir(at).is_ok_and(|mut files| files.next().is_some());
    entries.into_iter().find(is_used)
}
