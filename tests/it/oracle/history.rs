//! The cluster's life: three servers on three timelines, archiving into one repository, with backups and restore points on the way.
//!
//! A lives on timeline 1. B, its standby, is promoted to 2 while A goes on for a moment, so that timeline 1 has WAL behind the fork. C, a
//! standby of B, is promoted to 3. Every archived file is also copied as it is, for PostgreSQL's own tools.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::record::What;
use super::workload::{self, Shared};
use crate::common::random::Random;
use crate::common::{Cluster, Sandbox, Stop, bin, pitr, pitr_archive};

pub struct History {
    pub major: u32,
    pub sandbox: Sandbox,
    /// Folder for restored clusters: the subject here is their content, not how it got to a disk.
    pub memory: Sandbox,
    pub config: PathBuf,
    /// Archived files as they were offered.
    pub raw: PathBuf,
    pub shared: Arc<Shared>,
    /// Location of the tablespace on each server is the same; restores map it.
    pub tablespace: PathBuf,
    /// Restore points: name.
    pub names: Vec<String>,
}

impl History {
    pub fn pitr(&self) -> crate::common::Program {
        pitr().arg("--config").arg(&self.config)
    }
}

pub fn live(major: u32, random: &mut Random) -> History {
    let sandbox = Sandbox::new(&format!("oracle-{major}"));
    let raw = sandbox.dir("raw");
    let config = sandbox.join("pitr.toml");
    let tablespace = sandbox.dir("space");
    let repository = sandbox.dir("repository");
    let mut history = History {
        major,
        config: config.clone(),
        raw: raw.clone(),
        shared: Arc::new(Shared::default()),
        tablespace,
        names: Vec::new(),
        sandbox,
        memory: Sandbox::new(&format!("oracle-restored-{major}")),
    };
    let archive = pitr_archive()
        .arg("--config")
        .arg(&config)
        .arg("%p")
        .shell();
    let copy = format!("{archive} && cp %p {}/%f", raw.display());
    let mut a = Cluster::builder(major)
        .segment_size_mb(1)
        .checksums(true)
        .config("archive_mode", "on")
        .config("archive_command", &copy)
        .config("wal_level", "replica")
        .config("max_prepared_transactions", 200)
        .config("max_wal_senders", 10)
        .config("track_commit_timestamp", "on")
        .config("autovacuum", "off")
        .config("log_timezone", "UTC")
        .config("timezone", "UTC")
        .config("wal_keep_size", "200MB")
        .start();
    init(&history, &a, &repository);
    let alone = bin(major, "pg_waldump").is_none();
    let clients = if alone { 1 } else { 4 };
    history.shared.alone.store(alone, Ordering::Relaxed);
    history.shared.timeline.store(1, Ordering::Relaxed);
    workload::set_up(&a, &history.shared, &history.tablespace);
    work(&mut history, &a, random, clients);
    backup(&history, &a);
    point(&mut history, &a, "first");
    work(&mut history, &a, random, clients);
    backup(&history, &a);
    point(&mut history, &a, "twice");
    work(&mut history, &a, random, clients);
    a.archive_now();

    let mut b = standby(&a, &history);
    caught_up(&a, &b);
    promote(&mut b);
    // Timeline 1 goes on for a moment: a split that is closed again. Transactions that it prepares and ends are nothing
    // to B.
    let prepared = history
        .shared
        .prepared
        .lock()
        .expect("not poisoned")
        .clone();
    work(&mut history, &a, random, clients);
    *history.shared.prepared.lock().expect("not poisoned") = prepared;
    point(&mut history, &a, "abandoned");
    a.archive_now();
    a.stop(Stop::Fast);
    history.shared.timeline.store(2, Ordering::Relaxed);
    work(&mut history, &b, random, clients);
    point(&mut history, &b, "twice");
    b.archive_now();
    backup(&history, &b);
    work(&mut history, &b, random, clients);
    b.archive_now();

    let mut c = standby(&b, &history);
    caught_up(&b, &c);
    b.stop(Stop::Fast);
    promote(&mut c);
    history.shared.timeline.store(3, Ordering::Relaxed);
    work(&mut history, &c, random, clients);
    point(&mut history, &c, "last");
    work(&mut history, &c, random, clients);
    c.archive_now();
    // Transactions that were prepared and not ended stay so; a clean stop archives the rest.
    c.stop(Stop::Fast);
    history
}

fn init(history: &History, a: &Cluster, repository: &std::path::Path) {
    pitr()
        .words("init --cluster main --config")
        .arg(&history.config)
        .arg("--pgdata")
        .arg(a.pgdata())
        .arg("--conninfo")
        .arg(a.conninfo("postgres"))
        .arg("--repository")
        .arg(format!("file://{}", repository.display()))
        .succeed();
}

/// The configuration names server A; later servers are named by the connection given.
fn backup(history: &History, cluster: &Cluster) {
    history
        .pitr()
        .arg("backup")
        .words("--checkpoint fast --label oracle")
        .env("PITR_CLUSTERS_MAIN_CONNINFO", cluster.conninfo("postgres"))
        .succeed();
}

fn work(history: &mut History, cluster: &Cluster, random: &mut Random, clients: usize) {
    let each = 60 / clients + 10;
    workload::run(cluster, &history.shared, random, clients, each);
}

fn point(history: &mut History, cluster: &Cluster, name: &str) {
    let lsn = cluster.value(&format!("select pg_create_restore_point('{name}')::text"));
    history.shared.saw(
        &lsn,
        What::Point {
            name: name.to_owned(),
        },
    );
    if !history.names.iter().any(|n| n == name) {
        history.names.push(name.to_owned());
    }
}

fn standby(of: &Cluster, history: &History) -> Cluster {
    // Both servers run on one host: the copy of the tablespace needs a place of its own.
    let place = history.sandbox.dir(format!("space-{}", of.port()));
    let from = tablespace_of(of);
    Cluster::builder(history.major)
        .standby_of(of)
        .basebackup_arg(&format!("--tablespace-mapping={from}={}", place.display()))
        .start()
}

fn tablespace_of(cluster: &Cluster) -> String {
    cluster.value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'")
}

fn caught_up(primary: &Cluster, standby: &Cluster) {
    standby.wait_replayed(&primary.insert_lsn());
}

fn promote(cluster: &mut Cluster) {
    cluster.promote();
    cluster.wait_promoted();
}
