//! The campaign for what the receiver has acknowledged: clients commit in synchronous mode while receiver, primary, network and power
//! fail. In the end the primary is destroyed, and everything that was acknowledged comes back.
//!
//! | file | what it is |
//! |---|---|
//! | `load.rs` | clients that remember what was acknowledged to them |
//! | `fault.rs` | what happens in a round, and the proof that it happened |
//! | `extras.rs` | what long runs have besides: archiving into the same repository, a standby that takes over |
//! | `received.rs` | the received WAL against the primary's pg_wal, byte for byte |
//!
//! `SOAK_SEED` repeats a run as far as concurrency allows, `SOAK_ROUNDS` sets how many rounds it has (`make soak-short`: 50, `make soak`:
//! 1 000), `SOAK_MAJOR` the server. Seeds differ in the major and in what acknowledges, the journal or the repository; of the longer runs also in
//! whether `archive_command` stores the same WAL beside the receiver, and whether a standby takes over in the middle. A longer run that fails keeps
//! its folders.

mod extras;
mod fault;
pub mod load;
mod received;

use std::time::{Duration, Instant};

use crate::common::mount::PowerDisk;
use crate::common::proxy::Proxy;
use crate::common::random::Random;
use crate::common::reception::{self, lsn};
use crate::common::{Cluster, PATIENCE, Running, Sandbox, Site, Stop, number};
use extras::Extras;
use fault::Fault;
use load::{Ledger, Load};

/// Rounds of the run that is part of the tests.
const ROUNDS: usize = 15;
/// Commits that are acknowledged after every fault before the next comes.
const COMMITS_PER_ROUND: u64 = 40;
/// For what takes as long as the campaign has made WAL.
const AN_HOUR: Duration = Duration::from_secs(3600);

/// Everything that fails, and what watches it.
struct Campaign {
    cluster: Cluster,
    site: Site,
    proxy: Proxy,
    /// Journal and repository: both go when the power does.
    disk: PowerDisk,
    receiver: Option<Running>,
    extras: Extras,
    random: Random,
}

impl Campaign {
    fn new(
        major: u32,
        long: bool,
        acknowledge: &str,
        mut extras: Extras,
        random: Random,
    ) -> Campaign {
        let mut builder = Cluster::small(major)
            // Kept to the end, to be compared with what was received.
            .config("wal_keep_size", "64GB")
            .config("wal_sender_timeout", "3s")
            .config("synchronous_standby_names", "")
            .config("max_wal_size", "64MB");
        if long {
            builder = builder.on_disk();
        }
        let cluster = extras.prepare(builder).start();
        let disk = PowerDisk::new(if long { 8192 } else { 512 });
        let site = Site::on(&cluster, &disk.path().join("repository"));
        let proxy = Proxy::to(cluster.port());
        reception::configure(&site, &proxy.conninfo(), &disk.path().join("journal"));
        // The receiver's table is the last of the file.
        site.add(&format!("acknowledge = \"{acknowledge}\"\n"));
        cluster.sql(load::TABLES);
        extras.set_up(&cluster, &site, &proxy);
        let mut campaign = Campaign {
            cluster,
            site,
            proxy,
            disk,
            receiver: None,
            extras,
            random,
        };
        campaign.receive(&["--create-slot"]);
        campaign.backup();
        let waited_for = campaign.extras.waited_for();
        campaign
            .cluster
            .alter_system("synchronous_standby_names", waited_for);
        campaign.cluster.reload();
        campaign
    }

    /// Starts the receiver.
    fn receive(&mut self, more: &[&str]) {
        assert!(self.receiver.is_none(), "it runs already");
        // It lives as long as its part of the campaign.
        let program = self.site.pitr().arg("receive").args(more);
        self.receiver = Some(program.timeout(Duration::from_secs(24 * 3600)).spawn());
    }

    fn backup(&mut self) {
        self.wait("the receiver streams", |c| c.is_streaming());
        self.site.pitr().words("backup --wal-wait 2m").succeed();
    }

    fn is_streaming(&self) -> bool {
        let sql = "select count(*) from pg_stat_replication where state = 'streaming' and application_name = 'pitr'";
        self.cluster.value(sql) == "1"
    }

