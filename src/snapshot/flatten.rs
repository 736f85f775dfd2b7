//! Gives a shard that has many layers a single one, which equals their merge (format, section 8).
//!
//! Each incremental adds a layer to the shards that it changes. A reader keeps a block of each in memory, and reads 128 at most.

use std::collections::HashMap;

use super::filekey::Naming;
use super::layer::EntryKind;
use super::piece::{self, ENTRY_PIECES, Piece, Source};
use super::pipeline::{StoredLayer, begin_layer, end_layer};
use super::reader::{Item, Place, Snapshot};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::{BackupId, PartName};
use crate::repo::root::Shard;
use crate::repo::scope::Scope;
use crate::store::Store;
use crate::text::hex;

/// A shard with so many layers gets a single one.
pub const LAYERS: usize = 64;
/// Newer layers of a tree's shard that are larger, and larger than twice the first one, are made one with it.
const HEAVY_BYTES: u64 = 4 << 20;

/// The shards of a snapshot, of which none has many layers.
#[derive(Debug, PartialEq, Eq)]
pub struct Flat {
    /// Key ranges and their layers. A range that has grown large is more than one now.
    pub shards: Vec<Shard>,
    /// How many layers were written.
    pub layers: u32,
    pub stored_bytes: u64,
}

/// Writes one layer under `id`, numbered from 0, for each shard of `snapshot` with `most_layers` or more; a shard of more than `shard_files` is split.
/// Calls `tick` once for each file.
///
/// # Errors
/// `Damaged` when a part of the map fails a check; errors of `tick` and of the store.
pub fn flatten(
    snapshot: &Snapshot<'_>,
    (store, scope): (&dyn Store, &Scope),
    id: &BackupId,
    most_layers: usize,
    shard_files: u64,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Flat> {
    let mut flattening = Flattening {
        snapshot,
        store,
        scope,
        id,
        open: None,
        flat: Flat {
            shards: Vec::new(),
            layers: 0,
            stored_bytes: 0,
        },
    };
    for (number, shard) in snapshot.map().shards.iter().enumerate() {
        let is_light = *snapshot.naming() != Naming::Tree || !is_heavy(shard);
        if shard.layers.len() < most_layers && is_light {
            flattening.flat.shards.push(shard.clone());
            continue;
        }
        flattening.begin(shard.first_key.clone())?;
        let mut items = snapshot.items_of(number);
        while let Some(item) = items.next() {
            tick()?;
            flattening.take(&item?, &items.take_places(), shard_files)?;
        }
        flattening.end()?;
    }
    Ok(flattening.flat)
}

/// Whether most of a shard's map is hidden: a file of a tree that changes has all of its pieces in each layer.
fn is_heavy(shard: &Shard) -> bool {
    let mut lengths = shard.layers.iter().map(|layer| layer.length);
    let first = lengths.next().unwrap_or_default();
    lengths.sum::<u64>() > HEAVY_BYTES.max(2 * first)
}

struct Flattening<'f, 's> {
    snapshot: &'f Snapshot<'s>,
    store: &'f dyn Store,
    scope: &'f Scope,
    id: &'f BackupId,
    open: Option<OpenLayer>,
    flat: Flat,
}

struct OpenLayer {
    part: PartName,
    /// Hexadecimal.
    first_key: String,
    writer: StoredLayer,
    /// Index in the layer's list of packs, by index in the root's.
    packs: HashMap<usize, u32>,
    files: u64,
}

impl Flattening<'_, '_> {
    fn begin(&mut self, first_key: String) -> Result<()> {
        let number = self.flat.layers;
        self.flat.layers += 1;
        let (part, writer) = begin_layer((self.store, self.scope), self.id, number)?;
        self.open = Some(OpenLayer {
            writer,
            part,
            first_key,
            packs: HashMap::new(),
            files: 0,
        });
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(layer) = self.open.take() else {
            return Ok(());
        };
        let reference = end_layer(layer.part, layer.writer)?;
        self.flat.stored_bytes += reference.length;
        self.flat.shards.push(Shard {
            first_key: layer.first_key,
            layers: vec![reference],
        });
        Ok(())
    }

    fn take(&mut self, item: &Item, places: &[Place], shard_files: u64) -> Result<()> {
        let is_full = |layer: &OpenLayer| layer.files >= shard_files || layer.writer.is_full();
        if self.open.as_ref().is_some_and(is_full) {
            self.end()?;
            self.begin(hex(item.key.as_bytes()))?;
        }
        let Some(layer) = &mut self.open else {
            return Err(err!(Internal, "no layer is open"));
        };
        layer.files += 1;
        if let Some(length) = item.metadata.file_length() {
            layer.writer.count_file(length);
        }
        let (kind, value) = item.metadata.encode();
        layer.push(&item.key.metadata_entry(), kind, &value)?;
        let pieces = pieces(self.snapshot, layer, places)?;
        let has_chunks = item.chunk_bytes > 0;
        for some in pieces.chunks(ENTRY_PIECES) {
            let first = some.first().map_or(0, |piece| piece.position);
            let (kind, value) = match has_chunks {
                true => (EntryKind::Chunks, piece::encode_chunks(first, some)),
                false => {
                    let has_pages = self.snapshot.naming().has_pages();
                    (EntryKind::Extents, piece::encode(first, some, has_pages))
                }
            };
            layer.push(&item.key.extents_entry(first), kind, &value)?;
        }
        Ok(())
    }
}

impl OpenLayer {
    fn push(&mut self, key: &[u8], kind: EntryKind, value: &[u8]) -> Result<()> {
        let pushed = self.writer.push(key, kind, value);
        pushed.map_err(|e| Error::from_io(format!("write layer \"{}\"", self.part), e))
    }

    /// Returns the index in the layer's list of a pack of the root.
    fn pack(&mut self, snapshot: &Snapshot<'_>, index: usize) -> Result<u32> {
        if let Some(known) = self.packs.get(&index) {
            return Ok(*known);
        }
        let part = snapshot.packs().get(index).map(|pack| &pack.key);
        let known = part.and_then(|part| Some((part, snapshot.pack_hash(part)?)));
        let (part, hash) = known.ok_or_else(|| err!(Internal, "no layer names pack {index}"))?;
        let listed = self.writer.add_pack(part, hash);
        self.packs.insert(index, listed);
        Ok(listed)
    }
}

/// The pieces of a file, those that follow one another in a frame as one, but for chunks.
fn pieces(snapshot: &Snapshot<'_>, layer: &mut OpenLayer, places: &[Place]) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for place in places {
        let source = match (place.at, place.chunk) {
            (None, _) => Source::Zeros,
            (Some(at), Some(whole)) => Source::Chunk {
                pack: layer.pack(snapshot, at.pack)?,
                frame: at.frame,
                whole,
            },
            (Some(at), None) => Source::Frame {
                pack: layer.pack(snapshot, at.pack)?,
                frame: at.frame,
                offset: at.offset,
            },
        };
        match pieces.last_mut() {
            Some(last) if follows(last, place.position, source) => last.length += place.length,
            _ => pieces.push(Piece {
                position: place.position,
                length: place.length,
                source,
            }),
        }
    }
    Ok(pieces)
}

fn follows(last: &Piece, position: u64, source: Source) -> bool {
    let is_next = match (last.source, source) {
        (Source::Zeros, Source::Zeros) => true,
        (
            Source::Frame {
                pack,
                frame,
                offset,
            },
            Source::Frame {
                pack: next_pack,
                frame: next_frame,
                offset: next_offset,
            },
        ) => {
            (pack, frame) == (next_pack, next_frame)
                && u64::from(offset) + last.length == u64::from(next_offset)
        }
        _ => false,
    };
    is_next && last.position + last.length == position
}
