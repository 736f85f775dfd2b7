//! The data directory that is to be replaced.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::entry::{beside, inode_of, looked};
use super::movable::check_movable;
use super::{UNCHANGED, WAITING, check_stopped, check_user, digest};
use crate::archive::datadir::DataDirectory;
use crate::archive::guard::{UNFINISHED, read_limited};
use crate::err;
use crate::error::Result;
use crate::pg::control::{ClusterState, ControlFile};
use crate::restore::target_dir::CONTROL;

/// A data directory that is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Old {
    /// The data directory, without links.
    pub data: PathBuf,
    pub system_identifier: u64,
    /// Files of WAL that wait to be archived.
    pub unarchived: usize,
    /// Whether its server was not shut down cleanly: the WAL of its last segment was never offered to be archived.
    pub is_crashed: bool,
    /// BLAKE3 of its pg_control, which every server changes.
    pub(super) control: String,
    /// Name of its directory in each tablespace.
    pub(super) version: String,
    /// Directories of its tablespaces, without links.
    pub(super) tablespaces: BTreeSet<PathBuf>,
    /// The text of pg_wal where that is a link, and the directory that it leads to.
    pub(super) wal: Option<(PathBuf, PathBuf)>,
}

impl Old {
    /// Checks a data directory that is to be replaced: no server runs in it, and all of it can be moved. Changes nothing.
    ///
    /// # Errors
    /// `Refused`.
    pub fn look(to: &Path) -> Result<Old> {
        check_user()?;
        let data = real(to)?;
        check_stopped(&data)?;
        Old::of(data, rustix::process::geteuid().as_raw())
    }

    /// Checks whether its user could move all of a data directory, in which a server may run.
    ///
    /// # Errors
    /// `Refused`.
    pub fn look_beside(to: &Path) -> Result<Old> {
        let data = real(to)?;
        let owner = std::fs::metadata(&data).map_err(|e| looked(&data, e))?;
        Old::of(data, owner.uid())
    }

    /// Why no cluster can recover beside it; none where one can.
    ///
    /// Both clusters have the same directory in a tablespace. WAL names it, so a server that recovers aside would write into that of the one in its place.
    pub fn why_not_aside(&self) -> Option<&'static str> {
        (!self.tablespaces.is_empty()).then_some("it has tablespaces outside of its data directory")
    }

    fn of(data: PathBuf, uid: u32) -> Result<Old> {
        let shown = data.display();
        let directory = DataDirectory::at(&data);
        if read_limited(&directory.wal().join(UNFINISHED))?.is_some() {
            return Err(err!(Refused, "\"{shown}\" holds an unfinished restore").hint(
                "Nothing was changed. Complete it with the command that began it, or remove the directory.",
            ));
        }
        let (control, bytes) = directory.control_with_bytes()?.ok_or_else(|| {
            err!(
                Refused,
                "\"{shown}\" is no data directory: it has no {CONTROL}"
            )
            .hint(UNCHANGED)
        })?;
        let version = version_of(&control);
        check_movable(&data, uid)?;
        let mut old = Old {
            system_identifier: control.system_identifier,
            unarchived: unarchived(&directory),
            is_crashed: !matches!(
                control.state,
                ClusterState::ShutDown | ClusterState::ShutDownInRecovery
            ),
            control: digest(&bytes),
            version,
            tablespaces: BTreeSet::new(),
            wal: None,
            data,
        };
        let wal = old.data.join("pg_wal");
        if let Ok(text) = std::fs::read_link(&wal) {
            let real = wal.canonicalize().map_err(|e| looked(&wal, e))?;
            check_movable(&real, uid)?;
            old.wal = Some((text, real));
        }
        for link in linked_tablespaces(&old.data)? {
            let space = link.canonicalize().map_err(|e| looked(&link, e))?;
            check_tablespace(&old, &space, uid)?;
            old.tablespaces.insert(space);
        }
        old.check_apart()?;
        Ok(old)
    }

    /// Requires that no directory that is moved lies in another one: names in it would be exchanged in the cluster that leaves.
    fn check_apart(&self) -> Result<()> {
        let moved = self.moved();
        for inner in &moved {
            let outer = moved
                .iter()
                .find(|outer| *outer != inner && inner.starts_with(outer));
            if let Some(outer) = outer {
                return Err(err!(
                    Refused,
                    "\"{}\" lies in \"{}\", so the two cannot be moved aside one by one",
                    inner.display(),
                    outer.display()
                )
                .hint("Nothing was changed. Restore into another directory."));
            }
        }
        Ok(())
    }

    /// The directory in which the new cluster is restored.
    pub fn waiting(&self) -> PathBuf {
        beside(&self.data, WAITING)
    }

    /// Whether a tablespace's directory is one of the old cluster.
    pub fn has_tablespace(&self, space: &Path) -> bool {
        self.tablespaces.contains(space)
    }

    /// The directories of its tablespaces, without links.
    pub fn tablespaces(&self) -> impl Iterator<Item = &Path> {
        self.tablespaces.iter().map(PathBuf::as_path)
    }

    /// Everything that is moved aside, for people.
    pub fn moved(&self) -> Vec<PathBuf> {
        let spaces = self.tablespaces.iter().map(|at| at.join(&self.version));
        let wal = self.wal.iter().map(|(_, real)| real.clone());
        std::iter::once(self.data.clone())
            .chain(wal)
            .chain(spaces)
            .collect()
    }
}

/// The name of a cluster's directory in each tablespace.
pub(super) fn version_of(control: &ControlFile) -> String {
    format!("PG_{}_{}", control.major.number(), control.catalog_version)
}

/// The links to a cluster's tablespaces. A tablespace that is a plain directory lies in the data directory.
pub(super) fn linked_tablespaces(data: &Path) -> Result<Vec<PathBuf>> {
    let links = data.join("pg_tblspc");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&links).map_err(|e| looked(&links, e))? {
        let link = entry.map_err(|e| looked(&links, e))?.path();
        if std::fs::read_link(&link).is_ok() {
            found.push(link);
        }
    }
    Ok(found)
}

/// Requires that the old cluster's directory in a tablespace can be moved within it.
fn check_tablespace(old: &Old, space: &Path, uid: u32) -> Result<()> {
    if space.starts_with(&old.data) {
        return Err(err!(
            Refused,
            "tablespace \"{}\" lies in the data directory",
            space.display()
        )
        .hint("Nothing was changed. Restore into another directory."));
    }
    let own = space.join(&old.version);
    inode_of(&own)?.map_or(Ok(()), |_| check_movable(&own, uid))
}

/// The directory without links on the way.
fn real(to: &Path) -> Result<PathBuf> {
    to.canonicalize().map_err(|e| {
        err!(Refused, "there is nothing to replace at \"{}\"", to.display())
            .source(e)
            .hint("Nothing was written. Without --replace the cluster is restored into a directory that is not there yet.")
    })
}

fn unarchived(directory: &DataDirectory) -> usize {
    let status = std::fs::read_dir(directory.wal().join("archive_status"));
    let entries = status.into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_bytes().ends_with(b".ready"))
        .count()
}
