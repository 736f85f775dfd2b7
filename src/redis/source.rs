//! The server whose data set is backed up.

use super::connection::{Connection, Tick, Way};
use super::info::{Info, REPLICA, SECTIONS};
use super::resp::Reply;
use super::version::ServerVersion;
use crate::config::Secret;
use crate::err;
use crate::error::{Code, Error, Result};

/// A server, as one connection sees it.
pub struct Source {
    /// The connection.
    pub connection: Connection,
    /// Its own account of itself.
    pub info: Info,
    /// Its version.
    pub version: ServerVersion,
}

impl Source {
    /// Connects, and asks the server about itself.
    ///
    /// # Errors
    /// Those of [`Connection::open`]; those of the server, explained; those of `tick`.
    pub fn connect(way: Way, password: Option<&Secret>, tick: Tick<'_>) -> Result<Source> {
        let mut connection = Connection::open(way, password, tick)?;
        connection.ask(&[b"PING"], tick)?;
        let mut info = Info::default();
        for section in SECTIONS {
            info.add(&ask(&mut connection, section, tick)?);
        }
        let version = info.version()?;
        Ok(Source {
            connection,
            info,
            version,
        })
    }

    /// Asks for a section of its account of itself, as it is now.
    ///
    /// # Errors
    /// Those of the server and of the connection; those of `tick`.
    pub fn ask(&mut self, section: &str, tick: Tick<'_>) -> Result<Info> {
        let mut info = Info::default();
        info.add(&ask(&mut self.connection, section, tick)?);
        Ok(info)
    }

    /// Asks for a setting; none where the server does not know it.
    ///
    /// # Errors
    /// As [`Source::ask`].
    pub fn setting(&mut self, name: &'static str, tick: Tick<'_>) -> Result<Option<Secret>> {
        let words: [&[u8]; 3] = [b"CONFIG", b"GET", name.as_bytes()];
        let Reply::Array(pair) = self.connection.ask(&words, tick)? else {
            return Err(err!(Server, "the server does not answer to CONFIG GET"));
        };
        match pair.as_slice() {
            [] => Ok(None),
            [_, Reply::Bulk(Some(value))] => Ok(Some(Secret::new(
                String::from_utf8_lossy(value).into_owned(),
            ))),
            _ => Err(err!(Server, "the server does not answer to CONFIG GET")),
        }
    }

    /// Requires that it can give its data set now.
    ///
    /// # Errors
    /// `Unreachable` where it cannot yet; `Unsupported` for a server before histories.
    pub fn check_ready(&self) -> Result<()> {
        if self.version.release < (4, 0) {
            return Err(
                err!(Unsupported, "{} has no replication histories", self.version)
                    .hint("The oldest server that pitr backs up is Redis 4.0: upgrade it."),
            );
        }
        if self.info.is_on("loading") {
            return Err(self.connection.refused(&[b"PSYNC"], "LOADING"));
        }
        let is_cut_off = self.info.field("master_link_status") == Some("down");
        if self.role() == REPLICA && is_cut_off {
            return Err(self.connection.refused(&[b"PSYNC"], "MASTERDOWN"));
        }
        Ok(())
    }

    /// Requires the rights of a replica. The connection is of no more use.
    ///
    /// # Errors
    /// Those of the server, explained; those of `tick`.
    pub fn check_rights(mut self, tick: Tick<'_>) -> Result<()> {
        let (replconf, psync): ([&[u8]; 3], [&[u8]; 3]) =
            ([b"REPLCONF", b"capa", b"psync2"], [b"PSYNC", b"?", b"-1"]);
        self.connection.ask(&replconf, tick)?;
        // A server asks for the right first, and then refuses PSYNC while an answer to this client waits: it does not fork.
        self.connection.send_at_once(&[&[b"PING"], &psync])?;
        self.connection.reply(tick)?;
        match self.connection.reply(tick)? {
            Reply::Error(said) if !said.contains("pending output") => {
                Err(self.connection.refused(&psync, &said))
            }
            _ => Ok(()),
        }
    }

    /// Returns `master` or `replica`.
    pub fn role(&self) -> &'static str {
        self.info.role()
    }

    /// Whether it is one of the servers of a cluster.
    pub fn is_shard(&self) -> bool {
        self.info.is_on("cluster_enabled") || self.info.field("redis_mode") == Some("cluster")
    }
}

fn ask(connection: &mut Connection, section: &str, tick: Tick<'_>) -> Result<String> {
    match connection.ask(&[b"INFO", section.as_bytes()], tick)? {
        Reply::Bulk(Some(text)) => Ok(String::from_utf8_lossy(&text).into_owned()),
        _ => Err(err!(Server, "the server does not answer to INFO")),
    }
}

/// Adds to an error that nothing came of the backup.
pub fn no_backup(error: Error) -> Error {
    if error.code() == Code::Interrupted {
        return error;
    }
    let hint = match error.hint_text() {
        Some(hint) if hint.starts_with("No") => return error,
        Some(hint) => format!("No backup was made.\n{hint}"),
        None => "No backup was made.\nRun the command again.".to_owned(),
    };
    error.hint(hint)
}
