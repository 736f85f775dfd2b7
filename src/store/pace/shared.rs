//! The file by which processes share a limit: one moment, the one at which everything that they took is paid for.
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | nanoseconds of the machine's monotonic clock, little-endian |
//! | 8–11 | CRC-32 of the identity of the machine's start, little-endian: a moment of another start means nothing |
//! | 12–15 | CRC-32 of the bytes before, little-endian |
//!
//! Nothing here is synced: after a crash the bucket is full. The directory must belong to this account and be closed to all others, as the
//! file must: a neighbour could hold its lock for good. A content that does not fit counts as no content.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::lock;
use crate::process::boot_id;

const LENGTH: usize = 16;
/// The lock is held for microseconds. If it is not to be had, a process that has it was stopped, or the disk hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The open file.
pub(super) struct SharedFile {
    file: OwnedFd,
    boot: u32,
}

impl SharedFile {
    /// Opens the file of the repository at `location` in `directory`; makes both where they are lacking.
    ///
    /// # Errors
    /// `PermissionDenied` for a directory or a file that another account owns or may open; what the system says.
    pub(super) fn open(directory: &Path, location: &str) -> io::Result<SharedFile> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        check_own(&rustix::fs::fstat(&directory)?)?;
        let name = blake3::hash(location.as_bytes()).to_hex();
        // A pipe in its place is not waited for.
        let flags =
            OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        let stat = rustix::fs::fstat(&file)?;
        check_own(&stat)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(Errno::PERM.into());
        }
        Ok(SharedFile {
            file,
            boot: boot_crc(),
        })
    }

    /// Replaces the moment by what `next` makes of it, and returns that.
    ///
    /// # Errors
    /// `TimedOut` when another process keeps the lock; what the system says.
    pub(super) fn update(&self, next: impl FnOnce(u64) -> u64) -> io::Result<u64> {
        self.lock()?;
        let updated = self.update_locked(next);
        rustix::fs::flock(&self.file, FlockOperation::Unlock)?;
        updated
    }

    fn update_locked(&self, next: impl FnOnce(u64) -> u64) -> io::Result<u64> {
        let mut bytes = [0; LENGTH];
        let length = rustix::io::pread(&self.file, &mut bytes[..], 0)?;
        let known = match length == LENGTH {
            true => self.decode(bytes),
            false => None,
        };
        let moment = next(known.unwrap_or(0));
        let bytes = self.encode(moment);
        match rustix::io::pwrite(&self.file, &bytes, 0)? == LENGTH {
            true => Ok(moment),
            false => Err(Errno::NOSPC.into()),
        }
    }

    fn lock(&self) -> io::Result<()> {
        match lock::within(&self.file, LOCK_PATIENCE)? {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "another process keeps the lock of its file",
            )),
        }
    }

    fn encode(&self, moment_ns: u64) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let (head, sum) = bytes.split_at_mut(12);
        let (moment, boot) = head.split_at_mut(8);
        moment.copy_from_slice(&moment_ns.to_le_bytes());
        boot.copy_from_slice(&self.boot.to_le_bytes());
        sum.copy_from_slice(&crc32fast::hash(head).to_le_bytes());
        bytes
    }

    fn decode(&self, bytes: [u8; LENGTH]) -> Option<u64> {
        let moment = bytes.first_chunk().map(|b| u64::from_le_bytes(*b))?;
        (self.encode(moment) == bytes).then_some(moment)
    }
}

fn check_own(stat: &Stat) -> io::Result<()> {
    let open_to = Mode::from_raw_mode(stat.st_mode) & (Mode::RWXG | Mode::RWXO);
    match stat.st_uid == rustix::process::geteuid().as_raw() && open_to.is_empty() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it must belong to this account alone (mode 0700, files 0600)",
        )),
    }
}

/// The identity of the machine's start as a number; 0 where the system does not say.
fn boot_crc() -> u32 {
    boot_id().map_or(0, |id| crc32fast::hash(id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    const PLACE: &str = "file:///r";

    fn path_of(directory: &Path) -> std::path::PathBuf {
        directory.join(blake3::hash(PLACE.as_bytes()).to_hex().as_str())
    }

    fn refused(directory: &Path) -> io::Error {
        match SharedFile::open(directory, PLACE) {
            Ok(_) => panic!("it was opened"),
            Err(e) => e,
        }
    }

    #[test]
    fn the_moment_is_kept_and_rubbish_is_not_believed() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("a/rate");
        let (one, other) = (
            SharedFile::open(&directory, PLACE).unwrap(),
            SharedFile::open(&directory, PLACE).unwrap(),
        );
        assert_eq!(one.update(|moment| moment + 5).unwrap(), 5);
        assert_eq!(other.update(|moment| moment + 7).unwrap(), 12);
        let path = path_of(&directory);
        for rubbish in [&b""[..], b"short", &[255; 16], &[0; 16], &[7; 4096]] {
            std::fs::write(&path, rubbish).unwrap();
            assert_eq!(one.update(|moment| moment + 1).unwrap(), 1, "{rubbish:?}");
        }
        // Another start of the machine.
        let later = SharedFile {
            boot: !one.boot,
            ..SharedFile::open(&directory, PLACE).unwrap()
        };
        assert_eq!(later.update(|moment| moment + 9).unwrap(), 9);
    }

    #[test]
    fn neighbours_are_not_believed() {
        let place = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let directory = place.path().join("rate");
        std::fs::create_dir(&directory).unwrap();
        mode(&directory, 0o755);
        assert_eq!(refused(&directory).kind(), io::ErrorKind::PermissionDenied);
        mode(&directory, 0o700);
        let link = place.path().join("link");
        symlink(&directory, &link).unwrap();
        refused(&link);
        let path = path_of(&directory);
        let victim = place.path().join("victim");
        std::fs::write(&victim, "not to be touched").unwrap();
        mode(&victim, 0o600);
        symlink(&victim, &path).unwrap();
        refused(&directory);
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(&victim, &path).unwrap();
        refused(&directory);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        mode(&path, 0o644);
        assert_eq!(refused(&directory).kind(), io::ErrorKind::PermissionDenied);
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        refused(&directory);
        assert_eq!(std::fs::read(&victim).unwrap(), b"not to be touched");
    }

    #[test]
    fn a_lock_that_is_kept_ends_the_sharing() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("rate");
        let keeper = SharedFile::open(&directory, PLACE).unwrap();
        keeper.lock().unwrap();
        let file = SharedFile::open(&directory, PLACE).unwrap();
        let failed = file.update(|moment| moment).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        drop(keeper);
        file.update(|moment| moment).unwrap();
    }
}
