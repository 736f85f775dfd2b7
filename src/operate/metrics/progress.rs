//! How far running work is: restores, checks, expiry and copies of this host; backups stand with their counts.

use super::exposition::{Exposition, Labels, Type};
use super::{Family, counted, number};
use crate::operate::underway::Underway;

/// The families of one kind of work: the share of its present phase, the bytes that are done, all bytes, the seconds that it takes yet.
pub(super) type Progress = [Family; 4];

const SHARE: &str = "Share of the present phase that is done, where its size is known.";
const DONE: &str = "Bytes of the present phase that are done.";
const TOTAL: &str = "Bytes of the present phase, where they are known.";
const LEFT: &str = "How long the present phase takes yet, at its rate so far.";

pub(super) const OF_BACKUP: Progress = [
    ("pitr_backup_progress_ratio", Type::Gauge, SHARE),
    ("pitr_backup_done_bytes", Type::Gauge, DONE),
    ("pitr_backup_total_bytes", Type::Gauge, TOTAL),
    ("pitr_backup_left_seconds", Type::Gauge, LEFT),
];
const RESTORES: Family = (
    "pitr_restore_running",
    Type::Gauge,
    "Restores, drills and clones that this host makes now.",
);
const OF_RESTORE: Progress = [
    ("pitr_restore_progress_ratio", Type::Gauge, SHARE),
    ("pitr_restore_done_bytes", Type::Gauge, DONE),
    ("pitr_restore_total_bytes", Type::Gauge, TOTAL),
    ("pitr_restore_left_seconds", Type::Gauge, LEFT),
];
const VERIFIES: Family = (
    "pitr_verify_running",
    Type::Gauge,
    "Checks that this host makes now.",
);
const OF_VERIFY: Progress = [
    ("pitr_verify_progress_ratio", Type::Gauge, SHARE),
    ("pitr_verify_done_bytes", Type::Gauge, DONE),
    ("pitr_verify_total_bytes", Type::Gauge, TOTAL),
    ("pitr_verify_left_seconds", Type::Gauge, LEFT),
];
const EXPIRES: Family = (
    "pitr_expire_running",
    Type::Gauge,
    "Runs of expire of this host that go on now.",
);
const OF_EXPIRE: Progress = [
    ("pitr_expire_progress_ratio", Type::Gauge, SHARE),
    ("pitr_expire_done_bytes", Type::Gauge, DONE),
    ("pitr_expire_total_bytes", Type::Gauge, TOTAL),
    ("pitr_expire_left_seconds", Type::Gauge, LEFT),
];
const SYNCS: Family = (
    "pitr_sync_running",
    Type::Gauge,
    "Copies between repositories that this host makes now.",
);
const OF_SYNC: Progress = [
    ("pitr_sync_progress_ratio", Type::Gauge, SHARE),
    ("pitr_sync_done_bytes", Type::Gauge, DONE),
    ("pitr_sync_total_bytes", Type::Gauge, TOTAL),
    ("pitr_sync_left_seconds", Type::Gauge, LEFT),
];

/// Adds the work of this host that is no backup.
pub(super) fn add_others(all: &mut Exposition, underway: &[Underway]) {
    let is =
        |word: &'static str| move |one: &Underway| one.command.split(' ').any(|own| own == word);
    let mut kind = |running: &Family, of: &Progress, is_it: &dyn Fn(&Underway) -> bool| {
        let ours = underway.iter().filter(|one| is_it(one));
        all.add(running, &[], counted(ours.clone().count()));
        add(all, of, &[], ours);
    };
    kind(&RESTORES, &OF_RESTORE, &Underway::restores);
    kind(&VERIFIES, &OF_VERIFY, &is("verify"));
    kind(&EXPIRES, &OF_EXPIRE, &is("expire"));
    kind(&SYNCS, &OF_SYNC, &is("sync"));
}

/// Adds how far the one of them is that is least far.
pub(super) fn add<'a>(
    all: &mut Exposition,
    [share, done, total, left]: &Progress,
    labels: Labels<'_>,
    ours: impl Iterator<Item = &'a Underway>,
) {
    let in_phase = ours.filter(|one| one.phase.is_some());
    // One whose share is not known says nothing of how far the others are.
    let Some(least) = in_phase.min_by_key(|one| (one.percent().is_none(), one.percent())) else {
        return;
    };
    let ratio = least.percent().map(|percent| number(percent) / 100.0);
    all.add_known(share, labels, ratio);
    all.add(done, labels, number(least.done_bytes));
    all.add_known(total, labels, least.total_bytes.map(number));
    all.add_known(left, labels, least.left_s.map(number));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underway(command: &str, done: u64, total: Option<u64>) -> Underway {
        let text = serde_json::json!({
            "pid": 1, "start": "1", "command": command, "since": "2026-11-20T02:00:00Z",
            "phase": "x", "done_bytes": done, "total_bytes": total, "left_s": total.map(|_| 7),
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_is_least_far_is_told_of_each_kind_of_work() {
        let mut all = Exposition::default();
        let underway = [
            underway("restore", 90, Some(100)),
            underway("files restore", 10, Some(100)),
            underway("drill", 5, None),
            underway("verify", 3, None),
            underway("repo sync", 50, Some(100)),
        ];
        add_others(&mut all, &underway);
        let text = all.text();
        for line in [
            "pitr_restore_running 3",
            "pitr_restore_progress_ratio 0.1",
            "pitr_restore_done_bytes 10",
            "pitr_restore_total_bytes 100",
            "pitr_restore_left_seconds 7",
            "pitr_verify_running 1",
            "pitr_verify_done_bytes 3",
            "pitr_expire_running 0",
            "pitr_sync_running 1",
            "pitr_sync_progress_ratio 0.5",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
        for unknown in ["pitr_verify_total_bytes", "pitr_expire_done_bytes"] {
            assert!(!text.contains(unknown), "{unknown}: {text}");
        }
    }
}
