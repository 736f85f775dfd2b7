//! Content that files share, on its way out of the packs into all files that need it, on several threads.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use crate::err;
use crate::error::{Code, Result};
use crate::snapshot::filekey::FileKey;
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
    uses: Vec<(ChunkPlace, Use)>,
}

/// Copies every chunk into the files that need it, with `jobs` threads. A frame is read once, unless very many files need it.
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
    let (queue, is_over) = (Mutex::new(queue), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let (queue, is_over) = (&queue, &is_over);
        let threads: Vec<_> = (0..jobs)
            .map(|_| threads.spawn(move || work(snapshot, (queue, is_over), put)))
            .collect();
        let mut sent = send_all(snapshot, uses, &mut |batch| {
            tick()?;
            match is_over.load(Ordering::Relaxed) || batches.send(batch).is_err() {
                true => Err(err!(Interrupted, "the threads that write files have ended")),
                false => Ok(()),
            }
        });
        // They end when there is no more.
        drop(batches);
        for thread in threads {
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
        let open = waiting.as_ref().map(|batch| Arc::clone(&batch.pack));
        let is_full = |batch: &Batch<'_>| {
            batch.pack.index() != chunk.pack
                || batch.frame != chunk.frame
                || batch.uses.len() >= BATCH
        };
        if let Some(full) = waiting.take_if(|batch| is_full(batch)) {
            send(full)?;
        }
        if waiting.is_none() {
            let pack = match open.filter(|pack| pack.index() == chunk.pack) {
                Some(pack) => pack,
                None => Arc::new(snapshot.pack(chunk.pack)?),
            };
            waiting = Some(Batch {
                pack,
                frame: chunk.frame,
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
    loop {
        let next = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return Err(err!(Internal, "a thread that writes files panicked")),
        };
        let Ok(batch) = next else { return result };
        if !is_over.load(Ordering::Relaxed) {
            result = write(snapshot, &batch, put, &mut last);
            is_over.fetch_or(result.is_err(), Ordering::Relaxed);
        }
    }
}

fn write(
    snapshot: &Snapshot<'_>,
    batch: &Batch<'_>,
    put: &Put<'_>,
    last: &mut LastFile,
) -> Result<()> {
    let frame = batch.pack.whole_frame(batch.frame)?;
    let mut proven: Option<(ChunkPlace, &[u8])> = None;
    for (chunk, of) in &batch.uses {
        let bytes = match proven {
            Some((same, bytes)) if same == *chunk => bytes,
            _ => {
                proven
                    .insert((*chunk, snapshot.chunk(&frame, &chunk.whole)?))
                    .1
            }
        };
        put(of, bytes, last)?;
    }
    Ok(())
}
