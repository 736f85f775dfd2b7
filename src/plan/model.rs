//! A small world for tests: clusters with timelines, records, backups and archived segments in memory, and a naive server that
//! recovers in it record by record. The planner must agree with that server.

use std::collections::{BTreeMap, BTreeSet};

use super::stop::Rule;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
pub(super) use crate::pg::timeline::tli;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::catalog::Parts;
use crate::repo::root::BackupKind;
use crate::repo::runs::Runs;
use crate::repo::trimmed::Trimmed;
use crate::repo::wal_proof::RawHash;
use crate::wal::facts::{self, Crossing, Entry, EntryKind, Facts, NamedPoint, Wal};
use crate::wal::index::{HeadEnd, TailClass, flag};
use crate::wal::inventory::{self, Backup, HistoryFile, Inventory, Timeline};

const PAGE: u64 = 8192;

/// Numbers that only look random; printed seeds reproduce them.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A record as it lies in the WAL of a timeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Rec {
    pub id: u64,
    pub prev: Lsn,
    pub entry: Entry,
}

/// Everything that happened, and what of it is archived.
#[derive(Clone, Default)]
pub struct World {
    pub size: SegmentSize,
    /// Records of each timeline from the very start, those of its ancestors included.
    pub records: BTreeMap<TimelineId, Vec<Rec>>,
    pub histories: BTreeMap<TimelineId, History>,
    pub backups: Vec<Backup>,
    pub archived: BTreeSet<SegmentName>,
    /// Segments of which only the bytes up to here are stored.
    pub cut: BTreeMap<SegmentName, Lsn>,
    /// Archived segments whose index cannot be read, and whose body cannot.
    pub bad_index: BTreeSet<SegmentName>,
    pub bad_body: BTreeSet<SegmentName>,
    /// Hashes of archived segments, where they matter.
    pub hashes: BTreeMap<SegmentName, RawHash>,
    /// Hashes of the first bytes of segments, however many.
    pub prefixes: BTreeMap<SegmentName, RawHash>,
    /// History files that are archived.
    pub files: BTreeSet<TimelineId>,
    clock: i64,
    next_id: u64,
    next_xid: u32,
}

fn header_at(lsn: u64, size: u64) -> u64 {
    match (lsn.is_multiple_of(size), lsn.is_multiple_of(PAGE)) {
        (true, _) => 40,
        (_, true) => 24,
        _ => 0,
    }
}

/// The timelines under whose name a server looks for a segment, in its order: newest first, none that begins later.
fn candidates(history: &History, number: SegmentNumber, size: SegmentSize) -> Vec<TimelineId> {
    let ancestors = history.ancestors();
    let begins = [Lsn(0)]
        .into_iter()
        .chain(ancestors.iter().map(|a| a.switch_lsn));
    let timelines = ancestors
        .iter()
        .map(|a| a.timeline)
        .chain([history.timeline()]);
    let all = begins.zip(timelines);
    let begun = all.filter(|(begin, _)| SegmentNumber::of(*begin, size) <= number);
    let mut found: Vec<_> = begun.map(|(_, timeline)| timeline).collect();
    found.reverse();
    found
}

impl World {
    pub fn new() -> World {
        let mut world = World {
            size: SegmentSize::new(1 << 20).unwrap(),
            clock: 1_000_000_000,
            next_id: 1,
            next_xid: 700,
            ..World::default()
        };
        world.records.insert(tli(1), Vec::new());
        world.histories.insert(tli(1), History::root(tli(1)));
        world
    }

    pub fn end(&self, timeline: TimelineId) -> Lsn {
        let first = Lsn(self.size.bytes());
        let own = self.records[&timeline].last().map(|r| r.entry.end);
        let begun = self.histories[&timeline].parent().map(|(_, lsn)| lsn);
        own.max(begun).unwrap_or(first).max(first)
    }

