//! Conditions of backups and drills that come no more, where the configuration has no limit: what was done before gives one. And of marks of recovery sets.

use std::time::Duration;

use super::condition::new;
use super::decide::Condition;
use crate::config::{Cluster, Settings, Severity};
use crate::operate::backup_age;
use crate::operate::human;
use crate::operate::metrics::Metrics;
use crate::operate::proven::Proven;
use crate::operate::scopes::{self, ScopeInfo};
use crate::operate::sets::watch::Watched;
use crate::pg::time::TimestampTz;
use crate::repo::root::BackupKind;

const HOUR: Duration = Duration::from_secs(3600);
/// A backup each day, and the time that it takes.
const SHORTEST: Duration = Duration::from_secs(26 * 3600);
/// So many pauses are looked at.
const PAUSES: usize = 7;
/// So many pauses make a rhythm of full backups, where `full_every` gives none.
const RHYTHM: usize = 3;
/// A drill each month.
const DRILL: Duration = Duration::from_secs(35 * 86_400);

/// Collects them.
pub fn conditions(now: TimestampTz, settings: &Settings, metrics: &Metrics) -> Vec<Condition> {
    let marks = metrics.sets.iter();
    let mut found: Vec<Condition> = marks.filter_map(|one| of_marks(one, now)).collect();
    let Some(info) = &metrics.info else {
        return found;
    };
    let configured = |name: &str| settings.clusters.iter().find(|c| c.name.as_str() == name);
    let mut cluster = |name: &str, times: Vec<(TimestampTz, bool)>, drills: &[Proven]| {
        let Some(own) = configured(name) else { return };
        found.extend(of_fulls(name, own.full_every, &times, now));
        if !has_limit(own) {
            let times = times.into_iter().map(|(time, _)| time).collect();
            found.extend(of_backups(name, times, now));
        }
        if own.max_drill_age.is_none() {
            found.extend(drills.iter().filter_map(|one| of_drills(name, one, now)));
        }
    };
    for one in &info.clusters {
        let whole = one.backups.iter().filter(|backup| !backup.damaged);
        let times = whole.map(|b| (b.stop_time, b.kind == BackupKind::Full));
        let times = times.collect();
        cluster(&one.name, times, &one.drills);
    }
    for one in &info.written {
        let backups = one.backups.iter();
        let times = backups.map(|b| (b.time, !b.id.is_incremental())).collect();
        cluster(&one.name, times, &one.drills);
    }
    for content in settings.contents().filter(|c| c.max_backup_age.is_none()) {
        let scope = format!("aux/{}/{}", content.kind, content.name);
        let own = info.scopes.iter().find(|one| one.scope == scope);
        let times = own.map(|one| one.backups.iter().map(|b| b.stop_time).collect());
        found.extend(times.and_then(|times| of_backups(&scope, times, now)));
    }
    let unlimited = settings.redis_clusters();
    for content in unlimited.filter(|c| c.max_backup_age.is_none()) {
        let is_shard = |one: &&ScopeInfo| {
            scopes::cluster_of(settings, &one.scope).is_some_and(|own| own.name == content.name)
        };
        // A shard that has no slots any more gets no backup: the newest of all tells.
        let shards = info.scopes.iter().filter(is_shard);
        let times = shards.map(|one| one.backups.iter().map(|b| b.stop_time).collect::<Vec<_>>());
        let newest = times.max_by_key(|times| times.iter().max().copied());
        let name = format!("aux/{}/{}", content.kind, content.name);
        found.extend(newest.and_then(|times| of_backups(&name, times, now)));
    }
    found
}

/// Whether the configuration says when a backup is late, or has backups taken by need: those of an idle server are rare.
fn has_limit(cluster: &Cluster) -> bool {
    let is_by_need = cluster.max_replay.is_some() || cluster.max_wal_bytes.is_some();
    cluster.max_backup_age.is_some() || is_by_need
}

