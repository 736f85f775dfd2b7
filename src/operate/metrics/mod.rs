//! Metrics: what `pitr info` finds and what the commands of this host have counted, as series.
//!
//! A value that is not known has no series: 0 would say that something was looked at, and is well.

mod alerts;
mod audit;
mod checks;
mod compat;
mod counts;
pub mod exposition;
pub mod hosts;
mod progress;
mod repositories;
mod server;
mod stored;

use std::collections::BTreeMap;
use std::path::Path;

use super::backup_age;
use super::certificates;
use super::counters::{self, Counters, kind_name};
use super::finding::{Finding, Level};
use super::fingerprint;
use super::info::{self, Asks, ClusterInfo, Info};
use super::receiver::Receiver;
use super::room::{self, Room};
use super::runs::Runs;
use super::scopes::ScopeInfo;
use super::server_state::ServerState;
use super::session::Session;
use super::sets::watch::{self, Watched};
use super::tallies::Tallies;
use super::underway;
use super::written::Written;
use crate::config::{Compat, Settings};
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::window::Window;
use crate::release;
use crate::repo::root::BackupKind;
use crate::store;
use compat::Seen;
use exposition::{Exposition, Family, families};
use hosts::Barred;

families! {
    SIZE: Gauge "backup_size_bytes" "Stored size of the last committed backup.";
    TIMESTAMP: Gauge "backup_timestamp_seconds" "End of the last committed backup.";
    LAST_SUCCESS: Gauge "pitr_backup_last_success_timestamp_seconds" "End of the newest undamaged backup.";
    pub(super) BACKUPS: Gauge "pitr_backups" "Backups in the repository.";
    LAST_LSN: Gauge "pitr_archive_last_lsn" "End of the WAL that is safe, as a number of bytes.";
    LAG_BYTES: Gauge "pitr_archive_lag_bytes" "From the server's end of WAL to what is safe.";
    LAG_SECONDS: Gauge "pitr_archive_lag_seconds" "As pitr_rpo_seconds: for how long WAL has not been safe at most.";
    RPO: Gauge "pitr_rpo_seconds" "Age of the last commit that is safe where WAL is at risk, else 0.";
    RPO_BYTES: Gauge "pitr_rpo_bytes" "WAL that would be lost now.";
    RTO: Gauge "pitr_rto_estimate_seconds" "How long recovery probably takes.";
    WINDOW_START: Gauge "pitr_window_start_timestamp_seconds" "First moment that can be recovered.";
    WINDOW_END: Gauge "pitr_window_end_timestamp_seconds" "Last moment that can be recovered.";
    WINDOW: Gauge "pitr_window_seconds" "Length of the recovery window.";
    GAPS: Gauge "pitr_gaps" "Holes in the archived WAL.";
    GAP_BYTES: Gauge "pitr_gap_bytes" "WAL that is missing in them.";
    GAP_INSIDE: Gauge "pitr_gap_inside_window" "Holes behind the oldest backup.";
    MARK_SETTLED: Gauge "pitr_set_mark_settled_timestamp_seconds" "Time of the newest settled mark of a recovery set.";
    LOG_STORED: Gauge "pitr_redis_stored_timestamp_seconds" "When the newest stored bytes of the log of a Redis server had arrived.";
    LOG_GAP: Gauge "pitr_redis_log_gap" "1 where no backup leads to the end of the log of a Redis server, else 0.";
    PINS: Gauge "pitr_pins" "Backups that are pinned.";
    CONNECTED: Gauge "pitr_receiver_connected" "Whether the receiver streams.";
    STATUS: Gauge "pitr_status" "0 ok, 1 warning, 2 critical, 3 unknown: the worst finding of pitr info.";
    COLLECTED: Gauge "pitr_metrics_timestamp_seconds" "When these metrics were collected.";
    JOB_RUNNING: Gauge "pitr_job_running" "Whether a run of the job is under way.";
    JOB_RESULT: Gauge "pitr_job_last_result" "0 where the last run of the job went well, else 1.";
    JOB_SUCCESS: Gauge "pitr_job_last_success_timestamp_seconds" "End of the last run of the job that went well.";
    ERRORS: Gauge "pitr_metrics_errors" "Parts that could not be looked at.";
    BUILD: Gauge "pitr_build_info" "Version of the program.";
    REPO_FULL: Gauge "pitr_repo_full_in_seconds" "When the filesystem of a repository is full, as it filled in the last day or in 30 days.";
    CERTIFICATE: Gauge "pitr_cert_expiry_timestamp_seconds" "First end of validity in a file of certificates.";
    FINGERPRINT: Gauge "pitr_config_fingerprint_info" "Hash of what the hosts of a cluster are to agree about in their configurations.";
    RECEIVED: Gauge "pitr_receiver_received_lsn" "End of the WAL that arrived, as a number of bytes.";
    FLUSHED: Gauge "pitr_receiver_flushed_lsn" "End of the WAL in the journal.";
    UPLOADED: Gauge "pitr_receiver_uploaded_lsn" "End of the WAL in every required repository.";
    RECEIVER_LAG: Gauge "pitr_receiver_lag_bytes" "From the server's end of WAL to what every required repository has.";
    SYNC_STATE: Gauge "pitr_receiver_sync_state" "0 asynchronous, 1 potential, 2 quorum, 3 synchronous, as the server tells it.";
}

