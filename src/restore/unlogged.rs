//! Unlogged relations that a backup caught before their init fork was created: they are left out, as PostgreSQL itself would have removed them.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::snapshot::filekey::{FileKey, Fork};
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;
use crate::wal::unlogged::RelationName;

/// Relations that are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unlogged {
    pub relations: BTreeSet<RelationName>,
    /// Their files in the backup.
    pub file_count: u64,
    /// The length of these.
    pub size_bytes: u64,
}

impl Unlogged {
    /// Whether a file is one of them.
    pub fn holds(&self, file: &FileKey) -> bool {
        !self.relations.is_empty()
            && name_of(file).is_some_and(|(r, _)| self.relations.contains(&r))
    }
}

/// Returns the relations of `among` of which the backup has a main fork and no init fork.
///
/// # Errors
/// `Damaged` when the map fails a check.
pub fn without_init(
    snapshot: &Snapshot<'_>,
    among: &BTreeSet<RelationName>,
) -> Result<BTreeSet<RelationName>> {
    let (mut found, mut reset) = (BTreeSet::new(), BTreeSet::new());
    for item in snapshot.items() {
        let item = item?;
        if let Metadata::File { .. } = item.metadata
            && let Some((relation, fork)) = name_of(&item.key)
            && among.contains(&relation)
        {
            match fork {
                Fork::Main => found.insert(relation),
                Fork::Init => reset.insert(relation),
                Fork::FreeSpace | Fork::Visibility => false,
            };
        }
    }
    found.retain(|relation| !reset.contains(relation));
    Ok(found)
}

fn name_of(file: &FileKey) -> Option<(RelationName, Fork)> {
    let file = file.relation()?;
    Some(((file.tablespace, file.database, file.relation), file.fork))
}
