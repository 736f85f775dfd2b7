//! Logical dumps of databases: taken, put back, and checked.

pub mod backup;
pub mod check;
pub mod restore;
mod scratch;

use std::path::{Path, PathBuf};

use super::session::Session;
use crate::config::{Logical, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::logical::kind::NAME;
use crate::logical::member::Member;
use crate::logical::tool;
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxBackup, AuxRoot};
use crate::repo::scope::Scope;

/// A backup that is read.
pub struct Stored {
    /// The name of its repository.
    pub repository_name: String,
    /// Its repository.
    pub repository: Repository,
    /// Its scope.
    pub scope: Scope,
    /// Its id.
    pub id: BackupId,
    /// When it was chosen.
    pub planned: TimestampTz,
    /// The facts of its dumps.
    pub member: Member,
}

/// Returns the section of the configuration for a name.
///
/// # Errors
/// `Config` when there is none, with the lines to add.
fn configured<'s>(settings: &'s Settings, name: &str) -> Result<&'s Logical> {
    settings
        .logical
        .iter()
        .find(|l| l.name == name)
        .ok_or_else(|| {
            let clusters = settings.clusters.iter().map(|c| c.name.as_str());
            let cluster = clusters.clone().next().unwrap_or("main");
            err!(Config, "no logical backup \"{name}\" is configured").hint(format!(
                "Nothing was stored. Add to the configuration file: [logical.{name}] and below it cluster = \"{cluster}\""
            ))
        })
}

/// Finds the backup: the one that is named, else the newest that no check found damaged, in the first repository that has it.
///
/// # Errors
/// `NotFound`; that of the first repository, when none can be read; `Damaged` when its member cannot be read.
fn find(session: &Session, name: &str, wanted: Option<&BackupId>) -> Result<Stored> {
    let scope = Scope::aux(NAME, name)?;
    let planned = session.host.now();
    let mut first_error: Option<Error> = None;
    for configured in &session.settings_with_repositories()?.repositories {
        let found = session.open(configured).and_then(|repository| {
            let id = choose(&repository, &scope, wanted)?;
            Ok(id.map(|id| (repository, id)))
        });
        match found {
            Ok(Some((repository, id))) => {
                let member = AuxRoot::member(repository.store(), &scope, &id)?;
                let member = member.ok_or_else(|| err!(NotFound, "backup \"{id}\" is gone"))?;
                return Ok(Stored {
                    repository_name: configured.name.clone(),
                    member: Member::read(&member)?,
                    repository,
                    scope,
                    id,
                    planned,
                });
            }
            Ok(None) => {}
            Err(e) => {
                session.warn(&format!("repository \"{}\": {e}", configured.name));
                first_error.get_or_insert(e);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| {
        match wanted {
            Some(id) => err!(NotFound, "logical backup \"{name}\" has no backup \"{id}\""),
            None => err!(
                NotFound,
                "logical backup \"{name}\" has no undamaged backup"
            ),
        }
        .hint(format!(
            "pitr info shows what there is. Take one with pitr logical backup {name}"
        ))
    }))
}

fn choose(
    repository: &Repository,
    scope: &Scope,
    wanted: Option<&BackupId>,
) -> Result<Option<BackupId>> {
    let catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    if let Some(wanted) = wanted {
        let found = catalog.committed().find(|(id, ..)| *id == wanted);
        return Ok(found.map(|(id, ..)| id.clone()));
    }
    let whole = catalog
        .committed()
        .filter(|(_, subject, _)| event::damage(&subject.events).is_empty());
    let newest = whole.max_by_key(|(id, subject, backup)| (backup.end(subject.stored), *id));
    Ok(newest.map(|(id, ..)| id.clone()))
}

/// The folders in which PostgreSQL's programs are looked for.
fn folders(session: &Session, given: Option<&Path>) -> Vec<PathBuf> {
    tool::folders(given, session.environment.get("PATH"))
}
