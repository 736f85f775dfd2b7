//! Cuts the sorted entries of a snapshot into shards, and writes a layer for each.
//!
//! A full makes the shards. An incremental keeps those of its prior, and puts a layer upon each that has new entries.

use std::collections::{BTreeSet, HashMap};

use super::chunks::Stored;
use super::layer::{EntryKind, Metadata};
use super::piece::{self, Piece, Source, WholeChunk};
use super::pipeline::{FinishedPack, PackTarget, StoredLayer, begin_layer, end_layer};
use super::sink::{Origin, UnresolvedChunk};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::PartName;
use crate::repo::root::Shard;
use crate::repo::varint::Reader;
use crate::text::{hex, unhex};

/// A shard ends at the file that follows this many raw bytes.
const SHARD_BYTES: u64 = 64 << 30;

/// The name and the hash of a pack that was there before: by its index in the root of the prior, or among those that interrupted backups left.
pub type PackOfPrior<'p> = dyn Fn(u32) -> Option<(PartName, [u8; 32])> + 'p;

/// Layers under construction.
pub struct Layers<'a> {
    target: &'a PackTarget<'a>,
    shard_files: u64,
    packs: &'a [FinishedPack],
    pack_of_prior: &'a PackOfPrior<'a>,
    has_chunks: bool,
    /// The shards of the prior with their first keys; none of a full.
    prior: Vec<(Vec<u8>, Shard)>,
    open: Option<OpenLayer>,
    /// The key of the last file that has metadata.
    file: Vec<u8>,
    /// The attempt at that file which came to its end.
    attempt: u64,
    shards: Vec<Shard>,
    layers: u32,
    stored_bytes: u64,
    used: BTreeSet<usize>,
    used_before: BTreeSet<u32>,
}

/// The finished layers, for the root.
pub struct LayersWritten {
    /// Key ranges and their layers.
    pub shards: Vec<Shard>,
    /// Stored bytes of the new layers.
    pub stored_bytes: u64,
    /// Indexes of the packs that they lead to.
    pub used: BTreeSet<usize>,
    /// The same of packs that were there before.
    pub used_before: BTreeSet<u32>,
    /// Whether a file of them is cut into chunks.
    pub has_chunks: bool,
}

struct OpenLayer {
    part: PartName,
    first_key: Vec<u8>,
    /// Which shard of the prior it is put upon.
    shard: usize,
    writer: StoredLayer,
    /// Index in the layer's list of packs, by index in the list of all packs.
    pack_indexes: HashMap<usize, u32>,
    /// The same of packs that were there before.
    prior_indexes: HashMap<u32, u32>,
    files: u64,
    bytes: u64,
}

