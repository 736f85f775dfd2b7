//! A damaged frame, put together again from the same pages in other backups.
//!
//! The pack's page hashes say which page of another backup is the same, its directory whether the frame is: the hash of the content has 128
//! bits, and the checksum covers each stored byte.

use super::frame::{self, Extent, Frame, FrameEntry, PAGE_BYTES};
use super::pack::PackReader;
use super::page_hashes::hash;
use super::reader::{FramePlace, Snapshot};
use crate::error::Result;
use crate::repo::id::PartName;

/// A frame of which some pages are still looked for.
pub struct Rebuilt {
    number: u32,
    at: u64,
    entry: FrameEntry,
    extents: Vec<Extent>,
    hashes: Vec<u64>,
    raw: Vec<u8>,
    lacks: Vec<bool>,
}

impl Rebuilt {
    /// Begins with what the pack still tells of a frame; `hashes` are those of its pages.
    ///
    /// # Errors
    /// `Damaged` when it does not tell which stretches of which files the frame had.
    pub fn of(
        pack: &PackReader,
        number: u32,
        entry: FrameEntry,
        hashes: &[u64],
    ) -> Result<Rebuilt> {
        let (at, stored) = pack.stored_frame(number)?;
        let extents = frame::listed_extents(&stored, &entry, pack.naming())?;
        Ok(Rebuilt {
            number,
            at,
            entry,
            extents,
            raw: vec![0; entry.raw_bytes as usize],
            lacks: vec![true; hashes.len()],
            hashes: hashes.to_vec(),
        })
    }

    /// Its number in the pack.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its place in the pack.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether all pages were found.
    pub fn is_whole(&self) -> bool {
        !self.lacks.contains(&true)
    }

    /// Takes the pages that a backup has as this frame had them; `part` is the damaged pack.
    ///
    /// # Errors
    /// Those of the map; what the store says. A pack that is damaged in its turn gives nothing.
    pub fn take(&mut self, snapshot: &Snapshot<'_>, part: &PartName) -> Result<()> {
        let (mut at, mut page) = (0, 0);
        let mut seen = None;
        for extent in self.extents.clone() {
            let (length, pages) = (extent.length as usize, extent.pages());
            let lacks = self.lacks.get(page..page + pages).unwrap_or_default();
            if lacks.contains(&true) {
                let bytes = read(snapshot, &extent, part, &mut seen)?;
                self.compare(&bytes, (at, page));
            }
            at += length;
            page += pages;
        }
        Ok(())
    }

    /// Keeps the pages of an extent that have the hash; `at` and `page` say where it begins.
    fn compare(&mut self, bytes: &[u8], (at, page): (usize, usize)) {
        let raw = self.raw.get_mut(at..).unwrap_or_default();
        let known = self.hashes.iter().zip(&mut self.lacks).skip(page);
        let pages = bytes.chunks(PAGE_BYTES).zip(raw.chunks_mut(PAGE_BYTES));
        for ((found, place), (wanted, lacks)) in pages.zip(known) {
            if *lacks && hash(found) == *wanted {
                let place = place.iter_mut().zip(found);
                place.for_each(|(to, from)| *to = *from);
                *lacks = false;
            }
        }
    }

    /// Returns the stored bytes of the frame, which are those that were lost.
    ///
    /// # Errors
    /// Those of [`frame::repacked`].
    pub fn stored(&self) -> Result<Vec<u8>> {
        frame::repacked((&self.extents, &self.raw), self.number, &self.entry)
    }
}

/// A frame of a snapshot, by pack and number; none where it is damaged.
type Seen = Option<((usize, u32), Option<Frame>)>;

/// The bytes that a backup has of a stretch of a file; zeros where it has none that can be read.
fn read(
    snapshot: &Snapshot<'_>,
    extent: &Extent,
    part: &PartName,
    seen: &mut Seen,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; extent.length as usize];
    for place in snapshot.places(&extent.file, extent.position, extent.end())? {
        let Some(at) = place.at.filter(|_| place.chunk.is_none()) else {
            continue;
        };
        let own = snapshot.packs().get(at.pack).map(|pack| &pack.key);
        if own == Some(part) {
            continue;
        }
        let Some(frame) = frame_at(snapshot, at, seen)? else {
            continue;
        };
        let to = usize::try_from(place.position - extent.position).unwrap_or(usize::MAX);
        let from = frame.raw.get(at.offset as usize..).unwrap_or_default();
        let length = usize::try_from(place.length).unwrap_or(usize::MAX);
        let pairs = bytes.iter_mut().skip(to).zip(from).take(length);
        pairs.for_each(|(to, from)| *to = *from);
    }
    Ok(bytes)
}

fn frame_at<'s>(
    snapshot: &Snapshot<'_>,
    at: FramePlace,
    seen: &'s mut Seen,
) -> Result<Option<&'s Frame>> {
    let wanted = (at.pack, at.frame);
    if seen.as_ref().is_none_or(|(at, _)| *at != wanted) {
        let read = snapshot.pack(at.pack).and_then(|p| p.whole_frame(at.frame));
        let read = match read {
            Ok(frame) => Some(frame),
            Err(e) if e.is_damage() => None,
            Err(e) => return Err(e),
        };
        *seen = Some((wanted, read));
    }
    Ok(seen.as_ref().and_then(|(_, frame)| frame.as_ref()))
}
