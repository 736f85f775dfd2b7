//! `pitr plan`, `pitr info` and `pitr wal` through the real program, against what real servers archived and how they recover.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::backup::{backup, extract, root};
use crate::common::{Cluster, Program, Run, Sandbox, Site, Stop, bin, copy_tree, list_of, user};
use crate::per_major;

fn plan(site: &Site, args: &[&str]) -> Value {
    let run = site.pitr().words("plan --json").args(args).run();
    run.json()
}

/// Inserts one row in a transaction of its own; returns its xid and the commit's time.
fn insert(cluster: &Cluster, value: i32) -> (String, String) {
    let client = cluster.client();
    let xid = client
        .value(&format!(
            "with i as (insert into t values ({value}) returning 1) select pg_current_xact_id_if_assigned()::text from i",
        ))
        .clone();
    let xid = if xid.is_empty() {
        client.value("select max(xmin::text::bigint)::text from t")
    } else {
        xid
    };
    let time =
        client.value("select (extract(epoch from clock_timestamp()) * 1000000)::bigint::text");
    (xid, time)
}

/// A newcomer who asks too early gets the next step.
#[test]
fn before_the_first_backup_and_before_wal_is_archived_the_next_step_is_named() {
    let wide = Cluster::builder(17)
        .without_fsync()
        .config("autovacuum", "off");
    let (site, cluster) = Site::with_cluster_of(wide);
    let run = site.pitr().arg("plan").exits(5);
    assert!(run.stdout.contains("take one: pitr backup"), "{run}");
    let run = site.pitr().arg("info").exits(1);
    assert!(run.stdout.contains("take one: pitr backup"), "{run}");

    cluster.sql("create table t (a int)");
    let (early, _) = insert(&cluster, 0);
    backup(&site).succeed();
    let (late, _) = insert(&cluster, 1);
    let lsn = cluster.value("select pg_create_restore_point('here')::text");
    let hint = "while the server lives, select pg_switch_wal() on it";
    let asked = |option: &str, value: &str| site.pitr().args(["plan", option, value]).run();
    for (option, value) in [
        ("--target-xid", late.as_str()),
        ("--target-name", "here"),
        ("--target-lsn", &lsn),
    ] {
        asked(option, value).expect_code(5).expect_stderr(hint);
    }
    // A transaction that ended before the backup does not come any more.
    let run = asked("--target-xid", &early).expect_code(5);
    assert!(!run.stderr.contains(hint), "{run}");
    cluster.archive_now();
    for (option, value) in [("--target-xid", late.as_str()), ("--target-name", "here")] {
        asked(option, value).success();
    }
    let run = asked("--target-name", "there").expect_code(5);
    assert!(run.stderr.contains(hint), "{run}");
}

/// Starts the backup with the settings of a plan and returns the server, promoted.
fn recover(site: &Site, major: u32, plan: &Value) -> (Cluster, Sandbox) {
    let id = plan["backup"]["id"].as_str().unwrap();
    let copy = Sandbox::new("copy");
    let folder = copy.dir("data");
    extract(site, &root(site, id), &folder);
    std::fs::write(folder.join("recovery.signal"), "").unwrap();
    user::own(&folder.join("recovery.signal"));
    let mut builder = Cluster::open(major, &folder)
        .option("archive_mode", "off")
        .option("restore_command", site.restore().words("%f %p").shell());
    for (name, value) in plan["recovery_settings"].as_object().unwrap() {
        if name.starts_with("recovery_target") {
            builder = builder.option(name, value.as_str().unwrap());
        }
    }
    let server = builder.promoted();
    (server, copy)
}

