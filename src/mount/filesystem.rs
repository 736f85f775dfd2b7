//! The kernel's requests: names and metadata are those of the local directory, content is brought before it is read.
//!
//! Nothing is cached for writing and nothing read around the cache of the kernel: what a write has returned for is in the local directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::filler::Queue;
use super::nodes::Nodes;
use super::shadow::{Hollow, Shadow, cut_block, partly};
use crate::lock::locked;

/// How long the kernel may remember names and sizes: nobody else changes them.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// The most that is written at once.
const WRITE_MAX_BYTES: u32 = 1 << 20;
/// Directory entries need a number that nobody looks at.
const ANY_NUMBER: INodeNo = INodeNo(u64::MAX);

/// The mounted directory.
pub struct Mounted {
    shadow: Arc<Shadow>,
    queue: Arc<Queue>,
    nodes: Mutex<Nodes>,
    open: RwLock<HashMap<u64, Arc<Open>>>,
    listed: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
    next: AtomicU64,
}

/// A file that a program has open.
struct Open {
    number: u64,
    file: File,
    hollow: Option<Arc<Hollow>>,
}

/// A name in a directory, and what has it.
type Listed = (OsString, FileType);

impl Mounted {
    /// Shows `shadow`; `queue` leads to the threads that bring content.
    pub fn new(shadow: Arc<Shadow>, queue: Arc<Queue>) -> Mounted {
        Mounted {
            shadow,
            queue,
            nodes: Mutex::new(Nodes::new()),
            open: RwLock::default(),
            listed: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }

    fn path(&self, number: INodeNo) -> Result<PathBuf> {
        let nodes = locked(&self.nodes);
        let path = nodes.path(number.0).map(Path::to_owned);
        path.ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn handle(&self, handle: FileHandle) -> Result<Arc<Open>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let found = open.get(&handle.0).cloned();
        found.ok_or_else(|| Error::from_raw_os_error(rustix::io::Errno::BADF.raw_os_error()))
    }

    fn add_handle(&self, open: Open) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let mut all = self.open.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(handle, Arc::new(open));
        FileHandle(handle)
    }

