//! The timelines of a cluster, and decisions about which one is the cluster.

use serde::Serialize;

use super::failures::Failures;
use super::held::Held;
use super::reading::Reading;
use super::session::Session;
use super::unproven;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::cluster::{self, Activity, Cluster, LastCommit, Side, Standing, Tree};
use crate::repo::decision::{Decision, Decisions, Kind, SUBJECT};
use crate::repo::event::{self, Event, Writer};
use crate::repo::layout::ClusterLayout;
use crate::wal::inventory::Inventory;
use crate::wal::rollup::Rollup;

/// Why a decision is not written without the MAC key.
const UNPROVEN: &str = "a decision that nothing proves would not count";

/// A decision that the operator makes.
#[derive(Debug, Clone)]
pub struct Change {
    /// The kind of decision.
    pub kind: Kind,
    pub timeline: TimelineId,
    /// Why, for those who read the list later.
    pub reason: String,
}

fn sides<'a>(rollups: &'a [(&'a Inventory, Rollup<'a>)]) -> Vec<Side<'a>> {
    let side = |(inventory, wal): &'a (&'a Inventory, Rollup<'a>)| Side { inventory, wal };
    rollups.iter().map(side).collect()
}

/// A timeline and what is stored of it.
#[derive(Debug, Serialize)]
pub struct Stored {
    /// Its number.
    pub timeline: u32,
    /// `cluster`, `candidate`, `beside`, `ancestor`, `left` or `abandoned`.
    pub state: &'static str,
    /// The timeline that it left.
    pub parent: Option<u32>,
    /// The position at which it left that.
    pub switch_lsn: Option<Lsn>,
    /// When its first transaction ended.
    pub begun: Option<TimestampTz>,
    /// The last commit of its own.
    pub last_commit: Option<TimestampTz>,
    /// Why the last commit is not known.
    pub problem: Option<String>,
    /// The backups that were taken on it.
    pub backups: Vec<String>,
    /// Why it was abandoned or chosen.
    pub reason: Option<String>,
}

/// All timelines and what is known of them.
struct View<'a> {
    tree: &'a Tree,
    decisions: &'a Decisions,
    sides: &'a [Side<'a>],
    cluster: &'a Cluster,
}

