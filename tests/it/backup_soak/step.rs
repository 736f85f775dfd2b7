//! The events that lie between two moments.

use std::time::Duration;

use rustix::process::Signal;

use super::world::World;
use crate::common::random::Random;
use crate::common::{PATIENCE, Program, Run, keep_one};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    FullLocal,
    FullStream,
    IncrementalLocal,
    IncrementalStream,
    /// A backup of any kind is killed.
    Killed,
    /// The server dies under load, without a backup.
    Crash,
    /// The server dies while a backup runs.
    CrashUnderBackup,
    /// The repository is not there for a moment.
    Away,
    Compact,
    Expire,
    ExpireKilled,
    VerifySome,
}

impl Kind {
    /// The first steps of a history are those that others build upon.
    pub fn draw(random: &mut Random, number: u64) -> Kind {
        use Kind::*;
        match number {
            0 => *random.pick(&[FullLocal, FullStream]),
            1 => *random.pick(&[IncrementalLocal, IncrementalLocal, IncrementalStream]),
            _ => *random.pick(&[
                FullLocal,
                FullStream,
                IncrementalLocal,
                IncrementalLocal,
                IncrementalLocal,
                IncrementalLocal,
                IncrementalStream,
                IncrementalStream,
                Killed,
                Killed,
                Crash,
                CrashUnderBackup,
                Away,
                Compact,
                Expire,
                Expire,
                ExpireKilled,
                VerifySome,
            ]),
        }
    }

    fn backup(self) -> Option<[&'static str; 3]> {
        match self {
            Kind::FullLocal => Some(["--full", "--method", "local"]),
            Kind::FullStream => Some(["--full", "--method", "stream"]),
            Kind::IncrementalLocal => Some(["--incremental", "--method", "local"]),
            Kind::IncrementalStream => Some(["--incremental", "--method", "stream"]),
            _ => None,
        }
    }
}

const BACKUPS: [Kind; 4] = [
    Kind::FullLocal,
    Kind::FullStream,
    Kind::IncrementalLocal,
    Kind::IncrementalStream,
];

/// A backup that takes long enough for much to change.
fn backup(world: &mut World, kind: Kind) -> Program {
    let kind = kind.backup().expect("a kind of backup");
    let rate = *world.random.pick(&["8MiB", "16MiB", "1GiB"]);
    let common = ["backup", "--json", "--wal-wait", "10m", "--max-rate", rate];
    let program = world.site.pitr().args(common).args(kind);
    program.timeout(20 * PATIENCE)
}

pub fn take(world: &mut World, kind: Kind) {
    match kind {
        Kind::FullLocal | Kind::FullStream | Kind::IncrementalLocal | Kind::IncrementalStream => {
            let program = backup(world, kind);
            let storm = world.storm();
            let mut run = program.run();
            // The storm creates tablespaces, and a local backup refuses one that comes while it begins.
            if run.stdout.contains("was created while the backup began") {
                run = backup(world, kind).run();
            }
            let changes = storm.end();
            let run = run.success();
            check_kind(&run, kind);
            println!(
                "backup soak {}: {} beside {changes} changes",
                world.major,
                run.json()["id"]
            );
        }
        Kind::Killed => {
            let kind = *world.random.pick(&BACKUPS);
            let program = backup(world, kind);
            let storm = world.storm();
            let running = program.spawn();
            let time = 50 + world.random.next() % 1500;
            std::thread::sleep(Duration::from_millis(time));
            running.signal(Signal::KILL);
            let run = running.wait();
            storm.end();
            world.killed.extend(claimed(world));
            println!(
                "backup soak {}: {kind:?} killed: {}",
                world.major, run.status
            );
        }
        Kind::Crash => {
            let storm = world.storm();
            std::thread::sleep(Duration::from_millis(500));
            world.crash();
            storm.end();
        }
        Kind::CrashUnderBackup => {
            let kind = *world.random.pick(&BACKUPS);
            let program = backup(world, kind);
            let storm = world.storm();
            let running = program.spawn();
            std::thread::sleep(Duration::from_millis(200 + world.random.next() % 800));
            world.crash();
            let run = running.wait();
            storm.end();
            println!(
                "backup soak {}: {kind:?} of a server that died: {}",
                world.major, run.status
            );
        }
        Kind::Away => {
            let (here, away) = (
                world.site.repository().to_owned(),
                world.site.sandbox().join("away"),
            );
            let storm = world.storm();
            std::fs::rename(&here, &away).unwrap();
            std::thread::sleep(Duration::from_millis(700));
            std::fs::rename(&away, &here).unwrap();
            storm.end();
        }
        Kind::Compact => {
            world.storm_for(Duration::from_millis(300));
            let visible = (1 + world.random.below(100)).to_string();
            let compact = ["repo", "compact", "--confirm", "--visible", &visible];
            let run = world.site.pitr().args(compact).timeout(10 * PATIENCE).run();
            run.success();
        }
        Kind::Expire => {
            world.storm_for(Duration::from_millis(300));
            world.site.pitr().arg("verify").run().success();
            let expire = expire(world);
            let run = expire.run();
            // A killed backup may claim WAL that it cannot name any more: the operator says that it is gone.
            if run.status.code() == Some(6)
                && run.stderr.contains("has not said yet where its WAL begins")
            {
                release_killed(world);
                expire.run().success();
            } else {
                run.success();
            }
        }
        Kind::ExpireKilled => {
            world.storm_for(Duration::from_millis(300));
            world.site.pitr().arg("verify").run().success();
            let running = expire(world).spawn();
            std::thread::sleep(Duration::from_millis(world.random.next() % 150));
            running.signal(Signal::KILL);
            running.wait();
        }
        Kind::VerifySome => {
            world.storm_for(Duration::from_millis(800));
            let verify = ["verify", "--since", "last", "--max-bytes", "20MB"];
            world.site.pitr().args(verify).run().success();
        }
    }
}

/// The backups that something holds.
fn claimed(world: &World) -> Vec<String> {
    let run = world.site.pitr().args(["repo", "claims", "--json"]).run();
    let json = run.success().json();
    let claims = json["claims"].as_array().unwrap();
    let id = |claim: &serde_json::Value| claim["backup"].as_str().unwrap().to_owned();
    claims.iter().map(id).collect()
}

fn release_killed(world: &World) {
    let claimed = claimed(world);
    for id in world.killed.iter().filter(|id| claimed.contains(id)) {
        let release = ["repo", "claims", "--confirm", "--release", id];
        world.site.pitr().args(release).run().success();
        println!("backup soak {}: {id} released", world.major);
    }
}

/// Deletes at once what the newest backups do not need.
fn expire(world: &mut World) -> Program {
    let keep = 1 + world.random.below(5);
    let mut args = keep_one(&["--grace", "0s", "--confirm", "--confirm-burst", "--quiet"]);
    let keep = keep.to_string();
    let at = args.iter().position(|a| *a == "1").expect("its default");
    args[at] = &keep;
    world.site.pitr().args(&args).timeout(PATIENCE)
}

/// An incremental that became a full one would test nothing.
fn check_kind(run: &Run, kind: Kind) {
    let wanted = match kind {
        Kind::FullLocal | Kind::FullStream => "full",
        _ => "incremental",
    };
    assert_eq!(run.json()["kind"], wanted, "{run}");
}
