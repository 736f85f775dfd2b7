//! Takes a directory with all that is in it into a snapshot.
//!
//! One thread walks, several read files. Hard links are kept until the walk is over: the smallest path of an inode has the content, the
//! others name it. A file's status is read before and after its content; one that changed meanwhile is marked.
//!
//! Upon a prior, a file counts as unchanged while its size, inode and times are those that the prior has. A program that writes through a
//! mapping moves no time while its page is dirty. So filesystems are synced before their files are looked at, and a file that had changed
//! shortly before the prior was begun is read again. Each of the others has a turn to be read, which finds changes that no time tells of.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use rustix::fs::{Advice, Dir, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::beneath;
use super::filesystem::Filesystem;
use super::left_out::{LeftOut, Part};
use super::names::Names;
use super::selection::Selection;
use super::status::{Holder, Status, XattrReader};
use super::turn;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::snapshot::arrived::Arrived;
use crate::snapshot::filekey::{FileKey, Naming, PATH_LIMIT_BYTES};
use crate::snapshot::kind::Before;
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Device, Node, NodeKind, unstable};
use crate::snapshot::sink::FileSink;
use crate::snapshot::sort::{MEMORY_BYTES, Sorter};
use crate::snapshot::writer::SnapshotWriter;

/// Files on their way to the readers.
const QUEUE: usize = 256;
const BUFFER_BYTES: usize = 256 << 10;
const SHORT_HOLE_BYTES: u64 = 4096;
/// Names of one directory that are in memory; more are sorted on disk.
const NAMES_BYTES: usize = 1 << 20;
/// How often the caller is heard while others work.
const TICK: Duration = Duration::from_millis(200);
/// A file that had changed so shortly before the prior was begun is read again: dirty pages are written back after 35 s at most, as Linux is set
/// by default, and some filesystems tell whole seconds.
const RACY: Duration = Duration::from_secs(36);

/// So many bytes of paths are stored of entries that were left out for their state.
const STATES_BYTES: usize = 8 << 10;

/// The result of a walk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Things that could not be read.
    pub left_out: LeftOut,
    /// Files that changed while they were read.
    pub unstable: u64,
    /// Entries that the rules leave out: what is below a directory is not counted.
    pub excluded: u64,
    /// Those of them that were left out for their state then: their length, a marker, their filesystem. The rules may judge them otherwise later.
    pub excluded_by_state: ByState,
    /// Files that are as the prior has them.
    pub unchanged: u64,
    /// Files whose content was read.
    pub read: u64,
    pub read_bytes: u64,
    /// Bytes of them that were stored before, under another name or in the prior.
    pub reused_bytes: u64,
    /// The files whose turn it was.
    pub sample: Sample,
}

/// Entries that were left out for their state.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ByState {
    pub count: u64,
    /// Their paths, as far as there is room for them.
    pub paths: Vec<Vec<u8>>,
    room_taken: usize,
}

impl ByState {
    /// Counts one more.
    pub fn add(&mut self, path: &[u8]) {
        self.count += 1;
        self.room_taken += path.len();
        if self.room_taken <= STATES_BYTES {
            self.paths.push(path.to_vec());
        }
    }
}

/// Files that were read again though nothing says that they have changed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// All of them.
    pub read: u64,
    /// Those with other content than the prior has. They are stored as they are now.
    pub silent: u64,
    /// Those that could not be read. The prior's content stays.
    pub unread: u64,
}

impl Sample {
    /// Warns of those with other content, and of those that could not be read. `things` is the word for all of them.
    pub fn warnings(self, things: &str, silent: &str, unread: &str) -> Vec<String> {
        let all = self.read;
        let counts = [(self.silent, silent), (self.unread, unread)].into_iter();
        let met = counts.filter(|(count, _)| *count > 0);
        met.map(|(count, what)| format!("{count} of {all} {things} that were read again {what}"))
            .collect()
    }
}

/// The source of a walk.
pub struct Tree<'a> {
    /// The directory.
    pub root: &'a Path,
    /// Which of its entries are taken.
    pub selection: &'a Selection,
    /// The backup that this one builds on.
    pub before: Option<Before<'a>>,
    /// How many threads read files. The writer's options name as many sinks.
    pub readers: usize,
    /// Whether files may have content in common, with one another or with a prior.
    pub is_shared: bool,
    /// Stop flag, progress and scratch.
    pub host: &'a Host,
}

