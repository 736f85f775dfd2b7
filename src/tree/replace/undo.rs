//! Undoes a restore whose journal is kept: what it replaced and removed goes back to its place, and what it made goes.
//!
//! Each step can be told from the entries themselves, by inodes: an undo that was killed is done again from the beginning. The record of the
//! restore's end goes first: the times in it hold no longer. The journal goes when everything is back, and then what is left.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::depot::{Depot, Run};
use super::journal::{Bytes, Directory, End, Entry, Journal, Restore, time};
use super::stage::{not_synced, sync};
use super::switch::{ASIDE, put_in_place};
use super::{Target, failed, look, names_in};
use crate::durable;
use crate::err;
use crate::error::{Code, Result};
use crate::snapshot::node::Moment;
use crate::tree::beneath;
use crate::tree::extract::{Above, is_of_entry};
use crate::tree::left_out::{LeftOut, Part};
use crate::tree::status::{Holder, Status, XattrReader};

const ALL_OF_OWNER: u32 = 0o700;
/// The end of the name of what had changed since, and is discarded.
const DISCARDED: &[u8] = b".discarded";

/// A restore that can be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub run: Run,
    pub restore: Restore,
    /// Whether it came to its end.
    pub is_complete: bool,
}

/// The state of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was not made, or is undone.
    Before,
    /// It is as it was made.
    After,
    /// The old entry was moved aside, and nothing is in its place.
    Between,
    /// Somebody has changed the entry since.
    Changed,
}

/// An undo, as it would be made.
pub struct Undo<'t> {
    target: &'t Target,
    depot: Depot,
    journal: Journal,
    /// In the order of the journal's entries.
    states: Vec<State>,
    /// Entries that go back to their places.
    pub back: Vec<Vec<u8>>,
    /// Entries that the restore made, and that go.
    pub gone: Vec<Vec<u8>>,
    /// Entries that were changed since.
    pub changed: Vec<Vec<u8>>,
}

impl Target {
    /// The restores that can be undone, oldest first.
    ///
    /// # Errors
    /// `Damaged`; `Refused` for a journal of somebody else; `TargetWrite` when the target cannot be read.
    pub fn kept(&self) -> Result<Vec<Kept>> {
        kept_in(self.root.as_fd(), &self.home)
    }

    /// Finds what undoing a restore changes.
    ///
    /// # Errors
    /// `NotFound`; those of [`Target::kept`].
    pub fn undo(&self, run: &Run) -> Result<Undo<'_>> {
        let none = || err!(NotFound, "there is no restore {run} that could be undone");
        let root = self.root.as_fd();
        let depot = Depot::open(root, &self.home, run).map_err(|e| match e.code() {
            Code::Refused => e,
            _ => none().source(e),
        })?;
        let journal = journal_of(&depot, run)?.ok_or_else(none)?;
        let end = End::read(&depot)?;
        let mut undo = Undo {
            target: self,
            depot,
            journal,
            states: Vec::new(),
            back: Vec::new(),
            gone: Vec::new(),
            changed: Vec::new(),
        };
        undo.look(end.as_ref())?;
        Ok(undo)
    }
}

/// The restores into a directory that can be undone, oldest first. Another one may be under way.
///
/// # Errors
/// Those of [`Target::kept`].
pub fn kept_at(path: &Path) -> Result<Vec<Kept>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let shown = path.as_os_str().as_bytes();
    let directory = rustix::fs::open(path, flags, Mode::empty());
    let directory = directory.map_err(|e| failed(shown, "open", e))?;
    kept_in(directory.as_fd(), b"")
}

fn kept_in(root: BorrowedFd<'_>, home: &[u8]) -> Result<Vec<Kept>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let names = beneath::open(root, home, flags, Mode::empty())
        .and_then(|home| names_in(home.as_fd()))
        .map_err(|e| failed(home, "read", e))?;
    let mut kept = Vec::new();
    for run in names.iter().filter_map(|name| Run::of_directory(name)) {
        // One of another user's can be undone by that user alone.
        let Ok(depot) = Depot::open(root, home, &run) else {
            continue;
        };
        if let Some(journal) = journal_of(&depot, &run)? {
            kept.push(Kept {
                run,
                restore: journal.restore,
                is_complete: End::read(&depot)?.is_some(),
            });
        }
    }
    kept.sort_by(|a, b| a.run.cmp(&b.run));
    Ok(kept)
}

