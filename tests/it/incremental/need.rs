//! `pitr backup --if-needed`: a job that runs every few minutes, and takes a backup when there is much to replay.

use crate::backup::committed;
use crate::common::{Cluster, PATIENCE, Program, Run, Running, Site, Stop, user};

/// A backup if one is needed, with keys of the cluster's section.
fn if_needed(site: &Site, keys: &[(&str, &str)]) -> Program {
    let program = site.pitr().words("backup --if-needed --json");
    keys.iter().fold(program, |program, (key, value)| {
        program.env(format!("PITR_CLUSTERS_MAIN_{key}"), value)
    })
}

fn reason(run: &Run) -> String {
    run.json()["reason"].as_str().unwrap().to_owned()
}

/// Requires that none was taken, for a reason.
fn not_taken(run: Run, part: &str) {
    let run = run.success();
    assert!(run.json()["id"].is_null(), "{run}");
    assert!(reason(&run).contains(part), "{run}");
}

/// Requires that one was taken, for a reason that stands in both outputs.
fn taken(run: Run, kind: &str, part: &str) {
    let run = run.success();
    assert_eq!(run.json()["kind"], kind, "{run}");
    let why = reason(&run);
    assert!(why.contains(part), "{run}");
    let line = format!("a backup is needed: {why}");
    assert!(run.stderr.contains(&line), "{run}");
}

/// Writes and archives so much WAL.
fn write_wal(cluster: &Cluster, mib: u32) {
    let message = "pg_logical_emit_message(true, 'pitr', repeat('x', 1048576))";
    cluster.sql(&format!(
        "select count({message}) from generate_series(1, {mib})"
    ));
    cluster.archive_now();
}

#[test]
fn a_backup_is_taken_when_recovery_would_replay_more_than_is_accepted() {
    let (site, cluster) = Site::with_cluster(17);
    if_needed(&site, &[])
        .exits(3)
        .expect_stdout("neither max_replay nor max_wal");
    if_needed(&site, &[("MAX_WAL", "1GiB")])
        .words("--wait 1m")
        .exits(2);
    assert!(committed(&site).is_empty());

    let wal = [("FULL_EVERY", "7d"), ("MAX_WAL", "1MiB")];
    let large = [("MAX_REPLAY", "10m"), ("MAX_WAL", "2GiB")];
    taken(
        if_needed(&site, &large).run(),
        "full",
        "nothing can be recovered",
    );
    // Little WAL asks for nothing, whatever the limit.
    write_wal(&cluster, 5);
    not_taken(if_needed(&site, &wal).run(), "less than 64.0 MiB");
    write_wal(&cluster, 70);
    not_taken(
        if_needed(&site, &large).run(),
        "max_replay is 10 min, max_wal is 2.0 GiB",
    );
    let text = site.pitr().words("backup --if-needed");
    let text = text.env("PITR_CLUSTERS_MAIN_MAX_WAL", "2GiB").run();
    text.success().expect_stdout("no backup is taken: recovery");
    taken(
        if_needed(&site, &wal).run(),
        "incremental",
        "max_wal is 1.0 MiB",
    );
    not_taken(if_needed(&site, &wal).run(), "less than 64.0 MiB");
    // By default 50 MiB of WAL are replayed in a second.
    write_wal(&cluster, 70);
    let time = [("MAX_REPLAY", "1s")];
    taken(if_needed(&site, &time).run(), "full", "max_replay is 1 s");
    assert_eq!(committed(&site).len(), 3);
}

/// A job every five minutes does not fail, and is counted nowhere, while a backup of an hour runs.
#[test]
fn while_another_backup_runs_none_is_taken_and_nothing_has_failed() {
    let (site, cluster) = Site::with_cluster(16);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 50000) g");
    site.keep_state();
    site.add("[audit]\nrecords = \"on\"\n");
    let limit = [("MAX_WAL", "1GiB")];
    let slow = ["--method", "local", "--max-rate", "1MiB", "--jobs", "1"];
    let slow = if_needed(&site, &limit).args(slow);
    let mut first = slow.timeout(10 * PATIENCE).spawn();
    first.until("the backup is claimed", || {
        site.files().iter().any(|name| name.contains("-claim-"))
    });
    let second = if_needed(&site, &limit).run();
    assert!(!first.is_done(), "{}", first.stderr());
    not_taken(second, "runs on host");
    first.wait().success();
    not_taken(if_needed(&site, &limit).run(), "less than 64.0 MiB");
    let metrics = site.pitr().arg("metrics").run().stdout;
    let value = |name: &str| {
        let mut lines = metrics.lines().filter(|l| l.starts_with(name));
        let of_full = lines.find(|l| l.contains("type=\"full\"") && !l.ends_with(" 0"));
        of_full.map(|line| line.rsplit(' ').next().unwrap().to_owned())
    };
    assert_eq!(value("backup_attempts_total{").as_deref(), Some("1"));
    assert_eq!(value("backup_failures_total{"), None);
    let log = site.pitr().words("audit list --json").run();
    let log = log.success().json();
    let records = log["records"].as_array().unwrap();
    let backups = records.iter().filter(|one| one["command"] == "backup");
    assert_eq!(backups.count(), 2, "begun and succeeded: {log}");
}

