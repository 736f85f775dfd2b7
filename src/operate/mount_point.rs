//! The directory on which an operator mounts.
//!
//! Root mounts for the owner of the directory, and must not have to trust that owner. So root holds it while it is mounted: nobody else
//! reaches what lies beneath, also through a descriptor that was opened before. The kernel mounts by path. So every directory above has
//! to be root's, or another one could be put in its place.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::restoring::path_text;
use crate::err;
use crate::error::{Error, Result};

/// An empty directory.
pub(super) struct MountPoint {
    path: PathBuf,
    directory: OwnedFd,
    /// Owner and permissions that root gives back.
    held: Option<Stat>,
}

impl MountPoint {
    /// Takes the directory at a path.
    ///
    /// # Errors
    /// `Refused` for one that is not there or not empty, and, for root, for one whose owner is root or whose place is not; `Io`.
    pub(super) fn take(at: &Path) -> Result<MountPoint> {
        let path = at.canonicalize().and_then(|path| {
            let is_directory = std::fs::metadata(&path)?.is_dir();
            is_directory
                .then_some(path)
                .ok_or(ErrorKind::NotADirectory.into())
        });
        let path = path.map_err(|e| match is_dead(&e) {
            true => left_behind(at),
            false => {
                refused(at, "is not a directory").hint("Nothing was done. Name an empty directory.")
            }
        })?;
        path_text(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed(&path))?;
        let mut point = MountPoint {
            path,
            directory,
            held: None,
        };
        if rustix::process::geteuid().is_root() {
            point.hold()?;
        }
        match point.is_empty().map_err(failed(&point.path))? {
            true => Ok(point),
            false => Err(refused(&point.path, "is not empty")
                .hint("Nothing was done. Name an empty directory.")),
        }
    }

    /// Its path, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes it from its owner.
    fn hold(&mut self) -> Result<()> {
        let failed = failed(&self.path);
        let stat = rustix::fs::fstat(&self.directory).map_err(&failed)?;
        if stat.st_uid == 0 {
            return Err(
                refused(&self.path, "belongs to root, and no server runs as root").hint(format!(
                    "Nothing was done. Give it to the server's user: chown postgres \"{}\"",
                    self.path.display()
                )),
            );
        }
        self.held = Some(stat);
        give(&self.directory, 0, 0).map_err(&failed)?;
        rustix::fs::fchmod(&self.directory, Mode::RWXU).map_err(&failed)?;
        self.check_place()
    }

    /// Requires that nobody but root can put something else at its path.
    fn check_place(&self) -> Result<()> {
        let look = |at: &Path| std::fs::symlink_metadata(at).map_err(|e| io(at, e));
        for above in self.path.ancestors().skip(1) {
            let meta = look(above)?;
            // Names of root's in a sticky directory are safe there.
            let is_closed = meta.mode() & 0o022 == 0 || meta.mode() & 0o1000 != 0;
            if meta.uid() != 0 || !is_closed {
                return Err(refused(above, "is not root's alone: whom it belongs to could lead root elsewhere")
                    .hint("Nothing was done. Run this as the server's user, or mount below a directory that only root may write: install -d -o postgres -m 700 /mnt/noon"));
            }
        }
        let meta = look(&self.path)?;
        let own = rustix::fs::fstat(&self.directory).map_err(failed(&self.path))?;
        match (meta.dev(), meta.ino()) == (own.st_dev, own.st_ino) {
            true => Ok(()),
            false => Err(refused(&self.path, "was exchanged meanwhile").hint("Nothing was done.")),
        }
    }

    fn is_empty(&self) -> rustix::io::Result<bool> {
        for entry in Dir::read_from(&self.directory)? {
            if ![&b"."[..], b".."].contains(&entry?.file_name().to_bytes()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a directory beneath, which belongs to whom the mount point belonged.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::mkdirat(&self.directory, name, Mode::RWXU).and_then(|()| {
            let made = rustix::fs::openat(&self.directory, name, flags, Mode::empty())?;
            match self.held {
                Some(owner) => give(&made, owner.st_uid, owner.st_gid),
                None => Ok(()),
            }
        });
        made.map_err(failed(&path))?;
        Ok(path)
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if let Some(owner) = self.held {
            let mode = Mode::from_raw_mode(owner.st_mode & 0o7777);
            // Root's it is of no harm to anybody.
            let _ = give(&self.directory, owner.st_uid, owner.st_gid);
            let _ = rustix::fs::fchmod(&self.directory, mode);
        }
    }
}

fn give(directory: &OwnedFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::fchown(directory, Some(uid), Some(gid))
}

fn refused(at: &Path, why: &str) -> Error {
    err!(Refused, "\"{}\" {why}", at.display())
}

/// The error for a mount whose process was killed.
fn left_behind(at: &Path) -> Error {
    let unmount = match rustix::process::geteuid().is_root() {
        // pg_wal is mounted inside of it.
        true => "umount -l",
        false => "fusermount3 -u",
    };
    let shown = at.display();
    refused(at, "is a mount whose program was killed").hint(format!(
        "Nothing was done. Take it away: {unmount} \"{shown}\"\nThen remove what it has left: \"{shown}/data\" and \"{shown}/tablespaces\"."
    ))
}

fn failed(at: &Path) -> impl Fn(rustix::io::Errno) -> Error + '_ {
    move |e| io(at, e.into())
}

fn io(at: &Path, e: std::io::Error) -> Error {
    match is_dead(&e) {
        true => left_behind(at),
        false => Error::from_io(format!("take the directory \"{}\"", at.display()), e),
    }
}

/// Whether nobody answers for a mount any more.
fn is_dead(e: &std::io::Error) -> bool {
    e.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k63_a_mount_that_nobody_answers_for_is_named_with_the_way_out() {
        let at = Path::new("/mnt/noon");
        let e = failed(at)(Errno::NOTCONN);
        assert!(e.to_string().contains("program was killed"), "{e}");
        let hint = e.hint_text().unwrap_or_default().to_owned();
        assert!(hint.contains("mount") && hint.contains("\"/mnt/noon/tablespaces\""));
        let e = failed(at)(Errno::ACCESS);
        assert!(!e.to_string().contains("was killed"), "{e}");
    }
}
