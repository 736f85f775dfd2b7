//! Metrics of the data directories of this host.

use std::path::Path;

use super::blocked::Waiting;
use super::exposition::{Exposition, Type};
use super::metrics::{Family, number};
use super::tallies::Tallies;
use crate::config::Settings;
use crate::pg::time::TimestampTz;

const READY: Family = (
    "pitr_archive_ready_segments",
    Type::Gauge,
    "Files that wait in pg_wal to be archived.",
);
const READY_AGE: Family = (
    "pitr_archive_oldest_ready_seconds",
    Type::Gauge,
    "Age of the file that waits longest.",
);
const WAL_BYTES: Family = (
    "pitr_pg_wal_bytes",
    Type::Gauge,
    "Size of the files in pg_wal.",
);
const WAL_FREE: Family = (
    "pitr_pg_wal_fs_free_bytes",
    Type::Gauge,
    "Room on the filesystem of pg_wal.",
);

const WAL_FULL: Family = (
    "pitr_pg_wal_full_in_seconds",
    Type::Gauge,
    "When the filesystem of pg_wal is full, as it filled within the last hour.",
);

/// Adds what the data directories of this host show. Returns the free bytes of the filesystem of `pg_wal` of each cluster.
pub(super) fn add(
    all: &mut Exposition,
    settings: &Settings,
    now: TimestampTz,
) -> Vec<(String, u64)> {
    let mut rooms = Vec::new();
    for cluster in &settings.clusters {
        let Some(pgdata) = &cluster.pgdata else {
            continue;
        };
        let labels = [("cluster", cluster.name.as_str())];
        if let Ok(waiting) = Waiting::read(pgdata, now) {
            all.add(&READY, &labels, number(waiting.count));
            all.add(&READY_AGE, &labels, waiting.age.as_secs_f64());
        }
        let wal = pgdata.join("pg_wal");
        all.add_known(&WAL_BYTES, &labels, size_of(&wal).map(number));
        let free = free(&wal);
        all.add_known(&WAL_FREE, &labels, free.map(number));
        rooms.extend(free.map(|free| (cluster.name.to_string(), free)));
    }
    rooms
}

/// Adds when these filesystems are full. One that does not fill has no series.
pub(super) fn foretell(
    all: &mut Exposition,
    rooms: &[(String, u64)],
    tallies: &Tallies,
    now: TimestampTz,
) {
    for (cluster, free) in rooms {
        let full = tallies.pg_wal_full_in_s(cluster, *free, now);
        all.add_known(&WAL_FULL, &[("cluster", cluster)], full.map(number));
    }
}

fn size_of(directory: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let files = entries
        .filter_map(|e| e.metadata().ok())
        .filter(std::fs::Metadata::is_file);
    Some(files.map(|m| m.len()).sum())
}

fn free(directory: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
