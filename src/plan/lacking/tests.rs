//! Two repositories of one cluster: what the one lacks, and what it expired.

use std::time::Duration;

use super::*;
use crate::config::Retention;
use crate::pg::segment::SegmentSize;
use crate::plan::cluster::is_straight;
use crate::repo::catalog::Manifest;
use crate::repo::event::{Event, Recorded, compact};
use crate::repo::lives::{Life, Lives};
use crate::wal::inventory::Timeline;

const MIB: u64 = 1 << 20;

/// The objects that `to` lacks of `from`, where nothing is to be decided about timelines.
fn lacking(
    from: &Survey,
    to: &Survey,
    wanted: (bool, Option<&Policy>),
    now: TimestampTz,
) -> Lacking {
    super::lacking(from, to, wanted, &[], now)
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn id(n: u64) -> BackupId {
    format!("202611{n:02}T000000Z-full").parse().unwrap()
}

fn runs(all: &[(u64, u64)]) -> Runs {
    let number = |(a, b): &(u64, u64)| (SegmentNumber(*a), SegmentNumber(*b));
    Runs::from_runs(all.iter().map(number).collect())
}

/// Has a repository hold these segments of timeline 1.
fn hold(survey: &mut Survey, all: &[(u64, u64)]) {
    let held = survey.timelines.get_mut(&TimelineId::FIRST).unwrap();
    held.segments = runs(all);
}

fn ids(numbers: &[u64]) -> Vec<BackupId> {
    numbers.iter().map(|n| id(*n)).collect()
}

/// Backups of timeline 1, each in the segment ten times its number, and segments.
fn survey(backups: &[u64], segments: &[(u64, u64)]) -> Survey {
    let mut survey = Survey::empty(size());
    let timeline = Timeline {
        segments: runs(segments),
        ..Timeline::default()
    };
    survey.timelines.insert(TimelineId::FIRST, timeline);
    for n in backups {
        let start = Lsn(n * 10 * MIB + 40);
        let root = Root {
            stop_time: now(),
            ..Root::sample(TimelineId::FIRST, start, Lsn(start.0 + MIB))
        };
        let subject = Subject {
            manifest: Manifest::Committed(Box::new(root)),
            ..Subject::default()
        };
        survey.ids.insert(id(*n), subject);
    }
    survey
}

fn now() -> TimestampTz {
    "2026-11-20T06:40:49Z".parse().unwrap()
}

/// Adds an event to a backup; returns the last part of its key.
fn add(survey: &mut Survey, n: u64, kind: &str) -> String {
    let name = format!("{}-{kind}-0000000000000001", compact(now()));
    let event = Event {
        event: kind.into(),
        time: now(),
        seconds: Some(3600),
        ..Event::default()
    };
    let recorded = Recorded {
        name: name.clone(),
        event,
        stored: now(),
        is_doubted: false,
    };
    survey.ids.get_mut(&id(n)).unwrap().events.push(recorded);
    name
}

/// Everything there ever was, and one that keeps backups 5 to 9 of it.
fn both() -> (Survey, Survey) {
    let all: Vec<u64> = (1..=9).collect();
    let from = survey(&all, &[(1, 100)]);
    (from, survey(&all[4..], &[(50, 100)]))
}

fn older(lacking: &Lacking) -> usize {
    let is_older = |l: &&LeftOut| l.why.contains("older than every backup kept there");
    lacking.left_out.iter().filter(is_older).count()
}

fn copied(lacking: &Lacking) -> Vec<(u64, u64)> {
    let runs = lacking.segments.values().flat_map(Runs::iter);
    runs.map(|(first, last)| (first.0, last.0)).collect()
}

#[test]
fn what_is_below_the_floor_stays_expired() {
    let (from, to) = both();
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    assert!(lacks.is_empty(), "{lacks:?}");
    assert_eq!(older(&lacks), 4);
    assert_eq!(lacks.unneeded_segments, 49);
    let all = lacking(&from, &to, (true, None), TimestampTz(0));
    assert_eq!(all.backups, ids(&[1, 2, 3, 4]));
    assert_eq!(copied(&all), [(1, 49)]);
}

#[test]
fn what_the_floor_keeps_is_copied_from_it_on() {
    let (from, mut to) = both();
    to.ids.remove(&id(6));
    to.ids.remove(&id(9));
    hold(&mut to, &[(50, 51), (70, 80)]);
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    assert_eq!(lacks.backups, ids(&[6, 9]));
    assert_eq!(copied(&lacks), [(52, 69), (81, 100)]);
    assert_eq!(older(&lacks), 4);
    // Rules over there that keep the newest alone want one of the two.
    let rules = Policy {
        rules: Retention::newest(1),
        ..Policy::default()
    };
    let lacks = lacking(&from, &to, (false, Some(&rules)), now());
    assert_eq!(lacks.backups, ids(&[9]));
    let left_out = |why| lacks.left_out.iter().filter(|l| l.why == why).count();
    assert_eq!(left_out(backups::NOT_KEPT), 1);
    let all = lacking(&from, &to, (true, Some(&rules)), now());
    assert_eq!(all.backups, ids(&[1, 2, 3, 4, 6, 9]));
}

#[test]
fn the_wal_that_was_let_go_behind_a_backup_does_not_come_back() {
    let (from, mut to) = both();
    hold(&mut to, &[(50, 52), (60, 100)]);
    let lacks = |to: &Survey| copied(&lacking(&from, to, (false, None), now()));
    assert_eq!(lacks(&to), [(53, 59)]);
    add(&mut to, 5, event::TRIMMED);
    assert_eq!(lacks(&to), []);
    // A compaction of it, there or yet to be copied, has the same hole behind it.
    let mut compacted = from.clone();
    let mut twin = compacted.ids[&id(5)].clone();
    twin.events.clear();
    compacted.ids.insert(id(20), twin);
    let found = lacking(&compacted, &to, (false, None), now());
    assert_eq!(found.backups, ids(&[20]));
    assert_eq!(copied(&found), []);
}

#[test]
fn who_reads_the_oldest_backup_does_not_make_it_look_expired() {
    let (from, mut to) = both();
    to.ids.remove(&id(6));
    hold(&mut to, &[(50, 51), (70, 100)]);
    add(&mut to, 5, "claim");
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    assert_eq!(lacks.backups, ids(&[6]));
    assert_eq!(copied(&lacks), [(52, 69)]);
    // Nor does who reads it where it comes from.
    let (mut from, to) = both();
    add(&mut from, 1, "claim");
    add(&mut from, 5, "claim");
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    assert!(lacks.is_empty(), "{lacks:?}");
    assert_eq!(older(&lacks), 4);
}

#[test]
fn a_pin_or_a_mark_on_an_old_backup_does_not_bring_back_what_lies_behind_it() {
    for kind in ["pin", "expire"] {
        let (from, mut to) = both();
        let old = from.ids[&id(2)].clone();
        to.ids.insert(id(2), old);
        hold(&mut to, &[(20, 21), (50, 100)]);
        add(&mut to, 2, kind);
        let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
        assert!(lacks.is_empty(), "{kind}: {lacks:?}");
        assert_eq!(older(&lacks), 3, "{kind}");
    }
}

#[test]
fn a_pinned_backup_comes_at_any_age_with_its_pins_and_the_way_to_its_end() {
    let (mut from, to) = both();
    let pin = add(&mut from, 2, "pin");
    let there = add(&mut from, 7, "pin");
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    assert_eq!(lacks.backups, ids(&[2]));
    assert_eq!(lacks.pins, [(id(2), pin), (id(7), there)]);
    assert_eq!(copied(&lacks), [(20, 21)]);
    // Past its end a pin says that the backup is wanted no more.
    let events = &mut from.ids.get_mut(&id(2)).unwrap().events;
    let pin = events.iter_mut().find(|e| e.event.event == "pin").unwrap();
    pin.event.until = Some(TimestampTz(5));
    let backups = |now| lacking(&from, &to, (false, None), TimestampTz(now)).backups;
    assert_eq!(backups(4), ids(&[2]));
    assert_eq!(backups(5), []);
}

fn second() -> TimelineId {
    TimelineId::new(2).unwrap()
}

/// Adds timeline 2, which left timeline 1 in segment 95, with these backups, as [`survey`] has them.
fn branch(survey: &mut Survey, backups: &[u64]) {
    let history = History::root(TimelineId::FIRST).child(second(), Lsn(95 * MIB), b"test");
    let timeline = Timeline {
        history: HistoryFile::Known(history),
        segments: runs(&[(95, 120)]),
        ..Timeline::default()
    };
    survey.timelines.insert(second(), timeline);
    for n in backups {
        let start = Lsn(n * 10 * MIB + 40);
        let root = Root {
            stop_time: now(),
            ..Root::sample(second(), start, Lsn(start.0 + MIB))
        };
        let subject = Subject {
            manifest: Manifest::Committed(Box::new(root)),
            ..Subject::default()
        };
        survey.ids.insert(id(*n), subject);
    }
}

#[test]
fn x42_backups_of_a_branch_make_none_of_the_cluster_look_expired() {
    let from = survey(&[1, 5, 9], &[(1, 100)]);
    let mut to = survey(&[], &[]);
    branch(&mut to, &[10]);
    let lacks =
        |followed: &[TimelineId]| super::lacking(&from, &to, (false, None), followed, now());
    let first = TimelineId::FIRST;
    let all = lacks(&[first]);
    assert_eq!(all.backups, ids(&[1, 5, 9]));
    assert_eq!((copied(&all), older(&all)), (vec![(10, 100)], 0));
    // Timeline 2 is the cluster, or may be, and goes on from these: they are older than what is kept of it.
    for followed in [vec![second()], vec![second(), first]] {
        let lacks = lacks(&followed);
        assert_eq!((lacks.backups.clone(), older(&lacks)), (vec![], 3));
    }
    // Once the cluster has backups there, older ones of it are expired, and those of the branch are compared with all.
    to.ids.insert(id(5), from.ids[&id(5)].clone());
    let lacks = |from: &Survey| super::lacking(from, &to, (false, None), &[first], now());
    assert_eq!((lacks(&from).backups, older(&lacks(&from))), (ids(&[9]), 1));
    let mut with_branch = from.clone();
    branch(&mut with_branch, &[11]);
    assert_eq!(lacks(&with_branch).backups, ids(&[9, 11]));
}

#[test]
fn x42_a_failover_alone_leaves_nothing_to_decide() {
    let before = survey(&[5], &[(1, 94)]);
    let mut after = before.clone();
    branch(&mut after, &[10]);
    assert!(is_straight(&[&before]) && is_straight(&[&before, &after]));
    // The former primary went on, or was backed up behind the place where it was left.
    assert!(!is_straight(&[&survey(&[5], &[(1, 95)]), &after]));
    assert!(!is_straight(&[&survey(&[10], &[(1, 94)]), &after]));
    // Two sides tell of other histories, or none tells of one.
    let mut other = after.clone();
    let history = History::root(TimelineId::FIRST).child(second(), Lsn(96 * MIB), b"test");
    let timeline = other.timelines.get_mut(&second()).unwrap();
    timeline.history = HistoryFile::Known(history);
    assert!(!is_straight(&[&after, &other]));
    let timeline = after.timelines.get_mut(&second()).unwrap();
    timeline.history = HistoryFile::Absent;
    assert!(!is_straight(&[&before, &after]));
}

#[test]
fn x42_by_rules_a_branch_pushes_out_no_backup_of_the_cluster() {
    let from = survey(&[7, 8, 9], &[(60, 100)]);
    let mut to = survey(&[7, 8], &[(60, 100)]);
    branch(&mut to, &[10, 11]);
    let rules = Policy {
        rules: Retention::newest(2),
        ..Policy::default()
    };
    let first = TimelineId::FIRST;
    let lacks = super::lacking(&from, &to, (false, Some(&rules)), &[first], now());
    assert_eq!(lacks.backups, ids(&[9]));
}

#[test]
fn x52_a_backup_of_a_timeline_that_was_left_before_the_window_does_not_come_back() {
    // The fifth does not reach the tenth: a segment between is lost.
    let mut from = survey(&[5, 10], &[(1, 60), (95, 105)]);
    let mut to = survey(&[5], &[(50, 60)]);
    for side in [&mut from, &mut to] {
        branch(side, &[11]);
    }
    let day = Duration::from_secs(24 * 3600);
    let rules = Policy {
        rules: Retention {
            wal_window: Some(day * 2),
            ..Retention::newest(1)
        },
        ..Policy::default()
    };
    let lacks = |from: &Survey| {
        let lacks = super::lacking(from, &to, (false, Some(&rules)), &[second()], now());
        lacks.backups
    };
    let mut left = |days: u32| {
        let stored = now().saturating_sub(day * days);
        from.newest_wal = [(TimelineId::FIRST, stored), (second(), now())].into();
        lacks(&from)
    };
    assert_eq!(left(1), ids(&[10]));
    assert_eq!(left(10), []);
}

#[test]
fn what_cannot_be_read_is_named() {
    let (mut from, mut to) = both();
    from.unreadable.push("root of x".into());
    assert_eq!(
        lacking(&from, &to, (false, None), TimestampTz(0)).unreadable,
        ["root of x"]
    );
    // A root that is damaged over there, and one that a check found damaged here.
    to.ids.get_mut(&id(7)).unwrap().manifest = Manifest::Unreadable("torn".to_owned());
    to.ids.remove(&id(8));
    add(&mut from, 8, "damaged");
    // A backup that is expired there need not be whole.
    add(&mut from, 1, "damaged");
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    let damaged = lacks.left_out.iter().filter(|l| l.cause == Cause::Damage);
    let damaged: Vec<&str> = damaged.map(|l| l.what.as_str()).collect();
    assert_eq!(
        damaged,
        [format!("backup {}", id(7)), format!("backup {}", id(8))]
    );
    assert!(lacks.backups.is_empty());
    assert_eq!(older(&lacks), 4);
}

#[test]
fn a_history_that_cannot_be_read_over_there_is_named() {
    let (mut from, mut to) = both();
    let second = TimelineId::new(2).unwrap();
    let timeline = |history| Timeline {
        history,
        ..Timeline::default()
    };
    let history = History::root(TimelineId::FIRST).child(second, Lsn(60 * MIB), b"test");
    from.timelines
        .insert(second, timeline(HistoryFile::Known(history)));
    assert_eq!(
        lacking(&from, &to, (false, None), TimestampTz(0)).histories,
        [second]
    );
    to.timelines
        .insert(second, timeline(HistoryFile::Damaged("cut".into())));
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    assert!(lacks.histories.is_empty());
    let is_named = |l: &LeftOut| l.cause == Cause::Damage && l.what == "history of timeline 2";
    assert!(lacks.left_out.iter().any(is_named), "{lacks:?}");
}

#[test]
fn c13_two_backups_of_one_id_are_named_as_that() {
    let begun = |host: &str, nonce: &str| Recorded {
        name: "begin".into(),
        event: Event {
            event: "begin".into(),
            time: now(),
            host: host.into(),
            nonce: nonce.into(),
            ..Event::default()
        },
        stored: now(),
        is_doubted: false,
    };
    let (mut from, mut to) = (survey(&[1], &[(1, 20)]), survey(&[1], &[(1, 20)]));
    for (survey, host, nonce) in [(&mut from, "a", "1"), (&mut to, "b", "2")] {
        let events = &mut survey.ids.get_mut(&id(1)).unwrap().events;
        events.push(begun(host, nonce));
    }
    let lacks = lacking(&from, &to, (false, None), TimestampTz(0));
    let left = &lacks.left_out[0];
    assert_eq!(left.cause, Cause::Conflict);
    for part in ["two backups have this id", "\"a\"", "\"b\"", "pitr backup"] {
        assert!(left.why.contains(part), "{}", left.why);
    }
}

/// Only where the other side has nothing behind the fork its resolution can come with the WAL.
#[test]
fn l13_nothing_is_copied_of_a_timeline_of_which_two_lives_are_followed() {
    let life = |n: u64| Life {
        event: format!("{n}-resolve-0"),
        segment: SegmentNumber(n).name(TimelineId::FIRST, size()).unwrap(),
        copy: "0123456789abcdef".into(),
        time: TimestampTz(1),
        reason: None,
    };
    let told = |survey: Survey, n: u64| Survey {
        lives: Lives::default().with(life(n)),
        ..survey
    };
    let from = || told(survey(&[3], &[(10, 100)]), 60);
    for (to, is_parted) in [
        (survey(&[1], &[(10, 60)]), true),
        (survey(&[1], &[(10, 59)]), false),
        (survey(&[], &[]), false),
        (told(survey(&[1], &[(10, 70)]), 60), false),
        (told(survey(&[1], &[(10, 70)]), 61), true),
    ] {
        let lacks = lacking(&from(), &to, (true, None), TimestampTz(0));
        assert_eq!(!lacks.parted.is_empty(), is_parted, "{lacks:?}");
        assert_eq!(lacks.segments.is_empty(), is_parted, "{lacks:?}");
        assert_eq!(lacks.backups.is_empty(), is_parted, "{lacks:?}");
    }
    // A resolution elsewhere helps where both sides have the refused copy; a side that went back with its server has none.
    let why = |has_copies: bool| {
        let with = |mut survey: Survey| {
            let offered = WalFileName::Segment(life(60).segment);
            let key = Key::new("conflicts/x").unwrap();
            survey
                .conflicts
                .extend(has_copies.then_some((offered, key)));
            survey
        };
        let (from, to) = (with(from()), with(survey(&[1], &[(10, 60)])));
        let lacks = lacking(&from, &to, (true, None), TimestampTz(0));
        lacks.left_out[0].why.clone()
    };
    assert!(why(true).contains("Resolve the fork in the other one"));
    // WAL that the one side gave up may have names that the other one follows.
    let mut given_up = from();
    let lost = WalFileName::Segment(life(61).segment);
    given_up.shadowed.push((lost, Key::new("wal/61").unwrap()));
    let lacks = |to: &Survey| lacking(&given_up, to, (true, None), TimestampTz(0));
    assert!(lacks(&survey(&[1], &[(10, 60)])).refused.is_empty());
    assert_eq!(lacks(&survey(&[], &[])).refused.len(), 1);
    assert!(why(false).contains("copies go on with the next timeline"));
    // The other way round: the side that is copied from was not told.
    let untold = survey(&[3], &[(10, 100)]);
    let lacks = lacking(&untold, &from(), (true, None), TimestampTz(0));
    assert!(!lacks.parted.is_empty() && lacks.segments.is_empty());
}
