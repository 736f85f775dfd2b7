//! Marks of a set whose member is a Redis server, and the moments of such a set.

use rustix::process::Signal;
use serde_json::Value;

use super::gap;
use super::receive::{configure, confirm, master_and_replica, now, received, receiver, stop};
use super::server::Server;
use super::world::World;
use crate::alert_conditions::Sink;
use crate::common::{Run, wait_until};

const SET: &str = "identity = \"shop\"\n[sets.shop]\nmembers = [\"redis:cache\"]\n";

fn mark(world: &World, more: &[&str]) -> Value {
    let run = world.pitr(&[&["mark", "shop", "--json"], more].concat());
    run.succeed().json()
}

fn marks(world: &World) -> Vec<Value> {
    let info = world.pitr(&["info", "--set", "shop", "--json"]).run();
    info.json()["marks"].as_array().unwrap().clone()
}

/// A recovery into a folder that is thrown away.
fn tested(world: &World, moment: &[&str]) -> Run {
    let words = ["recover", "test", "--set", "shop", "--json"];
    world.pitr(&[&words[..], moment].concat()).run()
}

/// A replica has what it had at the mark, which is not all that its master had answered.
#[test]
fn r130_a_replica_makes_no_mark_of_level_3() {
    let (master, replica) = master_and_replica("redis-7");
    let world = World::new(&replica);
    configure(&world, &replica, SET);
    let running = receiver(&world, &replica);
    world.backup();
    confirm(&master, "SET a 1\n", 1);
    let made = mark(&world, &[]);
    assert_eq!(made["level"], 1, "{made:#}");
    let scope = "aux/redis/cache";
    assert_eq!(made["followers"][0]["scope"], scope, "{made:#}");
    let behind = made["followers"][0]["behind_seconds"].as_u64();
    assert!(behind.is_some_and(|seconds| seconds < 60), "{made:#}");
    let shown = world.pitr(&["mark", "shop"]).succeed();
    let words = ", level 1, in one\n";
    let told = [words, "of a server that follows another one and is up to"];
    assert!(
        told.iter().all(|words| shown.stdout.contains(words)),
        "{shown}"
    );
    confirm(&master, "SET b 1\n", 1);
    let id = made["id"].as_str().unwrap();
    wait_until("the mark is settled", || {
        let marks = marks(&world);
        let own = marks.iter().find(|mark| mark["id"] == id).unwrap();
        assert_eq!(own["level"], 1, "{own:#}");
        own["settled"] == true
    });
    let report = tested(&world, &["--mark", id]).success().json();
    assert_eq!(report["plan"]["level"], 1, "{report:#}");
    assert_eq!(report["plan"]["members"][0]["reached"]["level"], 1);
    stop(running);
    // The master itself has all of it.
    configure(&world, &master, SET);
    let running = receiver(&world, &master);
    let made = mark(&world, &[]);
    assert_eq!(
        (&made["level"], &made["followers"]),
        (&3.into(), &Value::Array(Vec::new()))
    );
    stop(running);
}

/// However many newer ones there are: expiry keeps what has a label.
#[test]
fn r131_a_mark_of_long_ago_is_found_by_its_label_and_by_its_name() {
    let (server, world, running) = received("redis-7", SET);
    world.backup();
    let label = "before the release";
    let old = mark(&world, &["--label", label])["id"].clone();
    let old = old.as_str().unwrap();
    confirm(&server, "SET a 1\n", 1);
    // One each second, until SIGTERM; "1min" is a length of time, too.
    let every = world
        .pitr(&["mark", "shop", "--every", "1s", "--json"])
        .spawn();
    wait_until("three marks are made", || marks(&world).len() >= 4);
    let run = every.ended_by(Signal::TERM).success();
    let made = run.stdout.lines().filter(|line| line.contains("\"id\""));
    assert!(made.count() >= 3, "{run}");
    let count = marks(&world).len();
    let every = world.pitr(&["mark", "shop", "--every", "1min"]).spawn();
    wait_until("one more is made", || marks(&world).len() == count + 1);
    every.ended_by(Signal::TERM).success();
    stop(running);
    for text in [label, old] {
        let lowered = |words: &[&str]| {
            let program = world.pitr(words).env("PITR_FAULT_LIMIT", "2");
            program.arg("--json").succeed().json()
        };
        let report = lowered(&["recover", "test", "--set", "shop", "--mark", text]);
        assert_eq!(report["plan"]["wanted"]["mark"], old, "{report:#}");
        let runbook = lowered(&["runbook", "--set", "shop", "--stored", "--mark", text]);
        assert_eq!(runbook["mark"], old, "{runbook:#}");
    }
    let none = tested(&world, &["--mark", "before the war"]);
    none.expect_code(2)
        .expect_stdout("has no mark \\\"before the war\\\"");
}

