//! Plans against the model: cases by hand, and thousands at random.

use super::chain::{Chain, StretchEnd};
use super::gap::gaps;
use super::model::{Random, Recovered, World, tli};
use super::plan;
use super::recovery::{Action, Options, Outcome, Plan, Reason, Side, StopRecord, TransactionEnd};
use super::stop::{Rule, transaction_end};
use super::target::{Inclusive, RecoveryTarget, Target, TargetTimeline};
use super::window::windows;
use crate::error::Code;
use crate::pg::lsn::Lsn;
use crate::pg::parameters::Parameters;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::wal_proof::{FirstSegment, LastSegment, RawHash, WalProof};
use crate::wal::facts::EntryKind;
use crate::wal::inventory::Backup;

const FAR: TimestampTz = TimestampTz(i64::MAX - 1);

fn options() -> Options {
    Options {
        restore_command: "pitr-restore %f %p".into(),
        action: Action::Promote,
        ..Options::default()
    }
}

fn asked(target: Target, inclusive: Inclusive, timeline: TargetTimeline) -> RecoveryTarget {
    RecoveryTarget {
        target,
        inclusive,
        timeline,
    }
}

fn latest(target: Target) -> RecoveryTarget {
    asked(target, Inclusive::Yes, TargetTimeline::Latest)
}

fn before(target: Target) -> RecoveryTarget {
    asked(target, Inclusive::No, TargetTimeline::Latest)
}

fn refused(plan: &Plan, reason: Reason) {
    assert_eq!((plan.reachable, plan.reason), (false, Some(reason)));
}

fn reached(plan: &Plan) {
    assert!(plan.reachable, "{:?}", plan.explanation);
}

fn is_warned(plan: &Plan, of: &str) -> bool {
    plan.warnings.iter().any(|w| w.contains(of))
}

/// The end of a transaction in the WAL of a timeline.
fn end_of(w: &World, timeline: TimelineId, xid: u32) -> TransactionEnd {
    let records = w.records[&timeline].iter();
    let mut ends = records.filter_map(|r| transaction_end(&r.entry));
    ends.find(|end| end.xid == xid).unwrap()
}

fn planned(world: &World, target: Target) -> Plan {
    plan_with(world, &latest(target))
}

pub(super) fn plan_with(world: &World, target: &RecoveryTarget) -> Plan {
    plan(&world.inventory(), world, target, &options(), FAR).unwrap()
}

/// Timeline 1: a commit before the backup, the backup, three commits, a restore point, a long record, two commits, a switch.
fn simple() -> World {
    let mut w = World::new();
    w.commit(tli(1), true);
    w.backup(tli(1), |w| {
        w.commit(tli(1), true);
    });
    for _ in 0..3 {
        w.commit(tli(1), true);
    }
    w.point(tli(1), "before drop");
    w.write(tli(1), EntryKind::Other, 2_500_000);
    w.commit(tli(1), false);
    w.commit(tli(1), true);
    w.switch_and_archive(tli(1));
    w
}

fn with_second_backup() -> World {
    let mut w = simple();
    w.backup(tli(1), |_| {});
    w.commit(tli(1), true);
    w.switch_and_archive(tli(1));
    w
}

#[test]
fn of_a_backup_and_its_compaction_the_verified_one_is_planned() {
    let mut w = simple();
    let twin = Backup {
        id: "20991120T064049Z-incr".parse().unwrap(),
        ..w.backups[0].clone()
    };
    w.backups.push(twin);
    let chosen = |w: &World| planned(w, Target::End).backup.unwrap().id;
    assert_eq!(chosen(&w), w.backups[1].id);
    w.backups[0].is_verified = true;
    assert_eq!(chosen(&w), w.backups[0].id);
    w.backups[1].is_verified = true;
    assert_eq!(chosen(&w), w.backups[1].id);
    // A mark or damage weighs more.
    w.backups[1].expire_mark = Some(FAR);
    assert_eq!(chosen(&w), w.backups[0].id);
}

#[test]
fn a1_a_backup_whose_segments_are_another_server_s_is_not_restorable() {
    let mut w = simple();
    w.backup(tli(1), |_| {});
    w.archive_all();
    let newest = w.backups.last_mut().unwrap();
    let name = SegmentName::of(tli(1), newest.start_lsn, w.size);
    let hash = |n| RawHash([n; 32]);
    newest.wal_proof = Some(WalProof {
        first: FirstSegment {
            name,
            hash: Some(hash(1)),
        },
        last: LastSegment {
            name: name.next(w.size).unwrap(),
            length_bytes: 1,
            hash: Some(hash(3)),
            segment_hash: Some(hash(2)),
        },
        checkpoint: None,
    });
    let id = newest.id.clone();
    let (first, last) = (name, name.next(w.size).unwrap());
    let chosen = |w: &World| planned(w, Target::End).backup.unwrap().id;
    assert_eq!(chosen(&w), id, "what is not stored says nothing");
    w.hashes = [(first, hash(1)), (last, hash(2))].into();
    assert_eq!(chosen(&w), id);
    for (other, own) in [(first, 1), (last, 2)] {
        w.hashes.insert(other, hash(9));
        let p = planned(&w, Target::End);
        assert!(p.reachable);
        assert_ne!(p.backup.as_ref().unwrap().id, id);
        let why = p.backups_not_chosen.iter().find(|n| n.id == id).unwrap();
        assert_eq!(why.reason, Reason::BackupWalForeign);
        assert!(why.detail.contains(&other.to_string()), "{}", why.detail);
        let windows = windows(&w.inventory(), &w).unwrap();
        assert_eq!(windows.unusable.len(), 1);
        assert_eq!(windows.unusable[0].0, id.to_string());
        let names = |n: &str| n == id.to_string();
        let has = |w: &super::window::Window| w.backups.iter().any(|n| names(n));
        assert!(!windows.windows.iter().any(has));
        w.hashes.insert(other, hash(own));
    }
    w.hashes.insert(first, hash(9));
    w.backups.retain(|b| b.id == id);
    let p = planned(&w, Target::End);
    assert_eq!(p.reason, Some(Reason::BackupWalForeign));
    assert!(!p.reachable);
}

