//! Reads a snapshot: what there is, in key order; where the bytes of a file are; and pack by pack, frame by frame, what to write where.
//!
//! Restore's way: walk [`Snapshot::items`] to create everything in full length (zeros need no writing) and to sum `mapped_bytes`;
//! then, on any number of threads, [`Snapshot::pack`] and [`PackOfSnapshot::frame`], which hands out only bytes that the map leads to,
//! exactly there. When the bytes handed out equal the sum, every byte of every file was delivered once.
//!
//! A shard may have several layers, of which the newest wins (`super::merge`).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::content::ContentReader;
use super::filekey::{ChunkId, ClusterNaming, FileKey, Naming};
use super::frame::{Extent, Frame};
use super::layer::{LayerIndex, Metadata};
use super::merge::{Cursor, Merge};
use super::node::NodeKind;
use super::open_layers::{LayerPlace, OpenLayers};
use super::pack::PackReader;
use super::piece::WholeChunk;
use super::spare::{Sources, Spares};
use super::usage::{Counter, Usage};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::PartName;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::root::{BackupRoot, Head, Map, PackRef};
use crate::repo::scope::Scope;
use crate::store::Store;
use crate::text::unhex;

/// How much of a file's map is looked up at once.
const STEP_BYTES: usize = 64 << 20;
/// Most layers of a shard (format, section 13).
const LAYERS_MAX: usize = 128;

/// The parts of a root that its files are read by, whatever its kind of content.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotRoot<'a> {
    /// The backup, and its counts.
    pub head: &'a Head,
    /// Its layers and packs.
    pub map: &'a Map,
    /// How its keys and paths lead to one another.
    pub naming: Naming,
}

impl<'a> From<&'a BackupRoot> for SnapshotRoot<'a> {
    fn from(root: &'a BackupRoot) -> SnapshotRoot<'a> {
        SnapshotRoot {
            head: &root.head,
            map: &root.map,
            naming: Naming::Cluster(ClusterNaming::from(&root.content)),
        }
    }
}

impl<'a> From<&'a AuxRoot> for SnapshotRoot<'a> {
    fn from(root: &'a AuxRoot) -> SnapshotRoot<'a> {
        SnapshotRoot {
            head: &root.head,
            map: &root.map,
            naming: Naming::Tree,
        }
    }
}

/// A snapshot open for reading. The chain of hashes from the root to every byte is checked as it is walked.
pub struct Snapshot<'a> {
    sources: Sources<'a>,
    scope: Scope,
    root: SnapshotRoot<'a>,
    shards: Vec<Shard>,
    layers: OpenLayers<'a>,
    pack_hashes: HashMap<PartName, [u8; 32]>,
    /// The pack that was opened last: files that are read one after the other mostly lie in one.
    last_pack: Mutex<Option<(usize, Arc<PackReader>)>>,
}

struct Shard {
    first_key: Vec<u8>,
    /// The packs of each layer, oldest first: indexes in `root.map.packs`, by the layer's own; none of a pack that the root does not name, for
    /// nothing of it is visible.
    packs: Vec<Box<[Option<u32>]>>,
}

/// The facts of a layer that are kept.
struct LayerFacts {
    packs: Box<[Option<u32>]>,
    file_count: u64,
    raw_bytes: u64,
}

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub key: FileKey,
    /// Its path relative to the data directory or the root of the tree, the bytes on disk; of an attachment its name.
    pub path: Vec<u8>,
    /// Metadata of the entry.
    pub metadata: Metadata,
    /// Bytes of a file that come from extents of its own in frames.
    pub mapped_bytes: u64,
    /// Bytes of a file that come from chunks. All others are zeros.
    pub chunk_bytes: u64,
}

/// The place of a stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Byte position in the file.
    pub position: u64,
    /// Bytes.
    pub length: u64,
    /// Its source; `None` for zeros.
    pub at: Option<FramePlace>,
    /// The chunk that it is a part of, where its content may be shared.
    pub chunk: Option<WholeChunk>,
}

/// A place in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    /// Index in the root's list of packs.
    pub pack: usize,
    /// Frame in that pack.
    pub frame: u32,
    /// Byte offset in the frame's raw content.
    pub offset: u32,
}

