//! The place that is restored to: everything that is checked before the first write.
//!
//! A refusal here has changed nothing. The files of a directory alone tell whether it is new, holds an unfinished
//! restore, or holds foreign data. To which request an unfinished restore belongs is a matter of [`super::job`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, Gid, Uid};
use serde::{Deserialize, Serialize};

use super::replace::{Old, WAITING};
use super::room;
use super::tree::{LOST_AND_FOUND, Owner, is_roots_alone};
use crate::archive::datadir::DataDirectory;
use crate::archive::guard::{SETTINGS, UNFINISHED, read_limited};
use crate::archive::pid_file::PidFile;
use crate::config::roots;
use crate::durable::TEMPORARY_PREFIX;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::control::{ClusterState, ControlHead};
use crate::pg::segment::SegmentName;
use crate::repo::root::cluster::Tablespace;
use crate::text::{hex, path_of, shell_word, text_or_hex};

/// The name under which pg_control waits until everything else is durable, relative to the data directory.
pub const WAITING_CONTROL: &str = "global/pg_control.pitr";
/// Its final place.
pub const CONTROL: &str = "global/pg_control";
/// The name of pg_control in a cluster that is not in its place: no server starts there.
pub const CLOSED: &str = "global/pg_control.pitr-closed";

/// One `--tablespace-mapping OLD=NEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The directory the tablespace had, or its oid; or `*` for every one.
    pub old: OsString,
    /// The directory it gets, absolute.
    pub new: PathBuf,
}

/// Stands for every tablespace: each gets a directory below the new one that is named by its oid. No operator can write it.
const EVERY: &str = "*";

impl Mapping {
    /// Has every tablespace below a directory, by its oid.
    pub fn every(below: PathBuf) -> Mapping {
        Mapping {
            old: EVERY.into(),
            new: below,
        }
    }

    /// Reads `OLD=NEW`. An equals sign inside a directory is written `\=`, as for pg_basebackup.
    ///
    /// # Errors
    /// `Usage`.
    pub fn parse(text: &OsStr) -> Result<Mapping> {
        let wrong = || {
            err!(
                Usage,
                "\"{}\" is not OLD=NEW: OLD is an absolute directory or an OID, NEW an absolute directory",
                text.display()
            )
        };
        let sides = split_at_equals(text.as_bytes());
        let [old, new] = sides.as_slice() else {
            return Err(wrong());
        };
        let oid = std::str::from_utf8(old).ok().and_then(|t| t.parse().ok());
        let is_oid = oid.is_some_and(|oid: u32| oid > 0);
        if !(old.starts_with(b"/") || is_oid) || !new.starts_with(b"/") {
            return Err(wrong());
        }
        Ok(Mapping {
            old: OsString::from_vec(old.clone()),
            new: PathBuf::from(OsString::from_vec(new.clone())),
        })
    }

    /// The mapping in the record of a restore, by which the same request is known again.
    pub fn recorded(&self) -> String {
        let words = [self.old.as_os_str(), self.new.as_os_str()];
        match (words[0].to_str(), words[1].to_str()) {
            (Some(old), Some(new)) => format!("{old}={new}"),
            _ => format!("hex {}", words.map(|w| hex(w.as_bytes())).join("=")),
        }
    }
}

/// PostgreSQL: src/bin/pg_basebackup/pg_basebackup.c, `tablespace_list_append`.
fn split_at_equals(text: &[u8]) -> Vec<Vec<u8>> {
    let mut sides = Vec::new();
    let mut side = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if bytes.peek() == Some(&b'=') => side.extend(bytes.next()),
            b'=' => sides.push(std::mem::take(&mut side)),
            _ => side.push(byte),
        }
    }
    sides.push(side);
    sides
}

/// The places asked for, and those that must be kept away from.
pub struct Wanted<'a> {
    /// The data directory, absolute.
    pub to: &'a Path,
    /// The places for tablespaces.
    pub mappings: &'a [Mapping],
    /// Whether the others may go where the backup says.
    pub as_in_backup: bool,
    /// Directories of repositories on this host.
    pub repositories: &'a [PathBuf],
    /// The home directory of whoever runs this.
    pub home: Option<&'a Path>,
    /// Whether a data directory may be restored in place.
    pub delta: bool,
    /// The data directory that the one at `to` is to replace.
    pub replaces: Option<&'a Old>,
}

/// The state of the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or an empty directory.
    Empty,
    /// An unfinished restore, with its record.
    Unfinished(Vec<u8>),
    /// A restore of which only the name of pg_control is missing, with its record.
    LastStep(Vec<u8>),
    /// A data directory that is to be restored in place.
    Data {
        system_identifier: u64,
        /// BLAKE3 of its pg_control: a server that has run since has changed it.
        control: blake3::Hash,
    },
}

/// A tablespace and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PlacedText", into = "PlacedText")]
pub struct PlacedTablespace {
    pub oid: u32,
    /// Its place on the original host.
    pub original: PathBuf,
    /// Its new place, as the link in the data directory has it.
    pub path: PathBuf,
    /// The same place without links, as it was checked.
    pub real: PathBuf,
}

/// As JSON: a path that is no text stands in hexadecimal.
#[derive(Serialize, Deserialize)]
struct PlacedText {
    oid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    original: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    original_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl From<PlacedTablespace> for PlacedText {
    fn from(placed: PlacedTablespace) -> PlacedText {
        let (original, original_hex) = text_or_hex(&placed.original);
        let (path, path_hex) = text_or_hex(&placed.path);
        PlacedText {
            oid: placed.oid,
            original,
            original_hex,
            path,
            path_hex,
        }
    }
}

impl TryFrom<PlacedText> for PlacedTablespace {
    type Error = &'static str;

