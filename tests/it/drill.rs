//! `pitr drill`: a restore that is tried, on real servers, and the faults that it has to find.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use pitr::error::Code;
use pitr::repo::drilled;
use pitr::repo::event::{self, Event};
use pitr::repo::layout::ClusterLayout;
use pitr::repo::repository::Repository;
use pitr::store::file::FileStore;
use rustix::process::{Pid, Signal};

use crate::common::mount::SmallDisk;
use crate::common::{Cluster, Program, Run, Sandbox, Site, bin, files_below, list_of, wait_until};
use crate::sealed::Sealed;
use crate::several::Two;
use crate::{per_major, require_fuse};

/// A cluster that is archived, with a backup and rows behind it, and a folder for drills.
struct Drilled {
    site: Site,
    cluster: Cluster,
    folder: Sandbox,
}

impl Drilled {
    fn new(major: u32) -> Drilled {
        let (site, cluster) = Site::with_cluster(major);
        Drilled::of(site, cluster)
    }

    fn of(site: Site, cluster: Cluster) -> Drilled {
        cluster.sql(
            "create table t as select g as id, md5(g::text) as b from generate_series(1, 2000) g; alter table t add primary key (id)",
        );
        site.pitr().words("backup --quiet").succeed();
        cluster.sql("insert into t select g, 'later' from generate_series(2001, 3000) g");
        cluster.archive_now();
        let folder = Sandbox::new("drills");
        Drilled {
            site,
            cluster,
            folder,
        }
    }

    fn bin(&self) -> PathBuf {
        let initdb = bin(self.cluster.major(), "initdb").unwrap();
        initdb.parent().unwrap().to_owned()
    }

    fn drill(&self) -> Program {
        self.drill_with(&self.bin())
    }

    fn drill_with(&self, bin: &Path) -> Program {
        let program = self.site.pitr().words("drill --json --dir");
        program.arg(self.folder.path()).arg("--bin").arg(bin)
    }

    /// Whatever drills left below their folder.
    fn left(&self) -> Vec<String> {
        files_below(self.folder.path())
    }

    fn info(&self) -> Run {
        self.site.pitr().words("info --json").run()
    }

    /// Configures these rules of retention, and no others.
    fn rules(&self, lines: &str) {
        let config = std::fs::read_to_string(self.site.config()).unwrap();
        let kept = config.split("[retention]").next().unwrap();
        std::fs::write(self.site.config(), format!("{kept}[retention]\n{lines}")).unwrap();
    }
}

/// The programs of a major, of which one is a script that ends with the real one in its place.
fn with_script(folder: &Sandbox, real: &Path, name: &str, script: &str) -> PathBuf {
    let own = folder.dir("bin");
    for program in ["initdb", "pg_ctl", "postgres", "pg_checksums"] {
        if program != name {
            symlink(real.join(program), own.join(program)).unwrap();
        }
    }
    let real = real.join(name);
    let text = format!("#!/bin/sh\n{script}\nexec {} \"$@\"\n", real.display());
    let path = folder.file(format!("bin/{name}"), text);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    own
}

/// The phase that showed that recovery is broken, and the cause.
fn broken(run: &Run) -> (String, String) {
    let json = run.json();
    assert_eq!(json["passed"], false, "{run}");
    let text = |name: &str| json["broken"][name].as_str().unwrap().to_owned();
    (text("phase"), text("cause"))
}

/// Fails unless the drill found recovery broken in this phase, for this reason.
fn breaks(run: &Run, phase: &str, reason: &str) {
    let (found, cause) = broken(run);
    assert_eq!(found, phase, "{run}");
    assert!(cause.contains(reason), "{run}");
}

#[test]
fn y40_a_database_whose_drop_was_interrupted_breaks_no_recovery() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create database doomed");
    cluster.sql("update pg_database set datconnlimit = -2 where datname = 'doomed'");
    let drilled = Drilled::of(site, cluster);
    let run = drilled.drill().succeed();
    let json = run.json();
    assert_eq!(json["passed"], true, "{run}");
    assert_eq!(json["not_checked"], serde_json::json!(["amcheck"]), "{run}");
    run.expect_stdout("database doomed is invalid");
}

#[test]
fn y53_what_the_own_client_does_not_take_breaks_no_recovery() {
    let drilled = Drilled::new(17);
    let cluster = &drilled.cluster;
    cluster.sql(
        "create database ascii encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'",
    );
    cluster.sql("create database odd");
    // Names of another encoding.
    cluster.client_of("ascii").sql(
        "do $$ begin execute format('alter database odd rename to %I', convert_from('\\x6f64ff', 'SQL_ASCII')); \
         execute format('create table %I (id int primary key)', convert_from('\\x6772f6df65', 'SQL_ASCII')); end $$",
    );
    cluster.archive_now();
    let text = "select repeat('x', 70000000);\n-- expect: 3000\nselect count(*) from t;\n";
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let run = drilled.drill().arg("--checks").arg(&checks).succeed();
    let json = run.json();
    assert_eq!(json["passed"], true, "{run}");
    let notes = json["notes"].to_string();
    assert!(notes.contains("has a name that is not UTF-8"), "{run}");
    assert!(notes.contains("more than 64 MiB"), "{run}");
    let not_checked = json["not_checked"].to_string();
    assert!(not_checked.contains("amcheck"), "{run}");
    assert!(not_checked.contains("checks"), "{run}");
    // A table is checked all the same.
    let is_whole = |check: &serde_json::Value| {
        let name = check["name"].as_str().unwrap();
        name.starts_with("database ascii: ") && check["passed"] == true
    };
    assert!(list_of(&json["checks"]).iter().any(is_whole), "{run}");
    assert!(!notes.contains("database ascii"), "{run}");
}

