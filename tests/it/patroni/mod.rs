//! Three nodes under Patroni, whose leader dies under load, round after round: the clients go on, what was acknowledged is on the new leader or
//! on the timeline that was left, and the dead node comes back by pg_rewind or from the repository.
//!
//! | file | what it is |
//! |---|---|
//! | `node.rs` | a node: Patroni, its server, and their death |
//! | `round.rs` | a round: who waits for whom, who dies, how it comes back |
//!
//! `PATRONI_ROUNDS` sets how many rounds there are (`make patroni`: 50), `PATRONI_SEED` repeats a run as far as concurrency allows, and
//! `PATRONI_MAJOR` sets the server. Patroni is that of PyPI, etcd that of Debian (`scripts/get-patroni`).

mod node;
mod round;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::random::Random;
use crate::common::reception::{self, lsn};
use crate::common::{
    Client, Lock, PATIENCE, Program, Running, Sandbox, bin, free_port, number, pitr,
};
use crate::receiver_soak::load::{Ledger, TABLES};
use node::Node;
use round::Round;

/// Rounds of the run that is part of the tests: one of each kind.
const ROUNDS: usize = 3;
/// The restore point at the end of a campaign.
const END: &str = "the_end";

/// The properties that the nodes of a cluster share.
#[derive(Clone)]
pub struct Place {
    scope: String,
    /// The port of etcd.
    etcd: u16,
    /// The folder of PostgreSQL's programs.
    bin: PathBuf,
    /// The folder of Patroni.
    python: PathBuf,
}

/// The nodes, and what stands beside them.
struct Campaign {
    nodes: Vec<Node>,
    receiver: Option<Running>,
    place: Place,
    major: u32,
    random: Random,
    counts: BTreeMap<String, u64>,
    began: Instant,
    // Dropped in this order: what runs, before what it runs in.
    _etcd: Running,
    _ports: [(u16, Lock); 2],
    _watchdog: Watchdog,
    sandbox: Sandbox,
}

impl Campaign {
    fn new(major: u32, is_long: bool, random: Random) -> Campaign {
        let sandbox = match is_long {
            true => Sandbox::on_disk("patroni"),
            false => Sandbox::new("patroni"),
        };
        if is_long {
            sandbox.keep_on_failure();
        }
        let cache = fetched();
        let ports = [free_port(), free_port()];
        let watchdog = Watchdog::of(sandbox.path());
        let etcd = start_etcd(&cache, &sandbox.dir("etcd"), ports[0].0, ports[1].0);
        let rewind = bin(major, "pg_rewind").expect("a major with pg_rewind");
        let place = Place {
            scope: "main".to_owned(),
            etcd: ports[0].0,
            bin: rewind.parent().unwrap().to_owned(),
            python: cache.join("python"),
        };
        let nodes = ["n1", "n2", "n3"].map(|name| Node::new(&sandbox, name, &place));
        let mut campaign = Campaign {
            nodes: nodes.into(),
            receiver: None,
            place,
            major,
            random,
            counts: BTreeMap::new(),
            began: Instant::now(),
            _etcd: etcd,
            _ports: ports,
            _watchdog: watchdog,
            sandbox,
        };
        campaign.first_node();
        campaign.start_receiver();
        campaign.further_nodes();
        campaign
    }

    /// The first node makes the cluster, and the repository gets its first backup.
    fn first_node(&mut self) {
        self.nodes[0].start();
        self.wait("the first node leads", |c| c.nodes[0].leads());
        let first = &self.nodes[0];
        pitr()
            .words("init --quiet --config")
            .arg(first.config())
            .args(["--conninfo", &first.conninfo(), "--pgdata"])
            .arg(first.data())
            .arg("--repository")
            .arg(self.sandbox.join("repository"))
            .succeed();
        let text = std::fs::read_to_string(first.config()).unwrap();
        for other in &self.nodes[1..] {
            let name = first.folder.to_str().unwrap();
            let own = text.replace(name, other.folder.to_str().unwrap());
            let own = own.replace(&first.conninfo(), &other.conninfo());
            self.sandbox.file(
                other.config().strip_prefix(self.sandbox.path()).unwrap(),
                own,
            );
        }
        // The receiver looks for the leader among all of them.
        let receive = format!(
            "\n[clusters.main.receive]\nslot = \"pitr\"\njournal = \"{}\"\n",
            self.journal().display()
        );
        let config = text.replace(
            &first.conninfo(),
            &format!(
                "{} target_session_attrs=primary application_name=pitr",
                self.conninfo()
            ),
        );
        self.sandbox.file("pitr.toml", config + &receive);
        first.client().sql(TABLES);
        self.pitr().arg("backup").succeed();
    }

