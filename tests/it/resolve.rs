//! `pitr wal resolve`: a fork is given to the server whose copy was refused (decision 0019; rows L02 and L04).

use std::path::Path;

use serde_json::Value;

use crate::common::{
    Cluster, Program, Run, Site, Stop, copy_tree, expire_at_once, paths_below, pitr_archive,
    wait_until,
};
use crate::lives::{Lives, lives, write};
use crate::per_major;
use crate::sealed::Sealed;
use crate::ship::spool_of;

/// The clone archived these segments first, and production waits at the first of them. A backup was taken before.
pub fn fork(two: &mut Lives, backup: &Program) -> Vec<String> {
    two.production.start();
    backup.succeed();
    two.production.stop(Stop::Fast);
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
    clones
}

/// As [`fork`], of a new cluster.
fn forked(mut two: Lives) -> (Lives, Vec<String>) {
    let backup = two.site.pitr().words("backup --quiet");
    let clones = fork(&mut two, &backup);
    (two, clones)
}

pub fn backups(site: &Site) -> Vec<String> {
    let info = site.pitr().words("info --json").run().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap().iter();
    backups
        .map(|b| b["id"].as_str().unwrap().to_owned())
        .collect()
}

pub fn conflicts(site: &Site) -> Value {
    shown(site.pitr())
}

fn shown(pitr: Program) -> Value {
    let shown = pitr.words("wal conflicts --json").run();
    shown.success().json()
}

/// Segments of which no reading back counts.
fn unread(site: &Site) -> u64 {
    let info = site.pitr().words("info --json").run().json();
    let share = &info["clusters"][0]["read_back"];
    let number = |key: &str| share[key].as_u64().unwrap();
    number("segments") - number("segments_read")
}

/// Gives the fork to the refused copy of the first segment.
fn resolve(site: &Site, more: &[&str]) -> Run {
    resolve_by(&|| site.pitr(), more)
}

fn resolve_by(pitr: &dyn Fn() -> Program, more: &[&str]) -> Run {
    let shown = shown(pitr());
    let first = &shown["conflicts"][0];
    let (name, copy) = (
        first["name"].as_str().unwrap(),
        first["copy"].as_str().unwrap(),
    );
    let args = ["wal", "resolve", name, "--keep", copy];
    pitr().args(args).args(more).run()
}

/// Each life's rows in a restored copy.
pub fn restored(site: &Site, major: u32, name: &str, args: &[&str]) -> String {
    restored_by(
        site.pitr(),
        &site.sandbox().dir("copies"),
        (major, name),
        args,
    )
}

fn restored_by(pitr: Program, below: &Path, (major, name): (u32, &str), args: &[&str]) -> String {
    let to = below.join(name);
    pitr.restore_to(&to).args(args).succeed();
    let mut copy = Cluster::open(major, to).without_fsync().promoted();
    let rows = copy.value(
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
        let (mut two, clones) = forked(two);
        let before = backups(&two.site)[0].clone();
        let (site, production) = (&two.site, &mut two.production);
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
        site.pitr().words("verify").succeed();
        let rows = restored(site, major, "end", &[]);
        assert_eq!(rows, "before 100, prod 600");
        let clone = ["--as-stored"];
        assert_eq!(
            restored(site, major, "clone", &clone),
            "before 100, fake 400"
        );
        // A backup of production needs production's WAL.
        site.pitr().words("backup --quiet").succeed();
        write(production, "prod");
        production.archive_now();
        let newest = backups(site).pop().unwrap();
        assert_ne!(newest, before);
        let rows = restored(site, major, "newest", &["--backup", &newest]);
        assert_eq!(rows, "before 100, prod 700");
        site.pitr().words("verify").succeed();
        // The clone comes back, and is refused from its next segment on.
        two.clone.start();
        write(&two.clone, "fake");
        let refused = two.clone.switch_wal();
        two.clone.wait_log("archiving waits at this file");
        assert!(!site.object(&refused).exists() || clones.contains(&refused));
        two.clone.stop(Stop::Immediate);
        // WAL that nothing needs goes, in both lives.
        site.pitr().args(expire_at_once()).succeed();
        site.pitr().words("verify").succeed();
        for name in &clones {
            assert!(!site.object(name).exists(), "{name} was expired");
        }
        let rows = restored(site, major, "after", &[]);
        assert_eq!(rows, "before 100, prod 700");
        // Nothing is left to go back to.
        let event = conflicts(site)["resolutions"][0]["event"].clone();
        let undo = ["wal", "resolve", "--undo", event.as_str().unwrap()];
        let undo = site.pitr().args(undo).arg("--confirm").run();
        undo.expect_code(8).expect_stderr("has been expired");
        write(production, "prod");
        production.archive_now();
        production.stop(Stop::Immediate);
    }
}
per_major!(l02_a_fork_is_given_back_to_production, v13 v19);

