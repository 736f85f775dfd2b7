//! Makes the tree of a snapshot again, in an empty directory.
//!
//! Directories and files in full length come first, then the content pack by pack, then owners, attributes, permissions and times, then
//! symbolic links, and the directories' own metadata at last. Each entry is made in a directory that is held open; what is in its place
//! is neither replaced nor written to. Nothing is durable before the last step, one sync of everything.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::left_out::{LeftOut, Part};
use super::part;
use super::replace::DEPOT_PREFIX;
pub use super::settle::Permit;
use super::settle::Settler;
use super::shared::{self, LastFile};
use super::status::Holder;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::frames::Frames;
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Node, NodeKind};
use crate::snapshot::reader::{
    FramePlace, Item, Items, PackOfSnapshot, Place, Snapshot, VisibleFrame, Watch,
};
use crate::snapshot::uses::{Use, Uses};

/// The owner may enter the directory.
const ENTER: u32 = 0o100;
const ALL_OF_OWNER: u32 = 0o700;

/// The result of an extraction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Entries that were made, the root directory among them.
    pub entries: u64,
    /// Bytes of content that were written.
    pub written_bytes: u64,
    /// Things that were not made, or not as they were.
    pub left_out: LeftOut,
}

/// Makes the tree of `snapshot` in the directory `target`, which is empty, with `jobs` threads that write.
///
/// # Errors
/// `Refused` when the directory is not empty; `Damaged` when a check fails; `TargetWrite`, `Full`; `Interrupted`.
pub fn extract(
    snapshot: &Snapshot<'_>,
    target: &Path,
    permit: Permit,
    jobs: usize,
    work: (&Host, &mut dyn FnMut() -> Result<()>),
) -> Result<Extracted> {
    extract_some((snapshot, None), target, permit, jobs, work)
}

