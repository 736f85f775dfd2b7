//! Generations of files, each written as a layer above those before, read back whole and by part, against a model in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::chunk_tests::root_of;
use super::filekey::tests::NAMING;
use super::filekey::{FileKey, Naming};
use super::flatten::{Flat, flatten};
use super::frame::FrameCodec;
use super::layer::Metadata;
use super::node::{Moment, Node, NodeKind};
use super::page_hashes::{self, PageHashes};
use super::reader::Snapshot;
use super::sink::FileSink;
use super::writer::{Options, SnapshotWriter};
use crate::err;
use crate::error::{Code, Result};
use crate::repo::id::BackupId;
use crate::repo::root::{Head, Map};
use crate::repo::scope::Scope;
use crate::store::file::FileStore;
use crate::store::{Key, NewObject, Object, Store};

const CLUSTER_PATHS: [&str; 7] = [
    "base/1/1259",
    "base/1/1259.1",
    "base/1/2_fsm",
    "global/pg_control",
    "a",
    "a-b",
    "pg_xact/0000",
];
const TREE_PATHS: [&str; 7] = ["d/0", "d/1", "d/e/0", "d/e-f", "a", "a-b", "base/1/1"];
const TREE_DIRECTORIES: [&str; 5] = ["", "base", "base/1", "d", "d/e"];

/// The content of a path.
#[derive(Debug, Clone, PartialEq)]
enum Thing {
    File(Vec<u8>),
    Directory,
    Symlink,
}

type Model = BTreeMap<String, Thing>;

/// One change of a path. Numbers are taken modulo what fits.
#[derive(Debug, Clone)]
enum Change {
    Remove,
    Turn(Thing),
    /// All of it anew.
    Write(usize),
    /// Stretches: where, and how long.
    Overwrite(Vec<(usize, usize)>),
    Truncate(usize),
    Extend(usize),
    /// Cut to a length, then grown to another, within one generation.
    CutAndGrow(usize, usize),
}

/// A repository in a directory, and the backup under construction.
struct World<'d> {
    directory: &'d Path,
    naming: Naming,
    scope: Scope,
    model: Model,
    map: Map,
    generation: u8,
    /// A shard with so many layers gets a single one before the next generation.
    most_layers: usize,
}

/// Pages of zeros, of one letter and of noise.
fn content(seed: usize, length: usize) -> Vec<u8> {
    let page = |n: usize| match (seed + n) % 3 {
        0 => [0; 8192],
        1 => [b'a' + u8::try_from(seed % 20).unwrap(); 8192],
        _ => std::array::from_fn(|i| ((i * (seed + n + 7)) >> 3).to_le_bytes()[0]),
    };
    let mut all: Vec<u8> = (0..length.div_ceil(8192)).flat_map(page).collect();
    all.truncate(length);
    all
}

