//! Conditions of what `pitr doctor` found last. It connects and asks more than each minute is worth.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::condition::new;
use super::decide::Condition;
use crate::agent::examinations::INTERVAL;
use crate::agent::load::Loaded;
use crate::behalf;
use crate::config::{Repository, Settings, Severity};
use crate::error::Result;
use crate::fault;
use crate::operate::doctor;
use crate::operate::finding::{Finding, Level};
use crate::operate::human;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;

/// The file of what was found, below `state_dir`.
const FILE: &str = "doctor.json";
/// The condition of an examination that came to no end.
const GIVEN_UP: &str = "doctor";
/// The subject of a host without a cluster.
const HOST: &str = "host";
/// Warnings that grow worse by themselves, as group and beginning of the name. Other warnings are advice: nobody is woken for them.
const WARNINGS: [(&str, &str); 6] = [
    ("certificates", ""),
    ("pg_wal", "space"),
    ("repository", "certificate"),
    ("repository", "epoch"),
    ("repository", "lifecycle"),
    ("repository", "recipient"),
];
/// Findings that each look has by itself, sooner.
const LOOKED_AT: [(&str, &str); 18] = [
    ("agent", ""),
    ("alerts", ""),
    ("clock", ""),
    ("content", ""),
    ("pg_wal", "blocked"),
    ("pg_wal", "waiting"),
    ("receiver", "kept WAL"),
    ("receiver", "lost WAL"),
    ("repository", "archived WAL"),
    ("repository", "drill"),
    ("repository", "gaps"),
    ("repository", "newest backup"),
    ("repository", "recorded gap"),
    ("repository", "space"),
    ("repository", "store's clock"),
    ("server", "connection"),
    ("server", "questions"),
    ("sets", ""),
];
/// Those of them that a look finds only where a key reads the repository.
const NEED_KEY: [(&str, &str); 3] = [
    ("repository", "archived WAL"),
    ("repository", "gaps"),
    ("repository", "recorded gap"),
];
/// Those of them that a look judges in the first repository alone.
const OF_FIRST: [(&str, &str); 3] = [
    ("repository", "gaps"),
    ("repository", "newest backup"),
    ("repository", "recorded gap"),
];
/// Findings that are the same for every cluster of the host: one of them tells.
const SHARED: [(&str, &str); 17] = [
    ("alerts", ""),
    ("audit", ""),
    ("certificates", ""),
    ("configuration", ""),
    ("content", ""),
    ("redis", ""),
    ("repository", "certificate"),
    ("repository", "disk"),
    ("repository", "encryption"),
    ("repository", "epoch"),
    ("repository", "lifecycle"),
    ("repository", "locks"),
    ("repository", "pair"),
    ("repository", "recipient"),
    ("repository", "space"),
    ("repository", "writable and durable"),
    ("sets", ""),
];
/// Group of the findings about repositories. A server that does not answer keeps nobody from them.
const REPOSITORY: &str = "repository";
/// Group of the findings on a host that lost its server: each look has those, too.
const LOST: &str = "if the server is lost";

/// The result of examinations.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// When the last one ended.
    examined: Option<TimestampTz>,
    /// The findings that are wrong.
    conditions: Vec<Condition>,
}

