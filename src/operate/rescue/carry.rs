//! Whole tables, schemas and databases, by pg_dump and pg_restore of the moment's major.

use std::fs::File;
use std::path::Path;

use super::What;
use super::tables::{Table, identifier};
use crate::config::secret::Secret;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::logical::tool::{self, Tool};
use crate::operate::clone::{Running, folder::Folder};
use crate::operate::programs::Programs;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::wire::conninfo::Environment;
use crate::wire::service_file::{in_database, service_file};

fn program(programs: &Programs, name: &str) -> Result<Tool> {
    let path = programs.program(name);
    match path.is_file() {
        true => Ok(Tool {
            path,
            major: programs.major,
            version: programs.version.clone(),
        }),
        false => Err(err!(NotFound, "\"{}\" does not exist", path.display())
            .hint("Nothing was done. Install the client programs of that PostgreSQL beside the server's.")),
    }
}

/// Writes an archive of what is meant.
///
/// # Errors
/// Those of [`tool::run`]; `Io`.
pub fn dump(
    session: &Session,
    running: &Running<'_>,
    (database, what, tables): (&str, &What, &[Table]),
    path: &Path,
) -> Result<()> {
    let tool = program(running.programs, "pg_dump")?;
    let mut command = tool.command(None);
    command.args([
        "--format=custom",
        "--no-password",
        "--strict-names",
        "--file",
    ]);
    command.arg(path);
    match what {
        What::Tables(_) => {
            for table in tables {
                command.arg(format!("--table={}", table.quoted()));
            }
        }
        What::Schema(schema) => {
            command.arg(format!("--schema={}", identifier(schema)));
        }
        What::Database => {}
    }
    command
        .arg("--dbname")
        .arg(running.server.conninfo(database));
    let warnings = tool::run(&mut command, &mut || session.host.check_stop());
    let warnings = warnings.inspect_err(|_| {
        // An archive that ends early is none.
        let _ = std::fs::remove_file(path);
    })?;
    for warning in warnings {
        session.warn(&warning);
    }
    let synced = File::open(path).and_then(|file| durable::sync_file(&file));
    let synced = synced.and_then(|()| durable::sync_directory_at(path.parent().unwrap_or(path)));
    synced.map_err(|e| Error::from_io(format!("sync \"{}\"", path.display()), e))
}

/// Brings an archive into a live server, in one transaction.
///
/// # Errors
/// `Refused` for a live server that is older; those of [`tool::run`].
pub fn restore(
    session: &Session,
    running: &Running<'_>,
    (folder, archive): (&Folder, &Path),
    (conninfo, live): (&Secret, &mut Server),
    (what, tables): (&What, &[Table]),
) -> Result<()> {
    let (is, was) = (live.session().major()?, running.programs.major);
    if is < was {
        return Err(err!(
            Refused,
            "the live server is PostgreSQL {is}, and the moment is one of {was}"
        )
        .hint(
            "Nothing was done. Take a file, and look at what that server can read of it: --to FILE",
        ));
    }
    let database: String = live.query("select current_database()")?.value(0, 0)?;
    // An archive of a schema or of a database has its schemas, with owners and grants.
    let mut schemas: Vec<&str> = match what {
        What::Tables(_) => tables.iter().map(|table| table.schema.as_str()).collect(),
        What::Schema(_) | What::Database => Vec::new(),
    };
    schemas.dedup();
    let mut made = Vec::new();
    for schema in schemas {
        let there = format!(
            "select 1 from pg_catalog.pg_namespace where nspname = {}",
            super::tables::literal(schema)
        );
        if live.query(&there)?.rows.is_empty() {
            live.query(&format!("create schema {}", identifier(schema)))?;
            made.push(schema);
        }
    }
    let service = folder.path().join("service");
    let text = service_file(
        conninfo.expose(),
        &Environment::of_process(),
        live.session().place(),
    )?;
    // The folder is this user's alone.
    std::fs::write(&service, text).map_err(|e| Error::from_io("write the service file", e))?;
    let tool = program(running.programs, "pg_restore")?;
    let mut command = tool.command(Some(&service));
    command.args([
        "--single-transaction",
        "--exit-on-error",
        "--no-password",
        "--dbname",
    ]);
    command.arg(in_database(&database)).arg(archive);
    let warnings = tool::run(&mut command, &mut || session.host.check_stop()).map_err(|e| {
        for schema in &made {
            // Somebody may have put something there meanwhile: then it stays.
            let _ = live.query(&format!("drop schema {}", identifier(schema)));
        }
        e.hint("Nothing was changed: all of it arrives, or nothing. A role that is gone has to be created first; what else is in the way can be seen with --to FILE and pg_restore.")
    })?;
    for warning in warnings {
        session.warn(&warning);
    }
    for schema in made {
        session.note(&format!(
            "schema {schema} was not there any more; it was created, and belongs to the role of --into, without grants"
        ));
    }
    Ok(())
}