    fn start_receiver(&mut self) {
        self.wait("Patroni has made the slot", |c| {
            let slots = "select count(*) from pg_replication_slots where slot_name = 'pitr'";
            c.nodes[0].client().value(slots) == "1"
        });
        let receive = self.pitr().arg("receive");
        let receive = receive.timeout(Duration::from_secs(24 * 3600));
        self.receiver = Some(receive.spawn());
    }

    /// The others come from the repository.
    fn further_nodes(&mut self) {
        for node in &mut self.nodes[1..] {
            node.start();
        }
        self.wait("all nodes stream", |c| c.all_stream());
        for node in &self.nodes[1..] {
            assert!(
                node.log().contains("replica has been created using pitr"),
                "{}",
                node.log()
            );
        }
    }

    /// `pitr --config …` beside the nodes.
    fn pitr(&self) -> Program {
        pitr().arg("--config").arg(self.sandbox.join("pitr.toml"))
    }

    fn journal(&self) -> PathBuf {
        self.sandbox.join("journal")
    }

    /// A connection string that leads to whichever node can be connected to as asked.
    fn conninfo(&self) -> String {
        let hosts = vec!["127.0.0.1"; self.nodes.len()].join(",");
        let ports: Vec<String> = self.nodes.iter().map(|n| n.port().to_string()).collect();
        format!("host={hosts} port={} user=postgres", ports.join(","))
    }

    /// Returns the members, by the first one that answers.
    fn members(&self) -> Vec<Value> {
        let told = |node: &Node| Some(node.rest("GET", "/cluster", "")?.1);
        let answer = self.nodes.iter().find_map(told);
        let members = answer.as_ref().and_then(|a| a["members"].as_array());
        members.cloned().unwrap_or_default()
    }

    fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(Node::leads)
    }

    /// Whether there is a leader, and the others stream from it on its timeline.
    fn all_stream(&self) -> bool {
        let members = self.members();
        let leads = |m: &&Value| m["role"] == "leader" && m["state"] == "running";
        let Some(leader) = members.iter().find(leads) else {
            return false;
        };
        let follows = |m: &&Value| {
            m["state"] == "streaming"
                && m["timeline"] == leader["timeline"]
                && m["role"] != "leader"
        };
        members.iter().filter(follows).count() == self.nodes.len() - 1
    }

    /// Changes what Patroni's store says of the cluster.
    fn configure(&self, change: &Value) {
        let node = &self.nodes[self.leader().expect("there is a leader")];
        let answer = node.rest("PATCH", "/config", &change.to_string());
        assert_eq!(answer.map(|a| a.0), Some(200), "{change}");
    }

    /// Waits for something; the receiver must not end meanwhile.
    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Campaign) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            let ended = self.receiver.as_mut().is_some_and(Running::is_done);
            if ended || Instant::now() > end {
                let receiver = self.receiver.as_ref().map(Running::stderr);
                let why = if ended {
                    "the receiver ended"
                } else {
                    "waited in vain"
                };
                let mut text = format!("{why} until {what}\n{:#?}\n", self.members());
                text += &format!("--- receiver\n{}\n", tail(&receiver.unwrap_or_default()));
                for node in &self.nodes {
                    text += &format!("--- {}\n{}\n", node.name, tail(&node.log()));
                }
                panic!("{text}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn count(&mut self, what: &str, more: u64) {
        *self.counts.entry(what.to_owned()).or_default() += more;
    }

    fn say(&self, what: &str) {
        println!(
            "patroni: {:6.1} s: {what}",
            self.began.elapsed().as_secs_f64()
        );
    }

    /// Waits until the repository holds what the leader has flushed by now.
    fn wait_shipped(&mut self, leader: usize) {
        let client = self.nodes[leader].client();
        let end = lsn(&client.value("select pg_current_wal_flush_lsn()"));
        self.wait("the receiver has shipped everything", |c| {
            reception::archived(&c.journal()).is_some_and(|at| at >= end)
        });
    }

    /// The nodes are gone, and another cluster begins from the repository, at a target.
    fn end(&mut self, promised: &[Ledger]) {
        let leader = self.leader().expect("there is a leader");
        let client = self.nodes[leader].client();
        client.sql(&format!("select pg_create_restore_point('{END}')"));
        let expected = rows(&client);
        drop(client);
        self.nodes[leader].archive_now();
        self.wait_shipped(leader);
        self.pitr().arg("verify").succeed();
        let receiver = self.receiver.take().expect("it runs");
        receiver.ended_by(rustix::process::Signal::TERM).success();
        for node in &mut self.nodes {
            node.kill();
        }
        self.place.scope = "again".to_owned();
        let mut node = Node::new(&self.sandbox, "again", &self.place);
        let restore = self.pitr().args(["restore", "--target-name", END, "--to"]);
        let restore = restore.arg(node.data()).shell();
        node.start_with(Some(&json!({
            "method": "pitr",
            "pitr": { "command": restore, "no_params": true, "keep_existing_recovery_conf": true },
        })));
        self.nodes = vec![node];
        self.wait("the new cluster leads", |c| c.nodes[0].leads());
        let client = self.nodes[0].client();
        assert_eq!(client.value("select pg_is_in_recovery()"), "f");
        let found = rows(&client);
        assert_eq!(found, expected, "the cluster at the restore point");
        for ledger in promised {
            check(ledger, &found);
        }
        let count = found.values().map(|n| n.len() as u64).sum();
        self.count(
            "rows in the cluster that was bootstrapped at a target",
            count,
        );
    }
}

