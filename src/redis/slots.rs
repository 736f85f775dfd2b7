//! Whether one moment of all shards of a cluster is exact: what is known of their slots around it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::nodes::joined;
use crate::pg::time::TimestampTz;
use crate::repo::slot_map::{APART_MAX, Range, SLOT_MAX, Seen, SlotMap, shown};

/// Slots that were on their way between shards at the moment, or changed their owner then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// The slots, such as `0-99,105`.
    pub slots: String,
    /// The shards, as far as they are known.
    pub shards: Vec<String>,
    /// The last time at which they had not begun to move.
    pub from: TimestampTz,
    /// The first time at which they had moved.
    pub to: TimestampTz,
}

/// The reason why nothing is known of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Nobody looked at its slots.
    Unwatched,
    /// A clock was set back, or two receivers looked.
    ClockSetBack,
    /// Its server may have moved slots by itself, which was not asked.
    MigrationsUnseen,
    /// Nothing came from its server: what came later may have been written before.
    Silent,
}

/// A time in which something is not known of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doubt {
    pub shard: String,
    /// The reason.
    pub why: Why,
    /// The beginning.
    pub from: TimestampTz,
    /// The end, or the moment.
    pub to: TimestampTz,
}

/// The reasons why a moment is not exact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Slots {
    pub moved: Vec<Move>,
    /// Times of which something is not known.
    pub doubts: Vec<Doubt>,
    /// Slots that no shard owned.
    pub missing: String,
    /// Slots that two shards owned.
    pub twice: String,
}

impl Slots {
    /// Whether each key is in one shard, as it was at the moment.
    pub fn is_exact(&self) -> bool {
        *self == Slots::default()
    }
}

/// The maps of a shard around the moment, ascending.
pub type OfShard = (String, Vec<Seen>);

/// Judges the moment by the maps of all shards.
pub fn judge(shards: &[OfShard], moment: TimestampTz) -> Slots {
    let (mut missing, mut twice) = coverage(shards, moment);
    let (moved, slots) = moves(shards, moment);
    // Owners are asked one after the other: slots that move may seem to have none, or two.
    for ranges in [&mut missing, &mut twice] {
        let all = ranges.iter().flat_map(|(first, last)| *first..=*last);
        let other = all.filter(|slot| !slots.contains(slot));
        *ranges = joined(other.map(|slot| (slot, slot)).collect());
    }
    Slots {
        moved,
        doubts: shards.iter().flat_map(|one| doubts(one, moment)).collect(),
        missing: shown(&missing),
        twice: shown(&twice),
    }
}

/// The doubt of a shard from which nothing came between two times, where they are further apart than a server is silent.
pub fn silence(shard: &str, from: TimestampTz, to: TimestampTz) -> Option<Doubt> {
    let is_silent = to.duration_since(from).is_some_and(|time| time > APART_MAX);
    is_silent.then(|| Doubt {
        shard: shard.to_owned(),
        why: Why::Silent,
        from,
        to,
    })
}

fn holds((time, map): &Seen, moment: TimestampTz) -> bool {
    map.since <= moment && moment <= *time
}

/// The map that held at a moment: one that was seen before and behind it, else the last one before.
pub fn at(seen: &[Seen], moment: TimestampTz) -> Option<&SlotMap> {
    let before = || seen.iter().rfind(|(time, _)| *time <= moment);
    let held = seen.iter().rfind(|one| holds(one, moment));
    held.or_else(before).map(|(_, map)| map)
}

/// Slots that no shard owned, and those that two did.
fn coverage(shards: &[OfShard], moment: TimestampTz) -> (Vec<Range>, Vec<Range>) {
    let maps = shards.iter().filter_map(|(_, seen)| at(seen, moment));
    cover(maps.flat_map(|map| map.owned.iter().copied()).collect())
}

