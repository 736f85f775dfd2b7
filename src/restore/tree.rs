//! A directory beneath which everything of a restore is created, and nothing outside of it.
//!
//! Names come from a repository, that is from whoever may write there. Every open goes through the directory's descriptor
//! ([`crate::tree::beneath`]), so that neither `..` nor a link planted before or meanwhile leads out. Only directories and regular
//! files are made, with permissions of PostgreSQL's two kinds; links are made by the caller, to places that the operator named.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::err;
use crate::error::{Code, Error, Result};
use crate::tree::beneath::{self, cut};

/// Longest name of one file or directory.
const NAME_LIMIT_BYTES: usize = 255;
/// Longest path.
const PATH_LIMIT_BYTES: usize = 4096;

/// User and group that files are given to, when a privileged user restores for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

/// An open directory.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    path: PathBuf,
    owner: Option<Owner>,
}

/// Opens a directory in another one. No link is followed.
pub(super) fn below<P: rustix::path::Arg>(
    directory: BorrowedFd<'_>,
    name: P,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::DIRECTORY;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// The directory of a filesystem's own tools in its root. It is no part of a cluster, and mostly root's alone.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// Whether a path is that directory at the root of a data directory, or of its pg_wal.
pub(super) fn is_lost_and_found(path: &[u8]) -> bool {
    path.strip_prefix(b"pg_wal/").unwrap_or(path) == LOST_AND_FOUND.as_bytes()
}

/// The entries of a directory, but for itself and the one above.
pub(super) fn entries(
    directory: BorrowedFd<'_>,
) -> rustix::io::Result<impl Iterator<Item = rustix::io::Result<DirEntry>>> {
    let is_other = |entry: &rustix::io::Result<DirEntry>| match entry {
        Ok(entry) => ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()),
        Err(_) => true,
    };
    Ok(Dir::new(below(directory, ".")?)?.filter(is_other))
}

impl Tree {
    /// Opens the directory at `path`, an absolute path without links; files made beneath it are given to `owner`, if there is one.
    ///
    /// # Errors
    /// `TargetWrite` when it cannot be opened, or a link lies on the way.
    pub fn open(path: &Path, owner: Option<Owner>) -> Result<Tree> {
        let failed = |e| target_error(format!("open directory \"{}\"", path.display()), e);
        let top = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut tree = Tree {
            root: rustix::fs::open("/", top, Mode::empty()).map_err(failed)?,
            path: path.to_owned(),
            owner,
        };
        let below = path
            .strip_prefix("/")
            .unwrap_or(path)
            .as_os_str()
            .as_bytes();
        let below = if below.is_empty() { b"." } else { below };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        tree.root = tree
            .open_beneath(below, flags, Mode::empty())
            .map_err(failed)?;
        Ok(tree)
    }

