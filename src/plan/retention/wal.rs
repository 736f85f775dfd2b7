//! Which WAL leads where: timelines, how far WAL reaches without a hole, and what a backup needs of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::{History, Interval, TimelineId};
use crate::repo::event;
use crate::wal::facts::Runs;
use crate::wal::inventory::{HistoryFile, Timeline};
use crate::wal::survey::{Manifest, Survey};

/// The timelines of a cluster and the WAL on them.
pub struct Tree<'a> {
    size: SegmentSize,
    timelines: &'a BTreeMap<TimelineId, Timeline>,
    histories: BTreeMap<TimelineId, History>,
    paths: BTreeMap<TimelineId, Vec<Interval>>,
    suspects: BTreeSet<SegmentName>,
    /// What is not known of the timelines: no WAL may go then.
    pub doubts: Vec<String>,
}

impl<'a> Tree<'a> {
    /// Collects the histories: from their files, and where there is none from the roots of backups.
    pub fn new(survey: &'a Survey) -> Tree<'a> {
        let mut tree = Tree {
            size: survey.segment_size,
            timelines: &survey.timelines,
            histories: BTreeMap::new(),
            paths: BTreeMap::new(),
            suspects: BTreeSet::new(),
            doubts: Vec::new(),
        };
        if survey.has_other_sizes {
            tree.doubts
                .push("the cluster had several segment sizes".to_owned());
        }
        for (id, timeline) in &survey.timelines {
            if let HistoryFile::Known(history) = &timeline.history {
                tree.histories.insert(*id, history.clone());
            }
        }
        for (id, subject) in &survey.ids {
            let Manifest::Committed(root) = &subject.manifest else {
                continue;
            };
            let Some(own) = &root.history else { continue };
            let known = tree
                .histories
                .entry(root.timeline)
                .or_insert_with(|| own.clone());
            if !same_ancestry(known, own) {
                tree.doubts.push(format!(
                    "backup \"{id}\" has another history of timeline {} than the repository",
                    root.timeline.decimal()
                ));
            }
        }
        let mut wanted: BTreeSet<TimelineId> = survey.timelines.keys().copied().collect();
        for subject in survey.ids.values() {
            if let Manifest::Committed(root) = &subject.manifest {
                wanted.insert(root.timeline);
            }
        }
        for id in wanted {
            if tree.histories.contains_key(&id) {
                continue;
            }
            if id != TimelineId::FIRST {
                tree.doubts.push(format!(
                    "the history file of timeline {} is not in the repository",
                    id.decimal()
                ));
            }
            tree.histories.insert(id, History::root(id));
        }
        tree.paths = tree
            .histories
            .iter()
            .map(|(id, h)| (*id, h.path()))
            .collect();
        tree.suspects = survey
            .segment_events
            .iter()
            .filter(|(_, events)| !event::damage(events).is_empty())
            .map(|(name, _)| *name)
            .collect();
        tree
    }

    /// Every timeline of which anything is known.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.paths.keys().copied()
    }

    /// Whether the way to `target` leads through `timeline` just before `lsn`, so that a state there can be rolled forward to it.
    ///
    /// PostgreSQL: src/backend/access/transam/xlogrecovery.c, InitWalRecovery and CheckRecoveryConsistency compare the same positions.
    pub fn leads_through(&self, target: TimelineId, timeline: TimelineId, lsn: Lsn) -> bool {
        let before = Lsn(lsn.0.saturating_sub(1));
        self.histories
            .get(&target)
            .is_some_and(|h| h.holder(before) == timeline)
    }

    fn has(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let runs = &self.timelines.get(&timeline)?.segments;
        let (_, last) = runs
            .iter()
            .find(|(first, last)| *first <= number && number <= *last)?;
        // The run ends before a segment that is known to be damaged.
        let first_suspect = self
            .suspects
            .iter()
            .filter(|s| s.timeline == timeline)
            .filter_map(|s| s.number(self.size).ok())
            .find(|n| *n >= number && *n <= last);
        match first_suspect {
            Some(n) if n == number => None,
            Some(n) => Some(SegmentNumber(n.0 - 1)),
            None => Some(last),
        }
    }

