//! Conditions of what the commands of this host counted, and of what they have not done for long.

use std::collections::BTreeSet;
use std::time::Duration;

use super::condition::new;
use super::decide::Condition;
use crate::config::{Records, Settings, Severity};
use crate::operate::counters::{self, Counters};
use crate::operate::human;
use crate::operate::info::ClusterInfo;
use crate::operate::metrics::Metrics;
use crate::pg::time::TimestampTz;

const DAY: u64 = 86_400;
/// `pitr verify` runs each week.
const VERIFY_DAYS: u64 = 8;
/// `pitr expire` runs each day.
const EXPIRE_DAYS: u64 = 3;
/// A key is tried each month.
const KEY_DAYS: u64 = 40;
/// Unfinished backups that another one may meet.
const INCOMPLETE_MAX: usize = 2;

/// Collects them. A command that never succeeded on this host is run elsewhere, or by nobody: that is no condition here.
pub fn conditions(
    now: TimestampTz,
    settings: &Settings,
    metrics: &Metrics,
    counters: &Counters,
) -> Vec<Condition> {
    let mut found = Vec::new();
    found.extend(audit(counters));
    if settings.audit.records != Records::Off {
        found.extend(audit_stale(now, counters));
    }
    // A host that only checks has no cluster of its own: those that the looks see count.
    let seen = metrics.info.iter().flat_map(|info| &info.clusters);
    let seen = seen.map(|one| one.name.as_str());
    let clusters = settings.clusters.iter().map(|c| c.name.as_str());
    let clusters: BTreeSet<&str> = clusters.chain(seen).collect();
    found.extend(
        clusters
            .into_iter()
            .flat_map(|name| undone(now, name, counters)),
    );
    let repositories = settings.repositories.iter().map(|r| r.name.as_str());
    found.extend(repositories.filter_map(|name| untried(now, name, counters)));
    for one in metrics.info.iter().flat_map(|info| &info.clusters) {
        found.extend(page_errors(one));
        found.extend(incomplete(one));
    }
    found
}

/// Commands of a cluster that have not succeeded for long.
fn undone(now: TimestampTz, cluster: &str, counters: &Counters) -> Vec<Condition> {
    let one = |(command, days, next): (&str, u64, &str)| {
        let passed = passed(now, counters.last(command, cluster), days)?;
        let summary = format!("{cluster}: pitr {command} last succeeded {passed} ago");
        let id = format!("{cluster}/{command}/stale");
        Some(new(&id, Severity::Medium, summary, next))
    };
    let commands = [
        ("verify", VERIFY_DAYS, "pitr verify"),
        ("expire", EXPIRE_DAYS, "pitr expire --confirm"),
    ];
    commands.into_iter().filter_map(one).collect()
}

/// A repository that no key of this host has read for long.
fn untried(now: TimestampTz, repository: &str, counters: &Counters) -> Option<Condition> {
    let passed = passed(now, counters.last(counters::KEY, repository), KEY_DAYS)?;
    let summary =
        format!("repository \"{repository}\": a key of this host last read it {passed} ago");
    let id = format!("repository/{repository}/key");
    Some(new(&id, Severity::Medium, summary, "pitr verify"))
}

/// The time since then, when it is more than so many days.
fn passed(now: TimestampTz, then: Option<TimestampTz>, days: u64) -> Option<String> {
    let passed = now.duration_since(then?)?;
    (passed > Duration::from_secs(days * DAY)).then(|| human::duration(passed))
}

fn audit(counters: &Counters) -> Option<Condition> {
    let damage = counters.measured.get(counters::AUDIT_DAMAGE).copied();
    let damage = damage.filter(|count| *count > 0)?;
    let records = human::count(damage, "record");
    let summary = format!("the audit log is broken: {records} changed or removed");
    let next = "pitr audit verify";
    Some(new("audit/broken", Severity::Critical, summary, next))
}

