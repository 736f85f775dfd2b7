//! Generations of files whose content is shared, read back by file and by pack, against a model in memory; and maps that lie.

use proptest::prelude::*;
use std::collections::BTreeMap;

use super::content::ContentReader;
use super::filekey::{FileKey, Naming};
use super::flatten::flatten;
use super::frame::FrameCodec;
use super::layer::{EntryKind, LayerWriter, Metadata};
use super::node::{Moment, Node, NodeKind};
use super::piece::{Piece, Source, encode, encode_chunks};
use super::reader::{Snapshot, SnapshotRoot};
use super::sink::FileSink;
use super::uses::{Record, Uses};
use super::writer::{Options, SnapshotWriter, Written};
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::id::{BackupId, PartName};
use crate::repo::root::{Head, LayerRef, Map, Shard};
use crate::repo::scope::Scope;
use crate::store::file::FileStore;
use crate::store::{Published, Store};

type Files = BTreeMap<&'static str, Vec<u8>>;

const NAMES: [&str; 5] = ["a", "b", "d", "e", "f"];

/// A repository in a directory, the files of the newest generation, and its map.
struct World {
    _directory: tempfile::TempDir,
    store: FileStore,
    scope: Scope,
    host: Host,
    files: Files,
    map: Map,
    generation: u8,
}

/// Noise that is the same for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut output = vec![0; length];
    let hasher = blake3::Hasher::new_derive_key(&seed.to_string());
    hasher.finalize_xof().fill(&mut output);
    output
}

/// The root of a snapshot that is read.
pub(super) fn root_of<'a>(head: &'a Head, map: &'a Map, naming: Naming) -> SnapshotRoot<'a> {
    SnapshotRoot { head, map, naming }
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        World {
            store: FileStore::create(&directory.path().join("repo"), 1).unwrap(),
            host: Host {
                scratch: directory.path().to_owned(),
                ..Host::still(TimestampTz(0), 7)
            },
            _directory: directory,
            scope: Scope::aux("test", "x").unwrap(),
            files: Files::new(),
            map: Map {
                shards: Vec::new(),
                packs: Vec::new(),
            },
            generation: 0,
        }
    }

    fn head(&self) -> Head {
        let sizes = self.files.values().map(|bytes| bytes.len() as u64);
        let id = "20261120T064000Z-incr".parse().unwrap();
        Head::sample(id, (self.files.len() as u64, sizes.sum(), 0))
    }

    /// Writes a generation upon those before. A shard of three layers is made flat first.
    fn generation(&mut self, produce: impl FnOnce(&mut Files, &mut FileSink<'_>)) -> Written {
        let id: BackupId = format!("20261120T0640{:02}Z-incr", self.generation)
            .parse()
            .unwrap();
        self.generation += 1;
        let mut options = Options::new(FrameCodec::Lz4, 2, self.host.scratch.clone());
        options.pack_bytes = 600_000;
        options.shard_files = 3;
        let head = self.head();
        let root = root_of(&head, &self.map, Naming::Tree);
        let is_first = self.map.shards.is_empty();
        let prior = (!is_first).then(|| Snapshot::open(&self.store, &self.scope, root).unwrap());
        if let Some(prior) = &prior {
            let place = (&self.store as &dyn Store, &self.scope);
            let flat = flatten(prior, place, &id, 3, 3, &mut || Ok(())).unwrap();
            (options.prior, options.layers) = (flat.shards, flat.layers);
        }
        let mut files = std::mem::take(&mut self.files);
        let written = std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, &self.store, &self.scope, &id, &options);
            if let Some(prior) = &prior {
                writer.reuse(prior, &self.host);
            }
            let mut sink = writer.sink();
            if is_first {
                let root = FileKey::from_path(b"", Naming::Tree).unwrap();
                sink.node(&root, node(NodeKind::Directory)).unwrap();
            }
            produce(&mut files, &mut sink);
            sink.finish().unwrap();
            writer.finish().unwrap()
        });
        drop(prior);
        self.files = files;
        self.map.shards.clone_from(&written.shards);
        self.map.packs.extend(written.packs.iter().cloned());
        let head = self.head();
        let root = root_of(&head, &self.map, Naming::Tree);
        let usage = Snapshot::open(&self.store, &self.scope, root)
            .and_then(|snapshot| snapshot.usage(&mut || Ok(())))
            .unwrap();
        self.map.packs = usage.packs;
        written
    }

    fn read(&self) -> Result<Files> {
        let head = self.head();
        let root = root_of(&head, &self.map, Naming::Tree);
        let snapshot = Snapshot::open(&self.store, &self.scope, root)?;
        let mut by_file = Files::new();
        let mut by_pack = Files::new();
        let mut uses = Uses::new(&self.host.scratch);
        let mut chunk_bytes = 0;
        let mut watch = |file: &FileKey, at, place: &_| uses.add(file, at, place);
        for item in snapshot.items_watched(&mut watch) {
            let item = item?;
            let Some(length) = item.metadata.file_length() else {
                continue;
            };
            chunk_bytes += item.chunk_bytes;
            let name = NAMES.iter().find(|name| name.as_bytes() == item.path);
            let mut content = Vec::new();
            ContentReader::new(&snapshot).read(&item.key, length, &mut |bytes| {
                content.extend_from_slice(bytes);
                Ok(())
            })?;
            assert_eq!(item.mapped_bytes, 0);
            by_pack.insert(name.unwrap(), vec![0; content.len()]);
            by_file.insert(name.unwrap(), content);
        }
        uses.drain(&mut |record| {
            let Record::Used(chunk, of) = record else {
                panic!("nobody looked at packs");
            };
            let frame = snapshot.pack(chunk.pack)?.whole_frame(chunk.frame)?;
            let bytes = snapshot.chunk(&frame, &chunk.whole)?;
            let path = of.file.path(Naming::Tree);
            let content = by_pack.get_mut(std::str::from_utf8(&path).unwrap());
            let at = usize::try_from(of.position).unwrap();
            content.unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
            chunk_bytes -= bytes.len() as u64;
            Ok(())
        })?;
        assert_eq!(chunk_bytes, 0);
        assert!(by_file == by_pack);
        Ok(by_file)
    }
}

