//! `pitr expire` and the log of a server: what no backup needs goes, and every promised moment comes back.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use super::receive::{
    Moment, configure, confirm, master_and_replica, received, receiver, receiver_goes_on, stop,
};
use super::server::Server;
use super::world::World;
use crate::common::s3::Fault as Answer;
use crate::common::{Run, Sandbox, copy_all, fault, files_below, keep_one, wait_until};
use crate::{per_server, require_strace};

/// A server whose receiver has stopped: its backups, and a moment behind each of them.
struct Lived {
    server: Server,
    world: World,
    ids: Vec<String>,
    moments: Vec<Moment>,
}

/// A server is backed up so many times, and writes more than a segment of log behind each backup.
fn lived(name: &'static str, is_sealed: bool, backups: usize) -> Lived {
    let new = if is_sealed { World::sealed } else { World::new };
    lived_in(new, name, backups)
}

fn lived_in(new: impl Fn(&Server) -> World, name: &'static str, backups: usize) -> Lived {
    let server = Server::start(name, &["--repl-diskless-sync-delay", "0"]);
    let world = new(&server);
    configure(&world, &server, "");
    let running = receiver(&world, &server);
    let mut lived = Lived {
        server,
        world,
        ids: Vec::new(),
        moments: Vec::new(),
    };
    for n in 0..backups {
        lived.ids.push(id(&lived.world.backup()));
        let long = "x".repeat(20 << 20);
        let lines = format!("SELECT {n}\nSET long {long}\nSET key {n}\n");
        confirm(&lived.server, &lines, 1);
        lived.moments.push(Moment::of(&lived.server));
    }
    stop(running);
    lived.world.pitr(&["verify"]).succeed();
    lived
}

fn id(taken: &Value) -> String {
    taken["id"].as_str().unwrap().to_owned()
}

/// Requires that a moment comes back.
fn comes_back(world: &World, name: &'static str, moment: &Moment, more: &[&str]) {
    let target = moment.target();
    let options = [&["--target-offset", &target], more].concat();
    let copy = world.restore("copy", &options);
    assert_eq!(Server::on(name, &copy, &[]).content(), moment.content);
    std::fs::remove_dir_all(copy).unwrap();
}

/// The objects of the log, by their keys below `log`.
fn log(repository: &Path) -> BTreeSet<String> {
    let root = repository.join("aux/redis/cache/log");
    files_below(&root).into_iter().collect()
}

/// `pitr expire` that keeps so many backups, and deletes at once.
fn expire(world: &World, keep: &str, more: &[&str]) -> Run {
    let options = ["expire", "--keep", keep, "--min-age", "0s", "--grace", "0s"];
    world.pitr(&options).args(more).succeed()
}

/// The log's histories, as `--json` has them.
fn told(run: &Run) -> Vec<Value> {
    let all = run.json();
    let scopes = all["scopes"].as_array().unwrap();
    let scope = scopes.iter().find(|s| s["scope"] == "aux/redis/cache");
    scope.unwrap()["log"].as_array().unwrap().clone()
}

