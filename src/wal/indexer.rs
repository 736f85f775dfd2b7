//! Makes the index of a segment while its bytes pass by: a pure function of the bytes and the name.
//!
//! Fed with whole pages in order; memory does not grow with the segment beyond the caps of the index. Decoding ends at the first
//! finding, as PostgreSQL's replay would.

use super::index::{
    Blocks, CheckpointKind, Commit, DamageKind, Ends, ForkBlocks, Fragments, HeadEnd, SegmentIndex,
    Summary, TailClass, WalEvent, XidSet, flag,
};
use crate::error::Result;
use crate::pg::change::{self, Change, HeapBlocks};
use crate::pg::lsn::Lsn;
use crate::pg::number_map::NumberMap;
use crate::pg::page::WalIdentity;
use crate::pg::reader::{self, Finding, FindingKind, SegmentEnd, SegmentSummary, Sink};
use crate::pg::record::{self, Fork, Record, RecordHeader};
use crate::pg::rmgr;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::xact::{self, TransactionRecord};
use crate::pg::xlog::{self, WalLevel, XlogRecord};

/// More xids than this in one segment are not recorded (16 MiB of memory).
const XIDS_MAX: usize = 4 << 20;
/// More distinct changed blocks than this are not recorded.
const BLOCKS_MAX: usize = 2 << 20;
/// More events than this are not recorded.
const EVENTS_MAX: usize = 200_000;

/// Builds one index.
pub struct Indexer {
    reader: reader::Reader,
    collected: Collected,
    timeline: TimelineId,
    start_lsn: Lsn,
}

impl Indexer {
    /// Begins a segment that starts at `start_lsn` and is filed under `timeline`; `identity` is read from its first page.
    ///
    /// # Errors
    /// `Internal` if `start_lsn` is no segment start; `Unsupported` for WAL of a major newer than every supported one.
    pub fn new(identity: &WalIdentity, start_lsn: Lsn, timeline: TimelineId) -> Result<Indexer> {
        let mut reader = reader::Reader::new(identity)?;
        reader.start_segment(start_lsn, timeline)?;
        Ok(Indexer {
            reader,
            collected: Collected {
                events: Some(Vec::new()),
                ..Collected::default()
            },
            timeline,
            start_lsn,
        })
    }

    /// Reads whole pages.
    ///
    /// # Errors
    /// `Damaged` when these are no whole pages or more than the segment has.
    pub fn feed(&mut self, pages: &[u8]) -> Result<()> {
        self.reader.feed(pages, &mut self.collected)
    }

    /// Ends the segment; `is_partial` allows WAL to end anywhere.
    pub fn finish(mut self, is_partial: bool) -> SegmentIndex {
        let found = self.reader.finish_segment();
        let mut collected = self.collected;
        let first = collected.damage.first().copied();
        if is_partial {
            // A partial's stale bytes are no damage, whatever they look like.
            collected.damage.clear();
        }
        let mut summary = summary(&found, &mut collected, self.timeline, self.start_lsn);
        if !is_partial && ends_a_switch(&found, &summary) {
            summary.flags = summary.flags & !flag::ENDS_INSIDE | flag::SWITCH;
        }
        if is_partial && first.is_some_and(|(kind, _)| kind != DamageKind::AfterSwitch) {
            // They begin inside a page, or look like records: WAL ends at the first of them all the same.
            let end = found.first_damage.unwrap_or(found.valid_end);
            end_at(&mut summary, end, found.last_before_damage);
        }
        let fragments = Fragments {
            head: found.head.map(|f| f.bytes).unwrap_or_default(),
            tail: found.tail.map(|f| f.bytes).unwrap_or_default(),
        };
        SegmentIndex {
            summary,
            fragments,
            xids: collected.xids.finish(),
            events: collected.events,
            blocks: collected.blocks.finish(),
            damage: collected.damage,
        }
    }
}

/// Whether the record that reaches in is a switch record whose header the segment's edge has cut: then nothing follows it here, and the
/// segment is whole. Its last 8 or 16 bytes are here, of 24.
///
/// PostgreSQL: src/backend/access/transam/xlog.c (ReserveXLogSwitch), src/include/access/xlogrecord.h.
fn ends_a_switch(found: &SegmentSummary, summary: &Summary) -> bool {
    if !summary.has(flag::ENDS_INSIDE) || summary.has(flag::DAMAGED) || summary.records > 0 {
        return false;
    }
    let head = found.head.as_ref().filter(|head| head.end_lsn.is_some());
    let Some(last) = head
        .filter(|head| matches!(head.length, 8 | 16) && found.first_record.is_none())
        .and_then(|head| head.bytes.last_chunk::<8>())
    else {
        return false;
    };
    let [info, rmid, ..] = *last;
    xlog::is_switch(rmid, info)
}

