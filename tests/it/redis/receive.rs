//! `pitr redis receive`: every moment of a server comes back.

use std::path::PathBuf;

use rustix::process::Signal;

use super::gap;
use super::server::Server;
use super::world::World;
use crate::common::proxy::Proxy;
use crate::common::random::Random;
use crate::common::{Run, Running, wait_until};
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
    let online = || {
        let told = server.ask(&["INFO", "replication"]);
        told.matches("state=online").count()
    };
    let before = online();
    let running = world.redis(&["receive", "cache"]).spawn();
    wait_until("the receiver is online", || online() > before);
    running
}

/// A server of that name, what backs it up, and a receiver of its log that runs.
pub fn received(name: &'static str, more: &str) -> (Server, World, Running) {
    let server = Server::start(name, &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    configure(&world, &server, more);
    let running = receiver(&world, &server);
    (server, world, running)
}

/// Carries out commands, and waits until so many replicas have confirmed them: `WAIT` counts for its own connection alone.
pub fn confirm(server: &Server, lines: &str, replicas: u32) {
    let all = format!("{lines}WAIT {replicas} 60000\n");
    let run = server.cli(&[]).stdin(all.as_bytes()).succeed();
    let last = run.stdout.lines().next_back().map(str::to_owned);
    assert_eq!(last, Some(replicas.to_string()), "{run}");
}

/// Waits until the only receiver has confirmed all that the server had sent when this was called.
pub fn wait_received(server: &Server) {
    let sent = Moment::offset_of(server);
    wait_until("the receiver has all that was sent", || {
        let told = server.ask(&["INFO", "replication"]);
        let receiver = told.lines().find(|line| line.starts_with("slave0:"));
        let fields = receiver.map(|line| line.trim().split([':', ',']));
        let offset = fields.and_then(|mut f| f.find_map(|f| f.strip_prefix("offset=")));
        offset.is_some_and(|offset| offset.parse::<u64>().unwrap() >= sent)
    });
}

/// Ends a receiver in order.
pub fn stop(running: Running) -> Run {
    running.ended_by(Signal::TERM).success()
}

/// A moment of a server.
pub struct Moment {
    pub replid: String,
    pub offset: u64,
    pub content: String,
}

impl Moment {
    pub fn of(server: &Server) -> Moment {
        let content = server.content();
        let offset = Moment::offset_of(server);
        let replid = server.info("master_replid");
        Moment {
            replid,
            offset,
            content,
        }
    }

    pub fn offset_of(server: &Server) -> u64 {
        server.info("master_repl_offset").parse().unwrap()
    }

    /// The value of `--target-offset`.
    pub fn target(&self) -> String {
        format!("{}:{}", self.replid, self.offset)
    }
}

/// A server goes on from an older dump, and then starts empty again and again: the newer backups are of histories that lead nowhere.
#[test]
fn a_history_is_reached_past_any_number_of_backups_of_others() {
    const OTHERS: usize = 17;
    let (mut server, world, running) = received("redis-7", "");
    let base = world.backup();
    confirm(&server, "SET saved 1\n", 1);
    wait_until("the server saves", || server.ask(&["SAVE"]) == "OK");
    stop(running);
    server.kill();
    server.begin();
    let running = receiver(&world, &server);
    confirm(&server, "SET kept 1\nSET kept 2\n", 1);
    let end = Moment::of(&server);
    stop(running);
    for _ in 0..OTHERS {
        server.kill();
        let _ = std::fs::remove_file(server.data().join("dump.rdb"));
        server.begin();
        let other = world.backup();
        assert_ne!(other["redis"]["replid"], *end.replid, "{other}");
    }
    let ways: [&[&str]; 2] = [
        &["--latest", "--history", &end.replid],
        &["--target-offset", &end.target()],
    ];
    for (n, way) in ways.iter().enumerate() {
        let plan = world.json(&[&["plan", "cache"], *way].concat());
        assert_eq!(plan["backup"], base["id"], "{plan}");
        let copy = world.restore(&format!("copy{n}"), way);
        assert_eq!(Server::on("redis-7", &copy, &[]).content(), end.content);
    }
    let none = world.sandbox.join("none");
    let unknown = "f".repeat(40);
    let run = world.restoring(&none, &["--latest", "--history", &unknown]);
    run.exits(5).expect_stderr("does not go on from history");
}

/// The receiver is killed again and again while it receives: what `WAIT` confirmed comes back.
fn r21_what_wait_confirmed_survives_a_kill_of_the_receiver(name: &'static str) {
    let (server, world, mut running) = received(name, "");
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
        running.ended_by(Signal::KILL);
        wait_until("the server sees it", || {
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
        let offset = moment.target();
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
    let (server, world, running) = received("redis-7", "");
    let before = now();
    world.backup();
    confirm(&server, "SET account 100\nSET other 1\n", 1);
    let good = Moment::of(&server);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let time = now();
    std::thread::sleep(std::time::Duration::from_millis(50));
    confirm(&server, "SELECT 3\nSET more 1\n", 1);
    let whole = Moment::of(&server);
    confirm(&server, "SELECT 3\nFLUSHALL\nSET account 0\n", 1);
    let end = Moment::of(&server);
    stop(running);
    let copy = world.restore("copy", &["--target-time", &time]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), good.content);
    let copy = world.restore("last", &["--latest"]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), end.content);
    let info = world.json(&["info", "cache", "--commands"]);
    let flushed = &info["histories"][0]["notable"][0];
    assert_eq!(flushed["command"], "FLUSHALL", "{info}");
    assert_eq!(flushed["db"], 3, "{info}");
    let target = format!("{}:{}", end.replid, flushed["position"]);
    let planned = world.json(&["plan", "cache", "--target-offset", &target]);
    assert_eq!(planned["offset"], whole.offset, "{planned}");
    assert_eq!(world.json(&["plan", "cache"])["offset"], end.offset);
    let copy = world.restore("whole", &["--target-offset", &target]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), whole.content);
    let shown = world.redis(&["info", "cache", "--commands"]).succeed();
    shown.expect_stdout(&format!("--target-offset {target}"));
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
pub fn now() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let micros = i64::try_from(since.as_micros()).unwrap();
    let time = pitr::pg::time::TimestampTz::from_unix_micros(micros).unwrap();
    time.to_string()
}

