//! One frame of a pack: up to 4 MiB of file content that says of itself which extents of which files it holds (format, section 8.3).
//!
//! A frame is packed on any thread ([`Packer`]) and sealed, with its number, by whoever appends it to the pack.

use std::ops::{ControlFlow, RangeInclusive};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::filekey::{FileKey, Naming};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::varint::{self, Reader};

/// Bytes before the extent list.
pub const HEADER_BYTES: usize = 40;
/// Greatest raw length.
pub const RAW_LIMIT_BYTES: usize = 4 << 20;
/// Greatest length of an extent list.
pub const EXTENT_LIST_LIMIT_BYTES: usize = 65_535;
/// The stretch that one page hash covers.
pub const PAGE_BYTES: usize = 8192;

const MAGIC: &[u8; 4] = b"PFRM";
const NONE: u8 = 0;
const LZ4: u8 = 1;
const ZSTD: u8 = 2;

/// Levels that backups have been asked for.
const ZSTD_LEVELS: RangeInclusive<i32> = 1..=9;

/// How frames are compressed; one that does not shrink is stored as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FrameCodec {
    /// LZ4 blocks.
    #[default]
    Lz4,
    /// zstd of this level.
    Zstd(i32),
}

/// A stretch of one file inside a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    pub file: FileKey,
    /// Byte position in the file.
    pub position: u64,
    /// Bytes; never 0.
    pub length: u32,
}

impl Extent {
    /// The byte position in the file behind it.
    pub fn end(&self) -> u64 {
        self.position + u64::from(self.length)
    }

    /// How many page hashes it has.
    pub fn pages(&self) -> usize {
        (self.length as usize).div_ceil(PAGE_BYTES)
    }
}

/// Lengthens the last extent, or adds one; whether one was added.
pub fn add_extent(extents: &mut Vec<Extent>, file: &FileKey, position: u64, length: u32) -> bool {
    if let Some(last) = extents.last_mut()
        && last.file == *file
        && last.end() == position
    {
        last.length += length;
        return false;
    }
    extents.push(Extent {
        file: file.clone(),
        position,
        length,
    });
    true
}

/// Encodes an extent list.
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 * extents.len() + 4);
    varint::put(&mut out, extents.len() as u64);
    for extent in extents {
        varint::put_blob(&mut out, extent.file.as_bytes());
        varint::put(&mut out, extent.position);
        varint::put(&mut out, u64::from(extent.length));
    }
    out
}

/// Upper limit of what one extent adds to an extent list.
pub fn extent_bytes(file: &FileKey) -> usize {
    file.as_bytes().len() + 18
}

fn decode_extents(bytes: &[u8], raw_length: usize, naming: &Naming) -> Result<Vec<Extent>> {
    let mut r = Reader::new(bytes, "extent list of a frame");
    let count = r.count(5)?;
    let mut extents = Vec::with_capacity(count);
    let mut sum = 0_usize;
    for _ in 0..count {
        let extent = Extent {
            file: FileKey::decode_extent(r.blob()?, naming)?,
            position: r.varint()?,
            length: r.number()?,
        };
        sum = sum.saturating_add(extent.length as usize);
        let end = extent.position.checked_add(u64::from(extent.length));
        let is_cut = extent.position > 0 && extent.file.as_chunk().is_some();
        if extent.length == 0 || end.is_none() || sum > raw_length || is_cut {
            return Err(r.damaged());
        }
        extents.push(extent);
    }
    if sum != raw_length {
        return Err(r.damaged());
    }
    r.finish()?;
    Ok(extents)
}

/// A frame's entry in the pack's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// Header, extent list and payload.
    pub stored_bytes: u32,
    /// Content.
    pub raw_bytes: u32,
    /// How many page hashes it has.
    pub page_hashes: u32,
    /// xxh3-128 of extent list and raw content.
    pub hash: [u8; 16],
    /// CRC-32C of the stored frame.
    pub crc: u32,
}

