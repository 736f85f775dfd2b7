//! The choice among repositories: whose WAL leads to the target, and which repository gives the backup.
//!
//! A plan follows the WAL of one repository. If it stops at the target, no other repository has to be asked. If it ends
//! with the WAL, the repository may only lack the WAL from there on: it was away for a while. So the other repositories
//! are asked whether they have more.

use std::collections::BTreeSet;

use super::cluster::DECIDE;
use super::recovery::{Outcome, Plan, Reason};
use super::target::TargetTimeline;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::wal::inventory::{Backup, HistoryFile, Inventory, Timeline};

/// A repository of the cluster, as far as a choice looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// As it is configured.
    pub name: &'a str,
    /// Its content.
    pub inventory: &'a Inventory,
}

/// The plan on the WAL of a repository, which its number identifies; none if the repository gave no answer.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The repository.
    pub place: usize,
    pub plan: Option<&'a Plan>,
}

/// The number of the offer that leads farthest, the first of equal ones; none where no repository answers.
pub fn choose(offers: &[Offer<'_>]) -> Option<usize> {
    let answered = offers.iter().enumerate();
    let answered = answered.filter_map(|(n, offer)| Some((n, distance(offer.plan?))));
    let first_wins = |(n, distance): &(usize, Distance)| (*distance, std::cmp::Reverse(*n));
    answered.max_by_key(first_wins).map(|(n, _)| n)
}

/// The repositories none of whose offers leads as far as the chosen one.
pub fn falling_short(offers: &[Offer<'_>], chosen: &Plan) -> BTreeSet<usize> {
    let farthest = distance(chosen);
    let answered = || {
        offers
            .iter()
            .filter_map(|o| Some((o.place, distance(o.plan?))))
    };
    let equal: BTreeSet<usize> = answered()
        .filter(|(_, distance)| *distance >= farthest)
        .map(|(place, _)| place)
        .collect();
    let places = answered().map(|(place, _)| place);
    places.filter(|place| !equal.contains(place)).collect()
}

/// The first repository, in the order of the configuration, that has the plan's backup; an undamaged copy before others. `at` is the
/// repository whose WAL the plan follows.
pub fn giving(plan: &Plan, at: usize, places: &[Place<'_>]) -> Option<usize> {
    let id = plan.backup.as_ref().map(|b| &b.id)?;
    let copy = |(n, place): (usize, &Place<'_>)| {
        let mut backups = place.inventory.backups.iter();
        Some((n, backups.find(|b| b.id == *id)?.clone()))
    };
    let mut copies: Vec<(usize, Backup)> = places.iter().enumerate().filter_map(copy).collect();
    // The plan took the copy of the repository it was made on, or one like it.
    let meant = copies.iter().find(|(n, _)| *n == at).or(copies.first());
    let meant = meant.map(|(_, b)| b.clone())?;
    copies.retain(|(_, b)| b.is_copy_of(&meant));
    let best = copies.iter().min_by_key(|(n, b)| (b.rank(), *n));
    best.map(|(n, _)| *n)
}

/// How far a plan leads; what is compared first stands first. The timeline comes before the target because the latest of all is asked for,
/// as if all WAL lay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance {
    /// To the target or the end of the WAL at all.
    leads: bool,
    /// On which timeline; none where it does not lead.
    timeline: Option<TimelineId>,
    /// To the very target.
    is_at_target: bool,
    /// The end of recovery elsewhere.
    end: Lsn,
}

/// Whether recovery ends as asked.
pub fn leads(plan: &Plan) -> bool {
    plan.reachable && plan.outcome != Outcome::Fatal
}

/// Whether no other repository can change the answer: recovery stops at the target, on a timeline that was named. Which one is the latest
/// is another question to each.
pub fn is_settled(plan: &Plan) -> bool {
    leads(plan)
        && plan.outcome == Outcome::StopsAtTarget
        && plan.target.timeline != TargetTimeline::Latest
}

/// How far a plan leads.
pub fn distance(plan: &Plan) -> Distance {
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

/// Whether another repository knows of timelines, or of decisions about them, what the first does not.
pub fn tells_of_timelines(own: &Inventory, other: &Inventory) -> bool {
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

/// Whether another repository has anything, by its listing, that could lead farther than a plan does.
pub fn may_lead_farther(plan: &Plan, own: &Inventory, other: &Inventory) -> bool {
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

/// Describes the plan of the repository that was read first.
pub fn said_of_first(plan: &Plan, name: &str) -> String {
    match (leads(plan), &plan.explanation) {
        (true, _) => format!("the WAL of repository \"{name}\" {}", end_of(plan)),
        (false, Some(why)) => format!("repository \"{name}\" does not lead there ({why})"),
        (false, None) => format!("repository \"{name}\" does not lead there"),
    }
}

/// Describes where a plan leads, for a sentence about its repository.
pub fn end_of(plan: &Plan) -> String {
    let timeline = plan.target_timeline.map_or(0, |t| t.decimal());
    match (&plan.stop, plan.outcome) {
        (Some(stop), Outcome::EndOfWal) => {
            format!("ends at {} on timeline {timeline}", stop.recovery_end_lsn)
        }
        _ => format!("leads to the target on timeline {timeline}"),
    }
}

/// The next step where one repository has what the farthest one lacks.
pub fn what_brings_together(plan: &Plan, at: usize, places: &[Place<'_>]) -> Option<String> {
    if plan.reason == Some(Reason::Undecided) {
        return Some(format!(
            "--target-timeline N follows one of them. {DECIDE}."
        ));
    }
    let place = places.get(at)?;
    let size = place.inventory.segment_size;
    let others = || places.iter().enumerate().filter(|(n, _)| *n != at);
    let has = |other: &Place<'_>, name: &SegmentName| {
        holds(other.inventory, *name, size) && !other.inventory.suspects.contains(name)
    };
    for (_, other) in others() {
        if let Some(name) = plan.segments_missing.iter().find(|name| has(other, name)) {
            return Some(format!(
                "Repository \"{}\" lacks segment {name}, and \"{}\" has it: pitr repo sync copies it. Then run the same command again.",
                place.name, other.name
            ));
        }
    }
    (plan.reason == Some(Reason::DamagedWal) && places.len() > 1).then(|| {
        "Another repository may have the segment whole: \"pitr verify\" names and records all that is damaged, then \"pitr repo sync\" says which of it another repository has whole, and what to do.".to_owned()
    })
}

fn holds(inventory: &Inventory, name: SegmentName, size: SegmentSize) -> bool {
    let number = name.number(size).ok();
    number.is_some_and(|number| inventory.holds(name.timeline, number))
}
