//! Conditions: everything that is wrong now, from findings of `pitr info`, jobs, durations, sizes, room.

use std::collections::BTreeMap;
use std::time::Duration;

use super::counted;
use super::decide::{self, Condition};
use super::examined;
use super::overdue;
use super::watched;
use crate::agent::load::Loaded;
use crate::agent::scheduler::Planned;
use crate::config::{Cluster, Settings, Severity};
use crate::error::{Code, Error, Result};
use crate::operate::agent_trouble;
use crate::operate::archive_command::shell_word;
use crate::operate::counters::{self, Counts, Label};
use crate::operate::failing_sinks::Failing;
use crate::operate::finding::{self, Finding, Level};
use crate::operate::human;
use crate::operate::lag::Lag;
use crate::operate::metrics::Metrics;
use crate::operate::room::Room;
use crate::operate::runs::{JobState, Run, Runs};
use crate::operate::scopes;
use crate::operate::session::Session;
use crate::operate::written::NOT_JUDGED;
use crate::pg::time::TimestampTz;
use crate::repo::root::BackupKind;

/// So many results are needed before one is unusual.
const USUAL_MIN: u64 = 5;
/// A duration of more than this many per cent of the usual one is slow.
const SLOW_PERCENT: u64 = 200;
/// Room that may be used, in per cent.
const USED_PERCENT: u64 = 80;
/// Room above which nothing may be used soon.
const FULL_PERCENT: u64 = 95;
/// A disk that is full sooner than this is a condition.
const SOON: Duration = Duration::from_secs(7 * 86_400);

/// Warnings of `pitr info` that are not medium, as group and name, with their severity; none for what passes by itself.
const WARNINGS: [(&str, &str, Option<Severity>); 10] = [
    // The counts of looks tell of it, as critical.
    ("archiving", "conflict", None),
    ("receiver", "passing", None),
    ("receiver", "state", Some(Severity::Critical)),
    ("recovery", "damaged backup", Some(Severity::Critical)),
    ("recovery", "gap", Some(Severity::Critical)),
    ("recovery", "lost backup", Some(Severity::Critical)),
    ("recovery", "unreadable backup", Some(Severity::Critical)),
    ("recovery", "window", Some(Severity::Critical)),
    ("recovery", NOT_JUDGED, Some(Severity::Low)),
    // A server that has not answered for two minutes is critical.
    ("server", "connection", None),
];

/// Looking took too long, and nobody knows what can be recovered.
pub fn of_given_up() -> Condition {
    let summary = "what can be recovered is not known: looking at everything took too long or failed, and was given up";
    new("look", Severity::Critical, summary.to_owned(), "pitr info")
}

/// How the jobs stand.
pub fn of_jobs(session: &Session, loaded: &Loaded) -> Vec<Condition> {
    let now = session.host.now();
    let one = |job: &Planned| of_job(job, Runs::of(&loaded.state_dir, &job.name).state(now), now);
    loaded.jobs.iter().flat_map(one).collect()
}

/// Whether it is of [`of_jobs`].
pub fn is_of_job(id: &str) -> bool {
    id.starts_with("jobs/")
}

/// Collects all conditions. A part that could not be looked at is one.
pub fn all(session: &Session, loaded: &Loaded, metrics: &Metrics) -> Vec<Condition> {
    let settings = &loaded.settings;
    let mut found = Vec::new();
    if let Some(e) = &metrics.failed {
        let summary = format!("what can be recovered is not known: {e}");
        found.push(new("look", Severity::Critical, summary, "pitr info"));
    }
    if let Some(info) = &metrics.info {
        for one in &info.clusters {
            found.extend(of_findings(&one.name, &one.problems));
            found.extend(one.repositories.iter().filter_map(of_away));
            let full = one.backups.iter();
            let full = full.filter(|b| b.kind == BackupKind::Full && !b.damaged);
            let sizes: Vec<u64> = full.map(|b| b.stored_bytes).collect();
            found.extend(of_sizes(&one.name, &sizes));
        }
        for one in &info.written {
            found.extend(of_findings(&one.name, &one.problems));
            found.extend(one.repositories.iter().filter_map(of_away));
        }
        for scope in &info.scopes {
            found.extend(of_findings(&scope.scope, &scope.problems));
            let full = scope.backups.iter();
            let full = full.filter(|b| !b.id.is_incremental() && b.damage.is_none());
            let sizes: Vec<u64> = full.map(|b| b.stored_bytes).collect();
            found.extend(of_sizes(&scope.scope, &sizes));
        }
        for e in &info.failures.errors {
            found.push(new("look", Severity::Critical, e.to_string(), "pitr info"));
        }
        // A host without clusters has no lag that would tell it.
        for name in &metrics.away {
            let condition = away(name, "no answer to this host");
            if found.iter().all(|one| one.id != condition.id) {
                found.push(condition);
            }
        }
    }
    let now = session.host.now();
    let counters = counters::read(session, settings).ok().flatten();
    let watched = watched::conditions(now, settings, metrics, counters.as_ref());
    found.extend(watched);
    found.extend(overdue::conditions(now, settings, metrics));
    if let Some(counters) = counters {
        let series = counters.series.iter();
        let judged = series.filter(|(label, _)| is_configured(settings, label));
        let judged = judged.flat_map(|(l, c)| [of_duration(l, c), of_failure(settings, l, c)]);
        found.extend(judged.flatten());
        found.extend(counted::conditions(now, settings, metrics, &counters));
    }
    found.extend(of_jobs(session, loaded));
    found.extend(of_configuration(loaded));
    let examined = examined::conditions(&loaded.state_dir, now);
    found.extend(examined.unwrap_or_default());
    found
        .iter_mut()
        .for_each(|one| name_cluster(one, &settings.clusters));
    merged(found)
}

