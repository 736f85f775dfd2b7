//! Lives of one cluster side by side: which timeline is the cluster, who gets a message, and how it is decided
//! (findings A5 to A7; rows L06, L08, L09, L14).

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Cluster, Program, Run, Site, Stop, wait_until};
use crate::per_major;
use crate::several::{Two, transfer};

/// A cluster that archives and was backed up, and copies of it.
pub struct Lives {
    pub site: Site,
    pub origin: Cluster,
}

impl Lives {
    pub fn new(major: u32) -> Lives {
        let (site, origin) = Site::with_cluster(major);
        origin.sql("create table t (who text, n int)");
        insert(&origin, "origin", 1);
        site.pitr().words("backup --quiet").succeed();
        insert(&origin, "origin", 2);
        origin.archive_now();
        Lives { site, origin }
    }

    fn to(&self, name: &str) -> PathBuf {
        self.site.sandbox().dir("copies").join(name)
    }

    fn pitr(&self, args: &[&str]) -> Program {
        self.site.pitr().args(args)
    }

    fn restored(&self, name: &str, target: &[&str]) -> PathBuf {
        let to = self.to(name);
        self.site.pitr().restore_to(&to).args(target).succeed();
        to
    }

    /// A copy that is promoted; it may not archive.
    fn copy(&self, name: &str, target: &[&str]) -> Cluster {
        let to = self.restored(name, target);
        Cluster::open(self.origin.major(), to)
            .without_fsync()
            .promoted()
    }

    pub fn drill(&self, name: &str) -> Cluster {
        let drill = promoted_with_archiving(self.origin.major(), &self.restored(name, &[]));
        insert(&drill, "drill", 1);
        drill.archive_now();
        drill
    }

    fn plan(&self, args: &[&str]) -> Value {
        self.pitr(&["plan", "--json"]).args(args).run().json()
    }

    fn info(&self) -> Value {
        let info = self.pitr(&["info", "--json"]).run().json();
        info["clusters"][0].clone()
    }

    fn decide(&self, args: &[&str]) -> Run {
        let decide = self.pitr(&["timeline"]).args(args);
        decide.args(["--reason", "a drill", "--confirm"]).run()
    }

    fn states(&self) -> Vec<(u64, String)> {
        let list = self.pitr(&["timeline", "list", "--json"]).succeed();
        let list = list.json();
        let timelines = list["timelines"].as_array().unwrap().iter();
        timelines
            .map(|t| {
                let state = t["state"].as_str().unwrap();
                (t["timeline"].as_u64().unwrap(), state.to_owned())
            })
            .collect()
    }

    fn standby(&self, name: &str) -> Program {
        let conninfo = self.origin.conninfo("postgres");
        let conninfo = conninfo.replace(" dbname=postgres", "");
        self.pitr(&["standby", "--primary-conninfo", &conninfo, "--to"])
            .arg(self.to(name))
    }

    fn receive(&self) -> Program {
        let end = self.origin.value("select pg_current_wal_flush_lsn()");
        self.pitr(&["receive", "--create-slot", "--until-lsn", &end])
    }

    fn slots(&self) -> String {
        self.origin
            .value("select count(*) from pg_replication_slots")
    }
}

/// A drill: the guard was taken away by hand, and the copy archives into the repository it came from.
fn promoted_with_archiving(major: u32, to: &Path) -> Cluster {
    std::fs::remove_file(to.join("pg_wal/pitr.guard")).unwrap();
    Cluster::open(major, to)
        .without_fsync()
        .option("archive_mode", "on")
        .promoted()
}

fn insert(cluster: &Cluster, who: &str, n: u32) {
    cluster.sql(&format!("insert into t values ('{who}', {n})"));
}

fn rows(cluster: &Cluster) -> String {
    cluster.value("select string_agg(who || n, ' ' order by who, n) from t")
}

fn state(states: &[(u64, &str)]) -> Vec<(u64, String)> {
    states.iter().map(|(n, s)| (*n, (*s).to_owned())).collect()
}

