//! A pack: frames one after another, their page hashes, a directory and a trailer (format, section 8.3).
//!
//! Written in one pass; read from the trailer, then frame by frame in any order.

use std::io::{self, Write};

use super::filekey::Naming;
use super::frame::{self, Frame, FrameEntry, HEADER_BYTES, PackedFrame, RAW_LIMIT_BYTES};
use crate::err;
use crate::error::Result;
use crate::repo::id::PartName;
use crate::repo::scope::Tag;
use crate::repo::varint::{self, Reader};
use crate::store::Object;

/// Bytes before the first frame (or the first block of a layer).
pub const HEAD_BYTES: usize = 72;
const TRAILER_BYTES: usize = 64;
const DIRECTORY_LIMIT_BYTES: u64 = 4 << 20;
/// Page hashes of a pack at most; a writer closes it at half of that.
const HASHES_LIMIT_BYTES: u64 = 4 << 20;
const MAGIC: &[u8; 8] = b"PITRPAK1";
const TRAILER_MAGIC: &[u8; 4] = b"PPAK";
const VERSION: u32 = 1;
const BLOCK_SIZE: u32 = 8192;
/// Greatest stored length of a frame.
const STORED_LIMIT_BYTES: usize = HEADER_BYTES + frame::EXTENT_LIST_LIMIT_BYTES + RAW_LIMIT_BYTES;

/// Composes the head of a pack or a layer, which binds the object to its key.
pub fn head(magic: &[u8; 8], part: &PartName, tag: Tag) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES);
    out.extend_from_slice(magic);
    out.extend_from_slice(&part.number.to_le_bytes());
    out.extend_from_slice(&tag.class.to_le_bytes());
    out.extend_from_slice(&tag.number.to_le_bytes());
    out.extend_from_slice(part.id.to_string().as_bytes());
    out.resize(HEAD_BYTES, 0);
    out
}

/// The facts that identify a finished pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackSummary {
    /// Stored length.
    pub length: u64,
    pub frames: u32,
    pub raw_bytes: u64,
    /// BLAKE3 of directory and trailer; layers hold it.
    pub hash: [u8; 32],
}

/// Appends frames to a sink.
pub struct PackWriter<W: Write> {
    sink: W,
    head_crc: u32,
    at: u64,
    frames: u32,
    raw_bytes: u64,
    entries: Vec<u8>,
    page_hashes: Vec<u8>,
}

impl<W: Write> PackWriter<W> {
    /// Begins the pack `part`.
    pub fn new(mut sink: W, part: &PartName, tag: Tag) -> io::Result<Self> {
        let head = head(MAGIC, part, tag);
        sink.write_all(&head)?;
        Ok(PackWriter {
            sink,
            head_crc: crc32c::crc32c(&head),
            at: HEAD_BYTES as u64,
            frames: 0,
            raw_bytes: 0,
            entries: Vec::new(),
            page_hashes: Vec::new(),
        })
    }

    /// Seals and appends one frame.
    pub fn append(&mut self, frame: &mut PackedFrame) -> io::Result<()> {
        let entry = frame.seal(self.frames);
        self.sink.write_all(&frame.stored)?;
        varint::put(&mut self.entries, u64::from(entry.stored_bytes));
        varint::put(&mut self.entries, u64::from(entry.raw_bytes));
        varint::put(&mut self.entries, u64::from(entry.page_hashes));
        self.entries.extend_from_slice(&entry.hash);
        self.entries.extend_from_slice(&entry.crc.to_le_bytes());
        for hash in &frame.page_hashes {
            self.page_hashes.extend_from_slice(&hash.to_le_bytes());
        }
        self.at += u64::from(entry.stored_bytes);
        self.raw_bytes += u64::from(entry.raw_bytes);
        self.frames += 1;
        Ok(())
    }

    /// Returns the sink.
    pub fn sink_mut(&mut self) -> &mut W {
        &mut self.sink
    }

