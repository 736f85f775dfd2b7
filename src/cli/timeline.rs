//! `pitr timeline`: which timeline is the cluster, and decisions about it.

use super::output::Table;
use super::{Context, done_or_unconfirmed, partial_unless};
use crate::err;
use crate::error::Result;
use crate::operate::human;
use crate::operate::timeline::{self, Decided, Stored};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::cluster::DECIDE;
use crate::repo::decision::Kind;

/// Show the timelines, and decide which one is the cluster
///
/// Drills, clones and failovers leave timelines that go on side by side. Which one is the cluster is decided by the newest decision (an adopted
/// copy, or pitr timeline restore), else it is the newest timeline, unless another one has a later commit than its beginning: then it is
/// undecided, and pitr plan, restore and standby ask for a number.
///
/// Example: pitr timeline list
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List the timelines, what each holds, and which one is the cluster
    List {},
    /// Say that a timeline, and what descends from it, is not the cluster
    ///
    /// Nothing is deleted: its backups and its WAL stay, and --target-timeline N still leads there. Without --confirm it shows what follows, and
    /// changes nothing. The decision is recorded in every repository of the configuration that answers; exit status 10 when one did not.
    ///
    /// Example: pitr timeline abandon 4 --reason "drill of Monday" --confirm
    Abandon(Change),
    /// Say that a timeline is the cluster
    ///
    /// Ends what pitr timeline abandon said of it. Without --confirm it shows what follows, and changes nothing.
    ///
    /// Example: pitr timeline restore 4 --reason "the failover was meant" --confirm
    Restore(Change),
}

/// A decision.
#[derive(clap::Args, Debug)]
pub struct Change {
    /// The timeline, as a decimal number
    #[arg(value_name = "N", value_parser = TimelineId::from_decimal)]
    pub timeline: TimelineId,

    /// Why, for those who read the list later
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,

    /// Record the decision
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what follows, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// Longest reason, in bytes.
const REASON_MAX: usize = 1000;

pub(super) fn reason(text: &str) -> Result<String> {
    match text.trim() {
        "" => Err(err!(Usage, "a reason is needed")),
        text if text.len() > REASON_MAX || text.contains(char::is_control) => Err(err!(
            Usage,
            "a reason is one line of at most {REASON_MAX} bytes"
        )),
        text => Ok(text.to_owned()),
    }
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    match command {
        Command::List {} => list(cx),
        Command::Abandon(change) => decide(cx, change, Kind::Abandon),
        Command::Restore(change) => decide(cx, change, Kind::Restore),
    }
}

fn list(cx: &Context) -> Result<u8> {
    let listing = timeline::list(&cx.session)?;
    cx.answer(&listing, || {
        match listing.timelines.is_empty() {
            true => cx.line("nothing is archived yet")?,
            false => cx.table(&table(&listing.timelines))?,
        }
        let decided = &listing.decided;
        match decided.undecided() {
            Some(why) => cx.warn(&format!("{why}. {DECIDE}")),
            None => cx.warn_all(decided.describe_beside()),
        }
        Ok(())
    })?;
    partial_unless(cx.told(listing.failures)?)
}

fn decide(cx: &Context, change: &Change, kind: Kind) -> Result<u8> {
    let asked = timeline::Change {
        kind,
        timeline: change.timeline,
        reason: change.reason.clone(),
    };
    let mut decided = timeline::decide(&cx.session, asked)?;
    if !cx.is_json() {
        print(cx, &decided)?;
    }
    if change.confirm {
        decided.record(&cx.session)?;
    }
    if cx.is_json() {
        cx.json(&decided)?;
    } else if change.confirm {
        let places = decided.recorded_in.join(" and ");
        cx.report(&format!("recorded in {places}"))?;
    }
    let is_whole = cx.told(decided.failures)?;
    let is_enough = change.confirm || change.dry_run;
    done_or_unconfirmed(is_enough, "The decision above would be recorded.")?;
    partial_unless(is_whole)
}

fn table(timelines: &[Stored]) -> Table {
    let time = |time: Option<TimestampTz>| time.map(human::time).unwrap_or_default();
    let row = |shown: &Stored| {
        let from = shown.parent.zip(shown.switch_lsn);
        [
            shown.timeline.to_string(),
            shown.state.to_owned(),
            from.map_or_else(String::new, |(t, lsn)| format!("{t} at {lsn}")),
            time(shown.begun),
            match &shown.problem {
                Some(_) => "unknown".to_owned(),
                None => time(shown.last_commit),
            },
            shown.backups.len().to_string(),
            shown.reason.clone().unwrap_or_default(),
        ]
    };
    Table::of(">timeline | state | from | began | last commit | >backups | ")
        .rows(timelines.iter().map(row))
}

fn print(cx: &Context, shown: &Decided) -> Result<()> {
    let was = match shown.cluster_before {
        Some(timeline) => format!("timeline {timeline} is the cluster"),
        None => "it is undecided which timeline is the cluster".to_owned(),
    };
    cx.line(&format!("now:  {was}"))?;
    let then = match (shown.cluster_then, shown.after.undecided()) {
        (Some(timeline), _) => format!("timeline {timeline} is the cluster"),
        (None, why) => why.unwrap_or_default(),
    };
    cx.line(&format!("then: {then}"))?;
    for timeline in &shown.abandoned {
        let number = timeline.timeline;
        let commits = match (timeline.last_commit, &timeline.problem) {
            (Some(last), _) => format!(
                "commits{} up to {} lie on it alone",
                timeline
                    .begun
                    .map_or_else(String::new, |t| format!(" from {}", human::exact_time(t))),
                human::exact_time(last)
            ),
            (None, Some(why)) => format!("its commits cannot be read: {why}"),
            (None, None) => "no commit lies on it alone".to_owned(),
        };
        let backups = match timeline.backups.as_slice() {
            [] => "no backup".to_owned(),
            backups => format!("backup {}", backups.join(", ")),
        };
        cx.line(&format!(
            "  timeline {number} is abandoned: {commits}; {backups}"
        ))?;
    }
    cx.warn_all(shown.after.describe_beside());
    cx.note("nothing is deleted, and --target-timeline N still leads to an abandoned timeline; versions of pitr before this command ignore the decision");
    Ok(())
}
