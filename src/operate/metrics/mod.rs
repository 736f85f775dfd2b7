//! Metrics: what `pitr info` finds and what the commands of this host have counted, as series.
//!
//! A value that is not known has no series: 0 would say that something was looked at, and is well.

mod alerts;
mod audit;
mod checks;
mod compat;
pub mod exposition;
pub mod hosts;
mod repositories;
mod server;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::certificates;
use super::counters::{self, BOUNDS, Counters, Counts, Label, REASONS, kind_name};
use super::finding::{Finding, Level};
use super::fingerprint;
use super::info::{self, Asks, ClusterInfo, Info};
use super::receiver::Receiver;
use super::runs::Runs;
use super::scopes::ScopeInfo;
use super::session::Session;
use super::sets::watch::{self, Watched};
use super::tallies::Tallies;
use super::underway::{self, Underway};
use super::written::Written;
use crate::config::{Compat, Settings, Source};
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::window::Window;
use crate::release;
use crate::repo::root::BackupKind;
use crate::store::Room;
use compat::Seen;
use exposition::{Exposition, Labels, Type};
use hosts::Barred;
use repositories::Stores;

/// Name, type and help of a family.
pub(super) type Family = (&'static str, Type, &'static str);

const SUCCESS: Family = (
    "backup_success_total",
    Type::Counter,
    "Backups that were committed, by this host.",
);
const ATTEMPTS: Family = (
    "backup_attempts_total",
    Type::Counter,
    "Backups that were begun by this host, and have ended.",
);
const FAILURES: Family = (
    "backup_failures_total",
    Type::Counter,
    "Backups of this host that ended without commit.",
);
const FAILURE: Family = (
    "backup_failure_total",
    Type::Counter,
    "As backup_failures_total, without cluster, repository and reason.",
);
const DURATION: Family = (
    "backup_duration_seconds",
    Type::Gauge,
    "Run time of the last backup of this host.",
);
const DURATIONS: Family = (
    "backup_duration_seconds_hist",
    Type::Histogram,
    "Run times of backups of this host.",
);
const SIZE: Family = (
    "backup_size_bytes",
    Type::Gauge,
    "Stored size of the last committed backup.",
);
const TIMESTAMP: Family = (
    "backup_timestamp_seconds",
    Type::Gauge,
    "End of the last committed backup.",
);
const PROGRESS: Family = (
    "pitr_backup_progress_ratio",
    Type::Gauge,
    "Share of the present phase of a running backup, where its size is known.",
);
const RESTORES: Family = (
    "pitr_restore_running",
    Type::Gauge,
    "Restores, drills and clones that this host makes now.",
);
const RESTORE_PROGRESS: Family = (
    "pitr_restore_progress_ratio",
    Type::Gauge,
    "Share of the present phase of the running restore that is least far, where its size is known.",
);
const RUNNING: Family = (
    "pitr_backup_running",
    Type::Gauge,
    "Backups that this host takes now.",
);
const LAST_SUCCESS: Family = (
    "pitr_backup_last_success_timestamp_seconds",
    Type::Gauge,
    "End of the newest undamaged backup.",
);
pub(super) const BACKUPS: Family = ("pitr_backups", Type::Gauge, "Backups in the repository.");
const LAST_LSN: Family = (
    "pitr_archive_last_lsn",
    Type::Gauge,
    "End of the WAL that is safe, as a number of bytes.",
);
const LAG_BYTES: Family = (
    "pitr_archive_lag_bytes",
    Type::Gauge,
    "From the server's end of WAL to what is safe.",
);
const LAG_SECONDS: Family = (
    "pitr_archive_lag_seconds",
    Type::Gauge,
    "As pitr_rpo_seconds: for how long WAL has not been safe at most.",
);
const RPO: Family = (
    "pitr_rpo_seconds",
    Type::Gauge,
    "Age of the last commit that is safe where WAL is at risk, else 0.",
);
const RPO_BYTES: Family = ("pitr_rpo_bytes", Type::Gauge, "WAL that would be lost now.");
const RTO: Family = (
    "pitr_rto_estimate_seconds",
    Type::Gauge,
    "How long recovery probably takes.",
);
const WINDOW_START: Family = (
    "pitr_window_start_timestamp_seconds",
    Type::Gauge,
    "First moment that can be recovered.",
);
const WINDOW_END: Family = (
    "pitr_window_end_timestamp_seconds",
    Type::Gauge,
    "Last moment that can be recovered.",
);
const WINDOW: Family = (
    "pitr_window_seconds",
    Type::Gauge,
    "Length of the recovery window.",
);
const GAPS: Family = ("pitr_gaps", Type::Gauge, "Holes in the archived WAL.");
const GAP_BYTES: Family = (
    "pitr_gap_bytes",
    Type::Gauge,
    "WAL that is missing in them.",
);
const GAP_INSIDE: Family = (
    "pitr_gap_inside_window",
    Type::Gauge,
    "Holes behind the oldest backup.",
);
const MARK_SETTLED: Family = (
    "pitr_set_mark_settled_timestamp_seconds",
    Type::Gauge,
    "Time of the newest settled mark of a recovery set.",
);
const LOG_STORED: Family = (
    "pitr_redis_stored_timestamp_seconds",
    Type::Gauge,
    "When the newest stored bytes of the log of a Redis server had arrived.",
);
const LOG_GAP: Family = (
    "pitr_redis_log_gap",
    Type::Gauge,
    "1 where no backup leads to the end of the log of a Redis server, else 0.",
);
const PINS: Family = ("pitr_pins", Type::Gauge, "Backups that are pinned.");
const CONNECTED: Family = (
    "pitr_receiver_connected",
    Type::Gauge,
    "Whether the receiver streams.",
);
const STATUS: Family = (
    "pitr_status",
    Type::Gauge,
    "0 ok, 1 warning, 2 critical, 3 unknown: the worst finding of pitr info.",
);
const COLLECTED: Family = (
    "pitr_metrics_timestamp_seconds",
    Type::Gauge,
    "When these metrics were collected.",
);
const JOB_RUNNING: Family = (
    "pitr_job_running",
    Type::Gauge,
    "Whether a run of the job is under way.",
);
const JOB_RESULT: Family = (
    "pitr_job_last_result",
    Type::Gauge,
    "0 where the last run of the job went well, else 1.",
);
const JOB_SUCCESS: Family = (
    "pitr_job_last_success_timestamp_seconds",
    Type::Gauge,
    "End of the last run of the job that went well.",
);
const ERRORS: Family = (
    "pitr_metrics_errors",
    Type::Gauge,
    "Parts that could not be looked at.",
);
const BUILD: Family = ("pitr_build_info", Type::Gauge, "Version of the program.");
const CERTIFICATE: Family = (
    "pitr_cert_expiry_timestamp_seconds",
    Type::Gauge,
    "First end of validity in a file of certificates.",
);
const FINGERPRINT: Family = (
    "pitr_config_fingerprint_info",
    Type::Gauge,
    "Hash of what the hosts of a cluster are to agree about in their configurations.",
);

