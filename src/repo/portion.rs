//! Packs and segments of a scope, of WAL or of a log of Redis, and which of them `pitr verify` read back when (format, section 9).
//!
//! A `checked` event says what one run read whole. Its subject is of its own, so that nobody who decides about timelines or deletes has to read
//! these events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::catalog::Parts;
use super::event::{self, Event, Recorded};
use super::id::{BackupId, PartName};
use super::lives::Move;
use super::runs::Runs;
use super::scope::Scope;
use crate::error::Result;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::store::Store;

/// The subject of `checked` events.
pub const SUBJECT: &str = "checks";
/// The kind of event.
pub const CHECKED: &str = "checked";
/// Most runs of one event: about half of what an event may hold.
const RUNS_MAX: usize = 10_000;

/// Packs, and whole segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Portion {
    /// Packs, by the id that wrote them.
    pub packs: Parts,
    /// Segments, by the timeline in their names.
    pub segments: BTreeMap<TimelineId, Runs>,
    /// Segments of logs, by the replication id of the history.
    pub logs: BTreeMap<String, Runs>,
}

/// A portion as an event has it: runs, each with its first and last number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stated {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    packs: Vec<(String, u32, u32)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    segments: Vec<(u32, u64, u64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    logs: Vec<(String, u64, u64)>,
    /// The last segment of each timeline that was there when the run began, read or not. An event of an older program tells nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<Vec<(u32, u64)>>,
}

/// The last segment of each timeline that a check knew of.
pub type Seen = BTreeMap<TimelineId, SegmentNumber>;

impl Portion {
    /// Returns these packs, and no segment.
    pub fn of_packs(packs: &Parts) -> Portion {
        Portion {
            packs: packs.clone(),
            ..Portion::default()
        }
    }

    /// The segments of a timeline that moved.
    fn behind(moved: &Move) -> Portion {
        let run = (moved.first, SegmentNumber(u64::MAX));
        Portion {
            segments: BTreeMap::from([(moved.timeline, Runs::from_runs(vec![run]))]),
            ..Portion::default()
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        let mut segments = self.segments.values().chain(self.logs.values());
        self.packs.values().all(Runs::is_empty) && segments.all(Runs::is_empty)
    }

    /// Joins two portions.
    #[must_use]
    pub fn union(&self, other: &Portion) -> Portion {
        Portion {
            packs: each(&self.packs, &other.packs, |a, b| a.clone().union(b.clone())),
            segments: each(&self.segments, &other.segments, |a, b| {
                a.clone().union(b.clone())
            }),
            logs: each(&self.logs, &other.logs, |a, b| a.clone().union(b.clone())),
        }
    }

    /// Returns the packs and segments that are here and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Portion) -> Portion {
        Portion {
            packs: each(&self.packs, &other.packs, Runs::minus),
            segments: each(&self.segments, &other.segments, Runs::minus),
            logs: each(&self.logs, &other.logs, Runs::minus),
        }
    }

    /// Returns the packs and segments that are in both.
    #[must_use]
    pub fn common(&self, other: &Portion) -> Portion {
        self.minus(&self.minus(other))
    }

    /// How many packs, and how many segments.
    pub fn counts(&self) -> (u64, u64) {
        let packs = self.packs.values().map(Runs::count).sum();
        let segments = self.segments.values().chain(self.logs.values());
        (packs, segments.map(Runs::count).sum())
    }

