//! Moves entries to their places, and what they replace into the depot.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::below::obstacle;
use super::compare::{Settled, volume_of};
use super::depot::Depot;
use super::journal::{Bytes, Directory, End, Entry, Facts, Journal, Restore, time};
use super::stage::{Staged, not_synced, sync, sync_filesystem};
use super::{Done, failed, look};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::host::Host;
use crate::tree::beneath;
use crate::tree::extract::{Above, is_of_entry};
use crate::tree::left_out::{LeftOut, Part};
use crate::tree::settle::Settler;
use crate::tree::status::{Holder, Status, XattrReader};

impl Staged<'_> {
    /// Moves everything to its place. The entries that are replaced or removed are gone at the end.
    ///
    /// # Errors
    /// `TargetWrite`, and those of `tick`: some entries are in their places then, each of them whole, and the next restore does the rest.
    pub fn switch(mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<Done> {
        self.move_all(tick)?;
        self.sync()?;
        self.depot.remove()?;
        self.settle(tick)?;
        self.finish()
    }

    /// As [`Staged::switch`], and keeps the entries that are replaced or removed, with a journal by which [`super::undo`] puts them back.
    ///
    /// # Errors
    /// `TargetWrite`, and those of `tick`. Everything is put back then; where that fails, the hint says how to do it.
    pub fn switch_kept(
        mut self,
        restore: Restore,
        (host, tick): (&Host, &mut dyn FnMut() -> Result<()>),
    ) -> Result<Done> {
        let name = (restore.kind.clone(), restore.name.clone());
        self.journal(restore).write(&self.depot, host.random())?;
        let switched = self
            .move_all(tick)
            .and_then(|()| self.settle(tick))
            .and_then(|()| self.finish())
            .and_then(|done| {
                self.end()?.write(&self.depot, host.random())?;
                Ok(done)
            });
        switched.map_err(|e| {
            let (target, run) = (self.target, self.run);
            drop(self.depot);
            // The operator's wish to stop has been heard.
            let undone = target
                .undo(&run)
                .and_then(|undo| undo.carry_out(false, &mut || Ok(())));
            match undone {
                Ok(_) => e.hint("Everything was put back as it was before."),
                Err(_) => e.hint(format!(
                    "Some entries are in their places. Put back the others: pitr {} rollback {} {run} --confirm",
                    name.0, name.1
                )),
            }
        })
    }

    fn journal(&self, restore: Restore) -> Journal {
        let mut journal = Journal::new(self.run.to_string(), restore);
        let puts = self.plan.puts.iter().zip(&self.made).enumerate();
        for (slot, (put, made)) in puts {
            if let Some(made) = made {
                journal.entries.push(Entry {
                    path: Bytes(put.path.clone()),
                    slot,
                    made: Some(Facts::of(made)),
                });
            }
        }
        let removes = self.plan.removes.iter().enumerate();
        journal
            .entries
            .extend(removes.map(|(number, remove)| Entry {
                path: Bytes(remove.path.clone()),
                slot: self.plan.puts.len() + number,
                made: None,
            }));
        let were = self.plan.directories.iter();
        let were = were.filter_map(|one| Some(Directory::of(&one.path, one.was.as_ref()?)));
        journal.directories = were.collect();
        journal
    }

    /// The state of everything that was moved and settled.
    fn end(&self) -> Result<End> {
        let root = self.target.root.as_fd();
        let mut end = End::default();
        let mut above = Above::default();
        let puts = self.plan.puts.iter().zip(&self.made).enumerate();
        for (slot, (put, made)) in puts {
            let is_file = made.is_some_and(|made| made.kind != FileType::Directory);
            let now = match is_file {
                true => look(&mut above, root, &put.path),
                false => Ok(None),
            };
            if let Some(now) = now.map_err(|e| failed(&put.path, "look at", e))? {
                end.ctimes.insert(slot, time(now.ctime));
            }
        }
        for one in &self.plan.directories {
            if let Some(settled) = settled(root, &one.path)? {
                end.directories.insert(Bytes(one.path.clone()), settled);
            }
        }
        Ok(end)
    }

    /// Makes the moves durable, in the depot and in every directory that an entry came to or left.
    fn sync(&self) -> Result<()> {
        sync(&self.depot)?;
        let root = self.target.root.as_fd();
        if sync_filesystem(root)? {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        for one in &self.plan.directories {
            match beneath::open(root, &one.path, flags, Mode::empty()) {
                Ok(directory) => durable::sync_directory(directory.as_fd()).map_err(not_synced)?,
                // The settling names it.
                Err(e) if is_of_entry(e) || e == Errno::NOENT => {}
                Err(e) => return Err(failed(&one.path, "open", e)),
            }
        }
        durable::sync_directory(root).map_err(not_synced)
    }

    /// Makes all of it durable.
    fn finish(&mut self) -> Result<Done> {
        self.sync()?;
        Ok(Done {
            written_bytes: self.written_bytes,
            left_out: std::mem::take(&mut self.plan.left_out),
        })
    }

    fn move_all(&self, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let root = self.target.root.as_fd();
        let depot = self.depot.directory.as_fd();
        let mut above = Above::default();
        let puts = self.plan.puts.iter().zip(&self.made).enumerate();
        for (number, (put, made)) in puts {
            tick()?;
            if made.is_none() {
                continue;
            }
            let slot = Depot::slot(number);
            let slot = (depot, &*slot);
            let place = above.of(root, &put.path);
            let place = place.map_err(|e| failed(&put.path, "open", e))?;
            if put.was_directory {
                self.check_below(place, &put.path)?;
            }
            put_in_place(slot, place).map_err(|e| failed(&put.path, "replace", e))?;
            // A directory that nobody has confirmed is not taken away.
            let status = Status::at(slot.0, slot.1);
            let was_directory = status.is_ok_and(|status| status.kind == FileType::Directory);
            if was_directory && !put.was_directory {
                put_in_place(slot, place).map_err(|e| failed(&put.path, "put back", e))?;
                return Err(changed(&put.path, "became a directory"));
            }
        }
        let first = self.plan.puts.len();
        for (number, remove) in self.plan.removes.iter().enumerate() {
            tick()?;
            let slot = Depot::slot(first + number);
            let place = above.of(root, &remove.path);
            let place = place.map_err(|e| failed(&remove.path, "open", e))?;
            self.check_below(place, &remove.path)?;
            match durable::move_to_free(place, (depot, &slot)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(failed(&remove.path, "remove", e)),
            }
        }
        Ok(())
    }

    /// Looks once more that nothing is mounted in a directory that goes: the mount would go with it.
    fn check_below(&self, at: (BorrowedFd<'_>, &[u8]), path: &[u8]) -> Result<()> {
        let volume = volume_of(self.target.root.as_fd(), &self.target.home)?;
        match obstacle(at, path, volume, &mut |_| Ok(true))? {
            Some(found) => Err(changed(path, &format!("may not go any more: {found}"))),
            None => Ok(()),
        }
    }

    /// Gives directories their attributes, the lowest first: one may be closed to ourselves then.
    fn settle(&mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let root = self.target.root.as_fd();
        let left_out = &mut self.plan.left_out;
        for one in self.plan.directories.iter().rev() {
            tick()?;
            settle_directory(root, one, &self.settler, left_out)?;
        }
        Ok(())
    }
}

fn changed(path: &[u8], how: &str) -> Error {
    err!(
        Refused,
        "\"{}\" {how}, while the restore was under way",
        path.escape_ascii()
    )
    .hint("It was left as it is. Run the command again.")
}

/// Owner, group and permissions of a directory; none where there is no directory.
pub(super) fn settled(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<(u32, u32, u32)>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let opened = beneath::open(root, path, flags, Mode::empty());
    match opened.and_then(|directory| Status::of(directory.as_fd())) {
        Ok(status) => Ok(Some((status.uid, status.gid, status.mode))),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(failed(path, "look at", e)),
    }
}

/// Moves an entry to its place. The entry that is there takes the slot; the slot is empty where nothing was.
pub(super) fn put_in_place(
    slot: (BorrowedFd<'_>, &[u8]),
    place: (BorrowedFd<'_>, &[u8]),
) -> rustix::io::Result<()> {
    match durable::move_to_free(slot, place) {
        Err(Errno::EXIST) => {}
        answer => return answer,
    }
    let exchanged = match fault::lacks("exchange") {
        true => Err(Errno::INVAL),
        false => durable::exchange(slot, place),
    };
    match exchanged {
        // Filesystems without it: for a moment nothing is there.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            let aside = [slot.1, ASIDE].concat();
            durable::move_to_free(place, (slot.0, &aside))?;
            durable::move_to_free(slot, place)?;
            durable::move_to_free((slot.0, &aside), slot)
        }
        answer => answer,
    }
}

/// The end of the name that a replaced entry has until its slot is free.
pub(super) const ASIDE: &[u8] = b".aside";

fn settle_directory(
    root: BorrowedFd<'_>,
    one: &Settled,
    settler: &Settler,
    left_out: &mut LeftOut,
) -> Result<()> {
    let Some(node) = &one.node else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match beneath::open(root, &one.path, flags, Mode::empty()) {
        Ok(directory) => {
            let holder = Holder::Open(directory.as_fd());
            let now = XattrReader::new().read(holder, &mut |_| {});
            let is_due = |name: &[u8]| node.xattrs.iter().any(|(due, _)| due == name);
            for (name, _) in now {
                if settler.counts(&name)
                    && !is_due(&name)
                    && let Err(e) = holder.remove_xattr(&name)
                {
                    let shown = name.escape_ascii();
                    left_out.add(&one.path, Part::Xattr, format!("\"{shown}\" stays: {e}"));
                }
            }
            settler.settle(holder, &one.path, node, left_out)?;
            match durable::can_sync_filesystem(directory.as_fd()).map_err(not_synced)? {
                true => Ok(()),
                false => durable::sync_directory(directory.as_fd()).map_err(not_synced),
            }
        }
        Err(e) if is_of_entry(e) || e == Errno::NOENT => {
            left_out.add(&one.path, Part::Entry, e);
            Ok(())
        }
        Err(e) => Err(failed(&one.path, "open", e)),
    }
}

/// Gives a directory the time back that it had before a depot was made in it.
pub(super) fn set_time_back(root: BorrowedFd<'_>, one: &Settled) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    if let (Some(was), Ok(directory)) = (
        &one.was,
        beneath::open(root, &one.path, flags, Mode::empty()),
    ) {
        let _ = Holder::Open(directory.as_fd()).set_mtime(was.status.mtime);
    }
}
