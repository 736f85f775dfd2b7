//! How clones end: by themselves, or not at all where somebody wants to keep them.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::clone::{Cloned, SUM, client};
use crate::common::mount::{PowerDisk, SmallDisk};
use crate::common::{Client, Cluster, Program, Run, Stop, files_below, free_port, wait_until};
use crate::{per_major, require_fuse, require_mounts, require_root};

/// A byte in the middle of the largest pack.
pub struct Spoilt {
    pack: PathBuf,
    at: u64,
    was: u8,
}

impl Spoilt {
    /// Finds the byte, and changes it. In place: a clone may have the pack open.
    pub fn now(cloned: &Cloned) -> Spoilt {
        let repository = cloned.site.repository();
        let packs = files_below(repository).into_iter();
        let packs = packs.filter(|name| name.contains("/packs/"));
        let pack = packs.map(|name| repository.join(name));
        let pack = pack.max_by_key(|path| std::fs::metadata(path).unwrap().len());
        let pack = pack.unwrap();
        let whole = std::fs::read(&pack).unwrap();
        let at = whole.len() / 2;
        let spoilt = Spoilt {
            pack,
            at: at as u64,
            was: whole[at],
        };
        spoilt.write(!spoilt.was);
        spoilt
    }

    /// Gives the pack its byte back.
    pub fn mend(self) {
        self.write(self.was);
    }

    fn write(&self, byte: u8) {
        let file = std::fs::File::options().write(true).open(&self.pack);
        file.unwrap().write_all_at(&[byte], self.at).unwrap();
    }
}

impl Cloned {
    /// The first clone of the list.
    pub fn listed(&self) -> serde_json::Value {
        let listed = self.below(&["list", "--json"]).succeed().json();
        listed[0].clone()
    }

    pub fn wait_stage(&self, stage: &str) {
        wait_until(&format!("the clone is {stage}"), || {
            self.listed()["stage"] == stage
        });
    }
}

#[test]
fn k31_a_wish_to_keep_a_clone_outlasts_its_time_also_where_the_copy_fails() {
    require_fuse!("k31_a_wish_to_keep_a_clone_outlasts_its_time_also_where_the_copy_fails");
    const LASTS: Duration = Duration::from_secs(5);
    let cloned = Cloned::new(17);
    let run = cloned.clone().words("--for 5s").succeed();
    let ready = Instant::now();
    assert!(run.json()["ends"].is_string(), "{run}");
    let id = run.id();
    let clone = client(&run);
    clone.sql("create table mine as select 1");
    let spoilt = Spoilt::now(&cloned);
    cloned.below(&["keep", &id]).succeed();
    wait_until("the copy has failed", || {
        cloned.listed()["not_kept"].is_string()
    });
    std::thread::sleep((LASTS + Duration::from_secs(2)).saturating_sub(ready.elapsed()));
    let listed = cloned.listed();
    assert_eq!(listed["stage"], "ready", "{listed}");
    assert!(listed["ends"].is_null() && listed["not_kept"].is_string());
    assert_eq!(clone.value("select count(*) from mine"), "1");
    // It was to be kept, so it is not thrown away without a word.
    let stop = cloned.below(&["stop", &id]).exits(8);
    stop.expect_stderr("--confirm");
    spoilt.mend();
    cloned.below(&["keep", &id]).succeed();
    cloned.wait_stage("whole");
    drop(clone);
    cloned.below(&["stop", &id]).succeed();
}

#[test]
fn k31_a_clone_whose_time_is_over_is_thrown_away() {
    require_fuse!("k31_a_clone_whose_time_is_over_is_thrown_away");
    let cloned = Cloned::new(17);
    let run = cloned.clone().words("--for 2s").succeed();
    assert_eq!(client(&run).value("select count(*) from t"), "31000");
    wait_until("nothing is left", || cloned.left().is_empty());
    let keep = cloned.below(&["keep", &run.id()]).run();
    keep.expect_code(2).expect_stderr("no clone");
}

