//! `pitr repo thaw`.

use clap::ValueEnum;
use serde_json::json;

use super::Context;
use super::output::Table;
use crate::error::Result;
use crate::operate::human;
use crate::operate::thaw::{self, Asked, Object, Planned};
use crate::repo::id::BackupId;
use crate::store::s3::class::Speed;

/// The backup to thaw, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Thaw what a restore of this backup needs
    #[arg(long, value_name = "ID")]
    pub backup: BackupId,

    /// Thaw the WAL behind its end, too
    #[arg(long)]
    pub wal: bool,

    /// How fast the store works, and how dear: minutes, hours, or up to two days
    #[arg(long, value_enum, default_value_t = Speed::Standard)]
    pub speed: Speed,

    /// For how many days the objects stay readable
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=365))]
    pub days: u32,

    /// Wait until everything can be read
    #[arg(long)]
    pub wait: bool,

    /// Show what would be requested, and request nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let asked = Asked {
        backup: args.backup.clone(),
        with_wal: args.wal,
        days: args.days,
        speed: args.speed,
    };
    let mut planned = thaw::plan(&cx.session, &asked)?;
    let price = planned.price(asked.speed).map(|p| p.to_string());
    let requested = match args.dry_run {
        true => 0,
        false => planned.request(&cx.session, &asked)?,
    };
    let takes = planned.takes(asked.speed);
    if args.wait {
        planned.wait(&cx.session)?;
    }
    let shown = as_json(args, &planned, requested, price.as_deref());
    cx.answered(&shown, || {
        show(cx, args, &planned, price.as_deref())?;
        match (planned.is_ready(), takes) {
            (true, _) => cx.report("everything that the backup needs can be read")?,
            (false, Some(takes)) => cx.report(&format!(
                "{} within {}",
                match args.dry_run {
                    true => "it would be readable",
                    false => "it can be read",
                },
                human::duration(takes)
            ))?,
            (false, None) => {}
        }
        if !args.dry_run && !planned.is_ready() {
            let speed = args.speed.to_possible_value();
            cx.note(&format!(
                "next: pitr repo thaw --backup {} --days {} --speed {}{} --wait",
                args.backup,
                args.days,
                speed.as_ref().map_or("", |speed| speed.get_name()),
                if args.wal { " --wal" } else { "" }
            ));
        }
        Ok(())
    })
}

fn show(cx: &Context, args: &Args, planned: &Planned, price: Option<&str>) -> Result<()> {
    let mut table = Table::of("class | state | >objects | >stored | until");
    for ((class, state), (sum, first)) in planned.groups() {
        table.row([
            class,
            state,
            &sum.objects.to_string(),
            &human::size(sum.bytes),
            &first.map_or_else(String::new, human::time),
        ]);
    }
    if !table.is_empty() {
        cx.table(&table)?;
    }
    let price = match (price, &planned.configured.prices.currency) {
        (Some(price), Some(currency)) => format!(", at {price} {currency}"),
        (Some(price), None) => format!(", at {price}"),
        (None, _) => String::new(),
    };
    cx.report(&format!(
        "backup {} in repository {}: {} of {} in classes that must be thawed{price}",
        args.backup,
        planned.configured.name,
        planned.objects.len(),
        human::count(planned.needed_count as u64, "object"),
    ))
}

fn as_json(
    args: &Args,
    planned: &Planned,
    requested: u64,
    price: Option<&str>,
) -> serde_json::Value {
    let object = |one: &Object| {
        json!({
            "key": one.object.key,
            "stored_bytes": one.object.size_bytes,
            "class": one.object.class.name(),
            "state": one.word(),
            "until": one.until().map(|t| t.to_string()),
        })
    };
    json!({
        "repository": planned.configured.name,
        "backup": args.backup.to_string(),
        "needed_count": planned.needed_count,
        "objects": planned.objects.iter().map(object).collect::<Vec<_>>(),
        "requested_count": requested,
        "price": price,
        "currency": planned.configured.prices.currency,
        "ready": planned.is_ready(),
        "takes_seconds": planned.takes(args.speed).map(|d| d.as_secs()),
    })
}
