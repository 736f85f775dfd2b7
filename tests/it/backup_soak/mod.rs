//! The campaign of backups: load and a storm of DDL go on while backups of every kind and method are taken, killed and deleted, and the server
//! dies. After each step a random earlier moment is restored, and must be what the server held then. The campaign and short histories
//! check each of these copies by pg_amcheck, pg_checksums and indexes against tables. A whole history of the gate checks every fifth copy so, and the last.
//!
//! | file | what it is |
//! |---|---|
//! | `storm.rs` | clients that change rows, relations, databases and tablespaces |
//! | `home.rs` | the repository: a directory that can get full, or a bucket whose server fails, plain or encrypted |
//! | `world.rs` | the cluster, and the moments that can be asked for |
//! | `step.rs` | what happens next |
//! | `source.rs` | incrementals, each by one source of what changed |
//! | `check.rs` | a moment is planned, restored, started and compared |
//! | `indexes.rs` | indexes of each kind answer like their tables |
//!
//! `make soak-backups` runs the long form, with the release programs. `BACKUP_SOAK_SEED` repeats one history as far as concurrency allows,
//! `BACKUP_SOAK_HISTORIES` sets how many there are on each major (`make soak-backups`: 20), `BACKUP_SOAK_STEPS` their length, and
//! `BACKUP_SOAK_PROGRESS` names a file in which those that passed stand.

mod check;
pub mod home;
mod indexes;
mod source;
mod step;
mod storm;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::common::fault;
use crate::common::progress::Progress;
use crate::common::random::Random;
use crate::common::{ALL_MAJORS, majors, number};
use step::Kind;
use world::World;

/// Steps of a whole history.
const STEPS: u64 = 25;
/// Steps of a history on a major whose turn it is not.
const FEW: u64 = 3;

/// Whether the copy of a step is checked by every means. A whole history of the gate has no time for all of them.
fn is_thorough(number: u64, steps: u64, is_campaign: bool) -> bool {
    is_campaign || steps <= FEW || number % 5 == 4 || number + 1 == steps
}

/// One history; how often each kind of step came to something.
fn history(
    major: u32,
    (seed, steps): (u64, u64),
    (may_be_far, is_campaign): (bool, bool),
) -> BTreeMap<Kind, usize> {
    let began = Instant::now();
    println!("backup soak {major}: {steps} steps, BACKUP_SOAK_SEED={seed}");
    // Each major has other steps, and another home.
    let mut random = Random::new(seed * 100 + u64::from(major));
    let mut world = World::new(major, random.fork(), may_be_far);
    let mut counts = BTreeMap::new();
    for number in 0..steps {
        let kind = Kind::draw(&mut random, number, &world.home);
        println!(
            "backup soak {major}: {:6.1} s: step {number}: {kind:?}",
            began.elapsed().as_secs_f64()
        );
        let came_to_something = step::take(&mut world, kind);
        world.mark();
        let mark = world.draw_mark();
        check::moment(&mut world, &mark, is_thorough(number, steps, is_campaign));
        *counts.entry(kind).or_default() += usize::from(came_to_something);
    }
    check::all_marks_are_planned(&world);
    world.home.pitr().arg("verify").succeed();
    counts
}

fn every_moment_comes_back(major: u32) {
    if !majors().contains(&major) {
        crate::skip!("backup_soak", "not in PITR_TEST_MAJORS");
    }
    let given = number("BACKUP_SOAK_SEED");
    let histories = number("BACKUP_SOAK_HISTORIES");
    let is_campaign = histories.is_some();
    let whole = is_campaign || given.is_some() || is_turn_of(major);
    let steps = number("BACKUP_SOAK_STEPS").unwrap_or(if whole { STEPS } else { FEW });
    let progress = Progress::of("BACKUP_SOAK_PROGRESS");
    let first = given.unwrap_or_else(|| match is_campaign {
        true => 1000,
        false => clock_seed(),
    });
    for seed in first..first + histories.unwrap_or(1) {
        let line = format!("{major} {seed} {steps} passed");
        if progress.has(&line) {
            continue;
        }
        // A whole history in a bucket takes half an hour: the gate has short ones.
        let may_be_far = is_campaign || given.is_some() || !whole;
        let counts = history(major, (seed, steps), (may_be_far, is_campaign));
        println!("backup soak {major}: seed {seed} passed: {counts:?}");
        progress.add(&line);
    }
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_secs())
}

/// Whether it is a major's turn for a whole history; its day, where tests take no turns.
fn is_turn_of(major: u32) -> bool {
    let day = || usize::try_from(clock_seed() / 86_400).expect("small");
    let turn = fault::turn().unwrap_or_else(day);
    ALL_MAJORS[turn % ALL_MAJORS.len()] == major
}

/// Names of their own: unlike tests that are listed by `per_major!`, each major is there every day.
macro_rules! on_each_major {
    ($($name:ident $major:literal),+) => {
        $(#[test]
        fn $name() {
            every_moment_comes_back($major);
        })+
    };
}

on_each_major!(on_13 13, on_14 14, on_15 15, on_16 16, on_17 17, on_18 18, on_19 19);