pub fn with_journal(site: &Site) {
    site.add(&format!(
        "\n[clusters.main.receive]\nslot = \"s\"\njournal = \"{}\"\n",
        site.sandbox().join("journal").display()
    ));
}

fn l06_a_drill_that_archives_is_a_branch_until_somebody_decides(major: u32) {
    let lives = Lives::new(major);
    with_journal(&lives.site);
    let drill = lives.drill("drill");
    insert(&lives.origin, "origin", 3);
    lives.origin.archive_now();

    // Nobody chooses, and everybody names both.
    let undecided = "undecided which timeline is the cluster: timeline 2 began at ";
    lives
        .pitr(&["plan"])
        .exits(5)
        .expect_stdout(undecided)
        .expect_stdout("; timeline 1 began at ")
        .expect_stderr("pitr timeline abandon N");
    let plan = lives.plan(&[]);
    assert_eq!(
        (&plan["reason"], &plan["reachable"]),
        (&"undecided".into(), &false.into())
    );
    assert_eq!(plan["candidates"], serde_json::json!([2, 1]));
    let restore = lives.pitr(&["restore", "--to"]).arg(lives.to("none"));
    restore.exits(5).expect_stderr(undecided);
    assert!(!lives.to("none").exists());
    lives.standby("standby").exits(8).expect_stderr(undecided);
    lives
        .pitr(&["info"])
        .exits(6)
        .expect_stdout(undecided)
        .expect_stdout("recovery: undecided between timelines 2 and 1");
    let doctor = lives.pitr(&["doctor"]).run();
    assert!(doctor.stdout.contains(undecided), "{doctor}");
    assert_eq!(lives.states(), state(&[(1, "candidate"), (2, "candidate")]));
    // A number is followed; both servers go on, with a warning.
    assert_eq!(lives.plan(&["--target-timeline", "1"])["reachable"], true);
    assert_eq!(lives.plan(&["--target-timeline", "2"])["reachable"], true);
    lives
        .pitr(&["backup"])
        .succeed()
        .expect_stderr(undecided)
        .expect_stderr("The server is on timeline 1: it goes on");
    lives.receive().succeed().expect_stderr(undecided);
    lives.pitr(&["receive", "--drop-slot"]).succeed();

    // The consequences are shown first.
    let files = lives.site.files();
    let abandon = ["timeline", "abandon", "2", "--reason", "a drill"];
    let shown = lives.pitr(&abandon).exits(8);
    let shown = shown.expect_stderr("--confirm is not given");
    for part in [
        "then: timeline 1 is the cluster",
        "timeline 2 is abandoned: commits from ",
        "lie on it alone; no backup",
    ] {
        assert!(shown.stdout.contains(part), "{shown}");
    }
    lives.pitr(&abandon).arg("--dry-run").succeed();
    assert_eq!(lives.site.files(), files);
    lives
        .decide(&["abandon", "7"])
        .expect_code(2)
        .expect_stderr("Known: 1, 2");
    lives
        .decide(&["abandon", "1"])
        .expect_code(8)
        .expect_stderr("timeline 2, which may be the cluster, descends from timeline 1")
        .expect_stderr("pitr timeline restore 2 --reason")
        .expect_stderr("first: pitr timeline abandon 2 --reason");
    lives
        .decide(&["restore", "1"])
        .expect_code(8)
        .expect_stderr("pitr timeline abandon 2 --reason");
    assert_eq!(lives.site.files(), files);
    lives
        .decide(&["abandon", "2"])
        .success()
        .expect_stdout("recorded in ");
    lives.decide(&["abandon", "2"]).success();
    assert_eq!(lives.site.files().len(), files.len() + 1);
    lives
        .decide(&["abandon", "1"])
        .expect_code(8)
        .expect_stderr("no timeline would be left");

    // Now all follow production.
    assert_eq!(lives.states(), state(&[(1, "cluster"), (2, "abandoned")]));
    let plan = lives.plan(&[]);
    assert_eq!(
        (&plan["reachable"], &plan["target_timeline"]),
        (&true.into(), &1.into())
    );
    let info = lives.info();
    assert_eq!(
        (&info["timeline"], &info["abandoned"]),
        (&1.into(), &serde_json::json!([2]))
    );
    let told = info["problems"].to_string();
    assert!(
        !told.contains("undecided") && !told.contains("beside"),
        "{told}"
    );
    let backup = lives.pitr(&["backup"]).succeed();
    assert!(!backup.stderr.contains("undecided"), "{backup}");
    let receive = lives.receive().succeed();
    assert!(!receive.stderr.contains("undecided"), "{receive}");
    drop(drill);

    // A standby follows production by its number, and takes a number that nobody has when it is promoted.
    lives
        .standby("standby")
        .succeed()
        .expect_stderr("recovery_target_timeline = '1'")
        .expect_stderr("does not follow the next promotion by itself");
    let standby = Cluster::open(major, lives.to("standby"))
        .without_fsync()
        .start();
    standby.wait_log("started streaming WAL from primary");
    insert(&lives.origin, "origin", 4);
    standby.wait_replayed(&lives.origin.insert_lsn());
    lives.origin.sql("select pg_switch_wal()");
    let mut lives = lives;
    lives.origin.stop(Stop::Fast);
    standby.promote();
    insert(&standby, "standby", 1);
    let archived = standby.archive_now();
    assert!(archived.starts_with("00000003"), "{archived}");
    assert_eq!(rows(&standby), "origin1 origin2 origin3 origin4 standby1");
    assert_eq!(lives.plan(&[])["target_timeline"], 3);
    assert_eq!(
        lives.states(),
        state(&[(1, "ancestor"), (2, "abandoned"), (3, "cluster")])
    );
    // The drill can be followed all the same, and taken back.
    let copy = lives.copy("again", &["--target-timeline", "2"]);
    assert_eq!(rows(&copy), "drill1 origin1 origin2");
    lives.decide(&["restore", "2"]).success();
    assert_eq!(lives.info()["timeline"], 2);
}

