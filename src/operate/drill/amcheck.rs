//! Indexes and tables, by the extension amcheck: its functions are called one relation at a time, so that a finding has a name.
//!
//! PostgreSQL: contrib/amcheck; `verify_heapam` is there from 14 on. 13 has no program pg_amcheck.

use super::{Checked, Findings};
use crate::error::{Code, Error, Result};
use crate::operate::quarantine::{self, Quarantined, is_not_checked};
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::repo::drilled::Phase;
use crate::wire::server_error;
use crate::wire::sql::is_own_limit;

/// Findings that are listed.
const LISTED_MAX: usize = 100;
const SCHEMA: &str = "pitr_drill";
/// The first major with `verify_heapam`.
const HEAP_SINCE: u32 = 14;

const INDEXES: &str = "select c.oid, c.oid::regclass::text from pg_class c join pg_index i on i.indexrelid = c.oid join pg_am a on a.oid = c.relam \
    where a.amname = 'btree' and c.relkind = 'i' and c.relpersistence = 'p' and i.indisready and i.indisvalid";
const TABLES: &str = "select c.oid, c.oid::regclass::text from pg_class c join pg_am a on a.oid = c.relam \
    where a.amname = 'heap' and c.relkind in ('r', 'm', 't') and c.relpersistence = 'p'";
/// The name in these queries, and the number that stands for one that cannot be read.
const NAME: &str = "c.oid::regclass::text";
const NUMBER: &str = "'relation ' || c.oid::text";
/// Relations that are asked for at once: an answer has a limit.
const AT_ONCE: usize = 20_000;

/// Checks every database that takes sessions.
///
/// # Errors
/// `Interrupted`; errors of the session that are not the server's word about a relation.
pub(super) fn run(
    session: &Session,
    server: &mut Quarantined,
    left_out: &[u32],
) -> Result<Findings> {
    let mut found = Findings::default();
    let mut sql = server.connect("template1")?;
    let rows = sql
        .query("select oid, datconnlimit = -2 from pg_database where datallowconn order by oid")?;
    let mut databases = Vec::new();
    for row in 0..rows.rows.len() {
        let oid: u32 = rows.value(row, 0)?;
        match name_of(&mut sql, oid)? {
            Some(name) => databases.push((name, oid, row)),
            None => found.notes.push(format!("database {oid} has a name that is not UTF-8: pitr cannot connect to it, and it was not checked")),
        }
    }
    drop(sql);
    for (database, oid, row) in databases {
        let database = database.as_str();
        if left_out.contains(&oid) {
            found.notes.push(format!("database {database}: its content is left out of the backup, so its indexes and tables were not checked"));
            continue;
        }
        // PostgreSQL: src/include/catalog/pg_database.h, DATCONNLIMIT_INVALID_DB.
        if rows.text(row, 1)? == Some("t") {
            found.notes.push(format!("database {database} is invalid, for a DROP DATABASE of it was interrupted: nobody can connect to it, and it was not checked"));
            continue;
        }
        session.host.check_stop()?;
        let checked = server
            .connect(database)
            .and_then(|mut sql| of_database(session, &mut sql, database, &mut found));
        session.host.check_stop()?;
        match checked {
            Err(e) if is_not_checked(&e) || is_not_utf8(&e) => {
                found.notes.push(unchecked(database, &e));
            }
            // The server runs, and this database cannot be used.
            Err(e) if is_its_word(e.code()) => {
                let name = format!("database {database}");
                found
                    .checks
                    .push(Checked::new(Phase::Amcheck, name, Some(e.to_string())));
            }
            checked => checked?,
        }
    }
    Ok(found)
}

/// The name of a database by its oid; none where it is not UTF-8, or where no database has that oid.
///
/// # Errors
/// Those of [`Server::query`].
pub(super) fn name_of(sql: &mut Server, oid: u32) -> Result<Option<String>> {
    let named = sql.query(&format!(
        "select datname from pg_database where oid = {oid}"
    ));
    match named {
        Err(e) if is_not_utf8(&e) => Ok(None),
        named => Ok(named?.text(0, 0)?.map(str::to_owned)),
    }
}

/// Whether a text cannot be had in UTF-8: the server has bytes of another encoding, and sends them or says so.
///
/// PostgreSQL: src/backend/utils/errcodes.txt (`character_not_in_repertoire`, `untranslatable_character`).
fn is_not_utf8(e: &Error) -> bool {
    is_own_limit(e) || matches!(server_error::sqlstate(e), Some("22021" | "22P05"))
}

