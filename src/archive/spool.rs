//! The directory that a worker that archives ahead leaves for `pitr-archive`: one for each cluster on a host, with
//! notes in it.
//!
//! | name | content | written by | until |
//! |---|---|---|---|
//! | `lock` | the worker's process id, for people; locked (flock) while a worker runs | whoever starts a worker, then the worker | |
//! | `hung` | none: the worker that has the lock was waited for in vain | `pitr-archive`, which then archives by itself | the worker notes a file, or another one begins |
//! | `NAME.shipped` | [`Note`]: this very file is durable in every required repository | the worker, once it is | the file is acknowledged |
//! | `NAME.failed` | [`Failure`]: why it could not be archived | the worker, or `pitr-archive` that archives it itself | it is archived, or a worker begins and it is not ready any more |
//!
//! Nothing here is synced. A note that is lost costs another look at the repository; a note that is there was written after its object
//! was durable. One that cannot be read, is cut short, or is about another file, cluster or repository is no note.
//!
//! The directory's name is derived from everything that a note depends on but cannot see. These are the cluster's name,
//! the data directory, and, as a hash, the settings of all repositories and the program's version. Failures acknowledge
//! nothing: those under every such hash are shown. The directory must belong to this user and be closed to all others.
//! Any user with write access could have WAL acknowledged that is archived nowhere.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::datadir::DataDirectory;
use crate::config::{Cluster, Environment, Settings};
use crate::durable::{Delivery, TEMPORARY_PREFIX};
use crate::pg::page::WalIdentity;
use crate::pg::segment::WalFileName;
use crate::process;

const LOCK: &str = "lock";
const HUNG: &str = "hung";
const SHIPPED: &str = ".shipped";
const FAILED: &str = ".failed";
const FORMAT: u32 = 1;
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Which file it is, and of when: another content has another one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// That of an open file, or of one at a path.
    pub fn of(metadata: &Metadata) -> FileIdentity {
        FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Looks at the segment or partial `name` at `path`: which file it is, and the system identifier of its header. `None` for whatever is no
/// such file: who archives it says why.
pub fn look_at(path: &Path, name: WalFileName) -> Option<(FileIdentity, u64)> {
    let (WalFileName::Segment(segment) | WalFileName::Partial(segment)) = name else {
        return None;
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok().filter(Metadata::is_file)?;
    let mut first = [0; 40];
    file.read_exact(&mut first).ok()?;
    let wal = WalIdentity::read(&first).ok()?;
    wal.matches(segment).ok()?;
    let is_whole = metadata.len() == wal.segment_size.bytes();
    is_whole.then(|| (FileIdentity::of(&metadata), wal.system_identifier))
}

/// Which start of the machine this is; `None` where the system does not say.
pub fn boot() -> Option<String> {
    process::boot_id().map(|id| id.trim().to_owned())
}

/// A required repository that holds a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The location of the repository.
    pub location: String,
    /// The identity of the repository.
    pub uuid: String,
}

/// One file is durable in every required repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The version of the note's format.
    pub format: u32,
    /// The file's name.
    pub name: WalFileName,
    /// The very file.
    pub file: FileIdentity,
    /// The system identifier in the file's header.
    pub system_identifier: u64,
    /// Every required repository.
    pub holders: Vec<Holder>,
    /// When it was written, in milliseconds since the machine was started.
    pub written_ms: u64,
    /// Which start of the machine that was.
    pub boot: String,
    /// Process and start of the server: a later one may have another environment, which may name another object store.
    pub server: Option<(i32, String)>,
    /// Warnings for PostgreSQL's log.
    pub warnings: Vec<String>,
}

impl Note {
    /// A note of the present format.
    pub fn new(name: WalFileName, file: FileIdentity, system_identifier: u64) -> Note {
        Note {
            format: FORMAT,
            name,
            file,
            system_identifier,
            holders: Vec::new(),
            written_ms: 0,
            boot: String::new(),
            server: None,
            warnings: Vec::new(),
        }
    }

