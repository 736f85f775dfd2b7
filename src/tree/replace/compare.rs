//! Compares a directory with a snapshot: finds the entries that are made, replaced or removed, and changes nothing.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::below::{Obstacle, obstacle};
use super::{Contents, DEPOT_PREFIX, Removes, Target, Volume, Wanted, failed, look, names_in, see};
use crate::error::Result;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Node, NodeKind};
use crate::snapshot::reader::Item;
use crate::tree::beneath;
use crate::tree::extract::{Above, OF_DEPOT, Selected, is_of_depot, is_of_entry, origin_key};
use crate::tree::left_out::{LeftOut, Part};
use crate::tree::settle::Settler;
use crate::tree::status::{Holder, Status, XattrReader};

const BUFFER_BYTES: usize = 64 << 10;

/// Each depot is one directory, and entries do not move from one filesystem to another.
const OTHER_FILESYSTEM: &str =
    "lies on another filesystem: name that directory as the target of a restore of its own";

/// An entry that is made, or takes the place of another one.
pub(super) struct Put {
    pub(super) key: FileKey,
    pub(super) path: Vec<u8>,
    pub(super) node: Node,
    pub(super) origin: Origin,
    /// Whether nothing is there.
    pub(super) is_new: bool,
    /// Whether a directory is there.
    pub(super) was_directory: bool,
}

/// The origin of an entry's content.
pub(super) enum Origin {
    /// It has none: a directory, a symbolic link, a pipe, a socket, a device.
    Node,
    /// A file of the map, of this length.
    Content(FileKey, u64),
    /// Another name of an entry of the target.
    Name(FileKey),
}

/// An entry that the backup lacks.
pub(super) struct Remove {
    pub(super) path: Vec<u8>,
}

/// A directory whose attributes are set, or whose entries change.
pub(super) struct Settled {
    pub(super) path: Vec<u8>,
    /// Attributes that it gets; none where it keeps its own.
    pub(super) node: Option<Node>,
    /// Attributes that it has; none where it is made.
    pub(super) was: Option<Was>,
    differs: bool,
}

/// The attributes of a directory.
pub(super) struct Was {
    pub(super) status: Status,
    /// None where one of them could not be read.
    pub(super) xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The entry is made.
    Create,
    /// It takes the place of another one.
    Replace,
    /// It goes.
    Remove,
    /// The directory gets other attributes.
    Settle,
}

/// All that a restore changes.
#[derive(Default)]
pub struct Plan {
    pub(super) puts: Vec<Put>,
    pub(super) removes: Vec<Remove>,
    /// Parents come first.
    pub(super) directories: Vec<Settled>,
    /// Entries that stay as they are.
    pub kept: u64,
    /// Bytes of files that are made or replaced.
    pub content_bytes: u64,
    /// Things that the restore does not make, or not as they were.
    pub left_out: LeftOut,
    /// Attributes that entries which are made would not get. The restore itself names them when it makes the entries.
    pub foreseen: LeftOut,
}

impl Plan {
    /// The changes, with their paths.
    pub fn changes(&self) -> impl Iterator<Item = (Change, &[u8])> {
        let puts = self.puts.iter().map(|put| match put.is_new {
            true => (Change::Create, &*put.path),
            false => (Change::Replace, &*put.path),
        });
        let removes = self.removes.iter();
        let removes = removes.map(|remove| (Change::Remove, &*remove.path));
        let settled = self.directories.iter().filter(|one| one.differs);
        let settled = settled.map(|one| (Change::Settle, &*one.path));
        puts.chain(removes).chain(settled)
    }

    /// How many changes of a kind there are.
    pub fn count(&self, kind: Change) -> u64 {
        self.changes().filter(|(change, _)| *change == kind).count() as u64
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none()
    }
}