/// The slots that are in none of these ranges, and those that are in two.
pub fn cover(mut owned: Vec<Range>) -> (Vec<Range>, Vec<Range>) {
    owned.sort_unstable();
    let (mut missing, mut twice) = (Vec::new(), Vec::new());
    let mut next: u16 = 0;
    for (first, last) in owned {
        if first > next {
            missing.push((next, first - 1));
        }
        if first < next {
            twice.push((first, last.min(next - 1)));
        }
        next = next.max(last + 1);
    }
    if next <= SLOT_MAX {
        missing.push((next, SLOT_MAX));
    }
    (missing, joined(twice))
}

fn doubts((shard, seen): &OfShard, moment: TimestampTz) -> Vec<Doubt> {
    let Some(map) = at(seen, moment) else {
        // It came later: a slot that nobody had is missing.
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut doubt = |why, from: TimestampTz, to: TimestampTz| {
        found.push(Doubt {
            shard: shard.clone(),
            why,
            from,
            to: to.min(moment),
        });
    };
    let begin = moment.saturating_sub(APART_MAX);
    let mut runs: Vec<(TimestampTz, TimestampTz)> =
        seen.iter().map(|(time, map)| (map.since, *time)).collect();
    runs.sort_unstable();
    // A shard without slots needs no look until it has some.
    if !map.owned.is_empty() {
        let mut known = runs.first().map_or(moment, |(since, _)| *since);
        if known > begin {
            doubt(Why::Unwatched, begin, known);
        }
        for (since, time) in &runs {
            let is_apart = *since > known.saturating_add(APART_MAX);
            if is_apart && *since > begin && known < moment {
                doubt(Why::Unwatched, known, *since);
            }
            known = known.max(*time);
        }
        if known < moment {
            doubt(Why::Unwatched, known, moment);
        }
        if !map.atomic_seen {
            doubt(Why::MigrationsUnseen, map.since, moment);
        }
    }
    let is_again = |one: &&Seen| one.1.again && holds(one, moment);
    if let Some((time, map)) = seen.iter().find(is_again) {
        doubt(Why::ClockSetBack, map.since, *time);
        return found;
    }
    // One look alone is that of a backup.
    let mut own = runs
        .iter()
        .filter(|(since, time)| since < time && *since <= moment && moment <= *time);
    if let Some((first, _)) = own.next()
        && let Some((since, time)) = own.find(|(since, _)| since != first)
    {
        doubt(Why::ClockSetBack, *since, *time);
    }
    found
}

/// The shards and the times of a slot that moved.
type Moved<'m> = (BTreeSet<&'m str>, TimestampTz, TimestampTz);

/// The moves that hold the moment, and all their slots.
fn moves(shards: &[OfShard], moment: TimestampTz) -> (Vec<Move>, BTreeSet<u16>) {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (shard, seen) in shards {
        let nodes = seen.iter().flat_map(|(_, map)| &map.nodes);
        owners.extend(nodes.map(|node| (node.as_str(), shard.as_str())));
    }
    let mut moved: BTreeMap<u16, Moved<'_>> = BTreeMap::new();
    // The streams of two shards may be that far apart.
    let mut touch = |slot: u16, shards: &[&'_ str], (from, to): (TimestampTz, TimestampTz)| {
        if from <= moment && moment <= to.saturating_add(APART_MAX) {
            let known = moved.entry(slot).or_insert((BTreeSet::new(), from, to));
            let named = owners.values().filter(|name| shards.contains(*name));
            known.0.extend(named.copied());
            known.1 = known.1.min(from);
            known.2 = known.2.max(to);
        }
    };
    for (shard, seen) in shards {
        let shard = shard.as_str();
        for (n, (time, map)) in seen.iter().enumerate() {
            let before = n.checked_sub(1).and_then(|n| seen.get(n));
            let from = before.map_or(map.since, |(time, _)| map.since.min(*time));
            let to = seen.get(n + 1);
            let to = to.map_or(*time, |(_, next)| next.since.max(*time));
            for (first, last, node) in map.migrating.iter().chain(&map.importing) {
                let other = owners.get(node.as_str()).copied().unwrap_or(shard);
                for slot in *first..=*last {
                    touch(slot, &[shard, other], (from, to));
                }
            }
            if let Some((earlier, before)) = before
                && before.owned != map.owned
            {
                let times = (map.since.min(*earlier), map.since.max(*earlier));
                for slot in all(before).symmetric_difference(&all(map)) {
                    touch(*slot, &[shard], times);
                }
            }
        }
    }
    let slots = moved.keys().copied().collect();
    let mut by_shards: BTreeMap<BTreeSet<&str>, (Vec<Range>, TimestampTz, TimestampTz)> =
        BTreeMap::new();
    for (slot, (shards, from, to)) in moved {
        let known = by_shards.entry(shards).or_insert((Vec::new(), from, to));
        known.0.push((slot, slot));
        known.1 = known.1.min(from);
        known.2 = known.2.max(to);
    }
    let moves = by_shards.into_iter();
    let moves = moves.map(|(shards, (slots, from, to))| Move {
        slots: shown(&joined(slots)),
        shards: shards.into_iter().map(str::to_owned).collect(),
        from,
        to,
    });
    (moves.collect(), slots)
}

