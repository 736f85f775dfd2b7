//! Reports: what ran, what was proven, what is there, and what somebody should do.
//!
//! Everything comes from the audit log and from what `pitr info` finds: a report decides nothing of its own.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::audit::{self, Listed, Range, Verified};
use super::erasure;
use super::failures::Failures;
use super::finding::Level;
use super::info::{self, Asks, Info};
use super::needs;
use super::objectives_history::{self, Kept};
use super::proven::Proven;
use super::read_back;
use super::reading::Reading;
use super::session::Session;
use crate::config::{self, Records, Settings};
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::audit::Outcome;
use crate::repo::drilled::Held;
use crate::repo::event::{self, PROGRAM};

/// The kind of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Runs, backups, drills, and findings.
    Daily,
    /// Every record, and whether the log is whole.
    Audit,
    /// The state of each control.
    Compliance,
}

/// A report.
#[derive(Serialize)]
pub struct Report {
    pub kind: Kind,
    /// Its first moment.
    pub since: TimestampTz,
    /// The first moment after it.
    pub until: TimestampTz,
    /// The host that made it.
    pub host: String,
    /// Name and version of the program.
    pub program: String,
    /// Runs of commands, in order of time.
    pub runs: Vec<Run>,
    /// Backups that ended in this time, and their state now.
    pub backups: Vec<Entry>,
    /// Restores that were tried: the newest drill of each cluster in each repository.
    pub proofs: Vec<Proof>,
    /// How the promises of each cluster were kept, as the agent of this host measured it.
    pub promises: Vec<Kept>,
    /// The controls; of a report about compliance alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
    /// The newest line of this host's audit log: whoever keeps the report keeps an anchor.
    pub anchor: Option<String>,
    /// The check of the audit log; none of a daily report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Verified>,
    /// Findings, worst first, with what helps.
    pub recommendations: Vec<Recommendation>,
    /// Errors of what could not be looked at: the report knows nothing of it.
    #[serde(serialize_with = "Failures::as_texts")]
    pub failures: Failures,
}

/// One run of a command, from its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// When it began, or ended where that alone is recorded.
    pub began: TimestampTz,
    /// When it ended; none where it was killed, and while it runs.
    pub ended: Option<TimestampTz>,
    /// The user.
    pub actor: String,
    /// The user who called sudo.
    pub sudo_user: Option<String>,
    pub host: String,
    pub command: String,
    pub object: Option<String>,
    /// `begun`, `succeeded`, `failed` or `noted`.
    pub outcome: Outcome,
    /// The error's code.
    pub reason: Option<String>,
    /// Anybody may have written a record of it.
    pub doubted: bool,
}

/// A backup.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// The cluster, or `aux/<kind>/<name>`.
    pub of: String,
    pub repository: String,
    pub id: String,
    /// When it ended.
    pub stop_time: TimestampTz,
    /// Bytes that it takes; none where this host only writes the repository.
    pub stored_bytes: Option<u64>,
    /// Damage that was found.
    pub damage: Option<String>,
}

/// The newest drill of a cluster in a repository.
#[derive(Debug, Serialize)]
pub struct Proof {
    pub cluster: String,
    pub repository: String,
    /// When it ended; none where no drill is known.
    pub time: Option<TimestampTz>,
    /// Whether it proved recovery, and no backup is there that another one found broken.
    pub passed: bool,
    /// Backups that a drill found broken, and none has shown otherwise since.
    pub broken_backups: Vec<String>,
}

/// A control, and how it stands.
#[derive(Debug, Serialize)]
pub struct Control {
    /// Its name.
    pub control: &'static str,
    /// How it stands.
    #[serde(serialize_with = "Level::as_state")]
    pub state: Level,
    /// The observation.
    pub observed: String,
    /// The command behind it.
    pub command: &'static str,
}

/// A finding, and what helps.
#[derive(Debug, Serialize)]
pub struct Recommendation {
    /// The cluster or the content.
    pub of: String,
    /// How bad it is.
    #[serde(serialize_with = "Level::as_state")]
    pub state: Level,
    pub finding: String,
    /// The command that helps.
    pub next: Option<String>,
}

