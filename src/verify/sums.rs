//! The SHA-256 of every file of a backup, for auditors: `sha256sum -c` compares it with a restored directory.

use sha2::{Digest, Sha256};

use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::BackupRoot;
use crate::snapshot::content::ContentReader;
use crate::snapshot::reader::Snapshot;

/// Takes the path of a file and its SHA-256.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8], [u8; 32]) -> Result<()>;

/// Reads every file of a backup, and hands on its path and its sum, in the order of the map.
///
/// # Errors
/// `NotFound` without such a backup; `Damaged` at the first byte that fails a check; `Interrupted`; what `sink` returns, and what the store says.
pub fn sums(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
    host: &Host,
    sink: Sink<'_>,
) -> Result<()> {
    let store = repository.store();
    let root = BackupRoot::read(store, layout, id)?.ok_or_else(|| {
        err!(NotFound, "backup \"{id}\" does not exist").hint("Run pitr info to see the backups.")
    })?;
    let phase = format!("read backup {id}");
    host.progress.phase(&phase, Some(root.head.size_bytes));
    let snapshot = Snapshot::open(store, layout, &root)?;
    let mut reader = ContentReader::new(&snapshot);
    for item in snapshot.items() {
        let item = item?;
        let Some(length) = item.metadata.file_length() else {
            continue;
        };
        let mut sum = Sha256::new();
        reader.read(&item.key, length, &mut |bytes| {
            host.check_stop()?;
            sum.update(bytes);
            host.progress.advance(bytes.len() as u64);
            Ok(())
        })?;
        sink(&item.path, sum.finalize().into())?;
    }
    Ok(())
}
