//! `pitr restore` through the real program: archive, back up, restore, start, compare.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Cluster, Program, Run, Site, Stop, newest_bin, user, wait_until};
use crate::per_major;

/// A cluster with a tablespace, a second database and a history of three moments.
pub struct Scene {
    pub cluster: Cluster,
    pub site: Site,
    /// Directory of the tablespace.
    pub space: PathBuf,
    pub backup: String,
    /// A restore point between the two halves of the workload.
    pub point: &'static str,
}

/// Rows before the backup, before the restore point, and after it.
pub const BEFORE: u32 = 2000;
pub const AT_POINT: u32 = 2500;
pub const AT_END: u32 = 3000;

impl Scene {
    pub fn new(major: u32) -> Scene {
        Scene::taken(major, &[])
    }

    /// A scene whose backup is taken with these arguments.
    pub fn taken(major: u32, args: &[&str]) -> Scene {
        let (site, cluster) = Site::with_cluster(major);
        let space = cluster.sandbox().dir("space");
        cluster.make_tablespace("ts", &space);
        cluster.sql("create database other");
        if major >= 15 {
            let client = cluster.client();
            client.sql("set allow_in_place_tablespaces = on");
            client.sql("create tablespace in_place location ''");
            client.sql("create table p tablespace in_place as select g as a from generate_series(1, 300) g");
        }
        cluster.sql(&format!(
            "create table t (a int primary key, b text);
             insert into t select g, repeat('x', g % 100) from generate_series(1, {BEFORE}) g;
             create unlogged table u as select g as a from generate_series(1, 100) g;
             create table s tablespace ts as select g as a from generate_series(1, 5000) g;
             create index on s (a) tablespace ts;"
        ));
        let other = cluster.client_of("other");
        other.sql("create table o as select g as a from generate_series(1, 100) g");
        let backup = site.pitr().words("backup --json").args(args).succeed().id();
        insert(&cluster, BEFORE, AT_POINT);
        cluster.sql("select pg_create_restore_point('here')");
        insert(&cluster, AT_POINT, AT_END);
        cluster.archive_now();
        Scene {
            cluster,
            site,
            space,
            backup,
            point: "here",
        }
    }

    /// Returns the directory to which the test restores.
    pub fn to(&self) -> PathBuf {
        self.site.sandbox().join("copy/data")
    }

    /// Returns the new directory of its tablespace.
    pub fn new_space(&self) -> PathBuf {
        self.site.sandbox().join("copy/space")
    }

    /// `pitr restore` with the tablespace mapped.
    pub fn restore(&self) -> Program {
        self.site.sandbox().dir("copy");
        self.site
            .pitr()
            .restore_to(self.to())
            .arg("--tablespace-mapping")
            .arg(format!(
                "{}={}",
                self.space.display(),
                self.new_space().display()
            ))
    }

    /// A server on the copy.
    pub fn open(&self) -> Cluster {
        Cluster::open(self.cluster.major(), self.to())
            .without_fsync()
            .create()
    }
}

fn insert(cluster: &Cluster, from: u32, to: u32) {
    cluster.sql(&format!(
        "insert into t select g, repeat('y', g % 100) from generate_series({from} + 1, {to}) g"
    ));
}