/// Positions of receivers.
const RECEIVER: [Family; 4] = [RECEIVED, FLUSHED, UPLOADED, RECEIVER_LAG];

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
    pub text: String,
    /// The findings of `pitr info`; none where it failed.
    pub info: Option<Info>,
    /// The error with which it failed. A host that has only tenants has neither.
    pub failed: Option<Error>,
    /// The error of the file of counters, without which nothing is counted.
    pub uncounted: Option<Error>,
    /// The room of each repository that tells it.
    pub rooms: Vec<Room>,
    /// Whether that was noted, for the next forecast.
    pub noted: Result<()>,
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
    progress::add_others(&mut all, &underway);
    if counters.is_none() && uncounted.is_none() {
        session.warn("attempts and failures of backups are not counted on this host: set state_dir in [agent]");
    }
    let none = Counters::default();
    let known = counters.as_ref().unwrap_or(&none);
    if let Some(place) = settings.state_dir(&session.environment) {
        of_jobs(&mut all, &settings, &place, now);
        alerts::add(&mut all, &settings, &place);
    }
    let pg_wal_free = hosts::add(&mut all, &settings);
    // Content beside clusters needs none.
    let (info, failed) = match settings.has_only_tenants() {
        true => (None, None),
        false => match info::look_with(session, Asks::Everything) {
            Ok(info) => (Some(info), None),
            Err(e) => (None, Some(e)),
        },
    };
    hosts::waiting(&mut all, &settings, info.as_ref(), now);
    if let Some(counters) = &counters {
        let scopes = info.as_ref().map_or(&[][..], |info| &info.scopes);
        counts::add(&mut all, &settings, (counters, &underway, scopes));
    }
    let errors = info.as_ref().map_or(0, |info| info.failures.errors.len());
    let errors = errors + usize::from(failed.is_some()) + usize::from(uncounted.is_some());
    all.add(&ERRORS, &[], counted(errors));
    let tallies = tallied((session, &settings), info.as_ref(), &pg_wal_free, known);
    if let Some(tallies) = &tallies {
        hosts::foretell(&mut all, &pg_wal_free, tallies, now);
    }
    if let Some(info) = &info {
        for one in &info.clusters {
            of_cluster(&mut all, (one, now), known);
        }
        for server in info.servers() {
            server::add(&mut all, server, tallies.as_ref());
        }
        for (name, _) in info.silent() {
            server::silent(&mut all, name);
        }
        for one in &info.clusters {
            stored::add(&mut all, (one, now), (known, tallies.as_ref()));
        }
        for one in &info.written {
            of_written(&mut all, one);
        }
        of_scopes(&mut all, (&info.scopes, now), &settings);
    }
    of_unknown(&mut all, &settings, info.as_ref());
    let sets = of_sets(&mut all, session, &settings);
    let walg = names.contains(&Compat::WalG);
    let with = (&settings, known, walg);
    let stores = repositories::add(&mut all, session, with, info.as_ref());
    let (rooms, noted) = of_rooms(&mut all, (session, &settings), &stores.rooms);
    audit::add(&mut all, known);
    of_configuration(&mut all, &settings);
    let seen = Seen {
        settings: &settings,
        counters: counters.as_ref(),
        underway: &underway,
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
        noted,
        clocks: stores.clocks,
        away: stores.away,
        pg_wal_free,
        barred: hosts::barred(&settings),
        sets,
        tallies,
    })
}

