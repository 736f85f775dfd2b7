//! A store in a directory of a local or mounted filesystem.
//!
//! Every access goes through one descriptor of the root, opened once per session: if the disk is unmounted meanwhile, answers come
//! from the filesystem that held the marker or are errors, never from the empty mount point. Paths are resolved beneath the root
//! without following symbolic links (openat2).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::process::{Gid, Uid};

use super::{
    Irregular, Key, Listed, Meta, NewObject, Object, Published, Room, Store, is_part, reserve,
};
use crate::durable::{self, NewFile, REMOVALS_MAX, TEMPORARY_PREFIX};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::pg::time::TimestampTz;

/// So much of a directory is asked of the system at once.
const NAMES_AT_ONCE_BYTES: usize = 32 << 10;

/// A directory as a store.
pub struct FileStore {
    root: OwnedFd,
    path: PathBuf,
    nonce: AtomicU64,
    /// User and group that get everything that root makes in a repository of another user.
    owner: Option<(Uid, Gid)>,
    /// Whether the system's cached pages of an object are dropped before it is read.
    reads_medium: AtomicBool,
}

impl FileStore {
    /// Opens the directory `path`; `nonce` is random, for temporary names.
    ///
    /// # Errors
    /// `NoRepository` when it does not exist or is no directory; `Denied`, `Io` as the system says.
    pub fn open(path: &Path, nonce: u64) -> Result<FileStore> {
        let shown = path.display();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(
                    err!(NoRepository, "repository directory \"{shown}\" does not exist").hint(
                        "Nothing was written. Mount the disk or correct the url; \"pitr init\" creates a new repository.",
                    ),
                );
            }
            Err(e) => {
                return Err(Error::from_io(
                    format!("open repository directory \"{shown}\""),
                    e.into(),
                ));
            }
        };
        let owner = match rustix::process::geteuid().is_root() {
            true => Some(owner_of(&root).map_err(|e| {
                Error::from_io(format!("open repository directory \"{shown}\""), e.into())
            })?)
            .filter(|(user, _)| !user.is_root()),
            false => None,
        };
        Ok(FileStore {
            root,
            path: path.to_owned(),
            nonce: AtomicU64::new(nonce),
            owner,
            reads_medium: AtomicBool::new(false),
        })
    }

    /// Creates the directory `path` with missing parents (mode 0700), durably, and opens it.
    pub fn create(path: &Path, nonce: u64) -> Result<FileStore> {
        let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.exists()).collect();
        for directory in missing.iter().rev() {
            make_directory(directory).map_err(|e| {
                Error::from_io(format!("create directory \"{}\"", directory.display()), e)
            })?;
        }
        FileStore::open(path, nonce)
    }

    /// A store of its own inside this one, and its name, which is a temporary one: nobody takes what is there for objects of the repository,
    /// and the janitor takes away what is left of it.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn aside(&self, nonce: u64) -> Result<(FileStore, String)> {
        let name = format!("{TEMPORARY_PREFIX}check.{nonce:016x}");
        durable::create_directory(self.root.as_fd(), &name)
            .and_then(|()| self.give(self.resolve(&name, OFlags::RDONLY | OFlags::DIRECTORY)?))
            .map_err(|e| self.error("create directory", &name, e))?;
        let store = FileStore::open(&self.path.join(&name), nonce)?;
        Ok((store, name))
    }

    fn resolve(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(
            &self.root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            rules,
        ) {
            // Before Linux 5.6: keys have no "..", and the last part is not followed.
            Err(Errno::NOSYS) => rustix::fs::openat(
                &self.root,
                path,
                flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::empty(),
            ),
            other => other,
        }
    }

    /// Opens the directory that holds `key`, creating it and its parents durably when they are missing.
    fn directory_for(&self, key: &Key) -> io::Result<OwnedFd> {
        let Some(parent) = key.parent() else {
            return self.root.try_clone();
        };
        match self.resolve(parent, OFlags::RDONLY | OFlags::DIRECTORY) {
            // An object got its name only after these directories had been made durable. Without one, whoever created them may have
            // died before that.
            Ok(fd) if holds_object(&fd)? => return Ok(fd),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let mut at = String::new();
        let mut directory = self.root.try_clone()?;
        for part in parent.split('/') {
            durable::create_directory(directory.as_fd(), part)?;
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(part);
            directory = self.resolve(&at, OFlags::RDONLY | OFlags::DIRECTORY)?;
            if self.give(&directory)? {
                durable::sync_directory(directory.as_fd())?;
            }
        }
        Ok(directory)
    }

    /// Gives a file or directory that root has made to the repository's owner, so that the owner is not locked out.
    /// Returns whether anything was changed.
    fn give(&self, made: impl AsFd) -> io::Result<bool> {
        let Some((user, group)) = self.owner else {
            return Ok(false);
        };
        if !owner_of(&made)?.0.is_root() {
            return Ok(false);
        }
        rustix::fs::fchown(made, Some(user), Some(group))?;
        Ok(true)
    }

    fn error(&self, doing: &str, key: &str, error: io::Error) -> Error {
        Error::from_io(
            format!("{doing} \"{key}\" in \"{}\"", self.path.display()),
            error,
        )
    }

    fn write_error(&self, key: &Key, error: io::Error) -> Error {
        let error = self.error("write object", key.as_str(), error);
        if error.code() == Code::Full {
            let room = match rustix::fs::fstatvfs(&self.root) {
                Ok(s) if s.f_favail == 0 && s.f_files > 0 => "no inode is free".to_owned(),
                Ok(s) => format!("{} bytes are free", s.f_bavail.saturating_mul(s.f_frsize)),
                Err(_) => "free space is unknown".to_owned(),
            };
            let error = error.context(format!("repository is full ({room})"));
            return error.hint(
                "Nothing was stored and nothing is lost: PostgreSQL keeps the file and offers it again. \"pitr expire --confirm\" frees space in the repository; never delete from pg_wal by hand.",
            );
        }
        error
    }

    /// The same store, for an object that gets its name later.
    fn another(&self) -> io::Result<FileStore> {
        Ok(FileStore {
            root: self.root.try_clone()?,
            path: self.path.clone(),
            nonce: AtomicU64::new(0),
            owner: self.owner,
            reads_medium: AtomicBool::new(false),
        })
    }

    fn next_nonce(&self) -> u64 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }
}

