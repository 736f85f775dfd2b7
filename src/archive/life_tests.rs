//! The rules that join a segment to its neighbours, and those that refuse it. The tests make two lives of one cluster
//! by hand, one fact at a time.

use std::path::{Path, PathBuf};

use super::asking::Inquiry;
use super::fetch::{Fetch, Fetched, Place, Questions, fetch};
use super::life;
use super::push::{Archived, Content, Push, Pushed, may_be_refused, push, push_content};
use crate::config::{self, Location};
use crate::error::{Code, Result};
use crate::pg::craft::Craft;
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::progress::Silent;
use crate::repo::container::{Codec, Container};
use crate::repo::crafted;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::wal::index::{self, flag};
use crate::wal::link::{Before, Link};

pub(super) const SEGMENT: usize = 1 << 20;

/// Segments as a server has them in its pg_wal, counted from 1.
pub(super) struct Life {
    data: PathBuf,
    timeline: TimelineId,
}

/// An empty repository, and room for lives.
pub(super) struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        crafted::create(&directory.path().join("r"), &Craft::new(Major::V17));
        Bench { directory }
    }

    pub(super) fn with_one() -> (Bench, Life) {
        let bench = Bench::new();
        let one = bench.life("one", 1);
        (bench, one)
    }

    pub(super) fn with_two() -> (Bench, Life, Life) {
        let (bench, one) = Bench::with_one();
        let other = bench.life("other", 2);
        (bench, one, other)
    }

    /// How many refused copies are kept.
    pub(super) fn kept(&self) -> usize {
        self.keys(&self.layout().conflicts()).len()
    }

    /// The repository as a new process sees it.
    pub(super) fn repository(&self) -> Repository {
        let path = self.directory.path().join("r");
        crate::repo::open(&config::Repository::at(Location::File(path)), 9).unwrap()
    }

    pub(super) fn layout(&self) -> ClusterLayout {
        let identifier = Craft::new(Major::V17).identity.system_identifier;
        ClusterLayout::new("main", identifier).unwrap()
    }

    /// Five segments of a life; those of two lives with other bytes end at the same positions.
    pub(super) fn life(&self, name: &str, byte: u8) -> Life {
        self.crafted(name, Craft::new(Major::V17), byte)
    }

    fn crafted(&self, name: &str, mut craft: Craft, byte: u8) -> Life {
        for _ in 0..5 {
            craft.main(0, 0x20, 0, &[byte; 40]);
            craft.switch();
        }
        let life = Life {
            data: self.directory.path().join(name),
            timeline: TimelineId::FIRST,
        };
        std::fs::create_dir_all(life.data.join("pg_wal")).unwrap();
        for (n, bytes) in craft.bytes.chunks_exact(SEGMENT).enumerate() {
            std::fs::write(life.path(n as u64 + 1), bytes).unwrap();
        }
        life
    }

    fn link(&self, life: &Life, number: u64) -> Link {
        Link::read(&self.container(life, number)).unwrap()
    }

    fn container(&self, life: &Life, number: u64) -> Container {
        let key = self.layout().segment(life.name(number));
        let repository = self.repository();
        Container::open(repository.store().open(&key).unwrap().unwrap()).unwrap()
    }
}

impl Life {
    pub(super) fn name(&self, number: u64) -> SegmentName {
        let size = SegmentSize::new(SEGMENT as u64).unwrap();
        crate::pg::segment::SegmentNumber(number)
            .name(self.timeline, size)
            .unwrap()
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.data.join("pg_wal").join(self.name(number).to_string())
    }

    pub(super) fn what<'a>(
        &self,
        repository: &'a Repository,
        path: &'a Path,
        number: u64,
    ) -> Push<'a> {
        Push {
            repository,
            cluster: "main",
            path,
            name: WalFileName::Segment(self.name(number)),
            codec: Codec::Lz4,
            beside_others: true,
            known: None,
            is_backfill: false,
        }
    }

    pub(super) fn push(&self, repository: &Repository, number: u64) -> Result<Archived> {
        let path = self.path(number);
        push(&self.what(repository, &path, number))
    }
}

