//! Findings A9 to A15 and row L12: what plans, retention and checks say is kept.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{
    Cluster, Program, Run, Site, copy_all, fault, list_of, majors, paths_below, wait_until,
};
use crate::several::Two;
use crate::{per_major, require_strace};

/// Archives what was written, with a backup before it; returns its id.
fn a10_parameters_raised_after_the_backup_reach_the_copy(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    cluster.append_config("max_prepared_transactions", "7");
    cluster.sql("create table t (a int)");
    site.backup();
    cluster.alter_system("max_connections", "150");
    cluster.alter_system("max_locks_per_transaction", "160");
    cluster.restart();
    cluster.sql("insert into t select generate_series(1, 1000)");
    cluster.archive_now();

    let plan = site.pitr().words("plan --json").succeed().json();
    let settings = &plan["recovery_settings"];
    let of_all = [
        ("max_connections", "150"),
        ("max_worker_processes", "8"),
        ("max_wal_senders", "10"),
        // That of the backup's pg_control is 0; the server was started with the line that had come into its configuration meanwhile.
        ("max_prepared_transactions", "7"),
        ("max_locks_per_transaction", "160"),
    ];
    for (name, value) in of_all {
        assert_eq!(settings[name], value, "{plan}");
    }
    let text = site.pitr().arg("plan").succeed();
    assert!(text.stdout.contains("max_connections = '150'"), "{text}");

    let to = site.sandbox().join("copy");
    site.pitr().restore_to(&to).succeed();
    let auto = || std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    assert!(auto().contains("max_connections = '150'"), "{}", auto());
    // A larger value of the operator's own stays.
    let copy = Cluster::open(major, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from t"), "1000");
    assert_eq!(copy.value("show max_connections"), "150");
    assert!(!auto().contains("max_connections"), "{}", auto());
    assert!(!auto().contains("max_locks"), "{}", auto());
}

per_major!(a10_parameters_raised_after_the_backup_reach_the_copy, v13 v16 v19);

fn a10_parameters_of_pg_control_are_kept_where_the_configuration_has_less(major: u32) {
    let builder = Cluster::small(major);
    // On the command line, so that no backup has it.
    let (site, cluster) = Site::with_cluster_of(builder.option("max_connections", "160"));
    cluster.sql("create table t as select generate_series(1, 10) a");
    cluster.alter_system("max_wal_senders", "20");
    site.backup();
    let to = site.sandbox().join("copy");
    site.pitr().restore_to(&to).succeed();
    let copy = Cluster::open(major, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from t"), "10");
    assert_eq!(copy.value("show max_connections"), "160");
    // Not lowered to what the server had: the configuration that came along asks for more.
    assert_eq!(copy.value("show max_wal_senders"), "20");
    let auto = std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("max_connections"), "{auto}");
    // The operator's own line outlives the recovery.
    assert!(auto.contains("max_wal_senders = '20'"), "{auto}");
}

per_major!(a10_parameters_of_pg_control_are_kept_where_the_configuration_has_less, v14 v17 v19);

fn a10_a_standby_has_the_parameters_that_were_raised_after_its_backup(major: u32) {
    let builder = Cluster::small(major);
    // On the command line, so that no backup has it.
    let (site, mut cluster) = Site::with_cluster_of(builder.option("max_worker_processes", "12"));
    cluster.sql("create table t (a int)");
    site.backup();
    cluster.alter_system("max_connections", "150");
    cluster.restart();
    cluster.sql("insert into t select generate_series(1, 1000)");
    cluster.archive_now();

    let to = site.sandbox().join("standby");
    let standby = site.pitr().words("standby --to").arg(&to);
    let away = ["--primary-conninfo", "host=127.0.0.1 port=1"];
    let run = standby.args(away).succeed();
    run.expect_stderr("no server answers at primary_conninfo");
    let auto = std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    assert!(auto.contains("max_connections = '150'"), "{auto}");
    assert!(auto.contains("max_worker_processes = '12'"), "{auto}");
    // The configuration has as much of these.
    assert!(!auto.contains("max_wal_senders"), "{auto}");
    // 19 has another default than the others; there the line stands all the same.
    assert_eq!(
        auto.contains("max_locks_per_transaction"),
        major >= 19,
        "{auto}"
    );
    let copy = Cluster::open(major, &to).without_fsync().start();
    wait_until("the standby has replayed", || {
        copy.value("select count(*) from t") == "1000"
    });
}

per_major!(a10_a_standby_has_the_parameters_that_were_raised_after_its_backup, v13 v19);

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
    let first = site.backup();
    cluster.archive_now();
    let pack = pack_of(&site, &first);
    flip(&pack);
    // Nobody knows yet.
    site.pitr().arg("plan").succeed();
    site.pitr().arg("verify").exits(4);
    let plan = || site.pitr().words("plan --json").run();
    let refused = plan().expect_code(5).json();
    assert_eq!(refused["reachable"], false, "{refused}");
    assert_eq!(refused["reason"], "damaged_backup", "{refused}");
    let said = refused["explanation"].as_str().unwrap();
    assert!(
        said.contains(&format!("pitr verify --backup {first}")),
        "{said}"
    );
    let to = site.sandbox().join("copy");
    let restore = || site.pitr().restore_to(&to).run();
    restore().expect_code(5).expect_stderr(&first);
    assert!(!to.exists());
    // Another one that leads there is taken.
    let second = site.backup();
    assert_eq!(plan().success().json()["backup"]["id"], second.as_str());
    std::fs::remove_dir_all(site.cluster_folder().join("backups").join(&second)).unwrap();
    plan().expect_code(5);
    // A backup that is put right is found right.
    flip(&pack);
    site.pitr().args(["verify", "--backup", &first]).succeed();
    assert_eq!(plan().success().json()["backup"]["id"], first.as_str());
    restore().success();
}