/// A master, and a replica of it.
pub fn master_and_replica(name: &'static str) -> (Server, Server) {
    let delay = ["--repl-diskless-sync-delay", "0"];
    let master = Server::listening(name, "--port", &delay);
    let port = master.port().to_string();
    let replica = Server::start(name, &delay);
    replica.ask(&["REPLICAOF", "127.0.0.1", &port]);
    wait_until("the replica is there", || {
        replica
            .ask(&["INFO", "replication"])
            .contains("master_link_status:up")
    });
    (master, replica)
}

/// Starts a receiver of another server with the same identity, which is asked for no data set.
pub fn receiver_goes_on(world: &World, server: &Server) -> Running {
    configure(world, server, "identity = \"shop\"");
    let forks = server.info("sync_full");
    let running = receiver(world, server);
    assert_eq!(server.info("sync_full"), forks, "{}", running.stderr());
    running
}

/// After a failover the receiver goes on without a gap, with the replica's own history.
fn r23_a_failover_leaves_no_gap(name: &'static str) {
    let (mut master, replica) = master_and_replica(name);
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
    let running = receiver_goes_on(&world, &replica);
    confirm(&replica, "SET d 1\nSELECT 4\nDEL c\n", 1);
    let third = Moment::of(&replica);
    let told = stop(running);
    let on = format!("history {} goes on from position", third.replid);
    told.expect_stderr(&on)
        .expect_stderr(&format!("run_id {}", replica.info("run_id")));
    for (n, moment) in [first, second, third].iter().enumerate() {
        let offset = moment.target();
        let copy = world.restore(&format!("copy{n}"), &["--target-offset", &offset]);
        let content = Server::on(name, &copy, &[]).content();
        assert_eq!(content, moment.content, "moment {n}");
    }
    let histories = std::fs::read_dir(world.repository().join("aux/redis/cache/log")).unwrap();
    assert_eq!(histories.count(), 2);
}
per_server!(r23_a_failover_leaves_no_gap);

/// A receiver that has more than the replica which is promoted leaves the old history where the replica did, and both can be had.
fn r24_what_the_promoted_replica_never_had_is_left(name: &'static str) {
    let (mut master, replica) = master_and_replica(name);
    let world = World::new(&master);
    configure(&world, &master, "identity = \"shop\"");
    let running = receiver(&world, &master);
    world.backup();
    confirm(&master, "SELECT 2\nSET a 1\n", 2);
    let both = Moment::of(&master);
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    confirm(&master, "SELECT 3\nSET only:there 1\n", 1);
    let before = Moment::of(&master);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let time = now();
    std::thread::sleep(std::time::Duration::from_millis(50));
    confirm(&master, "SET only:there 2\n", 1);
    let tail = Moment::of(&master);
    stop(running);
    master.kill();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let running = receiver_goes_on(&world, &replica);
    confirm(&replica, "SELECT 4\nSET only:here 1\n", 1);
    let end = Moment::of(&replica);
    stop(running)
        .expect_stderr(&format!(
            "warning: the server went on without what it sent last: history {} goes on from position",
            end.replid
        ))
        .expect_stderr(&format!("up to position {}", tail.offset))
        .expect_stderr(&format!("--latest --history {}", tail.replid));
    let wanted = [
        (both.target(), &both),
        (tail.target(), &tail),
        (end.target(), &end),
    ];
    for (n, (target, moment)) in wanted.iter().enumerate() {
        let copy = world.restore(&format!("copy{n}"), &["--target-offset", target]);
        assert_eq!(
            Server::on(name, &copy, &[]).content(),
            moment.content,
            "{n}"
        );
    }
    let options: [(&[&str], &Moment); 3] = [
        (&["--latest"], &end),
        (&["--latest", "--history", &tail.replid], &tail),
        (&["--target-time", &time], &before),
    ];
    for (n, (options, moment)) in options.iter().enumerate() {
        let copy = world.restore(&format!("by{n}"), options);
        let content = Server::on(name, &copy, &[]).content();
        assert_eq!(content, moment.content, "{options:?}");
    }
}
per_server!(r24_what_the_promoted_replica_never_had_is_left);

/// A server that was started on a copy of the dump has the history of the original, and goes on with it: the receiver follows, says so, and keeps what the copy lacks.
#[test]
fn r133_a_copy_of_the_server_at_its_address_is_told() {
    let delay = ["--repl-diskless-sync-delay", "0"];
    let mut server = Server::start("redis-7", &delay);
    let world = World::new(&server);
    configure(&world, &server, "identity = \"shop\"");
    let running = receiver(&world, &server);
    world.backup();
    confirm(&server, "SET a 1\n", 1);
    wait_until("the server saves", || server.ask(&["SAVE"]) == "OK");
    let dump = server.data().join("dump.rdb");
    let mut copy = Server::start("redis-7", &delay);
    copy.kill();
    std::fs::copy(dump, copy.data().join("dump.rdb")).unwrap();
    confirm(&server, "SET confirmed 1\n", 1);
    let tail = Moment::of(&server);
    stop(running);
    server.kill();
    copy.begin();
    let running = receiver_goes_on(&world, &copy);
    confirm(&copy, "SET foreign 1\n", 1);
    let end = Moment::of(&copy);
    let told = stop(running);
    told.expect_stderr("warning: the server went on without what it sent last")
        .expect_stderr(&format!("run_id {}", copy.info("run_id")))
        .expect_stderr("or a copy of the server")
        .expect_stderr(&format!("--latest --history {}", tail.replid));
    let wanted: [(&[&str], &Moment); 2] = [
        (&["--latest", "--history", &tail.replid], &tail),
        (&["--latest"], &end),
    ];
    for (n, (options, moment)) in wanted.iter().enumerate() {
        let restored = world.restore(&format!("copy{n}"), options);
        let content = Server::on("redis-7", &restored, &[]).content();
        assert_eq!(content, moment.content, "{options:?}");
    }
}

