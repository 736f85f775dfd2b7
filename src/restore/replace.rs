//! Puts a restored cluster in the place of a data directory, and takes the old one back.
//!
//! The new cluster is restored beside the old one. Then names are exchanged. Each directory that changes its place is a pair; which of the
//! two lies where is told by the inode, which a rename keeps. So a run that was killed anywhere goes on by what it finds.
//!
//! A cluster that is not in its place cannot be started: its pg_control has another name. Without directories outside of the data directory
//! one exchange switches. With them no server starts while they change: the control files of both have that name then.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::target_dir::{CLOSED, CONTROL, PlacedTablespace};
use super::tree::write_error;
use crate::archive::datadir::DataDirectory;
use crate::archive::guard::{UNFINISHED, read_limited};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::time::TimestampTz;

/// The end of the name under which a cluster is restored beside the one that it replaces; in a tablespace the name itself.
pub const WAITING: &str = "pitr-new";
/// The end of the record's name.
const RECORD: &str = "pitr-replaced";
/// The name that the link of pg_wal has until it takes its place.
const LINK: &str = "pg_wal.pitr-link";
const FORMAT: u32 = 1;
const UNCHANGED: &str = "Nothing was changed.";

/// One of two clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Old,
    New,
}

/// The directions in which names are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The new cluster takes the place.
    Replace,
    /// The old one takes it again; the new one waits as before.
    Back,
    /// The old one takes it again; the new one is put aside.
    Undo,
}

impl Way {
    fn sides(self) -> (Side, Side) {
        match self {
            Way::Replace => (Side::New, Side::Old),
            Way::Back | Way::Undo => (Side::Old, Side::New),
        }
    }
}

/// A directory that one of the other cluster replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    place: PathBuf,
    waiting: PathBuf,
    replaced: PathBuf,
    undone: PathBuf,
    /// Inodes; none where that cluster has no such directory.
    old: Option<u64>,
    new: Option<u64>,
}

impl Pair {
    fn inode(&self, side: Side) -> Option<u64> {
        match side {
            Side::Old => self.old,
            Side::New => self.new,
        }
    }

    fn names(&self) -> [&Path; 4] {
        [&self.place, &self.waiting, &self.replaced, &self.undone]
    }

