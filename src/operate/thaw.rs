//! Thawing of what a restore needs: objects in classes from which the store must fetch them first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::needs;
use super::session::Session;
use super::tiers;
use crate::config::{self, Location, Price, of_gib};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::plan::tiers::Sum;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxOutline;
use crate::repo::root::outline::Outline;
use crate::repo::scope::healed_base;
use crate::store::Key;
use crate::store::s3::S3Store;
use crate::store::s3::class::{self, Archived, Speed, Thaw};

/// The pause before the store is asked again, at first.
const PAUSE: Duration = Duration::from_secs(2);
/// The longest one: thawing takes hours.
const PAUSE_MAX: Duration = Duration::from_secs(300);
const DAY_SECONDS: u64 = 24 * 3600;
/// While it waits, the wish to stop is looked for so often.
const GLANCE: Duration = Duration::from_millis(200);

/// The operator's request.
pub struct Asked {
    pub backup: BackupId,
    /// The WAL behind its end, too.
    pub with_wal: bool,
    /// For how many days the objects are to stay readable.
    pub days: u32,
    /// How fast.
    pub speed: Speed,
}

/// An archived object that the restore needs.
#[derive(Debug, Clone)]
pub struct Object {
    /// Key, length and class.
    pub object: Archived,
    /// How far it is.
    pub state: Thaw,
}

impl Object {
    /// The state in a word.
    pub fn word(&self) -> &'static str {
        match self.state {
            Thaw::Frozen => "frozen",
            Thaw::Thawing => "thawing",
            Thaw::Thawed(_) => "readable",
        }
    }

    /// The time until which it can be read, where the store tells it.
    pub fn until(&self) -> Option<TimestampTz> {
        match self.state {
            Thaw::Thawed(until) => until,
            Thaw::Frozen | Thaw::Thawing => None,
        }
    }
}

/// The objects that a restore needs, as far as they are archived.
pub struct Planned {
    store: S3Store,
    pub configured: config::Repository,
    /// All objects of the backup.
    pub needed_count: usize,
    /// Those that are archived, by key.
    pub objects: Vec<Object>,
}

/// The needs of a backup: keys, and the WAL that is wanted with it.
struct Needed {
    keys: BTreeSet<Key>,
    wal: Option<(ClusterLayout, SegmentNumber, SegmentSize)>,
}

/// Finds the backup in the first repository in an object store that has it, and what of it is archived.
///
/// # Errors
/// `NotFound` when none has it; `Config` where no repository lies in an object store; errors of the store.
pub fn plan(session: &Session, asked: &Asked) -> Result<Planned> {
    let settings = session.settings_with_repositories()?;
    let is_remote = |r: &&config::Repository| matches!(r.location, Location::S3 { .. });
    let mut remote = settings.repositories.iter().filter(is_remote).peekable();
    if remote.peek().is_none() {
        return Err(err!(Config, "no repository lies in an object store")
            .hint("What lies in a directory need not be thawed."));
    }
    let mut failed: Vec<(&str, Error)> = Vec::new();
    for configured in remote {
        let found = session.open(configured);
        let found = found.and_then(|repository| needed(session, &repository, asked));
        let found = match found {
            Ok(found) => found,
            Err(e) if e.code() == Code::Interrupted => return Err(e),
            Err(e) => {
                failed.push((configured.name.as_str(), e));
                continue;
            }
        };
        if let Some(needed) = found {
            for (name, e) in &failed {
                session.warn(&format!("repository \"{name}\": {e}"));
            }
            let store = tiers::store(session, configured)?;
            let archived = archived(&store, &needed)?;
            let mut objects = Vec::new();
            for object in archived {
                session.host.check_stop()?;
                let state = store.thaw_state(&object.key)?;
                // Most of what the store may archive by itself it has not.
                let is_warm = class::tiers_itself(object.class) && matches!(state, Thaw::Thawed(_));
                if !is_warm {
                    objects.push(Object { object, state });
                }
            }
            return Ok(Planned {
                objects,
                needed_count: needed.keys.len(),
                configured: configured.clone(),
                store,
            });
        }
    }
    // One that does not answer may have it.
    if let Some((_, e)) = failed.into_iter().next() {
        return Err(e);
    }
    let id = &asked.backup;
    Err(err!(
        NotFound,
        "backup \"{id}\" is in no repository in an object store"
    )
    .hint("\"pitr info\" and \"pitr repo show\" list what there is."))
}

