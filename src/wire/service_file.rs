//! Connection settings for the client programs of PostgreSQL, as a service file: no secret stands on a command line then.
//!
//! PostgreSQL: src/interfaces/libpq/fe-connect.c, parseServiceFile.

use super::conninfo::{Environment, Host, HostAddress, config, quoted, settings};
use crate::error::Result;

/// The service that the file defines.
pub const SERVICE: &str = "pitr";

/// Settings that choose a server or a database, and those that concern this program alone.
const LEFT_OUT: [&str; 10] = [
    "service",
    "servicefile",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "target_session_attrs",
    "load_balance_hosts",
    "replication",
    "client_encoding",
];

/// Returns a service file with the settings of `conninfo` for the one server that was reached.
///
/// A snapshot is known to its own server alone, so the file never has a choice of hosts.
///
/// # Errors
/// `Config` for what the string cannot mean, and for a value that a service file cannot hold. No message has a value.
pub fn service_file(conninfo: &str, environment: &Environment, host: &Host) -> Result<String> {
    let mut settings = settings(conninfo, environment)?;
    settings.retain(|name, value| !LEFT_OUT.contains(name) && !value.is_empty());
    settings.insert("port", host.port.to_string());
    match &host.address {
        HostAddress::Socket(directory) => {
            settings.insert("host", directory.display().to_string());
        }
        HostAddress::Tcp { name, address } => {
            settings.insert("host", name.clone());
            if let Some(address) = address {
                settings.insert("hostaddr", address.to_string());
            }
        }
    }
    let mut text = format!("[{SERVICE}]\n");
    for (name, value) in &settings {
        // libpq cuts white space at the end of a line.
        if value.contains(['\n', '\r', '\0']) || value.trim_end() != value.as_str() {
            return Err(config(format!(
                "the value of \"{name}\" ends in white space or has a line break, which pg_dump cannot be given"
            ))
            .hint("Nothing was done. Change the value, or put the password into a password file."));
        }
        text.push_str(&format!("{name}={value}\n"));
    }
    Ok(text)
}

/// Returns the connection string by which a program uses the service, in one database.
pub fn in_database(database: &str) -> String {
    format!("service={SERVICE} dbname={}", quoted(database))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::conninfo::ConnInfo;

    fn file(conninfo: &str) -> Result<String> {
        let environment = Environment {
            user: Some("me".into()),
            ..Environment::default()
        };
        let info = ConnInfo::resolve(conninfo, &environment).unwrap();
        service_file(conninfo, &environment, info.hosts.last().unwrap())
    }

    #[test]
    fn the_server_that_was_reached_is_the_only_one() {
        let text = file("host=a,/run/b port=5432,5433 user=u password=secret dbname=x").unwrap();
        assert_eq!(
            text,
            "[pitr]\nhost=/run/b\npassword=secret\nport=5433\nuser=u\n"
        );
        let text = file("postgresql://u:p%20w@db:6000/x?sslmode=require").unwrap();
        assert_eq!(
            text,
            "[pitr]\nhost=db\npassword=p w\nport=6000\nsslmode=require\nuser=u\n"
        );
    }

    #[test]
    fn a_value_that_a_line_cannot_hold_is_refused_and_not_shown() {
        for conninfo in ["password='secret '", "password='secret\nuser=other'"] {
            let refused = file(&format!("host=a user=u {conninfo}")).unwrap_err();
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }

    #[test]
    fn names_of_databases_are_quoted() {
        assert_eq!(in_database("a'b\\c"), "service=pitr dbname='a\\'b\\\\c'");
    }
}
