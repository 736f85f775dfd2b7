//! The cluster that waits beside the one that it is to replace: opened for a recovery in private, closed before it takes the place, or given up.

use std::path::Path;

use super::entry::{failed, inode_of, looked, move_to};
use super::{UNCHANGED, check_stopped, check_user, control_of, digest};
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard::{SETTINGS, UNFINISHED, WrittenSettings, read_json};
use crate::durable;
use crate::err;
use crate::error::Result;
use crate::restore::target_dir::{CLOSED, CONTROL};

/// Lets a server start in a cluster that waits.
///
/// # Errors
/// `TargetWrite`.
pub fn open(waiting: &Path) -> Result<()> {
    name_control(waiting, CLOSED, CONTROL)
}

/// Keeps servers from starting in a cluster that waits.
///
/// # Errors
/// `TargetWrite`.
pub fn close(waiting: &Path) -> Result<()> {
    name_control(waiting, CONTROL, CLOSED)
}

/// Gives pg_control another name, if it has the first one.
pub(super) fn name_control(data: &Path, from: &str, to: &str) -> Result<()> {
    let (from, to) = (data.join(from), data.join(to));
    if inode_of(&from)?.is_none() && inode_of(&to)?.is_some() {
        return Ok(());
    }
    move_to(&from, &to)?;
    let global = data.join("global");
    durable::sync_directory_at(&global).map_err(|e| failed(&global, e))
}

/// BLAKE3 of a cluster's pg_control, which every server changes.
///
/// # Errors
/// Those of the system.
pub fn digest_of_control(data: &Path) -> Result<Option<String>> {
    Ok(control_of(data)?.map(|bytes| digest(&bytes)))
}

/// Whether a cluster that waits has recovered in private, and no server has run on it since.
///
/// # Errors
/// Those of the system.
pub fn is_recovered(waiting: &Path) -> Result<bool> {
    let path = DataDirectory::at(waiting).wal().join(SETTINGS);
    let written: Option<WrittenSettings> = read_json(&path)?;
    let noted = written.and_then(|written| written.recovered);
    Ok(noted.is_some() && noted == digest_of_control(waiting)?)
}

/// Requires that a cluster that waits is one that recovered in private.
///
/// # Errors
/// `NotFound` where none waits; `Refused` for one that did not recover, or on which a server has run since.
pub fn require_recovered(waiting: &Path) -> Result<()> {
    check_stopped(waiting)?;
    let shown = waiting.display();
    if inode_of(waiting)?.is_none() {
        return Err(
            err!(NotFound, "no cluster waits in \"{shown}\"").hint(format!(
                "{UNCHANGED} Restore one first: pitr restore --aside"
            )),
        );
    }
    match is_recovered(waiting)? {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "the cluster in \"{shown}\" has not recovered in private, or a server has run on it since"
        )
        .hint("Nothing was changed. Run the restore with --aside again. If it is refused, give the copy up: pitr restore --aside --undo --to DIR --confirm")),
    }
}

/// Removes a cluster that waits, where it is a restored copy that nobody has adopted. Whether there was one.
///
/// # Errors
/// `Refused` while a server runs there, for root, and for what is no such copy; `TargetWrite`.
pub fn give_up(waiting: &Path) -> Result<bool> {
    check_user()?;
    if inode_of(waiting)?.is_none() {
        return Ok(false);
    }
    check_stopped(waiting)?;
    let wal = waiting.join("pg_wal");
    let has = |name: &str| inode_of(&wal.join(name)).map(|found| found.is_some());
    let is_empty = || -> Result<bool> {
        let mut entries = std::fs::read_dir(waiting).map_err(|e| looked(waiting, e))?;
        Ok(entries.next().is_none())
    };
    if !(has(GUARD)? || has(UNFINISHED)? || is_empty()?) {
        return Err(err!(
            Refused,
            "\"{}\" is no restored copy that waits: it has no guard",
            waiting.display()
        )
        .hint("Nothing was changed. Look at it before you remove it by hand."));
    }
    // The guard's directory goes last but one: a removal that was killed finds it, and goes on.
    let others = std::fs::read_dir(waiting).map_err(|e| looked(waiting, e))?;
    for entry in others {
        let entry = entry.map_err(|e| looked(waiting, e))?;
        let path = entry.path();
        let is_directory = entry.file_type().map_err(|e| looked(&path, e))?.is_dir();
        if path == wal {
            continue;
        }
        match is_directory {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        }
        .map_err(|e| failed(&path, e))?;
    }
    std::fs::remove_dir_all(waiting).map_err(|e| failed(waiting, e))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn only_a_copy_with_a_guard_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("data.pitr-new");
        if rustix::process::geteuid().is_root() {
            assert_eq!(give_up(&at).unwrap_err().code(), Code::Refused);
            return;
        }
        assert!(!give_up(&at).unwrap());
        std::fs::create_dir_all(at.join("pg_wal")).unwrap();
        std::fs::write(at.join("PG_VERSION"), "17").unwrap();
        assert_eq!(give_up(&at).unwrap_err().code(), Code::Refused);
        std::fs::write(at.join("pg_wal").join(GUARD), "{}").unwrap();
        std::fs::write(at.join("postmaster.pid"), "1").unwrap();
        assert_eq!(give_up(&at).unwrap_err().code(), Code::Refused);
        assert!(at.join("PG_VERSION").exists());
        std::fs::remove_file(at.join("postmaster.pid")).unwrap();
        assert!(give_up(&at).unwrap() && !at.exists());
    }
}
