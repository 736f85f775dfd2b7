//! Incremental backups: changed pages upon the map of a prior backup.
//!
//! `prior` chooses the backup to build on, `held` claims it against deletion, `wal` tells what changed since, `recheck` doubts that.
//! Where WAL does not tell, the hashes of the prior's pages are compared with every page. The rules, and the proof that they suffice, are
//! in `docs/decisions/0024-incrementals.md`.

pub mod held;
pub mod prior;
pub mod recheck;
pub mod wal;

use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::History;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::{BackupRoot, ClusterContent, Head, Map};
use crate::snapshot::filekey::{ClusterNaming, Naming};
use crate::snapshot::page_hashes::PageHashes;
use crate::snapshot::reader::{Snapshot, SnapshotRoot};

/// The prior of a backup under way, open for reading.
pub struct Prior<'a> {
    /// Where it is.
    pub repository: &'a Repository,
    /// Its root.
    pub root: &'a BackupRoot,
    /// Its files.
    pub snapshot: Snapshot<'a>,
    /// The server's history when the backup was begun.
    pub history: History,
}

impl<'a> Prior<'a> {
    /// Opens the map of a backup.
    ///
    /// # Errors
    /// `Damaged`, `Key`, and what the store says.
    pub fn open(
        repository: &'a Repository,
        layout: &ClusterLayout,
        root: &'a BackupRoot,
        history: History,
    ) -> Result<Prior<'a>> {
        Ok(Prior {
            repository,
            root,
            snapshot: Snapshot::open(repository.store(), layout, root)?,
            history,
        })
    }

    /// The hashes of its pages.
    pub fn page_hashes(&self) -> PageHashes<'_, 'a> {
        PageHashes::new(&self.snapshot)
    }
}

/// Requires that a backup can build on its prior, now that its own bounds are known.
///
/// # Errors
/// `Refused`.
pub fn check_bounds(prior: &ClusterContent, new: &ClusterContent) -> Result<()> {
    let order = |what: &str, prior: Lsn, new: Lsn| {
        match prior <= new {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "the backup {what} at {new}, before its prior does, at {prior}"
        )
        .hint("Nothing was committed: the standby lags behind. Take a full backup: pitr backup --method local")),
    }
    };
    order("starts", prior.start_lsn, new.start_lsn)?;
    order("stops", prior.stop_lsn, new.stop_lsn)?;
    match prior.data_checksums == new.data_checksums {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "data checksums were switched since the prior was taken"
        )
        .hint("Nothing was committed. Take a full backup: pitr backup --method local")),
    }
}

/// Gives a root the packs and the counts of all its layers, where it had those that the backup wrote itself. The whole map is walked, so that a byte
/// that no layer covers is found before the root is written.
///
/// # Errors
/// `Damaged` when prior and new layers do not give one map; what the store says.
pub fn complete(
    (repository, layout): (&Repository, &ClusterLayout),
    prior: &Map,
    (head, own): (Head, Map),
    naming: ClusterNaming,
) -> Result<(Head, Map)> {
    let map = Map {
        packs: prior.packs.iter().cloned().chain(own.packs).collect(),
        shards: own.shards,
    };
    let root = SnapshotRoot {
        head: &head,
        map: &map,
        naming: Naming::Cluster(naming),
    };
    let usage = Snapshot::open(repository.store(), layout, root)?.usage()?;
    let head = Head {
        file_count: usage.file_count,
        size_bytes: usage.size_bytes,
        ..head
    };
    let map = Map {
        packs: usage.packs,
        ..map
    };
    Ok((head, map))
}