fn summary(
    found: &SegmentSummary,
    collected: &mut Collected,
    timeline: TimelineId,
    start_lsn: Lsn,
) -> Summary {
    let (first_timeline, last_timeline) = found.timelines.unwrap_or_default();
    let mut flags = collected.flags;
    let mut set = |bit, on: bool| flags |= if on { bit } else { 0 };
    set(flag::DAMAGED, !collected.damage.is_empty());
    set(flag::SWITCH, matches!(found.end, SegmentEnd::Switch(_)));
    set(
        flag::ENDS_INSIDE,
        !matches!(found.end, SegmentEnd::Full | SegmentEnd::Switch(_)),
    );
    set(flag::OVERWRITTEN, found.overwritten);
    set(
        flag::PARENT_PAGES,
        first_timeline != 0 && first_timeline != timeline.get(),
    );
    let valid_end = match collected.damage.first() {
        Some((_, lsn)) => *lsn,
        None => found.valid_end,
    };
    let head_end = match &found.head {
        None => HeadEnd::None,
        Some(h) if h.end_lsn.is_some() => HeadEnd::Here,
        Some(_) if found.first_record.is_none() && matches!(found.end, SegmentEnd::Full) => {
            HeadEnd::Continues
        }
        Some(_) => HeadEnd::Abandoned,
    };
    let damaged = !collected.damage.is_empty();
    Summary {
        flags,
        start_lsn,
        first_timeline,
        last_timeline,
        head_length: found.head.as_ref().map_or(0, |h| h.length),
        head_remaining: found.head.as_ref().map_or(0, |h| h.total),
        head_end,
        first_record: found.first_record,
        last_begun: if damaged {
            found.last_before_damage.map(|(start, _)| start)
        } else {
            found.last_begun
        },
        last_complete: if damaged {
            found.last_before_damage
        } else {
            found.last_complete
        },
        tail_length: found.tail.as_ref().map_or(0, |t| t.length),
        tail_total: found.tail.as_ref().map_or(0, |t| t.total),
        tail_class: found
            .tail
            .as_ref()
            .map_or(TailClass::Unknown, |t| tail_class(&t.bytes)),
        valid_end,
        records: collected.records,
        commits: collected.commits,
        aborts: collected.aborts,
        prepares: collected.prepares,
        ends: collected.ends,
    }
}

/// WAL ends at `end`, behind the record `last`; what was found behind it is nothing.
fn end_at(summary: &mut Summary, end: Lsn, last: Option<(Lsn, Lsn)>) {
    summary.flags = summary.flags & !flag::SWITCH | flag::ENDS_INSIDE;
    summary.valid_end = end;
    summary.first_record = summary.first_record.filter(|(lsn, _)| *lsn < end);
    summary.last_begun = last.map(|(start, _)| start);
    summary.last_complete = last;
    (summary.tail_length, summary.tail_total) = (0, 0);
    summary.tail_class = TailClass::Unknown;
}

/// Returns the class of the record that begins with these bytes.
fn tail_class(bytes: &[u8]) -> TailClass {
    let Some(header) = RecordHeader::read(bytes) else {
        return TailClass::Unknown;
    };
    match (header.rmid, header.info & 0xF0) {
        (rmgr::TRANSACTION, info) => match info & 0x70 {
            0x00 | 0x20 | 0x30 | 0x40 => TailClass::TransactionEnd,
            _ => TailClass::Other,
        },
        // NOOP, NEXTOID and the two kinds of page images have no entry.
        (rmgr::XLOG, 0x20 | 0x30 | 0xA0 | 0xB0) => TailClass::Other,
        (rmgr::XLOG | rmgr::STORAGE | rmgr::DATABASE | rmgr::TABLESPACE, _) => TailClass::Event,
        _ => TailClass::Other,
    }
}

