//! The places at which two repositories hold the WAL of two servers. These are the first segment that differs, and
//! links that would join one life to the other.

use std::collections::BTreeMap;

use super::Transfer;
use super::copy::is_same;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::plan::lacking::Lacking;
use crate::repo::layout::ClusterLayout;
use crate::store::{Key, Store};
use crate::wal::link::{Before, Link};

/// For each timeline that is not to be copied: the first segment at which the two sides part, and why.
pub(super) type Forks = BTreeMap<TimelineId, (SegmentName, Error)>;

/// Looks at what both sides have, and at the borders of what would be copied.
///
/// # Errors
/// Errors of the stores.
pub(super) fn find(transfer: &Transfer<'_>, lacking: &Lacking) -> Result<Forks> {
    let mut forks = Forks::new();
    for name in &lacking.compared {
        transfer.check_stop()?;
        if !forks.contains_key(&name.timeline) && transfer.differs(*name)? {
            let first = first_difference(transfer, lacking, *name)?;
            forks.insert(name.timeline, (first, two_servers(first)));
        }
    }
    for (timeline, runs) in &lacking.segments {
        for (first, last) in runs.iter() {
            transfer.check_stop()?;
            if forks.contains_key(timeline) {
                break;
            }
            if let Some((name, e)) = at_borders(transfer, *timeline, first, last)? {
                forks.insert(*timeline, (name, e));
            }
        }
    }
    Ok(forks)
}

/// The segments that a plan reads, in which another repository is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    pub first: SegmentName,
    /// The last, on the timeline to which recovery leads.
    pub last: SegmentName,
    /// The cluster's segment size.
    pub size: SegmentSize,
}

/// Returns a segment in which another repository has the WAL of another server than the one that a plan follows; none
/// without evidence of one. The segments looked at are those where recovery begins and ends, and the one after, which
/// recovery may ask for.
///
/// # Errors
/// Errors of the stores.
pub fn parts(own: Side<'_>, other: Side<'_>, stretch: Stretch) -> Result<Option<SegmentName>> {
    let next = stretch.last.next(stretch.size);
    for name in [Some(stretch.first), Some(stretch.last), next] {
        let Some(name) = name else { continue };
        if differs(own, other, name)? {
            return Ok(Some(name));
        }
    }
    match next {
        Some(next) => Ok(broken(own, other, stretch.size, next)?.map(|_| next)),
        None => Ok(None),
    }
}

/// A repository, and where segments lie in it.
pub type Side<'a> = (&'a dyn Store, &'a ClusterLayout);

/// Whether both have a segment, and not the same. Which one is damaged is for verify to say.
fn differs((a, at): Side<'_>, (b, there): Side<'_>, name: SegmentName) -> Result<bool> {
    match is_same((a, &at.segment(name)), (b, &there.segment(name))) {
        Ok(same) => Ok(same == Some(false)),
        Err(e) if matches!(e.code(), Code::Damaged | Code::Key) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The first segment that differs, up to one that does: from where two lives part they never agree again.
fn first_difference(
    transfer: &Transfer<'_>,
    lacking: &Lacking,
    known: SegmentName,
) -> Result<SegmentName> {
    let size = transfer.size;
    let end = known.number(size)?;
    let both = lacking.both.get(&known.timeline);
    let runs = both.iter().flat_map(|runs| runs.iter());
    let numbers = runs.flat_map(|(first, last)| first.0..=last.0.min(end.0));
    let names: Vec<SegmentName> = numbers
        .filter_map(|n| SegmentNumber(n).name(known.timeline, size))
        .collect();
    let (mut same, mut other) = (0, names.len());
    while same < other {
        let middle = same + (other - same) / 2;
        match names.get(middle) {
            Some(name) if !transfer.differs(*name)? => same = middle + 1,
            _ => other = middle,
        }
    }
    Ok(names.get(same).copied().unwrap_or(known))
}

impl Transfer<'_> {
    fn sides(&self) -> (Side<'_>, Side<'_>) {
        let side = |repository| (repository, &self.layout);
        (side(self.from.store()), side(self.to.store()))
    }

    fn differs(&self, name: SegmentName) -> Result<bool> {
        let (from, to) = self.sides();
        differs(from, to, name)
    }
}

fn two_servers(first: SegmentName) -> Error {
    err!(
        Conflict,
        "from this segment on the two repositories have the WAL of two servers, so that nothing of timeline {} is copied",
        first.timeline.decimal()
    )
}

/// Requires that a run of segments continues what is there before it, and is continued by what is there behind it.
fn at_borders(
    transfer: &Transfer<'_>,
    timeline: TimelineId,
    first: SegmentNumber,
    last: SegmentNumber,
) -> Result<Option<(SegmentName, Error)>> {
    let (from, to) = transfer.sides();
    let size = transfer.size;
    if let Some(name) = first.name(timeline, size)
        && let Some(before) = broken(to, from, size, name)?
    {
        let e = err!(
            Conflict,
            "it does not continue segment \"{before}\" of \"{}\": two servers wrote them, so that nothing of timeline {} is copied",
            to.0.location(),
            timeline.decimal()
        );
        return Ok(Some((name, e)));
    }
    if let Some(name) = last.next().name(timeline, size)
        && let Some(before) = broken(from, to, size, name)?
    {
        let e = err!(
            Conflict,
            "the one in \"{}\" does not continue segment \"{before}\" of \"{}\": two servers wrote them, so that nothing of timeline {} is copied",
            to.0.location(),
            from.0.location(),
            timeline.decimal()
        );
        return Ok(Some((name, e)));
    }
    Ok(None)
}

/// The segment before, where the first side has it and the second side's segment says that it continues another one.
fn broken(
    (first, at): Side<'_>,
    (second, there): Side<'_>,
    size: SegmentSize,
    name: SegmentName,
) -> Result<Option<SegmentName>> {
    let Some((after, is_keyed)) = link(second, &there.segment(name))? else {
        return Ok(None);
    };
    let Before::Known(timeline, mark) = after.before else {
        return Ok(None);
    };
    let Some(before) = name.before(timeline, size) else {
        return Ok(None);
    };
    // If a host reads only one of the two, raw and keyed marks cannot be compared.
    let own = link(first, &at.segment(before))?.filter(|(_, keyed)| *keyed == is_keyed);
    let own = own.and_then(|(link, _)| link.own);
    Ok(own.is_some_and(|own| own != mark).then_some(before))
}

/// The link of a stored segment, and whether its marks are keyed. Damage joins nothing, and is verify's to report.
fn link(store: &dyn Store, key: &Key) -> Result<Option<(Link, bool)>> {
    match Link::stored(store, key) {
        Err(e) if matches!(e.code(), Code::Damaged | Code::Key | Code::Unsupported) => Ok(None),
        read => read,
    }
}