/// All files under a folder with their bytes; links with their targets.
pub fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            if meta.is_symlink() {
                let target = std::fs::read_link(&path).unwrap();
                found.push((name, target.to_str().unwrap().as_bytes().to_vec()));
            } else if meta.is_dir() {
                found.push((format!("{name}/"), Vec::new()));
                walk(&path, root, found);
            } else {
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

pub fn rows(cluster: &Cluster) -> u32 {
    cluster.value("select count(*) from t").parse().unwrap()
}

/// Before the first start: the server's own manifest fits, nothing else is there.
pub fn verify_backup(major: u32, folder: &Path) {
    Program::new(newest_bin(major, "pg_verifybackup"))
        .arg("-n")
        .arg(folder)
        .succeed();
}

/// After a clean stop: every page has its checksum.
pub fn check_checksums(cluster: &Cluster) {
    // 14 has no pg_checksums here; that of 15 does not find a tablespace of 14.
    let links = cluster.pgdata().join("pg_tblspc");
    let aside = cluster.pgdata().with_file_name("links");
    let is_foreign = cluster.bin("pg_checksums").is_none();
    if is_foreign {
        std::fs::rename(&links, &aside).unwrap();
        std::fs::create_dir(&links).unwrap();
    }
    Program::new(newest_bin(cluster.major(), "pg_checksums"))
        .words("--check -D")
        .arg(cluster.pgdata())
        .succeed();
    if is_foreign {
        std::fs::remove_dir(&links).unwrap();
        std::fs::rename(&aside, &links).unwrap();
    }
}

/// While it runs: every table and index of every database is sound.
pub fn check_relations(cluster: &Cluster) {
    let databases = cluster.sql("select datname from pg_database where datallowconn");
    let databases = databases.iter().map(|row| row[0].as_deref().unwrap());
    if cluster.major() >= 14 && cluster.bin("pg_amcheck").is_some() {
        cluster
            .tool("pg_amcheck")
            .words("--all --heapallindexed --install-missing")
            .succeed();
        // The program asks for B-trees alone.
        if cluster.major() >= 18 {
            databases.for_each(|database| {
                let gin =
                    "select gin_index_check(c.oid) from pg_class c join pg_am a on a.oid = c.relam
                     where c.relkind = 'i' and a.amname = 'gin' and c.relpersistence = 'p'";
                cluster.client_of(database).sql(gin);
            });
        }
        return;
    }
    databases.for_each(|database| check_database(cluster, database));
}

/// 14 is without the program here, 13 without the check of tables: they are read.
fn check_database(cluster: &Cluster, database: &str) {
    let client = cluster.client_of(database);
    client.sql("create extension if not exists amcheck");
    client.sql(
        "select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam
         where c.relkind = 'i' and a.amname = 'btree' and c.relpersistence = 'p'",
    );
    let tables = "select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'm', 't') and c.relpersistence = 'p'";
    let tables = client.sql(tables);
    assert!(tables.len() > 50, "{}", tables.len());
    for table in tables.iter().map(|row| row[0].as_deref().unwrap()) {
        let check = match cluster.major() {
            13 => format!("select count(*) - count(*) from {table}"),
            _ => format!("select count(*) from verify_heapam('{table}'::regclass)"),
        };
        assert_eq!(client.value(&check), "0", "{database} {table}");
    }
}

fn auto_conf(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("postgresql.auto.conf")).unwrap()
}

fn the_whole_way(major: u32) {
    let run = go_the_whole_way(&Scene::new(major));
    assert!(run["restored"]["compared_file_count"].as_u64().unwrap() > 500);
}

/// From the dry run of a restore to the adoption of the copy. Returns what the restore reported.
pub fn go_the_whole_way(scene: &Scene) -> Value {
    let major = scene.cluster.major();
    let to = scene.to();

    // The dry run shows what the real one does, and writes nothing.
    let target = ["--target-name", scene.point];
    let dry = scene
        .restore()
        .args(target)
        .words("--dry-run --json")
        .succeed()
        .json();
    assert!(!to.exists());
    let run = scene.restore().args(target).arg("--json").succeed().json();
    let without = |value: &Value| {
        let mut value = value.clone();
        for field in ["dry_run", "restored"] {
            value.as_object_mut().unwrap().remove(field);
        }
        value
    };
    assert_eq!(without(&dry), without(&run));
    assert_eq!(run["backup"]["id"], scene.backup.as_str());
    assert_eq!(run["restored"]["may_archive"], false);
    verify_backup(major, &to);
    assert!(!to.join("pg_wal/pitr.restore").exists());
    assert!(!to.join("postmaster.pid").exists());
    assert!(to.join("pg_wal/pitr.guard").exists());
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(mode(&to), 0o700);
    assert_eq!(mode(&to.join("PG_VERSION")), 0o600);
    assert_eq!(mode(&scene.new_space()), 0o700);

    let mut copy = scene.open();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_POINT);
    assert_eq!(copy.value("select count(*) from s"), "5000");
    assert_eq!(copy.value("select count(*) from u"), "0");
    if major >= 15 {
        assert_eq!(copy.value("select count(*) from p"), "300");
    }
    let other = copy.client_of("other");
    assert_eq!(other.value("select count(*) from o"), "100");
    let space =
        copy.value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'ts'");
    assert_eq!(space, scene.new_space().to_str().unwrap());
    assert_eq!(copy.value("show archive_mode"), "off");

    // The settings of recovery are gone, by the server's own hand.
    let settings = auto_conf(&to);
    assert!(!settings.contains("recovery_target"), "{settings}");
    assert!(!settings.contains("restore_command"), "{settings}");
    assert!(settings.contains("archive_mode = 'off'"), "{settings}");
    check_relations(&copy);
    copy.stop(Stop::Fast);
    check_checksums(&copy);

    // Even with archiving switched on, the copy cannot archive before it is adopted.
    let archived = scene.site.files();
    let segment = std::fs::read_dir(to.join("pg_wal"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.file_name().unwrap().len() == 24)
        .unwrap();
    scene
        .site
        .archive()
        .arg(&segment)
        .exits(22)
        .expect_stderr("A122");
    assert_eq!(scene.site.files(), archived);

    let adopted = scene
        .site
        .pitr()
        .words("adopt --confirm --pgdata")
        .arg(&to)
        .succeed();
    assert!(adopted.stdout.contains("archive_mode"), "{adopted}");
    assert!(!auto_conf(&to).contains("archive_mode"));
    assert!(!to.join("pg_wal/pitr.guard").exists());
    assert!(!to.join("pg_wal/pitr.settings").exists());
    let events = scene.site.cluster_folder().join("events/cluster");
    let recorded = std::fs::read_dir(events).unwrap().any(|e| {
        e.unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .contains("-adopted-")
    });
    assert!(recorded);
    copy.start();
    assert_eq!(copy.value("show archive_mode"), "on");
    // Its timeline is new, so it archives beside the old one.
    copy.archive_now();
    assert_eq!(rows(&copy), AT_POINT);
    run
}