/// Log before the oldest kept backup goes, and every moment behind it comes back. A janitor of an encrypted repository needs no key for it.
fn r73_log_before_the_oldest_kept_backup_goes(name: &'static str, is_sealed: bool) {
    let lived = lived(name, is_sealed, 3);
    let world = &lived.world;
    if is_sealed {
        world.hide_private_key(true);
    }
    let replid = &lived.moments[0].replid;
    let before = log(&world.repository());
    let shown = expire(world, "2", &["--dry-run"]);
    // The second backup lies in the second segment.
    let words = format!("log that no backup needs: history {replid} before position 16777216 (");
    let delete = ["backup", "delete", &lived.ids[0], "--of", "redis:cache"];
    let deletion = world.pitr(&delete).arg("--dry-run").succeed();
    deletion.expect_stdout(&words);
    shown
        .expect_stdout(&words)
        .expect_stdout("stays reachable, as far as its log is there");
    let explained = |position: u64, words: &str| {
        let place = format!("{replid}:{position}");
        expire(world, "2", &["--explain", &place]).expect_stdout(words);
    };
    explained(1000, "the next run deletes it");
    let needs = format!("what can be reached from backup {} needs it", lived.ids[1]);
    explained(lived.moments[1].offset, &needs);
    assert_eq!(log(&world.repository()), before);

    let done = expire(world, "2", &["--confirm", "--json"]);
    let [history] = told(&done).try_into().unwrap();
    let left = log(&world.repository());
    let gone: Vec<&String> = before.difference(&left).collect();
    let first = format!("{replid}/00000000/0000000000000000");
    let is_before = |key: &&String| {
        **key == first
            || key.starts_with(&format!("{replid}/open/0000000000000000/"))
            || key.starts_with(&format!("{replid}/begins/"))
    };
    assert!(gone.iter().all(is_before) && gone.len() >= 2, "{gone:?}");
    assert!(!left.iter().any(|key| is_before(&key)), "{left:?}");
    assert_eq!(history["gone"]["objects"], gone.len(), "{history}");
    assert!(history["gone"]["bytes"].as_u64().unwrap() > 0, "{history}");
    assert!(left.contains(&format!("{replid}/history")), "{left:?}");
    let again = expire(world, "2", &["--dry-run"]);
    assert!(!again.stdout.contains("log that"), "{again}");

    if is_sealed {
        world.hide_private_key(false);
    }
    assert_eq!(world.ids().len(), 2);
    world.pitr(&["verify"]).succeed();
    for moment in &lived.moments[1..] {
        comes_back(world, name, moment, &[]);
    }
    let none = world.sandbox.join("none");
    let early = format!("{replid}:1000");
    let refused = world.restoring(&none, &["--target-offset", &early]).run();
    refused.expect_code(5);
    // The receiver goes on where it was, also without its journal.
    std::fs::remove_dir_all(world.sandbox.join("journal")).unwrap();
    let forks = lived.server.info("sync_full");
    let running = receiver(world, &lived.server);
    assert_eq!(lived.server.info("sync_full"), forks);
    confirm(&lived.server, "SET last 1\n", 1);
    let last = Moment::of(&lived.server);
    stop(running);
    comes_back(world, name, &last, &[]);
}

fn r73_a_plain_repository(name: &'static str) {
    r73_log_before_the_oldest_kept_backup_goes(name, false);
}
per_server!(r73_a_plain_repository, redis6 redis7 valkey9);

#[test]
fn r73_a_janitor_without_keys() {
    r73_log_before_the_oldest_kept_backup_goes("redis-7", true);
}

