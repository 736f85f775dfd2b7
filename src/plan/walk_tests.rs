//! Conditions that end a stretch of WAL, and conditions that do not: each test changes one thing at a time in segments
//! of the model.

use super::chain::{Chain, Stretch, StretchEnd};
use super::cluster::{Activity, LastCommit, Side, Tree, Verdict, decide};
use super::model::{World, tli};
use super::recovery::Options;
use super::target::{Inclusive, RecoveryTarget, Target, TargetTimeline};
use crate::error::Result;
use crate::pg::craft::Craft;
use crate::pg::lsn::Lsn;
use crate::pg::rmgr;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::pg::version::Major;
use crate::pg::xlog;
use crate::repo::decision::Decisions;
use crate::repo::wal_proof::RawHash;
use crate::wal::crafted;
use crate::wal::facts::{Crossing, Entry, EntryKind, Facts, NamedPoint, Wal};
use crate::wal::index::flag;
use crate::wal::inventory::Inventory;
use crate::wal::link::Brief;
use crate::wal::rollup::Rollup;

type Change<'a> = &'a dyn Fn(u64, &mut Facts);

/// A world whose indexes say something else; the change gets the segment's number.
struct Changed<'a>(&'a World, Change<'a>);

impl Wal for Changed<'_> {
    fn facts(&self, name: SegmentName) -> Result<Facts> {
        let mut facts = self.0.facts(name)?;
        (self.1)(name.number(self.0.size)?.0, &mut facts);
        Ok(facts)
    }

    fn crossing(&self, name: SegmentName, next: Option<SegmentName>) -> Result<Crossing> {
        self.0.crossing(name, next)
    }

    fn may_end(&self, name: SegmentName, xid: u32) -> Result<bool> {
        self.0.may_end(name, xid)
    }

    fn restore_points(&self, name: SegmentName) -> Result<Option<Vec<NamedPoint>>> {
        self.0.restore_points(name)
    }

    fn scan(
        &self,
        name: SegmentName,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()> {
        self.0.scan(name, next, visit)
    }

    fn has_hash(&self, name: SegmentName, hash: RawHash) -> Result<bool> {
        self.0.has_hash(name, hash)
    }

    fn has_prefix(&self, name: SegmentName, length_bytes: u64, hash: RawHash) -> Result<bool> {
        self.0.has_prefix(name, length_bytes, hash)
    }
}

/// Timeline 1 with five whole segments from the first on; a record reaches from the third into the fourth.
fn five() -> World {
    let mut w = World::new();
    for number in 1..=5_u64 {
        w.commit(tli(1), true);
        w.commit(tli(1), true);
        let left = (number + 1) * w.size.bytes() - w.end(tli(1)).0;
        match number {
            3 => drop(w.write(tli(1), EntryKind::Other, left + 1000)),
            _ => drop(w.switch(tli(1))),
        }
    }
    w.archive_all();
    w
}

fn stretch_in(w: &World, inventory: &Inventory, change: Change<'_>) -> Stretch {
    let wal = Changed(w, change);
    let chain = Chain::new(inventory, &wal, w.histories[&tli(1)].clone());
    let stretch = chain.stretch_from(SegmentNumber(1)).unwrap();
    Stretch::clone(&stretch)
}

fn stretch(w: &World, change: Change<'_>) -> Stretch {
    stretch_in(w, &w.inventory(), change)
}

/// Requires that the stretch ends before segment `number`, for a reason that contains `part`.
fn broken(w: &World, number: u64, part: &str, change: Change<'_>) {
    let stretch = stretch(w, change);
    let StretchEnd::Broken { at, why } = &stretch.end else {
        panic!("{part}: {:?}", stretch.end);
    };
    assert_eq!(at.number(w.size).unwrap().0, number, "{part}");
    assert!(why.contains(part), "{why}");
    assert_eq!(stretch.final_segment(), Some(SegmentNumber(number - 1)));
}

