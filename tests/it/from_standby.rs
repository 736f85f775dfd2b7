//! `pitr restore --from-standby`: a standby that has not replayed the target recovers to it in its place.

use std::path::Path;

use crate::common::{Cluster, Program, Site, Stop, wait_until};
use crate::per_major;

/// A primary with a backup, and a standby that holds commits back.
struct Pair {
    site: Site,
    primary: Cluster,
    standby: Cluster,
}

impl Pair {
    fn new(major: u32, delay: &str) -> Pair {
        let (site, primary) = Site::with_cluster(major);
        site.pitr().arg("backup").succeed();
        let standby = Cluster::builder(major)
            .without_fsync()
            .standby_of(&primary)
            .config("recovery_min_apply_delay", delay)
            .start();
        Pair {
            site,
            primary,
            standby,
        }
    }

    fn data(&self) -> &Path {
        self.standby.pgdata()
    }

    /// Waits until the standby has received all WAL.
    fn wait_received(&self) {
        let end = self.primary.insert_lsn();
        let sql = format!("select pg_last_wal_receive_lsn() >= '{end}'");
        wait_until("the standby has the WAL", || {
            self.standby.value(&sql) == "t"
        });
    }

    fn restore(&self) -> Program {
        self.of(self.data())
    }

    fn of(&self, data: &Path) -> Program {
        let line = ["restore", "--from-standby", "--json", "--to"];
        let program = self.standby.bin("pg_ctl").expect("pg_ctl");
        let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
        self.site.pitr().args(line).arg(data).env("PATH", path)
    }

    fn here(&self) -> Program {
        self.restore().words("--target-name here")
    }

    fn undo(&self) -> Program {
        self.restore().words("--undo --confirm")
    }
}

fn r105_a_standby_recovers_to_the_target_without_a_copy(major: u32) {
    let mut pair = Pair::new(major, "1h");
    let primary = &pair.primary;
    primary.sql("create table t as select g as a from generate_series(1, 1000) g");
    // The newest backup begins behind the standby's restartpoint: the plan takes the older one.
    let newest = pair.site.pitr().words("backup --json").succeed();
    primary.sql("select pg_create_restore_point('here')");
    primary.sql("drop table t");
    primary.archive_now();
    pair.wait_received();
    let dry = pair.here().arg("--dry-run").succeed().json();
    assert_ne!(dry["backup"]["id"], newest.json()["id"], "{dry:#}");
    assert!(dry["standby"]["bytes_to_replay"].as_u64().unwrap() > 0);
    let run = pair.here().arg("--confirm").exits(8);
    run.expect_stdout("a server may run in");
    let slot = "select pg_create_physical_replication_slot('kept', true)";
    pair.standby.sql(slot);
    pair.standby.stop(Stop::Fast);
    let run = pair.here().exits(8);
    run.expect_stdout("--confirm");
    let far = pair.site.sandbox().dir("f".repeat(120));
    let far = pair.here().arg("--confirm").env("TMPDIR", far).exits(8);
    far.expect_stdout("TMPDIR");
    pair.here()
        .words("--target-action pause --confirm")
        .exits(2);
    assert!(pair.data().join("standby.signal").exists());
    for point in ["standby-written", "aside-recovered"] {
        let run = pair.here().arg("--confirm").env("PITR_FAULT", point).run();
        assert!(run.stderr.contains(&format!("\"{point}\"")), "{run}");
        if point == "standby-written" {
            // As a server leaves it that is killed while it ends recovery: the next start would replay everything.
            std::fs::remove_file(pair.data().join("recovery.signal")).unwrap();
            let adopt = pair.site.pitr().words("adopt --confirm --pgdata");
            let run = adopt.arg(pair.data()).exits(8);
            run.expect_stderr("has not recovered to its target yet");
        }
    }
    // Another target is another recovery.
    let other = pair.restore().words("--target-name there --confirm");
    other.exits(8).expect_stdout("another target");
    let done = pair.here().arg("--confirm").succeed();
    assert_eq!(done.json()["recovered"], true, "{done}");
    assert!(pair.data().join("pg_wal/pitr.guard").exists());
    assert!(!pair.data().join("standby.signal").exists());
    // A second time there is nothing to do, and no way back.
    pair.here().arg("--confirm").succeed();
    pair.undo().exits(8).expect_stdout("promoted");
    // The old primary is lost: its place in the archive is the new one's.
    pair.primary.stop(Stop::Immediate);
    let adopt = pair.site.pitr().words("adopt --confirm --pgdata");
    adopt.arg(pair.data()).succeed();
    pair.standby.start();
    pair.standby.wait_promoted();
    assert_eq!(pair.standby.value("select count(*) from t"), "1000");
    let delay = "select setting from pg_settings where name = 'recovery_target_name'";
    assert_eq!(pair.standby.value(delay), "", "settings are gone");
    pair.standby.sql("insert into t select 1");
    pair.standby.archive_now();
    pair.site.pitr().words("verify --quiet").succeed();
    let timeline = "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    assert_eq!(pair.standby.value(timeline), "00000002");
}

per_major!(r105_a_standby_recovers_to_the_target_without_a_copy);

