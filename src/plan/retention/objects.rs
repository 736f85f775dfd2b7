//! What is deleted besides roots: layers, packs, WAL, events, leftovers; in the order of the format.

use std::collections::BTreeMap;

use super::cluster::Backups;
use super::item::{Item, Parts};
use super::unborn::{Unborn, unborn};
use super::wal::{Needed, Paths};
use super::{Deletion, ExpirePlan, LEFTOVER_AGE, Policy, TOMBSTONE_AGE, is_over, segment_of};
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Manifest, numbers};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::runs::Runs;
use crate::wal::survey::{Subject, Survey};

/// Adds every deletion to the plan, and what is withheld.
pub fn delete(
    survey: &Survey,
    paths: &Paths<'_>,
    (backups, items): (&Backups<'_>, &[Item<'_>]),
    policy: &Policy,
    now: TimestampTz,
    plan: &mut ExpirePlan,
) {
    let ids = Ids::new(survey, items, policy, now);
    for item in items.iter().filter(|item| !item.remains()) {
        plan.deletions.push(Deletion::Manifest(item.id.clone()));
    }
    plan.deletions.extend(
        survey
            .healed
            .iter()
            .filter(|(key, exists)| !exists || ids.manifest_goes(key))
            .map(|(key, _)| Deletion::Object(key.clone())),
    );
    plan.tombstones.extend(
        ids.0
            .iter()
            .filter(|(_, id)| id.state == State::Leftover && id.subject.begin().is_some())
            .map(|(id, _)| (*id).clone()),
    );
    delete_parts(&ids, items, plan);
    delete_wal(survey, paths, (backups, items), &ids, plan);
    delete_events(&ids, now, plan);
    for leftover in &survey.unfinished {
        if is_over(leftover.modified, LEFTOVER_AGE, now) {
            plan.deletions
                .push(Deletion::Unfinished(leftover.path.clone()));
        }
    }
}

/// What an id is, for its parts and events.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// A backup that remains.
    Remains,
    /// A backup that goes now.
    Goes,
    /// An aborted backup, or one whose deletion was cut short.
    Leftover,
    /// A janitor gave it up, at this time.
    Tombstone(TimestampTz),
    /// A backup may be running.
    Protected,
}

struct Id<'a> {
    subject: &'a Subject,
    state: State,
    running: Option<Vec<(crate::pg::timeline::TimelineId, crate::pg::lsn::Lsn)>>,
}

struct Ids<'a>(BTreeMap<&'a BackupId, Id<'a>>);

impl<'a> Ids<'a> {
    fn new(survey: &'a Survey, items: &[Item<'_>], policy: &Policy, now: TimestampTz) -> Ids<'a> {
        let goes = |id: &BackupId| {
            let mut going = items.iter().filter(|item| !item.remains());
            going.any(|item| item.id == id)
        };
        let judge = |id: &BackupId, subject: &'a Subject| {
            let mut running = None;
            let state = match &subject.manifest {
                Manifest::Committed(_) if goes(id) => State::Goes,
                Manifest::Committed(_) => State::Remains,
                Manifest::Tombstone => {
                    State::Tombstone(subject.stored.unwrap_or(TimestampTz::INFINITY))
                }
                Manifest::Unreadable(_) => State::Protected,
                Manifest::Absent => match unborn(subject, policy, now) {
                    Unborn::Leftover => State::Leftover,
                    Unborn::Unknown => State::Protected,
                    Unborn::Running(positions) => {
                        running = Some(positions);
                        State::Protected
                    }
                },
            };
            Id {
                subject,
                state,
                running,
            }
        };
        Ids(survey
            .ids
            .iter()
            .map(|(id, subject)| (id, judge(id, subject)))
            .collect())
    }

    /// Whether this is a healed copy of a root that goes.
    fn manifest_goes(&self, key: &crate::store::Key) -> bool {
        self.0.iter().any(|(id, one)| {
            one.state == State::Goes
                && key
                    .as_str()
                    .contains(&format!("/backups/{id}/manifest.heal-"))
        })
    }
}

