//! Recovery sets: marks, recoveries to them, their undo.

mod aside;
mod back;
mod by_hand;
mod cache;
mod campaign;
mod erasures;
mod marks;
mod runbook;
mod shop;
mod standby;
mod trees;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use shop::{Counters, Shop, read};

use crate::common::{Sandbox, list_of, pitr, user, wait_until};

const TEN: Counters = Counters {
    rows: 10,
    key: 10,
    file: 10,
};

/// Wrecks a shop. Returns what a customer sees of it.
fn wreck(shop: &Shop) -> Counters {
    shop.write_counter(20);
    shop.cluster.sql("delete from counter where n <= 10");
    shop.redis(&["FLUSHALL"]);
    shop.redis(&["SET", "counter", "99"]);
    shop.sandbox.file("settings/.env", "SHOP_TITLE=Coffee\n");
    shop.counters()
}

fn a_mark_is_tested_and_the_whole_shop_comes_back_to_it(major: u32) {
    let mut shop = Shop::open(major);
    shop.write_counter(10);
    let mark = shop.mark();
    let wrecked = wreck(&shop);
    assert_ne!(wrecked, TEN);

    // Into a folder that is thrown away.
    let tested = shop.json(&["recover", "test", "--set", "shop", "--mark", &mark]);
    assert_eq!(tested["passed"], true, "{tested:#}");
    assert_eq!(tested["plan"]["level"], 2, "{tested:#}");
    assert_eq!(tested["members"].as_array().unwrap().len(), 4);
    assert_eq!(shop.counters(), wrecked, "a test changes nothing");

    // The plan alone.
    let full = ["recover", "full", "--set", "shop", "--mark", &mark];
    let shown = shop.pitr(&full).arg("--json").exits(8).json();
    assert_eq!(shown["plan"]["reachable"], true, "{shown:#}");
    assert!(shown["run"].is_null());
    assert_eq!(shop.counters(), wrecked);
    // The test was a drill of the cluster, and nothing has measured the others on this host.
    let others = ["redis:shop", "files:uploads", "config:host"];
    assert_eq!(shown["plan"]["by_default"], serde_json::json!(others));
    assert_eq!(shown["plan"]["untimed"], serde_json::json!([]));
    let words = "; by default, because nothing on this host has measured them: redis:shop";
    shop.pitr(&full).run().expect_stdout(words);

    let report = shop.pitr(&full).words("--confirm --json").succeed();
    let report = report.json();
    assert_eq!(report["is_complete"], true, "{report:#}");
    let counters = shop.counters();
    assert_eq!(counters, TEN);
    assert_eq!(read(&shop.path("settings/.env")), "SHOP_TITLE=Tea\n");
    assert_eq!(
        shop.redis(&["EXISTS", "behind"]),
        "0",
        "written behind the mark"
    );
    assert!(!shop.path("tmp/closed").exists(), "the shop is open again");

    // As it was.
    let run = report["run"].as_str().unwrap().to_owned();
    let back = ["recover", "rollback", &run, "--json"];
    let told = shop.pitr(&back).exits(8).json();
    assert_eq!(told["written"], Value::Array(Vec::new()), "{told:#}");
    shop.pitr(&back).arg("--confirm").succeed();
    assert_eq!(shop.counters(), wrecked);
    assert_eq!(read(&shop.path("settings/.env")), "SHOP_TITLE=Coffee\n");
    let again = shop.pitr(&back).arg("--confirm").exits(8);
    again.expect_stdout("was rolled back");
    // The next plan has what this recovery took.
    let shown = shop.pitr(&full).arg("--json").exits(8).json();
    assert_eq!(shown["plan"]["by_default"], serde_json::json!([]));
    for member in shown["plan"]["members"].as_array().unwrap() {
        assert_eq!(member["reached"]["basis"], "measured", "{member:#}");
    }
    shop.stop_receiving();
}
crate::per_major!(a_mark_is_tested_and_the_whole_shop_comes_back_to_it, v13 v17 v18);

