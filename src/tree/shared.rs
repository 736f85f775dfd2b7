//! Content that files share, on its way out of the packs into all files that need it, on several threads.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};

use super::walk;
use crate::err;
use crate::error::{Code, Result};
use crate::snapshot::filekey::FileKey;
use crate::snapshot::frame::Frame;
use crate::snapshot::reader::{PackOfSnapshot, Snapshot};
use crate::snapshot::uses::{ChunkPlace, Record, Use, Uses};

/// Uses of one frame that are handed to a thread at once.
const BATCH: usize = 1024;

/// The file that was written last, which the next chunk often belongs to.
pub type LastFile = Option<(FileKey, File)>;

/// Writes the bytes of a chunk into a file that needs it.
pub type Put<'p> = dyn Fn(&Use, &[u8], &mut LastFile) -> Result<()> + Sync + 'p;

/// Some uses of one frame.
struct Batch<'s> {
    pack: Arc<PackOfSnapshot<'s, 's>>,
    frame: u32,
    /// The frame, once a thread has read it.
    content: Arc<OnceLock<Frame>>,
    uses: Vec<(ChunkPlace, Use)>,
}

/// Copies every chunk into the files that need it, with `jobs` threads. Each frame is read once.
///
/// # Errors
/// `Damaged` when a frame does not hold the chunk that the map expects; those of `put`, of `tick` and of the store.
pub fn copy<'s>(
    snapshot: &'s Snapshot<'s>,
    uses: Uses,
    jobs: usize,
    put: &Put<'_>,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let (batches, queue) = sync_channel::<Batch<'s>>(2 * jobs);
    let (queue, is_over) = (Arc::new(Mutex::new(queue)), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let is_over = &is_over;
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                let queue = Arc::clone(&queue);
                threads.spawn(move || work(snapshot, (&queue, is_over), put))
            })
            .collect();
        // The workers alone hold the queue's end: nothing waits for workers that are gone.
        drop(queue);
        let mut sent = send_all(snapshot, uses, &mut |batch| {
            tick()?;
            match is_over.load(Ordering::Relaxed) || batches.send(batch).is_err() {
                true => Err(err!(Interrupted, "the threads that write files have ended")),
                false => Ok(()),
            }
        });
        // They end when there is no more.
        drop(batches);
        for thread in workers {
            let panicked = |_| Err(err!(Internal, "a thread that writes files panicked"));
            let written = thread.join().unwrap_or_else(panicked);
            let is_cause =
                written.is_err() && sent.as_ref().is_err_and(|e| e.code() == Code::Interrupted);
            if sent.is_ok() || is_cause {
                sent = written;
            }
        }
        sent
    })
}

/// Hands the uses out, in batches of one frame.
fn send_all<'s>(
    snapshot: &'s Snapshot<'s>,
    uses: Uses,
    send: &mut dyn FnMut(Batch<'s>) -> Result<()>,
) -> Result<()> {
    let mut waiting: Option<Batch<'s>> = None;
    uses.drain(&mut |record| {
        let Record::Used(chunk, of) = record else {
            return Ok(());
        };
        let last = waiting.as_ref().map(|batch| {
            let (pack, content) = (Arc::clone(&batch.pack), Arc::clone(&batch.content));
            (pack, batch.frame, content)
        });
        let is_full = |batch: &Batch<'_>| {
            batch.pack.index() != chunk.pack
                || batch.frame != chunk.frame
                || batch.uses.len() >= BATCH
        };
        if let Some(full) = waiting.take_if(|batch| is_full(batch)) {
            send(full)?;
        }
        if waiting.is_none() {
            let (pack, content) = match last.filter(|(pack, ..)| pack.index() == chunk.pack) {
                // Very many files need the same frame.
                Some((pack, frame, content)) if frame == chunk.frame => (pack, content),
                Some((pack, ..)) => (pack, Arc::default()),
                None => (Arc::new(snapshot.pack(chunk.pack)?), Arc::default()),
            };
            waiting = Some(Batch {
                pack,
                frame: chunk.frame,
                content,
                uses: Vec::new(),
            });
        }
        if let Some(batch) = &mut waiting {
            batch.uses.push((chunk, of));
        }
        Ok(())
    })?;
    waiting.map_or(Ok(()), send)
}

/// Writes batches. Behind an error it takes the rest without a look, so that nobody waits.
fn work(
    snapshot: &Snapshot<'_>,
    (queue, is_over): (&Mutex<Receiver<Batch<'_>>>, &AtomicBool),
    put: &Put<'_>,
) -> Result<()> {
    let mut result = Ok(());
    let mut last = None;
    while let Some(batch) = walk::next(queue, "writes files")? {
        if !is_over.load(Ordering::Relaxed) {
            result = write(snapshot, &batch, put, &mut last);
            is_over.fetch_or(result.is_err(), Ordering::Relaxed);
        }
    }
    result
}

fn write(
    snapshot: &Snapshot<'_>,
    batch: &Batch<'_>,
    put: &Put<'_>,
    last: &mut LastFile,
) -> Result<()> {
    let frame = match batch.content.get() {
        Some(frame) => frame,
        None => {
            let read = batch.pack.whole_frame(batch.frame)?;
            batch.content.get_or_init(|| read)
        }
    };
    let mut proven: Option<(ChunkPlace, &[u8])> = None;
    for (chunk, of) in &batch.uses {
        let bytes = match proven {
            Some((same, bytes)) if same == *chunk => bytes,
            _ => {
                proven
                    .insert((*chunk, snapshot.chunk(frame, &chunk.whole)?))
                    .1
            }
        };
        put(of, bytes, last)?;
    }
    Ok(())
}
