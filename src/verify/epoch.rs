//! A host that was forgotten in a rotation: it goes on to seal in a former epoch, and is seen from another host.

use super::check::Check;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::epochs;
use crate::repo::keyring::recipient_names;
use crate::repo::repository::Repository;
use crate::repo::scope;
use crate::store::Key;

/// Warns where the newest objects of a scope are of a former epoch, and were stored after the newest epoch was made. `newest` are their keys.
///
/// # Errors
/// Errors of the store.
pub(super) fn check(check: &Check<'_>, repository: &Repository, newest: &[Key]) -> Result<()> {
    let Some(keys) = repository.keys() else {
        return Ok(());
    };
    let later = epochs::later(check.store, keys.mac.as_ref())?;
    let Some(epoch) = later.last().map(|epoch| epoch.number) else {
        return Ok(());
    };
    let Some(made) = made(check, epoch)? else {
        return Ok(());
    };
    for key in newest {
        let Some(stored) = check.store.head(key)?.map(|meta| meta.modified) else {
            continue;
        };
        // One that cannot be opened is somebody else's finding.
        let Ok(Some(object)) = check.store.open(key) else {
            continue;
        };
        let own = object.sealed().map(|sealed| sealed.epoch()).transpose()?;
        if let Some(own) = own.filter(|own| *own < epoch && stored > made) {
            check.warn(format!(
                "\"{key}\", one of the newest of {}, is sealed in epoch {own}, and was stored after epoch {epoch} was made: the host that wrote it still has the former writer.key, or a sync copied it (pitr doctor on that host)",
                check.scope.prefix()
            ));
        }
    }
    Ok(())
}

/// The time at which the store got the first of an epoch's recipients.
fn made(check: &Check<'_>, epoch: u32) -> Result<Option<TimestampTz>> {
    let mut first = None;
    for name in recipient_names(check.store, epoch)? {
        let meta = check.store.head(&scope::recipient(epoch, &name)?)?;
        let stored = meta.map(|meta| meta.modified);
        first = match (first, stored) {
            (Some(a), Some(b)) => Some(std::cmp::min(a, b)),
            (a, b) => a.or(b),
        };
    }
    Ok(first)
}
