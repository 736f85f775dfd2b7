//! `pitr repo sync`.

use serde_json::json;

use super::{Context, partial_unless};
use crate::error::Result;
use crate::operate::configuration::recipients::Brought;
use crate::operate::human;
use crate::operate::of::Of;
use crate::operate::pacing::MaxRate;
use crate::operate::sync::{self, Asked, Done, Synced};
use crate::operate::verify;
use crate::plan::lacking::Cause;
use crate::sync::Report;

/// Objects copied at a time: each may need room for what a store takes in one piece, and all together must not exceed the ceiling.
const JOBS: u16 = 3;

/// The direction of the copy, and its content.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Copy from this repository only
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,

    /// Bring only this repository up to date
    #[arg(long, value_name = "NAME")]
    pub to: Option<String>,

    /// Copy also what the receiving side may have expired
    #[arg(long)]
    pub all: bool,

    /// Copy a cluster also where its name has another system identifier
    ///
    /// After pg_upgrade or initdb, as pitr init --confirm.
    #[arg(long)]
    pub confirm: bool,

    /// Copy this many objects at a time
    ///
    /// Each may need some 20 MiB of memory when it goes into an object store.
    #[arg(long, value_name = "N", default_value_t = JOBS, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,

    /// Read from and write to each repository at most this much a second, such as 50MB, besides its max_rate; none sets that aside, too
    #[arg(long, value_name = "SIZE")]
    pub max_rate: Option<MaxRate>,

    /// Then heal each repository that was brought up to date: write a copy of what is damaged, and what is missing, from another one that has it whole
    ///
    /// Looks at what is recorded as damaged, and at what shows without reading content; pitr verify --heal reads everything.
    #[arg(long)]
    pub heal: bool,

    /// Show what would be copied, and copy nothing
    #[arg(long)]
    pub dry_run: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let asked = Asked {
        from: args.from.clone(),
        to: args.to.clone(),
        everything: args.all,
        is_confirmed: args.confirm,
        jobs: usize::from(args.jobs),
        dry_run: args.dry_run,
        heal: args.heal,
    };
    cx.stop_in_order()?;
    let synced = sync::run(&cx.session, &asked)?;
    report(cx, args, &synced)?;
    let is_lost = synced.healed.iter().any(|h| h.report.finding_count > 0);
    let is_whole = cx.told(synced.failures)?;
    let has_problems = synced.done.iter().any(Done::has_problems);
    partial_unless(is_whole && !has_problems && !is_lost)
}

fn report(cx: &Context, args: &Args, synced: &Synced) -> Result<()> {
    if cx.is_json() {
        let transfers: Vec<_> = synced.done.iter().map(shown).collect();
        let mut members = json!({
            "dry_run": args.dry_run,
            "transfers": transfers,
            "recipients": synced.recipients,
            "audit": synced.records,
            "warnings": synced.warnings,
        });
        if args.heal {
            let shown = |one: &verify::Done| super::verify::shown(Some(args.dry_run), one);
            members["healed"] = synced.healed.iter().map(shown).collect();
        }
        return cx.json(&members);
    }
    cx.warn_all(&synced.warnings);
    synced.done.iter().try_for_each(|one| print(cx, one))?;
    for one in &synced.recipients {
        print_recipients(cx, args, one)?;
    }
    for one in &synced.records {
        let got = if args.dry_run { "would get" } else { "got" };
        let count = human::count(one.records, "record");
        cx.report(&format!(
            "{} from {}, audit log: {got} {count}",
            one.to, one.from
        ))?;
    }
    for one in &synced.healed {
        super::verify::print(cx, Some(args.dry_run), one)?;
    }
    Ok(())
}

fn print_recipients(cx: &Context, args: &Args, one: &Brought) -> Result<()> {
    let pair = &one.secrets_pair;
    if !one.copied.is_empty() {
        let got = if args.dry_run { "would get" } else { "got" };
        let names = one.copied.join(", ");
        cx.report(&format!(
            "{} from {}, secrets pair {pair}: {got} the recipients {names}",
            one.to, one.from
        ))?;
    }
    if !one.not_copied.is_empty() {
        let names = one.not_copied.join(", ");
        cx.note(&format!(
            "secrets pair {pair}: \"{}\" alone has {names}, and \"{}\" has recipients of its own: pitr config recipients --add gives access there",
            one.from, one.to
        ));
    }
    Ok(())
}

fn shown(done: &Done) -> serde_json::Value {
    let lacking = &done.lacking;
    let left_out: Vec<_> = lacking
        .left_out
        .iter()
        .map(|l| {
            json!({
                "what": l.what,
                "why": l.why,
                "conflict": l.cause == Cause::Conflict,
                "damaged": l.cause == Cause::Damage,
            })
        })
        .collect();
    let problems = |r: &Report| -> Vec<serde_json::Value> {
        let shown = r
            .problems
            .iter()
            .map(|p| json!({ "object": p.object, "detail": p.detail, "conflict": p.is_conflict }));
        shown.collect()
    };
    done.of.named(json!({
        "from": done.from,
        "to": done.to,
        "lacking": {
            "backups": lacking.backups,
            "segments": lacking.segment_count(),
            "histories": lacking.histories.len(),
            "increments": lacking.increments.len(),
            "log_objects": lacking.log_objects,
        },
        "unneeded_segments": lacking.unneeded_segments,
        "left_out": left_out,
        "unreadable": lacking.unreadable,
        "copied": done.report.as_ref().map(|r| json!({
            "backups": r.backups,
            "segments": r.segments,
            "objects": r.objects,
            "stored_bytes": r.bytes,
        })),
        "problems": done.report.as_ref().map_or_else(Vec::new, problems),
        "problem_count": done.report.as_ref().map_or(0, |r| r.problem_count),
        "complete": !done.is_cut_short,
    }))
}

fn print(cx: &Context, done: &Done) -> Result<()> {
    let what = |backups: usize, segments: u64| {
        let backups = human::count(backups as u64, "backup");
        match done.of {
            Of::Cluster(_) => format!("{backups}, {}", human::count(segments, "segment")),
            Of::Scope(_) => backups,
        }
    };
    let lacking = &done.lacking;
    let deed = match &done.report {
        _ if lacking.is_empty() => "lacks nothing that it may have".to_owned(),
        None => format!(
            "would get {}{}",
            what(lacking.backups.len(), lacking.segment_count()),
            match lacking.log_objects {
                0 => String::new(),
                objects => format!(", {} of the log", human::count(objects, "object")),
            }
        ),
        Some(r) => format!(
            "got {}, {} in all ({}){}",
            what(r.backups.len(), r.segments),
            human::count(r.objects, "object"),
            human::size(r.bytes),
            match done.is_cut_short {
                true => ", and ended early",
                false => "",
            }
        ),
    };
    let line = format!(
        "{} from {}, {}: {deed}",
        done.to,
        done.from,
        done.of.title()
    );
    cx.report(&line)?;
    for left in &lacking.left_out {
        let line = format!("{}: not copied: {}", left.what, left.why);
        match left.cause {
            Cause::Rule => cx.note(&line),
            Cause::Conflict | Cause::Damage => cx.warn(&line),
        }
    }
    for what in &lacking.unreadable {
        let name = &done.from;
        let line = format!("not copied, because \"{name}\" has it damaged: {what}");
        cx.warn(&line);
    }
    if lacking.unneeded_segments > 0 {
        cx.note(&format!(
            "not copied: {} that no backup in \"{}\" needs",
            human::count(lacking.unneeded_segments, "segment"),
            done.to
        ));
    }
    Ok(())
}
