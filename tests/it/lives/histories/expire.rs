//! `pitr expire` in the middle of a history: every backup that is kept leads where it led before.

use std::collections::BTreeMap;

use serde_json::Value;

use super::check;
use super::world::World;
use crate::common::keep_one;

/// The reach of each backup along each timeline, as the plan prints it: whether to its end, and how far.
type Reach = BTreeMap<(String, u64), (Value, Value, Value)>;

/// Keeps one backup; `false` when nothing was deleted.
pub fn expire(world: &mut World) -> bool {
    let before = reach(world);
    let mut deleted = Vec::new();
    // The second run deletes what the first one has marked.
    for _ in 0..2 {
        let Some(more) = run(world) else {
            return false;
        };
        deleted.extend(more);
    }
    world.backups.retain(|backup| !deleted.contains(&backup.id));
    let after = reach(world);
    for (at, reached) in &after {
        assert_eq!(before.get(at), Some(reached), "where {at:?} leads");
    }
    world.say(format!("  {} backups are deleted", deleted.len()));
    if !deleted.is_empty() {
        give_up(world);
    }
    !deleted.is_empty()
}

/// The backups that a run deletes; none where it is refused.
fn run(world: &mut World) -> Option<Vec<String>> {
    let now = ["--grace", "0s", "--confirm", "--confirm-burst", "--json"];
    let run = world.site.pitr().args(keep_one(&now)).run();
    if run.code() == 8 {
        world.say(format!("  expire is refused\n{run}"));
        return None;
    }
    assert!(matches!(run.code(), 0 | 6), "{run}");
    let deleted = &run.json()["clusters"][0]["outcome"]["deleted_backups"];
    let ids = deleted.as_array().unwrap().iter();
    Some(ids.map(|id| id.as_str().unwrap().to_owned()).collect())
}

fn reach(world: &World) -> Reach {
    let timelines = check::timelines(world);
    let mut reach = Reach::new();
    for id in world.backups.iter().map(|backup| &backup.id) {
        for timeline in &timelines {
            let number = timeline.to_string();
            let asked = ["plan", "--backup", id, "--target-timeline", &number];
            let (_, mut plan) = world.json(&asked);
            let mut said = |name: &str, more: &str| plan[name][more].take();
            let reached = (said("stop", "lsn"), said("nearest_before", "lsn"));
            let is_reachable = plan["reachable"].take();
            reach.insert(
                (id.clone(), *timeline),
                (is_reachable, reached.0, reached.1),
            );
        }
    }
    reach
}

/// Lives to which only deleted backups led: nothing of them is promised any more, before one is backed up again.
fn give_up(world: &mut World) {
    let found = check::all_ends(world);
    for life in 0..world.lives.count() {
        let safe = world.lives.acknowledged(life);
        if safe.is_some_and(|safe| !found.iter().any(|end| world.lives.is_in(safe, *end))) {
            world.say(format!("  life {life} is given up"));
            world.lives.give_up(life);
        }
    }
}
