//! The WAL that the repositories hold already, as far as streaming has to know; and the gaps that are recorded in them.

use std::collections::BTreeSet;

use super::position::Gap;
use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::timeline::{History, Position, TimelineId};
use crate::plan::cluster::{self, Cluster};
use crate::repo;
use crate::repo::container::Container;
use crate::repo::event::{self, Event, Writer};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::wal::increment::{self, OpenSegment};
use crate::wal::increments::Run;
use crate::wal::last;
use crate::wal::remnant::Remnant;

/// The cluster that is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name in configuration and repositories.
    pub cluster: String,
    /// From pg_control.
    pub system_identifier: u64,
    pub segment_size: SegmentSize,
    /// PostgreSQL major.
    pub major: u32,
}

/// The repositories that count: the required ones, or all when none is.
pub struct Holdings {
    repositories: Vec<Repository>,
    layout: ClusterLayout,
    identity: Identity,
}

/// The end of the WAL in the repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reach {
    /// End of the last whole segment of the server's history, in the repository that reaches least far of those that have one.
    pub end: Option<Position>,
}

/// The parts of a gap that are lost. Only repositories of one key set, or of none, give each other WAL (`repo sync`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The parts that are lost to one repository or more: no other of its key set has them.
    pub parts: Vec<Gap>,
    /// Whether a repository lacks what another of its key set has.
    pub is_held_by_another: bool,
    /// The parts that are lost to each repository.
    of_each: Vec<Vec<Gap>>,
}

/// Behind so many segments in a row that every repository has, folders are listed.
const ROW: u32 = 4;

/// The segments in one folder of a repository.
type Folder = (String, BTreeSet<String>);

/// The folder that was listed last of each repository, for segments that are asked for one after another.
#[derive(Debug, Default)]
pub struct Listings {
    /// Segments in a row that every repository has.
    row: u32,
    of_each: Vec<Option<Folder>>,
}

/// Adds a part, to the last one where they touch. An empty one adds nothing.
fn add(parts: &mut Vec<Gap>, part: Gap) {
    match parts.last_mut() {
        _ if part.from >= part.to => {}
        Some(last) if last.to == part.from => last.to = part.to,
        _ => parts.push(part),
    }
}

/// The repositories that count.
fn counting(repositories: &[config::Repository]) -> Vec<&config::Repository> {
    let required: Vec<_> = repositories.iter().filter(|r| r.required).collect();
    match required.is_empty() {
        true => repositories.iter().collect(),
        false => required,
    }
}

fn open(repository: &config::Repository, nonce: u64) -> Result<Repository> {
    repo::open(repository, nonce)
        .map_err(|e| e.context(format!("open repository \"{}\"", repository.name)))
}

/// The cluster as the first repository that can be read has it registered; `None` when the name has had several clusters, and only
/// the server can tell which it is.
///
/// # Errors
/// `NotFound` when no cluster of this name is registered; when no repository can be read, why the first one cannot.
pub fn registered(
    repositories: &[config::Repository],
    cluster: &str,
    nonce: u64,
) -> Result<Option<Identity>> {
    let mut failure = None;
    for configured in counting(repositories) {
        let read = open(configured, nonce).and_then(|r| r.registrations(cluster));
        match read {
            Ok(registrations) => return identity(&registrations, cluster),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| err!(Config, "no repository is configured")))
}

fn identity(registrations: &[Registration], cluster: &str) -> Result<Option<Identity>> {
    match registrations {
        [] => Err(err!(
            NotFound,
            "cluster \"{cluster}\" is not registered in the repository"
        )
        .hint("Run \"pitr init\" first.")),
        [only] => Ok(Some(Identity {
            cluster: only.name.clone(),
            system_identifier: only.system_identifier,
            segment_size: SegmentSize::new(only.segment_size_bytes)?,
            major: only.major,
        })),
        _ => Ok(None),
    }
}