impl View<'_> {
    fn show(&self, timeline: TimelineId) -> Result<Stored> {
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
        Ok(Stored {
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

    fn show_all(&self) -> Result<Vec<Stored>> {
        self.tree.timelines().map(|t| self.show(t)).collect()
    }
}

/// The timelines of a cluster.
#[derive(Serialize)]
pub struct Listing {
    /// The cluster's name.
    pub cluster: String,
    system_identifier: String,
    /// The timeline that is the cluster; none while it is undecided.
    pub timeline: Option<u32>,
    /// The timelines that may be the cluster.
    pub candidates: Vec<u32>,
    /// All of them.
    pub timelines: Vec<Stored>,
    decisions: Vec<Decision>,
    /// Which one is the cluster.
    #[serde(skip)]
    pub decided: Cluster,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
}

/// Lists the timelines, and decides which one is the cluster.
///
/// # Errors
/// Those of [`Held::read`], and what the WAL says.
pub fn list(session: &Session) -> Result<Listing> {
    let held = Held::read(session)?;
    let rollups = held.rollups(session)?;
    let sides = sides(&rollups);
    let (tree, decisions) = cluster::together(&sides);
    let decided = cluster::decide(&tree, &decisions, &sides.as_slice())?;
    let view = View {
        tree: &tree,
        decisions: &decisions,
        sides: &sides,
        cluster: &decided,
    };
    let timelines = view.show_all()?;
    let (first, inventory) = held
        .readings
        .first()
        .ok_or_else(|| err!(Internal, "no repository was read"))?;
    let (cluster, system_identifier) =
        (first.name.clone(), inventory.system_identifier.to_string());
    drop(sides);
    drop(rollups);
    Ok(Listing {
        cluster,
        system_identifier,
        timeline: decided.timeline().map(TimelineId::decimal),
        candidates: numbers(&decided.candidates()),
        timelines,
        decisions: decisions.all,
        decided,
        failures: held.failures,
    })
}

fn numbers(timelines: &[TimelineId]) -> Vec<u32> {
    timelines.iter().map(|t| t.decimal()).collect()
}

/// A decision that is shown before it is recorded.
#[derive(Serialize)]
pub struct Decided {
    decision: Kind,
    timeline: u32,
    reason: String,
    /// Which timeline is the cluster now; none while it is undecided.
    pub cluster_before: Option<u32>,
    pub cluster_then: Option<u32>,
    candidates_then: Vec<u32>,
    /// Timelines that it abandons, with what lies there alone.
    pub abandoned: Vec<Stored>,
    /// The decisions that it ends.
    ends: Vec<String>,
    /// The repositories in which it was recorded.
    pub recorded_in: Vec<String>,
    confirmed: bool,
    /// The cluster then.
    #[serde(skip)]
    pub after: Cluster,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
    #[serde(skip)]
    readings: Vec<(Reading, Inventory)>,
    #[serde(skip)]
    events: Vec<Event>,
    #[serde(skip)]
    change: Change,
    /// It quiets what goes on beside the cluster: an older decision that says the same is not enough.
    #[serde(skip)]
    is_renewed: bool,
}

/// Looks what follows from a decision.
///
/// # Errors
/// `NotFound` for an unknown timeline; `Refused` when no timeline would be left, the cluster would go with its ancestor, or the one that is
/// restored would not be followed.
pub fn decide(session: &Session, change: Change) -> Result<Decided> {
    let held = Held::read(session)?;
    let rollups = held.rollups(session)?;
    let sides = sides(&rollups);
    let (tree, decisions) = cluster::together(&sides);
    let before = cluster::decide(&tree, &decisions, &sides.as_slice())?;
    let ends = require_sense(&tree, &decisions, &change)?;
    require_apart(&tree, &before, &change)?;
    let mut then = decisions.clone();
    let events = events(&Writer::of(&session.host), &change, &ends);
    for (n, event) in events.iter().enumerate() {
        then.all.push(Decision {
            // Between two with the same time the later name counts.
            event: format!("~{n}"),
            kind: change.kind,
            timeline: change.timeline,
            time: event.time,
            reason: event.reason.clone(),
            ends: event.ends.clone(),
        });
    }
    let after = cluster::decide(&tree, &then, &sides.as_slice())?;
    require_outcome(&tree, &after, &change)?;
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
    drop(sides);
    drop(rollups);
    Ok(Decided {
        decision: change.kind,
        timeline: change.timeline.decimal(),
        reason: change.reason.clone(),
        cluster_before: before.timeline().map(TimelineId::decimal),
        cluster_then: after.timeline().map(TimelineId::decimal),
        candidates_then: numbers(&after.candidates()),
        abandoned,
        ends,
        is_renewed: after.beside.len() < before.beside.len(),
        recorded_in: Vec::new(),
        confirmed: false,
        after,
        failures: held.failures,
        readings: held.readings,
        events,
        change,
    })
}

impl Decided {
    /// Records the decision in every repository.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.confirmed = true;
        let nonce = session.host.random();
        for (reading, inventory) in &self.readings {
            let name = &reading.configured.name;
            let is_there = !self.is_renewed && has(inventory, &self.change);
            let done = match is_there {
                true => Ok(()),
                false => record(reading, inventory, &self.events, nonce),
            };
            let doing = format!("record it in repository \"{name}\"");
            let done = self.failures.note(done, doing);
            self.recorded_in.extend(done.map(|()| name.clone()));
        }
        self.failures.first_if(session, self.recorded_in.is_empty())
    }
}

/// The events of a decision: for each abandonment that it ends another one.
fn events(writer: &Writer<'_>, change: &Change, ends: &[String]) -> Vec<Event> {
    let event = |ends: Option<&String>| Event {
        timeline: Some(change.timeline.get()),
        reason: Some(change.reason.clone()),
        ends: ends.cloned(),
        ..writer.event(change.kind.as_str(), SUBJECT)
    };
    match ends {
        [] => vec![event(None)],
        ends => ends.iter().map(|one| event(Some(one))).collect(),
    }
}

/// Requires that the timeline is known; the abandonments that a restore of it ends.
fn require_sense(tree: &Tree, decisions: &Decisions, change: &Change) -> Result<Vec<String>> {
    let number = change.timeline;
    if !tree.timelines().any(|t| t == number) {
        let known: Vec<String> = tree.timelines().map(|t| t.decimal().to_string()).collect();
        return Err(
            err!(NotFound, "timeline {} does not exist", number.decimal())
                .hint(format!("Nothing was changed. Known: {}", known.join(", "))),
        );
    }
    let covers = |d: &&Decision| tree.descends(number, d.timeline);
    Ok(match change.kind {
        Kind::Restore => decisions
            .abandoned()
            .filter(covers)
            .map(|d| d.event.clone())
            .collect(),
        _ => Vec::new(),
    })
}

/// Requires that nothing that may be the cluster is abandoned with its ancestor. An adopted copy and a promoted standby descend from the timeline
/// that goes on beside them, which is the one that an operator gives up.
fn require_apart(tree: &Tree, before: &Cluster, change: &Change) -> Result<()> {
    let number = change.timeline;
    let goes_too = |t: &TimelineId| *t != number && tree.descends(*t, number);
    // The newest comes first, and no other candidate descends from it.
    let taken = before.candidates().into_iter().find(goes_too);
    let Some(taken) = taken.filter(|_| change.kind == Kind::Abandon) else {
        return Ok(());
    };
    let (number, taken) = (number.decimal(), taken.decimal());
    let (standing, remedy) = match before.timeline() {
        Some(_) => ("is", "it needs no decision".to_owned()),
        None => (
            "may be",
            format!("pitr timeline restore {taken} --reason TEXT"),
        ),
    };
    Err(err!(
        Refused,
        "timeline {taken}, which {standing} the cluster, descends from timeline {number}, and would be abandoned with it"
    )
    .hint(format!(
        "Nothing was changed. If timeline {taken} is the cluster: {remedy}. Stop the server that is still on timeline {number}.\nIf it is not, abandon it first: pitr timeline abandon {taken} --reason TEXT"
    )))
}

/// Requires that a timeline is left, and that the one that is restored is followed.
fn require_outcome(tree: &Tree, after: &Cluster, change: &Change) -> Result<()> {
    let number = change.timeline;
    let candidates = after.candidates();
    if candidates.is_empty() {
        return Err(err!(
            Refused,
            "no timeline would be left that is not abandoned"
        )
        .hint("Nothing was changed. Say first which timeline is the cluster: pitr timeline restore N --reason TEXT"));
    }
    if change.kind == Kind::Restore && after.timeline().is_none() {
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

/// Whether a repository has the decision already.
fn has(inventory: &Inventory, change: &Change) -> bool {
    let own = &inventory.decisions;
    let tree = Tree::of(inventory);
    match change.kind {
        Kind::Abandon => own.abandoned().any(|d| d.timeline == change.timeline),
        _ => {
            let mut covering = own.abandoned();
            let is_free = !covering.any(|d| tree.descends(change.timeline, d.timeline));
            let newest = own.chosen().first().map(|d| (d.kind, d.timeline));
            is_free && newest == Some((change.kind, change.timeline))
        }
    }
}

/// Writes the events.
fn record(reading: &Reading, inventory: &Inventory, events: &[Event], nonce: u64) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::timeline::tli;
    use crate::plan::cluster::{Verdict, Why};

    #[test]
    fn t88_the_cluster_is_not_abandoned_with_the_timeline_that_it_left() {
        let mut tree = Tree::default();
        let mut history = History::root(tli(1));
        tree.insert(tli(1), Some(history.clone()));
        for n in 2..=4 {
            history = history.child(tli(n), Lsn(u64::from(n) * 100), b"");
            tree.insert(tli(n), Some(history.clone()));
        }
        // A copy of 3 was adopted while the server of 3 went on. Without 3 and 4 the cluster would be 2.
        let before = Cluster {
            verdict: Verdict::Decided {
                timeline: tli(4),
                why: Why::Newest,
            },
            beside: Vec::new(),
            abandoned: std::collections::BTreeSet::new(),
        };
        let require = |kind, number| {
            let change = Change {
                kind,
                timeline: tli(number),
                reason: "r".into(),
            };
            require_apart(&tree, &before, &change)
        };
        let refused = require(Kind::Abandon, 3).unwrap_err();
        assert_eq!(refused.code(), Code::Refused);
        assert!(refused.hint_text().unwrap().contains("abandon 4 --reason"));
        assert!(require(Kind::Abandon, 4).is_ok());
        assert!(require(Kind::Restore, 3).is_ok());
    }
}