/// Examines every cluster of the configuration, and keeps what is wrong. Returns whether nothing is. Findings of before go on where nobody could look.
///
/// # Errors
/// Those of the file.
pub fn examine(session: &Session, loaded: &Loaded) -> Result<bool> {
    let settings = &loaded.settings;
    fault::pause("examine");
    let repositories = settings.repositories.iter();
    let looks = Looks {
        only_writes: repositories.clone().any(|r| r.only_writes()),
        repositories: repositories.map(|r| r.name.as_str()).collect(),
    };
    let before = read(&loaded.state_dir).unwrap_or_default().conditions;
    let mut kept: Vec<Condition> = Vec::new();
    let mut seen: Vec<(&'static str, String, String)> = Vec::new();
    for (subject, own) in subjects(session, settings) {
        let findings = match doctor::doctor(&own, None) {
            Ok(findings) => findings,
            Err(e) => {
                let summary = format!("{subject}: pitr doctor cannot look at anything: {e}");
                let id = format!("{subject}/doctor");
                kept.push(new(&id, Severity::High, summary, "pitr doctor"));
                go_on(&subject, &before, &|_| true, &mut kept);
                continue;
            }
        };
        let mut opened = Opened::new(settings);
        for finding in &findings {
            opened.meet(finding);
            let other = opened.other();
            let Some(severity) = severity(finding, other, &looks) else {
                continue;
            };
            let other = other.filter(|_| OF_FIRST.iter().any(|known| is_of(finding, known)));
            let other = other.map(|repository| repository.name.as_str());
            let is_shared = SHARED.iter().any(|known| is_of(finding, known));
            let what = (finding.group, finding.name.clone(), finding.value.clone());
            if !(is_shared && seen.contains(&what)) {
                kept.push(found(&subject, finding, other, severity));
                seen.push(what);
            }
        }
        for group in findings.iter().filter_map(|one| looks.are_blind_by(one)) {
            let is_meant = |of: &str| (of == REPOSITORY) == (group == REPOSITORY);
            go_on(&subject, &before, &is_meant, &mut kept);
        }
    }
    let kept = Kept {
        examined: Some(session.host.now()),
        conditions: kept,
    };
    write(session, &loaded.state_dir, &kept)?;
    Ok(kept.conditions.is_empty())
}

/// Keeps what was found of some groups of a subject before, and was not looked at now.
fn go_on(
    subject: &str,
    before: &[Condition],
    is_meant: &dyn Fn(&str) -> bool,
    kept: &mut Vec<Condition>,
) {
    let beginning = format!("{subject}/doctor/");
    for one in before {
        let group = one.id.strip_prefix(&beginning);
        let group = group.map(|rest| rest.split('/').next().unwrap_or_default());
        if group.is_some_and(is_meant) && kept.iter().all(|known| known.id != one.id) {
            kept.push(one.clone());
        }
    }
}

/// Keeps that an examination came to no end, beside what the one before it found.
///
/// # Errors
/// Those of the file.
pub fn given_up(session: &Session, loaded: &Loaded) -> Result<()> {
    let mut kept = read(&loaded.state_dir).unwrap_or_default();
    kept.conditions.retain(|one| one.id != GIVEN_UP);
    let summary = "pitr doctor took too long or failed, and was given up: certificates, keys and settings are as they were before, as far as anybody knows";
    let given_up = new(GIVEN_UP, Severity::High, summary.to_owned(), "pitr doctor");
    kept.conditions.push(given_up);
    write(session, &loaded.state_dir, &kept)
}

/// Each cluster with its name; without clusters the host.
fn subjects(session: &Session, settings: &Settings) -> Vec<(String, Session)> {
    if settings.has_only_tenants() {
        return Vec::new();
    }
    let names = settings.clusters.iter().map(|c| c.name.to_string());
    let all: Vec<_> = names
        .map(|name| (name.clone(), session.on_cluster(&name)))
        .collect();
    match all.is_empty() {
        true => vec![(HOST.to_owned(), session.again())],
        false => all,
    }
}

/// The repository that the findings of `pitr doctor` are about: each is looked at behind the one before, in the order of the configuration, and named first.
struct Opened<'s> {
    later: &'s [Repository],
    first: Option<&'s Repository>,
    now: Option<&'s Repository>,
}

