//! Everything that a repository holds of one cluster, as plain data: the input of what is kept and what goes.
//!
//! An [`super::inventory::Inventory`] is what plans of recovery need. A survey also has claims, reservations, layers,
//! packs, refused copies and leftovers. Each survey is read anew. It lists objects that cannot be read and checked: a
//! caller that deletes must then stop.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use super::increment::OpenSegment;
use super::inventory::{self, HistoryFile, Timeline, is_elsewhere};
use super::path::Path;
use super::stored_wal;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::catalog::{self, Catalog, Manifest, Needs, Parts, Reduced, by_writer};
use crate::repo::event::{self, Recorded};
use crate::repo::id::BackupId;
use crate::repo::layout::{ClusterLayout, Home};
use crate::repo::lives::{Lives, stored_homes};
use crate::repo::portion::ReadBack;
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::Stored;
use crate::repo::root::outline::Outline;
use crate::repo::scope::{Scope, healed_base};
use crate::repo::wal_proof::{RawHash, WalProof};
use crate::store::{Key, Store, beside};

/// The content of one cluster's prefix.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// The catalog, which every scope has.
    pub catalog: Catalog<Root>,
    /// WAL segment size at registration.
    pub segment_size: SegmentSize,
    /// Other segment sizes that were accepted later, or may have been: names then mean two positions.
    pub has_other_sizes: bool,
    /// Archived history and WAL of each timeline.
    pub timelines: BTreeMap<TimelineId, Timeline>,
    /// When the store received the newest WAL of each timeline, as far as that is known.
    pub newest_wal: BTreeMap<TimelineId, TimestampTz>,
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
    /// Segments of which an event cannot be read.
    pub doubted_segments: BTreeSet<SegmentName>,
}

/// A survey has what the catalog of its scope has.
impl Deref for Survey {
    type Target = Catalog<Root>;

    fn deref(&self) -> &Catalog<Root> {
        &self.catalog
    }
}

impl DerefMut for Survey {
    fn deref_mut(&mut self) -> &mut Catalog<Root> {
        &mut self.catalog
    }
}

/// The content of one backup id of a cluster.
pub type Subject = catalog::Subject<Root>;

/// A root, reduced to what decides about keeping.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    /// The start of replay.
    pub start_lsn: Lsn,
    /// End of the WAL that the backup needs.
    pub stop_lsn: Lsn,
    /// From here on the restored cluster is consistent.
    pub consistent_lsn: Lsn,
    pub start_timeline: TimelineId,
    /// Timeline at the stop.
    pub timeline: TimelineId,
    /// That timeline's history, as the root has it.
    pub history: Option<History>,
    /// Server's clock at the stop.
    pub stop_time: TimestampTz,
    /// Raw bytes of all files.
    pub size_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Damage of its pages at the time of the backup.
    pub damage: Option<String>,
    /// Proof of its WAL from the time of the backup; none in backups of earlier pitr versions.
    pub wal_proof: Option<WalProof>,
    /// The segment of its WAL that another server wrote, as its proof tells; looked for by [`Survey::compared`] alone. As the links tell, by expiry.
    pub foreign: Option<SegmentName>,
    /// The later timelines that do not go on from it, although their positions say so, each with its copy of the segment in which the backup stops: that begins
    /// with other WAL. Looked for by [`Survey::compared`] alone.
    pub strays: BTreeMap<TimelineId, SegmentName>,
    /// The later timelines that have a copy of that segment, where nothing tells whether it is the backup's own WAL: without keys, of earlier versions, and where the
    /// copy cannot be read. Each may be a stray. Looked for by [`Survey::compared`] alone.
    pub unsure: BTreeSet<TimelineId>,
    /// Layer objects it names, by the id that wrote them.
    pub layers: Parts,
    /// Packs it names.
    pub packs: Parts,
}

impl Needs for Root {
    fn needs(&self) -> (&Parts, &Parts) {
        (&self.layers, &self.packs)
    }
}

impl Reduced for Root {
    fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<Root>> {
        Outline::stored(store, scope, id)?.reduced(|root| Root::reduce(&root))
    }
}

