//! The events that lie between two moments.

use std::time::Duration;

use rustix::process::Signal;

use super::home::{Home, READER};
use super::source::{self, Source, backup, under_storm};
use super::world::World;
use crate::common::random::Random;
use crate::common::s3::Fault;
use crate::common::{PATIENCE, Program, Run, keep_one};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    FullLocal,
    FullStream,
    Incremental(Source),
    /// A backup of any kind is killed.
    Killed,
    /// The server dies under load, without a backup.
    Crash,
    /// The server dies while a backup runs.
    CrashUnderBackup,
    /// The repository is not there for a moment.
    Away,
    /// The repository gets full, or answers some requests with errors, while a backup runs.
    Disturbed,
    Compact,
    Expire,
    ExpireKilled,
    /// Backups are deleted while one is taken.
    ExpireBeside,
    VerifySome,
}

impl Kind {
    /// The first steps of a history are those that others build upon.
    pub fn draw(random: &mut Random, number: u64, home: &Home) -> Kind {
        use Kind::*;
        use Source::*;
        let kind = match number {
            0 => *random.pick(&[FullLocal, FullStream]),
            1 => *random.pick(&[Index, Unarchived, Replication].map(Incremental)),
            _ => *random.pick(&[
                FullLocal,
                FullStream,
                Incremental(Index),
                Incremental(Index),
                Incremental(Decoded),
                Incremental(Unarchived),
                Incremental(Hashes),
                Incremental(Kept),
                Incremental(Replication),
                Incremental(Replication),
                Killed,
                Killed,
                Crash,
                CrashUnderBackup,
                Away,
                Disturbed,
                Disturbed,
                Compact,
                Expire,
                ExpireKilled,
                ExpireBeside,
                VerifySome,
            ]),
        };
        match kind {
            // The test rewrites plain files alone.
            Incremental(Decoded) if !home.is_directory() || home.is_encrypted => {
                Incremental(Hashes)
            }
            Incremental(Kept) if !home.is_encrypted => Incremental(Index),
            Disturbed if home.is_directory() && !home.can_get_full() => Away,
            kind => kind,
        }
    }
}

const FULL_LOCAL: [&str; 3] = ["--full", "--method", "local"];
const FULL_STREAM: [&str; 3] = ["--full", "--method", "stream"];
/// Backups of every kind.
const BACKUPS: [[&str; 3]; 4] = [
    FULL_LOCAL,
    FULL_STREAM,
    ["--incremental", "--method", "local"],
    ["--incremental", "--method", "stream"],
];

