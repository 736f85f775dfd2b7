//! Answers what plans ask of archived WAL: from the indexes of segments, a local cache of them, and decoded bodies.
//!
//! Indexes prune: they are read once, many at a time, and kept under `cache_dir` by repository, key, size and time.
//! Bodies prove: a scan reads a segment whole, checks its hash, and decodes it. The scan also compares the cached
//! facts: [`Rollup::has_changed`] reports a difference, so that the plan is made again. One difference drops all of the
//! cache: a repository that was put back has other segments under the old names. Before a command carries a plan out, it
//! has the ends of all segments that the plan needs compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::edge::{self, Edges, Prefix};
use super::facts::{Crossing, Entry, EntryKind, Facts, NamedPoint, Wal, flag};
use super::feeder::Feeder;
use super::increment::OpenSegment;
use super::index::{self, Blocks, Fragments, SegmentIndex, Summary, WalEvent, XidSet};
use super::inventory::Inventory;
use super::link::{Brief, Link};
use super::remnant::Remnant;
use super::rollup_cache::{CacheFile, Row, Rows};
use super::stored_wal;
use super::undecoded;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::reader::{Finding, Sink};
use crate::pg::record::{Fork, Record};
use crate::pg::rmgr;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::pg::xact::{self, TransactionRecord};
use crate::pg::xlog::{self, XlogRecord};
use crate::progress::{Progress, Silent};
use crate::recent::Recent;
use crate::repo::container::{Container, Kind, tag};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::wal_proof::RawHash;
use crate::store::Meta;

/// Indexes are read by this many threads: reading waits for the disk, not for the processor.
const READERS: usize = 8;
/// Fewer indexes than this are not worth a thread.
const FEW: usize = 32;

/// So many are read before they are put among the others.
const PART: usize = 8192;

/// The WAL of one cluster in one repository.
pub struct Rollup<'a> {
    repository: &'a Repository,
    inventory: &'a Inventory,
    layout: ClusterLayout,
    /// Directory of this cluster's cache; none = no cache.
    directory: Option<PathBuf>,
    tables: Mutex<BTreeMap<TimelineId, Table>>,
    /// Segments of which only a part is stored, as they were when they were first asked for: they grow.
    tails: Mutex<BTreeMap<SegmentName, Arc<Remnant>>>,
    /// Segments that were opened last, where each opening is a round trip.
    opened: Mutex<Recent<SegmentName, Container>>,
    /// Whether segments have the hashes that were asked for.
    hashes: Mutex<Hashes>,
    changed: AtomicBool,
    /// A segment was another one than the cache knew: no cache is read any more.
    is_cache_wrong: AtomicBool,
}

/// So many opened segments are kept.
const OPENED_MAX: usize = 8;

/// Whether segments have hashes.
type Hashes = BTreeMap<(SegmentName, RawHash), bool>;

/// The stored form of a segment.
enum Stored {
    Whole(Arc<Container>),
    Tail(Arc<Remnant>),
}

/// The known facts of one timeline's segments.
#[derive(Default)]
struct Table {
    rows: Rows,
    cache: Option<CacheFile>,
}

impl Table {
    /// Takes a segment out; the file that said of it what is not so goes, too.
    fn forget(&mut self, number: u64) {
        self.rows.forget(number);
        self.forget_file();
    }

    fn forget_all(&mut self) {
        self.rows = Rows::default();
        self.forget_file();
    }

    fn forget_file(&self) {
        if let Some(cache) = &self.cache {
            cache.forget();
        }
    }

    fn put(&mut self, rows: &[Row]) {
        let added = self.rows.put(rows);
        if let Some(cache) = &self.cache {
            cache.append(added);
        }
    }
}

fn lock_of<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex
        .lock()
        .map_err(|_| err!(Internal, "a thread panicked"))
}