    /// The bodies of events that say all of it.
    pub fn stated(&self) -> Vec<Stated> {
        let packs = self.packs.iter().flat_map(|(id, runs)| {
            let number = |n: SegmentNumber| u32::try_from(n.0).unwrap_or(u32::MAX);
            runs.iter()
                .map(move |(a, b)| (id.to_string(), number(a), number(b)))
        });
        let segments = self
            .segments
            .iter()
            .flat_map(|(timeline, runs)| runs.iter().map(|(a, b)| (timeline.get(), a.0, b.0)));
        let logs = self.logs.iter().flat_map(|(replid, runs)| {
            runs.iter()
                .map(move |(first, last)| (replid.clone(), first.0, last.0))
        });
        let (packs, segments): (Vec<_>, Vec<_>) = (packs.collect(), segments.collect());
        let logs: Vec<_> = logs.collect();
        if packs.len() + segments.len() + logs.len() <= RUNS_MAX {
            let all = Stated {
                packs,
                segments,
                logs,
                seen: None,
            };
            return Some(all)
                .filter(|s| *s != Stated::default())
                .into_iter()
                .collect();
        }
        let of_packs = packs.chunks(RUNS_MAX).map(|packs| Stated {
            packs: packs.to_vec(),
            ..Stated::default()
        });
        let of_segments = segments.chunks(RUNS_MAX).map(|segments| Stated {
            segments: segments.to_vec(),
            ..Stated::default()
        });
        let of_logs = logs.chunks(RUNS_MAX).map(|logs| Stated {
            logs: logs.to_vec(),
            ..Stated::default()
        });
        of_packs.chain(of_segments).chain(of_logs).collect()
    }
}

impl Stated {
    /// Adds what the run knew of. More timelines than an event can hold are left out: then nothing counts as newer.
    #[must_use]
    pub fn seeing(mut self, seen: Option<&Seen>) -> Stated {
        let seen = seen.filter(|seen| seen.len() <= RUNS_MAX);
        self.seen = seen.map(|seen| seen.iter().map(|(t, last)| (t.get(), last.0)).collect());
        self
    }

    fn seen(&self) -> Option<Seen> {
        let stated = self.seen.as_ref()?.iter();
        let known =
            stated.filter_map(|(t, last)| Some((TimelineId::new(*t)?, SegmentNumber(*last))));
        Some(known.collect())
    }

    /// Returns the portion that it states. An impossible run states nothing: at worst, something is read again.
    pub fn portion(&self) -> Portion {
        let mut portion = Portion::default();
        for (id, first, last) in self.packs.iter().filter(|(_, a, b)| a <= b) {
            if let Ok(id) = id.parse::<BackupId>() {
                add(&mut portion.packs, id, (*first).into(), (*last).into());
            }
        }
        for (timeline, first, last) in self.segments.iter().filter(|(_, a, b)| a <= b) {
            if let Some(timeline) = TimelineId::new(*timeline) {
                add(&mut portion.segments, timeline, *first, *last);
            }
        }
        for (replid, first, last) in self.logs.iter().filter(|(_, a, b)| a <= b) {
            add(&mut portion.logs, replid.clone(), *first, *last);
        }
        portion
    }
}

fn add<K: Ord>(to: &mut BTreeMap<K, Runs>, key: K, first: u64, last: u64) {
    let run = Runs::from_runs(vec![(SegmentNumber(first), SegmentNumber(last))]);
    let runs = to.entry(key).or_default();
    *runs = std::mem::take(runs).union(run);
}

fn each<K: Ord + Clone>(
    a: &BTreeMap<K, Runs>,
    b: &BTreeMap<K, Runs>,
    with: impl Fn(&Runs, &Runs) -> Runs,
) -> BTreeMap<K, Runs> {
    let none = Runs::default();
    let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(k)));
    let joined = keys.map(|key| {
        let runs = with(a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
        (key.clone(), runs)
    });
    joined.filter(|(_, runs)| !runs.is_empty()).collect()
}

/// A portion under construction.
#[derive(Debug, Default)]
pub struct Gathered {
    packs: BTreeMap<BackupId, Vec<u64>>,
    segments: BTreeMap<TimelineId, Vec<u64>>,
    logs: BTreeMap<String, Vec<u64>>,
}

impl Gathered {
    /// Adds a pack.
    pub fn pack(&mut self, part: &PartName) {
        let of = self.packs.entry(part.id.clone()).or_default();
        of.push(part.number.into());
    }

    /// Adds a segment.
    pub fn segment(&mut self, timeline: TimelineId, number: SegmentNumber) {
        self.segments.entry(timeline).or_default().push(number.0);
    }

