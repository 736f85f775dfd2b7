//! Rows of the fault matrix that concern base backups.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pitr::backup::Options;
use pitr::backup::live::LiveServer;
use pitr::backup::local::Local;
use pitr::backup::producer::Producer;
use pitr::backup::stream::Streamed;
use pitr::err;
use pitr::error::Result;
use pitr::host::Host;
use pitr::pg::time::TimestampTz;
use pitr::progress::Silent;
use pitr::repo::repository::Repository;
use pitr::repo::root::BackupRoot;
use pitr::store::file::FileStore;
use pitr::store::{Key, Listed, Meta, NewObject, Object, Published, Room, Store};
use pitr::wire::basebackup::StartCheckpoint;
use pitr::wire::conninfo::{ConnInfo, Environment};
use rustix::process::{Pid, Signal, kill_process};

use super::backup::{backup, committed, extract, layout, root, store, verify_with_server_tool};
use crate::common::fault::{self, Fault};
use crate::common::mount::SmallDisk;
use crate::common::reception::Reception;
use crate::common::replay::Recording;
use crate::common::{
    Cluster, PATIENCE, Program, Run, Running, Sandbox, Site, Stop, list_of, str_of, user,
    wait_until,
};
use crate::{require_mounts, require_strace};

/// Packs, layers and server manifests, of whatever backup.
fn parts(site: &Site) -> Vec<String> {
    let is_part = |f: &String| {
        f.contains("/packs/") || f.contains("/layers/") || f.ends_with("/server-manifest")
    };
    site.files().into_iter().filter(is_part).collect()
}

/// Nothing of an aborted backup can be seen, and no claim stands.
pub fn nothing_is_left(site: &Site, run: &Run) {
    assert!(committed(site).is_empty(), "{run}");
    assert_eq!(parts(site), Vec::<String>::new(), "{run}");
    let events = site.files();
    let count = |kind: &str| events.iter().filter(|f| f.contains(kind)).count();
    assert!(
        count("-claim-") >= 1 && count("-release-") == count("/begin"),
        "{run}"
    );
}

/// Nothing of an aborted backup can be seen. Its packs may stay for the next one, and nothing else.
pub fn nothing_is_visible(site: &Site, run: &Run) {
    let left = parts(site);
    if left.is_empty() {
        return nothing_is_left(site, run);
    }
    assert!(committed(site).is_empty(), "{run}");
    assert!(left.iter().all(|part| part.contains("/packs/")), "{left:?}");
    let told = [&run.stdout, &run.stderr].map(|text| text.contains("stay for a day"));
    assert!(told.contains(&true), "{run}");
}

/// A cluster with a table large enough that a backup limited to 1 MiB/s lasts a while.
pub fn slow() -> (Site, Cluster) {
    let (site, cluster) = Site::with_cluster(15);
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 50000) g");
    (site, cluster)
}

/// Starts a backup that takes some twenty seconds, and waits until it copies.
fn start_slow(site: &Site, cluster: &Cluster) -> Running {
    start_at(site, cluster, "1MiB")
}

/// Starts a backup that does not end before something happens to it, and waits until it copies.
fn start_slowest(site: &Site, cluster: &Cluster) -> Running {
    start_at(site, cluster, "256KiB")
}

fn start_at(site: &Site, cluster: &Cluster, rate: &str) -> Running {
    let running = site
        .pitr()
        .args(["backup", "--json", "--max-rate", rate, "--wal-wait", "10m"])
        .timeout(20 * PATIENCE)
        .spawn();
    wait_copying(cluster, 1);
    running
}

fn wait_copying(cluster: &Cluster, backups: usize) {
    let client = cluster.client();
    wait_until("the backup copies", || {
        let phase = "select count(*) from pg_stat_progress_basebackup where phase like 'streaming%' and backup_streamed > 500000";
        client.value(phase) == backups.to_string()
    });
}

fn no_backup_runs(cluster: &Cluster) {
    let client = cluster.client();
    wait_until("the server ends the backup", || {
        client.value("select count(*) from pg_stat_progress_basebackup") == "0"
    });
}

#[test]
fn b01_a_killed_backup_is_never_visible_and_the_server_ends_its_backup() {
    let (site, cluster) = slow();
    let running = start_slowest(&site, &cluster);
    let run = running.ended_by(Signal::KILL);
    assert!(committed(&site).is_empty(), "{run}");
    no_backup_runs(&cluster);
    // Run again, it succeeds beside what is left of the first.
    let run = backup(&site).succeed();
    assert_eq!(committed(&site), [run.id()]);
}

/// The connection that listens to the backup's first segment has a slot, so that the server keeps that WAL. It makes nothing durable itself: no
/// commit may count on it.
#[test]
fn a_backup_that_listens_to_wal_is_no_synchronous_standby() {
    let (site, cluster) = slow();
    // The server asks for a sign of life after two seconds, and cuts off a client that gives none in two more.
    cluster.alter_system("wal_sender_timeout", "4s");
    cluster.set("synchronous_standby_names", "*");
    let running = start_slowest(&site, &cluster);
    let count = |query: &str| cluster.value(&format!("select count(*) from {query}"));
    let listens = "pg_stat_replication where state = 'streaming'";
    wait_until("the backup listens", || count(listens) == "1");
    assert_eq!(
        count("pg_replication_slots where active and slot_name like 'pitr_backup%'"),
        "1"
    );
    let client = cluster.client();
    let waiting = std::thread::spawn(move || drop(client.sql("insert into t values (0, 'x')")));
    let waits = "pg_stat_activity where wait_event = 'SyncRep'";
    wait_until("the commit waits", || count(waits) == "1");
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!((count(listens).as_str(), count(waits).as_str()), ("1", "1"));
    cluster.set("synchronous_standby_names", "");
    waiting.join().unwrap();
    running.ended_by(Signal::TERM);
}

