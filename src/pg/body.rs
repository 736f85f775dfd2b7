//! The content of a WAL record: block references with images and data, origin, top-level transaction, main data.
//!
//! Everything is borrowed from the record; the walk over the blocks allocates nothing. Knowledge:
//! src/include/access/xlogrecord.h, src/backend/access/transam/xlogreader.c (DecodeXLogRecord), PostgreSQL 13–19.

use super::cursor::{self, Cursor};
use super::record::{HEADER, Record};
use super::version::Version;
use super::xact::Xid;

/// A relation's file: tablespace, database and file number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    /// Oid of the tablespace.
    pub tablespace: u32,
    /// Oid of the database; 0 for shared relations.
    pub database: u32,
    /// File number (relfilenode), which is not the relation's oid.
    pub number: u32,
}

impl Relation {
    /// Size in records.
    pub const SIZE: usize = 12;

    /// Takes a locator off the front.
    #[inline]
    pub fn read(c: &mut Cursor<'_>) -> Option<Self> {
        let fields = c.take(Self::SIZE)?;
        Some(Relation {
            tablespace: cursor::u32_at(fields, 0)?,
            database: cursor::u32_at(fields, 4)?,
            number: cursor::u32_at(fields, 8)?,
        })
    }
}

/// A fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fork(pub u8);

impl Fork {
    /// The rows.
    pub const MAIN: Fork = Fork(0);
    /// The free space map.
    pub const FSM: Fork = Fork(1);
    /// The visibility map.
    pub const VM: Fork = Fork(2);
    /// The fork to which an unlogged relation is reset.
    pub const INIT: Fork = Fork(3);
}

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCodec {
    /// Not at all.
    Plain,
    /// pglz, without its header.
    Pglz,
    /// An LZ4 block.
    Lz4,
    /// A zstd frame.
    Zstd,
}

/// The image of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// The image as it is stored: without its hole, perhaps compressed.
    pub bytes: &'a [u8],
    /// Offset of the hole in the page.
    pub hole_offset: u16,
    /// How long the hole is; 0 without one.
    pub hole_length: u16,
    /// How `bytes` is compressed.
    pub codec: ImageCodec,
    /// Whether replay restores it; otherwise it is there for a consistency check only.
    pub apply: bool,
}

/// A block that a record refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// Number of the reference in the record.
    pub id: u8,
    pub relation: Relation,
    pub fork: Fork,
    pub block: u32,
    /// An image, if there is one.
    pub image: Option<Image<'a>>,
    /// Data of the resource manager about the block.
    pub data: &'a [u8],
}

/// Which block a record refers to, without what it says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// Number of the reference in the record.
    pub id: u8,
    pub relation: Relation,
    pub fork: Fork,
    pub block: u32,
}

/// A record taken apart. Every length in it has been checked; the walk over its blocks allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    /// Replication origin.
    pub origin: Option<u16>,
    /// The top-level transaction, where a subtransaction names it (14+, `wal_level=logical`).
    pub toplevel_xid: Option<Xid>,
    /// Data of the resource manager; cut short if the record is truncated.
    pub main_data: &'a [u8],
    /// Length of the main data; more than is there if the record is truncated.
    pub main_data_len: u32,
    has_images: bool,
    headers: &'a [u8],
    data: &'a [u8],
    version: &'static Version,
    block_size: u32,
}

/// The header of a block reference, and how much data belongs to it.
struct BlockHeader {
    fork_flags: u8,
    data_len: u16,
    relation: Relation,
    block: u32,
}

struct ImageHeader {
    len: u16,
    hole_offset: u16,
    hole_length: u16,
    codec: ImageCodec,
    apply: bool,
}

const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const SAME_REL: u8 = 0x80;
const HAS_HOLE: u8 = 0x01;

const MAX_BLOCK_ID: u8 = 32;
const TOPLEVEL_XID: u8 = 252;
const ORIGIN: u8 = 253;
const DATA_LONG: u8 = 254;
const DATA_SHORT: u8 = 255;

type Invalid = &'static str;
const CUT: Invalid = "a fragment that is cut short";

