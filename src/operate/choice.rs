//! Which of several repositories a plan is made of: whose WAL leads to the target, and who gives the backup.
//!
//! A plan follows the WAL of one repository. Where that stops at the target nobody else has to be asked. Where it ends, the end may only be
//! what that repository got: it was away for a while. So the others are asked whether they have more.

use std::collections::BTreeSet;

use super::former;
use super::opened::{self, Opened};
use super::reading::{self, Reading};
use super::session::Session;
use super::target::{AskedTarget, ResolvedTarget};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::plan::cluster::{Cluster, DECIDE};
use crate::plan::recovery::{Action, Outcome, Plan, Reason};
use crate::plan::target::TargetTimeline;
use crate::plan::unreachable;
use crate::sync::fork::{self, Stretch};
use crate::wal::inventory::{Backup, HistoryFile, Inventory, Timeline};

/// What is asked, of whichever repository.
pub struct Question<'a> {
    /// The target.
    pub target: &'a AskedTarget,
    /// What PostgreSQL does there.
    pub action: Action,
    /// Whether the plan is carried out, so that the ends of its segments are read.
    pub is_carried_out: bool,
}

/// A plan, and what follows from it.
pub struct Chosen {
    /// The repository that gives the backup; where the plan leads nowhere, the one that it was made on.
    pub opened: Opened,
    /// The plan.
    pub plan: Plan,
    /// What was asked, understood.
    pub resolved: ResolvedTarget,
    /// Why it is not carried out.
    pub unless: Option<Unless>,
}

/// Why there is no way to the target.
pub enum Unless {
    /// No repository leads there.
    OutOfReach {
        /// What the plan says.
        why: String,
        /// What brings together what several have.
        next: Option<String>,
    },
    /// One may that could not be asked.
    NotKnown(Error),
}

impl Question<'_> {
    /// Makes the plan with the repository that leads farthest, beginning with the one that is open.
    ///
    /// # Errors
    /// Those of [`Reading::plan`] on the first repository; another one is warned of.
    pub fn answer(&self, session: &Session, first: Opened) -> Result<Chosen> {
        let (mut sides, mut unasked) = (vec![first], Vec::new());
        let is_lacking = self.lacks_backup(&sides);
        if is_lacking {
            gather(session, |_, _| true, &mut sides, &mut unasked);
        }
        let mut planned = self.with_all_backups(session, &sides, &unasked, None)?;
        if !is_lacking && !is_settled(&planned.0) {
            let may_help = |own: &_, other: &_| {
                may_lead_farther(&planned.0, own, other) || tells_of_timelines(own, other)
            };
            gather(session, may_help, &mut sides, &mut unasked);
        }
        let cluster = together(session, &sides, &planned.0);
        if cluster.is_some() {
            planned = self.with_all_backups(session, &sides, &unasked, cluster.as_ref())?;
        }
        let first_said = said_of_first(&planned.0, name_of(&sides, 0));
        let (mut best, short) = self.best(session, planned, &sides, cluster.as_ref(), &mut unasked);
        let next = refuse_what_falls_short(session, &mut best, &short, &sides);
        let mut chosen = settle(session, best, sides, unasked, &first_said, next)?;
        if let Some(Unless::OutOfReach { next, .. }) = &mut chosen.unless
            && next.is_none()
        {
            let own = chosen.opened.inventory.system_identifier;
            *next = former::next(session, &chosen.opened.reading, own, self);
        }
        Ok(chosen)
    }

    fn on(
        &self,
        session: &Session,
        reading: &Reading,
        inventory: &Inventory,
        cluster: Option<&Cluster>,
    ) -> Result<Planned> {
        let asked = (self.target, self.action);
        match self.is_carried_out {
            false => reading.plan(session, inventory, asked, cluster),
            true => reading.plan_to_carry_out(session, inventory, asked, cluster),
        }
    }

    /// Whether the backup that was asked for has to be looked for elsewhere.
    fn lacks_backup(&self, sides: &[Opened]) -> bool {
        let has = |id: &String| {
            let mut backups = sides.iter().flat_map(|s| &s.inventory.backups);
            backups.any(|b| b.id.to_string() == *id)
        };
        self.target.backup.as_ref().is_some_and(|id| !has(id))
    }

    /// The plan on the first side, with the backups of all.
    fn with_all_backups(
        &self,
        session: &Session,
        sides: &[Opened],
        unasked: &[(String, Error)],
        cluster: Option<&Cluster>,
    ) -> Result<Planned> {
        let first = sides.first();
        let first = first.ok_or_else(|| err!(Internal, "a plan without a repository"))?;
        let mut inventory = first.inventory.clone();
        inventory.add_backups(&backups_beside(sides, 0));
        let planned = self.on(session, &first.reading, &inventory, cluster);
        planned.map_err(|e| match unasked.first() {
            Some((name, other)) if self.lacks_backup(sides) => {
                reading::not_known(&e.to_string(), name, other)
            }
            _ => e,
        })
    }

    /// The plan that leads farthest, and on which side it was made; the first of equal ones. The first side comes once more at the end, with
    /// the backups of the others. With it which sides do not lead as far.
    fn best(
        &self,
        session: &Session,
        planned: Planned,
        sides: &[Opened],
        cluster: Option<&Cluster>,
        unasked: &mut Vec<(String, Error)>,
    ) -> (Best, BTreeSet<usize>) {
        let mut reached = vec![(0, distance(&planned.0))];
        let mut best = (0, planned);
        for at in (1..sides.len()).chain([0]) {
            let Some(side) = sides.get(at) else { continue };
            let mut inventory = side.inventory.clone();
            inventory.add_backups(&backups_beside(sides, at));
            if at == 0 && inventory.backups == side.inventory.backups {
                continue;
            }
            match self.farther(session, (&side.reading, &inventory), cluster, &best.1.0) {
                Ok((_, Some(farther))) => {
                    reached.push((at, distance(&farther.0)));
                    best = (at, farther);
                }
                Ok((distance, None)) => reached.push((at, distance)),
                Err(e) => note(session, unasked, side.reading.configured.name.clone(), e),
            }
        }
        let farthest = distance(&best.1.0);
        let short = reached
            .into_iter()
            .filter(|(at, distance)| *at != best.0 && *distance < farthest);
        let short = short.map(|(at, _)| at).collect();
        (best, short)
    }

    /// How far another repository leads, and the plan on it, if that is farther. The ends of its segments are read only then.
    fn farther(
        &self,
        session: &Session,
        (reading, inventory): (&Reading, &Inventory),
        cluster: Option<&Cluster>,
        than: &Plan,
    ) -> Result<(Distance, Option<Planned>)> {
        let is_farther = |plan: &Plan| distance(plan) > distance(than);
        let planned = reading.plan(session, inventory, (self.target, self.action), cluster)?;
        let planned = match is_farther(&planned.0) && self.is_carried_out {
            true => self.on(session, reading, inventory, cluster)?,
            false => planned,
        };
        let distance = distance(&planned.0);
        Ok((distance, is_farther(&planned.0).then_some(planned)))
    }
}

