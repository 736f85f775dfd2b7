//! Whether an object of a backup is stored, also for a host that may not read its backups: listings tell it, too.

use crate::error::{Code, Result};
use crate::store::{Key, Store};

/// Returns the length of an object, 0 where only its name can be had; none where it is not there.
///
/// # Errors
/// Errors of the store.
pub(super) fn length(store: &dyn Store, key: &Key) -> Result<Option<u64>> {
    match store.head(key) {
        Err(e) if e.code() == Code::Denied => {
            let listed = store.list(key.parent().unwrap_or_default())?;
            let own = listed.into_iter().find(|listed| listed.name == key.name());
            Ok(own.map(|listed| listed.meta.map_or(0, |meta| meta.size_bytes)))
        }
        found => Ok(found?.map(|meta| meta.size_bytes)),
    }
}
