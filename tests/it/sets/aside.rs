//! A cluster of a recovery recovers beside the one that runs: the applications are down for an exchange of names.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::shop::{Shop, read};
use super::{TEN, wreck};
use crate::alert::Web;
use crate::common::{Cluster, files_below, wait_until};

/// How long a recovery stands still in the middle of an outage.
const PAUSE: Duration = Duration::from_millis(1500);

fn waiting(shop: &Shop) -> PathBuf {
    shop.cluster.pgdata().with_added_extension("pitr-new")
}

pub fn full(mark: &str) -> [&str; 7] {
    let set = ["recover", "full", "--set", "shop", "--mark"];
    [set[0], set[1], set[2], set[3], set[4], mark, "--confirm"]
}

/// A kill at any point of the way aside: the shop stays open, and the same command goes on.
#[test]
fn r81_a_kill_while_a_cluster_recovers_aside_stops_nothing() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    wreck(&shop);
    for point in [
        "recover-begun-0",
        "aside-restored",
        "aside-opened",
        "aside-recovered",
        "recover-worked-0",
        "recover-done-1",
    ] {
        let run = shop.pitr(&full(&mark)).env("PITR_FAULT", point).run();
        assert!(run.stderr.contains(&format!("\"{point}\"")), "{run}");
        assert!(!shop.path("tmp/closed").exists(), "{point} stops nothing");
        // Writes of this time are lost with the rest, and kept for the way back.
        shop.write_counter(40);
    }
    let copy = waiting(&shop);
    assert!(
        copy.join("pg_wal/pitr.guard").exists(),
        "nobody archives from it"
    );
    let before = shop.counters();
    let rows = shop.cluster.value("select count(*) from counter");
    let report = shop.pitr(&full(&mark)).arg("--json").succeed().json();
    assert_eq!(shop.counters(), TEN);
    assert!(!copy.exists());
    assert!(report["outage"]["ms"].as_u64().unwrap() > 0, "{report:#}");
    // One timeline began, and all of it is archived.
    shop.cluster.sql("checkpoint");
    shop.cluster.archive_now();
    let histories = || {
        let mut all = files_below(&shop.path("one"));
        all.retain(|path| path.ends_with("history") && path.contains("/wal/"));
        all.len()
    };
    wait_until("the history is archived", || histories() == 1);
    shop.pitr(&["verify", "--quiet"]).succeed();
    let back = ["recover", "rollback", "--confirm", "--json"];
    let told = shop.pitr(&back).succeed().json();
    assert_eq!(told["warnings"], Value::Array(Vec::new()), "{told:#}");
    assert_eq!(shop.counters(), before);
    let now = shop.cluster.value("select count(*) from counter");
    assert_eq!(now, rows);
    shop.stop_receiving();
}

/// A recovery that was given up before its switch leaves nothing beside the cluster, and stopped nothing.
#[test]
fn r82_a_recovery_that_is_taken_back_before_the_stop_removes_the_copy() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let first = shop.mark();
    shop.write_counter(20);
    let second = shop.mark();
    let started = "select pg_postmaster_start_time()";
    let before = shop.cluster.value(started);
    for point in [
        "recover-begun-0",
        "aside-opened",
        "aside-recovered",
        "recover-done-1",
    ] {
        let run = shop.pitr(&full(&second)).env("PITR_FAULT", point).run();
        assert!(run.stderr.contains(&format!("\"{point}\"")), "{run}");
        shop.pitr(&["recover", "rollback", "--confirm"]).succeed();
        assert!(!waiting(&shop).exists(), "{point}");
    }
    assert_eq!(shop.cluster.value(started), before);
    // Another moment begins anew.
    shop.pitr(&full(&first)).succeed();
    assert_eq!(shop.counters(), TEN);
    // The copy of a second recovery is given up without a look at the replacement of the first one.
    let run = shop
        .pitr(&full(&second))
        .env("PITR_FAULT", "recover-begun-5")
        .run();
    assert!(run.stderr.contains("\"recover-begun-5\""), "{run}");
    shop.pitr(&["recover", "rollback", "--confirm"]).succeed();
    assert_eq!(shop.counters(), TEN);
    shop.stop_receiving();
}