/// The change in segment `number` alone.
fn only(number: u64, change: impl Fn(&mut Facts)) -> impl Fn(u64, &mut Facts) {
    move |n, facts| {
        if n == number {
            change(facts);
        }
    }
}

fn whole(w: &World, change: Change<'_>) {
    let stretch = stretch(w, change);
    assert_eq!(stretch.end, StretchEnd::EndOfWal);
    assert_eq!(stretch.final_segment(), Some(SegmentNumber(5)));
}

/// The link of segment `number` in a life whose marks are the segments' numbers.
fn link(number: u64) -> Brief {
    Brief {
        own: number,
        before: number - 1,
        timeline: 1,
        is_first: false,
    }
}

#[test]
fn a_segment_continues_the_record_before_it_and_names_it() {
    let w = five();
    whole(&w, &|_, _| {});
    let other_before = only(5, |f| f.first_prev = Lsn(0x30));
    broken(&w, 5, "names 0/30 as the record before it", &other_before);
    let longer = only(4, |f| f.head_remaining += 8);
    broken(&w, 4, "it continues a record by", &longer);
    let none = only(4, |f| (f.head_remaining, f.head_length) = (0, 0));
    broken(&w, 4, "does not continue the record that reaches", &none);
}

#[test]
fn an_abandoned_record_counts_neither_as_missing_nor_as_the_one_before() {
    let w = five();
    let third = SegmentNumber(3).name(tli(1), w.size).unwrap();
    let last_complete = w.facts(third).unwrap().last_complete;
    let overwritten = u16::try_from(flag::OVERWRITTEN).unwrap();
    let abandoned = only(4, |f| {
        (f.head_remaining, f.head_length) = (0, 0);
        f.flags |= overwritten;
        f.first_prev = last_complete;
    });
    whole(&w, &abandoned);
}

#[test]
fn only_segments_of_one_life_are_joined() {
    let w = five();
    let linked = |n: u64, f: &mut Facts| f.link = link(n);
    whole(&w, &linked);
    // Segments without links are joined by their records alone.
    whole(&w, &|n, f| {
        if n != 3 {
            linked(n, f);
        }
    });
    broken(&w, 3, "another server wrote it", &|n, f| {
        linked(n, f);
        if n == 3 {
            f.link.before = 99;
        }
    });
    broken(&w, 3, "pg_resetwal wrote it", &|n, f| {
        linked(n, f);
        f.link.is_first = n == 3;
    });
}

#[test]
fn what_a_segment_says_of_itself_ends_a_stretch() {
    let w = five();
    let name = |n| SegmentNumber(n).name(tli(1), w.size).unwrap();
    let end = stretch(&w, &only(4, |f| f.start_lsn = Lsn(0))).end;
    let why = "it holds another segment".to_owned();
    assert_eq!(end, StretchEnd::Damaged { at: name(4), why });
    let minimal = u16::try_from(flag::MINIMAL).unwrap();
    let level = only(3, |f| f.flags |= minimal);
    let inventory = w.inventory();
    let end = stretch_in(&w, &inventory, &level).end;
    assert_eq!(end, StretchEnd::Minimal { at: name(3) });
    let undecoded = u16::try_from(flag::UNDECODED).unwrap();
    let newer = only(3, |f| f.flags |= undecoded);
    let end = stretch_in(&w, &inventory, &newer).end;
    assert_eq!(end, StretchEnd::Undecoded { at: name(3) });
}

