//! `pitr standby`.

use std::path::PathBuf;

use super::Context;
use super::reading::{Elsewhere, Reading, not_known};
use super::restoring::{self, Opened, Place, ShownReport};
use crate::config;
use crate::err;
use crate::error::{Error, Result};
use crate::exit;
use crate::pg::slot::is_slot_name;
use crate::pg::timeline::TimelineId;
use crate::plan::base::lies_on;
use crate::plan::cluster::{Cluster, DECIDE};
use crate::restore::job::{self, Earlier, Job, Purpose, Request};
use crate::restore::target_dir::Mapping;
use crate::wal::inventory::{Backup, Inventory};

use super::restore::TablespaceMapping;

/// Restore the best backup as a streaming standby
///
/// The standby catches up from the repository and then streams from the primary. It is the cluster, not a copy of it: nothing
/// needs to be adopted.
///
/// Example: pitr standby --to /var/lib/postgresql/17/main --primary-conninfo "host=db1 user=replicator"
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory to restore into: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    /// How the standby connects to the primary, in libpq's syntax
    ///
    /// A password does not belong here: put it into a password file and name that with passfile=FILE, or use ~/.pgpass of the server's
    /// user.
    #[arg(long, value_name = "CONNINFO")]
    pub primary_conninfo: String,

    /// The replication slot that the standby uses
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,

    /// Put the tablespace of directory OLD, or with this OID, into directory NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = TablespaceMapping::parser())]
    pub tablespace_mapping: Vec<TablespaceMapping>,

    /// Put tablespaces without a mapping where the backup says; without this they are shown and refused
    #[arg(long)]
    pub confirm: bool,

    /// Extract on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    check_conninfo(&args.primary_conninfo)?;
    check_slot(args.slot.as_deref())?;
    let reading = Reading::open(cx)?;
    let mappings = args.tablespace_mapping.iter().map(Mapping::from).collect();
    let place = Place::new(cx, &reading.settings, &args.to, mappings, args.confirm);
    let target = place.look()?;
    let mut opened = restoring::open(cx, reading)?;
    let request = Request {
        to: restoring::path_text(&target.data)?,
        cluster: opened.layout.name().to_owned(),
        repository: cx.global.repository.clone(),
        backup: None,
        as_stored: false,
        tablespace_mappings: args
            .tablespace_mapping
            .iter()
            .map(TablespaceMapping::recorded)
            .collect(),
        purpose: Purpose::Standby {
            primary_conninfo: args.primary_conninfo.clone(),
            slot: args.slot.clone(),
        },
    };
    let earlier = job::earlier(&target.found, &request)?;
    let (job, root) = match &earlier {
        Earlier::Copying(job) | Earlier::LastStep(job) => {
            opened = opened.where_it_began(cx, job)?;
            opened.resume(cx, job)?
        }
        Earlier::None => {
            let (cluster, tree) = opened.reading.decide_with_others(cx, &opened.inventory)?;
            let timeline = followed(&cluster)?;
            opened = with_backup(cx, opened, timeline)?;
            let backup = best_backup(&opened, timeline)?.id.clone();
            let (mut job, root) = opened.job(cx, request, &backup, None)?;
            for beside in cluster.describe_beside() {
                cx.out.warn(&beside);
            }
            job.parameters = opened.parameters_of_standby(cx, &backup, timeline)?;
            // PostgreSQL takes the highest number for the latest, whatever became of it.
            job.timeline = tree.timelines().any(|t| t > timeline).then_some(timeline);
            (job, root)
        }
    };
    let target = place.place(target, &root)?;
    let job = Job {
        tablespaces: target.tablespaces.clone(),
        ..job
    };
    let spares = opened.spares(cx);
    let survey = restoring::survey(&opened, &root, &job, &target, &spares)?;
    restoring::check_commands(cx, &target, &opened)?;
    let (report, took) = restoring::run(
        cx,
        &opened,
        &root,
        &job,
        (&target, &survey),
        &earlier,
        args.jobs,
        &spares,
    )?;
    let start = restoring::start(&opened, &root, &job, &target, &report);
    if cx.out.is_json() {
        cx.out
            .json(&ShownReport::new(&job, &report, &start, took))?;
        return Ok(exit::SUCCESS);
    }
    restoring::print_report(cx, &job, &report, &start, took)?;
    if let Some(timeline) = job.timeline {
        cx.out.warn(&format!(
            "recovery_target_timeline = '{0}', because a timeline with a higher number is not the cluster: the standby follows timeline {0}, and does not follow the next promotion by itself; after one, set it to the new number and reload",
            timeline.decimal()
        ));
    }
    cx.out.line(
        "The standby replays the archived WAL, then says \"started streaming WAL from primary\" in its log. It may archive with archive_mode = always.",
    )?;
    Ok(exit::SUCCESS)
}

/// The timeline that the standby follows.
fn followed(cluster: &Cluster) -> Result<TimelineId> {
    cluster.timeline().ok_or_else(|| {
        let why = cluster.undecided().unwrap_or_default();
        err!(Refused, "{why}").hint(format!("Nothing was written. {DECIDE}."))
    })
}

/// The first repository that has an undamaged backup on the way to the timeline.
fn with_backup(cx: &Context, opened: Opened, timeline: TimelineId) -> Result<Opened> {
    let Err(e) = best_backup(&opened, timeline) else {
        return Ok(opened);
    };
    let found = opened.reading.other_that(cx, |other| {
        let inventory = other.inventory(cx)?;
        // Under the same name there may be another cluster: before an upgrade, say.
        let is_own = inventory.system_identifier == opened.inventory.system_identifier;
        let has_good = good_backups(&inventory, timeline).next().is_some();
        Ok((is_own && has_good).then_some(inventory))
    });
    match found {
        Elsewhere::Found(other, inventory) => {
            opened.reading.say_other(cx, &other, "no undamaged backup");
            Opened::new(*other, inventory)
        }
        Elsewhere::Nowhere => Err(e),
        Elsewhere::Unknown(name, why) => Err(not_known(&e.to_string(), &name, &why)),
    }
}

/// The undamaged backups that lie on the way to a timeline.
fn good_backups(inventory: &Inventory, timeline: TimelineId) -> impl Iterator<Item = &Backup> {
    let history = inventory.history(timeline).ok();
    let leads = move |b: &&Backup| history.as_ref().is_some_and(|h| lies_on(h, b));
    let backups = inventory.backups.iter().filter(|b| b.damage.is_none());
    backups.filter(leads)
}

/// The backup that is done soonest: the newest without damage that leads to the timeline, one that is marked for deletion only where there
/// is no other.
fn best_backup(opened: &Opened, timeline: TimelineId) -> Result<&Backup> {
    good_backups(&opened.inventory, timeline)
        .max_by_key(|b| (b.expire_mark.is_none(), b.timeline, b.stop_lsn))
        .ok_or_else(|| {
            err!(
                OutOfReach,
                "cluster \"{}\" has no undamaged backup that leads to timeline {}",
                opened.layout.name(),
                timeline.decimal()
            )
            .hint("Nothing was written. Take one with pitr backup.")
        })
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