impl<'a> Rollup<'a> {
    /// The WAL that `inventory` lists. `cache_dir` is where caches are kept; without one every index is read anew.
    ///
    /// # Errors
    /// `Usage` for an inventory of an impossible cluster name.
    pub fn new(
        repository: &'a Repository,
        inventory: &'a Inventory,
        cache_dir: Option<&Path>,
    ) -> Result<Rollup<'a>> {
        let layout = inventory.layout()?;
        let directory = cache_dir.map(|d| {
            d.join(&inventory.repository_uuid).join(format!(
                "{}-{}",
                inventory.cluster, inventory.system_identifier
            ))
        });
        Ok(Rollup {
            repository,
            inventory,
            layout,
            directory,
            tables: Mutex::new(BTreeMap::new()),
            tails: Mutex::new(BTreeMap::new()),
            opened: Mutex::new(Recent::new(OPENED_MAX, usize::MAX)),
            hashes: Mutex::default(),
            changed: AtomicBool::new(false),
            is_cache_wrong: AtomicBool::new(false),
        })
    }

    /// Returns whether a stored segment was found to differ from its known facts: plans made from those facts must be
    /// made again. The call clears the answer.
    pub fn has_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// Forgets the facts of a segment: the next query reads them from the store.
    ///
    /// # Errors
    /// `Internal` when a thread panicked.
    pub fn forget(&self, name: SegmentName) -> Result<()> {
        let number = self.number(name)?;
        self.close(name)?;
        self.with_table(name.timeline, |table| table.forget(number))
    }

    fn close(&self, name: SegmentName) -> Result<()> {
        self.recent()?.remove(name);
        Ok(())
    }

    fn recent(&self) -> Result<MutexGuard<'_, Recent<SegmentName, Container>>> {
        lock_of(&self.opened)
    }

    fn hashes(&self) -> Result<MutexGuard<'_, Hashes>> {
        lock_of(&self.hashes)
    }

    /// The size of its segments.
    pub fn size(&self) -> SegmentSize {
        self.inventory.segment_size
    }

    /// Runs `f` on a timeline's table, with what the cache holds of it.
    fn with_table<T>(&self, timeline: TimelineId, f: impl FnOnce(&mut Table) -> T) -> Result<T> {
        let mut tables = lock_of(&self.tables)?;
        let table = tables
            .entry(timeline)
            .or_insert_with(|| self.load(timeline));
        Ok(f(table))
    }

    fn load(&self, timeline: TimelineId) -> Table {
        let Some(directory) = &self.directory else {
            return Table::default();
        };
        // A segment of another life has the same number.
        let lives = self.layout.lives().iter();
        let lives = lives.filter(|l| l.segment.timeline == timeline);
        let lives: String = lives
            .map(|l| format!(" {}={}", l.segment, l.copy))
            .collect();
        // A program that knows one major more decodes what this one cannot.
        let newest = match self.inventory.major >= Major::NEWEST.number() {
            true => format!(" {}", Major::NEWEST),
            false => String::new(),
        };
        let identity = format!(
            "{} {} {} {timeline} {}{lives}{newest}",
            self.inventory.repository_uuid,
            self.inventory.cluster,
            self.inventory.system_identifier,
            self.size().bytes()
        );
        let name = match lives.as_str() {
            "" => format!("{timeline}.rollup"),
            lives => {
                let hash = blake3::hash(lives.as_bytes()).to_hex();
                format!("{timeline}-{}.rollup", hash.get(..16).unwrap_or_default())
            }
        };
        let cache = CacheFile::new(directory, &name, &identity);
        if self.is_cache_wrong.load(Ordering::Relaxed) {
            cache.forget();
            return Table {
                rows: Rows::default(),
                cache: Some(cache),
            };
        }
        let rows = cache.read(&mut |number| self.inventory.has(timeline, SegmentNumber(number)));
        Table {
            rows,
            cache: Some(cache),
        }
    }

    /// Drops the known facts of all segments: one of them was of another segment, and so may be others.
    fn distrust(&self) -> Result<()> {
        self.changed.store(true, Ordering::Relaxed);
        self.is_cache_wrong.store(true, Ordering::Relaxed);
        *self.recent()? = Recent::new(OPENED_MAX, usize::MAX);
        let mut tables = lock_of(&self.tables)?;
        tables.values_mut().for_each(Table::forget_all);
        Ok(())
    }

    fn open_segment(&self, name: SegmentName) -> OpenSegment {
        OpenSegment {
            name,
            size: self.size(),
            major: self.inventory.major,
        }
    }

    fn number(&self, name: SegmentName) -> Result<u64> {
        name.number(self.size()).map(|n| n.0)
    }

    /// Returns a segment that was opened before, or opens it.
    fn opened(&self, name: SegmentName) -> Result<Arc<Container>> {
        let known = self.recent()?.get(name);
        match known {
            Some(container) => Ok(container),
            None => self.open(name),
        }
    }

    /// Opens a segment's object and makes sure that it is the one its key says.
    fn open(&self, name: SegmentName) -> Result<Arc<Container>> {
        let key = self.layout.segment(name);
        // One that cannot be opened any more is not had from before.
        self.close(name)?;
        let open = || -> Result<Container> {
            let object = self
                .repository
                .store()
                .open(&key)?
                .ok_or_else(|| err!(Damaged, "it was listed, and is not there"))?;
            let container = Container::open(object)?;
            let identity = container.identity();
            let range = name.number(self.size())?.range(self.size());
            let own = container.is_stored_as(Kind::Segment, name, self.inventory.system_identifier)
                && identity.timeline == name.timeline.get()
                && identity.segment_size_bytes == self.size().bytes()
                && identity.from_lsn == range.start.0
                && identity.to_lsn == range.end.0;
            if own {
                Ok(container)
            } else {
                Err(err!(Damaged, "it is another object"))
            }
        };
        let container = open().map_err(|e| e.context(format!("segment \"{name}\"")))?;
        let container = Arc::new(container);
        if self.repository.store().is_remote() {
            self.recent()?.put(name, &container, 0);
        }
        Ok(container)
    }

    /// Returns the stored form of a segment. A segment of which only a part was listed may be whole by now.
    fn stored(&self, name: SegmentName) -> Result<Stored> {
        if self.is_whole(name)? {
            return self.opened(name).map(Stored::Whole);
        }
        if let Some(known) = lock_of(&self.tails)?.get(&name) {
            return Ok(Stored::Tail(Arc::clone(known)));
        }
        if self.meta(name)?.is_some() {
            return self.opened(name).map(Stored::Whole);
        }
        let segment = self.open_segment(name);
        let found = Remnant::find(self.repository, &self.layout, &segment)
            .map_err(|e| e.context(format!("segment \"{name}\"")))?;
        let Some(found) = found else {
            return self.opened(name).map(Stored::Whole);
        };
        let found = Arc::new(found);
        let mut tails = lock_of(&self.tails)?;
        Ok(Stored::Tail(Arc::clone(tails.entry(name).or_insert(found))))
    }

    fn is_whole(&self, name: SegmentName) -> Result<bool> {
        let number = name.number(self.size())?;
        let timeline = self.inventory.timelines.get(&name.timeline);
        Ok(timeline.is_none_or(|t| !t.tails.contains_key(&number)))
    }

    /// Streams the records' pages of a segment, as far as they are valid.
    fn read_body(
        &self,
        name: SegmentName,
        by: CheckedBy,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let tail = match self.stored(name)? {
            Stored::Whole(container) => {
                return match by {
                    CheckedBy::Hash => container.read_body(sink),
                    CheckedBy::Records => container.read_body_unhashed(sink),
                };
            }
            Stored::Tail(tail) => tail,
        };
        let read = tail.read_pages(self.repository, &self.layout, sink);
        if read.as_ref().is_err_and(|e| e.code() == Code::Damaged) && self.meta(name)?.is_some() {
            // The whole segment has come, and what it supersedes is being deleted: everything is asked again.
            self.changed.store(true, Ordering::Relaxed);
            if let Ok(mut tails) = self.tails.lock() {
                tails.remove(&name);
            }
        }
        read
    }

    fn meta(&self, name: SegmentName) -> Result<Option<Meta>> {
        self.repository.store().head(&self.layout.segment(name))
    }

    fn read_row(&self, name: SegmentName) -> Result<Row> {
        let container = self.open(name)?;
        self.row_of(name, &container)
    }

    fn row_of(&self, name: SegmentName, container: &Container) -> Result<Row> {
        let (facts, edges) =
            read_facts(container).map_err(|e| e.context(format!("index of segment \"{name}\"")))?;
        let meta = match container.meta() {
            Some(meta) => Some(meta),
            None => self.meta(name)?,
        };
        Ok(Row {
            number: self.number(name)?,
            size_bytes: meta.map_or(0, |m| m.size_bytes),
            modified: meta.map_or(TimestampTz(0), |m| m.modified),
            facts,
            edges,
        })
    }

    /// Puts a row that was read anew in the place of the known one.
    fn replace(&self, name: SegmentName, row: Row) -> Result<()> {
        let old = self.with_table(name.timeline, |table| table.rows.get(row.number))?;
        if old.is_some_and(|old| (old.facts, old.edges) != (row.facts, row.edges)) {
            self.distrust()?;
        }
        self.with_table(name.timeline, |table| {
            if table.rows.get(row.number) != Some(row) {
                table.put(&[row]);
            }
        })
    }
}

