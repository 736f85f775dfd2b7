//! `pitr wal resolve`: a fork is given to the server whose copy was refused (decision 0019; rows L02 and L04).

use std::path::PathBuf;

use serde_json::Value;

use crate::common::{Cluster, EXPIRE, Run, Site, Stop};
use crate::lives::{Lives, lives, write};
use crate::per_major;
use crate::ship::spool_of;

/// The clone archived some segments first, and production waits at the first of them.
struct Forked {
    two: Lives,
    /// Names of the segments that the clone archived.
    clones: Vec<String>,
    /// Before the clone was made.
    before: String,
}

fn forked(mut two: Lives) -> Forked {
    let production = &mut two.production;
    production.start();
    two.site.pitr().args(["backup", "--quiet"]).run().success();
    let before = backups(&two.site)[0].clone();
    production.stop(Stop::Fast);
    two.copy_again();
    two.clone.start();
    let mut clones = Vec::new();
    for _ in 0..4 {
        write(&two.clone, "fake");
        clones.push(two.clone.archive_now());
    }
    two.clone.stop(Stop::Fast);
    two.production.start();
    write(&two.production, "prod");
    two.production.switch_wal();
    two.production
        .wait_log("already archived with other content");
    Forked {
        two,
        clones,
        before,
    }
}

pub fn backups(site: &Site) -> Vec<String> {
    let info = site.pitr().args(["info", "--json"]).run().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap().iter();
    backups
        .map(|b| b["id"].as_str().unwrap().to_owned())
        .collect()
}

pub fn conflicts(site: &Site) -> Value {
    site.pitr()
        .args(["wal", "conflicts", "--json"])
        .run()
        .success()
        .json()
}

/// Gives the fork to the refused copy of the first segment.
fn resolve(site: &Site, more: &[&str]) -> Run {
    let shown = conflicts(site);
    let first = &shown["conflicts"][0];
    let (name, copy) = (
        first["name"].as_str().unwrap(),
        first["copy"].as_str().unwrap(),
    );
    let args = ["wal", "resolve", name, "--keep", copy];
    site.pitr().args(args).args(more).run()
}

/// Each life's rows in a restored copy.
pub fn restored(site: &Site, major: u32, name: &str, args: &[&str]) -> String {
    let to: PathBuf = site.sandbox().dir("copies").join(name);
    let restore = site.pitr().args(["restore", "--to"]).arg(&to).args(args);
    restore.run().success();
    let mut copy = Cluster::open(major, to).option("fsync", "off").create();
    copy.start();
    copy.wait_promoted();
    let rows = copy.query_one_string(
        "select string_agg(life || ' ' || n, ', ' order by life) from (select life, count(*) n from t group by 1) x",
    );
    copy.stop(Stop::Immediate);
    rows
}

/// Row L02: the clone was faster. `wal resolve` gives the fork back to production, which goes on; no plan joins the two, and what the clone wrote
/// can still be had.
fn l02_a_fork_is_given_back_to_production(major: u32) {
    for with_worker in [false, true] {
        let two = lives(major);
        if with_worker {
            spool_of(&two.site);
        }
        let mut fork = forked(two);
        let (site, production) = (&fork.two.site, &mut fork.two.production);
        // Shown first, and nothing changes.
        resolve(site, &[]).expect_code(8).expect_stderr("--confirm");
        resolve(site, &["--dry-run"]).success();
        assert_eq!(conflicts(site)["resolutions"].as_array().unwrap().len(), 0);
        resolve(site, &["--reason", "a clone", "--confirm"]).success();
        // Once more says so.
        let again = resolve(site, &["--confirm", "--json"]).success().json();
        assert_eq!(again["recorded"][0]["event"], Value::Null, "{again}");
        // Past what the clone archived.
        for _ in 0..5 {
            write(production, "prod");
            production.archive_now();
        }
        site.pitr().args(["verify"]).run().success();
        let rows = restored(site, major, "end", &[]);
        assert_eq!(rows, "before 100, prod 600");
        let clone = ["--as-stored"];
        assert_eq!(
            restored(site, major, "clone", &clone),
            "before 100, fake 400"
        );
        // A backup of production needs production's WAL.
        site.pitr().args(["backup", "--quiet"]).run().success();
        write(production, "prod");
        production.archive_now();
        let newest = backups(site).pop().unwrap();
        assert_ne!(newest, fork.before);
        let rows = restored(site, major, "newest", &["--backup", &newest]);
        assert_eq!(rows, "before 100, prod 700");
        site.pitr().args(["verify"]).run().success();
        // The clone comes back, and is refused from its next segment on.
        fork.two.clone.start();
        write(&fork.two.clone, "fake");
        let refused = fork.two.clone.switch_wal();
        fork.two.clone.wait_log("archiving waits at this file");
        assert!(!site.object(&refused).exists() || fork.clones.contains(&refused));
        fork.two.clone.stop(Stop::Immediate);
        // What nothing needs goes, in both lives.
        site.pitr().args(EXPIRE).run().success();
        site.pitr().args(["verify"]).run().success();
        for clones in &fork.clones {
            assert!(!site.object(clones).exists(), "{clones} was expired");
        }
        let rows = restored(site, major, "after", &[]);
        assert_eq!(rows, "before 100, prod 700");
        write(production, "prod");
        production.archive_now();
        production.stop(Stop::Immediate);
    }
}
per_major!(l02_a_fork_is_given_back_to_production, v13 v18);

