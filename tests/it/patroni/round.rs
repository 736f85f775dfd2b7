//! A round: commits wait for somebody, or for nobody; the leader dies; another one takes over, and the dead node comes back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Campaign, Rows, check, missing, rows};
use crate::common::proxy::Way;
use crate::common::random::Random;
use crate::common::{Cluster, files_below};
use crate::receiver_soak::load::{CLIENTS, Ledger, Load};

/// Commits that are acknowledged before a leader dies, and under the next one.
const COMMITS: u64 = 40;
/// The rest of a client after each commit: the nodes share two processors with other tests.
const REST: Duration = Duration::from_millis(5);
/// Commits that no other node has when the leader dies, where they wait for none.
const UNSEEN: u64 = 20;

/// For whom commits wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Patroni's synchronous mode: another node.
    Member,
    /// The receiver, and no node.
    Receiver,
    Nobody,
}

/// How the leader dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// The server alone: Patroni lets the lead go at once.
    Server,
    /// Server and Patroni: the lead runs out.
    Node,
    /// All of it stands still until another node leads, and goes on then.
    Freeze,
}

#[derive(Debug, Clone, Copy)]
pub struct Round {
    waits: Waits,
    death: Death,
    /// The disk is lost, too.
    loses_disk: bool,
}

impl Round {
    /// The rounds of a campaign: three that have one of each, then as it comes.
    pub fn deck(count: usize, random: &mut Random) -> Vec<Round> {
        let waits = [Waits::Member, Waits::Receiver, Waits::Nobody];
        let deaths = [Death::Node, Death::Server, Death::Node];
        let round = |number: usize| {
            let mut round = Round {
                waits: waits[number % 3],
                death: deaths[number % 3],
                loses_disk: number % 3 == 2,
            };
            if number >= 3 {
                round.death = *random.pick(&[Death::Server, Death::Node, Death::Freeze]);
                round.loses_disk = round.death == Death::Node && random.one_in(2);
            }
            round
        };
        (0..count).map(round).collect()
    }
}

impl Campaign {
    /// Runs a round; returns what each client may rely on from now on.
    pub fn round(&mut self, number: usize, round: Round) -> Vec<Ledger> {
        let old = self.leader().expect("there is a leader");
        self.set_waits(old, round.waits);
        let timeline = self.timeline(old);
        let first = u32::try_from(number).unwrap() * CLIENTS;
        let writable = "dbname=postgres connect_timeout=2 target_session_attrs=read-write";
        let conninfo = format!("{} {writable}", self.conninfo());
        let load = Load::start_at(conninfo, first, REST, &mut self.random);
        self.wait_for_commits(&load, COMMITS);
        if round.waits != Waits::Member {
            self.nodes[old].proxy.stall(Way::ToClient);
            self.pause_receiver(round.waits == Waits::Nobody);
            self.wait_for_commits(&load, UNSEEN);
        }
        let (mark, struck) = (self.strike(old, round), Instant::now());
        let mut found = None;
        self.wait("another node leads", |c| {
            found = c.successor(old);
            found.is_some()
        });
        self.pause_receiver(false);
        // Clients of a server that stands still wait for it, as long as their own time limits let them.
        if round.death == Death::Freeze {
            self.nodes[old].freeze(false);
        }
        let new = found.expect("it leads");
        self.wait_for_commits(&load, 1);
        let blocked = struck.elapsed();
        self.nodes[old].proxy.reset();
        self.wait_for_commits(&load, COMMITS);
        let back = self.bring_back(old, mark, round);
        let broken = load.broken();
        let ledgers = load.stop();
        assert!(broken > 0, "no client noticed the death");
        // One late answer is no other leader.
        self.wait("the leader stays", |c| c.leader() == Some(new));
        self.check_nobody_is_blocked(new);
        self.decide(new, round.death);
        let client = self.nodes[new].client();
        let found = rows(&client);
        let lost: u64 = ledgers
            .iter()
            .map(|l| missing(l, &found).len() as u64)
            .sum();
        match round.waits {
            Waits::Member => ledgers.iter().for_each(|ledger| check(ledger, &found)),
            // A server that is promoted asks restore_command for the last time: what the receiver has shipped until then is not lost.
            Waits::Receiver if lost == 0 => {}
            Waits::Receiver => self.check_left(new, timeline, &ledgers, &found),
            Waits::Nobody => assert!(lost > 0, "nothing was on the dead leader alone"),
        }
        self.report(number, round, &ledgers, lost, back, blocked.as_secs_f64());
        let rest = |ledger: Ledger| {
            let lost: BTreeSet<u64> = missing(&ledger, &found).into_iter().collect();
            let acknowledged = ledger.acknowledged.difference(&lost).copied().collect();
            Ledger {
                acknowledged,
                ..ledger
            }
        };
        ledgers.into_iter().map(rest).collect()
    }

