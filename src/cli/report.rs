//! `pitr report`: what ran, what is proven, and what somebody should do.

use std::path::PathBuf;
use std::time::Duration;

use super::audit::{RangeArgs, who};
use super::output::{Output, Table};
use super::{Context, findings_unless, partial_unless, report_page};
use crate::durable;
use crate::error::{Error, Result};
use crate::operate::finding::Level;
use crate::operate::human;
use crate::operate::objectives_history::Kept;
use crate::operate::report::{self, Kind, Proof, Report, Run};
use crate::text::escaped;

/// Report what ran, what is proven, and what is to be done
///
/// daily: runs, new backups, drills, how rpo and rto were kept, findings with what helps. audit: each run, and whether the audit log is whole. compliance: controls, each with the command behind it.
///
/// Runs come from the audit log (key records of section audit); without it a report knows none. Exit status: 0, 4 when the log was changed, 10 when something could not be looked at.
///
/// Example: pitr report daily --format html --output report.html
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The report
    #[arg(value_enum)]
    pub kind: Kind,

    /// The time that it is about; without it, the last 24 hours
    #[command(flatten)]
    pub range: RangeArgs,

    /// The form of the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,

    /// Write the report into this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// The forms of reports.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tables
    Text,
    /// One page that needs nothing but itself
    Html,
    /// For programs, as --json
    Json,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let range = args.range.range(cx.session.host.now());
    let report = report::make(&cx.session, args.kind, range)?;
    let format = match cx.is_json() {
        true => Format::Json,
        false => args.format,
    };
    match format {
        Format::Text if args.output.is_none() => cx.raw(&text(&report, &Output::fitted))?,
        Format::Text => write(cx, args, text(&report, &|table| table.fitting(None)))?,
        Format::Html => write(cx, args, report_page::page(&report))?,
        Format::Json => write(cx, args, Output::pretty(&report)?)?,
    }
    let is_damaged = report.log.as_ref().is_some_and(|log| log.is_damaged());
    let is_whole = cx.told(report.failures)?;
    match is_damaged {
        true => Ok(findings_unless(false)),
        false => partial_unless(is_whole),
    }
}

fn write(cx: &Context, args: &Args, text: String) -> Result<()> {
    let Some(path) = &args.output else {
        return cx.raw(&text);
    };
    durable::replace(path, text.as_bytes(), cx.session.host.random())
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}

pub(super) fn title(report: &Report) -> String {
    let kind = match report.kind {
        Kind::Daily => "Daily report",
        Kind::Audit => "Audit report",
        Kind::Compliance => "Compliance report",
    };
    format!(
        "{kind}, {} to {}",
        human::time(report.since),
        human::time(report.until)
    )
}

/// A table of a report: its title, its columns and its rows.
pub(super) struct Part {
    pub title: &'static str,
    /// The heads, with ` | ` between them.
    pub columns: &'static str,
    pub rows: Vec<Vec<String>>,
    /// The text where there is no row.
    pub none: &'static str,
}

/// Words of a result that say that recovery failed.
pub(super) const BROKEN: &str = "recovery broken";