/// A damaged object ends nothing where another one has the same bytes; where none has, nothing is written.
#[test]
fn r25_a_damaged_object_of_the_log_is_passed_over_or_named() {
    let (server, world, running) = received("redis-7", "");
    world.backup();
    let mut middle = None;
    for round in 0..6 {
        let lines: String = (0..3000)
            .map(|n| format!("SET key:{round}:{n} {}\n", "v".repeat(1000)))
            .collect();
        confirm(&server, &lines, 1);
        if round == 3 {
            middle = Some(Moment::of(&server));
        }
        std::thread::sleep(std::time::Duration::from_millis(2200));
    }
    let end = Moment::of(&server);
    let middle = middle.unwrap();
    stop(running);
    let log = world
        .repository()
        .join("aux/redis/cache/log")
        .join(&end.replid);
    let files = crate::common::files_below(&log);
    let whole: Vec<&String> = files.iter().filter(|f| is_whole(f)).collect();
    assert_eq!(whole.len(), 1, "{files:?}");
    world.pitr(&["verify"]).succeed();
    damage(&log.join(whole[0]));
    let found = world.pitr(&["verify"]).run();
    found.expect_code(4).expect_stdout(whole[0]);
    let target = middle.target();
    let copy = world.restore("copy", &["--target-offset", &target]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), middle.content);
    for file in files.iter().filter(|f| f.starts_with("open/")) {
        damage(&log.join(file));
    }
    let none = world.sandbox.join("none");
    for options in [&["--latest"][..], &["--target-offset", &target]] {
        let run = world.restoring(&none, options).run();
        run.expect_code(1).expect_stderr("error damaged");
        assert!(!none.exists());
    }
    // The overview has all that it can know, also where nothing of an object can be read.
    for file in files
        .iter()
        .filter(|f| is_whole(f) || f.starts_with("open/"))
    {
        let path = log.join(file);
        let length = std::fs::metadata(&path).unwrap().len();
        std::fs::remove_file(&path).unwrap();
        let zeros = vec![0_u8; usize::try_from(length).unwrap()];
        std::fs::write(&path, zeros).unwrap();
    }
    let shown = world.redis(&["info", "cache", "--commands"]).succeed();
    shown
        .expect_stdout(&format!("history {}", end.replid))
        .expect_stdout("? to ?")
        .expect_stderr("the time of the bytes at offset")
        .expect_stderr("each command between offsets")
        .expect_stderr("is not known");
}

/// Runs that read what was read longest ago come to the log, too; each reads it once.
#[test]
fn v44_the_log_is_read_back_in_turns() {
    let (server, world, running) = received("redis-7", "");
    world.backup();
    confirm(&server, &format!("SET long {}\n", "x".repeat(33 << 20)), 1);
    let log = world.repository().join("aux/redis/cache/log");
    let log = log.join(Moment::of(&server).replid);
    let whole = || -> Vec<String> {
        let files = crate::common::files_below(&log).into_iter();
        files.filter(|f| is_whole(f)).collect()
    };
    wait_until("two whole segments are stored", || whole().len() == 2);
    stop(running);
    let since = |options: &[&str]| {
        let words = [&["verify", "--json", "--since", "last"][..], options].concat();
        world.pitr(&words).run()
    };
    let read = |run: &Run| {
        let share = &run.json()["scopes"][0]["read_back"];
        let number = |name: &str| share[name].as_u64().unwrap();
        assert_eq!(number("segments"), 2, "{run}");
        let read = number("segments_read") + number("packs_read");
        (read, number("segments") + number("packs"))
    };
    let one = ["--max-bytes", "0B"];
    for expected in 1.. {
        let (done, all) = read(&since(&one).success());
        assert_eq!(done, expected);
        if done == all {
            break;
        }
    }
    let place = log.join(&whole()[0]);
    let kept = std::fs::read(&place).unwrap();
    damage(&place);
    let run = since(&[]).expect_code(4);
    run.expect_stdout(&whole()[0]);
    std::fs::write(&place, kept).unwrap();
    since(&[]).success();
    // Expiry leaves what tells of the log.
    let expire = ["expire", "--keep", "1", "--min-age", "0s", "--grace", "0s"];
    world.pitr(&expire).words("--confirm").succeed();
    let (done, all) = read(&since(&one).success());
    assert_eq!(done, all);
}

fn is_whole(file: &str) -> bool {
    let (folder, name) = file.split_once('/').unwrap_or_default();
    folder.len() == 8 && name.len() == 16
}

