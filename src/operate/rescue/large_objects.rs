//! Large objects that the rows of carried tables name, in the transaction that the live server's session has begun.
//!
//! A table has their numbers alone, and no tool carries one object by its number. An object that the live server has stays as it is.
//!
//! PostgreSQL: src/backend/storage/large_object/inv_api.c, src/include/catalog/pg_largeobject.h.

use serde::Serialize;

use super::rows::{OF_BOTH, set};
use super::tables::{Table, identifier};
use crate::err;
use crate::error::Result;
use crate::operate::server::Server;
use crate::operate::session::Session;

/// The large objects of a rescue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// Those that were made, with the owners and grants that they had.
    pub made: u64,
    /// Those that the live server has with the same content.
    pub same: u64,
    /// Those whose number the live server has with other content. They stay as they are.
    pub different: Vec<u32>,
}

/// Copies of what the moment has: the content for the length of the transaction, the objects as long as the session.
const STAGING: &str = "create temporary table pitr_objects (oid oid primary key, owner text not null, grants text);
    create temporary table pitr_pages (oid oid not null, start bigint not null, data bytea not null) on commit drop";
/// Objects by themselves: grants are statements.
const OBJECTS: &str = "select m.oid, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(m.lomowner)), (select pg_catalog.string_agg(pg_catalog.format('grant %s on large object %s to %s%s', a.privilege_type, m.oid, case a.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) end, case when a.is_grantable then ' with grant option' else '' end), '; ') from pg_catalog.aclexplode(m.lomacl) a where a.grantee <> m.lomowner) from pg_catalog.pg_largeobject_metadata m where m.oid in ({named})";
/// Their content, as far as it is no hole. A page has a quarter of a block.
const PAGES: &str = "select loid, pageno::pg_catalog.int8 * (pg_catalog.current_setting('block_size')::pg_catalog.int8 / 4), data from pg_catalog.pg_largeobject where loid in ({named})";
/// Objects of the live server that have other content. 262144 is INV_READ, and 2 SEEK_END. Else the server may open one that is not there.
const DIFFERENT: &str = "with o as materialized (select oid from pg_temp.pitr_objects join pg_catalog.pg_largeobject_metadata m using (oid))
    select o.oid from o where pg_catalog.lo_lseek64(pg_catalog.lo_open(o.oid, 262144), 0, 2) <> (select coalesce(max(p.start + pg_catalog.length(p.data)), 0) from pg_temp.pitr_pages p where p.oid = o.oid)
    or exists (select from pg_temp.pitr_pages p where p.oid = o.oid and pg_catalog.lo_get(p.oid, p.start, pg_catalog.length(p.data)) <> p.data) order by 1";
const FORGET_PRESENT: &str = "delete from pg_temp.pitr_objects o using pg_catalog.pg_largeobject_metadata m where m.oid = o.oid";
const MAKE: &str = "select count(pg_catalog.lo_create(oid)) from pg_temp.pitr_objects";
/// The function is volatile, so the outer query runs it for each page.
const FILL: &str = "select count(*) from (select pg_catalog.lo_put(p.oid, p.start, p.data) from pg_temp.pitr_pages p join pg_temp.pitr_objects o using (oid) offset 0) done";

/// Objects that are removed at once: each takes a lock until the transaction ends.
const UNMAKE: &str = "with gone as (delete from pg_temp.pitr_objects where oid in (select oid from pg_temp.pitr_objects limit 1000) returning oid) select count(pg_catalog.lo_unlink(oid)) from gone";

const NO_RIGHTS: &str = "Nothing was changed: rows and large objects arrive together. A role that is gone has to be created first; only a superuser gives objects to others.";

/// Columns of tables that may name large objects, each as `TABLE.COLUMN` and as a question for all of its values.
pub struct Columns(Vec<(Table, String)>);

impl Columns {
    /// Finds them; none where the database has no large object.
    ///
    /// # Errors
    /// Those of [`Server::query`].
    pub fn of(source: &mut Server, tables: &[Table]) -> Result<Columns> {
        let mut columns = Vec::new();
        for table in tables.iter().filter(|table| table.has_rows()) {
            let found = source.query(&format!(
                "select a.attname from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid where a.attrelid = {} and a.attnum > 0 and not a.attisdropped and t.typname in ('lo', 'oid') and exists (select from pg_catalog.pg_largeobject_metadata) order by a.attnum",
                table.oid
            ))?;
            for row in 0..found.rows.len() {
                columns.push((table.clone(), found.value(row, 0)?));
            }
        }
        Ok(Columns(columns))
    }

