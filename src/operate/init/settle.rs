//! The settings of a running server that archiving needs, and how far it is from them.

use std::time::{Duration, Instant};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::operate::server::Server;

/// The longest wait for a server that an operator restarts.
const RESTART_MAX: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(500);
/// The help for an operator who does not go on.
const LATER: &str = "Repository, configuration and settings are made. Restart the server, then run \"pitr backup\".";

/// The settings that count, as the server has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// `wal_level`, `archive_mode`, `archive_command`, `archive_timeout`, `archive_library`: empty where the server has none.
    values: Vec<(String, String)>,
    /// Whether it is a standby.
    is_standby: bool,
}

/// A setting to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The setting.
    pub name: &'static str,
    /// Its value now.
    pub from: String,
    /// Its value then.
    pub to: String,
}

impl Change {
    /// Whether it takes effect with the server's next start only.
    pub fn needs_restart(&self) -> bool {
        matches!(self.name, "wal_level" | "archive_mode")
    }

    /// Whether something else archives already.
    pub fn replaces_archiving(&self) -> bool {
        self.name == "archive_command" && !matches!(self.from.as_str(), "" | "(disabled)")
    }

    /// The statement that makes it.
    pub fn statement(&self) -> String {
        let to = self.to.replace('\'', "''");
        format!("alter system set {} = '{to}'", self.name)
    }
}

impl Standing {
    /// Asks the server.
    ///
    /// # Errors
    /// Errors of the server.
    pub fn read(server: &mut Server) -> Result<Standing> {
        let rows = server.query(
            "select name, setting from pg_catalog.pg_settings where name in \
             ('wal_level', 'archive_mode', 'archive_command', 'archive_timeout', 'archive_library')",
        )?;
        let mut values = Vec::new();
        for row in 0..rows.rows.len() {
            let text = |column| {
                rows.text(row, column)
                    .map(|t| t.unwrap_or_default().to_owned())
            };
            values.push((text(0)?, text(1)?));
        }
        let standby = server.query("select pg_catalog.pg_is_in_recovery()")?;
        Ok(Standing {
            values,
            is_standby: standby.text(0, 0)? == Some("t"),
        })
    }

    fn value(&self, name: &str) -> &str {
        let found = self.values.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// Refuses a server that these settings would not let archive.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn check(&self) -> Result<()> {
        if self.is_standby {
            return Err(err!(
                Refused,
                "the server is a standby: it does not archive before it is promoted"
            )
            .hint("No setting was changed. Run the command on the primary's host."));
        }
        match self.value("archive_library") {
            "" => Ok(()),
            library => Err(err!(Refused, "the server archives by archive_library \"{library}\", beside which archive_command counts for nothing")
                .hint("No setting was changed. Decide which of the two archives: alter system reset archive_library, then run the command again.")),
        }
    }

    /// Returns the settings that have to change. These values serve and stay: `wal_level = logical`,
    /// `archive_mode = always`, a time that is set.
    pub fn changes(&self, wanted: &[(&'static str, String)]) -> Vec<Change> {
        let is_enough = |name: &str, now: &str, then: &str| match name {
            "wal_level" => now == "replica" || now == "logical",
            "archive_mode" => now == "on" || now == "always",
            "archive_timeout" => now != "0",
            _ => now == then,
        };
        let lacking = wanted.iter();
        let lacking = lacking.filter(|(name, then)| !is_enough(name, self.value(name), then));
        let changes = lacking.map(|(name, then)| Change {
            name,
            from: self.value(name).to_owned(),
            to: then.clone(),
        });
        changes.collect()
    }
}

/// Changes the settings, and lets the server read them.
///
/// # Errors
/// Errors of the server: `Denied` where the role may not.
pub fn apply(server: &mut Server, changes: &[Change]) -> Result<()> {
    for change in changes {
        server.query(&change.statement())?;
    }
    server.query("select pg_catalog.pg_reload_conf()").map(drop)
}

/// Waits until the operator has restarted the server, which has the wanted settings then.
///
/// # Errors
/// `Deadline` after half an hour; `Interrupted`; those of a server that runs.
pub fn await_restart(host: &Host, conninfo: &str, wanted: &[(&'static str, String)]) -> Result<()> {
    let since = Instant::now();
    loop {
        host.check_stop().map_err(|e| e.hint(LATER))?;
        let standing = Server::connect(conninfo).and_then(|mut s| Standing::read(&mut s));
        match standing {
            Ok(standing) if standing.changes(wanted).is_empty() => return Ok(()),
            Err(e) if !is_restarting(&e) => return Err(e),
            _ => {}
        }
        if since.elapsed() > RESTART_MAX {
            let minutes = RESTART_MAX.as_secs() / 60;
            return Err(err!(
                Deadline,
                "the server was not restarted within {minutes} min"
            )
            .hint(LATER));
        }
        std::thread::sleep(PAUSE);
    }
}

/// A server that is stopped or starts cannot be asked.
fn is_restarting(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unreachable | Code::Server | Code::Deadline
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(values: &[(&str, &str)]) -> Standing {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Standing {
            values: values.iter().map(own).collect(),
            is_standby: false,
        }
    }

    fn wanted() -> [(&'static str, String); 4] {
        [
            ("wal_level", "replica".into()),
            ("archive_mode", "on".into()),
            ("archive_command", "a 'b' %p".into()),
            ("archive_timeout", "60s".into()),
        ]
    }

    #[test]
    fn only_what_keeps_the_server_from_archiving_is_changed() {
        let fresh = standing(&[
            ("wal_level", "minimal"),
            ("archive_mode", "off"),
            ("archive_command", "(disabled)"),
            ("archive_timeout", "0"),
        ]);
        let changes = fresh.changes(&wanted());
        let names = changes.iter().map(|c| (c.name, c.needs_restart()));
        let names: Vec<_> = names.collect();
        let expected = [
            ("wal_level", true),
            ("archive_mode", true),
            ("archive_command", false),
            ("archive_timeout", false),
        ];
        assert_eq!(names, expected);
        assert!(!changes.iter().any(Change::replaces_archiving));
        let statement = "alter system set archive_command = 'a ''b'' %p'";
        assert_eq!(changes[2].statement(), statement);
        let mut settled = standing(&[
            ("wal_level", "logical"),
            ("archive_mode", "always"),
            ("archive_command", "a 'b' %p"),
            ("archive_timeout", "300"),
        ]);
        assert_eq!(settled.changes(&wanted()), []);
        settled.values[2].1 = "cp %p /there/%f".into();
        assert!(settled.changes(&wanted())[0].replaces_archiving());
    }

    #[test]
    fn a_standby_and_a_library_that_archives_are_refused() {
        let mut one = standing(&[("archive_library", "")]);
        assert!(one.check().is_ok());
        one.values[0].1 = "basic_archive".into();
        let refused = |one: &Standing| one.check().unwrap_err().to_string();
        assert!(refused(&one).contains("basic_archive"));
        one = standing(&[]);
        one.is_standby = true;
        assert!(refused(&one).contains("standby"));
    }
}
