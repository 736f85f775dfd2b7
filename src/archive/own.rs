//! The server's own copy of a segment that was fetched for it.
//!
//! A copy of a server has data that its own WAL leads to. A segment of the same name that another server archived would
//! lead elsewhere: the pages of both would be mixed. If pg_wal has the segment, as after pg_basebackup, its records
//! show the difference.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::datadir::{DataDirectory, open_at_once};
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::reader::{Finding, Reader, Sink};
use crate::pg::record::Record;
use crate::pg::segment::SegmentName;
use crate::pg::xlog;

/// The name that recovery alone gives to the file that it wants a segment in.
///
/// PostgreSQL: src/backend/access/transam/xlogrecovery.c, `XLogFileRead`.
pub const RECOVERY_TARGET: &str = "RECOVERYXLOG";
const PIECE_BYTES: usize = 256 << 10;

/// The position from which on a segment fetched for recovery is not what the server itself has, up to `end` where only a part was archived.
/// Then the target is removed. `None` where the server's whole records say the same, or say nothing.
pub fn take_back_other(target: &Path, name: SegmentName, end: Option<Lsn>) -> Option<Lsn> {
    if target.file_name()? != RECOVERY_TARGET {
        return None;
    }
    let path = DataDirectory::of_wal_file(target)
        .wal()
        .join(name.to_string());
    let (own, fetched) = (open(&path)?, open(target)?);
    let different = first_difference(&own, &fetched)?;
    let (start, last) = last_record(&own, name, end)?;
    let at = Lsn(start.0.checked_add(different)?);
    if at >= last {
        return None;
    }
    let _ = std::fs::remove_file(target);
    Some(at)
}

fn open(path: &Path) -> Option<File> {
    let file = open_at_once(path).ok()?;
    file.metadata().is_ok_and(|m| m.is_file()).then_some(file)
}

/// The offset of the first byte that differs, as far as both can be read.
fn first_difference(own: &File, fetched: &File) -> Option<u64> {
    let (mut one, mut other) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut at = 0;
    loop {
        let length = read(own, &mut one, at).min(read(fetched, &mut other, at));
        // Nearly all pieces are alike; only in one that is not are its bytes compared one by one.
        if one.get(..length) != other.get(..length) {
            let differs = one.iter().zip(&other).position(|(a, b)| a != b)?;
            return Some(at + differs as u64);
        }
        if length < PIECE_BYTES {
            return None;
        }
        at += length as u64;
    }
}

/// Fills the buffer as far as the file goes.
fn read(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) | Err(_) => break,
            Ok(n) => filled += n,
        }
    }
    filled
}

/// Returns the start of the segment, and the end of its last record before the first fault and not behind `end`.
fn last_record(own: &File, name: SegmentName, end: Option<Lsn>) -> Option<(Lsn, Lsn)> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut length = read(own, &mut piece, 0);
    let identity = WalIdentity::read(piece.get(..length)?).ok()?;
    identity.matches(name).ok()?;
    let mut reader = Reader::new(&identity).ok()?;
    reader
        .start_segment(identity.start_lsn, name.timeline)
        .ok()?;
    let mut ends = Ends {
        last: identity.start_lsn,
        limit: end.unwrap_or(Lsn(u64::MAX)),
        is_over: false,
    };
    let mut at = 0;
    while !ends.is_over {
        let whole = length - length % reader.page_size();
        if whole == 0 {
            break;
        }
        reader.feed(piece.get(..whole)?, &mut ends).ok()?;
        at += whole as u64;
        length = read(own, &mut piece, at);
    }
    Some((identity.start_lsn, ends.last))
}

/// Records that follow one another.
struct Ends {
    last: Lsn,
    limit: Lsn,
    is_over: bool,
}

impl Sink for Ends {
    fn record(&mut self, record: &Record<'_>) {
        // A switch record ends with its segment, and nobody reads what stands behind it.
        let end = match xlog::is_switch(record.rmid, record.info) {
            true => Lsn(record
                .start_lsn
                .0
                .saturating_add(u64::from(record.total_len))),
            false => record.end_lsn,
        };
        if !self.is_over && end <= self.limit {
            self.last = end;
        }
    }

    fn finding(&mut self, _finding: Finding) {
        self.is_over = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::Craft;
    use crate::pg::segment::SegmentNumber;
    use crate::pg::timeline::TimelineId;
    use crate::pg::version::Major;

    const RECORDS: u8 = 40;

    /// A segment whose records carry this byte from the twentieth on.
    fn segment(byte: u8, records: u8) -> (Vec<u8>, SegmentName) {
        let mut craft = Craft::new(Major::V17);
        for n in 0..records {
            let byte = if n < 20 { 0 } else { byte };
            craft.main(0, 0x20, 0, &[byte; 900]);
        }
        craft.fill_segment();
        let size = craft.identity.segment_size;
        let name = SegmentNumber(1).name(TimelineId::FIRST, size).unwrap();
        (craft.bytes, name)
    }

    /// Compares a fetched segment with the server's `own` one.
    fn compared(own: &[u8], fetched: &[u8], end: Option<Lsn>) -> Option<Lsn> {
        let (_, name) = segment(0, 1);
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        std::fs::write(wal.join(name.to_string()), own).unwrap();
        let target = wal.join(RECOVERY_TARGET);
        std::fs::write(&target, fetched).unwrap();
        let other = take_back_other(&target, name, end);
        assert_eq!(target.exists(), other.is_none());
        other
    }

    #[test]
    fn a_segment_of_another_server_is_not_handed_out() {
        let (one, _) = segment(1, RECORDS);
        let (other, _) = segment(2, RECORDS);
        let at = compared(&one, &other, None).unwrap();
        assert!(at > Lsn((1 << 20) + 900 * 20), "{at}");
        assert_eq!(compared(&one, &one, None), None);
    }

    #[test]
    fn what_the_server_has_not_written_whole_tells_nothing() {
        let (whole, _) = segment(1, RECORDS);
        // It had come as far as before the two parted, or not farther than that; and more of it is archived meanwhile.
        for records in [1, 20, 39] {
            let (short, _) = segment(1, records);
            assert!(compared(&short, &whole, None).is_none(), "{records}");
        }
        let (short, _) = segment(2, 20);
        assert!(compared(&short, &whole, None).is_none());
        // A page that a crash left unwritten, with what was written of the next ones.
        let mut torn = whole.clone();
        torn[8192 * 2..8192 * 3].fill(0);
        assert!(compared(&torn, &whole, None).is_none());
        // A file that is used again.
        let mut recycled = whole.clone();
        recycled[8] ^= 1;
        assert!(compared(&recycled, &whole, None).is_none());
        assert!(compared(b"", &whole, None).is_none());
    }

    #[test]
    fn what_stands_behind_a_switch_tells_nothing() {
        let mut craft = Craft::new(Major::V17);
        craft.main(0, 0x20, 0, &[0; 900]);
        craft.switch();
        let whole = 1 << 20;
        craft.bytes.resize(whole, 0);
        let mut other = craft.bytes.clone();
        other[whole - 1] = 1;
        assert_eq!(compared(&craft.bytes, &other, None), None);
        other[64] ^= 1;
        assert!(compared(&craft.bytes, &other, None).is_some());
    }

    #[test]
    fn of_a_part_only_the_part_is_compared() {
        let (own, _) = segment(1, RECORDS);
        let mut part = own.clone();
        let end = 900 * 30;
        part[end..].fill(0);
        assert!(compared(&own, &part, None).is_some());
        let end = Lsn((1 << 20) + end as u64);
        assert!(compared(&own, &part, Some(end)).is_none());
    }
}
