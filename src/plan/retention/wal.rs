//! Which WAL leads where: timelines, how far WAL reaches without a hole, and what a backup needs of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::{History, TimelineId};
use crate::repo::catalog::Manifest;
use crate::repo::id::BackupId;
use crate::repo::runs::Runs;
use crate::repo::trimmed::Trimmed;
use crate::wal::inventory::{HistoryFile, Timeline};
use crate::wal::path::{Listing, Path};
use crate::wal::survey::{Root, Survey};

/// The paths to all timelines of a cluster, and the WAL on them.
pub struct Paths<'a> {
    size: SegmentSize,
    timelines: &'a BTreeMap<TimelineId, Timeline>,
    paths: BTreeMap<TimelineId, Path>,
    suspects: BTreeSet<SegmentName>,
    /// The timelines that do not go on from a backup, by its end: see [`Root::strays`](crate::wal::survey::Root::strays).
    strays: BTreeSet<(TimelineId, TimelineId, Lsn)>,
    unsure: BTreeSet<(TimelineId, TimelineId, Lsn)>,
    /// Unknown facts about the timelines: no WAL may go while there are any.
    pub doubts: Vec<String>,
}

impl<'a> Paths<'a> {
    /// Collects the histories: from their files, and where there is none from the roots of backups.
    pub fn new(survey: &'a Survey) -> Paths<'a> {
        let mut doubts = Vec::new();
        if survey.has_other_sizes {
            doubts.push("the cluster had several segment sizes".to_owned());
        }
        let size = survey.segment_size;
        let histories = histories(survey, &mut doubts);
        Paths {
            size,
            timelines: &survey.timelines,
            paths: histories
                .into_iter()
                .map(|(id, history)| (id, Path::new(history, size)))
                .collect(),
            suspects: survey.suspects(),
            strays: on_paths(survey, |root| root.strays.keys().copied().collect()),
            unsure: on_paths(survey, |root| root.unsure.clone()),
            doubts,
        }
    }

    /// Every timeline of which anything is known.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.paths.keys().copied()
    }

    /// See [`Path::leads_through`]. From the end of a backup a timeline goes on that has the backup's own WAL up to there.
    pub fn leads_through(&self, target: TimelineId, timeline: TimelineId, lsn: Lsn) -> bool {
        let path = self.paths.get(&target);
        path.is_some_and(|path| path.leads_through(timeline, lsn))
            && !self.strays.contains(&(target, timeline, lsn))
    }

    /// The same, where also the copy that `target` has of the backup's last segment is known to be of its life, or none is there.
    pub fn surely_leads_through(&self, target: TimelineId, timeline: TimelineId, lsn: Lsn) -> bool {
        self.leads_through(target, timeline, lsn) && !self.unsure.contains(&(target, timeline, lsn))
    }

    /// How far WAL is archived without a hole on the way to `target`, from the segment of `start` on; at most.
    pub fn reach(&self, target: TimelineId, start: Lsn) -> Lsn {
        let path = self.paths.get(&target);
        path.map_or(Lsn(0), |path| path.reach(start, self))
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
        let path = self.paths.get(&target);
        path.map_or(target, |path| path.holder(number))
    }