/// Anchors and checks of the audit log that come no more: what is removed since then may go unseen.
fn audit_stale(now: TimestampTz, counters: &Counters) -> Vec<Condition> {
    let one = |(command, days): (&str, u64)| {
        let passed = passed(now, counters.last(command, ""), days)?;
        let summary = format!("pitr {command} last succeeded on this host {passed} ago");
        let id = format!("{}/stale", command.replace(' ', "/"));
        let next = format!("pitr {command}");
        Some(new(&id, Severity::Medium, summary, &next))
    };
    let commands = [
        (counters::AUDIT_ANCHOR, counters::ANCHOR_DAYS),
        (counters::AUDIT_VERIFY, counters::AUDIT_VERIFY_DAYS),
    ];
    commands.into_iter().filter_map(one).collect()
}

/// Pages that were damaged on the server when the newest backup read them.
fn page_errors(one: &ClusterInfo) -> Option<Condition> {
    let newest = one.inventory.backups.iter().max_by_key(|b| b.stop_time)?;
    let pages = human::count(newest.page_errors, "page");
    let name = &one.name;
    (newest.page_errors > 0).then(|| {
        let summary = format!("{name}: the newest backup read {pages} with a wrong checksum");
        let id = format!("{name}/backup/pages");
        new(&id, Severity::Critical, summary, "pitr info")
    })
}

fn incomplete(one: &ClusterInfo) -> Option<Condition> {
    let count = one.remains.as_ref()?.incomplete.len();
    let name = &one.name;
    (count > INCOMPLETE_MAX).then(|| {
        let summary = format!("{name}: {count} backups began and were never finished");
        let id = format!("{name}/backup/incomplete");
        new(&id, Severity::Medium, summary, "pitr expire --confirm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(successes: &[(&str, &str)], damage: u64) -> Counters {
        let success = |(what, time): &(&str, &str)| (what.to_string(), time.parse().unwrap());
        Counters {
            successes: successes.iter().map(success).collect(),
            measured: [(counters::AUDIT_DAMAGE.to_owned(), damage)].into(),
            ..Counters::default()
        }
    }

    #[test]
    fn what_was_not_done_for_long_is_told_and_what_was_never_done_is_not() {
        let now: TimestampTz = "2026-11-20T02:00:00Z".parse().unwrap();
        let past = [
            ("verify main", "2026-11-12T01:00:00Z"),
            ("expire main", "2026-11-17T03:00:00Z"),
            ("key local", "2026-10-10T00:00:00Z"),
        ];
        let done = counters(&past, 0);
        let told = undone(now, "main", &done);
        let ids: Vec<&str> = told.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["main/verify/stale"]);
        assert!(undone(now, "other", &done).is_empty());
        let key = untried(now, "local", &done).unwrap();
        assert_eq!(key.id, "repository/local/key");
        assert_eq!(key.severity, Severity::Medium);
        assert!(untried(now, "offsite", &done).is_none());
    }

    #[test]
    fn anchors_and_checks_of_the_audit_log_that_come_no_more_are_told() {
        let now: TimestampTz = "2026-11-20T02:00:00Z".parse().unwrap();
        let ids = |anchor, check| -> Vec<String> {
            let done = counters(&[("audit anchor ", anchor), ("audit verify ", check)], 0);
            let told = audit_stale(now, &done).into_iter();
            told.map(|one| one.id).collect()
        };
        assert!(ids("2026-11-17T03:00:00Z", "2026-10-17T00:00:00Z").is_empty());
        let both = ids("2026-11-17T01:00:00Z", "2026-10-15T00:00:00Z");
        assert_eq!(both, ["audit/anchor/stale", "audit/verify/stale"]);
        assert!(audit_stale(now, &Counters::default()).is_empty());
    }

    #[test]
    fn a_broken_audit_log_is_critical() {
        assert!(audit(&counters(&[], 0)).is_none());
        assert!(audit(&Counters::default()).is_none());
        let broken = audit(&counters(&[], 2)).unwrap();
        assert_eq!(broken.severity, Severity::Critical);
        let summary = "the audit log is broken: 2 records changed or removed";
        assert_eq!(broken.summary, summary);
    }
}
