//! Reads the layers of a shard as one map: the newest entry of a file counts (format, section 8.2).
//!
//! Each layer has a [`Cursor`]. A file's first entries tell how far up each layer's extents count; a [`Merge`] then goes along the file and
//! takes at each position the newest layer that has it. Memory: one block and one entry of each layer.

use std::sync::Arc;

use super::filekey::{FileKey, Naming, Part};
use super::frame::PAGE_BYTES;
use super::layer::{Entry, EntryKind, Metadata};
use super::piece::{self, Piece, Source};
use super::reader::{FramePlace, Place, Snapshot};
use crate::err;
use crate::error::Result;
use crate::repo::varint::Reader;

/// Walks the entries of one layer in key order.
pub(super) struct Cursor<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    shard: usize,
    layer: usize,
    /// Lookups keep the blocks they decoded; a walk needs each block once.
    is_lookup: bool,
    block: Arc<Vec<Entry>>,
    at: usize,
    next_block: usize,
    head: Option<(FileKey, Part)>,
    last_key: Box<[u8]>,
}

impl<'s, 'a> Cursor<'s, 'a> {
    fn new(snapshot: &'s Snapshot<'a>, (shard, layer): (usize, usize)) -> Cursor<'s, 'a> {
        Cursor {
            snapshot,
            shard,
            layer,
            is_lookup: false,
            block: Arc::default(),
            at: 0,
            next_block: 0,
            head: None,
            last_key: Box::default(),
        }
    }

    /// Begins walks through all entries of each layer of a shard, oldest layer first.
    pub(super) fn all(snapshot: &'s Snapshot<'a>, shard: usize) -> Result<Vec<Cursor<'s, 'a>>> {
        let first = snapshot.layers().first_blocks(shard)?.into_iter();
        let begun = first.enumerate().map(|(layer, block)| Cursor {
            next_block: usize::from(!block.is_empty()),
            block,
            ..Cursor::new(snapshot, (shard, layer))
        });
        Ok(begun.collect())
    }

    /// Begins at the last entry of `file` that is not after `key`, else at the first one after it.
    pub(super) fn lookup(
        snapshot: &'s Snapshot<'a>,
        (shard, layer): (usize, usize),
        file: &FileKey,
        key: &[u8],
    ) -> Result<Cursor<'s, 'a>> {
        let mut cursor = Cursor::new(snapshot, (shard, layer));
        cursor.is_lookup = true;
        let layers = snapshot.layers();
        if let Some(number) = layers.index((shard, layer))?.block_for(key) {
            cursor.block = layers.block((shard, layer, number))?;
            cursor.next_block = number + 1;
            let after = cursor.block.partition_point(|e| *e.key <= *key);
            let before = after.checked_sub(1);
            let is_files = |i: &usize| {
                let entry = cursor.block.get(*i);
                entry.is_some_and(|e| e.key.starts_with(file.as_bytes()))
            };
            cursor.at = before.filter(is_files).unwrap_or(after);
        }
        Ok(cursor)
    }

    pub(super) fn layer(&self) -> usize {
        self.layer
    }

    /// The file and the part of the entry that the cursor stands on; none at the end.
    pub(super) fn head(&mut self) -> Result<Option<&(FileKey, Part)>> {
        if self.head.is_none() {
            self.load()?;
        }
        Ok(self.head.as_ref())
    }

    fn load(&mut self) -> Result<()> {
        while self.at >= self.block.len() {
            let (shard, layer, number) = (self.shard, self.layer, self.next_block);
            let layers = self.snapshot.layers();
            if number >= layers.index((shard, layer))?.block_count() {
                return Ok(());
            }
            self.block = match self.is_lookup {
                true => layers.block((shard, layer, number))?,
                false => Arc::new(layers.whole_block((shard, layer, number))?),
            };
            (self.at, self.next_block) = (0, number + 1);
        }
        let Some(entry) = self.block.get(self.at) else {
            return Ok(());
        };
        if !self.is_lookup {
            self.snapshot.check_place(self.shard, &entry.key)?;
            if entry.key <= self.last_key {
                return Err(self.snapshot.disagree());
            }
            self.last_key.clone_from(&entry.key);
        }
        self.head = Some(entry.split(self.snapshot.naming())?);
        Ok(())
    }