/// Reads what plans need of an index.
fn read_facts(container: &Container) -> Result<(Facts, Edges)> {
    if container.is_undecoded()
        && let Some(index) = undecoded::decode(container)?
    {
        return Ok(facts_of_index(&index));
    }
    let summary = index::read_summary(container)?;
    let fragments = index::read_fragments(container)?;
    let xids_recorded = container
        .section(tag::XIDS)?
        .is_some_and(|bytes| bytes.first() == Some(&1));
    let events = index::read_events(container, summary.start_lsn)?;
    let mut facts = facts_of(&summary, xids_recorded, events.as_deref());
    facts.link = Link::read(container)?.into();
    Ok((facts, edges_of(&fragments)))
}

fn facts_of_index(index: &SegmentIndex) -> (Facts, Edges) {
    let facts = facts_of(
        &index.summary,
        index.xids.is_some(),
        index.events.as_deref(),
    );
    (facts, edges_of(&index.fragments))
}

fn edges_of(fragments: &Fragments) -> Edges {
    Edges {
        head: Prefix::of(&fragments.head),
        tail: Prefix::of(&fragments.tail),
    }
}

fn facts_of(summary: &Summary, xids_recorded: bool, events: Option<&[(Lsn, WalEvent)]>) -> Facts {
    let mut flags = u16::try_from(summary.flags & 0xFF).unwrap_or(0);
    if !xids_recorded {
        flags |= flag::XIDS_UNKNOWN;
    }
    match events {
        Some(events) => {
            for (_, event) in events {
                match event {
                    WalEvent::RestorePoint { .. } => flags |= flag::RESTORE_POINTS,
                    WalEvent::ParameterChange { .. } => flags |= flag::PARAMETERS,
                    WalEvent::Undecoded { xid, .. } => {
                        flags |= flag::REMOVALS;
                        flags |= if *xid == 0 { flag::XIDS_UNKNOWN } else { 0 };
                    }
                    WalEvent::Relation { action: 0, .. }
                    | WalEvent::Database { action: 2, .. }
                    | WalEvent::Tablespace { action: 1, .. } => flags |= flag::REMOVALS,
                    WalEvent::Tablespace { .. } => flags |= flag::TABLESPACES,
                    WalEvent::Checkpoint { .. } => flags |= flag::CHECKPOINTS,
                    WalEvent::Relation {
                        action: 2, fork, ..
                    } if *fork == Fork::INIT.0 => flags |= flag::INIT_FORKS,
                    _ => {}
                }
            }
        }
        None => {
            flags |= flag::RESTORE_POINTS | flag::PARAMETERS | flag::REMOVALS | flag::CHECKPOINTS;
            flags |= flag::INIT_FORKS | flag::TABLESPACES;
        }
    }
    let (first_record, first_prev) = summary.first_record.unwrap_or_default();
    let (last_complete, last_complete_end) = summary.last_complete.unwrap_or_default();
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let ends = summary.ends;
    Facts {
        start_lsn: summary.start_lsn,
        flags,
        head_end: summary.head_end,
        tail_class: summary.tail_class,
        head_length: summary.head_length,
        head_remaining: summary.head_remaining,
        tail_length: summary.tail_length,
        tail_total: summary.tail_total,
        first_record,
        first_prev,
        last_begun: summary.last_begun.unwrap_or_default(),
        last_complete,
        last_complete_end,
        valid_end: summary.valid_end,
        commits: small(summary.commits),
        ends: if ends.is_some() {
            small(summary.commits.saturating_add(summary.aborts)).max(1)
        } else {
            0
        },
        times: ends.map_or_else(Default::default, |e| (e.min_time, e.max_time)),
        xids: ends.map_or((0, 0), |e| (e.min_xid, e.max_xid)),
        link: Brief::default(),
    }
}

