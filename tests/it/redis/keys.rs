//! `pitr redis restore --into … --key` and `--keys`: a running server gets single keys; rows R54 to R56 of docs/faults.md.

use super::into::into;
use super::server::Server;
use super::world::World;
use crate::common::{files_below, wait_until};
use crate::per_server;

const SOURCE: &str = "SET user:1 one\nSET user:2 two EX 100000\nRPUSH user:list a b c\nHSET user:hash f 1 g 2\nZADD user:zset 1 a 2 b\nXADD user:stream 1-1 f v\nXGROUP CREATE user:stream g 0\nSET user:plain x\nSET \"user:\\x00\\xff\" binary\nSET short-lived x PX 1\nSET other 1\nSELECT 5\nSET user:five 5\n";
/// Keys of database 0 in [`SOURCE`] that begin with `user:`.
const USERS: u64 = 8;

/// The data set in `[redis.cache]`, backed up, and another server in `[redis.live]`.
fn two(name: &'static str, more: &[&str]) -> (World, Server, Server) {
    let source = Server::start(name, &[]);
    source.feed(SOURCE);
    let world = World::new(&source);
    let live = Server::start(name, more);
    configure(&world, &source, &live, "");
    world.backup();
    (world, source, live)
}

fn configure(world: &World, source: &Server, live: &Server, more: &str) {
    world.configure(&format!(
        "address = \"{}\"\n[redis.live]\naddress = \"{}\"\n{more}",
        source.address(),
        live.address()
    ));
}

/// The value of a key as the server hands it out, without the version and checksum behind it.
fn dump(server: &Server, key: &str) -> String {
    let told = server.ask(&["--no-raw", "DUMP", key]);
    assert!(told.starts_with('"'), "{key}: {told}");
    told
}

/// Single keys come into a running server, and it keeps all its others.
fn r56_a_running_server_gets_keys_alone(name: &'static str) {
    let (world, source, live) = two(name, &[]);
    live.feed("SET user:1 mine\nSET user:later mine\nSET own 1\nSELECT 5\nSET own 5\n");
    let before = live.content();
    let pattern = ["--keys", "user:*"];
    into(&world, &pattern)
        .exits(8)
        .expect_stderr("1 key of")
        .expect_stderr("add --confirm")
        .expect_stderr("was not changed");
    let run = into(&world, &pattern).arg("--dry-run").succeed();
    run.expect_stdout("7 new, 1 replaced, 0 equal; nothing was written")
        .expect_stderr("left alone: user:later");
    assert_eq!(live.content(), before);
    let run = into(&world, &pattern).words("--confirm --json").run();
    let json = run.success().json();
    assert_eq!(
        (&json["new"], &json["replaced"], &json["others"][0]),
        (&(USERS - 1).into(), &1.into(), &"user:later".into())
    );
    for key in ["user:1", "user:2", "user:list", "user:hash", "user:zset"] {
        assert_eq!(dump(&live, key), dump(&source, key));
    }
    assert!(live.ask(&["XINFO", "GROUPS", "user:stream"]).contains('g'));
    assert!(live.ask(&["TTL", "user:2"]).parse::<u64>().unwrap() > 90_000);
    let binary = "return redis.call('GET', 'user:\\0\\255')";
    assert_eq!(live.ask(&["EVAL", binary, "0"]), "binary");
    assert_eq!(live.ask(&["GET", "user:later"]), "mine");
    assert_eq!(live.ask(&["EXISTS", "other", "short-lived"]), "0");
    assert_eq!(live.ask(&["DBSIZE"]), (USERS + 2).to_string());
    // Again, as after a kill: nothing is left to write, and nothing to confirm.
    let run = into(&world, &pattern).succeed();
    run.expect_stdout("0 new, 0 replaced, 8 equal");
    // One key of another database, which is new there.
    let one = ["--key", "user:five", "--db", "5", "--json"];
    let json = into(&world, &one).succeed().json();
    assert_eq!((&json["new"], &json["safety"]), (&1.into(), &().into()));
    assert_eq!(live.ask(&["-n", "5", "GET", "user:five"]), "5");
    // The backup that was taken before has the former value.
    let safety = run_safety(&world);
    let back = ["restore", "live", "--backup", &safety, "--into", "live"];
    let back = world.redis(&back).words("--key user:1 --confirm");
    back.succeed().expect_stdout("1 replaced");
    assert_eq!(live.ask(&["GET", "user:1"]), "mine");
    let left = files_below(&world.sandbox.join("tmp"));
    assert_eq!(left, Vec::<String>::new());
}
per_server!(r56_a_running_server_gets_keys_alone);

