//! The local cache of what segment indexes say: one file per timeline, appended to, worth nothing when lost.
//!
//! A file is a header and rows of fixed length, each with its checksum. Whatever is wrong with a file makes it be thrown away and
//! built anew. It is never trusted against the listing, and the segments that decide a plan are looked at themselves.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::facts::{Facts, PREFIX, Prefix};
use super::index::{HeadEnd, TailClass};
use super::varint::Reader;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;

/// What is known of one segment, and of the object that said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The segment's number.
    pub number: u64,
    /// Stored length of the object.
    pub size_bytes: u64,
    /// When the store received it.
    pub modified: TimestampTz,
    /// What its index says.
    pub facts: Facts,
}

/// Raised whenever what a row means changes.
const MAGIC: &[u8; 8] = b"PITRROL1";
/// Magic and a hash of what the file belongs to.
const HEADER: usize = 8 + 32;
const ROW: usize = 8 * 3 + 4 + 4 * 4 + 8 * 7 + 4 * 2 + 8 * 2 + 4 * 2 + (1 + PREFIX) * 2 + 4;

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
    pub fn read(&self, keep: &mut dyn FnMut(u64) -> bool) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut total = 0_usize;
        if self.read_rows(keep, &mut rows, &mut total).is_none() {
            self.forget();
            return Vec::new();
        }
        if !rows.is_sorted_by(|a: &Row, b| a.number < b.number) {
            // Stable: of equal numbers the last one was written last.
            rows.reverse();
            rows.sort_by_key(|r| r.number);
            rows.dedup_by_key(|r| r.number);
        }
        if total > 2 * rows.len() + 1024 {
            // Mostly about segments that are gone: write what is left.
            self.forget();
            self.append(&rows);
        }
        rows
    }

    fn read_rows(
        &self,
        keep: &mut dyn FnMut(u64) -> bool,
        rows: &mut Vec<Row>,
        total: &mut usize,
    ) -> Option<()> {
        let file = match self.open(OpenOptions::new().read(true)) {
            Ok(file) => file,
            // No file is a right file without rows.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Some(()),
            Err(_) => return None,
        };
        let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
        if length == 0 {
            return Some(());
        }
        let count = length.checked_sub(HEADER)? / ROW;
        let mut reader = BufReader::with_capacity(256 << 10, file);
        let mut header = [0; HEADER];
        reader.read_exact(&mut header).ok()?;
        if !header.starts_with(MAGIC) || !header.ends_with(&self.belongs) {
            return None;
        }
        let mut bytes = [0; ROW];
        rows.reserve_exact(count);
        for _ in 0..count {
            reader.read_exact(&mut bytes).ok()?;
            *total += 1;
            let row = decode(&bytes)?;
            if keep(row.number) {
                rows.push(row);
            }
        }
        // A torn row at the end is a torn append.
        (length == HEADER + count * ROW).then_some(())
    }

    /// Adds rows. What goes wrong only costs time later.
    pub fn append(&self, rows: &[Row]) {
        if rows.is_empty() {
            return;
        }
        if let Some(parent) = self.path.parent() {
            let _ = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        }
        let Ok(mut file) = self.open(OpenOptions::new().append(true).create(true)) else {
            return;
        };
        let empty = file.metadata().is_ok_and(|m| m.len() == 0);
        for (at, chunk) in rows.chunks(1024).enumerate() {
            let mut bytes = Vec::with_capacity(HEADER + chunk.len() * ROW);
            if empty && at == 0 {
                bytes.extend_from_slice(MAGIC);
                bytes.extend_from_slice(&self.belongs);
            }
            for row in chunk {
                encode(row, &mut bytes);
            }
            if file.write_all(&bytes).is_err() {
                drop(file);
                return self.forget();
            }
        }
    }

    /// Throws the file away.
    pub fn forget(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    fn open(&self, options: &mut OpenOptions) -> std::io::Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        options
            .mode(0o600)
            .custom_flags(flags.bits().cast_signed())
            .open(&self.path)
    }
}

fn encode(row: &Row, out: &mut Vec<u8>) {
    let begin = out.len();
    let f = &row.facts;
    for v in [row.number, row.size_bytes] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.extend_from_slice(&row.modified.0.to_le_bytes());
    out.extend_from_slice(&f.flags.to_le_bytes());
    out.extend_from_slice(&[f.head_end as u8, f.tail_class as u8]);
    for v in [f.head_length, f.head_remaining, f.tail_length, f.tail_total] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for lsn in [
        f.start_lsn,
        f.first_record,
        f.first_prev,
        f.last_begun,
        f.last_complete,
        f.last_complete_end,
        f.valid_end,
    ] {
        out.extend_from_slice(&lsn.0.to_le_bytes());
    }
    for v in [f.commits, f.ends] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for time in [f.times.0, f.times.1] {
        out.extend_from_slice(&time.0.to_le_bytes());
    }
    for v in [f.xids.0, f.xids.1] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for prefix in [&f.head, &f.tail] {
        let bytes = prefix.bytes();
        out.push(u8::try_from(bytes.len()).unwrap_or(0));
        out.extend_from_slice(bytes);
        out.resize(out.len() + PREFIX - bytes.len(), 0);
    }
    let crc = crc32c::crc32c(out.get(begin..).unwrap_or_default());
    out.extend_from_slice(&crc.to_le_bytes());
}

