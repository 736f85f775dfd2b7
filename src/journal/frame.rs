//! Headers and frames of a journal file, as bytes (`docs/journal-format.md`).
//!
//! A frame counts only if it continues where the one before ended, and its checksum begins with the salt of this use of the file: so
//! neither a torn write nor what an earlier use left behind is ever read as WAL.

use std::io;
use std::ops::Range;

use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;

/// Start of the first frame.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes of the header that mean something; zeros follow.
pub const HEADER_USED: usize = 64;
/// Bytes before a frame's payload.
pub const FRAME_HEADER: usize = 20;
/// The longest payload.
pub const PAYLOAD_MAX: usize = 256 << 10;
/// Bytes that are read at once where frames are short. Long frames are read as far as needed, with the header behind them: those that are
/// passed over are not read at all, and of those that are read nothing has to be moved.
const READ_BYTES: usize = 32 << 10;
/// The header alone is read of frames that are passed over and are longer.
const SHORT_BYTES: usize = 4 << 10;

const FILE_MAGIC: &[u8; 8] = b"PITRJRNL";
const VERSION: u32 = 1;
const FRAME_MAGIC: &[u8; 4] = b"WALF";

/// The header of a journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// The timeline that was streamed.
    pub timeline: TimelineId,
    /// The cluster's.
    pub system_identifier: u64,
    /// The cluster's.
    pub segment_size: SegmentSize,
    /// First position of the segment.
    pub start_lsn: Lsn,
    /// Random for each use of the file.
    pub salt: u64,
}

impl FileHeader {
    /// The bytes at the beginning of the file.
    pub fn encode(&self) -> [u8; HEADER_USED] {
        let mut out = Vec::with_capacity(HEADER_USED);
        out.extend_from_slice(FILE_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.timeline.get().to_le_bytes());
        for number in [
            self.system_identifier,
            self.segment_size.bytes(),
            self.start_lsn.0,
            self.salt,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.resize(HEADER_USED - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut header = [0; HEADER_USED];
        header.copy_from_slice(&out);
        header
    }

    /// Reads the bytes at the beginning of a file.
    ///
    /// # Errors
    /// `Damaged` when they are no header; `Unsupported` when another version wrote it.
    pub fn decode(bytes: &[u8]) -> Result<FileHeader> {
        let damaged = || err!(Damaged, "the header of the journal file is damaged");
        let crc = number::<4>(bytes, HEADER_USED - 4).ok_or_else(damaged)?;
        let covered = bytes.get(..HEADER_USED - 4).ok_or_else(damaged)?;
        if !covered.starts_with(FILE_MAGIC) || u64::from(crc32c::crc32c(covered)) != crc {
            return Err(damaged());
        }
        let u32_at = |at| number::<4>(bytes, at).and_then(|n| u32::try_from(n).ok());
        let u64_at = |at| number::<8>(bytes, at).ok_or_else(damaged);
        match u32_at(8) {
            Some(VERSION) => {}
            version => {
                return Err(err!(
                    Unsupported,
                    "the journal file has version {}, expected {VERSION}",
                    version.unwrap_or_default()
                ));
            }
        }
        let header = FileHeader {
            timeline: u32_at(12).and_then(TimelineId::new).ok_or_else(damaged)?,
            system_identifier: u64_at(16)?,
            segment_size: SegmentSize::new(u64_at(24)?).map_err(|_| damaged())?,
            start_lsn: Lsn(u64_at(32)?),
            salt: u64_at(40)?,
        };
        let fits = header
            .start_lsn
            .0
            .is_multiple_of(header.segment_size.bytes());
        let end = header.start_lsn.0.checked_add(header.segment_size.bytes());
        match fits && end.is_some() {
            true => Ok(header),
            false => Err(damaged()),
        }
    }

    /// The segment's name.
    pub fn name(&self) -> SegmentName {
        SegmentName::of(self.timeline, self.start_lsn, self.segment_size)
    }

    /// Behind the last byte of the segment.
    pub fn end_lsn(&self) -> Lsn {
        Lsn(self.start_lsn.0 + self.segment_size.bytes())
    }

    /// The bytes before a payload of `parts` that begins at `lsn`.
    pub fn frame<'a>(
        &self,
        lsn: Lsn,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> [u8; FRAME_HEADER] {
        let mut crc = crc32c::crc32c(&self.salt.to_le_bytes());
        let length: usize = parts.clone().map(<[u8]>::len).sum();
        // Longer than PAYLOAD_MAX is read as no frame.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let mut header = [0; FRAME_HEADER];
        let fields = [
            FRAME_MAGIC.as_slice(),
            &length.to_le_bytes(),
            &lsn.0.to_le_bytes(),
        ];
        let mut rest = header.as_mut_slice();
        for field in fields {
            let (place, after) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            crc = crc32c::crc32c_append(crc, field);
            rest = after;
        }
        // In this order, and not two checksums put together: that takes longer than computing one over 128 KiB.
        for part in parts {
            crc = crc32c::crc32c_append(crc, part);
        }
        rest.copy_from_slice(&crc.to_le_bytes());
        header
    }
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide.get_mut(..N)?
        .copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(wide))
}

/// Bytes that are read at positions.
pub trait ReadAt {
    /// Reads some bytes from `offset` on; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// How many there are.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.get(from..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// The WAL of a journal file, frame by frame: no byte is handed out before its frame has been checked.
pub struct Frames<F> {
    file: F,
    header: FileHeader,
    /// Its first `filled` bytes are those of the file from `base` on.
    window: Vec<u8>,
    filled: usize,
    base: u64,
    /// Start of the next frame in the window.
    next: usize,
    /// The rest of the present frame's payload, in the window.
    payload: Range<usize>,
    lsn: Lsn,
    /// So many bytes are read at least.
    least_read: usize,
}

impl<F: ReadAt> Frames<F> {
    /// Begins at the start of the segment.
    pub fn new(file: F, header: FileHeader) -> Frames<F> {
        Frames {
            file,
            header,
            window: vec![0; 2 * FRAME_HEADER + PAYLOAD_MAX],
            filled: 0,
            base: HEADER_BYTES,
            next: 0,
            payload: 0..0,
            lsn: header.start_lsn,
            least_read: READ_BYTES,
        }
    }

