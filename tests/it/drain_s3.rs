//! A real server's backlog goes out to an object store through `pitr serve ship`, while that, who waits for it, and who archives in its place
//! are killed. At every moment what the server takes for archived is in the store; in the end everything is, byte for byte.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::random::Random;
use crate::common::s3::Fault;
use crate::common::s3::peer::Peer;
use crate::common::{
    Cluster, PATIENCE, Stop, peak_bytes, pitr_archive, pitr_restore, user, wait_until, wait_within,
};
use crate::drain::{command, same};
use crate::prefetch::{recover, worker_of};
use crate::s3_cycle::Bucketed;
use crate::ship::{Process, has_worker, noted, process_of, send, spool_in, stop_process};

/// How many of each are killed: a worker and who waits for it while many segments are ready, and who archives the only one that is ready.
const KILLS: [(Process, usize); 2] = [(Process::Worker, 12), (Process::Archive, 3)];
/// The server tries three times, and then waits for a minute.
const DELEGATES_KILLED: usize = 2;

/// A server with a backlog, and a bucket.
struct Drain {
    site: Bucketed,
    cluster: Cluster,
    spool: PathBuf,
    kept: PathBuf,
    segments: Vec<String>,
    /// Hashes of the store's content of a segment, from when the server was seen to take it for archived.
    acknowledged: BTreeMap<String, blake3::Hash>,
}

impl Drain {
    fn new(major: u32) -> Drain {
        let builder = Cluster::small(major);
        let builder = builder.config("max_wal_size", "1GB");
        // A checkpoint removes what is archived, and that it was.
        let builder = builder.config("wal_keep_size", "1GB");
        let mut cluster = builder.config("archive_mode", "on").create();
        cluster.append_config("archive_command", "false");
        let site = Bucketed::new(&cluster, Peer::own(), "");
        cluster.start();
        cluster.sql("create table t (a text)");
        Drain {
            spool: spool_in(&site.sandbox, &site.config),
            kept: site.sandbox.dir("kept"),
            segments: Vec::new(),
            acknowledged: BTreeMap::new(),
            cluster,
            site,
        }
    }

    /// Has the server fill segments, and keeps copies of them.
    fn write(&mut self, count: usize) {
        let client = self.cluster.client();
        for _ in 0..count {
            client.sql("insert into t select md5(random()::text) from generate_series(1, 3000)");
            let name = client.value("select pg_walfile_name(pg_switch_wal())");
            std::fs::copy(self.wal(&name), self.kept.join(&name)).unwrap();
            self.segments.push(name);
        }
    }

    fn wal(&self, name: &str) -> PathBuf {
        self.cluster.pgdata().join("pg_wal").join(name)
    }

    fn is_done(&self, name: &str) -> bool {
        let done = self.wal(&format!("archive_status/{name}.done"));
        done.exists()
    }

    fn stored(&self) -> usize {
        let keys = self.site.peer.server().keys();
        let is_segment = |key: &&String| self.segments.iter().any(|name| key.ends_with(name));
        keys.iter().filter(is_segment).count()
    }

    /// Checks that files that the server takes for archived are in the store.
    fn check(&mut self) {
        let is_new = |name: &&String| !self.acknowledged.contains_key(*name) && self.is_done(name);
        let new: Vec<String> = self.segments.iter().filter(is_new).cloned().collect();
        for name in new {
            let server = self.site.peer.server();
            let object = server.object(&server.key(&name));
            self.acknowledged.insert(name, blake3::hash(&object));
        }
    }

    /// Segments that the server does not take for archived.
    fn waiting(&self) -> usize {
        self.segments.len() - self.acknowledged.len()
    }

