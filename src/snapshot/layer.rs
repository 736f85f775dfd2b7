//! A layer: a sorted part of the map, in blocks that are compressed and hashed one by one (format, section 8.2).
//!
//! The root holds the hash of head, index and trailer; the index holds those of the blocks and of the packs' directories: a chain
//! from the root down to every frame.

use std::io::{self, Write};

use super::filekey::{FileKey, Naming, Part, split_entry};
use super::node::{Node, NodeKind};
use super::pack::{HEAD_BYTES, head};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::PartName;
use crate::repo::scope::Tag;
use crate::repo::varint::{self, Reader};
use crate::store::Object;

const MAGIC: &[u8; 8] = b"PITRLAY1";
const TRAILER_MAGIC: &[u8; 4] = b"PLAY";
const TRAILER_BYTES: usize = 36;
const VERSION: u32 = 1;
/// A block is closed before it grows beyond this.
const BLOCK_AIM_BYTES: usize = 32 << 10;
const BLOCK_LIMIT_BYTES: u64 = 64 << 10;
const INDEX_LIMIT_BYTES: u64 = 16 << 20;
const ZSTD_LEVEL: i32 = 3;
/// Prefix compression could blow up a hostile block or index; a writer closes its own at half of that.
const EXPANDED_BLOCK_LIMIT_BYTES: usize = 16 << 20;
const EXPANDED_INDEX_LIMIT_BYTES: usize = 64 << 20;

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Metadata of a file.
    File = 1,
    /// Metadata of a directory.
    Directory = 2,
    /// Target of a symbolic link.
    Symlink = 3,
    /// Nothing: what older layers have of the file does not count.
    Gone = 4,
    /// Pieces of a file.
    Extents = 5,
    /// Pieces of a file that is cut into chunks.
    Chunks = 6,
    /// From where on older layers do not count.
    Limit = 7,
    /// Metadata of an entry of a tree.
    Node = 8,
}

impl EntryKind {
    /// The kind with this number.
    ///
    /// # Errors
    /// `Unsupported` for kinds of a newer format.
    pub fn from_number(number: u8) -> Result<EntryKind> {
        [
            EntryKind::File,
            EntryKind::Directory,
            EntryKind::Symlink,
            EntryKind::Gone,
            EntryKind::Extents,
            EntryKind::Chunks,
            EntryKind::Limit,
            EntryKind::Node,
        ]
        .into_iter()
        .find(|k| *k as u8 == number)
        .ok_or_else(|| {
            err!(Unsupported, "entries of kind {number} are not known")
                .hint("Use the version of pitr that wrote the backup, or a newer one.")
        })
    }

    fn fits(self, part: Part, naming: &Naming) -> bool {
        match (part, self) {
            (Part::Metadata, EntryKind::Gone)
            | (Part::Limit, EntryKind::Limit)
            | (Part::Extents(_), EntryKind::Extents) => true,
            (Part::Metadata, EntryKind::Node) | (Part::Extents(_), EntryKind::Chunks) => {
                *naming == Naming::Tree
            }
            (Part::Metadata, EntryKind::File | EntryKind::Directory | EntryKind::Symlink) => {
                *naming != Naming::Tree
            }
            _ => false,
        }
    }

    /// Whether it is the first entry of a file.
    pub fn is_first(self) -> bool {
        !matches!(
            self,
            EntryKind::Limit | EntryKind::Extents | EntryKind::Chunks
        )
    }
}

/// Metadata of a file, a directory or a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metadata {
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Unix seconds.
        mtime: i64,
        /// Bytes.
        length: u64,
    },
    /// A directory.
    Directory {
        /// Permission bits.
        mode: u32,
        /// Unix seconds.
        mtime: i64,
    },
    /// A symbolic link; recorded, never followed or recreated from here.
    Symlink {
        /// Path to which it led.
        target: Vec<u8>,
    },
    /// An entry of a tree.
    Node(Box<Node>),
}

impl Metadata {
    /// The length of a regular file; none of anything else.
    pub fn file_length(&self) -> Option<u64> {
        match self {
            Metadata::File { length, .. } => Some(*length),
            Metadata::Node(node) => match node.kind {
                NodeKind::File(length) => Some(length),
                _ => None,
            },
            _ => None,
        }
    }