    /// Whether a cluster's directory has one of the names.
    fn has(&self, side: Side) -> Result<bool> {
        let wanted = self.inode(side);
        for path in self.names() {
            if wanted.is_some() && inode_of(path)? == wanted {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The path that a cluster's directory has now.
    fn find(&self, side: Side) -> Result<Option<&Path>> {
        let Some(wanted) = self.inode(side) else {
            return Ok(None);
        };
        for path in self.names() {
            if inode_of(path)? == Some(wanted) {
                return Ok(Some(path));
            }
        }
        Err(err!(
            NotFound,
            "\"{}\" and the directories beside it are not as the record has them: one of them is gone",
            self.place.display()
        )
        .hint("Nothing was changed here. Somebody has moved or removed a directory that pitr put aside."))
    }

    /// Gives the place to one of the two, and durably so.
    fn put(&self, way: Way) -> Result<()> {
        let (incoming, outgoing) = way.sides();
        let aside = match way {
            Way::Replace => &self.replaced,
            Way::Back => &self.waiting,
            Way::Undo => &self.undone,
        };
        let from = self.find(incoming)?;
        let there = inode_of(&self.place)?;
        if there.is_some() && ![self.old, self.new].contains(&there) {
            return Err(err!(
                Refused,
                "\"{}\" is another directory than before",
                self.place.display()
            )
            .hint("It was left as it is. Move it away, then run the command again."));
        }
        if let Some(parent) = aside.parent() {
            make_private(parent)?;
        }
        match from {
            Some(from) if from == self.place => {}
            Some(from) if there.is_some() => exchange(from, &self.place, aside)?,
            Some(from) => move_to(from, &self.place)?,
            None if there.is_some() => move_to(&self.place, aside)?,
            None => {}
        }
        // The outgoing one has the name that the incoming one had before the exchange.
        if let Some(found) = self.find(outgoing)?
            && found != aside
        {
            move_to(found, aside)?;
        }
        for path in self.names() {
            let parent = path.parent().unwrap_or(path);
            match durable::sync_directory_at(parent) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(parent, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the directories of this program that nothing lies in any more.
    fn tidy(&self) {
        for path in [&self.waiting, &self.replaced, &self.undone] {
            if let Some(parent) = path.parent().filter(|p| self.place.parent() != Some(p)) {
                // It goes only when it is empty.
                let _ = std::fs::remove_dir(parent);
            }
        }
    }
}

/// The record of a replacement, beside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The purpose of the file, for people.
    note: String,
    asked: String,
    backup: String,
    target: String,
    began: TimestampTz,
    state: State,
    /// BLAKE3 of the new cluster's pg_control as it was restored.
    control: String,
    /// BLAKE3 of the old cluster's pg_control; earlier versions did not take it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_control: Option<String>,
    /// BLAKE3 of the new cluster's pg_control when an undo was allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allowed: Option<String>,
    data: Pair,
    /// Directories outside of the data directory.
    others: Vec<Pair>,
}

/// How far a replacement came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The new cluster takes the place.
    Switching,
    /// It has it.
    Switched,
    /// The old one takes it again.
    Undoing,
}

/// A data directory that is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Old {
    /// The data directory, without links.
    pub data: PathBuf,
    /// Its system identifier.
    pub system_identifier: u64,
    /// Files of WAL that wait to be archived.
    pub unarchived: usize,
    /// Whether its server was not shut down cleanly: the WAL of its last segment was never offered to be archived.
    pub is_crashed: bool,
    /// BLAKE3 of its pg_control, which every server changes.
    control: String,
    /// Name of its directory in each tablespace.
    version: String,
    /// Directories of its tablespaces, without links.
    tablespaces: BTreeSet<PathBuf>,
    /// The text of pg_wal where that is a link, and the directory that it leads to.
    wal: Option<(PathBuf, PathBuf)>,
}

impl Old {
    /// Checks a data directory that is to be replaced: no server runs in it, and all of it can be moved. Changes nothing.
    ///
    /// # Errors
    /// `Refused`.
    pub fn look(to: &Path) -> Result<Old> {
        check_user()?;
        let shown = to.display();
        let data = to.canonicalize().map_err(|e| {
            err!(Refused, "there is nothing to replace at \"{shown}\"")
                .source(e)
                .hint("Nothing was written. Without --replace the cluster is restored into a directory that is not there yet.")
        })?;
        check_stopped(&data)?;
        let directory = DataDirectory::at(&data);
        if read_limited(&directory.wal().join(UNFINISHED))?.is_some() {
            return Err(err!(Refused, "\"{shown}\" holds an unfinished restore").hint(
                "Nothing was changed. Complete it with the command that began it, or remove the directory.",
            ));
        }
        let (control, bytes) = directory.control_with_bytes()?.ok_or_else(|| {
            err!(
                Refused,
                "\"{shown}\" is no data directory: it has no {CONTROL}"
            )
            .hint(UNCHANGED)
        })?;
        let version = version_of(&control);
        check_movable(&data)?;
        let mut old = Old {
            system_identifier: control.system_identifier,
            unarchived: unarchived(&directory),
            is_crashed: !matches!(
                control.state,
                ClusterState::ShutDown | ClusterState::ShutDownInRecovery
            ),
            control: digest(&bytes),
            version,
            tablespaces: BTreeSet::new(),
            wal: None,
            data,
        };
        let wal = old.data.join("pg_wal");
        if let Ok(text) = std::fs::read_link(&wal) {
            let real = wal.canonicalize().map_err(|e| looked(&wal, e))?;
            check_movable(&real)?;
            old.wal = Some((text, real));
        }
        for link in linked_tablespaces(&old.data)? {
            let space = link.canonicalize().map_err(|e| looked(&link, e))?;
            check_tablespace(&old, &space)?;
            old.tablespaces.insert(space);
        }
        old.check_apart()?;
        Ok(old)
    }

    /// Requires that no directory that is moved lies in another one: names in it would be exchanged in the cluster that leaves.
    fn check_apart(&self) -> Result<()> {
        let moved = self.moved();
        for inner in &moved {
            let outer = moved
                .iter()
                .find(|outer| *outer != inner && inner.starts_with(outer));
            if let Some(outer) = outer {
                return Err(err!(
                    Refused,
                    "\"{}\" lies in \"{}\", so the two cannot be moved aside one by one",
                    inner.display(),
                    outer.display()
                )
                .hint("Nothing was changed. Restore into another directory."));
            }
        }
        Ok(())
    }

    /// The directory in which the new cluster is restored.
    pub fn waiting(&self) -> PathBuf {
        beside(&self.data, WAITING)
    }

    /// Whether a tablespace's directory is one of the old cluster.
    pub fn has_tablespace(&self, space: &Path) -> bool {
        self.tablespaces.contains(space)
    }

    /// Everything that is moved aside, for people.
    pub fn moved(&self) -> Vec<PathBuf> {
        let spaces = self.tablespaces.iter().map(|at| at.join(&self.version));
        let wal = self.wal.iter().map(|(_, real)| real.clone());
        std::iter::once(self.data.clone())
            .chain(wal)
            .chain(spaces)
            .collect()
    }
}

/// A replacement that is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    path: PathBuf,
    record: Record,
}

/// The description of the new cluster.
pub struct New<'a> {
    /// The operator's request, by which the same command is known again.
    pub asked: &'a str,
    /// The backup.
    pub backup: String,
    /// The target.
    pub target: String,
    /// Its tablespaces.
    pub tablespaces: &'a [PlacedTablespace],
}

/// Puts the cluster that was restored beside `old` in its place.
///
/// # Errors
/// `Refused` when a server was started meanwhile; `TargetWrite`. The old cluster is in its place then, unless the hint says otherwise.
pub fn replace(old: &Old, new: &New<'_>, host: &Host) -> Result<Standing> {
    check_stopped(&old.data)?;
    // Its tablespaces, and what is to be archived, may be others since.
    if control_of(&old.data)?.map(|bytes| digest(&bytes)).as_ref() != Some(&old.control) {
        return Err(err!(
            Refused,
            "a server has run in \"{}\" while the new cluster was restored",
            old.data.display()
        )
        .hint("Nothing was changed. Run the same command again: it looks at the old cluster anew, and takes up what was restored."));
    }
    let waiting = old.waiting();
    check_stopped(&waiting)?;
    close_waiting(&waiting)?;
    let control = control_of(&waiting)?;
    let control = control.ok_or_else(|| err!(Internal, "the restored cluster has no {CLOSED}"))?;
    let began = host.now();
    let stamp = free_stamp(&old.data, began);
    let (replaced, undone) = (format!("replaced-{stamp}"), format!("undone-{stamp}"));
    let plain = |place: &Path| -> Result<Pair> {
        let names = [WAITING, &replaced, &undone].map(|end| beside(place, end));
        pair(place.to_owned(), names)
    };
    let mut others = Vec::new();
    if let Some((_, real)) = &old.wal {
        stage_wal(&waiting, real)?;
        others.push(plain(real)?);
    }
    let of_new = new.tablespaces.iter();
    let of_new = of_new.filter_map(|one| one.real.parent().map(Path::to_owned));
    for space in old
        .tablespaces
        .iter()
        .cloned()
        .chain(of_new)
        .collect::<BTreeSet<_>>()
    {
        let names = [
            WAITING,
            &format!("pitr-{replaced}"),
            &format!("pitr-{undone}"),
        ];
        let names = names.map(|end| space.join(end).join(&old.version));
        others.push(pair(space.join(&old.version), names)?);
    }
    let record = Record {
        format: FORMAT,
        note: format!(
            "pitr restore --replace has put another cluster into \"{}\"; pitr restore --undo reads this file",
            old.data.display()
        ),
        asked: new.asked.to_owned(),
        backup: new.backup.clone(),
        target: new.target.clone(),
        began,
        state: State::Switching,
        control: digest(&control),
        old_control: Some(old.control.clone()),
        allowed: None,
        data: plain(&old.data)?,
        others,
    };
    let mut standing = Standing {
        path: beside(&old.data, RECORD),
        record,
    };
    standing.write(host)?;
    fault::point("replace-recorded");
    standing.finish(host)?;
    Ok(standing)
}

impl Standing {
    /// Reads the record of the replacement at a data directory.
    ///
    /// # Errors
    /// `Refused` when it belongs to another user, or cannot be read.
    pub fn find(to: &Path) -> Result<Option<Standing>> {
        check_user()?;
        let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
            return Ok(None);
        };
        // The directory itself may be away for a moment.
        let data = match (to.canonicalize(), parent.canonicalize()) {
            (Ok(data), _) => data,
            (_, Ok(parent)) => parent.join(name),
            _ => return Ok(None),
        };
        let path = beside(&data, RECORD);
        let Some(bytes) = read_limited(&path)? else {
            return Ok(None);
        };
        let refused = |why: &str| {
            err!(Refused, "\"{}\" {why}", path.display())
                .hint("Nothing was changed. The file records which directories a restore has put aside. Look at them before you move anything by hand.")
        };
        let owner = std::fs::symlink_metadata(&path)
            .map_err(|e| looked(&path, e))?
            .uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(refused(&format!("belongs to user id {owner}")));
        }
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|e| refused("cannot be read as the record of a replacement").source(e))?;
        if record.format != FORMAT || record.data.place != data {
            return Err(refused("is the record of another program or place"));
        }
        let mut standing = Standing { path, record };
        // An undo that was recorded and moved nothing holds until a server runs: what it writes nobody has allowed to take away.
        if standing.state() == State::Undoing
            && standing.is_in_place(Side::New)?
            && standing.digest_of_new()? != standing.record.allowed
        {
            standing.record.state = State::Switched;
        }
        if standing.state() == State::Switched {
            standing.see_others()?;
        }
        Ok(Some(standing))
    }

    /// Takes down which directories the new cluster has now: recovery makes tablespaces that the backup lacks, and a server drops some.
    fn see_others(&mut self) -> Result<()> {
        for pair in &mut self.record.others {
            pair.new = inode_of(&pair.place)?.filter(|found| Some(*found) != pair.old);
        }
        let data = &self.record.data;
        let Some(control) = DataDirectory::at(&data.place).control()? else {
            return Ok(());
        };
        let version = version_of(&control);
        let names = [WAITING.to_owned()].into_iter();
        let ends =
            [&data.replaced, &data.undone].map(|aside| format!("pitr-{}", end_of(data, aside)));
        let names: Vec<String> = names.chain(ends).collect();
        for space in linked_tablespaces(&data.place)? {
            // A link that leads nowhere has nothing that could be moved.
            let Ok(space) = space.canonicalize() else {
                continue;
            };
            let place = space.join(&version);
            let is_known = self.record.others.iter().any(|pair| pair.place == place);
            let [waiting, replaced, undone] = names.as_slice() else {
                continue;
            };
            if is_known || inode_of(&place)?.is_none() {
                continue;
            }
            let names = [waiting, replaced, undone].map(|end| space.join(end).join(&version));
            let new = inode_of(&place)?;
            self.record.others.push(Pair {
                old: None,
                new,
                ..pair(place, names)?
            });
        }
        Ok(())
    }

    /// Takes down what is there beside an old cluster that is whole in its place: it may have run, and made or dropped tablespaces.
    /// The undo of a replacement that moved nothing asks for no more than that.
    fn see_old(&mut self) -> Result<()> {
        let record = &mut self.record;
        for pair in std::iter::once(&mut record.data).chain(&mut record.others) {
            if !pair.has(Side::New)? {
                pair.new = None;
            }
            pair.old = inode_of(&pair.place)?.filter(|found| Some(*found) != pair.new);
        }
        Ok(())
    }

    /// Whether a cluster is in its place and can be started, so that all of its directories are in theirs.
    fn is_in_place(&self, side: Side) -> Result<bool> {
        let data = &self.record.data;
        let is_there = inode_of(&data.place)?.is_some_and(|found| data.inode(side) == Some(found));
        Ok(is_there && inode_of(&data.place.join(CONTROL))?.is_some())
    }

    /// BLAKE3 of the new cluster's pg_control.
    fn digest_of_new(&self) -> Result<Option<String>> {
        let Some(at) = self.record.data.find(Side::New)? else {
            return Ok(None);
        };
        Ok(control_of(at)?.map(|bytes| digest(&bytes)))
    }

    /// How far it came.
    pub fn state(&self) -> State {
        self.record.state
    }

    /// Whether the same command has begun it.
    pub fn is_of(&self, asked: &str) -> bool {
        self.record.asked == asked
    }

    /// The backup that was restored.
    pub fn backup(&self) -> &str {
        &self.record.backup
    }

    /// The target that was restored to.
    pub fn target(&self) -> &str {
        &self.record.target
    }

    /// When it began.
    pub fn began(&self) -> TimestampTz {
        self.record.began
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.record.data.place
    }

    /// The places that the old cluster's directories had, that of the data first.
    pub fn places(&self) -> Vec<&Path> {
        self.aside(Side::Old, |pair| &pair.place)
    }

    /// The directories of the old cluster after the replacement, that of the data first.
    pub fn replaced(&self) -> Vec<&Path> {
        self.aside(Side::Old, |pair| &pair.replaced)
    }

    /// The directories of the new cluster after the undo, that of the data first.
    pub fn undone(&self) -> Vec<&Path> {
        self.aside(Side::New, |pair| &pair.undone)
    }

    fn aside<'s>(&'s self, side: Side, path: impl Fn(&'s Pair) -> &'s PathBuf) -> Vec<&'s Path> {
        let pairs = std::iter::once(&self.record.data).chain(&self.record.others);
        let pairs = pairs.filter(|pair| pair.inode(side).is_some());
        pairs.map(|pair| path(pair).as_path()).collect()
    }

    /// Whether no server has run on the new cluster: its pg_control is the one that was restored.
    ///
    /// # Errors
    /// Those of the system.
    pub fn is_untouched(&self) -> Result<bool> {
        Ok(self.control_of_new()?.is_none_or(|(_, is_same)| is_same))
    }

    /// Whether the new cluster may have accepted writes: a server has run on it, and recovery is over.
    ///
    /// # Errors
    /// Those of the system.
    pub fn has_accepted_writes(&self) -> Result<bool> {
        Ok(self.control_of_new()?.is_some_and(|(state, is_same)| {
            let is_recovering = matches!(
                state,
                ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery
            );
            !is_same && !is_recovering
        }))
    }

    /// The state of the new cluster, and whether its pg_control is as it was restored; none where it is closed.
    fn control_of_new(&self) -> Result<Option<(ClusterState, bool)>> {
        let Some(data) = self.record.data.find(Side::New)? else {
            return Ok(None);
        };
        let control = DataDirectory::at(data).control_with_bytes()?;
        Ok(control.map(|(control, bytes)| (control.state, digest(&bytes) == self.record.control)))
    }

    /// Lets the new cluster take its place, or go on to.
    ///
    /// # Errors
    /// As [`replace`].
    pub fn finish(&mut self, host: &Host) -> Result<()> {
        let _lock = self.lock()?;
        if let Some(at) = self.record.data.find(Side::Old)? {
            check_stopped(at)?;
        }
        self.check_unchanged()?;
        self.link_wal()?;
        if let Err(e) = self.switch(Way::Replace) {
            let to = self.data().display();
            return Err(match self.switch(Way::Back) {
                Ok(()) => e.hint("The old cluster is in its place as before. Run the same command again; what was restored is kept for it."),
                Err(_) => e.hint(format!("No server starts there now. Run the same command again, or put the old cluster back: pitr restore --undo --to {to} --confirm")),
            });
        }
        self.record.state = State::Switched;
        self.write(host)
    }

    /// Requires that no server has run on either cluster since the record was written, as long as the old one is in its place.
    fn check_unchanged(&self) -> Result<()> {
        let data = &self.record.data;
        let is_new_there = data.find(Side::New)?.is_some();
        if is_new_there && data.find(Side::Old)? != Some(&data.place) {
            return Ok(());
        }
        let wanted = [
            (Side::Old, self.record.old_control.as_ref()),
            (Side::New, Some(&self.record.control)),
        ];
        for (side, wanted) in wanted {
            let Some(at) = data.find(side)? else { continue };
            let now = control_of(at)?.map(|bytes| digest(&bytes));
            if wanted.is_some() && now.as_ref() != wanted {
                let to = data.place.display();
                return Err(err!(
                    Refused,
                    "a server has run in \"{}\" since the replacement of {} was interrupted",
                    at.display(),
                    self.record.began
                )
                .hint(format!(
                    "Nothing was changed. The old cluster is in its place. Give this replacement up, then begin anew: pitr restore --undo --to {to} --confirm"
                )));
            }
        }
        Ok(())
    }

    /// Puts the old cluster back. The new one is kept aside.
    ///
    /// # Errors
    /// `Refused` while a server runs there, and when the new cluster has accepted writes, unless `discards` allows it; `TargetWrite`, after
    /// which the same call goes on.
    pub fn undo(mut self, discards: bool, host: &Host) -> Result<()> {
        self.check_undo(discards)?;
        let _lock = self.lock()?;
        self.record.state = State::Undoing;
        self.record.allowed = self.digest_of_new()?;
        self.write(host)?;
        fault::point("undo-recorded");
        self.switch(Way::Undo).map_err(|e| {
            e.hint("Run the same command again: it goes on. Until then no server may start there.")
        })?;
        durable::remove(&self.path).map_err(|e| failed(&self.path, e))
    }

    /// Checks that the old cluster can be put back. Changes nothing.
    ///
    /// # Errors
    /// As [`Standing::undo`].
    pub fn check_undo(&mut self, discards: bool) -> Result<()> {
        if self.is_in_place(Side::Old)? {
            self.see_old()?;
        }
        for side in [Side::Old, Side::New] {
            if let Some(at) = self.record.data.find(side)? {
                check_stopped(at)?;
            }
        }
        for pair in &self.record.others {
            pair.find(Side::Old)?;
            let new = pair.find(Side::New)?;
            // The new cluster has made it, so nobody has looked at it yet.
            if pair.old.is_none() && new == Some(pair.place.as_path()) {
                check_movable(&pair.place)?;
            }
        }
        // An undo that has begun was allowed.
        let is_begun = self.record.state == State::Undoing;
        if !is_begun && !discards && self.has_accepted_writes()? {
            let aside = self.record.data.undone.display();
            return Err(err!(
                Refused,
                "the cluster in \"{}\" has accepted writes since it was put there",
                self.data().display()
            )
            .hint(format!(
                "Nothing was changed. The old cluster does not have these writes. To undo nevertheless, add --discard-changes: the new cluster is kept as {aside}"
            )));
        }
        Ok(())
    }

    fn write(&self, host: &Host) -> Result<()> {
        let json = serde_json::to_vec_pretty(&self.record).map_err(|e| {
            err!(Refused, "a path is not UTF-8")
                .source(e)
                .hint(UNCHANGED)
        })?;
        durable::replace(&self.path, &json, host.random()).map_err(|e| failed(&self.path, e))
    }

    /// Locks the new cluster's directory: one process at a time exchanges names.
    fn lock(&self) -> Result<Option<File>> {
        use rustix::fs::FlockOperation::NonBlockingLockExclusive;
        let Some(path) = self.record.data.find(Side::New)? else {
            return Ok(None);
        };
        let file = File::open(path).map_err(|e| looked(path, e))?;
        match rustix::fs::flock(&file, NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                Err(
                    err!(Locked, "another process works on \"{}\"", path.display())
                        .hint("Nothing was changed. Wait for it."),
                )
            }
            // Some network filesystems have no locks.
            _ => Ok(Some(file)),
        }
    }

    fn switch(&self, way: Way) -> Result<()> {
        let (incoming, outgoing) = way.sides();
        let data = &self.record.data;
        if !self.record.others.is_empty() {
            // From here on no server starts on a mixture of the two.
            self.name_control(outgoing, CONTROL, CLOSED)?;
            if let Err(e) = self.check_nobody(outgoing) {
                self.name_control(outgoing, CLOSED, CONTROL)?;
                return Err(e);
            }
            self.record
                .others
                .iter()
                .try_for_each(|pair| pair.put(way))?;
        }
        self.name_control(incoming, CLOSED, CONTROL)?;
        data.put(way)?;
        if let Err(e) = self.check_nobody(outgoing) {
            // The server works in its directory whatever that is called.
            let back = if incoming == Side::New {
                Way::Back
            } else {
                Way::Replace
            };
            data.put(back)?;
            return Err(e);
        }
        self.name_control(outgoing, CONTROL, CLOSED)?;
        let pairs = self.record.others.iter();
        pairs.for_each(Pair::tidy);
        Ok(())
    }

    fn check_nobody(&self, side: Side) -> Result<()> {
        match self.record.data.find(side)? {
            Some(at) => check_stopped(at),
            None => Ok(()),
        }
    }

    /// Gives pg_control of a cluster another name, if it has the first one.
    fn name_control(&self, side: Side, from: &str, to: &str) -> Result<()> {
        let Some(data) = self.record.data.find(side)? else {
            return Ok(());
        };
        let (from, to) = (data.join(from), data.join(to));
        if inode_of(&from)?.is_none() && inode_of(&to)?.is_some() {
            return Ok(());
        }
        move_to(&from, &to)?;
        let global = data.join("global");
        durable::sync_directory_at(&global).map_err(|e| failed(&global, e))
    }

    /// Makes pg_wal of the new cluster the link that the old one has; its files were copied to where the link leads.
    fn link_wal(&self) -> Result<()> {
        let data = &self.record.data;
        let (Some(old), Some(new)) = (data.find(Side::Old)?, data.find(Side::New)?) else {
            return Ok(());
        };
        let Ok(text) = std::fs::read_link(old.join("pg_wal")) else {
            return Ok(());
        };
        let (wal, link) = (new.join("pg_wal"), new.join(LINK));
        if std::fs::read_link(&wal).is_err() {
            if inode_of(&link)?.is_none() {
                let (directory, name) = open_parent(&link)?;
                durable::link_to(directory.as_fd(), &name, &text)
                    .map_err(|e| failed(&link, e.into()))?;
            }
            let aside = beside(&wal, "pitr-plain");
            exchange(&link, &wal, &aside)?;
            if inode_of(&aside)?.is_some() {
                move_to(&aside, &link)?;
            }
        }
        match std::fs::remove_dir_all(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&link, e)),
            _ => {}
        }
        durable::sync_directory_at(new).map_err(|e| failed(new, e))
    }
}

