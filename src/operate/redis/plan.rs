//! Whether a moment of a server can be had back, and from what.

use super::on_way;
use crate::error::Result;
use crate::operate::session::Session;
use crate::redis::member::Member;
use crate::redis::route::{Route, Target};
use crate::repo::id::BackupId;

/// The way to a moment.
pub struct Planned {
    pub id: BackupId,
    /// The repository that has it.
    pub repository: String,
    /// The facts of its data set.
    pub member: Member,
    /// The log that is replayed upon it.
    pub route: Route,
}

/// Finds the backup and the log that lead to a moment.
///
/// # Errors
/// `OutOfReach` when none do; `Refused` where it is not known which history is wanted; those of the repositories.
pub fn run(
    session: &Session,
    name: &str,
    backup: Option<&BackupId>,
    target: &Target,
) -> Result<Planned> {
    let (stored, route) = on_way(session, name, backup, target)?;
    Ok(Planned {
        id: stored.backup.id,
        repository: stored.backup.configured.name,
        member: stored.member,
        route,
    })
}