fn a_plan_says_where_the_server_stops(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql("create table t (a int)");
    insert(&cluster, 1);
    backup(&site).succeed();
    let (second, _) = insert(&cluster, 2);
    std::thread::sleep(Duration::from_millis(20));
    let (_, between) = insert(&cluster, 3);
    std::thread::sleep(Duration::from_millis(20));
    cluster.sql("begin; insert into t values (99); rollback");
    let (fourth, _) = insert(&cluster, 4);
    let point = cluster.value("select pg_create_restore_point('before drop')");
    insert(&cluster, 5);
    cluster.archive_now();

    let time = format!("@{}.{}", &between[..10], &between[10..]);
    for (args, rows, side) in [
        (vec![], "{1,2,3,4,5}", "after WAL location"),
        (
            vec!["--target-xid", &second],
            "{1,2}",
            "after commit of transaction",
        ),
        (
            vec!["--target-xid", &fourth, "--exclusive"],
            "{1,2,3}",
            "before commit of transaction",
        ),
        (vec!["--target-time", &time], "{1,2,3}", "before "),
        (
            vec!["--target-name", "before drop"],
            "{1,2,3,4}",
            "at restore point",
        ),
        (
            vec!["--target-lsn", &point, "--exclusive"],
            "{1,2,3,4}",
            "before WAL location",
        ),
        (
            vec!["--target-immediate"],
            "{1}",
            "after reaching consistency",
        ),
    ] {
        let p = plan(&site, &args);
        assert_eq!(p["reachable"], true, "{args:?} {p:#}");
        let (server, _copy) = recover(&site, major, &p);
        assert_eq!(
            server.value("select array_agg(a order by a)::text from t"),
            rows,
            "{args:?}"
        );
        let log = server.log();
        let line = log
            .lines()
            .find_map(|l| l.split("recovery stopping ").nth(1))
            .unwrap_or_default();
        assert!(line.starts_with(side), "{line} {p:#}");
        let stop = &p["stop"];
        if let Some(xid) = stop["xid"].as_u64() {
            assert!(line.contains(&format!("transaction {xid}")), "{line} {p:#}");
        }
        if line.contains("(LSN)") {
            let lsn = stop["lsn"].as_str().unwrap();
            assert!(line.contains(&format!("\"{lsn}\"")), "{line} {p:#}");
        }
        // The server does not print the side of names and consistency.
        let side = stop["side"].as_str().unwrap();
        let untold = line.starts_with("at ") || line.ends_with("consistency");
        assert!(untold || line.starts_with(side), "{line} {p:#}");
        let switch = server.value("select timeline_id::text from pg_control_checkpoint()");
        assert!(switch == "1" || switch == "2", "{switch}");
    }
}
per_major!(a_plan_says_where_the_server_stops);

#[test]
fn m11_one_deleted_segment_changes_the_answer_whatever_the_cache_says() {
    let (site, cluster) = Site::with_cluster(16);
    cluster.sql("create table t (a int)");
    backup(&site).succeed();
    insert(&cluster, 1);
    let first = cluster.archive_now();
    insert(&cluster, 2);
    let second = cluster.archive_now();
    insert(&cluster, 3);
    let third = cluster.archive_now();
    let cache = site.sandbox().dir("cache");
    let run = |verb: &[&str]| -> Program {
        site.pitr()
            .args(verb)
            .arg("--json")
            .env("XDG_CACHE_HOME", &cache)
    };
    for _ in 0..2 {
        let p = run(&["plan"]).succeed().json();
        assert_eq!(
            (&p["reachable"], &p["outcome"]),
            (&true.into(), &"end_of_wal".into())
        );
        assert_eq!(p["segments_needed"]["last"], third.as_str());
    }
    run(&["info"]).succeed();
    run(&["wal", "gaps"]).succeed();
    let object = site.object(&second);
    let aside = site.sandbox().join("aside");
    std::fs::rename(&object, &aside).unwrap();
    let p = run(&["plan"]).exits(5).json();
    assert_eq!(p["reason"], "gap");
    assert_eq!(p["segments_missing"], serde_json::json!([second]));
    assert_eq!(p["segments_missing_count"], 1);
    assert_eq!(p["outcome"], "fatal");
    let info = run(&["info"]).exits(1).json();
    assert_eq!(info["clusters"][0]["gaps"][0]["segments"], 1);
    let gaps = run(&["wal", "gaps"]).exits(4).json();
    assert_eq!(gaps["gaps"][0]["names"][0], second.as_str());
    // A moment before the hole is reached all the same.
    let before = p["nearest_before"]["lsn"].as_str().unwrap().to_owned();
    let p = run(&["plan", "--target-lsn", &before]).succeed().json();
    assert_eq!(p["segments_needed"]["last"], first.as_str());
    std::fs::rename(&aside, &object).unwrap();
    run(&["plan"]).succeed();
    // A damaged body is found although its index is cached.
    let third_object = site.object(&third);
    let mut bytes = std::fs::read(&third_object).unwrap();
    bytes[50] ^= 0xFF;
    std::fs::write(&third_object, bytes).unwrap();
    let damaged = run(&["plan"]).exits(5).json();
    assert_eq!(damaged["reason"], "damaged_wal", "{damaged:#}");
    assert!(damaged["nearest_before"]["lsn"].is_string());
    run(&["info"]).exits(1);
}

