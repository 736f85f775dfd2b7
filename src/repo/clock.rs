//! Two clocks that have to agree: this host's, and that of the store, which dates objects.

use std::time::Duration;

use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::store::Store;

/// The two may differ by this much. Further apart, no duration that is counted from an event means anything.
pub const MAY_DIFFER: Duration = Duration::from_secs(600);

/// Requires that this host's clock, which says `now`, agrees with the store's, where that can be asked.
///
/// # Errors
/// `Refused` with both times; what the store says.
pub fn check(store: &dyn Store, now: TimestampTz) -> Result<()> {
    let Some(theirs) = store.clock()? else {
        return Ok(());
    };
    let (earlier, later) = (theirs.min(now), theirs.max(now));
    match later > earlier.saturating_add(MAY_DIFFER) {
        true => Err(differs(
            now,
            &format!(
                "the clock of repository \"{}\" says {theirs}",
                store.location()
            ),
        )),
        false => Ok(()),
    }
}

/// The error that names both times; `theirs` says what contradicts this host's clock.
pub fn differs(now: TimestampTz, theirs: &str) -> Error {
    err!(Refused, "this host's clock says {now}, but {theirs}")
}
