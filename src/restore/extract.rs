//! Copies a snapshot out: directories and files in full length first, then pack by pack on several threads, every byte checked.
//!
//! Nothing here is durable; `finish` syncs all at once. An interrupted copy is resumed by the same steps: files that are there are kept, and
//! bytes that are right already are compared, not written. The proof of completeness is a count: the map's extents cover every file
//! (the reader checks it), each is handed out by exactly one frame, and the bytes written equal the sum of the map.
//!
//! Files that a server must not find again are withheld: signal files and pid files of the origin, WAL, our own files, and the old
//! tablespace_map (the links are ours). pg_control goes to a waiting name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::needed;
use super::settings::Brought;
use super::target_dir::{CONTROL, Need, Target, WAITING_CONTROL};
use super::tree::{Owner, Tree, below, shown, target_error, write_error};
use super::unchanged;
use super::unlogged::Unlogged;
use crate::archive::left_out;
use crate::err;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repo::root::cluster::LeftOutDatabase;
use crate::snapshot::filekey::{ClusterNaming, FileKey, Naming};
use crate::snapshot::frames::Frames;
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::{Item, PackOfSnapshot, Snapshot, VisibleFrame};
use crate::snapshot::spare::is_of_the_object;
use crate::ticking::ticking;
use crate::wal::unlogged::RelationName;

/// Files that one thread keeps open.
const OPEN_FILES: usize = 8;
/// Tablespaces whose directories are open at once: there may be more of them than a process may have files.
const OPEN_TABLESPACES: usize = 64;
/// Damaged frames that are taken down before the restore is given up.
const LOST_MAX: usize = 1000;
/// Affected files that are named.
const AFFECTED_MAX: usize = 20;
/// Unit in which filesystems give space away.
const BLOCK_BYTES: u64 = 4096;
/// No filesystem holds more, and sums of it fit 64 bits.
const MOST_BYTES: u64 = 1 << 62;
/// The catalog of subscriptions, of all databases. It is empty where none was ever made, and has another name behind VACUUM FULL.
///
/// PostgreSQL: src/include/catalog/pg_subscription.h.
const PG_SUBSCRIPTION: &[u8] = b"global/6100";
/// Directories that a server wants, of every major.
const STANDARD_DIRECTORIES: &[&str] = &[
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal/archive_status",
    "pg_xact",
];
/// Names that are never restored.
const WITHHELD: &[&[u8]] = &[
    b"recovery.signal",
    b"standby.signal",
    b"postmaster.pid",
    b"postmaster.opts",
    b"backup_manifest",
    b"tablespace_map",
    b"global/pg_control.pitr",
];

/// The content of a snapshot, found before the first write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Space by tablespace.
    pub need: Need,
    /// Bytes that come from frames, without those of databases that are left out.
    pub mapped_bytes: u64,
    /// Bytes of all files.
    pub raw_bytes: u64,
    /// Files and bytes of each database that is left out.
    sizes_left_out: BTreeMap<u32, (u64, u64)>,
    /// The version files of these databases.
    pub versions_left_out: Vec<Vec<u8>>,
    pub files: u64,
    /// Those of them that are restored.
    pub restored_files: u64,
    /// Whether the data directory was open to the group.
    pub group: bool,
    /// Whether the cluster seems to have subscriptions of logical replication.
    pub has_subscriptions: bool,
    /// Relations that are left out.
    pub unlogged: Unlogged,
    /// Links other than those of tablespaces; they are not recreated.
    pub links: Vec<String>,
    /// Files by whose names a directory of configuration may include them.
    pub configuration_files: Vec<Vec<u8>>,
    /// The configuration that comes with the backup.
    pub brought: Brought,
    /// Content of pg_control, where it was read already.
    pub control: Option<Vec<u8>>,
    /// Warnings about the room that it takes.
    pub scarce: Vec<String>,
}

/// A database whose relations are files of zeros.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Its oid and name.
    #[serde(flatten)]
    pub database: LeftOutDatabase,
    /// Files without content.
    pub file_count: u64,
    /// Their length.
    pub size_bytes: u64,
}

/// The places for the paths of a snapshot.
pub struct Destination {
    data: Arc<Tree>,
    /// The directory pg_wal, which may be a filesystem of its own; opened before the first write that is not synced by itself.
    wal: Option<OwnedFd>,
    tablespaces: BTreeMap<u32, PlaceOfTablespace>,
    owner: Option<Owner>,
    /// Those that are open, the one used last in front.
    open: Mutex<VecDeque<(u32, Arc<Tree>)>>,
}

