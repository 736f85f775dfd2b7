//! `pitr redis restore --into`: a running server gets a data set; rows R50 to R53 of docs/faults.md.

use rustix::process::{Pid, Signal, kill_process};

use super::server::Server;
use super::world::World;
use crate::common::{Running, files_below, wait_until};
use crate::per_server;

const SOURCE: &str = "SET string one\nSET lasting two EX 100000\nRPUSH list a b c\nHSET hash f 1 g 2\nSADD set x y\nZADD zset 1 a 2 b\nXADD stream 1-1 f v\nSELECT 5\nSET five 5\n";

/// The data set in `[redis.cache]`, backed up, and another server in `[redis.live]`.
fn two(name: &'static str, more: &[&str]) -> (World, Server, Server) {
    let source = Server::start(name, &[]);
    source.feed(SOURCE);
    let world = World::new(&source);
    let live = Server::start(name, more);
    configure(&world, &source, &live, "");
    world.backup();
    live.feed("SET own 1\nSET string mine\nSELECT 3\nSET other 2\n");
    (world, source, live)
}

fn configure(world: &World, source: &Server, live: &Server, more: &str) {
    world.configure(&format!(
        "address = \"{}\"\n[redis.live]\naddress = \"{}\"\nstall_timeout = \"10s\"\n{more}",
        source.address(),
        live.address()
    ));
}

/// The restore of the data set into the other server.
pub fn into(world: &World, more: &[&str]) -> crate::common::Program {
    let scratch = world.sandbox.dir("tmp");
    world
        .redis(&["restore", "cache", "--into", "live"])
        .args(more)
        .env("TMPDIR", scratch)
}

fn setting(server: &Server, name: &str) -> String {
    let told = server.ask(&["CONFIG", "GET", name]);
    told.lines().nth(1).unwrap_or_default().to_owned()
}

/// A running server gets the data set at once; what it had comes back in the same way.
fn r50_a_running_server_gets_a_data_set(name: &'static str) {
    let (world, source, live) = two(name, &["--masterauth", "former-pass"]);
    let before = live.content();
    into(&world, &[]).exits(8).expect_stderr("add --confirm");
    // A command that names a database must not replace all of them.
    let run = into(&world, &["--db", "0", "--confirm"]).run();
    assert!(!run.is_success(), "{run}");
    run.expect_stderr("--db needs --key or --keys");
    into(&world, &["--dry-run"])
        .succeed()
        .expect_stdout("would replace 3 keys");
    assert_eq!(live.content(), before);
    let run = into(&world, &["--confirm", "--json"]).succeed();
    let json = run.json();
    assert_eq!(
        (&json["keys_before"], &json["keys"]),
        (&3.into(), &8.into())
    );
    assert_eq!(live.content(), source.content());
    assert!(live.ask(&["TTL", "lasting"]).parse::<u64>().unwrap() > 90_000);
    assert_eq!(live.info("role"), "master");
    assert_eq!(setting(&live, "masterauth"), "former-pass");
    assert_eq!(
        files_below(&world.sandbox.join("tmp")),
        Vec::<String>::new()
    );
    let safety = json["safety"].as_str().unwrap();
    let back = [
        "restore",
        "live",
        "--backup",
        safety,
        "--into",
        "live",
        "--confirm",
    ];
    world.redis(&back).succeed().expect_stdout("3 keys in");
    assert_eq!(live.content(), before);
    live.ask(&["SET", "after", "it"]);
}
per_server!(r50_a_running_server_gets_a_data_set);

/// The command refuses by name what cannot be done, before it touches the running server.
#[test]
fn r51_servers_that_cannot_be_replaced_are_refused() {
    let (mut world, source, live) = two("redis-7", &["--databases", "5"]);
    let before = live.ask(&["DEBUG", "DIGEST"]);
    let refused = |code, words| {
        let run = into(&world, &["--confirm", "--no-safety"]).run();
        run.expect_code(code)
            .expect_stderr(words)
            .expect_stderr("was not changed");
    };
    refused(8, "keys in database 5");
    let watching = live.cli(&["SUBSCRIBE", "__sentinel__:hello"]).spawn();
    wait_until("it is watched", || {
        live.ask(&["PUBSUB", "NUMSUB", "__sentinel__:hello"])
            .ends_with('1')
    });
    refused(8, "Sentinels watch");
    watching.ended_by(Signal::KILL);
    live.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    refused(9, "lost its master");
    live.ask(&["REPLICAOF", "NO", "ONE"]);
    live.feed("ACL SETUSER pitr on >word ~* &* -@all +psync +replconf +ping +info\n");
    let file = world.sandbox.file("pass", "word\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    let user = format!("user = \"pitr\"\npassword_file = \"{}\"\n", file.display());
    configure(&world, &source, &live, &user);
    refused(1, "may not run PUBSUB");
    assert_eq!(live.ask(&["DEBUG", "DIGEST"]), before);
    let small = Server::start("redis-7", &["--maxmemory", "50kb"]);
    configure(&world, &source, &small, "");
    refused(8, "maxmemory of the server is 51200");
    let shard = Server::start("redis-7", &["--cluster-enabled", "yes"]);
    configure(&world, &source, &shard, "");
    refused(8, "shard of a cluster");
    let master = Server::listening("redis-7", "--port", &["--repl-diskless-sync-delay", "0"]);
    let port = master.port().to_string();
    small.ask(&["REPLICAOF", "127.0.0.1", &port]);
    wait_until("the replica follows", || {
        small.info("master_link_status") == "up"
    });
    configure(&world, &source, &small, "");
    refused(8, "is a replica of 127.0.0.1");
    // A server that gives no backup of what it has.
    let closed = Server::start("redis-7", &["--rename-command", "PSYNC", ""]);
    configure(&world, &source, &closed, "");
    let run = into(&world, &["--confirm"]).run();
    run.expect_stderr("back up what is there")
        .expect_stderr("--no-safety");
    into(&world, &["--confirm", "--no-safety"]).succeed();
    assert_eq!(closed.content(), source.content());
    world.installed = "redis-8";
    let run = into(&world, &["--confirm"]).run();
    run.expect_code(8).expect_stderr("cannot load what Redis 8");
}

