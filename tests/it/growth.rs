//! Time and memory by size, with real servers: a cluster of very many files, and a chain of very many incrementals.
//!
//! `make scale` runs the long form, with the release programs: of others the code alone takes 30 MiB more. `PITR_SCALE_FILES` are numbers of
//! files, `PITR_SCALE_CHAIN` is the number of incrementals; what is measured is printed. A million files take 30 GB. Ten million fit into 50 GB
//! of btrfs with `compress-force=zstd` as `PITR_TEST_TMP`: there copies of databases share their blocks, and half of the tables are empty.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::common::{Cluster, Program, Run, Site, Stop};

/// Peak of each program, whatever the size.
const PEAK_BYTES: u64 = 100 << 20;
/// The first that copies databases without their blocks.
const MAJOR: u32 = 18;
/// With more files every second table is empty.
const FULL_FILES: u64 = 1_000_000;
static ABOVE: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Tables of the first database; others are copies of it.
const TABLES: u64 = 50_000;
/// Tables that one transaction makes.
const AT_ONCE: u64 = 500;
/// No step takes longer, of the largest.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

fn numbers(variable: &str, default: &str) -> Vec<u64> {
    let wanted = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    wanted
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect()
}

/// Runs a program to its end, and prints what it took.
fn measured(step: &str, program: Program) -> Run {
    let (run, usage) = program.timeout(LIMIT).measure();
    let run = run.success();
    println!(
        "{step:<32} {:>8.1} s  {:>8.1} s of processors  {:>4} MiB",
        usage.wall.as_secs_f64(),
        usage.cpu.as_secs_f64(),
        usage.peak_memory_bytes >> 20
    );
    if usage.peak_memory_bytes > PEAK_BYTES {
        ABOVE.lock().unwrap().push(step.to_owned());
    }
    run
}

/// Later steps are measured, too, where one was above the peak.
fn assert_no_step_was_above() {
    let above = ABOVE.lock().unwrap().clone();
    assert_eq!(above, Vec::<String>::new());
}

fn cluster() -> (Site, Cluster) {
    let builder = Cluster::builder(MAJOR).on_disk().without_fsync();
    let builder = builder
        .config("autovacuum", "off")
        .config("file_copy_method", "clone")
        .config("max_locks_per_transaction", 1024)
        .config("checkpoint_timeout", "1h")
        .config("max_wal_size", "8GB");
    Site::with_cluster_of(builder)
}

/// Makes so many files: tables of a page or none, and databases that are copies.
fn fill(cluster: &Cluster, files: u64) {
    let every = if files > FULL_FILES { 2 } else { 1 };
    cluster.sql("create database many");
    let tables = files.min(TABLES);
    for first in (0..tables).step_by(usize::try_from(AT_ONCE).unwrap()) {
        let last = tables.min(first + AT_ONCE) - 1;
        cluster.client_of("many").sql(&format!(
            "do $$ begin for i in {first}..{last} loop
                 execute format('create table t%s (n int)', i);
                 if i % {every} = 0 then execute format('insert into t%s values (1)', i); end if;
             end loop; end $$"
        ));
    }
    for copy in 1..files / tables {
        cluster.sql(&format!(
            "create database many{copy} template many strategy file_copy"
        ));
    }
    cluster.sql("checkpoint");
}

#[test]
fn r175_a_cluster_of_very_many_files() {
    for files in numbers("PITR_SCALE_FILES", "1000") {
        many_files(files);
    }
    assert_no_step_was_above();
}

fn many_files(files: u64) {
    let (site, mut cluster) = cluster();
    let began = Instant::now();
    fill(&cluster, files);
    println!("{files} files: made in {:?}", began.elapsed());
    let backup = |kind: &str, method: &str| {
        let step = format!("{files} files: {kind} by {method}");
        let args = ["backup", "--json", kind, "--method", method];
        measured(&step, site.pitr().args(args)).id()
    };
    backup("--full", "stream");
    let change = |value: u64| {
        let changed = (0..files.min(TABLES)).step_by(100);
        let updates = changed.map(|i| format!("update t{i} set n = {value};"));
        cluster.client_of("many").sql(&updates.collect::<String>());
        cluster.sql("checkpoint");
    };
    change(2);
    backup("--incremental", "local");
    change(3);
    let last = backup("--incremental", "stream");
    let verify = ["verify", "--backup", &last];
    measured(&format!("{files} files: verify"), site.pitr().args(verify));
    let copy = site.sandbox().join("copy");
    let restore = |step: &str, more: &[&str]| {
        let args = ["restore", "--quiet", "--target-immediate", "--backup"];
        let restore = site.pitr().args(args).arg(&last).arg("--to").arg(&copy);
        measured(&format!("{files} files: {step}"), restore.args(more));
    };
    restore("restore", &[]);
    cluster.stop(Stop::Fast);
    let mut restored = Cluster::open(MAJOR, &copy).without_fsync().promoted();
    let sum = "select sum(n) from (select n from t0 union all select n from t2) as both_of";
    let found = restored.client_of("many").value(sum);
    assert_eq!(found, "4");
    restored.client_of("many").sql("update t2 set n = 7");
    restored.stop(Stop::Fast);
    restore("delta restore", &["--delta", "--confirm"]);
    let mut restored = Cluster::open(MAJOR, &copy).without_fsync().promoted();
    let found = restored.client_of("many").value(sum);
    assert_eq!(found, "4");
    restored.stop(Stop::Fast);
}

#[test]
fn r175_a_chain_of_very_many_incrementals() {
    let count = numbers("PITR_SCALE_CHAIN", "12")[0];
    let (site, mut cluster) = cluster();
    cluster.sql(
        "create table t (a int primary key, b text) with (fillfactor = 50);
         insert into t select g, repeat(md5(g::text), 6) from generate_series(1, 34000) g",
    );
    let backup = |kind: &str| {
        site.pitr()
            .args(["backup", "--json", kind, "--method", "local"])
    };
    measured("full", backup("--full"));
    let mut last = String::new();
    for n in 1..=count {
        cluster.sql(&format!(
            "update t set b = repeat(md5('{n}' || a), 6) where a % 997 = {}",
            n % 997
        ));
        let every = (count / 10).max(1);
        let run = match n % every {
            0 => measured(&format!("incremental {n}"), backup("--incremental")),
            _ => backup("--incremental").succeed(),
        };
        assert_eq!(run.json()["kind"], "incremental", "{run}");
        last = run.id();
    }
    let sum = "select md5(string_agg(b, '' order by a)) from t";
    let wanted = cluster.value(sum);
    let verify = ["verify", "--backup", &last];
    measured("verify", site.pitr().args(verify));
    let copy = site.sandbox().join("copy");
    let args = ["restore", "--quiet", "--target-immediate", "--backup"];
    let restore = site.pitr().args(args).arg(&last).arg("--to").arg(&copy);
    let few = ["prlimit", "--nofile=512:512"];
    measured("restore, with 512 descriptors", restore.clone().under(few));
    cluster.stop(Stop::Fast);
    let mut restored = Cluster::open(MAJOR, &copy).without_fsync().promoted();
    assert_eq!(restored.value(sum), wanted);
    restored.sql("update t set b = 'x' where a % 100 = 0");
    restored.stop(Stop::Fast);
    let delta = restore.words("--delta --confirm");
    measured("delta restore, with 512 descriptors", delta.under(few));
    let restored = Cluster::open(MAJOR, &copy).without_fsync().promoted();
    assert_eq!(restored.value(sum), wanted);
    assert_no_step_was_above();
}
