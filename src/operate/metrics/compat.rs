//! Names of other exporters, so that dashboards and rules that were made for them go on working.
//!
//! Names, labels and units are those of woblerr/pgbackrest_exporter (March 2026), marcinhlybin/prometheus-barman-exporter 1.0.10, CloudNativePG's
//! instance manager and Barman Cloud plugin, and WAL-G's own exporter. Only what is known here has a series: what pitr has no counterpart of is listed
//! in docs/metrics.md. Series of single backups stand here alone: our own names have none.

use std::path::Path;

use super::exposition::{Exposition, Labels, Type, families};
use super::{counted, flag, number, seconds};
use crate::config::{Compat, Settings};
use crate::operate::counters::{Counters, Label, kind_name};
use crate::operate::info::{self, ClusterInfo, Info};
use crate::operate::server_state::Archiver;
use crate::operate::underway::Underway;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::release;
use crate::repo::root::BackupKind;
use crate::wal::inventory::Backup;

families! {
    pub(super) WALG_STORAGE_UP: Gauge "walg_storage_up" "Whether the repository answers.";
}

/// Adds samples with the same labels, each with its type, name, help and value: a number, or one that may be unknown.
macro_rules! samples {
    ($all:expr, $labels:expr; $($kind:ident $name:literal $help:literal $value:expr;)+) => {
        $($all.add_known(&($name, Type::$kind, $help), $labels, Option::from($value));)+
    };
}

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
                samples! { all, &[("stanza", "all-stanzas")];
                    Gauge "pgbackrest_exporter_status" "Whether everything could be looked at." flag(is_whole);
                }
                clusters.iter().for_each(|one| pgbackrest(all, seen, one));
            }
            Compat::Barman => clusters.iter().for_each(|one| barman(all, seen, one)),
            Compat::Cnpg => {
                hosts(all, seen.settings);
                clusters.iter().for_each(|one| cnpg(all, one));
                let each = archivers.iter();
                each.for_each(|one| cnpg_archiver(all, seen, *one));
            }
            Compat::WalG => clusters.iter().for_each(|one| walg(all, seen, one)),
            Compat::Postgres => archivers.iter().for_each(|one| postgres(all, seen, *one)),
        }
    }
}

fn took(backup: &Backup) -> Option<f64> {
    let took = backup.stop_time.duration_since(backup.start_time)?;
    Some(took.as_secs_f64())
}

