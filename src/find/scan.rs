//! Finds the segments to decode by their indexes, and decodes them, several at once.
//!
//! The index of a segment names files, databases and tablespaces that were removed in it. The transaction that did so began behind a
//! checkpoint whose next transaction is not above it. From the redo point of that checkpoint to the end of the transaction lies a
//! stretch that tells everything: it has each record of the transaction, and the image of each page that it changed. Only segments
//! whose index says that they change a catalog are decoded. Counting rows takes all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use super::catalogs::{Attempt, CatalogFiles};
use super::digest::{Digest, Digester, Place};
use super::event::{Commit, Event, Kind};
use super::story::{self, Story};
use crate::error::{Code, Result};
use crate::host::Host;
use crate::lock::locked;
use crate::pg::catalog::Catalog;
use crate::pg::lsn::Lsn;
use crate::pg::record::{DEFAULT_BLOCK_SIZE, Fork, Record};
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::wal::facts::{Crossing, EntryKind, Facts, Wal, flag};
use crate::wal::index::{self, WalEvent};
use crate::wal::inventory::Inventory;
use crate::wal::path::Path;
use crate::wal::rollup::{CheckedBy, Rollup};

/// The commit of a database that was dropped follows within so many segments.
const COMMIT_WITHIN: usize = 64;
/// An earlier attempt to drop a database is looked for in so many segments.
const ATTEMPTS_WITHIN: usize = 10_000;
/// So many segments are looked at together for it.
const ATTEMPTS_BATCH: usize = 64;
/// Indexes are read by this many threads: reading waits for the store.
pub(super) const READERS: usize = 8;
/// So much WAL is decoded before it is put together: more would only fill memory.
const BATCH_BYTES: u64 = 256 << 20;

/// The question.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whether rows are counted, which takes every segment between `since` and `until`.
    pub counts_rows: bool,
    /// Fewer rows than this of one relation and transaction are no event.
    pub rows_min: u64,
    /// Nothing that was committed before.
    pub since: Option<TimestampTz>,
    /// Nothing that was committed after.
    pub until: Option<TimestampTz>,
    /// This transaction alone.
    pub xid: Option<u32>,
    /// Whether databases are looked for that somebody began to drop: the indexes do not name these.
    pub finds_attempts: bool,
}

impl Request {
    fn holds(&self, time: TimestampTz) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }

    fn overlaps(&self, (first, last): (TimestampTz, TimestampTz)) -> bool {
        self.since.is_none_or(|since| last >= since)
            && self.until.is_none_or(|until| first <= until)
    }
}

/// WAL that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unread {
    /// First position.
    pub from_lsn: Lsn,
    /// Position behind the last.
    pub to_lsn: Lsn,
    pub why: String,
}

/// The answer.
#[derive(Debug, Default)]
pub struct Found {
    /// Events, by the end of each transaction.
    pub events: Vec<Event>,
    /// WAL that was not looked at.
    pub unread: Vec<Unread>,
    /// Segments that were looked at, by their index at least.
    pub segments: u64,
    /// Segments that were decoded.
    pub decoded: u64,
    /// Files of catalogs, those included that they were given meanwhile.
    pub files: CatalogFiles,
    /// Attempts to drop databases, by oid; none where the database was dropped since, or made valid again.
    attempts: BTreeMap<u32, Option<Attempt>>,
}

/// Stored segments, in order.
pub(super) type Segments = Vec<(SegmentNumber, SegmentName)>;

/// A stretch to decode: places in the list of segments.
#[derive(Debug, Clone)]
struct Range {
    first: usize,
    last: usize,
    /// Every segment of it is decoded.
    is_whole: bool,
    /// Transactions that are asked about; none = all that end in the window.
    xids: BTreeSet<u32>,
}

/// Something that a transaction removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Removal {
    /// A file, by database and number, at the end of the transaction.
    File(u32, u32),
    /// A file that the index does not name.
    Unknown,
    /// A database or a tablespace, before the transaction ends.
    Early,
}

/// Transactions, and each thing that they removed.
type Removals = BTreeSet<(u32, Removal)>;

/// The files that catalogs had, and the position from which on WAL tells of newer ones.
pub type FilesFrom = (CatalogFiles, Lsn);

/// The WAL of one timeline, from the first stored segment to the last.
pub struct Scan<'a> {
    rollup: &'a Rollup<'a>,
    pub(super) host: &'a Host,
    pub(super) major: Major,
    request: &'a Request,
    pub(super) segments: Segments,
    /// Positions up to which the WAL of a segment counts: its timeline was left there, and the file of the next one is missing.
    limits: BTreeMap<SegmentNumber, Lsn>,
    pub(super) size: crate::pg::segment::SegmentSize,
    /// Checkpoints of the segments that were looked at for them.
    checkpoints: Mutex<HashMap<usize, Vec<(Lsn, u32)>>>,
    unread: Mutex<Vec<Unread>>,
}

