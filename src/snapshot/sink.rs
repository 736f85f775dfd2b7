//! Takes the files of one thread into a snapshot, one after another. Their lengths are known at their ends.
//!
//! Content is cut into pages of 8 KiB from each file's start. Pages of zeros are left out of frames; all others fill frames of up to
//! 1 MiB, several small files to a frame.

use std::sync::Arc;

use super::filekey::FileKey;
use super::frame::{EXTENT_LIST_LIMIT_BYTES, Extent, PAGE_BYTES, extent_bytes};
use super::layer::{EntryKind, Metadata};
use super::node::{NODE_LIMIT_BYTES, Node, NodeKind};
use super::piece::ENTRY_PIECES;
use super::pipeline::Slot;
use super::writer::Shared;
use crate::err;
use crate::error::Result;
use crate::repo::varint;

/// A frame of whole files is closed before it grows beyond this.
pub const FRAME_BYTES: usize = 1 << 20;
/// A frame of changed pages is closed before it grows beyond this: pages of it go out of use one by one.
pub const CHANGED_FRAME_BYTES: usize = 256 << 10;
/// The number of no frame: a piece of zeros. Frames count from 1 here.
const ZEROS: u64 = 0;

/// The file under construction.
struct Current {
    key: FileKey,
    /// Bytes in finished pages.
    position: u64,
    pieces: Vec<Unresolved>,
}

/// A piece whose frame is numbered over all packs: which pack it is in is known only once it is written.
#[derive(Clone, Copy)]
struct Unresolved {
    position: u64,
    length: u64,
    /// Frame number + 1, or [`ZEROS`].
    frame: u64,
    offset: u32,
}

/// A frame under construction, which has a page at least.
struct Frame {
    number: u64,
    slot: Box<Slot>,
    /// Upper limit of its extent list's length.
    list_bytes: usize,
}

/// Takes files one after another.
///
/// Dropped without [`FileSink::finish`], it leaves a snapshot that cannot be finished.
pub struct FileSink<'t> {
    shared: Arc<Shared<'t>>,
    frame: Option<Frame>,
    frame_bytes: usize,
    file: Option<Current>,
    /// The beginning of a page that is not complete.
    partial: Vec<u8>,
}

impl<'t> FileSink<'t> {
    pub(super) fn new(shared: Arc<Shared<'t>>) -> FileSink<'t> {
        FileSink {
            shared,
            frame: None,
            frame_bytes: FRAME_BYTES,
            file: None,
            partial: Vec::with_capacity(PAGE_BYTES),
        }
    }

    /// Closes frames, from the next page on, before they grow beyond so many bytes.
    pub fn limit_frames(&mut self, bytes: usize) {
        self.frame_bytes = bytes.min(FRAME_BYTES);
    }

    /// Records a directory.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn directory(&self, key: &FileKey, mode: u32, mtime: i64) -> Result<()> {
        let mode = mode & 0o7777;
        self.metadata(key, &Metadata::Directory { mode, mtime })
    }