/// Returns the restore points among the events of a segment.
fn points_in(events: Vec<(Lsn, WalEvent)>) -> Vec<NamedPoint> {
    let point = |(lsn, event)| match event {
        WalEvent::RestorePoint { time, name } => Some(NamedPoint { lsn, time, name }),
        _ => None,
    };
    events.into_iter().filter_map(point).collect()
}

impl Wal for Rollup<'_> {
    fn prefetch(
        &self,
        timeline: TimelineId,
        first: SegmentNumber,
        last: SegmentNumber,
    ) -> Result<()> {
        let Some(listed) = self.inventory.timelines.get(&timeline) else {
            return Ok(());
        };
        let unknown = self.with_table(timeline, |table| {
            let mut unknown = Vec::new();
            for (from, to) in listed.segments.iter() {
                for number in from.max(first).0..=to.min(last).0 {
                    if !table.rows.contains(number) {
                        unknown.push(number);
                    }
                }
            }
            unknown
        })?;
        if unknown.len() < FEW {
            return Ok(());
        }
        self.with_table(timeline, |table| table.rows.reserve(unknown.len()))?;
        // In parts, so that nothing is held twice.
        for part in unknown.chunks(PART) {
            let read = self.read_rows(timeline, part, &Silent)?;
            self.with_table(timeline, |table| table.put(&read.rows))?;
        }
        Ok(())
    }

    fn facts(&self, name: SegmentName) -> Result<Facts> {
        let number = self.number(name)?;
        if let Some(facts) = self.with_table(name.timeline, |t| t.rows.facts(number))? {
            return Ok(facts);
        }
        self.read_anew(name).map(|(facts, _)| facts)
    }

    fn crossing(&self, name: SegmentName, next: Option<SegmentName>) -> Result<Crossing> {
        let Some(next) = next else {
            // Nothing continues it: it does not exist for recovery.
            return Ok(Crossing::Nothing);
        };
        let tail_length = self.facts(name)?.tail_length;
        let (begin, end) = (self.edges(name)?, self.edges(next)?);
        Ok(edge::crossing(&begin.tail, tail_length, &end.head))
    }

    fn may_end(&self, name: SegmentName, xid: u32) -> Result<bool> {
        let xids = self.xids(name)?;
        Ok(xids.is_none_or(|xids| xids.contains(xid)))
    }

    fn restore_points(&self, name: SegmentName) -> Result<Option<Vec<NamedPoint>>> {
        Ok(self.events(name)?.map(points_in))
    }

    fn scan(
        &self,
        name: SegmentName,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()> {
        self.records(name, CheckedBy::Hash, next, &mut |record| {
            visit(&Entry {
                start: record.start_lsn,
                end: record.end_lsn,
                kind: kind_of(record),
            });
        })
    }

    fn has_hash(&self, name: SegmentName, hash: RawHash) -> Result<bool> {
        let number = SegmentNumber(self.number(name)?);
        if !self.inventory.has(name.timeline, number) {
            return Ok(true);
        }
        if let Some(is_so) = self.hashes()?.get(&(name, hash)) {
            return Ok(*is_so);
        }
        let is_so = match self.opened(name) {
            Ok(container) => hash.is_of(&container),
            Err(e) if e.is_lost() => true,
            Err(e) => return Err(e),
        };
        self.hashes()?.insert((name, hash), is_so);
        Ok(is_so)
    }

    fn has_prefix(&self, name: SegmentName, length_bytes: u64, hash: RawHash) -> Result<bool> {
        if let Some(is_so) = self.hashes()?.get(&(name, hash)) {
            return Ok(*is_so);
        }
        let segment = self.open_segment(name);
        let (repository, layout) = (self.repository, &self.layout);
        let is_so = stored_wal::has_prefix(repository, layout, &segment, (length_bytes, hash))?;
        self.hashes()?.insert((name, hash), is_so);
        Ok(is_so)
    }

    fn confirm(&self, name: SegmentName) -> Result<()> {
        if !self.is_whole(name)? {
            // Read in this session, and never kept.
            return Ok(());
        }
        let number = self.number(name)?;
        let known = self.with_table(name.timeline, |t| t.rows.get(number))?;
        let meta = self.meta(name)?;
        let same = match (&known, &meta) {
            (Some(row), Some(meta)) => {
                row.size_bytes == meta.size_bytes && row.modified == meta.modified
            }
            _ => false,
        };
        if !same {
            let row = self.read_row(name)?;
            self.replace(name, row)?;
        }
        Ok(())
    }
}