    fn report(
        &mut self,
        number: usize,
        round: Round,
        ledgers: &[Ledger],
        lost: u64,
        back: &str,
        blocked: f64,
    ) {
        let Round {
            waits,
            death,
            loses_disk,
        } = round;
        let acknowledged = ledgers.iter().map(|l| l.acknowledged.len() as u64).sum();
        let disk = if loses_disk { " and its disk" } else { "" };
        let number = number + 1;
        self.say(&format!("round {number}: commits wait for {waits:?}, death of {death:?}{disk}: {acknowledged} rows acknowledged, {lost} not on the new leader; commits again after {blocked:.1} s; the node came back {back}"));
        self.count(&format!("rounds, commits waiting for {waits:?}"), 1);
        self.count(&format!("deaths by {death:?}{disk}"), 1);
        self.count(&format!("nodes that came back {back}"), 1);
        self.count("rows acknowledged", acknowledged);
        self.count(
            &format!("rows acknowledged and not on the new leader, commits waiting for {waits:?}"),
            lost,
        );
    }

    /// Lets commits wait as asked. They do when this returns.
    fn set_waits(&mut self, leader: usize, waits: Waits) {
        let names = match waits {
            Waits::Receiver => json!("pitr"),
            _ => Value::Null,
        };
        self.configure(&json!({
            "synchronous_mode": waits == Waits::Member,
            "postgresql": { "parameters": { "synchronous_standby_names": names } },
        }));
        let one = "select count(*) from pg_stat_replication where state = 'streaming' and sync_state in ('sync', 'quorum') and application_name";
        let question = match waits {
            Waits::Member => format!("{one} <> 'pitr'"),
            Waits::Receiver => format!("{one} = 'pitr'"),
            Waits::Nobody => "select count(*) from pg_settings where name = 'synchronous_standby_names' and setting = ''".into(),
        };
        let client = self.nodes[leader].client();
        self.wait("commits wait as asked", |_| client.value(&question) == "1");
        self.wait("Patroni knows it, too", |c| {
            let is_sync = |m: &Value| m["role"].as_str().is_some_and(|r| r.ends_with("_standby"));
            c.members().iter().any(is_sync) == (waits == Waits::Member)
        });
        // Sessions ask a flag that the checkpointer sets when it reads the configuration, which it does before it answers.
        client.sql("checkpoint");
    }

    fn timeline(&self, node: usize) -> u64 {
        let members = self.members();
        let own = members
            .iter()
            .find(|m| m["name"] == self.nodes[node].name.as_str());
        own.and_then(|m| m["timeline"].as_u64())
            .expect("its timeline")
    }

    fn wait_for_commits(&mut self, load: &Load, more: u64) {
        let end = load.acknowledged() + more;
        self.wait("commits are acknowledged", |_| load.acknowledged() >= end);
    }

    /// The node that leads in place of this one.
    fn successor(&self, old: usize) -> Option<usize> {
        (0..self.nodes.len()).find(|n| *n != old && self.nodes[*n].leads())
    }

    /// Lets the leader die; returns up to where its log was read.
    fn strike(&mut self, old: usize, round: Round) -> usize {
        let node = &mut self.nodes[old];
        let mark = node.log().len();
        match round.death {
            Death::Server => node.kill_server(),
            Death::Freeze => node.freeze(true),
            Death::Node => {
                node.kill();
                return 0;
            }
        }
        mark
    }