per_major!(l06_a_drill_that_archives_is_a_branch_until_somebody_decides, v13 v15 v19);

fn l08_t90_a_copy_is_not_adopted_beside_a_live_primary_unless_that_is_confirmed(major: u32) {
    let mut lives = Lives::new(major);
    let mut copy = lives.copy("copy", &[]);
    copy.sql("checkpoint");
    copy.stop(Stop::Fast);
    let files = lives.site.files();
    let adopt = |lives: &Lives| lives.pitr(&["adopt", "--pgdata"]).arg(lives.to("copy"));
    adopt(&lives)
        .exits(8)
        .expect_stderr("a server runs in ")
        .expect_stderr("the cluster's primary answers at ")
        .expect_stderr("add --confirm");
    assert_eq!(lives.site.files(), files);
    assert!(lives.to("copy").join("pg_wal/pitr.guard").exists());
    adopt(&lives)
        .arg("--confirm")
        .succeed()
        .expect_stderr("it archives under the same name");
    copy.start();
    insert(&copy, "copy", 1);
    copy.archive_now();
    insert(&lives.origin, "origin", 3);
    lives.origin.archive_now();

    // The copy is the cluster by decision, and production is named beside it.
    let beside = "timeline 2 is the cluster by decision, and beside it timeline 1";
    let plan = lives.plan(&[]);
    assert_eq!(
        (&plan["reachable"], &plan["target_timeline"]),
        (&true.into(), &2.into())
    );
    assert!(plan["warnings"].to_string().contains(beside), "{plan:#}");
    // The copy descends from it, and would be abandoned with it (row T88).
    let info = lives.pitr(&["info"]).exits(6);
    let info = info.expect_stdout(beside);
    let info = info.expect_stdout("pitr timeline abandon 2 --reason");
    assert!(!info.stdout.contains("abandon 1"), "{info}");
    lives
        .decide(&["abandon", "1"])
        .expect_code(8)
        .expect_stderr("timeline 2, which is the cluster, descends from timeline 1");
    assert_eq!(lives.states(), state(&[(1, "beside"), (2, "cluster")]));
    let doctor = lives.pitr(&["doctor"]).exits(1);
    assert!(doctor.stdout.contains("timeline of the server"), "{doctor}");
    assert!(doctor.stdout.contains(beside), "{doctor}");
    let standby = lives.standby("standby").succeed();
    let standby = standby.expect_stderr(beside);
    assert!(
        !standby.stderr.contains("recovery_target_timeline"),
        "{standby}"
    );
    lives
        .pitr(&["backup"])
        .exits(8)
        .expect_stderr("server is on timeline 1, and the repository has timeline 2 already");

    // Given up, it is a branch like any other. A hole in it alarms nobody then (row T90).
    let hole = copy.archive_now();
    copy.archive_now();
    std::fs::remove_file(lives.site.object(&hole)).unwrap();
    let holes = || {
        let info = lives.info();
        let told = info["problems"]
            .to_string()
            .contains("of timeline 2 missing");
        let doctor = lives.pitr(&["doctor"]).run().stdout;
        let listed = info["gaps"].as_array().unwrap().len();
        (told, doctor.contains("of timeline 2 missing"), listed)
    };
    assert_eq!(holes(), (true, true, 1));
    lives.decide(&["abandon", "2"]).success();
    assert_eq!(holes(), (false, false, 1));
    assert_eq!(lives.plan(&[])["target_timeline"], 1);
    lives.pitr(&["backup"]).succeed();
    let told = lives.info()["problems"].to_string();
    assert!(!told.contains("beside"), "{told}");
    // Nothing is in the way of a copy whose cluster is gone.
    let mut second = lives.copy("second", &[]);
    second.stop(Stop::Fast);
    lives.origin.stop(Stop::Fast);
    lives
        .pitr(&["adopt", "--pgdata"])
        .arg(lives.to("second"))
        .succeed();
    assert_eq!(lives.info()["timeline"], 3);
}

