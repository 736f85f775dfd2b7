//! The blocks that a stretch of WAL changed: what an incremental backup reads of a relation, instead of all of it.
//!
//! Main and init forks alone: the two maps are read whole, for the server changes them without WAL. A superset is right, a block that is
//! missing is not: what cannot be understood is therefore a [`Problem`], and never passed over.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::feeder::Feeder;
use super::index::{Blocks, WalEvent};
use crate::pg::change::{self, Change};
use crate::pg::lsn::Lsn;
use crate::pg::reader::{Finding, Sink};
use crate::pg::record::{Fork, Record, Relation};
use crate::pg::rmgr;
use crate::pg::segment::SegmentName;
use crate::pg::summary::SegmentSummary;
use crate::pg::xact::{self, TransactionRecord};
use crate::pg::xlog::{self, WalLevel, XlogRecord};

/// Runs of blocks are kept up to this number, of 8 bytes each; then near ones are joined.
const RUNS_MAX: usize = 3 << 20;
/// Forks, dropped relations and databases that are kept.
const FILES_MAX: usize = 400_000;

/// Tablespace, database, relation file number, fork.
pub type ForkName = (u32, u32, u32, u8);

/// Why WAL does not tell what changed.
pub type Problem = String;

/// The changes of one fork.
#[derive(Debug, Default, Clone)]
struct ForkChanges {
    /// First block and length.
    runs: Vec<(u32, u32)>,
    /// So many of them ascend, and do not touch.
    settled: usize,
    /// From this block on nothing older counts.
    limit: Option<u32>,
}

/// The blocks, files and databases that WAL changed.
#[derive(Debug, Default)]
pub struct Changed {
    forks: HashMap<ForkName, ForkChanges>,
    /// Relations whose files were removed, every fork.
    dropped: HashSet<(u32, u32, u32)>,
    /// Databases, each in one tablespace, that were made or removed.
    databases: HashSet<(u32, u32)>,
    /// Tablespaces that were made or removed.
    tablespaces: HashSet<u32>,
    /// Runs of all forks.
    runs: usize,
    /// Runs less than so many blocks apart are joined.
    gap: u32,
    /// Whether what is added may lie behind the stretch, and the runs that were added so.
    is_late: bool,
    late: HashMap<ForkName, Vec<(u32, u32)>>,
}

/// The blocks to read of one file of a fork, counted from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Ascending, without overlap.
    pub runs: Vec<Range<u64>>,
    /// From here on nothing older counts.
    pub limit: Option<u64>,
}

/// A file of a fork.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub fork: ForkName,
    pub first_block: u64,
    /// Blocks that it has now.
    pub blocks: u64,
    /// Blocks that it had in the prior.
    pub prior_blocks: u64,
}

impl Changed {
    /// Adds a change that a record tells of.
    pub fn add(&mut self, change: &Change<'_>) {
        let name = |r: &Relation, fork: u8| (r.tablespace, r.database, r.number, fork);
        match change {
            Change::Block {
                relation,
                fork,
                block,
            } => self.add_run(name(relation, fork.0), *block, 1),
            Change::Create { relation, fork } => self.limit(name(relation, fork.0), 0),
            Change::Truncate {
                relation, blocks, ..
            } => self.limit(name(relation, Fork::MAIN.0), *blocks),
            Change::Drop(r) => {
                self.dropped.insert((r.tablespace, r.database, r.number));
            }
            Change::DatabaseCopy {
                database,
                tablespace,
                ..
            }
            | Change::DatabaseCreate {
                database,
                tablespace,
            } => {
                self.databases.insert((*database, *tablespace));
            }
            Change::DatabaseDrop {
                database,
                tablespaces,
            } => {
                let all = tablespaces.iter().map(|tablespace| (*database, tablespace));
                self.databases.extend(all);
            }
            Change::TablespaceCreate { tablespace, .. } | Change::TablespaceDrop { tablespace } => {
                self.tablespaces.insert(*tablespace);
            }
            // The new files of truncated tables, and the files of maps, are read as such.
            Change::TruncateTables { .. } | Change::RelationMap { .. } => {}
        }
    }

