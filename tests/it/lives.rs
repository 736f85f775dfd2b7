//! Two lives of one cluster: a clone, a machine that was reverted. Their WAL has the same names, and must never be joined.

use std::path::PathBuf;

mod histories;

use crate::common::{Cluster, PATIENCE, Run, Sandbox, Site, Stop, copy_tree, user, wait_until};
use crate::per_major;
use crate::ship::spool_of;
use crate::timeline::with_journal;

/// A cluster and its clone, which archive into one repository.
struct Lives {
    site: Site,
    production: Cluster,
    clone: Cluster,
    _copy: Sandbox,
}

/// Both stand at the same place of the same segment, stopped.
fn lives(major: u32) -> Lives {
    let (site, mut production) = Site::with_cluster(major);
    production.sql("create table t (id int, life text)");
    production.sql("insert into t select g, 'before' from generate_series(1, 100) g");
    production.archive_now();
    production.stop(Stop::Fast);
    let copy = Sandbox::new("clone");
    let data = copy.join("data");
    copy_tree(production.pgdata(), &data);
    user::own_all(&data);
    let clone = Cluster::open(major, &data).without_fsync().create();
    Lives {
        site,
        production,
        clone,
        _copy: copy,
    }
}

/// As much WAL as the same call in another life, and other rows.
fn write(cluster: &Cluster, life: &str) {
    assert_eq!(life.len(), 4);
    cluster.sql(&format!(
        "insert into t select g, '{life}' from generate_series(1, 100) g"
    ));
}

fn object(site: &Site, name: &str) -> PathBuf {
    site.object(name)
}

/// Row L01, finding A3: the first conflict stops the clone for every later segment, and production goes on.
fn a3_l01_a_clone_is_stopped_at_its_first_conflict_and_production_goes_on(major: u32) {
    for with_worker in [true, false] {
        let mut two = lives(major);
        if with_worker {
            spool_of(&two.site);
        }
        two.production.start();
        write(&two.production, "prod");
        let first = two.production.archive_now();
        // The clone is ahead by many segments when its archiver begins.
        two.clone = Cluster::open(major, two.clone.pgdata())
            .without_fsync()
            .config("archive_command", "false")
            .create();
        two.clone.start();
        let mut ahead = Vec::new();
        for _ in 0..8 {
            write(&two.clone, "fake");
            ahead.push(two.clone.switch_wal());
        }
        assert_eq!(ahead[0], first);
        two.clone.stop(Stop::Fast);
        two.clone = Cluster::open(major, two.clone.pgdata())
            .without_fsync()
            .create();
        two.clone.start();
        two.clone.wait_log("already archived with other content");
        // Once more, now that a worker has been there.
        two.clone
            .wait_log("archive command failed with exit code 20");
        for name in &ahead[1..] {
            assert!(!object(&two.site, name).exists(), "{name} is the clone's");
        }
        for _ in 0..4 {
            write(&two.production, "prod");
            two.production.archive_now();
        }
        let failed = "select failed_count > 0 from pg_stat_archiver";
        wait_until(PATIENCE, "the clone waits", || {
            two.clone.query_one_string(failed) == "t"
        });
        assert_eq!(two.production.query_one_string(failed), "f");
        two.clone.stop(Stop::Immediate);
        two.site.pitr().args(["verify"]).run().success();
    }
}
per_major!(a3_l01_a_clone_is_stopped_at_its_first_conflict_and_production_goes_on, v15 v18);

/// A segment whose name is free is refused all the same where the one before is another life's: as much WAL in both, every segment ended by a switch.
fn a1_l02_what_does_not_continue_the_archived_segment_is_refused(major: u32) {
    let mut two = lives(major);
    two.clone.start();
    write(&two.clone, "fake");
    let first = two.clone.archive_now();
    two.clone.stop(Stop::Fast);
    let archive = two.site.archive().arg("%p").shell();
    // Production's first segment is not offered, as if its .ready file had been lost.
    two.production.append_config("archive_command", "true");
    two.production.start();
    write(&two.production, "prod");
    assert_eq!(two.production.archive_now(), first);
    two.production.alter_system("archive_command", &archive);
    two.production.reload();
    write(&two.production, "prod");
    let second = two.production.switch_wal();
    two.production.wait_log("another server wrote it");
    assert!(!object(&two.site, &second).exists());
    two.production.stop(Stop::Immediate);
}
per_major!(a1_l02_what_does_not_continue_the_archived_segment_is_refused, v13 v15 v18);