/// The collected facts about the records of a segment.
#[derive(Default)]
struct Collected {
    flags: u64,
    records: u64,
    commits: u64,
    aborts: u64,
    prepares: u64,
    ends: Option<Ends>,
    xids: Xids,
    /// None where they were given up, for their number.
    events: Option<Vec<(Lsn, WalEvent)>>,
    blocks: ChangedBlocks,
    damage: Vec<(DamageKind, Lsn)>,
}

impl Sink for Collected {
    fn record(&mut self, record: &Record<'_>) {
        if !self.damage.is_empty() {
            return;
        }
        // A record that began in an earlier segment belongs there; its blocks are counted from the joined fragments.
        self.records += 1;
        let blocks = &mut self.blocks;
        let mut heap_blocks = HeapBlocks::default();
        let taken_apart = change::references(record, &mut heap_blocks, |c| {
            if let Change::Block {
                relation,
                fork,
                block,
            } = c
            {
                blocks.changed(relation, fork, block);
            }
        });
        let Ok(body) = taken_apart else {
            // The CRC is right, so the server wrote it so; a decoder that cannot follow must not claim to know.
            self.give_up_lists();
            return;
        };
        let known = match record.rmid {
            rmgr::TRANSACTION => self.transaction(record, body.main_data),
            rmgr::XLOG => self.xlog(record, body.main_data),
            _ => Some(()),
        };
        let changed =
            change::beyond_references(record, &body, &heap_blocks, |c| self.change(record, c));
        if known.is_none() || changed.is_err() {
            self.give_up_lists();
        }
    }

    fn finding(&mut self, finding: Finding) {
        let kind = match finding.kind {
            FindingKind::Crc => DamageKind::Crc,
            FindingKind::Prev { .. } => DamageKind::Prev,
            FindingKind::Header => DamageKind::RecordHeader,
            FindingKind::AfterSwitch => DamageKind::AfterSwitch,
            _ => DamageKind::PageHeader,
        };
        if self.damage.is_empty() {
            self.damage.push((kind, finding.lsn));
        }
    }
}

impl Collected {
    fn give_up_lists(&mut self) {
        self.xids.given_up = true;
        self.events = None;
        self.blocks.given_up = true;
    }

    fn event(&mut self, lsn: Lsn, event: WalEvent) {
        if let Some(events) = &mut self.events {
            if events.len() < EVENTS_MAX {
                events.push((lsn, event));
            } else {
                self.events = None;
            }
        }
    }

    fn transaction(&mut self, record: &Record<'_>, main: &[u8]) -> Option<()> {
        match xact::decode(record, main).ok()?? {
            TransactionRecord::End(end) => {
                let commit = Commit {
                    xid: end.xid.0,
                    lsn: record.start_lsn,
                    time: end.time,
                };
                if end.outcome.is_commit() {
                    self.commits += 1;
                } else {
                    self.aborts += 1;
                }
                self.end(commit, end.outcome.is_commit());
                if end.truncated {
                    let event = WalEvent::Undecoded {
                        rmid: record.rmid,
                        info: record.info,
                        xid: end.xid.0,
                        time: end.time,
                    };
                    self.event(record.start_lsn, event);
                }
            }
            TransactionRecord::Prepare(_) => self.prepares += 1,
            _ => {}
        }
        Some(())
    }

    fn end(&mut self, end: Commit, is_commit: bool) {
        let ends = self.ends.get_or_insert(Ends {
            min_time: end.time,
            max_time: end.time,
            first_commit: None,
            last_commit: None,
            min_xid: u32::MAX,
            max_xid: 0,
        });
        ends.min_time = ends.min_time.min(end.time);
        ends.max_time = ends.max_time.max(end.time);
        if end.xid == 0 {
            self.xids.given_up = true;
        } else {
            ends.min_xid = ends.min_xid.min(end.xid);
            ends.max_xid = ends.max_xid.max(end.xid);
            self.xids.push(end.xid);
            if is_commit {
                ends.first_commit.get_or_insert(end);
                ends.last_commit = Some(end);
            }
        }
    }