type Planned = (Plan, ResolvedTarget);

/// On which side, and the plan.
type Best = (usize, Planned);

/// How far a plan leads; what is compared first stands first. The timeline comes before the target because the latest of all is asked for,
/// as if all WAL lay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Distance {
    /// To the target or the end of the WAL at all.
    leads: bool,
    /// On which timeline; none where it does not lead.
    timeline: Option<TimelineId>,
    /// To the very target.
    is_at_target: bool,
    /// Where else recovery ends.
    end: Lsn,
}

/// Whether recovery ends as asked.
pub fn leads(plan: &Plan) -> bool {
    plan.reachable && plan.outcome != Outcome::Fatal
}

/// Whether no other repository can change the answer: recovery stops at the target, on a timeline that was named. Which one is the latest
/// is another question to each.
fn is_settled(plan: &Plan) -> bool {
    leads(plan)
        && plan.outcome == Outcome::StopsAtTarget
        && plan.target.timeline != TargetTimeline::Latest
}

fn distance(plan: &Plan) -> Distance {
    let stop = plan.stop.as_ref();
    let end_of_wal = stop.filter(|_| plan.outcome == Outcome::EndOfWal);
    match leads(plan) {
        true => Distance {
            leads: true,
            timeline: plan.target_timeline,
            is_at_target: end_of_wal.is_none(),
            end: end_of_wal.map_or(Lsn(0), |stop| stop.recovery_end_lsn),
        },
        false => Distance {
            leads: false,
            timeline: None,
            is_at_target: false,
            end: plan.nearest_before.map_or(Lsn(0), |m| m.lsn),
        },
    }
}

/// The backups of all sides but one.
fn backups_beside(sides: &[Opened], at: usize) -> Vec<Backup> {
    let others = sides.iter().enumerate().filter(|(n, _)| *n != at);
    let backups = others.flat_map(|(_, side)| &side.inventory.backups);
    backups.cloned().collect()
}

