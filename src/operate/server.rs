//! A connection for verbs that only ask the server something: plain SQL, one statement after the other.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::error::Result;
use crate::pg::timeline::{History, TimelineId};
use crate::pg::version::time_limits;
use crate::progress::Silent;
use crate::wire::client::{Client, Rows, Session, SystemIdentity};
use crate::wire::conninfo::{ConnInfo, Environment};
use crate::wire::runtime;
use crate::wire::sql::Sql;
use crate::wire::stop::{unless_stopped, within};

/// How long an answer may take that can be done without.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A session for SQL, and the runtime that drives it.
pub struct Server {
    runtime: Runtime,
    sql: Sql,
    /// Ends a question that is under way.
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Connects with libpq's settings; what `conninfo` leaves out comes from libpq's environment.
    ///
    /// # Errors
    /// Those of [`ConnInfo::resolve`] and [`Sql::connect`].
    pub fn connect(conninfo: &str) -> Result<Server> {
        Server::connect_to(conninfo, None)
    }

    /// As [`Server::connect`], to the database that is named.
    ///
    /// # Errors
    /// Those of [`Server::connect`].
    pub fn connect_to(conninfo: &str, database: Option<&str>) -> Result<Server> {
        let mut info = ConnInfo::resolve(conninfo, &Environment::of_process())?;
        if let Some(database) = database {
            info.dbname = Some(database.to_owned());
        }
        Server::open(&info)
    }

    /// Connects by `conninfo` alone: no variable, service or file of the caller leads elsewhere.
    ///
    /// # Errors
    /// Those of [`Server::connect`].
    pub fn connect_alone(conninfo: &str) -> Result<Server> {
        // The account gives the role that is not named, as for libpq.
        let environment = Environment {
            user: Environment::of_process().user,
            ..Environment::default()
        };
        Server::open(&ConnInfo::resolve(conninfo, &environment)?)
    }

    fn open(info: &ConnInfo) -> Result<Server> {
        let runtime = runtime::start()?;
        let sql = runtime.block_on(Sql::connect(info, Arc::new(Silent)))?;
        Ok(Server {
            runtime,
            sql,
            stop: Arc::default(),
        })
    }

    /// The same session, whose questions end when the operator wants to stop.
    pub fn heeding(self, stop: &Arc<AtomicBool>) -> Server {
        Server {
            stop: Arc::clone(stop),
            ..self
        }
    }

    /// The same session, which no time limit of the server, of its role or of its database ends.
    ///
    /// # Errors
    /// Those of [`Server::query`].
    pub fn without_time_limits(mut self) -> Result<Server> {
        let limits = time_limits(self.sql.version_num() / 10_000).iter();
        let lifted: Vec<String> = limits.map(|name| format!("set {name} = 0")).collect();
        self.query(&lifted.join("; "))?;
        Ok(self)
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// Those of [`Sql::query`]; `Interrupted`, after which the session is of no use.
    pub fn query(&mut self, sql: &str) -> Result<Rows> {
        let asked = self.sql.query(sql);
        self.runtime.block_on(unless_stopped(&self.stop, asked))
    }

    /// Opens a second session on the same runtime, by `conninfo` alone where `is_alone`.
    ///
    /// # Errors
    /// Those of [`Server::connect`].
    pub fn beside(&self, conninfo: &str, database: Option<&str>, is_alone: bool) -> Result<Sql> {
        let environment = match is_alone {
            true => Environment::default(),
            false => Environment::of_process(),
        };
        let mut info = ConnInfo::resolve(conninfo, &environment)?;
        if let Some(database) = database {
            info.dbname = Some(database.to_owned());
        }
        self.runtime.block_on(Sql::connect(&info, Arc::new(Silent)))
    }

    /// Runs one statement in another session on the same runtime.
    ///
    /// # Errors
    /// Those of [`Server::query`].
    pub fn ask_beside(&self, other: &mut Sql, sql: &str) -> Result<Rows> {
        let asked = other.query(sql);
        self.runtime.block_on(unless_stopped(&self.stop, asked))
    }

    /// Copies rows from another session on the same runtime into this one.
    ///
    /// # Errors
    /// Those of [`Sql::copy_into`].
    pub fn copy_from(
        &mut self,
        other: &mut Sql,
        (out, command): (&str, &str),
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<u64> {
        let copied = other.copy_into(out, &mut self.sql, command, tick);
        self.runtime.block_on(copied)
    }

    /// The session, for what it knows by itself.
    pub fn session(&self) -> &Sql {
        &self.sql
    }
}

/// Asks a server for its identity over a connection for replication.
///
/// # Errors
/// Those of [`ConnInfo::resolve`], [`Client::connect`] and [`Client::identify_system`].
pub fn identify(conninfo: &str) -> Result<SystemIdentity> {
    let info = ConnInfo::resolve(conninfo, &Environment::of_process())?;
    runtime::start()?.block_on(identity(&info))
}

/// As [`identify`], where the answer can be done without: a server that stands still gives none.
///
/// # Errors
/// `Deadline`, `Interrupted`; those of [`identify`].
pub fn identify_soon(conninfo: &str, stop: &AtomicBool) -> Result<SystemIdentity> {
    let info = ConnInfo::resolve(conninfo, &Environment::of_process())?;
    runtime::start()?.block_on(within(ANSWER_LIMIT, stop, identity(&info)))
}

async fn identity(info: &ConnInfo) -> Result<SystemIdentity> {
    let mut client = Client::connect(info, Session::Replication, Arc::new(Silent)).await?;
    client.identify_system().await
}

/// Asks a server for the history of a timeline over a connection for replication.
///
/// # Errors
/// Those of [`ConnInfo::resolve`], [`Client::connect`] and [`Client::history`].
pub fn history(conninfo: &str, timeline: TimelineId) -> Result<History> {
    // A server whose role may not replicate is not asked without need.
    if timeline == TimelineId::FIRST {
        return Ok(History::root(timeline));
    }
    let info = ConnInfo::resolve(conninfo, &Environment::of_process())?;
    runtime::start()?.block_on(async {
        let mut client = Client::connect(&info, Session::Replication, Arc::new(Silent)).await?;
        client.history(timeline).await
    })
}
