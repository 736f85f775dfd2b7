//! The content of every scope as plain data: backups, their events and parts, and remains of writes.
//!
//! Plans of recovery need roots, and the events about them. Deletion, verification and sync need parts, healed copies
//! and leftovers as well. The catalog is read anew each time. It lists the objects that cannot be read and checked: a
//! program that deletes must then stop.

use std::collections::BTreeMap;

use super::clock::MAY_DIFFER;
use super::event::{self, Completed, Recorded};
use super::id::{BackupId, PartKind, PartName};
use super::portion::{self, Portion};
use super::root::Stored;
use super::runs::Runs;
use super::scope::{self, Scope, healed_base};
use crate::error::Result;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::store::{Irregular, Key, Listed, Meta, Store, beside};

/// Parts of backups, by the id that wrote them.
pub type Parts = BTreeMap<BackupId, Runs>;

/// The facts of a root that are kept.
pub trait Reduced: Send + Sized {
    /// Reads what stands under the key of a root, with the keys at hand.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<Self>>;

    /// The time by its writer's clock that orders it among others; none where no clock does.
    fn ordered_by(&self) -> Option<TimestampTz> {
        None
    }
}

/// A root that tells which parts its backup needs.
pub trait Needs {
    /// Returns the layers and packs that it names.
    fn needs(&self) -> (&Parts, &Parts);
}

/// The objects under a scope's prefix, as far as every kind of content has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalog<R> {
    /// Everything under a backup id, by id.
    pub ids: BTreeMap<BackupId, Subject<R>>,
    /// Subjects of events that are no ids.
    pub others: Vec<String>,
    /// Events that say what was read back when; not read for plans of recovery.
    pub checks: Vec<Recorded>,
    /// Healed copies, each with whether its original exists.
    pub healed: Vec<(Key, bool)>,
    /// Remains of writes that did not finish: those of this scope, and those that belong to none.
    pub unfinished: Vec<Irregular>,
    /// Objects that could not be read and checked.
    pub unreadable: Vec<String>,
    /// The latest of the store's times of roots, events and what else was dated, with the object's key.
    pub newest: Option<(TimestampTz, String)>,
}

/// The objects under one backup id.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject<R> {
    /// Whether the backup exists.
    pub manifest: Manifest<R>,
    /// When the store received what stands in the place of the root. Plans of recovery ask for it only where the clock that orders a root was ahead.
    pub stored: Option<TimestampTz>,
    /// Whether PostgreSQL's own manifest is there.
    pub has_server_manifest: bool,
    /// Whether a list of its relations is there.
    pub has_relations: bool,
    /// Numbers of its layer objects.
    pub layers: Runs,
    /// Numbers of its packs.
    pub packs: Runs,
    /// The store's time of the newest of them; asked only where there is no reservation.
    pub newest_part: Option<TimestampTz>,
    /// Its events, the reservation among them.
    pub events: Vec<Recorded>,
    /// Why its events are not known.
    pub unread_events: Option<String>,
}

impl<R> Default for Subject<R> {
    fn default() -> Subject<R> {
        Subject {
            manifest: Manifest::Absent,
            stored: None,
            has_server_manifest: false,
            has_relations: false,
            layers: Runs::default(),
            packs: Runs::default(),
            newest_part: None,
            events: Vec::new(),
            unread_events: None,
        }
    }
}

/// The entry in the place of a root.
#[derive(Debug, Clone, PartialEq)]
pub enum Manifest<R> {
    /// Nothing.
    Absent,
    /// The backup exists.
    Committed(Box<R>),
    /// A janitor gave the id up.
    Tombstone,
    /// Something that cannot be read, for this reason.
    Unreadable(String),
}

impl<R> Subject<R> {
    /// The root, where the backup exists.
    pub fn root(&self) -> Option<&R> {
        match &self.manifest {
            Manifest::Committed(root) => Some(root),
            _ => None,
        }
    }

    /// Whether nothing stands in the place of the root.
    pub fn is_absent(&self) -> bool {
        matches!(self.manifest, Manifest::Absent)
    }

