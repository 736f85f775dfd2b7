//! The kind of backup that is taken, and the messages about it.

use std::time::Duration;

use super::{FULL, root, take};
use crate::common::{Run, Site, expire_at_once};

/// Takes a backup with `full_every` in the configuration.
pub fn every(site: &Site, period: &str, args: &[&str]) -> Run {
    site.pitr()
        .words("backup --json")
        .args(args)
        .env("PITR_CLUSTERS_MAIN_FULL_EVERY", period)
        .succeed()
}

/// Requires the kind, and the reason on both ways.
pub fn is(run: &Run, kind: &str, reason: Option<&str>) {
    let json = run.json();
    assert_eq!(json["kind"], kind, "{run}");
    let article = ["a full", "an incremental"][usize::from(kind == "incremental")];
    let line = format!("{article} backup is taken: ");
    match reason {
        None => {
            assert!(json["kind_reason"].is_null(), "{run}");
            assert!(!run.stderr.contains("backup is taken: "), "{run}");
        }
        Some(reason) => {
            let told = json["kind_reason"].as_str().unwrap();
            assert!(told.contains(reason), "{run}");
            assert!(run.stderr.contains(&format!("{line}{told}")), "{run}");
        }
    }
}

#[test]
fn the_age_of_the_full_backup_decides_the_kind() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select g as a from generate_series(1, 20000) g");
    let first = every(&site, "7d", &FULL);
    is(&first, "full", Some("has no backup"));
    let second = every(&site, "7d", &FULL);
    is(
        &second,
        "incremental",
        Some("is younger than full_every = \"1w\""),
    );
    assert_eq!(second.json()["prior"], first.json()["id"]);

    // The command line decides.
    is(
        &every(&site, "7d", &["--method", "local", "--full"]),
        "full",
        None,
    );
    std::thread::sleep(Duration::from_secs(2));
    let asked = ["--method", "local", "--incremental"];
    is(&every(&site, "1s", &asked), "incremental", None);
    is(
        &every(&site, "1s", &FULL),
        "full",
        Some("is older than full_every = \"1s\""),
    );
    // Without the key nothing is chosen.
    is(&take(&site, &FULL).success(), "full", None);
    take(&site, &["--full", "--incremental"]).expect_code(2);
    every(&site, "7d", &["--full"]);
}

/// The full backup may be gone: ids of parts tell how old it was.
#[test]
fn a_full_backup_that_was_expired_counts_by_its_age() {
    let (site, cluster) = Site::with_cluster(16);
    cluster.sql("create table t as select g as a from generate_series(1, 20000) g");
    let full = take(&site, &FULL).success().id();
    cluster.sql("insert into t values (0)");
    is(&every(&site, "1d", &FULL), "incremental", Some(&full));
    site.pitr().arg("verify").succeed();
    site.pitr().args(expire_at_once()).succeed();
    let third = every(&site, "1d", &FULL);
    is(&third, "incremental", Some(&full));
    assert!(root(&site, &third.id()).map.packs.len() > 1);
    std::thread::sleep(Duration::from_secs(2));
    is(&every(&site, "2s", &FULL), "full", Some(&full));
}