#[test]
fn v57_bytes_that_are_no_utf8_in_a_database_without_encoding_break_no_recovery() {
    let drilled = Drilled::new(17);
    let cluster = &drilled.cluster;
    cluster.sql(
        "create database ascii encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'",
    );
    cluster
        .client_of("ascii")
        .sql("create table names as select convert_from('\\x6772f6df65', 'SQL_ASCII') as name");
    cluster.sql(
        "create database win encoding 'WIN1252' template template0 lc_collate 'C' lc_ctype 'C'",
    );
    // Unicode has no character for the second byte, and the encoding takes it.
    cluster
        .client_of("win")
        .sql("create table names as select convert_from('\\x6181', 'WIN1252') as name");
    cluster.archive_now();
    let text = "-- database: ascii\nselect name from names;\n-- expect: 5\nselect length(name) from names;\n-- database: win\nselect name from names;\n";
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let run = drilled.drill().arg("--checks").arg(&checks).succeed();
    let json = run.json();
    assert_eq!(json["passed"], true, "{run}");
    let notes = json["notes"].to_string();
    assert!(notes.contains("a database in SQL_ASCII"), "{run}");
    assert!(notes.contains("WIN1252"), "{run}");
    let own = list_of(&json["checks"])
        .iter()
        .filter(|check| check["phase"] == "checks");
    assert_eq!(own.count(), 1, "{run}");
    // The query itself fails where it takes the bytes for UTF-8.
    let text = "-- database: ascii\nselect convert_from(name::bytea, 'UTF8') from names;\n";
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let run = drilled.drill().arg("--checks").arg(&checks).run();
    breaks(&run, "checks", "invalid byte sequence");
}

#[test]
fn y41_a_backup_that_was_found_broken_is_not_forgotten_by_drills_of_others() {
    let drilled = Drilled::new(17);
    let passed = drilled.drill().succeed().json();
    drilled.site.pitr().words("info").succeed();
    let store = FileStore::open(drilled.site.repository(), 7).unwrap();
    let repository = Repository::open_with(Box::new(store), None).unwrap();
    let registration = repository.registrations("main").unwrap().remove(0);
    let layout = ClusterLayout::new("main", registration.system_identifier).unwrap();
    let own = passed["backup"].as_str().unwrap();
    let record = |backup: &str, failed| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = i64::try_from(now.unwrap().as_micros()).unwrap();
        let event = Event {
            event: drilled::DRILLED.into(),
            subject: drilled::SUBJECT.into(),
            time: pitr::pg::time::TimestampTz::from_unix_micros(now).unwrap(),
            drill: Some(drilled::Drill {
                backup: backup.parse().ok(),
                failed,
                ..drilled::Drill::default()
            }),
            ..Event::default()
        };
        event::record(repository.store(), &layout, &event, 7).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    record(own, Some(drilled::Phase::Pages));
    record("20200101T000000Z-full", None);
    let info = drilled.info().expect_code(1);
    info.expect_stdout(&format!(
        "recovery from backup {own} of repository local was found broken"
    ));
    let doctor = drilled.site.pitr().arg("doctor").run();
    doctor.expect_stdout("was found broken");
    // A drill of that very backup shows that it works.
    drilled.drill().args(["--backup", own]).succeed();
    drilled.info().success();
}

/// Requires that a fast drill was ended by something that is no fault of the archive, and that nothing was recorded.
fn said_nothing(drilled: &Drilled, run: &Run) {
    assert!(run.stdout.contains("nothing was recorded"), "{run}");
    assert!(drills(&drilled.info()).is_null());
}

#[test]
fn y42_a_repository_that_goes_away_breaks_no_recovery() {
    require_fuse!("y42_a_repository_that_goes_away_breaks_no_recovery");
    let drilled = Drilled::new(17);
    let pause = drilled.folder.join("pause");
    let drill = drilled.drill().arg("--fast");
    let drill = drill.env(
        "PITR_FAULT_PAUSE",
        format!("mount_laid_out={}", pause.display()),
    );
    let running = drill.env("PITR_FAULT_SECONDS", "3").spawn();
    wait_until("it is laid out", || pause.exists());
    let repository = drilled.site.repository();
    let away = repository.with_extension("away");
    std::fs::rename(repository, &away).unwrap();
    std::fs::remove_file(&pause).unwrap();
    let run = running.wait();
    std::fs::rename(&away, repository).unwrap();
    assert_ne!(run.status.code(), Some(4), "{run}");
    said_nothing(&drilled, &run);
}

#[test]
fn y42_a_full_disk_breaks_no_recovery() {
    require_fuse!("y42_a_full_disk_breaks_no_recovery");
    crate::require_mounts!("y42_a_full_disk_breaks_no_recovery");
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table big as select g as id, repeat('x', 500) as b from generate_series(1, 240000) g");
    let drilled = Drilled::of(site, cluster);
    let checks = drilled.folder.file(
        "checks.sql",
        "-- expect: 120000000\nselect sum(length(b)) from big;\n",
    );
    let disk = SmallDisk::new(100, 10_000);
    let drill = drilled.site.pitr().words("drill --json --fast --dir");
    let drill = drill.arg(disk.path()).arg("--bin").arg(drilled.bin());
    let run = drill.arg("--checks").arg(&checks).exits(1);
    assert_eq!(run.json()["code"], "full", "{run}");
    said_nothing(&drilled, &run);
    assert!(files_below(disk.path()).is_empty());
}

/// The drills that `info` tells of the first cluster.
fn drills(run: &Run) -> serde_json::Value {
    run.json()["clusters"][0]["drills"].clone()
}

fn y01_a_drill_proves_recovery_and_info_shows_it(major: u32) {
    let drilled = Drilled::new(major);
    let checks = drilled.folder.file(
        "checks.sql",
        "-- expect: 3000\nselect count(*) from t;\n-- expect: later\nselect b from t where id = 3000;\nselect 1;\n",
    );
    let html = drilled.folder.join("page.html");
    let drill = drilled.drill().arg("--checks").arg(&checks);
    let run = drill.arg("--html").arg(&html).succeed();
    let json = run.json();
    assert_eq!(json["passed"], true, "{run}");
    assert_eq!(
        json["reached_lsn"], json["plan"]["stop"]["recovery_end_lsn"],
        "{run}"
    );
    let phases: Vec<&str> = list_of(&json["phases"])
        .iter()
        .map(|p| p["phase"].as_str().unwrap())
        .collect();
    let all = "plan copy start replay checkpoint compare amcheck checks pages";
    assert_eq!(phases.join(" "), all, "{run}");
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.iter().all(|c| c["passed"] == true), "{run}");
    let count = |phase: &str| checks.iter().filter(|c| c["phase"] == phase).count();
    assert_eq!(count("checks"), 3, "{run}");
    assert!(count("amcheck") >= 2 && count("compare") >= 2, "{run}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("recovery works") && !page.contains("http"));
    assert_eq!(drilled.left(), ["checks.sql", "page.html"]);

    let info = drilled.info().success();
    let proven = &drills(&info)[0]["proven"];
    assert_eq!(proven["backup"], json["backup"], "{info}");
    assert_eq!(proven["reached_time"], json["reached_time"], "{info}");
    let text = drilled.site.pitr().arg("info").succeed();
    text.expect_stdout("recovery proven: ")
        .expect_stdout(", by a drill of local in ");
    drilled.site.pitr().words("verify").succeed();
}
per_major!(y01_a_drill_proves_recovery_and_info_shows_it);

