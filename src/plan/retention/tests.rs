//! Worlds made at random, judged by a model that knows nothing of the planner; and single cases by name.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of small worlds"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::pg::segment::SegmentSize;
use crate::pg::timeline::History;
pub(super) use crate::pg::timeline::tli;
use crate::repo::catalog::{Manifest, numbers};
use crate::repo::event::{Event, Recorded, TRIMMED, compact, standing};
use crate::repo::runs::Runs;
use crate::wal::inventory::{HistoryFile, Timeline};
use crate::wal::survey::{Root, Subject};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn now() -> TimestampTz {
    "2026-11-20T06:40:49Z".parse().unwrap()
}

pub(super) fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

pub(super) fn id(n: usize) -> BackupId {
    format!("202611{:02}T{:02}0000Z-full", 1 + n / 24, n % 24)
        .parse()
        .unwrap()
}

fn ago(hours: u64) -> TimestampTz {
    now().saturating_sub(HOUR * u32::try_from(hours).unwrap())
}

pub(super) fn event(kind: &str, at: TimestampTz) -> Recorded {
    Recorded {
        name: match kind {
            "begin" => "begin".into(),
            _ => format!("{}-{kind}-0000000000000001", compact(at)),
        },
        event: Event {
            event: kind.into(),
            time: at,
            ..Event::default()
        },
        stored: at,
        is_doubted: false,
    }
}

pub(super) fn empty() -> Survey {
    Survey::empty(size())
}

/// A timeline with these segments; `from` is where it left its parent.
pub(super) fn add_timeline(
    survey: &mut Survey,
    n: u32,
    from: Option<(u32, Lsn)>,
    segments: Vec<u64>,
) {
    let history = match from {
        None => HistoryFile::Absent,
        Some((parent, lsn)) => {
            let parent = known_history(survey, tli(parent));
            HistoryFile::Known(parent.child(tli(n), lsn, b"test"))
        }
    };
    let timeline = Timeline {
        history,
        segments: Runs::from_numbers(segments),
        ..Timeline::default()
    };
    survey.timelines.insert(tli(n), timeline);
}

pub(super) fn known_history(survey: &Survey, timeline: TimelineId) -> History {
    match survey.timelines.get(&timeline).map(|t| &t.history) {
        Some(HistoryFile::Known(h)) => h.clone(),
        _ => History::root(timeline),
    }
}

/// Adds a timeline that begins on its parent at an LSN.
fn branch(
    survey: &mut Survey,
    n: u32,
    (parent, from): (u32, u64),
    segments: std::ops::RangeInclusive<u64>,
) {
    add_timeline(survey, n, Some((parent, Lsn(from))), segments.collect());
}

fn is_warned(plan: &ExpirePlan, of: &str) -> bool {
    plan.warnings.iter().any(|w| w.contains(of))
}

fn add(survey: &mut Survey, id: &BackupId, event: Recorded) {
    survey.ids.get_mut(id).unwrap().events.push(event);
}

fn root_of<'s>(survey: &'s mut Survey, id: &BackupId) -> &'s mut Root {
    match &mut survey.ids.get_mut(id).unwrap().manifest {
        Manifest::Committed(root) => root,
        _ => panic!("{id} has no root"),
    }
}

/// A claim that was made so many hours ago, for so many hours.
fn claim(ago_hours: u64, for_hours: u64, purpose: Option<&str>) -> Recorded {
    let mut claim = event("claim", ago(ago_hours));
    claim.event.purpose = purpose.map(str::to_owned);
    claim.event.seconds = Some(for_hours * 3600);
    claim
}

fn add_backup(survey: &mut Survey, n: usize, timeline: u32, start: u64, stop: u64) -> BackupId {
    let id = id(n);
    let own = BTreeMap::from([(id.clone(), Runs::from_numbers(vec![0]))]);
    let root = Root {
        stop_time: ago(48),
        layers: own.clone(),
        packs: own,
        ..Root::sample(tli(timeline), Lsn(start), Lsn(stop))
    };
    let subject = Subject {
        manifest: Manifest::Committed(Box::new(root)),
        stored: Some(ago(48)),
        has_server_manifest: true,
        has_relations: true,
        layers: Runs::from_numbers(vec![0]),
        packs: Runs::from_numbers(vec![0]),
        events: vec![event("begin", ago(48))],
        ..Subject::default()
    };
    survey.ids.insert(id.clone(), subject);
    id
}

pub(super) fn policy(keep: u32, grace_hours: u32) -> Policy {
    Policy {
        rules: Retention::newest(keep),
        grace: HOUR * grace_hours,
        ..Policy::default()
    }
}

/// Timeline 1 with segments 1 to 100, and a backup at each tenth.
fn straight() -> Survey {
    let mut survey = empty();
    add_timeline(&mut survey, 1, None, (1..=100).collect());
    for n in 1..=9_usize {
        let start = n as u64 * 10 * MIB + 40;
        add_backup(&mut survey, n, 1, start, start + MIB);
    }
    survey
}

fn fates(plan: &ExpirePlan) -> Vec<&'static str> {
    plan.backups.iter().map(|b| b.fate.as_str()).collect()
}

fn segments(plan: &ExpirePlan) -> Vec<(u32, u64, u64)> {
    plan.deletions
        .iter()
        .filter_map(|d| match d {
            Deletion::Segments(t, first, last) => Some((t.get(), first.0, last.0)),
            _ => None,
        })
        .collect()
}

/// Carries out a plan on the survey, as the repository would look afterwards.
pub(super) fn apply(survey: &mut Survey, plan: &ExpirePlan, at: TimestampTz) {
    for marked in &plan.marks {
        let subject = survey.ids.get_mut(marked).unwrap();
        subject.events.push(event("expire", at));
    }
    for (unmarked, name) in &plan.unmarks {
        let mut event = event("unexpire", at);
        event.event.ends = Some(name.clone());
        survey.ids.get_mut(unmarked).unwrap().events.push(event);
    }
    for id in &plan.tombstones {
        let subject = survey.ids.get_mut(id).unwrap();
        (subject.manifest, subject.stored) = (Manifest::Tombstone, Some(at));
    }
    for (trimmed, first) in &plan.holes {
        let mut recorded = event("trimmed", at);
        recorded.event.segment = Some(first.to_string());
        let subject = survey.ids.get_mut(trimmed).unwrap();
        subject.events.push(recorded);
    }
    let without = |runs: &Runs, first: u64, last: u64| {
        runs.minus(&Runs::from_runs(vec![(
            SegmentNumber(first),
            SegmentNumber(last),
        )]))
    };
    for deletion in &plan.deletions {
        match deletion {
            Deletion::Manifest(id) | Deletion::Tombstone(id) => {
                survey.ids.get_mut(id).unwrap().manifest = Manifest::Absent;
            }
            Deletion::ServerManifest(id) => {
                survey.ids.get_mut(id).unwrap().has_server_manifest = false;
            }
            Deletion::Relations(id) => {
                survey.ids.get_mut(id).unwrap().has_relations = false;
            }
            Deletion::Layers(id, first, last) => {
                let subject = survey.ids.get_mut(id).unwrap();
                subject.layers = without(&subject.layers, (*first).into(), (*last).into());
            }
            Deletion::Packs(id, first, last) => {
                let subject = survey.ids.get_mut(id).unwrap();
                subject.packs = without(&subject.packs, (*first).into(), (*last).into());
            }
            Deletion::Segments(timeline, first, last) => {
                let held = survey.timelines.get_mut(timeline).unwrap();
                held.segments = without(&held.segments, first.0, last.0);
            }
            Deletion::WalFile(name) => {
                let segment = segment_of(*name).unwrap();
                let held = survey.timelines.get_mut(&segment.timeline).unwrap();
                held.partials.remove(&segment);
                survey.labels.retain(|l| l != name);
            }
            Deletion::Event(subject, name) => {
                if let Ok(id) = subject.parse::<BackupId>() {
                    let subject = survey.ids.get_mut(&id).unwrap();
                    subject.events.retain(|e| e.name != *name);
                }
            }
            Deletion::Begin(id) => {
                let subject = survey.ids.get_mut(id).unwrap();
                subject.events.retain(|e| e.name != "begin");
                subject.newest_part = Some(ago(48));
                // Parts that another backup names outlive their own.
                if subject.packs.is_empty() && subject.layers.is_empty() {
                    survey.ids.remove(id);
                }
            }
            Deletion::Object(_) => {}
            Deletion::Unfinished(path) => survey.unfinished.retain(|u| u.path != *path),
            Deletion::Spent(id, spent) => {
                let subject = survey.ids.get_mut(id).unwrap();
                let names = [&spent.releases[..], &spent.claims[..]].concat();
                subject.events.retain(|e| !names.contains(&e.name));
            }
        }
    }
}

#[test]
fn a11_nothing_goes_before_a_newer_backup_was_verified_and_is_old_enough() {
    let mut survey = straight();
    let with = |hours: u32| Policy {
        min_age: HOUR * hours,
        ..policy(2, 0)
    };
    let kept = |survey: &Survey, policy: &Policy| {
        let plan = retention(survey, policy, now());
        let kept = fates(&plan).iter().filter(|f| **f == "keep").count();
        (kept, plan.waiting.unwrap_or_default())
    };
    assert_eq!(kept(&survey, &with(0)), (2, String::new()));
    let (count, waiting) = kept(&survey, &with(24));
    assert_eq!(count, 9);
    assert!(waiting.contains("pitr verify"), "{waiting}");
    // The fifth was verified; all backups are two days old.
    let verify = |survey: &mut Survey, n: usize| verify_now(survey, &id(n));
    verify(&mut survey, 5);
    assert_eq!(kept(&survey, &with(24)).0, 5);
    let plan = retention(&survey, &with(24), now());
    assert_eq!(fates(&plan)[4..], ["keep"; 5]);
    let (count, waiting) = kept(&survey, &with(72));
    assert_eq!(count, 9);
    assert!(waiting.contains("the next one is at"), "{waiting}");
    // The later of the two times counts, and of a damaged one none.
    let mut late = survey.clone();
    let subject = late.ids.get_mut(&id(5)).unwrap();
    subject.stored = Some(ago(23));
    assert_eq!(kept(&late, &with(24)).0, 9);
    add(&mut survey, &id(5), event("damaged", ago(1)));
    assert_eq!(kept(&survey, &with(24)).0, 9);
    // A verification without proof counts for nothing.
    verify(&mut survey, 8);
    assert_eq!(kept(&survey, &with(24)).0, 2);
    let events = &mut survey.ids.get_mut(&id(8)).unwrap().events;
    events.last_mut().unwrap().is_doubted = true;
    assert_eq!(kept(&survey, &with(24)).0, 9);
}