    /// As it is kept.
    ///
    /// # Errors
    /// None that a note can have.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        let sum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(format!("\n{sum:08x}\n").as_bytes());
        Ok(bytes)
    }

    /// The note in these bytes, if it is whole and of the present format.
    pub fn decode(bytes: &[u8]) -> Option<Note> {
        let (json, sum) = bytes.split_at_checked(bytes.len().checked_sub(10)?)?;
        if sum != format!("\n{:08x}\n", crc32fast::hash(json)).as_bytes() {
            return None;
        }
        let note: Note = serde_json::from_slice(json).ok()?;
        (note.format == FORMAT).then_some(note)
    }
}

/// Why a file could not be archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The name of the code, `conflict`.
    pub code: String,
    /// The status that `pitr-archive` leaves with.
    pub status: u8,
    /// The text in PostgreSQL's log.
    pub text: String,
    /// Since when it fails with that code, in milliseconds of Unix time; none where the record is as old as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

impl Failure {
    fn since(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(self.since_ms?))
    }

    /// The record in these bytes, if there is a sound one.
    pub fn decode(bytes: &[u8]) -> Option<Failure> {
        let failure: Failure = serde_json::from_slice(bytes).ok()?;
        // A status that PostgreSQL takes for success, or that ends its archiver, is not accepted.
        (1..=125).contains(&failure.status).then_some(failure)
    }
}

/// The spool's knowledge of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// There is a note.
    Shipped,
    /// There is a failure.
    Failed,
}

/// The spool of one cluster, open.
pub struct Spool {
    directory: OwnedFd,
}

/// Returns the path of the spool for the data directory's cluster; none if no place is known.
///
/// # Errors
/// Errors of the system for the data directory.
pub fn place(
    cluster: &Cluster,
    settings: &Settings,
    environment: &Environment,
    data: &DataDirectory,
) -> io::Result<Option<PathBuf>> {
    let Some(below) = below(cluster, environment) else {
        return Ok(None);
    };
    let version = env!("CARGO_PKG_VERSION");
    let of = format!("{FORMAT} {version} {:?}", settings.repositories);
    let digest = blake3::hash(of.as_bytes()).to_hex();
    let short = digest.get(..32).unwrap_or_default();
    let name = format!("{}{short}", beginning(cluster, data)?);
    Ok(Some(below.join(name)))
}

/// Returns the directory that holds the spools of a cluster.
fn below(cluster: &Cluster, environment: &Environment) -> Option<PathBuf> {
    (cluster.spool_dir.clone())
        .or_else(|| Some(cluster.cache_dir.as_ref()?.join("spool")))
        .or_else(|| Some(environment.cache_dir()?.join("spool")))
}

/// How the names of all spools of a data directory begin; a hash follows.
fn beginning(cluster: &Cluster, data: &DataDirectory) -> io::Result<String> {
    let root = std::fs::metadata(data.path())?;
    Ok(format!(
        "{}-{:x}-{:x}-",
        cluster.name,
        root.dev(),
        root.ino()
    ))
}

/// Every spool of the data directory, whatever the settings of the repositories are there.
fn all(cluster: &Cluster, environment: &Environment, data: &DataDirectory) -> Vec<PathBuf> {
    let (Some(below), Ok(beginning)) = (below(cluster, environment), beginning(cluster, data))
    else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(&below).into_iter().flatten().flatten();
    let spools = entries.filter(|entry| {
        let name = entry.file_name();
        let hash = name.to_str().and_then(|n| n.strip_prefix(&beginning));
        // Another cluster's name may begin so, too.
        hash.is_some_and(|hash| !hash.contains('-'))
    });
    spools.map(|entry| entry.path()).collect()
}

/// Why files could not be archived, and since when, whatever the settings of the repositories are there: the newest word on each. For people, who
/// may be others than the server's user. Nothing is acknowledged from that.
pub fn failures(
    cluster: &Cluster,
    environment: &Environment,
    data: &DataDirectory,
) -> BTreeMap<WalFileName, (Failure, SystemTime)> {
    let mut newest: BTreeMap<WalFileName, (Failure, SystemTime)> = BTreeMap::new();
    let mut written: BTreeMap<WalFileName, SystemTime> = BTreeMap::new();
    let spools = all(cluster, environment, data).into_iter();
    for (name, failure, since, at) in spools.flat_map(|spool| failures_in(&spool)) {
        if written.get(&name).is_none_or(|known| *known < at) {
            written.insert(name, at);
            newest.insert(name, (failure, since));
        }
    }
    newest
}