per_major!(the_whole_way);

/// The refusals of a restore that never began.
fn refused(run: &Program, code: i32, part: &str) -> Run {
    run.exits(code).expect_stderr(part)
}

#[test]
fn t01_t03_t05_nothing_is_written_before_everything_is_checked() {
    let scene = Scene::new(15);
    let sandbox = scene.site.sandbox();
    let to = scene.to();
    let restore = || scene.restore();
    let files = scene.site.files();

    // T01: a target out of reach is reported before a byte is copied.
    refused(
        &restore().words("--target-time 2001-01-01T00:00:00Z"),
        5,
        "",
    );
    refused(&restore().words("--target-name there"), 5, "here");
    refused(&restore().words("--target-lsn FF/0"), 5, "");
    assert!(!to.exists());

    // T03: somebody's data.
    let full = sandbox.dir("copy/full");
    sandbox.file("copy/full/x", "keep");
    let into = |path: &Path| {
        scene
            .site
            .pitr()
            .restore_to(path)
            .arg("--tablespace-mapping")
            .arg(format!(
                "{}={}",
                scene.space.display(),
                scene.new_space().display()
            ))
    };
    refused(&into(&full), 8, "not empty: 1 entry");
    refused(&into(scene.cluster.pgdata()), 8, "PostgreSQL runs in");
    refused(&into(Path::new("/")), 8, "root directory");
    refused(&into(&sandbox.join("gone/data")), 8, "does not exist");
    refused(&into(&scene.site.repository().join("x")), 8, "repository");
    refused(&into(&full.join("x")), 8, "not a directory");
    assert_eq!(std::fs::read(full.join("x")).unwrap(), b"keep");
    assert_eq!(scene.site.files(), files);

    // Tablespaces: never over the original, never twice, never inside.
    let mapped = |mapping: &str| {
        scene
            .site
            .pitr()
            .restore_to(&to)
            .args(["--tablespace-mapping", mapping])
    };
    let old = scene.space.display();
    let unmapped = scene.site.pitr().restore_to(&to);
    refused(&unmapped, 8, "--confirm");
    refused(&unmapped.arg("--confirm"), 8, "not empty");
    refused(
        &mapped(&format!("{old}={}", full.display())),
        8,
        "not empty",
    );
    refused(
        &mapped(&format!("{old}={}/t", to.display())),
        8,
        "does not exist",
    );
    refused(
        &mapped(&format!("{old}={}", to.display())),
        2,
        "data directory",
    );
    refused(&mapped("1=/tmp/x"), 2, "no tablespace");
    assert!(!to.exists());
    assert_eq!(scene.site.files(), files);
}

#[test]
fn f04_a_missing_segment_stops_the_server_and_never_promotes_it() {
    let scene = Scene::new(16);
    let run = scene.restore().arg("--json").succeed().json();
    // Lost after the plan was made.
    let last = run["segments_needed"]["last"].as_str().unwrap().to_owned();
    let object = scene.site.object(&last);
    let aside = scene.site.sandbox().join("aside");
    std::fs::rename(&object, &aside).unwrap();
    let mut copy = scene.open();
    let log = match copy.try_start() {
        Err(log) => log,
        // With hot_standby the server may take connections before it stops.
        Ok(()) => {
            copy.wait_ended();
            copy.log()
        }
    };
    assert!(log.contains("FATAL"), "{log}");
    assert!(!log.contains("archive recovery complete"), "{log}");
    assert!(scene.to().join("recovery.signal").exists());
    assert!(auto_conf(&scene.to()).contains("recovery_target_lsn"));
    // It is back, and recovery goes on where it was.
    std::fs::rename(&aside, &object).unwrap();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_END);
    assert!(!auto_conf(&scene.to()).contains("recovery_target"));
}