/// Row L10: a standby that archives what it streams offers the same bytes as its primary, whoever comes first, also across a promotion.
fn l10_a_standby_that_archives_always_is_no_other_life(major: u32) {
    let (site, mut primary) = Site::with_cluster(major);
    primary.sql("create table t (id int, life text)");
    let archive = site.archive().arg("%p").shell();
    let standby = Cluster::builder(major)
        .standby_of(&primary)
        .config("archive_mode", "always")
        .config("archive_command", &archive)
        .config("wal_retrieve_retry_interval", "200ms")
        .start();
    let mut last = String::new();
    for round in 0..6 {
        write(&primary, "prod");
        // Some end by a switch, some are full.
        if round % 2 == 1 {
            primary.sql("insert into t select g, repeat('x', 200) from generate_series(1, 8000) g");
        }
        last = primary.archive_now();
    }
    let status = standby.pgdata().join("pg_wal/archive_status");
    wait_until(PATIENCE, "the standby has archived it, too", || {
        status.join(format!("{last}.done")).exists()
    });
    let count = primary.query_one_string("select count(*) from t");
    wait_until(PATIENCE, "the standby has it", || {
        standby.query_one_string("select count(*) from t") == count
    });
    primary.stop(Stop::Immediate);
    standby.promote();
    for _ in 0..3 {
        write(&standby, "next");
        standby.archive_now();
    }
    assert_eq!(failures(&standby), "0");
    assert!(!site.cluster_folder().join("conflicts").exists());
    let run = site.pitr().args(["verify"]).run().success();
    assert!(!run.stdout.contains("another server"), "{run}");
    let plan = site.pitr().args(["wal", "gaps", "--json"]).run().success();
    assert!(!plan.stdout.contains("another server"), "{plan}");
}
per_major!(l10_a_standby_that_archives_always_is_no_other_life, v13 v18);

fn failures(cluster: &Cluster) -> String {
    cluster.query_one_string("select failed_count from pg_stat_archiver")
}

/// Row L11: pg_resetwal begins WAL that nothing joins to what was before. It is archived, and no plan goes across.
fn l11_what_pg_resetwal_begins_is_archived_and_joined_to_nothing_before(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    cluster.sql("create table t (id int, life text)");
    site.pitr().args(["backup", "--quiet"]).run().success();
    write(&cluster, "prod");
    let before = cluster.archive_now();
    cluster.stop(Stop::Immediate);
    let reset = cluster.tool("pg_resetwal").arg("-f").arg(cluster.pgdata());
    reset.run().success();
    cluster.start();
    write(&cluster, "next");
    let after = cluster.archive_now();
    assert!(after > before);
    assert_eq!(failures(&cluster), "0");
    let plan = site.pitr().args(["plan", "--json"]).run();
    let last = plan.json()["segments_needed"]["last"].clone();
    assert!(last.as_str().is_none_or(|last| *last < *after), "{plan}");
    // A backup of now stands on its own.
    site.pitr().args(["backup", "--quiet"]).run().success();
    let plan = site.pitr().args(["plan", "--json"]).run().success().json();
    assert_eq!(plan["reachable"], true);
}
per_major!(l11_what_pg_resetwal_begins_is_archived_and_joined_to_nothing_before, v13 v18);

/// Row L01: a receiver without a journal that is let loose on the clone stores nothing behind production's WAL, and tells the clone nothing is safe.
fn l01_l05_a_receiver_begins_at_no_clone_whose_wal_is_not_what_is_archived(major: u32) {
    let mut two = lives(major);
    with_journal(&two.site);
    two.production.start();
    write(&two.production, "prod");
    let first = two.production.archive_now();
    two.clone = Cluster::open(major, two.clone.pgdata())
        .without_fsync()
        .config("archive_command", "false")
        .create();
    two.clone.start();
    write(&two.clone, "fake");
    assert_eq!(two.clone.switch_wal(), first);
    let files = two.site.files();
    // In the middle of the next segment, or before production's end.
    write(&two.clone, "fake");
    receive_of(&two.site, &two.clone)
        .expect_code(8)
        .expect_stderr("server has other WAL than is archived")
        .expect_stderr("pitr wal conflicts");
    assert_eq!(two.site.files(), files);
    // Production is received, and goes on.
    write(&two.production, "prod");
    receive_of(&two.site, &two.production).success();
    two.production.archive_now();
    two.site.pitr().args(["verify"]).run().success();
}
per_major!(l01_l05_a_receiver_begins_at_no_clone_whose_wal_is_not_what_is_archived, v13 v18);

/// A receiver gets all that a server has written.
fn receive_of(site: &Site, cluster: &Cluster) -> Run {
    let end = cluster.query_one_string("select pg_current_wal_flush_lsn()");
    let receive = site
        .pitr()
        .args(["receive", "--create-slot", "--until-lsn"]);
    let receive = receive
        .arg(&end)
        .env("PITR_CLUSTERS_MAIN_CONNINFO", cluster.conninfo("postgres"));
    receive.run()
}