    /// The completed backup whose root is lost, if this is one.
    pub fn lost(&self) -> Option<Completed> {
        match self.manifest {
            Manifest::Absent => event::lost(&self.events),
            _ => None,
        }
    }

    /// Whether there is more of a backup than a failed one leaves as a rule, without a root, and nobody works on it.
    fn may_be_lost(&self, now: TimestampTz) -> bool {
        let has_end = self.has_server_manifest || !self.layers.is_empty();
        self.is_absent()
            && has_end
            && self.lost().is_none()
            && !event::is_marked(&self.events)
            && event::live_claims(&self.events, now).is_empty()
    }

    /// The reservation of the id.
    pub fn begin(&self) -> Option<&Recorded> {
        self.events.iter().find(|e| e.name == "begin")
    }

    /// Layers or packs.
    pub fn parts(&self, kind: PartKind) -> &Runs {
        match kind {
            PartKind::Layer => &self.layers,
            PartKind::Pack => &self.packs,
        }
    }
}

impl<R> Catalog<R> {
    /// Returns the catalog of a scope that has no objects.
    pub fn empty() -> Catalog<R> {
        Catalog {
            ids: BTreeMap::new(),
            others: Vec::new(),
            checks: Vec::new(),
            healed: Vec::new(),
            unfinished: Vec::new(),
            unreadable: Vec::new(),
            newest: None,
        }
    }

    /// The backups that exist, with what lies under their ids.
    pub fn committed(&self) -> impl Iterator<Item = (&BackupId, &Subject<R>, &R)> {
        let all = self.ids.iter();
        all.filter_map(|(id, subject)| Some((id, subject, subject.root()?)))
    }

    /// The layers and packs that a check found damaged, each with what it found. An event of any id tells: backups share parts.
    pub fn damaged_parts(&self) -> BTreeMap<(PartKind, PartName), String> {
        let all = self.ids.values().flat_map(|s| event::damage(&s.events));
        let named = all.filter_map(|e| Some((part_in(e.event.object.as_deref()?)?, e)));
        named
            .map(|(part, e)| (part, e.event.detail.clone().unwrap_or_default()))
            .collect()
    }

    /// The packs that are there.
    pub fn packs(&self) -> Portion {
        let all = self.ids.iter().filter(|(_, s)| !s.packs.is_empty());
        Portion {
            packs: all.map(|(id, s)| (id.clone(), s.packs.clone())).collect(),
            ..Portion::default()
        }
    }

    /// Remembers when the store received an object, if none came later.
    pub fn dated(&mut self, stored: TimestampTz, key: &Key) {
        if self.newest.as_ref().is_none_or(|(t, _)| *t < stored) {
            self.newest = Some((stored, key.to_string()));
        }
    }

    /// An object that is lost is listed; everything else ends the reading.
    ///
    /// # Errors
    /// Those of `result` that are about more than its object.
    pub fn found<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_lost() => {
                self.unreadable.push(e.to_string());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn subject(&mut self, id: BackupId) -> &mut Subject<R> {
        self.ids.entry(id).or_default()
    }
}

impl<R: Needs> Catalog<R> {
    /// Returns the ids that may be those of backups whose roots were lost. A backup that was deleted in order leaves
    /// the layers that later ones share.
    pub fn may_be_lost(&self, now: TimestampTz) -> Vec<&BackupId> {
        let has_own = |id: &BackupId, subject: &Subject<R>| {
            let shared = self
                .committed()
                .filter_map(|(.., root)| root.needs().0.get(id));
            let own = shared.fold(subject.layers.clone(), |own, named| own.minus(named));
            subject.has_server_manifest || !own.is_empty()
        };
        let ids = self.ids.iter();
        let lost = ids.filter(|(id, subject)| subject.may_be_lost(now) && has_own(id, subject));
        lost.map(|(id, _)| id).collect()
    }
}

/// The ids under which a root, or something in its place, may lie.
///
/// # Errors
/// Errors of the store.
pub fn ids(store: &dyn Store, scope: &Scope) -> Result<Vec<BackupId>> {
    let listed = store.list(&scope.backups())?.into_iter();
    let prefixes = listed.filter(|l| l.is_prefix);
    Ok(prefixes.filter_map(|l| l.name.parse().ok()).collect())
}

/// A reading under way.
pub struct Reading<'a, R> {
    store: &'a dyn Store,
    scope: &'a Scope,
    subjects: Vec<BackupId>,
    /// The time of the newest of an id's layers or packs, where the listing has told that of each.
    dated: BTreeMap<(BackupId, PartKind), TimestampTz>,
    catalog: Catalog<R>,
}

