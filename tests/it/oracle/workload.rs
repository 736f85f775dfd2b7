//! Concurrent clients: transfers between accounts, savepoints, two-phase commits, DDL, rollbacks.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::model::{Ledger, Op, Ops, Table};
use super::record::{Entry, What, parse_lsn};
use crate::common::random::Random;
use crate::common::{Client, Cluster};

pub const DATABASES: [&str; 2] = ["postgres", "shop"];
const ACCOUNTS: i64 = 20;

/// State shared by all clients over the whole life of the cluster.
#[derive(Default)]
pub struct Shared {
    pub ledger: Mutex<Ledger>,
    next_id: AtomicI64,
    next_table: AtomicI64,
    /// Transactions that were prepared and not yet ended: database, name.
    pub prepared: Mutex<Vec<(String, String)>>,
    /// One client that notes what it sees, where no tool can read the WAL (14); nothing is rolled back then.
    pub alone: AtomicBool,
    /// The timeline of the server at work.
    pub timeline: AtomicU32,
    /// Entries that the lone client saw, in order.
    pub seen: Mutex<Vec<(u32, Entry)>>,
}

impl Shared {
    /// Notes something whose record ends at the server's `lsn`: its start is not known, only that it lies before.
    pub fn saw(&self, lsn: &str, what: What) {
        let lsn = parse_lsn(lsn) - 1;
        let timeline = self.timeline.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().expect("not poisoned");
        seen.push((
            timeline,
            Entry {
                timeline,
                lsn,
                what,
            },
        ));
    }
}

/// Creates databases, a tablespace and the first tables; returns nothing the record would not hold.
pub fn set_up(cluster: &Cluster, shared: &Shared, tablespace: &std::path::Path) {
    cluster.make_tablespace("fast", tablespace);
    cluster.sql("create database shop tablespace fast");
    for database in DATABASES {
        let client = cluster.client_of(database);
        let mut transaction = Transaction::begin(&client, database);
        for (table, place) in [("accounts", ""), ("journal", " tablespace fast")] {
            transaction.sql(&format!(
                "create table {table} (id bigint primary key, v bigint, t text){place}"
            ));
            transaction.note(table, Op::Create);
        }
        for id in 0..ACCOUNTS {
            transaction.put("accounts", id, 1000, "open");
        }
        transaction.commit(shared);
    }
}

/// Runs `clients` threads that do `each` transactions.
pub fn run(
    cluster: &Cluster,
    shared: &Arc<Shared>,
    random: &mut Random,
    clients: usize,
    each: usize,
) {
    let conninfos: Vec<(String, String)> = DATABASES
        .iter()
        .map(|d| ((*d).to_owned(), cluster.conninfo(d)))
        .collect();
    std::thread::scope(|scope| {
        for number in 0..clients {
            let (database, conninfo) = conninfos[number % conninfos.len()].clone();
            let mut random = random.fork();
            let shared = Arc::clone(shared);
            scope.spawn(move || {
                let client = Client::connect(&conninfo).expect("the server takes connections");
                for _ in 0..each {
                    one(&client, &database, &shared, &mut random);
                }
            });
        }
    });
}

fn one(client: &Client, database: &str, shared: &Shared, random: &mut Random) {
    match random.below(20) {
        0 => ddl(client, database, shared, random),
        1 | 2 => end_prepared(client, database, shared, random),
        3 | 4 => prepare(client, database, shared, random),
        5 => {
            let mut t = Transaction::begin(client, database);
            transfer(&mut t, shared, random);
            if shared.alone.load(Ordering::Relaxed) {
                t.commit(shared);
            } else {
                t.rollback(shared);
            }
        }
        6..=9 => savepoints(client, database, shared, random),
        _ => {
            let mut t = Transaction::begin(client, database);
            transfer(&mut t, shared, random);
            t.commit(shared);
        }
    }
}

fn transfer(t: &mut Transaction<'_>, shared: &Shared, random: &mut Random) {
    let (a, b) = (
        random.below(ACCOUNTS as usize),
        random.below(ACCOUNTS as usize),
    );
    // In the order of ids, so that no two transfers wait for each other.
    for (id, amount) in [(a.min(b), -7), (a.max(b), 7)] {
        t.update("accounts", id as i64, amount);
    }
    let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
    t.put("journal", id, 7, &"x".repeat(random.below(400)));
    if random.one_in(4) && id > 10 {
        t.delete("journal", id - 10);
    }
}

fn savepoints(client: &Client, database: &str, shared: &Shared, random: &mut Random) {
    let mut t = Transaction::begin(client, database);
    for n in 0..random.below(4) + 1 {
        let mark = t.ops.len();
        t.sql(&format!("savepoint s{n}"));
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        t.put("journal", id, n as i64, "savepoint");
        if random.one_in(2) && !shared.alone.load(Ordering::Relaxed) {
            t.sql(&format!("rollback to s{n}"));
            t.ops.truncate(mark);
        }
    }
    t.commit(shared);
}

