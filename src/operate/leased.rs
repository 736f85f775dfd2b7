//! Private folders of servers that pitr starts. Each process holds the lock in its own; a folder whose lock is free is left over.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation::NonBlockingLockExclusive;

use crate::err;
use crate::error::Result;
use crate::lock;

/// So long a process may remove what is left over.
const MOMENT: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(5);
/// A socket's path may have 107 bytes, of which its name takes some: PostgreSQL, src/include/libpq/pqcomm.h.
const FOLDER_BYTES_MAX: usize = 80;

/// The directory below which a folder is to be made, without links in its path.
///
/// # Errors
/// `Refused` where it is not there.
pub(super) fn below(directory: &Path) -> Result<PathBuf> {
    let real = directory.canonicalize().ok().filter(|path| path.is_dir());
    real.ok_or_else(|| {
        err!(Refused, "\"{}\" is not a directory", directory.display())
            .hint("Nothing was done. Make it, or name another one with --dir DIR.")
    })
}

/// Requires that a server can have its socket in a folder.
///
/// # Errors
/// `Refused`.
pub(super) fn check_path(folder: &Path) -> Result<()> {
    match folder.as_os_str().len() > FOLDER_BYTES_MAX || folder.to_str().is_none() {
        true => Err(err!(
            Refused,
            "the path of \"{}\" is too long for a socket, or no UTF-8",
            folder.display()
        )
        .hint("Nothing was done. Name a directory with a shorter path: --dir DIR.")),
        false => Ok(()),
    }
}

/// Makes a folder with its lock, and holds that. Who removes what is left over may come between the two: then it is made again.
///
/// # Errors
/// Those of the system.
pub(super) fn make<F: AsRef<Path>>(
    name: &str,
    mut folder: impl FnMut() -> std::io::Result<F>,
) -> std::io::Result<(F, File)> {
    let began = Instant::now();
    let mut was_removed = false;
    loop {
        let made = folder().and_then(|folder| {
            let lock = lock(folder.as_ref(), name)?;
            Ok((folder, lock))
        });
        let kind = made.as_ref().err().map(std::io::Error::kind);
        let is_removed = matches!(kind, Some(ErrorKind::NotFound | ErrorKind::WouldBlock));
        was_removed |= is_removed;
        // A name that was chosen is free again in a moment.
        let is_going = was_removed && kind == Some(ErrorKind::AlreadyExists);
        if !(is_removed || is_going) || began.elapsed() > MOMENT {
            return made;
        }
        std::thread::sleep(GLANCE);
    }
}

/// Makes the lock of a folder, and holds it. `NotFound` where the folder was removed before it was held.
fn lock(folder: &Path, name: &str) -> std::io::Result<File> {
    let path = folder.join(name);
    let lock = File::create(&path)?;
    rustix::fs::flock(&lock, NonBlockingLockExclusive)?;
    let (there, held) = (std::fs::metadata(&path)?, lock.metadata()?);
    match (there.dev(), there.ino()) == (held.dev(), held.ino()) {
        true => Ok(lock),
        false => Err(ErrorKind::NotFound.into()),
    }
}

/// Whether a process holds the lock of a folder, and does so for a while: who removes what is left over has it for a moment.
pub(super) fn is_held(folder: &Path, name: &str) -> bool {
    let file = File::open(folder.join(name));
    file.is_ok_and(|file| matches!(lock::within(&file, MOMENT), Ok(false)))
}

/// Takes the lock of a folder that is left over; none where a process holds it.
pub(super) fn take_over(folder: &Path, name: &str) -> Option<File> {
    let Ok(lock) = File::open(folder.join(name)) else {
        // Killed before it had a lock: then it is empty. One that was kept is not.
        let _ = std::fs::remove_dir(folder);
        return None;
    };
    let taken = rustix::fs::flock(&lock, NonBlockingLockExclusive);
    taken.is_ok().then_some(lock)
}

/// The folders below a directory that are this user's, by the beginning of their names.
pub(super) fn folders(below: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
    let is_ours = |entry: &std::fs::DirEntry| {
        let is_named = entry.file_name().to_string_lossy().starts_with(prefix);
        // This is about the entry itself: a link is no directory.
        let meta = entry.metadata().ok().filter(|_| is_named);
        let own = rustix::process::geteuid().as_raw();
        meta.is_some_and(|meta| meta.is_dir() && meta.uid() == own)
    };
    entries.filter(is_ours).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_removes_what_is_left_over_keeps_nobody_from_making_a_folder() {
        let below = tempfile::tempdir().unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    for folder in folders(below.path(), "own-") {
                        let taken = take_over(&folder, "lock");
                        taken.map(|_lock| std::fs::remove_dir_all(&folder));
                    }
                }
            });
            for n in 0..300 {
                let chosen = below.path().join(format!("own-{n}"));
                let (folder, lock) = make("lock", || {
                    std::fs::create_dir(&chosen)?;
                    // The other one has its chance.
                    std::thread::yield_now();
                    Ok(chosen.clone())
                })
                .unwrap();
                std::thread::yield_now();
                assert!(folder.join("lock").exists(), "{n}");
                drop(lock);
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_folder_is_left_over_when_nobody_holds_its_lock() {
        let below = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = below.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (held, empty, other) = (folder("own-held"), folder("own-empty"), folder("other"));
        std::os::unix::fs::symlink(&other, below.path().join("own-link")).unwrap();
        let mut found = folders(below.path(), "own-");
        found.sort();
        assert_eq!(found, [empty.clone(), held.clone()]);
        let taken = lock(&held, "lock").unwrap();
        assert!(take_over(&held, "lock").is_none());
        assert!(is_held(&held, "lock") && !is_held(&empty, "lock"));
        drop(taken);
        assert!(!is_held(&held, "lock"));
        assert!(take_over(&held, "lock").is_some());
        assert!(take_over(&empty, "lock").is_none() && !empty.exists());
    }
}