/// Turns a byte in the middle of a file.
fn damage(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The server is asked again for bytes that the journal lost before they were shipped; where it has them no more, the gap is recorded with its reason.
#[test]
fn r26_a_damaged_journal_is_received_again_or_recorded_as_a_gap() {
    for is_lost in [false, true] {
        let options = [
            "--repl-diskless-sync-delay",
            "0",
            "--repl-backlog-size",
            "2mb",
        ];
        let server = Server::start("redis-7", &options);
        let world = World::new(&server);
        configure(&world, &server, "");
        let running = receiver(&world, &server);
        world.backup();
        confirm(&server, "SET a 1\n", 1);
        let first = Moment::of(&server);
        stop(running);
        // Nothing is shipped while the repository is away.
        let away = world.sandbox.join("away");
        std::fs::rename(world.repository(), &away).unwrap();
        let running = receiver(&world, &server);
        let lines: String = (0..500)
            .map(|n| format!("SET key:{n} {}\n", "v".repeat(1000)))
            .collect();
        confirm(&server, &lines, 1);
        running.ended_by(Signal::KILL);
        if is_lost {
            let lines: String = (0..4000)
                .map(|n| format!("SET late:{n} {}\n", "v".repeat(1000)))
                .collect();
            server.feed(&lines);
        }
        let journal = world.sandbox.join("journal");
        let mut files = crate::common::files_below(&journal);
        files.retain(|file| file.ends_with(".wal"));
        files.sort();
        let path = journal.join(files.last().unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", (used / 2) as u64).unwrap();
        std::fs::rename(&away, world.repository()).unwrap();
        let running = receiver(&world, &server);
        confirm(&server, "SET last 1\n", 1);
        let end = Moment::of(&server);
        stop(running);
        let log = world
            .repository()
            .join("aux/redis/cache/log")
            .join(&end.replid);
        let gaps = std::fs::read_dir(log.join("begins")).unwrap().count();
        // The receiver's own beginning is one.
        assert_eq!(gaps, 1 + usize::from(is_lost));
        let none = world.sandbox.join("none");
        let target = end.target();
        let run = world.restoring(&none, &["--target-offset", &target]).run();
        run.success();
        assert_eq!(Server::on("redis-7", &none, &[]).content(), end.content);
        let info = world.redis(&["info", "cache"]).succeed();
        let told = info.stdout.contains("gap behind offset");
        assert_eq!(told, is_lost, "{info}");
        let copy = world.restore("copy", &["--target-offset", &first.target()]);
        assert_eq!(Server::on("redis-7", &copy, &[]).content(), first.content);
    }
}

/// A damage of the journal is found while the receiver runs: nothing behind it is acknowledged before the server has sent it again, or has it no more.
#[test]
fn r149_a_journal_that_is_damaged_below_a_running_receiver_is_received_again() {
    for is_lost in [false, true] {
        let backlog = if is_lost { "2mb" } else { "64mb" };
        let options = [
            "--repl-diskless-sync-delay",
            "0",
            "--repl-backlog-size",
            backlog,
        ];
        let server = Server::start("redis-7", &options);
        let world = World::new(&server);
        configure(&world, &server, "receive.acknowledge = \"repository\"");
        let running = receiver(&world, &server);
        world.backup();
        confirm(&server, "SET a 1\n", 1);
        // Nothing is shipped while the repository is away.
        let away = world.sandbox.join("away");
        std::fs::rename(world.repository(), &away).unwrap();
        // A segment of the log is in memory: the damage is to lie behind it.
        let lines: String = (0..240)
            .map(|n| format!("SET key:{n} {}\n", "v".repeat(100_000)))
            .collect();
        server.feed(&lines);
        let journal = world.sandbox.join("journal");
        let second = || {
            let mut files = crate::common::files_below(&journal);
            files.retain(|file| file.ends_with("000000000000001.wal"));
            Some(journal.join(files.first()?))
        };
        let is_written = |path: &std::path::PathBuf| {
            let mut bytes = [0; 64];
            let file = std::fs::File::open(path).unwrap();
            let read = std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 7_000_000).unwrap();
            bytes[..read].iter().any(|byte| *byte != 0)
        };
        wait_until("the journal has it", || {
            second().as_ref().is_some_and(is_written)
        });
        let path = second().unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 3_500_000).unwrap();
        std::fs::rename(&away, world.repository()).unwrap();
        confirm(&server, "SET last 1\n", 1);
        confirm(&server, "SET behind 1\n", 1);
        let end = Moment::of(&server);
        let told = stop(running);
        told.expect_stderr("the server is asked once more for what follows position");
        let log = world
            .repository()
            .join("aux/redis/cache/log")
            .join(&end.replid);
        let begun = std::fs::read_dir(log.join("begins")).unwrap().count();
        assert_eq!(begun > 1, is_lost, "{begun}");
        let to = world.sandbox.join("copy");
        world.restoring(&to, &["--latest"]).succeed();
        assert_eq!(Server::on("redis-7", &to, &[]).content(), end.content);
    }
}

/// A host without the private half of the keys receives into an encrypted repository, and goes on there also when its journal is lost.
#[test]
fn r27_a_host_that_cannot_read_goes_on_in_an_encrypted_repository() {
    let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    let world = World::sealed(&server);
    configure(&world, &server, "");
    world.backup();
    world.hide_private_key(true);
    let running = receiver(&world, &server);
    // Stopped before it has anything, it would begin anew.
    confirm(&server, "SET first 1\n", 1);
    stop(running);
    world.hide_private_key(false);
    world.backup();
    world.hide_private_key(true);
    let mut moments = Vec::new();
    for round in 0..3 {
        let forks = server.info("sync_full");
        let running = receiver(&world, &server);
        assert_eq!(server.info("sync_full"), forks, "{}", running.stderr());
        let lines = format!("SELECT {round}\nSET key:{round} {round}\n");
        confirm(&server, &lines, 1);
        moments.push(Moment::of(&server));
        stop(running);
        if round == 1 {
            std::fs::remove_dir_all(world.sandbox.join("journal")).unwrap();
        }
    }
    let none = world.sandbox.join("none");
    world
        .restoring(&none, &["--latest"])
        .run()
        .expect_stderr("key");
    assert!(!none.exists());
    world.hide_private_key(false);
    for (n, moment) in moments.iter().enumerate() {
        let options = ["--target-offset", &moment.target()];
        let copy = world.restore(&format!("copy{n}"), &options);
        let content = Server::on("redis-7", &copy, &[]).content();
        assert_eq!(content, moment.content, "moment {n}");
    }
}

/// The lines of a second repository; the first one is not required then.
fn second_repository(world: &World) -> String {
    let two = world.sandbox.join("two").display().to_string();
    format!("[repositories.two]\nurl = \"file://{two}\"\n")
}

/// Makes the first repository one that may fail.
fn require_second_alone(world: &World) {
    let path = world.sandbox.join("pitr.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace(
        "[repositories.one]\n",
        "[repositories.one]\nrequired = false\n",
    );
    std::fs::write(&path, text).unwrap();
}

/// Both repositories have a backup and the same log. Then the first one, which is not required, is moved away; where it is.
fn first_goes_away(world: &World, server: &Server) -> PathBuf {
    configure(world, server, &second_repository(world));
    require_second_alone(world);
    world.pitr(&["init", "--quiet"]).succeed();
    let running = receiver(world, server);
    world.backup();
    world
        .pitr(&["repo", "sync", "--from", "one", "--to", "two"])
        .succeed();
    confirm(server, "SET a 1\n", 1);
    stop(running);
    let away = world.sandbox.join("away");
    std::fs::rename(world.repository(), &away).unwrap();
    away
}