/// Which timeline is the cluster by what all sides hold together, where that is asked of several.
fn together(session: &Session, sides: &[Opened], plan: &Plan) -> Option<Cluster> {
    let (first, others) = sides.split_first()?;
    if others.is_empty() || plan.target.timeline != TargetTimeline::Latest {
        return None;
    }
    let others: Vec<_> = others.iter().map(|o| (&o.reading, &o.inventory)).collect();
    let decided = first.reading.decide(session, &first.inventory, &others);
    let said = |e: &Error| {
        session.warn(&format!(
            "which timeline is the cluster is decided by each repository alone: {e}"
        ));
    };
    decided.inspect_err(said).ok()
}

/// Whether another repository knows of timelines, or of decisions about them, what the first does not.
fn tells_of_timelines(own: &Inventory, other: &Inventory) -> bool {
    let has_more = |(id, there): (&TimelineId, &Timeline)| {
        let here = own.timelines.get(id);
        let end = |t: &Timeline| t.bounds().map(|(_, last)| last);
        here.is_none_or(|here| end(there) > end(here) || there.history != here.history)
    };
    let decisions = |i: &Inventory| -> BTreeSet<String> {
        i.decisions.all.iter().map(|d| d.event.clone()).collect()
    };
    let is_one = own.timelines.len() == 1 && own.timelines.keys().eq(other.timelines.keys());
    decisions(own) != decisions(other) || (!is_one && other.timelines.iter().any(has_more))
}

/// Opens the others of this cluster, and keeps those that may help: by what the first and the other one hold.
fn gather(
    session: &Session,
    may_help: impl Fn(&Inventory, &Inventory) -> bool,
    sides: &mut Vec<Opened>,
    unasked: &mut Vec<(String, Error)>,
) {
    let Some(first) = sides.first() else { return };
    let mut found = Vec::new();
    for (name, other) in first.reading.all_others(session) {
        match other.and_then(|other| opened::open(session, other)) {
            // Under the same name there may be another cluster: before an upgrade, say.
            Ok(other) if other.inventory.system_identifier != first.inventory.system_identifier => {
            }
            Ok(other) if may_help(&first.inventory, &other.inventory) => found.push(other),
            Ok(_) => {}
            Err(e) => note(session, unasked, name, e),
        }
    }
    sides.extend(found);
}

/// Takes down that a repository gave no answer.
fn note(session: &Session, unasked: &mut Vec<(String, Error)>, name: String, e: Error) {
    match reading::could_lead_there(&e) {
        true => unasked.push((name, e)),
        false => session.warn(&format!("repository \"{name}\": {e}")),
    }
}

/// Whether another repository has anything, by its listing, that could lead farther than a plan does.
fn may_lead_farther(plan: &Plan, own: &Inventory, other: &Inventory) -> bool {
    let (true, Some(timeline), Some(last)) =
        (leads(plan), plan.target_timeline, plan.segments_needed.last)
    else {
        return true;
    };
    let is_asked_for_a_number = matches!(plan.target.timeline, TargetTimeline::Number(_));
    let is_later = other
        .timelines
        .iter()
        .any(|(id, t)| *id > timeline && t.history != HistoryFile::Absent)
        || other.backups.iter().any(|b| b.timeline > timeline);
    if is_later && !is_asked_for_a_number {
        return true;
    }
    let (Ok(at), Some(there)) = (
        last.number(own.segment_size),
        other.timelines.get(&timeline),
    ) else {
        return false;
    };
    let goes_on = there.bounds().is_some_and(|(_, end)| end > at);
    let has_more_of_it = !own.has(timeline, at) && there.holds(at);
    plan.outcome == Outcome::EndOfWal && (goes_on || has_more_of_it)
}

/// Refuses a plan to the end of the WAL where others have WAL behind that end, by their listing, and yet do not lead there, for something
/// before it is missing in them; the next step then. A plan that stops at its target is as good without, and warns.
fn refuse_what_falls_short(
    session: &Session,
    (at, (plan, _)): &mut Best,
    short: &BTreeSet<usize>,
    sides: &[Opened],
) -> Option<String> {
    let own = sides.get(*at).filter(|_| leads(plan))?;
    // What another server wrote is nothing that this plan lacks.
    let has_more = |side: &&Opened| {
        may_lead_farther(plan, &own.inventory, &side.inventory)
            && parts_from(session, plan, own, &side.reading).is_none()
    };
    let have_more = short.iter().filter_map(|n| sides.get(*n)).filter(has_more);
    let names: Vec<String> = have_more
        .map(|side| format!("\"{}\"", side.reading.configured.name))
        .collect();
    if names.is_empty() {
        return None;
    }
    let why = format!(
        "the WAL of repository \"{}\" {}; behind that, or on a later timeline, there is WAL in {}, and what leads there is missing in it",
        name_of(sides, *at),
        end_of(plan),
        names.join(" and "),
    );
    if plan.outcome != Outcome::EndOfWal {
        plan.warnings.push(format!("{why}: {TOGETHER}"));
        return None;
    }
    unreachable::refuse_end(plan, why);
    Some(format!(
        "{TOGETHER}. Then run the same command again. With --repository \"{}\" its end is taken for the end.",
        name_of(sides, *at)
    ))
}

