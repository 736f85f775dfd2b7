//! The clusters of a repository: what can be recovered of each, to when, and what is wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::agent_trouble::{self, Trouble};
use super::backup_age;
use super::blocked::{Blocked, PASSING, STUCK, Waiting};
use super::conflicts;
use super::exposure::{self, Exposure};
use super::failures::Failures;
use super::finding::{self, Finding, Level};
use super::forecast::{self, Forecast};
use super::former::{self, Former};
use super::how_long;
use super::human;
use super::lag::{self, Lag};
use super::left_behind::LeftBehind;
use super::objectives;
use super::proven::{self, Proven};
use super::read_back;
use super::reading::Reading;
use super::receiver::{self, Receiver};
use super::remains::{self, Remains};
use super::repository_state::RepositoryState;
use super::scopes::{self, ScopeInfo};
use super::server_state::{self, ServerState};
use super::session::Session;
use super::set_back;
use super::underway::{self, Underway};
use super::written::{self, Written};
use crate::archive::datadir::DataDirectory;
use crate::config;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::plan::base::lies_on;
use crate::plan::chain::StretchEnd;
use crate::plan::cluster::{Cluster, DECIDE};
use crate::plan::estimate::Estimate;
use crate::plan::gap::{self, Gap};
use crate::plan::retention::Policy;
use crate::plan::window::{Window, Windows};
use crate::repo::event;
use crate::repo::layout::ClusterLayout;
use crate::repo::portion::Share;
use crate::repo::root::BackupKind;
use crate::wal::inventory::{Backup, Inventory, Timeline, Unreadable};

/// The clusters, and the worst state of all.
#[derive(Serialize)]
pub struct Info {
    /// The worst of all.
    #[serde(serialize_with = "Level::as_state")]
    pub state: Level,
    /// The clusters that could be looked at.
    pub clusters: Vec<ClusterInfo>,
    /// Clusters of which this host only writes the repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<Written>,
    /// Other content, by repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<ScopeInfo>,
    /// Commands of this host that run now.
    pub running: Vec<Underway>,
    /// The configuration that the agent of this host could not take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_trouble: Option<Trouble>,
    /// Errors of the others.
    #[serde(skip)]
    pub failures: Failures,
    /// The names of the others.
    #[serde(skip)]
    pub unseen: Vec<String>,
}

impl Info {
    /// The state of each server that was asked, by the name of its cluster.
    pub fn servers(&self) -> impl Iterator<Item = (&str, &ServerState)> {
        let all = self.of_each(|one| &one.server, |one| &one.server);
        all.filter_map(|(name, server)| Some((name, server.as_ref()?)))
    }

    /// The receiver of each cluster that has one.
    pub fn receivers(&self) -> impl Iterator<Item = (&str, &Receiver)> {
        let all = self.of_each(|one| &one.receiver, |one| &one.receiver);
        all.filter_map(|(name, receiver)| Some((name, receiver.as_ref()?)))
    }

    /// The clusters whose servers do not answer, with the finding.
    pub fn silent(&self) -> impl Iterator<Item = (&str, &Finding)> {
        let all = self.of_each(|one| &one.problems, |one| &one.problems);
        all.filter_map(|(name, problems)| {
            let found = problems.iter().find(|one| server_state::is_silence(one))?;
            Some((name, found))
        })
    }