    /// Kind and value of the entry.
    pub fn encode(&self) -> (EntryKind, Vec<u8>) {
        let mut out = Vec::new();
        match self {
            Metadata::File {
                mode,
                mtime,
                length,
            } => {
                varint::put(&mut out, u64::from(*mode));
                varint::put_zigzag(&mut out, *mtime);
                varint::put(&mut out, *length);
                (EntryKind::File, out)
            }
            Metadata::Directory { mode, mtime } => {
                varint::put(&mut out, u64::from(*mode));
                varint::put_zigzag(&mut out, *mtime);
                (EntryKind::Directory, out)
            }
            Metadata::Symlink { target } => {
                varint::put_blob(&mut out, target);
                (EntryKind::Symlink, out)
            }
            Metadata::Node(node) => (EntryKind::Node, node.encode()),
        }
    }

    /// Reads what [`Metadata::encode`] wrote.
    ///
    /// # Errors
    /// `Damaged` when the value does not fit the kind.
    pub fn decode(kind: EntryKind, value: &[u8]) -> Result<Metadata> {
        let mut r = Reader::new(value, "metadata of a file");
        let mode = |r: &mut Reader<'_>| -> Result<u32> {
            match r.number()? {
                mode if mode <= 0o7777 => Ok(mode),
                _ => Err(r.damaged()),
            }
        };
        let metadata = match kind {
            EntryKind::File => Metadata::File {
                mode: mode(&mut r)?,
                mtime: r.zigzag()?,
                length: r.varint()?,
            },
            EntryKind::Directory => Metadata::Directory {
                mode: mode(&mut r)?,
                mtime: r.zigzag()?,
            },
            EntryKind::Symlink => Metadata::Symlink {
                target: r.blob()?.to_vec(),
            },
            EntryKind::Node => return Ok(Metadata::Node(Box::new(Node::decode(value)?))),
            EntryKind::Gone | EntryKind::Limit | EntryKind::Extents | EntryKind::Chunks => {
                return Err(r.damaged());
            }
        };
        r.finish()?;
        Ok(metadata)
    }
}

/// The facts that identify a finished layer; the root holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSummary {
    /// Length in bytes.
    pub length: u64,
    /// BLAKE3 of head, index as stored and trailer.
    pub hash: [u8; 32],
}

/// Writes one layer; entries come in key order.
pub struct LayerWriter<W: Write> {
    sink: W,
    head: Vec<u8>,
    at: u64,
    /// Entries of the block under construction, without their count.
    block: Vec<u8>,
    block_entries: u64,
    block_first: Vec<u8>,
    last_key: Vec<u8>,
    last_block_first: Vec<u8>,
    /// Bytes of the block's keys, and of the first keys of all blocks, written out.
    block_keys_bytes: usize,
    index_keys_bytes: usize,
    blocks: u64,
    index: Vec<u8>,
    packs: Vec<(PartName, [u8; 32])>,
    file_count: u64,
    raw_bytes: u64,
}

impl<W: Write> LayerWriter<W> {
    /// Begins a layer in the object `part`.
    pub fn new(mut sink: W, part: &PartName, tag: Tag) -> io::Result<Self> {
        let head = head(MAGIC, part, tag);
        sink.write_all(&head)?;
        Ok(LayerWriter {
            sink,
            head,
            at: HEAD_BYTES as u64,
            block: Vec::with_capacity(BLOCK_AIM_BYTES),
            block_entries: 0,
            block_first: Vec::new(),
            last_key: Vec::new(),
            last_block_first: Vec::new(),
            block_keys_bytes: 0,
            index_keys_bytes: 0,
            blocks: 0,
            index: Vec::new(),
            packs: Vec::new(),
            file_count: 0,
            raw_bytes: 0,
        })
    }

    /// Adds a pack to this layer's list and returns its index there; each pack is added once.
    pub fn add_pack(&mut self, part: &PartName, hash: &[u8; 32]) -> u32 {
        self.packs.push((part.clone(), *hash));
        u32::try_from(self.packs.len() - 1).unwrap_or(u32::MAX)
    }