/// The rows of each client.
type Rows = BTreeMap<u32, std::collections::BTreeSet<u64>>;

fn rows(client: &Client) -> Rows {
    let mut found = Rows::new();
    for row in client.sql("select client, number from ledger") {
        let text = |at: usize| row[at].as_deref().unwrap();
        let of_client = found.entry(text(0).parse().unwrap()).or_default();
        of_client.insert(text(1).parse().unwrap());
    }
    found
}

/// The acknowledged rows of a client that are not there.
fn missing(ledger: &Ledger, found: &Rows) -> Vec<u64> {
    let none = std::collections::BTreeSet::new();
    let own = found.get(&ledger.client).unwrap_or(&none);
    assert!(own.last().is_none_or(|last| *last < ledger.tried));
    ledger.acknowledged.difference(own).copied().collect()
}

/// Every acknowledged row of a client is there, and none that was never tried.
fn check(ledger: &Ledger, found: &Rows) {
    let lost = missing(ledger, found);
    let (client, acknowledged) = (ledger.client, ledger.acknowledged.len());
    assert!(
        lost.is_empty(),
        "client {client}: {} acknowledged rows of {acknowledged} are lost, from {:?}",
        lost.len(),
        lost.first()
    );
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(40).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// The folder with Patroni and etcd.
fn fetched() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/get-patroni");
    let out = Command::new(script).output().expect("the script starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "scripts/get-patroni failed: {said}");
    PathBuf::from(String::from_utf8(out.stdout).unwrap().trim())
}

fn start_etcd(cache: &Path, folder: &Path, client: u16, peer: u16) -> Running {
    let (url, between) = (
        format!("http://127.0.0.1:{client}"),
        format!("http://127.0.0.1:{peer}"),
    );
    let etcd = Program::new(cache.join("etcd"))
        .words("--name one --data-dir")
        .arg(folder)
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .args(["--listen-peer-urls", &between])
        .args(["--initial-advertise-peer-urls", &between])
        .args(["--initial-cluster", &format!("one={between}")])
        .dir(folder);
    let mut running = etcd.spawn();
    running.until("etcd listens", || {
        TcpStream::connect(("127.0.0.1", client)).is_ok()
    });
    running
}

/// A shell that waits for the end of the test, however that comes, and then kills what works in the folder.
struct Watchdog(Child);

impl Watchdog {
    fn of(folder: &Path) -> Watchdog {
        const WATCH: &str = "read -r _; for p in /proc/[0-9]*; do [ \"$p\" != /proc/$$ ] || continue; \
            case \"$(readlink $p/cwd) $(tr '\\0' ' ' <$p/cmdline)\" in *\"$1\"*) kill -9 ${p#/proc/};; esac; done; rm -rf \"$1\"";
        let child = Command::new("/bin/sh")
            .args(["-c", WATCH, "watchdog"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Watchdog(child.expect("a shell starts"))
    }
}

impl Drop for Watchdog {
    /// The process that it watched is gone already.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn campaign(major: u32, rounds: usize, seed: u64) {
    println!(
        "patroni: PostgreSQL {major}, PATRONI_SEED={seed} PATRONI_ROUNDS={rounds} PATRONI_MAJOR={major}"
    );
    let mut random = Random::new(seed);
    let of_campaign = random.fork();
    let mut campaign = Campaign::new(major, rounds > ROUNDS, of_campaign);
    campaign.say("three nodes stream, two of them from the repository");
    let mut promised = Vec::new();
    for (number, round) in Round::deck(rounds, &mut random).into_iter().enumerate() {
        promised.extend(campaign.round(number, round));
    }
    campaign.end(&promised);
    for (what, count) in &campaign.counts {
        println!("patroni: {count:7}  {what}");
    }
    campaign.say("a cluster that was bootstrapped at the restore point has every row");
}

#[test]
fn the_leader_dies_under_load_and_what_was_promised_is_there() {
    let rounds = number("PATRONI_ROUNDS").map_or(ROUNDS, |n| usize::try_from(n).unwrap());
    let seed = number("PATRONI_SEED").unwrap_or(20_261_122);
    let major = number("PATRONI_MAJOR").unwrap_or(17);
    campaign(u32::try_from(major).unwrap(), rounds, seed);
}