/// Objects of a site's cluster that stay: without claims, and without the drills themselves.
fn lasting(site: &Site) -> Vec<String> {
    let mut files = site.files();
    let passing = ["-claim-", "-release-", "/events/drills/", ".tmp."];
    files.retain(|name| !passing.iter().any(|part| name.contains(part)));
    files
}

fn y02_a_random_moment_is_drilled_and_its_seed_repeats_it(major: u32) {
    let drilled = Drilled::new(major);
    let random = |more: &[&str]| {
        let run = drilled.drill().arg("--random-target").args(more).run();
        run.success().json()
    };
    for _ in 0..2 {
        let first = random(&[]);
        let seed = first["seed"].to_string();
        let again = random(&["--seed", &seed]);
        assert_eq!(first["plan"]["target"], again["plan"]["target"]);
        assert_eq!(first["reached_lsn"], again["reached_lsn"]);
        let at = first["reached_lsn"].as_str().unwrap();
        let stop = &first["plan"]["backup"]["stop_lsn"];
        let lsn = |text: &str| text.parse::<pitr::pg::lsn::Lsn>().unwrap();
        assert!(lsn(at) >= lsn(stop.as_str().unwrap()));
    }
    assert_ne!(
        random(&["--seed", "1"])["target"],
        random(&["--seed", "2"])["target"]
    );
}
per_major!(y02_a_random_moment_is_drilled_and_its_seed_repeats_it, v13 v17 v19);

/// Two repositories that have the same.
fn two_alike() -> Two {
    let two = Two::new();
    two.work(500);
    two.backup();
    two.work(500);
    two.sync().succeed();
    two
}

fn drill_of(two: &Two, folder: &Sandbox) -> Program {
    let programs = bin(17, "initdb").unwrap();
    let drill = two.site.pitr().words("drill --json --dir");
    let drill = drill.arg(folder.path()).arg("--bin");
    drill.arg(programs.parent().unwrap())
}

#[test]
fn y03_several_repositories_are_drilled_in_turn_each_one_alone() {
    let two = two_alike();
    let folder = Sandbox::new("drills");
    let drill = || drill_of(&two, &folder);
    let name = |run: Run| {
        let json = run.success().json();
        let url = json["plan"]["repository"].as_str().unwrap().to_owned();
        (json["repository"].as_str().unwrap().to_owned(), url)
    };
    let (first, url) = name(drill().run());
    assert_eq!(first, two.first());
    assert_eq!(url, two.site.repository().display().to_string());
    let (second, url) = name(drill().run());
    assert_eq!(second, "second");
    assert_eq!(url, two.second.display().to_string());
    assert_eq!(name(drill().run()).0, first);
    let named = drill().args(["--repository", &first]).run();
    assert_eq!(name(named).0, first);
    // One that is away is passed over, and said.
    std::fs::rename(two.site.repository(), folder.join("away")).unwrap();
    let run = drill().succeed();
    assert_eq!(run.json()["repository"], "second", "{run}");
    run.expect_stderr("cannot be drilled");
    std::fs::rename(folder.join("away"), two.site.repository()).unwrap();
    let info = two.site.pitr().words("info --json").run();
    assert_eq!(drills(&info).as_array().unwrap().len(), 2, "{info}");
}

#[test]
fn y04_a_damaged_pack_makes_a_drill_fail_while_it_copies() {
    let drilled = Drilled::new(17);
    let packs = files_below(&drilled.site.cluster_folder().join("packs"));
    let pack = drilled.site.cluster_folder().join("packs").join(&packs[0]);
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&pack, bytes).unwrap();
    let run = drilled.drill().exits(4);
    breaks(&run, "copy", "pack");
    assert!(drilled.left().is_empty());
    let info = drilled.info().expect_code(1);
    assert_eq!(drills(&info)[0]["newest"]["failed"], "copy", "{info}");
    assert!(drills(&info)[0]["proven"].is_null(), "{info}");
    info.expect_stdout("found recovery broken (phase copy)");
    let doctor = drilled.site.pitr().arg("doctor").run();
    doctor.expect_stdout("found recovery broken");
}

#[test]
fn y05_a_missing_segment_fails_the_plan_and_a_wrong_target_proves_nothing() {
    let drilled = Drilled::new(17);
    let missing = drilled.cluster.archive_now();
    drilled.cluster.sql("insert into t values (4000, 'behind')");
    drilled.cluster.archive_now();
    let early = ["--target-time", "2001-01-01T00:00:00Z"];
    drilled.drill().args(early).exits(5);
    assert!(drills(&drilled.info()).is_null());
    std::fs::remove_file(drilled.site.object(&missing)).unwrap();
    let run = drilled.drill().exits(4);
    breaks(&run, "plan", &missing);
    assert_eq!(drills(&drilled.info())[0]["newest"]["failed"], "plan");
}

#[test]
fn y06_a_check_that_fails_makes_the_drill_fail_and_others_still_run() {
    let drilled = Drilled::new(17);
    let text = "-- expect: 7\nselect count(*) from t;\nselect nothing;\ndelete from t;\n-- expect: 3000\nselect count(*) from t;\n-- database: nowhere\nselect 1;\n";
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let run = drilled.drill().arg("--checks").arg(&checks).run();
    let run = run.expect_code(4);
    breaks(&run, "checks", "it returned 3000, 7 was expected");
    let json = run.json();
    let all = json["checks"].as_array().unwrap();
    let own = all.iter().filter(|c| c["phase"] == "checks");
    let passed: Vec<_> = own.map(|c| c["passed"].as_bool().unwrap()).collect();
    assert_eq!(passed, [false, false, false, true, false], "{run}");
    assert!(run.stdout.contains("read-only transaction"), "{run}");
    // A value that would not be compared is refused, not passed over.
    let wrong = "-- Expect: 7\nselect count(*) from t;\n";
    let wrong = drilled.site.sandbox().file("wrong.sql", wrong);
    let run = drilled.drill().arg("--checks").arg(wrong).run();
    run.expect_code(2)
        .expect_stdout("line 1: this comment looks like");
    // A file that says nothing is refused before anything is done.
    let empty = drilled.site.sandbox().file("empty.sql", "-- nothing\n");
    let run = drilled.drill().arg("--checks").arg(empty).run();
    run.expect_code(2).expect_stdout("it has no query");
}

