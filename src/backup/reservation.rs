//! The reservation of a backup's id (format, sections 9 and 10).

use super::Surroundings;
use crate::err;
use crate::error::Result;
use crate::repo::event::{self, Event};
use crate::repo::layout::{BackupId, ClusterLayout};
use crate::store::{Published, Store};

/// Backups that may begin in one second.
const MOST_ATTEMPTS: u32 = 100;

/// Reserves an id for a full backup that begins now.
///
/// # Errors
/// What the store says.
pub fn reserve(
    store: &dyn Store,
    layout: &ClusterLayout,
    around: &Surroundings<'_>,
) -> Result<BackupId> {
    let now = (around.clock)();
    let stamp = event::compact(now);
    let stamp = format!("{}Z", stamp.get(..15).unwrap_or_default());
    for attempt in 1..=MOST_ATTEMPTS {
        let id = BackupId::compose(&stamp, attempt, "full")?;
        let begin = Event {
            time: now,
            backup_kind: Some("full".into()),
            pid: Some(std::process::id()),
            ..around.writer().event("begin", &id.to_string())
        };
        if event::begin(store, layout, &begin)? == Published::Created {
            return Ok(id);
        }
    }
    Err(err!(
        Locked,
        "{MOST_ATTEMPTS} backups began within the second {stamp}"
    ))
}
