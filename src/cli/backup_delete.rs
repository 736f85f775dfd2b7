//! `pitr backup delete`: one backup goes because a person asks for it.

use std::sync::Arc;

use serde::Serialize;

use super::pin::Found;
use super::reading::Reading;
use super::timeline::partial_unless;
use super::{Context, human, unproven};
use crate::config::Period;
use crate::err;
use crate::error::{Code, Result};
use crate::exit;
use crate::expire::{Expire, Outcome};
use crate::host::Host;
use crate::pg::segment::SegmentSize;
use crate::pg::time::TimestampTz;
use crate::plan::retention::{Deletion, ExpirePlan, Fate, Policy};
use crate::plan::window::Window;
use crate::repo::id::BackupId;
use crate::repo::repository::Registration;
use crate::wal::inventory::Inventory;

/// Delete one backup, and the WAL that nothing needs then
///
/// Shows what goes and which moments can be reached no more. With --confirm it marks the backup, in every repository of the configuration that
/// has it or in the one that --repository names. The same command deletes it once the grace period is over; a mark lapses seven days later. pitr
/// expire deletes no backup on account of such a mark that it would keep, and none instead of it.
///
/// Refused with exit status 8: the newest good backup, the only one that leads to the cluster's timeline, one that is pinned or in use; and when
/// neither --confirm nor --dry-run is given.
///
/// Example: pitr backup delete 20261120T064049Z-full --confirm
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: BackupId,

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

/// What whoever may write to the store can do to a run that cannot tell forged backups.
const FORGED: &str = "a backup that somebody forged counts as the newer one that is left";

/// What recovery reaches on a timeline.
#[derive(Serialize, Clone, PartialEq, Eq)]
struct ShownWindow {
    timeline: u32,
    from: TimestampTz,
    to: TimestampTz,
}

impl ShownWindow {
    fn new(window: &Window) -> ShownWindow {
        ShownWindow {
            timeline: window.timeline.decimal(),
            from: window.from,
            to: window.to,
        }
    }
}

/// Segments that nothing needs without the backup.
#[derive(Serialize)]
struct ShownWal {
    first: String,
    last: String,
    count: u64,
}

#[derive(Serialize)]
struct Shown {
    repository: String,
    stored_bytes: u64,
    /// `keep`, `mark`, `waiting`, `delete`.
    fate: &'static str,
    /// In its grace period until then.
    not_before: Option<TimestampTz>,
    wal: Vec<ShownWal>,
    /// What can be reached now, and without the backup; null where that cannot be read without the keys.
    windows_now: Option<Vec<ShownWindow>>,
    windows_then: Option<Vec<ShownWindow>>,
    withheld: Vec<String>,
    marked: bool,
    deleted: bool,
    deleted_segments: u64,
    refused: Vec<String>,
    locked: Vec<String>,
}

/// What is to happen in one repository.
struct One<'a> {
    reading: &'a Reading,
    registration: Registration,
    policy: Policy,
    plan: ExpirePlan,
    shown: Shown,
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let Found {
        copies,
        mut failures,
    } = Found::look(cx, &args.backup)?;
    let host = cx.host()?.with_progress(Arc::new(cx.progress()));
    let mut all = Vec::new();
    for (reading, inventory, _) in &copies {
        match plan(args, cx, &host, reading, inventory) {
            Ok(one) => all.push(one),
            // What one of them refuses is done in none.
            Err(e) if e.code() == Code::Refused => return Err(e),
            Err(e) => {
                let name = &reading.configured.name;
                failures.add(e, format!("look into repository \"{name}\""));
            }
        }
    }
    failures.first_if(cx, all.is_empty())?;
    if !cx.out.is_json() {
        all.iter().try_for_each(|one| print(cx, args, one))?;
    }
    let mut done = 0;
    if args.confirm {
        for one in &mut all {
            match carry_out(one, &args.backup, &host) {
                Ok(()) => done += 1,
                Err(e) => {
                    let name = &one.reading.configured.name;
                    failures.add(e, format!("delete it in repository \"{name}\""));
                }
            }
        }
        failures.first_if(cx, done == 0)?;
    }
    report(cx, args, &all)?;
    let is_whole = failures.told(cx)?;
    if !args.confirm && !args.dry_run {
        return Err(super::unconfirmed("The plan above would be carried out."));
    }
    let is_refused = all.iter().any(|one| !one.shown.refused.is_empty());
    if all.iter().any(|one| !one.shown.withheld.is_empty()) && is_whole && !is_refused {
        return Ok(exit::WARNINGS);
    }
    partial_unless(is_whole && !is_refused)
}