impl Holdings {
    /// Opens every repository that counts and checks that the cluster is registered.
    ///
    /// # Errors
    /// `WrongCluster` when it is not; what the stores say.
    pub fn open(
        repositories: &[config::Repository],
        identity: &Identity,
        nonce: u64,
    ) -> Result<Holdings> {
        let layout = ClusterLayout::new(&identity.cluster, identity.system_identifier)?;
        let mut opened = Vec::new();
        for configured in counting(repositories) {
            let repository = open(configured, nonce)?;
            repository.require(&layout)?;
            opened.push(repository);
        }
        if opened.is_empty() {
            return Err(err!(Config, "no repository is configured"));
        }
        Ok(Holdings {
            repositories: opened,
            layout,
            identity: identity.clone(),
        })
    }

    /// Returns where the repositories end on the way of this history. Other branches do not count: after a restore to an earlier moment the
    /// archive holds WAL that the server has nothing to do with.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn reach(&self, history: &History) -> Result<Reach> {
        let mut reach = Reach::default();
        for repository in &self.repositories {
            let timelines = self.timelines(repository)?;
            let mut end = None;
            for timeline in timelines.into_iter().rev().filter(|t| history.contains(*t)) {
                end = self.last_segment_end(repository, timeline)?;
                if end.is_some() {
                    break;
                }
            }
            // One that has nothing yet says nothing of the server, and gets what comes from there on: see `covered`.
            reach.end = match (reach.end, end) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        Ok(reach)
    }

