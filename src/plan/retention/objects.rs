//! Deletions besides roots: layers, packs, events, leftovers; in the order of the format. Deletions that a kind of
//! content adds stand between.

use std::collections::BTreeMap;

use super::claims::SpentClaims;
use super::item::Item;
use super::rules::Constraint;
use super::unborn::{Unborn, unborn};
use super::{Deletion, ExpirePlan, LEFTOVER_AGE, Policy, TOMBSTONE_AGE, is_over};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::{Catalog, Manifest, Parts, Subject};
use crate::repo::event::live_claims;
use crate::repo::id::BackupId;
use crate::repo::portion::{self, Portion, ReadBack};
use crate::repo::runs::Runs;

/// Adds every deletion to the plan, and what is withheld.
pub fn delete<R>(
    catalog: &Catalog<R>,
    (content, items): (&dyn Constraint, &[Item<'_>]),
    policy: &Policy,
    now: TimestampTz,
    plan: &mut ExpirePlan,
) {
    let ids = Ids::new(catalog, items, policy, now);
    for item in items.iter().filter(|item| !item.remains()) {
        plan.deletions.push(Deletion::Manifest(item.id.clone()));
    }
    plan.deletions.extend(
        catalog
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
    content.delete(items, &ids.running(), plan);
    delete_events(&ids, now, plan);
    delete_checks(catalog, content, now, plan);
    for leftover in &catalog.unfinished {
        if is_over(leftover.modified, LEFTOVER_AGE, now) {
            plan.deletions
                .push(Deletion::Unfinished(leftover.path.clone()));
        }
    }
    let clock = policy.store_clock.map_or(now, |store| store.min(now));
    delete_spent_claims(&ids, clock, plan);
}

/// A backup that may be running, and where its replay begins, as its claims say.
pub type Running<'a> = (&'a BackupId, &'a [(TimelineId, Lsn)]);

/// The state of an id, for its parts and events.
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
    /// A backup may be running, or somebody has claimed what lies below a tombstone.
    Protected,
}

struct Id<'a, R> {
    subject: &'a Subject<R>,
    state: State,
    running: Option<Vec<(TimelineId, Lsn)>>,
}

impl<R> Id<'_, R> {
    /// Whether claims of copies that are over tell nothing here. Those of a reserved id without a root tell that a copy is being made.
    fn loses_claims(&self) -> bool {
        match &self.state {
            State::Remains => true,
            // Parts that other backups name outlive their own: each copy that needs them claims the id.
            State::Protected => self.subject.is_absent() && self.subject.begin().is_none(),
            State::Goes | State::Leftover | State::Tombstone(_) => false,
        }
    }
}

struct Ids<'a, R>(BTreeMap<&'a BackupId, Id<'a, R>>);

impl<'a, R> Ids<'a, R> {
    fn new(
        catalog: &'a Catalog<R>,
        items: &[Item<'_>],
        policy: &Policy,
        now: TimestampTz,
    ) -> Ids<'a, R> {
        let goes = |id: &BackupId| {
            let mut going = items.iter().filter(|item| !item.remains());
            going.any(|item| item.id == id)
        };
        let judge = |id: &BackupId, subject: &'a Subject<R>| {
            let mut running = None;
            let state = match &subject.manifest {
                Manifest::Committed(_) if goes(id) => State::Goes,
                Manifest::Committed(_) => State::Remains,
                // A sync may need parts below it for another backup.
                Manifest::Tombstone if !live_claims(&subject.events, now).is_empty() => {
                    State::Protected
                }
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
        Ids(catalog
            .ids
            .iter()
            .map(|(id, subject)| (id, judge(id, subject)))
            .collect())
    }

    fn running(&self) -> Vec<Running<'_>> {
        let all = self.0.iter();
        all.filter_map(|(id, one)| Some((*id, one.running.as_deref()?)))
            .collect()
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
fn delete_parts<R>(ids: &Ids<'_, R>, items: &[Item<'_>], plan: &mut ExpirePlan) {
    let mut layers = Named::new();
    let mut packs = Named::new();
    for item in items.iter().filter(|item| item.remains()) {
        collect(item.needs.0, &mut layers);
        collect(item.needs.1, &mut packs);
    }
    let none = Runs::default();
    for (id, one) in &ids.0 {
        if one.state == State::Protected {
            continue;
        }
        if one.subject.has_server_manifest && one.state != State::Remains {
            plan.deletions.push(Deletion::ServerManifest((*id).clone()));
        }
        if one.subject.has_relations && one.state != State::Remains {
            plan.deletions.push(Deletion::Relations((*id).clone()));
        }
        for (have, named, make) in [
            (
                &one.subject.layers,
                &layers,
                Deletion::Layers as fn(BackupId, u32, u32) -> Deletion,
            ),
            (&one.subject.packs, &packs, Deletion::Packs),
        ] {
            let unnamed = have.minus(named.get(*id).unwrap_or(&none));
            for (first, last) in unnamed.iter() {
                if let (Ok(first), Ok(last)) = (u32::try_from(first.0), u32::try_from(last.0)) {
                    plan.deletions.push(make((*id).clone(), first, last));
                }
            }
        }
    }
}

/// Parts that some root names, by the id that wrote them: joined, for thousands of backups may name the same.
type Named<'a> = BTreeMap<&'a BackupId, Runs>;

fn collect<'a>(parts: &'a Parts, into: &mut Named<'a>) {
    for (id, runs) in parts {
        let named = into.entry(id).or_default();
        *named = std::mem::take(named).union(runs.clone());
    }
}

/// Events about what was read back that tell nothing any more.
fn delete_checks<R>(
    catalog: &Catalog<R>,
    content: &dyn Constraint,
    now: TimestampTz,
    plan: &mut ExpirePlan,
) {
    let there = Portion {
        segments: content.segments(),
        logs: content.logs(),
        ..catalog.packs()
    };
    let read_back = ReadBack::new(&catalog.checks, &[], now);
    let old = read_back.superseded(&there).into_iter();
    plan.deletions
        .extend(old.map(|name| Deletion::Event(portion::SUBJECT.to_owned(), name.to_owned())));
}

/// Claims of copies, and their releases, that hold nothing any more. A later run deletes what is left of them.
fn delete_spent_claims<R>(ids: &Ids<'_, R>, clock: TimestampTz, plan: &mut ExpirePlan) {
    for (id, one) in ids.0.iter().filter(|(_, one)| one.loses_claims()) {
        let spent = SpentClaims::of(&one.subject.events, clock);
        if !spent.is_empty() {
            plan.deletions.push(Deletion::Spent((*id).clone(), spent));
        }
    }
}

/// Events of ids that are gone: marks after the others, reservations last of all.
fn delete_events<R>(ids: &Ids<'_, R>, now: TimestampTz, plan: &mut ExpirePlan) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::segment::SegmentNumber;

    #[test]
    fn y49_parts_that_many_backups_name_take_the_room_of_their_runs() {
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let runs = |runs: &[(u64, u64)]| {
            let runs = runs
                .iter()
                .map(|(a, b)| (SegmentNumber(*a), SegmentNumber(*b)));
            Runs::from_runs(runs.collect())
        };
        let roots: Vec<Parts> = (0..300)
            .map(|n| Parts::from([(id.clone(), runs(&[(0, 9_999), (20_000 + n, 20_000 + n)]))]))
            .collect();
        let mut named = Named::new();
        roots.iter().for_each(|root| collect(root, &mut named));
        assert_eq!(named[&id], runs(&[(0, 9_999), (20_000, 20_299)]));
    }
}