/// A repository that was away has a gap, and another one has none: the end is that of the second, and its time is printed.
#[test]
fn r140_the_end_comes_from_the_repository_without_a_gap() {
    let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    let away = first_goes_away(&world, &server);
    let running = receiver(&world, &server);
    confirm(&server, "SET b 1\n", 1);
    running.ended_by(Signal::TERM);
    // The journal alone has the rest for the first one, and is lost.
    std::fs::remove_dir_all(world.sandbox.join("journal")).unwrap();
    let first = world.sandbox.join("first");
    std::fs::rename(&away, &first).unwrap();
    let pause = world.sandbox.join("pause");
    let running = gap::held(&world, &pause);
    std::fs::rename(&first, world.repository()).unwrap();
    server.feed("SET c 1\n");
    let end = Moment::of(&server);
    running.signal(Signal::TERM);
    std::fs::remove_file(&pause).unwrap();
    running.wait().success();
    let to = world.sandbox.join("copy");
    let run = world.restoring(&to, &["--latest"]).succeed();
    run.expect_stderr("repository \"one\" is passed over: ")
        .expect_stderr("were never received")
        .expect_stdout(&format!("of {}, of 20", end.replid));
    assert_eq!(Server::on("redis-7", &to, &[]).content(), end.content);
}

/// A receiver that lost its journal asks all repositories: it goes on where each of them gets what it lacks, and else where the last one ends.
#[test]
fn r141_a_lost_journal_is_replaced_by_what_all_repositories_have() {
    for is_late in [false, true] {
        let options = [
            "--repl-diskless-sync-delay",
            "0",
            "--repl-backlog-size",
            "1mb",
        ];
        let server = Server::start("redis-7", &options);
        let world = World::new(&server);
        let away = first_goes_away(&world, &server);
        let running = receiver(&world, &server);
        let count = if is_late { 3000 } else { 300 };
        let lines: String = (0..count)
            .map(|n| format!("SET key:{n} {}\n", "v".repeat(1000)))
            .collect();
        confirm(&server, &lines, 1);
        running.ended_by(Signal::TERM);
        std::fs::remove_dir_all(world.sandbox.join("journal")).unwrap();
        std::fs::rename(&away, world.repository()).unwrap();
        let forks = server.info("sync_full");
        let running = receiver(&world, &server);
        assert_eq!(server.info("sync_full"), forks, "{}", running.stderr());
        confirm(&server, "SET b 1\n", 1);
        let end = Moment::of(&server);
        stop(running);
        let whole: &[&str] = if is_late { &["two"] } else { &["one", "two"] };
        for name in whole {
            let to = world
                .sandbox
                .join(name)
                .join("../copy-of")
                .with_extension(name);
            let run = world
                .restoring(&to, &["--latest", "--repository", name])
                .run();
            run.success();
            let content = Server::on("redis-7", &to, &[]).content();
            assert_eq!(content, end.content, "{is_late} {name}");
        }
    }
}

/// A repository that is not required is away at the first start: the receiver begins, and says that.
#[test]
fn a_repository_that_is_not_required_keeps_no_receiver_from_its_first_start() {
    let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    configure(&world, &server, &second_repository(&world));
    require_second_alone(&world);
    world.pitr(&["init", "--quiet"]).succeed();
    let away = world.sandbox.join("away");
    std::fs::rename(world.repository(), &away).unwrap();
    let running = receiver(&world, &server);
    confirm(&server, "SET a 1\n", 1);
    let run = running.ended_by(Signal::TERM);
    let told = run.stderr.matches("is not asked where the log ends");
    assert!(told.count() >= 1, "{run}");
}

/// A damaged object at the end of the log keeps no receiver from starting without its journal.
#[test]
fn r142_a_damaged_end_of_the_log_ends_no_receiver() {
    let (server, world, running) = received("redis-7", "");
    world.backup();
    for n in 0..2 {
        confirm(&server, &format!("SET key:{n} 1\n"), 1);
        std::thread::sleep(std::time::Duration::from_millis(2200));
    }
    stop(running);
    std::fs::remove_dir_all(world.sandbox.join("journal")).unwrap();
    let replid = server.info("master_replid");
    let log = world.repository().join("aux/redis/cache/log").join(replid);
    let mut open = crate::common::files_below(&log);
    open.retain(|file| file.starts_with("open/"));
    open.sort();
    let last = log.join(open.last().unwrap());
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[..8].fill(0);
    std::fs::remove_file(&last).unwrap();
    std::fs::write(&last, bytes).unwrap();
    let forks = server.info("sync_full");
    let running = receiver(&world, &server);
    assert_eq!(server.info("sync_full"), forks, "{}", running.stderr());
    confirm(&server, "SET last 1\n", 1);
    let end = Moment::of(&server);
    stop(running);
    let copy = world.restore("copy", &["--latest"]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), end.content);
}

/// The time of a target is the receiver's: a backup that another clock dates before it, and that has later bytes, is no way there.
#[test]
fn r143_a_backup_of_a_host_whose_clock_is_behind_is_judged_by_the_log() {
    let (server, world, running) = received("redis-7", "");
    let backup_behind = |seconds: u64| {
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs();
        let run = world
            .redis(&["backup", "cache", "--json"])
            .env("PITR_FAULT_CLOCK", format!("{},{now},1", now - seconds));
        run.succeed().json()
    };
    let early = backup_behind(60);
    confirm(&server, "SET account 100\n", 1);
    let wanted = Moment::of(&server);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let time = now();
    std::thread::sleep(std::time::Duration::from_millis(50));
    confirm(&server, "SET account 0\n", 1);
    let late = backup_behind(30);
    confirm(&server, "SET other 1\n", 1);
    stop(running);
    let received = |taken: &serde_json::Value| taken["redis"]["received_time"].clone();
    assert!(received(&early).as_str() < received(&late).as_str());
    assert!(
        received(&late).as_str() < Some(time.as_str()),
        "{late} {time}"
    );
    let copy = world.restore("copy", &["--target-time", &time]);
    assert_eq!(Server::on("redis-7", &copy, &[]).content(), wanted.content);
    let named = [
        "plan",
        "cache",
        "--target-time",
        &time,
        "--backup",
        late["id"].as_str().unwrap(),
    ];
    world.redis(&named).exits(5);
}