per_major!(l08_t90_a_copy_is_not_adopted_beside_a_live_primary_unless_that_is_confirmed, v13 v15 v19);

fn a7_the_way_out_for_a_receiver_and_a_backup_is_to_abandon_the_drill(major: u32) {
    let lives = Lives::new(major);
    with_journal(&lives.site);
    drop(lives.drill("drill"));
    // Nothing of production was archived since: the drill is the newest.
    assert_eq!(lives.states(), state(&[(1, "ancestor"), (2, "cluster")]));
    let refused = "server is on timeline 1, and the repository has timeline 2 already";
    for program in [lives.receive(), lives.pitr(&["backup"])] {
        program
            .exits(8)
            .expect_stderr(refused)
            .expect_stderr("pitr timeline abandon 2 --reason");
    }
    assert_eq!(lives.slots(), "0", "the slot comes after the check");
    lives.decide(&["abandon", "2"]).success();
    lives.receive().succeed();
    assert_eq!(lives.slots(), "1");
    lives.pitr(&["backup"]).succeed();
    // Nothing is taken from the server of an abandoned timeline.
    let conninfo = lives.origin.conninfo("postgres");
    let drill = Cluster::open(major, lives.to("drill"))
        .without_fsync()
        .option("archive_mode", "on")
        .start();
    lives.site.edit(&conninfo, &drill.conninfo("postgres"));
    for program in [
        lives.pitr(&["receive", "--create-slot"]),
        lives.pitr(&["backup"]),
    ] {
        program
            .exits(8)
            .expect_stderr("that timeline is abandoned")
            .expect_stderr("pitr timeline restore 2 --reason");
    }
}

per_major!(a7_the_way_out_for_a_receiver_and_a_backup_is_to_abandon_the_drill, v13 v15 v19);

