//! The local cache of what segment indexes say: one file per timeline, appended to, worth nothing when lost.
//!
//! A file is a header and rows of fixed length, each with its checksum. Whatever is wrong with a file makes it be thrown away and
//! built anew. It is never trusted against the listing, and the segments that decide a plan are looked at themselves.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::edge::{Edges, PREFIX};
use super::facts::Facts;
use crate::behalf;
use crate::pg::time::TimestampTz;
use crate::repo::varint::{Fixed, Reader, stored};

stored! {
    /// The known facts of one segment, and of the object that they were read from.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Row {
        /// The segment's number.
        pub number: u64 = Fixed,
        /// Stored length of the object.
        pub size_bytes: u64 = Fixed,
        /// When the store received it.
        pub modified: TimestampTz = Fixed,
        /// Facts from its index.
        pub facts: Facts = Fixed,
        /// First bytes of the records at its edges.
        pub edges: Edges = Fixed,
    }
}

/// Raised whenever what a row means changes.
const MAGIC: &[u8; 8] = b"PITRROL5";
/// Magic and a hash of what the file belongs to.
const HEADER: usize = 8 + 32;
/// Offset of the facts in a row, after the fields of the object.
const OBJECT: usize = 8 * 3;
/// Offset of the edges in a row.
const EDGES: usize = OBJECT + 4 + 4 * 4 + 8 * 7 + 4 * 2 + 8 * 2 + 4 * 2 + 8 * 2 + 4 + 1;
/// Length without the checksum.
const BODY: usize = EDGES + (1 + PREFIX) * 2;
const ROW: usize = BODY + 4;
/// So many are read or written at once.
const AT_ONCE: usize = 1024;
/// How errors call it; nobody sees them.
const WHAT: &str = "row of a cache";

/// Rows as the file has them. Most are never asked for, so each is decoded only when it is.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// In the order in which they came; of several of one number the last counts.
    bytes: Vec<u8>,
    /// Number and place of each that counts, ascending by number.
    index: Vec<(u64, u32)>,
}

impl Rows {
    /// How many segments it knows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Makes room for as many more.
    pub fn reserve(&mut self, count: usize) {
        self.bytes.reserve_exact(count * ROW);
        self.index.reserve_exact(count);
    }

    /// Whether a segment is known.
    pub fn contains(&self, number: u64) -> bool {
        self.position(number).is_ok()
    }

    /// Returns the known row of a segment.
    pub fn get(&self, number: u64) -> Option<Row> {
        Row::take(&mut Reader::new(self.body(number)?, WHAT)).ok()
    }

    /// Returns the facts from the index of a segment.
    pub fn facts(&self, number: u64) -> Option<Facts> {
        let body = self.body(number)?.get(OBJECT..EDGES)?;
        Facts::take(&mut Reader::new(body, WHAT)).ok()
    }

    /// Returns the edges of a segment.
    pub fn edges(&self, number: u64) -> Option<Edges> {
        let body = self.body(number)?.get(EDGES..)?;
        Edges::take(&mut Reader::new(body, WHAT)).ok()
    }

    /// Adds rows, or puts them in the place of what was known. Returns them as the file has them.
    pub fn put(&mut self, rows: &[Row]) -> &[u8] {
        let begin = self.bytes.len();
        let mut is_settled = true;
        for row in rows {
            let place = u32::try_from(self.bytes.len() / ROW).unwrap_or(u32::MAX);
            encode(row, &mut self.bytes);
            is_settled &= self.index.last().is_none_or(|last| last.0 < row.number);
            self.index.push((row.number, place));
        }
        if !is_settled {
            self.settle();
        }
        self.bytes.get(begin..).unwrap_or_default()
    }

    /// Knows a segment no longer.
    pub fn forget(&mut self, number: u64) {
        if let Ok(at) = self.position(number) {
            self.index.remove(at);
        }
    }