/// A target behind all that is stored is refused with the last moment that cluster and Redis both reach.
#[test]
fn r132_the_nearest_moment_of_a_set_is_one_that_every_member_reaches() {
    let mut shop = Shop::open(17);
    for n in 10..13 {
        shop.write_counter(n);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    shop.cluster.archive_now();
    // Redis has more, and later.
    shop.redis(&["SET", "behind", "1"]);
    shop.stop_receiving();
    let line = [
        "recover",
        "database",
        "--set",
        "shop",
        "--json",
        "--target-time",
    ];
    let asked = |time: &str| shop.pitr(&line).args([time, "--dry-run"]).run();
    let refused = asked("2099-01-01T00:00:00Z").expect_code(5).json();
    let hint = refused["hint"].as_str().unwrap();
    let begin = "The nearest moment before it: --target-time \"";
    let (_, rest) = hint
        .split_once(begin)
        .unwrap_or_else(|| panic!("{refused:#}"));
    assert!(!hint.contains("moment after it"), "{refused:#}");
    let (time, _) = rest.split_once('"').unwrap();
    let shown = asked(time).success().json();
    assert_eq!(shown["plan"]["reachable"], true, "{shown:#}");
    let test = [
        "recover",
        "test",
        "--set",
        "shop",
        "--json",
        "--target-time",
        time,
    ];
    let tested = shop.pitr(&test).succeed().json();
    assert_eq!(tested["passed"], true, "{tested:#}");
}

/// A recovery went back too far. The commits behind its moment lie on the timeline that was left.
#[test]
fn r210_a_time_of_two_lives_is_not_carried_out_until_a_timeline_is_named() {
    let mut shop = Shop::open(17);
    let config = read(&shop.path("pitr.toml"));
    let all = "members = [\"main\", \"redis:shop\", \"files:uploads\", \"config:host\"]";
    assert!(config.contains(all), "{config}");
    let config = config.replace(all, "members = [\"main\"]");
    shop.sandbox.file("pitr.toml", config);
    let apart = || std::thread::sleep(std::time::Duration::from_millis(20));
    let moment = |n: u64| {
        shop.write_counter(n);
        apart();
        let time = shop.now();
        apart();
        time
    };
    let [early, late, _] = [10, 20, 30].map(moment);
    shop.cluster.archive_now();
    let recover = |time: &str| {
        let line = ["recover", "database", "--set", "shop", "--target-time"];
        shop.pitr(&line).arg(time)
    };
    recover(&early).arg("--confirm").succeed();
    assert_eq!(shop.counters().rows, 10);
    shop.write_counter(40);
    shop.cluster.archive_now();
    let shown = recover(&late).arg("--dry-run").succeed();
    shown.expect_stderr("main: timeline 1, which is not on the way to timeline 2, holds ");
    let refused = recover(&late).arg("--confirm").exits(8);
    refused.expect_stderr("--target-timeline main=1");
    assert_eq!(shop.counters().rows, 40, "nothing was changed");
    // The latest one is named, too.
    let latest = recover(&late).words("--target-timeline latest --confirm");
    latest.succeed();
    assert_eq!(shop.counters().rows, 10);
    let named = recover(&late).words("--target-timeline 1 --confirm").run();
    named.success();
    assert_eq!(shop.counters().rows, 20);
    shop.stop_receiving();
}

/// A commit, a key and a file that were written since are not lost without a word.
#[test]
fn r41_a_rollback_is_refused_once_something_was_written() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    let wrecked = wreck(&shop);
    let full = aside::full(&mark);
    shop.pitr(&full).succeed();
    // A checkpoint moves the position and commits nothing.
    shop.cluster.sql("checkpoint");
    let back = ["recover", "rollback", "--json"];
    let told = shop.pitr(&back).arg("--dry-run").succeed().json();
    assert_eq!(told["written"], Value::Array(Vec::new()), "{told:#}");
    shop.write_counter(30);
    let told = shop.pitr(&back).arg("--dry-run").succeed().json();
    let written: Vec<&str> = list_of(&told["written"])
        .iter()
        .map(|w| w.as_str().unwrap())
        .collect();
    assert_eq!(
        written,
        [
            "transactions have committed in main",
            "redis:shop was written to",
            "1 entries of files:uploads were changed"
        ]
    );
    let refused = shop.pitr(&back).arg("--confirm").exits(8);
    refused.expect_stdout("something was written");
    assert_eq!(shop.counters().rows, 30, "nothing was changed");
    shop.pitr(&back)
        .words("--confirm --discard-changes")
        .succeed();
    assert_eq!(shop.counters(), wrecked);
    shop.stop_receiving();
}