impl<'d> World<'d> {
    fn new(directory: &'d Path, naming: Naming) -> World<'d> {
        let (scope, directories) = match naming {
            Naming::Cluster(_) => (Scope::cluster("main", 7).unwrap(), &[][..]),
            Naming::Tree => (Scope::aux("test", "x").unwrap(), &TREE_DIRECTORIES[..]),
        };
        let named = |path: &&str| ((*path).to_owned(), Thing::Directory);
        World {
            directory,
            naming,
            scope,
            model: directories.iter().map(named).collect(),
            map: Map {
                shards: Vec::new(),
                packs: Vec::new(),
            },
            generation: 0,
            most_layers: usize::MAX,
        }
    }

    fn key(&self, path: &str) -> FileKey {
        FileKey::from_path(path.as_bytes(), self.naming).unwrap()
    }

    /// Writes a generation by `produce`, as a layer above those before.
    fn generation(&mut self, produce: impl FnOnce(&mut World<'d>, &mut FileSink<'_>)) {
        let store = FileStore::open(self.directory, 1).unwrap();
        let id: BackupId = format!("20261120T0640{:02}Z-incr", self.generation)
            .parse()
            .unwrap();
        self.generation += 1;
        let mut options = Options::new(FrameCodec::Lz4, 1, self.directory.to_owned());
        options.pack_bytes = 50_000;
        options.shard_files = 3;
        let flat = self.flat(&store, &id);
        (options.prior, options.layers) = (flat.shards, flat.layers);
        let scope = self.scope.clone();
        let written = std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, &store, &scope, &id, &options);
            let mut sink = writer.sink();
            produce(self, &mut sink);
            sink.finish().unwrap();
            writer.finish().unwrap()
        });
        self.map.shards = written.shards;
        self.map.packs.extend(written.packs);
    }

    /// Returns the layers below the next generation.
    fn flat(&self, store: &FileStore, id: &BackupId) -> Flat {
        if self.map.shards.is_empty() || self.most_layers == usize::MAX {
            return Flat {
                shards: self.map.shards.clone(),
                layers: 0,
                stored_bytes: 0,
            };
        }
        let head = self.head();
        let root = root_of(&head, &self.map, self.naming);
        let snapshot = Snapshot::open(store, &self.scope, root).unwrap();
        let most_layers = self.most_layers;
        let place = (store as &dyn Store, &self.scope);
        let mut ticks = 0;
        let flat = flatten(&snapshot, place, id, most_layers, 3, &mut || {
            ticks += 1;
            Ok(())
        })
        .unwrap();
        let shards = self.map.shards.iter().enumerate();
        let deep = shards.filter(|(_, shard)| shard.layers.len() >= most_layers);
        let files = deep.map(|(number, _)| snapshot.items_of(number).count());
        assert_eq!(ticks, files.sum::<usize>());
        let deepest = flat.shards.iter().map(|shard| shard.layers.len()).max();
        assert!(deepest < Some(self.most_layers.max(2)), "{flat:?}");
        flat
    }

    fn end(&self, sink: &mut FileSink<'_>) {
        match self.naming {
            Naming::Cluster(_) => sink.end(0o600, 9).unwrap(),
            Naming::Tree => sink.end_node(self.node(NodeKind::File(0))).unwrap(),
        };
    }

    fn node(&self, kind: NodeKind) -> Node {
        let mtime = Moment {
            seconds: i64::from(self.generation),
            nanoseconds: 1,
        };
        Node::new(kind, 0o640, mtime)
    }

    /// Writes what differs from the generation before: `from` is the first byte behind which all is new, `parts` are those before it.
    fn write_parts(
        &self,
        sink: &mut FileSink<'_>,
        path: &str,
        now: &[u8],
        parts: &[(usize, usize)],
    ) {
        sink.begin(self.key(path)).unwrap();
        let mut at = 0;
        for &(from, to) in parts {
            sink.skip((from - at) as u64).unwrap();
            sink.append(&now[from..to]).unwrap();
            at = to;
        }
        sink.skip((now.len() - at) as u64).unwrap();
        self.end(sink);
    }

    fn write_whole(&self, sink: &mut FileSink<'_>, path: &str, now: &[u8]) {
        sink.limit(&self.key(path), 0).unwrap();
        self.write_parts(sink, path, now, &[(0, now.len())]);
    }

    fn write_other(&self, sink: &FileSink<'_>, path: &str, thing: &Thing) {
        let (key, target) = (self.key(path), b"to".to_vec());
        match (thing, self.naming) {
            (Thing::Directory, Naming::Tree) => sink.node(&key, self.node(NodeKind::Directory)),
            (Thing::Directory, _) => sink.directory(&key, 0o700, 1),
            (_, Naming::Tree) => sink.node(&key, self.node(NodeKind::Symlink(target))),
            _ => sink.symlink(&key, &target),
        }
        .unwrap();
    }

    fn change(&mut self, sink: &mut FileSink<'_>, path: &str, change: &Change, seed: usize) {
        let before = match self.model.get(path) {
            Some(Thing::File(bytes)) => Some(bytes.clone()),
            _ => None,
        };
        let now = match (change, before) {
            (Change::Remove, _) => {
                if self.model.remove(path).is_some() {
                    sink.gone(&self.key(path)).unwrap();
                }
                return;
            }
            (Change::Turn(thing), _) => {
                self.write_other(sink, path, thing);
                self.model.insert(path.to_owned(), thing.clone());
                return;
            }
            (Change::Write(length), _) => {
                let now = content(seed, *length);
                self.write_whole(sink, path, &now);
                now
            }
            (_, None) => {
                self.write_whole(sink, path, b"new");
                b"new".to_vec()
            }
            (Change::Overwrite(stretches), Some(mut now)) => {
                let mut parts = Vec::new();
                let mut at = 0;
                for (gap, length) in stretches {
                    let from = (at + gap).min(now.len());
                    let to = (from + length).min(now.len());
                    now[from..to].copy_from_slice(&content(seed + at, to - from));
                    parts.push((from, to));
                    at = to;
                }
                self.write_parts(sink, path, &now, &parts);
                now
            }
            (Change::Truncate(length), Some(mut now)) => {
                now.truncate(*length);
                self.write_parts(sink, path, &now, &[]);
                now
            }
            (Change::Extend(more), Some(mut now)) => {
                let from = now.len();
                now.extend(content(seed, *more));
                self.write_parts(sink, path, &now, &[(from, now.len())]);
                now
            }
            (Change::CutAndGrow(cut, more), Some(mut now)) => {
                // A cluster's limit counts blocks; a tree has none but 0, and the new bytes hide the older ones.
                let cut = (cut % (now.len() + 1)) / 8192 * 8192;
                now.truncate(cut);
                now.extend(content(seed, *more));
                if self.naming.has_pages() {
                    let block = cut as u64 / 8192;
                    sink.limit(&self.key(path), block).unwrap();
                }
                self.write_parts(sink, path, &now, &[(cut, now.len())]);
                now
            }
        };
        self.model.insert(path.to_owned(), Thing::File(now));
    }

    fn head(&self) -> Head {
        let files = self.model.values().filter_map(|thing| match thing {
            Thing::File(bytes) => Some(bytes.len() as u64),
            _ => None,
        });
        let id = "20261120T064000Z-incr".parse().unwrap();
        Head::sample(id, (files.clone().count() as u64, files.sum(), 0))
    }

    /// Everything, by the walk and pack by pack; and each file once more by places.
    fn read(&self) -> Result<Model> {
        let store = FileStore::open(self.directory, 1)?;
        let head = self.head();
        let root = root_of(&head, &self.map, self.naming);
        let snapshot = Snapshot::open(&store, &self.scope, root)?;
        let mut model = Model::new();
        let mut mapped = 0;
        for item in snapshot.items() {
            let item = item?;
            assert_eq!(snapshot.metadata(&item.key)?.as_ref(), Some(&item.metadata));
            let thing = match (item.metadata.file_length(), &item.metadata) {
                (Some(length), _) => Thing::File(vec![0; usize::try_from(length).unwrap()]),
                (_, Metadata::Symlink { .. }) => Thing::Symlink,
                (_, Metadata::Node(node)) if node.kind != NodeKind::Directory => Thing::Symlink,
                _ => Thing::Directory,
            };
            mapped += item.mapped_bytes;
            model.insert(String::from_utf8(item.path).unwrap(), thing);
        }
        for index in 0..snapshot.packs().len() {
            // The root names packs that nothing visible is in: no layer needs to know those.
            let Ok(pack) = snapshot.pack(index) else {
                continue;
            };
            for number in 0..pack.frame_count() {
                let frame = pack.frame(number)?;
                for visible in &frame.visible {
                    let path = frame.file(visible).unwrap().path(self.naming);
                    let Some(Thing::File(bytes)) =
                        model.get_mut(std::str::from_utf8(&path).unwrap())
                    else {
                        panic!("bytes of what is no file");
                    };
                    let at = usize::try_from(visible.position).unwrap();
                    bytes[at..at + visible.length as usize].copy_from_slice(frame.bytes(visible));
                }
                mapped -= frame.visible_bytes();
            }
        }
        assert_eq!(mapped, 0, "bytes are missing");
        self.check_usage(&store, &snapshot, &model)?;
        self.read_parts(&snapshot)?;
        Ok(model)
    }

    /// Checks that the packs counted as visible suffice.
    fn check_usage(&self, store: &FileStore, all: &Snapshot<'_>, model: &Model) -> Result<()> {
        let usage = all.usage(&mut || Ok(()))?;
        // A walk ends when its caller is asked to stop.
        let stopped = all.usage(&mut || Err(err!(Interrupted, "stopped")));
        assert_eq!(stopped.is_err(), all.items().next().is_some());
        let mapped: u64 = all.items().map(|item| item.unwrap().mapped_bytes).sum();
        let live = usage.packs.iter().map(|pack| pack.live_bytes);
        assert_eq!(live.sum::<u64>(), mapped);
        let head = self.head();
        assert_eq!(
            (usage.file_count, usage.size_bytes),
            (head.file_count, head.size_bytes)
        );
        let map = Map {
            packs: usage.packs,
            ..self.map.clone()
        };
        let root = root_of(&head, &map, self.naming);
        let snapshot = Snapshot::open(store, &self.scope, root)?;
        assert_eq!(snapshot.items().map(Result::unwrap).count(), model.len());
        self.read_parts(&snapshot)
    }

    /// Hashes of pages are those of the content, as far as they are known.
    fn check_hashes(hashes: &PageHashes<'_, '_>, file: &FileKey, bytes: &[u8]) -> Result<()> {
        let found = hashes.of(file)?;
        assert_eq!(found.len(), bytes.len().div_ceil(8192));
        for (found, page) in found.into_iter().zip(bytes.chunks(8192)) {
            assert!(
                found.is_none_or(|found| found == page_hashes::hash(page)),
                "{file:?}"
            );
        }
        Ok(())
    }

    fn read_parts(&self, snapshot: &Snapshot<'_>) -> Result<()> {
        let hashes = PageHashes::new(snapshot);
        for (path, thing) in &self.model {
            let Thing::File(bytes) = thing else {
                assert!(
                    snapshot
                        .read_file(path, 1)
                        .is_ok_and(|found| found.is_none())
                );
                continue;
            };
            assert_eq!(snapshot.read_file(path, 1 << 20)?.as_ref(), Some(bytes));
            Self::check_hashes(&hashes, &self.key(path), bytes)?;
            let length = bytes.len();
            for (from, to) in [(1, length / 2), (length / 3, length + 9), (8192, 8193)] {
                let mut at = from;
                for place in snapshot.places(&self.key(path), from as u64, to as u64)? {
                    assert_eq!(place.position, at as u64);
                    let end = at + usize::try_from(place.length).unwrap();
                    let found = match place.at {
                        None => vec![0; end - at],
                        Some(there) => {
                            let frame = snapshot.pack(there.pack)?.frame(there.frame)?;
                            let offset = there.offset as usize;
                            frame.frame().raw[offset..offset + end - at].to_vec()
                        }
                    };
                    assert!(found == bytes[at..end], "\"{path}\" from {at} to {end}");
                    at = end;
                }
                assert_eq!(at, to.min(length).max(from), "\"{path}\"");
            }
        }
        Ok(())
    }
}

