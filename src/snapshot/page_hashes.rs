//! The hashes of a snapshot's pages, by file: what a scan compares a data directory with.
//!
//! Packs hold a hash of each page. In a frame of whole pages its place follows from the offset; other frames are read.

use std::sync::{Arc, Mutex};

use xxhash_rust::xxh3::xxh3_64;

use super::filekey::FileKey;
use super::frame::{Frame, FrameEntry, PAGE_BYTES};
use super::layer::Metadata;
use super::reader::{FramePlace, PackOfSnapshot, Place, Snapshot};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::recent::Recent;

/// Memory for hashes and directories of packs. In a long chain a file lies in a pack of each backup, and files that follow lie in the same ones.
const PACKS_BYTES: usize = 24 << 20;
/// Packs that are kept: each holds files open.
const PACKS_MAX: usize = 64;
/// Memory for frames that have to be read.
const FRAMES_BYTES: usize = 6 << 20;
/// Memory that a frame takes in a pack's directory.
const DIRECTORY_ENTRY_BYTES: usize = 64;

const PAGE: u64 = PAGE_BYTES as u64;

/// The hash of a page, or of the part of one that a file ends with.
pub fn hash(page: &[u8]) -> u64 {
    xxh3_64(page)
}

/// The page hashes of a snapshot.
pub struct PageHashes<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    packs: Mutex<Recent<usize, Pack<'s, 'a>>>,
    /// By pack and number.
    frames: Mutex<Recent<(usize, u32), Frame>>,
}

struct Pack<'s, 'a> {
    index: usize,
    pack: PackOfSnapshot<'s, 'a>,
    /// Index of each frame's first hash.
    first: Vec<u32>,
    hashes: Vec<u64>,
}

impl<'s, 'a> PageHashes<'s, 'a> {
    /// Those of this snapshot.
    pub fn new(snapshot: &'s Snapshot<'a>) -> PageHashes<'s, 'a> {
        PageHashes::within(snapshot, PACKS_BYTES)
    }

    /// As [`PageHashes::new`], with so much memory for what packs tell.
    pub(super) fn within(snapshot: &'s Snapshot<'a>, packs_bytes: usize) -> PageHashes<'s, 'a> {
        PageHashes {
            snapshot,
            packs: Mutex::new(Recent::new(PACKS_MAX, packs_bytes)),
            frames: Mutex::new(Recent::new(usize::MAX, FRAMES_BYTES)),
        }
    }

    /// Returns the hash of each page of a file, in order; of the last one that of its bytes. `None` of a page that was written in pieces: no
    /// hash is kept of it. The same of one in a frame that has to be read, on a host without the key for that.
    ///
    /// # Errors
    /// `Damaged` when map or packs fail a check; what the store says.
    pub fn of(&self, file: &FileKey) -> Result<Vec<Option<u64>>> {
        let metadata = self.snapshot.metadata(file)?;
        let length = metadata.as_ref().and_then(Metadata::file_length);
        let mut places = self.snapshot.places(file, 0, length.unwrap_or(0))?;
        let pages = length.unwrap_or(0).div_ceil(PAGE);
        let mut hashes = vec![None; usize::try_from(pages).unwrap_or(0)];
        let inside = places.iter().map(|place| place.position);
        let in_pieces: Vec<u64> = inside
            .filter(|position| !position.is_multiple_of(PAGE))
            .map(|position| position / PAGE)
            .collect();
        // Each pack is asked once for a file, however its pages take turns.
        places.sort_unstable_by_key(|place| place.at.map(|at| (at.pack, at.frame, at.offset)));
        let mut pack = None;
        for place in &places {
            let first = place.position.div_ceil(PAGE);
            for page in first..(place.position + place.length).div_ceil(PAGE) {
                if in_pieces.binary_search(&page).is_ok() {
                    continue;
                }
                let known = self.page(place, page * PAGE, &mut pack)?;
                if let Some(slot) = usize::try_from(page).ok().and_then(|at| hashes.get_mut(at)) {
                    *slot = known;
                }
            }
        }
        Ok(hashes)
    }

    /// Returns what a pack's directory says of a frame.
    ///
    /// # Errors
    /// `Damaged` when the pack fails a check, or has no such frame; what the store says.
    pub fn entry(&self, pack: usize, frame: u32) -> Result<FrameEntry> {
        let pack = self.pack(pack)?;
        let entry = pack.pack.reader().entry(frame);
        entry
            .copied()
            .ok_or_else(|| err!(Damaged, "the pack has no frame {frame}"))
    }