    fn try_from(text: PlacedText) -> std::result::Result<PlacedTablespace, Self::Error> {
        let original = path_of(text.original, text.original_hex.as_deref());
        let path = path_of(text.path, text.path_hex.as_deref());
        let path = path.ok_or("a tablespace without its place")?;
        Ok(PlacedTablespace {
            oid: text.oid,
            original: original.ok_or("a tablespace without its original place")?,
            // Each run looks at it anew.
            real: path.clone(),
            path,
        })
    }
}

/// A place that may be restored to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The data directory, without links.
    pub data: PathBuf,
    pub tablespaces: Vec<PlacedTablespace>,
    /// Whom the files are given to; none when they are ours.
    pub owner: Option<Owner>,
    /// The state that was found.
    pub found: Found,
    /// BLAKE3 of pg_control where an unfinished restore in place has not taken it away yet: servers may have run since.
    pub untaken: Option<blake3::Hash>,
    /// The name that pg_control gets in the end: [`CLOSED`] where the cluster has yet to take another one's place.
    pub control: &'static str,
}

impl Target {
    /// Whether a server can start on the cluster that is restored in place, so that nothing of it is changed yet.
    pub fn is_whole_cluster(&self) -> bool {
        matches!(self.found, Found::Data { .. }) || self.untaken.is_some()
    }
}

/// Space that a restore takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Need {
    /// Bytes by tablespace oid; 0 is the data directory.
    pub bytes: BTreeMap<u32, u64>,
    /// Files and directories, likewise.
    pub files: BTreeMap<u32, u64>,
    /// Bytes in pg_wal, which may be a filesystem of its own.
    pub wal_bytes: u64,
}

impl Need {
    /// So many bytes in pg_wal, and nothing else.
    pub fn of_wal(wal_bytes: u64) -> Need {
        Need {
            wal_bytes,
            ..Need::default()
        }
    }
}

/// Checks the data directory, before anything is planned. Changes nothing.
///
/// # Errors
/// `Refused` where restoring would harm something or cannot work.
pub fn look(wanted: &Wanted<'_>) -> Result<Target> {
    let data = resolve(wanted.to)?;
    check_not_special(&data, wanted)?;
    check_not_inside_another(&data)?;
    let found = inspect(&data, wanted.delta, wanted.replaces.is_some())?;
    let untaken = untaken(&data, wanted.delta, &found)?;
    let owner = check_rights(&data)?;
    Ok(Target {
        data,
        tablespaces: Vec::new(),
        owner,
        found,
        untaken,
        control: wanted.replaces.map_or(CONTROL, |_| CLOSED),
    })
}

/// Finds and checks the places of the backup's tablespaces. Changes nothing.
///
/// # Errors
/// `Refused` as [`look`]; `Usage` for mappings that fit no tablespace or clash.
pub fn place(target: Target, wanted: &Wanted<'_>, tablespaces: &[Tablespace]) -> Result<Target> {
    let tablespaces = place_tablespaces(wanted, &target.data, tablespaces)?;
    Ok(Target {
        tablespaces: check_tablespaces(tablespaces, &target, wanted)?,
        ..target
    })
}

/// Requires that the directory, which is locked by now, is as it was when the restore was planned: a server may have run in it, or another restore ended.
///
/// # Errors
/// `Refused`; those of [`look`].
pub fn check_as_found(target: &Target, delta: bool) -> Result<()> {
    let found = inspect(&target.data, delta, target.control == CLOSED)?;
    let untaken = untaken(&target.data, delta, &found)?;
    if found != target.found || untaken != target.untaken {
        return Err(err!(
            Refused,
            "directory \"{}\" has changed since the restore was planned",
            target.data.display()
        )
        .hint("Nothing was changed. Look who uses it, then run the same command again."));
    }
    match untaken {
        Some(_) => in_place(&target.data).map(|_| ()),
        None => Ok(()),
    }
}

/// BLAKE3 of pg_control where a restore in place was killed before it took that away.
fn untaken(data: &Path, delta: bool, found: &Found) -> Result<Option<blake3::Hash>> {
    if !delta || !matches!(found, Found::Unfinished(_)) {
        return Ok(None);
    }
    let control = read_limited(&data.join(CONTROL))?;
    Ok(control.map(|bytes| blake3::hash(&bytes)))
}

/// The place without links: of a directory that does not exist yet, its parent's.
fn resolve(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let failed = |e| Error::from_io(format!("look at \"{shown}\""), e);
    match std::fs::symlink_metadata(path) {
        Ok(_) => {
            let real = path.canonicalize().map_err(failed)?;
            if real.is_dir() {
                return Ok(real);
            }
            Err(err!(Refused, "\"{shown}\" is not a directory")
                .hint("Nothing was written. Name a directory that is empty or not there yet."))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(Component::Normal(name))) =
                (path.parent(), path.components().next_back())
            else {
                return Err(err!(Refused, "\"{shown}\" cannot be a data directory"));
            };
            // A missing parent may be a disk that is not mounted: making it would fill the disk below.
            let parent = parent.canonicalize().map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => {
                    err!(Refused, "directory \"{}\" does not exist", parent.display())
                        .hint("Nothing was written. Create it, or mount the disk it belongs to.")
                }
                _ => failed(e),
            })?;
            Ok(parent.join(name))
        }
        Err(e) => Err(failed(e)),
    }
}

/// Not a place where other things live.
fn check_not_special(path: &Path, wanted: &Wanted<'_>) -> Result<()> {
    let shown = path.display();
    let refused = |why: String| {
        Err(err!(Refused, "cannot restore into \"{shown}\": {why}")
            .hint("Nothing was written. Name a directory of its own."))
    };
    if path.parent().is_none() {
        return refused("it is the root directory".into());
    }
    if wanted.home.and_then(|h| h.canonicalize().ok()).as_deref() == Some(path) {
        return refused("it is your home directory".into());
    }
    // A volume of a container is the data directory itself. In place nothing but its content changes.
    if is_mount_point(path) && !(wanted.delta && holds_cluster(path)) {
        return refused("a filesystem is mounted on it".into());
    }
    for repository in wanted.repositories {
        let repository = repository.canonicalize().unwrap_or(repository.clone());
        if path.starts_with(&repository) || repository.starts_with(path) {
            return refused(format!("the repository is at \"{}\"", repository.display()));
        }
    }
    Ok(())
}

