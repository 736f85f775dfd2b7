//! `pitr backup --incremental` through the real program: what is restored from it is what a full backup gives.

mod bucket;
mod chain;
mod compact;
mod kind;
mod need;
mod pages;
mod recheck;
mod resume;
mod servers_own;
mod stream;
mod unusable;
mod write_only;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pitr::repo::container::{Codec, Container, ContainerWriter, Kind};
use pitr::repo::root::{BackupKind, BackupRoot};
use pitr::wal::index::{Blocks, SegmentIndex};
use pitr::wal::link::Link;
use rustix::process::Signal;

use crate::backup::{committed, root};
use crate::common::{
    Cluster, PATIENCE, Program, Run, Running, Site, Stop, expire_at_once, list_of, wait_until,
};
use crate::per_major;
use crate::restore::{check_checksums, check_relations, verify_backup};
use crate::sealed::Sealed;

const FULL: [&str; 2] = ["--method", "local"];
const INCREMENTAL: [&str; 3] = ["--incremental", "--method", "local"];

fn take(site: &Site, args: &[&str]) -> Run {
    site.pitr().words("backup --json").args(args).run()
}

/// Takes a backup that has to be an incremental one, whose changes WAL told.
fn increment(site: &Site) -> String {
    let run = take(site, &INCREMENTAL).success();
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    assert!(!run.stderr.contains("every page is read"), "{run}");
    run.id()
}

/// Commits the root of a backup anew, with a change.
fn with_root(site: &Site, id: &str, change: impl FnOnce(&mut BackupRoot)) {
    let mut root = root(site, id);
    change(&mut root);
    let path = site
        .cluster_folder()
        .join("backups")
        .join(id)
        .join("manifest");
    std::fs::remove_file(&path).unwrap();
    let (store, layout) = (crate::backup::store(site), crate::backup::layout(site));
    root.commit(&store, &layout).unwrap();
    crate::common::user::own(&path);
}

/// A cluster with relations of every kind, in two databases and a tablespace.
struct World {
    site: Site,
    cluster: Cluster,
    space: PathBuf,
}

impl World {
    fn new(major: u32, checksums: bool) -> World {
        let builder = Cluster::small(major)
            .checksums(checksums)
            .config("autovacuum", "off");
        let (site, cluster) = Site::with_cluster_of(builder);
        World::around(site, cluster)
    }

    /// Fills a cluster that runs, whether it archives into the site or not.
    fn around(site: Site, cluster: Cluster) -> World {
        let space = cluster.sandbox().dir("space");
        cluster.make_tablespace("ts", &space);
        cluster.sql("create database other");
        cluster.sql(
            "create table t (a int primary key, b text, c int[], d point, e tsvector);
             insert into t select g, md5(g::text), array[g, g % 7], point(g, g % 13), to_tsvector('simple', md5(g::text)) from generate_series(1, 8000) g;
             create index on t using hash (b);
             create index on t using gin (c);
             create index on t using gist (d);
             create index on t using spgist (d);
             create index on t using brin (a);
             create index on t using gin (e);
             create table wide (a int, b text);
             alter table wide alter b set storage external;
             insert into wide select g, repeat(md5(g::text), 200) from generate_series(1, 200) g;
             create table s (a int) tablespace ts;
             insert into s select generate_series(1, 20000);
             create table still as select g as a, md5(g::text) as b from generate_series(1, 30000) g;
             create table cut as select g as a from generate_series(1, 30000) g;
             create table emptied as select g as a from generate_series(1, 5000) g;
             create table dropped as select g as a from generate_series(1, 5000) g;
             create unlogged table u as select g as a from generate_series(1, 5000) g;
             create unlogged table v as select g as a from generate_series(1, 500) g;
             create table w as select g as a from generate_series(1, 500) g;
             create sequence q;
             create materialized view m as select a % 10 as k, count(*) from t group by 1",
        );
        cluster
            .client_of("other")
            .sql("create table o as select g as a from generate_series(1, 100) g");
        World {
            site,
            cluster,
            space,
        }
    }

