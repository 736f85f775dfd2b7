//! The pages that an incremental reads besides those that WAL names: 1 % of the rest of relations that changed, and none of the others.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{FULL, INCREMENTAL, World, check_by, take, with_index};
use crate::common::{Cluster, Site, Stop, fault};
use crate::{per_major, require_strace};

/// Pages of the table whose changes are hidden.
const PAGES: u32 = 3000;

/// One segment whose index lacks every block, between others that are whole.
///
/// Each page that WAL does not name is looked at with a chance of 1 in 100, by a hash of the backup's time, file and block. So 3000 hidden pages are all
/// missed with a chance of 0.99^3000 = 8e-14; 1375 pages would do for one in a million (0.99^1375 = 1e-6).
#[test]
fn the_blocks_of_one_segment_that_its_index_hides_are_found_by_the_recheck() {
    let builder = Cluster::builder(17)
        .segment_size_mb(16)
        .without_fsync()
        .checksums(false)
        .option("full_page_writes", "off")
        .config("autovacuum", "off");
    let (site, cluster) = Site::with_cluster_of(builder);
    let world = World::around(site, cluster);
    let cluster = &world.cluster;
    // A page has 16 rows and room for one new version.
    cluster.sql(&format!(
        "create table spread (a int, b int, c text) with (fillfactor = 90);
         alter table spread alter c set storage plain;
         insert into spread select g, 0, repeat('x', 400) from generate_series(1, {PAGES} * 16) g;
         checkpoint"
    ));
    take(&world.site, &FULL).success();
    // The relation is active by what the segments around tell. A scan of it would prune pages, and so name them.
    cluster.sql("update spread set b = 1 where ctid = '(0,1)'");
    cluster.archive_now();
    cluster.sql("update spread set b = b + 1 where a % 16 = 8");
    let hidden = cluster.archive_now();
    cluster.sql("update spread set b = 1 where ctid = '(0,2)'");
    cluster.archive_now();
    let lacking = Cell::new(0);
    let spread = cluster.value("select pg_relation_filenode('spread')");
    assert!(with_index(&world.site.object(&hidden), |index| {
        let blocks = index.blocks.as_mut().unwrap();
        let is_own = |fork: (u32, u32, u32, u8)| fork.2.to_string() == spread && fork.3 == 0;
        let own = blocks.0.iter().filter(|one| is_own(one.fork));
        let runs = own.flat_map(|fork| fork.runs.iter().map(|run| run.1));
        lacking.set(runs.sum::<u32>());
        blocks.0.clear();
    }));
    assert!(lacking.get() >= PAGES, "{} pages", lacking.get());
    check_by(&world, Some("was changed at"));
}