/// The oldest backup of the running server.
fn run_safety(world: &World) -> String {
    let listed = world.json(&["ls", "live"]);
    let backups = listed["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 1, "{listed}");
    backups[0]["id"].as_str().unwrap().to_owned()
}

/// The command refuses by name what cannot be done, and the running server stays as it is.
#[test]
fn r57_keys_that_a_server_cannot_take_are_refused() {
    let (mut world, source, live) = two("redis-7", &[]);
    let before = live.content();
    let refused = |more: &[&str], code, words: &str| {
        let run = into(&world, more).run();
        run.expect_code(code)
            .expect_stderr(words)
            .expect_stderr("was not changed");
    };
    let key = ["--key", "user:1"];
    refused(&["--key", "absent"], 2, "has no key \"absent\"");
    refused(&["--keys", "absent*"], 2, "no key that matches");
    refused(&["--key", "short-lived"], 2, "time to live is over");
    refused(&["--key", "user:1", "--db", "99"], 1, "SELECT");
    let acl = "ACL SETUSER pitr on >word ~* &* -@all +psync +replconf +ping +info\n";
    live.feed(acl);
    let file = world.sandbox.file("pass", "word\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    let user = format!("user = \"pitr\"\npassword_file = \"{}\"\n", file.display());
    configure(&world, &source, &live, &user);
    refused(&key, 1, "may not run DUMP");
    refused(&["--keys", "*"], 1, "may not run SCAN");
    let small = Server::start("redis-7", &["--maxmemory", "50kb"]);
    configure(&world, &source, &small, "");
    refused(&key, 8, "its maxmemory is 51200");
    let master = Server::listening("redis-7", "--port", &["--repl-diskless-sync-delay", "0"]);
    let port = master.port().to_string();
    let replica = Server::start("redis-7", &[]);
    replica.ask(&["REPLICAOF", "127.0.0.1", &port]);
    wait_until("the replica follows", || {
        replica.info("master_link_status") == "up"
    });
    configure(&world, &source, &replica, "");
    refused(&key, 8, "is a replica of 127.0.0.1");
    let shard = Server::start("redis-7", &["--cluster-enabled", "yes"]);
    configure(&world, &source, &shard, "");
    refused(&key, 9, "does not serve the key");
    let told = world.pitr(&["doctor", "--json"]).run();
    assert!(told.stdout.contains("one shard of a cluster"), "{told}");
    let taken = world.redis(&["backup", "live"]).run();
    taken.expect_stderr("one shard of a cluster");
    configure(&world, &source, &live, "");
    world.installed = "redis-8";
    let run = into(&world, &key).run();
    run.expect_code(8).expect_stderr("cannot load what Redis 8");
    assert_eq!(live.content(), before);
}

/// A copy that stops midway says how far it came; the same command finishes it.
#[test]
fn r58_a_copy_that_stops_midway_is_finished_by_the_same_command() {
    let (world, source, live) = two("redis-7", &[]);
    let file = world.sandbox.file("pass", "word\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    // The user may read all keys, and write those alone that come first.
    live.feed("ACL SETUSER pitr on >word %R~* %W~user:1 %W~user:2 &* -@all +psync +replconf +ping +info +scan +dump +restore +pexpiretime\n");
    let user = format!("user = \"pitr\"\npassword_file = \"{}\"\n", file.display());
    configure(&world, &source, &live, &user);
    let run = into(&world, &["--keys", "user:[12h]*"]).run();
    run.expect_code(1)
        .expect_stderr("copy key \"user:hash\"")
        .expect_stderr("2 of 3 keys were written, each whole")
        .expect_stderr("may not run RESTORE, or not with this key");
    assert_eq!(live.ask(&["DBSIZE"]), "2");
    live.feed("ACL SETUSER pitr %W~user:*\n");
    let run = into(&world, &["--keys", "user:[12h]*"]).succeed();
    run.expect_stdout("1 new, 0 replaced, 2 equal");
    assert_eq!(dump(&live, "user:hash"), dump(&source, "user:hash"));
}