/// The place of a tablespace, and its open directory.
struct PlaceOfTablespace {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

/// The fate of a path.
enum Route<'p> {
    /// It is written beneath this directory under this path.
    To(Arc<Tree>, &'p [u8]),
    /// It is not restored.
    Withheld,
}

/// The directory of the server's version in each tablespace.
pub fn version_of(naming: &Naming) -> String {
    match naming {
        Naming::Cluster(naming) => naming.version_directory(),
        // Trees have no tablespaces.
        Naming::Tree => ".".to_owned(),
    }
}

impl Destination {
    /// Makes the directories of the tablespaces beside the data directory, which is there.
    ///
    /// # Errors
    /// Those of [`Tree::make`].
    pub(super) fn make(target: &Target, data: Tree, group: bool) -> Result<Destination> {
        let wal = data.directory(b"pg_wal")?;
        let make = |path: &Path| Tree::make(path, target.owner, group);
        Ok(Destination {
            wal: Some(wal),
            ..Destination::of(target, data, make)?
        })
    }

    /// The directories that an earlier run has made.
    ///
    /// # Errors
    /// Those of [`Tree::open`].
    pub(super) fn open(target: &Target) -> Result<Destination> {
        let open = |path: &Path| Tree::open(path, target.owner);
        Destination::of(target, open(&target.data)?, open)
    }

    fn of(
        target: &Target,
        data: Tree,
        open: impl Fn(&Path) -> Result<Tree>,
    ) -> Result<Destination> {
        let placed = target.tablespaces.iter().map(|tablespace| {
            let place = PlaceOfTablespace {
                device_and_inode: open(&tablespace.real)?.device_and_inode()?,
                path: tablespace.real.clone(),
            };
            Ok((tablespace.oid, place))
        });
        Ok(Destination {
            data: Arc::new(data),
            wal: None,
            tablespaces: placed.collect::<Result<_>>()?,
            owner: target.owner,
            open: Mutex::default(),
        })
    }

    /// The data directory.
    pub fn data(&self) -> &Tree {
        &self.data
    }

    /// The directory pg_wal, where it was opened before it was written to.
    pub fn wal(&self) -> Option<BorrowedFd<'_>> {
        self.wal.as_ref().map(AsFd::as_fd)
    }

    /// The data directory and all tablespaces.
    pub fn trees(&self) -> impl Iterator<Item = Result<Arc<Tree>>> {
        self.placed_trees().map(|placed| Ok(placed?.1))
    }

    /// The data directory, and all tablespaces with their oids.
    pub fn placed_trees(&self) -> impl Iterator<Item = Result<(Option<u32>, Arc<Tree>)>> {
        std::iter::once(Ok((None, Arc::clone(&self.data)))).chain(
            self.tablespaces
                .iter()
                .map(|(oid, place)| Ok((Some(*oid), self.tablespace(*oid, place)?))),
        )
    }

    /// The directories that are the cluster's own, with their paths in a backup: the data directory, and in the place of each tablespace the directory of the
    /// server's version. Clusters of other majors have theirs beside it.
    pub fn own_directories(
        &self,
        naming: &Naming,
    ) -> impl Iterator<Item = Result<(String, OwnedFd)>> {
        let version = version_of(naming);
        let placed = self.placed_trees();
        placed.filter_map(move |placed| {
            let own = placed.and_then(|(oid, tree)| {
                let (prefix, name) = match oid {
                    None => (String::new(), "."),
                    Some(oid) => (format!("pg_tblspc/{oid}/{version}/"), version.as_str()),
                };
                match below(tree.root(), name) {
                    Ok(directory) => Ok(Some((prefix, directory))),
                    Err(rustix::io::Errno::NOENT) => Ok(None),
                    Err(e) => {
                        let place = tree.path().join(name);
                        Err(target_error(format!("open \"{}\"", place.display()), e))
                    }
                }
            });
            own.transpose()
        })
    }

    /// Whether a path in the data directory is the link of a tablespace that lies beside it.
    pub fn is_link_of_tablespace(&self, path: &[u8]) -> bool {
        let found = tablespace_of(path);
        found.is_some_and(|(oid, rest)| rest.is_none() && self.tablespaces.contains_key(&oid))
    }

