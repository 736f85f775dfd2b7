//! Whole tables, schemas and databases, by pg_dump and pg_restore of the moment's major.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::What;
use super::tables::{Table, identifier, literal};
use crate::config::secret::Secret;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::logical::{read_check, tool};
use crate::operate::clone::{Running, folder::Folder, namespace};
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::wire::conninfo::Environment;
use crate::wire::service_file::{in_database, service_file};

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
    let search = session.environment.get("PATH");
    let tool = running.programs.client("pg_dump", search)?;
    let mut command = tool.command(None);
    command.args(["--format=custom", "--no-password", "--strict-names"]);
    command.arg("--file").arg(path);
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
    let conninfo = running.server.conninfo(database);
    command.arg("--dbname").arg(conninfo);
    // The program would make it for everybody to read.
    make_private(path)?;
    let warnings = tool::run(&mut command, &mut || session.host.check_stop());
    // An archive that ends early is none.
    let warnings = warnings.inspect_err(|_| drop(std::fs::remove_file(path)))?;
    for warning in warnings {
        session.warn(&warning);
    }
    let synced = File::open(path).and_then(|file| durable::sync_file(&file));
    let synced = synced.and_then(|()| durable::sync_directory_at(path.parent().unwrap_or(path)));
    synced.map_err(|e| Error::from_io(format!("sync \"{}\"", path.display()), e))
}

/// Requires that an archive has the rows of tables; `scratch` is a file for its contents.
///
/// # Errors
/// `Server` where it has not, after which the archive is gone; those of [`read_check::contents`].
pub fn check_archive(
    session: &Session,
    running: &Running<'_>,
    (archive, scratch): (&Path, &Path),
    tables: &[Table],
) -> Result<()> {
    let search = session.environment.get("PATH");
    let tool = running.programs.client("pg_restore", search)?;
    let tick = &mut || session.host.check_stop();
    let list = read_check::contents(&tool, archive, &[], scratch, tick)?;
    let listed: HashSet<u32> = list.lines().filter_map(table_data).collect();
    let mut counted = tables.iter().filter(|table| table.has_rows());
    let lacking = counted.find(|table| !listed.contains(&table.oid));
    match lacking {
        None => Ok(()),
        Some(table) => {
            let _ = std::fs::remove_file(archive);
            Err(err!(Server, "the archive does not have the rows of {}", table.shown())
                .hint("No file was kept. Rows alone can be had in a live server: --into CONNINFO --as NAME"))
        }
    }
}

/// The oid of the table whose rows a line of an archive's contents names.
///
/// PostgreSQL: src/bin/pg_dump/pg_backup_archiver.c, `PrintTOCSummary`.
fn table_data(line: &str) -> Option<u32> {
    let (_, entry) = line.split_once("; ")?;
    let mut words = entry.split(' ');
    let (_, oid) = (words.next()?, words.next()?);
    let is_data = (words.next()?, words.next()?) == ("TABLE", "DATA");
    oid.parse().ok().filter(|_| is_data)
}

/// Makes a file that nobody but its owner reads.
fn make_private(path: &Path) -> Result<()> {
    let mut options = File::options();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    made.map(drop)
        .map_err(|e| Error::from_io(format!("make \"{}\"", path.display()), e))
}

/// Removes schemas that nothing came into. A session of its own does that also where the operator has ended the other one.
fn drop_schemas(conninfo: &Secret, made: &[&str]) {
    let Ok(mut live) = Server::connect(conninfo.expose()) else {
        return;
    };
    for schema in made {
        // Somebody may have put something there meanwhile: then it stays.
        let _ = live.query(&format!("drop schema {}", identifier(schema)));
    }
}

/// The statements that make a schema as the moment has it: one transaction.
fn schema_of(source: &mut Server, schema: &str) -> Result<String> {
    let named = format!("n.nspname = {}", literal(schema));
    let owner: String = source
        .query(&format!("select pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(n.nspowner)) from pg_catalog.pg_namespace n where {named}"))?
        .value(0, 0)?;
    let schema = identifier(schema);
    let mut statements = vec![format!("create schema {schema} authorization {owner}")];
    let grants = source.query(&format!(
        "select pg_catalog.format('grant %s on schema %s to %s%s', a.privilege_type, {}, case a.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) end, case when a.is_grantable then ' with grant option' else '' end) from pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a where {named} and a.grantee <> n.nspowner",
        literal(&schema)
    ))?;
    statements.extend(grants.texts(0)?);
    Ok(statements.join("; "))
}