    /// Waits for something; the receiver must not end meanwhile.
    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Campaign) -> bool) {
        let end = Instant::now() + 3 * PATIENCE;
        while !done(self) {
            let over = Instant::now() > end;
            let ended = self.receiver.as_mut().is_some_and(Running::is_done);
            if over || ended {
                let said = self.receiver.as_ref().map(Running::stderr);
                let said = said.unwrap_or_default();
                let log = self.cluster.log();
                let tail = |text: &str| {
                    let lines: Vec<_> = text.lines().rev().take(40).collect();
                    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
                };
                let status = reception::status(&self.disk.path().join("journal"));
                panic!(
                    "{} until {what}\n--- status {status:?}\n--- receiver\n{}\n--- server\n{}",
                    if ended {
                        "the receiver ended"
                    } else {
                        "waited in vain"
                    },
                    tail(&said),
                    tail(&log)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the clients get answers again.
    fn wait_for_commits(&mut self, load: &Load) {
        let before = load.acknowledged();
        self.wait("commits are acknowledged", |_| {
            load.acknowledged() >= before + COMMITS_PER_ROUND
        });
    }

    fn round(&mut self, fault: Fault, load: &Load) {
        // Any moment of what the receiver does: it syncs, uploads and starts files several times in this span.
        let moment = Duration::from_micros(self.random.below(400_000) as u64);
        std::thread::sleep(moment);
        fault.strike(self);
        self.wait_for_commits(load);
    }
}

/// Rows that are there, by client.
fn rows(cluster: &Cluster) -> Vec<std::collections::BTreeSet<u64>> {
    let mut found = vec![std::collections::BTreeSet::new(); load::CLIENTS as usize];
    for row in cluster.sql("select client, number from ledger") {
        let value = |at: usize| row[at].as_deref().unwrap().parse::<u64>().unwrap();
        found[value(0) as usize].insert(value(1));
    }
    found
}

/// Every acknowledged row is there, and none that was never tried.
fn check_rows(cluster: &Cluster, ledgers: &[Ledger]) {
    for (client, (ledger, found)) in ledgers.iter().zip(rows(cluster)).enumerate() {
        let lost: Vec<_> = ledger.acknowledged.difference(&found).collect();
        assert!(
            lost.is_empty(),
            "client {client}: {} acknowledged rows of {} are lost, from {:?}",
            lost.len(),
            ledger.acknowledged.len(),
            lost.first()
        );
        assert!(found.last().is_none_or(|last| *last < ledger.tried));
    }
}

fn campaign(major: u32, rounds: usize, seed: u64) {
    let is_longer = rounds > ROUNDS;
    // Six seeds on for the majors, then the other way to acknowledge.
    let acknowledge = ["journal", "repository"][usize::from(seed / 6 % 2 == 1)];
    println!(
        "soak: PostgreSQL {major}, acknowledged by {acknowledge}, SOAK_SEED={seed} SOAK_ROUNDS={rounds} SOAK_MAJOR={major}"
    );
    say("begun");
    let mut random = Random::new(seed);
    // The draws of the short run are as they were.
    let of_campaign = random.fork();
    let extras = match is_longer {
        true => Extras::draw(&mut random, rounds > 100),
        false => Extras::default(),
    };
    say(&format!("{extras}"));
    let mut campaign = Campaign::new(major, rounds > 100, acknowledge, extras, of_campaign);
    if is_longer {
        for sandbox in [
            campaign.cluster.sandbox(),
            campaign.site.sandbox(),
            campaign.disk.sandbox(),
        ] {
            sandbox.keep_on_failure();
        }
    }
    let load = Load::start(&campaign.cluster, &mut random);
    campaign.wait_for_commits(&load);
    say("a backup is there, and commits wait for the receiver");
    let mut faults = std::collections::BTreeMap::<&str, usize>::new();
    for (number, fault) in Fault::deck(rounds, &mut random).into_iter().enumerate() {
        if number == rounds / 2 {
            extras::fail_over(&mut campaign, &load);
        }
        campaign.round(fault, &load);
        *faults.entry(fault.name()).or_default() += 1;
        if is_longer && number % 10 == 9 {
            say(&format!("round {}", number + 1));
        }
    }
    say(&format!("{faults:?}"));
    let (acknowledged, broken) = (load.acknowledged(), load.broken());
    let ledgers = load.stop();
    println!("soak: {acknowledged} commits acknowledged, {broken} broken off");
    assert!(broken > 0, "no fault met a commit");
    campaign.end(&ledgers);
}

/// Reports what was reached, and when.
fn say(what: &str) {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let began = BEGAN.get_or_init(Instant::now);
    println!("soak: {:6.1} s: {what}", began.elapsed().as_secs_f64());
}

impl Campaign {
    /// The primary is lost, and the receiver's machine loses its power; what is in the journal still reaches the repository, and everything
    /// comes back.
    fn end(mut self, ledgers: &[Ledger]) {
        let mut end = String::new();
        self.wait("everything is received", |c| {
            let rows = c.cluster.sql(
                "select pg_current_wal_flush_lsn(), flush_lsn >= pg_current_wal_insert_lsn() from pg_stat_replication where application_name = 'pitr'",
            );
            rows.first().is_some_and(|row| {
                end = row[0].clone().unwrap_or_default();
                row[1].as_deref() == Some("t")
            })
        });
        self.cluster.stop(Stop::Immediate);
        fault::cut_power(&mut self);
        say("everything is received");
        // The server is gone for good; a receiver that is started brings away what the journal holds.
        self.receive(&[]);
        received::wait_shipped(&mut self, &end);
        let receiver = self.receiver.take().expect("it runs");
        receiver.ended_by(rustix::process::Signal::TERM).success();
        say("the journal is in the repository");
        self.extras.compare(&self.site);
        let timeline = self.extras.timeline();
        received::compare(&self.site, &self.cluster, timeline, lsn(&end));
        self.extras.check_archiving(&self.site, &self.cluster);
        self.site.pitr().arg("verify").timeout(AN_HOUR).succeed();
        std::fs::remove_dir_all(self.cluster.pgdata()).unwrap();
        let folder = Sandbox::new("soak-restored");
        let to = folder.join("data");
        say("verified");
        self.site.pitr().restore_to(&to).timeout(AN_HOUR).succeed();
        let restored = Cluster::open(self.cluster.major(), &to)
            .option("synchronous_standby_names", "")
            .without_fsync()
            .promoted();
        check_rows(&restored, ledgers);
        say("restored, with every acknowledged row");
    }
}

#[test]
fn nothing_acknowledged_is_lost_whatever_fails() {
    crate::require_root!("nothing_acknowledged_is_lost_whatever_fails");
    let rounds = number("SOAK_ROUNDS").map_or(ROUNDS, |n| usize::try_from(n).unwrap());
    // The same every time unless a long run asks for another; then each seed has its major.
    let (seed, major) = match number("SOAK_SEED") {
        Some(seed) => (seed, 13 + seed % 6),
        None => (20_261_124, 17),
    };
    let major = number("SOAK_MAJOR").unwrap_or(major);
    let major = u32::try_from(major).unwrap();
    campaign(major, rounds, seed);
}
