//! WAL that is missing, damaged, sealed, or stored in part; names that WAL does not tell.

use std::os::unix::fs::FileExt;
use std::path::Path;

use pitr::pg::lsn::Lsn;
use pitr::pg::segment::{SegmentName, SegmentSize};
use pitr::pg::timeline::TimelineId;

use super::{before, events, find, only, titles, transaction};
use crate::common::{Client, Cluster, Site, Stop, text_of};
use crate::per_major;
use crate::sealed::Sealed;
use crate::tails;

const MIB: u64 = 1 << 20;

fn rows(cluster: &Cluster, table: &str) {
    cluster.sql(&format!(
        "create table {table} as select g as a from generate_series(1, 100) g"
    ));
}

/// Drops one table in each of three segments; returns the names of these.
fn three_drops(cluster: &Cluster) -> Vec<String> {
    for table in ["one", "two", "three"] {
        rows(cluster, table);
    }
    let segment = |table: &str| {
        cluster.archive_now();
        cluster.sql("checkpoint");
        cluster.sql(&format!("drop table {table}"));
        let name = cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
        cluster.archive_now();
        name
    };
    ["one", "two", "three"].map(segment).to_vec()
}

fn flip_in_the_middle(path: &Path) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let middle = file.metadata().unwrap().len() / 4;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[!byte[0]], middle).unwrap();
}

#[test]
fn n03_wal_that_is_missing_or_damaged_is_named_and_the_rest_is_found() {
    for spoil in [
        |path: &Path| std::fs::remove_file(path).unwrap(),
        flip_in_the_middle,
    ] {
        let (site, cluster) = Site::with_cluster(17);
        let segments = three_drops(&cluster);
        spoil(&site.object(&segments[1]));
        let all = "drop,delete";
        for kinds in [&["--kind", all][..], &["--kind", "drop"]] {
            let run = site.pitr().words("find --json").args(kinds).run();
            let answer = run.expect_code(10).json();
            let found = titles(&answer);
            let is_found = |name: &str| found.contains(&format!("drop postgres.public.{name}"));
            assert!(
                is_found("one") && is_found("three") && !is_found("two"),
                "{answer:#}"
            );
            let segment: SegmentName = segments[1].parse().unwrap();
            let start = segment.start_lsn(SegmentSize::new(MIB).unwrap()).unwrap();
            assert_eq!(
                answer["unread"][0]["from_lsn"],
                start.to_string(),
                "{answer:#}"
            );
            assert_eq!(answer["unread"].as_array().unwrap().len(), 1, "{answer:#}");
        }
        let run = site.pitr().words("find --kind drop").exits(10);
        run.expect_stderr("was not looked at");
    }
}

#[test]
fn n03_before_anything_is_archived_that_is_said() {
    let (site, _cluster) = Site::with_cluster(17);
    let standby = site.sandbox().join("standby");
    let standby = standby.to_str().unwrap();
    let of_primary = ["--primary-conninfo", "host=x"];
    for words in [
        vec!["find", "--kind", "drop"],
        [&["standby", "--to", standby][..], &of_primary].concat(),
    ] {
        let run = site.pitr().args(&words).exits(5);
        run.expect_stderr("nothing of the cluster is archived yet")
            .expect_stderr("pitr backup");
    }
}

#[test]
fn n03_what_is_stored_of_the_open_segment_counts() {
    let (site, cluster) = Site::with_cluster(18);
    let mut cluster = cluster;
    rows(&cluster, "t");
    cluster.archive_now();
    cluster.sql("checkpoint");
    cluster.sql("drop table t");
    let end: Lsn = cluster
        .value("select pg_current_wal_insert_lsn()::text")
        .parse()
        .unwrap();
    let size = SegmentSize::new(MIB).unwrap();
    let name = SegmentName::of(TimelineId::FIRST, Lsn(end.0 - 1), size);
    let path = cluster.pgdata().join("pg_wal").join(name.to_string());
    assert_eq!(titles(&find(&site, &[])).len(), 0);
    let run = site.pitr().arg("find").succeed();
    run.expect_stderr("for what came later: select pg_switch_wal() on the server, and ask again");
    cluster.stop(Stop::Immediate);
    let start = name.start_lsn(size).unwrap();
    tails::stream(&site, &path, name, start, end, 10_000);
    // The server is down: WAL alone tells the names.
    let answer = find(&site, &[]);
    let event = only(&answer, "drop postgres.public.t");
    assert!(event["last_commit"].is_object(), "{event:#}");
}