/// A restore that was planned on one life would recover the rows of the other.
#[test]
fn a_restore_is_not_taken_up_while_another_life_is_followed() {
    let (mut two, _) = forked(lives(17));
    let (site, production) = (&two.site, &mut two.production);
    let to = site.sandbox().dir("copies").join("begun");
    let restore = site.pitr().restore_to(&to);
    let begun = site.sandbox().dir("paused").join("restore-control");
    let pause = format!("restore-control={}", begun.display());
    let running = restore.clone().env("PITR_FAULT_PAUSE", pause).spawn();
    wait_until("the restore has begun", || begun.exists());
    running.ended_by(rustix::process::Signal::KILL);
    resolve(site, &["--confirm"]).success();
    restore
        .exits(8)
        .expect_stderr("gave its WAL to another server");
    let event = conflicts(site)["resolutions"][0]["event"].clone();
    let undo = ["wal", "resolve", "--undo", event.as_str().unwrap()];
    site.pitr().args(undo).arg("--confirm").succeed();
    restore.succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    let rows = copy.value("select string_agg(distinct life, ', ' order by life) from t");
    assert_eq!(rows, "before, fake");
    production.stop(Stop::Immediate);
}

/// A decision is ended by another one: the clone's life is followed again, production waits, and gets the fork back without a loss.
fn a_decision_is_taken_back_and_made_again(major: u32) {
    let (mut two, clones) = forked(lives(major));
    let (site, production) = (&two.site, &mut two.production);
    let read_back = ["verify", "--since", "last", "--quiet"];
    site.pitr().args(read_back).succeed();
    assert_eq!(unread(site), 0);
    resolve(site, &["--confirm"]).success();
    for _ in 0..6 {
        write(production, "prod");
        production.archive_now();
    }
    // Those of the clone that were read back are not production's of the same names.
    assert_eq!(unread(site), 7);
    site.pitr().args(read_back).succeed();
    assert_eq!(unread(site), 0);
    let event = conflicts(site)["resolutions"][0]["event"].clone();
    let undo = ["wal", "resolve", "--undo", event.as_str().unwrap()];
    site.pitr().args(undo).exits(8);
    site.pitr().args(undo).arg("--confirm").succeed();
    assert_eq!(unread(site), clones.len() as u64);
    assert_eq!(restored(site, major, "clone", &[]), "before 100, fake 400");
    write(production, "prod");
    production.switch_wal();
    production.wait_log("in a life of the timeline that is not followed");
    resolve(site, &["--confirm"]).success();
    write(production, "prod");
    production.archive_now();
    site.pitr().words("verify").succeed();
    let rows = restored(site, major, "production", &[]);
    assert_eq!(rows, "before 100, prod 900");
    // A resolution that cannot be read stops what would follow the wrong life.
    let events = site.cluster_folder().join("events/cluster");
    for event in std::fs::read_dir(&events).unwrap() {
        std::fs::write(event.unwrap().path(), "x").unwrap();
    }
    site.pitr()
        .words("plan")
        .exits(1)
        .expect_stderr("which life");
    write(production, "prod");
    production.switch_wal();
    production.wait_log("which life of a timeline the archive follows is unknown");
    production.stop(Stop::Immediate);
}
per_major!(a_decision_is_taken_back_and_made_again, v15);

/// Row L04: a machine that was set back is the cluster now. Its WAL from before can be restored, and its WAL from now
/// on is archived.
fn l04_a_machine_that_was_set_back_goes_on_by_a_decision(major: u32) {
    let two = lives(major);
    let (site, mut old, mut set_back) = (&two.site, two.production, two.clone);
    old.start();
    for _ in 0..3 {
        write(&old, "once");
        old.archive_now();
    }
    site.pitr().words("backup --quiet").succeed();
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
    // That is no damage, and nothing that verify records keeps it from being restored.
    site.pitr()
        .words("verify")
        .succeed()
        .expect_stderr("a life of its timeline that is not followed any more");
    // The backup of what was belongs to what was.
    let run = site.pitr().args(["plan", "--backup", &once]).run();
    run.expect_code(5).expect_stdout("another server's");
    let rows = restored(site, major, "once", &["--as-stored", "--backup", &once]);
    assert_eq!(rows, "before 100, once 400");
    site.pitr()
        .words("backup --quiet")
        .env("PITR_CLUSTERS_MAIN_CONNINFO", set_back.conninfo("postgres"))
        .succeed();
    write(&set_back, "then");
    set_back.archive_now();
    assert_eq!(restored(site, major, "then", &[]), "before 100, then 800");
    set_back.stop(Stop::Immediate);
}
per_major!(l04_a_machine_that_was_set_back_goes_on_by_a_decision, v17);