    /// Makes the directory at `path`, or takes the one that is there, durably, and gives it the permissions that servers ask for.
    ///
    /// A privileged run makes it for the server's user, who may exchange names above it at any moment. So it is made and opened below a
    /// descriptor of its parent, and given away only empty: in a directory of that user's, who could have made it, or in one that root alone
    /// can reach.
    ///
    /// # Errors
    /// `Refused` for a directory of somebody else's; `TargetWrite`, `Full`.
    pub fn make(path: &Path, owner: Option<Owner>, group: bool) -> Result<Tree> {
        let failed = |e: Errno| write_error(&path.display().to_string(), e.into());
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(Errno::EXIST));
        };
        let parent = Tree::open(above, owner)?;
        match rustix::fs::mkdirat(&parent.root, name, Mode::RWXU) {
            Ok(()) => crate::durable::sync_directory(parent.root())
                .map_err(|e| write_error(&path.display().to_string(), e))?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        let root = parent
            .directory(name.as_bytes())
            .map_err(|e| e.context(format!("open \"{}\"", path.display())))?;
        let tree = Tree {
            root,
            path: path.to_owned(),
            owner,
        };
        if let Some(owner) = owner {
            tree.give(&parent, owner)?;
        }
        let mode = if group { 0o750 } else { 0o700 };
        rustix::fs::fchmod(&tree.root, Mode::from_raw_mode(mode)).map_err(failed)?;
        Ok(tree)
    }

    /// Gives the directory itself to `owner`, unless it is that user's already.
    fn give(&self, parent: &Tree, owner: Owner) -> Result<()> {
        let failed = |e: Errno| write_error(&self.path.display().to_string(), e.into());
        let uid = |root: &OwnedFd| rustix::fs::fstat(root).map(|stat| stat.st_uid);
        let (own, above) = (
            uid(&self.root).map_err(failed)?,
            uid(&parent.root).map_err(failed)?,
        );
        let owner_uid = owner.uid.as_raw();
        if own == owner_uid {
            return Ok(());
        }
        let is_in_reach = above == owner_uid || (above == 0 && is_roots_alone(&parent.path));
        if own == 0 && is_in_reach && is_empty(self.root.as_fd()).map_err(failed)? {
            return rustix::fs::fchown(&self.root, Some(owner.uid), Some(owner.gid))
                .map_err(failed);
        }
        Err(err!(
            Refused,
            "directory \"{}\" belongs to user id {own}, not to user id {owner_uid}, for which this restores",
            self.path.display()
        )
        .hint("It was left as it is. Give it to the server's user, or restore into another directory."))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Which directory it is, whatever its name.
    ///
    /// # Errors
    /// `TargetWrite`.
    pub fn device_and_inode(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.root)
            .map_err(|e| target_error(format!("look at \"{}\"", self.path.display()), e))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Opens a directory beneath.
    ///
    /// # Errors
    /// `TargetWrite` when it is not there, or a link lies on the way.
    pub fn directory(&self, relative: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.open_beneath(relative, flags, Mode::empty())
            .map_err(|e| self.failed("open directory", relative, e))
    }

    /// Makes a directory and those above it; one that is there is taken. `group` lets the group read it.
    ///
    /// # Errors
    /// `Damaged` for a name that leads elsewhere; `TargetWrite`, `Full`.
    pub fn make_directory(&self, relative: &[u8], group: bool) -> Result<()> {
        check_path(relative)?;
        let mode = if group { 0o750 } else { 0o700 };
        let mut end = 0;
        for part in relative.split(|&b| b == b'/') {
            let parent = relative.get(..end.max(1) - 1).unwrap_or_default();
            end += part.len() + 1;
            let so_far = relative.get(..end - 1).unwrap_or(relative);
            let failed = |e| self.failed("create directory", so_far, e);
            let parent = self.parent(parent).map_err(failed)?;
            match rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(mode)) {
                Ok(()) => self.own_at(parent.as_fd(), part).map_err(failed)?,
                // A file or link of this name makes the next open fail.
                Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        let directory = self.directory(relative)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))
            .map_err(|e| self.failed("set the permissions of", relative, e))
    }

    /// Creates a file of `length` zeros, or takes one that an earlier run left: a regular file with one name and our owner. Returns
    /// whether it is new. `group` lets the group read it.
    ///
    /// # Errors
    /// As [`Tree::make_directory`]; `Refused` when something else has the name.
    pub fn make_file(&self, relative: &[u8], length: u64, group: bool) -> Result<(File, bool)> {
        check_path(relative)?;
        let failed = |e| self.failed("create file", relative, e);
        let mode = Mode::from_raw_mode(if group { 0o640 } else { 0o600 });
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let (file, is_new) = match self.open_beneath(relative, flags, mode) {
            Ok(fd) => (File::from(fd), true),
            Err(Errno::EXIST) => (self.existing(relative)?, false),
            Err(e) => return Err(failed(e)),
        };
        if is_new {
            self.own(&file).map_err(failed)?;
        }
        // The process's umask may have taken bits away.
        rustix::fs::fchmod(&file, mode).map_err(failed)?;
        let now = rustix::fs::fstat(&file).map_err(failed)?.st_size;
        if u64::try_from(now).ok() != Some(length) {
            rustix::fs::ftruncate(&file, length).map_err(failed)?;
        }
        Ok((file, is_new))
    }

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `Refused` when it is no plain file of ours; `TargetWrite`.
    pub fn existing(&self, relative: &[u8]) -> Result<File> {
        let failed = |e| self.failed("open file", relative, e);
        let fd = self
            .open_beneath(relative, OFlags::RDWR, Mode::empty())
            .map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let is_plain =
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1;
        if !is_plain || !self.is_ours(&stat) {
            return Err(err!(
                Refused,
                "\"{}\" is no plain file of this restore",
                self.shown(relative)
            )
            .hint("Nothing was written through it. Restore into an empty directory."));
        }
        Ok(File::from(fd))
    }

    /// Writes a whole small file anew; its sync is the caller's.
    ///
    /// # Errors
    /// As [`Tree::make_file`].
    pub fn put(&self, relative: &[u8], content: &[u8], group: bool) -> Result<()> {
        self.remove(relative)?;
        let (mut file, _) = self.make_file(relative, 0, group)?;
        io::Write::write_all(&mut file, content).map_err(|e| write_error(&self.shown(relative), e))
    }

    /// Reads a whole small file; `None` when it is not there.
    ///
    /// # Errors
    /// `TargetWrite` when it cannot be read; `Damaged` when it is larger than `limit_bytes`.
    pub fn read(&self, relative: &[u8], limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        let failed = |e| self.failed("read file", relative, e);
        let fd = match self.open_beneath(relative, OFlags::RDONLY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut bytes = Vec::new();
        let read = io::Read::read_to_end(
            &mut io::Read::take(File::from(fd), limit_bytes + 1),
            &mut bytes,
        );
        let read = read.map_err(|e| write_error(&self.shown(relative), e))?;
        if read as u64 > limit_bytes {
            return Err(err!(
                Damaged,
                "\"{}\" is larger than {limit_bytes} bytes",
                self.shown(relative)
            ));
        }
        Ok(Some(bytes))
    }

    /// Returns what lies at a path, links not followed; `None` when nothing does.
    ///
    /// # Errors
    /// `TargetWrite`.
    pub fn stat(&self, relative: &[u8]) -> Result<Option<Stat>> {
        let (parent, name) = cut(relative);
        let failed = |e| self.failed("look at", relative, e);
        let parent = match self.parent(parent) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Removes a file or link; absence is fine. Not durable by itself.
    ///
    /// # Errors
    /// `TargetWrite`.
    pub fn remove(&self, relative: &[u8]) -> Result<()> {
        let (parent, name) = cut(relative);
        let removed = self
            .parent(parent)
            .and_then(|parent| rustix::fs::unlinkat(&parent, name, AtFlags::empty()));
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.failed("remove", relative, e)),
        }
    }

    /// Makes a link to a place that the operator named; an older link is replaced.
    ///
    /// # Errors
    /// `TargetWrite`.
    pub fn link(&self, relative: &[u8], target: &Path) -> Result<()> {
        check_path(relative)?;
        self.remove(relative)?;
        let (parent, name) = cut(relative);
        let failed = |e| self.failed("create link", relative, e);
        let parent = self.parent(parent).map_err(failed)?;
        crate::durable::link_to(parent.as_fd(), name, target).map_err(failed)?;
        self.own_at(parent.as_fd(), name).map_err(failed)
    }

    /// Whether a file found beneath belongs to whom we write for.
    pub(super) fn is_ours(&self, stat: &Stat) -> bool {
        let uid = self
            .owner
            .map_or_else(rustix::process::geteuid, |o| o.uid)
            .as_raw();
        // A privileged run that was killed between creating a file and giving it away.
        stat.st_uid == uid || (self.owner.is_some() && stat.st_uid == 0)
    }

    fn own(&self, file: &File) -> rustix::io::Result<()> {
        self.owner.map_or(Ok(()), |owner| {
            rustix::fs::fchown(file, Some(owner.uid), Some(owner.gid))
        })
    }

    fn own_at(&self, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        self.owner.map_or(Ok(()), |owner| {
            let (uid, gid) = (Some(owner.uid), Some(owner.gid));
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    fn parent(&self, relative: &[u8]) -> rustix::io::Result<OwnedFd> {
        if relative.is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&self.root, 0);
        }
        self.open_beneath(relative, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    fn open_beneath(
        &self,
        relative: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> rustix::io::Result<OwnedFd> {
        beneath::open(self.root(), relative, flags, mode)
    }

    fn shown(&self, relative: &[u8]) -> String {
        self.path.join(shown(relative)).display().to_string()
    }

    fn failed(&self, doing: &str, relative: &[u8], e: Errno) -> Error {
        target_error(format!("{doing} \"{}\"", self.shown(relative)), e)
    }
}

/// Whether nobody but root can change which directory lies at a path: each directory down to it is root's, and closed to others.
pub fn is_roots_alone(path: &Path) -> bool {
    path.ancestors()
        .all(|at| std::fs::metadata(at).is_ok_and(|m| m.uid() == 0 && m.mode() & 0o022 == 0))
}

fn is_empty(directory: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(entries(directory)?.next().transpose()?.is_none())
}

/// A path for messages.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

/// Refuses names that no data directory has.
fn check_path(relative: &[u8]) -> Result<()> {
    let part_ok = |part: &[u8]| {
        !part.is_empty()
            && part.len() <= NAME_LIMIT_BYTES
            && part != b"."
            && part != b".."
            && !part.contains(&0)
    };
    if relative.len() <= PATH_LIMIT_BYTES && relative.split(|&b| b == b'/').all(part_ok) {
        return Ok(());
    }
    let shown: String = relative
        .escape_ascii()
        .to_string()
        .chars()
        .take(200)
        .collect();
    Err(
        err!(Damaged, "\"{shown}\" is not a path below a data directory")
            .hint("The backup is damaged or forged. Nothing was written there."),
    )
}

/// An error of the place that is restored to; a full disk keeps its code, for it can be freed.
pub fn target_error(doing: impl Into<String>, e: Errno) -> Error {
    as_target(Error::from_io(doing, e.into()))
}

/// An error met while writing the file `shown`.
pub fn write_error(shown: &str, e: io::Error) -> Error {
    as_target(Error::from_io(format!("write \"{shown}\""), e))
}

fn as_target(error: Error) -> Error {
    match error.code() {
        Code::Full => error.hint(
            "What was restored is kept. Free space there, then run the same command again: it resumes.",
        ),
        _ => error
            .with_code(Code::TargetWrite)
            .hint("What was restored is kept. Run the same command again once the cause is gone: it resumes."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        (dir, Tree::open(&root, None).unwrap())
    }

    const HOSTILE: &[&[u8]] = &[
        b"..",
        b"../x",
        b"a/../../x",
        b"/etc/x",
        b"a//b",
        b"a/",
        b"",
        b".",
        b"a/./b",
        b"a\0b",
    ];

    #[test]
    fn z01_names_that_lead_out_are_refused() {
        let (dir, tree) = tree();
        let long = vec![b'x'; 256];
        for name in HOSTILE.iter().copied().chain([long.as_slice()]) {
            let e = tree.make_file(name, 1, false).unwrap_err();
            assert_eq!(e.code(), Code::Damaged, "{}", name.escape_ascii());
            assert!(tree.make_directory(name, false).is_err());
            assert!(tree.link(name, Path::new("/x")).is_err());
            // The fallback refuses by itself, too.
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW;
            assert!(beneath::walk(tree.root(), name, flags, Mode::RUSR).is_err());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(tree.path()).unwrap().count(), 0);
    }

    #[test]
    fn z02_nothing_is_written_through_a_planted_link() {
        let (dir, tree) = tree();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("victim"), "keep").unwrap();
        symlink(&outside, tree.path().join("base")).unwrap();
        symlink(outside.join("victim"), tree.path().join("file")).unwrap();
        std::fs::hard_link(outside.join("victim"), tree.path().join("hard")).unwrap();
        for name in [&b"base/1"[..], b"file", b"hard", b"base/victim"] {
            assert!(tree.make_file(name, 0, false).is_err());
            assert!(tree.existing(name).is_err());
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW;
            let walked = beneath::walk(tree.root(), name, flags, Mode::RUSR);
            assert!(name == b"hard" || walked.is_err());
        }
        assert!(tree.make_directory(b"base/2", false).is_err());
        assert!(tree.remove(b"base/victim").is_err());
        assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"keep");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn files_and_directories_have_the_permissions_of_postgresql() {
        let (_dir, tree) = tree();
        tree.make_directory(b"base/1", false).unwrap();
        tree.make_directory(b"base/2", true).unwrap();
        let (_, is_new) = tree.make_file(b"base/1/7", 9000, false).unwrap();
        assert!(is_new);
        let (_, is_new) = tree.make_file(b"base/1/7", 100, true).unwrap();
        assert!(!is_new);
        let mode = |name: &str| {
            std::fs::metadata(tree.path().join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!(mode("base/1"), 0o700);
        assert_eq!(mode("base/2"), 0o750);
        assert_eq!(mode("base/1/7"), 0o640);
        assert_eq!(
            std::fs::metadata(tree.path().join("base/1/7"))
                .unwrap()
                .size(),
            100
        );
        tree.put(b"base/1/7", b"abc", false).unwrap();
        assert_eq!(tree.read(b"base/1/7", 3).unwrap().unwrap(), b"abc");
        assert!(tree.read(b"base/1/7", 2).is_err());
        assert_eq!(tree.read(b"base/1/8", 2).unwrap(), None);
        assert_eq!(mode("base/1/7"), 0o600);
    }
}
