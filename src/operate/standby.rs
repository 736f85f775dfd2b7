//! A standby of the cluster, from the best backup.

use std::path::PathBuf;

use super::choice;
use super::former;
use super::opened::{self, Opened};
use super::reading::{Elsewhere, Reading, not_known};
use super::restoring::{Place, Prepared, path_text};
use super::server::Server;
use super::session::Session;
use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::SegmentName;
use crate::pg::slot::is_slot_name;
use crate::pg::timeline::TimelineId;
use crate::plan::base::lies_on;
use crate::repo::id::BackupId;
use crate::restore::job::{self, Earlier, Purpose, Request};
use crate::restore::target_dir::Mapping;
use crate::sync::fork::Stretch;
use crate::wal::inventory::{Backup, Inventory};

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The directory to restore into.
    pub to: PathBuf,
    /// How the standby connects to the primary, in libpq's syntax.
    pub primary_conninfo: String,
    /// The replication slot that it uses.
    pub slot: Option<String>,
    /// The places for tablespaces.
    pub mappings: Vec<Mapping>,
    /// Whether tablespaces may lie where the backup says.
    pub is_confirmed: bool,
}

/// The error where no server answers at `primary_conninfo`, asked as the standby will ask: without this process's variables.
pub fn silent_primary(primary_conninfo: &str) -> Option<Error> {
    let error = Server::connect_alone(primary_conninfo).err()?;
    // Any other answer comes from a server: a standby needs no database, and another line of pg_hba.conf.
    (error.code() == Code::Unreachable).then_some(error)
}

/// Decides and checks a standby, up to the first write.
///
/// # Errors
/// `Usage`; those of the place and the repositories; `Refused` while it is undecided which timeline is the cluster.
pub fn prepare(session: &Session, asked: &Asked) -> Result<Prepared> {
    check_conninfo(&asked.primary_conninfo)?;
    check_slot(asked.slot.as_deref())?;
    let reading = Reading::open(session)?;
    let mappings = asked.mappings.clone();
    let place = Place::new(
        session,
        &reading.settings,
        &asked.to,
        mappings,
        asked.is_confirmed,
    );
    let target = place.look()?;
    let mut opened = opened::open(session, reading)?;
    let request = Request {
        databases: None,
        to: path_text(&target.data)?,
        cluster: opened.layout.name().to_owned(),
        repository: session.flags.repository.clone(),
        backup: None,
        as_stored: false,
        delta: false,
        tablespace_mappings: asked.mappings.iter().map(Mapping::recorded).collect(),
        purpose: Purpose::Standby {
            primary_conninfo: asked.primary_conninfo.clone(),
            slot: asked.slot.clone(),
        },
    };
    let earlier = job::earlier(&target.found, &request)?;
    let (job, root) = match &earlier {
        Earlier::Copying(job) | Earlier::LastStep(job) => {
            opened = opened.where_it_began(session, job)?;
            opened.resume(session, job)?
        }
        Earlier::None => {
            former::warn(session, &opened.reading, &opened.inventory);
            let (cluster, tree) = opened
                .reading
                .decide_with_others(session, &opened.inventory)?;
            let timeline = cluster.decided("Nothing was written.")?;
            let backup;
            (opened, backup) = with_backup(session, opened, timeline)?;
            let read = archived_behind(&opened.inventory, &backup, timeline);
            let warn = &mut |warning: String| session.warn(&warning);
            let wal_from = choice::keep_to_one_server(session, read, &opened, warn);
            opened.reading.wal_from = wal_from;
            let (mut job, root) = opened.job(session, request, &backup, None)?;
            for beside in cluster.describe_beside() {
                session.warn(&beside);
            }
            job.parameters = opened.parameters_of_standby(session, &backup, timeline)?;
            // PostgreSQL takes the highest number for the latest, whatever became of it.
            job.timeline = tree.timelines().any(|t| t > timeline).then_some(timeline);
            (job, root)
        }
    };
    Prepared::new(session, (opened, job, root), (&place, target), earlier)
}

/// The archived segments that a standby reads, from its backup to the end of the timeline that it follows.
fn archived_behind(inventory: &Inventory, id: &BackupId, timeline: TimelineId) -> Option<Stretch> {
    let size = inventory.segment_size;
    let backup = inventory.backups.iter().find(|b| b.id == *id)?;
    let first = SegmentName::of(backup.start_timeline, backup.start_lsn, size);
    let archived = inventory.timelines.get(&timeline);
    let last = archived.and_then(|t| t.segments.bounds()?.1.name(timeline, size));
    Some(Stretch {
        first,
        last: last.unwrap_or(first),
        size,
    })
}

