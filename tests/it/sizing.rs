//! The numbers of docs/sizing.md: bytes and requests of incrementals by the share of changed pages. `cargo test --test it sizing -- --nocapture` prints them.

use serde_json::Value;

use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Site};
use crate::s3_cycle::Bucketed;

/// Pages of the table, at least.
const PAGES: u32 = 8000;
const PAGE: u64 = 8192;
/// Changed pages of a thousand, in this order.
const CHANGED: [u32; 4] = [0, 1, 10, 50];

fn cluster() -> Cluster {
    let cluster = Cluster::builder(17)
        .without_fsync()
        .config("autovacuum", "off")
        .create();
    cluster.append_config("archive_mode", "on");
    cluster
}

/// Fills pages with what hardly compresses, and leaves room in each for some updates.
fn fill(cluster: &Cluster) {
    cluster.sql(&format!(
        "create table t (id int, n int, note bytea) with (fillfactor = 80);
         insert into t select g, 0, decode(md5(random()::text) || md5(random()::text) || md5(random()::text), 'hex') from generate_series(1, {PAGES} * 70) g"
    ));
    cluster.sql("vacuum (freeze) t");
    cluster.sql("checkpoint");
    let pages = cluster.value("select pg_relation_size('t') / 8192");
    assert!(pages.parse::<u32>().unwrap() >= PAGES, "{pages}");
}

/// Changes so many of a thousand pages, far apart: a row of each, which stays in its page. Returns how many.
fn change(cluster: &Cluster, of_thousand: u32, row: u32) -> u64 {
    if of_thousand == 0 {
        return 0;
    }
    let each = 1000 / of_thousand;
    let pages = format!(
        "select format('(%s,{row})', b)::tid from generate_series(0, {PAGES} - 1, {each}) b"
    );
    cluster.sql(&format!(
        "update t set n = n + 1 where ctid = any(array({pages}))"
    ));
    cluster.sql("checkpoint");
    u64::from(PAGES / each)
}

/// Takes an incremental; returns the bytes that it stored.
fn take(pitr: Program) -> u64 {
    let run = pitr
        .words("backup --json --incremental --method local")
        .succeed();
    let taken: Value = run.json();
    assert!(!run.stderr.contains("every page is read"), "{run}");
    taken["stored_bytes"].as_u64().unwrap()
}

/// Stored bytes for each changed page, over what a backup of nothing stores.
fn check(stored: u64, nothing: u64, changed: u64) {
    let bytes = stored.saturating_sub(nothing);
    assert!(
        bytes <= changed * (PAGE + 256) + (64 << 10),
        "{changed} pages: {stored} bytes"
    );
}

#[test]
fn sizing_in_a_directory() {
    let mut cluster = cluster();
    let site = Site::new(&cluster);
    site.attach(&cluster);
    cluster.start();
    fill(&cluster);
    let full = site.pitr().words("backup --json --method local");
    let full = full.succeed().json()["stored_bytes"].clone();
    eprintln!("directory: full {full} bytes");
    let mut nothing = 0;
    for (row, of_thousand) in (1..).zip(CHANGED) {
        let changed = change(&cluster, of_thousand, row);
        let files = site.files().len();
        let stored = take(site.pitr());
        let made = site.files().len() - files;
        eprintln!("directory: {of_thousand} of 1000 pages: {stored} bytes, {made} files");
        match of_thousand {
            0 => nothing = stored,
            _ => check(stored, nothing, changed),
        }
    }
}

#[test]
fn sizing_in_a_bucket() {
    let mut cluster = cluster();
    let site = Bucketed::new(&cluster, Peer::own(), "");
    site.attach(&cluster);
    cluster.start();
    fill(&cluster);
    let server = site.peer.server();
    let counted = || {
        let log = server.log();
        let parts = [
            "/wal/",
            "/events/",
            "/manifest",
            "/layers/",
            "/packs/",
            "list-type",
        ];
        let parts = parts.map(|part| (part, log.iter().filter(|line| line.contains(part)).count()));
        eprintln!("bucket: {parts:?}");
        let of = |verb: &str| log.iter().filter(|line| line.starts_with(verb)).count();
        (of("PUT") + of("POST"), of("GET") + of("HEAD"), log.len())
    };
    // A segment by itself.
    cluster.archive_now();
    change(&cluster, 1, 9);
    server.clear_log();
    cluster.archive_now();
    let (puts, gets, all) = counted();
    eprintln!("bucket: a segment: {puts} PUT, {gets} GET or HEAD, {all} in all");
    assert!(puts <= 4, "{:?}", server.log());
    site.pitr().words("backup --quiet --method local").succeed();
    let mut nothing = (0, 0);
    for (row, of_thousand) in (1..).zip(CHANGED) {
        let changed = change(&cluster, of_thousand, row);
        cluster.archive_now();
        server.clear_log();
        let stored = take(site.pitr());
        let (puts, gets, all) = counted();
        eprintln!(
            "bucket: {of_thousand} of 1000 pages: {stored} bytes, {puts} PUT, {gets} GET or HEAD, {all} in all"
        );
        match of_thousand {
            0 => nothing = (stored, all),
            _ => {
                check(stored, nothing.0, changed);
                // Requests grow with packs and segments, and not with pages.
                assert!(all <= nothing.1 + 100, "{:?}", server.log());
            }
        }
    }
}
