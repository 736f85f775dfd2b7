//! Names of other exporters, so that dashboards and rules that were made for them go on working.
//!
//! Names, labels and units are those of woblerr/pgbackrest_exporter (March 2026), marcinhlybin/prometheus-barman-exporter 1.0.10, CloudNativePG's
//! instance manager and Barman Cloud plugin, and WAL-G's own exporter. Only what is known here has a series: what pitr has no counterpart of is listed
//! in docs/metrics.md. Series of single backups stand here alone: our own names have none.

use std::path::Path;

use super::exposition::{Exposition, Type};
use super::{counted, flag, number, seconds};
use crate::config::{Compat, Settings};
use crate::operate::counters::{Counters, kind_name};
use crate::operate::info::{self, ClusterInfo, Info};
use crate::operate::server_state::Archiver;
use crate::operate::underway::Underway;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::release;
use crate::repo::root::BackupKind;
use crate::wal::inventory::Backup;

/// Whether the storage answers, by WAL-G's name.
pub(super) const WALG_STORAGE_UP: &str = "walg_storage_up";
/// Its help.
pub(super) const WALG_STORAGE_HELP: &str = "Whether the repository answers.";

/// The findings of a collection, and its time.
pub(super) struct Seen<'a> {
    pub settings: &'a Settings,
    pub counters: Option<&'a Counters>,
    pub underway: &'a [Underway],
    pub info: Option<&'a Info>,
    pub now: TimestampTz,
}

/// Adds what has the names that are asked for.
pub(super) fn add(all: &mut Exposition, names: &[Compat], seen: &Seen<'_>) {
    let clusters = seen.info.map_or(&[][..], |info| info.clusters.as_slice());
    let servers = seen.info.into_iter().flat_map(Info::servers);
    let archivers = servers.filter_map(|(name, server)| Some((name, server.archiver.as_ref()?)));
    let archivers: Vec<_> = archivers.collect();
    let all_names = [
        Compat::PgBackRest,
        Compat::Barman,
        Compat::Cnpg,
        Compat::WalG,
        Compat::Postgres,
    ];
    for asked in all_names.iter().filter(|name| names.contains(name)) {
        match asked {
            Compat::PgBackRest => {
                let is_whole = seen.info.is_some_and(|info| info.failures.is_empty());
                gauge(
                    all,
                    "pgbackrest_exporter_status",
                    "Whether everything could be looked at.",
                    &[("stanza", "all-stanzas")],
                    flag(is_whole),
                );
                clusters.iter().for_each(|one| pgbackrest(all, seen, one));
            }
            Compat::Barman => clusters.iter().for_each(|one| barman(all, seen, one)),
            Compat::Cnpg => {
                hosts(all, seen.settings);
                clusters.iter().for_each(|one| cnpg(all, one));
                archivers
                    .iter()
                    .for_each(|one| cnpg_archiver(all, seen, *one));
            }
            Compat::WalG => clusters.iter().for_each(|one| walg(all, seen, one)),
            Compat::Postgres => archivers.iter().for_each(|one| postgres(all, seen, *one)),
        }
    }
}

type Labels<'a> = &'a [(&'static str, &'a str)];

fn gauge(
    all: &mut Exposition,
    name: &'static str,
    help: &'static str,
    labels: Labels<'_>,
    value: f64,
) {
    all.add(&(name, Type::Gauge, help), labels, value);
}

fn took(backup: &Backup) -> Option<f64> {
    let took = backup.stop_time.duration_since(backup.start_time)?;
    Some(took.as_secs_f64())
}