/// The objects that lie below the root's folder of an id.
struct Folder<R> {
    names: Vec<Listed>,
    /// The root, and when the store received it; none where no root is there.
    root: Option<(Meta, Result<Stored<R>>)>,
}

/// The layers or packs of an id, as their listing shows them.
struct Listing {
    runs: Runs,
    /// Healed copies, each with whether its original exists.
    healed: Vec<(Key, bool)>,
    /// The time of the newest part, where the listing tells that of each.
    newest: Option<TimestampTz>,
}

/// An id that neither a root nor a reservation dates.
struct Undated {
    id: BackupId,
    /// The time of its newest part, as far as listings tell.
    listed: Option<TimestampTz>,
    /// Parts of which no listing has told it.
    unlisted: Vec<(PartKind, Runs)>,
}

impl<'a, R: Reduced> Reading<'a, R> {
    /// Lists the subjects of events.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn begin(store: &'a dyn Store, scope: &'a Scope) -> Result<Reading<'a, R>> {
        let mut reading = Reading {
            store,
            scope,
            subjects: Vec::new(),
            dated: BTreeMap::new(),
            catalog: Catalog::empty(),
        };
        for listed in store.list(&scope.events())? {
            match listed.name.parse() {
                Ok(id) => reading.subjects.push(id),
                Err(_) => reading.catalog.others.push(listed.name),
            }
        }
        Ok(reading)
    }

    /// The subjects of events that are no ids.
    pub fn others(&self) -> &[String] {
        &self.catalog.others
    }

    /// Reads roots, and the events of ids: what plans of recovery need.
    ///
    /// # Errors
    /// Errors of the store. Damage of single objects is part of the answer.
    pub fn backups(mut self) -> Result<Catalog<R>> {
        self.events()?;
        let ids = ids(self.store, self.scope)?;
        let read = beside(self.store, &ids, |id| R::read(self.store, self.scope, id));
        for (id, stored) in ids.into_iter().zip(read) {
            self.take_root(id.clone(), stored)?;
            self.date_if_ahead(&id)?;
        }
        self.lost()?;
        Ok(self.catalog)
    }

    /// Asks when the store received a root whose writer's clock was ahead of the store's, as its events tell.
    fn date_if_ahead(&mut self, id: &BackupId) -> Result<()> {
        let Some(subject) = self.catalog.ids.get_mut(id) else {
            return Ok(());
        };
        let Some(time) = subject.root().and_then(R::ordered_by) else {
            return Ok(());
        };
        let completed = subject
            .events
            .iter()
            .filter(|e| e.event.event == "completed");
        let received = completed.map(|e| e.stored).min();
        // A backup that was killed behind its root has the reservation alone.
        let received = received.or_else(|| subject.begin().map(|begin| begin.stored));
        if received.is_none_or(|received| time > received.saturating_add(MAY_DIFFER)) {
            let meta = self.store.head(&self.scope.manifest(id))?;
            subject.stored = meta.map(|meta| meta.modified);
        }
        Ok(())
    }

    /// Reads everything but leftovers, for which [`Store::irregular`] walks through all that is stored.
    ///
    /// # Errors
    /// As [`Reading::backups`].
    pub fn everything(mut self) -> Result<Catalog<R>> {
        // Events before roots: a backup that commits meanwhile is then seen as running or as committed, never as neither.
        self.events()?;
        self.manifests()?;
        self.lost()?;
        self.parts(PartKind::Layer)?;
        self.parts(PartKind::Pack)?;
        self.ages()?;
        if self.catalog.others.iter().any(|s| s == portion::SUBJECT) {
            self.catalog.checks = portion::events(self.store, self.scope)?;
        }
        Ok(self.catalog)
    }

    fn events(&mut self) -> Result<()> {
        let subjects = std::mem::take(&mut self.subjects);
        let read = beside(self.store, &subjects, |id| {
            event::read_all(self.store, self.scope, &id.to_string())
        });
        for (id, read) in subjects.into_iter().zip(read) {
            for event in read.iter().flatten() {
                let key = self.scope.event(&id.to_string(), &event.name)?;
                self.catalog.dated(event.stored, &key);
            }
            let unread = read.as_ref().err().map(ToString::to_string);
            if let Some(events) = self.catalog.found(read)? {
                self.catalog.subject(id).events = events;
            } else {
                self.catalog.subject(id).unread_events = unread;
            }
        }
        Ok(())
    }

    fn manifests(&mut self) -> Result<()> {
        let (store, scope) = (self.store, self.scope);
        let ids = ids(store, scope)?;
        let read = beside(store, &ids, |id| Folder::<R>::read(store, scope, id));
        for (id, folder) in ids.into_iter().zip(read) {
            let Folder { names, root } = folder?;
            let has = |name: &str| names.iter().any(|l| !l.is_prefix && l.name == name);
            for name in &names {
                if let Some(base) = healed_base(&name.name) {
                    let key = Key::new(format!("{}/{id}/{}", scope.backups(), name.name))?;
                    self.catalog.healed.push((key, has(base)));
                }
            }
            let subject = self.catalog.subject(id.clone());
            subject.has_server_manifest = has("server-manifest");
            subject.has_relations = has("relations");
            if let Some((meta, stored)) = root {
                subject.stored = Some(meta.modified);
                self.catalog.dated(meta.modified, &scope.manifest(&id));
                self.take_root(id, stored)?;
            }
        }
        Ok(())
    }

    fn take_root(&mut self, id: BackupId, stored: Result<Stored<R>>) -> Result<()> {
        let problem = stored.as_ref().err().map(ToString::to_string);
        let manifest = match self.catalog.found(stored)? {
            Some(Stored::Root(root)) => Manifest::Committed(Box::new(root)),
            Some(Stored::Tombstone) => Manifest::Tombstone,
            Some(Stored::Absent) => Manifest::Absent,
            None => Manifest::Unreadable(problem.unwrap_or_default()),
        };
        self.catalog.subject(id).manifest = manifest;
        Ok(())
    }

    /// Looks again at backups that were completed and have no root: one that was deleted meanwhile has been marked before.
    fn lost(&mut self) -> Result<()> {
        let lost = self.catalog.ids.iter().filter(|(_, s)| s.lost().is_some());
        for id in lost.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            let read = event::read_all(self.store, self.scope, &id.to_string());
            if let Some(events) = self.catalog.found(read)? {
                self.catalog.subject(id).events = events;
            }
        }
        Ok(())
    }

    fn parts(&mut self, kind: PartKind) -> Result<()> {
        let (store, scope) = (self.store, self.scope);
        let listed = store.list(&scope.parts(kind, None))?.into_iter();
        let ids: Vec<BackupId> = listed.filter_map(|l| l.name.parse().ok()).collect();
        let read = beside(store, &ids, |id| Listing::read(store, scope, kind, id));
        for (id, listing) in ids.into_iter().zip(read) {
            let listing = listing?;
            self.catalog.healed.extend(listing.healed);
            if let Some(newest) = listing.newest {
                self.dated.insert((id.clone(), kind), newest);
            }
            let subject = self.catalog.subject(id);
            match kind {
                PartKind::Layer => subject.layers = listing.runs,
                PartKind::Pack => subject.packs = listing.runs,
            }
        }
        Ok(())
    }

    /// The age of parts that no reservation dates.
    fn ages(&mut self) -> Result<()> {
        let (store, scope) = (self.store, self.scope);
        let undated = |s: &Subject<R>| s.begin().is_none() && s.is_absent();
        let all = self.catalog.ids.iter().filter(|(_, s)| undated(s));
        let all = all.map(|(id, subject)| Undated::of(id, subject, &self.dated));
        let all: Vec<Undated> = all.collect();
        let read = beside(store, &all, |one| {
            // A backup that began after its events were listed has one now, for parts come later: no clock need be asked.
            let events = match event::read_all(store, scope, &one.id.to_string()) {
                Err(e) if !e.is_lost() => return Err(e),
                read => read,
            };
            let newest = match &events {
                Ok(events) if events.iter().any(|e| e.name == "begin") => None,
                _ => one.newest_part(store, scope)?,
            };
            Ok((events, newest))
        });
        for (one, read) in all.into_iter().zip(read) {
            let (events, newest) = read?;
            let events = self.catalog.found(events)?;
            let subject = self.catalog.subject(one.id);
            match events {
                Some(events) if events.iter().any(|e| e.name == "begin") => {
                    subject.events = events;
                }
                _ => subject.newest_part = newest,
            }
        }
        Ok(())
    }
}

