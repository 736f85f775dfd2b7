//! Lists the server's relations beside a backup: one connection for each database, one after the other.
//!
//! A list never fails a backup, and never holds it up for long: a database that does not answer is recorded as unread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::err;
use crate::error::{Code, Result};
use crate::pg::time::TimestampTz;
use crate::progress::Silent;
use crate::repo::relations::{Database, Listed, Relation};
use crate::wire::client::Rows;
use crate::wire::conninfo::ConnInfo;
use crate::wire::runtime;
use crate::wire::sql::Sql;
use crate::wire::stop::unless_stopped;

/// Relations that are asked for at once.
const AT_ONCE: usize = 20_000;
/// Databases that are not read by then are unread.
const LIMIT: Duration = Duration::from_secs(120);
/// More relations than this make no list: they would fill memory.
const RELATIONS_MAX: usize = 1_000_000;

/// A user of a database could give an operator or a function of its own the name of one that is asked for here.
pub const OWN_NAMES: &str = "set search_path to pg_catalog, pg_temp";
const DATABASES: &str = "select oid, datname, dattablespace, datallowconn, pg_catalog.pg_encoding_to_char(encoding) from pg_catalog.pg_database order by oid";
const POSITION: &str = "select (case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn() \
     else pg_catalog.pg_current_wal_insert_lsn() end)::text, \
     (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint";

/// Lists the relations of every database.
///
/// # Errors
/// Those of [`Sql::connect`] on the first connection; `Interrupted` once `stop` is set. Databases that cannot be read are in the list.
pub fn list(info: &ConnInfo, stop: &AtomicBool) -> Result<Listed> {
    let begun = Instant::now();
    runtime::start()?.block_on(async {
        let databases = tokio::time::timeout(LIMIT, databases(info, stop)).await;
        let rows =
            databases.map_err(|_| err!(Deadline, "the server does not list its databases"))??;
        let (mut shared, mut listed) = (None, Listed::new());
        let mut count = 0;
        for row in 0..rows.rows.len() {
            let mut database = Database {
                oid: rows.value(row, 0)?,
                database: rows.text(row, 1)?.map(str::to_owned),
                tablespace: Some(rows.value(row, 2)?),
                encoding: rows.text(row, 4)?.map(str::to_owned),
                ..Database::default()
            };
            let read = match (rows.text(row, 3)? == Some("t"), begun.elapsed() < LIMIT) {
                (true, true) => {
                    let left = LIMIT.saturating_sub(begun.elapsed());
                    let reading = read(info, &mut database, shared.is_none(), stop);
                    match tokio::time::timeout(left, reading).await {
                        Ok(Err(e)) if e.code() == Code::Interrupted => return Err(e),
                        Ok(read) => read.map_err(|e| word(e.code())),
                        Err(_) => Err("deadline"),
                    }
                }
                (true, false) => Err("deadline"),
                (false, _) => Err("connection_refused"),
            };
            match read {
                Ok((own, of_all)) => {
                    database.relations = own.len() as u64;
                    count += own.len();
                    shared = shared.or(of_all);
                    listed.push((database, own));
                }
                Err(why) => {
                    database.unread = Some(why.to_owned());
                    listed.push((database, Vec::new()));
                }
            }
            if count > RELATIONS_MAX {
                return Err(err!(
                    Unsupported,
                    "the server has too many relations to list"
                ));
            }
        }
        if let Some(shared) = shared {
            let head = Database {
                relations: shared.len() as u64,
                ..Database::default()
            };
            listed.insert(0, (head, shared));
        }
        Ok(listed)
    })
}

async fn databases(info: &ConnInfo, stop: &AtomicBool) -> Result<Rows> {
    let mut sql = Sql::connect(info, Arc::new(Silent)).await?;
    sql.query(OWN_NAMES).await?;
    let rows = unless_stopped(stop, sql.query(DATABASES)).await?;
    sql.close().await;
    Ok(rows)
}

/// Why a database is unread, as the list says it.
fn word(code: Code) -> &'static str {
    match code {
        Code::Denied => "denied",
        Code::Unreachable => "connection_refused",
        Code::Deadline => "deadline",
        _ => "error",
    }
}

/// Reads one database: its own relations, and those that all share where they are wanted.
async fn read(
    info: &ConnInfo,
    database: &mut Database,
    wants_shared: bool,
    stop: &AtomicBool,
) -> Result<(Vec<Relation>, Option<Vec<Relation>>)> {
    let mut info = info.clone();
    info.dbname.clone_from(&database.database);
    let mut sql = Sql::connect(&info, Arc::new(Silent)).await?;
    sql.query(OWN_NAMES).await?;
    sql.query("begin isolation level repeatable read read only")
        .await?;
    let position = sql.query(POSITION).await?;
    database.lsn = position.text(0, 0)?.and_then(|lsn| lsn.parse().ok());
    database.time = TimestampTz::from_unix_micros(position.value(0, 1)?);
    let (mut own, mut shared) = (Vec::new(), Vec::new());
    let mut after = 0;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(err!(Interrupted, "interrupted"));
        }
        let rows = sql.query(&query(after)).await?;
        for row in 0..rows.rows.len() {
            let relation = relation(&rows, row)?;
            after = relation.oid;
            match rows.text(row, 8)? == Some("t") {
                false => own.push(relation),
                true if wants_shared => shared.push(relation),
                true => {}
            }
        }
        if rows.rows.len() < AT_ONCE || own.len() > RELATIONS_MAX {
            break;
        }
    }
    sql.close().await;
    Ok((own, wants_shared.then_some(shared)))
}

fn query(after: u32) -> String {
    format!(
        "select c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, \
         case c.reltablespace when 0 then d.dattablespace else c.reltablespace end, \
         coalesce(pg_catalog.pg_relation_filenode(c.oid), 0), coalesce(i.indrelid, t.oid, 0), c.relisshared \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         join pg_catalog.pg_database d on d.datname = pg_catalog.current_database() \
         left join pg_catalog.pg_index i on i.indexrelid = c.oid \
         left join pg_catalog.pg_class t on c.relkind = 't' and t.reltoastrelid = c.oid \
         where c.relpersistence <> 't' and c.oid > {after} order by c.oid limit {AT_ONCE}"
    )
}

fn relation(rows: &Rows, row: usize) -> Result<Relation> {
    Ok(Relation {
        oid: rows.value(row, 0)?,
        schema: rows.value(row, 1)?,
        name: rows.value(row, 2)?,
        kind: rows.value(row, 3)?,
        persistence: rows.value(row, 4)?,
        tablespace: rows.value(row, 5)?,
        file: rows.value(row, 6)?,
        of: rows.value(row, 7)?,
    })
}
