//! The private folder of a clone, what is known of it, and what clones that were killed left.
//!
//! The process that mounts holds a lock on a file in the folder. A folder whose lock is free is left over: the next command that looks at
//! clones ends its server and removes it.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation::NonBlockingLockExclusive;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::last_step;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::operate::drill::sandbox;
use crate::operate::{leased, mounted};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;

/// The beginning of the folder's name.
const PREFIX: &str = "pitr-clone-";
const LOCK: &str = "clone.lock";
const STATE: &str = "clone.json";
/// A file once somebody wants to keep it; a directory once it is too late for that.
const KEEP: &str = "keep";
/// The directory that is mounted over.
const TREE: &str = "tree";

/// How far a clone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is laid out and mounted.
    Starting,
    /// The server replays WAL.
    Replaying,
    /// It takes queries.
    Ready,
    /// The same, while the rest of the content is copied.
    Copying,
    /// All content is there: a plain data directory as soon as the server stops. It is made durable.
    Settling,
    /// The same, and a power cut costs nothing of it.
    Whole,
    /// It was stopped, and is a plain data directory.
    Kept,
}

impl Stage {
    /// The stage in a word or two.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Starting => "lay out",
            Stage::Replaying => "replay",
            Stage::Ready => "ready",
            Stage::Copying => "copying",
            Stage::Settling => "settling",
            Stage::Whole => "whole",
            Stage::Kept => "kept",
        }
    }

    /// Whether all content is in the local directory.
    pub fn has_all(self) -> bool {
        matches!(self, Stage::Settling | Stage::Whole | Stage::Kept)
    }
}

/// The record of a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub id: String,
    pub cluster: String,
    /// The repository that gives the content.
    pub repository: String,
    pub backup: String,
    /// The target in words.
    pub target: String,
    /// How far it is.
    pub stage: Stage,
    /// When it was begun.
    pub began: TimestampTz,
    /// When it ends by itself; none once somebody wanted to keep it.
    pub ends: Option<TimestampTz>,
    /// The process that serves it.
    pub pid: u32,
    /// Its data directory.
    pub data: PathBuf,
    /// The position at which recovery ended.
    pub reached_lsn: Option<Lsn>,
    /// How to connect, for psql.
    pub connection: Option<String>,
    /// Milliseconds from the command to the first query.
    pub ready_after_ms: Option<u64>,
    /// The reason why a clone that was to be kept is not.
    #[serde(default)]
    pub not_kept: Option<String>,
}

/// A folder.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Chooses a name below a directory, and removes what is left over there.
    ///
    /// # Errors
    /// `Refused` where the directory is not there, or the path is too long for a socket.
    pub fn choose(below: &Path, random: u64) -> Result<PathBuf> {
        let below = leased::below(below)?;
        let path = below.join(format!("{PREFIX}{:06x}", random & 0xff_ffff));
        leased::check_path(&path)?;
        sweep(&below);
        Ok(path)
    }

    /// Makes the folder of a chosen name, and locks it.
    ///
    /// # Errors
    /// `Io`.
    pub fn make(path: &Path) -> Result<Folder> {
        let failed = |e| Error::from_io(format!("make \"{}\"", path.display()), e);
        let mut builder = std::fs::DirBuilder::new();
        // Every user who reaches the socket is a superuser of the server.
        builder.mode(0o700);
        let made = leased::make(LOCK, || builder.create(path).map(|()| path));
        let (_, lock) = made.map_err(failed)?;
        let folder = Folder {
            path: path.to_owned(),
            _lock: lock,
        };
        // Its name lasts, too, should it be kept.
        durable::sync_directory_at(path.parent().unwrap_or(path)).map_err(failed)?;
        builder.create(folder.tree()).map_err(failed)?;
        builder.create(folder.tablespaces()).map_err(failed)?;
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that is mounted over.
    pub fn tree(&self) -> PathBuf {
        tree_of(&self.path)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.tree().join("data")
    }

    /// The place of a tablespace.
    pub fn tablespace(&self, oid: u32) -> PathBuf {
        self.tablespaces().join(oid.to_string())
    }

    /// The directory of all tablespaces.
    pub fn tablespaces(&self) -> PathBuf {
        self.tree().join("tablespaces")
    }

    /// Writes what is known.
    ///
    /// # Errors
    /// `Io`.
    pub fn put(&self, state: &State) -> Result<()> {
        put(&self.path, state)
    }

    /// Whether somebody wants to keep it.
    pub fn is_wanted(&self) -> bool {
        is_asked_for(&self.path)
    }

    /// Forgets that somebody wants to keep it.
    pub fn unwant(&self) {
        let _ = std::fs::remove_file(self.path.join(KEEP));
    }

    /// Ends the time in which it can be kept; false where somebody wants to keep it. The directory takes the name of the wish, so that
    /// a wish is either seen here or refused.
    pub fn close(&self) -> bool {
        std::fs::create_dir(self.path.join(KEEP)).is_ok() || !self.is_wanted()
    }

    /// Removes the folder with all that is in it. The lock goes last: a folder without one is nobody's leftover.
    pub fn remove(self) {
        let _ = std::fs::remove_dir_all(self.tree());
        let entries = std::fs::read_dir(&self.path).into_iter();
        let entries = entries.flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name() != LOCK) {
            let _ = std::fs::remove_file(entry.path());
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }

    /// Leaves the folder behind; no later command removes it.
    pub fn release(self) {
        // Without it the folder is nobody's leftover. Its record says the same, should a power cut bring the lock back.
        let _ = std::fs::remove_file(self.path.join(LOCK));
        let _ = durable::sync_directory_at(&self.path);
    }
}

