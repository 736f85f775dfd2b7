//! `pitr timeline`: which timeline is the cluster, and decisions about it.

use serde::Serialize;

use super::Context;
use super::output::{Align, Table};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::operate::held::Held;
use crate::operate::human;
use crate::operate::reading::Reading;
use crate::operate::unproven;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::cluster::{self, Activity, Cluster, DECIDE, LastCommit, Side, Standing, Tree};
use crate::repo::decision::{Decision, Decisions, Kind, SUBJECT};
use crate::repo::event::{self, Event, Writer};
use crate::repo::layout::ClusterLayout;
use crate::wal::inventory::Inventory;
use crate::wal::rollup::Rollup;

/// Show the timelines, and decide which one is the cluster
///
/// Drills, clones and failovers leave timelines that go on side by side. Which one is the cluster is decided by the newest decision (an adopted
/// copy, or pitr timeline restore), else it is the newest timeline, unless another one has a later commit than its beginning: then it is
/// undecided, and pitr plan, restore and standby ask for a number.
///
/// Example: pitr timeline list
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with timelines.
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

/// Why a decision is not written without the MAC key.
const UNPROVEN: &str = "a decision that nothing proves would not count";

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

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let held = Held::read(&cx.session)?;
    match &args.command {
        Command::List {} => list(cx, held),
        Command::Abandon(change) => decide(cx, held, change, Kind::Abandon),
        Command::Restore(change) => decide(cx, held, change, Kind::Restore),
    }
}

fn sides<'a>(rollups: &'a [(&'a Inventory, Rollup<'a>)]) -> Vec<Side<'a>> {
    let side = |(inventory, wal): &'a (&'a Inventory, Rollup<'a>)| Side { inventory, wal };
    rollups.iter().map(side).collect()
}

/// A timeline and what is stored of it.
#[derive(Debug, Serialize)]
struct Shown {
    timeline: u32,
    /// `cluster`, `candidate`, `beside`, `ancestor`, `left` or `abandoned`.
    state: &'static str,
    parent: Option<u32>,
    switch_lsn: Option<Lsn>,
    begun: Option<TimestampTz>,
    /// Of its own.
    last_commit: Option<TimestampTz>,
    /// Why the last commit is not known.
    problem: Option<String>,
    backups: Vec<String>,
    /// Why it was abandoned or chosen.
    reason: Option<String>,
}

/// What is known of all timelines.
struct View<'a> {
    tree: &'a Tree,
    decisions: &'a Decisions,
    sides: &'a [Side<'a>],
    cluster: &'a Cluster,
}

impl View<'_> {
    fn show(&self, timeline: TimelineId) -> Result<Shown> {
        let history = self.tree.history(timeline);
        let parent = history.and_then(History::parent);
        let from = parent.map_or(Lsn(0), |(_, lsn)| lsn);
        let since = TimestampTz(i64::MIN);
        let (last_commit, problem) = match self.sides.last_behind(timeline, from, since)? {
            LastCommit::None => (None, None),
            LastCommit::At(time) => (Some(time), None),
            LastCommit::Unknown(why) => (None, Some(why)),
        };
        let own = |d: &&Decision| d.timeline == timeline;
        let decision = match self.cluster.abandoned.contains(&timeline) {
            true => self
                .decisions
                .abandoned()
                .filter(|d| self.tree.descends(timeline, d.timeline))
                .max_by_key(|d| d.timeline),
            false => self.decisions.chosen().into_iter().find(own),
        };
        let mut backups: Vec<String> = Vec::new();
        for side in self.sides {
            let on_it = side.inventory.backups.iter();
            let on_it = on_it.filter(|b| b.timeline == timeline);
            backups.extend(on_it.map(|b| b.id.to_string()));
        }
        backups.sort();
        backups.dedup();
        Ok(Shown {
            timeline: timeline.decimal(),
            state: self.state(timeline),
            parent: parent.map(|(t, _)| t.decimal()),
            switch_lsn: parent.map(|(_, lsn)| lsn),
            begun: self.sides.begun(timeline, from)?,
            last_commit,
            problem,
            backups,
            reason: decision.and_then(|d| d.reason.clone()),
        })
    }

    fn state(&self, timeline: TimelineId) -> &'static str {
        let leads = |t: &TimelineId| self.tree.descends(*t, timeline);
        match self.cluster.standing(timeline) {
            Standing::Cluster => "cluster",
            Standing::Candidate => "candidate",
            Standing::Abandoned => "abandoned",
            Standing::Other(_) if self.cluster.beside.iter().any(|c| c.timeline == timeline) => {
                "beside"
            }
            Standing::Other(candidates) if candidates.iter().any(leads) => "ancestor",
            Standing::Other(_) => "left",
        }
    }

    fn show_all(&self) -> Result<Vec<Shown>> {
        self.tree.timelines().map(|t| self.show(t)).collect()
    }
}

