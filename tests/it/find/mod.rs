//! `pitr find` through the real program: what statements did to data, found again in the archive, and had back.

mod edge;
mod history;
mod list;
mod renamed;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::{Client, Cluster, Sandbox, Site};
use crate::per_major;

/// Runs statements in one transaction; returns its xid.
fn transaction(client: &Client, statements: &str) -> u64 {
    client.sql("begin");
    client.sql(statements);
    let xid = client.value("select pg_current_xact_id()::text");
    client.sql("commit");
    xid.parse().unwrap()
}

fn find(site: &Site, args: &[&str]) -> Value {
    let run = site.pitr().words("find --json").args(args).run();
    run.success().json()
}

fn events(answer: &Value) -> &Vec<Value> {
    answer["events"].as_array().unwrap()
}

/// Kind and name of an event: `drop postgres.public.orders`.
fn title(event: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    let kind = text(&event["kind"]);
    if event["tablespace"].is_object() {
        return format!("{kind} {}", text(&event["tablespace"]["name"]));
    }
    let database = text(&event["database"]["name"]);
    match &event["relation"] {
        Value::Null => format!("{kind} {database}"),
        r => format!(
            "{kind} {database}.{}.{}",
            text(&r["schema"]),
            text(&r["name"])
        ),
    }
}

fn titles(answer: &Value) -> Vec<String> {
    events(answer).iter().map(title).collect()
}

/// The event of this title; there is exactly one.
fn only<'a>(answer: &'a Value, wanted: &str) -> &'a Value {
    let mut found = events(answer).iter().filter(|e| title(e) == wanted);
    let one = found
        .next()
        .unwrap_or_else(|| panic!("no {wanted}: {answer:#}"));
    assert!(found.next().is_none(), "{wanted} twice: {answer:#}");
    one
}

/// The options of the line that an event prints, from the target on.
fn options(event: &Value) -> Vec<&str> {
    let command = event["command"].as_str().unwrap();
    let options = command.strip_prefix("pitr plan").unwrap();
    let start = options.find(" --target-lsn").unwrap();
    options[start..].split_whitespace().collect()
}

/// Plans the target that an event prints.
fn planned(site: &Site, event: &Value) -> Value {
    let plan = site.pitr().words("plan --json").args(options(event));
    plan.succeed().json()
}

/// Restores to just before an event, by the very options that it prints, and starts a server there.
fn before(site: &Site, major: u32, event: &Value) -> (Cluster, Sandbox) {
    let (options, plan) = (options(event), planned(site, event));
    let copy = Sandbox::new("copy");
    let to = copy.join("data");
    let mut restore = site.pitr().restore_to(&to).args(&options);
    for space in plan["backup"]["tablespaces"].as_array().unwrap() {
        let oid = &space["oid"];
        let mapping = format!("{oid}={}", copy.join(format!("space{oid}")).display());
        restore = restore.arg("--tablespace-mapping").arg(mapping);
    }
    restore.succeed();
    let server = Cluster::open(major, &to).without_fsync().promoted();
    (server, copy)
}