/// The log of a history stays while a kept backup leads there, and to those that went on from it; then it goes as a whole, after a day.
fn r74_a_history_stays_while_a_backup_leads_to_it(name: &'static str) {
    let (mut master, replica) = master_and_replica(name);
    let world = World::new(&master);
    configure(&world, &master, "identity = \"shop\"");
    let running = receiver(&world, &master);
    world.backup();
    confirm(&master, "SELECT 2\nSET a 1\n", 2);
    let first = Moment::of(&master);
    // More than the replica that is promoted has.
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    confirm(&master, "SET only:there 1\n", 1);
    let tail = Moment::of(&master);
    stop(running);
    master.kill();
    let running = receiver_goes_on(&world, &replica);
    confirm(&replica, "SET b 1\n", 1);
    let second = Moment::of(&replica);
    world.backup();
    confirm(&replica, "SET c 1\n", 1);
    let third = Moment::of(&replica);
    stop(running);
    world.pitr(&["verify"]).succeed();
    let all = log(&world.repository());
    expire(&world, "2", &["--confirm"]);
    assert_eq!(log(&world.repository()), all);
    for moment in [&first, &tail, &second, &third] {
        comes_back(&world, name, moment, &[]);
    }
    // The tail was stored so late that it may be of the time that is promised.
    let held = expire(&world, "1", &["--confirm"]);
    let why = format!(
        "moments of history {} can only be reached from it",
        tail.replid
    );
    held.expect_stdout(&why);
    assert_eq!(
        (world.ids().len(), log(&world.repository())),
        (2, all.clone())
    );
    let root = world.repository().join("aux/redis/cache/log");
    let age = |hours: u64| {
        for key in &all {
            let file = std::fs::File::options().write(true).open(root.join(key));
            let old = SystemTime::now() - Duration::from_secs(hours * 3600);
            file.unwrap().set_modified(old).unwrap();
        }
    };
    // A history to which no backup leads is left alone for a day: its server may have begun it just now.
    age(20);
    expire(&world, "1", &["--confirm"]);
    assert_eq!(
        (world.ids().len(), log(&world.repository())),
        (1, all.clone())
    );
    let place = format!("{}:{}", tail.replid, tail.offset);
    expire(&world, "1", &["--explain", &place]).expect_stdout("no backup leads to this history");
    age(25);
    let shown = expire(&world, "1", &["--dry-run"]);
    shown.expect_stdout(&format!(
        "log to which no backup leads: history {}, all of it (",
        tail.replid
    ));
    expire(&world, "1", &["--confirm"]);
    let left = log(&world.repository());
    let own: BTreeSet<String> = all
        .iter()
        .filter(|k| k.starts_with(&third.replid))
        .cloned()
        .collect();
    assert_eq!(left, own);
    comes_back(&world, name, &third, &[]);
    world.pitr(&["verify"]).succeed();
}
per_server!(r74_a_history_stays_while_a_backup_leads_to_it, redis7 valkey8);

/// Killed before any deletion, a run leaves every promised moment, and the next one finishes.
#[test]
fn r75_expire_killed_while_log_goes_is_finished_by_the_next_run() {
    require_strace!("r75_expire_killed_while_log_goes_is_finished_by_the_next_run");
    let lived = lived("redis-7", false, 2);
    let world = &lived.world;
    let (live, pristine) = (world.repository(), world.sandbox.join("pristine"));
    let copy = |from: &Path, to: &Path| {
        copy_all(from, to);
    };
    copy(&live, &pristine);
    let arguments = keep_one(&["--grace", "0s", "--confirm", "--quiet"]);
    let program = || world.pitr(&arguments).privileged();
    let (run, calls) = fault::trace(&program(), &["unlinkat"]);
    run.success();
    let wanted = log(&live);
    let deletions = log(&pristine).len() - wanted.len();
    assert!(calls.len() >= deletions && deletions >= 2, "{calls:?}");
    let mut seen = BTreeSet::new();
    for call in &calls {
        std::fs::remove_dir_all(&live).unwrap();
        copy(&pristine, &live);
        let (_, fired) = fault::inject(&program(), &call.kill());
        assert_eq!(fired, 1, "{call:?}");
        let left = log(&live);
        assert!(wanted.is_subset(&left), "{call:?}");
        seen.insert(left.len());
        // A reservation that is left alone may be of a backup that runs: that is reported.
        let run = program().run();
        assert!(matches!(run.code(), 0 | 6), "{run}");
        assert_eq!(log(&live), wanted, "{call:?}");
    }
    assert!(seen.len() >= deletions, "{seen:?}");
    assert_eq!(world.ids(), lived.ids[1..]);
    comes_back(world, "redis-7", &lived.moments[1], &[]);
}