#[derive(Serialize)]
struct ShownList<'a> {
    cluster: &'a str,
    system_identifier: String,
    /// The timeline that is the cluster; none while it is undecided.
    timeline: Option<u32>,
    candidates: Vec<u32>,
    timelines: Vec<Shown>,
    decisions: &'a [Decision],
}

fn list(cx: &Context, held: Held) -> Result<u8> {
    let rollups = held.rollups(&cx.session)?;
    let sides = sides(&rollups);
    let (tree, decisions) = cluster::together(&sides);
    let cluster = cluster::decide(&tree, &decisions, &sides.as_slice())?;
    let view = View {
        tree: &tree,
        decisions: &decisions,
        sides: &sides,
        cluster: &cluster,
    };
    let shown = view.show_all()?;
    let (first, inventory) = held
        .readings
        .first()
        .ok_or_else(|| err!(Internal, "no repository was read"))?;
    if cx.out.is_json() {
        cx.out.json(&ShownList {
            cluster: &first.name,
            system_identifier: inventory.system_identifier.to_string(),
            timeline: cluster.timeline().map(TimelineId::decimal),
            candidates: numbers(&cluster.candidates()),
            timelines: shown,
            decisions: &decisions.all,
        })?;
    } else {
        match shown.is_empty() {
            true => cx.out.line("nothing is archived yet")?,
            false => cx.out.table(&table(&shown))?,
        }
        match cluster.undecided() {
            Some(why) => cx.out.warn(&format!("{why}. {DECIDE}")),
            None => cluster
                .describe_beside()
                .iter()
                .for_each(|beside| cx.out.warn(beside)),
        }
    }
    drop(sides);
    drop(rollups);
    partial_unless(cx.told(held.failures)?)
}

fn numbers(timelines: &[TimelineId]) -> Vec<u32> {
    timelines.iter().map(|t| t.decimal()).collect()
}

pub(super) fn partial_unless(is_whole: bool) -> Result<u8> {
    Ok(match is_whole {
        true => exit::SUCCESS,
        false => exit::status(Program::Pitr, Code::Partial),
    })
}

fn table(timelines: &[Shown]) -> Table {
    let mut table = Table::new(&[
        ("timeline", Align::Right),
        ("state", Align::Left),
        ("from", Align::Left),
        ("began", Align::Left),
        ("last commit", Align::Left),
        ("backups", Align::Right),
        ("", Align::Left),
    ]);
    for shown in timelines {
        let time = |time: Option<TimestampTz>| time.map(human::time).unwrap_or_default();
        let from = shown.parent.zip(shown.switch_lsn);
        table.row([
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
        ]);
    }
    table
}