fn node(kind: NodeKind) -> Node {
    Node::new(kind, 0o640, Moment::default())
}

/// Stores a file anew. Zeros at its end are a hole.
fn write(sink: &mut FileSink<'_>, name: &str, content: &[u8]) {
    let key = FileKey::from_path(name.as_bytes(), Naming::Tree).unwrap();
    sink.limit(&key, 0).unwrap();
    sink.begin_shared(key).unwrap();
    let zeros = content.iter().rev().take_while(|b| **b == 0).count();
    let (data, hole) = content.split_at(content.len() - zeros);
    for piece in data.chunks(300_000) {
        sink.append(piece).unwrap();
    }
    sink.hole(hole.len() as u64).unwrap();
    assert_eq!(sink.position(), content.len() as u64);
    assert_eq!(
        sink.end_node(node(NodeKind::File(0))).unwrap(),
        content.len() as u64
    );
}

/// Stores a file anew, and notes it.
fn put(files: &mut Files, sink: &mut FileSink<'_>, name: &'static str, content: &[u8]) {
    write(sink, name, content);
    files.insert(name, content.to_vec());
}

/// Content by stretches: the seed of its noise (0: zeros), and its length.
fn content(stretches: &[(u64, usize)]) -> Vec<u8> {
    let stretch = |(seed, length): &(u64, usize)| match seed {
        0 => vec![0; *length],
        seed => noise(*seed, *length),
    };
    stretches.iter().flat_map(stretch).collect()
}

#[derive(Debug, Clone)]
enum Change {
    Write(Vec<(u64, usize)>),
    CopyOf(usize),
    Remove,
}

