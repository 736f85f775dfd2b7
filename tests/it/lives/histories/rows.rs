//! The tables of a history: rows that name their life, a second table with the same rows, and pages that every commit changes.
//!
//! WAL of one life replayed on pages of another leaves a mixture: rows of both, tables that disagree, or an index that disagrees with its table.

use super::model::{Lives, Row, State};
use crate::common::Cluster;

/// Groups of rows of the table of pages; a commit changes one of them.
const GROUPS: u32 = 8;

/// Makes the tables.
pub fn create(cluster: &Cluster) {
    cluster.sql(&format!(
        "create table one (life int, n int, primary key (life, n));
         create table other (life int, n int, primary key (life, n));
         create table page (id int primary key, life int, n int, filler text);
         create index on page (life, n, id);
         insert into page select g, 0, 0, repeat('x', 150) from generate_series(0, {}) g",
        12 * GROUPS - 1
    ));
}

/// The statements of one commit: sent together they are one transaction.
pub fn commit((life, n): Row) -> String {
    format!(
        "insert into one values ({life}, {n}); insert into other values ({life}, {n});
         update page set life = {life}, n = {n} where id % {GROUPS} = {}",
        n % GROUPS
    )
}

/// Reads what a server has; says what is wrong when that is no state of one life.
pub fn read(cluster: &Cluster, lives: &Lives) -> Result<State, String> {
    let client = cluster.client();
    let mut answers = Vec::new();
    for path in ["off", "on"] {
        client.sql(&format!(
            "set enable_seqscan = {path}; set enable_indexscan = {}; set enable_bitmapscan = off; set enable_indexonlyscan = {0}",
            if path == "on" { "off" } else { "on" }
        ));
        let pairs = |table: &str| -> Result<Vec<Row>, String> {
            let sql = format!("select life, n from {table} where life >= 0 order by life, n");
            let rows = client.try_sql(&sql).map_err(|e| format!("{table}: {e}"))?;
            Ok(rows.iter().map(|row| pair(row)).collect())
        };
        let one = pairs("one")?;
        if pairs("other")? != one {
            return Err(format!("the tables differ with seqscan {path}"));
        }
        answers.push((one, groups(&client, path)?));
    }
    if answers[0] != answers[1] {
        return Err(format!("index and table differ: {answers:?}"));
    }
    let (found, groups) = answers.swap_remove(0);
    let Some(state) = lives.state_of(&found) else {
        return Err(format!("these rows no life ever had: {found:?}"));
    };
    let expected = expected(&lives.rows(state));
    if groups != expected {
        return Err(format!(
            "rows of {state:?} with pages of another: {groups:?}, not {expected:?}"
        ));
    }
    amcheck(&client)?;
    Ok(state)
}

fn pair(row: &[Option<String>]) -> Row {
    let number = |at: usize| row[at].as_deref().unwrap().parse::<u32>().unwrap();
    (number(0) as usize, number(1))
}

/// The rows of the groups of pages that are found.
fn groups(client: &crate::common::Client, path: &str) -> Result<Vec<Row>, String> {
    let sql = format!(
        "select min(life), min(n), max(life), max(n), count(*) from page where life >= 0 and id >= 0 group by id % {GROUPS} order by id % {GROUPS}"
    );
    let rows = client.try_sql(&sql).map_err(|e| format!("page: {e}"))?;
    let whole =
        |row: &Vec<Option<String>>| row[..2] == row[2..4] && row[4].as_deref() == Some("12");
    match rows.len() == GROUPS as usize && rows.iter().all(whole) {
        true => Ok(rows.iter().map(|row| pair(row)).collect()),
        false => Err(format!("pages are mixed with seqscan {path}: {rows:?}")),
    }
}

fn expected(rows: &[Row]) -> Vec<Row> {
    let mut groups = vec![(0, 0); GROUPS as usize];
    for row in rows {
        groups[(row.1 % GROUPS) as usize] = *row;
    }
    groups
}

/// Compares every index with its table; some builds of the server come without the extension.
fn amcheck(client: &crate::common::Client) -> Result<(), String> {
    let there = "select count(*) from pg_available_extensions where name = 'amcheck'";
    if client.value(there) == "0" {
        return Ok(());
    }
    let sql = "create extension if not exists amcheck;
        select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam
        where c.relkind = 'i' and a.amname = 'btree' and c.relpersistence = 'p' and c.relnamespace = 'public'::regnamespace";
    let checked = client.try_sql(sql);
    checked.map_err(|e| format!("amcheck: {e:?}")).map(|_| ())
}
