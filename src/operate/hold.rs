//! Legal holds: a backup stays until a person ends the hold, by the store's own hold where the store has one.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failures::Failures;
use super::needs;
use super::pin::{self, Asked, Kind, Pinning, Stored, Unpinning};
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
    let holds = keepers(pinning.copies())?;
    Ok(Holding { pinning, holds })
}

/// The keeper of the objects of each copy, of which none is held yet.
fn keepers(copies: &[Stored]) -> Result<Vec<Objects>> {
    let keeper = |(reading, ..): &Stored| {
        Ok(Objects {
            repository: reading.configured.name.clone(),
            by: match reading.repository.store().has_holds()? {
                true => By::Store,
                false => By::Advisory,
            },
            objects: 0,
        })
    };
    copies.iter().map(keeper).collect()
}

impl Holding {
    /// Records the hold, and has the stores hold every object that the backup needs.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.pinning.record(session)?;
        let mut failures = std::mem::take(&mut self.pinning.failures);
        let of = (self.pinning.copies(), self.pinning.recorded_in.as_slice());
        in_stores(
            of,
            &mut self.holds,
            &mut failures,
            "hold",
            |store, layout| hold_all(session, store, layout, &self.pinning.backup),
        );
        self.pinning.failures = failures;
        Ok(())
    }
}

/// Does the work on objects where the event was recorded and the store has holds, and notes how many there were.
fn in_stores(
    (copies, recorded_in): (&[Stored], &[String]),
    holds: &mut [Objects],
    failures: &mut Failures,
    verb: &str,
    work: impl Fn(&Repository, &ClusterLayout) -> Result<u64>,
) {
    for ((reading, inventory, _), hold) in copies.iter().zip(holds) {
        let name = &reading.configured.name;
        if hold.by != By::Store || !recorded_in.contains(name) {
            continue;
        }
        let done = ClusterLayout::new(&reading.name, inventory.system_identifier)
            .and_then(|layout| work(&reading.repository, &layout));
        match done {
            Ok(objects) => hold.objects = objects,
            Err(e) => {
                if !failures.add(e, format!("{verb} its objects in repository \"{name}\"")) {
                    break;
                }
            }
        }
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
    let holds = keepers(ending.copies())?;
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
        let of = (self.ending.copies(), self.ending.recorded_in.as_slice());
        in_stores(
            of,
            &mut self.holds,
            &mut failures,
            "release",
            |store, layout| release(session, store, layout, &self.ending.backup),
        );
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
