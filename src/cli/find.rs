//! `pitr find`.

use std::path::PathBuf;

use super::clone::{PlaceArgs, enter};
use super::{Context, partial_unless};
use crate::err;
use crate::error::Result;
use crate::find::event::{Event, Kind};
use crate::operate::cloned_names::Place;
use crate::operate::find::{self, Answer, AskedTable, Question, Shown};
use crate::operate::human;
use crate::operate::moment::Moment;

/// Find what happened to data, when, by which transaction, and the target just before it
///
/// Reads the archived WAL of the timeline that is the cluster. Tables that were dropped, truncated or written anew (VACUUM FULL, CLUSTER, ALTER
/// TABLE, REFRESH MATERIALIZED VIEW), databases and tablespaces are found by the segments' indexes; rows that were deleted or updated take the
/// decoding of each segment, and are looked for where --since, --xid or --kind asks for it. Each answer ends with the command that plans a
/// restore to the moment before. Changes nothing. Exit status 10 where a part of the WAL could not be looked at.
///
/// Example: pitr find --table public.orders --since "2026-11-20 06:00+01"
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this table, by the name that it had then or has now
    ///
    /// With its schema, as public.orders, or without it in any schema.
    #[arg(long, value_name = "[SCHEMA.]NAME")]
    pub table: Option<String>,

    /// Only these kinds, several with commas: drop, truncate, delete, update, rewrite, database, tablespace
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    pub kind: Vec<Kind>,

    /// Only what was committed at this time or later: a time such as "2026-11-20 06:40:49+01", a day, or an age such as 1h or 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,

    /// Only what was committed at this time or earlier; a day counts to its end
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,

    /// Only what this transaction did; of a subtransaction take the one around it
    #[arg(long, value_name = "XID")]
    pub xid: Option<u32>,

    /// Leave out deletes and updates of fewer rows of a table in one transaction
    ///
    /// 1000 unless said otherwise; 1 with --table or --xid.
    #[arg(long, value_name = "N")]
    pub min_rows: Option<u64>,

    /// Let PostgreSQL tell the names that nothing else tells, on clones of the moments before
    ///
    /// A clone replays from the backup before its moment, and is thrown away; at most 10 are made. Needs what "pitr clone" needs.
    #[arg(long = "clone")]
    pub clones: bool,

    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR", requires = "clones")]
    pub bin: Option<PathBuf>,

    #[command(flatten)]
    pub place: PlaceArgs,
}

fn kind(text: &str) -> Result<Kind> {
    let all = Kind::ALL;
    all.into_iter().find(|k| k.as_str() == text).ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|k| k.as_str()).collect();
        err!(Usage, "the kinds are {}", known.join(", "))
    })
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let clones = place(args, cx)?;
    let now = cx.session.host.now();
    let time = |moment: &Option<Moment>| moment.as_ref().map(|m| m.before(now)).transpose();
    let until = args.until.as_ref().map(|m| m.end_before(now));
    let question = Question {
        table: args.table.clone(),
        kinds: args.kind.iter().copied().collect(),
        since: time(&args.since)?,
        until: until.transpose()?,
        xid: args.xid,
        rows_min: args.min_rows,
        clones,
    };
    let answer = find::look(&cx.session, &question)?;
    cx.answer(&answer, || show(cx, &answer, &question))?;
    partial_unless(answer.unread.is_empty())
}

/// Returns where clones may be made. A clone has namespaces of its own, which this command enters before anything else.
fn place(args: &Args, cx: &Context) -> Result<Option<Place>> {
    if !args.clones {
        if args.place.dir.is_some() {
            return Err(err!(
                Usage,
                "--dir is where clones are made, and none is made without --clone"
            ));
        }
        cx.stop_in_order()?;
        return Ok(None);
    }
    Ok(Some(Place {
        below: enter(&args.place, cx)?,
        bin: args.bin.clone(),
    }))
}

fn show(cx: &Context, answer: &Answer, question: &Question) -> Result<()> {
    cx.lines(answer.events.iter().map(render))?;
    for unread in &answer.unread {
        cx.warn(&format!(
            "the WAL from {} to {} was not looked at: {}",
            unread.from_lsn, unread.to_lsn, unread.why
        ));
    }
    if answer.nameless_count > 0 && question.table.is_some() {
        let count = human::count(answer.nameless_count, "event");
        cx.note(&format!(
            "{count} of relations whose name is not known: without --table they are shown by number"
        ));
    }
    let of_table = table_line(answer, question);
    of_table.iter().for_each(|line| cx.note(line));
    let of_rows = rows_line(answer, question);
    of_rows.iter().for_each(|line| cx.note(line));
    if !answer.kinds.iter().any(|kind| kind.needs_rows()) && question.kinds.is_empty() {
        cx.note("deleted and updated rows were not looked for: add --since TIME");
    }
    let found = human::count(answer.events.len() as u64, "event");
    cx.note(&format!(
        "{found}; {}, {} decoded",
        human::count(answer.segment_count, "segment"),
        answer.decoded_count
    ));
    if let Some(end) = answer.archived_lsn.filter(|_| answer.reaches_beyond) {
        let newest = answer.archived_time.map_or_else(String::new, |time| {
            format!(", its last transaction at {}", human::exact_time(time))
        });
        cx.note(&format!(
            "the archived WAL ends at {end}{newest}; for what came later: select pg_switch_wal() on the server, and ask again"
        ));
    }
    Ok(())
}