impl Root {
    /// Whether one of the two was compacted from the other: no two backups stop at one moment of one server's clock.
    pub fn is_twin(&self, other: &Root) -> bool {
        let moment = |root: &Root| {
            let positions = (root.start_lsn, root.stop_lsn, root.consistent_lsn);
            (root.timeline, positions, root.stop_time, root.size_bytes)
        };
        moment(self) == moment(other)
    }

    fn reduce(root: &Outline) -> Result<Root> {
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
            size_bytes: root.size_bytes,
            stored_bytes: root.stored_bytes,
            damage: root.damage(),
            wal_proof: root.wal_proof.clone(),
            foreign: None,
            strays: BTreeMap::new(),
            unsure: BTreeSet::new(),
            layers: by_writer(root.layers()),
            packs: by_writer(root.packs()),
        })
    }

    /// The first or last segment of its WAL, where what is stored is another server's.
    fn foreign(
        &self,
        repository: &Repository,
        (layout, size, major): (&ClusterLayout, SegmentSize, u32),
    ) -> Result<Option<SegmentName>> {
        let last = SegmentNumber::ending_at(self.stop_lsn, size).name(self.timeline, size);
        // Nothing tells whose it is without a proof.
        let in_life = last.filter(|name| layout.lives().of(*name).is_some());
        let Some(proof) = &self.wal_proof else {
            return Ok(in_life);
        };
        let foreign = proof.disagreement(repository.store(), layout)?;
        // Its last segment was not whole when the root was written.
        let (None, Some(name), None) = (&foreign, in_life, proof.last.segment_hash) else {
            return Ok(foreign);
        };
        let segment = OpenSegment { name, size, major };
        let is_own = match proof.tail() {
            Some((_, length_bytes, hash)) => {
                stored_wal::has_prefix(repository, layout, &segment, (length_bytes, hash))?
            }
            None => false,
        };
        Ok((!is_own).then_some(name))
    }
}

#[cfg(test)]
impl Root {
    /// A backup of which tests give the WAL alone.
    pub fn sample(timeline: TimelineId, start_lsn: Lsn, stop_lsn: Lsn) -> Root {
        Root {
            start_lsn,
            stop_lsn,
            consistent_lsn: stop_lsn,
            start_timeline: timeline,
            timeline,
            history: None,
            stop_time: TimestampTz(0),
            size_bytes: 1,
            stored_bytes: 1,
            damage: None,
            wal_proof: None,
            foreign: None,
            strays: BTreeMap::new(),
            unsure: BTreeSet::new(),
            layers: BTreeMap::new(),
            packs: BTreeMap::new(),
        }
    }
}

impl Survey {
    /// Returns the survey of a cluster of which nothing is stored.
    pub fn empty(segment_size: SegmentSize) -> Survey {
        Survey {
            catalog: Catalog::empty(),
            segment_size,
            has_other_sizes: false,
            timelines: BTreeMap::new(),
            newest_wal: BTreeMap::new(),
            labels: Vec::new(),
            increments: BTreeMap::new(),
            conflicts: Vec::new(),
            lives: Lives::default(),
            shadowed: Vec::new(),
            segment_events: BTreeMap::new(),
            doubted_segments: BTreeSet::new(),
        }
    }

    /// Reads what the repository holds of a registered cluster, and compares the WAL of its backups. Nobody looks for what unfinished writes left: that
    /// walks through everything, and is done once for all scopes.
    ///
    /// # Errors
    /// Errors of the store. Damage of single objects is part of the answer.
    pub fn compared(repository: &Repository, registration: &Registration) -> Result<Survey> {
        let mut survey = Survey::without_leftovers(repository, registration)?;
        let layout = survey.layout(registration)?;
        survey.compare_wal(repository, &layout, registration.major)?;
        survey.find_strays(repository, &layout, registration.major)?;
        Ok(survey)
    }

