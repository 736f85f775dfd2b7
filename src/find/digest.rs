//! Reduces the records of a segment to what the story of a stretch needs: changes of catalogs, ends of transactions, counts of rows.

use super::catalogs::CatalogFiles;
use crate::pg::catalog::{Catalog, FIRST_NORMAL_OID, FileMap};
use crate::pg::change::{self, Change};
use crate::pg::heap::{self, DeleteCause, PageRow, RowChange};
use crate::pg::image;
use crate::pg::lsn::Lsn;
use crate::pg::number_map::NumberMap;
use crate::pg::record::{Body, Fork, Record, Reference, Relation};
use crate::pg::rmgr;
use crate::pg::time::TimestampTz;
use crate::pg::xact::{self, TransactionRecord};
use crate::pg::xlog::{self, CheckpointRecord, XlogRecord};

/// A place of a catalog's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    pub catalog: Catalog,
    /// Oid of the database; 0 for a shared one.
    pub database: u32,
    /// Number of the file.
    pub file: u32,
    pub block: u32,
}

/// A change of a catalog's row.
#[derive(Debug)]
pub struct RowStep {
    /// Start of the record.
    pub lsn: Lsn,
    /// Its transaction.
    pub xid: u32,
    /// Block of the new version, or of the only one.
    pub place: Place,
    /// Block of the old version.
    pub old_block: u32,
    pub change: RowChange,
    /// Data of the record about the block; none where an image of the page, which came before, has the row.
    pub data: Option<Vec<u8>>,
}

/// The end of a transaction.
#[derive(Debug)]
pub struct EndStep {
    /// Start of the record.
    pub lsn: Lsn,
    /// The transaction.
    pub xid: u32,
    pub time: TimestampTz,
    /// Whether its changes stay.
    pub is_commit: bool,
    /// Its subtransactions.
    pub subxids: Vec<u32>,
    /// Relations whose files are removed.
    pub dropped: Vec<Relation>,
}

/// Something that the story needs, in the order of the WAL.
#[derive(Debug)]
pub enum Step {
    /// The rows of a page of a catalog, after the record that follows.
    Page(Place, Vec<PageRow>),
    /// A change of a catalog's row.
    Row(RowStep),
    /// A transaction gave catalogs of a database other files.
    Map(u32, FileMap),
    /// A relation got a file.
    Create(u32, Relation),
    /// A file was emptied in its place.
    Empty(u32, Relation),
    /// The files of a database were removed.
    DropDatabase {
        /// Start of the record.
        lsn: Lsn,
        /// Its transaction.
        xid: u32,
        /// Oid of the database.
        database: u32,
    },
    /// The directories of a tablespace were removed.
    DropTablespace {
        /// Start of the record.
        lsn: Lsn,
        /// Its transaction.
        xid: u32,
        /// Oid of the tablespace.
        tablespace: u32,
    },
    /// A transaction was prepared.
    Prepare {
        /// The transaction.
        xid: u32,
        /// Its name.
        gid: String,
        /// Its subtransactions.
        subxids: Vec<u32>,
    },
    /// The server began anew: of the transactions so far only prepared ones go on.
    Restart,
    /// A transaction ended.
    End(EndStep),
}

/// Rows of a relation that a transaction changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCount {
    /// Rows deleted.
    pub deleted: u64,
    /// The first record that deleted one.
    pub first_delete: Lsn,
    /// Rows updated.
    pub updated: u64,
    /// The first record that updated one.
    pub first_update: Lsn,
}

impl RowCount {
    /// Adds rows that were changed before or later.
    pub fn add(&mut self, other: &RowCount) {
        // 0 where there is none.
        let first = |a: Lsn, b: Lsn| match a == Lsn(0) || b == Lsn(0) {
            true => a.max(b),
            false => a.min(b),
        };
        self.first_delete = first(self.first_delete, other.first_delete);
        self.first_update = first(self.first_update, other.first_update);
        self.deleted += other.deleted;
        self.updated += other.updated;
    }
}

/// The records that begin in a segment, reduced.
#[derive(Debug, Default)]
pub struct Digest {
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// Rows by transaction and relation.
    pub rows: NumberMap<(u32, Relation), RowCount>,
    /// Records that could not be taken apart although their checksum is right.
    pub unread: u64,
}