/// Closes a restored cluster that an earlier version left open. One on which a server has run is refused: it is not the backup any more.
fn close_waiting(waiting: &Path) -> Result<()> {
    let open = waiting.join(CONTROL);
    if inode_of(&open)?.is_none() {
        return Ok(());
    }
    // A server renames the label as soon as it recovers.
    if inode_of(&waiting.join("backup_label"))?.is_none() {
        return Err(err!(
            Refused,
            "a server has run in \"{}\", which was to take the place of the old cluster",
            waiting.display()
        )
        .hint("The old cluster is in its place as before. Remove that directory, then run the same command again."));
    }
    move_to(&open, &waiting.join(CLOSED))?;
    let global = waiting.join("global");
    durable::sync_directory_at(&global).map_err(|e| failed(&global, e))
}

/// The bytes of a cluster's pg_control, whichever name it has.
fn control_of(data: &Path) -> Result<Option<Vec<u8>>> {
    match read_limited(&data.join(CONTROL))? {
        Some(bytes) => Ok(Some(bytes)),
        None => read_limited(&data.join(CLOSED)),
    }
}

/// Copies the files of a restored pg_wal beside the directory in which they are to lie: a handful, for no server has run there.
fn stage_wal(waiting: &Path, real: &Path) -> Result<()> {
    let (from, to) = (waiting.join("pg_wal"), beside(real, WAITING));
    // An earlier run may have left it there, before it recorded anything.
    match std::fs::remove_dir_all(&to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&to, e)),
        _ => {}
    }
    copy_directory(&from, &to)?;
    let parent = to.parent().unwrap_or(&to);
    durable::sync_directory_at(parent).map_err(|e| failed(parent, e))
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    let mode = std::fs::symlink_metadata(from).map_err(|e| looked(from, e))?;
    std::fs::create_dir(to).map_err(|e| failed(to, e))?;
    for entry in std::fs::read_dir(from).map_err(|e| looked(from, e))? {
        let entry = entry.map_err(|e| looked(from, e))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|e| looked(&from, e))?;
        if kind.is_dir() {
            copy_directory(&from, &to)?;
            continue;
        }
        std::fs::copy(&from, &to).map_err(|e| failed(&to, e))?;
        File::open(&to)
            .and_then(|file| durable::sync_file(&file))
            .map_err(|e| failed(&to, e))?;
    }
    std::fs::set_permissions(to, mode.permissions()).map_err(|e| failed(to, e))?;
    durable::sync_directory_at(to).map_err(|e| failed(to, e))
}