/// Repeats work for which a directory was lacking: another process may have removed it meanwhile, because it was empty.
fn unless_removed<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..REMOVALS_MAX {
        match work() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    work()
}

/// Removes a file, or a directory with what lies in it; a symbolic link is not followed.
fn remove(parent: BorrowedFd<'_>, name: impl Arg + Copy) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        done => return done,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let inside = entry.file_name();
        if inside != c"." && inside != c".." {
            remove(directory.as_fd(), inside)?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn owner_of(fd: impl AsFd) -> rustix::io::Result<(Uid, Gid)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)))
}

/// Whether an object lies directly in a directory; what is unfinished does not count.
fn holds_object(directory: &OwnedFd) -> rustix::io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == FileType::RegularFile
            && !name.starts_with(TEMPORARY_PREFIX.as_bytes())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn make_directory(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| io::Error::from(Errno::INVAL))?;
    let directory = File::open(parent)?;
    durable::create_directory(directory.as_fd(), name)
}

impl Store for FileStore {
    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        // A fifo that somebody put there must not hang the reader; for regular files the flag means nothing.
        let file = match self.resolve(key.as_str(), OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.error("open object", key.as_str(), e.into())),
        };
        let metadata = file
            .metadata()
            .map_err(|e| self.error("open object", key.as_str(), e))?;
        if !metadata.is_file() {
            return Err(err!(Damaged, "object \"{key}\" is not a regular file"));
        }
        if self.reads_medium.load(Ordering::Relaxed) {
            // Unwritten pages stay in memory; an object was written before it had its name.
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)
                .map_err(|e| self.error("open object", key.as_str(), e.into()))?;
        }
        let parent = match self.resolve(
            key.parent().unwrap_or(""),
            OFlags::RDONLY | OFlags::DIRECTORY,
        ) {
            Ok(parent) => parent,
            // It was removed since, and its directory with it.
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.error("open object", key.as_str(), e.into())),
        };
        Ok(Some(Box::new(FileObject {
            file,
            parent,
            key: key.clone(),
            size_bytes: metadata.len(),
        })))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        let begin = || -> io::Result<(NewFile, FileStore)> {
            let new = NewFile::create(self.directory_for(key)?, key.name(), self.next_nonce())?;
            new.file().map(|file| self.give(file)).transpose()?;
            Ok((new, self.another()?))
        };
        let (file, store) = unless_removed(begin).map_err(|e| self.write_error(key, e))?;
        Ok(Box::new(NewFileObject {
            file,
            key: key.clone(),
            store,
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        self.visit(prefix, &mut |name, is_prefix| {
            listed.push(Listed {
                name: name.to_owned(),
                is_prefix,
                meta: None,
            });
        })?;
        Ok(listed)
    }

    fn visit(&self, prefix: &str, see: &mut dyn FnMut(&str, bool)) -> Result<()> {
        let failed = |e: Errno| self.error("list", prefix, e.into());
        let directory = match self.resolve(prefix, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        let mut buffer = Vec::with_capacity(NAMES_AT_ONCE_BYTES);
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(failed)?;
            // Names outside the key grammar are not ours (lost+found, editors' files); verify reports them.
            let Some(name) = entry.file_name().to_str().ok().filter(|n| is_part(n)) else {
                continue;
            };
            let is_prefix = match entry.file_type() {
                FileType::Directory => true,
                FileType::RegularFile => false,
                _ => match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                    Err(Errno::NOENT) => continue,
                    Err(e) => {
                        return Err(self.error("list", &format!("{prefix}/{name}"), e.into()));
                    }
                },
            };
            see(name, is_prefix);
        }
        Ok(())
    }

    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        let failed = |e: Errno| self.error("look at object", key.as_str(), e.into());
        let object = match self.resolve(key.as_str(), OFlags::PATH) {
            Ok(object) => object,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let stat = rustix::fs::fstat(&object).map_err(failed)?;
        Ok(Some(Meta {
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            modified: TimestampTz::from_unix_seconds(stat.st_mtime).unwrap_or_default(),
        }))
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        match self.unlink(key.parent().unwrap_or(""), key.name(), AtFlags::empty()) {
            Ok(()) => {
                self.remove_empty_parents(key);
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(self.error("delete object", key.as_str(), e.into())),
        }
    }

    fn settle_deletions(&self, prefix: &str) -> Result<()> {
        let mut at = prefix;
        loop {
            match self.resolve(at, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(fd) => {
                    return durable::sync_directory(fd.as_fd())
                        .map_err(|e| self.error("sync", at, e));
                }
                // Its last object is gone, and so is the directory: that its name is gone has to last.
                Err(Errno::NOENT) if !at.is_empty() => {
                    at = at.rsplit_once('/').map_or("", |(parent, _)| parent);
                }
                Err(e) => return Err(self.error("sync", at, e.into())),
            }
        }
    }

    fn irregular(&self) -> Result<Vec<Irregular>> {
        let mut found = Vec::new();
        let mut directories = vec![String::new()];
        while let Some(directory) = directories.pop() {
            self.walk(&directory, &mut directories, &mut found)?;
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn discard(&self, unfinished: &str) -> Result<bool> {
        let (parent, name) = unfinished.rsplit_once('/').unwrap_or(("", unfinished));
        if !name.starts_with(TEMPORARY_PREFIX) {
            return Err(err!(Internal, "\"{unfinished}\" is no unfinished object"));
        }
        let removed = self
            .resolve(parent, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|parent| remove(parent.as_fd(), name));
        match removed {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(self.error("delete", unfinished, e.into())),
        }
    }

    fn keep_reserve(&self) -> Result<()> {
        reserve::keep(self)
    }

    fn give_reserve(&self, left: usize) -> Result<bool> {
        reserve::give(self, left)
    }

    fn clock(&self) -> Result<Option<TimestampTz>> {
        // A file that never gets a name, dated by whoever keeps the files: on a network filesystem that is another machine.
        let dated = self
            .root
            .try_clone()
            .and_then(|root| NewFile::create(root, "clock", self.next_nonce()))
            .and_then(|new| new.file().map(File::metadata).transpose());
        match dated {
            Ok(metadata) => Ok(metadata
                .and_then(|m| m.modified().ok())
                .map(fault::time_elsewhere)
                .map(TimestampTz::from_system_time)),
            // Whoever may not write there deletes nothing there, either.
            Err(e) => match self.error("ask the clock of", "", e) {
                e if matches!(e.code(), Code::Denied | Code::ReadOnly | Code::Full) => Ok(None),
                e => Err(e),
            },
        }
    }

    fn read_medium(&self) {
        self.reads_medium.store(true, Ordering::Relaxed);
    }

    fn room(&self) -> Result<Option<Room>> {
        let stat = rustix::fs::fstatvfs(&self.root)
            .map_err(|e| self.error("look at free space of", "", e.into()))?;
        Ok(Some(Room {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        }))
    }
}

impl FileStore {
    /// Unlinks a name without following a symbolic link on the way.
    fn unlink(&self, parent: &str, name: &str, flags: AtFlags) -> rustix::io::Result<()> {
        let directory = self.resolve(parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::unlinkat(&directory, name, flags)
    }

    /// Looks at one directory: `directories` gains those below it, `found` what is no object.
    fn walk(
        &self,
        directory: &str,
        directories: &mut Vec<String>,
        found: &mut Vec<Irregular>,
    ) -> Result<()> {
        let failed = |e: Errno| self.error("list", directory, e.into());
        let opened = match self.resolve(directory, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            // It was empty, and a janitor removed it.
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        let entries = rustix::fs::Dir::read_from(&opened).map_err(failed)?;
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let raw = entry.file_name();
            let name = String::from_utf8_lossy(raw.to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let is_key = Key::new(name.as_ref()).is_ok();
            if is_key && entry.file_type() == FileType::RegularFile {
                continue;
            }
            let stat = match rustix::fs::statat(&opened, raw, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failed(e)),
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let path = match directory {
                "" => name.to_string(),
                _ => format!("{directory}/{name}"),
            };
            match (is_key, kind) {
                (true, FileType::Directory) => directories.push(path),
                (true, FileType::RegularFile) => {}
                _ if reserve::is_piece(&path) => {}
                _ => found.push(Irregular {
                    // A directory is what a trial left.
                    is_unfinished: name.starts_with(TEMPORARY_PREFIX)
                        && matches!(kind, FileType::RegularFile | FileType::Directory)
                        && raw.to_str().is_ok(),
                    path,
                    modified: TimestampTz::from_unix_seconds(stat.st_mtime).unwrap_or_default(),
                }),
            }
        }
        Ok(())
    }

    /// Directories carry no meaning; an empty one is only clutter. A writer that loses its directory to this makes it again, as long as it has not linked its
    /// object ([`NewFile::publish_in`]).
    fn remove_empty_parents(&self, key: &Key) {
        let mut at = key.parent();
        while let Some(directory) = at {
            // Keep the first three levels (clusters/<name>/<system identifier>), so that a cluster's registration never flickers.
            let Some((parent, name)) = directory.rsplit_once('/') else {
                return;
            };
            if directory.matches('/').count() < 3
                || self.unlink(parent, name, AtFlags::REMOVEDIR).is_err()
            {
                return;
            }
            at = Some(parent);
        }
    }
}

struct FileObject {
    file: File,
    parent: OwnedFd,
    key: Key,
    size_bytes: u64,
}

impl Object for FileObject {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                err!(
                    Damaged,
                    "object \"{}\" ends before its byte {}",
                    self.key,
                    offset + buffer.len() as u64
                )
            } else {
                Error::from_io(format!("read object \"{}\"", self.key), e)
            }
        })
    }

    fn settle(&self) -> Result<()> {
        durable::settle(self.parent.as_fd(), &self.file)
            .map_err(|e| Error::from_io(format!("sync object \"{}\"", self.key), e))
    }
}

struct NewFileObject {
    file: NewFile,
    key: Key,
    store: FileStore,
}

impl Write for NewFileObject {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NewObject for NewFileObject {
    fn publish(self: Box<Self>) -> Result<Published> {
        let NewFileObject { file, key, store } = *self;
        let anew = || unless_removed(|| store.directory_for(&key));
        let published = file.publish_in(&anew);
        published.map_err(|e| store.write_error(&key, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{get, put};

    #[test]
    fn objects_are_created_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let key = Key::new("a/b/c").unwrap();
        assert!(store.open(&key).unwrap().is_none());
        assert_eq!(put(&store, &key, b"one").unwrap(), Published::Created);
        assert_eq!(put(&store, &key, b"two").unwrap(), Published::Exists);
        assert_eq!(get(&store, &key, 10).unwrap().unwrap(), b"one");
        assert_eq!(get(&store, &key, 2).unwrap_err().code(), Code::Damaged);
        assert_eq!(
            store.list("a/b").unwrap(),
            [Listed {
                name: "c".into(),
                is_prefix: false,
                meta: None,
            }]
        );
        assert!(store.delete(&key).unwrap());
        assert!(!store.delete(&key).unwrap());
    }

    #[test]
    fn y51_a_writer_makes_the_directory_again_that_a_deletion_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let key = |name: &str| Key::new(format!("clusters/main/1/events/cluster/{name}")).unwrap();
        let mut begun = store.create(&key("own")).unwrap();
        begun.write_all(b"one").unwrap();
        // Another process takes the last object away, and the directory with it.
        put(&store, &key("other"), b"two").unwrap();
        assert!(store.delete(&key("other")).unwrap());
        assert_eq!(begun.publish().unwrap(), Published::Created);
        assert_eq!(get(&store, &key("own"), 9).unwrap().unwrap(), b"one");
        // The name is still given once only.
        let begun = store.create(&key("own")).unwrap();
        assert_eq!(begun.publish().unwrap(), Published::Exists);
    }

    #[test]
    fn y51_a_directory_that_is_removed_again_and_again_is_not_waited_for_for_ever() {
        let gone = || io::Error::from(Errno::NOENT);
        let mut tries = 0;
        let third = unless_removed(|| {
            tries += 1;
            (tries > 2).then_some(tries).ok_or_else(gone)
        });
        assert_eq!(third.unwrap(), 3);
        let mut tries = 0;
        let never = unless_removed(|| {
            tries += 1;
            Err::<(), _>(gone())
        });
        assert_eq!(never.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(tries, REMOVALS_MAX + 1);
        // Nothing else is done again.
        let mut tries = 0;
        let denied = unless_removed(|| {
            tries += 1;
            Err::<(), _>(io::Error::from(Errno::ACCESS))
        });
        assert!(denied.is_err() && tries == 1);
    }

    #[test]
    fn nothing_is_reached_through_a_link() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(outside.path().join("c/d")).unwrap();
        std::fs::write(outside.path().join("c/d/x"), b"secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let linked = Key::new("a/b/c/d/x").unwrap();
        put(&store, &Key::new("a/y").unwrap(), b"one").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("y", dir.path().join("a/z")).unwrap();
        for key in [&linked, &Key::new("a/z").unwrap()] {
            assert!(store.head(key).is_err(), "{key}");
            assert!(store.open(key).is_err(), "{key}");
        }
        assert!(store.delete(&linked).is_err());
        // An empty directory behind a link stays, too.
        std::fs::create_dir_all(outside.path().join("c/e")).unwrap();
        store.remove_empty_parents(&Key::new("a/b/c/e/x").unwrap());
        assert!(outside.path().join("c/e").exists() && outside.path().join("c/d/x").exists());
        assert_eq!(
            store
                .head(&Key::new("a/y").unwrap())
                .unwrap()
                .unwrap()
                .size_bytes,
            3
        );
    }

    #[test]
    fn what_is_no_object_is_found_and_only_unfinished_writes_are_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        put(&store, &Key::new("a/b/c").unwrap(), b"one").unwrap();
        std::fs::write(dir.path().join("a/b/.tmp.1"), b"x").unwrap();
        std::fs::write(dir.path().join("a/not a key"), b"x").unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("a/link")).unwrap();
        let (trial, aside) = store.aside(7).unwrap();
        put(&trial, &Key::new("d/e/f").unwrap(), b"x").unwrap();
        std::os::unix::fs::symlink("../../a", dir.path().join(&aside).join("d/link")).unwrap();
        let found = store.irregular().unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|i| (i.path.as_str(), i.is_unfinished))
            .collect();
        assert_eq!(
            found,
            [
                (aside.as_str(), true),
                ("a/b/.tmp.1", true),
                ("a/link", false),
                ("a/not a key", false)
            ]
        );
        assert!(store.discard("a/not a key").is_err());
        assert!(store.discard("a/b/.tmp.1").unwrap());
        assert!(!store.discard("a/b/.tmp.1").unwrap());
        assert!(store.discard(&aside).unwrap());
        assert!(!store.discard(&aside).unwrap());
        assert!(!dir.path().join(&aside).exists());
        assert_eq!(
            get(&store, &Key::new("a/b/c").unwrap(), 9)
                .unwrap()
                .unwrap(),
            b"one"
        );
        assert!(store.delete(&Key::new("a/link/c").unwrap()).is_err());
        store.settle_deletions("a/b").unwrap();
        store.settle_deletions("x/y/z").unwrap();
    }

    #[test]
    fn links_are_not_followed_and_a_missing_root_is_no_repository() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("x"), b"secret").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        assert!(store.open(&Key::new("link/x").unwrap()).is_err());
        assert!(put(&store, &Key::new("link/y").unwrap(), b"").is_err());
        let missing = FileStore::open(&dir.path().join("missing"), 1);
        assert_eq!(missing.err().map(|e| e.code()), Some(Code::NoRepository));
    }
}
