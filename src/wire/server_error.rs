//! The server's messages about trouble: `ErrorResponse` and `NoticeResponse`, and the [`Error`] that follows from one.
//!
//! PostgreSQL: doc/src/sgml/protocol.sgml (error and notice message fields), src/backend/utils/errcodes.txt.

use std::error::Error as StdError;
use std::fmt;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

use crate::err;
use crate::error::{Code, Error};

/// `invalid_authorization_specification`: no pg_hba.conf line, no such role, role may not log in.
pub(super) const INVALID_AUTHORIZATION: &str = "28000";
/// `invalid_password`.
pub(super) const INVALID_PASSWORD: &str = "28P01";
/// `insufficient_privilege`.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// `data_corrupted`: what `BASE_BACKUP` ends with when pages failed their checksum.
pub(super) const DATA_CORRUPTED: &str = "XX001";

/// One error, warning or notice of the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerMessage {
    /// `ERROR`, `FATAL`, `WARNING`, `NOTICE` …, never translated.
    pub severity: String,
    /// Five characters.
    pub sqlstate: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// The server's own advice.
    pub hint: Option<String>,
    /// The function of the server that reported it; never translated.
    pub routine: Option<String>,
}

impl ServerMessage {
    /// Reads the fields; what cannot be read is left out, because a message half understood is better than none.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Self {
        let mut message = ServerMessage::default();
        while let Ok(Some(field)) = fields.next() {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'V' => message.severity = value,
                b'S' if message.severity.is_empty() => message.severity = value,
                b'C' => message.sqlstate = value,
                b'M' => message.message = value,
                b'D' => message.detail = Some(value),
                b'H' => message.hint = Some(value),
                b'R' => message.routine = Some(value),
                _ => {}
            }
        }
        message
    }

    /// The consequence for the caller.
    fn code(&self) -> Code {
        match self.sqlstate.as_str() {
            INVALID_AUTHORIZATION | INVALID_PASSWORD | INSUFFICIENT_PRIVILEGE => Code::Denied,
            // Shutting down, crashed, starting up, all connections or walsenders in use.
            "57P01" | "57P02" | "57P03" | "53300" => Code::Unreachable,
            // A statement that connects elsewhere failed: dblink, postgres_fdw. Old poolers report their own trouble as an error, too.
            "08000" | "08001" | "08003" | "08006" if self.severity == "ERROR" => Code::Server,
            state if state.starts_with("08") => Code::Unreachable,
            _ => Code::Server,
        }
    }

    /// Makes the error of `doing` something (a verb and its object).
    pub(super) fn into_error(self, doing: &str) -> Error {
        let hint = self.hint.clone();
        let error = Error::new(self.code(), doing).source(self);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        match self.severity.as_str() {
            "WARNING" | "NOTICE" | "INFO" | "LOG" | "DEBUG" => Ok(()),
            _ => write!(f, " (SQLSTATE {})", self.sqlstate),
        }
    }
}

impl StdError for ServerMessage {}

/// The server's message behind an error, if a server caused it.
pub fn server_message(error: &Error) -> Option<&ServerMessage> {
    let mut source = StdError::source(error);
    while let Some(cause) = source {
        if let Some(message) = cause.downcast_ref() {
            return Some(message);
        }
        source = cause.source();
    }
    None
}

/// The SQLSTATE behind an error, if a server caused it.
pub fn sqlstate(error: &Error) -> Option<&str> {
    server_message(error).map(|message| message.sqlstate.as_str())
}

/// The facts that the hint about a refused connection has to name.
pub(super) struct Refused<'a> {
    pub user: &'a str,
    /// The database field of pg_hba.conf.
    pub database: &'a str,
    /// Our own address as the server sees it, `None` for a socket.
    pub address: Option<std::net::IpAddr>,
    pub encrypted: bool,
    pub replication: bool,
}

