//! `pitr backup delete`: one backup goes because a person asks for it.

use super::expire::{log_that_goes, wal_that_stays};
use super::{Context, done_or_unconfirmed, partial_or_warnings};
use crate::config::Period;
use crate::error::Result;
use crate::operate::backup_delete::{self, Deletion, Deletions, Loss, Reached};
use crate::operate::human;
use crate::operate::pin_content;
use crate::repo::id::BackupId;

/// Delete one backup, and the WAL that nothing needs then
///
/// Shows what goes and which moments can be reached no more. With --confirm it marks the backup, in every repository of the configuration that
/// has it or in the one that --repository names. The same command deletes it once the grace period is over; a mark lapses seven days later. pitr
/// expire deletes no backup on account of such a mark that it would keep, and none instead of it. With --of it is a backup of other content.
///
/// Refused with exit status 8: the newest good backup of the cluster or content, the only one that leads to the cluster's timeline, one that is pinned or in
/// use; and when neither --confirm nor --dry-run is given. The last one of a branch may go.
///
/// Example: pitr backup delete 20261120T064049Z-full --confirm
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: BackupId,

    /// The content that it is a backup of, such as files:uploads, redis:cache, config:host or logical:main; a cluster without it
    #[arg(long, value_name = "KIND:NAME")]
    pub of: Option<String>,

    /// Delete it only when it was marked this long ago; 0s: at once
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub grace: Period,

    /// Show what would go, and leave with 0
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,

    /// Mark it, and delete it once the grace period is over
    #[arg(long)]
    pub confirm: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let (backup, grace) = (&args.backup, args.grace.duration());
    let mut planned = match &args.of {
        None => backup_delete::plan(&cx.session, backup, grace)?,
        Some(of) => {
            let scope = pin_content::scope(of)?;
            backup_delete::plan_content(&cx.session, (&scope, backup), grace)?
        }
    };
    if !cx.is_json() {
        planned
            .all
            .iter()
            .try_for_each(|one| print(cx, args, one))?;
    }
    if args.confirm {
        planned.carry_out(&cx.session)?;
    }
    let Deletions { all, failures, .. } = planned;
    report(cx, args, &all)?;
    let is_whole = cx.told(failures)?;
    done_or_unconfirmed(
        args.confirm || args.dry_run,
        "The plan above would be carried out.",
    )?;
    let is_refused = all.iter().any(|one| !one.refused.is_empty());
    let is_well = all.iter().all(|one| one.withheld.is_empty());
    partial_or_warnings(is_whole && !is_refused, is_well)
}

fn print(cx: &Context, args: &Args, shown: &Deletion) -> Result<()> {
    cx.line(&format!(
        "repository {}: backup {} goes, {} stored",
        shown.repository,
        args.backup,
        human::size(shown.stored_bytes)
    ))?;
    for log in &shown.log {
        cx.line(&log_that_goes(&log.replid, log.gone))?;
    }
    if let Some(loss) = &shown.loss {
        print_loss(cx, loss)?;
    }
    cx.warn_all(&shown.withheld);
    Ok(())
}

fn print_loss(cx: &Context, loss: &Loss) -> Result<()> {
    for wal in &loss.wal {
        let count = human::count(wal.count, "segment");
        cx.line(&format!(
            "WAL that nothing needs then: {} to {} ({count})",
            wal.first, wal.last
        ))?;
    }
    for wal in &loss.short_of_copies {
        cx.line(&wal_that_stays(&wal.first, &wal.last, wal.count))?;
    }
    for unread in loss
        .unread
        .iter()
        .filter(|_| !loss.short_of_copies.is_empty())
    {
        cx.warn(&format!(
            "repository \"{}\" may need all WAL that stays for min_copies: {}",
            unread.repository, unread.why
        ));
    }
    let words = |windows: &[Reached]| match windows {
        [] => "nothing".to_owned(),
        windows => {
            let word = |w: &Reached| {
                let (from, to) = human::window(w.from, w.to);
                format!("{from} to {to} on timeline {}", w.timeline)
            };
            windows.iter().map(word).collect::<Vec<_>>().join(", ")
        }
    };
    match (&loss.windows_now, &loss.windows_then) {
        (Some(now), Some(then)) if now == then => {
            cx.line(&format!("recovery stays: {}", words(now)))?;
        }
        (Some(now), Some(then)) => {
            cx.line(&format!("recovery now:  {}", words(now)))?;
            cx.line(&format!("recovery then: {}", words(then)))?;
        }
        _ => cx.warn("which moments can be reached no more cannot be read without the keys"),
    }
    Ok(())
}

fn report(cx: &Context, args: &Args, all: &[Deletion]) -> Result<()> {
    if cx.is_json() {
        let mut shown = serde_json::json!({
            "backup": args.backup.to_string(),
            "confirmed": args.confirm,
            "repositories": all,
        });
        if let Some(of) = &args.of {
            shown["of"] = of.as_str().into();
        }
        return cx.json(&shown);
    }
    for shown in all.iter().filter(|_| args.confirm) {
        let name = &shown.repository;
        let line = match (shown.deleted, shown.not_before) {
            (true, _) if shown.loss.is_none() => format!("deleted in {name}"),
            (true, _) => {
                let count = human::count(shown.deleted_segments, "segment");
                format!("deleted in {name}, with {count} of WAL")
            }
            (false, Some(due)) => format!(
                "in {name} it is marked: the same command deletes it after {}",
                human::time(due)
            ),
            (false, None) if shown.marked => {
                let due = cx.session.host.now().saturating_add(args.grace.duration());
                format!(
                    "marked in {name}: the same command deletes it after {}",
                    human::time(due)
                )
            }
            (false, None) => format!("not deleted in {name}"),
        };
        cx.report(&line)?;
        cx.warn_all(&shown.withheld_since);
        cx.tell_left(("delete", "deleted yet"), &shown.refused, &shown.locked);
    }
    Ok(())
}
