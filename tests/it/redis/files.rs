//! Servers that refuse `PSYNC`: their data sets come from their files. Rows R94 to R98 of docs/faults.md.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use super::receive::{Moment, confirm, receiver, stop};
use super::server::Server;
use super::world::World;
use super::{load, loaded};
use crate::common::mount::SmallDisk;
use crate::common::random::Random;
use crate::common::{Running, expire_at_once, keep_one, wait_until};
use crate::{per_server, require_mounts};

const NO_HISTORY: &str = "0000000000000000000000000000000000000000";

/// A server that does not know `PSYNC`, with keys of every type.
fn closed(name: &'static str, more: &[&str], seed: u64) -> Server {
    let server = Server::start(name, &[&["--rename-command", "PSYNC", ""], more].concat());
    server.feed(&load::commands(&mut Random::new(seed), 2000));
    if name != "redis-6" {
        server.feed("FUNCTION LOAD \"#!lua name=mine\\nredis.register_function('twice', function(keys, args) return args[1] * 2 end)\"\n");
    }
    server
}

fn configure(world: &World, server: &Server, source: &str) {
    let address = server.address();
    world.configure(&format!("address = \"{address}\"\nsource = \"{source}\""));
}

/// Requires that a backup says of itself that it has no position.
fn has_no_position(world: &World, taken: &Value, method: &str) {
    let member = &taken["redis"];
    assert_eq!(member["method"], method);
    assert_eq!(
        (member["replid"].as_str(), &member["offset"]),
        (Some(NO_HISTORY), &Value::from(0))
    );
    assert_eq!(
        (&member["parent"], &member["stream_db"]),
        (&Value::Null, &Value::Null)
    );
    let times = ["requested_time", "received_time"].map(|name| member[name].as_str().unwrap());
    assert!(times[0] <= times[1], "{member}");
    let id = taken["id"].as_str().unwrap();
    world
        .redis(&["ls", "cache"])
        .succeed()
        .expect_stdout("none");
    // A time behind it is not reached: no log leads there.
    let plan = ["plan", "cache", "--target-time", "2099-01-01T00:00:00Z"];
    let run = world.redis(&plan).exits(5);
    run.expect_stderr("no log leads on")
        .expect_stderr(&format!("--backup {id}"));
    let latest = world.json(&["plan", "cache", "--latest"]);
    assert_eq!(
        (latest["backup"].as_str(), &latest["replid"]),
        (Some(id), &Value::Null)
    );
    assert!(
        !latest["next"].as_str().unwrap().contains("--target"),
        "{latest}"
    );
    let run = world.redis(&["plan", "cache", "--latest"]).succeed();
    run.expect_stdout(&format!("by {method}, of a moment between"));
    let verified = world.pitr(&["verify", "--json"]).succeed();
    assert_eq!(
        verified.json()["scopes"][0]["finding_count"],
        0,
        "{verified}"
    );
}

/// The save of a server that does not know `PSYNC` comes back equal; the refusal names the key.
fn r94_a_server_without_psync_is_backed_up_by_its_save(name: &'static str) {
    let server = closed(name, &[], 94);
    let world = World::new(&server);
    let run = world.redis(&["backup", "cache"]).run();
    let run = run.expect_stderr("source = \"bgsave\"");
    world.assert_none(run, 1, "does not know PSYNC");
    configure(&world, &server, "bgsave");
    world.pitr(&["doctor"]).run().expect_stdout("not saved yet");
    server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let content = server.content();
    let taken = world.backup();
    assert_eq!(server.content(), content);
    has_no_position(&world, &taken, "bgsave");
    // The next one has what comes later: the file is replaced by each save.
    server.feed("SELECT 3\nSET later 1\n");
    let later = server.content();
    world.backup();
    let copy = world.restore("later", &["--as-replica"]);
    assert_eq!(loaded(name, &copy), later);
    let id = taken["id"].as_str().unwrap();
    let copy = world.restore("copy", &["--as-replica", "--backup", id]);
    assert_eq!(loaded(name, &copy), content);
    world.pitr(&["doctor"]).run().expect_stdout("dump.rdb");
}

per_server!(r94_a_server_without_psync_is_backed_up_by_its_save);