#[test]
fn t07_y07_without_the_programs_of_the_very_major_nothing_is_tried() {
    let drilled = Drilled::new(17);
    let other = bin(18, "initdb").unwrap();
    let run = drilled.drill_with(other.parent().unwrap()).run();
    let run = run.expect_code(8);
    run.expect_stdout("no server of PostgreSQL 17 was found");
    assert!(drills(&drilled.info()).is_null());
    assert!(drilled.left().is_empty());
}

#[test]
fn y08_without_room_nothing_is_written() {
    crate::require_mounts!("y08_without_room_nothing_is_written");
    let drilled = Drilled::new(17);
    let disk = SmallDisk::new(8, 1000);
    let drill = drilled.site.pitr().words("drill --json --dir");
    let drill = drill.arg(disk.path()).arg("--bin").arg(drilled.bin());
    let run = drill.exits(8);
    run.expect_stdout("bytes are needed, 8388608 are free");
    assert!(drills(&drilled.info()).is_null());
    assert!(files_below(disk.path()).is_empty());
}

#[test]
fn y09_a_server_that_does_not_start_or_ends_makes_the_drill_fail_with_its_words() {
    let drilled = Drilled::new(17);
    let scripts = Sandbox::new("scripts");
    let script = "echo 'FATAL:  could not load the moon' >&2; exit 1";
    let own = with_script(&scripts, &drilled.bin(), "postgres", script);
    let run = drilled.drill_with(&own).exits(4);
    breaks(&run, "start", "could not load the moon");
    assert!(drilled.left().is_empty());
}

#[test]
fn y10_a_server_that_stops_elsewhere_than_planned_makes_the_drill_fail() {
    let drilled = Drilled::new(17);
    let lsn = drilled.cluster.insert_lsn();
    drilled.cluster.sql("insert into t values (4000, 'behind')");
    drilled.cluster.archive_now();
    let scripts = Sandbox::new("scripts");
    let script = "sed -i '/^recovery_target/d' \"$2/postgresql.auto.conf\"";
    let own = with_script(&scripts, &drilled.bin(), "postgres", script);
    let drill = drilled.drill_with(&own).args(["--target-lsn", &lsn]);
    let run = drill.exits(4);
    breaks(&run, "compare", "the server ended recovery at");
    assert!(run.stdout.contains("first excluded commit"), "{run}");
    drilled.drill().args(["--target-lsn", &lsn]).succeed();
}

#[test]
fn y11_wal_that_is_damaged_inside_makes_the_drill_fail_in_the_replay() {
    let drilled = Drilled::new(17);
    drilled.cluster.switch_wal();
    drilled
        .cluster
        .sql("insert into t select g, repeat('x', 200) from generate_series(5000, 9000) g");
    let named = drilled.cluster.archive_now();
    drilled
        .cluster
        .sql("insert into t values (10000, 'behind')");
    drilled.cluster.archive_now();
    let path = drilled.site.object(&named);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 4;
    bytes[at] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let run = drilled.drill().exits(4);
    breaks(&run, "replay", "R201");
    assert!(drilled.left().is_empty());
}

#[test]
fn y12_an_encrypted_repository_is_drilled_and_a_forged_drill_proves_nothing() {
    let (sealed, cluster) = Sealed::archived(17);
    cluster.sql("create table t as select 1 as a");
    sealed.on("reader").words("backup --quiet").succeed();
    cluster.archive_now();
    let folder = Sandbox::new("drills");
    let programs = bin(17, "initdb").unwrap();
    let info = || sealed.on("reader").words("info --json").run();
    // By somebody who may create objects and holds no key.
    let store = FileStore::open(&sealed.repository, 7).unwrap();
    let repository = Repository::open_with(Box::new(store), None).unwrap();
    let registration = repository.registrations("main").unwrap().remove(0);
    let layout = ClusterLayout::new("main", registration.system_identifier).unwrap();
    let forged = Event {
        event: drilled::DRILLED.into(),
        subject: drilled::SUBJECT.into(),
        time: "2026-11-20T06:00:00Z".parse().unwrap(),
        drill: Some(drilled::Drill::default()),
        ..Event::default()
    };
    // pitr itself refuses to write it without the key.
    let keyless = event::record(repository.store(), &layout, &forged, 7);
    assert_eq!(keyless.unwrap_err().code(), Code::Key);
    let bare = FileStore::open(&sealed.repository, 7).unwrap();
    event::record(&bare, &layout, &forged, 7).unwrap();
    assert!(drills(&info()).is_null());
    let verify = sealed.on("reader").words("verify --json").run();
    assert!(verify.stdout.contains("\"forged\""), "{verify}");
    let drill = sealed.on("reader").words("drill --json --dir");
    let drill = drill.arg(folder.path()).arg("--bin");
    let run = drill.arg(programs.parent().unwrap()).succeed();
    let told = info();
    assert_eq!(drills(&told)[0]["proven"]["backup"], run.json()["backup"]);
}

