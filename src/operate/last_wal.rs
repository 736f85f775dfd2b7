//! The WAL that a stopped server wrote last. The repository may lack its end: where nothing but a receiver took it, which was away or behind.

use std::path::Path;

use crate::archive::datadir::DataDirectory;
use crate::err;
use crate::error::Result;
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::timeline::History;
use crate::wal::inventory::{HistoryFile, Inventory, Timeline};

/// Bytes of a segment before its first record: the long page header of `xlog_internal.h`.
const FIRST_RECORD: u64 = 40;

/// Requires that the repository has all WAL of the server that ran last in this data directory, which a restore in place removes.
///
/// With `archive_mode` the server says so itself, by files that wait. Nothing is asked of a timeline that the repository does not know: a copy that
/// may not archive has one of its own.
///
/// # Errors
/// `Refused`.
pub fn require(data: &Path, inventory: &Inventory) -> Result<()> {
    let directory = DataDirectory::at(data);
    let control = directory.control().ok().flatten();
    // WAL of a standby is that of its primary.
    let Some(control) = control.filter(|control| control.state == ClusterState::ShutDown) else {
        return Ok(());
    };
    let id = control.checkpoint_copy.timeline;
    let Some(timeline) = inventory.timelines.get(&id) else {
        return Ok(());
    };
    let (end, number) = last(&control);
    let name = number.name(id, control.wal_segment_size);
    match name.filter(|name| directory.wal().join(name.to_string()).exists()) {
        Some(name) if !has(timeline, name, number, end) && is_same(&directory, timeline) => {
            Err(lacking(data, &directory, name, end))
        }
        _ => Ok(()),
    }
}

/// The end of what counts, with its segment: the checkpoint of the shutdown changes nothing. The segment before is the last where it begins one.
fn last(control: &ControlFile) -> (Lsn, SegmentNumber) {
    let size = control.wal_segment_size;
    let begin = SegmentNumber::of(control.checkpoint, size).start_lsn(size);
    let end = match control.checkpoint.0 - begin.0 <= FIRST_RECORD {
        true => begin,
        false => control.checkpoint,
    };
    (end, SegmentNumber::ending_at(end, size))
}

/// Whether the repository has a segment up to this position. A partial one was archived by hand.
fn has(timeline: &Timeline, name: SegmentName, number: SegmentNumber, end: Lsn) -> bool {
    timeline.segments.contains(number)
        || timeline.partials.contains(&name)
        || timeline.tails.get(&number).is_some_and(|tail| *tail >= end)
}

/// Whether the directory's timeline is that of the repository, and not another one of the same number.
fn is_same(directory: &DataDirectory, timeline: &Timeline) -> bool {
    let HistoryFile::Known(known) = &timeline.history else {
        return true;
    };
    let id = known.timeline();
    let own = std::fs::read(directory.wal().join(id.history_file_name())).ok();
    let own = own.and_then(|bytes| History::parse(id, &bytes).ok());
    own.is_none_or(|own| own == *known)
}

fn lacking(
    data: &Path,
    directory: &DataDirectory,
    name: SegmentName,
    end: Lsn,
) -> crate::error::Error {
    let (data, wal) = (data.display(), directory.wal().display());
    err!(
        Refused,
        "the repository lacks the last WAL of the server of \"{data}\": segment {name} up to {end}"
    )
    .hint(format!(
        "Nothing was changed. Its last commits would be lost. Let the receiver bring in the rest, or do it by hand; where they do not count, keep them elsewhere:\npitr wal backfill --from {wal}\nmkdir {data}.kept && mv {wal}/0* {data}.kept/"
    ))
}