impl Target {
    /// Finds what a restore changes.
    ///
    /// # Errors
    /// `Damaged` when a check of the backup fails; `TargetWrite` when the target cannot be read; those of `tick`.
    pub fn compare(
        &self,
        wanted: &Wanted<'_, '_>,
        contents: &mut dyn Contents,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Plan> {
        let tree = Selected {
            snapshot: wanted.snapshot,
            part: wanted.part,
        };
        // The walk has it, and so has content that is compared.
        let tick = RefCell::new(tick);
        let mut comparison = Comparison {
            tick: &tick,
            root: self.root.as_fd(),
            wanted,
            tree,
            contents,
            settler: Settler::new(wanted.permit),
            xattrs: XattrReader::new(),
            above: Above::default(),
            volume: volume_of(self.root.as_fd(), &self.home)?,
            as_made: as_made(self.root.as_fd())?,
            last: None,
            home: &self.home,
            fresh: HashSet::new(),
            skipped: HashSet::new(),
            kept: HashMap::new(),
            claimed: HashSet::new(),
            plan: Plan::default(),
        };
        tree.each(&mut || (tick.borrow_mut())(), |item, node| {
            comparison.entry(item, node)
        })?;
        if let Some(removes) = wanted.removes {
            comparison.strays(removes)?;
        }
        Ok(comparison.finish())
    }
}

type Inode = (u64, u64);

struct Comparison<'c, 't, 'w, 's> {
    root: BorrowedFd<'c>,
    wanted: &'c Wanted<'w, 's>,
    tree: Selected<'c>,
    contents: &'c mut dyn Contents,
    tick: &'c RefCell<&'t mut (dyn FnMut() -> Result<()> + 't)>,
    settler: Settler,
    xattrs: XattrReader,
    above: Above,
    /// The one that the depot lies in.
    volume: Volume,
    /// The status of an entry that we make: its owner alone counts.
    as_made: Status,
    /// Whether the directory that was asked about last lies in it.
    last: Option<(Vec<u8>, bool)>,
    /// The directory that the depot lies in.
    home: &'c [u8],
    /// Directories that are made.
    fresh: HashSet<Vec<u8>>,
    /// Entries that are not made.
    skipped: HashSet<FileKey>,
    /// Files that stay and have several names.
    kept: HashMap<FileKey, Inode>,
    /// The same files: each one is one file of the backup.
    claimed: HashSet<Inode>,
    plan: Plan,
}

impl Comparison<'_, '_, '_, '_> {
    fn entry(&mut self, item: &Item, node: &Node) -> Result<()> {
        let path = &item.path;
        if path.is_empty() {
            let status = Status::of(self.root).map_err(|e| failed(b"", "look at", e))?;
            return self.directory(path, node, &status);
        }
        if is_of_depot(path) {
            self.leave(item, OF_DEPOT);
            return Ok(());
        }
        if self.is_orphan(path)? {
            self.leave(item, "its directory was not made");
            return Ok(());
        }
        let is_fresh = self.fresh.contains(beneath::cut(path).0);
        let found = match is_fresh {
            true => Ok(None),
            false => look(&mut self.above, self.root, path),
        };
        let found = match found {
            Ok(found) => found,
            Err(e) if is_of_entry(e) || e == Errno::NOTDIR || e == Errno::LOOP => {
                self.leave(item, e);
                return Ok(());
            }
            Err(e) => return Err(failed(path, "look at", e)),
        };
        match (&node.kind, &found) {
            (NodeKind::Directory, Some(found)) if found.kind == FileType::Directory => {
                self.directory(path, node, found)
            }
            (NodeKind::HardLink(to), _) => {
                // A key that the backup has no file under would lead to any file of the target.
                self.tree.origin(item, to)?;
                let to = self.tree.holder(to).clone();
                self.name(item, node, to, found)
            }
            _ if self.is_unwanted_special(node) => {
                match found.filter(|found| has_type(&node.kind, found)) {
                    Some(found) => self.keep(item, &found),
                    None => self.leave(item, "pipes, sockets and devices need --privileged"),
                }
                Ok(())
            }
            (_, Some(found)) if self.is_same(item, node, found)? => {
                self.keep(item, found);
                Ok(())
            }
            _ => {
                let origin = match &node.kind {
                    NodeKind::File(length) => Origin::Content(origin_key(item), *length),
                    _ => Origin::Node,
                };
                self.put(item, node, origin, found)
            }
        }
    }

    fn keep(&mut self, item: &Item, found: &Status) {
        self.plan.kept += 1;
        if found.links > 1 {
            let inode = (found.device, found.inode);
            self.kept.insert(item.key.clone(), inode);
        }
    }

    fn is_unwanted_special(&self, node: &Node) -> bool {
        let is_special = !matches!(
            node.kind,
            NodeKind::Directory | NodeKind::File(_) | NodeKind::Symlink(_)
        );
        is_special && !self.settler.permit.specials
    }

    fn is_orphan(&self, path: &[u8]) -> Result<bool> {
        let (above, _) = beneath::cut(path);
        Ok(!self.skipped.is_empty()
            && self
                .skipped
                .contains(&FileKey::from_path(above, Naming::Tree)?))
    }

