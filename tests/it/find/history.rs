//! A random history, and what `pitr find` must say of it.

use std::collections::BTreeMap;

use super::{before, events, find, title};
use crate::common::random::Random;
use crate::common::{Client, Cluster, Site};
use crate::per_major;

/// Statements of the history; the long run takes more.
const STATEMENTS: usize = 120;
/// Targets that are restored.
const RESTORED: usize = 2;

struct Table {
    database: usize,
    name: String,
}

/// An event that must be found.
struct Expected {
    title: String,
    xid: Option<u64>,
    rows: Option<u64>,
    /// Database, table, and its rows just before; none where there is no such table to look at.
    whole: Option<(String, String, String)>,
}

struct World<'a> {
    random: Random,
    cluster: &'a Cluster,
    clients: Vec<(String, Client)>,
    tables: Vec<Table>,
    /// Tables ever made, for names that never come again.
    made: usize,
    expected: Vec<Expected>,
    /// A transaction that goes on beside the others.
    beside: Option<(Client, Expected, Table)>,
}

const ROWS: &str = "select count(*) || '/' || coalesce(sum(a), 0) from ";

impl World<'_> {
    fn client(&self, database: usize) -> &Client {
        &self.clients[database].1
    }

    fn create(&mut self) {
        let database = self.random.below(self.clients.len());
        self.made += 1;
        let name = format!("t{}", self.made);
        let rows = 1 + self.random.below(400);
        let sql = format!(
            "create table {name} (a int primary key, b text); insert into {name} select g, repeat('x', g % 90) from generate_series(1, {rows}) g"
        );
        self.client(database).sql(&sql);
        self.tables.push(Table { database, name });
    }

    fn expect(
        &mut self,
        kind: &str,
        table: &Table,
        xid: Option<u64>,
        whole: String,
        rows: Option<u64>,
    ) {
        let database = self.clients[table.database].0.clone();
        let name = &table.name;
        self.expected.push(Expected {
            title: format!("{kind} {database}.public.{name}"),
            xid,
            rows,
            whole: Some((database, name.clone(), whole)),
        });
    }

    /// Runs statements in a transaction of a random kind; `None` where it was rolled back.
    fn run(&mut self, database: usize, sql: &str) -> Option<u64> {
        let kind = self.random.below(6);
        let noise = format!(
            "create table noise{0} as select 1 as a; drop table noise{0}",
            self.made
        );
        let gid = format!("g{}", self.expected.len());
        let client = self.client(database);
        client.sql("begin");
        match kind {
            0 => client.sql(&format!("savepoint s; {noise}; rollback to s; {sql}")),
            1 => client.sql(&format!("savepoint s; {sql}; release s; {noise}")),
            2 => client.sql(&format!("{noise}; savepoint s; savepoint r; {sql}")),
            _ => client.sql(sql),
        };
        let xid = client.query_one_string("select pg_current_xact_id()::text");
        match kind {
            3 => {
                client.sql(&format!("prepare transaction '{gid}'"));
                client.sql(&format!("commit prepared '{gid}'"));
            }
            4 => {
                client.sql("rollback");
                return None;
            }
            _ => drop(client.sql("commit")),
        }
        xid.parse().ok()
    }

    fn step(&mut self) {
        if self.tables.len() < 4 || self.random.one_in(6) {
            return self.create();
        }
        match self.random.below(16) {
            0 => drop(self.cluster.sql("checkpoint")),
            1 => drop(self.cluster.sql("select pg_switch_wal()")),
            2 => self.rewrite_catalog(),
            3 => self.database(),
            4 | 5 => self.beside(),
            _ => self.damage(),
        }
    }

    fn damage(&mut self) {
        let at = self.random.below(self.tables.len());
        let table = self.tables.swap_remove(at);
        let (database, name) = (table.database, table.name.clone());
        let whole = self
            .client(database)
            .query_one_string(&format!("{ROWS}{name}"));
        let rows: u64 = whole.split('/').next().unwrap().parse().unwrap();
        match self.random.below(8) {
            0 => {
                if let Some(xid) = self.run(database, &format!("drop table {name}")) {
                    return self.expect("drop", &table, Some(xid), whole, None);
                }
            }
            1 => {
                if let Some(xid) = self.run(database, &format!("truncate {name}")) {
                    self.expect("truncate", &table, Some(xid), whole, None);
                }
            }
            2 => {
                self.client(database).sql(&format!("vacuum full {name}"));
                self.expect("rewrite", &table, None, whole, None);
            }
            3 => {
                let kind = ["bigint", "numeric", "int"][self.random.below(3)];
                let of = "select data_type from information_schema.columns where column_name = 'a' and table_name = ";
                let old = self
                    .client(database)
                    .query_one_string(&format!("{of}'{name}'"));
                let xid = self.run(database, &format!("alter table {name} alter a type {kind}"));
                if let Some(xid) = xid.filter(|_| !old.starts_with(kind)) {
                    self.expect("rewrite", &table, Some(xid), whole, None);
                }
            }
            4 => {
                let new = format!("{name}r");
                if self
                    .run(database, &format!("alter table {name} rename to {new}"))
                    .is_some()
                {
                    return self.tables.push(Table {
                        database,
                        name: new,
                    });
                }
            }
            5 => {
                let sql = format!("delete from {name} where a % 3 = 0");
                let gone = self.client(database).query_one_string(&format!(
                    "select count(*)::text from {name} where a % 3 = 0"
                ));
                let gone: u64 = gone.parse().unwrap();
                if gone > 0
                    && let Some(xid) = self.run(database, &sql)
                {
                    self.expect("delete", &table, Some(xid), whole, Some(gone));
                }
            }
            6 => {
                let sql = format!("update {name} set b = b || 'y'");
                if rows > 0
                    && let Some(xid) = self.run(database, &sql)
                {
                    self.expect("update", &table, Some(xid), whole, Some(rows));
                }
            }
            _ => {
                let spaces = ["pg_default", "ts"];
                let of = "select coalesce((select spcname from pg_tablespace t where t.oid = c.reltablespace), 'pg_default') from pg_class c where relname = ";
                let old = self
                    .client(database)
                    .query_one_string(&format!("{of}'{name}'"));
                let space = spaces[usize::from(old == spaces[0])];
                let xid = self.run(
                    database,
                    &format!("alter table {name} set tablespace {space}"),
                );
                if let Some(xid) = xid {
                    self.expect("rewrite", &table, Some(xid), whole, None);
                }
            }
        }
        self.tables.push(table);
    }

    /// From here on `pg_class` has another file.
    fn rewrite_catalog(&mut self) {
        let database = self.random.below(self.clients.len());
        let catalog = ["pg_class", "pg_namespace", "pg_database"][self.random.below(3)];
        self.client(database).sql(&format!("vacuum full {catalog}"));
    }

    fn database(&mut self) {
        self.made += 1;
        let name = format!("d{}", self.made);
        self.cluster.sql(&format!("create database {name}"));
        let client = self.cluster.client_of(&name);
        client.sql("create table inside as select g as a from generate_series(1, 5) g");
        drop(client);
        self.cluster.sql(&format!("drop database {name}"));
        self.expected.push(Expected {
            title: format!("database {name}"),
            xid: None,
            rows: None,
            whole: Some((name, "inside".into(), "5/15".into())),
        });
    }

    /// Begins a transaction beside the others, or ends it.
    fn beside(&mut self) {
        if let Some((client, expected, table)) = self.beside.take() {
            client.sql("commit");
            self.expected.push(expected);
            return self.tables.push(table);
        }
        let at = self.random.below(self.tables.len());
        let table = self.tables.swap_remove(at);
        let database = self.clients[table.database].0.clone();
        let name = table.name.clone();
        let client = self.cluster.client_of(&database);
        let whole = client.query_one_string(&format!("{ROWS}{name}"));
        client.sql(&format!(
            "begin; truncate {name}; insert into {name} values (1, 'new')"
        ));
        let xid = client.query_one_string("select pg_current_xact_id()::text");
        let expected = Expected {
            title: format!("truncate {database}.public.{name}"),
            xid: xid.parse().ok(),
            rows: None,
            whole: Some((database, name, whole)),
        };
        self.beside = Some((client, expected, table));
    }
}

