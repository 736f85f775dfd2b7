//! `pitr backup --method local` through the real program: files read beside a running server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use pitr::repo::root::cluster::Method;
use rustix::process::Signal;

use crate::backup::{backup, committed, root};
use crate::backup_faults::{damage, nothing_is_left, nothing_is_visible, slow};
use crate::common::{Cluster, PATIENCE, Program, Running, Sandbox, Site, user, wait_until};
use crate::per_major;
use crate::restore::{Scene, go_the_whole_way, verify_backup};
use crate::sealed::{Sealed, check_nothing_is_plain};

const LOCAL: [&str; 2] = ["--method", "local"];

fn local(site: &Site) -> Program {
    backup(site).args(LOCAL)
}

fn a_local_backup_goes_the_whole_way(major: u32) {
    let jobs = if major.is_multiple_of(2) { "4" } else { "1" };
    let scene = Scene::taken(major, &["--method", "local", "--jobs", jobs]);
    let root = root(&scene.site, &scene.backup);
    assert_eq!(root.content.method, Method::Local);
    assert_eq!(root.content.server_manifest, None);
    assert_eq!(root.content.tablespaces.len(), 1);
    scene.site.pitr().arg("verify").succeed();
    let restored = go_the_whole_way(&scene);
    // There is no word of the server's to compare with.
    assert!(restored["restored"]["compared_file_count"].is_null());
}
per_major!(a_local_backup_goes_the_whole_way);

/// The files of a local backup and those of a streamed one of the same quiet server.
fn both_methods_hold_the_same_files(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    let (pgdata, space) = (cluster.pgdata(), cluster.sandbox().dir("space"));
    cluster.make_tablespace("ts", &space);
    cluster.sql(
        "create table t tablespace ts as select g as a from generate_series(1, 1000) g;
         create unlogged table u as select g as a from generate_series(1, 1000) g;
         create unlogged table v tablespace ts as select g as a from generate_series(1, 1000) g",
    );
    cluster.sql("vacuum u");
    let client = cluster.client();
    client.sql("create temporary table x as select g as a from generate_series(1, 1000) g");
    for (name, is_folder) in [
        ("pg_replslot/left", true),
        ("pg_stat_tmp/left", false),
        ("base/pgsql_tmp", true),
        ("base/pgsql_tmp/pgsql_tmp1.2", false),
        ("base/1/pg_internal.init.77", false),
        ("base/1/t9_77_fsm.1", false),
        ("postgresql.auto.conf.tmp", false),
        ("current_logfiles.tmp", false),
        ("backup_manifest", false),
        ("tablespace_map", false),
        ("pg_wal/left", false),
        ("notes/left", false),
        ("notes/t9_77", false),
    ] {
        let path = pgdata.join(name);
        if is_folder {
            std::fs::create_dir_all(&path).unwrap();
        } else {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, name).unwrap();
        }
    }
    user::own_all(pgdata);
    let (streamed, local) = (held(&site, &[]), held(&site, &LOCAL));
    assert!(streamed.0.iter().any(|n| n.starts_with("notes/t9_77 ")));
    check_same(streamed, local);
}
per_major!(both_methods_hold_the_same_files);

fn b28_a_tablespace_in_the_data_directory_is_stored_once(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    let place = cluster.pgdata().join("spaces/inner");
    std::fs::create_dir_all(&place).unwrap();
    user::own_all(&cluster.pgdata().join("spaces"));
    let place = place.display();
    cluster.sql(&format!("create tablespace inner_ts location '{place}'"));
    cluster.sql("create table t tablespace inner_ts as select 1 as a");
    let (streamed, local) = (held(&site, &[]), held(&site, &LOCAL));
    let inside = |n: &&String| n.starts_with("spaces/inner");
    let inside: Vec<&String> = local.0.iter().filter(inside).collect();
    assert_eq!(inside.len(), 1, "{inside:?}");
    check_same(streamed, local);
}
per_major!(b28_a_tablespace_in_the_data_directory_is_stored_once, v13 v19);

