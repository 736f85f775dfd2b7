//! The clients: rows, relations of every kind, databases and tablespaces come, change and go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::Client;
use crate::common::random::Random;

/// Databases beside `postgres`, in which relations are changed, too.
pub const OTHER: &str = "other";
/// So many changes come as fast as they can. A step that takes long, because the machine is busy or something is waited for, gets fewer: else there
/// would be ever more to do.
const FAST: u64 = 150;
/// Relations that a database has at most.
const MOST: usize = 14;

/// The state that the clients share.
pub struct Shared {
    /// Held for each statement: whoever holds it sees the databases at rest.
    pub rest: Mutex<()>,
    ended: AtomicBool,
    next: AtomicU64,
    statements: AtomicU64,
    major: u32,
}

impl Shared {
    pub fn new(major: u32) -> Arc<Shared> {
        Arc::new(Shared {
            rest: Mutex::new(()),
            ended: AtomicBool::new(false),
            next: AtomicU64::new(1),
            statements: AtomicU64::new(0),
            major,
        })
    }
}

/// A client that goes on until it is dropped.
pub struct Storm {
    shared: Arc<Shared>,
    before: u64,
    thread: Option<JoinHandle<()>>,
}

impl Storm {
    pub fn begin(shared: &Arc<Shared>, clients: [Client; 2], mut random: Random) -> Storm {
        let own = Arc::clone(shared);
        own.ended.store(false, Ordering::SeqCst);
        let before = own.statements.load(Ordering::SeqCst);
        let thread = std::thread::spawn(move || {
            while !own.ended.load(Ordering::SeqCst) {
                let which = usize::from(random.one_in(3));
                let rest = own.rest.lock().unwrap();
                let done = act(&clients[which], &mut random, &own);
                drop(rest);
                if !done {
                    return;
                }
                let made = own.statements.load(Ordering::SeqCst) - before;
                let pause = if made < FAST { 40 } else { 1000 };
                std::thread::sleep(Duration::from_millis(random.next() % pause));
            }
        });
        Storm {
            shared: Arc::clone(shared),
            before,
            thread: Some(thread),
        }
    }

    /// Ends it; how many changes were made.
    pub fn end(mut self) -> u64 {
        self.stop();
        self.shared.statements.load(Ordering::SeqCst) - self.before
    }

    fn stop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("a client of the storm goes on");
            }
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Changes something; false when the server is gone.
fn act(client: &Client, random: &mut Random, shared: &Shared) -> bool {
    let number = shared.next.fetch_add(1, Ordering::SeqCst);
    let Some(sql) = statement(client, random, shared, number) else {
        return false;
    };
    for part in sql {
        if let Err(e) = client.try_sql(&part) {
            // A server that died takes its sessions along. Anything else is a mistake of this test.
            assert!(e.as_db_error().is_none_or(is_end), "{part}: {e:?}");
            return false;
        }
    }
    shared.statements.fetch_add(1, Ordering::SeqCst);
    true
}

fn is_end(error: &tokio_postgres::error::DbError) -> bool {
    matches!(error.code().code(), "57P01" | "57P02" | "57P03" | "08006")
}

/// The statements of one change, each to be run by itself. `None` when the server is gone.
fn statement(
    client: &Client,
    random: &mut Random,
    shared: &Shared,
    number: u64,
) -> Option<Vec<String>> {
    let found = client.try_sql("select relname, relpersistence::text from pg_class where relkind = 'r' and relname like 'r\\_%' order by 1");
    let tables: Vec<(String, bool)> = found
        .ok()?
        .into_iter()
        .map(|row| (row[0].clone().unwrap(), row[1].as_deref() == Some("u")))
        .collect();
    if tables.len() < 3 {
        return Some(create(random, number));
    }
    let (table, is_unlogged) = random.pick(&tables).clone();
    let share = 2 + random.below(60);
    let rest = random.below(share);
    let one = |sql: String| Some(vec![sql]);
    match random.below(30) {
        0..=3 if tables.len() < MOST => Some(create(random, number)),
        0..=4 => one(format!("drop table {table} cascade")),
        5 => one(format!("truncate {table}")),
        6..=9 => one(format!(
            "update {table} set b = md5(b || '{number}'), c = array[a % 7, {number}] where a % {share} = {rest}"
        )),
        10 | 11 => one(format!("delete from {table} where a % {share} = {rest}")),
        12..=15 => one(format!(
            "insert into {table} select {number} * 10000 + g, md5(g::text), array[g], point(g, {number}) from generate_series(1, {}) g",
            1 + random.below(900)
        )),
        16 => one(format!("vacuum {table}")),
        17 => one(format!("vacuum (freeze, analyze) {table}")),
        18 => one(format!("vacuum full {table}")),
        19 => one(format!("reindex table {table}")),
        20 => one(format!(
            "alter table {table} set tablespace {}",
            random.pick(&["pg_default", "ts"])
        )),
        21 => one(format!(
            "alter table {table} set {}",
            if is_unlogged { "logged" } else { "unlogged" }
        )),
        22 => one(format!(
            "alter table {table} add x{number} int default {number}; alter table {table} alter b type varchar({})",
            600 + number % 600
        )),
        23 => one(format!(
            "begin; insert into {table} select g, 'aborted', null, null from generate_series(1, 700) g; savepoint s; truncate {table}; rollback to s; create table gone_{number} as select generate_series(1, 3000) as a; rollback"
        )),
        24 => Some(vec![
            format!(
                "begin; update {table} set b = b || 'p' where a % 31 = 1; savepoint s; delete from {table} where a % 13 = 1; release s; prepare transaction 'p{number}'"
            ),
            format!(
                "{} prepared 'p{number}'",
                random.pick(&["commit", "rollback"])
            ),
        ]),
        25 => one(temporary(random, number)),
        26 => Some(wide(random, number)),
        27 => databases(client, random, shared.major, number),
        28 if shared.major >= 15 => Some(in_place_tablespace(number)),
        _ => one(random
            .pick(&["checkpoint", "select pg_switch_wal()"])
            .to_string()),
    }
}