    /// A file that some program has open, though it may have no name any more.
    fn any_handle(&self, number: INodeNo) -> Option<Arc<Open>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().find(|o| o.number == number.0).cloned()
    }

    /// Learns a path and answers with its metadata.
    fn entry(&self, path: &Path) -> Result<FileAttr> {
        let metadata = self.shadow.directory.metadata(path)?;
        let number = locked(&self.nodes).look_up(path);
        Ok(attributes(number, &metadata))
    }

    fn metadata(&self, number: INodeNo) -> Result<FileAttr> {
        let path = locked(&self.nodes).path(number.0).map(Path::to_owned);
        let metadata = match path {
            Some(path) => self.shadow.directory.metadata(&path)?,
            None => {
                let open = self.any_handle(number);
                let open = open.ok_or_else(|| Error::from(ErrorKind::NotFound))?;
                open.file.metadata()?
            }
        };
        let mut found = attributes(number.0, &metadata);
        if let (INodeNo::ROOT, Some(owner)) = (number, self.shadow.owner) {
            (found.uid, found.gid) = owner;
        }
        Ok(found)
    }

    fn bring(&self, hollow: &Arc<Hollow>, from: u64, to: u64) -> Result<()> {
        // The cause was told; a program gets no wrong bytes.
        let brought = self.queue.bring(hollow, from, to);
        brought.map_err(|e| self.queue.failed(e))
    }

    fn read_at(&self, open: &Open, from: u64, size: u32) -> Result<Vec<u8>> {
        if let Some(hollow) = &open.hollow {
            self.bring(hollow, from, from + u64::from(size))?;
        }
        let mut bytes = vec![0; size as usize];
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match open.file.read_at(rest, from + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write_at(&self, open: &Open, from: u64, bytes: &[u8]) -> Result<()> {
        let Some(hollow) = &open.hollow else {
            return open.file.write_all_at(bytes, from);
        };
        for (from, to) in partly(from, from + bytes.len() as u64) {
            self.bring(hollow, from, to)?;
        }
        hollow.write(&open.file, bytes, from)
    }

    fn set_length(&self, number: INodeNo, handle: Option<FileHandle>, length: u64) -> Result<()> {
        let open = match handle {
            Some(handle) => self.handle(handle)?,
            None => {
                let path = self.path(number)?;
                Arc::new(Open {
                    number: number.0,
                    file: self.shadow.directory.file(&path, true)?,
                    hollow: self.shadow.of_path(&path),
                })
            }
        };
        let Some(hollow) = &open.hollow else {
            return open.file.set_len(length);
        };
        if let Some((from, to)) = cut_block(length) {
            self.bring(hollow, from, to)?;
        }
        hollow.set_length(&open.file, length)
    }

    fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, flags): (u32, i32),
    ) -> Result<(FileAttr, FileHandle)> {
        let path = self.child(parent, name)?;
        let excl = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0);
        let file = self
            .shadow
            .directory
            .create(&path, mode, flags & excl != 0)?;
        self.give(request, &path)?;
        let attributes = self.entry(&path)?;
        let handle = self.add_handle(Open {
            number: attributes.ino.0,
            file,
            hollow: self.shadow.of_path(&path),
        });
        Ok((attributes, handle))
    }

    fn open_file(&self, number: INodeNo, flags: OpenFlags) -> Result<FileHandle> {
        let path = self.path(number)?;
        let hollow = self.shadow.of_path(&path);
        let is_written = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let file = self.shadow.directory.file(&path, is_written)?;
        Ok(self.add_handle(Open {
            number: number.0,
            file,
            hollow,
        }))
    }

    fn remove(&self, parent: INodeNo, name: &OsStr) -> Result<()> {
        let path = self.child(parent, name)?;
        let remove = || self.shadow.directory.remove(&path, false);
        self.shadow.removed(&path, remove)?;
        locked(&self.nodes).removed(&path);
        Ok(())
    }

    fn list(&self, number: INodeNo) -> Result<Vec<Listed>> {
        let path = self.path(number)?;
        let mut listed = Vec::from([".", ".."].map(|name| (name.into(), FileType::Directory)));
        for (name, kind) in self.shadow.directory.list(&path)? {
            let kind = match kind {
                rustix::fs::FileType::Directory => FileType::Directory,
                rustix::fs::FileType::Symlink => FileType::Symlink,
                _ => FileType::RegularFile,
            };
            listed.push((name, kind));
        }
        Ok(listed)
    }

    /// Gives what root made through the mount to the program that made it.
    fn give(&self, request: &Request, path: &Path) -> Result<()> {
        match rustix::process::geteuid().is_root() {
            true => self
                .shadow
                .directory
                .give(path, request.uid(), request.gid()),
            false => Ok(()),
        }
    }
}

fn attributes(number: u64, metadata: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanoseconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
        UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    };
    FileAttr {
        ino: INodeNo(number),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile),
        perm: u16::try_from(metadata.mode() & 0o7777).unwrap_or(0o700),
        nlink: u32::try_from(metadata.nlink()).unwrap_or(1),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn give_entry(reply: ReplyEntry, found: Result<FileAttr>) {
    match found {
        Ok(found) => reply.entry(&REMEMBERED, &found, Generation(0)),
        Err(e) => reply.error(e.into()),
    }
}

fn give_attributes(reply: ReplyAttr, found: Result<FileAttr>) {
    match found {
        Ok(found) => reply.attr(&REMEMBERED, &found),
        Err(e) => reply.error(e.into()),
    }
}