    /// Returns the start and the end of a record of `length` bytes that is written at `at`.
    fn lay(&self, at: Lsn, length: u64) -> (Lsn, Lsn) {
        let size = self.size.bytes();
        let start = at.0 + header_at(at.0, size);
        let mut position = start;
        let mut left = length;
        while left > 0 {
            position += header_at(position, size);
            let room = (PAGE - position % PAGE).min(left);
            position += room;
            left -= room;
        }
        (Lsn(start), Lsn(position).align_up(8))
    }

    /// Bytes of records between two positions.
    fn payload(&self, from: u64, to: u64) -> u32 {
        let size = self.size.bytes();
        let mut position = from;
        let mut bytes = 0;
        while position < to {
            position += header_at(position, size);
            let room = (PAGE - position % PAGE).min(to.saturating_sub(position));
            bytes += room;
            position += room;
        }
        u32::try_from(bytes).unwrap()
    }

    pub fn write(&mut self, timeline: TimelineId, kind: EntryKind, length: u64) -> (Lsn, Lsn) {
        let (start, end) = self.lay(self.end(timeline), length);
        self.add(timeline, kind, start, end)
    }

    fn add(&mut self, timeline: TimelineId, kind: EntryKind, start: Lsn, end: Lsn) -> (Lsn, Lsn) {
        let id = self.next_id;
        self.next_id += 1;
        let records = self.records.get_mut(&timeline).unwrap();
        let prev = records.last().map_or(Lsn(0), |r| r.entry.start);
        records.push(Rec {
            id,
            prev,
            entry: Entry { start, end, kind },
        });
        (start, end)
    }

    /// Ends the segment.
    pub fn switch(&mut self, timeline: TimelineId) -> (Lsn, Lsn) {
        let (start, end) = self.lay(self.end(timeline), 24);
        let end = end.align_up(self.size.bytes());
        self.add(timeline, EntryKind::Other, start, end)
    }

    pub fn tick(&mut self, micros: i64) -> TimestampTz {
        self.clock += micros;
        TimestampTz(self.clock)
    }

    pub fn commit(&mut self, timeline: TimelineId, is_commit: bool) -> u32 {
        let xid = self.next_xid;
        self.next_xid += 1;
        let time = self.tick(1_000_000);
        let kind = EntryKind::End {
            xid,
            time,
            is_commit,
        };
        self.write(timeline, kind, 46);
        xid
    }

    pub fn point(&mut self, timeline: TimelineId, name: &str) -> (Lsn, Lsn) {
        let time = self.tick(10);
        let name = name.as_bytes().to_vec();
        self.write(timeline, EntryKind::RestorePoint { time, name }, 98)
    }

    /// A backup over what is written meanwhile.
    pub fn backup(&mut self, timeline: TimelineId, meanwhile: impl FnOnce(&mut World)) {
        let start_time = self.tick(1_000);
        let (start, _) = self.write(timeline, EntryKind::Other, 50);
        let (checkpoint, _) = self.write(
            timeline,
            EntryKind::Checkpoint {
                next_xid: u64::from(self.next_xid),
            },
            114,
        );
        meanwhile(self);
        let (_, stop) = self.write(timeline, EntryKind::Other, 34);
        let stop_time = self.tick(1_000);
        let number = self.backups.len();
        self.backups.push(Backup {
            id: format!("20261120T06{:02}{:02}Z-full", number / 60, number % 60)
                .parse()
                .unwrap(),
            kind: BackupKind::Full,
            label: String::new(),
            start_lsn: start,
            stop_lsn: stop,
            consistent_lsn: stop,
            checkpoint_lsn: checkpoint,
            start_timeline: timeline,
            timeline,
            start_time,
            stop_time,
            major: 17,
            size_bytes: 1000,
            stored_bytes: 500,
            timezone: None,
            tablespaces: Vec::new(),
            packs: Parts::new(),
            wal_proof: None,
            page_errors: 0,
            damage: None,
            is_partial: false,
            damaged_copies: 0,
            expire_mark: None,
            pins: Vec::new(),
            trimmed: Trimmed::default(),
            is_verified: false,
        });
    }