/// Without an age the last backup that was verified stays until a newer one is.
#[test]
fn a11_the_last_verified_backup_stays_whatever_its_age() {
    let mut survey = straight();
    assert_eq!(kept(&survey, 2), [id(8), id(9)]);
    verify_now(&mut survey, &id(2));
    verify_now(&mut survey, &id(4));
    assert_eq!(kept(&survey, 2), [id(4), id(8), id(9)]);
    let plan = survey_plan(&survey, &policy(2, 0));
    let last = judged_at(&plan, &id(4));
    assert!(last.reason.contains("pitr verify"), "{last:?}");
    // The WAL behind it stays with it.
    assert_eq!(segments(&plan), [(1, 1, 39)]);
    // After its damage the one before is the last.
    let mut damaged = survey.clone();
    record(&mut damaged, &id(4), "damaged");
    assert_eq!(kept(&damaged, 2)[0], id(2));
    // A person may still have it deleted.
    let asked = Policy {
        requested: Some(id(4)),
        ..policy(2, 0)
    };
    assert_eq!(survey_plan(&survey, &asked).refusal, None);
    verify_now(&mut survey, &id(8));
    assert_eq!(kept(&survey, 2), [id(8), id(9)]);
}

#[test]
fn a11_more_backups_than_usual_stop_expire() {
    let mut survey = straight();
    let take_at = |survey: &mut Survey, n: usize, hours: u64| {
        root_of(survey, &id(n)).stop_time = ago(hours);
    };
    // One each day, and two on the last.
    for n in 1..=9 {
        take_at(&mut survey, n, 24 * (9 - n as u64) + 1);
    }
    take_at(&mut survey, 8, 3);
    let plan = retention(&survey, &policy(2, 0), now());
    assert_eq!((plan.burst, plan.marks.len()), (None, 7));
    // A third is more than twice the usual.
    take_at(&mut survey, 7, 5);
    let plan = retention(&survey, &policy(2, 0), now());
    assert!(
        plan.burst
            .as_ref()
            .unwrap()
            .contains("3 backups were taken within 24 hours")
    );
    assert!(plan.marks.is_empty() && plan.deletions.is_empty());
    assert!(fates(&plan).iter().all(|f| *f != "mark"));
    let confirmed = Policy {
        confirm_burst: true,
        ..policy(2, 0)
    };
    assert_eq!(retention(&survey, &confirmed, now()).marks.len(), 7);
    // Nothing stops if nothing would go.
    assert_eq!(retention(&survey, &policy(9, 0), now()).burst, None);
    // After a week it is over.
    let plan = retention(&survey, &policy(2, 0), now().saturating_add(HOUR * 24 * 8));
    assert_eq!(plan.burst, None);
}

/// Backups of [`straight`] that ended so many hours ago, the first one first.
fn taken_ago(hours: [u64; 9]) -> Survey {
    let mut survey = straight();
    for (n, hours) in (1..).zip(hours) {
        survey.ids.get_mut(&id(n)).unwrap().stored = Some(ago(hours));
        root_of(&mut survey, &id(n)).stop_time = ago(hours);
    }
    survey
}

/// Rules of periods leave one backup of each day but the last ones: that says nothing of how many are usual.
#[test]
fn a11_days_that_rules_of_periods_have_thinned_do_not_stop_expire() {
    let mut survey = taken_ago([102, 78, 54, 30, 5, 4, 3, 2, 1]);
    let with = |survey: &Survey, last, daily| {
        let mut policy = policy(last, 0);
        policy.rules.daily = Some(daily);
        retention(survey, &policy, now())
    };
    for (daily, gone) in [(4, 1), (3, 2)] {
        let plan = with(&survey, 5, daily);
        let shown = fates(&plan).join(" ");
        let judged = (plan.burst, plan.marks.len());
        assert_eq!(judged, (None, gone), "{daily}: {shown}");
    }
    // Two days behind those that the rule has just left lose their only backups.
    assert!(with(&survey, 5, 1).burst.is_some());
    // Pinned ones stay, and tell nothing either.
    for n in 1..=2 {
        record(&mut survey, &id(n), "pin");
    }
    assert_eq!(with(&survey, 5, 1).burst, None);
    // Without a rule that counts backups none pushes out another one.
    let only_periods = Policy {
        rules: Retention {
            daily: Some(1),
            ..Retention::default()
        },
        ..policy(1, 0)
    };
    let plan = retention(&survey, &only_periods, now());
    assert_eq!((plan.burst, plan.marks.len()), (None, 6));
}

/// A burst of several days fills `keep_last` by itself, and rules of longer periods hold little of what it pushes out.
#[test]
fn a11_a_burst_of_several_days_stops_expire_beside_rules_of_periods() {
    let survey = taken_ago([98, 74, 50, 27, 26, 25, 3, 2, 1]);
    let mut policy = policy(6, 0);
    policy.rules.monthly = Some(1);
    let plan = retention(&survey, &policy, now());
    assert!(plan.burst.is_some() && plan.marks.is_empty(), "{plan:?}");
}

#[test]
fn a13_a_completed_backup_without_a_root_keeps_what_it_needs() {
    let mut survey = straight();
    let third = id(3);
    let completed = |at| {
        let mut one = event("completed", at);
        one.event.timeline = Some(1);
        one.event.start_lsn = Some(Lsn(30 * MIB + 40));
        one.event.to_lsn = Some(Lsn(31 * MIB + 40));
        one
    };
    let subject = survey.ids.get_mut(&third).unwrap();
    subject.manifest = Manifest::Absent;
    subject.events.push(completed(ago(48)));
    let plan = retention(&survey, &policy(2, 0), now());
    assert_eq!(segments(&plan), [(1, 1, 29)]);
    let touches = |plan: &ExpirePlan| {
        plan.tombstones.contains(&third)
            || plan.deletions.iter().any(|d| match d {
                Deletion::Packs(id, ..) | Deletion::Layers(id, ..) => *id == third,
                _ => false,
            })
    };
    assert!(!touches(&plan) && plan.has_lost);
    assert!(is_warned(&plan, "its root is lost"));
    // Given up, it is marked, and goes after the grace period.
    let giving_up = Policy {
        given_up: BTreeSet::from([third.clone()]),
        ..policy(9, 24)
    };
    let plan = retention(&survey, &giving_up, now());
    assert_eq!(plan.marks, std::slice::from_ref(&third));
    apply(&mut survey, &plan, now());
    let plan = retention(&survey, &policy(9, 24), now());
    assert!(!touches(&plan) && plan.warnings.is_empty());
    let later = now().saturating_add(HOUR * 25);
    assert!(touches(&retention(&survey, &policy(9, 24), later)));
}

#[test]
fn the_newest_are_kept_with_the_wal_from_the_oldest_of_them_on() {
    let mut survey = straight();
    let first = retention(&survey, &policy(3, 24), now());
    assert_eq!(
        fates(&first),
        [
            "mark", "mark", "mark", "mark", "mark", "mark", "keep", "keep", "keep"
        ]
    );
    // A backup that is only marked still needs its WAL; before the oldest backup there is nothing to reach.
    assert_eq!(segments(&first), [(1, 1, 9)]);
    apply(&mut survey, &first, now());
    let waiting = retention(&survey, &policy(3, 24), now().saturating_add(HOUR * 23));
    assert_eq!(fates(&waiting)[..6], ["waiting"; 6]);
    assert!(waiting.is_empty());
    let later = now().saturating_add(HOUR * 24);
    let second = retention(&survey, &policy(3, 24), later);
    assert_eq!(fates(&second)[..6], ["delete"; 6]);
    assert_eq!(segments(&second), [(1, 10, 69)]);
    assert_eq!(second.oldest_kept().unwrap().id, id(7));
    apply(&mut survey, &second, later);
    assert!(retention(&survey, &policy(3, 24), later).is_empty());
    assert_eq!(survey.ids.len(), 3);
}

#[test]
fn x01_the_last_good_backup_never_goes() {
    let mut survey = straight();
    for n in [8, 9] {
        let mut found = event("damaged", ago(1));
        found.event.detail = Some("a pack is gone".into());
        add(&mut survey, &id(n), found);
    }
    let plan = retention(&survey, &policy(1, 0), now());
    assert_eq!(fates(&plan)[6..], ["keep", "keep", "keep"]);
    assert!(plan.refusal.as_ref().unwrap().contains(&id(7).to_string()));
    assert_eq!(segments(&plan), [(1, 1, 69)]);
    // With three kept the policy alone takes no last good one.
    assert_eq!(retention(&survey, &policy(3, 0), now()).refusal, None);
    for n in 1..=7 {
        add(&mut survey, &id(n), event("damaged", ago(1)));
    }
    let plan = retention(&survey, &policy(1, 0), now());
    assert_eq!(fates(&plan), ["keep"; 9]);
    assert!(plan.deletions.is_empty() && plan.marks.is_empty() && plan.refusal.is_some());
}

#[test]
fn a_backup_whose_wal_is_gone_does_not_count() {
    let mut survey = straight();
    let held = survey.timelines.get_mut(&tli(1)).unwrap();
    held.segments = Runs::from_numbers((1..=100).filter(|n| *n != 90).collect());
    let plan = retention(&survey, &policy(1, 0), now());
    assert_eq!(fates(&plan)[7..], ["keep", "keep"]);
    assert!(plan.backups[8].damage.as_ref().unwrap().contains("missing"));
    assert!(plan.refusal.is_some());
}

#[test]
fn a_backup_that_ends_in_a_segment_that_is_streamed_counts_as_far_as_it_is_stored() {
    for (reach, is_good) in [(91 * MIB + 40, true), (91 * MIB + 32, false)] {
        let mut survey = straight();
        let held = survey.timelines.get_mut(&tli(1)).unwrap();
        held.segments = Runs::from_numbers((1..=90).collect());
        held.tails.insert(SegmentNumber(91), Lsn(reach));
        let plan = retention(&survey, &policy(1, 0), now());
        assert_eq!(plan.backups[8].damage.is_none(), is_good, "{reach}");
        assert_eq!(plan.refusal.is_none(), is_good, "{reach}");
    }
}

#[test]
fn a_base_is_kept_for_the_timeline_that_the_cluster_follows() {
    let mut survey = straight();
    // A standby that lagged was promoted to 2, a drill to 3; both begin before the backups that are kept.
    branch(&mut survey, 2, (1, 25 * MIB), 25..=30);
    branch(&mut survey, 3, (1, 45 * MIB), 45..=50);
    let kept = |cluster: &[u32]| {
        let policy = Policy {
            cluster: cluster.iter().map(|n| tli(*n)).collect(),
            ..policy(1, 24)
        };
        let plan = retention(&survey, &policy, now());
        let kept = plan.backups.iter().filter(|b| b.fate == Fate::Keep);
        let kept: Vec<_> = kept
            .map(|b| (b.place.unwrap().stop_lsn.0 / MIB / 10, b.reason.clone()))
            .collect();
        kept
    };
    let base = |n: u64, of: &str| {
        let reason = format!("the base of timeline {of}, which the cluster follows");
        (n, reason)
    };
    let newest = (9, "number 1 of the newest 1".to_owned());
    assert_eq!(kept(&[2]), [base(2, "2"), newest.clone()]);
    assert_eq!(kept(&[3, 2]), [base(2, "2"), base(4, "3"), newest.clone()]);
    assert_eq!(kept(&[1]), std::slice::from_ref(&newest));
    // Without a word about it the newest is taken for the cluster.
    assert_eq!(kept(&[]), [base(4, "3"), newest]);
}