impl<'s> Opened<'s> {
    fn new(settings: &'s Settings) -> Opened<'s> {
        Opened {
            later: &settings.repositories,
            first: None,
            now: None,
        }
    }

    fn meet(&mut self, finding: &Finding) {
        if finding.group != REPOSITORY || finding.level != Level::Ok {
            return;
        }
        let at = self.later.iter().position(|one| one.name == finding.name);
        let Some((one, later)) = at.and_then(|at| self.later.get(at..)?.split_first()) else {
            return;
        };
        self.first = self.first.or(Some(one));
        (self.now, self.later) = (Some(one), later);
    }

    /// The repository of now, where it is not the first: that one is looked at anyway. Backups of one with the same keys come by copies, which a look
    /// judges, and one that is not required may hold WAL alone.
    fn other(&self) -> Option<&'s Repository> {
        let first = self.first?;
        let is_own = |one: &&Repository| one.required && one.encryption != first.encryption;
        self.now.filter(|one| one.name != first.name).filter(is_own)
    }
}

/// The findings that the looks of this host have by themselves.
struct Looks<'a> {
    /// Repositories that they open.
    repositories: Vec<&'a str>,
    /// Whether a key to read one of them is missing.
    only_writes: bool,
}

impl Looks<'_> {
    /// `other`: the repository that it is about, where that is not the first.
    fn find(&self, finding: &Finding, other: Option<&Repository>) -> bool {
        let is_of = |known: &(&str, &str)| is_of(finding, known);
        let needs_key = NEED_KEY.iter().any(is_of);
        let is_beyond = other.is_some() && OF_FIRST.iter().any(is_of);
        finding.group == LOST
            || LOOKED_AT.iter().any(is_of) && !(needs_key && self.only_writes) && !is_beyond
            || self.are_of(finding)
    }

    /// Whether a finding tells how a repository opened.
    fn are_of(&self, finding: &Finding) -> bool {
        finding.group == REPOSITORY && self.repositories.contains(&finding.name.as_str())
    }

    /// The group of a finding that keeps an examination from others: the server or a repository does not answer.
    fn are_blind_by(&self, finding: &Finding) -> Option<&'static str> {
        let name = finding.name.as_str();
        let is_of_repository = self.are_of(finding);
        let is_of_server = finding.group == "server" && ["connection", "questions"].contains(&name);
        match (finding.level, is_of_repository, is_of_server) {
            (Level::Fail, true, _) => Some(REPOSITORY),
            (Level::Fail, _, true) => Some("server"),
            _ => None,
        }
    }
}

fn is_of(finding: &Finding, (group, name): &(&str, &str)) -> bool {
    finding.group == *group && finding.name.starts_with(name)
}

/// How bad a finding is for those who are to hear of it; none for the others.
fn severity(finding: &Finding, other: Option<&Repository>, looks: &Looks<'_>) -> Option<Severity> {
    match finding.level {
        Level::Fail if !looks.find(finding, other) => Some(Severity::Critical),
        Level::Warn if WARNINGS.iter().any(|known| is_of(finding, known)) => Some(Severity::Medium),
        _ => None,
    }
}

fn found(subject: &str, finding: &Finding, other: Option<&str>, severity: Severity) -> Condition {
    let Finding { group, value, .. } = finding;
    let other = other.map_or(String::new(), |other| format!(" of {other}"));
    let name = format!("{}{other}", finding.name);
    let cause = finding.cause.as_ref();
    let cause = cause.map_or(String::new(), |cause| format!(" ({cause})"));
    let summary = format!("{subject}: {name}: {value}{cause}");
    let id = format!("{subject}/doctor/{group}/{name}");
    new(&id, severity, summary, "pitr doctor")
}

/// Whether a condition of this name is of an examination.
pub fn is_of_examination(id: &str) -> bool {
    let mut parts = id.split('/');
    parts.next() == Some(GIVEN_UP) || parts.next() == Some(GIVEN_UP)
}

/// The conditions that the last examination found, and one when it was long ago; none without its file, and where that is damaged: the next
/// examination writes it anew.
pub fn conditions(state_dir: &Path, now: TimestampTz) -> Option<Vec<Condition>> {
    let kept = read(state_dir)?;
    let old = of_old(&kept, now);
    let mut conditions = kept.conditions;
    if conditions.iter().all(|one| one.id != GIVEN_UP) {
        conditions.extend(old);
    }
    Some(conditions)
}