/// Positions of receivers.
const RECEIVER: [Family; 4] = [
    (
        "pitr_receiver_received_lsn",
        Type::Gauge,
        "End of the WAL that arrived, as a number of bytes.",
    ),
    (
        "pitr_receiver_flushed_lsn",
        Type::Gauge,
        "End of the WAL in the journal.",
    ),
    (
        "pitr_receiver_uploaded_lsn",
        Type::Gauge,
        "End of the WAL in every required repository.",
    ),
    (
        "pitr_receiver_lag_bytes",
        Type::Gauge,
        "From the server's end of WAL to what every required repository has.",
    ),
];

/// Groups of findings that `pitr_status` has always.
const CHECKS: [&str; 6] = [
    "archiving",
    "cluster",
    "objectives",
    "receiver",
    "recovery",
    "repository",
];

/// Those of a host that only writes: it judges no promise.
const CHECKS_WRITTEN: [&str; 4] = ["archiving", "receiver", "recovery", "repository"];

/// The value of `pitr_status` for a cluster that could not be looked at.
const UNKNOWN: f64 = 3.0;

/// Everything that was collected.
pub struct Metrics {
    /// The text.
    pub text: String,
    /// The findings of `pitr info`; none where it failed.
    pub info: Option<Info>,
    /// The error with which it failed. A host that has only tenants has neither.
    pub failed: Option<Error>,
    /// The error of the file of counters, without which nothing is counted.
    pub uncounted: Option<Error>,
    /// The room of each repository that tells it, by its name.
    pub rooms: Vec<(String, Room)>,
    /// How many seconds the clock of each repository that tells it is ahead of this host's, by its name.
    pub clocks: Vec<(String, f64)>,
    /// Repositories that do not answer.
    pub away: Vec<String>,
    /// Free bytes on the filesystem of `pg_wal` of each cluster that has its data directory here.
    pub pg_wal_free: Vec<(String, u64)>,
    /// Places of this host that this user may not read, so that nothing about them is judged.
    pub barred: Vec<Barred>,
    /// The marks of each recovery set that could be looked at.
    pub sets: Vec<Watched>,
    /// The counts of all looks of this host; none where nothing can be kept.
    pub tallies: Option<Tallies>,
}