    /// A part of each cluster, by the name of that: of those that were looked at, then of those that this host only writes.
    pub(super) fn of_each<'a, T: 'a>(
        &'a self,
        own: fn(&'a ClusterInfo) -> &'a T,
        written: fn(&'a Written) -> &'a T,
    ) -> impl Iterator<Item = (&'a str, &'a T)> {
        let clusters = self.clusters.iter();
        let clusters = clusters.map(move |one| (one.name.as_str(), own(one)));
        let others = self.written.iter();
        clusters.chain(others.map(move |one| (one.name.as_str(), written(one))))
    }
}

/// A cluster, and what can be recovered of it.
#[derive(Serialize)]
pub struct ClusterInfo {
    pub name: String,
    /// Its system identifier, as a string: it exceeds 2^53.
    pub system_identifier: String,
    /// The repository that was read, without secrets.
    pub repository: String,
    /// Its name in the configuration.
    #[serde(skip)]
    pub repository_name: String,
    /// The WAL that is in no repository; none where that is not known, or nobody asked.
    #[serde(skip)]
    pub exposure: Option<Exposure>,
    /// The state of its server; none where that is not known, or nobody asked.
    #[serde(skip)]
    pub server: Option<ServerState>,
    /// Objects in the repository beside backups and WAL; none where nobody asked.
    #[serde(skip)]
    pub remains: Option<Remains>,
    /// The state of the repository; none where nobody asked.
    #[serde(skip)]
    pub repository_state: Option<RepositoryState>,
    /// PostgreSQL major.
    pub major: u32,
    /// The worst of its problems.
    #[serde(serialize_with = "Level::as_state")]
    pub state: Level,
    /// Problems, worst first.
    #[serde(serialize_with = "problems")]
    pub problems: Vec<Finding>,
    /// The timeline that is the cluster; none while it is undecided.
    pub timeline: Option<u32>,
    /// The timelines that may be the cluster.
    pub candidates: Vec<u32>,
    /// Timelines that were given up.
    pub abandoned: Vec<u32>,
    /// The backups, oldest first.
    pub backups: Vec<BackupInfo>,
    /// The moments that can be reached.
    pub recovery_windows: Vec<Window>,
    /// WAL that is missing.
    pub gaps: Vec<Gap>,
    /// Backups whose roots cannot be read.
    pub unreadable_backups: Vec<String>,
    /// Backups that were complete and whose roots are not there.
    pub lost_backups: Vec<String>,
    /// Whole segments.
    pub segments: u64,
    /// How much of it `pitr verify` read back, and when.
    pub read_back: Share,
    /// When recovery was last proven, by repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drills: Vec<Proven>,
    /// How long recovery to the end of the window takes; none where nothing can be recovered.
    pub estimate: Option<Estimate>,
    /// The receiver, as it was last seen from here.
    pub receiver: Option<Receiver>,
    /// All that are configured, where there are several.
    pub repositories: Vec<Lag>,
    /// Segments of which only a part is stored.
    pub tails: Vec<Tail>,
    /// Files that the server offers and that could not be archived.
    pub blocked: Vec<Blocked>,
    /// Commits that the cluster does not have, of timelines that it left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_behind: Vec<LeftBehind>,
    /// Clusters with other system identifiers under the same name.
    pub others: Vec<Former>,
    /// Meaning of the configured rules of retention for the backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Forecast>,
    /// The content of the repository.
    #[serde(skip)]
    pub inventory: Inventory,
}

impl ClusterInfo {
    /// The moments that can be recovered, as a line.
    pub fn recovery_line(&self) -> String {
        let timeline = self.timeline.and_then(TimelineId::new);
        let window = of_cluster(&self.recovery_windows, timeline, &self.inventory);
        match (window, self.timeline) {
            _ if self.state == Level::Fail => "recovery: NOT ASSURED".to_owned(),
            (Some(w), Some(_)) => {
                let (from, to) = human::window(w.from, w.to);
                format!("recovery: any moment from {from} to {to}")
            }
            (Some(_), None) => {
                let numbers: Vec<String> = self.candidates.iter().map(u32::to_string).collect();
                format!(
                    "recovery: undecided between timelines {}",
                    numbers.join(" and ")
                )
            }
            (None, _) => "recovery: nothing can be recovered".to_owned(),
        }
    }
}

/// A segment of which only a part is stored.
#[derive(Serialize)]
pub struct Tail {
    pub segment: SegmentName,
    /// How far increments reach.
    pub reach_lsn: Option<Lsn>,
}

fn tails(inventory: &Inventory) -> Vec<Tail> {
    let size = inventory.segment_size;
    let of = |(id, timeline): (&TimelineId, &Timeline)| -> Vec<Tail> {
        let tail = |(number, reach): (&SegmentNumber, &Lsn)| {
            Some(Tail {
                segment: number.name(*id, size)?,
                reach_lsn: Some(*reach).filter(|reach| *reach > number.start_lsn(size)),
            })
        };
        timeline.tails.iter().filter_map(tail).collect()
    };
    inventory.timelines.iter().flat_map(of).collect()
}

/// Writes findings as problems: a state, a message, and what helps.
pub(super) fn problems<S: Serializer>(
    found: &[Finding],
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Problem<'a> {
        state: &'static str,
        message: &'a str,
        next: Option<&'a str>,
    }
    to.collect_seq(found.iter().map(|f| Problem {
        state: f.level.state(),
        message: &f.value,
        next: f.next.as_deref(),
    }))
}

/// A backup.
#[derive(Serialize)]
pub struct BackupInfo {
    pub id: String,
    /// Full or incremental.
    pub kind: BackupKind,
    /// The operator's text.
    pub label: String,
    /// The position at which replay begins.
    pub start_lsn: Lsn,
    /// End of the WAL that it needs by itself.
    pub stop_lsn: Lsn,
    /// Server's clock at its start.
    pub start_time: TimestampTz,
    /// Server's clock at its stop.
    pub stop_time: TimestampTz,
    /// Timeline at its stop.
    pub timeline: u32,
    /// Raw bytes of its files.
    pub size_bytes: u64,
    pub stored_bytes: u64,
    /// Whether something is wrong with it.
    pub damaged: bool,
    /// Its damage or trouble.
    pub damage: Option<String>,
    /// Whether databases lie in it without their content.
    pub partial: bool,
    /// It is marked for deletion, not before this time.
    pub expire_not_before: Option<TimestampTz>,
    /// Whether it is pinned.
    pub pinned: bool,
    /// When the pin ends.
    pub pinned_until: Option<TimestampTz>,
    /// Why it is pinned.
    pub pinned_reason: Option<String>,
    /// It is on legal hold: by the `store`, or `advisory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<&'static str>,
}

impl BackupInfo {
    fn new(backup: &Backup, now: TimestampTz) -> BackupInfo {
        let pin = backup.pin(now);
        BackupInfo {
            id: backup.id.to_string(),
            kind: backup.kind,
            label: backup.label.clone(),
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            start_time: backup.start_time,
            stop_time: backup.stop_time,
            timeline: backup.timeline.decimal(),
            size_bytes: backup.size_bytes,
            stored_bytes: backup.stored_bytes,
            damaged: backup.damage.is_some(),
            damage: backup.damage.clone(),
            partial: backup.is_partial,
            expire_not_before: backup.expire_mark,
            pinned: pin.is_some(),
            pinned_until: pin.and_then(|pin| pin.until),
            pinned_reason: pin.and_then(|pin| pin.reason.clone()),
            hold: hold(backup),
        }
    }
}

/// The keeper of a backup that is on legal hold.
fn hold(backup: &Backup) -> Option<&'static str> {
    let mut holds = backup.pins.iter().filter(|pin| pin.legal);
    let first = holds.next()?;
    Some(match first.held || holds.any(|pin| pin.held) {
        true => "store",
        false => "advisory",
    })
}

