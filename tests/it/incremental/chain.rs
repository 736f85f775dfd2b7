//! Chains of incrementals: what they build on, how often every page is read, and how much of old packs a restore reads.

use std::path::PathBuf;

use pitr::pg::time::TimestampTz;
use pitr::repo::root::BackupRoot;
use pitr::repo::wal_proof::RawHash;

use super::{FULL, INCREMENTAL, World, check_by, increment, root, take, truth, with_root};
use crate::common::{Builder, Cluster, Site, wait_until};
use crate::restore::verify_backup;

const COMPARED: &str = "every page is read and compared";

/// A cluster with a table of about so many pages. An update changes the pages of its rows, and no others.
fn with_table(major: u32, pages: u32) -> (Site, Cluster) {
    with_table_of(Cluster::builder(major), pages)
}

fn with_table_of(builder: Builder, pages: u32) -> (Site, Cluster) {
    let builder = builder.segment_size_mb(1).without_fsync();
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql(&format!(
        "create table t (a int, b text) with (fillfactor = 50);
         alter table t alter b set storage plain;
         insert into t select g, repeat(md5(g::text), 6) from generate_series(1, {}) g;
         create table still as select g as a, md5(g::text) as b from generate_series(1, 5000) g",
        pages * 17
    ));
    cluster.sql("alter table t set (autovacuum_enabled = off)");
    (site, cluster)
}

fn restored(site: &Site, major: u32, id: &str, name: &str) -> Cluster {
    site.sandbox().dir(name);
    let to = site.sandbox().join(format!("{name}/data"));
    let restore = site.pitr().args(["restore", "--backup", id, "--to"]);
    restore.arg(&to).succeed();
    Cluster::open(major, &to).without_fsync().promoted()
}

/// Every page is compared when that was not done for 30 days, and the next backup knows that it was.
#[test]
fn each_30_days_every_page_is_compared() {
    let (site, cluster) = with_table(17, 100);
    take(&site, &FULL).success();
    cluster.sql("update t set b = repeat('x', 192) where a % 100 = 0");
    let first = increment(&site);
    let scanned = |id: &str| root(&site, id).content.whole_scan_time;
    let at_full = scanned(&first).unwrap();
    let second = increment(&site);
    assert_eq!(scanned(&second), Some(at_full));

    let day = std::time::Duration::from_secs(24 * 3600);
    let now = TimestampTz::from_system_time(std::time::SystemTime::now());
    let aged = |days: u32| now.saturating_sub(days * day);
    let set = |id: &str, at: TimestampTz| {
        with_root(&site, id, |root| root.content.whole_scan_time = Some(at));
    };
    set(&second, aged(29));
    let third = increment(&site);
    set(&third, aged(31));
    let run = take(&site, &INCREMENTAL).success();
    assert!(run.stderr.contains(COMPARED), "{run}");
    assert!(run.stderr.contains("each 30 days"), "{run}");
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    let fourth = run.id();
    assert_eq!(scanned(&fourth), Some(root(&site, &fourth).head.start_time));
    let fifth = increment(&site);
    assert_eq!(scanned(&fifth), scanned(&fourth));
    cluster.archive_now();
    let copy = restored(&site, 17, &fifth, "copy");
    assert_eq!(truth(&copy), truth(&cluster));
}

/// A page that WAL of an earlier interval hid is found by the scan: the chain has an old copy of it, and no record since tells.
#[test]
fn the_scan_finds_what_an_earlier_backup_missed() {
    let (site, mut cluster) = with_table_of(Cluster::builder(16).checksums(false), 100);
    take(&site, &FULL).success();
    let path = cluster.value("select pg_relation_filepath('t')");
    cluster.sql("checkpoint");
    cluster.stop(crate::common::Stop::Fast);
    // Written past the server, as if its record had been missed: no page LSN moves.
    let file = cluster.pgdata().join(path);
    let mut bytes = std::fs::read(&file).unwrap();
    let (page, other) = (5 * 8192, 6 * 8192);
    let (from, to) = (
        bytes[page..page + 8192].to_vec(),
        &mut bytes[other..other + 8192],
    );
    to.copy_from_slice(&from);
    std::fs::write(&file, &bytes).unwrap();
    cluster.start();
    let expected = cluster.value("select count(distinct a) from t");
    let missed = increment(&site);
    with_root(&site, &missed, |root| {
        root.content.whole_scan_time = Some("2026-01-01T00:00:00Z".parse().unwrap());
    });
    let run = take(&site, &INCREMENTAL).success();
    assert!(run.stderr.contains(COMPARED), "{run}");
    cluster.archive_now();
    let count = |id: &str, name: &str| {
        restored(&site, 16, id, name).value("select count(distinct a) from t")
    };
    assert_ne!(count(&missed, "missed"), expected);
    assert_eq!(count(&run.id(), "found"), expected);
}

