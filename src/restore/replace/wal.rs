//! pg_wal where it is a link: it stays one, and the files of the new cluster are copied beside the directory that it leads to.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::WAITING;
use super::entry::{beside, exchange, failed, inode_of, looked, move_to, open_parent};
use crate::durable;
use crate::error::Result;

/// The name that the link has until it takes its place.
const LINK: &str = "pg_wal.pitr-link";

/// Copies the files of a restored pg_wal beside the directory in which they are to lie: a handful, or what a recovery in private has left.
pub(super) fn stage(waiting: &Path, real: &Path) -> Result<()> {
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

/// Makes pg_wal of the new cluster the link that the old one has; its files were copied to where the link leads.
pub(super) fn link_as(old: &Path, new: &Path) -> Result<()> {
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