/// `NAME.END`, in the same directory.
fn beside(path: &Path, end: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let name = [name.as_bytes(), b".", end.as_bytes()].concat();
    path.with_file_name(OsStr::from_bytes(&name))
}

fn pair(place: PathBuf, [waiting, replaced, undone]: [PathBuf; 3]) -> Result<Pair> {
    Ok(Pair {
        old: inode_of(&place)?,
        new: inode_of(&waiting)?,
        place,
        waiting,
        replaced,
        undone,
    })
}

/// The time in names, such as `20261120T064049Z`; a number follows where a name of that second is taken.
fn free_stamp(data: &Path, now: TimestampTz) -> String {
    let digits = now.to_string();
    let digits = digits.chars().filter(|c| c.is_ascii_digit() || *c == 'T');
    let stamp: String = digits.take("20261120T064049".len()).chain(['Z']).collect();
    let is_taken = |stamp: &String| {
        let mut names = ["replaced", "undone"].into_iter();
        names
            .any(|name| std::fs::symlink_metadata(beside(data, &format!("{name}-{stamp}"))).is_ok())
    };
    let mut numbered = (2..1000).map(|n| format!("{stamp}-{n}"));
    match is_taken(&stamp) {
        false => stamp,
        true => numbered.find(|one| !is_taken(one)).unwrap_or(stamp),
    }
}

