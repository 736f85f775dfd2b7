//! Conditions of what each look asks servers and repositories, and of what looks counted: slots, clocks, archivers, `pg_wal`, locked bytes.

use std::time::Duration;

use super::condition::new;
use super::decide::Condition;
use crate::config::{Settings, Severity};
use crate::operate::counters::Counters;
use crate::operate::finding::Finding;
use crate::operate::human;
use crate::operate::metrics::Metrics;
use crate::operate::metrics::hosts::Barred;
use crate::operate::receiver::{PASSING, Receiver};
use crate::operate::server_state::{ServerState, Slot};
use crate::operate::tallies::Tallies;
use crate::pg::time::TimestampTz;

/// Shares of the WAL that a slot may keep, in per cent, and how bad each is.
const SLOT_SHARES: [(u64, Severity); 3] = [
    (90, Severity::Critical),
    (75, Severity::High),
    (50, Severity::Medium),
];
/// Differences of the clocks of server and host, in seconds.
const SERVER_CLOCKS: [(f64, Severity); 2] = [(61.0, Severity::Critical), (2.0, Severity::Medium)];
/// Differences of the clocks of a store and this host, in seconds. Backups and `pitr expire` refuse to work with the larger one.
const STORE_CLOCKS: [(f64, Severity); 2] = [(600.0, Severity::Critical), (60.0, Severity::Medium)];
/// The disk of `pg_wal` is full sooner than this, in seconds.
const FULL_IN: [(u64, Severity); 2] = [(3600, Severity::Critical), (4 * 3600, Severity::Medium)];
/// A server that is started anew is away for less than this.
const SILENT: Duration = Duration::from_secs(120);
/// A synchronous receiver is away for less than this in passing: commits wait for it.
const RECEIVER_AWAY: Duration = Duration::from_secs(30);
/// A standby that lags for so long does not catch up by itself.
const LAGS: Duration = Duration::from_secs(30 * 60);
/// An archiver that ends so often within a quarter of an hour comes to nothing.
const ARCHIVERS: usize = 3;
/// Locked bytes that grow by more than this in a week, in per cent of then.
const LOCKED_PERCENT: u64 = 130;

/// Collects them.
pub fn conditions(
    now: TimestampTz,
    settings: &Settings,
    metrics: &Metrics,
    counters: Option<&Counters>,
) -> Vec<Condition> {
    let mut found = Vec::new();
    for (name, server) in metrics.info.iter().flat_map(|info| info.servers()) {
        found.extend(server_clock(name, server));
        let free = free_bytes(metrics, name);
        let slots = server.slots.iter().flatten();
        found.extend(slots.filter_map(|one| slot(name, one, free)));
    }
    found.extend(metrics.clocks.iter().filter_map(store_clock));
    found.extend(metrics.barred.iter().map(barred));
    if let Some(tallies) = &metrics.tallies {
        let silent = metrics.info.iter().flat_map(|info| info.silent());
        found.extend(silent.filter_map(|one| silence(now, one, tallies)));
        let receivers = metrics.info.iter().flat_map(|info| info.receivers());
        found.extend(receivers.filter_map(|one| receiver(now, one, tallies)));
        let servers = metrics.info.iter().flat_map(|info| info.servers());
        found.extend(servers.filter_map(|one| lag(now, one, tallies)));
        let clusters = settings.clusters.iter().map(|c| c.name.as_str());
        found.extend(clusters.filter_map(|name| archiver(now, name, tallies)));
        let clusters = settings.clusters.iter().map(|c| c.name.as_str());
        found.extend(clusters.flat_map(|name| conflicts(now, name, settings, tallies)));
        let rooms = metrics.pg_wal_free.iter();
        found.extend(rooms.filter_map(|(name, free)| full(now, name, *free, tallies)));
        let locked = counters.into_iter().flat_map(|all| all.locked(settings));
        found.extend(locked.filter_map(|one| locked_growth(now, one, tallies)));
    }
    found
}