/// The address changes at a failover, and nobody names the identity: what the journal alone has of the former server stays to be had.
#[test]
fn r144_a_changed_address_leaves_no_journal_behind() {
    for is_confirmed in [false, true] {
        let (mut master, replica) = master_and_replica("redis-7");
        let world = World::new(&master);
        configure(&world, &master, "");
        let running = receiver(&world, &master);
        world.backup();
        confirm(&master, "SET a 1\n", 2);
        let away = world.sandbox.join("away");
        std::fs::rename(world.repository(), &away).unwrap();
        confirm(&master, "SET b 1\n", 2);
        let wanted = Moment::of(&master);
        running.ended_by(Signal::KILL);
        std::fs::rename(&away, world.repository()).unwrap();
        master.kill();
        replica.ask(&["REPLICAOF", "NO", "ONE"]);
        configure(&world, &replica, "");
        let run = world.redis(&["receive", "cache"]).exits(3);
        let identity = format!("identity = \"{}\"", master.address());
        run.expect_stderr("holds what was received from another address")
            .expect_stderr(&identity);
        if is_confirmed {
            let confirmed = ["backup", "cache", "--confirm"];
            world.redis(&confirmed).succeed();
        } else {
            configure(&world, &replica, &identity);
        }
        let running = receiver(&world, &replica);
        confirm(&replica, "SET c 1\n", 1);
        let end = Moment::of(&replica);
        let told = stop(running);
        assert_eq!(
            told.stderr.contains("may be deleted"),
            is_confirmed,
            "{told}"
        );
        for (name, moment) in [("wanted", &wanted), ("end", &end)] {
            let copy = world.restore(name, &["--target-offset", &moment.target()]);
            assert_eq!(Server::on("redis-7", &copy, &[]).content(), moment.content);
        }
    }
}

/// A right that is taken from a receiver that runs, and given again, ends nothing. At the start it does.
#[test]
fn r145_a_receiver_outlives_a_right_that_it_lacks_for_a_while() {
    let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    let allow = || {
        let rights = "SETUSER pitr on >Gr3enTea -@all +psync +replconf +ping +info";
        server.ask(&[&["ACL"], &rights.split(' ').collect::<Vec<_>>()[..]].concat());
    };
    allow();
    let world = World::new(&server);
    let password = world.sandbox.file("password", "Gr3enTea\n");
    let lines = format!(
        "user = \"pitr\"\npassword_file = \"{}\"",
        password.display()
    );
    configure(&world, &server, &lines);
    let running = receiver(&world, &server);
    confirm(&server, "SET a 1\n", 1);
    server.ask(&["ACL", "DELUSER", "pitr"]);
    server.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    wait_until("the receiver tells of it", || {
        running.stderr().contains("the receiver tries again")
    });
    std::thread::sleep(std::time::Duration::from_secs(3));
    let moved = world.sandbox.join("moved");
    std::fs::rename(&password, &moved).unwrap();
    allow();
    std::thread::sleep(std::time::Duration::from_secs(1));
    std::fs::rename(&moved, &password).unwrap();
    confirm(&server, "SET b 1\n", 1);
    stop(running);
    server.ask(&["ACL", "DELUSER", "pitr"]);
    world.redis(&["receive", "cache"]).exits(1);
}

/// `pitr repo sync` brings the log along, and again what came since: every moment comes back from the copy alone.
#[test]
fn r28_the_log_is_copied_with_the_backups() {
    let server = Server::start("redis-7", &["--repl-diskless-sync-delay", "0"]);
    for is_sealed in [false, true] {
        let world = match is_sealed {
            true => World::sealed(&server),
            false => World::new(&server),
        };
        let copy = world.sandbox.join("second");
        let second = format!("[repositories.two]\nurl = \"file://{}\"", copy.display());
        let encryption = match is_sealed {
            true => world
                .encryption
                .replace("repositories.one", "repositories.two"),
            false => String::new(),
        };
        let mut last = None;
        for round in 0..2 {
            configure(&world, &server, "");
            let running = receiver(&world, &server);
            if round == 0 {
                world.backup();
            }
            confirm(&server, &format!("SET round {round}\n"), 1);
            last = Some(Moment::of(&server));
            stop(running);
            configure(&world, &server, &format!("{second}\n{encryption}"));
            if round == 0 {
                world.pitr(&["init", "--quiet"]).succeed();
            }
            let sync = ["repo", "sync", "--from", "one", "--to", "two"];
            world.pitr(&sync).succeed();
            let again = world.pitr(&sync).arg("--json").succeed().json();
            assert!(again.to_string().contains("\"log_objects\":0"), "{again}");
        }
        std::fs::rename(world.repository(), world.sandbox.join("away")).unwrap();
        world.pitr(&["verify", "--repository", "two"]).succeed();
        let last = last.unwrap();
        let target = last.target();
        let copy = world.restore("copy", &["--target-offset", &target]);
        assert_eq!(Server::on("redis-7", &copy, &[]).content(), last.content);
    }
}