#[test]
fn t76_a_timeline_that_begins_in_the_last_segment_goes_on_from_the_backup_that_it_has() {
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    w.switch(tli(1));
    w.backup(tli(1), |_| {});
    w.commit(tli(1), true);
    let two = w.branch(tli(1), w.records[&tli(1)].len() - 1);
    w.commit(two, true);
    w.switch(two);
    w.switch_and_archive(tli(1));
    let newest = w.backups.last_mut().unwrap();
    let name = SegmentName::of(tli(1), newest.start_lsn, w.size);
    let hash = |n| RawHash([n; 32]);
    newest.wal_proof = Some(WalProof {
        first: FirstSegment { name, hash: None },
        last: LastSegment {
            name,
            length_bytes: 1,
            hash: Some(hash(1)),
            segment_hash: Some(hash(2)),
        },
        checkpoint: None,
    });
    let newest = newest.id.clone();
    let older = w.backups[0].id.clone();
    let copy = SegmentName {
        timeline: two,
        ..name
    };
    let chosen = |w: &World| {
        let plan = planned(w, Target::End);
        (plan.target_timeline, plan.backup.unwrap().id)
    };
    let of = |w: &World, timeline| {
        let windows = windows(&w.inventory(), w).unwrap();
        let mut own = windows.windows.iter().filter(|o| o.timeline == timeline);
        own.next().unwrap().backups.clone()
    };
    assert_eq!(chosen(&w), (Some(two), newest.clone()), "nothing is known");
    w.prefixes.insert(copy, hash(1));
    assert_eq!(chosen(&w), (Some(two), newest.clone()));
    assert_eq!(of(&w, two), [older.to_string(), newest.to_string()]);
    w.prefixes.insert(copy, hash(9));
    assert_eq!(chosen(&w), (Some(two), older.clone()));
    assert_eq!(of(&w, two), [older.to_string()]);
    assert_eq!(of(&w, tli(1)), [older.to_string(), newest.to_string()]);
    // Asked for by name, it is followed where it leads.
    let options = Options {
        backup: Some(newest.clone()),
        ..options()
    };
    let target = latest(Target::End);
    let p = plan(&w.inventory(), &w, &target, &options, FAR).unwrap();
    assert_eq!(p.target_timeline, Some(tli(1)));
    assert!(is_warned(&p, "does not descend"));
}

#[test]
fn the_end_is_the_last_complete_record_with_a_target() {
    let w = simple();
    let p = planned(&w, Target::End);
    reached(&p);
    assert_eq!((p.outcome, p.reason), (Outcome::EndOfWal, None));
    let last = w.records[&tli(1)].last().unwrap();
    let stop = p.stop.unwrap();
    assert_eq!((stop.lsn, stop.side), (last.entry.start, Side::After));
    assert_eq!(
        p.recovery_settings["recovery_target_lsn"],
        last.entry.start.to_string()
    );
    assert_eq!(p.recovery_settings["recovery_target_inclusive"], "on");
    assert_eq!(p.recovery_settings["recovery_target_timeline"], "1");
    assert_eq!(p.recovery_settings["recovery_target_action"], "promote");
    assert_eq!(p.segments_needed.count, 3);
    assert_eq!(p.last_commit.unwrap().xid, 706);
    assert_eq!(p.first_excluded, None);
    assert_eq!(
        p.backup.as_ref().unwrap().id.to_string(),
        "20261120T060000Z-full"
    );
}

