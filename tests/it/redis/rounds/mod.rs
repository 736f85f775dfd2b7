//! The campaign for what `WAIT` confirmed: a client writes while receiver, servers, network and disks fail. In the end everything that was confirmed comes
//! back, and each gap is one that had to be. Row R62 of docs/faults.md.
//!
//! `fault.rs` has what happens in a round, and the proof that it happened.
//!
//! `REDIS_ROUNDS` sets how many rounds there are on each server (`make redis-rounds`: 200), `REDIS_ROUNDS_SEED` the first history, and
//! `REDIS_ROUNDS_PROGRESS` names a file in which the histories that passed stand. Histories of an even seed have a replica, which takes over.

mod fault;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::receive::{Moment, confirm};
use super::server::Server;
use super::world::World;
use super::writer::{self, Writer};
use crate::common::progress::Progress;
use crate::common::proxy::Proxy;
use crate::common::random::Random;
use crate::common::{PATIENCE, Running, memory_bytes, number, peak_bytes, wait_until};
use crate::per_server;
use fault::Fault;

/// Rounds of a history.
const OF_HISTORY: u64 = 20;
/// Rounds of the run that is part of the tests.
const FEW: u64 = 5;
/// The ceiling of a receiver's memory; in a build that is not optimised without the pages of the program itself, of which a released one has about 12 MiB.
const MEMORY_BYTES: u64 = if cfg!(debug_assertions) {
    38 << 20
} else {
    50 << 20
};
/// How much a server may keep for a replica, and its backlog.
const OUTPUT_BYTES: u64 = 8 << 20;
const BACKLOG_BYTES: u64 = 4 << 20;

fn r62_what_wait_confirmed_survives_whatever_fails(name: &'static str) {
    crate::require_root!("r62_what_wait_confirmed_survives_whatever_fails");
    let count = number("REDIS_ROUNDS").unwrap_or(FEW);
    let first = number("REDIS_ROUNDS_SEED").unwrap_or(20_261_125);
    let progress = Progress::of("REDIS_ROUNDS_PROGRESS");
    for n in 0..count.div_ceil(OF_HISTORY) {
        let seed = first + n;
        let rounds = OF_HISTORY.min(count - n * OF_HISTORY);
        let line = format!("{name} {seed} {rounds} passed");
        if progress.has(&line) {
            continue;
        }
        println!("redis rounds: {name}, REDIS_ROUNDS_SEED={seed}");
        let began = Instant::now();
        let told = history(name, seed, rounds);
        let seconds = began.elapsed().as_secs();
        println!("redis rounds: {name}, {seed}: {rounds} rounds in {seconds} s: {told}");
        progress.add(&line);
    }
}
per_server!(r62_what_wait_confirmed_survives_whatever_fails);

/// Everything that fails, and what has to come back.
struct History {
    seed: u64,
    servers: Vec<Server>,
    /// The one that clients write to.
    master: usize,
    proxy: Proxy,
    world: World,
    receiver: Option<Running>,
    random: Random,
    /// Keys that were confirmed, by the history of the server.
    confirmed: BTreeMap<String, BTreeSet<String>>,
    moments: Vec<Moment>,
    /// The gaps that are recorded.
    gaps: usize,
    /// A position of a history that was confirmed after the last fault.
    settled: (String, u64),
    round: u64,
    peak: u64,
    output_peak: u64,
}

fn history(name: &'static str, seed: u64, rounds: u64) -> String {
    let mut history = History::new(name, seed);
    let has_replica = history.servers.len() > 1;
    let deck = Fault::deck(rounds, has_replica, &mut history.random);
    let mut faults = BTreeMap::<String, usize>::new();
    for fault in deck {
        history.round(fault);
        *faults.entry(format!("{fault:?}")).or_default() += 1;
    }
    history.end();
    format!(
        "{} confirmed, {} gaps, {} KiB of memory, {} KiB of output, {faults:?}",
        history.confirmed.values().map(BTreeSet::len).sum::<usize>(),
        history.gaps,
        history.peak >> 10,
        history.output_peak >> 10
    )
}

