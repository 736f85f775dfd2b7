//! `pg_wal/pitr.ahead`: segments that were fetched before the server asks for them.
//!
//! | file | what it is |
//! |---|---|
//! | `lock` | locked by the worker for as long as it lives |
//! | `note` | for whose recovery the worker fetches |
//! | `asked` | the segment that the server got last |
//! | `<24 hex>` | a segment: whole, checked, synced |
//! | `.tmp.…` | one on its way |
//!
//! Only what a living worker fetched for this very recovery is handed over; anything else here is removed, unused. Everybody may remove
//! everything at any time: the worker ends when its directory or its lock is gone. There are plain files only, because `pg_rewind` removes
//! what it finds in a `pg_wal` and fails at anything else (decisions/0014-fetching-ahead.md).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType};

use super::datadir::DataDirectory;
use super::spool;
use crate::config;
use crate::durable::{self, Delivery, TEMPORARY_PREFIX};
use crate::error::{Error, Result};
use crate::pg::segment::{SegmentName, SegmentSize};

/// The directory's name in pg_wal.
pub const DIRECTORY: &str = "pitr.ahead";
const LOCK: &str = "lock";
const NOTE: &str = "note";
const ASKED: &str = "asked";
const NOTE_BYTES_MAX: u64 = 4096;
/// How often a directory is emptied in which somebody still writes.
const REMOVALS: usize = 10;

/// For whose recovery segments are fetched: what of it does not agree makes them worthless.
pub struct Purpose {
    /// How large its segments are, by its pg_control.
    pub size: SegmentSize,
    pub system_identifier: u64,
    /// The cluster's name.
    pub cluster: String,
    /// The server that recovers.
    pub server: (i32, String),
    key: String,
}

impl Purpose {
    /// The recovery of the server that runs in `directory`; `None` where there is none, or not everything can be known.
    pub fn of(
        directory: &DataDirectory,
        cluster: String,
        repositories: &[config::Repository],
    ) -> Option<Purpose> {
        let control = directory.control().ok()??;
        let server = directory.server()?;
        let boot = spool::boot()?;
        let place = |path: &Path| {
            let stat = rustix::fs::stat(path).ok()?;
            Some((stat.st_dev, stat.st_ino))
        };
        let text = format!(
            "{} {} {cluster:?} {server:?} {boot:?} {:?} {:?} {repositories:?}",
            env!("CARGO_PKG_VERSION"),
            control.system_identifier,
            place(directory.path())?,
            place(directory.wal())?,
        );
        Some(Purpose {
            size: control.wal_segment_size,
            system_identifier: control.system_identifier,
            cluster,
            server,
            key: blake3::hash(text.as_bytes()).to_string(),
        })
    }
}

/// The state of a segment in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is at the target.
    HandedOver,
    /// A worker is fetching it, and has so many bytes of it.
    Coming(u64),
    /// Nothing.
    Nothing,
}

/// The directory, as the one sees it who hands segments over.
pub struct Prefetched {
    path: PathBuf,
    purpose: Purpose,
}

impl Prefetched {
    /// The directory of a recovery; it need not be there.
    pub fn new(directory: &DataDirectory, purpose: Purpose) -> Prefetched {
        Prefetched {
            path: directory.wal().join(DIRECTORY),
            purpose,
        }
    }

    /// Hands a segment over by rename, if it is there and the worker that fetched it lives. `before` is the segment that the server must have got last
    /// from here. A directory without a worker, or for another purpose, is removed.
    pub fn take(&self, (name, before): (SegmentName, Option<SegmentName>), target: &Path) -> Taken {
        let Some(directory) = open_own(&self.path) else {
            return Taken::Nothing;
        };
        if !is_locked(&directory) {
            remove(&self.path);
            return Taken::Nothing;
        }
        match read_note(&directory) {
            Some(note) if note == self.purpose.key => {}
            // A worker that begins has none yet.
            None => return Taken::Nothing,
            Some(_) => {
                remove(&self.path);
                return Taken::Nothing;
            }
        }
        if before.is_some() && asked(&directory) != before {
            return Taken::Nothing;
        }
        let text = name.to_string();
        if is_whole(&directory, &text, self.purpose.size)
            && durable::hand_over(directory.as_fd(), &text, target).is_ok()
        {
            return Taken::HandedOver;
        }
        coming(&self.path, &text).map_or(Taken::Nothing, Taken::Coming)
    }

    /// Tells the worker which segment the server got last; `false` when there is no worker.
    pub fn tell(&self, name: SegmentName) -> bool {
        let Some(directory) = open_own(&self.path).filter(is_locked) else {
            return false;
        };
        note_asked(&directory, name);
        true
    }
}

fn note_asked(directory: &OwnedFd, name: SegmentName) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(file) =
        rustix::fs::openat(directory, ASKED, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    {
        // In place: a name that is half the old one leads the worker astray for a moment, and nothing is handed over but by its name.
        let _ = file.write_at(name.to_string().as_bytes(), 0);
    }
}

fn asked(directory: &OwnedFd) -> Option<SegmentName> {
    read_small(directory, ASKED)?.parse().ok()
}

/// Removes what a worker left that is gone.
pub fn sweep_leftovers(directory: &DataDirectory) {
    let path = directory.wal().join(DIRECTORY);
    if open_own(&path).is_some_and(|d| !is_locked(&d)) {
        remove(&path);
    }
}

/// Removes everything; a worker that is at work ends.
pub fn sweep(directory: &DataDirectory) {
    remove(&directory.wal().join(DIRECTORY));
}