    /// Puts the index in order.
    fn settle(&mut self) {
        // Stable: of equal numbers the last one was written last.
        self.index.sort_by_key(|(number, _)| *number);
        self.index.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            if is_same {
                *earlier = *later;
            }
            is_same
        });
    }

    fn position(&self, number: u64) -> std::result::Result<usize, usize> {
        // Without holes, the usual case, the place follows from the number.
        if let Some((first, _)) = self.index.first()
            && let Some(at) = number.checked_sub(*first)
            && let Ok(at) = usize::try_from(at)
            && self.index.get(at).is_some_and(|(n, _)| *n == number)
        {
            return Ok(at);
        }
        self.index.binary_search_by_key(&number, |(n, _)| *n)
    }

    /// A row without its checksum.
    fn body(&self, number: u64) -> Option<&[u8]> {
        let (_, place) = self.index.get(self.position(number).ok()?)?;
        self.at(*place)?.get(..BODY)
    }

    fn at(&self, place: u32) -> Option<&[u8]> {
        let begin = usize::try_from(place).ok()?.checked_mul(ROW)?;
        self.bytes.get(begin..begin.checked_add(ROW)?)
    }
}

/// The cache file of one timeline.
#[derive(Debug, Clone)]
pub struct CacheFile {
    path: PathBuf,
    belongs: [u8; 32],
}

impl CacheFile {
    /// The file `name` in `directory`, for what `identity` describes: anything else in it is not used.
    pub fn new(directory: &Path, name: &str, identity: &str) -> CacheFile {
        CacheFile {
            path: directory.join(name),
            belongs: *blake3::hash(identity.as_bytes()).as_bytes(),
        }
    }

    /// Reads the rows that `keep` wants; the last of several of one number counts. A file that is not right is deleted.
    pub fn read(&self, keep: &mut dyn FnMut(u64) -> bool) -> Rows {
        let mut rows = Rows::default();
        let Some(total) = self.read_rows(keep, &mut rows) else {
            self.forget();
            return Rows::default();
        };
        rows.settle();
        if total > 2 * rows.len() + 1024 {
            // Mostly about segments that are gone: write what is left.
            self.forget();
            for part in rows.index.chunks(AT_ONCE) {
                let bytes: Vec<&[u8]> = part.iter().filter_map(|(_, at)| rows.at(*at)).collect();
                self.append(&bytes.concat());
            }
        }
        rows
    }

    /// Returns how many there are, kept or not; none where something is wrong.
    fn read_rows(&self, keep: &mut dyn FnMut(u64) -> bool, rows: &mut Rows) -> Option<usize> {
        let mut file = match self.open(OpenOptions::new().read(true)) {
            Ok(file) => file,
            // No file is a right file without rows.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Some(0),
            Err(_) => return None,
        };
        let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
        if length == 0 {
            return Some(0);
        }
        let count = length.checked_sub(HEADER)? / ROW;
        // A torn row at the end is a torn append.
        if length != HEADER + count * ROW {
            return None;
        }
        let mut header = [0; HEADER];
        file.read_exact(&mut header).ok()?;
        if !header.starts_with(MAGIC) || !header.ends_with(&self.belongs) {
            return None;
        }
        rows.reserve(count);
        let mut buffer = vec![0; AT_ONCE.min(count) * ROW];
        let mut left = count;
        while left > 0 {
            let part = buffer.get_mut(..AT_ONCE.min(left) * ROW)?;
            file.read_exact(part).ok()?;
            left -= part.len() / ROW;
            for row in part.chunks_exact(ROW) {
                let number = checked(row)?;
                if keep(number) {
                    let place = u32::try_from(rows.bytes.len() / ROW).ok()?;
                    rows.index.push((number, place));
                    rows.bytes.extend_from_slice(row);
                }
            }
        }
        Some(count)
    }

    /// Adds rows, as [`Rows::put`] returned them. A failure only costs time later.
    pub fn append(&self, rows: &[u8]) {
        if rows.is_empty() {
            return;
        }
        if let Some(parent) = self.path.parent() {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            let _ = behalf::of(parent, || builder.create(parent));
        }
        let Ok(mut file) = self.open(OpenOptions::new().append(true).create(true)) else {
            return;
        };
        let is_empty = file.metadata().is_ok_and(|m| m.len() == 0);
        let written = match is_empty {
            true => file.write_all(&[MAGIC, self.belongs.as_slice(), rows].concat()),
            false => file.write_all(rows),
        };
        if written.is_err() {
            drop(file);
            self.forget();
        }
    }

    /// Throws the file away.
    pub fn forget(&self) {
        let _ = behalf::of(&self.path, || std::fs::remove_file(&self.path));
    }

