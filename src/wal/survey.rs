//! Everything that a repository holds of one cluster, as plain data: the input of what is kept and what goes.
//!
//! An [`super::inventory::Inventory`] is what plans of recovery need; a survey also has claims, reservations, layers, packs, refused
//! copies and leftovers. Read anew each time. What cannot be read and checked is listed: whoever deletes must then stop.

use std::collections::BTreeMap;

use super::facts::Runs;
use super::increment::OpenSegment;
use super::inventory::{self, HistoryFile, Timeline, is_elsewhere};
use super::stored_wal;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::event::{self, Completed, Recorded};
use crate::repo::id::{BackupId, PartKind};
use crate::repo::json;
use crate::repo::layout::{ClusterLayout, Home};
use crate::repo::lives::{Lives, stored_homes};
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::outline::Outline;
use crate::repo::root::{self, Tombstone};
use crate::repo::scope::healed_base;
use crate::repo::wal_proof::WalProof;
use crate::store::{Irregular, Key, Store, get};

/// What lies under one cluster's prefix.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// WAL segment size at registration.
    pub segment_size: SegmentSize,
    /// Other segment sizes that were accepted later, or may have been: names then mean two positions.
    pub has_other_sizes: bool,
    /// Everything under a backup id, by id.
    pub ids: BTreeMap<BackupId, Subject>,
    /// What is archived of each timeline.
    pub timelines: BTreeMap<TimelineId, Timeline>,
    /// Backup history files.
    pub labels: Vec<WalFileName>,
    /// Pieces of segments that are being streamed.
    pub increments: BTreeMap<SegmentName, Vec<Key>>,
    /// Refused copies, with the name each was offered under.
    pub conflicts: Vec<(WalFileName, Key)>,
    /// Which lives of the timelines are followed.
    pub lives: Lives,
    /// Segments, partials and increments of lives that are not followed, with the name of the segment or partial.
    pub shadowed: Vec<(WalFileName, Key)>,
    /// Events about segments, by segment.
    pub segment_events: BTreeMap<SegmentName, Vec<Recorded>>,
    /// Healed copies, each with whether its original exists.
    pub healed: Vec<(Key, bool)>,
    /// What writes left behind that did not finish: those of this cluster, and those that belong to none.
    pub unfinished: Vec<Irregular>,
    /// What could not be read and checked: roots, reservations, claims, histories, events of the cluster.
    pub unreadable: Vec<String>,
    /// The latest of the store's times of roots, events and the last segments, with the object's key.
    pub newest: Option<(TimestampTz, String)>,
}

/// What lies under one backup id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Subject {
    /// Whether the backup exists.
    pub manifest: Manifest,
    /// Whether PostgreSQL's own manifest is there.
    pub has_server_manifest: bool,
    /// Numbers of its layer objects.
    pub layers: Runs,
    /// Numbers of its packs.
    pub packs: Runs,
    /// The store's time of the newest of them; asked only where there is no reservation.
    pub newest_part: Option<TimestampTz>,
    /// Its events, the reservation among them.
    pub events: Vec<Recorded>,
}

impl Subject {
    /// The completed backup whose root is lost, if this is one.
    pub fn lost(&self) -> Option<Completed> {
        match self.manifest {
            Manifest::Absent => event::lost(&self.events),
            _ => None,
        }
    }

    /// Whether there is more of a backup than a failed one leaves as a rule, without a root, and nobody works on it.
    pub fn may_be_lost(&self, now: TimestampTz) -> bool {
        let has_end = self.has_server_manifest || !self.layers.is_empty();
        self.manifest == Manifest::Absent
            && has_end
            && self.lost().is_none()
            && event::standing(&self.events, "expire", "unexpire").is_empty()
            && event::live_claims(&self.events, now).is_empty()
    }

    /// The reservation of the id.
    pub fn begin(&self) -> Option<&Recorded> {
        self.events.iter().find(|e| e.name == "begin")
    }
}

/// What stands in the place of a root.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Manifest {
    /// Nothing.
    #[default]
    Absent,
    /// The backup exists.
    Committed(Box<Root>),
    /// A janitor gave the id up; with the store's time.
    Tombstone(TimestampTz),
    /// Something that cannot be read.
    Unreadable,
}

