//! Databases of a data directory that lie there without content.

use std::collections::BTreeSet;
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::path::{Path, PathBuf};

use super::walk::existing;
use crate::archive::left_out::{self, MARKER, MARKER_LIMIT_BYTES};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::root::cluster::LeftOutDatabase;
use crate::snapshot::filekey::ClusterNaming;

/// Returns the databases that the marker of a data directory names; none without a marker.
///
/// # Errors
/// `Damaged`, and those of the file.
pub fn marked(root: &Path) -> Result<Vec<LeftOutDatabase>> {
    use std::io::Read;
    let path = root.join(MARKER);
    let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
    let Some(file) = existing(std::fs::File::open(&path), &path)? else {
        return Ok(Vec::new());
    };
    let mut content = Vec::new();
    let limit = MARKER_LIMIT_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    match content.len() > MARKER_LIMIT_BYTES {
        true => Err(err!(Damaged, "\"{}\" is too large", path.display())),
        false => left_out::read(&content),
    }
}

/// Returns those databases of the marker that were not dropped since.
///
/// # Errors
/// Those of [`marked`], and of reading directories.
pub fn marked_there(root: &Path) -> Result<Vec<LeftOutDatabase>> {
    let mut named = marked(root)?;
    if named.is_empty() {
        return Ok(named);
    }
    let mut folders = vec![root.join("base")];
    for space in entries_of(&root.join("pg_tblspc"))? {
        folders.extend(entries_of(&space)?);
    }
    retain_there(&mut named, &folders);
    Ok(named)
}

/// The paths of a folder's entries; none where it is not there.
fn entries_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::from_io(format!("read \"{}\"", folder.display()), e);
    let Some(entries) = existing(std::fs::read_dir(folder), folder)? else {
        return Ok(Vec::new());
    };
    let paths = entries.map(|entry| entry.map(|e| e.path()).map_err(failed));
    paths.collect()
}

/// Keeps the databases that have a directory in one of these folders.
fn retain_there(named: &mut Vec<LeftOutDatabase>, folders: &[PathBuf]) {
    named.retain(|database| {
        let oid = database.oid.to_string();
        folders.iter().any(|folder| folder.join(&oid).is_dir())
    });
}

/// Returns the databases without content: those of the marker that have a directory, and those whose version files say so.
///
/// # Errors
/// Those of [`marked`], and of reading directories.
pub fn there(
    root: &Path,
    naming: &ClusterNaming,
    tablespaces: &[u32],
) -> Result<Vec<LeftOutDatabase>> {
    let version = naming.version_directory();
    let spaces = tablespaces
        .iter()
        .map(|space| format!("pg_tblspc/{space}/{version}"));
    let folders: Vec<_> = std::iter::once("base".to_owned())
        .chain(spaces)
        .map(|folder| root.join(folder))
        .collect();
    let mut named = marked(root)?;
    retain_there(&mut named, &folders);
    let mut closed = BTreeSet::new();
    for folder in folders {
        closed.append(&mut closed_in(&folder)?);
    }
    Ok(left_out::join(named, closed))
}

/// The databases of a folder whose version files say that they have no content. A database may be dropped meanwhile.
fn closed_in(folder: &Path) -> Result<BTreeSet<u32>> {
    let failed = |e| Error::from_io(format!("read \"{}\"", folder.display()), e);
    let mut closed = BTreeSet::new();
    for entry in entries_of(folder)? {
        let path = entry.join("PG_VERSION");
        match std::fs::read(&path) {
            Ok(content) => {
                let path = path.as_os_str().as_encoded_bytes();
                closed.extend(left_out::closed(path, &content));
            }
            Err(e) if matches!(e.kind(), NotFound | NotADirectory) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(closed)
}
