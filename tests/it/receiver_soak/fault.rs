//! The failures in a round of the campaign. Each kind proves that it happened.

use std::io::Write as _;
use std::time::Duration;

use rustix::process::Signal;

use super::{Campaign, received};
use crate::common::proxy::Way;
use crate::common::random::Random;
use crate::common::{Running, Stop};

/// An event on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Reset,
    /// It ends after so many more bytes of WAL, or of the messages to the server.
    Cut(Way, u64),
    /// It ends inside a message.
    Truncate,
    /// Half-open: neither side hears anything any more, and neither gets an error.
    Stall,
    /// Everything comes late for a while, then the connection is reset.
    Delay(Duration),
    /// The server cannot be reached for a while.
    Refuse,
}

/// A failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillReceiver,
    KillPrimary,
    Network(Network),
    /// The power of the machine that receives: what was not synced is gone.
    Power,
}

impl Fault {
    /// The faults of a whole campaign: the power fails in every third round; of all others each comes once before any comes again.
    pub fn deck(rounds: usize, random: &mut Random) -> Vec<Fault> {
        let mut others = Vec::new();
        (0..rounds)
            .map(|round| {
                if round % 3 == 2 {
                    return Fault::Power;
                }
                if others.is_empty() {
                    others = Fault::others(random);
                }
                others.swap_remove(random.below(others.len()))
            })
            .collect()
    }

    fn others(random: &mut Random) -> Vec<Fault> {
        let delay = Duration::from_millis(20 + random.below(80) as u64);
        let mut all: Vec<Fault> = [
            Network::Reset,
            Network::Cut(Way::ToClient, random.below(200_000) as u64),
            Network::Cut(Way::ToServer, random.below(200) as u64),
            Network::Truncate,
            Network::Stall,
            Network::Delay(delay),
            Network::Refuse,
        ]
        .map(Fault::Network)
        .into();
        all.extend([Fault::KillReceiver, Fault::KillPrimary, Fault::KillPrimary]);
        all
    }

    pub fn name(self) -> &'static str {
        match self {
            Fault::KillReceiver => "receiver killed",
            Fault::KillPrimary => "primary killed",
            Fault::Power => "power cut",
            Fault::Network(Network::Reset) => "connection reset",
            Fault::Network(Network::Cut(..)) => "connection cut",
            Fault::Network(Network::Truncate) => "message truncated",
            Fault::Network(Network::Stall) => "connection half-open",
            Fault::Network(Network::Delay(_)) => "network slow",
            Fault::Network(Network::Refuse) => "network away",
        }
    }

    /// Lets it happen, and returns when it has and the broken part was started anew.
    pub fn strike(self, campaign: &mut Campaign) {
        match self {
            Fault::KillReceiver => {
                kill(&mut campaign.receiver);
                prove_acknowledged(campaign);
            }
            Fault::KillPrimary => {
                let before = campaign.cluster.pid();
                campaign.cluster.stop(Stop::Immediate);
                campaign.cluster.start();
                assert_ne!(campaign.cluster.pid(), before);
            }
            Fault::Power => {
                cut_power(campaign);
                prove_acknowledged(campaign);
            }
            Fault::Network(network) => network.strike(campaign),
        }
    }
}

impl Network {
    fn strike(self, campaign: &mut Campaign) {
        let before = campaign.proxy.counts();
        // A connection must be there for something to happen to it.
        campaign.wait("the receiver is connected", |c| {
            c.proxy.open_connections() > 0
        });
        match self {
            Network::Reset => campaign.proxy.reset(),
            Network::Cut(way, bytes) => campaign.proxy.cut_after(way, bytes),
            Network::Truncate => campaign.proxy.truncate(Way::ToClient, 64),
            Network::Stall => {
                campaign.proxy.stall(Way::ToClient);
                campaign.proxy.stall(Way::ToServer);
            }
            Network::Delay(delay) => {
                campaign.proxy.delay(Way::ToClient, delay);
                campaign.proxy.delay(Way::ToServer, delay);
                campaign.wait("pieces are late", |c| {
                    c.proxy.counts().delayed >= before.delayed + 10
                });
                campaign.proxy.reset();
            }
            Network::Refuse => {
                campaign.proxy.refuse(true);
                campaign.proxy.reset();
                campaign.wait("a connection is refused", |c| {
                    c.proxy.counts().refused > before.refused
                });
            }
        }
        campaign.wait(&format!("{self:?} has happened"), |c| {
            let now = c.proxy.counts();
            let has_happened = match self {
                Network::Reset | Network::Delay(_) => now.resets > before.resets,
                Network::Refuse => now.refused > before.refused,
                Network::Cut(..) => now.cuts > before.cuts,
                Network::Truncate => now.truncated > before.truncated,
                Network::Stall => now.stalled > before.stalled,
            };
            // The connection that was there may have ended by itself just before: then it comes to the next one.
            match self {
                _ if has_happened => {}
                Network::Reset | Network::Delay(_) => c.proxy.reset(),
                Network::Stall => {
                    c.proxy.stall(Way::ToClient);
                    c.proxy.stall(Way::ToServer);
                }
                Network::Cut(..) | Network::Truncate | Network::Refuse => {}
            }
            has_happened
        });
        campaign.proxy.calm();
        campaign.wait("the receiver is connected again", |c| {
            c.proxy.counts().connections > before.connections
        });
    }
}

/// SIGKILL, and nothing of the process is left when this returns.
pub fn kill(receiver: &mut Option<Running>) {
    let receiver = receiver.take().expect("the receiver runs");
    let run = receiver.ended_by(Signal::KILL);
    assert_eq!(run.code(), 128 + 9, "it had ended before: {run}");
}

/// The power of journal and repository fails under the receiver, and comes back.
pub fn cut_power(campaign: &mut Campaign) {
    let unsynced = campaign.disk.path().join("unsynced");
    let mut file = std::fs::File::create(&unsynced).unwrap();
    file.write_all(&[7; 4096]).unwrap();
    campaign.disk.shut_down();
    drop(file);
    // A machine without power runs nothing; the process sees errors for a moment at most.
    let receiver = campaign.receiver.take().expect("the receiver runs");
    receiver.ended_by(Signal::KILL);
    campaign.disk.restore_power();
    assert!(
        !unsynced.exists() || std::fs::read(&unsynced).unwrap() != [7; 4096],
        "what was not synced outlived the power cut"
    );
}

/// Starts the receiver without its server, and waits until all WAL that was reported as safe has come out of the
/// journal. The server would give lost bytes a second time, and nobody would notice that they had been acknowledged.
fn prove_acknowledged(campaign: &mut Campaign) {
    let mut acknowledged = String::new();
    campaign.wait("the server has noticed", |c| {
        let rows = c.cluster.sql(
            "select restart_lsn from pg_replication_slots where slot_name = 'pitr' and not active and restart_lsn is not null",
        );
        let told = rows.first().and_then(|row| row[0].clone());
        acknowledged = told.unwrap_or_default();
        !acknowledged.is_empty()
    });
    campaign.proxy.refuse(true);
    campaign.receive(&[]);
    received::wait_shipped(campaign, &acknowledged);
    campaign.proxy.calm();
}