    /// The directory beneath which a file of this path is restored, and its path there; none where it is not restored.
    pub fn place_of<'p>(&self, path: &'p [u8]) -> Result<Option<(Arc<Tree>, &'p [u8])>> {
        Ok(match self.route(path)? {
            Route::To(tree, relative) => Some((tree, relative)),
            Route::Withheld => None,
        })
    }

    /// Opens the directory of a tablespace, which must still be the one that was found in the beginning.
    fn tablespace(&self, oid: u32, place: &PlaceOfTablespace) -> Result<Arc<Tree>> {
        let mut open = self.open.lock().map_err(|_| panicked())?;
        if let Some(at) = open.iter().position(|(o, _)| *o == oid) {
            open.swap(0, at);
        } else {
            let tree = Tree::open(&place.path, self.owner)?;
            if tree.device_and_inode()? != place.device_and_inode {
                let shown = place.path.display();
                return Err(err!(
                    Refused,
                    "\"{shown}\" was replaced by another directory"
                ));
            }
            open.truncate(OPEN_TABLESPACES - 1);
            open.push_front((oid, Arc::new(tree)));
        }
        open.front()
            .map(|(_, tree)| Arc::clone(tree))
            .ok_or_else(panicked)
    }

    fn route<'p>(&self, path: &'p [u8]) -> Result<Route<'p>> {
        let data = || Arc::clone(&self.data);
        if path == CONTROL.as_bytes() {
            return Ok(Route::To(data(), WAITING_CONTROL.as_bytes()));
        }
        if is_withheld(path) {
            return Ok(Route::Withheld);
        }
        let Some((oid, rest)) = tablespace_of(path) else {
            return Ok(Route::To(data(), path));
        };
        Ok(match (self.tablespaces.get(&oid), rest) {
            (Some(place), Some(rest)) => Route::To(self.tablespace(oid, place)?, rest),
            // The link itself is made by us.
            (Some(_), None) => Route::Withheld,
            // A tablespace in place is a plain directory.
            (None, _) => Route::To(data(), path),
        })
    }
}