#[test]
fn the_largest_parameters_on_the_way_are_required() {
    let mut w = simple();
    let changed = |n: i32| EntryKind::ParameterChange(Parameters::new([n, 8, 10, 1000 - n, 64]));
    let (inside, _) = w.write(tli(1), changed(300), 54);
    // One that crosses the edge of a segment.
    let room = w.size.bytes() - w.end(tli(1)).0 % w.size.bytes();
    for length in (0..room).rev() {
        let mut tried = World::new();
        tried.records = w.records.clone();
        tried.write(tli(1), EntryKind::Other, length);
        let (start, end) = tried.write(tli(1), changed(500), 54);
        let edge = end.0 / w.size.bytes() * w.size.bytes();
        if start.0 < edge && edge < end.0 {
            w.write(tli(1), EntryKind::Other, length);
            break;
        }
    }
    let (crossing, _) = w.write(tli(1), changed(500), 54);
    w.commit(tli(1), true);
    w.switch(tli(1));
    let (last, _) = w.write(tli(1), changed(400), 54);
    w.archive_all();
    let connections = |target: Target| {
        let p = planned(&w, target);
        reached(&p);
        let get = |name: &str| p.recovery_settings.get(name).cloned().unwrap_or_default();
        (get("max_connections"), get("max_prepared_transactions"))
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let at = |lsn: Lsn| Target::Lsn(lsn);
    assert_eq!(connections(at(Lsn(inside.0 - 1))), pair("300", "700"));
    assert_eq!(connections(at(crossing)), pair("500", "700"));
    assert_eq!(connections(at(last)), pair("500", "700"));
    assert_eq!(connections(Target::End), pair("500", "700"));
    assert_eq!(connections(Target::Xid(702.into())), pair("", ""));
    let mut p = planned(&w, Target::End);
    p.require(Parameters::new([100, 9, 10, 0, 64]));
    let all: Vec<&str> = ["max_connections", "max_worker_processes", "max_wal_senders"]
        .map(|n| p.recovery_settings[n].as_str())
        .into();
    assert_eq!(all, ["500", "9", "10"]);
}

#[test]
fn a_deleted_segment_changes_the_answer() {
    let mut w = simple();
    let second = SegmentNumber(2).name(tli(1), w.size).unwrap();
    w.archived.remove(&second);
    let p = planned(&w, Target::End);
    refused(&p, Reason::Gap);
    assert_eq!(p.outcome, Outcome::Fatal);
    assert_eq!(p.segments_missing, [second]);
    assert_eq!(p.nearest_before.unwrap().xid, Some(704));
    // A target before the hole is reached all the same.
    let p = planned(&w, Target::Xid(703.into()));
    assert!(p.reachable);
    assert_eq!(p.segments_needed.count, 1);
    let found = gaps(&w.inventory(), Lsn(0));
    assert_eq!((found.len(), found[0].segments), (1, 1));
}

#[test]
fn damage_is_an_end_wherever_it_shows() {
    let mut w = simple();
    let last = SegmentNumber(3).name(tli(1), w.size).unwrap();
    for body in [true, false] {
        let bad = if body {
            &mut w.bad_body
        } else {
            &mut w.bad_index
        };
        bad.insert(last);
        let p = planned(&w, Target::End);
        refused(&p, Reason::DamagedWal);
        assert!(p.explanation.unwrap().contains("bad "));
        assert_eq!(p.nearest_before.unwrap().xid, Some(704));
        assert!(planned(&w, Target::Xid(703.into())).reachable);
        let found = windows(&w.inventory(), &w).unwrap();
        assert_eq!(found.windows.len(), 1);
        assert!(!found.windows[0].to_end);
        if body {
            w.bad_body.clear();
        }
    }
    // A newer backup behind the damage makes the end reachable again.
    let mut w = with_second_backup();
    w.bad_index.insert(last);
    let p = planned(&w, Target::End);
    assert!(p.reachable);
    let found = windows(&w.inventory(), &w).unwrap();
    assert_eq!(found.windows.len(), 2);
    assert!(!found.windows[0].to_end && found.windows[1].to_end);
}

#[test]
fn xid_inclusive_and_exclusive_name_both_sides() {
    let w = simple();
    let p = planned(&w, Target::Xid(703.into()));
    let stop = p.stop.unwrap();
    assert_eq!(stop.side, Side::After);
    assert_eq!(stop.record, StopRecord::Commit);
    assert_eq!(stop.xid, Some(703));
    assert_eq!(p.last_commit.unwrap().xid, 703);
    assert_eq!(p.first_excluded.unwrap().xid, 704);
    let target = before(Target::Xid(703.into()));
    let p = plan_with(&w, &target);
    assert_eq!(p.stop.unwrap().side, Side::Before);
    assert_eq!(p.last_commit.unwrap().xid, 702);
    assert_eq!(p.first_excluded.unwrap().xid, 703);
    assert_eq!(p.recovery_settings["recovery_target_inclusive"], "off");
}

#[test]
fn aborts_stop_a_time_target_and_are_the_first_excluded() {
    let w = simple();
    let abort = end_of(&w, tli(1), 705);
    let at = TimestampTz(abort.time.0 - 1);
    let p = planned(&w, Target::Time(at));
    let stop = p.stop.unwrap();
    assert_eq!((stop.record, stop.xid), (StopRecord::Abort, Some(705)));
    assert_eq!(p.first_excluded.unwrap().xid, 705);
    assert_eq!(p.first_excluded_commit.unwrap().xid, 706);
    assert_eq!(p.last_commit.unwrap().xid, 704);
}

#[test]
fn a12_a_target_behind_the_archived_wal_is_refused() {
    let w = simple();
    let p = plan(
        &w.inventory(),
        &w,
        &latest(Target::Time(TimestampTz(2_000_000_000_000))),
        &options(),
        FAR,
    )
    .unwrap();
    refused(&p, Reason::AfterEnd);
    assert!(p.explanation.unwrap().contains("--allow-end"));
    assert_eq!(p.nearest_before.unwrap().xid, Some(706));
    // Unless the end is meant then.
    let allowed = Options {
        allow_end: true,
        ..options()
    };
    let times = [TimestampTz(2_000_000_000_000), TimestampTz(5)];
    let behind = [Target::Time(times[0]), Target::Lsn(Lsn(u64::MAX))];
    for (target, now) in behind.iter().flat_map(|t| times.map(|now| (t, now))) {
        let target = latest(target.clone());
        let p = plan(&w.inventory(), &w, &target, &allowed, now).unwrap();
        assert_eq!((p.reachable, p.outcome), (true, Outcome::EndOfWal));
        assert!(p.recovery_settings.contains_key("recovery_target_lsn"));
        assert!(!p.recovery_settings.contains_key("recovery_target_time"));
        assert!(p.warnings[0].contains("lies beyond the archived WAL"));
    }
    // In the future it is refused.
    let target = latest(Target::Time(TimestampTz(2_000_000_000_000)));
    let p = plan(&w.inventory(), &w, &target, &options(), TimestampTz(5)).unwrap();
    assert_eq!(p.reason, Some(Reason::InFuture));
    assert_eq!(p.nearest_before.unwrap().xid, Some(706));
}

#[test]
fn a_time_before_the_first_backup_names_the_earliest_moment() {
    let w = simple();
    let p = planned(&w, Target::Time(TimestampTz(1_000_500_000)));
    assert_eq!(p.reason, Some(Reason::BeforeBackup));
    let after = p.nearest_after.unwrap();
    assert_eq!(after.lsn, w.backups[0].consistent_lsn);
    assert_eq!(
        p.fatal_message.unwrap(),
        "requested recovery stop point is before consistent recovery point"
    );
}

#[test]
fn a_time_before_an_idle_backup_is_not_reached_by_it() {
    // PostgreSQL would stop where it should from this backup, but the backup holds what came after the target.
    let mut w = World::new();
    w.commit(tli(1), true);
    let at = w.tick(0);
    w.commit(tli(1), true);
    w.backup(tli(1), |_| {});
    for later in [true, false] {
        if later {
            w.commit(tli(1), true);
        }
        w.archive_all();
        let p = planned(&w, Target::Time(at));
        assert_eq!(p.reason, Some(Reason::BeforeBackup));
        w.records.get_mut(&tli(1)).unwrap().pop();
    }
    // If the clock was set back, a time before the backup's start may well lie after it.
    w.backup(tli(1), |_| {});
    w.tick(-50_000_000);
    let early = w.commit(tli(1), true);
    let at = w.tick(0);
    w.commit(tli(1), true);
    w.archive_all();
    let p = planned(&w, Target::Time(at));
    assert_eq!(p.last_commit.unwrap().xid, early);
}

#[test]
fn what_does_not_exist_is_named_with_what_is_near() {
    let w = simple();
    let name = Target::Name("before dorp".parse().unwrap());
    let p = planned(&w, name);
    assert_eq!(p.reason, Some(Reason::UnknownName));
    assert!(
        p.explanation
            .unwrap()
            .contains("did you mean \"before drop\"?")
    );
    let p = planned(&w, Target::Xid(9999.into()));
    assert_eq!(p.reason, Some(Reason::UnknownXid));
    let p = planned(&w, Target::Lsn(Lsn(0x1_0000_0000)));
    assert_eq!(p.reason, Some(Reason::AfterEnd));
    let target = asked(Target::End, Inclusive::Yes, TargetTimeline::Number(tli(9)));
    let p = plan_with(&w, &target);
    assert_eq!(p.reason, Some(Reason::UnknownTimeline));
    let wanted = Options {
        backup: Some("20261120T060001Z-full".parse().unwrap()),
        ..options()
    };
    let target = RecoveryTarget::default();
    let e = plan(&w.inventory(), &w, &target, &wanted, FAR).unwrap_err();
    assert_eq!(e.code(), Code::NotFound);
    assert_eq!(e.hint_text(), Some("The closest is 20261120T060000Z-full"));
}

#[test]
fn an_inclusive_lsn_at_the_end_of_a_record_replays_one_more() {
    let w = simple();
    let commit = end_of(&w, tli(1), 703);
    let p = planned(&w, Target::Lsn(commit.end_lsn));
    assert_eq!(p.last_commit.unwrap().xid, 704);
    let target = before(Target::Lsn(commit.end_lsn));
    let p = plan_with(&w, &target);
    assert_eq!(p.last_commit.unwrap().xid, 703);
    assert_eq!(p.stop.unwrap().recovery_end_lsn, commit.end_lsn);
}

#[test]
fn a12_a_backup_that_ended_later_shows_that_the_wal_goes_beyond_a_time() {
    let mut w = simple();
    let at = w.tick(1_000_000);
    w.backup(tli(1), |_| {});
    w.switch_and_archive(tli(1));
    let p = planned(&w, Target::Time(at));
    assert_eq!((p.reachable, p.outcome), (true, Outcome::EndOfWal));
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[0].id);
    assert!(p.warnings[0].contains("was complete later"));
}