fn refused(pushed: Result<Archived>) {
    let error = pushed.err().unwrap();
    assert_eq!(error.code(), Code::Conflict, "{error}");
    assert!(error.to_string().contains("another server wrote it"));
}

#[test]
fn a_segment_is_refused_behind_one_of_another_life_in_one_process_and_in_the_next() {
    let (bench, one, other) = Bench::with_two();
    let repository = bench.repository();
    one.push(&repository, 1).unwrap();
    refused(other.push(&repository, 2));
    refused(other.push(&bench.repository(), 2));
    // Nothing was kept of it, and the first life goes on.
    let (_, warnings) = one.push(&repository, 2).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    one.push(&bench.repository(), 3).unwrap();
    assert!(matches!(bench.link(&one, 3).before, Before::Known(..)));
}

#[test]
fn a_file_that_has_rotted_on_the_server_tells_of_no_other_life() {
    for is_in_memory in [true, false] {
        let (bench, one) = Bench::with_one();
        let repository = bench.repository();
        one.push(&repository, 1).unwrap();
        crafted::rot(&one.path(1), 60);
        let repository = match is_in_memory {
            true => repository,
            false => bench.repository(),
        };
        one.push(&repository, 2).unwrap();
    }
}

#[test]
fn a_hole_before_a_segment_is_warned_of_unless_that_segment_is_on_its_way() {
    let (bench, one) = Bench::with_one();
    let repository = bench.repository();
    // The first that is archived has nothing before it.
    assert!(one.push(&repository, 2).unwrap().1.is_empty());
    let key = bench.layout().segment(one.name(3));
    let flight = repository.begin_flight(key);
    assert!(one.push(&repository, 4).unwrap().1.is_empty());
    drop(flight);
    let stored = bench.layout().segment(one.name(4));
    std::fs::remove_file(bench.directory.path().join("r").join(stored.as_str())).unwrap();
    let (_, warnings) = one.push(&bench.repository(), 4).unwrap();
    let hole = format!("lacks segment \"{}\"", one.name(3));
    assert!(
        warnings.len() == 1 && warnings[0].contains(&hole),
        "{warnings:?}"
    );
}

#[test]
fn l20_a_segment_that_the_archived_one_after_does_not_continue_is_refused() {
    let (bench, one, other) = Bench::with_two();
    other.push(&bench.repository(), 2).unwrap();
    let error = one.push(&bench.repository(), 1).err().unwrap();
    assert_eq!(error.code(), Code::Conflict, "{error}");
    assert!(
        error.to_string().contains("does not continue it"),
        "{error}"
    );
    assert_eq!(bench.kept(), 1, "it is kept");
    // The server of that one brings what comes before.
    other.push(&bench.repository(), 1).unwrap();
    // A file that has rotted is archived as it is.
    let (bench, one) = Bench::with_one();
    one.push(&bench.repository(), 2).unwrap();
    crafted::rot(&one.path(1), 70);
    let (_, warnings) = one.push(&bench.repository(), 1).unwrap();
    assert!(warnings[0].contains("is damaged"), "{warnings:?}");
    // Its own successor is nothing to warn of.
    let (bench, one) = Bench::with_one();
    one.push(&bench.repository(), 2).unwrap();
    assert!(one.push(&bench.repository(), 1).unwrap().1.is_empty());
}

/// Neither server has what comes before: the positions alone tell the two apart.
#[test]
fn l20_a_segment_whose_writer_had_none_before_it_is_joined_to_none_that_ends_elsewhere() {
    let (bench, one) = Bench::with_one();
    let mut craft = Craft::new(Major::V17);
    craft.main(0, 0x20, 0, &[3; 400]);
    let longer = bench.crafted("longer", craft, 3);
    std::fs::remove_file(one.path(1)).unwrap();
    one.push(&bench.repository(), 2).unwrap();
    assert_eq!(bench.link(&one, 2).before, Before::Unknown);
    let error = longer.push(&bench.repository(), 1).err().unwrap();
    assert_eq!(error.code(), Code::Conflict, "{error}");
    assert_eq!(bench.kept(), 1, "it is kept");

    let (bench, one) = Bench::with_one();
    let mut craft = Craft::new(Major::V17);
    craft.main(0, 0x20, 0, &[3; 400]);
    let longer = bench.crafted("longer", craft, 3);
    longer.push(&bench.repository(), 1).unwrap();
    std::fs::remove_file(one.path(1)).unwrap();
    let error = one.push(&bench.repository(), 2).err().unwrap();
    assert_eq!(error.code(), Code::Conflict, "{error}");
    assert!(error.to_string().contains("does not end with"), "{error}");
    std::fs::remove_file(longer.path(1)).unwrap();
    longer.push(&bench.repository(), 2).unwrap();
}