pub(super) fn parts(report: &Report) -> Vec<Part> {
    let mut parts = Vec::new();
    let failures: Vec<_> = report.failures.texts().map(|text| vec![text]).collect();
    // Nobody knows that there is nothing where something could not be looked at.
    let none = |words| match failures.is_empty() {
        true => words,
        false => "not known: see above",
    };
    if !failures.is_empty() {
        parts.push(Part {
            title: "Could not be looked at",
            columns: "error",
            rows: failures.clone(),
            none: "",
        });
    }
    if report.kind == Kind::Compliance {
        let rows = report.controls.iter().map(|one| {
            vec![
                state(one.state),
                one.control.to_owned(),
                one.observed.clone(),
                one.command.to_owned(),
            ]
        });
        parts.push(Part {
            title: "Controls",
            columns: "state | control | observed | command",
            rows: rows.collect(),
            none: none("nothing could be looked at"),
        });
    }
    let findings = report.recommendations.iter().map(|one| {
        let next = one.next.clone().unwrap_or_default();
        vec![state(one.state), one.of.clone(), one.finding.clone(), next]
    });
    parts.push(Part {
        title: "What somebody should do",
        columns: "state | of | finding | next",
        rows: findings.collect(),
        none: none("nothing"),
    });
    parts.push(Part {
        title: "Runs",
        columns: "began | took | user | host | command | of | outcome",
        rows: report.runs.iter().map(ran).collect(),
        none: none("none is recorded: see [audit] in the configuration"),
    });
    let backups = report.backups.iter().map(|one| {
        vec![
            human::time(one.stop_time),
            one.of.clone(),
            one.repository.clone(),
            one.id.clone(),
            one.stored_bytes.map_or_else(String::new, human::size),
            one.damage.clone().unwrap_or_default(),
        ]
    });
    parts.push(Part {
        title: "Backups that ended in this time",
        columns: "ended | of | repository | backup | stored | damage",
        rows: backups.collect(),
        none: none("none"),
    });
    let proofs = report.proofs.iter().map(|one| {
        let time = one.time.map_or_else(String::new, human::time);
        vec![
            one.cluster.clone(),
            one.repository.clone(),
            time,
            drilled(one),
        ]
    });
    parts.push(Part {
        title: "Newest drills",
        columns: "cluster | repository | time | result",
        rows: proofs.collect(),
        none: none("none"),
    });
    parts.push(Part {
        title: "Promises",
        columns: "cluster | promise | kept | broken | not known | worst | at",
        rows: report.promises.iter().map(kept).collect(),
        none: none("nothing was measured: pitr agent does it, on its host"),
    });
    if let Some(log) = &report.log {
        let rows = log.problems.iter().map(|one| {
            let word = if one.is_damage { "CHANGED" } else { "warning" };
            let chain = format!("{}: {}", one.repository, one.writer);
            vec![
                word.to_owned(),
                chain,
                one.problem.to_owned(),
                one.detail.clone(),
            ]
        });
        parts.push(Part {
            title: "The audit log",
            columns: "state | chain | problem | observed",
            rows: rows.collect(),
            none: none("it is whole, as far as its anchors reach"),
        });
    }
    parts
}

/// The result of the drills of a cluster in a repository.
pub(super) fn drilled(one: &Proof) -> String {
    match (one.time, one.passed) {
        (_, true) => "recovery proven".to_owned(),
        _ if !one.broken_backups.is_empty() => {
            format!("{BROKEN} from {}", one.broken_backups.join(", "))
        }
        (None, _) => "no drill is known".to_owned(),
        (_, false) => BROKEN.to_owned(),
    }
}

fn ran(run: &Run) -> Vec<String> {
    let took = run.ended.and_then(|ended| ended.duration_since(run.began));
    let user = who(&run.actor, run.sudo_user.as_deref());
    let mut outcome = run.outcome.name().to_owned();
    if let Some(reason) = &run.reason {
        outcome = format!("{outcome}: {reason}");
    }
    if run.doubted {
        outcome += " (doubted)";
    }
    vec![
        human::time(run.began),
        took.map_or_else(String::new, human::duration),
        user,
        run.host.clone(),
        run.command.clone(),
        run.object.clone().unwrap_or_default(),
        outcome,
    ]
}

fn kept(one: &Kept) -> Vec<String> {
    let seconds = |s| human::duration(Duration::from_secs(s));
    let promised = |s| one.goal_s.map_or_else(String::new, |_| seconds(s));
    let goal = one.goal_s.map_or("not promised".to_owned(), seconds);
    let worst = one.worst_ms.map(Duration::from_millis);
    vec![
        one.cluster.clone(),
        format!("{}: {goal}", one.promise),
        one.share().unwrap_or_default(),
        promised(one.broken_s),
        promised(one.unknown_s),
        worst.map_or_else(String::new, human::duration),
        one.worst_time.map_or_else(String::new, human::time),
    ]
}

fn state(level: Level) -> String {
    level.state().to_owned()
}

fn text(report: &Report, form: &dyn Fn(&Table) -> String) -> String {
    let mut text = format!("{}\n", escaped(&title(report)));
    if let Some(anchor) = &report.anchor {
        text.push_str(&format!("Audit log of this host: {}\n", escaped(anchor)));
    }
    for part in parts(report) {
        text.push_str(&format!("\n{}\n", part.title));
        match part.rows.is_empty() {
            true => text.push_str(&format!("{}\n", part.none)),
            false => text.push_str(&form(&Table::of(part.columns).rows(&part.rows))),
        }
    }
    text
}