/// A sink that does not take what it is sent.
pub fn of_sink((name, failing): (&String, &Failing)) -> Condition {
    let summary = format!(
        "alert sink \"{name}\" takes nothing since {}: {}",
        human::time(failing.since),
        failing.error
    );
    let next = format!("pitr alert test --sink {name}");
    Condition {
        about: Some(name.clone()),
        ..new(&decide::of_sink(name), Severity::High, summary, &next)
    }
}

/// Failures to write below `state_dir`: alerts and the page are not complete then.
pub fn of_state(kept: &[Result<()>]) -> Option<Condition> {
    let first = kept.iter().find_map(|one| one.as_ref().err())?;
    let summary = format!("the agent cannot keep its files, and alerts may come twice: {first}");
    let next = "pitr agent status";
    Some(new("agent/state", Severity::Critical, summary, next))
}

/// The file of the configuration is wrong: the commands that PostgreSQL and the operator run read it, too.
pub fn of_configuration(loaded: &Loaded) -> Option<Condition> {
    let noted = || Some(agent_trouble::read(&loaded.state_dir)?.error);
    let e = loaded.wrong.as_ref().map(Error::to_string).or_else(noted)?;
    let summary =
        format!("the configuration is wrong, and the agent goes on with the one before: {e}");
    let id = "agent/configuration";
    Some(new(id, Severity::Critical, summary, "pitr doctor"))
}

/// The agent does not start: no job runs by it, and nobody looks.
pub fn of_start(error: &Error) -> Condition {
    let summary = format!("the agent does not start, and no job runs by it: {error}");
    let next = "pitr agent status";
    new("agent/start", Severity::Critical, summary, next)
}

/// Whether it is of [`of_sink`]. Those of a cluster that is named "alerts" have more parts.
pub fn is_of_sink(id: &str) -> bool {
    let sink = id.strip_prefix("alerts/");
    sink.is_some_and(|sink| !sink.contains('/'))
}

/// A condition that is about no sink.
pub fn new(id: &str, severity: Severity, summary: String, next: &str) -> Condition {
    Condition {
        id: id.to_owned(),
        severity,
        summary,
        next: Some(next.to_owned()),
        about: None,
    }
}

/// Several findings of one name are one condition: its id must not change with their number.
fn merged(found: Vec<Condition>) -> Vec<Condition> {
    let mut by_id: BTreeMap<String, (Condition, usize)> = BTreeMap::new();
    for one in found {
        match by_id.get_mut(&one.id) {
            None => {
                by_id.insert(one.id.clone(), (one, 0));
            }
            Some((first, more)) => {
                *more += 1;
                if one.severity > first.severity {
                    *first = one;
                }
            }
        }
    }
    let told = |(mut one, more): (Condition, usize)| {
        if more > 0 {
            one.summary.push_str(&format!(" (and {more} more)"));
        }
        one
    };
    by_id.into_values().map(told).collect()
}

/// Names the cluster in the next command, where several are configured and the condition is about one.
fn name_cluster(one: &mut Condition, clusters: &[Cluster]) {
    let subject = one.id.split('/').next().unwrap_or_default();
    let is_cluster = clusters.iter().any(|c| c.name.as_str() == subject);
    let is_named = is_cluster && clusters.len() > 1;
    if let Some(next) = one.next.as_mut().filter(|_| is_named) {
        *next = finding::naming(next, subject);
    }
}

