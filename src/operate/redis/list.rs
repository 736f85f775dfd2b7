//! The backups of a data set.

use serde::Serialize;

use crate::error::{Code, Result};
use crate::operate::scopes::{self, ScopeBackup};
use crate::operate::search;
use crate::operate::session::Session;
use crate::redis::kind::NAME;
use crate::redis::member::Member;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::scope::Scope;

/// A backup.
#[derive(Serialize)]
pub struct Listed {
    /// Its root.
    #[serde(flatten)]
    pub backup: ScopeBackup,
    /// The facts of its data set; none without the keys.
    pub redis: Option<Member>,
}

/// Returns the name of the first repository that has backups of a data set, and these backups, oldest first.
///
/// # Errors
/// The error of the first repository that failed, where no other one has a backup.
pub fn run(session: &Session, name: &str) -> Result<(Option<String>, Vec<Listed>)> {
    let found = search::first(session, (NAME, name), |repository, scope| {
        let newest = search::named_or_newest(repository, scope, None, |_| true)?;
        Ok(newest.map(|found| found.id))
    })?;
    let Some(found) = found else {
        return Ok((None, Vec::new()));
    };
    let info = scopes::look_at(&found.repository, &found.scope, session.host.now())?;
    let backups = info.backups.into_iter();
    let listed = backups.map(|backup| {
        Ok(Listed {
            redis: member(&found.repository, &found.scope, &backup)?,
            backup,
        })
    });
    let listed: Result<Vec<Listed>> = listed.collect();
    Ok((Some(found.configured.name), listed?))
}

/// Reads the facts of a backup; none where the keys are not at hand, or the root is damaged.
pub(in crate::operate) fn member(
    repository: &Repository,
    scope: &Scope,
    backup: &ScopeBackup,
) -> Result<Option<Member>> {
    match AuxRoot::member(repository.store(), scope, &backup.id) {
        Ok(Some(member)) => Member::read(&member).map(Some),
        Ok(None) => Ok(None),
        Err(e) if e.code() == Code::Key || e.is_damage() => Ok(None),
        Err(e) => Err(e),
    }
}
