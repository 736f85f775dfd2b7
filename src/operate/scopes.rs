//! Content beside clusters: what each repository holds of it.

use serde::Serialize;

use super::finding::{Finding, Level};
use super::of;
use super::session::Session;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Manifest, Reading};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::Scope;
use crate::repo::source;

/// An aux scope in one repository.
#[derive(Serialize)]
pub struct ScopeInfo {
    /// `aux/<kind>/<name>`.
    pub scope: String,
    /// The repository.
    pub repository: String,
    /// The worst of its problems.
    #[serde(serialize_with = "Level::as_state")]
    pub state: Level,
    /// Problems, in the order in which they were found.
    #[serde(serialize_with = "super::info::problems")]
    pub problems: Vec<Finding>,
    /// Its backups, oldest first.
    pub backups: Vec<ScopeBackup>,
}

/// A backup of an aux scope.
#[derive(Serialize)]
pub struct ScopeBackup {
    /// Its id.
    pub id: BackupId,
    /// The operator's text; none without the keys.
    pub label: Option<String>,
    /// The writing host's clock at the start.
    pub start_time: TimestampTz,
    /// The same clock at the stop.
    pub stop_time: TimestampTz,
    /// Raw bytes of its files.
    pub size_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Files that changed while they were read.
    pub unstable_count: u64,
    /// Entries that could not be read.
    pub incomplete_count: u64,
    /// Damage that a check found.
    pub damage: Option<String>,
    /// It is marked for deletion, not before this time.
    pub expire_not_before: Option<TimestampTz>,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// Looks at every aux scope of every repository that answers.
///
/// # Errors
/// `Config`; what the stores say.
pub fn look(session: &Session) -> Result<Vec<ScopeInfo>> {
    let mut all = Vec::new();
    for configured in session.settings()?.repositories {
        // One that does not answer is reported with the clusters.
        let Ok(repository) = session.open(&configured) else {
            continue;
        };
        for scope in of::scopes(session, &repository)? {
            let now = session.host.now();
            all.push(look_at(&repository, &scope, now)?.named(&configured.name));
        }
    }
    Ok(all)
}

/// Looks at one scope.
///
/// # Errors
/// Errors of the store.
pub fn look_at(repository: &Repository, scope: &Scope, now: TimestampTz) -> Result<ScopeInfo> {
    let mut catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    let mut problems = Vec::new();
    let mut fail = |name: &str, what: String| {
        problems.push(Finding::new("content", name, Level::Fail, what));
    };
    let registered = source::registration(repository.store(), scope);
    if let Some(None) = catalog.found(registered)? {
        fail("registration", source::lost(scope).to_string());
    }
    for what in &catalog.unreadable {
        fail("object", what.clone());
    }
    for (id, subject) in &catalog.ids {
        if subject.lost().is_some() {
            fail(
                "backup",
                format!("backup \"{id}\" was complete, and its root is lost"),
            );
        }
        if let Manifest::Unreadable(_) = subject.manifest {
            fail("backup", format!("backup \"{id}\" cannot be restored"));
        }
    }
    let mut backups: Vec<ScopeBackup> = catalog
        .committed()
        .map(|(id, subject, backup)| ScopeBackup {
            id: id.clone(),
            label: backup.root.label.clone(),
            start_time: backup.root.start_time,
            stop_time: backup.root.stop_time,
            size_bytes: backup.root.size_bytes,
            stored_bytes: backup.root.stored_bytes,
            unstable_count: backup.root.unstable_count,
            incomplete_count: backup.root.incomplete_count,
            damage: event::damage(&subject.events)
                .first()
                .map(|found| found.event.detail.clone().unwrap_or_default()),
            expire_not_before: event::standing(&subject.events, "expire", "unexpire")
                .iter()
                .map(|e| e.event.not_before.unwrap_or(e.stored))
                .min(),
            pinned: !event::live_pins(&subject.events, now).is_empty(),
        })
        .collect();
    backups.sort_by(|a, b| (a.stop_time, &a.id).cmp(&(b.stop_time, &b.id)));
    let state = problems.iter().map(|p| p.level).max().unwrap_or(Level::Ok);
    Ok(ScopeInfo {
        scope: scope.prefix(),
        repository: repository.store().location(),
        state,
        problems,
        backups,
    })
}

impl ScopeInfo {
    fn named(self, repository: &str) -> ScopeInfo {
        ScopeInfo {
            repository: repository.to_owned(),
            ..self
        }
    }
}
