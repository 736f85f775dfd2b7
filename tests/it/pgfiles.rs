//! The small files of a cluster, as real servers write them: control file, labels, maps, data pages.

use std::path::Path;

use pitr::pg::control::{ClusterState, ControlFile};
use pitr::pg::datapage::{self, PageState};
use pitr::pg::label::{BackupHistory, BackupLabel, parse_tablespace_map};
use pitr::pg::lsn::Lsn;
use pitr::pg::timeline::TimelineId;
use pitr::pg::version::Major;

use crate::common::{Cluster, Stop};
use crate::per_major;

fn control_file(cluster: &Cluster) -> ControlFile {
    let bytes = std::fs::read(cluster.pgdata().join("global/pg_control")).unwrap();
    ControlFile::parse(&bytes).unwrap()
}

fn control_file_says_what_the_server_says(major: u32) {
    let mut cluster = Cluster::small(major)
        .config("max_connections", 77)
        .config("max_prepared_transactions", 5)
        .config("track_commit_timestamp", "on")
        .start();
    cluster.sql("checkpoint");
    let control = control_file(&cluster);
    let row = |sql: &str| -> Vec<String> {
        let rows = cluster.sql(sql);
        rows[0]
            .iter()
            .map(|value| value.clone().unwrap_or_default())
            .collect()
    };
    assert_eq!(control.major.number(), major);
    assert_eq!(
        row(
            "select system_identifier, catalog_version_no, pg_control_version from pg_control_system()"
        ),
        [
            control.system_identifier.to_string(),
            control.catalog_version.to_string(),
            control.control_version.to_string()
        ]
    );
    let copy = control.checkpoint_copy;
    assert_eq!(
        // 19 prints positions in another way.
        row("select checkpoint_lsn - '0/0', redo_lsn - '0/0', timeline_id, prev_timeline_id, next_xid,
             extract(epoch from checkpoint_time)::bigint from pg_control_checkpoint()"),
        [
            control.checkpoint.0.to_string(),
            copy.redo.0.to_string(),
            copy.timeline.get().to_string(),
            copy.previous_timeline.get().to_string(),
            format!("{}:{}", copy.next_xid >> 32, copy.next_xid & 0xFFFF_FFFF),
            copy.time.to_string(),
        ]
    );
    assert_eq!(
        row("select database_block_size, blocks_per_segment, wal_block_size, bytes_per_wal_segment, data_page_checksum_version
             from pg_control_init()"),
        [
            control.block_size.to_string(),
            control.relation_segment_blocks.to_string(),
            control.wal_block_size.to_string(),
            control.wal_segment_size.bytes().to_string(),
            control.data_checksum_version.to_string(),
        ]
    );
    let settings = control.settings;
    assert_eq!(
        (settings.max_connections, settings.max_prepared_transactions),
        (77, 5)
    );
    assert_eq!(
        (
            settings.wal_level,
            settings.wal_log_hints,
            settings.track_commit_timestamp
        ),
        (1, false, true)
    );
    assert_eq!(
        settings.max_wal_senders.to_string(),
        cluster.value("show max_wal_senders")
    );
    assert_eq!(
        settings.max_worker_processes.to_string(),
        cluster.value("show max_worker_processes")
    );
    assert_eq!(
        settings.max_locks_per_transaction.to_string(),
        cluster.value("show max_locks_per_transaction")
    );
    assert_eq!(control.state, ClusterState::InProduction);
    cluster.stop(Stop::Fast);
    assert_eq!(control_file(&cluster).state, ClusterState::ShutDown);
}
per_major!(control_file_says_what_the_server_says);

#[test]
fn control_file_of_a_standby_has_its_recovery_point() {
    let primary = Cluster::small(15).start();
    let mut standby = primary.standby().start();
    assert_eq!(
        control_file(&standby).state,
        ClusterState::InArchiveRecovery
    );
    standby.stop(Stop::Fast);
    let control = control_file(&standby);
    assert_eq!(control.state, ClusterState::ShutDownInRecovery);
    assert!(control.min_recovery_point > Lsn::INVALID);
}

/// Every page of every relation file below `folder`; how many there were of each kind.
fn check_pages(folder: &Path, counts: &mut [usize; 2]) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check_pages(&path, counts);
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        for (block, page) in std::fs::read(&path).unwrap().chunks(8192).enumerate() {
            match datapage::check(page, block as u32, None) {
                PageState::Good => counts[0] += 1,
                PageState::New => counts[1] += 1,
                other => panic!("{} block {block}: {other:?}", path.display()),
            }
        }
    }
}