/// The files of main forks below `base`, with their content.
fn relation_files(pgdata: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let is_main = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    let mut found = BTreeMap::new();
    let databases = std::fs::read_dir(pgdata.join("base")).unwrap();
    for folder in databases.map(|entry| entry.unwrap().path()) {
        for path in std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
        {
            if is_main(path.file_name().unwrap().to_str().unwrap()) {
                let content = std::fs::read(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

/// Every file that a traced run read from.
fn read_files(calls: &[fault::Call]) -> BTreeSet<PathBuf> {
    let path = |call: &fault::Call| {
        let (_, rest) = call.text.split_once('<')?;
        Some(PathBuf::from(rest.split_once('>')?.0))
    };
    calls.iter().filter_map(path).collect()
}

#[test]
fn of_a_relation_that_did_not_change_no_page_is_read() {
    require_strace!("of_a_relation_that_did_not_change_no_page_is_read");
    let builder = Cluster::small(17).config("autovacuum", "off");
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql(
        "create table t as select g as a, md5(g::text) as b from generate_series(1, 5000) g;
         create table still as select g as a, md5(g::text) as b from generate_series(1, 50000) g;
         create index on still (b)",
    );
    cluster.sql("vacuum (freeze) still");
    let file = |name: &str| {
        let path = cluster.value(&format!("select pg_relation_filepath('{name}')"));
        cluster.pgdata().join(path)
    };
    let (t, still, index) = (file("t"), file("still"), file("still_b_idx"));
    cluster.sql("checkpoint");
    take(&site, &FULL).success();
    let before = relation_files(cluster.pgdata());
    cluster.sql("update t set b = b || 'x' where a % 100 = 0");
    cluster.sql("checkpoint");
    let after = relation_files(cluster.pgdata());
    let incremental = site.pitr().words("backup --json").args(INCREMENTAL);
    let reads = [
        "read",
        "pread64",
        "readv",
        "preadv",
        "preadv2",
        "mmap",
        "sendfile",
        "splice",
        "copy_file_range",
    ];
    let (run, calls) = fault::trace(&incremental, &reads);
    let run = run.success();
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    assert!(!run.stderr.contains("every page is read"), "{run}");
    let read = read_files(&calls);
    assert!(read.contains(&t), "{read:#?}");
    assert!(!read.contains(&still) && !read.contains(&index));
    let is_same = |path: &&PathBuf| before.get(*path) == after.get(*path);
    let unchanged: BTreeSet<&PathBuf> = after.keys().filter(is_same).collect();
    assert!(unchanged.len() > 500, "{} files", unchanged.len());
    let odd: Vec<_> = unchanged
        .iter()
        .filter(|path| read.contains(**path))
        .collect();
    assert!(odd.is_empty(), "read, and not changed: {odd:?}");
}

/// The bytes of a page of a relation's file.
const PAGE: usize = 8192;

/// The disk keeps an old page: what it acknowledged at a checkpoint is not there after a restart.
fn b26_a_write_that_the_disk_lost_is_found(major: u32) {
    let builder = Cluster::small(major)
        .checksums(true)
        .config("autovacuum", "off");
    let (site, mut cluster) = Site::with_cluster_of(builder);
    cluster.sql(
        "create table t (a int, b text) with (fillfactor = 70);
         insert into t select g, md5(g::text) from generate_series(1, 20000) g;
         create index on t (b);
         create table seen as select g as a from generate_series(1, 20000) g;
         create index on seen using hash (a);
         checkpoint",
    );
    cluster.sql("vacuum seen");
    // The full backup begins in a later segment than the last change of any page.
    cluster.archive_now();
    take(&site, &FULL).success();
    let path = |name: &str| {
        let path = cluster.value(&format!("select pg_relation_filepath('{name}')"));
        cluster.pgdata().join(path)
    };
    let (table, index) = (path("t"), path("t_b_idx"));

    // Records name pages that they leave as they are: a hash index locks its buckets, vacuum marks pages that everybody sees.
    cluster.sql("update t set b = b || 'x' where a between 100 and 103");
    cluster.sql("delete from seen where a % 50 = 0");
    cluster.sql("vacuum (freeze) seen");
    // Whoever reads the rows marks them.
    cluster.sql("select count(*) from t");
    cluster.archive_now();
    let honest = take(&site, &INCREMENTAL).success();
    assert_eq!(honest.json()["kind"], "incremental", "{honest}");
    let is_alarm =
        |text: &str| text.contains("are older on disk") || text.contains("every page is read");
    assert!(!is_alarm(&honest.stderr), "{honest}");

    let file = |path: &Path| std::fs::read(path).unwrap();
    let before = [file(&table), file(&index)];
    cluster.sql("update t set b = b || 'y' where a between 5000 and 5003");
    cluster.stop(Stop::Fast);
    let lost: usize = [&table, &index]
        .into_iter()
        .zip(&before)
        .map(|(path, before)| put_back(path, before))
        .sum();
    assert!(lost > 1, "{lost} pages");
    cluster.start();
    let run = take(&site, &INCREMENTAL).success();
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    assert!(run.stderr.contains("every page is read"), "{run}");
    let told = format!("are older on disk: {lost} (block ");
    assert!(run.stderr.contains(&told), "{lost}: {run}");
    // A full backup has nothing to compare with.
    take(&site, &["--full", "--method", "local"]).success();
}
per_major!(b26_a_write_that_the_disk_lost_is_found, v13 v17 v19);

/// Puts back every page of a file that is another one now; returns how many.
fn put_back(path: &Path, before: &[u8]) -> usize {
    let mut now = std::fs::read(path).unwrap();
    let pages = now.chunks_mut(PAGE).zip(before.chunks(PAGE));
    let changed = pages.filter(|(now, before)| now != before);
    let count = changed
        .map(|(now, before)| now.copy_from_slice(before))
        .count();
    std::fs::write(path, now).unwrap();
    crate::common::user::own(path);
    count
}
