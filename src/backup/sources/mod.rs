//! Sets of files that a program hands over: its stream, a Git mirror, objects of Kubernetes, a Terraform state; and objects of a bucket.
//!
//! A source that fails leaves no root: programs end, and are looked at, before the root is written.

#[cfg(feature = "program")]
pub mod bucket;
pub mod docker;
pub mod git;
pub mod keys;
pub mod kubernetes;
pub mod objects;
pub mod stream;
pub mod terraform;

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::trust;
use crate::err;
use crate::error::{Error, Result};
use crate::lock;
use crate::pg::time::TimestampTz;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::node::{Moment, Node, NodeKind};

/// Files hold what their source keeps from other users.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

fn key(path: &[u8]) -> Result<FileKey> {
    FileKey::from_path(path, Naming::Tree)
}

/// A time as a node has it.
fn moment(time: TimestampTz) -> Moment {
    let micros = time.unix_micros().unwrap_or(0);
    let below = u32::try_from(micros.rem_euclid(1_000_000)).unwrap_or(0);
    Moment {
        seconds: micros.div_euclid(1_000_000),
        nanoseconds: below * 1000,
    }
}

/// The node of a directory that no filesystem has.
fn directory(time: TimestampTz) -> Node {
    Node::new(NodeKind::Directory, DIRECTORY_MODE, moment(time))
}

/// The node of a file that no filesystem has.
fn file(time: TimestampTz, blake3: [u8; 32]) -> Node {
    let mut node = Node::new(NodeKind::File(0), FILE_MODE, moment(time));
    node.blake3 = Some(blake3);
    node
}

/// Makes a directory for caches where it is missing, and requires that nobody but this user and root may change what lies in it: programs run
/// there that believe what they find. Returns it without symbolic links.
///
/// # Errors
/// `Refused` where others may; those of the system.
pub fn trusted(directory: &Path) -> Result<PathBuf> {
    make(directory)?;
    let real = std::fs::canonicalize(directory).map_err(|e| of(directory, e))?;
    match trust::changeable(&real).map_err(|e| of(&real, e))? {
        None => Ok(real),
        Some(at) => Err(err!(
            Refused,
            "caches in \"{}\" cannot be trusted: other users may change \"{}\"",
            real.display(),
            at.display()
        )
        .hint("Nothing was stored.\nGive caches another place: XDG_CACHE_HOME.")),
    }
}

/// The lock of a directory of the cache.
const LOCK: &str = "lock";
/// How long one who only asks whether a run is under way may hold the lock.
const PATIENCE: Duration = Duration::from_millis(200);

/// Makes a directory of the cache its caller's own, for as long as the file is open.
///
/// # Errors
/// `Locked` while another run has it; those of the system.
pub fn lock(directory: &Path) -> Result<File> {
    make(directory)?;
    let path = directory.join(LOCK);
    let opened = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path);
    let file = opened.map_err(|e| of(&path, e))?;
    match lock::within(&file, PATIENCE) {
        Ok(true) => Ok(file),
        Ok(false) => Err(err!(
            Locked,
            "another run of this name is under way: it holds \"{}\"",
            path.display()
        )
        .hint("Nothing was stored.\nWait until it has ended.")),
        Err(e) => Err(of(&path, e)),
    }
}

/// Whether a run has the directory.
///
/// # Errors
/// Those of the system.
pub fn is_locked(directory: &Path) -> Result<bool> {
    let path = directory.join(LOCK);
    lock::is_held(&path).map_err(|e| of(&path, e))
}

fn make(directory: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory);
    made.map_err(|e| of(directory, e))
}

fn of(path: &Path, e: std::io::Error) -> Error {
    Error::from_io(format!("use \"{}\"", path.display()), e)
        .hint("Nothing was stored.\nGive caches another place: XDG_CACHE_HOME.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_before_1970_has_its_part_of_a_second() {
        let half = TimestampTz::from_unix_micros(-500_000).unwrap();
        let expected = Moment {
            seconds: -1,
            nanoseconds: 500_000_000,
        };
        assert_eq!(moment(half), expected);
    }
}
