//! Clusters: a receiver for each shard, and one moment of all. Rows R64 to R72 of docs/faults.md.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use pitr::host::Host;
use pitr::pg::time::TimestampTz;
use pitr::repo::event::Writer as EventWriter;
use pitr::repo::scope::Scope;
use pitr::repo::slot_map::{self, SlotMap};
use pitr::store::file::FileStore;
use rustix::process::Signal;

use super::receive::{now, stop};
use super::server::{Server, program};
use super::world::World;
use super::writer::{self, Writer};
use crate::common::{Program, Running, list_of, wait_until};
use crate::per_server;

/// The nodes of a cluster.
struct Nodes {
    name: &'static str,
    all: Vec<Server>,
}

/// Keys and values.
type Content = BTreeMap<String, String>;

impl Nodes {
    /// So many masters; then so many nodes that follow the first ones.
    fn start(name: &'static str, masters: usize, replicas: usize) -> Nodes {
        let mut nodes = Nodes {
            name,
            all: Vec::new(),
        };
        for _ in 0..masters + replicas {
            nodes.add();
        }
        let places: Vec<String> = nodes.all.iter().map(Nodes::place).collect();
        let mut words = vec!["--cluster", "create"];
        words.extend(places.iter().take(masters).map(String::as_str));
        words.push("--cluster-yes");
        nodes.cli(&words).succeed();
        nodes.wait_ok(masters);
        for n in 0..replicas {
            nodes.join(masters + n);
            let id = nodes.all[n].ask(&["CLUSTER", "MYID"]);
            let replica = &nodes.all[masters + n];
            wait_until("the node is a replica", || {
                replica
                    .cli(&["CLUSTER", "REPLICATE", &id])
                    .run()
                    .stdout
                    .contains("OK")
            });
            wait_until("it follows", || replica.info("master_link_status") == "up");
        }
        nodes
    }

    fn add(&mut self) {
        let more = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "2000",
            "--repl-diskless-sync-delay",
            "0",
            // The end of the log is near.
            "--repl-ping-replica-period",
            "1",
        ];
        self.all.push(Server::listening(self.name, "--port", &more));
    }

    fn place(server: &Server) -> String {
        format!("127.0.0.1:{}", server.port())
    }

    fn cli(&self, words: &[&str]) -> Program {
        Program::new(program(self.name, "cli")).args(words)
    }

    /// Brings a node to the others.
    fn join(&self, n: usize) {
        let port = self.all[0].port().to_string();
        self.all[n].ask(&["CLUSTER", "MEET", "127.0.0.1", &port]);
        self.wait_ok(n + 1);
    }

    fn wait_ok(&self, count: usize) {
        let known = format!("cluster_known_nodes:{count}");
        for server in self.all.iter().take(count) {
            wait_until("the cluster is whole", || {
                let told = server.ask(&["CLUSTER", "INFO"]);
                told.contains("cluster_state:ok") && told.contains(&known)
            });
        }
    }

    /// A number whose slot a node owns, other ones for other `from`.
    fn tag(&self, n: usize, from: u64) -> u64 {
        let id = self.all[n].ask(&["CLUSTER", "MYID"]);
        let told = self.all[n].ask(&["CLUSTER", "NODES"]);
        let line = told
            .lines()
            .find(|line| line.starts_with(&id))
            .unwrap()
            .to_owned();
        let ranges = line.split(' ').skip(8).map(|word| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            (
                first.parse::<u64>().unwrap(),
                last.trim().parse::<u64>().unwrap(),
            )
        });
        let ranges: Vec<(u64, u64)> = ranges.collect();
        (from..)
            .find(|tag| {
                let slot = self.slot(*tag);
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&slot))
            })
            .unwrap()
    }

    fn slot(&self, tag: u64) -> u64 {
        let slot = self.all[0].ask(&["CLUSTER", "KEYSLOT", &tag.to_string()]);
        slot.parse().unwrap()
    }

    /// Sets keys all over the cluster.
    fn set(&self, keys: &Content) {
        let lines: String = keys
            .iter()
            .map(|(key, value)| format!("SET {key} {value}\n"))
            .collect();
        let port = self.all[0].port().to_string();
        let run = self
            .cli(&["-c", "-p", &port])
            .stdin(lines.into_bytes())
            .succeed();
        assert!(!run.stdout.contains("ERR"), "{run}");
    }

    /// Waits until a receiver of each node has all that was written.
    fn settle(&self, masters: &[usize]) {
        for n in masters {
            let server = &self.all[*n];
            wait_until("the receiver has all of it", || {
                let offset = server.info("master_repl_offset");
                let told = server.ask(&["INFO", "replication"]);
                let own = told.lines().find(|line| line.contains("port=0,"));
                own.is_some_and(|line| line.contains(&format!("offset={offset},")))
            });
        }
    }

    /// A world whose `[redis.cache]` is this cluster.
    fn world(&self, more: &str) -> World {
        let world = World::new(&self.all[0]);
        self.configure(&world, more);
        world
    }

    fn configure(&self, world: &World, more: &str) {
        let places: Vec<String> = self
            .all
            .iter()
            .map(|one| format!("\"{}\"", Nodes::place(one)))
            .collect();
        world.configure(&format!(
            "cluster = true\naddresses = [{}]\nstall_timeout = \"5s\"\nreceive.journal = \"{}\"\n{more}",
            places.join(", "),
            world.sandbox.join("journal").display()
        ));
    }

    /// Starts the receivers, and waits until so many nodes have one.
    fn receive(&self, world: &World, count: usize) -> Running {
        let running = world.redis(&["receive", "cache"]).spawn();
        wait_until("the receivers are online", || {
            let online = |server: &&Server| is_received(server);
            self.all.iter().filter(online).count() == count
        });
        running
    }
}