#[test]
fn a12_a_backup_under_a_clock_that_was_ahead_shows_nothing_about_a_time() {
    let hour = std::time::Duration::from_secs(3600);
    let after_end = |w: &World, at: TimestampTz, now: TimestampTz| {
        let target = latest(Target::Time(at));
        let p = plan(&w.inventory(), w, &target, &options(), now).unwrap();
        assert_eq!(p.reason, Some(Reason::AfterEnd));
    };
    // Its time has not come yet.
    let mut w = simple();
    let at = w.tick(1_000_000);
    w.backup(tli(1), |_| {});
    w.switch_and_archive(tli(1));
    w.backups[1].stop_time = at.saturating_add(hour);
    after_end(&w, at, at);
    // It has come, but a transaction behind the backup is older.
    w.commit(tli(1), true);
    w.switch_and_archive(tli(1));
    let at = w.tick(1_000_000);
    let ahead = at.saturating_add(hour);
    (w.backups[1].start_time, w.backups[1].stop_time) = (ahead, ahead);
    after_end(&w, at, FAR);
    // A transaction while it was stored, behind the end of its WAL, is no such sign.
    w.backups[1].start_time = w.backups[0].stop_time;
    let target = latest(Target::Time(at));
    let p = plan(&w.inventory(), &w, &target, &options(), FAR).unwrap();
    assert_eq!((p.reachable, p.outcome), (true, Outcome::EndOfWal));
}

#[test]
fn a12_a_backup_that_a_check_found_damaged_is_taken_only_where_another_copy_helps() {
    let mut w = with_second_backup();
    let found = |backup: &mut Backup, copies| {
        backup.damage = Some("a check found damage: x".into());
        backup.damaged_copies = copies;
    };
    found(&mut w.backups[1], 1);
    let p = planned(&w, Target::End);
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[0].id);
    // Only the damaged one leads there.
    found(&mut w.backups[0], 1);
    for target in [Target::End, Target::Xid(704.into())] {
        let p = planned(&w, target);
        refused(&p, Reason::DamagedBackup);
        assert!(p.explanation.unwrap().contains("a check found damage: x"));
    }
    // A target that it does not lead to has its own reason.
    let p = planned(&w, Target::Xid(9999.into()));
    assert_eq!(p.reason, Some(Reason::UnknownXid));
    found(&mut w.backups[1], 2);
    let p = planned(&w, Target::End);
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[1].id);
    assert!(is_warned(&p, "from the repository that has it whole"));
}

#[test]
fn b14_a_partial_backup_is_taken_only_when_it_is_named() {
    let mut w = with_second_backup();
    let partial = |backup: &mut Backup| {
        backup.damage = Some("it has no content of database \"b\"".into());
        backup.is_partial = true;
    };
    partial(&mut w.backups[1]);
    let p = planned(&w, Target::End);
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[0].id);
    assert_eq!(p.backups_not_chosen[0].reason, Reason::PartialBackup);
    // Nothing else leads there.
    partial(&mut w.backups[0]);
    let p = planned(&w, Target::End);
    refused(&p, Reason::PartialBackup);
    let why = p.explanation.unwrap();
    assert!(
        why.contains("--backup") && why.contains("database \"b\""),
        "{why}"
    );
    let named = Options {
        backup: Some(w.backups[1].id.clone()),
        ..options()
    };
    let end = latest(Target::End);
    let p = plan(&w.inventory(), &w, &end, &named, FAR).unwrap();
    assert!(p.reachable);
    assert!(is_warned(&p, "is partial"));
}

#[test]
fn a_damaged_backup_serves_only_when_no_other_does() {
    let mut w = with_second_backup();
    w.backups[1].damage = Some("bad page".into());
    let p = planned(&w, Target::End);
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[0].id);
    assert_eq!(p.backups_not_chosen[0].reason, Reason::DamagedBackup);
    w.backups[0].damage = Some("worse".into());
    let p = planned(&w, Target::End);
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[1].id);
    assert!(is_warned(&p, "is damaged (bad page)"));
    w.backups[1].damage = None;
    w.backups[0].damage = None;
    w.backups[1].expire_mark = Some(TimestampTz(0));
    let p = planned(&w, Target::End);
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[0].id);
    assert_eq!(p.backups_not_chosen[0].reason, Reason::MarkedForDeletion);
}