    /// Counts a file of `length` bytes.
    pub fn count_file(&mut self, length: u64) {
        self.file_count += 1;
        self.raw_bytes += length;
    }

    /// Appends an entry; its key must be greater than all before.
    pub fn push(&mut self, key: &[u8], kind: EntryKind, value: &[u8]) -> io::Result<()> {
        if key <= self.last_key.as_slice() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an entry of the map comes twice or out of order",
            ));
        }
        let size = key.len() + value.len() + 16;
        let is_full = self.block.len() + size > BLOCK_AIM_BYTES
            || self.block_keys_bytes >= EXPANDED_BLOCK_LIMIT_BYTES / 2;
        if self.block_entries > 0 && is_full {
            self.end_block()?;
        }
        let shared = if self.block_entries == 0 {
            self.block_first = key.to_vec();
            0
        } else {
            shared_prefix(&self.last_key, key)
        };
        varint::put(&mut self.block, shared as u64);
        varint::put_blob(&mut self.block, key.get(shared..).unwrap_or_default());
        self.block.push(kind as u8);
        varint::put_blob(&mut self.block, value);
        self.block_entries += 1;
        self.block_keys_bytes += key.len();
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        Ok(())
    }

    /// Whether the layer should take no further file: its index grows large.
    pub fn is_full(&self) -> bool {
        self.index_keys_bytes >= EXPANDED_INDEX_LIMIT_BYTES / 2
            || self.index.len() as u64 >= INDEX_LIMIT_BYTES / 2
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.block_entries == 0 {
            return Ok(());
        }
        let mut raw = Vec::with_capacity(self.block.len() + 5);
        varint::put(&mut raw, self.block_entries);
        raw.append(&mut self.block);
        if raw.len() as u64 > BLOCK_LIMIT_BYTES {
            return Err(io::Error::other("an entry of the map is too large"));
        }
        let stored = zstd::bulk::compress(&raw, ZSTD_LEVEL)?;
        self.sink.write_all(&stored)?;
        let shared = shared_prefix(&self.last_block_first, &self.block_first);
        varint::put(&mut self.index, shared as u64);
        varint::put_blob(
            &mut self.index,
            self.block_first.get(shared..).unwrap_or_default(),
        );
        varint::put(&mut self.index, self.at);
        varint::put(&mut self.index, stored.len() as u64);
        varint::put(&mut self.index, raw.len() as u64);
        self.index
            .extend_from_slice(blake3::hash(&stored).as_bytes());
        self.at += stored.len() as u64;
        self.blocks += 1;
        self.block_entries = 0;
        self.block_keys_bytes = 0;
        self.index_keys_bytes += self.block_first.len();
        self.last_block_first = std::mem::take(&mut self.block_first);
        Ok(())
    }

    /// Writes index and trailer, and returns the sink.
    pub fn finish(mut self) -> io::Result<(W, LayerSummary)> {
        self.end_block()?;
        let mut raw = Vec::with_capacity(self.index.len() + 64 * self.packs.len() + 32);
        varint::put(&mut raw, self.blocks);
        raw.append(&mut self.index);
        varint::put(&mut raw, self.packs.len() as u64);
        for (part, hash) in &self.packs {
            varint::put_blob(&mut raw, part.to_string().as_bytes());
            raw.extend_from_slice(hash);
        }
        varint::put(&mut raw, self.file_count);
        varint::put(&mut raw, self.raw_bytes);
        let too_large = || io::Error::other("the index of a layer is too large");
        let raw_length = u32::try_from(raw.len())
            .ok()
            .filter(|n| u64::from(*n) <= INDEX_LIMIT_BYTES)
            .ok_or_else(too_large)?;
        let mut end = zstd::bulk::compress(&raw, ZSTD_LEVEL)?;
        let stored_length = u32::try_from(end.len()).map_err(|_| too_large())?;
        let length = self.at + (end.len() + TRAILER_BYTES) as u64;
        end.extend_from_slice(&self.at.to_le_bytes());
        end.extend_from_slice(&stored_length.to_le_bytes());
        end.extend_from_slice(&raw_length.to_le_bytes());
        end.extend_from_slice(&length.to_le_bytes());
        end.extend_from_slice(&VERSION.to_le_bytes());
        end.extend_from_slice(&0_u32.to_le_bytes());
        end.extend_from_slice(TRAILER_MAGIC);
        self.sink.write_all(&end)?;
        let hash = blake3::Hasher::new()
            .update(&self.head)
            .update(&end)
            .finalize()
            .into();
        Ok((self.sink, LayerSummary { length, hash }))
    }
}

fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// One entry as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The whole entry key.
    pub key: Box<[u8]>,
    /// Kind of the value.
    pub kind: EntryKind,
    pub value: Box<[u8]>,
}

impl Entry {
    /// How much memory it takes, by a rough sum.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Entry>() + 32 + self.key.len() + self.value.len()
    }

    /// The file and which of its entries this is, proven to fit the kind.
    ///
    /// # Errors
    /// `Damaged` otherwise.
    pub fn split(&self, naming: &Naming) -> Result<(FileKey, Part)> {
        let (file, part) = split_entry(&self.key, naming)?;
        if self.kind.fits(part, naming) {
            Ok((file, part))
        } else {
            Err(err!(Damaged, "an entry of {file:?} is of a wrong kind"))
        }
    }
}

struct BlockRef {
    first_key: Vec<u8>,
    offset: u64,
    stored_bytes: usize,
    raw_bytes: usize,
    hash: [u8; 32],
}

/// The index of a layer: trailer and index are those that the root's hash covers.
pub(super) struct LayerIndex {
    base: u64,
    head: Vec<u8>,
    blocks: Vec<BlockRef>,
    packs: Vec<(PartName, [u8; 32])>,
    file_count: u64,
    raw_bytes: u64,
}

impl LayerIndex {
    /// Reads the index of the layer at `base` of the object that was found as `part` of this cluster.
    ///
    /// # Errors
    /// `Damaged` when it is not the layer of the root; `Unsupported` for a newer version.
    pub(super) fn read(
        object: &dyn Object,
        (base, length): (u64, u64),
        hash: &[u8; 32],
        part: &PartName,
        tag: Tag,
    ) -> Result<LayerIndex> {
        let least = (HEAD_BYTES + TRAILER_BYTES) as u64;
        if length < least
            || base
                .checked_add(length)
                .is_none_or(|end| end > object.size_bytes())
        {
            return Err(err!(
                Damaged,
                "a layer of {length} bytes does not fit its object"
            ));
        }
        let mut bytes = [0; TRAILER_BYTES];
        object.read_at(&mut bytes, base + length - TRAILER_BYTES as u64)?;
        let trailer = Trailer::decode(&bytes, length)?;
        let mut stored = vec![0; trailer.index_stored];
        object.read_at(&mut stored, base + trailer.index_at)?;
        // The key says which head it has, and the hash whether that is true. The stored one is read with the first block: across a network it
        // lies a request away from the index.
        let head = head(MAGIC, part, tag);
        let computed = blake3::Hasher::new()
            .update(&head)
            .update(&stored)
            .update(&bytes)
            .finalize();
        if computed != *hash {
            return Err(err!(Damaged, "the layer does not have the root's hash"));
        }
        let raw = decompress(&stored, trailer.index_raw)?;
        let index = LayerIndex::decode(base, head, &raw, trailer.index_at)?;
        if index.blocks.is_empty() {
            let mut found = [0; HEAD_BYTES];
            object.read_at(&mut found, base)?;
            index.check_head(&found)?;
        }
        Ok(index)
    }

    fn decode(base: u64, head: Vec<u8>, raw: &[u8], end: u64) -> Result<LayerIndex> {
        let mut r = Reader::new(raw, "index of a layer");
        let blocks = read_blocks(&mut r, end)?;
        let count = r.count(33)?;
        let mut packs: Vec<(PartName, [u8; 32])> = Vec::with_capacity(count);
        for _ in 0..count {
            let part = r.text()?.parse()?;
            packs.push((part, r.array()?));
        }
        let index = LayerIndex {
            base,
            head,
            blocks,
            packs,
            file_count: r.varint()?,
            raw_bytes: r.varint()?,
        };
        r.finish()?;
        Ok(index)
    }