/// Collects the metrics. A repository that is away leaves out what only it can tell. `asked` are other exporters whose names stand there, too; none: those
/// of the configuration.
///
/// # Errors
/// `Config`.
pub fn collect(session: &Session, asked: &[Compat]) -> Result<Metrics> {
    let settings = session.settings()?;
    let names = match asked {
        [] => settings.agent.metrics_compat.as_slice(),
        asked => asked,
    };
    let now = session.host.now();
    let mut all = Exposition::default();
    all.add(&BUILD, &[("version", release::NUMBER)], 1.0);
    all.add(&COLLECTED, &[], seconds(now));
    let (counters, uncounted) = match counters::read(session, &settings) {
        Ok(counters) => (counters, None),
        Err(e) => (None, Some(e)),
    };
    let underway = underway::look(session, &settings);
    of_restores(&mut all, &underway);
    match &counters {
        Some(counters) => of_counters(&mut all, &settings, (counters, &underway)),
        None if uncounted.is_some() => {}
        None => session.warn("attempts and failures of backups are not counted on this host: set state_dir in [agent]"),
    }
    let none = Counters::default();
    let known = counters.as_ref().unwrap_or(&none);
    if let Some(place) = settings.state_dir(&session.environment) {
        of_jobs(&mut all, &settings, &place, now);
        alerts::add(&mut all, &settings, &place);
    }
    let pg_wal_free = hosts::add(&mut all, &settings, now);
    // Content beside clusters needs none.
    let (info, failed) = match settings.has_only_tenants() {
        true => (None, None),
        false => match info::look_with(session, Asks::Everything) {
            Ok(info) => (Some(info), None),
            Err(e) => (None, Some(e)),
        },
    };
    let errors = info.as_ref().map_or(0, |info| info.failures.errors.len());
    let errors = errors + usize::from(failed.is_some()) + usize::from(uncounted.is_some());
    all.add(&ERRORS, &[], counted(errors));
    let tallies = tallied((session, &settings), info.as_ref(), &pg_wal_free, known);
    if let Some(tallies) = &tallies {
        hosts::foretell(&mut all, &pg_wal_free, tallies, now);
    }
    if let Some(info) = &info {
        info.clusters
            .iter()
            .for_each(|one| of_cluster(&mut all, one, known));
        for server in info.servers() {
            server::add(&mut all, server, tallies.as_ref());
        }
        for (name, _) in info.silent() {
            server::silent(&mut all, name);
        }
        for one in &info.clusters {
            stored::add(&mut all, one, (known, tallies.as_ref()));
        }
        info.written
            .iter()
            .for_each(|one| of_written(&mut all, one));
        of_scopes(&mut all, &info.scopes, &settings);
    }
    of_unknown(&mut all, &settings, info.as_ref());
    let sets = of_sets(&mut all, session, &settings);
    let walg = names.contains(&Compat::WalG);
    let with = (&settings, known, walg);
    let Stores {
        rooms,
        clocks,
        away,
    } = repositories::add(&mut all, session, with, info.as_ref());
    audit::add(&mut all, known);
    of_configuration(&mut all, &settings);
    let seen = Seen {
        settings: &settings,
        counters: counters.as_ref(),
        info: info.as_ref(),
        now,
    };
    compat::add(&mut all, names, &seen);
    Ok(Metrics {
        text: all.text(),
        info,
        failed,
        uncounted,
        rooms,
        clocks,
        away,
        pg_wal_free,
        barred: hosts::barred(&settings),
        sets,
        tallies,
    })
}

