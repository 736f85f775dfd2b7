//! Locks of files, by which processes of one host take turns, and those of values, by which threads do.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation::{NonBlockingLockExclusive, NonBlockingLockShared};
use rustix::io::Errno;

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// The value of a mutex, also behind a thread that panicked with it: for values that are whole after each step.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the file, makes it where it is not there, and locks it as [`within`] does; none while another process has the lock.
///
/// # Errors
/// Those of the system.
pub fn take(path: &Path, patience: Duration) -> io::Result<Option<File>> {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    let file = options.open(path)?;
    Ok(within(&file, patience)?.then_some(file))
}

/// Locks the file against all others; whether it could within the time. One who only looks holds the lock for a moment, too.
///
/// # Errors
/// Those of the system.
pub fn within(file: impl AsFd, patience: Duration) -> io::Result<bool> {
    let since = Instant::now();
    loop {
        match rustix::fs::flock(&file, NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if since.elapsed() < patience => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether a process has the lock of a file, which need not be there.
///
/// # Errors
/// Those of the system.
pub fn is_held(path: &Path) -> io::Result<bool> {
    // A pipe in its place is not waited for.
    let unwaited = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = File::options();
    let file = match options.read(true).custom_flags(unwaited).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    match rustix::fs::flock(&file, NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_it_and_another_waits_for_a_while() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let held = take(&path, Duration::ZERO).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(take(&path, Duration::from_millis(30)).unwrap().is_none());
        let waits = std::thread::spawn(move || take(&path, Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(30));
        drop(held);
        assert!(waits.join().unwrap().unwrap().is_some());
    }
}
