//! Each request of a distant bucket is a round trip: what a command asks, and how often.

use std::collections::BTreeMap;

use crate::backup_soak::home::Home;
use crate::common::Cluster;

/// How often each object below `part` was read.
fn reads(log: &[String], part: &str) -> BTreeMap<String, usize> {
    let mut reads = BTreeMap::new();
    for line in log.iter().filter(|line| line.starts_with("GET ")) {
        let (path, _) = line.split_once('?').unwrap();
        if path.contains(part) {
            *reads.entry(path.to_owned()).or_default() += 1;
        }
    }
    reads
}

#[test]
fn s39_a_plan_reads_each_event_once_and_opens_no_segment_for_each_question() {
    for is_encrypted in [false, true] {
        let builder = Cluster::small(18);
        let mut cluster = builder.create();
        let home = Home::new(&cluster, true, is_encrypted);
        home.attach(&cluster);
        cluster.start();
        cluster.sql("create table t (n int)");
        for _ in 0..3 {
            home.pitr().arg("backup").succeed();
            cluster.sql("insert into t values (1)");
        }
        cluster.archive_now();
        home.server().clear_log();
        home.pitr().arg("plan").succeed();
        let log = home.server().log();
        let events = reads(&log, "/events/");
        assert!(events.len() >= 6, "{events:?}");
        assert!(events.values().all(|n| *n == 1), "{events:?}");
        let roots = reads(&log, "/manifest");
        assert_eq!(roots.len(), 3, "{roots:?}");
        // Opened for the proof, with its front; looked at when the plan is confirmed; its end read once more.
        let segments = reads(&log, "/wal/00000001/00000000/");
        assert!(!segments.is_empty());
        assert!(segments.values().all(|n| *n <= 5), "{segments:?}");
    }
}

/// A root of a large cluster has MiB: that of each backup that is kept is read for what all of them tell, and no second time.
#[test]
fn b38_an_incremental_asks_for_the_root_of_its_prior_alone() {
    let builder = Cluster::small(18);
    let mut cluster = builder.create();
    let home = Home::new(&cluster, true, false);
    home.attach(&cluster);
    cluster.start();
    cluster.sql("create table t (n int)");
    let take = || {
        cluster.sql("insert into t values (1)");
        let backup = home.pitr().words("backup --json --incremental");
        backup.succeed()
    };
    let kept: Vec<String> = (0..3).map(|_| take().id()).collect();
    home.server().clear_log();
    let last = take();
    assert_eq!(last.json()["prior"], kept[2], "{last}");
    let log = home.server().log();
    let roots = reads(&log, "/manifest");
    let of = |id: &String| -> usize {
        let own = roots.iter().filter(|(path, _)| path.contains(id.as_str()));
        own.map(|(_, count)| *count).sum()
    };
    let counts: Vec<usize> = kept.iter().map(of).collect();
    // The prior's is read before the claim and behind it, besides.
    let [first, second, prior] = counts[..] else {
        panic!("{counts:?}");
    };
    assert!(first >= 1 && second >= 1, "{roots:?}");
    assert!(first.max(second) + 2 <= prior, "{roots:?}");
}