    /// A new timeline that leaves `parent` behind the record with this index.
    pub fn branch(&mut self, parent: TimelineId, at: usize) -> TimelineId {
        let child = tli(self.histories.keys().next_back().unwrap().get() + 1);
        let records: Vec<Rec> = self.records[&parent][..=at].to_vec();
        let switch = records.last().unwrap().entry.end;
        let history = self.histories[&parent].child(child, switch, b"x");
        self.records.insert(child, records);
        self.histories.insert(child, history);
        self.files.insert(child);
        self.write(child, EntryKind::Other, 42);
        child
    }

    /// Archives everything of a timeline that its segments hold; the last one ends inside.
    pub fn archive(&mut self, timeline: TimelineId) {
        let begun = self.histories[&timeline].parent();
        let first = begun.map_or(SegmentNumber(1), |(_, lsn)| {
            SegmentNumber::of(lsn, self.size)
        });
        let last = SegmentNumber::ending_at(self.end(timeline), self.size);
        for n in first.0..=last.0 {
            let name = SegmentNumber(n).name(timeline, self.size).unwrap();
            self.archived.insert(name);
        }
    }

    /// Switches the segment of a timeline, and archives everything.
    pub fn switch_and_archive(&mut self, timeline: TimelineId) {
        self.switch(timeline);
        self.archive_all();
    }

    pub fn archive_all(&mut self) {
        for timeline in self.histories.keys().copied().collect::<Vec<_>>() {
            self.archive(timeline);
        }
    }

    pub fn inventory(&self) -> Inventory {
        let mut timelines: BTreeMap<TimelineId, Timeline> = BTreeMap::new();
        for id in &self.files {
            let entry = timelines.entry(*id).or_default();
            entry.history = HistoryFile::Known(self.histories[id].clone());
        }
        let mut numbers: BTreeMap<TimelineId, Vec<u64>> = BTreeMap::new();
        for name in &self.archived {
            let number = name.number(self.size).unwrap().0;
            numbers.entry(name.timeline).or_default().push(number);
        }
        for (id, numbers) in numbers {
            timelines.entry(id).or_default().segments = Runs::from_numbers(numbers);
        }
        for (name, cut) in &self.cut {
            let number = name.number(self.size).unwrap();
            let timeline = timelines.entry(name.timeline).or_default();
            // A partial's reach is not known by its name.
            let reach = match cut.0.is_multiple_of(2) {
                true => *cut,
                false => number.start_lsn(self.size),
            };
            timeline.tails.insert(number, reach);
        }
        let mut backups = self.backups.clone();
        inventory::sort(&mut backups);
        Inventory {
            repository: "/r".into(),
            repository_uuid: "0".into(),
            cluster: "main".into(),
            system_identifier: 7,
            major: 17,
            segment_size: self.size,
            backups,
            timelines,
            ..Inventory::default()
        }
    }

    /// Keeps only the bytes up to `at` of a file.
    pub fn cut(&mut self, name: SegmentName, at: Lsn) {
        assert!(self.archived.remove(&name));
        self.cut.insert(name, at);
    }

    /// The records that begin in a file; of one that was cut, only those that end before.
    pub fn in_file(&self, name: SegmentName) -> Vec<&Rec> {
        let range = name.number(self.size).unwrap().range(self.size);
        let cut = self.cut.get(&name).copied().unwrap_or(Lsn(u64::MAX));
        self.records[&name.timeline]
            .iter()
            .filter(|r| range.start <= r.entry.start && r.entry.start < range.end)
            .filter(|r| r.entry.end <= cut)
            .collect()
    }

    /// Returns the end of the last record that is whole in a file that was cut, if one is.
    fn last_in_cut(&self, name: SegmentName) -> Option<Lsn> {
        let cut = *self.cut.get(&name)?;
        let head = self.head_of(name).filter(|h| h.entry.end <= cut);
        let last = self.in_file(name).last().copied().or(head);
        last.map(|r| r.entry.end)
    }