/// A decision is ended by another one: the clone's life is followed again, production waits, and gets the fork back without a loss.
fn a_decision_is_taken_back_and_made_again(major: u32) {
    let mut fork = forked(lives(major));
    let (site, production) = (&fork.two.site, &mut fork.two.production);
    resolve(site, &["--confirm"]).success();
    for _ in 0..6 {
        write(production, "prod");
        production.archive_now();
    }
    let event = conflicts(site)["resolutions"][0]["event"].clone();
    let undo = ["wal", "resolve", "--undo", event.as_str().unwrap()];
    site.pitr().args(undo).run().expect_code(8);
    site.pitr().args(undo).arg("--confirm").run().success();
    assert_eq!(restored(site, major, "clone", &[]), "before 100, fake 400");
    write(production, "prod");
    production.switch_wal();
    production.wait_log("in a life of the timeline that is not followed");
    resolve(site, &["--confirm"]).success();
    write(production, "prod");
    production.archive_now();
    site.pitr().args(["verify"]).run().success();
    let rows = restored(site, major, "production", &[]);
    assert_eq!(rows, "before 100, prod 900");
    // A resolution that cannot be read stops what would follow the wrong life.
    let events = site.cluster_folder().join("events/cluster");
    for event in std::fs::read_dir(&events).unwrap() {
        std::fs::write(event.unwrap().path(), "x").unwrap();
    }
    site.pitr()
        .args(["plan"])
        .run()
        .expect_code(1)
        .expect_stderr("which life");
    write(production, "prod");
    production.switch_wal();
    production.wait_log("which life of a timeline the archive follows is unknown");
    production.stop(Stop::Immediate);
}
per_major!(a_decision_is_taken_back_and_made_again, v15);

/// Row L04: a machine that was set back is the cluster now. What it wrote before can be restored, and what it writes now is archived.
fn l04_a_machine_that_was_set_back_goes_on_by_a_decision(major: u32) {
    let two = lives(major);
    let (site, mut old, mut set_back) = (&two.site, two.production, two.clone);
    old.start();
    for _ in 0..3 {
        write(&old, "once");
        old.archive_now();
    }
    site.pitr().args(["backup", "--quiet"]).run().success();
    let once = backups(site).pop().unwrap();
    write(&old, "once");
    old.archive_now();
    old.stop(Stop::Immediate);
    set_back.start();
    write(&set_back, "then");
    set_back.switch_wal();
    set_back.wait_log("already archived with other content");
    resolve(site, &["--confirm"]).success();
    for _ in 0..6 {
        write(&set_back, "then");
        set_back.archive_now();
    }
    // The backup of what was belongs to what was.
    let run = site.pitr().args(["plan", "--backup", &once]).run();
    run.expect_code(5).expect_stdout("another server's");
    let rows = restored(site, major, "once", &["--as-stored", "--backup", &once]);
    assert_eq!(rows, "before 100, once 400");
    site.pitr()
        .args(["backup", "--quiet"])
        .env("PITR_CLUSTERS_MAIN_CONNINFO", set_back.conninfo("postgres"))
        .run()
        .success();
    write(&set_back, "then");
    set_back.archive_now();
    assert_eq!(restored(site, major, "then", &[]), "before 100, then 800");
    set_back.stop(Stop::Immediate);
}
per_major!(l04_a_machine_that_was_set_back_goes_on_by_a_decision, v17);