/// The words for a cluster without any backup.
pub(super) const NO_BACKUP: &str =
    "there is no backup: nothing can be recovered; take one: pitr backup";

/// Looks at each cluster that could be meant.
///
/// # Errors
/// Those of [`Reading::open_each`]; the first failure when no cluster could be looked at.
pub fn look(session: &Session) -> Result<Info> {
    look_with(session, Asks::Promises)
}

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// The findings that people are shown; the server only for a promise of the configuration.
    Promises,
    /// The state of the server in any case, and what remains in the repository. A host that only writes judges what takes no key.
    Everything,
}

/// As [`look`], with what is asked for.
///
/// # Errors
/// Those of [`look`].
pub fn look_with(session: &Session, asks: Asks) -> Result<Info> {
    let (mut clusters, mut written) = (Vec::new(), Vec::new());
    let (mut failures, mut unseen) = (Failures::default(), Vec::new());
    let readings = Reading::open_each(session)?;
    let is_several =
        readings.len() > 1 || readings.iter().any(|one| one.settings.clusters.len() > 1);
    for reading in readings {
        let only_writes = asks == Asks::Everything && reading.configured.only_writes();
        let looked = match only_writes {
            true => written::look(session, &reading).map(|one| written.push(one)),
            false => look_at(session, &reading, asks).map(|one| clusters.push(one)),
        };
        let doing = format!("look at cluster \"{}\"", reading.name);
        if failures.note(looked, doing).is_none() {
            unseen.push(reading.name.clone());
        }
    }
    failures.first_if(session, clusters.is_empty() && written.is_empty())?;
    if is_several {
        let named = |one: &mut ClusterInfo| finding::name_cluster(&mut one.problems, &one.name);
        clusters.iter_mut().for_each(named);
        let named = |one: &mut Written| finding::name_cluster(&mut one.problems, &one.name);
        written.iter_mut().for_each(named);
    }
    let scopes = scopes::look(session, asks)?;
    let found = clusters.iter().flat_map(|one| &one.problems);
    let found = found.chain(written.iter().flat_map(|one| &one.problems));
    let mut found = found.chain(scopes.iter().flat_map(|one| &one.problems));
    debug_assert!(
        found.all(|one| one.level == Level::Ok || one.next.is_some()),
        "a finding names no next command"
    );
    let states = clusters.iter().map(|shown| shown.state);
    let states = states.chain(written.iter().map(|one| one.state));
    let worst = states.chain(scopes.iter().map(|s| s.state)).max();
    let state = match failures.is_empty() {
        true => worst.unwrap_or(Level::Ok),
        false => Level::Fail,
    };
    let settings = session.settings();
    let running = settings.map(|settings| underway::look(session, &settings));
    Ok(Info {
        state,
        clusters,
        written,
        scopes,
        running: running.unwrap_or_default(),
        agent_trouble: agent_trouble(session),
        failures,
        unseen,
    })
}

