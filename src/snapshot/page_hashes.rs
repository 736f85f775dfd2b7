//! The hashes of a snapshot's pages, by file: what a scan compares a data directory with.
//!
//! Packs hold a hash of each page. In a frame of whole pages its place follows from the offset; other frames are read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use xxhash_rust::xxh3::xxh3_64;

use super::filekey::FileKey;
use super::frame::{Frame, PAGE_BYTES};
use super::layer::Metadata;
use super::reader::{FramePlace, PackOfSnapshot, Snapshot};
use crate::err;
use crate::error::Result;

/// Packs whose hashes are kept, of at most 4 MiB each.
const CACHED_PACKS: usize = 4;

/// The hash of a page, or of the part of one that a file ends with.
pub fn hash(page: &[u8]) -> u64 {
    xxh3_64(page)
}

/// The page hashes of a snapshot.
pub struct PageHashes<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    cache: Mutex<Cache<'s, 'a>>,
}

#[derive(Default)]
struct Cache<'s, 'a> {
    packs: VecDeque<Arc<Pack<'s, 'a>>>,
    /// The last frame that was read, with its pack.
    frame: Option<(usize, Arc<Frame>)>,
}

struct Pack<'s, 'a> {
    index: usize,
    pack: PackOfSnapshot<'s, 'a>,
    /// Where each frame's hashes begin.
    first: Vec<usize>,
    hashes: Vec<u64>,
}

impl<'s, 'a> PageHashes<'s, 'a> {
    /// Those of this snapshot.
    pub fn new(snapshot: &'s Snapshot<'a>) -> PageHashes<'s, 'a> {
        PageHashes {
            snapshot,
            cache: Mutex::default(),
        }
    }

    /// Returns the hash of each page of a file, in order; of the last one that of its bytes. `None` of a page that was written in pieces: no
    /// hash is kept of it.
    ///
    /// # Errors
    /// `Damaged` when map or packs fail a check; what the store says.
    pub fn of(&self, file: &FileKey) -> Result<Vec<Option<u64>>> {
        let metadata = self.snapshot.metadata(file)?;
        let length = metadata.as_ref().and_then(Metadata::file_length);
        let mut hashes = Vec::new();
        for place in self.snapshot.places(file, 0, length.unwrap_or(0))? {
            let end = place.position + place.length;
            let mut at = place.position;
            while at < end {
                let bytes = (PAGE_BYTES as u64 - at % PAGE_BYTES as u64).min(end - at);
                let length = usize::try_from(bytes).unwrap_or(PAGE_BYTES);
                let skipped = u32::try_from(at - place.position).unwrap_or(u32::MAX);
                let known = match place.at {
                    None => hash(ZEROS.get(..length).unwrap_or(&ZEROS)),
                    Some(from) => self.page(
                        FramePlace {
                            offset: from.offset.saturating_add(skipped),
                            ..from
                        },
                        length,
                    )?,
                };
                match (at.is_multiple_of(PAGE_BYTES as u64), hashes.last_mut()) {
                    (false, Some(begun)) => *begun = None,
                    _ => hashes.push(Some(known)),
                }
                at += bytes;
            }
        }
        Ok(hashes)
    }

    fn page(&self, at: FramePlace, length: usize) -> Result<u64> {
        let pack = self.pack(at.pack)?;
        let entry = pack.pack.reader().entry(at.frame);
        let entry = entry.ok_or_else(|| err!(Damaged, "the pack has no frame {}", at.frame))?;
        let offset = at.offset as usize;
        let is_of_pages = entry.raw_bytes as usize == entry.page_hashes as usize * PAGE_BYTES;
        if is_of_pages && length == PAGE_BYTES && offset.is_multiple_of(PAGE_BYTES) {
            let first = pack.first.get(at.frame as usize).copied().unwrap_or(0);
            let found = pack.hashes.get(first + offset / PAGE_BYTES);
            return found
                .copied()
                .ok_or_else(|| err!(Damaged, "frame {} has too few page hashes", at.frame));
        }
        let frame = self.frame(&pack, at.frame)?;
        let bytes = frame.raw.get(offset..offset + length);
        let bytes =
            bytes.ok_or_else(|| err!(Damaged, "frame {} ends before its page", at.frame))?;
        Ok(hash(bytes))
    }

    fn pack(&self, index: usize) -> Result<Arc<Pack<'s, 'a>>> {
        let poisoned = |_| err!(Internal, "a thread that reads hashes panicked");
        if let Some(known) = self.cache.lock().map_err(poisoned)?.pack(index) {
            return Ok(known);
        }
        // Outside of the lock; two threads may read it twice.
        let pack = Arc::new(Pack::open(self.snapshot, index)?);
        let mut cache = self.cache.lock().map_err(poisoned)?;
        cache.packs.push_front(Arc::clone(&pack));
        cache.packs.truncate(CACHED_PACKS);
        Ok(pack)
    }

    fn frame(&self, pack: &Pack<'s, 'a>, number: u32) -> Result<Arc<Frame>> {
        let poisoned = |_| err!(Internal, "a thread that reads hashes panicked");
        let cache = self.cache.lock().map_err(poisoned)?;
        let known = cache.frame.as_ref();
        if let Some((_, frame)) =
            known.filter(|(index, frame)| *index == pack.index && frame.number == number)
        {
            return Ok(Arc::clone(frame));
        }
        drop(cache);
        let frame = Arc::new(pack.pack.reader().frame(number)?);
        let mut cache = self.cache.lock().map_err(poisoned)?;
        cache.frame = Some((pack.index, Arc::clone(&frame)));
        Ok(frame)
    }
}

impl<'s, 'a> Cache<'s, 'a> {
    fn pack(&mut self, index: usize) -> Option<Arc<Pack<'s, 'a>>> {
        let at = self.packs.iter().position(|pack| pack.index == index)?;
        let pack = self.packs.remove(at)?;
        self.packs.push_front(Arc::clone(&pack));
        Some(pack)
    }
}

impl<'s, 'a> Pack<'s, 'a> {
    fn open(snapshot: &'s Snapshot<'a>, index: usize) -> Result<Pack<'s, 'a>> {
        let pack = snapshot.pack(index)?;
        let hashes = pack.reader().page_hashes()?;
        let mut next = 0;
        let first = (0..pack.frame_count()).map(|number| {
            let own = pack.reader().entry(number);
            let first = next;
            next += own.map_or(0, |entry| entry.page_hashes as usize);
            first
        });
        Ok(Pack {
            index,
            first: first.collect(),
            hashes,
            pack,
        })
    }
}

const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
