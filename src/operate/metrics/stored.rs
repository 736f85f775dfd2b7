//! Metrics of what a repository stores of a cluster beside whole backups and archived WAL.

use super::exposition::{Exposition, Labels, families};
use super::{BACKUPS, counted, number};
use crate::operate::backup_age;
use crate::operate::counters::{self, Counters, kind_name};
use crate::operate::info::ClusterInfo;
use crate::operate::tallies::Tallies;
use crate::pg::time::TimestampTz;
use crate::repo::root::BackupKind;

families! {
    PAGE_ERRORS: Gauge "pitr_backup_page_errors" "Pages that failed their checksum in the newest backup of a type.";
    CONFLICTS: Counter "pitr_archive_conflicts_total" "Refused copies of WAL files that looks of this host saw in the repository.";
    PENDING: Gauge "pitr_expire_pending_bytes" "Stored size of backups that are marked for deletion and still there.";
    LOCKED: Gauge "pitr_expire_locked_bytes"
        "Size of the objects that the store refused to delete in the last pitr expire of this host, since they are locked.";
}

/// Adds them.
pub(super) fn add(
    all: &mut Exposition,
    (one, now): (&ClusterInfo, TimestampTz),
    (counters, tallies): (&Counters, Option<&Tallies>),
) {
    let (cluster, repository) = (one.name.as_str(), one.repository_name.as_str());
    let labels = [("cluster", cluster), ("repo", repository)];
    for kind in [BackupKind::Full, BackupKind::Incremental] {
        let ours = one.inventory.backups.iter().filter(|b| b.kind == kind);
        let newest = ours.max_by_key(|b| backup_age::order(b.stop_time, now));
        let with = [labels[0], ("type", kind_name(kind)), labels[1]];
        all.add_known(&PAGE_ERRORS, &with, newest.map(|b| number(b.page_errors)));
    }
    if let Some(remains) = &one.remains {
        for kind in [BackupKind::Full, BackupKind::Incremental] {
            let name = kind_name(kind);
            let ours = remains.incomplete.iter();
            let ours = ours.filter(|id| id.to_string().ends_with(name));
            let state = ("state", "incomplete");
            let with = [labels[0], ("type", name), labels[1], state];
            all.add(&BACKUPS, &with, counted(ours.count()));
        }
    }
    if let Some(seen) = tallies.and_then(|t| t.refused(cluster, repository)) {
        let mut add = |kind: &'static str, count: u64| {
            let with: Labels<'_> = &[labels[0], labels[1], ("kind", kind)];
            all.add(&CONFLICTS, with, number(count));
        };
        add("segment", seen.segments);
        add("history", seen.histories);
    }
    let marked = one.inventory.backups.iter();
    let marked = marked.filter(|b| b.expire_mark.is_some());
    let pending = marked.map(|b| b.stored_bytes).sum();
    all.add(&PENDING, &labels, number(pending));
    let locked = counters::locked(cluster, repository);
    let locked = counters.measured.get(&locked);
    all.add_known(&LOCKED, &labels, locked.map(|bytes| number(*bytes)));
}