/// A copy on which somebody started a server lacks WAL of its timeline: it does not take the place.
#[test]
fn r83_a_copy_that_was_changed_does_not_take_the_place() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    wreck(&shop);
    let run = shop
        .pitr(&full(&mark))
        .env("PITR_FAULT", "recover-done-1")
        .run();
    assert!(run.stderr.contains("\"recover-done-1\""), "{run}");
    let control = waiting(&shop).join("global/pg_control");
    let mut bytes = std::fs::read(&control).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&control, bytes).unwrap();
    let refused = shop.pitr(&full(&mark)).exits(8);
    refused.expect_stderr("a server has run on it since");
    shop.pitr(&["recover", "rollback", "--confirm"]).succeed();
    assert_eq!(shop.counters().rows, 20);
    assert!(!waiting(&shop).exists());
    shop.stop_receiving();
}

/// A separate pg_wal goes along; a tablespace outside keeps the cluster to the longer way, and the plan says so.
fn directories_outside(major: u32) {
    let mut shop = Shop::open(major);
    shop.write_counter(10);
    let mark = shop.mark();
    let wrecked = wreck(&shop);
    shop.script("stop-pg").success();
    let (wal, far) = (shop.cluster.pgdata().join("pg_wal"), shop.path("wal"));
    std::fs::rename(&wal, &far).unwrap();
    std::os::unix::fs::symlink(&far, &wal).unwrap();
    crate::common::user::own(&far);
    shop.script("start-pg").success();
    let plan = shop.json(&[&full(&mark)[..6], &["--dry-run"]].concat());
    assert_eq!(plan["after_stop"], Value::Array(Vec::new()), "{plan:#}");
    shop.pitr(&full(&mark)).succeed();
    assert_eq!(shop.counters(), TEN);
    assert_eq!(std::fs::read_link(&wal).unwrap(), far);
    shop.pitr(&["recover", "rollback", "--confirm"]).succeed();
    assert_eq!(shop.counters(), wrecked);

    let space = shop.sandbox.dir("space");
    crate::common::user::own(&space);
    let create = format!("create tablespace far location '{}'", space.display());
    shop.cluster.sql(&create);
    let plan = shop.pitr(&full(&mark)[..6]).arg("--dry-run").succeed();
    plan.expect_stdout("main is restored after the stop")
        .expect_stdout("it has tablespaces outside of its data directory")
        .expect_stdout("--replace --adopt");
    shop.pitr(&full(&mark)).succeed();
    assert_eq!(shop.counters(), TEN);
    shop.stop_receiving();
}
crate::per_major!(directories_outside, v13 v18);

/// Each sink hears of the begin and the end, and none of a word of the configuration's commands. A hook that fails stops nothing.
#[test]
fn r85_sinks_hear_of_a_recovery_and_a_hook_that_fails_stops_nothing() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    let wrecked = wreck(&shop);
    let web = Web::start();
    let config = read(&shop.path("pitr.toml"));
    let hook = shop.sandbox.file(
        "hook",
        "echo $SECRET s3same >> hooked; exit $(cat hook-status)\n",
    );
    shop.sandbox.file("hook-status", "1");
    let hook = format!(
        "hook = [\"/bin/sh\", \"-c\", \"cd {} && . {}\"]\n",
        shop.path("").display(),
        hook.display()
    );
    let sinks = format!(
        "[alerts.web]\nkind = \"webhook\"\nurl = \"{}\"\n[alerts.gone]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:1/x\"\n",
        web.url()
    );
    let with = config.replace("state_dir =", &format!("{hook}state_dir ="));
    assert_ne!(with, config);
    shop.sandbox.file("pitr.toml", format!("{with}{sinks}"));
    let told = || -> Vec<(String, String)> {
        let heard = web.take();
        assert!(!format!("{heard:?}").contains("s3same"), "{heard:?}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let each = heard.iter();
        each.map(|one| {
            assert_eq!(one["id"], "sets/shop/recovery", "{one:#}");
            (text(&one["event"]), text(&one["severity"]))
        })
        .collect()
    };
    let pair = |event: &str, severity: &str| (event.to_owned(), severity.to_owned());
    // The applications are sick: the run does not come to its end, and the sinks hear of it.
    shop.sandbox.file("tmp/sick", "");
    let failed = shop
        .pitr(&full(&mark))
        .env("PITR_FAULT_SECONDS", "0.1")
        .run();
    assert!(!failed.is_success(), "{failed}");
    assert_eq!(told(), [pair("new", "high"), pair("new", "critical")]);
    assert_eq!(shop.counters(), TEN, "what runs goes on");
    assert_eq!(read(&shop.path("hooked")).lines().count(), 1);
    std::fs::remove_file(shop.path("tmp/sick")).unwrap();
    let backups = || {
        let info = shop.pitr(&["info", "--json"]).run().json();
        info["clusters"][0]["backups"].as_array().unwrap().len()
    };
    let before = backups();
    let run = shop.pitr(&full(&mark)).run();
    assert!(matches!(run.code(), 0 | 6), "{run}");
    run.expect_stderr("alert sink \"gone\" was not told");
    assert_eq!(told(), [pair("new", "high"), pair("resolved", "high")]);
    assert_eq!(backups(), before + 1, "the cluster is backed up");
    // A hook runs once more on the way back, and its failure is a warning there, too.
    let back = shop.pitr(&["recover", "rollback", "--confirm"]).exits(6);
    back.expect_stderr("run the hook");
    assert_eq!(told(), [pair("new", "high"), pair("resolved", "high")]);
    assert_eq!(shop.counters(), wrecked);
    assert_eq!(read(&shop.path("hooked")).lines().count(), 2);
    shop.stop_receiving();
}

