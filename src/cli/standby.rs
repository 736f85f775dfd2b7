//! `pitr standby`.

use std::path::PathBuf;

use super::Context;
use super::restore::mapping;
use super::restoring::{Place, ShownReport, print_report};
use crate::error::Result;
use crate::exit;
use crate::operate::pacing::MaxRate;
use crate::operate::standby::{Asked, prepare, silent_primary};
use crate::restore::target_dir::Mapping;

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
    #[arg(long, value_name = "OLD=NEW", value_parser = mapping())]
    pub tablespace_mapping: Vec<Mapping>,

    /// Put tablespaces without a mapping where the backup says; without this they are shown and refused
    #[arg(long)]
    pub confirm: bool,

    /// Extract on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Read from the repository at most this much a second, such as 50MB, besides max_rate of the repository; none sets that aside, too
    #[arg(long, value_name = "SIZE")]
    pub max_rate: Option<MaxRate>,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let asked = Asked {
        to: args.to.clone(),
        primary_conninfo: args.primary_conninfo.clone(),
        slot: args.slot.clone(),
        mappings: args.tablespace_mapping.clone(),
        is_confirmed: args.confirm,
    };
    let prepared = prepare(&cx.session, &asked)?;
    cx.stop_in_order()?;
    let restored = prepared.run(&cx.session, args.jobs)?;
    let job = &prepared.job;
    if cx.is_json() {
        cx.json(&ShownReport::new(job, &restored))?;
        return Ok(exit::SUCCESS);
    }
    print_report(cx, job, &restored, Place::Own)?;
    if let Some(timeline) = job.timeline {
        cx.warn(&format!(
            "recovery_target_timeline = '{0}', because a timeline with a higher number is not the cluster: the standby follows timeline {0}, and does not follow the next promotion by itself; after one, set it to the new number and reload",
            timeline.decimal()
        ));
    }
    if let Some(e) = silent_primary(&args.primary_conninfo) {
        cx.warn(&format!(
            "no server answers at primary_conninfo: {e}. The standby replays the archive and streams nothing until one does; correct primary_conninfo in its postgresql.auto.conf"
        ));
    }
    cx.line(
        "The standby replays the archived WAL, then says \"started streaming WAL from primary\" in its log. It may archive with archive_mode = always.",
    )?;
    Ok(exit::SUCCESS)
}
