//! Why PostgreSQL's own incremental backups are not used (decision 0024): on two histories its own programs restore rows that were deleted. Incrementals
//! of pitr, taken beside them, do not.
//!
//! When the first of these tests fails, PostgreSQL has been repaired in the release under test: the decision is to be looked at again.

use super::{FULL, INCREMENTAL, take};
use crate::common::{Cluster, Site, Stop, user};
use crate::per_major;

const TRUTH: &str =
    "select count(*) || ' rows, ' || count(*) filter (where b like 'x%' and a > 1000) from t";

/// A server that summarizes its WAL, with a table whose pages are frozen: nothing but the history changes them.
fn summarizing(major: u32) -> (Site, Cluster) {
    let builder = Cluster::builder(major)
        .without_fsync()
        .config("autovacuum", "off")
        // With few buffers a table grows by few pages at a time.
        .config("shared_buffers", "64MB")
        .config("summarize_wal", "on");
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql(
        "create table t (a int, b text);
         insert into t select g, repeat('x', 500) from generate_series(1, 4000) g",
    );
    cluster.sql("vacuum freeze t");
    cluster.sql("checkpoint");
    (site, cluster)
}

/// Takes a backup with PostgreSQL's own program.
fn own(cluster: &Cluster, name: &str, prior: Option<&str>) {
    let to = cluster.sandbox().join(name);
    let backup = cluster.tool("pg_basebackup").words("-c fast -X fetch -D");
    let backup = backup.arg(&to);
    let prior = prior.map(|prior| {
        let manifest = cluster.sandbox().join(prior).join("backup_manifest");
        format!("--incremental={}", manifest.display())
    });
    backup.args(prior).succeed();
}

/// Returns the rows that a server shows on the result of pg_combinebackup.
fn combined(cluster: &Cluster) -> String {
    let path = |name: &str| cluster.sandbox().join(name);
    let combine = cluster.tool("pg_combinebackup").arg(path("full"));
    let to = path("combined");
    combine
        .arg(path("incremental"))
        .arg("-o")
        .arg(&to)
        .succeed();
    user::own_all(&to);
    crate::common::append(to.join("postgresql.conf"), "archive_mode = off\n");
    let copy = Cluster::open(cluster.major(), &to)
        .without_fsync()
        .option("archive_mode", "off")
        .start();
    copy.value(TRUTH)
}

fn restored(site: &Site, major: u32, id: &str) -> String {
    let to = site.sandbox().join(id);
    let restore = site.pitr().args(["restore", "--backup", id, "--to"]);
    restore.arg(&to).succeed();
    let mut copy = Cluster::open(major, &to).without_fsync().promoted();
    let rows = copy.value(TRUTH);
    copy.stop(Stop::Fast);
    rows
}

/// The table is cut to 67 pages and grows to 139. COPY has added twelve of them in advance: no record touches these, and they are empty.
fn pages_that_no_record_touched_come_back_from_before_the_cut(major: u32) {
    let (site, mut cluster) = summarizing(major);
    own(&cluster, "full", None);
    take(&site, &FULL).success();
    cluster.sql("delete from t where a > 1000");
    cluster.sql("vacuum t");
    let rows = cluster.sandbox().join("rows");
    cluster.sql(&format!(
        "copy (select g, repeat('y', 500) from generate_series(10001, 10900) g) to '{}'",
        rows.display()
    ));
    cluster.sql(&format!("copy t from '{}'", rows.display()));
    own(&cluster, "incremental", Some("full"));
    let local = take(&site, &INCREMENTAL).success().id();
    let streamed = take(&site, &["--incremental"]).success().id();
    cluster.archive_now();
    assert_eq!(cluster.value(TRUTH), "1900 rows, 0");
    assert_eq!(restored(&site, major, &local), "1900 rows, 0");
    assert_eq!(restored(&site, major, &streamed), "1900 rows, 0");
    cluster.stop(Stop::Fast);
    let theirs = combined(&cluster);
    let deleted: u32 = theirs.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(deleted > 0, "PostgreSQL {major} gave {theirs}");
}
per_major!(pages_that_no_record_touched_come_back_from_before_the_cut, v17 v18 v19);

/// The cut lies in one summary, and the rows that were written behind it in the next. The server reads summaries in the order of their directory.
fn rows_behind_a_cut_of_an_older_summary_are_there(major: u32) {
    let (site, mut cluster) = summarizing(major);
    own(&cluster, "full", None);
    take(&site, &FULL).success();
    cluster.sql("delete from t where a > 1000");
    cluster.sql("vacuum t");
    cluster.sql("checkpoint");
    cluster.sql("insert into t select g, repeat('y', 500) from generate_series(10001, 10900) g");
    cluster.sql("checkpoint");
    own(&cluster, "incremental", Some("full"));
    let local = take(&site, &INCREMENTAL).success().id();
    let streamed = take(&site, &["--incremental"]).success().id();
    cluster.archive_now();
    assert_eq!(restored(&site, major, &local), "1900 rows, 0");
    assert_eq!(restored(&site, major, &streamed), "1900 rows, 0");
    cluster.stop(Stop::Fast);
    // Right or wrong: that depends on the filesystem, and on the release.
    eprintln!("PostgreSQL {major} gave {}", combined(&cluster));
}
per_major!(rows_behind_a_cut_of_an_older_summary_are_there, v17 v18 v19);