type Paths = Vec<Vec<u8>>;

/// Device and inode.
type Inode = (u64, u64);

/// The paths of one file. The first of several that can be read has the content.
struct Group {
    paths: Paths,
    /// The hash of its content in the prior, where it is only its turn to be read.
    known: Option<[u8; 32]>,
    /// The file that had all the paths when they were met; none where there is one path.
    inode: Option<Inode>,
}

/// A file beside what the prior has of it.
enum Compared {
    Changed,
    Same,
    /// The same, as far as anything tells, and its turn to be read. The prior's hash of its content.
    Due([u8; 32]),
}

/// The data that all threads share.
struct Source<'a> {
    root: OwnedFd,
    now: TimestampTz,
    names: Names,
    tree: &'a Tree<'a>,
    /// The names that were met, where there is a prior.
    arrived: Option<Mutex<Arrived>>,
    /// Filesystems on which a store through a mapping moves no time: their files are read each time.
    timeless: Mutex<HashSet<u64>>,
    unchanged: AtomicU64,
    /// Set when everything has to end.
    is_over: AtomicBool,
}

impl Source<'_> {
    fn check_stop(&self) -> Result<()> {
        self.tree.host.check_stop()?;
        match self.is_over.load(Ordering::Relaxed) {
            true => Err(err!(Interrupted, "the walk was given up")),
            false => Ok(()),
        }
    }

    /// The file that a path leads to now.
    fn inode(&self, path: &[u8]) -> Option<Inode> {
        let opened = beneath::open(self.root.as_fd(), path, OFlags::PATH, Mode::empty());
        let status = opened.and_then(|fd| Status::of(fd.as_fd())).ok()?;
        Some((status.device, status.inode))
    }

    /// Takes the name of an entry down that is there.
    fn meet(&self, key: &FileKey) -> Result<()> {
        match self.arrived.as_ref().map(Mutex::lock) {
            None => Ok(()),
            Some(Ok(mut arrived)) => arrived.add(key),
            Some(Err(_)) => Err(err!(Internal, "a thread that reads files panicked")),
        }
    }

    /// Records an entry, unless the prior has it like that.
    fn record(&self, sink: &FileSink<'_>, path: &[u8], node: Node) -> Result<()> {
        let key = key(path)?;
        self.meet(&key)?;
        if let Some(before) = &self.tree.before
            && let Some(Metadata::Node(known)) = before.snapshot.metadata(&key)?
            && *known == node
        {
            return Ok(());
        }
        sink.node(&key, node)
    }

    /// Compares a file with what the prior has. The name of one that is the same is taken down, and nothing else has to be done.
    fn compared(&self, path: &[u8], status: &Status) -> Result<Compared> {
        let Some(before) = &self.tree.before else {
            return Ok(Compared::Changed);
        };
        let key = key(path)?;
        let Some(Metadata::Node(known)) = before.snapshot.metadata(&key)? else {
            return Ok(Compared::Changed);
        };
        let owner = self.names.owner(status.uid, status.gid);
        let is_timeless = self
            .timeless
            .lock()
            .map_or(true, |timeless| timeless.contains(&status.device));
        let is_same = known.kind == NodeKind::File(status.length)
            && !is_timeless
            && known.unstable == 0
            && known.mode == status.mode
            && known.owner == Some(owner)
            && known.mtime == status.mtime
            && known.links == status.links_of_node()
            && known.change == Some(status.change())
            && is_settled(status, before.start_time);
        if !is_same {
            return Ok(Compared::Changed);
        }
        let times = (before.turns_since, self.now);
        if let Some(hash) = known.blake3
            && turn::is_due(path, times, fault::round(turn::ROUND))
        {
            return Ok(Compared::Due(hash));
        }
        self.keep(&key)?;
        Ok(Compared::Same)
    }

    /// Takes down that a file is as the prior has it.
    fn keep(&self, key: &FileKey) -> Result<()> {
        self.unchanged.fetch_add(1, Ordering::Relaxed);
        self.meet(key)
    }
}