    /// Which timeline is the cluster by what all of them hold, with the server's history.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn cluster(&self, history: &History) -> Result<Cluster> {
        cluster::decide_in(&self.repositories, &self.layout, history)
    }

    fn timelines(&self, repository: &Repository) -> Result<BTreeSet<TimelineId>> {
        let listed = repository.store().list(&self.layout.wal())?;
        Ok(listed.iter().filter_map(|l| l.name.parse().ok()).collect())
    }

    fn last_segment_end(
        &self,
        repository: &Repository,
        timeline: TimelineId,
    ) -> Result<Option<Position>> {
        let layout = repository.recent_lives(&self.layout)?;
        let Some(last) = last::whole(repository, &layout, timeline)? else {
            return Ok(None);
        };
        let lsn = last.number(self.identity.segment_size)?.next();
        let lsn = lsn.start_lsn(self.identity.segment_size);
        Ok(Some(Position { timeline, lsn }))
    }

    /// Whether a repository follows a life that `pitr wal resolve` chose, of a timeline of this history.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn has_lives(&self, history: &History) -> Result<bool> {
        for repository in &self.repositories {
            let layout = repository.recent_lives(&self.layout)?;
            let mut lives = layout.lives().iter();
            if lives.any(|life| history.contains(life.segment.timeline)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How far, from its start, every repository has a segment.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn covered(&self, name: SegmentName) -> Result<Lsn> {
        let size = self.identity.segment_size;
        let mut least = name.number(size)?.range(size).end;
        for repository in &self.repositories {
            least = least.min(self.covered_in(repository, name)?);
        }
        Ok(least)
    }

    /// As [`Holdings::covered`], of segments one after another: behind a long absence each would be a request.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn covered_in_order(&self, name: SegmentName, listings: &mut Listings) -> Result<Lsn> {
        let size = self.identity.segment_size;
        let end = name.number(size)?.range(size).end;
        let (mut least, is_in_row) = (end, listings.row >= ROW);
        let of_each = &mut listings.of_each;
        of_each.resize_with(self.repositories.len(), || None);
        for (repository, folder) in self.repositories.iter().zip(of_each) {
            // One that came since the listing, or is not whole, is asked for.
            if !is_in_row || !self.is_listed(repository, name, folder)? {
                least = least.min(self.covered_in(repository, name)?);
            }
        }
        listings.row = match least == end {
            true => listings.row.saturating_add(1),
            false => 0,
        };
        Ok(least)
    }

    /// Whether the listing of its folder names a segment.
    fn is_listed(
        &self,
        repository: &Repository,
        name: SegmentName,
        folder: &mut Option<Folder>,
    ) -> Result<bool> {
        let layout = repository.recent_lives(&self.layout)?;
        let key = layout.segment(name);
        let prefix = key.parent().unwrap_or_default();
        if folder.as_ref().is_none_or(|(known, _)| known != prefix) {
            let listed = repository.store().list(prefix)?;
            let objects = listed.into_iter().filter(|l| !l.is_prefix);
            *folder = Some((prefix.to_owned(), objects.map(|l| l.name).collect()));
        }
        let name = name.to_string();
        Ok(folder
            .as_ref()
            .is_some_and(|(_, names)| names.contains(&name)))
    }

    /// How far, from its start, a repository has a segment.
    fn covered_in(&self, repository: &Repository, name: SegmentName) -> Result<Lsn> {
        let segment = OpenSegment {
            name,
            size: self.identity.segment_size,
            major: self.identity.major,
        };
        let range = segment.range()?;
        let layout = repository.recent_lives(&self.layout)?;
        if repository.store().head(&layout.segment(name))?.is_some() {
            return Ok(range.end);
        }
        let increments = increment::list(repository, &layout, name)?;
        let run = Run::of(segment, &increments)?;
        Ok(run.map_or(range.start, |run| run.end()))
    }

    /// The end of the sound WAL of a segment that a repository has as a partial: of a timeline that was left. Its start, where nothing can be read of one.
    fn partial_end(&self, repository: &Repository, name: SegmentName) -> Result<Lsn> {
        let segment = OpenSegment {
            name,
            size: self.identity.segment_size,
            major: self.identity.major,
        };
        let start = segment.range()?.start;
        let layout = repository.recent_lives(&self.layout)?;
        let partial = layout.wal_file(WalFileName::Partial(name));
        if repository.store().head(&partial)?.is_none() {
            return Ok(start);
        }
        match Remnant::find(repository, &layout, &segment) {
            Ok(remnant) => Ok(remnant.map_or(start, |remnant| remnant.valid_end())),
            // A host without keys cannot read it.
            Err(e) if e.is_damage() || e.code() == Code::Key => Ok(start),
            Err(e) => Err(e),
        }
    }

    /// Returns the parts of a gap that are lost: what a repository has is not lost to the others of its key set, which can get it.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn lost(&self, gap: &Gap) -> Result<Lost> {
        let size = self.identity.segment_size;
        let mut lost = Lost {
            parts: Vec::new(),
            is_held_by_another: false,
            of_each: vec![Vec::new(); self.repositories.len()],
        };
        let part = |from: Lsn, to: Lsn| Gap { from, to, ..*gap };
        let mut at = gap.from;
        while at < gap.to {
            let to = SegmentNumber::of(at, size).range(size).end.min(gap.to);
            let name = SegmentName::of(gap.timeline, at, size);
            let mut reaches: Vec<(&Option<String>, Lsn)> = Vec::new();
            for repository in &self.repositories {
                let mut reach = self.covered_in(repository, name)?;
                // A partial is that of the last segment.
                if reach < to && to == gap.to {
                    reach = reach.max(self.partial_end(repository, name)?);
                }
                let reach = reach.clamp(at, to);
                reaches.push((&repository.marker().key_set, reach));
            }
            let mut least = to;
            for ((key_set, own), parts) in reaches.iter().zip(&mut lost.of_each) {
                let givers = reaches.iter().filter(|(other, _)| other == key_set);
                let given = givers.map(|(_, reach)| *reach).max().unwrap_or(*own);
                lost.is_held_by_another |= *own < given;
                add(parts, part(given, to));
                least = least.min(given);
            }
            add(&mut lost.parts, part(least, to));
            at = to;
        }
        Ok(lost)
    }

    /// Whether every repository that has this segment, and can tell, has it with this hash.
    ///
    /// # Errors
    /// Errors of the stores, but for damage, which verify reports.
    pub fn has(&self, name: SegmentName, hash: &[u8; 32]) -> Result<bool> {
        for repository in &self.repositories {
            let layout = repository.recent_lives(&self.layout)?;
            let stored = repository.store().open(&layout.segment(name));
            let stored = stored.and_then(|object| object.map(Container::open).transpose());
            match stored {
                Ok(Some(stored)) if !stored.has_hash(hash) => return Ok(false),
                Err(e) if !matches!(e.code(), Code::Damaged | Code::Key) => return Err(e),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Records in each repository what is lost to it, unless that is recorded already, by itself or in a larger gap; returns whether it
    /// was new to one.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn record(&self, lost: &Lost, writer: &Writer<'_>) -> Result<bool> {
        let mut is_new = false;
        for (repository, parts) in self.repositories.iter().zip(&lost.of_each) {
            for gap in parts {
                is_new |= self.record_in(repository, gap, writer)?;
            }
        }
        Ok(is_new)
    }

    fn record_in(&self, repository: &Repository, gap: &Gap, writer: &Writer<'_>) -> Result<bool> {
        let subject = format!("wal-{}", gap.timeline);
        let store = repository.store();
        let layout = repository.recent_lives(&self.layout)?;
        let size = self.identity.segment_size;
        let event = Event {
            from_lsn: Some(gap.from),
            to_lsn: Some(gap.to),
            copy: event::life_at(&layout, gap.timeline, gap.from, size),
            ..writer.event("gap", &subject)
        };
        let known = event::read_all(store, &self.layout, &subject)?;
        let holds = |e: &Event| {
            let is_of_life = e.event == event.event && e.copy == event.copy;
            let begins = e.from_lsn.is_some_and(|from| from <= gap.from);
            is_of_life && begins && e.to_lsn.is_some_and(|to| to >= gap.to)
        };
        if known
            .iter()
            .any(|known| known.counts() && holds(&known.event))
        {
            return Ok(false);
        }
        writer
            .record(store, &self.layout, &event)
            .map_err(|e: Error| e.context("record a gap"))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::{self, Craft};
    use crate::pg::rmgr;
    use crate::pg::time::TimestampTz;
    use crate::pg::timeline::tli;
    use crate::pg::version::Major;
    use crate::repo::container::{Codec, ContainerWriter, Identity as Contained, Kind};
    use crate::store;
    use crate::store::file::FileStore;
    use crate::wal::index::SegmentIndex;

    const MIB: u64 = 1 << 20;

    fn holdings(directory: &tempfile::TempDir, count: usize) -> Holdings {
        let create = |index: usize| {
            let path = directory.path().join(index.to_string());
            let store = FileStore::create(&path, 1).unwrap();
            Repository::create(Box::new(store), 1, TimestampTz(0))
                .unwrap()
                .0
        };
        Holdings {
            repositories: (0..count).map(create).collect(),
            layout: ClusterLayout::new("main", 7).unwrap(),
            identity: Identity {
                cluster: "main".to_owned(),
                system_identifier: 7,
                segment_size: SegmentSize::new(MIB).unwrap(),
                major: 17,
            },
        }
    }

    fn gap(from: u64, to: u64) -> Gap {
        Gap {
            timeline: tli(1),
            from: Lsn(from),
            to: Lsn(to),
        }
    }

    fn end(lsn: u64) -> Option<Position> {
        Some(Position {
            timeline: tli(1),
            lsn: Lsn(lsn),
        })
    }

    impl Holdings {
        fn name(&self, timeline: u32, number: u64) -> SegmentName {
            SegmentName::of(tli(timeline), Lsn(number * MIB), self.identity.segment_size)
        }

        /// Stores an increment of a segment of timeline 1.
        fn put(&self, index: usize, number: u64, from: u64, bytes: &[u8]) {
            let segment = OpenSegment {
                name: self.name(1, number),
                size: self.identity.segment_size,
                major: 17,
            };
            let from = Lsn(number * MIB + from);
            let repository = &self.repositories[index];
            increment::put(repository, &self.layout, &segment, from, bytes).unwrap();
        }

        fn store(&self, index: usize, timeline: u32, numbers: std::ops::Range<u64>) {
            for number in numbers {
                let key = self.layout.segment(self.name(timeline, number));
                store::put(self.repositories[index].store(), &key, b"x").unwrap();
            }
        }
    }

    #[test]
    fn the_end_is_that_of_the_servers_history_and_of_the_repository_that_is_behind() {
        let directory = tempfile::tempdir().unwrap();
        let holdings = holdings(&directory, 2);
        let first = History::root(tli(1));
        assert_eq!(holdings.reach(&first).unwrap(), Reach::default());
        // Across a log id, the last is still the highest.
        holdings.store(0, 1, 4090..4100);
        let third = first.child(tli(3), Lsn(4094 * MIB), b"restored");
        let reach = holdings.reach(&third).unwrap();
        let why = "the other has nothing, and says nothing";
        assert_eq!(reach.end, end(4100 * MIB), "{why}");
        holdings.store(1, 1, 4090..4093);
        holdings.store(0, 2, 5000..5001);
        holdings.store(1, 2, 5000..5001);
        let reach = holdings.reach(&third).unwrap();
        assert_eq!(reach.end, end(4093 * MIB));
    }

    #[test]
    fn a_segment_is_covered_as_far_as_every_repository_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let holdings = holdings(&directory, 2);
        holdings.store(0, 1, 3..4);
        let name = holdings.name(1, 3);
        let covered = || holdings.covered(name).unwrap().0 - 3 * MIB;
        assert_eq!(covered(), 0);
        holdings.put(1, 3, 0, &[1; 500]);
        holdings.put(1, 3, 700, &[1; 50]);
        assert_eq!(covered(), 500);
        holdings.store(1, 1, 3..4);
        assert_eq!(covered(), MIB);
    }

    #[test]
    fn w83_segments_in_order_are_covered_as_each_of_them_is() {
        let directory = tempfile::tempdir().unwrap();
        let holdings = holdings(&directory, 2);
        // Across a log id, with a hole in each repository.
        holdings.store(0, 1, 4080..4110);
        holdings.store(1, 1, 4080..4090);
        holdings.put(1, 4090, 0, &[1; 500]);
        holdings.store(1, 1, 4091..4105);
        let mut listings = Listings::default();
        let mut rows = Vec::new();
        for number in 4079..4112 {
            let name = holdings.name(1, number);
            let covered = holdings.covered_in_order(name, &mut listings).unwrap();
            assert_eq!(covered, holdings.covered(name).unwrap(), "{number}");
            rows.push(listings.row);
        }
        assert_eq!((rows[0], rows[11], rows[25], rows[32]), (0, 0, 14, 0));
        let listed = listings.of_each[0].as_ref();
        assert!(listed.is_some_and(|(_, names)| names.len() == 14));
        // One that comes behind the listing is seen.
        let mut listings = Listings::default();
        for number in 4091..4105 {
            let name = holdings.name(1, number);
            holdings.covered_in_order(name, &mut listings).unwrap();
        }
        holdings.store(1, 1, 4105..4106);
        let name = holdings.name(1, 4105);
        let covered = holdings.covered_in_order(name, &mut listings).unwrap();
        assert_eq!(covered, Lsn(4106 * MIB));
    }

    #[test]
    fn t82_what_one_of_the_repositories_has_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let holdings = holdings(&directory, 2);
        holdings.store(0, 1, 3..5);
        holdings.store(1, 1, 6..7);
        holdings.put(1, 5, 0, &[1; 500]);
        let lost = holdings.lost(&gap(3 * MIB + 40, 5 * MIB)).unwrap();
        assert_eq!((lost.parts, lost.is_held_by_another), (Vec::new(), true));
        let lost = holdings.lost(&gap(3 * MIB + 40, 8 * MIB + 7)).unwrap();
        let parts = [gap(5 * MIB + 500, 6 * MIB), gap(7 * MIB, 8 * MIB + 7)];
        assert_eq!(lost.parts, parts);
        assert_eq!(lost.of_each, [parts, parts]);
        let lost = holdings.lost(&gap(7 * MIB, 8 * MIB)).unwrap();
        assert!(!lost.is_held_by_another);
    }

    #[test]
    fn what_only_repositories_of_another_key_set_have_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut holdings = holdings(&directory, 1);
        holdings.store(0, 1, 3..5);
        let path = directory.path().join("sealed");
        let store = FileStore::create(&path, 1).unwrap();
        let key_set = Some("0123456789abcdef".repeat(2));
        let sealed =
            Repository::create_with(Box::new(store), 2, TimestampTz(0), key_set, None).unwrap();
        holdings.repositories.push(sealed.0);
        let gap = |from: u64, to: u64| gap(from * MIB, to * MIB);
        let lost = holdings.lost(&gap(3, 6)).unwrap();
        assert_eq!(lost.parts, [gap(3, 6)]);
        assert_eq!(lost.of_each, [[gap(5, 6)], [gap(3, 6)]]);
        assert!(!lost.is_held_by_another);
        // A third one has the keys of the first.
        let path = directory.path().join("plain");
        let store = FileStore::create(&path, 1).unwrap();
        let plain = Repository::create(Box::new(store), 3, TimestampTz(0)).unwrap();
        holdings.repositories.push(plain.0);
        let lost = holdings.lost(&gap(3, 6)).unwrap();
        assert_eq!(lost.of_each, [[gap(5, 6)], [gap(3, 6)], [gap(5, 6)]]);
        assert!(lost.is_held_by_another);
    }

    #[test]
    fn w86_what_a_partial_has_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut holdings = holdings(&directory, 1);
        let mut craft = Craft::new(Major::V17);
        let data = craft::long_main_data(&[7; 5000]);
        craft.record(rmgr::XLOG, 0x20, 0, &data);
        let end = craft.record(rmgr::XLOG, 0x20, 0, &data).1;
        craft.bytes.resize(1 << 20, 0);
        let of = craft.identity.system_identifier;
        holdings.layout = ClusterLayout::new("main", of).unwrap();
        let lost = |gap: Gap| holdings.lost(&gap).unwrap().parts;
        let whole = gap(MIB + 100, end.0);
        assert_eq!(lost(whole), [whole]);
        let segment = OpenSegment {
            name: holdings.name(1, 1),
            size: craft.identity.segment_size,
            major: 17,
        };
        let name = WalFileName::Partial(segment.name);
        let range = segment.range().unwrap();
        let identity = Contained {
            name: name.to_string(),
            ..segment.identity(of, range, *blake3::hash(&craft.bytes).as_bytes())
        };
        let key = holdings.layout.wal_file(name);
        let object = holdings.repositories[0].store().create(&key).unwrap();
        let mut writer = ContainerWriter::new(object, Kind::Partial, Codec::Lz4).unwrap();
        writer.write(&craft.bytes).unwrap();
        let sections = SegmentIndex::nothing(range.start).sections(true);
        let object = writer.finish(&identity, sections).unwrap();
        object.publish().unwrap();
        assert_eq!(lost(whole), Vec::new());
        let behind = gap(end.0, end.0 + 8);
        assert_eq!(lost(gap(MIB + 100, end.0 + 8)), [behind]);
        // A damaged one is none.
        let store = holdings.repositories[0].store();
        assert!(store.delete(&key).unwrap());
        store::put(store, &key, b"x").unwrap();
        assert_eq!(lost(whole), [whole]);
    }

    #[test]
    fn a_gap_is_recorded_once() {
        let directory = tempfile::tempdir().unwrap();
        let holdings = holdings(&directory, 1);
        for (nonce, to) in [(1, 2 * MIB), (2, 2 * MIB), (3, 3 * MIB)] {
            let (clock, random) = (|| TimestampTz(0), || nonce);
            let writer = Writer::new(&clock, &random);
            let lost = holdings.lost(&gap(MIB, to)).unwrap();
            holdings.record(&lost, &writer).unwrap();
        }
        let store = holdings.repositories[0].store();
        let events = event::read_all(store, &holdings.layout, "wal-00000001").unwrap();
        let ends: Vec<_> = events.iter().filter_map(|e| e.event.to_lsn).collect();
        assert_eq!(ends, [Lsn(2 * MIB), Lsn(3 * MIB)]);
    }
}