/// A server is written to, its append-only file is rewritten again and again, and each backup of it has whole transactions, and what was answered before.
fn r95_an_append_only_file_comes_back_without_a_fork(name: &'static str) {
    let server = closed(name, &["--appendonly", "yes"], 95);
    let world = World::new(&server);
    configure(&world, &server, "aof");
    server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    // A server that began empty has a base without keys; before Redis 7 it has none.
    if name != "redis-6" {
        let content = server.content();
        world.backup();
        let copy = world.restore("first", &["--as-replica"]);
        assert_eq!(loaded(name, &copy), content);
    }
    server.ask(&["BGREWRITEAOF"]);
    server.feed("SELECT 7\nSET seven 7\nMULTI\nSET a 1\nSELECT 2\nSET b 2\nEXEC\n");
    let content = server.content();
    let saves = server.info("rdb_last_save_time");
    let taken = world.backup();
    assert_eq!(
        server.info("rdb_last_save_time"),
        saves,
        "nothing was saved"
    );
    assert_eq!(server.content(), content);
    has_no_position(&world, &taken, "aof");
    assert!(
        taken["redis"]["tail_bytes"].as_u64().unwrap() > 0,
        "{taken}"
    );
    let copy = world.restore("copy", &["--as-replica"]);
    assert_eq!(loaded(name, &copy), content);

    server.feed(
        &(0..200)
            .map(|n| format!("SET account:{n} 100\n"))
            .collect::<String>(),
    );
    let mut random = Random::new(9);
    let transfers: String = (0..20_000)
        .map(|_| {
            let (from, to) = (random.below(200), random.below(200));
            format!("MULTI\nDECRBY account:{from} 3\nINCRBY account:{to} 3\nINCR transfers\nEXEC\n")
        })
        .collect();
    let write = || server.cli(&[]).stdin(transfers.as_bytes()).spawn();
    let mut writer = write();
    let sum =
        "local s = 0; for n = 0, 199 do s = s + redis.call('get', 'account:' .. n) end; return s";
    let done = |of: &Server| of.ask(&["GET", "transfers"]).parse::<u64>().unwrap_or(0);
    let mut under_load = 0;
    for n in 0..4 {
        if server.info("aof_rewrite_in_progress") == "0" {
            server.cli(&["BGREWRITEAOF"]).run();
        }
        if writer.is_done() {
            writer = write();
        }
        let before = done(&server);
        world.backup();
        let after = done(&server);
        under_load += u64::from(before < after);
        let copy = world.restore(&format!("load-{n}"), &[]);
        let new = Server::on(name, &copy, &[]);
        assert_eq!(new.ask(&["EVAL", sum, "0"]), "20000");
        let restored = done(&new);
        assert!(
            (before..=after).contains(&restored),
            "{before} {restored} {after}"
        );
    }
    assert!(under_load > 0, "nothing was written meanwhile");
    writer.wait().success();
}

per_server!(r95_an_append_only_file_comes_back_without_a_fork);

/// A server that saves for some seconds, and a backup that waits for it.
fn saving(name: &'static str, dir: Option<&Path>) -> (Server, World, Running) {
    let mut more = vec![
        "--rename-command",
        "PSYNC",
        "",
        "--rdb-key-save-delay",
        "1000",
    ];
    more.extend(dir.iter().flat_map(|dir| ["--dir", dir.to_str().unwrap()]));
    let server = Server::start(name, &more);
    server.ask(&["DEBUG", "POPULATE", "4000", "key", "400"]);
    let world = World::new(&server);
    configure(&world, &server, "bgsave");
    let running = save_begun(&world, &server);
    (server, world, running)
}

fn save_begun(world: &World, server: &Server) -> Running {
    let running = world.redis(&["backup", "cache"]).spawn();
    wait_until("the save has begun", || {
        server.info("rdb_bgsave_in_progress") == "1"
    });
    running
}

/// The server is killed while it saves, then pitr; a backup that is asked for while another save runs is one of a save of its own.
fn r96_an_end_in_the_middle_of_a_save_leaves_no_backup(name: &'static str) {
    let (mut server, world, running) = saving(name, None);
    server.kill();
    world.assert_none(running.wait(), 9, "closed the connection");
    server.begin();
    server.ask(&["DEBUG", "POPULATE", "4000", "key", "400"]);
    let running = save_begun(&world, &server);
    running.ended_by(Signal::KILL);
    assert!(world.ids().is_empty());
    // That save runs on: it is not the next backup's.
    server.ask(&["SET", "behind", "the first save"]);
    assert_eq!(server.info("rdb_bgsave_in_progress"), "1");
    world.backup();
    let copy = world.restore("copy", &[]);
    let new = Server::on(name, &copy, &[]);
    assert_eq!(new.ask(&["GET", "behind"]), "the first save");
    assert_eq!(new.ask(&["DBSIZE"]), "4001");
}

per_server!(r96_an_end_in_the_middle_of_a_save_leaves_no_backup, redis6 redis8 valkey9);