    /// Returns whether a server that asks for a file gets it.
    fn is_offered(&self, name: SegmentName) -> bool {
        self.archived.contains(&name) || self.last_in_cut(name).is_some()
    }

    /// The record that reaches into a file from before it.
    pub fn head_of(&self, name: SegmentName) -> Option<&Rec> {
        let start = name.start_lsn(self.size).unwrap();
        self.records[&name.timeline]
            .iter()
            .find(|r| r.entry.start < start && r.entry.end > start)
    }

    fn check(&self, name: SegmentName) -> Result<()> {
        if self.archived.contains(&name) || self.cut.contains_key(&name) {
            Ok(())
        } else {
            Err(err!(Internal, "{name} was asked for and is not there"))
        }
    }
}

impl Wal for World {
    fn has_prefix(&self, name: SegmentName, _: u64, hash: RawHash) -> Result<bool> {
        Ok(self.prefixes.get(&name).is_none_or(|own| *own == hash))
    }

    fn has_hash(&self, name: SegmentName, hash: RawHash) -> Result<bool> {
        Ok(self.hashes.get(&name).is_none_or(|own| *own == hash))
    }

    fn facts(&self, name: SegmentName) -> Result<Facts> {
        self.check(name)?;
        if self.bad_index.contains(&name) {
            return Err(err!(Damaged, "bad index"));
        }
        let range = name.number(self.size)?.range(self.size);
        let mut facts = Facts::empty(range.start);
        facts.valid_end = range.end;
        if let Some(head) = self.head_of(name) {
            let to = head.entry.end.min(range.end);
            facts.head_length = self.payload(range.start.0, to.0);
            facts.head_remaining = self.payload(range.start.0, head.entry.end.0);
            facts.head_end = if head.entry.end <= range.end {
                HeadEnd::Here
            } else {
                HeadEnd::Continues
            };
            if self.cut.get(&name).is_some_and(|cut| head.entry.end > *cut) {
                facts.head_end = HeadEnd::Abandoned;
            }
        }
        let records = self.in_file(name);
        if let Some(first) = records.first() {
            (facts.first_record, facts.first_prev) = (first.entry.start, first.prev);
        }
        for rec in &records {
            let entry = &rec.entry;
            facts.last_begun = entry.start;
            if entry.end > range.end {
                facts.tail_length = self.payload(entry.start.0, range.end.0);
                facts.tail_total = self.payload(entry.start.0, entry.end.0);
                facts.tail_class = match entry.kind {
                    EntryKind::End { .. } => TailClass::TransactionEnd,
                    EntryKind::RestorePoint { .. }
                    | EntryKind::Checkpoint { .. }
                    | EntryKind::ParameterChange(_) => TailClass::Event,
                    _ => TailClass::Other,
                };
                continue;
            }
            (facts.last_complete, facts.last_complete_end) = (entry.start, entry.end);
            match entry.kind {
                EntryKind::End {
                    xid,
                    time,
                    is_commit,
                } => {
                    facts.commits += u32::from(is_commit);
                    if facts.ends == 0 {
                        facts.times = (time, time);
                        facts.xids = (xid, xid);
                    }
                    facts.ends += 1;
                    facts.times = (facts.times.0.min(time), facts.times.1.max(time));
                    facts.xids = (facts.xids.0.min(xid), facts.xids.1.max(xid));
                }
                EntryKind::RestorePoint { .. } => {
                    facts.flags |= facts::flag::RESTORE_POINTS;
                }
                EntryKind::ParameterChange(_) => facts.flags |= facts::flag::PARAMETERS,
                _ => {}
            }
        }
        let end = match self.cut.contains_key(&name) {
            true => self.last_in_cut(name).unwrap_or(range.start),
            false => self.end(name.timeline),
        };
        if end < range.end {
            facts.flags |= u16::try_from(flag::ENDS_INSIDE).unwrap();
            facts.valid_end = end;
        }
        Ok(facts)
    }