    fn open(&self, options: &mut OpenOptions) -> std::io::Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        options.mode(0o600).custom_flags(flags.bits().cast_signed());
        behalf::of(&self.path, || options.open(&self.path))
    }
}

fn encode(row: &Row, out: &mut Vec<u8>) {
    let begin = out.len();
    row.put(out);
    let crc = crc32c::crc32c(out.get(begin..).unwrap_or_default());
    out.extend_from_slice(&crc.to_le_bytes());
}

/// The number of a row whose checksum is right.
fn checked(row: &[u8]) -> Option<u64> {
    let (body, crc) = row.split_at_checked(BODY)?;
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return None;
    }
    body.first_chunk().map(|number| u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::lsn::Lsn;
    use crate::wal::edge::Prefix;
    use crate::wal::index::{HeadEnd, TailClass};
    use crate::wal::link::Brief;
    use std::os::unix::fs::PermissionsExt;

    fn row(number: u64, size: u64) -> Row {
        let mut facts = Facts::empty(Lsn(number << 24));
        facts.flags = 0x303;
        facts.head_end = HeadEnd::Continues;
        facts.tail_class = TailClass::Event;
        facts.tail_length = 7;
        facts.times = (TimestampTz(-5), TimestampTz(9));
        facts.xids = (3, u32::MAX);
        facts.last_complete_end = Lsn(u64::MAX);
        facts.link = Brief {
            own: 3,
            before: u64::MAX,
            timeline: 7,
            is_first: true,
        };
        Row {
            number,
            size_bytes: size,
            modified: TimestampTz(77),
            facts,
            edges: Edges {
                head: Prefix::of(b"abc"),
                tail: Prefix::of(&[9; 100]),
            },
        }
    }

    fn append(file: &CacheFile, rows: &[Row]) {
        file.append(Rows::default().put(rows));
    }

    /// All rows that `keep` wants.
    fn read(file: &CacheFile, keep: &mut dyn FnMut(u64) -> bool) -> Vec<Row> {
        let rows = file.read(keep);
        let known = |(number, _): &(u64, u32)| rows.get(*number).unwrap();
        rows.index.iter().map(known).collect()
    }

    #[test]
    fn rows_come_back_and_the_last_of_a_number_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = CacheFile::new(&dir.path().join("a/b"), "00000001.rollup", "x");
        assert!(read(&file, &mut |_| true).is_empty());
        append(&file, &[row(5, 1), row(3, 1)]);
        append(&file, &[row(5, 2)]);
        assert_eq!(read(&file, &mut |_| true), [row(3, 1), row(5, 2)]);
        assert_eq!(read(&file, &mut |n| n == 3), [row(3, 1)]);
        let mode = std::fs::metadata(dir.path().join("a"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o700);
        let mode = std::fs::metadata(&file.path).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_not_right_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = CacheFile::new(dir.path(), "f", "x");
        append(&file, &[row(1, 1), row(2, 1)]);
        let good = std::fs::read(&file.path).unwrap();
        for at in [0, 20, HEADER + 3, HEADER + ROW + 100, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&file.path, bad).unwrap();
            assert!(read(&file, &mut |_| true).is_empty(), "{at}");
            assert!(!file.path.exists());
        }
        std::fs::write(&file.path, &good[..good.len() - 5]).unwrap();
        assert!(read(&file, &mut |_| true).is_empty());
        std::fs::write(&file.path, &good).unwrap();
        let other = CacheFile::new(dir.path(), "f", "another repository");
        assert!(read(&other, &mut |_| true).is_empty());
    }

    #[test]
    fn a_file_that_is_mostly_about_segments_that_are_gone_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = CacheFile::new(dir.path(), "f", "x");
        let rows: Vec<Row> = (0..1030).rev().map(|n| row(n, n)).collect();
        append(&file, &rows);
        let mut keep = |n| n < 2;
        assert_eq!(read(&file, &mut keep), [row(0, 0), row(1, 1)]);
        let length = std::fs::metadata(&file.path).unwrap().len();
        assert_eq!(usize::try_from(length).unwrap(), HEADER + 2 * ROW);
        assert_eq!(read(&file, &mut |_| true), [row(0, 0), row(1, 1)]);
    }
}
