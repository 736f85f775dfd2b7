//! Writes a snapshot: files in any order become frames in packs, then layers in key order.
//!
//! Content is cut into pages of 8 KiB from each file's start. Pages of zeros are left out of frames; all others fill frames of up to
//! 1 MiB, several small files to a frame. The map's entries are sorted within a memory ceiling ([`super::sort`]) and written when all
//! packs are durable.

use std::collections::HashMap;
use std::path::PathBuf;
use std::thread;

use super::filekey::FileKey;
use super::frame::{EXTENT_LIST_LIMIT_BYTES, Extent, FrameCodec, PAGE_BYTES, extent_bytes};
use super::layer::{EntryKind, LayerWriter, Metadata};
use super::piece::{self, ENTRY_PIECES, Piece, Source};
use super::pipeline::{FinishedPack, PackTarget, Pipeline, Slot, publish, written};
use super::sort::{MEMORY_BYTES, Sorter};
use crate::err;
use crate::error::Result;
use crate::repo::id::{BackupId, PartName};
use crate::repo::root::{LayerRef, PackRef, Shard};
use crate::repo::scope::Scope;
use crate::repo::varint::{self, Reader};
use crate::store::{NewObject, Store};
use crate::text::hex;

/// A frame is closed before it grows beyond this.
const FRAME_BYTES: usize = 1 << 20;
/// A pack is closed once it has this length.
const PACK_BYTES: u64 = 256 << 20;
/// A shard ends at the file that follows this many raw bytes or files.
const SHARD_BYTES: u64 = 64 << 30;
const SHARD_FILES: u64 = 65_536;
/// Unresolved pieces name no source, zeros, or a frame counted over all packs.
const ZEROS: u64 = 0;

/// How a snapshot is written.
#[derive(Debug, Clone)]
pub struct Options {
    /// Codec of frames.
    pub codec: FrameCodec,
    /// Threads that compress, 1 to 12.
    pub jobs: usize,
    /// Where the map is sorted when it outgrows memory.
    pub scratch: PathBuf,
    /// A pack of at least this length is closed.
    pub pack_bytes: u64,
    /// A shard of at least this many files is closed.
    pub shard_files: u64,
}

impl Options {
    /// The sizes of the format page.
    pub fn new(codec: FrameCodec, jobs: usize, scratch: PathBuf) -> Options {
        Options {
            codec,
            jobs,
            scratch,
            pack_bytes: PACK_BYTES,
            shard_files: SHARD_FILES,
        }
    }
}

/// What a finished snapshot is, for the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Key ranges and their layers.
    pub shards: Vec<Shard>,
    /// All packs.
    pub packs: Vec<PackRef>,
    /// Regular files.
    pub file_count: u64,
    /// Their raw bytes.
    pub size_bytes: u64,
    /// Stored bytes of packs and layers.
    pub stored_bytes: u64,
}

/// The file being written.
struct Current {
    key: FileKey,
    mode: u32,
    mtime: i64,
    length: u64,
    /// Bytes in finished pages.
    position: u64,
    /// Length of the page under construction, of which `page_filled` bytes stand at the end of the slot.
    page_bytes: usize,
    page_filled: usize,
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

/// Takes files one after another.
///
/// Dropped without [`SnapshotWriter::finish`], it leaves at most packs that nothing names.
pub struct SnapshotWriter<'t> {
    target: PackTarget<'t>,
    shard_files: u64,
    pipeline: Pipeline<'t>,
    slot: Box<Slot>,
    list_bytes: usize,
    file: Option<Current>,
    entries: Sorter,
    file_count: u64,
    size_bytes: u64,
}

