//! Incrementals over the replication protocol: every page passes, and only what differs from the prior is stored.

use std::collections::BTreeSet;

use super::kind::{every, is};
use super::{
    FULL, World, check_all, check_equal, check_if_there, committed, increment, load_while, take,
    truth,
};
use crate::backup::root;
use crate::common::{Cluster, PATIENCE, Run, Site, Stop, paths_below, user};
use crate::per_major;
use crate::restore::check_relations;
use pitr::repo::root::BackupKind;
use pitr::repo::root::cluster::Method;

const STREAM: [&str; 1] = ["--incremental"];

/// Takes a backup over the network that has to be an incremental one.
fn streamed(site: &Site) -> String {
    let run = take(site, &STREAM).success();
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    assert!(run.stderr.contains("every page is compared"), "{run}");
    run.id()
}

fn stored(run: &Run) -> u64 {
    run.json()["stored_bytes"].as_u64().unwrap()
}

fn a_chain_over_the_network_gives_what_a_full_backup_gives(major: u32) {
    let world = World::new(major, major.is_multiple_of(2));
    // A prior of the other way of reading serves as well, and so does this for that.
    let prior: &[&str] = if major == 15 { &FULL } else { &[] };
    let prior = take(&world.site, prior).success().id();
    world.churn(1);
    let first = streamed(&world.site);
    let at_first = world.truth();
    world.cluster.sql("select pg_create_restore_point('first')");
    let between = match major {
        15 => increment(&world.site),
        _ => first.clone(),
    };
    world.churn(2);
    world.cluster.archive_now();
    let second = streamed(&world.site);
    let full = take(&world.site, &[]).success().id();
    world.cluster.archive_now();
    let at_second = world.truth();

    let (taken, whole) = (root(&world.site, &second), root(&world.site, &full));
    assert_eq!(taken.head.backup_kind, BackupKind::Incremental);
    assert_eq!(taken.content.method, Method::Stream);
    assert_eq!(taken.head.prior.as_ref().unwrap().to_string(), between);
    assert_eq!(taken.content.whole_scan_time, Some(taken.head.start_time));
    assert!(taken.content.server_manifest.is_some());
    // Files of the prior that are gone are gone.
    assert_eq!(taken.head.file_count, whole.head.file_count);
    assert_eq!(taken.head.size_bytes, whole.head.size_bytes);
    assert!(taken.head.stored_bytes < whole.head.stored_bytes);
    let packs = taken.map.packs.iter();
    let ids: BTreeSet<String> = packs.map(|p| p.key.id.to_string()).collect();
    assert!(ids.contains(&prior) && ids.contains(&second), "{ids:?}");
    world.site.pitr().arg("verify").succeed();

    let mut copy = world.restored(&first, "first", &["--target-name", "first"]);
    assert_eq!(truth(&copy), at_first);
    check_relations(&copy);
    copy.stop(Stop::Fast);
    check_if_there(&copy);
    let last = world.restored(&second, "second", &[]);
    let again = world.restored(&full, "again", &[]);
    check_equal(&world, (last, again), true, &at_second);
}
per_major!(a_chain_over_the_network_gives_what_a_full_backup_gives, v13 v15 v17 v19);

fn under_load_what_is_streamed_is_brought_to_the_same_pages(major: u32) {
    let world = World::new(major, true);
    // A backup compares its last segment with the server's own, whatever the load has written by then.
    world.cluster.set("wal_keep_size", "1GB");
    world.cluster.sql("create table ledger (n int)");
    let under_load = |args: &[&str], seed| {
        let slow = ["--json", "--wal-wait", "10m", "--max-rate", "12MiB"];
        let backup = world.site.pitr().arg("backup").args(slow).args(args);
        let mut running = backup.timeout(20 * PATIENCE).spawn();
        load_while(&world, &mut running, seed);
        running.wait().success().id()
    };
    under_load(&[], 1);
    let first = under_load(&STREAM, 2);
    let second = under_load(&STREAM, 3);
    let full = under_load(&[], 4);
    check_all(&world, [&first, &second], &full);
}
per_major!(
    under_load_what_is_streamed_is_brought_to_the_same_pages,
    v16
);