/// The marks of recovery sets. A set that cannot be looked at is a finding of `pitr doctor`; a host that only writes proves none settled.
fn of_sets(all: &mut Exposition, session: &Session, settings: &Settings) -> Vec<Watched> {
    let looked = watch::all(session, settings).into_iter();
    let sets: Vec<Watched> = looked.filter_map(|(_, watched)| watched.ok()).collect();
    for one in &sets {
        let labels = [("set", one.set.as_str())];
        all.add_known(&MARK_SETTLED, &labels, one.settled.map(seconds));
    }
    sets
}

/// Has this look counted beside those before it.
fn tallied(
    (session, settings): (&Session, &Settings),
    info: Option<&Info>,
    pg_wal_free: &[(String, u64)],
    counters: &Counters,
) -> Option<Tallies> {
    let now = session.host.now();
    let servers = info.into_iter().flat_map(Info::servers);
    let archivers = servers.filter_map(|(name, server)| {
        let archiver = server.archiver.as_ref()?;
        Some((name, archiver.process.as_ref()?))
    });
    let archivers: Vec<_> = archivers.collect();
    let servers = info.into_iter().flat_map(Info::servers);
    let answering: Vec<&str> = servers.map(|(name, _)| name).collect();
    let silent = info.into_iter().flat_map(Info::silent);
    let silent: Vec<&str> = silent.map(|(name, _)| name).collect();
    let clusters = info.into_iter().flat_map(|info| &info.clusters);
    let refused = clusters.filter_map(|one| {
        let names = one.remains.as_ref()?.refused.as_deref()?;
        Some((one.name.as_str(), one.repository_name.as_str(), names))
    });
    let refused: Vec<_> = refused.collect();
    let locked: Vec<_> = counters.locked(settings).collect();
    counters::tallied((session, settings), |tallies| {
        for (cluster, process) in archivers {
            tallies.see_archiver(cluster, process, now);
        }
        for cluster in answering {
            tallies.silent.remove(cluster);
        }
        for cluster in silent {
            tallies.see_silence(cluster, now);
        }
        for (cluster, repository, names) in refused {
            tallies.see_refused((cluster, repository), names, now);
        }
        for (cluster, free) in pg_wal_free {
            tallies.see_pg_wal(cluster, *free, now);
        }
        for (cluster, repository, bytes) in locked {
            tallies.see_locked(cluster, repository, bytes, now);
        }
    })
}

/// One hash a cluster, by which two hosts are seen to be configured differently; and the certificates that connections need.
fn of_configuration(all: &mut Exposition, settings: &Settings) {
    for (path, end) in certificates::expiries(settings) {
        let path = path.display().to_string();
        all.add(&CERTIFICATE, &[("file", &path)], seconds(end));
    }
    for cluster in &settings.clusters {
        let hash = fingerprint::of(settings, cluster);
        let labels = [
            ("cluster", cluster.name.as_str()),
            ("fingerprint", hash.as_str()),
        ];
        all.add(&FINGERPRINT, &labels, 1.0);
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "samples are floating-point numbers; nothing counts so far that it matters"
)]
pub(super) fn number(value: u64) -> f64 {
    value as f64
}

pub(super) fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

pub(super) fn counted(value: usize) -> f64 {
    number(value as u64)
}

pub(super) fn seconds(time: TimestampTz) -> f64 {
    let micros = time.unix_micros().unwrap_or_default();
    number(u64::try_from(micros).unwrap_or_default()) / 1e6
}