impl<'a> Layers<'a> {
    /// Begins the layers of a snapshot whose packs are durable, upon those of `prior`, after those that the id has already. A shard takes at most
    /// `shard_files` files.
    ///
    /// # Errors
    /// `Damaged` when the first key of a shard cannot be read.
    pub fn new(
        target: &'a PackTarget<'a>,
        shard_files: u64,
        (packs, pack_of_prior): (&'a [FinishedPack], &'a PackOfPrior<'a>),
        (prior, layers): (&[Shard], u32),
    ) -> Result<Self> {
        let keyed = |shard: &Shard| Some((unhex(&shard.first_key)?, shard.clone()));
        let keyed: Option<Vec<_>> = prior.iter().map(keyed).collect();
        Ok(Layers {
            target,
            shard_files,
            packs,
            pack_of_prior,
            has_chunks: false,
            prior: keyed.ok_or_else(|| err!(Damaged, "a shard of the prior has no key"))?,
            open: None,
            file: Vec::new(),
            attempt: 0,
            shards: Vec::new(),
            layers,
            stored_bytes: 0,
            used: BTreeSet::new(),
            used_before: BTreeSet::new(),
        })
    }

    /// Adds an entry; entries come in key order. Those of a file that was given up are left out: it has no metadata,
    /// or that of a later attempt.
    ///
    /// # Errors
    /// `Damaged` when a path came twice; what the store says.
    pub fn push(&mut self, key: &[u8], payload: &[u8]) -> Result<()> {
        let mut r = Reader::new(payload, "unsorted entry");
        let (kind, attempt) = (EntryKind::from_number(r.u8()?)?, r.varint()?);
        let value = r.bytes(r.remaining())?;
        let is_piece = matches!(kind, EntryKind::Extents | EntryKind::Chunks);
        if kind.is_first() {
            // The metadata's key is the file's key and one byte.
            self.file.clear();
            let file = key.get(..key.len().saturating_sub(1)).unwrap_or_default();
            self.file.extend_from_slice(file);
            self.attempt = attempt;
            if self.open.as_ref().is_some_and(|l| self.ends(l)) {
                self.end_layer()?;
            }
        } else if self.file.is_empty()
            || !key.starts_with(&self.file)
            || is_piece && attempt != self.attempt
        {
            return Ok(());
        }
        let packs = self.packs;
        let layer = match self.open.take() {
            Some(layer) => layer,
            None => self.begin_layer()?,
        };
        let layer = self.open.insert(layer);
        let resolved;
        let value = if kind == EntryKind::Extents {
            let pieces = resolve(value, packs, self.pack_of_prior, layer)?;
            let first = pieces.first().map_or(0, |p| p.position);
            let has_pages = self.target.scope.tag().class == 0;
            resolved = piece::encode(first, &pieces, has_pages);
            &resolved
        } else if kind == EntryKind::Chunks {
            self.has_chunks = true;
            let pieces = resolve_chunks(value, packs, self.pack_of_prior, layer)?;
            let first = pieces.first().map_or(0, |p| p.position);
            resolved = piece::encode_chunks(first, &pieces);
            &resolved
        } else {
            value
        };
        if kind.is_first() {
            layer.files += 1;
            if kind != EntryKind::Gone
                && let Some(length) = Metadata::decode(kind, value)?.file_length()
            {
                layer.bytes = layer.bytes.saturating_add(length);
                layer.writer.count_file(length);
            }
        }
        if kind == EntryKind::Gone {
            // Extents behind it are of a file that was given up while it was read.
            self.file.clear();
        }
        layer.writer.push(key, kind, value).map_err(|e| {
            if e.kind() == std::io::ErrorKind::InvalidInput {
                err!(Damaged, "a path came twice: {}", key.escape_ascii())
            } else {
                Error::from_io(format!("write layer \"{}\"", layer.part), e)
            }
        })
    }

    /// Whether the layer ends before the file that comes.
    fn ends(&self, layer: &OpenLayer) -> bool {
        match self.prior.get(layer.shard + 1) {
            Some((next, _)) => *next <= self.file,
            None if self.prior.is_empty() => {
                layer.files >= self.shard_files
                    || layer.bytes >= SHARD_BYTES
                    || layer.writer.is_full()
            }
            None => false,
        }
    }

    fn begin_layer(&mut self) -> Result<OpenLayer> {
        let number = self.layers;
        self.layers += 1;
        let place = (self.target.store, &self.target.scope);
        let (part, writer) = begin_layer(place, &self.target.id, number)?;
        let follows = self.prior.partition_point(|(first, _)| *first <= self.file);
        Ok(OpenLayer {
            writer,
            part,
            first_key: match number {
                0 => Vec::new(),
                _ => self.file.clone(),
            },
            shard: follows.saturating_sub(1),
            pack_indexes: HashMap::new(),
            prior_indexes: HashMap::new(),
            files: 0,
            bytes: 0,
        })
    }

    fn end_layer(&mut self) -> Result<()> {
        let Some(layer) = self.open.take() else {
            return Ok(());
        };
        let reference = end_layer(layer.part, layer.writer)?;
        self.stored_bytes += reference.length;
        self.used.extend(layer.pack_indexes.into_keys());
        self.used_before.extend(layer.prior_indexes.into_keys());
        match self.prior.get_mut(layer.shard) {
            Some((_, shard)) => shard.layers.push(reference),
            None => self.shards.push(Shard {
                first_key: hex(&layer.first_key),
                layers: vec![reference],
            }),
        }
        Ok(())
    }

    /// Ends the last layer. A full of nothing has one empty layer.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn finish(mut self) -> Result<LayersWritten> {
        if self.layers == 0 && self.prior.is_empty() {
            self.open = Some(self.begin_layer()?);
        }
        self.end_layer()?;
        let of_prior = self.prior.into_iter().map(|(_, shard)| shard);
        Ok(LayersWritten {
            shards: of_prior.chain(self.shards).collect(),
            stored_bytes: self.stored_bytes,
            used: self.used,
            used_before: self.used_before,
            has_chunks: self.has_chunks,
        })
    }
}