#[test]
fn y13_a_drill_that_was_killed_leaves_nothing_that_the_next_one_does_not_remove() {
    let drilled = Drilled::new(17);
    let text = "select pg_sleep(600);\n";
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let server = |but: Option<Pid>| -> Option<Pid> {
        let files = drilled.left().into_iter();
        let mut files = files.filter(|f| f.ends_with("data/postmaster.pid"));
        files.find_map(|file| {
            let text = std::fs::read_to_string(drilled.folder.join(file)).ok()?;
            let pid = Pid::from_raw(text.lines().next()?.parse().ok()?);
            pid.filter(|_| pid != but)
        })
    };
    let begin = |but: Option<Pid>| {
        let running = drilled.drill().arg("--checks").arg(&checks).spawn();
        wait_until("the server runs", || server(but).is_some());
        (running, server(but).unwrap())
    };
    // A process that has ended and that nobody has waited for has no program.
    let runs = |pid: Pid| {
        let program = format!("/proc/{}/exe", pid.as_raw_nonzero());
        std::fs::read_link(program).is_ok()
    };
    let (running, left) = begin(None);
    running.ended_by(Signal::KILL);
    assert!(runs(left));
    // A second one beside a drill that runs removes what is left over, and not the other's.
    let (running, other) = begin(Some(left));
    assert!(!runs(left), "the server still runs");
    drilled.drill().succeed();
    assert!(runs(other));
    running.signal(Signal::INT);
    assert_eq!(running.wait().code(), 130);
    assert!(!runs(other), "the server still runs");
    assert!(drilled.left().is_empty(), "{:?}", drilled.left());
    // A folder that somebody wants to look at stays.
    let kept = drilled.drill().arg("--keep").succeed();
    drilled.drill().succeed();
    let folder = PathBuf::from(kept.json()["kept"].as_str().unwrap());
    assert!(folder.join("data/PG_VERSION").exists());
}

/// A port of this host that nobody may reach.
pub struct Outside {
    listener: TcpListener,
    port: u16,
}

impl Outside {
    pub fn new() -> Outside {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        Outside { listener, port }
    }

    /// Makes functions that connect out of the server, by a program and by dblink, and one that counts networks besides the loopback.
    pub fn is_called_by(&self, cluster: &Cluster) {
        let port = self.port;
        cluster.sql(&format!(
            "create extension dblink;
             create table seen (line text);
             create function reach() returns bigint language plpgsql as $$ begin
               copy (select 1) to program 'bash -c \"cat >/dev/null; exec 3<>/dev/tcp/127.0.0.1/{port}\"'; return 1; end $$;
             create function reach_by_dblink() returns bigint language plpgsql as $$ begin
               perform public.dblink_connect('host=127.0.0.1 port={port} dbname=x user=x sslmode=disable gssencmode=disable'); return 1; end $$;
             create function networks() returns bigint language plpgsql as $$ begin
               copy public.seen from program 'tail -n +3 /proc/net/dev';
               return (select count(*) from public.seen where line !~ '^ *lo:'); end $$"
        ));
        // They do where nothing keeps them from that. The caller of dblink hears nothing.
        cluster.sql("select reach()");
        assert!(self.listener.accept().is_ok());
        let client = cluster.client();
        let asked = std::thread::spawn(move || client.try_sql("select reach_by_dblink()").is_err());
        wait_until("dblink has arrived", || self.listener.accept().is_ok());
        assert!(asked.join().unwrap());
    }

    pub fn was_not_reached(&self) {
        let accepted = self.listener.accept().map(|_| ()).unwrap_err().kind();
        assert_eq!(
            accepted,
            std::io::ErrorKind::WouldBlock,
            "something got out"
        );
    }
}

/// A cluster that connects, runs commands and loads libraries wherever it can, and what it would reach.
pub struct Hostile {
    pub site: Site,
    pub cluster: Cluster,
    pub folder: Sandbox,
    pub outside: Outside,
}

impl Hostile {
    pub fn new(major: u32) -> Hostile {
        let outside = Outside::new();
        let builder = Cluster::small(major);
        let (site, cluster) =
            Site::with_cluster_of(builder.config("max_logical_replication_workers", 0));
        let port = outside.port;
        let space = cluster.sandbox().dir("space");
        cluster.make_tablespace("ts", &space);
        cluster.sql("create table in_space tablespace ts as select 1 as a");
        cluster.sql(&format!(
            "create subscription s connection 'host=127.0.0.1 port={port} dbname=x' publication p with (connect = false, slot_name = 's')"
        ));
        cluster.sql("alter subscription s enable");
        cluster.sql("alter database template1 set session_preload_libraries = 'nowhere'");
        cluster.sql(&format!(
            "alter system set primary_conninfo = 'host=127.0.0.1 port={port}'"
        ));
        // None of them is on this host: a server with this configuration does not start.
        cluster.append_config("shared_preload_libraries", "pg_cron,pg_tde");
        let folder = Sandbox::new("drills");
        let escape = format!("touch {}", folder.join("escaped").display());
        cluster.append_config("archive_cleanup_command", &escape);
        Hostile {
            site,
            cluster,
            folder,
            outside,
        }
    }
}

fn y14_nothing_gets_out_of_a_drill(major: u32) {
    let hostile = Hostile::new(major);
    let (site, cluster, folder) = (&hostile.site, &hostile.cluster, &hostile.folder);
    hostile.outside.is_called_by(cluster);
    cluster.sql("create table t (a int)");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("insert into t values (1)");
    cluster.archive_now();
    let before_drill = lasting(site);
    let initdb = bin(major, "initdb").unwrap();
    let drill = site.pitr().words("drill --json --dir");
    let drill = drill.arg(folder.path()).arg("--bin");
    let drill = drill.arg(initdb.parent().unwrap());
    let run = drill.succeed();
    let json = run.json();
    let notes = json["notes"].to_string();
    assert!(notes.contains("without pg_cron"), "{run}");
    assert!(
        notes.contains("pg_tde of shared_preload_libraries is not"),
        "{run}"
    );
    hostile.outside.was_not_reached();
    assert_eq!(lasting(site), before_drill);
    // Nor does a check that connects: the server has no network.
    let reaches = "-- expect: 1\nselect reach();\n-- expect: 1\nselect reach_by_dblink();\n";
    let checks = site.sandbox().file("checks.sql", reaches);
    let run = drill.arg("--checks").arg(&checks).exits(4);
    for refused in ["program", "could not establish connection"] {
        assert!(run.stdout.contains(refused), "{refused}: {run}");
    }
    hostile.outside.was_not_reached();
    assert!(files_below(folder.path()).is_empty());
}
per_major!(y14_nothing_gets_out_of_a_drill, v13 v15 v17 v19);