/// From 15 on PostgreSQL reads ahead of the replay, here over nearly empty segments up to a hole.
fn f22_a_hole_behind_the_target_does_not_keep_recovery_from_it(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    site.pitr().words("backup --quiet").succeed();
    let names: Vec<String> = (0..5).map(|_| cluster.archive_now()).collect();
    std::fs::remove_file(site.object(&names[2])).unwrap();
    let to = site.sandbox().dir("copy").join("data");
    let restore = site.pitr().words("restore --target-immediate --to");
    let restore = restore.arg(&to);
    let shown = restore.clone().arg("--dry-run").succeed();
    restore.succeed();
    let written = auto_conf(&to);
    let _copy = Cluster::open(major, &to).without_fsync().promoted();
    let off = "recovery_prefetch = 'off'";
    assert_eq!(written.contains(off), major >= 15);
    assert_eq!(shown.stdout.contains(off), major >= 15, "{shown}");
    assert!(!auto_conf(&to).contains("recovery_prefetch"));
}
per_major!(f22_a_hole_behind_the_target_does_not_keep_recovery_from_it, v14 v15 v19);

/// A `restore_command` that waits, once, before it asks for a certain file: the test meanwhile does something to the repository. That call alone
/// gives up soon.
pub struct Trap {
    folder: PathBuf,
}

impl Trap {
    /// Nothing is fetched ahead of the server: where it is when something happens is known.
    pub fn new(site: &Site) -> Trap {
        let folder = site.sandbox().dir("trap");
        let script = site.sandbox().file(
            "trap/command",
            format!(
                "if rm '{0}/'\"$1\" 2>/dev/null; then\n\
                 touch '{0}/reached'; until rm '{0}/go' 2>/dev/null; do sleep 0.02; done; limit=2\nfi\n\
                 PITR_FAULT_SECONDS=${{limit:-300}} PITR_CLUSTERS_MAIN_PREFETCH_SEGMENTS=0 exec {1} \"$1\" \"$2\"\n",
                folder.display(),
                site.restore().shell()
            ),
        );
        assert!(script.exists());
        Trap { folder }
    }

    pub fn command(&self) -> String {
        format!("/bin/sh {}/command %f %p", self.folder.display())
    }

    fn touch(&self, name: &str) {
        // The command takes the file away as soon as it sees it: it appears whole.
        let made = self.folder.join("made");
        std::fs::write(&made, "").unwrap();
        user::own(&made);
        std::fs::rename(made, self.folder.join(name)).unwrap();
    }

    /// The next time that `file` is asked for, the command waits.
    pub fn set(&self, file: &str) {
        self.touch(file);
    }

    /// Waits until the server has come to the file.
    pub fn wait(&self) {
        wait_until("recovery has come to the file", || {
            self.folder.join("reached").exists()
        });
        std::fs::remove_file(self.folder.join("reached")).unwrap();
    }

    /// Lets it go on.
    pub fn release(&self) {
        self.touch("go");
    }

    /// Starts the server, waits until it asks for `file`, and lets it go on with what `outage` has made of the repository.
    pub fn spring<T>(&self, server: &mut Cluster, file: &str, outage: impl FnOnce() -> T) -> T {
        self.set(file);
        server.spawn();
        self.wait();
        let done = outage();
        self.release();
        done
    }
}

#[test]
fn t02_an_outage_during_replay_stops_the_server_and_once_it_is_over_the_target_is_reached() {
    let scene = Scene::new(16);
    // Enough WAL for outages in its middle, and a target behind them.
    for n in 0..6 {
        insert(&scene.cluster, AT_END + n, AT_END + n + 1);
        scene.cluster.archive_now();
    }
    scene.cluster.sql("select pg_create_restore_point('far')");
    insert(&scene.cluster, AT_END + 6, AT_END + 7);
    scene.cluster.archive_now();
    let plan = scene
        .restore()
        .words("--target-name far --json")
        .succeed()
        .json();
    let last = plan["segments_needed"]["last"].as_str().unwrap();
    let number = u32::from_str_radix(&last[16..], 16).unwrap();
    let before = |n: u32| format!("{}{:08X}", &last[..16], number - n);
    let trap = Trap::new(&scene.site);
    let mut copy = Cluster::open(16, scene.to())
        .without_fsync()
        .option("restore_command", trap.command())
        .create();
    let archived = scene.site.files();
    let stopped = |copy: &mut Cluster, seen: usize, status: i32| {
        assert_ne!(copy.wait_ended(), 0);
        let log = copy.log().split_off(seen);
        let reason = format!("exited with exit code {status}");
        assert!(log.contains("FATAL") && log.contains(&reason), "{log}");
        assert!(!log.contains("archive recovery complete"), "{log}");
        assert!(!log.contains("selected new timeline"), "{log}");
        assert!(scene.to().join("recovery.signal").exists());
        assert!(auto_conf(&scene.to()).contains("recovery_target_name"));
        assert!(!scene.to().join("pg_wal/00000002.history").exists());
    };

    // The disk of the repository is unmounted.
    let away = trap.spring(&mut copy, &before(4), || {
        crate::fetch::Away::new(&scene.site)
    });
    stopped(&mut copy, 0, 208);
    drop(away);
    // It hangs.
    if user::is_root() {
        let seen = copy.log().len();
        let hanging = trap.spring(&mut copy, &before(2), || {
            crate::common::mount::HangingDisk::over(scene.site.repository())
        });
        stopped(&mut copy, seen, 200);
        drop(hanging);
    } else {
        crate::common::skipped(
            "t02_an_outage_during_replay_stops_the_server (a repository that hangs)",
            "needs root",
        );
    }
    // A segment is damaged, and put right.
    let seen = copy.log().len();
    let object = scene.site.object(&before(1));
    let good = std::fs::read(&object).unwrap();
    trap.spring(&mut copy, &before(1), || {
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&object, bad).unwrap();
    });
    stopped(&mut copy, seen, 201);
    std::fs::write(&object, good).unwrap();

    // Everything is back, and besides only the word of the damage, for plans and people: the plan comes true.
    let is_word = |key: &String| key.contains("/events/") && key.contains("-damaged-");
    let (words, rest): (Vec<_>, Vec<_>) = scene.site.files().into_iter().partition(is_word);
    assert_eq!(rest, archived);
    assert!(
        matches!(words.as_slice(), [one] if one.contains(&before(1))),
        "{words:?}"
    );
    copy.start();
    copy.wait_promoted();
    assert!(
        copy.log()
            .contains("recovery stopping at restore point \"far\"")
    );
    assert_eq!(rows(&copy), AT_END + 6);
}