/// The name of a cluster's directory in each tablespace.
fn version_of(control: &ControlFile) -> String {
    format!("PG_{}_{}", control.major.number(), control.catalog_version)
}

/// The links to a cluster's tablespaces. A tablespace that is a plain directory lies in the data directory.
fn linked_tablespaces(data: &Path) -> Result<Vec<PathBuf>> {
    let links = data.join("pg_tblspc");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&links).map_err(|e| looked(&links, e))? {
        let link = entry.map_err(|e| looked(&links, e))?.path();
        if std::fs::read_link(&link).is_ok() {
            found.push(link);
        }
    }
    Ok(found)
}

/// `replaced-<time>` of `DIR.replaced-<time>`.
fn end_of(data: &Pair, aside: &Path) -> String {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let (place, aside) = (name(&data.place), name(aside));
    let end = aside
        .strip_prefix(&place)
        .and_then(|rest| rest.strip_prefix('.'));
    end.unwrap_or(&aside).to_owned()
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Root would follow names that the server's user exchanges meanwhile.
fn check_user() -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => Err(err!(
            Refused,
            "root does not exchange directories of the server's user"
        )
        .hint(
            "Nothing was changed. Run the command as the server's user: sudo -u postgres pitr …",
        )),
        false => Ok(()),
    }
}