/// A restore that runs keeps its backup and the log behind it.
#[test]
fn r76_log_that_a_restore_reads_stays_until_it_has_ended() {
    let lived = lived("redis-7", false, 3);
    let world = &lived.world;
    let (first, target) = (&lived.ids[0], lived.moments[0].target());
    let copy = world.sandbox.join("held");
    let options = ["--backup", first, "--target-offset", &target];
    let mut running = world.restoring(&copy, &options).spawn();
    let events = world
        .repository()
        .join("aux/redis/cache/events")
        .join(first);
    wait_until("the restore has claimed its backup", || {
        let names = files_below(&events);
        assert!(!running.is_done(), "{}", running.stderr());
        names.iter().filter(|name| name.contains("-claim-")).count() >= 2
    });
    running.signal(Signal::STOP);
    let before = log(&world.repository());
    expire(world, "1", &["--confirm"]);
    assert_eq!(log(&world.repository()), before);
    assert_eq!(world.ids(), [lived.ids[0].clone(), lived.ids[2].clone()]);
    running.ended_by(Signal::CONT).success();
    let content = Server::on("redis-7", &copy, &[]).content();
    assert_eq!(content, lived.moments[0].content);
    expire(world, "1", &["--confirm"]);
    expire(world, "1", &["--confirm"]);
    assert_eq!(world.ids(), lived.ids[2..]);
    assert!(log(&world.repository()).len() < before.len());
    comes_back(world, "redis-7", &lived.moments[2], &[]);
}

/// Log that expired in one repository is not brought back from another one; `--all` brings it.
#[test]
fn r77_a_sync_brings_no_log_back_that_expired() {
    let lived = lived("redis-7", false, 3);
    let world = &lived.world;
    let second = Sandbox::new("second");
    let two = format!(
        "[repositories.two]\nurl = \"file://{}\"",
        second.join("two").display()
    );
    configure(world, &lived.server, &two);
    world.pitr(&["init", "--quiet"]).succeed();
    let sync = ["repo", "sync", "--from", "one", "--to", "two"];
    world.pitr(&sync).succeed();
    let copied = log(&second.join("two"));
    assert_eq!(copied, log(&world.repository()));
    world.pitr(&["verify", "--repository", "two"]).succeed();
    expire(world, "1", &["--repository", "two", "--confirm"]);
    let left = log(&second.join("two"));
    assert!(left.len() < copied.len(), "{left:?}");
    let again = world.pitr(&sync).arg("--json").succeed().json();
    assert!(again.to_string().contains("\"log_objects\":0"), "{again}");
    assert_eq!(log(&second.join("two")), left);
    // New log is copied.
    let running = receiver(world, &lived.server);
    confirm(&lived.server, "SET last 1\n", 1);
    let last = Moment::of(&lived.server);
    stop(running);
    world.pitr(&sync).succeed();
    comes_back(world, "redis-7", &last, &["--repository", "two"]);
    world.pitr(&sync).arg("--all").succeed();
    assert!(copied.is_subset(&log(&second.join("two"))));
    comes_back(
        world,
        "redis-7",
        &lived.moments[0],
        &["--repository", "two"],
    );
}