/// As [`extract`], of a part of the tree where one is given.
///
/// # Errors
/// Those of [`extract`].
pub fn extract_some(
    (snapshot, part): (&Snapshot<'_>, Option<&part::Part>),
    target: &Path,
    permit: Permit,
    jobs: usize,
    (host, tick): (&Host, &mut dyn FnMut() -> Result<()>),
) -> Result<Extracted> {
    let kept = &mut |_: BorrowedFd<'_>| Ok(());
    extract_filled((snapshot, part), target, permit, jobs, (host, tick), kept)
}

/// As [`extract_some`]. When the content is written and nobody else can read the files yet, `fill` may give them another one; it is handed the target.
///
/// # Errors
/// As [`extract`], and those of `fill`.
pub fn extract_filled(
    (snapshot, part): (&Snapshot<'_>, Option<&part::Part>),
    target: &Path,
    permit: Permit,
    jobs: usize,
    (host, tick): (&Host, &mut dyn FnMut() -> Result<()>),
    fill: &mut dyn FnMut(BorrowedFd<'_>) -> Result<()>,
) -> Result<Extracted> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(target, flags, Mode::empty()).map_err(|e| failed(b"", "open", e))?;
    check_empty(&root, target)?;
    close_to_others(&root, target)?;
    let can_sync = durable::can_sync_filesystem(root.as_fd());
    let mut extraction = Extraction {
        tree: Selected { snapshot, part },
        root: root.as_fd(),
        settler: Settler::new(permit),
        host,
        syncs_each: !can_sync.map_err(not_synced)?,
        missing: BTreeSet::new(),
        done: Extracted::default(),
    };
    extraction.done.written_bytes = match part {
        Some(_) => {
            extraction.make_entries(snapshot.items(), tick)?;
            extraction.copy_part(jobs, tick)?
        }
        None => {
            let mut wanted = Wanted {
                frames: Frames::default(),
                uses: Uses::new(&host.scratch),
            };
            let watch: &mut Watch<'_> = &mut |file, at, place| wanted.add(file, at, place);
            let expected = extraction.make_entries(snapshot.items_watched(watch), tick)?;
            extraction.copy_all((expected, wanted), jobs, tick)?
        }
    };
    fill(root.as_fd())?;
    extraction.finish_files(tick)?;
    extraction.make_symlinks(tick)?;
    extraction.finish_directories(tick)?;
    if !extraction.syncs_each {
        durable::sync_filesystem(root.as_fd()).map_err(not_synced)?;
    }
    Ok(extraction.done)
}

fn not_written(path: &[u8], e: &io::Error) -> Error {
    failed(path, "write", Errno::from_io_error(e).unwrap_or(Errno::IO))
}

fn not_synced(e: io::Error) -> Error {
    Error::from_io("sync the restored files", e)
        .with_code(Code::TargetWrite)
        .hint("Restore into an empty directory once the cause is gone.")
}

fn check_empty(root: &OwnedFd, target: &Path) -> Result<()> {
    let entries = Dir::read_from(root).map_err(|e| failed(b"", "read", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| failed(b"", "read", e))?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            return Err(
                err!(Refused, "directory \"{}\" is not empty", target.display())
                    .hint("It was left as it is. Name an empty directory."),
            );
        }
    }
    Ok(())
}

/// Lets nobody else in before all is done: what they put in an entry's place would get content and owner of the entry. ACLs of the directory go:
/// files would have them, too, and others could read what the backup closes to them.
fn close_to_others(root: &OwnedFd, target: &Path) -> Result<()> {
    let holder = Holder::Open(root.as_fd());
    let status = holder.status().map_err(|e| failed(b"", "look at", e))?;
    let own = rustix::process::geteuid().as_raw();
    if status.uid != own {
        return Err(err!(
            Refused,
            "directory \"{}\" belongs to user {}, and this is user {own}",
            target.display(),
            status.uid
        )
        .hint("Nothing was written. Name a directory of your own, or one that does not exist."));
    }
    holder
        .set_mode(ALL_OF_OWNER)
        .map_err(|e| failed(b"", "close", e))?;
    holder
        .remove_acls()
        .map_err(|e| failed(b"", "remove the ACL of", e))
}

fn failed(path: &[u8], doing: &str, e: Errno) -> Error {
    let error = Error::from_io(format!("{doing} \"{}\"", path.escape_ascii()), e.into());
    match error.code() {
        Code::Full => error.hint("Free space there, then restore into an empty directory."),
        _ => error
            .with_code(Code::TargetWrite)
            .hint("Restore into an empty directory once the cause is gone."),
    }
}

/// Why an entry of a backup with the name of a depot is not made: a journal in it would be carried out.
pub(super) const OF_DEPOT: &str = "the name is that of a directory in which pitr keeps entries";

/// Whether a path has the name of a depot in it.
pub(super) fn is_of_depot(path: &[u8]) -> bool {
    let mut parts = path.split(|b| *b == b'/');
    parts.any(|part| part.starts_with(DEPOT_PREFIX.as_bytes()))
}

/// Whether an error concerns one entry, and not the whole place.
pub(super) fn is_of_entry(e: Errno) -> bool {
    [
        Errno::PERM,
        Errno::ACCESS,
        Errno::EXIST,
        Errno::NAMETOOLONG,
        Errno::INVAL,
        Errno::OPNOTSUPP,
        Errno::NOTSUP,
        Errno::ILSEQ,
        Errno::NODATA,
        Errno::TOOBIG,
        Errno::FBIG,
        Errno::MLINK,
        Errno::RANGE,
    ]
    .contains(&e)
}

/// The parts of packs that files need.
struct Wanted {
    /// Frames that say which files they belong to.
    frames: Frames,
    /// Chunks, which do not.
    uses: Uses,
}

impl Wanted {
    fn add(&mut self, file: &FileKey, at: FramePlace, place: &Place) -> Result<()> {
        if place.chunk.is_none() {
            self.frames.add(at.pack, at.frame);
        }
        self.uses.add(file, at, place)
    }
}

struct Extraction<'e> {
    tree: Selected<'e>,
    root: BorrowedFd<'e>,
    settler: Settler,
    host: &'e Host,
    /// The filesystem cannot be synced as a whole.
    syncs_each: bool,
    /// Entries that could not be made: nothing is written where their names lead to.
    missing: BTreeSet<FileKey>,
    done: Extracted,
}

/// The directory that the entry before was made in: the next one often lies there, too.
#[derive(Default)]
pub(super) struct Above {
    open: Option<(Vec<u8>, OwnedFd)>,
}

impl Above {
    pub(super) fn of<'n>(
        &mut self,
        root: BorrowedFd<'_>,
        path: &'n [u8],
    ) -> rustix::io::Result<(BorrowedFd<'_>, &'n [u8])> {
        let (above, name) = beneath::cut(path);
        if self.open.as_ref().is_none_or(|(open, _)| open != above) {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let fd = beneath::open(root, above, flags, Mode::empty())?;
            self.open = Some((above.to_vec(), fd));
        }
        match &self.open {
            Some((_, fd)) => Ok((fd.as_fd(), name)),
            None => Err(Errno::BADF),
        }
    }
}

