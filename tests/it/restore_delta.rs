//! `pitr restore --delta`: a data directory of the cluster is taken back in place.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::common::mount::DiskOver;
use crate::common::{Cluster, Program, Run, Site, Stop, copy_all, fault, user, wait_until};
use crate::per_major;
use crate::restore::{AT_POINT, Scene, content, rows, verify_backup};

/// Runs a restore that holds at a point until `meanwhile` has returned.
fn held(folder: &Path, restore: &Program, point: &str, meanwhile: impl FnOnce()) -> Run {
    let pause = folder.join(point);
    let value = format!("{point}={}", pause.display());
    let running = restore.clone().env("PITR_FAULT_PAUSE", value).spawn();
    wait_until(point, || pause.exists());
    meanwhile();
    std::fs::remove_file(&pause).unwrap();
    running.wait()
}

/// Requires that a restore has left a data directory as it was.
fn is_untouched(data: &Path, space: &Path) {
    assert!(data.join("global/pg_control").exists());
    assert!(!data.join("pg_wal/pitr.restore").exists());
    assert!(!space.join("pitr.restore").exists());
}

#[test]
fn r180_a_server_that_starts_between_the_plan_and_the_restore_keeps_its_directory() {
    let mut scene = Scene::new(18);
    let (data, space) = (scene.cluster.pgdata().to_owned(), scene.space.clone());
    scene.cluster.archive_now();
    scene.cluster.stop(Stop::Fast);
    forget_waiting(&data);
    let restore = delta(&scene).arg("--confirm");
    let pauses = scene.site.sandbox().dir("pause");
    let run = held(&pauses, &restore, "restore-unlocked", || {
        scene.cluster.start();
    });
    run.expect_code(8).expect_stdout("PostgreSQL runs in");
    is_untouched(&data, &space);
    scene.cluster.stop(Stop::Fast);
    forget_waiting(&data);
    // One that ran and ended has written since.
    let run = held(&pauses, &restore, "restore-unlocked", || {
        scene.cluster.start();
        scene.cluster.sql("insert into t values (0, 'since')");
        scene.cluster.stop(Stop::Fast);
        forget_waiting(&data);
    });
    run.expect_code(8).expect_stdout("has changed since");
    is_untouched(&data, &space);
    // The last moment: all checks have passed.
    let run = held(&pauses, &restore, "restore-control", || {
        scene.cluster.start();
    });
    run.expect_code(8).expect_stdout("a server was started in");
    is_untouched(&data, &space);
    scene
        .cluster
        .sql("insert into t values (-1, 'still there')");
    scene.cluster.archive_now();
    scene.cluster.stop(Stop::Fast);
    forget_waiting(&data);
    restore.succeed();
    assert!(!space.join("pitr.restore").exists());
    scene.cluster.start();
    scene.cluster.wait_promoted();
    assert_eq!(rows(&scene.cluster), AT_POINT);
}

#[test]
fn r181_a_restore_that_was_planned_before_the_same_one_ended_leaves_nothing_there() {
    let scene = Scene::new(18);
    let restore = scene
        .restore()
        .args(["--json", "--target-name", scene.point]);
    let pauses = scene.site.sandbox().dir("pause");
    let run = held(&pauses, &restore, "restore-unlocked", || {
        restore.succeed();
    });
    run.expect_code(8).expect_stdout("not empty");
    is_untouched(&scene.to(), &scene.new_space());
    let mut copy = scene.open();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_POINT);
}

#[test]
fn r182_a_resumed_restore_takes_over_nothing_that_came_into_a_tablespace_since() {
    let scene = Scene::new(18);
    let restore = scene
        .restore()
        .args(["--json", "--target-name", scene.point]);
    let (data, space) = (scene.to(), scene.new_space());
    let pause = scene.site.sandbox().dir("pause").join("control");
    let value = format!("restore-control={}", pause.display());
    let running = restore.clone().env("PITR_FAULT_PAUSE", value).spawn();
    wait_until("the tablespace is marked", || pause.exists());
    running.ended_by(Signal::KILL);
    std::fs::remove_file(&pause).unwrap();
    assert!(data.join("pg_wal/pitr.restore").exists());
    assert!(space.join("pitr.restore").exists());
    // Somebody gives the place to another cluster.
    std::fs::remove_dir_all(&space).unwrap();
    let foreign = space.join("PG_18_202506291/5/1");
    std::fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    std::fs::write(&foreign, "another cluster").unwrap();
    user::own_all(&space);
    let run = restore.exits(8);
    run.expect_stdout("nothing in it says that this restore wrote there");
    assert_eq!(
        std::fs::read_to_string(&foreign).unwrap(),
        "another cluster"
    );
    // With the mark of another restore it is taken over no more.
    std::fs::write(space.join("pitr.restore"), "{}").unwrap();
    user::own_all(&space);
    restore.exits(8);
    // So it is with one that an older version has begun: emptied, it is filled.
    std::fs::remove_dir_all(&space).unwrap();
    restore.succeed();
    is_untouched(&data, &space);
    let mut copy = scene.open();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_POINT);
}