/// Marks that come no more are seen by all who watch; a set that never had one is advice.
#[test]
fn r134_who_watches_sees_marks_that_come_no_more() {
    let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    let sink = Sink::new();
    let agent = format!(
        "[agent]\nstate_dir = \"{}\"\ninterval = \"1s\"\n{}",
        world.sandbox.dir("state").display(),
        sink.section()
    );
    let with = |limit: &str| configure(&world, &server, &format!("{SET}{limit}{agent}"));
    with("");
    let finding = |name: &str| -> Value {
        let told = world.pitr(&["doctor", "--json"]).run().json();
        let all = told["findings"].as_array().unwrap().iter();
        let mut named = all.filter(|f| f["group"] == "sets" && f["name"] == name);
        named.next().cloned().unwrap_or_default()
    };
    let series = "pitr_set_mark_settled_timestamp_seconds{set=\"shop\"} ";
    let metric = || -> Option<f64> {
        let text = world.pitr(&["metrics"]).run().stdout;
        let value = text.lines().find_map(|line| line.strip_prefix(series));
        value.map(|value| value.parse().unwrap())
    };
    let none = finding("shop marks");
    assert_eq!(none["level"], "ok", "{none:#}");
    assert!(none.to_string().contains("none yet"), "{none:#}");
    assert_eq!(metric(), None);
    let running = receiver(&world, &server);
    world.backup();
    let made = mark(&world, &[]);
    let time = made["ended"].as_str().unwrap();
    let waits = finding("shop marks");
    if waits["level"] != "ok" {
        assert!(waits.to_string().contains("redis:cache: "), "{waits:#}");
    }
    confirm(&server, "SET a 1\n", 1);
    stop(running);
    let fine = finding("shop marks");
    assert_eq!(fine["level"], "ok", "{fine:#}");
    assert!(
        fine.to_string().contains("newest settled one is"),
        "{fine:#}"
    );
    assert_eq!(finding("shop runbook")["level"], "ok");
    let expected: pitr::pg::time::TimestampTz = time.parse().unwrap();
    let micros = (metric().unwrap() * 1e6).round();
    assert!(
        (micros - expected.unix_micros().unwrap() as f64).abs() < 2.0,
        "{made:#}"
    );

    // Behind it nothing is received: newer marks wait, and the old one grows old.
    server.ask(&["SET", "b", "2"]);
    mark(&world, &[]);
    with("max_mark_age = \"1s\"\nstop = [\"true\"]\n");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let old = finding("shop marks");
    assert_eq!(old["level"], "fail", "{old:#}");
    assert!(
        old.to_string()
            .contains("the newest one waits: redis:cache"),
        "{old:#}"
    );
    let stale = finding("shop runbook");
    assert_eq!(stale["level"], "warn", "{stale:#}");
    assert_eq!(metric().map(|at| (at * 1e6).round()), Some(micros));
    let agent = world.pitr(&["agent"]).spawn();
    let heard = || sink.heard("sets/shop/marks");
    wait_until("the sink hears of it", || !heard().is_empty());
    assert_eq!(heard()[0].1, "medium");
    assert!(
        heard()[0].2.contains("the newest settled mark is"),
        "{:?}",
        heard()
    );
    with("");
    agent.signal(Signal::HUP);
    wait_until("the sink hears of its end", || {
        heard()
            .last()
            .is_some_and(|(event, ..)| event == "resolved")
    });
    agent.ended_by(Signal::TERM).success();
}