impl FrameEntry {
    /// Whether the content is whole pages, so that the place of a page's hash follows from its offset.
    pub fn is_of_pages(&self) -> bool {
        self.raw_bytes as usize == self.page_hashes as usize * PAGE_BYTES
    }
}

/// A frame ready to be sealed and stored.
#[derive(Default)]
pub struct PackedFrame {
    /// Header (without number and CRC), extent list, payload.
    pub stored: Vec<u8>,
    /// xxh3-64 of each page, extent by extent.
    pub page_hashes: Vec<u64>,
    raw_bytes: u32,
    hash: [u8; 16],
}

/// Compresses frames; one per thread.
pub struct Packer {
    codec: FrameCodec,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// Room for the longest payload so far.
    packed: Vec<u8>,
}

impl Packer {
    /// # Errors
    /// `Internal` when the codec cannot be set up.
    pub fn new(codec: FrameCodec) -> Result<Packer> {
        let zstd = match codec {
            FrameCodec::Lz4 => None,
            FrameCodec::Zstd(level) => {
                let failed = |e| err!(Internal, "could not start zstd").source(e);
                Some(zstd::bulk::Compressor::new(level).map_err(failed)?)
            }
        };
        Ok(Packer {
            codec,
            zstd,
            packed: Vec::new(),
        })
    }

    /// Packs `raw`, the bytes of `extents` in their order, into `frame`, whose buffers are used again.
    ///
    /// # Errors
    /// `Internal` when content or extent list exceed the format's limits.
    pub fn pack(&mut self, extents: &[Extent], raw: &[u8], frame: &mut PackedFrame) -> Result<()> {
        let list = encode_extents(extents);
        let too_large = || err!(Internal, "a frame exceeds the limits of the format");
        let list_length = u16::try_from(list.len()).map_err(|_| too_large())?;
        frame.raw_bytes = match u32::try_from(raw.len()) {
            Ok(n) if raw.len() <= RAW_LIMIT_BYTES && n > 0 => n,
            _ => return Err(too_large()),
        };
        frame.hash = content_hash(&list, raw);
        hash_pages(extents, raw, &mut frame.page_hashes);

        let stored = &mut frame.stored;
        stored.clear();
        stored.resize(HEADER_BYTES, 0);
        stored.extend_from_slice(&list);
        let (codec, payload_bytes) = self.compress(raw, stored)?;
        let payload_bytes = u32::try_from(payload_bytes).map_err(|_| too_large())?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&payload_bytes.to_le_bytes());
        header.extend_from_slice(&frame.raw_bytes.to_le_bytes());
        header.extend_from_slice(&[codec, 0]);
        header.extend_from_slice(&list_length.to_le_bytes());
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&frame.hash);
        for (to, from) in stored.iter_mut().zip(header) {
            *to = from;
        }
        Ok(())
    }

    /// Appends the payload; returns codec and length.
    fn compress(&mut self, raw: &[u8], stored: &mut Vec<u8>) -> Result<(u8, usize)> {
        let room = match self.codec {
            FrameCodec::Lz4 => lz4_flex::block::get_maximum_output_size(raw.len()),
            FrameCodec::Zstd(_) => zstd::zstd_safe::compress_bound(raw.len()),
        };
        // Filled with zeros once, and not for each frame anew: that cost a tenth of what compressing did.
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let space = self.packed.as_mut_slice();
        let (codec, length) = match &mut self.zstd {
            None => (
                LZ4,
                lz4_flex::block::compress_into(raw, space)
                    .map_err(|e| err!(Internal, "could not compress a frame").source(e))?,
            ),
            Some(zstd) => (
                ZSTD,
                zstd.compress_to_buffer(raw, space)
                    .map_err(|e| err!(Internal, "could not compress a frame").source(e))?,
            ),
        };
        if length < raw.len() {
            stored.extend_from_slice(self.packed.get(..length).unwrap_or_default());
            return Ok((codec, length));
        }
        stored.extend_from_slice(raw);
        Ok((NONE, raw.len()))
    }
}