/// A place that the agent may not read. Without this, everything about it would be well.
fn barred(one: &Barred) -> Condition {
    let (cluster, what, path) = (&one.cluster, one.what, &one.path);
    let lost = match what {
        "pg_wal" => "files that wait to be archived",
        _ => "a receiver that is down or behind",
    };
    let summary = format!(
        "{cluster}: the agent may not read \"{}\": nobody would hear of {lost}. Run it as the user whose directory this is, or give its group the right to read",
        path.display()
    );
    let id = format!("{cluster}/{what}/barred");
    new(&id, Severity::Medium, summary, "pitr doctor")
}

/// The free bytes on the disk of `pg_wal` of a cluster.
fn free_bytes(metrics: &Metrics, cluster: &str) -> Option<u64> {
    let rooms = &metrics.pg_wal_free;
    let own = rooms.iter().find(|(name, _)| name == cluster);
    own.map(|(_, free)| *free)
}

fn slot(cluster: &str, slot: &Slot, free_bytes: Option<u64>) -> Option<Condition> {
    let name = &slot.name;
    let one = |severity, summary: String| {
        let id = format!("{cluster}/slot/{name}");
        new(&id, severity, summary, "pitr doctor")
    };
    if slot.is_lost == Some(true) {
        let summary = format!("{cluster}: slot \"{name}\" has lost WAL that it was to keep");
        return Some(one(Severity::Critical, summary));
    }
    let (share, of) = slot.share(free_bytes)?;
    let (_, severity) = SLOT_SHARES.iter().find(|(limit, _)| share >= *limit)?;
    let kept = human::size(slot.retained_bytes?);
    let summary = format!(
        "{cluster}: slot \"{name}\" keeps {kept} of WAL, {share} % of {of}: its receiver is away or does not keep up"
    );
    Some(one(*severity, summary))
}

/// A server that has not answered for longer than its start takes.
fn silence(
    now: TimestampTz,
    (cluster, finding): (&str, &Finding),
    tallies: &Tallies,
) -> Option<Condition> {
    let lasts = tallies.silence(cluster, now)?;
    (lasts >= SILENT).then(|| {
        let id = format!("{cluster}/{}/{}", finding.group, finding.name);
        let summary = format!(
            "{cluster}: {} (since {})",
            finding.value,
            human::duration(lasts)
        );
        Condition {
            next: finding.next.clone(),
            ..new(&id, Severity::Critical, summary, "")
        }
    })
}

/// A receiver that is away and was a synchronous standby when the server last told. After two minutes it is a finding, whatever it was.
fn receiver(
    now: TimestampTz,
    (cluster, receiver): (&str, &Receiver),
    tallies: &Tallies,
) -> Option<Condition> {
    let problem = receiver.problem()?;
    away(cluster, receiver.down_for(now)?, &problem, tallies)
}

fn away(cluster: &str, lasts: Duration, problem: &str, tallies: &Tallies) -> Option<Condition> {
    let is_synchronous = tallies.synchronous.contains(cluster);
    (is_synchronous && (RECEIVER_AWAY..PASSING).contains(&lasts)).then(|| {
        let summary = format!("{cluster}: {problem}; commits wait for it");
        let id = format!("{cluster}/receiver/state");
        new(&id, Severity::Critical, summary, "pitr info")
    })
}

/// A standby whose newest commit has been old for long.
fn lag(
    now: TimestampTz,
    (cluster, server): (&str, &ServerState),
    tallies: &Tallies,
) -> Option<Condition> {
    let since = *tallies.lagging.get(cluster)?;
    let lasts = now.duration_since(since).filter(|lasts| *lasts >= LAGS)?;
    let lag = server.replay.as_ref()?.lag_s?;
    let lag = Duration::try_from_secs_f64(lag).unwrap_or_default();
    let summary = format!(
        "{cluster}: the standby lags by {}, and by more than an hour for {}",
        human::duration(lag),
        human::duration(lasts)
    );
    let id = format!("{cluster}/replication/lag");
    Some(new(&id, Severity::Critical, summary, "pitr doctor"))
}

