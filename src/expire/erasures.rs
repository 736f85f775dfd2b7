//! Deletes erasures that no backup needs any more.

use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::History;
use crate::repo::clock::MAY_DIFFER;
use crate::repo::erasure::{self, Erasure};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::wal::inventory::Inventory;

/// Deletes the erasures of a name that each of its backups has, whichever system identifier these have: a backup from before pg_upgrade needs
/// the erasures that came after it. Returns how many went; objects that the store keeps stay.
///
/// # Errors
/// Other errors of the store.
pub fn forget(repository: &Repository, name: &str, host: &Host) -> Result<u64> {
    let clusters = repository.clusters(name)?;
    let store = repository.store();
    let mut found = Vec::new();
    for layout in &clusters {
        let listed = erasure::list(store, layout)?;
        found.extend(listed.into_iter().map(|one| (layout, one)));
    }
    if found.is_empty() {
        return Ok(0);
    }
    let Some(backups) = backups(repository, &clusters)? else {
        return Ok(0);
    };
    let mut gone = 0;
    for (layout, one) in found {
        host.check_stop()?;
        let key = layout.erasure(&one.name)?;
        let stored = match one.meta {
            Some(meta) => Some(meta),
            None => store.head(&key)?,
        };
        let Some(stored) = stored else { continue };
        let recorded = match erasure::read(store, layout, &one.name) {
            Ok(Some(read)) => read,
            Ok(None) => continue,
            // Only its position tells which backups have it: a standby's backup that is younger may lack it, and so may a timeline.
            Err(e) if e.is_damage() || e.code() == Code::Key => continue,
            Err(e) => return Err(e),
        };
        let needs =
            |backup: &Begun| !backup.has(layout.system_identifier(), &recorded, stored.modified);
        if backups.is_empty() || backups.iter().any(needs) {
            continue;
        }
        match store.delete(&key) {
            Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => {}
            deleted => gone += u64::from(deleted?),
        }
    }
    Ok(gone)
}

/// The beginning of a backup.
struct Begun {
    system_identifier: u64,
    time: TimestampTz,
    /// None of one that runs.
    position: Option<(History, Lsn)>,
}

impl Begun {
    /// Whether the backup has an erasure. Its own cluster's position tells; clocks where there is none.
    fn has(&self, identifier: u64, erasure: &Erasure, stored: TimestampTz) -> bool {
        match &self.position {
            Some((history, lsn))
                if erasure.lsn.is_some() && identifier == self.system_identifier =>
            {
                erasure.is_within(history, *lsn)
            }
            _ => self.time > erasure.time.max(stored).saturating_add(MAY_DIFFER),
        }
    }
}

/// The beginnings of all backups, also of those that run; none where one cannot be read: nothing goes then.
fn backups(repository: &Repository, clusters: &[ClusterLayout]) -> Result<Option<Vec<Begun>>> {
    let mut all = Vec::new();
    for layout in clusters {
        let system_identifier = layout.system_identifier();
        let inventory = match Inventory::read(repository, layout.name(), Some(system_identifier)) {
            // Somebody made a folder of that name.
            Err(e) if e.code() == Code::NotFound => continue,
            inventory => inventory?,
        };
        if !inventory.unreadable.is_empty() || !inventory.lost.is_empty() {
            return Ok(None);
        }
        for (id, _) in &inventory.begun {
            let Some(time) = id.time() else {
                return Ok(None);
            };
            all.push(Begun {
                system_identifier,
                time,
                position: None,
            });
        }
        // A compacted backup has a new id, and the time of its content.
        for backup in &inventory.backups {
            let history = inventory.history(backup.start_timeline);
            all.push(Begun {
                system_identifier,
                time: backup.start_time,
                position: history.ok().map(|history| (history, backup.start_lsn)),
            });
        }
    }
    Ok(Some(all))
}

/// Deletes one erasure on request; whether it was there.
///
/// # Errors
/// Those of the store.
pub fn remove(repository: &Repository, layout: &ClusterLayout, name: &str) -> Result<bool> {
    repository.store().delete(&layout.erasure(name)?)
}
