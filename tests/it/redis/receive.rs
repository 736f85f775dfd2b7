//! `pitr redis receive`: every moment of a server comes back.

use rustix::process::Signal;

use super::load;
use super::server::Server;
use super::world::World;
use crate::common::random::Random;
use crate::common::{PATIENCE, Run, Running, wait_until};
use crate::per_server;

/// The lines of `[redis.cache]` with a receiver.
pub fn configure(world: &World, server: &Server, more: &str) {
    world.configure(&format!(
        "address = \"{}\"\nreceive.journal = \"{}\"\n{more}",
        server.address(),
        world.sandbox.join("journal").display()
    ));
}

/// Starts a receiver, and waits until the server counts it.
pub fn receiver(world: &World, server: &Server) -> Running {
    let running = world.redis(&["receive", "cache"]).spawn();
    wait_until(PATIENCE, "the receiver is online", || {
        server
            .ask(&["INFO", "replication"])
            .contains("state=online")
    });
    running
}

/// Carries out commands, and waits until so many replicas have confirmed them: `WAIT` counts for its own connection alone.
pub fn confirm(server: &Server, lines: &str, replicas: u32) {
    let all = format!("{lines}WAIT {replicas} 60000\n");
    let run = server.cli(&[]).stdin(all.as_bytes()).run().success();
    let last = run.stdout.lines().next_back().map(str::to_owned);
    assert_eq!(last, Some(replicas.to_string()), "{run}");
}

/// Ends a receiver in order.
pub fn stop(running: Running) -> Run {
    running.signal(Signal::TERM);
    running.wait().success()
}

/// A moment of a server.
pub struct Moment {
    pub offset: u64,
    pub content: String,
}

impl Moment {
    pub fn of(server: &Server) -> Moment {
        let content = server.content();
        let offset = server.info("master_repl_offset").parse().unwrap();
        Moment { offset, content }
    }
}

/// At random moments of a random history the restored state is that of the live server.
fn r20_every_moment_comes_back(name: &'static str) {
    let server = Server::start(name, &["--repl-diskless-sync-delay", "0"]);
    server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let world = World::new(&server);
    configure(&world, &server, "");
    let mut random = Random::new(20_261_124);
    server.feed(&load::commands(&mut random, 500));
    let running = receiver(&world, &server);
    server.feed(&load::commands(&mut random, 500));
    world.backup();
    let mut moments = vec![Moment::of(&server)];
    for _ in 0..8 {
        let count = 1 + random.below(400);
        server.feed(&load::commands(&mut random, count));
        moments.push(Moment::of(&server));
    }
    let ended = stop(running);
    assert!(ended.stdout.contains("received up to offset"), "{ended}");
    for (n, moment) in moments.iter().enumerate() {
        let offset = moment.offset.to_string();
        let options = ["--target-offset", &offset, "--as-replica"];
        let copy = world.restore(&format!("copy{n}"), &options);
        let content = Server::on(name, &copy, &[]).content();
        assert_eq!(content, moment.content, "moment {n} at {offset}");
    }
}
per_server!(r20_every_moment_comes_back);

