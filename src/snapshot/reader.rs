//! Reads a snapshot: what there is, in key order; where the bytes of a file are; and pack by pack, frame by frame, what to write where.
//!
//! Restore's way: walk [`Snapshot::items`] to create everything in full length (zeros need no writing) and to sum `mapped_bytes`;
//! then, on any number of threads, [`Snapshot::pack`] and [`PackOfSnapshot::frame`], which hands out only bytes that the map leads to,
//! exactly there. When the bytes handed out equal the sum, every byte of every file was delivered once.
//!
//! Several layers to a shard (newest wins) come with incrementals; today they are refused.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::filekey::{FileKey, Naming, Part};
use super::frame::Frame;
use super::layer::{Entry, Layer, Metadata};
use super::pack::PackReader;
use super::piece::{self, Source};
use super::spare::Spares;
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::PartName;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::root::{BackupRoot, Head, LayerRef, Map, PackRef};
use crate::repo::scope::Scope;
use crate::store::{Key, Store};
use crate::text::unhex;

/// Decoded blocks kept for lookups; each is some tens of KiB.
const CACHED_BLOCKS: usize = 96;

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
            naming: Naming {
                major: root.content.major,
                catalog_version: root.content.catalog_version,
            },
        }
    }
}

impl<'a> From<&'a AuxRoot> for SnapshotRoot<'a> {
    fn from(root: &'a AuxRoot) -> SnapshotRoot<'a> {
        SnapshotRoot {
            head: &root.head,
            map: &root.map,
            naming: Naming::TREE,
        }
    }
}

/// A snapshot open for reading. The chain of hashes from the root to every byte is checked as it is walked.
pub struct Snapshot<'a> {
    store: &'a dyn Store,
    scope: Scope,
    root: SnapshotRoot<'a>,
    shards: Vec<Shard<'a>>,
    pack_hashes: HashMap<PartName, [u8; 32]>,
    cache: Mutex<Cache>,
    spares: Option<&'a Spares<'a>>,
}

struct Shard<'a> {
    first_key: Vec<u8>,
    layer: Layer,
    reference: &'a LayerRef,
    /// Indexes in `root.map.packs`, by the layer's own.
    packs: Vec<usize>,
}

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its key.
    pub key: FileKey,
    /// Its path relative to the data directory, the bytes on disk.
    pub path: Vec<u8>,
    /// What it is.
    pub metadata: Metadata,
    /// Of a file: bytes that come from frames; the others are zeros.
    pub mapped_bytes: u64,
}