/// Whether a file had last changed long enough before a moment.
fn is_settled(status: &Status, moment: TimestampTz) -> bool {
    let changed = TimestampTz::from_unix_seconds(status.ctime.seconds);
    changed.is_some_and(|changed| changed.saturating_add(fault::shortened(RACY)) < moment)
}

/// The sinks that a walk with so many readers needs: one is the walk's own, and one for names that are gone.
pub fn sinks(readers: usize) -> usize {
    readers + 2
}

/// Takes a directory into a snapshot. `tick` is called several times a second.
///
/// # Errors
/// `SourceMissing` when the directory cannot be read; `Interrupted`; those of `tick`; what made writing stop.
pub fn take(
    tree: &Tree<'_>,
    writer: &SnapshotWriter<'_>,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Taken> {
    let failed = |e: Errno| {
        let e = Error::from_io(format!("open \"{}\"", tree.root.display()), e.into());
        e.with_code(Code::SourceMissing)
            .hint("Nothing was taken. Name a directory that this user can read.")
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut source = Source {
        root: rustix::fs::open(tree.root, flags, Mode::empty()).map_err(failed)?,
        now: tree.host.now(),
        names: Names::of_host(),
        tree,
        arrived: tree
            .before
            .map(|_| Mutex::new(Arrived::new(&tree.host.scratch))),
        timeless: Mutex::default(),
        unchanged: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    };
    let work = || take_with(&source, writer);
    let mut taken = heard(work, &source.is_over, tick, "the thread that walks")?;
    taken.unchanged = source.unchanged.into_inner();
    taken.reused_bytes = writer.reused_bytes();
    if let (Some(arrived), Some(before)) = (source.arrived.take(), &tree.before) {
        let arrived = arrived
            .into_inner()
            .map_err(|_| err!(Internal, "a thread that reads files panicked"))?;
        let sink = writer.sink();
        arrived.finish(before.snapshot, Naming::Tree, &sink, tick)?;
        sink.finish()?;
    }
    Ok(taken)
}

/// Has a thread of its own do the work, and hears the caller all the while.
///
/// # Errors
/// Those of the work and of `tick`.
pub fn heard<T: Send>(
    work: impl FnOnce() -> Result<T> + Send,
    is_over: &AtomicBool,
    tick: &mut dyn FnMut() -> Result<()>,
    panicked: &str,
) -> Result<T> {
    std::thread::scope(|threads| {
        let (ended, end) = sync_channel::<()>(1);
        let working = threads.spawn(move || {
            let _ended = ended;
            work()
        });
        let mut result = Ok(());
        while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(TICK) {
            if result.is_ok() {
                result = tick();
                // The threads end by themselves, and soon.
                is_over.store(result.is_err(), Ordering::Relaxed);
            }
        }
        let done = working.join();
        result.and(done.unwrap_or_else(|_| Err(err!(Internal, "{panicked} panicked"))))
    })
}

/// The next thing of a queue that several threads empty; none when it has ended.
///
/// # Errors
/// `Internal` where one of them panicked; `what` it does is for the message.
pub fn next<T>(queue: &Mutex<Receiver<T>>, what: &str) -> Result<Option<T>> {
    let queue = queue.lock();
    let queue = queue.map_err(|_| err!(Internal, "a thread that {what} panicked"))?;
    Ok(queue.recv().ok())
}

/// Walks, and reads files with several threads.
fn take_with(source: &Source<'_>, writer: &SnapshotWriter<'_>) -> Result<Taken> {
    let sink = writer.sink();
    std::thread::scope(|threads| {
        let (files, queue) = sync_channel(QUEUE);
        // The readers alone hold the queue's end: the walk ends when all of them have.
        let queue = Arc::new(Mutex::new(queue));
        let readers: Vec<_> = (0..source.tree.readers.max(1))
            .map(|_| {
                let reader = Reader::new(source, writer.sink());
                let queue = Arc::clone(&queue);
                threads.spawn(move || {
                    let read = reader.run(&queue);
                    // The others have no reason to go on.
                    source.is_over.fetch_or(read.is_err(), Ordering::Relaxed);
                    read
                })
            })
            .collect();
        drop(queue);
        let walked = Walk::new(source, sink, files).run();
        let mut sum = joined(readers, "files")?;
        let walked = walked?;
        sum.left_out.merge(walked.left_out);
        sum.excluded = walked.excluded;
        sum.excluded_by_state = walked.excluded_by_state;
        Ok(sum)
    })
}

/// Joins the threads that read `things`, and adds up what they took.
///
/// # Errors
/// That of a thread. One's error stops the others, which say that they were interrupted.
pub fn joined(readers: Vec<ScopedJoinHandle<'_, Result<Taken>>>, things: &str) -> Result<Taken> {
    let mut sum = Taken::default();
    let mut failure = None;
    for reader in readers {
        let panicked = |_| Err(err!(Internal, "a thread that reads {things} panicked"));
        match reader.join().unwrap_or_else(panicked) {
            Ok(taken) => {
                sum.left_out.merge(taken.left_out);
                sum.unstable += taken.unstable;
                sum.unchanged += taken.unchanged;
                sum.read += taken.read;
                sum.read_bytes += taken.read_bytes;
                sum.sample.read += taken.sample.read;
                sum.sample.silent += taken.sample.silent;
                sum.sample.unread += taken.sample.unread;
            }
            Err(e) if failure.is_none() || e.code() != Code::Interrupted => failure = Some(e),
            Err(_) => {}
        }
    }
    failure.map_or(Ok(sum), Err)
}

fn key(path: &[u8]) -> Result<FileKey> {
    FileKey::from_path(path, Naming::Tree)
}

/// The thread that walks.
struct Walk<'w, 't> {
    source: &'w Source<'w>,
    sink: FileSink<'t>,
    files: SyncSender<Group>,
    xattrs: XattrReader,
    /// Directories to be read.
    pending: Paths,
    /// Paths of inodes that have several, behind their inode; 1 for a file. There may be many millions.
    linked: Sorter,
    /// Filesystems that were synced; the first is that of the root.
    filesystems: BTreeSet<u64>,
    root_filesystem: Option<u64>,
    left_out: LeftOut,
    excluded: u64,
    excluded_by_state: ByState,
}

impl<'w, 't> Walk<'w, 't> {
    fn new(source: &'w Source<'w>, sink: FileSink<'t>, files: SyncSender<Group>) -> Walk<'w, 't> {
        Walk {
            source,
            sink,
            files,
            xattrs: XattrReader::new(),
            pending: vec![Vec::new()],
            linked: Sorter::new(&source.tree.host.scratch, MEMORY_BYTES),
            filesystems: BTreeSet::new(),
            root_filesystem: None,
            left_out: LeftOut::default(),
            excluded: 0,
            excluded_by_state: ByState::default(),
        }
    }

    fn run(mut self) -> Result<Taken> {
        while let Some(path) = self.pending.pop() {
            self.source.check_stop()?;
            self.directory(&path)?;
        }
        let none = Sorter::new(&self.source.tree.host.scratch, 0);
        let linked = std::mem::replace(&mut self.linked, none);
        let mut group: Option<(Inode, bool, Paths)> = None;
        linked.drain(&mut |record, is_file| {
            let (inode, path) = of_record(record);
            match &mut group {
                Some((last, _, paths)) if *last == inode => paths.push(path.to_vec()),
                _ => {
                    let next = (inode, is_file == [1], vec![path.to_vec()]);
                    if let Some(whole) = group.replace(next) {
                        self.linked_group(whole)?;
                    }
                }
            }
            Ok(())
        })?;
        if let Some(whole) = group {
            self.linked_group(whole)?;
        }
        self.sink.finish()?;
        Ok(Taken {
            left_out: self.left_out,
            excluded: self.excluded,
            excluded_by_state: self.excluded_by_state,
            ..Taken::default()
        })
    }

    /// Takes all paths of an inode.
    fn linked_group(&mut self, (inode, is_file, paths): (Inode, bool, Paths)) -> Result<()> {
        match is_file {
            true => self.send(Group {
                paths,
                known: None,
                inode: Some(inode),
            }),
            false => self.linked_special(inode, &paths),
        }
    }

    fn send(&self, group: Group) -> Result<()> {
        let sent = self.files.send(group);
        sent.map_err(|_| err!(Interrupted, "the readers have ended"))
    }

    fn directory(&mut self, path: &[u8]) -> Result<()> {
        let root = self.source.root.as_fd();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = match beneath::open(root, path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return self.closed_directory(path, e),
        };
        let directory = directory.as_fd();
        let status = match Status::of(directory) {
            Ok(status) => status,
            Err(e) => return self.left_out.leave(path, Part::Entry, e),
        };
        let mut node = status.node(NodeKind::Directory, &self.source.names);
        self.add_xattrs(&mut node, Holder::Open(directory), path);
        self.source.record(&self.sink, path, node)?;
        if !self.is_entered(directory, &status) {
            self.excluded += 1;
            // One that the kernel makes up has nothing below it once it is gone.
            if Filesystem::of(directory) != Filesystem::Invented {
                self.excluded_by_state.add(path);
            }
            return Ok(());
        }
        // Not `Dir::read_from`, which opens the directory by its name `.`: that takes the right to enter it.
        let again = rustix::io::fcntl_dupfd_cloexec(directory, 0);
        let entries = match again.and_then(Dir::new) {
            Ok(entries) => entries,
            Err(e) => return self.left_out.leave(path, Part::Content, e),
        };
        // In order, and once: a filesystem may show a name twice that is made again meanwhile.
        let mut names = Sorter::new(&self.source.tree.host.scratch, NAMES_BYTES);
        for entry in entries {
            match entry {
                Ok(entry) => names.push(entry.file_name().to_bytes(), &[])?,
                Err(e) => {
                    self.left_out.add(path, Part::Content, e);
                    break;
                }
            }
        }
        let mut last = Vec::new();
        names.drain(&mut |name, _| {
            if name == last.as_slice() {
                return Ok(());
            }
            last.clear();
            last.extend_from_slice(name);
            self.source.check_stop()?;
            self.entry(directory, name, path)
        })
    }

    /// Whether a directory is read. Its filesystem has been synced then.
    fn is_entered(&mut self, directory: BorrowedFd<'_>, status: &Status) -> bool {
        let selection = self.source.tree.selection;
        let root = *self.root_filesystem.get_or_insert(status.device);
        let is_outside = selection.one_file_system && status.device != root;
        let kind = Filesystem::of(directory);
        if is_outside || kind == Filesystem::Invented || selection.is_marked(directory) {
            return false;
        }
        if self.filesystems.insert(status.device) {
            // Pages that are clean make the next store through a mapping move the time.
            let is_clean = durable::write_back(directory).is_ok();
            if (kind == Filesystem::Memory || !is_clean)
                && let Ok(mut timeless) = self.source.timeless.lock()
            {
                timeless.insert(status.device);
            }
        }
        true
    }

    /// Records a directory that cannot be read, as far as its parent tells of it.
    fn closed_directory(&mut self, path: &[u8], e: Errno) -> Result<()> {
        let root = self.source.root.as_fd();
        let opened = beneath::open(root, path, OFlags::PATH, Mode::empty());
        match opened.and_then(|fd| Status::of(fd.as_fd())) {
            Ok(status) if status.kind == FileType::Directory => {
                self.left_out.add(path, Part::Content, e);
                let node = status.node(NodeKind::Directory, &self.source.names);
                self.source.record(&self.sink, path, node)
            }
            _ => self.left_out.leave(path, Part::Entry, e),
        }
    }

    fn entry(&mut self, directory: BorrowedFd<'_>, name: &[u8], above: &[u8]) -> Result<()> {
        if name == b"." || name == b".." {
            return Ok(());
        }
        let path = beneath::joined(above, name);
        if path.len() > PATH_LIMIT_BYTES {
            return self
                .left_out
                .leave(&path, Part::Entry, "its path is too long");
        }
        let status = match Status::at(directory, name) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return self.left_out.leave(&path, Part::Entry, e),
        };
        let is_directory = status.kind == FileType::Directory;
        let selection = self.source.tree.selection;
        if selection.excludes(&path, is_directory).is_some() {
            self.excluded += 1;
            return Ok(());
        }
        if status.kind == FileType::RegularFile && selection.is_too_large(status.length) {
            self.excluded += 1;
            self.excluded_by_state.add(&path);
            return Ok(());
        }
        if is_directory {
            self.pending.push(path);
        } else if status.links > 1 {
            let is_file = u8::from(status.kind == FileType::RegularFile);
            let record = record_of((status.device, status.inode), &path);
            self.linked.push(&record, &[is_file])?;
        } else if status.kind == FileType::RegularFile {
            let known = match self.source.compared(&path, &status)? {
                Compared::Same => return Ok(()),
                Compared::Changed => None,
                Compared::Due(hash) => Some(hash),
            };
            self.send(Group {
                paths: vec![path],
                known,
                inode: None,
            })?;
        } else {
            self.special(directory, name, &path, &status)?;
        }
        Ok(())
    }

    /// Records what is neither directory nor file; returns whether it is there.
    fn special(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        status: &Status,
    ) -> Result<bool> {
        let device = Device {
            major: rustix::fs::major(status.number),
            minor: rustix::fs::minor(status.number),
        };
        let kind = match status.kind {
            FileType::Symlink => match rustix::fs::readlinkat(directory, name, Vec::new()) {
                Ok(target) => NodeKind::Symlink(target.into_bytes()),
                Err(e) => {
                    self.left_out.add(path, Part::Entry, e);
                    return Ok(false);
                }
            },
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            FileType::CharacterDevice => NodeKind::CharDevice(device),
            FileType::BlockDevice => NodeKind::BlockDevice(device),
            _ => {
                self.left_out
                    .add(path, Part::Entry, "its type is not known");
                return Ok(false);
            }
        };
        let mut node = status.node(kind, &self.source.names);
        self.add_xattrs(&mut node, Holder::Named(directory, name), path);
        self.source.record(&self.sink, path, node)?;
        Ok(true)
    }

    /// Records links, pipes and devices that have several paths.
    fn linked_special(&mut self, inode: Inode, paths: &Paths) -> Result<()> {
        let mut first: Option<FileKey> = None;
        for path in paths {
            if let Some(first) = &first
                && self.source.inode(path) == Some(inode)
            {
                record_link(self.source, &self.sink, path, first)?;
                continue;
            }
            let (above, name) = beneath::cut(path);
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let opened = beneath::open(self.source.root.as_fd(), above, flags, Mode::empty());
            let found = opened.and_then(|fd| Ok((Status::at(fd.as_fd(), name)?, fd)));
            match found {
                Ok((status, fd)) if self.special(fd.as_fd(), name, path, &status)? => {
                    if first.is_none() && (status.device, status.inode) == inode {
                        first = Some(key(path)?);
                    }
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => self.left_out.add(path, Part::Entry, e),
            }
        }
        Ok(())
    }

    fn add_xattrs(&mut self, node: &mut Node, holder: Holder<'_>, path: &[u8]) {
        let left_out = &mut self.left_out;
        node.xattrs = self.xattrs.read(holder, &mut |why| {
            left_out.add(path, Part::Xattr, why);
        });
    }
}

/// Bytes by which the paths of one inode stand together, in their order.
fn record_of((device, inode): Inode, path: &[u8]) -> Vec<u8> {
    [&device.to_be_bytes()[..], &inode.to_be_bytes(), path].concat()
}

/// The inode and the path of a record.
fn of_record(record: &[u8]) -> (Inode, &[u8]) {
    let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |n| u64::from_be_bytes(*n));
    let (inode, path) = record.split_at_checked(16).unwrap_or((&[], record));
    let second = inode.get(8..).unwrap_or_default();
    ((number(inode), number(second)), path)
}

