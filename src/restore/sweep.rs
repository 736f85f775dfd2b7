//! Removes from a data directory that is restored in place what the backup does not have: files, directories, links, all of its WAL.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, DirEntry, FileType};

use super::extract::{Destination, check_stop, is_standard_directory, withholds_file};
use super::finish::kind;
use super::target_dir::{CONTROL, WAITING_CONTROL};
use super::tree::{below, entries, is_lost_and_found, target_error};
use crate::archive::guard::UNFINISHED;
use crate::error::Result;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;

/// Entries of a directory that are held in memory, and looked up in the order of the map.
const BATCH: usize = 1 << 18;
/// No data directory is deeper.
const DEPTH_MAX: u32 = 64;

/// Removes what is foreign in all trees; returns how many files and links went.
///
/// # Errors
/// `TargetWrite`; `Interrupted`; `Damaged` when the map fails a check.
pub fn sweep(snapshot: &Snapshot<'_>, destination: &Destination, stop: &AtomicBool) -> Result<u64> {
    let mut sweep = Sweep {
        snapshot,
        destination,
        stop,
        removed: 0,
    };
    for own in destination.own_directories(snapshot.naming()) {
        let (prefix, directory) = own?;
        sweep.directory(directory.as_fd(), prefix.as_bytes(), 0)?;
    }
    Ok(sweep.removed)
}

/// An entry with its key, by which the map is sorted; none of a name that no backup has.
type Named = (Option<FileKey>, CString, FileType);

struct Sweep<'a> {
    snapshot: &'a Snapshot<'a>,
    destination: &'a Destination,
    stop: &'a AtomicBool,
    removed: u64,
}

impl Sweep<'_> {
    fn directory(&mut self, directory: BorrowedFd<'_>, prefix: &[u8], depth: u32) -> Result<()> {
        check_stop(self.stop)?;
        let failed = |e| {
            let shown = String::from_utf8_lossy(prefix).into_owned();
            target_error(format!("read directory \"{shown}\""), e)
        };
        if depth > DEPTH_MAX {
            return Err(failed(rustix::io::Errno::LOOP));
        }
        let mut left = entries(directory).map_err(failed)?;
        loop {
            let read = |entry: rustix::io::Result<DirEntry>| -> rustix::io::Result<Named> {
                let entry = entry?;
                let name = entry.file_name().to_owned();
                let path = [prefix, name.to_bytes()].concat();
                let key = FileKey::from_path(&path, *self.snapshot.naming()).ok();
                Ok((key, name, kind(directory, &entry)?))
            };
            let batch = left.by_ref().take(BATCH).map(read);
            let batch: rustix::io::Result<Vec<Named>> = batch.collect();
            let mut batch = batch.map_err(failed)?;
            if batch.is_empty() {
                return Ok(());
            }
            // The map has them in this order: each part of it is read once for a batch.
            batch.sort_unstable_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
            for (_, name, found) in batch {
                self.entry((directory, prefix, depth), &name, found)?;
            }
        }
    }

    fn entry(
        &mut self,
        (directory, prefix, depth): (BorrowedFd<'_>, &[u8], u32),
        name: &CStr,
        found: FileType,
    ) -> Result<()> {
        check_stop(self.stop)?;
        let path = [prefix, name.to_bytes()].concat();
        if is_lost_and_found(&path) && found == FileType::Directory {
            return Ok(());
        }
        let gone = |e| {
            let shown = String::from_utf8_lossy(&path).into_owned();
            target_error(format!("remove \"{shown}\""), e)
        };
        match found {
            FileType::Directory => {
                let below = below(directory, name).map_err(|e| {
                    let shown = String::from_utf8_lossy(&path).into_owned();
                    target_error(format!("read directory \"{shown}\""), e)
                })?;
                let inside = [path.as_slice(), b"/"].concat();
                self.directory(below.as_fd(), &inside, depth + 1)?;
                if !self.keeps_directory(&path)? {
                    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR).map_err(gone)?;
                }
            }
            found if !self.keeps(&path, found)? => {
                rustix::fs::unlinkat(directory, name, AtFlags::empty()).map_err(gone)?;
                self.removed += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn metadata(&self, path: &[u8]) -> Result<Option<Metadata>> {
        match FileKey::from_path(path, *self.snapshot.naming()) {
            Ok(key) => self.snapshot.metadata(&key),
            // No backup has a file of such a name.
            Err(_) => Ok(None),
        }
    }

    fn keeps_directory(&self, path: &[u8]) -> Result<bool> {
        let is_known = || self.metadata(path);
        Ok(is_standard_directory(path) || matches!(is_known()?, Some(Metadata::Directory { .. })))
    }

    fn keeps(&self, path: &[u8], found: FileType) -> Result<bool> {
        let own = format!("pg_wal/{UNFINISHED}");
        if path == own.as_bytes() || path == WAITING_CONTROL.as_bytes() {
            return Ok(true);
        }
        if found == FileType::Symlink {
            return Ok(self.destination.is_link_of_tablespace(path));
        }
        let is_ours = found == FileType::RegularFile && !withholds_file(path);
        let is_ours = is_ours && path != CONTROL.as_bytes();
        Ok(is_ours && matches!(self.metadata(path)?, Some(Metadata::File { .. })))
    }
}