/// Makes a report.
///
/// # Errors
/// Those of the configuration; the first failure when nothing could be looked at.
pub fn make(session: &Session, kind: Kind, range: Range) -> Result<Report> {
    let settings = session.settings_with_repositories()?;
    let now = session.host.now();
    let until = range.until.unwrap_or(now);
    let day = std::time::Duration::from_secs(24 * 3600);
    let since = range.since.unwrap_or_else(|| until.saturating_sub(day));
    let range = Range {
        since: Some(since),
        until: Some(until),
    };
    let (records, mut failures) = audit::list(session, range)?;
    let mut log = match kind {
        Kind::Daily => None,
        Kind::Audit | Kind::Compliance => Some(audit::verify(session, &[])?),
    };
    let info = info::look_with(session, Asks::Everything);
    let info = failures.note(info, "look at what can be recovered");
    let anchor = audit::head(session, &settings);
    let anchor = failures.note(anchor, "read the audit log of this host");
    let state_dir = settings.state_dir(&session.environment);
    let promises = state_dir.map_or(Ok(Vec::new()), |state_dir| {
        objectives_history::read(&settings, &state_dir, (since, until.min(now)))
    });
    let promises = failures.note(promises, "read how promises were kept");
    let controls = match (kind, &info, &log) {
        (Kind::Compliance, Some(info), Some(log)) => {
            let mut controls = controls(&settings, info, (log, &records), since);
            let place = controls.iter().position(|c| c.control == "encrypted");
            controls.insert(place.unwrap_or(0), checked(session, &settings, info, since));
            let is_next = |c: &Control| c.control == "commands recorded";
            let place = controls.iter().position(is_next);
            controls.insert(place.unwrap_or(0), immutable(session, &settings));
            let erasures = erasures(session, info);
            controls.extend(failures.note(erasures, "read the erasures"));
            controls
        }
        _ => Vec::new(),
    };
    let proofs = info.as_ref().map(|info| proofs(&settings, info));
    let backups = info.as_ref().map(|info| backups(info, since, until));
    let recommendations = info.as_ref().map(recommendations);
    let others = info.into_iter().flat_map(|info| info.failures.errors);
    failures.errors.extend(others);
    if let Some(log) = &mut log {
        failures.take_over(std::mem::take(&mut log.failures));
    }
    Ok(Report {
        kind,
        since,
        until,
        host: event::host(),
        program: PROGRAM.to_owned(),
        runs: runs(&records),
        backups: backups.unwrap_or_default(),
        proofs: proofs.unwrap_or_default(),
        promises: promises.unwrap_or_default(),
        controls,
        anchor: anchor.flatten(),
        log,
        recommendations: recommendations.unwrap_or_default(),
        failures,
    })
}

/// Joins the records of each run.
fn runs(records: &[Listed]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    for one in records {
        let record = &one.record;
        let key = (
            record.host.as_str(),
            record.run.as_str(),
            record.command.as_str(),
        );
        // Anybody can repeat the name of a run: a doubted record ends none that is not.
        let known = open.get(&key).and_then(|at| runs.get_mut(*at));
        if let Some(run) = known.filter(|run| run.ended.is_none() && run.doubted == one.doubted) {
            if record.outcome != Outcome::Begun {
                run.ended = Some(record.time);
                run.outcome = record.outcome;
                run.reason.clone_from(&record.reason);
            }
            continue;
        }
        open.insert(key, runs.len());
        runs.push(Run {
            began: record.time,
            ended: (record.outcome != Outcome::Begun).then_some(record.time),
            actor: record.actor.clone(),
            sudo_user: record.sudo_user.clone(),
            host: record.host.clone(),
            command: record.command.clone(),
            object: record.object.clone(),
            outcome: record.outcome,
            reason: record.reason.clone(),
            doubted: one.doubted,
        });
    }
    runs
}

