//! Content that files share: how it is cut into chunks, and which chunks are stored already (format, section 16.3).
//!
//! A writer knows the chunks of its own run, up to a number that fits a fixed memory, and those that the map of its prior shows. The latter
//! lie sorted in an unnamed file, of which a look-up reads one page: a map of any length costs a few megabytes. The file is made when the
//! first changed content asks for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fastcdc::v2020::{FastCDC, Normalization};

use super::filekey::ChunkId;
use super::piece::WholeChunk;
use super::reader::Snapshot;
use super::sort::{self, MEMORY_BYTES, Sorter};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::repo::id::PartName;

/// A file that is shorter is one chunk.
pub const WHOLE_BELOW_BYTES: usize = 1 << 20;
/// Shortest chunk of a file that is cut, but for its last one.
const LEAST_BYTES: usize = 128 << 10;
const MEAN_BYTES: usize = 512 << 10;
/// Longest chunk.
pub const MOST_BYTES: usize = 1 << 20;

/// Chunks of the own run that are remembered: 25 MB. Further ones are stored as often as they come.
const REMEMBERED: usize = 450_000;
/// Hash, pack, frame, offset, length.
const RECORD_BYTES: usize = 48;
/// Records that a look-up reads.
const PAGE_RECORDS: usize = 85;

/// Returns how many of the first bytes are the next chunk of a file; all that is left of the file are there, or [`MOST_BYTES`].
pub fn cut(bytes: &[u8], seed: u64) -> usize {
    let level = Normalization::Level1;
    let cutter =
        FastCDC::with_level_and_seed(bytes, LEAST_BYTES, MEAN_BYTES, MOST_BYTES, level, seed);
    let (_, end) = cutter.cut(0, bytes.len());
    end.clamp(1, bytes.len().max(1))
}

/// The place of a chunk that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// By this run, in a frame that is numbered over all its packs.
    Here {
        /// Number of the frame.
        frame: u64,
        /// Byte offset in the frame's raw content.
        offset: u32,
    },
    /// By a backup before.
    Before {
        /// Index of the pack in the root of the prior.
        pack: u32,
        /// Frame in that pack.
        frame: u32,
        /// Byte offset in the frame's raw content.
        offset: u32,
    },
}

/// The chunks that a run need not store.
#[derive(Default)]
pub struct Chunks<'t> {
    own: Mutex<HashMap<[u8; 32], (u64, u32, u32)>>,
    prior: OnceLock<PriorChunks<'t>>,
    reused_bytes: AtomicU64,
}

impl<'t> Chunks<'t> {
    /// Takes over what the map of a prior shows.
    pub fn reuse(&self, prior: PriorChunks<'t>) {
        // Asked for once, before the first sink.
        let _ = self.prior.set(prior);
    }

    /// Reads the map of the prior now, and not when the first chunk is looked for.
    ///
    /// # Errors
    /// As [`Chunks::find`].
    pub fn prepare(&self) -> Result<()> {
        self.prior
            .get()
            .map_or(Ok(()), |prior| prior.index().map(|_| ()))
    }

    /// Finds a chunk of this length.
    ///
    /// # Errors
    /// `Damaged` when the map of the prior fails a check; those of the scratch file and of the store.
    pub fn find(&self, id: &ChunkId, length: u32) -> Result<Option<Stored>> {
        let own = locked(&self.own).get(&id.hash).copied();
        let found = match own {
            Some((frame, offset, known)) => {
                (known == length).then_some(Stored::Here { frame, offset })
            }
            None => match self.prior.get() {
                Some(prior) => prior.find(id, length)?,
                None => None,
            },
        };
        if found.is_some() {
            self.count(length);
        }
        Ok(found)
    }

    /// Remembers a chunk at the frame and the offset that `place` gives, and returns them.
    ///
    /// # Errors
    /// The place where another thread stores the same chunk, which was faster.
    pub fn remember(
        &self,
        id: &ChunkId,
        place: impl FnOnce() -> (u64, u32),
        length: u32,
    ) -> std::result::Result<(u64, u32), Stored> {
        let mut own = locked(&self.own);
        if let Some((frame, offset, known)) = own.get(&id.hash).copied()
            && known == length
        {
            self.count(length);
            return Err(Stored::Here { frame, offset });
        }
        let (frame, offset) = place();
        if own.len() < REMEMBERED {
            own.insert(id.hash, (frame, offset, length));
        }
        Ok((frame, offset))
    }

    fn count(&self, length: u32) {
        self.reused_bytes
            .fetch_add(u64::from(length), Ordering::Relaxed);
    }

    /// How many bytes of files were found stored.
    pub fn reused_bytes(&self) -> u64 {
        self.reused_bytes.load(Ordering::Relaxed)
    }