impl<'a> Snapshot<'a> {
    /// Opens the layers that `root` names and checks them against it.
    ///
    /// # Errors
    /// `Damaged` when a layer is missing or fails a check, or root and layers disagree; `Unsupported` for too many layers to a shard.
    pub fn open(
        store: &'a dyn Store,
        scope: &Scope,
        root: impl Into<SnapshotRoot<'a>>,
    ) -> Result<Snapshot<'a>> {
        Snapshot::open_with(store, scope, root, None)
    }

    /// As [`Snapshot::open`]; what is damaged or missing in `store` is taken from `spares`, when it is whole there.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn open_with(
        store: &'a dyn Store,
        scope: &Scope,
        root: impl Into<SnapshotRoot<'a>>,
        spares: Option<&'a Spares<'a>>,
    ) -> Result<Snapshot<'a>> {
        let root = root.into();
        let counts = root.map.shards.iter().map(|shard| shard.layers.len());
        let most = counts.max().unwrap_or(0);
        if most > LAYERS_MAX {
            return Err(err!(
                Unsupported,
                "backup \"{}\" has {most} layers to a shard, at most {LAYERS_MAX} are read",
                root.head.id
            )
            .hint("Use a newer version of pitr."));
        }
        let sources = Sources { store, spares };
        let mut snapshot = Snapshot {
            sources,
            scope: scope.clone(),
            root,
            shards: Vec::with_capacity(root.map.shards.len()),
            layers: OpenLayers::new(sources, scope, root.map),
            pack_hashes: HashMap::new(),
            last_pack: Mutex::default(),
        };
        let (mut files, mut bytes) = (0, 0_u64);
        let mut opened = snapshot.open_layers()?.into_iter();
        for shard in &root.map.shards {
            let first_key = unhex(&shard.first_key).ok_or_else(|| snapshot.disagree())?;
            snapshot.check_order(&first_key)?;
            let mut packs = Vec::with_capacity(shard.layers.len());
            for facts in opened.by_ref().take(shard.layers.len()) {
                files += facts.file_count;
                bytes = bytes.saturating_add(facts.raw_bytes);
                packs.push(facts.packs);
            }
            if packs.is_empty() {
                return Err(snapshot.disagree());
            }
            snapshot.shards.push(Shard { first_key, packs });
        }
        // With several layers, only a walk finds the visible files.
        if snapshot.shards.is_empty() || (most == 1 && !snapshot.has_counts(files, bytes)) {
            return Err(snapshot.disagree());
        }
        Ok(snapshot)
    }

    /// Keeps copies of layers that are asked often in an unnamed file in `scratch`, where each request is a round trip.
    #[must_use]
    pub fn spooling(mut self, scratch: &Path) -> Snapshot<'a> {
        self.layers.spool(scratch);
        self
    }

    /// Takes less memory for lookups, which are few or come in the order of files.
    pub fn look_up_in_order(&mut self) {
        self.layers.look_up_in_order();
    }

    fn has_counts(&self, files: u64, bytes: u64) -> bool {
        (files, bytes) == (self.root.head.file_count, self.root.head.size_bytes)
    }

    pub(super) fn disagree(&self) -> Error {
        err!(
            Damaged,
            "the root of backup \"{}\" and its layers disagree",
            self.root.head.id
        )
    }

    /// The first shard begins at the empty key, each other at a file's key behind the one before.
    fn check_order(&self, first_key: &[u8]) -> Result<()> {
        let right = match self.shards.last() {
            None => first_key.is_empty(),
            Some(last) => {
                FileKey::decode(first_key, self.root.naming)?;
                first_key > last.first_key.as_slice()
            }
        };
        if right { Ok(()) } else { Err(self.disagree()) }
    }

    /// Opens all layers, in the order of the shards, and notes the hashes of their packs.
    fn open_layers(&mut self) -> Result<Vec<LayerFacts>> {
        let positions: HashMap<&PartName, u32> = self
            .root
            .map
            .packs
            .iter()
            .map(|p| &p.key)
            .zip(0..)
            .collect();
        let shards = self.root.map.shards.iter().enumerate();
        let places =
            shards.flat_map(|(shard, s)| (0..s.layers.len()).map(move |layer| (shard, layer)));
        let places: Vec<_> = places.collect();
        let hashes = Mutex::new(HashMap::new());
        let opened = self.layers.parallel(&places, |at| {
            let is_only = self.layer_count_of_root(at.0) == 1;
            let mut joined = Err(self.disagree());
            self.layers.open(at, &mut |index| {
                let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
                joined = self.join_packs(index, &positions, &mut hashes, is_only);
            })?;
            joined
        });
        self.pack_hashes = hashes.into_inner().unwrap_or_else(PoisonError::into_inner);
        opened
    }

    fn layer_count_of_root(&self, shard: usize) -> usize {
        self.root
            .map
            .shards
            .get(shard)
            .map_or(0, |s| s.layers.len())
    }

    /// Finds the layer's packs in the root, and notes their hashes. Each byte of an only layer is visible.
    fn join_packs(
        &self,
        layer: &LayerIndex,
        positions: &HashMap<&PartName, u32>,
        hashes: &mut HashMap<PartName, [u8; 32]>,
        is_only: bool,
    ) -> Result<LayerFacts> {
        let mut packs = Vec::with_capacity(layer.packs().len());
        for (part, hash) in layer.packs() {
            let known = hashes.insert(part.clone(), *hash);
            let position = positions.get(part).copied();
            if known.is_some_and(|known| known != *hash) || (is_only && position.is_none()) {
                return Err(self.disagree());
            }
            packs.push(position);
        }
        Ok(LayerFacts {
            packs: packs.into(),
            file_count: layer.file_count(),
            raw_bytes: layer.raw_bytes(),
        })
    }

    /// How keys and paths lead to one another.
    pub fn naming(&self) -> &Naming {
        &self.root.naming
    }

    /// The root's list of layers and packs.
    pub(super) fn map(&self) -> &'a Map {
        self.root.map
    }

    /// The root's packs, by whose index packs are opened.
    pub fn packs(&self) -> &'a [PackRef] {
        &self.root.map.packs
    }

    /// BLAKE3 of a pack's directory and trailer, as the layers have it.
    pub fn pack_hash(&self, part: &PartName) -> Option<&[u8; 32]> {
        self.pack_hashes.get(part)
    }

    /// Everything in the snapshot, in key order. Each file's extents are proven to cover it without overlap.
    pub fn items(&self) -> Items<'_, 'a> {
        self.walk(0, self.shards.len())
    }

    /// As [`Snapshot::items`]; `watch` hears of every place of a file in a frame before the item is handed out.
    pub fn items_watched<'s>(&'s self, watch: &'s mut Watch<'s>) -> Items<'s, 'a> {
        Items {
            watch: Some(watch),
            ..self.items()
        }
    }

    /// As [`Snapshot::items`], of one shard, with the places of each.
    pub(super) fn items_of(&self, shard: usize) -> Items<'_, 'a> {
        Items {
            counter: Some(Counter::new(0)),
            places: Some(Vec::new()),
            // The directories above may be in an earlier shard.
            checks_parents: false,
            ..self.walk(shard, shard + 1)
        }
    }

    fn walk(&self, shard: usize, end: usize) -> Items<'_, 'a> {
        Items {
            snapshot: self,
            shard,
            end,
            cursors: Vec::new(),
            order: BinaryHeap::new(),
            directories: Vec::new(),
            checks_parents: true,
            counter: None,
            places: None,
            watch: None,
            files: 0,
            bytes: 0,
            ended: false,
        }
    }

    /// Counts the visible bytes of each pack, and the files. The root's own counts are not compared: they are yet to be
    /// written. Calls `tick` once for each file.
    ///
    /// # Errors
    /// `Damaged` when a part of the map fails a check or a byte below a file's length is not covered; errors of `tick`.
    pub fn usage(&self, tick: &mut dyn FnMut() -> Result<()>) -> Result<Usage> {
        let mut items = self.items();
        items.counter = Some(Counter::new(self.packs().len()));
        items
            .by_ref()
            .try_for_each(|item| item.and_then(|_| tick()))?;
        let packs = items.counter.take().map(|c| c.finish(self.packs()));
        Ok(Usage {
            packs: packs.unwrap_or_default(),
            file_count: items.files,
            size_bytes: items.bytes,
        })
    }

    /// Opens a pack by its index in the root.
    ///
    /// # Errors
    /// `Damaged` when it is missing, fails a check, or is not the one that the layers mean.
    pub fn pack(&self, index: usize) -> Result<PackOfSnapshot<'_, 'a>> {
        let pack = self
            .root
            .map
            .packs
            .get(index)
            .ok_or_else(|| err!(Internal, "the backup has no pack {index}"))?;
        let last = || {
            self.last_pack
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let known = last().as_ref().filter(|(at, _)| *at == index).cloned();
        let reader = match known {
            Some((_, reader)) => reader,
            None => {
                let key = self.scope.pack(&pack.key);
                let open = |store: &dyn Store| self.open_pack_in(store, pack).map(Arc::new);
                let reader = self.sources.proven(&key, open)?;
                *last() = Some((index, Arc::clone(&reader)));
                reader
            }
        };
        Ok(PackOfSnapshot {
            snapshot: self,
            index,
            reader,
        })
    }

    fn open_pack_in(&self, store: &dyn Store, pack: &PackRef) -> Result<PackReader> {
        let part = &pack.key;
        let object = store
            .open(&self.scope.pack(part))?
            .ok_or_else(|| err!(Damaged, "pack \"{part}\" is missing"))?;
        let tag = self.scope.tag();
        let reader = PackReader::open(object, part, tag, self.root.naming)
            .map_err(|e| e.context(format!("open pack \"{part}\"")))?;
        if self.pack_hashes.get(part) != Some(reader.hash())
            || reader.stored_bytes() != pack.size_bytes
        {
            return Err(err!(
                Damaged,
                "pack \"{part}\" is not the one that the map leads to"
            ));
        }
        Ok(reader)
    }

    /// The metadata of a file, directory or link; `None` when the backup has none of this key.
    pub fn metadata(&self, file: &FileKey) -> Result<Option<Metadata>> {
        self.shard_for(file)
            .map_or(Ok(None), |shard| Merge::metadata_of(self, shard, file))
    }

    fn shard_for(&self, file: &FileKey) -> Option<usize> {
        self.shards
            .partition_point(|s| s.first_key.as_slice() <= file.as_bytes())
            .checked_sub(1)
    }

    pub(super) fn layer_count(&self, shard: usize) -> usize {
        self.shards.get(shard).map_or(0, |s| s.packs.len())
    }

    pub(super) fn layers(&self) -> &OpenLayers<'a> {
        &self.layers
    }

    fn packs_of(&self, (shard, layer): LayerPlace) -> Result<&[Option<u32>]> {
        let packs = self.shards.get(shard).and_then(|s| s.packs.get(layer));
        packs
            .map(AsRef::as_ref)
            .ok_or_else(|| err!(Internal, "the shard has no layer {layer}"))
    }

    /// The index in the root of a pack that a piece of a layer leads to.
    pub(super) fn pack_of(&self, layer: LayerPlace, pack: u32) -> Result<usize> {
        let known = self.packs_of(layer)?.get(pack as usize).copied().flatten();
        known
            .map(|index| index as usize)
            .ok_or_else(|| self.disagree())
    }

    pub(super) fn pack_count(&self, layer: LayerPlace) -> usize {
        self.packs_of(layer).map_or(0, <[_]>::len)
    }

    /// Requires that an entry lies in the key range of its shard.
    pub(super) fn check_place(&self, shard: usize, key: &[u8]) -> Result<()> {
        let first = |shard: usize| self.shards.get(shard).map(|s| s.first_key.as_slice());
        let is_right = first(shard) <= Some(key) && first(shard + 1).is_none_or(|next| key < next);
        if is_right {
            Ok(())
        } else {
            Err(self.disagree())
        }
    }

    /// Returns the places of the bytes of a file of this length, in order and in steps, so that a long file takes no more memory than a short one.
    ///
    /// # Errors
    /// Those of [`Snapshot::places`].
    pub fn steps<'b>(
        &'b self,
        file: &'b FileKey,
        length: u64,
    ) -> impl Iterator<Item = Result<Vec<Place>>> + use<'a, 'b> {
        let starts = (0..length).step_by(STEP_BYTES);
        starts.map(move |from| self.places(file, from, length.min(from + STEP_BYTES as u64)))
    }

    /// Returns the places of the bytes `[from, to)` of a file, in order. Bytes after the file's end, or of a path that
    /// is no file, have none.
    ///
    /// # Errors
    /// `Damaged` when a part of the map fails a check or a byte below the file's length is not covered.
    pub fn places(&self, file: &FileKey, from: u64, to: u64) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        let Some(shard) = self.shard_for(file) else {
            return Ok(places);
        };
        let mut merge = Merge::look_up(self, shard, file)?;
        let length = merge.metadata().and_then(Metadata::file_length);
        let to = to.min(length.unwrap_or(0));
        if from < to {
            merge.seek(from)?;
            merge.sweep(from, to, &mut |place| places.push(place))?;
        }
        Ok(places)
    }

    /// Returns the bytes of a chunk in its frame, which prove that they are the ones that the map means.
    ///
    /// # Errors
    /// `Damaged` when the frame has another chunk at that place, or bytes that do not have its hash.
    pub fn chunk<'f>(&self, frame: &'f Frame, whole: &WholeChunk) -> Result<&'f [u8]> {
        let mut at = 0_u32;
        let here = frame.extents.iter().find(|extent| {
            let is_here = at == whole.offset;
            at = at.saturating_add(extent.length);
            is_here
        });
        let named = here.filter(|extent| extent.length == whole.length);
        let id = named.and_then(|extent| extent.file.as_chunk());
        let from = whole.offset as usize;
        let bytes = frame.raw.get(from..from + whole.length as usize);
        let (Some(id), Some(bytes)) = (id.filter(|id| id.hash == whole.hash), bytes) else {
            return Err(err!(
                Damaged,
                "frame {} does not hold the chunk that the map expects",
                frame.number
            ));
        };
        self.check_chunk(&id, bytes)?;
        Ok(bytes)
    }

    /// Requires that bytes are the chunk of their name.
    ///
    /// # Errors
    /// `Damaged`; `Key` where the key of the hashes is not at hand.
    pub fn check_chunk(&self, id: &ChunkId, bytes: &[u8]) -> Result<()> {
        match self.sources.store.chunk_hash(bytes)? == (id.function, id.hash) {
            true => Ok(()),
            false => Err(err!(Damaged, "a chunk does not have the hash of its name")),
        }
    }

    /// Whether the backup has a regular file of this path.
    ///
    /// # Errors
    /// `Damaged` when a part of the map fails a check.
    pub fn has_file(&self, path: &str) -> Result<bool> {
        let file = FileKey::from_path(path.as_bytes(), self.root.naming)?;
        let metadata = self.metadata(&file)?;
        Ok(metadata.and_then(|m| m.file_length()).is_some())
    }

    /// A whole small file; `None` when the backup has no regular file of this path.
    ///
    /// # Errors
    /// `Damaged` when it is larger than `limit_bytes` or a check fails.
    pub fn read_file(&self, path: &str, limit_bytes: usize) -> Result<Option<Vec<u8>>> {
        let file = FileKey::from_path(path.as_bytes(), self.root.naming)?;
        let metadata = self.metadata(&file)?;
        let Some(length) = metadata.and_then(|m| m.file_length()) else {
            return Ok(None);
        };
        let size = usize::try_from(length)
            .ok()
            .filter(|n| *n <= limit_bytes)
            .ok_or_else(|| err!(Damaged, "file \"{path}\" has {length} bytes"))?;
        let mut content = Vec::with_capacity(size);
        ContentReader::new(self).read(&file, length, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(Some(content))
    }
}