/// The entries that are extracted.
#[derive(Clone, Copy)]
pub(super) struct Selected<'e> {
    pub(super) snapshot: &'e Snapshot<'e>,
    pub(super) part: Option<&'e part::Part>,
}

impl Selected<'_> {
    /// Hands out each entry with its node, in key order. A hard link that stands for a file outside the part has that one's node.
    pub(super) fn each(
        self,
        tick: &mut dyn FnMut() -> Result<()>,
        take: impl FnMut(&Item, &Node) -> Result<()>,
    ) -> Result<()> {
        self.each_of(self.snapshot.items(), tick, take)
    }

    /// The same, of a walk through the snapshot.
    fn each_of(
        self,
        items: Items<'_, '_>,
        tick: &mut dyn FnMut() -> Result<()>,
        mut take: impl FnMut(&Item, &Node) -> Result<()>,
    ) -> Result<()> {
        for item in items {
            tick()?;
            let item = item?;
            let node = match &item.metadata {
                Metadata::Node(_) if item.key.is_attachment() => continue,
                Metadata::Node(node) => node,
                _ => return Err(err!(Damaged, "{:?} is no entry of a tree", item.key)),
            };
            let is_directory = node.kind == NodeKind::Directory;
            if let Some(part) = self.part {
                if !part.takes(&item.path, is_directory) {
                    continue;
                }
                if let NodeKind::HardLink(to) = &node.kind
                    && part.leader(to) == Some(&item.key)
                {
                    take(&item, &self.origin(&item, to)?)?;
                    continue;
                }
            }
            take(&item, node)?;
        }
        Ok(())
    }

    /// Returns the node of the entry that a hard link is another name of.
    pub(super) fn origin(self, item: &Item, to: &FileKey) -> Result<Node> {
        match self.snapshot.metadata(to)? {
            Some(Metadata::Node(node))
                if *to < item.key
                    && !to.is_attachment()
                    && !matches!(node.kind, NodeKind::Directory | NodeKind::HardLink(_)) =>
            {
                Ok(*node)
            }
            _ => Err(err!(
                Damaged,
                "{:?} is another name of {to:?}, which can have none",
                item.key
            )),
        }
    }

    /// Returns the entry that has the content of a hard link here.
    pub(super) fn holder<'k>(&'k self, to: &'k FileKey) -> &'k FileKey {
        self.part.and_then(|part| part.leader(to)).unwrap_or(to)
    }
}

impl<'e> Extraction<'e> {
    fn leave(&mut self, item: &Item, why: impl Display) {
        self.done.left_out.add(&item.path, Part::Entry, why);
        self.missing.insert(item.key.clone());
    }