impl<'t> SnapshotWriter<'t> {
    /// Starts the threads inside `threads`; packs and layers go under `id`, which the caller has reserved.
    ///
    /// # Errors
    /// `Internal` when the threads cannot be set up.
    pub fn start(
        threads: &'t thread::Scope<'t, '_>,
        store: &'t dyn Store,
        scope: &Scope,
        id: &BackupId,
        options: &Options,
    ) -> Result<SnapshotWriter<'t>> {
        let target = PackTarget {
            store,
            scope: scope.clone(),
            id: id.clone(),
            codec: options.codec,
            pack_bytes: options.pack_bytes,
        };
        let mut pipeline = Pipeline::start(threads, target.clone(), options.jobs);
        let slot = pipeline.slot()?;
        Ok(SnapshotWriter {
            target,
            shard_files: options.shard_files,
            pipeline,
            slot,
            list_bytes: 0,
            file: None,
            entries: Sorter::new(&options.scratch, MEMORY_BYTES),
            file_count: 0,
            size_bytes: 0,
        })
    }

    /// Records a directory.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn directory(&mut self, key: &FileKey, mode: u32, mtime: i64) -> Result<()> {
        let mode = mode & 0o7777;
        self.metadata(key, &Metadata::Directory { mode, mtime })
    }

    /// Records a symbolic link.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn symlink(&mut self, key: &FileKey, target: &[u8]) -> Result<()> {
        let target = target.to_vec();
        self.metadata(key, &Metadata::Symlink { target })
    }

    fn metadata(&mut self, key: &FileKey, metadata: &Metadata) -> Result<()> {
        let (kind, value) = metadata.encode();
        let mut payload = vec![kind as u8];
        payload.extend_from_slice(&value);
        self.entries.push(&key.metadata_entry(), &payload)
    }

    /// Begins a file of exactly `length` bytes.
    ///
    /// # Errors
    /// `Internal` while another file is open.
    pub fn begin_file(&mut self, key: FileKey, mode: u32, mtime: i64, length: u64) -> Result<()> {
        if self.file.is_some() {
            return Err(err!(Internal, "two files were begun at once"));
        }
        self.file = Some(Current {
            key,
            mode: mode & 0o7777,
            mtime,
            length,
            position: 0,
            page_bytes: 0,
            page_filled: 0,
            pieces: Vec::new(),
        });
        Ok(())
    }

    /// Appends content to the file that was begun.
    ///
    /// # Errors
    /// `Internal` beyond the announced length; what made writing packs stop.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.file.as_ref().is_some_and(|f| f.page_filled == 0) {
                self.begin_page()?;
            }
            let file = self
                .file
                .as_mut()
                .ok_or_else(|| err!(Internal, "content without a file"))?;
            let n = (file.page_bytes - file.page_filled).min(bytes.len());
            let (now, later) = bytes.split_at(n);
            self.slot.raw.extend_from_slice(now);
            file.page_filled += n;
            bytes = later;
            if file.page_filled == file.page_bytes {
                self.end_page()?;
            }
        }
        Ok(())
    }

    /// Makes room for the next page in the frame.
    fn begin_page(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let left = file.length - file.position;
        file.page_bytes = usize::try_from(left).unwrap_or(PAGE_BYTES).min(PAGE_BYTES);
        if file.page_bytes == 0 {
            return Err(err!(
                Internal,
                "more than the announced {} bytes came for {:?}",
                file.length,
                file.key
            ));
        }
        let full = self.slot.raw.len() + file.page_bytes > FRAME_BYTES
            || self.list_bytes + extent_bytes(&file.key) + 8 > EXTENT_LIST_LIMIT_BYTES;
        if full { self.send_frame() } else { Ok(()) }
    }

    /// Takes the page that is complete into the file's pieces, and out of the frame again when it is all zeros.
    fn end_page(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let length = file.page_bytes;
        file.page_filled = 0;
        let offset = self.slot.raw.len() - length;
        let page = self.slot.raw.get(offset..).unwrap_or_default();
        let position = file.position;
        file.position += length as u64;
        if is_zero(page) {
            self.slot.raw.truncate(offset);
            file.add_piece(position, length, ZEROS, 0);
        } else {
            let frame = self.pipeline.next_frame() + 1;
            let offset = u32::try_from(offset).map_err(|_| err!(Internal, "frame too large"))?;
            file.add_piece(position, length, frame, offset);
            self.list_bytes += add_extent(&mut self.slot.extents, &file.key, position, length);
        }
        if file.pieces.len() >= ENTRY_PIECES {
            // The last piece may still grow.
            let last = file.pieces.pop();
            self.flush_pieces()?;
            if let (Some(file), Some(last)) = (&mut self.file, last) {
                file.pieces.push(last);
            }
        }
        Ok(())
    }

    fn flush_pieces(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let Some(first) = file.pieces.first() else {
            return Ok(());
        };
        let key = file.key.extents_entry(first.position);
        let mut payload = vec![EntryKind::Extents as u8];
        for piece in &file.pieces {
            for number in [
                piece.position,
                piece.length,
                piece.frame,
                u64::from(piece.offset),
            ] {
                varint::put(&mut payload, number);
            }
        }
        file.pieces.clear();
        self.entries.push(&key, &payload)
    }

    fn send_frame(&mut self) -> Result<()> {
        if self.slot.raw.is_empty() {
            return Ok(());
        }
        let empty = self.pipeline.slot()?;
        let full = std::mem::replace(&mut self.slot, empty);
        self.list_bytes = 0;
        self.pipeline.send(full)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// `Internal` when less came than was announced.
    pub fn end_file(&mut self) -> Result<()> {
        self.flush_pieces()?;
        let Some(file) = self.file.take() else {
            return Err(err!(Internal, "no file was begun"));
        };
        if file.position != file.length || file.page_filled != 0 {
            return Err(err!(
                Internal,
                "{} of the announced {} bytes came for {:?}",
                file.position + file.page_filled as u64,
                file.length,
                file.key
            ));
        }
        self.file_count += 1;
        self.size_bytes += file.length;
        self.metadata(
            &file.key,
            &Metadata::File {
                mode: file.mode,
                mtime: file.mtime,
                length: file.length,
            },
        )
    }

    /// Waits until all packs are durable, then writes the layers.
    ///
    /// # Errors
    /// `Damaged` when a path came twice; what made writing packs or layers stop.
    pub fn finish(mut self) -> Result<Written> {
        if self.file.is_some() {
            return Err(err!(Internal, "a file was begun and not ended"));
        }
        if !self.slot.raw.is_empty() {
            let last = std::mem::take(&mut self.slot);
            self.pipeline.send(last)?;
        }
        let packs = self.pipeline.finish()?;
        let mut layers = Layers {
            target: &self.target,
            shard_files: self.shard_files,
            packs: &packs,
            open: None,
            shards: Vec::new(),
            stored_bytes: 0,
        };
        self.entries
            .drain(&mut |key, payload| layers.push(key, payload))?;
        layers.end()?;
        let packs: Vec<PackRef> = packs.iter().map(pack_ref).collect();
        let stored_bytes = layers.stored_bytes + packs.iter().map(|p| p.size_bytes).sum::<u64>();
        Ok(Written {
            shards: layers.shards,
            packs,
            file_count: self.file_count,
            size_bytes: self.size_bytes,
            stored_bytes,
        })
    }
}

