//! Which files need which chunks, in the order of the packs: a frame of chunks does not say it (format, section 16.3).

use std::path::Path;

use super::filekey::{FileKey, Naming};
use super::piece::WholeChunk;
use super::reader::{FramePlace, Place};
use super::sort::{MEMORY_BYTES, Sorter};
use crate::err;
use crate::error::Result;
use crate::repo::varint::{self, Reader};

/// A chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Index in the root's list of packs.
    pub pack: usize,
    /// Frame in that pack.
    pub frame: u32,
    /// The chunk in the frame.
    pub whole: WholeChunk,
}

/// A file that shows a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub file: FileKey,
    /// Byte position in the file, at which the chunk begins.
    pub position: u64,
}

/// One record, in the order of packs, frames and offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A pack has this chunk.
    There(ChunkPlace),
    /// A file needs it.
    Used(ChunkPlace, Use),
}

/// Chunks that packs have, and files that need them, sorted within a memory ceiling.
pub struct Uses(Sorter);

impl Uses {
    /// None yet; `scratch` takes those that do not fit into memory.
    pub fn new(scratch: &Path) -> Uses {
        Uses(Sorter::new(scratch, MEMORY_BYTES))
    }

    /// Takes down a place of a file that a map shows, if it is a chunk.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn add(&mut self, file: &FileKey, at: FramePlace, place: &Place) -> Result<()> {
        let Some(whole) = place.chunk else {
            return Ok(());
        };
        // The rest of a chunk that was asked for in two steps was taken down with its beginning.
        if at.offset != whole.offset {
            return Ok(());
        }
        let chunk = ChunkPlace {
            pack: at.pack,
            frame: at.frame,
            whole,
        };
        let mut payload = encode(&chunk);
        varint::put(&mut payload, place.position);
        payload.extend_from_slice(file.as_bytes());
        self.0.push(&order(&chunk, 1), &payload)
    }

    /// Takes down a chunk that a pack has.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn add_there(&mut self, chunk: &ChunkPlace) -> Result<()> {
        self.0.push(&order(chunk, 0), &encode(chunk))
    }

    /// Hands out all records: of each place first what is there, then the files.
    ///
    /// # Errors
    /// Those of the scratch file and of `take`.
    pub fn drain(self, take: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        self.0
            .drain(&mut |key, payload| take(decode(key, payload)?))
    }
}

fn order(chunk: &ChunkPlace, tag: u8) -> [u8; 13] {
    let mut key = [0; 13];
    let pack = u32::try_from(chunk.pack).unwrap_or(u32::MAX);
    let numbers = [pack, chunk.frame, chunk.whole.offset];
    let bytes = numbers.into_iter().flat_map(u32::to_be_bytes);
    for (to, from) in key.iter_mut().zip(bytes.chain([tag])) {
        *to = from;
    }
    key
}

fn encode(chunk: &ChunkPlace) -> Vec<u8> {
    let mut payload = Vec::with_capacity(96);
    varint::put(&mut payload, u64::from(chunk.whole.length));
    payload.extend_from_slice(&chunk.whole.hash);
    payload
}

fn decode(key: &[u8], payload: &[u8]) -> Result<Record> {
    let lost = || err!(Internal, "a use of a chunk was lost");
    let (numbers, tag) = key.split_at_checked(12).ok_or_else(lost)?;
    let (numbers, _) = numbers.as_chunks::<4>();
    let mut numbers = numbers.iter().map(|n| u32::from_be_bytes(*n));
    let (pack, frame, offset) = (numbers.next(), numbers.next(), numbers.next());
    let (Some(pack), Some(frame), Some(offset)) = (pack, frame, offset) else {
        return Err(lost());
    };
    let mut r = Reader::new(payload, "a use of a chunk");
    let chunk = ChunkPlace {
        pack: pack as usize,
        frame,
        whole: WholeChunk {
            offset,
            length: r.number()?,
            hash: r.array()?,
        },
    };
    match tag {
        [0] => Ok(Record::There(chunk)),
        _ => {
            let position = r.varint()?;
            let file = FileKey::decode(r.bytes(r.remaining())?, Naming::Tree)?;
            Ok(Record::Used(chunk, Use { file, position }))
        }
    }
}