    /// Records a symbolic link.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn symlink(&self, key: &FileKey, target: &[u8]) -> Result<()> {
        let target = target.to_vec();
        self.metadata(key, &Metadata::Symlink { target })
    }

    /// Records an entry of a tree that has no content.
    ///
    /// # Errors
    /// `Internal` for a node of a file, `Unsupported` for one that is too large; those of the scratch file.
    pub fn node(&self, key: &FileKey, node: Node) -> Result<()> {
        match node.kind {
            NodeKind::File(_) => Err(err!(Internal, "the node of a file without its content")),
            _ => self.metadata(key, &Metadata::Node(Box::new(node))),
        }
    }

    /// Records that a file of the prior is no more.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn gone(&self, key: &FileKey) -> Result<()> {
        self.shared
            .push(&key.metadata_entry(), &[EntryKind::Gone as u8])
    }

    /// Records for a file, beside its metadata, that nothing older counts at this block and above. In a tree the block is 0.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn limit(&self, key: &FileKey, block: u64) -> Result<()> {
        let mut payload = vec![EntryKind::Limit as u8];
        varint::put(&mut payload, block);
        self.shared.push(&key.limit_entry(), &payload)
    }

    fn metadata(&self, key: &FileKey, metadata: &Metadata) -> Result<()> {
        let (kind, value) = metadata.encode();
        if value.len() > NODE_LIMIT_BYTES {
            return Err(err!(Unsupported, "the metadata of {key:?} is too large"));
        }
        let mut payload = vec![kind as u8];
        payload.extend_from_slice(&value);
        self.shared.push(&key.metadata_entry(), &payload)
    }

    /// Begins a file; its metadata follows at its end.
    ///
    /// # Errors
    /// `Internal` while another file is open.
    pub fn begin(&mut self, key: FileKey) -> Result<()> {
        if self.file.is_some() {
            return Err(err!(Internal, "two files were begun at once in one sink"));
        }
        self.file = Some(Current {
            key,
            position: 0,
            pieces: Vec::new(),
        });
        Ok(())
    }

    /// Appends content to the file that was begun.
    ///
    /// # Errors
    /// `Internal` when none was begun; what made writing packs stop.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.file.is_none() {
            return Err(err!(Internal, "content without a file"));
        }
        while !bytes.is_empty() {
            if self.partial.is_empty()
                && let Some((page, rest)) = bytes.split_at_checked(PAGE_BYTES)
            {
                self.page(page)?;
                bytes = rest;
                continue;
            }
            let n = (PAGE_BYTES - self.partial.len()).min(bytes.len());
            let (now, later) = bytes.split_at(n);
            self.partial.extend_from_slice(now);
            bytes = later;
            if self.partial.len() == PAGE_BYTES {
                self.end_partial()?;
            }
        }
        Ok(())
    }

    /// Appends `length` zeros, of which none is read or stored.
    ///
    /// # Errors
    /// As [`FileSink::append`].
    pub fn hole(&mut self, length: u64) -> Result<()> {
        let zeros = [0; PAGE_BYTES];
        let some = |n: u64| {
            let n = usize::try_from(n).unwrap_or(PAGE_BYTES);
            zeros.get(..n).unwrap_or(&zeros)
        };
        let to_page = (PAGE_BYTES - self.partial.len()) % PAGE_BYTES;
        let first = length.min(to_page as u64);
        self.append(some(first))?;
        let last = (length - first) % PAGE_BYTES as u64;
        let whole = length - first - last;
        if let Some(file) = self.file.as_mut().filter(|_| whole > 0) {
            file.add_piece(file.position, whole, ZEROS, 0);
            file.position += whole;
        }
        self.append(some(last))
    }

    /// Goes on `length` bytes later: older layers have what is between.
    ///
    /// # Errors
    /// As [`FileSink::append`].
    pub fn skip(&mut self, length: u64) -> Result<()> {
        if !self.partial.is_empty() {
            self.end_partial()?;
        }
        match &mut self.file {
            Some(file) => file.position += length,
            None => return Err(err!(Internal, "content without a file")),
        }
        Ok(())
    }

    /// How many bytes the file has that was begun.
    pub fn position(&self) -> u64 {
        let finished = self.file.as_ref().map_or(0, |file| file.position);
        finished + self.partial.len() as u64
    }

    /// Forgets the file that was begun. The map leads to nothing of it.
    pub fn abandon(&mut self) {
        self.file = None;
        self.partial.clear();
    }

    /// Adds bytes of a file that begin a page, beside other parts of it. The file's metadata is recorded by [`FileSink::again`].
    ///
    /// # Errors
    /// `Internal` where they begin no page; as [`FileSink::append`].
    pub(super) fn part(&mut self, key: &FileKey, position: u64, bytes: &[u8]) -> Result<()> {
        if !position.is_multiple_of(PAGE_BYTES as u64) {
            return Err(err!(Internal, "a part of {key:?} begins inside a page"));
        }
        self.begin(key.clone())?;
        self.skip(position)?;
        self.append(bytes)?;
        if !self.partial.is_empty() {
            self.end_partial()?;
        }
        match self.file.take() {
            Some(mut file) => flush_pieces(&self.shared, &mut file),
            None => Err(err!(Internal, "no file was begun")),
        }
    }

    /// Records the metadata of a file as an older layer has it.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub(super) fn again(&self, key: &FileKey, metadata: &Metadata) -> Result<()> {
        self.metadata(key, metadata)
    }

    fn end_partial(&mut self) -> Result<()> {
        let mut page = std::mem::take(&mut self.partial);
        let taken = self.page(&page);
        page.clear();
        self.partial = page;
        taken
    }

    /// Takes the next page into the file's pieces, and into a frame unless it is all zeros.
    fn page(&mut self, page: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let position = file.position;
        file.position += page.len() as u64;
        if is_zero(page) {
            file.add_piece(position, page.len() as u64, ZEROS, 0);
        } else {
            let added = extent_bytes(&file.key) + 8;
            let limit = self.frame_bytes;
            let is_full = |frame: &Frame| {
                frame.slot.raw.len() + page.len() > limit
                    || frame.list_bytes + added > EXTENT_LIST_LIMIT_BYTES
            };
            if let Some(full) = self.frame.take_if(|frame| is_full(frame)) {
                self.shared.pipeline.send(full.number, full.slot)?;
            }
            let frame = match &mut self.frame {
                Some(frame) => frame,
                none => {
                    let slot = self.shared.pipeline.slot()?;
                    none.insert(Frame {
                        number: self.shared.pipeline.number(),
                        slot,
                        list_bytes: 0,
                    })
                }
            };
            let offset = u32::try_from(frame.slot.raw.len())
                .map_err(|_| err!(Internal, "frame too large"))?;
            frame.slot.raw.extend_from_slice(page);
            frame.list_bytes +=
                add_extent(&mut frame.slot.extents, &file.key, position, page.len());
            file.add_piece(position, page.len() as u64, frame.number + 1, offset);
        }
        if file.pieces.len() >= ENTRY_PIECES {
            // The last piece may still grow.
            let last = file.pieces.pop();
            flush_pieces(&self.shared, file)?;
            file.pieces.extend(last);
        }
        Ok(())
    }

    /// Ends a file of a cluster, and returns its length.
    ///
    /// # Errors
    /// `Internal` when none was begun; what made writing packs stop.
    pub fn end(&mut self, mode: u32, mtime: i64) -> Result<u64> {
        self.end_with(|length| Metadata::File {
            mode: mode & 0o7777,
            mtime,
            length,
        })
    }

    /// Ends a file of a tree, and returns its length, which `node` gets.
    ///
    /// # Errors
    /// As [`FileSink::end`].
    pub fn end_node(&mut self, mut node: Node) -> Result<u64> {
        self.end_with(|length| {
            node.kind = NodeKind::File(length);
            Metadata::Node(Box::new(node))
        })
    }

    fn end_with(&mut self, metadata: impl FnOnce(u64) -> Metadata) -> Result<u64> {
        if !self.partial.is_empty() {
            self.end_partial()?;
        }
        let Some(mut file) = self.file.take() else {
            return Err(err!(Internal, "no file was begun"));
        };
        flush_pieces(&self.shared, &mut file)?;
        let length = file.position;
        self.shared.count(length);
        self.metadata(&file.key, &metadata(length))?;
        Ok(length)
    }

    /// Sends what is left on its way.
    ///
    /// # Errors
    /// `Internal` when a file is open; what made writing packs stop.
    pub fn finish(mut self) -> Result<()> {
        if self.file.is_some() {
            return Err(err!(Internal, "a file was begun and not ended"));
        }
        match self.frame.take() {
            Some(last) => self.shared.pipeline.send(last.number, last.slot),
            None => Ok(()),
        }
    }
}