/// Whether a server wants a directory of this path, whatever a backup holds.
pub fn is_standard_directory(path: &[u8]) -> bool {
    STANDARD_DIRECTORIES.iter().any(|name| {
        let rest = name.as_bytes().strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

fn is_withheld(path: &[u8]) -> bool {
    WITHHELD.contains(&path)
}

/// Whether a regular file of this path stays out of the restored directory, though a server's manifest may list it.
pub fn withholds_file(path: &[u8]) -> bool {
    is_withheld(path) || path.starts_with(b"pg_wal/")
}

/// `pg_tblspc/<oid>` and what follows.
fn tablespace_of(path: &[u8]) -> Option<(u32, Option<&[u8]>)> {
    let rest = path.strip_prefix(b"pg_tblspc/")?;
    let (oid, rest) = match rest.iter().position(|&b| b == b'/') {
        Some(at) => (rest.get(..at)?, rest.get(at + 1..)),
        None => (rest, None),
    };
    let text = std::str::from_utf8(oid).ok()?;
    let number: u32 = text.parse().ok()?;
    // Each tablespace has one spelling.
    (number.to_string() == text).then_some((number, rest))
}

/// Requires a path of PostgreSQL's below the location of a tablespace, which may be any directory of the host: nothing that another program
/// reads has such a name.
///
/// PostgreSQL: src/backend/backup/basebackup.c, `sendTablespace`: a base backup holds `PG_<major>_<catalog version>/` of it and no more.
fn check_below_tablespace(naming: &ClusterNaming, path: &[u8], rest: &[u8]) -> Result<()> {
    let version = naming.version_directory();
    let mut parts = rest.split(|&b| b == b'/');
    if parts.next() == Some(version.as_bytes()) && parts.all(|part| !part.starts_with(b".")) {
        return Ok(());
    }
    Err(err!(
        Damaged,
        "\"{}\" is no path of PostgreSQL in a tablespace, where everything lies below {version}/",
        shown(path)
    )
    .hint("The backup is damaged or forged. Nothing was written there."))
}

/// Walks the whole map: sizes, and what will not be restored. Every part of the map is checked on the way.
///
/// # Errors
/// `Damaged` when a check fails.
pub fn survey(
    snapshot: &Snapshot<'_>,
    left_out: &[LeftOutDatabase],
    unlogged: BTreeSet<RelationName>,
) -> Result<Survey> {
    let mut survey = Survey {
        unlogged: Unlogged {
            relations: unlogged,
            ..Unlogged::default()
        },
        sizes_left_out: left_out.iter().map(|d| (d.oid, (0, 0))).collect(),
        ..Survey::default()
    };
    for item in snapshot.items() {
        let item = item?;
        let (oid, rest) = tablespace_of(&item.path).unwrap_or_default();
        if let (Some(rest), Naming::Cluster(naming)) = (rest, snapshot.naming()) {
            check_below_tablespace(naming, &item.path, rest)?;
        }
        match item.metadata {
            Metadata::File { mode, length, .. } => {
                survey.files += 1;
                let is_unlogged = survey.unlogged.holds(&item.key);
                survey.restored_files += u64::from(!is_unlogged && !withholds_file(&item.path));
                survey.raw_bytes = survey.raw_bytes.saturating_add(length);
                // A forged length must not make the sums below wrap host to something small.
                if survey.raw_bytes > MOST_BYTES {
                    return Err(err!(
                        Damaged,
                        "the map says that the files up to \"{}\" have {} bytes",
                        shown(&item.path),
                        survey.raw_bytes
                    ));
                }
                if is_unlogged {
                    survey.unlogged.file_count += 1;
                    survey.unlogged.size_bytes += length;
                    continue;
                }
                if survey.is_version_left_out(&item.path) {
                    survey.versions_left_out.push(item.path.clone());
                }
                // A hostile map cannot fill memory with names.
                if item.path.ends_with(b".conf") && survey.configuration_files.len() < 1000 {
                    survey.configuration_files.push(item.path.clone());
                }
                if item.path == b"PG_VERSION" {
                    survey.group = mode & 0o040 != 0;
                }
                survey.has_subscriptions |= item.path == PG_SUBSCRIPTION && length > 0;
                if let Some((files, bytes)) = survey.size_left_out(&item.key) {
                    (*files, *bytes) = (*files + 1, *bytes + length);
                } else {
                    survey.mapped_bytes += item.mapped_bytes;
                    let bytes = length.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
                    *survey.need.bytes.entry(oid).or_default() += bytes;
                }
            }
            Metadata::Directory { .. } => {
                *survey.need.bytes.entry(oid).or_default() += BLOCK_BYTES;
            }
            Metadata::Symlink { .. } if tablespace_of(&item.path).is_none() => {
                let shown = String::from_utf8_lossy(&item.path).into_owned();
                // A hostile map cannot fill memory with names.
                if survey.links.len() < 100 {
                    survey.links.push(shown);
                }
            }
            // Nodes do not stand in a cluster: the reader refuses them.
            Metadata::Symlink { .. } | Metadata::Node(_) => {}
        }
        *survey.need.files.entry(oid).or_default() += 1;
    }
    Ok(survey)
}

impl Survey {
    fn size_left_out(&mut self, file: &FileKey) -> Option<&mut (u64, u64)> {
        let database = file.relation()?.database;
        self.sizes_left_out.get_mut(&database)
    }

    /// Whether it is `PG_VERSION` in the directory of a database that is left out.
    fn is_version_left_out(&self, path: &[u8]) -> bool {
        let oid = left_out::of_version_file(path);
        oid.is_some_and(|oid| self.sizes_left_out.contains_key(&oid))
    }

    /// Whether the content of a file is left out: it is a relation that is, or one of a database that is.
    pub fn leaves_out(&self, file: &FileKey) -> bool {
        if self.unlogged.holds(file) {
            return true;
        }
        let database = || file.relation().map(|relation| relation.database);
        !self.sizes_left_out.is_empty()
            && database().is_some_and(|d| self.sizes_left_out.contains_key(&d))
    }

    /// Whether anything is left out.
    pub fn is_partial(&self) -> bool {
        !self.sizes_left_out.is_empty()
    }

    /// The oids of the databases that are left out.
    pub fn oids_left_out(&self) -> BTreeSet<u32> {
        self.sizes_left_out.keys().copied().collect()
    }

    /// Bytes of the files whose content is restored.
    pub fn restored_bytes(&self) -> u64 {
        let left_out: u64 = self.sizes_left_out.values().map(|(_, bytes)| bytes).sum();
        self.raw_bytes - left_out - self.unlogged.size_bytes
    }

    /// The databases that are left out, with their size.
    pub fn left_out(&self, databases: &[LeftOutDatabase]) -> Vec<LeftOut> {
        let sized = databases.iter().map(|database| {
            let size = self.sizes_left_out.get(&database.oid);
            let (file_count, size_bytes) = size.copied().unwrap_or_default();
            LeftOut {
                database: database.clone(),
                file_count,
                size_bytes,
            }
        });
        sized.collect()
    }

    /// Whether there are tablespaces that are plain directories of the data directory.
    pub fn has_in_place(&self, target: &Target) -> bool {
        let is_placed = |oid: u32| target.tablespaces.iter().any(|t| t.oid == oid);
        self.need
            .files
            .keys()
            .any(|&oid| oid != 0 && !is_placed(oid))
    }

    /// The need of a restore to `target`: tablespaces in place count with the data directory.
    pub fn need_of(&self, target: &Target, wal_bytes: u64) -> Need {
        let mut need = Need::of_wal(wal_bytes);
        let is_placed = |oid: u32| target.tablespaces.iter().any(|t| t.oid == oid);
        for (from, to) in [
            (&self.need.bytes, &mut need.bytes),
            (&self.need.files, &mut need.files),
        ] {
            for (oid, n) in from {
                let oid = if is_placed(*oid) { *oid } else { 0 };
                *to.entry(oid).or_default() += n;
            }
        }
        need
    }
}

/// Creates every directory, and every file in its full length. `made` hears of each file, with the tree that it lies in and its path there.
///
/// # Errors
/// `TargetWrite`, `Full`, `Refused`; `Damaged` for paths that lead elsewhere.
pub fn lay_out(
    snapshot: &Snapshot<'_>,
    destination: &Destination,
    survey: &Survey,
    is_resumed: bool,
    stop: &AtomicBool,
    made: &mut dyn FnMut(&Item, &Tree, &[u8]),
) -> Result<()> {
    for name in STANDARD_DIRECTORIES {
        destination
            .data
            .make_directory(name.as_bytes(), survey.group)?;
    }
    for item in snapshot.items() {
        let item = item?;
        check_stop(stop)?;
        let (mode, length) = match item.metadata {
            // Keys of relations sort before paths: the directory of a database was made for its files, and gets its permissions here.
            Metadata::Directory { mode, .. } => {
                if let Route::To(tree, path) = destination.route(&item.path)? {
                    tree.make_directory(path, mode & 0o040 != 0)?;
                }
                continue;
            }
            Metadata::File { mode, length, .. } => (mode, length),
            Metadata::Symlink { .. } | Metadata::Node(_) => continue,
        };
        if withholds_file(&item.path) {
            continue;
        }
        let Route::To(tree, path) = destination.route(&item.path)? else {
            continue;
        };
        if survey.unlogged.holds(&item.key) {
            if is_resumed {
                tree.remove(path)?;
            }
            continue;
        }
        let group = mode & 0o040 != 0;
        let (file, is_new) = make_file(&tree, path, length, group)?;
        if !is_new && !is_resumed {
            return Err(err!(
                Refused,
                "\"{}\" appeared while the directory was filled",
                shown(&item.path)
            )
            .hint("Either somebody else writes there, or two names of the backup are one on this filesystem. Restore into another directory."));
        }
        made(&item, &tree, path);
        if survey.leaves_out(&item.key) {
            if !is_new {
                let emptied = file.set_len(0).and_then(|()| file.set_len(length));
                emptied.map_err(|e| write_error(&shown(&item.path), e))?;
            }
            continue;
        }
        if !is_new {
            // The bytes compared below have to come from the disk: after a failed sync Linux keeps pages as if they had been written.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                .map_err(|e| write_error(&shown(&item.path), e.into()))?;
        }
        if !is_new && item.mapped_bytes < length {
            clear_zeros(snapshot, &item.key, length, &file)
                .map_err(|e| e.context(format!("restore \"{}\"", shown(&item.path))))?;
        }
    }
    Ok(())
}

/// A directory that the map does not mention is made all the same.
fn make_file(tree: &Tree, path: &[u8], length: u64, group: bool) -> Result<(File, bool)> {
    let parent = path
        .iter()
        .rposition(|&b| b == b'/')
        .and_then(|at| path.get(..at));
    if let Some(parent) = parent
        && tree.stat(parent)?.is_none()
    {
        tree.make_directory(parent, group)?;
    }
    tree.make_file(path, length, group)
}

/// In a file of an earlier run, what the map says is zeros must be zeros.
fn clear_zeros(snapshot: &Snapshot<'_>, key: &FileKey, length: u64, file: &File) -> Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut buffer = vec![0; ZEROS.len()];
    for place in snapshot.places(key, 0, length)? {
        if place.at.is_some() {
            continue;
        }
        let mut at = place.position;
        let end = place.position + place.length;
        while at < end {
            let n = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            let (found, zeros) = (
                buffer.get_mut(..n).unwrap_or_default(),
                ZEROS.get(..n).unwrap_or_default(),
            );
            file.read_exact_at(found, at)
                .map_err(|e| write_error("a file of an earlier run", e))?;
            if found != zeros {
                file.write_all_at(zeros, at)
                    .map_err(|e| write_error("a file of an earlier run", e))?;
            }
            at += n as u64;
        }
    }
    Ok(())
}

/// The result of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    pub written_bytes: u64,
    /// Bytes that an earlier run had written already.
    pub kept_bytes: u64,
}

/// Receives the checksum of each stretch of a file as it is copied: path, position, length, CRC-32C.
pub type Checksums<'a> = &'a (dyn Fn(&[u8], u64, u32, u32) -> Result<()> + Sync);

/// How to copy.
pub struct Copying<'a> {
    /// Threads.
    pub jobs: usize,
    /// Whether files may hold right bytes already.
    pub is_resumed: bool,
    /// Takes what does not fit into memory.
    pub folder: &'a Path,
    /// Set when the operator wants to stop.
    pub stop: &'a AtomicBool,
    /// Told of every stretch.
    pub checksums: Checksums<'a>,
    /// Told of progress.
    pub progress: &'a dyn Progress,
    /// Called about five times a second while the threads work.
    pub tick: &'a mut dyn FnMut() -> Result<()>,
}

/// Copies every byte that the map leads to.
///
/// # Errors
/// `Findings` when frames fail their check and no repository has them whole, naming the files; `Damaged` when bytes are missing; `TargetWrite`, `Full`; `Interrupted`.
pub fn copy(
    snapshot: &Snapshot<'_>,
    destination: &Destination,
    survey: &Survey,
    mut how: Copying<'_>,
) -> Result<Copied> {
    let (needed, kept_bytes) = if how.is_resumed {
        how.progress.phase("compare", Some(survey.mapped_bytes));
        let (needed, kept_bytes) = unchanged::find(snapshot, destination, survey, &mut how)?;
        (Some(needed), kept_bytes)
    } else if survey.is_partial() || !survey.unlogged.relations.is_empty() {
        (Some(needed::find(snapshot, survey, &mut how)?), 0)
    } else {
        (None, 0)
    };
    let work = Work {
        snapshot,
        destination,
        survey,
        needed,
        is_resumed: how.is_resumed,
        stop: how.stop,
        checksums: how.checksums,
        progress: how.progress,
        queue: Mutex::new(Queue::default()),
        failed: AtomicBool::new(false),
        seen: AtomicU64::new(kept_bytes),
        written: AtomicU64::new(0),
        kept: AtomicU64::new(kept_bytes),
        damage: Mutex::default(),
    };
    let rest = survey.mapped_bytes.saturating_sub(kept_bytes);
    how.progress.phase("restore", Some(rest));
    ticking(how.tick, || work.run_on(how.jobs))?;
    check_stop(how.stop)?;
    let damage = work.damage.into_inner().unwrap_or_default();
    if !damage.is_empty() {
        return Err(affected(snapshot, survey, &damage));
    }
    let seen = work.seen.into_inner();
    if seen != survey.mapped_bytes {
        return Err(err!(
            Damaged,
            "the packs hold {seen} bytes of the backup, its map leads to {}",
            survey.mapped_bytes
        ));
    }
    Ok(Copied {
        written_bytes: work.written.into_inner(),
        kept_bytes: work.kept.into_inner(),
    })
}

pub(super) fn check_stop(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        return Err(err!(Interrupted, "stopped before the restore was complete").hint(
            "What was restored is kept, and no server can start on it yet. Run the same command again: it resumes.",
        ));
    }
    Ok(())
}