    /// Kills a process that is there, somewhere between two segments that it stores, or at the first.
    fn kill(&mut self, process: Process, goal: usize, random: &mut Random) -> bool {
        let of = |site: &Bucketed| process_of(&site.config, process);
        let Some(pid) = of(&self.site) else {
            std::thread::sleep(Duration::from_millis(2));
            return false;
        };
        let stored = self.stored();
        wait_until("it has stored that many, or ended", || {
            self.stored() >= stored + goal || of(&self.site) != Some(pid)
        });
        std::thread::sleep(Duration::from_micros(random.next() % 40_000));
        if !stop_process(pid) {
            return false;
        }
        self.check();
        send(pid, Signal::KILL);
        true
    }

    /// Everything is archived, and comes back; what was there when it was acknowledged is there still.
    fn finish(&mut self) {
        wait_within(3 * PATIENCE, "all is archived", || {
            self.check();
            self.acknowledged.len() == self.segments.len()
        });
        wait_until("no worker is left", || !has_worker(&self.spool));
        assert_eq!(noted(&self.spool, ".failed"), [""; 0]);
        let server = self.site.peer.server();
        let keys = server.keys();
        assert!(!keys.iter().any(|k| k.contains("/conflicts/")), "{keys:?}");
        let target = self.wal("fetched");
        for name in &self.segments {
            let object = server.object(&server.key(name));
            assert_eq!(blake3::hash(&object), self.acknowledged[name], "{name}");
            let fetch = pitr_restore().arg("--config").arg(&self.site.config);
            let fetch = fetch.args([name, "pg_wal/fetched"]);
            fetch.dir(self.cluster.pgdata()).succeed();
            same(&target, &self.kept.join(name));
        }
    }
}

#[test]
fn p20_killed_at_any_moment_nothing_is_acknowledged_that_is_not_in_the_object_store() {
    let mut drain = Drain::new(17);
    drain.write(24);
    // Stored, and not known to be: the longer, the more kills fall into it.
    let slow = Fault::Slow(Duration::from_millis(30));
    let slowed = drain.site.peer.server().fault("PUT", u64::MAX, slow);
    let archive = pitr_archive().arg("--config").arg(&drain.site.config);
    let command = command(&drain.site.sandbox, &archive);
    drain.cluster.append_config("archive_command", &command);
    drain.cluster.reload();
    let mut random = Random::new(21);
    let begun = Instant::now();
    let mut kills = [0; KILLS.len()];
    while (0..KILLS.len()).any(|n| kills[n] < KILLS[n].1) {
        assert!(begun.elapsed() < 2 * PATIENCE, "{kills:?} kills");
        drain.check();
        if drain.waiting() < 8 {
            drain.write(8);
        }
        // Whoever offers a file again is waited for by the server for a second: it is killed less often.
        let is_due = |n: usize| kills[n] * KILLS[0].1 <= kills[0] * KILLS[n].1;
        let goal = random.below(3);
        for n in (0..KILLS.len()).filter(|n| is_due(*n)).rev() {
            if drain.kill(KILLS[n].0, goal, &mut random) {
                kills[n] += 1;
                break;
            }
        }
    }
    let mut delegates = 0;
    while delegates < DELEGATES_KILLED {
        assert!(
            begun.elapsed() < 4 * PATIENCE,
            "{delegates} delegates killed"
        );
        drain.check();
        if drain.waiting() == 0 {
            drain.write(1);
        }
        delegates += usize::from(drain.kill(Process::Delegate, 0, &mut random));
    }
    assert!(slowed.times() > 0);
    drain.finish();
    println!("{kills:?} and {delegates} kills in {:?}", begun.elapsed());
}