const TOGETHER: &str = "pitr repo sync brings together what each of them lacks";

/// Says what was chosen, and where it differs from the first repository.
fn settle(
    session: &Session,
    (at, (mut plan, resolved)): Best,
    mut sides: Vec<Opened>,
    unasked: Vec<(String, Error)>,
    first_said: &str,
    next: Option<String>,
) -> Result<Chosen> {
    let is_farther = at > 0 && at < sides.len();
    if !leads(&plan) {
        let next = next.or_else(|| what_brings_together(&plan, at, &sides));
        if is_farther {
            session.warn(&format!(
                "no repository leads there: \"{}\" gets farthest",
                name_of(&sides, at)
            ));
        }
        let why = plan.explanation.clone();
        let why = why.unwrap_or_else(|| "the target cannot be reached".into());
        let unless = match unasked.into_iter().next() {
            Some((name, e)) => Unless::NotKnown(reading::not_known(&why, &name, &e)),
            None => Unless::OutOfReach { why, next },
        };
        let opened = sides.swap_remove(at);
        return Ok(Chosen {
            opened,
            plan,
            resolved,
            unless: Some(unless),
        });
    }
    tell_unasked(session, &plan, &unasked);
    plan.unasked = unasked.into_iter().map(|(name, _)| name).collect();
    if is_farther {
        session.warn(&format!(
            "{first_said}: the WAL of \"{}\" is used, which {}",
            name_of(&sides, at),
            end_of(&plan),
        ));
    }
    let giving = giving(&plan, at, &sides)?;
    if giving != at {
        let side = sides.get(giving).map(|s| s.inventory.repository.clone());
        plan.backup_repository = side;
        if giving != 0 {
            session.warn(&format!(
                "repository \"{}\" lacks the backup, or has it damaged or marked for deletion: that of \"{}\" is used",
                name_of(&sides, 0),
                name_of(&sides, giving)
            ));
        }
    }
    let wal_from = keep_to_one_server(session, &mut plan, at, &sides);
    let mut opened = sides.swap_remove(giving);
    if wal_from.is_some() {
        opened.reading.wal_from = wal_from;
        let (restore_command, _) = opened.reading.commands(session);
        let setting = plan.recovery_settings.get_mut("restore_command");
        setting
            .into_iter()
            .for_each(|s| s.clone_from(&restore_command));
    }
    opened.add_parameters(session, &mut plan);
    Ok(Chosen {
        opened,
        plan,
        resolved,
        unless: None,
    })
}

/// Where another repository has the WAL of another server under the names that the plan reads, recovery must not ask it: the one repository that it
/// may ask then, and a warning in the plan that names the fork.
fn keep_to_one_server(
    session: &Session,
    plan: &mut Plan,
    at: usize,
    sides: &[Opened],
) -> Option<String> {
    let own = sides.get(at)?;
    // Narrowed by the operator, nobody else is asked anyway.
    if session.flags.repository.is_some() {
        return None;
    }
    let others = own.reading.all_others(session);
    let others: Vec<Reading> = others.filter_map(|(_, other)| other.ok()).collect();
    let mut is_alone = false;
    for other in &others {
        let Some(name) = parts_from(session, plan, own, other) else {
            continue;
        };
        is_alone = true;
        let (own, other) = (&own.reading.configured.name, &other.configured.name);
        plan.warnings.push(format!(
            "repository \"{other}\" has the WAL of another server from segment \"{name}\" on, if not before: the server whose WAL is in \"{own}\" is followed, and recovery asks \"{own}\" alone. --repository \"{other}\" follows the other one"
        ));
    }
    is_alone.then(|| own.reading.configured.location.to_string())
}

