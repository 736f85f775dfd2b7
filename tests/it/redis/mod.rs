//! `pitr redis`: what a server held comes back, on every kind of server.

mod cluster;
mod expire;
mod faults;
mod files;
mod gap;
mod into;
mod keys;
mod load;
mod marks;
mod moments;
mod receive;
mod rounds;
pub mod sentinel;
pub mod server;
pub mod world;
mod writer;

use crate::common::random::Random;
use crate::common::{Program, files_below, wait_until};
use crate::per_server;
use server::{Server, program};
use world::World;

/// Fills a server of any kind with commands of every type.
fn filled(name: &'static str, seed: u64) -> Server {
    let server = Server::start(name, &[]);
    let mut random = Random::new(seed);
    server.feed(&load::commands(&mut random, 3000));
    if name != "redis-6" {
        server.feed(
            "FUNCTION LOAD \"#!lua name=mine\\nredis.register_function('twice', function(keys, args) return args[1] * 2 end)\"\n",
        );
    }
    // Valkey 9 keeps such a key from replicas that do not name their version.
    if matches!(name, "redis-8" | "valkey-9") {
        server.feed("HSET ends a 1 b 2\nHEXPIRE ends 100000 FIELDS 1 a\n");
    }
    server
}

/// The content of a server that loads a directory as a replica does: nothing expires there.
fn loaded(name: &'static str, directory: &std::path::Path) -> String {
    Server::on(name, directory, &[]).content()
}

/// A data set of every type comes back equal, keys whose time was over meanwhile included.
fn r01_a_data_set_comes_back_as_it_was(name: &'static str) {
    let mut server = filled(name, 20_261_123);
    server.ask(&["SET", "soon-over", "x", "PX", "2500"]);
    // Keys whose time is over by now are removed before the two are compared.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let world = World::new(&server);
    // A replica that never expires is the oracle: the live server is held still while it is asked.
    server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let content = server.content();
    let taken = world.backup();
    assert_eq!(server.content(), content, "the history stood still");
    let member = &taken["redis"];
    assert_eq!(member["replid"], server.info("master_replid").as_str());
    assert_eq!(
        member["offset"].to_string(),
        server.info("master_repl_offset"),
        "nothing was written meanwhile"
    );
    assert_eq!(member["role"], "master");
    assert_eq!(member["has_checksum"], true);
    assert_eq!(member["method"], "psync");
    assert_eq!(member["flavor"], name.split('-').next().unwrap());

    let copy = world.restore("copy", &["--as-replica"]);
    assert_eq!(loaded(name, &copy), content);
    // The server goes away; a new one takes its place, with a history of its own.
    let replid = server.info("master_replid");
    server.kill();
    let place = world.restore("place", &[]);
    std::thread::sleep(std::time::Duration::from_millis(2600));
    let mut new = Server::on(name, &place, &[]);
    assert_eq!(new.ask(&["EXISTS", "soon-over"]), "0");
    assert_eq!(new.info("role"), "master");
    assert_ne!(new.info("master_replid"), replid);
    assert_eq!(new.info("second_repl_offset"), "-1");
    if name != "redis-6" {
        assert_eq!(new.ask(&["FCALL", "twice", "0", "21"]), "42");
    }
    // New keys stay, too.
    new.ask(&["SET", "after", "the restore"]);
    new.ask(&["SHUTDOWN"]);
    new.kill();
    new.begin();
    assert_eq!(new.ask(&["GET", "after"]), "the restore");
    assert_eq!(world.ids().len(), 1);
    let verified = world.pitr(&["verify", "--json"]).succeed();
    assert_eq!(
        verified.json()["scopes"][0]["finding_count"],
        0,
        "{verified}"
    );
}

per_server!(r01_a_data_set_comes_back_as_it_was);

/// While transactions commit, a backup has each as a whole or not at all.
fn r02_a_backup_under_load_has_whole_transactions(name: &'static str) {
    let server = Server::start(name, &[]);
    let accounts: String = (0..200).map(|n| format!("SET account:{n} 100\n")).collect();
    server.feed(&accounts);
    // Enough to send that the load goes on all the while.
    let filler = format!("DEBUG POPULATE {} filler 200\n", 150_000);
    server.feed(&filler);
    let mut random = Random::new(7);
    let transfers: String = (0..20_000)
        .map(|_| {
            let (from, to) = (random.below(200), random.below(200));
            format!("MULTI\nDECRBY account:{from} 3\nINCRBY account:{to} 3\nINCR transfers\nEXEC\n")
        })
        .collect();
    let writer = server.cli(&[]).stdin(transfers.as_bytes()).spawn();
    let world = World::new(&server);
    wait_until("the load has begun", || {
        server.ask(&["EXISTS", "transfers"]) == "1"
    });
    let before: u64 = server.ask(&["GET", "transfers"]).parse().unwrap();
    world.backup();
    let after: u64 = server.ask(&["GET", "transfers"]).parse().unwrap();
    assert!(after > before, "no transaction committed meanwhile");
    let copy = world.restore("copy", &[]);
    let new = Server::on(name, &copy, &[]);
    let sum =
        "local s = 0; for n = 0, 199 do s = s + redis.call('get', 'account:' .. n) end; return s";
    assert_eq!(new.ask(&["EVAL", sum, "0"]), "20000");
    let transfers: u64 = new.ask(&["GET", "transfers"]).parse().unwrap();
    assert!(
        (before..=after).contains(&transfers),
        "{before} {transfers} {after}"
    );
    writer.wait().success();
}