/// Brings an archive into a live server, in one transaction.
///
/// # Errors
/// `Refused` for a live server that is older; those of [`tool::run`].
pub fn restore(
    session: &Session,
    running: &Running<'_>,
    (folder, archive): (&Folder, &Path),
    (source, conninfo, live): (&mut Server, &Secret, &mut Server),
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
        let named = literal(schema);
        let there = format!("select 1 from pg_catalog.pg_namespace where nspname = {named}");
        if live.query(&there)?.rows.is_empty() {
            live.query(&schema_of(source, schema)?)?;
            made.push(schema);
        }
    }
    let service = folder.path().join("service");
    let (environment, place) = (Environment::of_process(), live.session().place());
    let text = service_file(conninfo.expose(), &environment, place)?;
    // The folder is this user's alone.
    std::fs::write(&service, text).map_err(|e| Error::from_io("write the service file", e))?;
    let search = session.environment.get("PATH");
    let tool = running.programs.client("pg_restore", search)?;
    // It ends with this process. Else it would wait on for a lock of the live server, and restore long after this process was killed.
    let mut command = tool.command_under(&namespace::tied(), Some(&service));
    command.args(["--single-transaction", "--exit-on-error", "--no-password"]);
    let mut waiting = Waiting::new();
    let within = in_database(&database);
    let target = format!("{within} application_name={}", waiting.name);
    command.arg("--dbname").arg(target).arg(archive);
    let mut tick = || {
        session.host.check_stop()?;
        waiting.check(live)
    };
    let warnings = tool::run_as("pg_restore", &mut command, &mut tick).map_err(|e| {
        drop_schemas(conninfo, &made);
        if e.code() == Code::Locked {
            return e;
        }
        e.hint("Nothing was changed: all of it arrives, or nothing. A role that is gone has to be created first; what else is in the way can be seen with --to FILE and pg_restore.")
    })?;
    for warning in warnings {
        session.warn(&warning);
    }
    for schema in made {
        session.note(&format!(
            "schema {schema} was not there any more; it was created, with the owner and the grants that it had"
        ));
    }
    Ok(())
}

/// How long `pg_restore` may wait for a lock of the live server, as a session for rows may.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often the live server is asked.
const EACH: Duration = Duration::from_secs(1);

/// Ends `pg_restore` when it waits for a lock too long: whoever comes after it waits behind it. No setting does that, for every archive sets
/// `lock_timeout` to 0.
///
/// PostgreSQL: src/bin/pg_dump/pg_backup_archiver.c, `_doSetFixedOutputState`.
struct Waiting {
    /// The name of its session.
    name: String,
    asked: Instant,
    since: Option<Instant>,
}

impl Waiting {
    fn new() -> Waiting {
        Waiting {
            name: format!("pitr_rescue_{}", std::process::id()),
            asked: Instant::now(),
            since: None,
        }
    }

    fn check(&mut self, live: &mut Server) -> Result<()> {
        if self.asked.elapsed() < EACH {
            return Ok(());
        }
        self.asked = Instant::now();
        let own = format!(
            "from pg_catalog.pg_stat_activity where application_name = {} and wait_event_type = 'Lock'",
            literal(&self.name)
        );
        let waits = live.query(&format!(
            "select pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(pid), ', ') {own}"
        ))?;
        if waits.rows.is_empty() {
            self.since = None;
            return Ok(());
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() < LOCK_WAIT {
            return Ok(());
        }
        let holders = waits.text(0, 0)?.unwrap_or_default().to_owned();
        // A session that waits for a lock does not notice that its client has gone.
        live.query(&format!(
            "select pg_catalog.pg_terminate_backend(pid) {own}"
        ))?;
        Err(err!(
            Locked,
            "pg_restore waits for a lock that another session holds (process {holders})"
        )
        .hint("Nothing was changed. End that session, or let it end, and try again."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_a_table_are_found_in_the_contents_of_an_archive() {
        assert_eq!(
            table_data("3456; 0 16385 TABLE DATA public t postgres"),
            Some(16385)
        );
        assert_eq!(table_data("216; 1259 16385 TABLE public t postgres"), None);
        assert_eq!(table_data("; Selected TOC Entries:"), None);
    }
}
