//! The server whose databases are dumped.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::runtime::Runtime;

use super::spool::Spool;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::text::unhex;
use crate::wire::client::Rows;
use crate::wire::conninfo::{ConnInfo, Environment};
use crate::wire::runtime;
use crate::wire::server_error::sqlstate;
use crate::wire::service_file::service_file;
use crate::wire::sql::{Sql, is_own_limit};
use crate::wire::stop::unless_stopped;

/// `character_not_in_repertoire`: the code of a server in SQL_ASCII for bytes that are not UTF-8.
const NOT_UTF8: &str = "22021";

/// A session for SQL that ends when the operator wants to stop.
pub struct SqlSession {
    runtime: Runtime,
    sql: Sql,
    stop: Arc<AtomicBool>,
}

impl SqlSession {
    /// Connects to the first host that will do.
    ///
    /// # Errors
    /// Those of [`Sql::connect`]; `Interrupted`.
    pub fn connect(
        info: &ConnInfo,
        progress: &Arc<dyn Progress>,
        stop: &Arc<AtomicBool>,
    ) -> Result<SqlSession> {
        let runtime = runtime::start()?;
        let connecting = Sql::connect(info, Arc::clone(progress));
        let sql = runtime.block_on(unless_stopped(stop, connecting))?;
        let mut session = SqlSession {
            runtime,
            sql,
            stop: Arc::clone(stop),
        };
        // The owner of a database sets its search_path, and could offer operators of their own. Backslashes in names mean themselves in
        // later queries alone: a server reads all statements of a query before it runs the first one.
        session.query("set search_path = pg_catalog; set standard_conforming_strings = on")?;
        Ok(session)
    }

    /// Runs statements.
    ///
    /// # Errors
    /// Those of [`Sql::query`]; `Interrupted`.
    pub fn query(&mut self, sql: &str) -> Result<Rows> {
        let asked = self.sql.query(sql);
        self.runtime.block_on(unless_stopped(&self.stop, asked))
    }

    /// Returns which name has made a query fail, where one is not UTF-8. `names` asks for the number of each object and its name, by `textsend` in
    /// hexadecimal. Names are read as bytes from then on.
    pub(super) fn name_not_utf8(&mut self, failed: &Error, names: &str) -> Option<String> {
        if sqlstate(failed) != Some(NOT_UTF8) && !is_own_limit(failed) {
            return None;
        }
        // A server checks no byte for such a client.
        self.query("set client_encoding = 'SQL_ASCII'").ok()?;
        let rows = self.query(names).ok()?;
        (0..rows.rows.len()).find_map(|row| {
            let name = unhex(rows.text(row, 1).ok()??)?;
            let oid: u32 = rows.value(row, 0).ok()?;
            let is_utf8 = std::str::from_utf8(&name).is_ok();
            (!is_utf8).then(|| format!("\"{}\" (OID {oid})", name.escape_ascii()))
        })
    }

    /// The session, for what it knows by itself.
    pub fn session(&self) -> &Sql {
        &self.sql
    }
}

/// A database of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    pub name: String,
    pub oid: u32,
    pub encoding: String,
}

/// The server, as one session saw it.
pub struct Source {
    /// The connection string; it may hold a password.
    conninfo: crate::config::Secret,
    info: ConnInfo,
    /// Identity of the cluster.
    pub system_identifier: u64,
    /// The server's major.
    pub major: Major,
    /// The server's version as it names it itself.
    pub version: String,
    /// Whether it is a standby.
    pub is_standby: bool,
    /// Whether the role is a superuser, who may read password hashes.
    pub is_superuser: bool,
    /// Databases that are dumped.
    pub databases: Vec<Database>,
}