/// A cluster that was restored to before its last commits: timeline 2 goes on, and timeline 1 holds them.
#[test]
fn l14_a_target_on_an_abandoned_branch_names_the_timelines_that_hold_it() {
    let major = 15;
    let mut lives = Lives::new(major);
    lives.origin.sql("select pg_create_restore_point('fork')");
    lives.origin.archive_now();
    let time =
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let row = lives
        .origin
        .sql("insert into t values ('origin', 3) returning xmin");
    let xid = row[0][0].clone().unwrap();
    let time = lives.origin.value(time);
    lives.origin.sql("select pg_create_restore_point('left')");
    let lsn = lives.origin.value("select pg_current_wal_insert_lsn()");
    insert(&lives.origin, "origin", 4);
    lives.origin.archive_now();
    let mut copy = lives.copy("copy", &["--target-name", "fork"]);
    copy.sql("checkpoint");
    copy.stop(Stop::Fast);
    lives.origin.stop(Stop::Fast);
    lives
        .pitr(&["adopt", "--pgdata"])
        .arg(lives.to("copy"))
        .succeed();
    copy.start();
    // It takes the same transaction numbers, and writes past the position.
    for n in 1..=5 {
        insert(&copy, "copy", n);
        copy.archive_now();
    }
    let names = |args: &[&str]| {
        let run = lives.pitr(&["plan"]).args(args).succeed();
        for part in [
            "timeline 1, which is not on the way to timeline 2, holds ",
            "--target-timeline 1 follows it (that loses what timeline 2 committed behind ",
        ] {
            assert!(run.stderr.contains(part), "{part}: {run}");
        }
    };
    names(&["--target-time", &time]);
    names(&["--target-lsn", &lsn]);
    names(&["--target-xid", &xid]);
    lives
        .pitr(&["plan", "--target-name", "left"])
        .exits(5)
        .expect_stdout(
            "on timeline 1 it can be reached: --target-timeline 1 (that loses what timeline 2",
        );
    // A target before the branch, or on timeline 2 alone, needs no question about another timeline.
    let end = lives.pitr(&["plan"]).succeed();
    assert!(!end.stderr.contains("--target-timeline"), "{end}");
    let fork = lives.pitr(&["plan", "--target-name", "fork"]).succeed();
    assert!(!fork.stderr.contains("--target-timeline"), "{fork}");
    // Followed, it gives what was asked for.
    let found = lives.copy("found", &["--target-time", &time, "--target-timeline", "1"]);
    assert_eq!(rows(&found), "origin1 origin2 origin3");
}

#[test]
fn a_decision_reaches_every_repository_and_is_synced_to_those_that_were_away() {
    let two = Two::new();
    two.work(10);
    two.backup();
    let to = two.site.sandbox().dir("copies").join("drill");
    two.site.pitr().restore_to(&to).succeed();
    let drill = promoted_with_archiving(two.cluster.major(), &to);
    drill.sql("create table d (a int)");
    drill.archive_now();
    two.work(10);
    two.sync().succeed();
    let first = two.first();
    let plan = |repository: &[&str]| {
        let plan = two.site.pitr().words("plan --json").args(repository);
        plan.run().json()
    };
    assert_eq!(plan(&[])["reason"], "undecided");
    let abandon = || {
        let decide = two.site.pitr().words("timeline abandon 2 --json");
        decide.args(["--reason", "a drill", "--confirm"]).run()
    };
    two.is_away(true);
    let run = abandon()
        .expect_code(10)
        .expect_stderr("look into repository");
    assert_eq!(run.json()["recorded_in"], serde_json::json!([first]));
    two.is_away(false);
    // A decision that one of them knows counts, and alone the other does not know it.
    assert_eq!(plan(&[])["target_timeline"], 1);
    assert_eq!(plan(&["--repository", "second"])["reason"], "undecided");
    two.sync().succeed();
    assert_eq!(plan(&["--repository", "second"])["target_timeline"], 1);
    let files = two.site.files();
    let run = abandon().success();
    assert_eq!(run.json()["recorded_in"].as_array().unwrap().len(), 2);
    assert_eq!(two.site.files(), files, "nothing is said twice");
}

