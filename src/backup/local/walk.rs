//! Walks a data directory: what a base backup holds, relations in the order of their numbers.
//!
//! Entries that vanish meanwhile are left out: the WAL of the backup says what became of them.
//!
//! PostgreSQL: src/backend/backup/basebackup.c, sendDir and sendTablespace.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, FileType, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::exclude;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::snapshot::filekey::{ClusterNaming, FileKey, Fork, RelationFile};
use crate::tree::beneath::joined;

const TABLESPACES: &[u8] = b"pg_tblspc";
const WAL: &[u8] = b"pg_wal";
/// These come first, in the order of their keys.
const FIRST: [&[u8]; 3] = [b"base", b"global", TABLESPACES];

/// A directory or a file of the backup.
pub enum Listed {
    /// A directory: its key, permission bits and time.
    Directory(FileKey, u32, i64),
    /// A file.
    File(FileKey),
}

/// One entry of the data directory.
enum Found {
    Directory(Vec<u8>, Metadata),
    File(FileKey),
    /// Neither file nor directory; PostgreSQL skips it, too.
    Special(Vec<u8>),
}

type Visitor<'v> = dyn FnMut(Found) -> Result<()> + 'v;

/// A data directory to walk.
pub struct Walk<'w> {
    root: &'w Path,
    naming: ClusterNaming,
    tablespaces: &'w [u32],
    /// Places of tablespaces below the data directory, whose content comes under `pg_tblspc`.
    inner: Vec<Vec<u8>>,
    /// `stats_temp_directory` below the data directory (13, 14).
    stats: Option<&'w [u8]>,
}

/// Returns the tablespaces of a data directory, in order.
///
/// # Errors
/// Those of the filesystem.
pub fn tablespaces(root: &Path) -> Result<Vec<u32>> {
    let path = root.join(OsStr::from_bytes(TABLESPACES));
    let Some(entries) = entries(&path)? else {
        return Ok(Vec::new());
    };
    let number = |entry: &DirEntry| {
        let name = entry.file_name();
        let oid: u32 = name.to_str()?.parse().ok()?;
        (name == *oid.to_string()).then_some(oid)
    };
    let mut oids: Vec<u32> = entries.iter().filter_map(number).collect();
    oids.sort_unstable();
    Ok(oids)
}

/// Returns the real paths of a data directory and of what the server keeps in its tablespaces.
///
/// # Errors
/// `Refused` for a tablespace that cannot be seen from here; those of the filesystem.
pub fn real_roots(root: &Path, naming: ClusterNaming, tablespaces: &[u32]) -> Result<Vec<PathBuf>> {
    let mut roots = vec![real(root)?];
    for oid in tablespaces {
        let link = root.join(format!("pg_tblspc/{oid}"));
        if existing(fs::symlink_metadata(&link), &link)?.is_none() {
            // It was dropped.
            continue;
        }
        let name = naming.version_directory();
        let place = link.join(&name);
        // A link in its place is none of PostgreSQL's.
        let is_there = existing(fs::symlink_metadata(&place), &place)?.is_some_and(|m| m.is_dir());
        if !is_there {
            return Err(err!(
                Refused,
                "tablespace {oid} cannot be read: \"{}\" is no directory here",
                place.display()
            )
            .hint("Nothing was committed. --method local reads the tablespaces, too: mount them where the server has them, or take the backup over the network: pitr backup --method stream"));
        }
        roots.push(real(&link)?.join(name));
    }
    Ok(roots)
}

/// Returns the places of tablespaces below the data directory, relative to it.
fn inner(root: &Path, tablespaces: &[u32]) -> Vec<Vec<u8>> {
    let Ok(root) = root.canonicalize() else {
        return Vec::new();
    };
    let place = |oid: &u32| {
        let place = root.join(format!("pg_tblspc/{oid}")).canonicalize().ok()?;
        let inner = place.strip_prefix(&root).ok()?;
        Some(inner.as_os_str().as_bytes().to_vec())
    };
    tablespaces.iter().filter_map(place).collect()
}