/// Waits until what is known of slots from then on is enough for an exact moment.
fn wait_watched(since: Instant) {
    let enough = Duration::from_secs(17);
    std::thread::sleep(enough.saturating_sub(since.elapsed()));
}

/// Gives all servers the time to say that nothing more comes.
fn wait_pings() {
    std::thread::sleep(Duration::from_millis(2500));
}

/// Whether a receiver is online: a replica that names no port.
fn is_received(server: &Server) -> bool {
    server
        .ask(&["INFO", "replication"])
        .contains("port=0,state=online")
}

fn some(prefix: &str, count: usize) -> Content {
    (0..count)
        .map(|n| {
            (
                format!("{prefix}:{n}"),
                writer::value(&format!("{prefix}{n}")),
            )
        })
        .collect()
}

/// All keys of the directories below one, each loaded by a server of its own.
fn restored(name: &'static str, to: &Path) -> Content {
    let mut all = Content::new();
    for shard in std::fs::read_dir(to).unwrap() {
        let server = Server::on(name, &shard.unwrap().path(), &[]);
        let keys = server.ask(&["KEYS", "*"]);
        let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
        let lines: String = keys.iter().map(|key| format!("GET {key}\n")).collect();
        let values = server.cli(&[]).stdin(lines.into_bytes()).succeed();
        let values: Vec<&str> = values.stdout.lines().collect();
        assert_eq!(keys.len(), values.len());
        for (key, value) in keys.into_iter().zip(values) {
            let before = all.insert(key.to_owned(), value.to_owned());
            assert_eq!(before, None, "{key} is in two shards");
        }
    }
    all
}