#[test]
fn t08_a_restored_copy_that_is_told_to_archive_is_kept_out_of_the_repository_of_its_origin() {
    let scene = Scene::new(17);
    let run = scene.restore().succeed();
    let archived = scene.site.files();
    // Whoever starts it forces archiving on, with the command that came along.
    let mut copy = Cluster::open(17, scene.to())
        .without_fsync()
        .option("archive_mode", "on")
        .create();
    let command = scene.cluster.value("show archive_command");
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.value("show archive_command"), command);
    copy.wait_log("error A122");
    let failed = "select failed_count > 0 and archived_count = 0 from pg_stat_archiver";
    wait_until("the failure is counted", || copy.value(failed) == "t");
    assert_eq!(scene.site.files(), archived, "{run}");
    // The origin archives as ever; and so does the copy, once somebody has decided that it may.
    scene.cluster.archive_now();
    scene
        .site
        .pitr()
        .words("adopt --confirm --pgdata")
        .arg(scene.to())
        .succeed();
    let name = copy.archive_now();
    assert!(name.starts_with("00000002"), "{name}");
    assert!(scene.site.object(&name).exists());
}

#[test]
fn a_standby_catches_up_from_the_archive_and_then_streams() {
    let scene = Scene::new(17);
    scene.site.sandbox().dir("copy");
    let conninfo = scene
        .cluster
        .conninfo("postgres")
        .replace(" dbname=postgres", "");
    scene
        .cluster
        .sql("select pg_create_physical_replication_slot('s1')");
    let run = scene
        .site
        .pitr()
        .words("standby --to")
        .arg(scene.to())
        .args(["--primary-conninfo", &conninfo, "--slot", "s1"])
        .arg("--tablespace-mapping")
        .arg(format!(
            "{}={}",
            scene.space.display(),
            scene.new_space().display()
        ))
        .succeed();
    assert!(run.stdout.contains("pg_ctl -D"), "{run}");
    verify_backup(17, &scene.to());
    let wal = scene.to().join("pg_wal");
    let ours = std::fs::read_dir(&wal)
        .unwrap()
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .starts_with("pitr")
        })
        .count();
    assert_eq!(ours, 0, "a standby is the cluster: no guard, no record");
    let mut standby = scene.open();
    standby.start();
    standby.wait_log("started streaming WAL from primary");
    standby.wait_log("restored log file");
    insert(&scene.cluster, AT_END, AT_END + 7);
    standby.wait_replayed(&scene.cluster.insert_lsn());
    assert_eq!(rows(&standby), AT_END + 7);
    let slot = scene
        .cluster
        .value("select active from pg_replication_slots where slot_name = 's1'");
    assert_eq!(slot, "t");
}

#[test]
fn as_root_the_files_belong_to_the_owner_of_the_directory() {
    crate::require_root!("as_root_the_files_belong_to_the_owner_of_the_directory");
    let scene = Scene::new(15);
    // The parent belongs to the unprivileged user.
    scene.restore().privileged().succeed();
    use std::os::unix::fs::MetadataExt as _;
    fn owners(folder: &Path, found: &mut Vec<u32>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            found.push(meta.uid());
            if meta.is_dir() {
                owners(&path, found);
            }
        }
    }
    let mut found = Vec::new();
    owners(&scene.site.sandbox().join("copy"), &mut found);
    assert!(found.iter().all(|uid| *uid == user::ids().0));
    let mut copy = scene.open();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_END);
    copy.stop(Stop::Fast);
    scene
        .site
        .pitr()
        .words("adopt --confirm --pgdata")
        .arg(scene.to())
        .privileged()
        .succeed();
    copy.start();
    // A directory of root's is no place for a server.
    let roots = std::env::temp_dir().join(format!("pitr-roots-{}", std::process::id()));
    std::fs::create_dir(&roots).unwrap();
    let run = scene
        .site
        .pitr()
        .restore_to(roots.join("x"))
        .privileged()
        .run();
    std::fs::remove_dir(&roots).unwrap();
    run.expect_code(8).expect_stderr("belongs to root");
}

