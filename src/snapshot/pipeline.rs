//! Frames on their way from the writer to durable packs.
//!
//! ```text
//! sinks ──slot──▶ workers (hash, compress) ──slot──▶ packer (order, append) ──finished pack──▶ publisher (sync, name)
//!    ▲                                                  │
//!    └──────────────── empty slots ─────────────────────┘
//! ```
//! A fixed number of slots circulates: they are the memory, and the back-pressure. Frames enter packs by their numbers. A sink numbers a
//! frame with its first content, when it has a slot already: the frame that all others wait for never waits for a slot itself. A thread that
//! fails drops its end of the channels; all threads before and after it then stop, and the first sink that notices gets the error.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};

use super::frame::{Extent, FrameCodec, PackedFrame, Packer};
use super::layer::LayerWriter;
use super::pack::{PackSummary, PackWriter};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::{BackupId, PartName};
use crate::repo::root::LayerRef;
use crate::repo::scope::Scope;
use crate::store::{NewObject, Published, Store};

/// More threads than this do not pay: one stream of a server is slower than they are, and each holds buffers.
const MOST_WORKERS: usize = 12;

/// One frame with its buffers, which are used again and again.
#[derive(Default)]
pub struct Slot {
    /// Extents that the frame holds.
    pub extents: Vec<Extent>,
    /// Its content.
    pub raw: Vec<u8>,
    packed: PackedFrame,
}

struct Job {
    number: u64,
    slot: Box<Slot>,
}

type Done = (u64, Result<Box<Slot>>);

/// A pack that is durable in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedPack {
    /// Its key.
    pub part: PartName,
    /// Number of its first frame, counted over all packs.
    pub first_frame: u64,
    /// Length, frames and hash.
    pub summary: PackSummary,
}

/// The place of new packs, and how they are made.
#[derive(Clone)]
pub struct PackTarget<'a> {
    pub store: &'a dyn Store,
    /// The cluster's keys.
    pub scope: Scope,
    /// The backup that writes.
    pub id: BackupId,
    pub codec: FrameCodec,
    /// A pack of at least this length is closed.
    pub pack_bytes: u64,
}

/// The running threads, seen from the sinks.
pub struct Pipeline<'t> {
    jobs: Option<SyncSender<Job>>,
    empty: Mutex<Receiver<Box<Slot>>>,
    packer: Mutex<Option<ScopedJoinHandle<'t, Result<Vec<FinishedPack>>>>>,
    numbered: AtomicU64,
    abandoned: Arc<AtomicBool>,
}

