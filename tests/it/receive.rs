//! `pitr receive` against real servers: what is acknowledged, resuming, following a promotion, refusals.

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Builder, Cluster, PATIENCE, Program, Running, Site, Stop, wait_until};
use crate::per_major;

const SEGMENT: u64 = 1 << 20;

fn small(major: u32) -> Builder {
    Cluster::builder(major).segment_size_mb(1).without_fsync()
}

/// WAL stays in pg_wal, to be compared with.
fn keeping(builder: Builder) -> Builder {
    builder.config("wal_keep_size", "1GB")
}

/// A running cluster without archiving, and a site whose configuration has a journal.
fn receiving(builder: Builder, settings: &str) -> (Site, Cluster) {
    let cluster = builder.start();
    let site = Site::new(&cluster);
    configure(&site, settings);
    (site, cluster)
}

fn configure(site: &Site, settings: &str) {
    let journal = site.sandbox().join("journal");
    let mut text = std::fs::read_to_string(site.config()).unwrap();
    text.push_str(&format!(
        "\n[clusters.main.receive]\njournal = \"{}\"\n{settings}\n",
        journal.display()
    ));
    std::fs::write(site.config(), text).unwrap();
}

fn program(site: &Site) -> Program {
    site.pitr().args(["receive", "--create-slot"])
}

fn lsn(text: &str) -> u64 {
    text.parse::<pitr::pg::lsn::Lsn>().unwrap().0
}

/// Writes something, and returns where WAL ends then.
fn write_wal(cluster: &Cluster) -> String {
    cluster.sql("create table if not exists t (i int, x text); insert into t select i, repeat('x', 300) from generate_series(1, 500) i");
    cluster.query_one_string("select pg_current_wal_flush_lsn()")
}

/// Waits until the server knows that WAL up to `position` is safe.
fn wait_safe(cluster: &Cluster, position: &str) {
    let query = format!(
        "select coalesce(bool_or(restart_lsn >= '{position}'), false) from pg_replication_slots where slot_name = 'pitr'"
    );
    wait_until(PATIENCE, "WAL is acknowledged", || {
        cluster.query_one_string(&query) == "t"
    });
}

fn stop(running: Running) -> crate::common::Run {
    running.signal(Signal::TERM);
    running.wait()
}

/// What the receiver last said of itself.
fn status(site: &Site) -> Value {
    let journal = site.sandbox().join("journal");
    let inner = std::fs::read_dir(&journal)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let text = std::fs::read(inner.path().join("status.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Every byte that the server has from the start of the receiving to `end` is fetched from the repository, unless a segment's is not
/// complete.
fn check_repository(site: &Site, cluster: &Cluster, timeline: u32, from: u64, end: u64) {
    for number in from / SEGMENT..end / SEGMENT {
        let name = format!("{timeline:08X}{:08X}{:08X}", number >> 12, number & 0xFFF);
        let there = std::fs::read(cluster.pgdata().join("pg_wal").join(&name)).unwrap();
        let target = site.sandbox().join("fetched");
        let fetch = site.pitr().args(["wal", "fetch", &name]).arg(&target);
        wait_until(PATIENCE, "the segment is stored", || {
            fetch.run().is_success()
        });
        assert!(std::fs::read(&target).unwrap() == there, "{name} differs");
    }
}

fn killed_anywhere_it_goes_on_where_it_was(major: u32) {
    let (site, mut cluster) = receiving(
        keeping(small(major)).config("synchronous_standby_names", "pitr"),
        "",
    );
    let from = lsn(&cluster.query_one_string("select pg_current_wal_flush_lsn()"));
    let first = program(&site).spawn();
    // Commits return once they are safe: with nobody receiving, this one would wait for ever.
    let position = write_wal(&cluster);
    wait_safe(&cluster, &position);
    first.signal(Signal::KILL);
    first.wait();
    let second = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&cluster, &position);
    let run = stop(second).success();
    assert!(run.stderr.contains("streaming from"), "{}", run.stderr);
    assert!(lsn(status(&site)["flushed_lsn"].as_str().unwrap()) >= lsn(&position));

    // A server that shuts down does not wait for longer than it takes to acknowledge its last record.
    let third = program(&site).spawn();
    let position = write_wal(&cluster);
    wait_safe(&cluster, &position);
    cluster.stop(Stop::Fast);
    cluster.start();
    let position = write_wal(&cluster);
    wait_safe(&cluster, &position);
    stop(third).success();
    check_repository(&site, &cluster, 1, from, lsn(&position));
}
per_major!(killed_anywhere_it_goes_on_where_it_was);
