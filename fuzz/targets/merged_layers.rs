//! Up to five layers of two shards, read as one map: the walk ends with an error, or it agrees with every lookup of a file and of a part of it.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use pitr::pg::time::TimestampTz;
use pitr::repo::id::{BackupId, PartName};
use pitr::repo::root::{BackupKind, Head, LayerRef, Map, PackRef, Shard};
use pitr::repo::scope::Scope;
use pitr::snapshot::filekey::{ClusterNaming, FileKey, Naming};
use pitr::snapshot::layer::{EntryKind, LayerWriter, Metadata};
use pitr::snapshot::node::{Moment, Node, NodeKind};
use pitr::snapshot::piece::{self, Piece, Source};
use pitr::snapshot::reader::{Item, Snapshot, SnapshotRoot};
use pitr_fuzz::{Held, Input, PART, SYSTEM_IDENTIFIER, within};

const CEILING: usize = 100 << 20;
const PATHS: [&str; 6] = ["a", "base/1/1259", "base/1/1259.1", "d", "d/0", "d/e-f"];
/// The second shard begins here.
const SECOND: &str = "d";
const PACKS: u32 = 2;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

/// The layers of one backup.
struct World {
    naming: Naming,
    scope: Scope,
    store: Held,
    map: Map,
}

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let cluster = ClusterNaming {
        major: 17,
        catalog_version: 202_406_281,
    };
    let (naming, scope) = match input.choice(2) {
        0 => (
            Naming::Cluster(cluster),
            Scope::cluster("main", SYSTEM_IDENTIFIER),
        ),
        _ => (Naming::Tree, Scope::aux("test", "x")),
    };
    let packs = (0..PACKS).map(|number| PackRef {
        key: part(number),
        size_bytes: 0,
        live_frames: 0,
        live_bytes: 0,
        all_frames: None,
        all_bytes: None,
    });
    let mut world = World {
        naming,
        scope: scope.unwrap(),
        store: Held(BTreeMap::new()),
        map: Map {
            shards: Vec::new(),
            packs: packs.take(1 + usize::from(input.choice(2))).collect(),
        },
    };
    let first_keys = [Vec::new(), world.key(SECOND).as_bytes().to_vec()];
    for (number, first_key) in first_keys.iter().enumerate() {
        let layers = 1 + input.choice(5);
        let layers = (0..layers).map(|n| world.layer(&mut input, number == 1, n == 0));
        let layers = layers.collect();
        world.map.shards.push(Shard {
            first_key: first_key.iter().map(|b| format!("{b:02x}")).collect(),
            layers,
        });
    }
    world.read(&mut input);
}

fn id() -> BackupId {
    PART.split_once('/').unwrap().0.parse().unwrap()
}

fn part(number: u32) -> PartName {
    PartName { id: id(), number }
}

impl World {
    fn key(&self, path: &str) -> FileKey {
        FileKey::from_path(path.as_bytes(), self.naming).unwrap()
    }

    /// Writes a layer of entries that mostly fit; the lowest one has all of most files.
    fn layer(&mut self, input: &mut Input<'_>, is_second: bool, is_lowest: bool) -> LayerRef {
        let mut entries = BTreeMap::new();
        let mut length_of_all = Vec::new();
        for path in PATHS.iter().filter(|p| (**p >= SECOND) == is_second) {
            let key = self.key(path);
            let shape = input.u8();
            let length = u64::from(input.u8()) * 4096;
            let is_file = shape >> 5 < 4;
            if is_lowest || shape & 3 != 0 {
                let (kind, value) = self.first(shape >> 5, length);
                length_of_all.extend(is_file.then_some(length));
                entries.insert(key.metadata_entry(), (kind, value));
            }
            if shape & 0x14 == 0x14 && input.choice(8) == 1 {
                let value = vec![input.u8() & 0x7F];
                entries.insert(key.limit_entry(), (EntryKind::Limit, value));
            }
            let (start, is_wild) = (u64::from(input.u8()) * 4096, input.choice(64) == 1);
            let stretch = match (is_wild, is_file && length > 0) {
                (true, _) => Some((start, start + u64::from(input.u16()) * 512)),
                (false, true) if is_lowest => Some((0, length)),
                (false, true) if shape & 8 != 0 => Some((start % length, length)),
                _ => None,
            };
            if let Some((start, end)) = stretch {
                let value = self.extents(input, start, end);
                entries.insert(key.extents_entry(start), (EntryKind::Extents, value));
            }
        }
        let number = u32::try_from(self.store.0.len()).unwrap();
        let mut writer = LayerWriter::new(Vec::new(), &part(number), self.scope.tag()).unwrap();
        (0..PACKS).for_each(|n| {
            writer.add_pack(&part(n), &[1; 32]);
        });
        length_of_all.iter().for_each(|l| writer.count_file(*l));
        for (key, (kind, value)) in &entries {
            writer.push(key, *kind, value).unwrap();
        }
        let (bytes, summary) = writer.finish().unwrap();
        let key = self.scope.layer(&part(number)).to_string();
        self.store.0.insert(key, bytes);
        LayerRef {
            key: part(number),
            offset: 0,
            length: summary.length,
            hash: blake3::Hash::from_bytes(summary.hash).to_hex().to_string(),
        }
    }