type Held = (Vec<String>, Vec<pitr::repo::root::cluster::Tablespace>);

fn check_same(streamed: Held, local: Held) {
    let lacks = |one: &[String], other: &[String]| -> Vec<String> {
        let lacks = one.iter().filter(|name| !other.contains(name));
        lacks.cloned().collect()
    };
    let (missing, more) = (lacks(&streamed.0, &local.0), lacks(&local.0, &streamed.0));
    assert_eq!((missing, more), (Vec::new(), Vec::new()));
    assert_eq!(streamed.1, local.1);
}

/// Takes a backup with these options, and returns the names in it, with their kinds, and its tablespaces.
fn held(site: &Site, args: &[&str]) -> Held {
    let run = backup(site).args(args).succeed();
    let (store, root) = (crate::backup::store(site), root(site, &run.id()));
    let layout = crate::backup::layout(site);
    let snapshot = pitr::snapshot::reader::Snapshot::open(&store, &layout, &root).unwrap();
    let mut names: Vec<String> = snapshot
        .items()
        .map(|item| {
            let item = item.unwrap();
            let kind = match item.metadata {
                pitr::snapshot::layer::Metadata::File { mode, .. } => format!("file {mode:o}"),
                pitr::snapshot::layer::Metadata::Directory { mode, .. } => {
                    format!("directory {mode:o}")
                }
                pitr::snapshot::layer::Metadata::Symlink { target } => {
                    format!("link to {}", target.escape_ascii())
                }
                pitr::snapshot::layer::Metadata::Node(node) => format!("{node:?}"),
            };
            format!("{} {kind}", item.path.escape_ascii())
        })
        .collect();
    names.sort();
    (names, root.content.tablespaces)
}

/// Starts a local backup that takes a while, and waits until its session has started it.
fn start_at(site: &Site, rate: &str) -> Running {
    let begun = |f: &&String| f.contains("/begin");
    let before = site.files().iter().filter(begun).count();
    let running = local(site)
        .args(["--max-rate", rate, "--wal-wait", "10m", "--jobs", "2"])
        .timeout(20 * PATIENCE)
        .spawn();
    wait_until("the backup copies", || {
        // The claim is taken when it is reserved, and again when the server has said where it starts.
        let files = site.files();
        let count = |part: &str| files.iter().filter(|f| f.contains(part)).count();
        count("/begin") > before && count("-claim-") >= 2 * count("/begin")
    });
    running
}

/// Tables are made, filled, truncated, rewritten and dropped all the while; a database comes and goes.
fn b06_files_that_grow_shrink_vanish_and_appear(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 50000) g");
    cluster.sql("create table ledger (n int)");
    let mut running = start_at(&site, "4MiB");
    let client = cluster.client();
    let mut rounds = 0;
    while !running.is_done() {
        rounds += 1;
        client.sql(&format!(
            "create table storm_{rounds} as select g as a from generate_series(1, 5000) g;
             insert into ledger values ({rounds});
             update t set b = b || 'x' where a % 50 = {rounds} % 50;
             truncate storm_{rounds};
             insert into storm_{rounds} values (1);
             alter table storm_{rounds} add primary key (a);
             drop table if exists storm_{}",
            rounds - 1
        ));
        if rounds == 2 {
            client.sql("create database passing");
            client.sql("drop database passing");
        }
        if rounds == 3 {
            client.sql("vacuum full t");
        }
        // The archiver has to keep up.
        std::thread::sleep(Duration::from_millis(200));
    }
    let run = running.wait().success();
    assert!(rounds > 3, "{rounds}");
    cluster.archive_now();
    let sums = "select (select count(*)::text || ' ' || sum(n)::text from ledger) || md5(string_agg(t::text, ',' order by a)) from t";
    let expected = cluster.value(sums);
    let restored = restored(&site, &cluster, &run.id());
    assert_eq!(restored.value(sums), expected);
    let last = format!("select count(*) from storm_{rounds}");
    assert_eq!(restored.value(&last), "1");
}
per_major!(b06_files_that_grow_shrink_vanish_and_appear, v13 v15 v19);