#[test]
fn a_segment_that_is_brought_in_later_is_one_that_the_archived_one_continues() {
    let (bench, one, other) = Bench::with_two();
    one.push(&bench.repository(), 3).unwrap();
    let repository = bench.repository();
    let backfill = |life: &Life, number| {
        let path = life.path(number);
        push(&Push {
            is_backfill: true,
            ..life.what(&repository, &path, number)
        })
    };
    let error = backfill(&other, 2).err().unwrap();
    assert_eq!(error.code(), Code::Conflict, "{error}");
    assert!(error.to_string().contains("does not continue"), "{error}");
    let key = bench.layout().segment(other.name(2));
    assert!(repository.store().head(&key).unwrap().is_none());
    assert!(backfill(&one, 2).unwrap().1.is_empty());
    // In a hole of several segments the last one speaks for all.
    let error = backfill(&other, 1).err().unwrap();
    assert!(error.to_string().contains("does not continue"), "{error}");
    assert!(backfill(&one, 1).unwrap().1.is_empty());
    // On the other side, too.
    refused(backfill(&other, 4));
    backfill(&one, 4).unwrap();
}

#[test]
fn a_neighbour_of_another_cluster_or_another_size_is_not_at_hand() {
    for is_other_cluster in [true, false] {
        let (bench, one) = Bench::with_one();
        let bytes = match is_other_cluster {
            true => {
                let mut craft = Craft::new(Major::V17);
                craft.identity.system_identifier += 1;
                let stranger = bench.crafted("stranger", craft, 1);
                std::fs::read(stranger.path(1)).unwrap()
            }
            false => std::fs::read(one.path(1)).unwrap()[..SEGMENT / 2].to_vec(),
        };
        std::fs::write(one.path(1), bytes).unwrap();
        one.push(&bench.repository(), 2).unwrap();
        assert_eq!(bench.link(&one, 2).before, Before::Unknown);
    }
}

/// A segment whose predecessor is recycled while it is read.
struct Recycled {
    bytes: Vec<u8>,
    at: usize,
    before: Vec<u8>,
    looked: std::cell::Cell<u32>,
}

impl Content for Recycled {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let rest = &self.bytes[self.at..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }

    fn rewind(&mut self) -> Result<()> {
        self.at = 0;
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes[offset..offset + buffer.len()]);
        Ok(())
    }

    fn read_other(&self, _: SegmentName, buffer: &mut [u8], offset: u64) -> Result<bool> {
        self.looked.set(self.looked.get() + 1);
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.before[offset..offset + buffer.len()]);
        if self.looked.get() > 2 {
            // From now on it is a file to come, under another address.
            buffer.fill(0);
        }
        Ok(true)
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_neighbour_that_is_recycled_while_it_is_read_is_not_at_hand() {
    let (bench, one) = Bench::with_one();
    let content = Recycled {
        bytes: std::fs::read(one.path(2)).unwrap(),
        at: 0,
        before: std::fs::read(one.path(1)).unwrap(),
        looked: std::cell::Cell::new(0),
    };
    let (repository, path) = (bench.repository(), one.path(2));
    push_content(&one.what(&repository, &path, 2), content).unwrap();
    assert_eq!(bench.link(&one, 2).before, Before::Unknown);
}

