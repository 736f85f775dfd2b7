//! Deletions of a cluster's WAL: segments that nothing needs, and the objects that go with them.

use std::collections::BTreeSet;

use super::cluster::Backups;
use super::copies::Copies;
use super::item::Item;
use super::objects::Running;
use super::wal::{Needed, Paths};
use super::{Deletion, ExpirePlan, segment_of};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::timeline::TimelineId;
use crate::repo::event;
use crate::wal::survey::Survey;

/// Adds the deletions to the plan, and why WAL is withheld.
pub fn delete(
    (survey, copies): (&Survey, Option<&Copies>),
    paths: &Paths<'_>,
    (backups, items): (&Backups<'_>, &[Item<'_>]),
    running: &[Running<'_>],
    plan: &mut ExpirePlan,
) {
    let mut doubts: Vec<String> = paths
        .doubts
        .iter()
        .map(|doubt| format!("no WAL is deleted, because {doubt}"))
        .collect();
    delete_superseded(survey, plan);
    let mut needed = Needed::default();
    backups.need(items, &mut needed);
    for (id, positions) in running {
        if positions.is_empty() {
            doubts.push(format!(
                "no WAL is deleted, because backup \"{id}\" is running and has not said yet where its WAL begins; if it does not run any more: pitr repo claims --release {id} --confirm"
            ));
        }
        for (timeline, start) in *positions {
            // The record that begins there belongs to the timeline.
            let behind = Lsn(start.0.saturating_add(1));
            paths.need_from(*timeline, *start, behind, &mut needed);
        }
    }
    if items.is_empty() {
        doubts.push("no WAL is deleted, because there is no backup".to_owned());
    }
    if !doubts.is_empty() {
        // Without WAL there is nothing to say about it.
        if survey.timelines.values().any(|t| !t.is_empty()) {
            plan.withheld.append(&mut doubts);
        }
        plan.needed = needed;
        return;
    }
    if let Some(copies) = copies {
        plan.short = short_of_copies(survey, copies, &mut needed);
    }
    for (timeline, held) in &survey.timelines {
        for (first, last) in needed.rest(*timeline, &held.segments) {
            let run = Deletion::Segments(*timeline, first, last);
            plan.deletions.push(run);
        }
    }
    delete_beside_segments(survey, &needed, plan);
    plan.holes = backups.trimmed(items, &needed);
    plan.needed = needed;
}

/// Adds the segments that another repository still lacks to those that are needed; returns them as runs.
fn short_of_copies(
    survey: &Survey,
    copies: &Copies,
    needed: &mut Needed,
) -> Vec<(TimelineId, SegmentNumber, SegmentNumber)> {
    let mut short: Vec<(TimelineId, SegmentNumber, SegmentNumber)> = Vec::new();
    for (timeline, held) in &survey.timelines {
        for (first, last) in needed.rest(*timeline, &held.segments) {
            let numbers = (first.0..=last.0).map(SegmentNumber);
            for number in numbers.filter(|number| copies.holds_back(*timeline, *number)) {
                match short.last_mut() {
                    Some((of, _, end)) if of == timeline && end.next() == number => *end = number,
                    _ => short.push((*timeline, number, number)),
                }
            }
        }
    }
    for (timeline, first, last) in &short {
        needed.add(*timeline, *first, *last);
    }
    short
}

/// Increments of segments that are there whole: whatever else is not known, nobody needs them.
fn delete_superseded(survey: &Survey, plan: &mut ExpirePlan) {
    let suspects = survey.suspects();
    for (segment, keys) in &survey.increments {
        if is_superseded(survey, &suspects, *segment) {
            plan.deletions
                .extend(keys.iter().cloned().map(Deletion::Object));
        }
    }
}

/// Whether the segment is there whole, and no check found it damaged.
fn is_superseded(survey: &Survey, suspects: &BTreeSet<SegmentName>, segment: SegmentName) -> bool {
    let is_whole = survey
        .timelines
        .get(&segment.timeline)
        .zip(segment.number(survey.segment_size).ok())
        .is_some_and(|(t, n)| t.segments.contains(n));
    is_whole && !suspects.contains(&segment) && !survey.has_other_sizes
}

/// Partials, labels, increments, refused copies and events go with their segment.
fn delete_beside_segments(survey: &Survey, needed: &Needed, plan: &mut ExpirePlan) {
    let number = |name: SegmentName| name.number(survey.segment_size).ok();
    let goes = |name: SegmentName| number(name).is_some_and(|n| !needed.contains(name.timeline, n));
    for held in survey.timelines.values() {
        for partial in held.partials.iter().copied().filter(|p| goes(*p)) {
            let name = crate::pg::segment::WalFileName::Partial(partial);
            plan.deletions.push(Deletion::WalFile(name));
        }
    }
    for label in &survey.labels {
        if segment_of(*label).is_some_and(goes) {
            plan.deletions.push(Deletion::WalFile(*label));
        }
    }
    let suspects = survey.suspects();
    for (segment, keys) in &survey.increments {
        if goes(*segment) && !is_superseded(survey, &suspects, *segment) {
            plan.deletions
                .extend(keys.iter().cloned().map(Deletion::Object));
        }
    }
    for (offered, key) in survey.conflicts.iter().chain(&survey.shadowed) {
        if segment_of(*offered).is_some_and(goes) {
            plan.deletions.push(Deletion::Object(key.clone()));
        }
    }
    for (segment, events) in &survey.segment_events {
        let is_known = |e: &event::Recorded| {
            let kinds = ["damaged", "healed", event::MEANINGLESS];
            kinds.contains(&e.event.event.as_str())
        };
        if goes(*segment) && events.iter().all(is_known) {
            for event in events {
                let subject = format!("wal-{segment}");
                plan.deletions
                    .push(Deletion::Event(subject, event.name.clone()));
            }
        }
    }
}
