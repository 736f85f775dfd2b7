//! The failures in a round of the campaign. Each kind proves that it happened.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::History;
use crate::common::fault::{self, Faulty};
use crate::common::proxy::Way;
use crate::common::random::Random;
use crate::common::{files_below, wait_until};
use crate::redis::receive::{Moment, confirm};
use crate::redis::writer::Writer;

/// A failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillReceiver,
    /// It is held for longer than it may be silent.
    StopReceiver,
    /// It is away while more is written than the server's backlog has.
    LongAbsence,
    /// It is held while more is written than the server keeps for a replica.
    Overrun,
    /// Its disk takes nothing.
    FullDisk,
    SlowDisk,
    /// The repository cannot be reached.
    NoRepository,
    KillServer,
    StopServer,
    FullServerDisk,
    SlowServerDisk,
    Reset,
    Cut,
    Stall,
    Refuse,
    Throttle,
    Delay,
    /// The replica takes over from the master that died.
    Failover,
    /// A replica takes over that never had the last writes which the receiver confirmed.
    LaggingFailover,
}

const OF_ONE_SERVER: [Fault; 17] = [
    Fault::KillReceiver,
    Fault::StopReceiver,
    Fault::LongAbsence,
    Fault::Overrun,
    Fault::FullDisk,
    Fault::SlowDisk,
    Fault::NoRepository,
    Fault::KillServer,
    Fault::StopServer,
    Fault::FullServerDisk,
    Fault::SlowServerDisk,
    Fault::Reset,
    Fault::Cut,
    Fault::Stall,
    Fault::Refuse,
    Fault::Throttle,
    Fault::Delay,
];

/// How long most of them last.
const LASTS: Duration = Duration::from_millis(2500);

impl Fault {
    /// The faults of a history: each comes once before any comes again.
    pub fn deck(rounds: u64, has_replica: bool, random: &mut Random) -> Vec<Fault> {
        let mut left = Vec::new();
        (0..rounds)
            .map(|_| {
                if left.is_empty() {
                    left.extend(OF_ONE_SERVER);
                    if has_replica {
                        left.extend([Fault::Failover, Fault::LaggingFailover]);
                    }
                }
                left.swap_remove(random.below(left.len()))
            })
            .collect()
    }

    /// Whether bytes are lost to the receiver; none where that is up to the server: a backlog grows beyond its size for a while.
    pub fn is_gap(self) -> Option<bool> {
        match self {
            Fault::KillServer => Some(true),
            Fault::LongAbsence | Fault::Overrun => None,
            _ => Some(false),
        }
    }