fn ddl(client: &Client, database: &str, shared: &Shared, random: &mut Random) {
    let number = shared.next_table.fetch_add(1, Ordering::Relaxed);
    let table = format!("t{number}");
    let mut t = Transaction::begin(client, database);
    let place = if random.one_in(2) {
        " tablespace fast"
    } else {
        ""
    };
    t.sql(&format!(
        "create table {table} (id bigint primary key, v bigint, t text){place}"
    ));
    t.note(&table, Op::Create);
    for id in 0..random.below(50) as i64 {
        t.put(&table, id, id, "ddl");
    }
    t.commit(shared);
    if random.one_in(3) {
        let mut t = Transaction::begin(client, database);
        let (sql, op) = if random.one_in(2) {
            (format!("truncate {table}"), Op::Truncate)
        } else {
            (format!("drop table {table}"), Op::Drop)
        };
        t.sql(&sql);
        t.note(&table, op);
        t.commit(shared);
    }
}

fn prepare(client: &Client, database: &str, shared: &Shared, random: &mut Random) {
    let mut t = Transaction::begin(client, database);
    // Inserts only: a prepared transaction keeps its locks, and the others must not wait for it.
    for _ in 0..random.below(3) + 1 {
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        t.put("journal", id, 1, "prepared");
    }
    let name = format!("g{}", t.xid);
    t.sql(&format!("prepare transaction '{name}'"));
    t.keep(shared);
    let mut prepared = shared.prepared.lock().expect("not poisoned");
    prepared.push((database.to_owned(), name));
}

fn end_prepared(client: &Client, database: &str, shared: &Shared, random: &mut Random) {
    let mut prepared = shared.prepared.lock().expect("not poisoned");
    let Some(at) = prepared.iter().position(|(d, _)| d == database) else {
        return;
    };
    let (_, name) = prepared.remove(at);
    drop(prepared);
    let alone = shared.alone.load(Ordering::Relaxed);
    let how = if !alone && random.one_in(3) {
        "rollback"
    } else {
        "commit"
    };
    client.sql(&format!("{how} prepared '{name}'"));
    if alone {
        let xid = name.trim_start_matches('g').parse().expect("an xid");
        look(client, shared, xid);
    }
}

/// Notes a commit as the server tells of it: its time, and the insert position right behind it.
fn look(client: &Client, shared: &Shared, xid: u32) {
    let rows = client.sql(&format!(
        "select pg_current_wal_insert_lsn()::text, \
         round(extract(epoch from pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint::text"
    ));
    let cell = |n: usize| rows[0][n].clone().expect("not null");
    let time = cell(1).parse().expect("a number");
    shared.saw(&cell(0), What::Commit { xid, time });
}

/// An open transaction and what it did so far.
struct Transaction<'a> {
    client: &'a Client,
    database: String,
    xid: u32,
    ops: Ops,
}

impl<'a> Transaction<'a> {
    fn begin(client: &'a Client, database: &str) -> Transaction<'a> {
        client.sql("begin");
        let xid = client.value("select pg_current_xact_id()::text");
        Transaction {
            client,
            database: database.to_owned(),
            xid: xid.parse().expect("an xid of the first epoch"),
            ops: Vec::new(),
        }
    }

    fn sql(&self, sql: &str) {
        self.client.sql(sql);
    }

    fn table(&self, name: &str) -> Table {
        (self.database.clone(), name.to_owned())
    }

    fn note(&mut self, table: &str, op: Op) {
        self.ops.push((self.table(table), op));
    }

    fn put(&mut self, table: &str, id: i64, v: i64, t: &str) {
        self.sql(&format!("insert into {table} values ({id}, {v}, '{t}')"));
        self.note(
            table,
            Op::Put {
                id,
                row: row(id, v, t),
            },
        );
    }

    fn update(&mut self, table: &str, id: i64, by: i64) {
        let sql = format!("update {table} set v = v + {by} where id = {id} returning v, t");
        let rows = self.client.sql(&sql);
        let cell = |n: usize| rows[0][n].clone().unwrap_or_default();
        let v = cell(0).parse().expect("a number");
        self.note(
            table,
            Op::Put {
                id,
                row: row(id, v, &cell(1)),
            },
        );
    }

    fn delete(&mut self, table: &str, id: i64) {
        // A row that is not visible yet is not deleted; the record must not say so.
        let sql = format!("delete from {table} where id = {id} returning id");
        if !self.client.sql(&sql).is_empty() {
            self.note(table, Op::Delete { id });
        }
    }

    /// Remembers what was done under the xid; whether it counts, the WAL tells.
    fn keep(&mut self, shared: &Shared) {
        let ops = std::mem::take(&mut self.ops);
        let mut ledger = shared.ledger.lock().expect("not poisoned");
        let timeline = shared.timeline.load(Ordering::Relaxed);
        ledger.transactions.insert((timeline, self.xid), ops);
    }

    fn commit(mut self, shared: &Shared) {
        self.keep(shared);
        self.sql("commit");
        if shared.alone.load(Ordering::Relaxed) {
            look(self.client, shared, self.xid);
        }
    }

    fn rollback(mut self, shared: &Shared) {
        self.keep(shared);
        self.sql("rollback");
    }
}

/// A row as text, the way `check` reads it back.
pub fn row(id: i64, v: i64, t: &str) -> String {
    format!("{id}|{v}|{t}")
}
