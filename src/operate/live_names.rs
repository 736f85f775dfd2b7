//! The names that the server knows now.

use std::collections::BTreeSet;

use super::server::Server;
use crate::backup::relations::OWN_NAMES;
use crate::err;
use crate::error::Result;
use crate::find::names::{Known, Names};

/// Relations that are asked for at once: an answer has a limit.
const AT_ONCE: usize = 20_000;

/// The relations behind an oid, each with the file that it has.
fn relations_behind(oid: u32) -> String {
    format!(
        "select c.oid, coalesce(pg_catalog.pg_relation_filenode(c.oid), 0), n.nspname, c.relname, c.relkind, \
         case when c.relisshared then 1 else 0 end \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where c.oid > {oid} order by c.oid limit {AT_ONCE}"
    )
}

/// Asks the server for the names in some of its databases, by their oids.
///
/// # Errors
/// Those of [`Server::connect`]; `WrongCluster` where another cluster answers.
pub fn ask(conninfo: &str, system_identifier: u64, databases: &BTreeSet<u32>) -> Result<Names> {
    of(
        &mut |database| Server::connect_to(conninfo, database),
        system_identifier,
        databases,
    )
}

/// As [`ask`], over the connections that `connect` makes: to a database that is named, and first to any.
///
/// # Errors
/// As [`ask`].
pub fn of(
    connect: &mut dyn FnMut(Option<&str>) -> Result<Server>,
    system_identifier: u64,
    databases: &BTreeSet<u32>,
) -> Result<Names> {
    let mut server = connect(None)?;
    server.query(OWN_NAMES)?;
    let own = server.query("select system_identifier from pg_catalog.pg_control_system()")?;
    let own: u64 = own.value::<i64>(0, 0)?.cast_unsigned();
    if own != system_identifier {
        return Err(err!(
            WrongCluster,
            "the server that answers has system identifier {own}, not {system_identifier}"
        ));
    }
    let mut names = Names::default();
    let listed = server.query(
        "select oid, datname, datallowconn and datconnlimit <> -2 from pg_catalog.pg_database",
    )?;
    for row in 0..listed.rows.len() {
        let oid: u32 = listed.value(row, 0)?;
        let name: String = listed.value(row, 1)?;
        names.add_database(oid, name.clone());
        if databases.contains(&oid) && listed.text(row, 2)? == Some("t") {
            relations(&mut connect(Some(&name))?, oid, &mut names)?;
        }
    }
    Ok(names)
}

fn relations(server: &mut Server, database: u32, names: &mut Names) -> Result<()> {
    server.query(OWN_NAMES)?;
    let schemas = server.query("select oid, nspname from pg_catalog.pg_namespace")?;
    for row in 0..schemas.rows.len() {
        names.add_schema(database, schemas.value(row, 0)?, schemas.value(row, 1)?);
    }
    let mut last = 0;
    loop {
        let listed = server.query(&relations_behind(last))?;
        for row in 0..listed.rows.len() {
            let is_shared = listed.value::<u32>(row, 5)? == 1;
            last = listed.value(row, 0)?;
            let known = Known {
                oid: last,
                file: listed.value(row, 1)?,
                schema: listed.value(row, 2)?,
                name: listed.value(row, 3)?,
                kind: listed.value(row, 4)?,
            };
            names.add(if is_shared { 0 } else { database }, known);
        }
        if listed.rows.len() < AT_ONCE {
            return Ok(());
        }
    }
}