/// Whether a cluster is there that can be restored in place, or an unfinished restore of one. No data directory has `lost+found`: initdb refuses it.
fn holds_cluster(path: &Path) -> bool {
    let is_there = |name: &str| std::fs::symlink_metadata(path.join(name)).is_ok();
    let unfinished = format!("pg_wal/{UNFINISHED}");
    let is_any = [CONTROL, WAITING_CONTROL, &unfinished]
        .into_iter()
        .any(is_there);
    is_any && !is_there(LOST_AND_FOUND)
}

/// Not below a data directory, whether its server runs or not: what is there goes into that server's backups, and may be removed by it.
fn check_not_inside_another(path: &Path) -> Result<()> {
    const MARKS: [&str; 3] = ["PG_VERSION", "postmaster.pid", CONTROL];
    let is_there = |at: PathBuf| std::fs::symlink_metadata(at).is_ok();
    let is_data = |above: &&Path| MARKS.iter().any(|mark| is_there(above.join(mark)));
    match path.ancestors().skip(1).find(is_data) {
        None => Ok(()),
        Some(above) => Err(err!(
            Refused,
            "cannot restore into \"{}\": it is inside data directory \"{}\"",
            path.display(),
            above.display()
        )
        .hint("Nothing was written. The files would become a part of that cluster and of its backups. Name a directory outside of it.")),
    }
}

fn is_mount_point(path: &Path) -> bool {
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}

/// Tells an empty directory from an unfinished restore and from data.
fn inspect(data: &Path, delta: bool, is_replacing: bool) -> Result<Found> {
    let names = match names(data) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Empty),
        Err(e) => {
            return Err(Error::from_io(
                format!("read directory \"{}\"", data.display()),
                e,
            ));
        }
    };
    check_not_running(data, delta)?;
    let wal = data.join("pg_wal");
    if let Some(record) = read_limited(&wal.join(UNFINISHED))? {
        return Ok(Found::Unfinished(record));
    }
    let is_there = |name: &str| std::fs::symlink_metadata(data.join(name)).is_ok();
    // One that replaces another directory has yet to take its place.
    let is_last_step = is_there(WAITING_CONTROL) && !is_there(CONTROL);
    if (is_last_step || is_replacing)
        && let Some(record) = read_limited(&wal.join(SETTINGS))?
    {
        return Ok(Found::LastStep(record));
    }
    // A run that was killed before it could write its record leaves an empty pg_wal, which may be a filesystem of its own.
    let only_wal = names.iter().all(|n| n == "pg_wal");
    let is_nobodys = |n: &String| n == LOST_AND_FOUND || n.starts_with(TEMPORARY_PREFIX);
    let is_fresh = only_wal
        && (names.is_empty()
            || self::names(&wal).is_ok_and(|inside| inside.iter().all(is_nobodys)));
    if is_fresh {
        return Ok(Found::Empty);
    }
    if delta {
        return in_place(data);
    }
    let entries = match names.len() {
        1 => "1 entry".to_owned(),
        n => format!("{n} entries"),
    };
    Err(err!(
        Refused,
        "directory \"{}\" is not empty: {entries}",
        data.display()
    )
    .hint("Nothing was changed. Restore into an empty directory, or one that does not exist yet; --delta takes a data directory of the same cluster back in place."))
}

/// Requires a data directory whose server is stopped and whose WAL is archived.
fn in_place(data: &Path) -> Result<Found> {
    const UNCHANGED: &str = "Nothing was changed.";
    let shown = data.display();
    if std::fs::symlink_metadata(data.join("postmaster.pid")).is_ok() {
        return Err(err!(
            Refused,
            "a server may run in \"{shown}\": postmaster.pid is there"
        )
        .hint("Nothing was changed. Stop the server. Where it was killed, and runs nowhere else, in no container either, remove postmaster.pid."));
    }
    let control = read_limited(&data.join(CONTROL))?;
    let control = control.ok_or_else(|| {
        err!(
            Refused,
            "\"{shown}\" is no data directory: it has no {CONTROL}"
        )
        .hint(UNCHANGED)
    })?;
    let head = ControlHead::parse(&control).map_err(|e| {
        err!(
            Refused,
            "\"{shown}\" cannot be restored in place: its pg_control cannot be read"
        )
        .source(e)
        .hint("Nothing was changed. Restore into an empty directory.")
    })?;
    let wal = data.join("pg_wal");
    let found = std::fs::symlink_metadata(&wal);
    if matches!(&found, Err(e) if e.kind() == io::ErrorKind::NotFound) {
        return Err(err!(
            Refused,
            "\"{shown}\" cannot be restored in place: its pg_wal is gone"
        )
        .hint(format!(
            "Nothing was changed. Commits that were neither archived nor received are lost with it. Make an empty one as the server's user, and run the same command again:\nmkdir -m 700 {}",
            shell_word(&wal.to_string_lossy())
        )));
    }
    if !found.is_ok_and(|found| found.is_dir()) {
        return Err(err!(
            Refused,
            "\"{shown}\" cannot be restored in place: its pg_wal is no plain directory"
        )
        .hint("Nothing was changed. Restore into an empty directory."));
    }
    let status = names(&wal.join("archive_status")).unwrap_or_default();
    let waiting = status
        .iter()
        .filter(|name| name.ends_with(".ready"))
        .count();
    if waiting > 0 {
        return Err(err!(
            Refused,
            "\"{shown}\" holds WAL that was not archived: {waiting} files wait in pg_wal"
        )
        .hint(format!(
            "Nothing was changed. It would be lost. Bring it in first: pitr wal backfill --from {}, then remove pg_wal/archive_status/*.ready",
            shell_word(&wal.to_string_lossy())
        )));
    }
    check_clean(data, &wal)?;
    Ok(Found::Data {
        system_identifier: head.system_identifier,
        control: blake3::hash(&control),
    })
}