fn agent_trouble(session: &Session) -> Option<Trouble> {
    let settings = session.settings().ok()?;
    agent_trouble::read(&settings.state_dir(&session.environment)?)
}

fn look_at(session: &Session, reading: &Reading, asks: Asks) -> Result<ClusterInfo> {
    let inventory = reading.inventory(session)?;
    let found = reading.windows(session, &inventory)?;
    let (cluster, _) = reading.decide_with_others(session, &inventory)?;
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    let gaps = gap::gaps(&inventory, oldest.unwrap_or_default());
    let (configured, identifier) = (reading.cluster.as_ref(), inventory.system_identifier);
    let limit = configured.and_then(|c| c.max_backup_age);
    let limit = limit.map(|age| age.duration());
    let read = |own| Receiver::read(own, identifier, session.host.now());
    let receiver = configured.map_or(Ok(None), read)?;
    let now = session.host.now();
    let mut problems = judge(&inventory, &found, &gaps, &cluster, limit, now);
    let mismatch = former::mismatch(session, reading, identifier);
    problems.extend(mismatch.map(|(why, next)| {
        Finding::new("cluster", "data directory", Level::Fail, why).with_next(next)
    }));
    let next = "install a newer pitr";
    let newer = Major::newer_means(inventory.major).map(|means| format!("{means}; {next}"));
    problems.extend(warn("cluster", "PostgreSQL", newer, next));
    if inventory.is_unregistered {
        problems.push(Finding::new("cluster", "registration", Level::Fail, "the registration (cluster.json) is missing: archiving and backups are refused (A121); on the cluster's host: pitr init").with_next("pitr init"));
    }
    let lost = receiver::recorded_gaps(&reading.repository, &inventory, &cluster.abandoned)?;
    let next = "pitr wal gaps --heal";
    problems.extend(warn("recovery", "recorded gap", lost, next));
    let created = reading.settings.repositories.iter();
    problems.extend(created.filter_map(weakly_created));
    let now = session.host.now();
    problems.extend(receiver.as_ref().and_then(|r| r.finding(now)));
    let repositories = lag::look(session, &reading.settings, &reading.name, identifier);
    problems.extend(repositories.iter().flat_map(of_lag));
    let mut drills = proven::look(session, reading, identifier)?;
    let max_drill_age = configured.and_then(|c| c.max_drill_age);
    let max_drill_age = max_drill_age.map(|age| age.duration());
    let judged = proven::problems(&drills, max_drill_age, session.host.now());
    problems.extend(judged);
    let own = drills.first().map(|own| own.drills.measured.as_slice());
    let own = own.unwrap_or_default();
    let window = of_cluster(&found.windows, cluster.timeline(), &inventory);
    let estimate = window.and_then(|w| w.work(&inventory));
    let estimate = estimate.map(|work| how_long::of(own, work));
    let promised = configured.map(|c| c.objectives.clone());
    let promised = promised.unwrap_or_default();
    let is_everything = asks == Asks::Everything;
    let is_asked = is_everything || (promised.rpo.is_some() && window.is_some());
    let asked = configured.filter(|_| is_asked);
    let asked = asked.map(|own| ServerState::look(own, identifier, &session.host));
    let (mut server, silence) = asked.unwrap_or_default();
    if let Some((server, window)) = server.as_mut().zip(window) {
        exposure::settle(server, window, &inventory);
    }
    // The promise that needs the server tells of it otherwise.
    problems.extend(silence.filter(|_| is_everything));
    // Read after the server: what came while everything else was looked at is no lag.
    let asked = configured.filter(|_| server.is_some());
    let newest = asked.map_or(Ok(None), read)?;
    let exposure = server.as_ref().zip(window).and_then(|(server, window)| {
        let now = session.host.now();
        exposure::look(server, window, &inventory, newest.as_ref(), now)
    });
    let look = || remains::look(session, reading.repository.store(), &inventory);
    let remains = is_everything.then(look).transpose()?;
    let state = objectives::State {
        exposure: exposure.as_ref(),
        estimate: estimate.as_ref(),
        repositories: &reading.settings.repositories,
        lags: &repositories,
        has_backup: inventory.backups.iter().any(|b| b.damage.is_none()),
    };
    problems.extend(objectives::judge(&promised, &state));
    drills.retain(|proven| proven.drills.newest.is_some());
    let undecided = cluster.undecided().map(|why| format!("{why}. {DECIDE}"));
    let (list, beside) = ("pitr timeline list", cluster.describe_beside());
    problems.extend(warn("cluster", "timeline", undecided, list));
    problems.extend(warn("cluster", "timelines", beside, list));
    let twice = times_twice(session, reading, &inventory, &found, &cluster)?;
    problems.extend(warn("recovery", "clock", twice, "pitr plan"));
    let (blocked, found_waiting) = archiving(configured, session);
    problems.extend(found_waiting);
    if !blocked.iter().any(Blocked::is_conflict) {
        problems.extend(refused(reading, &inventory.layout()?, now));
    }
    let followed = Policy {
        cluster: cluster.candidates(),
        ..Policy::default()
    };
    let stored = (&inventory, repositories.as_slice());
    let (retention, unknown) = foretold(forecast::look(session, reading, stored, followed))?;
    problems.extend(unknown);
    problems.sort_by_key(|p| std::cmp::Reverse(p.level));
    let state = problems.iter().map(|p| p.level).max().unwrap_or(Level::Ok);
    let (backups, unreadable) = (inventory.backups.iter(), inventory.unreadable.iter());
    let segments = inventory.timelines.values().map(|t| t.segments.count());
    let followed = cluster.timeline().zip(Some(found.windows.as_slice()));
    let left_behind = LeftBehind::all(session, reading, &inventory, followed)?;
    Ok(ClusterInfo {
        name: inventory.cluster.clone(),
        system_identifier: inventory.system_identifier.to_string(),
        repository: inventory.repository.clone(),
        repository_name: reading.configured.name.clone(),
        exposure,
        server,
        remains,
        repository_state: is_everything
            .then(|| RepositoryState::look(session, &reading.configured, &reading.repository)),
        major: inventory.major,
        state,
        problems,
        timeline: cluster.timeline().map(TimelineId::decimal),
        candidates: cluster.candidates().iter().map(|t| t.decimal()).collect(),
        abandoned: cluster.abandoned.iter().map(|t| t.decimal()).collect(),
        backups: backups
            .map(|b| BackupInfo::new(b, session.host.now()))
            .collect(),
        recovery_windows: found.windows,
        gaps,
        unreadable_backups: unreadable.map(|u| u.id.to_string()).collect(),
        lost_backups: inventory.lost.iter().map(ToString::to_string).collect(),
        segments: segments.sum(),
        read_back: read_back::share(session, reading, &inventory)?,
        drills,
        estimate,
        receiver,
        repositories,
        tails: tails(&inventory),
        left_behind,
        others: Former::all(reading, identifier)?,
        blocked,
        retention,
        inventory,
    })
}

