//! `pitr repo tier`.

use serde_json::json;

use super::output::Table;
use super::{Context, done_or_unconfirmed, partial_or_warnings};
use crate::config::TierBy;
use crate::err;
use crate::error::Result;
use crate::operate::tiers::{self, Done};
use crate::operate::{human, of};
use crate::plan::tiers::{Move, Sum};

/// Whether objects move.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show what would move, and move nothing
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,

    /// Do it
    #[arg(long)]
    pub confirm: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let (done, failures) = tiers::run(&cx.session, args.confirm)?;
    if cx.is_json() {
        let mut all = of::split(&done, |one| &one.of, shown);
        all.insert("confirmed".to_owned(), args.confirm.into());
        cx.json(&all)?;
    } else {
        for one in &done {
            print(cx, one)?;
            warn(cx, one);
        }
    }
    let is_whole = cx.told(failures)?;
    let outcomes = done.iter().filter_map(|one| one.outcome.as_ref());
    let refused: u64 = outcomes.map(|outcome| outcome.refused_count).sum();
    if refused > 0 {
        return Err(err!(Partial, "the repository refused {}", human::count(refused, "move"))
            .hint("What is left is tried again by the next run. The credentials need s3:GetObjectTagging and s3:PutObjectTagging, or to read and write where tier_by = \"copy\"."));
    }
    let is_idle = done.iter().all(|one| one.plan.moves.is_empty());
    let is_enough = args.dry_run || args.confirm || is_idle;
    done_or_unconfirmed(is_enough, "What is shown above would be moved.")?;
    partial_or_warnings(is_whole, done.iter().all(|one| one.withheld.is_empty()))
}

fn shown(done: &Done) -> serde_json::Value {
    let plan = &done.plan;
    let one = |one: &Move| {
        json!({
            "key": one.key,
            "kind": one.kind,
            "stored_bytes": one.size_bytes,
            "from": one.from.name(),
            "to": one.to.name(),
            "backup": one.backup.as_ref().map(ToString::to_string),
            "early": one.is_early,
        })
    };
    let sum = |sum: Sum| json!({ "object_count": sum.objects, "stored_bytes": sum.bytes });
    let (price, saved) = done.prices();
    done.of.named(json!({
        "repository": done.configured.name,
        "moves": plan.moves.iter().map(one).collect::<Vec<_>>(),
        "held": sum(plan.held),
        "small": sum(plan.small),
        "leaving": sum(plan.leaving),
        "withheld": done.withheld,
        "price": price.map(|p| p.to_string()),
        "saved_month_price": saved,
        "currency": done.configured.prices.currency,
        "outcome": done.outcome,
    }))
}

fn print(cx: &Context, done: &Done) -> Result<()> {
    cx.report(&format!(
        "{} in repository {}",
        done.of.title(),
        done.configured.name
    ))?;
    let mut table =
        Table::of("kind | newest backup that needs it | from | to | >objects | >stored");
    for ((kind, backup, from, to), sum) in done.groups() {
        table.row([
            kind.noun(),
            &backup,
            from.name(),
            to.name(),
            &sum.objects.to_string(),
            &human::size(sum.bytes),
        ]);
    }
    if !table.is_empty() && !cx.is_quiet() {
        cx.table(&table)?;
    }
    lines(done).iter().try_for_each(|line| cx.report(line))
}

fn lines(done: &Done) -> Vec<String> {
    let (plan, configured) = (&done.plan, &done.configured);
    let mut lines = Vec::new();
    let objects = |sum: Sum| {
        format!(
            "{} ({})",
            human::count(sum.objects, "object"),
            human::size(sum.bytes)
        )
    };
    let stays = [
        (
            plan.held,
            "needed by the newest backup, or by one that is read now",
        ),
        (
            plan.small,
            "smaller than 128 KiB, for which colder classes charge",
        ),
        (plan.leaving, "of backups that expiry lets go"),
    ];
    for (sum, why) in stays.into_iter().filter(|(sum, _)| sum.objects > 0) {
        lines.push(format!("old enough, and stays: {} {why}", objects(sum)));
    }
    let currency = configured.prices.currency.as_deref().unwrap_or_default();
    let (price, saved) = done.prices();
    if !plan.moves.is_empty() {
        lines.extend(price.map(|p| {
            format!("the moves cost {p} {currency}")
                .trim_end()
                .to_owned()
        }));
        lines.extend(
            saved.map(|s| format!("a month then costs {s} {currency} less").replace("  ", " ")),
        );
    }
    match &done.outcome {
        None if plan.moves.is_empty() => lines.push("nothing to move".to_owned()),
        None => {}
        Some(o) => {
            let verb = match configured.s3.tier_by {
                TierBy::Rules => "tagged for the rules of the bucket",
                TierBy::Copy => "moved",
            };
            lines.push(format!("{verb}: {}", human::count(o.moved, "object")));
            if o.waiting > 0 {
                let count = human::count(o.waiting, "object");
                lines.push(format!(
                    "tagged before, and not moved by a rule yet: {count}"
                ));
            }
            if o.kept > 0 {
                let count = human::count(o.kept, "object");
                lines.push(format!(
                    "not moved, because somebody reads or needs them since the run began: {count}"
                ));
            }
            if o.locked_count > 0 {
                let count = human::count(o.locked_count, "object");
                lines.push(format!("locked by the store, and not copied: {count}"));
            }
        }
    }
    lines
}

fn warn(cx: &Context, done: &Done) {
    for (class, sum) in done.early() {
        cx.warn(&format!(
            "retention may delete {} ({}) before the {} are over for which {class} is paid at least",
            human::count(sum.objects, "object"),
            human::size(sum.bytes),
            human::duration(class.least_stay())
        ));
    }
    cx.warn_all(&done.withheld);
    if let Some(o) = &done.outcome {
        cx.tell_left(("move", "moved"), &o.refused, &o.locked);
    }
}