#[test]
fn names_that_repeat_stop_at_the_first_behind_the_backup() {
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    w.point(tli(1), "x");
    w.commit(tli(1), true);
    w.backup(tli(1), |_| {});
    let (second, _) = w.point(tli(1), "x");
    w.commit(tli(1), true);
    let (third, _) = w.point(tli(1), "x");
    w.switch_and_archive(tli(1));
    let p = planned(&w, Target::Name("x".parse().unwrap()));
    assert_eq!(p.backup.as_ref().unwrap().id, w.backups[1].id);
    assert_eq!(p.stop.unwrap().lsn, second);
    assert_eq!(p.warnings.len(), 2, "{:?}", p.warnings);
    assert!(p.warnings[0].contains(&format!("--backup {}", w.backups[0].id)));
    assert!(p.warnings[1].contains(&format!("--target-lsn {third}")));
}

#[test]
fn k05_a_clock_that_was_set_back_is_warned_about() {
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    w.commit(tli(1), true);
    let at = w.tick(500_000);
    w.commit(tli(1), true);
    w.tick(-100_000_000);
    let early = w.commit(tli(1), true);
    w.switch_and_archive(tli(1));
    let p = planned(&w, Target::Time(at));
    assert_eq!(p.stop.unwrap().xid, Some(701));
    let warned = p.warnings.iter().any(|w| {
        w.contains("the clock was set back") && w.contains(&format!("transaction {early}"))
    });
    assert!(warned, "{:?}", p.warnings);
}

#[test]
fn a_full_xid_must_be_of_the_right_epoch() {
    let w = simple();
    let same = Target::Xid("703".parse().unwrap());
    assert!(planned(&w, same).reachable);
    let other = Target::Xid((703 + (5_u64 << 32)).to_string().parse().unwrap());
    let p = planned(&w, other);
    assert_eq!(p.reason, Some(Reason::OtherEpoch));
}

#[test]
fn h05_twenty_promotions_make_one_path() {
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    let mut timeline = tli(1);
    for n in 0..20 {
        w.commit(timeline, true);
        w.write(timeline, EntryKind::Other, 400_000);
        w.commit(timeline, true);
        let last = w.records[&timeline].len() - 1;
        // The old primary wrote on after the split now and then.
        if n % 3 == 0 {
            w.commit(timeline, true);
        }
        timeline = w.branch(timeline, last);
    }
    let last = w.commit(timeline, true);
    w.switch_and_archive(timeline);
    let p = planned(&w, Target::End);
    reached(&p);
    assert_eq!(p.target_timeline, Some(tli(21)));
    assert_eq!(p.timelines.len(), 21);
    assert_eq!(p.last_commit.unwrap().xid, last);
    let json = serde_json::to_value(&p).unwrap();
    assert_eq!(json["recovery_settings"]["recovery_target_timeline"], "21");
    assert_eq!(json["outcome"], "end_of_wal");
    assert_eq!(json["backup"]["id"], "20261120T060000Z-full");
    let back: Plan = serde_json::from_value(json).unwrap();
    assert_eq!(back, p);
    // A commit of the old primary behind the first split is only on its own timeline.
    let stray = w.records[&tli(1)]
        .iter()
        .filter_map(|r| transaction_end(&r.entry))
        .next_back()
        .unwrap();
    let p = planned(&w, Target::Xid(stray.xid.into()));
    assert_eq!(p.reason, Some(Reason::UnknownXid));
    let explanation = p.explanation.unwrap();
    assert!(
        explanation.contains("--target-timeline 1 (that loses what timeline"),
        "{explanation}"
    );
}

#[test]
fn the_latest_timeline_is_followed_by_its_number_and_a_lost_history_is_warned_of() {
    let mut w = simple();
    let second = w.branch(tli(1), 8);
    let third = w.branch(second, 9);
    w.commit(third, true);
    w.switch_and_archive(third);
    assert_eq!(planned(&w, Target::End).target_timeline, Some(tli(3)));
    w.files.remove(&second);
    let p = planned(&w, Target::End);
    // A server that followed "latest" would stay on timeline 1.
    assert_eq!(p.target_timeline, Some(tli(3)));
    assert_eq!(p.recovery_settings["recovery_target_timeline"], "3");
    assert!(p.warnings[0].contains("history file of timeline 2 is missing"));
    assert!(!is_warned(&p, "although timeline 3 exists"));
    w.archived.retain(|name| name.timeline != second);
    assert!(is_warned(
        &planned(&w, Target::End),
        "although timeline 3 exists"
    ));
    // No timeline leads there any more, and a server that is promoted on timeline 1 asks for the file.
    w.files.remove(&third);
    let p = planned(&w, Target::End);
    assert!(is_warned(
        &p,
        "pitr wal push PGDATA/pg_wal/00000003.history"
    ));
}

#[test]
fn a_timeline_without_segments_of_its_own_ends_at_its_switch_point() {
    // The child's first segment is not archived yet; the old primary archived its own, with more than the child knows.
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    w.commit(tli(1), true);
    let at = w.records[&tli(1)].len() - 1;
    w.commit(tli(1), true);
    w.switch(tli(1));
    w.archive(tli(1));
    w.branch(tli(1), at);
    let p = planned(&w, Target::End);
    reached(&p);
    assert_eq!(p.target_timeline, Some(tli(2)));
    assert_eq!(p.last_commit.unwrap().xid, 700);
    let p = planned(&w, Target::Xid(701.into()));
    assert_eq!(p.reason, Some(Reason::UnknownXid));
}

