//! A connection for verbs that only ask the server something: plain SQL, one statement after the other.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::wire::client::{Client, Rows, Session};
use crate::wire::conninfo::{ConnInfo, Environment};

/// A connection, and the runtime that drives it.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Server {
    /// Connects with libpq's settings; what `conninfo` leaves out comes from libpq's environment.
    ///
    /// # Errors
    /// Those of [`ConnInfo::resolve`] and [`Client::connect`].
    pub fn connect(
        conninfo: &str,
        session: Session,
        progress: Arc<dyn Progress>,
    ) -> Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::from_io("start the runtime", e))?;
        let info = ConnInfo::resolve(conninfo, &Environment::of_process())?;
        let client = runtime.block_on(Client::connect(&info, session, progress))?;
        Ok(Server { runtime, client })
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// Those of [`Client::query`].
    pub fn query(&mut self, sql: &str) -> Result<Rows> {
        self.runtime.block_on(self.client.query(sql))
    }

    /// The connection, for what it knows by itself.
    pub fn client(&self) -> &Client {
        &self.client
    }
}