#[test]
fn a12_a_target_behind_the_archived_wal_needs_allow_end() {
    let (site, cluster) = Site::with_cluster(15);
    cluster.sql("create table t as select generate_series(1, 100) a");
    site.backup();
    cluster.sql("insert into t values (101)");
    let now = cluster.value(
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    );
    cluster.archive_now();
    let to = site.sandbox().join("copy");
    for target in [
        ["--target-time", now.as_str()],
        ["--target-time", "2999-01-01T00:00:00Z"],
        ["--target-lsn", "FF/0"],
    ] {
        let plan = || site.pitr().words("plan --json").args(target);
        let run = plan().exits(5);
        let said = run.json()["explanation"].to_string();
        assert!(said.contains("--allow-end"), "{said}");
        let restore = || site.pitr().restore_to(&to).args(target);
        restore().exits(5).expect_stderr("--allow-end");
        assert!(!to.exists());
        let allowed = plan().arg("--allow-end").succeed().json();
        assert_eq!(allowed["outcome"], "end_of_wal", "{allowed}");
        assert!(
            allowed["warnings"]
                .to_string()
                .contains("lies beyond the archived WAL")
        );
        let dry = restore().words("--allow-end --dry-run --json");
        assert_eq!(dry.succeed().json()["stop"], allowed["stop"]);
    }
    // The option means nothing where there is an end, and no other target has one.
    for wrong in [
        &["--allow-end"][..],
        &["--target-xid", "700", "--allow-end"],
    ] {
        site.pitr().arg("plan").args(wrong).exits(2);
    }
    // Without a target the end is meant; a backup that was complete later shows that the WAL goes beyond a time.
    site.pitr().arg("plan").succeed();
    site.backup();
    let run = site
        .pitr()
        .args(["plan", "--json", "--target-time", &now])
        .run();
    assert_eq!(run.success().json()["outcome"], "end_of_wal");
    let run = site
        .pitr()
        .restore_to(&to)
        .args(["--target-time", &now])
        .run();
    run.success();
    let copy = Cluster::open(15, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from t"), "101");
}

/// A cluster with three backups and WAL between them, and their ids.
fn three_backups() -> (Site, Cluster, Vec<String>) {
    let (site, cluster) = Site::with_cluster(15);
    cluster.sql("create table t (a int, b text)");
    let mut ids = Vec::new();
    for _ in 0..3 {
        cluster.sql("insert into t select g, repeat('x', 200) from generate_series(1, 6000) g");
        cluster.archive_now();
        ids.push(site.backup());
    }
    cluster.archive_now();
    (site, cluster, ids)
}

/// `pitr expire` without a minimum age.
fn expire(site: &Site, keep: u32) -> Program {
    let program = site.pitr().words("expire --json --min-age 0s");
    program.words("--grace 0s --keep").arg(keep.to_string())
}

/// The objects below a part of the cluster's folder.
fn objects(site: &Site, part: &str) -> Vec<PathBuf> {
    paths_below(&site.cluster_folder().join(part))
}

fn lose_root(site: &Site, id: &str) -> PathBuf {
    let root = site
        .cluster_folder()
        .join("backups")
        .join(id)
        .join("manifest");
    let aside = site.sandbox().join(format!("aside-{id}"));
    std::fs::rename(root, &aside).unwrap();
    aside
}

fn segments(run: &Run) -> u64 {
    run.json()["clusters"][0]["segments"].as_u64().unwrap()
}

#[test]
fn a13_a_complete_backup_whose_root_is_gone_is_damage() {
    let (site, _cluster, ids) = three_backups();
    // WAL before the first backup belongs to no backup.
    expire(&site, 3).arg("--confirm").succeed();
    let all = || {
        (
            objects(&site, "packs"),
            objects(&site, "layers"),
            objects(&site, "wal"),
        )
    };
    let before = all();
    let would_go = segments(&expire(&site, 2).arg("--dry-run").succeed());
    assert!(would_go > 0, "the first backup has WAL of its own");
    let aside = lose_root(&site, &ids[0]);

    let run = site.pitr().words("verify --json").exits(4);
    let found = run.json()["clusters"][0].clone();
    assert_eq!(found["findings"][0]["kind"], "missing", "{run}");
    assert!(
        found["findings"][0]["object"].to_string().contains(&ids[0]),
        "{run}"
    );
    assert_eq!(found["finding_count"], 1, "{run}");
    let backups = found["backups"].as_array().unwrap();
    let restorable: Vec<bool> = backups.iter().map(|b| b["restorable"] == true).collect();
    assert_eq!(restorable, [true, true, false], "{run}");
    let only = site.pitr().args(["verify", "--backup", &ids[0]]).run();
    only.expect_code(4).expect_stdout("its root is not there");
    let info = site.pitr().words("info --json").exits(6);
    let lost = info.json()["clusters"][0]["lost_backups"].clone();
    assert_eq!(lost, serde_json::json!([ids[0]]), "{info}");
    let doctor = site.pitr().arg("doctor").exits(1);
    doctor
        .expect_stdout("lost backups")
        .expect_stdout("--give-up");
    let plan = site.pitr().args(["plan", "--backup", &ids[0]]).run();
    plan.expect_code(1).expect_stderr("its root is not there");

    // Expire keeps all that it would need, and says so.
    let run = expire(&site, 2).arg("--confirm").succeed();
    assert_eq!(segments(&run), 0, "{run}");
    assert!(
        run.json()["clusters"][0]["warnings"]
            .to_string()
            .contains("its root is lost")
    );
    assert_eq!(all(), before);
    // Put back, the backup is whole: nothing was deleted.
    let root = site
        .cluster_folder()
        .join("backups")
        .join(&ids[0])
        .join("manifest");
    std::fs::rename(&aside, &root).unwrap();
    site.pitr().arg("verify").succeed();
    site.pitr().arg("info").succeed();
    lose_root(&site, &ids[0]);

    // Given up, it is marked, and goes with the next run.
    let give_up = expire(&site, 2).args(["--give-up", &ids[0], "--confirm"]);
    let run = give_up.succeed();
    assert_eq!(
        run.json()["clusters"][0]["marks"][0],
        ids[0].as_str(),
        "{run}"
    );
    expire(&site, 2).arg("--confirm").succeed();
    let run = site.pitr().words("verify --json").succeed();
    assert_eq!(list_of(&run.json()["clusters"][0]["backups"]).len(), 2);
    assert!(!site.cluster_folder().join("packs").join(&ids[0]).exists());
    site.pitr().arg("info").succeed();
}

#[test]
fn a13_of_an_old_backup_without_a_root_a_warning_tells() {
    let (site, _cluster, ids) = three_backups();
    // As an older version wrote it.
    for event in objects(&site, &format!("events/{}", ids[0])) {
        if event.to_string_lossy().contains("-completed-") {
            std::fs::remove_file(event).unwrap();
        }
    }
    lose_root(&site, &ids[0]);
    let run = site.pitr().words("verify --json").succeed();
    let warnings = run.json()["clusters"][0]["warnings"].to_string();
    assert!(
        warnings.contains("is incomplete, or its root is lost"),
        "{run}"
    );
    assert!(warnings.contains(&ids[0]), "{run}");
    let run = expire(&site, 2).arg("--dry-run").succeed();
    let warnings = run.json()["clusters"][0]["warnings"].to_string();
    assert!(
        warnings.contains("is incomplete, or its root is lost"),
        "{run}"
    );
}

#[test]
fn a13_a_deletion_that_was_cut_short_is_no_damage() {
    require_strace!("a13_a_deletion_that_was_cut_short_is_no_damage");
    let (site, _cluster, ids) = three_backups();
    let root = site
        .cluster_folder()
        .join("backups")
        .join(&ids[0])
        .join("manifest");
    let mut cut = 0;
    for nth in 1..12 {
        let program = expire(&site, 2).arg("--confirm");
        let kill = fault::Fault::kill("unlink,unlinkat").at(nth);
        let (_, fired) = fault::inject(&program, &kill);
        if !root.exists() {
            cut += fired;
        }
        site.pitr().arg("verify").succeed();
        site.pitr().arg("info").succeed();
    }
    assert!(cut > 0, "no run was killed behind the deletion of the root");
    expire(&site, 2).arg("--confirm").succeed();
    assert!(!site.cluster_folder().join("packs").join(&ids[0]).exists());
}

/// The process that runs below strace.
fn traced(strace: u32) -> rustix::process::Pid {
    let children = std::fs::read_to_string(format!("/proc/{strace}/task/{strace}/children"));
    let child = children.unwrap().split_whitespace().next().unwrap().parse();
    rustix::process::Pid::from_raw(child.unwrap()).unwrap()
}

#[test]
fn a15_no_wal_is_deleted_that_a_sync_proves_meanwhile() {
    require_strace!("a15_no_wal_is_deleted_that_a_sync_proves_meanwhile");
    // The first has two older backups, the second their WAL and a newer backup.
    let two = Two::new();
    let first = two.first();
    for _ in 0..2 {
        two.work(6000);
        two.site
            .pitr()
            .args(["backup", "--repository", &first])
            .succeed();
    }
    two.cluster.archive_now();
    two.work(6000);
    two.site
        .pitr()
        .words("backup --repository second")
        .succeed();
    two.cluster.archive_now();
    // Expire stands still in the middle of its deletions.
    let expire = two
        .site
        .pitr()
        .words("expire --keep 1 --confirm --min-age 0s");
    let expire = expire.words("--grace 0s --repository second");
    let calls = "unlink,unlinkat";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "--trace", calls].map(str::to_owned);
    let mut strace = strace.to_vec();
    strace.push(format!("--inject={calls}:signal=SIGSTOP:when=2"));
    strace.push("--".into());
    let expire = expire.under(strace).spawn();
    let claims = || paths_below(&two.second.join("clusters"));
    wait_until("expire deletes", || {
        claims()
            .iter()
            .any(|p| p.to_string_lossy().contains("events/cluster/"))
    });
    let mut sync = two.site.pitr().words("repo sync --all --to second").spawn();
    wait_until("sync waits for expire", || {
        sync.is_done() || sync.stderr().contains("waiting until it has ended")
    });
    assert!(!sync.is_done(), "{}", sync.stderr());
    let stopped = || {
        let stat = std::fs::read_to_string(format!(
            "/proc/{}/stat",
            traced(expire.pid()).as_raw_nonzero()
        ));
        stat.is_ok_and(|s| s.contains(") t ") || s.contains(") T "))
    };
    wait_until("expire stands still", stopped);
    rustix::process::kill_process(traced(expire.pid()), rustix::process::Signal::CONT).unwrap();
    let run = expire.wait().success();
    assert!(run.stdout.contains("segments, "), "{run}");
    sync.wait().success();
    let run = two
        .site
        .pitr()
        .words("verify --json --repository second")
        .succeed();
    let backups = run.json()["clusters"][0]["backups"].clone();
    let restorable = |b: &Value| b["restorable"] == true;
    assert_eq!(backups.as_array().unwrap().len(), 3, "{run}");
    assert!(backups.as_array().unwrap().iter().all(restorable), "{run}");
    let left = claims()
        .into_iter()
        .filter(|p| p.to_string_lossy().contains("events/cluster/"));
    assert_eq!(left.count(), 0, "expire ends its claim");
}