/// Row X42: the first backup in a new repository is one of a branch, which is abandoned afterwards.
#[test]
fn x42_a_repository_with_a_branch_s_backup_alone_gets_those_of_the_cluster() {
    let two = Two::new();
    two.work(10);
    let backup = |repository: &str, server: &Cluster| {
        let words = ["backup", "--json", "--quiet", "--repository", repository];
        let backup = two.site.pitr().args(words);
        let conninfo = server.conninfo("postgres");
        let run = backup.env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo).run();
        run.success().id()
    };
    let of_cluster = backup(&two.first(), &two.cluster);
    let to = two.site.sandbox().dir("copies").join("exercise");
    two.site.pitr().restore_to(&to).succeed();
    let branch = promoted_with_archiving(two.cluster.major(), &to);
    branch.sql("create table d (a int)");
    branch.archive_now();
    backup("second", &branch);
    drop(branch);
    let decide = two.site.pitr().words("timeline abandon 2 --confirm");
    decide.args(["--reason", "an exercise"]).succeed();
    two.work(10);
    let sync = || two.sync().args(["--to", "second"]);
    let dry = sync().arg("--dry-run").succeed();
    let lacking = transfer(&dry, "second")["lacking"]["backups"].clone();
    assert_eq!(lacking, serde_json::json!([of_cluster]), "{dry}");
    sync().succeed();
    let plan = ["plan", "--json", "--repository", "second"];
    let plan = two.site.pitr().args(plan).run().json();
    assert_eq!(plan["target_timeline"], 1, "{plan}");
    assert_eq!(plan["backup"]["id"], of_cluster.as_str(), "{plan}");
}

/// Rows L09 and H06: two standbys were promoted from one segment of a primary that went on. The old primary is rewound to the second one, follows it, and is
/// promoted again; what it had written alone can still be restored.
fn l09_h06_a_rewound_primary_goes_on_and_its_dead_branch_stays_restorable(major: u32) {
    let mut lives = Lives::new(major);
    let standby = || {
        let restore = lives.site.restore().words("%f %p").shell();
        Cluster::builder(major)
            .standby_of(&lives.origin)
            .without_fsync()
            .option("restore_command", restore)
            .start()
    };
    let (mut first, second) = (standby(), standby());
    insert(&lives.origin, "origin", 3);
    let end = lives.origin.insert_lsn();
    for standby in [&first, &second] {
        standby.wait_replayed(&end);
    }
    // The second promotion within one segment takes another number, for the first one's history is archived.
    first.promote();
    wait_until("the first promotion is known", || {
        lives.site.object("00000002.history").exists()
    });
    second.promote();
    for (who, server) in [("first", &first), ("second", &second)] {
        insert(server, who, 1);
        server.archive_now();
    }
    // Nobody told the old primary.
    insert(&lives.origin, "dead", 1);
    lives.origin.archive_now();
    lives.origin.stop(Stop::Fast);
    second.sql("checkpoint");
    let source = second.conninfo("postgres");
    // The segment in which they parted is in the archive alone.
    let restore = lives.site.restore().words("%f %p").shell();
    lives.origin.append_config("restore_command", &restore);
    let rewind = lives.origin.tool("pg_rewind").arg("--restore-target-wal");
    let rewind = rewind.arg("--target-pgdata").arg(lives.origin.pgdata());
    let run = rewind.args(["--source-server", &source]).succeed();
    assert!(run.stderr.contains("Done!"), "{run}");
    lives.origin.touch("standby.signal");
    // The configuration is the source's now. WAL of its timeline that it has recycled is in the archive alone, too.
    let auto = lives.origin.pgdata().join("postgresql.auto.conf");
    let line = format!("primary_conninfo = '{source}'\nrestore_command = '{restore}'\n");
    let text = std::fs::read_to_string(&auto).unwrap() + &line;
    std::fs::write(&auto, text).unwrap();
    lives.origin.start();
    insert(&second, "second", 2);
    lives.origin.wait_replayed(&second.insert_lsn());
    second.archive_now();
    drop(second);
    first.stop(Stop::Fast);
    lives.origin.promote();
    insert(&lives.origin, "rewound", 1);
    let name = lives.origin.archive_now();
    assert!(name.starts_with("00000004"), "{name}");

    // No link is broken, nobody was refused.
    let verify = lives.pitr(&["verify"]).succeed();
    assert!(!verify.stdout.contains("another server"), "{verify}");
    assert!(!lives.site.cluster_folder().join("conflicts").exists());
    let failed = "select failed_count from pg_stat_archiver";
    assert_eq!(lives.origin.value(failed), "0");
    // Each branch leads to what its server had.
    let common = "origin1 origin2 origin3";
    for (timeline, own) in [
        ("1", format!("dead1 {common}")),
        ("2", format!("first1 {common}")),
        ("4", format!("{common} rewound1 second1 second2")),
    ] {
        let copy = lives.copy(timeline, &["--target-timeline", timeline]);
        assert_eq!(rows(&copy), own, "timeline {timeline}");
    }
    // The dead branch ended before the cluster began: nothing is to be decided.
    assert_eq!(lives.plan(&[])["target_timeline"], 4);
    lives.pitr(&["backup", "--quiet"]).succeed();
}

