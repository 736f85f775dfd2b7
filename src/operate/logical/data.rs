//! A dump that has data alone. It goes into tables that are there and have no rows: `COPY` would add to them.

use std::collections::BTreeMap;

use super::restore::Into;
use crate::err;
use crate::error::{Error, Result};
use crate::logical::member::LargeObjects;
use crate::logical::rows::TableRows;
use crate::logical::source::SqlSession;
use crate::operate::human;
use crate::operate::rescue::tables::identifier;

/// So many tables are looked at by one statement.
const AT_ONCE: usize = 100;
/// So many tables are named in a refusal.
const NAMED: usize = 5;

/// Requires that the options go with a dump that has no definitions.
///
/// # Errors
/// `Refused`.
pub fn check_options(asked: &Into) -> Result<()> {
    let option = match (asked.create, asked.replace) {
        (true, _) => "--create",
        (false, true) => "--replace",
        (false, false) => return Ok(()),
    };
    Err(err!(
        Refused,
        "{option} needs definitions, and the dump has data alone (content = \"data\")"
    )
    .hint("Nothing was done. Name with --into a database that has the tables, without rows. A backup with content = \"schema\" makes them."))
}

/// Pure: the tables of a dump that are restored.
pub fn selected(tables: Vec<TableRows>, asked: &Into) -> Vec<TableRows> {
    let is_named = |one: &TableRows| {
        let own = Some((one.schema.as_str(), one.table.as_str()));
        let mut named = asked.tables.iter();
        asked.schemas.contains(&one.schema) || named.any(|table| table.split_once('.') == own)
    };
    match asked.is_part() {
        true => tables.into_iter().filter(is_named).collect(),
        false => tables,
    }
}

/// Requires that each of these tables is there, and has no rows.
///
/// # Errors
/// `Refused`; those of the server.
pub fn check_tables(sql: &mut SqlSession, name: &str, tables: &[TableRows]) -> Result<()> {
    // Rows that row security hides would count for none.
    sql.query("set row_security = off")?;
    let there = there(sql)?;
    let kind = |one: &TableRows| there.get(&(one.schema.clone(), one.table.clone()));
    let lacking: Vec<String> = tables
        .iter()
        .filter(|one| kind(one).is_none())
        .map(shown)
        .collect();
    if !lacking.is_empty() {
        let count = human::count(lacking.len() as u64, "table");
        let e = err!(
            Refused,
            "the dump has data alone, and database \"{name}\" lacks {count} of it: {}",
            some(&lacking)
        );
        return Err(e.hint("Nothing was done. Make the tables first: a backup with content = \"schema\" has their definitions."));
    }
    let mut filled = Vec::new();
    for part in tables.chunks(AT_ONCE) {
        // A partitioned table has the rows of its partitions, and none of its own.
        let has_rows = part.iter().map(|one| {
            let only = match kind(one).is_some_and(|kind| kind == "p") {
                true => "",
                false => "only ",
            };
            let (schema, table) = (identifier(&one.schema), identifier(&one.table));
            format!("exists (select from {only}{schema}.{table})")
        });
        let has_rows: Vec<String> = has_rows.collect();
        let rows = sql.query(&format!("select {}", has_rows.join(", ")))?;
        for (column, one) in part.iter().enumerate() {
            let is_filled = rows.text(0, column)? == Some("t");
            filled.extend(is_filled.then(|| shown(one)));
        }
    }
    match filled.is_empty() {
        true => Ok(()),
        false => Err(has(
            name,
            &format!(
                "rows in {}: {}",
                human::count(filled.len() as u64, "table"),
                some(&filled)
            ),
            "Empty these tables (TRUNCATE)",
        )),
    }
}

/// Requires that the database has no large objects, where the dump has some: they keep their numbers.
///
/// # Errors
/// `Refused`; those of the server.
pub fn check_large_objects(
    sql: &mut SqlSession,
    name: &str,
    dumped: Option<LargeObjects>,
) -> Result<()> {
    if dumped.is_none_or(|dumped| dumped.count == 0) {
        return Ok(());
    }
    let rows = sql.query("select count(*) from pg_catalog.pg_largeobject_metadata")?;
    match rows.value::<u64>(0, 0)? {
        0 => Ok(()),
        count => Err(has(
            name,
            &human::count(count, "large object"),
            "Remove them (lo_unlink), name tables with --table",
        )),
    }
}

fn has(name: &str, what: &str, remedy: &str) -> Error {
    err!(
        Refused,
        "the dump has data alone, and database \"{name}\" has {what}"
    )
    .hint(format!(
        "Nothing was done: the restore would add to them. {remedy}, or name another database."
    ))
}

/// The kinds of the tables that can take rows, by schema and name.
fn there(sql: &mut SqlSession) -> Result<BTreeMap<(String, String), String>> {
    let rows = sql.query(
        "select n.nspname, c.relname, c.relkind::text from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p')",
    )?;
    let mut there = BTreeMap::new();
    for row in 0..rows.rows.len() {
        let name = (rows.value(row, 0)?, rows.value(row, 1)?);
        there.insert(name, rows.value(row, 2)?);
    }
    Ok(there)
}

fn shown(table: &TableRows) -> String {
    format!("{}.{}", table.schema, table.table)
}

/// The first of some names, and how many there are besides.
fn some(names: &[String]) -> String {
    let first = names.iter().take(NAMED).cloned().collect::<Vec<_>>();
    let more = names.len().saturating_sub(NAMED);
    match more {
        0 => first.join(", "),
        _ => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_that_are_restored_are_those_that_are_named() {
        let table = |schema: &str, table: &str| TableRows {
            oid: 1,
            schema: schema.to_owned(),
            table: table.to_owned(),
            rows: 0,
        };
        let of = |schemas: &[&str], tables: &[&str]| {
            let text = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
            let asked = Into {
                schemas: text(schemas),
                tables: text(tables),
                ..Into::default()
            };
            let all = vec![table("a", "one"), table("a", "t.wo"), table("b", "one")];
            let found = selected(all, &asked);
            found.iter().map(shown).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&[], &[]), "a.one a.t.wo b.one");
        assert_eq!(of(&["a"], &[]), "a.one a.t.wo");
        assert_eq!(of(&[], &["a.t.wo", "b.two"]), "a.t.wo");
        assert_eq!(of(&["b"], &["a.one"]), "a.one b.one");
    }

    #[test]
    fn a_refusal_names_some_tables_and_counts_the_others() {
        let names: Vec<String> = (1..=7).map(|n| n.to_string()).collect();
        assert_eq!(some(&names), "1, 2, 3, 4, 5 and 2 more");
        assert_eq!(some(&names[..2]), "1, 2");
    }

    #[test]
    fn options_that_need_definitions_are_refused() {
        let refused = |create, replace| {
            let asked = Into {
                create,
                replace,
                ..Into::default()
            };
            check_options(&asked).map_err(|e| e.to_string())
        };
        assert_eq!(refused(false, false), Ok(()));
        for (create, option) in [(true, "--create"), (false, "--replace")] {
            let text = refused(create, !create).unwrap_err();
            assert!(text.starts_with(option), "{text}");
        }
    }
}
