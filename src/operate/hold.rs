//! Legal holds: a backup stays until a person ends the hold, by the store's own hold where the store has one.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failures::Failures;
use super::needs::Owner;
use super::pin::{Events, Stored};
use super::session::Session;
use crate::err;
use crate::error::{Code, Result};
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
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
    /// The words that a repository's name is put before.
    pub fn words(self) -> &'static str {
        match self {
            By::Store => "it is held by the store's own hold",
            By::Advisory => {
                "the hold is advisory: the store has no legal holds, and who may delete there can delete it"
            }
        }
    }
}

/// The objects of one repository.
#[derive(Serialize)]
pub struct Objects {
    pub repository: String,
    /// Their keeper.
    pub by: By,
    /// How many the store holds, or holds no more.
    pub objects: u64,
}

/// The keeper of the objects of each copy, of which none is held yet.
pub(super) fn keepers(copies: &[Stored]) -> Result<Vec<Objects>> {
    let keeper = |copy: &Stored| {
        Ok(Objects {
            repository: copy.configured.name.clone(),
            by: match copy.repository.store().has_holds()? {
                true => By::Store,
                false => By::Advisory,
            },
            objects: 0,
        })
    };
    copies.iter().map(keeper).collect()
}

/// Has the stores hold every object that the backup needs, or hold no more what no other hold needs.
pub(super) fn in_stores(session: &Session, events: &mut Events, holds: &mut [Objects]) {
    let work = InStores {
        session,
        id: &events.id,
        is_on: !events.is_end(),
    };
    let failed = work.run(&events.copies, &events.recorded_in, holds);
    events.failures.take_over(failed);
}

/// The work of a hold, or of its end, on the objects in stores.
struct InStores<'s> {
    session: &'s Session,
    id: &'s BackupId,
    is_on: bool,
}

impl InStores<'_> {
    /// Does the work where the event was recorded and the store has holds, and notes how many objects there were. Returns what failed.
    fn run(&self, copies: &[Stored], recorded_in: &[String], holds: &mut [Objects]) -> Failures {
        let mut failures = Failures::default();
        let verb = if self.is_on { "hold" } else { "release" };
        for (copy, hold) in copies.iter().zip(holds) {
            let name = &copy.configured.name;
            if hold.by != By::Store || !recorded_in.contains(name) {
                continue;
            }
            let done = match self.is_on {
                true => self.hold_all(&copy.repository, &copy.owner),
                false => self.release(&copy.repository, &copy.owner),
            };
            match done {
                Ok(objects) => hold.objects = objects,
                Err(e) => {
                    if !failures.add(e, format!("{verb} its objects in repository \"{name}\"")) {
                        break;
                    }
                }
            }
        }
        failures
    }

    /// Has the store hold everything, and records that it does; the record is held last.
    fn hold_all(&self, repository: &Repository, owner: &Owner) -> Result<u64> {
        let held = self.set(repository, owner.everything(repository, self.id)?)?;
        let groups = owner.groups(repository, self.id)?;
        if let Some(lacking) = groups.iter().find(|group| group.is_disjoint(&held)) {
            let name = lacking.first().map(Key::as_str).unwrap_or_default();
            return Err(err!(
                NotFound,
                "\"{name}\" is not stored whole, so nothing holds it: the backup is not held by the store"
            )
            .hint("What is there is held. The last WAL of a backup may come as increments before its segment is whole: repeat the command then. pitr verify tells what is lost."));
        }
        let mut objects = held.len() as u64;
        let (store, scope, subject) = (repository.store(), owner.scope(), self.id.to_string());
        let host = &self.session.host;
        let events = event::read_all(store, scope, &subject)?;
        for hold in event::legal_holds(&events) {
            if event::is_held(&events, hold) {
                continue;
            }
            let held = Event {
                object: Some(hold.name.clone()),
                ..Writer::of(host).event("held", &subject)
            };
            let name = event::record(store, scope, &held, host.random())?;
            objects += self.set(repository, [scope.event(&subject, &name)?])?.len() as u64;
        }
        Ok(objects)
    }

    /// Takes the store's holds away, but for those of objects that another backup on hold needs.
    fn release(&self, repository: &Repository, owner: &Owner) -> Result<u64> {
        let mut keys = owner.everything(repository, self.id)?;
        let needed = self.needed(repository, owner, false)?;
        keys.retain(|key| !needed.contains(key));
        let count = self.set(repository, keys.iter().cloned())?.len();
        // Another backup may have been put on hold meanwhile, or this one anew, and have found these objects held.
        let needed = self.needed(repository, owner, true)?;
        let again = InStores {
            is_on: true,
            ..*self
        };
        let lost = keys.into_iter().filter(|key| needed.contains(key));
        Ok((count - again.set(repository, lost)?.len()) as u64)
    }

    /// The objects that other backups on hold need, or all of them.
    fn needed(
        &self,
        repository: &Repository,
        owner: &Owner,
        with_own: bool,
    ) -> Result<BTreeSet<Key>> {
        let mut all = BTreeSet::new();
        let own = owner.scope().prefix();
        for other in Owner::all(repository)? {
            for held in on_hold(repository, other.scope())? {
                if !with_own && held == *self.id && other.scope().prefix() == own {
                    continue;
                }
                match other.everything(repository, &held) {
                    Ok(needed) => all.extend(needed),
                    // Its root is gone: nothing of it can be restored.
                    Err(e) if e.code() == Code::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(all)
    }

    /// Sets or takes away the store's hold of each object that is there; returns these.
    fn set(
        &self,
        repository: &Repository,
        keys: impl IntoIterator<Item = Key>,
    ) -> Result<BTreeSet<Key>> {
        let mut there = BTreeSet::new();
        for key in keys {
            self.session.host.check_stop()?;
            if repository.store().hold(&key, self.is_on)? {
                there.insert(key);
            }
        }
        Ok(there)
    }
}

/// The backups of a scope that are on hold.
fn on_hold(repository: &Repository, scope: &Scope) -> Result<BTreeSet<BackupId>> {
    let store = repository.store();
    let mut held = BTreeSet::new();
    for listed in store.list(&scope.events())? {
        let Ok(id) = listed.name.parse::<BackupId>() else {
            continue;
        };
        let is_meant = |name: &str| ["pin", "unhold"].contains(&event::kind_in(name));
        let events = event::read_some(store, scope, &listed.name, &is_meant)?;
        if !event::legal_holds(&events).is_empty() {
            held.insert(id);
        }
    }
    Ok(held)
}