#[test]
fn a9_l12_doctor_misses_what_the_server_says_is_archived() {
    let (site, cluster) = Site::with_cluster(15);
    cluster.sql("create table t (a int)");
    site.backup();
    for n in 0..3 {
        cluster.sql(&format!("insert into t values ({n})"));
        cluster.archive_now();
    }
    let well = site.pitr().arg("doctor").run();
    assert!(well.stdout.contains("as the server says"), "{well}");
    // Yesterday's copy of the repository.
    let older = site.sandbox().join("older");
    copy_all(site.repository(), &older);
    let mut lost = Vec::new();
    for n in 10..12 {
        cluster.sql(&format!("insert into t values ({n})"));
        lost.push(cluster.archive_now());
    }
    std::fs::remove_dir_all(site.repository()).unwrap();
    std::fs::rename(&older, site.repository()).unwrap();
    let doctor = || site.pitr().arg("doctor").run();
    let run = doctor().expect_code(1).expect_stdout("2 segments missing");
    let run = run.expect_stdout(&format!("the first {}", lost[0]));
    let wal = cluster.pgdata().join("pg_wal");
    let command = format!("pitr wal backfill --from {}", wal.display());
    assert!(run.stdout.contains(&command), "{run}");
    // Archiving goes on behind the hole, and hides nothing.
    cluster.sql("insert into t values (20)");
    cluster.archive_now();
    doctor().expect_code(1).expect_stdout("2 segments missing");
    site.pitr().words("wal gaps").exits(4);
    site.pitr().words("wal backfill --from").arg(&wal).succeed();
    let run = doctor();
    assert!(run.stdout.contains("as the server says"), "{run}");
    let plan = site.pitr().words("plan --json").succeed().json();
    assert_eq!(plan["outcome"], "end_of_wal", "{plan}");
}

