//! A real server's backlog goes out through workers, while programs are killed, the server stops, and what they work with goes away. At every
//! moment what the server takes for archived is in every required repository; in the end everything is, byte for byte.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::random::Random;
use crate::common::{
    Cluster, PATIENCE, Program, Sandbox, Site, Stop, pitr, pitr_restore, wait_until, wait_within,
};
use crate::ship::{Process, has_worker, noted, process_of, send, spool_of, stop_process};

/// How many segments wait at first.
const BACKLOG: usize = 32;

/// A server with a backlog, and two repositories that are both required.
struct Drain {
    site: Site,
    cluster: Cluster,
    second: PathBuf,
    spool: PathBuf,
    kept: PathBuf,
    /// The cluster's objects in the first repository.
    objects: PathBuf,
    segments: Vec<String>,
}

impl Drain {
    /// Nothing is archived before [`open`](Self::open).
    fn new(major: u32) -> Drain {
        let builder = Cluster::small(major);
        let builder = builder.config("max_wal_size", "1GB");
        // A checkpoint removes what is archived, and that it was: the server would be done with what nobody sees any more.
        let builder = builder.config("wal_keep_size", "1GB");
        let mut cluster = builder.config("archive_mode", "on").create();
        cluster.append_config("archive_command", "false");
        let site = Site::new(&cluster);
        cluster.start();
        let mut drain = Drain {
            second: site.add_repository("second", ""),
            spool: spool_of(&site),
            kept: site.sandbox().dir("kept"),
            objects: site.cluster_folder(),
            segments: Vec::new(),
            cluster,
            site,
        };
        drain.cluster.sql("create table t (a int)");
        drain.write(BACKLOG);
        drain
    }

    /// Has the server fill segments, and keeps copies of them.
    fn write(&mut self, count: usize) {
        let client = self.cluster.client();
        for n in 0..count {
            client.sql(&format!("insert into t select generate_series(0, {n})"));
            let name = client.value("select pg_walfile_name(pg_switch_wal())");
            std::fs::copy(self.wal(&name), self.kept.join(&name)).unwrap();
            self.segments.push(name);
        }
    }

    fn wal(&self, name: &str) -> PathBuf {
        self.cluster.pgdata().join("pg_wal").join(name)
    }

    /// Archiving begins.
    fn open(&self) {
        self.cluster.append_config(
            "archive_command",
            &command(self.site.sandbox(), &self.site.archive()),
        );
        self.cluster.reload();
    }

    /// The object of a segment in the first repository.
    fn object(&self, name: &str) -> PathBuf {
        let timeline = self.objects.join("wal").join(&name[..8]);
        timeline.join(&name[8..16]).join(name)
    }

    fn is_done(&self, name: &str) -> bool {
        let done = self.wal(&format!("archive_status/{name}.done"));
        done.exists()
    }

    fn done(&self) -> Vec<&String> {
        let all = self.segments.iter();
        all.filter(|name| self.is_done(name)).collect()
    }

    /// How many the server waits for. Looking at each segment takes ever longer.
    fn waiting(&self) -> usize {
        let entries = std::fs::read_dir(self.wal("archive_status")).unwrap();
        let is_ready = |path: &PathBuf| path.extension().is_some_and(|e| e == "ready");
        entries.flatten().map(|e| e.path()).filter(is_ready).count()
    }

    fn stored(&self) -> usize {
        let all = self.segments.iter();
        all.filter(|name| self.object(name).exists()).count()
    }

    /// Checks that files that the server takes for archived are in both repositories.
    fn check(&self) {
        for name in self.done() {
            let first = self.object(name);
            let key = first.strip_prefix(self.site.repository()).unwrap();
            assert!(first.exists(), "{name} is in the first repository");
            assert!(self.second.join(key).exists(), "{name} is in the second");
        }
    }

    /// A worker of this cluster that was stopped at its work, with more of it to do: `write` brings some when little is left.
    fn stopped_worker(&mut self, mut write: impl FnMut(&mut Drain)) -> u32 {
        let mut stopped = None;
        wait_until("a worker is stopped at its work", || {
            self.check();
            if self.stored() + 8 > self.segments.len() {
                write(self);
            }
            stopped =
                process_of(self.site.config(), Process::Worker).filter(|pid| stop_process(*pid));
            let stored = self.stored();
            let is_at_work = (2..self.segments.len() - 4).contains(&stored);
            if let Some(pid) = stopped.take_if(|_| !is_at_work) {
                send(pid, Signal::CONT);
            }
            stopped.is_some()
        });
        stopped.unwrap()
    }

