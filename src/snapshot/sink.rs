//! Takes the files of one thread into a snapshot, one after another. Their lengths are known at their ends.
//!
//! Content is cut into pages of 8 KiB from each file's start. Pages of zeros are left out of frames; all others fill frames of up to
//! 1 MiB, several small files to a frame. A page that an interrupted backup left is not stored again. A file whose content
//! others may share is cut into chunks instead, and a chunk that is stored already is not stored again.

use std::sync::Arc;

use super::chunks::{self, MOST_BYTES, Stored, WHOLE_BELOW_BYTES};
use super::filekey::{ChunkId, FileKey};
use super::frame::{self, EXTENT_LIST_LIMIT_BYTES, Extent, PAGE_BYTES, extent_bytes};
use super::layer::{EntryKind, Metadata};
use super::leftovers::{LeftFile, LeftPage};
use super::node::{NODE_LIMIT_BYTES, Node, NodeKind};
use super::piece::ENTRY_PIECES;
use super::pipeline::Slot;
use super::writer::Shared;
use crate::err;
use crate::error::Result;
use crate::pg::zeros::is_zero;
use crate::repo::varint::{self, Reader};

/// A frame of whole files is closed before it grows beyond this.
pub const FRAME_BYTES: usize = 1 << 20;
/// A frame of changed pages is closed before it grows beyond this: pages of it go out of use one by one.
pub const CHANGED_FRAME_BYTES: usize = 256 << 10;

/// The file under construction.
struct Current {
    key: FileKey,
    /// Bytes in finished pages or chunks.
    position: u64,
    pieces: Vec<Unresolved>,
    chunks: Vec<UnresolvedChunk>,
    is_shared: bool,
    /// How often it was given up before: the map may have pieces of then.
    attempt: u64,
}

/// A piece whose place in the layer's list of packs is not known yet.
#[derive(Clone, Copy)]
struct Unresolved {
    position: u64,
    length: u64,
    from: Origin,
    offset: u32,
}

/// The source of a piece, before packs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Zeros.
    Zeros,
    /// A frame of this run, numbered over all its packs.
    Here(u64),
    /// A frame of a pack that an interrupted backup left.
    Left {
        /// Index of the pack.
        pack: u32,
        /// Frame in that pack.
        frame: u32,
    },
}

impl Origin {
    /// Zero, an odd number of a frame of this run, or an even one: numbers of this run stay short.
    fn encode(self) -> u64 {
        match self {
            Origin::Zeros => 0,
            Origin::Here(number) => number << 1 | 1,
            Origin::Left { pack, frame } => (u64::from(pack) << 32 | u64::from(frame)) * 2 + 2,
        }
    }

    /// Reads what [`Origin::encode`] made.
    ///
    /// # Errors
    /// `Damaged` when it is none.
    pub fn decode(r: &mut Reader<'_>) -> Result<Origin> {
        let coded = r.varint()?;
        Ok(match (coded, coded & 1) {
            (0, _) => Origin::Zeros,
            (_, 1) => Origin::Here(coded >> 1),
            _ => {
                let place = coded / 2 - 1;
                Origin::Left {
                    pack: u32::try_from(place >> 32).map_err(|_| r.damaged())?,
                    frame: u32::try_from(place & u64::from(u32::MAX)).map_err(|_| r.damaged())?,
                }
            }
        })
    }
}

/// A chunk of the file, or zeros, whose place in packs is as little known.
pub(super) struct UnresolvedChunk {
    pub position: u64,
    pub length: u64,
    /// The hash and the place; none of zeros.
    pub stored: Option<([u8; 32], Stored)>,
}

/// A frame under construction.
struct Frame {
    /// Its number over all packs, once it has content: the frames after it wait for it.
    number: Option<u64>,
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
    /// The file that was given up last, and its attempt.
    abandoned: Option<(FileKey, u64)>,
    /// The pages of that file that interrupted backups left.
    left: Option<LeftFile<'t>>,
    /// The beginning of a page that is not complete.
    partial: Vec<u8>,
    /// Content that is not cut into chunks yet, and from where on.
    uncut: Vec<u8>,
    cut: usize,
}