impl Undated {
    fn of<R>(
        id: &BackupId,
        subject: &Subject<R>,
        dated: &BTreeMap<(BackupId, PartKind), TimestampTz>,
    ) -> Undated {
        let mut undated = Undated {
            id: id.clone(),
            listed: None,
            unlisted: Vec::new(),
        };
        for kind in [PartKind::Layer, PartKind::Pack] {
            match dated.get(&(id.clone(), kind)) {
                Some(newest) => undated.listed = undated.listed.max(Some(*newest)),
                None => undated.unlisted.push((kind, subject.parts(kind).clone())),
            }
        }
        undated
    }

    /// The store's time of its newest part. Only those are asked for of which no listing has told it.
    fn newest_part(&self, store: &dyn Store, scope: &Scope) -> Result<Option<TimestampTz>> {
        let mut keys = vec![scope.server_manifest(&self.id), scope.relations(&self.id)];
        for (kind, runs) in &self.unlisted {
            let names = part_names(&self.id, runs);
            keys.extend(names.map(|name| scope.part(*kind, &name)));
        }
        let mut newest = self.listed;
        for meta in beside(store, &keys, |key| store.head(key)) {
            newest = newest.max(meta?.map(|m| m.modified));
        }
        Ok(newest)
    }
}

impl<R: Reduced> Folder<R> {
    fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Folder<R>> {
        let names = store.list(&format!("{}/{id}", scope.backups()))?;
        let listed = names.iter().find(|l| !l.is_prefix && l.name == "manifest");
        let Some(told) = listed.map(|l| l.meta) else {
            return Ok(Folder { names, root: None });
        };
        let key = scope.manifest(id);
        let known = match told {
            None => store.head(&key)?,
            told => told,
        };
        let Some(mut meta) = known else {
            return Ok(Folder { names, root: None });
        };
        let stored = R::read(store, scope, id);
        // The listing may have shown a root that is gone by now: the tombstone in its place is younger.
        if told.is_some() && matches!(stored, Ok(Stored::Tombstone)) {
            meta = store.head(&key)?.unwrap_or(meta);
        }
        let root = Some((meta, stored));
        Ok(Folder { names, root })
    }
}