/// Several hosts have the same job. Who is late has not failed.
#[test]
fn of_jobs_that_begin_at_one_time_none_fails() {
    let (site, _cluster) = Site::with_cluster(14);
    let limit = [("MAX_WAL", "1GiB")];
    let start = |_| if_needed(&site, &limit).timeout(10 * PATIENCE).spawn();
    let running: Vec<Running> = (0..4).map(start).collect();
    let runs = running.into_iter().map(|one| one.wait().success());
    let taken = runs.filter(|run| !run.json()["id"].is_null()).count();
    assert_eq!(committed(&site).len(), taken);
    assert!(taken > 0);
}

/// A damaged page of the server comes with each backup. They must not be taken one after the other.
#[test]
fn a_server_with_damaged_pages_is_not_backed_up_every_few_minutes() {
    let (site, mut cluster) = Site::with_cluster(18);
    cluster.sql("create table d as select g as a from generate_series(1, 20000) g");
    cluster.sql("checkpoint");
    let path = cluster.value("select pg_relation_filepath('d')");
    cluster.stop(Stop::Fast);
    let file = cluster.pgdata().join(path);
    let mut content = std::fs::read(&file).unwrap();
    content[8192 + 5000] ^= 0x10;
    std::fs::write(&file, content).unwrap();
    user::own(&file);
    cluster.start();
    let limit = [("MAX_WAL", "1GiB")];
    let first = if_needed(&site, &limit).exits(10);
    assert_eq!(first.json()["damaged"], true, "{first}");
    not_taken(if_needed(&site, &limit).run(), "is damaged or partial");
    write_wal(&cluster, 70);
    not_taken(if_needed(&site, &limit).run(), "is damaged or partial");
    // More WAL than the limit is behind it: perhaps it was repaired.
    if_needed(&site, &[("MAX_WAL", "1MiB")]).exits(10);
}

/// Behind a hole in the WAL only a new backup leads to the end.
#[test]
fn a_hole_in_the_wal_needs_a_backup() {
    let (site, cluster) = Site::with_cluster(15);
    let limit = [("MAX_WAL", "1GiB")];
    taken(
        if_needed(&site, &limit).run(),
        "full",
        "nothing can be recovered",
    );
    cluster.archive_now();
    let gone = cluster.archive_now();
    cluster.archive_now();
    std::fs::remove_file(site.object(&gone)).unwrap();
    taken(
        if_needed(&site, &limit).run(),
        "full",
        "recovery gets to 0/",
    );
    not_taken(if_needed(&site, &limit).run(), "less than 64.0 MiB");
}

/// Readers take the life with the newest backup, which after initdb or pg_upgrade is the one that is over.
#[test]
fn b48_of_two_lives_under_one_name_that_of_the_server_counts() {
    let (site, mut former) = Site::with_cluster(17);
    let limit = [("MAX_WAL", "1GiB")];
    taken(
        if_needed(&site, &limit).run(),
        "full",
        "nothing can be recovered",
    );
    former.stop(Stop::Fast);
    let mut own = Cluster::small(17).own_identifier().create();
    site.attach(&own);
    own.start();
    let place = |cluster: &Cluster| cluster.pgdata().display().to_string();
    site.edit(&place(&former), &place(&own));
    site.connect_by(&own.conninfo("postgres"));
    // Nobody has said yet that this is meant.
    if_needed(&site, &limit)
        .exits(1)
        .expect_stdout("wrong_cluster");
    site.pitr().words("init --confirm").succeed();
    taken(
        if_needed(&site, &limit).run(),
        "full",
        "nothing can be recovered",
    );
    not_taken(if_needed(&site, &limit).run(), "less than 64.0 MiB");
}