impl<'a> Body<'a> {
    /// PostgreSQL: src/backend/access/transam/xlogreader.c, DecodeXLogRecord.
    #[inline]
    pub(super) fn read(
        record: &Record<'a>,
        mut found: impl FnMut(Reference),
    ) -> std::result::Result<Self, Invalid> {
        let payload = record.payload();
        let version = record.version;
        let mut c = Cursor::new(payload);
        // Bytes that the record says are left of it, kept or not.
        let mut left = u64::from(record.total_len).saturating_sub(HEADER as u64);
        let mut total = 0u64;
        let mut body = Body {
            origin: None,
            toplevel_xid: None,
            main_data: &[],
            main_data_len: 0,
            has_images: false,
            headers: &[],
            data: &[],
            version,
            block_size: record.block_size,
        };
        let mut last_id = None;
        let mut last_relation = None;
        while left > total {
            let before = c.rest().len();
            let mut last = false;
            match c.u8().ok_or(CUT)? {
                id @ 0..=MAX_BLOCK_ID => {
                    if last_id.is_some_and(|l| id <= l) {
                        return Err("block references out of order");
                    }
                    last_id = Some(id);
                    let mut image_len = 0;
                    let header = block_header(&mut c, &mut last_relation, |c| {
                        image_len = image_header(c, version, record.block_size)?.len;
                        body.has_images = true;
                        Ok(())
                    })?;
                    total += u64::from(header.data_len) + u64::from(image_len);
                    found(Reference {
                        id,
                        relation: header.relation,
                        fork: Fork(header.fork_flags & 0x0F),
                        block: header.block,
                    });
                }
                DATA_SHORT => {
                    body.main_data_len = u32::from(c.u8().ok_or(CUT)?);
                    last = true;
                }
                DATA_LONG => {
                    body.main_data_len = c.u32().ok_or(CUT)?;
                    last = true;
                }
                ORIGIN => body.origin = Some(c.u16().ok_or(CUT)?),
                TOPLEVEL_XID if version.has_toplevel_xid => {
                    body.toplevel_xid = Some(Xid(c.u32().ok_or(CUT)?));
                }
                _ => return Err("an invalid fragment"),
            }
            left = left
                .checked_sub((before - c.rest().len()) as u64)
                .ok_or(CUT)?;
            if last {
                total += u64::from(body.main_data_len);
                break;
            }
        }
        if left != total {
            return Err("an invalid length");
        }
        let headers = payload.len() - c.rest().len();
        body.headers = payload.get(..headers).unwrap_or_default();
        body.data = c.rest();
        // Main data is the last part; of a truncated record perhaps nothing of it is there.
        let main_at = total - u64::from(body.main_data_len);
        body.main_data = usize::try_from(main_at)
            .ok()
            .and_then(|at| body.data.get(at..))
            .unwrap_or_default();
        Ok(body)
    }

    /// Whether a block comes with an image.
    #[inline]
    pub fn has_images(&self) -> bool {
        self.has_images
    }

    /// The blocks that the record refers to, in order.
    #[inline]
    pub fn blocks(&self) -> Blocks<'a> {
        Blocks {
            headers: Cursor::new(self.headers),
            data: self.data,
            last_relation: None,
            version: self.version,
            block_size: self.block_size,
        }
    }
}

/// Walks over the block references of a [`Body`].
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    headers: Cursor<'a>,
    data: &'a [u8],
    last_relation: Option<Relation>,
    version: &'static Version,
    block_size: u32,
}

impl<'a> Blocks<'a> {
    /// The next `len` bytes of data; fewer where a truncated record has fewer.
    fn slice(&mut self, len: u16) -> &'a [u8] {
        let (head, tail) = self.data.split_at(usize::from(len).min(self.data.len()));
        self.data = tail;
        head
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    #[inline]
    fn next(&mut self) -> Option<Block<'a>> {
        loop {
            match self.headers.u8()? {
                id @ 0..=MAX_BLOCK_ID => {
                    // `Body::read` has walked this way before: nothing can be wrong.
                    let mut image = None;
                    let header = block_header(&mut self.headers, &mut self.last_relation, |c| {
                        image = Some(image_header(c, self.version, self.block_size)?);
                        Ok(())
                    })
                    .ok()?;
                    let image = image.map(|i| Image {
                        bytes: self.slice(i.len),
                        hole_offset: i.hole_offset,
                        hole_length: i.hole_length,
                        codec: i.codec,
                        apply: i.apply,
                    });
                    return Some(Block {
                        id,
                        relation: header.relation,
                        fork: Fork(header.fork_flags & 0x0F),
                        block: header.block,
                        image,
                        data: self.slice(header.data_len),
                    });
                }
                ORIGIN => self.headers.u16().map(drop)?,
                TOPLEVEL_XID => self.headers.u32().map(drop)?,
                // Main data is the last header.
                _ => return None,
            }
        }
    }
}