#[test]
fn a1_a_backup_with_another_server_s_wal_does_not_count() {
    let mut survey = straight();
    let name = SegmentNumber(90).name(tli(1), size()).unwrap();
    root_of(&mut survey, &id(9)).foreign = Some(name);
    let plan = retention(&survey, &policy(1, 1), now());
    assert_eq!(fates(&plan)[7..], ["keep", "keep"]);
    let [.., eighth, ninth] = &plan.backups[..] else {
        panic!();
    };
    assert_eq!(eighth.reason, "number 1 of the newest 1");
    assert!(ninth.damage.as_ref().unwrap().contains("another server's"));
}

#[test]
fn t76_a_backup_of_another_life_is_no_base_of_the_timeline_that_was_written_past_its_end() {
    let mut survey = straight();
    let fork = Some((1, Lsn(91 * MIB + 1000)));
    add_timeline(&mut survey, 2, fork, (91..=95).collect());
    let kept = |survey: &Survey| {
        let policy = Policy {
            cluster: vec![tli(2)],
            ..policy(1, 24)
        };
        let plan = retention(survey, &policy, now());
        let kept = plan.backups.iter().filter(|b| b.fate == Fate::Keep);
        let kept = kept.map(|b| b.place.unwrap().stop_lsn.0 / MIB / 10);
        kept.collect::<Vec<_>>()
    };
    assert_eq!(kept(&survey), [9]);
    let with = |survey: &Survey, change: &dyn Fn(&mut Root)| {
        let mut survey = survey.clone();
        change(root_of(&mut survey, &id(9)));
        survey
    };
    let copy = SegmentNumber(91).name(tli(2), size()).unwrap();
    let stray = with(&survey, &|root| {
        root.strays.insert(tli(2), copy);
    });
    assert_eq!(kept(&stray), [8, 9]);
    // Without keys nobody knows: it stands for no other, and none stands for it.
    let unsure = with(&survey, &|root| {
        root.unsure.insert(tli(2));
    });
    assert_eq!(kept(&unsure), [8, 9]);
    let asked = Policy {
        cluster: vec![tli(2)],
        requested: Some(id(8)),
        ..policy(1, 24)
    };
    let mut two = unsure.clone();
    two.ids.retain(|one, _| [id(8), id(9)].contains(one));
    assert!(retention(&two, &asked, now()).refusal.is_some());
    // One that may lead to the timeline is better than none.
    let mut alone = unsure;
    alone.ids.retain(|one, _| *one == id(9));
    for n in [10, 11] {
        let start = (63 + 3 * n) * MIB + 40;
        add_backup(
            &mut alone,
            usize::try_from(n).unwrap(),
            1,
            start,
            start + MIB,
        );
    }
    let policy = Policy {
        cluster: vec![tli(2)],
        ..policy(2, 24)
    };
    let plan = retention(&alone, &policy, now());
    assert_eq!(fates(&plan), ["keep", "keep", "keep"]);
    assert!(is_warned(&plan, "leads to timeline 2"));
}

#[test]
fn a_backup_whose_pack_is_gone_does_not_stand_for_a_whole_one() {
    let mut survey = straight();
    survey.ids.get_mut(&id(9)).unwrap().packs = Runs::default();
    let plan = retention(&survey, &policy(1, 24), now());
    let newest = plan.backups.last().unwrap();
    assert!(
        newest
            .damage
            .as_ref()
            .unwrap()
            .contains("/000000\" is missing")
    );
    assert_eq!(&fates(&plan)[6..], ["mark", "keep", "keep"]);
}

#[test]
fn x03_forged_dates_change_no_order_and_are_told() {
    let mut survey = straight();
    for (n, time) in [(1, "2099-01-01T00:00:00Z"), (9, "1999-01-01T00:00:00Z")] {
        root_of(&mut survey, &id(n)).stop_time = time.parse().unwrap();
    }
    // Those that are left are of one day, which is no burst here.
    let policy = |keep, grace_hours| Policy {
        confirm_burst: true,
        ..policy(keep, grace_hours)
    };
    let plan = retention(&survey, &policy(1, 24), now());
    assert_eq!(fates(&plan)[8], "keep");
    assert_eq!(fates(&plan)[0], "mark");
    assert!(is_warned(&plan, "in the future"));
    // A mark that says it is old is as young as the store says.
    let mut mark = event("expire", ago(1000));
    mark.stored = ago(1);
    add(&mut survey, &id(1), mark);
    assert_eq!(
        fates(&retention(&survey, &policy(1, 24), now()))[0],
        "waiting"
    );
    // A mark of the future would never come of age: today's is added.
    let mut survey = straight();
    let far = "2099-01-01T00:00:00Z".parse().unwrap();
    add(&mut survey, &id(1), event("expire", far));
    assert_eq!(fates(&retention(&survey, &policy(1, 24), now()))[0], "mark");
}

#[test]
fn a_shorter_grace_does_not_wait_for_a_longer_one() {
    let mut survey = straight();
    let mut mark = event("expire", ago(1));
    mark.event.not_before = Some(now().saturating_add(HOUR * 23));
    add(&mut survey, &id(1), mark);
    let with = |hours| retention(&survey, &policy(8, hours), now());
    assert_eq!(fates(&with(24))[0], "waiting");
    assert_eq!((fates(&with(2))[0], with(2).marks.len()), ("mark", 1));
    assert_eq!((fates(&with(0))[0], with(0).marks.len()), ("delete", 1));
}

#[test]
fn a_forged_mark_deletes_nothing_that_is_kept() {
    let mut survey = straight();
    for n in 1..=9 {
        add(&mut survey, &id(n), event("expire", ago(100)));
    }
    let plan = retention(&survey, &policy(2, 24), now());
    assert_eq!(fates(&plan)[7..], ["keep", "keep"]);
    let unmarked: Vec<_> = plan.unmarks.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(unmarked, [id(8), id(9)]);
}

#[test]
fn x05_pins_keep_their_backup_and_its_own_wal() {
    let mut survey = straight();
    add(&mut survey, &id(3), event("pin", ago(500)));
    let plan = retention(&survey, &policy(2, 0), now());
    assert_eq!(fates(&plan)[2], "keep");
    assert_eq!(segments(&plan), [(1, 1, 29), (1, 32, 79)]);
    let mut unpin = event("unpin", ago(2));
    unpin.event.ends = Some(event("pin", ago(500)).name);
    add(&mut survey, &id(3), unpin);
    let plan = retention(&survey, &policy(2, 0), now());
    assert_eq!(fates(&plan)[2], "delete");
    assert_eq!(segments(&plan), [(1, 1, 79)]);
}

/// A pin that took WAL away would be worse than none.
#[test]
fn x31_a_pin_takes_no_wal_away_that_would_stay_without_it() {
    let mut free = straight();
    verify_now(&mut free, &id(8));
    let mut pinned = free.clone();
    record(&mut pinned, &id(8), "pin");
    for hours in [0, 24, 72] {
        let with = Policy {
            min_age: HOUR * hours,
            ..policy(1, 0)
        };
        let plan = survey_plan(&pinned, &with);
        let without = survey_plan(&free, &with);
        assert_eq!(segments(&plan), segments(&without), "{hours}");
        // The ninth was not verified.
        assert!(segments(&plan).iter().all(|(_, _, last)| *last < 80));
        let reason = &judged_at(&plan, &id(8)).reason;
        assert!(reason.starts_with("pinned: no reason given; the WAL behind it stays: "));
    }
    // A pin keeps its own WAL alone once the ninth was verified and is old enough.
    verify_now(&mut pinned, &id(9));
    let with = Policy {
        min_age: HOUR * 24,
        ..policy(1, 0)
    };
    assert_eq!(
        segments(&survey_plan(&pinned, &with)),
        [(1, 1, 79), (1, 82, 89)]
    );
}

#[test]
fn x31_the_recovery_of_a_pinned_backup_finds_the_wal_behind_it() {
    let mut survey = straight();
    let restored = survey.ids.get_mut(&id(3)).unwrap();
    let claim = claim(3, 2, Some("restore"));
    let mut end = event("release", ago(2));
    end.event.ends = Some(claim.name.clone());
    restored.events.extend([event("pin", ago(500)), claim, end]);
    let plan = survey_plan(&survey, &policy(2, 24));
    let judged = judged_at(&plan, &id(3));
    assert!(!judged.is_bounded && judged.reason.contains("its recovery may read WAL"));
    assert!(judged.reason.starts_with("pinned: "), "{judged:?}");
    // The backup keeps its own WAL after the grace. A request for its deletion is answered with the pin.
    let later = now().saturating_add(HOUR * 24);
    let plan = retention(&survey, &policy(2, 24), later);
    assert!(judged_at(&plan, &id(3)).is_bounded);
    let asked = Policy {
        requested: Some(id(3)),
        ..policy(2, 24)
    };
    let refusal = survey_plan(&survey, &asked).refusal.unwrap();
    assert!(refusal.contains("pitr unpin"), "{refusal}");
}

#[test]
fn x05_the_only_copy_of_a_last_segment_may_be_that_of_a_timeline_that_left_behind_it() {
    let mut survey = straight();
    add(&mut survey, &id(3), event("pin", ago(500)));
    // Backup 3 ends in segment 31, timeline 2 begins in it later, and the copy of timeline 1 is lost.
    let held = survey.timelines.get_mut(&tli(1)).unwrap();
    held.segments = Runs::from_numbers((1..=100).filter(|n| *n != 31).collect());
    let switch = Lsn(31 * MIB + 400);
    add_timeline(&mut survey, 2, Some((1, switch)), vec![31]);
    // The cluster follows another timeline.
    let end = Lsn(100 * MIB + 400);
    add_timeline(&mut survey, 3, Some((1, end)), vec![100]);
    for segments_of in [vec![31], vec![31, 33]] {
        let held = survey.timelines.get_mut(&tli(2)).unwrap();
        held.segments = Runs::from_numbers(segments_of);
        let plan = retention(&survey, &policy(2, 0), now());
        assert_eq!(fates(&plan)[2], "keep");
        assert!(
            segments(&plan)
                .iter()
                .all(|(t, first, _)| *t == 1 || *first > 31),
            "{:?}",
            segments(&plan)
        );
        // A hole behind it that was made on purpose changes nothing.
        add(&mut survey, &id(3), event(TRIMMED, ago(2)));
    }
}

