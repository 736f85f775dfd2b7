//! A backup proves that the WAL it needs is its own server's: rows L03 and L04, finding A1. A receiver proves that it goes on with the server
//! that it had: row L05, finding A4.
//!
//! Two lives of one cluster have system identifier, timeline and LSNs in common: a clone of a stopped data directory, and a machine
//! whose data directory is put back from a copy.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pitr::backup::live::LiveServer;
use pitr::backup::source::{Source as _, WantedWal};
use pitr::pg::lsn::{Lsn, LsnRange};
use pitr::pg::segment::SegmentNumber;
use pitr::progress::Silent;
use pitr::wire::conninfo::{ConnInfo, Environment};

use crate::backup::{backup, committed};
use crate::common::proxy::Proxy;
use crate::common::{Cluster, Program, Run, Site, Stop, copy_tree, keep_one, user};
use crate::per_major;

/// `pitr backup` of any server, which waits for WAL longer than a test may last.
fn backup_of(site: &Site, cluster: &Cluster) -> Program {
    backup(site)
        .words("--wal-wait 5h")
        .env("PITR_CLUSTERS_MAIN_CONNINFO", cluster.conninfo("postgres"))
}

/// A copy of a cluster that is not running.
fn copy_of(cluster: &Cluster, name: &str) -> PathBuf {
    let copy = cluster.sandbox().join(name);
    copy_tree(cluster.pgdata(), &copy);
    user::own_all(&copy);
    copy
}

/// A stopped cluster that archives, with a table of 1000 rows.
fn stopped(major: u32) -> (Site, Cluster) {
    let (site, mut cluster) = Site::with_cluster(major);
    cluster
        .sql("create table t as select g as a, 'origin' as life from generate_series(1, 1000) g");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    (site, cluster)
}

/// Writes rows of a life into so many segments, which are archived.
fn live(cluster: &Cluster, life: &str, segments: usize) {
    for _ in 0..segments {
        cluster.sql(&format!("update t set life = '{life}' where a % 3 = 0"));
        cluster.archive_now();
    }
}

/// No root, and the words that help.
fn is_refused(site: &Site, run: Run, before: &[String]) {
    let run = run.expect_code(1);
    assert_eq!(run.json()["code"], "conflict", "{run}");
    assert!(run.stdout.contains("another server"), "{run}");
    assert!(run.stdout.contains("pitr wal conflicts"), "{run}");
    assert_eq!(committed(site), before, "{run}");
}

fn l03_a_clone_s_wal_completes_no_backup(major: u32) {
    let (site, mut cluster) = stopped(major);
    let copy = copy_of(&cluster, "clone");
    let clone = Cluster::open(major, &copy).without_fsync().start();
    live(&clone, "clone", 4);
    backup_of(&site, &clone).succeed();
    live(&clone, "clone", 2);
    let before = committed(&site);
    cluster.start();
    cluster.sql("update t set life = 'production' where a % 7 = 0");
    is_refused(&site, backup_of(&site, &cluster).run(), &before);
    // The clone goes on as before: what is stored is its own.
    backup_of(&site, &clone).succeed();
    site.pitr().arg("verify").succeed();
}
per_major!(l03_a_clone_s_wal_completes_no_backup, v13 v17 v19);

fn l04_a_reverted_machine_does_not_complete_a_backup_with_the_wal_of_before(major: u32) {
    let (site, mut cluster) = stopped(major);
    let copy = copy_of(&cluster, "snapshot");
    cluster.start();
    live(&cluster, "before", 3);
    backup_of(&site, &cluster).succeed();
    live(&cluster, "before", 3);
    cluster.stop(Stop::Fast);
    let before = committed(&site);
    std::fs::rename(cluster.pgdata(), cluster.sandbox().join("away")).unwrap();
    std::fs::rename(&copy, cluster.pgdata()).unwrap();
    cluster.start();
    cluster.sql("update t set life = 'after' where a % 7 = 0");
    is_refused(&site, backup_of(&site, &cluster).run(), &before);
    site.pitr().arg("verify").succeed();
}
per_major!(l04_a_reverted_machine_does_not_complete_a_backup_with_the_wal_of_before, v14 v16 v19);