/// The room of repositories, and when none is left: by the notes of this host, where any are kept.
fn of_rooms(
    all: &mut Exposition,
    (session, settings): (&Session, &Settings),
    measured: &[(String, store::Room)],
) -> (Vec<Room>, Result<()>) {
    let place = settings.state_dir(&session.environment);
    let (rooms, noted) = room::look(session, measured, place.as_deref());
    for room in &rooms {
        let labels = [("repo", room.repository.as_str())];
        all.add_known(&REPO_FULL, &labels, room.full_in_s.map(number));
    }
    (rooms, noted)
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
    let locked: Vec<_> = counters.locked(settings).collect();
    let servers = || info.into_iter().flat_map(Info::servers);
    counters::tallied((session, settings), |tallies| {
        for (cluster, server) in servers() {
            if let Some(process) = server.archiver.as_ref().and_then(|a| a.process.as_ref()) {
                tallies.see_archiver(cluster, process, now);
            }
            tallies.silent.remove(cluster);
            tallies.see_lag(cluster, server.is_lagging(), now);
        }
        for (cluster, _) in info.into_iter().flat_map(Info::silent) {
            tallies.see_silence(cluster, now);
        }
        for (cluster, receiver) in info.into_iter().flat_map(Info::receivers) {
            let server = servers().find(|(of, _)| *of == cluster);
            if let Some(sync) = server.and_then(|(_, server)| server.sync(receiver.slot())) {
                tallies.see_synchronous(cluster, sync.delays());
            }
        }
        for one in info.into_iter().flat_map(|info| &info.clusters) {
            if let Some(names) = one.remains.as_ref().and_then(|r| r.refused.as_deref()) {
                tallies.see_refused((&one.name, &one.repository_name), names, now);
            }
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
        let labels = [("cluster", cluster.name.as_str()), ("fingerprint", &hash)];
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

fn of_cluster(all: &mut Exposition, (one, now): (&ClusterInfo, TimestampTz), counters: &Counters) {
    let cluster = [("cluster", one.name.as_str())];
    let labels = [cluster[0], ("repo", one.repository_name.as_str())];
    of_backups(all, (one, now), &labels);
    let gaps = one.gaps.iter();
    let missing = gaps.map(|g| g.to_lsn.0.saturating_sub(g.from_lsn.0)).sum();
    all.add(&GAPS, &labels, counted(one.gaps.len()));
    all.add(&GAP_BYTES, &labels, number(missing));
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
    of_receiver(all, (one.receiver.as_ref(), one.server.as_ref()), &cluster);
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
        let kind = ("type", kind_name(kind));
        let repo = ("repo", one.repository_name.as_str());
        let ended = seconds(backup.time);
        let required = [cluster[0], kind, ("component", "postgres"), repo];
        all.add(&TIMESTAMP, &required, ended);
        all.add(&LAST_SUCCESS, &[cluster[0], kind, repo], ended);
    }
    of_receiver(all, (one.receiver.as_ref(), one.server.as_ref()), &cluster);
    of_status(all, &CHECKS_WRITTEN, &one.problems, &cluster);
}

fn of_receiver(
    all: &mut Exposition,
    (receiver, server): (Option<&Receiver>, Option<&ServerState>),
    cluster: &[(&'static str, &str); 1],
) {
    let Some(receiver) = receiver else { return };
    let labels = [cluster[0], ("slot", receiver.slot())];
    all.add(&CONNECTED, &labels, flag(receiver.is_connected()));
    for (name, value) in receiver.positions() {
        if let Some(family) = RECEIVER.iter().find(|(known, _, _)| *known == name) {
            all.add_known(family, &labels, value.map(number));
        }
    }
    let sync = server.and_then(|server| server.sync(receiver.slot()));
    all.add_known(&SYNC_STATE, &labels, sync.map(|sync| f64::from(sync as u8)));
}

fn of_backups(
    all: &mut Exposition,
    (one, now): (&ClusterInfo, TimestampTz),
    labels: &[(&'static str, &str); 2],
) {
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
        let Some(newest) = ours.max_by_key(|b| backup_age::order(b.stop_time, now)) else {
            continue;
        };
        let required = [cluster, ("type", name), ("component", "postgres"), repo];
        all.add(&SIZE, &required, number(newest.stored_bytes));
        all.add(&TIMESTAMP, &required, seconds(newest.stop_time));
        let newest = backup_age::newest(good.map(|b| b.stop_time), now);
        let with = [cluster, ("type", name), repo];
        all.add_known(&LAST_SUCCESS, &with, newest.map(seconds));
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
        let labels = [cluster[0], ("check", check)];
        all.add(&STATUS, &labels, f64::from(level as u8));
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

fn of_scopes(
    all: &mut Exposition,
    (scopes, now): (&[ScopeInfo], TimestampTz),
    settings: &Settings,
) {
    for one in scopes {
        // The name in the repository is aux, the kind and the name.
        let mut parts = one.scope.splitn(3, '/').skip(1);
        let (Some(kind), Some(name)) = (parts.next(), parts.next()) else {
            continue;
        };
        let component = counts::component(settings, kind, name);
        if let Some(log) = &one.log {
            let labels = [("cluster", name), ("repo", one.repository.as_str())];
            all.add_known(&LOG_STORED, &labels, log.stored_time.map(seconds));
            all.add(&LOG_GAP, &labels, f64::from(u8::from(log.has_gap())));
        }
        for is_incremental in [false, true] {
            let ours = one.backups.iter();
            let ours = ours.filter(|b| b.id.is_incremental() == is_incremental);
            let Some(newest) = ours.max_by_key(|b| backup_age::order(b.stop_time, now)) else {
                continue;
            };
            let labels = [
                ("cluster", name),
                ("type", if is_incremental { "incr" } else { "full" }),
                ("component", component),
                ("repo", one.repository.as_str()),
            ];
            all.add(&SIZE, &labels, number(newest.stored_bytes));
            all.add(&TIMESTAMP, &labels, seconds(newest.stop_time));
        }
    }
}