#[test]
fn a_pin_keeps_until_its_end_is_past_by_both_clocks() {
    let mut survey = straight();
    let ends = now().saturating_add(HOUR);
    let mut pin = event("pin", ago(500));
    pin.event.until = Some(ends);
    add(&mut survey, &id(3), pin);
    let with = |survey: &Survey, host, store_clock| {
        let policy = Policy {
            store_clock,
            ..policy(2, 0)
        };
        let judged = &retention(survey, &policy, host).backups[2];
        (judged.fate, judged.reason.clone())
    };
    let kept = format!("pinned until {ends}: no reason given");
    assert_eq!(with(&survey, now(), None), (Fate::Keep, kept));
    let later = ends.saturating_add(Duration::from_secs(1));
    let fate = |host, store| with(&survey, host, store).0;
    assert_eq!(fate(later, None), Fate::Delete);
    assert_eq!(fate(ends, Some(ends)), Fate::Delete);
    assert_eq!(fate(later, Some(later)), Fate::Delete);
    assert_eq!(fate(later, Some(now())), Fate::Keep);
    assert_eq!(fate(now(), Some(later)), Fate::Keep);
    // Every pin has to be over.
    let longer = event("pin", ago(400));
    add(&mut survey, &id(3), longer);
    let judged = with(&survey, later, None);
    assert_eq!(judged.1, "pinned: no reason given");
}

/// A mark that a person asked for, made so many hours ago, with a grace of a day.
fn asked(survey: &mut Survey, n: usize, hours: u64) {
    let mut mark = event("expire", ago(hours));
    mark.event.by_request = true;
    mark.event.not_before = Some(ago(hours).saturating_add(HOUR * 24));
    add(survey, &id(n), mark);
}

#[test]
fn expire_deletes_nothing_because_somebody_asked_and_nothing_instead() {
    let mut survey = straight();
    asked(&mut survey, 9, 100);
    let plan = retention(&survey, &policy(2, 0), now());
    // The ninth counts for nothing: seven and eight are the newest two.
    assert_eq!(fates(&plan)[5..], ["delete", "keep", "keep", "keep"]);
    assert!(plan.backups[8].reason.contains("pitr backup delete"));
    assert_eq!(plan.unmarks, []);
    // A pin stops the request, and the mark ends.
    let mut pinned = survey.clone();
    add(&mut pinned, &id(9), event("pin", ago(1)));
    let plan = retention(&pinned, &policy(2, 0), now());
    assert_eq!(fates(&plan)[6..], ["delete", "keep", "keep"]);
    assert_eq!(plan.unmarks.len(), 1);
    // Seven days after it came of age it has lapsed.
    let mut old = straight();
    asked(&mut old, 9, 8 * 24);
    let plan = retention(&old, &policy(2, 0), now());
    assert_eq!(fates(&plan)[6..], ["delete", "keep", "keep"]);
    assert_eq!(plan.unmarks.len(), 1);
    // Dated far ahead, thirty days after the store received it.
    for (hours, stands) in [(29 * 24, true), (30 * 24, false)] {
        let mut ahead = straight();
        asked(&mut ahead, 9, hours);
        let events = &mut ahead.ids.get_mut(&id(9)).unwrap().events;
        events.last_mut().unwrap().event.not_before = Some(now().saturating_add(HOUR * 9000));
        let plan = retention(&ahead, &policy(2, 0), now());
        assert_eq!(plan.unmarks.is_empty(), stands, "{hours}");
    }
    // A backup that retention does not keep goes as ever.
    let mut older = straight();
    asked(&mut older, 3, 100);
    let plan = retention(&older, &policy(2, 24), now());
    assert_eq!(fates(&plan)[2], "delete");
}

#[test]
fn a_request_deletes_that_backup_alone() {
    let with = |survey: &Survey, n, hours| {
        let policy = Policy {
            requested: Some(id(n)),
            ..policy(1, hours)
        };
        retention(survey, &policy, now())
    };
    let mut survey = straight();
    let plan = with(&survey, 1, 24);
    assert_eq!(fates(&plan)[..2], ["mark", "keep"]);
    assert_eq!((plan.marks.len(), plan.deletions.len()), (1, 0));
    let plan = with(&survey, 1, 0);
    let roots = |d: &&Deletion| matches!(d, Deletion::Manifest(_));
    let gone: Vec<_> = plan.deletions.iter().filter(roots).collect();
    assert_eq!(gone, [&Deletion::Manifest(id(1))]);
    assert!(plan.segment_count() > 0 && plan.refusal.is_none());
    // One in the middle takes no WAL with it.
    let plan = with(&survey, 5, 0);
    assert_eq!(
        (fates(&plan)[4], segments(&plan)[..].len()),
        ("delete", segments(&with(&survey, 5, 0)).len())
    );
    asked(&mut survey, 5, 25);
    assert_eq!(fates(&with(&survey, 5, 24))[4], "delete");
    assert_eq!(fates(&with(&survey, 5, 48))[4], "waiting");
    // The newest good one stays, and so does what is pinned or in use.
    let refusal = |survey: &Survey, n| with(survey, n, 0).refusal.unwrap_or_default();
    assert!(refusal(&survey, 9).contains("newest good one"));
    assert!(with(&survey, 9, 0).deletions.is_empty());
    add(&mut survey, &id(5), event("pin", ago(1)));
    assert!(
        refusal(&survey, 5).contains("pitr unpin"),
        "{}",
        refusal(&survey, 5)
    );
    assert_eq!(with(&survey, 5, 0).unmarks, []);
    add(&mut survey, &id(4), claim(1, 3, None));
    assert!(refusal(&survey, 4).contains("pitr repo claims"));
    let plan = with(&survey, 4, 0);
    assert!(plan.marks.is_empty() && plan.deletions.is_empty());
}

#[test]
fn i5b_what_is_in_use_stays() {
    let mut survey = straight();
    add(&mut survey, &id(3), claim(2, 3, Some("restore")));
    add(&mut survey, &id(3), event("expire", ago(100)));
    let plan = retention(&survey, &policy(2, 0), now());
    assert_eq!(fates(&plan)[2], "keep");
    assert_eq!(segments(&plan), [(1, 1, 29)]);
    // The mark stays: the claim ends by itself.
    assert!(plan.unmarks.is_empty());
    let over = retention(&survey, &policy(2, 0), now().saturating_add(HOUR));
    assert_eq!(fates(&over)[2], "delete");
}

#[test]
fn a_running_backup_protects_its_wal() {
    let mut survey = straight();
    let running = id(200);
    let subject = Subject {
        packs: Runs::from_numbers(vec![0]),
        events: vec![event("begin", ago(1))],
        ..Subject::default()
    };
    survey.ids.insert(running.clone(), subject);
    // It has not said where it begins.
    let plan = retention(&survey, &policy(1, 0), now());
    assert!(segments(&plan).is_empty());
    assert!(plan.withheld[0].contains(&running.to_string()));
    assert_eq!(fates(&plan)[..8], ["delete"; 8]);
    let mut claim = claim(1, 2, None);
    claim.event.timeline = Some(1);
    claim.event.start_lsn = Some(Lsn(50 * MIB + 40));
    add(&mut survey, &running, claim);
    let plan = retention(&survey, &policy(1, 0), now());
    assert_eq!(segments(&plan), [(1, 1, 49)]);
    assert!(
        !plan
            .deletions
            .iter()
            .any(|d| matches!(d, Deletion::Packs(id, ..) if *id == running))
    );
    // A day later, and its claim over, it is a leftover.
    let plan = retention(&survey, &policy(1, 0), now().saturating_add(HOUR * 24));
    assert_eq!(plan.tombstones, std::slice::from_ref(&running));
    assert_eq!(segments(&plan), [(1, 1, 89)]);
    assert!(
        plan.deletions
            .contains(&Deletion::Packs(running.clone(), 0, 0))
    );
    assert!(!plan.deletions.contains(&Deletion::Begin(running.clone())));
    let later = now().saturating_add(HOUR * 24);
    apply(&mut survey, &plan, later);
    let month = later.saturating_add(TOMBSTONE_AGE);
    let last = retention(&survey, &policy(1, 0), month);
    assert_eq!(
        last.deletions,
        [
            Deletion::Tombstone(running.clone()),
            Deletion::Begin(running)
        ]
    );
}

#[test]
fn x32_what_a_sync_has_claimed_stays_below_a_tombstone() {
    let mut survey = straight();
    let (given_up, copied) = (id(200), id(201));
    let claim = |hours: u64| claim(1, hours, Some("sync"));
    let subject = |manifest, events: Vec<Recorded>| Subject {
        manifest,
        stored: Some(ago(100)),
        packs: Runs::from_numbers(vec![0]),
        events,
        ..Subject::default()
    };
    let events = vec![event("begin", ago(500)), claim(3)];
    let tombstone = subject(Manifest::Tombstone, events.clone());
    survey.ids.insert(given_up.clone(), tombstone);
    survey
        .ids
        .insert(copied.clone(), subject(Manifest::Absent, events));
    let touches = |survey: &Survey| {
        let plan = survey_plan(survey, &policy(1, 0));
        let name = given_up.to_string();
        plan.deletions.iter().any(|deletion| match deletion {
            Deletion::Packs(id, ..) => *id == given_up,
            Deletion::Event(subject, _) => *subject == name,
            _ => false,
        })
    };
    assert!(!touches(&survey));
    // The claim is over.
    let subject = survey.ids.get_mut(&given_up).unwrap();
    subject.events[1] = claim(0);
    assert!(touches(&survey));
}