    /// Brings the dead node back; returns how it came.
    fn bring_back(&mut self, old: usize, mark: usize, round: Round) -> &'static str {
        let node = &mut self.nodes[old];
        if round.loses_disk {
            std::fs::remove_dir_all(node.data()).unwrap();
        }
        if round.death == Death::Node {
            node.start();
        }
        self.wait("the node is back", |c| {
            !c.nodes[old].leads() && c.all_stream()
        });
        let log = self.nodes[old].log();
        let log = &log[mark..];
        let how = if log.contains("remove_data_directory_on_rewind_failure is set") {
            "from the repository, after pg_rewind failed"
        } else if log.contains("replica has been created using pitr") {
            "from the repository"
        } else if log.contains("pg_rewind exit code=0") {
            "by pg_rewind"
        } else {
            "by itself"
        };
        assert_eq!(how == "from the repository", round.loses_disk, "{log}");
        how
    }

    /// The new leader archives and is received, the others have all it has, and nothing waits at a conflict.
    fn check_nobody_is_blocked(&mut self, leader: usize) {
        self.nodes[leader].archive_now();
        let client = self.nodes[leader].client();
        let end = client.value("select pg_current_wal_flush_lsn()");
        let others = self.nodes.len() - 1;
        let caught_up = format!(
            "select count(*) from pg_stat_replication where replay_lsn >= '{end}' and application_name <> 'pitr'"
        );
        self.wait("the other nodes have all of it", |_| {
            client.value(&caught_up) == others.to_string()
        });
        let received = "select count(*) from pg_stat_replication where application_name = 'pitr' and state = 'streaming'";
        self.wait("the receiver streams", |_| client.value(received) == "1");
        // The leader that died and the one that followed have different bytes behind the switch: of a partial segment both copies are kept.
        let files = files_below(&self.sandbox.join("repository"));
        let conflicts = files.iter().filter(|file| file.contains("/conflicts/"));
        let whole = conflicts.filter(|file| !file.contains(".partial-"));
        assert_eq!(whole.collect::<Vec<_>>(), [""; 0]);
    }

    /// The receiver stands still, or goes on.
    fn pause_receiver(&self, on: bool) {
        let signal = if on { Signal::STOP } else { Signal::CONT };
        self.receiver.as_ref().expect("it runs").signal(signal);
    }

    /// A leader that stood still and went on may have committed after the next one began: a person says which timeline is the cluster.
    fn decide(&mut self, leader: usize, death: Death) {
        let info = self.pitr().words("info --json").run().json();
        if !info["clusters"][0]["timeline"].is_null() {
            return;
        }
        assert_eq!(
            death,
            Death::Freeze,
            "{:#}",
            info["clusters"][0]["problems"]
        );
        // Not by abandoning the one that was left: the new one descends from it.
        let timeline = self.timeline(leader).to_string();
        let restore = self.pitr().args(["timeline", "restore", &timeline]);
        let restore = restore.args(["--reason", "it leads", "--confirm"]);
        restore.succeed();
        self.count(
            "rounds after which a person says which timeline is the cluster",
            1,
        );
    }

    /// Checks that commits that are not on the new leader are on the timeline that was left, and that `pitr info` names
    /// it.
    fn check_left(&mut self, leader: usize, timeline: u64, ledgers: &[Ledger], found: &Rows) {
        self.wait_shipped(leader);
        let info = self.pitr().words("info --json").run().json();
        let left = info["clusters"][0]["left_behind"].as_array();
        let own = left.and_then(|all| all.iter().find(|one| one["timeline"] == timeline));
        let commits = own.and_then(|one| one["commits"].as_u64()).unwrap_or(0);
        assert!(commits > 0, "info does not name what was left: {info:#}");
        self.count("commits that info names as left behind", commits);
        let to = self.sandbox.join("left");
        let timeline = timeline.to_string();
        let restore = self
            .pitr()
            .args(["restore", "--target-timeline", &timeline]);
        restore.arg("--to").arg(&to).succeed();
        let copy = Cluster::open(self.major, &to)
            .option("synchronous_standby_names", "")
            .without_fsync()
            .promoted();
        let left = rows(&copy.client());
        for ledger in ledgers {
            let lost = missing(ledger, found).into_iter().collect();
            check(
                &Ledger {
                    acknowledged: lost,
                    client: ledger.client,
                    tried: u64::MAX,
                },
                &left,
            );
        }
        drop(copy);
        std::fs::remove_dir_all(&to).unwrap();
    }
}