    fn leave(&mut self, item: &Item, why: impl std::fmt::Display) {
        self.plan.left_out.add(&item.path, Part::Entry, why);
        self.skipped.insert(item.key.clone());
    }

    /// Takes down a directory that is there.
    fn directory(&mut self, path: &[u8], node: &Node, status: &Status) -> Result<()> {
        let is_named = self
            .wanted
            .part
            .is_none_or(|part| part.is_named(path, true));
        let gets = is_named && self.wanted.settles_directories;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = beneath::open(self.root, path, flags, Mode::empty());
        let xattrs = match opened {
            Ok(directory) => self.xattrs_of(Holder::Open(directory.as_fd())),
            Err(e) if is_of_entry(e) => {
                // Entries below it are looked at all the same; the system says what may not be.
                self.plan.left_out.add(path, Part::Content, e);
                None
            }
            Err(e) => return Err(failed(path, "open", e)),
        };
        let mut differs = false;
        if gets {
            let left_out = &mut self.plan.left_out;
            let due = self.settler.due(status, path, node, left_out);
            differs = due.owner.is_some()
                || due.mode != Some(status.mode)
                || node.mtime != status.mtime
                || !self.has_xattrs(xattrs.as_deref(), &due.xattrs);
        }
        if !self.is_in_volume(path)? {
            match differs {
                true => self.plan.left_out.add(path, Part::Entry, OTHER_FILESYSTEM),
                false => self.plan.kept += 1,
            }
            return Ok(());
        }
        self.plan.kept += u64::from(!differs);
        self.plan.directories.push(Settled {
            path: path.to_vec(),
            node: gets.then(|| node.clone()),
            was: Some(Was {
                status: *status,
                xattrs,
            }),
            differs,
        });
        Ok(())
    }

    /// The attributes of an entry; none where one cannot be read.
    fn xattrs_of(&mut self, holder: Holder<'_>) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut is_whole = true;
        let found = self.xattrs.read(holder, &mut |_| is_whole = false);
        is_whole.then_some(found)
    }

    /// Whether an entry has these attributes, and none that a restore would not make. Labels that the system makes by itself do not count.
    fn has_xattrs(
        &self,
        found: Option<&[(Vec<u8>, Vec<u8>)]>,
        due: &[&(Vec<u8>, Vec<u8>)],
    ) -> bool {
        let Some(found) = found else { return false };
        due.iter().all(|xattr| found.contains(xattr))
            && found
                .iter()
                .all(|xattr| !self.settler.counts(&xattr.0) || due.contains(&xattr))
    }

    /// Compares another name of a file.
    fn name(&mut self, item: &Item, node: &Node, to: FileKey, found: Option<Status>) -> Result<()> {
        if self.skipped.contains(&to) {
            self.leave(item, "what it is another name of was not made");
            return Ok(());
        }
        let inode = found.map(|found| (found.device, found.inode));
        if inode.is_some() && self.kept.get(&to) == inode.as_ref() {
            self.plan.kept += 1;
            return Ok(());
        }
        let path = to.path(Naming::Tree);
        let of_depot = is_of_depot(&path).then_some(OF_DEPOT);
        let refused = || {
            self.wanted
                .refuses
                .and_then(|refuses| refuses(&path, false))
        };
        if let Some(why) = of_depot.or_else(refused) {
            self.leave(item, format!("what it is another name of: {why}"));
            return Ok(());
        }
        self.put(item, node, Origin::Name(to), found)
    }

    /// Whether an entry is as the backup has it.
    fn is_same(&mut self, item: &Item, node: &Node, found: &Status) -> Result<bool> {
        if !has_type(&node.kind, found) || node.mtime != found.mtime {
            return Ok(false);
        }
        let inode = (found.device, found.inode);
        if found.links > 1 && self.claimed.contains(&inode) {
            return Ok(false);
        }
        let mut left_out = LeftOut::default();
        let due = self.settler.due(found, &item.path, node, &mut left_out);
        let has_mode = due.mode.is_none_or(|mode| mode == found.mode);
        if due.owner.is_some() || !has_mode {
            return Ok(false);
        }
        let above = self.above.of(self.root, &item.path);
        let (directory, name) = above.map_err(|e| failed(&item.path, "open", e))?;
        if let NodeKind::Symlink(target) = &node.kind {
            let target_now = rustix::fs::readlinkat(directory, name, Vec::new());
            if !target_now.is_ok_and(|now| now.as_bytes() == target) {
                return Ok(false);
            }
        }
        let mut is_whole = true;
        let xattrs = self
            .xattrs
            .read(Holder::Named(directory, name), &mut |_| is_whole = false);
        let xattrs = is_whole.then_some(xattrs);
        if !self.has_xattrs(xattrs.as_deref(), &due.xattrs) {
            return Ok(false);
        }
        if let NodeKind::File(length) = node.kind {
            let has_content = match self.wanted.trusts_times {
                true => found.length == length,
                false => self.has_content(item, length)?,
            };
            if !has_content {
                return Ok(false);
            }
        }
        if found.links > 1 {
            self.claimed.insert(inode);
        }
        self.plan.left_out.merge(left_out);
        Ok(true)
    }