/// Two repositories follow different lives until both have the decision; then one is brought up to date from the other.
#[test]
fn l13_sync_joins_no_two_lives_of_a_timeline() {
    let (mut two, _) = forked(lives(16));
    let (site, production) = (&two.site, &mut two.production);
    site.add_repository("second", "required = false\n");
    // The second one gets what was archived first, and the copies that were refused.
    site.pitr().words("repo sync").succeed();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let at = config.find("[repositories.").unwrap() + "[repositories.".len();
    let first = ["--repository", config[at..].split(']').next().unwrap()];
    resolve(site, &[&first[..], &["--confirm"]].concat()).success();
    for _ in 0..5 {
        write(production, "prod");
        production.switch_wal();
    }
    production.wait_log("already archived with other content");
    // Behind a gap, too, nothing is stored in the second one: what lies before the gap is the clone's.
    wait_until("the last one was offered", || {
        production.log().matches("another server wrote it").count() >= 2
    });
    let sync = site.pitr().words("repo sync").run();
    sync.expect_code(10)
        .expect_stderr("follow different lives of it");
    resolve(site, &["--confirm"]).success();
    production.archive_now();
    site.pitr().words("repo sync").succeed();
    site.pitr().words("verify").succeed();
    for (name, repository) in [("a", first[1]), ("b", "second")] {
        let rows = restored(site, 16, name, &["--repository", repository]);
        assert_eq!(rows, "before 100, prod 600", "{repository}");
    }
    // A fresh one gets both lives, and the decision before.
    site.add_repository("third", "");
    site.pitr()
        .args(["repo", "sync", "--from", first[1], "--to", "third"])
        .succeed();
    let args = ["--repository", "third"];
    assert_eq!(restored(site, 16, "c", &args), "before 100, prod 600");
    let args = ["--repository", "third", "--as-stored"];
    assert_eq!(restored(site, 16, "d", &args), "before 100, fake 400");
    production.stop(Stop::Immediate);
}

/// Hosts that only write name copies by their keyed hashes; who can read decides.
#[test]
fn l02_a_fork_in_an_encrypted_repository_is_resolved_by_who_can_read() {
    let mut two = lives(17);
    let sealed = Sealed::new(&two.production);
    let archive = pitr_archive().arg("--config").arg(sealed.config("writer"));
    let archive = archive.arg("%p").shell();
    two.production.append_config("archive_command", &archive);
    let backup = sealed.on("writer").words("backup --quiet");
    fork(&mut two, &backup);
    let production = &mut two.production;
    let by = |host: &'static str| {
        let sealed = &sealed;
        move || sealed.on(host)
    };
    resolve_by(&by("writer"), &["--confirm"])
        .expect_code(1)
        .expect_stderr("cannot be read with the configured keys");
    resolve_by(&by("janitor"), &["--confirm"]).expect_code(1);
    resolve_by(&by("reader"), &["--confirm"]).success();
    for _ in 0..5 {
        write(production, "prod");
        production.archive_now();
    }
    sealed.on("reader").words("verify").succeed();
    let copies = sealed.sandbox.dir("copies");
    let rows = restored_by(sealed.on("reader"), &copies, (17, "end"), &[]);
    assert_eq!(rows, "before 100, prod 600");
    let args = ["--as-stored"];
    let rows = restored_by(sealed.on("reader"), &copies, (17, "clone"), &args);
    assert_eq!(rows, "before 100, fake 400");
    // A janitor without keys deletes in both lives, and nothing that is needed.
    sealed.on("writer").words("backup --quiet").succeed();
    sealed.on("janitor").args(expire_at_once()).succeed();
    sealed.on("reader").words("verify").succeed();
    let rows = restored_by(sealed.on("reader"), &copies, (17, "after"), &[]);
    assert_eq!(rows, "before 100, prod 600");
    production.stop(Stop::Immediate);
}