per_major!(l09_h06_a_rewound_primary_goes_on_and_its_dead_branch_stays_restorable, v13 v15 v19);

fn expire_keeps_a_base_for_the_cluster_s_timeline_and_none_for_an_abandoned_one(major: u32) {
    let lives = Lives::new(major);
    let drill = lives.drill("drill");
    drop(drill);
    // The cluster is far ahead of the drill when it is backed up again.
    for n in 3..9 {
        insert(&lives.origin, "origin", n);
        lives.origin.archive_now();
    }
    lives.pitr(&["backup", "--quiet"]).succeed();
    let fates = || {
        let expire = ["expire", "--keep", "1", "--min-age", "0s"];
        let run = lives.pitr(&expire).words("--dry-run --json").run();
        let backups = run.success().json()["clusters"][0]["backups"].clone();
        let fates = backups.as_array().unwrap().iter();
        let fates = fates.map(|b| b["fate"].as_str().unwrap().to_owned());
        fates.collect::<Vec<_>>()
    };
    // Either may be the cluster.
    assert_eq!(fates(), ["keep", "keep"]);
    lives.decide(&["abandon", "2"]).success();
    assert_eq!(fates(), ["mark", "keep"]);
    lives.decide(&["restore", "2"]).success();
    assert_eq!(fates(), ["keep", "keep"]);
}

per_major!(
    expire_keeps_a_base_for_the_cluster_s_timeline_and_none_for_an_abandoned_one,
    v17
);

#[test]
fn r227_info_counts_the_commits_that_a_failover_left_behind() {
    let mut lives = Lives::new(17);
    lives.origin.set("autovacuum", "off");
    lives.origin.sql("select pg_create_restore_point('here')");
    insert(&lives.origin, "lost", 3);
    let between = lives.origin.archive_now();
    for n in 4..6 {
        insert(&lives.origin, "lost", n);
    }
    lives.origin.archive_now();
    assert!(lives.info()["left_behind"].is_null());
    lives.origin.stop(Stop::Immediate);
    let to = lives.restored("next", &["--target-name", "here"]);
    let next = promoted_with_archiving(17, &to);
    insert(&next, "kept", 6);
    next.archive_now();
    let left = lives.info()["left_behind"].clone();
    assert_eq!(left[0]["timeline"], 1, "{left}");
    assert_eq!(left[0]["commits"], 3, "{left}");
    assert!(
        left[0]["first"].as_str() < left[0]["last"].as_str(),
        "{left}"
    );
    assert_eq!(left.as_array().map(Vec::len), Some(1), "{left}");
    lives
        .pitr(&["info"])
        .run()
        .expect_stdout("pitr restore --target-timeline 1 leads to them");
    // As it says.
    let left = lives.copy("left", &["--target-timeline", "1"]);
    let lost = left.value("select count(*) from t where who = 'lost'");
    assert_eq!(lost, "3");
    // Behind a hole nothing leads to them.
    std::fs::remove_file(lives.site.object(&between)).unwrap();
    let info = lives.pitr(&["info"]).run();
    let line = info.stdout.lines().find(|l| l.contains("left behind: "));
    let line = line.unwrap();
    assert!(line.contains("no backup leads to all of them"), "{line}");
    let plan = lives.pitr(&["plan", "--target-timeline", "1"]).run();
    plan.expect_code(5);
}