struct Work<'w, 's> {
    snapshot: &'w Snapshot<'s>,
    destination: &'w Destination,
    survey: &'w Survey,
    /// The frames to read, where not all are needed.
    needed: Option<Frames>,
    is_resumed: bool,
    stop: &'w AtomicBool,
    checksums: Checksums<'w>,
    progress: &'w dyn Progress,
    queue: Mutex<Queue<'w, 's>>,
    failed: AtomicBool,
    seen: AtomicU64,
    written: AtomicU64,
    kept: AtomicU64,
    damage: Mutex<Vec<Lost>>,
}

/// A frame that cannot be had, or a whole pack.
struct Lost {
    pack: usize,
    frame: Option<u32>,
    why: Error,
}

/// Which files a backup cannot give whole, and why.
fn affected(snapshot: &Snapshot<'_>, survey: &Survey, damage: &[Lost]) -> Error {
    let is_lost = |pack: usize, frame: u32| {
        let is_it = |l: &Lost| l.pack == pack && l.frame.is_none_or(|f| f == frame);
        damage.iter().any(is_it)
    };
    let mut files = Vec::new();
    let mut count = 0_u64;
    for item in snapshot.items().flatten() {
        let Metadata::File { length, .. } = item.metadata else {
            continue;
        };
        if survey.leaves_out(&item.key) {
            continue;
        }
        let places = snapshot.places(&item.key, 0, length).unwrap_or_default();
        if places
            .iter()
            .filter_map(|p| p.at)
            .any(|at| is_lost(at.pack, at.frame))
        {
            count += 1;
            if files.len() < AFFECTED_MAX {
                files.push(format!("\"{}\"", shown(&item.path)));
            }
        }
    }
    let more = match count > files.len() as u64 {
        true => " and others",
        false => "",
    };
    let whole = err!(
        Findings,
        "{count} files of the backup are damaged, and no repository has them whole: {}{more}",
        files.join(", ")
    );
    match damage.first() {
        Some(first) => whole.source(first.why.to_string()),
        None => whole,
    }
}