/// Records another name of a file; its mode and times are those of the first.
fn record_link(
    source: &Source<'_>,
    sink: &FileSink<'_>,
    path: &[u8],
    first: &FileKey,
) -> Result<()> {
    let kind = NodeKind::HardLink(first.clone());
    source.record(sink, path, Node::new(kind, 0, Default::default()))
}

/// A thread that reads files.
struct Reader<'r, 't> {
    source: &'r Source<'r>,
    sink: FileSink<'t>,
    buffer: Vec<u8>,
    xattrs: XattrReader,
    taken: Taken,
}

impl<'r, 't> Reader<'r, 't> {
    fn new(source: &'r Source<'r>, sink: FileSink<'t>) -> Reader<'r, 't> {
        Reader {
            source,
            sink,
            buffer: vec![0; BUFFER_BYTES],
            xattrs: XattrReader::new(),
            taken: Taken::default(),
        }
    }

    fn run(mut self, queue: &Mutex<Receiver<Group>>) -> Result<Taken> {
        while let Some(group) = next(queue, "reads files")? {
            self.source.check_stop()?;
            self.group(&group)?;
        }
        self.sink.finish()?;
        Ok(self.taken)
    }

    /// Takes one file: its content under the first path that can be read, the others as links to that. A path that leads to another file by now is
    /// taken by itself.
    fn group(&mut self, group: &Group) -> Result<()> {
        let mut first = None;
        for path in &group.paths {
            if let Some(first) = &first
                && self.source.inode(path) == group.inode
            {
                record_link(self.source, &self.sink, path, first)?;
                continue;
            }
            let taken = self.file(path, group.known)?;
            if first.is_none() && group.inode.is_some() && taken == group.inode {
                first = Some(key(path)?);
            }
        }
        Ok(())
    }