/// A server on the restored backup, at the end of the archive.
fn restored(site: &Site, cluster: &Cluster, id: &str) -> Cluster {
    let to = site.sandbox().join("copy/data");
    site.sandbox().dir("copy");
    let restore = site.pitr().args(["restore", "--backup", id, "--to"]);
    restore.arg(&to).succeed();
    verify_backup(cluster.major(), &to);
    let copy = Cluster::open(cluster.major(), &to).without_fsync();
    copy.promoted()
}

#[test]
fn b01_killed_stopped_or_cut_off_it_is_never_visible_and_the_next_one_completes() {
    let (site, cluster) = slow();
    let session = "from pg_stat_activity where query ~ 'from pg_control_checkpoint'";
    let running = start_at(&site, "256KiB");
    let run = running.ended_by(Signal::TERM).expect_code(130);
    nothing_is_left(&site, &run);
    let running = start_at(&site, "256KiB");
    cluster.sql(&format!(
        "select pg_terminate_backend(pid) {session} and pid <> pg_backend_pid()"
    ));
    let run = running.wait().expect_code(1);
    nothing_is_left(&site, &run);
    let running = start_at(&site, "256KiB");
    let run = running.ended_by(Signal::KILL);
    assert!(committed(&site).is_empty(), "{run}");
    let client = cluster.client();
    wait_until("the server ends the backup", || {
        client.value(&format!("select count(*) - 1 {session}")) == "0"
    });
    let run = local(&site).succeed();
    assert_eq!(committed(&site), [run.id()]);
    site.pitr().arg("verify").succeed();
}

#[test]
fn the_rate_is_kept() {
    let (site, cluster) = slow();
    let size = cluster.value("select sum(pg_database_size(oid)) from pg_database");
    let started = Instant::now();
    local(&site).words("--max-rate 8MiB --jobs 4").succeed();
    let least = size.parse::<u64>().unwrap() / (8 << 20);
    assert!(started.elapsed().as_secs() >= least, "{size} bytes");
}

/// A local backup, and a streamed one that waits for its end: neither asks anything on its connection for replication.
#[test]
fn b44_connections_outlast_the_limit_for_idle_ones_and_lost_ones_are_made_anew() {
    let (site, cluster) = slow();
    cluster.sql("alter system set idle_session_timeout = '1s'");
    cluster.sql("select pg_reload_conf()");
    wait_until("the limit counts", || {
        cluster.value("show idle_session_timeout") == "1s"
    });
    let first = start_at(&site, "2MiB");
    let second = backup(&site)
        .args(["--wait", "10m", "--wal-wait", "10m"])
        .timeout(20 * PATIENCE)
        .spawn();
    let idle =
        "from pg_stat_activity where backend_type = 'walsender' and wait_event = 'ClientRead'";
    let outlast = format!("select count(*) {idle} and state_change < now() - interval '2 s'");
    wait_until("both outlast the limit", || cluster.value(&outlast) == "2");
    cluster.sql(&format!("select pg_terminate_backend(pid) {idle}"));
    first.wait().success();
    second.wait().success();
    assert_eq!(committed(&site).len(), 2);
}

/// A standby and its primary, both of which archive nothing by themselves in time: the tail of the standby's WAL is streamed.
#[test]
fn b05_a_local_backup_of_a_standby_completes() {
    let (site, primary) = slow();
    let standby = primary.standby().option("archive_mode", "off").start();
    primary.sql("create table w as select 1 as a");
    primary.sql("checkpoint");
    standby.wait_replayed(&primary.insert_lsn());
    let run = local_of(&site, &standby, standby.pgdata())
        .words("--jobs 4")
        .succeed();
    let taken = root(&site, &run.id());
    assert!(taken.content.from_standby, "{run}");
    assert!(taken.content.consistent_lsn <= taken.content.stop_lsn);
    primary.sql("insert into w values (2)");
    primary.archive_now();
    site.pitr().arg("verify").succeed();
    let copy = restored(&site, &primary, &run.id());
    assert_eq!(copy.value("select count(*) from w"), "2");
    assert_eq!(copy.value("select count(*) from t"), "50000");
}

