//! Whether a segment counts as archived: what a backup asks before its root is written.

use crate::error::{Code, Error, Result};
use crate::pg::segment::SegmentName;
use crate::repo::container::{Container, Kind};
use crate::repo::layout::ClusterLayout;
use crate::store::Store;

/// The state of the object under the key of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// The whole segment, durably.
    Settled,
    /// Nothing.
    Absent,
    /// Something else, and what.
    Unusable(String),
}

/// Looks at the end of a segment's object, and makes sure that it is there to stay: whoever stored it may not have come to the sync of its
/// name, and a root must not outlive it.
///
/// # Errors
/// Errors of the store, but for damage.
pub fn of_segment(
    store: &dyn Store,
    layout: &ClusterLayout,
    name: SegmentName,
) -> Result<Presence> {
    let container = match Container::stored(store, &layout.segment(name)) {
        Ok(Some(container)) => container,
        Ok(None) => return Ok(Presence::Absent),
        Err(e) if e.code() == Code::Damaged => {
            return Ok(Presence::Unusable(format!("is damaged ({e})")));
        }
        Err(e) => return Err(Error::context(e, format!("open segment \"{name}\""))),
    };
    if !container.is_stored_as(Kind::Segment, name, layout.system_identifier()) {
        return Ok(Presence::Unusable("is another file".to_owned()));
    }
    container.object().settle()?;
    Ok(Presence::Settled)
}