/// A prior whose WAL was proven up to its stop alone: the archived segment has to begin with those bytes.
#[test]
fn a_prior_that_is_proven_by_its_tail_alone_is_held_to_it() {
    let tail = |root: &mut BackupRoot, hash: Option<RawHash>| {
        let proof = root.content.wal_proof.as_mut().unwrap();
        assert!(proof.last.segment_hash.take().is_some());
        proof.last.hash = hash.or(proof.last.hash);
    };
    for (wrong, why) in [
        (None, None),
        (
            Some(RawHash([7; 32])),
            Some("is not surely the prior's own"),
        ),
    ] {
        let world = World::new(15, true);
        let full = take(&world.site, &FULL).success().id();
        with_root(&world.site, &full, |root| tail(root, wrong));
        world.cluster.sql("update still set b = b || 'y'");
        world.cluster.archive_now();
        check_by(&world, why);
    }
}

/// A prior that lacks a pack is none: the one before serves, and without any a full backup is taken.
#[test]
fn where_a_pack_is_missing_another_backup_is_the_prior() {
    let (site, cluster) = with_table(18, 100);
    let first = take(&site, &FULL).success().id();
    let second = take(&site, &FULL).success().id();
    let packs = |id: &str| site.cluster_folder().join("packs").join(id);
    let remove = |path: PathBuf| {
        let mut entries = std::fs::read_dir(path).unwrap();
        std::fs::remove_file(entries.next().unwrap().unwrap().path()).unwrap();
    };
    remove(packs(&second));
    cluster.sql("update t set b = repeat('x', 192) where a % 50 = 0");
    let run = take(&site, &INCREMENTAL).success();
    assert_eq!(run.json()["prior"], first.as_str(), "{run}");
    // The incremental needs the pack that goes now.
    remove(packs(&first));
    let run = take(&site, &INCREMENTAL).success();
    assert_eq!(run.json()["kind"], "full", "{run}");
    let why = run.json()["kind_reason"].as_str().unwrap().to_owned();
    assert!(why.contains("is missing or damaged"), "{run}");
    cluster.archive_now();
    let copy = restored(&site, 18, &run.id(), "copy");
    assert_eq!(truth(&copy), truth(&cluster));
}

/// Scattered changes leave most frames of an older pack with some pages that nothing leads to. A delta restore fetches none of these frames where the
/// target has the other pages: it does not notice that the pack is damaged all over.
#[test]
fn what_an_incremental_leaves_of_a_frame_is_not_fetched_for_a_delta() {
    let (site, cluster) = with_table(17, 2000);
    take(&site, &FULL).success();
    cluster.sql("create table scattered as select * from t");
    let first = increment(&site);
    let to = site.sandbox().dir("left").join("data");
    let restore = || site.pitr().restore_to(&to).arg("--json");
    restore().succeed();
    cluster.sql("update scattered set a = -a where a % 500 = 0");
    let second = increment(&site);
    cluster.archive_now();
    let pack = site.cluster_folder().join("packs").join(&first);
    let pack = pack.join("000000");
    let mut bytes = std::fs::read(&pack).unwrap();
    // The hashes of pages and the directory lie at the end.
    let frames = bytes.len() / 8 * 7;
    for byte in bytes.iter_mut().take(frames).skip(4096).step_by(8192) {
        *byte ^= 1;
    }
    std::fs::write(&pack, bytes).unwrap();
    let fresh = site.sandbox().dir("fresh").join("data");
    let run = site.pitr().restore_to(&fresh).run();
    run.expect_code(4).expect_stderr("its checksum is wrong");
    let run = restore().args(["--delta", "--confirm", "--backup", &second]);
    let run = run.succeed();
    let restored = &run.json()["restored"];
    let number = |name: &str| restored[name].as_u64().unwrap();
    assert!(number("kept_bytes") > 4 * number("written_bytes"), "{run}");
    verify_backup(17, &to);
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), truth(&cluster));
}

/// A pack that an incremental backup shares with its full one is read once; its damage is reported for both.
#[test]
fn damage_of_a_shared_pack_is_found_of_every_backup_that_names_it() {
    let (site, cluster) = with_table(17, 2000);
    let full = take(&site, &FULL).success().id();
    cluster.sql("update t set b = b where a < 10");
    let second = increment(&site);
    let since = ["verify", "--json", "--since", "last"];
    site.pitr().args(since).succeed();
    damage_first_pack(&site, &full);
    let run = site.pitr().args(since).exits(4);
    let report = &run.json()["clusters"][0];
    let is_restorable = |id: &str| {
        let mut backups = report["backups"].as_array().unwrap().iter();
        backups.find(|b| b["id"] == id).unwrap()["restorable"].clone()
    };
    assert_eq!(is_restorable(&full), false, "{run}");
    assert_eq!(is_restorable(&second), false, "{run}");
}

fn damage_first_pack(site: &Site, id: &str) {
    let pack = site.cluster_folder().join("packs").join(id).join("000000");
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
}