    fn entry(&self) -> Option<&Entry> {
        self.block.get(self.at)
    }

    fn advance(&mut self) {
        self.head = None;
        self.at += 1;
    }

    /// Whether the cursor stands on an entry of the file; which part of it.
    fn part_of(&mut self, file: &FileKey) -> Result<Option<Part>> {
        let head = self.head()?;
        Ok(head.filter(|(key, _)| key == file).map(|(_, part)| *part))
    }

    /// Reads what the layer has of the file before its extents. The oldest layer hides nothing: its limit is not looked for.
    fn first_entries(&mut self, file: &FileKey) -> Result<First> {
        let mut first = First::default();
        while let Some(part) = self.part_of(file)? {
            let Some(entry) = self.entry() else { break };
            match part {
                Part::Metadata if entry.kind == EntryKind::Gone => {
                    if !entry.value.is_empty() {
                        return Err(err!(
                            Damaged,
                            "the entry of {file:?}, which is gone, has a value"
                        ));
                    }
                    first.metadata = Some(None);
                }
                Part::Metadata => {
                    first.metadata = Some(Some(Metadata::decode(entry.kind, &entry.value)?));
                }
                Part::Limit => {
                    first.limit = Some(limit(&entry.value, self.snapshot.naming())?);
                }
                Part::Extents(_) => break,
            }
            self.advance();
            if self.is_lookup && self.layer == 0 {
                break;
            }
        }
        Ok(first)
    }
}

/// The entries that one layer has of a file before its extents.
#[derive(Default)]
struct First {
    /// Its metadata; `Some(None)` where it is gone.
    metadata: Option<Option<Metadata>>,
    /// From this byte on nothing older is visible.
    limit: Option<u64>,
}

fn limit(value: &[u8], naming: &Naming) -> Result<u64> {
    let mut r = Reader::new(value, "the limit of a file");
    let block = r.varint()?;
    r.finish()?;
    match naming {
        Naming::Tree if block > 0 => Err(r.damaged()),
        _ => block
            .checked_mul(PAGE_BYTES as u64)
            .ok_or_else(|| r.damaged()),
    }
}

/// The entries of one file in all layers of a shard.
pub(super) struct Merge<'s, 'a> {
    snapshot: &'s Snapshot<'a>,
    shard: usize,
    file: FileKey,
    /// The newest metadata; `Some(None)` where the file is gone, none where no layer knows it.
    metadata: Option<Option<Metadata>>,
    /// From this position on the layers read so far hide older ones.
    ceiling: u64,
    /// Newest layer first.
    strands: Vec<Strand<'s, 'a>>,
}

impl<'s, 'a> Merge<'s, 'a> {
    fn new(snapshot: &'s Snapshot<'a>, shard: usize, file: FileKey) -> Merge<'s, 'a> {
        Merge {
            snapshot,
            shard,
            file,
            metadata: None,
            ceiling: u64::MAX,
            strands: Vec::new(),
        }
    }

    /// Merges what `cursors`, newest layer first, have of the file that all of them stand on.
    pub(super) fn walk(
        snapshot: &'s Snapshot<'a>,
        shard: usize,
        file: FileKey,
        cursors: Vec<Cursor<'s, 'a>>,
    ) -> Result<Merge<'s, 'a>> {
        let mut merge = Merge::new(snapshot, shard, file);
        for cursor in cursors {
            merge.add(cursor)?;
        }
        Ok(merge)
    }

    /// Looks up the newest metadata of a file: older layers do not count then.
    pub(super) fn metadata_of(
        snapshot: &'s Snapshot<'a>,
        shard: usize,
        file: &FileKey,
    ) -> Result<Option<Metadata>> {
        let is_enough = |merge: &Merge<'_, '_>| merge.metadata.is_some();
        let merge = Merge::look_up_until(snapshot, shard, file, is_enough)?;
        Ok(merge.metadata.flatten())
    }