    /// The name and the hash of a pack of the prior, by its index in the root.
    pub fn pack(&self, index: u32) -> Option<(PartName, [u8; 32])> {
        let snapshot = self.prior.get()?.snapshot;
        let part = &snapshot.packs().get(index as usize)?.key;
        Some((part.clone(), *snapshot.pack_hash(part)?))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The content is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the chunks of a prior are known.
enum Asked {
    /// Nobody has asked yet.
    Not,
    Known(Arc<Index>),
    Without,
}

/// The chunks that the map of a prior shows.
pub struct PriorChunks<'t> {
    snapshot: &'t Snapshot<'t>,
    host: &'t Host,
    index: Mutex<Asked>,
    /// How many frames a pack has that was opened; none of one that does not pass its checks.
    packs: Mutex<HashMap<u32, Option<u32>>>,
}

impl<'t> PriorChunks<'t> {
    /// Those of `snapshot`, whose map is read when the first one is looked for.
    pub fn new(snapshot: &'t Snapshot<'t>, host: &'t Host) -> PriorChunks<'t> {
        PriorChunks {
            snapshot,
            host,
            index: Mutex::new(Asked::Not),
            packs: Mutex::default(),
        }
    }

    fn find(&self, id: &ChunkId, length: u32) -> Result<Option<Stored>> {
        let known = match self.index()? {
            Some(index) => index.find(&id.hash)?,
            None => None,
        };
        let Some(known) = known else { return Ok(None) };
        let (pack, frame) = (known.pack, known.frame);
        if known.whole.length != length || !self.is_sound(pack, frame)? {
            return Ok(None);
        }
        let offset = known.whole.offset;
        Ok(Some(Stored::Before {
            pack,
            frame,
            offset,
        }))
    }

    /// Returns the index, which is made once; none where it cannot be made. A run needs it only to store less.
    fn index(&self) -> Result<Option<Arc<Index>>> {
        let mut asked = locked(&self.index);
        match &*asked {
            Asked::Known(index) => return Ok(Some(Arc::clone(index))),
            Asked::Without => return Ok(None),
            Asked::Not => *asked = Asked::Without,
        }
        match Index::of(self.snapshot, self.host) {
            Ok(index) => {
                let index = Arc::new(index);
                *asked = Asked::Known(Arc::clone(&index));
                Ok(Some(index))
            }
            Err(e) if e.is_damage() || e.code() == Code::Interrupted => Err(e),
            Err(e) => {
                let what = "content that the backup before has is stored again, for it cannot be looked up";
                self.host.progress.warn(&format!("{what}: {e}"));
                Ok(None)
            }
        }
    }

    /// Whether a pack is there, the one that the map means, and has that frame. Nothing is built upon a pack that a reader would refuse.
    fn is_sound(&self, pack: u32, frame: u32) -> Result<bool> {
        if let Some(frames) = locked(&self.packs).get(&pack) {
            return Ok(frames.is_some_and(|frames| frame < frames));
        }
        let frames = match self.snapshot.pack(pack as usize) {
            Ok(pack) => Some(pack.frame_count()),
            Err(e) if e.is_damage() => None,
            Err(e) => return Err(e),
        };
        locked(&self.packs).insert(pack, frames);
        Ok(frames.is_some_and(|frames| frame < frames))
    }
}

/// A chunk of the prior.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Index of its pack in the root.
    pub pack: u32,
    /// Number of its frame in the pack.
    pub frame: u32,
    /// Its place in the frame, and its hash.
    pub whole: WholeChunk,
}

impl Known {
    /// The record of an [`Index`].
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        let numbers = [self.pack, self.frame, self.whole.offset, self.whole.length];
        let bytes = numbers.into_iter().flat_map(u32::to_le_bytes);
        for (to, from) in record
            .iter_mut()
            .zip(self.whole.hash.into_iter().chain(bytes))
        {
            *to = from;
        }
        record
    }

    fn decode(record: &[u8; RECORD_BYTES]) -> Option<Known> {
        let (hash, numbers) = record.split_first_chunk::<32>()?;
        let (numbers, _) = numbers.as_chunks::<4>();
        let mut numbers = numbers.iter().map(|n| u32::from_le_bytes(*n));
        Some(Known {
            pack: numbers.next()?,
            frame: numbers.next()?,
            whole: WholeChunk {
                offset: numbers.next()?,
                length: numbers.next()?,
                hash: *hash,
            },
        })
    }
}

/// Chunks sorted by their hashes, in an unnamed file.
pub struct Index {
    file: File,
    records: u64,
    /// The hash of the first record of each page.
    fences: Vec<[u8; 32]>,
}

impl Index {
    fn of(snapshot: &Snapshot<'_>, host: &Host) -> Result<Index> {
        let mut sorter = Sorter::new(&host.scratch, MEMORY_BYTES);
        let mut watch = |_: &_, at: super::reader::FramePlace, place: &super::reader::Place| {
            let Some(whole) = place.chunk else {
                return Ok(());
            };
            let known = Known {
                pack: u32::try_from(at.pack).unwrap_or(u32::MAX),
                frame: at.frame,
                whole,
            };
            sorter.push(&known.encode(), &[])
        };
        for item in snapshot.items_watched(&mut watch) {
            host.check_stop()?;
            item?;
        }
        Index::sorted(sorter, &host.scratch)
    }