/// Takes the header of a block reference off the front, without its number; `image` takes the header of an image, if there is one. That is
/// not part of what is returned: most have none, and putting it together cost a fifth of decoding.
#[inline(always)]
fn block_header<'a>(
    c: &mut Cursor<'a>,
    last_relation: &mut Option<Relation>,
    image: impl FnOnce(&mut Cursor<'a>) -> std::result::Result<(), Invalid>,
) -> std::result::Result<BlockHeader, Invalid> {
    let fixed = c.take(3).ok_or(CUT)?;
    let fork_flags = cursor::u8_at(fixed, 0).ok_or(CUT)?;
    let data_len = cursor::u16_at(fixed, 1).ok_or(CUT)?;
    if (fork_flags & HAS_DATA != 0) != (data_len > 0) {
        return Err("a block whose data length contradicts its flags");
    }
    if fork_flags & HAS_IMAGE != 0 {
        image(c)?;
    }
    if fork_flags & SAME_REL == 0 {
        *last_relation = Some(Relation::read(c).ok_or(CUT)?);
    }
    Ok(BlockHeader {
        fork_flags,
        data_len,
        relation: last_relation.ok_or("a block of the same relation without one before")?,
        block: c.u32().ok_or(CUT)?,
    })
}

fn image_header(
    c: &mut Cursor<'_>,
    version: &Version,
    block_size: u32,
) -> std::result::Result<ImageHeader, Invalid> {
    let len = c.u16().ok_or(CUT)?;
    let hole_offset = c.u16().ok_or(CUT)?;
    let info = c.u8().ok_or(CUT)?;
    let bits = &version.image;
    let codec = match info & (bits.pglz | bits.lz4 | bits.zstd) {
        0 => ImageCodec::Plain,
        b if b & bits.pglz != 0 => ImageCodec::Pglz,
        b if b & bits.lz4 != 0 => ImageCodec::Lz4,
        _ => ImageCodec::Zstd,
    };
    let has_hole = info & HAS_HOLE != 0;
    let hole_length = match codec {
        ImageCodec::Plain => block_size
            .checked_sub(u32::from(len))
            .and_then(|h| u16::try_from(h).ok())
            .ok_or("an image longer than a block")?,
        _ if has_hole => c.u16().ok_or(CUT)?,
        _ => 0,
    };
    let whole = u32::from(len) == block_size;
    let possible = if has_hole {
        hole_offset != 0 && hole_length != 0 && !whole
    } else {
        hole_offset == 0 && hole_length == 0 && (codec == ImageCodec::Plain) == whole
    };
    if !possible || u32::from(hole_offset) + u32::from(hole_length) > block_size {
        return Err("an image whose hole contradicts its length");
    }
    Ok(ImageHeader {
        len,
        hole_offset,
        hole_length,
        codec,
        apply: info & bits.apply != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::error::Result;
    use crate::pg::craft;
    use crate::pg::lsn::Lsn;
    use crate::pg::record::{DEFAULT_BLOCK_SIZE, RecordHeader};
    use crate::pg::rmgr;
    use crate::pg::version::Major;
    use proptest::prelude::*;

    fn parse(major: Major, bytes: &[u8]) -> Result<Record<'_>> {
        Record::parse(major, DEFAULT_BLOCK_SIZE, Lsn(0x100), Lsn(0x200), bytes)
    }

    #[test]
    fn fragments_come_apart_as_they_were_put_in() {
        let image_header = |len: u16, hole: u16, info: u8| {
            let mut out = len.to_le_bytes().to_vec();
            out.extend_from_slice(&hole.to_le_bytes());
            out.push(info);
            out
        };
        // Block 0 with an image of 100 bytes and a hole, and 3 bytes of data; block 2 of the same relation, rebuilt; origin;
        // top-level transaction; 4 bytes of main data.
        let mut payload = vec![0, 0x30, 3, 0];
        payload.extend(image_header(100, 40, 0x01 | 0x02));
        for part in [1663u32, 5, 16384] {
            payload.extend_from_slice(&part.to_le_bytes());
        }
        payload.extend_from_slice(&7u32.to_le_bytes());
        payload.extend(craft::block_reference(
            2,
            0x80 | 0x40 | 0x02,
            (0, 0, 0),
            9,
            0,
        ));
        payload.extend([ORIGIN, 0x34, 0x12, TOPLEVEL_XID, 1, 2, 0, 0, DATA_SHORT, 4]);
        payload.extend([0xEE; 100]);
        payload.extend([1, 2, 3, 9, 8, 7, 6]);
        let record = craft::header_and(rmgr::HEAP, 0, 77, Lsn(8), &payload);
        let read = parse(Major::V16, &record).unwrap();
        let body = read.body().unwrap();
        assert_eq!(body.origin, Some(0x1234));
        assert_eq!(body.toplevel_xid, Some(Xid(0x201)));
        assert_eq!(body.main_data, [9, 8, 7, 6]);
        let blocks: Vec<_> = body.blocks().collect();
        assert_eq!(blocks.len(), 2);
        let image = blocks[0].image.unwrap();
        assert_eq!(image.bytes.len(), 100);
        assert_eq!(image.hole_offset, 40);
        assert_eq!(image.hole_length, 8092);
        assert!(image.apply && image.codec == ImageCodec::Plain);
        assert_eq!(blocks[0].data, [1, 2, 3]);
        assert_eq!((blocks[1].block, blocks[1].fork), (9, Fork::VM));
        assert_eq!(blocks[1].relation, blocks[0].relation);
        // 13 knows no top-level transaction.
        assert!(parse(Major::V13, &record).unwrap().body().is_err());
    }

    #[test]
    fn image_bits_depend_on_the_major() {
        let compressed = |info: u8| {
            let mut payload = vec![0, 0x10, 0, 0];
            payload.extend_from_slice(&50u16.to_le_bytes());
            payload.extend_from_slice(&0u16.to_le_bytes());
            payload.push(info);
            for part in [1663u32, 5, 16384, 0] {
                payload.extend_from_slice(&part.to_le_bytes());
            }
            payload.extend([0; 50]);
            craft::header_and(rmgr::XLOG, 0xB0, 0, Lsn(0), &payload)
        };
        let image = |major, info| {
            let record = compressed(info);
            let read = parse(major, &record).unwrap();
            let block = read.body().unwrap().blocks().next().unwrap();
            let image = block.image.unwrap();
            (image.codec, image.apply)
        };
        assert_eq!(image(Major::V13, 0x02), (ImageCodec::Pglz, false));
        assert_eq!(image(Major::V14, 0x06), (ImageCodec::Pglz, true));
        assert_eq!(image(Major::V15, 0x06), (ImageCodec::Pglz, true));
        assert_eq!(image(Major::V15, 0x04), (ImageCodec::Pglz, false));
        assert_eq!(image(Major::V17, 0x0A), (ImageCodec::Lz4, true));
        assert_eq!(image(Major::V18, 0x12), (ImageCodec::Zstd, true));
    }

    #[test]
    fn what_the_server_refuses_is_damaged() {
        let block = |id, flags| craft::block_reference(id, flags, (1, 2, 3), 0, 0);
        let cases: [(Vec<u8>, &str); 9] = [
            (vec![40], "an invalid fragment"),
            (vec![255], "cut short"),
            (vec![255, 9, 1], "an invalid length"),
            (vec![255, 1, 1, 1], "an invalid length"),
            (vec![254, 0xFF, 0xFF, 0xFF, 0xFF], "an invalid length"),
            (vec![0, 0x20, 0, 0], "contradicts its flags"),
            (vec![0, 0, 1, 0], "contradicts its flags"),
            (block(0, 0x80), "without one before"),
            ([block(1, 0), block(1, 0)].concat(), "out of order"),
        ];
        for (payload, what) in cases {
            let record = craft::header_and(rmgr::HEAP, 0, 0, Lsn(0), &payload);
            let error = parse(Major::V17, &record).unwrap().body().unwrap_err();
            assert_eq!(error.code(), Code::Damaged);
            assert!(error.to_string().contains(what), "{error}: {what}");
        }
    }

    #[test]
    fn of_a_truncated_record_the_blocks_are_all_there() {
        let mut payload = craft::block_reference(0, 0, (1, 2, 3), 4, 5);
        payload.extend([254, 0x00, 0x10, 0, 0]);
        payload.extend([1; 5]);
        payload.extend([2; 0x1000]);
        let record = craft::header_and(rmgr::HEAP, 0, 0, Lsn(0), &payload);
        let header = RecordHeader::read(&record).unwrap();
        let part = Record::checked(
            &header,
            &record[..80],
            (Lsn(0), Lsn(8)),
            Major::V17.version(),
            8192,
        );
        assert!(part.is_truncated());
        let body = part.body().unwrap();
        assert_eq!(body.main_data_len, 0x1000);
        assert!(!body.main_data.is_empty() && body.main_data.len() < 80);
        assert_eq!(body.blocks().next().unwrap().data, [1; 5]);
    }

    proptest! {
        /// Whatever a payload holds: taking it apart ends, and both walks see the same blocks.
        #[test]
        fn any_payload_is_read_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..200), small in any::<bool>(), major in 0usize..7) {
            let payload: Vec<u8> = if small { payload.iter().map(|b| match b % 7 { 0 => 255, 1 => 253, 2 => 0x80, 3 => 0x10, _ => b % 4 }).collect() } else { payload };
            let record = craft::header_and(rmgr::HEAP, 0, 0, Lsn(0), &payload);
            let read = parse(Major::ALL[major], &record).unwrap();
            if let Ok(body) = read.body() {
                let used: usize = body.blocks().map(|b| b.data.len() + b.image.map_or(0, |i| i.bytes.len())).sum();
                prop_assert_eq!(used + body.main_data.len() + body.headers.len(), payload.len());
            }
        }
    }
}