    /// As [`Survey::compared`], without a look at WAL.
    ///
    /// # Errors
    /// Those of [`Survey::compared`].
    pub fn without_leftovers(
        repository: &Repository,
        registration: &Registration,
    ) -> Result<Survey> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        let segment_size = SegmentSize::new(registration.segment_size_bytes)?;
        let mut survey = Survey::empty(segment_size);
        let lives = survey.found(Lives::read(repository, &layout))?;
        survey.lives = lives.unwrap_or_default();
        let layout = layout.with_lives(survey.lives.clone());
        let sizes = survey.found(repository.segment_sizes(&layout, registration))?;
        survey.has_other_sizes = sizes.is_none_or(|sizes| sizes.len() > 1);
        let store = repository.store();
        let backups = catalog::Reading::begin(store, &layout)?;
        survey.timelines =
            inventory::read_timelines(repository, &layout, segment_size, backups.others())?;
        let mut read = backups.everything()?;
        read.unreadable.splice(0..0, survey.unreadable.drain(..));
        survey.catalog = read;
        let mut reading = Reading {
            store,
            layout: &layout,
            survey: &mut survey,
        };
        reading.segment_events()?;
        reading.wal()?;
        reading.conflicts()?;
        reading.shadowed()?;
        Ok(survey)
    }

    /// Compares each backup's first and last segment with what is stored.
    fn compare_wal(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        major: u32,
    ) -> Result<()> {
        let roots: Vec<&Root> = self.committed().map(|(.., root)| root).collect();
        let of = (layout, self.segment_size, major);
        let read = beside(repository.store(), &roots, |root| {
            root.foreign(repository, of)
        });
        let foreign: Result<Vec<_>> = read.into_iter().collect();
        let mut foreign = foreign?.into_iter();
        for subject in self.ids.values_mut() {
            if let Manifest::Committed(root) = &mut subject.manifest {
                root.foreign = foreign.next().flatten();
            }
        }
        Ok(())
    }

    /// Compares the end of each backup with the copy of it that a later timeline has, which begins behind it in the same segment. A server that was
    /// set back before the backup, and promoted past its end, has another life's there.
    fn find_strays(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        major: u32,
    ) -> Result<()> {
        let size = self.segment_size;
        let known = self.timelines.values().filter_map(|t| match &t.history {
            HistoryFile::Known(history) => Some(Path::new(history.clone(), size)),
            _ => None,
        });
        let paths: Vec<Path> = known.collect();
        // Several timelines may have one copy, and twins one end.
        let mut compared: BTreeMap<(SegmentName, RawHash), Option<bool>> = BTreeMap::new();
        let mut is_own = |name: SegmentName, length_bytes: u64, hash: RawHash| {
            if let Some(is_own) = compared.get(&(name, hash)) {
                return Ok(*is_own);
            }
            let segment = OpenSegment { name, size, major };
            let end = (length_bytes, hash);
            let is_own = stored_wal::is_prefix(repository, layout, &segment, end)?;
            compared.insert((name, hash), is_own);
            Ok::<Option<bool>, Error>(is_own)
        };
        let timelines = &self.timelines;
        for subject in self.catalog.ids.values_mut() {
            let Manifest::Committed(root) = &mut subject.manifest else {
                continue;
            };
            let end = root.wal_proof.as_ref().and_then(WalProof::end);
            let (timeline, stop) = (root.timeline, root.stop_lsn);
            let number = SegmentNumber::ending_at(stop, size);
            let Some(last) = number.name(timeline, size) else {
                continue;
            };
            let is_there = |t| Ok(timelines.get(&t).is_some_and(|t| t.holds(number)));
            let leads = |path: &&Path| path.leads_through(timeline, stop);
            for path in paths.iter().filter(leads) {
                let Some(name) = path.in_place_of(last, is_there)? else {
                    continue;
                };
                let target = path.history().timeline();
                let own = end.map(|(_, length_bytes, hash)| is_own(name, length_bytes, hash));
                match own.transpose()?.flatten() {
                    Some(true) => {}
                    Some(false) => {
                        root.strays.insert(target, name);
                    }
                    None => {
                        root.unsure.insert(target);
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the layout of the surveyed cluster's objects.
    ///
    /// # Errors
    /// `Usage` for an impossible cluster name.
    pub fn layout(&self, registration: &Registration) -> Result<ClusterLayout> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        Ok(layout.with_lives(self.lives.clone()))
    }

    /// Returns the segments that a check found damaged, and those of which an event that cannot be read may say so.
    pub fn suspects(&self) -> BTreeSet<SegmentName> {
        let events = self.segment_events.iter();
        let damaged = events.filter(|(_, events)| !event::damage(events).is_empty());
        let damaged = damaged.map(|(name, _)| *name);
        damaged
            .chain(self.doubted_segments.iter().copied())
            .collect()
    }

    /// Returns the portions of the cluster that were read back, and when.
    pub fn read_back(&self, now: TimestampTz) -> ReadBack {
        let moves = self.lives.moves(self.segment_size);
        ReadBack::new(&self.catalog.checks, &moves, now)
    }
}

struct Reading<'a> {
    store: &'a dyn Store,
    layout: &'a ClusterLayout,
    survey: &'a mut Survey,
}

impl Reading<'_> {
    /// Reads the events about segments; those of timelines and of the cluster only date the repository. Subjects of later versions may have a
    /// thousand events a day, and are passed over.
    fn segment_events(&mut self) -> Result<()> {
        let is_known = |s: &String| s == event::CLUSTER || s.starts_with("wal-");
        let subjects: Vec<String> = self
            .survey
            .others
            .iter()
            .filter(|s| is_known(s))
            .cloned()
            .collect();
        for subject in subjects {
            let read = event::read_all(self.store, self.layout, &subject);
            for event in read.iter().flatten() {
                let key = self.layout.event(&subject, &event.name)?;
                self.survey.dated(event.stored, &key);
            }
            let Some(Ok(segment)) = subject.strip_prefix("wal-").map(str::parse) else {
                continue;
            };
            match read {
                Ok(events) => {
                    let is_own = |e: &Recorded| !is_elsewhere(self.layout, segment, e);
                    let events = events.into_iter().filter(is_own).collect();
                    self.survey.segment_events.insert(segment, events);
                }
                // One of them may say that the segment is damaged.
                Err(e) if e.is_damage() => {
                    self.survey.doubted_segments.insert(segment);
                }
                Err(e) => return Err(e),
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
            let mut newest = self.newest_names(timeline)?;
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
                    // Names tell the order of increments.
                    newest.extend(keys.iter().max().cloned());
                    self.survey.increments.insert(segment, keys);
                }
            }
            self.newest_wal(timeline, &newest)?;
        }
        self.survey.labels.sort_unstable();
        Ok(())
    }

    /// The last whole segment, and the last partial one.
    fn newest_names(&self, timeline: TimelineId) -> Result<Vec<Key>> {
        let Some(held) = self.survey.timelines.get(&timeline) else {
            return Ok(Vec::new());
        };
        let last = held.segments.bounds();
        let name = last.and_then(|(_, last)| last.name(timeline, self.survey.segment_size));
        let partial = held.partials.iter().next_back().copied();
        let partial = partial.map(|name| self.layout.wal_file(WalFileName::Partial(name)));
        let mut keys: Vec<Key> = partial.into_iter().collect();
        keys.extend(name.map(|name| self.layout.segment(name)));
        Ok(keys)
    }

    /// Asks when the store received the newest WAL of a timeline. It is not known where one of the objects is gone meanwhile.
    fn newest_wal(&mut self, timeline: TimelineId, keys: &[Key]) -> Result<()> {
        let mut newest = Some(TimestampTz::NEG_INFINITY).filter(|_| !keys.is_empty());
        for key in keys {
            let meta = self.store.head(key)?;
            if let Some(meta) = &meta {
                self.survey.dated(meta.modified, key);
            }
            newest = newest.zip(meta).map(|(t, meta)| t.max(meta.modified));
        }
        let newest = newest.map(|newest| (timeline, newest));
        self.survey.newest_wal.extend(newest);
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

    /// Lists the WAL in a home that is not its segment's own: below `lives/`, and under plain keys after a fork.
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
}