#[test]
fn b05_a_standby_promoted_during_its_backup_is_noticed() {
    let (_primary_site, primary) = slow();
    let standby = primary.standby().start();
    let site = Site::new(&standby);
    let running = start_at(&site, "2MiB");
    standby.promote();
    let run = running.wait().expect_code(1);
    assert!(run.stdout.contains("promoted"), "{run}");
    nothing_is_visible(&site, &run);
}

/// `pitr backup --method local` with the connection of one server and a directory of our choice.
fn local_of(site: &Site, server: &Cluster, pgdata: &Path) -> Program {
    local(site)
        .env("PITR_CLUSTERS_MAIN_CONNINFO", server.conninfo("postgres"))
        .env("PITR_CLUSTERS_MAIN_PGDATA", pgdata)
}

/// A server and a copy of it with the same identifier on one host: files of the one are never taken for the other's.
#[test]
fn l03_the_files_of_a_clone_are_not_taken_for_the_servers() {
    let (site, cluster) = slow();
    let standby = cluster.standby().start();
    let mut clone = cluster.standby().option("archive_mode", "off").start();
    clone.promote();
    clone.wait_promoted();
    let refused = |server: &Cluster, pgdata: &Path, why: &str| {
        let run = local_of(&site, server, pgdata).exits(8);
        let run = run.expect_stdout("is not that of the connected server");
        assert!(run.stdout.contains(why), "{run}");
        assert!(!site.files().iter().any(|f| f.ends_with("/begin")), "{run}");
    };
    let port = "listens on port";
    refused(&cluster, clone.pgdata(), port);
    refused(&cluster, standby.pgdata(), port);
    refused(&standby, cluster.pgdata(), port);
    // The clone's file says whatever the server's own does: the process that answers is another one's child.
    let pid_file = clone.pgdata().join("postmaster.pid");
    let own = std::fs::read_to_string(&pid_file).unwrap();
    let forged = |first: &str| {
        let text = std::fs::read_to_string(cluster.pgdata().join("postmaster.pid")).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        std::fs::write(&pid_file, format!("{first}\n{rest}")).unwrap();
        user::own(&pid_file);
    };
    forged(own.lines().next().unwrap());
    refused(&cluster, clone.pgdata(), "another one answers");
    // And with the same process: it works in another directory.
    forged(&cluster.pid().unwrap().to_string());
    refused(&cluster, clone.pgdata(), "runs in another directory");
    std::fs::write(&pid_file, own).unwrap();
    clone.stop(crate::common::Stop::Immediate);
    std::fs::remove_file(&pid_file).ok();
    let run = local_of(&site, &cluster, clone.pgdata()).exits(8);
    run.expect_stdout("no server runs in data directory");
    local(&site).succeed();
}

/// A server that is started anew during its backup has ended it.
#[test]
fn b02_a_server_that_restarts_ends_the_backup() {
    let (site, mut cluster) = slow();
    let running = start_at(&site, "512KiB");
    cluster.stop(crate::common::Stop::Immediate);
    cluster.start();
    let run = running.wait().expect_code(1);
    nothing_is_visible(&site, &run);
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_stored() {
    let (site, cluster) = Site::with_cluster_of(
        Cluster::small(17)
            .hba("local all postgres trust\nlocal postgres all trust\nlocal all all reject\nlocal replication all trust\n"),
    );
    cluster.sql("create role copies login replication");
    let before = site.files();
    let secret = Sandbox::new("secret");
    let unreadable = secret.dir("data");
    std::fs::set_permissions(&unreadable, std::fs::Permissions::from_mode(0o000)).unwrap();
    for (pgdata, code, part) in [
        ("/nonexistent/data", 1, "does not exist on this host"),
        (
            unreadable.to_str().unwrap(),
            1,
            "may not be read by this user",
        ),
    ] {
        let run = local_of(&site, &cluster, Path::new(pgdata)).run();
        let run = run.expect_code(code);
        assert!(run.stdout.contains(part), "{run}");
    }
    std::fs::set_permissions(&unreadable, std::fs::Permissions::from_mode(0o700)).unwrap();
    let of = |role: &str, database: &str| {
        let conninfo = cluster
            .conninfo(database)
            .replace("user=postgres", &format!("user={role}"));
        local(&site)
            .env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo)
            .run()
    };
    let run = of("copies", "postgres").expect_code(1);
    assert!(run.stdout.contains("GRANT EXECUTE ON FUNCTION"), "{run}");
    let run = of("copies", "template1").expect_code(1);
    assert!(run.stdout.contains("no session for SQL"), "{run}");
    assert_eq!(site.files(), before);
    // The granted rights are enough.
    cluster.sql("grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean) to copies");
    of("copies", "postgres").success();
    assert_eq!(committed(&site).len(), 1);
}