/// Requires that no server runs in a data directory, as far as its files tell.
fn check_stopped(data: &Path) -> Result<()> {
    match inode_of(&data.join("postmaster.pid"))? {
        None => Ok(()),
        Some(_) => Err(err!(
            Refused,
            "a server may run in \"{}\": postmaster.pid is there",
            data.display()
        )
        .hint("Nothing was changed. Stop the server. Where it was killed, and runs nowhere else, in no container either, remove postmaster.pid.")),
    }
}

/// Requires that a directory can get another name beside it, and that nothing is mounted in it.
fn check_movable(path: &Path) -> Result<()> {
    let refused = |why: String| {
        Err(err!(Refused, "\"{}\" cannot be moved aside: {why}", path.display()).hint(
            "Nothing was changed. Restore into another directory, or take this one back where it is with --delta.",
        ))
    };
    let own = std::fs::symlink_metadata(path).map_err(|e| looked(path, e))?;
    let Some(parent) = path.parent() else {
        return refused("it is the root directory".into());
    };
    let above = std::fs::metadata(parent).map_err(|e| looked(parent, e))?;
    if let Some(mount) = mounted_in(path)? {
        return refused(format!(
            "a filesystem is mounted on \"{}\"",
            mount.display()
        ));
    }
    if own.dev() != above.dev() {
        return refused("it is a filesystem of its own".into());
    }
    if let Some(why) = owner_and_rights(&own, parent) {
        return refused(why);
    }
    if path.to_str().is_none() {
        return refused("its path is not UTF-8".into());
    }
    Ok(())
}