impl<'a> Scan<'a> {
    /// Lists the segments on the way to a timeline.
    ///
    /// # Errors
    /// Those of [`Inventory::history`]; `Unsupported` for a major that is not known.
    pub fn new(
        (inventory, rollup): (&'a Inventory, &'a Rollup<'a>),
        timeline: TimelineId,
        host: &'a Host,
        request: &'a Request,
    ) -> Result<Scan<'a>> {
        let path = Path::new(inventory.history(timeline)?, inventory.segment_size);
        let major = Major::from_number(inventory.major)?;
        let (segments, limits) = segments(inventory, &path)?;
        let scan = Scan {
            segments,
            limits,
            size: inventory.segment_size,
            rollup,
            host,
            major,
            request,
            checkpoints: Mutex::default(),
            unread: Mutex::default(),
        };
        scan.prefetch()?;
        scan.note_holes();
        Ok(scan)
    }

    /// Reads the indexes of all segments that are not known yet.
    fn prefetch(&self) -> Result<()> {
        let mut from = 0;
        while let Some((first, name)) = self.segments.get(from) {
            let same = |(_, n): &&(SegmentNumber, SegmentName)| n.timeline == name.timeline;
            let count = self.segments.iter().skip(from).take_while(same).count();
            from += count;
            let last = self.segments.get(from - 1).map_or(*first, |(n, _)| *n);
            self.rollup.prefetch(name.timeline, *first, last)?;
        }
        Ok(())
    }

    fn note_holes(&self) {
        for pair in self.segments.windows(2) {
            let [(before, _), (after, _)] = pair else {
                continue;
            };
            if before.next() != *after {
                self.note(
                    before.range(self.size).end,
                    after.start_lsn(self.size),
                    "it is not archived",
                );
            }
        }
    }

    fn note(&self, from_lsn: Lsn, to_lsn: Lsn, why: &str) {
        let mut unread = locked(&self.unread);
        if !unread.iter().any(|u| u.from_lsn == from_lsn) {
            unread.push(Unread {
                from_lsn,
                to_lsn,
                why: why.to_owned(),
            });
        }
    }

    /// Returns the facts of a segment; `None` where it cannot be read, which is noted.
    fn facts(&self, at: usize) -> Result<Option<Facts>> {
        let Some((number, name)) = self.segments.get(at).copied() else {
            return Ok(None);
        };
        let range = number.range(self.size);
        match self.rollup.facts(name) {
            Ok(facts) => {
                let known = index::flag::UNDECODED | index::flag::DAMAGED;
                if u64::from(facts.flags) & known != 0 {
                    let from = facts.valid_end.max(range.start);
                    let undecoded = u64::from(facts.flags) & index::flag::UNDECODED != 0;
                    let why = match undecoded {
                        true => "a PostgreSQL newer than this pitr wrote it",
                        false => "it is damaged",
                    };
                    self.note(if undecoded { range.start } else { from }, range.end, why);
                }
                Ok(Some(facts))
            }
            other => self.tolerate(at, other),
        }
    }