/// A server that loads slowly, and its restore while it loads.
fn midway() -> (World, Server, Running) {
    let slow = [
        "--key-load-delay",
        "500",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    let (world, source, live) = two("redis-7", &slow);
    source.ask(&["DEBUG", "POPULATE", "8000", "key", "100"]);
    world.backup();
    let running = into(&world, &["--confirm"]).spawn();
    wait_until("it loads", || live.info("loading") == "1");
    (world, live, running)
}

fn is_master_again(world: &World, live: &Server) {
    assert_eq!(live.info("role"), "master");
    assert_eq!(setting(live, "masterauth"), "");
    assert_eq!(
        files_below(&world.sandbox.join("tmp")),
        Vec::<String>::new()
    );
    live.ask(&["SET", "after", "it"]);
}

#[test]
fn r52_a_restore_that_is_stopped_leaves_a_master() {
    let (world, live, running) = midway();
    let run = running.ended_by(Signal::TERM);
    assert!(!run.is_success(), "{run}");
    run.expect_stderr("its own master again")
        .expect_stderr("REPLICAOF NO ONE")
        // The note of before the server became a replica, should the command be killed.
        .expect_stderr("If this command is killed")
        .expect_stderr("put masterauth, masteruser and replica-read-only back")
        .expect_stderr("--into live --confirm");
    is_master_again(&world, &live);
}

fn disk_of(server: &Server) -> std::path::PathBuf {
    server.socket().with_file_name("data")
}

/// A power cut right behind the command: the rewrite of the append-only file, and a dump, take their time here.
fn r54_a_server_that_ends_behind_it_starts_with_the_new_data(name: &'static str) {
    let ways: [&[&str]; 2] = [
        &["--appendonly", "yes"],
        &["--repl-diskless-load", "swapdb"],
    ];
    for way in ways {
        let slow = [way, &["--rdb-key-save-delay", "200000"]].concat();
        let (world, source, mut live) = two(name, &slow);
        into(&world, &["--confirm"]).succeed();
        live.kill();
        live.begin();
        assert_eq!(live.content(), source.content(), "{way:?}");
    }
}
per_server!(r54_a_server_that_ends_behind_it_starts_with_the_new_data);

#[test]
fn r54_keys_that_do_not_get_onto_the_disk_are_no_success() {
    let (world, source, live) = two("redis-7", &["--repl-diskless-load", "swapdb"]);
    // A dump is renamed to its name in the end, and no file takes the name of a directory.
    std::fs::create_dir(disk_of(&live).join("dump.rdb")).unwrap();
    let run = into(&world, &["--confirm"]).exits(10);
    run.expect_stderr("NOT YET ON THE SERVER'S DISK")
        .expect_stderr("redis-cli BGSAVE");
    assert_eq!(live.content(), source.content());
    assert_eq!(live.info("role"), "master");
    std::fs::remove_dir(disk_of(&live).join("dump.rdb")).unwrap();
}

#[test]
fn r55_what_was_written_behind_the_safety_backup_is_not_replaced() {
    let (world, source, live) = two("redis-7", &[]);
    let file = world.sandbox.join("paused");
    let pause = format!("redis-into={}", file.display());
    let restored = |while_paused: &dyn Fn()| {
        let running = into(&world, &["--confirm"]);
        let running = running.env("PITR_FAULT_PAUSE", &pause).spawn();
        wait_until("the backup is taken", || file.exists());
        while_paused();
        std::fs::remove_file(&file).unwrap();
        running.wait()
    };
    let run = restored(&|| {
        live.ask(&["SET", "own", "2"]);
    });
    run.expect_code(8)
        .expect_stderr("written to the server since its backup")
        .expect_stderr("The server was not changed.");
    assert_eq!(live.ask(&["GET", "own"]), "2");
    restored(&|| ()).success();
    assert_eq!(live.content(), source.content());
}

/// The process whose parent this one is.
fn child_of(parent: u32) -> Option<i32> {
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let (pid, rest) = stat.split_once(' ')?;
        let above = rest.rsplit_once(") ")?.1.split(' ').nth(1)?;
        (above.parse() == Ok(parent)).then(|| pid.parse().ok())?
    })
}

#[test]
fn r52_a_scratch_server_that_dies_leaves_a_master() {
    let (world, live, running) = midway();
    let scratch = child_of(running.pid()).expect("the scratch server runs");
    kill_process(Pid::from_raw(scratch).unwrap(), Signal::KILL).unwrap();
    let run = running.wait();
    assert!(!run.is_success(), "{run}");
    run.expect_stderr("scratch server has ended")
        .expect_stderr("its own master again");
    is_master_again(&world, &live);
}

#[test]
fn r53_a_server_that_is_left_as_a_replica_is_shouted_about() {
    let (_world, mut live, running) = midway();
    live.kill();
    let run = running.wait();
    assert!(!run.is_success(), "{run}");
    run.expect_stderr("IS LEFT AS A REPLICA")
        .expect_stderr("redis-cli -s")
        .expect_stderr("REPLICAOF NO ONE");
}