    fn crossing(&self, name: SegmentName, _next: Option<SegmentName>) -> Result<Crossing> {
        self.check(name)?;
        let end = name.number(self.size)?.range(self.size).end;
        let tail = self.in_file(name).into_iter().find(|r| r.entry.end > end);
        Ok(match tail.map(|r| &r.entry) {
            // Now and then it is not known.
            Some(e) if e.start.0.is_multiple_of(3) => Crossing::Unknown,
            Some(Entry {
                kind:
                    EntryKind::End {
                        xid,
                        time,
                        is_commit,
                    },
                ..
            }) => Crossing::End {
                xid: *xid,
                time: *time,
                is_commit: *is_commit,
            },
            Some(Entry {
                kind: EntryKind::RestorePoint { .. },
                ..
            }) => Crossing::RestorePoint,
            Some(Entry {
                kind: EntryKind::ParameterChange(_),
                ..
            }) => Crossing::ParameterChange { is_minimal: false },
            _ => Crossing::Nothing,
        })
    }

    fn may_end(&self, name: SegmentName, xid: u32) -> Result<bool> {
        self.check(name)?;
        let ends = |r: &&Rec| matches!(r.entry.kind, EntryKind::End { xid: x, .. } if x == xid);
        Ok(self.in_file(name).iter().any(ends))
    }

    fn restore_points(&self, name: SegmentName) -> Result<Option<Vec<NamedPoint>>> {
        self.check(name)?;
        let end = name.number(self.size)?.range(self.size).end;
        let points = self
            .in_file(name)
            .into_iter()
            .filter(|r| r.entry.end <= end)
            .filter_map(|r| match &r.entry.kind {
                EntryKind::RestorePoint { time, name } => Some(NamedPoint {
                    lsn: r.entry.start,
                    time: *time,
                    name: name.clone(),
                }),
                _ => None,
            })
            .collect();
        Ok(Some(points))
    }

    fn scan(
        &self,
        name: SegmentName,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()> {
        self.check(name)?;
        if self.bad_body.contains(&name) {
            return Err(err!(Damaged, "bad body"));
        }
        let end = name.number(self.size)?.range(self.size).end;
        for rec in self.in_file(name) {
            if rec.entry.end > end && !self.completes(rec, name, next) {
                break;
            }
            visit(&rec.entry);
        }
        Ok(())
    }
}

impl World {
    /// Whether a record that leaves its segment is continued in the ones behind it.
    fn completes(
        &self,
        rec: &Rec,
        name: SegmentName,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
    ) -> bool {
        let mut at = name;
        loop {
            let Some(following) = next(at) else {
                return false;
            };
            if self.head_of(following).is_none_or(|h| h.id != rec.id) {
                return false;
            }
            let end = following.number(self.size).unwrap().range(self.size).end;
            if let Some(cut) = self.cut.get(&following) {
                return rec.entry.end <= *cut;
            }
            if rec.entry.end <= end {
                return true;
            }
            at = following;
        }
    }
}

/// How a recovery ended.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The record at which it stopped and whether that one was replayed.
    pub stop: Option<(Rec, bool)>,
    pub consistent: bool,
    /// Everything that was replayed.
    pub replayed: Vec<Rec>,
    /// Records that could have been read after the stop.
    pub behind: Vec<Rec>,
}