fn of_findings(subject: &str, findings: &[Finding]) -> Vec<Condition> {
    let one = |f: &Finding| {
        let severity = severity(f)?;
        let id = format!("{subject}/{}/{}", f.group, f.name);
        let summary = format!("{subject}: {}", f.value);
        Some(Condition {
            next: f.next.clone(),
            ..new(&id, severity, summary, "")
        })
    };
    findings.iter().filter_map(one).collect()
}

/// How bad a finding is for those who are to hear of it; none for the others.
fn severity(finding: &Finding) -> Option<Severity> {
    let Finding { group, name, .. } = finding;
    let named = WARNINGS.iter().find(|(g, n, _)| g == group && n == name);
    match finding.level {
        Level::Ok => None,
        Level::Warn => named.map_or(Some(Severity::Medium), |(_, _, severity)| *severity),
        Level::Fail => Some(Severity::Critical),
    }
}

/// One of several repositories that does not answer.
fn of_away(one: &Lag) -> Option<Condition> {
    Some(away(&one.name, &one.away.as_ref()?.message))
}

fn away(name: &str, why: &str) -> Condition {
    let id = format!("repository/{name}/away");
    let summary = format!("repository \"{name}\" does not answer: {why}");
    new(&id, Severity::Critical, summary, "pitr doctor")
}

/// The stored size of the last full backup beside those before it, oldest first.
fn of_sizes(name: &str, sizes: &[u64]) -> Option<Condition> {
    let (last, before) = sizes.split_last()?;
    let count = before.len() as u64;
    let usual = before.iter().sum::<u64>().checked_div(count)?;
    let percent = last.saturating_mul(100).checked_div(usual)?;
    (count >= USUAL_MIN && !(50..=150).contains(&percent)).then(|| {
        let (last, usual) = (human::size(*last), human::size(usual));
        let summary =
            format!("{name}: the newest full backup has {last}, {percent} % of the usual {usual}");
        let id = format!("{name}/backup/size");
        new(&id, Severity::Medium, summary, "pitr info")
    })
}

/// Whether backups of a series are still taken. Nothing else would ever end its conditions.
fn is_configured(settings: &Settings, label: &Label) -> bool {
    let (cluster, repositories) = (label.cluster.as_str(), &settings.repositories);
    let kind = match label.component.as_str() {
        "git" => "files",
        component => component,
    };
    let mut contents = settings.contents();
    let is_shard = || scopes::cluster_of(settings, &format!("aux/{kind}/{cluster}")).is_some();
    let is_there = match kind {
        "postgres" => settings.clusters.iter().any(|c| c.name.as_str() == cluster),
        _ => contents.any(|one| (one.kind, one.name) == (kind, cluster)) || is_shard(),
    };
    is_there && repositories.iter().any(|r| r.name == label.repo)
}

fn of_duration(label: &Label, counts: &Counts) -> Option<Condition> {
    let count = counts.within.last().copied()?;
    let last = counts.last_ms?;
    let before = count.checked_sub(1).filter(|n| *n >= USUAL_MIN)?;
    let usual = counts.total_ms.saturating_sub(last) / before;
    let is_slow = last.saturating_mul(100) > usual.saturating_mul(SLOW_PERCENT);
    let (cluster, component, kind) = (&label.cluster, &label.component, &label.kind);
    // A second more or less is nothing.
    (is_slow && last > 10_000).then(|| {
        let long = |ms| human::duration(Duration::from_millis(ms));
        let summary = format!(
            "{cluster}: the last {kind} backup ({component}) took {}, usual are {}",
            long(last),
            long(usual)
        );
        let id = format!("{cluster}/{component}/{kind}/slow");
        new(&id, Severity::High, summary, "pitr doctor")
    })
}

/// A backup that failed, and that no job of the agent took: a job tells of its own failures.
fn of_failure(settings: &Settings, label: &Label, counts: &Counts) -> Option<Condition> {
    let reason = counts.last_failure.as_ref()?;
    let (cluster, component, kind) = (&label.cluster, &label.component, &label.kind);
    let summary = format!("{cluster}: the last {kind} backup ({component}) failed: {reason}");
    let id = format!("{cluster}/{component}/failed");
    let next = again(settings, label);
    Some(new(&id, Severity::High, summary, &next))
}