impl History {
    fn new(name: &'static str, seed: u64) -> History {
        let (limit, backlog) = (OUTPUT_BYTES.to_string(), BACKLOG_BYTES.to_string());
        let options = [
            "--repl-diskless-sync-delay",
            "0",
            "--repl-backlog-size",
            &backlog,
            "--client-output-buffer-limit",
            "replica",
            &limit,
            &limit,
            "60",
            // A server notices soon that a silent replica is gone.
            "--repl-timeout",
            "10",
            "--appendonly",
            "yes",
        ];
        let count = 1 + usize::from(seed.is_multiple_of(2));
        let servers: Vec<Server> = (0..count)
            .map(|_| Server::listening(name, "--port", &options))
            .collect();
        let proxy = Proxy::to(servers[0].port());
        let world = World::new(&servers[0]);
        world.sandbox.keep_on_failure();
        world.configure(&format!(
            "address = \"127.0.0.1:{}\"\nidentity = \"shop\"\nstall_timeout = \"2s\"\nreceive.journal = \"{}\"",
            proxy.port(),
            world.sandbox.join("journal").display()
        ));
        let mut history = History {
            seed,
            servers,
            master: 0,
            proxy,
            world,
            receiver: None,
            random: Random::new(seed),
            confirmed: BTreeMap::new(),
            moments: Vec::new(),
            gaps: 0,
            settled: Default::default(),
            round: 0,
            peak: 0,
            output_peak: 0,
        };
        history.follow();
        history.receive();
        history.settle();
        history.world.backup();
        history
    }

    fn master(&self) -> &Server {
        &self.servers[self.master]
    }

    fn replica(&self) -> Option<&Server> {
        self.servers.get(1 - self.master)
    }

    /// The number of those that confirm what is written: the receiver, and the replica.
    fn confirming(&self) -> u32 {
        u32::try_from(self.servers.len()).unwrap()
    }

    /// Makes the other server a replica, and waits until it follows.
    fn follow(&self) {
        let Some(replica) = self.replica() else {
            return;
        };
        let port = self.master().port().to_string();
        replica.ask(&["REPLICAOF", "127.0.0.1", &port]);
        wait_until("the replica follows", || {
            let told = replica.cli(&["INFO", "replication"]).run().stdout;
            told.contains("master_link_status:up")
        });
    }

    fn receive(&mut self) {
        let program = self.world.redis(&["receive", "cache"]);
        self.receiver = Some(program.timeout(Duration::from_secs(3600)).spawn());
    }

    fn receiver(&mut self) -> &mut Running {
        self.receiver.as_mut().expect("the receiver runs")
    }

    /// Ends the receiver at once.
    fn kill_receiver(&mut self) {
        self.measure();
        let receiver = self.receiver.take().expect("the receiver runs");
        let run = receiver.ended_by(rustix::process::Signal::KILL);
        assert_eq!(run.code(), 128 + 9, "it had ended before: {run}");
    }

