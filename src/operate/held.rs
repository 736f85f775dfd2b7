//! A cluster in every repository that answers.

use super::failures::Failures;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::wal::inventory::Inventory;
use crate::wal::rollup::Rollup;

/// The cluster in every repository that answers.
pub struct Held {
    /// The one that is read first comes first.
    pub readings: Vec<(Reading, Inventory)>,
    /// Errors of those that did not answer.
    pub failures: Failures,
}

impl Held {
    /// Reads the cluster in the first repository and in all others.
    ///
    /// # Errors
    /// Those of the first repository.
    pub fn read(session: &Session) -> Result<Held> {
        let first = Reading::open(session)?;
        let inventory = first.inventory(session)?;
        let identifier = inventory.system_identifier;
        let mut failures = Failures::default();
        let mut others = Vec::new();
        for (name, other) in first.all_others(session) {
            let read = other.and_then(|other| Ok((other.inventory(session)?, other)));
            let read = failures.note(read, format!("look into repository \"{name}\""));
            others.extend(read.map(|(inventory, other)| (other, inventory)));
        }
        // Under the same name there may be another cluster: before an upgrade, say.
        others.retain(|(_, inventory)| inventory.system_identifier == identifier);
        let mut readings = vec![(first, inventory)];
        readings.extend(others);
        Ok(Held { readings, failures })
    }

    /// The answers about the WAL of each.
    ///
    /// # Errors
    /// Those of [`Reading::rollup`].
    pub fn rollups<'a>(&'a self, session: &Session) -> Result<Vec<(&'a Inventory, Rollup<'a>)>> {
        let rollup = |(reading, inventory): &'a (Reading, Inventory)| {
            Ok((inventory, reading.rollup(session, inventory)?))
        };
        self.readings.iter().map(rollup).collect()
    }
}