    /// Changes something in every way.
    fn churn(&self, round: u32) {
        let client = self.cluster.client();
        client.sql(&format!(
            "update t set b = b || 'x', d = point(a, {round}) where a % 40 = {round};
             delete from t where a % 41 = {round};
             insert into t select 8000 * {round} + g, md5(g::text), array[g], point(g, g), to_tsvector('simple', 'round') from generate_series(1, 500) g;
             update wide set b = repeat(md5(a::text || '{round}'), 200) where a % 20 = {round};
             insert into s select generate_series(1, 3000);
             delete from cut where a > 30000 / ({round} + 1);
             truncate emptied;
             insert into emptied select generate_series(1, 10 * {round});
             create table made_{round} as select g as a, md5(g::text) as b from generate_series(1, 3000) g;
             create index on made_{round} (b);
             select setval('q', 100 * {round});
             insert into u select generate_series(1, 1000);
             refresh materialized view m"
        ));
        client.sql("vacuum cut");
        client.sql("insert into cut select -g from generate_series(1, 2000) g");
        client.sql("vacuum (freeze) t");
        client.sql("vacuum full wide");
        client.sql("begin; create table aborted as select generate_series(1, 2000) as a; rollback");
        client.sql(&format!("cluster made_{round} using made_{round}_b_idx"));
        match round {
            1 => {
                client.sql("drop table dropped");
                client.sql("alter table v set logged");
                client.sql("alter table w set unlogged");
                client.sql("alter table still set tablespace ts");
            }
            _ => {
                client.sql(&format!("drop table made_{}", round - 1));
                client.sql("alter table still set tablespace pg_default");
                client.sql("reindex table t");
            }
        }
        let strategies: &[&str] = match self.cluster.major() {
            13 | 14 => &[""],
            _ => &[" strategy wal_log", " strategy file_copy"],
        };
        for (n, strategy) in strategies.iter().enumerate() {
            client.sql(&format!("drop database if exists copy_{n}"));
            client.sql(&format!(
                "create database copy_{n} template other{strategy}"
            ));
        }
        let other = self.cluster.client_of("other");
        other.sql(&format!("insert into o values ({round})"));
        other.sql("vacuum o");
        if round == 2 {
            client.sql("alter database copy_0 set tablespace ts");
        }
    }

    /// Returns the rows of every table of every database.
    fn truth(&self) -> Vec<String> {
        truth(&self.cluster)
    }

    /// Restores a backup to the end of the archived WAL, and starts a server on it.
    fn restored(&self, id: &str, name: &str, target: &[&str]) -> Cluster {
        self.site.sandbox().dir(name);
        let to = self.site.sandbox().join(format!("{name}/data"));
        let space = self.site.sandbox().join(format!("{name}/space"));
        let restore = self.site.pitr().args(["restore", "--backup", id, "--to"]);
        let mapping = format!("{}={}", self.space.display(), space.display());
        let restore = restore.arg(&to).args(["--tablespace-mapping", &mapping]);
        restore.args(target).succeed();
        verify_backup(self.cluster.major(), &to);
        let copy = Cluster::open(self.cluster.major(), &to).without_fsync();
        copy.promoted()
    }

    /// The files of relations, with their kinds.
    fn kinds(&self) -> String {
        let rows = self.cluster.sql(
            "select string_agg(pg_relation_filepath(c.oid) || ' ' || a.amname, ', ') from pg_class c join pg_am a on a.oid = c.relam where c.oid >= 16384",
        );
        rows[0][0].clone().unwrap_or_default()
    }

    /// The files of SP-GiST indexes.
    fn spgist(&self) -> BTreeSet<String> {
        let rows = self.cluster.sql(
            "select pg_relation_filepath(c.oid) from pg_class c join pg_am a on a.oid = c.relam where a.amname = 'spgist' and c.relkind = 'i'",
        );
        rows.into_iter()
            .map(|row| row[0].clone().unwrap())
            .collect()
    }
}