/// A backup of some kind.
fn any_backup(world: &mut World) -> ([&'static str; 3], Program) {
    let kind = *world.random.pick(&BACKUPS);
    (kind, backup(world, READER, &kind))
}

fn take_full(world: &mut World, kind: [&str; 3]) {
    let program = backup(world, READER, &kind);
    let run = under_storm(world, &program).success();
    assert_eq!(run.json()["kind"], "full", "{run}");
}

/// Takes a step. Whether it came to something: a kill, a crash or a fault may come too late.
pub fn take(world: &mut World, kind: Kind) -> bool {
    match kind {
        Kind::FullLocal => take_full(world, FULL_LOCAL),
        Kind::FullStream => take_full(world, FULL_STREAM),
        Kind::Incremental(source) => source::take(world, source),
        Kind::Killed => {
            let (kind, program) = any_backup(world);
            let storm = world.storm();
            let running = program.spawn();
            let time = 50 + world.random.next() % 1500;
            std::thread::sleep(Duration::from_millis(time));
            let run = running.ended_by(Signal::KILL);
            storm.end();
            world.killed.extend(claimed(world));
            println!(
                "backup soak {}: {kind:?} killed: {}",
                world.major, run.status
            );
            return was_killed(&run);
        }
        Kind::Crash => {
            let storm = world.storm();
            std::thread::sleep(Duration::from_millis(500));
            world.crash();
            storm.end();
        }
        Kind::CrashUnderBackup => {
            let (kind, program) = any_backup(world);
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
            return !run.is_success();
        }
        Kind::Away => {
            let storm = world.storm();
            world.home.away(Duration::from_millis(700));
            storm.end();
        }
        Kind::Disturbed => return disturbed(world),
        Kind::Compact => {
            world.storm_for(Duration::from_millis(300));
            let visible = (1 + world.random.below(100)).to_string();
            let compact = ["repo", "compact", "--confirm", "--visible", &visible];
            let run = world.home.pitr().args(compact).timeout(10 * PATIENCE).run();
            run.success();
        }
        Kind::Expire => {
            world.storm_for(Duration::from_millis(300));
            world.home.pitr().arg("verify").succeed();
            let expire = expire(world);
            let run = expire.run();
            // A killed backup may claim WAL that it cannot name any more: the operator says that it is gone.
            if is_held_back(&run) {
                release_killed(world);
                expire.succeed();
            } else {
                run.success();
            }
        }
        Kind::ExpireBeside => expire_beside(world),
        Kind::ExpireKilled => return expire_killed(world),
        Kind::VerifySome => {
            world.storm_for(Duration::from_millis(800));
            let verify = ["verify", "--since", "last", "--max-bytes", "20MB"];
            world.home.pitr().args(verify).succeed();
        }
    }
    true
}

fn was_killed(run: &Run) -> bool {
    run.code() == 128 + Signal::KILL.as_raw()
}

/// Nothing proves the marks of a host without keys: until that host deletes the rest, its backups count as lost.
fn expire_killed(world: &mut World) -> bool {
    world.storm_for(Duration::from_millis(300));
    world.home.pitr().arg("verify").succeed();
    let expire = expire(world);
    let running = expire.spawn();
    std::thread::sleep(Duration::from_millis(world.random.next() % 150));
    let killed = running.ended_by(Signal::KILL);
    let verify = world.home.pitr().arg("verify").run();
    if !verify.is_success() {
        assert!(world.home.is_encrypted, "{verify}");
        verify.expect_stdout("A mark for deletion that nothing proves");
        if is_held_back(&expire.run()) {
            release_killed(world);
            expire.succeed();
        }
        world.home.pitr().arg("verify").succeed();
    }
    was_killed(&killed)
}

/// The repository fails while a backup is taken, and while the server archives into it.
fn disturbed(world: &mut World) -> bool {
    let (kind, program) = any_backup(world);
    let storm = world.storm();
    let running = program.spawn();
    let fired = match world.home.is_directory() {
        true => {
            std::thread::sleep(Duration::from_millis(world.random.next() % 600));
            world.home.leave_free(Some(world.random.next() % (1 << 20)));
            std::thread::sleep(Duration::from_millis(1500));
            world.home.leave_free(None);
            None
        }
        false => Some(faults(world)),
    };
    let run = running.wait();
    world.home.heal();
    storm.end();
    let fired = fired.map(|all| all.iter().map(crate::common::s3::Fired::times).sum::<u64>());
    println!(
        "backup soak {}: {kind:?} beside faults ({fired:?} of requests): {}",
        world.major, run.status
    );
    // Nothing is left to guess: it is committed, or says why not.
    assert!(run.is_success() || run.stdout.contains("\"code\""), "{run}");
    fired.is_some_and(|times| times > 0) || !run.is_success()
}

/// Faults of several requests to come.
fn faults(world: &mut World) -> Vec<crate::common::s3::Fired> {
    let all = [
        Fault::Error(503, "SlowDown"),
        Fault::Error(500, "InternalError"),
        Fault::ErrorIn200("InternalError"),
        Fault::NoAnswer,
        Fault::Reset,
        Fault::Truncated(100),
        Fault::Flipped(40),
    ];
    let count = 1 + world.random.below(4);
    let one = |world: &mut World| {
        let fault = world.random.pick(&all).clone();
        let (skip, times) = (world.random.next() % 60, 1 + world.random.next() % 12);
        world.home.disturb(skip, times, fault)
    };
    (0..count).map(|_| one(world)).collect()
}

/// Backups are deleted, again and again, while one is taken.
fn expire_beside(world: &mut World) {
    world.home.pitr().arg("verify").succeed();
    let (kind, program) = any_backup(world);
    let storm = world.storm();
    let mut running = program.spawn();
    let mut counts = [0, 0];
    while !running.is_done() {
        let run = expire(world).run();
        let is_held = is_held_back(&run);
        assert!(is_held || run.is_success(), "{run}");
        counts[usize::from(is_held)] += 1;
    }
    let run = running.wait();
    let run = match run.stdout.contains("was created while the backup began") {
        true => program.run(),
        false => run,
    };
    storm.end();
    run.success();
    println!(
        "backup soak {}: {kind:?} beside {} runs of expire, {} of them held back",
        world.major,
        counts[0] + counts[1],
        counts[1]
    );
}

/// Whether deletion waits for a backup that has not said what it needs.
fn is_held_back(run: &Run) -> bool {
    run.status.code() == Some(6) && run.stderr.contains("has not said yet where its WAL begins")
}

/// The backups that something holds.
fn claimed(world: &World) -> Vec<String> {
    let run = world.home.pitr().words("repo claims --json").run();
    let json = run.success().json();
    let claims = json["claims"].as_array().unwrap();
    let id = |claim: &serde_json::Value| claim["backup"].as_str().unwrap().to_owned();
    claims.iter().map(id).collect()
}

fn release_killed(world: &World) {
    let claimed = claimed(world);
    for id in world.killed.iter().filter(|id| claimed.contains(id)) {
        let release = ["repo", "claims", "--confirm", "--release", id];
        world.home.pitr().args(release).succeed();
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
    let program = match world.random.one_in(2) {
        true => world.home.janitor(),
        false => world.home.pitr(),
    };
    program.args(&args).timeout(PATIENCE)
}