/// A pack of the snapshot, open and checked.
pub struct PackOfSnapshot<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    index: usize,
    reader: Arc<PackReader>,
}

impl PackOfSnapshot<'_, '_> {
    /// How many frames there are.
    pub fn frame_count(&self) -> u32 {
        self.reader.frame_count()
    }

    /// Its index in the root's list of packs.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The pack itself, for its page hashes.
    pub fn reader(&self) -> &PackReader {
        &self.reader
    }

    /// Reads one frame, and checks all that can be checked of it by itself.
    ///
    /// # Errors
    /// `Damaged` when a check fails.
    pub fn whole_frame(&self, number: u32) -> Result<Frame> {
        let snapshot = self.snapshot;
        let Some(pack) = snapshot.root.map.packs.get(self.index) else {
            return self.reader.frame(number);
        };
        let named = |e: Error| {
            let part = &pack.key;
            e.context(format!("read frame {number} of pack \"{part}\""))
        };
        let own = self.reader.frame(number).map_err(named);
        let key = snapshot.scope.pack(&pack.key);
        snapshot.sources.proven_again(&key, own, |store| {
            let reader = snapshot.open_pack_in(store, pack)?;
            reader.frame(number).map_err(named)
        })
    }

    /// Reads all page hashes, frame by frame in order.
    ///
    /// # Errors
    /// `Damaged` when their check fails.
    pub fn page_hashes(&self) -> Result<Vec<u64>> {
        let snapshot = self.snapshot;
        let own = self.reader.page_hashes();
        let Some(pack) = snapshot.root.map.packs.get(self.index) else {
            return own;
        };
        let key = snapshot.scope.pack(&pack.key);
        snapshot.sources.proven_again(&key, own, |store| {
            snapshot.open_pack_in(store, pack)?.page_hashes()
        })
    }