#[test]
fn b01_ctrl_c_leaves_nothing() {
    let (site, cluster) = slow();
    for signal in [Signal::INT, Signal::TERM] {
        let running = start_slowest(&site, &cluster);
        running.signal(signal);
        let run = running.wait().expect_code(130);
        assert!(run.stdout.contains("was interrupted"), "{run}");
        assert!(run.stdout.contains("Nothing of it is visible"), "{run}");
        nothing_is_left(&site, &run);
        no_backup_runs(&cluster);
    }
    // The next one is a backup like any other.
    let info = site.pitr().words("info --json").exits(1);
    let shown = &info.json()["clusters"][0];
    assert_eq!(shown["backups"], serde_json::json!([]), "{info}");
    assert_eq!(shown["unreadable_backups"], serde_json::json!([]), "{info}");
    backup(&site).succeed();
    assert_eq!(committed(&site).len(), 1);
}

#[test]
fn b02_a_lost_connection_aborts_the_backup() {
    let (site, cluster) = slow();
    let running = start_slowest(&site, &cluster);
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_progress_basebackup");
    let run = running.wait().expect_code(1);
    nothing_is_left(&site, &run);
}

/// The stream breaks off at many places, among them the manifest and the stop LSN at the very end.
#[test]
fn b02_a_stream_that_breaks_off_anywhere_aborts_the_backup() {
    let (site, cluster) = Site::with_cluster(15);
    let mut first = None;
    let recording = Recording::of(&cluster, |conninfo| {
        let run = backup_of(&site, conninfo).run();
        first = Some(run.success());
    });
    assert!(first.is_some());
    let complete = committed(&site);
    assert_eq!(complete.len(), 1);
    let kept = parts(&site);
    let player = recording.play();
    let size = recording.size();
    for cut in (0..12)
        .map(|i| size * i / 12)
        .chain([size - 3000, size - 2000, size - 1000])
    {
        player.cut_backup_after(cut);
        let run = backup_of(&site, &player.conninfo()).exits(1);
        assert_eq!(committed(&site), complete, "cut at {cut}: {run}");
        assert_eq!(parts(&site), kept, "cut at {cut}: {run}");
    }
    player.cut_backup_after(usize::MAX);
    backup_of(&site, &player.conninfo()).succeed();
    assert_eq!(committed(&site).len(), 2);
}

/// `pitr backup` of the server behind `conninfo` instead of the configured one.
fn backup_of(site: &Site, conninfo: &str) -> Program {
    backup(site).env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo)
}

/// A store that dies at its n-th operation: that one and all later ones fail, as after a kill. Naming an object counts twice:
/// before it, and between it and the answer.
struct Dying {
    inner: FileStore,
    life: Arc<Life>,
}

struct Life {
    done: AtomicUsize,
    dies_at: usize,
}

impl Life {
    fn tick(&self) -> Result<()> {
        if self.done.fetch_add(1, Ordering::SeqCst) >= self.dies_at {
            return Err(err!(Io, "killed"));
        }
        Ok(())
    }
}

struct DyingObject {
    inner: Box<dyn NewObject>,
    life: Arc<Life>,
    written: bool,
}