impl Current {
    fn add_piece(&mut self, position: u64, length: usize, frame: u64, offset: u32) {
        let length = length as u64;
        if let Some(last) = self.pieces.last_mut()
            && last.frame == frame
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

fn pack_ref(pack: &FinishedPack) -> PackRef {
    PackRef {
        key: pack.part.clone(),
        size_bytes: pack.summary.length,
        live_frames: u64::from(pack.summary.frames),
        live_bytes: pack.summary.raw_bytes,
    }
}

/// Cuts sorted entries into shards and writes a layer for each.
struct Layers<'a> {
    target: &'a PackTarget<'a>,
    shard_files: u64,
    packs: &'a [FinishedPack],
    open: Option<OpenLayer>,
    shards: Vec<Shard>,
    stored_bytes: u64,
}

struct OpenLayer {
    part: PartName,
    first_key: Vec<u8>,
    writer: LayerWriter<Box<dyn NewObject>>,
    /// Index in the layer's list of packs, by index in the list of all packs.
    pack_indexes: HashMap<usize, u32>,
    files: u64,
    bytes: u64,
}

impl Layers<'_> {
    fn push(&mut self, key: &[u8], payload: &[u8]) -> Result<()> {
        let (&kind, value) = payload
            .split_first()
            .ok_or_else(|| err!(Internal, "an entry of the map was lost"))?;
        let kind = EntryKind::from_number(kind)?;
        let is_full = |l: &OpenLayer| l.files >= self.shard_files || l.bytes >= SHARD_BYTES;
        // A shard begins at a file key, and the metadata is a file's first entry.
        if kind != EntryKind::Extents && self.open.as_ref().is_some_and(is_full) {
            self.end_layer()?;
        }
        let packs = self.packs;
        let layer = match self.open.take() {
            Some(layer) => layer,
            None => self.begin_layer(key)?,
        };
        let layer = self.open.insert(layer);
        let resolved;
        let value = if kind == EntryKind::Extents {
            let pieces = resolve(value, packs, layer)?;
            let first = pieces.first().map_or(0, |p| p.position);
            resolved = piece::encode(first, &pieces);
            &resolved
        } else {
            layer.files += 1;
            if let Metadata::File { length, .. } = Metadata::decode(kind, value)? {
                layer.bytes += length;
                layer.writer.count_file(length);
            }
            value
        };
        layer.writer.push(key, kind, value).map_err(|e| {
            if e.kind() == std::io::ErrorKind::InvalidInput {
                err!(Damaged, "a path came twice: {}", key.escape_ascii())
            } else {
                crate::error::Error::from_io(format!("write layer \"{}\"", layer.part), e)
            }
        })
    }

