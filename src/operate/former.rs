//! Other system identifiers under a cluster's name: what was there before pg_upgrade or initdb, or has come by it.

use serde::Serialize;

use super::human;
use super::info::of_cluster;
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
    let own = of_directory(session, reading).filter(|own| *own != shown)?;
    let name = &reading.name;
    let registered = reading.repository.registrations(name).ok()?;
    if !registered.iter().any(|r| r.system_identifier == own) {
        return Some((
            format!(
                "the data directory has system identifier {own}, which is not registered for cluster \"{name}\": its WAL is refused (A121), and nothing of it can be recovered; after pg_upgrade or initdb: pitr init --confirm, then pitr backup"
            ),
            "pitr init --confirm",
        ));
    }
    let reach = end_of_other(session, reading, own);
    Some((about_registered(own, shown, reach), "pitr backup"))
}

/// The system identifier of the configured data directory; none where it cannot be read from here, or the operator names another one.
fn of_directory(session: &Session, reading: &Reading) -> Option<u64> {
    let pgdata = reading.cluster.as_ref()?.pgdata.as_deref()?;
    let control = DataDirectory::at(pgdata).control().ok()??;
    let is_named = session.system_identifier.is_some();
    (!is_named).then_some(control.system_identifier)
}

/// Explains a data directory of the registered identifier `own`, whose windows end at `reach`.
fn about_registered(own: u64, shown: u64, reach: Result<Option<TimestampTz>>) -> String {
    let begin = format!(
        "the data directory has system identifier {own}, and the newest backup is of {shown}"
    );
    match reach {
        Ok(Some(to)) => format!(
            "{begin}, which is taken without --system-identifier; {own} can be recovered to {}: add --system-identifier {own}. With a new backup it is the one that is taken: pitr backup",
            human::exact_time(to)
        ),
        Ok(None) => format!(
            "{begin}: nothing that was written since can be recovered; take a backup: pitr backup"
        ),
        Err(e) => format!(
            "{begin}; whether {own} can be recovered is not known: {e}; take a backup: pitr backup"
        ),
    }
}

/// Warns where `taken`, the identifier of the newest backup, may not be the one that the operator means: the server of this host has another
/// one, or another one leads to a later time.
pub fn warn(session: &Session, reading: &Reading, taken: &Inventory) {
    let shown = taken.system_identifier;
    if session.system_identifier.is_some() {
        return;
    }
    match of_directory(session, reading) {
        Some(own) if own == shown => {}
        Some(_) => {
            let found = mismatch(session, reading, shown);
            found.iter().for_each(|(why, _)| session.warn(why));
        }
        None => match later(session, reading, taken) {
            Ok(found) => found.iter().for_each(|line| session.warn(line)),
            Err(e) => session.warn(&format!(
                "cluster \"{}\" has had other system identifiers than {shown}, and whether one of them leads to a later time is not known: {e}; pitr info names them",
                reading.name
            )),
        },
    }
}

/// Names the identifiers that lead to a later time than the one that is taken.
fn later(session: &Session, reading: &Reading, taken: &Inventory) -> Result<Vec<String>> {
    let others = others(reading, taken.system_identifier)?;
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let own = end_of(session, reading, taken)?;
    let mut found = Vec::new();
    for other in &others {
        let to = end_of(session, reading, other)?;
        let ids = (taken.system_identifier, other.system_identifier);
        found.extend(line_of_later(&reading.name, ids, (own, to)));
    }
    Ok(found)
}

/// Explains that the other identifier ends later than the one that is taken; none where it does not.
fn line_of_later(
    name: &str,
    (taken, other): (u64, u64),
    (own, to): (Option<TimestampTz>, Option<TimestampTz>),
) -> Option<String> {
    let to = to.filter(|to| own.is_none_or(|own| *to > own))?;
    Some(format!(
        "the newest backup of cluster \"{name}\" is of system identifier {taken}, which is taken; {other} leads to a later time, {}: if that server is meant, add --system-identifier {other}",
        human::exact_time(to)
    ))
}

/// The end of the windows of another identifier; none where nothing of it can be recovered.
fn end_of_other(session: &Session, reading: &Reading, id: u64) -> Result<Option<TimestampTz>> {
    let inventory = Inventory::read(&reading.repository, &reading.name, Some(id))?;
    end_of(session, reading, &inventory)
}

/// The end of the last window on the highest timeline. WAL behind the newest backup alone is read: a restore waits for the answer.
fn end_of(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
) -> Result<Option<TimestampTz>> {
    let mut newest = inventory.clone();
    let known = newest.backups.iter().rposition(|b| b.damage.is_none());
    let last = known.map(|at| newest.backups.swap_remove(at));
    newest.backups = last.into_iter().collect();
    let found = reading.windows(session, &newest)?;
    Ok(of_cluster(&found.windows, None, &newest).map(|window| window.to))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::err;

    #[test]
    fn t83_a_directory_of_another_identifier_is_told_what_leads_there() {
        let at = TimestampTz(10_000_000);
        let leads = about_registered(7, 8, Ok(Some(at)));
        let moment = "7 can be recovered to 2000-01-01 00:00:10";
        assert!(leads.contains(moment), "{leads}");
        assert!(leads.contains("add --system-identifier 7"), "{leads}");
        assert!(!leads.contains("nothing"), "{leads}");
        let lost = about_registered(7, 8, Ok(None));
        assert!(lost.contains("nothing that was written since"), "{lost}");
        let unknown = about_registered(7, 8, Err(err!(Unreachable, "silent")));
        assert!(unknown.contains("is not known: silent"), "{unknown}");
    }

    #[test]
    fn t83_another_identifier_is_named_where_it_ends_later() {
        let at = |seconds: i64| Some(TimestampTz(seconds * 1_000_000));
        let line = |own, to| line_of_later("main", (8, 7), (own, to));
        let later = line(at(10), at(20)).unwrap();
        assert!(later.contains("add --system-identifier 7"), "{later}");
        assert!(later.contains("of system identifier 8"), "{later}");
        assert!(line(None, at(20)).is_some());
        for (own, to) in [(at(20), at(20)), (at(20), at(10)), (at(20), None)] {
            assert_eq!(line(own, to), None);
        }
    }
}