fn plan<'a>(
    args: &Args,
    cx: &Context,
    host: &Host,
    reading: &'a Reading,
    inventory: &Inventory,
) -> Result<One<'a>> {
    if let Some(warning) = unproven::warning(&reading.configured, &reading.repository, FORGED) {
        cx.out.warn(&warning);
    }
    let identifier = inventory.system_identifier;
    let mut registrations = reading.repository.registrations(&reading.name)?;
    registrations.retain(|r| r.system_identifier == identifier);
    let registration = registrations.pop().ok_or_else(|| {
        err!(
            NotFound,
            "system identifier {identifier} is not registered there"
        )
        .hint("Nothing was changed. Run: pitr init --confirm")
    })?;
    let policy = Policy {
        keep: 1,
        grace: args.grace.duration(),
        requested: Some(args.backup.clone()),
        ..Policy::default()
    };
    let expire = Expire {
        repository: &reading.repository,
        registration: &registration,
        policy: policy.clone(),
        host,
    };
    let (plan, then) = expire.plan_to_the_end()?;
    if let Some(refusal) = &plan.refusal {
        let name = &reading.configured.name;
        return Err(err!(Refused, "repository \"{name}\": {refusal}").hint("Nothing was changed."));
    }
    let judged = plan.backups.iter().find(|b| b.id == args.backup);
    let judged = judged.ok_or_else(|| {
        err!(NotFound, "backup \"{}\" was deleted meanwhile", args.backup)
            .hint("Nothing was changed.")
    })?;
    let mut without = inventory.clone();
    without.backups.retain(|b| b.id != args.backup);
    let shown = Shown {
        repository: reading.configured.name.clone(),
        stored_bytes: judged.stored_bytes,
        fate: judged.fate.as_str(),
        not_before: match judged.fate {
            Fate::Waiting(due) => Some(due),
            _ => None,
        },
        wal: wal(&then, &registration)?,
        windows_now: windows(cx, reading, inventory)?,
        windows_then: windows(cx, reading, &without)?,
        withheld: plan.withheld.clone(),
        marked: false,
        deleted: false,
        deleted_segments: 0,
        refused: Vec::new(),
        locked: Vec::new(),
    };
    Ok(One {
        reading,
        registration,
        policy,
        plan,
        shown,
    })
}

fn wal(plan: &ExpirePlan, registration: &Registration) -> Result<Vec<ShownWal>> {
    let size = SegmentSize::new(registration.segment_size_bytes)?;
    let shown = |deletion: &Deletion| match deletion {
        Deletion::Segments(timeline, first, last) => Some(ShownWal {
            first: first.name(*timeline, size)?.to_string(),
            last: last.name(*timeline, size)?.to_string(),
            count: last.0 - first.0 + 1,
        }),
        _ => None,
    };
    Ok(plan.deletions.iter().filter_map(shown).collect())
}

/// None where the WAL cannot be read without keys.
fn windows(
    cx: &Context,
    reading: &Reading,
    inventory: &Inventory,
) -> Result<Option<Vec<ShownWindow>>> {
    match reading.windows(cx, inventory) {
        Ok(found) => Ok(Some(found.windows.iter().map(ShownWindow::new).collect())),
        Err(e) if e.code() == Code::Key => Ok(None),
        Err(e) => Err(e),
    }
}

