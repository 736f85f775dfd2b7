//! `pitr redis info` and `pitr redis plan`: the moments of a server that can be had back.

use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::output::Table;
use super::{redis, redis_cluster};
use crate::err;
use crate::error::Result;
use crate::operate::human;
use crate::operate::redis::info::{self, Info};
use crate::operate::redis::plan::{self, Planned};
use crate::operate::redis::shards;
use crate::pg::time::TimestampTz;
use crate::redis::overview::{self, Line, Range};
use crate::redis::route::{Moment, Route, Target};
use crate::repo::id::BackupId;
use crate::repo::log_keys;

/// The moment that is wanted.
#[derive(clap::Args, Debug)]
pub struct TargetArgs {
    /// Replay what a receiver stored, up to this time
    #[arg(long, value_name = "TIME", conflicts_with_all = ["target_offset", "latest"])]
    pub target_time: Option<TimestampTz>,

    /// Replay what a receiver stored, up to this offset of the server's replication, as "pitr redis info" shows it
    #[arg(long, value_name = "REPLID:N", conflicts_with_all = ["latest", "history"], value_parser = offset)]
    pub target_offset: Option<(String, u64)>,

    /// Replay all that a receiver stored
    #[arg(long)]
    pub latest: bool,

    /// Follow the server to this replication id, where a failover left two
    #[arg(long, value_name = "REPLID", value_parser = replid)]
    pub history: Option<String>,
}

impl TargetArgs {
    /// The target; the end of the log where none is named.
    pub fn read_or_end(&self) -> Result<Target> {
        Ok(self.read()?.unwrap_or(Target {
            moment: Moment::End,
            replid: None,
        }))
    }

    /// The target; none where none of its options is given.
    ///
    /// # Errors
    /// `Usage` for a time out of range, and for a history without a moment.
    pub fn read(&self) -> Result<Option<Target>> {
        if let Some((replid, position)) = &self.target_offset {
            return Ok(Some(Target {
                moment: Moment::Position(*position),
                replid: Some(replid.clone()),
            }));
        }
        let moment = match (self.target_time, self.latest, &self.history) {
            (Some(time), ..) => {
                let micros = time.unix_micros();
                Moment::Time(micros.ok_or_else(|| err!(Usage, "--target-time is out of range"))?)
            }
            (None, true, _) => Moment::End,
            (None, false, None) => return Ok(None),
            (None, false, Some(_)) => {
                return Err(err!(Usage, "--history needs --target-time or --latest"));
            }
        };
        Ok(Some(Target {
            moment,
            replid: self.history.clone(),
        }))
    }
}

fn offset(text: &str) -> std::result::Result<(String, u64), String> {
    overview::parse_target(text).ok_or_else(|| {
        "a replication id of 40 hexadecimal digits, a colon and an offset are needed".to_owned()
    })
}

fn replid(text: &str) -> std::result::Result<String, String> {
    match log_keys::is_replid(text) {
        true => Ok(text.to_owned()),
        false => Err("a replication id has 40 hexadecimal digits".to_owned()),
    }
}

/// Show what a receiver stored of [redis.NAME]: histories, times, gaps
///
/// Each history is the stream of commands of one server, named by its replication id. A failover begins another one, which goes on from it. --commands adds what
/// emptied or exchanged databases, with the target just before it. For a cluster the times come first that all shards have.
///
/// Example: pitr redis info cache --commands
#[derive(clap::Args, Debug)]
pub struct InfoArgs {
    /// The name of the data set
    pub name: String,

    /// Show each FLUSHALL, FLUSHDB, SWAPDB and FUNCTION, too
    #[arg(long)]
    pub commands: bool,
}

/// Show whether a moment of [redis.NAME] can be had back, and from what
///
/// Without a target it is the last moment that is stored. Nothing is written.
///
/// The moment of a cluster is that of all shards. Slots that moved then, or that nobody looked at, are named: it is not exact (exit status 6).
///
/// Exit status 5 when the moment is out of reach, 8 when two histories lead there.
///
/// Example: pitr redis plan cache --target-time "2026-11-24T08:15:00+01:00"
#[derive(clap::Args, Debug)]
pub struct PlanArgs {
    /// The name of the data set
    pub name: String,

    /// Begin with this backup; without it with the newest before the target
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,

    /// The moment.
    #[command(flatten)]
    pub target: TargetArgs,
}

pub fn info(args: &InfoArgs, cx: &Context) -> Result<u8> {
    if let Some(stored) = shards::of(&cx.session, &args.name)? {
        return redis_cluster::info(args, &stored, cx);
    }
    let info = info::run(&cx.session, &args.name, args.commands)?;
    cx.answered(&info_json(&args.name, info.as_ref()), || match &info {
        Some(info) => report(args, &info.histories, cx),
        None => {
            note_nothing(&args.name, cx);
            Ok(())
        }
    })
}

pub(super) fn info_json(name: &str, info: Option<&Info>) -> Value {
    let (repository, histories) = info.map(|i| (&i.repository, &i.histories[..])).unzip();
    json!({ "name": name, "repository": repository, "histories": histories.unwrap_or_default() })
}

pub(super) fn note_nothing(name: &str, cx: &Context) {
    cx.note(&format!(
        "nothing was received: pitr redis receive {name} makes every moment restorable"
    ));
}