/// The raw bytes of a segment in the server's own pg_wal.
fn own(cluster: &Cluster, name: &str) -> Vec<u8> {
    std::fs::read(cluster.pgdata().join("pg_wal").join(name)).unwrap()
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn json_of(site: &Site, id: &str) -> serde_json::Value {
    let root = crate::backup::root(site, id);
    serde_json::to_value(root.content.wal_proof).unwrap()
}

fn a1_a_root_says_what_was_proven(major: u32) {
    let builder = Cluster::small(major).config("wal_keep_size", "512MB");
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql(
        "create table t as select g as a, repeat('x', 100) as b from generate_series(1, 5000) g",
    );
    // Nothing is written meanwhile: it starts and stops in one segment.
    let run = backup_of(&site, &cluster).succeed();
    let quiet = json_of(&site, &run.id());
    let name = quiet["last"]["name"].as_str().unwrap();
    let bytes = own(&cluster, name);
    let length = quiet["last"]["length_bytes"].as_u64().unwrap() as usize;
    assert_eq!(quiet["first"]["name"], name);
    assert_eq!(quiet["first"]["hash"], serde_json::Value::Null);
    assert_eq!(quiet["last"]["hash"], hash(&bytes[..length]).as_str());
    assert_eq!(quiet["last"]["segment_hash"], hash(&bytes).as_str());
    assert_eq!(quiet["checkpoint"]["crc"].as_str().unwrap().len(), 8);

    // Segments pass while it copies.
    let running = backup_of(&site, &cluster).words("--max-rate 8MiB").spawn();
    let copying = "select count(*) > 0 from pg_stat_progress_basebackup where phase = 'streaming database files'";
    crate::common::wait_until("the backup copies", || cluster.value(copying) == "t");
    for _ in 0..3 {
        cluster.sql("update t set b = b || 'y'");
        cluster.switch_wal();
    }
    let run = running.wait().success();
    let id = run.id();
    let busy = json_of(&site, &id);
    let (first, last) = (&busy["first"], &busy["last"]);
    assert_ne!(first["name"], last["name"]);
    let bytes = own(&cluster, first["name"].as_str().unwrap());
    assert_eq!(first["hash"], hash(&bytes).as_str());
    let root = crate::backup::root(&site, &id);
    assert_eq!(
        busy["checkpoint"]["lsn"],
        root.content.checkpoint_lsn.to_string()
    );
    assert!(!run.stderr.contains("once more"), "{run}");
    // No slot is left.
    assert_eq!(
        cluster.value("select count(*) from pg_replication_slots"),
        "0"
    );
}
per_major!(a1_a_root_says_what_was_proven);

/// Proven WAL is proven for ever: every command sees WAL of a clone that takes the place of the backup's own.
#[test]
fn a1_wal_that_is_exchanged_behind_a_backup_is_seen() {
    let (site, mut cluster) = stopped(17);
    let copy = copy_of(&cluster, "clone");
    cluster.start();
    live(&cluster, "production", 1);
    let run = backup_of(&site, &cluster).succeed();
    let proof = json_of(&site, &run.id());
    let last = proof["last"]["name"].as_str().unwrap().to_owned();
    live(&cluster, "production", 2);
    site.pitr().arg("verify").succeed();
    let (other, clone) = Site::with_cluster_of(Cluster::open(17, &copy).without_fsync());
    while clone.archive_now() < last {
        live(&clone, "clone", 1);
    }
    let own = std::fs::read(site.object(&last)).unwrap();
    let foreign = std::fs::read(other.object(&last)).unwrap();
    std::fs::write(site.object(&last), foreign).unwrap();
    let words = format!("segment \"{last}\" in the repository is another server's");
    let told = |run: Run| {
        let plain = run.stdout.replace('\\', "");
        assert!(plain.contains(&words), "{run}");
    };
    told(site.pitr().words("verify --json").exits(4));
    told(site.pitr().words("info --json").run());
    let expire = site.pitr().args(keep_one(&["--dry-run", "--json"]));
    told(expire.run());
    let plan = site.pitr().words("plan --json").exits(5);
    assert_eq!(plan.json()["reason"], "backup_wal_foreign", "{plan}");
    std::fs::write(site.object(&last), own).unwrap();
    site.pitr().arg("verify").succeed();
}

/// The server has no connection to spare: the backup asks for the segments that it still has once it has ended.
#[test]
fn a1_without_a_second_connection_the_first_segment_is_asked_for_in_the_end() {
    let builder = Cluster::small(15)
        .config("max_wal_senders", 1)
        .config("wal_keep_size", "512MB");
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql("create table t as select g as a from generate_series(1, 5000) g");
    let take = || {
        let running = backup_of(&site, &cluster).words("--max-rate 8MiB").spawn();
        let copying = "select count(*) > 0 from pg_stat_progress_basebackup where phase = 'streaming database files'";
        crate::common::wait_until("the backup copies", || cluster.value(copying) == "t");
        for _ in 0..3 {
            cluster.sql("update t set a = a + 1");
            // A checkpoint removes only what is archived.
            cluster.archive_now();
            cluster.sql("checkpoint");
        }
        running.wait()
    };
    let run = take()
        .success()
        .expect_stderr("is asked for once more")
        .expect_stderr("max_wal_senders");
    let proof = json_of(&site, &run.id());
    assert!(proof["first"]["hash"].is_string(), "{proof:#}");

    // Once the server has removed it there is nothing to compare with.
    cluster.alter_system("wal_keep_size", "0");
    cluster.alter_system("max_wal_size", "2MB");
    cluster.set("min_wal_size", "2MB");
    let before = committed(&site);
    let run = take().expect_code(8);
    assert!(run.stdout.contains("max_wal_senders"), "{run}");
    assert!(run.stdout.contains("the server has removed"), "{run}");
    assert_eq!(committed(&site), before);
}

/// Returns the position from which a slot keeps WAL, and the files of the repository and the journal.
fn untouched(site: &Site, cluster: &Cluster) -> (String, Vec<String>) {
    let slot = "select restart_lsn::text from pg_replication_slots where slot_name = 'pitr'";
    (cluster.value(slot), site.files())
}

/// The receiver has WAL up to the middle of a segment; the server comes back from a snapshot, and is past that position.
fn l05_a4_a_receiver_notices_a_reverted_machine_before_it_acknowledges(major: u32) {
    let mut cluster = Cluster::small(major).start();
    let site = Site::new(&cluster);
    let journal = site.sandbox().join("journal");
    let conninfo = cluster.conninfo("postgres");
    crate::common::reception::configure(&site, &conninfo, &journal);
    let receive_until = |cluster: &Cluster| {
        let lsn = cluster.value("select pg_current_wal_flush_lsn()");
        let program = site.pitr().words("receive --create-slot --until-lsn");
        program.arg(&lsn).run()
    };
    cluster
        .sql("create table t as select g as a, 'origin' as life from generate_series(1, 1000) g");
    receive_until(&cluster).success();
    cluster.stop(Stop::Fast);
    let copy = copy_of(&cluster, "snapshot");
    cluster.start();
    cluster.sql("update t set life = 'before' where a < 100");
    receive_until(&cluster).success();
    let reached = cluster.insert_lsn();
    cluster.stop(Stop::Immediate);

    std::fs::rename(cluster.pgdata(), cluster.sandbox().join("away")).unwrap();
    std::fs::rename(&copy, cluster.pgdata()).unwrap();
    cluster.start();
    cluster.sql("update t set life = 'after' where a > 100");
    let is_past = format!("select pg_current_wal_flush_lsn() > '{reached}'");
    assert_eq!(cluster.value(&is_past), "t");
    let before = untouched(&site, &cluster);
    receive_until(&cluster)
        .expect_code(8)
        .expect_stderr("server has other WAL than was received")
        .expect_stderr("set back to a snapshot");
    assert_eq!(untouched(&site, &cluster), before);
}
per_major!(l05_a4_a_receiver_notices_a_reverted_machine_before_it_acknowledges, v13 v15 v19);

/// The first of two hosts is away when the backup connects, and is back when the WAL beside the backup is asked for.
#[test]
fn a1_a_backup_asks_no_other_host_for_its_wal() {
    let cluster = Cluster::builder(17).without_fsync().start();
    let (first, second) = (Proxy::to(cluster.port()), Proxy::to(cluster.port()));
    first.refuse(true);
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres sslmode=disable",
        first.port(),
        second.port()
    );
    let info = ConnInfo::resolve(&conninfo, &Environment::default()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut server = LiveServer::connect(&info, Arc::new(Silent), Arc::clone(&stop)).unwrap();
    // Nor is the connection for SQL one to another server.
    assert_eq!(
        (first.counts().refused, second.counts().connections),
        (1, 2)
    );
    first.refuse(false);
    let facts = server.facts().unwrap();
    cluster.sql("create table t as select generate_series(1, 10000)");
    let end: Lsn = cluster
        .value("select pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    let segment = SegmentNumber::of(end, facts.segment_size);
    let start = segment.start_lsn(facts.segment_size);
    let what = WantedWal {
        timeline: facts.timeline,
        range: LsnRange { start, end },
        limit: None,
    };
    let mut bytes = 0;
    let mut count = |piece: &[u8]| {
        bytes += piece.len() as u64;
        Ok(())
    };
    server.beside(stop).stream_wal(&what, &mut count).unwrap();
    assert_eq!(bytes, end.0 - start.0);
    assert_eq!(
        (first.counts().connections, second.counts().connections),
        (0, 3)
    );
}

/// A server that writes much more WAL than it keeps, while a backup that has stopped still writes its map.
struct Rush {
    site: Site,
    cluster: Cluster,
}

impl Rush {
    fn new(major: u32, slots: u32) -> Rush {
        let builder = Cluster::small(major)
            .config("max_replication_slots", slots)
            .config("max_wal_size", "2MB")
            .config("min_wal_size", "2MB");
        let (site, cluster) = Site::with_cluster_of(builder);
        cluster.sql("create table t as select g as a from generate_series(1, 5000) g");
        Rush { site, cluster }
    }

    fn pass(&self, segments: usize) {
        for _ in 0..segments {
            self.cluster.sql("update t set a = a + 1");
            // A checkpoint removes only what is archived.
            self.cluster.archive_now();
            self.cluster.sql("checkpoint");
        }
    }

    /// Takes a backup in which WAL passes for long after the stop. Returns how many slots there were then.
    fn take(&self, arguments: &[&str], during: impl FnOnce()) -> (String, Run) {
        let mark = self.site.sandbox().join("paused");
        let running = backup_of(&self.site, &self.cluster)
            .args(arguments)
            .env("PITR_FAULT_SECONDS", "1")
            .env(
                "PITR_FAULT_PAUSE",
                format!("backup-stopped={}", mark.display()),
            )
            .spawn();
        during();
        crate::common::wait_until("the backup stopped", || mark.exists());
        self.pass(6);
        let slots = "select count(*) from pg_replication_slots where slot_name like 'pitr_last%'";
        let slots = self.cluster.value(slots);
        std::fs::remove_file(&mark).unwrap();
        let run = running.wait();
        let all = "select count(*) from pg_replication_slots";
        assert_eq!(self.cluster.value(all), "0", "{run}");
        (slots, run)
    }
}

fn b24_the_server_keeps_the_last_segment_until_it_was_compared(major: u32) {
    let rush = Rush::new(major, 10);
    let (slots, run) = rush.take(&["--method", "local"], || {});
    run.success();
    assert_eq!(slots, "1");

    // The slot of a stream follows it: less is kept than the stream takes.
    let (slots, run) = rush.take(&["--max-rate", "4MiB"], || {
        let kept = "select count(*) from pg_replication_slots where slot_name like 'pitr_last%' and active";
        crate::common::wait_until("a slot", || {
            rush.cluster.value(kept) == "1"
        });
        let from = "select min(restart_lsn) from pg_replication_slots where slot_name like 'pitr_last%'";
        let first = rush.cluster.value(from);
        rush.pass(2);
        let is_later = format!("select ({from}) > '{first}'");
        crate::common::wait_until("a later slot", || {
            rush.cluster.value(&is_later) == "t"
        });
    });
    run.success();
    assert_eq!(slots, "1");
    rush.site.pitr().arg("verify").succeed();
}
per_major!(b24_the_server_keeps_the_last_segment_until_it_was_compared);

/// The server has no slot to spare.
#[test]
fn b24_a_last_segment_that_the_server_has_removed_proves_no_backup() {
    let rush = Rush::new(17, 0);
    let before = committed(&rush.site);
    let (slots, run) = rush.take(&["--method", "local"], || {});
    assert_eq!(slots, "0");
    let run = run.expect_code(8);
    assert!(run.stdout.contains("the server has removed"), "{run}");
    assert!(run.stdout.contains("wal_keep_size"), "{run}");
    assert_eq!(committed(&rush.site), before);
}

fn b24_a_standby_keeps_the_last_segment_until_it_was_compared(major: u32) {
    let rush = Rush::new(major, 10);
    let standby = Cluster::builder(major)
        .standby_of(&rush.cluster)
        .config("max_wal_size", "2MB")
        .start();
    let mark = rush.site.sandbox().join("paused");
    let running = backup_of(&rush.site, &standby)
        .words("--max-rate 4MiB")
        .env(
            "PITR_FAULT_PAUSE",
            format!("backup-stopped={}", mark.display()),
        )
        .spawn();
    crate::common::wait_until("the backup stopped", || mark.exists());
    let kept = standby
        .value("select restart_lsn from pg_replication_slots where slot_name like 'pitr_last%'");
    let name = rush
        .cluster
        .value(&format!("select pg_walfile_name('{kept}')"));
    let pass = || {
        rush.pass(1);
        let end = "select pg_current_wal_flush_lsn()";
        let end = rush.cluster.value(end);
        standby.wait_replayed(&end);
        standby.sql("checkpoint");
        standby.pgdata().join("pg_wal").join(&name).exists()
    };
    assert!((0..6).all(|_| pass()));
    std::fs::remove_file(&mark).unwrap();
    running.wait().success();
    assert!(!(0..2).all(|_| pass()));
}
per_major!(b24_a_standby_keeps_the_last_segment_until_it_was_compared, v13 v17 v19);
