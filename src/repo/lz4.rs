//! The LZ4 frame of a container's body: written with one buffer and one write for each piece, read straight into the reader's buffer.
//!
//! Two ways to make a block: the general one (`lz4_flex`), and the one that knows WAL (`alike`), which takes less than half of the processor
//! where WAL consists of small records and is of no use elsewhere. A sample of every few MiB is compressed both ways and decides.
//! Blocks are independent: damage stays where it is, and any may be made either way.
//!
//! Knowledge: lz4_Frame_format.md.

use std::io::{self, Read, Write};

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use super::wal_aware_lz4::{self, Alike};

/// Magic, version 1 with independent blocks and no checksums, blocks of at most 256 KiB, checksum of these two.
pub const FRAME_HEADER: [u8; 7] = [0x04, 0x22, 0x4D, 0x18, 0x60, 0x50, 0xFB];
const END_MARK: [u8; 4] = [0; 4];
/// Set in a block's length when it is stored as it is.
const STORED: u32 = 1 << 31;
/// The largest block.
const BLOCK: usize = 256 << 10;
/// The general way is faster, and loses little, when its window stays in the processor's nearest memory.
const GENERAL_BLOCK: usize = 64 << 10;
/// Blocks between two samples.
const SAMPLE_EVERY: u32 = 16;

/// How blocks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    General,
    Alike,
}

/// Writes one frame to a sink.
pub struct FrameWriter<W: Write> {
    sink: W,
    /// Raw bytes that do not fill a block yet.
    pending: Vec<u8>,
    /// Bytes that are written next: blocks with their lengths.
    out: Vec<u8>,
    filled: usize,
    table: CompressTable,
    alike: Option<Alike>,
    /// Raw bytes to which a block unpacks again.
    back: Vec<u8>,
    /// The compressor that knows WAL writes a byte wrong.
    #[cfg(test)]
    lies: bool,
    way: Way,
    /// Blocks until the next sample.
    settled: u32,
}

impl<W: Write> FrameWriter<W> {
    /// Begins a frame; `is_wal` when the content is whole pages of WAL, as a rule.
    pub fn new(sink: W, is_wal: bool) -> Self {
        let mut writer = FrameWriter {
            sink,
            pending: Vec::new(),
            out: Vec::new(),
            filled: 0,
            table: CompressTable::large(),
            alike: is_wal.then(Alike::default),
            back: Vec::new(),
            #[cfg(test)]
            lies: false,
            way: Way::General,
            settled: 0,
        };
        writer.out.extend_from_slice(&FRAME_HEADER);
        writer.filled = FRAME_HEADER.len();
        writer
    }

    /// Appends raw content.
    pub fn write(&mut self, mut raw: &[u8]) -> io::Result<()> {
        if !self.pending.is_empty() {
            let (head, rest) = raw.split_at(raw.len().min(BLOCK - self.pending.len()));
            self.pending.extend_from_slice(head);
            raw = rest;
            if self.pending.len() < BLOCK {
                return Ok(());
            }
            let block = std::mem::take(&mut self.pending);
            self.block(&block)?;
            self.pending = block;
            self.pending.clear();
        }
        let blocks = raw.chunks_exact(BLOCK);
        self.pending.extend_from_slice(blocks.remainder());
        for block in blocks {
            self.block(block)?;
        }
        Ok(())
    }

    /// Ends the frame and returns the sink.
    pub fn finish(mut self) -> io::Result<W> {
        let block = std::mem::take(&mut self.pending);
        if !block.is_empty() {
            self.compress(&block)?;
        }
        self.put(&END_MARK);
        self.flush()?;
        Ok(self.sink)
    }

    fn block(&mut self, raw: &[u8]) -> io::Result<()> {
        self.compress(raw)?;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink
            .write_all(self.out.get(..self.filled).unwrap_or_default())?;
        self.filled = 0;
        Ok(())
    }

    fn compress(&mut self, raw: &[u8]) -> io::Result<()> {
        self.choose(raw)?;
        if self.way == Way::Alike {
            let before = self.filled;
            let length = self.one(raw, Way::Alike)?;
            // Other WAL than that of the sample: look again.
            if length > raw.len() / 4 * 3 {
                self.settled = 0;
            }
            if self.comes_back(before, raw) {
                return Ok(());
            }
            self.filled = before;
            self.way = Way::General;
        }
        for piece in raw.chunks(GENERAL_BLOCK) {
            self.one(piece, Way::General)?;
        }
        Ok(())
    }