/// Requires that the server has offered all of its WAL to be archived, which it does when it is shut down, or that no WAL is there any more.
/// A standby offers none: the caller asks the repositories for it.
fn check_clean(data: &Path, wal: &Path) -> Result<()> {
    // A pg_control that cannot be read whole tells nothing, and is a reason to restore in place.
    let control = DataDirectory::at(data).control().ok().flatten();
    let state = control.map(|control| control.state);
    let is_clean = matches!(
        state,
        None | Some(ClusterState::ShutDown | ClusterState::ShutDownInRecovery)
    );
    let names = names(wal).unwrap_or_default();
    let mut segments = names
        .iter()
        .filter(|name| name.parse::<SegmentName>().is_ok());
    match is_clean || segments.next().is_none() {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "the server of \"{}\" was not shut down cleanly: its last WAL was never offered to be archived",
            data.display()
        )
        .hint(format!(
            "Nothing was changed. The last commits would be lost. Start the server and stop it cleanly. Or bring in the segments that are whole, and keep the rest elsewhere:\npitr wal backfill --from {0}\nmkdir {1} && mv {0}/* {1}/",
            shell_word(&wal.to_string_lossy()),
            shell_word(&format!("{}.kept", data.display()))
        ))),
    }
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    std::fs::read_dir(path)?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Requires that no server runs there; `delta` wants this very directory. A file that cannot be read is an error.
fn check_not_running(data: &Path, delta: bool) -> Result<()> {
    let Some(text) = read_limited(&data.join("postmaster.pid"))? else {
        return Ok(());
    };
    let file = PidFile::parse(&String::from_utf8_lossy(&text));
    let Some(pid) = file.pid.and_then(rustix::process::Pid::from_raw) else {
        return Ok(());
    };
    match rustix::process::test_kill_process(pid) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        _ => Err(err!(
            Refused,
            "PostgreSQL runs in \"{}\" with process id {}",
            data.display(),
            pid.as_raw_nonzero()
        )
        .hint(match delta {
            true => "Nothing was changed.\nStop the server, then run the same command again.",
            false => "Nothing was changed.\nRestore into another directory.",
        })),
    }
}

/// Returns the owner of the files to be. Servers refuse root, so a privileged user restores for the owner of the directory, or of the one
/// above.
fn check_rights(data: &Path) -> Result<Option<Owner>> {
    let existing = if data.exists() {
        data
    } else {
        data.parent().unwrap_or(data)
    };
    let failed = |e| Error::from_io(format!("look at \"{}\"", existing.display()), e);
    let meta = std::fs::metadata(existing).map_err(failed)?;
    let me = rustix::process::geteuid();
    if me.is_root() {
        if meta.uid() == 0 {
            return Err(err!(
                Refused,
                "\"{}\" belongs to root, and no server runs as root",
                existing.display()
            )
            .hint(format!(
                "Nothing was written. Run this as the server's user, or give it the directory first: install -d -o postgres -g postgres -m 700 {}",
                data.display()
            )));
        }
        return Ok(Some(Owner {
            uid: Uid::from_raw(meta.uid()),
            gid: Gid::from_raw(meta.gid()),
        }));
    }
    if existing == data && meta.uid() != me.as_raw() {
        return Err(err!(
            Refused,
            "directory \"{}\" belongs to user id {}, we are {}",
            data.display(),
            meta.uid(),
            me.as_raw()
        )
        .hint("Nothing was written. Run this as the server's user."));
    }
    check_writable(existing)?;
    Ok(None)
}

fn check_writable(directory: &Path) -> Result<()> {
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, directory, rights, AtFlags::EACCESS).map_err(|e| {
        err!(
            Refused,
            "directory \"{}\" cannot be written",
            directory.display()
        )
        .source(io::Error::from(e))
        .hint("Nothing was written. Correct its permissions, or name another directory.")
    })
}

/// Finds the place of each tablespace: as mapped; in a data directory that is restored in place as its link says; else where it was.
fn place_tablespaces(
    wanted: &Wanted<'_>,
    data: &Path,
    tablespaces: &[Tablespace],
) -> Result<Vec<PlacedTablespace>> {
    let mut used = vec![false; wanted.mappings.len()];
    let mut placed = Vec::new();
    let mut unmapped = Vec::new();
    for tablespace in tablespaces {
        let oid = tablespace.oid.to_string();
        let old = |m: &Mapping| m.old == *oid || same_location(&m.old, &tablespace.location);
        let mut fitting = wanted.mappings.iter().enumerate().filter(|(_, m)| old(m));
        let every = wanted.mappings.iter().find(|m| m.old == EVERY);
        let path = match (fitting.next(), fitting.next()) {
            (Some((i, mapping)), None) => {
                if let Some(used) = used.get_mut(i) {
                    *used = true;
                }
                mapping.new.clone()
            }
            (Some(_), Some(_)) => {
                return Err(err!(Usage, "tablespace {oid} is mapped twice"));
            }
            (None, _) => match every {
                Some(every) => every.new.join(&oid),
                None => linked(wanted, data, &oid).unwrap_or_else(|| {
                    unmapped.push(format!("{oid} in \"{}\"", tablespace.location.display()));
                    tablespace.location.clone()
                }),
            },
        };
        placed.push(PlacedTablespace {
            oid: tablespace.oid,
            original: tablespace.location.clone(),
            real: path.clone(),
            path,
        });
    }
    let mut asked = wanted.mappings.iter().zip(&used);
    if let Some((mapping, _)) = asked.find(|(m, used)| !**used && m.old != EVERY) {
        let known: Vec<String> = tablespaces
            .iter()
            .map(|t| format!("{} ({})", t.location.display(), t.oid))
            .collect();
        let e = err!(
            Usage,
            "the backup has no tablespace \"{}\"",
            mapping.old.display()
        );
        return Err(match known.is_empty() {
            true => e.hint("Nothing was written. It has none at all."),
            false => e.hint(format!("Nothing was written. It has: {}", known.join(", "))),
        });
    }
    if !unmapped.is_empty() && !wanted.as_in_backup {
        return Err(err!(
            Refused,
            "the backup has tablespaces outside of the data directory: {}",
            unmapped.join(", ")
        )
        .hint("Nothing was written. If they are to be there on this host, too, add --confirm; else give each a place: --tablespace-mapping OLD=NEW"));
    }
    Ok(placed)
}

