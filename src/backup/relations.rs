//! Lists the server's relations beside a backup: one connection for each database, one after the other.
//!
//! A list never fails a backup, and never holds it up for long: a database that does not answer is recorded as unread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::time::TimestampTz;
use crate::progress::Silent;
use crate::repo::relations::{Database, Draft, Relation};
use crate::wire::client::Rows;
use crate::wire::conninfo::ConnInfo;
use crate::wire::runtime;
use crate::wire::sql::Sql;
use crate::wire::stop::unless_stopped;

/// Relations that are asked for at once.
const AT_ONCE: usize = 5_000;
/// Databases that are not read by then are unread.
const LIMIT: Duration = Duration::from_secs(120);
/// More relations than this make no list: who reads it has all of them in memory.
const RELATIONS_MAX: u64 = 1_000_000;

/// A user of a database could give an operator or a function of its own the name of one that is asked for here.
pub const OWN_NAMES: &str = "set search_path to pg_catalog, pg_temp";
const DATABASES: &str = "select oid, datname, dattablespace, datallowconn, pg_catalog.pg_encoding_to_char(encoding) from pg_catalog.pg_database order by oid";
const POSITION: &str = "select (case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn() \
     else pg_catalog.pg_current_wal_insert_lsn() end)::text, \
     (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint";

/// Lists the relations of every database.
///
/// # Errors
/// Those of [`Sql::connect`] on the first connection; `Io` of the temporary file; `Interrupted` once `stop` is set. Databases that cannot be read are
/// in the list.
pub fn list(info: &ConnInfo, stop: &AtomicBool) -> Result<Draft> {
    let begun = Instant::now();
    let lines = tempfile::tempfile().map_err(|e| Error::from_io("make a temporary file", e))?;
    runtime::start()?.block_on(async {
        let databases = tokio::time::timeout(LIMIT, databases(info, stop)).await;
        let rows =
            databases.map_err(|_| err!(Deadline, "the server does not list its databases"))??;
        let (mut shared, mut draft) = (None, Draft::new(lines));
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
                    let place = (&mut database, &mut draft);
                    let reading = read(info, place, shared.is_none(), stop);
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
                Ok(of_all) => shared = shared.or(of_all),
                Err(why) => database.unread = Some(why.to_owned()),
            }
            draft.end(database)?;
            if draft.relations() > RELATIONS_MAX {
                return Err(err!(
                    Unsupported,
                    "the server has too many relations to list"
                ));
            }
        }
        if let Some(shared) = shared {
            for relation in &shared {
                draft.add(relation)?;
            }
            draft.end(Database::default())?;
            draft.last_first();
        }
        Ok(draft)
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

/// Reads one database into the draft. Returns the relations that all share where they are wanted.
async fn read(
    info: &ConnInfo,
    (database, draft): (&mut Database, &mut Draft),
    wants_shared: bool,
    stop: &AtomicBool,
) -> Result<Option<Vec<Relation>>> {
    let mut info = info.clone();
    info.dbname.clone_from(&database.database);
    let mut sql = Sql::connect(&info, Arc::new(Silent)).await?;
    sql.query(OWN_NAMES).await?;
    sql.query("begin isolation level repeatable read read only")
        .await?;
    let position = sql.query(POSITION).await?;
    database.lsn = position.text(0, 0)?.and_then(|lsn| lsn.parse().ok());
    database.time = TimestampTz::from_unix_micros(position.value(0, 1)?);
    let (mut own, mut shared) = (0, Vec::new());
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
                false => {
                    draft.add(&relation)?;
                    own += 1;
                }
                true if wants_shared => shared.push(relation),
                true => {}
            }
        }
        if rows.rows.len() < AT_ONCE || own > RELATIONS_MAX {
            break;
        }
    }
    sql.close().await;
    Ok(wants_shared.then_some(shared))
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