/// Whatever is missing is said before anything is stopped.
#[test]
fn r42_what_cannot_be_recovered_is_refused_beforehand() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let words = ["recover", "full", "--set", "shop", "--confirm", "--mark"];
    let run = |mark: &str| shop.pitr(&words).arg(mark).run();
    run("20200101T000000Z-000000")
        .expect_code(2)
        .expect_stderr("has no mark");
    // The log behind the mark is not stored yet.
    let marked = shop.json(&["mark", "shop"]);
    let id = marked["id"].as_str().unwrap().to_owned();
    assert_eq!(marked["level"], 2);
    let refused = run(&id).expect_code(5);
    refused.expect_stderr("no undamaged backup of it was taken after the mark");
    assert!(!shop.path("tmp/closed").exists());
    shop.pitr(&["files", "backup", "uploads"]).succeed();
    shop.pitr(&["config", "backup", "host"]).succeed();
    shop.settle(&id);
    let config = read(&shop.path("pitr.toml"));
    let without = config.replace("service.data_directory", "#service.data_directory");
    shop.sandbox.file("pitr.toml", without);
    run(&id)
        .expect_code(3)
        .expect_stderr("service.data_directory");
    shop.sandbox.file(
        "pitr.toml",
        config.replace(", \"config:host\"", ", \"config:host\", \"files:more\"")
            + &format!(
                "[files.more]\nsource = \"{}\"\n",
                shop.path("uploads").display()
            ),
    );
    run(&id)
        .expect_code(5)
        .expect_stderr("does not name member");
    shop.sandbox.file("pitr.toml", config);
    assert!(!shop.path("tmp/closed").exists(), "nothing was stopped");
    // It refuses a data directory that cannot be moved aside, and stops nothing.
    let above = shop.cluster.pgdata().parent().unwrap().to_owned();
    let rights = std::fs::metadata(&above).unwrap().permissions();
    std::fs::set_permissions(&above, Permissions::from_mode(0o555)).unwrap();
    let refused = run(&id);
    std::fs::set_permissions(&above, rights).unwrap();
    refused.expect_code(8).expect_stderr("may not write into");
    assert!(!shop.path("tmp/closed").exists(), "nothing was stopped");
    // Without a replica Redis forgets to count what is written.
    shop.stop_receiving();
    shop.redis(&["CONFIG", "SET", "repl-backlog-ttl", "1"]);
    wait_until("the backlog is gone", || {
        shop.redis(&["INFO", "replication"])
            .contains("repl_backlog_active:0")
    });
    let refused = shop.pitr(&["mark", "shop"]).exits(8);
    refused.expect_stderr("is not counted");
}

/// A host that starts its services again, and applications that write, between a kill and the command that goes on.
#[test]
fn r44_a_server_that_was_started_meanwhile_is_stopped_before_its_files_change() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    wreck(&shop);
    let full = aside::full(&mark);
    let server = || {
        let told = shop.redis(&["INFO", "server"]);
        let id = told.lines().find(|line| line.starts_with("run_id:"));
        id.unwrap().trim().to_owned()
    };
    // Steps 3 and 4 stop Redis and the cluster, 6 puts Redis in its place.
    for point in ["recover-done-4", "recover-begun-6"] {
        let run = shop.pitr(&full).env("PITR_FAULT", point).run();
        assert!(run.stderr.contains(&format!("\"{point}\"")), "{run}");
        shop.script("start-redis").success();
        shop.script("start-shop").success();
        wait_until("Redis loaded its old data", || {
            shop.redis(&["INFO", "persistence"]).contains("\nloading:0")
        });
    }
    let old = server();
    shop.pitr(&full).succeed();
    assert_ne!(server(), old, "the old server went on");
    assert_eq!(shop.counters(), TEN);
    assert!(!shop.path("tmp/closed").exists());
    shop.stop_receiving();
}

