//! Opens what lies beneath a directory that is held open, and nothing outside of it.
//!
//! openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS) lets neither `..` nor a link planted before or meanwhile lead out (measured on Linux 6.18:
//! EXDEV and ELOOP). Without openat2, paths are walked component by component with O_NOFOLLOW.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// So often a path is tried of which the kernel is not sure. It is walked then.
const UNSURE_AT_MOST: usize = 16;
/// Set once openat2 has turned out not to be there.
static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens what should be a file for reading. A pipe does not hold the opener up, and a terminal does not become the process's own.
pub fn open_file(root: BorrowedFd<'_>, relative: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    open(root, relative, flags, Mode::empty())
}

/// Opens a path beneath `root`; the empty one is `root` itself.
pub fn open(
    root: BorrowedFd<'_>,
    relative: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let relative = if relative.is_empty() { b"." } else { relative };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    for _ in 0..UNSURE_AT_MOST {
        if WITHOUT_OPENAT2.load(Ordering::Relaxed) {
            break;
        }
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(root, relative, flags, mode, how) {
            // Older filters of system calls answer EPERM for calls they do not know.
            Err(Errno::NOSYS | Errno::PERM) => {
                WITHOUT_OPENAT2.store(true, Ordering::Relaxed);
            }
            // A rename elsewhere in the tree can make the kernel unsure. A file that somebody holds a lease on answers the same.
            Err(Errno::AGAIN) => {}
            // A path of 4096 bytes is longer than one call takes.
            Err(Errno::NAMETOOLONG) => break,
            answer => return answer,
        }
    }
    walk(root, relative, flags, mode)
}

/// Opens a path component by component, following no link.
pub fn walk(
    root: BorrowedFd<'_>,
    relative: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let mut at = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    if relative == b"." {
        return rustix::fs::openat(&at, relative, flags, mode);
    }
    let mut parts = relative.split(|&b| b == b'/').peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() || part == b"." || part == b".." {
            return Err(Errno::XDEV);
        }
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = match parts.peek() {
            Some(_) => rustix::fs::openat(at.as_fd(), part, step, Mode::empty())?,
            None => rustix::fs::openat(at.as_fd(), part, flags, mode)?,
        };
    }
    Ok(at)
}

/// The path of an entry of a directory.
pub fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_vec(),
        directory => [directory, name].join(&b'/'),
    }
}

/// Parent and name of a path.
pub fn cut(relative: &[u8]) -> (&[u8], &[u8]) {
    match relative.iter().rposition(|&b| b == b'/') {
        Some(at) => (
            relative.get(..at).unwrap_or_default(),
            relative.get(at + 1..).unwrap_or_default(),
        ),
        None => (&[], relative),
    }
}