/// The command that takes such a backup again. A shard is taken with its cluster.
fn again(settings: &Settings, label: &Label) -> String {
    let scope = format!("aux/{}/{}", label.component, label.cluster);
    let of_shard = scopes::cluster_of(settings, &scope).map(|cluster| cluster.name);
    let name = shell_word(of_shard.unwrap_or(&label.cluster));
    match label.component.as_str() {
        "postgres" => "pitr backup".to_owned(),
        "git" => format!("pitr files backup {name}"),
        component => format!("pitr {component} backup {name}"),
    }
}

fn of_job(job: &Planned, state: Result<JobState>, now: TimestampTz) -> Vec<Condition> {
    let name = &job.name;
    let one = |end: &str, severity, summary| {
        let id = format!("jobs/{name}{end}");
        new(&id, severity, summary, "pitr agent status")
    };
    let state = match state {
        Ok(state) => state,
        Err(e) if e.code() == Code::NotFound => return Vec::new(),
        Err(e) => {
            let summary =
                format!("job \"{name}\" starts no more, because its record is not known: {e}");
            return vec![one("", Severity::Critical, summary)];
        }
    };
    let mut found = Vec::new();
    if state.ahead > 0 {
        let summary = format!(
            "{} records of job \"{name}\" lie in the future, and count for nothing: a clock is or was wrong",
            state.ahead
        );
        found.push(one("/clock", Severity::High, summary));
    }
    if let Some(due) = job.missed(now, &state) {
        let due = human::time(due);
        let summary = format!("job \"{name}\" was due at {due}, and has not begun");
        found.push(one("/missed", Severity::High, summary));
    }
    if let Some(due) = job.overrun(now, &state) {
        let due = human::time(due);
        let summary = format!("job \"{name}\" goes on for hours, and was due again at {due}");
        found.push(one("/long", Severity::High, summary));
    }
    if let Some(last) = job.failure(now, &state) {
        let summary = format!("job \"{name}\" failed, {}", why(last));
        found.push(one("", Severity::High, summary));
    }
    found
}

fn why(run: &Run) -> String {
    match &run.ended {
        None => "it was killed".to_owned(),
        Some(ended) if ended.is_over_time => "it took too long, and was ended".to_owned(),
        Some(ended) => {
            let mut said = ended.said.lines();
            let said = said.find(|line| !line.trim().is_empty());
            let status = ended.status.map(|s| format!("status {s}"));
            let status = status.unwrap_or_else(|| "a signal".to_owned());
            match said {
                None => status,
                Some(said) => format!("{status}: {said}"),
            }
        }
    }
}