/// Frames that nobody has taken yet.
#[derive(Default)]
struct Queue<'w, 's> {
    pack: Option<Arc<PackOfSnapshot<'w, 's>>>,
    next_pack: usize,
    next_frame: u32,
}

impl<'w, 's> Work<'w, 's> {
    fn run_on(&self, jobs: usize) -> Result<()> {
        std::thread::scope(|scope| {
            let threads = (0..jobs.max(1)).map(|_| scope.spawn(|| self.run()));
            let threads: Vec<_> = threads.collect();
            let results = threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err(panicked())));
            // All of them end before the first error counts.
            let results: Vec<Result<()>> = results.collect();
            results.into_iter().collect()
        })
    }

    fn run(&self) -> Result<()> {
        let done = self.take_all();
        if done.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    fn take_all(&self) -> Result<()> {
        let mut files = OpenFiles::default();
        let mut buffer = Vec::new();
        while !self.failed.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            let Some((pack, number)) = self.next()? else {
                return Ok(());
            };
            let frame = match pack.frame(number) {
                Ok(frame) => frame,
                Err(e) => {
                    self.lose(pack.index(), Some(number), e)?;
                    continue;
                }
            };
            let seen = self.write(&frame, &mut files, &mut buffer)?;
            self.seen.fetch_add(seen, Ordering::Relaxed);
            self.progress.advance(seen);
        }
        Ok(())
    }

    fn next(&self) -> Result<Option<(Arc<PackOfSnapshot<'w, 's>>, u32)>> {
        let mut queue = self.queue.lock().map_err(|_| panicked())?;
        loop {
            if let Some(pack) = &queue.pack
                && queue.next_frame < pack.frame_count()
            {
                let found = (Arc::clone(pack), queue.next_frame);
                queue.next_frame += 1;
                let (pack, frame) = (found.0.index(), found.1);
                let is_needed = self.needed.as_ref().is_none_or(|n| n.contains(pack, frame));
                if !is_needed {
                    continue;
                }
                return Ok(Some(found));
            }
            if queue.next_pack >= self.snapshot.packs().len() {
                return Ok(None);
            }
            let index = queue.next_pack;
            queue.next_pack += 1;
            queue.next_frame = 0;
            let is_needed = self.needed.as_ref().is_none_or(|n| n.has_pack(index));
            if !is_needed {
                queue.pack = None;
                continue;
            }
            queue.pack = match self.snapshot.pack(index) {
                Ok(pack) => Some(Arc::new(pack)),
                Err(e) => {
                    self.lose(index, None, e)?;
                    None
                }
            };
        }
    }

    /// Records damage, so that the restore can report all of it; other errors end the restore.
    fn lose(&self, pack: usize, frame: Option<u32>, why: Error) -> Result<()> {
        if !is_of_the_object(&why) {
            return Err(why);
        }
        let mut damage = self.damage.lock().map_err(|_| panicked())?;
        match damage.len() < LOST_MAX {
            true => damage.push(Lost { pack, frame, why }),
            // Enough to know that this backup is none.
            false => self.failed.store(true, Ordering::Relaxed),
        }
        Ok(())
    }

    /// Writes what is visible of a frame; returns how many bytes of it belong to files whose content is restored.
    fn write(
        &self,
        frame: &VisibleFrame,
        files: &mut OpenFiles,
        buffer: &mut Vec<u8>,
    ) -> Result<u64> {
        let mut seen = 0;
        for visible in &frame.visible {
            let key = frame
                .file(visible)
                .ok_or_else(|| err!(Internal, "a frame lost its extents"))?;
            if self.survey.leaves_out(key) {
                continue;
            }
            seen += u64::from(visible.length);
            let path = key.path(self.snapshot.naming());
            if withholds_file(&path) {
                continue;
            }
            let Route::To(tree, relative) = self.destination.route(&path)? else {
                continue;
            };
            let file = files.get(key, &tree, relative)?;
            let bytes = frame.bytes(visible);
            self.write_at(file, bytes, visible.position, buffer)
                .map_err(|e| write_error(&shown(&path), e))?;
            let crc = crc32c::crc32c(bytes);
            (self.checksums)(&path, visible.position, visible.length, crc)?;
        }
        Ok(seen)
    }

    /// Writes bytes, unless they are there already.
    fn write_at(
        &self,
        file: &File,
        bytes: &[u8],
        position: u64,
        buffer: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        if self.is_resumed {
            buffer.resize(bytes.len(), 0);
            file.read_exact_at(buffer, position)?;
            if buffer == bytes {
                self.kept.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return Ok(());
            }
        }
        file.write_all_at(bytes, position)?;
        self.written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// The files one thread used last.
#[derive(Default)]
pub(super) struct OpenFiles {
    files: VecDeque<(FileKey, File)>,
}

impl OpenFiles {
    pub(super) fn get(&mut self, key: &FileKey, tree: &Tree, relative: &[u8]) -> Result<&File> {
        match self.files.iter().position(|(k, _)| k == key) {
            Some(0) => {}
            Some(at) => self.files.swap(0, at),
            None => {
                self.files.truncate(OPEN_FILES - 1);
                self.files
                    .push_front((key.clone(), tree.existing(relative)?));
            }
        }
        let first = self.files.front().map(|(_, file)| file);
        first.ok_or_else(|| err!(Internal, "an open file was lost"))
    }
}

pub(super) fn panicked() -> Error {
    err!(Internal, "a thread of the restore panicked")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::repo::id::BackupId;
    use crate::repo::scope::Scope;
    use crate::snapshot::frame::FrameCodec;
    use crate::snapshot::reader::SnapshotRoot;
    use crate::snapshot::writer::{Options, SnapshotWriter};
    use crate::store::file::FileStore;

    #[test]
    fn a_directory_that_comes_behind_its_files_gets_its_own_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let store = FileStore::create(&top.join("repo"), 1).unwrap();
        let scope = Scope::cluster("main", 77).unwrap();
        let naming = Naming::Cluster(ClusterNaming {
            major: 15,
            catalog_version: 202_209_061,
        });
        let key = |path: &str| FileKey::from_path(path.as_bytes(), naming).unwrap();
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let options = Options::new(FrameCodec::Lz4, 1, top.clone());
        let written = std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, &store, &scope, &id, &options);
            let mut sink = writer.sink();
            sink.directory(&key("base/5"), 0o700, 0).unwrap();
            sink.directory(&key("extra"), 0o750, 0).unwrap();
            sink.begin(key("base/5/16384")).unwrap();
            sink.append(&[7; 8192]).unwrap();
            sink.end(0o640, 0).unwrap();
            sink.finish().unwrap();
            writer.finish().unwrap()
        });
        let (head, map) = written.head_and_map(id);
        let root = SnapshotRoot {
            head: &head,
            map: &map,
            naming,
        };
        let snapshot = Snapshot::open(&store, &scope, root).unwrap();
        let data = top.join("data");
        std::fs::create_dir(&data).unwrap();
        let destination = Destination {
            data: Arc::new(Tree::open(&data, None).unwrap()),
            wal: None,
            tablespaces: BTreeMap::new(),
            owner: None,
            open: Mutex::default(),
        };
        let survey = survey(&snapshot, &[], BTreeSet::new()).unwrap();
        let stop = AtomicBool::new(false);
        let mut heard = Vec::new();
        let mut made = |item: &Item, _: &Tree, path: &[u8]| {
            heard.push((path.to_vec(), item.mapped_bytes));
        };
        lay_out(&snapshot, &destination, &survey, false, &stop, &mut made).unwrap();
        assert_eq!(heard, [(b"base/5/16384".to_vec(), 8192)]);
        let mode = |path: &str| {
            let meta = std::fs::metadata(data.join(path)).unwrap();
            meta.permissions().mode() & 0o7777
        };
        assert_eq!(mode("base/5"), 0o700);
        assert_eq!(mode("extra"), 0o750);
        assert_eq!(mode("base/5/16384"), 0o640);
    }
}
