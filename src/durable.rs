//! Durable writes: the only module that calls fsync, link or rename.
//!
//! *Durable* means: the file's content is synced, then its name exists, then the directory that holds the name is synced. A new
//! object is written as an unnamed file (`O_TMPFILE`; a `.tmp.*` file where the filesystem has none), synced, linked under its
//! final name (which fails if the name exists: nothing is ever replaced) and its directory synced. Killed at any point, the name
//! is absent or complete.
//!
//! A failed fsync is never repeated on the same file: Linux may have dropped the dirty pages and answer success the second time.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};

/// Names that begin so are unfinished files of some writer.
pub const TEMPORARY_PREFIX: &str = ".tmp.";

/// So often a directory is made again that others remove while it is empty.
pub const REMOVALS_MAX: usize = 8;

/// The result of a create-only write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The name is new and durable.
    Created,
    /// The name was there already; nothing was changed.
    Exists,
}

/// A file being written that appears under its name only when [`NewFile::publish`] succeeds.
///
/// Dropping it abandons the content.
pub struct NewFile {
    directory: OwnedFd,
    name: String,
    temporary: Option<Temporary>,
    file: Option<File>,
}

impl NewFile {
    /// Begins `name` inside `directory`, with mode 0600.
    ///
    /// `nonce` makes the temporary name unique where an unnamed file cannot be had.
    pub fn create(directory: OwnedFd, name: &str, nonce: u64) -> io::Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        let unnamed = rustix::fs::openat(
            &directory,
            ".",
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
            mode,
        );
        let (file, temporary) = match unnamed {
            Ok(fd) => (File::from(fd), None),
            Err(
                rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::ISDIR
                | rustix::io::Errno::NOENT
                | rustix::io::Errno::INVAL,
            ) => {
                let (temporary, file) = Temporary::create(&directory, name, nonce)?;
                (file, Some(temporary))
            }
            Err(e) => return Err(e.into()),
        };
        Ok(NewFile {
            directory,
            name: name.to_owned(),
            temporary,
            file: Some(file),
        })
    }

    /// The file under construction, for reading back and for positions.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Syncs the content, gives it its name if the name is free, and syncs the directory.
    ///
    /// On `Created` the object survives a power cut. On `Exists` nothing was done to the existing file; see [`settle`].
    pub fn publish(self) -> io::Result<Published> {
        self.publish_in(&|| Err(rustix::io::Errno::NOENT.into()))
    }

    /// As [`NewFile::publish`]. `anew` makes the directory again, where another process has removed it while it was empty.
    pub fn publish_in(mut self, anew: &dyn Fn() -> io::Result<OwnedFd>) -> io::Result<Published> {
        let Some(file) = self.file.take() else {
            return Err(io::Error::other("file already published"));
        };
        file.sync_all()?;
        let mut linked = self.named(&file);
        for _ in 0..REMOVALS_MAX {
            // A directory with a temporary file in it was not empty.
            if linked != Err(rustix::io::Errno::NOENT) || self.temporary.is_some() {
                break;
            }
            self.directory = anew()?;
            linked = self.named(&file);
        }
        // NFS and quotas report a lost write on close; only an explicit close sees it.
        close(file)?;
        match linked {
            Ok(()) => {
                sync_directory(self.directory.as_fd())?;
                Ok(Published::Created)
            }
            Err(rustix::io::Errno::EXIST) => Ok(Published::Exists),
            Err(e) => Err(e.into()),
        }
    }

    /// Links the file to its name, if that is free or its own already.
    fn named(&mut self, file: &File) -> rustix::io::Result<()> {
        match self.link(file) {
            Err(rustix::io::Errno::EXIST) if self.is_named(file) => Ok(()),
            linked => linked,
        }
    }

    /// Whether the name is that of the file itself. A server of NFS that answers the repeated link of a lost answer says that the name is taken,
    /// by what the first one linked.
    fn is_named(&self, file: &File) -> bool {
        let named = rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let named = named.map(|stat| (stat.st_dev, stat.st_ino));
        let own = rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
        matches!((named, own), (Ok(named), Ok(own)) if named == own)
    }

    fn link(&mut self, file: &File) -> rustix::io::Result<()> {
        use std::os::fd::AsRawFd;
        if let Some(temporary) = &self.temporary {
            rustix::fs::linkat(
                &self.directory,
                &temporary.name,
                &self.directory,
                &self.name,
                AtFlags::empty(),
            )?;
            return Ok(());
        }
        // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; the /proc link is open to everybody.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(
            rustix::fs::CWD,
            path,
            &self.directory,
            &self.name,
            AtFlags::SYMLINK_FOLLOW,
        )
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::Error::other("file already published")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A named temporary file that is removed again, also by [`remove_temporaries`] when a signal ends the program.
struct Temporary {
    directory: OwnedFd,
    name: String,
    path: PathBuf,
}

static TEMPORARIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Temporary files that are about to be.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
/// Set when the program ends: no more of them.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// A dead mount must not keep the program alive.
const REMOVAL_LIMIT: Duration = Duration::from_secs(1);

/// Counts a temporary file that is about to be, so that whoever ends the program waits until it can be removed.
struct Begun;

impl Begun {
    fn new() -> io::Result<Begun> {
        // In this order: either the one who closes sees this count, or it is seen here that he closed.
        BEGUN.fetch_add(1, Ordering::SeqCst);
        let begun = Begun;
        match CLOSED.load(Ordering::SeqCst) {
            true => Err(io::Error::other("the program ends")),
            false => Ok(begun),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        BEGUN.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Temporary {
    /// Creates a file of mode 0600 under a name of its own.
    fn create(directory: &OwnedFd, name: &str, nonce: u64) -> io::Result<(Self, File)> {
        let pid = std::process::id();
        // A final name may be as long as the filesystem allows; the temporary one must not be longer.
        let stem: String = name.chars().take(60).collect();
        let name = format!("{TEMPORARY_PREFIX}{stem}.{pid}.{nonce:016x}");
        let path = directory_path(directory.as_fd()).join(&name);
        let _begun = Begun::new()?;
        register(&path, true);
        let temporary = Temporary {
            directory: directory.try_clone()?,
            name,
            path,
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(directory, &temporary.name, flags, mode)?;
        Ok((temporary, File::from(fd)))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Absent when it was renamed or never created.
        let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
        register(&self.path, false);
    }
}

fn register(path: &Path, add: bool) {
    if let Ok(mut list) = TEMPORARIES.lock() {
        list.retain(|p| p != path);
        if add {
            list.push(path.to_owned());
        }
    }
}

/// Removes the temporary files of this process; called before it ends while a writer may still be at work. From then on none can be
/// begun. A filesystem that does not answer is waited for no longer than a second.
pub fn remove_temporaries() {
    CLOSED.store(true, Ordering::SeqCst);
    let (done, is_done) = std::sync::mpsc::channel();
    let remover = std::thread::Builder::new().spawn(move || {
        while BEGUN.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Ok(mut list) = TEMPORARIES.lock() {
            for path in list.drain(..) {
                let _ = std::fs::remove_file(path);
            }
        }
        let _ = done.send(());
    });
    if remover.is_ok() {
        let _ = is_done.recv_timeout(REMOVAL_LIMIT);
    }
}

/// Makes an existing file durable again: its content, then its directory.
///
/// The writer that made it may have died between giving the name and syncing the directory.
pub fn settle(directory: BorrowedFd<'_>, file: &File) -> io::Result<()> {
    file.sync_all()?;
    sync_directory(directory)
}

/// Syncs a directory, so that names given or taken in it survive a power cut.
pub fn sync_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    // A descriptor opened with O_PATH cannot be synced.
    let fd = rustix::fs::openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::fs::fsync(fd)?;
    Ok(())
}

/// Syncs the directory at `path`.
pub fn sync_directory_at(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs the content of one file.
pub fn sync_file(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Syncs the content of one file, and the metadata that reading the content needs.
///
/// If the file was written before, over its whole length, only the content is synced: that is the cheapest sync there
/// is.
pub fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Creates one directory (mode 0700) durably; its being there already is fine.
pub fn create_directory(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => sync_directory(parent),
        // Whoever created it may have died before the sync; a file linked below must not depend on that.
        Err(rustix::io::Errno::EXIST) => sync_directory(parent),
        Err(e) => Err(e.into()),
    }
}

/// Writes a whole small file durably under a new name; fails if the name exists.
pub fn write_new(path: &Path, content: &[u8], nonce: u64) -> io::Result<Published> {
    let (directory, name) = split(path)?;
    let mut file = NewFile::create(directory, &name, nonce)?;
    file.write_all(content)?;
    file.publish()
}

/// Replaces a whole small file durably (temporary file, sync, rename, directory sync). Never used inside a repository.
pub fn replace(path: &Path, content: &[u8], nonce: u64) -> io::Result<()> {
    replace_with_mode(path, content, nonce, Mode::RUSR | Mode::WUSR)
}

/// As [`replace`], of a file that everybody may read.
pub fn replace_readable(path: &Path, content: &[u8], nonce: u64) -> io::Result<()> {
    replace_with_mode(path, content, nonce, Mode::from_raw_mode(0o644))
}

/// As [`replace`], of a file that nobody needs behind a power cut: nothing is synced.
pub fn replace_unsynced(path: &Path, content: &[u8], nonce: u64) -> io::Result<()> {
    let (directory, name) = split(path)?;
    let (temporary, mut file) = Temporary::create(&directory, &name, nonce)?;
    file.write_all(content)?;
    close(file)?;
    rustix::fs::renameat(&directory, &temporary.name, &directory, &name)?;
    Ok(())
}

fn replace_with_mode(path: &Path, content: &[u8], nonce: u64, mode: Mode) -> io::Result<()> {
    let (directory, name) = split(path)?;
    let (temporary, mut file) = Temporary::create(&directory, &name, nonce)?;
    file.write_all(content)?;
    rustix::fs::fchmod(&file, mode)?;
    file.sync_all()?;
    close(file)?;
    rustix::fs::renameat(&directory, &temporary.name, &directory, &name)?;
    sync_directory(directory.as_fd())
}

/// Replaces the content of an existing small file durably; owner and permissions stay those of the old file.
///
/// A privileged program must not take a server's own file away from it.
pub fn rewrite(path: &Path, content: &[u8], nonce: u64) -> io::Result<()> {
    let (directory, name) = split(path)?;
    rewrite_in(directory, &name, content, nonce)
}

/// As [`rewrite`], of `name` inside `directory`. A symbolic link in its place is refused.
pub fn rewrite_in(directory: OwnedFd, name: &str, content: &[u8], nonce: u64) -> io::Result<()> {
    let old = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if rustix::fs::FileType::from_raw_mode(old.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(rustix::io::Errno::LOOP.into());
    }
    let (temporary, mut file) = Temporary::create(&directory, name, nonce)?;
    file.write_all(content)?;
    let new = rustix::fs::fstat(&file)?;
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid) {
        let owner = rustix::fs::Uid::from_raw(old.st_uid);
        let group = rustix::fs::Gid::from_raw(old.st_gid);
        rustix::fs::fchown(&file, Some(owner), Some(group))?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(old.st_mode & 0o777))?;
    file.sync_all()?;
    close(file)?;
    rustix::fs::renameat(&directory, &temporary.name, &directory, name)?;
    sync_directory(directory.as_fd())
}

/// Gives the synced file `from` the name `to` in the same directory, durably. An existing `to` is never replaced.
pub fn name_in(directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
    use rustix::fs::RenameFlags;
    match rustix::fs::renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Filesystems without the flag; the caller holds the directory alone.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            match rustix::fs::statat(directory, to, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
                Ok(_) => return Err(rustix::io::Errno::EXIST.into()),
            }
            rustix::fs::renameat(directory, from, directory, to)?;
        }
        Err(e) => return Err(e.into()),
    }
    sync_directory(directory)
}

/// Makes a symbolic link `name` in `directory`; the sync of the directory is the caller's.
pub fn link_to(directory: BorrowedFd<'_>, name: &[u8], target: &Path) -> rustix::io::Result<()> {
    rustix::fs::symlinkat(target, directory, name)
}

/// Gives the file `from` in one directory the further name `to` in another; the sync of the directory is the caller's.
pub fn name_again(
    (from_directory, from): (BorrowedFd<'_>, &[u8]),
    (to_directory, to): (BorrowedFd<'_>, &[u8]),
) -> rustix::io::Result<()> {
    rustix::fs::linkat(from_directory, from, to_directory, to, AtFlags::empty())
}

/// Moves an entry to a name that is free, in the same filesystem; `EXIST` when it is taken. The sync of the directories is the caller's.
pub fn move_to_free(
    (from_directory, from): (BorrowedFd<'_>, &[u8]),
    (to_directory, to): (BorrowedFd<'_>, &[u8]),
) -> rustix::io::Result<()> {
    use rustix::fs::RenameFlags;
    let flags = RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(from_directory, from, to_directory, to, flags) {
        // Filesystems without the flag.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            match rustix::fs::statat(to_directory, to, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => {
                    move_over((from_directory, from), (to_directory, to))
                }
                Err(e) => Err(e),
                Ok(_) => Err(rustix::io::Errno::EXIST),
            }
        }
        answer => answer,
    }
}

/// Moves an entry over another one, which is gone then. The sync of the directories is the caller's.
pub fn move_over(
    (from_directory, from): (BorrowedFd<'_>, &[u8]),
    (to_directory, to): (BorrowedFd<'_>, &[u8]),
) -> rustix::io::Result<()> {
    rustix::fs::renameat(from_directory, from, to_directory, to)
}

/// Exchanges two entries of one filesystem in one step; `INVAL` where the filesystem cannot. The sync of the directories is the caller's.
pub fn exchange(
    (one_directory, one): (BorrowedFd<'_>, &[u8]),
    (other_directory, other): (BorrowedFd<'_>, &[u8]),
) -> rustix::io::Result<()> {
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(one_directory, one, other_directory, other, flags)
}

/// Removes `name` from `directory` durably; absence is fine, but is made durable too.
pub fn remove_in(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => sync_directory(directory),
        Err(e) => Err(e.into()),
    }
}

/// Syncs everything of the filesystem that holds `directory`, when that is as good as syncing each file; `false` when it is not, and
/// nothing was synced.
///
/// syncfs(2) reports failed writes since the descriptor was opened, but only from Linux 5.8 on; and filesystems in user space or on a
/// network may answer before their server has synced. So it counts on known local filesystems alone. `directory` must have been
/// opened (not with O_PATH) before the first write.
///
/// PostgreSQL: doc/src/sgml/config.sgml, `recovery_init_sync_method`, has the same reservation.
pub fn sync_filesystem(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let can = can_sync_filesystem(directory)?;
    if can {
        rustix::fs::syncfs(directory)?;
    }
    Ok(can)
}

/// Starts with clean pages: writes back what is dirty in the filesystem of `directory`. It proves nothing, as [`sync_filesystem`] does.
pub fn write_back(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(directory)?)
}

/// Whether [`sync_filesystem`] syncs the filesystem of `directory`.
pub fn can_sync_filesystem(directory: BorrowedFd<'_>) -> io::Result<bool> {
    /// ext2–4, XFS, Btrfs, tmpfs, ramfs, F2FS, ZFS, bcachefs (Linux: include/uapi/linux/magic.h). Not overlayfs: it does not pass on
    /// the errors of the filesystem below.
    const LOCAL: &[u64] = &[
        0xEF53,
        0x5846_5342,
        0x9123_683E,
        0x0102_1994,
        0x8584_58F6,
        0xF2F5_2010,
        0x2FC1_2FC1,
        0xCA45_1A4E,
    ];
    let kind = rustix::fs::fstatfs(directory)?.f_type;
    // The field's width and sign differ between machines; the magic numbers have 32 bits.
    let kind = u64::try_from(i128::from(kind) & 0xFFFF_FFFF).unwrap_or(0);
    Ok(LOCAL.contains(&kind) && reports_errors_of_syncfs())
}

fn reports_errors_of_syncfs() -> bool {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) >= (5, 8)
}

/// Removes a file and syncs its directory; absence is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => {
            let (directory, _) = split(path)?;
            sync_directory(directory.as_fd())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// A file delivered to PostgreSQL's recovery: written beside its target, then renamed over it.
///
/// Deliberately not synced: after a crash, recovery asks the archive again, and a sync costs tens of milliseconds a segment.
/// The target is replaced by rename, so a symbolic link in its place is not followed; a directory makes the rename fail.
pub struct Delivery {
    directory: OwnedFd,
    name: String,
    temporary: Temporary,
    file: File,
}

impl Delivery {
    /// Begins a delivery to `path`, whose directory must exist.
    pub fn create(path: &Path, nonce: u64) -> io::Result<Self> {
        let (directory, name) = split(path)?;
        Delivery::create_in(directory, &name, nonce)
    }

    /// As [`Delivery::create`], of `name` inside `directory`.
    pub fn create_in(directory: OwnedFd, name: &str, nonce: u64) -> io::Result<Self> {
        let (temporary, file) = Temporary::create(&directory, name, nonce)?;
        Ok(Delivery {
            directory,
            name: name.to_owned(),
            temporary,
            file,
        })
    }

    /// Syncs the content, then gives the file its name: for one that waits to be handed over, while there is time for it.
    pub fn finish_synced(self) -> io::Result<()> {
        self.file.sync_data()?;
        self.finish()
    }

    /// Gives the file its name.
    pub fn finish(self) -> io::Result<()> {
        close(self.file)?;
        rustix::fs::renameat(
            &self.directory,
            &self.temporary.name,
            &self.directory,
            &self.name,
        )?;
        Ok(())
    }
}

impl Write for Delivery {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands the finished file `name` of `directory` over as `target`, which is replaced; like a [`Delivery`], without a sync.
pub fn hand_over(directory: BorrowedFd<'_>, name: &str, target: &Path) -> io::Result<()> {
    rustix::fs::renameat(directory, name, rustix::fs::CWD, target)?;
    Ok(())
}

fn split(path: &Path) -> io::Result<(OwnedFd, String)> {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| io::Error::from(rustix::io::Errno::INVAL))?;
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((
        rustix::fs::open(parent, flags, Mode::empty())?,
        name.to_owned(),
    ))
}

fn directory_path(directory: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    std::fs::read_link(link).unwrap_or_default()
}

/// Closes a file and reports what `Drop` would swallow.
fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY is not at stake: the descriptor is owned and given up here.
    let raw = file.into_raw_fd();
    close_raw(raw)
}

#[expect(
    unsafe_code,
    reason = "close(2) with its result exists only for raw descriptors"
)]
fn close_raw(raw: std::os::fd::RawFd) -> io::Result<()> {
    // SAFETY: `raw` comes from `into_raw_fd` in `close` above, is owned by nobody else and not used afterwards.
    match unsafe { rustix::io::try_close(raw) } {
        // Linux has released the descriptor even on EINTR; trying again could close another thread's.
        Ok(()) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_dir(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_new_file_appears_only_when_published_and_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = NewFile::create(open_dir(dir.path()), "x", 1).unwrap();
        f.write_all(b"one").unwrap();
        assert!(!dir.path().join("x").exists());
        assert_eq!(f.publish().unwrap(), Published::Created);
        assert_eq!(
            write_new(&dir.path().join("x"), b"two", 2).unwrap(),
            Published::Exists
        );
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_name_that_the_file_has_already_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        // Both without a name, and with a temporary one.
        for (name, is_named) in [("x", false), ("y", true)] {
            let mut f = NewFile::create(open_dir(dir.path()), name, 1).unwrap();
            if is_named {
                let (temporary, file) = Temporary::create(&f.directory, name, 2).unwrap();
                (f.temporary, f.file) = (Some(temporary), Some(file));
            }
            f.write_all(b"one").unwrap();
            let file = f.file.take().unwrap();
            f.link(&file).unwrap();
            f.file = Some(file);
            assert_eq!(f.publish().unwrap(), Published::Created, "{name}");
            assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), b"one");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_delivery_replaces_a_link_and_leaves_its_target_alone() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"keep").unwrap();
        let target = dir.path().join("RECOVERYXLOG");
        std::os::unix::fs::symlink(&victim, &target).unwrap();
        let mut d = Delivery::create(&target, 7).unwrap();
        d.write_all(b"wal").unwrap();
        d.finish().unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"keep");
        assert_eq!(std::fs::read(&target).unwrap(), b"wal");
        let d = Delivery::create(&dir.path().join("gone"), 8).unwrap();
        drop(d);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