/// The backups that ended in this time; of a cluster that this host only writes, the newest of each kind.
fn backups(info: &Info, since: TimestampTz, until: TimestampTz) -> Vec<Entry> {
    let of_clusters = info.clusters.iter().flat_map(|cluster| {
        cluster.backups.iter().map(|b| Entry {
            of: cluster.name.clone(),
            repository: cluster.repository_name.clone(),
            id: b.id.clone(),
            stop_time: b.stop_time,
            stored_bytes: Some(b.stored_bytes),
            damage: b.damage.clone(),
        })
    });
    let of_written = info.written.iter().flat_map(|cluster| {
        cluster.backups.iter().map(|b| Entry {
            of: cluster.name.clone(),
            repository: cluster.repository_name.clone(),
            id: b.id.to_string(),
            stop_time: b.time,
            stored_bytes: None,
            damage: None,
        })
    });
    let of_scopes = info.scopes.iter().flat_map(|scope| {
        scope.backups.iter().map(|b| Entry {
            of: scope.scope.clone(),
            repository: scope.repository.clone(),
            id: b.id.to_string(),
            stop_time: b.stop_time,
            stored_bytes: Some(b.stored_bytes),
            damage: b.damage.clone(),
        })
    });
    let all = of_clusters.chain(of_written).chain(of_scopes);
    all.filter(|one| one.stop_time >= since && one.stop_time < until)
        .collect()
}

/// The names of all clusters, also of those that could not be looked at.
fn names(info: &Info) -> impl Iterator<Item = &str> {
    let clusters = info.clusters.iter().map(|c| c.name.as_str());
    let written = info.written.iter().map(|c| c.name.as_str());
    let unseen = info.unseen.iter().map(String::as_str);
    clusters.chain(written).chain(unseen)
}

/// The newest drill of each cluster in each repository. No answer is no proof.
fn proofs(settings: &Settings, info: &Info) -> Vec<Proof> {
    let known = info.of_each(|c| &c.drills, |c| &c.drills);
    let known: Vec<(&str, &Vec<Proven>)> = known.collect();
    let of = |cluster: &str, repository: &str| {
        let drills = known.iter().filter(|(name, _)| *name == cluster);
        let mut drills = drills.flat_map(|(_, drills)| drills.iter());
        let drills = drills.find(|one| one.repository == repository);
        let newest = drills.and_then(|one| one.drills.newest.as_ref());
        let broken = drills.map_or(&[][..], |one| one.drills.broken.as_slice());
        let broken = broken.iter().filter_map(|held| held.drill.backup.as_ref());
        let broken_backups: Vec<String> = broken.map(ToString::to_string).collect();
        Proof {
            cluster: cluster.to_owned(),
            repository: repository.to_owned(),
            time: newest.map(|held| held.time),
            passed: newest.is_some_and(Held::is_passed) && broken_backups.is_empty(),
            broken_backups,
        }
    };
    let each = names(info).flat_map(|cluster| {
        let repositories = settings.repositories.iter();
        repositories.map(move |one| (cluster, one.name.as_str()))
    });
    each.map(|(cluster, repository)| of(cluster, repository))
        .collect()
}

/// Whether everything that each repository has of each cluster was read back in this time.
fn checked(session: &Session, settings: &Settings, info: &Info, since: TimestampTz) -> Control {
    let all = names(info).count() * settings.repositories.len();
    let (mut read, mut doubts) = (0, BTreeSet::new());
    for cluster in names(info) {
        let session = session.on_cluster(cluster);
        let first = Reading::open(&session);
        let others = first.as_ref().map(|first| first.all_others(&session));
        let others: Vec<(String, Result<Reading>)> = others.into_iter().flatten().collect();
        let own = first.map(|first| (first.configured.name.clone(), Ok(first)));
        let own = own.unwrap_or_else(|e| (String::new(), Err(e)));
        for (repository, reading) in [own].into_iter().chain(others) {
            match reading.and_then(|reading| is_read_back(&session, &reading, since)) {
                Ok(is_whole) => read += usize::from(is_whole),
                Err(e) => {
                    doubts.insert(format!("{cluster} in \"{repository}\": {e}"));
                }
            }
        }
    }
    let observed = format!("{read} of {all} copies of clusters were read back in this time");
    let observed = with_doubts(observed, doubts);
    let is_met = all > 0 && read == all;
    control("stored data checked", is_met, observed, "pitr verify")
}

fn with_doubts(observed: String, doubts: impl IntoIterator<Item = String>) -> String {
    let all = std::iter::once(observed).chain(doubts);
    all.collect::<Vec<_>>().join("; ")
}