    /// Takes a file; returns which one, where it is there. `known` is the hash of one whose turn it is.
    fn file(&mut self, path: &[u8], mut known: Option<[u8; 32]>) -> Result<Option<Inode>> {
        let opened = beneath::open_file(self.source.root.as_fd(), path);
        let opened = opened.and_then(|fd| Ok((Status::of(fd.as_fd())?, File::from(fd))));
        let (status, file) = match opened {
            Ok((status, file)) if status.kind == FileType::RegularFile => (status, file),
            Err(Errno::NOENT) => return Ok(None),
            Ok(_) => return self.leave(path, "it is no file any more"),
            Err(e) => return self.closed(path, e),
        };
        // A file of one path was compared by the walk.
        let inode = (status.device, status.inode);
        if status.links > 1 {
            known = match self.source.compared(path, &status)? {
                Compared::Same => return Ok(Some(inode)),
                Compared::Changed => None,
                Compared::Due(hash) => Some(hash),
            };
        }
        let key = key(path)?;
        if let Some(known) = known
            && self.is_as_known(path, &file, &known)?
        {
            self.source.keep(&key)?;
            return Ok(Some(inode));
        }
        match self.source.tree.is_shared {
            true => self.sink.begin_shared(key.clone())?,
            false => self.sink.begin(key.clone())?,
        }
        let hash = match self.content(&file, &status)? {
            Ok(hash) => hash,
            Err(e) => return self.leave(path, e),
        };
        let after = match Status::of(file.as_fd()) {
            Ok(after) => after,
            Err(e) => return self.leave(path, e),
        };
        let mut node = status.node(NodeKind::File(0), &self.source.names);
        let left_out = &mut self.taken.left_out;
        let mut is_whole = true;
        node.xattrs = self.xattrs.read(Holder::Open(file.as_fd()), &mut |why| {
            left_out.add(path, Part::Xattr, why);
            is_whole = false;
        });
        // Without the facts of change detection the next run looks again.
        node.change = node.change.filter(|_| is_whole);
        node.blake3 = hash;
        let is_short = self.sink.position() < status.length;
        let is_other = after.length != status.length || has_more(&file, status.length);
        for (is_so, bit) in [
            (is_other, unstable::SIZE),
            (after.mtime != status.mtime, unstable::MTIME),
            (after.ctime != status.ctime, unstable::CTIME),
            (is_short, unstable::SHRANK),
        ] {
            node.unstable |= if is_so { bit } else { 0 };
        }
        self.taken.unstable += u64::from(node.unstable != 0);
        self.taken.read += 1;
        self.source.meet(&key)?;
        if self.source.tree.before.is_some() {
            // Bytes of this path in older layers count no more.
            self.sink.limit(&key, 0)?;
        }
        self.sink.end_node(node)?;
        Ok(Some(inode))
    }

