//! How far running work is: restores, checks, expiry and copies of this host; backups stand with their counts.

use super::exposition::{Exposition, Family, Labels, Type, families};
use super::{counted, number};
use crate::operate::underway::Underway;

/// The families of one kind of work: the share of its present phase, the bytes that are done, all bytes, the seconds that it takes yet.
pub(super) type Progress = [Family; 4];

const SHARE: &str = "Share of the present phase that is done, where its size is known.";
const DONE: &str = "Bytes of the present phase that are done.";
const TOTAL: &str = "Bytes of the present phase, where they are known.";
const LEFT: &str = "How long the present phase takes yet, at its rate so far.";

families! {
    RESTORES: Gauge "pitr_restore_running" "Restores, drills and clones that this host makes now.";
    VERIFIES: Gauge "pitr_verify_running" "Checks that this host makes now.";
    EXPIRES: Gauge "pitr_expire_running" "Runs of expire of this host that go on now.";
    SYNCS: Gauge "pitr_sync_running" "Copies between repositories that this host makes now.";
}

/// Declares the families of kinds of work by their names.
macro_rules! progress {
    ($($vis:vis $work:ident: $share:literal $done:literal $total:literal $left:literal;)+) => {
        $($vis const $work: Progress = [
            ($share, Type::Gauge, SHARE), ($done, Type::Gauge, DONE), ($total, Type::Gauge, TOTAL), ($left, Type::Gauge, LEFT),
        ];)+
    };
}

progress! {
    pub(super) OF_BACKUP: "pitr_backup_progress_ratio" "pitr_backup_done_bytes" "pitr_backup_total_bytes" "pitr_backup_left_seconds";
    OF_RESTORE: "pitr_restore_progress_ratio" "pitr_restore_done_bytes" "pitr_restore_total_bytes" "pitr_restore_left_seconds";
    OF_VERIFY: "pitr_verify_progress_ratio" "pitr_verify_done_bytes" "pitr_verify_total_bytes" "pitr_verify_left_seconds";
    OF_EXPIRE: "pitr_expire_progress_ratio" "pitr_expire_done_bytes" "pitr_expire_total_bytes" "pitr_expire_left_seconds";
    OF_SYNC: "pitr_sync_progress_ratio" "pitr_sync_done_bytes" "pitr_sync_total_bytes" "pitr_sync_left_seconds";
}

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