/// Whether they are equal but for slashes at their ends.
fn same_location(a: &OsStr, b: &Path) -> bool {
    fn trimmed(mut bytes: &[u8]) -> &[u8] {
        while let Some(shorter) = bytes.strip_suffix(b"/") {
            bytes = shorter;
        }
        bytes
    }
    let (a, b) = (a.as_bytes(), b.as_os_str().as_bytes());
    trimmed(a) == trimmed(b) && a.starts_with(b"/")
}

/// Each in a directory of its own, apart from the data directory and from all else. Returns them with their places without links.
fn check_tablespaces(
    mut tablespaces: Vec<PlacedTablespace>,
    target: &Target,
    wanted: &Wanted<'_>,
) -> Result<Vec<PlacedTablespace>> {
    let mut taken: BTreeSet<PathBuf> = BTreeSet::new();
    for tablespace in &mut tablespaces {
        let mapped = tablespace.path != tablespace.original;
        let say = |e: Error| match mapped {
            true => e,
            false => e.hint(format!(
                "Nothing was written. Give it another place with --tablespace-mapping {}=DIR.",
                tablespace.oid
            )),
        };
        let path = resolve(&tablespace.path)
            .and_then(|path| beside_another(path, wanted))
            .map_err(|e| say(e.context(format!("place tablespace {}", tablespace.oid))))?;
        let shown = path.display();
        if path.starts_with(&target.data) || target.data.starts_with(&path) {
            return Err(say(err!(
                Usage,
                "tablespace {} cannot be in \"{shown}\": the data directory is \"{}\"",
                tablespace.oid,
                target.data.display()
            )));
        }
        if let Some(other) = taken
            .iter()
            .find(|o| path.starts_with(o) || o.starts_with(&path))
        {
            return Err(say(err!(
                Usage,
                "tablespace {} cannot be in \"{shown}\": another one is in \"{}\"",
                tablespace.oid,
                other.display()
            )));
        }
        check_not_special_tablespace(&path, wanted).map_err(say)?;
        check_not_inside_another(&path).map_err(say)?;
        check_tablespace_rights(&path, target).map_err(say)?;
        check_way(&tablespace.path, &path, mapped, target).map_err(say)?;
        taken.insert(path.clone());
        tablespace.real = path;
    }
    Ok(tablespaces)
}

/// The directory in which a tablespace is restored: where a data directory is replaced, it waits in that of the tablespace.
fn beside_another(path: PathBuf, wanted: &Wanted<'_>) -> Result<PathBuf> {
    let Some(old) = wanted.replaces else {
        return Ok(path);
    };
    let refused = |why: &str| {
        err!(
            Refused,
            "a tablespace cannot be in \"{}\": {why}",
            path.display()
        )
        .hint("Nothing was written. Name another directory: --tablespace-mapping OLD=NEW")
    };
    if path.starts_with(&old.data) {
        return Err(refused("it lies in the data directory that is replaced"));
    }
    let entries = names(&path).map_err(|e| refused("it is not there").source(e))?;
    if !old.has_tablespace(&path)
        && entries
            .iter()
            .any(|name| name != WAITING && name != LOST_AND_FOUND)
    {
        return Err(refused(
            "it is not empty, and not one of the cluster that is replaced",
        ));
    }
    Ok(path.join(WAITING))
}

/// Requires that a tablespace takes nothing from anybody: directories of the server's user, unless the operator names others.
///
/// A repository that somebody else wrote names places as it likes. So in a place that the operator did not name nothing is hidden, and root
/// makes or gives away nothing that the server's user could not make itself. If the operator names a place of root's, nobody else may have a
/// hand in where the path leads.
fn check_way(written: &Path, real: &Path, mapped: bool, target: &Target) -> Result<()> {
    let refused = |why: String| {
        let shown = written.display();
        Err(err!(
            Refused,
            "a tablespace cannot be in \"{shown}\": {why}"
        ))
    };
    let is_hidden = |part: Component<'_>| part.as_os_str().as_bytes().starts_with(b".");
    if !mapped && written.components().chain(real.components()).any(is_hidden) {
        return refused("a part of its path begins with a dot".into());
    }
    let owner = target
        .owner
        .map_or_else(rustix::process::geteuid, |o| o.uid)
        .as_raw();
    let look = |at: &Path| {
        std::fs::metadata(at)
            .map_err(|e| Error::from_io(format!("look at \"{}\"", at.display()), e))
    };
    let uid = |at: &Path| look(at).map(|m| m.uid());
    for above in real.ancestors().skip(1) {
        let found = look(above)?;
        if found.uid() != owner && !roots::is_roots(&found) {
            let (above, found) = (above.display(), found.uid());
            return refused(format!(
                "\"{above}\" belongs to user id {found}, neither root nor the server's user"
            ));
        }
    }
    let is_owners = uid(real).is_ok_and(|found| found == owner);
    let parent = real.parent().unwrap_or(real);
    if target.owner.is_none() || is_owners || uid(parent)? == owner {
        return Ok(());
    }
    let written_parent = written.parent().unwrap_or(written);
    match mapped && is_roots_alone(parent) && is_roots_alone(written_parent) {
        true => Ok(()),
        false => refused(format!(
            "it is root's. As the backup names it, make it yourself first: install -d -o {owner} -m 700 {}",
            written.display()
        )),
    }
}

