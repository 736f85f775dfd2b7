//! The rules for Prometheus: those that are required stand there word for word, and all are tested.

use std::collections::BTreeSet;
use std::path::Path;

/// A rule of `contrib/prometheus/rules.yml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    alert: String,
    severity: String,
    /// How long it holds before it fires; empty: at once.
    lasts: String,
    pub expr: String,
}

/// Reads the rules. An expression of several lines is one line, with blanks.
pub fn rules() -> Vec<Rule> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/prometheus/rules.yml");
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("- alert: ").skip(1);
    blocks.map(rule).collect()
}

fn rule(block: &str) -> Rule {
    let mut lines = block.lines().map(str::trim);
    let alert = lines.next().unwrap().to_owned();
    let (mut severity, mut lasts, mut expr) = (String::new(), String::new(), String::new());
    let mut is_in_expr = false;
    for line in lines {
        let is_key = ["for: ", "labels: ", "annotations: "];
        is_in_expr &= !is_key.iter().any(|key| line.starts_with(key));
        if is_in_expr {
            expr.push_str(&format!(" {line}"));
        } else if let Some(rest) = line.strip_prefix("expr: ") {
            is_in_expr = rest == ">-";
            expr = if is_in_expr {
                String::new()
            } else {
                rest.to_owned()
            };
        } else if let Some(rest) = line.strip_prefix("for: ") {
            lasts = rest.to_owned();
        } else if let Some((_, rest)) = line.split_once("{severity: ") {
            let end = rest.find([',', '}']).unwrap();
            severity = rest[..end].to_owned();
        }
    }
    Rule {
        alert,
        severity,
        lasts,
        expr: expr.trim().to_owned(),
    }
}