fn pgbackrest(all: &mut Exposition, seen: &Seen<'_>, one: &ClusterInfo) {
    let backups = &one.inventory.backups;
    let stanza = ("stanza", one.name.as_str());
    let repositories = &seen.settings.repositories;
    let place = repositories
        .iter()
        .position(|r| r.name == one.repository_name);
    // Its repositories are numbered from 1.
    let repo_key = place.map_or(0, |place| place + 1).to_string();
    let repo_key = ("repo_key", repo_key.as_str());
    let is_encrypted = place
        .and_then(|place| repositories.get(place))
        .is_some_and(|r| r.encryption.is_some());
    let cipher = if is_encrypted { "aes-256-gcm" } else { "none" };
    let major = one.major.to_string();
    let database = ("database_id", "1");
    // 2 is its status for "no valid backups".
    let status = match backups.iter().any(|b| b.damage.is_none()) {
        true => 0.0,
        false => 2.0,
    };
    gauge(
        all,
        "pgbackrest_stanza_status",
        "0 where there is an undamaged backup, else 2.",
        &[stanza],
        status,
    );
    gauge(
        all,
        "pgbackrest_repo_status",
        "As pgbackrest_stanza_status.",
        &[("cipher", cipher), repo_key, stanza],
        status,
    );
    gauge(
        all,
        "pgbackrest_wal_archive_status",
        "Whether WAL is archived.",
        &[
            database,
            ("pg_version", &major),
            repo_key,
            stanza,
            ("wal_max", ""),
            ("wal_min", ""),
        ],
        flag(one.segments > 0),
    );
    if let Some(counters) = seen.counters {
        let ours = |l: &&crate::operate::counters::Label| {
            l.component == "postgres" && l.cluster == one.name
        };
        gauge(
            all,
            "pgbackrest_stanza_backup_lock_status",
            "Whether this host takes a backup.",
            &[stanza],
            flag(counters.running.iter().any(|one| ours(&&one.label))),
        );
        let running = counters.running.iter().filter(|one| ours(&&one.label));
        let shown = running.map(|one| seen.underway.iter().find(|u| u.is(&one.process)));
        pgbackrest_bytes(all, &PGBACKREST_BACKUP, stanza, &shown.collect::<Vec<_>>());
    }
    // A command names its cluster first among what it is about.
    let is_ours = |one: &&Underway| {
        let about = one.object.as_deref().unwrap_or_default();
        one.restores() && about.split(' ').next() == Some(stanza.1)
    };
    let restores = seen.underway.iter().filter(is_ours).map(Some);
    let restores: Vec<_> = restores.collect();
    gauge(
        all,
        "pgbackrest_stanza_restore_lock_status",
        "Whether this host restores.",
        &[stanza],
        flag(!restores.is_empty()),
    );
    pgbackrest_bytes(all, &PGBACKREST_RESTORE, stanza, &restores);
    for backup in backups {
        let id = backup.id.to_string();
        let labels = [
            ("backup_name", id.as_str()),
            ("backup_type", kind_name(backup.kind)),
            ("block_incr", "n"),
            database,
            repo_key,
            stanza,
        ];
        pgbackrest_backup(all, one, (backup, &major), &labels);
    }
    pgbackrest_last(all, seen, backups, stanza);
}

/// Bytes of a running backup or restore: those that are done, and all.
type Bytes = [(&'static str, &'static str); 2];

const PGBACKREST_BACKUP: Bytes = [
    (
        "pgbackrest_stanza_backup_complete_bytes",
        "Bytes of the present phase of the running backup that are done; 0 while none runs.",
    ),
    (
        "pgbackrest_stanza_backup_total_bytes",
        "Bytes of the present phase of the running backup; 0 while none runs.",
    ),
];
const PGBACKREST_RESTORE: Bytes = [
    (
        "pgbackrest_stanza_restore_complete_bytes",
        "Bytes of the present phase of the running restore that are done; 0 while none runs.",
    ),
    (
        "pgbackrest_stanza_restore_total_bytes",
        "Bytes of the present phase of the running restore; 0 while none runs.",
    ),
];