/// A log that goes on no more, and one with a gap that no backup has ended, are seen by all who watch, though a replica keeps the backlog alive.
#[test]
fn r147_who_watches_sees_a_log_that_goes_on_no_more() {
    let (mut server, _replica) = master_and_replica("redis-7");
    let world = World::new(&server);
    let sink = Sink::new();
    let agent = format!(
        "[agent]\nstate_dir = \"{}\"\ninterval = \"1s\"\n{}",
        world.sandbox.dir("state").display(),
        sink.section()
    );
    configure(&world, &server, &agent);
    let later = |seconds: u64| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        format!("{},{},1", now.as_secs() + seconds, now.as_secs())
    };
    let finding = |seconds: u64| -> Value {
        let doctor = world.pitr(&["doctor", "--json"]);
        let told = doctor.env("PITR_FAULT_CLOCK", later(seconds)).run().json();
        let all = told["findings"].as_array().unwrap().iter();
        let mut named = all.filter(|f| f["group"] == "content" && f["name"] == "redis cache log");
        named.next().cloned().unwrap_or_default()
    };
    let gap = || -> Option<String> {
        let text = world.pitr(&["metrics"]).run().stdout;
        let series = "pitr_redis_log_gap{cluster=\"cache\",repo=\"one\"} ";
        text.lines()
            .find_map(|line| line.strip_prefix(series))
            .map(str::to_owned)
    };
    assert_eq!(finding(0)["level"], "warn", "no receiver has run");
    let running = receiver(&world, &server);
    confirm(&server, "SET a 1\n", 2);
    wait_until("something is stored", || gap().is_some());
    assert_eq!(gap().as_deref(), Some("1"), "no backup was taken");
    let none = finding(0);
    assert_eq!(none["level"], "fail", "{none:#}");
    assert!(
        none.to_string().contains("pitr redis backup cache"),
        "{none:#}"
    );
    world.backup();
    confirm(&server, "SET b 1\n", 2);
    stop(running);
    assert_eq!(finding(0)["level"], "ok", "{:#}", finding(0));
    assert_eq!(gap().as_deref(), Some("0"));

    let old = finding(1200);
    assert_eq!(old["level"], "fail", "{old:#}");
    assert!(
        old.to_string().contains("pitr redis receive cache"),
        "{old:#}"
    );
    let info = world
        .pitr(&["info", "--json"])
        .env("PITR_FAULT_CLOCK", later(1200));
    let told = info.run().json();
    let own = told["scopes"].as_array().unwrap().iter();
    let own = own
        .clone()
        .find(|one| one["scope"] == "aux/redis/cache")
        .unwrap();
    assert_eq!(own["state"], "critical", "{own:#}");
    assert!(
        own["problems"].to_string().contains("arrived 20 min"),
        "{own:#}"
    );
    let metrics = world.pitr(&["metrics"]).succeed().stdout;
    let series = "pitr_redis_stored_timestamp_seconds{cluster=\"cache\",repo=\"one\"} ";
    let stored: f64 = metrics
        .lines()
        .find_map(|line| line.strip_prefix(series))
        .unwrap()
        .parse()
        .unwrap();
    let told: pitr::pg::time::TimestampTz =
        own["log"]["stored_time"].as_str().unwrap().parse().unwrap();
    assert!(
        (stored * 1e6 - told.unix_micros().unwrap() as f64).abs() < 2.0,
        "{own:#}"
    );

    // A gap: the server begins another history, and nobody takes a backup.
    server.kill();
    server.begin();
    let pause = world.sandbox.join("pause");
    let running = gap::held(&world, &pause);
    assert!(running.stderr().contains("warning: gap: "));
    server.feed("SET c 1\n");
    wait_until("the gap is seen", || gap().as_deref() == Some("1"));
    let agent = world.pitr(&["agent"]).spawn();
    let heard = || sink.heard("aux/redis/cache/content/log");
    wait_until("the sink hears of it", || !heard().is_empty());
    assert_eq!(heard()[0].1, "critical");
    assert!(
        heard()[0]
            .2
            .contains("no backup leads to the end of the log"),
        "{:?}",
        heard()
    );
    std::fs::remove_file(&pause).unwrap();
    confirm(&server, "SET d 1\n", 2);
    wait_until("the sink hears of its end", || {
        heard()
            .last()
            .is_some_and(|(event, ..)| event == "resolved")
    });
    agent.ended_by(Signal::TERM).success();
    stop(running);
}

/// A target inside a gap of Redis is refused with moments that are reached.
#[test]
fn r132_the_nearest_moments_of_a_set_lie_around_a_gap_of_redis() {
    let (mut server, world, running) = received("redis-7", SET);
    world.backup();
    confirm(&server, "SET a 1\n", 1);
    stop(running);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let lost = now();
    // Its next history has nothing of this one.
    server.kill();
    server.begin();
    let running = receiver(&world, &server);
    world.backup();
    confirm(&server, "SET b 1\n", 1);
    stop(running);
    let refused = tested(&world, &["--target-time", &lost])
        .expect_code(5)
        .json();
    for word in ["before", "after"] {
        let begin = format!("The nearest moment {word} it: --target-time \"");
        let hint = refused["hint"].as_str().unwrap();
        let (_, rest) = hint
            .split_once(begin.as_str())
            .unwrap_or_else(|| panic!("{refused:#}"));
        let (time, _) = rest.split_once('"').unwrap();
        let report = tested(&world, &["--target-time", time]).success().json();
        assert_eq!(report["passed"], true, "{report:#}");
    }
}