fn end(reply: ReplyEmpty, done: Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e.into()),
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> Result<()> {
        let _ = config.set_max_write(WRITE_MAX_BYTES);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.child(parent, name);
        give_entry(reply, path.and_then(|path| self.entry(&path)));
    }

    fn forget(&self, _: &Request, number: INodeNo, times: u64) {
        locked(&self.nodes).forget(number.0, times);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        give_attributes(reply, self.metadata(number));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            if uid.is_some() || gid.is_some() {
                return Err(ErrorKind::PermissionDenied.into());
            }
            if let Some(size) = size {
                self.set_length(number, handle, size)?;
            }
            if let Some(mode) = mode {
                self.shadow.directory.set_mode(&self.path(number)?, mode)?;
            }
            self.metadata(number)
        };
        give_attributes(reply, set());
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let path = self.path(number);
        match path.and_then(|path| self.shadow.directory.link_text(&path)) {
            Ok(text) => reply.data(text.as_bytes()),
            Err(e) => reply.error(e.into()),
        }
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let make = || {
            let path = self.child(parent, name)?;
            self.shadow.directory.make_directory(&path, mode)?;
            self.give(request, &path)?;
            self.entry(&path)
        };
        give_entry(reply, make());
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        end(reply, self.remove(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || {
            let path = self.child(parent, name)?;
            self.shadow.directory.remove(&path, true)?;
            locked(&self.nodes).removed(&path);
            Ok(())
        };
        end(reply, remove());
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        text: &Path,
        reply: ReplyEntry,
    ) {
        let make = || {
            let path = self.child(parent, name)?;
            self.shadow.directory.make_link(&path, text)?;
            self.give(request, &path)?;
            self.entry(&path)
        };
        give_entry(reply, make());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || {
            if !flags.is_empty() {
                return Err(ErrorKind::InvalidInput.into());
            }
            let (from, to) = (self.child(parent, name)?, self.child(new_parent, new_name)?);
            let rename = || self.shadow.directory.rename(&from, &to);
            self.shadow.renamed(&from, &to, rename)?;
            let is_directory = self.shadow.is_directory(&to);
            locked(&self.nodes).renamed(&from, &to, is_directory);
            Ok(())
        };
        end(reply, rename());
    }

    fn link(
        &self,
        _: &Request,
        number: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let link = || {
            let (from, to) = (self.path(number)?, self.child(new_parent, new_name)?);
            // A file of the backup has one name, by which it is filled.
            if self.shadow.of_path(&from).is_some() {
                return Err(ErrorKind::PermissionDenied.into());
            }
            self.shadow.directory.add_name(&from, &to)?;
            locked(&self.nodes).linked(number.0, &to);
            self.metadata(number)
        };
        give_entry(reply, link());
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_file(number, flags) {
            Ok(handle) => reply.opened(handle, kept()),
            Err(e) => reply.error(e.into()),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_file(request, parent, name, (mode, flags)) {
            Ok((made, handle)) => {
                reply.created(&REMEMBERED, &made, Generation(0), handle, kept());
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let open = self.handle(handle);
        match open.and_then(|open| self.read_at(&open, offset, size)) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let open = self.handle(handle);
        match open.and_then(|open| self.write_at(&open, offset, bytes)) {
            Ok(()) => reply.written(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let closed = open.remove(&handle.0);
        drop(open);
        drop(closed);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let sync = |open: Arc<Open>| {
            let sync = || match datasync {
                true => open.file.sync_data(),
                false => open.file.sync_all(),
            };
            match &open.hollow {
                Some(hollow) => hollow.sync(sync),
                None => sync(),
            }
        };
        end(reply, self.handle(handle).and_then(sync));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // Room at the end, as PostgreSQL asks for; what would change content is refused.
        if mode != 0 {
            return reply.error(Errno::ENOTSUP);
        }
        let none = rustix::fs::FallocateFlags::empty();
        let allocate = |open: Arc<Open>| {
            rustix::fs::fallocate(&open.file, none, offset, length)?;
            if let Some(hollow) = &open.hollow {
                hollow.changed();
            }
            Ok(())
        };
        end(reply, self.handle(handle).and_then(allocate));
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.list(number) {
            Ok(listed) => {
                let handle = self.next.fetch_add(1, Ordering::Relaxed);
                let mut all = locked(&self.listed);
                all.insert(handle, Arc::new(listed));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let all = locked(&self.listed);
        let Some(listed) = all.get(&handle.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        drop(all);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, kind)) in listed.iter().enumerate().skip(from) {
            if reply.add(ANY_NUMBER, at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let mut all = locked(&self.listed);
        all.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let path = self.path(number);
        let synced = path.and_then(|path| self.shadow.directory.sync(&path));
        end(reply, synced);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.shadow.directory.room() {
            Ok(found) => reply.statfs(
                found.f_blocks,
                found.f_bfree,
                found.f_bavail,
                found.f_files,
                found.f_ffree,
                u32::try_from(found.f_bsize).unwrap_or(4096),
                u32::try_from(found.f_namemax).unwrap_or(255),
                u32::try_from(found.f_frsize).unwrap_or(4096),
            ),
            Err(e) => reply.error(e.into()),
        }
    }
}

/// The kernel keeps what it has read when a file is opened again, and does not tell when it is closed.
fn kept() -> FopenFlags {
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
}