#[test]
fn t64_a_change_to_minimal_that_crosses_the_end_of_a_segment_ends_a_stretch() {
    for left in [8, 16, 24, 32, 48] {
        for level in [0, 1] {
            let mut craft = Craft::new(Major::V13);
            craft.leave_of_segment(left);
            let numbers = [100, 8, 10, 0, 64, level].map(i32::to_le_bytes).concat();
            let change = [numbers.as_slice(), &[0, 0]].concat();
            craft.main(rmgr::XLOG, xlog::PARAMETER_CHANGE, 0, &change);
            craft.switch();
            let dir = tempfile::tempdir().unwrap();
            let repository = crafted::repository(dir.path(), &craft);
            let inventory = Inventory::read(&repository, "main", None).unwrap();
            let rollup = Rollup::new(&repository, &inventory, None).unwrap();
            let chain = Chain::new(&inventory, &rollup, History::root(tli(1)));
            let stretch = chain.stretch_from(SegmentNumber(1)).unwrap();
            let is_minimal = matches!(stretch.end, StretchEnd::Minimal { .. });
            assert_eq!(is_minimal, level == 0, "{left}: {:?}", stretch.end);
            let last = SegmentNumber(if is_minimal { 1 } else { 2 });
            assert_eq!(stretch.final_segment(), Some(last), "{left}");
        }
    }
}

#[test]
fn a_segment_that_a_check_found_damaged_is_read_before_it_counts() {
    let mut w = five();
    let name = SegmentNumber(3).name(tli(1), w.size).unwrap();
    let mut inventory = w.inventory();
    inventory.suspects.insert(name);
    let sound = stretch_in(&w, &inventory, &|_, _| {});
    assert_eq!(sound.end, StretchEnd::EndOfWal);
    w.bad_body.insert(name);
    let found = stretch_in(&w, &inventory, &|_, _| {});
    let StretchEnd::Damaged { at, .. } = found.end else {
        panic!("{:?}", found.end);
    };
    assert_eq!(at, name);
}

/// Timeline 2 leaves timeline 1 behind so many commits of its third segment, where both go on.
fn forked(behind: usize) -> World {
    let mut w = five();
    let of_third = |r: &super::model::Rec| r.entry.start.0 / (1 << 20) == 3;
    let at = w.records[&tli(1)].iter().position(of_third).unwrap();
    w.branch(tli(1), at + behind - 1);
    w.commit(tli(2), true);
    w.switch(tli(2));
    w.commit(tli(2), true);
    w.switch_and_archive(tli(2));
    w
}

#[test]
fn behind_its_switch_point_a_parent_leads_nowhere() {
    let mut w = forked(1);
    let name = |n| SegmentNumber(n).name(tli(2), w.size).unwrap();
    let (third, fourth) = (name(3), name(4));
    w.archived.remove(&third);
    w.archived.remove(&fourth);
    let history = w.histories[&tli(2)].clone();
    let switch = history.switch_point(tli(1)).unwrap();
    let inventory = w.inventory();
    let chain = Chain::new(&inventory, &w, history);
    let stretch = chain.stretch_from(SegmentNumber(1)).unwrap();
    assert_eq!(stretch.limit, Some(switch));
    assert_eq!(stretch.final_segment(), Some(SegmentNumber(3)));
    assert!(stretch.reach() <= switch);
    let mut shown = Vec::new();
    chain
        .scan(&stretch, SegmentNumber(3), &mut |e| shown.push(e.end))
        .unwrap();
    assert!(shown.iter().all(|end| *end <= switch), "{shown:?}");
    let in_parent = SegmentNumber(3).name(tli(1), w.size).unwrap();
    assert_eq!((shown.len(), w.in_file(in_parent).len()), (1, 3));
    let behind = chain.stretch_from(SegmentNumber(4)).unwrap();
    assert_eq!(behind.pieces, []);
}

#[test]
fn commits_before_a_fork_are_no_life_of_their_own() {
    let w = forked(2);
    let fork = w.histories[&tli(2)].parent().unwrap().1;
    let mut inventory = w.inventory();
    let held = inventory.timelines.get_mut(&tli(1)).unwrap();
    held.segments = crate::repo::runs::Runs::from_numbers(vec![1, 2, 3]);
    let side = Side {
        inventory: &inventory,
        wal: &w,
    };
    assert_eq!(side.last_commit(tli(1), fork).unwrap(), LastCommit::None);
    let LastCommit::At(_) = side.last_commit(tli(1), Lsn(0)).unwrap() else {
        panic!("it has commits before");
    };
}

