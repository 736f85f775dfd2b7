//! The connection to a server: conninfo, TLS, authentication, simple queries, `BASE_BACKUP`, and WAL as a stream.
//!
//! A thin client of its own on postgres-protocol, because replication needs what tokio-postgres leaves out. One set of rules holds for
//! every connection: conninfo, password file, TLS, channel binding, error hints. Plain SQL is then left to tokio-postgres (`sql`).
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use pitr::{error::Result, progress::Silent, wire::{client::{Client, Session}, conninfo::{ConnInfo, Environment}}};
//! # async fn example() -> Result<()> {
//! let info = ConnInfo::resolve("host=db1 user=backup", &Environment::of_process())?;
//! let mut client = Client::connect(&info, Session::Replication, Arc::new(Silent)).await?;
//! let identity = client.identify_system().await?;
//! # let _ = identity; Ok(()) }
//! ```

mod auth;
pub mod backoff;
pub mod basebackup;
pub mod client;
mod connect;
pub mod conninfo;
mod message;
mod passfile;
pub mod replication;
pub mod runtime;
pub mod server_error;
pub mod service_file;
pub mod slot;
pub mod sql;
pub mod stop;
pub mod tar;
pub mod tls;
mod uri;
