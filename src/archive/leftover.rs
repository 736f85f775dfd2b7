//! Files that hold no WAL of the cluster: recycled ones, named after a timeline that the server left before they begin.
//!
//! pg_rewind may keep them in pg_wal, where PostgreSQL offers each file of which it does not remember that it was archived. Nothing can need
//! them, and archiving must not wait for what will never come.

use super::datadir::DataDirectory;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::History;

/// The position at which the server's own history left the timeline of a segment, where that is not behind the segment's start.
pub fn left_at(data: &DataDirectory, name: SegmentName) -> Option<Lsn> {
    let control = data.control().ok()??;
    let timeline = control.checkpoint_copy.timeline;
    let history = std::fs::read(data.wal().join(timeline.history_file_name())).ok()?;
    let history = History::parse(timeline, &history).ok()?;
    let left = history.switch_point(name.timeline)?;
    let start = name.start_lsn(control.wal_segment_size).ok()?;
    (left <= start).then_some(left)
}