    /// Their names, for people.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let each = self.0.iter();
        each.map(|(table, column)| format!("{}.{column}", table.shown()))
    }

    /// A query for the numbers that they have; `table` stands in the place of each one's own.
    fn numbers(&self, table: Option<&str>) -> String {
        let each = self.0.iter().map(|(own, column)| {
            let table = table.map_or_else(|| own.quoted(), str::to_owned);
            let column = identifier(column);
            format!("select {column}::pg_catalog.oid from only {table}")
        });
        each.collect::<Vec<_>>().join(" union ")
    }
}

/// Carries the objects that rows of the columns name, and that the live table `arrived` names, too, where there is one.
///
/// # Errors
/// Those of the live server, which then has none of them: a role that is gone, a right that is missing.
pub fn carry(
    session: &Session,
    (source, from): (&mut Server, &str),
    live: &mut Server,
    (columns, arrived): (&Columns, Option<&str>),
) -> Result<Carried> {
    if columns.0.is_empty() {
        return Ok(Carried::default());
    }
    let named = columns.numbers(None);
    let many: u64 = source
        .query(&format!(
            "select count(*) from pg_catalog.pg_largeobject_metadata where oid in ({named})"
        ))?
        .value(0, 0)?;
    if many == 0 {
        return Ok(Carried::default());
    }
    live.query(&set("set local", &OF_BOTH))?;
    live.query(STAGING)?;
    let mut stream = live.beside(from, None, true)?;
    live.ask_beside(&mut stream, &set("set", &OF_BOTH))?;
    for (what, place) in [(OBJECTS, "pitr_objects"), (PAGES, "pitr_pages")] {
        let out = format!("copy ({}) to stdout", what.replace("{named}", &named));
        let arrives = format!("copy pg_temp.{place} from stdin");
        let tick = &mut || session.host.check_stop();
        live.copy_from(&mut stream, (&out, &arrives), tick)?;
    }
    if let Some(arrived) = arrived {
        let named = columns.numbers(Some(arrived));
        live.query(&format!(
            "delete from pg_temp.pitr_objects where oid not in (select oid from ({named}) n (oid) where oid is not null)"
        ))?;
    }
    let all = count(live)?;
    let different = different(live)?;
    live.query(FORGET_PRESENT)?;
    let made = make(live)?;
    let present = all.saturating_sub(made);
    Ok(Carried {
        made,
        same: present.saturating_sub(different.len() as u64),
        different,
    })
}

/// Removes the objects that a session has made and committed, for nothing names them.
///
/// # Errors
/// Those of [`Server::query`].
pub fn unmake(live: &mut Server) -> Result<()> {
    loop {
        let gone: u64 = live.query(UNMAKE)?.value(0, 0)?;
        if gone == 0 {
            return Ok(());
        }
    }
}

/// Makes the objects that the live server lacks, and reads them back.
fn make(live: &mut Server) -> Result<u64> {
    let made = count(live)?;
    live.query(MAKE)?;
    live.query(FILL)?;
    let wrong = different(live)?;
    if !wrong.is_empty() {
        return Err(err!(
            Server,
            "large objects have other content than they were given: {wrong:?}"
        ));
    }
    let rights = live.query("select pg_catalog.format('alter large object %s owner to %s', oid, owner), grants from pg_temp.pitr_objects where owner <> pg_catalog.quote_ident(current_user) or grants is not null")?;
    for row in 0..rights.rows.len() {
        for column in 0..2 {
            if let Some(statement) = rights.text(row, column)? {
                live.query(statement).map_err(|e| e.hint(NO_RIGHTS))?;
            }
        }
    }
    Ok(made)
}

fn count(live: &mut Server) -> Result<u64> {
    live.query("select count(*) from pg_temp.pitr_objects")?
        .value(0, 0)
}

/// The numbers under which the live server has other content than the moment.
fn different(live: &mut Server) -> Result<Vec<u32>> {
    let found = live.query(DIFFERENT)?;
    let each = (0..found.rows.len()).map(|row| found.value(row, 0));
    each.collect()
}