/// A table of some persistence, somewhere, with indexes of some kinds.
fn create(random: &mut Random, number: u64) -> Vec<String> {
    let persistence = if random.one_in(5) { "unlogged " } else { "" };
    let place = if random.one_in(4) {
        " tablespace ts"
    } else {
        ""
    };
    let rows = 1 + random.below(4000);
    let mut sql = format!(
        "create {persistence}table r_{number} (a int, b text, c int[], d point){place};
         insert into r_{number} select g, md5(g::text), array[g, g % 7], point(g, g % 13) from generate_series(1, {rows}) g;"
    );
    for method in [
        "btree (a)",
        "btree (b)",
        "hash (b)",
        "gin (c)",
        "gist (d)",
        "spgist (d)",
        "brin (a)",
    ] {
        if random.one_in(3) {
            sql += &format!("create index on r_{number} using {method};");
        }
    }
    if random.one_in(6) {
        sql += &format!(
            "create materialized view m_{number} as select a % 10 as k, count(*) from r_{number} group by 1;"
        );
    }
    vec![sql]
}

/// A table of one session, which may stay until that ends: its files lie beside the others.
fn temporary(random: &mut Random, number: u64) -> String {
    let end = match random.one_in(2) {
        true => format!("; drop table t{number}"),
        false => String::new(),
    };
    format!(
        "create temporary table t{number} as select g as a from generate_series(1, 2000) g; create index on t{number} (a){end}"
    )
}

/// Values out of line, which change.
fn wide(random: &mut Random, number: u64) -> Vec<String> {
    vec![format!(
        "create table if not exists wide (a int, b text);
         alter table wide alter b set storage external;
         insert into wide select g, repeat(md5(g::text || '{number}'), 150) from generate_series(1, {}) g;
         update wide set b = repeat(md5(b), 100) where a % 9 = {};
         delete from wide where ctid in (select ctid from wide limit greatest(0, (select count(*) - 400 from wide)))",
        1 + random.below(80),
        random.below(9),
    )]
}

/// A copy of a database comes; an older one goes.
fn databases(client: &Client, random: &mut Random, major: u32, number: u64) -> Option<Vec<String>> {
    let found =
        client.try_sql("select datname from pg_database where datname like 'd\\_%' order by 1");
    let found = found.ok()?;
    let mut sql = Vec::new();
    if found.len() > 1 {
        let old = found[0][0].as_deref().unwrap();
        sql.push(format!("drop database {old}"));
    }
    let strategy = match major >= 15 {
        true => *random.pick(&["", " strategy wal_log", " strategy file_copy"]),
        false => "",
    };
    let place = if random.one_in(3) {
        " tablespace ts"
    } else {
        ""
    };
    sql.push(format!(
        "create database d_{number} template template0{strategy}{place}"
    ));
    Some(sql)
}

/// A tablespace without a place of its own, with a table that moves in and goes with it.
fn in_place_tablespace(number: u64) -> Vec<String> {
    vec![
        "set allow_in_place_tablespaces = on".to_owned(),
        format!("create tablespace ip_{number} location ''"),
        format!(
            "create table in_{number} tablespace ip_{number} as select g as a from generate_series(1, 500) g"
        ),
        format!("drop table in_{number}"),
        "checkpoint".to_owned(),
        format!("drop tablespace ip_{number}"),
    ]
}