fn is_read_back(session: &Session, reading: &Reading, since: TimestampTz) -> Result<bool> {
    let inventory = reading.inventory(session)?;
    read_back::is_whole(session, (reading, &inventory), since)
}

fn recommendations(info: &Info) -> Vec<Recommendation> {
    let scopes = info.scopes.iter().map(|s| (s.scope.as_str(), &s.problems));
    let subjects = info.of_each(|c| &c.problems, |c| &c.problems).chain(scopes);
    let found = subjects.flat_map(|(name, problems)| problems.iter().map(move |f| (name, f)));
    let found = found.filter(|(_, finding)| finding.level != Level::Ok);
    let told = found.map(|(name, finding)| Recommendation {
        of: name.to_owned(),
        state: finding.level,
        finding: finding.value.clone(),
        next: finding.next.clone(),
    });
    let mut all: Vec<Recommendation> = told.collect();
    all.sort_by_key(|one| std::cmp::Reverse(one.state));
    all
}

/// A control whose state is one of two.
fn control(
    control: &'static str,
    is_met: bool,
    observed: String,
    command: &'static str,
) -> Control {
    Control {
        control,
        state: if is_met { Level::Ok } else { Level::Warn },
        observed,
        command,
    }
}

/// How many runs of a command ended well. A record that anybody may have written proves nothing.
fn succeeded(records: &[Listed], command: &str) -> usize {
    let of_it = records.iter().filter(|one| one.record.command == command);
    of_it
        .filter(|one| !one.doubted && one.record.outcome == Outcome::Succeeded)
        .count()
}

fn controls(
    settings: &Settings,
    info: &Info,
    (log, records): (&Verified, &[Listed]),
    since: TimestampTz,
) -> Vec<Control> {
    let repositories = &settings.repositories;
    let encrypted = repositories.iter().filter(|r| r.encryption.is_some());
    let encrypted = encrypted.count();
    let all = repositories.len();
    let clusters = &info.clusters;
    // A host that only writes knows too little of a cluster to prove a control.
    let unread = info.failures.errors.len() + info.written.len();
    let recoverable = clusters.iter().filter(|c| !c.recovery_windows.is_empty());
    let damaged = clusters.iter().flat_map(|c| &c.backups);
    let of_scopes = info.scopes.iter().flat_map(|scope| &scope.backups);
    let of_scopes = of_scopes.filter(|b| b.damage.is_some());
    let damaged = damaged.filter(|b| b.damaged).count() + of_scopes.count();
    let proofs = proofs(settings, info);
    let passed = proofs.iter().filter(|proof| proof.passed);
    let is_new = |proof: &&Proof| proof.time.is_some_and(|time| time >= since);
    let (passed, new) = (passed.clone().count(), passed.filter(is_new).count());
    let is_recorded = settings.audit.records != Records::Off;
    let unread_logs = log.failures.errors.len();
    let log_state = match log.is_damaged() {
        true => "somebody changed it".to_owned(),
        false if unread_logs > 0 => format!("{unread_logs} repositories could not be read"),
        false if !is_recorded => "no command of this host is recorded".to_owned(),
        false => format!("whole: {} problems without damage", log.problems.len()),
    };
    vec![
        control(
            "recoverable",
            unread == 0 && !clusters.is_empty() && recoverable.clone().count() == clusters.len(),
            format!(
                "{} of {} clusters can be recovered; {unread} could not be looked at",
                recoverable.count(),
                clusters.len() + unread
            ),
            "pitr info",
        ),
        control(
            "no known damage",
            damaged == 0 && unread == 0,
            format!("{damaged} damaged backups; {unread} clusters could not be looked at"),
            "pitr verify",
        ),
        control(
            "restores tested",
            new > 0 && new == proofs.len(),
            format!(
                "the newest drills of {passed} of {} copies of clusters passed, {new} of them in this time; {} drills in all ended well in it",
                proofs.len(),
                succeeded(records, "drill")
            ),
            "pitr drill",
        ),
        control(
            "encrypted",
            encrypted == all,
            format!("{encrypted} of {all} repositories"),
            "pitr repo keygen",
        ),
        control(
            "several copies",
            all > 1,
            match all {
                1 => "1 repository".to_owned(),
                _ => format!("{all} repositories"),
            },
            "pitr repo sync",
        ),
        control(
            "commands recorded",
            is_recorded && unread_logs == 0 && !log.is_damaged(),
            log_state,
            "pitr audit verify",
        ),
    ]
}