fn without_load(content: &Content) -> Content {
    let rest = content.iter().filter(|(key, _)| !key.starts_with("w:"));
    rest.map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Under load, all shards come back as they were at one moment.
fn r64_all_shards_come_back_to_one_moment(name: &'static str) {
    let nodes = Nodes::start(name, 3, 0);
    let world = nodes.world("");
    let mut record = some("first", 300);
    nodes.set(&record);
    let running = nodes.receive(&world, 3);
    let since = Instant::now();
    let taken = world.backup();
    let shards = taken["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 3, "{taken}");
    let keys = |shard: &serde_json::Value| shard["redis"]["keyspace"][0]["keys"].as_u64().unwrap();
    assert_eq!(shards.iter().map(keys).sum::<u64>(), 300, "{taken}");
    let tags: Vec<u64> = (0..3).map(|n| nodes.tag(n, 0)).collect();
    let writers: Vec<Writer> = (0..3)
        .map(|n| Writer::start(&nodes.all[n], 1, tags[n]))
        .collect();
    let busy = |more: u64| {
        let counts: Vec<u64> = writers.iter().map(Writer::count).collect();
        wait_until("writes are confirmed", || {
            writers
                .iter()
                .zip(&counts)
                .all(|(writer, before)| writer.count() > before + more)
        });
    };
    busy(20);
    record.extend(some("second", 300));
    record.extend(
        some("first", 20)
            .into_keys()
            .map(|key| (key, "changed".to_owned())),
    );
    nodes.set(&record);
    wait_watched(since);
    busy(5);
    let before: Vec<u64> = writers.iter().map(Writer::count).collect();
    // A mark of time stands for a millisecond.
    std::thread::sleep(Duration::from_millis(2));
    let time = now();
    std::thread::sleep(Duration::from_millis(100));
    let after: Vec<u64> = writers.iter().map(Writer::count).collect();
    nodes.set(&some("third", 50));
    nodes.set(
        &some("first", 300)
            .into_keys()
            .map(|key| (key, "later".to_owned()))
            .collect(),
    );
    busy(20);
    let confirmed: Vec<Vec<String>> = writers
        .into_iter()
        .map(|writer| writer.stop().into_iter().map(|(_, key)| key).collect())
        .collect();
    nodes.settle(&[0, 1, 2]);
    let end: Content = nodes.all.iter().flat_map(live).collect();
    wait_pings();
    stop(running);
    let planned = world.json(&["plan", "cache", "--target-time", &time]);
    assert_eq!(planned["exact"], true, "{planned}");
    assert_eq!(planned["shards"].as_array().unwrap().len(), 3, "{planned}");
    let to = world.sandbox.join("copy");
    world.restoring(&to, &["--target-time", &time]).succeed();
    let found = restored(name, &to);
    assert_eq!(without_load(&found), record);
    for (n, keys) in confirmed.iter().enumerate() {
        let (before, after) = (before[n] as usize, after[n] as usize);
        for key in &keys[..before] {
            assert_eq!(
                found.get(key),
                Some(&writer::value(key)),
                "{key} was confirmed before"
            );
        }
        // The one that was under way behind the moment may be there.
        for key in &keys[after + 1..] {
            assert!(!found.contains_key(key), "{key} was written later");
        }
    }
    let to = world.sandbox.join("last");
    let run = world.restoring(&to, &["--latest", "--json"]).run();
    let json = run.success().json();
    assert_eq!(restored(name, &to), end);
    one_cluster_again(name, &to, &json, &end);
    // Without the configuration, and by the name of one shard.
    let bare = |words: &[&str]| {
        let url = format!("file://{}", world.repository().display());
        crate::common::pitr()
            .args(["--repository", &url, "redis"])
            .args(words)
            .succeed()
    };
    let json = bare(&["plan", "cache", "--target-time", &time, "--json"]).json();
    for (one, other) in list_of(&json["shards"])
        .iter()
        .zip(planned["shards"].as_array().unwrap())
    {
        assert_eq!(
            (&one["name"], &one["offset"]),
            (&other["name"], &other["offset"])
        );
    }
    assert_eq!(json["exact"], true, "{json}");
    let shard = planned["shards"][0]["name"].as_str().unwrap().to_owned();
    bare(&["ls", "cache"]).expect_stdout(&format!("shard {shard}"));
    bare(&["info", "cache"]).expect_stdout(&format!("shard {shard}"));
    times_of_all(&world);
    bare(&["plan", &shard]).expect_stdout("state: offset");
    world.pitr(&["verify"]).succeed();
    let info = world.pitr(&["info"]).run();
    info.expect_stdout(&format!("aux/redis/{shard} in one: 1 backup"));
}

/// `pitr redis info` begins with the times that all shards have. Plans lead to the first and the last of them, and to none outside.
fn times_of_all(world: &World) {
    let shown = world.redis(&["info", "cache"]).succeed();
    let info = world.json(&["info", "cache"]);
    let windows = info["common_windows"].as_array().unwrap();
    assert_eq!(windows.len(), 1, "{info}");
    let time = |name: &str| -> TimestampTz { windows[0][name].as_str().unwrap().parse().unwrap() };
    let (from, to) = (time("from_time"), time("to_time"));
    let first = shown.stdout.lines().next().unwrap();
    assert_eq!(first, format!("all shards: {from} to {to}"), "{shown}");
    let moved = |time: TimestampTz, micros: i64| {
        TimestampTz::from_unix_micros(time.unix_micros().unwrap() + micros).unwrap()
    };
    for (at, statuses) in [
        (moved(from, -1), vec![5]),
        // Slots that nobody had looked at yet, or not since, are named.
        (from, vec![0, 6]),
        (to, vec![0, 6]),
        (moved(to, 600_000_000), vec![5]),
    ] {
        let plan = ["plan", "cache", "--target-time", &at.to_string()];
        let plan = world.redis(&plan).run();
        assert!(statuses.contains(&plan.code()), "{at}: {plan}\n{info}");
    }
}

/// All keys of a live node.
fn live(server: &Server) -> Content {
    let keys = server.ask(&["KEYS", "*"]);
    let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
    let lines: String = keys.iter().map(|key| format!("GET {key}\n")).collect();
    let values = server.cli(&[]).stdin(lines.into_bytes()).succeed();
    let values: Vec<String> = values.stdout.lines().map(str::to_owned).collect();
    keys.into_iter().map(str::to_owned).zip(values).collect()
}

/// The directories become a cluster, as docs/redis.md says: its nodes have their slots before they have data.
fn one_cluster_again(name: &'static str, to: &Path, json: &serde_json::Value, end: &Content) {
    let node = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000"];
    let empty = [&node[..], &["--appendonly", "no"]].concat();
    let mut all = Vec::new();
    for shard in json["shards"].as_array().unwrap() {
        let directory = to.join(shard["name"].as_str().unwrap());
        let server = Server::on_port(name, &directory, &empty);
        let mut words = vec!["CLUSTER".to_owned(), "ADDSLOTS".to_owned()];
        for range in shard["slots"].as_str().unwrap().split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let slots = first.parse::<u16>().unwrap()..=last.parse().unwrap();
            words.extend(slots.map(|slot| slot.to_string()));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(server.ask(&words), "OK");
        all.push(server);
    }
    let mut nodes = Nodes { name, all };
    for other in &nodes.all[1..] {
        let port = other.port().to_string();
        nodes.all[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port]);
    }
    let count = nodes.all.len();
    nodes.wait_ok(count);
    for server in &mut nodes.all {
        server.cli(&["SHUTDOWN", "NOSAVE"]).run();
        server.kill();
        server.leave_out(&["--appendonly", "no"]);
        server.begin();
    }
    nodes.wait_ok(count);
    let found: Content = nodes.all.iter().flat_map(live).collect();
    assert_eq!(&found, end);
    let told: Vec<String> = nodes
        .all
        .iter()
        .map(|one| one.ask(&["CLUSTER", "NODES"]))
        .collect();
    assert!(told.iter().all(|one| !one.contains("-<-")), "{told:?}");
    for (key, value) in end.iter().take(20) {
        let port = nodes.all[0].port().to_string();
        let run = nodes.cli(&["-c", "-p", &port, "GET", key]).succeed();
        assert_eq!(run.stdout.trim_end(), value);
    }
}

per_server!(r64_all_shards_come_back_to_one_moment, redis6 redis7 redis8 valkey9);

/// The master of a shard dies under load, and its successor hands over in order: nothing that was confirmed is lost.
fn r65_a_failover_within_a_shard_is_followed(name: &'static str) {
    let mut nodes = Nodes::start(name, 3, 1);
    let world = nodes.world("");
    nodes.set(&some("first", 100));
    let running = nodes.receive(&world, 3);
    let taken = world.backup();
    let id = nodes.all[0].ask(&["CLUSTER", "MYID"]);
    let shard = format!("cache.{}", &id[..12]);
    let names: Vec<&str> = list_of(&taken["shards"])
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&shard.as_str()), "{names:?}");
    // The replica and the receiver confirm.
    let writer = Writer::start(&nodes.all[0], 2, nodes.tag(0, 0));
    wait_until("writes are confirmed", || writer.count() > 50);
    nodes.all[0].kill();
    let replica = &nodes.all[3];
    wait_until("the replica takes over", || {
        replica.info("role") == "master"
            && replica
                .ask(&["CLUSTER", "INFO"])
                .contains("cluster_state:ok")
    });
    writer.go_to(replica);
    wait_until("the receiver follows", || is_received(replica));
    // The former master comes back, follows, and takes over in order.
    nodes.all[0].begin();
    let before = writer.count();
    wait_until("writes are confirmed by both", || {
        writer.count() > before + 50
    });
    let former = &nodes.all[0];
    wait_until("the former master takes over", || {
        former.cli(&["CLUSTER", "FAILOVER"]).run();
        std::thread::sleep(Duration::from_millis(500));
        former.info("role") == "master"
    });
    writer.go_to(former);
    let before = writer.count();
    wait_until("writes are confirmed again", || {
        writer.count() > before + 50
    });
    let confirmed: Vec<String> = writer.stop().into_iter().map(|(_, key)| key).collect();
    nodes.settle(&[0, 1, 2]);
    wait_watched(Instant::now());
    let ended = stop(running);
    let place = Nodes::place(&nodes.all[3]);
    assert!(
        ended
            .stderr
            .contains(&format!("shard {shard}: {place} owns its slots")),
        "{ended}"
    );
    let info = world.json(&["info", "cache"]);
    let told = info["shards"].as_array().unwrap();
    assert_eq!(told.len(), 3, "{info}");
    let own = told
        .iter()
        .find(|one| one["name"] == shard.as_str())
        .unwrap();
    let histories = own["histories"].as_array().unwrap();
    assert_eq!(histories.len(), 3, "{own}");
    let gaps = histories
        .iter()
        .flat_map(|one| one["beginnings"].as_array().unwrap());
    assert_eq!(
        gaps.filter(|one| !one["reason"].is_null()).count(),
        0,
        "{own}"
    );
    let to = world.sandbox.join("copy");
    let run = world.restoring(&to, &["--latest", "--json"]).run();
    let json = run.success().json();
    assert_eq!(json["exact"], true, "{json}");
    let found = restored(name, &to);
    for key in &confirmed {
        assert_eq!(
            found.get(key),
            Some(&writer::value(key)),
            "{key} of {}",
            confirmed.len()
        );
    }
    assert_eq!(without_load(&found), some("first", 100));
}