/// The names that the cache knows from before have other WAL: of fewer segments, and of as many.
#[test]
fn m11_a_repository_that_was_put_back_is_planned_from_what_it_holds_now() {
    let builder = Cluster::small(17);
    let (site, mut cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    cluster.sql("create table t (a int)");
    backup(&site).succeed();
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let places = [cluster.pgdata().to_owned(), site.repository().to_owned()];
    let aside = site.sandbox().dir("aside");
    let asides = ["data", "repository"].map(|name| aside.join(name));
    for (place, aside) in places.iter().zip(&asides) {
        copy_tree(place, aside);
    }
    cluster.start();
    for value in 0..12 {
        insert(&cluster, value);
        cluster.archive_now();
    }
    let ask = |verb: &[&str], cache: &Path| {
        let run = site.pitr().args(verb).arg("--json");
        run.env("XDG_CACHE_HOME", cache).run()
    };
    let to = site.sandbox().dir("copy").join("data");
    let verbs: [&[&str]; 4] = [
        &["plan"],
        &["info"],
        &["timeline", "list"],
        &["restore", "--dry-run", "--to", to.to_str().unwrap()],
    ];
    let before = site.sandbox().dir("before");
    ask(verbs[0], &before).success();
    for (round, segments) in [2, 12].into_iter().enumerate() {
        cluster.stop(Stop::Fast);
        for (place, aside) in places.iter().zip(&asides) {
            std::fs::remove_dir_all(place).unwrap();
            copy_tree(aside, place);
        }
        cluster.start();
        for _ in 0..segments {
            cluster.sql("insert into t select generate_series(1, 1000)");
            cluster.archive_now();
        }
        let fresh = site.sandbox().dir(format!("fresh-{round}"));
        ask(verbs[0], &fresh).success();
        for (n, verb) in verbs.iter().enumerate() {
            let stale = site.sandbox().join(format!("stale-{round}-{n}"));
            copy_tree(&before, &stale);
            let (expected, found) = (ask(verb, &fresh), ask(verb, &stale));
            assert_eq!(found.code(), expected.code(), "{found}{expected}");
            let told = |run: &Run| {
                let all = run.json();
                let cluster = &all["clusters"][0];
                [
                    &all["segments_needed"],
                    &all["last_commit"],
                    &all["timelines"],
                    &cluster["recovery_windows"],
                    &cluster["gaps"],
                ]
                .map(Value::to_string)
            };
            assert_eq!(told(&found), told(&expected), "{found}{expected}");
        }
    }
}

#[test]
fn the_verbs_show_what_is_archived() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table t (a int)");
    // Nothing can be recovered yet.
    let name = cluster.archive_now();
    let info = site.pitr().words("info --json").exits(1).json();
    assert_eq!(info["clusters"][0]["state"], "critical");
    let p = plan(&site, &[]);
    assert_eq!(
        (&p["reachable"], &p["reason"]),
        (&false.into(), &"no_backup".into())
    );
    site.pitr()
        .arg("plan")
        .exits(5)
        .expect_stdout("out of reach");
    let to = site.sandbox().join("nowhere");
    let json = site.pitr().restore_to(&to).arg("--json").exits(5).json();
    assert_eq!(json["reason"], "no_backup", "{json}");
    assert_eq!(json["to"], to.to_str().unwrap());
    assert_eq!(
        (&json["dry_run"], &json["restored"]),
        (&false.into(), &serde_json::Value::Null)
    );
    assert_eq!(json["tablespaces"], serde_json::json!([]));
    backup(&site).succeed();
    let (xid, _) = insert(&cluster, 1);
    cluster.sql("select pg_create_restore_point('here')");
    let last = cluster.archive_now();
    let list = site.pitr().words("wal list --json").succeed().json();
    let names: Vec<_> = list_of(&list["segments"])
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&name.as_str()) && names.contains(&last.as_str()),
        "{names:?}"
    );
    assert!(list["segments"][0]["stored_bytes"].as_u64().unwrap() > 100);
    let show = site
        .pitr()
        .args(["wal", "show", &last, "--json"])
        .succeed()
        .json();
    let commits = show["commits"].as_array().unwrap();
    assert!(
        commits
            .iter()
            .any(|c| c["xid"].as_u64() == xid.parse().ok()),
        "{show:#}"
    );
    assert!(show["records"].as_u64().unwrap() > 3);
    assert_eq!(show["restore_points"][0]["name"], "here");
    site.pitr().args(["wal", "show", &last]).succeed();
    site.pitr().words("wal list").succeed().expect_stdout(&last);
    site.pitr().words("wal conflicts").succeed();
    let info = site.pitr().words("info --json").succeed().json();
    let cluster_info = &info["clusters"][0];
    assert_eq!(cluster_info["backups"][0]["damaged"], false);
    assert_eq!(cluster_info["recovery_windows"][0]["timeline"], 1);
    site.pitr()
        .arg("info")
        .succeed()
        .expect_stdout("recovery: any moment from");
    site.pitr()
        .arg("plan")
        .succeed()
        .expect_stdout("everything archived is replayed");
    // Fetched by hand, and pushed again.
    let to = site.sandbox().dir("fetched").join(&last);
    site.pitr().args(["wal", "fetch", &last]).arg(&to).succeed();
    assert_eq!(std::fs::metadata(&to).unwrap().len(), 1 << 20);
    site.pitr().words("wal push").arg(&to).succeed();
    site.pitr()
        .words("wal fetch 0000000100000099000000FF")
        .arg(&to)
        .exits(2)
        .expect_stderr("is not in the archive");
}

