//! Rows alone, by COPY, in one transaction of the live server.

use super::large_objects::{self, Carried, Columns};
use super::tables::{REFERENCED, Table, identifier, literal};
use super::{Mode, Rescued};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::wire::server_error::sqlstate;

/// Settings under which text means the same on both sides, whatever roles and databases have set.
pub(super) const OF_BOTH: [&str; 7] = [
    "extra_float_digits = 3",
    "datestyle = 'ISO, YMD'",
    "intervalstyle = 'postgres'",
    "bytea_output = 'hex'",
    "lc_monetary = 'C'",
    "timezone = 'UTC'",
    "xmloption = 'content'",
];
/// Others who want the live table wait behind this. A row that a policy hides must not be taken for one that is missing.
const OF_LIVE: [&str; 2] = ["lock_timeout = '10s'", "row_security = off"];

/// One statement for each setting.
pub(super) fn set(word: &str, settings: &[&str]) -> String {
    let all: Vec<String> = settings.iter().map(|s| format!("{word} {s}")).collect();
    all.join("; ")
}

/// A column that is carried.
struct Column {
    name: String,
    definition: String,
}

/// Carries the rows of tables, and the large objects that those name in the end; each session has its own connection for the stream.
///
/// # Errors
/// `Refused` where the tables do not fit; `Server`.
pub fn carry(
    session: &Session,
    (source, from): (&mut Server, &str),
    live: &mut Server,
    (tables, mode): (&[Table], &Mode),
) -> Result<(Vec<Rescued>, Carried)> {
    let [table] = tables else {
        return Err(not_one(tables.len()));
    };
    let columns = columns_of(source, table)?;
    // Older servers, and some systems, do not know it: there a statement that is given up goes on to its end, and is not committed.
    let _ = live.query("set client_connection_check_interval = '1s'");
    live.query("begin")?;
    let done = one(session, (source, from), live, (table, &columns), mode).and_then(|rescued| {
        let arrived = match mode {
            Mode::As(name) => name.clone(),
            _ => table.quoted(),
        };
        let named = Columns::of(source, tables)?;
        let named = (&named, Some(arrived.as_str()));
        let carried = large_objects::carry(session, (source, from), live, named)?;
        Ok((rescued, carried))
    });
    match done {
        Ok((rescued, carried)) => {
            live.query("commit")?;
            Ok((vec![rescued], carried))
        }
        Err(e) => {
            // The connection may be gone: then the server has done it.
            let _ = live.query("rollback");
            Err(e)
        }
    }
}

/// The error for something else than one table that is not partitioned.
pub(super) fn not_one(count: usize) -> Error {
    err!(Usage, "--as, --rows-missing-only and --replace take one table that is not partitioned, {count} were found")
        .hint("Nothing was done. Name one table, or a single partition.")
}

fn columns_of(source: &mut Server, table: &Table) -> Result<Vec<Column>> {
    let rows = source.query(&format!(
        "select a.attname, pg_catalog.format('%I %s%s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), case when a.attcollation <> t.typcollation and a.attcollation <> 0 then ' collate ' || a.attcollation::pg_catalog.regcollation else '' end) from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid where a.attrelid = {} and a.attnum > 0 and not a.attisdropped order by a.attnum",
        table.oid
    ))?;
    let read = (0..rows.rows.len()).map(|row| {
        Ok(Column {
            name: rows.value(row, 0)?,
            definition: rows.value(row, 1)?,
        })
    });
    read.collect()
}

fn list(columns: &[&Column]) -> String {
    let names: Vec<String> = columns.iter().map(|c| identifier(&c.name)).collect();
    names.join(", ")
}

fn one(
    session: &Session,
    (source, from): (&mut Server, &str),
    live: &mut Server,
    (table, columns): (&Table, &[Column]),
    mode: &Mode,
) -> Result<Rescued> {
    live.query(&set("set local", &[&OF_BOTH[..], &OF_LIVE].concat()))?;
    let rows = table.count(source)?;
    // A column that the live table generates takes no value. One that was generated at the moment, and is plain now, has its value from there.
    let generated = match mode {
        Mode::As(_) => Vec::new(),
        _ => check_columns(live, table, columns)?,
    };
    let is_carried = |column: &&Column| !generated.contains(&column.name);
    let carried: Vec<&Column> = columns.iter().filter(is_carried).collect();
    let names = list(&carried);
    let defined: Vec<&str> = carried.iter().map(|c| c.definition.as_str()).collect();
    let defined = defined.join(", ");
    let arrives = match mode {
        Mode::As(name) => {
            live.query(&format!("create table {name} ({defined})"))?;
            name.clone()
        }
        _ => {
            live.query(&format!(
                "create temporary table pitr_rescued ({defined}) on commit drop"
            ))?;
            "pg_temp.pitr_rescued".to_owned()
        }
    };
    let out = format!(
        "copy (select {names} from only {}) to stdout",
        table.quoted()
    );
    let mut stream = live.beside(from, None, true)?;
    live.ask_beside(&mut stream, &set("set", &OF_BOTH))?;
    let copied = live.copy_from(
        &mut stream,
        (&out, &format!("copy {arrives} ({names}) from stdin")),
        &mut || session.host.check_stop(),
    )?;
    if copied != rows {
        return Err(err!(Server, "{copied} rows arrived of {rows}"));
    }
    let live_name = table.quoted();
    let all = format!(
        "insert into {live_name} ({names}) overriding system value select {names} from {arrives}"
    );
    let added = match mode {
        Mode::As(_) | Mode::Create => None,
        Mode::MissingRows => {
            let key = key_of(live, table)?;
            let is_same: Vec<String> = key
                .iter()
                .map(|name| identifier(name))
                .map(|name| format!("l.{name} = r.{name}"))
                .collect();
            let missing = format!(
                "insert into {live_name} ({names}) overriding system value select {names} from {arrives} r where not exists (select from {live_name} l where {})",
                is_same.join(" and ")
            );
            Some(count_of(live, &missing)?)
        }
        Mode::Replace => {
            let emptied = live.query(&format!("truncate only {live_name}"));
            emptied.map_err(|e| not_emptied(e, &live_name))?;
            let added = count_of(live, &all)?;
            // A trigger of the live table may leave rows out.
            if added != rows {
                return Err(err!(
                    Server,
                    "the live table took {added} of {rows} rows: a trigger or a rule of it leaves rows out"
                )
                .hint("Nothing was changed. Disable what does it, or put the table beside it: --as NAME"));
            }
            Some(added)
        }
    };
    if added.is_some() {
        advance_sequences(live, &live_name)?;
    }
    Ok(Rescued {
        table: table.shown(),
        new_name: match mode {
            Mode::As(name) => Some(name.clone()),
            _ => None,
        },
        rows,
        added_rows: added,
    })
}