fn decode(bytes: &[u8; ROW]) -> Option<Row> {
    let (body, crc) = bytes.split_at(ROW - 4);
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return None;
    }
    read(body).ok()
}

fn read(body: &[u8]) -> Result<Row> {
    let mut r = Reader::new(body, "row of a cache");
    let (number, size_bytes, modified) = (r.u64()?, r.u64()?, TimestampTz(r.i64()?));
    let flags = r.u16()?;
    let head_end = match r.u8()? {
        0 => HeadEnd::None,
        1 => HeadEnd::Here,
        2 => HeadEnd::Continues,
        3 => HeadEnd::Abandoned,
        _ => return Err(r.damaged()),
    };
    let tail_class = match r.u8()? {
        0 => TailClass::Unknown,
        1 => TailClass::TransactionEnd,
        2 => TailClass::Event,
        3 => TailClass::Other,
        _ => return Err(r.damaged()),
    };
    let (head_length, head_remaining) = (r.u32()?, r.u32()?);
    let (tail_length, tail_total) = (r.u32()?, r.u32()?);
    let mut facts = Facts::empty(Lsn(r.u64()?));
    facts.flags = flags;
    (facts.head_end, facts.tail_class) = (head_end, tail_class);
    (facts.head_length, facts.head_remaining) = (head_length, head_remaining);
    (facts.tail_length, facts.tail_total) = (tail_length, tail_total);
    facts.first_record = Lsn(r.u64()?);
    facts.first_prev = Lsn(r.u64()?);
    facts.last_begun = Lsn(r.u64()?);
    facts.last_complete = Lsn(r.u64()?);
    facts.last_complete_end = Lsn(r.u64()?);
    facts.valid_end = Lsn(r.u64()?);
    (facts.commits, facts.ends) = (r.u32()?, r.u32()?);
    facts.times = (TimestampTz(r.i64()?), TimestampTz(r.i64()?));
    facts.xids = (r.u32()?, r.u32()?);
    for prefix in [&mut facts.head, &mut facts.tail] {
        let length = usize::from(r.u8()?);
        let bytes: [u8; PREFIX] = r.array()?;
        *prefix = Prefix::of(bytes.get(..length).ok_or_else(|| r.damaged())?);
    }
    Ok(Row {
        number,
        size_bytes,
        modified,
        facts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn row(number: u64, size: u64) -> Row {
        let mut facts = Facts::empty(Lsn(number << 24));
        facts.flags = 0x303;
        facts.head_end = HeadEnd::Continues;
        facts.tail_class = TailClass::Event;
        facts.tail_length = 7;
        facts.times = (TimestampTz(-5), TimestampTz(9));
        facts.xids = (3, u32::MAX);
        facts.head = Prefix::of(b"abc");
        facts.tail = Prefix::of(&[9; 100]);
        facts.last_complete_end = Lsn(u64::MAX);
        Row {
            number,
            size_bytes: size,
            modified: TimestampTz(77),
            facts,
        }
    }

    #[test]
    fn rows_come_back_and_the_last_of_a_number_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = CacheFile::new(&dir.path().join("a/b"), "00000001.rollup", "x");
        assert!(file.read(&mut |_| true).is_empty());
        file.append(&[row(5, 1), row(3, 1)]);
        file.append(&[row(5, 2)]);
        assert_eq!(file.read(&mut |_| true), [row(3, 1), row(5, 2)]);
        assert_eq!(file.read(&mut |n| n == 3), [row(3, 1)]);
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
        file.append(&[row(1, 1), row(2, 1)]);
        let good = std::fs::read(&file.path).unwrap();
        for at in [0, 20, HEADER + 3, HEADER + ROW + 100, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&file.path, bad).unwrap();
            assert!(file.read(&mut |_| true).is_empty(), "{at}");
            assert!(!file.path.exists());
        }
        std::fs::write(&file.path, &good[..good.len() - 5]).unwrap();
        assert!(file.read(&mut |_| true).is_empty());
        std::fs::write(&file.path, &good).unwrap();
        let other = CacheFile::new(dir.path(), "f", "another repository");
        assert!(other.read(&mut |_| true).is_empty());
    }
}