#[test]
fn x39_claims_of_copies_go_and_those_of_a_reserved_id_stay() {
    let mut survey = straight();
    let chain = |hours: u64| {
        let claim = claim(hours, 3, Some("sync"));
        let mut end = event("release", ago(hours - 1));
        end.event.ends = Some(claim.name.clone());
        [claim, end]
    };
    let (old, young) = (chain(40), chain(2));
    let events = [&old[..], &young[..]].concat();
    let kept = survey.ids.get_mut(&id(3)).unwrap();
    kept.events.extend(events.clone());
    // Only parts of it are there, which copies need; and a copy that has just begun.
    let (shared, reserved) = (id(200), id(201));
    let subject = |events: Vec<Recorded>| Subject {
        packs: Runs::from_numbers(vec![0]),
        newest_part: Some(ago(48)),
        events,
        ..Subject::default()
    };
    survey.ids.insert(shared.clone(), subject(events.clone()));
    let begun = [vec![event("begin", ago(2))], events].concat();
    survey.ids.insert(reserved, subject(begun));
    // The remains of a backup that failed a month ago.
    let buried = Subject {
        manifest: Manifest::Tombstone,
        stored: Some(ago(24 * 31)),
        events: vec![event("begin", ago(24 * 32))],
        ..Subject::default()
    };
    survey.ids.insert(id(202), buried);
    let gone = |policy: &Policy| -> Vec<(BackupId, SpentClaims)> {
        let plan = retention(&survey, policy, now());
        assert_eq!(plan.withheld, Vec::<String>::new());
        let mut all = plan.deletions.into_iter();
        // The claims of copies go behind all else.
        assert!(all.any(|one| one == Deletion::Begin(id(202))));
        let spent = all.map(|one| match one {
            Deletion::Spent(id, spent) => (id, spent),
            other => panic!("{other:?}"),
        });
        spent.collect()
    };
    let [claim, end] = &old;
    let spent = SpentClaims {
        releases: vec![end.name.clone()],
        claims: vec![claim.name.clone()],
    };
    let expected = [id(3), shared].map(|id| (id, spent.clone()));
    assert_eq!(gone(&policy(9, 0)), expected);
    // The clock of the store is behind.
    let behind = Policy {
        store_clock: Some(ago(20)),
        ..policy(9, 0)
    };
    assert_eq!(gone(&behind), []);
}

#[test]
fn what_cannot_be_read_keeps_everything() {
    let mut survey = straight();
    survey.unreadable.push("root of x".into());
    let plan = retention(&survey, &policy(1, 0), now());
    assert!(plan.deletions.is_empty() && plan.tombstones.is_empty());
    assert!(!fates(&plan).contains(&"delete"));
    assert!(plan.withheld[0].contains("root of x"));
    // A timeline whose history is not there may descend from anything.
    let mut survey = straight();
    survey.timelines.insert(
        tli(3),
        Timeline {
            segments: Runs::from_numbers(vec![7]),
            ..Timeline::default()
        },
    );
    let plan = retention(&survey, &policy(1, 0), now());
    assert!(segments(&plan).is_empty());
    assert!(plan.withheld[0].contains("timeline 3"));
}

#[test]
fn x04_a_branch_that_no_backup_reaches_goes_and_others_stay() {
    let mut survey = straight();
    branch(&mut survey, 2, (1, 15 * MIB + 8), 15..=20);
    branch(&mut survey, 3, (1, 95 * MIB + 8), 95..=120);
    let plan = retention(&survey, &policy(1, 0), now());
    assert_eq!(segments(&plan), [(1, 1, 89), (2, 15, 20)]);
    // A backup on the branch is newer than those on its parent, and the parent's points beyond it stay.
    let start = 96 * MIB + 40;
    add_backup(&mut survey, 100, 3, start, start + MIB);
    let plan = retention(&survey, &policy(1, 0), now());
    assert_eq!(plan.backups.last().unwrap().place.unwrap().timeline, tli(3));
    assert_eq!(fates(&plan)[8..], ["keep", "keep"]);
    assert!(plan.backups[8].reason.contains("timeline 1"));
}

/// Timeline 3 left timeline 1 behind its third backup, and has two of its own, on the last two days of [`nine_days`].
fn with_branch(mut survey: Survey) -> Survey {
    let switch = Lsn(35 * MIB);
    add_timeline(&mut survey, 3, Some((1, switch)), (35..=120).collect());
    for (n, day) in [(100, 19), (101, 20)] {
        let start = (n as u64 - 15) * MIB + 40;
        add_backup(&mut survey, n, 3, start, start + MIB);
        let time = format!("2026-11-{day}T03:00:00Z");
        taken(&mut survey, n, &time, &time);
    }
    survey
}

#[test]
fn x36_a_branch_with_a_higher_number_pushes_out_no_backup_of_the_cluster() {
    let mut survey = with_branch(nine_days());
    for n in [100, 101] {
        verify_now(&mut survey, &id(n));
    }
    let with = |hours: u32| Policy {
        min_age: HOUR * hours,
        cluster: vec![tli(1)],
        ..policy(2, 0)
    };
    let of_cluster = |survey: &Survey, hours| {
        let plan = survey_plan(survey, &with(hours));
        let kept = plan.backups.iter().filter(|b| b.fate == Fate::Keep);
        let kept = kept.filter(|b| b.place.unwrap().timeline == tli(1));
        kept.map(|b| (b.id.clone(), b.rules.clone()))
            .collect::<Vec<_>>()
    };
    // None of the cluster was verified: nothing goes.
    assert_eq!(of_cluster(&survey, 2).len(), 9);
    verify_now(&mut survey, &id(8));
    let last = |n| (id(n), vec!["keep_last"]);
    let kept = of_cluster(&survey, 2);
    assert!(kept.ends_with(&[last(8), last(9)]), "{kept:?}");
    assert!(kept.len() < 9);
    // Without an age the last one of the cluster that was verified waits for a newer one.
    let mut survey = with_branch(nine_days());
    for n in [5, 101] {
        verify_now(&mut survey, &id(n));
    }
    let kept = of_cluster(&survey, 0);
    assert!(kept.contains(&(id(5), Vec::new())), "{kept:?}");
}

#[test]
fn x36_while_the_cluster_is_undecided_each_timeline_keeps_its_own() {
    let survey = with_branch(nine_days());
    let with = |cluster: &[u32], rules: Retention, proven: &[usize]| -> Vec<usize> {
        let policy = Policy {
            cluster: cluster.iter().map(|n| tli(*n)).collect(),
            proven: proven.iter().map(|n| id(*n)).collect(),
            ..by(rules)
        };
        let kept = kept_by(&survey, &policy).into_iter();
        let by_rule = kept.filter(|(_, rules)| !rules.is_empty());
        by_rule.map(|(n, _)| n).collect()
    };
    let kept = |cluster: &[u32], rules: Retention| with(cluster, rules, &[]);
    let daily = || Retention {
        daily: Some(2),
        ..Retention::default()
    };
    assert_eq!(kept(&[3, 1], daily()), [8, 9, 10, 11]);
    assert_eq!(kept(&[1], daily()), [8, 9]);
    assert_eq!(kept(&[3], daily()), [10, 11]);
    assert_eq!(kept(&[3, 1], Retention::newest(2)), [8, 9, 10, 11]);
    assert_eq!(kept(&[1], Retention::newest(2)), [8, 9]);
    let proven = |cluster: &[u32]| with(cluster, Retention::newest(1), &[5, 100]);
    assert_eq!(proven(&[3, 1]), [5, 9, 10, 11]);
    assert_eq!(proven(&[1]), [5, 9]);
}

#[test]
fn x43_a_branch_stands_for_no_backup_whose_deletion_is_asked_for() {
    let survey = with_branch(nine_days());
    let refusal = |cluster: &[u32], n: usize| {
        let policy = Policy {
            requested: Some(id(n)),
            cluster: cluster.iter().map(|n| tli(*n)).collect(),
            ..policy(1, 0)
        };
        survey_plan(&survey, &policy).refusal.unwrap_or_default()
    };
    let is_newest = |cluster: &[u32], n| refusal(cluster, n).contains("newest good one");
    // The branch has the higher number, and is not the cluster.
    assert!(is_newest(&[1], 9));
    for n in [8, 100, 101] {
        assert_eq!(refusal(&[1], n), "");
    }
    assert!(is_newest(&[3], 101));
    assert_eq!(refusal(&[3], 9), "");
    // While it is undecided which of the two is the cluster, each keeps its newest.
    assert!(is_newest(&[3, 1], 9) && is_newest(&[3, 1], 101));
    assert_eq!(refusal(&[3, 1], 8), "");
}

#[test]
fn the_newest_timeline_keeps_its_base_even_before_the_promise() {
    let mut survey = straight();
    branch(&mut survey, 2, (1, 35 * MIB), 35..=40);
    let plan = retention(&survey, &policy(2, 0), now());
    let kept: Vec<_> = plan
        .backups
        .iter()
        .filter(|b| b.fate == Fate::Keep)
        .map(|b| b.id.clone())
        .collect();
    assert_eq!(kept, [id(3), id(8), id(9)]);
    assert!(is_warned(&plan, "timeline 2"));
}

#[test]
fn h05_twenty_promotions_leave_one_chain() {
    let mut survey = empty();
    add_timeline(&mut survey, 1, None, (1..=10).collect());
    for n in 2..=21_u32 {
        let from = Lsn(u64::from(n - 1) * 10 * MIB + 100);
        let first = u64::from(n - 1) * 10;
        add_timeline(
            &mut survey,
            n,
            Some((n - 1, from)),
            (first..=first + 10).collect(),
        );
        let start = (first + 2) * MIB + 40;
        add_backup(&mut survey, n as usize, n, start, start + MIB);
    }
    let plan = retention(&survey, &policy(2, 0), now());
    assert_eq!(fates(&plan)[18..], ["keep", "keep"]);
    assert_eq!(fates(&plan)[..18], ["delete"; 18]);
    apply(&mut survey, &plan, now());
    let left: u64 = survey.timelines.values().map(|t| t.segments.count()).sum();
    // The segments 192 to 200 of timeline 20 are left, and all of timeline 21.
    assert_eq!(left, 9 + 11);
}