#[test]
fn without_a_history_the_first_page_tells_the_timeline_of_the_segment_before() {
    let bench = Bench::new();
    let mut craft = Craft::new(Major::V17);
    craft.main(0, 0x20, 0, &[1; 40]);
    craft.switch();
    // The second segment begins on timeline 1, and is left for timeline 2 on its second page.
    craft.leave(0);
    craft.timeline = TimelineId::new(2).unwrap();
    let mut one = bench.crafted("one", craft, 1);
    let before = one.path(1);
    let second = one.path(2);
    one.timeline = TimelineId::new(2).unwrap();
    std::fs::copy(second, one.path(2)).unwrap();
    assert!(before.exists());
    one.push(&bench.repository(), 2).unwrap();
    let Before::Known(timeline, _) = bench.link(&one, 2).before else {
        panic!("it is at hand");
    };
    assert_eq!(timeline, TimelineId::FIRST);
}

#[test]
fn a_fetched_segment_has_to_continue_the_one_that_the_server_has() {
    let (bench, one, other) = Bench::with_two();
    let repository = bench.repository();
    one.push(&repository, 1).unwrap();
    one.push(&repository, 2).unwrap();
    let check = |life: &Life| {
        let target = life.data.join("pg_wal/RECOVERYXLOG");
        life::check_fetched(&target, &bench.container(&one, 2), one.name(2))
    };
    check(&one).unwrap();
    assert_eq!(check(&other).unwrap_err().code(), Code::Gap);
    std::fs::remove_file(other.path(1)).unwrap();
    check(&other).unwrap();
}

#[test]
fn a_copied_segment_has_to_continue_the_stored_one_before_it() {
    let (bench, there) = (Bench::new(), Bench::new());
    let (one, other) = (bench.life("one", 1), there.life("other", 2));
    one.push(&bench.repository(), 1).unwrap();
    other.push(&there.repository(), 2).unwrap();
    let check = |repository: &Repository, number| {
        let (from, life) = if number == 1 {
            (&bench, &one)
        } else {
            (&there, &other)
        };
        let stored = from.container(life, number);
        life::check_copied(repository, &bench.layout(), &stored, life.name(number))
    };
    let fresh = bench.repository();
    assert_eq!(check(&fresh, 2).unwrap_err().code(), Code::Gap);
    // Also by the mark of the copy before, which this process has just made.
    let used = bench.repository();
    check(&used, 1).unwrap();
    assert_eq!(check(&used, 2).unwrap_err().code(), Code::Gap);
}

impl Life {
    /// Offers bytes under a name of segment 2, whole or as a partial.
    pub(super) fn offer(
        &self,
        repository: &Repository,
        bytes: &[u8],
        is_partial: bool,
    ) -> Result<Archived> {
        let name = self.name(2);
        let name = match is_partial {
            true => WalFileName::Partial(name),
            false => WalFileName::Segment(name),
        };
        let path = self.data.join("pg_wal").join(name.to_string());
        std::fs::write(&path, bytes).unwrap();
        push(&Push {
            name,
            ..self.what(repository, &path, 2)
        })
    }
}

impl Bench {
    /// Keys below a part of the cluster's folder.
    pub(super) fn keys(&self, below: &str) -> Vec<String> {
        let keys = self.repository().store().list(below).unwrap();
        keys.into_iter().map(|listed| listed.name).collect()
    }

    fn is_stored(&self, life: &Life, is_partial: bool) -> bool {
        let name = life.name(2);
        let key = self.layout().wal_file(match is_partial {
            true => WalFileName::Partial(name),
            false => WalFileName::Segment(name),
        });
        self.repository().store().head(&key).unwrap().is_some()
    }
}

/// A second segment whose WAL ends inside: `records` of `byte` behind the first page header, and room behind them.
pub(super) fn unfinished(records: usize, byte: u8) -> Vec<u8> {
    let mut craft = Craft::new(Major::V17);
    craft.main(0, 0x20, 0, &[byte; 40]);
    craft.switch();
    for _ in 0..records {
        craft.main(0, 0x20, 0, &[byte; 5000]);
    }
    craft.bytes.split_off(SEGMENT)
}

pub(super) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(SEGMENT, 0);
    bytes
}