/// The rows of every table of every database, as counts and sums.
pub fn truth(cluster: &Cluster) -> Vec<String> {
    let databases = cluster.sql("select datname from pg_database where datallowconn order by 1");
    let mut all = Vec::new();
    for database in databases.iter().map(|row| row[0].as_deref().unwrap()) {
        let client = cluster.client_of(database);
        let tables = client.sql(
            "select relname from pg_class where relkind in ('r', 'm') and relnamespace = 'public'::regnamespace and relpersistence = 'p' order by 1",
        );
        for table in tables.iter().map(|row| row[0].as_deref().unwrap()) {
            let sum = client.value(&format!(
                "select count(*)::text || ' ' || coalesce(md5(string_agg(md5(x::text), '' order by md5(x::text))), '') from {table} x"
            ));
            all.push(format!("{database} {table} {sum}"));
        }
    }
    all
}

/// Checks that two incrementals and a full backup lead to the same.
fn check_all(world: &World, incrementals: [&String; 2], full: &str) {
    world.cluster.archive_now();
    let expected = world.truth();
    let kinds = incrementals.map(|id| root(&world.site, id).head.backup_kind);
    assert_eq!(kinds, [BackupKind::Incremental; 2]);
    world.site.pitr().arg("verify").succeed();
    let one = world.restored(incrementals[1], "one", &[]);
    let two = world.restored(full, "two", &[]);
    check_equal(world, (one, two), false, &expected);
}

/// Stops two copies of which nothing was asked, and compares their relations page by page. Then the first one is asked for everything.
fn check_equal(
    world: &World,
    (mut one, mut two): (Cluster, Cluster),
    has_maps: bool,
    expected: &[String],
) {
    for copy in [&mut one, &mut two] {
        copy.sql("checkpoint");
        copy.stop(Stop::Fast);
    }
    let found = pages::differences((one.pgdata(), two.pgdata()), &world.spgist(), has_maps);
    assert!(found.is_empty(), "{found:#?}\n{}", world.kinds());
    one.start();
    assert_eq!(truth(&one), expected);
    check_relations(&one);
}