#[test]
fn a11_expire_waits_for_a_newer_backup_that_was_verified() {
    let (site, _cluster, ids) = three_backups();
    let expire = |age: &str| {
        let program = site.pitr().words("expire --json --keep 1 --grace 0s");
        program.args(["--confirm", "--min-age", age]).succeed()
    };
    let waiting = |run: &Run| run.json()["clusters"][0]["waiting"].to_string();
    // By default a day.
    let plain = site.pitr().words("expire --json --keep 1 --confirm").run();
    assert!(waiting(&plain.success()).contains("24 hours old"));
    let run = expire("24h");
    assert!(waiting(&run).contains("pitr verify"), "{run}");
    assert_eq!(
        run.json()["clusters"][0]["marks"],
        serde_json::json!([]),
        "{run}"
    );
    // Old enough, but not verified.
    assert!(waiting(&expire("1s")).contains("pitr verify"));
    site.pitr().arg("verify").succeed();
    let verified = || {
        let events = objects(&site, "events");
        events
            .iter()
            .filter(|e| e.to_string_lossy().contains("-verified-"))
            .count()
    };
    assert_eq!(verified(), 3);
    site.pitr().arg("verify").succeed();
    assert_eq!(verified(), 3, "it is recorded once");
    let run = expire("24h");
    assert!(waiting(&run).contains("the next one is at"), "{run}");
    assert!(
        site.cluster_folder()
            .join("backups")
            .join(&ids[0])
            .join("manifest")
            .exists()
    );
    wait_until("the newest is a second old", || {
        expire("1s").json()["clusters"][0]["waiting"].is_null()
    });
    for id in &ids[..2] {
        assert!(!site.cluster_folder().join("packs").join(id).exists());
    }
}