/// The first repository that has an undamaged backup on the way to the timeline, and that backup.
fn with_backup(
    session: &Session,
    opened: Opened,
    timeline: TimelineId,
) -> Result<(Opened, BackupId)> {
    let best = |reading: &Reading, inventory: &Inventory| -> Result<Option<BackupId>> {
        best_backup(session, (reading, inventory), timeline)
    };
    if let Some(id) = best(&opened.reading, &opened.inventory)? {
        return Ok((opened, id));
    }
    let none = err!(
        OutOfReach,
        "cluster \"{}\" has no undamaged backup that leads to timeline {}",
        opened.layout.name(),
        timeline.decimal()
    )
    .hint("Nothing was written. Take one with pitr backup.");
    let found = opened.reading.other_that(session, |other| {
        let inventory = other.inventory(session)?;
        // Under the same name there may be another cluster: before an upgrade, say.
        if inventory.system_identifier != opened.inventory.system_identifier {
            return Ok(None);
        }
        Ok(best(other, &inventory)?.map(|id| (inventory, id)))
    });
    match found {
        Elsewhere::Found(other, (inventory, id)) => {
            opened
                .reading
                .say_other(session, &other, "no undamaged backup");
            Ok((Opened::new(*other, inventory)?, id))
        }
        Elsewhere::Nowhere => Err(none),
        Elsewhere::Unknown(name, why) => Err(not_known(&none.to_string(), &name, &why)),
    }
}

/// The backup that is done soonest: the newest without damage that leads to the timeline, one that is marked for deletion only where there
/// is no other.
fn best_backup(
    session: &Session,
    (reading, inventory): (&Reading, &Inventory),
    timeline: TimelineId,
) -> Result<Option<BackupId>> {
    let Ok(history) = inventory.history(timeline) else {
        return Ok(None);
    };
    let undamaged = inventory.backups.iter().filter(|b| b.damage.is_none());
    let mut good: Vec<&Backup> = undamaged.filter(|b| lies_on(&history, b)).collect();
    good.sort_by_key(|b| (b.expire_mark.is_none(), b.timeline, b.stop_lsn));
    for backup in good.into_iter().rev() {
        if reading.leads(session, inventory, backup, timeline)? {
            return Ok(Some(backup.id.clone()));
        }
    }
    Ok(None)
}

/// The setting is written into a file that backups carry along, and command lines are seen by everybody.
fn check_conninfo(conninfo: &str) -> Result<()> {
    let wrong = |why: &str| -> Result<()> { Err(err!(Usage, "--primary-conninfo {why}")) };
    if conninfo.trim().is_empty() {
        return wrong("is empty");
    }
    if conninfo.contains(['\n', '\r', '\0']) {
        return wrong("holds a line break");
    }
    if config::holds_password(conninfo) {
        return Err(with_passfile_hint(err!(
            Usage,
            "--primary-conninfo holds a password or another secret"
        )));
    }
    Ok(())
}

fn with_passfile_hint(e: Error) -> Error {
    e.hint("Put it into a password file of the server's user and add passfile=FILE instead.")
}

fn check_slot(slot: Option<&str>) -> Result<()> {
    let Some(slot) = slot else { return Ok(()) };
    if !is_slot_name(slot) {
        return Err(err!(
            Usage,
            "\"{}\" is not a name of a replication slot: lower-case letters, digits and underscores, at most 63, are needed",
            slot.escape_debug()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_taken_from_the_command_line() {
        for conninfo in [
            "host=a password=b",
            "password = 'b'",
            "host=a PASSWORD=b",
            "postgresql://u:p@h/db",
            "postgres://u@h/db?password=x",
            "host=a sslkey=k sslpassword=b",
            "postgresql://h/db?sslpassword=x",
            "host=a oauth_client_secret = b",
            "host=a scram_client_key=b",
        ] {
            assert!(check_conninfo(conninfo).is_err(), "{conninfo}");
        }
        for conninfo in [
            "host=a user=password passfile=/x",
            "host=a sslpassword_file=b",
            "postgresql://u@h:5432/db",
            "host=a dbname=password",
        ] {
            assert!(check_conninfo(conninfo).is_ok(), "{conninfo}");
        }
        assert!(check_conninfo(" ").is_err() && check_conninfo("host=a\nb").is_err());
    }

    #[test]
    fn slots_have_names_that_postgresql_takes() {
        assert!(check_slot(Some("standby_1")).is_ok() && check_slot(None).is_ok());
        for bad in ["", "A", "a-b", "a'b"] {
            assert!(check_slot(Some(bad)).is_err(), "{bad}");
        }
    }
}