    /// Adds what the index of a segment tells.
    ///
    /// # Errors
    /// A [`Problem`] if the index does not tell everything.
    pub fn add_index(
        &mut self,
        blocks: &Blocks,
        events: &[(Lsn, WalEvent)],
    ) -> Result<(), Problem> {
        for fork in &blocks.0 {
            for (first, length) in &fork.runs {
                self.add_run(fork.fork, *first, *length);
            }
        }
        events.iter().try_for_each(|(lsn, e)| self.event(*lsn, e))
    }

    fn event(&mut self, lsn: Lsn, event: &WalEvent) -> Result<(), Problem> {
        match event {
            WalEvent::Relation {
                action,
                spc,
                db,
                rel,
                fork,
                block,
                ..
            } => match action {
                0 => {
                    self.dropped.insert((*spc, *db, *rel));
                }
                1 => self.limit((*spc, *db, *rel, Fork::MAIN.0), *block),
                2 => self.limit((*spc, *db, *rel, *fork), 0),
                _ => return Err(format!("an event at {lsn} is not known")),
            },
            WalEvent::Database { db, spc, .. } => {
                self.databases.insert((*db, *spc));
            }
            WalEvent::Tablespace { oid, .. } => {
                self.tablespaces.insert(*oid);
            }
            WalEvent::Undecoded { .. } => {
                return Err(format!(
                    "the transaction end at {lsn} names more files than are kept"
                ));
            }
            WalEvent::ParameterChange { wal_level: 0, .. } => return Err(minimal(lsn)),
            _ => {}
        }
        Ok(())
    }

    fn add_run(&mut self, fork: ForkName, first: u32, length: u32) {
        if fork.3 != Fork::MAIN.0 && fork.3 != Fork::INIT.0 {
            return;
        }
        if self.is_late {
            self.late.entry(fork).or_default().push((first, length));
        }
        let changes = self.forks.entry(fork).or_default();
        let before = changes.runs.len();
        changes.add(first, length, self.gap);
        self.runs = self.runs + changes.runs.len() - before.min(self.runs);
        if self.runs > RUNS_MAX {
            self.coarsen();
        }
    }

    /// Joins near runs until half of the room is free.
    fn coarsen(&mut self) {
        while self.runs > RUNS_MAX / 2 && self.gap < u32::MAX / 2 {
            self.gap = (self.gap * 2).max(8);
            self.settle();
            self.runs = self.forks.values().map(|c| c.runs.len()).sum();
        }
    }

    fn limit(&mut self, fork: ForkName, block: u32) {
        if fork.3 != Fork::MAIN.0 && fork.3 != Fork::INIT.0 {
            return;
        }
        let limit = &mut self.forks.entry(fork).or_default().limit;
        *limit = Some(limit.map_or(block, |known| known.min(block)));
    }

    /// Whether WAL names more files than fit into memory: a script that makes and drops tables writes as many as it likes.
    pub fn is_too_large(&self) -> bool {
        self.forks.len() + self.dropped.len() + self.databases.len() > FILES_MAX
    }

    /// Puts everything in order, so that it can be asked, and gives the room back that was taken for more runs.
    pub fn settle(&mut self) {
        for changes in self.forks.values_mut() {
            changes.settle(self.gap);
            changes.runs.shrink_to_fit();
        }
    }

    /// Says whether what is added from here on may lie behind the stretch: an index tells of its whole segment.
    pub fn set_late(&mut self, is_late: bool) {
        self.is_late = is_late;
    }

    /// Whether a block may have been changed behind the stretch alone.
    pub fn is_late(&self, fork: ForkName, block: u64) -> bool {
        let runs = self.late.get(&fork).into_iter().flatten();
        let mut runs = runs.map(|(first, length)| (u64::from(*first), u64::from(*length)));
        runs.any(|(first, length)| first <= block && block < first + length)
    }

    /// Whether every block that is named was changed, and none for lack of room.
    pub fn is_exact(&self) -> bool {
        self.gap == 0
    }