/// `pitr doctor` says how long the receiver may be away, and what helps where that is too short.
#[test]
fn r29_doctor_compares_the_backlog_with_what_is_written() {
    let options = [
        "--repl-diskless-sync-delay",
        "0",
        "--repl-backlog-size",
        "64kb",
    ];
    let server = Server::start("redis-7", &options);
    let world = World::new(&server);
    configure(&world, &server, "");
    let finding = |name: &str| -> serde_json::Value {
        let told = world.pitr(&["doctor", "--json"]).run().json();
        let all = told["findings"].as_array().unwrap().clone();
        let named = |f: &&serde_json::Value| f["group"] == "redis" && f["name"] == name;
        all.iter().find(named).cloned().unwrap_or_default()
    };
    let lonely = finding("cache backlog");
    assert_eq!(lonely["level"], "warn", "{lonely}");
    let running = receiver(&world, &server);
    assert_eq!(finding("cache")["level"], "ok");
    assert_eq!(finding("cache fork")["level"], "ok");
    assert_eq!(finding("cache backlog")["level"], "ok");
    let value = "v".repeat(20_000);
    let writing = server
        .cli(&["-r", "10000000", "SET", "key", &value])
        .spawn();
    let busy = finding("cache backlog");
    writing.ended_by(Signal::KILL);
    assert_eq!(busy["level"], "warn", "{busy}");
    assert!(busy.to_string().contains("may be away for"), "{busy}");
    assert!(busy.to_string().contains("repl-backlog-size"), "{busy}");
    stop(running);

    // The server keeps little for a replica that is slow to take a data set.
    let fine = finding("cache output buffer");
    assert_eq!(fine["level"], "ok", "{fine}");
    server.ask(&[
        "CONFIG",
        "SET",
        "client-output-buffer-limit",
        "replica 100kb 100kb 60",
    ]);
    let writing = server
        .cli(&["-r", "10000000", "SET", "key", &value])
        .spawn();
    let small = finding("cache output buffer");
    writing.ended_by(Signal::KILL);
    assert_eq!(small["level"], "warn", "{small}");
    assert!(
        small.to_string().contains("client-output-buffer-limit"),
        "{small}"
    );

    // Rights are tried, and nothing forks for it.
    let forks = server.info("sync_full");
    let rights = finding("cache rights");
    assert_eq!(rights["level"], "ok", "{rights}");
    server.ask(&["ACL", "SETUSER", "default", "-psync", "-config"]);
    let rights = finding("cache rights");
    assert_eq!(rights["level"], "fail", "{rights}");
    assert!(rights.to_string().contains("+psync"), "{rights}");
    let unknown = finding("cache output buffer");
    assert!(unknown.to_string().contains("+config|get"), "{unknown}");
    assert_eq!(server.info("sync_full"), forks);
    server.ask(&["ACL", "SETUSER", "default", "+@all"]);
    server.ask(&["SHUTDOWN", "NOSAVE"]);
    assert_eq!(finding("cache")["level"], "fail");
}

