//! Compaction of a backup: what it would do, and doing it.

use std::collections::BTreeSet;

use super::opened::{self, Opened};
use super::reading::Reading;
use super::session::Session;
use crate::backup::compact::{self, Limits, Options};
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::id::BackupId;
use crate::repo::root::{BackupRoot, PackRef};
use crate::wal::inventory::Backup;

/// The operator's wishes.
pub struct Asked {
    /// The backup; else the newest good one that leads to the cluster.
    pub backup: Option<BackupId>,
    /// Which packs are stored again.
    pub limits: Limits,
}

/// A compaction that was planned, and nothing done.
pub struct Planned {
    opened: Opened,
    root: BackupRoot,
    chosen: BTreeSet<usize>,
    /// Stored bytes of the chosen packs that no other backup names.
    pub freed_bytes: u64,
}

/// The histories of the timelines that may be the cluster; none where there is nothing to decide.
fn cluster(session: &Session, opened: &Opened) -> Result<Vec<History>> {
    let inventory = &opened.inventory;
    if inventory.timelines.len() < 2 {
        return Ok(Vec::new());
    }
    let decided = opened.reading.decide(session, inventory, &[])?;
    let candidates = decided.candidates().into_iter();
    Ok(candidates
        .filter_map(|timeline| inventory.history(timeline).ok())
        .collect())
}

/// The order in which the ends of backups are taken, the last first: those that lead to the cluster go before those of a branch, whatever its number.
fn rank((timeline, stop): (TimelineId, Lsn), cluster: &[History]) -> (bool, TimelineId, Lsn) {
    let before = Lsn(stop.0.saturating_sub(1));
    let leads = cluster
        .iter()
        .any(|history| history.holder(before) == timeline);
    (leads, timeline, stop)
}

/// Chooses backup and packs.
///
/// # Errors
/// `NotFound` without a good backup; `Refused` for one that is marked or damaged; those of [`Reading::open`] and [`Reading::decide`].
pub fn plan(session: &Session, asked: &Asked) -> Result<Planned> {
    let opened = opened::open(session, Reading::open(session)?)?;
    let backups = &opened.inventory.backups;
    let is_good = |b: &&Backup| b.damage.is_none() && b.expire_mark.is_none();
    let chosen = match &asked.backup {
        Some(id) => backups.iter().find(|b| b.id == *id).filter(is_good),
        None => {
            let cluster = cluster(session, &opened)?;
            let good = backups.iter().filter(is_good);
            good.max_by_key(|b| (rank((b.timeline, b.stop_lsn), &cluster), &b.id))
        }
    };
    let id = match (chosen, &asked.backup) {
        (Some(backup), _) => backup.id.clone(),
        (None, None) => return Err(err!(NotFound, "there is no good backup to compact")),
        (None, Some(id)) if backups.iter().any(|b| b.id == *id) => {
            return Err(err!(
                Refused,
                "backup \"{id}\" is damaged, or marked for deletion"
            )
            .hint("Nothing was stored. \"pitr info\" shows which backups are good."));
        }
        (None, Some(id)) => return Err(err!(NotFound, "backup \"{id}\" does not exist")),
    };
    let root = opened.root(session, &id)?;
    let chosen = compact::choose(&root.map.packs, asked.limits);
    let is_shared = |pack: &PackRef| {
        let number = SegmentNumber(pack.key.number.into());
        let mut others = backups.iter().filter(|b| b.id != id);
        others.any(|b| {
            b.packs
                .get(&pack.key.id)
                .is_some_and(|p| p.contains(number))
        })
    };
    let packs = chosen.iter().filter_map(|at| root.map.packs.get(*at));
    let own = packs.filter(|pack| !is_shared(pack));
    let freed_bytes = own.map(|pack| pack.size_bytes).sum();
    Ok(Planned {
        opened,
        root,
        chosen,
        freed_bytes,
    })
}

impl Planned {
    /// The repository's name.
    pub fn repository(&self) -> &str {
        &self.opened.reading.configured.name
    }

    /// The backup as it is.
    pub fn root(&self) -> &BackupRoot {
        &self.root
    }

    /// The packs that are stored again.
    pub fn packs(&self) -> impl Iterator<Item = &PackRef> {
        let packs = &self.root.map.packs;
        self.chosen.iter().filter_map(|at| packs.get(*at))
    }

    /// Stores the packs again, and commits the new root.
    ///
    /// # Errors
    /// Those of [`compact::run`].
    pub fn run(&self, session: &Session, options: &Options) -> Result<BackupRoot> {
        let place = (&self.opened.reading.repository, &self.opened.layout);
        compact::run(place, &self.root, &self.chosen, options, &session.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x62_a_branch_with_a_higher_number_is_not_compacted_before_the_cluster() {
        let tli = |n| TimelineId::new(n).unwrap();
        let first = History::root(tli(1));
        let cluster = [first.child(tli(5), Lsn(200), b"")];
        let rank = |timeline, stop| rank((tli(timeline), Lsn(stop)), &cluster);
        assert!(rank(7, 900) < rank(5, 300));
        assert!(rank(7, 900) < rank(1, 150), "it leads to the cluster");
        assert!(
            rank(1, 250) < rank(1, 150),
            "the cluster left before its end"
        );
        assert!(rank(1, 150) < rank(5, 300) && rank(5, 300) < rank(5, 400));
    }
}