fn any_change() -> impl Strategy<Value = Change> {
    let length = || {
        prop_oneof![
            0_usize..300,
            8000_usize..8400,
            0_usize..60_000,
            Just(32_768)
        ]
    };
    let stretch = (length(), length());
    prop_oneof![
        Just(Change::Remove),
        Just(Change::Turn(Thing::Directory)),
        Just(Change::Turn(Thing::Symlink)),
        length().prop_map(Change::Write),
        length().prop_map(Change::Write),
        proptest::collection::vec(stretch, 1..4).prop_map(Change::Overwrite),
        length().prop_map(Change::Truncate),
        length().prop_map(Change::Extend),
        (length(), length()).prop_map(|(cut, more)| Change::CutAndGrow(cut, more)),
    ]
}

type History = Vec<BTreeMap<usize, Change>>;

fn any_history() -> impl Strategy<Value = History> {
    let generation = proptest::collection::btree_map(0_usize..7, any_change(), 0..6);
    proptest::collection::vec(generation, 1..7)
}

fn check(naming: Naming, history: &History, most_layers: usize) {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), naming);
    world.most_layers = most_layers;
    let paths = if naming.has_pages() {
        CLUSTER_PATHS
    } else {
        TREE_PATHS
    };
    for (number, changes) in history.iter().enumerate() {
        world.generation(|world, sink| {
            if number == 0 {
                for (path, thing) in world.model.clone() {
                    world.write_other(sink, &path, &thing);
                }
            }
            for (path, change) in changes {
                world.change(sink, paths[*path], change, 10 * number + path);
            }
        });
        assert!(world.read().unwrap() == world.model, "generation {number}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn generations_of_a_cluster_come_back(history in any_history()) {
        check(NAMING, &history, usize::MAX);
    }

    #[test]
    fn generations_of_a_tree_come_back(history in any_history()) {
        check(Naming::Tree, &history, usize::MAX);
    }

    #[test]
    fn generations_come_back_from_maps_that_were_made_flat(history in any_history(), most_layers in 1_usize..4) {
        check(NAMING, &history, most_layers);
        check(Naming::Tree, &history, most_layers);
    }
}