    /// Makes everything that is no link, files in full length; returns how many bytes come from frames.
    fn make_entries(
        &mut self,
        items: Items<'_, '_>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<u64> {
        let tree = self.tree;
        let mut above = Above::default();
        let mut mapped = 0_u64;
        tree.each_of(items, tick, |item, node| {
            let bytes = item.mapped_bytes.saturating_add(item.chunk_bytes);
            mapped = mapped.saturating_add(bytes);
            self.make(&mut above, item, node)
        })?;
        Ok(mapped)
    }

    fn make(&mut self, above: &mut Above, item: &Item, node: &Node) -> Result<()> {
        if item.path.is_empty() {
            self.done.entries += 1;
            return Ok(());
        }
        if is_of_depot(&item.path) {
            self.leave(item, OF_DEPOT);
            return Ok(());
        }
        if self.is_orphan(item)? {
            self.leave(item, "its directory was not made");
            return Ok(());
        }
        let is_special = !matches!(node.kind, NodeKind::Directory | NodeKind::File(_));
        match node.kind {
            NodeKind::Symlink(_) | NodeKind::HardLink(_) => return Ok(()),
            _ if is_special && !self.settler.permit.specials => {
                self.leave(item, "pipes, sockets and devices need --privileged");
                return Ok(());
            }
            _ => {}
        }
        let opened = above.of(self.root, &item.path);
        let made = opened.and_then(|(directory, name)| make_at(directory, name, &node.kind));
        self.made(item, made)
    }

    fn is_orphan(&self, item: &Item) -> Result<bool> {
        let (above, _) = beneath::cut(&item.path);
        Ok(!self.missing.is_empty()
            && self
                .missing
                .contains(&FileKey::from_path(above, Naming::Tree)?))
    }

    /// Counts an entry that was made, or why it was not.
    fn made(&mut self, item: &Item, made: rustix::io::Result<()>) -> Result<()> {
        match made {
            Ok(()) => self.done.entries += 1,
            Err(e) if is_of_entry(e) => self.leave(item, e),
            Err(e) => return Err(failed(&item.path, "make", e)),
        }
        Ok(())
    }

    /// Copies the content of every file, pack by pack; returns how many bytes were written.
    fn copy_all(
        &self,
        (expected, wanted): (u64, Wanted),
        jobs: usize,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<u64> {
        let contents = Contents::new(self, wanted.frames);
        contents.copy(jobs.max(1), tick)?;
        contents.copy_shared(wanted.uses, jobs, tick)?;
        contents.finish(expected)
    }

    /// Copies the content of the part: packs are read as far as it needs them.
    fn copy_part(&self, jobs: usize, tick: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        let mut files = Vec::new();
        self.tree.each(tick, |item, node| {
            if let (NodeKind::File(length), false) = (&node.kind, self.missing.contains(&item.key))
            {
                files.push((item.path.clone(), origin_key(item), *length));
            }
            Ok(())
        })?;
        let mut reader = ContentReader::new(self.tree.snapshot);
        let contents = Contents::new(self, Frames::default());
        let mut uses = Uses::new(&self.host.scratch);
        let (mut written, mut shared_bytes) = (0, 0);
        for (path, from, length) in &files {
            let taken = self.take_uses(&mut uses, path, (from, *length), tick)?;
            if taken > 0 {
                shared_bytes += taken;
                continue;
            }
            let opened = beneath::open(self.root, path, OFlags::WRONLY, Mode::empty());
            let file = File::from(opened.map_err(|e| failed(path, "open", e))?);
            let mut at = 0;
            reader.read(from, *length, &mut |bytes| {
                tick()?;
                // The file has its length, and zeros where nothing is written.
                if bytes.iter().any(|b| *b != 0) {
                    let put = file.write_all_at(bytes, at);
                    put.map_err(|e| not_written(path, &e))?;
                    written += bytes.len() as u64;
                }
                at += bytes.len() as u64;
                self.host.progress.advance(bytes.len() as u64);
                Ok(())
            })?;
        }
        contents.copy_shared(uses, jobs, tick)?;
        Ok(written + contents.finish(shared_bytes)?)
    }

    /// Takes the chunks down that the file at `path` needs, and returns how many bytes they have.
    fn take_uses(
        &self,
        uses: &mut Uses,
        path: &[u8],
        (from, length): (&FileKey, u64),
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<u64> {
        let own = FileKey::from_path(path, Naming::Tree)?;
        let mut bytes = 0;
        for step in self.tree.snapshot.steps(from, length) {
            tick()?;
            for place in step? {
                let Some(at) = place.at.filter(|_| place.chunk.is_some()) else {
                    continue;
                };
                uses.add(&own, at, &place)?;
                bytes += place.length;
            }
        }
        Ok(bytes)
    }

    /// Gives files, pipes, sockets and devices what their nodes say, and their further names.
    fn finish_files(&mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let tree = self.tree;
        let mut above = Above::default();
        tree.each(tick, |item, node| match &node.kind {
            _ if self.missing.contains(&item.key) => Ok(()),
            NodeKind::File(_) => {
                let opened = beneath::open_file(self.root, &item.path);
                let file = File::from(opened.map_err(|e| failed(&item.path, "open", e))?);
                self.settle(Holder::Open(file.as_fd()), &item.path, node)?;
                match self.syncs_each {
                    true => durable::sync_file(&file).map_err(not_synced),
                    false => Ok(()),
                }
            }
            NodeKind::Directory | NodeKind::Symlink(_) => Ok(()),
            NodeKind::HardLink(to) => match self.tree.origin(item, to)?.kind {
                NodeKind::Symlink(_) => Ok(()),
                _ => self.link(&mut above, item, to),
            },
            _ => self.settle_named(&mut above, item, node),
        })
    }

    fn make_symlinks(&mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let tree = self.tree;
        let mut above = Above::default();
        tree.each(tick, |item, node| match &node.kind {
            _ if self.missing.contains(&item.key) => Ok(()),
            NodeKind::Symlink(target) => {
                let target = Path::new(OsStr::from_bytes(target));
                let opened = above.of(self.root, &item.path);
                let made =
                    opened.and_then(|(directory, name)| durable::link_to(directory, name, target));
                self.made(item, made)?;
                match self.missing.contains(&item.key) {
                    true => Ok(()),
                    false => self.settle_named(&mut above, item, node),
                }
            }
            NodeKind::HardLink(to) => match self.tree.origin(item, to)?.kind {
                NodeKind::Symlink(_) => self.link(&mut above, item, to),
                _ => Ok(()),
            },
            _ => Ok(()),
        })
    }

    fn link(&mut self, above: &mut Above, item: &Item, to: &FileKey) -> Result<()> {
        let tree = self.tree;
        let to = tree.holder(to);
        if self.missing.contains(to) {
            self.leave(item, "what it is another name of was not made");
            return Ok(());
        }
        let first = to.path(Naming::Tree);
        let mut above_first = Above::default();
        let made = above_first.of(self.root, &first).and_then(|first| {
            let name = above.of(self.root, &item.path)?;
            durable::name_again(first, name)
        });
        self.made(item, made)
    }

    /// Gives directories what their nodes say. One that its owner could not enter any more gets its permissions last.
    fn finish_directories(&mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let tree = self.tree;
        let mut closed = Vec::new();
        let mut top = None;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        tree.each(tick, |item, node| {
            if node.kind != NodeKind::Directory || self.missing.contains(&item.key) {
                return Ok(());
            }
            if item.path.is_empty() {
                top = Some(node.clone());
                return Ok(());
            }
            let opened = beneath::open(self.root, &item.path, flags, Mode::empty());
            let directory = opened.map_err(|e| failed(&item.path, "open", e))?;
            let mut node = node.clone();
            if node.mode & ENTER == 0 {
                closed.push((item.path.clone(), ALL_OF_OWNER & !node.mode));
                node.mode |= ALL_OF_OWNER;
            }
            self.settle(Holder::Open(directory.as_fd()), &item.path, &node)?;
            self.sync_directory(directory.as_fd())
        })?;
        for (path, lacking) in closed.iter().rev() {
            let opened = beneath::open(self.root, path, flags, Mode::empty());
            let closed = opened.and_then(|directory| {
                let directory = Holder::Open(directory.as_fd());
                directory.set_mode(directory.status()?.mode & !lacking)
            });
            if let Err(e) = closed {
                self.done.left_out.add(path, Part::Mode, e);
            }
        }
        // From here on others may enter.
        if let Some(top) = top {
            self.settle(Holder::Open(self.root), b"", &top)?;
        }
        self.sync_directory(self.root)
    }

    fn sync_directory(&self, directory: BorrowedFd<'_>) -> Result<()> {
        match self.syncs_each {
            true => durable::sync_directory(directory).map_err(not_synced),
            false => Ok(()),
        }
    }

    fn settle_named(&mut self, above: &mut Above, item: &Item, node: &Node) -> Result<()> {
        let (directory, name) = above
            .of(self.root, &item.path)
            .map_err(|e| failed(&item.path, "open", e))?;
        self.settle(Holder::Named(directory, name), &item.path, node)
    }

    fn settle(&mut self, holder: Holder<'_>, path: &[u8], node: &Node) -> Result<()> {
        self.settler
            .settle(holder, path, node, &mut self.done.left_out)
    }
}

pub(super) fn make_at(
    directory: BorrowedFd<'_>,
    name: &[u8],
    kind: &NodeKind,
) -> rustix::io::Result<()> {
    let (mode, no_device) = (Mode::RUSR | Mode::WUSR, rustix::fs::makedev(0, 0));
    let node = |kind, device| rustix::fs::mknodat(directory, name, kind, mode, device);
    match kind {
        NodeKind::Directory => rustix::fs::mkdirat(directory, name, Mode::RWXU),
        NodeKind::File(length) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(directory, name, flags, mode)?;
            // The file is new and ours: without its length it is worth nothing.
            rustix::fs::ftruncate(&file, *length).inspect_err(|_| {
                let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            })
        }
        NodeKind::Fifo => node(FileType::Fifo, no_device),
        NodeKind::Socket => node(FileType::Socket, no_device),
        NodeKind::CharDevice(device) => {
            let device = rustix::fs::makedev(device.major, device.minor);
            node(FileType::CharacterDevice, device)
        }
        NodeKind::BlockDevice(device) => {
            let device = rustix::fs::makedev(device.major, device.minor);
            node(FileType::BlockDevice, device)
        }
        NodeKind::Symlink(_) | NodeKind::HardLink(_) => Ok(()),
    }
}

/// The content on its way out of the packs, on several threads.
struct Contents<'c, 'e> {
    extraction: &'c Extraction<'e>,
    /// The frames that files need.
    wanted: Frames,
    /// The next frame of the pack.
    next: AtomicU32,
    seen: AtomicU64,
    written: AtomicU64,
}

impl<'c, 'e> Contents<'c, 'e> {
    fn new(extraction: &'c Extraction<'e>, wanted: Frames) -> Contents<'c, 'e> {
        Contents {
            extraction,
            wanted,
            next: AtomicU32::new(0),
            seen: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Returns how many bytes were written, once all were delivered that the map leads to.
    fn finish(self, expected: u64) -> Result<u64> {
        let seen = self.seen.into_inner();
        match seen == expected {
            true => Ok(self.written.into_inner()),
            false => Err(err!(
                Damaged,
                "the packs hold {seen} bytes of the backup, its map leads to {expected}"
            )),
        }
    }

    /// Copies content that files share.
    fn copy_shared(
        &self,
        uses: Uses,
        jobs: usize,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let put = |of: &Use, bytes: &[u8], last: &mut LastFile| {
            self.extraction.host.check_stop()?;
            if !of.file.is_attachment() {
                self.seen.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            self.put(&of.file, of.position, bytes, last)
        };
        let snapshot = self.extraction.tree.snapshot;
        shared::copy(snapshot, uses, jobs.max(1), &put, tick)
    }

    fn copy(&self, jobs: usize, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let snapshot = self.extraction.tree.snapshot;
        for index in self.wanted.packs() {
            tick()?;
            let pack = &snapshot.pack(index)?;
            self.next.store(0, Ordering::Relaxed);
            std::thread::scope(|threads| {
                let threads: Vec<_> = (0..jobs)
                    .map(|_| threads.spawn(|| self.frames(pack)))
                    .collect();
                threads.into_iter().try_for_each(|thread| {
                    let panicked = |_| Err(err!(Internal, "a thread that writes files panicked"));
                    thread.join().unwrap_or_else(panicked)
                })
            })?;
        }
        Ok(())
    }

    fn frames(&self, pack: &PackOfSnapshot<'_, '_>) -> Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= pack.frame_count() {
                return Ok(());
            }
            self.extraction.host.check_stop()?;
            if !self.wanted.contains(pack.index(), number) {
                continue;
            }
            let written = pack.frame(number).and_then(|frame| self.write(&frame));
            // The others have no reason to go on.
            written.inspect_err(|_| self.next.store(pack.frame_count(), Ordering::Relaxed))?;
        }
    }

    fn write(&self, frame: &VisibleFrame) -> Result<()> {
        let mut last = None;
        for visible in &frame.visible {
            let key = match frame.file(visible) {
                Some(key) if !key.is_attachment() => key,
                _ => continue,
            };
            self.seen
                .fetch_add(u64::from(visible.length), Ordering::Relaxed);
            self.put(key, visible.position, frame.bytes(visible), &mut last)?;
        }
        Ok(())
    }

    /// Writes bytes into a file of the tree, where it was made.
    fn put(&self, key: &FileKey, position: u64, bytes: &[u8], last: &mut LastFile) -> Result<()> {
        if key.is_attachment() || self.extraction.missing.contains(key) {
            return Ok(());
        }
        let path = || key.path(Naming::Tree);
        let file = match last {
            Some((same, file)) if same == key => file,
            _ => {
                let (root, flags) = (self.extraction.root, OFlags::WRONLY);
                let opened = beneath::open(root, &path(), flags, Mode::empty());
                let file = File::from(opened.map_err(|e| failed(&path(), "open", e))?);
                &mut last.insert((key.clone(), file)).1
            }
        };
        let written = file.write_all_at(bytes, position);
        written.map_err(|e| not_written(&path(), &e))?;
        let length = bytes.len() as u64;
        self.written.fetch_add(length, Ordering::Relaxed);
        self.extraction.host.progress.advance(length);
        Ok(())
    }
}

/// The key under which the map has the content of an entry. A hard link that stands for a file outside the part has that one's.
pub(super) fn origin_key(item: &Item) -> FileKey {
    match &item.metadata {
        Metadata::Node(own) => match &own.kind {
            NodeKind::HardLink(to) => to.clone(),
            _ => item.key.clone(),
        },
        _ => item.key.clone(),
    }
}