/// The series that the configuration leads to, so that each stands at 0 before something happens, and those that are counted.
fn of_counters(
    all: &mut Exposition,
    settings: &Settings,
    (counters, underway): (&Counters, &[Underway]),
) {
    let mut series: BTreeMap<Label, Counts> = expected(settings)
        .into_iter()
        .map(|label| (label, Counts::default()))
        .collect();
    series.extend(counters.series.iter().map(|(l, c)| (l.clone(), c.clone())));
    let mut alias: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (label, counts) in &series {
        let labels = of_label(label);
        all.add(&ATTEMPTS, &labels, number(counts.attempts));
        all.add(&SUCCESS, &labels, number(counts.successes));
        for reason in REASONS {
            let count = counts.failures.get(reason).copied().unwrap_or(0);
            let with = [labels.as_slice(), &[("reason", reason)]].concat();
            all.add(&FAILURES, &with, number(count));
            *alias.entry((&label.kind, &label.component)).or_default() += count;
        }
        let running = counters.running.iter().filter(|one| one.label == *label);
        all.add(&RUNNING, &labels, counted(running.clone().count()));
        let percents = running.filter_map(|one| {
            let underway = underway.iter().find(|shown| shown.is(&one.process))?;
            underway.percent()
        });
        let ratio = percents.min().map(|percent| number(percent) / 100.0);
        all.add_known(&PROGRESS, &labels, ratio);
        all.add_known(
            &DURATION,
            &labels,
            counts.last_ms.map(|ms| number(ms) / 1000.0),
        );
        histogram(all, &labels, counts);
    }
    for ((kind, component), count) in alias {
        all.add(
            &FAILURE,
            &[("type", kind), ("component", component)],
            number(count),
        );
    }
}

fn of_restores(all: &mut Exposition, underway: &[Underway]) {
    let restores = underway.iter().filter(|one| one.restores());
    all.add(&RESTORES, &[], counted(restores.clone().count()));
    let least = restores.filter_map(Underway::percent).min();
    let ratio = least.map(|percent| number(percent) / 100.0);
    all.add_known(&RESTORE_PROGRESS, &[], ratio);
}

/// How the jobs of the agent went. One that never ran has no result.
fn of_jobs(all: &mut Exposition, settings: &Settings, state_dir: &Path, now: TimestampTz) {
    for job in &settings.jobs {
        let Ok(state) = Runs::of(state_dir, &job.name).state(now) else {
            continue;
        };
        let labels = [("job_name", job.name.as_str())];
        all.add(&JOB_RUNNING, &labels, flag(state.is_running));
        let over = state.newest_over();
        let result = over.map(|run| flag(!run.is_success()));
        all.add_known(&JOB_RESULT, &labels, result);
        let success = state.runs.iter().rfind(|run| run.is_success());
        let success = success.and_then(|run| run.ended.as_ref());
        all.add_known(&JOB_SUCCESS, &labels, success.map(|e| seconds(e.ended)));
    }
}

fn histogram(all: &mut Exposition, labels: Labels<'_>, counts: &Counts) {
    let bounds = BOUNDS.iter().map(u32::to_string).chain(["+Inf".to_owned()]);
    for (index, bound) in bounds.enumerate() {
        let count = counts.within.get(index).copied().unwrap_or(0);
        let with = [labels, &[("le", bound.as_str())]].concat();
        all.sample(&DURATIONS, "_bucket", &with, number(count));
    }
    let count = counts.within.last().copied().unwrap_or(0);
    all.sample(&DURATIONS, "_sum", labels, number(counts.total_ms) / 1000.0);
    all.sample(&DURATIONS, "_count", labels, number(count));
}

