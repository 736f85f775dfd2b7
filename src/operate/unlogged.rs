//! The unlogged relations that a restore leaves out: the backup has their main fork without its init fork, and recovery creates the init fork.

use std::collections::BTreeSet;

use super::opened::Opened;
use super::replayed;
use super::session::Session;
use crate::error::Result;
use crate::repo::root::BackupRoot;
use crate::restore::job::Job;
use crate::restore::{Source, unlogged};
use crate::wal::unlogged::RelationName;

/// Finds them by the indexes of the WAL that recovery replays. WAL that creates no init fork costs no request.
///
/// # Errors
/// Errors of the store; `Interrupted`; `Damaged` when the map of the backup or the history of a standby's timeline is.
pub fn left_out(
    session: &Session,
    opened: &Opened,
    (source, root): (&Source<'_>, &BackupRoot),
    job: &Job,
) -> Result<BTreeSet<RelationName>> {
    replayed::of_job(session, opened, (job, root), |replayed| {
        let created = replayed.created()?;
        if created.is_empty() {
            return Ok(created);
        }
        let candidates = unlogged::without_init(source, &job.backup, &created)?;
        match candidates.is_empty() {
            true => Ok(candidates),
            false => replayed.unlogged(&candidates),
        }
    })
}