    /// The first segment at or behind `number` that is there on the way to `target`.
    pub fn next_there(&self, target: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        self.paths.get(&target)?.next_there(number, self)
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

    /// Returns the first hole behind `start` on the way to `target`: see [`Path::hole_behind`].
    pub fn hole_behind(
        &self,
        target: TimelineId,
        start: Lsn,
        held: &dyn Listing,
    ) -> Option<(SegmentNumber, SegmentNumber)> {
        self.paths.get(&target)?.hole_behind(start, held)
    }

    /// Whether the hole that begins there on the way to `target` was made on purpose.
    pub fn is_trimmed(&self, target: TimelineId, from: SegmentNumber, trimmed: &Trimmed) -> bool {
        let first = from.name(self.holder(target, from), self.size);
        first.is_some_and(|first| trimmed.begins(first))
    }

    /// The beginning of the first hole behind `start` that was made on purpose; another one, in front of it, may be filled.
    fn trimmed_hole(
        &self,
        target: TimelineId,
        start: Lsn,
        held: &dyn Listing,
        trimmed: &Trimmed,
    ) -> Option<SegmentNumber> {
        let mut at = start;
        loop {
            let (from, to) = self.hole_behind(target, at, held)?;
            if self.is_trimmed(target, from, trimmed) {
                return Some(from);
            }
            at = to.start_lsn(self.size);
        }
    }

    /// Adds what recovery from a position needs as far as WAL is `held` without a hole that was made on purpose. WAL behind
    /// such a hole is of no use.
    pub fn need_unbroken(
        &self,
        timeline: TimelineId,
        (start, stop): (Lsn, Lsn),
        held: &dyn Listing,
        trimmed: &Trimmed,
        needed: &mut Needed,
    ) {
        for target in self.timelines() {
            if self.leads_through(target, timeline, stop) {
                let hole = self.trimmed_hole(target, start, held, trimmed);
                let end = hole.map_or(Lsn(u64::MAX), |from| from.start_lsn(self.size));
                self.need_path(target, start, end, needed);
            }
        }
        self.need_to_end(timeline, (start, stop), stop, needed);
    }

    /// Adds the WAL to the end of a backup that ends at `stop`, also where only a descendant has a copy of its last segment.
    pub fn need_to_end(
        &self,
        timeline: TimelineId,
        (start, stop): (Lsn, Lsn),
        end: Lsn,
        needed: &mut Needed,
    ) {
        // Whole segments: a descendant that leaves behind the end in the same segment has it under its own name.
        let end = SegmentNumber::ending_at(end, self.size)
            .range(self.size)
            .end;
        for target in self.timelines() {
            if self.leads_through(target, timeline, stop) {
                self.need_path(target, start, end, needed);
            }
        }
    }

    /// Adds the WAL from `start` to `end` on the way to `target`.
    pub fn need_path(&self, target: TimelineId, start: Lsn, end: Lsn, needed: &mut Needed) {
        let path = self.paths.get(&target).into_iter();
        for piece in path.flat_map(|path| path.pieces(start, end)) {
            needed.add(piece.timeline, piece.first, piece.last);
        }
    }
}

impl Listing for Paths<'_> {
    fn run(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let last = self.timelines.get(&timeline)?.segments.run_end(number)?;
        // The run ends before a segment that is known to be damaged.
        let suspects = self.suspects.iter().filter(|s| s.timeline == timeline);
        let suspect = suspects
            .filter_map(|s| s.number(self.size).ok())
            .find(|n| *n >= number && *n <= last);
        match suspect {
            Some(n) if n == number => None,
            Some(n) => Some(SegmentNumber(n.0 - 1)),
            None => Some(last),
        }
    }

    fn part(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Lsn> {
        let name = number.name(timeline, self.size)?;
        let tails = &self.timelines.get(&timeline)?.tails;
        let part = tails.get(&number).copied();
        part.filter(|_| !self.suspects.contains(&name))
    }

    fn next_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let held = self.timelines.get(&timeline)?;
        let mut next = held.next_from(number)?;
        while self.run(timeline, next).is_none() && self.part(timeline, next).is_none() {
            next = held.next_from(next.next())?;
        }
        Some(next)
    }
}

/// Segments by their names alone, damaged ones included.
pub struct Names<'a>(pub &'a BTreeMap<TimelineId, Timeline>);

impl Listing for Names<'_> {
    fn run(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        self.0.get(&timeline)?.segments.run_end(number)
    }

    fn part(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Lsn> {
        self.0.get(&timeline)?.tails.get(&number).copied()
    }

    fn next_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        self.0.get(&timeline)?.next_from(number)
    }
}

/// The segments that are left once all others are gone that nothing needs.
pub struct Left<'a> {
    /// Segments that are there.
    pub names: Names<'a>,
    /// Segments that are needed.
    pub needed: &'a Needed,
}

impl Listing for Left<'_> {
    fn run(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let needed = self.needed.of(timeline, number).map(|range| range.last);
        let last = self.names.run(timeline, number)?.0.min(needed.max()?);
        Some(SegmentNumber(last))
    }

    fn part(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Lsn> {
        let part = self.names.part(timeline, number)?;
        self.needed.contains(timeline, number).then_some(part)
    }

    fn next_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let mut next = self.names.next_from(timeline, number)?;
        while !self.needed.contains(timeline, next) {
            let behind = self.needed.next_from(timeline, next)?;
            next = self.names.next_from(timeline, behind)?;
        }
        Some(next)
    }
}