#[test]
fn increments_of_whole_segments_and_conflicts_go_with_their_segment() {
    let mut survey = straight();
    let name = |n: u64| SegmentNumber(n).name(tli(1), size()).unwrap();
    let key = |s: &str| Key::new(s).unwrap();
    survey.increments.insert(name(95), vec![key("a/95")]);
    survey.increments.insert(name(101), vec![key("a/101")]);
    // If the whole segment is damaged, the increments may be the better copy.
    survey.increments.insert(name(97), vec![key("a/97")]);
    // An event that cannot be read may say so.
    survey.increments.insert(name(96), vec![key("a/96")]);
    survey.doubted_segments.insert(name(96));
    let damaged = vec![event("damaged", ago(1))];
    survey.segment_events.insert(name(97), damaged);
    survey.conflicts = vec![
        (WalFileName::Segment(name(3)), key("c/3")),
        (WalFileName::Segment(name(99)), key("c/99")),
        (WalFileName::History(tli(2)), key("c/h")),
    ];
    survey.shadowed = vec![
        (WalFileName::Segment(name(4)), key("s/4")),
        (WalFileName::Partial(name(5)), key("s/5")),
        (WalFileName::Segment(name(98)), key("s/98")),
    ];
    survey.labels = vec![WalFileName::BackupHistory {
        segment: name(10),
        offset: 40,
    }];
    let plan = retention(&survey, &policy(1, 0), now());
    let objects: Vec<_> = plan
        .deletions
        .iter()
        .filter_map(|d| match d {
            Deletion::Object(key) => Some(key.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(objects, ["a/95", "c/3", "s/4", "s/5"]);
    assert!(
        plan.deletions
            .contains(&Deletion::WalFile(survey.labels[0]))
    );
}

/// Gives the nth backup of [`straight`] other times: its own, and the store's.
fn taken(survey: &mut Survey, n: usize, own: &str, stored: &str) {
    survey.ids.get_mut(&id(n)).unwrap().stored = Some(stored.parse().unwrap());
    root_of(survey, &id(n)).stop_time = own.parse().unwrap();
}

/// The rules that keep each backup of [`straight`] that stays.
fn kept_by(survey: &Survey, policy: &Policy) -> Vec<(usize, Vec<&'static str>)> {
    let plan = retention(survey, policy, now());
    let kept = plan.backups.into_iter().enumerate();
    kept.filter(|(_, b)| b.fate == Fate::Keep)
        .map(|(at, b)| (at + 1, b.rules))
        .collect()
}

/// The nine backups of [`straight`], one a day, the last one on the day of [`now`].
fn nine_days() -> Survey {
    let mut survey = straight();
    for n in 1..=9 {
        let time = format!("2026-11-{:02}T02:00:00Z", 11 + n);
        taken(&mut survey, n, &time, &time);
    }
    survey
}

fn by(rules: Retention) -> Policy {
    Policy {
        rules,
        confirm_burst: true,
        ..policy(0, 0)
    }
}

#[test]
fn days_are_those_of_the_zone_whatever_their_length() {
    let mut survey = straight();
    // The clocks of Berlin go back on the 25th of October: it lasts from 22:00 to 23:00 of the next day in UTC.
    let times = [
        "2026-10-24T21:59:00Z",
        "2026-10-24T22:01:00Z",
        "2026-10-25T22:59:00Z",
        "2026-10-25T23:01:00Z",
    ];
    for (n, time) in times.iter().enumerate() {
        taken(&mut survey, n + 1, time, time);
    }
    for n in 5..=9 {
        survey.ids.remove(&id(n));
    }
    let policy = |zone: &str| Policy {
        zone: Some(zone.parse().unwrap()),
        ..by(Retention {
            daily: Some(9),
            ..Retention::default()
        })
    };
    let days = |zone: &str| -> Vec<usize> {
        let kept = kept_by(&survey, &policy(zone));
        kept.into_iter().map(|(n, _)| n).collect()
    };
    assert_eq!(days("Europe/Berlin"), [1, 3, 4]);
    assert_eq!(days("UTC"), [2, 4]);
}

#[test]
fn each_rule_counts_for_itself_and_the_newest_stays_under_any() {
    let survey = nine_days();
    let rules = Retention {
        daily: Some(2),
        weekly: Some(2),
        monthly: Some(1),
        ..Retention::default()
    };
    // The 15th of November is a Sunday.
    let all = vec!["newest", "keep_daily", "keep_weekly", "keep_monthly"];
    assert_eq!(
        kept_by(&survey, &by(rules)),
        [(4, vec!["keep_weekly"]), (8, vec!["keep_daily"]), (9, all)]
    );
    let nothing = Retention {
        within: Some(Duration::ZERO),
        ..Retention::default()
    };
    let newest = vec!["newest", "keep_within"];
    assert_eq!(kept_by(&survey, &by(nothing)), [(9, newest)]);
}

#[test]
fn the_newest_proven_backup_stays_and_an_older_proven_one_goes() {
    let mut survey = nine_days();
    let with = |proven: &[usize]| Policy {
        proven: proven.iter().map(|n| id(*n)).collect(),
        ..policy(2, 0)
    };
    let last = |n| (n, vec!["keep_last"]);
    assert_eq!(kept_by(&survey, &with(&[])), [last(8), last(9)]);
    let proven = (5, vec!["keep_proven"]);
    let three = [proven, last(8), last(9)];
    assert_eq!(kept_by(&survey, &with(&[3, 5])), three);
    let plan = retention(&survey, &with(&[3, 5]), now());
    let own = judged_at(&plan, &id(5));
    assert_eq!(own.reason, "keep_proven: the newest that a drill proved");
    // It leads to every moment behind it, as a backup of any other rule does.
    assert!(own.is_promised && own.kept_until.is_none());
    // A backup that another rule keeps is named by both, and holds no older one.
    let both = (9, vec!["keep_last", "keep_proven"]);
    assert_eq!(kept_by(&survey, &with(&[5, 9])), [last(8), both]);
    // One that was damaged since proves nothing any more; the one before it stays.
    record(&mut survey, &id(5), "damaged");
    let older = (3, vec!["keep_proven"]);
    let kept = kept_by(&survey, &with(&[3, 5]));
    assert!(kept.contains(&older), "{kept:?}");
}

#[test]
fn a_proven_backup_before_the_window_keeps_its_own_wal_alone() {
    let survey = nine_days();
    let policy = Policy {
        proven: BTreeSet::from([id(2)]),
        ..by(Retention {
            last: Some(1),
            wal_window: Some(HOUR * 48),
            ..Retention::default()
        })
    };
    let plan = retention(&survey, &policy, now());
    let own = judged_at(&plan, &id(2));
    assert!(own.fate == Fate::Keep && own.is_bounded, "{own:?}");
    assert_eq!(own.rules, ["keep_proven"]);
}

#[test]
fn where_a_proven_backup_was_compacted_the_one_that_counts_stays() {
    let mut survey = straight();
    let origin = id(4);
    let new = compact_backup(&mut survey, &origin, 20);
    let with = Policy {
        proven: BTreeSet::from([origin.clone()]),
        ..policy(1, 0)
    };
    let rules = |survey: &Survey, id: &BackupId| {
        let plan = retention(survey, &with, now());
        judged_at(&plan, id).rules.clone()
    };
    assert_eq!(rules(&survey, &origin), ["keep_proven"]);
    verify_now(&mut survey, &new);
    assert_eq!(rules(&survey, &new), ["keep_proven"]);
    assert!(rules(&survey, &origin).is_empty());
}

#[test]
fn a_backup_whose_time_contradicts_its_place_counts_nowhere_and_stays() {
    let rules = Retention {
        last: Some(1),
        daily: Some(2),
        ..Retention::default()
    };
    let right = [
        (8, vec!["keep_daily"]),
        (9, vec!["keep_last", "keep_daily"]),
    ];
    assert_eq!(kept_by(&nine_days(), &by(rules.clone())), right);
    // A clock that was set back, one that was years ahead, and one that was ahead of the store by an hour.
    let cases = [
        ("2020-01-01T00:00:00Z", "2026-11-17T02:00:00Z", true),
        ("2031-01-01T00:00:00Z", "2026-11-17T02:00:00Z", true),
        ("2026-11-17T03:00:00Z", "2026-11-17T02:00:00Z", false),
    ];
    for (own, stored, is_wrong) in cases {
        let mut survey = nine_days();
        taken(&mut survey, 6, own, stored);
        let mut wanted = right.to_vec();
        if is_wrong {
            wanted.insert(0, (6, vec!["wrong_time"]));
        }
        assert_eq!(kept_by(&survey, &by(rules.clone())), wanted, "{own}");
        let plan = retention(&survey, &by(rules.clone()), now());
        let told = is_warned(&plan, "pitr backup delete");
        assert_eq!(told, is_wrong, "{own}");
        // The command names other content.
        let commands = Commands {
            of: " --of files:www".to_owned(),
            ..Commands::default()
        };
        let policy = Policy {
            commands,
            ..by(rules.clone())
        };
        let plan = retention(&survey, &policy, now());
        assert_eq!(is_warned(&plan, " --of files:www"), is_wrong, "{own}");
    }
}

#[test]
fn x09_before_the_window_a_kept_backup_needs_the_wal_to_its_own_end() {
    let survey = nine_days();
    let rules = Retention {
        last: Some(5),
        weekly: Some(2),
        wal_window: Some(HOUR * 36),
        ..Retention::default()
    };
    let plan = retention(&survey, &by(rules.clone()), now());
    let bounded: Vec<_> = plan
        .backups
        .iter()
        .map(|b| (b.fate.as_str(), b.is_bounded))
        .collect();
    // The seventh is the newest that was taken before the window: recovery into it begins there.
    assert_eq!(
        bounded[3..],
        [
            ("keep", true),
            ("keep", true),
            ("keep", true),
            ("keep", false),
            ("keep", false),
            ("keep", false)
        ]
    );
    assert_eq!(
        segments(&plan),
        [(1, 1, 39), (1, 42, 49), (1, 52, 59), (1, 62, 69)]
    );
    assert_eq!(plan.trimmed(), [&id(4), &id(5), &id(6)]);
    let name = |n: u64| SegmentNumber(n);
    let needers = plan.needed.needers(tli(1), name(40));
    assert_eq!(needers.len(), 1);
    // If the store dates the seventh backup later, nothing shows that it is old enough.
    let mut late = survey.clone();
    taken(&mut late, 7, "2026-11-18T02:00:00Z", "2026-11-20T02:00:00Z");
    let plan = retention(&late, &by(rules.clone()), now());
    assert_eq!(segments(&plan).last(), Some(&(1, 52, 59)));
    // Nothing behind a kept backup goes before a newer one was verified.
    let young = Policy {
        min_age: HOUR * 24,
        ..by(rules)
    };
    let plan = retention(&survey, &young, now());
    assert_eq!(segments(&plan), [(1, 1, 9)]);
    assert!(plan.backups[3].reason.contains("the WAL behind it stays"));
}

/// The failover was on the 15th of November, after the fourth backup.
#[test]
fn x34_a_timeline_that_was_left_before_the_window_holds_no_wal() {
    let mut survey = empty();
    add_timeline(&mut survey, 1, None, (1..=45).collect());
    let switch = Lsn(43 * MIB + 400);
    add_timeline(&mut survey, 2, Some((1, switch)), (43..=100).collect());
    for n in 1..=9 {
        let start = n as u64 * 10 * MIB + 40;
        let timeline = if n <= 4 { 1 } else { 2 };
        add_backup(&mut survey, n, timeline, start, start + MIB);
        let time = format!("2026-11-{:02}T02:00:00Z", 11 + n);
        taken(&mut survey, n, &time, &time);
    }
    let policy = by(Retention {
        last: Some(9),
        wal_window: Some(HOUR * 36),
        ..Retention::default()
    });
    let left = |survey: &mut Survey, at: &str| {
        let newest = [(tli(1), at), (tli(2), "2026-11-20T06:00:00Z")];
        let newest = newest.map(|(timeline, at)| (timeline, at.parse().unwrap()));
        survey.newest_wal = newest.into();
        let plan = retention(survey, &policy, now());
        (judged_at(&plan, &id(4)).is_bounded, segments(&plan))
    };
    let (is_bounded, gone) = left(&mut survey, "2026-11-15T12:00:00Z");
    assert!(is_bounded);
    let between = [(1, 42, 45), (2, 43, 49), (2, 52, 59), (2, 62, 69)];
    assert_eq!(gone[4..], between);
    // The window has moments of it, the clocks may differ, or its newest WAL is not known.
    for at in ["2026-11-19T12:00:00Z", "2026-11-18T13:55:00Z"] {
        let (is_bounded, gone) = left(&mut survey, at);
        assert!(!is_bounded && gone.iter().all(|(t, _, last)| *t == 1 && *last < 40));
    }
    survey.newest_wal.clear();
    let plan = retention(&survey, &policy, now());
    assert!(!judged_at(&plan, &id(4)).is_bounded);
    // All of its WAL is gone: its history tells when another timeline began.
    let held = survey.timelines.get_mut(&tli(2)).unwrap();
    held.segments = Runs::default();
    held.history_stored = Some(ago(200));
    let follows = Policy {
        cluster: vec![tli(1)],
        ..policy
    };
    let plan = retention(&survey, &follows, now());
    assert!(!judged_at(&plan, &id(3)).reason.contains("timeline 2"));
}

#[test]
fn a_claim_keeps_the_wal_behind_a_backup_before_the_window() {
    let mut survey = nine_days();
    let rules = Retention {
        last: Some(9),
        wal_window: Some(HOUR * 36),
        ..Retention::default()
    };
    add(&mut survey, &id(3), claim(1, 2, None));
    let plan = retention(&survey, &by(rules.clone()), now());
    assert_eq!(segments(&plan), [(1, 1, 9), (1, 12, 19), (1, 22, 29)]);
    // The restore is complete, and the recovery that follows claims nothing.
    let mut end = event("release", ago(0));
    let claim = survey.ids.get_mut(&id(3)).unwrap().events.last_mut();
    let claim = claim.unwrap();
    claim.event.purpose = Some("restore".to_owned());
    end.event.ends = Some(claim.name.clone());
    add(&mut survey, &id(3), end);
    let within = |grace| Policy {
        grace,
        ..by(rules.clone())
    };
    let plan = retention(&survey, &within(HOUR * 24), now());
    assert_eq!(segments(&plan), [(1, 1, 9), (1, 12, 19), (1, 22, 29)]);
    assert!(
        plan.backups
            .iter()
            .any(|b| b.reason.contains("its recovery may read WAL"))
    );
    let plan = retention(&survey, &within(Duration::ZERO), now());
    assert_ne!(segments(&plan), [(1, 1, 9), (1, 12, 19), (1, 22, 29)]);
}

/// Small numbers that depend on the seed alone.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below.max(1)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }
}

fn world(dice: &mut Dice) -> Survey {
    let mut survey = empty();
    let timelines = 1 + dice.roll(6);
    let mut ends: Vec<(u64, u64)> = Vec::new();
    for n in 1..=timelines {
        let (from, first) = if n == 1 {
            (None, 1)
        } else {
            let parent = dice.roll(n - 1) as usize;
            let (begin, end) = ends[parent];
            let lsn = begin * MIB + 64 + dice.roll(((end - begin) * MIB).max(1)) / 8 * 8;
            (Some((parent as u32 + 1, Lsn(lsn))), lsn / MIB)
        };
        let last = first + 1 + dice.roll(14);
        let mut numbers: Vec<u64> = (first..=last).collect();
        if dice.one_in(3) {
            let hole = dice.roll(numbers.len() as u64) as usize;
            numbers.remove(hole);
        }
        add_timeline(&mut survey, n as u32, from, numbers);
        if let Some((parent, lsn)) = from
            && dice.one_in(2)
        {
            let parent = survey.timelines.get_mut(&tli(parent)).unwrap();
            let name = SegmentNumber(lsn.0 / MIB).name(tli(from.unwrap().0), size());
            parent.partials.insert(name.unwrap());
        }
        ends.push((first, last));
        for b in 0..dice.roll(4) {
            let low = from.map_or(MIB, |(_, lsn)| lsn.0);
            let start = low + 8 + dice.roll((last + 1) * MIB - low) / 8 * 8;
            let stop = start + 8 + dice.roll(2 * MIB) / 8 * 8;
            let made = add_backup(
                &mut survey,
                n as usize * 20 + b as usize,
                n as u32,
                start,
                stop,
            );
            let subject = survey.ids.get_mut(&made).unwrap();
            let mut add = |e: Recorded| subject.events.push(e);
            if dice.one_in(6) {
                add(event("damaged", ago(3)));
            }
            if dice.one_in(8) {
                add(event("pin", ago(3)));
            }
            if dice.one_in(3) {
                add(event("expire", ago(20 + dice.roll(10))));
            }
            if dice.one_in(8) {
                add(claim(4, dice.roll(8), None));
            }
            if dice.one_in(4) {
                // An incremental names packs of others.
                let others: Vec<BackupId> = survey.ids.keys().cloned().collect();
                let other = others[dice.roll(others.len() as u64) as usize].clone();
                let root = root_of(&mut survey, &made);
                root.packs.insert(other, Runs::from_numbers(vec![0]));
            }
        }
    }
    survey
}

/// Returns whether PostgreSQL could reach a point with the objects that are there, as simply as possible.
pub(super) fn is_reachable(survey: &Survey, target: TimelineId, point: Lsn) -> bool {
    let history = known_history(survey, target);
    survey.ids.values().any(|subject| {
        let Manifest::Committed(root) = &subject.manifest else {
            return false;
        };
        let damaged = || !standing(&subject.events, "damaged", "healed").is_empty();
        root.damage.is_none() && leads_along(survey, root, &history, point) && !damaged()
    })
}

pub(super) fn leads_to(survey: &Survey, root: &Root, target: TimelineId, point: Lsn) -> bool {
    leads_along(survey, root, &known_history(survey, target), point)
}

fn leads_along(survey: &Survey, root: &Root, history: &History, point: Lsn) -> bool {
    if root.stop_lsn > point || history.holder(Lsn(root.stop_lsn.0 - 1)) != root.timeline {
        return false;
    }
    let path = history.path();
    (root.start_lsn.0 / MIB..=(point.0 - 1) / MIB).all(|n| {
        // A copy serves if its timeline is followed to the last byte needed of this segment, or beyond.
        let last = point.0.min((n + 1) * MIB) - 1;
        path.iter()
            .filter(|i| i.range.end.0 > last && i.range.start.0 < (n + 1) * MIB)
            .any(|i| {
                let held = &survey.timelines[&i.timeline];
                let is_left = i.range.end.0 < (n + 1) * MIB;
                let name = || SegmentNumber(n).name(i.timeline, size()).unwrap();
                held.segments.contains(SegmentNumber(n))
                    || (is_left && held.partials.contains(&name()))
            })
    })
}

fn points(survey: &Survey) -> Vec<Lsn> {
    let mut points: Vec<Lsn> = (4..=4 * 60).map(|n| Lsn(n * MIB / 4 + 8)).collect();
    for subject in survey.ids.values() {
        if let Manifest::Committed(root) = &subject.manifest {
            points.push(root.stop_lsn);
        }
    }
    points
}

#[test]
fn i5_x04_x08_random_worlds_keep_their_promise() {
    let mut deleted = 0;
    let mut promised = 0;
    for seed in 1..=500_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut survey = world(&mut dice);
        let before = survey.clone();
        let policy = policy(1 + dice.roll(4) as u32, dice.roll(2) as u32 * 24);
        let plan = retention(&survey, &policy, now());

        // X08: the run that has marked deletes what the dry run showed.
        let mut marked = survey.clone();
        let marks = ExpirePlan {
            marks: plan.marks.clone(),
            unmarks: plan.unmarks.clone(),
            ..ExpirePlan::default()
        };
        apply(&mut marked, &marks, now());
        let real = retention(&marked, &policy, now());
        assert!(
            real.marks.is_empty() && real.unmarks.is_empty(),
            "seed {seed}"
        );
        let bare = |p: &ExpirePlan| -> Vec<Deletion> {
            // The marks of this very run have events that go with their backup.
            let is_mark = |d: &Deletion| matches!(d, Deletion::Event(_, n) if n.contains("expire"));
            p.deletions
                .iter()
                .filter(|d| !is_mark(d))
                .cloned()
                .collect()
        };
        assert_eq!(bare(&plan), bare(&real), "seed {seed}");
        apply(&mut marked, &real, now());
        survey = marked;

        // Again: nothing is left to do.
        let again = retention(&survey, &policy, now());
        assert!(again.is_empty(), "seed {seed}: {again:?}");

        // I5: the promise.
        let kept: Vec<&Judged> = plan.backups.iter().filter(|b| b.is_promised).collect();
        let good = plan.backups.iter().filter(|b| b.damage.is_none()).count();
        assert!(
            kept.len() >= good.min(policy.rules.most() as usize),
            "seed {seed}"
        );
        if let Some(from) = kept.iter().map(|b| b.place.unwrap().stop_lsn).min() {
            for target in before.timelines.keys() {
                for point in points(&before) {
                    if point >= from && is_reachable(&before, *target, point) {
                        promised += 1;
                        assert!(
                            is_reachable(&survey, *target, point),
                            "seed {seed}: {point} on {target} is lost\n{plan:#?}"
                        );
                    }
                }
            }
        }

        // Everything that a remaining root names is there, and the WAL of what is pinned, marked or in use.
        for (id, subject) in &survey.ids {
            let Manifest::Committed(root) = &subject.manifest else {
                continue;
            };
            for (other, runs) in &root.packs {
                let gone = numbers(runs).any(|n| {
                    let there = |s: &Survey| {
                        s.ids
                            .get(other)
                            .is_some_and(|s| s.packs.contains(SegmentNumber(n.into())))
                    };
                    there(&before) && !there(&survey)
                });
                assert!(!gone, "seed {seed}: a pack of {id} is gone");
            }
            let own = |s: &Survey| leads_to(s, root, root.timeline, root.stop_lsn);
            assert!(
                own(&survey) || !own(&before),
                "seed {seed}: {id} lost its WAL"
            );
        }
        deleted += plan.deletions.len();
    }
    // The worlds are not all trivial.
    assert!(deleted > 1000, "{deleted}");
    assert!(promised > 15_000, "{promised}");
}

/// Compacts a backup of a survey: `n` is the number of the new id.
fn compact_backup(survey: &mut Survey, origin: &BackupId, n: usize) -> BackupId {
    let id = id(n);
    let mut subject = survey.ids[origin].clone();
    subject.events = vec![event("begin", ago(2))];
    subject.stored = Some(ago(2));
    if let Manifest::Committed(root) = &mut subject.manifest {
        root.layers = BTreeMap::from([(id.clone(), Runs::from_numbers(vec![0]))]);
        root.packs.clone_from(&root.layers);
    }
    survey.ids.insert(id.clone(), subject);
    id
}

fn verify_now(survey: &mut Survey, id: &BackupId) {
    let subject = survey.ids.get_mut(id).unwrap();
    subject.events.push(event("verified", ago(1)));
}

fn kept(survey: &Survey, keep: u32) -> Vec<BackupId> {
    let plan = survey_plan(survey, &policy(keep, 0));
    let remains = |b: &&Judged| b.fate == Fate::Keep;
    let kept = plan.backups.iter().filter(remains);
    kept.map(|b| b.id.clone()).collect()
}

fn survey_plan(survey: &Survey, policy: &Policy) -> ExpirePlan {
    let policy = Policy {
        confirm_burst: true,
        ..policy.clone()
    };
    super::retention(survey, &policy, now())
}

#[test]
fn a_compacted_backup_and_its_origin_count_as_one() {
    let mut survey = straight();
    let (older, origin) = (id(8), id(9));
    let new = compact_backup(&mut survey, &origin, 20);
    // As long as the new one was not verified, the old one counts, and both stay.
    assert_eq!(
        kept(&survey, 2),
        [older.clone(), origin.clone(), new.clone()]
    );
    assert_eq!(kept(&survey, 1), [origin.clone(), new.clone()]);
    verify_now(&mut survey, &new);
    assert_eq!(kept(&survey, 2), [older.clone(), new.clone()]);
    // One that is damaged stands for nobody.
    add(&mut survey, &new, event("damaged", ago(1)));
    assert_eq!(kept(&survey, 2)[..2], [older.clone(), origin.clone()]);
    let subject = survey.ids.get_mut(&new).unwrap();
    subject.events.pop();
    // A pin holds the old one, and counts nothing out.
    add(&mut survey, &origin, event("pin", ago(1)));
    assert_eq!(
        kept(&survey, 2),
        [older.clone(), origin.clone(), new.clone()]
    );
    // Without a day of patience it stays, too.
    let subject = survey.ids.get_mut(&origin).unwrap();
    subject.events.pop();
    let patient = Policy {
        min_age: HOUR * 24,
        ..policy(2, 0)
    };
    let plan = survey_plan(&survey, &patient);
    let fate = |id: &BackupId| plan.backups.iter().find(|b| b.id == *id).unwrap().fate;
    assert_eq!(fate(&origin), Fate::Keep);
    // Compacted again: the newest that was verified counts.
    let newer = compact_backup(&mut survey, &new, 21);
    assert_eq!(kept(&survey, 2), [older.clone(), new, newer.clone()]);
    verify_now(&mut survey, &newer);
    assert_eq!(kept(&survey, 2), [older, newer]);
}

#[test]
fn of_an_old_backup_too_the_calendar_counts_one() {
    let mut survey = straight();
    let middle = id(5);
    let new = compact_backup(&mut survey, &middle, 20);
    verify_now(&mut survey, &new);
    let all = kept(&survey, 9);
    assert_eq!(all.len(), 9);
    assert!(all.contains(&new) && !all.contains(&middle));
    // Its place among the others is that of the old one.
    assert_eq!(all[4], new);
}

fn record(survey: &mut Survey, id: &BackupId, kind: &str) {
    let subject = survey.ids.get_mut(id).unwrap();
    subject.events.push(event(kind, ago(1)));
}

fn judged_at<'p>(plan: &'p ExpirePlan, id: &BackupId) -> &'p Judged {
    plan.backups.iter().find(|b| b.id == *id).unwrap()
}

