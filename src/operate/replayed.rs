//! The WAL that the recovery of a restore replays.

use super::opened::Opened;
use super::reading::Reading;
use super::session::Session;
use crate::err;
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
/// Errors of the store; `Unreachable` without a repository that has the planned WAL; `Damaged` when the history of a standby's timeline is; those of `ask`.
pub fn of_job<T>(
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
    found.ok_or_else(|| {
        err!(
            Unreachable,
            "the WAL of this restore was planned in repository \"{}\", which cannot be opened, and no other has all of it",
            plan.repository
        )
        .hint("Nothing was changed. That WAL tells which files recovery makes, and none of these may be there before. Run the same command again once the repository is there, or restore anew into an empty directory.")
    })
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

/// Whether a repository has all WAL of a plan, the last segment at least up to where recovery ends.
///
/// # Errors
/// `WalName` for segments of another size.
pub(super) fn has_all(inventory: &Inventory, plan: &Plan) -> Result<bool> {
    let end = plan.stop.as_ref().map(|stop| stop.recovery_end_lsn);
    for name in needed(inventory, plan)? {
        let number = name.number(inventory.segment_size)?;
        let timeline = inventory.timelines.get(&name.timeline);
        let tail = timeline.and_then(|one| one.tails.get(&number));
        let reaches = tail.is_some_and(|valid| end.is_some_and(|end| *valid >= end));
        if !reaches && !inventory.has(name.timeline, number) {
            return Ok(false);
        }
    }
    Ok(true)
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