fn of_backups(name: &str, mut times: Vec<TimestampTz>, now: TimestampTz) -> Option<Condition> {
    // The time of a backup under a clock that was ahead tells no age.
    times.retain(|time| !backup_age::is_ahead(*time, now));
    times.sort_unstable();
    let limit = usual(&times);
    let age = now.duration_since(*times.last()?)?;
    (age > limit).then(|| {
        let (age, limit) = (human::duration(age), human::duration(limit));
        let summary = format!(
            "{name}: the newest backup is {age} old, and by the pauses before it the next one was due within {limit}"
        );
        let id = format!("{name}/backup/overdue");
        let next = "pitr backup, or set max_backup_age";
        new(&id, Severity::Critical, summary, next)
    })
}

/// The condition of full backups that come no more while incremental ones do: what these build on grows old. `times` tell whether each is full.
///
/// Without `full_every`, full backups need a rhythm: some that were taken by hand are none.
fn of_fulls(
    name: &str,
    every: Option<Duration>,
    times: &[(TimestampTz, bool)],
    now: TimestampTz,
) -> Option<Condition> {
    let mut fulls: Vec<TimestampTz> = times.iter().filter(|t| t.1).map(|t| t.0).collect();
    fulls.sort_unstable();
    let limit = match every {
        Some(every) => every.saturating_add(SHORTEST),
        None => rhythm(&fulls)?,
    };
    let (last, newest) = (*fulls.last()?, times.iter().map(|t| t.0).max()?);
    // A server that takes no backup at all is told of otherwise.
    (newest.duration_since(last)? > limit).then(|| {
        let age = human::duration(now.duration_since(last).unwrap_or_default());
        let limit = human::duration(limit);
        let summary = format!(
            "{name}: the newest full backup is {age} old, and the next one was due within {limit}: only incremental ones are taken"
        );
        let id = format!("{name}/backup/full");
        let next = "pitr backup --full, or set full_every";
        new(&id, Severity::Critical, summary, next)
    })
}

/// The age at which the next full backup is missed, by those before it; none where they have no rhythm.
fn rhythm(fulls: &[TimestampTz]) -> Option<Duration> {
    let pauses = fulls.iter().zip(fulls.iter().skip(1));
    let pauses = pauses.filter_map(|(before, after)| after.duration_since(*before));
    let count = pauses.filter(|pause| *pause >= HOUR).count();
    (count >= RHYTHM).then(|| usual(fulls))
}

/// The age at which the newest backup is too old: the longest pause of late, and two hours.
fn usual(times: &[TimestampTz]) -> Duration {
    let pauses = times.iter().zip(times.iter().skip(1)).rev().take(PAUSES);
    let pauses = pauses.filter_map(|(before, after)| after.duration_since(*before));
    let longest = pauses.max().unwrap_or_default();
    longest.saturating_add(HOUR * 2).max(SHORTEST)
}

/// The condition of a repository of which recovery was proven once. A drill that failed is a condition of its own.
fn of_drills(name: &str, one: &Proven, now: TimestampTz) -> Option<Condition> {
    let age = now.duration_since(one.drills.proven.as_ref()?.time)?;
    (age > DRILL).then(|| {
        let (repository, age) = (&one.repository, human::duration(age));
        let summary =
            format!("{name}: recovery from repository {repository} was last proven {age} ago");
        let id = format!("{name}/drill/stale");
        let next = "pitr drill, or set max_drill_age";
        new(&id, Severity::Medium, summary, next)
    })
}