per_server!(r65_a_failover_within_a_shard_is_followed, redis6 redis7);

/// Moves slots from one node to another.
fn reshard(nodes: &Nodes, (from, to): (usize, usize), count: &str) -> Running {
    let id = |n: usize| nodes.all[n].ask(&["CLUSTER", "MYID"]);
    let (from, to, place) = (id(from), id(to), Nodes::place(&nodes.all[0]));
    let words = [
        "--cluster",
        "reshard",
        &place,
        "--cluster-from",
        &from,
        "--cluster-to",
        &to,
    ];
    nodes
        .cli(&words)
        .args(["--cluster-slots", count, "--cluster-yes"])
        .spawn()
}

/// Moves slots 0 to 1999 as the server does it by itself, so slowly that it is seen.
fn migrate(nodes: &Nodes, (from, to): (usize, usize)) {
    let id = nodes.all[to].ask(&["CLUSTER", "MYID"]);
    let source = &nodes.all[from];
    source.ask(&["CONFIG", "SET", "rdb-key-save-delay", "50000"]);
    let words = [
        "CLUSTER",
        "MIGRATESLOTS",
        "SLOTSRANGE",
        "0",
        "1999",
        "NODE",
        &id,
    ];
    assert_eq!(source.ask(&words), "OK");
}