#[test]
fn t01_targets_out_of_reach_are_refused_with_one_message() {
    let (site, cluster) = Site::with_cluster(15);
    cluster.sql("create table t (a int)");
    backup(&site).succeed();
    insert(&cluster, 1);
    cluster.sql("select pg_create_restore_point('before drop')");
    cluster.archive_now();
    for (args, code, text) in [
        (vec!["--target-time", "yesterday"], 2, "is not a time"),
        (vec!["--target-xid", "-1"], 2, "is not a transaction id"),
        (vec!["--target-lsn", "16/B374D8480"], 2, "is not an LSN"),
        (vec!["--target-timeline", "0"], 2, "is not a timeline"),
        (
            vec!["--backup", "20200101T000000Z-full"],
            2,
            "The closest is 20",
        ),
        (vec!["--backup", "x"], 2, "is not a backup id"),
        (vec!["--target-timeline", "9"], 5, "known: 1"),
        (
            vec!["--target-xid", "99999999"],
            5,
            "subtransactions never count",
        ),
        (
            vec!["--target-name", "before dorp"],
            5,
            "did you mean \"before drop\"?",
        ),
        (vec!["--target-lsn", "9/0"], 5, "lies beyond the archive"),
        (
            vec!["--target-time", "2999-01-01T00:00:00Z"],
            5,
            "lies in the future",
        ),
        (
            vec!["--target-time", "2001-01-01T00:00:00Z"],
            5,
            "lies before the earliest moment",
        ),
    ] {
        let run = site.pitr().arg("plan").args(&args).exits(code);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(said.contains(text), "{args:?}: {run}");
    }
    let missing = site.pitr().words("plan --cluster prd").exits(2);
    assert!(missing.stderr.contains("no cluster \"prd\""), "{missing}");
}

