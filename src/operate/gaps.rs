//! WAL that should be there and is not.

use serde::Serialize;

use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::plan::gap::{self, Gap};

/// A gap names at most this many of its segments.
const NAMES_MAX: u64 = 1000;

/// A gap, with its segments.
#[derive(Serialize)]
pub struct NamedGap {
    /// The gap.
    #[serde(flatten)]
    pub gap: Gap,
    /// The first of its segments.
    pub names: Vec<SegmentName>,
}

/// Looks for gaps behind the start of the oldest backup.
///
/// # Errors
/// Errors of the repository.
pub fn look(session: &Session) -> Result<Vec<NamedGap>> {
    let reading = Reading::open(session)?;
    let inventory = reading.inventory(session)?;
    let size = inventory.segment_size;
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    let gaps = gap::gaps(&inventory, oldest.unwrap_or_default())
        .into_iter()
        .map(|gap| {
            let first = gap.from_lsn.0 / size.bytes();
            let names = (first..first + gap.segments.min(NAMES_MAX))
                .filter_map(|n| SegmentNumber(n).name(gap.timeline, size))
                .collect();
            NamedGap { gap, names }
        })
        .collect();
    Ok(gaps)
}