/// Says what an operator can do about a live table that could not be emptied, by the server's reason.
fn not_emptied(e: Error, table: &str) -> Error {
    match sqlstate(&e) {
        // A lock that another session holds; a cursor or a trigger of this one.
        Some("55P03" | "55006") => e.hint("Nothing was changed. Other sessions use the table: end them (pg_locks names them), or try again."),
        // A foreign key that came meanwhile.
        Some("0A000") => e.hint(REFERENCED),
        Some("42501") => e.hint(format!("Nothing was changed. Connect as the owner of the table, or let this role empty it: grant truncate on {table} to ROLE")),
        _ => e.hint("Nothing was changed."),
    }
}

/// Lets the sequences of a table's columns go on behind the greatest value that is there now, so that the next row finds its number free.
fn advance_sequences(live: &mut Server, table: &str) -> Result<()> {
    let owned = live.query(&format!(
        "select pg_catalog.quote_ident(a.attname), s.sequence::text, q.seqincrement > 0 from pg_catalog.pg_attribute a, lateral (select pg_catalog.pg_get_serial_sequence({}, a.attname)::pg_catalog.regclass) s (sequence), pg_catalog.pg_sequence q where a.attrelid = {}::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped and q.seqrelid = s.sequence",
        literal(table), literal(table)
    ))?;
    for row in 0..owned.rows.len() {
        let (column, sequence): (String, String) = (owned.value(row, 0)?, owned.value(row, 1)?);
        let (last, is_beyond) = match owned.text(row, 2)? {
            Some("t") => ("max", ">"),
            _ => ("min", "<"),
        };
        live.query(&format!(
            "select pg_catalog.setval({}::pg_catalog.regclass, t.last) from (select {last}({column}) from {table}) t (last), {sequence} s where t.last {is_beyond} s.last_value or (t.last = s.last_value and not s.is_called)",
            literal(&sequence)
        ))?;
    }
    Ok(())
}

/// Runs an INSERT, and returns how many rows it has put in.
fn count_of(live: &mut Server, insert: &str) -> Result<u64> {
    let rows = live.query(&format!(
        "with added as ({insert} returning 1) select count(*) from added"
    ))?;
    rows.value(0, 0)
}

/// Requires that the live table has the columns of the moment; returns the names of those that it generates itself.
fn check_columns(live: &mut Server, table: &Table, columns: &[Column]) -> Result<Vec<String>> {
    let rows = live.query(&format!(
        "select a.attname, a.attgenerated <> '' from pg_catalog.pg_attribute a where a.attrelid = pg_catalog.to_regclass({}) and a.attnum > 0 and not a.attisdropped",
        literal(&table.quoted())
    ))?;
    let (mut there, mut generated) = (Vec::new(), Vec::new());
    for row in 0..rows.rows.len() {
        let name = rows.text(row, 0)?.unwrap_or_default().to_owned();
        if rows.text(row, 1)? == Some("t") {
            generated.push(name.clone());
        }
        there.push(name);
    }
    let missing: Vec<&str> = columns
        .iter()
        .map(|c| c.name.as_str())
        .filter(|name| !there.iter().any(|t| t == name))
        .collect();
    match missing.is_empty() {
        true => Ok(generated),
        false => Err(err!(Refused, "the live table {} has no column {}", table.shown(), missing.join(", "))
            .hint("Nothing was changed. Put the table beside it, and carry the rows over by SQL: --as NAME")),
    }
}

/// The columns of the live table's primary key.
fn key_of(live: &mut Server, table: &Table) -> Result<Vec<String>> {
    let rows = live.query(&format!(
        "select a.attname from pg_catalog.pg_index i join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any ((i.indkey::pg_catalog.int2[])[0:i.indnkeyatts - 1]) where i.indisprimary and i.indrelid = pg_catalog.to_regclass({})",
        literal(&table.quoted())
    ))?;
    let mut key = Vec::new();
    for row in 0..rows.rows.len() {
        key.push(rows.text(row, 0)?.unwrap_or_default().to_owned());
    }
    match key.is_empty() {
        false => Ok(key),
        true => Err(err!(
            Refused,
            "{} has no primary key, so it cannot be said which rows are missing",
            table.shown()
        )
        .hint("Nothing was changed. Put the table beside it: --as NAME")),
    }
}