/// Removes a clone that is whole and could not be kept.
///
/// # Errors
/// `Io`.
pub fn discard(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder)
        .map_err(|e| Error::from_io(format!("remove \"{}\"", folder.display()), e))
}

/// The directory of a folder that is mounted over.
pub(super) fn tree_of(folder: &Path) -> PathBuf {
    folder.join(TREE)
}

/// Writes what is known of a clone.
///
/// # Errors
/// `Io`.
pub(super) fn put(folder: &Path, state: &State) -> Result<()> {
    let failed = |e| Error::from_io("write the state of the clone", e);
    let json = serde_json::to_vec_pretty(state)
        .map_err(|e| err!(Internal, "could not serialize the state").source(e))?;
    let nonce = u64::from(state.pid);
    durable::replace(&folder.join(STATE), &json, nonce).map_err(failed)
}

/// Reads what is known of a clone; none before it has written anything.
pub fn state(folder: &Path) -> Option<State> {
    let text = std::fs::read(folder.join(STATE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// All clones below a directory, after what is left over there was removed.
pub fn list(below: &Path) -> Vec<State> {
    sweep(below);
    let mut states: Vec<State> = folders(below).iter().filter_map(|f| state(f)).collect();
    states.sort_by(|a, b| (a.began, &a.id).cmp(&(b.began, &b.id)));
    states
}

/// Finds a clone by its name.
///
/// # Errors
/// `NotFound`, with the names that there are.
pub fn find(below: &Path, id: &str) -> Result<(PathBuf, State)> {
    let all = list(below);
    if let Some(state) = all.iter().find(|state| state.id == id) {
        return Ok((below.join(format!("{PREFIX}{id}")), state.clone()));
    }
    let names: Vec<&str> = all.iter().map(|state| state.id.as_str()).collect();
    let there = match names.is_empty() {
        true => "There is none".to_owned(),
        false => format!("There are {}", names.join(", ")),
    };
    Err(
        err!(NotFound, "no clone \"{id}\" below \"{}\"", below.display()).hint(format!(
            "{there}. Those of another directory need --dir DIR."
        )),
    )
}

/// The name of a clone, by its folder.
pub fn id_of(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(PREFIX).unwrap_or(&name).to_owned()
}

/// Asks the process of a clone to end; it stops the server and removes the folder. Without the lock the number may be another process's.
pub fn ask_to_stop(folder: &Path, state: &State) {
    let pid = i32::try_from(state.pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid.filter(|_| is_held(folder)) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Asks the process of a clone to keep it.
///
/// # Errors
/// `Refused` for one whose time is over; `Io`.
pub fn ask_to_keep(folder: &Path) -> Result<()> {
    let made = File::create_new(folder.join(KEEP)).map(drop);
    match made {
        Err(_) if is_asked_for(folder) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(err!(
            Refused,
            "the time of the clone is over, and it is being thrown away"
        )
        .hint("Nothing was done. The same moment can be cloned again.")),
        made => made.map_err(|e| Error::from_io("ask to keep the clone", e)),
    }
}

/// Whether somebody has asked for a clone to be kept.
pub fn is_asked_for(folder: &Path) -> bool {
    folder.join(KEEP).is_file()
}

/// Whether a process holds the folder.
pub fn is_held(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join(LOCK)) else {
        return false;
    };
    rustix::fs::flock(&lock, NonBlockingLockExclusive).is_err()
}

/// The folders of clones, without links in their paths, as their servers and mounts have them.
fn folders(below: &Path) -> Vec<PathBuf> {
    let below = below.canonicalize().unwrap_or_else(|_| below.to_owned());
    leased::folders(&below, PREFIX)
}

/// Removes the folders of clones that were killed, and finishes those that are whole. A folder that cannot be removed costs room only.
fn sweep(below: &Path) {
    for path in folders(below) {
        let Some(_lock) = leased::take_over(&path, LOCK) else {
            continue;
        };
        match state(&path) {
            Some(state) if state.stage == Stage::Kept => {
                // A power cut, or a kill behind its last step, has left the lock.
                drop(std::fs::remove_file(path.join(LOCK)));
            }
            Some(state) if state.stage == Stage::Whole => finish(&path, &state),
            _ if end_server(&path) => drop(std::fs::remove_dir_all(&path)),
            _ => {}
        }
    }
}

/// Ends what is left of the server and of the mount; whether the server has ended.
fn end_server(folder: &Path) -> bool {
    let tree = folder.join(TREE);
    let has_ended = sandbox::stop(&tree.join("data"));
    if has_ended {
        mounted::leave(&tree);
    }
    has_ended
}

/// Does the last step of a whole clone whose process was killed, or that a power cut has ended. The next command tries again where it fails.
fn finish(folder: &Path, state: &State) {
    if !end_server(folder) {
        return;
    }
    match last_step::take(folder, state) {
        Ok(_) => drop(std::fs::remove_file(folder.join(LOCK))),
        Err(e) => drop(put(folder, &not_kept(state, &e))),
    }
}

/// The record of a clone that has all content, and whose last step has failed.
pub(super) fn not_kept(state: &State, e: &Error) -> State {
    State {
        connection: None,
        not_kept: Some(e.to_string()),
        ..state.clone()
    }
}
