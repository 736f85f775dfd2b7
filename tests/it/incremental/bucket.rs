//! Incrementals, delta restores and the shallow ways of `verify`, with the repository in a bucket.

use super::{FULL, INCREMENTAL, truth};
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Run, Stop};
use crate::restore::verify_backup;
use crate::s3_cycle::Bucketed;

#[test]
fn incrementals_delta_restores_and_shallow_checks_in_a_bucket() {
    let (site, mut cluster) = Bucketed::with_cluster(Cluster::small(17), Peer::start(), "");
    let take = |args: &[&str]| {
        let backup = site.pitr().words("backup --json").args(args);
        backup.succeed()
    };
    let verify = |args: &[&str]| -> Run {
        let verify = site.pitr().words("verify --json").args(args);
        verify.succeed()
    };
    let read = |run: &Run| run.json()["clusters"][0]["read_bytes"].as_u64().unwrap();
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 30000) g");
    let full = take(&FULL);
    cluster.sql("update t set b = b || 'x' where a % 100 = 0");
    take(&INCREMENTAL);
    cluster.sql("create table made as select g as a from generate_series(1, 1000) g");
    let last = take(&INCREMENTAL);
    assert_eq!(last.json()["kind"], "incremental", "{last}");
    assert!(!last.stderr.contains("every page is read"), "{last}");
    let stored = |run: &Run| run.json()["stored_bytes"].as_u64().unwrap();
    assert!(stored(&last) * 5 < stored(&full), "{last}");
    cluster.sql("select pg_create_restore_point('here')");
    cluster.archive_now();
    let expected = truth(&cluster);

    // The objects that lead to the content, and then the content, once.
    let fast = read(&verify(&["--fast"]));
    let first = read(&verify(&["--since", "last"]));
    assert!(fast * 3 < first, "{fast} {first}");
    let again = read(&verify(&["--since", "last", "--max-bytes", "1MiB"]));
    assert!(again < first, "{again}");

    cluster.sql("delete from t where a > 100");
    cluster.sql("drop table made");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let id = last.id();
    let delta = [
        "restore",
        "--json",
        "--delta",
        "--confirm",
        "--target-name",
        "here",
    ];
    let restore = site.pitr().args(delta).args(["--backup", &id, "--to"]);
    let run = restore.arg(cluster.pgdata()).succeed();
    let restored = &run.json()["restored"];
    let number = |name: &str| restored[name].as_u64().unwrap();
    assert!(number("kept_bytes") > number("written_bytes"), "{run}");
    verify_backup(17, cluster.pgdata());
    cluster.start();
    cluster.wait_promoted();
    assert_eq!(truth(&cluster), expected);
}