/// The targets that are named of each backup, with the place at which it stops.
fn on_paths(
    survey: &Survey,
    targets: impl Fn(&Root) -> BTreeSet<TimelineId>,
) -> BTreeSet<(TimelineId, TimelineId, Lsn)> {
    let named = survey.committed().flat_map(|(_, _, root)| {
        let targets = targets(root).into_iter();
        targets.map(|target| (target, root.timeline, root.stop_lsn))
    });
    named.collect()
}

/// The history of each timeline; adds to the doubts what is not known or contradicts itself.
fn histories(survey: &Survey, doubts: &mut Vec<String>) -> BTreeMap<TimelineId, History> {
    let mut histories: BTreeMap<TimelineId, History> = BTreeMap::new();
    for (id, timeline) in &survey.timelines {
        if let HistoryFile::Known(history) = &timeline.history {
            histories.insert(*id, history.clone());
        }
    }
    let mut wanted: BTreeSet<TimelineId> = survey.timelines.keys().copied().collect();
    for (id, subject) in &survey.ids {
        let Manifest::Committed(root) = &subject.manifest else {
            continue;
        };
        wanted.insert(root.timeline);
        let Some(own) = &root.history else { continue };
        let known = histories
            .entry(root.timeline)
            .or_insert_with(|| own.clone());
        if !same_ancestry(known, own) {
            doubts.push(format!(
                "backup \"{id}\" has another history of timeline {} than the repository",
                root.timeline.decimal()
            ));
        }
    }
    for id in wanted {
        if histories.contains_key(&id) {
            continue;
        }
        if id != TimelineId::FIRST {
            doubts.push(format!(
                "the history file of timeline {} is not in the repository",
                id.decimal()
            ));
        }
        histories.insert(id, History::root(id));
    }
    histories
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needed {
    ranges: BTreeMap<TimelineId, Vec<Range>>,
    /// The backup whose needs are added.
    needer: Option<Needer>,
}

/// A backup that needs WAL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needer {
    pub id: BackupId,
    /// It needs WAL to its own end only.
    pub is_bounded: bool,
}

/// A run of segments that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    needer: Option<Needer>,
}

impl Needed {
    /// Remembers that what is added from here on is for a backup.
    pub fn begin(&mut self, id: &BackupId, is_bounded: bool) {
        let id = id.clone();
        self.needer = Some(Needer { id, is_bounded });
    }

    /// Remembers that what is added from here on is for no backup that exists.
    pub fn end(&mut self) {
        self.needer = None;
    }

    /// Adds a run of segments.
    pub fn add(&mut self, timeline: TimelineId, first: SegmentNumber, last: SegmentNumber) {
        self.ranges.entry(timeline).or_default().push(Range {
            first: first.0,
            last: last.0,
            needer: self.needer.clone(),
        });
    }

    fn of(&self, timeline: TimelineId, number: SegmentNumber) -> impl Iterator<Item = &Range> {
        let ranges = self.ranges.get(&timeline).into_iter().flatten();
        ranges.filter(move |range| (range.first..=range.last).contains(&number.0))
    }

    /// The first segment behind `number` that is needed, where it is not itself.
    fn next_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let ranges = self.ranges.get(&timeline)?.iter();
        let behind = ranges
            .map(|range| range.first)
            .filter(|first| *first > number.0);
        behind.min().map(SegmentNumber)
    }

    /// Whether a segment is needed.
    pub fn contains(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        self.of(timeline, number).next().is_some()
    }

    /// Whether a segment up to this one is needed, on any timeline.
    pub fn has_any_until(&self, last: SegmentNumber) -> bool {
        let mut ranges = self.ranges.values().flatten();
        ranges.any(|range| range.first <= last.0)
    }

    /// The backups that need a segment.
    pub fn needers(&self, timeline: TimelineId, number: SegmentNumber) -> BTreeSet<&Needer> {
        let ranges = self.of(timeline, number);
        ranges.filter_map(|range| range.needer.as_ref()).collect()
    }

    /// Returns the segments of `runs` that are not needed, ascending.
    pub fn rest(&self, timeline: TimelineId, runs: &Runs) -> Vec<(SegmentNumber, SegmentNumber)> {
        let ranges = self.ranges.get(&timeline).into_iter().flatten();
        let mut ranges: Vec<(u64, u64)> = ranges.map(|r| (r.first, r.last)).collect();
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
