//! Takes a directory with all that is in it into a snapshot.
//!
//! One thread walks, several read files. Hard links are kept until the walk is over: the smallest path of an inode has the content, the
//! others name it. A file's status is read before and after its content; one that changed meanwhile is marked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use rustix::fs::{Dir, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::beneath;
use super::left_out::{LeftOut, Part};
use super::names::Names;
use super::status::{Holder, Status, XattrReader};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::snapshot::filekey::{FileKey, Naming, PATH_LIMIT_BYTES};
use crate::snapshot::node::{Device, Node, NodeKind, unstable};
use crate::snapshot::sink::FileSink;
use crate::snapshot::writer::SnapshotWriter;

/// Files on their way to the readers.
const QUEUE: usize = 256;
const BUFFER_BYTES: usize = 256 << 10;

/// The result of a walk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Things that could not be read.
    pub left_out: LeftOut,
    /// Files that changed while they were read.
    pub unstable: u64,
}

/// The paths of one file. The first of several that can be read has the content.
type Paths = Vec<Vec<u8>>;

/// The data that all threads share.
struct Source<'a> {
    root: OwnedFd,
    names: Names,
    host: &'a Host,
}

/// Takes the directory `root` into a snapshot of a tree, with `readers` threads that read files. The writer's options name as many sinks.
///
/// # Errors
/// `SourceMissing` when the directory cannot be read; `Interrupted`; what made writing stop.
pub fn take(
    root: &Path,
    writer: &SnapshotWriter<'_>,
    readers: usize,
    host: &Host,
) -> Result<Taken> {
    let failed = |e: Errno| {
        let e = Error::from_io(format!("open \"{}\"", root.display()), e.into());
        e.with_code(crate::error::Code::SourceMissing)
            .hint("Nothing was taken. Name a directory that this user can read.")
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = Source {
        root: rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?,
        names: Names::of_host(),
        host,
    };
    let (source, sink) = (&source, writer.sink());
    std::thread::scope(|threads| {
        let (files, queue) = sync_channel(QUEUE);
        // The readers alone hold the queue's end: the walk ends when all of them have.
        let queue = Arc::new(Mutex::new(queue));
        let readers: Vec<_> = (0..readers.max(1))
            .map(|_| {
                let reader = Reader::new(source, writer.sink());
                let queue = Arc::clone(&queue);
                threads.spawn(move || reader.run(&queue))
            })
            .collect();
        drop(queue);
        let walked = Walk::new(source, sink, files).run();
        let mut sum = Taken::default();
        for reader in readers {
            let taken = reader
                .join()
                .unwrap_or_else(|_| Err(err!(Internal, "a thread that reads files panicked")))?;
            sum.left_out.merge(taken.left_out);
            sum.unstable += taken.unstable;
        }
        sum.left_out.merge(walked?);
        Ok(sum)
    })
}

fn key(path: &[u8]) -> Result<FileKey> {
    FileKey::from_path(path, Naming::Tree)
}

/// The thread that walks.
struct Walk<'w, 't> {
    source: &'w Source<'w>,
    sink: FileSink<'t>,
    files: SyncSender<Paths>,
    xattrs: XattrReader,
    /// Directories to be read.
    pending: Paths,
    /// Paths of inodes that have several, with their type.
    linked: BTreeMap<(u64, u64), (FileType, Paths)>,
    left_out: LeftOut,
}

impl<'w, 't> Walk<'w, 't> {
    fn new(source: &'w Source<'w>, sink: FileSink<'t>, files: SyncSender<Paths>) -> Walk<'w, 't> {
        Walk {
            source,
            sink,
            files,
            xattrs: XattrReader::new(),
            pending: vec![Vec::new()],
            linked: BTreeMap::new(),
            left_out: LeftOut::default(),
        }
    }

    fn run(mut self) -> Result<LeftOut> {
        while let Some(path) = self.pending.pop() {
            self.source.host.check_stop()?;
            self.directory(&path)?;
        }
        for (kind, mut paths) in std::mem::take(&mut self.linked).into_values() {
            paths.sort();
            match kind {
                FileType::RegularFile => self.send(paths)?,
                _ => self.linked_special(&paths)?,
            }
        }
        self.sink.finish()?;
        Ok(self.left_out)
    }

    fn send(&self, paths: Paths) -> Result<()> {
        let sent = self.files.send(paths);
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
        match Status::of(directory) {
            Ok(status) => {
                let mut node = status.node(NodeKind::Directory, &self.source.names);
                self.add_xattrs(&mut node, Holder::Open(directory), path);
                self.sink.node(&key(path)?, node)?;
            }
            Err(e) => {
                self.left_out.add(path, Part::Entry, e);
                return Ok(());
            }
        }
        // Not `Dir::read_from`, which opens the directory by its name `.`: that takes the right to enter it.
        let again = rustix::io::fcntl_dupfd_cloexec(directory, 0);
        let entries = match again.and_then(Dir::new) {
            Ok(entries) => entries,
            Err(e) => {
                self.left_out.add(path, Part::Content, e);
                return Ok(());
            }
        };
        for entry in entries {
            match entry {
                Ok(entry) => self.entry(directory, entry.file_name().to_bytes(), path)?,
                Err(e) => {
                    self.left_out.add(path, Part::Content, e);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Records a directory that cannot be read, as far as its parent tells of it.
    fn closed_directory(&mut self, path: &[u8], e: Errno) -> Result<()> {
        let root = self.source.root.as_fd();
        let opened = beneath::open(root, path, OFlags::PATH, Mode::empty());
        match opened.and_then(|fd| Status::of(fd.as_fd())) {
            Ok(status) if status.kind == FileType::Directory => {
                self.left_out.add(path, Part::Content, e);
                let node = status.node(NodeKind::Directory, &self.source.names);
                self.sink.node(&key(path)?, node)
            }
            _ => {
                self.left_out.add(path, Part::Entry, e);
                Ok(())
            }
        }
    }

    fn entry(&mut self, directory: BorrowedFd<'_>, name: &[u8], above: &[u8]) -> Result<()> {
        if name == b"." || name == b".." {
            return Ok(());
        }
        let path = match above.is_empty() {
            true => name.to_vec(),
            false => [above, b"/", name].concat(),
        };
        if path.len() > PATH_LIMIT_BYTES {
            self.left_out
                .add(&path, Part::Entry, "its path is too long");
            return Ok(());
        }
        let status = match Status::at(directory, name) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => {
                self.left_out.add(&path, Part::Entry, e);
                return Ok(());
            }
        };
        if status.kind == FileType::Directory {
            self.pending.push(path);
        } else if status.links > 1 {
            let inode = (status.device, status.inode);
            let group = self.linked.entry(inode);
            group.or_insert((status.kind, Vec::new())).1.push(path);
        } else if status.kind == FileType::RegularFile {
            self.send(vec![path])?;
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
        self.sink.node(&key(path)?, node)?;
        Ok(true)
    }

    /// Records links, pipes and devices that have several paths.
    fn linked_special(&mut self, paths: &Paths) -> Result<()> {
        let mut first: Option<FileKey> = None;
        for path in paths {
            if let Some(first) = &first {
                record_link(&self.sink, path, first)?;
                continue;
            }
            let (above, name) = beneath::cut(path);
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let opened = beneath::open(self.source.root.as_fd(), above, flags, Mode::empty());
            let found = opened.and_then(|fd| Ok((Status::at(fd.as_fd(), name)?, fd)));
            match found {
                Ok((status, fd)) if self.special(fd.as_fd(), name, path, &status)? => {
                    first = Some(key(path)?);
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

/// Records another name of a file; its mode and times are those of the first.
fn record_link(sink: &FileSink<'_>, path: &[u8], first: &FileKey) -> Result<()> {
    let kind = NodeKind::HardLink(first.clone());
    sink.node(&key(path)?, Node::new(kind, 0, Default::default()))
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

    fn run(mut self, queue: &Mutex<Receiver<Paths>>) -> Result<Taken> {
        loop {
            let next = match queue.lock() {
                Ok(queue) => queue.recv(),
                Err(_) => return Err(err!(Internal, "a thread that reads files panicked")),
            };
            let Ok(paths) = next else { break };
            self.source.host.check_stop()?;
            self.paths(&paths)?;
        }
        self.sink.finish()?;
        Ok(self.taken)
    }

    /// Takes one file: its content under the first path that can be read, the others as links to that.
    fn paths(&mut self, paths: &Paths) -> Result<()> {
        let mut first = None;
        for path in paths {
            match &first {
                Some(first) => record_link(&self.sink, path, first)?,
                None if self.file(path)? => first = Some(key(path)?),
                None => {}
            }
        }
        Ok(())
    }

    /// Takes a file; returns whether it is there.
    fn file(&mut self, path: &[u8]) -> Result<bool> {
        let opened = beneath::open_file(self.source.root.as_fd(), path);
        let opened = opened.and_then(|fd| Ok((Status::of(fd.as_fd())?, File::from(fd))));
        let (status, file) = match opened {
            Ok((status, file)) if status.kind == FileType::RegularFile => (status, file),
            Err(Errno::NOENT) => return Ok(false),
            Ok(_) => return self.leave(path, "it is no file any more"),
            Err(e) => return self.leave(path, e),
        };
        self.sink.begin(key(path)?)?;
        match self.content(&file, &status)? {
            Ok(()) => {}
            Err(e) => return self.leave(path, e),
        }
        let after = match Status::of(file.as_fd()) {
            Ok(after) => after,
            Err(e) => return self.leave(path, e),
        };
        let mut node = status.node(NodeKind::File(0), &self.source.names);
        let left_out = &mut self.taken.left_out;
        node.xattrs = self.xattrs.read(Holder::Open(file.as_fd()), &mut |why| {
            left_out.add(path, Part::Xattr, why);
        });
        let is_short = self.sink.position() < status.length;
        for (is_so, bit) in [
            (after.length != status.length, unstable::SIZE),
            (after.mtime != status.mtime, unstable::MTIME),
            (after.ctime != status.ctime, unstable::CTIME),
            (is_short, unstable::SHRANK),
        ] {
            node.unstable |= if is_so { bit } else { 0 };
        }
        self.taken.unstable += u64::from(node.unstable != 0);
        self.sink.end_node(node)?;
        Ok(true)
    }

    fn leave(&mut self, path: &[u8], why: impl std::fmt::Display) -> Result<bool> {
        self.sink.abandon();
        self.taken.left_out.add(path, Part::Entry, why);
        Ok(false)
    }

    /// Reads the content up to the length that the file had when it was opened. The inner error is the file's.
    fn content(&mut self, file: &File, status: &Status) -> Result<io::Result<()>> {
        let length = status.length;
        let is_sparse = status.allocated < length;
        let mut at = 0;
        while at < length {
            let (data, end) = match is_sparse {
                true => next_data(file, at, length),
                false => (at, length),
            };
            self.sink.hole(data - at)?;
            at = data;
            while at < end {
                self.source.host.check_stop()?;
                let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
                let room = wanted.min(self.buffer.len());
                let room = self.buffer.get_mut(..room).unwrap_or_default();
                match file.read_at(room, at) {
                    Ok(0) => return Ok(Ok(())),
                    Ok(n) => {
                        self.sink.append(room.get(..n).unwrap_or_default())?;
                        self.source.host.progress.advance(n as u64);
                        at += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Ok(Err(e)),
                }
            }
        }
        Ok(Ok(()))
    }
}

/// The next stretch of data at `at` or after it. All is data where the filesystem does not tell of holes.
fn next_data(file: &File, at: u64, length: u64) -> (u64, u64) {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.clamp(at, length),
        Err(Errno::NXIO) => return (length, length),
        Err(_) => return (at, length),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(end) if end > data => (data, end.min(length)),
        _ => (data, length),
    }
}