pub(super) fn report(args: &InfoArgs, histories: &[Line], cx: &Context) -> Result<()> {
    for history in histories {
        report_history(history, cx)?;
    }
    match args.commands {
        true => report_commands(histories, cx),
        false => Ok(()),
    }
}

fn report_history(history: &Line, cx: &Context) -> Result<()> {
    let server = history.server.as_ref();
    let server = server.map(|s| format!(", {} {}", s.flavor, s.server_version));
    cx.report(&format!(
        "history {}{}",
        history.replid,
        server.unwrap_or_default()
    ))?;
    for parent in &history.parents {
        cx.report(&format!(
            "  goes on from {} at offset {}",
            parent.replid, parent.fork
        ))?;
    }
    for range in &history.ranges {
        for beginning in &history.beginnings {
            if beginning.position == range.from
                && let (Some(after), Some(why)) = (&beginning.after, &beginning.reason)
            {
                cx.report(&format!(
                    "  gap behind offset {} of {}: {why}",
                    after.position, after.replid
                ))?;
            }
        }
        cx.report(&format!("  {}", shown(range)))?;
    }
    Ok(())
}

fn shown(range: &Range) -> String {
    let time = |time: Option<TimestampTz>| time.map_or("?".to_owned(), human::time);
    format!(
        "offsets {} to {}, {} to {}, {}",
        range.from,
        range.to,
        time(range.from_time),
        time(range.to_time),
        human::size(range.to - range.from)
    )
}

fn report_commands(histories: &[Line], cx: &Context) -> Result<()> {
    let mut table = Table::of("TIME | COMMAND | >DATABASE | JUST BEFORE IT");
    for history in histories {
        for one in &history.notable {
            table.row([
                one.time.map_or("?".to_owned(), |time| time.to_string()),
                one.command.to_owned(),
                one.db.map_or("?".to_owned(), |db| db.to_string()),
                format!(
                    "--target-offset {}",
                    overview::target(&history.replid, one.position)
                ),
            ]);
        }
    }
    match table.is_empty() {
        true => cx.report("no FLUSHALL, FLUSHDB, SWAPDB or FUNCTION was received"),
        false => cx.table(&table),
    }
}

pub fn plan(args: &PlanArgs, cx: &Context) -> Result<u8> {
    if let Some(stored) = shards::of(&cx.session, &args.name)? {
        return redis_cluster::plan(args, &stored, cx);
    }
    let target = args.target.read_or_end()?;
    let planned = plan::run(&cx.session, &args.name, args.backup.as_ref(), &target)?;
    cx.answered(&plan_json(&args.name, &planned), || {
        let (member, route) = (&planned.member, &planned.route);
        let end = end_of(&planned);
        let backup = redis::of_backup(&planned.id, member);
        cx.report(&format!("{backup}, from {}", planned.repository))?;
        match end {
            Some((replid, offset)) => {
                cx.report(&format!("log: {}", legs(route)))?;
                let of = |time| format!(", of {time}{}", ago(cx, time));
                let of = route.arrived().map_or(String::new(), of);
                cx.report(&format!("state: offset {offset} of {replid}{of}"))?;
            }
            None => cx.report(&format!("state: {}", redis::moment(member)))?,
        }
        cx.note(&format!("next: {}", next(&args.name, &planned)));
        Ok(())
    })
}

/// The history and the offset at the end of a way; none of a data set without a position.
fn end_of(planned: &Planned) -> Option<(&str, u64)> {
    planned.route.end().or_else(|| planned.member.position())
}

fn next(name: &str, planned: &Planned) -> String {
    let backup = format!("pitr redis restore {name} --to DIR --backup {}", planned.id);
    match end_of(planned) {
        Some((replid, offset)) => format!(
            "{backup} --target-offset {}",
            overview::target(replid, offset)
        ),
        None => backup,
    }
}

pub(super) fn plan_json(name: &str, planned: &Planned) -> Value {
    let (member, route) = (&planned.member, &planned.route);
    let end = end_of(planned);
    json!({
        "name": name,
        "repository": planned.repository,
        "backup": planned.id,
        "received_time": member.received_time,
        "size_bytes": member.bytes(),
        "log_bytes": route.bytes(),
        "replid": end.map(|(replid, _)| replid),
        "offset": end.map(|(_, offset)| offset),
        "arrived_time": route.arrived(),
        "next": next(name, planned),
    })
}

fn legs(route: &Route) -> String {
    let legs: Vec<String> = route
        .legs
        .iter()
        .map(|leg| format!("{} to {} of {}", leg.from, leg.to, leg.replid))
        .collect();
    format!(
        "{}, offsets {}",
        human::size(route.bytes()),
        legs.join(", then ")
    )
}

/// How long ago a time was, where it was.
pub(super) fn ago(cx: &Context, time: TimestampTz) -> String {
    let now = cx.session.host.now().unix_micros();
    let past = now.zip(time.unix_micros()).map(|(now, then)| now - then);
    let past = past.and_then(|micros| u64::try_from(micros).ok());
    past.map_or(String::new(), |micros| {
        format!(" ({} ago)", human::duration(Duration::from_micros(micros)))
    })
}