#[test]
fn the_action_at_the_target_is_done() {
    let scene = Scene::new(19);
    // Pauses, open for reads, until the operator resumes it.
    scene
        .restore()
        .args(["--target-name", scene.point, "--target-action", "pause"])
        .succeed()
        .expect_stdout("pg_wal_replay_resume");
    let mut copy = scene.open();
    copy.start();
    copy.wait_log("pausing at the end of recovery");
    assert_eq!(rows(&copy), AT_POINT);
    copy.sql("select pg_wal_replay_resume()");
    copy.wait_promoted();
    assert!(!auto_conf(&scene.to()).contains("recovery_target"));
    drop(copy);
    std::fs::remove_dir_all(scene.site.sandbox().join("copy")).unwrap();

    // Shuts down; the settings stay, for the next start is to do the same.
    scene
        .restore()
        .args(["--target-name", scene.point, "--target-action", "shutdown"])
        .succeed();
    let mut copy = scene.open();
    copy.spawn();
    copy.wait_ended();
    assert!(
        copy.log().contains("shutdown at recovery target"),
        "{}",
        copy.log()
    );
    assert!(auto_conf(&scene.to()).contains("recovery_target_name"));
    drop(copy);
    std::fs::remove_dir_all(scene.site.sandbox().join("copy")).unwrap();

    // The successor of a cluster that is lost archives at once, on its own timeline.
    let adopt = || scene.restore().arg("--adopt");
    adopt().exits(8).expect_stderr("a server runs in");
    adopt().arg("--confirm").succeed();
    assert!(!scene.to().join("pg_wal/pitr.guard").exists());
    let mut copy = scene.open();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_END);
    let name = copy.archive_now();
    assert!(name.starts_with("00000002"), "{name}");
    assert!(!scene.to().join("pg_wal/pitr.settings").exists());
}

#[test]
fn a_copy_that_is_adopted_under_a_new_name_is_a_cluster_of_its_own() {
    let scene = Scene::new(15);
    scene.restore().succeed();
    // Before the first start: what recovery needs stays.
    let adopt = |name: &str| {
        scene
            .site
            .pitr()
            .args(["adopt", "--json", "--as", name, "--pgdata"])
            .arg(scene.to())
    };
    adopt("../x").exits(2);
    // The copy tells what it is of, whatever else is configured.
    let other = "[clusters.other]\n[clusters.main]";
    scene.site.edit("[clusters.main]", other);
    let json = adopt("staging").succeed().json();
    scene.site.edit(other, "[clusters.main]");
    assert_eq!(json["cluster"], "staging");
    assert_eq!(json["recovery_pending"], true);
    assert_eq!(
        json["settings_removed"],
        serde_json::json!(["archive_mode"])
    );
    let registered = scene.site.repository().join("clusters/staging");
    assert_eq!(std::fs::read_dir(registered).unwrap().count(), 1);
    assert!(auto_conf(&scene.to()).contains("recovery_target_lsn"));
    // Archives under the new name, as its own host would have it configured.
    let config = std::fs::read_to_string(scene.site.config()).unwrap();
    let config = config.replace("[clusters.main]", "[clusters.staging]");
    let config = scene.site.sandbox().file("staging.toml", config);
    let command = crate::common::pitr_archive()
        .arg("--config")
        .arg(config)
        .arg("%p")
        .shell();
    let copy = Cluster::open(15, scene.to())
        .without_fsync()
        .option("archive_command", command)
        .promoted();
    let name = copy.archive_now();
    assert!(name.starts_with("00000002"), "{name}");
    assert!(!auto_conf(&scene.to()).contains("recovery_target"));
    assert!(
        !scene.site.object(&name).exists(),
        "nothing came to the old name"
    );
    // Once more does no harm.
    adopt("staging").succeed();
    // Adopting a data directory that is no copy changes and records nothing.
    let files = scene.site.files();
    scene
        .site
        .pitr()
        .arg("adopt")
        .succeed()
        .expect_stdout("nothing to do");
    assert_eq!(scene.site.files(), files);
    // A path that is no data directory at all is refused.
    scene
        .site
        .pitr()
        .words("adopt --pgdata /tmp")
        .exits(8)
        .expect_stderr("not a data directory");
}