    /// Whether pages have the hashes of those from a place on, in a frame of whole pages.
    ///
    /// # Errors
    /// Those of [`PageHashes::entry`].
    pub fn is_same(&self, at: FramePlace, pages: &[u8]) -> Result<bool> {
        let pack = self.pack(at.pack)?;
        let is_whole = |bytes: usize| bytes.is_multiple_of(PAGE_BYTES);
        let known = pack.from(at).unwrap_or_default();
        let own = pages.chunks(PAGE_BYTES);
        Ok(is_whole(at.offset as usize)
            && is_whole(pages.len())
            && known.len() >= own.len()
            && own.zip(known).all(|(page, known)| hash(page) == *known))
    }

    /// The hash of the page at `at`, which lies in `place`, or of as much of it as does. `pack` is the one that was asked last.
    fn page(
        &self,
        place: &Place,
        at: u64,
        pack: &mut Option<Arc<Pack<'s, 'a>>>,
    ) -> Result<Option<u64>> {
        let left = place.position + place.length - at;
        let length = usize::try_from(left.min(PAGE)).unwrap_or(PAGE_BYTES);
        let Some(from) = place.at else {
            return Ok(Some(hash(ZEROS.get(..length).unwrap_or(&ZEROS))));
        };
        let pack = match pack {
            Some(pack) if pack.index == from.pack => pack,
            _ => pack.insert(self.pack(from.pack)?),
        };
        let skipped = u32::try_from(at - place.position).unwrap_or(u32::MAX);
        let offset = from.offset.saturating_add(skipped);
        match self.in_pack(pack, FramePlace { offset, ..from }, length) {
            Err(e) if e.code() == Code::Key => Ok(None),
            known => known.map(Some),
        }
    }

    fn in_pack(&self, pack: &Pack<'s, 'a>, at: FramePlace, length: usize) -> Result<u64> {
        let entry = pack.pack.reader().entry(at.frame);
        let entry = entry.ok_or_else(|| err!(Damaged, "the pack has no frame {}", at.frame))?;
        let offset = at.offset as usize;
        if entry.is_of_pages() && length == PAGE_BYTES && offset.is_multiple_of(PAGE_BYTES) {
            let found = pack.from(at).and_then(|hashes| hashes.first().copied());
            return found
                .ok_or_else(|| err!(Damaged, "frame {} has too few page hashes", at.frame));
        }
        let frame = self.frame(pack, at.frame)?;
        let bytes = frame.raw.get(offset..offset + length);
        let bytes =
            bytes.ok_or_else(|| err!(Damaged, "frame {} ends before its page", at.frame))?;
        Ok(hash(bytes))
    }

    fn pack(&self, index: usize) -> Result<Arc<Pack<'s, 'a>>> {
        if let Some(known) = self.packs.lock().map_err(poisoned)?.get(index) {
            return Ok(known);
        }
        // Outside of the lock; two threads may read it twice.
        let pack = Arc::new(Pack::open(self.snapshot, index)?);
        let bytes = pack.bytes();
        self.packs
            .lock()
            .map_err(poisoned)?
            .put(index, &pack, bytes);
        Ok(pack)
    }

    fn frame(&self, pack: &Pack<'s, 'a>, number: u32) -> Result<Arc<Frame>> {
        let key = (pack.index, number);
        if let Some(known) = self.frames.lock().map_err(poisoned)?.get(key) {
            return Ok(known);
        }
        let frame = Arc::new(pack.pack.reader().frame(number)?);
        let bytes = frame.raw.len();
        self.frames
            .lock()
            .map_err(poisoned)?
            .put(key, &frame, bytes);
        Ok(frame)
    }
}

fn poisoned<T>(_: T) -> Error {
    err!(Internal, "a thread that reads hashes panicked")
}

impl<'s, 'a> Pack<'s, 'a> {
    fn open(snapshot: &'s Snapshot<'a>, index: usize) -> Result<Pack<'s, 'a>> {
        let pack = snapshot.pack(index)?;
        let hashes = pack.page_hashes()?;
        let mut next = 0_u32;
        let first = (0..pack.frame_count()).map(|number| {
            let own = pack.reader().entry(number);
            let first = next;
            next = next.saturating_add(own.map_or(0, |entry| entry.page_hashes));
            first
        });
        Ok(Pack {
            index,
            first: first.collect(),
            hashes,
            pack,
        })
    }

    /// The hashes of a frame of whole pages from a place on.
    fn from(&self, at: FramePlace) -> Option<&[u64]> {
        let count = self.pack.reader().entry(at.frame)?.page_hashes as usize;
        let first = *self.first.get(at.frame as usize)? as usize;
        let skipped = at.offset as usize / PAGE_BYTES;
        self.hashes.get(first + skipped.min(count)..first + count)
    }

    /// The memory that it takes.
    fn bytes(&self) -> usize {
        self.hashes.len() * size_of::<u64>() + self.first.len() * DIRECTORY_ENTRY_BYTES
    }
}

const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