/// Relations of a query, each as its oid and its name.
fn listed(session: &Session, sql: &mut Server, of: &str) -> Result<Vec<(u32, String)>> {
    let mut all: Vec<(u32, String)> = Vec::new();
    loop {
        session.host.check_stop()?;
        let last = all.last().map_or(0, |(oid, _)| *oid);
        let part = format!("{of} and c.oid > {last} order by c.oid limit {AT_ONCE}");
        let rows = match sql.query(&part) {
            Err(e) if is_not_utf8(&e) => sql.query(&part.replacen(NAME, NUMBER, 1)),
            rows => rows,
        }?;
        for row in 0..rows.rows.len() {
            all.push((rows.value(row, 0)?, rows.value(row, 1)?));
        }
        if rows.rows.len() < AT_ONCE {
            return Ok(all);
        }
    }
}

fn is_its_word(code: Code) -> bool {
    matches!(code, Code::Server | Code::Denied)
}

/// Whether the server says that its data is damaged, and not that it refuses.
fn is_damage(e: &Error) -> bool {
    let state = server_error::sqlstate(e).unwrap_or_default();
    state.starts_with("XX") || (state.starts_with("58") && !is_not_checked(e))
}

fn unchecked(place: &str, e: &Error) -> String {
    format!("database {place} could not be checked: {e}")
}

fn of_database(
    session: &Session,
    sql: &mut Server,
    database: &str,
    found: &mut Findings,
) -> Result<()> {
    quarantine::disable_event_triggers(sql)?;
    let schema = match schema(sql) {
        // Catalogs that are damaged are a finding; an extension that cannot be made is none.
        Err(e) if is_its_word(e.code()) && !is_damage(&e) => {
            found.notes.push(unchecked(database, &e));
            return Ok(());
        }
        schema => schema?,
    };
    let Some(schema) = schema else {
        found.notes.push(format!("database {database}: the extension amcheck is not available on this host, so its indexes and tables were not checked"));
        return Ok(());
    };
    let indexes = listed(session, sql, INDEXES)?;
    let of_index = |oid: u32| format!("select {schema}.bt_index_check({oid}::regclass, false)");
    let mut wrong = each(session, sql, database, &indexes, &of_index, found)?;
    let mut count = indexes.len();
    let is_newer = sql.session().version_num() / 10_000 >= HEAP_SINCE;
    if is_newer {
        let tables = listed(session, sql, TABLES)?;
        let of_table = |oid: u32| {
            format!(
                "select 'block ' || blkno || ': ' || msg from {schema}.verify_heapam({oid}::regclass) limit 1"
            )
        };
        wrong.extend(each(session, sql, database, &tables, &of_table, found)?);
        count += tables.len();
    }
    let tables = if is_newer { " and tables" } else { "" };
    if wrong.is_empty() {
        let name = format!("database {database}: {count} B-tree indexes{tables}");
        found.checks.push(Checked::new(Phase::Amcheck, name, None));
    }
    let wrong = wrong.into_iter().take(LISTED_MAX);
    found.checks.extend(wrong.map(|(relation, why)| {
        let name = format!("database {database}: {relation}");
        Checked::new(Phase::Amcheck, name, Some(why))
    }));
    Ok(())
}

/// The schema with the extension's functions, which is made where it is not; none where the host lacks it.
fn schema(sql: &mut Server) -> Result<Option<String>> {
    const INSTALLED: &str = "select quote_ident(n.nspname) from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'amcheck'";
    let there = sql.query("select 1 from pg_available_extensions where name = 'amcheck'")?;
    if there.rows.is_empty() {
        return Ok(None);
    }
    let rows = sql.query(INSTALLED)?;
    if !rows.rows.is_empty() {
        let name = rows.text(0, 0)?.unwrap_or_default().to_owned();
        // An older version lacks functions.
        sql.query("alter extension amcheck update")?;
        return Ok(Some(name));
    }
    sql.query(&format!("create schema {SCHEMA}"))?;
    sql.query(&format!("create extension amcheck schema {SCHEMA}"))?;
    Ok(Some(SCHEMA.to_owned()))
}

/// Calls a function for each relation; returns those with what is wrong.
fn each(
    session: &Session,
    sql: &mut Server,
    database: &str,
    relations: &[(u32, String)],
    call: &dyn Fn(u32) -> String,
    found: &mut Findings,
) -> Result<Vec<(String, String)>> {
    let mut wrong = Vec::new();
    for (oid, name) in relations {
        session.host.check_stop()?;
        match sql.query(&call(*oid)) {
            Ok(rows) if rows.rows.is_empty() => {}
            Ok(rows) => {
                let said = rows.text(0, 0)?.unwrap_or_default();
                // A function that returns nothing returns an empty value.
                if !said.is_empty() {
                    wrong.push((name.clone(), said.to_owned()));
                }
            }
            Err(e) if is_not_checked(&e) => {
                let place = format!("{database}: {name}");
                found.notes.push(unchecked(&place, &e));
            }
            Err(e) if is_its_word(e.code()) => wrong.push((name.clone(), e.to_string())),
            Err(e) => return Err(e),
        }
    }
    Ok(wrong)
}