/// A hostile repository: what is no mark is named, and leads nowhere.
#[test]
fn r43_a_mark_that_was_copied_is_none() {
    let mut shop = Shop::open(17);
    shop.json(&["mark", "shop"]);
    let events = shop.path("one/aux/sets/shop/events");
    let day = std::fs::read_dir(&events)
        .unwrap()
        .map(|e| e.unwrap().path());
    let day = day
        .into_iter()
        .find(|p| {
            p.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("marks-")
        })
        .unwrap();
    let mark = std::fs::read_dir(&day)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let name = mark.file_name().unwrap().to_str().unwrap().to_owned();
    let copy = day.join(name.replace("-mark-", "-mark-0"));
    std::fs::copy(&mark, &copy).unwrap();
    user::own(&copy);
    let info = shop.pitr(&["info", "--set", "shop", "--json"]).run();
    let info = info.json();
    assert_eq!(info["marks"].as_array().unwrap().len(), 1, "{info:#}");
    assert_eq!(info["refused"].as_array().unwrap().len(), 1, "{info:#}");
    shop.stop_receiving();
}

#[test]
fn the_runbook_is_stale_when_the_configuration_is_another_one() {
    let mut shop = Shop::open(17);
    let book = shop.pitr(&["runbook", "--set", "shop"]).succeed();
    let book = book.expect_stdout("pitr recover full --set shop");
    assert!(book.stdout.contains("stop redis:shop: `/bin/sh "), "{book}");
    let copy = shop.sandbox.file("runbook.md", &book.stdout);
    let check = || shop.pitr(&["runbook", "--check"]).arg(&copy).run();
    check().success();
    let config = read(&shop.path("pitr.toml"));
    shop.sandbox
        .file("pitr.toml", config.replace("stop-shop", "close-shop"));
    check()
        .expect_code(4)
        .expect_stderr("not that of the configuration");
    shop.sandbox.file("pitr.toml", config);
    shop.stop_receiving();
}

#[test]
fn a_recovery_of_before_is_read_and_one_that_is_recorded_nowhere_is_said() {
    let sandbox = Sandbox::new("sets");
    let place = |name: &str| sandbox.join(name).display().to_string();
    let config = sandbox.file(
        "pitr.toml",
        format!(
            "[files.up]\nsource = \"{}\"\n[sets.shop]\nmembers = [\"files:up\"]\n[agent]\nstate_dir = \"{}\"\n[repositories.one]\nurl = \"file://{}\"\n",
            place("source"),
            place("state"),
            place("one"),
        ),
    );
    let record = sandbox.dir("cache/pitr/recover/20261120T064049Z-shop");
    user::own_all(sandbox.path());
    let back = || {
        let program = pitr().arg("--config").arg(&config);
        let words = ["recover", "rollback", "--set", "shop", "--json"];
        program.args(words).env("XDG_CACHE_HOME", place("cache"))
    };
    // A folder without a record is of a run that never began.
    let none = back().exits(2);
    for place in [place("state/recover"), place("cache/pitr/recover")] {
        assert!(none.stdout.contains(&place), "{none}");
    }
    std::fs::write(
        record.join("run.json"),
        r#"{"format":1,"id":"20261120T064049Z-shop","set":"shop","extent":"full","moment":"mark m","began":"2026-11-20T06:40:49Z","members":[],"steps":[]}"#,
    )
    .unwrap();
    user::own_all(sandbox.path());
    let told = back().exits(8).json();
    assert_eq!(told["run"], "20261120T064049Z-shop", "{told:#}");
    // Others could have written it.
    let folder = sandbox.join("cache/pitr/recover");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&folder, mode).unwrap();
    let none = back().exits(2);
    assert!(none.stderr.contains("are not read"), "{none}");
}
