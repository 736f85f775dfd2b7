//! Finds the frames that need not be fetched, because the target has their bytes: of an interrupted restore, or of a data directory that is taken
//! back to an earlier moment.
//!
//! The hashes that packs keep of pages are compared with the pages in the target: an incremental backup leaves most
//! frames of its prior with some pages that nothing leads to. A frame of small files has no such hashes in known
//! places. It is put together from the files, and its hash is compared with that of the pack's directory. If the map
//! leads to such a frame only in part, the frame is fetched.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::extract::{Copying, Destination, OpenFiles, Survey, withholds_file};
use super::from_disk::FromDisk;
use super::tree::write_error;
use crate::err;
use crate::error::{Error, Result};
use crate::snapshot::filekey::FileKey;
use crate::snapshot::frame::{add_extent, content_hash_of};
use crate::snapshot::frames::Frames;
use crate::snapshot::layer::Metadata;
use crate::snapshot::page_hashes::PageHashes;
use crate::snapshot::reader::{FramePlace, Place, Snapshot};
use crate::snapshot::sort::Sorter;

/// Stretches of frames that are not complete yet. Beyond, frames are fetched instead.
const STRETCHES_MAX: usize = 500_000;
/// Comparisons that wait for a thread.
const QUEUED: usize = 64;
/// Memory for checksums of pages whose frame is not settled yet.
const CHECKSUMS_BYTES: usize = 4 << 20;
const TICK: Duration = Duration::from_millis(200);

/// A stretch of a file in a frame.
struct Stretch {
    file: Arc<FileKey>,
    position: u64,
    length: u32,
    offset: u32,
}

/// A comparison that a thread makes.
enum Task {
    /// Every byte of a frame, which has this hash.
    Frame(FramePlace, [u8; 16], Vec<Stretch>),
    /// Whole pages of a frame.
    Pages(FramePlace, Stretch),
}

/// Compares the files of the target, which have their lengths, with the frames of the packs. Returns the frames that are needed all the same, and
/// how many bytes of the others the map leads to. `folder` takes what does not fit into memory.
///
/// # Errors
/// `TargetWrite` when a file cannot be read; `Interrupted`; `Damaged` when the map fails a check. A pack that cannot be opened is no error here.
pub fn find(
    snapshot: &Snapshot<'_>,
    destination: &Destination,
    survey: &Survey,
    how: &mut Copying<'_>,
) -> Result<(Frames, u64)> {
    let hashes = PageHashes::new(snapshot);
    let (sender, receiver) = sync_channel(QUEUED);
    let receiver = Arc::new(Mutex::new(receiver));
    let compare = Compare {
        snapshot,
        hashes: &hashes,
        destination,
        checksums: how.checksums,
        progress: how.progress,
        found: Mutex::new(Found::new(how.folder)),
    };
    std::thread::scope(|scope| -> Result<()> {
        let compare = &compare;
        let threads: Vec<_> = (0..how.jobs.max(1))
            .map(|_| {
                let receiver = Arc::clone(&receiver);
                scope.spawn(move || compare.run(&receiver))
            })
            .collect();
        // It goes with the last thread: then nothing can be sent any more.
        drop(receiver);
        let walked = Walk::new(compare, sender).run(survey, how);
        let mut result = walked;
        for thread in threads {
            let ended = thread.join();
            result = result.and(ended.unwrap_or_else(|_| Err(panicked())));
        }
        result
    })?;
    compare.finish()
}

fn panicked() -> Error {
    err!(Internal, "a thread panicked")
}

/// Gathers the stretches of each frame from the map.
struct Walk<'c, 'w, 's> {
    compare: &'c Compare<'w, 's>,
    sender: SyncSender<Task>,
    /// Stretches and bytes of frames that are put together.
    open: HashMap<(usize, u32), (Vec<Stretch>, u64)>,
    held: usize,
    /// Packs that cannot be opened: the copy says why.
    closed: HashSet<usize>,
}