impl Rollup<'_> {
    /// Decodes a segment's body as [`Wal::scan`] does, and shows whole records.
    ///
    /// # Errors
    /// Those of [`Wal::scan`].
    pub fn records(
        &self,
        name: SegmentName,
        by: CheckedBy,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Record<'_>),
    ) -> Result<()> {
        if let Stored::Whole(container) = self.stored(name)? {
            self.replace(name, self.row_of(name, &container)?)?;
        }
        let range = name.number(self.size())?.range(self.size());
        let mut visitor = Visitor {
            visit,
            end: range.end,
            done: false,
            is_wrong: false,
        };
        let mut feeder = Feeder::default();
        let wrap = |e: Error| e.context(format!("segment \"{name}\""));
        feeder.begin(name, range.start);
        self.read_body(name, by, &mut |piece| feeder.feed(piece, &mut visitor))
            .map_err(wrap)?;
        let ended = feeder.finish();
        let mut open = ended.goes_on;
        let mut at = name;
        while open && !visitor.done {
            let Some(following) = next(at) else {
                break;
            };
            feeder.begin(following, following.start_lsn(self.size())?);
            let read = self.read_body(following, by, &mut |piece| {
                feeder.feed(piece, &mut visitor)?;
                // The record has ended: the rest of the segment is another scan's business.
                match visitor.done {
                    true => Err(err!(Interrupted, "enough")),
                    false => Ok(()),
                }
            });
            match read {
                Err(e) if e.code() == Code::Interrupted && visitor.done => break,
                Err(e) => return Err(e.context(format!("segment \"{following}\""))),
                Ok(()) => open = feeder.finish().goes_on,
            }
            at = following;
        }
        let is_complete = ended.is_whole && !visitor.is_wrong && (visitor.done || !open);
        if by == CheckedBy::Records && !is_complete {
            // Damage of the stored copy, or WAL that ends: the hash tells.
            self.read_body(name, CheckedBy::Hash, &mut |_| Ok(()))
                .map_err(wrap)?;
        }
        Ok(())
    }

    /// Reads the transactions that end in a segment; `None` where its index does not record them.
    ///
    /// # Errors
    /// As [`Wal::facts`].
    pub fn xids(&self, name: SegmentName) -> Result<Option<XidSet>> {
        Ok(match self.stored(name)? {
            Stored::Whole(container) => index::read_xids(&container)?,
            Stored::Tail(tail) => tail.index().xids.clone(),
        })
    }

    /// Reads the events of a segment; `None` where its index does not record them.
    ///
    /// # Errors
    /// As [`Wal::facts`].
    pub fn events(&self, name: SegmentName) -> Result<Option<Vec<(Lsn, WalEvent)>>> {
        Ok(match self.stored(name)? {
            Stored::Whole(container) => {
                index::read_events(&container, name.start_lsn(self.size())?)?
            }
            Stored::Tail(tail) => tail.index().events.clone(),
        })
    }

    /// Reads which blocks a segment changes; `None` where its index does not record them.
    ///
    /// # Errors
    /// As [`Wal::facts`].
    pub fn blocks(&self, name: SegmentName) -> Result<Option<Blocks>> {
        Ok(match self.stored(name)? {
            Stored::Whole(container) => index::read_blocks(&container)?,
            Stored::Tail(tail) => tail.index().blocks.clone(),
        })
    }

    /// Reads the parts of records that cross the edges of a segment; empty where its index does not keep them.
    ///
    /// # Errors
    /// As [`Wal::facts`].
    pub fn fragments(&self, name: SegmentName) -> Result<Fragments> {
        match self.stored(name)? {
            Stored::Whole(container) => index::read_fragments(&container),
            Stored::Tail(tail) => Ok(tail.index().fragments.clone()),
        }
    }
}

/// The result of reading many indexes, ascending by number.
#[derive(Default)]
struct ManyRows {
    rows: Vec<Row>,
    damaged: Vec<u64>,
}