    /// Whether the block written at `at` unpacks to `raw`. Nobody else uses this compressor, and a fault in it would show only on the day of a
    /// restore; a look at every block costs a tenth of what push takes.
    fn comes_back(&mut self, at: usize, raw: &[u8]) -> bool {
        let Some((head, packed)) = self
            .out
            .get(at..self.filled)
            .and_then(<[u8]>::split_first_chunk)
        else {
            return false;
        };
        if u32::from_le_bytes(*head) & STORED != 0 {
            return packed == raw;
        }
        self.back.resize(BLOCK, 0);
        let unpacked = decompress_into(packed, &mut self.back);
        unpacked.is_ok_and(|n| self.back.get(..n) == Some(raw))
    }

    /// Compresses a sample both ways now and then. The way that knows WAL may cost an eighth more bytes.
    fn choose(&mut self, raw: &[u8]) -> io::Result<()> {
        if self.alike.is_none() {
            return Ok(());
        }
        if self.settled > 0 {
            self.settled -= 1;
            return Ok(());
        }
        let sample = raw.get(..GENERAL_BLOCK).unwrap_or(raw);
        let before = self.filled;
        let general = self.one(sample, Way::General)?;
        self.filled = before;
        let alike = self.one(sample, Way::Alike)?;
        self.filled = before;
        self.way = if alike <= general + general / 8 {
            Way::Alike
        } else {
            Way::General
        };
        self.settled = SAMPLE_EVERY;
        Ok(())
    }

    /// Adds one block to what is written next; gives its length.
    fn one(&mut self, raw: &[u8], way: Way) -> io::Result<usize> {
        let at = self.filled + 4;
        let room = get_maximum_output_size(raw.len()).max(wal_aware_lz4::room(raw.len()));
        if self.out.len() < at + room {
            self.out.resize(at + room, 0);
        }
        let out = self.out.get_mut(at..).unwrap_or_default();
        let length = match (way, &mut self.alike) {
            #[cfg(test)]
            (Way::Alike, Some(alike)) if self.lies => {
                alike.compress(raw, out).inspect(|n| out[n - 1] ^= 1)
            }
            (Way::Alike, Some(alike)) => alike.compress(raw, out),
            _ => Some(
                compress_into_with_table(raw, out, &mut self.table).map_err(io::Error::other)?,
            ),
        };
        let (length, mark) = match length {
            Some(length) if length < raw.len() => (length, 0),
            _ => {
                let stored = out.get_mut(..raw.len());
                let stored = stored.ok_or_else(|| io::Error::other("a block has no room"))?;
                stored.copy_from_slice(raw);
                (raw.len(), STORED)
            }
        };
        let head = u32::try_from(length).map_err(io::Error::other)? | mark;
        self.put(&head.to_le_bytes());
        self.filled += length;
        Ok(length)
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        if self.out.len() < end {
            self.out.resize(end, 0);
        }
        if let Some(place) = self.out.get_mut(self.filled..end) {
            place.copy_from_slice(bytes);
        }
        self.filled = end;
    }
}

/// Reads a frame that begins with [`FRAME_HEADER`]; frames of other writers are for `lz4_flex`.
pub struct FrameReader<R: Read> {
    source: R,
    /// Bytes that were read from the source, up to `filled`; the next byte wanted is at `from`.
    input: Vec<u8>,
    from: usize,
    filled: usize,
    /// A block that did not fit where it was wanted, and what of it was handed out.
    block: Vec<u8>,
    handed: usize,
    /// Length of the last block: the next one rarely is longer.
    last: usize,
    is_ended: bool,
}

impl<R: Read> FrameReader<R> {
    /// Begins behind the frame's header, where `source` stands.
    pub fn new(source: R) -> Self {
        FrameReader {
            source,
            input: vec![0; BLOCK + 8],
            from: 0,
            filled: 0,
            block: Vec::new(),
            handed: 0,
            last: BLOCK,
            is_ended: false,
        }
    }

