//! Random histories of two to four lives of one cluster, and what must be true after each.
//!
//! | file | what it is |
//! |---|---|
//! | `model.rs` | lives, their commits, and what of them was acknowledged |
//! | `rows.rs` | the tables, in which a mixture of two lives shows |
//! | `world.rs` | servers, repositories, snapshots |
//! | `step.rs` | what may happen next |
//! | `expire.rs` | retention in between |
//! | `check.rs` | what must be true in the end |
//!
//! `LIVES_SEED` repeats one history, `LIVES_HISTORIES` sets how many there are (`make lives`: 2 000), `LIVES_PROGRESS` names a file in which those
//! that passed stand: a campaign that was broken off goes on behind them. `LIVES_TALK=1` prints each step as it is done.

mod check;
mod expire;
mod model;
mod rows;
mod step;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use crate::common::fault;
use crate::common::number;
use crate::common::random::Random;
use step::Kind;
use world::World;

/// Histories of the run that is part of the tests: with those below, 40.
const HISTORIES: u64 = 22;
/// Histories of the campaign that failed once, and why.
#[rustfmt::skip]
const MENDED: [u64; 18] = [
    // The message asks the operator to abandon another timeline first.
    113, 189,
    // A server took the history of another one that was promoted to the same number, and archived behind its WAL.
    94, 147, 157, 171,
    // A timeline of the life that lost a fork proved a hole in the other one.
    173,
    // PostgreSQL read ahead of a backup's end, and came to a hole.
    215,
    // A server waits for the copy of the one that it followed.
    266,
    // A whole segment hid what a receiver had archived of another server.
    304,
    // A segment was stored before one that did not continue it.
    366,
    // A server that was refused, or had not archived yet, was lost before the check.
    538, 672, 690,
    // A standby was handed another server's segment in the place of its own.
    534, 1308,
    // The first increment of a clone's receiver is refused.
    1489,
    // A rewound server cannot stream for want of a history that its primary does not have.
    1077,
];
/// Test functions, which run side by side.
const PARTS: u64 = 4;

/// The kinds of steps of each history that passed.
#[derive(Default)]
struct Campaign {
    done: BTreeMap<u64, Vec<String>>,
    file: Option<PathBuf>,
}

static CAMPAIGN: Mutex<Option<Campaign>> = Mutex::new(None);

impl Campaign {
    /// Reads the progress that an earlier run has left, if it is to be gone on with.
    fn open() -> Campaign {
        let file = std::env::var_os("LIVES_PROGRESS").map(PathBuf::from);
        let text = file.as_ref().and_then(|f| std::fs::read_to_string(f).ok());
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let seed = words.next()?.parse().ok()?;
            // A line that was cut short lacks its end.
            let mut kinds: Vec<String> = words.map(str::to_owned).collect();
            (kinds.pop()? == "passed").then_some((seed, kinds))
        };
        let done = text
            .iter()
            .flat_map(|t| t.lines())
            .filter_map(line)
            .collect();
        Campaign { done, file }
    }

    fn with<T>(work: impl FnOnce(&mut Campaign) -> T) -> T {
        let mut campaign = CAMPAIGN.lock().unwrap_or_else(|e| e.into_inner());
        work(campaign.get_or_insert_with(Campaign::open))
    }

    fn passed(&mut self, seed: u64, kinds: Vec<String>) {
        if let Some(path) = &self.file {
            let folder = path.parent().unwrap();
            std::fs::create_dir_all(folder).unwrap();
            let mut file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap();
            writeln!(file, "{seed} {} passed", kinds.join(" ")).unwrap();
        }
        self.done.insert(seed, kinds);
    }

    /// When all is done, every kind of step must have come to something.
    fn check(&self, histories: u64) {
        if (0..histories).any(|seed| !self.done.contains_key(&seed)) {
            return;
        }
        let mut counts = BTreeMap::<&str, usize>::new();
        for kind in self.done.values().flatten() {
            *counts.entry(kind).or_default() += 1;
        }
        println!("lives: {histories} histories: {counts:?}");
        let seen: BTreeSet<&str> = counts.into_keys().collect();
        let never = Kind::ALL.map(|kind| format!("{kind:?}"));
        let never: Vec<_> = never
            .iter()
            .filter(|k| !seen.contains(k.as_str()))
            .collect();
        assert!(never.is_empty(), "these steps were never taken: {never:?}");
    }
}

/// One history: steps towards a kind that its seed is to have, others between them, and the check.
fn history(seed: u64) -> Vec<String> {
    let major = 13 + (seed % 6) as u32;
    let mut random = Random::new(seed);
    let of_world = random.fork();
    let title = format!("a history of PostgreSQL {major} failed: LIVES_SEED={seed}");
    let expires = seed.is_multiple_of(PARTS);
    let theme = Kind::theme(seed, expires);
    let mut world = World::new(major, title, of_world, theme == Kind::Sync);
    world.expires = expires;
    let mut kinds = Vec::new();
    let mut take = |kind: Kind, world: &mut World| {
        if kind.run(world) {
            kinds.push(format!("{kind:?}"));
        }
    };
    for kind in theme.before().iter().chain([&theme]) {
        take(*kind, &mut world);
        if random.one_in(3) {
            let between = Kind::choose(&mut world);
            take(between, &mut world);
        }
    }
    for _ in 0..3 + random.below(5) {
        let kind = Kind::choose(&mut world);
        take(kind, &mut world);
    }
    check::check(&mut world);
    kinds
}

/// The histories of one test function.
fn part(part: u64) {
    if let Some(seed) = number("LIVES_SEED") {
        if seed % PARTS != part {
            crate::skip!("histories", "LIVES_SEED belongs to another function");
        }
        history(seed);
        return;
    }
    let histories = number("LIVES_HISTORIES").unwrap_or(HISTORIES);
    let of_turn = |(n, _): &(usize, u64)| fault::is_of_turn(*n);
    let mended = MENDED.into_iter().enumerate().filter(of_turn);
    let more = mended
        .map(|(_, seed)| seed)
        .filter(|seed| *seed >= histories);
    for seed in (0..histories)
        .chain(more)
        .filter(|seed| seed % PARTS == part)
    {
        if Campaign::with(|c| c.done.contains_key(&seed)) {
            continue;
        }
        let began = Instant::now();
        let kinds = history(seed);
        println!(
            "lives: {seed} in {:.1} s: {}",
            began.elapsed().as_secs_f64(),
            kinds.join(" ")
        );
        Campaign::with(|c| c.passed(seed, kinds));
    }
    Campaign::with(|c| c.check(histories));
}

#[test]
fn whatever_lives_a_cluster_has_each_backup_is_of_one_and_nothing_safe_is_lost_1() {
    part(0);
}

#[test]
fn whatever_lives_a_cluster_has_each_backup_is_of_one_and_nothing_safe_is_lost_2() {
    part(1);
}

#[test]
fn whatever_lives_a_cluster_has_each_backup_is_of_one_and_nothing_safe_is_lost_3() {
    part(2);
}

#[test]
fn whatever_lives_a_cluster_has_each_backup_is_of_one_and_nothing_safe_is_lost_4() {
    part(3);
}