#[test]
fn n15_adopt_names_the_setting_that_a_replica_has_of_a_copy() {
    let (site, cluster) = Site::with_cluster(17);
    let adopt = || site.pitr().arg("adopt").succeed().stdout;
    let named = "alter system reset archive_mode";
    assert!(!adopt().contains(named));
    cluster.sql("alter system set archive_mode = off");
    let told = adopt();
    assert!(
        told.contains("nothing to do") && told.contains(named),
        "{told}"
    );
}

#[test]
fn x54_a_copy_of_another_cluster_than_the_named_one_is_not_adopted() {
    let scene = Scene::new(15);
    scene.restore().succeed();
    let mut config = std::fs::read_to_string(scene.site.config()).unwrap();
    config.push_str("\n[clusters.other]\n");
    let config = scene.site.sandbox().file("two.toml", config);
    let adopt = crate::common::pitr().arg("--config").arg(&config);
    let adopt = adopt
        .words("adopt --cluster other --pgdata")
        .arg(scene.to());
    adopt.exits(8).expect_stderr("is of cluster \"main\"");
    assert!(scene.to().join("pg_wal/pitr.guard").exists());
    // The copy tells its cluster, although several are configured.
    let adopt = crate::common::pitr().arg("--config").arg(config);
    let adopt = adopt.words("adopt --confirm --pgdata").arg(scene.to());
    adopt.succeed().expect_stdout("is adopted as \"main\"");
}

#[test]
fn x64_the_steps_after_an_adoption_are_of_the_copys_cluster_and_not_of_the_only_configured_one() {
    let scene = Scene::new(15);
    scene.restore().succeed();
    let config = std::fs::read_to_string(scene.site.config()).unwrap();
    let (before, behind) = config.split_once("[clusters.main]").unwrap();
    let behind = behind.find("\n[").map_or("", |at| &behind[at..]);
    let other =
        "[clusters.other]\npgdata = \"/srv/other\"\n[clusters.other.receive]\nslot = \"s\"\n";
    let config = format!("{before}{behind}\n{other}");
    let config = scene.site.sandbox().file("other.toml", config);
    let adopt = crate::common::pitr().arg("--config").arg(&config);
    let adopted = adopt.words("adopt --pgdata").arg(scene.to()).succeed();
    let told = adopted.stdout;
    let wanted = format!(
        "add [clusters.main] with pgdata = \"{}\" and conninfo to {}",
        scene.to().display(),
        config.display()
    );
    assert!(told.contains(&wanted), "{told}");
    assert!(!told.contains("/srv/other"), "{told}");
    assert!(!told.contains("create-slot"), "{told}");
}

#[test]
fn x64_servers_of_other_clusters_keep_no_copy_from_being_adopted_and_the_hint_leads_there() {
    let scene = Scene::new(15);
    scene.restore().succeed();
    let config = std::fs::read_to_string(scene.site.config()).unwrap();
    let (before, behind) = config.split_once("[clusters.main]").unwrap();
    let behind = behind.find("\n[").map_or("", |at| &behind[at..]);
    // Nobody can say what the server is that refuses the login.
    let others = format!(
        "[clusters.other]\nconninfo = \"host={} port={} user=nobody_here dbname=postgres\"\n[clusters.third]\n",
        scene.cluster.socket_dir().display(),
        scene.cluster.port()
    );
    let config = format!("{before}{behind}\n{others}");
    let config = scene.site.sandbox().file("others.toml", config);
    let adopt = |words: &str| {
        let pitr = crate::common::pitr().arg("--config").arg(&config);
        pitr.words(words).arg(scene.to())
    };
    adopt("adopt --cluster other --pgdata")
        .exits(8)
        .expect_stderr("Add --cluster main");
    adopt("adopt --cluster main --pgdata")
        .succeed()
        .expect_stdout("is adopted as \"main\"")
        .expect_stdout("add [clusters.main] with pgdata");
}

