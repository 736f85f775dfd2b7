//! Restores a backup of an aux scope into an empty directory.

use std::path::Path;

use super::claim::Claim;
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::scope::Scope;
use crate::snapshot::kind::Kind;
use crate::snapshot::reader::Snapshot;

/// Restores the backup `id` of the content that `kind` knows.
///
/// # Errors
/// `NotFound` when the backup does not exist; `Refused` when the directory is not empty; `Unsupported` for content that this version cannot
/// read; `Damaged`, and what store and system say.
pub fn restore(
    repository: &Repository,
    (name, id): (&str, &BackupId),
    kind: &dyn Kind,
    to: &Path,
    host: &Host,
) -> Result<AuxRoot> {
    let scope = Scope::aux(kind.name(), name)?;
    let store = repository.store();
    check_empty(to)?;
    let claim = Claim::take(store, &scope, host, id, host.now())?;
    let restored = (|| {
        let root = AuxRoot::read(store, &scope, id)?;
        let root = root.ok_or_else(|| err!(NotFound, "backup \"{id}\" does not exist"))?;
        root.check_content()?;
        let member = AuxRoot::member(store, &scope, id)?.unwrap_or_default();
        let snapshot = Snapshot::open(store, &scope, &root)?;
        kind.restore(&snapshot, &member, to)?;
        Ok(root)
    })();
    if let Some(claim) = claim {
        claim.release();
    }
    restored
}

fn check_empty(to: &Path) -> Result<()> {
    let failed = |e| Error::from_io(format!("read directory \"{}\"", to.display()), e);
    match std::fs::read_dir(to).map_err(failed)?.next() {
        None => Ok(()),
        Some(_) => Err(err!(Refused, "directory \"{}\" is not empty", to.display())
            .hint("Nothing was written. Name an empty directory.")),
    }
}