impl<'c, 'w, 's> Walk<'c, 'w, 's> {
    fn new(compare: &'c Compare<'w, 's>, sender: SyncSender<Task>) -> Walk<'c, 'w, 's> {
        Walk {
            compare,
            sender,
            open: HashMap::new(),
            held: 0,
            closed: HashSet::new(),
        }
    }

    fn run(mut self, survey: &Survey, how: &mut Copying<'_>) -> Result<()> {
        let snapshot = self.compare.snapshot;
        let mut told = Instant::now();
        for item in snapshot.items() {
            let item = item?;
            let Metadata::File { length, .. } = item.metadata else {
                continue;
            };
            if survey.leaves_out(&item.key) {
                continue;
            }
            let is_compared = !withholds_file(&item.path);
            let file = Arc::new(item.key);
            for step in snapshot.steps(&file, length) {
                super::extract::check_stop(how.stop)?;
                if told.elapsed() >= TICK {
                    (how.tick)()?;
                    told = Instant::now();
                }
                for place in step? {
                    let Some(at) = place.at else { continue };
                    if !is_compared {
                        self.compare.found()?.needed.add(at.pack, at.frame);
                    } else if !self.add(&file, &place, at)? {
                        // The threads have ended: their error says why.
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds a stretch; `false` when no thread takes tasks any more.
    fn add(&mut self, file: &Arc<FileKey>, place: &Place, at: FramePlace) -> Result<bool> {
        let entry = match self.closed.contains(&at.pack) {
            true => None,
            false => self.compare.hashes.entry(at.pack, at.frame).ok(),
        };
        let (Some(entry), Ok(length)) = (entry, u32::try_from(place.length)) else {
            self.closed.insert(at.pack);
            self.compare.found()?.needed.add(at.pack, at.frame);
            return Ok(true);
        };
        let stretch = Stretch {
            file: Arc::clone(file),
            position: place.position,
            length,
            offset: at.offset,
        };
        if entry.is_of_pages() {
            return Ok(self.sender.send(Task::Pages(at, stretch)).is_ok());
        }
        let key = (at.pack, at.frame);
        let (stretches, bytes) = self.open.entry(key).or_insert_with(|| (Vec::new(), 0));
        if stretches.is_empty() {
            self.compare.found()?.needed.add(at.pack, at.frame);
        }
        stretches.push(stretch);
        *bytes += place.length;
        self.held += 1;
        if *bytes == u64::from(entry.raw_bytes)
            && let Some((stretches, _)) = self.open.remove(&key)
        {
            self.held -= stretches.len();
            let task = Task::Frame(at, entry.hash, stretches);
            return Ok(self.sender.send(task).is_ok());
        }
        if self.held > STRETCHES_MAX {
            self.open.clear();
            self.held = 0;
        }
        Ok(true)
    }
}

/// The result so far.
struct Found {
    needed: Frames,
    kept_bytes: u64,
    /// Checksums of the pages of frames, by frame: they count where the whole frame is not needed.
    checksums: Sorter,
}

impl Found {
    fn new(folder: &Path) -> Found {
        Found {
            needed: Frames::default(),
            kept_bytes: 0,
            checksums: Sorter::new(folder, CHECKSUMS_BYTES),
        }
    }
}

/// Compares with the files.
struct Compare<'w, 's> {
    snapshot: &'w Snapshot<'s>,
    hashes: &'w PageHashes<'w, 's>,
    destination: &'w Destination,
    checksums: super::extract::Checksums<'w>,
    progress: &'w dyn crate::progress::Progress,
    found: Mutex<Found>,
}

impl Compare<'_, '_> {
    fn found(&self) -> Result<std::sync::MutexGuard<'_, Found>> {
        self.found.lock().map_err(|_| panicked())
    }

    fn run(&self, tasks: &Mutex<Receiver<Task>>) -> Result<()> {
        let (mut files, mut raw) = (OpenFiles::default(), Vec::new());
        let (mut files_of_pages, mut from_disk) = (OpenFiles::default(), FromDisk::default());
        loop {
            let next = tasks.lock().map_err(|_| panicked())?.recv();
            let Ok(task) = next else {
                return Ok(());
            };
            let bytes = match task {
                Task::Pages(at, stretch) => {
                    self.pages(at, &stretch, &mut files_of_pages, &mut from_disk)?
                }
                Task::Frame(at, hash, mut stretches) => {
                    stretches.sort_by_key(|stretch| stretch.offset);
                    self.frame(at, hash, &stretches, &mut files, &mut raw)?
                }
            };
            self.progress.advance(bytes);
        }
    }

    fn pages(
        &self,
        at: FramePlace,
        stretch: &Stretch,
        files: &mut OpenFiles,
        from_disk: &mut FromDisk,
    ) -> Result<u64> {
        let bytes = u64::from(stretch.length);
        if self.found()?.needed.contains(at.pack, at.frame) {
            return Ok(bytes);
        }
        let path = stretch.file.path(self.snapshot.naming());
        let raw = match self.destination.place_of(&path)? {
            Some((tree, relative)) => {
                let file = files.get(&stretch.file, &tree, relative)?;
                let read = from_disk.read(file, stretch.position, stretch.length as usize);
                read.map_err(|e| write_error(&String::from_utf8_lossy(&path), e))?
            }
            None => &[],
        };
        // A pack that cannot be read now is opened by the copy, which says why.
        let is_there = !raw.is_empty() && self.hashes.is_same(at, raw).unwrap_or_default();
        let mut found = self.found()?;
        if is_there {
            let (pack, frame) = (at.pack as u64, at.frame);
            let mut key = pack.to_be_bytes().to_vec();
            key.extend_from_slice(&frame.to_be_bytes());
            key.extend_from_slice(&stretch.position.to_be_bytes());
            key.extend_from_slice(&path);
            let mut payload = stretch.length.to_le_bytes().to_vec();
            payload.extend_from_slice(&crc32c::crc32c(raw).to_le_bytes());
            found.checksums.push(&key, &payload)?;
        } else {
            found.needed.add(at.pack, at.frame);
        }
        Ok(bytes)
    }

    fn frame(
        &self,
        at: FramePlace,
        hash: [u8; 16],
        stretches: &[Stretch],
        files: &mut OpenFiles,
        raw: &mut Vec<u8>,
    ) -> Result<u64> {
        let bytes = stretches.iter().map(|s| u64::from(s.length)).sum();
        if !self.is_there(hash, stretches, files, raw)? {
            return Ok(bytes);
        }
        for stretch in stretches {
            let begin = stretch.offset as usize;
            let content = raw.get(begin..begin + stretch.length as usize);
            let crc = crc32c::crc32c(content.unwrap_or_default());
            let path = stretch.file.path(self.snapshot.naming());
            (self.checksums)(&path, stretch.position, stretch.length, crc)?;
        }
        let mut found = self.found()?;
        found.needed.remove(at.pack, at.frame);
        found.kept_bytes += bytes;
        Ok(bytes)
    }

    /// Reads the bytes of a frame from the files into `raw`, and compares their hash.
    fn is_there(
        &self,
        hash: [u8; 16],
        stretches: &[Stretch],
        files: &mut OpenFiles,
        raw: &mut Vec<u8>,
    ) -> Result<bool> {
        raw.clear();
        let mut extents = Vec::new();
        for stretch in stretches {
            if raw.len() != stretch.offset as usize || !self.read(stretch, files, raw)? {
                return Ok(false);
            }
            add_extent(
                &mut extents,
                &stretch.file,
                stretch.position,
                stretch.length,
            );
        }
        Ok(content_hash_of(&extents, raw) == hash)
    }

    /// Appends the bytes of a stretch to `raw`; `false` where the target has no such file.
    fn read(&self, stretch: &Stretch, files: &mut OpenFiles, raw: &mut Vec<u8>) -> Result<bool> {
        let path = stretch.file.path(self.snapshot.naming());
        let Some((tree, relative)) = self.destination.place_of(&path)? else {
            return Ok(false);
        };
        let file = files.get(&stretch.file, &tree, relative)?;
        let begin = raw.len();
        raw.resize(begin + stretch.length as usize, 0);
        let to = raw.get_mut(begin..).unwrap_or_default();
        file.read_exact_at(to, stretch.position)
            .map_err(|e| write_error(&String::from_utf8_lossy(&path), e))?;
        Ok(true)
    }

    /// Tells the checksums of the pages of frames that are not needed.
    fn finish(self) -> Result<(Frames, u64)> {
        let Found {
            needed,
            mut kept_bytes,
            checksums,
        } = self.found.into_inner().map_err(|_| panicked())?;
        checksums.drain(&mut |key, payload| {
            let (pack, rest) = take::<8>(key)?;
            let (frame, rest) = take::<4>(rest)?;
            let (position, path) = take::<8>(rest)?;
            let (length, crc) = take::<4>(payload)?;
            let pack = usize::try_from(u64::from_be_bytes(pack)).unwrap_or(usize::MAX);
            if needed.contains(pack, u32::from_be_bytes(frame)) {
                return Ok(());
            }
            let length = u32::from_le_bytes(length);
            let (crc, _) = take::<4>(crc)?;
            kept_bytes += u64::from(length);
            let position = u64::from_be_bytes(position);
            (self.checksums)(path, position, length, u32::from_le_bytes(crc))
        })?;
        Ok((needed, kept_bytes))
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8])> {
    let parts = bytes.split_first_chunk::<N>();
    let (first, rest) = parts.ok_or_else(|| err!(Internal, "a record of a frame is broken"))?;
    Ok((*first, rest))
}