    /// Returns the source.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Reads on into `out`: 0 at the frame's end. A `out` of 256 KiB or a multiple spares a copy.
    pub fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|r| !r.is_empty()) {
            let waiting = self.block.get(self.handed..).unwrap_or_default();
            if !waiting.is_empty() {
                let n = waiting.len().min(rest.len());
                copy(waiting, rest, n)?;
                self.handed += n;
                done += n;
                continue;
            }
            if self.is_ended || (done > 0 && rest.len() < self.last) {
                break;
            }
            done += self.next(rest)?;
        }
        Ok(done)
    }

    /// Decodes the next block into `out`, or aside where `out` may be too small for it; gives what is in `out`.
    fn next(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let head = self.want(4)?;
        let head = head.first_chunk().map_or(0, |h| u32::from_le_bytes(*h));
        self.from += 4;
        if head == 0 {
            self.is_ended = true;
            return Ok(0);
        }
        let length = usize::try_from(head & !STORED).map_err(io::Error::other)?;
        if length > BLOCK {
            return Err(invalid());
        }
        self.want(length)?;
        let packed = self.input.get(self.from..self.from + length);
        let packed = packed.unwrap_or_default();
        self.from += length;
        let fits = out.len() >= self.last.max(length);
        let limit = out.len().min(BLOCK);
        let place = if fits {
            out.get_mut(..limit).unwrap_or_default()
        } else {
            self.block.resize(BLOCK, 0);
            self.block.as_mut_slice()
        };
        let raw = unpack(packed, head & STORED != 0, place);
        let raw = match raw {
            // A longer block than the last; it is decoded once more.
            Err(_) if fits && limit < BLOCK => {
                self.block.resize(BLOCK, 0);
                let raw = unpack(packed, head & STORED != 0, &mut self.block)?;
                self.aside(raw);
                return Ok(0);
            }
            other => other?,
        };
        self.last = raw;
        if fits {
            return Ok(raw);
        }
        self.aside(raw);
        Ok(0)
    }

    fn aside(&mut self, raw: usize) {
        self.block.truncate(raw);
        self.handed = 0;
        self.last = raw;
    }

    /// The next `n` bytes of the source, in one piece; they stay wanted.
    fn want(&mut self, n: usize) -> io::Result<&[u8]> {
        if self.filled - self.from < n {
            self.input.copy_within(self.from..self.filled, 0);
            self.filled -= self.from;
            self.from = 0;
            while self.filled < n {
                let room = self.input.get_mut(self.filled..).unwrap_or_default();
                match self.source.read(room) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => self.filled += read,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        self.input.get(self.from..self.from + n).ok_or_else(invalid)
    }
}

fn unpack(packed: &[u8], is_stored: bool, place: &mut [u8]) -> io::Result<usize> {
    if is_stored {
        copy(packed, place, packed.len())?;
        return Ok(packed.len());
    }
    decompress_into(packed, place).map_err(io::Error::other)
}

fn copy(from: &[u8], to: &mut [u8], n: usize) -> io::Result<()> {
    let (from, to) = from.get(..n).zip(to.get_mut(..n)).ok_or_else(invalid)?;
    to.copy_from_slice(from);
    Ok(())
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::Craft;
    use crate::pg::version::Major;

    fn frame(raw: &[u8], is_wal: bool, step: usize) -> Vec<u8> {
        let mut writer = FrameWriter::new(Vec::new(), is_wal);
        for piece in raw.chunks(step.max(1)) {
            writer.write(piece).unwrap();
        }
        let frame = writer.finish().unwrap();
        let mut back = Vec::new();
        let mut decoder = lz4_flex::frame::FrameDecoder::new(&frame[..]);
        decoder.read_to_end(&mut back).unwrap();
        assert!(back == raw, "{} bytes came back other", raw.len());
        for room in [BLOCK, 2 * BLOCK, GENERAL_BLOCK + 1, 100_000] {
            let mut reader = FrameReader::new(&frame[FRAME_HEADER.len()..]);
            let mut buffer = vec![0; room];
            let mut back = Vec::new();
            loop {
                let n = reader.read(&mut buffer).unwrap();
                if n == 0 {
                    break;
                }
                back.extend_from_slice(&buffer[..n]);
            }
            assert!(back == raw, "{} bytes came back other", raw.len());
        }
        frame
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    fn small_records(length: usize) -> Vec<u8> {
        let mut craft = Craft::new(Major::V17);
        let noise = noise(64);
        let mut n = 0_u32;
        while craft.bytes.len() < length {
            let mut payload = vec![0xFF, 44];
            payload.extend_from_slice(&noise[..40]);
            payload.extend_from_slice(&(n * 7919).to_le_bytes());
            craft.record(10, 0x40, 700 + n / 5, &payload);
            n += 1;
        }
        craft.bytes.truncate(length);
        craft.bytes
    }

    #[test]
    fn contents_of_all_lengths_come_back_in_any_pieces() {
        let wal = small_records(3 * BLOCK + 8192);
        for length in [0, 1, 8192, BLOCK - 1, BLOCK, BLOCK + 1, wal.len()] {
            for step in [length, 8192, 1000] {
                for is_wal in [true, false] {
                    frame(&wal[..length], is_wal, step);
                }
            }
        }
        assert_eq!(frame(&[], true, 1).len(), FRAME_HEADER.len() + 4);
    }

    #[test]
    fn a_block_that_does_not_unpack_to_what_it_was_is_made_the_general_way() {
        let wal = small_records(2 * BLOCK);
        let mut writer = FrameWriter::new(Vec::new(), true);
        writer.lies = true;
        writer.write(&wal).unwrap();
        assert_eq!(writer.way, Way::General);
        let frame = writer.finish().unwrap();
        let mut back = Vec::new();
        let mut decoder = lz4_flex::frame::FrameDecoder::new(&frame[..]);
        decoder.read_to_end(&mut back).unwrap();
        assert!(back == wal);
    }

    #[test]
    fn frames_that_are_cut_or_lie_are_errors() {
        let good = frame(&small_records(2 * BLOCK), true, BLOCK);
        let read = |bytes: &[u8]| {
            let mut reader = FrameReader::new(&bytes[FRAME_HEADER.len()..]);
            let mut buffer = vec![0; BLOCK];
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(e) => return Err(e),
                }
            }
        };
        read(&good).unwrap();
        for length in [7, 8, 11, 100, good.len() - 4, good.len() - 1] {
            read(&good[..length]).unwrap_err();
        }
        let mut long = good.clone();
        long[7..11].copy_from_slice(&u32::MAX.to_le_bytes());
        read(&long).unwrap_err();
        // A block of 300 KiB, above what the header says.
        let bomb = lz4_flex::block::compress(&vec![0; 300 << 10]);
        let mut frame = FRAME_HEADER.to_vec();
        frame.extend_from_slice(&u32::try_from(bomb.len()).unwrap().to_le_bytes());
        frame.extend_from_slice(&bomb);
        frame.extend_from_slice(&END_MARK);
        read(&frame).unwrap_err();
    }

    #[test]
    fn the_header_is_the_one_that_lz4_writes() {
        let mut info = lz4_flex::frame::FrameInfo::new();
        info.block_size = lz4_flex::frame::BlockSize::Max256KB;
        info.block_mode = lz4_flex::frame::BlockMode::Independent;
        let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(b"x").unwrap();
        let theirs = encoder.finish().unwrap();
        assert_eq!(theirs.get(..7), Some(&FRAME_HEADER[..]));
    }

    #[test]
    fn what_does_not_shrink_is_stored_and_the_way_follows_the_content() {
        let random = noise(BLOCK);
        let length = frame(&random, true, BLOCK).len();
        assert!(length <= BLOCK + 64, "{length}");
        // Text that repeats at odd distances: only the general way finds it.
        let text: Vec<u8> = noise(1001).into_iter().cycle().take(8 * BLOCK).collect();
        let wal = small_records(8 * BLOCK);
        let alone = frame(&wal, true, BLOCK).len() + frame(&text, true, BLOCK).len();
        for mixed in [[&wal[..], &text].concat(), [&text[..], &wal].concat()] {
            let length = frame(&mixed, true, BLOCK).len();
            assert!(length < alone + alone / 2, "{length}, apart {alone}");
        }
    }
}