/// Slots move under load: `plan` names them while they move, and no moment long before or behind is less exact. A shard that appears gets a receiver.
fn r66_slots_that_moved_are_named(name: &'static str) {
    // Slots are moved by the server itself there.
    let is_atomic = name == "valkey-9";
    let mut nodes = Nodes::start(name, 3, 0);
    let world = nodes.world("");
    nodes.set(&some("first", 600));
    let running = nodes.receive(&world, 3);
    let since = Instant::now();
    world.backup();
    let shard = |nodes: &Nodes, n: usize| {
        format!("cache.{}", &nodes.all[n].ask(&["CLUSTER", "MYID"])[..12])
    };
    let names = [shard(&nodes, 0), shard(&nodes, 1)];
    let writer = Writer::start(&nodes.all[1], 1, nodes.tag(1, 0));
    wait_until("writes are confirmed", || writer.count() > 20);
    wait_watched(since);
    let quiet = now();
    std::thread::sleep(Duration::from_millis(2500));
    let owns = |n: usize, slots: &str| {
        let told = nodes.all[n].ask(&["CLUSTER", "NODES"]);
        let own = told.lines().find(|line| line.contains("myself")).unwrap();
        own.split(' ').skip(8).any(|word| word == slots)
    };
    let moving = if is_atomic {
        migrate(&nodes, (0, 1));
        std::thread::sleep(Duration::from_millis(2000));
        let moving = now();
        assert!(!owns(1, "0-1999"), "it was too fast to be seen");
        wait_until("the slots have moved", || owns(1, "0-1999"));
        nodes.all[0].ask(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
        moving
    } else {
        let moves = reshard(&nodes, (0, 1), "400");
        wait_until("slots move", || !owns(0, "0-5460"));
        let moving = now();
        moves.wait().success();
        moving
    };
    let behind = now();
    wait_watched(Instant::now());
    let later = now();
    std::thread::sleep(Duration::from_secs(2));
    nodes.add();
    nodes.join(3);
    reshard(&nodes, (2, 3), "50").wait().success();
    wait_until("the new shard has a receiver", || {
        is_received(&nodes.all[3])
    });
    let since = Instant::now();
    nodes.set(&some("second", 100));
    let before = writer.count();
    wait_until("writes are confirmed", || writer.count() > before + 20);
    let planned = |time: &str| {
        let run = world
            .redis(&["plan", "cache", "--target-time", time, "--json"])
            .run();
        (run.code(), run.json())
    };
    let confirmed = writer.stop();
    nodes.settle(&[0, 1, 2, 3]);
    let end: Content = nodes.all.iter().flat_map(live).collect();
    assert!(end.len() >= 700 + confirmed.len(), "{}", end.len());
    wait_watched(since);
    // A shard that came has no backup yet, and no moment without it can be had.
    wait_until("the last moment has the new shard", || {
        let run = world.redis(&["plan", "cache"]).run();
        run.code() == 5
            && run
                .stderr
                .contains("choose a moment behind it: pitr redis backup cache")
    });
    world.backup();
    wait_pings();
    let ended = stop(running);
    let added = format!("shard {}: slots", shard(&nodes, 3));
    assert!(ended.stderr.contains(&added), "{ended}");
    for time in [&quiet, &later] {
        let (code, json) = planned(time);
        assert_eq!((code, &json["exact"]), (0, &true.into()), "{json}");
        assert_eq!(json["shards"].as_array().unwrap().len(), 3, "{json}");
    }
    for time in [&moving, &behind] {
        let (code, json) = planned(time);
        assert_eq!((code, &json["exact"]), (6, &false.into()), "{json}");
        let moved = json["moved"].as_array().unwrap();
        let is_both = |one: &&serde_json::Value| {
            names
                .iter()
                .all(|name| one["shards"].to_string().contains(name))
        };
        assert!(moved.iter().any(|one| is_both(&one)), "{json}");
        let shown = world
            .redis(&["plan", "cache", "--target-time", time])
            .exits(6);
        shown.expect_stderr("a cut between two shards has a key twice, or not at all");
    }
    let (_, json) = planned(&behind);
    let last = if is_atomic { "1999" } else { "399" };
    let slots = json["moved"][0]["slots"].as_str().unwrap();
    assert!(slots.ends_with(last), "{json}");
    let latest = world.redis(&["plan", "cache", "--json"]).succeed().json();
    assert_eq!(latest["exact"], true, "{latest}");
    assert_eq!(latest["shards"].as_array().unwrap().len(), 4, "{latest}");
    let to = world.sandbox.join("copy");
    world.restoring(&to, &["--latest"]).succeed();
    assert_eq!(restored(name, &to), end);
    let to = world.sandbox.join("quiet");
    world.restoring(&to, &["--target-time", &quiet]).succeed();
    assert_eq!(without_load(&restored(name, &to)), some("first", 600));
    // A shard is added to the copies in another repository by a sync, with all that is known of its slots.
    let other = world.sandbox.join("two");
    let more = format!("[repositories.two]\nurl = \"file://{}\"\n", other.display());
    crate::common::append(world.sandbox.join("pitr.toml"), &more);
    world
        .pitr(&["init", "--quiet", "--repository", "two"])
        .succeed();
    world
        .pitr(&["repo", "sync", "--from", "one", "--to", "two"])
        .succeed();
    let url = format!("file://{}", other.display());
    let run = crate::common::pitr()
        .args(["--repository", &url, "redis", "plan", "cache", "--json"])
        .args(["--target-time", &later])
        .run();
    assert_eq!(run.success().json()["exact"], true);
}

per_server!(r66_slots_that_moved_are_named, redis7 redis8 valkey8 valkey9);

/// A node that belongs to no cluster any more, and is asked first, is not believed; nor is one of another cluster.
#[test]
fn r68_a_node_that_left_is_passed_over() {
    let mut nodes = Nodes::start("redis-7", 3, 0);
    nodes.add();
    nodes.join(3);
    let world = nodes.world("");
    let taken = world.backup();
    assert_eq!(taken["shards"].as_array().unwrap().len(), 3, "{taken}");
    let left = &nodes.all[3];
    let id = left.ask(&["CLUSTER", "MYID"]);
    for server in &nodes.all[..3] {
        server.ask(&["CLUSTER", "FORGET", &id]);
    }
    left.ask(&["CLUSTER", "RESET", "SOFT"]);
    let configure = || {
        world.configure(&format!(
            "cluster = true\naddresses = [\"{}\", \"{}\"]\nreceive.journal = \"{}\"\n",
            Nodes::place(left),
            Nodes::place(&nodes.all[0]),
            world.sandbox.join("journal").display()
        ));
    };
    configure();
    let taken = world.backup();
    assert_eq!(taken["shards"].as_array().unwrap().len(), 3, "{taken}");
    let slots: Vec<String> = (0..16_384).map(|slot| slot.to_string()).collect();
    let words: Vec<&str> = ["CLUSTER", "ADDSLOTS"]
        .into_iter()
        .chain(slots.iter().map(String::as_str))
        .collect();
    left.ask(&words);
    wait_until("it is a cluster of its own", || {
        left.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
    });
    let running = world.redis(&["receive", "cache"]).spawn();
    wait_until("the receivers are online", || {
        nodes.all[..3].iter().all(is_received)
    });
    assert!(!is_received(left));
    let found = world.backup();
    assert_eq!(found["shards"].as_array().unwrap().len(), 3, "{found}");
    // A receiver that stood still knows nothing of that time: what came behind it may have been written before.
    wait_pings();
    running.signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(10));
    let time = now();
    std::thread::sleep(Duration::from_secs(10));
    running.signal(Signal::CONT);
    wait_pings();
    stop(running);
    let plan = ["plan", "cache", "--target-time", &time];
    let run = world.redis(&plan).arg("--json").exits(6);
    let doubts = run.json()["doubts"].clone();
    for why in ["silent", "unwatched"] {
        let own = |one: &&serde_json::Value| one["why"] == why;
        let count = doubts.as_array().unwrap().iter().filter(own).count();
        assert!(count >= 3, "{why}: {doubts}");
    }
    let run = world.redis(&plan).exits(6);
    run.expect_stderr("nothing came from its server")
        .expect_stderr("nobody looked at its slots");
}