#[test]
fn n03_a_sealed_repository_is_read_with_its_key_alone() {
    let (sealed, cluster) = Sealed::archived(18);
    rows(&cluster, "secret");
    cluster.sql("drop table secret");
    cluster.archive_now();
    let run = sealed.on("reader").words("find --json").run();
    let answer = run.success().json();
    only(&answer, "drop postgres.public.secret");
    let run = sealed.on("writer").words("find --json").run();
    assert!(!run.is_success(), "{run}");
    assert!(!run.stdout.contains("secret"), "{run}");
}

#[test]
fn n04_without_page_images_the_server_gives_names_and_nothing_is_guessed() {
    let builder = Cluster::small(18);
    let builder = builder.config("full_page_writes", "off");
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    for table in ["dropped", "cut", "thinned"] {
        rows(&cluster, table);
    }
    cluster.archive_now();
    cluster.sql("checkpoint");
    let client = cluster.client();
    let since = client.value("select clock_timestamp()::text");
    let drop = transaction(&client, "drop table dropped");
    let cut = transaction(&client, "truncate cut");
    let thin = transaction(&client, "delete from thinned");
    cluster.archive_now();
    // Rows that were inserted before the checkpoint are not seen.
    let answer = find(&site, &["--since", &since, "--min-rows", "1"]);
    let of = |xid: u64| events(&answer).iter().filter(move |e| e["xid"] == xid);
    assert!(of(drop).count() >= 1, "{answer:#}");
    for event in of(drop) {
        assert!(event["relation"]["name"].is_null(), "{event:#}");
        assert!(event["relation"]["file"].is_number(), "{event:#}");
    }
    assert!(of(cut).all(|e| e["kind"] != "drop"), "{answer:#}");
    let thinned: Vec<_> = of(thin).collect();
    assert_eq!(thinned.len(), 1, "{answer:#}");
    assert_eq!(thinned[0]["relation"]["name"], "thinned");
    assert_eq!(thinned[0]["rows"], 100);
    let found = find(&site, &["--since", &since, "--table", "dropped"]);
    assert_eq!(events(&found).len(), 0);
    assert!(found["nameless_count"].as_u64().unwrap() >= 1);
}

/// A transaction that changes its own tables, or catalogs that were written anew, destroys nothing that others saw. Its changes of one table are one event.
fn n01_a_transaction_is_judged_by_what_others_saw(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    let client = cluster.client();
    client.sql("create schema first");
    for table in ["first.t", "cut", "kept"] {
        client.sql(&format!(
            "create table {table} as select g as a, 'old' as b from generate_series(1, 100) g"
        ));
    }
    site.pitr().arg("backup").succeed();
    client.sql("vacuum full pg_attribute");
    client.sql("begin; create table own as select g as a from generate_series(1, 50) g; update own set a = 7; delete from own; commit");
    let twice = transaction(
        &client,
        "update first.t set b = 'x'; alter table first.t alter a type bigint; update first.t set b = 'y'",
    );
    let cut = transaction(
        &client,
        "alter table cut alter a type bigint; truncate cut; alter table cut add column c float default random()",
    );
    client.sql("drop table own");
    client.sql("checkpoint");
    client.sql("begin; alter table kept rename to wrong; rollback");
    client.sql("delete from kept where a < 4");
    cluster.archive_now();
    let all = "drop,truncate,rewrite,delete,update";
    let answer = find(&site, &["--kind", all, "--min-rows", "1"]);
    let expected = [
        "update postgres.first.t",
        "rewrite postgres.first.t",
        "truncate postgres.public.cut",
        "drop postgres.public.own",
        "delete postgres.public.kept",
    ];
    assert_eq!(titles(&answer), expected, "{answer:#}");
    let updated = only(&answer, expected[0]);
    assert_eq!(updated["rows"], 200, "{updated:#}");
    assert_eq!(updated["xid"], twice);
    assert_eq!(only(&answer, expected[2])["xid"], cut);
}
per_major!(n01_a_transaction_is_judged_by_what_others_saw, v13 v16 v19);

/// Neither the list of the backup before nor the server has the schema's name of that moment.
#[test]
fn n01_a_schema_has_the_name_of_that_moment() {
    let builder = Cluster::small(17);
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    let client = cluster.client();
    client.sql("create schema first");
    client.sql("create database one");
    client.sql("create table first.t as select 1 as a; create table first.u as select 1 as a");
    let one = cluster.client_of("one");
    one.sql("create table v as select 1 as a");
    site.pitr().arg("backup").succeed();
    client.sql("drop table first.u");
    drop(one);
    for sql in [
        "alter schema first rename to second",
        "alter database one rename to two",
        "checkpoint",
    ] {
        client.sql(sql);
    }
    client.sql("drop table second.t");
    cluster.client_of("two").sql("drop table v");
    for sql in [
        "checkpoint",
        "alter schema second rename to third",
        "alter database two rename to three",
    ] {
        client.sql(sql);
    }
    cluster.archive_now();
    let expected = [
        "drop postgres.first.u",
        "drop postgres.second.t",
        "drop two.public.v",
    ];
    let answer = find(&site, &[]);
    assert_eq!(titles(&answer), expected, "{answer:#}");
}