/// A tablespace may well have a filesystem to itself.
fn check_not_special_tablespace(path: &Path, wanted: &Wanted<'_>) -> Result<()> {
    match is_mount_point(path) && path.parent().is_some() {
        true => Ok(()),
        false => check_not_special(path, wanted),
    }
}

fn check_tablespace_rights(path: &Path, target: &Target) -> Result<()> {
    let shown = path.display();
    let failed = |e| Error::from_io(format!("look at \"{shown}\""), e);
    let entries = match names(path) {
        Ok(mut entries) => {
            entries.retain(|name| name != LOST_AND_FOUND);
            entries
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return match target.owner {
                Some(_) => Ok(()),
                None => check_writable(path.parent().unwrap_or(path)),
            };
        }
        Err(e) => return Err(failed(e)),
    };
    let is_foreign = match target.found {
        Found::Empty => true,
        Found::Data { .. } => !is_linked_from(&target.data, path),
        _ => false,
    };
    if is_foreign && !entries.is_empty() {
        return Err(err!(
            Refused,
            "tablespace directory \"{shown}\" is not empty: {} entries",
            entries.len()
        )
        .hint(
            "Nothing was written. It may belong to a running cluster: name an empty directory.",
        ));
    }
    let owner = std::fs::metadata(path).map_err(failed)?.uid();
    match target.owner {
        Some(wanted) if owner == wanted.uid.as_raw() || owner == 0 => Ok(()),
        None if owner == rustix::process::geteuid().as_raw() => check_writable(path),
        _ => Err(err!(
            Refused,
            "tablespace directory \"{shown}\" belongs to user id {owner}, not to the server's user"
        )
        .hint("Nothing was written. Give it to the server's user.")),
    }
}

/// The place of a tablespace in a data directory that is restored in place, or replaced.
fn linked(wanted: &Wanted<'_>, data: &Path, oid: &str) -> Option<PathBuf> {
    let is_there = wanted.delta || wanted.replaces.is_some();
    let data = wanted.replaces.map_or(data, |old| &old.data);
    let link = data.join("pg_tblspc").join(oid);
    std::fs::read_link(link).ok().filter(|_| is_there)
}

/// Whether a data directory has a tablespace in this directory.
pub fn is_linked_from(data: &Path, tablespace: &Path) -> bool {
    let links = std::fs::read_dir(data.join("pg_tblspc"));
    let mut places = links.into_iter().flatten().flatten();
    places.any(|link| link.path().canonicalize().is_ok_and(|at| at == tablespace))
}

/// Requires that each filesystem has room for what comes to it. Files that an unfinished restore, or a cluster that is restored in place, has there count as room:
/// in a tablespace those below the directory of the server's `version`. Returns warnings of filesystems that have it only if they compress.
///
/// # Errors
/// `Refused` with the numbers.
pub fn check_space(target: &Target, need: &Need, version: &str) -> Result<Vec<String>> {
    struct Demand {
        place: PathBuf,
        bytes: u64,
        files: u64,
    }
    let mut demands: BTreeMap<u64, Demand> = BTreeMap::new();
    let wal = target.data.join("pg_wal");
    let wal_device = std::fs::symlink_metadata(&wal).ok().map(|meta| meta.dev());
    let mut wal_bytes = need.wal_bytes;
    let tablespaces = target.tablespaces.iter().map(|t| (t.oid, t.real.as_path()));
    for (oid, path) in std::iter::once((0, target.data.as_path())).chain(tablespaces) {
        let existing = path.ancestors().find(|p| p.exists()).unwrap_or(path);
        let failed = |e| Error::from_io(format!("look at \"{}\"", existing.display()), e);
        let device = std::fs::metadata(existing).map_err(failed)?.dev();
        let is_with_wal = oid == 0 && wal_device.is_none_or(|one| one == device);
        let with_it = match is_with_wal {
            true => std::mem::take(&mut wal_bytes),
            false => 0,
        };
        let (there_bytes, there_files) = match (&target.found, oid) {
            (Found::Empty, _) => (0, 0),
            (_, 0) => allocated(path, device),
            _ => allocated(&path.join(version), device),
        };
        let demand = demands.entry(device).or_insert(Demand {
            place: existing.to_owned(),
            bytes: 0,
            files: 0,
        });
        let of = |map: &BTreeMap<u32, u64>| map.get(&oid).copied().unwrap_or(0);
        demand.bytes += (of(&need.bytes) + with_it).saturating_sub(there_bytes);
        demand.files += of(&need.files).saturating_sub(there_files);
    }
    if let Some(device) = wal_device.filter(|_| wal_bytes > 0) {
        let (there, _) = allocated(&wal, device);
        let demand = demands.entry(device).or_insert(Demand {
            place: wal,
            bytes: 0,
            files: 0,
        });
        demand.bytes += wal_bytes.saturating_sub(there);
    }
    let mut warnings = Vec::new();
    for demand in demands.values() {
        let shown = demand.place.display();
        let stat = rustix::fs::statvfs(&demand.place).map_err(|e| {
            Error::from_io(format!("ask for the free space of \"{shown}\""), e.into())
        })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if demand.bytes > free && room::may_fit(&demand.place, demand.bytes, free) {
            warnings.push(format!(
                "the filesystem of \"{shown}\" has room for {} bytes only if it compresses them: {free} are free; the restore ends where it fills up, and the same command goes on once there is room",
                demand.bytes
            ));
        } else if demand.bytes > free {
            return Err(err!(
                Refused,
                "the filesystem of \"{shown}\" is too small: {} bytes are needed, {free} are free",
                demand.bytes
            )
            .hint("Nothing was written. The need includes the WAL that PostgreSQL keeps while it recovers. Free space, or choose another place."));
        }
        // Filesystems that make inodes as needed say 0.
        if stat.f_files > 0 && demand.files > stat.f_favail {
            return Err(err!(
                Refused,
                "the filesystem of \"{shown}\" is too small: {} files are needed, {} are free",
                demand.files,
                stat.f_favail
            )
            .hint("Nothing was written. Choose another place."));
        }
    }
    Ok(warnings)
}