    fn check_head(&self, found: &[u8]) -> Result<()> {
        match found == self.head {
            true => Ok(()),
            false => Err(err!(Damaged, "the object is not the layer of its key")),
        }
    }

    /// The packs that pieces name by their index.
    pub(super) fn packs(&self) -> &[(PartName, [u8; 32])] {
        &self.packs
    }

    /// Forgets the packs, which only who opens the layer needs.
    pub(super) fn forget_packs(&mut self) {
        self.packs = Vec::new();
    }

    /// Regular files in the layer.
    pub(super) fn file_count(&self) -> u64 {
        self.file_count
    }

    /// Their raw bytes.
    pub(super) fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// How much memory it takes, by a rough sum.
    pub(super) fn memory_bytes(&self) -> usize {
        let keys: usize = self.blocks.iter().map(|b| b.first_key.capacity()).sum();
        size_of_val(self.blocks.as_slice()) + 16 * self.blocks.len() + keys + 256
    }

    /// How many blocks there are.
    pub(super) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The block in which an entry with this key would be; `None` before the first.
    pub(super) fn block_for(&self, key: &[u8]) -> Option<usize> {
        self.blocks
            .partition_point(|b| b.first_key.as_slice() <= key)
            .checked_sub(1)
    }

    /// Reads a block from the layer's object; see [`Layer::block`].
    pub(super) fn block(&self, object: &dyn Object, number: usize) -> Result<Vec<Entry>> {
        let block = self
            .blocks
            .get(number)
            .ok_or_else(|| err!(Damaged, "the layer has no block {number}"))?;
        let head_bytes = match number {
            0 => HEAD_BYTES,
            _ => 0,
        };
        let mut bytes = vec![0; head_bytes + block.stored_bytes];
        let at = self.base + block.offset - head_bytes as u64;
        object.read_at(&mut bytes, at)?;
        let (head, stored) = bytes.split_at(head_bytes);
        if number == 0 {
            self.check_head(head)?;
        }
        if blake3::hash(stored) != block.hash {
            return Err(err!(
                Damaged,
                "block {number} of a layer does not have the recorded hash"
            ));
        }
        let raw = decompress(stored, block.raw_bytes)?;
        let entries = read_entries(&raw)?;
        let first = entries.first().map(|e| e.key.as_ref());
        let last = entries.last().map(|e| e.key.as_ref());
        let next = self.blocks.get(number + 1).map(|b| b.first_key.as_slice());
        if first != Some(block.first_key.as_slice()) || next.is_some_and(|next| last >= Some(next))
        {
            return Err(err!(
                Damaged,
                "block {number} of a layer does not fit the index"
            ));
        }
        Ok(entries)
    }
}

/// A layer open for reading.
pub struct Layer {
    object: Box<dyn Object>,
    index: LayerIndex,
}

impl Layer {
    /// Opens the layer at `base` of the object that was found as `part` of this cluster.
    ///
    /// # Errors
    /// `Damaged` when it is not the layer of the root; `Unsupported` for a newer version.
    pub fn open(
        object: Box<dyn Object>,
        span: (u64, u64),
        hash: &[u8; 32],
        part: &PartName,
        tag: Tag,
    ) -> Result<Layer> {
        let index = LayerIndex::read(object.as_ref(), span, hash, part, tag)?;
        Ok(Layer { object, index })
    }

    /// The packs that pieces name by their index.
    pub fn packs(&self) -> &[(PartName, [u8; 32])] {
        self.index.packs()
    }

    /// How many blocks there are.
    pub fn block_count(&self) -> usize {
        self.index.block_count()
    }

    /// The block in which an entry with this key would be; `None` before the first.
    pub fn block_for(&self, key: &[u8]) -> Option<usize> {
        self.index.block_for(key)
    }

    /// Reads, checks and decodes one block; keys ascend and lie between this block's first key and the next one's.
    ///
    /// # Errors
    /// `Damaged` when a check fails; `Unsupported` for kinds of a newer format.
    pub fn block(&self, number: usize) -> Result<Vec<Entry>> {
        self.index.block(self.object.as_ref(), number)
    }
}