fn all(map: &SlotMap) -> BTreeSet<u16> {
    map.owned
        .iter()
        .flat_map(|(first, last)| *first..=*last)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> TimestampTz {
        TimestampTz::from_unix_micros(1_800_000_000_000_000 + second * 1_000_000).unwrap()
    }

    fn seen(node: char, since: i64, at: i64, owned: &[Range]) -> Seen {
        let id = node.to_string().repeat(40);
        let map = SlotMap {
            since: time(since),
            nodes: vec![id.clone()],
            node: id,
            owned: owned.to_vec(),
            atomic_seen: true,
            ..SlotMap::default()
        };
        (time(at), map)
    }

    fn shard(node: char, runs: &[(i64, i64, &[Range])]) -> OfShard {
        let runs = runs
            .iter()
            .map(|(since, at, owned)| seen(node, *since, *at, owned));
        (format!("s.{node}"), runs.collect())
    }

    const LOW: &[Range] = &[(0, 99)];
    const HIGH: &[Range] = &[(100, SLOT_MAX)];

    fn high() -> OfShard {
        shard('b', &[(0, 200, HIGH)])
    }

    fn judged(a: OfShard, moment: i64) -> Slots {
        judge(&[a, high()], time(moment))
    }

    fn holes(a: OfShard, moment: i64) -> Vec<(Why, i64, i64)> {
        let second = |time: TimestampTz| (time.0 - self::time(0).0) / 1_000_000;
        let found = judged(a, moment).doubts.into_iter();
        found
            .map(|one| (one.why, second(one.from), second(one.to)))
            .collect()
    }

    #[test]
    fn slots_that_stay_are_exact() {
        let a = || shard('a', &[(0, 100, LOW), (110, 200, LOW)]);
        for moment in [15, 60, 100, 105, 110, 200] {
            let found = judged(a(), moment);
            assert!(found.is_exact(), "{moment}: {found:?}");
        }
    }

    #[test]
    fn slots_on_their_way_are_named_with_both_shards() {
        let mut a = shard('a', &[(0, 50, LOW), (51, 60, LOW), (61, 200, LOW)]);
        a.1[1].1.migrating = vec![(7, 8, "b".repeat(40))];
        let one = Move {
            slots: "7-8".to_owned(),
            shards: vec!["s.a".to_owned(), "s.b".to_owned()],
            from: time(50),
            to: time(61),
        };
        for (moment, is_exact) in [
            (49, true),
            (50, false),
            (55, false),
            (76, false),
            (77, true),
        ] {
            let found = judged(a.clone(), moment);
            assert_eq!(found.is_exact(), is_exact, "{moment}: {found:?}");
            assert!(is_exact || found.moved == [one.clone()], "{found:?}");
        }
    }

    #[test]
    fn slots_that_moved_between_two_looks_are_named() {
        let a = shard('a', &[(0, 60, LOW), (61, 200, &[(0, 49)])]);
        let b = shard('b', &[(0, 60, HIGH), (61, 200, &[(50, SLOT_MAX)])]);
        let at = |moment: i64| judge(&[a.clone(), b.clone()], time(moment));
        let found = at(70);
        assert_eq!(found.moved.len(), 1, "{found:?}");
        assert_eq!(found.moved[0].slots, "50-99");
        assert_eq!(found.moved[0].shards, ["s.a", "s.b"]);
        assert_eq!(found.moved[0].from, time(60));
        assert_eq!(found.moved[0].to, time(61));
        assert_eq!((found.missing.as_str(), found.twice.as_str()), ("", ""));
        // Between two looks at two owners, too, no slot is missing.
        let b = shard('b', &[(0, 60, HIGH), (63, 200, &[(50, SLOT_MAX)])]);
        let found = judge(&[a.clone(), b], time(62));
        assert_eq!(found.moved.len(), 1, "{found:?}");
        assert_eq!(found.missing, "", "{found:?}");
        // Long before and long behind it is of no matter.
        assert!(at(59).is_exact());
        assert!(at(77).is_exact());
    }

    #[test]
    fn nobody_looked_is_not_nothing_moved() {
        use Why::Unwatched;
        for (runs, moment, hole) in [
            (&[(0, 50, LOW), (66, 200, LOW)][..], 60, Some((50, 60))),
            (&[(0, 50, LOW), (65, 200, LOW)], 60, None),
            (&[(0, 60, LOW)], 61, Some((60, 61))),
            (&[(0, 60, LOW)], 60, None),
            (&[(50, 200, LOW)], 60, Some((45, 50))),
            (&[(0, 20, LOW), (56, 200, LOW)], 70, Some((20, 56))),
        ] {
            let hole: Vec<_> = hole
                .map(|(from, to)| (Unwatched, from, to))
                .into_iter()
                .collect();
            assert_eq!(holes(shard('a', runs), moment), hole);
        }
        // One look of a backup fills nothing.
        let a = shard('a', &[(0, 20, LOW), (50, 50, LOW)]);
        assert_eq!(holes(a, 60), [(Unwatched, 20, 50), (Unwatched, 50, 60)]);
    }

    #[test]
    fn an_hour_that_a_clock_showed_twice_is_not_exact() {
        let a = || shard('a', &[(0, 100, LOW), (40, 200, LOW)]);
        assert_eq!(holes(a(), 30), []);
        assert_eq!(holes(a(), 60), [(Why::ClockSetBack, 40, 60)]);
        assert_eq!(holes(a(), 150), []);
        // That of a backup beside the receiver's is another thing.
        assert_eq!(holes(shard('a', &[(60, 60, LOW), (0, 100, LOW)]), 60), []);
    }

    #[test]
    fn a_server_that_was_silent_leaves_a_doubt() {
        assert_eq!(silence("s.a", time(0), time(15)), None);
        let found = silence("s.a", time(0), time(16)).unwrap();
        assert_eq!((found.why, found.to), (Why::Silent, time(16)));
        // The base is newer than the last mark of the log.
        assert_eq!(silence("s.a", time(20), time(0)), None);
    }

    #[test]
    fn migrations_that_were_not_asked_for_leave_a_doubt() {
        let mut a = shard('a', &[(0, 100, LOW)]);
        a.1[0].1.atomic_seen = false;
        assert_eq!(holes(a, 60), [(Why::MigrationsUnseen, 0, 60)]);
    }

    #[test]
    fn a_shard_that_came_and_one_that_went_were_not_unwatched() {
        let a = shard('a', &[(0, 60, LOW), (61, 61, &[])]);
        let c = shard('c', &[(61, 200, LOW)]);
        let all = [a, high(), c];
        assert!(judge(&all, time(40)).is_exact());
        let found = judge(&all, time(100));
        assert!(found.is_exact(), "{found:?}");
        let found = judge(&all, time(61));
        assert_eq!(found.moved.len(), 1, "{found:?}");
        assert_eq!(found.missing, "", "{found:?}");
    }

    #[test]
    fn slots_of_nobody_and_of_two_are_named() {
        let b = shard('b', &[(0, 200, &[(90, 200), (301, SLOT_MAX)])]);
        let found = judge(&[shard('a', &[(0, 200, LOW)]), b], time(60));
        assert_eq!(found.missing, "201-300");
        assert_eq!(found.twice, "90-99");
    }
}