    /// Reads one frame, checks it, and says which of its bytes the map leads to. Chunks are not among them: see [`Snapshot::chunk`].
    ///
    /// # Errors
    /// `Damaged` when frame or map fail a check.
    pub fn frame(&self, number: u32) -> Result<VisibleFrame> {
        let frame = self.whole_frame(number)?;
        let mut visible = Vec::new();
        let mut offset = 0_u32;
        let mut rest = frame.extents.as_slice();
        while let Some(first) = rest.first() {
            let (run, others) = rest.split_at(run_length(rest));
            // The map leads to chunks, and it does not say for which files.
            if first.file.as_chunk().is_none() {
                let behind = frame.extents.len() - rest.len();
                let run = Run {
                    extents: run,
                    behind,
                    offset,
                };
                self.see(number, &run, &mut visible)?;
            }
            let lengths = run.iter().map(|extent| extent.length);
            offset = lengths.fold(offset, u32::saturating_add);
            rest = others;
        }
        Ok(VisibleFrame { frame, visible })
    }

    /// Adds what the map leads to of the extents of a run, which it asks once.
    fn see(&self, frame: u32, run: &Run<'_>, visible: &mut Vec<Visible>) -> Result<()> {
        let (Some(first), Some(last)) = (run.extents.first(), run.extents.last()) else {
            return Ok(());
        };
        let places = self
            .snapshot
            .places(&first.file, first.position, last.end())?;
        let is_here = |at: &FramePlace| at.pack == self.index && at.frame == frame;
        let mut here = places
            .iter()
            .filter_map(|place| Some((place, place.at.filter(is_here)?)))
            .peekable();
        let mut offset = run.offset;
        for (i, extent) in run.extents.iter().enumerate() {
            while let Some((place, at)) = here.peek() {
                let (from, to) = (
                    place.position.max(extent.position),
                    (place.position + place.length).min(extent.end()),
                );
                let position = |own: u32, start: u64| u64::from(own) + (from - start);
                // Bytes of another extent at the same position of the file are not the ones that the map means.
                if from < to
                    && position(at.offset, place.position) == position(offset, extent.position)
                {
                    visible.push(Visible {
                        extent: run.behind + i,
                        position: from,
                        offset: offset + u32::try_from(from - extent.position).unwrap_or(0),
                        length: u32::try_from(to - from).unwrap_or(0),
                    });
                }
                if place.position + place.length > extent.end() {
                    break;
                }
                here.next();
            }
            offset = offset.saturating_add(extent.length);
        }
        Ok(())
    }
}