#[test]
fn a8_a_partial_of_another_life_is_kept_however_short_it_is() {
    let (bench, one) = Bench::with_one();
    let repository = bench.repository();
    let offer = |records, byte| {
        let offered = one.offer(&repository, &padded(unfinished(records, byte)), true);
        offered.unwrap().1
    };
    offer(9, 1);
    assert_eq!(offer(5, 1), Vec::<String>::new());
    assert!(offer(5, 2)[0].contains("another partial segment"));
    assert_eq!(bench.kept(), 1);
}

#[test]
fn a2_a_whole_name_whose_wal_ends_inside_is_archived_as_a_partial() {
    // Zeros up to the end; stale pages of the file's last use; zeros in the last page alone.
    let zeros = padded(unfinished(5, 1));
    let stale = || {
        let mut bytes = unfinished(5, 1);
        bytes.resize(bytes.len().next_multiple_of(8192), 0);
        let mut old = Craft::new(Major::V17);
        while old.bytes.len() < SEGMENT {
            old.leave(0);
        }
        bytes.extend_from_slice(&old.bytes[bytes.len()..SEGMENT]);
        bytes
    };
    let last_page = || {
        let mut craft = Craft::new(Major::V17);
        craft.switch();
        while craft.bytes.len() < 2 * SEGMENT - 8192 {
            craft.leave(0);
        }
        craft.leave(4000);
        padded(craft.bytes.split_off(SEGMENT))
    };
    for (what, bytes) in [("zeros", zeros), ("stale", stale()), ("last", last_page())] {
        let (bench, one) = Bench::with_one();
        let (_, warnings) = one.offer(&bench.repository(), &bytes, false).unwrap();
        assert!(warnings.iter().any(|w| w.contains("ends inside")), "{what}");
        assert!(bench.is_stored(&one, true), "{what}");
        assert!(!bench.is_stored(&one, false), "{what}");
    }
}

#[test]
fn c05_a_segment_that_is_damaged_inside_is_no_partial() {
    let mut craft = Craft::new(Major::V17);
    craft.switch();
    while craft.bytes.len() < 2 * SEGMENT {
        craft.leave(0);
    }
    let mut bytes = craft.bytes.split_off(SEGMENT);
    bytes[SEGMENT / 2 + 100] ^= 1;
    // Pages of its own follow the damage, be it to the end or for a while.
    let mut shorter = bytes.clone();
    shorter[SEGMENT / 4 * 3..].fill(0);
    for bytes in [bytes, shorter] {
        let (bench, one) = Bench::with_one();
        let (_, warnings) = one.offer(&bench.repository(), &bytes, false).unwrap();
        let warned = warnings.iter().any(|w| w.contains("is damaged"));
        assert!(warned, "{warnings:?}");
        assert!(bench.is_stored(&one, false) && !bench.is_stored(&one, true));
    }
}

#[test]
fn p08_a_repeat_heals_a_damaged_copy_and_is_not_acknowledged_where_it_cannot() {
    let (bench, one) = Bench::with_one();
    one.push(&bench.repository(), 1).unwrap();
    let key = bench.layout().segment(one.name(1));
    let path = bench.directory.path().join("r").join(key.as_str());
    let sound = std::fs::read(&path).unwrap();
    let damage = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    // Its end does not say any more what it held: a conflict cannot be excluded.
    damage(sound.len() - 2);
    let error = one.push(&bench.repository(), 1).err().unwrap();
    assert_eq!(error.code(), Code::Damaged, "{error}");
    damage(sound.len() / 3);
    let (pushed, warnings) = one.push(&bench.repository(), 1).unwrap();
    assert_eq!(pushed, Pushed::Stored);
    assert!(warnings[0].contains("is healed"), "{warnings:?}");
    let copy = path.with_file_name(format!("{}.heal-1", one.name(1)));
    assert!(copy.exists() && std::fs::read(&path).unwrap() != sound);
    let (pushed, _) = one.push(&bench.repository(), 1).unwrap();
    assert_eq!(pushed, Pushed::AlreadyThere);
    std::fs::remove_file(copy).unwrap();
    std::fs::write(&path, sound).unwrap();
    let (pushed, _) = one.push(&bench.repository(), 1).unwrap();
    assert_eq!(pushed, Pushed::AlreadyThere);
}

