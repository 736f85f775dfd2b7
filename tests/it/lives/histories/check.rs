//! What must be true after each history.



use super::model::State;
use super::rows;
use super::world::{Archived, World, said};
use crate::common::{Cluster, Run, Sandbox};

/// A server whose archiver is refused, and its words.
struct Blocked {
    server: usize,
    words: String,
}

pub fn check(world: &mut World) {
    world.say("check");
    let blocked = settle(world);
    for one in &blocked {
        has_a_way_out(world, one);
    }
    agree(world);
    let backups: Vec<(String, State)> = world
        .backups
        .iter()
        .map(|b| (b.id.clone(), b.state))
        .collect();
    for (id, state) in backups {
        backup_restores(world, &id, state);
    }
    for timeline in timelines(world) {
        timeline_keeps_what_is_safe(world, timeline);
    }
}

/// Every server that runs archives what it has, or says why not.
fn settle(world: &mut World) -> Vec<Blocked> {
    let mut blocked = Vec::new();
    for server in world.primaries() {
        if let Archived::No(code, words) = world.settle(server) {
            world.say(format!("server {server} is refused ({code})"));
            blocked.push(Blocked { server, words });
        }
    }
    blocked
}

/// Nobody stays blocked without a command that helps.
fn has_a_way_out(world: &mut World, blocked: &Blocked) {
    let names = ["pitr wal conflicts", "pitr timeline", "docs/restore.md"];
    assert!(
        names.iter().any(|name| blocked.words.contains(name)),
        "server {} is not told what helps\n{}",
        blocked.server,
        blocked.words
    );
}

/// The commands tell one story.
fn agree(world: &mut World) {
    let (code, verify) = world.json(&["verify"]);
    let (_, info) = world.json(&["info"]);
    let (_, plan) = world.json(&["plan"]);
    let (_, list) = world.json(&["timeline", "list"]);
    let (_, doctor) = world.json(&["doctor"]);
    if std::env::var_os("LIVES_TALK").is_some() {
        eprintln!("verify {code} {verify:#}\ninfo {info:#}\nplan {plan:#}\nlist {list:#}\ndoctor {doctor:#}");
    }
}

/// The numbers of the timelines that the repository has.
fn timelines(world: &World) -> Vec<u64> {
    let (_, list) = world.json(&["timeline", "list"]);
    let all = list["timelines"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|t| t["timeline"].as_u64()).collect()
}

/// A backup that completed is restored to what its server held.
fn backup_restores(world: &mut World, id: &str, state: State) {
    let found = restored(world, &["--backup", id, "--target-immediate"]);
    let found = found.unwrap_or_else(|run| panic!("a good backup is not restored\n{run}"));
    assert_eq!(
        world.lives.rows(found),
        world.lives.rows(state),
        "backup {id} is of another life\n{}",
        world.lives.describe()
    );
}

/// Restored to its end, a timeline holds all that was acknowledged of the life that it leads to.
fn timeline_keeps_what_is_safe(world: &mut World, timeline: u64) {
    let number = timeline.to_string();
    let found = match restored(world, &["--target-timeline", &number]) {
        Ok(found) => found,
        Err(run) => {
            world.say(format!("timeline {timeline} is not restored: {}", said(&run)));
            return;
        }
    };
    world.say(format!("timeline {timeline} leads to {found:?}"));
    let life = found.life;
    if let Some(safe) = world.lives.acknowledged(life) {
        assert!(
            world.lives.is_in(safe, found),
            "of what was acknowledged of life {life} ({safe:?}) something is lost: {found:?}\n{}",
            world.lives.describe()
        );
    }
}

/// Restores, starts, and reads; what `pitr restore` said when it refused.
fn restored(world: &World, args: &[&str]) -> Result<State, Run> {
    let folder = Sandbox::in_memory("restored");
    let to = folder.join("data");
    let restore = world.site.pitr().args(["restore", "--quiet", "--to"]).arg(&to);
    let run = restore.args(args).run();
    if run.code() == 5 {
        return Err(run);
    }
    let run = run.success();
    let mut copy = Cluster::open(world.major, &to).without_fsync().create();
    copy.start();
    copy.wait_promoted();
    match rows::read(&copy, &world.lives) {
        Ok(state) => Ok(state),
        Err(why) => panic!(
            "{args:?} is restored to what no life had: {why}\n{}\n{run}",
            world.lives.describe()
        ),
    }
}