impl Drop for FileSink<'_> {
    fn drop(&mut self) {
        // Other sinks' frames would wait for this one for ever.
        if let Some(lost) = self.frame.take() {
            self.shared.pipeline.give_up(lost.number, lost.slot);
        }
    }
}

fn flush_pieces(shared: &Shared<'_>, file: &mut Current) -> Result<()> {
    let Some(first) = file.pieces.first() else {
        return Ok(());
    };
    let key = file.key.extents_entry(first.position);
    let mut payload = vec![EntryKind::Extents as u8];
    for piece in file.pieces.drain(..) {
        for number in [
            piece.position,
            piece.length,
            piece.frame,
            u64::from(piece.offset),
        ] {
            varint::put(&mut payload, number);
        }
    }
    shared.push(&key, &payload)
}

impl Current {
    fn add_piece(&mut self, position: u64, length: u64, frame: u64, offset: u32) {
        if let Some(last) = self.pieces.last_mut()
            && last.frame == frame
            && last.position + last.length == position
            && (frame == ZEROS || u64::from(last.offset) + last.length == u64::from(offset))
        {
            last.length += length;
            return;
        }
        self.pieces.push(Unresolved {
            position,
            length,
            frame,
            offset,
        });
    }
}

/// Lengthens the last extent or adds one; returns by how much the list may have grown.
fn add_extent(extents: &mut Vec<Extent>, file: &FileKey, position: u64, length: usize) -> usize {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    if let Some(last) = extents.last_mut()
        && last.file == *file
        && last.position + u64::from(last.length) == position
    {
        last.length += length;
        return 0;
    }
    extents.push(Extent {
        file: file.clone(),
        position,
        length,
    });
    extent_bytes(file)
}

fn is_zero(page: &[u8]) -> bool {
    // Nearly every page shows in its first words that it is not.
    let (words, rest) = page.as_chunks::<32>();
    words.iter().all(|w| *w == [0; 32]) && rest.iter().all(|b| *b == 0)
}