#[test]
fn k32_a_clone_with_a_port_asks_for_the_clusters_passwords_there() {
    require_fuse!("k32_a_clone_with_a_port_asks_for_the_clusters_passwords_there");
    let cloned = Cloned::with(17, "create role looker login superuser password 'geheim'");
    let (port, _lock) = free_port();
    let number = port.to_string();
    let run = cloned.clone().args(["--port", &number]).succeed();
    let connect = |password: &str| {
        let info = format!("host=127.0.0.1 port={port} user=looker dbname=postgres {password}");
        Client::connect(&info)
    };
    let by_network = connect("password=geheim").unwrap();
    assert_eq!(by_network.value("select count(*) from t"), "31000");
    assert_eq!(by_network.value("show listen_addresses"), "127.0.0.1");
    for wrong in ["", "password=falsch"] {
        assert!(connect(wrong).is_err(), "{wrong}");
    }
    // The folder's own socket has the same number.
    let connection = run.json()["connection"].as_str().unwrap().to_owned();
    assert!(connection.contains(&format!("port={port}")), "{connection}");
    client(&run).value("select 1");
    drop(by_network);
    cloned.below(&["stop", &run.id()]).succeed();
    assert!(cloned.left().is_empty());
}

/// A statement of a session that goes on until it is cancelled.
struct LongStatement {
    connection: String,
    thread: std::thread::JoinHandle<()>,
}

impl LongStatement {
    fn begin(run: &Run) -> LongStatement {
        let json = run.json();
        let connection = json["connection"].as_str().unwrap().to_owned();
        let sleeper = Client::connect(&connection).unwrap();
        let thread = std::thread::spawn(move || {
            let _ = sleeper.try_sql("select pg_sleep(3600)");
        });
        let begun = LongStatement { connection, thread };
        wait_until("the statement has begun", || begun.watch("count(*)") == "1");
        begun
    }

    fn watch(&self, what: &str) -> String {
        let watcher = Client::connect(&self.connection).unwrap();
        watcher.value(&format!(
            "select {what} from pg_stat_activity where state = 'active' and query = 'select pg_sleep(3600)'"
        ))
    }

    fn cancel(self) {
        self.watch("pg_cancel_backend(pid)");
        self.thread.join().unwrap();
    }
}

#[test]
fn k33_a_clone_is_whole_once_no_statement_works_without_fsync_any_more() {
    require_fuse!("k33_a_clone_is_whole_once_no_statement_works_without_fsync_any_more");
    let cloned = Cloned::new(13);
    let run = cloned.clone().succeed();
    let id = run.id();
    let settings = || {
        client(&run).value("select string_agg(name || ' ' || setting, ', ' order by name) from pg_settings where name in ('fsync', 'full_page_writes', 'synchronous_commit', 'autovacuum')")
    };
    let off = "autovacuum off, fsync off, full_page_writes off, synchronous_commit off";
    assert_eq!(settings(), off);
    let old = LongStatement::begin(&run);
    cloned.below(&["keep", &id]).succeed();
    cloned.wait_stage("settling");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(cloned.listed()["stage"], "settling");
    old.cancel();
    cloned.wait_stage("whole");
    wait_until("it is tidied up", || settings() == off.replace("off", "on"));
    let images = "select full_page_writes from pg_control_checkpoint()";
    assert_eq!(client(&run).value(images), "t");
    cloned.below(&["stop", &id]).succeed();
    std::fs::remove_dir_all(cloned.folder.join(format!("pitr-clone-{id}"))).unwrap();
    // One that is stopped while it settles is kept, too.
    let run = cloned.clone().succeed();
    let id = run.id();
    let old = LongStatement::begin(&run);
    cloned.below(&["keep", &id]).succeed();
    cloned.wait_stage("settling");
    let stopped = cloned.below(&["stop", &id, "--json"]).succeed();
    assert_eq!(stopped.json()["stage"], "kept", "{stopped}");
    drop(old);
}

#[test]
fn k33_a_clone_that_cannot_be_durable_says_so_and_stays_in_use() {
    require_fuse!("k33_a_clone_that_cannot_be_durable_says_so_and_stays_in_use");
    let cloned = Cloned::new(17);
    let run = cloned.clone().env("PITR_FAULT_SECONDS", "5").succeed();
    let id = run.id();
    let clone = client(&run);
    clone.sql("alter system set full_page_writes = off");
    let keep = cloned.below(&["keep", &id]);
    keep.succeed();
    wait_until("it says so", || {
        let why = cloned.listed()["not_kept"].to_string();
        why.contains("make the clone durable") && why.contains("ALTER SYSTEM")
    });
    assert_eq!(cloned.listed()["stage"], "settling");
    clone.sql("alter system reset full_page_writes");
    keep.succeed();
    cloned.wait_stage("whole");
    assert!(cloned.listed()["not_kept"].is_null());
    drop(clone);
    cloned.below(&["stop", &id]).succeed();
}

