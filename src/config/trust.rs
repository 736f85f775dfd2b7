//! Trust in a file that the command line does not name: only this user or root may have written it.
//!
//! The file decides which programs run (`credential_process`), so whoever may change it acts as this user. It counts as changeable by the owner
//! of the file and of each directory above it, and by everybody else whom their modes let write. A mode's group bits are also the mask of an
//! access control list.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::account::Account;
use super::roots::is_roots;
use crate::err;
use crate::error::{Error, Result};
use crate::way::Way;

/// Group and others may write.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Requires that nobody but this user and root may change the file, or put another in its place.
///
/// # Errors
/// `Config` naming the file, the cause and `--config`.
pub(super) fn check_file(path: &Path, opened: &File) -> Result<()> {
    let metadata = opened
        .metadata()
        .map_err(|e| not_looked_at(path, path, &e))?;
    check(path, path, &metadata, false)?;
    check_directories(path)?;
    // A link may lead elsewhere. The file that was opened must be the one that lies there, now that nobody else can exchange it.
    let real = std::fs::canonicalize(path).map_err(|e| not_looked_at(path, path, &e))?;
    check_directories(&real)?;
    let found = std::fs::metadata(&real).map_err(|e| not_looked_at(path, &real, &e))?;
    if (found.dev(), found.ino()) == (metadata.dev(), metadata.ino()) {
        return Ok(());
    }
    Err(refused(path, "was exchanged while it was read"))
}

/// Requires the same of every directory above a file, which need not be there.
///
/// # Errors
/// Those of [`check_file`].
pub(super) fn check_directories(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    let real = std::fs::canonicalize(parent).map_err(|e| not_looked_at(path, parent, &e))?;
    for directory in real.ancestors() {
        let metadata =
            std::fs::metadata(directory).map_err(|e| not_looked_at(path, directory, &e))?;
        // In a sticky directory nobody renames what is ours; but anybody may put there what is missing.
        check(path, directory, &metadata, directory != real)?;
    }
    Ok(())
}

fn check(path: &Path, at: &Path, metadata: &Metadata, sticky_is_closed: bool) -> Result<()> {
    let which = match at == path {
        true => String::new(),
        false => format!("lies below \"{}\", which ", at.display()),
    };
    if !is_own(metadata) {
        let name = Account::name_of(metadata.uid());
        return Err(refused(path, &format!("{which}belongs to user \"{name}\"")));
    }
    if is_closed(metadata) || (sticky_is_closed && is_sticky(metadata)) {
        return Ok(());
    }
    let mode = metadata.mode() & 0o7777;
    let why = format!("{which}may be changed by other users: its mode is {mode:04o}");
    Err(refused(path, &why))
}

/// Returns the path without links of a file that nobody but this user and root may change, or put another in the place of: each
/// directory and each link on the way is looked at. The path that is returned stays this file for everybody else.
///
/// # Errors
/// The cause, as the rest of a sentence about the file.
pub fn closed_path(path: &Path) -> std::result::Result<PathBuf, String> {
    let mut way = Way::to(path);
    while let Some(at) = way.next_entry() {
        let failed = |e| format!("cannot be looked at: \"{}\": {e}", at.display());
        let metadata = at.symlink_metadata().map_err(failed)?;
        let which = match at == path {
            true => String::new(),
            false => format!("depends on \"{}\", which ", at.display()),
        };
        if !is_own(&metadata) {
            let owner = Account::name_of(metadata.uid());
            return Err(format!("{which}belongs to user \"{owner}\""));
        }
        if metadata.is_symlink() {
            way.follow(&at)
                .map_err(|e| match Errno::from_io_error(&e) {
                    Some(Errno::LOOP) => "has too many symbolic links".to_owned(),
                    _ => failed(e),
                })?;
            continue;
        }
        // In a sticky directory nobody moves what is ours: the next part is looked at, too.
        let is_passage = metadata.is_dir() && is_sticky(&metadata);
        if !is_closed(&metadata) && !is_passage {
            let mode = metadata.mode() & 0o7777;
            return Err(format!(
                "{which}may be changed by other users: its mode is {mode:04o}"
            ));
        }
        way.enter(at);
    }
    Ok(way.end())
}

/// The directory, or one above it, that others than root and this user may change; none where there is none. Links are followed first.
///
/// # Errors
/// Those of the system.
pub fn changeable(directory: &Path) -> std::io::Result<Option<PathBuf>> {
    let real = std::fs::canonicalize(directory)?;
    for at in real.ancestors() {
        let found = std::fs::metadata(at)?;
        // In a sticky directory nobody renames what is ours.
        let has_passage = at != real && is_sticky(&found);
        if !is_own(&found) || !(is_closed(&found) || has_passage) {
            return Ok(Some(at.to_owned()));
        }
    }
    Ok(None)
}

/// Whether root or this user owns it.
pub fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() || is_roots(metadata)
}

/// Whether its mode lets nobody but its owner write.
pub fn is_closed(metadata: &Metadata) -> bool {
    metadata.mode() & OTHERS_WRITE == 0
}

/// Whether nobody may rename what others own in this directory.
pub fn is_sticky(metadata: &Metadata) -> bool {
    metadata.mode() & STICKY != 0
}

fn not_looked_at(path: &Path, at: &Path, e: &std::io::Error) -> Error {
    let why = format!(
        "cannot be trusted, because \"{}\" cannot be looked at: {e}",
        at.display()
    );
    refused(path, &why)
}

fn refused(path: &Path, why: &str) -> Error {
    let own = Account::name_of(rustix::process::geteuid().as_raw());
    let shown = path.display();
    err!(Config, "configuration file \"{shown}\" {why}").hint(format!(
        "It is not read: it may name programs, which would run as user \"{own}\". If you trust it, name it: --config {shown}. Else run pitr in another directory, or name your own file with --config."
    ))
}