impl Source {
    /// Connects, and finds the databases: `wanted`, else all that take connections.
    ///
    /// # Errors
    /// Those of [`ConnInfo::resolve`] and [`SqlSession::connect`]; `NotFound` for a database that does not exist.
    pub fn connect(
        conninfo: &str,
        wanted: &[String],
        progress: &Arc<dyn Progress>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Source> {
        let mut info = ConnInfo::resolve(conninfo, &Environment::of_process())?;
        let mut session = SqlSession::connect(&info, progress, stop)?;
        info.hosts = vec![session.session().place().clone()];
        let rows = session.query(
            "select (select system_identifier from pg_catalog.pg_control_system()), pg_catalog.pg_is_in_recovery(), \
             (select rolsuper from pg_catalog.pg_roles where rolname = current_user)",
        )?;
        let is_true = |column| Ok::<_, Error>(rows.text(0, column)? == Some("t"));
        let (is_standby, is_superuser) = (is_true(1)?, is_true(2)?);
        let system_identifier = rows.value(0, 0)?;
        let databases = databases(&mut session, wanted)?;
        Ok(Source {
            conninfo: crate::config::Secret::new(conninfo.to_owned()),
            system_identifier,
            major: session.session().major()?,
            version: session.session().server_version().to_owned(),
            is_standby,
            is_superuser,
            databases,
            info,
        })
    }

    /// The settings of a session in one database, on the very server that was reached first.
    pub fn info_of(&self, database: &str) -> ConnInfo {
        ConnInfo {
            dbname: Some(database.to_owned()),
            ..self.info.clone()
        }
    }

    /// The database that the connection string names, where roles and tablespaces are read.
    pub fn home(&self) -> &str {
        self.info.dbname.as_deref().unwrap_or("postgres")
    }

    /// Writes the service file for client programs.
    ///
    /// # Errors
    /// Those of [`service_file`]; errors of the system.
    pub fn write_service(&self, spool: &Spool) -> Result<std::path::PathBuf> {
        write_service(self.conninfo.expose(), &self.info, spool)
    }
}

/// Writes a service file for the first host of `info`.
///
/// # Errors
/// Those of [`service_file`]; errors of the system.
pub fn write_service(conninfo: &str, info: &ConnInfo, spool: &Spool) -> Result<std::path::PathBuf> {
    let host = info.hosts.first();
    let host = host.ok_or_else(|| err!(Internal, "no host is known"))?;
    let text = service_file(conninfo, &Environment::of_process(), host)?;
    spool.file("service", text.as_bytes())
}

fn databases(session: &mut SqlSession, wanted: &[String]) -> Result<Vec<Database>> {
    let all = listed(session, wanted).map_err(|e| {
        let names = "select oid, encode(textsend(datname::text), 'hex') from pg_database where datallowconn order by 1";
        match session.name_not_utf8(&e, names) {
            Some(name) => err!(Server, "the name of database {name} is not UTF-8").source(e).hint(
                "Nothing was stored. Rename it, or let databases of [logical.NAME] name the others.",
            ),
            None => e,
        }
    })?;
    let Some(absent) = wanted.iter().find(|w| !all.iter().any(|d| d.name == **w)) else {
        return Ok(all);
    };
    let error = err!(
        NotFound,
        "the server has no database \"{absent}\" that takes connections"
    );
    // A name of another database may be one that cannot be read.
    Err(match listed(session, &[]) {
        Ok(known) => {
            let known: Vec<&str> = known.iter().map(|d| d.name.as_str()).collect();
            error.hint(format!("Nothing was stored. Known: {}", known.join(", ")))
        }
        Err(_) => error.hint("Nothing was stored."),
    })
}

/// The databases that take connections: those of these names, or all. Names of others are not read, for they need not be UTF-8.
fn listed(session: &mut SqlSession, wanted: &[String]) -> Result<Vec<Database>> {
    let names = wanted
        .iter()
        .map(|name| format!("'{}'", name.replace('\'', "''")));
    let names = names.collect::<Vec<_>>().join(", ");
    let is_wanted = match wanted.is_empty() {
        true => String::new(),
        false => format!(" and datname in ({names})"),
    };
    let rows = session.query(&format!(
        "select datname, oid, pg_catalog.pg_encoding_to_char(encoding) from pg_catalog.pg_database \
         where datallowconn and datconnlimit <> -2 and datname <> 'template0'{is_wanted} order by datname",
    ))?;
    let mut all = Vec::new();
    for row in 0..rows.rows.len() {
        all.push(Database {
            name: rows.value(row, 0)?,
            oid: rows.value(row, 1)?,
            encoding: rows.value(row, 2)?,
        });
    }
    Ok(all)
}

/// Whether a file is there and has content.
pub(super) fn size_of(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path)
        .map_err(|e| Error::from_io(format!("look at \"{}\"", path.display()), e))?;
    Ok(metadata.len())
}