impl<'t> FileSink<'t> {
    pub(super) fn new(shared: Arc<Shared<'t>>) -> FileSink<'t> {
        FileSink {
            shared,
            frame: None,
            frame_bytes: FRAME_BYTES,
            file: None,
            abandoned: None,
            left: None,
            partial: Vec::with_capacity(PAGE_BYTES),
            uncut: Vec::new(),
            cut: 0,
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
            .push(&key.metadata_entry(), &payload_of(EntryKind::Gone, 0))
    }

    /// Records for a file, beside its metadata, that nothing older counts at this block and above. In a tree the block is 0.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn limit(&self, key: &FileKey, block: u64) -> Result<()> {
        let mut payload = payload_of(EntryKind::Limit, 0);
        varint::put(&mut payload, block);
        self.shared.push(&key.limit_entry(), &payload)
    }

    fn metadata(&self, key: &FileKey, metadata: &Metadata) -> Result<()> {
        self.metadata_of(key, metadata, 0)
    }

    /// Records metadata beside which the pieces of one attempt count.
    fn metadata_of(&self, key: &FileKey, metadata: &Metadata, attempt: u64) -> Result<()> {
        let (kind, value) = metadata.encode();
        if value.len() > NODE_LIMIT_BYTES {
            return Err(err!(Unsupported, "the metadata of {key:?} is too large"));
        }
        let mut payload = payload_of(kind, attempt);
        payload.extend_from_slice(&value);
        self.shared.push(&key.metadata_entry(), &payload)
    }

    /// Begins a file; its metadata follows at its end.
    ///
    /// # Errors
    /// `Internal` while another file is open.
    pub fn begin(&mut self, key: FileKey) -> Result<()> {
        self.begin_file(key, false)
    }

    /// As [`FileSink::begin`], a file of a tree whose content others may share: it is cut into chunks.
    ///
    /// # Errors
    /// `Internal` while another file is open.
    pub fn begin_shared(&mut self, key: FileKey) -> Result<()> {
        self.begin_file(key, true)
    }

    fn begin_file(&mut self, key: FileKey, is_shared: bool) -> Result<()> {
        if self.file.is_some() {
            return Err(err!(Internal, "two files were begun at once in one sink"));
        }
        self.left = match self.shared.leftovers {
            Some(leftovers) if !is_shared => leftovers.of(&key)?,
            _ => None,
        };
        let attempt = match self.abandoned.take() {
            Some((last, attempt)) if last == key => attempt + 1,
            _ => 0,
        };
        self.file = Some(Current {
            attempt,
            key,
            position: 0,
            pieces: Vec::new(),
            chunks: Vec::new(),
            is_shared,
        });
        Ok(())
    }

    /// Appends content to the file that was begun.
    ///
    /// # Errors
    /// `Internal` when none was begun; what made writing packs stop.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        match &self.file {
            None => return Err(err!(Internal, "content without a file")),
            Some(file) if file.is_shared => return self.append_shared(bytes),
            Some(_) => {}
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
        if self.file.as_ref().is_some_and(|file| file.is_shared) {
            self.cut_all()?;
            if let Some(file) = self.file.as_mut().filter(|_| length > 0) {
                file.add_chunk(length, None);
            }
            return Ok(());
        }
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
            file.add_piece(file.position, whole, Origin::Zeros, 0);
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
        finished + (self.partial.len() + self.uncut.len() - self.cut) as u64
    }

    /// Forgets the file that was begun. The map leads to nothing of it, also when this sink begins the file again next.
    pub fn abandon(&mut self) {
        if let Some(file) = self.file.take() {
            self.abandoned = Some((file.key, file.attempt));
        }
        self.partial.clear();
        self.uncut.clear();
        self.cut = 0;
    }

    fn append_shared(&mut self, bytes: &[u8]) -> Result<()> {
        // In steps, so that no more than a chunk and a step wait to be cut.
        for step in bytes.chunks(MOST_BYTES) {
            if self.cut >= MOST_BYTES / 2 {
                self.uncut.drain(..self.cut);
                self.cut = 0;
            }
            self.uncut.extend_from_slice(step);
            while self.uncut.len() - self.cut >= MOST_BYTES {
                self.cut_one(MOST_BYTES)?;
            }
        }
        Ok(())
    }

    /// Cuts what is left. A file of less than 1 MiB is one chunk.
    fn cut_all(&mut self) -> Result<()> {
        while self.uncut.len() > self.cut {
            self.cut_one(self.uncut.len() - self.cut)?;
        }
        self.uncut.clear();
        self.cut = 0;
        Ok(())
    }

    /// Cuts the next chunk off, which ends within so many bytes.
    fn cut_one(&mut self, room: usize) -> Result<()> {
        let bytes = std::mem::take(&mut self.uncut);
        let rest = bytes.get(self.cut..self.cut + room).unwrap_or_default();
        let is_small = self.position_of_file() == 0 && rest.len() < WHOLE_BELOW_BYTES;
        let length = match is_small {
            true => rest.len(),
            false => chunks::cut(rest, self.shared.seed),
        };
        let taken = self.chunk(rest.get(..length).unwrap_or_default());
        self.uncut = bytes;
        self.cut += length;
        taken
    }

