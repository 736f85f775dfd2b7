//! The layers of a snapshot: opened when they are read, and given up when others are read.
//!
//! A map has as many layers as its chain has backups, for each of its shards. Little of them is kept in memory, and few objects are open.
//! Lookups read a block here and there. Across a network each is a request, so a layer that is asked often is copied to an unnamed file.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use super::layer::{Entry, LayerIndex};
use super::spare::Sources;
use crate::err;
use crate::error::{Error, Result};
use crate::recent::Recent;
use crate::repo::root::{LayerRef, Map};
use crate::repo::scope::Scope;
use crate::store::{Object, Store};
use crate::text::unhex_array;

/// Objects that are open at once: more than a shard has layers. In a directory each of them is two descriptors.
const OBJECTS: usize = 160;
/// Memory for indexes of layers.
const INDEXES_BYTES: usize = 14 << 20;
/// Indexes and decoded blocks that are kept.
const KEPT: usize = 4096;
/// Memory for decoded blocks of lookups. The server sends the files of a database in the order of its directory: all of their blocks are asked
/// again and again. With a quarter of this, a million files took `verify` nine times the processor time.
const BLOCKS_BYTES: usize = 20 << 20;
/// As much of it as lookups in the order of files need, by several threads: some, and some more for each layer of a shard.
const BLOCKS_IN_ORDER_BYTES: usize = 4 << 20;
const BLOCKS_OF_LAYER_BYTES: usize = 512 << 10;
/// Layers that are opened at once across a network.
pub(super) const THREADS: usize = 16;
/// A request takes as long as the transfer of so many bytes.
const REQUEST_BYTES: u64 = 1 << 20;
/// A layer is copied in pieces of this length.
const COPY_BYTES: usize = 1 << 20;

/// A layer: its shard, and its number there.
pub(super) type LayerPlace = (usize, usize);
/// A block: shard, layer and number.
pub(super) type BlockPlace = (usize, usize, usize);

type SharedObject = Arc<Box<dyn Object>>;

/// Reads the layers that a root names.
pub(super) struct OpenLayers<'a> {
    sources: Sources<'a>,
    scope: Scope,
    map: &'a Map,
    indexes: Mutex<Recent<LayerPlace, LayerIndex>>,
    objects: Mutex<Recent<LayerPlace, Box<dyn Object>>>,
    blocks: Mutex<Recent<BlockPlace, Vec<Entry>>>,
    spool: Option<Spool>,
}