/// Clones on a disk whose power can be cut.
struct OnPower {
    cloned: Cloned,
    disk: PowerDisk,
}

impl OnPower {
    fn clone(&self) -> Run {
        let clone = self.cloned.site.pitr().words("clone --json");
        let clone = clone.args(["--target-lsn", &self.cloned.before, "--dir"]);
        let clone = clone.arg(self.disk.path()).arg("--bin");
        clone.arg(self.cloned.bin()).succeed()
    }

    fn below(&self, arguments: &[&str]) -> Run {
        let program = self.cloned.site.pitr().arg("clone").args(arguments);
        program.arg("--dir").arg(self.disk.path()).run()
    }

    fn list(&self) -> serde_json::Value {
        self.below(&["list", "--json"]).success().json()
    }

    fn wait_stage(&self, stage: &str) {
        wait_until(&format!("the clone is {stage}"), || {
            self.list()[0]["stage"] == stage
        });
    }

    /// Cuts the power under a clone. Its processes end with the host.
    fn cut_power(&self, run: &Run) {
        self.disk.shut_down();
        let pid = i32::try_from(run.json()["pid"].as_i64().unwrap()).unwrap();
        // It may have ended by itself, for its disk answers nothing.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        self.disk.restore_power();
    }
}

fn k33_a_power_cut_costs_a_clone_that_is_not_whole_and_nothing_of_one_that_is(major: u32) {
    require_root!("k33_a_power_cut_costs_a_clone_that_is_not_whole_and_nothing_of_one_that_is");
    require_fuse!("k33_a_power_cut_costs_a_clone_that_is_not_whole_and_nothing_of_one_that_is");
    let on = OnPower {
        cloned: Cloned::new(major),
        disk: PowerDisk::new(400),
    };
    for stage in ["ready", "settling"] {
        let run = on.clone();
        let old = LongStatement::begin(&run);
        if stage != "ready" {
            on.below(&["keep", &run.id()]).success();
        }
        on.wait_stage(stage);
        on.cut_power(&run);
        assert_eq!(on.list(), serde_json::json!([]), "{stage}");
        let left = files_below(on.disk.path());
        assert!(left.is_empty(), "{stage}: {left:?}");
        let _ = old.thread.join();
    }
    let run = on.clone();
    client(&run).sql("create table mine as select g from generate_series(1, 1000) g");
    on.below(&["keep", &run.id()]).success();
    on.wait_stage("whole");
    // Committed, and on no page of a file yet.
    let clone = client(&run);
    clone.sql("update t set b = 'late' where id % 3 = 0; insert into mine values (0)");
    let sum = clone.value(SUM);
    on.cut_power(&run);
    drop(clone);
    let kept = on.list()[0].clone();
    assert_eq!(kept["stage"], "kept", "{kept}");
    assert!(kept["not_kept"].is_null() && kept["connection"].is_null());
    let mut own = Cluster::open(major, kept["data"].as_str().unwrap()).start();
    let one = |sql: &str| own.value(sql);
    assert_eq!(
        (one(SUM), one("select count(*) from mine")),
        (sum, "1001".into())
    );
    assert_eq!(one("select count(*) from big"), "40000");
    assert_eq!(one("show archive_mode"), "off");
    own.stop(Stop::Fast);
    drop(own);
    on.below(&["stop", &run.id()]).expect_code(8);
}
per_major!(k33_a_power_cut_costs_a_clone_that_is_not_whole_and_nothing_of_one_that_is, v13 v17 v19);