fn n01_each_kind_of_damage_is_found_with_its_transaction_and_comes_back(major: u32) {
    let builder = Cluster::small(major);
    let builder = builder
        .config("autovacuum", "off")
        .config("max_prepared_transactions", "4");
    let (site, cluster) = Site::with_cluster_of(builder);
    let space = cluster.sandbox().dir("space");
    let client = cluster.client();
    cluster.make_tablespace("ts", &space);
    let gone = cluster.sandbox().dir("gone");
    cluster.make_tablespace("gone", &gone);
    client.sql("create database other");
    client.sql("create database doomed");
    client.sql("create schema s");
    for name in [
        "dropped",
        "cut",
        "rewritten",
        "moved",
        "altered",
        "thinned",
        "changed",
        "s.two",
        "sub",
        "kept",
        "former",
    ] {
        client.sql(&format!("create table {name} (a int primary key, b text); insert into {name} select g, 'row ' || g from generate_series(1, 3000) g"));
    }
    client.sql("create materialized view seen as select count(*) from changed");
    let other = cluster.client_of("other");
    other.sql("create table dropped as select g as a from generate_series(1, 10) g");
    let doomed = cluster.client_of("doomed");
    doomed.sql("create table inside as select g as a from generate_series(1, 77) g");
    drop(doomed);
    site.pitr().arg("backup").succeed();

    let xid_drop = transaction(
        &client,
        "insert into kept select g from generate_series(3001, 3005) g; drop table dropped",
    );
    let xid_cut = transaction(&client, "truncate cut; insert into cut values (1, 'new')");
    client.sql("vacuum full rewritten");
    client.sql("alter table moved set tablespace ts");
    client.sql("alter table altered alter a type bigint");
    client.sql("refresh materialized view seen");
    let xid_thin = transaction(&client, "delete from thinned where a <= 2000");
    let xid_change = transaction(&client, "update changed set b = 'oops'");
    let xid_former = transaction(&client, "alter table former rename to latter");
    let xid_renamed = transaction(&client, "truncate latter");
    client.sql("alter table latter rename to last");
    // A subtransaction that stays, and one that does not.
    client.sql("begin; savepoint a; drop table s.two; release a; savepoint b; drop table kept; rollback to b; commit");
    client.sql("begin; truncate sub; prepare transaction 'two'");
    client.sql("commit prepared 'two'");
    client.sql("begin; create table brief as select 1 as a; drop table brief; commit");
    client.sql("begin; drop table kept; rollback");
    client.sql("create index on kept (b); reindex table kept");
    other.sql("drop table dropped");
    client.sql("drop database doomed");
    client.sql("drop tablespace gone");
    client.sql("insert into kept values (9999)");
    cluster.archive_now();

    let answer = find(
        &site,
        &[
            "--kind",
            "drop,truncate,rewrite,delete,update,database,tablespace",
        ],
    );
    assert_eq!(
        titles(&answer),
        [
            "drop postgres.public.dropped",
            "truncate postgres.public.cut",
            "rewrite postgres.public.rewritten",
            "rewrite postgres.public.moved",
            "rewrite postgres.public.altered",
            "rewrite postgres.public.seen",
            "delete postgres.public.thinned",
            "update postgres.public.changed",
            "truncate postgres.public.latter",
            "drop postgres.s.two",
            "truncate postgres.public.sub",
            "drop other.public.dropped",
            "database doomed",
            "tablespace gone",
        ],
        "{answer:#}"
    );
    let by_index = find(&site, &[]);
    let of_rows = |t: &String| t.starts_with("delete") || t.starts_with("update");
    let mut without = titles(&answer);
    without.retain(|t| !of_rows(t));
    assert_eq!(titles(&by_index), without);
    for event in events(&by_index) {
        assert_eq!(event, only(&answer, &title(event)));
    }
    assert_eq!(answer["unread"], Value::Array(Vec::new()));

    for (wanted, xid) in [
        ("drop postgres.public.dropped", xid_drop),
        ("truncate postgres.public.cut", xid_cut),
        ("delete postgres.public.thinned", xid_thin),
        ("update postgres.public.changed", xid_change),
        ("truncate postgres.public.latter", xid_renamed),
    ] {
        assert_eq!(only(&answer, wanted)["xid"], xid, "{wanted}");
    }
    assert_eq!(
        only(&answer, "delete postgres.public.thinned")["rows"],
        2000
    );
    assert_eq!(
        only(&answer, "update postgres.public.changed")["rows"],
        3000
    );
    let renamed = only(&answer, "truncate postgres.public.latter");
    assert_eq!(renamed["relation"]["name_now"], "public.last");
    assert_eq!(renamed["last_commit"]["xid"], xid_former);
    let two = only(&answer, "drop postgres.s.two");
    assert_eq!(two["subxids"].as_array().unwrap().len(), 1, "{two:#}");
    assert_eq!(only(&answer, "truncate postgres.public.sub")["gid"], "two");

    // Then as now: by both names, with and without the schema.
    for name in ["latter", "public.last"] {
        let found = find(&site, &["--table", name]);
        assert_eq!(
            titles(&found),
            ["truncate postgres.public.latter"],
            "{name}"
        );
    }
    let found = find(&site, &["--xid", &xid_thin.to_string()]);
    assert_eq!(titles(&found), ["delete postgres.public.thinned"]);
    assert_eq!(titles(&find(&site, &["--table", "kept"])).len(), 0);
    let time = renamed["time"].as_str().unwrap();
    let found = find(&site, &["--since", time, "--until", time]);
    assert_eq!(titles(&found), ["truncate postgres.public.latter"]);

    let count = |server: &Cluster, database: &str, table: &str| {
        let sql = format!("select count(*)::text from {table}");
        server.client_of(database).value(&sql)
    };
    for (wanted, database, table, rows) in [
        (
            "drop postgres.public.dropped",
            "postgres",
            "dropped",
            "3000",
        ),
        ("truncate postgres.public.cut", "postgres", "cut", "3000"),
        (
            "delete postgres.public.thinned",
            "postgres",
            "thinned",
            "3000",
        ),
        ("drop postgres.s.two", "postgres", "s.two", "3000"),
        ("database doomed", "doomed", "inside", "77"),
    ] {
        let (server, _copy) = before(&site, major, only(&answer, wanted));
        assert_eq!(count(&server, database, table), rows, "{wanted}");
    }
    let (server, _copy) = before(&site, major, only(&answer, "truncate postgres.public.sub"));
    server.sql("rollback prepared 'two'");
    assert_eq!(count(&server, "postgres", "sub"), "3000");
    let names: BTreeSet<String> = titles(&answer).into_iter().collect();
    assert_eq!(names.len(), events(&answer).len());
}

per_major!(n01_each_kind_of_damage_is_found_with_its_transaction_and_comes_back);
