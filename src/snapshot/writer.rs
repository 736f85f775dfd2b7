//! Writes a snapshot: files in any order, from several threads at once, become frames in packs, then layers in key order.
//!
//! Files come in through [`FileSink`]s. The map's entries are sorted within a memory ceiling ([`super::sort`]) and written when all
//! packs are durable.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::chunks::{Chunks, PriorChunks};
use super::frame::FrameCodec;
use super::layers::{Layers, PackOfPrior};
use super::leftovers::Leftovers;
use super::pipeline::{FinishedPack, PackTarget, Pipeline};
use super::reader::Snapshot;
use super::sink::FileSink;
use super::sort::{MEMORY_BYTES, Sorter};
use crate::err;
use crate::error::Result;
use crate::fault;
use crate::host::Host;
use crate::repo::id::BackupId;
use crate::repo::root::{PackRef, Shard};
use crate::repo::scope::Scope;
use crate::store::Store;

/// A pack is closed once it has this length.
const PACK_BYTES: usize = 256 << 20;
/// A shard is closed once it has so many files.
pub const SHARD_FILES: u64 = 65_536;

/// How a snapshot is written.
#[derive(Debug, Clone)]
pub struct Options {
    pub codec: FrameCodec,
    /// Threads that compress, 1 to 12.
    pub jobs: usize,
    /// Sinks that hold content at one time.
    pub sinks: usize,
    /// Folder in which the map is sorted when it outgrows memory.
    pub scratch: PathBuf,
    /// A pack of at least this length is closed.
    pub pack_bytes: u64,
    /// A shard of at least this many files is closed.
    pub shard_files: u64,
    /// The shards of the prior, upon which an incremental puts its layers; none of a full.
    pub prior: Vec<Shard>,
    /// How many layers there are under the backup's id already.
    pub layers: u32,
}

impl Options {
    /// The sizes of the format page, for one sink.
    pub fn new(codec: FrameCodec, jobs: usize, scratch: PathBuf) -> Options {
        Options {
            codec,
            jobs,
            sinks: 1,
            scratch,
            pack_bytes: fault::pack_bytes(PACK_BYTES) as u64,
            shard_files: SHARD_FILES,
            prior: Vec::new(),
            layers: 0,
        }
    }
}

/// The parts of a finished snapshot, for the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Key ranges and their layers, those of the prior among them.
    pub shards: Vec<Shard>,
    /// The packs that it wrote, then those that interrupted backups left and that it leads to.
    pub packs: Vec<PackRef>,
    /// Regular files that it wrote.
    pub file_count: u64,
    /// Their raw bytes.
    pub size_bytes: u64,
    /// Stored bytes of packs and layers.
    pub stored_bytes: u64,
    /// Whether the map has chunks, which a reader must know.
    pub has_chunks: bool,
}

#[cfg(test)]
impl Written {
    /// Head and map of a root that names these parts.
    pub fn head_and_map(self, id: BackupId) -> (crate::repo::root::Head, crate::repo::root::Map) {
        use crate::repo::root::{Head, Map};
        let map = Map {
            shards: self.shards,
            packs: self.packs,
        };
        let sizes = (self.file_count, self.size_bytes, self.stored_bytes);
        (Head::sample(id, sizes), map)
    }
}

/// The parts that all sinks of a snapshot share.
pub(super) struct Shared<'t> {
    pub pipeline: Pipeline<'t>,
    pub store: &'t dyn Store,
    pub chunks: Chunks<'t>,
    /// The content that interrupted backups left.
    pub leftovers: Option<&'t Leftovers<'t>>,
    /// By which content is cut into chunks.
    pub seed: u64,
    entries: Mutex<Sorter>,
    file_count: AtomicU64,
    size_bytes: AtomicU64,
}

impl Shared<'_> {
    /// Adds an entry of the map.
    pub fn push(&self, key: &[u8], payload: &[u8]) -> Result<()> {
        match self.entries.lock() {
            Ok(mut entries) => entries.push(key, payload),
            Err(_) => Err(err!(Internal, "a thread that writes the map panicked")),
        }
    }

    /// Counts a file that is complete.
    pub fn count(&self, length: u64) {
        self.file_count.fetch_add(1, Ordering::Relaxed);
        // Readers add up likewise: sparse files may claim more than there can be.
        let add = |sum: u64| Some(sum.saturating_add(length));
        let _ = self
            .size_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// A snapshot under construction.
///
/// Dropped without [`SnapshotWriter::finish`], it leaves at most packs that nothing names.
pub struct SnapshotWriter<'t> {
    target: PackTarget<'t>,
    shard_files: u64,
    prior: Vec<Shard>,
    layers: u32,
    shared: Arc<Shared<'t>>,
}