    pub fn strike(self, h: &mut History, writer: &Writer) {
        match self {
            Fault::KillReceiver => {
                h.kill_receiver();
                h.receive();
            }
            Fault::StopReceiver => held(h, |_| std::thread::sleep(LASTS)),
            Fault::LongAbsence => {
                h.kill_receiver();
                overwrite(h, 2 * super::BACKLOG_BYTES);
                h.receive();
            }
            Fault::Overrun => {
                held(h, |h| {
                    // Kernels and proxy take some of it.
                    overwrite(h, 10 * super::OUTPUT_BYTES);
                    let end = Instant::now() + LASTS;
                    while Instant::now() < end {
                        h.measure();
                        std::thread::sleep(Duration::from_millis(100));
                    }
                });
            }
            Fault::FullDisk => {
                let fault = fault::Fault::error("pwritev,pwrite64,fallocate,ftruncate", "ENOSPC");
                let pid = h.receiver().pid();
                disturb(h, pid, &fault);
            }
            Fault::SlowDisk => {
                let delay = Duration::from_millis(20 + h.random.below(300) as u64);
                let fault = fault::Fault::delay("fdatasync,fsync", delay);
                let pid = h.receiver().pid();
                disturb(h, pid, &fault);
            }
            Fault::NoRepository => {
                let (here, away) = (h.world.repository(), h.world.sandbox.join("away"));
                std::fs::rename(&here, &away).unwrap();
                let before = writer.count();
                wait_until("writes are confirmed without it", || {
                    writer.count() > before + 5
                });
                std::thread::sleep(LASTS);
                // The receiver may have made a part of it anew.
                let _ = std::fs::remove_dir_all(&here);
                std::fs::rename(&away, &here).unwrap();
            }
            Fault::KillServer => {
                let master = h.master;
                h.servers[master].kill();
                h.servers[master].begin();
                h.follow();
            }
            Fault::StopServer => {
                let pid = h.master().pid();
                signal(pid, Signal::STOP);
                std::thread::sleep(LASTS);
                signal(pid, Signal::CONT);
            }
            Fault::FullServerDisk => {
                let data = h.master().data();
                let mut files = files_below(&data);
                files.retain(|file| file.ends_with(".aof"));
                let fault = fault::Fault::error("write", "ENOSPC");
                let fault = files
                    .iter()
                    .fold(fault, |fault, file| fault.on(data.join(file)));
                disturb(h, h.master().pid(), &fault);
            }
            Fault::SlowServerDisk => {
                let fault = fault::Fault::delay("fdatasync,fsync", Duration::from_millis(700));
                disturb(h, h.master().pid(), &fault);
            }
            Fault::Reset => {
                let before = h.proxy.counts().resets;
                // A connection may have ended by itself just before: then it comes to the next one.
                wait_until("a connection is reset", || {
                    h.proxy.reset();
                    h.proxy.counts().resets > before
                });
            }
            Fault::Cut => {
                let before = h.proxy.counts().cuts;
                let bytes = h.random.below(100_000) as u64;
                h.proxy.cut_after(Way::ToClient, bytes);
                wait_until("the connection ends", || h.proxy.counts().cuts > before);
            }
            Fault::Stall => {
                let before = h.proxy.counts().stalled;
                wait_until("a connection falls silent", || {
                    h.proxy.stall(Way::ToClient);
                    h.proxy.stall(Way::ToServer);
                    h.proxy.counts().stalled > before
                });
                std::thread::sleep(LASTS);
            }
            Fault::Refuse => {
                let before = h.proxy.counts().refused;
                h.proxy.refuse(true);
                h.proxy.reset();
                std::thread::sleep(LASTS);
                wait_until("a connection is refused", || {
                    h.proxy.counts().refused > before
                });
                h.proxy.calm();
            }
            Fault::Throttle => {
                h.proxy.throttle(Way::ToClient, Some(20_000));
                std::thread::sleep(LASTS);
                h.proxy.calm();
            }
            Fault::Delay => {
                h.proxy.delay(Way::ToClient, Duration::from_millis(150));
                h.proxy.delay(Way::ToServer, Duration::from_millis(150));
                std::thread::sleep(LASTS);
                h.proxy.calm();
            }
            Fault::Failover => fail_over(h, writer),
            Fault::LaggingFailover => {
                let replica = h.replica().expect("there is one");
                replica.ask(&["REPLICAOF", "NO", "ONE"]);
                writer.go_to(replica);
                // The receiver alone confirms what the replica never has.
                for round in 0..3 {
                    let lines = format!("SET lagging:{} {round}\n", h.round);
                    confirm(h.master(), &lines, 1);
                }
                std::thread::sleep(Duration::from_millis(400));
                let moment = loop {
                    let before = Moment::offset_of(h.master());
                    let moment = Moment::of(h.master());
                    if moment.offset == before {
                        break moment;
                    }
                };
                h.moments.push(moment);
                fail_over(h, writer);
            }
        }
    }
}

/// The master dies, the replica takes over, and the former master follows it.
fn fail_over(h: &mut History, writer: &Writer) {
    let former = h.master;
    h.servers[former].kill();
    h.master = 1 - former;
    h.master().ask(&["REPLICAOF", "NO", "ONE"]);
    h.proxy.retarget(h.master().port());
    writer.go_to(h.master());
    h.servers[former].begin();
    h.follow();
}

/// Writes so much that is not kept.
fn overwrite(h: &History, bytes: u64) {
    let value = "x".repeat(1 << 20);
    let lines = format!("SET overwritten {value}\n").repeat((bytes >> 20) as usize);
    let run = h.master().cli(&[]).stdin(lines.into_bytes()).run();
    run.success();
}

/// The receiver is held meanwhile.
fn held(h: &mut History, meanwhile: impl FnOnce(&mut History)) {
    h.receiver().signal(Signal::STOP);
    meanwhile(h);
    h.receiver().signal(Signal::CONT);
}

/// Calls of a process fail, or take long, for a while.
fn disturb(h: &History, pid: u32, fault: &fault::Fault) {
    let attached = Faulty::attached(pid, fault);
    let end = Instant::now() + LASTS;
    wait_until("the fault happens", || {
        // Something to be written is there all the while.
        let _ = h.master().cli(&["SET", "disturbed", "1"]).run();
        Instant::now() > end && attached.fired() > 0
    });
    attached.detach();
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
    rustix::process::kill_process(pid.unwrap(), signal).unwrap();
}