/// A decision that is shown before it is recorded.
#[derive(Serialize)]
struct ShownChange<'a> {
    decision: Kind,
    timeline: u32,
    reason: &'a str,
    /// Which timeline is the cluster now; none while it is undecided.
    cluster_before: Option<u32>,
    /// Which timeline is the cluster then.
    cluster_then: Option<u32>,
    candidates_then: Vec<u32>,
    /// What is abandoned by it, with what lies there alone.
    abandoned: Vec<Shown>,
    /// The decisions that it ends.
    ends: Vec<String>,
    recorded_in: Vec<String>,
    confirmed: bool,
}

/// The events of a decision: for each abandonment that it ends another one.
fn events(writer: &Writer<'_>, change: &Change, kind: Kind, ends: &[String]) -> Vec<Event> {
    let event = |ends: Option<&String>| Event {
        timeline: Some(change.timeline.get()),
        reason: Some(change.reason.clone()),
        ends: ends.cloned(),
        ..writer.event(kind.as_str(), SUBJECT)
    };
    match ends {
        [] => vec![event(None)],
        ends => ends.iter().map(|one| event(Some(one))).collect(),
    }
}

fn decide(cx: &Context, held: Held, change: &Change, kind: Kind) -> Result<u8> {
    let rollups = held.rollups(&cx.session)?;
    let sides = sides(&rollups);
    let (tree, decisions) = cluster::together(&sides);
    let before = cluster::decide(&tree, &decisions, &sides.as_slice())?;
    let ends = require_sense(&tree, &decisions, change, kind)?;
    let mut then = decisions.clone();
    let host = &cx.session.host;
    let writer = Writer::of(&host);
    let events = events(&writer, change, kind, &ends);
    for (n, event) in events.iter().enumerate() {
        then.all.push(Decision {
            // Of two with the same time the later name counts.
            event: format!("~{n}"),
            kind,
            timeline: change.timeline,
            time: event.time,
            reason: event.reason.clone(),
            ends: event.ends.clone(),
        });
    }
    let after = cluster::decide(&tree, &then, &sides.as_slice())?;
    require_outcome(&tree, &after, change, kind)?;
    let view = View {
        tree: &tree,
        decisions: &then,
        sides: &sides,
        cluster: &after,
    };
    let is_new = |t: &TimelineId| !before.abandoned.contains(t);
    let abandoned = after.abandoned.iter().copied().filter(is_new);
    let abandoned = abandoned
        .map(|t| view.show(t))
        .collect::<Result<Vec<_>>>()?;
    let mut shown = ShownChange {
        decision: kind,
        timeline: change.timeline.decimal(),
        reason: &change.reason,
        cluster_before: before.timeline().map(TimelineId::decimal),
        cluster_then: after.timeline().map(TimelineId::decimal),
        candidates_then: numbers(&after.candidates()),
        abandoned,
        ends,
        recorded_in: Vec::new(),
        confirmed: change.confirm,
    };
    if !cx.out.is_json() {
        print(cx, &shown, &after)?;
    }
    drop(sides);
    drop(rollups);
    let Held {
        readings,
        mut failures,
    } = held;
    let nonce = host.random();
    if change.confirm {
        for (reading, inventory) in &readings {
            match record(reading, inventory, &events, (change, kind), nonce) {
                Ok(()) => shown.recorded_in.push(reading.configured.name.clone()),
                Err(e) => {
                    let name = &reading.configured.name;
                    failures.add(e, format!("record it in repository \"{name}\""));
                }
            }
        }
        failures.first_if(&cx.session, shown.recorded_in.is_empty())?;
    }
    if cx.out.is_json() {
        cx.out.json(&shown)?;
    } else if change.confirm {
        cx.out
            .report(&format!("recorded in {}", shown.recorded_in.join(" and ")))?;
    }
    let is_whole = cx.told(failures)?;
    if !change.confirm && !change.dry_run {
        return Err(super::unconfirmed("The decision above would be recorded."));
    }
    partial_unless(is_whole)
}