impl PackedFrame {
    /// Gives the frame its number in the pack and computes its CRC.
    pub fn seal(&mut self, number: u32) -> FrameEntry {
        set(&mut self.stored, 16, &number.to_le_bytes());
        set(&mut self.stored, 20, &[0; 4]);
        let crc = crc32c::crc32c(&self.stored);
        set(&mut self.stored, 20, &crc.to_le_bytes());
        FrameEntry {
            stored_bytes: u32::try_from(self.stored.len()).unwrap_or(u32::MAX),
            raw_bytes: self.raw_bytes,
            page_hashes: u32::try_from(self.page_hashes.len()).unwrap_or(u32::MAX),
            hash: self.hash,
            crc,
        }
    }

    /// Length of the raw content.
    pub fn raw_bytes(&self) -> u32 {
        self.raw_bytes
    }
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value) {
        *to = *from;
    }
}

/// The hash that a pack's directory has of a frame with these extents and bytes.
pub fn content_hash_of(extents: &[Extent], raw: &[u8]) -> [u8; 16] {
    content_hash(&encode_extents(extents), raw)
}

fn content_hash(list: &[u8], raw: &[u8]) -> [u8; 16] {
    let mut hasher = Xxh3::new();
    hasher.update(list);
    hasher.update(raw);
    hasher.digest128().to_le_bytes()
}

/// The extents that a stored frame lists, which fails another check.
///
/// # Errors
/// `Damaged` when the list is not one.
pub fn listed_extents(stored: &[u8], entry: &FrameEntry, naming: &Naming) -> Result<Vec<Extent>> {
    let mut r = Reader::new(stored, "frame");
    r.bytes(14)?;
    let list_bytes = usize::from(r.u16()?);
    r.bytes(HEADER_BYTES - 16)?;
    decode_extents(r.bytes(list_bytes)?, entry.raw_bytes as usize, naming)
}