fn carry_out(one: &mut One<'_>, id: &BackupId, host: &Host) -> Result<()> {
    let expire = Expire {
        repository: &one.reading.repository,
        registration: &one.registration,
        policy: one.policy.clone(),
        host,
    };
    let mut outcome = Outcome::default();
    let ran = expire.run(&one.plan, &mut outcome);
    let shown = &mut one.shown;
    shown.marked = outcome.marked.contains(id);
    shown.deleted = outcome.deleted_backups.contains(id);
    shown.deleted_segments = outcome.deleted_segments;
    shown.refused = outcome.refused;
    shown.locked = outcome.locked;
    ran?;
    if one.shown.fate == Fate::Delete.as_str()
        && !one.shown.deleted
        && one.shown.refused.is_empty()
        && one.shown.locked.is_empty()
    {
        return Err(err!(
            Locked,
            "something keeps backup \"{id}\" by now: a pin, a restore or a copy"
        )
        .hint("It was not deleted. Run the command again: it shows what keeps it."));
    }
    Ok(())
}

fn print(cx: &Context, args: &Args, one: &One<'_>) -> Result<()> {
    let shown = &one.shown;
    cx.out.line(&format!(
        "repository {}: backup {} goes, {} stored",
        shown.repository,
        args.backup,
        human::size(shown.stored_bytes)
    ))?;
    for wal in &shown.wal {
        let count = human::count(wal.count, "segment");
        cx.out.line(&format!(
            "WAL that nothing needs then: {} to {} ({count})",
            wal.first, wal.last
        ))?;
    }
    let words = |windows: &[ShownWindow]| match windows {
        [] => "nothing".to_owned(),
        windows => {
            let word = |w: &ShownWindow| {
                let (from, to) = (human::time(w.from), human::time(w.to));
                format!("{from} to {to} on timeline {}", w.timeline)
            };
            windows.iter().map(word).collect::<Vec<_>>().join(", ")
        }
    };
    match (&shown.windows_now, &shown.windows_then) {
        (Some(now), Some(then)) if now == then => {
            cx.out.line(&format!("recovery stays: {}", words(now)))?;
        }
        (Some(now), Some(then)) => {
            cx.out.line(&format!("recovery now:  {}", words(now)))?;
            cx.out.line(&format!("recovery then: {}", words(then)))?;
        }
        _ => cx
            .out
            .warn("which moments can be reached no more cannot be read without the keys"),
    }
    for withheld in &shown.withheld {
        cx.out.warn(withheld);
    }
    Ok(())
}

fn report(cx: &Context, args: &Args, all: &[One<'_>]) -> Result<()> {
    if cx.out.is_json() {
        let shown: Vec<&Shown> = all.iter().map(|one| &one.shown).collect();
        return cx.out.json(&serde_json::json!({
            "backup": args.backup.to_string(),
            "confirmed": args.confirm,
            "repositories": shown,
        }));
    }
    for one in all.iter().filter(|_| args.confirm) {
        let shown = &one.shown;
        let name = &shown.repository;
        let line = match (shown.deleted, shown.not_before) {
            (true, _) => {
                let count = human::count(shown.deleted_segments, "segment");
                format!("deleted in {name}, with {count} of WAL")
            }
            (false, Some(due)) => format!(
                "in {name} it is marked: the same command deletes it after {}",
                human::time(due)
            ),
            (false, None) if shown.marked => {
                let due = cx.now().saturating_add(args.grace.duration());
                format!(
                    "marked in {name}: the same command deletes it after {}",
                    human::time(due)
                )
            }
            (false, None) => format!("not deleted in {name}"),
        };
        cx.out.report(&line)?;
        for refused in &shown.refused {
            cx.out.warn(&format!("could not delete {refused}"));
        }
        for locked in &shown.locked {
            cx.out.note(&format!("not deleted yet: {locked}"));
        }
    }
    Ok(())
}