#[test]
fn a5_a_target_behind_the_point_where_its_timeline_was_left_names_what_the_other_holds() {
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    w.commit(tli(1), true);
    let at = w.records[&tli(1)].len() - 1;
    let fork = w.records[&tli(1)][at].entry.end;
    w.point(tli(1), "left");
    let stray = w.commit(tli(1), true);
    let left = transaction_end(&w.records[&tli(1)].last().unwrap().entry).unwrap();
    w.switch(tli(1));
    let own = w.branch(tli(1), at);
    w.point(own, "left");
    w.commit(own, true);
    let begun = transaction_end(&w.records[&own].last().unwrap().entry).unwrap();
    w.commit(own, true);
    w.switch_and_archive(own);
    let hints = |target: Target| {
        let p = planned(&w, target);
        assert!(p.reachable && p.target_timeline == Some(own));
        p.warnings
    };
    let named = |target: Target| {
        let warnings = hints(target);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("--target-timeline 1"), "{warnings:?}");
        assert!(
            warnings[0].contains("that loses what timeline 2 committed"),
            "{warnings:?}"
        );
    };
    named(Target::Time(left.time));
    named(Target::Lsn(left.lsn));
    named(Target::Name("left".parse().unwrap()));
    // On the life of the own timeline, or before the branch, there is nothing to ask.
    assert_eq!(hints(Target::Time(begun.time)), Vec::<String>::new());
    assert_eq!(hints(Target::Lsn(fork)), Vec::<String>::new());
    assert_eq!(hints(Target::End), Vec::<String>::new());
    let p = planned(&w, Target::Xid(stray.into()));
    assert!(p.explanation.unwrap().contains("--target-timeline 1"));
}

#[test]
fn a6_two_lives_that_go_on_are_refused_and_named() {
    let mut w = simple();
    let at = w.records[&tli(1)].len() - 1;
    let drill = w.branch(tli(1), at);
    w.commit(drill, true);
    w.commit(tli(1), true);
    w.switch_and_archive(tli(1));
    let p = planned(&w, Target::End);
    refused(&p, Reason::Undecided);
    assert_eq!(p.candidates, [drill, tli(1)]);
    let explanation = p.explanation.unwrap();
    assert!(explanation.contains("timeline 2 began at"), "{explanation}");
    // A number is followed.
    for timeline in [tli(1), drill] {
        let target = asked(
            Target::End,
            Inclusive::Yes,
            TargetTimeline::Number(timeline),
        );
        assert!(plan_with(&w, &target).reachable);
    }
}

/// Timeline 1 as `simple` has it, of its last segment only what was streamed up to the end of the record `back` from the last.
fn streamed(back: usize) -> (World, SegmentName) {
    let mut w = simple();
    let last = SegmentNumber(3).name(tli(1), w.size).unwrap();
    let records = &w.records[&tli(1)];
    let at = records[records.len() - 1 - back].entry.end;
    w.cut(last, Lsn(at.0 + 8));
    (w, last)
}

#[test]
fn f21_a_tail_counts_up_to_its_last_whole_record() {
    // Without the switch, and without the commit before it.
    for (back, commit) in [(1, 706), (2, 704)] {
        let (w, last) = streamed(back);
        let p = planned(&w, Target::End);
        reached(&p);
        assert_eq!(p.outcome, Outcome::EndOfWal);
        assert_eq!(p.last_commit.unwrap().xid, commit);
        assert_eq!(p.segments_needed.last, Some(last));
        let found = windows(&w.inventory(), &w).unwrap();
        assert_eq!(found.windows[0].to_lsn, p.stop.unwrap().end_lsn);
        assert!(found.windows[0].to_end);
        assert_eq!(gaps(&w.inventory(), Lsn(0)), []);
    }
}

#[test]
fn a_tail_with_segments_behind_it_is_a_gap() {
    let (mut w, last) = streamed(1);
    w.commit(tli(1), true);
    w.switch(tli(1));
    let next = last.next(w.size).unwrap();
    w.archived.insert(next);
    let p = planned(&w, Target::End);
    refused(&p, Reason::DamagedWal);
    assert!(p.explanation.unwrap().contains("although later"));
    // A target in the streamed WAL is reached all the same.
    let p = planned(&w, Target::Xid(706.into()));
    reached(&p);
    let found = gaps(&w.inventory(), Lsn(0));
    assert_eq!((found.len(), found[0].segments), (1, 1));
    let ends = next.start_lsn(w.size).unwrap();
    assert!(found[0].to_lsn == ends && found[0].from_lsn < ends);
    // Only a part of the next segment is there, too.
    w.cut(next, Lsn(ends.0 + 4096));
    let p = planned(&w, Target::End);
    refused(&p, Reason::DamagedWal);
}

#[test]
fn what_is_recorded_as_lost_is_a_hole_until_it_is_there() {
    let (w, last) = streamed(1);
    let mut inventory = w.inventory();
    let end = last.number(w.size).unwrap().range(w.size).end;
    let lost = crate::pg::lsn::LsnRange {
        start: w.cut[&last],
        end: Lsn(end.0 + 5 * w.size.bytes()),
    };
    inventory.timelines.get_mut(&tli(1)).unwrap().lost = vec![lost];
    let target = RecoveryTarget::default();
    let p = plan(&inventory, &w, &target, &options(), FAR).unwrap();
    refused(&p, Reason::DamagedWal);
    let found = gaps(&inventory, Lsn(0));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].from_lsn, found[0].to_lsn), (lost.start, lost.end));
    assert_eq!(found[0].segments, 6);
    // Without the tail, too.
    let mut w = w;
    w.cut.clear();
    inventory.timelines.get_mut(&tli(1)).unwrap().tails.clear();
    let p = plan(&inventory, &w, &target, &options(), FAR).unwrap();
    refused(&p, Reason::Gap);
    assert_eq!(p.segments_missing_count, 6);
}

#[test]
fn the_partial_of_a_timeline_that_was_left_makes_its_end_reachable() {
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    w.commit(tli(1), true);
    let at = w.records[&tli(1)].len() - 1;
    let stray = w.commit(tli(1), true);
    let last = w.branch(tli(1), at);
    w.commit(last, true);
    w.switch_and_archive(last);
    let first = SegmentNumber(1).name(tli(1), w.size).unwrap();
    w.cut(first, w.end(tli(1)));
    let target = |t: TargetTimeline| asked(Target::Xid(stray.into()), Inclusive::Yes, t);
    let p = plan_with(&w, &target(TargetTimeline::Latest));
    let explanation = p.explanation.unwrap();
    assert!(
        explanation.contains("--target-timeline 1 (that loses what timeline"),
        "{explanation}"
    );
    let p = plan_with(&w, &target(TargetTimeline::Number(tli(1))));
    reached(&p);
    assert_eq!(p.last_commit.unwrap().xid, stray);
}

// ── at random ──