fn read_blocks(r: &mut Reader<'_>, end: u64) -> Result<Vec<BlockRef>> {
    let count = r.count(37)?;
    let mut blocks: Vec<BlockRef> = Vec::with_capacity(count);
    let mut at = HEAD_BYTES as u64;
    let mut expanded = 0_usize;
    for _ in 0..count {
        let last = blocks.last().map_or(&[][..], |b| b.first_key.as_slice());
        let shared: usize = r.number()?;
        let mut first_key = last.get(..shared).ok_or_else(|| r.damaged())?.to_vec();
        first_key.extend_from_slice(r.blob()?);
        let ascends = first_key.as_slice() > last;
        expanded += first_key.len();
        if expanded > EXPANDED_INDEX_LIMIT_BYTES {
            return Err(r.damaged());
        }
        let offset = r.varint()?;
        let stored = r.varint()?;
        let raw = r.varint()?;
        if !ascends || offset != at || raw > BLOCK_LIMIT_BYTES || stored > 2 * BLOCK_LIMIT_BYTES {
            return Err(r.damaged());
        }
        at += stored;
        blocks.push(BlockRef {
            first_key,
            offset,
            stored_bytes: usize::try_from(stored).map_err(|_| r.damaged())?,
            raw_bytes: usize::try_from(raw).map_err(|_| r.damaged())?,
            hash: r.array()?,
        });
    }
    if at == end {
        Ok(blocks)
    } else {
        Err(r.damaged())
    }
}

fn read_entries(raw: &[u8]) -> Result<Vec<Entry>> {
    let mut r = Reader::new(raw, "block of a layer");
    let count = r.count(4)?;
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    let mut expanded = 0_usize;
    for _ in 0..count {
        let last = entries.last().map_or(&[][..], |e| &e.key);
        let shared: usize = r.number()?;
        let rest_of_last = last.get(..shared).ok_or_else(|| r.damaged())?;
        let rest = r.blob()?;
        let key = [rest_of_last, rest].concat();
        expanded += key.len();
        if key.as_slice() <= last || expanded > EXPANDED_BLOCK_LIMIT_BYTES {
            return Err(r.damaged());
        }
        let kind = EntryKind::from_number(r.u8()?)?;
        entries.push(Entry {
            key: key.into(),
            kind,
            value: r.blob()?.into(),
        });
    }
    r.finish()?;
    Ok(entries)
}

fn decompress(stored: &[u8], raw_length: usize) -> Result<Vec<u8>> {
    let wrong = || err!(Damaged, "a part of a layer cannot be decompressed");
    let raw = zstd::bulk::decompress(stored, raw_length).map_err(|e| wrong().source(e))?;
    if raw.len() == raw_length {
        Ok(raw)
    } else {
        Err::<Vec<u8>, Error>(wrong())
    }
}

struct Trailer {
    index_at: u64,
    index_stored: usize,
    index_raw: usize,
}