/// The receiver is killed again and again while it receives: what `WAIT` confirmed comes back.
fn r21_what_wait_confirmed_survives_a_kill_of_the_receiver(name: &'static str) {
    let server = Server::start(name, &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    configure(&world, &server, "");
    let mut running = receiver(&world, &server);
    world.backup();
    let mut known = Vec::new();
    let mut random = Random::new(21);
    for round in 0..6 {
        let keys = 1 + random.below(300);
        let lines: String = (0..keys)
            .map(|n| format!("SET key:{round}:{n} {}\n", "v".repeat(random.below(3000))))
            .collect();
        confirm(&server, &lines, 1);
        if round == 3 {
            confirm(&server, &format!("SET long {}\n", "x".repeat(17 << 20)), 1);
        }
        known.push(Moment::of(&server));
        running.signal(Signal::KILL);
        running.wait();
        wait_until(PATIENCE, "the server sees it", || {
            server.info("connected_slaves") == "0"
        });
        // It goes on where it was: nobody was asked for a data set.
        let forks = server.info("sync_full");
        running = receiver(&world, &server);
        assert_eq!(server.info("sync_full"), forks, "round {round}");
    }
    stop(running);
    // The last answers of the server itself are confirmed, too.
    for (n, moment) in known.iter().enumerate() {
        let offset = moment.offset.to_string();
        let copy = world.restore(&format!("copy{n}"), &["--target-offset", &offset]);
        let content = Server::on(name, &copy, &[]).content();
        assert_eq!(content, moment.content, "round {n}");
    }
    let journal = crate::common::files_below(&world.sandbox.join("journal"));
    let left = journal.iter().filter(|file| file.ends_with(".wal")).count();
    assert!(left <= 8, "{journal:?}");
}
per_server!(r21_what_wait_confirmed_survives_a_kill_of_the_receiver);

/// A time is a target; one that was not reached yet is refused, and so is one before every backup.
#[test]
fn r22_a_time_is_a_target() {
    let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    configure(&world, &server, "");
    let running = receiver(&world, &server);
    let before = now();
    world.backup();
    server.feed("SET account 100\nSET other 1\n");
    let good = Moment::of(&server);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let time = now();
    std::thread::sleep(std::time::Duration::from_millis(50));
    confirm(
        &server,
        "SELECT 3\nSET more 1\nFLUSHALL\nSET account 0\n",
        1,
    );
    let end = Moment::of(&server);
    stop(running);
    let copy = world.restore("copy", &["--target-time", &time]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), good.content);
    let copy = world.restore("last", &["--latest"]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), end.content);
    let none = world.sandbox.join("none");
    let late = now();
    let run = world.restoring(&none, &["--target-time", &late]).run();
    run.expect_code(5)
        .expect_stderr("lies behind all that is stored");
    let run = world.restoring(&none, &["--target-time", &before]).run();
    run.expect_code(5).expect_stderr("at or before the target");
    assert!(!none.exists());
}

/// The present time, as an operator writes it.
fn now() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let micros = i64::try_from(since.as_micros()).unwrap();
    let time = pitr::pg::time::TimestampTz::from_unix_micros(micros).unwrap();
    time.to_string()
}

/// After a failover the receiver goes on without a gap, with the replica's own history.
fn r23_a_failover_leaves_no_gap(name: &'static str) {
    let delay = ["--repl-diskless-sync-delay", "0"];
    let mut master = Server::listening(name, "--port", &delay);
    let port = master.port().to_string();
    let replica = Server::start(name, &delay);
    replica.ask(&["REPLICAOF", "127.0.0.1", &port]);
    wait_until(PATIENCE, "the replica is there", || {
        replica
            .ask(&["INFO", "replication"])
            .contains("master_link_status:up")
    });
    let world = World::new(&master);
    configure(&world, &master, "identity = \"shop\"");
    let running = receiver(&world, &master);
    world.backup();
    confirm(&master, "SELECT 2\nSET a 1\nSELECT 0\nSET b 1\n", 2);
    let first = Moment::of(&master);
    stop(running);
    let parent = master.info("master_replid");
    // More than the receiver has, on the replica too.
    confirm(&master, "SELECT 4\nSET c 1\n", 1);
    let second = Moment::of(&master);
    master.kill();
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    assert_ne!(replica.info("master_replid"), parent);
    configure(&world, &replica, "identity = \"shop\"");
    let forks = replica.info("sync_full");
    let running = receiver(&world, &replica);
    assert_eq!(replica.info("sync_full"), forks, "{}", running.stderr());
    confirm(&replica, "SET d 1\nSELECT 4\nDEL c\n", 1);
    let third = Moment::of(&replica);
    stop(running);
    for (n, moment) in [first, second, third].iter().enumerate() {
        let offset = moment.offset.to_string();
        let copy = world.restore(&format!("copy{n}"), &["--target-offset", &offset]);
        let content = Server::on(name, &copy, &[]).content();
        assert_eq!(content, moment.content, "moment {n}");
    }
    let histories = std::fs::read_dir(world.repository().join("aux/redis/cache/log")).unwrap();
    assert_eq!(histories.count(), 2);
}
per_server!(r23_a_failover_leaves_no_gap);