/// Full, load, incremental, load, incremental; a full at the same moment; restored and compared.
fn a_chain_gives_what_a_full_backup_gives(major: u32) {
    let world = World::new(major, major.is_multiple_of(2));
    let prior = match major {
        // A prior that came over the network.
        17 => take(&world.site, &[]).success(),
        _ => take(&world.site, &FULL).success(),
    };
    world.churn(1);
    let first = increment(&world.site);
    let at_first = world.truth();
    world.cluster.sql("select pg_create_restore_point('first')");
    world.churn(2);
    world.cluster.archive_now();
    let second = increment(&world.site);
    let full = take(&world.site, &FULL).success().id();
    world.cluster.archive_now();
    let at_second = world.truth();

    let taken = root(&world.site, &second);
    assert_eq!(taken.head.backup_kind, BackupKind::Incremental);
    assert_eq!(taken.head.prior.as_ref().unwrap().to_string(), first);
    assert!(second.ends_with("-incr"), "{second}");
    let whole = root(&world.site, &full);
    assert_eq!(taken.head.file_count, whole.head.file_count);
    assert!(taken.head.stored_bytes < whole.head.stored_bytes);
    let ids: BTreeSet<String> = taken
        .map
        .packs
        .iter()
        .map(|p| p.key.id.to_string())
        .collect();
    assert!(ids.contains(&prior.id()) && ids.contains(&second));
    world.site.pitr().arg("verify").succeed();
    let info = world.site.pitr().words("info --json").run().json();
    let kinds: Vec<&str> = list_of(&info["clusters"][0]["backups"])
        .iter()
        .map(|b| b["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["full", "incremental", "incremental", "full"]);

    let mut copy = world.restored(&first, "first", &["--target-name", "first"]);
    assert_eq!(truth(&copy), at_first);
    check_relations(&copy);
    copy.stop(Stop::Fast);
    check_if_there(&copy);
    let full = |name| world.restored(&full, name, &[]);
    let later = world.restored(&first, "later", &[]);
    check_equal(&world, (later, full("whole")), false, &at_second);
    let last = world.restored(&second, "second", &[]);
    check_equal(&world, (last, full("again")), true, &at_second);
}
per_major!(a_chain_gives_what_a_full_backup_gives, v13 v16 v19);

/// Checks that each checksum is right, if pages have checksums.
fn check_if_there(copy: &Cluster) {
    if copy.major().is_multiple_of(2) {
        check_checksums(copy);
    }
}

/// Changes pages, files and databases for as long as a backup runs.
fn load_while(world: &World, running: &mut Running, seed: u32) -> u32 {
    let client = world.cluster.client();
    let mut round = 0;
    while !running.is_done() {
        round += 1;
        let n = 1000 * seed + round;
        client.sql(&format!(
            "create table storm_{n} as select g as a, md5(g::text) as b from generate_series(1, 3000) g;
             create index on storm_{n} (b);
             insert into ledger values ({n});
             update t set b = b || 'x', d = point(a, {round}) where a % 50 = {round} % 50;
             update wide set b = repeat(md5(a::text || '{round}'), 200) where a % 20 = {round} % 20;
             delete from cut where a % 30 = {round} % 30;
             insert into cut select g from generate_series(1, 1000) g;
             truncate emptied;
             insert into emptied select generate_series(1, 500);
             drop table if exists storm_{}",
            n - 1
        ));
        if round % 4 == 1 {
            client.sql("vacuum t");
            client.sql("vacuum cut");
            client.sql("checkpoint");
        }
        if round % 6 == 2 {
            client.sql("create database passing template other");
            client.sql("drop database passing");
        }
        if round % 6 == 3 {
            client.sql("vacuum full wide");
        }
        // The archiver has to keep up.
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(round > 2, "{round}");
    round
}

/// Prior, incremental and full are all taken while everything changes: replay brings what was restored from one and from the other to the same pages.
fn under_load_replay_brings_both_to_the_same_pages(major: u32) {
    let world = World::new(major, major.is_multiple_of(2));
    world.cluster.sql("create table ledger (n int)");
    let under_load = |args: &[&str], rate: &str, seed| {
        let slow = [
            "--json",
            "--wal-wait",
            "10m",
            "--jobs",
            "2",
            "--max-rate",
            rate,
        ];
        let backup = world.site.pitr().arg("backup").args(slow).args(args);
        let mut running = backup.timeout(20 * PATIENCE).spawn();
        load_while(&world, &mut running, seed);
        let run = running.wait().success();
        assert!(!run.stderr.contains("every page is read"), "{run}");
        run.id()
    };
    under_load(&FULL, "12MiB", 1);
    let first = under_load(&INCREMENTAL, "2MiB", 2);
    let second = under_load(&INCREMENTAL, "2MiB", 3);
    let full = under_load(&FULL, "12MiB", 4);
    check_all(&world, [&first, &second], &full);
}
per_major!(under_load_replay_brings_both_to_the_same_pages, v14 v17);

/// A prior from the primary, an incremental from its standby, and one upon that from the primary again.
fn primary_and_standby_take_turns(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    primary.sql("create table still as select g as a from generate_series(1, 20000) g");
    let standby = primary.standby().option("archive_mode", "off").start();
    take(&site, &FULL).success();
    let caught_up = || {
        primary.archive_now();
        primary.sql("checkpoint");
        standby.wait_replayed(&primary.insert_lsn());
        standby.sql("checkpoint");
    };
    let of_standby = || {
        let run = site
            .pitr()
            .words("backup --json")
            .args(INCREMENTAL)
            .env("PITR_CLUSTERS_MAIN_CONNINFO", standby.conninfo("postgres"))
            .env("PITR_CLUSTERS_MAIN_PGDATA", standby.pgdata())
            .succeed();
        assert_eq!(run.json()["kind"], "incremental", "{run}");
        assert!(!run.stderr.contains("every page is read"), "{run}");
        run
    };
    primary.sql("update t set b = b || 'x' where a % 50 = 0");
    caught_up();
    let first = of_standby();
    assert_eq!(first.json()["from_standby"], true, "{first}");
    // The restartpoint may be the same: an interval of nothing.
    let again = of_standby();
    assert_eq!(again.json()["prior"], first.json()["id"], "{again}");
    primary.sql("update t set b = b || 'y' where a % 51 = 0");
    let last = increment(&site);
    primary.sql("insert into t values (-1, 'z')");
    primary.archive_now();
    site.pitr().arg("verify").succeed();
    for (n, id) in [again.id(), last].iter().enumerate() {
        site.sandbox().dir(format!("copy{n}"));
        let to = site.sandbox().join(format!("copy{n}/data"));
        let restore = site.pitr().args(["restore", "--backup", id, "--to"]);
        restore.arg(&to).succeed();
        let copy = Cluster::open(major, &to).without_fsync().promoted();
        assert_eq!(truth(&copy), truth(&primary), "{id}");
    }
}
per_major!(primary_and_standby_take_turns, v15 v18);

/// The prior is deleted by retention: packs and layers that the incremental names stay, and it is restored.
fn the_prior_goes_and_the_incremental_stays(major: u32) {
    let world = World::new(major, true);
    let full = take(&world.site, &FULL).success().id();
    world.churn(1);
    let first = increment(&world.site);
    world.churn(2);
    let second = increment(&world.site);
    world.cluster.archive_now();
    let expected = world.truth();
    world.site.pitr().arg("verify").succeed();
    world.site.pitr().args(expire_at_once()).succeed();
    assert_eq!(committed(&world.site), std::slice::from_ref(&second));
    let files = world.site.files();
    let has = |part: String| files.iter().any(|f| f.contains(&part));
    assert!(has(format!("packs/{full}/")) && has(format!("layers/{first}/")));
    assert!(!has(format!("events/{full}/")));
    let run = world.site.pitr().arg("verify").succeed();
    assert!(!run.stderr.contains("warning"), "{run}");
    let again = world.site.pitr().args(expire_at_once()).succeed();
    assert!(!again.stderr.contains("warning"), "{again}");
    let copy = world.restored(&second, "copy", &[]);
    assert_eq!(truth(&copy), expected);
    // Parts that no root names any more go; those under an id whose reservation is gone, once the id is a day old.
    let last = take(&world.site, &FULL).success().id();
    world.site.pitr().arg("verify").succeed();
    world.site.pitr().args(expire_at_once()).succeed();
    assert_eq!(committed(&world.site), [last]);
    let own = |f: &&String| f.contains(&format!("/{second}/"));
    assert_eq!(world.site.files().iter().find(own), None);
}
per_major!(the_prior_goes_and_the_incremental_stays, v16 v18);

/// Every object of the segments between two backups.
fn segments_between(world: &World, from: &str, to: &str) -> Vec<PathBuf> {
    let number = |lsn: pitr::pg::lsn::Lsn| lsn.0 >> 20;
    let (from, to) = (root(&world.site, from), to);
    let end = to.parse::<pitr::pg::lsn::Lsn>().unwrap();
    let numbers = number(from.content.stop_lsn) + 1..number(end);
    let name = |n: u64| format!("00000001{:08X}{:08X}", n >> 12, n & 0xFFF);
    numbers.map(|n| world.site.object(&name(n))).collect()
}

/// Stores a segment anew with another index; whether it was another one.
pub fn with_index(path: &Path, change: impl Fn(&mut SegmentIndex)) -> bool {
    let bytes = std::fs::read(path).unwrap();
    let folder = path.parent().unwrap();
    let store = pitr::store::file::FileStore::open(folder, 1).unwrap();
    let key = pitr::store::Key::new(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let object = pitr::store::Store::open(&store, &key).unwrap().unwrap();
    let container = Container::open(object).unwrap();
    let mut raw = Vec::new();
    container
        .read_body(&mut |piece| {
            raw.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    let wal = pitr::pg::page::WalIdentity::read(&raw).unwrap();
    let timeline = pitr::pg::timeline::TimelineId::new(1).unwrap();
    let mut indexer = pitr::wal::indexer::Indexer::new(&wal, wal.start_lsn, timeline).unwrap();
    indexer.feed(&raw).unwrap();
    let mut index = indexer.finish(false);
    change(&mut index);
    let mut sections = index.sections(false);
    sections.push(Link::read(&container).unwrap().section());
    let mut writer = ContainerWriter::new(Vec::new(), Kind::Segment, Codec::Lz4).unwrap();
    writer.write(&raw).unwrap();
    let stored = writer.finish(container.identity(), sections).unwrap();
    let is_other = stored != bytes;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, stored).unwrap();
    crate::common::user::own(path);
    is_other
}

/// Takes an incremental, which has to say why WAL does not tell what changed, and proves that it is right.
fn check_by(world: &World, why: Option<&str>) {
    let run = take(&world.site, &INCREMENTAL).success();
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    let is_compared = run.stderr.contains("every page is read and compared");
    assert_eq!(is_compared, why.is_some(), "{run}");
    assert!(run.stderr.contains(why.unwrap_or_default()), "{run}");
    let full = take(&world.site, &FULL).success().id();
    world.cluster.archive_now();
    let expected = world.truth();
    world.cluster.archive_now();
    let one = run.id();
    let verify = world.site.pitr().args(["verify", "--backup", &one]);
    verify.succeed();
    let one = world.restored(&one, "one", &[]);
    let two = world.restored(&full, "two", &[]);
    check_equal(world, (one, two), true, &expected);
}

/// A full backup, load, and all of its WAL archived. Returns the objects of segments between.
fn with_wal(major: u32) -> (World, Vec<PathBuf>) {
    let world = World::new(major, true);
    let full = take(&world.site, &FULL).success().id();
    world.cluster.archive_now();
    world.cluster.sql("update still set b = b || 'y'");
    world.cluster.sql("checkpoint");
    world.cluster.sql("update t set b = b || 'z' where a < 10");
    let end = world.cluster.insert_lsn();
    world.cluster.archive_now();
    let segments = segments_between(&world, &full, &end);
    assert!(segments.len() > 4, "{}", segments.len());
    (world, segments)
}

/// An index that lacks blocks is found out by the pages themselves.
#[test]
fn blocks_that_an_index_hides_are_found_by_the_recheck() {
    let (world, segments) = with_wal(17);
    // The relation must look active: one of its blocks stays.
    for path in segments {
        with_index(&path, |index| {
            let blocks = index.blocks.take().unwrap();
            let keep = |mut fork: pitr::wal::index::ForkBlocks| {
                fork.runs.truncate(1);
                fork.runs[0].1 = 1;
                fork
            };
            index.blocks = Some(Blocks(blocks.0.into_iter().map(keep).collect()));
        });
    }
    check_by(&world, Some("was changed at"));
}

/// A segment without an index is decoded.
#[test]
fn a_segment_whose_index_was_not_recorded_is_decoded() {
    let (world, segments) = with_wal(15);
    for path in segments {
        assert!(with_index(&path, |index| index.blocks = None));
    }
    check_by(&world, None);
}

/// A hole in the archived WAL: every page is compared.
fn a_hole_in_the_wal_has_every_page_compared(major: u32) {
    let (world, segments) = with_wal(major);
    std::fs::remove_file(&segments[2]).unwrap();
    check_by(&world, Some("is not in the repository"));
}
per_major!(a_hole_in_the_wal_has_every_page_compared, v14 v19);

/// Another server's copy of an old segment, which was refused after the prior began: that server has come, and may go on later.
#[test]
fn b41_a_copy_that_was_refused_since_the_prior_began_has_every_page_compared() {
    let world = World::new(16, true);
    let old = [(); 2].map(|()| world.cluster.archive_now());
    offer_other(&world, &old[0]);
    let folder = world.site.cluster_folder().join("conflicts");
    for kept in std::fs::read_dir(folder).unwrap() {
        let file = std::fs::File::open(kept.unwrap().path()).unwrap();
        let hour = Duration::from_secs(3600);
        file.set_modified(std::time::SystemTime::now() - hour)
            .unwrap();
    }
    take(&world.site, &FULL).success();
    world.cluster.sql("update t set b = b || 'z' where a < 10");
    world.cluster.archive_now();
    // A copy that was refused before tells nothing of what came since.
    let run = take(&world.site, &INCREMENTAL).success();
    assert!(!run.stderr.contains("every page is read"), "{run}");
    offer_other(&world, &old[1]);
    world.cluster.sql("update t set b = b || 'y' where a < 10");
    world.cluster.archive_now();
    let why = format!("another copy of segment \"{}\" was refused", old[1]);
    check_by(&world, Some(&why));
}

/// Offers an archived segment with another content, which is refused.
fn offer_other(world: &World, name: &str) {
    let other = world.site.sandbox().dir("other").join(name);
    world.site.restore().arg(name).arg(&other).succeed();
    let mut bytes = std::fs::read(&other).unwrap();
    bytes[300_000] ^= 4;
    std::fs::write(&other, bytes).unwrap();
    world.site.archive().arg(&other).exits(20);
    std::fs::remove_file(other).unwrap();
}

/// WAL that is not archived so far is taken from the server's own pg_wal.
#[test]
fn wal_that_is_not_archived_is_read_from_the_server() {
    let world = World::new(16, false);
    take(&world.site, &FULL).success();
    world.cluster.set("archive_command", "false");
    world.churn(1);
    let running = world
        .site
        .pitr()
        .words("backup --json --wal-wait 10m")
        .args(INCREMENTAL)
        .spawn();
    let files = || world.site.files();
    wait_until("the layers are written", || {
        files()
            .iter()
            .any(|f| f.contains("/layers/") && f.contains("-incr/"))
    });
    world.cluster.sql("alter system reset archive_command");
    world.cluster.reload();
    let run = running.wait().success();
    assert!(!run.stderr.contains("every page is read"), "{run}");
    world.cluster.archive_now();
    let expected = world.truth();
    let copy = world.restored(&run.id(), "copy", &[]);
    assert_eq!(truth(&copy), expected);
    check_relations(&copy);
}

/// Without a backup to build on a full one is taken, and the reason told.
#[test]
fn where_no_prior_serves_a_full_backup_is_taken() {
    let (site, cluster) = Site::with_cluster(18);
    let full = |why: &str| {
        let run = take(&site, &INCREMENTAL).success();
        assert_eq!(run.json()["kind"], "full", "{run}");
        assert!(run.stderr.contains("a full backup is taken: "), "{run}");
        assert!(run.stderr.contains(why), "{run}");
        run.id()
    };
    let first = full("has no backup");
    let delete = ["backup", "delete", "--confirm"];
    let second = full_of(&site);
    // The newest good one stays, the other one is marked.
    site.pitr().args(delete).arg(&second).exits(8);
    site.pitr().args(delete).arg(&first).succeed();
    let is_marked = |id: &str| {
        let of_id = format!("{id}/");
        let files = site.files();
        let mut marks = files.iter().filter(|f| f.contains("-expire-"));
        marks.any(|f| f.contains(&of_id))
    };
    assert!(is_marked(&first) && !is_marked(&second));
    let run = take(&site, &INCREMENTAL).success();
    assert_eq!(run.json()["prior"], second, "{run}");
    drop(cluster);
}

fn full_of(site: &Site) -> String {
    take(site, &FULL).success().id()
}

/// Killed while it copies, it leaves nothing that is visible, and the prior goes on being one.
#[test]
fn b01_an_incremental_that_is_killed_is_never_visible() {
    let world = World::new(15, true);
    let full = full_of(&world.site);
    world.churn(1);
    let running = world
        .site
        .pitr()
        .words("backup --json --max-rate 32KiB --jobs 1")
        .args(INCREMENTAL)
        .spawn();
    wait_until("the incremental copies", || {
        world.site.files().iter().any(|f| f.contains("-incr/begin"))
    });
    std::thread::sleep(Duration::from_secs(2));
    running.ended_by(Signal::KILL);
    assert_eq!(committed(&world.site), [full]);
    let client = world.cluster.client();
    wait_until("the server ends the backup", || {
        client.value(
            "select count(*) - 1 from pg_stat_activity where query ~ 'from pg_control_checkpoint'",
        ) == "0"
    });
    let id = increment(&world.site);
    world.cluster.archive_now();
    let expected = world.truth();
    let copy = world.restored(&id, "copy", &[]);
    assert_eq!(truth(&copy), expected);
}

/// A host without the private half that cannot keep anything reads no maps; one that has it takes incrementals.
#[test]
fn of_an_encrypted_repository() {
    let (sealed, cluster) = Sealed::archived(17);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    let take = |host: &str| {
        sealed
            .on(host)
            .words("backup --json")
            .args(INCREMENTAL)
            .succeed()
    };
    let first = take("writer");
    assert_eq!(first.json()["kind"], "full", "{first}");
    cluster.sql("update t set b = b || 'x' where a % 100 = 0");
    let second = take("writer");
    assert_eq!(second.json()["kind"], "full", "{second}");
    assert!(second.stderr.contains("state directory"), "{second}");
    cluster.sql("update t set b = b || 'x' where a % 101 = 0");
    let third = take("reader");
    assert_eq!(third.json()["kind"], "incremental", "{third}");
    cluster.archive_now();
    sealed.on("reader").arg("verify").succeed();
    sealed.on("janitor").words("info --json").run();
    let to = sealed.sandbox.join("copy/data");
    sealed.sandbox.dir("copy");
    let restore = sealed
        .on("reader")
        .args(["restore", "--backup", &third.id(), "--to"]);
    restore.arg(&to).succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), truth(&cluster));
}

/// The prior lies on the timeline before a promotion.
fn after_a_promotion_the_prior_of_the_timeline_before_serves(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    let mut standby = primary.standby().start();
    take(&site, &FULL).success();
    primary.sql("update t set b = b || 'x' where a % 50 = 0");
    primary.archive_now();
    standby.wait_replayed(&primary.insert_lsn());
    let mut primary = primary;
    primary.stop(Stop::Immediate);
    standby.promote();
    standby.wait_promoted();
    standby.sql("update t set b = b || 'y' where a % 51 = 0");
    standby.archive_now();
    let of = |args: &[&str]| {
        site.pitr()
            .words("backup --json")
            .args(args)
            .env("PITR_CLUSTERS_MAIN_CONNINFO", standby.conninfo("postgres"))
            .env("PITR_CLUSTERS_MAIN_PGDATA", standby.pgdata())
            .succeed()
    };
    let run = of(&INCREMENTAL);
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    assert_eq!(run.json()["timeline"], 2, "{run}");
    assert!(!run.stderr.contains("every page is read"), "{run}");
    standby.archive_now();
    site.pitr().arg("verify").succeed();
    site.sandbox().dir("copy");
    let to = site.sandbox().join("copy/data");
    let restore = site.pitr().args(["restore", "--backup", &run.id(), "--to"]);
    restore.arg(&to).succeed();
    let copy = Cluster::open(major, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), truth(&standby));
    standby.stop(Stop::Immediate);
}
per_major!(after_a_promotion_the_prior_of_the_timeline_before_serves, v13 v17);

/// A second repository gets an incremental with all that it needs.
#[test]
fn it_is_copied_to_a_second_repository() {
    let (site, cluster) = Site::with_cluster(16);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 20000) g");
    full_of(&site);
    cluster.sql("update t set b = b || 'x' where a % 50 = 0");
    let id = increment(&site);
    cluster.archive_now();
    let second = site.add_repository("second", "required = false\n");
    site.pitr().words("repo sync --confirm").run();
    site.sandbox().dir("copy");
    let to = site.sandbox().join("copy/data");
    let program: Program = crate::common::pitr().args([
        "restore",
        "--cluster",
        "main",
        "--backup",
        &id,
        "--repository",
    ]);
    program.arg(&second).arg("--to").arg(&to).succeed();
    let copy = Cluster::open(16, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), truth(&cluster));
}
