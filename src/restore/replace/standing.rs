//! A replacement that is recorded, and how far it came.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::entry::{beside, failed, inode_of, looked};
use super::movable::check_movable;
use super::old::{linked_tablespaces, version_of};
use super::pair::{Pair, end_of, pair};
use super::waiting::name_control;
use super::{
    FORMAT, RECORD, Side, UNCHANGED, WAITING, Way, check_stopped, check_user, control_of, digest,
    wal,
};
use crate::archive::datadir::DataDirectory;
use crate::archive::guard::read_limited;
use crate::durable;
use crate::err;
use crate::error::Result;
use crate::fault;
use crate::host::Host;
use crate::pg::control::ClusterState;
use crate::pg::time::TimestampTz;
use crate::restore::target_dir::{CLOSED, CONTROL};

/// The record of a replacement, beside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format: u32,
    /// The purpose of the file, for people.
    pub(super) note: String,
    pub(super) asked: String,
    pub(super) backup: String,
    pub(super) target: String,
    pub(super) began: TimestampTz,
    pub(super) state: State,
    /// BLAKE3 of the new cluster's pg_control as it was restored.
    pub(super) control: String,
    /// BLAKE3 of the old cluster's pg_control; earlier versions did not take it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) old_control: Option<String>,
    /// BLAKE3 of the new cluster's pg_control when an undo was allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) allowed: Option<String>,
    pub(super) data: Pair,
    /// Directories outside of the data directory.
    pub(super) others: Vec<Pair>,
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

/// A replacement that is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub(super) path: PathBuf,
    pub(super) record: Record,
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

    /// The new cluster's data directory, wherever it is.
    ///
    /// # Errors
    /// `NotFound` where it is gone; those of the system.
    pub fn restored(&self) -> Result<Option<&Path>> {
        self.record.data.find(Side::New)
    }

    /// The new cluster's pg_wal, wherever it is: until all names are exchanged its link leads to that of the old one.
    ///
    /// # Errors
    /// As [`Standing::restored`].
    pub fn restored_wal(&self) -> Result<Option<PathBuf>> {
        let Some(data) = self.restored()? else {
            return Ok(None);
        };
        let wal = data.join("pg_wal");
        let Ok(real) = wal.canonicalize() else {
            return Ok(Some(wal));
        };
        let linked = self.record.others.iter().find(|pair| pair.place == real);
        match linked {
            Some(pair) => Ok(pair.find(Side::New)?.map(Path::to_owned)),
            None => Ok(Some(wal)),
        }
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
    /// As [`replace`](super::replace).
    pub fn finish(&mut self, host: &Host) -> Result<()> {
        let _lock = self.lock()?;
        if let Some(at) = self.record.data.find(Side::Old)? {
            check_stopped(at)?;
        }
        self.check_unchanged()?;
        let data = &self.record.data;
        if let (Some(old), Some(new)) = (data.find(Side::Old)?, data.find(Side::New)?) {
            wal::link_as(old, new)?;
        }
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
            if now.as_ref() != wanted {
                let (to, began) = (data.place.display(), self.record.began);
                let at = at.display();
                let why = match wanted {
                    Some(_) => format!(
                        "a server has run in \"{at}\" since the replacement of {began} was interrupted"
                    ),
                    None => format!(
                        "the interrupted replacement of {began} is of an earlier version, which did not take down the state of \"{at}\": a server may have run there since"
                    ),
                };
                return Err(err!(Refused, "{why}")
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
                check_movable(&pair.place, rustix::process::geteuid().as_raw())?;
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

    pub(super) fn write(&self, host: &Host) -> Result<()> {
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
        self.record.data.find(side)?.map_or(Ok(()), check_stopped)
    }

    /// Gives pg_control of a cluster another name, if it has the first one.
    fn name_control(&self, side: Side, from: &str, to: &str) -> Result<()> {
        let Some(data) = self.record.data.find(side)? else {
            return Ok(());
        };
        name_control(data, from, to)
    }
}