/// Where a stretch of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Byte position in the file.
    pub position: u64,
    /// Bytes.
    pub length: u64,
    /// Its source; `None` for zeros.
    pub at: Option<FramePlace>,
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
    /// `Damaged` when a layer is missing or fails a check, or root and layers disagree; `Unsupported` for several layers to a shard.
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
        let mut snapshot = Snapshot {
            store,
            scope: scope.clone(),
            root,
            shards: Vec::with_capacity(root.map.shards.len()),
            pack_hashes: HashMap::new(),
            cache: Mutex::default(),
            spares,
        };
        let positions: HashMap<&PartName, usize> =
            root.map.packs.iter().map(|p| &p.key).zip(0..).collect();
        for shard in &root.map.shards {
            let [reference] = shard.layers.as_slice() else {
                return Err(err!(
                    Unsupported,
                    "backup \"{}\" has {} layers to a shard",
                    root.head.id,
                    shard.layers.len()
                )
                .hint("Use a newer version of pitr, which can read incremental backups."));
            };
            let first_key = unhex(&shard.first_key).ok_or_else(|| snapshot.disagree())?;
            snapshot.check_order(&first_key)?;
            let layer = snapshot.open_layer(reference)?;
            let packs = snapshot.join_packs(&layer, &positions)?;
            snapshot.shards.push(Shard {
                first_key,
                layer,
                reference,
                packs,
            });
        }
        let files: u64 = snapshot.shards.iter().map(|s| s.layer.file_count()).sum();
        let sizes = snapshot.shards.iter().map(|s| s.layer.raw_bytes());
        let bytes = sizes.fold(0_u64, u64::saturating_add);
        if snapshot.shards.is_empty()
            || files != root.head.file_count
            || bytes != root.head.size_bytes
        {
            return Err(snapshot.disagree());
        }
        Ok(snapshot)
    }

    fn disagree(&self) -> crate::error::Error {
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
                FileKey::decode(first_key, &self.root.naming)?;
                first_key > last.first_key.as_slice()
            }
        };
        if right { Ok(()) } else { Err(self.disagree()) }
    }

    /// What `read` makes of the store, or of another one that has the object whole.
    fn proven<T>(&self, key: &Key, read: impl Fn(&dyn Store) -> Result<T>) -> Result<T> {
        let own = read(self.store);
        match self.spares {
            Some(spares) => spares.or_other(key, own, read),
            None => own,
        }
    }

    fn open_layer(&self, reference: &LayerRef) -> Result<Layer> {
        let key = self.scope.layer(&reference.key);
        self.proven(&key, |store| self.open_layer_in(store, reference))
    }

    fn open_layer_in(&self, store: &dyn Store, reference: &LayerRef) -> Result<Layer> {
        let key = self.scope.layer(&reference.key);
        let object = store
            .open(&key)?
            .ok_or_else(|| err!(Damaged, "layer \"{}\" is missing", reference.key))?;
        let hash = unhex(&reference.hash)
            .and_then(|h| <[u8; 32]>::try_from(h).ok())
            .ok_or_else(|| self.disagree())?;
        Layer::open(
            object,
            (reference.offset, reference.length),
            &hash,
            &reference.key,
            self.scope.tag(),
        )
        .map_err(|e| e.context(format!("open layer \"{}\"", reference.key)))
    }

    /// Finds the layer's packs in the root, and notes their hashes.
    fn join_packs(
        &mut self,
        layer: &Layer,
        positions: &HashMap<&PartName, usize>,
    ) -> Result<Vec<usize>> {
        let mut packs = Vec::with_capacity(layer.packs().len());
        for (part, hash) in layer.packs() {
            let known = self.pack_hashes.insert(part.clone(), *hash);
            let position = positions.get(part).ok_or_else(|| self.disagree())?;
            if known.is_some_and(|known| known != *hash) {
                return Err(self.disagree());
            }
            packs.push(*position);
        }
        Ok(packs)
    }

    /// What names of directories depend on.
    pub fn naming(&self) -> &Naming {
        &self.root.naming
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
        Items {
            snapshot: self,
            shard: 0,
            block: 0,
            entries: Vec::new().into_iter(),
            pending: None,
            last_key: Vec::new(),
            ended: false,
        }
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
        let key = self.scope.pack(&pack.key);
        Ok(PackOfSnapshot {
            snapshot: self,
            index,
            reader: self.proven(&key, |store| self.open_pack_in(store, pack))?,
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
        let key = file.metadata_entry();
        let Some(shard) = self.shard_for(file) else {
            return Ok(None);
        };
        let Some(block) = self.block_for(shard, &key)? else {
            return Ok(None);
        };
        let found = block.binary_search_by(|e| e.key.as_ref().cmp(&key));
        match found.ok().and_then(|i| block.get(i)) {
            Some(entry) => Metadata::decode(entry.kind, &entry.value).map(Some),
            None => Ok(None),
        }
    }

    fn shard_for(&self, file: &FileKey) -> Option<usize> {
        self.shards
            .partition_point(|s| s.first_key.as_slice() <= file.as_bytes())
            .checked_sub(1)
    }

    fn block_for(&self, shard: usize, key: &[u8]) -> Result<Option<Arc<Vec<Entry>>>> {
        let number = self.shards.get(shard).map(|s| s.layer.block_for(key));
        match number.flatten() {
            Some(number) => self.block(shard, number).map(Some),
            None => Ok(None),
        }
    }

    fn whole_block(&self, shard: &Shard<'_>, number: usize) -> Result<Vec<Entry>> {
        let own = shard.layer.block(number);
        let Some(spares) = self.spares else {
            return own;
        };
        let key = self.scope.layer(&shard.reference.key);
        spares.or_other(&key, own, |store| {
            self.open_layer_in(store, shard.reference)?.block(number)
        })
    }

    fn block(&self, shard: usize, number: usize) -> Result<Arc<Vec<Entry>>> {
        let poisoned = |_| err!(Internal, "a thread that reads layers panicked");
        if let Some(block) = self.cache.lock().map_err(poisoned)?.get(shard, number) {
            return Ok(block);
        }
        let Some(found) = self.shards.get(shard) else {
            return Err(err!(Internal, "the backup has no shard {shard}"));
        };
        // Decoded outside the lock; two threads may do it twice.
        let block = self.whole_block(found, number);
        let block = Arc::new(block?);
        let mut cache = self.cache.lock().map_err(poisoned)?;
        cache.put(shard, number, Arc::clone(&block));
        Ok(block)
    }

    /// Where the bytes `[from, to)` of a file are, in order. Bytes behind the file's end, or of a file that is none, are nowhere.
    ///
    /// # Errors
    /// `Damaged` when a part of the map fails a check or a byte below the file's length is not covered.
    pub fn places(&self, file: &FileKey, from: u64, to: u64) -> Result<Vec<Place>> {
        let Some(Metadata::File { length, .. }) = self.metadata(file)? else {
            return Ok(Vec::new());
        };
        let to = to.min(length);
        let mut places = Vec::new();
        if from >= to {
            return Ok(places);
        }
        let uncovered = || err!(Damaged, "no part of the map covers byte {from} of {file:?}");
        let shard = self.shard_for(file).ok_or_else(uncovered)?;
        let start = file.extents_entry(from);
        let layer = self.shards.get(shard).map(|s| &s.layer);
        let mut number = layer
            .and_then(|l| l.block_for(&start))
            .ok_or_else(uncovered)?;
        let mut at = from;
        while at < to && layer.is_some_and(|l| number < l.block_count()) {
            let block = self.block(shard, number)?;
            // The last entry not behind the position, else the first one.
            let first = block
                .partition_point(|e| e.key.as_ref() <= start.as_slice())
                .saturating_sub(1);
            for entry in block.iter().skip(first) {
                if at >= to {
                    break;
                }
                let (other, part) = entry.split(&self.root.naming)?;
                if other > *file {
                    return Err(uncovered());
                }
                let Part::Extents(position) = part else {
                    continue;
                };
                if other == *file {
                    self.entry_places(shard, position, &entry.value, (&mut at, to), &mut places)?;
                }
            }
            number += 1;
        }
        if at < to {
            Err(uncovered())
        } else {
            Ok(places)
        }
    }

    /// Appends what one entry has of `[at, to)`, and moves `at` on.
    fn entry_places(
        &self,
        shard: usize,
        position: u64,
        value: &[u8],
        (at, to): (&mut u64, u64),
        places: &mut Vec<Place>,
    ) -> Result<()> {
        let packs = self
            .shards
            .get(shard)
            .map_or(&[][..], |s| s.packs.as_slice());
        for piece in piece::decode(position, value, packs.len())? {
            let end = (piece.position + piece.length).min(to);
            if end <= *at || piece.position > *at {
                continue;
            }
            let skipped = *at - piece.position;
            let source = match piece.source {
                Source::Zeros => None,
                Source::Frame {
                    pack,
                    frame,
                    offset,
                } => Some(FramePlace {
                    pack: *packs.get(pack as usize).ok_or_else(|| self.disagree())?,
                    frame,
                    // Pieces end inside the largest frame, so this fits.
                    offset: offset + u32::try_from(skipped).unwrap_or(u32::MAX - offset),
                }),
            };
            places.push(Place {
                position: *at,
                length: end - *at,
                at: source,
            });
            *at = end;
        }
        Ok(())
    }

    /// A whole small file; `None` when the backup has no regular file of this path.
    ///
    /// # Errors
    /// `Damaged` when it is larger than `limit_bytes` or a check fails.
    pub fn read_file(&self, path: &str, limit_bytes: usize) -> Result<Option<Vec<u8>>> {
        let file = FileKey::from_path(path.as_bytes(), &self.root.naming)?;
        let Some(Metadata::File { length, .. }) = self.metadata(&file)? else {
            return Ok(None);
        };
        let size = usize::try_from(length)
            .ok()
            .filter(|n| *n <= limit_bytes)
            .ok_or_else(|| err!(Damaged, "file \"{path}\" has {length} bytes"))?;
        let mut content = Vec::with_capacity(size);
        for place in self.places(&file, 0, length)? {
            let n = usize::try_from(place.length).unwrap_or(0);
            let Some(at) = place.at else {
                content.resize(content.len() + n, 0);
                continue;
            };
            let pack = self.pack(at.pack)?;
            let frame = pack.frame(at.frame)?;
            let found = frame.visible.iter().find(|v| {
                let file_there = frame.extents().get(v.extent).map(|e| &e.file);
                file_there == Some(&file)
                    && v.position <= place.position
                    && place.position + place.length <= v.position + u64::from(v.length)
            });
            let visible = found.ok_or_else(|| {
                err!(
                    Damaged,
                    "frame {} does not hold what the map expects of \"{path}\"",
                    at.frame
                )
            })?;
            let skip = usize::try_from(place.position - visible.position).unwrap_or(0);
            let bytes = frame.bytes(visible).get(skip..skip + n);
            content.extend_from_slice(bytes.unwrap_or_default());
        }
        Ok(Some(content))
    }
}

/// A pack of the snapshot, open and checked.
pub struct PackOfSnapshot<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    index: usize,
    reader: PackReader,
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

    fn whole_frame(&self, number: u32) -> Result<Frame> {
        let snapshot = self.snapshot;
        let Some(pack) = snapshot.root.map.packs.get(self.index) else {
            return self.reader.frame(number);
        };
        let named = |e: Error| {
            let part = &pack.key;
            e.context(format!("read frame {number} of pack \"{part}\""))
        };
        let own = self.reader.frame(number).map_err(named);
        let Some(spares) = snapshot.spares else {
            return own;
        };
        let key = snapshot.scope.pack(&pack.key);
        spares.or_other(&key, own, |store| {
            snapshot.open_pack_in(store, pack)?.frame(number)
        })
    }

    /// Reads one frame, checks it, and says which of its bytes the map leads to.
    ///
    /// # Errors
    /// `Damaged` when frame or map fail a check.
    pub fn frame(&self, number: u32) -> Result<VisibleFrame> {
        let frame = self.whole_frame(number)?;
        let mut visible = Vec::new();
        let mut offset = 0_u32;
        for (i, extent) in frame.extents.iter().enumerate() {
            let end = extent.position + u64::from(extent.length);
            let places = self.snapshot.places(&extent.file, extent.position, end)?;
            for place in places {
                let skipped = u32::try_from(place.position - extent.position).unwrap_or(u32::MAX);
                let here = FramePlace {
                    pack: self.index,
                    frame: number,
                    offset: offset.saturating_add(skipped),
                };
                if place.at == Some(here) {
                    visible.push(Visible {
                        extent: i,
                        position: place.position,
                        offset: here.offset,
                        length: u32::try_from(place.length).unwrap_or(0),
                    });
                }
            }
            offset = offset.saturating_add(extent.length);
        }
        Ok(VisibleFrame { frame, visible })
    }
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
    /// What the map leads to.
    pub visible: Vec<Visible>,
}