fn any_change() -> impl Strategy<Value = Change> {
    let length = prop_oneof![Just(0_usize), 1_usize..3000, 200_000_usize..1_500_000];
    let stretches = proptest::collection::vec((0_u64..6, length), 0..4);
    prop_oneof![
        4 => stretches.prop_map(Change::Write),
        2 => (0_usize..5).prop_map(Change::CopyOf),
        1 => Just(Change::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn generations_that_share_content_come_back(
        history in proptest::collection::vec(proptest::collection::btree_map(0_usize..5, any_change(), 1..4), 1..7)
    ) {
        let mut world = World::new();
        for changes in history {
            world.generation(|files, sink| {
                for (index, change) in changes {
                    let name = NAMES[index];
                    let now = match change {
                        Change::Write(stretches) => Some(content(&stretches)),
                        Change::CopyOf(other) => files.get(NAMES[other]).cloned(),
                        Change::Remove => None,
                    };
                    match now {
                        Some(now) => {
                            write(sink, name, &now);
                            files.insert(name, now);
                        }
                        None if files.remove(name).is_some() => {
                            sink.gone(&FileKey::from_path(name.as_bytes(), Naming::Tree).unwrap()).unwrap();
                        }
                        None => {}
                    }
                }
            });
            prop_assert!(world.read().unwrap() == world.files);
        }
    }
}

#[test]
fn content_is_stored_once_whatever_its_name() {
    let mut world = World::new();
    let large = noise(1, 6 << 20);
    let small = noise(2, 5000);
    let first = world.generation(|files, sink| {
        for (name, bytes) in [("a", &large), ("b", &small), ("d", &large)] {
            put(files, sink, name, bytes);
        }
    });
    assert!(first.has_chunks);
    let raw = |written: &Written| written.packs.iter().map(|p| p.live_bytes).sum::<u64>();
    assert_eq!(raw(&first), (large.len() + small.len()) as u64);
    // A rename stores nothing; neither does a copy.
    let second = world.generation(|files, sink| {
        sink.gone(&FileKey::from_path(b"a", Naming::Tree).unwrap())
            .unwrap();
        files.remove("a");
        for (name, bytes) in [("e", &large), ("f", &small)] {
            put(files, sink, name, bytes);
        }
    });
    assert_eq!(second.packs, []);
    assert!(world.read().unwrap() == world.files);
    // A change in the midst of a file stores what is around it.
    let mut changed = large.clone();
    changed.splice(3_000_000..3_000_000, *b"inserted");
    let third = world.generation(|files, sink| {
        put(files, sink, "d", &changed);
    });
    assert!((100_000..3 << 20).contains(&raw(&third)), "{}", raw(&third));
    assert!(world.read().unwrap() == world.files);
    // No more than there is counts as alive.
    for pack in &world.map.packs {
        assert!(pack.live_bytes <= pack.all_bytes.unwrap_or(pack.live_bytes));
    }
}

#[test]
fn threads_that_meet_the_same_content_store_it_once() {
    let world = World::new();
    let bytes = content(&[(1, 3_000_000), (2, 10), (1, 400_000)]);
    let id = "20261120T064000Z-full".parse().unwrap();
    let mut options = Options::new(FrameCodec::Lz4, 2, world.host.scratch.clone());
    options.sinks = 4;
    let written = std::thread::scope(|threads| {
        let writer = SnapshotWriter::start(threads, &world.store, &world.scope, &id, &options);
        std::thread::scope(|sinks| {
            for name in &NAMES[..4] {
                let (mut sink, bytes) = (writer.sink(), &bytes);
                sinks.spawn(move || {
                    write(&mut sink, name, bytes);
                    sink.finish().unwrap();
                });
            }
        });
        writer.finish().unwrap()
    });
    let stored: u64 = written.packs.iter().map(|p| p.live_bytes).sum();
    assert_eq!(stored, bytes.len() as u64);
}

#[test]
fn a_pack_that_is_lost_is_not_built_upon() {
    let mut world = World::new();
    let bytes = noise(3, 40_000);
    world.generation(|files, sink| {
        put(files, sink, "a", &bytes);
    });
    let pack = world.map.packs[0].key.clone();
    world.store.delete(&world.scope.pack(&pack)).unwrap();
    world.generation(|files, sink| {
        put(files, sink, "a", &bytes);
    });
    assert!(world.read().unwrap() == world.files);
}

/// A world with one file of two chunks, of which a second layer says what `forge` makes of its pieces.
fn forged(forge: impl FnOnce(Vec<Piece>) -> (EntryKind, Vec<u8>, u64)) -> Result<Files> {
    let mut world = World::new();
    let bytes = content(&[(1, 900_000), (2, 900_000)]);
    let length = bytes.len() as u64;
    world.generation(|files, sink| {
        put(files, sink, "a", &bytes);
    });
    let key = FileKey::from_path(b"a", Naming::Tree).unwrap();
    let (pieces, packs) = {
        let head = world.head();
        let root = root_of(&head, &world.map, Naming::Tree);
        let snapshot = Snapshot::open(&world.store, &world.scope, root)?;
        let pieces = snapshot.places(&key, 0, length)?.into_iter();
        let pieces = pieces.map(|place| Piece {
            position: place.position,
            length: place.length,
            source: Source::Chunk {
                pack: u32::try_from(place.at.unwrap().pack).unwrap(),
                frame: place.at.unwrap().frame,
                whole: place.chunk.unwrap(),
            },
        });
        let packs = snapshot.packs().iter().map(|pack| {
            let hash = *snapshot.pack_hash(&pack.key).unwrap();
            (pack.key.clone(), hash)
        });
        (pieces.collect::<Vec<_>>(), packs.collect::<Vec<_>>())
    };
    assert!(pieces.len() > 1);
    let (kind, value, length) = forge(pieces);
    let part: PartName = "20261120T064059Z-incr/000000".parse().unwrap();
    let object = world.store.create(&world.scope.layer(&part))?;
    let mut writer = LayerWriter::new(object, &part, world.scope.tag()).unwrap();
    for (pack, hash) in &packs {
        writer.add_pack(pack, hash);
    }
    let metadata = Metadata::Node(Box::new(node(NodeKind::File(length))));
    let (node_kind, node) = metadata.encode();
    writer
        .push(&key.metadata_entry(), node_kind, &node)
        .unwrap();
    if kind != EntryKind::Limit {
        writer
            .push(&key.limit_entry(), EntryKind::Limit, &[0])
            .unwrap();
        writer.push(&key.extents_entry(0), kind, &value).unwrap();
    }
    writer.count_file(length);
    let (object, summary) = writer.finish().unwrap();
    assert_eq!(object.publish().unwrap(), Published::Created);
    let layer = LayerRef {
        key: part,
        offset: 0,
        length: summary.length,
        hash: blake3::Hash::from_bytes(summary.hash).to_hex().to_string(),
    };
    let Shard { layers, .. } = &mut world.map.shards[0];
    layers.push(layer);
    world
        .files
        .insert("a", vec![0; usize::try_from(length).unwrap()]);
    world.read()
}

type Lie = dyn Fn(&mut Vec<Piece>);

#[test]
fn a_map_that_lies_of_a_chunk_is_found_out() {
    let length = |pieces: &[Piece]| pieces.last().map_or(0, |p| p.position + p.length);
    let honest = forged(|pieces| {
        let all = length(&pieces);
        (EntryKind::Chunks, encode_chunks(0, &pieces), all)
    });
    honest.unwrap();
    let lies: [&Lie; 6] = [
        &|pieces| pieces.swap(0, 1),
        &|pieces| change(&mut pieces[0], |whole, _| whole.hash[31] ^= 1),
        &|pieces| change(&mut pieces[0], |_, frame| *frame += 99),
        &|pieces| change(&mut pieces[1], |whole, _| whole.offset += 1),
        // A part of a chunk is none.
        &|pieces| {
            pieces.truncate(1);
            change(&mut pieces[0], |whole, _| whole.length -= 1);
            pieces[0].length -= 1;
        },
        &|pieces| {
            pieces.truncate(1);
            change(&mut pieces[0], |whole, _| whole.length += 1);
            pieces[0].length += 1;
        },
    ];
    for (number, lie) in lies.iter().enumerate() {
        let refused = forged(|mut pieces| {
            if number == 0 {
                // The second one's bytes in the place of the first.
                let (first, second) = (pieces[0].source, pieces[1].source);
                (pieces[0].source, pieces[1].source) = (second, first);
                let whole = |source| match source {
                    Source::Chunk { whole, .. } => u64::from(whole.length),
                    _ => 0,
                };
                pieces[0].length = whole(second);
                pieces[1].position = pieces[0].length;
                pieces[1].length = whole(first);
                change(&mut pieces[0], |whole, _| whole.hash = [1; 32]);
            } else {
                lie(&mut pieces);
            }
            let all = length(&pieces);
            (EntryKind::Chunks, encode_chunks(0, &pieces), all)
        });
        assert_eq!(refused.unwrap_err().code(), Code::Damaged, "lie {number}");
    }
}

fn change(piece: &mut Piece, change: impl FnOnce(&mut super::piece::WholeChunk, &mut u32)) {
    if let Source::Chunk { whole, frame, .. } = &mut piece.source {
        change(whole, frame);
    }
}

#[test]
fn a_chunk_is_visible_whole_or_not_at_all() {
    // A newer length cuts the last one.
    let cut = forged(|pieces| {
        let end = pieces.last().map_or(0, |p| p.position + p.length);
        (EntryKind::Limit, Vec::new(), end - 10)
    });
    assert_eq!(cut.unwrap_err().code(), Code::Damaged);
    // Extents that name no file of their own.
    let mixed = forged(|pieces| {
        let whole = match pieces[0].source {
            Source::Chunk { whole, frame, .. } => (whole, frame),
            _ => panic!("no chunk"),
        };
        let piece = Piece {
            position: 0,
            length: u64::from(whole.0.length),
            source: Source::Frame {
                pack: 0,
                frame: whole.1,
                offset: whole.0.offset,
            },
        };
        (EntryKind::Extents, encode(0, &[piece], false), piece.length)
    });
    assert_eq!(mixed.unwrap_err().code(), Code::Damaged);
}