/// The meaning of a table's name that has no event; none where it says nothing.
fn table_line(answer: &Answer, question: &Question) -> Option<String> {
    let table = question.table.as_ref()?;
    match answer.table.as_ref()? {
        AskedTable::Known => None,
        AskedTable::Partitioned => {
            Some("a partitioned table has no rows of its own: ask for its partitions".to_owned())
        }
        AskedTable::Unknown(near) => {
            let near = near.as_ref().map(|near| format!("; near: {near}"));
            Some(format!(
                "no table \"{table}\" is in the lists of this window's backups{}",
                near.unwrap_or_default()
            ))
        }
    }
}

/// That small changes are left out, where nobody asked for that.
fn rows_line(answer: &Answer, question: &Question) -> Option<String> {
    let is_default = question.rows_min.is_none() && answer.rows_min > 1;
    let is_asked = answer.kinds.iter().any(|kind| kind.needs_rows());
    (is_default && is_asked).then(|| {
        format!(
            "deletes and updates of fewer than {} rows are left out: --min-rows 1",
            answer.rows_min
        )
    })
}

pub fn render(shown: &Shown) -> String {
    let event = &shown.event;
    let subject = one_line(&subject(event));
    let mut text = format!("{:<10} {subject}\n", event.kind.as_str());
    // A name may have line feeds, and is no line of its own.
    let mut add = |label: &str, value: String| {
        text.push_str(&format!("  {label:<13} {}\n", one_line(&value)));
    };
    match (event.time, event.commit_lsn) {
        (Some(time), Some(lsn)) => add(
            "committed",
            format!(
                "{}, transaction {}, at {lsn}",
                human::exact_time(time),
                event.xid
            ),
        ),
        _ => add(
            "committed",
            format!(
                "never: transaction {} failed, or its end is not archived",
                event.xid
            ),
        ),
    }
    if !event.subxids.is_empty() {
        let subxids: Vec<String> = event.subxids.iter().map(u32::to_string).collect();
        add("within", format!("subtransaction {}", subxids.join(", ")));
    }
    if let Some(rows) = event.rows {
        add("rows", rows.to_string());
    }
    add("first record", event.first_lsn.to_string());
    if let Some(commit) = event.last_commit {
        let time = human::exact_time(commit.time);
        add(
            "last whole",
            format!("{time}, after transaction {}", commit.xid),
        );
    }
    if let Some(gid) = &event.gid {
        let gid = gid.replace('\'', "''");
        add(
            "prepared",
            format!("at the target it still holds its locks: rollback prepared '{gid}' there"),
        );
    }
    if event
        .relation
        .as_ref()
        .is_some_and(|r| r.persistence == Some('u'))
    {
        add(
            "unlogged",
            "its rows are in no WAL: it comes back empty".into(),
        );
    }
    add("before it", shown.command.clone());
    text
}

fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

fn subject(event: &Event) -> String {
    let named = |what: &str, named: &crate::find::event::Named| match &named.name {
        Some(name) => format!("{what} {name} (oid {})", named.oid),
        None => format!("{what} with oid {}", named.oid),
    };
    if let Some(tablespace) = &event.tablespace {
        return named("tablespace", tablespace);
    }
    let database = event.database.as_ref();
    let database = database.map(|d| named("database", d)).unwrap_or_default();
    let Some(relation) = &event.relation else {
        return database;
    };
    let mut text = match relation.full_name() {
        Some(name) => name,
        None => "a relation whose name is not known".to_owned(),
    };
    let numbers = [("oid", relation.oid), ("file", relation.file)];
    let numbers = numbers
        .iter()
        .filter_map(|(n, v)| Some(format!("{n} {}", (*v)?)));
    text.push_str(&format!(" ({})", numbers.collect::<Vec<_>>().join(", ")));
    if let Some(now) = &relation.name_now {
        text.push_str(&format!(", later {now}"));
    }
    format!("{text} in {database}")
}