impl VisibleFrame {
    /// The frame's extents.
    pub fn extents(&self) -> &[super::frame::Extent] {
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

/// Walks everything in key order; see [`Snapshot::items`].
pub struct Items<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    shard: usize,
    block: usize,
    entries: std::vec::IntoIter<Entry>,
    /// The item whose extents are being read, and how far they reach.
    pending: Option<(Item, u64)>,
    last_key: Vec<u8>,
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

impl Items<'_, '_> {
    fn advance(&mut self) -> Result<Option<Item>> {
        while let Some((shard, entry)) = self.next_entry()? {
            let snapshot = self.snapshot;
            let (key, part) = entry.split(&snapshot.root.naming)?;
            if let Part::Extents(position) = part {
                self.add_extents(shard, &key, position, &entry.value)?;
                continue;
            }
            let path = key.path(&snapshot.root.naming);
            let item = Item {
                key,
                path,
                metadata: Metadata::decode(entry.kind, &entry.value)?,
                mapped_bytes: 0,
            };
            if let Some(done) = self.pending.replace((item, 0)) {
                return complete(done).map(Some);
            }
        }
        self.pending.take().map(complete).transpose()
    }

    /// The next entry and its shard; blocks are not kept in the cache, which is for lookups.
    fn next_entry(&mut self) -> Result<Option<(usize, Entry)>> {
        loop {
            if let Some(entry) = self.entries.next() {
                let shards = &self.snapshot.shards;
                let from = shards.get(self.shard).map(|s| s.first_key.as_slice());
                let to = shards.get(self.shard + 1).map(|s| s.first_key.as_slice());
                let key = entry.key.as_ref();
                if *key <= *self.last_key || Some(key) < from || to.is_some_and(|to| key >= to) {
                    return Err(self.snapshot.disagree());
                }
                self.last_key.clear();
                self.last_key.extend_from_slice(key);
                return Ok(Some((self.shard, entry)));
            }
            let Some(shard) = self.snapshot.shards.get(self.shard) else {
                return Ok(None);
            };
            if self.block < shard.layer.block_count() {
                let block = self.snapshot.whole_block(shard, self.block)?;
                self.entries = block.into_iter();
                self.block += 1;
            } else {
                self.shard += 1;
                self.block = 0;
            }
        }
    }

    fn add_extents(
        &mut self,
        shard: usize,
        key: &FileKey,
        position: u64,
        value: &[u8],
    ) -> Result<()> {
        let packs = self.snapshot.shards.get(shard).map_or(0, |s| s.packs.len());
        let Some((item, end)) = self.pending.as_mut().filter(|(item, _)| item.key == *key) else {
            return Err(err!(Damaged, "{key:?} has extents and no metadata"));
        };
        for piece in piece::decode(position, value, packs)? {
            if piece.position != *end {
                return Err(err!(
                    Damaged,
                    "the extents of {key:?} do not continue at byte {end}"
                ));
            }
            *end = piece.position + piece.length;
            if piece.source != Source::Zeros {
                item.mapped_bytes += piece.length;
            }
        }
        Ok(())
    }
}

/// Requires that the extents end with the file.
fn complete((item, end): (Item, u64)) -> Result<Item> {
    let length = match item.metadata {
        Metadata::File { length, .. } => length,
        _ => 0,
    };
    if end == length {
        Ok(item)
    } else {
        Err(err!(
            Damaged,
            "the extents of {:?} end at byte {end} of {length}",
            item.key
        ))
    }
}

/// Blocks used last.
#[derive(Default)]
struct Cache {
    blocks: VecDeque<(usize, usize, Arc<Vec<Entry>>)>,
}

impl Cache {
    fn get(&mut self, shard: usize, number: usize) -> Option<Arc<Vec<Entry>>> {
        let at = self
            .blocks
            .iter()
            .position(|(s, n, _)| (*s, *n) == (shard, number))?;
        let hit = self.blocks.remove(at)?;
        let block = Arc::clone(&hit.2);
        self.blocks.push_front(hit);
        Some(block)
    }

    fn put(&mut self, shard: usize, number: usize, block: Arc<Vec<Entry>>) {
        self.blocks.push_front((shard, number, block));
        self.blocks.truncate(CACHED_BLOCKS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::time::TimestampTz;
    use crate::repo::root::BackupKind;
    use crate::repo::root::cluster::Method;
    use crate::repo::root::{ClusterContent, Head, Map};
    use crate::snapshot::filekey::tests::{NAMING, any_path};
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
        BackupRoot {
            head: Head {
                id: ID.parse().unwrap(),
                nonce: String::new(),
                backup_kind: BackupKind::Full,
                prior: None,
                label: String::new(),
                start_time: TimestampTz(0),
                stop_time: TimestampTz(0),
                file_count: written.file_count,
                size_bytes: written.size_bytes,
                stored_bytes: written.stored_bytes,
                program: String::new(),
                features: Vec::new(),
            },
            content: ClusterContent {
                method: Method::Stream,
                cluster: "main".into(),
                system_identifier: 77,
                major: NAMING.major,
                server_version_num: 150_020,
                catalog_version: NAMING.catalog_version,
                start_lsn: Default::default(),
                stop_lsn: Default::default(),
                consistent_lsn: Default::default(),
                checkpoint_lsn: Default::default(),
                start_timeline: 1,
                timeline: 1,
                history: None,
                history_hex: None,
                from_standby: false,
                data_checksums: true,
                wal_segment_size_bytes: 16 << 20,
                block_size_bytes: 8192,
                relseg_blocks: 131_072,
                timezone: None,
                tablespaces: Vec::new(),
                server_manifest: None,
                wal_proof: None,
                damage: Vec::new(),
                damage_count: 0,
                damage_reported_by_server: false,
            },
            map: Map {
                shards: written.shards,
                packs: written.packs,
            },
        }
    }

    fn key(path: &[u8]) -> FileKey {
        FileKey::from_path(path, &NAMING).unwrap()
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
                            sink.begin(key(path), 0o100600, -3).unwrap();
                            for piece in content.chunks(piece) {
                                sink.append(piece).unwrap();
                            }
                            assert_eq!(sink.end().unwrap(), content.len() as u64);
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
                    let path = frame.file(visible).unwrap().path(&NAMING);
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
        let mut root = root(Written {
            shards: Vec::new(),
            packs: Vec::new(),
            file_count: 0,
            size_bytes: 0,
            stored_bytes: 0,
        });
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
            sink.begin(key(b"a"), 0, 0).unwrap();
            sink.append(&content(1, 3 << 20)).unwrap();
            drop(sink);
            // Frames of another sink do not wait for the frame that was lost.
            other.begin(key(b"b"), 0, 0).unwrap();
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
                assert!(sink.append(b"x").is_err() && sink.end().is_err());
                sink.begin(key(b"a"), 0, 0).unwrap();
                assert!(sink.begin(key(b"b"), 0, 0).is_err());
                sink.append(b"x").unwrap();
                assert_eq!(sink.end().unwrap(), 1);
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
                sink.begin(key(path.as_bytes()), 0, 0)?;
                sink.append(&vec![b'x'; 1 << 20])?;
                sink.end()?;
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
    fn several_layers_to_a_shard_are_not_supported_yet() {
        let dir = tempfile::tempdir().unwrap();
        let mut root = write(dir.path(), &sample(), &options(dir.path()), 5000);
        let layer = root.map.shards[0].layers[0].clone();
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