fn real(place: &Path) -> Result<PathBuf> {
    fs::canonicalize(place).map_err(|e| Error::from_io(format!("read \"{}\"", place.display()), e))
}

impl<'w> Walk<'w> {
    /// A walk through `root` and these of its tablespaces.
    pub fn new(
        root: &'w Path,
        naming: ClusterNaming,
        tablespaces: &'w [u32],
        stats: Option<&'w [u8]>,
    ) -> Walk<'w> {
        Walk {
            root,
            naming,
            tablespaces,
            inner: inner(root, tablespaces),
            stats,
        }
    }

    /// Adds up the sizes of all files.
    ///
    /// # Errors
    /// Those of the filesystem and of `tick`.
    pub fn size(&self, tick: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        let mut sum = 0;
        self.visit(&mut |found| {
            tick()?;
            if let Found::File(key) = found {
                let path = self.place(&key.path(&self.naming));
                sum += existing(fs::symlink_metadata(&path), &path)?.map_or(0, |m| m.len());
            }
            Ok(())
        })?;
        Ok(sum)
    }

    /// Hands directories and files to `take`.
    ///
    /// # Errors
    /// Those of the filesystem and of `take`.
    pub fn run(
        &self,
        take: &mut dyn FnMut(Listed) -> Result<()>,
        progress: &dyn Progress,
    ) -> Result<()> {
        self.visit(&mut |found| match found {
            Found::Directory(path, metadata) => {
                let key = FileKey::from_path(&path, &self.naming)?;
                take(Listed::Directory(key, metadata.mode(), metadata.mtime()))
            }
            Found::Special(path) => {
                let shown = path.escape_ascii();
                progress.warn(&format!("special file \"{shown}\" is left out"));
                Ok(())
            }
            Found::File(key) => take(Listed::File(key)),
        })
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    fn visit(&self, visitor: &mut Visitor<'_>) -> Result<()> {
        for name in FIRST {
            self.directory(name.to_vec(), visitor)?;
        }
        let Some(listing) = self.list(b"")? else {
            let shown = self.root.display();
            return Err(err!(SourceMissing, "data directory \"{shown}\" is gone"));
        };
        self.listed(listing, b"", visitor)
    }

    /// Visits a directory with all that is in it.
    fn directory(&self, path: Vec<u8>, visitor: &mut Visitor<'_>) -> Result<()> {
        let place = self.place(&path);
        // The target of a link counts: only directories that PostgreSQL lets be links come here as such.
        let Some(metadata) = existing(fs::metadata(&place), &place)? else {
            return Ok(());
        };
        if path == WAL {
            return self.wal(metadata, visitor);
        }
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let is_emptied = exclude::is_emptied(name) || self.stats == Some(path.as_slice());
        visitor(Found::Directory(path.clone(), metadata))?;
        if is_emptied || self.inner.contains(&path) {
            return Ok(());
        }
        if path == TABLESPACES {
            return self.in_tablespaces(visitor);
        }
        self.list(&path)?
            .map_or(Ok(()), |listing| self.listed(listing, &path, visitor))
    }

    /// Visits the empty directories of WAL, all with the rights of the first.
    fn wal(&self, metadata: Metadata, visitor: &mut Visitor<'_>) -> Result<()> {
        visitor(Found::Directory(
            b"pg_wal/archive_status".to_vec(),
            metadata.clone(),
        ))?;
        if self.naming.major >= Major::V17.number() {
            let path = b"pg_wal/summaries".to_vec();
            visitor(Found::Directory(path, metadata.clone()))?;
        }
        visitor(Found::Directory(WAL.to_vec(), metadata))
    }

    /// Visits each tablespace's directory of this major. The links themselves come from the server's answer.
    fn in_tablespaces(&self, visitor: &mut Visitor<'_>) -> Result<()> {
        let version = self.naming.version_directory();
        for oid in self.tablespaces {
            let path = format!("pg_tblspc/{oid}").into_bytes();
            let place = self.place(&path);
            let Some(metadata) = existing(fs::symlink_metadata(&place), &place)? else {
                continue;
            };
            if metadata.is_dir() {
                visitor(Found::Directory(path, metadata))?;
            }
            let version = format!("pg_tblspc/{oid}/{version}");
            self.directory(version.into_bytes(), visitor)?;
        }
        Ok(())
    }

    /// Reads a directory; `None` when it has vanished.
    fn list(&self, path: &[u8]) -> Result<Option<Listing>> {
        let place = self.place(path);
        let Some(entries) = existing(fs::read_dir(&place), &place)? else {
            return Ok(None);
        };
        let mut listing = Listing::default();
        for entry in entries {
            // Names are taken one by one: a database may have millions.
            let Some(entry) = existing(entry, &place)? else {
                return Ok(None);
            };
            let name = entry.file_name().into_vec();
            let Some(kind) = existing(entry.file_type(), &place)? else {
                continue;
            };
            self.sort_in(&mut listing, path, name, kind);
        }
        listing.order();
        Ok(Some(listing))
    }

    fn sort_in(&self, listing: &mut Listing, folder: &[u8], name: Vec<u8>, kind: FileType) {
        let is_first = folder.is_empty() && FIRST.contains(&name.as_slice());
        if exclude::is_excluded(&name) || is_first {
            return;
        }
        let may_be_link = exclude::is_emptied(&name) || (folder.is_empty() && name == WAL);
        let path = joined(folder, &name);
        if kind.is_dir() || (kind.is_symlink() && may_be_link) {
            listing.folders.push(name);
        } else if !kind.is_file() {
            listing.special.push(name);
        } else if let Some(file) = RelationFile::from_path(&path, &self.naming) {
            listing.relations.push(file);
        } else if path != b"global/pg_control"
            && !(is_of_database(folder) && exclude::is_temporary_relation(&name))
        {
            listing.files.push(name);
        }
    }

    fn listed(&self, listing: Listing, path: &[u8], visitor: &mut Visitor<'_>) -> Result<()> {
        for file in &listing.relations {
            if !listing.is_unlogged(file) {
                visitor(Found::File(FileKey::of_relation(file)))?;
            }
        }
        for name in &listing.files {
            let key = FileKey::from_path(&joined(path, name), &self.naming)?;
            visitor(Found::File(key))?;
        }
        for name in &listing.folders {
            self.directory(joined(path, name), visitor)?;
        }
        for name in &listing.special {
            visitor(Found::Special(joined(path, name)))?;
        }
        Ok(())
    }
}