/// Packs content anew as the frame `number` of a directory's entry: with one codec after another, until length and checksum are the entry's.
///
/// # Errors
/// `Damaged` when extents and content are not those of the entry, or no codec of this program gives its bytes.
pub fn repacked(
    (extents, raw): (&[Extent], &[u8]),
    number: u32,
    entry: &FrameEntry,
) -> Result<Vec<u8>> {
    if content_hash_of(extents, raw) != entry.hash {
        return Err(err!(
            Damaged,
            "the content of frame {number} does not have the recorded hash"
        ));
    }
    let levels = [FrameCodec::Lz4].into_iter();
    let mut codecs = levels.chain(ZSTD_LEVELS.map(FrameCodec::Zstd));
    let mut frame = PackedFrame::default();
    let found = codecs.try_fold((), |(), codec| {
        let packed = Packer::new(codec).and_then(|mut p| p.pack(extents, raw, &mut frame));
        match packed.map(|()| frame.seal(number)) {
            Ok(sealed) if sealed == *entry => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    match found.is_break() {
        true => Ok(frame.stored),
        false => Err(err!(
            Damaged,
            "frame {number} was packed by another version of its codec"
        )),
    }
}

fn hash_pages(extents: &[Extent], raw: &[u8], out: &mut Vec<u64>) {
    out.clear();
    let mut rest = raw;
    for extent in extents {
        let (content, behind) = rest
            .split_at_checked(extent.length as usize)
            .unwrap_or((rest, &[]));
        rest = behind;
        out.extend(content.chunks(PAGE_BYTES).map(xxh3_64));
    }
}

/// A frame that was read and passed every check of its own; whether the map leads to it is the reader's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its number in the pack.
    pub number: u32,
    /// Extents that it holds, in raw order.
    pub extents: Vec<Extent>,
    /// The content.
    pub raw: Vec<u8>,
}

/// Decodes the stored frame `number` and checks it against the pack's directory.
///
/// # Errors
/// `Damaged`, saying what does not fit; `Unsupported` for a codec that is not known.
pub fn open(stored: &[u8], number: u32, entry: &FrameEntry, naming: &Naming) -> Result<Frame> {
    let damaged = |why: &str| err!(Damaged, "frame {number} is damaged: {why}");
    let mut r = Reader::new(stored, "frame");
    let magic = r.bytes(4)?;
    let payload_bytes = r.u32()?;
    let raw_bytes = r.u32()?;
    let (codec, zero) = (r.u8()?, r.u8()?);
    let list_bytes = r.u16()?;
    let (own_number, crc) = (r.u32()?, r.u32()?);
    let hash: [u8; 16] = r.array()?;

    let head = stored.get(..20).unwrap_or_default();
    let computed = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    let computed = crc32c::crc32c_append(computed, stored.get(24..).unwrap_or_default());
    if computed != crc || crc != entry.crc {
        return Err(damaged("its checksum is wrong"));
    }
    if magic != MAGIC || zero != 0 || own_number != number {
        return Err(damaged("its header belongs to another frame"));
    }
    if hash != entry.hash || raw_bytes != entry.raw_bytes {
        return Err(damaged("it is not the frame of the directory"));
    }
    let list = r.bytes(usize::from(list_bytes))?;
    let payload = r.bytes(r.remaining())?;
    let raw_length = raw_bytes as usize;
    if payload.len() != payload_bytes as usize || raw_length > RAW_LIMIT_BYTES {
        return Err(damaged("its lengths do not fit"));
    }
    let raw = decompress(codec, payload, raw_length)?;
    if content_hash(list, &raw) != hash {
        return Err(damaged("its content does not have the recorded hash"));
    }
    let extents = decode_extents(list, raw_length, naming)?;
    if extents.iter().map(Extent::pages).sum::<usize>() != entry.page_hashes as usize {
        return Err(damaged("its page hashes do not fit its extents"));
    }
    Ok(Frame {
        number,
        extents,
        raw,
    })
}

fn decompress(codec: u8, payload: &[u8], raw_length: usize) -> Result<Vec<u8>> {
    let wrong = || err!(Damaged, "a frame cannot be decompressed");
    let raw = match codec {
        NONE => payload.to_vec(),
        LZ4 => lz4_flex::block::decompress(payload, raw_length).map_err(|e| wrong().source(e))?,
        ZSTD => zstd::bulk::decompress(payload, raw_length).map_err(|e| wrong().source(e))?,
        other => return Err(err!(Unsupported, "frame codec {other} is not known")),
    };
    if raw.len() == raw_length {
        Ok(raw)
    } else {
        Err(wrong())
    }
}

/// Checks a frame's page hashes as read from the pack.
///
/// # Errors
/// `Damaged` when one differs.
pub fn check_pages(frame: &Frame, hashes: &[u64]) -> Result<()> {
    let mut computed = Vec::new();
    hash_pages(&frame.extents, &frame.raw, &mut computed);
    if computed == hashes {
        Ok(())
    } else {
        Err::<(), Error>(err!(
            Damaged,
            "the page hashes of frame {} are not those of its content",
            frame.number
        ))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::snapshot::filekey::tests::NAMING;
    use crate::snapshot::pack::tests::check_damage;

    pub(in crate::snapshot) fn extent(path: &str, position: u64, length: u32) -> Extent {
        Extent {
            file: FileKey::from_path(path.as_bytes(), NAMING).unwrap(),
            position,
            length,
        }
    }

    pub(in crate::snapshot) fn text(length: usize) -> Vec<u8> {
        (0..length)
            .map(|i| u8::try_from((i / 7 * i) % 97).unwrap())
            .collect()
    }

    #[test]
    fn z04_a_payload_that_unpacks_to_more_than_declared_ends_there() {
        let zeros = vec![0; 64 << 20];
        let lz4 = lz4_flex::block::compress(&zeros);
        let zstd = zstd::bulk::compress(&zeros, 1).unwrap();
        for (codec, payload) in [(LZ4, &lz4), (ZSTD, &zstd), (NONE, &zeros)] {
            let error = decompress(codec, payload, 1 << 20).unwrap_err();
            assert_eq!(error.code(), crate::error::Code::Damaged, "{codec}");
        }
    }

    fn sample(codec: FrameCodec, raw: &[u8]) -> (PackedFrame, FrameEntry) {
        let length = u32::try_from(raw.len()).unwrap();
        let extents = [
            extent("base/1/1259", 8192, 8192),
            extent("PG_VERSION", 0, 3),
            extent("base/1/1", 0, length - 8195),
        ];
        let mut frame = PackedFrame::default();
        let mut packer = Packer::new(codec).unwrap();
        packer.pack(&extents, raw, &mut frame).unwrap();
        packer.pack(&extents, raw, &mut frame).unwrap();
        let entry = frame.seal(3);
        (frame, entry)
    }

    #[test]
    fn frames_come_back_with_every_codec() {
        let raw = text(20_000);
        for codec in [FrameCodec::Lz4, FrameCodec::Zstd(1)] {
            let (frame, entry) = sample(codec, &raw);
            assert!(frame.stored.len() < raw.len());
            assert_eq!(entry.page_hashes, 1 + 1 + 2);
            let back = open(&frame.stored, 3, &entry, &NAMING).unwrap();
            assert_eq!(back.raw, raw);
            assert_eq!(back.extents[1], extent("PG_VERSION", 0, 3));
            check_pages(&back, &frame.page_hashes).unwrap();
            assert!(check_pages(&back, &frame.page_hashes[1..]).is_err());
            assert!(open(&frame.stored, 4, &entry, &NAMING).is_err());
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let mut state = 1_u64;
        let raw: Vec<u8> = (0..10_000)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .collect();
        for codec in [FrameCodec::Lz4, FrameCodec::Zstd(1)] {
            let (frame, entry) = sample(codec, &raw);
            assert_eq!(frame.stored[12], NONE);
            assert_eq!(open(&frame.stored, 3, &entry, &NAMING).unwrap().raw, raw);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (frame, entry) = sample(FrameCodec::Lz4, &[b'a'; 9000]);
        check_damage(&frame.stored, |bad| open(bad, 3, &entry, &NAMING));
    }

    /// The CRC was computed anew: the hash alone tells.
    #[test]
    fn content_that_does_not_have_the_recorded_hash_is_seen() {
        let raw: Vec<u8> = (0..100_u32)
            .flat_map(|n| xxh3_64(&n.to_le_bytes()).to_le_bytes())
            .collect();
        let extents = [extent("base/1/2", 0, u32::try_from(raw.len()).unwrap())];
        let mut frame = PackedFrame::default();
        let mut packer = Packer::new(FrameCodec::Lz4).unwrap();
        packer.pack(&extents, &raw, &mut frame).unwrap();
        let entry = frame.seal(3);
        assert_eq!(open(&frame.stored, 3, &entry, &NAMING).unwrap().raw, raw);
        // It is stored as it is, so that each byte of it is one of the content.
        *frame.stored.last_mut().unwrap() ^= 1;
        let entry = frame.seal(3);
        let error = open(&frame.stored, 3, &entry, &NAMING).unwrap_err();
        assert_eq!(error.code(), crate::error::Code::Damaged);
        assert!(
            error
                .to_string()
                .ends_with("does not have the recorded hash"),
            "{error}"
        );
    }

    #[test]
    fn limits_are_kept() {
        let mut frame = PackedFrame::default();
        let mut packer = Packer::new(FrameCodec::Lz4).unwrap();
        assert!(packer.pack(&[], &[], &mut frame).is_err());
        let raw = vec![1; RAW_LIMIT_BYTES + 1];
        let length = u32::try_from(raw.len()).unwrap();
        assert!(
            packer
                .pack(&[extent("a", 0, length)], &raw, &mut frame)
                .is_err()
        );
        let list = encode_extents(&[extent("a", u64::MAX, 2)]);
        assert!(decode_extents(&list, 2, &NAMING).is_err());
        let list = encode_extents(&[extent("a", 0, 2)]);
        assert!(decode_extents(&list, 3, &NAMING).is_err());
        assert!(decode_extents(&list, 1, &NAMING).is_err());
        assert!(extent_bytes(&extent("a", 0, 1).file) >= list.len() - 1);
    }
}