fn of_label(label: &Label) -> [(&'static str, &str); 4] {
    [
        ("cluster", &label.cluster),
        ("type", &label.kind),
        ("component", &label.component),
        ("repo", &label.repo),
    ]
}

fn expected(settings: &Settings) -> BTreeSet<Label> {
    // Backups go into the first one.
    let Ok(first) = settings.first_repository() else {
        return BTreeSet::new();
    };
    let both = |cluster: &str, component: &str| {
        ["full", "incr"].map(|kind| Label {
            kind: kind.to_owned(),
            ..counters::of_content(component, cluster, first)
        })
    };
    let clusters = settings.clusters.iter();
    let clusters = clusters.flat_map(|c| both(c.name.as_str(), "postgres"));
    let contents = settings.contents().flat_map(|one| {
        let kinds = both(one.name, component(settings, one.kind, one.name));
        let has_incrementals = one.kind == "files";
        kinds
            .into_iter()
            .filter(move |l| has_incrementals || l.kind == "full")
    });
    clusters.chain(contents).collect()
}

/// The component of other content.
fn component<'a>(settings: &Settings, kind: &'a str, name: &str) -> &'a str {
    let files = settings
        .files
        .iter()
        .find(|f| kind == "files" && f.name == name);
    match files.map(|f| &f.source) {
        Some(Source::Git(_)) => "git",
        _ => kind,
    }
}

fn of_cluster(all: &mut Exposition, one: &ClusterInfo, counters: &Counters) {
    let cluster = [("cluster", one.name.as_str())];
    let labels = [cluster[0], ("repo", one.repository_name.as_str())];
    of_backups(all, one, &labels);
    let gaps = one.gaps.iter();
    all.add(&GAPS, &labels, counted(one.gaps.len()));
    all.add(
        &GAP_BYTES,
        &labels,
        number(gaps.map(|g| g.to_lsn.0.saturating_sub(g.from_lsn.0)).sum()),
    );
    // Only gaps behind the oldest backup are listed.
    all.add(&GAP_INSIDE, &labels, counted(one.gaps.len()));
    of_windows(all, one, &labels);
    if let Some(exposure) = &one.exposure {
        all.add(&RPO, &cluster, exposure.age.as_secs_f64());
        all.add(&RPO_BYTES, &cluster, number(exposure.bytes));
        all.add(&LAG_BYTES, &cluster, number(exposure.bytes));
        all.add(&LAG_SECONDS, &cluster, exposure.age.as_secs_f64());
        all.add(&LAST_LSN, &cluster, number(exposure.safe_lsn.0));
    }
    let rto = one.estimate.as_ref().map(|e| number(e.ms) / 1000.0);
    all.add_known(&RTO, &[labels[0], labels[1], ("target", "latest")], rto);
    checks::add(all, one, counters, &labels);
    of_receiver(all, one.receiver.as_ref(), &cluster);
    of_status(all, &CHECKS, &one.problems, &cluster);
}

/// A cluster on a host that only writes: series that take a key are left out.
fn of_written(all: &mut Exposition, one: &Written) {
    let cluster = [("cluster", one.name.as_str())];
    for backup in &one.backups {
        let kind = match backup.id.is_incremental() {
            true => BackupKind::Incremental,
            false => BackupKind::Full,
        };
        let labels = [
            cluster[0],
            ("type", kind_name(kind)),
            ("repo", one.repository_name.as_str()),
        ];
        all.add(&LAST_SUCCESS, &labels, seconds(backup.time));
    }
    of_receiver(all, one.receiver.as_ref(), &cluster);
    of_status(all, &CHECKS_WRITTEN, &one.problems, &cluster);
}