    fn xlog(&mut self, record: &Record<'_>, main: &[u8]) -> Option<()> {
        let event = match xlog::decode(record, main).ok()?? {
            XlogRecord::Checkpoint(c) => {
                self.level(c.wal_level);
                WalEvent::Checkpoint {
                    kind: if c.shutdown {
                        CheckpointKind::Shutdown
                    } else {
                        CheckpointKind::Online
                    },
                    timeline: c.checkpoint.timeline.get(),
                    previous_timeline: c.checkpoint.previous_timeline.get(),
                    redo_lsn: c.checkpoint.redo,
                    time: TimestampTz::from_unix_seconds(c.checkpoint.time).unwrap_or_default(),
                }
            }
            XlogRecord::EndOfRecovery(e) => {
                self.level(e.wal_level);
                WalEvent::Checkpoint {
                    kind: CheckpointKind::EndOfRecovery,
                    timeline: e.timeline,
                    previous_timeline: e.previous_timeline,
                    redo_lsn: Lsn::INVALID,
                    time: e.time,
                }
            }
            XlogRecord::ParameterChange(p) => {
                self.level(Some(p.wal_level));
                let count = |v: i32| u64::from(v.max(0).cast_unsigned());
                WalEvent::ParameterChange {
                    limits: [
                        count(p.max_connections),
                        count(p.max_worker_processes),
                        count(p.max_wal_senders),
                        count(p.max_prepared_transactions),
                        count(p.max_locks_per_transaction),
                    ],
                    wal_level: p.wal_level as u64,
                    wal_log_hints: p.wal_log_hints,
                    track_commit_timestamp: p.track_commit_timestamp,
                }
            }
            XlogRecord::RestorePoint(p) => WalEvent::RestorePoint {
                time: p.time,
                name: p.name.to_vec(),
            },
            XlogRecord::BackupEnd(start_lsn) => WalEvent::BackupEnd { start_lsn },
            XlogRecord::OverwriteContrecord { overwritten, .. } => {
                WalEvent::OverwrittenContrecord { lsn: overwritten }
            }
            XlogRecord::FullPageWrites(is_on) => WalEvent::FullPageWrites { is_on },
            XlogRecord::CheckpointRedo(level) => {
                self.level(level);
                return Some(());
            }
            XlogRecord::Switch | XlogRecord::Other => return Some(()),
        };
        self.event(record.start_lsn, event);
        Some(())
    }

    fn level(&mut self, level: Option<WalLevel>) {
        if level == Some(WalLevel::Minimal) {
            self.flags |= flag::MINIMAL;
        }
    }

    fn change(&mut self, record: &Record<'_>, change: Change<'_>) {
        let relation = |action, r: record::Relation, fork: Fork, block| WalEvent::Relation {
            action,
            spc: r.tablespace,
            db: r.database,
            rel: r.number,
            fork: fork.0,
            block,
            xid: record.xid.0,
        };
        let space = |action, oid, path: &[u8]| WalEvent::Tablespace {
            action,
            oid,
            xid: record.xid.0,
            path: path.to_vec(),
        };
        let lsn = record.start_lsn;
        match change {
            Change::Block {
                relation,
                fork,
                block,
            } => self.blocks.changed(relation, fork, block),
            Change::Create { relation: r, fork } => self.event(lsn, relation(2, r, fork, 0)),
            Change::Truncate {
                relation: r,
                blocks,
                ..
            } => self.event(lsn, relation(1, r, Fork::MAIN, blocks)),
            Change::Drop(r) => self.event(lsn, relation(0, r, Fork::MAIN, 0)),
            Change::DatabaseCopy {
                database,
                tablespace,
                ..
            } => self.database(record, 0, database, tablespace),
            Change::DatabaseCreate {
                database,
                tablespace,
            } => self.database(record, 1, database, tablespace),
            Change::DatabaseDrop {
                database,
                tablespaces,
            } => {
                for tablespace in tablespaces.iter() {
                    self.database(record, 2, database, tablespace);
                }
            }
            Change::TablespaceCreate { tablespace, path } => {
                self.event(lsn, space(0, tablespace, path));
            }
            Change::TablespaceDrop { tablespace } => self.event(lsn, space(1, tablespace, &[])),
            Change::TruncateTables { .. } | Change::RelationMap { .. } => {}
        }
    }

    fn database(&mut self, record: &Record<'_>, action: u8, db: u32, spc: u32) {
        let xid = record.xid.0;
        let event = WalEvent::Database {
            action,
            db,
            spc,
            xid,
        };
        self.event(record.start_lsn, event);
    }
}

#[derive(Default)]
struct Xids {
    all: Vec<u32>,
    given_up: bool,
}

impl Xids {
    fn push(&mut self, xid: u32) {
        if self.all.len() < XIDS_MAX {
            self.all.push(xid);
        } else {
            self.given_up = true;
        }
    }