fn journal_of(depot: &Depot, run: &Run) -> Result<Option<Journal>> {
    let journal = Journal::read(depot)?;
    match journal {
        Some(journal) if journal.run != run.to_string() => Err(err!(
            Refused,
            "the journal in \"{}\" is that of another restore",
            run.shown()
        )
        .hint("Nothing was changed. Give the directory its name back.")),
        journal => Ok(journal),
    }
}

impl Undo<'_> {
    /// The restore.
    pub fn restore(&self) -> &Restore {
        &self.journal.restore
    }

    /// Finds the state of each change.
    fn look(&mut self, end: Option<&End>) -> Result<()> {
        let paths = self.journal.entries.iter().map(|entry| &entry.path.0);
        let known: HashSet<&Vec<u8>> = paths.collect();
        let mut above = Above::default();
        let mut states = Vec::with_capacity(self.journal.entries.len());
        let (mut back, mut gone, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        for entry in &self.journal.entries {
            let path = &entry.path.0;
            let slot = Depot::slot(entry.slot);
            let depot = self.depot.directory.as_fd();
            let discarded = [&*slot, DISCARDED].concat();
            let aside = Status::at(depot, &[&*slot, ASIDE].concat()).ok();
            let slot = Status::at(depot, &slot).ok();
            let is_discarded = Status::at(depot, &discarded).is_ok();
            let parent = above.of(self.target.root.as_fd(), path).map(drop);
            let (place, has_parent) = match parent {
                Ok(()) => (self.in_place(&mut above, path)?, true),
                Err(e) if is_gone(e) => (None, false),
                Err(e) => return Err(failed(path, "look at", e)),
            };
            let mut state = match is_discarded {
                true => state_of_discarded(entry, (slot, aside), place),
                false => state_of(entry, (slot, aside), place, end),
            };
            // Nothing can be put back there.
            if state != State::Before && !has_parent {
                state = State::Changed;
            }
            if state == State::After
                && entry.made.as_ref().is_some_and(|made| made.is_directory)
                && self.has_strays(path, &known)?
            {
                state = State::Changed;
            }
            let has_old = entry.made.is_none() || old_of(entry, slot, aside).is_some();
            match (state, has_old) {
                (State::Before, _) => {}
                (State::Changed, _) => changed.push(path.clone()),
                (_, true) => back.push(path.clone()),
                (_, false) => gone.push(path.clone()),
            }
            states.push(state);
        }
        for (path, was) in end.iter().flat_map(|end| &end.directories) {
            if self.settled(&path.0)? != Some(*was) {
                changed.push(path.0.clone());
            }
        }
        (self.states, self.back, self.gone, self.changed) = (states, back, gone, changed);
        Ok(())
    }

    /// The entry that is at a path; none where nothing is.
    fn in_place(&self, above: &mut Above, path: &[u8]) -> Result<Option<Status>> {
        match look(above, self.target.root.as_fd(), path) {
            Ok(place) => Ok(place),
            Err(e) if is_gone(e) => Ok(None),
            Err(e) => Err(failed(path, "look at", e)),
        }
    }

    /// Owner, group and permissions of a directory.
    fn settled(&self, path: &[u8]) -> Result<Option<(u32, u32, u32)>> {
        super::switch::settled(self.target.root.as_fd(), path)
    }

    /// Whether a directory that the restore made has entries that it did not make.
    fn has_strays(&self, path: &[u8], known: &HashSet<&Vec<u8>>) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = beneath::open(self.target.root.as_fd(), path, flags, Mode::empty());
        let names = opened.and_then(|directory| names_in(directory.as_fd()));
        let names = names.map_err(|e| failed(path, "read", e))?;
        let mut names = names.iter().map(|name| [path, name].join(&b'/'));
        Ok(names.any(|path| !known.contains(&path)))
    }

    /// Undoes the restore. Changes that were made since are lost where `discards` says so.
    ///
    /// # Errors
    /// `Refused` where something was changed since, and is not to be lost; `TargetWrite`; those of `tick`. The same call goes on then.
    pub fn carry_out(
        self,
        discards: bool,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<LeftOut> {
        if let Some(first) = self.changed.first().filter(|_| !discards) {
            let shown = match &**first {
                b"" => b".",
                first => first,
            };
            return Err(err!(
                Refused,
                "{} of the restored entries were changed since, \"{}\" among them",
                self.changed.len(),
                shown.escape_ascii()
            )
            .hint(format!(
                "Nothing was changed. To lose these changes and go back all the same: pitr {} rollback {} {} --discard-changes --confirm",
                self.journal.restore.kind, self.journal.restore.name, self.journal.run
            )));
        }
        End::remove(&self.depot)?;
        self.open_directories();
        let mut left_out = LeftOut::default();
        let mut above = Above::default();
        let entries = self.journal.entries.iter().zip(&self.states);
        for (entry, state) in entries.rev() {
            tick()?;
            match self.one(&mut above, entry, *state) {
                Ok(()) => {}
                Err(e) if discards && is_gone(e) => {
                    if self.has_old(entry) {
                        let why = format!(
                            "its directory is gone: what it was lies in \"{}\", as number {}",
                            self.depot.shown(),
                            entry.slot
                        );
                        left_out.add(&entry.path.0, Part::Entry, why);
                    }
                }
                Err(e) => return Err(failed(&entry.path.0, "put back", e)),
            }
        }
        let is_whole = left_out.total() == 0;
        for directory in self.journal.directories.iter().rev() {
            tick()?;
            self.settle(directory, &mut left_out)?;
        }
        sync(&self.depot)?;
        if !is_whole {
            return Ok(left_out);
        }
        Journal::remove(&self.depot)?;
        self.depot.remove()?;
        // The depot was an entry of it.
        let home = &self.target.home;
        let mut directories = self.journal.directories.iter();
        if let Some(home) = directories.find(|one| one.path.0 == *home) {
            set_time(self.target, home)?;
        }
        Ok(left_out)
    }

    /// Whether the depot has what an entry was before.
    fn has_old(&self, entry: &Entry) -> bool {
        let slot = Depot::slot(entry.slot);
        let found = |name: &[u8]| Status::at(self.depot.directory.as_fd(), name).ok();
        old_of(entry, found(&slot), found(&[&*slot, ASIDE].concat())).is_some()
    }

    /// Lets ourselves into directories that the restore has closed.
    fn open_directories(&self) {
        for directory in &self.journal.directories {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let path = &directory.path.0;
            let opened = beneath::open(self.target.root.as_fd(), path, flags, Mode::empty());
            let Ok(opened) = opened else { continue };
            if let Ok(status) = Status::of(opened.as_fd())
                && status.mode & ALL_OF_OWNER != ALL_OF_OWNER
            {
                // Without the right to it the next step says so.
                let holder = Holder::Named(opened.as_fd(), b".");
                let _ = holder.set_mode(status.mode | ALL_OF_OWNER);
            }
        }
    }

    fn one(&self, above: &mut Above, entry: &Entry, state: State) -> rustix::io::Result<()> {
        if state == State::Before {
            return Ok(());
        }
        let depot = self.depot.directory.as_fd();
        let slot = Depot::slot(entry.slot);
        let aside = [&*slot, ASIDE].concat();
        let place = above.of(self.target.root.as_fd(), &entry.path.0)?;
        let found = |name: &[u8]| Status::at(depot, name).ok();
        if state == State::Changed {
            let discarded = [&*slot, DISCARDED].concat();
            match durable::move_to_free(place, (depot, &discarded)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        let old = old_of(entry, found(&slot), found(&aside)).map(|old| match old {
            Old::Aside => &aside,
            Old::InSlot => &slot,
        });
        match (old, state) {
            (Some(old), State::After) if entry.made.is_some() => {
                match *old == slot {
                    true => put_in_place((depot, &slot), place),
                    // Its slot is free.
                    false => {
                        durable::move_to_free(place, (depot, &slot))?;
                        durable::move_to_free((depot, old), place)
                    }
                }
            }
            (Some(old), _) => durable::move_to_free((depot, old), place),
            (None, State::After) => durable::move_to_free(place, (depot, &slot)),
            (None, _) => Ok(()),
        }
    }

    /// Gives a directory back what it had.
    fn settle(&self, was: &Directory, left_out: &mut LeftOut) -> Result<()> {
        let path = &was.path.0;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = beneath::open(self.target.root.as_fd(), path, flags, Mode::empty());
        let directory = match opened {
            Ok(directory) => directory,
            Err(e) if is_of_entry(e) || is_gone(e) => {
                left_out.add(path, Part::Entry, e);
                return Ok(());
            }
            Err(e) => return Err(failed(path, "open", e)),
        };
        let holder = Holder::Open(directory.as_fd());
        let status = holder.status().map_err(|e| failed(path, "look at", e))?;
        let mut note = |part, done: rustix::io::Result<()>| {
            if let Err(e) = done {
                left_out.add(path, part, e);
            }
        };
        if (status.uid, status.gid) != (was.uid, was.gid) {
            note(Part::Owner, holder.set_owner(was.uid, was.gid));
        }
        if let Some(xattrs) = &was.xattrs {
            put_xattrs_back(holder, xattrs, &mut note);
        }
        note(Part::Mode, holder.set_mode(was.mode));
        note(Part::Time, holder.set_mtime(moment(was)));
        if was.xattrs.is_none() {
            let why = "could not be read before the restore: they stay as they are";
            left_out.add(path, Part::Xattr, why);
        }
        match durable::can_sync_filesystem(directory.as_fd()).map_err(not_synced)? {
            true => Ok(()),
            false => durable::sync_directory(directory.as_fd()).map_err(not_synced),
        }
    }
}

fn put_xattrs_back(
    holder: Holder<'_>,
    were: &[(Bytes, Bytes)],
    note: &mut dyn FnMut(Part, rustix::io::Result<()>),
) {
    let now = XattrReader::new().read(holder, &mut |_| {});
    let had = |name: &[u8]| were.iter().any(|(had, _)| had.0 == name);
    for (name, _) in now.iter().filter(|(name, _)| !had(name)) {
        note(Part::Xattr, holder.remove_xattr(name));
    }
    for (name, value) in were {
        let is_there = now.iter().any(|one| one.0 == name.0 && one.1 == value.0);
        if !is_there {
            note(Part::Xattr, holder.set_xattr(&name.0, &value.0));
        }
    }
}

fn moment(was: &Directory) -> Moment {
    Moment {
        seconds: was.mtime.0,
        nanoseconds: was.mtime.1,
    }
}

fn set_time(target: &Target, was: &Directory) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let path = &was.path.0;
    beneath::open(target.root.as_fd(), path, flags, Mode::empty())
        .and_then(|directory| Holder::Open(directory.as_fd()).set_mtime(moment(was)))
        .map_err(|e| failed(path, "set the time of", e))
}

/// Whether an error says that a directory on the way is not there, or is none any more.
fn is_gone(e: Errno) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].contains(&e)
}