impl Trailer {
    fn decode(bytes: &[u8], layer_bytes: u64) -> Result<Trailer> {
        let mut r = Reader::new(bytes, "trailer of a layer");
        let index_at = r.u64()?;
        let (index_stored, index_raw) = (r.u32()?, r.u32()?);
        let length = r.u64()?;
        let (version, flags) = (r.u32()?, r.u32()?);
        if r.bytes(4)? != TRAILER_MAGIC {
            return Err(err!(Damaged, "the layer has no trailer"));
        }
        if version != VERSION || flags != 0 {
            return Err(
                err!(Unsupported, "layer version {version} with flags {flags}")
                    .hint("Use the version of pitr that wrote it, or a newer one."),
            );
        }
        let end = index_at.checked_add(u64::from(index_stored) + TRAILER_BYTES as u64);
        if length != layer_bytes
            || end != Some(layer_bytes)
            || index_at < HEAD_BYTES as u64
            || u64::from(index_raw) > INDEX_LIMIT_BYTES
            || u64::from(index_stored) > 2 * INDEX_LIMIT_BYTES
        {
            return Err(r.damaged());
        }
        let size = |n| usize::try_from(n).map_err(|_| err!(Damaged, "the index is too large"));
        Ok(Trailer {
            index_at,
            index_stored: size(index_stored)?,
            index_raw: size(index_raw)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::filekey::tests::NAMING;
    use crate::snapshot::pack::tests::{Bytes, check_damage};

    fn part() -> PartName {
        "20261120T064049Z-full/000000".parse().unwrap()
    }

    fn sample(files: u32) -> (Vec<u8>, LayerSummary, Vec<Vec<u8>>) {
        let mut writer = LayerWriter::new(Vec::new(), &part(), Tag::cluster(77)).unwrap();
        let mut keys = Vec::new();
        for i in 1..=files {
            let file = FileKey::from_path(format!("base/5/{i}").as_bytes(), NAMING).unwrap();
            let metadata = Metadata::File {
                mode: 0o600,
                mtime: -1,
                length: u64::from(i),
            };
            let (kind, value) = metadata.encode();
            writer.push(&file.metadata_entry(), kind, &value).unwrap();
            writer.count_file(u64::from(i));
            keys.push(file.metadata_entry());
        }
        assert_eq!(writer.add_pack(&part(), &[1; 32]), 0);
        let (bytes, summary) = writer.finish().unwrap();
        (bytes, summary, keys)
    }

    fn open(bytes: &[u8], place: (u64, u64), summary: &LayerSummary) -> Result<Layer> {
        let object = Box::new(Bytes(bytes.to_vec()));
        Layer::open(object, place, &summary.hash, &part(), Tag::cluster(77))
    }

    fn read_all(bytes: &[u8], summary: &LayerSummary) -> Result<Vec<Entry>> {
        let layer = open(bytes, (0, bytes.len() as u64), summary)?;
        let mut entries = Vec::new();
        for n in 0..layer.block_count() {
            entries.extend(layer.block(n)?);
        }
        Ok(entries)
    }

    #[test]
    fn entries_come_back_and_are_found() {
        let (bytes, summary, keys) = sample(20_000);
        let entries = read_all(&bytes, &summary).unwrap();
        assert!(
            entries
                .iter()
                .map(|e| &*e.key)
                .eq(keys.iter().map(|k| k.as_slice()))
        );
        // The same layer, second in its object.
        let mut two = bytes.clone();
        two.extend_from_slice(&bytes);
        let length = bytes.len() as u64;
        let layer = open(&two, (length, length), &summary).unwrap();
        let index = &layer.index;
        assert!(layer.block_count() > 5);
        assert_eq!(index.file_count(), 20_000);
        assert_eq!(index.raw_bytes(), 10_000 * 20_001);
        for key in keys.iter().step_by(371) {
            let block = layer.block(layer.block_for(key).unwrap()).unwrap();
            let found = block.iter().find(|e| *e.key == **key).unwrap();
            assert_eq!(found.split(&NAMING).unwrap().1, Part::Metadata);
        }
        assert_eq!(index.block_for(&[0]), None);
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let mut writer = LayerWriter::new(Vec::new(), &part(), Tag::cluster(77)).unwrap();
        writer.push(b"b", EntryKind::File, b"").unwrap();
        assert!(writer.push(b"b", EntryKind::File, b"").is_err());
        assert!(writer.push(b"a", EntryKind::File, b"").is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (bytes, summary, _) = sample(3);
        check_damage(&bytes, |bad| read_all(bad, &summary));
        let (empty, summary, _) = sample(0);
        assert!(read_all(&empty, &summary).unwrap().is_empty());
    }

    #[test]
    fn metadata_comes_back() {
        for metadata in [
            Metadata::File {
                mode: 0o640,
                mtime: 1_800_000_000,
                length: u64::MAX,
            },
            Metadata::Directory {
                mode: 0o7777,
                mtime: i64::MIN,
            },
            Metadata::Symlink {
                target: b"/mnt/\xFF".to_vec(),
            },
        ] {
            let (kind, value) = metadata.encode();
            assert_eq!(Metadata::decode(kind, &value).unwrap(), metadata);
            assert!(Metadata::decode(EntryKind::Extents, &value).is_err());
        }
        let mut wrong = Vec::new();
        varint::put(&mut wrong, 0o10000);
        varint::put(&mut wrong, 0);
        assert!(Metadata::decode(EntryKind::Directory, &wrong).is_err());
    }
}