    /// Compares the content of a file byte by byte. One that cannot be read differs.
    fn has_content(&mut self, item: &Item, length: u64) -> Result<bool> {
        let Ok(file) = beneath::open_file(self.root, &item.path) else {
            return Ok(false);
        };
        let mut file = File::from(file);
        // It may be a secret.
        let mut buffer = Zeroizing::new(vec![0; BUFFER_BYTES]);
        let mut is_same = true;
        let (from, tick) = (origin_key(item), self.tick);
        self.contents
            .read(&item.path, (&from, length), &mut |bytes| {
                (tick.borrow_mut())()?;
                for piece in bytes.chunks(BUFFER_BYTES) {
                    let found = buffer.get_mut(..piece.len()).unwrap_or_default();
                    is_same = is_same && file.read_exact(found).is_ok() && found == piece;
                }
                Ok(())
            })?;
        let is_at_end = matches!(file.read(&mut [0]), Ok(0));
        Ok(is_same && is_at_end)
    }

    fn put(
        &mut self,
        item: &Item,
        node: &Node,
        origin: Origin,
        found: Option<Status>,
    ) -> Result<()> {
        let refuses = self.wanted.refuses;
        let is_directory = node.kind == NodeKind::Directory;
        if let Some(why) = refuses.and_then(|refuses| refuses(&item.path, is_directory)) {
            self.leave(item, why);
            return Ok(());
        }
        let was_directory = found.is_some_and(|found| found.kind == FileType::Directory);
        let (above, _) = beneath::cut(&item.path);
        if !self.fresh.contains(above) {
            if !self.is_in_volume(above)? {
                self.leave(item, OTHER_FILESYSTEM);
                return Ok(());
            }
            if found.is_some()
                && let Some(why) = self.stays(&item.path, was_directory)?
            {
                self.leave(item, why);
                return Ok(());
            }
        }
        if node.kind == NodeKind::Directory {
            self.fresh.insert(item.path.clone());
            self.plan.directories.push(Settled {
                path: item.path.clone(),
                node: Some(node.clone()),
                was: None,
                differs: false,
            });
        }
        if !matches!(origin, Origin::Name(_)) {
            let foreseen = &mut self.plan.foreseen;
            self.settler.due(&self.as_made, &item.path, node, foreseen);
        }
        if let Origin::Content(_, length) = &origin {
            self.plan.content_bytes = self.plan.content_bytes.saturating_add(*length);
        }
        self.plan.puts.push(Put {
            key: item.key.clone(),
            path: item.path.clone(),
            node: node.clone(),
            origin,
            is_new: found.is_none(),
            was_directory,
        });
        Ok(())
    }

    /// Whether a directory lies where the depot does: entries move between the two.
    fn is_in_volume(&mut self, directory: &[u8]) -> Result<bool> {
        if let Some((_, known)) = self.last.as_ref().filter(|(last, _)| last == directory) {
            return Ok(*known);
        }
        let is_in = volume_of(self.root, directory)? == self.volume;
        self.last = Some((directory.to_vec(), is_in));
        Ok(is_in)
    }

    /// The reason for which an entry may not give way.
    fn stays(&mut self, path: &[u8], is_directory: bool) -> Result<Option<String>> {
        if is_directory {
            match self.wanted.removes {
                None => {
                    let why = "a directory is in its place, and nothing may be removed";
                    return Ok(Some(why.to_owned()));
                }
                Some(removes) if !removes(path)? => {
                    let why = "a directory is in its place that the rules leave out of backups";
                    return Ok(Some(why.to_owned()));
                }
                Some(_) => {}
            }
        }
        let everything: &Removes<'_> = &|_| Ok(true);
        let removes = self.wanted.removes.unwrap_or(everything);
        let mut parent = Above::default();
        let at = parent.of(self.root, path);
        let at = at.map_err(|e| failed(path, "open", e))?;
        let found = self.obstacle(at, path, removes)?;
        Ok(found.map(|found| format!("an entry is in its place and stays: {found}")))
    }