impl Digest {
    /// The places of catalogs that the records name.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.steps.iter().filter_map(|step| match step {
            Step::Page(place, _) => Some(place),
            Step::Row(row) => Some(&row.place),
            _ => None,
        })
    }
}

/// Fills a [`Digest`].
pub struct Digester<'a> {
    files: &'a CatalogFiles,
    counts_rows: bool,
    digest: Digest,
    /// The relation of the last block, and its catalog: most records are about the relation of the record before.
    last: Option<(Relation, Option<Catalog>)>,
    /// Rows of one transaction in one relation that are not in the digest yet, for the same reason.
    pending: Option<((u32, Relation), RowCount)>,
}

impl<'a> Digester<'a> {
    /// Takes the files that are catalogs, and whether rows of relations are counted.
    pub fn new(files: &'a CatalogFiles, counts_rows: bool) -> Self {
        Digester {
            files,
            counts_rows,
            digest: Digest::default(),
            last: None,
            pending: None,
        }
    }

    /// Returns the result.
    pub fn finish(mut self) -> Digest {
        self.flush();
        self.digest
    }

    /// Takes the next record.
    pub fn record(&mut self, record: &Record<'_>) {
        if self.take(record).is_none() {
            self.digest.unread += 1;
        }
    }

    fn take(&mut self, record: &Record<'_>) -> Option<()> {
        match record.rmid {
            rmgr::HEAP | rmgr::HEAP2 | rmgr::XLOG => {
                // Most records need nothing else of their blocks than the relation of the first.
                let mut first = None;
                let found = |block| first = first.or(Some(block));
                let body = record.body_telling(found).ok()?;
                if body.has_images() {
                    self.images(&body, record.block_size);
                }
                if is_restart(record, body.main_data) {
                    self.digest.steps.push(Step::Restart);
                }
                if let Some(change) = heap::row_change(record, body.main_data) {
                    self.row(record, &body, first?, change)?;
                }
            }
            rmgr::TRANSACTION => self.transaction(record)?,
            rmgr::STORAGE | rmgr::DATABASE | rmgr::TABLESPACE => {
                let body = record.body().ok()?;
                let steps = &mut self.digest.steps;
                let (lsn, xid) = (record.start_lsn, record.xid.0);
                change::changes(record, &body, |change| match change {
                    Change::Create {
                        relation,
                        fork: Fork::MAIN,
                    } => steps.push(Step::Create(xid, relation)),
                    Change::Truncate {
                        relation,
                        blocks: 0,
                        main: true,
                        ..
                    } => steps.push(Step::Empty(xid, relation)),
                    Change::DatabaseDrop { database, .. } => {
                        steps.push(Step::DropDatabase { lsn, xid, database });
                    }
                    Change::TablespaceDrop { tablespace } => steps.push(Step::DropTablespace {
                        lsn,
                        xid,
                        tablespace,
                    }),
                    _ => {}
                })
                .ok()?;
            }
            rmgr::RELMAP => {
                let body = record.body().ok()?;
                let map = FileMap::read(record, body.main_data)?;
                self.digest.steps.push(Step::Map(record.xid.0, map));
            }
            _ => {}
        }
        Some(())
    }

    fn place(&mut self, relation: &Relation, block: u32) -> Option<Place> {
        let catalog = match self.last {
            Some((last, catalog)) if last == *relation => catalog,
            _ => {
                let catalog = self.files.catalog(relation.database, relation.number);
                self.last = Some((*relation, catalog));
                catalog
            }
        };
        Some(Place {
            catalog: catalog?,
            database: relation.database,
            file: relation.number,
            block,
        })
    }

    /// Takes the rows of pages of catalogs.
    fn images(&mut self, body: &Body<'_>, block_size: u32) {
        for block in body.blocks().filter(|b| b.fork == Fork::MAIN) {
            let Some(image) = block.image.filter(|image| image.apply) else {
                continue;
            };
            let Some(place) = self.place(&block.relation, block.block) else {
                continue;
            };
            match image::restore(&image, block_size) {
                Some(page) => {
                    let rows = heap::rows_of(&page);
                    self.digest.steps.push(Step::Page(place, rows));
                }
                None => self.digest.unread += 1,
            }
        }
    }

