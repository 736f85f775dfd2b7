//! The tables that names mean, as a moment has them and as a live server has them.

use super::{Rescued, What};
use crate::err;
use crate::error::Result;
use crate::operate::server::Server;

/// A table at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// pg_class.relkind.
    pub kind: String,
    /// The extension that made it, where pg_dump does not carry its rows for that.
    pub extension: Option<String>,
    /// Whether it is unlogged, so that recovery has emptied it.
    pub is_unlogged: bool,
}

/// A value as SQL writes it.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match text.contains('\\') {
        true => format!(" E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

/// A name as SQL writes it, whatever is in it.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Gives a session a setting.
///
/// # Errors
/// Those of [`Server::query`].
pub fn set_config(server: &mut Server, name: &str, value: &str) -> Result<()> {
    let (name, value) = (literal(name), literal(value));
    let set = format!("select pg_catalog.set_config({name}, {value}, false)");
    server.query(&set).map(drop)
}

impl Table {
    /// The name as SQL writes it, which is a pattern of pg_dump for this table alone, too.
    pub fn quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// The name for people.
    pub fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether it has rows of its own.
    pub fn has_rows(&self) -> bool {
        self.kind == "r"
    }

    /// Counts its rows.
    ///
    /// # Errors
    /// Those of [`Server::query`].
    pub fn count(&self, server: &mut Server) -> Result<u64> {
        let rows = server.query(&format!("select count(*) from only {}", self.quoted()))?;
        rows.value(0, 0)
    }
}

/// An extension may have all rows of a table of its own carried, or some of them.
///
/// PostgreSQL: src/bin/pg_dump/pg_dump.c, `processExtensionTables`.
const COLUMNS: &str = "c.oid, n.nspname, c.relname, c.relkind, (select e.extname from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.objsubid = 0 and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass and d.deptype = 'e' and coalesce(e.extcondition[pg_catalog.array_position(e.extconfig, c.oid)], 'none') <> ''), c.relpersistence = 'u' from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace";

fn read(server: &mut Server, sql: &str) -> Result<Vec<Table>> {
    let rows = server.query(sql)?;
    let read = (0..rows.rows.len()).map(|row| {
        Ok(Table {
            oid: rows.value(row, 0)?,
            schema: rows.value(row, 1)?,
            name: rows.value(row, 2)?,
            kind: rows.value(row, 3)?,
            extension: rows.text(row, 4)?.map(str::to_owned),
            is_unlogged: rows.text(row, 5)? == Some("t"),
        })
    });
    read.collect()
}

/// Finds a table by its name, with all its partitions.
///
/// # Errors
/// `NotFound`; `Refused` for what is no table.
pub fn find(server: &mut Server, name: &str) -> Result<Vec<Table>> {
    let wanted = format!("pg_catalog.to_regclass({})", literal(name));
    let found = read(server, &format!("select {COLUMNS} where c.oid = {wanted}"))?;
    let Some(table) = found.into_iter().next() else {
        return Err(err!(NotFound, "there is no table {name} at that moment").hint(
            "Nothing was done. pitr find --table NAME says when it was dropped or renamed; a name without a schema is looked for in public.",
        ));
    };
    match table.kind.as_str() {
        "r" => Ok(vec![table]),
        "p" => {
            let tree = format!("select {COLUMNS} join pg_catalog.pg_partition_tree({}) t on t.relid = c.oid order by t.level, 2, 3", table.oid);
            read(server, &tree)
        }
        other => Err(err!(Refused, "{name} is no table (relkind {other})").hint(
            "Nothing was done. It comes with its schema (--schema NAME), as far as the live server has none of that. Else write the schema into a file (--schema NAME --to FILE), from which pg_restore --table takes it alone.",
        )),
    }
}

/// All tables of a schema, or of the database.
///
/// # Errors
/// `NotFound` for a schema that is not there.
pub fn of_schema(server: &mut Server, schema: Option<&str>) -> Result<Vec<Table>> {
    let of = match schema {
        Some(schema) => format!("n.nspname = {}", literal(schema)),
        None => "n.nspname <> 'information_schema' and n.nspname !~ '^pg_'".to_owned(),
    };
    if let Some(schema) = schema {
        let there = format!("select 1 from pg_catalog.pg_namespace n where {of}");
        if server.query(&there)?.rows.is_empty() {
            return Err(err!(NotFound, "there is no schema {schema} at that moment")
                .hint("Nothing was done. pitr query 'select nspname from pg_namespace' with the same target lists them."));
        }
    }
    let sql = format!("select {COLUMNS} where {of} and c.relkind in ('r', 'p') order by 2, 3");
    read(server, &sql)
}

/// Divides tables that are meant into those that pg_dump carries, and notes about those that it does not: tables of extensions.
///
/// # Errors
/// `Refused` where such a table was named.
pub fn carried(what: &What, tables: Vec<Table>) -> Result<(Vec<Table>, Vec<String>)> {
    let (carried, left): (Vec<Table>, Vec<Table>) = tables
        .into_iter()
        .partition(|table| table.extension.is_none());
    let said = |table: &Table| {
        let extension = table.extension.as_deref().unwrap_or_default();
        format!(
            "table {} belongs to extension {extension}, and pg_dump does not carry its rows, or not all of them",
            table.shown()
        )
    };
    match (what, left.first()) {
        (What::Tables(_), Some(table)) => Err(err!(Refused, "{}", said(table)).hint(
            "Nothing was done. Rows alone can be had: --as NAME, --rows-missing-only, or --replace --confirm.",
        )),
        _ => Ok((carried, left.iter().map(said).collect())),
    }
}

/// Lists the tables whose rows are in no backup, as lines for people.
pub fn without_rows(tables: &[Table]) -> impl Iterator<Item = String> {
    let unlogged = tables.iter().filter(|t| t.is_unlogged && t.has_rows());
    unlogged.map(|table| {
        let table = table.shown();
        format!("table {table} is unlogged: its rows are in no backup")
    })
}

fn is_there(live: &mut Server, name: &str) -> Result<bool> {
    let name = literal(name);
    let rows = live.query(&format!(
        "select pg_catalog.to_regclass({name}) is not null"
    ))?;
    Ok(rows.text(0, 0)? == Some("t"))
}

/// Requires that the live server has no table of a name.
///
/// # Errors
/// `Refused`.
pub fn check_absent(live: &mut Server, name: &str) -> Result<()> {
    match is_there(live, name)? {
        false => Ok(()),
        true => Err(err!(Refused, "the live server has {name}").hint(
            "Nothing was done. Put it beside it (--as NAME), add only the rows that are missing (--rows-missing-only), or replace its rows (--replace --confirm).",
        )),
    }
}

/// Requires that the live server has a table.
///
/// # Errors
/// `NotFound`.
pub fn check_present(live: &mut Server, name: &str) -> Result<()> {
    match is_there(live, name)? {
        true => Ok(()),
        false => Err(err!(NotFound, "the live server has no {name}").hint(
            "Nothing was done. Without --rows-missing-only and --replace the table is made.",
        )),
    }
}

/// Requires that a name means the same table in the live server as at the moment: each side has a search path of its own.
///
/// # Errors
/// `Refused`.
pub fn check_same(live: &mut Server, name: &str, table: &Table) -> Result<()> {
    let rows = live.query(&format!(
        "select n.nspname, c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = pg_catalog.to_regclass({})",
        literal(name)
    ))?;
    let (schema, is): (String, String) = (rows.value(0, 0)?, rows.value(0, 1)?);
    match (&schema, &is) == (&table.schema, &table.name) {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "{name} is {} at that moment, and {schema}.{is} in the live server",
            table.shown()
        )
        .hint("Nothing was changed. Name the table with its schema: --table SCHEMA.NAME")),
    }
}

