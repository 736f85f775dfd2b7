//! The frames that are fetched where databases or relations are left out.

use super::extract::{Copying, Survey, check_stop};
use crate::error::Result;
use crate::snapshot::frames::Frames;
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;

/// Walks the map of every file whose content is restored.
///
/// # Errors
/// `Interrupted`; `Damaged` when the map fails a check.
pub fn find(snapshot: &Snapshot<'_>, survey: &Survey, how: &mut Copying<'_>) -> Result<Frames> {
    let mut needed = Frames::default();
    for item in snapshot.items() {
        let item = item?;
        let Metadata::File { length, .. } = item.metadata else {
            continue;
        };
        if survey.leaves_out(&item.key) {
            continue;
        }
        for step in snapshot.steps(&item.key, length) {
            check_stop(how.stop)?;
            for at in step?.into_iter().filter_map(|place| place.at) {
                needed.add(at.pack, at.frame);
            }
        }
        (how.tick)()?;
    }
    Ok(needed)
}
