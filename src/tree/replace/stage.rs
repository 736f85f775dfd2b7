//! Makes the entries that a restore puts in place, complete, in the depot. Nothing of the target changes but the depot's directory.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::compare::{Origin, Plan, Put};
use super::depot::{Depot, Run};
use super::{Contents, Target, failed};
use crate::durable;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::node::NodeKind;
use crate::tree::extract::{Above, is_of_entry, make_at};
use crate::tree::left_out::Part;
use crate::tree::settle::{Permit, Settler};
use crate::tree::status::{Holder, Status};

/// A restore whose entries are made.
pub struct Staged<'t> {
    pub(super) target: &'t Target,
    /// Its number.
    pub run: Run,
    pub(super) plan: Plan,
    pub(super) depot: Depot,
    pub(super) settler: Settler,
    /// The status of each entry that was made, in the order of the plan; none of those that could not be.
    pub(super) made: Vec<Option<Status>>,
    pub(super) written_bytes: u64,
}

impl Target {
    /// Makes the entries of a plan.
    ///
    /// # Errors
    /// `Damaged` when a check of the backup fails; `TargetWrite`, `Full`; `Interrupted`. The depot is removed then.
    pub fn stage(
        &self,
        plan: Plan,
        permit: Permit,
        contents: &mut dyn Contents,
        (host, tick): (&Host, &mut dyn FnMut() -> Result<()>),
    ) -> Result<Staged<'_>> {
        self.clean()?;
        let run = Run::draw(host);
        let mut staged = Staged {
            target: self,
            depot: Depot::make(self.root.as_fd(), &self.home, &run)?,
            run,
            settler: Settler::new(permit),
            made: Vec::new(),
            written_bytes: 0,
            plan,
        };
        let mut staging = Staging {
            root: self.root.as_fd(),
            slots: HashMap::new(),
            lost: HashSet::new(),
            contents,
            host,
            tick,
        };
        match staging.all(&mut staged) {
            Ok(()) => Ok(staged),
            Err(e) => {
                // The next restore removes what cannot be removed now.
                let _ = staged.depot.remove();
                let directories = staged.plan.directories.iter();
                for one in directories.filter(|one| one.path == self.home) {
                    super::switch::set_time_back(self.root.as_fd(), one);
                }
                Err(e)
            }
        }
    }
}

struct Staging<'g> {
    root: BorrowedFd<'g>,
    /// The numbers of entries that are made.
    slots: HashMap<FileKey, usize>,
    /// Entries that could not be made: what is in their places is something else.
    lost: HashSet<FileKey>,
    contents: &'g mut dyn Contents,
    host: &'g Host,
    tick: &'g mut dyn FnMut() -> Result<()>,
}