    /// Whether the pack should take no more: it has `target_bytes`, or its hashes or directory grow large.
    pub fn is_full(&self, target_bytes: u64) -> bool {
        self.at >= target_bytes
            || self.page_hashes.len() as u64 >= HASHES_LIMIT_BYTES / 2
            || self.entries.len() >= 1 << 20
    }

    /// Writes page hashes, directory and trailer, and returns the sink.
    pub fn finish(mut self) -> io::Result<(W, PackSummary)> {
        let mut end = Vec::with_capacity(self.entries.len() + TRAILER_BYTES + 10);
        varint::put(&mut end, u64::from(self.frames));
        end.extend_from_slice(&self.entries);
        let directory_bytes = end.len();
        let directory_at = self.at + self.page_hashes.len() as u64;
        let length = directory_at + (directory_bytes + TRAILER_BYTES) as u64;
        let directory_length = u32::try_from(directory_bytes)
            .ok()
            .filter(|n| u64::from(*n) <= DIRECTORY_LIMIT_BYTES)
            .ok_or_else(|| io::Error::other("directory of a pack too large"))?;
        end.extend_from_slice(&self.at.to_le_bytes());
        end.extend_from_slice(&directory_at.to_le_bytes());
        end.extend_from_slice(&directory_length.to_le_bytes());
        end.extend_from_slice(&crc32c::crc32c(&self.page_hashes).to_le_bytes());
        end.extend_from_slice(&BLOCK_SIZE.to_le_bytes());
        end.extend_from_slice(&self.frames.to_le_bytes());
        end.extend_from_slice(&length.to_le_bytes());
        end.extend_from_slice(&VERSION.to_le_bytes());
        end.extend_from_slice(&0_u32.to_le_bytes());
        end.extend_from_slice(&self.head_crc.to_le_bytes());
        let crc = crc32c::crc32c(&end);
        end.extend_from_slice(&crc.to_le_bytes());
        end.extend_from_slice(&0_u32.to_le_bytes());
        end.extend_from_slice(TRAILER_MAGIC);
        self.sink.write_all(&self.page_hashes)?;
        self.sink.write_all(&end)?;
        let summary = PackSummary {
            length,
            frames: self.frames,
            raw_bytes: self.raw_bytes,
            hash: blake3::hash(&end).into(),
        };
        Ok((self.sink, summary))
    }
}

struct Trailer {
    hashes_at: u64,
    directory_at: u64,
    directory_bytes: usize,
    hashes_crc: u32,
    frames: u32,
    head_crc: u32,
    /// Covers the directory and the trailer before it.
    crc: u32,
}

impl Trailer {
    fn decode(bytes: &[u8], object_bytes: u64) -> Result<Trailer> {
        let mut r = Reader::new(bytes, "trailer of a pack");
        let (hashes_at, directory_at) = (r.u64()?, r.u64()?);
        let (directory_length, hashes_crc) = (r.u32()?, r.u32()?);
        let (block_size, frames) = (r.u32()?, r.u32()?);
        let length = r.u64()?;
        let (version, flags) = (r.u32()?, r.u32()?);
        let (head_crc, crc, zero) = (r.u32()?, r.u32()?, r.u32()?);
        if r.bytes(4)? != TRAILER_MAGIC || zero != 0 {
            return Err(err!(Damaged, "the pack has no trailer"));
        }
        if version != VERSION || flags != 0 || block_size != BLOCK_SIZE {
            return Err(err!(
                Unsupported,
                "pack version {version} with flags {flags} and blocks of {block_size}"
            )
            .hint("Use the version of pitr that wrote it, or a newer one."));
        }
        let end = directory_at.checked_add(u64::from(directory_length) + TRAILER_BYTES as u64);
        if end != Some(object_bytes)
            || length != object_bytes
            || u64::from(directory_length) > DIRECTORY_LIMIT_BYTES
            || hashes_at > directory_at
        {
            return Err(err!(
                Damaged,
                "the pack has {object_bytes} bytes, its trailer says {length}"
            ));
        }
        Ok(Trailer {
            hashes_at,
            directory_at,
            directory_bytes: usize::try_from(directory_length)
                .map_err(|_| err!(Damaged, "the directory is too large"))?,
            hashes_crc,
            frames,
            head_crc,
            crc,
        })
    }
}