    /// The memory of the receiver, and what the server keeps for its replicas.
    fn measure(&mut self) {
        let pid = self.receiver().pid();
        let peak = peak_bytes(pid).unwrap_or(0);
        let of_program = memory_bytes(pid, "RssFile").unwrap_or(0);
        let peak = match cfg!(debug_assertions) {
            true => peak.saturating_sub(of_program),
            false => peak,
        };
        self.peak = self.peak.max(peak);
        let told = self.master().cli(&["CLIENT", "LIST", "TYPE", "replica"]);
        let told = told.run().stdout;
        let kept = told
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("omem=")?.parse::<u64>().ok());
        self.output_peak = self.output_peak.max(kept.max().unwrap_or(0));
    }

    /// A fault while a client writes; then everything works again.
    fn round(&mut self, fault: Fault) {
        self.round += 1;
        let began = Instant::now();
        let writer = Writer::start(self.master(), self.confirming(), self.round);
        std::thread::sleep(Duration::from_micros(self.random.below(400_000) as u64));
        let gaps = self.gaps;
        fault.strike(self, &writer);
        std::thread::sleep(Duration::from_millis(100));
        for (replid, key) in writer.stop() {
            self.confirmed.entry(replid).or_default().insert(key);
        }
        self.settle();
        // Behind a gap the receiver has taken one.
        if self.round.is_multiple_of(7) {
            self.world.backup();
            self.settle();
        }
        self.moments.push(Moment::of(self.master()));
        println!(
            "redis rounds: {}, {}: round {}, {fault:?}, {} ms",
            self.master().name,
            self.seed,
            self.round,
            began.elapsed().as_millis()
        );
        let told = self.gaps_told();
        let is_right = match fault.is_gap() {
            Some(is_gap) => told.len() == gaps + usize::from(is_gap),
            None => (gaps..=gaps + 1).contains(&told.len()),
        };
        assert!(
            is_right,
            "seed {}, round {}, {fault:?}: {gaps} before, {told:?}",
            self.seed, self.round
        );
        self.gaps = told.len();
        assert!(self.peak <= MEMORY_BYTES, "{} bytes of memory", self.peak);
        // A command may be added to what is just below the limit.
        let limit = OUTPUT_BYTES + (2 << 20);
        assert!(self.output_peak <= limit, "{} bytes", self.output_peak);
    }

    /// Waits until all confirm again; the receiver must not have ended.
    fn settle(&mut self) {
        let (master, round, count) = (self.master, self.round, self.confirming());
        let end = Instant::now() + PATIENCE;
        loop {
            let lines = format!("SET settled {round}\nWAIT {count} 1000\n");
            let told = self.servers[master].cli(&[]).stdin(lines.into_bytes());
            let told = told.run().stdout;
            if told.lines().next_back() == Some(&count.to_string()) {
                break;
            }
            let seed = self.seed;
            let receiver = self.receiver();
            let has_ended = receiver.is_done();
            assert!(
                !has_ended && Instant::now() < end,
                "seed {seed}, round {round}: no confirmation, {told}{}",
                receiver.stderr()
            );
        }
        let lines = format!("SET round:{round} {round}\n");
        confirm(self.master(), &lines, count);
        let replid = self.master().info("master_replid");
        self.settled = (replid.clone(), Moment::offset_of(self.master()));
        let key = format!("round:{round}");
        self.confirmed.entry(replid).or_default().insert(key);
        self.measure();
    }

    /// The gaps that are recorded, once all that was settled is stored: bytes are missing at each, and at no other place.
    fn gaps_told(&self) -> Vec<String> {
        let (replid, offset) = self.settled.clone();
        let mut told = serde_json::Value::Null;
        let is_of = |range: &serde_json::Value| {
            let at = |name: &str| range[name].as_u64().unwrap();
            at("from") < offset && offset <= at("to")
        };
        wait_until("what was settled is stored", || {
            told = self.world.json(&["info", "cache"]);
            let mut histories = told["histories"].as_array().unwrap().iter();
            let own = histories.find(|h| h["replid"] == replid.as_str());
            own.is_some_and(|h| h["ranges"].as_array().unwrap().iter().any(is_of))
        });
        let mut reasons = Vec::new();
        for history in told["histories"].as_array().unwrap() {
            let beginnings = history["beginnings"].as_array().unwrap();
            for gap in beginnings.iter().filter(|b| !b["reason"].is_null()) {
                let after = &gap["after"];
                let is_missing = after["replid"] != history["replid"]
                    || after["position"].as_u64() < gap["position"].as_u64();
                assert!(is_missing, "invented: {gap}");
                reasons.push(gap["reason"].as_str().unwrap().to_owned());
            }
            for range in history["ranges"].as_array().unwrap().iter().skip(1) {
                let is_recorded = |b: &serde_json::Value| b["position"] == range["from"];
                assert!(beginnings.iter().any(is_recorded), "not recorded: {told}");
            }
        }
        reasons
    }

    /// Everything that was confirmed comes back, and moments are what they were.
    fn end(&mut self) {
        let receiver = self.receiver.take().expect("the receiver runs");
        let ended = receiver.ended_by(rustix::process::Signal::TERM).success();
        assert!(ended.stdout.contains("received up to offset"), "{ended}");
        let name = self.master().name;
        for (replid, keys) in &self.confirmed {
            let options = ["--latest", "--history", replid, "--as-replica"];
            let copy = self.world.restore("copy", &options);
            let restored = Server::on(name, &copy, &[]);
            let lines: String = keys.iter().map(|key| format!("GET {key}\n")).collect();
            let told = restored.cli(&[]).stdin(lines.into_bytes()).succeed();
            let values: Vec<&str> = told.stdout.lines().collect();
            assert_eq!(values.len(), keys.len());
            for (key, value) in keys.iter().zip(values) {
                let is_there = value == writer::value(key) || format!("round:{value}") == *key;
                assert!(
                    is_there,
                    "seed {}: {key} of {replid} was confirmed, and is {value:?}",
                    self.seed
                );
            }
            drop(restored);
            std::fs::remove_dir_all(copy).unwrap();
        }
        for _ in 0..4 {
            let n = self.random.below(self.moments.len());
            let moment = &self.moments[n];
            let target = moment.target();
            let options = ["--target-offset", &target, "--as-replica"];
            let copy = self.world.restore("copy", &options);
            let content = Server::on(name, &copy, &[]).content();
            assert_eq!(content, moment.content, "seed {}, moment {n}", self.seed);
            std::fs::remove_dir_all(copy).unwrap();
        }
        self.world.pitr(&["verify"]).succeed();
    }
}
