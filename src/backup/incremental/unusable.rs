//! The prior of a backup that failed: whether its map is damaged.
//!
//! Blocks of a map are hashed when they are read, so their damage shows after the start of an incremental.

use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::repo::event::Writer;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::BackupRoot;
use crate::snapshot::reader::Snapshot;
use crate::ticking::ticking;

/// Returns why a full backup is taken in the place of one that met `failure`, and records the damage of its prior; none where the prior's map
/// is whole, or cannot be read. Calls `tick` once for each file.
pub fn why(
    place: (&Repository, &ClusterLayout),
    root: &BackupRoot,
    failure: &Error,
    host: &Host,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Option<String> {
    if !failure.is_damage() {
        return None;
    }
    let (repository, layout) = place;
    let open = || Snapshot::open(repository.store(), layout, root);
    let snapshot = ticking(tick, open);
    let walked = snapshot.and_then(|snapshot| snapshot.usage(tick));
    let damage = walked.err().filter(|e| e.code() == Code::Damaged)?;
    if !damage.is_frozen() {
        record(place, root, &damage, host);
    }
    Some(format!("backup \"{}\" is damaged: {damage}", root.head.id))
}

/// Records the damage, so that plans, expiry and people know of it. A host's own state is no object of the repository.
fn record(
    (repository, layout): (&Repository, &ClusterLayout),
    root: &BackupRoot,
    damage: &Error,
    host: &Host,
) {
    if repository.kept().is_some() {
        return;
    }
    let id = &root.head.id;
    let (object, detail) = (layout.manifest(id).to_string(), damage.to_string());
    let what = (object.as_str(), detail.as_str());
    let recorded =
        Writer::of(host).record_damage(repository.store(), layout, &id.to_string(), what);
    if let Err(e) = recorded {
        host.progress.warn(&format!(
            "the damage of backup \"{id}\" could not be recorded: {e}"
        ));
    }
}