    fn finish(mut self) -> Option<XidSet> {
        if self.given_up {
            return None;
        }
        self.all.sort_unstable();
        self.all.dedup();
        Some(XidSet::from_sorted(&self.all))
    }
}

/// The set of changed blocks, fast for WAL that touches the same blocks again and again.
struct ChangedBlocks {
    forks: NumberMap<(record::Relation, u8), u32>,
    /// Forks seen last, by the lower bits of their numbers: transactions touch the same few in turn.
    known: [Option<KnownFork>; KNOWN],
    /// `fork number << 32 | block`, with duplicates.
    touched: Vec<u64>,
    /// Recently pushed values by their hash: filters most duplicates before they cost a sort.
    recent: Vec<u64>,
    given_up: bool,
}

const RECENT: usize = 1 << 13;
const KNOWN: usize = 16;

/// A fork, its number in `forks`, and the two blocks of it that were pushed last: most records change one of these again.
#[derive(Clone, Copy)]
struct KnownFork {
    relation: record::Relation,
    fork: u8,
    number: u32,
    last: [u32; 2],
}

impl Default for ChangedBlocks {
    fn default() -> Self {
        ChangedBlocks {
            forks: NumberMap::default(),
            known: [None; KNOWN],
            touched: Vec::new(),
            recent: vec![u64::MAX; RECENT],
            given_up: false,
        }
    }
}

impl ChangedBlocks {
    #[inline]
    fn changed(&mut self, relation: record::Relation, fork: Fork, block: u32) {
        // The free space map is taken as changed always; its references would only cost room.
        if fork != Fork::FSM {
            self.push(relation, fork, block);
        }
    }

    fn push(&mut self, relation: record::Relation, fork: Fork, block: u32) {
        if self.given_up {
            return;
        }
        let slot = (relation.number as usize ^ usize::from(fork.0)) % KNOWN;
        let Some(slot) = self.known.get_mut(slot) else {
            return;
        };
        let number = match slot {
            Some(known) if known.relation == relation && known.fork == fork.0 => {
                if known.last.contains(&block) {
                    return;
                }
                known.last = [block, known.last[0]];
                known.number
            }
            _ => {
                let next = u32::try_from(self.forks.len()).unwrap_or(u32::MAX);
                let number = *self.forks.entry((relation, fork.0)).or_insert(next);
                *slot = Some(KnownFork {
                    relation,
                    fork: fork.0,
                    number,
                    last: [block; 2],
                });
                number
            }
        };
        let value = u64::from(number) << 32 | u64::from(block);
        let slot = usize::try_from(value.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 51).unwrap_or(0);
        match self.recent.get_mut(slot) {
            Some(seen) if *seen == value => return,
            Some(seen) => *seen = value,
            None => {}
        }
        self.touched.push(value);
        if self.touched.len() >= 2 * BLOCKS_MAX {
            self.settle();
            self.given_up = self.touched.len() > BLOCKS_MAX;
        }
    }

    fn settle(&mut self) {
        self.touched.sort_unstable();
        self.touched.dedup();
    }

    fn finish(mut self) -> Option<Blocks> {
        if self.given_up {
            return None;
        }
        self.settle();
        let mut names: Vec<(u32, (record::Relation, u8))> = self
            .forks
            .iter()
            .map(|(name, number)| (*number, *name))
            .collect();
        names.sort_unstable_by_key(|(number, _)| *number);
        let mut forks: Vec<ForkBlocks> = Vec::with_capacity(names.len());
        let mut current = None;
        for value in &self.touched {
            let number = value >> 32;
            let block = u32::try_from(value & 0xFFFF_FFFF).ok()?;
            if current != Some(number) {
                let (_, (r, fork)) = names.get(usize::try_from(number).ok()?)?;
                forks.push(ForkBlocks {
                    fork: (r.tablespace, r.database, r.number, *fork),
                    runs: Vec::new(),
                });
                current = Some(number);
            }
            let runs = &mut forks.last_mut()?.runs;
            match runs.last_mut() {
                Some((first, length))
                    if u64::from(*first) + u64::from(*length) == u64::from(block) =>
                {
                    *length += 1;
                }
                _ => runs.push((block, 1)),
            }
        }
        forks.sort_by_key(|f| f.fork);
        Some(Blocks(forks))
    }
}