/// Whether the store keeps what the newest backup of each repository needs, as its own answers say.
fn immutable(session: &Session, settings: &Settings) -> Control {
    let all = settings.repositories.len();
    let (mut locked, mut doubts) = (0, Vec::new());
    for configured in &settings.repositories {
        match unlocked(session, configured) {
            Ok(None) => locked += 1,
            Ok(Some(what)) => doubts.push(format!("\"{}\": {what}", configured.name)),
            Err(e) => doubts.push(format!("\"{}\" could not be asked: {e}", configured.name)),
        }
    }
    let observed = format!("{locked} of {all} repositories under Object Lock");
    let observed = with_doubts(observed, doubts);
    control("immutable", locked == all, observed, "pitr repo check")
}

/// The reason why a repository does not count as locked: the setting, or an object that can be deleted. The newest root of each cluster and other content,
/// its oldest pack, the registration, the marker and a recipient stand for all.
fn unlocked(session: &Session, configured: &config::Repository) -> Result<Option<String>> {
    if configured.s3.object_lock.is_none() {
        return Ok(Some("no object_lock".to_owned()));
    }
    let repository = session.open(configured)?;
    let store = repository.store();
    let now = store.clock()?.unwrap_or_else(|| session.host.now());
    for key in needs::samples(&repository)? {
        if store.locked_until(&key)?.is_none_or(|until| until <= now) {
            return Ok(Some(format!("\"{key}\" is not locked")));
        }
    }
    Ok(None)
}

/// Whether every erasure that is recorded can be repeated.
fn erasures(session: &Session, info: &Info) -> Result<Control> {
    let names: BTreeSet<&str> = info.clusters.iter().map(|c| c.name.as_str()).collect();
    let unread = info.failures.errors.len() + info.written.len();
    let (mut recorded, mut unreadable) = (0, 0);
    for name in names {
        let listing = erasure::list(&session.on_cluster(name))?;
        recorded += listing.erasures.len();
        let damaged = listing.erasures.iter().filter(|e| e.erasure.is_none());
        unreadable += damaged.count();
    }
    Ok(control(
        "erasures readable",
        unreadable == 0 && unread == 0,
        format!(
            "{recorded} recorded, {unreadable} that cannot be read; {unread} clusters could not be looked at"
        ),
        "pitr erasure list",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::audit::Record;

    fn listed(run: &str, outcome: Outcome, doubted: bool) -> Listed {
        Listed {
            record: Record {
                host: "db1".into(),
                run: run.into(),
                command: "backup".into(),
                outcome,
                ..Record::default()
            },
            doubted,
            repositories: Vec::new(),
        }
    }

    #[test]
    fn records_of_one_run_are_one_line_and_a_stranger_ends_none() {
        let told = |second: Listed| -> Vec<Outcome> {
            let records = [listed("a", Outcome::Begun, false), second];
            runs(&records).iter().map(|run| run.outcome).collect()
        };
        let own = listed("a", Outcome::Failed, false);
        assert_eq!(told(own), [Outcome::Failed]);
        let other = listed("b", Outcome::Succeeded, false);
        assert_eq!(told(other), [Outcome::Begun, Outcome::Succeeded]);
        let forged = listed("a", Outcome::Succeeded, true);
        assert_eq!(told(forged), [Outcome::Begun, Outcome::Succeeded]);
    }

    #[test]
    fn doubted_records_prove_no_control() {
        let records = [
            listed("a", Outcome::Succeeded, true),
            listed("b", Outcome::Failed, false),
        ];
        assert_eq!(succeeded(&records, "backup"), 0);
        let records = [listed("c", Outcome::Succeeded, false)];
        assert_eq!(succeeded(&records, "backup"), 1);
        assert_eq!(succeeded(&records, "verify"), 0);
    }
}