#[test]
fn a_marked_origin_counts_as_long_as_no_twin_was_verified() {
    let mut survey = straight();
    let origin = id(9);
    let new = compact_backup(&mut survey, &origin, 20);
    record(&mut survey, &origin, "verified");
    record(&mut survey, &origin, "expire");
    let plan = survey_plan(&survey, &policy(2, 24));
    // The rules want it: its mark ends, and eight is the second one.
    let unmarked: Vec<_> = plan.unmarks.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(unmarked, std::slice::from_ref(&origin));
    assert_eq!(kept(&survey, 2), [id(8), origin.clone(), new.clone()]);
    assert!(judged_at(&plan, &origin).is_promised);
    assert!(!judged_at(&plan, &new).is_promised);
    verify_now(&mut survey, &new);
    let plan = survey_plan(&survey, &policy(2, 24));
    assert_eq!(plan.unmarks, []);
    assert_eq!(judged_at(&plan, &origin).fate.as_str(), "waiting");
}

#[test]
fn of_two_marked_or_damaged_twins_one_counts() {
    for (verified, expected) in [
        (&[][..], [false, true, true, true]),
        (&[0], [false, true, true, true]),
        (&[1], [false, true, false, true]),
        (&[0, 1], [false, true, false, true]),
    ] {
        let mut survey = straight();
        let twins = [id(9), compact_backup(&mut survey, &id(9), 20)];
        for twin in &twins {
            record(&mut survey, twin, "expire");
        }
        for at in verified {
            verify_now(&mut survey, &twins[*at]);
        }
        let kept = kept(&survey, 2);
        let names = [id(7), id(8), id(9), twins[1].clone()];
        let are_kept: Vec<_> = names.iter().map(|id| kept.contains(id)).collect();
        assert_eq!(are_kept, expected, "verified: {verified:?}");
    }
    // Two that were verified and that no rule keeps go together: neither mark ends.
    let mut survey = straight();
    let twins = [id(1), compact_backup(&mut survey, &id(1), 20)];
    verify_now(&mut survey, &id(9));
    for twin in &twins {
        verify_now(&mut survey, twin);
        record(&mut survey, twin, "expire");
    }
    let plan = survey_plan(&survey, &policy(2, 24));
    assert_eq!(plan.unmarks, []);
    for twin in &twins {
        assert_eq!(judged_at(&plan, twin).fate.as_str(), "waiting");
    }
    // Both damaged: eight and seven are the two good ones, and neither damaged one goes.
    let mut survey = straight();
    let twins = [id(9), compact_backup(&mut survey, &id(9), 20)];
    for twin in &twins {
        record(&mut survey, twin, "damaged");
    }
    assert_eq!(kept(&survey, 2)[..2], [id(7), id(8)]);
    assert_eq!(kept(&survey, 2)[2..], twins);
    // The one that counts is the only newest one that is damaged.
    let plan = survey_plan(&survey, &policy(2, 0));
    assert_eq!(plan.refusal, None);
}

