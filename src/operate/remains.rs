//! Objects of a cluster that are neither backups nor archived WAL: refused copies, and what backups left that came to no end.

use super::session::Session;
use crate::backup::turn;
use crate::error::Result;
use crate::repo::id::BackupId;
use crate::store::Store;
use crate::wal::inventory::Inventory;

/// The remains in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// The names of refused copies; none where this host may not list them.
    pub refused: Option<Vec<String>>,
    /// Backups that were begun, were not committed, and do not run.
    pub incomplete: Vec<BackupId>,
}

/// Looks at what remains.
///
/// # Errors
/// `Usage` for an impossible cluster name.
pub fn look(session: &Session, store: &dyn Store, inventory: &Inventory) -> Result<Remains> {
    let listed = store.list(&inventory.layout()?.conflicts());
    let refused = listed.ok().map(|all| {
        let files = all.into_iter().filter(|l| !l.is_prefix);
        files.map(|l| l.name).collect()
    });
    let now = session.host.now();
    let begun = inventory.begun.iter();
    let over = begun.filter(|(id, events)| !turn::is_running(id, events, now));
    Ok(Remains {
        refused,
        incomplete: over.map(|(id, _)| id.clone()).collect(),
    })
}