    fn position_of_file(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.position)
    }

    /// Takes the next chunk into the file's pieces, and into a frame unless it is stored already, or all zeros.
    fn chunk(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| err!(Internal, "chunk too large"))?;
        let stored = match is_zero(bytes) {
            true => None,
            false => {
                let (function, hash) = self.shared.store.chunk_hash(bytes)?;
                let id = ChunkId { function, hash };
                let stored = match self.shared.chunks.find(&id, length)? {
                    Some(stored) => stored,
                    None => self.store_chunk(&id, length, bytes)?,
                };
                Some((hash, stored))
            }
        };
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.add_chunk(u64::from(length), stored);
        if file.chunks.len() >= ENTRY_PIECES {
            flush_chunks(&self.shared, file)?;
        }
        Ok(())
    }

    fn store_chunk(&mut self, id: &ChunkId, length: u32, bytes: &[u8]) -> Result<Stored> {
        let key = FileKey::chunk(id);
        let shared = Arc::clone(&self.shared);
        let wanted = (bytes.len(), extent_bytes(&key));
        let frame = room(&mut self.frame, &shared, wanted, self.frame_bytes)?;
        let offset =
            u32::try_from(frame.slot.raw.len()).map_err(|_| err!(Internal, "frame too large"))?;
        let known = &mut frame.number;
        let place = || (frame_number(known, &shared), offset);
        let (number, offset) = match shared.chunks.remember(id, place, length) {
            Ok(own) => own,
            // Another thread has met the same content since.
            Err(stored) => return Ok(stored),
        };
        frame.slot.raw.extend_from_slice(bytes);
        frame.list_bytes += extent_bytes(&key);
        frame.slot.extents.push(Extent {
            file: key,
            position: 0,
            length,
        });
        Ok(Stored::Here {
            frame: number,
            offset,
        })
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
        let known = match &mut self.left {
            Some(left) if !is_zero(page) => left.find(position, page)?,
            _ => None,
        };
        if let Some(LeftPage {
            pack,
            frame,
            offset,
        }) = known
        {
            let from = Origin::Left { pack, frame };
            file.add_piece(position, page.len() as u64, from, offset);
        } else if is_zero(page) {
            file.add_piece(position, page.len() as u64, Origin::Zeros, 0);
        } else {
            let wanted = (page.len(), extent_bytes(&file.key) + 8);
            let frame = room(&mut self.frame, &self.shared, wanted, self.frame_bytes)?;
            let offset = u32::try_from(frame.slot.raw.len())
                .map_err(|_| err!(Internal, "frame too large"))?;
            frame.slot.raw.extend_from_slice(page);
            frame.list_bytes +=
                add_extent(&mut frame.slot.extents, &file.key, position, page.len());
            let number = frame_number(&mut frame.number, &self.shared);
            file.add_piece(position, page.len() as u64, Origin::Here(number), offset);
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
        self.cut_all()?;
        if !self.partial.is_empty() {
            self.end_partial()?;
        }
        let Some(mut file) = self.file.take() else {
            return Err(err!(Internal, "no file was begun"));
        };
        flush_pieces(&self.shared, &mut file)?;
        flush_chunks(&self.shared, &mut file)?;
        let length = file.position;
        self.shared.count(length);
        self.metadata_of(&file.key, &metadata(length), file.attempt)?;
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
        self.frame
            .take()
            .map_or(Ok(()), |last| send(&self.shared, last))
    }
}

impl Drop for FileSink<'_> {
    fn drop(&mut self) {
        // Other sinks' frames would wait for this one for ever.
        if let Some(lost) = self.frame.take()
            && let Some(number) = lost.number
        {
            self.shared.pipeline.give_up(number, lost.slot);
        }
    }
}

/// Returns the number of a frame that gets content.
fn frame_number(number: &mut Option<u64>, shared: &Shared<'_>) -> u64 {
    *number.get_or_insert_with(|| shared.pipeline.number())
}

/// Sends a frame off. One without content has no number, and nobody waits for it.
fn send(shared: &Shared<'_>, frame: Frame) -> Result<()> {
    frame
        .number
        .map_or(Ok(()), |number| shared.pipeline.send(number, frame.slot))
}