/// A connection that breaks right behind a gap, before anything was stored, does not hide it.
#[test]
fn r63_a_gap_is_recorded_when_the_connection_breaks_behind_it() {
    let mut server = Server::listening("redis-7", "--port", &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    let proxy = Proxy::to(server.port());
    world.configure(&format!(
        "address = \"127.0.0.1:{}\"\nreceive.journal = \"{}\"",
        proxy.port(),
        world.sandbox.join("journal").display()
    ));
    let running = receiver(&world, &server);
    confirm(&server, "SET a 1\n", 1);
    server.kill();
    server.begin();
    wait_until("the receiver is there again", || {
        server.info("connected_slaves") == "1" && running.stderr().contains("gap: ")
    });
    let before = proxy.counts().connections;
    proxy.reset();
    wait_until("it connects once more", || {
        proxy.counts().connections > before
    });
    confirm(&server, "SET b 1\n", 1);
    stop(running);
    let info = world.json(&["info", "cache"]);
    let last = &info["histories"][1]["beginnings"][0];
    let reason = "the server goes on with another history";
    assert_eq!(last["reason"], reason, "{info}");
}

/// The journal is lost with its host, and the server begins another history meanwhile: what is stored tells of the gap, to a host that cannot read, too.
#[test]
fn r63_a_gap_is_recorded_when_the_journal_is_lost_as_well() {
    for is_sealed in [false, true] {
        let mut server =
            Server::listening("redis-7", "--port", &["--repl-diskless-sync-delay", "0"]);
        let world = match is_sealed {
            true => World::sealed(&server),
            false => World::new(&server),
        };
        configure(&world, &server, "");
        let running = receiver(&world, &server);
        confirm(&server, "SET a 1\n", 1);
        stop(running);
        std::fs::remove_dir_all(world.sandbox.join("journal")).unwrap();
        server.kill();
        server.begin();
        if is_sealed {
            world.hide_private_key(true);
        }
        let running = receiver(&world, &server);
        confirm(&server, "SET b 1\n", 1);
        stop(running);
        if is_sealed {
            world.hide_private_key(false);
        }
        let info = world.json(&["info", "cache"]);
        let begun = info["histories"].as_array().unwrap().iter();
        let begun: Vec<_> = begun.filter_map(|h| h["beginnings"].get(0)).collect();
        let behind_gap = begun
            .iter()
            .filter(|b| b["reason"] == "the server goes on with another history");
        assert_eq!((begun.len(), behind_gap.count()), (2, 1), "{info}");
    }
}

/// `WAITAOF` counts the receiver: what it confirms is synced.
#[test]
fn r21_waitaof_counts_the_receiver() {
    for name in ["redis-8", "valkey-9"] {
        let (server, _world, running) = received(name, "");
        let asked = server
            .cli(&[])
            .stdin("SET a 1\nWAITAOF 0 1 20000\n")
            .succeed();
        assert_eq!(
            asked.stdout.lines().next_back(),
            Some("1"),
            "{name}: {asked}"
        );
        stop(running);
    }
}

/// With `acknowledge = "repository"` what `WAIT` confirms survives the loss of the receiver's host.
fn r79_what_wait_confirms_is_in_the_repository(name: &'static str) {
    let server = Server::start(name, &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    configure(&world, &server, "receive.acknowledge = \"repository\"");
    world.backup();
    let running = receiver(&world, &server);
    // In no repository means not confirmed, however durable the journal is.
    let aside = world.sandbox.join("away");
    std::fs::rename(world.repository(), &aside).unwrap();
    let asked = server.cli(&[]).stdin("SET lost 1\nWAIT 1 3000\n").run();
    assert_eq!(asked.stdout.lines().next_back(), Some("0"), "{asked}");
    std::fs::rename(&aside, world.repository()).unwrap();
    confirm(&server, "SET a 1\n", 1);
    let mut random = Random::new(64);
    for round in 0..20 {
        let size = random.below(200_000);
        confirm(
            &server,
            &format!("SET key:{round} {}\n", "v".repeat(size)),
            1,
        );
    }
    let content = server.content();
    running.ended_by(Signal::KILL);
    std::fs::remove_dir_all(world.sandbox.join("journal")).unwrap();
    // The last bytes of the history ask for acknowledgement, and change nothing.
    let restored = world.restore("cache", &["--latest"]);
    let copy = Server::on(name, &restored, &[]);
    assert_eq!(copy.content(), content);
}

per_server!(r79_what_wait_confirms_is_in_the_repository);

#[test]
fn an_agent_keeps_a_receiver_running_and_takes_it_over() {
    let server = Server::start("valkey-8", &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    let state = world.sandbox.dir("state");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port.local_addr().unwrap().port();
    configure(
        &world,
        &server,
        &format!(
            "[agent]\nstate_dir = \"{}\"\nlisten = \"127.0.0.1:{port}\"\n[jobs.receiver]\nrun = \"redis receive cache\"\nschedule = \"always\"\n",
            state.display()
        ),
    );
    let online = || {
        server
            .ask(&["INFO", "replication"])
            .matches("state=online")
            .count()
    };
    let job = || {
        let status = world.pitr(&["agent", "status", "--json"]).run().json();
        status["jobs"][0].clone()
    };
    let receiver_of = |job: &serde_json::Value| job["running_since"].clone();
    let agent = world.pitr(&["agent"]).spawn();
    wait_until("the receiver is online", || online() == 1);
    confirm(&server, "SET before 1\n", 1);
    let since = receiver_of(&job());
    // A killed agent ends no receiver, and the next one knows it.
    drop(agent);
    confirm(&server, "SET alone 1\n", 1);
    let agent = world.pitr(&["agent"]).spawn();
    confirm(&server, "SET again 1\n", 1);
    assert_eq!(receiver_of(&job()), since);
    assert_eq!(online(), 1);
    world.backup();
    // A server that throws the receiver out has it again.
    server.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    wait_until("it is online again", || online() == 1);
    confirm(&server, "SET later 1\n", 1);
    let moment = Moment::of(&server);
    wait_received(&server);
    // A job that is gone from the configuration is ended, in order.
    let file = world.sandbox.join("pitr.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (without, _) = text.split_once("[jobs.receiver]").unwrap();
    std::fs::write(&file, without).unwrap();
    agent.signal(Signal::HUP);
    wait_until("the receiver has left", || online() == 0);
    agent.ended_by(Signal::TERM).success();
    let copy = world.restore("copy", &["--target-offset", &moment.target()]);
    let content = Server::on("valkey-8", &copy, &[]).content();
    assert_eq!(content, moment.content);
}

/// Keys that get their ends in several ways, and one that is over soon.
const LIFETIMES: &str = "SELECT 3\nSET a 1 EX 100\nSETEX b 100 1\nSET c 1\nEXPIRE c 100\nMULTI\nPSETEX d 100000 1\nEXEC\nSET e 1\nSET over 1 PX 1500\n";

/// Requires that these keys, which were given their ends more than three seconds ago, have not more left in a restored server.
fn assert_ends(restored: &Server) {
    let asked = "SELECT 3\nPTTL a\nPTTL b\nPTTL c\nPTTL d\nPTTL e\nPTTL over\n";
    let answers = restored.cli(&[]).stdin(asked.as_bytes()).succeed();
    let left: Vec<i64> = answers
        .stdout
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    let [a, b, c, d, e, over] = left[..] else {
        panic!("{answers}");
    };
    for left in [a, b, c, d] {
        assert!((50_000..97_500).contains(&left), "{answers}");
    }
    assert_eq!((e, over), (-1, -2), "{answers}");
}

/// Row R160: a server before 7 tells its replicas how long a key has, and not when it ends.
#[test]
fn r160_a_key_of_an_old_server_ends_when_it_would_have_ended() {
    let (server, world, running) = received("redis-6", "");
    world.backup();
    confirm(&server, LIFETIMES, 1);
    let moment = Moment::of(&server);
    // By then the last one is over, and the others have 97 seconds.
    std::thread::sleep(std::time::Duration::from_secs(3));
    stop(running);
    let copy = world.restore("copy", &["--target-offset", &moment.target()]);
    assert_ends(&Server::on("redis-6", &copy, &[]));
}

/// A replica passes on what its master sends: the base of a newer one does not tell of whom the log is.
#[test]
fn r195_a_key_ends_in_time_where_a_newer_replica_passes_the_log_on() {
    let delay = ["--repl-diskless-sync-delay", "0"];
    let master = Server::listening("redis-6", "--port", &delay);
    let replica = Server::start("redis-7", &delay);
    replica.ask(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    wait_until("the replica is there", || {
        let told = replica.ask(&["INFO", "replication"]);
        told.contains("master_link_status:up")
    });
    let world = World::new(&replica);
    configure(&world, &replica, "");
    let running = receiver(&world, &replica);
    world.backup();
    confirm(&master, LIFETIMES, 1);
    wait_received(&replica);
    std::thread::sleep(std::time::Duration::from_secs(3));
    stop(running);
    let copy = world.restore("copy", &["--latest"]);
    assert_ends(&Server::on("redis-7", &copy, &[]));
}

/// Row R161: a database is named by the options of COPY alone.
#[test]
fn r161_a_key_that_was_copied_into_a_high_database_is_there() {
    let more = ["--repl-diskless-sync-delay", "0", "--databases", "64"];
    let server = Server::start("redis-7", &more);
    let world = World::new(&server);
    configure(&world, &server, "");
    let running = receiver(&world, &server);
    confirm(&server, "SET k 1\n", 1);
    world.backup();
    confirm(&server, "COPY k there replace db 40\nDEL k\n", 1);
    stop(running);
    let copy = world.restore("copy", &["--latest"]);
    let restored = Server::on("redis-7", &copy, &[]);
    let asked = restored.cli(&[]).stdin(b"SELECT 40\nGET there\n").run();
    assert_eq!(asked.stdout.lines().nth(1), Some("1"), "{asked}");
}

/// Row R161: a database is named by MOVE alone.
#[test]
fn r161_a_key_that_was_moved_into_a_high_database_is_there() {
    let more = ["--repl-diskless-sync-delay", "0", "--databases", "64"];
    let server = Server::start("redis-7", &more);
    let world = World::new(&server);
    configure(&world, &server, "");
    let running = receiver(&world, &server);
    confirm(&server, "SET k 1\n", 1);
    world.backup();
    confirm(&server, "MOVE k 40\n", 1);
    stop(running);
    let copy = world.restore("copy", &["--latest"]);
    let restored = Server::on("redis-7", &copy, &[]);
    let asked = restored.cli(&[]).stdin(b"SELECT 40\nGET k\n").run();
    assert_eq!(asked.stdout.lines().nth(1), Some("1"), "{asked}");
}