fn pgbackrest(all: &mut Exposition, seen: &Seen<'_>, one: &ClusterInfo) {
    let backups = &one.inventory.backups;
    let stanza = ("stanza", one.name.as_str());
    let repositories = &seen.settings.repositories;
    let mut each = repositories.iter();
    let place = each.position(|r| r.name == one.repository_name);
    // Its repositories are numbered from 1.
    let repo_key = place.map_or(0, |place| place + 1).to_string();
    let repo_key = ("repo_key", repo_key.as_str());
    let own = place.and_then(|place| repositories.get(place));
    let is_encrypted = own.is_some_and(|r| r.encryption.is_some());
    let cipher = if is_encrypted { "aes-256-gcm" } else { "none" };
    let major = one.major.to_string();
    let database = ("database_id", "1");
    // 2 is its status for "no valid backups".
    let status = match backups.iter().any(|b| b.damage.is_none()) {
        true => 0.0,
        false => 2.0,
    };
    let archive = [
        database,
        ("pg_version", major.as_str()),
        repo_key,
        stanza,
        ("wal_max", ""),
        ("wal_min", ""),
    ];
    samples! { all, &[("cipher", cipher), repo_key, stanza];
        Gauge "pgbackrest_repo_status" "As pgbackrest_stanza_status." status;
    }
    samples! { all, &archive;
        Gauge "pgbackrest_wal_archive_status" "Whether WAL is archived." flag(one.segments > 0);
    }
    if let Some(counters) = seen.counters {
        let ours = |l: &Label| l.component == "postgres" && l.cluster == one.name;
        let running = counters.running.iter().filter(|one| ours(&one.label));
        let shown = running.map(|one| seen.underway.iter().find(|u| u.is(&one.process)));
        let shown: Vec<_> = shown.collect();
        let (done, total) = bytes_of(&shown);
        samples! { all, &[stanza];
            Gauge "pgbackrest_stanza_backup_lock_status" "Whether this host takes a backup." flag(!shown.is_empty());
            Gauge "pgbackrest_stanza_backup_complete_bytes"
                "Bytes of the present phase of the running backup that are done; 0 while none runs." done;
            Gauge "pgbackrest_stanza_backup_total_bytes" "Bytes of the present phase of the running backup; 0 while none runs." total;
        }
    }
    // A command names its cluster first among what it is about.
    let is_ours = |one: &&Underway| {
        let about = one.object.as_deref().unwrap_or_default();
        one.restores() && about.split(' ').next() == Some(stanza.1)
    };
    let restores = seen.underway.iter().filter(is_ours).map(Some);
    let restores: Vec<_> = restores.collect();
    let (done, total) = bytes_of(&restores);
    samples! { all, &[stanza];
        Gauge "pgbackrest_stanza_status" "0 where there is an undamaged backup, else 2." status;
        Gauge "pgbackrest_stanza_restore_lock_status" "Whether this host restores." flag(!restores.is_empty());
        Gauge "pgbackrest_stanza_restore_complete_bytes"
            "Bytes of the present phase of the running restore that are done; 0 while none runs." done;
        Gauge "pgbackrest_stanza_restore_total_bytes" "Bytes of the present phase of the running restore; 0 while none runs." total;
    }
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

/// Bytes of what runs: those that are done, and all. None where something runs whose bytes are not known.
fn bytes_of(running: &[Option<&Underway>]) -> (Option<f64>, Option<f64>) {
    let Some(first) = running.first() else {
        return (Some(0.0), Some(0.0));
    };
    let done = first.map(|one| number(one.done_bytes));
    (done, first.and_then(|one| one.total_bytes).map(number))
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
    samples! { all, &[labels, &more[..]].concat();
        Gauge "pgbackrest_backup_info" "1 for each backup." 1.0;
    }
    let (from, to) = (clock(backup.start_time), clock(backup.stop_time));
    let times = [("start_time", from.as_str()), ("stop_time", to.as_str())];
    samples! { all, &[labels, &times[..]].concat();
        Gauge "pgbackrest_backup_duration_seconds" "From the start of the backup to its stop." took(backup);
    }
    samples! { all, labels;
        Gauge "pgbackrest_backup_size_bytes" "Raw bytes of the files in the backup." number(backup.size_bytes);
        Gauge "pgbackrest_backup_repo_delta_bytes" "Bytes that the backup added to the repository." number(backup.stored_bytes);
        Gauge "pgbackrest_backup_error_status" "Whether damage of the backup is known." flag(backup.damage.is_some());
    }
}

/// The newest backups. As in the exporter, one that restores less is beaten by a newer one that restores more: "incr" is the newest of all.
fn pgbackrest_last(
    all: &mut Exposition,
    seen: &Seen<'_>,
    backups: &[Backup],
    stanza: (&'static str, &str),
) {
    let full = backups.iter().filter(|b| b.kind == BackupKind::Full);
    let full = full.max_by_key(|b| b.stop_time);
    let newest = backups.iter().max_by_key(|b| b.stop_time);
    for (kind, backup) in [("full", full), ("diff", full), ("incr", newest)] {
        let Some(backup) = backup else { continue };
        let labels = [("backup_type", kind), ("block_incr", "n"), stanza];
        let age = seen.now.duration_since(backup.stop_time);
        samples! { all, &labels;
            Gauge "pgbackrest_backup_since_last_completion_seconds" "Age of the newest backup." age.map(|age| age.as_secs_f64());
            Gauge "pgbackrest_backup_last_duration_seconds" "From the start of the newest backup to its stop." took(backup);
            Gauge "pgbackrest_backup_last_size_bytes" "Raw bytes of the files in the newest backup." number(backup.size_bytes);
            Gauge "pgbackrest_backup_last_repo_delta_bytes" "Bytes that the newest backup added to the repository."
                number(backup.stored_bytes);
            Gauge "pgbackrest_backup_last_error_status" "Whether damage of the newest backup is known." flag(backup.damage.is_some());
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
        samples! { all, &[server, ("number", &(index + 1).to_string())];
            Gauge "barman_backup_size" "Raw bytes of the files in a backup; 1 is the newest." number(backup.size_bytes);
        }
    }
    let (newest, oldest) = (done.first(), done.last());
    samples! { all, &[server];
        Gauge "barman_backups_total" "Backups in the repository." counted(one.inventory.backups.len());
        Gauge "barman_last_backup" "Start of the newest undamaged backup." newest.map(|b| seconds(b.start_time));
        Gauge "barman_last_backup_copy_time" "From the start of the newest undamaged backup to its stop, in seconds."
            newest.and_then(|b| took(b));
        Gauge "barman_first_backup" "Start of the oldest undamaged backup." oldest.map(|b| seconds(b.start_time));
        Gauge "barman_metrics_update" "When this was collected." seconds(seen.now).floor();
    }
    barman_checks(all, seen, one, &done);
}

/// The checks of Barman that pitr makes, too.
fn barman_checks(all: &mut Exposition, seen: &Seen<'_>, one: &ClusterInfo, done: &[&Backup]) {
    let mut configured = seen.settings.clusters.iter();
    let configured = configured.find(|c| c.name.as_str() == one.name && c.pgdata.is_some());
    let has = |name: &str| one.problems.iter().any(|p| p.name == name);
    let limit = configured.and_then(|c| c.max_backup_age);
    let newest = done.first();
    let age = newest.and_then(|b| seen.now.duration_since(b.stop_time));
    let is_young = limit.map(|limit| age.is_some_and(|age| age <= limit.duration()));
    let receives = one.receiver.as_ref().map(|r| r.is_connected());
    let is_coherent = configured.map(|_| !has("data directory"));
    let checks = [
        (
            "archiver_errors",
            configured.map(|_| one.blocked.is_empty()),
        ),
        ("backup_maximum_age", is_young),
        ("receive_wal_running", receives),
        ("systemid_coherence", is_coherent),
    ];
    for (check, is_ok) in checks {
        samples! { all, &[("server", one.name.as_str()), ("check", check)];
            Gauge "barman_up" "1 where a check passes, else 0." is_ok.map(flag);
        }
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
                samples! { all, &[("value", value), cluster];
                    Gauge "cnpg_collector_pg_wal" "Segments in pg_wal, and their bytes." number(shown);
                }
            }
        }
        for value in ["ready", "done"] {
            let is_it = |name: &str| name.rsplit('.').next() == Some(value);
            let files = self::files(&wal.join("archive_status"), is_it);
            samples! { all, &[("value", value), cluster];
                Gauge "cnpg_collector_pg_wal_archive_status" "Files in pg_wal/archive_status." files.map(|(count, _)| number(count));
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
    samples! { all, &cluster;
        Gauge "cnpg_collector_up" "1 where the server answers; no series else." up;
        Gauge "cnpg_collector_first_recoverability_point" "First moment that can be recovered." first;
        Gauge "barman_cloud_cloudnative_pg_io_first_recoverability_point" "First moment that can be recovered." first;
        Gauge "cnpg_collector_last_available_backup_timestamp" "End of the newest undamaged backup." last;
        Gauge "barman_cloud_cloudnative_pg_io_last_available_backup_timestamp" "End of the newest undamaged backup." last;
    }
}

/// Adds what CloudNativePG asks of pg_stat_archiver. A time that never was has no series, where its own exporter shows -1.
fn cnpg_archiver(all: &mut Exposition, seen: &Seen<'_>, (name, archiver): (&str, &Archiver)) {
    let cluster = [("cluster", name)];
    let since = |then: f64| (seconds(seen.now) - then).max(0.0);
    samples! { all, &cluster;
        Gauge "cnpg_pg_stat_archiver_archived_count" "Files that archive_command took." number(archiver.archived);
        Gauge "cnpg_pg_stat_archiver_failed_count" "Runs of archive_command that failed." number(archiver.failed);
        Gauge "cnpg_pg_stat_archiver_seconds_since_last_archival" "Since archive_command took the last file."
            archiver.last_archived_s.map(since);
        Gauge "cnpg_pg_stat_archiver_seconds_since_last_failure" "Since the last run of archive_command that failed."
            archiver.last_failed_s.map(since);
        Gauge "cnpg_pg_stat_archiver_last_archived_time" "When archive_command took the last file." archiver.last_archived_s;
        Gauge "cnpg_pg_stat_archiver_last_failed_time" "When the last run of archive_command failed." archiver.last_failed_s;
        Gauge "cnpg_pg_stat_archiver_stats_reset_time" "When the counts of the archiver began." archiver.reset_s;
    }
}

/// Adds what postgres_exporter asks of pg_stat_archiver.
fn postgres(all: &mut Exposition, seen: &Seen<'_>, (name, archiver): (&str, &Archiver)) {
    let cluster = [("cluster", name)];
    let since = |then: f64| (seconds(seen.now) - then).max(0.0);
    samples! { all, &cluster;
        Counter "pg_stat_archiver_archived_count" "Files that archive_command took." number(archiver.archived);
        Counter "pg_stat_archiver_failed_count" "Runs of archive_command that failed." number(archiver.failed);
        Gauge "pg_stat_archiver_last_archive_age" "Since archive_command took the last file, in seconds."
            archiver.last_archived_s.map(since);
    }
}

fn walg(all: &mut Exposition, seen: &Seen<'_>, one: &ClusterInfo) {
    let cluster = ("cluster", one.name.as_str());
    let backups = &one.inventory.backups;
    for (kind, shown) in [
        (BackupKind::Full, "full"),
        (BackupKind::Incremental, "delta"),
    ] {
        let ours = backups.iter().filter(|b| b.kind == kind);
        samples! { all, &[("backup_type", shown), cluster];
            Gauge "walg_backups" "Backups in the repository." counted(ours.clone().count());
        }
        ours.for_each(|backup| walg_backup(all, seen, one, (backup, shown)));
    }
    let starts = backups.iter().map(|b| b.start_time);
    samples! { all, &[cluster];
        Gauge "walg_basebackup_count" "Backups in the repository." counted(backups.len());
        Gauge "walg_oldest_basebackup" "Start of the oldest backup." starts.clone().min().map(seconds);
        Gauge "walg_newest_basebackup" "Start of the newest backup." starts.max().map(seconds);
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
    samples! { all, &[&name[..], &more[..]].concat();
        Gauge "walg_backup_info" "1 for each backup." 1.0;
    }
    samples! { all, &name;
        Gauge "walg_backup_start_timestamp" "Start of the backup." seconds(backup.start_time).floor();
        Gauge "walg_backup_finish_timestamp" "Stop of the backup." seconds(backup.stop_time).floor();
        Gauge "walg_backup_uncompressed_size_bytes" "Raw bytes of the files in the backup." number(backup.size_bytes);
        Gauge "walg_backup_compressed_size_bytes" "Bytes that the backup added to the repository." number(backup.stored_bytes);
    }
}

fn walg_wal(all: &mut Exposition, one: &ClusterInfo, cluster: (&'static str, &str)) {
    let timeline = one.timeline.and_then(TimelineId::new);
    let window = info::of_cluster(&one.recovery_windows, timeline, &one.inventory);
    let length = window.and_then(|w| w.to.duration_since(w.from));
    samples! { all, &[cluster];
        Gauge "walg_pitr_window_seconds" "Length of the recovery window." length.map(|length| length.as_secs_f64());
    }
    let timelines = &one.inventory.timelines;
    for (id, _) in timelines.iter().filter(|(_, t)| !t.segments.is_empty()) {
        let (decimal, hex) = (id.decimal().to_string(), format!("{:08x}", id.decimal()));
        samples! { all, &[("timeline_id", &decimal), ("timeline_hex", &hex), cluster];
            Gauge "walg_wal_integrity_status" "1 where no WAL of the timeline is missing that a backup may need, else 0."
                flag(!one.gaps.iter().any(|gap| gap.timeline == *id));
        }
    }
    let is_whole = one.gaps.is_empty() && one.inventory.suspects.is_empty();
    samples! { all, &[("operation", "integrity"), cluster];
        Gauge "walg_wal_verify_status" "1 where no WAL is missing or known to be damaged, else 0." flag(is_whole);
    }
}