impl Rollup<'_> {
    fn edges(&self, name: SegmentName) -> Result<Edges> {
        let number = self.number(name)?;
        if let Some(edges) = self.with_table(name.timeline, |t| t.rows.edges(number))? {
            return Ok(edges);
        }
        self.read_anew(name).map(|(_, edges)| edges)
    }

    /// Reads the facts and edges of a segment of which nothing is known.
    fn read_anew(&self, name: SegmentName) -> Result<(Facts, Edges)> {
        match self.stored(name)? {
            Stored::Whole(container) => {
                let row = self.row_of(name, &container)?;
                self.replace(name, row)?;
                Ok((row.facts, row.edges))
            }
            Stored::Tail(tail) => Ok(facts_of_index(tail.index())),
        }
    }

    /// Reads the ends of stored segments anew, from `first` to `last` of one timeline, whatever a cache says of them.
    /// Each segment must be there, have the length that it states, and be what its key says. [`Rollup::has_changed`]
    /// reports a segment that fails this, and the next query of a damaged one returns the error. Returns the number of
    /// damaged segments.
    ///
    /// # Errors
    /// Errors of the store, apart from damage.
    pub fn check_ends(
        &self,
        first: SegmentName,
        last: SegmentName,
        progress: &dyn Progress,
    ) -> Result<usize> {
        let timeline = first.timeline;
        let listed = self.inventory.timelines.get(&timeline);
        // A segment of which only a part is stored was read in this session.
        let is_whole = |n: &u64| listed.is_none_or(|t| !t.tails.contains_key(&SegmentNumber(*n)));
        let mut numbers = (self.number(first)?..=self.number(last)?).filter(is_whole);
        let mut damaged = 0;
        loop {
            let part: Vec<u64> = numbers.by_ref().take(PART).collect();
            if part.is_empty() {
                return Ok(damaged);
            }
            let read = self.read_rows(timeline, &part, progress)?;
            damaged += read.damaged.len();
            self.compare(timeline, &read)?;
        }
    }

    /// Puts rows that were read anew in the place of the known ones.
    fn compare(&self, timeline: TimelineId, read: &ManyRows) -> Result<()> {
        let is_known = |old: &Row, row: &Row| (old.facts, old.edges) == (row.facts, row.edges);
        let is_same = self.with_table(timeline, |table| {
            let known = |row: &Row| {
                table
                    .rows
                    .get(row.number)
                    .is_none_or(|old| is_known(&old, row))
            };
            read.rows.iter().all(known)
        })?;
        if !is_same {
            self.distrust()?;
        }
        self.with_table(timeline, |table| {
            let is_new = |row: &&Row| table.rows.get(row.number) != Some(**row);
            let new: Vec<Row> = read.rows.iter().filter(is_new).copied().collect();
            table.put(&new);
            for number in &read.damaged {
                table.forget(*number);
            }
        })?;
        if !read.damaged.is_empty() {
            self.changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads the indexes of many segments of a timeline.
    fn read_rows(
        &self,
        timeline: TimelineId,
        numbers: &[u64],
        progress: &dyn Progress,
    ) -> Result<ManyRows> {
        let at = AtomicUsize::new(0);
        let read = || -> Result<ManyRows> {
            let mut read = ManyRows::default();
            loop {
                let from = at.fetch_add(FEW, Ordering::Relaxed);
                let Some(part) = numbers.get(from..).filter(|p| !p.is_empty()) else {
                    return Ok(read);
                };
                for number in part.iter().take(FEW) {
                    let Some(name) = SegmentNumber(*number).name(timeline, self.size()) else {
                        continue;
                    };
                    match self.read_row(name) {
                        Ok(row) => read.rows.push(row),
                        Err(e) if e.is_lost() => {
                            read.damaged.push(*number);
                        }
                        Err(e) => return Err(e),
                    }
                    progress.advance(self.size().bytes());
                }
            }
        };
        let threads = READERS.min(numbers.len().div_ceil(FEW));
        let parts: Vec<Result<ManyRows>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
            threads
                .into_iter()
                .map(|t| {
                    t.join()
                        .unwrap_or_else(|_| Err(err!(Internal, "a reading thread panicked")))
                })
                .collect()
        });
        let mut all = ManyRows::default();
        all.rows.reserve_exact(numbers.len());
        for part in parts {
            let mut part = part?;
            all.rows.append(&mut part.rows);
            all.damaged.append(&mut part.damaged);
        }
        all.rows.sort_unstable_by_key(|r| r.number);
        all.damaged.sort_unstable();
        Ok(all)
    }
}

/// The proof that the bytes of a segment are those that were archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckedBy {
    /// The hash of all of them.
    Hash,
    /// The CRC that PostgreSQL gave each record. The hash is checked, too, where one is wrong or records end early.
    Records,
}

/// Shows the records that begin in one segment, up to the first finding.
struct Visitor<'a> {
    visit: &'a mut dyn FnMut(&Record<'_>),
    /// The end of that segment.
    end: Lsn,
    /// Everything that begins in it was shown, or nothing more can be.
    done: bool,
    /// There was a finding before that.
    is_wrong: bool,
}

impl Sink for Visitor<'_> {
    fn record(&mut self, record: &Record<'_>) {
        if self.done {
            return;
        }
        if record.start_lsn >= self.end {
            self.done = true;
            return;
        }
        (self.visit)(record);
        // The one that crosses the border is the last.
        self.done = record.end_lsn > self.end;
    }

    fn finding(&mut self, _: Finding) {
        // PostgreSQL would stop here too. (Bytes behind a switch record come when everything was shown.)
        self.is_wrong |= !self.done;
        self.done = true;
    }
}