/// The rules that are required: alert, severity, how long it holds, expression.
const REQUIRED: [(&str, &str, &str, &str); 49] = [
    (
        "BackupFailure",
        "critical",
        "5m",
        "rate(backup_failures_total[5m]) > 0",
    ),
    (
        "OldBackup",
        "warning",
        "1h",
        "time() - backup_timestamp_seconds > 86400",
    ),
    (
        "BackupSizeIncrease",
        "warning",
        "1h",
        "increase(backup_size_bytes[7d]) / increase(backup_size_bytes[30d]) > 1.5",
    ),
    (
        "ReplicationLag",
        "critical",
        "30m",
        "pitr_replication_lag_seconds > 3600 or pg_replication_lag_seconds > 3600 or pg_replication_lag > 3600",
    ),
    (
        "PitrArchivingStuck",
        "warning",
        "2m",
        "pitr_archive_oldest_ready_seconds > 300",
    ),
    (
        "PitrArchivingStuck",
        "critical",
        "2m",
        "pitr_archive_oldest_ready_seconds > 900",
    ),
    (
        "PitrArchiveFailing",
        "warning",
        "5m",
        "increase(pitr_archive_push_failures_total[10m]) > 3",
    ),
    (
        "PitrArchiverCrashing",
        "critical",
        "",
        "increase(pitr_archiver_restarts_total[15m]) > 2",
    ),
    (
        "PitrArchiveConflict",
        "critical",
        "",
        "increase(pitr_archive_conflicts_total[1h]) > 0",
    ),
    (
        "PitrPgWalFilling",
        "warning",
        "5m",
        "pitr_pg_wal_full_in_seconds < 4 * 3600",
    ),
    (
        "PitrPgWalFilling",
        "critical",
        "5m",
        "pitr_pg_wal_full_in_seconds < 3600",
    ),
    (
        "PitrRpoBreach",
        "critical",
        "2m",
        "pitr_rpo_seconds > 900 or pitr_rpo_seconds > 5 and on (cluster, instance) pitr_receiver_connected",
    ),
    ("PitrGap", "critical", "", "pitr_gap_inside_window > 0"),
    (
        "PitrBackupMissing",
        "critical",
        "10m",
        "time() - pitr_backup_last_success_timestamp_seconds{type=\"full\"} > 26 * 3600",
    ),
    (
        "PitrNeverBackedUp",
        "critical",
        "1h",
        "absent(pitr_backup_last_success_timestamp_seconds) \
         or pitr_backup_last_success_timestamp_seconds == 0 \
         or max by (cluster, component) (backup_attempts_total) unless max by (cluster, component) (backup_timestamp_seconds)",
    ),
    (
        "PitrBackupSlow",
        "high",
        "",
        "backup_duration_seconds > 2 * avg_over_time(backup_duration_seconds[14d])",
    ),
    (
        "PitrBackupSizeJump",
        "warning",
        "",
        "backup_size_bytes{type=\"full\"} / avg_over_time(backup_size_bytes{type=\"full\"}[14d]) > 1.5 \
         or backup_size_bytes{type=\"full\"} / avg_over_time(backup_size_bytes{type=\"full\"}[14d]) < 0.5",
    ),
    (
        "PitrPageErrors",
        "critical",
        "",
        "pitr_backup_page_errors > 0",
    ),
    (
        "PitrVerifyStale",
        "warning",
        "",
        "time() - pitr_verify_last_success_timestamp_seconds > 8 * 86400",
    ),
    (
        "PitrVerifyDamage",
        "critical",
        "",
        "pitr_verify_damaged_objects > 0",
    ),
    (
        "PitrDrillStale",
        "warning",
        "",
        "time() - pitr_drill_last_success_timestamp_seconds > 35 * 86400",
    ),
    (
        "PitrDrillFailed",
        "critical",
        "",
        "pitr_drill_last_result != 0",
    ),
    (
        "PitrRtoOverGoal",
        "warning",
        "1h",
        "pitr_rto_estimate_seconds > 4 * 3600",
    ),
    (
        "PitrReceiverDown",
        "critical",
        "2m",
        "pitr_receiver_connected == 0",
    ),
    (
        "PitrReceiverDown",
        "critical",
        "30s",
        "pitr_receiver_connected == 0 and on (cluster, slot, instance) last_over_time(pitr_receiver_sync_state[1d]) > 1",
    ),
    (
        "PitrSlotDanger",
        "warning",
        "1m",
        "pitr_slot_retained_bytes / (pitr_slot_retained_bytes + pitr_slot_safe_bytes) > 0.5",
    ),
    (
        "PitrSlotDanger",
        "high",
        "1m",
        "pitr_slot_retained_bytes / (pitr_slot_retained_bytes + pitr_slot_safe_bytes) > 0.75",
    ),
    (
        "PitrSlotDanger",
        "critical",
        "1m",
        "pitr_slot_retained_bytes / (pitr_slot_retained_bytes + pitr_slot_safe_bytes) > 0.9 or pitr_slot_lost > 0",
    ),
    (
        "PitrRepoFull",
        "medium",
        "15m",
        "pitr_repo_free_bytes / pitr_repo_fs_bytes < 0.2 or pitr_repo_full_in_seconds < 7 * 86400",
    ),
    (
        "PitrRepoFull",
        "critical",
        "15m",
        "pitr_repo_free_bytes / pitr_repo_fs_bytes < 0.05",
    ),
    ("PitrRepoDown", "critical", "5m", "pitr_repo_up == 0"),
    (
        "PitrClockOffset",
        "warning",
        "5m",
        "abs(pitr_repo_clock_offset_seconds) > 60",
    ),
    (
        "PitrClockOffset",
        "critical",
        "5m",
        "abs(pitr_repo_clock_offset_seconds) > 600",
    ),
    (
        "PitrClockOffset",
        "critical",
        "5m",
        "abs(pitr_server_clock_offset_seconds) > 60",
    ),
    (
        "PitrExpireStale",
        "warning",
        "",
        "time() - pitr_expire_last_success_timestamp_seconds > 3 * 86400",
    ),
    (
        "PitrIncompleteBackups",
        "warning",
        "",
        "sum by (cluster, repo) (pitr_backups{state=\"incomplete\"}) > 2",
    ),
    (
        "PitrLockedGrowth",
        "warning",
        "",
        "pitr_expire_locked_bytes / (pitr_expire_locked_bytes offset 7d > 0) > 1.3",
    ),
    ("PitrKeyRisk", "critical", "", "pitr_key_recipients < 2"),
    (
        "PitrKeyRisk",
        "warning",
        "",
        "time() - pitr_key_last_verified_timestamp_seconds > 40 * 86400",
    ),
    (
        "PitrCertExpiry",
        "warning",
        "",
        "pitr_cert_expiry_timestamp_seconds - time() < 21 * 86400",
    ),
    (
        "PitrCertExpiry",
        "critical",
        "",
        "pitr_cert_expiry_timestamp_seconds - time() < 3 * 86400",
    ),
    ("PitrAuditBroken", "critical", "", "pitr_audit_broken > 0"),
    (
        "PitrConfigDrift",
        "warning",
        "30m",
        "count by (cluster) (count by (cluster, fingerprint) (pitr_config_fingerprint_info)) > 1",
    ),
    (
        "PitrMetricsMissing",
        "critical",
        "10m",
        "absent(pitr_build_info)",
    ),
    // Ours, without which a required one would miss what it is for.
    (
        "PitrBackupFailed",
        "critical",
        "",
        "increase(backup_failures_total[15m]) > 0",
    ),
    ("PitrServerDown", "critical", "2m", "pitr_server_up == 0"),
    (
        "PitrMetricsStale",
        "critical",
        "5m",
        "time() - pitr_metrics_timestamp_seconds > 900",
    ),
    ("PitrStatusCritical", "critical", "5m", "pitr_status == 2"),
    ("PitrStatusUnknown", "high", "10m", "pitr_status == 3"),
];

#[test]
fn the_rules_that_are_required_stand_there_word_for_word() {
    let required = REQUIRED.map(|(alert, severity, lasts, expr)| Rule {
        alert: alert.to_owned(),
        severity: severity.to_owned(),
        lasts: lasts.to_owned(),
        expr: expr.to_owned(),
    });
    let rules = rules();
    assert!(rules.len() > required.len(), "{}", rules.len());
    for rule in &required {
        let own = rules.iter().filter(|one| one.alert == rule.alert);
        let own: Vec<&Rule> = own.collect();
        assert!(own.contains(&rule), "{rule:?} is not among {own:#?}");
    }
    // And no other one has such a name.
    let names: BTreeSet<&str> = required.iter().map(|one| one.alert.as_str()).collect();
    let named = rules
        .iter()
        .filter(|one| names.contains(one.alert.as_str()));
    for rule in named {
        assert!(required.contains(rule), "{rule:?}");
    }
}

#[test]
fn an_expression_of_several_lines_is_read_whole() {
    let read = rule(
        "A\n        expr: >-\n          a > 1\n          or b\n        for: 1h\n        labels: {severity: high, x: y}\n",
    );
    assert_eq!(
        (
            read.expr.as_str(),
            read.lasts.as_str(),
            read.severity.as_str()
        ),
        ("a > 1 or b", "1h", "high")
    );
}