/// Tables whose foreign keys lead to a table of the live server. One that leads to its own table is no hindrance.
///
/// # Errors
/// Those of [`Server::query`].
fn referrers(live: &mut Server, name: &str) -> Result<Vec<String>> {
    let rows = live.query(&format!(
        "select distinct k.conrelid::pg_catalog.regclass::text from pg_catalog.pg_constraint k where k.contype = 'f' and k.confrelid = pg_catalog.to_regclass({}) and k.conrelid <> k.confrelid order by 1",
        literal(name)
    ))?;
    rows.texts(0)
}

/// Requires that no foreign key of another table leads to a table of the live server: its rows cannot be replaced as a whole.
///
/// PostgreSQL: src/backend/catalog/heap.c (`heap_truncate_check_FKs`).
///
/// # Errors
/// `Refused`.
pub fn check_unreferenced(live: &mut Server, name: &str) -> Result<()> {
    let by = referrers(live, name)?.join(", ");
    match by.is_empty() {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "the rows of {name} cannot be replaced: foreign keys of {by} lead to it"
        )
        .hint(REFERENCED)),
    }
}

/// The ways that an operator has about a table that foreign keys lead to.
pub const REFERENCED: &str = "Nothing was changed. PostgreSQL empties no table to which a foreign key of another table leads. Add the rows that are missing (--rows-missing-only), or put the table beside it (--as NAME) and carry rows over by SQL.";