/// Looks for the backup in all clusters, and then in other content.
fn needed(session: &Session, repository: &Repository, asked: &Asked) -> Result<Option<Needed>> {
    let (store, id) = (repository.store(), &asked.backup);
    for name in repository.cluster_names()? {
        let is_wanted = session.flags.cluster.as_ref().is_none_or(|c| *c == name);
        let clusters = if is_wanted {
            repository.clusters(&name)?
        } else {
            Vec::new()
        };
        for layout in clusters {
            if let Some(root) = Outline::read(store, &layout, id)? {
                return of_cluster(repository, &layout, &root, asked).map(Some);
            }
        }
    }
    for scope in repository.aux_scopes()? {
        if let Some(root) = AuxOutline::stored(store, &scope, id)?.root() {
            let keys = needs::parts(&scope, root.layers(), root.packs());
            return Ok(Some(Needed { keys, wal: None }));
        }
    }
    Ok(None)
}

/// The parts of a cluster's backup, and the WAL to its end.
fn of_cluster(
    repository: &Repository,
    layout: &ClusterLayout,
    root: &Outline,
    asked: &Asked,
) -> Result<Needed> {
    let content = needs::content(repository, layout, root)?;
    let wal = (content.layout, content.first, content.size);
    Ok(Needed {
        keys: content.keys,
        wal: asked.with_wal.then_some(wal),
    })
}

/// Lists what is archived of it.
fn archived(store: &S3Store, needed: &Needed) -> Result<Vec<Archived>> {
    let mut found = BTreeMap::new();
    let folders: BTreeSet<&str> = needed.keys.iter().filter_map(Key::parent).collect();
    let keys: BTreeSet<&str> = needed.keys.iter().map(Key::as_str).collect();
    for folder in folders {
        let cold = store.archived(folder)?.into_iter();
        let cold = cold.filter(|one| keys.contains(original(&one.key)));
        found.extend(cold.map(|one| (one.key.clone(), one)));
    }
    if let Some((layout, first, size)) = &needed.wal {
        let is_behind = |one: &Archived| {
            let name = original(&one.key).rsplit('/').next().unwrap_or_default();
            let name = name.parse::<SegmentName>();
            name.and_then(|name| name.number(*size))
                .is_ok_and(|number| number >= *first)
        };
        let cold = store.archived(&layout.wal())?.into_iter().filter(is_behind);
        found.extend(cold.map(|one| (one.key.clone(), one)));
    }
    Ok(found.into_values().collect())
}

/// The key for which an object is read: a healed copy stands for its damaged original.
fn original(key: &str) -> &str {
    healed_base(key).unwrap_or(key)
}

impl Planned {
    /// Sums the objects up by class and state, with the time until which all of them can be read.
    pub fn groups(&self) -> BTreeMap<(&str, &str), (Sum, Option<TimestampTz>)> {
        let mut groups: BTreeMap<_, (Sum, Option<TimestampTz>)> = BTreeMap::new();
        for one in &self.objects {
            let place = (one.object.class.name(), one.word());
            let (sum, first) = groups.entry(place).or_default();
            sum.add(one.object.size_bytes);
            *first = [*first, one.until()].into_iter().flatten().min();
        }
        groups
    }