impl Drop for Pipeline<'_> {
    fn drop(&mut self) {
        // The pack under construction must not appear after a writer that gave up.
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl<'t> Pipeline<'t> {
    /// Starts `jobs` workers (1 to 12), the packer and the publisher, for `sinks` sinks.
    pub fn start(
        threads: &'t thread::Scope<'t, '_>,
        target: PackTarget<'t>,
        jobs: usize,
        sinks: usize,
    ) -> Pipeline<'t> {
        let workers = jobs.clamp(1, MOST_WORKERS);
        let slots = workers + sinks + 2;
        let (job_sender, job_receiver) = sync_channel::<Job>(slots);
        let (done_sender, done_receiver) = channel::<Done>();
        let (empty_sender, empty_receiver) = channel();
        for _ in 0..slots {
            // The receiver lives in this function's result: it cannot be gone.
            let _ = empty_sender.send(Box::default());
        }
        let queue = Arc::new(Mutex::new(job_receiver));
        for _ in 0..workers {
            let (queue, done, codec) = (Arc::clone(&queue), done_sender.clone(), target.codec);
            threads.spawn(move || work(&queue, &done, codec));
        }
        drop(done_sender);
        let abandoned = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&abandoned);
        let packer = threads.spawn(move || {
            let append = |publish: &Publish| {
                append_all(&target, &done_receiver, &empty_sender, publish, &flag)
            };
            pack(threads, append)
        });
        Pipeline {
            jobs: Some(job_sender),
            empty: Mutex::new(empty_receiver),
            packer: Mutex::new(Some(packer)),
            numbered: AtomicU64::new(0),
            abandoned,
        }
    }

    /// Numbers a frame, counted over all packs. It must be sent: the frames after it wait.
    pub fn number(&self) -> u64 {
        self.numbered.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns an empty slot; waits until one is free.
    ///
    /// # Errors
    /// The error that made the pipeline stop.
    pub fn slot(&self) -> Result<Box<Slot>> {
        let received = match self.empty.lock() {
            Ok(empty) => empty.recv().ok(),
            Err(_) => None,
        };
        let Some(mut slot) = received else {
            return Err(self.failure());
        };
        slot.extents.clear();
        slot.raw.clear();
        Ok(slot)
    }

    /// Sends a filled slot on its way as frame `number`.
    ///
    /// # Errors
    /// The error that made the pipeline stop.
    pub fn send(&self, number: u64, slot: Box<Slot>) -> Result<()> {
        match self.jobs.as_ref().map(|j| j.send(Job { number, slot })) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.failure()),
        }
    }

    /// Stops everything, for frame `number` will not come.
    pub fn give_up(&self, number: u64, mut slot: Box<Slot>) {
        slot.raw.clear();
        // Workers that are gone have stopped already.
        let _ = self.jobs.as_ref().map(|j| j.send(Job { number, slot }));
    }

    /// Waits until every frame sent is in a durable pack.
    ///
    /// # Errors
    /// The error that made the pipeline stop; `Internal` when a numbered frame was not sent.
    pub fn finish(mut self) -> Result<Vec<FinishedPack>> {
        self.jobs = None;
        let packs = self.join()?;
        let packed: u64 = packs.iter().map(|p| u64::from(p.summary.frames)).sum();
        match packed == self.numbered.load(Ordering::Relaxed) {
            true => Ok(packs),
            false => Err(err!(Internal, "a frame was begun and not sent")),
        }
    }

    fn join(&self) -> Result<Vec<FinishedPack>> {
        let packer = self.packer.lock().ok().and_then(|mut packer| packer.take());
        match packer.map(ScopedJoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(err!(Internal, "a thread that writes packs panicked")),
            // Another sink has its error.
            None => Err(err!(Interrupted, "the packs were given up before")),
        }
    }

    fn failure(&self) -> Error {
        match self.join() {
            Err(e) => e,
            Ok(_) => err!(Internal, "the packs ended before the files"),
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, done: &Sender<Done>, codec: FrameCodec) {
    let mut packer = Packer::new(codec);
    loop {
        let received = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(Job { number, mut slot }) = received else {
            return;
        };
        let packed = catch_unwind(AssertUnwindSafe(|| {
            let packer = match &mut packer {
                Ok(packer) => packer,
                Err(e) => return Err(err!(Internal, "{e}")),
            };
            let slot = slot.as_mut();
            if slot.raw.is_empty() {
                return Err(given_up());
            }
            packer.pack(&slot.extents, &slot.raw, &mut slot.packed)
        }));
        let result = match packed {
            Ok(Ok(())) => Ok(slot),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(err!(Internal, "a thread that compresses panicked")),
        };
        if done.send((number, result)).is_err() {
            return;
        }
    }
}

/// A pack under construction.
struct Open {
    part: PartName,
    first_frame: u64,
    writer: PackWriter<Box<dyn NewObject>>,
}

type Publish = SyncSender<(PartName, Box<dyn NewObject>)>;

/// Runs `append_all` with a publisher beside it: one pack is synced while the next one is written, a third one waits.
fn pack<'t>(
    threads: &'t thread::Scope<'t, '_>,
    append_all: impl FnOnce(&Publish) -> Result<Vec<FinishedPack>>,
) -> Result<Vec<FinishedPack>> {
    let (to_publish, finished) = sync_channel::<(PartName, Box<dyn NewObject>)>(0);
    let publisher = threads.spawn(move || -> Result<()> {
        for (part, object) in finished {
            publish(object, &format!("pack \"{part}\""))?;
        }
        Ok(())
    });
    let written = append_all(&to_publish);
    drop(to_publish);
    // When the publisher failed, the packer only noticed that it is gone.
    match publisher.join() {
        Ok(Ok(())) => written,
        Ok(Err(e)) => Err(e),
        Err(_) => Err(err!(Internal, "a thread that publishes packs panicked")),
    }
}

/// Makes an object durable and visible; its key, reserved by the backup's id, must be free.
pub fn publish(object: Box<dyn NewObject>, what: &str) -> Result<()> {
    match object.publish()? {
        Published::Created => Ok(()),
        Published::Exists => Err(err!(Conflict, "{what} exists already")
            .hint("Another writer used the id of this backup. Nothing was committed; take the backup again.")),
    }
}

