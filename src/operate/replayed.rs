//! The WAL that the recovery of a restore replays.

use super::opened::Opened;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::plan::recovery::Plan;
use crate::repo::root::BackupRoot;
use crate::restore::job::Job;
use crate::wal::inventory::Inventory;
use crate::wal::path::Path;
use crate::wal::unlogged::Replayed;

/// Asks about it. The facts of its segments were read for the plan, and the cache has them.
///
/// # Errors
/// Errors of the store; `Damaged` when the history of a standby's timeline is; those of `ask`.
pub fn of_job<T: Default>(
    session: &Session,
    opened: &Opened,
    (job, root): (&Job, &BackupRoot),
    ask: impl Fn(&Replayed<'_>) -> Result<T>,
) -> Result<T> {
    let find = |reading: &Reading, inventory: &Inventory, segments, until| {
        ask(&Replayed {
            rollup: &reading.rollup(session, inventory)?,
            segments,
            until,
            host: &session.host,
        })
    };
    let Some(plan) = &job.plan else {
        let inventory = &opened.inventory;
        let segments = followed(inventory, job, root.content.start_lsn)?;
        return find(&opened.reading, inventory, segments, Lsn(u64::MAX));
    };
    let found = opened.where_planned(session, plan, |reading, inventory| {
        let stop = plan.stop.as_ref();
        let until = stop.map_or(Lsn(u64::MAX), |stop| stop.recovery_end_lsn);
        find(reading, inventory, needed(inventory, plan)?, until)
    })?;
    Ok(found.unwrap_or_default())
}

/// The segments that a plan needs.
fn needed(inventory: &Inventory, plan: &Plan) -> Result<Vec<SegmentName>> {
    let size = inventory.segment_size;
    let mut names = Vec::new();
    for run in &plan.segments_needed.parts {
        let numbers = run.first.number(size)?.0..=run.last.number(size)?.0;
        let name = |number| SegmentNumber(number).name(run.first.timeline, size);
        names.extend(numbers.filter_map(name));
    }
    Ok(names)
}

/// The segments that a standby finds archived, up to the first hole.
fn followed(inventory: &Inventory, job: &Job, start: Lsn) -> Result<Vec<SegmentName>> {
    let newest = inventory.timelines.keys().max().copied();
    let Some(timeline) = job.timeline.or(newest) else {
        return Ok(Vec::new());
    };
    let size = inventory.segment_size;
    let path = Path::new(inventory.history(timeline)?, size);
    let mut names = Vec::new();
    for piece in path.pieces(start, path.reach(start, inventory)) {
        let held = |number: &SegmentNumber| inventory.holds(piece.timeline, *number);
        let numbers = (piece.first.0..=piece.last.0).map(SegmentNumber);
        names.extend(
            numbers
                .filter(held)
                .filter_map(|n| n.name(piece.timeline, size)),
        );
    }
    Ok(names)
}