/// A server waits at the first repository that refuses its segment: one decision is enough for both.
#[test]
fn l02_one_decision_is_enough_for_two_required_repositories() {
    let mut two = lives(14);
    two.site.add_repository("second", "");
    let backup = two.site.pitr().words("backup --quiet");
    fork(&mut two, &backup);
    let (site, production) = (&two.site, &mut two.production);
    let run = resolve(site, &["--confirm", "--json"]).success().json();
    assert_eq!(run["recorded"].as_array().unwrap().len(), 2, "{run}");
    for _ in 0..5 {
        write(production, "prod");
        production.archive_now();
    }
    site.pitr().words("verify").succeed();
    production.stop(Stop::Immediate);
}

/// A timeline that goes on from the life that is followed keeps it from being given away, until somebody says that it is not the cluster.
#[test]
fn l08_l18_what_a_timeline_descends_from_is_not_given_away() {
    let (mut two, _) = forked(lives(19));
    // The clone is promoted, and archives on its own timeline.
    two.clone.touch("standby.signal");
    two.clone.start();
    two.clone.promote();
    two.clone.wait_promoted();
    write(&two.clone, "fake");
    assert!(two.clone.archive_now().starts_with("00000002"));
    two.clone.stop(Stop::Fast);
    let site = &two.site;
    resolve(site, &["--confirm"])
        .expect_code(8)
        .expect_stderr("timeline 2 leaves timeline 1 behind the fork");
    let abandon = [
        "timeline",
        "abandon",
        "2",
        "--reason",
        "a clone",
        "--confirm",
    ];
    site.pitr().args(abandon).succeed();
    resolve(site, &["--confirm"]).success();
    write(&two.production, "prod");
    two.production.archive_now();
    // It ends before the clone's timeline begins, and that is no hole: the clone left the life that lost.
    assert_eq!(restored(site, 19, "begin", &[]), "before 100, prod 200");
    for _ in 0..5 {
        write(&two.production, "prod");
        two.production.archive_now();
    }
    assert_eq!(restored(site, 19, "end", &[]), "before 100, prod 700");
    // A timeline that descends from the life that lost is no damage.
    site.pitr().words("verify").succeed();
    let args = ["--as-stored", "--target-timeline", "2"];
    assert_eq!(restored(site, 19, "clone", &args), "before 100, fake 500");
    two.production.stop(Stop::Immediate);
}

/// Row T84: server and one repository went back together, and the other repository has what was written before. A sync brings none of that to
/// the first one, which never had it, and follows the life that goes on.
fn t84_no_sync_brings_back_the_wal_that_a_machine_had_before_it_was_set_back(major: u32) {
    let two = lives(major);
    let (site, mut old, mut set_back) = (&two.site, two.production, two.clone);
    let remote = site.add_repository("remote", "required = false\n");
    site.pitr().words("repo sync").succeed();
    let snapshot = site.sandbox().join("snapshot");
    copy_tree(site.repository(), &snapshot);
    old.start();
    for _ in 0..8 {
        write(&old, "once");
        old.archive_now();
    }
    old.stop(Stop::Immediate);
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    std::fs::rename(&snapshot, site.repository()).unwrap();
    set_back.start();
    for _ in 0..2 {
        write(&set_back, "then");
        set_back.archive_now();
    }
    resolve(site, &["--confirm"]).success();
    let backup = ["backup", "--quiet", "--full"];
    let backup = site.pitr().args(backup);
    let own = set_back.conninfo("postgres");
    backup.env("PITR_CLUSTERS_MAIN_CONNINFO", own).succeed();
    write(&set_back, "then");
    set_back.archive_now();
    let held = || {
        let paths = paths_below(&site.cluster_folder().join("wal"));
        paths.into_iter().collect::<std::collections::BTreeSet<_>>()
    };
    let before = held();
    let own = || paths_below(&remote).len();
    let there = own();
    for _ in 0..2 {
        let sync = site.pitr().words("repo sync").run();
        sync.expect_code(10)
            .expect_stderr("copies go on with the next timeline");
    }
    assert_eq!((held(), own()), (before, there));
    for _ in 0..6 {
        write(&set_back, "then");
        set_back.archive_now();
    }
    let rows = restored(site, major, "end", &["--repository", "local"]);
    assert_eq!(rows, "before 100, then 900");
    set_back.stop(Stop::Immediate);
}
per_major!(t84_no_sync_brings_back_the_wal_that_a_machine_had_before_it_was_set_back, v14 v18);
