//! Deletes erasures that no backup needs any more.

use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::clock::MAY_DIFFER;
use crate::repo::erasure;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::wal::inventory::Inventory;

/// Deletes the erasures of a name that are older than each of its backups, whichever system identifier these have: a backup from before
/// pg_upgrade needs the erasures that came after it. Returns how many went; objects that the store keeps stay.
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
    let Some(oldest) = oldest_backup(repository, &clusters)? else {
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
            Ok(read) => read.map(|erasure| erasure.time),
            // The store's time tells of one that cannot be read.
            Err(e) if e.is_damage() || e.code() == Code::Key => None,
            Err(e) => return Err(e),
        };
        let latest = recorded.map_or(stored.modified, |time| time.max(stored.modified));
        if oldest <= latest.saturating_add(MAY_DIFFER) {
            continue;
        }
        match store.delete(&key) {
            Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => {}
            deleted => gone += u64::from(deleted?),
        }
    }
    Ok(gone)
}

/// The beginning of the oldest backup, also of one that runs; none where there is none, and where one cannot be read: nothing goes then.
fn oldest_backup(
    repository: &Repository,
    clusters: &[ClusterLayout],
) -> Result<Option<TimestampTz>> {
    let mut oldest: Option<TimestampTz> = None;
    for layout in clusters {
        let identifier = Some(layout.system_identifier());
        let inventory = match Inventory::read(repository, layout.name(), identifier) {
            // Somebody made a folder of that name.
            Err(e) if e.code() == Code::NotFound => continue,
            inventory => inventory?,
        };
        if !inventory.unreadable.is_empty() || !inventory.lost.is_empty() {
            return Ok(None);
        }
        // A compacted backup has a new id, and the time of its content.
        let begun = inventory.begun.iter().map(|(id, _)| id.time());
        let started = inventory.backups.iter().map(|b| Some(b.start_time));
        for time in begun.chain(started) {
            let Some(time) = time else { return Ok(None) };
            oldest = Some(oldest.map_or(time, |known| known.min(time)));
        }
    }
    Ok(oldest)
}

/// Deletes one erasure on request; whether it was there.
///
/// # Errors
/// Those of the store.
pub fn remove(repository: &Repository, layout: &ClusterLayout, name: &str) -> Result<bool> {
    repository.store().delete(&layout.erasure(name)?)
}