/// The entries of one directory.
#[derive(Default)]
struct Listing {
    relations: Vec<RelationFile>,
    files: Vec<Vec<u8>>,
    folders: Vec<Vec<u8>>,
    special: Vec<Vec<u8>>,
}

impl Listing {
    fn order(&mut self) {
        self.relations.sort_unstable();
        self.files.sort_unstable();
        // Numbers in order of size.
        self.folders
            .sort_unstable_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    }

    /// Whether a file goes when the server starts after a crash: it belongs to an unlogged relation, and is not its init fork.
    fn is_unlogged(&self, file: &RelationFile) -> bool {
        let init = RelationFile {
            fork: Fork::Init,
            segment: 0,
            ..*file
        };
        file.fork != Fork::Init && self.relations.binary_search(&init).is_ok()
    }
}

/// Whether a directory is one of a database: `base/<oid>`, or below the version directory of a tablespace.
fn is_of_database(folder: &[u8]) -> bool {
    let mut parts = folder.rsplit(|b| *b == b'/');
    let is_number = |name: &[u8]| !name.is_empty() && name.iter().all(u8::is_ascii_digit);
    parts.next().is_some_and(is_number)
        && parts
            .next()
            .is_some_and(|parent| parent == b"base" || parent.starts_with(b"PG_"))
}

fn entries(path: &Path) -> Result<Option<Vec<DirEntry>>> {
    let Some(entries) = existing(fs::read_dir(path), path)? else {
        return Ok(None);
    };
    existing(entries.collect(), path)
}

/// A result about an entry; `None` when it has vanished.
pub(super) fn existing<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from_io(format!("read \"{}\"", path.display()), e)),
    }
}