#[test]
fn a14_a_lost_registration_is_damage_and_everything_stays_readable() {
    let (site, cluster, ids) = three_backups();
    let registration = site.cluster_folder().join("cluster.json");
    std::fs::remove_file(&registration).unwrap();
    let run = site.pitr().words("verify --json").exits(4);
    let finding = run.json()["clusters"][0]["findings"][0].clone();
    assert_eq!(finding["kind"], "missing", "{run}");
    assert!(finding["detail"].to_string().contains("pitr init"), "{run}");
    let info = site.pitr().words("info --json").exits(1);
    let shown = info.json()["clusters"][0].clone();
    assert_eq!(shown["backups"].as_array().unwrap().len(), 3, "{info}");
    assert!(
        shown["problems"].to_string().contains("pitr init"),
        "{info}"
    );
    site.pitr()
        .arg("doctor")
        .exits(1)
        .expect_stdout("pitr init");
    // Reading goes on, up to a server that runs.
    let plan = site.pitr().words("plan --json").succeed().json();
    assert_eq!(plan["backup"]["id"], ids[2].as_str(), "{plan}");
    let to = site.sandbox().join("copy");
    site.pitr().restore_to(&to).succeed();
    let copy = Cluster::open(15, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from t"), "18000");
    // Nothing is written before it is registered again.
    site.pitr()
        .arg("backup")
        .run()
        .expect_stderr("is missing, although the repository holds the cluster");
    site.pitr().words("init --quiet").succeed();
    assert!(registration.exists());
    site.pitr().arg("verify").succeed();
    site.pitr().arg("backup").succeed();
    drop(cluster);
}

#[test]
fn a_dry_run_shows_exactly_the_settings_that_are_written() {
    let major = *majors().last().unwrap();
    let (site, cluster) = Site::with_cluster(major);
    cluster.alter_system("archive_cleanup_command", "/bin/false");
    cluster.alter_system("recovery_min_apply_delay", "1h");
    cluster.sql("create table t (a int)");
    site.backup();
    cluster.sql("insert into t values (1)");
    cluster.sql("select pg_create_restore_point('it''s here')");
    let xid = cluster
        .value("with i as (insert into t values (2) returning 1) select txid_current() from i");
    let lsn = cluster.value("select pg_current_wal_insert_lsn()");
    cluster.archive_now();
    let brought = std::fs::read_to_string(cluster.pgdata().join("postgresql.auto.conf")).unwrap();
    for (n, options) in [
        &[][..],
        &["--target-immediate", "--target-action", "shutdown"],
        &["--target-name", "it's here", "--target-action", "pause"],
        &["--target-xid", &xid, "--exclusive"],
        &["--target-lsn", &lsn, "--allow-end"],
        &["--adopt", "--confirm"],
    ]
    .into_iter()
    .enumerate()
    {
        let to = site.sandbox().join(format!("copy-{n}"));
        let restore = || site.pitr().restore_to(&to).args(options);
        let dry = restore().arg("--dry-run").succeed();
        let json = restore().words("--dry-run --json").succeed();
        restore().succeed();
        let text = std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
        let written = text.strip_prefix(brought.as_str()).unwrap();
        let lines = written.lines().filter(|line| !line.starts_with('#'));
        let mut lines: Vec<&str> = lines.collect();
        lines.sort_unstable();
        let shown = dry.stdout.lines();
        let shown = shown.filter_map(|line| line.strip_prefix("setting "));
        let shown: Vec<&str> = shown.map(str::trim_start).collect();
        assert_eq!(shown, lines, "{options:?}\n{dry}");
        let settings = json.json()["recovery_settings"].clone();
        let names = settings.as_object().unwrap().keys();
        let in_json: Vec<&String> = names.collect();
        let in_file: Vec<&str> = lines
            .iter()
            .map(|l| l.split(" = ").next().unwrap())
            .collect();
        assert_eq!(in_json, in_file, "{options:?}");
    }
}
