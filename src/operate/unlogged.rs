//! The unlogged relations that a restore leaves out: the backup has their main fork without its init fork, and recovery creates the init fork.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::restore::{Source, unlogged};
use crate::snapshot::reader::Snapshot;
use crate::wal::unlogged::{RelationName, Replayed};

/// Finds them by the indexes of the WAL that recovery replays. WAL that creates no init fork costs no request.
///
/// # Errors
/// Errors of the store; `Interrupted`; `Damaged` when the map of the backup is; `NotFound` when the backup was deleted meanwhile.
pub fn left_out(
    replayed: &Replayed<'_>,
    (source, snapshot): (&Source<'_>, &Snapshot<'_>),
) -> Result<BTreeSet<RelationName>> {
    let created = replayed.created()?;
    if created.is_empty() {
        return Ok(created);
    }
    let candidates = unlogged::without_init(snapshot, &created);
    let candidates = candidates.map_err(|e| source.unless_deleted(e))?;
    match candidates.is_empty() {
        true => Ok(candidates),
        false => replayed.unlogged(&candidates),
    }
}