impl<'t> SnapshotWriter<'t> {
    /// Starts the threads inside `threads`; packs and layers go under `id`, which the caller has reserved.
    pub fn start(
        threads: &'t thread::Scope<'t, '_>,
        store: &'t dyn Store,
        scope: &Scope,
        id: &BackupId,
        options: &Options,
    ) -> SnapshotWriter<'t> {
        SnapshotWriter::start_upon(threads, (store, scope), id, options, None)
    }

    /// As [`SnapshotWriter::start`]; pages of a cluster that interrupted backups left are not stored again. Their packs must be claimed.
    pub fn start_upon(
        threads: &'t thread::Scope<'t, '_>,
        (store, scope): (&'t dyn Store, &Scope),
        id: &BackupId,
        options: &Options,
        leftovers: Option<&'t Leftovers<'t>>,
    ) -> SnapshotWriter<'t> {
        let target = PackTarget {
            store,
            scope: scope.clone(),
            id: id.clone(),
            codec: options.codec,
            pack_bytes: options.pack_bytes,
        };
        let shared = Shared {
            pipeline: Pipeline::start(threads, target.clone(), options.jobs, options.sinks),
            store,
            chunks: Chunks::default(),
            leftovers,
            // Without the key nothing is stored, and the first chunk says so.
            seed: store.chunk_seed().unwrap_or(0),
            entries: Mutex::new(Sorter::new(&options.scratch, MEMORY_BYTES)),
            file_count: AtomicU64::new(0),
            size_bytes: AtomicU64::new(0),
        };
        SnapshotWriter {
            target,
            shard_files: options.shard_files,
            prior: options.prior.clone(),
            layers: options.layers,
            shared: Arc::new(shared),
        }
    }

    /// Takes content over from a prior snapshot where that has it, for sinks whose content may be shared. The layers of the new snapshot must go upon
    /// those of the prior, and its claim must be held.
    pub fn reuse(&self, prior: &'t Snapshot<'t>, host: &'t Host) {
        self.shared.chunks.reuse(PriorChunks::new(prior, host));
    }

    /// Reads the map of the prior now, so that no content has to wait for it.
    ///
    /// # Errors
    /// `Damaged` when the map fails a check; `Interrupted`.
    pub fn prepare_reuse(&self) -> Result<()> {
        self.shared.chunks.prepare()
    }

    /// How many bytes of files were found stored so far, under another name or in the prior.
    pub fn reused_bytes(&self) -> u64 {
        self.shared.chunks.reused_bytes()
    }

    /// Opens a sink, for any thread. At most as many as the options say may hold content at one time.
    pub fn sink(&self) -> FileSink<'t> {
        FileSink::new(Arc::clone(&self.shared))
    }

    /// Waits until all packs are durable, then writes the layers. Every sink must have ended.
    ///
    /// # Errors
    /// `Damaged` when a path came twice; what made writing packs or layers stop.
    pub fn finish(self) -> Result<Written> {
        let Some(shared) = Arc::into_inner(self.shared) else {
            return Err(err!(Internal, "a sink of the snapshot was not ended"));
        };
        let packs = shared.pipeline.finish()?;
        let pack_of_prior = |index| match shared.leftovers {
            Some(leftovers) => leftovers.pack(index),
            None => shared.chunks.pack(index),
        };
        let known = (packs.as_slice(), &pack_of_prior as &PackOfPrior<'_>);
        let prior = (self.prior.as_slice(), self.layers);
        let mut layers = Layers::new(&self.target, self.shard_files, known, prior)?;
        let entries = shared.entries.into_inner();
        entries
            .map_err(|_| err!(Internal, "a thread that writes the map panicked"))?
            .drain(&mut |key, payload| layers.push(key, payload))?;
        let layers = layers.finish()?;
        let pack_bytes: u64 = packs.iter().map(|p| p.summary.length).sum();
        // A pack that only has frames of files that were given up is named by no root.
        let used = (0..).zip(&packs).filter(|(i, _)| layers.used.contains(i));
        let left = shared.leftovers.into_iter();
        let left =
            left.flat_map(|left| layers.used_before.iter().filter_map(|i| left.reference(*i)));
        Ok(Written {
            shards: layers.shards,
            packs: used.map(|(_, pack)| pack_ref(pack)).chain(left).collect(),
            file_count: shared.file_count.into_inner(),
            size_bytes: shared.size_bytes.into_inner(),
            stored_bytes: layers.stored_bytes + pack_bytes,
            has_chunks: layers.has_chunks,
        })
    }
}

fn pack_ref(pack: &FinishedPack) -> PackRef {
    PackRef {
        key: pack.part.clone(),
        size_bytes: pack.summary.length,
        live_frames: u64::from(pack.summary.frames),
        live_bytes: pack.summary.raw_bytes,
        all_frames: None,
        all_bytes: None,
    }
}