#[test]
fn y15_an_index_that_lies_makes_the_drill_fail_and_is_named() {
    let (site, cluster) = Site::with_cluster(17);
    // As in PostgreSQL's own test of amcheck: the order of the operator class changes after the index was built.
    cluster.sql(
        "create function fickle(int, int) returns int language sql immutable as 'select $1 - $2';
         create operator class fickle_ops for type int using btree as
           operator 1 < (int, int), operator 2 <= (int, int), operator 3 = (int, int), operator 4 >= (int, int),
           operator 5 > (int, int), function 1 fickle(int, int);
         create table lied as select g as a from generate_series(1, 1000) g;
         create index lying on lied using btree (a fickle_ops);
         create or replace function fickle(int, int) returns int language sql immutable as 'select $2 - $1'",
    );
    let drilled = Drilled::of(site, cluster);
    let run = drilled.drill().exits(4);
    breaks(&run, "amcheck", "lying");
}

#[test]
fn y16_a_page_with_a_wrong_checksum_makes_the_drill_fail() {
    let drilled = Drilled::new(17);
    let scripts = Sandbox::new("scripts");
    let script = "f=$(find \"$3/base/1\" -size +16k -name '[0-9]*' ! -name '*_*' | sort | head -1)\nprintf x | dd of=\"$f\" bs=1 seek=9000 conv=notrunc 2>/dev/null";
    let own = with_script(&scripts, &drilled.bin(), "pg_checksums", script);
    let run = drilled.drill_with(&own).exits(4);
    breaks(&run, "pages", "checksum verification failed");
    // A host without the program says so.
    std::fs::remove_file(own.join("pg_checksums")).unwrap();
    let run = drilled.drill_with(&own).succeed();
    run.expect_stdout("pg_checksums is not on this host");
}

#[test]
fn y17_recovery_that_was_not_proven_for_too_long_is_a_warning() {
    let drilled = Drilled::new(17);
    let config = std::fs::read_to_string(drilled.site.config()).unwrap();
    let folder = drilled.folder.path().display();
    let with = |age: &str| {
        let more =
            format!("[clusters.main]\nmax_drill_age = \"{age}\"\ndrill_dir = \"{folder}\"\n");
        let text = config.replace("[clusters.main]\n", &more);
        assert_ne!(text, config);
        std::fs::write(drilled.site.config(), text).unwrap();
    };
    with("1h");
    let info = drilled.info().expect_code(6);
    info.expect_stdout("was never proven, max_drill_age is 1 h");
    let drill = drilled.site.pitr().arg("drill").arg("--bin");
    let run = drill.arg(drilled.bin()).succeed();
    run.expect_stdout("recovery works");
    drilled.info().success();
    with("1s");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let info = drilled.info().expect_code(6);
    info.expect_stdout("was last proven");
    let doctor = drilled.site.pitr().arg("doctor").run();
    doctor.expect_stdout("max_drill_age is 1 s");
}

#[test]
fn y18_a_result_that_cannot_be_recorded_is_said() {
    let drilled = Drilled::new(17);
    let events = drilled.site.cluster_folder().join("events");
    // Something else lies where the subject should be.
    std::fs::write(events.join("drills"), "").unwrap();
    let run = drilled.drill().exits(10);
    assert_eq!(run.json()["passed"], true, "{run}");
    run.expect_stderr("could not be recorded");
}

#[test]
fn y19_a_superuser_who_may_not_log_in_any_more_keeps_no_drill_out() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create role boss superuser login");
    let drilled = Drilled::of(site, cluster);
    let client = drilled.cluster.client();
    // In the backup the superuser may still log in; the WAL takes that away.
    client.sql("alter role postgres nologin");
    let name = client.value("select pg_walfile_name(pg_switch_wal())");
    let object = drilled.site.object(&name);
    wait_until("the segment is archived", || object.exists());
    drilled.drill().succeed();
}