    /// Notes a segment that turns out to be damaged, or that this program cannot read.
    pub(super) fn tolerate<T>(&self, at: usize, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(e) if e.is_damage() || e.code() == Code::Unsupported => {
                if let Some((number, _)) = self.segments.get(at) {
                    let range = number.range(self.size);
                    self.note(range.start, range.end, &e.to_string());
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn name(&self, at: usize) -> Option<SegmentName> {
        self.segments.get(at).map(|(_, name)| *name)
    }

    /// Whether the next segment on the path directly follows.
    pub(super) fn is_followed(&self, at: usize) -> bool {
        match (self.segments.get(at), self.segments.get(at + 1)) {
            (Some((own, _)), Some((next, _))) => own.next() == *next,
            _ => false,
        }
    }

    fn next(&self, at: usize) -> Option<SegmentName> {
        self.is_followed(at).then(|| self.name(at + 1))?
    }

    /// Returns the record that begins in a segment and ends in a later one, as far as its first bytes tell.
    fn crossing(&self, at: usize, facts: &Facts) -> Result<Crossing> {
        let (Some(name), true) = (self.name(at), facts.tail_length > 0) else {
            return Ok(Crossing::Nothing);
        };
        match self.rollup.crossing(name, self.next(at)) {
            Err(e) if e.is_damage() => Ok(Crossing::Unknown),
            other => other,
        }
    }

    /// Whether a transaction of the window may end in a segment.
    fn may_hold(&self, at: usize) -> Result<bool> {
        let Some(facts) = self.facts(at)? else {
            return Ok(false);
        };
        if facts.has(flag::XIDS_UNKNOWN) || (facts.ends > 0 && self.request.overlaps(facts.times)) {
            return Ok(true);
        }
        Ok(match self.crossing(at, &facts)? {
            Crossing::End { time, .. } => self.request.holds(time),
            Crossing::Unknown => true,
            _ => false,
        })
    }

    /// Answers the question. `files_at` names the files that catalogs had at a position, as far as that is known from elsewhere.
    ///
    /// # Errors
    /// Errors of the store; `Interrupted`.
    pub fn run(&self, files_at: &mut dyn FnMut(Lsn) -> FilesFrom) -> Result<Found> {
        let mut window = Vec::new();
        for at in 0..self.segments.len() {
            if self.may_hold(at)? {
                window.push(at);
            }
        }
        let mut ranges = match (self.request.xid, self.request.counts_rows) {
            (Some(xid), whole) => self.ranges_of_xid(xid, &window, whole)?,
            (None, true) => self.whole_window(&window)?,
            (None, false) => self.ranges_of_removals(&window)?,
        };
        let (attempts, first_attempt) = self.ranges_of_attempts(&window, &ranges, files_at)?;
        ranges.extend(attempts);
        let ranges = merged(ranges);
        let decoded: u64 = ranges.iter().map(|r| (r.last - r.first + 1) as u64).sum();
        let progress = self.host.progress.as_ref();
        progress.phase("decode the WAL", Some(decoded * self.size.bytes()));
        let mut found = Found {
            segments: self.segments.len() as u64,
            ..Found::default()
        };
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Ok(self.completed(found));
        };
        let start = self.segments.get(first.first);
        let start = start.map_or(Lsn(0), |(number, _)| number.range(self.size).start);
        let (mut files, from) = files_at(start);
        let from = SegmentNumber::of(from, self.size);
        let from = self.segments.partition_point(|(n, _)| *n < from);
        let mut before = self
            .removals_outside(from..last.first, &ranges)?
            .into_iter();
        let mut next = before.next();
        // A catalog that was written anew before a stretch, or in one, has its new file in the next.
        for range in &ranges {
            while let Some((at, removals)) = next.take_if(|(at, _)| *at < range.first) {
                self.follow_catalogs(at, &removals, &mut files)?;
                next = before.next();
            }
            self.tell(range, &mut files, &mut found)?;
        }
        self.add_attempts(first_attempt, &mut found);
        for event in found.events.iter_mut().filter(|e| e.kind == Kind::Database) {
            self.to_first_attempt(event, &files)?;
        }
        for event in &mut found.events {
            if event.last_commit.is_none() {
                event.last_commit = self.last_commit_before(event.target_lsn)?;
            }
        }
        found.files = files;
        Ok(self.completed(found))
    }

    /// The segments of the window that change the catalog of databases, and the position from which on they do.
    fn ranges_of_attempts(
        &self,
        window: &[usize],
        known: &[Range],
        files_at: &mut dyn FnMut(Lsn) -> FilesFrom,
    ) -> Result<(Vec<Range>, Lsn)> {
        let asked = self.request;
        let (mut first, mut end) = (0, self.segments.len());
        // The update has no time: it is between transactions of the window.
        if asked.since.is_some() {
            first = window.first().copied().unwrap_or(end);
        }
        if asked.until.is_some() {
            end = window.last().map_or(first, |last| last + 1);
        }
        let first = first.max(end.saturating_sub(ATTEMPTS_WITHIN));
        let Some((number, _)) = self.segments.get(first).filter(|_| asked.finds_attempts) else {
            return Ok((Vec::new(), Lsn(u64::MAX)));
        };
        let from = number.range(self.size).start;
        let (files, _) = files_at(from);
        let is_decoded = |at: usize| {
            let mut whole = known.iter().filter(|range| range.is_whole);
            whole.any(|range| (range.first..=range.last).contains(&at))
        };
        let left: Vec<usize> = (first..end).filter(|at| !is_decoded(*at)).collect();
        let changed = self.host.parallel(READERS, &left, |at| {
            self.changes(*at, &files, &|_, catalog| catalog == Catalog::Database)
        })?;
        let mut ranges = Vec::new();
        for (at, changed) in left.into_iter().zip(changed) {
            if self.tolerate(at, changed)? == Some(true) {
                ranges.push(Range {
                    first: at,
                    last: at,
                    is_whole: false,
                    // No transaction has this number: those that end there are the business of other stretches.
                    xids: BTreeSet::from([0]),
                });
            }
        }
        Ok((ranges, from))
    }

    /// Adds the databases that somebody began to drop from a position on, and that were neither dropped nor made valid since.
    fn add_attempts(&self, from: Lsn, found: &mut Found) {
        let attempts = std::mem::take(&mut found.attempts).into_iter();
        let open = attempts.filter_map(|(oid, attempt)| Some((oid, attempt?)));
        for (oid, attempt) in open.filter(|(_, attempt)| attempt.lsn >= from) {
            let of_it = |e: &Event| e.kind == Kind::Database && is_database(e, oid);
            if !found.events.iter().any(of_it) {
                found.events.push(story::interrupted(oid, attempt));
            }
        }
    }

    fn completed(&self, mut found: Found) -> Found {
        found.unread = locked(&self.unread).clone();
        found.unread.sort_unstable_by_key(|u| u.from_lsn);
        found
    }

    /// The removals in segments that no stretch has, by their indexes.
    fn removals_outside(
        &self,
        all: std::ops::Range<usize>,
        ranges: &[Range],
    ) -> Result<Vec<(usize, Removals)>> {
        let asked = self.request;
        if asked.xid.is_none() && asked.since.is_none() && asked.until.is_none() {
            // The stretches are those of all removals.
            return Ok(Vec::new());
        }
        let is_outside = |at: &usize| {
            let before = ranges.partition_point(|r| r.last < *at);
            ranges.get(before).is_none_or(|r| *at < r.first)
        };
        let outside: Vec<usize> = all.filter(is_outside).collect();
        let removals = self
            .host
            .parallel(READERS, &outside, |at| self.removals(*at))?;
        let mut out = Vec::new();
        for (at, removals) in outside.into_iter().zip(removals) {
            out.extend(self.tolerate(at, removals)?.map(|removals| (at, removals)));
        }
        Ok(out)
    }

    /// Takes the new files of catalogs whose former ones were removed in a segment.
    fn follow_catalogs(
        &self,
        at: usize,
        removals: &Removals,
        files: &mut CatalogFiles,
    ) -> Result<()> {
        for (xid, removal) in removals {
            let is_catalog = match removal {
                Removal::File(database, file) => files.catalog(*database, *file).is_some(),
                Removal::Unknown => true,
                Removal::Early => false,
            };
            if is_catalog {
                let range = self.range_of_removal(at, *xid, false)?;
                self.tell(&range, files, &mut Found::default())?;
            }
        }
        Ok(())
    }

    /// Every segment in which a transaction of the window may end, and those in which these began.
    fn whole_window(&self, window: &[usize]) -> Result<Vec<Range>> {
        let (Some(first), Some(last)) = (window.first(), window.last()) else {
            return Ok(Vec::new());
        };
        let mut ranges = Vec::new();
        let mut from = *first;
        for at in *first..=*last {
            if at == *last || !self.is_followed(at) {
                let first = self.begin_of_ends(from, at)?;
                ranges.push(Range {
                    first,
                    last: at,
                    is_whole: true,
                    xids: BTreeSet::new(),
                });
                from = at + 1;
            }
        }
        Ok(ranges)
    }

    /// The segment in which the oldest transaction begins that ends in these.
    fn begin_of_ends(&self, from: usize, to: usize) -> Result<usize> {
        if self.request.since.is_none() {
            return Ok(from);
        }
        let mut oldest: Option<u32> = None;
        let mut older = |xid: u32| {
            if xid != 0 {
                oldest = Some(match oldest {
                    Some(known) if precedes(known, xid) => known,
                    _ => xid,
                });
            }
        };
        for at in from..=to {
            if let Some(facts) = self.facts(at)? {
                if facts.ends > 0 {
                    older(facts.xids.0);
                    // The numbers of transactions began anew in the segment.
                    if precedes(facts.xids.1, facts.xids.0) {
                        older(self.oldest_end(at)?.unwrap_or(facts.xids.1));
                    }
                }
                if let Crossing::End { xid, .. } = self.crossing(at, &facts)? {
                    older(xid);
                }
            }
        }
        match oldest {
            Some(xid) => self.begin(from, xid),
            None => Ok(from),
        }
    }

    /// The oldest transaction that ends in a segment, as its index has them.
    fn oldest_end(&self, at: usize) -> Result<Option<u32>> {
        let Some(name) = self.name(at) else {
            return Ok(None);
        };
        let xids = self.tolerate(at, self.rollup.xids(name))?.flatten();
        Ok(xids.and_then(|xids| xids.oldest()))
    }

    fn ranges_of_xid(&self, xid: u32, window: &[usize], is_whole: bool) -> Result<Vec<Range>> {
        let mut ranges = Vec::new();
        for at in window {
            let (Some(name), Some(facts)) = (self.name(*at), self.facts(*at)?) else {
                continue;
            };
            let crosses = match self.crossing(*at, &facts)? {
                Crossing::End { xid: ended, .. } => ended == xid || ended == 0,
                other => other == Crossing::Unknown,
            };
            let inside = facts.has(flag::XIDS_UNKNOWN)
                || (facts.ends > 0 && (facts.xids.0..=facts.xids.1).contains(&xid));
            let may_end = || {
                let told = self.tolerate(*at, self.rollup.may_end(name, xid))?;
                Ok::<_, crate::error::Error>(told.unwrap_or(false))
            };
            if crosses || (inside && may_end()?) {
                ranges.push(Range {
                    first: self.begin(*at, xid)?,
                    last: *at,
                    is_whole,
                    xids: BTreeSet::from([xid]),
                });
            }
        }
        Ok(ranges)
    }

    /// A stretch for each transaction that removed a file, a database or a tablespace.
    fn ranges_of_removals(&self, window: &[usize]) -> Result<Vec<Range>> {
        // A database is removed just before its transaction ends.
        let mut wanted: BTreeSet<usize> = window.iter().copied().collect();
        wanted.extend(window.iter().filter_map(|at| at.checked_sub(1)));
        let wanted: Vec<usize> = wanted.into_iter().collect();
        let removals = self
            .host
            .parallel(READERS, &wanted, |at| self.removals(*at))?;
        let mut ranges = Vec::new();
        for (at, removals) in wanted.iter().zip(removals) {
            let removals = self.tolerate(*at, removals)?;
            let removals = removals.unwrap_or_default().into_iter();
            let xids: BTreeSet<(u32, bool)> = removals
                .map(|(xid, r)| (xid, r == Removal::Early))
                .collect();
            for (xid, goes_on) in xids {
                ranges.push(self.range_of_removal(*at, xid, goes_on)?);
            }
        }
        Ok(ranges)
    }

    fn range_of_removal(&self, at: usize, xid: u32, goes_on: bool) -> Result<Range> {
        let last = match goes_on {
            true => self.end_of(at, xid)?,
            false => at,
        };
        Ok(Range {
            first: self.begin(at, xid)?,
            last,
            is_whole: false,
            xids: BTreeSet::from([xid]),
        })
    }

    /// The transactions that removed something in a segment, by its index, and what each removed.
    fn removals(&self, at: usize) -> Result<Removals> {
        let mut removals = Removals::new();
        let Some((_, name)) = self.segments.get(at) else {
            return Ok(removals);
        };
        let facts = self.rollup.facts(*name)?;
        if facts.has(flag::REMOVALS) {
            let Some(events) = self.rollup.events(*name)? else {
                // The index does not tell: everything that ends here is looked at.
                self.removals_by_decoding(at, &mut removals)?;
                return Ok(removals);
            };
            for (_, event) in events {
                match event {
                    // COMMIT PREPARED bears no transaction of its own.
                    WalEvent::Relation {
                        action: 0, xid: 0, ..
                    }
                    | WalEvent::Undecoded { xid: 0, .. } => {
                        self.removals_by_decoding(at, &mut removals)?;
                        break;
                    }
                    WalEvent::Relation {
                        action: 0,
                        xid,
                        db,
                        rel,
                        ..
                    } => drop(removals.insert((xid, Removal::File(db, rel)))),
                    WalEvent::Undecoded { xid, .. } => {
                        removals.insert((xid, Removal::Unknown));
                    }
                    WalEvent::Database { action: 2, xid, .. }
                    | WalEvent::Tablespace { action: 1, xid, .. } => {
                        removals.insert((xid, Removal::Early));
                    }
                    _ => {}
                }
            }
        }
        if facts.tail_length > 0 && facts.tail_class != crate::wal::index::TailClass::Other {
            match self.joined(at, &facts, &CatalogFiles::default())? {
                Some(digest) => add_removals(&digest, &mut removals),
                // The indexes do not have a long record, such as that of DROP SCHEMA.
                None => self.removals_by_decoding(at, &mut removals)?,
            }
        }
        Ok(removals)
    }

    fn removals_by_decoding(&self, at: usize, into: &mut Removals) -> Result<()> {
        let digest = self.decode(at, &CatalogFiles::default(), false)?;
        add_removals(&digest, into);
        Ok(())
    }

    /// The segment in which a transaction ends that removed something in this one.
    fn end_of(&self, at: usize, xid: u32) -> Result<usize> {
        for later in at..at.saturating_add(COMMIT_WITHIN).min(self.segments.len()) {
            let (Some(name), Some(facts)) = (self.name(later), self.facts(later)?) else {
                break;
            };
            let crosses = match self.crossing(later, &facts)? {
                Crossing::End { xid: ended, .. } => ended == xid,
                _ => false,
            };
            let told = match facts.ends {
                0 => None,
                _ => self.tolerate(later, self.rollup.may_end(name, xid))?,
            };
            if crosses || told == Some(true) {
                return Ok(later);
            }
            if !self.is_followed(later) {
                break;
            }
        }
        Ok(at)
    }

    /// The segment from which on every record of a transaction is seen, and the image of each page that it changed.
    fn begin(&self, from: usize, xid: u32) -> Result<usize> {
        let mut at = from;
        loop {
            let Some(facts) = self.facts(at)? else {
                return Ok((at + 1).min(from));
            };
            if facts.has(flag::CHECKPOINTS)
                && let Some(begin) = self.begin_by_checkpoint(at, xid)?
            {
                return Ok(begin);
            }
            match at.checked_sub(1) {
                Some(before) if self.is_followed(before) => at = before,
                _ => return Ok(at),
            }
        }
    }

    /// The segment of the redo point of the last checkpoint of a segment behind which the transaction began.
    fn begin_by_checkpoint(&self, at: usize, xid: u32) -> Result<Option<usize>> {
        let checkpoints = self.checkpoints_in(at)?;
        let mut checkpoints = checkpoints.iter().rev();
        let Some((redo_lsn, _)) = checkpoints.find(|(_, next)| !precedes(xid, *next)) else {
            return Ok(None);
        };
        let redo = SegmentNumber::of(*redo_lsn, self.size);
        let begin = self.segments.binary_search_by_key(&redo, |(n, _)| *n);
        // Without the WAL from the redo point on, an older checkpoint is no better.
        let is_there = |b: &usize| (*b..at).all(|n| self.is_followed(n));
        Ok(Some(begin.ok().filter(is_there).unwrap_or(at)))
    }

    /// Redo point and next transaction id of each checkpoint in a segment.
    fn checkpoints_in(&self, at: usize) -> Result<Vec<(Lsn, u32)>> {
        let Some(name) = self.name(at) else {
            return Ok(Vec::new());
        };
        if let Some(known) = locked(&self.checkpoints).get(&at) {
            return Ok(known.clone());
        }
        let events = self.tolerate(at, self.rollup.events(name))?.flatten();
        let redo: BTreeMap<Lsn, Lsn> = events
            .into_iter()
            .flatten()
            .filter_map(|(lsn, event)| match event {
                WalEvent::Checkpoint { redo_lsn, .. } => Some((lsn, redo_lsn)),
                _ => None,
            })
            .collect();
        let mut checkpoints = Vec::new();
        let scanned = self.rollup.scan(name, &|_| None, &mut |entry| {
            if let EntryKind::Checkpoint { next_xid } = entry.kind
                && let Some(redo) = redo.get(&entry.start)
            {
                // The lower half is the id, the upper one counts wraparounds.
                let next_xid = next_xid & u64::from(u32::MAX);
                checkpoints.push((*redo, u32::try_from(next_xid).unwrap_or_default()));
            }
        });
        // Those before the damage count all the same.
        self.tolerate(at, scanned)?;
        locked(&self.checkpoints).insert(at, checkpoints.clone());
        Ok(checkpoints)
    }

    /// Tells the story of a stretch, anew with more files of catalogs where it names some.
    fn tell(&self, range: &Range, files: &mut CatalogFiles, found: &mut Found) -> Result<()> {
        loop {
            let mut story = Story::new(self.major, files.clone(), self.request.rows_min);
            story.catalogs.attempts.clone_from(&found.attempts);
            let decoded = self.follow(range, files, &mut story)?;
            if story.catalogs.own_files != *files {
                *files = story.catalogs.own_files;
                continue;
            }
            found.decoded += decoded;
            found.attempts = std::mem::take(&mut story.catalogs.attempts);
            for event in &mut found.events {
                rename(event, &story);
            }
            for mut event in std::mem::take(&mut story.events) {
                if self.is_asked(range, &event) {
                    rename(&mut event, &story);
                    found.events.push(event);
                }
            }
            return Ok(());
        }
    }

    fn is_asked(&self, range: &Range, event: &Event) -> bool {
        let is_own = range.xids.is_empty() || range.xids.contains(&event.xid);
        is_own && event.time.is_none_or(|time| self.request.holds(time))
    }

    fn follow(&self, range: &Range, files: &CatalogFiles, story: &mut Story) -> Result<u64> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<usize> = (range.first..=range.last).collect();
        let mut decoded = 0;
        let many = usize::try_from(BATCH_BYTES / self.size.bytes()).unwrap_or(1);
        for batch in all.chunks(many.max(threads)) {
            self.host.check_stop()?;
            let digests = self
                .host
                .parallel(threads, batch, |at| self.digest(*at, range, files))?;
            for (at, digest) in batch.iter().zip(digests) {
                let mut digest = self.tolerate(*at, digest)?.flatten();
                let is_whole = digest.as_ref().is_some_and(|(_, is_whole)| *is_whole);
                if !is_whole && story.awaits_names() {
                    // The transaction that gave a name may end there.
                    let whole = self.decode(*at, files, false);
                    digest = self.tolerate(*at, whole)?.map(|whole| (whole, true));
                }
                match digest {
                    Some((digest, is_decoded)) => {
                        decoded += u64::from(is_decoded);
                        if !is_decoded {
                            story.skip();
                        }
                        self.note_unread(*at, &digest);
                        story.take(digest);
                    }
                    None => story.skip(),
                }
                self.host.progress.advance(self.size.bytes());
            }
        }
        story.finish();
        Ok(decoded)
    }

    fn note_unread(&self, at: usize, digest: &Digest) {
        if let Some((number, _)) = self.segments.get(at)
            && digest.unread > 0
        {
            let range = number.range(self.size);
            let why = format!("{} records of it cannot be taken apart", digest.unread);
            self.note(range.start, range.end, &why);
        }
    }

    /// The digest of a segment, and whether it took all of its records; `None` where there is nothing in it for the story.
    fn digest(
        &self,
        at: usize,
        range: &Range,
        files: &CatalogFiles,
    ) -> Result<Option<(Digest, bool)>> {
        let Some(name) = self.name(at) else {
            return Ok(None);
        };
        if range.is_whole || at == range.last || self.changes_catalogs(name, files)? {
            return Ok(Some((
                self.decode(at, files, self.request.counts_rows)?,
                true,
            )));
        }
        let facts = self.rollup.facts(name)?;
        if facts.tail_length == 0 {
            return Ok(None);
        }
        match self.joined(at, &facts, files)? {
            Some(digest) => Ok(Some((digest, false))),
            None => Ok(Some((self.decode(at, files, false)?, true))),
        }
    }

    /// Whether a segment changes a catalog, or removes something, as far as its index tells.
    fn changes_catalogs(&self, name: SegmentName, files: &CatalogFiles) -> Result<bool> {
        if self.rollup.facts(name)?.has(flag::REMOVALS) {
            return Ok(true);
        }
        let Some(blocks) = self.rollup.blocks(name)? else {
            return Ok(true);
        };
        let is_catalog = |(_, database, file, fork): (u32, u32, u32, u8)| {
            fork == Fork::MAIN.0 && files.catalog(database, file).is_some()
        };
        Ok(blocks.0.iter().any(|b| is_catalog(b.fork)))
    }

    fn decode(&self, at: usize, files: &CatalogFiles, counts_rows: bool) -> Result<Digest> {
        self.decode_part(at, files, counts_rows, (Lsn(0), Lsn(u64::MAX)))
    }

    /// The digest of the records of a segment that begin in a range.
    pub(super) fn decode_part(
        &self,
        at: usize,
        files: &CatalogFiles,
        counts_rows: bool,
        (from, to): (Lsn, Lsn),
    ) -> Result<Digest> {
        let mut digester = Digester::new(files, counts_rows);
        if let Some((number, name)) = self.segments.get(at) {
            let next = |from: SegmentName| {
                let number = from.number(self.size).ok()?;
                let found = self.segments.binary_search_by_key(&number, |(n, _)| *n);
                self.next(found.ok()?)
            };
            let limit = self.limits.get(number).copied().unwrap_or(to).min(to);
            let by = CheckedBy::Records;
            self.rollup.records(*name, by, &next, &mut |record| {
                if (from..limit).contains(&record.start_lsn) {
                    digester.record(record);
                }
            })?;
        }
        Ok(digester.finish())
    }

    /// The digest of the record that begins in a segment and ends in the next; `None` where the indexes do not have all of it.
    fn joined(&self, at: usize, facts: &Facts, files: &CatalogFiles) -> Result<Option<Digest>> {
        let mut digester = Digester::new(files, false);
        let (Some(name), Some(next)) = (self.name(at), self.next(at)) else {
            // Nothing continues it: it does not exist for recovery.
            return Ok(Some(digester.finish()));
        };
        let mut bytes = self.rollup.fragments(name)?.tail;
        bytes.extend(self.rollup.fragments(next)?.head);
        let parsed = Record::parse(
            self.major,
            DEFAULT_BLOCK_SIZE,
            facts.last_begun,
            facts.last_begun,
            &bytes,
        );
        let Ok(record) = parsed else {
            return Ok(None);
        };
        digester.record(&record);
        Ok(Some(digester.finish()))
    }

    /// Whether a segment changes a catalog that is wanted, as far as its index tells and the record that crosses its end: the index does not
    /// count the blocks of that one.
    pub(super) fn changes(
        &self,
        at: usize,
        files: &CatalogFiles,
        is_wanted: &(dyn Fn(u32, Catalog) -> bool + Sync),
    ) -> Result<bool> {
        let Some(name) = self.name(at) else {
            return Ok(false);
        };
        let Some(blocks) = self.rollup.blocks(name)? else {
            return Ok(true);
        };
        let is_changed = |(_, database, file, fork): (u32, u32, u32, u8)| {
            let catalog = files.catalog(database, file);
            fork == Fork::MAIN.0 && catalog.is_some_and(|catalog| is_wanted(database, catalog))
        };
        if blocks.0.iter().any(|b| is_changed(b.fork)) {
            return Ok(true);
        }
        let facts = self.rollup.facts(name)?;
        if facts.tail_length == 0 {
            return Ok(false);
        }
        let joined = self.joined(at, &facts, files)?;
        let is_place = |place: &Place| is_wanted(place.database, place.catalog);
        Ok(joined.is_none_or(|digest| digest.unread > 0 || digest.places().any(is_place)))
    }

    /// Moves the target of a database that was dropped to the first attempt at that: it lets nobody in from there on. An attempt that failed
    /// lies before the stretch of the last one.
    fn to_first_attempt(&self, event: &mut Event, files: &CatalogFiles) -> Result<()> {
        let Some(database) = event.database.as_ref().map(|named| named.oid) else {
            return Ok(());
        };
        let mut story = Story::new(self.major, files.clone(), u64::MAX);
        for at in self.attempts(database, event.target_lsn, files)? {
            let part = (Lsn(0), event.target_lsn);
            let digest = self.decode_part(at, files, false, part);
            if let Some(digest) = self.tolerate(at, digest)? {
                story.take(digest);
            }
        }
        if let Some(first) = story.catalogs.attempt(database) {
            event.target_lsn = first.lsn;
            event.first_lsn = first.lsn;
            event.last_commit = None;
        }
        Ok(())
    }

    /// The segments up to a position that change the catalog of databases, back to the last one in which somebody worked in this database.
    fn attempts(&self, database: u32, to: Lsn, files: &CatalogFiles) -> Result<Vec<usize>> {
        let number = SegmentNumber::of(to, self.size);
        let end = self.segments.partition_point(|(n, _)| *n <= number);
        let all: Vec<usize> = (end.saturating_sub(ATTEMPTS_WITHIN)..end).rev().collect();
        let mut changed = Vec::new();
        'back: for batch in all.chunks(ATTEMPTS_BATCH) {
            self.host.check_stop()?;
            let see = |at: &usize| self.sees_database(*at, database, files);
            let seen = self.host.parallel(READERS, batch, see)?;
            for (at, seen) in batch.iter().zip(seen) {
                let Some((is_changed, is_used)) = self.tolerate(*at, seen)? else {
                    break 'back;
                };
                if is_changed {
                    changed.push(*at);
                }
                if is_used {
                    break 'back;
                }
            }
        }
        changed.reverse();
        Ok(changed)
    }