/// Extents of a frame in one file, ascending and near each other: looking up each page of a change that is scattered took most of a restore's time.
struct Run<'f> {
    extents: &'f [Extent],
    /// How many extents of the frame come before.
    behind: usize,
    /// The offset of the first one in the raw content of the frame.
    offset: u32,
}

/// A lookup in twenty layers costs as much as the walk along this many bytes of which each page lies elsewhere.
const NEAR_BYTES: u64 = 4 << 20;

/// How many of the first extents are a run: one at least.
fn run_length(extents: &[Extent]) -> usize {
    let is_next = |pair: &[Extent]| match pair {
        [one, next] => {
            let gap = next.position.checked_sub(one.end());
            one.file == next.file && gap.is_some_and(|gap| gap <= NEAR_BYTES)
        }
        _ => false,
    };
    1 + extents.windows(2).take_while(|pair| is_next(pair)).count()
}

/// Bytes of a frame that the map leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visible {
    /// Index of the frame's extent they belong to, which names the file.
    pub extent: usize,
    /// Byte position in the file.
    pub position: u64,
    /// Byte offset in the frame's raw content.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// A frame with its visible bytes, in raw order.
pub struct VisibleFrame {
    frame: Frame,
    /// Bytes that the map leads to.
    pub visible: Vec<Visible>,
}

impl VisibleFrame {
    /// The frame's extents.
    pub fn extents(&self) -> &[Extent] {
        &self.frame.extents
    }

    /// The file that visible bytes belong to.
    pub fn file(&self, visible: &Visible) -> Option<&FileKey> {
        self.frame.extents.get(visible.extent).map(|e| &e.file)
    }

    /// The visible bytes themselves.
    pub fn bytes(&self, visible: &Visible) -> &[u8] {
        let from = visible.offset as usize;
        let to = from + visible.length as usize;
        self.frame.raw.get(from..to).unwrap_or_default()
    }

    /// How many bytes are visible: summed over all frames they equal the sum of all items' `mapped_bytes`.
    pub fn visible_bytes(&self) -> u64 {
        self.visible.iter().map(|v| u64::from(v.length)).sum()
    }

    /// The frame as read.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }
}

/// Hears of a place in a frame, and whose content is there.
pub type Watch<'w> = dyn FnMut(&FileKey, FramePlace, &Place) -> Result<()> + 'w;

/// Walks everything in key order; see [`Snapshot::items`].
pub struct Items<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    /// The shard that comes next.
    shard: usize,
    /// The first shard that is left out.
    end: usize,
    /// Cursors, one for each layer of the current shard.
    cursors: Vec<Option<Cursor<'s, 'a>>>,
    /// The file that each of them stands on.
    order: BinaryHeap<Reverse<(FileKey, usize)>>,
    /// Directories of a tree below which entries may follow, ascending.
    directories: Vec<Vec<u8>>,
    checks_parents: bool,
    /// Counter of a walk that counts visible bytes.
    counter: Option<Counter>,
    /// Those of the last item, in a walk that is asked for them.
    places: Option<Vec<Place>>,
    /// Hears of each place of a file in a frame, in a walk that is watched.
    watch: Option<&'s mut Watch<'s>>,
    files: u64,
    bytes: u64,
    ended: bool,
}

impl Iterator for Items<'_, '_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Result<Item>> {
        if self.ended {
            return None;
        }
        let next = self.advance();
        if !matches!(next, Ok(Some(_))) {
            self.ended = true;
        }
        next.transpose()
    }
}