fn every_page_of_a_stopped_cluster_has_a_good_checksum(major: u32) {
    let mut cluster = Cluster::small(major).start();
    cluster.sql(
        "create table t as select i, repeat('x', i % 300) as b from generate_series(1, 20000) i",
    );
    cluster.sql("create index on t (i)");
    cluster.sql("vacuum t");
    cluster.stop(Stop::Fast);
    let mut counts = [0, 0];
    check_pages(&cluster.pgdata().join("base"), &mut counts);
    check_pages(&cluster.pgdata().join("global"), &mut counts);
    assert!(counts[0] > 2000, "{counts:?}");
}
per_major!(every_page_of_a_stopped_cluster_has_a_good_checksum);

fn labels_and_maps_of_the_server_are_read(major: u32) {
    let cluster = Cluster::small(major)
        .config("archive_mode", "on")
        .config("archive_command", "/bin/true")
        .start();
    let odd = cluster.sandbox().dir("odd \\ name\nof two lines");
    let sql = cluster.client();
    sql.sql(&format!(
        "create tablespace odd location E'{}'",
        odd.display()
            .to_string()
            .replace('\\', "\\\\")
            .replace('\n', "\\n")
    ));
    let (start, stop) = match major {
        13 | 14 => (
            "pg_start_backup('the label', true, false)",
            "pg_stop_backup(false, false)",
        ),
        _ => (
            "pg_backup_start('the label', true)",
            "pg_backup_stop(false)",
        ),
    };
    let start: Lsn = sql.value(&format!("select {start}")).parse().unwrap();
    let rows = sql.sql(&format!("select * from {stop}"));
    let text = |column: usize| rows[0][column].clone().unwrap();
    let stop: Lsn = text(0).parse().unwrap();

    let label = BackupLabel::parse(text(1).as_bytes()).unwrap();
    assert_eq!(label.start.lsn, start);
    assert_eq!(label.label.as_deref(), Some(&b"the label"[..]));
    assert_eq!(label.method.as_deref(), Some(&b"streamed"[..]));
    assert_eq!(label.start_timeline, Some(TimelineId::FIRST));
    let (from, start_time) = (label.from.as_deref(), label.start_time.as_deref());
    assert!(matches!(from, Some(b"primary" | b"master")), "{label:?}");
    assert!(
        start_time.is_some_and(|t| t.starts_with(b"20")),
        "{label:?}"
    );

    let major = Major::from_number(major).unwrap();
    let map = parse_tablespace_map(text(2).as_bytes(), major).unwrap();
    assert_eq!(map.len(), 1);
    assert_eq!(map[0].path, odd.display().to_string().into_bytes());

    let wal = cluster.pgdata().join("pg_wal");
    let name = format!("{}.{:08X}.backup", label.start.file, start.0 & 0xF_FFFF);
    let written =
        std::fs::read_to_string(wal.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let history = BackupHistory::parse(written.as_bytes()).unwrap();
    assert_eq!((history.stop.lsn, history.label.start), (stop, label.start));
    assert_eq!(history.label, label);
    assert!(history.stop_time.starts_with(b"20"), "{history:?}");
}
per_major!(labels_and_maps_of_the_server_are_read);
