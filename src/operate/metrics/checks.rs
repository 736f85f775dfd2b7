//! Metrics of what was proven of a cluster: checks, drills, and the last commands that went well.

use super::exposition::{Exposition, families};
use super::{counted, flag, number, seconds};
use crate::operate::counters::Counters;
use crate::operate::info::ClusterInfo;

families! {
    VERIFY: Gauge "pitr_verify_last_success_timestamp_seconds" "Last time that pitr verify found everything whole on this host.";
    COVERAGE: Gauge "pitr_verify_coverage_ratio" "Part of packs and segments that was ever read back.";
    OLDEST_READ: Gauge "pitr_verify_oldest_read_timestamp_seconds" "When the part was read back that was read longest ago.";
    DAMAGED: Gauge "pitr_verify_damaged_objects" "Backups and segments that a check found damaged.";
    EXPIRE: Gauge "pitr_expire_last_success_timestamp_seconds" "Last time that pitr expire went well on this host.";
    DRILL: Gauge "pitr_drill_last_success_timestamp_seconds" "Last drill that passed.";
    DRILL_RESULT: Gauge "pitr_drill_last_result" "0 where the last drill passed and no backup is known to be broken by an earlier one, else 1.";
    DRILL_RTO: Gauge "pitr_drill_rto_seconds" "Time to recovery in the last drill that passed.";
}

/// Adds them.
pub(super) fn add(
    all: &mut Exposition,
    one: &ClusterInfo,
    counters: &Counters,
    labels: &[(&'static str, &str); 2],
) {
    let [cluster, repo] = *labels;
    let share = &one.read_back;
    let read = share.packs_read + share.segments_read;
    let there = share.packs + share.segments;
    let deep = [cluster, repo, ("depth", "full")];
    if there > 0 {
        all.add(&COVERAGE, &deep, number(read) / number(there));
    }
    all.add_known(&OLDEST_READ, &deep, share.oldest.map(seconds));
    let damaged = one.backups.iter().filter(|b| b.damaged).count();
    let damaged = damaged + one.unreadable_backups.len() + one.inventory.suspects.len();
    all.add(&DAMAGED, labels, counted(damaged));
    let last = |command: &str| counters.last(command, &one.name).map(seconds);
    all.add_known(&VERIFY, &[cluster, ("depth", "full")], last("verify"));
    all.add_known(&EXPIRE, &[cluster], last("expire"));
    for proven in &one.drills {
        let labels = [cluster, ("repo", proven.repository.as_str())];
        if let Some(newest) = &proven.drills.newest {
            let is_broken = !newest.is_passed() || !proven.drills.broken.is_empty();
            all.add(&DRILL_RESULT, &labels, flag(is_broken));
        }
        if let Some(passed) = &proven.drills.proven {
            all.add(&DRILL, &labels, seconds(passed.time));
            all.add(&DRILL_RTO, &labels, number(passed.recovery_ms()) / 1000.0);
        }
    }
}
