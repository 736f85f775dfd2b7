//! Cuts the sorted entries of a snapshot into shards, and writes a layer for each.

use std::collections::HashMap;

use super::layer::{EntryKind, LayerWriter, Metadata};
use super::piece::{self, Piece, Source};
use super::pipeline::{FinishedPack, PackTarget, publish, written};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::PartName;
use crate::repo::root::{LayerRef, Shard};
use crate::repo::varint::Reader;
use crate::store::NewObject;
use crate::text::hex;

/// A shard ends at the file that follows this many raw bytes.
const SHARD_BYTES: u64 = 64 << 30;

/// Layers under construction.
pub struct Layers<'a> {
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

impl<'a> Layers<'a> {
    /// Begins the layers of a snapshot whose packs are durable. A shard takes at most `shard_files` files.
    pub fn new(target: &'a PackTarget<'a>, shard_files: u64, packs: &'a [FinishedPack]) -> Self {
        Layers {
            target,
            shard_files,
            packs,
            open: None,
            shards: Vec::new(),
            stored_bytes: 0,
        }
    }

    /// Adds an entry; entries come in key order.
    ///
    /// # Errors
    /// `Damaged` when a path came twice; what the store says.
    pub fn push(&mut self, key: &[u8], payload: &[u8]) -> Result<()> {
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
                Error::from_io(format!("write layer \"{}\"", layer.part), e)
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

    /// Ends the last layer, and returns the shards with the bytes of their layers. A snapshot of nothing has one empty layer.
    ///
    /// # Errors
    /// What the store says.
    pub fn finish(mut self) -> Result<(Vec<Shard>, u64)> {
        if self.shards.is_empty() && self.open.is_none() {
            self.open = Some(self.begin_layer(&[])?);
        }
        self.end_layer()?;
        Ok((self.shards, self.stored_bytes))
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