/// Makes the error of a refused connection, with the exact change that would let it through.
///
/// The server's routine tells the cases apart, because its messages are translated.
pub(super) fn refused(message: ServerMessage, connection: &Refused) -> Error {
    let hint = match (message.sqlstate.as_str(), message.routine.as_deref()) {
        (INVALID_PASSWORD, _) => Some(format!(
            "The password of role \"{}\" is wrong, or the role does not exist. Check PGPASSWORD, the password file and the connection \
             settings; set a new one with: ALTER ROLE {} PASSWORD '...';",
            connection.user,
            identifier(connection.user)
        )),
        (INVALID_AUTHORIZATION, Some("InitializeSessionUserId")) => Some(format!(
            "Name another role with user= in conninfo, or create this one: CREATE ROLE {0} LOGIN{1} PASSWORD '...'; or let it log in: ALTER ROLE {0} LOGIN;",
            identifier(connection.user),
            if connection.replication { " REPLICATION" } else { "" }
        )),
        (INVALID_AUTHORIZATION, Some("ClientAuthentication")) => Some(format!(
            "{} this line to pg_hba.conf on the server, then run SELECT pg_reload_conf(): {}",
            match (connection.address, connection.encrypted) {
                (Some(_), false) => "Connect with sslmode=require if there is a hostssl line for this role; or add",
                _ => "Add",
            },
            hba_line(connection)
        )),
        (INVALID_AUTHORIZATION, _) => Some(format!(
            "The server's authentication rules do not let this operating system user be role \"{}\". {} another role with user=, or \
             put a line with a password method before the present one in pg_hba.conf: {}",
            connection.user,
            match connection.address {
                None => "Run this as a user who may be, most often the server's (sudo -u postgres pitr …), name",
                Some(_) => "Name",
            },
            hba_line(connection)
        )),
        (INSUFFICIENT_PRIVILEGE, _) if connection.replication => Some(format!(
            "Give the role the right to replicate: ALTER ROLE {} REPLICATION;",
            identifier(connection.user)
        )),
        ("53300", _) if connection.replication => {
            Some("Wait for other backups and standbys to end, or raise max_wal_senders and restart the server.".to_owned())
        }
        _ => None,
    };
    let error = message.into_error("server refused the connection");
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The line of pg_hba.conf that lets this connection in.
fn hba_line(connection: &Refused) -> String {
    let (user, database) = (hba_name(connection.user), hba_name(connection.database));
    match connection.address {
        None => format!("local {database} {user} scram-sha-256"),
        Some(address) => {
            let kind = if connection.encrypted {
                "hostssl"
            } else {
                "host"
            };
            let bits = if address.is_ipv4() { 32 } else { 128 };
            format!("{kind} {database} {user} {address}/{bits} scram-sha-256")
        }
    }
}

fn hba_name(name: &str) -> String {
    let plain = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}

/// An identifier as SQL writes it, quoted where it has to be.
fn identifier(name: &str) -> String {
    let plain = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if plain && !name.is_empty() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// The error of a server that does not keep to the protocol.
pub(super) fn protocol(what: &str) -> Error {
    err!(Server, "server broke the protocol: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_the_exact_change() {
        let message = |sqlstate: &str, routine: &str| ServerMessage {
            sqlstate: sqlstate.into(),
            routine: Some(routine.into()),
            message: "no".into(),
            severity: "FATAL".into(),
            ..Default::default()
        };
        let mut connection = Refused {
            user: "Backup",
            database: "replication",
            address: Some("10.0.0.7".parse().unwrap()),
            encrypted: true,
            replication: true,
        };
        let error = refused(message("28000", "ClientAuthentication"), &connection);
        assert_eq!(error.code(), Code::Denied);
        assert!(
            error
                .hint_text()
                .unwrap()
                .ends_with("hostssl replication Backup 10.0.0.7/32 scram-sha-256")
        );
        assert_eq!(
            error.to_string(),
            "server refused the connection: no (SQLSTATE 28000)"
        );
        assert_eq!(sqlstate(&error), Some("28000"));
        connection.address = None;
        let error = refused(message("28000", "ClientAuthentication"), &connection);
        assert!(
            error
                .hint_text()
                .unwrap()
                .ends_with("local replication Backup scram-sha-256")
        );
        let error = refused(message("28000", "auth_failed"), &connection);
        assert!(error.hint_text().unwrap().contains("sudo -u postgres pitr"));
        let error = refused(message("42501", "InitPostgres"), &connection);
        assert!(
            error
                .hint_text()
                .unwrap()
                .ends_with("ALTER ROLE \"Backup\" REPLICATION;")
        );
        assert_eq!(
            refused(message("57P03", ""), &connection).code(),
            Code::Unreachable
        );
    }
}