impl<'s, 'a> Items<'s, 'a> {
    /// Takes the places of the last item.
    pub(super) fn take_places(&mut self) -> Vec<Place> {
        self.places.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn advance(&mut self) -> Result<Option<Item>> {
        let snapshot = self.snapshot;
        while let Some((file, cursors)) = self.next_file()? {
            let mut merge = Merge::walk(snapshot, self.shard - 1, file.clone(), cursors)?;
            if !merge.is_known() {
                return Err(err!(Damaged, "{file:?} has extents and no metadata"));
            }
            let metadata = merge.metadata().cloned();
            let length = metadata.as_ref().and_then(Metadata::file_length);
            let (mut mapped_bytes, mut chunk_bytes) = (0, 0);
            let mut heard = Ok(());
            let (counter, places) = (&mut self.counter, &mut self.places);
            let watch = &mut self.watch;
            if let Some(places) = places.as_mut() {
                places.clear();
            }
            merge.sweep(0, length.unwrap_or(0), &mut |place| {
                if let Some(places) = places.as_mut() {
                    places.push(place);
                }
                let Some(at) = place.at else { return };
                match place.chunk {
                    Some(_) => chunk_bytes += place.length,
                    None => mapped_bytes += place.length,
                }
                if let Some(counter) = counter.as_mut() {
                    counter.add(at, &place);
                }
                if let (Some(watch), Ok(())) = (watch.as_mut(), &heard) {
                    heard = watch(&file, at, &place);
                }
            })?;
            heard?;
            for cursor in merge.finish()? {
                self.put_back(cursor)?;
            }
            let Some(metadata) = metadata else {
                continue;
            };
            self.files += u64::from(length.is_some());
            self.bytes = self.bytes.saturating_add(length.unwrap_or(0));
            let path = file.path(snapshot.naming());
            let is_of_tree = *snapshot.naming() == Naming::Tree && !file.is_attachment();
            if is_of_tree && self.checks_parents {
                self.check_parent(&path, &metadata)?;
            }
            return Ok(Some(Item {
                key: file,
                path,
                metadata,
                mapped_bytes,
                chunk_bytes,
            }));
        }
        match self.counter.is_some() || snapshot.has_counts(self.files, self.bytes) {
            true => Ok(None),
            false => Err(snapshot.disagree()),
        }
    }

    /// The next file, and the cursors that stand on it, newest layer first.
    fn next_file(&mut self) -> Result<Option<(FileKey, Vec<Cursor<'s, 'a>>)>> {
        let file = loop {
            if let Some(Reverse((file, _))) = self.order.peek() {
                break file.clone();
            }
            if self.shard >= self.end {
                return Ok(None);
            }
            let layers = self.snapshot.layer_count(self.shard);
            self.cursors.clear();
            self.cursors.resize_with(layers, || None);
            self.shard += 1;
            for cursor in Cursor::all(self.snapshot, self.shard - 1)? {
                self.put_back(cursor)?;
            }
        };
        let mut cursors = Vec::with_capacity(1);
        while let Some(Reverse((other, layer))) = self.order.peek()
            && *other == file
        {
            cursors.extend(self.cursors.get_mut(*layer).and_then(Option::take));
            self.order.pop();
        }
        cursors.reverse();
        Ok(Some((file, cursors)))
    }

    fn put_back(&mut self, mut cursor: Cursor<'s, 'a>) -> Result<()> {
        let layer = cursor.layer();
        let Some((file, _)) = cursor.head()? else {
            return Ok(());
        };
        self.order.push(Reverse((file.clone(), layer)));
        if let Some(slot) = self.cursors.get_mut(layer) {
            *slot = Some(cursor);
        }
        Ok(())
    }

    /// Requires that an entry of a tree lies in a directory that the tree has.
    fn check_parent(&mut self, path: &[u8], metadata: &Metadata) -> Result<()> {
        // `a-b` and what is below it sorts between `a` and `a/b`.
        let is_below = |directory: &[u8]| {
            directory.is_empty()
                || path
                    .strip_prefix(directory)
                    .is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        let is_over =
            |directory: &[u8]| !is_below(directory) && path > &[directory, b"/"].concat()[..];
        while self.directories.last().is_some_and(|last| is_over(last)) {
            self.directories.pop();
        }
        let parent = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => path.get(..at).unwrap_or_default(),
            None => b"",
        };
        if !path.is_empty() && !self.directories.iter().rev().any(|d| d == parent) {
            let shown = path.escape_ascii();
            return Err(err!(Damaged, "the map has no directory for \"{shown}\""));
        }
        match metadata {
            Metadata::Node(node) if node.kind == NodeKind::Directory => {
                self.directories.push(path.to_vec());
                Ok(())
            }
            _ if path.is_empty() => Err(err!(Damaged, "the root of the tree is no directory")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::root::ClusterContent;
    use crate::snapshot::filekey::tests::{CLUSTER, NAMING, any_path};
    use crate::snapshot::frame::FrameCodec;
    use crate::snapshot::writer::{Options, SnapshotWriter, Written};
    use crate::store::file::FileStore;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    type Files = BTreeMap<Vec<u8>, Vec<u8>>;

    const ID: &str = "20261120T064049Z-full";

    fn scope() -> Scope {
        Scope::cluster("main", 77).unwrap()
    }

    fn root(written: Written) -> BackupRoot {
        let (head, map) = written.head_and_map(ID.parse().unwrap());
        let content = ClusterContent {
            system_identifier: 77,
            major: CLUSTER.major,
            server_version_num: 150_020,
            catalog_version: CLUSTER.catalog_version,
            wal_segment_size_bytes: 16 << 20,
            ..ClusterContent::sample()
        };
        BackupRoot { head, content, map }
    }

    fn key(path: &[u8]) -> FileKey {
        FileKey::from_path(path, NAMING).unwrap()
    }

    fn write(dir: &Path, files: &Files, options: &Options, piece: usize) -> BackupRoot {
        let store = FileStore::open(dir, 1).unwrap();
        let id = ID.parse().unwrap();
        let written = std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, &store, &scope(), &id, options);
            let sink = writer.sink();
            sink.directory(&key(b"pg_twophase"), 0o700, 5).unwrap();
            sink.symlink(&key(b"pg_tblspc/9"), b"/mnt/x").unwrap();
            sink.finish().unwrap();
            // Arrival order is not key order, and each sink has its share.
            std::thread::scope(|readers| {
                for share in 0..options.sinks {
                    let mut sink = writer.sink();
                    let mine = files.iter().rev().skip(share).step_by(options.sinks);
                    readers.spawn(move || {
                        for (path, content) in mine {
                            sink.begin(key(path)).unwrap();
                            for piece in content.chunks(piece) {
                                sink.append(piece).unwrap();
                            }
                            assert_eq!(sink.end(0o100600, -3).unwrap(), content.len() as u64);
                        }
                        sink.finish().unwrap();
                    });
                }
            });
            writer.finish().unwrap()
        });
        root(written)
    }

    fn read(dir: &Path, root: &BackupRoot) -> Result<Files> {
        let store = FileStore::open(dir, 1).unwrap();
        let snapshot = Snapshot::open(&store, &scope(), root)?;
        let mut files = Files::new();
        let mut mapped = 0;
        for item in snapshot.items() {
            let item = item?;
            if let Metadata::File { length, mode, .. } = item.metadata {
                assert_eq!(mode, 0o600);
                let length = usize::try_from(length).unwrap();
                assert!(files.insert(item.path, vec![0; length]).is_none());
                mapped += item.mapped_bytes;
            }
        }
        for index in 0..root.map.packs.len() {
            let pack = snapshot.pack(index)?;
            for number in 0..pack.frame_count() {
                let frame = pack.frame(number)?;
                for visible in &frame.visible {
                    let path = frame.file(visible).unwrap().path(NAMING);
                    let content = files.get_mut(&path).unwrap();
                    let at = usize::try_from(visible.position).unwrap();
                    content[at..at + visible.length as usize].copy_from_slice(frame.bytes(visible));
                }
                mapped -= frame.visible_bytes();
            }
        }
        if mapped == 0 {
            Ok(files)
        } else {
            Err(err!(Damaged, "{mapped} bytes are missing"))
        }
    }

    fn options(dir: &Path) -> Options {
        Options::new(FrameCodec::Lz4, 2, dir.to_owned())
    }

    #[test]
    fn a_history_that_is_not_utf8_is_kept_in_hexadecimal() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::create(&dir.path().join("repo"), 1).unwrap();
        let mut root = root(Written::default());
        root.content.timeline = 2;
        root.content
            .set_history(b"1\t0/3000000\tat restore point \"caf\xe9\"\n");
        root.commit(&store, &scope()).unwrap();
        let back = BackupRoot::read(&store, &scope(), &root.head.id).unwrap();
        let back = back.unwrap();
        assert_eq!(back.content.history, None);
        assert!(
            back.content
                .history_hex
                .unwrap()
                .ends_with("22636166e9220a")
        );
        root.content.set_history(b"1\t0/3000000\tno reason\n");
        assert_eq!(
            root.content.history.as_deref(),
            Some("1\t0/3000000\tno reason\n")
        );
        assert_eq!(root.content.history_hex, None);
    }

