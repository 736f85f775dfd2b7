//! Work of root in a directory of another account, on behalf of that account: a link that its owner put there leads root nowhere that the owner
//! could not go.
//!
//! A thread of its own takes the account's effective user and group, without supplementary groups, so the kernel checks each path on the way.
//! The real and the saved user stay root's: the account may neither signal nor trace the process.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Gid, OFlags, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::way::Way;

/// The group that owns no file.
const NO_GROUP: u32 = 65_534;
/// More than any file of state has.
pub const BYTES_MAX: u64 = 256 << 20;

/// An account that is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// The owner; none for root.
    fn of(metadata: &Metadata) -> Option<Account> {
        let gid = match metadata.gid() {
            // The group of root would let the account's links reach what that group may change.
            0 => NO_GROUP,
            gid => gid,
        };
        let uid = metadata.uid();
        (uid != 0).then_some(Account { uid, gid })
    }

    /// Makes this thread's work that of the account, for the rest of its life.
    fn assume(self) -> io::Result<()> {
        set_thread_groups(&[])?;
        set_thread_res_gid(None, Gid::from_raw(self.gid), None)?;
        set_thread_res_uid(None, Uid::from_raw(self.uid), None)?;
        Ok(())
    }
}

/// Does work on files at or below `path`, which need not be there. Root does it as the account that decides what lies there.
///
/// # Errors
/// Those of `work`, of the way to `path`, and where the system refuses the account.
pub fn of<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let account = match rustix::process::geteuid().is_root() {
        true => decides(path)?,
        false => None,
    };
    let Some(account) = account else {
        return work();
    };
    let as_account = move || {
        account.assume()?;
        work()
    };
    std::thread::scope(|threads| {
        let thread = std::thread::Builder::new().spawn_scoped(threads, as_account)?;
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Reads a file of state, as [`of`] does.
///
/// # Errors
/// Those of the system; `InvalidData` for a file that is too long.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let read = || {
        let mut bytes = Vec::new();
        let read = opened(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
        match u64::try_from(read).unwrap_or(u64::MAX) < BYTES_MAX {
            true => Ok(bytes),
            false => Err(invalid("it is too long")),
        }
    };
    of(path, read)
}

/// Opens a file of state for reading. A pipe in its place is not waited for, and no device is read.
///
/// # Errors
/// Those of the system; `InvalidData` for what is no file.
pub fn opened(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(unwaited()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(invalid("it is no file")),
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The flag by which nobody waits for the other side of a pipe.
pub fn unwaited() -> i32 {
    OFlags::NONBLOCK.bits().cast_signed()
}

/// The account that decides what lies at a path: the owner of the last directory on the way that is not root's. Behind a link that an account
/// made, this account decides; the owner of the target does not.
fn decides(path: &Path) -> io::Result<Option<Account>> {
    let mut account = None;
    let mut has_linked = false;
    let mut way = Way::to(&std::path::absolute(path)?);
    while let Some(at) = way.next_entry() {
        let metadata = match at.symlink_metadata() {
            Ok(metadata) => metadata,
            // The part that is missing is made below the last directory. The account may look where root may not.
            Err(e) if e.kind() == io::ErrorKind::NotFound || account.is_some() => break,
            Err(e) => return Err(e),
        };
        if !has_linked {
            account = Account::of(&metadata).or(account);
        }
        if metadata.is_symlink() {
            has_linked = account.is_some();
            way.follow(&at)?;
        } else {
            way.enter(at);
        }
    }
    Ok(account)
}

#[cfg(test)]
pub use tests::can_be_another;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
    use std::path::PathBuf;

    const MALLORY: u32 = 64_001;
    const BOB: u32 = 64_002;

    /// Whether this test can be another account. For others than root it is reported as skipped; with `CI` set that is a failure.
    pub fn can_be_another(test: &str) -> bool {
        use std::io::Write as _;
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            let _ = writeln!(io::stderr(), "SKIPPED {test}: needs root");
            assert!(std::env::var_os("CI").is_none(), "{test} needs root");
        }
        is_root
    }

    /// A directory that everybody may search, with `mallory` of that account below it.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let own = place.path().join("mallory");
        std::fs::create_dir(&own).unwrap();
        (place, own)
    }

    #[test]
    fn files_of_this_account_need_no_other() {
        let (_place, own) = place();
        let caller = std::thread::current().id();
        let done = of(&own, || Ok(std::thread::current().id())).unwrap();
        assert_eq!(done, caller);
    }

    #[test]
    fn root_works_as_the_account_whose_directory_it_is() {
        if !can_be_another("root_works_as_the_account") {
            return;
        }
        let (place, own) = place();
        chown(&own, Some(MALLORY), Some(0)).unwrap();
        let made = own.join("below/file");
        let make = || {
            std::fs::create_dir(own.join("below"))?;
            std::fs::write(&made, "x")
        };
        of(&own.join("below"), make).unwrap();
        let metadata = made.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (MALLORY, NO_GROUP));
        // A link to what only root may change, and one instead of the directory.
        let victim = place.path().join("victim");
        std::fs::write(&victim, "keep").unwrap();
        std::fs::remove_file(&made).unwrap();
        symlink(&victim, &made).unwrap();
        let written = of(&own, || std::fs::write(&made, "y"));
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let to = place.path().join("to");
        std::fs::create_dir(&to).unwrap();
        let link = own.join("state");
        symlink(&to, &link).unwrap();
        lchown(&link, Some(MALLORY), None).unwrap();
        let written = of(&link.join("x"), || std::fs::write(link.join("x"), "y"));
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(std::fs::read(&victim).unwrap(), b"keep");
        // This thread is root's still.
        assert!(rustix::process::geteuid().is_root());
        std::fs::write(to.join("x"), "").unwrap();
    }

    #[test]
    fn a_pipe_is_not_waited_for_and_no_device_is_read() {
        let (place, _) = place();
        let path = place.path().join("state");
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "x").unwrap();
        assert_eq!(read(&path).unwrap(), b"x");
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(BYTES_MAX))
            .unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn who_decides_is_the_last_owner_or_the_one_who_made_a_link() {
        if !can_be_another("who_decides") {
            return;
        }
        let (place, own) = place();
        let uid = |path: &Path| decides(path).unwrap().map(|account| account.uid);
        assert_eq!(uid(&own.join("a/b")), None);
        let below = own.join("bob");
        std::fs::create_dir(&below).unwrap();
        chown(&own, Some(MALLORY), Some(MALLORY)).unwrap();
        // Root's directory in another account's: that account may put another one there.
        assert_eq!(uid(&below), Some(MALLORY));
        chown(&below, Some(BOB), Some(BOB)).unwrap();
        assert_eq!(uid(&below.join("../bob/x")), Some(BOB));
        let link = own.join("link");
        symlink(&below, &link).unwrap();
        assert_eq!(uid(&link), Some(MALLORY));
        // A link of root, in a directory of root, leads where root wants it.
        let good = place.path().join("good");
        symlink("mallory/bob", &good).unwrap();
        assert_eq!(uid(&good), Some(BOB));
        symlink("round", own.join("round")).unwrap();
        assert!(decides(&own.join("round")).is_err());
    }
}