fn remove(path: &Path) {
    for _ in 0..REMOVALS {
        let Some(directory) = open_own(path) else {
            return;
        };
        for name in names(path) {
            let _ = rustix::fs::unlinkat(&directory, &name, AtFlags::empty());
        }
        match rustix::fs::rmdir(path) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            _ => return,
        }
    }
}

/// The directory, as the worker sees it that fills it.
pub struct Store {
    path: PathBuf,
    directory: OwnedFd,
    /// Given up with the process, and with any descriptor of this file that it closes: it is opened once.
    lock: File,
    size: SegmentSize,
}

impl Store {
    /// Its directory, in that of WAL.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory this process's own, empties it, and notes what for; `None` where another worker is at work.
    ///
    /// # Errors
    /// `Io`, `Full`, `Denied` when that fails.
    pub fn take_over(
        directory: &DataDirectory,
        purpose: &Purpose,
        nonce: u64,
    ) -> Result<Option<Store>> {
        let path = directory.wal().join(DIRECTORY);
        let failed = |e: Errno| Error::from_io(format!("use \"{}\"", path.display()), e.into());
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        let Some(own) = open_own(&path) else {
            return Ok(None);
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&own, LOCK, flags, Mode::RUSR | Mode::WUSR);
        let lock = File::from(lock.map_err(failed)?);
        match rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => return Ok(None),
            Err(e) => return Err(failed(e)),
        }
        for name in names(&path).iter().filter(|n| *n != LOCK) {
            let _ = rustix::fs::unlinkat(&own, name.as_str(), AtFlags::empty());
        }
        let store = Store {
            path,
            directory: own,
            lock,
            size: purpose.size,
        };
        let noted = durable::replace(&store.path.join(NOTE), purpose.key.as_bytes(), nonce);
        if let Err(e) = noted {
            store.remove();
            return Err(Error::from_io("write a note", e));
        }
        Ok(Some(store))
    }

    /// Whether the directory and its lock are still those that this process took over.
    pub fn is_own(&self) -> bool {
        let named = rustix::fs::statat(&self.directory, LOCK, AtFlags::SYMLINK_NOFOLLOW);
        let held = rustix::fs::fstat(&self.lock);
        matches!((named, held), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// Returns the segment that the server got last, as far as the worker has been notified.
    pub fn asked(&self) -> Option<SegmentName> {
        asked(&self.directory)
    }

    /// Notes the segment behind which the worker begins.
    pub fn begin_behind(&self, name: SegmentName) {
        note_asked(&self.directory, name);
    }

    /// The segments that wait.
    pub fn held(&self) -> Vec<SegmentName> {
        let names = names(&self.path);
        names.iter().filter_map(|n| n.parse().ok()).collect()
    }

    /// Removes a segment that nobody will ask for.
    pub fn drop_segment(&self, name: SegmentName) {
        let _ = rustix::fs::unlinkat(&self.directory, name.to_string(), AtFlags::empty());
    }

    /// Whether so many more segments fit on the disk.
    pub fn has_room(&self, segments: u64) -> bool {
        rustix::fs::fstatvfs(&self.directory).is_ok_and(|disk| {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            free >= segments.saturating_mul(self.size.bytes())
        })
    }

    /// Begins a segment.
    ///
    /// # Errors
    /// `Full`, `Io` when the file cannot be made.
    pub fn begin(&self, name: SegmentName, nonce: u64) -> Result<Coming> {
        let delivery = self
            .directory
            .try_clone()
            .and_then(|directory| Delivery::create_in(directory, &name.to_string(), nonce))
            .map_err(not_written)?;
        Ok(Coming(delivery))
    }

    /// Removes everything: the work is done.
    pub fn remove(&self) {
        if self.is_own() {
            remove(&self.path);
        }
    }
}

/// A segment on its way; dropped, it is gone.
pub struct Coming(Delivery);

impl Coming {
    /// Adds a piece.
    ///
    /// # Errors
    /// `TargetWrite`.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.0.write_all(piece).map_err(not_written)
    }

    /// The segment waits to be asked for.
    ///
    /// # Errors
    /// `TargetWrite`.
    pub fn finish(self) -> Result<()> {
        self.0.finish_synced().map_err(not_written)
    }
}

fn not_written(e: std::io::Error) -> Error {
    crate::err!(TargetWrite, "could not fetch ahead").source(e)
}

/// The directory, if it is one, this user's, and closed to all others.
fn open_own(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&directory).ok()?;
    let is_own = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o077 == 0;
    is_own.then_some(directory)
}

fn is_locked(directory: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(lock) = rustix::fs::openat(directory, LOCK, flags, Mode::empty()) else {
        return false;
    };
    // Asked for, not taken: a worker that begins just now must get it.
    let wanted = Flock::from(FlockType::WriteLock);
    matches!(rustix::process::fcntl_getlk(&lock, &wanted), Ok(Some(_)))
}

fn read_note(directory: &OwnedFd) -> Option<String> {
    read_small(directory, NOTE)
}

fn read_small(directory: &OwnedFd, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?);
    let mut text = String::new();
    file.take(NOTE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Whether a segment waits under this name: an ordinary file of this user's that has no other name, and the right length.
fn is_whole(directory: &OwnedFd, name: &str, size: SegmentSize) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_nlink == 1
            && stat.st_uid == rustix::process::geteuid().as_raw()
            && u64::try_from(stat.st_size).is_ok_and(|s| s == size.bytes())
    })
}

/// How much there is of a segment that a worker is fetching.
fn coming(path: &Path, name: &str) -> Option<u64> {
    let begins = format!("{TEMPORARY_PREFIX}{name}.");
    let found = names(path).into_iter().find(|n| n.starts_with(&begins))?;
    let stat = std::fs::symlink_metadata(path.join(found)).ok()?;
    Some(stat.len())
}

fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}