/// Warnings of one name.
fn warn(
    group: &'static str,
    name: &str,
    messages: impl IntoIterator<Item = String>,
    next: &str,
) -> impl Iterator<Item = Finding> {
    let found = messages.into_iter();
    found.map(move |m| Finding::new(group, name, Level::Warn, m).with_next(next))
}

/// Explains what a clock that was set back means for targets in the window of the cluster.
fn times_twice(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
    found: &Windows,
    cluster: &Cluster,
) -> Result<Option<String>> {
    let Some(window) = of_cluster(&found.windows, cluster.timeline(), inventory) else {
        return Ok(None);
    };
    let rollup = reading.rollup(session, inventory)?;
    let twice = set_back::look(inventory, &rollup, window)?;
    Ok(twice.map(|twice| {
        format!(
            "the clock was set back: the times from {} to {} occur twice. A target time between them stops at the first later transaction in the WAL: pitr plan shows where",
            human::time(twice.from),
            human::time(twice.to)
        )
    }))
}

/// Judges the lag of one of several repositories.
pub(super) fn of_lag(lag: &Lag) -> impl Iterator<Item = Finding> + '_ {
    let lines = lag.problems().into_iter();
    lines.map(|(line, next)| {
        Finding::new("repository", &lag.name, Level::Warn, line).with_next(next)
    })
}