    /// Pages of text, zeros and noise.
    fn content(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut out = Vec::with_capacity(length);
        while out.len() < length {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let n = (length - out.len()).min(8192);
            match (state >> 40) % 3 {
                0 => out.resize(out.len() + n, 0),
                1 => out.resize(out.len() + n, state.to_be_bytes()[1]),
                _ => out.extend((0..n).map(|i| (state >> (i % 57)).to_le_bytes()[0])),
            }
        }
        out
    }

    fn sample() -> Files {
        let mut files = Files::new();
        for (i, (path, length)) in [
            ("base/1/1259", 3_000_000),
            ("base/1/1259.1", 8192),
            ("base/1/1259_fsm", 24_576),
            ("base/1/2", 0),
            ("global/pg_control", 8192),
            ("PG_VERSION", 3),
            ("pg_xact/0000", 8192),
            ("odd", 8193),
        ]
        .into_iter()
        .enumerate()
        {
            files.insert(path.into(), content(i as u64, length));
        }
        files.insert("zeros".into(), vec![0; 100_000]);
        files
    }

    #[test]
    fn files_come_back_in_every_way() {
        let dir = tempfile::tempdir().unwrap();
        let files = sample();
        let root = write(dir.path(), &files, &options(dir.path()), 5000);
        assert_eq!(root.head.file_count, 9);
        assert_eq!(read(dir.path(), &root).unwrap(), files);
        let store = FileStore::open(dir.path(), 1).unwrap();
        let snapshot = Snapshot::open(&store, &scope(), &root).unwrap();
        for (path, content) in &files {
            let path = std::str::from_utf8(path).unwrap();
            let found = snapshot.read_file(path, 4 << 20).unwrap().unwrap();
            assert!(found == *content, "{path}");
            assert_eq!(content.len() < 10, snapshot.read_file(path, 10).is_ok());
        }
        assert!(snapshot.read_file("base/1/3", 10).unwrap().is_none());
        let items: Vec<Item> = snapshot.items().map(Result::unwrap).collect();
        assert_eq!(items.len(), 11);
        assert!(items.is_sorted_by_key(|i| i.key.clone()));
        let link = items.iter().find(|i| i.path == b"pg_tblspc/9").unwrap();
        let target = b"/mnt/x".to_vec();
        assert_eq!(link.metadata, Metadata::Symlink { target });
        assert!(
            snapshot.places(&key(b"zeros"), 50_000, u64::MAX).unwrap()[0]
                .at
                .is_none()
        );
        assert!(
            snapshot
                .places(&key(b"PG_VERSION"), 3, 9)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn many_files_make_many_packs_and_shards() {
        let dir = tempfile::tempdir().unwrap();
        let files: Files = (1..=3000_u64)
            .map(|i| (format!("base/5/{i}").into_bytes(), content(i, 9000)))
            .collect();
        let mut options = options(dir.path());
        options.pack_bytes = 32 << 10;
        options.shard_files = 500;
        options.codec = FrameCodec::Zstd(1);
        let root = write(dir.path(), &files, &options, 1 << 20);
        assert!(
            root.map.packs.len() > 3 && root.map.shards.len() == 7,
            "{root:?}"
        );
        assert_eq!(read(dir.path(), &root).unwrap(), files);
    }

    /// More pieces than an entry holds, and more bytes of paths than an extent list.
    #[test]
    fn entries_and_extent_lists_are_split() {
        let dir = tempfile::tempdir().unwrap();
        let pages = (0..2500_usize).map(|i| vec![if i % 2 == 0 { 0 } else { b'a' }; 8192]);
        let mut files = Files::new();
        files.insert("base/1/7".into(), pages.flatten().collect());
        for i in 0..40 {
            let part = vec![b'p'; 240];
            let mut path = vec![part; 16].join(&b'/');
            path.extend_from_slice(format!("{i}").as_bytes());
            files.insert(path, b"small".to_vec());
        }
        let root = write(dir.path(), &files, &options(dir.path()), 1 << 16);
        assert!(root.map.packs[0].live_frames > 11, "{root:?}");
        assert_eq!(read(dir.path(), &root).unwrap(), files);
        let store = FileStore::open(dir.path(), 1).unwrap();
        let snapshot = Snapshot::open(&store, &scope(), &root).unwrap();
        let file = key(b"base/1/7");
        for (from, to) in [
            (0, 1),
            (8191, 8193),
            (10_000_000, 10_100_001),
            (20_479_999, 1 << 40),
        ] {
            let places = snapshot.places(&file, from, to).unwrap();
            assert_eq!(places[0].position, from);
            let last = places[places.len() - 1];
            assert_eq!(last.position + last.length, to.min(20_480_000));
            assert!(
                places
                    .windows(2)
                    .all(|w| w[0].position + w[0].length == w[1].position)
            );
        }
    }

    #[test]
    fn a_snapshot_of_nothing_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = write(dir.path(), &Files::new(), &options(dir.path()), 1);
        assert!(root.map.packs.is_empty());
        assert!(read(dir.path(), &root).unwrap().is_empty());
    }

    #[test]
    fn a_writer_that_gives_up_leaves_no_pack() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let id = ID.parse().unwrap();
        std::thread::scope(|threads| {
            let options = options(dir.path());
            let writer = SnapshotWriter::start(threads, &store, &scope(), &id, &options);
            let (mut sink, mut other) = (writer.sink(), writer.sink());
            sink.begin(key(b"a")).unwrap();
            sink.append(&content(1, 3 << 20)).unwrap();
            drop(sink);
            // Frames of another sink do not wait for the frame that was lost.
            other.begin(key(b"b")).unwrap();
            let given_up = (0..100).find_map(|_| other.append(&content(2, 1 << 20)).err());
            assert_eq!(given_up.unwrap().code(), crate::error::Code::Interrupted);
        });
        let prefix = scope().parts(crate::repo::id::PartKind::Pack, None);
        assert!(store.list(&prefix).unwrap().iter().all(|l| l.is_prefix));
    }