/// An examination that came no more. One that is later than now is of a clock that was ahead.
fn of_old(kept: &Kept, now: TimestampTz) -> Option<Condition> {
    let age = now.duration_since(kept.examined?)?;
    (age >= INTERVAL * 2).then(|| {
        let age = human::duration(age);
        let summary = format!(
            "pitr doctor last came to its end {age} ago: certificates, keys and settings are as they were then, as far as anybody knows"
        );
        new(GIVEN_UP, Severity::High, summary, "pitr doctor")
    })
}

fn read(state_dir: &Path) -> Option<Kept> {
    let bytes = behalf::read(&state_dir.join(FILE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn write(session: &Session, state_dir: &Path, kept: &Kept) -> Result<()> {
    session.keep_json(&state_dir.join(FILE), "findings", kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Location;

    fn judged(group: &'static str, name: &str, level: Level) -> Option<Severity> {
        judged_by(group, name, level, false)
    }

    fn judged_by(
        group: &'static str,
        name: &str,
        level: Level,
        only_writes: bool,
    ) -> Option<Severity> {
        let looks = Looks {
            repositories: vec!["local"],
            only_writes,
        };
        severity(&Finding::new(group, name, level, "so"), None, &looks)
    }

    #[test]
    fn failures_are_critical_and_advice_wakes_nobody() {
        let critical = Some(Severity::Critical);
        assert_eq!(judged("receiver", "slot", Level::Fail), critical);
        let found = judged("repository", "recipients of epoch 2", Level::Fail);
        assert_eq!(found, critical);
        assert_eq!(judged("repository", "newest backup", Level::Fail), None);
        assert_eq!(judged("repository", "gaps", Level::Fail), None);
        let written = |name| judged_by("repository", name, Level::Fail, true);
        assert_eq!(written("gaps"), critical, "a look needs a key for it");
        assert_eq!(written("newest backup"), None);
        assert_eq!(judged("repository", "local", Level::Fail), None);
        assert_eq!(judged("audit", "local", Level::Fail), critical);
        assert_eq!(judged(LOST, "backups to restore", Level::Fail), None);
        let medium = Some(Severity::Medium);
        assert_eq!(judged("clock", "server and host", Level::Fail), None);
        assert_eq!(judged("receiver", "kept WAL", Level::Fail), None);
        assert_eq!(judged("repository", "certificate", Level::Warn), medium);
        assert_eq!(judged("server", "data_checksums", Level::Warn), None);
        assert_eq!(judged("repository", "certificate", Level::Ok), None);
    }

    #[test]
    fn a_repository_of_other_keys_is_judged_behind_the_first() {
        let place = |name: &str, required: bool| Repository {
            name: name.to_owned(),
            required,
            ..Repository::at(Location::File("/a".into()))
        };
        let (local, offsite) = (place("local", true), place("newest", true));
        let later = [local.clone(), offsite.clone()];
        let of = |name: &str| Finding::new(REPOSITORY, name, Level::Ok, "so");
        let mut opened = Opened {
            later: &later,
            first: None,
            now: None,
        };
        for name in ["local", "newest backup", "local", "newest"] {
            opened.meet(&of(name));
            assert!(opened.other().is_none(), "copies come by sync: {name}");
        }
        assert_eq!(opened.now.map(|one| &*one.name), Some("newest"));
        let looks = Looks {
            repositories: vec!["local", "newest"],
            only_writes: false,
        };
        let behind = |name: &str| {
            let finding = Finding::new(REPOSITORY, name, Level::Fail, "so");
            severity(&finding, Some(&offsite), &looks)
        };
        let critical = Some(Severity::Critical);
        assert_eq!(behind("newest backup"), critical, "a look has the first");
        assert_eq!(behind("space"), None, "a look has those of all");
    }
}