    /// Adds a segment of a log.
    pub fn log(&mut self, replid: &str, number: SegmentNumber) {
        match self.logs.get_mut(replid) {
            Some(numbers) => numbers.push(number.0),
            None => {
                self.logs.insert(replid.to_owned(), vec![number.0]);
            }
        }
    }

    /// Everything that was added.
    pub fn portion(self) -> Portion {
        Portion {
            packs: runs(self.packs),
            segments: runs(self.segments),
            logs: runs(self.logs),
        }
    }
}

fn runs<K: Ord>(numbers: BTreeMap<K, Vec<u64>>) -> BTreeMap<K, Runs> {
    let all = numbers.into_iter();
    all.map(|(key, numbers)| (key, Runs::from_numbers(numbers)))
        .collect()
}

/// One run: when, the name of its event, what it read, and what it knew of.
type Run = (TimestampTz, String, Portion, Option<Seen>);

/// When what was read back, newest first.
#[derive(Debug, Clone, Default)]
pub struct ReadBack(Vec<Run>);

impl ReadBack {
    /// Collects the portions that the `checked` events among `events` state. A segment that moved to another home since
    /// it was read counts as not read.
    pub fn new(events: &[Recorded], moves: &[Move], now: TimestampTz) -> ReadBack {
        let checked = events
            .iter()
            .filter(|e| e.event.event == CHECKED && e.counts());
        let mut all: Vec<_> = checked
            .filter_map(|e| {
                let stated = e.event.portion.as_ref()?;
                let (portion, seen) = (stated.portion(), stated.seen());
                let at = e.event.time.min(e.stored);
                let moved = moves.iter().filter(|m| m.time >= at);
                let portion = moved.fold(portion, |left, m| left.minus(&Portion::behind(m)));
                Some((e.since(now), e.name.clone(), portion, seen))
            })
            .collect();
        all.sort_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
        ReadBack(all)
    }

    /// Leaves what was read since a moment.
    #[must_use]
    pub fn since(mut self, since: TimestampTz) -> ReadBack {
        self.0.retain(|(time, ..)| *time >= since);
        self
    }

    /// When something was last read.
    pub fn newest(&self) -> Option<TimestampTz> {
        self.0.iter().map(|(time, ..)| *time).max()
    }

    /// The newest segment of each timeline that a run knew of; none where no run tells. A timeline that is not in it came later.
    pub fn seen(&self) -> Option<Seen> {
        let runs = self.0.iter().filter_map(|(.., seen)| seen.as_ref());
        runs.fold(None, |all, seen| {
            let mut all: Seen = all.unwrap_or_default();
            for (timeline, last) in seen {
                let known = all.entry(*timeline).or_insert(*last);
                *known = (*last).max(*known);
            }
            Some(all)
        })
    }

    /// Adds what was read just now.
    #[must_use]
    pub fn and(mut self, now: TimestampTz, portion: Portion) -> ReadBack {
        self.0.insert(0, (now, String::new(), portion, None));
        self
    }

    /// Everything that was read back at any time.
    pub fn all(&self) -> Portion {
        let portions = self.0.iter().map(|(_, _, portion, _)| portion);
        portions.fold(Portion::default(), |all, one| all.union(one))
    }

    /// Divides what is there by the time at which it was last read: first what never was, then the oldest.
    pub fn by_age(&self, there: &Portion) -> Vec<(Option<TimestampTz>, Portion)> {
        let mut rest = there.clone();
        let mut ages = Vec::new();
        for (time, _, portion, _) in &self.0 {
            let read = rest.common(portion);
            if !read.is_empty() {
                rest = rest.minus(&read);
                ages.push((Some(*time), read));
            }
        }
        if !rest.is_empty() {
            ages.push((None, rest));
        }
        ages.reverse();
        ages
    }