per_server!(r02_a_backup_under_load_has_whole_transactions);

/// A replica gives its master's history, with the database that this one had selected.
#[test]
fn a_backup_of_a_replica_has_the_position_of_its_master() {
    let master = Server::listening("redis-7", "--port", &["--repl-diskless-sync-delay", "0"]);
    let port = master.port();
    let replica = Server::start(
        "redis-7",
        &[
            "--replicaof",
            &format!("127.0.0.1 {port}"),
            "--repl-diskless-sync-delay",
            "0",
        ],
    );
    wait_until("the replica follows", || {
        replica.info("master_link_status") == "up"
    });
    // Only the connection that wrote waits for its own writes.
    master.feed("SELECT 5\nSET a 1\nINCR b\nWAIT 1 10000\n");
    let world = World::new(&replica);
    let taken = world.backup();
    let member = &taken["redis"];
    assert_eq!(member["role"], "replica");
    assert_eq!(member["replid"], master.info("master_replid").as_str());
    assert_eq!(member["stream_db"], 5);
    // A failover: the new master's history goes on from the old one.
    let (old, fork) = (member["replid"].clone(), replica.info("master_repl_offset"));
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    let taken = world.backup();
    let member = &taken["redis"];
    assert_eq!(member["parent"], old);
    assert!(
        member["fork"].as_u64().unwrap() >= fork.parse().unwrap(),
        "{member}"
    );
    assert_eq!(member["replid"], replica.info("master_replid").as_str());
    // The increment after the data set begins in that database.
    let copy = world.restore("copy", &["--as-replica"]);
    let increment = copy.join("appendonlydir/appendonly.aof.1.incr.aof");
    assert!(increment.exists(), "{:?}", files_below(&copy));
}

/// Sealed, no word of the data set lies open, and what stays plain has the position alone.
#[test]
fn data_sets_live_in_an_encrypted_repository() {
    let server = filled("redis-7", 5);
    server.ask(&["SET", "planted", "Gr3enTea-42-Gr3enTea-42"]);
    let world = World::sealed(&server);
    let content = {
        server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
        server.content()
    };
    let taken = world.backup();
    for path in files_below(&world.repository()) {
        let bytes = std::fs::read(world.repository().join(&path)).unwrap();
        let found = String::from_utf8_lossy(&bytes).contains("Gr3enTea");
        assert!(!found, "{path}");
    }
    let manifest = format!(
        "aux/redis/cache/backups/{}/manifest",
        taken["id"].as_str().unwrap()
    );
    let root = std::fs::read(world.repository().join(manifest)).unwrap();
    let root = String::from_utf8_lossy(&root).into_owned();
    let replid = taken["redis"]["replid"].as_str().unwrap();
    assert!(root.contains(replid), "the position is a fact");
    assert!(!root.contains("7.0.15"), "the version is none");
    let copy = world.restore("copy", &["--as-replica"]);
    assert_eq!(loaded("redis-7", &copy), content);
}

/// Another version of the family loads what an older one wrote, in its own layout.
#[test]
fn a_newer_server_loads_what_an_older_one_wrote() {
    for (from, to) in [
        ("redis-6", "redis-7"),
        ("redis-6", "valkey-8"),
        ("redis-7", "redis-8"),
        ("valkey-8", "valkey-9"),
    ] {
        let server = filled(from, 11);
        server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
        let mut world = World::new(&server);
        let count = server.ask(&["DBSIZE"]);
        world.backup();
        world.installed = to;
        let copy = world.restore("copy", &["--as-replica"]);
        let new = Server::on(to, &copy, &[]);
        assert_eq!(new.ask(&["DBSIZE"]), count, "{from} {to}");
    }
}

/// A plan is shown before anything is written, and what is listed is what was taken.
#[test]
fn a_dry_run_writes_nothing_and_the_list_has_the_facts() {
    let server = filled("redis-7", 3);
    let world = World::new(&server);
    world
        .redis(&["backup", "cache", "--label", "first"])
        .succeed()
        .expect_stdout("the checksum is right");
    let to = world.sandbox.join("dry");
    world
        .restoring(&to, &["--dry-run"])
        .succeed()
        .expect_stdout("would be written");
    assert!(!to.exists());
    let listed = world.redis(&["ls", "cache"]).succeed();
    listed.expect_stdout("first").expect_stdout("redis 7.0.15");
    let json = world.redis(&["ls", "cache", "--json"]).succeed().json();
    assert_eq!(json["backups"][0]["redis"]["rdb_version"], 10);
    world
        .redis(&["ls", "nobody"])
        .succeed()
        .expect_stderr("there is no backup");
    world
        .pitr(&["info"])
        .run()
        .expect_stdout("aux/redis/cache in one: 1 backup");
    // The version decides on a host without a server.
    let path = world.sandbox.dir("nothing");
    let to = world.sandbox.join("six");
    world
        .restoring(&to, &["--server-version", "redis 7.0"])
        .env("PATH", path)
        .succeed()
        .expect_stderr("nothing checked the append-only file");
    let check = Program::new(program("redis-7", "check-aof"));
    check
        .arg(to.join("appendonlydir/appendonly.aof.manifest"))
        .succeed();
}