/// Files that could not be archived, and the findings about all WAL that waits for it.
pub(super) fn archiving(
    cluster: Option<&config::Cluster>,
    session: &Session,
) -> (Vec<Blocked>, Vec<Finding>) {
    let Some(cluster) = cluster else {
        return (Vec::new(), Vec::new());
    };
    let blocked = Blocked::all(cluster, None, session);
    let of_file = |file: &Blocked| {
        let level = match file.has_lasted() {
            true => Level::Fail,
            false => Level::Warn,
        };
        Finding::new("archiving", "blocked", level, file.line()).with_next(file.next())
    };
    let mut found: Vec<Finding> = blocked.iter().map(of_file).collect();
    if blocked.is_empty() {
        found.extend(stuck(cluster, session));
    }
    (blocked, found)
}

/// WAL that waits for long, though no cause is recorded: there is no spool, or archive_command does not get as far as to record it. A standby may keep
/// what waited when it was a primary.
fn stuck(cluster: &config::Cluster, session: &Session) -> Option<Finding> {
    let pgdata = cluster.pgdata.as_deref()?;
    let waiting = Waiting::read(pgdata, session.host.now()).ok()?;
    let is_standby = DataDirectory::at(pgdata).has("standby.signal");
    (waiting.age >= PASSING && !is_standby).then(|| {
        let value = format!(
            "archiving is stuck: {waiting}. pg_wal grows until its disk is full. The server's log has the error of pitr-archive; pitr doctor looks for the cause"
        );
        let level = match waiting.age >= STUCK {
            true => Level::Fail,
            false => Level::Warn,
        };
        Finding::new("archiving", "waiting", level, value).with_next("pitr doctor")
    })
}