    /// The events that tell nothing any more: all that is left of what they name was read again later.
    pub fn superseded(&self, there: &Portion) -> Vec<&str> {
        let mut newer = Portion::default();
        let mut old = Vec::new();
        for (_, name, portion, _) in &self.0 {
            let told = portion.common(there);
            match told.minus(&newer).is_empty() {
                true => old.push(name.as_str()),
                false => newer = newer.union(&told),
            }
        }
        old
    }
}

/// How much of what is there was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Share {
    /// Packs that are there.
    pub packs: u64,
    /// Packs among them that were read back.
    pub packs_read: u64,
    /// Segments that are there, of WAL or of a log.
    pub segments: u64,
    /// Segments among them that were read back.
    pub segments_read: u64,
    /// When that of it was read which was read longest ago.
    pub oldest: Option<TimestampTz>,
}

impl Share {
    /// Whether everything was read back at some time.
    pub fn is_complete(&self) -> bool {
        (self.packs_read, self.segments_read) == (self.packs, self.segments)
    }

    /// Counts what is there.
    pub fn of(read_back: &ReadBack, there: &Portion) -> Share {
        let ages = read_back.by_age(there);
        let read = ages.iter().filter(|(time, _)| time.is_some());
        let (packs, segments) = there.counts();
        let (packs_read, segments_read) = read.fold((0, 0), |(packs, segments), (_, portion)| {
            let (more, more_segments) = portion.counts();
            (packs + more, segments + more_segments)
        });
        Share {
            packs,
            packs_read,
            segments,
            segments_read,
            oldest: ages.iter().find_map(|(time, _)| *time),
        }
    }
}

/// Reads the events of a scope that say what was read back. Damaged ones, and those in a bad sector, say nothing: the worst of it is that everything is read again.
///
/// # Errors
/// Errors of the store.
pub fn events(store: &dyn Store, scope: &Scope) -> Result<Vec<Recorded>> {
    match event::read_all(store, scope, SUBJECT) {
        Err(e) if e.is_lost() => Ok(Vec::new()),
        read => read,
    }
}