#[test]
fn b08_b11_special_files_are_left_out_and_an_unreadable_one_aborts_the_backup_with_its_path() {
    let (site, cluster) = Site::with_cluster(15);
    let pgdata = cluster.pgdata();
    std::os::unix::fs::symlink("/etc/passwd", pgdata.join("base/link")).unwrap();
    std::os::unix::fs::symlink("/etc", pgdata.join("base/folder")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        pgdata.join("base/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let run = local(&site).succeed();
    for name in ["link", "folder", "pipe"] {
        assert!(
            run.stderr
                .contains(&format!("special file \"base/{name}\"")),
            "{run}"
        );
    }
    site.pitr().arg("verify").succeed();
    // A link on the way is not followed out of the tablespace.
    let outside = site.sandbox().dir("outside");
    std::fs::write(outside.join("secret"), "x").unwrap();
    let folder = pgdata.join("pg_tblspc/77");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(&outside, folder.join("PG_15_202209061")).unwrap();
    user::own_all(&folder);
    user::own_all(&outside);
    let run = local(&site).exits(8);
    assert!(run.stdout.contains("tablespace 77 cannot be read"), "{run}");
    std::fs::remove_dir_all(&folder).unwrap();
    let file = pgdata.join("base/secret");
    std::fs::write(&file, "x").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    user::own(&file);
    let run = local(&site).exits(1);
    assert!(run.stdout.contains("base/secret"), "{run}");
    assert_eq!(committed(&site).len(), 1);
}

/// A backup in the exclusive mode of earlier majors leaves its label in the data directory when the server crashes, and so does a copy by hand.
#[test]
fn b12_a_label_that_was_left_in_the_data_directory_is_in_no_backup() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select g as a from generate_series(1, 1000) g");
    for name in ["backup_label", "tablespace_map"] {
        let path = cluster.pgdata().join(name);
        std::fs::write(&path, "START WAL LOCATION: 0/1000028 (left)\n").unwrap();
        user::own(&path);
    }
    for method in ["local", "stream"] {
        let taken = backup(&site).args(["--method", method]).succeed();
        cluster.archive_now();
        let id = taken.id();
        let to = site.sandbox().dir(method).join("data");
        let restore = site.pitr().args(["restore", "--backup", &id, "--to"]);
        restore.arg(&to).succeed();
        let label = std::fs::read_to_string(to.join("backup_label")).unwrap();
        let start = root(&site, &id).content.start_lsn;
        assert!(
            label.starts_with(&format!("START WAL LOCATION: {start} ")),
            "{label}"
        );
        assert!(!label.contains("left") && !to.join("tablespace_map").exists());
        let copy = Cluster::open(17, &to).without_fsync().promoted();
        assert_eq!(copy.value("select count(*) from t"), "1000");
    }
}

fn c04_damaged_pages_are_all_listed_and_the_backup_is_kept_and_marked(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    let blocks = [3, 4, 100, 101, 102, 500, 501, 900];
    let path = damage(&mut cluster, &blocks);
    let run = local(&site).words("--jobs 4").exits(10);
    let shown = run.json();
    assert_eq!(shown["damage_count"], 8, "{run}");
    let found = shown["damage"].as_array().unwrap().iter().map(|page| {
        assert_eq!(page["path"], path);
        page["block"].as_u64().unwrap()
    });
    assert_eq!(found.collect::<Vec<_>>(), blocks);
    let taken = root(&site, &run.id());
    assert!(taken.content.is_damaged() && !taken.content.damage_reported_by_server);
    let info = site.pitr().words("info --json").run().json();
    assert_eq!(info["clusters"][0]["backups"][0]["damaged"], true, "{info}");
}
per_major!(c04_damaged_pages_are_all_listed_and_the_backup_is_kept_and_marked, v13 v16 v19);

/// Bytes that look like a page of the future are no page that the server has changed meanwhile.
#[test]
fn c04_a_page_with_an_lsn_of_the_future_is_damaged() {
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create table d as select g as a from generate_series(1, 20000) g");
    cluster.sql("checkpoint");
    let path = cluster.value("select pg_relation_filepath('d')");
    cluster.stop(crate::common::Stop::Fast);
    let file = cluster.pgdata().join(&path);
    let mut content = std::fs::read(&file).unwrap();
    content[7 * 8192..7 * 8192 + 8].fill(0x77);
    std::fs::write(&file, content).unwrap();
    user::own(&file);
    cluster.start();
    let run = local(&site).exits(10);
    assert_eq!(run.json()["damage"][0]["block"], 7, "{run}");
}

#[test]
fn b07_ten_thousand_files_fit_in_memory() {
    let (site, cluster) = Site::with_cluster(15);
    let folder = cluster
        .pgdata()
        .join("base")
        .join(cluster.value("select oid::text from pg_database where datname = 'postgres'"));
    for i in 0..10_000 {
        // Some of them relations.
        let name = match i % 2 {
            0 => format!("{}", 100_000 + i),
            _ => format!("{i:05}{}", "n".repeat(i % 200)),
        };
        std::fs::write(folder.join(name), vec![b'x'; i % 100]).unwrap();
    }
    user::own_all(&folder);
    let (run, usage) = local(&site).words("--jobs 8").measure();
    let run = run.success();
    assert!(run.json()["file_count"].as_u64().unwrap() > 10_000);
    assert!(
        usage.peak_memory_bytes < 100 << 20,
        "{} bytes",
        usage.peak_memory_bytes
    );
    site.pitr().arg("verify").succeed();
}

#[test]
fn a_local_backup_into_a_sealed_repository_comes_back() {
    let (sealed, cluster) = Sealed::archived(19);
    cluster.sql("create table ledger as select g as id, 'confidential note ' || g as note from generate_series(1, 20000) g");
    let run = sealed.on("writer").words("backup --json").args(LOCAL);
    run.succeed();
    cluster.archive_now();
    check_nothing_is_plain(&sealed, "confidential");
    sealed.on("reader").arg("verify").succeed();
    let to = sealed.sandbox.dir("out").join("copy");
    sealed.on("reader").restore_to(&to).succeed();
    verify_backup(19, &to);
    let copy = Cluster::open(19, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), "20000");
}

/// A container that has PGDATA alone, say: its backup would come back with an empty tablespace.
#[test]
fn b08_a_tablespace_that_cannot_be_seen_ends_the_backup_before_it_begins() {
    let (site, cluster) = Site::with_cluster(17);
    let place = site.sandbox().dir("ts");
    cluster.make_tablespace("ts", &place);
    cluster.sql("create table t tablespace ts as select 1 as a");
    let version = std::fs::read_dir(&place).unwrap().next().unwrap().unwrap();
    let aside = place.join("aside");
    std::fs::rename(version.path(), &aside).unwrap();
    let run = local(&site).exits(8);
    assert!(run.stdout.contains("cannot be read"), "{run}");
    std::fs::rename(&aside, version.path()).unwrap();
    local(&site).succeed();
    assert_eq!(committed(&site).len(), 1);
}