/// Compares tables that were carried with what they were.
///
/// # Errors
/// `Server` where a table has other rows.
pub fn compare(source: &mut Server, live: &mut Server, tables: &[Table]) -> Result<Vec<Rescued>> {
    let mut rescued = Vec::new();
    for table in tables.iter().filter(|table| table.has_rows()) {
        let (was, is) = (table.count(source)?, table.count(live)?);
        if was != is {
            return Err(err!(
                Server,
                "{} has {is} rows now, and had {was} at that moment: somebody else changes it already, or a trigger or rule has changed what arrived",
                table.shown()
            ));
        }
        rescued.push(Rescued {
            table: table.shown(),
            new_name: None,
            rows: was,
            added_rows: None,
        });
    }
    Ok(rescued)
}

/// Things that stay behind when tables are carried alone, each query giving lines for people.
const NOT_CARRIED: [&str; 4] = [
    "select pg_catalog.format('a foreign key of another table that leads here was not carried: alter table %s add constraint %I %s;', k.conrelid::pg_catalog.regclass, k.conname, pg_catalog.pg_get_constraintdef(k.oid)) from pg_catalog.pg_constraint k where k.contype = 'f' and k.confrelid in ({oids}) and k.conrelid not in ({oids}) and k.conparentid = 0 order by 1",
    "select distinct pg_catalog.format('%s %s reads a table that was carried, and was not carried itself: it comes with --schema', case v.relkind when 'm' then 'materialized view' else 'view' end, v.oid::pg_catalog.regclass) from pg_catalog.pg_depend d join pg_catalog.pg_rewrite r on r.oid = d.objid join pg_catalog.pg_class v on v.oid = r.ev_class where v.relnamespace not in ({schemas}) and d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid in ({oids}) and v.relkind in ('v', 'm') order by 1",
    "select pg_catalog.format('a publication was not carried: alter publication %I add table %s;', p.pubname, r.prrelid::pg_catalog.regclass) from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid where r.prrelid in ({oids}) order by 1",
    INHERITING,
];

/// Tables whose rows a reader of the carried ones sees, too.
const INHERITING: &str = "select pg_catalog.format('table %s inherits from %s, and was not carried: it comes with --table, too', i.inhrelid::pg_catalog.regclass, i.inhparent::pg_catalog.regclass) from pg_catalog.pg_inherits i where i.inhparent in ({oids}) and i.inhrelid not in ({oids}) order by 1";

/// Lists things that pg_dump does not carry with tables or a schema, as lines for people.
///
/// # Errors
/// Those of [`Server::query`].
pub fn lacking(source: &mut Server, what: &What, tables: &[Table]) -> Result<Vec<String>> {
    if *what == What::Database || tables.is_empty() {
        return Ok(Vec::new());
    }
    let oids = oids(tables);
    // The views of a schema come with it.
    let schemas = match what {
        What::Schema(_) => {
            format!("select relnamespace from pg_catalog.pg_class where oid in ({oids})")
        }
        _ => "0".to_owned(),
    };
    let queries = NOT_CARRIED.map(|sql| sql.replace("{schemas}", &schemas));
    let mut notes = Vec::new();
    for sql in queries {
        notes.extend(lines(source, &sql, &oids)?);
    }
    Ok(notes)
}

/// Lists tables that inherit from those of which rows alone are carried, as lines for people.
///
/// # Errors
/// Those of [`Server::query`].
pub fn inheriting(source: &mut Server, tables: &[Table]) -> Result<Vec<String>> {
    lines(source, INHERITING, &oids(tables))
}

fn oids(tables: &[Table]) -> String {
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    oids.join(", ")
}

fn lines(source: &mut Server, sql: &str, oids: &str) -> Result<Vec<String>> {
    source.query(&sql.replace("{oids}", oids))?.texts(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_quoted() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\b'"), " E'a\\\\b'''");
    }
}
