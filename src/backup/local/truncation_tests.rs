//! Files that are truncated while a local backup reads them.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::against::Against;
use super::reader::{Reader, Reading};
use super::task::Task;
use crate::backup::incremental::{self, Prior};
use crate::backup::rate::Rate;
use crate::host::Host;
use crate::pg::change::Change;
use crate::pg::record::{Fork, Relation};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::progress::{Progress, Silent};
use crate::repo::crafted;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::{BackupRoot, ClusterContent};
use crate::snapshot::filekey::{ClusterNaming, FileKey, Naming};
use crate::snapshot::frame::{FrameCodec, PAGE_BYTES};
use crate::snapshot::reader::Snapshot;
use crate::snapshot::writer::{Options, SnapshotWriter};
use crate::wal::changed::Changed;

const FULL: &str = "20261120T064049Z-000001-full";
const INCREMENTAL: &str = "20261120T064149Z-000002-incr";
/// A full file is read in two pieces.
const SEGMENT_BLOCKS: u8 = 64;
const FILE: &str = "base/5/77";
/// Whole pages that are left of the file.
const LEFT: usize = 40 * PAGE_BYTES;

/// Cuts a file off, inside a page, as soon as bytes of it were read.
struct Truncating(PathBuf);

impl Progress for Truncating {
    fn advance(&self, _: u64) {
        let file = File::options().write(true).open(&self.0).unwrap();
        file.set_len((LEFT + PAGE_BYTES / 2) as u64).unwrap();
    }
}

/// A repository, and a data directory with one file of a relation.
struct Site {
    directory: tempfile::TempDir,
    repository: Repository,
    layout: ClusterLayout,
}

impl Site {
    fn with(content: &[u8]) -> Site {
        let (directory, repository, layout) = crafted::empty();
        std::fs::create_dir_all(directory.path().join("data/base/5")).unwrap();
        let site = Site {
            directory,
            repository,
            layout,
        };
        site.put(content);
        site
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn put(&self, content: &[u8]) {
        std::fs::write(self.root().join(FILE), content).unwrap();
    }

    fn truncating(&self) -> Truncating {
        Truncating(self.root().join(FILE))
    }

    /// Takes a backup of the file alone.
    fn full(&self, progress: &dyn Progress) -> BackupRoot {
        self.backup(FULL, None, progress)
    }

    /// Takes one upon another; without `changed` every page is compared.
    fn incremental(
        &self,
        prior: &BackupRoot,
        changed: Option<Changed>,
        progress: &dyn Progress,
    ) -> BackupRoot {
        let history = History::root(TimelineId::FIRST);
        let host = Host {
            scratch: self.directory.path().to_owned(),
            ..Host::still(TimestampTz(0), 1)
        };
        let place = (&self.repository, &self.layout, prior);
        let prior = Prior::open(place, &history, &host).unwrap();
        let against = Against::new(&prior, changed, &Silent);
        self.backup(INCREMENTAL, Some((&prior, &against)), progress)
    }

    fn backup(
        &self,
        id: &str,
        upon: Option<(&Prior<'_>, &Against<'_>)>,
        progress: &dyn Progress,
    ) -> BackupRoot {
        let (store, id) = (self.repository.store(), id.parse::<BackupId>().unwrap());
        let mut options = Options::new(FrameCodec::Lz4, 1, self.directory.path().to_owned());
        let key = FileKey::from_path(FILE.as_bytes(), &naming()).unwrap();
        let known = upon.and_then(|(prior, _)| prior.snapshot.metadata(&key).unwrap());
        if let Some((prior, _)) = upon {
            options.prior.clone_from(&prior.root.map.shards);
        }
        let (root, rate, is_over) = (self.root(), Rate::new(None), AtomicBool::new(false));
        let reading = Reading {
            root: &root,
            real_roots: &[root.canonicalize().unwrap()],
            naming: naming(),
            check_from: None,
            relation_segment_blocks: u32::from(SEGMENT_BLOCKS),
            against: upon.map(|(_, against)| against),
            rate: &rate,
            is_over: &is_over,
            progress,
        };
        let (sender, files) = sync_channel(1);
        sender.send(Task { key, prior: known }).unwrap();
        drop(sender);
        let written = thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, store, &self.layout, &id, &options);
            let reader = Reader::new(&reading, writer.sink());
            reader.run(&Mutex::new(files)).unwrap();
            writer.finish().unwrap()
        });
        let (head, own) = written.head_and_map(id);
        let (head, map) = match upon {
            None => (head, own),
            Some((prior, _)) => incremental::complete(
                (store, &*self.layout),
                (&prior.root.head, &prior.root.map),
                (head, own),
                Naming::Cluster(naming()),
                &mut || Ok(()),
            )
            .unwrap(),
        };
        BackupRoot {
            head,
            content: ClusterContent::sample(),
            map,
        }
    }

    /// Reads the file back from a backup.
    fn content(&self, root: &BackupRoot) -> Vec<u8> {
        let snapshot = Snapshot::open(self.repository.store(), &self.layout, root).unwrap();
        snapshot.read_file(FILE, 1 << 20).unwrap().unwrap()
    }
}