fn damaged(site: &Site) -> Vec<String> {
    let info = site.pitr().words("info --json").run().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap();
    let damaged = backups.iter().filter(|b| !b["damage"].is_null());
    let mut ids: Vec<String> = damaged
        .map(|b| b["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn v31_damage_of_a_shared_pack_is_recorded_of_backups_that_were_not_looked_at() {
    let (site, cluster) = with_table(17, 2000);
    let full = take(&site, &FULL).success().id();
    cluster.sql("update t set b = b where a < 10");
    let second = increment(&site);
    damage_first_pack(&site, &full);
    site.pitr().args(["verify", "--backup", &full]).exits(4);
    let mut both = [full, second];
    both.sort();
    assert_eq!(damaged(&site), both);
}

#[test]
fn v31_a_backup_whose_prior_was_found_damaged_before_its_root_is_no_backup_to_restore() {
    let (site, cluster) = with_table(17, 2000);
    let full = take(&site, &FULL).success().id();
    cluster.sql("update t set b = b where a < 10");
    let paused = site.sandbox().dir("paused").join("commits");
    let pause = format!("backup-commits={}", paused.display());
    let backup = site.pitr().words("backup --json").args(INCREMENTAL);
    let backup = backup.env("PITR_FAULT_PAUSE", pause).spawn();
    wait_until("the backup is about to commit", || paused.exists());
    damage_first_pack(&site, &full);
    site.pitr().args(["verify", "--backup", &full]).exits(4);
    std::fs::remove_file(&paused).unwrap();
    backup
        .wait()
        .expect_code(1)
        .expect_stdout("was found damaged while it was taken");
    let found = damaged(&site);
    assert!(found.len() == 2 && found.contains(&full), "{found:?}");
    // The next one builds on neither of them.
    let run = take(&site, &INCREMENTAL);
    assert_eq!(run.json()["kind"], "full", "{run}");
}

/// Raw bytes that a restore reads of frames, for each hundred that it needs.
fn read_percent(root: &BackupRoot) -> u64 {
    let packs = &root.map.packs;
    let needed: u64 = packs.iter().map(|pack| pack.live_bytes).sum();
    let read = packs.iter().map(|pack| {
        let all = (pack.all_frames.unwrap(), pack.all_bytes.unwrap());
        assert!(all.0 >= pack.live_frames && all.1 >= pack.live_bytes);
        all.1 * pack.live_frames / all.0
    });
    read.sum::<u64>() * 100 / needed
}

/// Pages all over a table change: without the rule a restore would read each page's older copies for nothing.
#[test]
fn what_a_restore_reads_for_nothing_is_bounded() {
    let (site, cluster) = with_table(17, 1500);
    take(&site, &FULL).success();
    let mut last = String::new();
    let mut given_up = 0;
    for round in 0..8 {
        cluster.sql(&format!(
            "update t set b = repeat(md5(random()::text), 6) where a % 170 between {round} * 20 and {round} * 20 + 16"
        ));
        let run = take(&site, &INCREMENTAL).success();
        assert!(!run.stderr.contains(COMPARED), "{run}");
        given_up += usize::from(run.stderr.contains("that are given up"));
        last = run.id();
        let percent = read_percent(&root(&site, &last));
        assert!(percent <= 122, "round {round}: {percent}");
    }
    assert!((1..8).contains(&given_up), "{given_up}");
    cluster.archive_now();
    site.pitr().arg("verify").succeed();
    let copy = restored(&site, 17, &last, "copy");
    assert_eq!(truth(&copy), truth(&cluster));
    crate::restore::check_relations(&copy);
}

/// A shard with many layers gets one that equals them, and is restored like them.
#[test]
fn many_layers_of_a_shard_become_one() {
    let world = World::new(16, true);
    take(&world.site, &FULL).success();
    let mut last = String::new();
    let mut depths = Vec::new();
    for round in 1..=6 {
        match round {
            1 | 4 => world.churn(round.min(2)),
            _ => drop(
                world
                    .cluster
                    .sql(&format!("update t set b = b || 'x' where a % 50 = {round}")),
            ),
        }
        let backup = world.site.pitr().words("backup --json");
        let backup = backup.args(INCREMENTAL).env("PITR_FAULT_LIMIT", "3");
        let run = backup.succeed();
        assert_eq!(run.json()["kind"], "incremental", "{run}");
        last = run.id();
        let shards = root(&world.site, &last).map.shards;
        depths.push(shards.iter().map(|shard| shard.layers.len()).max().unwrap());
    }
    assert_eq!(depths, [2, 3, 2, 3, 2, 3]);
    let full = take(&world.site, &FULL).success().id();
    world.cluster.archive_now();
    let expected = world.truth();
    world.site.pitr().arg("verify").succeed();
    let one = world.restored(&last, "one", &[]);
    let two = world.restored(&full, "two", &[]);
    super::check_equal(&world, (one, two), true, &expected);
}
