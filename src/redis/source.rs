//! The server whose data set is backed up.

use std::time::{Duration, Instant};

use super::connection::{Connection, Tick, Way};
use super::info::{Info, REPLICA, SECTIONS};
use super::resp::Reply;
use super::version::ServerVersion;
use crate::config::Secret;
use crate::err;
use crate::error::{Code, Error, Result};

const GLANCE: Duration = Duration::from_millis(50);

/// A server, as one connection sees it.
pub struct Source {
    pub connection: Connection,
    /// Its own account of itself.
    pub info: Info,
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

    /// Connects once the server has loaded its data set, however long that takes. It may take `patience` to answer at all; `check` is asked before each attempt.
    ///
    /// # Errors
    /// Those of `check`; those of a server that does not answer in time.
    pub fn loaded(
        (way, password): (&Way, Option<&Secret>),
        patience: Duration,
        check: &mut dyn FnMut() -> Result<()>,
        tick: Tick<'_>,
    ) -> Result<Source> {
        let began = Instant::now();
        loop {
            check()?;
            match Source::connect(way.clone(), password, tick) {
                Ok(source) if !source.info.is_on("loading") => return Ok(source),
                Err(e) if e.code() == Code::Interrupted => return Err(e),
                // One that loads answers, and says so, unless a large key keeps it from that.
                Err(e) if e.code() == Code::Deadline || e.to_string().contains("loading") => {}
                Err(e) if began.elapsed() > patience => return Err(e),
                _ => {}
            }
            std::thread::sleep(GLANCE);
        }
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::RedisAddress;

    /// A server that says nothing to its first client for longer than that one waits: it loads a large key.
    #[test]
    fn r197_a_server_that_is_silent_while_it_loads_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let silent = listener.accept().unwrap();
            let (mut client, _) = listener.accept().unwrap();
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = client.read(&mut bytes) {
                let asked = String::from_utf8_lossy(&bytes[..length]).to_ascii_uppercase();
                let text = "redis_version:7.0.15\r\nloading:0\r\n";
                let answer = match asked.contains("INFO") {
                    true => format!("${}\r\n{text}\r\n", text.len()),
                    false => "+PONG\r\n".to_owned(),
                };
                client.write_all(answer.as_bytes()).unwrap();
            }
            drop(silent);
        });
        let way = Way {
            address: RedisAddress::Unix(socket),
            tls: None,
            stall_timeout: Duration::from_millis(300),
            user: None,
        };
        let patience = Duration::from_millis(100);
        let mut asked = 0;
        let mut check = || {
            asked += 1;
            Ok(())
        };
        let source = Source::loaded((&way, None), patience, &mut check, &mut || Ok(()));
        assert_eq!(source.unwrap().version.text(), "7.0.15");
        assert_eq!(asked, 2);
        server.join().unwrap();
    }
}
