//! Holes in the WAL of timelines, by what is stored and what is recorded as lost.

use super::base::lies_on;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::{History, TimelineId};
use crate::wal::inventory::{Backup, Inventory, Timeline};
use crate::wal::path::Path;

/// WAL that is missing on a timeline between other WAL that is there, or known to be lost.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    pub timeline: TimelineId,
    /// First position that is missing.
    pub from_lsn: Lsn,
    /// First position that is there again.
    pub to_lsn: Lsn,
    /// How many segments are missing, wholly or in part.
    pub segments: u64,
}

/// Returns every hole in the WAL of the timelines, by the listing and the recorded losses.
///
/// On each timeline all segments between its first and its last must be there. A timeline with WAL of its own also
/// needs those of every ancestor, up to where its path leaves it. A hole that expiry left on purpose is no gap. `from`
/// leaves out the WAL before it, which no backup needs any more.
pub fn gaps(inventory: &Inventory, from: Lsn) -> Vec<Gap> {
    let size = inventory.segment_size;
    let mut gaps = Vec::new();
    for (id, timeline) in &inventory.timelines {
        let holes = holes(inventory, *id, timeline, from).into_iter();
        for hole in holes.filter(|hole| !is_deliberate(inventory, *id, *hole)) {
            let first = SegmentNumber::of(hole.start, size);
            gaps.push(Gap {
                timeline: *id,
                from_lsn: hole.start,
                to_lsn: hole.end,
                segments: SegmentNumber::ending_at(hole.end, size).0 + 1 - first.0,
            });
        }
    }
    gaps
}

/// The holes of a timeline by the listing and the recorded losses, ascending.
fn holes(inventory: &Inventory, id: TimelineId, timeline: &Timeline, from: Lsn) -> Vec<LsnRange> {
    let size = inventory.segment_size;
    let lost = timeline.lost.iter().copied();
    let mut holes: Vec<LsnRange> = lost.filter(|lost| lost.end > from).collect();
    if let Some((first, last)) = expected_span(inventory, id, timeline) {
        let first = first.max(SegmentNumber::of(from, size));
        holes.extend(listed_holes(timeline, first, last, size));
    }
    holes.sort_unstable_by_key(|h| h.start);
    joined(holes)
}

/// The holes of a timeline that expiry made on purpose: no backup needs WAL of them any more.
pub fn let_go(inventory: &Inventory, id: TimelineId) -> Vec<LsnRange> {
    let timeline = inventory.timelines.get(&id);
    let holes = timeline.map(|timeline| holes(inventory, id, timeline, Lsn(0)));
    let mut holes = holes.unwrap_or_default();
    holes.retain(|hole| is_deliberate(inventory, id, *hole));
    holes
}

/// Whether a segment that is not stored costs nothing: no backup leads to it, or it lies in a hole that expiry made on purpose.
pub fn is_needless(inventory: &Inventory, name: SegmentName) -> bool {
    let (size, id) = (inventory.segment_size, name.timeline);
    let (Ok(number), Ok(history)) = (name.number(size), inventory.history(id)) else {
        return false;
    };
    let leads = |b: &Backup| lies_on(&history, b) || b.start_timeline == id;
    let begins = |b: &Backup| SegmentNumber::of(b.start_lsn, size) <= number;
    if !inventory.backups.iter().any(|b| leads(b) && begins(b)) {
        return true;
    }
    let timeline = inventory.timelines.get(&id);
    let span = timeline.and_then(|timeline| expected_span(inventory, id, timeline));
    let (Some(timeline), Some((first, last))) = (timeline, span) else {
        return false;
    };
    let at = number.start_lsn(size);
    let holes = listed_holes(timeline, first, last, size);
    let mut around = holes.into_iter().filter(|h| h.start <= at && at < h.end);
    around.any(|hole| is_deliberate(inventory, id, hole))
}