impl World {
    /// The WAL that a server reads that follows `history` from `start` on.
    pub fn readable(&self, history: &History, start: Lsn) -> Vec<Rec> {
        let mut read: Vec<Rec> = Vec::new();
        let mut current: Option<TimelineId> = None;
        let mut number = SegmentNumber::of(start, self.size);
        let mut open: Option<Rec> = None;
        while let Some(name) = self.open_file(history, number, current) {
            current = Some(name.timeline);
            let end = number.range(self.size).end;
            let head = self.head_of(name);
            // A server finds zeros after the end of the bytes.
            let cut = self.cut.get(&name).copied();
            let is_cut = |rec: &Rec| cut.is_some_and(|cut| rec.entry.end > cut);
            if open.as_ref().is_some_and(is_cut) {
                return read;
            }
            if let Some(rec) = open.take() {
                if head.is_none_or(|h| h.id != rec.id) {
                    return read;
                }
                if rec.entry.end > end {
                    open = Some(rec);
                } else {
                    read.push(rec);
                }
            } else if head.is_some() && !read.is_empty() {
                return read;
            }
            for rec in self.in_file(name) {
                let before = read.last().map(|r| r.entry.start);
                let linked = before.is_none_or(|b| b == rec.prev);
                if rec.entry.start < start {
                    continue;
                }
                // Without a record exactly at the redo point nothing is replayed at all.
                if !linked || (before.is_none() && rec.entry.start != start) {
                    return read;
                }
                if rec.entry.end > end {
                    open = Some(rec.clone());
                } else {
                    read.push(rec.clone());
                }
            }
            let last = self.last_in_cut(name).unwrap_or(self.end(name.timeline));
            if last < end {
                return read;
            }
            number = number.next();
        }
        read
    }

    /// XLogFileReadAnyTLI.
    fn open_file(
        &self,
        history: &History,
        number: SegmentNumber,
        current: Option<TimelineId>,
    ) -> Option<SegmentName> {
        for timeline in candidates(history, number, self.size) {
            if current.is_some_and(|c| timeline < c) {
                break;
            }
            let name = number.name(timeline, self.size)?;
            if self.is_offered(name) {
                return Some(name);
            }
        }
        None
    }

    /// Runs the recovery of a server that stops by `rule`.
    pub fn recover(&self, history: &History, backup: &Backup, rule: Option<&Rule>) -> Recovered {
        let mut out = Recovered::default();
        let mut last_replayed = Lsn(0);
        let mut stopped = false;
        for rec in self.readable(history, backup.start_lsn) {
            if stopped {
                out.behind.push(rec);
                continue;
            }
            let consistent = last_replayed >= backup.consistent_lsn;
            if rule.is_some_and(|r| naive_before(r, &rec.entry, consistent)) {
                out.stop = Some((rec.clone(), false));
                out.consistent = consistent;
                stopped = true;
                out.behind.push(rec);
                continue;
            }
            last_replayed = rec.entry.end;
            let consistent = last_replayed >= backup.consistent_lsn;
            out.consistent = consistent;
            out.replayed.push(rec.clone());
            if rule.is_some_and(|r| naive_after(r, &rec.entry, consistent)) {
                out.stop = Some((rec, true));
                stopped = true;
            }
        }
        out
    }
}

// Written down a second time, straight from recoveryStopsBefore and recoveryStopsAfter.

fn naive_before(rule: &Rule, entry: &Entry, consistent: bool) -> bool {
    if *rule == Rule::Immediate && consistent {
        return true;
    }
    if let Rule::Lsn {
        at,
        inclusive: false,
    } = rule
        && entry.start >= *at
    {
        return true;
    }
    let EntryKind::End { xid, time, .. } = entry.kind else {
        return false;
    };
    match rule {
        Rule::Xid {
            xid: wanted,
            inclusive: false,
        } => xid == *wanted,
        Rule::Time {
            at,
            inclusive: true,
        } => time > *at,
        Rule::Time {
            at,
            inclusive: false,
        } => time >= *at,
        _ => false,
    }
}

fn naive_after(rule: &Rule, entry: &Entry, consistent: bool) -> bool {
    if let (Rule::Name(wanted), EntryKind::RestorePoint { name, .. }) = (rule, &entry.kind) {
        return wanted == name;
    }
    if let Rule::Lsn {
        at,
        inclusive: true,
    } = rule
        && entry.start >= *at
    {
        return true;
    }
    let (EntryKind::End { .. } | EntryKind::Transaction) = entry.kind else {
        return false;
    };
    if let (
        Rule::Xid {
            xid: wanted,
            inclusive: true,
        },
        EntryKind::End { xid, .. },
    ) = (rule, &entry.kind)
        && xid == wanted
    {
        return true;
    }
    *rule == Rule::Immediate && consistent
}
