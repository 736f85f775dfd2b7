//! `pitr repo compact`.

use serde_json::json;

use super::backup::jobs;
use super::output::Table;
use super::{Context, done_or_unconfirmed};
use crate::backup::compact::{Limits, Options};
use crate::config::{Period, Size};
use crate::error::Result;
use crate::operate::compact::{self, Asked, Planned};
use crate::operate::human;
use crate::operate::pacing::MaxRate;
use crate::repo::id::BackupId;
use crate::repo::root::{BackupRoot, PackRef};
use crate::snapshot::frame::FrameCodec;

/// The backup to compact, and the limits.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Compact this backup; else the newest good one of the cluster
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,

    /// Store packs again of which at most this share is visible, in percent; 100 stores everything again
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub visible: u8,

    /// Store no more than this much of content again, the least visible packs first
    #[arg(long, value_name = "SIZE")]
    pub max_bytes: Option<Size>,

    /// Read and write at most this much a second, such as 50MB, besides max_rate of the repository; none sets that aside, too
    #[arg(long, value_name = "SIZE")]
    pub max_rate: Option<MaxRate>,

    /// Compress on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Wait at most this long for the end of a backup of the cluster
    #[arg(long, value_name = "DURATION", default_value = "0")]
    pub wait: Period,

    /// Show what would be stored again, and store nothing
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,

    /// Do it
    #[arg(long)]
    pub confirm: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let asked = Asked {
        backup: args.backup.clone(),
        limits: Limits {
            visible_percent: args.visible,
            max_bytes: args.max_bytes.map(|size| size.0),
        },
    };
    let planned = compact::plan(&cx.session, &asked)?;
    let is_idle = planned.packs().next().is_none();
    if !cx.is_json() {
        show(cx, args, &planned)?;
    }
    let options = Options {
        codec: FrameCodec::Zstd(1),
        jobs: jobs(args.jobs),
        wait: args.wait.duration(),
    };
    let done = match args.confirm && !is_idle {
        true => Some(planned.run(&cx.session, &options)?),
        false => None,
    };
    if cx.is_json() {
        cx.json(&as_json(&planned, done.as_ref()))?;
    } else if let Some(root) = &done {
        tell(cx, &planned, root)?;
    }
    let is_done = args.confirm || args.dry_run || is_idle;
    done_or_unconfirmed(is_done, "What is shown above would be stored again.")
}

fn visible_bytes(planned: &Planned) -> u64 {
    planned.packs().map(|pack| pack.live_bytes).sum()
}

fn all_bytes(pack: &PackRef) -> u64 {
    pack.all_bytes.unwrap_or(pack.live_bytes)
}

fn show(cx: &Context, args: &Args, planned: &Planned) -> Result<()> {
    let root = planned.root();
    let id = &root.head.id;
    if planned.packs().next().is_none() {
        return cx.report(&format!(
            "backup {id}: no pack has at most {} % visible, nothing is to be stored again",
            args.visible
        ));
    }
    let row = |pack: &PackRef| {
        let sizes = [pack.size_bytes, all_bytes(pack), pack.live_bytes].map(human::size);
        [pack.key.to_string()].into_iter().chain(sizes)
    };
    let table = Table::of("pack | >stored | >content | >visible");
    cx.table(&table.rows(planned.packs().map(row)))?;
    cx.report(&format!(
        "backup {id} in repository {}: {} of {} are stored again, with {} of content; {} go once the backup has expired",
        planned.repository(),
        planned.packs().count(),
        human::count(root.map.packs.len() as u64, "pack"),
        human::size(visible_bytes(planned)),
        human::size(planned.freed_bytes)
    ))
}

fn tell(cx: &Context, planned: &Planned, root: &BackupRoot) -> Result<()> {
    cx.report(&format!(
        "backup {} holds what {} holds, stored {} anew",
        root.head.id,
        planned.root().head.id,
        human::size(root.head.stored_bytes)
    ))?;
    cx.note(&format!(
        "next: pitr verify --backup {}; \"pitr expire\" lets the other one go once this one was verified and is a day old",
        root.head.id
    ));
    Ok(())
}

fn as_json(planned: &Planned, done: Option<&BackupRoot>) -> serde_json::Value {
    let root = planned.root();
    let pack = |pack: &PackRef| {
        json!({
            "key": pack.key.to_string(),
            "stored_bytes": pack.size_bytes,
            "size_bytes": all_bytes(pack),
            "visible_bytes": pack.live_bytes,
        })
    };
    let compacted = |root: &BackupRoot| {
        json!({
            "id": root.head.id.to_string(),
            "stored_bytes": root.head.stored_bytes,
            "pack_count": root.map.packs.len(),
        })
    };
    json!({
        "repository": planned.repository(),
        "cluster": root.content.cluster,
        "system_identifier": root.content.system_identifier.to_string(),
        "backup": root.head.id.to_string(),
        "pack_count": root.map.packs.len(),
        "packs": planned.packs().map(pack).collect::<Vec<_>>(),
        "visible_bytes": visible_bytes(planned),
        "freed_bytes": planned.freed_bytes,
        "compacted": done.map(compacted),
    })
}