    /// Reads a file whose turn it is, from the disk where nobody has changed it in memory. A file that cannot be read stays as the prior has it.
    fn is_as_known(&mut self, path: &[u8], file: &File, known: &[u8; 32]) -> Result<bool> {
        let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
        self.taken.sample.read += 1;
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        loop {
            self.source.check_stop()?;
            match file.read_at(&mut self.buffer, at) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(self.buffer.get(..n).unwrap_or_default());
                    self.source.tree.host.progress.advance(n as u64);
                    at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.taken.sample.unread += 1;
                    return Ok(true);
                }
            }
        }
        if hasher.finalize() == *known {
            return Ok(true);
        }
        let after = Status::of(file.as_fd());
        let is_silent = match &after {
            Ok(after) => matches!(self.source.compared(path, after)?, Compared::Due(_)),
            Err(_) => false,
        };
        self.taken.sample.silent += u64::from(is_silent);
        Ok(false)
    }

    /// Leaves a file that cannot be opened as the prior has it, where it is the same one as far as its status tells. Else it is left out.
    fn closed(&mut self, path: &[u8], e: Errno) -> Result<Option<Inode>> {
        let opened = beneath::open(self.source.root.as_fd(), path, OFlags::PATH, Mode::empty());
        let status = match opened.and_then(|fd| Status::of(fd.as_fd())) {
            Ok(status) if status.kind == FileType::RegularFile => status,
            _ => return self.leave(path, e),
        };
        match self.source.compared(path, &status)? {
            Compared::Changed => return self.leave(path, e),
            Compared::Same => {}
            Compared::Due(_) => {
                self.taken.sample.read += 1;
                self.taken.sample.unread += 1;
                self.source.keep(&key(path)?)?;
            }
        }
        Ok(Some((status.device, status.inode)))
    }

    fn leave(&mut self, path: &[u8], why: impl std::fmt::Display) -> Result<Option<Inode>> {
        self.sink.abandon();
        self.taken.left_out.add(path, Part::Entry, why);
        Ok(None)
    }

    /// Reads the content up to the length that the file had when it was opened, and returns its hash, but of a sparse file, whose zeros would be hashed
    /// for hours. The inner error is the file's.
    fn content(&mut self, file: &File, status: &Status) -> Result<io::Result<Option<[u8; 32]>>> {
        let length = status.length;
        let first_hole = || rustix::fs::seek(file, SeekFrom::Hole(0));
        let is_sparse = is_sparse(status.allocated, length, first_hole);
        let mut hasher = (!is_sparse).then(blake3::Hasher::new);
        let mut at = 0;
        while at < length {
            let (data, end) = match is_sparse {
                true => next_data(file, at, length),
                false => (at, length),
            };
            self.sink.hole(data - at)?;
            at = data;
            while at < end {
                self.source.check_stop()?;
                let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
                let room = wanted.min(self.buffer.len());
                let room = self.buffer.get_mut(..room).unwrap_or_default();
                match file.read_at(room, at) {
                    Ok(0) => return Ok(Ok(None)),
                    Ok(n) => {
                        let bytes = room.get(..n).unwrap_or_default();
                        self.sink.append(bytes)?;
                        if let Some(hasher) = &mut hasher {
                            hasher.update(bytes);
                        }
                        self.taken.read_bytes += n as u64;
                        self.source.tree.host.progress.advance(n as u64);
                        at += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Ok(Err(e)),
                }
            }
        }
        Ok(Ok(hasher.map(|hasher| *hasher.finalize().as_bytes())))
    }
}

/// Whether a file has bytes behind its length. Some filesystems in user space tell no length of files that have content.
pub(super) fn has_more(file: &File, length: u64) -> bool {
    matches!(file.read_at(&mut [0], length), Ok(1..))
}

/// Whether a file has holes. Some filesystems that compress allocate less as well (ZFS does, btrfs does not), and have none; one that does not tell
/// counts as one that has some.
pub(super) fn is_sparse(
    allocated: u64,
    length: u64,
    first_hole: impl FnOnce() -> rustix::io::Result<u64>,
) -> bool {
    allocated < length && first_hole().map_or(true, |hole| hole < length)
}

/// The next stretch of data at `at` or after it. All is data where the filesystem does not tell of holes.
fn next_data(file: &File, at: u64, length: u64) -> (u64, u64) {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.clamp(at, length),
        Err(Errno::NXIO) => return (length, length),
        Err(_) => return (at, length),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(end) if end > data => end.min(length),
        _ => length,
    };
    // A short hole is read as zeros: each stretch costs a piece of the map.
    match data - at < SHORT_HOLE_BYTES {
        true => (at, end),
        false => (data, end),
    }
}