/// Segments that the repository refused of late, whichever host offered them. A host without the right to list them learns of none.
fn refused(reading: &Reading, layout: &ClusterLayout, now: TimestampTz) -> Option<Finding> {
    let counted = conflicts::newly_refused(reading.repository.store(), layout, now);
    let count = counted.ok().filter(|count| *count > 0)?;
    let value = format!(
        "repository \"{}\" refused {} within the last day: other WAL has the name. Two servers write one timeline, and only one of them is archived",
        reading.configured.name,
        human::count(count, "segment")
    );
    let found = Finding::new("archiving", "conflict", Level::Warn, value);
    Some(found.with_next("pitr wal conflicts"))
}

/// The forecast, or the finding about rules that cannot be read, which hide nothing else. Recovery is assured all the same: a warning.
fn foretold(looked: Result<Option<Forecast>>) -> Result<(Option<Forecast>, Option<Finding>)> {
    match looked {
        Ok(forecast) => Ok((forecast, None)),
        Err(e) if e.code() == Code::Config => {
            let value = format!("pitr expire deletes nothing: {e}");
            let found = Finding::new("cluster", "retention", Level::Warn, value);
            Ok((None, Some(found.with_next("pitr doctor"))))
        }
        Err(e) => Err(e),
    }
}

/// A repository in which the configuration accepts less than the promise.
fn weakly_created(configured: &config::Repository) -> Option<Finding> {
    configured.s3.unsafe_overwrite.then(|| {
        let name = &configured.name;
        let value = format!(
            "unsafe_overwrite = true: two writers at the same time can replace archived WAL in repository \"{name}\""
        );
        let next = format!("take unsafe_overwrite out of [repositories.{name}]");
        Finding::new("repository", "creating", Level::Warn, value).with_next(next)
    })
}

/// Problems, worst first.
fn judge(
    inventory: &Inventory,
    found: &Windows,
    gaps: &[Gap],
    cluster: &Cluster,
    max_backup_age: Option<Duration>,
    now: TimestampTz,
) -> Vec<Finding> {
    let mut problems = newest(inventory, found, cluster, max_backup_age, now);
    problems.extend(rest(inventory, found, gaps, &cluster.abandoned));
    problems.sort_by_key(|p| std::cmp::Reverse(p.level));
    problems
}

/// Judges the newest backup, and so recovery to the end.
fn newest(
    inventory: &Inventory,
    found: &Windows,
    cluster: &Cluster,
    max_backup_age: Option<Duration>,
    now: TimestampTz,
) -> Vec<Finding> {
    let critical = |message: String| {
        Finding::new("recovery", "newest backup", Level::Fail, message).with_next("pitr backup")
    };
    // A backup of a branch that is not the cluster assures nothing.
    let history = cluster.timeline().and_then(|t| inventory.history(t).ok());
    let leads = |b: &&Backup| {
        history.as_ref().is_none_or(|h| {
            let stray = (h.timeline(), b.id.to_string());
            lies_on(h, b) && !found.strays.contains(&stray)
        })
    };
    let newest = inventory
        .backups
        .iter()
        .filter(|b| b.damage.is_none())
        .filter(leads)
        .max_by_key(|b| {
            // WAL tells which is newer, whatever the clock said. While the timeline is undecided, it does not.
            let on_way = history.is_some().then_some((b.timeline, b.stop_lsn));
            (on_way, !backup_age::is_ahead(b.stop_time, now), b.stop_time)
        });
    let Some(newest) = newest else {
        if let Some(history) =
            history.filter(|_| inventory.backups.iter().any(|b| b.damage.is_none()))
        {
            return vec![critical(format!(
                "no backup leads to timeline {}, which is the cluster: it cannot be recovered; take one: pitr backup",
                history.timeline().decimal()
            ))];
        }
        let is_first = inventory.backups.is_empty() && inventory.unreadable.is_empty();
        let none = match is_first {
            true => NO_BACKUP,
            false => {
                "there is no undamaged backup: nothing can be recovered; take one: pitr backup"
            }
        };
        return vec![critical(none.to_owned())];
    };
    let mut problems = Vec::new();
    let id = newest.id.to_string();
    match found.windows.iter().rfind(|w| w.backups.contains(&id)) {
        None => problems.push(critical(format!(
            "recovery is not assured: the newest backup, {id}, cannot be used"
        ))),
        Some(w) if !w.to_end => problems.push(critical(format!(
            "recovery is not assured: behind the newest backup, {id}, WAL gets to {} only: {}",
            w.to_lsn,
            w.broken.as_deref().unwrap_or_default()
        ))),
        Some(_) => {}
    }
    let old = backup_age::trouble(newest.stop_time, max_backup_age, now);
    problems.extend(old.map(critical));
    problems
}