fn naming() -> ClusterNaming {
    ClusterNaming::from(&ClusterContent::sample())
}

/// Pages, each of which is filled with a byte of its own.
fn pages(first: u8, blocks: u8) -> Vec<u8> {
    let bytes = (0..blocks).flat_map(|block| [first + block; PAGE_BYTES]);
    bytes.collect()
}

/// The bytes of a full file that ends with zeros.
fn filled_up(bytes: &[u8]) -> Vec<u8> {
    let mut all = bytes.to_vec();
    all.resize(usize::from(SEGMENT_BLOCKS) * PAGE_BYTES, 0);
    all
}

#[test]
fn b42_a_full_file_that_is_truncated_while_it_is_read_keeps_its_length() {
    let now = pages(1, SEGMENT_BLOCKS);
    let site = Site::with(&now);
    let root = site.full(&site.truncating());
    assert!(site.content(&root) == filled_up(&now[..LEFT]));
}

/// No other file comes after it.
#[test]
fn b42_a_file_that_is_not_full_stays_as_short_as_it_was_read() {
    let now = pages(1, SEGMENT_BLOCKS - 1);
    let site = Site::with(&now);
    let root = site.full(&site.truncating());
    assert!(site.content(&root) == now[..LEFT + PAGE_BYTES / 2]);
}

#[test]
fn b42_an_incremental_keeps_the_length_when_pages_are_compared() {
    let now = pages(101, SEGMENT_BLOCKS);
    let site = Site::with(&pages(1, SEGMENT_BLOCKS));
    let prior = site.full(&Silent);
    site.put(&now);
    let root = site.incremental(&prior, None, &site.truncating());
    assert!(site.content(&root) == filled_up(&now[..LEFT]));
}

/// Pages that WAL does not name are the prior's, up to the first that could not be read.
#[test]
fn b42_an_incremental_keeps_the_length_when_wal_names_pages() {
    let (before, now) = (pages(1, SEGMENT_BLOCKS), pages(101, SEGMENT_BLOCKS));
    let site = Site::with(&before);
    let prior = site.full(&Silent);
    site.put(&now);
    let mut changed = Changed::default();
    for block in [3, 50] {
        changed.add(&Change::Block {
            relation: Relation {
                tablespace: 1663,
                database: 5,
                number: 77,
            },
            fork: Fork::MAIN,
            block,
        });
    }
    changed.settle();
    let root = site.incremental(&prior, Some(changed), &site.truncating());
    let mut expected = before[..50 * PAGE_BYTES].to_vec();
    let third = 3 * PAGE_BYTES..4 * PAGE_BYTES;
    expected[third.clone()].copy_from_slice(&now[third]);
    assert!(site.content(&root) == filled_up(&expected));
}