/// The event that says that `stated` was read.
pub fn checked(event: Event, stated: Stated) -> Event {
    Event {
        portion: Some(stated),
        ..event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portion(packs: &[u64], segments: &[u64]) -> Portion {
        let mut gathered = Gathered::default();
        for number in packs {
            gathered.pack(&PartName {
                id: "20261120T064049Z-full".parse().unwrap(),
                number: u32::try_from(*number).unwrap(),
            });
        }
        for number in segments {
            gathered.segment(TimelineId::FIRST, SegmentNumber(*number));
        }
        gathered.portion()
    }

    fn checked_at(seconds: i64, portion: &Portion) -> Recorded {
        let [stated] = &portion.stated()[..] else {
            panic!("one event says all of it");
        };
        let event = Event {
            event: CHECKED.to_owned(),
            subject: SUBJECT.to_owned(),
            time: TimestampTz(seconds * 1_000_000),
            ..Event::default()
        };
        Recorded {
            name: format!("{seconds}"),
            event: checked(event, stated.clone()),
            stored: TimestampTz(seconds * 1_000_000),
            is_doubted: false,
        }
    }

    #[test]
    fn what_was_never_read_comes_first_and_then_what_was_read_longest_ago() {
        let events = [
            checked_at(10, &portion(&[0, 1, 2], &[7, 8])),
            checked_at(20, &portion(&[2, 3], &[8])),
        ];
        let read = ReadBack::new(&events, &[], TimestampTz(100_000_000));
        let there = portion(&[1, 2, 3, 4], &[8, 9]);
        let at = |seconds: i64| Some(TimestampTz(seconds * 1_000_000));
        let expected = vec![
            (None, portion(&[4], &[9])),
            (at(10), portion(&[1], &[])),
            (at(20), portion(&[2, 3], &[8])),
        ];
        assert_eq!(read.by_age(&there), expected);
        assert_eq!(read.all(), portion(&[0, 1, 2, 3], &[7, 8]));
        let share = Share {
            packs: 4,
            packs_read: 3,
            segments: 2,
            segments_read: 1,
            oldest: at(10),
        };
        assert_eq!(Share::of(&read, &there), share);
    }

    #[test]
    fn a_segment_of_which_another_life_is_followed_since_was_not_read() {
        let moved = |first: u64, seconds: i64| Move {
            timeline: TimelineId::FIRST,
            first: SegmentNumber(first),
            time: TimestampTz(seconds * 1_000_000),
        };
        let events = [
            checked_at(10, &portion(&[1], &[7, 8, 9])),
            checked_at(30, &portion(&[], &[9])),
        ];
        let read = |moves: &[Move]| ReadBack::new(&events, moves, TimestampTz(100_000_000)).all();
        assert_eq!(read(&[moved(8, 5)]), portion(&[1], &[7, 8, 9]));
        assert_eq!(read(&[moved(8, 20)]), portion(&[1], &[7, 9]));
        assert_eq!(read(&[moved(8, 20), moved(9, 40)]), portion(&[1], &[7]));
    }

    #[test]
    fn an_event_goes_when_everything_that_is_left_of_it_was_read_again() {
        let events = [
            checked_at(10, &portion(&[0, 1], &[])),
            checked_at(20, &portion(&[1, 2], &[])),
            checked_at(30, &portion(&[3], &[])),
        ];
        let read = ReadBack::new(&events, &[], TimestampTz(100_000_000));
        assert_eq!(read.superseded(&portion(&[0, 1, 2, 3], &[])), [""; 0]);
        assert_eq!(read.superseded(&portion(&[1, 2, 3], &[])), ["10"]);
        assert_eq!(read.superseded(&portion(&[3], &[])), ["20", "10"]);
    }

    #[test]
    fn what_nobody_can_have_read_says_nothing() {
        let text =
            r#"{"packs":[["x",0,1],["20261120T064049Z-full",5,4]],"segments":[[0,1,2],[1,9,8]]}"#;
        let stated: Stated = serde_json::from_str(text).unwrap();
        assert!(stated.portion().is_empty());
    }

    #[test]
    fn y45_the_newest_segments_that_runs_knew_of_are_those_of_all_runs() {
        let seen = |all: &[(u32, u64)]| -> Seen {
            let one = |(t, last): &(u32, u64)| (TimelineId::new(*t).unwrap(), SegmentNumber(*last));
            all.iter().map(one).collect()
        };
        let at = |seconds, known: Option<&Seen>| {
            let mut recorded = checked_at(seconds, &portion(&[1], &[7]));
            let stated = recorded.event.portion.take().unwrap().seeing(known);
            let text = serde_json::to_string(&stated).unwrap();
            assert_eq!(text.contains("seen"), known.is_some(), "{text}");
            recorded.event.portion = Some(serde_json::from_str(&text).unwrap());
            recorded
        };
        let of = |events: &[Recorded]| ReadBack::new(events, &[], TimestampTz(100_000_000)).seen();
        let events = [
            at(10, Some(&seen(&[(1, 9), (2, 4)]))),
            at(20, Some(&seen(&[(1, 8)]))),
            at(30, None),
        ];
        assert_eq!(of(&events), Some(seen(&[(1, 9), (2, 4)])));
        assert_eq!(of(&[at(10, None)]), None);
        assert_eq!(of(&[at(10, Some(&Seen::new()))]), Some(Seen::new()));
    }

    proptest::proptest! {
        #[test]
        fn a_portion_comes_back_from_its_events(
            packs in proptest::collection::btree_set(0u64..60, 0..40),
            segments in proptest::collection::btree_set(0u64..60, 0..40),
        ) {
            let numbers = |set: &std::collections::BTreeSet<u64>| set.iter().copied().collect::<Vec<_>>();
            let whole = portion(&numbers(&packs), &numbers(&segments));
            let stated = whole.stated();
            let back = stated.iter().map(Stated::portion).fold(Portion::default(), |all, one| all.union(&one));
            proptest::prop_assert_eq!(back, whole);
        }
    }
}