/// The condition of a recovery set whose marks come no more, or do not arrive in all members. A set without any mark has none.
fn of_marks(watched: &Watched, now: TimestampTz) -> Option<Condition> {
    let (set, limit) = (&watched.set, watched.limit()?);
    let age = match watched.overdue(limit, now)? {
        Some(age) => format!("is {} old", human::duration(age)),
        None => "is not to be found".to_owned(),
    };
    let why = match watched.why.as_slice() {
        [] => String::new(),
        why => format!("; the newest one waits: {}", why.join("; ")),
    };
    let limit = human::duration(limit);
    let summary =
        format!("set {set}: the newest settled mark {age}, and one was due within {limit}{why}");
    let next = format!("pitr info --set {set}, or set max_mark_age");
    let id = format!("sets/{set}/marks");
    Some(new(&id, Severity::Medium, summary, &next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u32) -> TimestampTz {
        let start: TimestampTz = "2026-11-01T02:00:00Z".parse().unwrap();
        start.saturating_add(HOUR * hours)
    }

    #[test]
    fn marks_are_late_by_their_own_rhythm() {
        let now: TimestampTz = "2026-11-20T12:00:00Z".parse().unwrap();
        let told = |pause: Option<u32>, age: u32| {
            let watched = Watched {
                set: "shop".into(),
                count: 9,
                settled: Some(now.saturating_sub(HOUR * age)),
                why: vec!["main: WAL is missing".into()],
                pause: pause.map(|hours| HOUR * hours),
                ..Watched::default()
            };
            of_marks(&watched, now)
        };
        assert_eq!(told(None, 1000), None, "marks by hand have no rhythm");
        assert_eq!(told(Some(1), 3), None);
        let late = told(Some(1), 4).unwrap();
        assert_eq!(late.id, "sets/shop/marks");
        assert!(late.summary.contains("4 h old"), "{}", late.summary);
        assert!(late.summary.contains("WAL is missing"), "{}", late.summary);
    }

    #[test]
    fn j78_full_backups_that_end_are_told_of_beside_incremental_ones() {
        let late = |every: Option<u32>, fulls: &[u32], until: u32| {
            let fulls = fulls.iter().map(|hour| (at(*hour), true));
            let hourly = (0..=until).map(|hour| (at(hour), false));
            let times: Vec<_> = fulls.chain(hourly).collect();
            of_fulls("main", every.map(|h| HOUR * h), &times, at(until)).is_some()
        };
        let weekly = Some(168);
        assert!(!late(weekly, &[0], 168 + 26) && late(weekly, &[0], 168 + 27));
        let daily = [0, 24, 48, 72];
        assert!(!late(None, &daily, 72 + 26) && late(None, &daily, 72 + 27));
        let weekly = [0, 168, 336, 504];
        assert!(!late(None, &weekly, 504 + 170) && late(None, &weekly, 504 + 171));
        // Incremental ones for ever are no rhythm that ended, and neither are trials of the first hour.
        assert!(!late(None, &[], 2000) && !late(None, &[0, 1, 2], 2000));
        let hours = (0..4).map(|m| (at(0).saturating_add(HOUR / 6 * m), true));
        let hourly = (1..2000).map(|hour| (at(hour), false));
        let trials: Vec<_> = hours.chain(hourly).collect();
        assert_eq!(of_fulls("main", None, &trials, at(2000)), None);
        // An idle server takes no backup by need, so none was to be a full one.
        let idle = [(at(0), true), (at(5), false)];
        assert_eq!(of_fulls("main", Some(HOUR * 24), &idle, at(2000)), None);
    }

    #[test]
    fn a_backup_is_late_by_the_pauses_before_it() {
        let late = |hours: &[u32], now| {
            let times = hours.iter().map(|hour| at(*hour)).collect();
            of_backups("main", times, at(now)).is_some()
        };
        assert!(!late(&[], 1000), "that there is none is another condition");
        assert!(!late(&[0], 26) && late(&[0], 27));
        let daily = [0, 24, 48];
        assert!(!late(&daily, 74) && late(&daily, 75));
        let weekly = [0, 168];
        assert!(!late(&weekly, 338) && late(&weekly, 339));
        let hourly: Vec<u32> = (0..9).collect();
        assert!(!late(&hourly, 34) && late(&hourly, 35));
        // An outage is forgotten after a week of daily backups.
        let outage = [0, 24, 120, 144, 168, 192, 216, 240, 264, 288];
        assert!(late(&outage, 288 + 27));
    }
}