/// The names of the shards that `plan` needs at the last moment.
fn planned_names(world: &World) -> Vec<String> {
    let run = world.redis(&["plan", "cache", "--json"]).run();
    assert!(matches!(run.code(), 0 | 6), "{run}");
    let json = run.json();
    let shards = json["shards"].as_array().unwrap().iter();
    shards
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}

/// A shard loses its slots while nobody looks: the next receiver records that, and nothing waits for the shard any more.
#[test]
fn r69_a_shard_that_went_unseen_ends() {
    let nodes = Nodes::start("redis-7", 3, 0);
    let world = nodes.world("");
    nodes.set(&some("first", 60));
    let running = nodes.receive(&world, 3);
    world.backup();
    wait_pings();
    stop(running);
    let gone = format!("cache.{}", &nodes.all[2].ask(&["CLUSTER", "MYID"])[..12]);
    assert!(planned_names(&world).contains(&gone));
    reshard(&nodes, (2, 0), "5461").wait().success();
    wait_until("it has no slots", || {
        let told = nodes.all[2].ask(&["CLUSTER", "NODES"]);
        let own = told.lines().find(|line| line.contains("myself")).unwrap();
        own.split(' ').nth(8).is_none()
    });
    let running = nodes.receive(&world, 2);
    world.backup();
    wait_watched(Instant::now());
    nodes.set(&some("second", 60));
    nodes.settle(&[0, 1]);
    wait_pings();
    stop(running);
    let names = planned_names(&world);
    assert_eq!(
        (names.len(), names.contains(&gone)),
        (2, false),
        "{names:?}"
    );
    let to = world.sandbox.join("copy");
    let json = world
        .restoring(&to, &["--latest", "--json"])
        .succeed()
        .json();
    assert_eq!(json["exact"], true, "{json}");
    // The former owner may follow another one by now.
    let end: Content = nodes.all[..2].iter().flat_map(live).collect();
    assert_eq!(restored("redis-7", &to), end);
    assert_eq!(end.len(), 120);
}