    /// How far a segment of which only a part is stored reaches, as far as names tell.
    fn tail(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Lsn> {
        let is_suspect =
            |s: &SegmentName| s.timeline == timeline && s.number(self.size).ok() == Some(number);
        if self.suspects.iter().any(is_suspect) {
            return None;
        }
        let tails = &self.timelines.get(&timeline)?.tails;
        tails.get(&number).copied()
    }

    /// How far WAL is archived without a hole on the way to `target`, from the segment of `start` on; at most.
    pub fn reach(&self, target: TimelineId, start: Lsn) -> Lsn {
        let Some(path) = self.paths.get(&target) else {
            return Lsn(0);
        };
        let mut number = SegmentNumber::of(start, self.size);
        loop {
            let range = number.range(self.size);
            // Of several timelines in one segment the last one's copy holds the pages of all.
            let last = path
                .iter()
                .rposition(|i| i.range.start < range.end && range.start < i.range.end);
            let Some(interval) = last.and_then(|at| path.get(at)) else {
                return range.start;
            };
            if let Some(run_last) = self.has(interval.timeline, number) {
                // From the segment on in which the next timeline begins, that one's copies are asked for.
                let next = run_last.next();
                let until = SegmentNumber::of(interval.range.end, self.size);
                if interval.range.end == Lsn(u64::MAX) || next < until {
                    return next.start_lsn(self.size);
                }
                number = until;
                continue;
            }
            if let Some(reach) = self.tail(interval.timeline, number) {
                if reach < range.end.min(interval.range.end) {
                    return reach.max(range.start);
                }
                number = number.next();
                continue;
            }
            // Without that copy the one of an ancestor serves as far as it was followed.
            let before = last.into_iter().flat_map(|at| path.iter().take(at).rev());
            return before
                .take_while(|i| i.range.end > range.start)
                .find_map(|i| {
                    if self.has(i.timeline, number).is_some() {
                        return Some(i.range.end);
                    }
                    // A partial is taken for one that reaches the switch point: names do not tell.
                    let reach = self.tail(i.timeline, number)?;
                    let whole = if reach > range.start {
                        reach
                    } else {
                        i.range.end
                    };
                    Some(whole.min(i.range.end))
                })
                .unwrap_or(range.start);
        }
    }

    /// Whether something of a segment is stored on the way to `target`.
    pub fn holds(&self, target: TimelineId, number: SegmentNumber) -> bool {
        let timeline = self.timelines.get(&self.holder(target, number));
        timeline.is_some_and(|t| t.holds(number))
    }

    /// Forgets which segments events call damaged: the caller looks for itself.
    pub fn trust_all(&mut self) {
        self.suspects.clear();
    }

    /// Takes a segment for missing.
    pub fn distrust(&mut self, name: SegmentName) {
        self.suspects.insert(name);
    }

    /// The timeline whose copy of the segment the way to `target` needs.
    pub fn holder(&self, target: TimelineId, number: SegmentNumber) -> TimelineId {
        let range = number.range(self.size);
        self.paths
            .get(&target)
            .and_then(|path| {
                path.iter()
                    .rfind(|i| i.range.start < range.end && range.start < i.range.end)
            })
            .map_or(target, |i| i.timeline)
    }

    /// The first segment at or behind `number` that is there on the way to `target`.
    pub fn next_there(&self, target: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        for interval in self.paths.get(&target)? {
            let end = SegmentNumber::of(interval.range.end, self.size);
            if interval.range.end != Lsn(u64::MAX) && end <= number {
                continue;
            }
            let mut at = SegmentNumber::of(interval.range.start, self.size).max(number);
            let held = self.timelines.get(&interval.timeline)?;
            while let Some(next) = held.next_from(at) {
                if interval.range.end != Lsn(u64::MAX) && next >= end {
                    break;
                }
                if self.has(interval.timeline, next).is_some()
                    || self.tail(interval.timeline, next).is_some()
                {
                    return Some(next);
                }
                at = next.next();
            }
        }
        None
    }

    /// Adds what recovery from a position needs to reach every timeline that leads through it.
    ///
    /// `start` is where replay begins, `stop` the position that a timeline must lead through.
    pub fn need_from(&self, timeline: TimelineId, start: Lsn, stop: Lsn, needed: &mut Needed) {
        for target in self.timelines() {
            if self.leads_through(target, timeline, stop) {
                self.need_path(target, start, Lsn(u64::MAX), needed);
            }
        }
        // Whatever else is known, the timeline itself goes on.
        needed.add(
            timeline,
            SegmentNumber::of(start, self.size),
            SegmentNumber(u64::MAX),
        );
    }

    /// Adds the WAL from `start` to `end` on the way to `target`.
    pub fn need_path(&self, target: TimelineId, start: Lsn, end: Lsn, needed: &mut Needed) {
        for interval in self.paths.get(&target).into_iter().flatten() {
            if interval.range.end <= start || interval.range.start >= end {
                continue;
            }
            let first = SegmentNumber::of(interval.range.start.max(start), self.size);
            let last = match interval.range.end.min(end) {
                Lsn(u64::MAX) => SegmentNumber(u64::MAX),
                // With the segment in which the next timeline begins: it may be the only copy of its first pages.
                lsn => SegmentNumber::ending_at(lsn, self.size),
            };
            needed.add(interval.timeline, first, last);
        }
    }
}

/// The reasons may differ: they are text for people.
fn same_ancestry(a: &History, b: &History) -> bool {
    let bare = |h: &History| -> Vec<(TimelineId, Lsn)> {
        h.ancestors()
            .iter()
            .map(|a| (a.timeline, a.switch_lsn))
            .collect()
    };
    bare(a) == bare(b)
}

/// Segments that something needs, as ranges per timeline.
#[derive(Debug, Default)]
pub struct Needed(BTreeMap<TimelineId, Vec<(u64, u64)>>);

impl Needed {
    fn add(&mut self, timeline: TimelineId, first: SegmentNumber, last: SegmentNumber) {
        self.0.entry(timeline).or_default().push((first.0, last.0));
    }

    /// Whether a segment is needed.
    pub fn contains(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        self.0.get(&timeline).is_some_and(|ranges| {
            ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&number.0))
        })
    }

    /// What of `runs` is not needed, ascending.
    pub fn rest(&self, timeline: TimelineId, runs: &Runs) -> Vec<(SegmentNumber, SegmentNumber)> {
        let mut ranges = self.0.get(&timeline).cloned().unwrap_or_default();
        ranges.sort_unstable();
        let mut rest = Vec::new();
        for (first, last) in runs.iter() {
            let mut at = Some(first.0);
            for (from, to) in &ranges {
                let Some(next) = at else { break };
                if *to < next || *from > last.0 {
                    continue;
                }
                if *from > next {
                    rest.push((SegmentNumber(next), SegmentNumber(from - 1)));
                }
                at = to.checked_add(1).filter(|n| *n <= last.0);
            }
            if let Some(next) = at {
                rest.push((SegmentNumber(next), last));
            }
        }
        rest
    }
}
