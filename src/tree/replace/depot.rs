//! Depots: the private directories in which entries are made before they take their places.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::journal::Journal;
use super::{DEPOT_PREFIX, Target, Volume, failed, names_in, see};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::tree::beneath;
use crate::tree::status::{Holder, Status};

/// The number of a run, `20261120T064049Z-482913`: when it began, and a random part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run(String);

impl Run {
    /// Draws the number of a run that begins now.
    pub fn draw(host: &Host) -> Run {
        let now = host.now().to_string();
        let digits: String = now
            .chars()
            .filter(|c| c.is_ascii_digit() || *c == 'T')
            .take("20261120T064049".len())
            .collect();
        Run(format!("{digits}Z-{:06}", host.random() % 1_000_000))
    }

    pub(super) fn directory(&self) -> Vec<u8> {
        self.shown().into_bytes()
    }

    /// The name of its depots.
    pub fn shown(&self) -> String {
        format!("{DEPOT_PREFIX}{self}")
    }

    /// The run that a depot is of, by its name.
    pub(super) fn of_directory(name: &[u8]) -> Option<Run> {
        let name = name.strip_prefix(DEPOT_PREFIX.as_bytes())?;
        std::str::from_utf8(name).ok()?.parse().ok()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Run {
    type Err = Error;

    fn from_str(text: &str) -> Result<Run> {
        let is_run = text.len() == "20261120T064049Z-482913".len()
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || b"TZ-".contains(&b));
        match is_run {
            true => Ok(Run(text.to_owned())),
            false => Err(err!(
                Usage,
                "\"{}\" is no run, such as 20261120T064049Z-482913",
                text.escape_debug()
            )),
        }
    }
}

/// A directory of our own, which nobody else may enter.
pub(super) struct Depot {
    pub(super) directory: OwnedFd,
    /// The directory that it lies in.
    above: OwnedFd,
    name: Vec<u8>,
}

impl Depot {
    /// Makes one below the directory `place`.
    pub(super) fn make(root: BorrowedFd<'_>, place: &[u8], run: &Run) -> Result<Depot> {
        let above = open_place(root, place)?;
        let name = run.directory();
        rustix::fs::mkdirat(&above, &name, Mode::RWXU)
            .map_err(|e| failed(&[place, &name].join(&b'/'), "make directory", e))?;
        let depot = Depot::open_in(above, place, name)?;
        if let Err(e) = Holder::Open(depot.directory.as_fd()).remove_acls() {
            let _ = depot.remove();
            return Err(failed(&depot.name, "remove the ACL of", e));
        }
        Ok(depot)
    }

    /// Opens one.
    pub(super) fn open(root: BorrowedFd<'_>, place: &[u8], run: &Run) -> Result<Depot> {
        Depot::open_in(open_place(root, place)?, place, run.directory())
    }

    fn open_in(above: OwnedFd, place: &[u8], name: Vec<u8>) -> Result<Depot> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let shown = [place, &name].join(&b'/');
        let directory = rustix::fs::openat(&above, &name, flags, Mode::empty())
            .map_err(|e| failed(&shown, "open", e))?;
        let status = Status::of(directory.as_fd()).map_err(|e| failed(&shown, "look at", e))?;
        let own = rustix::process::geteuid().as_raw();
        if status.uid != own || status.mode & 0o077 != 0 {
            return Err(err!(
                Refused,
                "directory \"{}\" belongs to user {} and has mode {:04o}: it was not made by user {own}",
                shown.escape_ascii(),
                status.uid,
                status.mode
            )
            .hint("Nothing was changed. Look who made it."));
        }
        Ok(Depot {
            directory,
            above,
            name,
        })
    }

    /// Its name.
    pub(super) fn shown(&self) -> String {
        self.name.escape_ascii().to_string()
    }

    /// The name of the slot of a change.
    pub(super) fn slot(number: usize) -> Vec<u8> {
        number.to_string().into_bytes()
    }

    /// Removes the depot with what is in it.
    pub(super) fn remove(&self) -> Result<()> {
        let directory = self.directory.as_fd();
        let seen = see(directory, b"").map_err(|e| failed(&self.name, "look at", e))?;
        remove_all(directory, &self.name, seen.volume)?;
        match rustix::fs::unlinkat(&self.above, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(&self.name, "remove", e)),
        }
    }
}

/// Removes what is in a directory of a volume, and nothing that is mounted in it.
fn remove_all(directory: BorrowedFd<'_>, shown: &[u8], volume: Volume) -> Result<()> {
    let names = names_in(directory).map_err(|e| failed(shown, "read", e))?;
    for name in names {
        let path = [shown, &name].join(&b'/');
        match rustix::fs::unlinkat(directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                remove_directory((directory, &name), &path, volume)?;
            }
            Err(e) => return Err(failed(&path, "remove", e)),
        }
    }
    Ok(())
}

fn remove_directory(
    (above, name): (BorrowedFd<'_>, &[u8]),
    path: &[u8],
    volume: Volume,
) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(above, name, flags, Mode::empty());
    let directory = directory.map_err(|e| failed(path, "remove", e))?;
    let seen = see(directory.as_fd(), b"").map_err(|e| failed(path, "look at", e))?;
    if seen.is_mount || seen.volume != volume {
        return Err(err!(
            Refused,
            "another filesystem is mounted at \"{}\": nothing of it is removed",
            path.escape_ascii()
        )
        .hint("Unmount it, then run the same command again."));
    }
    remove_all(directory.as_fd(), path, volume)?;
    match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed(path, "remove", e)),
    }
}

fn open_place(root: BorrowedFd<'_>, place: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    beneath::open(root, place, flags, Mode::empty()).map_err(|e| failed(place, "open", e))
}

impl Target {
    /// Removes the depot of a restore that was killed before anything moved, or that cannot be undone.
    ///
    /// # Errors
    /// `TargetWrite`; `Refused` where something is mounted in it.
    pub fn clean(&self) -> Result<()> {
        let place = &self.home;
        let above = open_place(self.root.as_fd(), place)?;
        for name in depots_in(above.as_fd(), place)? {
            let above = rustix::io::fcntl_dupfd_cloexec(&above, 0);
            let above = above.map_err(|e| failed(place, "open", e))?;
            // One of another user's is not ours.
            let Ok(depot) = Depot::open_in(above, place, name) else {
                continue;
            };
            if !Journal::is_in(depot.directory.as_fd()) {
                depot.remove()?;
            }
        }
        Ok(())
    }
}

/// Names of depots in a directory.
fn depots_in(directory: BorrowedFd<'_>, place: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut names = names_in(directory).map_err(|e| failed(place, "read", e))?;
    names.retain(|name| name.starts_with(DEPOT_PREFIX.as_bytes()));
    Ok(names)
}
