//! The state of a host that cannot read its backups back: checked before one becomes a prior, and brought up to date
//! behind each commit (decision 0047).

use crate::err;
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::repo::kept::Kept;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::BackupRoot;
use crate::store::Key;

/// Requires what an incremental has to know of each part of its prior, undamaged: once the backup is begun it is too
/// late for another prior.
///
/// # Errors
/// `Key`.
pub fn check(kept: &Kept, layout: &ClusterLayout, root: &BackupRoot) -> Result<()> {
    let mut parts = parts(layout, root);
    parts.try_for_each(|key| kept.check(&key).map_err(|why| err!(Key, "{why}")))
}

/// The layers and packs that a root names.
fn parts(layout: &ClusterLayout, root: &BackupRoot) -> impl Iterator<Item = Key> {
    let layers = root.map.shards.iter().flat_map(|shard| &shard.layers);
    let packs = root.map.packs.iter().map(|pack| layout.pack(&pack.key));
    layers.map(|layer| layout.layer(&layer.key)).chain(packs)
}

/// Forgets what only earlier backups needed, now that this one is committed. State that could not be kept whole is
/// reported by `warn`, and the earlier one stays.
pub fn settle(
    (repository, layout): (&Repository, &ClusterLayout),
    root: &BackupRoot,
    warn: &dyn Fn(&str),
) {
    let Some(kept) = repository.kept() else {
        return;
    };
    if let Some(why) = kept.failure() {
        warn(&format!(
            "no incremental can build upon backup \"{}\", because this host could not keep what that takes: {why}",
            root.head.id
        ));
        return;
    }
    // One that is no prior takes the place of none.
    if root.content.is_damaged() || !root.content.left_out_databases.is_empty() {
        return;
    }
    let own = parts(layout, root).chain([layout.manifest(&root.head.id)]);
    let own: std::collections::BTreeSet<String> = own.map(|key| key.as_str().to_owned()).collect();
    let size = SegmentSize::new(root.content.wal_segment_size_bytes);
    let first = size.map(|size| (size, SegmentNumber::of(root.content.start_lsn, size)));
    let is_needed_wal = |key: &str| {
        let name = key.rsplit('/').next().unwrap_or_default();
        let (Ok(name), Ok((size, first))) = (name.parse::<SegmentName>(), &first) else {
            return false;
        };
        name.number(*size).is_ok_and(|number| number >= *first)
    };
    kept.prune(&layout.prefix(), &|key| {
        own.contains(key) || is_needed_wal(key)
    });
}
