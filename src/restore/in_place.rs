//! A look at every file of a data directory that is to be restored in place, before the first change.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, FileType};

use super::extract::{check_stop, version_of, withholds_file};
use super::target_dir::Target;
use super::tree::{Tree, below, entries, is_lost_and_found, target_error};
use crate::err;
use crate::error::Result;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;

/// No data directory is deeper.
const DEPTH_MAX: u32 = 64;

/// Requires that each directory can be listed, and that each file that the backup has, too, has one name and the owner of the restore. A later step
/// would find it when the directory is no cluster any more.
///
/// # Errors
/// `Refused`, with the file; `TargetWrite`; `Interrupted`; `Damaged` when the map fails a check.
pub fn check(target: &Target, snapshot: &Snapshot<'_>, stop: &AtomicBool) -> Result<()> {
    let look = Look { snapshot, stop };
    let data = Tree::open(&target.data, target.owner)?;
    look.directory(&data, data.root(), b"", 0)?;
    let version = version_of(snapshot.naming());
    for tablespace in &target.tablespaces {
        let tree = match tablespace.real.join(&version).is_dir() {
            true => Tree::open(&tablespace.real.join(&version), target.owner)?,
            false => continue,
        };
        let prefix = format!("pg_tblspc/{}/{version}/", tablespace.oid);
        look.directory(&tree, tree.root(), prefix.as_bytes(), 0)?;
    }
    Ok(())
}

struct Look<'l> {
    snapshot: &'l Snapshot<'l>,
    stop: &'l AtomicBool,
}

impl Look<'_> {
    fn directory(
        &self,
        tree: &Tree,
        directory: BorrowedFd<'_>,
        prefix: &[u8],
        depth: u32,
    ) -> Result<()> {
        check_stop(self.stop)?;
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let failed = |e| target_error(format!("read directory \"{}\"", shown(prefix)), e);
        if depth > DEPTH_MAX {
            return Err(failed(rustix::io::Errno::LOOP));
        }
        for entry in entries(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let path = [prefix, name.to_bytes()].concat();
            if is_lost_and_found(&path) {
                continue;
            }
            let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(failed)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let below = below(directory, name).map_err(failed)?;
                    let inside = [path.as_slice(), b"/"].concat();
                    self.directory(tree, below.as_fd(), &inside, depth + 1)?;
                }
                FileType::RegularFile if stat.st_nlink != 1 && self.is_of_backup(&path)? => {
                    return Err(err!(
                        Refused,
                        "\"{}\" has {} names: another cluster may have the same file, as behind pg_upgrade --link",
                        shown(&path),
                        stat.st_nlink
                    )
                    .hint("Nothing was changed. Restore into an empty directory."));
                }
                FileType::RegularFile if !tree.is_ours(&stat) && self.is_of_backup(&path)? => {
                    return Err(err!(
                        Refused,
                        "\"{}\" belongs to another user",
                        shown(&path)
                    )
                    .hint("Nothing was changed. Run the command as the owner of the files, or restore into an empty directory."));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the restore would open the file, and not remove it.
    fn is_of_backup(&self, path: &[u8]) -> Result<bool> {
        match FileKey::from_path(path, *self.snapshot.naming()) {
            Ok(key) => {
                let found = self.snapshot.metadata(&key)?;
                Ok(matches!(found, Some(Metadata::File { .. })) && !withholds_file(path))
            }
            Err(_) => Ok(false),
        }
    }
}