/// The reason for which we cannot rename an entry.
fn owner_and_rights(own: &Metadata, parent: &Path) -> Option<String> {
    let me = rustix::process::geteuid().as_raw();
    if own.uid() != me {
        return Some(format!("it belongs to user id {}, we are {me}", own.uid()));
    }
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    let writes = rustix::fs::accessat(rustix::fs::CWD, parent, rights, AtFlags::EACCESS);
    writes
        .err()
        .map(|_| format!("we may not write into \"{}\"", parent.display()))
}

/// Requires that the old cluster's directory in a tablespace can be moved within it.
fn check_tablespace(old: &Old, space: &Path) -> Result<()> {
    if space.starts_with(&old.data) {
        return Err(err!(
            Refused,
            "tablespace \"{}\" lies in the data directory",
            space.display()
        )
        .hint("Nothing was changed. Restore into another directory."));
    }
    let own = space.join(&old.version);
    match inode_of(&own)? {
        None => Ok(()),
        Some(_) => check_movable(&own),
    }
}

/// The first filesystem that is mounted on a directory or below it.
///
/// Linux: proc_pid_mountinfo(5); the fifth field is the mount point, with white space and backslashes as octal numbers.
fn mounted_in(path: &Path) -> Result<Option<PathBuf>> {
    let table = "/proc/self/mountinfo";
    let text = std::fs::read(table).map_err(|e| looked(Path::new(table), e))?;
    let mut points = text.split(|b| *b == b'\n').filter_map(|line| {
        let field = line.split(|b| *b == b' ').nth(4)?;
        Some(PathBuf::from(std::ffi::OsString::from_vec(unescaped(
            field,
        ))))
    });
    Ok(points.find(|point| point.starts_with(path)))
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let number = after
            .first_chunk::<3>()
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        rest = match number {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
        out.push(number.unwrap_or(byte));
    }
    out
}