#[test]
fn r219_what_a_filesystem_has_in_its_root_is_passed_over() {
    let scene = Scene::new(17);
    let restore = scene
        .restore()
        .args(["--json", "--target-name", scene.point]);
    let (data, space) = (scene.to(), scene.new_space());
    let lost = [data.join("pg_wal/lost+found"), space.join("lost+found")];
    let open = |mode: u32| {
        for one in &lost {
            std::fs::set_permissions(one, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    for one in &lost {
        std::fs::create_dir_all(one).unwrap();
    }
    user::own_all(data.parent().unwrap());
    // Those of ext4 are root's: the server's user cannot look into them.
    open(0);
    let pause = scene.site.sandbox().dir("pause").join("control");
    let value = format!("restore-control={}", pause.display());
    let running = restore.clone().env("PITR_FAULT_PAUSE", value).spawn();
    wait_until("the tablespace is marked", || pause.exists());
    running.ended_by(Signal::KILL);
    std::fs::remove_file(&pause).unwrap();
    restore.succeed();
    is_untouched(&data, &space);
    let stray = data.join("pg_wal/stray");
    std::fs::write(&stray, "x").unwrap();
    user::own(&stray);
    let delta = scene.site.pitr().words("restore --json --delta --confirm");
    let delta = delta
        .args(["--target-name", scene.point, "--to"])
        .arg(&data);
    delta.succeed();
    assert!(!stray.exists());
    assert!(lost.iter().all(|one| one.is_dir()));
    open(0o755);
    let mut copy = scene.open();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_POINT);
}

/// Returns the files that a restore writes, without what differs by nature: times, and where tablespaces lie.
fn state(data: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = content(data);
    found.retain(|(name, _)| {
        !name.ends_with("pitr.guard")
            && !name.ends_with("pitr.settings")
            && !name.starts_with("pg_tblspc/")
    });
    found
}

fn delta(scene: &Scene) -> Program {
    let to = scene.cluster.pgdata().to_owned();
    let restore = scene.site.pitr().words("restore --json --delta");
    restore.args(["--target-name", scene.point, "--to"]).arg(to)
}

fn the_cluster_is_taken_back_in_place(major: u32) {
    let mut scene = Scene::new(major);
    let restore = scene.restore().args(["--target-name", scene.point]);
    restore.succeed();
    let (fresh, fresh_space) = (state(&scene.to()), content(&scene.new_space()));
    scene.cluster.sql(
        "create table later as select g as a from generate_series(1, 3000) g;
         drop table s;
         update t set b = b || 'z' where a % 50 = 0;
         create table moved tablespace ts as select 1 as a",
    );
    scene.cluster.sql("create database third");
    scene.cluster.sql("vacuum full t");
    scene.cluster.archive_now();
    let pgdata = scene.cluster.pgdata().to_owned();
    // A running server keeps its directory.
    delta(&scene).arg("--confirm").exits(8);
    scene.cluster.stop(Stop::Fast);
    for name in ["base/1/stray", "stray", "pg_wal/stray"] {
        std::fs::write(pgdata.join(name), "x").unwrap();
        user::own_all(&pgdata.join(name));
    }
    let status = pgdata.join("pg_wal/archive_status");
    let ready = status.join("00000001000000000000007F.ready");
    std::fs::write(&ready, "").unwrap();
    delta(&scene)
        .arg("--confirm")
        .exits(8)
        .expect_stdout("wal backfill --from");
    forget_waiting(&pgdata);
    // Without a confirmation nothing is touched.
    let before = content(&pgdata);
    delta(&scene).exits(8).expect_stderr("--confirm");
    delta(&scene).arg("--dry-run").succeed();
    assert!(content(&pgdata) == before);
    let run = delta(&scene).arg("--confirm").succeed();
    let json = run.json();
    let number = |name: &str| json["restored"][name].as_u64().unwrap();
    assert!(number("kept_bytes") > number("written_bytes"), "{run}");
    assert!(number("removed_file_count") > 10, "{run}");
    assert_eq!(json["restored"]["resumed"], false, "{run}");
    verify_backup(major, &pgdata);
    let same = |found: &[(String, Vec<u8>)], wanted: &[(String, Vec<u8>)]| {
        let names = |all: &[(String, Vec<u8>)]| -> Vec<String> {
            all.iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(names(found), names(wanted));
        for ((name, found), (_, wanted)) in found.iter().zip(wanted) {
            assert!(found == wanted, "{name} differs");
        }
    };
    same(&state(&pgdata), &fresh);
    same(&content(&scene.space), &fresh_space);
    scene.cluster.start();
    scene.cluster.wait_promoted();
    assert_eq!(rows(&scene.cluster), AT_POINT);
    let later = "select count(*) from pg_class where relname in ('later', 'moved')";
    assert_eq!(scene.cluster.client().value(later), "0");
    let first = "select sum(a) from s";
    assert_eq!(scene.cluster.client().value(first), "12502500");
}
per_major!(the_cluster_is_taken_back_in_place, v13 v16 v19);

#[test]
fn t89_what_is_not_the_clusters_is_left_alone() {
    let scene = Scene::new(17);
    let to = |path: &Path| {
        let restore = scene.site.pitr().words("restore --json --delta --confirm");
        restore.words("--target-name here --to").arg(path)
    };
    // Another cluster.
    let mut other = Cluster::builder(17).start();
    other.stop(Stop::Fast);
    let before = content(other.pgdata());
    let run = to(other.pgdata()).exits(8);
    run.expect_stdout("is a data directory of system identifier");
    // A directory that is none.
    let folder = scene.site.sandbox().dir("folder");
    std::fs::write(folder.join("file"), "x").unwrap();
    user::own_all(&folder);
    let run = to(&folder).exits(8);
    run.expect_stdout("is no data directory");
    // One of which nobody knows whether a server runs in it.
    std::fs::write(other.pgdata().join("postmaster.pid"), "1\n").unwrap();
    user::own_all(&other.pgdata().join("postmaster.pid"));
    to(other.pgdata()).exits(8);
    std::fs::remove_file(other.pgdata().join("postmaster.pid")).unwrap();
    assert!(content(other.pgdata()) == before);
    // One whose WAL lies elsewhere.
    let wal = other.pgdata().with_file_name("wal");
    std::fs::rename(other.pgdata().join("pg_wal"), &wal).unwrap();
    std::os::unix::fs::symlink(&wal, other.pgdata().join("pg_wal")).unwrap();
    let run = to(other.pgdata()).exits(8);
    run.expect_stdout("pg_wal is no plain directory");
    // One that lost it (row T89).
    std::fs::remove_file(other.pgdata().join("pg_wal")).unwrap();
    let run = to(other.pgdata()).exits(8);
    run.expect_stdout("its pg_wal is gone")
        .expect_stdout("mkdir -m 700 ");
}

/// Two majors share a place for tablespaces, as behind pg_upgrade, and one of them is taken back.
#[test]
fn t50_another_major_in_the_place_of_a_tablespace_is_left_alone() {
    let mut scene = Scene::new(17);
    scene
        .cluster
        .sql("create table later tablespace ts as select 1 as a");
    scene.cluster.archive_now();
    scene.cluster.stop(Stop::Fast);
    forget_waiting(scene.cluster.pgdata());
    let older = scene.space.join("PG_16_202307071");
    std::fs::create_dir_all(older.join("5")).unwrap();
    for name in ["5/16384", "5/16385"] {
        std::fs::write(older.join(name), "a table of 16").unwrap();
    }
    user::own_all(&older);
    let stray = std::fs::read_dir(&scene.space).unwrap();
    let stray = stray.map(|e| e.unwrap().path());
    let own = stray.into_iter().find(|path| *path != older).unwrap();
    std::fs::write(own.join("stray"), "x").unwrap();
    user::own_all(&own);
    let before = content(&older);
    delta(&scene).arg("--confirm").succeed();
    assert!(content(&older) == before);
    assert!(!own.join("stray").exists());
    // The server's own check knows nothing of its neighbour.
    std::fs::remove_dir_all(&older).unwrap();
    verify_backup(17, scene.cluster.pgdata());
}

/// A copy of the data directory alone leads to the tablespaces of the original.
#[test]
fn r214_a_tablespace_of_the_running_cluster_is_not_restored_through_a_copy() {
    let mut scene = Scene::new(17);
    scene.cluster.stop(Stop::Fast);
    let copy = scene.site.sandbox().dir("older").join("data");
    copy_all(scene.cluster.pgdata(), &copy);
    forget_waiting(&copy);
    // Its last WAL counts for nothing here, and may hold more than the end of a shutdown.
    for entry in std::fs::read_dir(copy.join("pg_wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    scene.cluster.start();
    let at = ["--json", "--confirm", "--target-name", scene.point, "--to"];
    let restore = |way: &str| scene.site.pitr().args(["restore", way]).args(at).arg(&copy);
    for way in ["--delta", "--replace"] {
        let run = restore(way).exits(8);
        run.expect_stdout("is a tablespace of");
        is_untouched(&copy, &scene.space);
    }
    let sum = "select sum(a) from s";
    scene.cluster.sql("checkpoint");
    assert_eq!(scene.cluster.value(sum), "12502500");
    let own = scene.site.sandbox().dir("own");
    let mapping = format!("{}={}", scene.space.display(), own.display());
    let mapped = restore("--delta").args(["--tablespace-mapping", &mapping]);
    mapped.succeed();
    let mut copy = Cluster::open(17, &copy).without_fsync().create();
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.value(sum), "12502500");
    assert_eq!(rows(&copy), AT_POINT);
    scene.cluster.sql("insert into s values (0)");
    assert_eq!(scene.cluster.value("select count(*) from s"), "5001");
}

fn forget_waiting(pgdata: &Path) {
    for entry in std::fs::read_dir(pgdata.join("pg_wal/archive_status")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "ready") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// The obstacles of a restore are found while the directory is a cluster still.
#[test]
fn t51_r228_what_a_restore_in_place_cannot_do_is_found_before_it_begins() {
    let mut scene = Scene::new(16);
    let pgdata = scene.cluster.pgdata().to_owned();
    // The last WAL of a server that was killed was never offered.
    scene.cluster.stop(Stop::Immediate);
    let before = content(&pgdata);
    let run = delta(&scene).arg("--confirm").exits(8);
    run.expect_stdout("was not shut down cleanly")
        .expect_stdout("wal backfill --from");
    assert!(content(&pgdata) == before);
    // The printed commands work for any name (row R228).
    let spaced = pgdata.with_file_name("the data");
    std::fs::rename(&pgdata, &spaced).unwrap();
    let restore = scene.site.pitr().words("restore --json --delta --confirm");
    let restore = restore.arg("--to").arg(&spaced);
    let run = restore.exits(8);
    run.expect_stdout("the data/pg_wal'\\nmkdir '")
        .expect_stdout("the data/pg_wal'/* '");
    let ready = spaced.join("pg_wal/archive_status/00000001000000000000007F.ready");
    std::fs::write(&ready, "").unwrap();
    let run = restore.exits(8);
    run.expect_stdout("the data/pg_wal', then remove");
    std::fs::remove_file(&ready).unwrap();
    std::fs::rename(&spaced, &pgdata).unwrap();
    scene.cluster.start();
    scene.cluster.archive_now();
    scene.cluster.stop(Stop::Fast);
    forget_waiting(&pgdata);
    // Another cluster has the same file.
    let (file, second) = (pgdata.join("base/1/1259"), scene.space.join("1259"));
    std::fs::hard_link(&file, &second).unwrap();
    let before = content(&pgdata);
    let run = delta(&scene).arg("--confirm").exits(8);
    run.expect_stdout("has 2 names");
    assert!(content(&pgdata) == before, "the cluster is whole");
    std::fs::remove_file(&second).unwrap();
    // One that the backup does not have goes, and nobody writes into it.
    let kept = scene.site.sandbox().file("kept", "of another cluster");
    std::fs::hard_link(&kept, pgdata.join("base/1/99999")).unwrap();
    delta(&scene).arg("--confirm").succeed();
    assert_eq!(
        std::fs::read_to_string(&kept).unwrap(),
        "of another cluster"
    );
    verify_backup(16, &pgdata);
}

#[test]
fn t71_a_whole_cluster_whose_tablespace_takes_no_mark_is_no_unfinished_restore() {
    let mut scene = Scene::new(17);
    let pgdata = scene.cluster.pgdata().to_owned();
    scene.cluster.archive_now();
    scene.cluster.stop(Stop::Fast);
    forget_waiting(&pgdata);
    let before = content(&pgdata);
    let full = fault::Fault::error("linkat", "ENOSPC").on(&scene.space);
    let (run, fired) = fault::inject(&delta(&scene).arg("--confirm"), &full);
    assert!(fired > 0 && !run.is_success(), "{run}");
    run.expect_stdout("a server can start on the directory as before");
    is_untouched(&pgdata, &scene.space);
    assert!(content(&pgdata) == before, "the cluster is whole");
    // A mark of a restore that was given up: the cluster is whole, so none is under way.
    let mark = scene.space.join("pitr.restore");
    let other = scene.site.sandbox().dir("other/pg_wal");
    let record = other.join("pitr.restore");
    let text = serde_json::json!({"data_directory": other.parent().unwrap()});
    for file in [&mark, &record] {
        std::fs::write(file, text.to_string()).unwrap();
        crate::common::user::own(file);
    }
    // The other restore is not finished, and the tablespace is its own.
    let run = delta(&scene).arg("--confirm").exits(8);
    run.expect_stdout("is not empty, and nothing in it says");
    assert!(mark.exists() && content(&pgdata) == before);
    std::fs::remove_file(&record).unwrap();
    delta(&scene).arg("--confirm").succeed();
    assert!(!mark.exists());
    verify_backup(17, &pgdata);
}

#[test]
fn t75_wal_that_no_receiver_has_taken_is_not_removed() {
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select 1 as a");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("select pg_create_restore_point('here')");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    // From here on a receiver alone takes WAL, and it is away.
    cluster.append_config("archive_mode", "off");
    cluster.append_config("wal_keep_size", "64MB");
    cluster.start();
    let first = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    cluster.sql("insert into t values (2)");
    cluster.sql("select pg_switch_wal()");
    cluster.sql("insert into t values (3)");
    let last = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    cluster.stop(Stop::Fast);
    let pgdata = cluster.pgdata().to_owned();
    let before = content(&pgdata);
    let restore = site.pitr().words("restore --json --delta --confirm");
    let restore = restore.words("--target-name here --to").arg(&pgdata);
    let run = restore.exits(8);
    let from = format!("\": from segment {first} on");
    run.expect_stdout("lacks the last WAL of the server of")
        .expect_stdout(from.trim_start_matches('"'))
        .expect_stdout("wal backfill --from");
    assert!(content(&pgdata) == before);
    let wal = pgdata.join("pg_wal");
    let push = site.pitr().words("wal push").arg(wal.join(&last));
    push.succeed();
    // The segments before it are nowhere else.
    restore.exits(8).expect_stdout(&first);
    site.pitr().words("wal backfill --from").arg(&wal).succeed();
    // That partial lacks the WAL that the server wrote since.
    cluster.start();
    cluster.sql("insert into t values (4)");
    cluster.stop(Stop::Fast);
    restore.exits(8);
    push.succeed();
    restore.succeed();
    // A copy that archives nothing has a timeline of its own, and is taken back as often as one likes.
    cluster.start();
    cluster.wait_promoted();
    cluster.sql("insert into t values (3)");
    cluster.stop(Stop::Fast);
    restore.succeed();
    cluster.start();
    cluster.wait_promoted();
    assert_eq!(cluster.value("select string_agg(a::text, ',') from t"), "1");
}

#[test]
fn r223_a_data_directory_on_which_a_volume_is_mounted_is_taken_back_in_place() {
    let name = "r223_a_data_directory_on_which_a_volume_is_mounted_is_taken_back_in_place";
    crate::require_root!(name);
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select 1 as a");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("select pg_create_restore_point('here')");
    cluster.sql("insert into t values (2)");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    forget_waiting(cluster.pgdata());
    let to = site.sandbox().dir("volume");
    let _disk = DiskOver::mount_of(&to, 400);
    let restore = site.pitr().words("restore --json --delta --confirm");
    let restore = restore.words("--target-name here --to").arg(&to);
    // Without a cluster it may be any volume.
    user::own(&to);
    restore
        .exits(8)
        .expect_stdout("a filesystem is mounted on it");
    copy_all(cluster.pgdata().join("."), &to);
    user::own_all(&to);
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o700)).unwrap();
    let pause = site.sandbox().dir("pause").join("restore-control");
    let value = format!("restore-control={}", pause.display());
    let running = restore.clone().env("PITR_FAULT_PAUSE", value).spawn();
    wait_until("restore-control", || pause.exists());
    running.ended_by(Signal::KILL);
    restore.succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select string_agg(a::text, ',') from t"), "1");
}

#[test]
fn t87_a_restore_in_place_that_goes_on_asks_for_the_last_wal_again() {
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select 1 as a");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("select pg_create_restore_point('here')");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let pgdata = cluster.pgdata().to_owned();
    forget_waiting(&pgdata);
    let restore = site.pitr().words("restore --json --delta --confirm");
    let restore = restore.words("--target-name here --to").arg(&pgdata);
    // It is killed before it has changed anything of the cluster.
    let pause = site.sandbox().dir("pause").join("restore-control");
    let value = format!("restore-control={}", pause.display());
    let running = restore.clone().env("PITR_FAULT_PAUSE", value).spawn();
    wait_until("restore-control", || pause.exists());
    running.ended_by(Signal::KILL);
    assert!(pgdata.join("pg_wal/pitr.restore").exists());
    assert!(pgdata.join("global/pg_control").exists());
    let plain = site
        .pitr()
        .words("restore --json --delta --target-name here");
    let plain = plain.arg("--to").arg(&pgdata).exits(8);
    plain.expect_stderr("would be taken back to the target");
    // From here on a receiver alone takes WAL, and it is away.
    cluster.append_config("archive_mode", "off");
    cluster.start();
    cluster.sql("insert into t values (2)");
    let last = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    cluster.stop(Stop::Fast);
    forget_waiting(&pgdata);
    let before = content(&pgdata);
    let run = restore.exits(8);
    run.expect_stdout("lacks the last WAL of the server of");
    assert!(content(&pgdata) == before);
    let push = site.pitr().words("wal push");
    push.arg(pgdata.join("pg_wal").join(&last)).succeed();
    // A file that another cluster may have, too, is found before the first change.
    let file = pgdata.join("PG_VERSION");
    let other = pgdata.with_added_extension("other");
    std::fs::hard_link(&file, &other).unwrap();
    restore.exits(8).expect_stdout("has 2 names");
    std::fs::remove_file(&other).unwrap();
    restore.succeed();
    cluster.start();
    cluster.wait_promoted();
    assert_eq!(cluster.value("select string_agg(a::text, ',') from t"), "1");
}

/// The primary is lost, and a standby alone has its last WAL.
#[test]
fn r213_wal_that_only_a_standby_has_is_not_removed() {
    let (site, mut primary) = Site::with_cluster(17);
    primary.sql("create table t as select 1 as a");
    site.pitr().words("backup --quiet").succeed();
    primary.sql("select pg_create_restore_point('here')");
    primary.archive_now();
    // The second one has received the WAL, and replays it later.
    let mut standbys = ["0", "1h"].map(|delay| {
        let standby = Cluster::builder(17).without_fsync().standby_of(&primary);
        standby.config("recovery_min_apply_delay", delay).start()
    });
    primary.archive_now();
    primary.sql("insert into t values (2)");
    let end = primary.value("select pg_current_wal_flush_lsn()");
    for standby in &standbys {
        let received = format!("select pg_last_wal_receive_lsn() >= '{end}'");
        wait_until("the standby has the WAL", || {
            standby.value(&received) == "t"
        });
    }
    primary.stop(Stop::Immediate);
    let restore = |standby: &Cluster| {
        let restore = site.pitr().words("restore --json --delta --confirm");
        restore
            .words("--target-name here --to")
            .arg(standby.pgdata())
    };
    for standby in &mut standbys {
        standby.stop(Stop::Fast);
        let before = content(standby.pgdata());
        let run = restore(standby).exits(8);
        run.expect_stdout("lacks the last WAL of the server of")
            .expect_stdout("select pg_switch_wal()");
        assert!(content(standby.pgdata()) == before);
    }
    // The primary was not lost after all.
    primary.start();
    primary.archive_now();
    for standby in &standbys {
        restore(standby).succeed();
        assert!(!standby.pgdata().join("standby.signal").exists());
    }
}

/// The primary is lost with WAL that it could not archive. A promoted standby has it, and archives its own timeline alone.
#[test]
fn r213_wal_from_before_a_promotion_is_not_removed() {
    let (site, mut primary) = Site::with_cluster(17);
    primary.sql("create table t as select 1 as a");
    site.pitr().words("backup --quiet").succeed();
    primary.sql("select pg_create_restore_point('here')");
    primary.archive_now();
    let mut standby = primary.standby().create();
    // Its checkpoint recycles what is older.
    standby.append_config("wal_keep_size", "256MB");
    standby.start();
    primary.set("archive_command", "false");
    let lost: Vec<String> = (0..2)
        .map(|n| {
            primary.sql(&format!("insert into t values ({n})"));
            primary.switch_wal()
        })
        .collect();
    primary.sql("insert into t values (9)");
    wait_until("the standby has it", || {
        standby.value("select max(a) from t") == "9"
    });
    primary.stop(Stop::Immediate);
    standby.promote();
    let first = standby.archive_now();
    standby.stop(Stop::Fast);
    let restore = site.pitr().words("restore --json --delta --confirm");
    let restore = restore.words("--target-name here --to");
    let restore = restore.arg(standby.pgdata());
    let before = content(standby.pgdata());
    let run = restore.clone().exits(8);
    run.expect_stdout(&format!("from segment {} on", lost[0]));
    assert!(content(standby.pgdata()) == before);
    // A standby of that timeline.
    standby.touch("standby.signal");
    standby.start();
    standby.stop(Stop::Fast);
    let run = restore.clone().exits(8);
    run.expect_stdout(&format!("from segment {} on", lost[0]));
    std::fs::remove_file(standby.pgdata().join("standby.signal")).unwrap();
    standby.start();
    standby.stop(Stop::Fast);
    let backfill = site.pitr().words("wal backfill --from");
    backfill.arg(standby.pgdata()).succeed();
    // The segment in which the timelines part is stored as the first one of the new timeline, or as a partial.
    let left = first.replacen("00000002", "00000001", 1);
    let partial = site.object(&format!("{left}.partial"));
    if partial.exists() {
        std::fs::remove_file(partial).unwrap();
    }
    let (object, away) = (site.object(&first), site.sandbox().join("away"));
    std::fs::rename(&object, &away).unwrap();
    // The printed commands work for any name (row R228).
    let data = standby.pgdata();
    let spaced = data.with_file_name("the data");
    std::fs::rename(data, &spaced).unwrap();
    let other = site.pitr().words("restore --json --delta --confirm");
    let other = other.words("--target-name here --to").arg(&spaced);
    let run = other.exits(8);
    run.expect_stdout(&format!("from segment {left} on"))
        .expect_stdout("the data.kept' && mv '");
    std::fs::rename(&spaced, data).unwrap();
    std::fs::rename(&away, &object).unwrap();
    restore.succeed();
}

#[test]
fn t75_an_older_copy_whose_wal_has_expired_is_taken_back() {
    let (site, mut cluster) = Site::with_cluster(16);
    cluster.sql("create table t as select 1 as a");
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let copy = cluster.sandbox().dir("older").join("data");
    let mut copying = std::process::Command::new("cp");
    copying.arg("-a").arg(cluster.pgdata()).arg(&copy);
    assert!(copying.status().unwrap().success());
    cluster.start();
    cluster.sql("insert into t values (2)");
    site.pitr().words("backup --quiet").succeed();
    let expire = ["expire", "--keep", "1", "--min-age", "0s", "--grace", "0s"];
    site.pitr().args(expire).arg("--confirm").succeed();
    cluster.stop(Stop::Fast);
    forget_waiting(&copy);
    let restore = site.pitr().words("restore --json --delta --confirm --to");
    restore.arg(&copy).succeed();
}

/// A small cluster and a copy of it that has gone on.
struct Small {
    site: Site,
    _cluster: Cluster,
    /// The data directory that is taken back, as it was left.
    left: PathBuf,
    data: PathBuf,
}

impl Small {
    fn new() -> Small {
        let (site, mut cluster) = Site::with_cluster(15);
        cluster.sql("create table t as select g as a, repeat('x', 100) as b from generate_series(1, 20000) g");
        site.pitr().words("backup --quiet").succeed();
        cluster.sql("select pg_create_restore_point('here')");
        cluster.sql("update t set b = 'y' where a % 100 = 0; create table later as select 1 as a");
        cluster.archive_now();
        cluster.stop(Stop::Fast);
        let left = cluster.pgdata().to_owned();
        forget_waiting(&left);
        let data = cluster.sandbox().dir("copy").join("data");
        Small {
            site,
            _cluster: cluster,
            left,
            data,
        }
    }

    fn renew(&self) {
        if self.data.exists() {
            std::fs::remove_dir_all(&self.data).unwrap();
        }
        copy_all(&self.left, &self.data);
    }

    fn restore(&self) -> Program {
        let restore = self.site.pitr().words("restore --json --delta");
        restore
            .words("--confirm --jobs 1 --target-name here --to")
            .arg(&self.data)
    }
}

#[test]
fn killed_at_any_point_no_server_starts_on_a_mixture_and_the_same_command_completes() {
    crate::require_strace!(
        "killed_at_any_point_no_server_starts_on_a_mixture_and_the_same_command_completes"
    );
    let small = Small::new();
    small.renew();
    let old = content(&small.data);
    let mut names = fault::MUTATING.to_vec();
    names.push("syncfs");
    let (run, calls) = fault::trace(&small.restore(), &names);
    run.success();
    let reference = state(&small.data);
    let calls: Vec<_> = calls.iter().filter(|c| c.touches(&small.data)).collect();
    let step = (calls.len() / 30).max(1);
    let last = calls.len().saturating_sub(12);
    let (mut untouched, mut unfinished, mut points) = (0, 0, 0);
    for (n, call) in calls.iter().enumerate() {
        let is_left_out = n >= 12 && n < last && n % step != 0;
        points += usize::from(!is_left_out);
        if is_left_out || !fault::is_of_turn(points) {
            continue;
        }
        small.renew();
        let (run, fired) = fault::inject(&small.restore(), &call.kill());
        assert!(fired >= 1 || run.code() == 137, "{}\n{run}", call.text);
        let is_startable = small.data.join("global/pg_control").exists();
        let is_begun = small.data.join("pg_wal/pitr.restore").exists();
        if is_startable && is_begun {
            // Nothing but the record of the job is there beyond what was.
            let mut now = content(&small.data);
            now.retain(|(name, _)| !name.contains("/pitr.restore") && !name.contains("/.tmp."));
            assert!(now == old, "{}", call.text);
            untouched += 1;
        } else if is_startable {
            let is_done = small.data.join("pg_wal/pitr.guard").exists();
            if is_done {
                continue;
            }
            untouched += 1;
        } else {
            unfinished += 1;
        }
        small.restore().succeed();
        assert!(state(&small.data) == reference, "{}", call.text);
    }
    println!("{untouched} times untouched, {unfinished} times unfinished");
    assert!(untouched > 0 && unfinished > fault::share(10));
}

/// A file that cannot be read ends the restore with the cause, while most files still wait to be compared; the same command completes it.
#[test]
fn a_file_that_cannot_be_read_ends_the_comparison() {
    crate::require_strace!("a_file_that_cannot_be_read_ends_the_comparison");
    let small = Small::new();
    small.renew();
    let broken = fault::Fault::error("pread64", "EIO").on(small.data.join("base/1/1255"));
    let (run, fired) = fault::inject(&small.restore(), &broken);
    assert!(fired > 0, "{run}");
    run.expect_code(1).expect_stdout("1255");
    small.restore().succeed();
    verify_backup(15, &small.data);
}

/// A restore that was interrupted fetches only what it still lacks.
#[test]
fn a_resumed_restore_does_not_read_packs_of_what_is_there() {
    let small = Small::new();
    small.renew();
    small.restore().succeed();
    // As if it had been killed before its last steps.
    let control = small.data.join("global/pg_control");
    std::fs::rename(&control, small.data.join("global/pg_control.pitr")).unwrap();
    let settings = std::fs::read(small.data.join("pg_wal/pitr.settings")).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
    let record = small.data.join("pg_wal/pitr.restore");
    std::fs::write(&record, settings["job"].to_string()).unwrap();
    user::own_all(&record);
    // A frame of relations is spoiled, directory and trailer are not.
    for pack in crate::common::paths_below(&small.site.cluster_folder().join("packs")) {
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        for byte in &mut bytes[middle..middle + 100] {
            *byte ^= 0xFF;
        }
        std::fs::remove_file(&pack).unwrap();
        std::fs::write(&pack, bytes).unwrap();
        user::own_all(&pack);
    }
    let run = small.restore().succeed();
    let json = run.json();
    assert_eq!(json["restored"]["resumed"], true, "{run}");
    let written = json["restored"]["written_bytes"].as_u64().unwrap();
    assert!(written < 1 << 20, "{run}");
    // One that lacks the file needs the frame.
    std::fs::remove_dir_all(&small.data).unwrap();
    small.restore().exits(4);
}
