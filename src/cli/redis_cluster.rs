//! `pitr redis` with the name of a cluster: all of its shards.

use serde_json::{Value, json};

use super::backup::merged;
use super::redis::{
    BackupArgs, LsArgs, RestoreArgs, backup_json, described, log_of, note_none, place_of,
    received_json, report_received, restore_json, table,
};
use super::redis_moments::{self, InfoArgs, PlanArgs, ago};
use super::{Context, warnings_unless};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate::human;
use crate::operate::redis::backup;
use crate::operate::redis::list;
use crate::operate::redis::receive_cluster;
use crate::operate::redis::restore::{self, Restored};
use crate::operate::redis::shards::{self, OfShard, Planned, Wanted};
use crate::operate::redis::windows::{self, Logs};
use crate::pg::time::TimestampTz;
use crate::redis::slots::{Slots, Why};
use crate::redis::window::Window;

pub fn receive(name: &str, cx: &Context) -> Result<u8> {
    let ended = receive_cluster::all(receive_cluster::run(&cx.session, name)?)?;
    let is_shipped = ended.iter().all(|(_, ended)| ended.is_shipped);
    let shards = ended.iter();
    let shards = shards.map(|(shard, ended)| received_json(shard, ended));
    let shown = of_shards(name, shards, &json!({ "shipped": is_shipped }));
    cx.answer(&shown, || {
        ended
            .iter()
            .try_for_each(|(shard, ended)| report_received(shard, ended, cx))
    })?;
    if !is_shipped {
        cx.warn("a repository does not hold all of it yet: the rest is in the journals, and the next receiver ships it");
    }
    Ok(warnings_unless(is_shipped))
}

pub fn backup(args: &BackupArgs, cx: &Context) -> Result<u8> {
    let all = backup::of_cluster(&cx.session, &args.asked())?;
    for (shard, taken) in &all {
        for warning in &taken.warnings {
            cx.warn(&format!("shard {shard}: {warning}"));
        }
    }
    let shards = all.iter().map(|(shard, taken)| backup_json(shard, taken));
    cx.answer(&of_shards(&args.name, shards, &Value::Null), || {
        all.iter().try_for_each(|(shard, taken)| {
            cx.report(&format!(
                "shard {shard}: backup {}, {}, {} stored as {}, offset {} of {}",
                taken.root.head.id,
                described(&taken.member),
                human::size(taken.member.bytes()),
                human::size(taken.root.head.stored_bytes),
                taken.member.offset,
                taken.member.replid,
            ))
        })
    })?;
    let is_checked = all.iter().all(|(_, taken)| taken.member.has_checksum);
    Ok(warnings_unless(is_checked))
}

/// The answer about a cluster as JSON: its shards, and `more`.
fn of_shards(name: &str, shards: impl Iterator<Item = Value>, more: &Value) -> Value {
    let shards: Vec<Value> = shards.collect();
    merged(json!({ "name": name, "shards": shards }), more)
}

/// Restores all shards to one moment.
pub fn restore(args: &RestoreArgs, stored: &[String], cx: &Context) -> Result<u8> {
    let option = match () {
        () if args.into.is_some() => Some("--into"),
        () if args.backup.is_some() => Some("--backup"),
        () if args.as_replica => Some("--as-replica"),
        () => None,
    };
    if let Some(option) = option {
        let shards = stored.join(", ");
        return Err(err!(Usage, "redis \"{}\" is a cluster, and {option} works with one shard alone", args.name)
            .hint(format!("Nothing was written.\nName the shard: {shards}; or restore all of them into directories: --to DIR --target-time TIME")));
    }
    let Some(to) = args.to.as_deref() else {
        return Err(err!(Usage, "--to is needed"));
    };
    let planned = match args.target.read()? {
        Some(target) => Some(shards::plan(&cx.session, &args.name, stored, &target)?),
        None => None,
    };
    let wanted: Vec<Wanted> = match &planned {
        Some(planned) => planned.shards.iter().map(OfShard::wanted).collect(),
        None => shards::newest(&cx.session, stored)?,
    };
    let asked = restore::Asked {
        name: &args.name,
        to,
        backup: None,
        target: None,
        as_replica: false,
        server_version: args.server_version.as_deref(),
        is_dry_run: args.dry_run,
    };
    let all = shards::restore(&cx.session, &wanted, &asked)?;
    let status = match &planned {
        Some(planned) => judged(planned, cx),
        None => {
            cx.warn("without a target each shard is as in its newest backup: that is not one moment. --target-time and --latest lead to one");
            exit::WARNINGS
        }
    };
    let shards = all.iter().zip(&wanted).map(|((shard, restored), one)| {
        with_slots(restore_json(args, shard, restored), one.owned.as_deref())
    });
    let more = json!({ "to": to.to_string_lossy(), "dry_run": args.dry_run });
    let more = merged(more, &planned.as_ref().map_or(Value::Null, moment_json));
    cx.answer(&of_shards(&args.name, shards, &more), || {
        for ((_, restored), one) in all.iter().zip(&wanted) {
            report(args, (one, restored), cx)?;
        }
        if let Some(time) = planned.as_ref().and_then(time_of) {
            cx.report(&format!("moment: {time}{}", ago(cx, time)))?;
        }
        cx.note("next: each directory is the data set of a server; docs/redis.md, \"A cluster from restored directories\", makes them one cluster again");
        Ok(())
    })?;
    Ok(status)
}

