//! A prior that is claimed: `pitr expire` keeps it, and its packs, until the new backup's root names these.
//!
//! The order is the format's (section 10.1): claim, then events and root once more, then the layers.

use super::prior::{Candidate, FullEvery, Server, Shape, choose};
use super::{base, state};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::repo::catalog::{by_writer, part_number};
use crate::repo::claim::Claim;
use crate::repo::event::{self, Writer};
use crate::repo::id::{BackupId, PartKind};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::{BackupRoot, PackRef};
use crate::repo::runs::Runs;
use crate::repo::scope::Scope;
use crate::snapshot::reader::{Snapshot, SnapshotRoot};
use crate::store::Store;
use crate::wal::inventory::{Backup, Inventory};

/// A claimed prior.
pub struct Held<'a> {
    pub root: BackupRoot,
    /// The oldest backup that wrote a part of it.
    pub base: BackupId,
    /// Keeps it.
    pub claim: Claim<'a>,
}

/// Finds the prior of a backup of `server`, and claims it; else returns why a full backup has to be taken.
///
/// # Errors
/// Errors of the store.
pub fn hold<'a>(
    (repository, layout): (&'a Repository, &'a ClusterLayout),
    server: &Server,
    limit: Option<FullEvery>,
    host: &'a Host,
) -> Result<std::result::Result<Held<'a>, String>> {
    let store = repository.store();
    let progress = host.progress.as_ref();
    let identifier = layout.system_identifier();
    let inventory = Inventory::read(repository, layout.name(), Some(identifier))?;
    let mut candidates = Candidates::of((repository, layout), &inventory);
    let mut lacking = None;
    loop {
        let chosen = match choose(&mut candidates, server, limit)? {
            Ok(chosen) => chosen,
            Err(why) => {
                let lacking = lacking.or_else(|| candidates.why_unread());
                return Ok(Err(lacking.unwrap_or(why)));
            }
        };
        let claim = Claim::take((store, layout), Writer::of(host), &chosen.id, "prior", None)?;
        match good_root(repository, layout, &chosen) {
            Ok(Some(root)) => {
                let base = chosen.base;
                return Ok(Ok(Held { root, base, claim }));
            }
            Ok(None) => {
                claim.release(progress);
                let id = &chosen.id;
                lacking.get_or_insert_with(|| {
                    format!("a part of backup \"{id}\" is missing or damaged")
                });
            }
            Err(e) => {
                claim.release(progress);
                match e.code() {
                    Code::Key => lacking.get_or_insert(unreadable(repository, &e)),
                    _ => return Err(e),
                };
            }
        }
    }
}

/// The backups that may be the prior, newest first. Each root is read as it is asked for: in a bucket it is a request, and its map takes memory.
struct Candidates<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    /// Those that were not asked for yet, in the order of an inventory: the best one last.
    left: &'a [Backup],
    /// Whether a root could be read.
    is_any_read: bool,
    /// Those whose roots this host cannot read, each with the reason.
    unread: Vec<(&'a BackupId, String)>,
}

impl<'a> Candidates<'a> {
    fn of(
        (repository, layout): (&'a Repository, &'a ClusterLayout),
        inventory: &'a Inventory,
    ) -> Candidates<'a> {
        let damaged = match repository.kept() {
            Some(_) => &inventory.unreadable[..],
            None => &[],
        };
        let unread = damaged.iter().map(|one| (&one.id, one.problem.clone()));
        Candidates {
            repository,
            layout,
            left: &inventory.backups,
            is_any_read: false,
            unread: unread.collect(),
        }
    }

    /// The reason of the newest one that cannot be read; none where another one could be.
    fn why_unread(&self) -> Option<String> {
        let newest = self.unread.iter().max().filter(|_| !self.is_any_read);
        newest.map(|(_, why)| why.clone())
    }
}

impl Iterator for Candidates<'_> {
    type Item = Result<Candidate>;

    fn next(&mut self) -> Option<Result<Candidate>> {
        loop {
            let (backup, older) = self.left.split_last()?;
            self.left = older;
            match BackupRoot::read(self.repository.store(), self.layout, &backup.id) {
                Ok(Some(root)) => {
                    self.is_any_read = true;
                    return Some(Ok(candidate(backup, &root)));
                }
                Ok(None) => {}
                Err(e) if e.code() == Code::Key => {
                    let why = unreadable(self.repository, &e);
                    self.unread.push((&backup.id, why));
                }
                Err(e) if e.is_damage() => {}
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// Reads the root of a backup that is claimed by now; `None` where the backup is no more the one that was chosen, unmarked and undamaged, with a map
/// that can be read.
fn good_root(
    repository: &Repository,
    layout: &ClusterLayout,
    chosen: &Candidate,
) -> Result<Option<BackupRoot>> {
    let store = repository.store();
    let events = event::read_all(store, layout, &chosen.id.to_string())?;
    let is_clean = !event::is_marked(&events) && event::damage(&events).is_empty();
    let stored = BackupRoot::read(store, layout, &chosen.id)?;
    let Some(root) = stored.filter(|root| is_clean && root.head.nonce == chosen.nonce) else {
        return Ok(None);
    };
    if let Some(kept) = repository.kept() {
        state::check(kept, layout, &root)?;
    }
    Ok(is_whole(store, layout, &root)?.then_some(root))
}

/// Whether a backup's map can be read, and every pack is there, as listings tell: the new backup would not be whole without one.
///
/// # Errors
/// Errors of the store.
pub fn is_whole<'r>(
    store: &dyn Store,
    scope: &Scope,
    root: impl Into<SnapshotRoot<'r>>,
) -> Result<bool> {
    let root = root.into();
    match Snapshot::open(store, scope, root) {
        Err(e) if e.is_damage() => return Ok(false),
        open => open?,
    };
    has_packs(store, scope, &root.map.packs)
}

/// Whether every pack is there, as listings tell.
///
/// # Errors
/// Errors of the store.
pub fn has_packs(store: &dyn Store, scope: &Scope, packs: &[PackRef]) -> Result<bool> {
    let needed = by_writer(packs.iter().map(|pack| pack.key.clone()));
    for (id, needed) in &needed {
        let listed = store.list(&scope.parts(PartKind::Pack, Some(id)))?;
        let there = listed.iter().filter_map(|one| part_number(&one.name));
        let there = Runs::from_numbers(there.map(u64::from).collect());
        if !needed.minus(&there).is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Why a backup that cannot be read is no prior.
fn unreadable(repository: &Repository, e: &Error) -> String {
    match repository.kept() {
        Some(_) => e.to_string(),
        None => "this host has no key to read the maps of earlier backups".to_owned(),
    }
}

fn candidate(backup: &Backup, root: &BackupRoot) -> Candidate {
    let layers = root.map.shards.iter().map(|shard| shard.layers.len());
    Candidate {
        id: backup.id.clone(),
        base: base(root),
        nonce: root.head.nonce.clone(),
        timeline: backup.timeline,
        start_lsn: backup.start_lsn,
        stop_lsn: backup.stop_lsn,
        damage: backup.damage.clone(),
        is_partial: backup.is_partial,
        is_marked: backup.expire_mark.is_some(),
        shape: Shape {
            catalog_version: root.content.catalog_version,
            block_size_bytes: root.content.block_size_bytes,
            segment_size_bytes: root.content.wal_segment_size_bytes,
            relation_segment_blocks: root.content.relseg_blocks,
            data_checksums: root.content.data_checksums,
        },
        parts: layers.sum::<usize>() + root.map.packs.len(),
    }
}