    /// Looks a file up in the layers of its shard, until older ones do not count.
    pub(super) fn look_up(
        snapshot: &'s Snapshot<'a>,
        shard: usize,
        file: &FileKey,
    ) -> Result<Merge<'s, 'a>> {
        Merge::look_up_until(snapshot, shard, file, |merge| {
            merge.metadata.is_some() && merge.ceiling == 0
        })
    }

    fn look_up_until(
        snapshot: &'s Snapshot<'a>,
        shard: usize,
        file: &FileKey,
        is_enough: impl Fn(&Merge<'_, '_>) -> bool,
    ) -> Result<Merge<'s, 'a>> {
        let mut merge = Merge::new(snapshot, shard, file.clone());
        let key = file.metadata_entry();
        for layer in (0..snapshot.layer_count(shard)).rev() {
            merge.add(Cursor::lookup(snapshot, (shard, layer), file, &key)?)?;
            if is_enough(&merge) {
                break;
            }
        }
        Ok(merge)
    }

    /// Adds the next older layer. A layer in which the path is no file, or a shorter one, hides older layers.
    fn add(&mut self, mut cursor: Cursor<'s, 'a>) -> Result<()> {
        let first = cursor.first_entries(&self.file)?;
        let length = |m: &Option<Metadata>| m.as_ref().and_then(Metadata::file_length);
        let own_length = first.metadata.as_ref().map(|m| length(m).unwrap_or(0));
        self.strands.push(Strand {
            cursor,
            ceiling: self.ceiling,
            own_length,
            pieces: Vec::new().into_iter(),
            current: None,
            end: 0,
        });
        for hidden in [first.limit, own_length].into_iter().flatten() {
            self.ceiling = self.ceiling.min(hidden);
        }
        if self.metadata.is_none() {
            self.metadata = first.metadata;
        }
        Ok(())
    }

    /// The newest metadata; none of a file that is gone or unknown.
    pub(super) fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref().and_then(Option::as_ref)
    }

    /// Whether any layer has metadata of the file, or says that it is gone.
    pub(super) fn is_known(&self) -> bool {
        self.metadata.is_some()
    }

    /// Moves each layer that counts to its extents at `position`.
    pub(super) fn seek(&mut self, position: u64) -> Result<()> {
        let key = self.file.extents_entry(position);
        self.strands.retain(|s| s.ceiling > position);
        for strand in &mut self.strands {
            let place = (self.shard, strand.cursor.layer);
            strand.cursor = Cursor::lookup(self.snapshot, place, &self.file, &key)?;
        }
        Ok(())
    }

    /// Hands out where the bytes `[at, to)` of the file are, in order: at each position the newest layer that has it.
    pub(super) fn sweep(
        &mut self,
        mut at: u64,
        to: u64,
        found: &mut dyn FnMut(Place),
    ) -> Result<()> {
        let from = at;
        let mut has_chunks = None;
        while at < to {
            let mut end = to;
            let mut source = None;
            for strand in &mut self.strands {
                let Some(piece) = strand.seek(&self.file, at)? else {
                    continue;
                };
                if piece.position <= at {
                    end = end.min(piece.position + piece.length);
                    source = Some((strand.cursor.layer, piece));
                    break;
                }
                end = end.min(piece.position);
            }
            let Some((layer, piece)) = source else {
                let file = &self.file;
                return Err(err!(
                    Damaged,
                    "no part of the map covers byte {at} of {file:?}"
                ));
            };
            let place = self.place((self.shard, layer), &piece, (at, end))?;
            let is_chunk = place.chunk.is_some();
            // Only who asks for a part of the file gets a part of a chunk.
            let is_cut = (at > piece.position && at > from)
                || (end < piece.position + piece.length && end < to);
            let is_mixed = place.at.is_some() && *has_chunks.get_or_insert(is_chunk) != is_chunk;
            if is_mixed || (is_chunk && is_cut) {
                let file = &self.file;
                return Err(err!(
                    Damaged,
                    "the layers cut a chunk of {file:?} at byte {at}, or mix it with extents"
                ));
            }
            found(place);
            at = end;
        }
        Ok(())
    }

    /// The place of the bytes `[at, end)`, which lie in a piece.
    fn place(&self, layer: (usize, usize), piece: &Piece, (at, end): (u64, u64)) -> Result<Place> {
        let (pack, frame, offset, chunk) = match piece.source {
            Source::Zeros => {
                return Ok(Place {
                    position: at,
                    length: end - at,
                    at: None,
                    chunk: None,
                });
            }
            Source::Frame {
                pack,
                frame,
                offset,
            } => (pack, frame, offset, None),
            Source::Chunk { pack, frame, whole } => (pack, frame, whole.offset, Some(whole)),
        };
        // Pieces end inside the largest frame, so this fits.
        let skipped = u32::try_from(at - piece.position).unwrap_or(u32::MAX - offset);
        let at_frame = FramePlace {
            pack: self.snapshot.pack_of(layer, pack)?,
            frame,
            offset: offset + skipped,
        };
        Ok(Place {
            position: at,
            length: end - at,
            at: Some(at_frame),
            chunk,
        })
    }

    /// Checks what is left of the file in every layer, and returns the cursors, which stand behind it.
    pub(super) fn finish(self) -> Result<Vec<Cursor<'s, 'a>>> {
        let mut cursors = Vec::with_capacity(self.strands.len());
        for mut strand in self.strands {
            while strand.next_piece(&self.file)?.is_some() {}
            cursors.push(strand.cursor);
        }
        Ok(cursors)
    }
}