fn history_of(w: &World, timeline: TimelineId) -> crate::pg::timeline::History {
    w.histories[&timeline].clone()
}

pub(super) fn random_world(r: &mut Random) -> World {
    let mut w = World::new();
    let mut live = vec![tli(1)];
    let steps = 15 + r.below(50);
    for _ in 0..steps {
        let t = live[usize::try_from(r.below(live.len() as u64)).unwrap()];
        match r.below(20) {
            0..=6 => {
                if r.one_in(8) {
                    w.tick(-4_000_000);
                }
                let is_commit = !r.one_in(4);
                w.commit(t, is_commit);
            }
            7..=11 => {
                let length = 24 + r.below(400_000);
                w.write(t, EntryKind::Other, length);
            }
            12 => {
                let length = 24 + r.below(3_000_000);
                w.write(t, EntryKind::Transaction, length);
            }
            13 | 14 => {
                let name = if r.one_in(3) { "b" } else { "a" };
                w.point(t, name);
            }
            15 => {
                w.switch(t);
            }
            16 | 17 => {
                let busy = r.below(4);
                w.backup(t, |w| {
                    for n in 0..busy {
                        w.commit(t, true);
                        w.write(t, EntryKind::Other, 24 + n * 300_000);
                    }
                });
            }
            _ => {
                let count = w.records[&t].len() as u64;
                if live.len() < 5 && count > 0 {
                    let back = r.below(count.min(6));
                    let at = usize::try_from(count - 1 - back).unwrap();
                    live.push(w.branch(t, at));
                }
            }
        }
    }
    for t in &live {
        if r.one_in(2) {
            w.switch(*t);
        }
    }
    w.archive_all();
    for name in w.archived.clone() {
        let is_last = name
            .number(w.size)
            .is_ok_and(|n| n == SegmentNumber::ending_at(w.end(name.timeline), w.size));
        if r.one_in(if is_last { 3 } else { 25 }) {
            w.archived.remove(&name);
        } else if r.one_in(if is_last { 2 } else { 25 }) {
            let range = name.number(w.size).unwrap().range(w.size);
            let ends: Vec<u64> = w
                .in_file(name)
                .iter()
                .map(|rec| rec.entry.end.0)
                .filter(|end| *end <= range.end.0)
                .collect();
            // At the end of a record, just before it, or anywhere.
            let at = match (r.below(3), ends.as_slice()) {
                (0 | 1, ends) if !ends.is_empty() => {
                    let end = ends[usize::try_from(r.below(ends.len() as u64)).unwrap()];
                    end - r.below(2)
                }
                _ => range.start.0 + 1 + r.below(w.size.bytes()),
            };
            w.cut(name, Lsn(at));
        }
    }
    for backup in &mut w.backups {
        if r.one_in(6) {
            backup.damage = Some("x".into());
        }
    }
    w
}

pub(super) fn random_target(r: &mut Random, w: &World) -> RecoveryTarget {
    let timelines: Vec<_> = w.histories.keys().copied().collect();
    let timeline = timelines[usize::try_from(r.below(timelines.len() as u64)).unwrap()];
    let records = &w.records[&timeline];
    let ends: Vec<_> = records
        .iter()
        .filter_map(|rec| transaction_end(&rec.entry))
        .collect();
    let end =
        (!ends.is_empty()).then(|| ends[usize::try_from(r.below(ends.len() as u64)).unwrap()]);
    let rec = (!records.is_empty())
        .then(|| &records[usize::try_from(r.below(records.len() as u64)).unwrap()]);
    let target = match (r.below(7), end, rec) {
        (0 | 1, Some(end), _) => Target::Time(TimestampTz(
            end.time.0 + i64::try_from(r.below(3)).unwrap() - 1,
        )),
        (2, Some(end), _) => Target::Xid(end.xid.into()),
        (3, _, Some(rec)) => {
            let offset = [0, 8, 100][usize::try_from(r.below(3)).unwrap()];
            Target::Lsn(match r.one_in(2) {
                true => Lsn(rec.entry.start.0 + offset),
                false => rec.entry.end,
            })
        }
        (4, ..) => Target::Name(if r.one_in(2) { "a" } else { "b" }.parse().unwrap()),
        (5, ..) => Target::Immediate,
        _ => Target::End,
    };
    asked(
        target,
        if r.one_in(2) {
            Inclusive::No
        } else {
            Inclusive::Yes
        },
        match r.below(3) {
            0 => TargetTimeline::Latest,
            1 => TargetTimeline::Current,
            _ => TargetTimeline::Number(timeline),
        },
    )
}

/// The rule that the settings of a plan amount to.
fn rule_of(p: &Plan) -> Rule {
    let inclusive = p
        .recovery_settings
        .get("recovery_target_inclusive")
        .is_some_and(|v| v == "on");
    let get = |name: &str| p.recovery_settings.get(name);
    if let Some(lsn) = get("recovery_target_lsn") {
        let at = lsn.parse().unwrap();
        return Rule::Lsn { at, inclusive };
    }
    asked_rule(&p.target).expect("the end is planned as an LSN")
}

fn asked_rule(target: &RecoveryTarget) -> Option<Rule> {
    let inclusive = target.inclusive == Inclusive::Yes;
    Some(match &target.target {
        Target::Time(at) => Rule::Time { at: *at, inclusive },
        Target::Xid(xid) => Rule::Xid {
            xid: xid.xid(),
            inclusive,
        },
        Target::Lsn(at) => Rule::Lsn { at: *at, inclusive },
        Target::Name(name) => Rule::Name(name.as_str().into()),
        Target::Immediate => Rule::Immediate,
        Target::End => return None,
    })
}

