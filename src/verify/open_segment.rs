//! Segments of which only a part is stored: every increment by itself, and what they add up to.

use super::{About, Work};
use crate::err;
use crate::error::{Code, Result};
use crate::pg::lsn::LsnRange;
use crate::pg::segment::SegmentName;
use crate::wal::increment::{self, OpenSegment};
use crate::wal::increments;
use crate::wal::remnant::Remnant;
use crate::wal::survey::Survey;

pub(super) fn check(work: &Work<'_>, survey: &Survey, name: SegmentName) -> Result<()> {
    work.host.check_stop()?;
    let number = name.number(work.size)?;
    let held = survey.timelines.get(&name.timeline);
    let segment = OpenSegment {
        name,
        size: work.size,
        major: work.what.registration.major,
    };
    let repository = work.what.repository;
    for range in increment::list(repository, &work.layout, name)? {
        let key = work.layout.increment(name, range);
        // One alone costs nothing where others hold the same bytes.
        work.settle(read(work, &segment, range), key.as_str(), About::Other)?;
    }
    if held.is_none_or(|t| t.segments.contains(number)) {
        return Ok(());
    }
    let found = Remnant::find(repository, &work.layout, &segment);
    let found = found.map(|_| ());
    let key = work.layout.increments(name);
    work.settle(found, &key, About::Segment(name))?;
    Ok(())
}

fn read(work: &Work<'_>, segment: &OpenSegment, range: LsnRange) -> Result<()> {
    let repository = work.what.repository;
    let container = match increments::open(repository, &work.layout, segment, range) {
        Ok(container) => container,
        // Superseded since it was listed.
        Err(e) if e.code() == Code::Damaged && is_gone(work, segment.name, range)? => return Ok(()),
        Err(e) => return Err(e),
    };
    container.check_stored()?;
    work.count(container.stored_bytes());
    let mut bytes = 0;
    container.read_body(&mut |piece| {
        bytes += piece.len() as u64;
        Ok(())
    })?;
    match bytes == range.end.0 - range.start.0 {
        true => Ok(()),
        false => Err(err!(Damaged, "it holds {bytes} bytes")),
    }
}

fn is_gone(work: &Work<'_>, name: SegmentName, range: LsnRange) -> Result<bool> {
    let key = work.layout.increment(name, range);
    Ok(work.store.head(&key)?.is_none())
}