    #[test]
    fn paths_that_come_twice_and_sinks_that_are_open_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let id = ID.parse().unwrap();
        let failed = std::thread::scope(|threads| {
            let options = options(dir.path());
            let writer = SnapshotWriter::start(threads, &store, &scope(), &id, &options);
            for _ in 0..2 {
                let mut sink = writer.sink();
                assert!(sink.append(b"x").is_err() && sink.end(0, 0).is_err());
                sink.begin(key(b"a")).unwrap();
                assert!(sink.begin(key(b"b")).is_err());
                sink.append(b"x").unwrap();
                assert_eq!(sink.end(0, 0).unwrap(), 1);
                sink.finish().unwrap();
            }
            writer.finish().unwrap_err()
        });
        assert!(failed.to_string().contains("came twice"), "{failed}");
    }

    #[test]
    fn a_pack_that_cannot_be_written_stops_the_writer_with_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let id: crate::repo::id::BackupId = ID.parse().unwrap();
        let part = PartName {
            id: id.clone(),
            number: 0,
        };
        crate::store::put(&store, &scope().pack(&part), b"taken").unwrap();
        let failed = std::thread::scope(|threads| {
            let mut options = options(dir.path());
            options.pack_bytes = 1;
            let writer = SnapshotWriter::start(threads, &store, &scope(), &id, &options);
            let mut sink = writer.sink();
            for i in 0..100 {
                let path = format!("f{i}");
                sink.begin(key(path.as_bytes()))?;
                sink.append(&vec![b'x'; 1 << 20])?;
                sink.end(0, 0)?;
            }
            sink.finish()?;
            writer.finish()
        });
        assert_eq!(failed.unwrap_err().code(), crate::error::Code::Conflict);
    }

    /// Every object, damaged in some place in every way, is either refused or was not needed.
    #[test]
    fn damage_of_any_object_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = sample();
        files.insert("base/1/1259".into(), content(1, 60_000));
        let root = write(dir.path(), &files, &options(dir.path()), 100_000);
        let prefix = dir.path().join(scope().prefix());
        for object in [format!("packs/{ID}/000000"), format!("layers/{ID}/000000")] {
            let path = prefix.join(object);
            let good = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert!(read(dir.path(), &root).is_err());
            let page_hashes = page_hash_range(&good);
            for at in (0..good.len()).step_by(61) {
                if page_hashes.contains(&at) {
                    continue;
                }
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                std::fs::write(&path, &bad).unwrap();
                assert!(read(dir.path(), &root).is_err(), "byte {at} of {path:?}");
                std::fs::write(&path, &good[..at]).unwrap();
                assert!(read(dir.path(), &root).is_err(), "cut at {at} of {path:?}");
            }
            std::fs::write(&path, &good).unwrap();
            assert!(read(dir.path(), &root).is_ok());
        }
    }

    /// Page hashes are no part of an ordinary read.
    fn page_hash_range(pack: &[u8]) -> std::ops::Range<usize> {
        if !pack.starts_with(b"PITRPAK1") {
            return 0..0;
        }
        let number = |at: usize| {
            let bytes = pack[pack.len() - 64 + at..][..8].try_into().unwrap();
            usize::try_from(u64::from_le_bytes(bytes)).unwrap()
        };
        number(0)..number(8)
    }

    #[test]
    fn a_shard_has_one_to_128_layers() {
        let dir = tempfile::tempdir().unwrap();
        let mut root = write(dir.path(), &sample(), &options(dir.path()), 5000);
        let layer = root.map.shards[0].layers[0].clone();
        root.map.shards[0].layers = vec![layer.clone(); 128];
        assert_eq!(read(dir.path(), &root).unwrap(), sample());
        root.map.shards[0].layers.push(layer);
        let refused = read(dir.path(), &root).unwrap_err();
        assert_eq!(refused.code(), crate::error::Code::Unsupported);
        root.map.shards[0].layers.clear();
        assert!(read(dir.path(), &root).is_err());
        root.map.shards.clear();
        assert!(read(dir.path(), &root).is_err());
    }

    /// A layer that leads to a wrong frame is refused although every object is whole: pack and map of two backups of the same id.
    #[test]
    fn a_map_that_leads_to_another_frame_is_refused() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = sample();
        let root = write(one.path(), &files, &options(one.path()), 5000);
        let mut swapped = files.clone();
        let a = swapped.insert(
            "pg_xact/0000".into(),
            files[&b"global/pg_control"[..]].clone(),
        );
        swapped.insert("global/pg_control".into(), a.unwrap());
        write(two.path(), &swapped, &options(two.path()), 5000);
        let pack = format!("{}/packs/{ID}/000000", scope().prefix());
        std::fs::copy(two.path().join(&pack), one.path().join(&pack)).unwrap();
        assert!(read(one.path(), &root).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_files_come_back(
            paths in proptest::collection::btree_set(any_path(), 0..30),
            lengths in proptest::collection::vec(prop_oneof![0_usize..300, 8000_usize..9000, 0_usize..300_000], 30),
            piece in 1_usize..70_000,
            sinks in 1_usize..5,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let files: Files = paths
                .into_iter()
                .filter(|p| crate::pg::manifest::is_safe_relative_path(p))
                .zip(lengths)
                .enumerate()
                .map(|(i, (path, length))| (path, content(i as u64, length)))
                .collect();
            let mut options = options(dir.path());
            options.pack_bytes = 100_000;
            options.shard_files = 7;
            options.sinks = sinks;
            let root = write(dir.path(), &files, &options, piece);
            prop_assert_eq!(read(dir.path(), &root).unwrap(), files);
        }
    }
}