    /// Everything is archived, and comes back from both repositories.
    fn finish(&self) {
        wait_within(3 * PATIENCE, "all is archived", || {
            self.check();
            self.done().len() == self.segments.len()
        });
        wait_until("no worker is left", || !has_worker(&self.spool));
        assert_eq!(noted(&self.spool, ".failed"), [""; 0]);
        let target = self.wal("fetched");
        for repository in [self.site.repository(), &self.second] {
            for name in &self.segments {
                let fetch = self.site.restore().arg("--repository").arg(repository);
                let fetch = fetch.args([name, "pg_wal/fetched"]);
                fetch.dir(self.cluster.pgdata()).succeed();
                same(&target, &self.kept.join(name));
            }
        }
    }
}

pub fn same(one: &Path, other: &Path) {
    let is_same = std::fs::read(one).unwrap() == std::fs::read(other).unwrap();
    assert!(is_same, "{} {}", one.display(), other.display());
}

/// `pitr-archive`, under a script that makes of its death a failure: the server's archiver would end with it, and be started again after
/// ten seconds.
pub fn command(sandbox: &Sandbox, archive: &Program) -> String {
    let script = sandbox.file(
        "archive.sh",
        format!(
            "{} \"$1\"\ns=$?\n[ $s -le 125 ] || exit 1\nexit $s\n",
            archive.shell()
        ),
    );
    format!("/bin/sh {} %p", script.display())
}

#[test]
fn p20_killed_at_any_moment_nothing_is_acknowledged_that_is_not_stored() {
    const KILLS: usize = 30;
    let mut drain = Drain::new(17);
    let mut random = Random::new(20);
    let mut kills = (0, 0);
    drain.open();
    let begun = Instant::now();
    // On a busy machine all is archived before it is looked for who does that: then there is more to do.
    let mut missed = 0;
    while kills.0 < KILLS || kills.1 < KILLS / 6 {
        assert!(begun.elapsed() < 5 * PATIENCE, "{kills:?} kills");
        if drain.waiting() < 8 + missed {
            drain.write(8);
        }
        // Whoever offers a file again is waited for by the server for a second: it is killed less often.
        let what = match kills.1 * 6 < kills.0 {
            true => Process::Archive,
            false => Process::Worker,
        };
        let Some(pid) = process_of(drain.site.config(), what) else {
            missed = (missed + 1).min(64);
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        // Somewhere between two segments, or at the first.
        let (stored, goal) = (drain.stored(), random.below(3));
        wait_until("it has stored that many, or ended", || {
            drain.stored() >= stored + goal || process_of(drain.site.config(), what) != Some(pid)
        });
        std::thread::sleep(Duration::from_micros(random.next() % 5000));
        if !stop_process(pid) {
            continue;
        }
        drain.check();
        send(pid, Signal::KILL);
        match what {
            Process::Worker => kills.0 += 1,
            _ => kills.1 += 1,
        }
    }
    drain.finish();
}

#[test]
fn p20_a_server_that_stops_like_in_a_crash_takes_its_worker_along_and_goes_on() {
    let mut drain = Drain::new(14);
    drain.open();
    let worker = drain.stopped_worker(|drain| drain.write(8));
    drain.cluster.stop(Stop::Immediate);
    send(worker, Signal::CONT);
    wait_until("the worker has ended", || !has_worker(&drain.spool));
    assert!(drain.stored() < drain.segments.len(), "it had more to do");
    drain.check();
    drain.cluster.start();
    drain.finish();
}

#[test]
fn p20_a_spool_that_is_deleted_at_any_moment_loses_nothing() {
    let mut drain = Drain::new(18);
    drain.open();
    let mut deleted = 0;
    while deleted < 9 {
        let worker = drain.stopped_worker(|drain| drain.write(8));
        // One whose spool is gone already is about to end.
        if has_worker(&drain.spool) {
            let folder = std::fs::read_dir(&drain.spool).unwrap().next();
            let folder = folder.unwrap().unwrap().path();
            // All of it, or that of this cluster, or what is in it.
            match deleted % 3 {
                0 => delete(&drain.spool),
                1 => delete(&folder),
                _ => empty(&folder),
            }
            deleted += 1;
        }
        send(worker, Signal::CONT);
        drain.check();
        let (stored, all) = (drain.stored(), drain.segments.len());
        wait_until("archiving goes on", || {
            drain.check();
            drain.stored() > stored || stored == all
        });
    }
    drain.finish();
}

/// Removes a folder. Whoever waits for the worker may remove a file at the same moment.
fn delete(folder: &Path) {
    wait_until("it is removed", || {
        std::fs::remove_dir_all(folder).is_ok() || !folder.exists()
    });
}

fn empty(folder: &Path) {
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let _ = std::fs::remove_file(file.path());
    }
}