/// Requires that the timeline is known; the abandonments that a restore of it ends.
fn require_sense(
    tree: &Tree,
    decisions: &Decisions,
    change: &Change,
    kind: Kind,
) -> Result<Vec<String>> {
    let number = change.timeline;
    if !tree.timelines().any(|t| t == number) {
        let known: Vec<String> = tree.timelines().map(|t| t.decimal().to_string()).collect();
        return Err(
            err!(NotFound, "timeline {} does not exist", number.decimal())
                .hint(format!("Nothing was changed. Known: {}", known.join(", "))),
        );
    }
    let covers = |d: &&Decision| tree.descends(number, d.timeline);
    Ok(match kind {
        Kind::Restore => decisions
            .abandoned()
            .filter(covers)
            .map(|d| d.event.clone())
            .collect(),
        _ => Vec::new(),
    })
}

/// Requires that a timeline is left, and that the one that is restored is followed.
fn require_outcome(tree: &Tree, after: &Cluster, change: &Change, kind: Kind) -> Result<()> {
    let number = change.timeline;
    let candidates = after.candidates();
    if candidates.is_empty() {
        return Err(err!(
            Refused,
            "no timeline would be left that is not abandoned"
        )
        .hint("Nothing was changed. Say first which timeline is the cluster: pitr timeline restore N --reason TEXT"));
    }
    if kind == Kind::Restore && after.timeline().is_none() {
        let others: Vec<String> = candidates
            .iter()
            .filter(|t| **t != number && tree.descends(**t, number))
            .map(|t| format!("pitr timeline abandon {} --reason TEXT", t.decimal()))
            .collect();
        let why = after.undecided().unwrap_or_default();
        return Err(err!(Refused, "with that decision {why}").hint(format!(
            "Nothing was changed. What descends from a timeline belongs to it until it is abandoned.\nFirst: {}",
            others.join(", then ")
        )));
    }
    Ok(())
}

fn print(cx: &Context, shown: &ShownChange<'_>, after: &Cluster) -> Result<()> {
    let was = match shown.cluster_before {
        Some(timeline) => format!("timeline {timeline} is the cluster"),
        None => "it is undecided which timeline is the cluster".to_owned(),
    };
    cx.out.line(&format!("now:  {was}"))?;
    let then = match (shown.cluster_then, after.undecided()) {
        (Some(timeline), _) => format!("timeline {timeline} is the cluster"),
        (None, why) => why.unwrap_or_default(),
    };
    cx.out.line(&format!("then: {then}"))?;
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
        cx.out.line(&format!(
            "  timeline {number} is abandoned: {commits}; {backups}"
        ))?;
    }
    for beside in after.describe_beside() {
        cx.out.warn(&beside);
    }
    cx.out.note("nothing is deleted, and --target-timeline N still leads to an abandoned timeline; versions of pitr before this command ignore the decision");
    Ok(())
}

/// Writes the events, unless the repository has the decision already.
fn record(
    reading: &Reading,
    inventory: &Inventory,
    events: &[Event],
    (change, kind): (&Change, Kind),
    nonce: u64,
) -> Result<()> {
    let own = &inventory.decisions;
    let tree = Tree::of(inventory);
    let is_there = match kind {
        Kind::Abandon => own.abandoned().any(|d| d.timeline == change.timeline),
        _ => {
            let mut covering = own.abandoned();
            let is_free = !covering.any(|d| tree.descends(change.timeline, d.timeline));
            let newest = own.chosen().first().map(|d| (d.kind, d.timeline));
            is_free && newest == Some((kind, change.timeline))
        }
    };
    if is_there {
        return Ok(());
    }
    if let Some(why) = unproven::warning(&reading.configured, &reading.repository, UNPROVEN) {
        return Err(err!(Key, "{why}"));
    }
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    for (n, event) in (0u64..).zip(events) {
        // The same name in every repository: they say the same.
        let nonce = nonce.wrapping_add(n);
        event::record(reading.repository.store(), &layout, event, nonce)
            .map_err(|e: Error| e.context("write the decision"))?;
    }
    Ok(())
}
