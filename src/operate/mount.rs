//! A mounted restore for programs of the operator: it is there until it is stopped, and thrown away then.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::clone;
use super::mounted;
use super::restoring::{Prepared, path_text};
use super::session::Session;
use super::target::AskedTarget;
use crate::err;
use crate::error::{Error, Result};

/// How often the mount looks whether it is to end.
const PAUSE: Duration = Duration::from_millis(100);
const DATA: &str = "data";

/// A data directory that is mounted.
pub struct Ready {
    /// The data directory.
    pub data: PathBuf,
    /// The backup.
    pub backup: String,
    /// The target in words.
    pub target: String,
    /// The line that starts a server there.
    pub start: String,
}

/// Mounts a moment on an empty directory, calls `ready`, and unmounts it when the operator wants to stop.
///
/// # Errors
/// `Refused` for a directory that is not there or not empty; those of [`mounted::with_mount`].
pub fn run(
    session: &Session,
    target: &AskedTarget,
    at: &Path,
    ready: impl FnOnce(&Ready) -> Result<()>,
) -> Result<()> {
    mounted::check_possible()?;
    let root = empty(at)?;
    let data = root.join(DATA);
    let tablespaces = root.join("tablespaces");
    make(&tablespaces, &root)?;
    let tablespace = |oid: u32| tablespaces.join(oid.to_string());
    let prepared = clone::prepare(session, target, &data, &tablespace);
    let (prepared, plan) = prepared.inspect_err(|_| clear(&root))?;
    let shown = Ready {
        data,
        backup: prepared.job.backup.to_string(),
        target: plan.target.target.to_string(),
        start: prepared.start_line().command,
    };
    let done = attend(session, &prepared, &root, || ready(&shown));
    // Only what was laid out and written through the mount: the directory was empty.
    clear(&root);
    done
}

fn attend(
    session: &Session,
    prepared: &Prepared,
    root: &Path,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    mounted::with_mount(session, prepared, (root, false), |_| {
        ready()?;
        while !session.host.is_stopping() {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

/// The directory, without links; it has to be empty.
fn empty(at: &Path) -> Result<PathBuf> {
    let refused = |why: &str| {
        err!(Refused, "\"{}\" {why}", at.display())
            .hint("Nothing was done. Name an empty directory.")
    };
    let root = at.canonicalize().ok().filter(|path| path.is_dir());
    let root = root.ok_or_else(|| refused("is not a directory"))?;
    path_text(&root)?;
    let mut entries = std::fs::read_dir(&root)
        .map_err(|e| Error::from_io(format!("read \"{}\"", root.display()), e))?;
    match entries.next() {
        None => Ok(root),
        Some(_) => Err(refused("is not empty")),
    }
}

/// Makes a directory that belongs to whom another one belongs.
fn make(path: &Path, like: &Path) -> Result<()> {
    let made = std::fs::create_dir(path).and_then(|()| {
        let meta = std::fs::metadata(like)?;
        match rustix::process::geteuid().is_root() {
            true => std::os::unix::fs::lchown(path, Some(meta.uid()), Some(meta.gid())),
            false => Ok(()),
        }
    });
    made.map_err(|e| Error::from_io(format!("make \"{}\"", path.display()), e))
}

fn clear(root: &Path) {
    for name in [DATA, "tablespaces"] {
        // A directory that cannot be removed costs room only, and no server starts on it.
        let _ = std::fs::remove_dir_all(root.join(name));
    }
}
