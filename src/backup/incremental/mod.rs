//! Incremental backups: changed pages upon the map of a prior backup.
//!
//! `prior` chooses the backup to build on, `held` claims it against deletion, and `wal` finds the changes since.
//! `recheck` doubts these, and `rewrite` chooses what is stored again although it did not change. If WAL does not show
//! the changes, `compare` gives the hashes of the prior's pages, with which every page is compared. `state` serves hosts that cannot read their
//! backups back. `unusable` looks at a prior whose damage shows after the start. The rules, and the
//! proof that they suffice, are in `docs/decisions/0024-incrementals.md`.

pub mod compare;
pub mod held;
pub mod prior;
pub mod recheck;
pub mod rewrite;
pub mod state;
pub mod unusable;
pub mod wal;

use std::time::Duration;

use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::History;
use crate::repo::clock::MAY_DIFFER;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::{BackupRoot, ClusterContent, Head, Map};
use crate::repo::scope::Scope;
use crate::snapshot::filekey::Naming;
use crate::snapshot::page_hashes::PageHashes;
use crate::snapshot::reader::{Snapshot, SnapshotRoot};
use crate::store::Store;
use crate::ticking::ticking;

/// So often every page of a chain is read and compared, whatever WAL tells.
const SCAN_EVERY: Duration = Duration::from_secs(30 * 24 * 3600);

/// The prior of a backup under way, open for reading.
pub struct Prior<'a> {
    /// Repository that holds the prior.
    pub repository: &'a Repository,
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
        (repository, layout, root): (&'a Repository, &ClusterLayout, &'a BackupRoot),
        history: &History,
        host: &Host,
    ) -> Result<Prior<'a>> {
        let snapshot = Snapshot::open(repository.store(), layout, root)?;
        Ok(Prior {
            repository,
            root,
            snapshot: snapshot.spooling(&host.scratch),
            history: history.clone(),
        })
    }

    /// Why every page has to be read now; none as long as that was done lately. A hole that was in the WAL of an earlier interval shows in no other
    /// way.
    pub fn why_scan(&self, now: TimestampTz) -> Option<String> {
        let is_due = |at: TimestampTz| {
            at.saturating_add(SCAN_EVERY) <= now || at > now.saturating_add(MAY_DIFFER)
        };
        let days = SCAN_EVERY.as_secs() / (24 * 3600);
        let why = format!("that is done each {days} days, and no backup of the chain did it since");
        match scanned(self.root) {
            Some(at) if is_due(at) => Some(format!("{why} {at}")),
            Some(_) => None,
            None => Some(why),
        }
    }

    /// Returns the time of the newest whole scan, for the root of the new backup. That backup begins at `start`, and
    /// has read every page itself, or not.
    pub fn scan_time(&self, has_scanned: bool, start: TimestampTz) -> Option<TimestampTz> {
        match has_scanned {
            true => Some(start),
            false => scanned(self.root),
        }
    }

    /// The hashes of its pages.
    pub fn page_hashes(&self) -> PageHashes<'_, 'a> {
        PageHashes::new(&self.snapshot)
    }
}

/// Returns when the newest backup of a chain was begun for which every page was read. If an incremental does not record
/// it, this is the start of the full one at its base.
pub fn scanned(root: &BackupRoot) -> Option<TimestampTz> {
    let told = root.content.whole_scan_time;
    told.or_else(|| base(root).time())
}

/// Returns the oldest backup that wrote a part of this one, or of what it was compacted from: the full one at its base, whether that still exists
/// or not.
pub fn base(root: &BackupRoot) -> BackupId {
    let layers = root.map.shards.iter().flat_map(|shard| &shard.layers);
    let layers = layers.map(|layer| &layer.key.id);
    let packs = root.map.packs.iter().map(|pack| &pack.key.id);
    let all = layers.chain(packs).chain(&root.content.oldest_content);
    let oldest = all.min_by_key(|id| (id.time(), id.is_incremental()));
    oldest.unwrap_or(&root.head.id).clone()
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
        .hint("Nothing was committed: the standby lags behind. Take a full backup: pitr backup --full")),
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
        .hint("Nothing was committed. Take a full backup: pitr backup --full")),
    }
}

/// Gives a root the packs and the counts of all its layers, where it had those that the backup wrote itself. The whole map is walked, so that a byte
/// that no layer covers is found before the root is written. Calls `tick` once for each file.
///
/// # Errors
/// `Damaged` when prior and new layers do not give one map; errors of `tick` and of the store.
pub fn complete(
    (store, scope): (&dyn Store, &Scope),
    (prior_head, prior): (&Head, &Map),
    (head, own): (Head, Map),
    naming: Naming,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<(Head, Map)> {
    let map = Map {
        packs: prior.packs.iter().cloned().chain(own.packs).collect(),
        shards: own.shards,
    };
    // Layers that stand alone have counts of their own. If the backup added none, these are the prior's.
    let is_as_before = map.shards.iter().all(|shard| shard.layers.len() == 1);
    let root = SnapshotRoot {
        head: if is_as_before { prior_head } else { &head },
        map: &map,
        naming,
    };
    let snapshot = ticking(tick, || Snapshot::open(store, scope, root))?;
    let usage = snapshot.usage(tick)?;
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
