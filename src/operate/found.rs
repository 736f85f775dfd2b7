//! A backup in the repositories that have it.

use super::failures::Failures;
use super::held::Held;
use super::of;
use super::reading::Reading;
use super::session::Session;
use crate::err;
use crate::error::{Error, Result};
use crate::repo::id::{BackupId, closest};
use crate::repo::layout::ClusterLayout;
use crate::wal::inventory::{Backup, Inventory};

/// A backup in the repositories that have it.
pub struct Found {
    /// Those that have it, each with what it says of the backup.
    pub copies: Vec<(Reading, Inventory, Backup)>,
    /// Errors of the repositories that could not be asked.
    pub failures: Failures,
}

impl Found {
    /// Looks for it in every repository.
    ///
    /// # Errors
    /// `NotFound` where no repository has it; the first failure where one that could not be asked may have it.
    pub fn look(session: &Session, id: &BackupId) -> Result<Found> {
        let Held {
            readings,
            mut failures,
        } = Held::read(session)?;
        let mut copies = Vec::new();
        let mut why_not = None;
        let mut known = Vec::new();
        for (reading, inventory) in readings {
            match inventory.backups.iter().find(|b| b.id == *id).cloned() {
                Some(backup) => copies.push((reading, inventory, backup)),
                None => {
                    why_not = why_not.or(why_absent(&reading, &inventory, id)?);
                    known.extend(inventory.backups.iter().map(|b| b.id.clone()));
                }
            }
        }
        failures.first_if(session, copies.is_empty())?;
        if copies.is_empty() {
            let why_not = why_not.or(content(session, id)?);
            return Err(why_not.unwrap_or_else(|| unknown(id, &known)));
        }
        Ok(Found { copies, failures })
    }

    /// The names of the repositories that have it.
    pub fn names(&self) -> Vec<String> {
        let name = |(reading, ..): &(Reading, Inventory, Backup)| reading.configured.name.clone();
        self.copies.iter().map(name).collect()
    }

    /// The first copy.
    ///
    /// # Errors
    /// `Internal`.
    pub fn first(&self) -> Result<&(Reading, Inventory, Backup)> {
        let first = self.copies.first();
        first.ok_or_else(|| err!(Internal, "no repository was read"))
    }
}

/// Explains why a repository does not list a backup of which something is there: it cannot be read, is lost, or is not complete.
fn why_absent(reading: &Reading, inventory: &Inventory, id: &BackupId) -> Result<Option<Error>> {
    let name = &reading.configured.name;
    if let Some(unreadable) = inventory.unreadable.iter().find(|u| u.id == *id) {
        let problem = &unreadable.problem;
        return Ok(Some(
            err!(Damaged, "backup \"{id}\" in repository \"{name}\" cannot be read: {problem}")
                .hint("Nothing was changed. \"pitr verify\" shows what it costs; nothing is deleted while it cannot be read."),
        ));
    }
    if inventory.lost.contains(id) {
        return Ok(Some(
            err!(NotFound, "backup \"{id}\" was complete, and its root is lost")
                .hint("Nothing was changed. What is left of it stays until it is given up. \"pitr repo sync\" brings the root back where another repository has it."),
        ));
    }
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    let store = reading.repository.store();
    let is_begun = store.head(&layout.begin(id))?.is_some();
    if store.head(&layout.manifest(id))?.is_none() && !is_begun {
        return Ok(None);
    }
    Ok(Some(
        err!(
            NotFound,
            "backup \"{id}\" is not there: it is not complete yet, it failed, or it was deleted"
        )
        .hint("Nothing was changed. \"pitr info\" shows which backups there are."),
    ))
}

/// Returns the refusal of a backup of content, where the id is one of those: commands without `--of` are for backups of a cluster.
fn content(session: &Session, id: &BackupId) -> Result<Option<Error>> {
    for configured in session.settings()?.repositories {
        let repository = session.open(&configured)?;
        for scope in of::scopes(session, &repository)? {
            if repository.store().head(&scope.manifest(id))?.is_some() {
                let scope = scope.prefix();
                return Ok(Some(
                    err!(Refused, "backup \"{id}\" is one of \"{scope}\": without --of the command is about backups of a cluster")
                        .hint("Nothing was changed. \"pitr pin\", \"unpin\", \"hold\", \"unhold\" and \"backup delete\" take it with --of KIND:NAME."),
                ));
            }
        }
    }
    Ok(None)
}

fn unknown(id: &BackupId, known: &[BackupId]) -> Error {
    let closest = closest(known, &id.to_string());
    let closest = closest.map_or_else(String::new, |c| format!(" The closest is {c}."));
    err!(NotFound, "backup \"{id}\" does not exist").hint(format!(
        "Nothing was changed.{closest} \"pitr info\" shows them all."
    ))
}