/// A disk that fills up in the middle of a save: no backup, and the words say what the server does now. A disk without room is not tried.
#[test]
fn r97_a_save_that_fails_is_no_backup_and_is_not_asked_for_where_it_has_to_fail() {
    require_mounts!("r97_a_save_that_fails_is_no_backup_and_is_not_asked_for_where_it_has_to_fail");
    let disk = SmallDisk::new(64, 1000);
    let (server, world, running) = saving("redis-7", Some(disk.path()));
    disk.leave_free(4096);
    let run = running.wait();
    let run = run.expect_stderr("stop-writes-on-bgsave-error");
    world.assert_none(run, 1, "could not save its data set");
    disk.leave_free(32 << 20);
    world.backup();
    let saves = server.info("rdb_last_save_time");
    disk.leave_free(8192);
    let run = world.redis(&["backup", "cache"]).run();
    run.expect_code(8)
        .expect_stderr("free bytes, and the last save took");
    assert_eq!(
        server.info("rdb_last_save_time"),
        saves,
        "nothing was asked for"
    );
    assert_eq!(server.info("rdb_last_bgsave_status"), "ok");
    let run = world.pitr(&["doctor"]).run();
    run.expect_stdout("a save needs as much again");
    assert_eq!(world.ids().len(), 1);
}

/// Files that are not those of the server, and forms that are not read, are refused by name.
#[test]
fn r98_files_that_are_not_the_servers_are_refused() {
    let server = closed("redis-7", &[], 98);
    let world = World::new(&server);
    configure(&world, &server, "aof");
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 8, "writes no append-only file");
    let address = server.address();
    let elsewhere = world.sandbox.dir("elsewhere");
    let at = |source: &str| {
        world.configure(&format!(
            "address = \"{address}\"\nsource = \"{source}\"\nservice.data_directory = \"{}\"",
            elsewhere.display()
        ));
        world.redis(&["backup", "cache"]).run()
    };
    world.assert_none(at("bgsave"), 8, "is not the file");
    // A file that was there before is no save, whatever is in it; neither is a pipe.
    let dump = elsewhere.join("dump.rdb");
    std::fs::copy(server.data().join("dump.rdb"), &dump).unwrap();
    world.assert_none(at("bgsave"), 8, "is not the file");
    std::fs::remove_file(&dump).unwrap();
    std::os::unix::fs::symlink(server.data().join("dump.rdb"), &dump).unwrap();
    assert!(!at("bgsave").is_success());
    std::fs::remove_file(&dump).unwrap();
    let made = crate::common::Program::new("mkfifo").arg(&dump).run();
    made.success();
    world.assert_none(at("bgsave"), 8, "no regular file");
    // The user may not ask for settings, and nobody names the directory.
    server.ask(&[
        "ACL",
        "SETUSER",
        "pitr",
        "on",
        ">Gr3enTea",
        "+ping",
        "+info",
    ]);
    let file = world.sandbox.file("password", "Gr3enTea\n");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let user = format!("user = \"pitr\"\npassword_file = \"{}\"", file.display());
    let as_user = |more: &str| {
        world.configure(&format!(
            "address = \"{address}\"\nsource = \"bgsave\"\n{user}\n{more}"
        ));
        world.redis(&["backup", "cache"]).run()
    };
    world.assert_none(as_user(""), 3, "does not tell where its files are");
    let own = format!("service.data_directory = \"{}\"", server.data().display());
    let run = as_user(&own).expect_stderr("+bgsave +ping +info");
    world.assert_none(run, 1, "may not run BGSAVE");
    server.ask(&["ACL", "SETUSER", "pitr", "+bgsave"]);
    as_user(&own).success();
    assert_eq!(world.ids().len(), 1);

    // Files of a form that is not read: no base, no checksum, annotations.
    let six = closed("redis-6", &["--appendonly", "yes"], 3);
    let world = World::new(&six);
    configure(&world, &six, "aof");
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 8, "does not begin with a data set");
    six.ask(&["BGREWRITEAOF"]);
    world.backup();
    let noted = closed(
        "redis-7",
        &["--appendonly", "yes", "--aof-timestamp-enabled", "yes"],
        4,
    );
    let world = World::new(&noted);
    configure(&world, &noted, "aof");
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 1, "aof-timestamp-enabled");
    let plain = closed(
        "redis-7",
        &["--appendonly", "yes", "--aof-use-rdb-preamble", "no"],
        5,
    );
    let world = World::new(&plain);
    configure(&world, &plain, "aof");
    let run = world.redis(&["backup", "cache"]).run();
    world.assert_none(run, 8, "does not begin with a data set");
}