#[test]
fn workers_for_an_object_store_hold_few_segments_at_a_time() {
    const SEGMENTS: usize = 20;
    let builder = Cluster::builder(17).without_fsync();
    let mut cluster = builder.config("max_wal_size", "2GB").start();
    let client = cluster.client();
    client.sql("create table noise (b bytea); alter table noise alter b set storage external");
    // Nothing of it can be compressed.
    client.sql(
        "insert into noise select string_agg(sha256(random()::text::bytea), '') \
         from generate_series(1, 12) parts, generate_series(1, 31250) group by parts",
    );
    client.sql("create table more (b bytea); alter table more alter b set storage external");
    client.sql("select pg_switch_wal()");
    let segments: Vec<String> = (0..SEGMENTS)
        .map(|_| {
            client.sql("insert into more select b from noise");
            client.value("select pg_walfile_name(pg_switch_wal())")
        })
        .collect();
    drop(client);
    cluster.stop(Stop::Immediate);
    let site = Bucketed::new(&cluster, Peer::own(), "");
    let spool = spool_in(&site.sandbox, &site.config);
    let status = |name: &str, state: &str| {
        let status = format!("pg_wal/archive_status/{name}.{state}");
        cluster.pgdata().join(status)
    };
    for name in &segments {
        std::fs::write(status(name, "ready"), "").unwrap();
    }
    let mut peak = 0;
    let mut look = || {
        let worker = process_of(&site.config, Process::Worker);
        peak = peak.max(worker.and_then(peak_bytes).unwrap_or(0));
    };
    for name in &segments {
        let push = pitr_archive().arg("--config").arg(&site.config);
        let push = push.arg(format!("pg_wal/{name}"));
        let mut running = push.dir(cluster.pgdata()).spawn();
        while !running.is_done() {
            look();
            std::thread::sleep(Duration::from_millis(2));
        }
        running.wait().success();
        std::fs::rename(status(name, "ready"), status(name, "done")).unwrap();
    }
    wait_until("the worker has ended", || {
        look();
        !has_worker(&spool)
    });
    let server = site.peer.server();
    let least = segments
        .iter()
        .map(|name| server.object(&server.key(name)).len());
    assert!(least.min() > Some(11 << 20), "it cannot be compressed");
    println!("at most {} MiB", peak >> 20);
    // With six at once 101 to 111 MiB were seen, and 121 to 127 without the allocator's settings (`detach`): too close
    // to distinguish. With twelve it is 184 to 188, either way.
    assert!((1 << 20..150 << 20).contains(&peak), "{peak} bytes");
    check_fetching(&site, &cluster, &segments);
}

/// A recovery asks for all of them, and takes each as soon as it is there.
fn check_fetching(site: &Bucketed, cluster: &Cluster, segments: &[String]) {
    let standby = site.sandbox.dir("standby");
    for file in ["PG_VERSION", "global/pg_control"] {
        let copy = standby.join(file);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(cluster.pgdata().join(file), copy).unwrap();
    }
    std::fs::create_dir(standby.join("pg_wal")).unwrap();
    recover(&standby, 1_700_000_000);
    user::own_all(&standby);
    let ahead = standby.join("pg_wal/pitr.ahead");
    let mut peak = 0;
    let mut look = || peak = peak.max(worker_of(&ahead).and_then(peak_bytes).unwrap_or(0));
    for name in segments {
        let fetch = pitr_restore().arg("--config").arg(&site.config);
        let fetch = fetch.args([name, "pg_wal/RECOVERYXLOG"]).dir(&standby);
        let mut running = fetch.spawn();
        while !running.is_done() {
            look();
            std::thread::sleep(Duration::from_millis(2));
        }
        running.wait().success();
        let fetched = standby.join("pg_wal/RECOVERYXLOG");
        let own = cluster.pgdata().join("pg_wal").join(name);
        assert!(std::fs::read(&fetched).unwrap() == std::fs::read(own).unwrap());
        std::fs::rename(fetched, standby.join("pg_wal").join(name)).unwrap();
    }
    std::fs::remove_file(standby.join("recovery.signal")).unwrap();
    wait_until("the worker has ended", || {
        look();
        !ahead.exists()
    });
    println!("at most {} MiB when fetching", peak >> 20);
    // 60 MiB were seen, with four at once.
    assert!((1 << 20..90 << 20).contains(&peak), "{peak} bytes");
}