/// A disk that is nearly full, or will be soon at the rate at which it fills.
pub fn of_room(room: &Room) -> Option<Condition> {
    let used = room.used_percent();
    let soon = room.full_in_s.filter(|seconds| *seconds < SOON.as_secs());
    let severity = match (used, soon) {
        (FULL_PERCENT.., _) => Severity::Critical,
        (USED_PERCENT.., _) | (_, Some(_)) => Severity::Medium,
        _ => return None,
    };
    let name = &room.repository;
    let mut summary = format!("the disk of repository \"{name}\" is used to {used} %");
    if let Some(seconds) = room.full_in_s {
        let left = human::duration(Duration::from_secs(seconds));
        summary.push_str(&format!(", and full in {left}, as it filled lately"));
    }
    let id = format!("repository/{name}/room");
    Some(new(&id, severity, summary, "pitr expire --confirm"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::schedule::Schedule;
    use crate::agent::scheduler::Trigger;
    use crate::config::{Environment, Flags};
    use crate::err;

    #[test]
    fn findings_of_one_name_are_one_condition() {
        let finding = |level, value: &str| Finding::new("recovery", "clock", level, value);
        let found = of_findings(
            "main",
            &[
                finding(Level::Warn, "a"),
                finding(Level::Fail, "b"),
                finding(Level::Ok, "c"),
            ],
        );
        let all = merged(found);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].severity, Severity::Critical);
        assert_eq!(all[0].summary, "main: b (and 1 more)");
    }

    #[test]
    fn j67_a_command_names_the_cluster_where_several_are_configured() {
        let clusters = ["main", "other"].map(|name| Cluster::named(name.parse().unwrap()));
        let told = |id: &str, next: &str, clusters: &[Cluster]| {
            let mut one = new(id, Severity::Low, String::new(), next);
            name_cluster(&mut one, clusters);
            one.next.unwrap()
        };
        let named = told("main/verify/stale", "pitr verify", &clusters);
        assert_eq!(named, "pitr --cluster main verify");
        assert_eq!(told("main/verify/stale", &named, &clusters), named);
        let one = &clusters[..1];
        assert_eq!(told("main/verify/stale", "pitr verify", one), "pitr verify");
        let job = told("jobs/full", "pitr agent status", &clusters);
        assert_eq!(job, "pitr agent status");
        let clock = told("main/clock/server", "timedatectl", &clusters);
        assert_eq!(clock, "timedatectl");
    }

    #[test]
    fn warnings_have_the_severity_of_their_name() {
        let told = |group, name: &str| severity(&Finding::new(group, name, Level::Warn, "so"));
        assert_eq!(told("recovery", "gap"), Some(Severity::Critical));
        assert_eq!(told("recovery", "partial backup"), Some(Severity::Medium));
        assert_eq!(told("receiver", "state"), Some(Severity::Critical));
        assert_eq!(told("receiver", "trouble"), Some(Severity::Medium));
        assert_eq!(told("receiver", "passing"), None);
        assert_eq!(told("recovery", NOT_JUDGED), Some(Severity::Low));
        let whole = Finding::new("recovery", "gap", Level::Ok, "none");
        assert_eq!(severity(&whole), None);
    }

    fn jobs(state: Result<JobState>) -> Vec<(String, Severity)> {
        let job = Planned {
            name: "x".into(),
            trigger: Trigger::Scheduled(Box::new(Schedule::new("0 2 * * *", None).unwrap())),
            delay: Duration::ZERO,
            catch_up: true,
            retries: 0,
            is_claimed: false,
        };
        let now = "2026-11-21T09:00:00Z".parse().unwrap();
        let found = of_job(&job, state, now).into_iter();
        found.map(|one| (one.id, one.severity)).collect()
    }

    #[test]
    fn a_record_that_cannot_be_read_is_critical_and_a_job_that_never_ran_is_nothing() {
        assert_eq!(jobs(Err(err!(NotFound, "never"))), []);
        let known = [("jobs/x".to_owned(), Severity::Critical)];
        assert_eq!(jobs(Err(err!(Damaged, "damage"))), known);
    }

    #[test]
    fn records_in_the_future_are_a_condition() {
        let since = "2026-11-21T02:00:00Z".parse().unwrap();
        let mut state = JobState::sample(since, Vec::new());
        state.ahead = 3;
        let known = [("jobs/x/clock".to_owned(), Severity::High)];
        assert_eq!(jobs(Ok(state)), known);
    }

    #[test]
    fn a_run_that_could_not_begin_is_a_condition() {
        let since = "2026-11-20T09:00:00Z".parse().unwrap();
        let state = JobState::sample(since, Vec::new());
        let known = [("jobs/x/missed".to_owned(), Severity::High)];
        assert_eq!(jobs(Ok(state)), known);
    }

    #[test]
    fn half_more_than_usual_and_half_less_are_told() {
        let told = |last| {
            let found = of_sizes("aux/files/up", &[100, 100, 100, 100, 100, last]);
            found.map(|one| (one.id, one.severity))
        };
        let size = Some(("aux/files/up/backup/size".to_owned(), Severity::Medium));
        assert_eq!((told(150), told(50)), (None, None));
        assert_eq!((told(151), told(49)), (size.clone(), size));
        assert_eq!(of_sizes("main", &[100, 100, 400]), None, "too few to know");
    }

    #[test]
    fn a_backup_that_failed_names_the_command_that_takes_it_again() {
        let settings = Settings::readable(&Flags::default(), &Environment::default());
        let next = |component: &str| {
            let label = counters::Label {
                cluster: "cache".into(),
                component: component.into(),
                kind: "full".into(),
                repo: "r".into(),
            };
            again(&settings, &label)
        };
        assert_eq!(next("postgres"), "pitr backup");
        assert_eq!(next("redis"), "pitr redis backup cache");
        assert_eq!(next("git"), "pitr files backup cache");
        assert_eq!(next("config"), "pitr config backup cache");
    }

    #[test]
    fn twice_the_usual_duration_is_slow() {
        let label = counters::Label {
            cluster: "main".into(),
            component: "postgres".into(),
            kind: "full".into(),
            repo: "r".into(),
        };
        let counts = |last: u64, before: u64| Counts {
            attempts: before + 1,
            last_ms: Some(last),
            within: vec![before + 1],
            total_ms: before * 60_000 + last,
            ..Counts::default()
        };
        assert_eq!(of_duration(&label, &counts(119_000, 5)), None);
        let few = of_duration(&label, &counts(121_000, 4));
        assert_eq!(few, None, "too few to know");
        let slow = of_duration(&label, &counts(121_000, 5)).unwrap();
        assert_eq!(slow.severity, Severity::High);
    }
}
