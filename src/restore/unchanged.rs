//! Finds frames whose every byte the target has already: of an interrupted restore, or of a data directory that is taken back to an earlier moment.
//!
//! Such a frame is put together from the files, and its hash is compared with the one that the pack's directory has, to which the chain of hashes
//! leads from the root. Nothing of it is fetched then. A frame that the map leads to only in part is fetched, and compared byte by byte.

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::extract::{Copying, Destination, OpenFiles, Survey, withholds_file};
use super::tree::write_error;
use crate::err;
use crate::error::Result;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::frame::{Extent, content_hash_of};
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::{PackOfSnapshot, Snapshot};

/// Packs whose directories are kept.
const OPEN_PACKS: usize = 32;
/// Stretches of frames that are not complete yet. Beyond, frames are fetched instead.
const STRETCHES_MAX: usize = 500_000;
/// Frames that wait for a thread.
const QUEUED_FRAMES: usize = 16;
/// How much of a file's map is looked up at once.
const STEP_BYTES: u64 = 64 << 20;
const TICK: Duration = Duration::from_millis(200);

/// Frames of which nothing need be fetched.
#[derive(Debug, Default)]
pub struct Unchanged {
    packs: HashMap<usize, Vec<bool>>,
    /// Their raw bytes.
    pub bytes: u64,
}

impl Unchanged {
    /// Whether the target has a frame.
    pub fn contains(&self, pack: usize, frame: u32) -> bool {
        let frames = self.packs.get(&pack);
        frames.is_some_and(|frames| frames.get(frame as usize) == Some(&true))
    }

    /// Whether the target has every frame of a pack.
    pub fn has_pack(&self, pack: usize) -> bool {
        let frames = self.packs.get(&pack);
        frames.is_some_and(|frames| frames.iter().all(|is_there| *is_there))
    }
}

/// A stretch of a file in a frame.
struct Stretch {
    file: Arc<FileKey>,
    position: u64,
    length: u32,
    offset: u32,
}

/// A frame that the map leads to as a whole.
struct Candidate {
    pack: usize,
    frame: u32,
    /// How many frames the pack has.
    frames: u32,
    hash: [u8; 16],
    stretches: Vec<Stretch>,
}

/// Compares the files of the target, which have their lengths, with the frames of the packs.
///
/// # Errors
/// `TargetWrite` when a file cannot be read; `Interrupted`; `Damaged` when the map fails a check. A pack that cannot be opened is no error here.
pub fn find(
    snapshot: &Snapshot<'_>,
    destination: &Destination,
    survey: &Survey,
    how: &mut Copying<'_>,
) -> Result<Unchanged> {
    let found = Mutex::new(Unchanged::default());
    let (sender, receiver) = sync_channel(QUEUED_FRAMES);
    let receiver = Mutex::new(receiver);
    let compare = Compare {
        snapshot,
        destination,
        checksums: how.checksums,
        progress: how.progress,
        found: &found,
    };
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..how.jobs.max(1))
            .map(|_| scope.spawn(|| compare.run(&receiver)))
            .collect();
        let walked = Walk::new(snapshot, sender).run(survey, how);
        let mut result = walked;
        for thread in threads {
            let ended = thread.join();
            let ended = ended.unwrap_or_else(|_| Err(err!(Internal, "a thread panicked")));
            result = result.and(ended);
        }
        result
    })?;
    found
        .into_inner()
        .map_err(|_| err!(Internal, "a thread panicked"))
}

/// Gathers the stretches of each frame from the map.
struct Walk<'w, 's> {
    snapshot: &'w Snapshot<'s>,
    sender: SyncSender<Candidate>,
    packs: VecDeque<Option<PackOfSnapshot<'w, 's>>>,
    indexes: VecDeque<usize>,
    open: HashMap<(usize, u32), (Vec<Stretch>, u64)>,
    held: usize,
}

impl<'w, 's> Walk<'w, 's> {
    fn new(snapshot: &'w Snapshot<'s>, sender: SyncSender<Candidate>) -> Walk<'w, 's> {
        Walk {
            snapshot,
            sender,
            packs: VecDeque::new(),
            indexes: VecDeque::new(),
            open: HashMap::new(),
            held: 0,
        }
    }

    fn run(mut self, survey: &Survey, how: &mut Copying<'_>) -> Result<()> {
        let mut told = Instant::now();
        for item in self.snapshot.items() {
            let item = item?;
            let Metadata::File { length, .. } = item.metadata else {
                continue;
            };
            if withholds_file(&item.path) || survey.leaves_out(&item.key) {
                continue;
            }
            let file = Arc::new(item.key);
            let mut from = 0;
            while from < length {
                super::extract::check_stop(how.stop)?;
                if told.elapsed() >= TICK {
                    (how.tick)();
                    told = Instant::now();
                }
                let to = length.min(from + STEP_BYTES);
                if !self.add(&file, from, to)? {
                    // The threads have ended: their error tells why.
                    return Ok(());
                }
                from = to;
            }
        }
        Ok(())
    }

