//! The mark of a restore in the directory of each tablespace, from before its first file there until the restore is complete.
//!
//! The lock and the record of a restore lie in the data directory. The mark alone tells a later run that what lies in a tablespace is its own: else it would
//! take over, or remove, what somebody else has put there since.

use std::path::Path;

use rustix::fs::AtFlags;

use super::extract::Destination;
use super::job::Job;
use super::target_dir::{CONTROL, Target, is_linked_from};
use super::tree::{LOST_AND_FOUND, Tree, entries, target_error, write_error};
use crate::archive::guard::UNFINISHED;
use crate::durable::{self, NewFile, Published, TEMPORARY_PREFIX};
use crate::err;
use crate::error::Result;

const LIMIT_BYTES: u64 = 64 << 10;

/// Puts the mark into each tablespace that has none yet, durably.
///
/// # Errors
/// `Refused` for a directory that has entries and no mark of this restore; `TargetWrite`, `Full`.
pub fn put(destination: &Destination, job: &Job, target: &Target, nonce: u64) -> Result<()> {
    let mark = of(job)?;
    // Until pg_control is taken away, what lies there is that of the data directory which is restored in place.
    let is_whole = job.request.delta && destination.data().stat(CONTROL.as_bytes())?.is_some();
    for tree in destination.trees().skip(1) {
        let tree = tree?;
        let found = tree.read(UNFINISHED.as_bytes(), LIMIT_BYTES)?;
        if found.as_ref() == Some(&mark) {
            // A run that was killed may not have synced its name.
            durable::sync_directory(tree.root()).map_err(|e| failed(&tree, e))?;
            continue;
        }
        let is_own = is_whole && is_linked_from(&target.data, tree.path());
        match is_own {
            true if found.is_some_and(|mark| is_under_way(&mark, job)) => {
                return Err(foreign(&tree));
            }
            // The cluster is whole, so no restore of it is under way: one that was given up left its mark.
            true => durable::remove_in(tree.root(), UNFINISHED).map_err(|e| failed(&tree, e))?,
            false if !is_free(&tree)? => return Err(foreign(&tree)),
            false => {}
        }
        put_one(&tree, target, &mark, nonce)?;
    }
    Ok(())
}

/// Whether a mark is that of a restore into another directory that is not finished: the tablespace is its own by now.
fn is_under_way(mark: &[u8], job: &Job) -> bool {
    let mark: serde_json::Value = serde_json::from_slice(mark).unwrap_or_default();
    let other = mark["data_directory"].as_str();
    let other = other.filter(|other| *other != job.request.to);
    other.is_some_and(|other| Path::new(other).join("pg_wal").join(UNFINISHED).exists())
}

/// Removes the marks of this restore, durably; absence is fine.
///
/// # Errors
/// `TargetWrite`.
pub fn remove(destination: &Destination, job: &Job) -> Result<()> {
    let mark = of(job)?;
    for tree in destination.trees().skip(1) {
        let tree = tree?;
        if tree.read(UNFINISHED.as_bytes(), LIMIT_BYTES)?.as_ref() == Some(&mark) {
            durable::remove_in(tree.root(), UNFINISHED).map_err(|e| failed(&tree, e))?;
        }
    }
    Ok(())
}

/// The mark: two restores are never planned for one data directory in the same microsecond.
fn of(job: &Job) -> Result<Vec<u8>> {
    let mark = serde_json::json!({
        "note": "A restore that is not finished writes into this directory. It removes this file at its end.",
        "data_directory": job.request.to,
        "planned": job.planned,
        "backup": job.backup.to_string(),
        "backup_nonce": job.backup_nonce,
    });
    serde_json::to_vec_pretty(&mark)
        .map_err(|e| err!(Internal, "could not serialize the mark of a restore").source(e))
}

/// Whether a directory has nothing but what a killed run left of a mark, and what belongs to its filesystem.
fn is_free(tree: &Tree) -> Result<bool> {
    let failed = |e| target_error(format!("read directory \"{}\"", tree.path().display()), e);
    for entry in entries(tree.root()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name.to_bytes() == LOST_AND_FOUND.as_bytes() {
            continue;
        }
        if !name.to_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            return Ok(false);
        }
        rustix::fs::unlinkat(tree.root(), name, AtFlags::empty()).map_err(failed)?;
    }
    Ok(true)
}

fn put_one(tree: &Tree, target: &Target, mark: &[u8], nonce: u64) -> Result<()> {
    let failed = |e: std::io::Error| failed(tree, e);
    let mut file = NewFile::create(tree.directory(b".")?, UNFINISHED, nonce).map_err(failed)?;
    std::io::Write::write_all(&mut file, mark).map_err(failed)?;
    // Given away before it has a name that somebody could exchange.
    if let (Some(owner), Some(file)) = (target.owner, file.file()) {
        let owned = rustix::fs::fchown(file, Some(owner.uid), Some(owner.gid));
        owned.map_err(|e| failed(e.into()))?;
    }
    match file.publish().map_err(failed)? {
        Published::Created => Ok(()),
        Published::Exists => Err(foreign(tree)),
    }
}

fn foreign(tree: &Tree) -> crate::error::Error {
    let shown = tree.path().display();
    err!(
        Refused,
        "tablespace directory \"{shown}\" is not empty, and nothing in it says that this restore wrote there"
    )
    .hint(format!(
        "Nothing in it was changed. If it holds another cluster, restore into empty directories. If an older pitr began this restore, empty \"{shown}\" and run the same command again: it restores what is missing."
    ))
}

fn failed(tree: &Tree, e: std::io::Error) -> crate::error::Error {
    write_error(&tree.path().join(UNFINISHED).display().to_string(), e)
}