/// Workers that hold the lock of a spool of this data directory and were waited for in vain: the process, where it said which it is, and since
/// when. For people, as [`failures`].
pub fn hung(
    cluster: &Cluster,
    environment: &Environment,
    data: &DataDirectory,
) -> Vec<(Option<u32>, SystemTime)> {
    let spools = all(cluster, environment, data).into_iter();
    let open = spools.filter_map(|path| Some((open_directory(&path).ok()?, path)));
    open.filter_map(|(directory, path)| {
        let spool = Spool { directory };
        let since = std::fs::symlink_metadata(path.join(HUNG)).ok()?;
        let is_held = matches!(spool.try_lock_to_look(), Ok(false));
        is_held.then_some((spool.worker(), since.modified().ok()?))
    })
    .collect()
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Each with the time since when, and that of its record.
fn failures_in(path: &Path) -> Vec<(WalFileName, Failure, SystemTime, SystemTime)> {
    let Ok(directory) = open_directory(path) else {
        return Vec::new();
    };
    let spool = Spool { directory };
    let known = spool.known().unwrap_or_default();
    let failed = known.iter().filter(|(_, known)| **known == Known::Failed);
    failed
        .filter_map(|(name, _)| {
            let (failure, written) = (spool.failure(*name)?, spool.written(*name)?);
            Some((
                *name,
                failure.clone(),
                failure.since().unwrap_or(written),
                written,
            ))
        })
        .collect()
}

impl Spool {
    /// Opens the spool at `path`; `None` when there is none.
    ///
    /// # Errors
    /// `PermissionDenied` when others may have written there; what the system says.
    pub fn open(path: &Path) -> io::Result<Option<Spool>> {
        let directory = match open_directory(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let stat = rustix::fs::fstat(&directory)?;
        let is_closed = Mode::from_raw_mode(stat.st_mode) & (Mode::RWXG | Mode::RWXO);
        if stat.st_uid != rustix::process::geteuid().as_raw() || !is_closed.is_empty() {
            return Err(Errno::PERM.into());
        }
        Ok(Some(Spool { directory }))
    }

    /// Opens the spool at `path`, and makes it first where there is none.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn create(path: &Path) -> io::Result<Spool> {
        if let Some(spool) = Spool::open(path)? {
            return Ok(spool);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Spool::open(path)?.ok_or_else(|| Errno::NOENT.into())
    }

    /// Takes the lock of the worker; `None` while another one has it. It is let go when no process has the file open any more, so it can be
    /// handed to a child.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn try_lock(&self) -> io::Result<Option<File>> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(File::from(fd))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// As [`Spool::try_lock`], without making the file or keeping the lock: whether nobody has it.
    fn try_lock_to_look(&self) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, LOCK, flags, Mode::empty())?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The process of the worker that has the lock, as it said.
    pub fn worker(&self) -> Option<u32> {
        String::from_utf8(self.read(LOCK)?)
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Says in the lock which process has it. Only for who holds it; for people, so that a failure means nothing.
    pub fn sign(&self, lock: impl AsFd) {
        let text = format!("{:<10}\n", std::process::id());
        let _ = rustix::io::pwrite(lock, text.as_bytes(), 0);
    }

    /// Whether the worker that has the lock was waited for in vain, and has noted nothing since.
    pub fn is_hung(&self) -> bool {
        rustix::fs::statat(&self.directory, HUNG, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Keeps that the worker was waited for in vain.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn mark_hung(&self, nonce: u64) -> io::Result<()> {
        self.write(HUNG, b"", nonce)
    }

    /// Forgets that a worker was waited for in vain. Only for who holds the lock.
    pub fn unmark_hung(&self) {
        if self.is_hung() {
            self.remove(HUNG);
        }
    }

    /// Whether `file` is the lock of this spool, and held.
    pub fn is_locked_by(&self, file: impl AsFd) -> bool {
        let own = rustix::fs::statat(&self.directory, LOCK, AtFlags::SYMLINK_NOFOLLOW);
        let (Ok(own), Ok(held)) = (own, rustix::fs::fstat(&file)) else {
            return false;
        };
        (own.st_dev, own.st_ino) == (held.st_dev, held.st_ino)
            && rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// The note about a file, if there is a sound one.
    pub fn note(&self, name: WalFileName) -> Option<Note> {
        let bytes = self.read(&format!("{name}{SHIPPED}"))?;
        Note::decode(&bytes).filter(|note| note.name == name)
    }

    /// Writes a note. The file it is about must be durable in every required repository. `nonce` makes a temporary name unique.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn write_note(&self, note: &Note, nonce: u64) -> io::Result<()> {
        self.write(&format!("{}{SHIPPED}", note.name), &note.encode()?, nonce)
    }

    /// Removes the note about a file; whether there was one.
    pub fn remove_note(&self, name: WalFileName) -> bool {
        self.remove(&format!("{name}{SHIPPED}"))
    }

    /// Why a file could not be archived, if that is known.
    pub fn failure(&self, name: WalFileName) -> Option<Failure> {
        Failure::decode(&self.read(&format!("{name}{FAILED}"))?)
    }

    /// When the record of a failure was written.
    fn written(&self, name: WalFileName) -> Option<SystemTime> {
        let record = format!("{name}{FAILED}");
        let stat = rustix::fs::statat(&self.directory, record, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(
            u64::try_from(stat.st_mtime).ok()?,
            u32::try_from(stat.st_mtime_nsec).ok()?,
        ))
    }

    /// Keeps why a file could not be archived. While the code stays the same, so does its time; the text is that of the last attempt, for
    /// another repository may be the cause by now.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn write_failure(
        &self,
        name: WalFileName,
        failure: &Failure,
        nonce: u64,
    ) -> io::Result<()> {
        let known = self.failure(name).filter(|k| k.code == failure.code);
        if known.as_ref().is_some_and(|k| k.text == failure.text) {
            return Ok(());
        }
        let since = known.and_then(|known| known.since().or_else(|| self.written(name)));
        let since = since.and_then(|s| s.duration_since(SystemTime::UNIX_EPOCH).ok());
        let failure = Failure {
            since_ms: since.and_then(|s| u64::try_from(s.as_millis()).ok()),
            ..failure.clone()
        };
        let json = serde_json::to_vec(&failure)?;
        self.write(&format!("{name}{FAILED}"), &json, nonce)
    }

    /// Forgets why a file could not be archived.
    pub fn remove_failure(&self, name: WalFileName) {
        self.remove(&format!("{name}{FAILED}"));
    }

    /// Every file of which something is known.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn known(&self) -> io::Result<BTreeMap<WalFileName, Known>> {
        let mut found = BTreeMap::new();
        for entry in rustix::fs::Dir::read_from(&self.directory)? {
            let entry = entry?;
            let Ok(text) = entry.file_name().to_str() else {
                continue;
            };
            let (name, known) = match (text.strip_suffix(SHIPPED), text.strip_suffix(FAILED)) {
                (Some(name), _) => (name, Known::Shipped),
                (_, Some(name)) => (name, Known::Failed),
                _ => continue,
            };
            if let Ok(name) = name.parse() {
                found.insert(name, known);
            }
        }
        Ok(found)
    }

    /// Removes what a killed worker left half-written. Only for who holds the lock.
    pub fn remove_unfinished(&self) {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.directory) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            if let Ok(name) = entry.file_name().to_str()
                && name.starts_with(TEMPORARY_PREFIX)
            {
                self.remove(name);
            }
        }
    }

    /// Tries whether notes can be written.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn try_out(&self, nonce: u64) -> io::Result<()> {
        // Dropped, it is gone.
        self.begin("trial", nonce)?.write_all(&[0; 4096])
    }

    fn begin(&self, name: &str, nonce: u64) -> io::Result<Delivery> {
        Delivery::create_in(self.directory.try_clone()?, name, nonce)
    }

    fn write(&self, name: &str, content: &[u8], nonce: u64) -> io::Result<()> {
        let mut file = self.begin(name, nonce)?;
        file.write_all(content)?;
        file.finish()
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, name, flags, Mode::empty()).ok()?;
        let mut bytes = Vec::new();
        let read = File::from(fd)
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes);
        (read.ok()? as u64 <= FILE_BYTES_MAX).then_some(bytes)
    }

    fn remove(&self, name: &str) -> bool {
        rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn note(dir: &Path) -> Note {
        let path = dir.join("file");
        std::fs::write(&path, "wal").unwrap();
        let file = FileIdentity::of(&std::fs::metadata(path).unwrap());
        let name = "000000010000000000000007".parse().unwrap();
        let mut note = Note::new(name, file, u64::MAX);
        note.holders.push(Holder {
            location: "file:///r".to_owned(),
            uuid: "00".to_owned(),
        });
        note.warnings.push("something \"quoted\"\n".to_owned());
        note
    }

    #[test]
    fn a_note_of_which_any_byte_is_other_or_missing_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let note = note(dir.path());
        let bytes = note.encode().unwrap();
        assert_eq!(Note::decode(&bytes), Some(note));
        for at in 0..bytes.len() {
            assert_eq!(Note::decode(&bytes[..at]), None);
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(Note::decode(&other), None, "{at}");
        }
        assert_eq!(Note::decode(&vec![0; bytes.len()]), None);
    }

    #[test]
    fn of_all_settings_the_newest_failure_is_shown_and_no_other_clusters() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment::new::<&str, &str>([], None);
        let data = DataDirectory::at(dir.path());
        let mut cluster = Cluster::named("a".parse().unwrap());
        cluster.spool_dir = Some(dir.path().join("spool"));
        let beginning = beginning(&cluster, &data).unwrap();
        let name = "000000010000000000000007".parse().unwrap();
        // In an order of names that is not that of time; the last belongs to a cluster whose name begins as this one's.
        let spools = [
            ("2", "old", 1),
            ("1", "new", 3),
            ("3", "older", 0),
            ("0-4", "other", 9),
        ];
        for (hash, code, seconds) in spools {
            let path = dir.path().join("spool").join(format!("{beginning}{hash}"));
            let failure = Failure {
                code: code.to_owned(),
                status: 1,
                text: String::new(),
                since_ms: None,
            };
            let spool = Spool::create(&path).unwrap();
            spool.write_failure(name, &failure, 1).unwrap();
            let file = File::open(path.join(format!("{name}{FAILED}"))).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(time).unwrap();
        }
        let found = failures(&cluster, &environment, &data);
        let codes: Vec<&str> = found.values().map(|(f, _)| f.code.as_str()).collect();
        assert_eq!(codes, ["new"]);
    }

    #[test]
    fn a_spool_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/below");
        assert!(Spool::open(&path).unwrap().is_none());
        let spool = Spool::create(&path).unwrap();
        let note = note(dir.path());
        spool.write_note(&note, 1).unwrap();
        assert_eq!(spool.note(note.name), Some(note));
        for mode in [0o770, 0o707, 0o750, 0o701] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert!(Spool::open(&path).is_err(), "{mode:o}");
            assert!(Spool::create(&path).is_err(), "{mode:o}");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        assert!(Spool::open(&path).unwrap().is_some());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Spool::open(&link).is_err());
    }

    #[test]
    fn one_has_the_lock_and_a_failure_is_never_success() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(&dir.path().join("s")).unwrap();
        let lock = spool.try_lock().unwrap().unwrap();
        assert!(spool.try_lock().unwrap().is_none());
        assert!(spool.is_locked_by(&lock));
        assert!(!spool.is_locked_by(File::open(dir.path()).unwrap()));
        drop(lock);
        assert!(spool.try_lock().unwrap().is_some());
        let name = "000000010000000000000007".parse().unwrap();
        for (status, known) in [(0, false), (1, true), (125, true), (126, false)] {
            let failure = Failure {
                code: format!("c{status}"),
                status,
                text: String::new(),
                since_ms: None,
            };
            spool.write_failure(name, &failure, 1).unwrap();
            assert_eq!(spool.failure(name).is_some(), known, "{status}");
        }
        assert_eq!(spool.known().unwrap().get(&name), Some(&Known::Failed));
        spool.remove_failure(name);
        spool.try_out(3).unwrap();
        assert_eq!(spool.known().unwrap().len(), 0);
    }
}