/// A replica is reset, and comes back as an owner of slots while nobody looks: its former master keeps the name and the log, and it is a shard of its own.
#[test]
fn r71_a_replica_that_was_reset_is_a_shard_of_its_own() {
    let nodes = Nodes::start("redis-7", 3, 1);
    let world = nodes.world("");
    nodes.set(&some("first", 60));
    let running = nodes.receive(&world, 3);
    wait_until("the replica is known", || {
        let known = std::fs::read_to_string(world.sandbox.join("journal/cluster-cache.json"));
        let id = nodes.all[3].ask(&["CLUSTER", "MYID"]);
        known.is_ok_and(|known| known.contains(&id))
    });
    world.backup();
    wait_pings();
    stop(running);
    let own = format!("cache.{}", &nodes.all[0].ask(&["CLUSTER", "MYID"])[..12]);
    assert_eq!(nodes.all[3].ask(&["CLUSTER", "RESET", "SOFT"]), "OK");
    let replid = |n: usize, field: &str| nodes.all[n].info(field);
    assert_eq!(replid(3, "master_replid2"), replid(0, "master_replid"));
    nodes.join(3);
    reshard(&nodes, (0, 3), "50").wait().success();
    let running = nodes.receive(&world, 4);
    nodes.set(&some("second", 60));
    world.backup();
    wait_watched(Instant::now());
    nodes.settle(&[0, 1, 2, 3]);
    wait_pings();
    stop(running);
    let info = world.json(&["info", "cache"]);
    let shards = info["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 4, "{info}");
    let own = shards.iter().find(|one| one["name"] == own.as_str());
    let histories = own.unwrap()["histories"].as_array().unwrap();
    assert_eq!(histories.len(), 1, "{info}");
    let to = world.sandbox.join("copy");
    let run = world.restoring(&to, &["--latest", "--json"]).run();
    let json = run.success().json();
    assert_eq!(json["exact"], true, "{json}");
    let end: Content = nodes.all.iter().flat_map(live).collect();
    assert_eq!(restored("redis-7", &to), end);
    assert_eq!(end.len(), 120);
}

/// A receiver starts by the names beside its journals while no repository answers; a shard that it does not know gets none until they all do.
#[test]
fn r70_names_are_known_without_a_repository() {
    let mut nodes = Nodes::start("redis-7", 3, 0);
    nodes.add();
    nodes.join(3);
    let world = nodes.world("");
    let aside = world.sandbox.join("aside");
    // Without any name nothing is received.
    std::fs::rename(world.repository(), &aside).unwrap();
    let running = world.redis(&["receive", "cache"]).spawn();
    wait_until("it says why", || {
        running
            .stderr()
            .contains("may know it by a name, and cannot be read")
    });
    assert!(nodes.all.iter().all(|one| !is_received(one)));
    std::fs::rename(&aside, world.repository()).unwrap();
    wait_until("the receivers are online", || {
        nodes.all[..3].iter().all(is_received)
    });
    world.backup();
    wait_pings();
    stop(running);
    let before = planned_names(&world);
    std::fs::rename(world.repository(), &aside).unwrap();
    let running = nodes.receive(&world, 3);
    reshard(&nodes, (2, 3), "50").wait().success();
    wait_until("the receiver names the new shard", || {
        running
            .stderr()
            .contains("may know it by a name, and cannot be read")
    });
    nodes.set(&some("first", 60));
    assert!(!is_received(&nodes.all[3]));
    std::fs::rename(&aside, world.repository()).unwrap();
    wait_until("the new shard has a receiver", || {
        is_received(&nodes.all[3])
    });
    world.backup();
    nodes.settle(&[0, 1, 2, 3]);
    wait_pings();
    stop(running);
    let after = planned_names(&world);
    assert_eq!(after.len(), 4, "{after:?}");
    assert!(
        before.iter().all(|name| after.contains(name)),
        "{before:?} {after:?}"
    );
}

/// Each request that is not covered is refused by name, and leaves everything as it was.
#[test]
fn r67_what_a_cluster_cannot_do_is_refused() {
    let nodes = Nodes::start("redis-7", 3, 0);
    let world = nodes.world("");
    world.backup();
    let to = world.sandbox.join("copy").display().to_string();
    for (words, status, said) in [
        (
            &[
                "restore",
                "cache",
                "--to",
                &to,
                "--backup",
                "20261120T064049Z-full",
            ][..],
            2,
            "works with one shard alone",
        ),
        (
            &["restore", "cache", "--into", "cache", "--confirm"],
            2,
            "works with one shard alone",
        ),
        (
            &["restore", "cache", "--to", &to, "--as-replica"],
            2,
            "works with one shard alone",
        ),
        (
            &[
                "plan",
                "cache",
                "--target-offset",
                &format!("{}:5", "a".repeat(40)),
            ],
            2,
            "that of one shard",
        ),
        (
            &["plan", "cache", "--backup", "20261120T064049Z-full"],
            2,
            "belongs to one shard",
        ),
        (
            &["plan", "cache", "--target-time", "2020-01-01T00:00:00Z"],
            5,
            "was known at the target",
        ),
    ] {
        let run = world.redis(words).run();
        assert_eq!(
            (run.code(), run.stderr.contains(said)),
            (status, true),
            "{words:?}: {run}"
        );
    }
    assert!(!Path::new(&to).exists());
    let shard = format!("cache.{}", &nodes.all[0].ask(&["CLUSTER", "MYID"])[..12]);
    world
        .redis(&["restore", &shard, "--into", "cache", "--confirm"])
        .exits(8)
        .expect_stderr("is a cluster");
    world
        .redis(&["backup", &shard])
        .exits(3)
        .expect_stderr("It is a shard of [redis.cache]");
    // Each shard's newest backup is no moment, and says so.
    let run = world.redis(&["restore", "cache", "--to", &to]).exits(6);
    run.expect_stderr("that is not one moment");
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 3);
    // A set cannot have it.
    let config = world.sandbox.join("pitr.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        format!("{text}[sets.shop]\nmembers = [\"redis:cache\"]\n"),
    )
    .unwrap();
    world
        .pitr(&["mark", "shop"])
        .exits(3)
        .expect_stderr("is a cluster");
    std::fs::write(&config, &text).unwrap();
    // Other nodes under the same name.
    let other = Nodes::start("redis-7", 3, 0);
    other.configure(&world, "");
    for words in [&["backup", "cache"][..], &["receive", "cache"]] {
        world
            .redis(words)
            .exits(8)
            .expect_stderr("it is a node of another cluster");
    }
    world.redis(&["backup", "cache", "--confirm"]).succeed();
    // The shards of the former one are gone.
    let to = world.sandbox.join("other");
    let run = world.redis(&["restore", "cache", "--to"]).arg(&to).run();
    run.expect_code(6);
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 3);
    // Another identity is another source, until the operator says so.
    other.configure(&world, "identity = \"shop\"");
    world
        .redis(&["backup", "cache"])
        .exits(8)
        .expect_stderr("is written by source");
    world.redis(&["backup", "cache", "--confirm"]).succeed();
    world.redis(&["backup", "cache"]).succeed();
    other.configure(&world, "");
    world.redis(&["backup", "cache", "--confirm"]).succeed();
    // A server that is no node, and a user without the right.
    let alone = Server::listening("redis-7", "--port", &[]);
    world.configure(&format!(
        "cluster = true\naddress = \"{}\"",
        Nodes::place(&alone)
    ));
    world
        .redis(&["backup", "cache"])
        .exits(3)
        .expect_stderr("no node of a cluster");
    let password = world.sandbox.file("pass", "Gr3enTea\n");
    std::fs::set_permissions(
        &password,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    for server in &other.all {
        server.ask(&[
            "ACL",
            "SETUSER",
            "pitr",
            "on",
            ">Gr3enTea",
            "-@all",
            "+psync",
            "+replconf",
            "+ping",
            "+info",
        ]);
    }
    let account = format!(
        "user = \"pitr\"\npassword_file = \"{}\"",
        password.display()
    );
    other.configure(&world, &account);
    world
        .redis(&["backup", "cache"])
        .exits(1)
        .expect_stderr("+cluster|nodes");
    for server in &other.all {
        server.ask(&["ACL", "SETUSER", "pitr", "+cluster|nodes"]);
    }
    world.redis(&["backup", "cache"]).succeed();
    // A node that is gone is passed over.
    let (gone, _lock) = crate::common::free_port();
    world.configure(&format!(
        "cluster = true\naddresses = [\"127.0.0.1:{gone}\", \"{}\"]\n{account}",
        Nodes::place(&other.all[1])
    ));
    world.redis(&["backup", "cache"]).succeed();
    world.configure(&format!(
        "cluster = true\naddresses = [\"127.0.0.1:{gone}\"]"
    ));
    world
        .redis(&["backup", "cache"])
        .exits(9)
        .expect_stderr("no node tells the shards of cluster");
}