/// Three generations of one file: whole, then what `second` and `third` write.
fn three(
    naming: Naming,
    second: impl Fn(&World<'_>, &mut FileSink<'_>),
    third: impl Fn(&World<'_>, &mut FileSink<'_>),
) -> Result<Model> {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), naming);
    world.generation(|world, sink| {
        for (path, thing) in world.model.clone() {
            world.write_other(sink, &path, &thing);
        }
        world.write_whole(sink, "a", &content(1, 30_000));
    });
    world.generation(|world, sink| second(world, sink));
    world.generation(|world, sink| third(world, sink));
    world
        .model
        .insert("a".into(), Thing::File(content(1, 30_000)));
    world.read()
}

#[test]
fn what_was_cut_off_or_gone_never_comes_back() {
    let cut = |world: &World<'_>, sink: &mut FileSink<'_>| {
        world.write_parts(sink, "a", &content(1, 100), &[]);
    };
    let gone = |world: &World<'_>, sink: &mut FileSink<'_>| {
        sink.gone(&world.key("a")).unwrap();
    };
    let other = |world: &World<'_>, sink: &mut FileSink<'_>| {
        world.write_other(sink, "a", &Thing::Symlink);
    };
    let limited = |world: &World<'_>, sink: &mut FileSink<'_>| {
        sink.limit(&world.key("a"), 0).unwrap();
        world.write_parts(sink, "a", &content(1, 30_000), &[]);
    };
    // A writer that forgot what it has to write again.
    let forgotten = |world: &World<'_>, sink: &mut FileSink<'_>| {
        world.write_parts(sink, "a", &content(1, 30_000), &[]);
    };
    for naming in [NAMING, Naming::Tree] {
        assert!(three(naming, forgotten, forgotten).is_ok());
        for second in [
            &cut as &dyn Fn(&World<'_>, &mut FileSink<'_>),
            &gone,
            &other,
            &limited,
        ] {
            let refused = three(naming, second, forgotten).unwrap_err();
            assert_eq!(refused.code(), Code::Damaged);
            assert!(
                refused.to_string().contains("no part of the map covers"),
                "{refused}"
            );
        }
    }
}