/// Adds the bytes of what runs; none where something runs whose bytes are not known.
fn pgbackrest_bytes(
    all: &mut Exposition,
    [complete, total]: &Bytes,
    stanza: (&'static str, &str),
    running: &[Option<&Underway>],
) {
    let values = match running {
        [] => Some((Some(0), 0)),
        [first, ..] => first.map(|one| (one.total_bytes, one.done_bytes)),
    };
    let Some((all_bytes, done)) = values else {
        return;
    };
    gauge(all, complete.0, complete.1, &[stanza], number(done));
    let family = (total.0, Type::Gauge, total.1);
    all.add_known(&family, &[stanza], all_bytes.map(number));
}

fn pgbackrest_backup(
    all: &mut Exposition,
    one: &ClusterInfo,
    (backup, major): (&Backup, &str),
    labels: Labels<'_>,
) {
    let size = one.inventory.segment_size;
    let first = SegmentName::of(backup.start_timeline, backup.start_lsn, size).to_string();
    let last = SegmentNumber::ending_at(backup.stop_lsn, size).name(backup.timeline, size);
    let last = last.map(|name| name.to_string()).unwrap_or_default();
    let (from, to) = (backup.start_lsn.to_string(), backup.stop_lsn.to_string());
    let more: [(&'static str, &str); 7] = [
        ("backrest_ver", release::NUMBER),
        ("lsn_start", &from),
        ("lsn_stop", &to),
        ("pg_version", major),
        ("prior", ""),
        ("wal_start", &first),
        ("wal_stop", &last),
    ];
    gauge(
        all,
        "pgbackrest_backup_info",
        "1 for each backup.",
        &[labels, &more[..]].concat(),
        1.0,
    );
    if let Some(took) = took(backup) {
        let (from, to) = (clock(backup.start_time), clock(backup.stop_time));
        let times = [("start_time", from.as_str()), ("stop_time", to.as_str())];
        gauge(
            all,
            "pgbackrest_backup_duration_seconds",
            "From the start of the backup to its stop.",
            &[labels, &times[..]].concat(),
            took,
        );
    }
    for (name, help, value) in [
        (
            "pgbackrest_backup_size_bytes",
            "Raw bytes of the files in the backup.",
            number(backup.size_bytes),
        ),
        (
            "pgbackrest_backup_repo_delta_bytes",
            "Bytes that the backup added to the repository.",
            number(backup.stored_bytes),
        ),
        (
            "pgbackrest_backup_error_status",
            "Whether damage of the backup is known.",
            flag(backup.damage.is_some()),
        ),
    ] {
        gauge(all, name, help, labels, value);
    }
}

/// The newest backups. As in the exporter, one that restores less is beaten by a newer one that restores more: "incr" is the newest of all.
fn pgbackrest_last(
    all: &mut Exposition,
    seen: &Seen<'_>,
    backups: &[Backup],
    stanza: (&'static str, &str),
) {
    let full = backups
        .iter()
        .filter(|b| b.kind == BackupKind::Full)
        .max_by_key(|b| b.stop_time);
    let newest = backups.iter().max_by_key(|b| b.stop_time);
    for (kind, backup) in [("full", full), ("diff", full), ("incr", newest)] {
        let Some(backup) = backup else { continue };
        let labels = [("backup_type", kind), ("block_incr", "n"), stanza];
        let age = seen.now.duration_since(backup.stop_time);
        for (name, help, value) in [
            (
                "pgbackrest_backup_since_last_completion_seconds",
                "Age of the newest backup.",
                age.map(|age| age.as_secs_f64()),
            ),
            (
                "pgbackrest_backup_last_duration_seconds",
                "From the start of the newest backup to its stop.",
                took(backup),
            ),
            (
                "pgbackrest_backup_last_size_bytes",
                "Raw bytes of the files in the newest backup.",
                Some(number(backup.size_bytes)),
            ),
            (
                "pgbackrest_backup_last_repo_delta_bytes",
                "Bytes that the newest backup added to the repository.",
                Some(number(backup.stored_bytes)),
            ),
            (
                "pgbackrest_backup_last_error_status",
                "Whether damage of the newest backup is known.",
                Some(flag(backup.damage.is_some())),
            ),
        ] {
            all.add_known(&(name, Type::Gauge, help), &labels, value);
        }
    }
}

/// A time as the exporter writes it, in UTC.
fn clock(time: TimestampTz) -> String {
    let shown = crate::operate::human::time(time);
    shown.trim_end_matches('Z').to_owned()
}

fn barman(all: &mut Exposition, seen: &Seen<'_>, one: &ClusterInfo) {
    let server = ("server", one.name.as_str());
    let backups = one.inventory.backups.iter();
    let mut done: Vec<&Backup> = backups.filter(|b| b.damage.is_none()).collect();
    done.sort_by_key(|b| std::cmp::Reverse(b.stop_time));
    for (index, backup) in done.iter().enumerate() {
        gauge(
            all,
            "barman_backup_size",
            "Raw bytes of the files in a backup; 1 is the newest.",
            &[server, ("number", &(index + 1).to_string())],
            number(backup.size_bytes),
        );
    }
    gauge(
        all,
        "barman_backups_total",
        "Backups in the repository.",
        &[server],
        counted(one.inventory.backups.len()),
    );
    for (name, help, value) in [
        (
            "barman_last_backup",
            "Start of the newest undamaged backup.",
            done.first().map(|b| seconds(b.start_time)),
        ),
        (
            "barman_last_backup_copy_time",
            "From the start of the newest undamaged backup to its stop, in seconds.",
            done.first().and_then(|b| took(b)),
        ),
        (
            "barman_first_backup",
            "Start of the oldest undamaged backup.",
            done.last().map(|b| seconds(b.start_time)),
        ),
        (
            "barman_metrics_update",
            "When this was collected.",
            Some(seconds(seen.now).floor()),
        ),
    ] {
        all.add_known(&(name, Type::Gauge, help), &[server], value);
    }
    barman_checks(all, seen, one, &done);
}

/// The checks of Barman that pitr makes, too.
fn barman_checks(all: &mut Exposition, seen: &Seen<'_>, one: &ClusterInfo, done: &[&Backup]) {
    let configured = seen.settings.clusters.iter();
    let configured = configured
        .filter(|c| c.name.as_str() == one.name)
        .find(|c| c.pgdata.is_some());
    let has = |name: &str| one.problems.iter().any(|p| p.name == name);
    let limit = configured.and_then(|c| c.max_backup_age);
    let age = done
        .first()
        .and_then(|b| seen.now.duration_since(b.stop_time));
    let checks = [
        (
            "archiver_errors",
            configured.map(|_| one.blocked.is_empty()),
        ),
        (
            "backup_maximum_age",
            limit.map(|limit| age.is_some_and(|age| age <= limit.duration())),
        ),
        (
            "receive_wal_running",
            one.receiver.as_ref().map(|r| r.is_connected()),
        ),
        (
            "systemid_coherence",
            configured.map(|_| !has("data directory")),
        ),
    ];
    for (check, is_ok) in checks {
        all.add_known(
            &("barman_up", Type::Gauge, "1 where a check passes, else 0."),
            &[("server", one.name.as_str()), ("check", check)],
            is_ok.map(flag),
        );
    }
}

/// Adds the numbers that CloudNativePG reads in the data directory.
fn hosts(all: &mut Exposition, settings: &Settings) {
    for cluster in &settings.clusters {
        let Some(pgdata) = &cluster.pgdata else {
            continue;
        };
        let cluster = ("cluster", cluster.name.as_str());
        let wal = pgdata.join("pg_wal");
        let files = files(&wal, |name| name.parse::<SegmentName>().is_ok());
        if let Some((count, bytes)) = files {
            for (value, shown) in [("count", count), ("size", bytes)] {
                gauge(
                    all,
                    "cnpg_collector_pg_wal",
                    "Segments in pg_wal, and their bytes.",
                    &[("value", value), cluster],
                    number(shown),
                );
            }
        }
        for value in ["ready", "done"] {
            let is_it = |name: &str| name.rsplit('.').next() == Some(value);
            if let Some((count, _)) = self::files(&wal.join("archive_status"), is_it) {
                gauge(
                    all,
                    "cnpg_collector_pg_wal_archive_status",
                    "Files in pg_wal/archive_status.",
                    &[("value", value), cluster],
                    number(count),
                );
            }
        }
    }
}

/// How many files of a directory are wanted, and how large they are.
fn files(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Option<(u64, u64)> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let wanted = entries.filter(|e| e.file_name().to_str().is_some_and(&is_wanted));
    let sizes = wanted.filter_map(|e| e.metadata().ok()).map(|m| m.len());
    Some(sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size)))
}

fn cnpg(all: &mut Exposition, one: &ClusterInfo) {
    let cluster = [("cluster", one.name.as_str())];
    let timeline = one.timeline.and_then(TimelineId::new);
    let window = info::of_cluster(&one.recovery_windows, timeline, &one.inventory);
    let first = window.map(|w| seconds(w.from));
    let good = one.inventory.backups.iter().filter(|b| b.damage.is_none());
    let last = good.map(|b| b.stop_time).max().map(seconds);
    let up = one.server.as_ref().map(|_| 1.0);
    for (name, help, value) in [
        (
            "cnpg_collector_up",
            "1 where the server answers; no series else.",
            up,
        ),
        (
            "cnpg_collector_first_recoverability_point",
            "First moment that can be recovered.",
            first,
        ),
        (
            "barman_cloud_cloudnative_pg_io_first_recoverability_point",
            "First moment that can be recovered.",
            first,
        ),
        (
            "cnpg_collector_last_available_backup_timestamp",
            "End of the newest undamaged backup.",
            last,
        ),
        (
            "barman_cloud_cloudnative_pg_io_last_available_backup_timestamp",
            "End of the newest undamaged backup.",
            last,
        ),
    ] {
        all.add_known(&(name, Type::Gauge, help), &cluster, value);
    }
}

/// Adds what CloudNativePG asks of pg_stat_archiver. A time that never was has no series, where its own exporter shows -1.
fn cnpg_archiver(all: &mut Exposition, seen: &Seen<'_>, (name, archiver): (&str, &Archiver)) {
    let cluster = [("cluster", name)];
    let since = |then: f64| (seconds(seen.now) - then).max(0.0);
    for (name, help, value) in [
        (
            "cnpg_pg_stat_archiver_archived_count",
            "Files that archive_command took.",
            Some(number(archiver.archived)),
        ),
        (
            "cnpg_pg_stat_archiver_failed_count",
            "Runs of archive_command that failed.",
            Some(number(archiver.failed)),
        ),
        (
            "cnpg_pg_stat_archiver_seconds_since_last_archival",
            "Since archive_command took the last file.",
            archiver.last_archived_s.map(since),
        ),
        (
            "cnpg_pg_stat_archiver_seconds_since_last_failure",
            "Since the last run of archive_command that failed.",
            archiver.last_failed_s.map(since),
        ),
        (
            "cnpg_pg_stat_archiver_last_archived_time",
            "When archive_command took the last file.",
            archiver.last_archived_s,
        ),
        (
            "cnpg_pg_stat_archiver_last_failed_time",
            "When the last run of archive_command failed.",
            archiver.last_failed_s,
        ),
        (
            "cnpg_pg_stat_archiver_stats_reset_time",
            "When the counts of the archiver began.",
            archiver.reset_s,
        ),
    ] {
        all.add_known(&(name, Type::Gauge, help), &cluster, value);
    }
}

/// Adds what postgres_exporter asks of pg_stat_archiver.
fn postgres(all: &mut Exposition, seen: &Seen<'_>, (name, archiver): (&str, &Archiver)) {
    let cluster = [("cluster", name)];
    for (name, help, value) in [
        (
            "pg_stat_archiver_archived_count",
            "Files that archive_command took.",
            archiver.archived,
        ),
        (
            "pg_stat_archiver_failed_count",
            "Runs of archive_command that failed.",
            archiver.failed,
        ),
    ] {
        all.add(&(name, Type::Counter, help), &cluster, number(value));
    }
    let since = |then: f64| (seconds(seen.now) - then).max(0.0);
    let family = (
        "pg_stat_archiver_last_archive_age",
        Type::Gauge,
        "Since archive_command took the last file, in seconds.",
    );
    all.add_known(&family, &cluster, archiver.last_archived_s.map(since));
}

fn walg(all: &mut Exposition, seen: &Seen<'_>, one: &ClusterInfo) {
    let cluster = ("cluster", one.name.as_str());
    let backups = &one.inventory.backups;
    for (kind, shown) in [
        (BackupKind::Full, "full"),
        (BackupKind::Incremental, "delta"),
    ] {
        let ours = backups.iter().filter(|b| b.kind == kind);
        gauge(
            all,
            "walg_backups",
            "Backups in the repository.",
            &[("backup_type", shown), cluster],
            counted(ours.count()),
        );
        let ours = backups.iter().filter(|b| b.kind == kind);
        ours.for_each(|backup| walg_backup(all, seen, one, (backup, shown)));
    }
    let starts = backups.iter().map(|b| b.start_time);
    for (name, help, value) in [
        (
            "walg_basebackup_count",
            "Backups in the repository.",
            Some(counted(backups.len())),
        ),
        (
            "walg_oldest_basebackup",
            "Start of the oldest backup.",
            starts.clone().min().map(seconds),
        ),
        (
            "walg_newest_basebackup",
            "Start of the newest backup.",
            starts.max().map(seconds),
        ),
    ] {
        all.add_known(&(name, Type::Gauge, help), &[cluster], value);
    }
    walg_wal(all, one, cluster);
}

fn walg_backup(
    all: &mut Exposition,
    seen: &Seen<'_>,
    one: &ClusterInfo,
    (backup, kind): (&Backup, &str),
) {
    let id = backup.id.to_string();
    let name = [("backup_name", id.as_str()), ("cluster", one.name.as_str())];
    let size = one.inventory.segment_size;
    let first = SegmentName::of(backup.start_timeline, backup.start_lsn, size).to_string();
    let (from, to) = (backup.start_lsn.to_string(), backup.stop_lsn.to_string());
    let major = backup.major.to_string();
    let is_pinned = backup.pin(seen.now).is_some().to_string();
    let more: [(&'static str, &str); 7] = [
        ("backup_type", kind),
        ("wal_file", &first),
        ("pg_version", &major),
        ("start_lsn", &from),
        ("finish_lsn", &to),
        ("is_permanent", &is_pinned),
        ("delta_origin", ""),
    ];
    gauge(
        all,
        "walg_backup_info",
        "1 for each backup.",
        &[&name[..], &more[..]].concat(),
        1.0,
    );
    for (family, help, value) in [
        (
            "walg_backup_start_timestamp",
            "Start of the backup.",
            seconds(backup.start_time).floor(),
        ),
        (
            "walg_backup_finish_timestamp",
            "Stop of the backup.",
            seconds(backup.stop_time).floor(),
        ),
        (
            "walg_backup_uncompressed_size_bytes",
            "Raw bytes of the files in the backup.",
            number(backup.size_bytes),
        ),
        (
            "walg_backup_compressed_size_bytes",
            "Bytes that the backup added to the repository.",
            number(backup.stored_bytes),
        ),
    ] {
        gauge(all, family, help, &name, value);
    }
}

fn walg_wal(all: &mut Exposition, one: &ClusterInfo, cluster: (&'static str, &str)) {
    let timeline = one.timeline.and_then(TimelineId::new);
    if let Some(window) = info::of_cluster(&one.recovery_windows, timeline, &one.inventory)
        && let Some(length) = window.to.duration_since(window.from)
    {
        gauge(
            all,
            "walg_pitr_window_seconds",
            "Length of the recovery window.",
            &[cluster],
            length.as_secs_f64(),
        );
    }
    let timelines = &one.inventory.timelines;
    for id in timelines
        .iter()
        .filter(|(_, t)| !t.segments.is_empty())
        .map(|(id, _)| id)
    {
        let (decimal, hex) = (id.decimal().to_string(), format!("{:08x}", id.decimal()));
        gauge(
            all,
            "walg_wal_integrity_status",
            "1 where no WAL of the timeline is missing that a backup may need, else 0.",
            &[("timeline_id", &decimal), ("timeline_hex", &hex), cluster],
            flag(!one.gaps.iter().any(|gap| gap.timeline == *id)),
        );
    }
    let is_whole = one.gaps.is_empty() && one.inventory.suspects.is_empty();
    gauge(
        all,
        "walg_wal_verify_status",
        "1 where no WAL is missing or known to be damaged, else 0.",
        &[("operation", "integrity"), cluster],
        flag(is_whole),
    );
}
