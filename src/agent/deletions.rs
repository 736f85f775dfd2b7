//! Refuses to expire with credentials that may not delete: such a run marks backups that stay, or fails halfway.

use crate::config::{Flags, Repository, Settings};
use crate::err;
use crate::error::Result;
use crate::operate::roles;
use crate::operate::session::Session;

/// Requires that each repository that `expire` works on allows deletions. One that cannot be asked refuses nothing: the command reports it.
///
/// # Errors
/// `Refused` with the names of job and repository; those of the configuration.
pub fn require(session: &Session, settings: &Settings, job: &str, flags: &Flags) -> Result<()> {
    let flags = Flags {
        config: flags.config.clone().or_else(|| settings.path.clone()),
        ..flags.clone()
    };
    let settings = Settings::load(&flags, &session.environment)?;
    let is_refused = |one: &&Repository| matches!(roles::may_delete(session, one), Ok(false));
    let Some(repository) = settings.repositories.iter().find(is_refused) else {
        return Ok(());
    };
    Err(err!(
        Refused,
        "job \"{job}\" would expire, and the credentials of this host may not delete in repository \"{}\"",
        repository.name
    )
    .hint("Nothing was deleted or marked. Run expire on the host of the janitor, and remove the job here; \"pitr init --role janitor\" prints the rights that it needs."))
}