    /// The objects that nobody has asked for yet.
    pub fn frozen(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|o| o.state == Thaw::Frozen)
    }

    /// Whether everything can be read.
    pub fn is_ready(&self) -> bool {
        let mut objects = self.objects.iter();
        objects.all(|o| matches!(o.state, Thaw::Thawed(_)))
    }

    /// The price of thawing what is frozen; none where it is not known.
    pub fn price(&self, speed: Speed) -> Option<Price> {
        let prices = &self.configured.prices;
        let price = match speed {
            Speed::Expedited => prices.thaw_expedited,
            Speed::Standard => prices.thaw_standard,
            Speed::Bulk => prices.thaw_bulk,
        };
        of_gib(price, self.frozen().map(|o| o.object.size_bytes).sum())
    }

    /// How long the store says that it takes at most; none where nothing is frozen or under way.
    pub fn takes(&self, speed: Speed) -> Option<Duration> {
        let objects = self.objects.iter();
        let waiting = objects.filter(|o| !matches!(o.state, Thaw::Thawed(_)));
        waiting.filter_map(|o| speed.takes(o.object.class)).max()
    }

    /// Asks the store for everything that is frozen, and for another term of what is thawed and freezes too early; returns how many requests it
    /// took up.
    ///
    /// # Errors
    /// `Usage` for a speed that a class does not have, before anything is asked; errors of the store.
    pub fn request(&mut self, session: &Session, asked: &Asked) -> Result<u64> {
        let speed = asked.speed;
        if let Some(slow) = self
            .frozen()
            .find(|o| speed.takes(o.object.class).is_none())
        {
            return Err(err!(
                Usage,
                "nothing in class {} is thawed within minutes",
                slow.object.class
            )
            .hint("Nothing was requested. Take --speed standard or bulk."));
        }
        let takes = self.takes(speed).unwrap_or_default();
        // Thawed objects are there as long as those that come last.
        let longer = asked.days.saturating_add(days(takes));
        let term = Duration::from_secs(u64::from(asked.days) * DAY_SECONDS);
        let lasts = takes.saturating_add(term);
        let wanted = session.host.now().saturating_add(lasts);
        let mut requested = 0;
        for object in &mut self.objects {
            let is_short = match object.state {
                Thaw::Frozen => false,
                Thaw::Thawed(Some(until)) if until < wanted => true,
                Thaw::Thawing | Thaw::Thawed(_) => continue,
            };
            session.host.check_stop().map_err(goes_on)?;
            // The store has its copy already: a speed that the class does not have is none of another term.
            let (days, speed) = match is_short {
                true => (longer, Speed::Standard),
                false => (asked.days, speed),
            };
            let thawed = self.store.thaw(&object.object, days, speed);
            requested += u64::from(thawed.map_err(goes_on)?);
            object.state = match is_short {
                true => self.store.thaw_state(&object.object.key).map_err(goes_on)?,
                false => Thaw::Thawing,
            };
        }
        Ok(requested)
    }

    /// Waits until everything can be read.
    ///
    /// # Errors
    /// `Interrupted`; errors of the store, but for one that does not answer.
    pub fn wait(&mut self, session: &Session) -> Result<()> {
        let mut pause = PAUSE;
        let mut has_waited = false;
        while !self.is_ready() {
            has_waited = true;
            let mut waited = Duration::ZERO;
            while waited < pause {
                session.host.check_stop().map_err(goes_on)?;
                std::thread::sleep(GLANCE);
                waited += GLANCE;
            }
            let before = self.thawing();
            self.look(session, |state| state == Thaw::Thawing)?;
            let left = self.thawing();
            if left < before {
                session.note(&format!(
                    "{left} of {} objects are not thawed yet",
                    self.objects.len()
                ));
            }
            pause = match left < before {
                true => PAUSE,
                false => pause.saturating_mul(2).min(PAUSE_MAX),
            };
            self.check_thawed()?;
        }
        if !has_waited {
            return Ok(());
        }
        // The first ones may have been thawed for days by now.
        self.look(session, |_| true)?;
        self.check_thawed()
    }

    /// Asks how far objects in these states are.
    fn look(&mut self, session: &Session, is_meant: impl Fn(Thaw) -> bool) -> Result<()> {
        for object in self.objects.iter_mut().filter(|o| is_meant(o.state)) {
            match self.store.thaw_state(&object.object.key) {
                Ok(state) => object.state = state,
                // It has hours: one answer that does not come is none.
                Err(e) if e.code() == Code::Unreachable => session.warn(&e.to_string()),
                Err(e) => return Err(goes_on(e)),
            }
        }
        Ok(())
    }

    fn check_thawed(&self) -> Result<()> {
        match self.frozen().next() {
            Some(_) => Err(err!(Conflict, "objects that were thawed are frozen again")
                .hint("Run the command again, with more --days.")),
            None => Ok(()),
        }
    }

    fn thawing(&self) -> usize {
        self.objects
            .iter()
            .filter(|o| o.state == Thaw::Thawing)
            .count()
    }
}

/// Whole days, rounded up.
fn days(time: Duration) -> u32 {
    u32::try_from(time.as_secs().div_ceil(DAY_SECONDS)).unwrap_or(u32::MAX)
}

fn goes_on(e: Error) -> Error {
    e.hint("What was requested goes on in the store. Run the command again: it asks for the rest, and waits with --wait.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v52_a_healed_copy_is_thawed_with_what_it_stands_for() {
        let pack = "clusters/main/1/packs/20261120T064049Z-full/3";
        assert_eq!(original(&format!("{pack}.heal-1")), pack);
        assert_eq!(original(pack), pack);
    }
}
