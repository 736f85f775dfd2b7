//! `pitr audit`: who ran what, and whether the log of it is whole.

use super::output::Table;
use super::{Context, findings_unless, partial_or_warnings, partial_unless};
use crate::error::Result;
use crate::operate::audit::{self, Given, Listed, Moment, Range, Verified};
use crate::operate::human;
use crate::pg::time::TimestampTz;

/// Show who ran what, and check that nobody changed the log of it
///
/// With records = "on" in [audit], each command that changes something or shows data leaves a record before it works and one when it ended: user, host,
/// command, outcome. They lie in every repository, in one chain for each host.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List records, oldest first
    ///
    /// A record without the MAC of an encrypted repository is marked: anybody who may create objects can have written it.
    ///
    /// Example: pitr audit list --since 7d
    List(RangeArgs),
    /// Read every record, and find what was removed, changed or reordered
    ///
    /// Compares chains with what their records say of one another, with the anchors in them, with this host's own state, and repositories with one another. A removal
    /// from the end of a chain after the last anchor cannot be found where none of these knows it.
    ///
    /// Exit status: 0 whole, 4 changed, 6 warnings, 10 when a repository cannot be read.
    ///
    /// Example: pitr audit verify --anchor db1-4f2a9c01/1042:5f0c…
    Verify(VerifyArgs),
    /// Record the newest record of every chain, and print a line that proves all of them
    ///
    /// Keep the line outside of the repositories: with it, pitr audit verify finds what is removed later, whoever removes it. Notices of alerts, heartbeats
    /// with a template and reports carry the newest line of their host by themselves.
    ///
    /// Example: pitr audit anchor | mail -s "audit anchor" auditors@example.com
    Anchor {},
}

/// The time of records.
#[derive(clap::Args, Debug, Clone, Copy, Default)]
pub struct RangeArgs {
    /// From then on: a day, a time such as 2026-11-20T06:00:00Z, or an age such as 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,

    /// Before then
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
}

/// The check.
#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// A line that pitr audit anchor printed, or a file that holds some: letters, notices of alerts, reports. May be given several times
    #[arg(long = "anchor", value_name = "LINE|FILE")]
    pub anchors: Vec<String>,
}

impl RangeArgs {
    /// The range, for a clock that says `now`.
    pub fn range(self, now: TimestampTz) -> Range {
        let before = |moment: Moment| moment.before(now);
        Range {
            since: self.since.map(before),
            until: self.until.map(before),
        }
    }
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    match command {
        Command::List(range) => list(cx, *range),
        Command::Verify(args) => verify(cx, args),
        Command::Anchor {} => anchor(cx),
    }
}

fn list(cx: &Context, range: RangeArgs) -> Result<u8> {
    let range = range.range(cx.session.host.now());
    let (records, failures) = audit::list(&cx.session, range)?;
    if cx.is_json() {
        cx.json(&serde_json::json!({ "records": records }))?;
    } else if records.is_empty() {
        cx.note("no record of that time");
    } else {
        cx.table(&table(&records))?;
    }
    partial_unless(cx.told(failures)?)
}

fn table(records: &[Listed]) -> Table {
    let row = |one: &Listed| {
        [
            human::time(one.record.time),
            who(&one.record.actor, one.record.sudo_user.as_deref()),
            one.record.host.clone(),
            one.record.command.clone(),
            one.record.object.clone().unwrap_or_default(),
            outcome(one),
            format!("{}/{}", one.record.writer, one.record.seq),
        ]
    };
    Table::of("time | user | host | command | of | outcome | record").rows(records.iter().map(row))
}

/// The user, and those behind it.
pub(super) fn who(actor: &str, sudo_user: Option<&str>) -> String {
    match sudo_user {
        Some(sudo) => format!("{actor} (sudo: {sudo})"),
        None => actor.to_owned(),
    }
}

/// The outcome in words.
pub(super) fn outcome(one: &Listed) -> String {
    let record = &one.record;
    let mut text = record.outcome.name().to_owned();
    if let Some(reason) = &record.reason {
        text = format!("{text}: {reason}");
    } else if let Some(status) = record.status.filter(|status| *status > 0) {
        text = format!("{text}: exit status {status}");
    }
    match one.doubted {
        true => format!("{text} (doubted)"),
        false => text,
    }
}

fn verify(cx: &Context, args: &VerifyArgs) -> Result<u8> {
    let given = args.anchors.iter();
    let given = given.map(|text| Given::read(&cx.session, text));
    let given = given.collect::<Result<Vec<_>>>()?.concat();
    let verified = audit::verify(&cx.session, &given)?;
    cx.answer(&verified, || print(cx, &verified))?;
    let (is_damaged, is_well) = (verified.is_damaged(), verified.problems.is_empty());
    let is_whole = cx.told(verified.failures)?;
    match is_damaged {
        true => Ok(findings_unless(false)),
        false => partial_or_warnings(is_whole, is_well),
    }
}

fn print(cx: &Context, verified: &Verified) -> Result<()> {
    for one in &verified.repositories {
        cx.report(&format!(
            "{}: {} in {}, compared with {}",
            one.repository,
            human::count(one.records as u64, "record"),
            human::count(one.chains as u64, "chain"),
            human::count(one.anchors as u64, "anchor"),
        ))?;
    }
    for problem in &verified.problems {
        let word = match problem.is_damage {
            true => "CHANGED",
            false => "warning",
        };
        cx.line(&format!(
            "{word}: {}, {}: {}: {}",
            problem.repository, problem.writer, problem.problem, problem.detail
        ))?;
    }
    Ok(())
}

fn anchor(cx: &Context) -> Result<u8> {
    let anchored = audit::anchor(&cx.session)?;
    let is_stored = !anchored.repositories.is_empty();
    cx.answer(&anchored, || cx.line(&anchored.anchor))?;
    if !is_stored && !cx.is_json() {
        cx.warn("no repository has the record of this anchor yet: it waits on this host");
    }
    partial_unless(is_stored)
}