/// Once a day is over, `expire` leaves the last record of each run of looks.
#[test]
fn r72_expire_keeps_the_last_record_of_each_run() {
    let server = Server::start("redis-7", &[]);
    let world = World::new(&server);
    world.backup();
    let store = FileStore::open(&world.repository(), 1).unwrap();
    let scope = Scope::aux("redis", "cache").unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let now = i64::try_from(now).unwrap();
    let day = 86_400_000_000;
    let noon = |days: i64| now - now % day + day / 2 - days * day;
    let time = |micros: i64| TimestampTz::from_unix_micros(micros).unwrap();
    for (days, offset) in [(1, 0), (3, 10), (3, 20)] {
        let since = time(noon(days) + offset * 60_000_000);
        for minute in 0..4 {
            let at = time(noon(days) + (offset + minute) * 60_000_000);
            let map = SlotMap {
                cluster: "0a1b2c3d".to_owned(),
                since,
                node: "a".repeat(40),
                nodes: vec!["a".repeat(40)],
                owned: vec![(0, 16_383)],
                atomic_seen: true,
                ..SlotMap::default()
            };
            let host = Host::still(at, u64::try_from(offset * 100 + minute).unwrap());
            let event = slot_map::event(&EventWriter::of(&host), (at, map));
            slot_map::write(&store, &scope, &event).unwrap();
        }
    }
    let records = || {
        let all = slot_map::keys(&store, &scope).unwrap();
        all.iter()
            .map(|key| key.as_str().rsplit('/').next().unwrap()[9..13].to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(records().len(), 12);
    let expire = |how: &str| {
        let run = world.pitr(&["expire", "--keep", "1", how]).run();
        run.success()
    };
    expire("--dry-run").expect_stdout("slots of a shard that later records repeat: 6 records");
    assert_eq!(records().len(), 12);
    expire("--confirm");
    assert_eq!(records(), ["1213", "1223", "1200", "1201", "1202", "1203"]);
    let again = expire("--dry-run");
    assert!(!again.stdout.contains("slots of a shard"), "{again}");
    world.pitr(&["verify"]).succeed();
}

/// The section was given another identity: each shard's receiver is refused. A second repository is away all the while.
#[test]
fn r166_a_receiver_whose_shards_are_all_refused_ends() {
    let nodes = Nodes::start("redis-7", 3, 0);
    let second = |world: &World| {
        format!(
            "\n[repositories.two]\nurl = \"file://{}\"",
            world.sandbox.join("two").display()
        )
    };
    let world = nodes.world("");
    nodes.configure(&world, &second(&world));
    world.pitr(&["init", "--quiet"]).succeed();
    nodes.set(&some("first", 100));
    let running = nodes.receive(&world, 3);
    world.backup();
    nodes.settle(&[0, 1, 2]);
    stop(running);
    nodes.configure(&world, &format!("identity = \"shop\"{}", second(&world)));
    for is_away in [false, true] {
        if is_away {
            std::fs::rename(world.sandbox.join("two"), world.sandbox.join("away")).unwrap();
        }
        let run = world
            .redis(&["receive", "cache"])
            .timeout(Duration::from_secs(90))
            .run();
        assert!(!run.is_success(), "{run}");
        assert_eq!(
            run.stderr
                .matches("the shard is not received until")
                .count(),
            3,
            "{run}"
        );
    }
    // Nothing is lost: under its own identity it goes on.
    std::fs::rename(world.sandbox.join("away"), world.sandbox.join("two")).unwrap();
    nodes.configure(&world, &second(&world));
    stop(nodes.receive(&world, 3));
}

/// A shard's server is dead: the last moment of all is the end of its log, and the message says so.
#[test]
fn r171_a_dead_shard_that_holds_the_last_moment_back_is_named() {
    let mut nodes = Nodes::start("redis-7", 3, 0);
    let world = nodes.world("");
    nodes.set(&some("first", 100));
    let running = nodes.receive(&world, 3);
    let taken = world.backup();
    let shards = taken["shards"].as_array().unwrap().clone();
    // The slots of the dead shard are recorded behind all backups: no later moment is sure.
    wait_pings();
    stop(running);
    let running = nodes.receive(&world, 3);
    nodes.settle(&[0, 1, 2]);
    let dead = nodes.all[2].info("run_id");
    let dead = shards
        .iter()
        .find(|shard| shard["redis"]["run_id"] == dead.as_str());
    let dead = dead.unwrap()["name"].as_str().unwrap().to_owned();
    nodes.all[2].kill();
    std::thread::sleep(Duration::from_secs(8));
    stop(running);
    let plan = world.redis(&["plan", "cache", "--json"]);
    let planned = plan.env("PITR_FAULT_SECONDS", "4").run().json();
    let behind = &planned["behind"];
    assert_eq!(behind[0]["shard"], dead.as_str(), "{planned:#}");
    assert!(behind[1].is_null(), "{planned:#}");
    let words = format!("shard {dead}: its log ends at ");
    let to = world.sandbox.join("copy");
    let restore = world
        .restoring(&to, &["--latest"])
        .env("PITR_FAULT_SECONDS", "4");
    let run = restore.exits(6);
    run.expect_stderr(&words).expect_stdout("moment: ");
    // Within two minutes it may be late only.
    let planned = world.redis(&["plan", "cache", "--json"]).run().json();
    assert_eq!(planned["behind"], serde_json::json!([]), "{planned:#}");
}
