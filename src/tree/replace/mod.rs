//! Takes a directory back to a snapshot where it lies.
//!
//! Three steps: [`compare`] looks at each entry and changes nothing. [`stage`] makes what differs, complete, in a depot: a directory of mode 0700 below the
//! target. The switch moves each entry to its place, and the one that was there into the depot: a file is there whole or not at all. With a [`journal`] the
//! depot stays, and [`undo`] moves everything back. Content and owner of a file that is in
//! place are never changed: another program may hold it open, or know it by another name. Directories alone get their attributes where they lie.

mod below;
pub mod compare;
pub mod depot;
pub mod journal;
pub mod stage;
mod switch;
pub mod undo;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::beneath;
use super::extract::Above;
use super::left_out::LeftOut;
use super::part::Part;
use super::settle::Permit;
use super::status::Status;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::reader::Snapshot;

/// Directories of this name are no part of what is backed up or restored.
pub const DEPOT_PREFIX: &str = ".pitr-rollback-";
/// The pattern by which a backup leaves them out.
pub const DEPOT_PATTERN: &str = ".pitr-rollback-*/";

const LOCK: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// Tells whether an entry that the backup lacks is removed.
pub type Removes<'r> = dyn Fn(&[u8]) -> Result<bool> + 'r;

/// The restore that is asked for.
pub struct Wanted<'w, 's> {
    /// The backup.
    pub snapshot: &'w Snapshot<'s>,
    /// The entries of it that are restored; all without one.
    pub part: Option<&'w Part>,
    /// The things that any user may not make.
    pub permit: Permit,
    /// Whether a file of the backup's length and time of modification has its content.
    pub trusts_times: bool,
    /// Whether directories that are there get their owner, permissions, attributes and times.
    pub settles_directories: bool,
    /// Whether an entry that the backup lacks is removed, by its path; where none is removed, a directory does not give way to a file either.
    pub removes: Option<&'w Removes<'w>>,
}

/// The content of files.
pub trait Contents {
    /// Hands on the bytes of the file at `path`, in order, in pieces. The map has them under `from`, of this length.
    ///
    /// # Errors
    /// `Damaged`; what `sink` returns, and what the store says.
    fn read(
        &mut self,
        path: &[u8],
        from: (&FileKey, u64),
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;
}

impl Contents for ContentReader<'_, '_> {
    fn read(
        &mut self,
        _path: &[u8],
        (file, length): (&FileKey, u64),
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        ContentReader::read(self, file, length, sink)
    }
}

/// A directory that is taken back. No other process of pitr does so while it is open.
pub struct Target {
    root: OwnedFd,
    /// The directory below it that has the first depot.
    home: Vec<u8>,
    _lock: OwnedFd,
}

impl Target {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// `Locked` while another process takes it back; `TargetWrite` when it cannot be opened.
    pub fn open(path: &Path) -> Result<Target> {
        Target::open_with_home(path, b"")
    }

    /// As [`Target::open`], with the depot in a directory below, of this path. Others may take back what lies beside that one.
    ///
    /// # Errors
    /// Those of [`Target::open`].
    pub fn open_with_home(path: &Path, home: &[u8]) -> Result<Target> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
            let error = Error::from_io(format!("open directory \"{}\"", path.display()), e.into());
            error.with_code(Code::TargetWrite)
        })?;
        let directory = beneath::open(root.as_fd(), home, flags, Mode::empty());
        let directory = directory.map_err(|e| failed(home, "open", e))?;
        // Some filesystems have no locks.
        if let Err(Errno::WOULDBLOCK) = rustix::fs::flock(&directory, LOCK) {
            return Err(err!(
                Locked,
                "another restore into \"{}\" is under way",
                path.display()
            )
            .hint("Nothing was changed. Wait for its end."));
        }
        Ok(Target {
            root,
            home: home.to_vec(),
            _lock: directory,
        })
    }

    /// Whether it has no entry.
    ///
    /// # Errors
    /// `TargetWrite` when it cannot be read.
    pub fn is_empty(&self) -> Result<bool> {
        let names = names_in(self.root.as_fd()).map_err(|e| failed(b"", "read", e))?;
        Ok(names.is_empty())
    }
}

/// The result of a restore.
#[derive(Debug, Default)]
pub struct Done {
    /// Bytes of content that were written.
    pub written_bytes: u64,
    /// Things that were not made, or not as they were.
    pub left_out: LeftOut,
}

fn failed(path: &[u8], doing: &str, e: Errno) -> Error {
    let shown = if path.is_empty() { b"." } else { path };
    let error = Error::from_io(format!("{doing} \"{}\"", shown.escape_ascii()), e.into());
    match error.code() {
        Code::Full => error.hint("Free space there, then run the same command again."),
        _ => error.with_code(Code::TargetWrite),
    }
}

/// The names in a directory, without `.` and `..`.
fn names_in(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if ![&b"."[..], b".."].contains(&name) {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The status of an entry below `root`; none where nothing is.
fn look(
    above: &mut Above,
    root: BorrowedFd<'_>,
    path: &[u8],
) -> rustix::io::Result<Option<Status>> {
    let found = above
        .of(root, path)
        .and_then(|(directory, name)| Status::at(directory, name));
    match found {
        Ok(status) => Ok(Some(status)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The mount and the device of a directory. An entry is never moved from one to another: a volume of btrfs has a device of its own, and a bind mount has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Volume {
    /// 0 where the kernel does not tell mounts apart (before 5.8).
    mount: u64,
    device: (u32, u32),
}

/// The facts that decide whether an entry can be moved.
struct Seen {
    /// The filesystem; that of a file differs from its directory's below an overlay.
    volume: Volume,
    is_directory: bool,
    is_mount: bool,
}

/// Looks at a name in a directory; the empty name is the directory itself.
fn see(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Seen> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let told = rustix::fs::statx(
        directory,
        name,
        flags,
        StatxFlags::TYPE | StatxFlags::MNT_ID,
    )?;
    let tells_mount = told.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let mode = told.stx_mode.into();
    Ok(Seen {
        volume: Volume {
            mount: if tells_mount { told.stx_mnt_id } else { 0 },
            device: (told.stx_dev_major, told.stx_dev_minor),
        },
        is_directory: FileType::from_raw_mode(mode) == FileType::Directory,
        is_mount: told.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}