    /// The forks that have changed blocks, and were not made anew.
    pub fn active(&self) -> impl Iterator<Item = ForkName> + '_ {
        let active = self.forks.iter().filter(|(fork, changes)| {
            !changes.runs.is_empty() && changes.limit != Some(0) && !self.is_new(**fork)
        });
        active.map(|(fork, _)| *fork)
    }

    fn is_new(&self, (spc, db, rel, _): ForkName) -> bool {
        self.dropped.contains(&(spc, db, rel))
            || self.databases.contains(&(db, spc))
            || self.tablespaces.contains(&spc)
    }

    /// Returns the blocks to read of a file: blocks that WAL names, blocks from a limit on, and blocks that the prior
    /// lacks. The caller calls [`Changed::settle`] first.
    pub fn wanted(&self, segment: &Segment) -> Wanted {
        let changes = self.forks.get(&segment.fork);
        let known = changes.and_then(|c| c.limit).map(u64::from);
        let limit = match self.is_new(segment.fork) {
            true => Some(0),
            false => known,
        };
        let limit = limit.map(|block| block.saturating_sub(segment.first_block));
        let all_from = limit.unwrap_or(u64::MAX).min(segment.prior_blocks);
        let mut runs: Vec<Range<u64>> = Vec::new();
        let named = changes.map_or(&[][..], |c| c.runs.as_slice());
        let from = named.partition_point(|(first, length)| {
            u64::from(*first) + u64::from(*length) <= segment.first_block
        });
        for (first, length) in named.get(from..).unwrap_or_default() {
            let start = u64::from(*first).saturating_sub(segment.first_block);
            let end = (u64::from(*first) + u64::from(*length))
                .saturating_sub(segment.first_block)
                .min(segment.blocks);
            if start >= segment.blocks || start >= all_from {
                break;
            }
            runs.push(start..end);
        }
        if all_from < segment.blocks {
            match runs.last_mut() {
                Some(last) if last.end >= all_from => last.end = segment.blocks,
                _ => runs.push(all_from..segment.blocks),
            }
        }
        Wanted {
            runs,
            limit: limit.filter(|block| *block < segment.blocks),
        }
    }
}

impl ForkChanges {
    fn add(&mut self, first: u32, length: u32, gap: u32) {
        if let Some((start, known)) = self.runs.last_mut() {
            let end = u64::from(*start) + u64::from(*known);
            if first >= *start && u64::from(first) <= end {
                let new = (u64::from(first) + u64::from(length)).max(end) - u64::from(*start);
                *known = u32::try_from(new).unwrap_or(u32::MAX);
                return;
            }
        }
        self.runs.push((first, length));
        if self.runs.len() >= 1024 && self.runs.len() >= 2 * self.settled {
            self.settle(gap);
        }
    }

    /// Sorts the runs, and joins those less than `gap` blocks apart. That is done in place: a copy would take the memory of all of them again.
    fn settle(&mut self, gap: u32) {
        self.runs.sort_unstable();
        self.runs.dedup_by(|(first, length), (start, known)| {
            let end = u64::from(*first) + u64::from(*length);
            let before = u64::from(*start) + u64::from(*known);
            let is_near = u64::from(*first) <= before + u64::from(gap);
            if is_near {
                let new = end.max(before) - u64::from(*start);
                *known = u32::try_from(new).unwrap_or(u32::MAX);
            }
            is_near
        });
        self.settled = self.runs.len();
    }
}

fn minimal(lsn: Lsn) -> Problem {
    format!("WAL of wal_level minimal begins at {lsn}")
}

/// Decodes segments in a row, and adds what their records change.
pub struct Decoder<'c> {
    feeder: Feeder,
    sink: Records<'c>,
}

struct Records<'c> {
    changed: &'c mut Changed,
    problem: Option<Problem>,
}

impl<'c> Decoder<'c> {
    /// Adds to `changed`.
    pub fn new(changed: &'c mut Changed) -> Decoder<'c> {
        Decoder {
            feeder: Feeder::default(),
            sink: Records {
                changed,
                problem: None,
            },
        }
    }

    /// The changes so far.
    pub fn changed(&self) -> &Changed {
        self.sink.changed
    }

    /// Forgets the segments so far: the next one is read as the first.
    pub fn restart(&mut self) {
        self.feeder = Feeder::default();
        self.sink.problem = None;
    }

    /// Adds what a record changed that was put together elsewhere.
    ///
    /// # Errors
    /// A [`Problem`] if the record does not tell everything.
    pub fn add(&mut self, record: &Record<'_>) -> Result<(), Problem> {
        add_record(self.sink.changed, record)
    }

    /// Begins a segment, which follows the one before.
    pub fn begin(&mut self, name: SegmentName, start: Lsn) {
        self.feeder.begin(name, start);
    }

    /// Reads the next bytes of the segment.
    ///
    /// # Errors
    /// `Damaged` when these are no pages of WAL.
    pub fn feed(&mut self, bytes: &[u8]) -> crate::error::Result<()> {
        self.feeder.feed(bytes, &mut self.sink)
    }

    /// Ends the segment.
    ///
    /// # Errors
    /// A [`Problem`] if its records do not tell everything.
    pub fn end(&mut self) -> Result<SegmentSummary, Problem> {
        let summary = self.feeder.end();
        match self.sink.problem.take() {
            Some(problem) => Err(problem),
            None => summary.ok_or_else(|| "a segment has no page".to_owned()),
        }
    }
}

impl Sink for Records<'_> {
    fn record(&mut self, record: &Record<'_>) {
        if self.problem.is_none()
            && let Err(problem) = add_record(self.changed, record)
        {
            self.problem = Some(problem);
        }
    }