#[test]
fn h03_t12_of_two_copies_that_took_the_same_timeline_the_second_is_not_adopted() {
    let (site, mut origin) = Site::with_cluster(16);
    origin.sql("create table t as select g as a from generate_series(1, 10) g");
    site.pitr().arg("backup").succeed();
    origin.sql("select pg_create_restore_point('here')");
    origin.sql("insert into t values (11)");
    origin.archive_now();
    let folder = site.sandbox().dir("copies");
    let copy = |name: &str, target: &[&str]| -> Cluster {
        let to = folder.join(name);
        site.pitr().restore_to(&to).args(target).succeed();
        // Promoted before any of them has archived: each takes timeline 2.
        let mut copy = Cluster::open(16, to).without_fsync().promoted();
        // By its end the first checkpoint of the timeline is written.
        copy.sql("checkpoint");
        copy.stop(Stop::Fast);
        assert!(copy.pgdata().join("pg_wal/00000002.history").exists());
        copy
    };
    let (mut first, twin) = (copy("first", &[]), copy("twin", &[]));
    let other = copy("other", &["--target-name", "here"]);
    let adopt = |copy: &Cluster| {
        let pgdata = copy.pgdata().to_owned();
        site.pitr().words("adopt --confirm --pgdata").arg(pgdata)
    };
    let config = std::fs::read_to_string(site.config()).unwrap();
    site.sandbox().file(
        "pitr.toml",
        format!("{config}\n[clusters.main.receive]\nslot = \"s\"\n"),
    );
    adopt(&first)
        .succeed()
        .expect_stdout(&format!(
            "set pgdata = \"{}\" in [clusters.main] of {}",
            first.pgdata().display(),
            site.config().display()
        ))
        .expect_stdout("pitr receive --create-slot --config");
    // Nothing had marked the history of its timeline for the archiver.
    assert!(site.object("00000002.history").exists());
    first.start();
    let name = first.archive_now();
    assert!(name.starts_with("00000002"), "{name}");
    origin.stop(Stop::Fast);
    // The same history, and another one: both are refused, and nothing is changed.
    let archived = site.files();
    let history =
        |copy: &Cluster| std::fs::read(copy.pgdata().join("pg_wal/00000002.history")).unwrap();
    assert_eq!(history(&first), history(&twin));
    assert_ne!(history(&first), history(&other));
    for copy in [&twin, &other] {
        adopt(copy)
            .exits(8)
            .expect_stderr("timeline 2 is that of another server")
            .expect_stderr("pitr adopt --as NAME");
        assert!(copy.pgdata().join("pg_wal/pitr.guard").exists());
        assert!(auto_conf(copy.pgdata()).contains("archive_mode = 'off'"));
    }
    assert_eq!(site.files(), archived);
    adopt(&twin).words("--as twin").succeed();
}

/// A server takes such a location where the database has the encoding SQL_ASCII.
#[test]
fn a_tablespace_whose_location_is_no_text_comes_back() {
    brings_raw_location_back("stream");
}

#[test]
fn a_tablespace_whose_location_is_no_text_comes_back_from_a_local_backup() {
    brings_raw_location_back("local");
}

fn brings_raw_location_back(method: &str) {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let (site, cluster) = Site::with_cluster(17);
    let beside = |folder: PathBuf, name: &[u8]| {
        let mut path = folder.into_os_string().into_vec();
        path.push(b'/');
        path.extend_from_slice(name);
        PathBuf::from(OsString::from_vec(path))
    };
    let spaces = cluster.sandbox().dir("spaces");
    let old = beside(spaces.clone(), b"caf\xe9");
    std::fs::create_dir(&old).unwrap();
    user::own(&old);
    cluster.sql("create database raw encoding 'SQL_ASCII' template template0 locale 'C'");
    let raw = cluster.client_of("raw");
    raw.sql(&format!(
        "create tablespace r location E'{}/caf\\351'",
        spaces.display()
    ));
    raw.sql("create table t tablespace r as select g as a from generate_series(1, 500) g");
    assert_eq!(std::fs::read_dir(&old).unwrap().count(), 1);
    let backup = site.pitr().args(["backup", "--method", method]);
    backup.succeed();
    raw.sql("insert into t values (501)");
    cluster.archive_now();

    let hex = |path: &Path| {
        let bytes = path.as_os_str().as_bytes().iter();
        bytes.map(|b| format!("{b:02x}")).collect::<String>()
    };
    let plan = site.pitr().words("plan --json").succeed().json();
    let planned = &plan["backup"]["tablespaces"][0];
    assert_eq!(planned["location_hex"], hex(&old), "{planned:#}");
    assert!(planned["location"].is_null());
    site.pitr().arg("verify").succeed();

    let copies = site.sandbox().dir("copies");
    let (to, new) = (copies.join("data"), beside(copies, b"th\xe9"));
    let restore = || site.pitr().restore_to(&to);
    restore().exits(8).expect_stderr("--tablespace-mapping");
    let mut mapping = old.clone().into_os_string();
    mapping.push("=");
    mapping.push(&new);
    let run = restore()
        .arg("--json")
        .arg("--tablespace-mapping")
        .arg(mapping)
        .succeed()
        .json();
    let placed = &run["restored"]["tablespaces"][0];
    assert_eq!(placed["original_hex"], hex(&old), "{placed:#}");
    assert_eq!(placed["path_hex"], hex(&new), "{placed:#}");
    let link = to.join("pg_tblspc").join(placed["oid"].to_string());
    assert_eq!(std::fs::read_link(link).unwrap(), new);
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    let count = copy.client_of("raw").value("select count(*) from t");
    assert_eq!(count, "501");
}