impl<'a> OpenLayers<'a> {
    pub fn new(sources: Sources<'a>, scope: &Scope, map: &'a Map) -> OpenLayers<'a> {
        OpenLayers {
            sources,
            scope: scope.clone(),
            map,
            indexes: Mutex::new(Recent::new(KEPT, INDEXES_BYTES)),
            objects: Mutex::new(Recent::new(OBJECTS, usize::MAX)),
            blocks: Mutex::new(Recent::new(KEPT, BLOCKS_BYTES)),
            spool: None,
        }
    }

    /// Keeps no more decoded blocks than lookups in the order of files need.
    pub fn look_up_in_order(&mut self) {
        let layers = self.map.shards.iter().map(|shard| shard.layers.len()).max();
        let bytes = BLOCKS_IN_ORDER_BYTES + layers.unwrap_or(0) * BLOCKS_OF_LAYER_BYTES;
        self.blocks = Mutex::new(Recent::new(KEPT, bytes.min(BLOCKS_BYTES)));
    }

    /// Copies layers that are asked often to an unnamed file in `scratch`, where each request is a round trip.
    pub fn spool(&mut self, scratch: &Path) {
        if self.sources.store.is_remote() {
            self.spool = Some(Spool::new(scratch));
        }
    }

    fn reference(&self, (shard, layer): LayerPlace) -> Result<&'a LayerRef> {
        let shard = self.map.shards.get(shard);
        shard
            .and_then(|shard| shard.layers.get(layer))
            .ok_or_else(|| err!(Internal, "the shard has no layer {layer}"))
    }

    /// Opens a layer, and checks its index against the root. `see` hears what the index has beside its blocks.
    ///
    /// # Errors
    /// `Damaged` when it is missing or fails a check, and no repository has it whole.
    pub fn open(
        &self,
        at: LayerPlace,
        see: &mut dyn FnMut(&LayerIndex),
    ) -> Result<Arc<LayerIndex>> {
        let reference = self.reference(at)?;
        let key = self.scope.layer(&reference.key);
        let open = |store: &dyn Store| self.open_in(store, reference);
        let (mut index, object) = self.sources.proven(&key, open)?;
        see(&index);
        index.forget_packs();
        let (bytes, index) = (index.memory_bytes(), Arc::new(index));
        lock(&self.indexes).put(at, &index, bytes);
        lock(&self.objects).put(at, &Arc::new(object), 0);
        Ok(index)
    }

    fn open_in(
        &self,
        store: &dyn Store,
        reference: &LayerRef,
    ) -> Result<(LayerIndex, Box<dyn Object>)> {
        let part = &reference.key;
        let object = store
            .open(&self.scope.layer(part))?
            .ok_or_else(|| err!(Damaged, "layer \"{part}\" is missing"))?;
        let hash = unhex_array(&reference.hash)
            .ok_or_else(|| err!(Damaged, "the root has no hash of layer \"{part}\""))?;
        let span = (reference.offset, reference.length);
        let index = LayerIndex::read(object.as_ref(), span, &hash, part, self.scope.tag());
        let index = index.map_err(|e| e.context(format!("open layer \"{part}\"")))?;
        Ok((index, object))
    }

    /// The index of a layer.
    ///
    /// # Errors
    /// Those of [`OpenLayers::open`].
    pub fn index(&self, at: LayerPlace) -> Result<Arc<LayerIndex>> {
        let known = lock(&self.indexes).get(at);
        match known {
            Some(index) => Ok(index),
            None => self.open(at, &mut |_| {}),
        }
    }

    fn object(&self, at: LayerPlace) -> Result<SharedObject> {
        if let Some(object) = lock(&self.objects).get(at) {
            return Ok(object);
        }
        let reference = self.reference(at)?;
        let object: Box<dyn Object> = match self.spool.as_ref().and_then(|spool| spool.get(at)) {
            Some((file, begin)) => Box::new(Spooled {
                file,
                begin,
                base: reference.offset,
                length: reference.length,
            }),
            None => {
                let key = self.scope.layer(&reference.key);
                let missing = || err!(Damaged, "layer \"{}\" is missing", reference.key);
                self.sources
                    .proven(&key, |store| store.open(&key)?.ok_or_else(missing))?
            }
        };
        let object = Arc::new(object);
        lock(&self.objects).put(at, &object, 0);
        Ok(object)
    }

    /// Decodes a block.
    ///
    /// # Errors
    /// `Damaged` when it fails a check, and no repository has it whole; what the store says.
    pub fn whole_block(&self, (shard, layer, number): BlockPlace) -> Result<Vec<Entry>> {
        let at = (shard, layer);
        let index = self.index(at)?;
        let own = self
            .object(at)
            .and_then(|object| index.block(object.as_ref().as_ref(), number));
        let reference = self.reference(at)?;
        let key = self.scope.layer(&reference.key);
        self.sources.proven_again(&key, own, |store| {
            let (index, object) = self.open_in(store, reference)?;
            index.block(object.as_ref(), number)
        })
    }

    /// As [`OpenLayers::whole_block`], kept for lookups.
    pub fn block(&self, at: BlockPlace) -> Result<Arc<Vec<Entry>>> {
        if let Some(block) = lock(&self.blocks).get(at) {
            return Ok(block);
        }
        // Decoded outside the lock; two threads may do it twice.
        let block = Arc::new(self.whole_block(at)?);
        let bytes = block.iter().map(Entry::memory_bytes).sum();
        lock(&self.blocks).put(at, &block, bytes);
        self.count((at.0, at.1))?;
        Ok(block)
    }

    /// Counts a request of a lookup. After as many as the transfer of the whole layer takes, it is copied.
    fn count(&self, at: LayerPlace) -> Result<()> {
        let Some(spool) = &self.spool else {
            return Ok(());
        };
        let reference = self.reference(at)?;
        let Some(begin) = spool.begin(at, reference.length) else {
            return Ok(());
        };
        // Lookups do without the copy: they say what is wrong with the layer.
        let object = self.object(at)?;
        let copied = spool.copy(
            object.as_ref().as_ref(),
            (reference.offset, reference.length),
            begin,
        );
        match copied {
            Ok(()) => {
                spool.end(at, begin);
                lock(&self.objects).remove(at);
            }
            Err(_) => spool.give_up(begin, reference.length),
        }
        Ok(())
    }

    /// The first blocks of all layers of a shard, for a walk along it. Across a network several are read at once.
    ///
    /// # Errors
    /// Those of [`OpenLayers::whole_block`].
    pub fn first_blocks(&self, shard: usize) -> Result<Vec<Arc<Vec<Entry>>>> {
        let count = self.map.shards.get(shard).map_or(0, |s| s.layers.len());
        let places: Vec<LayerPlace> = (0..count).map(|layer| (shard, layer)).collect();
        self.parallel(&places, |at| match self.index(at)?.block_count() {
            0 => Ok(Arc::default()),
            _ => self.whole_block((at.0, at.1, 0)).map(Arc::new),
        })
    }

    /// Returns the results of `work` on layers, in their order. Across a network each of them takes round trips: several are worked on at once.
    pub fn parallel<T: Send>(
        &self,
        places: &[LayerPlace],
        work: impl Fn(LayerPlace) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let work = &work;
        let one = |part: &[LayerPlace]| -> Result<Vec<T>> {
            part.iter().map(|place| work(*place)).collect()
        };
        if places.len() <= 1 || !self.sources.store.is_remote() {
            return one(places);
        }
        std::thread::scope(|scope| {
            let parts = places.chunks(places.len().div_ceil(THREADS));
            let parts: Vec<_> = parts.map(|part| scope.spawn(move || one(part))).collect();
            let mut all = Vec::with_capacity(places.len());
            for part in parts {
                let panicked = |_| Err(err!(Internal, "a thread that opens layers panicked"));
                all.extend(part.join().unwrap_or_else(panicked)?);
            }
            Ok(all)
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The content is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies of layers in one unnamed file. Their blocks prove themselves by the hashes of the index, as those in the store do.
struct Spool {
    scratch: PathBuf,
    file: OnceLock<Option<Arc<File>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    requests: HashMap<LayerPlace, u64>,
    /// The offset of each copy; none of one that is not complete.
    copies: HashMap<LayerPlace, Option<u64>>,
    end: u64,
    /// A copy failed: there is no room, or the layer cannot be read.
    is_over: bool,
}

/// Copies leave this much free: the same run sorts entries there, and others have files beside them.
const LEFT_FREE_BYTES: u64 = 512 << 20;

/// Whether a layer may be copied to a filesystem with as much free room.
fn has_room(free_bytes: u64, length: u64) -> bool {
    free_bytes >= LEFT_FREE_BYTES.saturating_add(length.saturating_mul(4))
}

impl Spool {
    fn new(scratch: &Path) -> Spool {
        Spool {
            scratch: scratch.to_owned(),
            file: OnceLock::new(),
            state: Mutex::default(),
        }
    }

    fn file(&self) -> Option<Arc<File>> {
        let make = || tempfile::tempfile_in(&self.scratch).ok().map(Arc::new);
        self.file.get_or_init(make).clone()
    }

    fn get(&self, at: LayerPlace) -> Option<(Arc<File>, u64)> {
        let begin = lock(&self.state).copies.get(&at).copied().flatten()?;
        Some((self.file()?, begin))
    }

    /// Counts a request, and returns where the layer is to be copied to now. Each layer is tried once.
    fn begin(&self, at: LayerPlace, length: u64) -> Option<u64> {
        let mut state = lock(&self.state);
        if state.copies.contains_key(&at) {
            return None;
        }
        let requests = state.requests.entry(at).or_default();
        *requests += 1;
        if *requests < 2 || *requests * REQUEST_BYTES < length {
            return None;
        }
        state.requests.remove(&at);
        state.copies.insert(at, None);
        if state.is_over || !has_room(self.free_bytes(), length) {
            return None;
        }
        let begin = state.end;
        state.end += length;
        Some(begin)
    }

    fn free_bytes(&self) -> u64 {
        let stat = self.file().and_then(|file| fstatvfs(&*file).ok());
        stat.map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Gives the room of a copy back that failed, and makes no more.
    fn give_up(&self, begin: u64, length: u64) {
        lock(&self.state).is_over = true;
        if let Some(file) = self.file() {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A filesystem without holes gives it back at the end of the process.
            let _ = fallocate(&*file, hole, begin, length);
        }
    }

    fn end(&self, at: LayerPlace, begin: u64) {
        lock(&self.state).copies.insert(at, Some(begin));
    }

    fn copy(&self, object: &dyn Object, (base, length): (u64, u64), begin: u64) -> Result<()> {
        let file = self
            .file()
            .ok_or_else(|| err!(Io, "there is no temporary file"))?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut done = 0;
        while done < length {
            let wanted = usize::try_from(length - done).unwrap_or(COPY_BYTES);
            let piece = buffer.get_mut(..wanted.min(COPY_BYTES)).unwrap_or_default();
            object.read_at(piece, base + done)?;
            file.write_all_at(piece, begin + done)
                .map_err(|e| Error::from_io("write a temporary file", e))?;
            done += piece.len() as u64;
        }
        Ok(())
    }
}

/// The copy of a layer, at the offset that it has in its object.
struct Spooled {
    file: Arc<File>,
    begin: u64,
    base: u64,
    length: u64,
}

impl Object for Spooled {
    fn size_bytes(&self) -> u64 {
        self.base + self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let at = offset.checked_sub(self.base);
        let at = at.filter(|at| at.saturating_add(buffer.len() as u64) <= self.length);
        let at = at.ok_or_else(|| err!(Damaged, "a layer ends before"))?;
        self.file
            .read_exact_at(buffer, self.begin + at)
            .map_err(|e| Error::from_io("read a temporary file", e))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b37_a_copy_that_fails_gives_its_room_back_and_is_the_last() {
        let place = tempfile::tempdir().unwrap();
        let spool = Spool::new(place.path());
        let file = spool.file().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        spool.give_up(0, 1 << 20);
        let stat = rustix::fs::fstat(&*file).unwrap();
        assert_eq!(stat.st_blocks, 0);
        assert!((0..9).all(|_| spool.begin((0, 1), 10).is_none()));
        assert!(spool.get((0, 1)).is_none());
    }

    #[test]
    fn b37_copies_leave_room_for_others() {
        assert!(!has_room(LEFT_FREE_BYTES, 1));
        assert!(!has_room(LEFT_FREE_BYTES + 3999, 1000));
        assert!(has_room(LEFT_FREE_BYTES + 4000, 1000));
        assert!(!has_room(0, u64::MAX));
    }
}
