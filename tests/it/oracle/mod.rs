//! The oracle: a ledger workload over several databases and timelines, whose every commit is recorded by PostgreSQL's own tools;
//! random targets are restored, and every restored cluster must equal the record.
//!
//! | file | what it is |
//! |---|---|
//! | `model.rs` | what each transaction did, and the tables that follow from a set of them |
//! | `workload.rs` | concurrent clients that do it |
//! | `record.rs` | what the WAL holds, as `pg_waldump` says (14: as the clients saw it) |
//! | `history.rs` | the cluster's life: backups, restore points, two promotions |
//! | `target.rs` | random targets, and what PostgreSQL's rules make of them |
//! | `check.rs` | plan, restore, start, compare |
//!
//! `ORACLE_SEED` repeats a run, `ORACLE_TARGETS` sets how many targets each major gets (`make oracle`: 40). A failing run keeps its
//! folder, repository and record included.

mod check;
mod history;
mod model;
mod record;
mod target;
mod workload;

use crate::common::majors;
use crate::common::random::Random;

/// In CI one major is tested in depth, chosen by the commit count, and the others a little.
fn targets(major: u32) -> usize {
    if let Ok(count) = std::env::var("ORACLE_TARGETS") {
        return count.parse().expect("ORACLE_TARGETS is a number");
    }
    let count = std::process::Command::new("git")
        .args(["rev-list", "--count", "HEAD"])
        .output()
        .ok()
        .and_then(|o| String::from_utf8(o.stdout).ok()?.trim().parse::<u32>().ok())
        .unwrap_or(0);
    if 13 + count % 6 == major { 40 } else { 4 }
}

fn seed(major: u32) -> u64 {
    match std::env::var("ORACLE_SEED") {
        Ok(seed) => seed.parse().expect("ORACLE_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |d| d.as_secs()) * 100 + u64::from(major)
        }
    }
}

/// Every restored cluster equals the record, and the plan agrees with the server.
fn restored_clusters_equal_the_record(major: u32) {
    assert!(majors().contains(&major) || std::env::var_os("PITR_TEST_MAJORS").is_some());
    let seed = seed(major);
    let count = targets(major);
    println!("oracle {major}: {count} targets, ORACLE_SEED={seed}");
    let mut random = Random::new(seed);
    let history = history::live(major, &mut random);
    let record = record::read(&history);
    record.check_sanity();
    for number in 0..count {
        let target = target::draw(&mut random, &history, &record);
        check::target(&history, &record, &target, number);
    }
}

crate::per_major!(restored_clusters_equal_the_record);