/// The extents of a file in one layer.
struct Strand<'s, 'a> {
    cursor: Cursor<'s, 'a>,
    /// They are visible below this position.
    ceiling: u64,
    /// The length in the layer's own metadata: there they end.
    own_length: Option<u64>,
    /// Pieces of the entry before the cursor.
    pieces: std::vec::IntoIter<Piece>,
    current: Option<Piece>,
    /// End of the last piece.
    end: u64,
}

impl Strand<'_, '_> {
    /// The visible part of the piece at `at`, else of the first one after it.
    fn seek(&mut self, file: &FileKey, at: u64) -> Result<Option<Piece>> {
        while self.current.is_none_or(|p| p.position + p.length <= at) {
            self.current = self.next_piece(file)?;
            if self.current.is_none() {
                return Ok(None);
            }
        }
        let visible = self.current.filter(|p| p.position.max(at) < self.ceiling);
        let is_cut = |p: Piece| p.position + p.length > self.ceiling;
        if visible.is_some_and(|p| matches!(p.source, Source::Chunk { .. }) && is_cut(p)) {
            return Err(err!(Damaged, "the layers cut a chunk of {file:?}"));
        }
        Ok(visible.map(|piece| Piece {
            length: piece.length.min(self.ceiling - piece.position),
            ..piece
        }))
    }

    fn next_piece(&mut self, file: &FileKey) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.pieces.next() {
                let end = piece.position + piece.length;
                if piece.position < self.end || self.own_length.is_some_and(|own| end > own) {
                    let at = piece.position;
                    return Err(err!(
                        Damaged,
                        "the extents of {file:?} do not fit at byte {at}"
                    ));
                }
                self.end = end;
                return Ok(Some(piece));
            }
            let Some(part) = self.cursor.part_of(file)? else {
                return Ok(None);
            };
            if let (Part::Extents(position), Some(entry)) = (part, self.cursor.entry()) {
                let snapshot = self.cursor.snapshot;
                let packs = snapshot.pack_count((self.cursor.shard, self.cursor.layer));
                let pieces = match entry.kind {
                    EntryKind::Chunks => piece::decode_chunks(position, &entry.value, packs)?,
                    _ => {
                        let has_pages = snapshot.naming().has_pages();
                        piece::decode(position, &entry.value, packs, has_pages)?
                    }
                };
                self.pieces = pieces.into_iter();
            }
            self.cursor.advance();
        }
    }
}