fn server_clock(cluster: &str, server: &ServerState) -> Option<Condition> {
    let offset = server.clock_offset_s?;
    let (_, severity) = SERVER_CLOCKS.iter().find(|(s, _)| offset.abs() >= *s)?;
    let summary = format!(
        "{cluster}: the server's clock is {}: times of targets and ages of backups are wrong by that",
        apart(offset)
    );
    let id = format!("{cluster}/clock/server");
    Some(clock(&id, *severity, summary))
}

fn store_clock((repository, offset): &(String, f64)) -> Option<Condition> {
    let (_, severity) = STORE_CLOCKS.iter().find(|(s, _)| offset.abs() > *s)?;
    let summary = format!(
        "repository \"{repository}\": the store's clock is {}",
        apart(*offset)
    );
    let id = format!("repository/{repository}/clock");
    Some(clock(&id, *severity, summary))
}

fn clock(id: &str, severity: Severity, summary: String) -> Condition {
    let next = "timedatectl set-ntp true where the clock is wrong";
    new(id, severity, summary, next)
}

fn apart(offset: f64) -> String {
    let apart = Duration::try_from_secs_f64(offset.abs()).unwrap_or_default();
    let side = if offset > 0.0 { "ahead of" } else { "behind" };
    format!("{} {side} this host's", human::duration(apart))
}

fn archiver(now: TimestampTz, cluster: &str, tallies: &Tallies) -> Option<Condition> {
    let count = tallies.archivers.get(cluster)?.lately(now);
    (count >= ARCHIVERS).then(|| {
        let summary = format!(
            "{cluster}: the archiver ended {count} times in the last 15 minutes: archive_command ends with a status above 125, and no failure is counted"
        );
        let id = format!("{cluster}/archiving/archiver");
        new(&id, Severity::Critical, summary, "pitr doctor")
    })
}

/// Copies of WAL files that were refused, for another one had the name.
fn conflicts<'a>(
    now: TimestampTz,
    cluster: &'a str,
    settings: &'a Settings,
    tallies: &'a Tallies,
) -> impl Iterator<Item = Condition> + 'a {
    settings.repositories.iter().filter_map(move |repository| {
        let name = repository.name.as_str();
        let is_new = tallies.refused(cluster, name)?.is_new(now);
        is_new.then(|| {
            let summary = format!(
                "{cluster}: another server writes WAL under the names of this one: repository \"{name}\" refused a copy within the last hour"
            );
            let id = format!("{cluster}/archiving/conflict");
            new(&id, Severity::Critical, summary, "pitr wal conflicts")
        })
    })
}

fn full(now: TimestampTz, cluster: &str, free_bytes: u64, tallies: &Tallies) -> Option<Condition> {
    let seconds = tallies.pg_wal_full_in_s(cluster, free_bytes, now)?;
    let (_, severity) = FULL_IN.iter().find(|(limit, _)| seconds < *limit)?;
    let left = human::duration(Duration::from_secs(seconds));
    let summary = format!(
        "{cluster}: the disk of pg_wal has {} left, and is full in {left} as it fills now: the server stops then",
        human::size(free_bytes)
    );
    let id = format!("{cluster}/pg_wal/full");
    Some(new(&id, *severity, summary, "pitr doctor"))
}