/// A pack open for reading: head, directory and trailer were checked.
pub struct PackReader {
    object: Box<dyn Object>,
    entries: Vec<(u64, FrameEntry)>,
    hashes_at: u64,
    hashes_crc: u32,
    hash: [u8; 32],
    naming: Naming,
}

impl PackReader {
    /// Opens the object that was found as pack `part` of this cluster.
    ///
    /// # Errors
    /// `Damaged` when anything fails its check or the object is another pack; `Unsupported` for a newer version.
    pub fn open(
        object: Box<dyn Object>,
        part: &PartName,
        tag: Tag,
        naming: impl Into<Naming>,
    ) -> Result<PackReader> {
        let size = object.size_bytes();
        let trailer_at = size
            .checked_sub(TRAILER_BYTES as u64)
            .filter(|at| *at >= HEAD_BYTES as u64)
            .ok_or_else(|| err!(Damaged, "a pack of {size} bytes is too short"))?;
        let mut bytes = [0; TRAILER_BYTES];
        object.read_at(&mut bytes, trailer_at)?;
        let trailer = Trailer::decode(&bytes, size)?;
        let mut end = vec![0; trailer.directory_bytes + TRAILER_BYTES];
        object.read_at(&mut end, trailer.directory_at)?;
        let covered = end.get(..end.len() - 12).unwrap_or_default();
        if crc32c::crc32c(covered) != trailer.crc {
            return Err(err!(
                Damaged,
                "the checksum of the pack's directory is wrong"
            ));
        }
        let mut found = [0; HEAD_BYTES];
        object.read_at(&mut found, 0)?;
        if found[..] != head(MAGIC, part, tag) || crc32c::crc32c(&found) != trailer.head_crc {
            return Err(err!(Damaged, "the object is not the pack of its key"));
        }
        let directory = end.get(..trailer.directory_bytes).unwrap_or_default();
        let entries = read_directory(directory, &trailer)?;
        Ok(PackReader {
            object,
            entries,
            hashes_at: trailer.hashes_at,
            hashes_crc: trailer.hashes_crc,
            hash: blake3::hash(&end).into(),
            naming: naming.into(),
        })
    }

    /// BLAKE3 of directory and trailer: what layers hold of it.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// How keys and paths lead to one another.
    pub fn naming(&self) -> &Naming {
        &self.naming
    }

    /// Stored length of the object.
    pub fn stored_bytes(&self) -> u64 {
        self.object.size_bytes()
    }

    /// Makes the pack durable: its writer may have died before it did.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn settle(&self) -> Result<()> {
        self.object.settle()
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Returns the directory's entry of a frame: its raw length is known before it is read.
    pub fn entry(&self, number: u32) -> Option<&FrameEntry> {
        self.entries.get(number as usize).map(|(_, entry)| entry)
    }

    /// Returns the bytes of a frame as they are stored, unchecked, and their place in the object.
    ///
    /// # Errors
    /// `Damaged` when there is no such frame; what the store says.
    pub fn stored_frame(&self, number: u32) -> Result<(u64, Vec<u8>)> {
        let (at, entry) = self
            .entries
            .get(number as usize)
            .ok_or_else(|| err!(Damaged, "the pack has no frame {number}"))?;
        let mut stored = vec![0; entry.stored_bytes as usize];
        self.object.read_at(&mut stored, *at)?;
        Ok((*at, stored))
    }