/// Layers and packs that no remaining root names, whatever id they bear; never those of a running backup.
fn delete_parts(ids: &Ids<'_>, items: &[Item<'_>], plan: &mut ExpirePlan) {
    let mut layers: BTreeMap<&BackupId, Vec<u64>> = BTreeMap::new();
    let mut packs: BTreeMap<&BackupId, Vec<u64>> = BTreeMap::new();
    for item in items.iter().filter(|item| item.remains()) {
        collect(item.needs.0, &mut layers);
        collect(item.needs.1, &mut packs);
    }
    let unnamed = |id: &BackupId, have: &Runs, named: &BTreeMap<&BackupId, Vec<u64>>| {
        let named = Runs::from_numbers(named.get(id).cloned().unwrap_or_default());
        let rest = numbers(have)
            .map(u64::from)
            .filter(|n| !named.contains(SegmentNumber(*n)))
            .collect();
        Runs::from_numbers(rest)
    };
    for (id, one) in &ids.0 {
        if one.state == State::Protected {
            continue;
        }
        if one.subject.has_server_manifest && one.state != State::Remains {
            plan.deletions.push(Deletion::ServerManifest((*id).clone()));
        }
        for (have, named, make) in [
            (
                &one.subject.layers,
                &layers,
                Deletion::Layers as fn(BackupId, u32, u32) -> Deletion,
            ),
            (&one.subject.packs, &packs, Deletion::Packs),
        ] {
            for (first, last) in unnamed(id, have, named).iter() {
                if let (Ok(first), Ok(last)) = (u32::try_from(first.0), u32::try_from(last.0)) {
                    plan.deletions.push(make((*id).clone(), first, last));
                }
            }
        }
    }
}

fn collect<'a>(parts: &'a Parts, into: &mut BTreeMap<&'a BackupId, Vec<u64>>) {
    for (id, runs) in parts {
        into.entry(id)
            .or_default()
            .extend(numbers(runs).map(u64::from));
    }
}

fn delete_wal(
    survey: &Survey,
    paths: &Paths<'_>,
    (backups, items): (&Backups<'_>, &[Item<'_>]),
    ids: &Ids<'_>,
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
    for (id, one) in &ids.0 {
        match &one.running {
            None => {}
            Some(positions) if positions.is_empty() => doubts.push(format!(
                "no WAL is deleted, because backup \"{id}\" is running and has not said yet where its WAL begins; if it does not run any more: pitr repo claims --release {id} --confirm"
            )),
            Some(positions) => {
                for (timeline, start) in positions {
                    // The record that begins there belongs to the timeline.
                    let behind = crate::pg::lsn::Lsn(start.0.saturating_add(1));
                    paths.need_from(*timeline, *start, behind, &mut needed);
                }
            }
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
        return;
    }
    for (timeline, held) in &survey.timelines {
        for (first, last) in needed.rest(*timeline, &held.segments) {
            plan.deletions
                .push(Deletion::Segments(*timeline, first, last));
        }
    }
    delete_beside_segments(survey, &needed, plan);
}

/// Increments of segments that are there whole: whatever else is not known, nobody needs them.
fn delete_superseded(survey: &Survey, plan: &mut ExpirePlan) {
    for (segment, keys) in &survey.increments {
        if is_superseded(survey, *segment) {
            plan.deletions
                .extend(keys.iter().cloned().map(Deletion::Object));
        }
    }
}

/// Whether the segment is there whole, and no check found it damaged.
fn is_superseded(survey: &Survey, segment: SegmentName) -> bool {
    let is_whole = survey
        .timelines
        .get(&segment.timeline)
        .zip(segment.number(survey.segment_size).ok())
        .is_some_and(|(t, n)| t.segments.contains(n));
    let events = survey.segment_events.get(&segment);
    let is_damaged = events.is_some_and(|events| !event::damage(events).is_empty());
    is_whole && !is_damaged && !survey.has_other_sizes
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
    for (segment, keys) in &survey.increments {
        if goes(*segment) && !is_superseded(survey, *segment) {
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

/// Events of ids that are gone: marks after the others, reservations last of all.
fn delete_events(ids: &Ids<'_>, now: TimestampTz, plan: &mut ExpirePlan) {
    let mut begins = Vec::new();
    for (id, one) in &ids.0 {
        let is_over = match &one.state {
            State::Remains | State::Protected => continue,
            State::Goes => true,
            // Without a reservation nobody can come back.
            State::Leftover => one.subject.begin().is_none(),
            State::Tombstone(stored) => is_over(*stored, TOMBSTONE_AGE, now),
        };
        let mut names: Vec<(bool, &str)> = one
            .subject
            .events
            .iter()
            .filter(|e| e.name != "begin")
            .map(|e| (e.event.event == "expire", e.name.as_str()))
            .collect();
        names.sort_unstable();
        for (_, name) in names {
            let subject = id.to_string();
            plan.deletions
                .push(Deletion::Event(subject, name.to_owned()));
        }
        if is_over {
            if matches!(one.state, State::Tombstone(_)) {
                begins.push(Deletion::Tombstone((*id).clone()));
            }
            if one.subject.begin().is_some() {
                begins.push(Deletion::Begin((*id).clone()));
            }
        }
    }
    plan.deletions.append(&mut begins);
}