fn of_receiver(
    all: &mut Exposition,
    receiver: Option<&Receiver>,
    cluster: &[(&'static str, &str); 1],
) {
    let Some(receiver) = receiver else { return };
    let labels = [cluster[0], ("slot", receiver.slot())];
    all.add(&CONNECTED, &labels, flag(receiver.is_connected()));
    for (name, value) in receiver.positions() {
        let family = RECEIVER.iter().find(|(known, _, _)| *known == name);
        family
            .into_iter()
            .for_each(|f| all.add_known(f, &labels, value.map(number)));
    }
}

fn of_backups(all: &mut Exposition, one: &ClusterInfo, labels: &[(&'static str, &str); 2]) {
    let [cluster, repo] = *labels;
    for kind in [BackupKind::Full, BackupKind::Incremental] {
        let name = kind_name(kind);
        let ours = one.backups.iter().filter(|b| b.kind == kind);
        let damaged = ours.clone().filter(|b| b.damaged).count();
        let good = ours.clone().filter(|b| !b.damaged);
        for (state, count) in [("ok", good.clone().count()), ("damaged", damaged)] {
            let with = [cluster, ("type", name), repo, ("state", state)];
            all.add(&BACKUPS, &with, counted(count));
        }
        let Some(newest) = ours.max_by_key(|b| b.stop_time) else {
            continue;
        };
        let required = [cluster, ("type", name), ("component", "postgres"), repo];
        all.add(&SIZE, &required, number(newest.stored_bytes));
        all.add(&TIMESTAMP, &required, seconds(newest.stop_time));
        let newest = good.map(|b| b.stop_time).max();
        all.add_known(
            &LAST_SUCCESS,
            &[cluster, ("type", name), repo],
            newest.map(seconds),
        );
    }
    let pinned = one.backups.iter().filter(|b| b.pinned).count();
    all.add(&PINS, labels, counted(pinned));
}

fn of_windows(all: &mut Exposition, one: &ClusterInfo, labels: &[(&'static str, &str); 2]) {
    let timeline = one.timeline.and_then(TimelineId::new);
    let Some(window): Option<&Window> =
        info::of_cluster(&one.recovery_windows, timeline, &one.inventory)
    else {
        return;
    };
    let timeline = window.timeline.decimal().to_string();
    let labels = [labels[0], labels[1], ("timeline", timeline.as_str())];
    all.add(&WINDOW_START, &labels, seconds(window.from));
    all.add(&WINDOW_END, &labels, seconds(window.to));
    let length = window.to.duration_since(window.from);
    all.add_known(&WINDOW, &labels, length.map(|l| l.as_secs_f64()));
}

fn of_status(
    all: &mut Exposition,
    checks: &[&'static str],
    problems: &[Finding],
    cluster: &[(&'static str, &str); 1],
) {
    let judged = checks.iter().map(|check| (*check, Level::Ok));
    let mut worst: BTreeMap<&str, Level> = judged.collect();
    for problem in problems {
        let level = worst.entry(problem.group).or_insert(Level::Ok);
        *level = (*level).max(problem.level);
    }
    for (check, level) in worst {
        all.add(
            &STATUS,
            &[cluster[0], ("check", check)],
            f64::from(level as u8),
        );
    }
}

/// The clusters of the configuration that could not be looked at: no value would keep each rule quiet.
fn of_unknown(all: &mut Exposition, settings: &Settings, info: Option<&Info>) {
    let clusters = info.iter().flat_map(|info| &info.clusters);
    let written = info.iter().flat_map(|info| &info.written);
    let looked_at = clusters.map(|one| one.name.as_str());
    let looked_at: Vec<&str> = looked_at
        .chain(written.map(|one| one.name.as_str()))
        .collect();
    for cluster in &settings.clusters {
        if looked_at.contains(&cluster.name.as_str()) {
            continue;
        }
        for check in CHECKS {
            let labels = [("cluster", cluster.name.as_str()), ("check", check)];
            all.add(&STATUS, &labels, UNKNOWN);
        }
    }
}

fn of_scopes(all: &mut Exposition, scopes: &[ScopeInfo], settings: &Settings) {
    for one in scopes {
        // The name in the repository is aux, the kind and the name.
        let mut parts = one.scope.splitn(3, '/').skip(1);
        let (Some(kind), Some(name)) = (parts.next(), parts.next()) else {
            continue;
        };
        let component = component(settings, kind, name);
        if let Some(log) = &one.log {
            let labels = [("cluster", name), ("repo", one.repository.as_str())];
            all.add_known(&LOG_STORED, &labels, log.stored_time.map(seconds));
            all.add(&LOG_GAP, &labels, f64::from(u8::from(log.has_gap())));
        }
        let Some(newest) = one.backups.iter().max_by_key(|b| b.stop_time) else {
            continue;
        };
        let kind = match newest.id.to_string().contains("-incr") {
            true => "incr",
            false => "full",
        };
        let labels = [
            ("cluster", name),
            ("type", kind),
            ("component", component),
            ("repo", one.repository.as_str()),
        ];
        all.add(&SIZE, &labels, number(newest.stored_bytes));
        all.add(&TIMESTAMP, &labels, seconds(newest.stop_time));
    }
}