/// A root, reduced to what decides about keeping.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// End of the WAL that the backup needs.
    pub stop_lsn: Lsn,
    /// From here on the restored cluster is consistent.
    pub consistent_lsn: Lsn,
    /// Timeline at the start.
    pub start_timeline: TimelineId,
    /// Timeline at the stop.
    pub timeline: TimelineId,
    /// That timeline's history, as the root has it.
    pub history: Option<History>,
    /// Server's clock at the stop.
    pub stop_time: TimestampTz,
    /// When the store received the root.
    pub stored: TimestampTz,
    /// Raw bytes of all files.
    pub size_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// What was wrong with its pages when it was taken.
    pub damage: Option<String>,
    /// What was proven of its WAL when it was taken; none in backups of before.
    pub wal_proof: Option<WalProof>,
    /// The segment of its WAL that another server wrote, as its proof tells; looked for by [`Survey::read`] alone. As the links tell, by expiry.
    pub foreign: Option<SegmentName>,
    /// Layer objects it names, by the id that wrote them.
    pub layers: BTreeMap<BackupId, Runs>,
    /// Packs it names.
    pub packs: BTreeMap<BackupId, Runs>,
}

impl Root {
    fn reduce(root: &Outline, stored: TimestampTz) -> Result<Root> {
        root.check_positions()?;
        let (start_timeline, timeline) = root.timelines()?;
        Ok(Root {
            start_lsn: root.start_lsn,
            stop_lsn: root.stop_lsn,
            consistent_lsn: root.consistent_lsn,
            start_timeline,
            timeline,
            history: root.history()?,
            stop_time: root.stop_time,
            stored,
            size_bytes: root.size_bytes,
            stored_bytes: root.stored_bytes,
            damage: root.damage(),
            wal_proof: root.wal_proof.clone(),
            foreign: None,
            layers: runs(root.layers()),
            packs: runs(root.packs()),
        })
    }
}

fn runs(names: impl Iterator<Item = crate::repo::id::PartName>) -> BTreeMap<BackupId, Runs> {
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

impl Survey {
    /// What a cluster of which nothing is there looks like.
    pub fn empty(segment_size: SegmentSize) -> Survey {
        Survey {
            segment_size,
            has_other_sizes: false,
            ids: BTreeMap::new(),
            timelines: BTreeMap::new(),
            labels: Vec::new(),
            increments: BTreeMap::new(),
            conflicts: Vec::new(),
            lives: Lives::default(),
            shadowed: Vec::new(),
            segment_events: BTreeMap::new(),
            healed: Vec::new(),
            unfinished: Vec::new(),
            unreadable: Vec::new(),
            newest: None,
        }
    }

    /// Reads what the repository holds of a registered cluster.
    ///
    /// # Errors
    /// What the store says. Damage of single objects is part of the answer.
    pub fn read(repository: &Repository, registration: &Registration) -> Result<Survey> {
        let mut survey = Survey::without_leftovers(repository, registration)?;
        let layout = survey.layout(registration)?;
        let mut reading = Reading {
            store: repository.store(),
            layout: &layout,
            survey: &mut survey,
        };
        reading.unfinished()?;
        reading.compare_wal(repository, registration.major)?;
        Ok(survey)
    }

    /// As [`Survey::read`], without a look for what unfinished writes left: that walks through everything.
    ///
    /// # Errors
    /// Those of [`Survey::read`].
    pub fn without_leftovers(
        repository: &Repository,
        registration: &Registration,
    ) -> Result<Survey> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        let segment_size = SegmentSize::new(registration.segment_size_bytes)?;
        let mut unreadable = Vec::new();
        let lives = found(Lives::read(repository, &layout), &mut unreadable)?;
        let lives = lives.unwrap_or_default();
        let layout = layout.with_lives(lives.clone());
        let sizes = repository.segment_sizes(&layout, registration);
        let sizes = found(sizes, &mut unreadable)?;
        let mut survey = Survey {
            has_other_sizes: sizes.is_none_or(|sizes| sizes.len() > 1),
            timelines: inventory::read_timelines(repository, &layout, segment_size)?,
            unreadable,
            lives,
            ..Survey::empty(segment_size)
        };
        let mut reading = Reading {
            store: repository.store(),
            layout: &layout,
            survey: &mut survey,
        };
        // Events before roots: a backup that commits meanwhile is then seen as running or as committed, never as neither.
        reading.events()?;
        reading.manifests()?;
        reading.lost()?;
        reading.parts(PartKind::Layer)?;
        reading.parts(PartKind::Pack)?;
        reading.ages()?;
        reading.wal()?;
        reading.conflicts()?;
        reading.shadowed()?;
        Ok(survey)
    }

    /// Where the objects of the surveyed cluster lie.
    ///
    /// # Errors
    /// `Usage` for an impossible cluster name.
    pub fn layout(&self, registration: &Registration) -> Result<ClusterLayout> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        Ok(layout.with_lives(self.lives.clone()))
    }
}

