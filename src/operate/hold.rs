//! Legal holds: a backup stays until a person ends the hold, by the store's own hold where the store has one.

use std::collections::BTreeSet;

use serde::Serialize;

use super::needs;
use super::pin::{self, Asked, Kind, Pinning, Unpinning};
use super::session::Session;
use crate::error::{Code, Result};
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::store::Key;

/// The keeper of the objects of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The store's own hold.
    Store,
    /// Only what pitr and its users respect.
    Advisory,
}

impl By {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            By::Store => "the store's own hold",
            By::Advisory => {
                "advisory: the store has no legal holds, and who may delete there can delete it"
            }
        }
    }
}

/// The objects of one repository.
#[derive(Serialize)]
pub struct Objects {
    /// The repository.
    pub repository: String,
    /// Their keeper.
    pub by: By,
    /// How many the store holds, or holds no more.
    pub objects: u64,
}

/// A hold that is shown before it is recorded.
#[derive(Serialize)]
pub struct Holding {
    /// The event.
    #[serde(flatten)]
    pub pinning: Pinning,
    /// Repository by repository.
    pub holds: Vec<Objects>,
}

/// Looks what a hold would keep, and by what.
///
/// # Errors
/// Those of [`pin::plan`]; what the stores say of their holds.
pub fn plan(session: &Session, backup: &BackupId, reason: &str) -> Result<Holding> {
    let asked = Asked {
        backup: backup.clone(),
        reason: reason.to_owned(),
        until: None,
        kind: Kind::Hold,
    };
    let pinning = pin::plan(session, &asked)?;
    let mut holds = Vec::new();
    for (reading, ..) in pinning.copies() {
        holds.push(Objects {
            repository: reading.configured.name.clone(),
            by: by(&reading.repository)?,
            objects: 0,
        });
    }
    Ok(Holding { pinning, holds })
}

fn by(repository: &Repository) -> Result<By> {
    Ok(match repository.store().has_holds()? {
        true => By::Store,
        false => By::Advisory,
    })
}

impl Holding {
    /// Records the hold, and has the stores hold every object that the backup needs.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.pinning.record(session)?;
        let mut failures = std::mem::take(&mut self.pinning.failures);
        let id = self.pinning.backup.clone();
        for (reading, inventory, _) in self.pinning.copies() {
            let name = &reading.configured.name;
            let hold = self.holds.iter_mut().find(|hold| hold.repository == *name);
            let Some(hold) = hold.filter(|hold| hold.by == By::Store) else {
                continue;
            };
            if !self.pinning.recorded_in.contains(name) {
                continue;
            }
            let held = ClusterLayout::new(&reading.name, inventory.system_identifier)
                .and_then(|layout| hold_all(session, &reading.repository, &layout, &id));
            match held {
                Ok(objects) => hold.objects = objects,
                Err(e) => {
                    if !failures.add(e, format!("hold its objects in repository \"{name}\"")) {
                        break;
                    }
                }
            }
        }
        self.pinning.failures = failures;
        Ok(())
    }
}

/// Has the store hold everything, and records that it does; the record is held last.
fn hold_all(
    session: &Session,
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<u64> {
    let mut objects = set(
        session,
        repository,
        needs::everything(repository, layout, id)?,
        true,
    )?;
    let (store, subject) = (repository.store(), id.to_string());
    let events = event::read_all(store, layout, &subject)?;
    for hold in event::legal_holds(&events) {
        if event::is_held(&events, hold) {
            continue;
        }
        let held = Event {
            object: Some(hold.name.clone()),
            ..Writer::of(&session.host).event("held", &subject)
        };
        let name = event::record(store, layout, &held, session.host.random())?;
        objects += set(session, repository, [layout.event(&subject, &name)?], true)?;
    }
    Ok(objects)
}

/// Sets or takes away the store's hold of each object that is there; returns how many there are.
fn set(
    session: &Session,
    repository: &Repository,
    keys: impl IntoIterator<Item = Key>,
    is_on: bool,
) -> Result<u64> {
    let mut count = 0;
    for key in keys {
        session.host.check_stop()?;
        count += u64::from(repository.store().hold(&key, is_on)?);
    }
    Ok(count)
}

/// Holds that are shown before they end.
#[derive(Serialize)]
pub struct Unholding {
    /// The events.
    #[serde(flatten)]
    pub ending: Unpinning,
    /// Repository by repository.
    pub holds: Vec<Objects>,
}

/// Looks which holds of a backup would end.
///
/// # Errors
/// Those of [`pin::plan_end`]; what the stores say of their holds.
pub fn plan_end(session: &Session, id: &BackupId) -> Result<Unholding> {
    let ending = pin::plan_end(session, id, Kind::Hold)?;
    let mut holds = Vec::new();
    for (reading, ..) in ending.copies() {
        holds.push(Objects {
            repository: reading.configured.name.clone(),
            by: by(&reading.repository)?,
            objects: 0,
        });
    }
    Ok(Unholding { ending, holds })
}

impl Unholding {
    /// Records the end of every hold, and has the stores hold no more what no other hold needs.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.ending.record(session)?;
        let mut failures = std::mem::take(&mut self.ending.failures);
        let id = self.ending.backup.clone();
        for (reading, inventory, _) in self.ending.copies() {
            let name = &reading.configured.name;
            let hold = self.holds.iter_mut().find(|hold| hold.repository == *name);
            let Some(hold) = hold.filter(|hold| hold.by == By::Store) else {
                continue;
            };
            if !self.ending.recorded_in.contains(name) {
                continue;
            }
            let released = ClusterLayout::new(&reading.name, inventory.system_identifier)
                .and_then(|layout| release(session, &reading.repository, &layout, &id));
            match released {
                Ok(objects) => hold.objects = objects,
                Err(e) => {
                    if !failures.add(e, format!("release its objects in repository \"{name}\"")) {
                        break;
                    }
                }
            }
        }
        self.ending.failures = failures;
        Ok(())
    }
}

/// Takes the store's holds away, but for those of objects that another backup on hold needs.
fn release(
    session: &Session,
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<u64> {
    let mut keys = needs::everything(repository, layout, id)?;
    for name in repository.cluster_names()? {
        for other in repository.clusters(&name)? {
            for held in on_hold(repository, &other)? {
                if held == *id && other.is_of(layout) {
                    continue;
                }
                match needs::everything(repository, &other, &held) {
                    Ok(needed) => keys.retain(|key| !needed.contains(key)),
                    // Its root is gone: nothing of it can be restored.
                    Err(e) if e.code() == Code::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    set(session, repository, keys, false)
}

/// The backups of a cluster that are on hold.
fn on_hold(repository: &Repository, layout: &ClusterLayout) -> Result<BTreeSet<BackupId>> {
    let store = repository.store();
    let mut held = BTreeSet::new();
    for listed in store.list(&layout.events())? {
        let Ok(id) = listed.name.parse::<BackupId>() else {
            continue;
        };
        let is_meant = |name: &str| ["pin", "unhold"].contains(&event::kind_in(name));
        let events = event::read_some(store, layout, &listed.name, &is_meant)?;
        if !event::legal_holds(&events).is_empty() {
            held.insert(id);
        }
    }
    Ok(held)
}