    /// The index of the records in `sorter`, in a file in `scratch`.
    ///
    /// # Errors
    /// Those of the scratch files.
    pub fn sorted(sorter: Sorter, scratch: &Path) -> Result<Index> {
        let failed = |e| sort::failed(scratch, e);
        let file = tempfile::tempfile_in(scratch).map_err(failed)?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        let (mut records, mut fences) = (0_u64, Vec::new());
        let mut last = None;
        sorter.drain(&mut |record, _| {
            // One place of a chunk is enough.
            let hash = record.first_chunk::<32>().copied();
            if hash == last {
                return Ok(());
            }
            last = hash;
            if records.is_multiple_of(PAGE_RECORDS as u64) {
                fences.extend(hash);
            }
            records += 1;
            out.write_all(record).map_err(failed)
        })?;
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        Ok(Index {
            file,
            records,
            fences,
        })
    }

    /// The chunk of this hash.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn find(&self, hash: &[u8; 32]) -> Result<Option<Known>> {
        let Some(page) = self.fences.partition_point(|f| f <= hash).checked_sub(1) else {
            return Ok(None);
        };
        let first = (page * PAGE_RECORDS) as u64;
        let count = (self.records - first).min(PAGE_RECORDS as u64);
        let mut bytes = [0; PAGE_RECORDS * RECORD_BYTES];
        let length = usize::try_from(count).unwrap_or(PAGE_RECORDS) * RECORD_BYTES;
        let wanted = bytes.get_mut(..length).unwrap_or_default();
        self.file
            .read_exact_at(wanted, first * RECORD_BYTES as u64)
            .map_err(|e| Error::from_io("read a temporary file", e))?;
        let (records, _) = wanted.as_chunks::<RECORD_BYTES>();
        let found = records.binary_search_by(|record| record.first_chunk::<32>().cmp(&Some(hash)));
        Ok(found
            .ok()
            .and_then(|at| records.get(at))
            .and_then(Known::decode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_cut_where_it_was_cut_before() {
        let mut state = 9_u64;
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[2]
        })
        .take(12 << 20)
        .collect();
        let cuts = |bytes: &[u8], seed| -> Vec<Vec<u8>> {
            let mut rest = bytes;
            let mut chunks = Vec::new();
            while !rest.is_empty() {
                let end = cut(&rest[..rest.len().min(MOST_BYTES)], seed);
                assert!(end <= MOST_BYTES && (end >= LEAST_BYTES || end == rest.len()));
                chunks.push(rest[..end].to_vec());
                rest = &rest[end..];
            }
            chunks
        };
        let before = cuts(&bytes, 0);
        assert!((10..40).contains(&before.len()), "{}", before.len());
        bytes.splice((5 << 20)..(5 << 20), *b"a few bytes more");
        let after = cuts(&bytes, 0);
        let new = after.iter().filter(|chunk| !before.contains(chunk)).count();
        assert!(new <= 3, "{new}");
        let other = cuts(&bytes, 0x1234_5678_9abc_def0);
        assert!(other.iter().filter(|chunk| after.contains(chunk)).count() <= 1);
    }

    #[test]
    fn every_chunk_of_an_index_is_found_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let hash = |i: u32| -> [u8; 32] { blake3::hash(&i.to_le_bytes()).into() };
        for count in [0_u32, 1, 84, 85, 86, 5000] {
            // So little memory that several runs are merged.
            let mut sorter = Sorter::new(folder.path(), 30_000);
            for i in (0..count).chain(0..count / 2) {
                let whole = WholeChunk {
                    offset: i,
                    length: i + 1,
                    hash: hash(i),
                };
                let known = Known {
                    pack: 3,
                    frame: i * 2,
                    whole,
                };
                sorter.push(&known.encode(), &[]).unwrap();
            }
            let index = Index::sorted(sorter, folder.path()).unwrap();
            assert_eq!(index.records, u64::from(count));
            for i in 0..count {
                let found = index.find(&hash(i)).unwrap().unwrap();
                assert_eq!((found.pack, found.frame), (3, i * 2));
                assert_eq!((found.whole.offset, found.whole.length), (i, i + 1));
            }
            for i in count..count + 500 {
                assert!(index.find(&hash(i)).unwrap().is_none());
            }
        }
    }

    #[test]
    fn the_memory_for_own_chunks_has_an_end() {
        let chunks = Chunks::default();
        let id = |i: u32| ChunkId {
            function: 0,
            hash: blake3::hash(&i.to_le_bytes()).into(),
        };
        let many = u32::try_from(REMEMBERED).unwrap();
        for i in 0..many + 10 {
            assert!(chunks.remember(&id(i), || (u64::from(i), 7), 9).is_ok());
        }
        let here = |frame| Some(Stored::Here { frame, offset: 7 });
        assert_eq!(chunks.find(&id(3), 9).unwrap(), here(3));
        assert_eq!(chunks.find(&id(3), 8).unwrap(), None);
        assert_eq!(
            chunks.remember(&id(3), || panic!("it is there"), 9).err(),
            here(3)
        );
        assert_eq!(chunks.find(&id(many + 5), 9).unwrap(), None);
        assert_eq!(chunks.reused_bytes(), 18);
    }
}