/// The place of an old entry in the depot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Old {
    InSlot,
    Aside,
}

/// Pure: finds the old entry in the depot. A restore moves it aside where the filesystem cannot exchange entries, and an undo moves the made one there.
fn old_of(entry: &Entry, slot: Option<Status>, aside: Option<Status>) -> Option<Old> {
    let is_old = |found: &Status| !is_made(entry, found);
    let aside = aside.filter(is_old).map(|_| Old::Aside);
    aside.or(slot.filter(is_old).map(|_| Old::InSlot))
}

/// Whether an entry is the one that the restore made.
fn is_made(entry: &Entry, found: &Status) -> bool {
    let made = entry.made.as_ref();
    made.is_some_and(|made| made.inode == found.inode)
}

/// Pure: the state of a change whose entry an interrupted undo has discarded.
fn state_of_discarded(
    entry: &Entry,
    (slot, aside): (Option<Status>, Option<Status>),
    place: Option<Status>,
) -> State {
    match (old_of(entry, slot, aside), place) {
        (None, _) => State::Before,
        (Some(_), None) => State::Between,
        (Some(_), Some(_)) => State::Changed,
    }
}

/// Pure: the state of a change, by what is in its slot, aside, and in its place.
fn state_of(
    entry: &Entry,
    (slot, aside): (Option<Status>, Option<Status>),
    place: Option<Status>,
    end: Option<&End>,
) -> State {
    let Some(made) = &entry.made else {
        return match (slot, place) {
            (None, _) => State::Before,
            (Some(_), None) => State::After,
            (Some(_), Some(_)) => State::Changed,
        };
    };
    let is_in_depot = [slot, aside]
        .iter()
        .flatten()
        .any(|one| is_made(entry, one));
    if is_in_depot {
        return match (old_of(entry, slot, aside), place) {
            (None, _) => State::Before,
            (Some(_), None) => State::Between,
            (Some(_), Some(_)) => State::Changed,
        };
    }
    let Some(place) = place.filter(|place| made.are_of(place)) else {
        return State::Changed;
    };
    let ctime = end.and_then(|end| end.ctimes.get(&entry.slot));
    match ctime.is_none_or(|ctime| made.is_directory || *ctime == time(place.ctime)) {
        true => State::After,
        false => State::Changed,
    }
}