/// Nothing changed but what every backup changes: next to nothing is stored.
#[test]
fn what_did_not_change_is_not_stored() {
    let (site, cluster) = Site::with_cluster(17);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 50000) g");
    // Else the update sets hint bits everywhere.
    cluster.sql("vacuum (freeze) t");
    cluster.sql("checkpoint");
    let full = take(&site, &[]).success();
    let second = take(&site, &STREAM).success();
    assert!(stored(&second) * 20 < stored(&full), "{full}\n{second}");
    // One page of many.
    cluster.sql("update t set b = 'x' where a = 1");
    let third = take(&site, &STREAM).success();
    assert!(stored(&third) * 10 < stored(&full), "{full}\n{third}");
    // A table grows, another is cut.
    cluster.sql("insert into t select g, 'y' from generate_series(50001, 60000) g");
    cluster.sql("create table short as select g as a from generate_series(1, 30000) g");
    take(&site, &STREAM).success();
    cluster.sql("delete from short where a > 100");
    cluster.sql("vacuum short");
    let last = take(&site, &STREAM).success().id();
    cluster.archive_now();
    site.pitr().arg("verify").succeed();
    let expected = truth(&cluster);
    let to = site.sandbox().dir("copy").join("data");
    let restore = site.pitr().args(["restore", "--backup", &last, "--to"]);
    restore.arg(&to).succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), expected);
}

#[test]
fn the_age_of_the_full_backup_decides_over_the_network_too() {
    let (site, cluster) = Site::with_cluster(16);
    cluster.sql("create table t as select g as a from generate_series(1, 20000) g");
    is(&every(&site, "7d", &[]), "full", Some("has no backup"));
    is(&every(&site, "7d", &[]), "incremental", Some("is younger"));
    is(&every(&site, "7d", &["--full"]), "full", None);
}

/// A user that may replicate and nothing else gets a full backup, with the reason.
#[test]
fn without_a_session_for_sql_a_full_backup_is_taken() {
    let builder = Cluster::small(15)
        .hba("local all postgres trust\nlocal all all reject\nlocal replication all trust\n");
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql("create role only_replicates login replication");
    take(&site, &[]).success();
    let conninfo = cluster.conninfo("postgres");
    let conninfo = conninfo.replace("user=postgres", "user=only_replicates");
    let run = site
        .pitr()
        .words("backup --json --incremental")
        .env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo)
        .succeed();
    let why = run.json()["kind_reason"].as_str().unwrap().to_owned();
    assert!(why.contains("session for SQL"), "{run}");
    assert_eq!(run.json()["kind"], "full", "{run}");
}

/// From a standby, upon a backup of the primary, and back again.
#[test]
fn primary_and_standby_take_turns_over_the_network() {
    let (site, primary) = Site::with_cluster(17);
    primary
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    let standby = primary.standby().option("archive_mode", "off").start();
    take(&site, &[]).success();
    primary.sql("update t set b = b || 'x' where a % 50 = 0");
    primary.archive_now();
    primary.sql("checkpoint");
    standby.wait_replayed(&primary.insert_lsn());
    standby.sql("checkpoint");
    let first = site
        .pitr()
        .words("backup --json --incremental")
        .env("PITR_CLUSTERS_MAIN_CONNINFO", standby.conninfo("postgres"))
        .succeed();
    assert_eq!(first.json()["kind"], "incremental", "{first}");
    assert_eq!(first.json()["from_standby"], true, "{first}");
    primary.sql("update t set b = b || 'y' where a % 51 = 0");
    let last = streamed(&site);
    primary.sql("insert into t values (-1, 'z')");
    primary.archive_now();
    site.pitr().arg("verify").succeed();
    for (n, id) in [first.id(), last].iter().enumerate() {
        site.sandbox().dir(format!("copy{n}"));
        let to = site.sandbox().join(format!("copy{n}/data"));
        let restore = site.pitr().args(["restore", "--backup", id, "--to"]);
        restore.arg(&to).succeed();
        let copy = Cluster::open(17, &to).without_fsync().promoted();
        assert_eq!(truth(&copy), truth(&primary), "{id}");
    }
}

/// A prior whose hashes cannot be read: its files are stored whole, once more, and nothing of it is needed.
#[test]
fn a_prior_that_is_damaged_is_not_believed() {
    let (site, cluster) = Site::with_cluster(14);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    take(&site, &[]).success();
    for pack in paths_below(&site.cluster_folder().join("packs")) {
        let mut bytes = std::fs::read(&pack).unwrap();
        // Page hashes stand before the directory, whose place the trailer tells; the checksum covers them.
        let trailer = bytes.len() - 64;
        let hashes: [u8; 8] = bytes[trailer..trailer + 8].try_into().unwrap();
        let at = usize::try_from(u64::from_le_bytes(hashes)).unwrap();
        bytes[at] ^= 0xFF;
        std::fs::remove_file(&pack).unwrap();
        std::fs::write(&pack, bytes).unwrap();
        user::own_all(&pack);
    }
    let run = take(&site, &STREAM).success();
    let run = run.expect_stderr("cannot be compared with the prior");
    let id = run.id();
    assert_eq!(committed(&site).len(), 2);
    cluster.archive_now();
    let expected = truth(&cluster);
    let to = site.sandbox().dir("copy").join("data");
    let restore = site.pitr().args(["restore", "--backup", &id, "--to"]);
    restore.arg(&to).succeed();
    let copy = Cluster::open(14, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), expected);
}