/// Marks of a set go when each backup of a member that stays is later, and a mark to which a backup leads stays.
#[test]
fn r78_marks_go_with_the_backups_that_lead_to_them() {
    let (server, world, running) = received("redis-7", "[sets.shop]\nmembers = [\"redis:cache\"]");
    let mark = |label: &[&str]| {
        confirm(&server, "INCR marks\n", 1);
        let run = world.pitr(&["mark", "shop", "--json"]).args(label).run();
        let id = id(&run.success().json());
        std::thread::sleep(Duration::from_millis(1100));
        id
    };
    world.backup();
    let early = mark(&["--label", "early"]);
    world.backup();
    let plain = mark(&[]);
    let late = mark(&["--label", "late"]);
    stop(running);
    world.pitr(&["verify"]).succeed();
    let set = world.repository().join("aux/sets/shop/events");
    let marks = || {
        files_below(&set)
            .iter()
            .filter(|f| f.contains("-mark-"))
            .count()
    };
    // Clocks agree to the second here, and not only to an hour.
    let exact = |keep: &str, more: &[&str], limit: &str| {
        let options = ["expire", "--keep", keep, "--min-age", "0s", "--grace", "0s"];
        let program = world.pitr(&options).args(more);
        let program = program.env("PITR_FAULT_SECONDS", "0");
        program.env("PITR_FAULT_LIMIT", limit).succeed()
    };
    let explained = |keep: &str, name: &str, words: &str| {
        exact(keep, &["--explain", name], "9999").expect_stdout(words);
    };
    exact("2", &["--confirm"], "9999");
    explained("2", &early, "it stays");
    assert_eq!((world.ids().len(), marks()), (2, 3));
    let gone = "each backup of aux/redis/cache that stays is later";
    let words = format!("marks that nobody can use: {early} to {early} (1 mark)");
    exact("1", &["--dry-run"], "9999")
        .expect_stdout(&words)
        .expect_stdout(gone);
    explained("1", &early, gone);
    explained("1", &late, "it stays");
    // The backup goes; an hour is left for clocks that differ.
    expire(&world, "1", &["--confirm"]);
    assert_eq!((world.ids().len(), marks()), (1, 3));
    exact("1", &["--confirm"], "9999");
    assert_eq!(marks(), 2);
    // Readers look at so many marks alone: of those behind them, labelled ones stay.
    explained("1", &plain, "it stays");
    exact("1", &["--confirm"], "1").expect_stdout("it has no label");
    assert_eq!(marks(), 1);
    let info = world.pitr(&["info", "--set", "shop", "--json"]).succeed();
    assert!(
        info.stdout.contains(&late) && !info.stdout.contains(&early),
        "{info}"
    );
    let plan = ["recover", "test", "--set", "shop", "--mark", &late];
    world.pitr(&plan).succeed();
    world.pitr(&["verify"]).succeed();
}

/// The same in an encrypted bucket: each run of a host without the private half is killed while it deletes, until one comes to the end.
fn x11_log_in_a_bucket_goes_although_runs_are_killed(name: &'static str) {
    let lived = lived_in(World::sealed_in_bucket, name, 3);
    let world = &lived.world;
    let server = world.peer.as_ref().unwrap().server();
    world.hide_private_key(true);
    let log = || -> BTreeSet<String> {
        let all = server.keys().into_iter();
        all.filter(|key| key.starts_with("pg/aux/redis/cache/log/"))
            .collect()
    };
    let before = log();
    let arguments = keep_one(&["--grace", "0s", "--confirm", "--quiet"]);
    let mut kills = 0;
    loop {
        // One deletion is done, and no answer comes to the next.
        let stalled = server.fault_after(
            1,
            "DELETE /bucket/pg/aux/redis/cache/log",
            1,
            Answer::Stalled,
        );
        let mut running = world.pitr(&arguments).spawn();
        wait_until("expire deletes, or has ended", || {
            running.is_done() || stalled.times() > 0
        });
        let is_over = stalled.times() == 0;
        if !is_over {
            running.signal(Signal::KILL);
            kills += 1;
        }
        let run = running.wait();
        server.heal();
        // Each promised moment has its log still.
        let newest = &lived.moments[2];
        let place = format!("/{:016X}", newest.offset / (16 << 20) * (16 << 20));
        assert!(
            log()
                .iter()
                .any(|key| key.contains(&newest.replid) && key.contains(&place)),
            "{:#?}",
            log()
        );
        if is_over {
            // A claim of the killed may stand: that is reported.
            assert!(matches!(run.code(), 0 | 6), "{run}");
            break;
        }
    }
    assert!(kills > 0, "{before:#?}");
    let left = log();
    assert!(
        left.is_subset(&before) && left.len() + 2 <= before.len(),
        "{left:#?}"
    );
    world.hide_private_key(false);
    assert_eq!(world.ids(), lived.ids[2..]);
    world.pitr(&["verify"]).succeed();
    comes_back(world, name, &lived.moments[2], &[]);
    let none = world.sandbox.join("none");
    let early = lived.moments[0].target();
    let refused = world.restoring(&none, &["--target-offset", &early]).run();
    refused.expect_code(5);
}
per_server!(x11_log_in_a_bucket_goes_although_runs_are_killed, redis7 valkey9);