fn report(args: &RestoreArgs, (one, restored): (&Wanted, &Restored), cx: &Context) -> Result<()> {
    let log = log_of(restored).map(|log| format!(" {log}"));
    cx.report(&format!(
        "shard {}, slots {}: backup {}, {}{}, {}",
        one.name,
        one.owned.as_deref().unwrap_or("?"),
        restored.id,
        human::size(restored.member.bytes()),
        log.unwrap_or_default(),
        place_of(args, restored)
    ))?;
    if let Err(why) = &restored.checked {
        cx.note(&format!("nothing checked its append-only file: {why}"));
    }
    Ok(())
}

fn with_slots(value: Value, slots: Option<&str>) -> Value {
    merged(value, &json!({ "slots": slots }))
}

pub fn plan(args: &PlanArgs, stored: &[String], cx: &Context) -> Result<u8> {
    if args.backup.is_some() {
        return Err(err!(
            Usage,
            "redis \"{}\" is a cluster, and --backup belongs to one shard",
            args.name
        )
        .hint(format!("Name the shard: {}", stored.join(", "))));
    }
    let target = args.target.read_or_end()?;
    let planned = shards::plan(&cx.session, &args.name, stored, &target)?;
    let status = judged(&planned, cx);
    let shards = planned.shards.iter().map(|one| {
        let value = redis_moments::plan_json(&one.name, &one.planned);
        with_slots(value, one.owned.as_deref())
    });
    let shown = of_shards(&args.name, shards, &moment_json(&planned));
    cx.answer(&shown, || {
        for one in &planned.shards {
            let (member, route) = (&one.planned.member, &one.planned.route);
            cx.report(&format!(
                "shard {}, slots {}: backup {} at {}, {}, and {} of its log",
                one.name,
                one.owned.as_deref().unwrap_or("?"),
                one.planned.id,
                human::time(member.received_time),
                human::size(member.bytes()),
                human::size(route.bytes()),
            ))?;
        }
        if let Some(time) = time_of(&planned) {
            cx.report(&format!("moment: {time}{}", ago(cx, time)))?;
            cx.note(&format!(
                "next: pitr redis restore {} --to DIR --target-time \"{time}\"",
                args.name
            ));
        }
        Ok(())
    })?;
    Ok(status)
}

/// The moment of all shards as JSON.
fn moment_json(planned: &Planned) -> Value {
    let (slots, behind) = (&planned.slots, planned.behind.iter());
    let behind = behind.map(|(shard, end)| json!({ "shard": shard, "end_time": end }));
    json!({
        "target_time": time_of(planned),
        "exact": slots.is_exact(),
        "moved": slots.moved,
        "doubts": slots.doubts,
        "missing_slots": slots.missing,
        "slots_twice": slots.twice,
        "behind": behind.collect::<Vec<_>>(),
    })
}

fn time_of(planned: &Planned) -> Option<TimestampTz> {
    TimestampTz::from_unix_micros(planned.micros)
}

/// Warns of shards that hold the last moment back, and of what makes it inexact; returns the exit status.
fn judged(planned: &Planned, cx: &Context) -> u8 {
    for (shard, end) in &planned.behind {
        cx.warn(&format!(
            "shard {shard}: its log ends at {end}{}: nothing later of any shard is restored. --target-time leads to later moments, once it has a backup or is received again",
            ago(cx, *end)
        ));
    }
    match (exactness(&planned.slots, cx), planned.behind.is_empty()) {
        (exit::SUCCESS, false) => exit::WARNINGS,
        (status, _) => status,
    }
}