/// Finds everything else that is wrong: each a warning. WAL that is missing on a timeline that was given up is none.
fn rest(
    inventory: &Inventory,
    found: &Windows,
    gaps: &[Gap],
    abandoned: &BTreeSet<TimelineId>,
) -> Vec<Finding> {
    let mut problems = Vec::new();
    let mut say = |name: &str, message: String, next: &str| {
        problems.push(Finding::new("recovery", name, Level::Warn, message).with_next(next));
    };
    let (gaps_next, damage_next) = ("pitr wal gaps --heal", "pitr verify --heal");
    for (id, why) in &found.unusable {
        say(
            "unusable backup",
            format!("backup {id} cannot be used: {why}"),
            &format!("pitr verify --backup {id}"),
        );
    }
    let is_open =
        |w: &&Window| !w.to_end && !w.ends_alone(inventory) && !abandoned.contains(&w.timeline);
    for window in found.windows.iter().filter(is_open) {
        say(
            "window",
            format!(
                "on timeline {} recovery from {} gets to {} only: {}",
                window.timeline.decimal(),
                window.backups.last().map_or("", String::as_str),
                window.to_lsn,
                window.broken.as_deref().unwrap_or_default()
            ),
            match &window.end {
                StretchEnd::EndOfWal | StretchEnd::Missing { .. } => gaps_next,
                // No other copy leads farther.
                StretchEnd::Minimal { .. } | StretchEnd::Undecoded { .. } => "pitr backup",
                _ => damage_next,
            },
        );
    }
    for gap in gaps.iter().filter(|g| !abandoned.contains(&g.timeline)) {
        say(
            "gap",
            format!(
                "{} of timeline {} missing, {} to {}",
                human::count(gap.segments, "segment"),
                gap.timeline.decimal(),
                gap.from_lsn,
                gap.to_lsn
            ),
            gaps_next,
        );
    }
    for Unreadable { id, problem } in &inventory.unreadable {
        say(
            "unreadable backup",
            format!("backup {id} cannot be read: {problem}"),
            damage_next,
        );
    }
    for id in &inventory.lost {
        say(
            "lost backup",
            format!(
                "backup {id} was complete, and its root is lost: it cannot be restored; pitr verify says what helps"
            ),
            damage_next,
        );
    }
    for backup in inventory.backups.iter() {
        if let Some(damage) = &backup.damage {
            let (what, is, next) = match backup.is_partial {
                true => ("partial backup", "partial", "pitr backup"),
                false => ("damaged backup", "damaged", damage_next),
            };
            say(
                what,
                format!("backup {} is {is}: {damage}", backup.id),
                next,
            );
        }
    }
    for forged in &inventory.forged {
        say(
            "forged event",
            format!(
                "event \"{forged}\" is {}; it does not count: pitr verify",
                event::FORGED
            ),
            "pitr verify",
        );
    }
    for problem in &found.problems {
        say("timeline", problem.clone(), "pitr timeline list");
    }
    problems
}

/// The window of the cluster: that which ends last on the way to its timeline; any while it is undecided.
pub fn of_cluster<'a>(
    windows: &'a [Window],
    timeline: Option<TimelineId>,
    inventory: &Inventory,
) -> Option<&'a Window> {
    let history = timeline.and_then(|t| inventory.history(t).ok());
    let leads = |w: &&Window| history.as_ref().is_none_or(|h| h.contains(w.timeline));
    let windows = windows.iter().filter(leads);
    windows.max_by_key(|w| (w.timeline, w.to_lsn))
}