#[test]
fn entries_that_break_the_rules_are_damage() {
    let nothing = |_: &World<'_>, _: &mut FileSink<'_>| {};
    let block = |world: &World<'_>, sink: &mut FileSink<'_>| {
        sink.limit(&world.key("a"), 4).unwrap();
        world.write_parts(sink, "a", &content(1, 30_000), &[]);
    };
    assert!(three(NAMING, block, nothing).is_ok());
    assert!(three(Naming::Tree, block, nothing).is_err());
    // Metadata of the other naming.
    let file = |world: &World<'_>, sink: &mut FileSink<'_>| {
        sink.begin(world.key("a")).unwrap();
        sink.append(&content(1, 30_000)).unwrap();
        sink.end(0, 0).unwrap();
    };
    let node = |world: &World<'_>, sink: &mut FileSink<'_>| {
        sink.begin(world.key("a")).unwrap();
        sink.append(&content(1, 30_000)).unwrap();
        sink.end_node(world.node(NodeKind::Directory)).unwrap();
    };
    assert!(three(NAMING, nothing, file).is_ok() && three(NAMING, nothing, node).is_err());
    assert!(
        three(Naming::Tree, nothing, node).is_ok() && three(Naming::Tree, nothing, file).is_err()
    );
    // An entry below what is no directory, and below nothing.
    for (path, parent) in [("a/b", "a"), ("z/b", "z")] {
        let orphan = |world: &World<'_>, sink: &mut FileSink<'_>| {
            world.write_other(sink, path, &Thing::Directory);
        };
        let refused = three(Naming::Tree, nothing, orphan).unwrap_err();
        assert!(
            refused.to_string().contains("no directory"),
            "{parent}: {refused}"
        );
    }
}