    /// Reads and checks one frame.
    ///
    /// # Errors
    /// `Damaged` when there is no such frame or it fails a check.
    pub fn frame(&self, number: u32) -> Result<Frame> {
        let (_, stored) = self.stored_frame(number)?;
        let entry = self.entry(number);
        let entry = entry.ok_or_else(|| err!(Damaged, "the pack has no frame {number}"))?;
        frame::open(&stored, number, entry, &self.naming)
    }

    /// Reads all page hashes, frame by frame in order, and checks their CRC.
    pub fn page_hashes(&self) -> Result<Vec<u64>> {
        let count: usize = self
            .entries
            .iter()
            .map(|(_, entry)| entry.page_hashes as usize)
            .sum();
        let mut bytes = vec![0; count * 8];
        self.object.read_at(&mut bytes, self.hashes_at)?;
        if crc32c::crc32c(&bytes) != self.hashes_crc {
            return Err(err!(Damaged, "the checksum of the page hashes is wrong"));
        }
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|w| u64::from_le_bytes(*w)).collect())
    }
}

fn read_directory(bytes: &[u8], trailer: &Trailer) -> Result<Vec<(u64, FrameEntry)>> {
    let mut r = Reader::new(bytes, "directory of a pack");
    let count = r.count(23)?;
    let mut entries = Vec::with_capacity(count);
    let mut at = HEAD_BYTES as u64;
    let mut hashes = 0_u64;
    for _ in 0..count {
        let entry = FrameEntry {
            stored_bytes: r.number()?,
            raw_bytes: r.number()?,
            page_hashes: r.number()?,
            hash: r.array()?,
            crc: r.u32()?,
        };
        let raw = entry.raw_bytes as usize;
        let stored = entry.stored_bytes as usize;
        if raw == 0
            || raw > RAW_LIMIT_BYTES
            || stored <= HEADER_BYTES
            || stored > STORED_LIMIT_BYTES
            || entry.page_hashes == 0
            || entry.page_hashes > entry.raw_bytes
        {
            return Err(r.damaged());
        }
        entries.push((at, entry));
        at += u64::from(entry.stored_bytes);
        hashes += u64::from(entry.page_hashes) * 8;
    }
    if hashes > HASHES_LIMIT_BYTES {
        return Err(err!(
            Damaged,
            "the pack says it has {hashes} bytes of page hashes, at most {HASHES_LIMIT_BYTES} are allowed"
        ));
    }
    let fits = at == trailer.hashes_at && at + hashes == trailer.directory_at;
    if !fits || count != trailer.frames as usize {
        return Err(r.damaged());
    }
    r.finish()?;
    Ok(entries)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::snapshot::filekey::tests::NAMING;
    use crate::snapshot::frame::tests::{extent, text};
    use crate::snapshot::frame::{FrameCodec, Packer, check_pages};

    /// An object in memory.
    pub(in crate::snapshot) struct Bytes(pub(in crate::snapshot) Vec<u8>);

    impl Object for Bytes {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
            let at = usize::try_from(offset).unwrap();
            let Some(found) = at
                .checked_add(buffer.len())
                .and_then(|end| self.0.get(at..end))
            else {
                return Err(err!(Damaged, "the object ends before"));
            };
            buffer.copy_from_slice(found);
            Ok(())
        }

        fn settle(&self) -> Result<()> {
            Ok(())
        }
    }

    /// Requires that an object is refused with any of its bits flipped, and cut anywhere.
    pub(in crate::snapshot) fn check_damage<T>(bytes: &[u8], read: impl Fn(&[u8]) -> Result<T>) {
        for i in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[i / 8] ^= 1 << (i % 8);
            assert!(read(&bad).is_err(), "bit {i}");
        }
        for n in 0..bytes.len() {
            assert!(read(&bytes[..n]).is_err(), "cut at {n}");
        }
    }

    fn part(text: &str) -> PartName {
        text.parse().unwrap()
    }

    fn sample(content: &[Vec<u8>]) -> (Vec<u8>, PackSummary) {
        let name = part("20261120T064049Z-full/000002");
        let mut writer = PackWriter::new(Vec::new(), &name, Tag::cluster(77)).unwrap();
        let mut packer = Packer::new(FrameCodec::Lz4).unwrap();
        let mut frame = PackedFrame::default();
        for (i, raw) in content.iter().enumerate() {
            let length = u32::try_from(raw.len()).unwrap();
            let extents = [extent("base/1/2", i as u64 * 8192, length)];
            packer.pack(&extents, raw, &mut frame).unwrap();
            writer.append(&mut frame).unwrap();
        }
        writer.finish().unwrap()
    }

    fn open(bytes: &[u8]) -> Result<PackReader> {
        let name = part("20261120T064049Z-full/000002");
        PackReader::open(
            Box::new(Bytes(bytes.to_vec())),
            &name,
            Tag::cluster(77),
            NAMING,
        )
    }

    /// Reads everything there is.
    fn read_all(bytes: &[u8], hash: &[u8; 32]) -> Result<Vec<Frame>> {
        let pack = open(bytes)?;
        if pack.hash() != hash {
            return Err(err!(Damaged, "another pack"));
        }
        let mut hashes = pack.page_hashes()?;
        let mut frames = Vec::new();
        for n in 0..pack.frame_count() {
            let frame = pack.frame(n)?;
            let own = hashes.drain(..pack.entry(n).unwrap().page_hashes as usize);
            check_pages(&frame, own.as_slice())?;
            drop(own);
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn a_pack_comes_back() {
        let content = [text(100), text(8192), text(100_000)];
        let (bytes, summary) = sample(&content);
        assert_eq!(summary.length, bytes.len() as u64);
        assert_eq!((summary.frames, summary.raw_bytes), (3, 108_292));
        let frames = read_all(&bytes, &summary.hash).unwrap();
        for (frame, raw) in frames.iter().zip(&content) {
            assert_eq!(frame.raw, *raw);
        }
        assert!(open(&bytes).unwrap().frame(3).is_err());
        let (bytes, summary) = sample(&[]);
        assert!(read_all(&bytes, &summary.hash).unwrap().is_empty());
    }

    #[test]
    fn z04_page_hashes_without_measure_are_refused_before_memory_is_allocated() {
        let frames = 2_u32;
        // A sparse object could claim so many: gigabytes of zeros.
        let page_hashes = 300_000_u32;
        let mut directory = Vec::new();
        varint::put(&mut directory, u64::from(frames));
        for _ in 0..frames {
            for number in [HEADER_BYTES as u64 + 10, 4 << 20, u64::from(page_hashes)] {
                varint::put(&mut directory, number);
            }
            directory.extend_from_slice(&[0; 20]);
        }
        let hashes_at = HEAD_BYTES as u64 + u64::from(frames) * (HEADER_BYTES as u64 + 10);
        let trailer = |page_hashes: u32| Trailer {
            hashes_at,
            directory_at: hashes_at + u64::from(frames * page_hashes) * 8,
            directory_bytes: directory.len(),
            hashes_crc: 0,
            frames,
            head_crc: 0,
            crc: 0,
        };
        let error = read_directory(&directory, &trailer(page_hashes)).unwrap_err();
        assert!(
            error.to_string().contains("4800000 bytes of page hashes"),
            "{error}"
        );
    }

    #[test]
    fn a_pack_under_another_key_is_damage() {
        let (bytes, _) = sample(&[text(100)]);
        for (name, identifier) in [
            ("20261120T064049Z-full/000001", 77),
            ("20261120T064048Z-full/000002", 77),
            ("20261120T064049Z-full/000002", 78),
        ] {
            let object = Box::new(Bytes(bytes.clone()));
            assert!(
                PackReader::open(object, &part(name), Tag::cluster(identifier), NAMING).is_err()
            );
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (bytes, summary) = sample(&[vec![7; 9000], b"abc".to_vec()]);
        check_damage(&bytes, |bad| read_all(bad, &summary.hash));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(open(&longer).is_err());
    }
}