/// The outage is the time from stop to start, also that between two tries; a backup that fails behind it takes nothing back.
#[test]
fn r110_a_backup_that_fails_behind_a_recovery_is_a_warning() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    wreck(&shop);
    // The last steps find a repository that takes nothing.
    let shut = format!("mv {0} {0}.away", shop.path("one").display());
    shop.sandbox.file("health", format!("#!/bin/sh\n{shut}\n"));
    let run = shop
        .pitr(&full(&mark))
        .env("PITR_FAULT", "recover-done-2")
        .run();
    assert!(run.stderr.contains("\"recover-done-2\""), "{run}");
    std::thread::sleep(PAUSE);
    let report = shop.pitr(&full(&mark)).arg("--json").exits(6).json();
    assert_eq!(report["is_complete"], true, "{report:#}");
    let warnings = report["warnings"].to_string();
    for member in ["back main up", "back redis:shop up"] {
        assert!(warnings.contains(member), "{report:#}");
    }
    assert_eq!(shop.counters(), TEN);
    let steps = report["steps"].as_array().unwrap();
    let at = |text: &str| steps.iter().position(|step| step["step"] == text).unwrap();
    let ms = |step: &Value| step["ms"].as_u64().unwrap_or(0);
    let (stop, start) = (at("stop the applications"), at("start the applications"));
    let down: u64 = steps[stop..=start].iter().map(ms).sum();
    let outage = report["outage"]["ms"].as_u64().unwrap();
    let pause = u64::try_from(PAUSE.as_millis()).unwrap();
    assert!(outage >= down + pause, "{report:#}");
    assert_eq!(stop, 2, "{report:#}");
    std::fs::rename(shop.path("one.away"), shop.path("one")).unwrap();
    shop.stop_receiving();
}

/// A standby was promoted while the copy recovered: its timeline has the number. Nothing is started, and the way back is open.
#[test]
fn r111_a_standby_that_took_the_number_of_the_timeline_stops_the_adoption() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    let wrecked = wreck(&shop);
    let run = shop
        .pitr(&full(&mark))
        .env("PITR_FAULT", "recover-done-1")
        .run();
    assert!(run.stderr.contains("\"recover-done-1\""), "{run}");
    let standby = Cluster::builder(17)
        .without_fsync()
        .standby_of(&shop.cluster)
        .start();
    standby.promote();
    standby.sql("create table other_life (a int)");
    standby.archive_now();
    wait_until("the other history is archived", || {
        let all = files_below(&shop.path("one"));
        all.iter()
            .any(|path| path.ends_with("history") && path.contains("/wal/"))
    });
    let failed = shop.pitr(&full(&mark)).run();
    assert!(!failed.is_success(), "{failed}");
    failed.expect_stderr("let main archive");
    assert!(shop.path("tmp/closed").exists(), "nothing is started");
    shop.pitr(&["recover", "rollback", "--confirm"]).succeed();
    assert_eq!(shop.counters(), wrecked);
    let lost = "select to_regclass('other_life') is null";
    assert_eq!(shop.cluster.value(lost), "t");
    shop.stop_receiving();
}