#[test]
fn two_servers_whose_settings_differ_in_the_data_directory_alone_archive_side_by_side() {
    let one = Drain::new(16);
    let mut two = Cluster::small(16);
    two = two
        .own_identifier()
        .config("max_wal_size", "1GB")
        .config("wal_keep_size", "1GB");
    let mut two = two.config("archive_mode", "on").create();
    two.append_config("archive_command", "false");
    two.start();
    let place = |c: &Cluster| (c.pgdata().display().to_string(), c.conninfo("postgres"));
    let ((data_one, conninfo_one), (data_two, conninfo_two)) = (place(&one.cluster), place(&two));
    let config = std::fs::read_to_string(one.site.config()).unwrap();
    let other = config.replace(&data_one, &data_two);
    let other = other.replace(&conninfo_one, &conninfo_two);
    assert_ne!(config, other);
    let other = one.site.sandbox().file("other.toml", other);
    let init = pitr().arg("--config").arg(&other);
    init.words("init --confirm").succeed();
    let client = two.client();
    client.sql("create table other (a text)");
    let names = one.segments.iter().map(|_| {
        client.sql("insert into other select 'other' from generate_series(1, 100)");
        client.value("select pg_walfile_name(pg_switch_wal())")
    });
    let names: Vec<String> = names.collect();
    let common = names.iter().filter(|name| one.segments.contains(name));
    assert!(common.count() > BACKLOG / 2);
    let script = command(one.site.sandbox(), &one.site.archive());
    let own = one.site.config().to_str().unwrap();
    let text = std::fs::read_to_string(one.site.sandbox().join("archive.sh")).unwrap();
    let text = text.replace(own, other.to_str().unwrap());
    one.site.sandbox().file("other.sh", text);
    two.append_config("archive_command", &script.replace("archive.sh", "other.sh"));
    one.open();
    two.reload();
    for name in &names {
        two.wait_archived(name);
    }
    one.finish();
    let fetched = two.pgdata().join("pg_wal/fetched");
    for name in &names {
        let fetch = pitr_restore().arg("--config").arg(&other);
        let fetch = fetch.args([name, "pg_wal/fetched"]).dir(two.pgdata());
        fetch.succeed();
        same(&fetched, &two.pgdata().join("pg_wal").join(name));
    }
    let spools = std::fs::read_dir(&one.spool).unwrap().count();
    assert_eq!(spools, 2, "each has its own");
}

#[test]
fn the_history_of_a_timeline_is_archived_before_its_segments_also_by_a_worker_at_its_work() {
    let mut primary = Cluster::small(15);
    primary = primary.config("max_wal_size", "1GB");
    let primary = primary.config("wal_keep_size", "1GB").start();
    let standby = Cluster::builder(15).without_fsync().standby_of(&primary);
    let mut standby = standby.create();
    standby.append_config("archive_mode", "always");
    standby.append_config("archive_command", "false");
    let site = Site::new(&standby);
    standby.start();
    primary.sql("create table t (a int)");
    let segments: Vec<String> = (0..BACKLOG).map(|_| primary.switch_wal()).collect();
    let last = segments.last().unwrap();
    let offered = standby.pgdata().join("pg_wal/archive_status");
    let wait_for = |last: &str| {
        wait_until("the standby offers what it received", || {
            ["ready", "done"]
                .iter()
                .any(|state| offered.join(format!("{last}.{state}")).exists())
        });
    };
    wait_for(last);
    let mut drain = Drain {
        second: site.add_repository("second", ""),
        spool: spool_of(&site),
        kept: standby.pgdata().join("pg_wal"),
        objects: site.cluster_folder(),
        segments,
        cluster: standby,
        site,
    };
    drain.open();
    let worker = drain.stopped_worker(|drain| {
        drain.segments.extend((0..8).map(|_| primary.switch_wal()));
        wait_for(drain.segments.last().unwrap());
    });
    drain.cluster.promote();
    let of_new: Vec<String> = (0..6).map(|_| drain.cluster.switch_wal()).collect();
    assert!(of_new.iter().all(|name| name.starts_with("00000002")));
    send(worker, Signal::CONT);
    for name in &of_new {
        drain.cluster.wait_archived(name);
    }
    drain.finish();
    let history = drain.site.object("00000002.history");
    for name in &of_new {
        let segment = drain.object(name);
        assert!(named(&history) < named(&segment), "{name} came first");
    }
}

/// When an object got its name.
fn named(object: &Path) -> (i64, i64) {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(object).unwrap();
    (metadata.ctime(), metadata.ctime_nsec())
}
