//! Other system identifiers under a cluster's name: what was there before pg_upgrade or initdb, or has come by it.

use serde::Serialize;

use super::human;
use super::reading::Reading;
use super::session::Session;
use super::target::AskedTarget;
use crate::archive::datadir::DataDirectory;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::plan::choice::leads;
use crate::plan::recovery::Action;
use crate::wal::inventory::Inventory;

/// Another cluster under the same name.
#[derive(Debug, Serialize)]
pub struct Former {
    system_identifier: String,
    major: u32,
    backups: u64,
    /// When the first of them was complete.
    first_backup: Option<TimestampTz>,
    /// When the last of them was complete.
    last_backup: Option<TimestampTz>,
}

impl Former {
    /// Looks at every other system identifier that is registered under the name.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn all(reading: &Reading, own: u64) -> Result<Vec<Former>> {
        Ok(others(reading, own)?.iter().map(Former::of).collect())
    }

    fn of(inventory: &Inventory) -> Former {
        let times = || inventory.backups.iter().map(|b| b.stop_time);
        Former {
            system_identifier: inventory.system_identifier.to_string(),
            major: inventory.major,
            backups: inventory.backups.len() as u64,
            first_backup: times().min(),
            last_backup: times().max(),
        }
    }

    /// One line, with the command that shows it.
    pub fn line(&self) -> String {
        let backups = match self.first_backup.zip(self.last_backup) {
            None => "no backup".to_owned(),
            Some((first, last)) => format!(
                "{}, {} to {}",
                human::count(self.backups, "backup"),
                human::time(first),
                human::time(last)
            ),
        };
        format!(
            "also under this name: system identifier {}, PostgreSQL {}, {backups}: pitr info --system-identifier {0}",
            self.system_identifier, self.major
        )
    }
}

fn others(reading: &Reading, own: u64) -> Result<Vec<Inventory>> {
    let registered = reading.repository.registrations(&reading.name)?;
    let others = registered.iter().map(|r| r.system_identifier);
    others
        .filter(|id| *id != own)
        .map(|id| Inventory::read(&reading.repository, &reading.name, Some(id)))
        .collect()
}

/// Explains a configured data directory of another cluster than `shown`; none where it cannot be read from here.
pub fn mismatch(
    session: &Session,
    reading: &Reading,
    shown: u64,
) -> Option<(String, &'static str)> {
    let pgdata = reading.cluster.as_ref()?.pgdata.as_deref()?;
    let control = DataDirectory::at(pgdata).control().ok()??;
    let own = control.system_identifier;
    if own == shown || session.system_identifier.is_some() {
        return None;
    }
    let name = &reading.name;
    let registered = reading.repository.registrations(name).ok()?;
    Some(
        match registered.iter().any(|r| r.system_identifier == own) {
            false => (
                format!(
                    "the data directory has system identifier {own}, which is not registered for cluster \"{name}\": its WAL is refused (A121), and nothing of it can be recovered; after pg_upgrade or initdb: pitr init --confirm, then pitr backup"
                ),
                "pitr init --confirm",
            ),
            true => (
                format!(
                    "the data directory has system identifier {own}, and the newest backup is of {shown}: nothing that was written since can be recovered; take a backup: pitr backup"
                ),
                "pitr backup",
            ),
        },
    )
}

/// Names another system identifier of the cluster under which the target can be reached.
pub fn next(
    session: &Session,
    reading: &Reading,
    own: u64,
    asked: (&AskedTarget, Action),
) -> Option<String> {
    if session.system_identifier.is_some() {
        return None;
    }
    let reaches = |inventory: &Inventory| {
        let planned = reading.plan(session, inventory, asked, None);
        planned.is_ok_and(|(plan, _)| leads(&plan))
    };
    let id = others(reading, own)
        .ok()?
        .iter()
        .find(|i| reaches(i))?
        .system_identifier;
    Some(format!(
        "Cluster \"{}\" has had another system identifier, under which the target can be reached: add --system-identifier {id}",
        reading.name
    ))
}
