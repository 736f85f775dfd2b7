//! Looks for reasons for which a directory must stay, with everything in it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{DEPOT_PREFIX, Volume, failed, names_in, see};
use crate::error::Result;

/// An entry that may not be moved, and its reason.
pub(super) struct Obstacle {
    path: Vec<u8>,
    why: String,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\" {}", self.path.escape_ascii(), self.why)
    }
}

/// Finds the first entry, at `path` or below it, that may not be moved: a mount, a part of another filesystem, what an earlier restore keeps, and what `goes`
/// does not let go.
///
/// # Errors
/// `TargetWrite`; those of `goes`.
pub(super) fn obstacle(
    (above, name): (BorrowedFd<'_>, &[u8]),
    path: &[u8],
    volume: Volume,
    goes: &mut dyn FnMut(&[u8]) -> Result<bool>,
) -> Result<Option<Obstacle>> {
    let because = |why: String| {
        Ok(Some(Obstacle {
            path: path.to_vec(),
            why,
        }))
    };
    let seen = match see(above, name) {
        Ok(seen) => seen,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return because(format!("cannot be looked at: {e}")),
    };
    if seen.is_mount {
        return because("is a mount".to_owned());
    }
    if !seen.is_directory {
        return Ok(None);
    }
    if seen.volume != volume {
        return because("lies on another filesystem".to_owned());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(above, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return because(format!("cannot be read: {e}")),
    };
    for name in names_in(directory.as_fd()).map_err(|e| failed(path, "read", e))? {
        let path = [path, &name].join(&b'/');
        let why = match name.starts_with(DEPOT_PREFIX.as_bytes()) {
            true => "is kept by a restore in place",
            false if !goes(&path)? => "is left out of backups by the rules",
            false => match obstacle((directory.as_fd(), &name), &path, volume, goes)? {
                Some(found) => return Ok(Some(found)),
                None => continue,
            },
        };
        let why = why.to_owned();
        return Ok(Some(Obstacle { path, why }));
    }
    Ok(None)
}