/// Warns of what makes a moment inexact; returns the exit status.
fn exactness(slots: &Slots, cx: &Context) -> u8 {
    if slots.is_exact() {
        return exit::SUCCESS;
    }
    for one in &slots.moved {
        cx.warn(&format!(
            "slots {} moved between {}, from {} to {}: a cut between two shards has a key twice, or not at all",
            one.slots,
            one.shards.join(" and "),
            one.from,
            one.to
        ));
    }
    for one in &slots.doubts {
        let why = match one.why {
            Why::Unwatched => "nobody looked at its slots",
            Why::ClockSetBack => {
                "its slots were recorded twice: a clock was set back, or two receivers run"
            }
            Why::MigrationsUnseen => {
                "its server may have moved slots by itself, which pitr cannot ask for"
            }
            Why::Silent => {
                "nothing came from its server: what came later may have been written before"
            }
        };
        cx.warn(&format!(
            "shard {}: {why}, from {} to {}{}",
            one.shard,
            one.from,
            one.to,
            match one.to.duration_since(one.from) {
                Some(time) => format!(" ({})", human::duration(time)),
                None => String::new(),
            }
        ));
    }
    if !slots.missing.is_empty() {
        cx.warn(&format!(
            "no stored shard had slots {} then: their keys are in no directory",
            slots.missing
        ));
    }
    if !slots.twice.is_empty() {
        cx.warn(&format!("two shards had slots {} then", slots.twice));
    }
    cx.note("the moment is not exact. pitr redis plan says it of any other time, too");
    exit::WARNINGS
}

/// Shows the times that all shards have, and the histories of each.
pub fn info(args: &InfoArgs, stored: &[String], cx: &Context) -> Result<u8> {
    let logs = windows::run(&cx.session, stored, args.commands)?;
    let shards = logs.shards.iter();
    let shards = shards.map(|shard| redis_moments::info_json(&shard.name, shard.info.as_ref()));
    let more = json!({ "common_windows": logs.common });
    cx.answered(&of_shards(&args.name, shards, &more), || {
        report_common(&args.name, &logs, cx)?;
        for shard in &logs.shards {
            cx.report(&format!("shard {}", shard.name))?;
            if let Some(info) = &shard.info {
                redis_moments::report(args, &info.histories, cx)?;
            }
        }
        Ok(())
    })
}

fn report_common(name: &str, logs: &Logs, cx: &Context) -> Result<()> {
    // In full: a time that is rounded may be out of reach.
    for window in &logs.common {
        let Window { from_time, to_time } = window;
        cx.report(&format!("all shards: {from_time} to {to_time}"))?;
    }
    if logs.shards.iter().all(|shard| shard.info.is_none()) {
        redis_moments::note_nothing(name, cx);
        return Ok(());
    }
    if logs.common.is_empty() {
        cx.report("all shards: no time in common")?;
        let lacking = logs.shards.iter().filter(|s| s.is_live && !s.has_window);
        let lacking: Vec<&str> = lacking.map(|shard| shard.name.as_str()).collect();
        if !lacking.is_empty() {
            cx.note(&format!(
                "no log goes on from a backup of {}: pitr redis backup {name}, while its receiver runs",
                lacking.join(", ")
            ));
        }
    }
    let left: Vec<&str> = logs
        .shards
        .iter()
        .filter(|shard| !shard.is_live)
        .map(|shard| shard.name.as_str())
        .collect();
    if !left.is_empty() {
        cx.note(&format!(
            "left out of the times of all, for lack of slots: {}",
            left.join(", ")
        ));
    }
    Ok(())
}

pub fn ls(args: &LsArgs, stored: &[String], cx: &Context) -> Result<u8> {
    let mut all = Vec::new();
    for shard in stored {
        all.push((shard, list::run(&cx.session, shard)?));
    }
    let shards = all.iter().map(|(shard, (repository, backups))| {
        json!({"name": shard, "repository": repository, "backups": backups})
    });
    cx.answered(&of_shards(&args.name, shards, &Value::Null), || {
        if all.iter().all(|(_, (_, backups))| backups.is_empty()) {
            note_none(&args.name, cx);
            return Ok(());
        }
        all.iter().try_for_each(|(shard, (_, listed))| {
            cx.report(&format!("shard {shard}"))?;
            cx.table(&table(listed))
        })
    })
}