#[test]
fn h03_the_refused_copy_of_another_life_is_kept_whatever_lies_before_it() {
    let (bench, one, other) = Bench::with_two();
    one.push(&bench.repository(), 1).unwrap();
    one.push(&bench.repository(), 2).unwrap();
    let error = other.push(&bench.repository(), 2).err().unwrap();
    assert!(error.to_string().contains("already archived"), "{error}");
    assert_eq!(bench.kept(), 1);
}

#[test]
fn a_padded_partial_says_so_of_itself() {
    let (bench, one) = Bench::with_one();
    let repository = bench.repository();
    one.offer(&repository, &padded(unfinished(5, 1)), true)
        .unwrap();
    let partial = WalFileName::Partial(one.name(2));
    let key = bench.layout().wal_file(partial);
    let object = repository.store().open(&key).unwrap().unwrap();
    let summary = index::read_summary(&Container::open(object).unwrap()).unwrap();
    assert!(summary.has(flag::MARKED));
}

#[test]
fn a14_a_lost_registration_is_made_up_for_though_a_root_is_damaged() {
    let (bench, one) = Bench::with_one();
    one.push(&bench.repository(), 1).unwrap();
    let folder = bench.directory.path().join("r");
    let layout = bench.layout();
    std::fs::remove_file(folder.join(layout.registration().as_str())).unwrap();
    let id = "20261120T064049Z-000001-full".parse().unwrap();
    let root = folder.join(layout.manifest(&id).as_str());
    std::fs::create_dir_all(root.parent().unwrap()).unwrap();
    std::fs::write(root, "{}").unwrap();
    let found = bench.repository().require_readable(&layout).unwrap();
    assert!(found.is_lost);
    assert_eq!(found.segment_size_bytes, SEGMENT as u64);
}

#[test]
fn f03_a_tail_in_a_repository_that_is_not_required_proves_no_end() {
    let (bench, one) = Bench::with_one();
    one.offer(&bench.repository(), &padded(unfinished(5, 1)), true)
        .unwrap();
    let fetched = |is_required| {
        let repository = bench.repository();
        let what = Fetch {
            followed: crate::repo::lives::Followed::Resolved,
            cluster: "main".to_owned(),
            system_identifier: Some(bench.layout().system_identifier()),
            name: WalFileName::Segment(one.name(2)),
            target: bench.directory.path().join("fetched"),
            nonce: 7,
            clock: || TimestampTz(0),
            progress: std::sync::Arc::new(Silent),
            inquiry: Inquiry::default(),
        };
        let place = Place {
            name: "held".to_owned(),
            is_required,
            patience: std::time::Duration::from_secs(60),
            open: Box::new(|| Ok(repository)),
        };
        fetch(&what, vec![place], &mut Questions::default())
    };
    assert_eq!(fetched(false).unwrap_err().code(), Code::Config);
    let Fetched::DeliveredTail { .. } = fetched(true).unwrap() else {
        panic!("a part of it is there");
    };
}

#[test]
fn a_repository_with_another_life_before_a_segment_is_offered_it_first() {
    let (bench, one, other) = Bench::with_two();
    let asked = |life: &Life, repository: &Repository, number| {
        may_be_refused(&life.what(repository, &life.path(number), number)).unwrap()
    };
    // Nothing is there, neither before it nor under its name.
    assert!(!asked(&other, &bench.repository(), 2));
    one.push(&bench.repository(), 1).unwrap();
    assert!(asked(&other, &bench.repository(), 2));
    let repository = bench.repository();
    assert!(!asked(&one, &repository, 2));
    // The link that was read is remembered, so that the push reads it no more.
    let before = bench.layout().segment(one.name(1));
    assert!(repository.kept_mark(&before).is_some());
    one.push(&repository, 2).unwrap();
    assert!(asked(&one, &bench.repository(), 2));
    refused(other.push(&bench.repository(), 3));
}