fn kind_of(record: &Record<'_>) -> EntryKind {
    match record.rmid {
        rmgr::TRANSACTION => end_of(record).unwrap_or(EntryKind::Transaction),
        rmgr::XLOG if xlog::is_checkpoint(record) => match xlog_of(record) {
            Some(XlogRecord::Checkpoint(c)) => EntryKind::Checkpoint {
                next_xid: c.checkpoint.next_xid,
            },
            _ => EntryKind::Other,
        },
        rmgr::XLOG if record.opcode() == xlog::PARAMETER_CHANGE => match xlog_of(record) {
            Some(XlogRecord::ParameterChange(p)) => EntryKind::ParameterChange((&p).into()),
            _ => EntryKind::Other,
        },
        rmgr::XLOG if record.opcode() == xlog::RESTORE_POINT_OPCODE => match xlog_of(record) {
            Some(XlogRecord::RestorePoint(point)) => EntryKind::RestorePoint {
                time: point.time,
                name: point.name.to_vec(),
            },
            _ => EntryKind::Other,
        },
        _ => EntryKind::Other,
    }
}

fn end_of(record: &Record<'_>) -> Option<EntryKind> {
    xact::outcome(record)?;
    let body = record.body().ok()?;
    match xact::decode(record, body.main_data).ok()?? {
        TransactionRecord::End(end) => Some(EntryKind::End {
            xid: end.xid.0,
            time: end.time,
            is_commit: end.outcome.is_commit(),
        }),
        _ => None,
    }
}

