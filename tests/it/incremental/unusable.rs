//! Damage of the prior that shows after the start of an incremental.

use super::kind::{every, is};
use super::{FULL, INCREMENTAL, committed, increment, root, take, truth};
use crate::backup::layout;
use crate::common::{Cluster, Run, Site, user, wait_until};

/// Damages the first block of the map of a backup. Its index, which is hashed when the map is opened, stays as it is.
fn damage_map(site: &Site, id: &str) {
    let root = root(site, id);
    let layer = root.map.shards[0].layers[0].clone();
    let path = layout(site).layer(&layer.key).to_string();
    let path = site.repository().join(path);
    let mut bytes = std::fs::read(&path).unwrap();
    let block = usize::try_from(layer.offset).unwrap() + 100;
    assert!(layer.length > 4096, "{}", layer.length);
    bytes[block] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    user::own(&path);
}

fn has_event(site: &Site, id: &str, kind: &str) -> bool {
    let files = site.files();
    let mut own = files
        .iter()
        .filter(|f| f.contains(&format!("/events/{id}/")));
    own.any(|f| f.contains(&format!("-{kind}-")))
}

/// Requires a full backup that says why, and returns its id.
fn full_instead_of(site: &Site, prior: &str, run: &Run) -> String {
    is(run, "full", Some(&format!("backup \"{prior}\" is damaged")));
    let begun = |kind: &str| {
        let files = site.files();
        files.iter().any(|f| f.contains(&format!("-{kind}/begin")))
    };
    assert!(begun("incr"), "the damage showed before the start");
    assert!(has_event(site, prior, "damaged"), "{run}");
    let id = run.id();
    let mut both = vec![prior.to_owned(), id.clone()];
    both.sort();
    assert_eq!(committed(site), both);
    id
}

fn check(method: &str, backup: impl Fn(&Site) -> Run) {
    let (site, cluster) = Site::with_cluster(17);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    let prior = take(&site, &["--method", method]).success().id();
    cluster.sql("update t set b = b || 'x' where a % 50 = 0");
    damage_map(&site, &prior);
    let id = full_instead_of(&site, &prior, &backup(&site));
    let backups = "select count(*) from pg_stat_activity where query ~ 'pg_backup_start' or backend_type = 'walsender'";
    wait_until("this query alone is left", || cluster.value(backups) == "1");
    // Everybody knows of the damage, and the next one builds on the new backup.
    let info = site.pitr().words("info --json").run().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap();
    let damaged: Vec<bool> = backups.iter().map(|b| b["damaged"] == true).collect();
    assert_eq!(damaged, [true, false], "{info:#}");
    cluster.sql("update t set b = b || 'y' where a % 51 = 0");
    let next = increment(&site);
    let prior = root(&site, &next).head.prior.unwrap().to_string();
    assert_eq!(prior, id);
    cluster.archive_now();
    let to = site.sandbox().dir("copy").join("data");
    let restore = site.pitr().args(["restore", "--backup", &next, "--to"]);
    restore.arg(&to).succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), truth(&cluster));
}

#[test]
fn b25_a_map_that_is_damaged_inside_makes_a_full_backup_by_the_same_command() {
    check("local", |site| every(site, "7d", &FULL));
}

#[test]
fn b25_over_the_network_too() {
    check("stream", |site| every(site, "7d", &[]));
}

/// The command line asks for an incremental: where none can be, a full backup is taken, as where none can begin.
#[test]
fn b25_one_that_is_asked_for_becomes_a_full_one() {
    check("local", |site| take(site, &INCREMENTAL).success());
}