/// Whether expiry left a hole: the recorded one behind a backup, or one from a pinned backup to the start of another. It leaves none
/// that takes WAL which a backup needs itself. The recorded one may begin on an ancestor: each timeline has a part of it then.
fn is_deliberate(inventory: &Inventory, timeline: TimelineId, hole: LsnRange) -> bool {
    let size = inventory.segment_size;
    let Ok(history) = inventory.history(timeline) else {
        return false;
    };
    let path = Path::new(history.clone(), size);
    let first = SegmentNumber::of(hole.start, size);
    let is_start = |b: &Backup| SegmentNumber::of(b.start_lsn, size).start_lsn(size) == hole.end;
    let ends = inventory.backups.iter().any(is_start);
    let leading = || inventory.backups.iter().filter(|b| lies_on(&history, b));
    let end = |b: &Backup| b.consistent_lsn.max(b.stop_lsn);
    let is_needed_from = |begin| leading().any(|b| b.start_lsn < hole.end && end(b) > begin);
    let is_trimmed = |b: &Backup| {
        let reach = path.reach(b.start_lsn, inventory);
        let begin = SegmentNumber::of(reach, size);
        let is_recorded = path.name(begin).is_some_and(|name| b.trimmed.begins(name));
        let next = || path.next_there(begin.next(), inventory);
        let is_of_it = || begin == first || begin < first && next().is_none_or(|next| next > first);
        is_recorded && is_of_it() && !is_needed_from(reach)
    };
    leading().any(|b| {
        let behind = SegmentNumber::ending_at(end(b), size).next();
        !b.trimmed.is_empty() && is_trimmed(b)
            || ends
                && !b.pins.is_empty()
                && behind.start_lsn(size) == hole.start
                && !is_needed_from(hole.start)
    })
}

/// The first and the last segment of a timeline between which all must be there.
fn expected_span(
    inventory: &Inventory,
    id: TimelineId,
    timeline: &Timeline,
) -> Option<(SegmentNumber, SegmentNumber)> {
    let size = inventory.segment_size;
    let history = inventory.history(id).ok();
    let needed = |child: &TimelineId| -> Option<SegmentNumber> {
        let own = inventory.timelines.get(child)?;
        let path = inventory.history(*child).ok()?.path();
        // A parent whose switch lies behind the next one holds nothing on the way.
        let stretch = path.iter().find(|i| i.timeline == id && *child != id)?;
        let left = SegmentNumber::of(stretch.range.end, size);
        let before = left.0.checked_sub(1)?;
        (!own.is_empty()).then_some(SegmentNumber(before))
    };
    let bounds = timeline.bounds();
    let begin = match history.as_ref().and_then(History::parent) {
        Some((_, switch)) => Some(SegmentNumber::of(switch, size)),
        None => bounds.map(|(first, _)| first),
    };
    let last = inventory
        .timelines
        .keys()
        .filter_map(needed)
        .chain(bounds.map(|(_, last)| last))
        .max();
    begin.zip(last)
}

fn listed_holes(
    timeline: &Timeline,
    first: SegmentNumber,
    last: SegmentNumber,
    size: SegmentSize,
) -> Vec<LsnRange> {
    let mut holes = Vec::new();
    let mut at = first;
    while at <= last {
        let range = at.range(size);
        if let Some(reach) = timeline.tails.get(&at) {
            // The WAL that follows the last one has not come yet.
            if *reach < range.end && at < last {
                holes.push(LsnRange {
                    start: (*reach).max(range.start),
                    end: range.end,
                });
            }
            at = at.next();
            continue;
        }
        let run = timeline
            .segments
            .iter()
            .find(|(begin, end)| *begin <= at && at <= *end);
        if let Some((_, end)) = run {
            at = end.next();
            continue;
        }
        let until = timeline.next_from(at).unwrap_or(last.next());
        let until = until.min(last.next());
        holes.push(LsnRange {
            start: range.start,
            end: until.start_lsn(size),
        });
        at = until;
    }
    holes
}

