//! The search for a backup of content: in the first repository that has it.

use std::cell::RefCell;

use super::away::PATIENCE_ALONE;
use super::session::Session;
use crate::config::{self, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::event::Recorded;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxBackup, AuxRoot};
use crate::repo::scope::Scope;
use crate::restore::content::{self, Open};

/// A backup that is read.
pub struct Stored {
    pub repository: Repository,
    pub configured: config::Repository,
    pub scope: Scope,
    pub id: BackupId,
    /// Whether the choice had nothing against it.
    pub is_good: bool,
    /// When it was chosen.
    planned: TimestampTz,
}

/// A backup that a repository has.
pub struct Found {
    pub id: BackupId,
    /// Whether nothing is against this copy: another repository's copy of the same backup may be better.
    pub is_good: bool,
}

impl Stored {
    /// Returns the result of `work` on the backup.
    ///
    /// # Errors
    /// Those of [`content::read`].
    pub fn read<T>(
        &self,
        session: &Session,
        work: impl FnOnce(Open<'_>) -> Result<T>,
    ) -> Result<T> {
        self.read_other(session, &self.id, work)
    }

    /// As [`Stored::read`], on another backup of the same scope.
    ///
    /// # Errors
    /// Those of [`content::read`].
    pub fn read_other<T>(
        &self,
        session: &Session,
        id: &BackupId,
        work: impl FnOnce(Open<'_>) -> Result<T>,
    ) -> Result<T> {
        let at = (&session.host, self.planned);
        content::read(&self.repository, (&self.scope, id), at, work)
    }

    /// The member of the backup's kind in its root.
    ///
    /// # Errors
    /// `NotFound` when it was deleted meanwhile; those of [`AuxRoot::member`].
    pub fn member(&self) -> Result<serde_json::Value> {
        let id = &self.id;
        let member = AuxRoot::member(self.repository.store(), &self.scope, id)?;
        member.ok_or_else(|| err!(NotFound, "backup \"{id}\" is gone"))
    }
}

/// Why nothing was found; `of` is the content in words.
pub fn lacking(of: &str, wanted: Option<&BackupId>) -> Error {
    match wanted {
        Some(id) => err!(NotFound, "{of} has no backup \"{id}\""),
        None => err!(NotFound, "{of} has no undamaged backup"),
    }
}

/// Returns the backup that `choose` takes from the first repository in which it finds one; none where every repository answers and none has one.
///
/// # Errors
/// The error of the first repository that failed, where no other one has a backup.
pub fn first(
    session: &Session,
    (kind, name): (&str, &str),
    choose: impl Fn(&Repository, &Scope) -> Result<Option<BackupId>>,
) -> Result<Option<Stored>> {
    best(session, (kind, name), |repository, scope| {
        let id = choose(repository, scope)?;
        Ok(id.map(|id| Found { id, is_good: true }))
    })
}

/// As [`first`], but a repository whose copy is good goes before one whose copy is not.
///
/// # Errors
/// As [`first`].
pub fn best(
    session: &Session,
    (kind, name): (&str, &str),
    choose: impl Fn(&Repository, &Scope) -> Result<Option<Found>>,
) -> Result<Option<Stored>> {
    let scope = Scope::aux(kind, name)?;
    let planned = session.host.now();
    let second_best = RefCell::new(None);
    let good = in_first(session, |repository, configured| {
        let Some(Found { id, is_good }) = choose(&repository, &scope)? else {
            return Ok(None);
        };
        let stored = Stored {
            repository,
            configured,
            scope: scope.clone(),
            id,
            is_good,
            planned,
        };
        if is_good {
            return Ok(Some(stored));
        }
        second_best.borrow_mut().get_or_insert(stored);
        Ok(None)
    });
    match (good, second_best.into_inner()) {
        (Ok(None) | Err(_), Some(stored)) => Ok(Some(stored)),
        (good, _) => good,
    }
}

/// Returns what `find` finds in the first repository in which it finds anything; none where every repository answers and none has anything. A directory has the
/// time that a disk takes to wake up: what another repository has may be older.
///
/// # Errors
/// The error of the first repository that failed, where no other one has anything.
pub fn in_first<T>(
    session: &Session,
    find: impl Fn(Repository, config::Repository) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let open = |configured: &config::Repository, _: &Settings| {
        session.require_answer(configured, PATIENCE_ALONE)?;
        session.open(configured)
    };
    in_first_opened(session, open, find)
}

/// As [`in_first`], for what only looks: see [`Session::open_or_give_up`].
///
/// # Errors
/// As [`in_first`].
pub fn look_in_first<T>(
    session: &Session,
    find: impl Fn(Repository, config::Repository) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let open = |configured: &config::Repository, settings: &Settings| {
        session.open_or_give_up(configured, settings)
    };
    in_first_opened(session, open, find)
}

fn in_first_opened<T>(
    session: &Session,
    open: impl Fn(&config::Repository, &Settings) -> Result<Repository>,
    find: impl Fn(Repository, config::Repository) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let mut failure: Option<Error> = None;
    let settings = session.settings_with_repositories()?;
    for configured in &settings.repositories {
        let name = &configured.name;
        let found =
            open(configured, &settings).and_then(|repository| find(repository, configured.clone()));
        match found {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(e) => {
                session.warn(&format!("repository \"{name}\" is passed over: {e}"));
                failure.get_or_insert(e);
            }
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Returns the backups whose events are good, newest first.
///
/// # Errors
/// Errors of the store.
pub fn newest_first(
    repository: &Repository,
    scope: &Scope,
    is_good: impl Fn(&[Recorded]) -> bool,
) -> Result<Vec<BackupId>> {
    let catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    let committed = catalog.committed();
    let good = committed.filter(|(_, subject, _)| is_good(&subject.events));
    let good = good.map(|(id, subject, backup)| (backup.end(subject.stored), id.clone()));
    let mut good: Vec<_> = good.collect();
    good.sort_unstable();
    Ok(good.into_iter().rev().map(|(_, id)| id).collect())
}

/// Returns the backup that is named, else the newest one whose events are good.
///
/// # Errors
/// Errors of the store.
pub fn named_or_newest(
    repository: &Repository,
    scope: &Scope,
    wanted: Option<&BackupId>,
    is_good: impl Fn(&[Recorded]) -> bool,
) -> Result<Option<Found>> {
    let catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    let mut committed = catalog.committed();
    let found = match wanted {
        Some(wanted) => committed.find(|(id, ..)| *id == wanted),
        None => committed
            .filter(|(_, subject, _)| is_good(&subject.events))
            .max_by_key(|(id, subject, backup)| (backup.end(subject.stored), *id)),
    };
    Ok(found.map(|(id, subject, _)| Found {
        id: id.clone(),
        is_good: is_good(&subject.events),
    }))
}