#[test]
fn y20_the_environment_of_the_caller_leads_no_session_elsewhere() {
    let drilled = Drilled::new(17);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let variables = [
        ("PGHOSTADDR", "127.0.0.1"),
        ("PGPORT", &port),
        ("PGSERVICE", "nowhere"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGSSLMODE", "verify-full"),
    ];
    let drill = variables
        .into_iter()
        .fold(drilled.drill(), |drill, (name, value)| {
            drill.env(name, value)
        });
    let run = drill.succeed();
    assert_eq!(run.json()["not_checked"], serde_json::json!([]), "{run}");
    let accepted = listener.accept().map(|_| ()).unwrap_err().kind();
    assert_eq!(accepted, std::io::ErrorKind::WouldBlock);
}

fn y21_event_triggers_and_an_old_amcheck_keep_no_check_out(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql("create extension amcheck version '1.0'");
    // Whatever is created or changed in the sandbox would fail.
    cluster.sql(
        "create function loud() returns event_trigger language plpgsql as $$ begin raise exception 'an event trigger ran'; end $$",
    );
    let drilled = Drilled::of(site, cluster);
    drilled
        .cluster
        .sql("create event trigger \"Loud one\" on ddl_command_start execute function loud()");
    drilled
        .cluster
        .sql("alter event trigger \"Loud one\" enable always");
    drilled.cluster.archive_now();
    let run = drilled.drill().succeed();
    let json = run.json();
    // Not every build of PostgreSQL has pg_checksums: the pages may stay unchecked.
    let not_checked = json["not_checked"].to_string();
    assert!(!not_checked.contains("amcheck"), "{run}");
    assert!(!json["notes"].to_string().contains("database "), "{run}");
}
per_major!(
    y21_event_triggers_and_an_old_amcheck_keep_no_check_out,
    v13 v16 v18
);

#[test]
fn y22_what_could_not_be_checked_is_named_and_breaks_nothing() {
    let builder = Cluster::builder(17).without_fsync();
    let (site, cluster) = Site::with_cluster_of(builder.config("max_prepared_transactions", 5));
    let drilled = Drilled::of(site, cluster);
    drilled.cluster.sql("create table held (a int)");
    let client = drilled.cluster.client();
    client.sql("begin");
    client.sql("lock table held in access exclusive mode");
    client.sql("prepare transaction 'forgotten'");
    drilled.cluster.archive_now();
    let text = "select absent();\n-- expect: 3000\nselect count(*) from t;\n";
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let run = drilled.drill().arg("--checks").arg(&checks).succeed();
    let json = run.json();
    assert_eq!(
        json["not_checked"],
        serde_json::json!(["amcheck", "checks"]),
        "{run}"
    );
    let notes = json["notes"].to_string();
    assert!(notes.contains("held could not be checked"), "{run}");
    assert!(notes.contains("lock timeout"), "{run}");
    assert!(notes.contains("select absent()"), "{run}");
    let proven = drills(&drilled.info())[0]["proven"].clone();
    assert_eq!(proven["not_checked"], json["not_checked"]);
    let text = drilled.site.pitr().arg("info").succeed();
    text.expect_stdout("(not wholly checked: amcheck, checks)");
}

#[test]
fn y23_a_page_that_cannot_be_written_hides_no_verdict() {
    let drilled = Drilled::new(17);
    let page = drilled.site.sandbox().join("nowhere/page.html");
    let run = drilled.drill().arg("--html").arg(&page).run();
    let run = run.expect_code(10);
    assert_eq!(run.json()["passed"], true, "{run}");
    run.expect_stderr("the page was not written");
    let text = "-- expect: 7\nselect 1;\n";
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let drill = drilled.drill().arg("--checks").arg(checks);
    let run = drill.arg("--html").arg(&page).exits(4);
    assert_eq!(broken(&run).0, "checks");
}

#[test]
fn y24_a_repository_that_cannot_be_tried_keeps_no_other_one_out() {
    let two = two_alike();
    let folder = Sandbox::new("drills");
    let drill = || drill_of(&two, &folder);
    let packs = two.site.cluster_folder().join("packs");
    let may = |mode| std::fs::set_permissions(&packs, PermissionsExt::from_mode(mode)).unwrap();
    may(0o000);
    let run = drill().run();
    let first = two.first();
    let alone = drill().args(["--repository", &first]).run();
    may(0o700);
    let run = run.success();
    assert_eq!(run.json()["repository"], "second", "{run}");
    run.expect_stderr("could not be drilled");
    assert!(![0, 4].contains(&alone.code()), "{alone}");
    assert!(files_below(folder.path()).is_empty());
}

#[test]
fn y25_expire_keeps_the_newest_backup_that_a_drill_proved() {
    let drilled = Drilled::new(17);
    let proven = drilled.drill().succeed().json()["backup"].clone();
    let backup = || {
        drilled
            .cluster
            .sql("insert into t select max(id) + 1, 'more' from t");
        drilled.cluster.archive_now();
        drilled.site.backup()
    };
    let (second, third) = (backup(), backup());
    let rules = |lines: &str| drilled.rules(lines);
    let at_once = ["expire", "--min-age", "0s", "--grace", "0s", "--json"];
    let judged = || {
        let run = drilled.site.pitr().args(at_once).arg("--dry-run").run();
        let backups = run.success().json()["clusters"][0]["backups"].clone();
        let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        let one = |b: &serde_json::Value| (text(&b["id"]), text(&b["fate"]));
        backups
            .as_array()
            .unwrap()
            .iter()
            .map(one)
            .collect::<Vec<_>>()
    };
    let first = proven.as_str().unwrap().to_owned();
    let fates = |fates: [&str; 3]| -> Vec<(String, String)> {
        let ids = [first.clone(), second.clone(), third.clone()];
        ids.into_iter().zip(fates.map(str::to_owned)).collect()
    };
    rules("keep_last = 1\n");
    assert_eq!(judged(), fates(["delete", "delete", "keep"]));
    rules("keep_last = 1\nkeep_proven = true\n");
    assert_eq!(judged(), fates(["keep", "delete", "keep"]));
    let explained = drilled
        .site
        .pitr()
        .args(["expire", "--explain", &first])
        .run();
    explained
        .success()
        .expect_stdout("keep_proven: the newest that a drill proved");
    let info = drilled.info().json();
    let foretold = &info["clusters"][0]["retention"];
    assert_eq!(foretold["rules"], "keep_last 1, keep_proven");
    assert_eq!(foretold["backups"][0]["fate"], "keep");
    let confirmed = drilled.site.pitr().args(at_once).arg("--confirm").run();
    confirmed.success();
    let left = drilled.info().json()["clusters"][0]["backups"].clone();
    let left: Vec<_> = left
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["id"].clone())
        .collect();
    assert_eq!(left, [proven, third.clone().into()]);
    // Once a newer one is proven, the old one may go.
    drilled.drill().succeed();
    assert_eq!(
        judged(),
        [(first, "delete".to_owned()), (third, "keep".to_owned())]
    );
}

fn y26_a_count_is_held_against_the_rows_of_the_catalog(major: u32) {
    let drilled = Drilled::new(major);
    drilled
        .cluster
        .sql("create table unknown (a int); insert into unknown values (1); analyze t");
    drilled.cluster.archive_now();
    let text = "-- expect: reltuples of public.t ~ 1 %\nselect count(*) from t;\n-- expect: 3100 ~ 5 %\nselect count(*) from t;\n";
    let text =
        format!("{text}-- expect: reltuples of unknown ~ 1 %\nselect count(*) from unknown;\n");
    let checks = drilled.site.sandbox().file("checks.sql", text);
    let run = drilled.drill().arg("--checks").arg(&checks).succeed();
    let json = run.json();
    let all = json["checks"].as_array().unwrap();
    let own = all.iter().filter(|c| c["phase"] == "checks").count();
    assert_eq!(own, 2, "{run}");
    assert_eq!(
        json["not_checked"].as_array().unwrap().last().unwrap(),
        "checks",
        "{run}"
    );
    run.expect_stdout("unknown had never been analyzed");
    // Rows that went after the table was counted are missed.
    drilled
        .cluster
        .sql("alter table t set (autovacuum_enabled = off); delete from t where id > 1500");
    drilled.cluster.archive_now();
    let run = drilled.drill().arg("--checks").arg(&checks).exits(4);
    breaks(
        &run,
        "checks",
        "it returned 1500, 3000 was expected, within 1 % (reltuples of public.t)",
    );
    let wrong = drilled
        .site
        .sandbox()
        .file("wrong.sql", "-- expect: reltuples of t\nselect 1;\n");
    let run = drilled.drill().arg("--checks").arg(wrong).run();
    run.expect_code(2).expect_stdout("needs a tolerance");
}
per_major!(y26_a_count_is_held_against_the_rows_of_the_catalog, v13 v17);