fn unarchived(directory: &DataDirectory) -> usize {
    let status = std::fs::read_dir(directory.wal().join("archive_status"));
    let entries = status.into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_bytes().ends_with(b".ready"))
        .count()
}

/// The inode of an entry, no link followed; none where nothing is.
fn inode_of(path: &Path) -> Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found.ino())),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(looked(path, e)),
    }
}

fn make_private(path: &Path) -> Result<()> {
    if inode_of(path)?.is_some() {
        return Ok(());
    }
    let (directory, name) = open_parent(path)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    durable::create_directory(directory.as_fd(), &name).map_err(|e| failed(path, e))
}

/// Opens the directory around an entry, and returns the entry's name.
fn open_parent(path: &Path) -> Result<(OwnedFd, Vec<u8>)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(err!(Internal, "\"{}\" has no parent", path.display()));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(parent, flags, Mode::empty()).map_err(|e| looked(parent, e.into()))?;
    Ok((directory, name.as_bytes().to_vec()))
}

fn move_to(from: &Path, to: &Path) -> Result<()> {
    let ((source, old), (target, new)) = (open_parent(from)?, open_parent(to)?);
    durable::move_to_free((source.as_fd(), &old), (target.as_fd(), &new))
        .map_err(|e| failed(from, e.into()))
}

/// Exchanges two entries. On a filesystem that cannot, nothing is at `place` for a moment, and its entry takes the name `aside`.
fn exchange(from: &Path, place: &Path, aside: &Path) -> Result<()> {
    let ((source, old), (target, new)) = (open_parent(from)?, open_parent(place)?);
    match durable::exchange((source.as_fd(), &old), (target.as_fd(), &new)) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            move_to(place, aside)?;
            move_to(from, place)
        }
        answer => answer.map_err(|e| failed(place, e.into())),
    }
}

fn failed(path: &Path, e: io::Error) -> Error {
    write_error(&path.display().to_string(), e)
}

fn looked(path: &Path, e: io::Error) -> Error {
    Error::from_io(format!("look at \"{}\"", path.display()), e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        assert_eq!(unescaped(b"/a\\040b\\134"), b"/a b\\");
        assert_eq!(unescaped(b"/plain\\9"), b"/plain\\9");
        assert_eq!(
            mounted_in(Path::new("/proc")).unwrap().unwrap(),
            Path::new("/proc")
        );
        let nowhere = tempfile::tempdir().unwrap();
        assert_eq!(mounted_in(nowhere.path()).unwrap(), None);
    }

    /// Whatever state a kill leaves, each direction leads to its end from there.
    #[test]
    fn a_pair_goes_both_ways_from_every_state() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (n, (first, second)) in [
            ("d", "d.pitr-new"),
            ("d.pitr-new", "d"),
            ("d.replaced", "d"),
            ("d.replaced", "d.pitr-new"),
            ("d", "d.undone"),
            ("d.pitr-new", "d.undone"),
        ]
        .into_iter()
        .enumerate()
        {
            for way in [Way::Replace, Way::Back, Way::Undo] {
                for name in ["d", "d.pitr-new", "d.replaced", "d.undone"] {
                    let _ = std::fs::remove_dir_all(at(name));
                }
                for (name, content) in [(first, "old"), (second, "new")] {
                    std::fs::create_dir(at(name)).unwrap();
                    std::fs::write(at(name).join("which"), content).unwrap();
                }
                let pair = Pair {
                    place: at("d"),
                    waiting: at("d.pitr-new"),
                    replaced: at("d.replaced"),
                    undone: at("d.undone"),
                    old: inode_of(&at(first)).unwrap(),
                    new: inode_of(&at(second)).unwrap(),
                };
                pair.put(way).unwrap();
                let which = |name: &str| std::fs::read_to_string(at(name).join("which")).ok();
                let (in_place, aside, other) = match way {
                    Way::Replace => ("new", "d.replaced", "old"),
                    Way::Back => ("old", "d.pitr-new", "new"),
                    Way::Undo => ("old", "d.undone", "new"),
                };
                assert_eq!(which("d").as_deref(), Some(in_place), "{n} {way:?}");
                assert_eq!(which(aside).as_deref(), Some(other), "{n} {way:?}");
                assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
            }
        }
    }

    #[test]
    fn a_foreign_directory_in_the_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["d", "d.pitr-new", "d.replaced"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let pair = Pair {
            place: at("d"),
            waiting: at("d.pitr-new"),
            replaced: at("d.replaced"),
            undone: at("d.undone"),
            old: inode_of(&at("d.replaced")).unwrap(),
            new: inode_of(&at("d.pitr-new")).unwrap(),
        };
        let refused = pair.put(Way::Replace).unwrap_err();
        assert!(
            refused.to_string().contains("another directory"),
            "{refused}"
        );
        assert!(at("d.pitr-new").exists() && at("d").exists());
    }
}