    fn finding(&mut self, finding: Finding) {
        self.problem
            .get_or_insert_with(|| format!("WAL is damaged at {}", finding.lsn));
    }
}

/// Adds what a record changes.
///
/// # Errors
/// A [`Problem`] if the record does not tell everything.
pub fn add_record(changed: &mut Changed, record: &Record<'_>) -> Result<(), Problem> {
    let unknown = || format!("the record at {} cannot be understood", record.start_lsn);
    let body = record.body().map_err(|_| unknown())?;
    change::changes(record, &body, |c| changed.add(&c)).map_err(|_| unknown())?;
    match record.rmid {
        rmgr::TRANSACTION => match xact::decode(record, body.main_data).map_err(|_| unknown())? {
            Some(TransactionRecord::End(end)) if end.truncated => Err(unknown()),
            _ => Ok(()),
        },
        rmgr::XLOG => {
            let level = match xlog::decode(record, body.main_data).map_err(|_| unknown())? {
                Some(XlogRecord::ParameterChange(p)) => Some(p.wal_level),
                Some(XlogRecord::Checkpoint(c)) => c.wal_level,
                Some(XlogRecord::EndOfRecovery(e)) => e.wal_level,
                Some(XlogRecord::CheckpointRedo(level)) => level,
                _ => None,
            };
            match level {
                Some(WalLevel::Minimal) => Err(minimal(record.start_lsn)),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAP: ForkName = (1663, 5, 77, 0);
    const RELATION: Relation = Relation {
        tablespace: 1663,
        database: 5,
        number: 77,
    };

    fn segment(first_block: u64, blocks: u64, prior_blocks: u64) -> Segment {
        Segment {
            fork: HEAP,
            first_block,
            blocks,
            prior_blocks,
        }
    }

    fn of(changes: &[Change<'_>]) -> Changed {
        let mut changed = Changed::default();
        changes.iter().for_each(|c| changed.add(c));
        changed.settle();
        changed
    }

    fn block(block: u32) -> Change<'static> {
        Change::Block {
            relation: RELATION,
            fork: Fork::MAIN,
            block,
        }
    }

    /// An index tells of records behind the stretch, too, where that ends inside the last segment.
    #[test]
    fn a_block_of_the_last_segment_may_have_changed_behind_the_stretch() {
        let mut changed = Changed::default();
        changed.add(&block(3));
        changed.set_late(true);
        changed.add(&block(7));
        changed.set_late(false);
        changed.add(&block(9));
        changed.settle();
        let is_late = |number| changed.is_late(HEAP, number);
        assert_eq!([3, 7, 8, 9].map(is_late), [false, true, false, false]);
        assert!(changed.is_exact());
    }

    fn truncated(blocks: u32) -> Change<'static> {
        Change::Truncate {
            relation: RELATION,
            blocks,
            main: true,
            vm: true,
            fsm: true,
        }
    }

    fn wanted(changed: &Changed, segment: Segment) -> (Vec<(u64, u64)>, Option<u64>) {
        let Wanted { runs, limit } = changed.wanted(&segment);
        (runs.into_iter().map(|r| (r.start, r.end)).collect(), limit)
    }

    #[test]
    fn blocks_that_wal_names_and_blocks_that_are_new_are_wanted() {
        let changed = of(&[9, 3, 4, 3, 20, 131_072, 131_080].map(block));
        assert_eq!(
            wanted(&changed, segment(0, 12, 12)),
            (vec![(3, 5), (9, 10)], None)
        );
        // Grown since: the new blocks are in no record.
        assert_eq!(
            wanted(&changed, segment(0, 12, 10)),
            (vec![(3, 5), (9, 12)], None)
        );
        assert_eq!(wanted(&changed, segment(0, 12, 4)), (vec![(3, 12)], None));
        // Shorter than before: what is gone is not asked for.
        assert_eq!(wanted(&changed, segment(0, 4, 30)), (vec![(3, 4)], None));
        assert_eq!(
            wanted(&changed, segment(131_072, 131_072, 131_072)),
            (vec![(0, 1), (8, 9)], None)
        );
        assert_eq!(wanted(&of(&[]), segment(0, 5, 5)), (vec![], None));
        assert_eq!(wanted(&of(&[]), segment(0, 5, 0)), (vec![(0, 5)], None));
    }

    #[test]
    fn nothing_older_counts_from_a_limit_on_whatever_came_later() {
        let changed = of(&[block(2), truncated(6), truncated(8), block(7)]);
        assert_eq!(
            wanted(&changed, segment(0, 20, 20)),
            (vec![(2, 3), (6, 20)], Some(6))
        );
        assert_eq!(wanted(&changed, segment(0, 5, 20)), (vec![(2, 3)], None));
        let second = segment(131_072, 3, 3);
        assert_eq!(wanted(&changed, second), (vec![(0, 3)], Some(0)));
        let create = Change::Create {
            relation: RELATION,
            fork: Fork::MAIN,
        };
        for change in [
            create,
            Change::Drop(RELATION),
            Change::DatabaseCopy {
                database: 5,
                tablespace: 1663,
                source_database: 1,
                source_tablespace: 1663,
            },
            Change::DatabaseCreate {
                database: 5,
                tablespace: 1663,
            },
            Change::TablespaceDrop { tablespace: 1663 },
        ] {
            let changed = of(&[change, block(1)]);
            let whole = (vec![(0, 9)], Some(0));
            assert_eq!(wanted(&changed, segment(0, 9, 9)), whole, "{change:?}");
            assert_eq!(changed.active().count(), 0);
        }
    }

    #[test]
    fn runs_that_are_too_many_are_joined_and_never_lost() {
        let mut changed = Changed {
            gap: 0,
            ..Changed::default()
        };
        let blocks: Vec<u32> = (0..5000).map(|n| (n * 7919) % 100_003).collect();
        for b in &blocks {
            changed.add(&block(*b));
        }
        changed.runs = RUNS_MAX + 1;
        changed.coarsen();
        assert!(changed.gap >= 8);
        changed.settle();
        let runs = changed.wanted(&segment(0, 131_072, 131_072)).runs;
        assert!(runs.windows(2).all(|w| w[0].end < w[1].start));
        for b in blocks.into_iter().map(u64::from) {
            assert!(runs.iter().any(|run| run.contains(&b)), "{b}");
        }
    }

    #[test]
    fn r199_runs_that_are_joined_give_their_room_back() {
        let even = (0..500).map(|n| 2 * n);
        let odd = (0..500).map(|n| 2 * n + 1);
        let blocks: Vec<_> = even.chain(odd).map(block).collect();
        let changed = of(&blocks);
        let all = (vec![(0, 1000)], None);
        assert_eq!(wanted(&changed, segment(0, 2000, 2000)), all);
        let room: usize = changed.forks.values().map(|c| c.runs.capacity()).sum();
        assert!(room < 100, "{room}");
    }

    #[test]
    fn what_an_index_does_not_tell_is_a_problem() {
        let at = Lsn(8);
        let mut changed = Changed::default();
        let mut event = |e| changed.add_index(&Blocks::default(), &[(at, e)]);
        assert!(
            event(WalEvent::Relation {
                action: 1,
                spc: 1663,
                db: 5,
                rel: 77,
                fork: 0,
                block: 3,
                xid: 1
            })
            .is_ok()
        );
        for bad in [
            WalEvent::Undecoded {
                rmid: 1,
                info: 0,
                xid: 7,
                time: crate::pg::time::TimestampTz(0),
            },
            WalEvent::ParameterChange {
                limits: [1; 5],
                wal_level: 0,
                wal_log_hints: false,
                track_commit_timestamp: false,
            },
            WalEvent::Relation {
                action: 9,
                spc: 1,
                db: 1,
                rel: 1,
                fork: 0,
                block: 0,
                xid: 1,
            },
        ] {
            assert!(event(bad).is_err());
        }
        assert_eq!(wanted(&changed, segment(0, 9, 9)), (vec![(3, 9)], Some(3)));
    }
}