    /// The header of the file.
    pub fn header(&self) -> &FileHeader {
        &self.header
    }

    /// The position of the next byte.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Start of the next frame in the file.
    pub fn offset(&self) -> u64 {
        self.base + self.next as u64
    }

    /// The file itself.
    pub fn into_file(self) -> F {
        self.file
    }

    /// Goes back to the start of the segment.
    pub fn rewind(&mut self) {
        self.filled = 0;
        self.base = HEADER_BYTES;
        self.next = 0;
        self.payload = 0..0;
        self.lsn = self.header.start_lsn;
    }

    /// Reads on; 0 where no whole frame follows. More frames may be written later: see [`Frames::look_again`].
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.payload.is_empty() && !self.load()? {
            return Ok(0);
        }
        let n = self.payload.len().min(buffer.len());
        let from = self.payload.start..self.payload.start + n;
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), self.window.get(from)) {
            to.copy_from_slice(from);
        }
        self.payload.start += n;
        self.lsn.0 += n as u64;
        Ok(n)
    }

    /// Reads and checks all frames there are, to where [`Frames::lsn`] and [`Frames::offset`] then are.
    pub fn read_to_end(&mut self) -> io::Result<()> {
        self.lsn.0 += self.payload.len() as u64;
        while self.load()? {
            self.lsn.0 += self.payload.len() as u64;
        }
        Ok(())
    }

    /// Goes on to `lsn`, trusting the headers of the frames that are passed over; `false` when the frames end before.
    pub fn skip_to(&mut self, lsn: Lsn) -> io::Result<bool> {
        if lsn < self.lsn {
            self.rewind();
        }
        let is_there = self.pass_to(lsn);
        self.least_read = READ_BYTES;
        is_there
    }

    fn pass_to(&mut self, lsn: Lsn) -> io::Result<bool> {
        // The file may only grow.
        let mut size = 0;
        while self.lsn < lsn {
            let step = lsn.0 - self.lsn.0;
            if self.payload.is_empty() {
                let Some(length) = self.peek()? else {
                    return Ok(false);
                };
                if length as u64 <= step {
                    let end = self.offset() + (FRAME_HEADER + length) as u64;
                    if end > size {
                        size = self.file.size()?;
                    }
                    if end > size {
                        return Ok(false);
                    }
                    self.pass(length);
                    self.least_read = match length < SHORT_BYTES {
                        true => READ_BYTES,
                        false => FRAME_HEADER,
                    };
                    continue;
                }
                if !self.load()? {
                    return Ok(false);
                }
            }
            let n = usize::try_from(step)
                .unwrap_or(usize::MAX)
                .min(self.payload.len());
            self.payload.start += n;
            self.lsn.0 += n as u64;
        }
        Ok(true)
    }

    /// Forgets what was read ahead: frames may have been written there since.
    pub fn look_again(&mut self) {
        self.filled = self.next;
    }

    /// The payload length of the next frame, if a header is there that continues the WAL.
    fn peek(&mut self) -> io::Result<Option<usize>> {
        if !self.need(FRAME_HEADER)? {
            return Ok(None);
        }
        let bytes = self.window.get(self.next..self.filled).unwrap_or_default();
        let length = number::<4>(bytes, 4).unwrap_or(0);
        let continues = bytes.starts_with(FRAME_MAGIC)
            && number::<8>(bytes, 8) == Some(self.lsn.0)
            && length > 0
            && length <= PAYLOAD_MAX as u64
            && length <= self.header.end_lsn().0.saturating_sub(self.lsn.0);
        Ok(usize::try_from(length).ok().filter(|_| continues))
    }

    /// Reads the next frame and checks it; `false` where no whole one follows.
    fn load(&mut self) -> io::Result<bool> {
        let Some(length) = self.peek()? else {
            return Ok(false);
        };
        if !self.need(FRAME_HEADER + length)? {
            return Ok(false);
        }
        let frame = self.next..self.next + FRAME_HEADER + length;
        let Some((head, payload)) = self
            .window
            .get(frame.clone())
            .and_then(|f| f.split_at_checked(FRAME_HEADER))
        else {
            return Ok(false);
        };
        if self.header.frame(self.lsn, std::iter::once(payload)) != head {
            return Ok(false);
        }
        self.payload = frame.start + FRAME_HEADER..frame.end;
        self.next = frame.end;
        Ok(true)
    }

    fn pass(&mut self, length: usize) {
        let behind = self.next + FRAME_HEADER + length;
        self.lsn.0 += length as u64;
        if behind <= self.filled {
            self.next = behind;
        } else {
            self.base += behind as u64;
            self.next = 0;
            self.filled = 0;
        }
    }

    /// Has `length` bytes of the file in the window from `next` on; `false` when the file ends before. The payload must be used up.
    fn need(&mut self, length: usize) -> io::Result<bool> {
        if self.filled - self.next >= length {
            return Ok(true);
        }
        self.window.copy_within(self.next..self.filled, 0);
        self.base += self.next as u64;
        self.filled -= self.next;
        self.next = 0;
        self.payload = 0..0;
        let wanted = (length + FRAME_HEADER)
            .max(self.least_read)
            .min(self.window.len());
        while self.filled < length {
            let rest = self.window.get_mut(self.filled..wanted);
            let rest = rest.unwrap_or_default();
            match self.file.read_at(rest, self.base + self.filled as u64) {
                Ok(0) => return Ok(false),
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "patterns of bytes")]

    use proptest::prelude::*;

    use super::*;

    fn header(salt: u64) -> FileHeader {
        FileHeader {
            timeline: TimelineId::new(3).unwrap(),
            system_identifier: 7_000_000_000_000_000_001,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            start_lsn: Lsn(0x500_0000),
            salt,
        }
    }

    fn wal(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 + i / 255) as u8).collect()
    }

    /// A file whose frames have these lengths, and where each frame begins.
    fn file(header: &FileHeader, wal: &[u8], lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut out = header.encode().to_vec();
        out.resize(HEADER_BYTES as usize, 0);
        let mut at = 0;
        let mut begins = Vec::new();
        for length in lengths {
            begins.push(out.len());
            let payload = &wal[at..at + length];
            let lsn = Lsn(header.start_lsn.0 + at as u64);
            let halves = payload.split_at(length / 3);
            out.extend_from_slice(&header.frame(lsn, [halves.0, halves.1].into_iter()));
            out.extend_from_slice(payload);
            at += length;
        }
        (out, begins)
    }

    fn read(header: &FileHeader, file: Vec<u8>) -> Vec<u8> {
        let mut frames = Frames::new(file, *header);
        let mut out = Vec::new();
        let mut buffer = vec![0; 1000];
        loop {
            let n = frames.read(&mut buffer).unwrap();
            if n == 0 {
                let mut whole = Frames::new(frames.into_file(), *header);
                whole.read_to_end().unwrap();
                assert_eq!(whole.lsn().0 - header.start_lsn.0, out.len() as u64);
                return out;
            }
            out.extend_from_slice(&buffer[..n]);
        }
    }

    #[test]
    fn a_header_is_read_as_written_and_no_flipped_byte_passes() {
        let header = header(9);
        let bytes = header.encode();
        assert_eq!(FileHeader::decode(&bytes).unwrap(), header);
        assert_eq!(header.name().to_string(), "000000030000000000000050");
        for at in 0..HEADER_USED {
            let mut other = bytes;
            other[at] ^= 0x40;
            assert!(FileHeader::decode(&other).is_err(), "byte {at}");
            assert!(FileHeader::decode(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn cut_anywhere_the_whole_frames_before_are_what_is_read() {
        let (header, wal) = (header(1), wal(1000));
        let (whole, begins) = file(&header, &wal, &[300, 1, 250]);
        assert_eq!(read(&header, whole.clone()), wal[..551]);
        for length in begins[2]..whole.len() {
            assert_eq!(read(&header, whole[..length].to_vec()), wal[..301]);
            // As it is on disk: zeros where nothing was written.
            let mut zeros = whole[..length].to_vec();
            zeros.resize(whole.len() + 100, 0);
            let expected = match zeros.starts_with(&whole) {
                true => &wal[..551],
                false => &wal[..301],
            };
            assert_eq!(read(&header, zeros), expected, "{length}");
        }
    }

    #[test]
    fn a_flipped_byte_ends_what_is_read_before_its_frame() {
        let (header, wal) = (header(1), wal(1000));
        let (whole, begins) = file(&header, &wal, &[300, 40, 200]);
        for at in begins[1]..begins[2] {
            for flip in [0x01, 0x80, 0xFF] {
                let mut other = whole.clone();
                other[at] ^= flip;
                assert_eq!(read(&header, other), wal[..300], "byte {at}");
            }
        }
    }

    #[test]
    fn frames_of_an_earlier_use_are_never_read() {
        let (old, wal_now) = (header(1), wal(1000));
        // The same segment, the same frame borders, other bytes: only the salt tells.
        let other: Vec<u8> = wal_now.iter().map(|b| !b).collect();
        let (mut disk, begins) = file(&old, &other, &[100, 100, 100]);
        let new = header(2);
        let (fresh, _) = file(&new, &wal_now, &[100]);
        disk[..fresh.len()].copy_from_slice(&fresh);
        assert_eq!(fresh.len(), begins[1]);
        assert_eq!(read(&new, disk), wal_now[..100]);
    }

    #[test]
    fn frames_beyond_the_segment_or_out_of_place_are_none() {
        let header = header(1);
        let size = 1 << 20;
        let wal = wal(size + 10);
        let quarter = PAYLOAD_MAX;
        let (whole, _) = file(&header, &wal, &[quarter, quarter, quarter, quarter - 5, 10]);
        assert_eq!(read(&header, whole), wal[..size - 5]);
        let mut gap = header.encode().to_vec();
        gap.resize(HEADER_BYTES as usize, 0);
        let lsn = Lsn(header.start_lsn.0 + 1);
        gap.extend_from_slice(&header.frame(lsn, [&wal[..10]].into_iter()));
        gap.extend_from_slice(&wal[..10]);
        assert_eq!(read(&header, gap), b"");
    }

    #[test]
    fn frames_written_after_the_end_was_read_are_seen_when_looked_for() {
        use std::os::unix::fs::FileExt;
        let (header, wal) = (header(1), wal(600));
        let (whole, begins) = file(&header, &wal, &[300, 300]);
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(8192).unwrap();
        disk.write_all_at(&whole[..begins[1]], 0).unwrap();
        let mut frames = Frames::new(disk.try_clone().unwrap(), header);
        let mut buffer = [0; 600];
        assert_eq!(frames.read(&mut buffer).unwrap(), 300);
        assert_eq!(frames.read(&mut buffer).unwrap(), 0);
        disk.write_all_at(&whole, 0).unwrap();
        assert_eq!(frames.read(&mut buffer).unwrap(), 0, "it was read ahead");
        frames.look_again();
        assert_eq!(frames.read(&mut buffer).unwrap(), 300);
        assert_eq!(buffer[..300], wal[300..600]);
    }

    proptest! {
        #[test]
        fn any_frames_are_read_as_written_and_skipped_to_any_position(
            lengths in prop::collection::vec(1_usize..3000, 0..40),
            cut in 0_usize..200_000,
            at in 0_usize..100_000,
        ) {
            let total: usize = lengths.iter().sum();
            let (header, wal) = (header(5), wal(total));
            let (mut whole, begins) = file(&header, &wal, &lengths);
            whole.truncate(whole.len().min(HEADER_BYTES as usize + cut));
            let kept = lengths
                .iter()
                .zip(&begins)
                .take_while(|(length, begin)| *begin + FRAME_HEADER + *length <= whole.len())
                .map(|(length, _)| length)
                .sum::<usize>();
            prop_assert_eq!(read(&header, whole.clone()), &wal[..kept]);
            let mut frames = Frames::new(whole, header);
            let lsn = Lsn(header.start_lsn.0 + at as u64);
            let reached = frames.skip_to(lsn).unwrap();
            prop_assert_eq!(reached, at <= kept);
            if reached {
                let mut rest = vec![0; 10];
                let n = frames.read(&mut rest).unwrap();
                prop_assert_eq!(&rest[..n], &wal[at..at + n]);
                prop_assert_eq!(n == 0, at == kept);
            }
        }
    }
}