/// Ranges that touch or overlap become one.
fn joined(ascending: Vec<LsnRange>) -> Vec<LsnRange> {
    let mut joined: Vec<LsnRange> = Vec::new();
    for range in ascending {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::super::model::{World, tli};
    use super::*;
    use crate::repo::trimmed::Trimmed;

    const MIB: u64 = 1 << 20;

    /// The WAL of timeline 1, and of timeline 3 behind a timeline 2 without any, by the switches to 2 and 3.
    fn world(second: u64, third: u64) -> World {
        let mut w = World::new();
        let middle = w.histories[&tli(1)].child(tli(2), Lsn(second), b"promoted");
        let last = middle.child(tli(3), Lsn(third), b"promoted");
        w.histories.extend([(tli(2), middle), (tli(3), last)]);
        w.files.extend([tli(2), tli(3)]);
        let size = w.size;
        let name = |timeline, number: u64| SegmentNumber(number).name(tli(timeline), size).unwrap();
        w.archived.extend((1..=4).map(|number| name(1, number)));
        w.archived.extend((9..=12).map(|number| name(3, number)));
        w
    }

    fn gap(timeline: u32, from: u64, to: u64) -> Gap {
        Gap {
            timeline: tli(timeline),
            from_lsn: Lsn(from * MIB),
            to_lsn: Lsn(to * MIB),
            segments: to - from,
        }
    }

    #[test]
    fn x51_a_hole_behind_a_backup_is_a_gap_unless_it_is_the_recorded_one() {
        let mut w = World::new();
        w.backup(tli(1), |_| {});
        let size = w.size;
        let name = |number: u64| SegmentNumber(number).name(tli(1), size).unwrap();
        w.archived = (1..=4).chain(8..=12).map(name).collect();
        let backup = &mut w.backups[0];
        (backup.start_lsn, backup.stop_lsn) = (Lsn(2 * MIB + 40), Lsn(3 * MIB));
        backup.consistent_lsn = backup.stop_lsn;
        let mut with = |trimmed: Trimmed| {
            w.backups[0].trimmed = trimmed;
            gaps(&w.inventory(), Lsn(0))
        };
        assert_eq!(with(Trimmed::at(name(5))), []);
        // The recorded hole never came to be, and this WAL is lost.
        assert_eq!(with(Trimmed::at(name(9))), [gap(1, 5, 8)]);
        assert_eq!(with(Trimmed::default()), [gap(1, 5, 8)]);
    }

    #[test]
    fn x53_wal_that_expire_let_go_is_not_lost() {
        let mut w = World::new();
        w.backup(tli(1), |_| {});
        let size = w.size;
        let name = |number: u64| SegmentNumber(number).name(tli(1), size).unwrap();
        w.archived = (2..=4).chain(8..=12).map(name).collect();
        let backup = &mut w.backups[0];
        (backup.start_lsn, backup.stop_lsn) = (Lsn(2 * MIB + 40), Lsn(3 * MIB));
        backup.consistent_lsn = backup.stop_lsn;
        let needless = |w: &World| {
            let inventory = w.inventory();
            [1, 6, 13].map(|number| is_needless(&inventory, name(number)))
        };
        // The first one lies before every backup, the last one behind all that is stored.
        assert_eq!(needless(&w), [true, false, false]);
        w.backups[0].trimmed = Trimmed::at(name(5));
        assert_eq!(needless(&w), [true, true, false]);
    }

    /// A backup that is kept up to its own end, in segments 2 and 3, and no WAL behind it before segment 9 of timeline 2, which began in segment 6.
    fn let_go_across_a_failover() -> World {
        let mut w = World::new();
        w.backup(tli(1), |_| {});
        let child = w.histories[&tli(1)].child(tli(2), Lsn(6 * MIB + 100), b"promoted");
        w.histories.insert(tli(2), child);
        w.files.insert(tli(2));
        let size = w.size;
        let name = |timeline, number: u64| SegmentNumber(number).name(tli(timeline), size).unwrap();
        w.archived = (2..=4).map(|number| name(1, number)).collect();
        w.archived.extend((9..=12).map(|number| name(2, number)));
        let backup = &mut w.backups[0];
        (backup.start_lsn, backup.stop_lsn) = (Lsn(2 * MIB + 40), Lsn(3 * MIB));
        (backup.checkpoint_lsn, backup.consistent_lsn) = (backup.start_lsn, backup.stop_lsn);
        backup.trimmed = Trimmed::at(name(1, 5));
        w
    }

    #[test]
    fn x55_a_hole_that_expire_made_across_a_failover_is_no_gap() {
        let mut w = let_go_across_a_failover();
        let size = w.size;
        let name = |timeline, number: u64| SegmentNumber(number).name(tli(timeline), size).unwrap();
        let all = |w: &World| gaps(&w.inventory(), Lsn(0));
        let needless = |w: &World| is_needless(&w.inventory(), name(2, 7));
        assert_eq!((all(&w), needless(&w)), (vec![], true));
        // Without the record all of it is lost.
        let both = vec![gap(1, 5, 6), gap(2, 6, 9)];
        let kept = std::mem::take(&mut w.backups[0].trimmed);
        assert_eq!((all(&w), needless(&w)), (both, false));
        w.backups[0].trimmed = kept;
        // WAL that came again ends the hole: what is missing behind it is lost.
        w.archived.insert(name(2, 6));
        assert_eq!(all(&w), [gap(2, 7, 9)]);
        w.archived.insert(name(1, 5));
        assert_eq!(all(&w), [gap(2, 7, 9)]);
        w.archived.remove(&name(2, 6));
        assert_eq!(all(&w), [gap(2, 6, 9)]);
        // A backup that needs WAL of the hole itself.
        let mut w = let_go_across_a_failover();
        let mut other = w.backups[0].clone();
        (other.timeline, other.start_timeline) = (tli(2), tli(2));
        (other.start_lsn, other.stop_lsn) = (Lsn(8 * MIB + 40), Lsn(9 * MIB + 40));
        (other.checkpoint_lsn, other.consistent_lsn) = (other.start_lsn, other.stop_lsn);
        other.trimmed = Trimmed::default();
        w.backups.push(other);
        assert_eq!(all(&w), [gap(2, 6, 9)]);
    }

    #[test]
    fn x56_wal_that_was_lost_in_a_hole_of_expire_is_let_go() {
        let mut w = let_go_across_a_failover();
        let range = |from: u64, to: u64| LsnRange {
            start: Lsn(from * MIB + 40),
            end: Lsn(to * MIB + 80),
        };
        let is_let_go = |w: &World, timeline: u32, lost: LsnRange| {
            let mut inventory = w.inventory();
            let held = inventory.timelines.get_mut(&tli(timeline)).unwrap();
            held.lost.push(lost);
            let holes = let_go(&inventory, tli(timeline));
            holes.iter().any(|hole| hole.holds(lost))
        };
        assert!(is_let_go(&w, 1, range(5, 5)) && is_let_go(&w, 2, range(7, 8)));
        // Nothing is stored of the old server, which went on.
        assert!(is_let_go(&w, 1, range(7, 8)));
        assert!(!is_let_go(&w, 2, range(13, 14)));
        w.backups[0].trimmed = Trimmed::default();
        assert!(!is_let_go(&w, 1, range(5, 5)) && !is_let_go(&w, 2, range(7, 8)));
    }

    #[test]
    fn a_timeline_needs_the_wal_of_every_ancestor() {
        let w = world(9 * MIB + 100, 9 * MIB + 200);
        assert_eq!(gaps(&w.inventory(), Lsn(0)), [gap(1, 5, 9)]);
    }

    #[test]
    fn an_ancestor_is_needed_up_to_where_the_path_leaves_it() {
        // The second timeline was left between.
        let w = world(7 * MIB + 100, 9 * MIB + 200);
        let both = [gap(1, 5, 7), gap(2, 7, 9)];
        assert_eq!(gaps(&w.inventory(), Lsn(0)), both);
        // The second timeline holds nothing: the third left before the switch to it.
        let w = world(20 * MIB + 100, 9 * MIB + 200);
        assert_eq!(gaps(&w.inventory(), Lsn(0)), [gap(1, 5, 9)]);
    }
}