/// Returns the frame that has room for so many bytes, and for so many of its extent list; one that has none is sent off.
fn room<'f>(
    frame: &'f mut Option<Frame>,
    shared: &Shared<'_>,
    (bytes, list_bytes): (usize, usize),
    limit: usize,
) -> Result<&'f mut Frame> {
    let is_full = |frame: &Frame| {
        let is_long = frame.slot.raw.len() + bytes > limit
            || frame.list_bytes + list_bytes > EXTENT_LIST_LIMIT_BYTES;
        is_long && !frame.slot.raw.is_empty()
    };
    if let Some(full) = frame.take_if(|frame| is_full(frame)) {
        send(shared, full)?;
    }
    match frame {
        Some(frame) => Ok(frame),
        none => {
            let slot = shared.pipeline.slot()?;
            Ok(none.insert(Frame {
                number: None,
                slot,
                list_bytes: 0,
            }))
        }
    }
}

/// The beginning of an entry of the unsorted map: its kind, and the attempt at its file.
fn payload_of(kind: EntryKind, attempt: u64) -> Vec<u8> {
    let mut payload = vec![kind as u8];
    varint::put(&mut payload, attempt);
    payload
}

fn flush_pieces(shared: &Shared<'_>, file: &mut Current) -> Result<()> {
    let Some(first) = file.pieces.first() else {
        return Ok(());
    };
    let key = file.key.extents_entry(first.position);
    let mut payload = payload_of(EntryKind::Extents, file.attempt);
    for piece in file.pieces.drain(..) {
        for number in [
            piece.position,
            piece.length,
            piece.from.encode(),
            u64::from(piece.offset),
        ] {
            varint::put(&mut payload, number);
        }
    }
    shared.push(&key, &payload)
}

/// As it stands in the unsorted map: tag 0 is zeros, 1 a frame of this run, 2 one of the prior.
fn flush_chunks(shared: &Shared<'_>, file: &mut Current) -> Result<()> {
    let Some(first) = file.chunks.first() else {
        return Ok(());
    };
    let key = file.key.extents_entry(first.position);
    let mut payload = payload_of(EntryKind::Chunks, file.attempt);
    for chunk in file.chunks.drain(..) {
        chunk.encode(&mut payload);
    }
    shared.push(&key, &payload)
}

impl UnresolvedChunk {
    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.position);
        varint::put(out, self.length);
        let Some((hash, stored)) = &self.stored else {
            return varint::put(out, 0);
        };
        let numbers = match *stored {
            Stored::Here { frame, offset } => [1, 0, frame, u64::from(offset)],
            Stored::Before {
                pack,
                frame,
                offset,
            } => [2, u64::from(pack), u64::from(frame), u64::from(offset)],
        };
        for number in numbers {
            varint::put(out, number);
        }
        out.extend_from_slice(hash);
    }

    /// Reads what [`UnresolvedChunk::encode`] wrote.
    ///
    /// # Errors
    /// `Damaged` when it is none.
    pub fn decode(r: &mut Reader<'_>) -> Result<UnresolvedChunk> {
        let (position, length) = (r.varint()?, r.varint()?);
        let tag = r.varint()?;
        let stored = match tag {
            0 => None,
            _ => {
                let (pack, frame): (u32, u64) = (r.number()?, r.varint()?);
                let offset = r.number()?;
                let stored = match tag {
                    1 => Stored::Here { frame, offset },
                    _ => Stored::Before {
                        pack,
                        frame: u32::try_from(frame).map_err(|_| r.damaged())?,
                        offset,
                    },
                };
                Some((r.array()?, stored))
            }
        };
        Ok(UnresolvedChunk {
            position,
            length,
            stored,
        })
    }
}

impl Current {
    /// Adds a chunk at the end. Zeros that follow zeros are one piece.
    fn add_chunk(&mut self, length: u64, stored: Option<([u8; 32], Stored)>) {
        let position = self.position;
        self.position += length;
        match self.chunks.last_mut() {
            Some(last) if last.stored.is_none() && stored.is_none() => last.length += length,
            _ => self.chunks.push(UnresolvedChunk {
                position,
                length,
                stored,
            }),
        }
    }

    fn add_piece(&mut self, position: u64, length: u64, from: Origin, offset: u32) {
        if let Some(last) = self.pieces.last_mut()
            && last.from == from
            && last.position + last.length == position
            && (from == Origin::Zeros || u64::from(last.offset) + last.length == u64::from(offset))
        {
            last.length += length;
            return;
        }
        self.pieces.push(Unresolved {
            position,
            length,
            from,
            offset,
        });
    }
}

/// As [`frame::add_extent`]; returns by how much the list may have grown.
fn add_extent(extents: &mut Vec<Extent>, file: &FileKey, position: u64, length: usize) -> usize {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    match frame::add_extent(extents, file, position, length) {
        true => extent_bytes(file),
        false => 0,
    }
}
