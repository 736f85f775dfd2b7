//! Entries of directories: found by their inodes, and moved durably.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::restore::tree::write_error;

/// `NAME.END`, in the same directory.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let name = [name.as_bytes(), b".", end.as_bytes()].concat();
    path.with_file_name(OsStr::from_bytes(&name))
}

/// The inode of an entry, no link followed; none where nothing is.
pub(super) fn inode_of(path: &Path) -> Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found.ino())),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(looked(path, e)),
    }
}

pub(super) fn make_private(path: &Path) -> Result<()> {
    if inode_of(path)?.is_some() {
        return Ok(());
    }
    let (directory, name) = open_parent(path)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    durable::create_directory(directory.as_fd(), &name).map_err(|e| failed(path, e))
}

/// Opens the directory around an entry, and returns the entry's name.
pub(super) fn open_parent(path: &Path) -> Result<(OwnedFd, Vec<u8>)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(err!(Internal, "\"{}\" has no parent", path.display()));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(parent, flags, Mode::empty()).map_err(|e| looked(parent, e.into()))?;
    Ok((directory, name.as_bytes().to_vec()))
}

pub(super) fn move_to(from: &Path, to: &Path) -> Result<()> {
    let ((source, old), (target, new)) = (open_parent(from)?, open_parent(to)?);
    durable::move_to_free((source.as_fd(), &old), (target.as_fd(), &new))
        .map_err(|e| failed(from, e.into()))
}

/// Exchanges two entries. On a filesystem that cannot, nothing is at `place` for a moment, and its entry takes the name `aside`.
pub(super) fn exchange(from: &Path, place: &Path, aside: &Path) -> Result<()> {
    let ((source, old), (target, new)) = (open_parent(from)?, open_parent(place)?);
    match durable::exchange((source.as_fd(), &old), (target.as_fd(), &new)) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            move_to(place, aside)?;
            move_to(from, place)
        }
        answer => answer.map_err(|e| failed(place, e.into())),
    }
}

pub(super) fn failed(path: &Path, e: io::Error) -> Error {
    write_error(&path.display().to_string(), e)
}

pub(super) fn looked(path: &Path, e: io::Error) -> Error {
    Error::from_io(format!("look at \"{}\"", path.display()), e)
}