/// Damage of one object is a finding; everything else ends the reading.
fn found<T>(result: Result<T>, unreadable: &mut Vec<String>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_damage() => {
            unreadable.push(e.to_string());
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

struct Reading<'a> {
    store: &'a dyn Store,
    layout: &'a ClusterLayout,
    survey: &'a mut Survey,
}

impl Reading<'_> {
    /// Remembers when the store received an object, if none came later.
    fn dated(&mut self, stored: TimestampTz, key: &Key) {
        if self.survey.newest.as_ref().is_none_or(|(t, _)| *t < stored) {
            self.survey.newest = Some((stored, key.to_string()));
        }
    }

    fn subject(&mut self, id: BackupId) -> &mut Subject {
        self.survey.ids.entry(id).or_default()
    }

    fn events(&mut self) -> Result<()> {
        for listed in self.store.list(&self.layout.events())? {
            let read = event::read_all(self.store, self.layout, &listed.name);
            for event in read.iter().flatten() {
                let key = self.layout.event(&listed.name, &event.name)?;
                self.dated(event.stored, &key);
            }
            if let Ok(id) = listed.name.parse::<BackupId>() {
                if let Some(events) = found(read, &mut self.survey.unreadable)? {
                    self.subject(id).events = events;
                }
                continue;
            }
            let segment = listed.name.strip_prefix("wal-").map(str::parse);
            if let Some(Ok(segment)) = segment {
                match read {
                    Ok(events) => {
                        let is_own = |e: &Recorded| !is_elsewhere(self.layout, segment, e);
                        let events = events.into_iter().filter(is_own).collect();
                        self.survey.segment_events.insert(segment, events);
                    }
                    // What it says of a segment protects nothing: it stays where it is.
                    Err(e) if e.is_damage() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    fn manifests(&mut self) -> Result<()> {
        let prefix = self.layout.backups();
        for listed in self.store.list(&prefix)? {
            let Ok(id) = listed.name.parse::<BackupId>() else {
                continue;
            };
            let names = self.store.list(&format!("{prefix}/{id}"))?;
            let has = |name: &str| names.iter().any(|l| !l.is_prefix && l.name == name);
            let (has_manifest, has_server_manifest) = (has("manifest"), has("server-manifest"));
            for name in &names {
                if let Some(base) = healed_base(&name.name) {
                    let key = Key::new(format!("{prefix}/{id}/{}", name.name))?;
                    self.survey.healed.push((key, has(base)));
                }
            }
            let manifest = match has_manifest {
                true => self.manifest(&id)?,
                false => Manifest::Absent,
            };
            let subject = self.subject(id);
            subject.has_server_manifest = has_server_manifest;
            subject.manifest = manifest;
        }
        Ok(())
    }

    /// Looks again at backups that were completed and have no root: one that was deleted meanwhile has been marked before.
    fn lost(&mut self) -> Result<()> {
        let absent =
            |s: &Subject| s.manifest == Manifest::Absent && event::lost(&s.events).is_some();
        for (id, subject) in self.survey.ids.iter_mut().filter(|(_, s)| absent(s)) {
            let read = event::read_all(self.store, self.layout, &id.to_string());
            if let Some(events) = found(read, &mut self.survey.unreadable)? {
                subject.events = events;
            }
        }
        Ok(())
    }

    fn manifest(&mut self, id: &BackupId) -> Result<Manifest> {
        let key = self.layout.manifest(id);
        let Some(meta) = self.store.head(&key)? else {
            return Ok(Manifest::Absent);
        };
        self.dated(meta.modified, &key);
        let reduce = |root: Outline| Root::reduce(&root, meta.modified);
        let read = Outline::read(self.store, self.layout, id)
            .and_then(|root| root.map(reduce).transpose());
        Ok(match found(read, &mut self.survey.unreadable)? {
            Some(Some(root)) => Manifest::Committed(Box::new(root)),
            Some(None) if is_tombstone(self.store, &key)? => Manifest::Tombstone(meta.modified),
            Some(None) => Manifest::Absent,
            None => Manifest::Unreadable,
        })
    }

    /// Compares each backup's first and last segment with what is stored.
    fn compare_wal(&mut self, repository: &Repository, major: u32) -> Result<()> {
        let size = self.survey.segment_size;
        for subject in self.survey.ids.values_mut() {
            let Manifest::Committed(root) = &mut subject.manifest else {
                continue;
            };
            let last = SegmentNumber::ending_at(root.stop_lsn, size).name(root.timeline, size);
            // Nothing tells whose it is without a proof.
            let in_life = last.filter(|name| self.layout.lives().of(*name).is_some());
            let Some(proof) = &root.wal_proof else {
                root.foreign = in_life;
                continue;
            };
            root.foreign = proof.disagreement(self.store, self.layout)?;
            // Its last segment was not whole when the root was written.
            if let (None, Some(name), None) = (&root.foreign, in_life, proof.last.segment_hash) {
                let segment = OpenSegment { name, size, major };
                let is_own = match proof.tail() {
                    Some((_, length_bytes, hash)) => {
                        let tail = (length_bytes, hash);
                        stored_wal::has_prefix(repository, self.layout, &segment, tail)?
                    }
                    None => false,
                };
                root.foreign = (!is_own).then_some(name);
            }
        }
        Ok(())
    }

    fn parts(&mut self, kind: PartKind) -> Result<()> {
        for listed in self.store.list(&self.layout.parts(kind, None))? {
            let Ok(id) = listed.name.parse::<BackupId>() else {
                continue;
            };
            let prefix = self.layout.parts(kind, Some(&id));
            let mut numbers = Vec::new();
            let mut healed = Vec::new();
            for part in self.store.list(&prefix)? {
                if let Some(number) = part_number(&part.name) {
                    numbers.push(u64::from(number));
                } else if let Some(base) = healed_base(&part.name).and_then(part_number) {
                    healed.push((Key::new(format!("{prefix}/{}", part.name))?, base));
                }
            }
            let runs = Runs::from_numbers(numbers);
            for (key, base) in healed {
                let exists = runs.contains(crate::pg::segment::SegmentNumber(u64::from(base)));
                self.survey.healed.push((key, exists));
            }
            let subject = self.subject(id);
            match kind {
                PartKind::Layer => subject.layers = runs,
                PartKind::Pack => subject.packs = runs,
            }
        }
        Ok(())
    }

    /// The age of parts that no reservation dates.
    fn ages(&mut self) -> Result<()> {
        for (id, subject) in &mut self.survey.ids {
            if subject.begin().is_some() || subject.manifest != Manifest::Absent {
                continue;
            }
            // A backup that began after its events were listed has one now, for parts come later: no clock need be asked.
            let read = event::read_all(self.store, self.layout, &id.to_string());
            match found(read, &mut self.survey.unreadable)? {
                Some(events) if events.iter().any(|e| e.name == "begin") => {
                    subject.events = events;
                    continue;
                }
                _ => {}
            }
            let mut keys = vec![self.layout.server_manifest(id)];
            for (kind, runs) in [
                (PartKind::Layer, &subject.layers),
                (PartKind::Pack, &subject.packs),
            ] {
                for number in numbers(runs) {
                    let part = crate::repo::id::PartName {
                        id: id.clone(),
                        number,
                    };
                    keys.push(match kind {
                        PartKind::Layer => self.layout.layer(&part),
                        PartKind::Pack => self.layout.pack(&part),
                    });
                }
            }
            for key in keys {
                let stored = self.store.head(&key)?.map(|m| m.modified);
                subject.newest_part = subject.newest_part.max(stored);
            }
        }
        Ok(())
    }

    fn wal(&mut self) -> Result<()> {
        let timelines: Vec<TimelineId> = self.survey.timelines.keys().copied().collect();
        for timeline in timelines {
            let history = self.survey.timelines.get(&timeline).map(|t| &t.history);
            if let Some(HistoryFile::Damaged(why)) = history {
                let what = format!("history file \"{timeline}.history\": {why}");
                self.survey.unreadable.push(what);
            }
            self.last_segment(timeline)?;
            let prefix = self.layout.timeline(timeline);
            for label in self.store.list(&format!("{prefix}/labels"))? {
                if let Ok(name @ WalFileName::BackupHistory { .. }) = label.name.parse() {
                    self.survey.labels.push(name);
                }
            }
            for home in self.layout.homes(timeline) {
                for listed in self.store.list(&home.open_segments())? {
                    let name = listed.name.parse::<SegmentName>();
                    let Some(segment) = name.ok().filter(|n| self.layout.home_of(*n) == home)
                    else {
                        continue;
                    };
                    let prefix = self.layout.increments(segment);
                    let mut keys = Vec::new();
                    for one in self.store.list(&prefix)? {
                        keys.push(Key::new(format!("{prefix}/{}", one.name))?);
                    }
                    self.survey.increments.insert(segment, keys);
                }
            }
        }
        self.survey.labels.sort_unstable();
        Ok(())
    }

    fn last_segment(&mut self, timeline: TimelineId) -> Result<()> {
        let segments = self.survey.timelines.get(&timeline).map(|t| &t.segments);
        let name = segments
            .and_then(Runs::bounds)
            .and_then(|(_, last)| last.name(timeline, self.survey.segment_size));
        if let Some(name) = name {
            let key = self.layout.segment(name);
            if let Some(meta) = self.store.head(&key)? {
                self.dated(meta.modified, &key);
            }
        }
        Ok(())
    }

    fn conflicts(&mut self) -> Result<()> {
        let prefix = self.layout.conflicts();
        for listed in self.store.list(&prefix)? {
            let name = healed_base(&listed.name).unwrap_or(&listed.name);
            let offered = name.rsplit_once('-').map(|(name, _)| name.parse());
            if let Some(Ok(offered)) = offered {
                let key = Key::new(format!("{prefix}/{}", listed.name))?;
                self.survey.conflicts.push((offered, key));
            }
        }
        self.survey.conflicts.sort();
        Ok(())
    }

    /// What lies in a home of a timeline that is not the segment's own: below `lives/`, and under plain keys behind a fork.
    fn shadowed(&mut self) -> Result<()> {
        let timelines: Vec<TimelineId> = self.survey.timelines.keys().copied().collect();
        for timeline in timelines {
            let homes = stored_homes(self.store, self.layout, timeline)?;
            // Without a life nothing lies elsewhere.
            for home in homes.iter().filter(|_| homes.len() > 1) {
                self.shadowed_in(home)?;
            }
        }
        self.survey.shadowed.sort();
        Ok(())
    }

    fn shadowed_in(&mut self, home: &Home) -> Result<()> {
        for inner in self.store.list(home.prefix())? {
            let prefix = format!("{}/{}", home.prefix(), inner.name);
            let is_log = inner.name.len() == 8;
            if !inner.is_prefix || !(is_log || ["partial", "open"].contains(&&*inner.name)) {
                continue;
            }
            for listed in self.store.list(&prefix)? {
                let name = listed.name.parse::<SegmentName>();
                let Some(name) = name.ok().filter(|n| self.layout.home_of(*n) != *home) else {
                    continue;
                };
                let key = format!("{prefix}/{}", listed.name);
                match &*inner.name {
                    "open" => {
                        for one in self.store.list(&key)? {
                            let key = Key::new(format!("{key}/{}", one.name))?;
                            self.survey.shadowed.push((WalFileName::Segment(name), key));
                        }
                    }
                    "partial" => {
                        let name = WalFileName::Partial(name);
                        self.survey.shadowed.push((name, Key::new(key)?));
                    }
                    _ => {
                        let name = WalFileName::Segment(name);
                        self.survey.shadowed.push((name, Key::new(key)?));
                    }
                }
            }
        }
        Ok(())
    }

    fn unfinished(&mut self) -> Result<()> {
        let own = format!("{}/", self.layout.prefix());
        let others = format!("{}/", crate::repo::scope::CLUSTERS);
        self.survey.unfinished = self
            .store
            .irregular()?
            .into_iter()
            .filter(|i| i.is_unfinished)
            .filter(|i| i.path.starts_with(&own) || !i.path.starts_with(&others))
            .collect();
        Ok(())
    }
}

fn is_tombstone(store: &dyn Store, key: &Key) -> Result<bool> {
    let Some(bytes) = get(store, key, json::ROOT_LIMIT_BYTES)? else {
        return Ok(false);
    };
    json::decode::<Tombstone>(key, root::TOMBSTONE, &bytes).map(|_| true)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::event::Event;
    use crate::store::file::FileStore;
    use crate::store::put;

    /// The parts of a backup that began after the events were read, seen by a janitor whose clock is far ahead.
    #[test]
    fn a_reservation_that_was_made_while_the_survey_was_read_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let layout = ClusterLayout::new("main", 7).unwrap();
        let mut survey = Survey::empty(SegmentSize::DEFAULT);
        let mut reading = Reading {
            store: &store,
            layout: &layout,
            survey: &mut survey,
        };
        reading.events().unwrap();
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let begin = Event {
            event: "begin".into(),
            subject: id.to_string(),
            ..Event::default()
        };
        event::begin(&store, &layout, &begin).unwrap();
        let part = crate::repo::id::PartName {
            id: id.clone(),
            number: 0,
        };
        put(&store, &layout.pack(&part), b"x").unwrap();
        reading.manifests().unwrap();
        reading.parts(PartKind::Pack).unwrap();
        reading.ages().unwrap();
        assert!(survey.ids.get(&id).unwrap().begin().is_some());
    }
}