/// Bytes and files below a directory that belong to it alone, on the filesystem of this device; what cannot be read counts as nothing.
fn allocated(path: &Path, device: u64) -> (u64, u64) {
    let (mut bytes, mut files) = (0, 0);
    let is_there = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.dev() == device);
    let mut todo = match is_there {
        true => vec![path.to_owned()],
        false => Vec::new(),
    };
    while let Some(directory) = todo.pop() {
        let entries = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            // Links, to tablespaces for one, are not followed.
            let Ok(meta) = entry.metadata() else { continue };
            // Nothing is removed of what is mounted there.
            if meta.dev() != device {
                continue;
            }
            files += 1;
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    (bytes, files)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::Code;

    pub(in crate::restore) fn wanted<'a>(to: &'a Path) -> Wanted<'a> {
        Wanted {
            to,
            mappings: &[],
            as_in_backup: true,
            repositories: &[],
            home: None,
            delta: false,
            replaces: None,
        }
    }

    /// Tests may run as root, for whom nothing may be restored into a directory of root's.
    fn directory() -> tempfile::TempDir {
        // In a hidden one no place counts that only the backup names.
        let dir = tempfile::Builder::new().prefix("pitr").tempdir().unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
        }
        dir
    }

    fn made(path: &Path) -> &Path {
        std::fs::create_dir_all(path).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
        }
        path
    }

    #[test]
    fn t03_places_where_other_things_live_are_refused() {
        let dir = directory();
        let data = made(&dir.path().join("data")).to_owned();
        let refused = |w: &Wanted<'_>, part: &str| {
            let e = look(w).unwrap_err();
            assert_eq!(e.code(), Code::Refused, "{e}");
            assert!(e.to_string().contains(part), "{e}");
        };
        assert_eq!(look(&wanted(&data)).unwrap().found, Found::Empty);
        assert!(look(&wanted(&dir.path().join("new"))).is_ok());
        refused(&wanted(Path::new("/")), "root directory");
        refused(&wanted(Path::new("/proc")), "mounted");
        refused(&wanted(&dir.path().join("gone/new")), "does not exist");
        let mut w = wanted(&data);
        w.home = Some(&data);
        refused(&w, "home");
        let mut w = wanted(&data);
        let repositories = [dir.path().join("data/r"), dir.path().to_owned()];
        w.repositories = repositories.get(1..).unwrap();
        refused(&w, "repository");
        w.repositories = repositories.get(..1).unwrap();
        refused(&w, "repository");
        std::fs::write(data.join("x"), "").unwrap();
        refused(&wanted(&data), "not empty: 1 entry");
        refused(&wanted(&data.join("x")), "not a directory");
        std::fs::write(
            data.join("postmaster.pid"),
            format!("{}\n/x\n", std::process::id()),
        )
        .unwrap();
        refused(&wanted(&data), "PostgreSQL runs in");
        // Another directory is no remedy for who wants this one back in place.
        for (delta, next) in [(false, "Restore into another"), (true, "Stop the server")] {
            let mut w = wanted(&data);
            w.delta = delta;
            let refused = look(&w).unwrap_err();
            assert!(refused.hint_text().unwrap().contains(next), "{refused}");
        }
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 2);
    }

    #[test]
    fn an_unfinished_restore_is_known_by_its_files() {
        let dir = directory();
        let data = made(&dir.path().join("data")).to_owned();
        made(&data.join("pg_wal"));
        let found = || look(&wanted(&data)).map(|t| t.found);
        assert_eq!(found().unwrap(), Found::Empty);
        std::fs::write(data.join("pg_wal/.tmp.pitr.restore.1"), "{").unwrap();
        assert_eq!(found().unwrap(), Found::Empty);
        std::fs::write(data.join("pg_wal/pitr.restore"), "{}").unwrap();
        assert_eq!(found().unwrap(), Found::Unfinished(b"{}".to_vec()));
        std::fs::remove_file(data.join("pg_wal/pitr.restore")).unwrap();
        std::fs::write(data.join("pg_wal/pitr.settings"), "{}").unwrap();
        assert!(found().is_err());
        made(&data.join("global"));
        std::fs::write(data.join("global/pg_control.pitr"), "").unwrap();
        assert_eq!(found().unwrap(), Found::LastStep(b"{}".to_vec()));
        std::fs::write(data.join("global/pg_control"), "").unwrap();
        assert!(found().is_err());
    }

    #[test]
    fn t09_tablespaces_go_where_they_are_mapped_and_never_into_one_another() {
        let dir = directory();
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        let data = made(&at("data")).to_owned();
        std::fs::write(made(&at("full")).join("x"), "").unwrap();
        let tablespaces = [
            Tablespace {
                oid: 16385,
                location: at("full"),
            },
            Tablespace {
                oid: 16386,
                location: at("second"),
            },
        ];
        let go = |mappings: &[(&str, PathBuf)]| {
            let mappings: Vec<Mapping> = mappings
                .iter()
                .map(|(old, new)| Mapping {
                    old: (*old).into(),
                    new: new.clone(),
                })
                .collect();
            let wanted = Wanted {
                mappings: &mappings,
                ..wanted(&data)
            };
            place(look(&wanted)?, &wanted, &tablespaces)
        };
        let target = go(&[("16385", at("new"))]).unwrap();
        assert_eq!(target.tablespaces[0].path, at("new"));
        assert_eq!(target.tablespaces[1].path, at("second"));
        assert!(go(&[(&text("full"), at("new"))]).is_ok());
        for (mappings, code, part) in [
            (vec![], Code::Refused, "not empty"),
            (vec![("16385", at("full"))], Code::Refused, "not empty"),
            (vec![("16385", at("second"))], Code::Usage, "another one"),
            (vec![("16385", at("second/x"))], Code::Refused, ""),
            (vec![("16385", at("data/t"))], Code::Usage, "data directory"),
            (vec![("16385", at("full/x"))], Code::Refused, "not a dir"),
            (
                vec![("16385", at("a")), (&text("full"), at("b"))],
                Code::Usage,
                "twice",
            ),
            (
                vec![("16385", at("a")), ("1", at("b"))],
                Code::Usage,
                "no tablespace",
            ),
        ] {
            let e = go(&mappings).unwrap_err();
            assert_eq!(e.code(), code, "{e}");
            assert!(e.to_string().contains(part), "{e}");
        }
    }

    #[test]
    fn r219_a_place_with_what_a_filesystem_has_in_its_root_is_empty() {
        let dir = directory();
        let data = made(&dir.path().join("data")).to_owned();
        made(&data.join("pg_wal"));
        std::fs::create_dir(data.join("pg_wal/lost+found")).unwrap();
        let space = made(&dir.path().join("space")).to_owned();
        std::fs::create_dir(space.join("lost+found")).unwrap();
        let target = look(&wanted(&data)).unwrap();
        assert_eq!(target.found, Found::Empty);
        let tablespace = Tablespace {
            oid: 16385,
            location: space.clone(),
        };
        let go = || {
            place(
                look(&wanted(&data))?,
                &wanted(&data),
                std::slice::from_ref(&tablespace),
            )
        };
        assert_eq!(go().unwrap().tablespaces[0].path, space);
        std::fs::write(space.join("x"), "").unwrap();
        assert!(
            go().unwrap_err()
                .to_string()
                .contains("not empty: 1 entries")
        );
        // The data directory itself may not have one.
        std::fs::create_dir(data.join("lost+found")).unwrap();
        assert!(look(&wanted(&data)).is_err());
    }

    #[test]
    fn t05_too_little_space_is_refused_with_numbers() {
        let dir = directory();
        let target = look(&wanted(&dir.path().join("new"))).unwrap();
        let mut need = Need::default();
        need.bytes.insert(0, 1 << 20);
        check_space(&target, &need, "").unwrap();
        need.bytes.insert(0, 1 << 60);
        let e = check_space(&target, &need, "").unwrap_err();
        assert_eq!(e.code(), Code::Refused);
        assert!(
            e.to_string()
                .contains("1152921504606846976 bytes are needed")
        );
    }

    #[test]
    fn r206_only_files_of_the_cluster_count_as_room() {
        let dir = directory();
        let version = "PG_17_202406281";
        let place = dir.path().join("space");
        for other in ["PG_16_202307071", "pitr-replaced-20260101T000000Z"] {
            let other = made(&place.join(other)).join("1");
            std::fs::write(other, vec![1u8; 3 << 20]).unwrap();
        }
        let mut target = look(&wanted(&dir.path().join("new"))).unwrap();
        target.found = Found::Unfinished(Vec::new());
        target.tablespaces = vec![PlacedTablespace {
            oid: 16385,
            original: place.clone(),
            path: place.clone(),
            real: place.clone(),
        }];
        // No filesystem has the rest.
        let bytes = 1 << 60;
        let need = Need {
            bytes: BTreeMap::from([(16385, bytes)]),
            ..Need::default()
        };
        let said = || {
            check_space(&target, &need, version)
                .unwrap_err()
                .to_string()
        };
        assert!(said().contains(&format!("{bytes} bytes are needed")));
        let own = made(&place.join(version)).join("1");
        std::fs::write(own, vec![1u8; 3 << 20]).unwrap();
        let device = dir.path().metadata().unwrap().dev();
        let there = || allocated(&place.join(version), device);
        // A filesystem may give the file its blocks later.
        let (before, said, after) = (there(), said(), there());
        assert!(before.0 > 0 && before.1 == 1, "{before:?}");
        let is_said =
            |(there, _): (u64, u64)| said.contains(&format!("{} bytes are needed", bytes - there));
        assert!(is_said(before) || is_said(after), "{said}");
        assert_eq!(allocated(&place, u64::MAX), (0, 0));
    }

    #[test]
    fn r206_wal_counts_with_the_data_where_pg_wal_is_no_filesystem_of_its_own() {
        let dir = directory();
        let mut target = look(&wanted(&dir.path().join("new"))).unwrap();
        let need = Need {
            bytes: BTreeMap::from([(0, 1 << 60)]),
            ..Need::of_wal(7)
        };
        let wanted = format!("{} bytes are needed", (1u64 << 60) + 7);
        let said = |target: &Target| check_space(target, &need, "").unwrap_err().to_string();
        assert!(said(&target).contains(&wanted));
        made(&made(&target.data).join("pg_wal"));
        assert!(said(&target).contains(&wanted));
        // Files that are there count once.
        std::fs::write(target.data.join("pg_wal/1"), vec![1u8; 3 << 20]).unwrap();
        target.found = Found::Unfinished(Vec::new());
        assert!(!said(&target).contains(&wanted));
    }

    #[test]
    fn tablespace_mappings_are_read_as_pg_basebackup_does() {
        for (text, old, new) in [
            ("/a=/b", "/a", "/b"),
            ("16385=/b", "16385", "/b"),
            (r"/a\=x=/b\=y", "/a=x", "/b=y"),
            (r"/a\b=/c", r"/a\b", "/c"),
        ] {
            let mapping = Mapping::parse(OsStr::new(text)).unwrap();
            assert_eq!((mapping.old, mapping.new), (old.into(), PathBuf::from(new)));
        }
        for text in [
            "", "16385", "=", "a=/b", "/a=b", "/a=/b=/c", "0=/b", r"/a\=/b", "/a=",
        ] {
            assert!(Mapping::parse(OsStr::new(text)).is_err(), "{text}");
        }
        let mapping = Mapping::parse(OsStr::from_bytes(b"/\xe9=/b")).unwrap();
        assert_eq!(mapping.old, OsStr::from_bytes(b"/\xe9"));
        assert_eq!(mapping.recorded(), "hex 2fe9=2f62");
    }
}
