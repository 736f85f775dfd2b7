//! Metrics of the data directories of this host.

use std::io;
use std::path::{Path, PathBuf};

use super::exposition::{Exposition, families};
use super::number;
use crate::archive::datadir::DataDirectory;
use crate::config::{Cluster, Settings};
use crate::operate::blocked::Waiting;
use crate::operate::info::Info;
use crate::operate::server_state::Archiver;
use crate::operate::tallies::Tallies;
use crate::pg::time::TimestampTz;

families! {
    READY: Gauge "pitr_archive_ready_segments" "Files that wait in pg_wal to be archived.";
    READY_AGE: Gauge "pitr_archive_oldest_ready_seconds" "Age of the file that waits longest.";
    WAL_BYTES: Gauge "pitr_pg_wal_bytes" "Size of the files in pg_wal.";
    WAL_FREE: Gauge "pitr_pg_wal_fs_free_bytes" "Room on the filesystem of pg_wal.";
    WAL_FULL: Gauge "pitr_pg_wal_full_in_seconds" "When the filesystem of pg_wal is full, as it filled within the last hour.";
}

/// A place of a cluster on this host that this user may not read, so that nothing about it is judged.
pub struct Barred {
    /// The cluster's name.
    pub cluster: String,
    /// The content: `pg_wal`, or `receiver` for its journal.
    pub what: &'static str,
    /// The directory.
    pub path: PathBuf,
}

/// Finds them. A place that is not there is another host's.
pub(super) fn barred(settings: &Settings) -> Vec<Barred> {
    let of = |cluster: &Cluster| {
        let status = cluster.pgdata.as_deref();
        let status = status.map(|p| ("pg_wal", p.join("pg_wal/archive_status")));
        let places = status.into_iter().chain(journals(cluster));
        let barred = places.filter(|(_, path)| is_barred(std::fs::read_dir(path)));
        let cluster = cluster.name.to_string();
        let new = |(what, path)| Barred {
            cluster: cluster.clone(),
            what,
            path,
        };
        barred.map(new).collect::<Vec<_>>()
    };
    settings.clusters.iter().flat_map(of).collect()
}

/// The directories of a receiver: its journal, and that of each server in it.
fn journals(cluster: &Cluster) -> Vec<(&'static str, PathBuf)> {
    let Some(journal) = &cluster.receive.journal else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(journal).into_iter().flatten().flatten();
    let servers = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    let all = servers.map(|e| e.path()).chain([journal.clone()]);
    all.map(|path| ("receiver", path)).collect()
}

fn is_barred<T>(asked: io::Result<T>) -> bool {
    asked.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

/// Adds what the data directories of this host show. Returns the free bytes of the filesystem of `pg_wal` of each cluster.
pub(super) fn add(all: &mut Exposition, settings: &Settings) -> Vec<(String, u64)> {
    let mut rooms = Vec::new();
    for cluster in &settings.clusters {
        let Some(pgdata) = &cluster.pgdata else {
            continue;
        };
        let labels = [("cluster", cluster.name.as_str())];
        let wal = pgdata.join("pg_wal");
        all.add_known(&WAL_BYTES, &labels, size_of(&wal).map(number));
        let free = free(&wal);
        all.add_known(&WAL_FREE, &labels, free.map(number));
        rooms.extend(free.map(|free| (cluster.name.to_string(), free)));
    }
    rooms
}

/// Adds what waits to be archived.
pub(super) fn waiting(
    all: &mut Exposition,
    settings: &Settings,
    info: Option<&Info>,
    now: TimestampTz,
) {
    for cluster in &settings.clusters {
        let mut servers = info.into_iter().flat_map(Info::servers);
        let own = servers.find(|(name, _)| *name == cluster.name.as_str());
        let archiver = own.and_then(|(_, server)| server.archiver.as_ref());
        waiting_of(all, cluster, archiver, now);
    }
}

/// A standby keeps what waited when it was a primary, and offers none of it, unless it archives always. One that did not say so counts as such: an outage
/// must not hide what waits.
fn waiting_of(
    all: &mut Exposition,
    cluster: &Cluster,
    archiver: Option<&Archiver>,
    now: TimestampTz,
) {
    let Some(pgdata) = &cluster.pgdata else {
        return;
    };
    let leaves_it = archiver.is_some_and(|archiver| !archiver.is_always);
    if leaves_it && DataDirectory::at(pgdata).has("standby.signal") {
        return;
    }
    let labels = [("cluster", cluster.name.as_str())];
    if let Ok(waiting) = Waiting::read(pgdata, now) {
        all.add(&READY, &labels, number(waiting.count));
        all.add(&READY_AGE, &labels, waiting.age.as_secs_f64());
    }
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
    // One that tells no size tells no room.
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w73_a_standby_tells_nothing_of_what_waited_when_it_was_a_primary() {
        let folder = tempfile::tempdir().unwrap();
        let status = folder.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&status).unwrap();
        std::fs::write(status.join("00000002.history.ready"), "").unwrap();
        let mut cluster = Cluster::named("main".parse().unwrap());
        cluster.pgdata = Some(folder.path().to_owned());
        let told = |is_always: Option<bool>| {
            let archiver = is_always.map(|is_always| Archiver {
                is_always,
                ..Archiver::default()
            });
            let mut all = Exposition::default();
            waiting_of(&mut all, &cluster, archiver.as_ref(), TimestampTz(0));
            all.text()
        };
        let series = "pitr_archive_ready_segments{cluster=\"main\"} 1";
        let tells = |is_always: Option<bool>| told(is_always).contains(series);
        assert!(tells(Some(false)) && tells(None));
        std::fs::write(folder.path().join("standby.signal"), "").unwrap();
        assert_eq!(told(Some(false)), "");
        // The series of one that archives always stay while its server does not answer.
        assert!(tells(Some(true)) && tells(None));
    }
}