impl Write for DyingObject {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // The first write stands for all of an object: what is not named is not there.
        if !std::mem::replace(&mut self.written, true) {
            self.life.tick().map_err(std::io::Error::other)?;
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl NewObject for DyingObject {
    fn publish(self: Box<Self>) -> Result<Published> {
        self.life.tick()?;
        let published = self.inner.publish()?;
        self.life.tick()?;
        Ok(published)
    }
}

impl Store for Dying {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        self.life.tick()?;
        self.inner.open(key)
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.life.tick()?;
        Ok(Box::new(DyingObject {
            inner: self.inner.create(key)?,
            life: Arc::clone(&self.life),
            written: false,
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.life.tick()?;
        self.inner.list(prefix)
    }

    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        self.life.tick()?;
        self.inner.head(key)
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        self.life.tick()?;
        self.inner.delete(key)
    }

    fn room(&self) -> Result<Option<Room>> {
        self.inner.room()
    }
}

/// Takes a backup with a store that dies at operation `dies_at`; returns how many operations there were.
fn take(
    site: &Site,
    conninfo: &str,
    mut producer: impl Producer,
    dies_at: usize,
) -> (usize, Result<BackupRoot>) {
    let life = Arc::new(Life {
        done: AtomicUsize::new(0),
        dies_at,
    });
    let stop = Arc::new(AtomicBool::new(false));
    let info = ConnInfo::resolve(conninfo, &Environment::of_process()).unwrap();
    let mut server = LiveServer::connect(&info, Arc::new(Silent), Arc::clone(&stop)).unwrap();
    // Each backup begins in a second of its own: an id that is taken would cost operations.
    let now: TimestampTz = "2026-11-20T06:40:49Z".parse().unwrap();
    let now = now.saturating_add(Duration::from_secs(dies_at.min(100_000) as u64));
    let random = AtomicU64::new(u64::from(std::process::id()) << 32 | dies_at as u64);
    let mut take = || -> Result<BackupRoot> {
        let store = Dying {
            inner: store(site),
            life: Arc::clone(&life),
        };
        let repository = Repository::open(Box::new(store))?;
        let host = Host {
            stop: Arc::clone(&stop),
            ..Host::still(now, random.fetch_add(1 << 20, Ordering::SeqCst))
        };
        let options = Options {
            label: String::new(),
            checkpoint: StartCheckpoint::Fast,
            max_rate_bytes_per_s: None,
            backoff: Default::default(),
            jobs: 2,
            wal_wait: Duration::from_secs(10),
            codec: None,
            wish: None,
            wait: Duration::ZERO,
            resume: true,
        };
        pitr::backup::take(
            &repository,
            "main",
            &mut server,
            &mut producer,
            &options,
            &host,
        )
        .map(|taken| taken.root)
    };
    let result = take();
    (life.done.load(Ordering::SeqCst), result)
}

/// Puts the events of earlier attempts aside: a backup asks of each whether it runs, which costs operations.
fn forget_attempts(site: &Site) {
    let events = site.cluster_folder().join("events");
    move_attempts(&events, &site.sandbox().dir("forgotten"));
}

/// Moves the folders of ids.
fn move_attempts(from: &Path, to: &Path) {
    let entries = std::fs::read_dir(from).into_iter().flatten();
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with("-full") {
            std::fs::rename(&path, to.join(name)).unwrap();
        }
    }
}

/// Killed at every operation on the store, a backup is visible only when its root is there, and then it is whole.
#[test]
fn b01_killed_at_every_store_operation() {
    let (site, cluster) = Site::with_cluster(15);
    let recording = Recording::of(&cluster, |conninfo| {
        backup_of(&site, conninfo).succeed();
    });
    let player = recording.play();
    let mut known = committed(&site);
    forget_attempts(&site);
    let (operations, result) = take(&site, &player.conninfo(), Streamed::default(), usize::MAX);
    known.push(result.unwrap().head.id.to_string());
    known.sort();
    assert!(operations > 30, "{operations} operations");
    println!("{operations} store operations");
    let mut became_visible = Vec::new();
    for dies_at in 0..operations {
        forget_attempts(&site);
        let (done, result) = take(&site, &player.conninfo(), Streamed::default(), dies_at);
        assert!(done > dies_at, "operation {dies_at} was not reached");
        if is_new_and_whole(&site, &mut known, &result) {
            became_visible.push(dies_at);
        }
    }
    let commit = *became_visible.first().expect("the commit point was passed");
    assert!(became_visible.into_iter().eq(commit..operations));
    backup_of(&site, &player.conninfo()).succeed();
}

/// The same of a local backup. How often it looks for its WAL differs from run to run: it goes on until one was not killed.
#[test]
fn b01_a_local_backup_killed_at_every_store_operation() {
    let (site, cluster) = small(15);
    let mut known = committed(&site);
    let mut became_visible = 0;
    for dies_at in 0.. {
        let local = Local::new(Some(cluster.pgdata().to_owned()));
        forget_attempts(&site);
        let (done, result) = take(&site, &cluster.conninfo("postgres"), local, dies_at);
        let is_killed = done > dies_at;
        if is_new_and_whole(&site, &mut known, &result) {
            became_visible += 1;
        } else {
            assert!(is_killed, "operation {dies_at}: {result:?}");
        }
        if !is_killed {
            assert!(result.is_ok() && dies_at > 30, "operation {dies_at}");
            break;
        }
    }
    assert!(
        became_visible > 1,
        "nothing was killed behind the commit point"
    );
    let events = site.cluster_folder().join("events");
    move_attempts(&site.sandbox().join("forgotten"), &events);
    site.pitr().arg("verify").succeed();
}

/// A cluster of which a backup is small.
fn small(major: u32) -> (Site, Cluster) {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql("update pg_database set datistemplate = false where datname <> 'postgres'");
    cluster.sql("drop database template0");
    cluster.sql("drop database template1");
    (site, cluster)
}

/// Whether an attempt made one backup visible, which is whole then. A result that is none leaves nothing.
fn is_new_and_whole(site: &Site, known: &mut Vec<String>, result: &Result<BackupRoot>) -> bool {
    let now = committed(site);
    let new: Vec<&String> = now.iter().filter(|id| !known.contains(id)).collect();
    match new.as_slice() {
        [] => assert!(result.is_err(), "{known:?}"),
        [id] => {
            // The root was written; what came after it is only the claim's release.
            let root = root(site, id);
            let copy = Sandbox::new("copy");
            extract(site, &root, &copy.dir("data"));
        }
        more => panic!("{more:?}: {result:?}"),
    }
    let is_new = !new.is_empty();
    *known = now;
    is_new
}

/// Killed before, and refused at, every sync and every naming of an object.
#[test]
fn b01_killed_and_failing_at_every_sync_and_name() {
    require_strace!("b01_killed_and_failing_at_every_sync_and_name");
    let (site, cluster) = Site::with_cluster(15);
    let recording = Recording::of(&cluster, |conninfo| {
        backup_of(&site, conninfo).succeed();
    });
    let player = recording.play();
    let short = [
        ("linkat", ["SIGKILL", "EIO"]),
        ("fsync", ["SIGKILL", "ENOSPC"]),
    ];
    let program = backup_of(&site, &player.conninfo()).arg("--no-resume");
    sweep(&site, &program, &short);
}

/// The same of a local backup.
#[test]
fn b01_killed_and_failing_at_every_name_of_a_local_backup() {
    require_strace!("b01_killed_and_failing_at_every_name_of_a_local_backup");
    let (site, cluster) = small(15);
    let program = backup_of(&site, &cluster.conninfo("postgres"));
    let program = program.words("--method local --no-resume");
    sweep(&site, &program, &[("linkat", ["SIGKILL", "EIO"])]);
}

/// A backup that goes on from another is killed, or fails, at any naming of an object: what is visible then is whole.
#[test]
fn b18_killed_and_failing_at_every_name_of_a_resumed_backup() {
    require_strace!("b18_killed_and_failing_at_every_name_of_a_resumed_backup");
    let (site, _cluster) = small(15);
    let program = backup(&site)
        .words("--method local --jobs 1")
        .env("PITR_FAULT_PACK_BYTES", "200000");
    let mut known = committed(&site);
    let mut went_on = 0;
    for effect in ["SIGKILL", "EIO"] {
        // Each thread counts for itself. That which names packs comes this far, and others do.
        for n in (1..=7).filter(|n| fault::is_of_turn(*n)) {
            let (left, fired) = fault::inject(&program, &Fault::kill("linkat").at(4));
            assert!(fired >= 1 && !left.is_success(), "{left}");
            let kind = match effect {
                "SIGKILL" => Fault::kill("linkat"),
                errno => Fault::error("linkat", errno),
            };
            let (run, fired) = fault::inject(&program, &kind.at(n));
            assert!(fired >= 1 || run.is_success(), "{effect} at {n}: {run}");
            went_on += usize::from(run.stderr.contains("are read back"));
            for id in committed(&site).iter().filter(|id| !known.contains(id)) {
                let copy = Sandbox::new("copy");
                extract(&site, &root(&site, id), &copy.dir("data"));
            }
            known = committed(&site);
        }
    }
    // The first namings come before anything is read.
    assert!(went_on >= fault::share(4), "{went_on}");
    fault::inject(&program, &Fault::kill("linkat").at(4));
    let run = program.succeed();
    assert_ne!(run.json()["resumed"], serde_json::json!([]), "{run}");
    site.pitr().arg("verify").succeed();
}

/// Hits calls on the repository, one in each run: the `short` ones, or in a long sweep all.
fn sweep(site: &Site, program: &Program, short: &[(&str, [&str; 2])]) {
    // An id that another backup of the same second has costs calls: this run has the fewest.
    std::thread::sleep(Duration::from_millis(1100));
    let sweeps: Vec<(&str, Vec<&str>)> = match fault::is_long() {
        true => fault::every_call()
            .into_iter()
            .map(|name| (name, vec!["SIGKILL"]))
            .collect(),
        false => {
            let all = short.iter();
            all.map(|(name, effects)| (*name, effects.to_vec()))
                .collect()
        }
    };
    let names: Vec<&str> = sweeps.iter().map(|(name, _)| *name).collect();
    let (run, mut calls) = fault::trace(program, &names);
    run.success();
    calls.retain(|c| c.touches(site.repository()));
    let most = |name: &str| calls.iter().filter(|c| c.name == name).map(|c| c.nth).max();
    let mut known = committed(site);
    let (mut faults, mut missed) = (0, 0);
    for (name, effects) in sweeps {
        for n in (1..=most(name).unwrap_or(0)).filter(|n| fault::is_of_turn(*n)) {
            for effect in &effects {
                let kind = match *effect {
                    "SIGKILL" => Fault::kill(name),
                    errno => Fault::error(name, errno),
                };
                let (run, fired) = fault::inject(program, &kind.at(n));
                // How many reads a thread makes, of its sockets, too, differs from run to run.
                assert!(
                    fired >= 1 || fault::is_long() && run.is_success(),
                    "{effect} at {name} {n}: {run}"
                );
                faults += 1;
                missed += usize::from(fired == 0);
                let ids = committed(site);
                let new: Vec<&String> = ids.iter().filter(|id| !known.contains(id)).collect();
                // Behind the commit point only the release of the claim can fail, which is a note.
                assert!(
                    new.len() <= 1 && ids.len() == known.len() + new.len(),
                    "{run}"
                );
                assert!(!run.is_success() || new.len() == 1, "{run}");
                if let [id] = new.as_slice() {
                    let root = root(site, id);
                    let copy = Sandbox::new("copy");
                    extract(site, &root, &copy.dir("data"));
                }
                known = ids;
            }
        }
    }
    println!("{} faults", faults - missed);
    assert!(
        faults > fault::share(10) && missed * 5 < faults,
        "{missed} of {faults}"
    );
    program.succeed();
}

#[test]
fn b03_without_its_wal_a_backup_is_not_committed_and_the_segment_is_named() {
    let mut cluster = Cluster::small(15).create();
    let site = Site::new(&cluster);
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", "/bin/true");
    cluster.start();
    let run = site
        .pitr()
        .words("backup --wal-wait 1s")
        .exits(1)
        .expect_stderr("is not in the repository after 1 seconds")
        .expect_stderr("archive_command must lead to this repository");
    assert!(run.stderr.contains("segment \"0000000100000000"), "{run}");
    nothing_is_visible(&site, &run);
}

#[test]
fn b04_a_broken_archive_command_is_said_at_once_and_does_not_wait_for_ever() {
    let mut cluster = Cluster::small(15).create();
    let site = Site::new(&cluster);
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", "/bin/false");
    cluster.start();
    let failed = cluster.switch_wal();
    wait_until("archiving fails", || {
        cluster.value("select failed_count > 0 from pg_stat_archiver") == "t"
    });
    let started = Instant::now();
    let run = site
        .pitr()
        .words("backup --wal-wait 10s")
        .exits(1)
        .expect_stderr("warning: archiving fails on the server")
        .expect_stderr("waiting for segment")
        .expect_stderr(&format!("last for \"{failed}\""));
    assert!(started.elapsed() < PATIENCE, "{run}");
    nothing_is_visible(&site, &run);
}

/// A server that stands still until this goes.
struct Frozen(Vec<Pid>);

impl Frozen {
    fn server(cluster: &Cluster) -> Frozen {
        let postmaster = cluster.pid().unwrap().to_string();
        let children = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = std::fs::read_to_string(children).unwrap();
        let all = std::iter::once(postmaster.as_str()).chain(children.split_whitespace());
        let pids = all.map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap());
        let frozen = Frozen(pids.collect());
        frozen.signal(Signal::STOP);
        let stands = |pid: &Pid| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            // A child may have ended just before.
            stat.map_or_else(|_| true, |s| s.contains(") T ") || s.contains(") Z "))
        };
        wait_until("the server stands still", || frozen.0.iter().all(stands));
        frozen
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            let _ = kill_process(*pid, signal);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

/// Its archiver is asked now and then during the wait, and once more at the end.
#[test]
fn b45_a_server_that_stands_still_holds_up_neither_the_limit_nor_the_stop() {
    let mut cluster = Cluster::small(15).create();
    let site = Site::new(&cluster);
    cluster.append_config("archive_mode", "on");
    cluster.append_config("archive_command", "/bin/false");
    cluster.start();
    let waiting = |limit: &str| {
        let program = site.pitr().args(["backup", "--wal-wait", limit]);
        let running = program.timeout(2 * PATIENCE).spawn();
        wait_until("the backup waits for its WAL", || {
            running.stderr().contains("waiting for segment")
        });
        running
    };
    let running = waiting("8s");
    let frozen = Frozen::server(&cluster);
    let run = running.wait().expect_code(1);
    let run = run.expect_stderr("after 8 seconds");
    drop(frozen);
    nothing_is_visible(&site, &run);
    let running = waiting("10m");
    let _frozen = Frozen::server(&cluster);
    // By now the archiver is asked again.
    std::thread::sleep(Duration::from_secs(4));
    running.ended_by(Signal::TERM).expect_code(130);
}

/// Nothing is copied in vain, and nothing that may come by another way is refused.
#[test]
fn b04_without_any_way_for_its_wal_a_backup_is_refused_at_once() {
    let reception = Reception::new(15);
    let site = &reception.site;
    let before = site.files();
    let run = site
        .pitr()
        .arg("backup")
        .exits(8)
        .expect_stderr("error refused: archive_mode is off on")
        .expect_stderr("impact: Nothing was copied")
        .expect_stderr("next:   Set archive_mode = on")
        .expect_stderr("pitr receive --create-slot");
    assert_eq!(site.files(), before, "{run}");

    // A receiver brings it.
    let receiver = reception.start(&["--create-slot"]);
    let take = |wait: &str| backup(site).args(["--wal-wait", wait]).run();
    let run = take("60s").success();
    assert!(run.stderr.contains("once a receiver"), "{run}");

    // One that is away may come back: its slot keeps the WAL.
    receiver.ended_by(Signal::TERM).success();
    let client = reception.cluster.client();
    wait_until("the server has noticed", || {
        client.value("select count(*) from pg_stat_replication") == "0"
    });
    let run = take("1s").expect_code(1);
    assert!(run.stderr.contains("no receiver is connected"), "{run}");
    assert!(run.stdout.contains("start the receiver"), "{run}");

    // An archiver without a command is as idle as none.
    let mut cluster = Cluster::builder(18).without_fsync().create();
    let site = Site::new(&cluster);
    site.attach(&cluster);
    cluster.append_config("archive_command", "");
    cluster.start();
    site.pitr()
        .arg("backup")
        .exits(8)
        .expect_stderr("archive_command is empty")
        .expect_stderr("select pg_reload_conf()");
}

#[test]
fn b05_a_standby_promoted_during_its_backup_is_noticed() {
    let (primary_site, primary) = slow();
    let standby = primary.standby().start();
    let site = Site::new(&standby);
    let running = start_slowest(&site, &standby);
    standby.promote();
    let run = running.wait().expect_code(1);
    assert!(run.stdout.contains("promoted"), "{run}");
    nothing_is_visible(&site, &run);
    drop(primary_site);
}

/// A site, its primary, and a standby that has replayed up to the middle of a segment that nobody ends.
fn quiet() -> (Site, Cluster, Cluster) {
    let (site, primary) = slow();
    let standby = quiet_standby(&primary);
    (site, primary, standby)
}

fn quiet_standby(primary: &Cluster) -> Cluster {
    let standby = Cluster::builder(15)
        .standby_of(primary)
        .option("archive_mode", "off")
        .option("wal_receiver_timeout", "0")
        .without_fsync()
        .start();
    primary.sql("create table w as select 1 as a");
    primary.sql("checkpoint");
    standby.wait_replayed(&primary.insert_lsn());
    standby
}

/// Names of the segments that increments are stored of.
fn open_segments(site: &Site) -> Vec<String> {
    let part = |f: &String| Some(f.split_once("/open/")?.1.split('/').next()?.to_owned());
    let mut names: Vec<String> = site.files().iter().filter_map(part).collect();
    names.dedup();
    names
}

#[test]
fn b05_a_backup_of_a_standby_completes_by_streaming_its_own_tail() {
    let (site, primary, standby) = quiet();
    let stop = primary.value("select pg_walfile_name(pg_current_wal_lsn())");
    let run = backup_of(&site, &standby.conninfo("postgres"))
        .words("--wal-wait 10m")
        .succeed();
    let ids = committed(&site);
    let root = root(&site, &ids[0]);
    assert!(root.content.from_standby, "{run}");
    assert!(!run.stderr.contains("archive_mode"), "{run}");
    // Nobody ended the segment: what the backup needs of it is there in increments.
    assert!(!site.object(&stop).exists());
    assert_eq!(open_segments(&site), [stop.as_str()]);
    let plan = site.pitr().words("plan --json").succeed().json();
    assert_eq!(plan["reachable"], true, "{plan:#}");
    // Once the primary ends it the whole one counts, and it is no conflict.
    primary.sql("insert into w values (2)");
    assert_eq!(primary.archive_now(), stop);
    let plan = site.pitr().words("plan --json").succeed().json();
    assert_eq!(plan["last_commit"]["kind"], "commit", "{plan:#}");
    site.pitr().arg("verify").succeed();
}

/// The standby has other bytes of the segment that the backup ends in, and then cannot read it: it ends the stream, and the connection with
/// it, over which the history of a later timeline is asked for.
#[test]
fn h10_a_standby_that_does_not_stream_its_tail_is_no_obstacle_once_the_primary_archives_it() {
    let (site, mut primary) = slow();
    primary.stop(Stop::Fast);
    // A stream that is begun anew opens the file again.
    primary.append_config("wal_sender_timeout", "0");
    primary.touch("standby.signal");
    primary.start();
    primary.promote();
    let standby = quiet_standby(&primary);
    let stop = primary.value("select pg_walfile_name(pg_current_wal_lsn())");
    // Who writes and replays the segment has it open: that file stays as it is.
    let path = standby.pgdata().join("pg_wal").join(&stop);
    let (aside, planted) = (path.with_file_name("aside"), path.with_file_name("planted"));
    let mut bytes = std::fs::read(&path).unwrap();
    // The position in its first page, 16 MiB ahead.
    bytes[11] ^= 1;
    std::fs::write(&planted, bytes).unwrap();
    user::own(&planted);
    std::fs::hard_link(&path, &aside).unwrap();
    std::fs::rename(&planted, &path).unwrap();
    let conninfo = standby.conninfo("postgres");
    let backing_up = || {
        let program = backup_of(&site, &conninfo).words("--wal-wait 300s");
        program.timeout(Duration::from_secs(400)).spawn()
    };
    let refusal = format!("it sends other WAL as segment \"{stop}\"");
    let mut running = backing_up();
    wait_until("the WAL is refused", || {
        running.stderr().contains(&refusal) || running.is_done()
    });
    assert!(!running.is_done(), "{}", running.wait());
    let run = running.ended_by(Signal::INT).expect_code(130);
    nothing_is_visible(&site, &run);
    assert_eq!(open_segments(&site), Vec::<String>::new());
    std::fs::rename(&aside, &path).unwrap();

    let readable = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    readable(0);
    let mut running = backing_up();
    let waiting = format!("waiting for segment \"{stop}\"");
    wait_until("the backup waits", || {
        running.stderr().contains(&waiting) || running.is_done()
    });
    let said = running.stderr();
    assert!(!running.is_done(), "{}", running.wait());
    assert!(
        said.contains("the server does not stream its last WAL"),
        "{said}"
    );
    assert!(said.contains("pg_switch_wal()"), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert!(committed(&site).is_empty());
    assert_eq!(open_segments(&site), Vec::<String>::new());

    readable(0o600);
    primary.sql("insert into w values (2)");
    assert_eq!(primary.archive_now(), stop);
    let run = running.wait().success();
    let ids = committed(&site);
    assert_eq!(ids.len(), 1, "{run}");
    assert!(root(&site, &ids[0]).content.from_standby, "{run}");
    let plan = site.pitr().words("plan --json").succeed().json();
    assert_eq!(plan["target_timeline"], 2, "{plan:#}");
    assert_eq!(plan["last_commit"]["kind"], "commit", "{plan:#}");
    site.pitr().arg("verify").succeed();
}

#[test]
fn b13_a_backup_of_a_standby_whose_replay_is_paused_completes_or_says_what_is_missing() {
    let (site, primary, standby) = quiet();
    standby.sql("select pg_wal_replay_pause()");
    primary.sql("insert into w values (2)");
    let conninfo = standby.conninfo("postgres");
    let take = |wait: &str| backup_of(&site, &conninfo).args(["--wal-wait", wait]).run();
    take("10m").success();
    assert_eq!(committed(&site).len(), 1);

    // WAL that is in the archive only comes from there or not at all, and the wait has a limit.
    standby.sql("select pg_wal_replay_resume()");
    primary.set("archive_command", "false");
    primary.sql("checkpoint");
    let first = primary.switch_wal();
    primary.sql("insert into w values (3)");
    standby.wait_replayed(&primary.insert_lsn());
    standby.sql("select pg_wal_replay_pause()");
    let run = take("3s").expect_code(1);
    assert!(
        run.stdout.contains(&first) && run.stdout.contains("is not in the repository"),
        "{run}"
    );
    assert!(run.stdout.contains("Nothing was committed"), "{run}");
    assert_eq!(committed(&site).len(), 1);
}

/// Tables are made, filled, truncated, rewritten and dropped all the while.
#[test]
fn b06_files_that_grow_shrink_vanish_and_appear() {
    let (site, cluster) = slow();
    cluster.sql("create table ledger (n int)");
    let running = start_slow(&site, &cluster);
    let client = cluster.client();
    let mut rounds = 0;
    let mut running = Some(running);
    while running.as_mut().is_some_and(|r| !r.is_done()) {
        rounds += 1;
        client.sql(&format!(
            "create table storm_{rounds} as select g as a from generate_series(1, 5000) g;
             insert into ledger values ({rounds});
             truncate storm_{rounds};
             insert into storm_{rounds} values (1);
             alter table storm_{rounds} add primary key (a);
             drop table if exists storm_{}",
            rounds - 1
        ));
        // The archiver has to keep up.
        std::thread::sleep(Duration::from_millis(200));
    }
    let run = running.take().unwrap().wait().success();
    assert!(rounds > 3, "{rounds}");
    cluster.archive_now();
    let sums = "select count(*)::text || ' ' || sum(n)::text from ledger";
    let expected = cluster.value(sums);
    let id = run.id();
    let (_copy, restored) = recovered(&site, &root(&site, &id));
    assert_eq!(restored.value(sums), expected);
    let last = format!("select count(*) from storm_{rounds}");
    assert_eq!(restored.value(&last), "1");
}

/// A cluster recovered from a backup to the end of the archive, behind its folder: what is bound last is dropped first.
fn recovered(site: &Site, root: &BackupRoot) -> (Sandbox, Cluster) {
    let copy = Sandbox::new("copy");
    let folder = copy.dir("data");
    extract(site, root, &folder);
    verify_with_server_tool(root.content.major, &folder);
    std::fs::write(folder.join("recovery.signal"), "").unwrap();
    user::own(&folder.join("recovery.signal"));
    let restored = Cluster::open(root.content.major, &folder)
        .option("restore_command", site.restore().words("%f %p").shell())
        .option("archive_mode", "off")
        .option("recovery_target_timeline", "current")
        .promoted();
    (copy, restored)
}

#[test]
fn b07_ten_thousand_files_fit_in_memory() {
    let (site, cluster) = Site::with_cluster(15);
    let folder = cluster
        .pgdata()
        .join("base")
        .join(cluster.value("select oid::text from pg_database where datname = 'postgres'"));
    // The image of an unoptimised program is more than half of what it takes.
    let (run, few) = backup(&site).measure();
    run.success();
    for i in 0..10_000 {
        // Names of many lengths, up to what a tar header of the server holds.
        let name = format!("{i:05}{}", "n".repeat(i % 70));
        std::fs::write(folder.join(name), vec![b'x'; i % 100]).unwrap();
    }
    user::own_all(&folder);
    let (run, usage) = backup(&site).measure();
    let run = run.success();
    let shown = run.json();
    assert!(shown["file_count"].as_u64().unwrap() > 10_000);
    let more = usage
        .peak_memory_bytes
        .saturating_sub(few.peak_memory_bytes);
    assert!(more < 10 << 20, "{more} bytes more than {few:?}");
    assert!(usage.peak_memory_bytes < 100 << 20, "{usage:?}");
    let root = root(&site, shown["id"].as_str().unwrap());
    let copy = Sandbox::new("copy");
    extract(&site, &root, &copy.dir("data"));
    verify_with_server_tool(15, &copy.join("data"));
}

#[test]
fn b08_an_unreadable_file_aborts_the_backup_with_its_path() {
    let (site, cluster) = Site::with_cluster(15);
    let file = cluster.pgdata().join("base/secret");
    std::fs::write(&file, "x").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    user::own(&file);
    let run = site.pitr().arg("backup").exits(1);
    assert!(run.stderr.contains("base/secret"), "{run}");
    nothing_is_left(&site, &run);
}

/// That they take turns spares the server; nothing that they store depends on it.
#[test]
fn b09_two_backups_at_once_both_complete() {
    let (site, cluster) = slow();
    let first = start_slow(&site, &cluster);
    let claims = ["repo", "claims", "--json"];
    let claimed = site.pitr().args(claims).succeed().json();
    let id = claimed["claims"][0]["backup"].as_str().unwrap().to_owned();
    let release = ["repo", "claims", "--release", &id, "--confirm"];
    site.pitr().args(release).succeed();
    let second = site.pitr().words("backup --json --max-rate 2MiB").spawn();
    wait_copying(&cluster, 2);
    let (first, second) = (
        first.wait().success().json(),
        second.wait().success().json(),
    );
    assert_ne!(first["id"], second["id"]);
    assert_eq!(committed(&site).len(), 2);
    for shown in [first, second] {
        let root = root(&site, shown["id"].as_str().unwrap());
        let copy = Sandbox::new("copy");
        extract(&site, &root, &copy.dir("data"));
        verify_with_server_tool(15, &copy.join("data"));
    }
}

/// Damages blocks of a table's file while the server is down, and returns its path and the blocks.
pub fn damage(cluster: &mut Cluster, blocks: &[u64]) -> String {
    cluster.sql(
        "create table d as select g as a, repeat('y', 500) as b from generate_series(1, 20000) g",
    );
    cluster.sql("checkpoint");
    let path = cluster.value("select pg_relation_filepath('d')");
    cluster.stop(Stop::Fast);
    let file = cluster.pgdata().join(&path);
    let mut content = std::fs::read(&file).unwrap();
    for block in blocks {
        content[usize::try_from(*block).unwrap() * 8192 + 5000] ^= 0x10;
    }
    std::fs::write(&file, content).unwrap();
    user::own(&file);
    cluster.start();
    path
}

fn c04_damaged_pages_are_all_listed_and_the_backup_is_kept_and_marked(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    // The server itself names no more than five of a file.
    let blocks = [3, 4, 100, 101, 102, 500, 501, 900];
    let path = damage(&mut cluster, &blocks);
    let run = backup(&site).exits(10);
    let shown = run.json();
    assert_eq!(
        (&shown["damaged"], &shown["damage_count"]),
        (&true.into(), &8.into()),
        "{run}"
    );
    let found: Vec<u64> = list_of(&shown["damage"])
        .iter()
        .map(|page| {
            assert_eq!(page["path"], path);
            page["block"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(found, blocks);
    assert!(str_of(&shown["damage"][0]["lsn"]).starts_with("0/"));
    let root = root(&site, shown["id"].as_str().unwrap());
    assert!(root.content.is_damaged() && root.content.damage.len() == 8);
    let human = site.pitr().arg("backup").exits(10);
    assert!(
        human
            .stdout
            .contains(&format!("damaged: {path} block 900 LSN 0/")),
        "{human}"
    );
}
crate::per_major!(c04_damaged_pages_are_all_listed_and_the_backup_is_kept_and_marked, v14 v16 v19);

/// The server names a file in a tablespace by the place of the tablespace.
#[test]
fn c04_damaged_pages_in_a_tablespace_are_listed() {
    let (site, mut cluster) = Site::with_cluster(17);
    let place = cluster.sandbox().dir("base/my ts");
    cluster.make_tablespace("far", &place);
    cluster.sql("alter database postgres set default_tablespace = far");
    let path = damage(&mut cluster, &[3, 900]);
    assert!(path.starts_with("pg_tblspc/"), "{path}");
    let run = backup(&site).exits(10);
    let shown = run.json();
    let found = list_of(&shown["damage"]).iter().map(|page| {
        assert_eq!(page["path"], path);
        page["block"].as_u64().unwrap()
    });
    assert_eq!(found.collect::<Vec<_>>(), [3, 900], "{run}");
    assert_eq!(shown["damage_count"], 2, "{run}");
}

/// `verify` checks the pages themselves: a root that knows of no damage does not hide them.
#[test]
fn c04_verify_finds_damaged_pages_that_the_root_does_not_know() {
    let (site, mut cluster) = Site::with_cluster(18);
    let path = damage(&mut cluster, &[3, 900]);
    let run = backup(&site).exits(10);
    let known = root(&site, &run.id());
    let mut forged = known;
    forged.head.id = "20300101T000000Z-full".parse().unwrap();
    forged.head.nonce = format!("{:032x}", 7);
    forged.content.damage = Vec::new();
    forged.content.damage_count = 0;
    forged.commit(&store(&site), &layout(&site)).unwrap();
    user::own_all(site.repository());
    let verify = site.pitr().words("verify --json --backup");
    let run = verify.arg(forged.head.id.to_string()).exits(4);
    for block in [3, 900] {
        let wanted = format!("file \\\"{path}\\\", block {block}, page LSN");
        assert!(run.stdout.contains(&wanted), "{run}");
    }
}

#[test]
fn m08_a_full_disk_aborts_the_backup_and_wal_finds_room_again() {
    require_mounts!("m08_a_full_disk_aborts_the_backup_and_wal_finds_room_again");
    let disk = SmallDisk::new(24, 500);
    let mut cluster = Cluster::small(15).create();
    let site = Site::on(&cluster, &disk.path().join("repo"));
    site.attach(&cluster);
    cluster.start();
    // Noise does not compress: this file alone does not fit.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(40 << 20)
    .collect();
    std::fs::write(cluster.pgdata().join("base/noise"), noise).unwrap();
    user::own(&cluster.pgdata().join("base/noise"));
    let run = site.pitr().arg("backup").exits(1);
    assert!(run.stderr.contains("No space left on device"), "{run}");
    nothing_is_left(&site, &run);
    cluster.archive_now();
}

/// `PITR_TABLESPACES=10000` makes more of them.
#[test]
fn b07_two_thousand_tablespaces_and_a_linked_pg_wal() {
    let count: usize = std::env::var("PITR_TABLESPACES")
        .map_or(2000, |n| n.parse().expect("PITR_TABLESPACES is a number"));
    let mut cluster = Cluster::small(17).create();
    let elsewhere = cluster.sandbox().join("wal");
    let wal = cluster.pgdata().join("pg_wal");
    std::fs::rename(&wal, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &wal).unwrap();
    let site = Site::new(&cluster);
    site.attach(&cluster);
    cluster.start();
    let spaces = cluster.sandbox().dir("spaces");
    let client = cluster.client();
    for n in 0..count {
        let path = cluster.sandbox().dir(format!("spaces/{n}"));
        client.sql(&format!(
            "create tablespace ts{n} location '{}'",
            path.display()
        ));
    }
    client.sql("create table t tablespace ts7 as select g as a from generate_series(1, 1000) g");
    let (run, usage) = backup(&site).measure();
    run.success();
    assert!(usage.peak_memory_bytes < 100 << 20, "{usage:?}");
    cluster.archive_now();

    let copy = Sandbox::new("copy");
    let to = copy.dir("copy").join("data");
    copy.dir("moved");
    let mut restore = site.pitr().restore_to(&to);
    for n in 0..count {
        restore = restore.args([
            "--tablespace-mapping".to_owned(),
            format!(
                "{0}/{n}={1}/{n}",
                spaces.display(),
                copy.join("moved").display()
            ),
        ]);
    }
    // No more files at once than a shell allows by default.
    let restore = restore.under(["prlimit", "--nofile=1024"]);
    let (run, usage) = restore.measure();
    run.success();
    assert!(usage.peak_memory_bytes < 100 << 20, "{usage:?}");
    assert!(
        std::fs::symlink_metadata(to.join("pg_wal"))
            .unwrap()
            .is_dir()
    );
    let restored = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(restored.value("select count(*) from t"), "1000");
    assert_eq!(
        restored.value("select count(*) from pg_tablespace where spcname like 'ts%'"),
        count.to_string()
    );
    let moved = copy.join("moved/7").display().to_string();
    assert_eq!(
        restored
            .value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'ts7'"),
        moved
    );
}

/// A spread checkpoint takes up to `checkpoint_timeout`. Another host would take a backup whose claim is old for one that was killed.
#[test]
fn b27_the_claim_is_renewed_while_the_server_makes_its_checkpoint() {
    let builder = Cluster::builder(17)
        .option("checkpoint_timeout", "30s")
        .option("checkpoint_completion_target", "0.9");
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql("CREATE TABLE t(filler text)");
    let waits = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and \
                 wait_event in ('CheckpointDone', 'CheckpointStart')";
    for method in ["stream", "local"] {
        cluster.sql("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 10000)");
        let claims = || -> BTreeSet<String> {
            let below = |path| std::fs::read_dir(path).into_iter().flatten().flatten();
            let subjects = below(site.cluster_folder().join("events"));
            let events = subjects.flat_map(|one| below(one.path()));
            let names = events.map(|one| one.file_name().into_string().unwrap());
            names.filter(|name| name.contains("claim")).collect()
        };
        let before = claims();
        let backup = ["backup", "--checkpoint", "spread", "--method", method];
        let backup = site.pitr().args(backup).env("PITR_FAULT_SECONDS", "1");
        let mut backup = backup.spawn();
        wait_until("the server makes its checkpoint", || {
            cluster.value(waits) == "1"
        });
        let first = claims();
        assert_ne!(first, before);
        wait_until("the claim is renewed", || {
            backup.is_done() || claims() != first
        });
        assert_eq!(cluster.value(waits), "1", "{}", backup.stderr());
        backup.ended_by(Signal::INT);
        // The server goes on until it looks for its client.
        wait_until("the checkpoint is complete", || cluster.value(waits) == "0");
    }
}
