//! Findings A9 to A15 and row L12: what plans, retention and checks say is kept.

use std::path::{Path, PathBuf};

use crate::common::{Cluster, Site, paths_below};
use crate::per_major;

/// Archives what was written, with a backup before it; returns its id.
fn backup(site: &Site) -> String {
    let run = site.pitr().args(["backup", "--json"]).run().success();
    run.json()["id"].as_str().unwrap().to_owned()
}

fn a10_parameters_raised_after_the_backup_reach_the_copy(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    cluster.append_config("max_prepared_transactions", "7");
    cluster.sql("create table t (a int)");
    backup(&site);
    cluster.alter_system("max_connections", "150");
    cluster.alter_system("max_locks_per_transaction", "80");
    cluster.restart();
    cluster.sql("insert into t select generate_series(1, 1000)");
    cluster.archive_now();

    let plan = site.pitr().args(["plan", "--json"]).run().success().json();
    let settings = &plan["recovery_settings"];
    let of_all = [
        ("max_connections", "150"),
        ("max_worker_processes", "8"),
        ("max_wal_senders", "10"),
        // That of the backup's pg_control is 0; the server was started with the line that had come into its configuration meanwhile.
        ("max_prepared_transactions", "7"),
        ("max_locks_per_transaction", "80"),
    ];
    for (name, value) in of_all {
        assert_eq!(settings[name], value, "{plan}");
    }
    let text = site.pitr().arg("plan").run().success();
    assert!(text.stdout.contains("max_connections = '150'"), "{text}");

    let to = site.sandbox().join("copy");
    site.pitr()
        .args(["restore", "--to"])
        .arg(&to)
        .run()
        .success();
    let auto = || std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    assert!(auto().contains("max_connections = '150'"), "{}", auto());
    // A larger value of the operator's own stays.
    let mut copy = Cluster::open(major, &to).option("fsync", "off").create();
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.query_one_string("select count(*) from t"), "1000");
    assert_eq!(copy.query_one_string("show max_connections"), "150");
    assert!(!auto().contains("max_connections"), "{}", auto());
    assert!(!auto().contains("max_locks"), "{}", auto());
}

per_major!(a10_parameters_raised_after_the_backup_reach_the_copy);

fn a10_parameters_of_pg_control_are_kept_where_the_configuration_has_less(major: u32) {
    let builder = Cluster::builder(major).segment_size_mb(1).without_fsync();
    // On the command line, so that no backup has it.
    let (site, cluster) = Site::with_cluster_of(builder.option("max_connections", "160"));
    cluster.sql("create table t as select generate_series(1, 10) a");
    cluster.alter_system("max_wal_senders", "20");
    backup(&site);
    let to = site.sandbox().join("copy");
    let run = site.pitr().args(["restore", "--to"]).arg(&to).run();
    run.success();
    let mut copy = Cluster::open(major, &to).option("fsync", "off").create();
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.query_one_string("select count(*) from t"), "10");
    assert_eq!(copy.query_one_string("show max_connections"), "160");
    // Not lowered to what the server had: the configuration that came along asks for more.
    assert_eq!(copy.query_one_string("show max_wal_senders"), "20");
    let auto = std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("max_connections"), "{auto}");
}

per_major!(a10_parameters_of_pg_control_are_kept_where_the_configuration_has_less);

/// Inverts a bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The first pack of a backup.
fn pack_of(site: &Site, backup: &str) -> PathBuf {
    let packs = paths_below(&site.cluster_folder().join("packs").join(backup));
    packs.first().expect("a backup has packs").clone()
}

#[test]
fn a12_plan_and_restore_refuse_the_only_backup_where_verify_found_it_damaged() {
    let (site, cluster) = Site::with_cluster(15);
    cluster.sql("create table t as select generate_series(1, 100) a");
    let first = backup(&site);
    cluster.archive_now();
    let pack = pack_of(&site, &first);
    flip(&pack);
    // Nobody knows yet.
    site.pitr().arg("plan").run().success();
    site.pitr().arg("verify").run().expect_code(4);
    let plan = || site.pitr().args(["plan", "--json"]).run();
    let refused = plan().expect_code(5).json();
    assert_eq!(refused["reachable"], false, "{refused}");
    assert_eq!(refused["reason"], "damaged_backup", "{refused}");
    let said = refused["explanation"].as_str().unwrap();
    assert!(
        said.contains(&format!("pitr verify --backup {first}")),
        "{said}"
    );
    let to = site.sandbox().join("copy");
    let restore = || site.pitr().args(["restore", "--to"]).arg(&to).run();
    restore().expect_code(5).expect_stderr(&first);
    assert!(!to.exists());
    // Another one that leads there is taken.
    let second = backup(&site);
    assert_eq!(plan().success().json()["backup"]["id"], second.as_str());
    std::fs::remove_dir_all(site.cluster_folder().join("backups").join(&second)).unwrap();
    plan().expect_code(5);
    // What is put right is found right.
    flip(&pack);
    site.pitr()
        .args(["verify", "--backup", &first])
        .run()
        .success();
    assert_eq!(plan().success().json()["backup"]["id"], first.as_str());
    restore().success();
}

#[test]
fn a12_a_target_behind_the_archived_wal_needs_allow_end() {
    let (site, cluster) = Site::with_cluster(15);
    cluster.sql("create table t as select generate_series(1, 100) a");
    backup(&site);
    cluster.sql("insert into t values (101)");
    let now = cluster.query_one_string(
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    );
    cluster.archive_now();
    let to = site.sandbox().join("copy");
    for target in [
        ["--target-time", now.as_str()],
        ["--target-time", "2999-01-01T00:00:00Z"],
        ["--target-lsn", "FF/0"],
    ] {
        let plan = || site.pitr().args(["plan", "--json"]).args(target);
        let run = plan().run().expect_code(5);
        let said = run.json()["explanation"].to_string();
        assert!(said.contains("--allow-end"), "{said}");
        let restore = || site.pitr().args(["restore", "--to"]).arg(&to).args(target);
        restore().run().expect_code(5).expect_stderr("--allow-end");
        assert!(!to.exists());
        let allowed = plan().arg("--allow-end").run().success().json();
        assert_eq!(allowed["outcome"], "end_of_wal", "{allowed}");
        assert!(
            allowed["warnings"]
                .to_string()
                .contains("lies behind the archived WAL")
        );
        let dry = restore().args(["--allow-end", "--dry-run", "--json"]);
        assert_eq!(dry.run().success().json()["stop"], allowed["stop"]);
    }
    // The option means nothing where there is an end, and no other target has one.
    for wrong in [
        &["--allow-end"][..],
        &["--target-xid", "700", "--allow-end"],
    ] {
        site.pitr().arg("plan").args(wrong).run().expect_code(2);
    }
    // Without a target the end is meant; a backup that was complete later shows that the WAL goes beyond a time.
    site.pitr().arg("plan").run().success();
    backup(&site);
    let run = site
        .pitr()
        .args(["plan", "--json", "--target-time", &now])
        .run();
    assert_eq!(run.success().json()["outcome"], "end_of_wal");
    let run = site
        .pitr()
        .args(["restore", "--target-time", &now, "--to"])
        .arg(&to)
        .run();
    run.success();
    let mut copy = Cluster::open(15, &to).option("fsync", "off").create();
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.query_one_string("select count(*) from t"), "101");
}