/// A standby behind the target, and a directory that is none, stay as they are.
#[test]
fn r106_a_standby_that_has_passed_the_target_is_refused() {
    let mut pair = Pair::new(17, "0");
    pair.primary.sql("create table t (a int)");
    pair.primary.sql("select pg_create_restore_point('here')");
    pair.primary.sql("insert into t values (1)");
    pair.primary.archive_now();
    let end = pair.primary.insert_lsn();
    pair.standby.wait_replayed(&end);
    // The configuration leads to the primary: what is on disk tells a lower bound alone.
    pair.standby.stop(Stop::Fast);
    let run = pair.here().arg("--confirm").exits(5);
    run.expect_stdout("the standby has replayed up to");
    pair.restore()
        .words("--target-immediate --confirm")
        .exits(2);
    pair.standby.append_config("hot_standby", "off");
    let run = pair.here().arg("--confirm").exits(8);
    run.expect_stdout("hot_standby off");
    pair.standby.append_config("hot_standby", "on");
    let nobody = pair.restore().words("--target-time 2020-01-01T00:00:00Z");
    nobody.exits(5);
    pair.undo().succeed();
    pair.standby.start();
    pair.standby.sql("select 1 from t");
    // A killed standby does not tell what it has replayed.
    pair.standby.stop(Stop::Immediate);
    let run = pair.here().arg("--confirm").exits(8);
    run.expect_stdout("was not shut down in order");
    let primary = pair.primary.pgdata().to_owned();
    let own = pair.of(&primary).words("--target-name here");
    own.exits(8).expect_stdout("is no standby");
    let mut other = Cluster::builder(17).own_identifier().start();
    other.stop(Stop::Fast);
    other.touch("standby.signal");
    let run = pair.of(other.pgdata()).words("--target-name here");
    run.exits(8).expect_stdout("system identifier");
}

/// A restartpoint that no backup precedes: its WAL is not proven.
#[test]
fn r107_a_standby_older_than_every_backup_is_refused() {
    let (site, primary) = Site::with_cluster(17);
    let mut standby = Cluster::builder(17)
        .without_fsync()
        .standby_of(&primary)
        .config("recovery_min_apply_delay", "1h")
        .start();
    primary.sql("create table t (a int)");
    site.pitr().arg("backup").succeed();
    primary.sql("select pg_create_restore_point('here')");
    primary.archive_now();
    standby.stop(Stop::Fast);
    let pair = Pair {
        site,
        primary,
        standby,
    };
    let run = pair.here().arg("--confirm").exits(5);
    run.expect_stdout("lies before every backup");
    // Nothing was written that could be in the way.
    assert!(pair.data().join("standby.signal").exists());
}

/// A kill leaves the guard never without the record, by which the next undo knows the recovery.
#[test]
fn r202_an_undo_that_was_killed_goes_on() {
    let mut pair = Pair::new(17, "1h");
    // The commit is replayed in an hour, and all behind it.
    pair.primary.sql("create table t as select 1 as a");
    pair.primary.sql("select pg_create_restore_point('here')");
    pair.primary.archive_now();
    pair.wait_received();
    pair.standby.stop(Stop::Fast);
    let auto = || std::fs::read_to_string(pair.data().join("postgresql.auto.conf")).unwrap();
    let before = auto();
    let [guard, record] =
        ["pitr.guard", "pitr.settings"].map(|n| pair.data().join("pg_wal").join(n));
    let begun = pair.here().arg("--confirm");
    let run = begun.env("PITR_FAULT", "standby-written").run();
    assert!(run.stderr.contains("\"standby-written\""), "{run}");
    assert!(guard.exists() && record.exists());
    let run = pair.undo().env("PITR_FAULT", "standby-unguarded").run();
    assert!(run.stderr.contains("\"standby-unguarded\""), "{run}");
    assert!(!guard.exists() && record.exists());
    assert!(!auto().contains("recovery_target_name"));
    let told = pair.undo().succeed().json();
    assert_eq!(told["given_back"], true);
    assert_eq!(auto(), before);
    assert!(!record.exists());
}

/// Before it is promoted it can be a standby again, that follows.
#[test]
fn r108_a_recovery_that_was_given_up_leaves_a_standby() {
    let mut pair = Pair::new(18, "1h");
    pair.primary.sql("create table t as select 1 as a");
    pair.primary.sql("select pg_create_restore_point('here')");
    pair.primary.sql("drop table t");
    pair.primary.archive_now();
    pair.wait_received();
    pair.standby.stop(Stop::Fast);
    // A line of the operator's own says what ours would.
    let path = pair.data().join("postgresql.auto.conf");
    let own = std::fs::read_to_string(&path).unwrap() + "archive_cleanup_command = ''\n";
    std::fs::write(&path, own).unwrap();
    let auto = || std::fs::read_to_string(pair.data().join("postgresql.auto.conf")).unwrap();
    let before = auto();
    let begun = pair.here().arg("--confirm");
    let run = begun.env("PITR_FAULT", "standby-written").run();
    assert!(run.stderr.contains("\"standby-written\""), "{run}");
    assert_ne!(auto(), before);
    let told = pair.undo().succeed().json();
    assert_eq!(told["given_back"], true);
    assert_eq!(auto(), before);
    assert!(!pair.data().join("pg_wal/pitr.guard").exists());
    let told = pair.undo().succeed().json();
    assert_eq!(told["given_back"], false, "there is nothing to take back");
    pair.standby.append_config("recovery_min_apply_delay", "0");
    pair.standby.start();
    pair.primary.sql("create table later as select 7 as a");
    pair.wait_received();
    wait_until("the standby follows", || {
        pair.standby
            .value("select to_regclass('later') is not null")
            == "t"
    });
}