#[test]
fn k14_a_full_disk_leaves_a_clone_that_is_to_be_kept_in_use() {
    require_root!("k14_a_full_disk_leaves_a_clone_that_is_to_be_kept_in_use");
    require_fuse!("k14_a_full_disk_leaves_a_clone_that_is_to_be_kept_in_use");
    let cloned = Cloned::new(17);
    let disk = PowerDisk::new(200);
    let clone = cloned.site.pitr().words("clone --json --dir");
    let clone = clone.arg(disk.path()).arg("--bin").arg(cloned.bin());
    let run = clone.args(["--target-lsn", &cloned.before]).succeed();
    let id = run.id();
    let below = |arguments: &[&str]| {
        let program = cloned.site.pitr().arg("clone").args(arguments);
        program.arg("--dir").arg(disk.path()).run()
    };
    let listed = || below(&["list", "--json"]).success().json()[0].clone();
    let clone = client(&run);
    clone.sql("create table mine as select 1");
    // The room that is left does not hold the tables that nobody has read.
    let room = rustix::fs::statvfs(disk.path()).unwrap();
    let room = room.f_bavail * room.f_frsize - (4 << 20);
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; usize::try_from(room).unwrap()]).unwrap();
    below(&["keep", &id]).success();
    let free = || rustix::fs::statvfs(disk.path()).unwrap().f_bavail;
    wait_until("the disk is full", || free() == 0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(clone.value("select count(*) from mine"), "1");
    // There is no room for the reason either: the record has it as soon as there is some.
    std::fs::File::options()
        .write(true)
        .open(&ballast)
        .and_then(|file| file.set_len(ballast.metadata()?.len() - (64 << 10)))
        .unwrap();
    wait_until("the clone says why", || {
        listed()["not_kept"].to_string().contains("No space left")
    });
    assert_eq!(listed()["stage"], "ready");
    std::fs::remove_file(&ballast).unwrap();
    below(&["keep", &id]).success();
    wait_until("the clone is whole", || listed()["stage"] == "whole");
    assert_eq!(clone.value("select count(*) from big"), "40000");
    drop(clone);
    below(&["stop", &id]).success();
}

#[test]
fn k51_a_clone_is_kept_only_where_files_last() {
    require_fuse!("k51_a_clone_is_kept_only_where_files_last");
    require_mounts!("k51_a_clone_is_kept_only_where_files_last");
    let cloned = Cloned::new(17);
    let disk = SmallDisk::new(200, 100_000);
    let at = |program: Program| {
        let program = program.args(["--target-lsn", &cloned.before, "--json", "--bin"]);
        program.arg(cloned.bin())
    };
    let run = at(cloned
        .site
        .pitr()
        .arg("clone")
        .arg("--dir")
        .arg(disk.path()))
    .run();
    let run = run.success().expect_stderr("the clone cannot be kept");
    let id = run.id();
    let below = |verb: &str| {
        let program = cloned.site.pitr().args(["clone", verb, &id, "--dir"]);
        program.arg(disk.path()).run()
    };
    let refused = below("keep").expect_code(8);
    refused
        .expect_stderr("is in memory")
        .expect_stderr("clone_dir");
    assert_eq!(client(&run).value(SUM), client(&run).value(SUM));
    below("stop").success();
    assert!(files_below(disk.path()).is_empty());
    // A place for temporary files lasts where the operator says so.
    let scratch = cloned.folder.path();
    let plain = |verb: &str| {
        let program = cloned.site.pitr().words("clone").args(verb.split(' '));
        program.env("TMPDIR", scratch)
    };
    let run = at(cloned.site.pitr().arg("clone").env("TMPDIR", scratch)).run();
    let run = run.success().expect_stderr("where temporary files go");
    let id = run.id();
    let refused = plain(&format!("keep {id}")).exits(8);
    refused.expect_stderr("where temporary files go");
    cloned.below(&["keep", &id]).succeed();
    cloned.wait_stage("whole");
    cloned.below(&["stop", &id]).succeed();
}

#[test]
fn k50_a_number_in_a_file_ends_no_process() {
    require_fuse!("k50_a_number_in_a_file_ends_no_process");
    let cloned = Cloned::new(17);
    let run = cloned.clone().succeed();
    let id = run.id();
    let pid = i32::try_from(run.json()["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let folder = cloned.folder.join(format!("pitr-clone-{id}"));
    // The next one to have its number is somebody else, and something in the folder cannot be removed.
    let mut other = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    let record = folder.join("clone.json");
    let mut state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    state["pid"] = other.id().into();
    std::fs::write(&record, serde_json::to_vec(&state).unwrap()).unwrap();
    wait_until("nobody holds it", || {
        let lock = std::fs::File::open(folder.join("clone.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    let modes = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();
    };
    modes(0o500);
    let stop = cloned.below(&["stop", &id]).run();
    modes(0o700);
    assert_eq!(other.try_wait().unwrap(), None, "{stop}");
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(!stop.stdout.contains("nothing of it is left"), "{stop}");
    stop.expect_code(1).expect_stderr("could not be removed");
    cloned.below(&["list"]).succeed();
    assert!(!folder.exists());
}