fn check_reached(w: &World, p: &Plan) {
    let chosen = p.backup.as_ref().unwrap();
    let backup = w.backups.iter().find(|b| b.id == chosen.id).unwrap();
    let history = history_of(w, p.target_timeline.unwrap());
    let real: Recovered = w.recover(&history, backup, Some(&rule_of(p)));
    let (rec, replayed) = real.stop.as_ref().expect("the server stops");
    assert!(real.consistent, "the server is consistent");
    let stop = p.stop.as_ref().unwrap();
    assert_eq!(stop.lsn, rec.entry.start);
    assert_eq!(stop.end_lsn, rec.entry.end);
    assert_eq!(stop.side == Side::After, *replayed);
    // Every record that is replayed is one that the timeline holds.
    let own = &w.records[&p.target_timeline.unwrap()];
    assert!(
        real.replayed
            .iter()
            .all(|r| own.iter().any(|o| o.id == r.id))
    );
    let last = real.replayed.last().unwrap();
    assert_eq!(stop.recovery_end_lsn, last.entry.end);
    let ends = |recs: &[super::model::Rec]| -> Vec<_> {
        recs.iter()
            .filter_map(|r| transaction_end(&r.entry))
            .collect()
    };
    let replayed_ends = ends(&real.replayed);
    assert_eq!(p.last_transaction, replayed_ends.last().copied());
    let commits = |e: &&TransactionEnd| e.kind == super::recovery::EndKind::Commit;
    assert_eq!(p.last_commit, replayed_ends.iter().rfind(commits).copied());
    // After a hole in the child's WAL a server would read on in the parent's. The plan names only the records on the
    // way.
    let behind: Vec<_> = real
        .behind
        .iter()
        .filter(|r| own.iter().any(|o| o.id == r.id))
        .cloned()
        .collect();
    let behind = ends(&behind);
    assert_eq!(p.first_excluded, behind.first().copied());
    assert_eq!(
        p.first_excluded_commit,
        behind.iter().find(commits).copied()
    );
    // No newer backup that is as good would have served, but for times: there the newest that was complete before counts.
    let timed = matches!(p.target.target, Target::Time(_) | Target::End);
    let newer = w.backups.iter().filter(|b| {
        b.damage.is_none()
            && (b.timeline, b.stop_lsn) > (backup.timeline, backup.stop_lsn)
            && super::base::lies_on(&history, b)
    });
    for newer in newer.filter(|_| !timed && p.target.timeline != TargetTimeline::Current) {
        let real = w.recover(&history, newer, Some(&rule_of(p)));
        let well = real.consistent
            && real
                .stop
                .is_some_and(|(rec, _)| own.iter().any(|o| o.id == rec.id));
        assert!(!well, "{} would have served", newer.id);
    }
    if p.outcome == Outcome::EndOfWal {
        let all = w.recover(&history, backup, None);
        let mut on_path = all
            .replayed
            .iter()
            .filter(|r| own.iter().any(|o| o.id == r.id));
        assert_eq!(
            on_path.next_back().unwrap().entry.end,
            stop.recovery_end_lsn
        );
    }
}

/// From none of the backups does a server end as asked, on the records that the timeline holds.
fn check_refused(w: &World, p: &Plan) {
    let Some(rule) = asked_rule(&p.target) else {
        return;
    };
    for backup in &w.backups {
        let timeline = match p.target.timeline {
            TargetTimeline::Current => Some(backup.timeline),
            _ => p.target_timeline,
        };
        let Some(timeline) = timeline.filter(|t| *t == tli(1) || w.files.contains(t)) else {
            continue;
        };
        let history = history_of(w, timeline);
        if !super::base::lies_on(&history, backup) {
            continue;
        }
        let real = w.recover(&history, backup, Some(&rule));
        let Some((rec, _)) = &real.stop else {
            continue;
        };
        let own = &w.records[&timeline];
        let on_path = own.iter().any(|o| o.id == rec.id);
        // A server does not know that its backup holds what came after the target.
        let transactions = real
            .replayed
            .iter()
            .any(|r| transaction_end(&r.entry).is_some());
        if matches!(p.target.target, Target::Time(at) if at < backup.start_time) && !transactions {
            continue;
        }
        assert!(
            !(real.consistent && on_path),
            "from {} the server stops well at {}: {:?}",
            backup.id,
            rec.entry.start,
            p.explanation
        );
    }
}

#[test]
fn the_planner_agrees_with_a_naive_server() {
    let first = std::env::var("PITR_SEED").ok().and_then(|s| s.parse().ok());
    let seeds: Vec<u64> = match first {
        Some(seed) => vec![seed],
        None => (1..=1200).collect(),
    };
    let (mut reached, mut refused) = (0, 0);
    for seed in seeds {
        let result = std::panic::catch_unwind(|| {
            let mut r = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            let w = random_world(&mut r);
            let mut counts = (0, 0);
            for _ in 0..6 {
                let target = random_target(&mut r, &w);
                let p = plan_with(&w, &target);
                if p.reachable {
                    counts.0 += 1;
                    check_reached(&w, &p);
                } else {
                    counts.1 += 1;
                    check_refused(&w, &p);
                }
            }
            counts
        });
        match result {
            Ok((a, b)) => {
                reached += a;
                refused += b;
            }
            Err(_) => panic!("failed with PITR_SEED={seed}"),
        }
    }
    if first.is_none() {
        assert!(reached > 1000 && refused > 500, "{reached} {refused}");
    }
}

/// Retention counts by names alone the WAL that planning finds in the segments, but for facts that names do not show.
#[test]
fn names_lead_as_far_as_the_chain_that_is_planned_with() {
    let (mut holes, mut ends) = (0, 0);
    for seed in 1..=600_u64 {
        let mut r = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let w = random_world(&mut r);
        let inventory = w.inventory();
        for (timeline, history) in &w.histories {
            let chain = Chain::new(&inventory, &w, history.clone());
            for start in inventory.backups.iter().map(|b| b.start_lsn) {
                let stretch = chain
                    .stretch_from(SegmentNumber::of(start, w.size))
                    .unwrap();
                let names = chain.path().reach(start, &inventory);
                let ended = SegmentNumber::ending_at(names, w.size);
                let seen = format!("seed {seed}, timeline {timeline}: {names}, {stretch:?}");
                let last = stretch.final_segment();
                assert!(last.is_none_or(|last| ended.next() >= last), "{seen}");
                match stretch.end {
                    StretchEnd::Missing { from, .. } => {
                        holes += 1;
                        assert!(ended <= from, "{seen}");
                    }
                    StretchEnd::EndOfWal => {
                        ends += 1;
                        assert!(last.is_none_or(|last| ended <= last.next()), "{seen}");
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(holes > 400 && ends > 4000, "{holes} {ends}");
}
