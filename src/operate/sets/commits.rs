//! Commits of a server since it was recovered, decoded from the WAL in its own data directory: a position that moved says nothing, for checkpoints move it, too.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::archive::datadir::open_at_once;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::reader::{Finding, Sink};
use crate::pg::record::Record;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::pg::xact;
use crate::wal::feeder::Feeder;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// A page's header is shorter.
const HEADER_BYTES: usize = 64;

/// The answer of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So many transactions committed.
    Commits(u64),
    /// WAL that would tell is gone, or was written by a server that this program does not know.
    NotKnown,
}

/// Counts the commits on a timeline at or behind a position.
struct Counting {
    from: Lsn,
    commits: u64,
    is_over: bool,
}

impl Sink for Counting {
    fn record(&mut self, record: &Record<'_>) {
        let is_commit = xact::outcome(record).is_some_and(xact::Outcome::is_commit);
        if !self.is_over && is_commit && record.start_lsn >= self.from {
            self.commits += 1;
        }
    }

    /// Recovery would end here, and so does what was written.
    fn finding(&mut self, _finding: Finding) {
        self.is_over = true;
    }
}

/// Brings a segment that is not in pg_wal any more; none where it cannot be had.
pub type Fetch<'f> = &'f mut dyn FnMut(SegmentName) -> Result<Option<PathBuf>>;

/// Counts the commits of a server that was recovered up to `from`, on the timeline that began there, as far as the end of the segment that has the first of them.
///
/// # Errors
/// `Io`; `Damaged` when the data directory has no WAL that can be read; those of `fetch`.
pub fn since(
    pgdata: &Path,
    (timeline, from): (TimelineId, Lsn),
    fetch: Fetch<'_>,
) -> Result<Since> {
    let wal = pgdata.join("pg_wal");
    let Some((size, last)) = segments(&wal, timeline)? else {
        return Ok(Since::NotKnown);
    };
    let mut counting = Counting {
        from,
        commits: 0,
        is_over: false,
    };
    let mut feeder = Feeder::default();
    let mut name = Some(SegmentName::of(timeline, from, size));
    while let Some(segment) = name.filter(|segment| *segment <= last) {
        let path = match wal.join(segment.to_string()) {
            path if path.exists() => path,
            // A checkpoint gives a segment that was archived another name.
            _ => match fetch(segment)? {
                Some(path) => path,
                None => return Ok(Since::NotKnown),
            },
        };
        feed(&path, (segment, size), &mut feeder, &mut counting)?;
        if counting.commits > 0 || counting.is_over {
            break;
        }
        name = segment.next(size);
    }
    Ok(Since::Commits(counting.commits))
}

fn feed(
    path: &Path,
    (segment, size): (SegmentName, SegmentSize),
    feeder: &mut Feeder,
    counting: &mut Counting,
) -> Result<()> {
    let mut file = open_at_once(path).map_err(|e| failed(path, e))?;
    feeder.begin(segment, segment.start_lsn(size)?);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = file.read(&mut piece).map_err(|e| failed(path, e))?;
        let read = piece.get(..length).unwrap_or_default();
        if length == 0 || counting.is_over || feeder.feed(read, counting).is_err() {
            break;
        }
    }
    feeder.finish();
    Ok(())
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::from_io(format!("read \"{}\"", path.display()), error)
}

/// Finds the segment size, and the last segment of the timeline that was written; none where there is none. A segment that waits to be written has the pages of
/// an older one.
fn segments(wal: &Path, timeline: TimelineId) -> Result<Option<(SegmentSize, SegmentName)>> {
    let mut found: Option<(SegmentSize, SegmentName)> = None;
    for entry in std::fs::read_dir(wal).map_err(|e| failed(wal, e))? {
        let entry = entry.map_err(|e| failed(wal, e))?;
        let name = entry.file_name();
        let name = name.to_str().and_then(|n| n.parse::<SegmentName>().ok());
        let Some(name) = name.filter(|name| name.timeline == timeline) else {
            continue;
        };
        let path = entry.path();
        let mut head = [0; HEADER_BYTES];
        let mut file = open_at_once(&path).map_err(|e| failed(&path, e))?;
        let Ok(identity) = file
            .read_exact(&mut head)
            .map_err(|e| failed(&path, e))
            .and_then(|()| WalIdentity::read(&head))
        else {
            continue;
        };
        let size = identity.segment_size;
        let is_own = identity.start_lsn == name.start_lsn(size)?;
        if is_own && identity.major.is_some() {
            let last = found.map_or(name, |(_, last)| last.max(name));
            found = Some((size, last));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::Craft;
    use crate::pg::segment::SegmentNumber;
    use crate::pg::version::Major;

    #[test]
    fn commits_are_counted_and_checkpoints_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        let mut craft = Craft::new(Major::V17);
        let start = craft.identity.start_lsn;
        // A record of the transaction manager with the operation COMMIT; one of another manager.
        for _ in 0..5 {
            craft.main(1, 0x00, 7, &[0; 8]);
            craft.main(0, 0x20, 0, &[1; 900]);
        }
        craft.fill_segment();
        let size = craft.identity.segment_size;
        let name = SegmentNumber::of(start, size)
            .name(TimelineId::FIRST, size)
            .unwrap();
        let path = wal.join(name.to_string());
        let none = &mut |_| Ok(None);
        let timeline = TimelineId::FIRST;
        let mut found = |from| since(directory.path(), (timeline, from), none).unwrap();
        assert_eq!(found(start), Since::NotKnown);
        std::fs::write(&path, &craft.bytes).unwrap();
        assert_eq!(found(start), Since::Commits(5));
        let behind = Lsn(start.0 + size.bytes() - 1);
        assert_eq!(found(behind), Since::Commits(0));
        // The segment before is gone: what it had is known to who can bring it.
        let before = Lsn(start.0 - 1);
        assert_eq!(found(before), Since::NotKnown);
    }
}