/// The segment that has the commit changes no catalog.
#[test]
fn n01_a_name_counts_that_was_committed_in_a_later_segment() {
    let builder = Cluster::small(17);
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    let client = cluster.client();
    client
        .sql("create schema first; create table first.t as select 1 as a; create table w (a int)");
    client.sql("create database one");
    cluster
        .client_of("one")
        .sql("create table v as select 1 as a");
    site.pitr().arg("backup").succeed();
    client.sql("checkpoint");
    client.sql("begin");
    client.sql("alter schema first rename to second");
    client.sql("alter database one rename to two");
    cluster.sql("select pg_switch_wal()");
    cluster.sql("insert into w select 1");
    client.sql("commit");
    cluster.sql("insert into w select 1");
    cluster.sql("select pg_switch_wal()");
    client.sql("drop table second.t");
    cluster.client_of("two").sql("drop table v");
    client.sql("alter schema second rename to third");
    client.sql("alter database two rename to three");
    cluster.archive_now();
    let expected = ["drop postgres.second.t", "drop two.public.v"];
    let answer = find(&site, &[]);
    assert_eq!(titles(&answer), expected, "{answer:#}");
}

/// A question about a part knows the files that catalogs were given before it, and neither the list of a backup nor the server does.
fn n02_catalogs_that_were_written_anew_before_the_window_are_followed(major: u32) {
    let builder = Cluster::small(major);
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    let client = cluster.client();
    site.pitr().arg("backup").succeed();
    client.sql("vacuum full pg_database");
    client.sql("create database first");
    let first = cluster.client_of("first");
    for table in ["dropped", "cut", "rewritten"] {
        first.sql(&format!(
            "create table {table} as select g as a from generate_series(1, 100) g"
        ));
    }
    // One file after the other: the one of the events is known by way of the one before.
    for _ in 0..2 {
        first.sql("vacuum full pg_class");
        cluster.archive_now();
    }
    client.sql("checkpoint");
    let since = client.value("select clock_timestamp()::text");
    let xids = [
        transaction(&first, "drop table dropped"),
        transaction(&first, "truncate cut"),
        transaction(&first, "alter table rewritten alter a type bigint"),
    ];
    drop(first);
    cluster.archive_now();
    client.sql("checkpoint");
    client.sql("vacuum full pg_database");
    cluster.client_of("first").sql("vacuum full pg_class");
    cluster.archive_now();
    let expected = [
        "drop first.public.dropped",
        "truncate first.public.cut",
        "rewrite first.public.rewritten",
    ];
    let answer = find(
        &site,
        &["--since", &since, "--kind", "drop,truncate,rewrite"],
    );
    assert_eq!(titles(&answer), expected, "{answer:#}");
    for (xid, wanted) in xids.iter().zip(expected) {
        let answer = find(&site, &["--xid", &xid.to_string()]);
        assert_eq!(titles(&answer), [wanted], "{answer:#}");
    }
}
per_major!(n02_catalogs_that_were_written_anew_before_the_window_are_followed, v13 v16 v19);

/// Its checkpoint fails, and so does the statement.
fn interrupt_drop(cluster: &Cluster, client: &Client) {
    let logical = cluster.pgdata().join("pg_logical");
    std::fs::rename(logical.join("snapshots"), logical.join("aside")).unwrap();
    let refused = client.try_sql("drop database doomed").unwrap_err();
    std::fs::rename(logical.join("aside"), logical.join("snapshots")).unwrap();
    assert!(text_of(&refused).contains("checkpoint"), "{refused:?}");
    let limit = "select datconnlimit::text from pg_database where datname = 'doomed'";
    assert_eq!(client.value(limit), "-2");
}

/// A cluster with a table, and with a database that is to be dropped, behind a backup.
fn with_doomed(major: u32) -> (Site, Cluster) {
    let builder = Cluster::small(major);
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    cluster.sql("create database doomed");
    cluster.sql("create table kept (a int)");
    let doomed = cluster.client_of("doomed");
    doomed.sql("create table inside as select g as a from generate_series(1, 77) g");
    drop(doomed);
    site.pitr().arg("backup").succeed();
    (site, cluster)
}