fn xlog_of<'a>(record: &Record<'a>) -> Option<XlogRecord<'a>> {
    let body = record.body().ok()?;
    xlog::decode(record, body.main_data).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::{self, Craft};
    use crate::pg::timeline::tli;
    use crate::repo::crafted::rot;
    use crate::wal::crafted::{repository, store_as};

    const SEGMENT: usize = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(SEGMENT as u64).unwrap()
    }

    fn name(number: u64) -> SegmentName {
        SegmentNumber(number).name(tli(1), size()).unwrap()
    }

    fn commit(craft: &mut Craft, xid: u32) -> (Lsn, Lsn) {
        let mut main = (i64::from(xid) * 1_000_000).to_le_bytes().to_vec();
        main.extend_from_slice(&[0; 4]);
        craft.record(rmgr::TRANSACTION, 0x80, xid, &craft::main_data(&main))
    }

    #[test]
    fn records_that_cross_a_border_count_where_they_begin() {
        for left in [8, 16, 24, 32] {
            let mut craft = Craft::new(Major::V17);
            let first = commit(&mut craft, 700);
            craft.leave_of_segment(left);
            let crossing = commit(&mut craft, 701);
            let third = commit(&mut craft, 702);
            craft.switch();
            let dir = tempfile::tempdir().unwrap();
            let repository = repository(dir.path(), &craft);
            let inventory = Inventory::read(&repository, "main", None).unwrap();
            let rollup = Rollup::new(&repository, &inventory, None).unwrap();
            let crossed = rollup.crossing(name(1), Some(name(2))).unwrap();
            let expected = Crossing::End {
                xid: 701,
                time: TimestampTz(701_000_000),
                is_commit: true,
            };
            assert_eq!(crossed, expected, "{left}");
            let seen = |n: u64| {
                let mut ends = Vec::new();
                let next = |s: SegmentName| s.next(size());
                rollup
                    .scan(name(n), &next, &mut |entry| {
                        if let EntryKind::End { xid, .. } = entry.kind {
                            ends.push((xid, entry.start, entry.end));
                        }
                    })
                    .unwrap();
                ends
            };
            let two = [(700, first.0, first.1), (701, crossing.0, crossing.1)];
            assert_eq!(seen(1), two);
            assert_eq!(seen(2), [(702, third.0, third.1)]);
            assert!(rollup.may_end(name(2), 702).unwrap());
            assert!(!rollup.may_end(name(2), 701).unwrap());
            assert!(!rollup.has_changed());
        }
    }

    /// The program that stored the segments was older than the server; the one that reads them is not.
    #[test]
    fn wal_that_was_archived_undecoded_is_decoded_by_a_program_that_can() {
        let mut craft = Craft::new(Major::NEWEST);
        commit(&mut craft, 700);
        craft.leave_of_segment(16);
        commit(&mut craft, 701);
        craft.switch();
        let (dir, undecoded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let decoded = repository(dir.path(), &craft);
        let again = repository(undecoded.path(), &craft);
        let of = |repository| Inventory::read(repository, "main", None).unwrap();
        let (known, inventory) = (of(&decoded), of(&again));
        let layout = ClusterLayout::new("main", inventory.system_identifier).unwrap();
        for (n, segment) in (1..).zip(craft.bytes.chunks_exact(SEGMENT)) {
            again.store().delete(&layout.segment(name(n))).unwrap();
            store_as(&again, &craft, (n, segment), true);
        }
        let cache = tempfile::tempdir().unwrap();
        let expected = Rollup::new(&decoded, &known, None).unwrap();
        for _ in 0..2 {
            let rollup = Rollup::new(&again, &inventory, Some(cache.path())).unwrap();
            for n in [1, 2] {
                assert_eq!(
                    rollup.facts(name(n)).unwrap(),
                    expected.facts(name(n)).unwrap()
                );
                assert!(rollup.may_end(name(n), 999).unwrap(), "nothing is recorded");
            }
            let crossing = |of: &Rollup<'_>| of.crossing(name(1), Some(name(2))).unwrap();
            assert_eq!(crossing(&rollup), crossing(&expected));
            assert!(!rollup.has_changed());
        }
    }

    /// Reading without the hash shows every record as it was archived, or fails.
    #[test]
    fn a_changed_segment_shows_the_same_records_or_an_error_without_its_hash_too() {
        let mut craft = Craft::new(Major::V17);
        for xid in 700..1000 {
            commit(&mut craft, xid);
        }
        craft.leave_of_segment(24);
        commit(&mut craft, 1000);
        craft.switch();
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(dir.path(), &craft);
        let inventory = Inventory::read(&repository, "main", None).unwrap();
        let name = name(1);
        let read = || {
            let rollup = Rollup::new(&repository, &inventory, None)?;
            let mut seen = Vec::new();
            let next = |s: SegmentName| s.next(size());
            let mut visit = |record: &Record<'_>| seen.push((record.start_lsn, record.crc));
            rollup.records(name, CheckedBy::Records, &next, &mut visit)?;
            Ok::<_, Error>(seen)
        };
        let expected = read().unwrap();
        assert!(expected.len() > 400, "{}", expected.len());
        let layout = ClusterLayout::new("main", inventory.system_identifier).unwrap();
        let file = dir.path().join(layout.segment(name).as_str());
        let whole = std::fs::read(&file).unwrap();
        let (mut failed, mut same) = (0, 0);
        for at in (0..whole.len()).step_by(5) {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            std::fs::write(&file, changed).unwrap();
            match read() {
                Ok(seen) => {
                    assert_eq!(seen, expected, "byte {at}");
                    same += 1;
                }
                Err(e) => {
                    assert!(e.is_damage(), "byte {at}: {e}");
                    failed += 1;
                }
            }
        }
        assert!(failed > 100, "{failed} failed, {same} showed the same");
    }

    #[test]
    fn a_cache_is_used_and_never_believed_where_it_matters() {
        let mut craft = Craft::new(Major::V15);
        for xid in 700..703 {
            commit(&mut craft, xid);
            craft.switch();
        }
        let dir = tempfile::tempdir().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let repository = repository(dir.path(), &craft);
        let inventory = Inventory::read(&repository, "main", None).unwrap();
        let open = || Rollup::new(&repository, &inventory, Some(cache.path())).unwrap();
        let fresh = open().facts(name(2)).unwrap();
        assert_eq!((fresh.xids, fresh.commits), ((701, 701), 1));
        // The object is replaced behind our back by another of the same name.
        let layout = ClusterLayout::new("main", inventory.system_identifier).unwrap();
        repository.store().delete(&layout.segment(name(2))).unwrap();
        let mut other = Craft::new(Major::V15);
        commit(&mut other, 700);
        other.switch();
        for xid in 0..9 {
            commit(&mut other, 800 + xid);
        }
        other.switch();
        let segment = &other.bytes[SEGMENT..2 * SEGMENT];
        store_as(&repository, &craft, (2, segment), false);
        let rollup = open();
        assert_eq!(rollup.facts(name(2)).unwrap(), fresh, "from the cache");
        let mut count = 0;
        rollup
            .scan(name(2), &|_| None, &mut |_| count += 1)
            .unwrap();
        assert_eq!(count, 10);
        assert!(rollup.has_changed());
        assert_eq!(rollup.facts(name(2)).unwrap().commits, 9);
        assert_eq!(open().facts(name(2)).unwrap().commits, 9);
        // A body that is not what its hash says is damage, wherever the damage is.
        let path = dir.path().join(layout.segment(name(3)).as_str());
        rot(&path, 40);
        let damaged = rollup.scan(name(3), &|_| None, &mut |_| {});
        assert_eq!(damaged.unwrap_err().code(), Code::Damaged);
    }

    #[test]
    fn many_indexes_are_read_at_once() {
        let mut craft = Craft::new(Major::V14);
        for xid in 700..740 {
            commit(&mut craft, xid);
            craft.switch();
        }
        let dir = tempfile::tempdir().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let repository = repository(dir.path(), &craft);
        let inventory = Inventory::read(&repository, "main", None).unwrap();
        let rollup = Rollup::new(&repository, &inventory, Some(cache.path())).unwrap();
        rollup
            .prefetch(tli(1), SegmentNumber(0), SegmentNumber(u64::MAX))
            .unwrap();
        let again = Rollup::new(&repository, &inventory, Some(cache.path())).unwrap();
        let known = again.with_table(tli(1), |table| table.rows.len()).unwrap();
        assert_eq!(known, 40);
        for n in 1..=40_u32 {
            let xids = again.facts(name(n.into())).unwrap().xids;
            assert_eq!(xids, (699 + n, 699 + n));
        }
    }
}