    /// The first entry of a file: mostly a file of this length.
    fn first(&self, shape: u8, length: u64) -> (EntryKind, Vec<u8>) {
        let mtime = Moment::default();
        let metadata = match (shape, self.naming) {
            (6 | 7, _) if length == 4096 => return (EntryKind::Gone, vec![0]),
            (6 | 7, _) => return (EntryKind::Gone, Vec::new()),
            (4 | 5, Naming::Tree) => {
                Metadata::Node(Box::new(Node::new(NodeKind::Directory, 0o700, mtime)))
            }
            (4 | 5, Naming::Cluster(_)) => Metadata::Directory {
                mode: 0o700,
                mtime: 0,
            },
            (_, Naming::Tree) => {
                Metadata::Node(Box::new(Node::new(NodeKind::File(length), 0o600, mtime)))
            }
            (_, Naming::Cluster(_)) => Metadata::File {
                mode: 0o600,
                mtime: 0,
                length,
            },
        };
        metadata.encode()
    }

    /// Pieces from `start` to `end`, now and then with a gap.
    fn extents(&self, input: &mut Input<'_>, start: u64, end: u64) -> Vec<u8> {
        let (mut at, mut pieces) = (start, Vec::new());
        while at < end {
            at += u64::from(input.choice(128) == 1) * 4096;
            let length = match pieces.len() < 8 {
                true => (u64::from(input.u8() % 64 + 1) * 4096).min(end.saturating_sub(at)),
                false => end.saturating_sub(at),
            };
            let source = match input.u8() {
                0..=63 => Source::Zeros,
                number => Source::Frame {
                    pack: u32::from(number) % PACKS,
                    frame: u32::from(number),
                    offset: u32::from(number) * 8192,
                },
            };
            let piece = Piece {
                position: at,
                length,
                source,
            };
            pieces.extend((length > 0).then_some(piece));
            at += length;
        }
        piece::encode(start, &pieces, self.naming.has_pages())
    }

    /// Walks twice: what the first walk counts is what the root says.
    fn read(&self, input: &mut Input<'_>) {
        let mut head = Head {
            id: id(),
            nonce: String::new(),
            backup_kind: BackupKind::Incremental,
            prior: None,
            label: String::new(),
            start_time: TimestampTz(0),
            stop_time: TimestampTz(0),
            file_count: 0,
            size_bytes: 0,
            stored_bytes: 0,
            program: String::new(),
            features: Vec::new(),
        };
        (head.file_count, head.size_bytes) = self.counts(&head);
        let Ok(snapshot) = self.open(&head) else {
            return;
        };
        let items: Result<Vec<Item>, _> = snapshot.items().collect();
        // A lookup of what the walk refuses ends, too.
        for path in PATHS {
            let _ = snapshot.places(&self.key(path), u64::from(input.u16()) * 512, u64::MAX);
        }
        if let Ok(items) = items {
            self.compare(&snapshot, &items, input);
        }
    }

    /// Files and bytes, as far as a walk leads.
    fn counts(&self, head: &Head) -> (u64, u64) {
        let Ok(snapshot) = self.open(head) else {
            return (0, 0);
        };
        let items = snapshot.items().map_while(Result::ok);
        let lengths: Vec<u64> = items.filter_map(|i| i.metadata.file_length()).collect();
        (lengths.len() as u64, lengths.iter().sum())
    }

    fn open<'a>(&'a self, head: &'a Head) -> pitr::error::Result<Snapshot<'a>> {
        let root = SnapshotRoot {
            head,
            map: &self.map,
            naming: self.naming,
        };
        Snapshot::open(&self.store, &self.scope, root)
    }

    fn compare(&self, snapshot: &Snapshot<'_>, items: &[Item], input: &mut Input<'_>) {
        assert!(items.windows(2).all(|w| w[0].key < w[1].key), "keys ascend");
        for path in PATHS {
            let key = self.key(path);
            let item = items.iter().find(|item| item.key == key);
            let metadata = snapshot.metadata(&key).unwrap();
            assert_eq!(metadata.as_ref(), item.map(|item| &item.metadata), "{path}");
            let length = metadata.and_then(|m| m.file_length()).unwrap_or(0);
            let all = snapshot.places(&key, 0, u64::MAX).unwrap();
            let end = all.iter().fold(0, |at, place| {
                assert_eq!(place.position, at, "{path}");
                at + place.length
            });
            assert_eq!(end, length, "{path}");
            let mapped = all.iter().filter(|place| place.at.is_some());
            let mapped: u64 = mapped.map(|place| place.length).sum();
            assert_eq!(
                Some(mapped).filter(|n| *n > 0),
                item.map(|i| i.mapped_bytes).filter(|n| *n > 0)
            );
            let (from, to) = (u64::from(input.u16()) * 64, u64::from(input.u16()) * 64);
            let part = snapshot.places(&key, from, to).unwrap();
            for place in &part {
                let whole = all.iter().rfind(|p| p.position <= place.position).unwrap();
                let skipped = place.position - whole.position;
                assert!(skipped + place.length <= whole.length, "{path}");
                let there = whole
                    .at
                    .map(|at| (at.pack, at.frame, u64::from(at.offset) + skipped));
                let here = place.at.map(|at| (at.pack, at.frame, u64::from(at.offset)));
                assert_eq!(here, there, "{path}");
            }
            let covered: u64 = part.iter().map(|place| place.length).sum();
            assert_eq!(covered, to.min(length).saturating_sub(from), "{path}");
        }
    }
}