/// Nobody gets into a database from the first attempt to drop it on: that one is the target, however late the attempt that succeeds.
fn n01_the_first_attempt_to_drop_a_database_is_the_target(major: u32) {
    let (site, cluster) = with_doomed(major);
    let client = cluster.client();
    let last = transaction(&client, "insert into kept values (1)");
    interrupt_drop(&cluster, &client);
    transaction(&client, "insert into kept values (2)");
    cluster.archive_now();
    client.sql("checkpoint");
    transaction(&client, "insert into kept values (3)");
    cluster.archive_now();
    client.sql("drop database doomed");
    cluster.archive_now();
    let answer = find(&site, &["--kind", "database"]);
    let event = only(&answer, "database doomed");
    assert_eq!(event["last_commit"]["xid"], last, "{event:#}");
    let (server, _copy) = before(&site, major, event);
    let inside = server.client_of("doomed");
    assert_eq!(inside.value("select count(*) from inside"), "77");
    assert_eq!(server.value("select count(*) from kept"), "1");
}
per_major!(n01_the_first_attempt_to_drop_a_database_is_the_target, v13 v16 v17 v19);

/// An event that was found says nothing of what is not archived yet.
#[test]
fn n03_a_question_that_reaches_beyond_the_archive_is_told_so() {
    let (site, cluster) = Site::with_cluster(17);
    rows(&cluster, "one");
    rows(&cluster, "two");
    cluster.archive_now();
    let client = cluster.client();
    let now = || client.value("select clock_timestamp()::text");
    let first = transaction(&client, "drop table one");
    let between = now();
    transaction(&client, "create table later (a int)");
    cluster.archive_now();
    client.sql("drop table two");
    let beyond = "for what came later: select pg_switch_wal() on the server, and ask again";
    let run = |args: &[&str]| site.pitr().arg("find").args(args).succeed();
    let xid = first.to_string();
    for (args, reaches) in [
        (vec!["--kind", "drop"], true),
        (vec!["--kind", "drop", "--until", &between], false),
        (vec!["--kind", "drop", "--until", &now()], true),
        (vec!["--xid", &xid], false),
        (vec!["--xid", "4000000000"], true),
    ] {
        let told = run(&args).stderr.contains(beyond);
        assert_eq!(told, reaches, "{args:?}");
        let answer = find(&site, &args);
        assert_eq!(answer["reaches_beyond"], reaches, "{answer:#}");
        assert!(
            answer["archived_time"].as_str().unwrap() > "2020",
            "{answer:#}"
        );
        let found = if args.contains(&"4000000000") { 0 } else { 1 };
        assert_eq!(events(&answer).len(), found, "{answer:#}");
    }
}

/// pg_repack gives a table the file of its copy: no row is gone.
fn n06_tables_whose_files_are_swapped_are_written_anew(major: u32) {
    let builder = Cluster::small(major);
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    let client = cluster.client();
    rows(&cluster, "big");
    rows(&cluster, "copy");
    cluster.archive_now();
    client.sql("checkpoint");
    let since = client.value("select clock_timestamp()::text");
    client.sql("begin; delete from copy where a < 50");
    client.sql(
        "update pg_class c set relfilenode = d.relfilenode from pg_class d \
         where (c.relname, d.relname) in (('big', 'copy'), ('copy', 'big'))",
    );
    client.sql("commit; drop table copy");
    cluster.archive_now();
    let answer = find(&site, &["--since", &since, "--min-rows", "1"]);
    let expected = [
        "delete postgres.public.copy",
        "rewrite postgres.public.big",
        "rewrite postgres.public.copy",
        "drop postgres.public.copy",
    ];
    let mut found = titles(&answer);
    found[..3].sort();
    assert_eq!(found, expected, "{answer:#}");
}
per_major!(n06_tables_whose_files_are_swapped_are_written_anew, v13 v17);