#[test]
fn a_file_that_is_given_up_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), Naming::Tree);
    world.generation(|world, sink| {
        for (path, thing) in world.model.clone() {
            world.write_other(sink, &path, &thing);
        }
        // More pieces than an entry holds: some are in the map's entries already.
        sink.begin(world.key("a-b")).unwrap();
        for _ in 0..700 {
            sink.append(&content(1, 8192)).unwrap();
            sink.hole(8192).unwrap();
        }
        sink.abandon();
        world.write_whole(sink, "b", b"kept");
        sink.begin(world.key("sparse")).unwrap();
        sink.append(b"x").unwrap();
        sink.hole((1 << 40) + 12_345).unwrap();
        sink.append(b"y").unwrap();
        assert_eq!(
            sink.end_node(world.node(NodeKind::Fifo)).unwrap(),
            (1 << 40) + 12_347
        );
    });
    let store = FileStore::open(world.directory, 1).unwrap();
    let mut head = world.head();
    (head.file_count, head.size_bytes) = (2, (1 << 40) + 12_351);
    let root = root_of(&head, &world.map, Naming::Tree);
    let snapshot = Snapshot::open(&store, &world.scope, root).unwrap();
    assert_eq!(snapshot.items().map(Result::unwrap).count(), 7);
    assert_eq!(snapshot.metadata(&world.key("a-b")).unwrap(), None);
    let end = (1 << 40) + 12_347;
    let sparse = snapshot.places(&world.key("sparse"), 0, u64::MAX).unwrap();
    assert!(sparse.len() < 5, "{sparse:?}");
    assert_eq!(sparse.last().map(|p| p.position + p.length), Some(end));
    let stored: u64 = sparse
        .iter()
        .filter(|p| p.at.is_some())
        .map(|p| p.length)
        .sum();
    assert!(stored <= 2 * 8192, "{stored}");
}