    /// Adds the stretches of a part of a file; `false` when nobody takes frames any more.
    fn add(&mut self, file: &Arc<FileKey>, from: u64, to: u64) -> Result<bool> {
        for place in self.snapshot.places(file, from, to)? {
            let Some(at) = place.at else { continue };
            let (Ok(length), Some((raw, hash, frames))) = (
                u32::try_from(place.length),
                self.directory_entry(at.pack, at.frame),
            ) else {
                continue;
            };
            let key = (at.pack, at.frame);
            let (stretches, bytes) = self.open.entry(key).or_default();
            stretches.push(Stretch {
                file: Arc::clone(file),
                position: place.position,
                length,
                offset: at.offset,
            });
            *bytes += place.length;
            self.held += 1;
            if *bytes == u64::from(raw)
                && let Some((stretches, _)) = self.open.remove(&key)
            {
                self.held -= stretches.len();
                let candidate = Candidate {
                    pack: at.pack,
                    frame: at.frame,
                    frames,
                    hash,
                    stretches,
                };
                if self.sender.send(candidate).is_err() {
                    return Ok(false);
                }
            } else if self.held > STRETCHES_MAX {
                self.open.clear();
                self.held = 0;
            }
        }
        Ok(true)
    }

    /// Raw length and hash of a frame, and how many frames its pack has; none where the pack cannot be opened, which the copy will say.
    fn directory_entry(&mut self, pack: usize, frame: u32) -> Option<(u32, [u8; 16], u32)> {
        let at = match self.indexes.iter().position(|index| *index == pack) {
            Some(at) => at,
            None => {
                if self.packs.len() >= OPEN_PACKS {
                    self.packs.pop_back();
                    self.indexes.pop_back();
                }
                self.packs.push_front(self.snapshot.pack(pack).ok());
                self.indexes.push_front(pack);
                0
            }
        };
        let pack = self.packs.get(at)?.as_ref()?;
        let entry = pack.reader().entry(frame)?;
        Some((entry.raw_bytes, entry.hash, pack.frame_count()))
    }
}

/// Puts frames together from the files.
struct Compare<'w, 's> {
    snapshot: &'w Snapshot<'s>,
    destination: &'w Destination,
    checksums: super::extract::Checksums<'w>,
    progress: &'w dyn crate::progress::Progress,
    found: &'w Mutex<Unchanged>,
}

impl Compare<'_, '_> {
    fn run(&self, candidates: &Mutex<Receiver<Candidate>>) -> Result<()> {
        let mut files = OpenFiles::default();
        let mut raw = Vec::new();
        loop {
            let next = match candidates.lock() {
                Ok(candidates) => candidates.recv(),
                Err(_) => return Err(err!(Internal, "a thread panicked")),
            };
            let Ok(mut candidate) = next else {
                return Ok(());
            };
            let bytes: u64 = candidate
                .stretches
                .iter()
                .map(|s| u64::from(s.length))
                .sum();
            if self.is_there(&mut candidate, &mut files, &mut raw)? {
                self.keep(&candidate, &raw, bytes)?;
            }
            self.progress.advance(bytes);
        }
    }

    /// Reads the bytes of a frame from the files into `raw`, and compares their hash.
    fn is_there(
        &self,
        candidate: &mut Candidate,
        files: &mut OpenFiles,
        raw: &mut Vec<u8>,
    ) -> Result<bool> {
        candidate.stretches.sort_by_key(|stretch| stretch.offset);
        raw.clear();
        let mut extents: Vec<Extent> = Vec::new();
        for stretch in &candidate.stretches {
            let begin = raw.len();
            if begin != stretch.offset as usize {
                return Ok(false);
            }
            let path = stretch.file.path(self.snapshot.naming());
            let shown = String::from_utf8_lossy(&path).into_owned();
            let Some((tree, relative)) = self.destination.place_of(&path)? else {
                return Ok(false);
            };
            let file = files.get(&stretch.file, &tree, relative)?;
            raw.resize(begin + stretch.length as usize, 0);
            let to = raw.get_mut(begin..).unwrap_or_default();
            file.read_exact_at(to, stretch.position)
                .map_err(|e| write_error(&shown, e))?;
            match extents.last_mut() {
                Some(last)
                    if last.file == *stretch.file
                        && last.position + u64::from(last.length) == stretch.position =>
                {
                    last.length += stretch.length;
                }
                _ => extents.push(Extent {
                    file: FileKey::clone(&stretch.file),
                    position: stretch.position,
                    length: stretch.length,
                }),
            }
        }
        Ok(content_hash_of(&extents, raw) == candidate.hash)
    }

    fn keep(&self, candidate: &Candidate, raw: &[u8], bytes: u64) -> Result<()> {
        for stretch in &candidate.stretches {
            let begin = stretch.offset as usize;
            let content = raw.get(begin..begin + stretch.length as usize);
            let crc = crc32c::crc32c(content.unwrap_or_default());
            let path = stretch.file.path(self.snapshot.naming());
            (self.checksums)(&path, stretch.position, stretch.length, crc)?;
        }
        let mut found = self
            .found
            .lock()
            .map_err(|_| err!(Internal, "a thread panicked"))?;
        let frames = found
            .packs
            .entry(candidate.pack)
            .or_insert_with(|| vec![false; candidate.frames as usize]);
        if let Some(frame) = frames.get_mut(candidate.frame as usize) {
            *frame = true;
        }
        found.bytes += bytes;
        Ok(())
    }
}