#[test]
fn y27_plan_and_info_tell_how_long_it_takes_and_by_what() {
    let drilled = Drilled::new(17);
    let plan = || drilled.site.pitr().words("plan --json").succeed().json();
    let text = |args: &str| drilled.site.pitr().arg(args).succeed();
    let before = plan()["estimate"].clone();
    let basis = |estimate: &serde_json::Value| -> Vec<String> {
        let parts = estimate["parts"].as_array().unwrap().iter();
        parts
            .map(|p| p["basis"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(basis(&before), ["default"; 5]);
    text("plan").expect_stdout("these are defaults");
    text("info").expect_stdout("time to recovery: about ");
    let drill = drilled.drill().succeed().json();
    let after = plan()["estimate"].clone();
    assert_eq!(basis(&after), ["measured"; 5]);
    assert_eq!(after["drills"], 1);
    let phases = drill["phases"].as_array().unwrap();
    let ms = |name: &str| phases.iter().find(|p| p["phase"] == name).unwrap()["ms"].as_u64();
    let start = after["parts"][2].clone();
    assert_eq!(
        (start["phase"].as_str(), start["ms"].as_u64()),
        (Some("start"), ms("start"))
    );
    text("plan").expect_stdout("by 1 drill on this host");
    // A plan and the information of the same moment say the same.
    assert_eq!(drilled.info().json()["clusters"][0]["estimate"], after);
    // A target out of reach takes no time.
    let late = ["plan", "--json", "--target-lsn", "FF/0"];
    let run = drilled.site.pitr().args(late).run();
    assert!(run.expect_code(5).json()["estimate"].is_null());
}

#[test]
fn y29_a_catalog_that_is_wrong_makes_the_drill_fail() {
    let drilled = Drilled::new(17);
    drilled.cluster.sql("set allow_system_table_mods = on; delete from pg_attribute where attrelid = 't'::regclass and attname = 'b'");
    drilled.cluster.archive_now();
    let run = drilled.drill().exits(4);
    breaks(
        &run,
        "amcheck",
        "pg_attribute catalog is missing 1 attribute",
    );
    assert!(drilled.left().is_empty());
}

#[test]
fn y30_a_damaged_map_of_pieces_makes_the_drill_fail_while_it_copies() {
    let drilled = Drilled::new(17);
    let folder = drilled.site.cluster_folder();
    let all = files_below(&folder);
    let layers: Vec<_> = all.iter().filter(|f| f.contains("layers/")).collect();
    assert!(!layers.is_empty(), "{all:?}");
    for layer in layers {
        let mut bytes = std::fs::read(folder.join(layer)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(folder.join(layer), bytes).unwrap();
    }
    let run = drilled.drill().exits(4);
    breaks(&run, "copy", "layer");
    assert!(drilled.left().is_empty());
}

/// Flips a bit in each page of the packs, but for what they begin and end with.
fn damage_packs(drilled: &Drilled) {
    let folder = drilled.site.cluster_folder().join("packs");
    for name in files_below(&folder) {
        let path = folder.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        for at in (8192..bytes.len().saturating_sub(8192)).step_by(4096) {
            bytes[at] ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

fn y31_a_fast_drill_brings_what_is_read_and_proves_no_whole_backup(major: u32) {
    require_fuse!("y31_a_fast_drill_brings_what_is_read_and_proves_no_whole_backup");
    let drilled = Drilled::new(major);
    let checks = drilled.folder.file(
        "checks.sql",
        "-- expect: 3000\nselect count(*) from t;\n-- expect: later\nselect b from t where id = 3000;\n",
    );
    let fast = || drilled.drill().arg("--fast").arg("--checks").arg(&checks);
    let run = fast().succeed();
    let json = run.json();
    assert_eq!(json["passed"], true, "{run}");
    assert_eq!(
        json["reached_lsn"], json["plan"]["stop"]["recovery_end_lsn"],
        "{run}"
    );
    let not_checked = serde_json::json!(["copy", "amcheck", "pages"]);
    assert_eq!(json["not_checked"], not_checked, "{run}");
    let phases = json["phases"].as_array().unwrap();
    assert!(phases.iter().all(|p| p["phase"] != "copy"), "{run}");
    assert_eq!(drilled.left(), ["checks.sql"]);
    let text = drilled.site.pitr().arg("info").succeed();
    let text = text.expect_stdout("not wholly checked: copy, amcheck, pages");
    // Its durations tell nothing of a restore.
    text.expect_stdout("no drill on this host has measured it");
    // Rows of the backup are damaged: replay and queries come to them.
    damage_packs(&drilled);
    let run = fast().exits(4);
    broken(&run);
    assert_eq!(drilled.left(), ["checks.sql"]);
}
per_major!(y31_a_fast_drill_brings_what_is_read_and_proves_no_whole_backup);

#[test]
fn y31_a_fast_drill_keeps_no_backup() {
    require_fuse!("y31_a_fast_drill_keeps_no_backup");
    let drilled = Drilled::new(17);
    let first = drilled.drill().arg("--fast").succeed().json()["backup"].clone();
    drilled.cluster.archive_now();
    drilled.site.pitr().words("backup --quiet").succeed();
    drilled.rules("keep_last = 1\nkeep_proven = true\n");
    let at_once = ["expire", "--min-age", "0s", "--grace", "0s", "--json"];
    let run = drilled.site.pitr().args(at_once).arg("--dry-run").run();
    let judged = run.success().json()["clusters"][0]["backups"][0].clone();
    assert_eq!(judged["id"], first);
    assert_eq!(judged["fate"], "delete", "{judged}");
}

#[test]
fn y31_a_fast_drill_that_was_killed_leaves_nothing() {
    require_fuse!("y31_a_fast_drill_that_was_killed_leaves_nothing");
    let drilled = Drilled::new(17);
    let running = drilled.drill().arg("--fast").spawn();
    wait_until("the tree is there", || {
        drilled
            .left()
            .iter()
            .any(|name| name.contains("/tree/data/"))
    });
    running.ended_by(Signal::KILL);
    // The next drill takes away whatever the other one left.
    let run = drilled.drill().arg("--fast").succeed();
    assert_eq!(run.json()["passed"], true, "{run}");
    assert!(drilled.left().is_empty(), "{:?}", drilled.left());
}