/// Pages that are written whole have a hash, in whatever frame they lie and however short the last one is.
#[test]
fn every_page_that_was_written_whole_has_its_hash() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), NAMING);
    let mut now = content(1, 50_000);
    world.generation(|world, sink| {
        world.write_whole(sink, "a", b"short");
        world.write_whole(sink, "base/1/1259", &now);
        world.write_whole(sink, "pg_xact/0000", &content(2, 8192));
    });
    now[16_384..24_576].copy_from_slice(&content(5, 8192));
    now.truncate(40_000);
    world.generation(|world, sink| {
        world.write_parts(sink, "base/1/1259", &now, &[(16_384, 24_576)]);
    });
    for (path, bytes) in [
        ("a", b"short".to_vec()),
        ("base/1/1259", now),
        ("pg_xact/0000", content(2, 8192)),
    ] {
        world.model.insert(path.into(), Thing::File(bytes));
    }
    let store = FileStore::open(directory.path(), 1).unwrap();
    let head = world.head();
    let root = root_of(&head, &world.map, NAMING);
    let snapshot = Snapshot::open(&store, &world.scope, root).unwrap();
    let hashes = PageHashes::new(&snapshot);
    for (path, thing) in &world.model {
        let Thing::File(bytes) = thing else { continue };
        let expected: Vec<_> = bytes
            .chunks(8192)
            .map(|p| Some(page_hashes::hash(p)))
            .collect();
        assert_eq!(hashes.of(&world.key(path)).unwrap(), expected, "{path}");
    }
}

/// Counts how often packs are opened.
struct Counting {
    inner: FileStore,
    packs: AtomicUsize,
}

impl Store for Counting {
    crate::store::pass_on!();

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let is_pack = key.as_str().contains("/packs/");
        self.packs
            .fetch_add(usize::from(is_pack), Ordering::Relaxed);
        self.inner.open(key)
    }
    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.inner.create(key)
    }
}

/// The pages of two files take turns in the packs of a long chain: each pack is opened once, and where it does not fit into memory once for a file.
#[test]
fn in_a_long_chain_no_pack_is_opened_for_each_page() {
    const PAGES: usize = 96;
    const GENERATIONS: usize = 12;
    let paths = ["base/1/1259", "base/1/1260"];
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), NAMING);
    let mut now: Vec<Vec<u8>> = vec![vec![b'x'; PAGES * 8192]; 2];
    for generation in 0..GENERATIONS {
        let own = (generation..PAGES).step_by(GENERATIONS);
        let parts: Vec<_> = match generation {
            0 => vec![(0, PAGES * 8192)],
            _ => own.map(|page| (page * 8192, (page + 1) * 8192)).collect(),
        };
        for (from, to) in &parts {
            for file in &mut now {
                file[*from..*to].fill(b'a' + u8::try_from(generation).unwrap());
            }
        }
        world.generation(|world, sink| {
            for (path, content) in paths.iter().zip(&now) {
                world.write_parts(sink, path, content, &parts);
            }
        });
    }
    for (path, content) in paths.iter().zip(&now) {
        let thing = Thing::File(content.clone());
        world.model.insert((*path).to_owned(), thing);
    }
    let store = Counting {
        inner: FileStore::open(directory.path(), 1).unwrap(),
        packs: AtomicUsize::new(0),
    };
    let head = world.head();
    let root = root_of(&head, &world.map, NAMING);
    let snapshot = Snapshot::open(&store, &world.scope, root).unwrap();
    let packs = world.map.packs.len();
    assert_eq!(packs, GENERATIONS);
    for (memory, opened) in [(1 << 20, packs), (0, 2 * packs)] {
        store.packs.store(0, Ordering::Relaxed);
        let hashes = PageHashes::within(&snapshot, memory);
        for (path, content) in paths.iter().zip(&now) {
            let expected = content.chunks(8192).map(|p| Some(page_hashes::hash(p)));
            let found = hashes.of(&world.key(path)).unwrap();
            assert_eq!(found, expected.collect::<Vec<_>>(), "{path}");
        }
        assert_eq!(store.packs.load(Ordering::Relaxed), opened, "{memory}");
    }
}