fn n02_a_random_history_is_found_completely(major: u32) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let statements = number("PITR_TEST_FIND_STATEMENTS").map_or(STATEMENTS, |n| n as usize);
    let seed = number("PITR_TEST_SEED").unwrap_or(0x0015_f14d + u64::from(major));
    eprintln!("PITR_TEST_SEED={seed} PITR_TEST_FIND_STATEMENTS={statements}");
    let builder = Cluster::builder(major).segment_size_mb(1).without_fsync();
    let (site, cluster) = Site::with_cluster_of(builder.config("max_prepared_transactions", "4"));
    let space = cluster.sandbox().dir("space");
    cluster.sql(&format!(
        "create tablespace ts location '{}'",
        space.display()
    ));
    cluster.sql("create database other");
    let client = |name: &str| (name.to_owned(), cluster.client_of(name));
    let mut world = World {
        random: Random::new(seed),
        cluster: &cluster,
        clients: vec![client("postgres"), client("other")],
        tables: Vec::new(),
        made: 0,
        expected: Vec::new(),
        beside: None,
    };
    for _ in 0..6 {
        world.create();
    }
    site.pitr().arg("backup").run().success();
    for _ in 0..statements {
        world.step();
    }
    if world.beside.is_some() {
        world.beside();
    }
    cluster.archive_now();

    let all = "drop,truncate,rewrite,delete,update,database,tablespace";
    let answer = find(&site, &["--kind", all, "--min-rows", "1"]);
    let found: Vec<String> = events(&answer).iter().map(title).collect();
    let expected: Vec<&str> = world.expected.iter().map(|e| e.title.as_str()).collect();
    assert_eq!(found, expected);
    for (event, expected) in events(&answer).iter().zip(&world.expected) {
        if let Some(xid) = expected.xid {
            assert_eq!(event["xid"], xid, "{}", expected.title);
        }
        assert_eq!(event["rows"].as_u64(), expected.rows, "{}", expected.title);
    }
    // The indexes alone lead to the same, rows apart.
    let by_index = find(&site, &[]);
    let mut kept = events(&answer).clone();
    kept.retain(|e| e["rows"].is_null());
    let key = |e: &serde_json::Value| (title(e), e["target_lsn"].clone(), e["xid"].clone());
    let keys = |all: &[serde_json::Value]| all.iter().map(key).collect::<Vec<_>>();
    assert_eq!(keys(events(&by_index)), keys(&kept));

    for _ in 0..RESTORED.min(world.expected.len()) {
        let at = world.random.below(world.expected.len());
        let (event, expected) = (&events(&answer)[at], &world.expected[at]);
        let Some((database, table, whole)) = &expected.whole else {
            continue;
        };
        let (server, _copy) = before(&site, &cluster, event);
        if let Some(gid) = event["gid"].as_str() {
            server
                .client_of(database)
                .sql(&format!("rollback prepared '{gid}'"));
        }
        let client = server.client_of(database);
        let rows = client.query_one_string(&format!("{ROWS}{table}"));
        assert_eq!(&rows, whole, "{}", expected.title);
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for title in &expected {
        *kinds.entry(title.split(' ').next().unwrap()).or_default() += 1;
    }
    eprintln!("{kinds:?}");
}

per_major!(n02_a_random_history_is_found_completely);
