//! What must be true after each history.

use serde_json::Value;

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
    let ends = timelines(world);
    let found: Vec<State> = ends.into_iter().filter_map(|t| end_of(world, t)).collect();
    nothing_safe_is_lost(world, &found);
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
    let run = world.site.pitr().args(["verify", "--json"]).run();
    assert_eq!(run.code(), 0, "nothing is damaged\n{run}");
    let verify = run.json()["clusters"][0].clone();
    let (_, info) = world.json(&["info"]);
    let info = &info["clusters"][0];
    let (_, plan) = world.json(&["plan"]);
    let (_, list) = world.json(&["timeline", "list"]);
    let doctor = world.site.pitr().args(["doctor", "--json"]).run();
    let mut taken: Vec<&str> = world.backups.iter().map(|b| b.id.as_str()).collect();
    taken.sort_unstable();
    let ids = |list: &Value| -> Vec<String> {
        let all = list.as_array().cloned().unwrap_or_default();
        let ids = all.iter().filter_map(|b| b["id"].as_str());
        let mut ids: Vec<String> = ids.map(str::to_owned).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(&verify["backups"]), taken, "{run}");
    assert_eq!(ids(&info["backups"]), taken, "{info:#}");
    let restorable = verify["backups"].as_array().unwrap();
    let restorable = restorable.iter().all(|b| b["restorable"] == true);
    assert!(restorable, "{run}");
    let timelines = list["timelines"].as_array().unwrap();
    let cluster = timelines.iter().find(|t| t["state"] == "cluster");
    let is_undecided = timelines.iter().any(|t| t["state"] == "candidate");
    assert_eq!(
        is_undecided,
        plan["reason"] == "undecided",
        "{list:#}\n{plan:#}"
    );
    let says = info["problems"].to_string();
    assert_eq!(
        is_undecided,
        says.contains("undecided"),
        "{list:#}\n{info:#}"
    );
    assert_eq!(
        is_undecided,
        doctor.stdout.contains("undecided"),
        "{doctor}"
    );
    if let Some(cluster) = cluster {
        assert_eq!(cluster["timeline"], info["timeline"], "{list:#}\n{info:#}");
        let planned = &plan["target_timeline"];
        assert!(
            planned.is_null() || *planned == cluster["timeline"],
            "{plan:#}"
        );
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
    let found = restored(
        world,
        &[
            "--backup",
            id,
            "--target-immediate",
            "--target-timeline",
            "current",
        ],
    );
    let found = found.unwrap_or_else(|run| panic!("a good backup is not restored\n{run}"));
    assert_eq!(
        world.lives.rows(found),
        world.lives.rows(state),
        "backup {id} is of another life\n{}",
        world.lives.describe()
    );
}

/// What a timeline leads to; none where it is not reached.
fn end_of(world: &mut World, timeline: u64) -> Option<State> {
    let number = timeline.to_string();
    match restored(world, &["--target-timeline", &number]) {
        Ok(found) => {
            world.say(format!("timeline {timeline} leads to {found:?}"));
            Some(found)
        }
        Err(run) => {
            world.say(format!(
                "timeline {timeline} is not restored: {}",
                said(&run)
            ));
            None
        }
    }
}

/// What was acknowledged of a life comes back with a timeline.
fn nothing_safe_is_lost(world: &World, found: &[State]) {
    for life in 0..world.lives.count() {
        let Some(safe) = world.lives.acknowledged(life) else {
            continue;
        };
        assert!(
            found.iter().any(|found| world.lives.is_in(safe, *found)),
            "of what was acknowledged of life {life} ({safe:?}) something is lost: {found:?}\n{}",
            world.lives.describe()
        );
    }
}

/// Restores, starts, and reads; what `pitr restore` said when it refused.
fn restored(world: &World, args: &[&str]) -> Result<State, Run> {
    let folder = Sandbox::in_memory("restored");
    let to = folder.join("data");
    let restore = world
        .site
        .pitr()
        .args(["restore", "--quiet", "--to"])
        .arg(&to);
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