    /// Finds entries that the backup lacks, in the directories that stay.
    fn strays(&mut self, removes: &Removes<'_>) -> Result<()> {
        let directories = std::mem::take(&mut self.plan.directories);
        let stay = directories.iter().filter(|one| one.was.is_some());
        let found = stay.map(|one| &one.path).try_for_each(|path| {
            (self.tick.borrow_mut())()?;
            self.strays_in(path, removes)
        });
        self.plan.directories = directories;
        found
    }

    fn strays_in(&mut self, above: &[u8], removes: &Removes<'_>) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = beneath::open(self.root, above, flags, Mode::empty());
        let Ok(directory) = opened else { return Ok(()) };
        let names = names_in(directory.as_fd()).map_err(|e| failed(above, "read", e))?;
        for name in names {
            let path = match above {
                [] => name.clone(),
                above => [above, &name].join(&b'/'),
            };
            if name.starts_with(DEPOT_PREFIX.as_bytes()) || self.has(&path)? {
                continue;
            }
            let status = Status::at(directory.as_fd(), &name);
            let is_directory = status.is_ok_and(|status| status.kind == FileType::Directory);
            let mut part = self.wanted.part.iter();
            if !part.all(|part| part.is_named(&path, is_directory)) || !removes(&path)? {
                continue;
            }
            let at = (directory.as_fd(), &*name);
            if let Some(found) = self.obstacle(at, &path, removes)? {
                let left_out = &mut self.plan.left_out;
                left_out.add(&path, Part::Entry, format!("it stays: {found}"));
                continue;
            }
            self.plan.removes.push(Remove { path });
        }
        Ok(())
    }

    /// The reason for which an entry may not be removed, with all that is below it.
    fn obstacle(
        &self,
        at: (BorrowedFd<'_>, &[u8]),
        path: &[u8],
        removes: &Removes<'_>,
    ) -> Result<Option<Obstacle>> {
        obstacle(at, path, self.volume, &mut |path| {
            (self.tick.borrow_mut())()?;
            removes(path)
        })
    }

    fn has(&self, path: &[u8]) -> Result<bool> {
        match FileKey::from_path(path, Naming::Tree) {
            Ok(key) => Ok(matches!(
                self.tree.snapshot.metadata(&key)?,
                Some(Metadata::Node(_))
            )),
            // A path that no backup can have.
            Err(_) => Ok(false),
        }
    }

    /// Drops the directories of which nothing changes.
    fn finish(mut self) -> Plan {
        let puts = self.plan.puts.iter().map(|put| &put.path);
        let removes = self.plan.removes.iter().map(|remove| &remove.path);
        let mut touched: HashSet<Vec<u8>> = puts
            .chain(removes)
            .map(|path| beneath::cut(path).0.to_vec())
            .collect();
        touched.insert(self.home.to_vec());
        let changes =
            |one: &Settled| one.differs || one.was.is_none() || touched.contains(&one.path);
        self.plan.directories.retain(changes);
        self.plan
    }
}

/// Whether an entry has the type of a node, and the number of a device.
fn has_type(kind: &NodeKind, found: &Status) -> bool {
    let number = |device: &crate::snapshot::node::Device| {
        rustix::fs::makedev(device.major, device.minor) == found.number
    };
    match kind {
        NodeKind::File(_) => found.kind == FileType::RegularFile,
        NodeKind::Directory => found.kind == FileType::Directory,
        NodeKind::Symlink(_) => found.kind == FileType::Symlink,
        NodeKind::Fifo => found.kind == FileType::Fifo,
        NodeKind::Socket => found.kind == FileType::Socket,
        NodeKind::CharDevice(device) => found.kind == FileType::CharacterDevice && number(device),
        NodeKind::BlockDevice(device) => found.kind == FileType::BlockDevice && number(device),
        NodeKind::HardLink(_) => false,
    }
}

fn as_made(root: BorrowedFd<'_>) -> Result<Status> {
    let status = Status::of(root).map_err(|e| failed(b"", "look at", e))?;
    Ok(Status {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..status
    })
}

/// The volume that a directory lies in.
pub(super) fn volume_of(root: BorrowedFd<'_>, directory: &[u8]) -> Result<Volume> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let opened = beneath::open(root, directory, flags, Mode::empty());
    let seen = opened.and_then(|directory| see(directory.as_fd(), b""));
    match seen {
        Ok(seen) => Ok(seen.volume),
        Err(e) => Err(failed(directory, "look at", e)),
    }
}
