//! Metrics of the data directories of this host.

use std::path::Path;

use super::blocked::Waiting;
use super::exposition::{Exposition, Type};
use super::metrics::{Family, number};
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

/// Adds what the data directories of this host show.
pub(super) fn add(all: &mut Exposition, settings: &Settings, now: TimestampTz) {
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
        all.add_known(&WAL_FREE, &labels, free(&wal).map(number));
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