    fn begin_layer(&self, key: &[u8]) -> Result<OpenLayer> {
        let number = u32::try_from(self.shards.len())
            .map_err(|_| err!(Unsupported, "a backup cannot have more layers"))?;
        let part = PartName {
            id: self.target.id.clone(),
            number,
        };
        let object = self.target.store.create(&self.target.scope.layer(&part))?;
        let what = format!("layer \"{part}\"");
        let tag = self.target.scope.tag();
        // The metadata's key is the file's key and one byte.
        let first_key = if number == 0 {
            Vec::new()
        } else {
            key.get(..key.len().saturating_sub(1))
                .unwrap_or_default()
                .to_vec()
        };
        Ok(OpenLayer {
            writer: written(LayerWriter::new(object, &part, tag), &what)?,
            part,
            first_key,
            pack_indexes: HashMap::new(),
            files: 0,
            bytes: 0,
        })
    }

    fn end_layer(&mut self) -> Result<()> {
        let Some(layer) = self.open.take() else {
            return Ok(());
        };
        let what = format!("layer \"{}\"", layer.part);
        let (object, summary) = written(layer.writer.finish(), &what)?;
        publish(object, &what)?;
        self.stored_bytes += summary.length;
        self.shards.push(Shard {
            first_key: hex(&layer.first_key),
            layers: vec![LayerRef {
                key: layer.part,
                offset: 0,
                length: summary.length,
                hash: blake3::Hash::from_bytes(summary.hash).to_hex().to_string(),
            }],
        });
        Ok(())
    }

    /// Ends the last layer; a snapshot of nothing has an empty one.
    fn end(&mut self) -> Result<()> {
        if self.shards.is_empty() && self.open.is_none() {
            self.open = Some(self.begin_layer(&[])?);
        }
        self.end_layer()
    }
}

/// Gives pieces the pack and the frame in it that their number over all packs stands for.
fn resolve(value: &[u8], packs: &[FinishedPack], layer: &mut OpenLayer) -> Result<Vec<Piece>> {
    let mut r = Reader::new(value, "unsorted extents");
    let mut pieces = Vec::new();
    while r.remaining() > 0 {
        let (position, length) = (r.varint()?, r.varint()?);
        let (frame, offset) = (r.varint()?, r.number()?);
        let source = match frame.checked_sub(1) {
            None => Source::Zeros,
            Some(number) => {
                let (index, pack) = packs
                    .partition_point(|p| p.first_frame <= number)
                    .checked_sub(1)
                    .and_then(|i| packs.get(i).map(|pack| (i, pack)))
                    .ok_or_else(|| err!(Internal, "frame {number} is in no pack"))?;
                let OpenLayer {
                    pack_indexes,
                    writer,
                    ..
                } = &mut *layer;
                Source::Frame {
                    pack: *pack_indexes
                        .entry(index)
                        .or_insert_with(|| writer.add_pack(&pack.part, &pack.summary.hash)),
                    frame: u32::try_from(number - pack.first_frame)
                        .map_err(|_| err!(Internal, "a pack has too many frames"))?,
                    offset,
                }
            }
        };
        pieces.push(Piece {
            position,
            length,
            source,
        });
    }
    Ok(pieces)
}
