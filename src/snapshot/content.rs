//! Reads files of a snapshot from their beginning to their end.

use std::collections::VecDeque;

use super::filekey::FileKey;
use super::reader::{FramePlace, PackOfSnapshot, Place, Snapshot, VisibleFrame};
use crate::err;
use crate::error::Result;

/// Zeros are handed on in pieces of this length.
const ZEROS: [u8; 8192] = [0; 8192];
/// Packs that stay open: a file of shared chunks comes from several.
const PACKS: usize = 8;

/// Reads files. The frame that was read last is kept: the next file often goes on in it.
pub struct ContentReader<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    /// The last used one first.
    packs: VecDeque<PackOfSnapshot<'s, 'a>>,
    frame: Option<(usize, u32, VisibleFrame)>,
}

impl<'s, 'a> ContentReader<'s, 'a> {
    /// Reads files of `snapshot`.
    pub fn new(snapshot: &'s Snapshot<'a>) -> ContentReader<'s, 'a> {
        ContentReader {
            snapshot,
            packs: VecDeque::new(),
            frame: None,
        }
    }

    /// Hands on the bytes of a file of this length, in order, in pieces.
    ///
    /// # Errors
    /// `Damaged` when a check fails; what `sink` returns, and what the store says.
    pub fn read(
        &mut self,
        file: &FileKey,
        length: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let snapshot = self.snapshot;
        for step in snapshot.steps(file, length) {
            for place in step? {
                match place.at {
                    None => zeros(place.length, sink)?,
                    Some(at) => self.piece(file, &place, at, sink)?,
                }
            }
        }
        Ok(())
    }

    fn piece(
        &mut self,
        file: &FileKey,
        place: &Place,
        at: FramePlace,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let snapshot = self.snapshot;
        let naming = *snapshot.naming();
        let frame = self.frame(at)?;
        if let Some(whole) = place.chunk {
            let bytes = snapshot.chunk(frame.frame(), &whole)?;
            return sink(whole.part(bytes, at.offset, place.length));
        }
        let end = place.position + place.length;
        let found = frame.visible.iter().find_map(|visible| {
            let is_here = frame.file(visible) == Some(file)
                && visible.position <= place.position
                && end <= visible.position + u64::from(visible.length);
            let skip = usize::try_from(place.position.checked_sub(visible.position)?).ok()?;
            let length = usize::try_from(place.length).ok()?;
            let bytes = frame.bytes(visible).get(skip..skip + length);
            bytes.filter(|_| is_here)
        });
        let bytes = found.ok_or_else(|| {
            err!(
                Damaged,
                "frame {} does not hold what the map expects of \"{}\"",
                at.frame,
                String::from_utf8_lossy(&file.path(naming))
            )
        })?;
        sink(bytes)
    }

    fn frame(&mut self, at: FramePlace) -> Result<&VisibleFrame> {
        let is_open =
            |(pack, frame, _): &(usize, u32, VisibleFrame)| (*pack, *frame) == (at.pack, at.frame);
        let frame = match self.frame.take().filter(is_open) {
            Some(open) => open,
            None => {
                let frame = self.pack(at.pack)?.frame(at.frame)?;
                (at.pack, at.frame, frame)
            }
        };
        Ok(&self.frame.insert(frame).2)
    }

    fn pack(&mut self, index: usize) -> Result<&PackOfSnapshot<'s, 'a>> {
        let open = self.packs.iter().position(|pack| pack.index() == index);
        let pack = match open.and_then(|at| self.packs.remove(at)) {
            Some(pack) => pack,
            None => self.snapshot.pack(index)?,
        };
        self.packs.truncate(PACKS - 1);
        self.packs.push_front(pack);
        self.packs
            .front()
            .ok_or_else(|| err!(Internal, "no pack is open"))
    }
}

fn zeros(length: u64, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let piece = usize::try_from(left)
            .unwrap_or(ZEROS.len())
            .min(ZEROS.len());
        sink(ZEROS.get(..piece).unwrap_or(&ZEROS))?;
        left -= piece as u64;
    }
    Ok(())
}