/// Nobody gets into a database that somebody began to drop, and no removal is in the WAL.
fn n09_a_database_that_was_dropped_in_part_is_found(major: u32) {
    let (site, cluster) = with_doomed(major);
    let client = cluster.client();
    let since = client.value("select clock_timestamp()::text");
    let last = transaction(&client, "insert into kept values (1)");
    client.sql("checkpoint");
    interrupt_drop(&cluster, &client);
    for _ in 0..2 {
        client.sql("insert into kept values (2)");
        cluster.archive_now();
    }
    let later = client.value("select clock_timestamp()::text");
    client.sql("insert into kept values (3)");
    cluster.archive_now();
    let all = "database,drop,delete";
    for args in [
        &["--kind", "database"][..],
        &[],
        &["--since", &since, "--kind", all],
        &["--until", &later],
    ] {
        let answer = find(&site, args);
        let event = only(&answer, "database doomed");
        assert_eq!(events(&answer).len(), 1, "{answer:#}");
        assert!(
            event["time"].is_null() && event["commit_lsn"].is_null(),
            "{event:#}"
        );
        assert!(event["xid"].as_u64().unwrap() > last, "{event:#}");
        assert_eq!(event["last_commit"]["xid"], last, "{event:#}");
    }
    assert_eq!(events(&find(&site, &["--since", &later])).len(), 0);
    site.pitr().arg("find").succeed().expect_stdout("doomed");
    let answer = find(&site, &[]);
    let (server, _copy) = before(&site, major, only(&answer, "database doomed"));
    let inside = server.client_of("doomed");
    assert_eq!(inside.value("select count(*) from inside"), "77");

    client.sql("update pg_database set datconnlimit = -1 where datname = 'doomed'");
    cluster.archive_now();
    assert_eq!(events(&find(&site, &[])).len(), 0);
    let last = transaction(&client, "insert into kept values (4)");
    client.sql("drop database doomed");
    cluster.archive_now();
    let answer = find(&site, &[]);
    assert_eq!(events(&answer).len(), 1, "{answer:#}");
    assert_eq!(only(&answer, "database doomed")["last_commit"]["xid"], last);
}
per_major!(n09_a_database_that_was_dropped_in_part_is_found, v13 v15 v17);

/// Writes WAL until the next record does not fit into the segment.
fn fill_to_the_edge(client: &Client) {
    client.sql("select pg_switch_wal()");
    let left = format!("{MIB} - (pg_current_wal_insert_lsn() - '0/0') % {MIB}");
    client.sql(&format!(
        "do $$begin \
           while {left} > 20000 loop perform pg_logical_emit_message(false, '', repeat('x', 9000)); end loop; \
           while {left} > 120 loop perform pg_logical_emit_message(false, '', ''); end loop; \
         end$$"
    ));
}

fn segment_of_now(client: &Client) -> String {
    client.value("select pg_walfile_name(pg_current_wal_insert_lsn())")
}

/// The index of no segment counts the blocks of the record that crosses the edge.
fn n10_names_that_change_in_a_record_across_segments_count(major: u32) {
    let builder = Cluster::small(major);
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    let client = cluster.client();
    client.sql("create schema first; create table first.t as select 1 as a");
    site.pitr().arg("backup").succeed();
    client.sql("checkpoint");
    client.sql("select 'first.t'::regclass; select count(*) from pg_namespace");
    fill_to_the_edge(&client);
    let segment = segment_of_now(&client);
    client.sql("alter schema first rename to second");
    assert_ne!(segment_of_now(&client), segment);
    cluster.archive_now();
    client.sql("checkpoint");
    client.sql("drop table second.t");
    client.sql("alter schema second rename to third");
    cluster.archive_now();
    let answer = find(&site, &[]);
    assert_eq!(titles(&answer), ["drop postgres.second.t"], "{answer:#}");
}
per_major!(n10_names_that_change_in_a_record_across_segments_count, v13 v17);

#[test]
fn n10_an_attempt_to_drop_a_database_in_a_record_across_segments_counts() {
    let builder = Cluster::small(17);
    let (site, cluster) = Site::with_cluster_of(builder.config("autovacuum", "off"));
    let client = cluster.client();
    client.sql("create database doomed");
    client.sql("create table kept (a int)");
    site.pitr().arg("backup").succeed();
    let last = transaction(&client, "insert into kept values (1)");
    client.sql("checkpoint");
    fill_to_the_edge(&client);
    let segment = segment_of_now(&client);
    interrupt_drop(&cluster, &client);
    assert_ne!(segment_of_now(&client), segment);
    cluster.archive_now();
    let answer = find(&site, &[]);
    let event = only(&answer, "database doomed");
    assert_eq!(event["last_commit"]["xid"], last, "{event:#}");
    for _ in 0..2 {
        client.sql("checkpoint");
        client.sql("insert into kept values (2)");
        cluster.archive_now();
    }
    client.sql("drop database doomed");
    cluster.archive_now();
    let again = find(&site, &[]);
    let whole = only(&again, "database doomed");
    assert_eq!(whole["target_lsn"], event["target_lsn"], "{whole:#}");
}
