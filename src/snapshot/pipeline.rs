//! Frames on their way from the writer to durable packs.
//!
//! ```text
//! writer ──slot──▶ workers (hash, compress) ──slot──▶ packer (order, append) ──finished pack──▶ publisher (sync, name)
//!    ▲                                                   │
//!    └──────────────── empty slots ──────────────────────┘
//! ```
//! A fixed number of slots circulates: they are the memory, and the back-pressure. Frames enter packs in the order in which the
//! writer sent them. Whoever fails drops its end of the channels; everybody behind and before it then stops, and [`Pipeline::finish`]
//! returns the error of the one who failed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};

use super::frame::{Extent, FrameCodec, PackedFrame, Packer};
use super::pack::{PackSummary, PackWriter};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::{BackupId, PartName};
use crate::repo::scope::Scope;
use crate::store::{NewObject, Published, Store};

/// More threads than this do not pay: one stream of a server is slower than they are, and each holds buffers.
const MOST_WORKERS: usize = 12;

/// One frame with its buffers, which are used again and again.
#[derive(Default)]
pub struct Slot {
    /// What the frame holds.
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

/// Where packs go, and how they are made.
#[derive(Clone)]
pub struct PackTarget<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// The cluster's keys.
    pub scope: Scope,
    /// The backup that writes.
    pub id: BackupId,
    /// Codec of frames.
    pub codec: FrameCodec,
    /// A pack of at least this length is closed.
    pub pack_bytes: u64,
}

/// The running threads, seen from the writer.
pub struct Pipeline<'t> {
    jobs: Option<SyncSender<Job>>,
    empty: Receiver<Box<Slot>>,
    packer: Option<ScopedJoinHandle<'t, Result<Vec<FinishedPack>>>>,
    sent: u64,
    abandoned: Arc<AtomicBool>,
}

impl Drop for Pipeline<'_> {
    fn drop(&mut self) {
        // The pack under construction must not appear after a writer that gave up.
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl<'t> Pipeline<'t> {
    /// Starts `jobs` workers (1 to 12), the packer and the publisher.
    pub fn start(
        threads: &'t thread::Scope<'t, '_>,
        target: PackTarget<'t>,
        jobs: usize,
    ) -> Pipeline<'t> {
        let workers = jobs.clamp(1, MOST_WORKERS);
        let slots = workers + 3;
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
        let given_up = Arc::clone(&abandoned);
        let packer = threads.spawn(move || {
            let append = |publish: &Publish| {
                append_all(&target, &done_receiver, &empty_sender, publish, &given_up)
            };
            pack(threads, append)
        });
        Pipeline {
            jobs: Some(job_sender),
            empty: empty_receiver,
            packer: Some(packer),
            sent: 0,
            abandoned,
        }
    }

    /// The number that the next frame sent will have, counted over all packs.
    pub fn next_frame(&self) -> u64 {
        self.sent
    }

    /// An empty slot; waits until one is free.
    ///
    /// # Errors
    /// What made the pipeline stop.
    pub fn slot(&mut self) -> Result<Box<Slot>> {
        match self.empty.recv() {
            Ok(mut slot) => {
                slot.extents.clear();
                slot.raw.clear();
                Ok(slot)
            }
            Err(_) => Err(self.failure()),
        }
    }

    /// Sends a filled slot on its way.
    ///
    /// # Errors
    /// What made the pipeline stop.
    pub fn send(&mut self, slot: Box<Slot>) -> Result<()> {
        let number = self.sent;
        self.sent += 1;
        let sent = self.jobs.as_ref().map(|j| j.send(Job { number, slot }));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.failure()),
        }
    }

    /// Waits until every frame sent is in a durable pack.
    ///
    /// # Errors
    /// What made the pipeline stop.
    pub fn finish(mut self) -> Result<Vec<FinishedPack>> {
        self.jobs = None;
        self.join()
    }

    fn join(&mut self) -> Result<Vec<FinishedPack>> {
        let Some(packer) = self.packer.take() else {
            return Err(err!(Internal, "the packs were given up before"));
        };
        match packer.join() {
            Ok(result) => result,
            Err(_) => Err(err!(Internal, "a thread that writes packs panicked")),
        }
    }

    fn failure(&mut self) -> Error {
        self.jobs = None;
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

fn append_all(
    target: &PackTarget<'_>,
    done: &Receiver<Done>,
    empty: &Sender<Box<Slot>>,
    to_publish: &Publish,
    given_up: &AtomicBool,
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
    if given_up.load(Ordering::Relaxed) {
        return Err(err!(Interrupted, "the backup was given up"));
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
    let object = target.store.create(&target.scope.pack(&part))?;
    let writer =
        PackWriter::new(object, &part, target.scope.tag()).map_err(|e| write_failed(&part, e))?;
    Ok(Open {
        part,
        first_frame,
        writer,
    })
}

fn end(open: Open, to_publish: &Publish) -> Result<FinishedPack> {
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
