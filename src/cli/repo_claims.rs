//! `pitr repo claims`.

use std::collections::BTreeSet;

use super::output::Table;
use super::{Context, done_or_unconfirmed, partial_unless};
use crate::err;
use crate::error::Result;
use crate::operate::claims::{self, Claimed};
use crate::operate::human;
use crate::repo::id::BackupId;

/// The claims to show or to end.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// End everything that holds this backup
    #[arg(long, value_name = "ID")]
    pub release: Option<BackupId>,

    /// Show what would be ended, and change nothing
    #[arg(long, requires = "release", conflicts_with = "confirm")]
    pub dry_run: bool,

    /// End it
    #[arg(long, requires = "release")]
    pub confirm: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let (shown, failures) = claims::run(&cx.session, args.release.as_ref(), args.confirm)?;
    report(args, cx, &shown)?;
    let is_whole = cx.told(failures)?;
    if let Some(id) = &args.release {
        if shown.is_empty() && is_whole {
            return Err(err!(NotFound, "nothing holds backup \"{id}\"")
                .hint("Nothing was changed. \"pitr repo claims\" shows what holds others."));
        }
        done_or_unconfirmed(
            args.confirm || args.dry_run,
            "What is shown above would be ended.",
        )?;
    }
    partial_unless(is_whole)
}

fn report(args: &Args, cx: &Context, shown: &[Claimed]) -> Result<()> {
    if cx.is_json() {
        return cx.json(&serde_json::json!({ "claims": shown }));
    }
    if shown.is_empty() {
        if args.release.is_none() {
            cx.note("nothing is claimed");
        }
        return Ok(());
    }
    let clusters: BTreeSet<&str> = shown.iter().filter_map(|c| c.cluster.as_deref()).collect();
    let are_several = clusters.len() > 1;
    let mut table =
        Table::of("backup | repository | held by a | on host | since | until | keeps WAL from");
    for one in shown {
        let cluster = one.cluster.as_ref().filter(|_| are_several);
        let backup = match one.scope.as_ref().or(cluster) {
            None => one.backup.clone(),
            Some(of) => format!("{of} {}", one.backup),
        };
        table.row([
            backup.as_str(),
            &one.repository,
            &one.purpose,
            &one.host,
            &human::time(one.since),
            &human::time(one.until),
            &match (one.start_lsn, one.complete) {
                _ if one.scope.is_some() => String::new(),
                (Some(lsn), _) => lsn.to_string(),
                (None, true) => "the backup's start".to_owned(),
                (None, false) => "the first on".to_owned(),
            },
        ]);
    }
    cx.table(&table)?;
    if args.confirm {
        let count = human::count(shown.len() as u64, "claim");
        cx.note(&format!("ended {count}"));
    }
    Ok(())
}
