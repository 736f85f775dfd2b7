//! Reads a backup of an aux scope, under a claim that keeps it.

use std::path::Path;

use serde_json::Value;

use super::claim::Claim;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::scope::Scope;
use crate::snapshot::reader::Snapshot;
use crate::ticking::ticking;

/// A backup that is open for reading.
pub struct Open<'o> {
    pub root: &'o AuxRoot,
    /// The member of the root that belongs to its kind.
    pub member: &'o Value,
    /// Its map.
    pub snapshot: &'o Snapshot<'o>,
    /// Keeps the claim, and ends the work when the operator asks for it; cheap to call often.
    pub tick: &'o mut dyn FnMut() -> Result<()>,
}

/// Returns the result of `work` on the backup `id`, which was chosen at `planned`. `pitr expire` keeps the backup for as long as `work` calls its tick.
///
/// # Errors
/// `NotFound` when the backup does not exist; `Unsupported` for content that this version cannot read; `Damaged`; those of `work`, and what the
/// store says.
pub fn read<T>(
    repository: &Repository,
    (scope, id): (&Scope, &BackupId),
    (host, planned): (&Host, TimestampTz),
    work: impl FnOnce(Open<'_>) -> Result<T>,
) -> Result<T> {
    let store = repository.store();
    let mut claim = Claim::take(store, scope, host, id, Some(planned))?;
    let mut tick = || {
        host.check_stop()?;
        if let Some(claim) = &mut claim {
            claim.keep();
        }
        Ok(())
    };
    let result = (|| {
        let root = AuxRoot::read(store, scope, id)?;
        let root = root.ok_or_else(|| err!(NotFound, "backup \"{id}\" does not exist"))?;
        root.check_content()?;
        let member = AuxRoot::member(store, scope, id)?.unwrap_or_default();
        let snapshot = ticking(&mut tick, || Snapshot::open(store, scope, &root))?;
        let snapshot = snapshot.spooling(&host.scratch);
        work(Open {
            root: &root,
            member: &member,
            snapshot: &snapshot,
            tick: &mut tick,
        })
    })();
    if let Some(claim) = claim {
        claim.release();
    }
    result
}

/// Requires that a directory is empty.
///
/// # Errors
/// `Refused` when it is not; those of the system.
pub fn check_empty(to: &Path) -> Result<()> {
    let failed = |e| Error::from_io(format!("read directory \"{}\"", to.display()), e);
    match std::fs::read_dir(to).map_err(failed)?.next() {
        None => Ok(()),
        Some(_) => Err(err!(Refused, "directory \"{}\" is not empty", to.display())
            .hint("Nothing was written. Name an empty directory.")),
    }
}

/// The error of a directory that could not be made: `Refused` where its parent is missing, else `TargetWrite`.
pub fn not_made(to: &Path, error: std::io::Error) -> Error {
    match (error.kind(), to.parent()) {
        (std::io::ErrorKind::NotFound, Some(parent)) => {
            err!(Refused, "directory \"{}\" does not exist", parent.display())
                .hint("Nothing was written. Create it, or mount the disk it belongs to.")
        }
        _ => Error::from_io(format!("make directory \"{}\"", to.display()), error)
            .with_code(Code::TargetWrite),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_made_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let code = |to: &Path| not_made(to, std::fs::create_dir(to).unwrap_err()).code();
        assert_eq!(code(&folder.path().join("gone/new")), Code::Refused);
        assert_eq!(code(&file.join("new")), Code::TargetWrite);
    }
}