    fn row(
        &mut self,
        record: &Record<'_>,
        body: &Body<'_>,
        first: Reference,
        change: RowChange,
    ) -> Option<()> {
        if let Some(place) = self.place(&first.relation, first.block) {
            let mut blocks = body.blocks();
            let block = blocks.next()?;
            let is_imaged = block.image.is_some_and(|image| image.apply);
            let is_second = |b: &crate::pg::record::Block<'_>| b.id == 1;
            self.digest.steps.push(Step::Row(RowStep {
                lsn: record.start_lsn,
                xid: record.xid.0,
                place,
                old_block: blocks.find(is_second).map_or(block.block, |b| b.block),
                change,
                data: (!is_imaged).then(|| block.data.to_vec()),
            }));
        } else if self.counts_rows && first.relation.number >= FIRST_NORMAL_OID {
            self.count((record.xid.0, first.relation), record.start_lsn, change);
        }
        Some(())
    }

    fn count(&mut self, key: (u32, Relation), lsn: Lsn, change: RowChange) {
        let count = match change {
            RowChange::Delete {
                cause: DeleteCause::Delete,
                ..
            } => RowCount {
                deleted: 1,
                first_delete: lsn,
                ..RowCount::default()
            },
            RowChange::Update { .. }
            | RowChange::Delete {
                cause: DeleteCause::PartitionMove,
                ..
            } => RowCount {
                updated: 1,
                first_update: lsn,
                ..RowCount::default()
            },
            _ => return,
        };
        match &mut self.pending {
            Some((last, sum)) if *last == key => sum.add(&count),
            _ => {
                self.flush();
                self.pending = Some((key, count));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((key, count)) = self.pending.take() {
            self.digest.rows.entry(key).or_default().add(&count);
        }
    }

    fn transaction(&mut self, record: &Record<'_>) -> Option<()> {
        let body = record.body().ok()?;
        let step = match xact::decode(record, body.main_data).ok()?? {
            TransactionRecord::End(end) => Step::End(EndStep {
                lsn: record.start_lsn,
                xid: end.xid.0,
                time: end.time,
                is_commit: end.outcome.is_commit(),
                subxids: end.subxids.iter().collect(),
                dropped: end.dropped.iter().collect(),
            }),
            TransactionRecord::Prepare(prepared) => Step::Prepare {
                xid: prepared.xid.0,
                gid: String::from_utf8_lossy(prepared.gid).into_owned(),
                subxids: prepared.subxids.iter().collect(),
            },
            _ => return Some(()),
        };
        self.digest.steps.push(step);
        Some(())
    }
}

/// Whether a record says that nothing runs beside it. A server that crashed writes no ends of its transactions, and then this record.
fn is_restart(record: &Record<'_>, main_data: &[u8]) -> bool {
    matches!(
        xlog::decode(record, main_data),
        Ok(Some(
            XlogRecord::Checkpoint(CheckpointRecord { shutdown: true, .. })
                | XlogRecord::EndOfRecovery(_)
        ))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft;
    use crate::pg::record::DEFAULT_BLOCK_SIZE;
    use crate::pg::version::Major;

    const CHECKPOINT_SHUTDOWN: u8 = 0x00;
    const CHECKPOINT_ONLINE: u8 = 0x10;
    const END_OF_RECOVERY: u8 = 0x90;

    fn begins_anew(info: u8, main: &[u8]) -> bool {
        let bytes = craft::header_and(rmgr::XLOG, info, 0, Lsn(0), &craft::main_data(main));
        let record = Record::parse(Major::V15, DEFAULT_BLOCK_SIZE, Lsn(8), Lsn(16), &bytes);
        let files = CatalogFiles::default();
        let mut digester = Digester::new(&files, false);
        digester.record(&record.unwrap());
        let digest = digester.finish();
        assert_eq!(digest.unread, 0);
        matches!(digest.steps[..], [Step::Restart])
    }

    #[test]
    fn a_shutdown_or_the_end_of_recovery_begins_anew() {
        let mut checkpoint = vec![0; 88];
        checkpoint[0..8].copy_from_slice(&0x100_0028_u64.to_le_bytes());
        checkpoint[8] = 1;
        checkpoint[12] = 1;
        assert!(begins_anew(CHECKPOINT_SHUTDOWN, &checkpoint));
        assert!(!begins_anew(CHECKPOINT_ONLINE, &checkpoint));
        let end = [9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0];
        assert!(begins_anew(END_OF_RECOVERY, &end));
    }
}