    /// Whether a segment changes the catalog of databases, and whether it changes something in one database, as far as its index tells.
    fn sees_database(
        &self,
        at: usize,
        database: u32,
        files: &CatalogFiles,
    ) -> Result<(bool, bool)> {
        let Some(name) = self.name(at) else {
            return Ok((false, true));
        };
        let is_changed = self.changes(at, files, &|_, catalog| catalog == Catalog::Database)?;
        let blocks = self.rollup.blocks(name)?.unwrap_or_default();
        let is_used = blocks.0.iter().any(|block| block.fork.1 == database);
        Ok((is_changed, is_used))
    }

    /// Returns the time of the newest transaction that ended in the WAL, as the indexes tell it.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn newest_end(&self) -> Result<Option<TimestampTz>> {
        for at in (0..self.segments.len()).rev() {
            let Some(facts) = self.facts(at)? else {
                continue;
            };
            // A record that ends in the next segment began in this one, behind all others.
            if let Crossing::End { time, .. } = self.crossing(at, &facts)? {
                return Ok(Some(time));
            }
            if facts.ends > 0 {
                return Ok(Some(facts.times.1));
            }
        }
        Ok(None)
    }

    /// The last commit that begins before a position.
    fn last_commit_before(&self, lsn: Lsn) -> Result<Option<Commit>> {
        let number = SegmentNumber::of(lsn, self.size);
        let found = self.segments.binary_search_by_key(&number, |(n, _)| *n);
        let Ok(mut at) = found else {
            return Ok(None);
        };
        loop {
            let Some(facts) = self.facts(at)? else {
                return Ok(None);
            };
            let may_cross = matches!(
                self.crossing(at, &facts)?,
                Crossing::End { .. } | Crossing::Unknown
            );
            if facts.commits > 0 || may_cross {
                let digest = self.decode(at, &CatalogFiles::default(), false);
                let Some(digest) = self.tolerate(at, digest)? else {
                    return Ok(None);
                };
                let commits = digest.steps.iter().rev().find_map(|step| match step {
                    super::digest::Step::End(end) if end.is_commit && end.lsn < lsn => {
                        Some(Commit {
                            xid: end.xid,
                            lsn: end.lsn,
                            time: end.time,
                        })
                    }
                    _ => None,
                });
                if commits.is_some() {
                    return Ok(commits);
                }
            }
            match at.checked_sub(1) {
                Some(before) if self.is_followed(before) => at = before,
                _ => return Ok(None),
            }
        }
    }
}