#[test]
fn a_timeline_began_when_its_history_was_stored_if_its_first_commit_is_later() {
    let w = forked(2);
    let fork = w.histories[&tli(2)].parent().unwrap().1;
    let mut inventory = w.inventory();
    let begun = |inventory: &Inventory| {
        let side = Side { inventory, wal: &w };
        (&[side][..]).begun(tli(2), fork).unwrap()
    };
    let first = begun(&inventory).unwrap();
    let stored = TimestampTz(first.0 - 5_000_000);
    let held = inventory.timelines.get_mut(&tli(2)).unwrap();
    held.history_stored = Some(stored);
    // Stores tell whole seconds, rounded down.
    assert_eq!(begun(&inventory), Some(TimestampTz(first.0 - 4_000_000)));
    let held = inventory.timelines.get_mut(&tli(2)).unwrap();
    held.history_stored = Some(TimestampTz(first.0 + 5_000_000));
    assert_eq!(begun(&inventory), Some(first));
}

/// Timelines that began at 10, and whose last commit has a fixed answer.
struct Fixed(LastCommit);

impl Activity for Fixed {
    fn begun(&self, _: TimelineId, _: Lsn) -> Result<Option<TimestampTz>> {
        Ok(Some(TimestampTz(10)))
    }

    fn last_behind(&self, _: TimelineId, _: Lsn, _: TimestampTz) -> Result<LastCommit> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_timeline_whose_wal_cannot_be_read_may_go_on_beside_the_newest() {
    let mut tree = Tree::default();
    let root = History::root(tli(1));
    tree.insert(tli(1), Some(root.clone()));
    tree.insert(tli(2), Some(root.child(tli(2), Lsn(100), b"x")));
    let decided = |last: LastCommit| {
        let cluster = decide(&tree, &Decisions::default(), &Fixed(last)).unwrap();
        match cluster.verdict {
            Verdict::Decided { timeline, .. } => Some(timeline),
            Verdict::Undecided { .. } => None,
        }
    };
    assert_eq!(decided(LastCommit::Unknown("damaged".into())), None);
    assert_eq!(decided(LastCommit::None), Some(tli(2)));
    // Commits that both may have at the very moment of the fork are no going on.
    assert_eq!(decided(LastCommit::At(TimestampTz(10))), Some(tli(2)));
    assert_eq!(decided(LastCommit::At(TimestampTz(11))), None);
}

/// The warnings of a plan on the latest timeline, which is 2.
fn warned(w: &World, target: Target) -> Vec<String> {
    let target = RecoveryTarget {
        target,
        inclusive: Inclusive::Yes,
        timeline: TargetTimeline::Latest,
    };
    let far = TimestampTz(i64::MAX - 1);
    let plan = super::plan(&w.inventory(), w, &target, &Options::default(), far).unwrap();
    assert!(plan.reachable && plan.target_timeline == Some(tli(2)));
    plan.warnings
}

#[test]
fn a5_a_target_that_the_timeline_that_was_left_cannot_mean_is_not_looked_for_there() {
    let mut w = World::new();
    w.backup(tli(1), |_| {});
    let shared = w.commit(tli(1), true);
    let at = w.records[&tli(1)].len() - 1;
    let fork = w.tick(5_000_000);
    w.commit(tli(1), true);
    let left = w.tick(0);
    w.switch(tli(1));
    w.branch(tli(1), at);
    w.commit(tli(2), true);
    w.switch_and_archive(tli(2));
    // Before timeline 1 had a commit of its own, there is nothing of it to be meant.
    assert_eq!(warned(&w, Target::Time(fork)), Vec::<String>::new());
    assert_eq!(warned(&w, Target::Time(left)).len(), 1);
    // The transaction lies before the fork: on both timelines it is one and the same.
    let shared = Target::Xid(shared.to_string().parse().unwrap());
    assert_eq!(warned(&w, shared), Vec::<String>::new());
}