impl Listing {
    fn read(store: &dyn Store, scope: &Scope, kind: PartKind, id: &BackupId) -> Result<Listing> {
        let prefix = scope.parts(kind, Some(id));
        let (mut numbers, mut times, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        for part in store.list(&prefix)? {
            if let Some(number) = part_number(&part.name) {
                numbers.push(u64::from(number));
                times.push(part.meta.map(|m| m.modified));
            } else if let Some(base) = healed_base(&part.name).and_then(part_number) {
                copies.push((Key::new(format!("{prefix}/{}", part.name))?, base));
            }
        }
        let runs = Runs::from_numbers(numbers);
        let exists = |base: u32| runs.contains(SegmentNumber(u64::from(base)));
        let healed = copies.into_iter().map(|(key, base)| (key, exists(base)));
        // None where the listing does not tell one of them.
        let times: Option<Vec<TimestampTz>> = times.into_iter().collect();
        Ok(Listing {
            healed: healed.collect(),
            newest: times.and_then(|times| times.into_iter().max()),
            runs,
        })
    }
}

/// Returns what unfinished writes left in a scope and outside of any, out of all that is no object.
pub fn unfinished_of(scope: &Scope, all: impl Iterator<Item = Irregular>) -> Vec<Irregular> {
    let own = scope.prefix();
    all.filter(|i| i.is_unfinished)
        .filter(|i| scope::prefix_of(&i.path).is_none_or(|prefix| prefix == own))
        .collect()
}

/// The layer or pack that a key means.
fn part_in(key: &str) -> Option<(PartKind, PartName)> {
    let mut parts = key.rsplitn(4, '/');
    let (number, id) = (part_number(parts.next()?)?, parts.next()?.parse().ok()?);
    let kind = match parts.next()? {
        "layers" => PartKind::Layer,
        "packs" => PartKind::Pack,
        _ => return None,
    };
    Some((kind, PartName { id, number }))
}

/// The number of a layer object or pack in its key: six digits.
pub fn part_number(name: &str) -> Option<u32> {
    (name.len() == 6 && name.bytes().all(|b| b.is_ascii_digit()))
        .then(|| name.parse().ok())
        .flatten()
}

/// The single numbers of runs of parts.
pub fn numbers(runs: &Runs) -> impl Iterator<Item = u32> + '_ {
    runs.iter()
        .flat_map(|(first, last)| first.0..=last.0)
        .filter_map(|n| u32::try_from(n).ok())
}