#[test]
fn h05_the_latest_timeline_after_promotions_is_followed() {
    let (site, primary) = Site::with_cluster(17);
    primary.sql("create table t (a int)");
    backup(&site).succeed();
    insert(&primary, 1);
    primary.archive_now();
    let mut current = primary;
    for n in 2..5 {
        let standby = Cluster::builder(17).standby_of(&current).create();
        site.attach(&standby);
        let mut standby = standby;
        standby.start();
        standby.wait_replayed(&current.insert_lsn());
        standby.promote();
        standby.wait_promoted();
        insert(&standby, n);
        standby.archive_now();
        current = standby;
    }
    let p = plan(&site, &[]);
    assert_eq!(p["reachable"], true, "{p:#}");
    assert_eq!(p["target_timeline"], 4);
    let (server, _copy) = recover(&site, 17, &p);
    assert_eq!(
        server.value("select array_agg(a order by a)::text from t"),
        "{1,2,3,4}"
    );
    let old = plan(&site, &["--target-timeline", "1"]);
    assert_eq!(old["reachable"], true, "{old:#}");
    let info = site.pitr().words("info --json").run().json();
    let windows = info["clusters"][0]["recovery_windows"].as_array().unwrap();
    assert_eq!(windows.last().unwrap()["timeline"], 4, "{info:#}");
}

/// The last segment of a log number and the first of the next: "000000010000000000000FFF" and "000000010000000100000000" where segments have 1 MiB.
#[test]
fn f04_a_hole_where_the_log_number_changes_is_a_gap() {
    let mut cluster = Cluster::small(15).create();
    let resetwal = bin(15, "pg_resetwal").expect("15 has it");
    let begin = ["-l", "000000010000000000000FF8", "-D"];
    let reset = Program::new(resetwal).args(begin).arg(cluster.pgdata());
    reset.succeed();
    let site = Site::new(&cluster);
    site.attach(&cluster);
    cluster.start();
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("create table t (a int)");
    let (last, first) = ("000000010000000000000FFF", "000000010000000100000000");
    while cluster.archive_now().as_str() < first {
        cluster.sql("insert into t values (1)");
    }
    let end = cluster.insert_lsn();
    cluster.sql("insert into t values (2)");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let target = cluster.sandbox().join("fetched");
    let fetch = |name: &str| {
        site.restore()
            .arg(name)
            .arg(&target)
            .dir(cluster.pgdata())
            .run()
    };
    let pitr = |words: &[&str]| site.pitr().args(words).run();
    pitr(&["plan", "--target-lsn", &end]).success();
    pitr(&["wal", "gaps"]).success();
    for name in [last, first] {
        fetch(name).success();
        let aside = site.sandbox().join("aside");
        std::fs::rename(site.object(name), &aside).unwrap();
        fetch(name).expect_code(205).expect_stderr(name);
        let gaps = pitr(&["wal", "gaps", "--json"]).expect_code(4).json();
        assert_eq!(
            gaps["gaps"][0]["names"],
            serde_json::json!([name]),
            "{gaps}"
        );
        let plan = pitr(&["plan", "--json", "--target-lsn", &end])
            .expect_code(5)
            .json();
        assert_eq!(
            plan["segments_missing"],
            serde_json::json!([name]),
            "{plan}"
        );
        let verify = pitr(&["verify", "--json"]).expect_code(4);
        assert!(verify.stdout.contains(name), "{verify}");
        std::fs::rename(&aside, site.object(name)).unwrap();
    }
    // Nothing is left of the next log number: then the end is there, and no hole.
    std::fs::remove_dir_all(site.object(first).parent().unwrap()).unwrap();
    fetch(first).expect_code(1);
    fetch(last).success();
}