/// Gives pieces the pack and the frame in it that their number over all packs stands for.
fn resolve(
    value: &[u8],
    packs: &[FinishedPack],
    pack_of_prior: &PackOfPrior<'_>,
    layer: &mut OpenLayer,
) -> Result<Vec<Piece>> {
    let mut r = Reader::new(value, "unsorted extents");
    let mut pieces = Vec::new();
    while r.remaining() > 0 {
        let (position, length) = (r.varint()?, r.varint()?);
        let (origin, offset) = (Origin::decode(&mut r)?, r.number()?);
        let place = match origin {
            Origin::Zeros => None,
            Origin::Here(number) => Some(layer.place(packs, number)?),
            Origin::Left { pack, frame } => {
                Some((layer.pack_of_prior(pack_of_prior, pack)?, frame))
            }
        };
        let source = match place {
            None => Source::Zeros,
            Some((pack, frame)) => Source::Frame {
                pack,
                frame,
                offset,
            },
        };
        pieces.push(Piece {
            position,
            length,
            source,
        });
    }
    Ok(pieces)
}

/// The same of chunks, of which some are in packs of the prior.
fn resolve_chunks(
    value: &[u8],
    packs: &[FinishedPack],
    pack_of_prior: &PackOfPrior<'_>,
    layer: &mut OpenLayer,
) -> Result<Vec<Piece>> {
    let mut r = Reader::new(value, "unsorted chunks");
    let mut pieces = Vec::new();
    while r.remaining() > 0 {
        let chunk = UnresolvedChunk::decode(&mut r)?;
        let length = u32::try_from(chunk.length);
        let source = match chunk.stored {
            None => Source::Zeros,
            Some((hash, stored)) => {
                let (pack, frame, offset) = match stored {
                    Stored::Here { frame, offset } => {
                        let (pack, frame) = layer.place(packs, frame)?;
                        (pack, frame, offset)
                    }
                    Stored::Before {
                        pack,
                        frame,
                        offset,
                    } => (layer.pack_of_prior(pack_of_prior, pack)?, frame, offset),
                };
                let length = length.map_err(|_| r.damaged())?;
                let whole = WholeChunk {
                    offset,
                    length,
                    hash,
                };
                Source::Chunk { pack, frame, whole }
            }
        };
        pieces.push(Piece {
            position: chunk.position,
            length: chunk.length,
            source,
        });
    }
    Ok(pieces)
}

impl OpenLayer {
    /// Returns the pack in the layer's list, and the frame in it, of a frame that is numbered over all packs.
    fn place(&mut self, packs: &[FinishedPack], number: u64) -> Result<(u32, u32)> {
        let index = packs
            .partition_point(|p| p.first_frame <= number)
            .checked_sub(1);
        let (index, pack) = index
            .and_then(|i| packs.get(i).map(|pack| (i, pack)))
            .ok_or_else(|| err!(Internal, "frame {number} is in no pack"))?;
        let writer = &mut self.writer;
        let known = self.pack_indexes.entry(index);
        let listed = known.or_insert_with(|| writer.add_pack(&pack.part, &pack.summary.hash));
        let frame = u32::try_from(number - pack.first_frame)
            .map_err(|_| err!(Internal, "a pack has too many frames"))?;
        Ok((*listed, frame))
    }

    fn pack_of_prior(&mut self, of_prior: &PackOfPrior<'_>, index: u32) -> Result<u32> {
        if let Some(listed) = self.prior_indexes.get(&index) {
            return Ok(*listed);
        }
        let (part, hash) =
            of_prior(index).ok_or_else(|| err!(Internal, "there was no pack {index} before"))?;
        let listed = self.writer.add_pack(&part, &hash);
        self.prior_indexes.insert(index, listed);
        Ok(listed)
    }
}