/// The writer of a layer in a store.
pub type StoredLayer = LayerWriter<Box<dyn NewObject>>;

/// Begins a layer of a backup.
pub fn begin_layer(
    (store, scope): (&dyn Store, &Scope),
    id: &BackupId,
    number: u32,
) -> Result<(PartName, StoredLayer)> {
    let id = id.clone();
    let part = PartName { id, number };
    let mut object = store.create(&scope.layer(&part))?;
    object.keep(true);
    let writer = LayerWriter::new(object, &part, scope.tag());
    let writer = written(writer, &format!("layer \"{part}\""))?;
    Ok((part, writer))
}

/// Ends a layer, and publishes it.
pub fn end_layer(part: PartName, writer: StoredLayer) -> Result<LayerRef> {
    let what = format!("layer \"{part}\"");
    let (object, summary) = written(writer.finish(), &what)?;
    publish(object, &what)?;
    Ok(LayerRef {
        key: part,
        offset: 0,
        length: summary.length,
        hash: blake3::Hash::from_bytes(summary.hash).to_hex().to_string(),
    })
}

fn given_up() -> Error {
    err!(Interrupted, "the backup was given up")
}

fn append_all(
    target: &PackTarget<'_>,
    done: &Receiver<Done>,
    empty: &Sender<Box<Slot>>,
    to_publish: &Publish,
    abandoned: &AtomicBool,
) -> Result<Vec<FinishedPack>> {
    let mut packs: Vec<FinishedPack> = Vec::new();
    let mut open: Option<Open> = None;
    let mut waiting: BTreeMap<u64, Box<Slot>> = BTreeMap::new();
    let mut next = 0_u64;
    for (number, result) in done {
        waiting.insert(number, result?);
        while let Some(mut slot) = waiting.remove(&next) {
            let current = match &mut open {
                Some(current) => current,
                none => none.insert(begin(target, packs.len(), next)?),
            };
            let append = current.writer.append(&mut slot.packed);
            append.map_err(|e| write_failed(&current.part, e))?;
            next += 1;
            // The writer may be gone already: then nobody waits for slots.
            let _ = empty.send(slot);
            if current.writer.is_full(target.pack_bytes)
                && let Some(full) = open.take()
            {
                packs.push(end(full, to_publish)?);
            }
        }
    }
    if abandoned.load(Ordering::Relaxed) {
        return Err(given_up());
    }
    if let Some(last) = open.take() {
        packs.push(end(last, to_publish)?);
    }
    if !waiting.is_empty() {
        return Err(err!(Internal, "frame {next} was lost"));
    }
    Ok(packs)
}

fn begin(target: &PackTarget<'_>, number: usize, first_frame: u64) -> Result<Open> {
    let part = PartName {
        id: target.id.clone(),
        number: u32::try_from(number)
            .ok()
            .filter(|n| *n < 999_999)
            .ok_or_else(|| err!(Unsupported, "a backup cannot have more packs"))?,
    };
    let mut object = target.store.create(&target.scope.pack(&part))?;
    // All but the frames: what tells whether pages have changed.
    object.keep(true);
    let mut writer =
        PackWriter::new(object, &part, target.scope.tag()).map_err(|e| write_failed(&part, e))?;
    writer.sink_mut().keep(false);
    Ok(Open {
        part,
        first_frame,
        writer,
    })
}

fn end(mut open: Open, to_publish: &Publish) -> Result<FinishedPack> {
    open.writer.sink_mut().keep(true);
    let finished = open.writer.finish();
    let (object, summary) = finished.map_err(|e| write_failed(&open.part, e))?;
    to_publish
        .send((open.part.clone(), object))
        .map_err(|_| err!(Internal, "packs are no longer published"))?;
    Ok(FinishedPack {
        part: open.part,
        first_frame: open.first_frame,
        summary,
    })
}

fn write_failed(part: &PartName, e: std::io::Error) -> Error {
    Error::from_io(format!("write pack \"{part}\""), e).hint(
        "Nothing of this backup is visible. Make room in the repository or repair it, then take the backup again.",
    )
}

/// Writes to an object, as an error of `what`.
pub fn written<T>(result: std::io::Result<T>, what: &str) -> Result<T> {
    result.map_err(|e| Error::from_io(format!("write {what}"), e))
}