impl Staging<'_> {
    fn all(&mut self, staged: &mut Staged<'_>) -> Result<()> {
        let puts = std::mem::take(&mut staged.plan.puts);
        let made = puts
            .iter()
            .enumerate()
            .try_for_each(|(number, put)| self.one(staged, number, put));
        staged.plan.puts = puts;
        made?;
        sync(&staged.depot)
    }

    fn one(&mut self, staged: &mut Staged<'_>, number: usize, put: &Put) -> Result<()> {
        (self.tick)()?;
        let directory = staged.depot.directory.as_fd();
        let slot = Depot::slot(number);
        let left_out = &mut staged.plan.left_out;
        let made = match &put.origin {
            Origin::Content(from, length) => {
                let written = self.file(directory, &slot, put, (from, *length))?;
                staged.written_bytes += written;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(directory, &slot, flags, Mode::empty());
                let file = File::from(file.map_err(|e| failed(&put.path, "open", e))?);
                let holder = Holder::Open(file.as_fd());
                staged
                    .settler
                    .settle(holder, &put.path, &put.node, left_out)?;
                if !can_sync_all(directory)? {
                    durable::sync_file(&file).map_err(not_synced)?;
                }
                Ok(())
            }
            Origin::Name(to) => self.name((directory, &slot), put, to),
            Origin::Node => node(directory, &slot, &put.node.kind),
        };
        match made {
            Ok(()) => {}
            Err(e) if is_of_entry(e) || e == Errno::XDEV || e == Errno::NOENT => {
                left_out.add(&put.path, Part::Entry, e);
                staged.made.push(None);
                self.lost.insert(put.key.clone());
                return Ok(());
            }
            Err(e) => return Err(failed(&put.path, "make", e)),
        }
        let is_settled_here =
            matches!(put.origin, Origin::Node) && put.node.kind != NodeKind::Directory;
        if is_settled_here {
            let holder = Holder::Named(directory, &slot);
            staged
                .settler
                .settle(holder, &put.path, &put.node, left_out)?;
        }
        let status = Status::at(directory, &slot).map_err(|e| failed(&put.path, "look at", e))?;
        staged.made.push(Some(status));
        self.slots.insert(put.key.clone(), number);
        Ok(())
    }

    /// Writes a file; zeros become holes.
    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        slot: &[u8],
        put: &Put,
        from: (&FileKey, u64),
    ) -> Result<u64> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, slot, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|e| failed(&put.path, "make", e))?);
        let write_failed = |e: std::io::Error| {
            let e = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            failed(&put.path, "write", e)
        };
        let (mut at, mut written) = (0_u64, 0_u64);
        let (host, tick) = (self.host, &mut *self.tick);
        self.contents.read(&put.path, from, &mut |bytes| {
            tick()?;
            if bytes.iter().any(|b| *b != 0) {
                file.write_all_at(bytes, at).map_err(write_failed)?;
                written += bytes.len() as u64;
            }
            at += bytes.len() as u64;
            host.progress.advance(bytes.len() as u64);
            Ok(())
        })?;
        file.set_len(at).map_err(write_failed)?;
        Ok(written)
    }

    /// Gives an entry that is made, or stays, a further name.
    fn name(
        &self,
        to_slot: (BorrowedFd<'_>, &[u8]),
        put: &Put,
        to: &FileKey,
    ) -> rustix::io::Result<()> {
        if let Some(number) = self.slots.get(to) {
            return durable::name_again((to_slot.0, &Depot::slot(*number)), to_slot);
        }
        if self.lost.contains(to) {
            return Err(Errno::NOENT);
        }
        let path = to.path(Naming::Tree);
        let mut above = Above::default();
        let from = above.of(self.root, &path)?;
        let status = Status::at(from.0, from.1)?;
        let is_plain = status.kind != rustix::fs::FileType::Directory;
        match is_plain && put.path != path {
            true => durable::name_again(from, to_slot),
            false => Err(Errno::INVAL),
        }
    }
}

fn node(directory: BorrowedFd<'_>, slot: &[u8], kind: &NodeKind) -> rustix::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    match kind {
        NodeKind::Symlink(target) => {
            let target = std::path::Path::new(std::ffi::OsStr::from_bytes(target));
            durable::link_to(directory, slot, target)
        }
        kind => make_at(directory, slot, kind),
    }
}

fn can_sync_all(directory: BorrowedFd<'_>) -> Result<bool> {
    durable::can_sync_filesystem(directory).map_err(not_synced)
}

/// Makes all that was written in a depot durable; files are, where the filesystem cannot be synced as a whole.
pub(super) fn sync(depot: &Depot) -> Result<()> {
    let directory = depot.directory.as_fd();
    match sync_filesystem(directory)? {
        true => Ok(()),
        false => durable::sync_directory(directory).map_err(not_synced),
    }
}

/// Syncs the filesystem of a directory where that counts; `false` where it does not, and nothing was synced.
pub(super) fn sync_filesystem(directory: BorrowedFd<'_>) -> Result<bool> {
    match fault::lacks("syncfs") {
        true => Ok(false),
        false => durable::sync_filesystem(directory).map_err(not_synced),
    }
}

pub(super) fn not_synced(e: std::io::Error) -> Error {
    Error::from_io("sync the restored files", e).with_code(Code::TargetWrite)
}