/// Where another repository has the WAL of another server than a plan follows. What cannot be read tells nothing.
fn parts_from(
    session: &Session,
    plan: &Plan,
    own: &Opened,
    other: &Reading,
) -> Option<SegmentName> {
    let needed = &plan.segments_needed;
    let stretch = Stretch {
        first: needed.first?,
        last: needed.last?,
        size: own.inventory.segment_size,
    };
    let there = session
        .followed
        .apply(&other.repository, own.layout.clone());
    let there = there.ok()?;
    let own = (own.reading.repository.store(), &own.layout);
    let other = (other.repository.store(), &there);
    fork::parts(own, other, stretch).ok().flatten()
}

fn name_of(sides: &[Opened], at: usize) -> &str {
    sides
        .get(at)
        .map_or("", |s| s.reading.configured.name.as_str())
}

fn said_of_first(plan: &Plan, name: &str) -> String {
    match (leads(plan), &plan.explanation) {
        (true, _) => format!("the WAL of repository \"{name}\" {}", end_of(plan)),
        (false, Some(why)) => format!("repository \"{name}\" does not lead there ({why})"),
        (false, None) => format!("repository \"{name}\" does not lead there"),
    }
}

fn end_of(plan: &Plan) -> String {
    let timeline = plan.target_timeline.map_or(0, |t| t.decimal());
    match (&plan.stop, plan.outcome) {
        (Some(stop), Outcome::EndOfWal) => {
            format!("ends at {} on timeline {timeline}", stop.recovery_end_lsn)
        }
        _ => format!("leads to the target on timeline {timeline}"),
    }
}

/// The first side that has the plan's backup, in the order of the configuration; an undamaged copy before others.
fn giving(plan: &Plan, at: usize, sides: &[Opened]) -> Result<usize> {
    let id = plan.backup.as_ref().map(|b| &b.id);
    let of = |side: &Opened| {
        let backups = side.inventory.backups.iter();
        backups.clone().find(|b| Some(&b.id) == id).cloned()
    };
    let mut copies: Vec<(usize, Backup)> = Vec::new();
    for (n, side) in sides.iter().enumerate() {
        copies.extend(of(side).map(|b| (n, b)));
    }
    // The plan took the copy of the side it was made on, or one like it.
    let meant = copies.iter().find(|(n, _)| *n == at).or(copies.first());
    let meant = meant.map(|(_, b)| b.clone());
    let meant = meant.ok_or_else(|| err!(Internal, "a plan without a backup"))?;
    copies.retain(|(_, b)| b.is_copy_of(&meant));
    let best = copies.iter().min_by_key(|(n, b)| (b.rank(), *n));
    Ok(best.map_or(at, |(n, _)| *n))
}

/// What could not be asked may have more, and a plan to the end of the WAL must not hide that.
fn tell_unasked(session: &Session, plan: &Plan, unasked: &[(String, Error)]) {
    for (name, e) in unasked {
        let impact = match plan.outcome {
            Outcome::EndOfWal => {
                "it may have WAL behind the end that the others know, which is then not replayed"
            }
            _ => "it may know a later timeline than the others, which is then not followed",
        };
        session.warn(&format!(
            "repository \"{name}\" could not be asked, and {impact}: {e}"
        ));
    }
}

/// The next step where one side has what the farthest one lacks.
fn what_brings_together(plan: &Plan, at: usize, sides: &[Opened]) -> Option<String> {
    if plan.reason == Some(Reason::Undecided) {
        return Some(format!(
            "--target-timeline N follows one of them. {DECIDE}."
        ));
    }
    let side = sides.get(at)?;
    let size = side.inventory.segment_size;
    let others = || sides.iter().enumerate().filter(|(n, _)| *n != at);
    let has = |other: &Opened, name: &SegmentName| {
        holds(&other.inventory, *name, size) && !other.inventory.suspects.contains(name)
    };
    for (_, other) in others() {
        if let Some(name) = plan.segments_missing.iter().find(|name| has(other, name)) {
            return Some(format!(
                "Repository \"{}\" lacks segment {name}, and \"{}\" has it: pitr repo sync copies it. Then run the same command again.",
                side.reading.configured.name, other.reading.configured.name
            ));
        }
    }
    (plan.reason == Some(Reason::DamagedWal) && sides.len() > 1).then(|| {
        "Another repository may have the segment whole: \"pitr verify\" names and records all that is damaged, then \"pitr repo sync\" says which of it another repository has whole, and what to do.".to_owned()
    })
}

fn holds(inventory: &Inventory, name: SegmentName, size: SegmentSize) -> bool {
    let number = name.number(size).ok();
    number.is_some_and(|number| inventory.holds(name.timeline, number))
}