/// A set with such a server has no marks, and no moment but those that the others have; its keys are not replaced without a way back.
#[test]
fn r100_what_needs_a_position_is_refused_by_name() {
    let server = closed("redis-7", &[], 100);
    server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let world = World::new(&server);
    let address = server.address();
    let state = world.sandbox.dir("state");
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    world.configure(&format!(
        "address = \"{address}\"\nsource = \"bgsave\"\n[sets.shop]\nmembers = [\"redis:cache\"]\nstate_dir = \"{}\"",
        state.display()
    ));
    world.backup();
    let run = world.pitr(&["mark", "shop"]).exits(8);
    run.expect_stderr("have no position");
    let recover = [
        "recover",
        "full",
        "--set",
        "shop",
        "--target-time",
        "2099-01-01T00:00:00Z",
        "--dry-run",
    ];
    let run = world.pitr(&recover).run();
    assert!(!run.is_success(), "{run}");
    run.expect_stderr("no log leads on");
    let into = ["restore", "cache", "--into", "cache", "--confirm"];
    let before = server.content();
    let run = world.redis(&into).exits(8);
    run.expect_stderr("has no position")
        .expect_stderr("--no-safety");
    assert_eq!(server.content(), before);
    world
        .redis(&[&into[..], &["--no-safety"]].concat())
        .succeed();
}

/// Backups with a position and without: each moment is led to by those that can, and the log expires as if the others were not there.
#[test]
fn r99_backups_without_a_position_lie_beside_a_log() {
    for is_sealed in [false, true] {
        let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
        let world = match is_sealed {
            true => World::sealed(&server),
            false => World::new(&server),
        };
        super::receive::configure(&world, &server, "");
        let running = receiver(&world, &server);
        let first = world.backup();
        confirm(&server, "SET a 1\n", 1);
        let moment = Moment::of(&server);
        configure(&world, &server, "bgsave");
        server.ask(&["SET", "b", "2"]);
        let saved = world.backup();
        confirm(&server, "SET c 3\n", 1);
        let last = Moment::of(&server);
        stop(running);
        // The log goes on behind the save: the last state is that of the log.
        for (target, expected) in [(moment.target(), &moment), (last.target(), &last)] {
            let to = format!("at-{}", expected.offset);
            let copy = world.restore(&to, &["--as-replica", "--target-offset", &target]);
            assert_eq!(loaded("redis-7", &copy), expected.content);
        }
        let copy = world.restore("latest", &["--as-replica", "--latest"]);
        assert_eq!(loaded("redis-7", &copy), last.content);
        let id = saved["id"].as_str().unwrap();
        let named = [
            "plan",
            "cache",
            "--backup",
            id,
            "--target-offset",
            &last.target(),
        ];
        let run = world.redis(&named).exits(5);
        run.expect_stderr("no log leads on");
        // Behind another save, the last state is that of the save.
        let newest = world.backup();
        let latest = world.json(&["plan", "cache", "--latest"]);
        assert_eq!(latest["backup"], newest["id"]);
        if is_sealed {
            // Expiry is not held back; and the backup stays that alone leads to what arrived behind the one that is kept, up to the clocks' difference.
            for _ in 0..2 {
                world.pitr(&expire_at_once()).succeed();
            }
            let run = world.pitr(&keep_one(&["--dry-run", "--json"])).run();
            let scope = run.success().json()["scopes"][0].clone();
            assert_eq!(scope["withheld"], serde_json::json!([]), "{scope:#}");
            let explain = ["--explain", first["id"].as_str().unwrap()];
            let run = world.pitr(&keep_one(&explain)).succeed();
            run.expect_stdout("can only be reached from it");
            assert!(!world.ids().iter().any(|one| saved["id"] == one.as_str()));
            continue;
        }
        // A copy has both, and leads to the same moments.
        let two = world.sandbox.join("two").display().to_string();
        let address = server.address();
        world.configure(&format!(
            "address = \"{address}\"\nsource = \"bgsave\"\n[repositories.two]\nurl = \"file://{two}\""
        ));
        world.pitr(&["init", "--quiet"]).succeed();
        let sync = ["repo", "sync", "--from", "one", "--to", "two"];
        world.pitr(&sync).succeed();
        world.pitr(&["verify", "--repository", "two"]).succeed();
        std::fs::rename(world.repository(), world.sandbox.join("away")).unwrap();
        let copy = world.restore(
            "two-last",
            &["--as-replica", "--target-offset", &last.target()],
        );
        assert_eq!(loaded("redis-7", &copy), last.content);
        let copy = world.restore("two-saved", &["--as-replica", "--backup", id]);
        let saved = Server::on("redis-7", &copy, &[]);
        assert_eq!(
            (saved.ask(&["GET", "b"]), saved.ask(&["EXISTS", "c"])),
            ("2".into(), "0".into())
        );
    }
}