fn locked_growth(
    now: TimestampTz,
    (cluster, repository, bytes): (&str, &str, u64),
    tallies: &Tallies,
) -> Option<Condition> {
    let before = tallies.locked_before(cluster, repository, now)?;
    let percent = bytes.saturating_mul(100).checked_div(before)?;
    (percent > LOCKED_PERCENT).then(|| {
        let summary = format!(
            "{cluster}: repository \"{repository}\" keeps {} only since they are locked, {percent} % of a week ago: locks outlast the rules of retention",
            human::size(bytes)
        );
        let id = format!("{cluster}/expire/locked");
        new(&id, Severity::Medium, summary, "pitr expire --dry-run")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_judged_by_its_limit_and_by_the_disk() {
        let told = |retained_bytes, safe_bytes, is_lost, free| {
            let slot_of = Slot {
                name: "a".into(),
                retained_bytes: Some(retained_bytes),
                safe_bytes,
                is_lost: Some(is_lost),
                sync: None,
            };
            slot("main", &slot_of, free).map(|one| one.severity)
        };
        assert_eq!(told(49, Some(51), false, None), None);
        assert_eq!(told(50, Some(50), false, None), Some(Severity::Medium));
        assert_eq!(told(75, Some(25), false, None), Some(Severity::High));
        assert_eq!(told(90, Some(10), false, None), Some(Severity::Critical));
        assert_eq!(told(90, Some(-1), false, None), Some(Severity::Critical));
        assert_eq!(told(90, None, false, None), None, "no limit is known");
        assert_eq!(told(80, None, false, Some(20)), Some(Severity::High));
        assert_eq!(told(0, None, true, None), Some(Severity::Critical));
    }

    #[test]
    fn a_synchronous_receiver_that_is_away_is_critical_after_half_a_minute() {
        let mut tallies = Tallies::default();
        let told = |tallies: &Tallies, seconds| {
            let lasts = Duration::from_secs(seconds);
            let found = away("main", lasts, "the receiver is gone", tallies);
            found.map(|one| (one.id, one.severity))
        };
        assert_eq!(told(&tallies, 60), None, "no commit waits for it");
        tallies.see_synchronous("main", true);
        let state = Some(("main/receiver/state".to_owned(), Severity::Critical));
        assert_eq!(told(&tallies, 29), None);
        assert_eq!(told(&tallies, 30), state);
        assert_eq!(told(&tallies, 120), None, "it is a finding then");
        tallies.see_synchronous("main", false);
        assert_eq!(told(&tallies, 60), None);
    }

    #[test]
    fn a_standby_that_lags_by_an_hour_for_half_an_hour_is_critical() {
        let start: TimestampTz = "2026-11-20T00:00:00Z".parse().unwrap();
        let after = |minutes: u64| start.saturating_add(Duration::from_secs(minutes * 60));
        let standby = ServerState::standby;
        let mut tallies = Tallies::default();
        let mut see = |server: ServerState, minutes| {
            tallies.see_lag("main", server.is_lagging(), after(minutes));
            lag(after(minutes), ("main", &server), &tallies).map(|one| one.severity)
        };
        assert_eq!(see(standby(Some(3601.0)), 0), None);
        assert_eq!(see(standby(Some(5000.0)), 29), None);
        assert_eq!(see(standby(Some(5000.0)), 30), Some(Severity::Critical));
        assert_eq!(see(standby(Some(3600.0)), 31), None, "it catches up");
        assert_eq!(see(standby(Some(3601.0)), 32), None, "and lags anew");
        // After its start nothing is told, and the time goes on.
        assert_eq!(see(standby(None), 50), None);
        assert_eq!(see(standby(Some(5000.0)), 62), Some(Severity::Critical));
        let primary = ServerState::primary();
        assert_eq!(see(primary, 90), None, "it is no standby any more");
        assert_eq!(see(standby(Some(5000.0)), 91), None, "and is one anew");
    }

    #[test]
    fn clocks_have_limits_on_both_sides() {
        let store = |offset| store_clock(&("r".into(), offset)).map(|one| one.severity);
        assert_eq!(store(60.0), None);
        assert_eq!(store(-61.0), Some(Severity::Medium));
        assert_eq!(store(601.0), Some(Severity::Critical));
        let server = |offset| {
            let state = ServerState {
                clock_offset_s: Some(offset),
                ..ServerState::default()
            };
            server_clock("main", &state).map(|one| one.severity)
        };
        assert_eq!(server(1.9), None);
        assert_eq!(server(-2.0), Some(Severity::Medium));
        assert_eq!(server(-61.0), Some(Severity::Critical));
    }

    #[test]
    fn locked_bytes_are_compared_with_those_of_a_week_ago() {
        let start: TimestampTz = "2026-11-20T00:00:00Z".parse().unwrap();
        let after = |days: u64| start.saturating_add(Duration::from_secs(days * 86_400));
        let mut tallies = Tallies::default();
        tallies.see_locked("main", "r", 100, start);
        let told = |now, bytes| locked_growth(now, ("main", "r", bytes), &tallies).is_some();
        assert!(!told(after(6), 1000), "no week has passed");
        assert!(!told(after(7), 130));
        assert!(told(after(7), 131));
    }
}
