//! Tables that were renamed or moved between the list of the backup before and an event.

use std::time::Duration;

use super::{events, find, only, titles, transaction};
use crate::common::{Client, Cluster, PATIENCE, Site, Stop, paths_below, wait_until};
use crate::per_major;

fn quiet(major: u32, full_page_writes: &str) -> (Site, Cluster) {
    let builder = Cluster::small(major);
    let builder = builder
        .config("autovacuum", "off")
        .config("full_page_writes", full_page_writes);
    Site::with_cluster_of(builder)
}

fn rows(client: &Client, table: &str) {
    client.sql(&format!(
        "create table {table} as select g as a from generate_series(1, 2000) g"
    ));
}

/// Takes a backup, and puts one table in the place of another. Returns the time behind it.
fn swap(site: &Site, cluster: &Cluster, client: &Client) -> String {
    list(site, client);
    swap_names(cluster, client)
}

/// Takes a backup with a list of two tables.
fn list(site: &Site, client: &Client) {
    rows(client, "cust");
    rows(client, "cust_new");
    // Hints that are set later would bring the whole page.
    client.sql("vacuum freeze pg_class");
    site.pitr().arg("backup").succeed();
}

fn swap_names(cluster: &Cluster, client: &Client) -> String {
    client.sql(
        "begin; alter table cust rename to cust_old; alter table cust_new rename to cust; commit",
    );
    for _ in 0..2 {
        cluster.archive_now();
        client.sql("checkpoint");
    }
    client.value("select clock_timestamp()::text")
}

fn n07_a_table_that_was_renamed_since_the_list_has_the_name_of_then(major: u32) {
    let (site, mut cluster) = quiet(major, "on");
    let client = cluster.client();
    let since = swap(&site, &cluster, &client);
    let xid = transaction(&client, "delete from cust where a <= 1500");
    cluster.archive_now();
    drop(client);
    for is_up in [true, false] {
        let answer = find(&site, &["--since", &since]);
        let event = only(&answer, "delete postgres.public.cust");
        assert_eq!(event["xid"], xid, "{event:#}");
        assert_eq!(events(&answer).len(), 1, "{is_up} {answer:#}");
        for (table, count) in [("public.cust", 1), ("public.cust_new", 0)] {
            let answer = find(&site, &["--since", &since, "--table", table]);
            assert_eq!(events(&answer).len(), count, "{table} {is_up} {answer:#}");
        }
        if is_up {
            cluster.stop(Stop::Fast);
        }
    }
}
per_major!(n07_a_table_that_was_renamed_since_the_list_has_the_name_of_then, v13 v17);

/// The list of a backup is from its begin: that of one which ends behind the event can be from before it.
#[test]
fn n07_the_list_of_a_backup_that_runs_at_an_event_is_not_one_behind_it() {
    let (site, mut cluster) = quiet(17, "on");
    let client = cluster.client();
    list(&site, &client);
    let backup = site.pitr().words("backup --max-rate 1MiB");
    let running = backup.timeout(4 * PATIENCE).spawn();
    let copies = "select count(*) from pg_stat_progress_basebackup where phase like 'streaming%'";
    wait_until("the backup copies", || client.value(copies) == "1");
    // The list is read beside the first files.
    std::thread::sleep(Duration::from_secs(2));
    let since = swap_names(&cluster, &client);
    client.sql("delete from cust where a <= 1500");
    cluster.archive_now();
    assert_eq!(client.value(copies), "1", "it was too fast");
    drop(client);
    running.wait().success();
    for is_up in [true, false] {
        let answer = find(&site, &["--since", &since]);
        let expected = ["delete postgres.public.cust"];
        assert_eq!(titles(&answer), expected, "{is_up} {answer:#}");
        if is_up {
            cluster.stop(Stop::Fast);
        }
    }
}

/// WAL without page images has a part of the new row.
#[test]
fn n07_a_name_that_wal_does_not_tell_is_not_guessed() {
    let (site, mut cluster) = quiet(17, "off");
    let client = cluster.client();
    let since = swap(&site, &cluster, &client);
    client.sql("delete from cust where a <= 1500");
    cluster.archive_now();
    drop(client);
    let answer = find(&site, &["--since", &since]);
    assert_eq!(titles(&answer), ["delete postgres.?.?"], "{answer:#}");
    let relation = &events(&answer)[0]["relation"];
    assert_eq!(relation["name_now"], "public.cust", "{answer:#}");
    let answer = find(&site, &["--since", &since, "--table", "cust_new"]);
    assert_eq!(events(&answer).len(), 0, "{answer:#}");
    cluster.stop(Stop::Fast);
    let answer = find(&site, &["--since", &since]);
    assert_eq!(titles(&answer), ["delete postgres.?.?"], "{answer:#}");
}

/// The list of the backup before has the table in another schema; the WAL that made the schemas is no longer stored.
fn n08_a_table_that_was_moved_since_the_list_has_the_schema_of_then(major: u32) {
    let (site, mut cluster) = quiet(major, "on");
    let client = cluster.client();
    client.sql("create schema a; create schema b; create schema c");
    for table in ["a.moved", "a.stays", "c.stays"] {
        rows(&client, table);
    }
    // Hints that are set later would bring the whole page.
    client.sql("vacuum freeze pg_namespace");
    cluster.archive_now();
    let old = paths_below(&site.cluster_folder().join("wal"));
    site.pitr().arg("backup").succeed();
    for segment in old {
        std::fs::remove_file(segment).unwrap();
    }
    client.sql("alter table a.moved set schema b");
    cluster.archive_now();
    client.sql("checkpoint");
    client.sql("drop table b.moved");
    cluster.archive_now();
    client.sql("checkpoint");
    client.sql("drop table a.stays");
    client.sql("drop table c.stays");
    client.sql("checkpoint");
    client.sql("alter schema c rename to d");
    cluster.archive_now();
    drop(client);
    let answer = find(&site, &[]);
    let expected = [
        "drop postgres.b.moved",
        "drop postgres.a.stays",
        "drop postgres.c.stays",
    ];
    assert_eq!(titles(&answer), expected, "{answer:#}");
    // Old versions of rows are no later names.
    let moved = only(&answer, "drop postgres.b.moved");
    assert!(moved["relation"]["name_now"].is_null(), "{moved:#}");
    for (table, count) in [("b.moved", 1), ("a.moved", 0), ("a.stays", 1)] {
        let answer = find(&site, &["--table", table]);
        assert_eq!(events(&answer).len(), count, "{table} {answer:#}");
    }
    cluster.stop(Stop::Fast);
    let answer = find(&site, &[]);
    let expected = [
        "drop postgres.?.moved",
        "drop postgres.a.stays",
        "drop postgres.c.stays",
    ];
    assert_eq!(titles(&answer), expected, "{answer:#}");
    let answer = find(&site, &["--table", "b.moved"]);
    assert_eq!(events(&answer).len(), 1, "{answer:#}");
}
per_major!(n08_a_table_that_was_moved_since_the_list_has_the_schema_of_then, v13 v17);