/// The names of parts that an id wrote.
pub fn part_names<'a>(id: &'a BackupId, runs: &'a Runs) -> impl Iterator<Item = PartName> + 'a {
    numbers(runs).map(|number| PartName {
        id: id.clone(),
        number,
    })
}

/// Gathers names of parts by the id that wrote them.
pub fn by_writer(names: impl Iterator<Item = PartName>) -> Parts {
    let mut numbers: BTreeMap<BackupId, Vec<u64>> = BTreeMap::new();
    for name in names {
        let of = numbers.entry(name.id).or_default();
        of.push(u64::from(name.number));
    }
    numbers
        .into_iter()
        .map(|(id, numbers)| (id, Runs::from_numbers(numbers)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::err;
    use crate::error::{Code, Error};
    use crate::repo::crafted;
    use crate::repo::event::Event;
    use crate::repo::root::outline::Outline;
    use crate::store::file::FileStore;
    use crate::store::{NewObject, Object, put};

    impl Reduced for Outline {
        fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<Outline>> {
            Outline::stored(store, scope, id)
        }
    }

    /// A directory whose listings tell times, as those across a network do.
    struct Told {
        inner: FileStore,
        is_remote: bool,
        /// Its listing fails.
        barred: String,
        /// Lies on a bad sector.
        bad: String,
        heads: AtomicUsize,
    }

    impl Store for Told {
        crate::store::forward! {
            fn location(&self) -> String;
            fn create(&self, key: &Key) -> Result<Box<dyn NewObject>>;
            fn delete(&self, key: &Key) -> Result<bool>;
        }

        fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
            match key.as_str() == self.bad {
                true => Err(Error::from_io("read", std::io::Error::from_raw_os_error(5))),
                false => self.inner.open(key),
            }
        }

        fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
            if prefix == self.barred {
                return Err(err!(Unreachable, "\"{prefix}\" is away"));
            }
            let mut listed = self.inner.list(prefix)?;
            for one in listed.iter_mut().filter(|one| !one.is_prefix) {
                let key = Key::new(format!("{prefix}/{}", one.name))?;
                one.meta = self.inner.head(&key)?;
            }
            Ok(listed)
        }

        fn head(&self, key: &Key) -> Result<Option<Meta>> {
            self.heads.fetch_add(1, Ordering::Relaxed);
            self.inner.head(key)
        }

        fn is_remote(&self) -> bool {
            self.is_remote
        }
    }

    impl Told {
        fn new(inner: FileStore, is_remote: bool) -> Told {
            Told {
                inner,
                is_remote,
                barred: String::new(),
                bad: String::new(),
                heads: AtomicUsize::new(0),
            }
        }
    }

    fn three() -> [BackupId; 3] {
        [20, 21, 22].map(|day| format!("202611{day}T064049Z-full").parse().unwrap())
    }

    fn everything(store: &dyn Store, scope: &Scope) -> Result<Catalog<Outline>> {
        Reading::begin(store, scope)?.everything()
    }

    fn begun(store: &dyn Store, scope: &Scope, id: &BackupId) {
        let begin = Event {
            event: "begin".into(),
            subject: id.to_string(),
            ..Event::default()
        };
        event::begin(store, scope, &begin).unwrap();
    }

    #[test]
    fn b60_listings_date_parts_and_one_failure_ends_the_reading() {
        let (_dir, inner, scope) = crafted::scope();
        let ids = three();
        for id in &ids {
            put(&inner, &scope.server_manifest(id), b"x").unwrap();
            for number in 0..3 {
                let id = id.clone();
                let part = PartName { id, number };
                put(&inner, &scope.layer(&part), b"x").unwrap();
                put(&inner, &scope.pack(&part), b"x").unwrap();
            }
        }
        let ages = |catalog: &Catalog<Outline>| {
            let age = |id: &BackupId| catalog.ids.get(id).unwrap().newest_part.unwrap();
            ids.iter().map(age).collect::<Vec<_>>()
        };
        let asked = ages(&everything(&inner, &scope).unwrap());
        let mut store = Told::new(inner, true);
        assert_eq!(ages(&everything(&store, &scope).unwrap()), asked);
        // The two objects of each that are no parts.
        assert_eq!(store.heads.load(Ordering::Relaxed), 6);
        for id in &ids {
            let parts = [PartKind::Layer, PartKind::Pack].map(|kind| scope.parts(kind, Some(id)));
            let root = format!("{}/{id}", scope.backups());
            for barred in parts.into_iter().chain([root]) {
                store.barred.clone_from(&barred);
                let error = everything(&store, &scope).err().unwrap();
                assert_eq!(error.code(), Code::Unreachable);
                assert!(error.to_string().contains(&barred), "{error}");
            }
        }
    }

    #[test]
    fn b61_a_bad_sector_hides_no_other_backup() {
        let (_dir, inner, scope) = crafted::scope();
        let ids = three();
        for id in &ids {
            begun(&inner, &scope, id);
        }
        let [first, .., last] = &ids;
        let mut store = Told::new(inner, false);
        store.bad = scope.begin(first).to_string();
        let reading = Reading::<Outline>::begin(&store, &scope).unwrap();
        let plans = reading.backups().unwrap();
        for catalog in [plans, everything(&store, &scope).unwrap()] {
            let of = |id: &BackupId| catalog.ids.get(id).unwrap();
            assert!(of(first).unread_events.is_some());
            assert!(of(last).begin().is_some());
            assert!(!catalog.unreadable.is_empty());
        }
        // Nothing waits for the record of what was read back.
        let checked = Event {
            event: "checked".into(),
            subject: portion::SUBJECT.into(),
            ..Event::default()
        };
        let name = event::record(&store, &scope, &checked, 1).unwrap();
        let read = |store: &Told| portion::events(store, &scope).unwrap().len();
        assert_eq!(read(&store), 1);
        store.bad = scope.event(portion::SUBJECT, &name).unwrap().to_string();
        assert_eq!(read(&store), 0);
    }

    /// The parts of a backup that began after the events were read, seen by a janitor whose clock is far ahead.
    #[test]
    fn a_reservation_that_was_made_while_the_catalog_was_read_is_found() {
        let (_dir, store, scope) = crafted::scope();
        let reading = Reading::<Outline>::begin(&store, &scope).unwrap();
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        begun(&store, &scope, &id);
        let part = PartName {
            id: id.clone(),
            number: 0,
        };
        put(&store, &scope.pack(&part), b"x").unwrap();
        let catalog = reading.everything().unwrap();
        assert!(catalog.ids.get(&id).unwrap().begin().is_some());
    }
}