fn is_database(event: &Event, oid: u32) -> bool {
    event
        .database
        .as_ref()
        .is_some_and(|named| named.oid == oid)
}

/// Adds the transactions that a digest shows to have removed something.
fn add_removals(digest: &Digest, into: &mut Removals) {
    use super::digest::Step;
    for step in &digest.steps {
        match step {
            Step::End(end) => {
                let files = end.dropped.iter();
                into.extend(files.map(|f| (end.xid, Removal::File(f.database, f.number))));
            }
            Step::DropDatabase { xid, .. } | Step::DropTablespace { xid, .. } => {
                into.insert((*xid, Removal::Early));
            }
            _ => {}
        }
    }
}

/// Whether a transaction is older than another, in the circle of 32 bits.
fn precedes(xid: u32, other: u32) -> bool {
    xid.wrapping_sub(other).cast_signed() < 0
}

/// Takes the name that a relation has later.
fn rename(event: &mut Event, story: &Story) {
    let Some((database, relation)) = event.database.as_ref().zip(event.relation.as_mut()) else {
        return;
    };
    let newest = relation
        .oid
        .and_then(|oid| story.catalogs.changed_relation(database.oid, oid));
    if let Some(newest) = newest {
        let schema = story.catalogs.schema(database.oid, newest.namespace);
        let schema = schema.or(relation.schema.as_ref());
        if relation.name.as_ref() != Some(&newest.name) || schema != relation.schema.as_ref() {
            relation.name_now = Some(match schema {
                Some(schema) => format!("{schema}.{}", newest.name),
                None => newest.name.clone(),
            });
        }
    }
}

/// The stored segments on a path, in order, and the limits of those whose timeline was left.
fn segments(
    inventory: &Inventory,
    path: &Path,
) -> Result<(Segments, BTreeMap<SegmentNumber, Lsn>)> {
    let (mut segments, mut limits) = (Segments::new(), BTreeMap::new());
    let mut number = SegmentNumber(0);
    while let Some(next) = path.next_there(number, inventory) {
        let is_there = |timeline| Ok(inventory.holds(timeline, next));
        if let Some(pick) = path.pick(next, None, is_there)?
            && let Some(name) = next.name(pick.timeline, path.size())
        {
            segments.push((next, name));
            limits.extend(pick.limit.map(|limit| (next, limit)));
        }
        number = next.next();
    }
    Ok((segments, limits))
}

/// Joins stretches that overlap or touch.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|r| (r.first, r.last));
    let mut out: Vec<Range> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.first <= last.last => {
                last.last = last.last.max(range.last);
                last.is_whole |= range.is_whole;
                last.xids.extend(range.xids);
            }
            _ => out.push(range),
        }
    }
    out
}
