//! One backup of a cluster at a time: the second one is refused by name, or waits.

use std::time::Duration;

use pitr::pg::lsn::Lsn;
use rustix::process::Signal;

use crate::backup::{committed, root};
use crate::common::{Cluster, PATIENCE, Program, Running, Site, pitr, pitr_archive, wait_until};

/// The ids that are claimed, each as often as it is.
fn claimed(site: &Site) -> Vec<String> {
    let files = site.files();
    let id_of = |file: &String| {
        let (folder, name) = file.rsplit_once('/')?;
        let id = folder.rsplit('/').next()?;
        (name.contains("-claim-") && id.ends_with("-full")).then(|| id.to_owned())
    };
    files.iter().filter_map(id_of).collect()
}

/// A backup that takes a while, and reads files by now.
fn slow(site: &Site, rate: &str, program: Program) -> (Running, String) {
    let before = claimed(site);
    // The second claim says from where on it needs WAL.
    let new = || {
        let all = claimed(site);
        all.into_iter().filter(|id| !before.contains(id)).nth(1)
    };
    let slow = ["--method", "local", "--max-rate", rate, "--jobs", "1"];
    let mut running = program.args(slow).timeout(10 * PATIENCE).spawn();
    running.until("the backup is claimed", || new().is_some());
    (running, new().unwrap())
}

fn backup(site: &Site) -> Program {
    site.pitr().words("backup --json")
}

/// From the start LSN to the stop LSN.
fn interval(site: &Site, id: &str) -> (Lsn, Lsn) {
    let content = root(site, id).content;
    (content.start_lsn, content.stop_lsn)
}

fn check_one_after_the_other(site: &Site, mut ids: Vec<String>) {
    ids.sort_by_key(|id| interval(site, id));
    for pair in ids.windows(2) {
        let ((_, stop), (start, _)) = (interval(site, &pair[0]), interval(site, &pair[1]));
        assert!(stop <= start, "{pair:?}: {stop} {start}");
    }
}

#[test]
fn b09_a_second_backup_is_refused_by_name_or_waits() {
    let (site, cluster) = Site::with_cluster(17);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 50000) g");
    let (mut running, first) = slow(&site, "2MiB", backup(&site));
    let refused = backup(&site).exits(7);
    let text = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(text.contains(&format!("\"{first}\"")), "{refused}");
    refused
        .expect_stdout("runs on host")
        .expect_stdout(&format!("repo claims --release {first} --confirm"));
    let short = backup(&site).words("--wait 1s").run();
    short.expect_code(7).expect_stdout("still runs");
    assert!(!running.is_done(), "{}", running.stderr());
    assert!(committed(&site).is_empty());

    let waits = backup(&site).words("--wait 5m --incremental --method local");
    let second = waits.timeout(10 * PATIENCE).succeed();
    assert!(second.stderr.contains(&format!("\"{first}\"")), "{second}");
    assert!(second.stderr.contains("waiting for its end"), "{second}");
    assert_eq!(second.json()["prior"], first.as_str(), "{second}");
    assert_eq!(running.wait().success().id(), first);
    check_one_after_the_other(&site, vec![first, second.id()]);
    // Nobody runs any more.
    backup(&site).succeed();
}

/// Those that begin at one moment find each other.
#[test]
fn backups_that_begin_at_one_time_run_one_after_the_other() {
    let (site, _cluster) = Site::with_cluster(16);
    for _ in 0..3 {
        let start = |_| {
            let backup = backup(&site).words("--method local --wait 5m");
            backup.timeout(10 * PATIENCE).spawn()
        };
        let running: Vec<Running> = (0..3).map(start).collect();
        let ended = running.into_iter().map(|one| one.wait().success().id());
        let ids: Vec<String> = ended.collect();
        check_one_after_the_other(&site, ids);
    }
}

/// Killed, it holds up no other on its host, at once.
#[test]
fn b09_a_backup_that_was_killed_holds_up_no_other() {
    let (site, _cluster) = Site::with_cluster(15);
    let (running, first) = slow(&site, "64KiB", backup(&site));
    backup(&site).exits(7);
    running.ended_by(Signal::KILL);
    let next = backup(&site).succeed();
    assert_eq!(committed(&site), [next.id()]);
    assert_ne!(next.id(), first);
    // One that was interrupted has released its claim.
    let (running, _) = slow(&site, "64KiB", backup(&site));
    running.ended_by(Signal::INT);
    backup(&site).succeed();
}

/// A claim that a person ends holds up nobody.
#[test]
fn a_claim_that_was_released_holds_up_no_other() {
    let (site, _cluster) = Site::with_cluster(14);
    let (running, first) = slow(&site, "64KiB", backup(&site));
    backup(&site).exits(7);
    let release = ["repo", "claims", "--release", &first, "--confirm"];
    site.pitr().args(release).succeed();
    backup(&site).succeed();
    running.ended_by(Signal::KILL);
}

/// Two clusters in one repository.
#[test]
fn backups_of_two_clusters_do_not_hold_each_other_up() {
    let (site, _cluster) = Site::with_cluster(16);
    let mut other = Cluster::small(16).own_identifier().create();
    let config = site.sandbox().join("other.toml");
    let init = pitr().words("init --quiet --cluster other --pgdata");
    let init = init
        .arg(other.pgdata())
        .args(["--conninfo", &other.conninfo("postgres")]);
    let init = init.arg("--config").arg(&config).arg("--repository");
    init.arg(site.repository()).succeed();
    let archive = pitr_archive().arg("--config").arg(&config).arg("%p");
    other.append_config("archive_mode", "on");
    other.append_config("archive_command", &archive.shell());
    other.start();
    let (mut running, _) = slow(&site, "1MiB", backup(&site));
    let of_other = pitr().arg("--config").arg(&config).words("backup --json");
    let run = of_other.succeed();
    assert_eq!(run.json()["cluster"], "other", "{run}");
    assert!(!running.is_done(), "{}", running.stderr());
    running.ended_by(Signal::TERM);
}

/// The primary and its standby are one cluster, on whatever host its backups are taken.
#[test]
fn a_backup_of_the_standby_waits_for_that_of_the_primary() {
    let (site, primary) = Site::with_cluster(18);
    let standby = primary.standby().option("archive_mode", "off").start();
    let of_standby = || {
        backup(&site)
            .env("PITR_CLUSTERS_MAIN_CONNINFO", standby.conninfo("postgres"))
            .env("PITR_CLUSTERS_MAIN_PGDATA", standby.pgdata())
    };
    let (running, first) = slow(&site, "2MiB", backup(&site));
    of_standby().exits(7).expect_stdout(&first);
    let waits = of_standby()
        .words("--method local --wait 5m")
        .timeout(10 * PATIENCE);
    let mut second = waits.spawn();
    wait_until("it waits", || second.stderr().contains("waiting"));
    running.wait().success();
    // Its checkpoint is replayed, and its last segment archived, while the primary writes.
    let client = primary.client();
    while !second.is_done() {
        client.sql("select pg_switch_wal()");
        client.sql("checkpoint");
        std::thread::sleep(Duration::from_millis(300));
    }
    let second = second.wait().success();
    assert_eq!(second.json()["from_standby"], true, "{second}");

    let (running, first) = slow(&site, "4MiB", of_standby());
    backup(&site).exits(7).expect_stdout(&first);
    running.ended_by(Signal::TERM);
    backup(&site).succeed();
}