#[test]
fn x51_a_hole_that_never_came_to_be_makes_no_wal_useless() {
    let mut survey = straight();
    for n in [1, 2, 4, 5, 6, 7, 8] {
        survey.ids.remove(&id(n));
    }
    let held = survey.timelines.get_mut(&tli(1)).unwrap();
    held.segments = Runs::from_numbers((1..=44).chain(46..=100).collect());
    let with = |first: u64| {
        let mut survey = survey.clone();
        let mut recorded = event(TRIMMED, ago(2));
        let name = SegmentNumber(first).name(tli(1), size()).unwrap();
        recorded.event.segment = Some(name.to_string());
        add(&mut survey, &id(3), recorded);
        retention(&survey, &policy(9, 0), now())
    };
    assert_eq!(segments(&with(45)), [(1, 1, 29), (1, 46, 89)]);
    // Segment 45 is lost, and may be found: the WAL behind it stays.
    let plan = with(60);
    assert_eq!(segments(&plan), [(1, 1, 29)]);
    assert!(plan.holes.is_empty(), "{:?}", plan.holes);
}

#[test]
fn the_hole_behind_an_origin_is_recorded_of_its_compaction_too() {
    let mut survey = straight();
    let origin = id(3);
    let held = survey.timelines.get_mut(&tli(1)).unwrap();
    let left = (1..=32).chain(80..=100).collect();
    held.segments = Runs::from_numbers(left);
    for n in 4..=7 {
        survey.ids.remove(&id(n));
    }
    record(&mut survey, &origin, "trimmed");
    record(&mut survey, &origin, "pin");
    let new = compact_backup(&mut survey, &origin, 20);
    let plan = survey_plan(&survey, &policy(9, 0));
    assert_eq!(plan.trimmed(), [&new]);
    // Without a record of the origin the hole is a gap.
    let mut plain = survey.clone();
    let subject = plain.ids.get_mut(&origin).unwrap();
    subject.events.retain(|e| e.event.event != "trimmed");
    assert!(survey_plan(&plain, &policy(9, 0)).holes.is_empty());
    // Carried out, it is recorded once, and outlives the origin.
    apply(&mut survey, &plan, ago(0));
    assert_eq!(standing(&survey.ids[&new].events, TRIMMED, "").len(), 1);
    assert!(survey_plan(&survey, &policy(9, 0)).holes.is_empty());
}

#[test]
fn a_person_may_delete_one_of_two_twins_where_the_other_is_proven() {
    let refusal = |survey: &Survey, asked: &BackupId| {
        let policy = Policy {
            requested: Some(asked.clone()),
            ..policy(1, 0)
        };
        survey_plan(survey, &policy).refusal.unwrap_or_default()
    };
    let mut survey = straight();
    let origin = id(9);
    let new = compact_backup(&mut survey, &origin, 20);
    // The new one was not verified: it goes, the old one does not.
    assert_eq!(refusal(&survey, &new), "");
    let why = refusal(&survey, &origin);
    assert!(why.contains("compacted") && why.contains("pitr verify"));
    // The newest content is theirs: no older backup is in question.
    assert_eq!(refusal(&survey, &id(8)), "");
    let mut both = survey.clone();
    verify_now(&mut both, &origin);
    assert_eq!(refusal(&both, &new), "");
    assert!(refusal(&both, &origin).contains("pitr verify"));
    verify_now(&mut both, &new);
    assert_eq!(refusal(&both, &new), "");
    assert_eq!(refusal(&both, &origin), "");
    // The new one alone was verified, or the old one is marked.
    verify_now(&mut survey, &new);
    assert_eq!(refusal(&survey, &origin), "");
    assert!(refusal(&survey, &new).contains("newest good one"));
    record(&mut both, &origin, "expire");
    assert!(refusal(&both, &new).contains("newest good one"));
}

#[test]
fn x37_a_later_round_of_a_requested_deletion_goes_on_with_its_wal() {
    let segments = Deletion::Segments(tli(1), SegmentNumber(1), SegmentNumber(9));
    let of_another = Deletion::Tombstone(id(2));
    let left = |is_gone: bool| {
        let mut plan = ExpirePlan {
            deletions: vec![segments.clone(), of_another.clone()],
            ..ExpirePlan::default()
        };
        restrict(&mut plan, &id(1), is_gone);
        plan.deletions
    };
    assert_eq!(left(true), std::slice::from_ref(&segments));
    assert_eq!(left(false), []);
}
