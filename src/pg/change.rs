//! The changes that a record makes: blocks, files of relations, databases, tablespaces.
//!
//! Block references show most of them. They do not show files that are made, cut and removed. Nor do they show the bits
//! of the visibility map that heap records clear on servers before 17.11 and 18.6: those do not register the map's page
//! (see `cleared`). The free space map is never logged as such: it has to be taken as changed always.
//!
//! Knowledge: src/backend/access/transam/xlogreader.c, src/include/{catalog/storage_xlog,commands/dbcommands_xlog,
//! commands/tablespace,access/heapam_xlog,utils/relmapper}.h, src/backend/postmaster/walsummarizer.c, PostgreSQL 13–19.

use crate::err;
use crate::error::Result;

use super::cursor::{self, Cursor};
use super::record::{Body, Fork, Record, Reference, Relation};
use super::rmgr;
use super::xact::{self, Numbers, TransactionRecord};

/// Something that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// A block may have other content.
    Block {
        relation: Relation,
        fork: Fork,
        block: u32,
    },
    /// A fork was made: whatever it held before is gone.
    Create { relation: Relation, fork: Fork },
    /// A relation was cut; three flags name the forks.
    Truncate {
        relation: Relation,
        /// New length of the main fork in blocks; those of the others follow from it.
        blocks: u32,
        /// The main fork was cut.
        main: bool,
        /// The visibility map was cut; its last page is changed too.
        vm: bool,
        /// The free space map was cut.
        fsm: bool,
    },
    /// All files of a relation are removed when the transaction ends: with this record.
    Drop(Relation),
    /// TRUNCATE of tables by their oids (only with `wal_level=logical`; other records give their new files).
    TruncateTables {
        /// Oid of the database.
        database: u32,
        /// Oids of the tables.
        tables: Numbers<'a>,
    },
    /// A database was made by copying files: every file of it is new, and no record tells of them.
    DatabaseCopy {
        /// Oid of the new database.
        database: u32,
        /// Oid of the tablespace of the copy.
        tablespace: u32,
        /// Oid of the database that was copied.
        source_database: u32,
        /// Oid of the tablespace that was copied.
        source_tablespace: u32,
    },
    /// A database was made block by block (15+): records tell of every block.
    DatabaseCreate {
        /// Oid of the database.
        database: u32,
        /// Oid of its tablespace.
        tablespace: u32,
    },
    /// A database was removed from these tablespaces.
    DatabaseDrop {
        /// Oid of the database.
        database: u32,
        /// Oids of the tablespaces.
        tablespaces: Numbers<'a>,
    },
    /// A tablespace was made.
    TablespaceCreate {
        /// Its oid.
        tablespace: u32,
        /// Path of its directory; empty for one inside the data directory.
        path: &'a [u8],
    },
    /// A tablespace was removed.
    TablespaceDrop {
        /// Its oid.
        tablespace: u32,
    },
    /// The map of the catalogs' files (`pg_filenode.map`) of a database was written; 0 for the shared one.
    RelationMap {
        /// Oid of the database.
        database: u32,
        /// Oid of its tablespace.
        tablespace: u32,
    },
}

const SMGR_CREATE: u8 = 0x10;
const SMGR_TRUNCATE: u8 = 0x20;
const HEAP_TRUNCATE: u8 = 0x30;
const HEAP_OPMASK: u8 = 0x70;

/// Heap blocks that one page of the visibility map covers: two bits each, on what its header leaves of the page.
pub const fn heap_blocks_per_vm_page(block_size: u32) -> u32 {
    block_size.saturating_sub(24) * 4
}

/// Calls `found` with everything that the record changes, in the record's order, block references first.
///
/// # Errors
/// `Damaged` if the record says something that cannot be; `found` has received the changes before it then.
pub fn changes<'a>(
    record: &Record<'a>,
    body: &Body<'a>,
    mut found: impl FnMut(Change<'a>),
) -> Result<()> {
    let mut heap_blocks = HeapBlocks::default();
    for block in body.blocks() {
        let reference = Reference {
            id: block.id,
            relation: block.relation,
            fork: block.fork,
            block: block.block,
        };
        found(heap_blocks.note(reference));
    }
    beyond_references(record, body, &heap_blocks, found)
}

/// Takes a record apart and calls `found` with the blocks that it refers to. [`beyond_references`] gives its other
/// changes.
///
/// # Errors
/// As [`Record::body`].
#[inline]
pub fn references<'a>(
    record: &Record<'a>,
    heap_blocks: &mut HeapBlocks,
    mut found: impl FnMut(Change<'a>),
) -> Result<Body<'a>> {
    record.body_telling(|reference| found(heap_blocks.note(reference)))
}

/// The heap blocks that a heap record may refer to: the new (or only) one and the old one.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeapBlocks([Option<HeapBlock>; 2]);

impl HeapBlocks {
    #[inline(always)]
    fn note<'a>(&mut self, reference: Reference) -> Change<'a> {
        let Reference {
            id,
            relation,
            fork,
            block,
        } = reference;
        if fork == Fork::MAIN
            && let Some(known) = self.0.get_mut(usize::from(id))
        {
            *known = Some((relation, block));
        }
        Change::Block {
            relation,
            fork,
            block,
        }
    }
}

/// Calls `found` with what a record changes besides the blocks that it refers to.
///
/// # Errors
/// `Damaged` if the record says something that cannot be; `found` has received the changes before it then.
#[inline]
pub fn beyond_references<'a>(
    record: &Record<'a>,
    body: &Body<'a>,
    heap_blocks: &HeapBlocks,
    mut found: impl FnMut(Change<'a>),
) -> Result<()> {
    let main = body.main_data;
    let told = match record.rmid {
        rmgr::HEAP | rmgr::HEAP2 => heap(record, main, &heap_blocks.0, &mut found),
        rmgr::STORAGE => storage(record.opcode(), main).map(&mut found),
        rmgr::DATABASE => database(record, main).map(&mut found),
        rmgr::TABLESPACE => tablespace(record.opcode(), main).map(&mut found),
        rmgr::RELMAP => relation_map(main).map(&mut found),
        rmgr::TRANSACTION => {
            if let Some(TransactionRecord::End(end)) = xact::decode(record, main)? {
                for relation in end.dropped.iter() {
                    found(Change::Drop(relation));
                }
            }
            Some(())
        }
        _ => Some(()),
    };
    told.ok_or_else(|| {
        err!(
            Damaged,
            "{} record at {} is not valid",
            rmgr::name(record.rmid),
            record.start_lsn
        )
    })
}

fn storage(opcode: u8, main: &[u8]) -> Option<Change<'_>> {
    let mut c = Cursor::new(main);
    match opcode {
        SMGR_CREATE => Some(Change::Create {
            relation: Relation::read(&mut c)?,
            fork: Fork(u8::try_from(c.i32()?).ok()?),
        }),
        SMGR_TRUNCATE => {
            let blocks = c.u32()?;
            let relation = Relation::read(&mut c)?;
            let flags = c.i32()?;
            Some(Change::Truncate {
                relation,
                blocks,
                main: flags & 1 != 0,
                vm: flags & 2 != 0,
                fsm: flags & 4 != 0,
            })
        }
        _ => None,
    }
}

fn database<'a>(record: &Record<'_>, main: &'a [u8]) -> Option<Change<'a>> {
    let mut c = Cursor::new(main);
    let opcode = record.opcode();
    let database = c.u32()?;
    if Some(opcode) == record.version.database_create_wal_log {
        return Some(Change::DatabaseCreate {
            database,
            tablespace: c.u32()?,
        });
    }
    if opcode == record.version.database_drop {
        return Some(Change::DatabaseDrop {
            database,
            tablespaces: Numbers::new(c.counted(4)?),
        });
    }
    (opcode == 0).then_some(())?;
    Some(Change::DatabaseCopy {
        database,
        tablespace: c.u32()?,
        source_database: c.u32()?,
        source_tablespace: c.u32()?,
    })
}

fn tablespace(opcode: u8, main: &[u8]) -> Option<Change<'_>> {
    let mut c = Cursor::new(main);
    let tablespace = c.u32()?;
    match opcode {
        0x00 => Some(Change::TablespaceCreate {
            tablespace,
            path: c.rest().split(|&b| b == 0).next()?,
        }),
        0x10 => Some(Change::TablespaceDrop { tablespace }),
        _ => None,
    }
}

fn relation_map(main: &[u8]) -> Option<Change<'_>> {
    let mut c = Cursor::new(main);
    Some(Change::RelationMap {
        database: c.u32()?,
        tablespace: c.u32()?,
    })
}

/// A block of a relation's main fork.
type HeapBlock = (Relation, u32);

#[inline]
fn heap<'a>(
    record: &Record<'_>,
    main: &'a [u8],
    blocks: &[Option<HeapBlock>; 2],
    found: &mut impl FnMut(Change<'a>),
) -> Option<()> {
    if record.rmid == rmgr::HEAP && record.info & HEAP_OPMASK == HEAP_TRUNCATE {
        let mut c = Cursor::new(main);
        let database = c.u32()?;
        let count = usize::try_from(c.u32()?).ok()?;
        c.take(4)?;
        found(Change::TruncateTables {
            database,
            tables: Numbers::new(c.take(count.checked_mul(4)?)?),
        });
        return Some(());
    }
    let [new, old] = *blocks;
    let (clears_new, clears_old) = cleared(record, main)?;
    let per_page = heap_blocks_per_vm_page(record.block_size).max(1);
    let cleared = [
        new.filter(|_| clears_new),
        old.or(new).filter(|_| clears_old),
    ];
    for (relation, block) in cleared.into_iter().flatten() {
        found(Change::Block {
            relation,
            fork: Fork::VM,
            block: block / per_page,
        });
    }
    Some(())
}

/// Whether a heap record clears bits of the visibility map for the new (or only) block, and for the old one. Servers before
/// 17.11 and 18.6 do not register the map's page; telling it twice does no harm.
///
/// | record | flag | heap block |
/// |---|---|---|
/// | INSERT, MULTI_INSERT, DELETE | 0x01 | reference 0 |
/// | UPDATE, HOT_UPDATE | 0x01 | the old one: reference 1, else 0 |
/// | UPDATE, HOT_UPDATE | 0x02 | the new one: reference 0 |
/// | LOCK, LOCK_UPDATED | 0x01 | reference 0 |
///
/// `None` if the flags are missing.
#[inline]
fn cleared(record: &Record<'_>, main: &[u8]) -> Option<(bool, bool)> {
    let flag = |at: usize, bit: u8| Some(cursor::u8_at(main, at)? & bit != 0);
    Some(match (record.rmid, record.info & HEAP_OPMASK) {
        (rmgr::HEAP, 0x00) => (flag(2, 1)?, false),
        (rmgr::HEAP, 0x10 | 0x60) | (rmgr::HEAP2, 0x60) => (flag(7, 1)?, false),
        (rmgr::HEAP, 0x20 | 0x40) => (flag(7, 2)?, flag(7, 1)?),
        (rmgr::HEAP2, 0x50) => (flag(0, 1)?, false),
        _ => (false, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::craft::{block_reference, header_and, main_data};
    use crate::pg::lsn::Lsn;
    use crate::pg::record::DEFAULT_BLOCK_SIZE;
    use crate::pg::version::Major;
    use proptest::prelude::*;

    fn told(major: Major, rmid: u8, info: u8, payload: &[u8]) -> Result<Vec<String>> {
        let bytes = header_and(rmid, info, 0, Lsn(0), payload);
        let record = Record::parse(major, DEFAULT_BLOCK_SIZE, Lsn(8), Lsn(16), &bytes)?;
        let mut out = Vec::new();
        changes(&record, &record.body()?, |c| {
            out.push(match c {
                Change::Block { fork, block, .. } => format!("block {} {block}", fork.0),
                Change::DatabaseDrop {
                    database,
                    tablespaces,
                } => {
                    format!(
                        "drop {database} {:?}",
                        tablespaces.iter().collect::<Vec<_>>()
                    )
                }
                Change::TruncateTables { database, tables } => {
                    format!(
                        "truncate {database} {:?}",
                        tables.iter().collect::<Vec<_>>()
                    )
                }
                other => format!("{other:?}"),
            });
        })?;
        Ok(out)
    }

    fn numbers(values: &[u32]) -> Vec<u8> {
        main_data(
            &values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn database_records_mean_what_their_major_means() {
        for (major, info, values, text) in [
            (
                Major::V13,
                0x10,
                &[9, 2, 1663, 1700][..],
                "drop 9 [1663, 1700]",
            ),
            (Major::V14, 0x10, &[9, 1, 1663], "drop 9 [1663]"),
            (Major::V15, 0x20, &[9, 1, 1663], "drop 9 [1663]"),
            (
                Major::V15,
                0x10,
                &[9, 1663],
                "DatabaseCreate { database: 9, tablespace: 1663 }",
            ),
            (
                Major::V18,
                0x00,
                &[9, 1663, 1, 1664],
                "DatabaseCopy { database: 9, tablespace: 1663, source_database: 1, source_tablespace: 1664 }",
            ),
        ] {
            assert_eq!(
                told(major, rmgr::DATABASE, info, &numbers(values)).unwrap(),
                [text]
            );
            let cut = numbers(&values[..values.len() - 1]);
            assert_eq!(
                told(major, rmgr::DATABASE, info, &cut).unwrap_err().code(),
                Code::Damaged
            );
        }
        assert!(told(Major::V14, rmgr::DATABASE, 0x20, &numbers(&[9, 0])).is_err());
    }

    #[test]
    fn files_tablespaces_and_maps_are_told() {
        let relation = "Relation { tablespace: 1663, database: 5, number: 7 }";
        for (rmid, info, values, text) in [
            (
                rmgr::STORAGE,
                0x10,
                &[1663, 5, 7, 2][..],
                format!("Create {{ relation: {relation}, fork: Fork(2) }}"),
            ),
            (
                rmgr::STORAGE,
                0x21,
                &[3, 1663, 5, 7, 7],
                format!(
                    "Truncate {{ relation: {relation}, blocks: 3, main: true, vm: true, fsm: true }}"
                ),
            ),
            (
                rmgr::TABLESPACE,
                0x10,
                &[16400],
                "TablespaceDrop { tablespace: 16400 }".to_owned(),
            ),
            (
                rmgr::RELMAP,
                0x00,
                &[5, 1663, 0],
                "RelationMap { database: 5, tablespace: 1663 }".to_owned(),
            ),
            (
                rmgr::HEAP,
                0x30,
                &[5, 2, 0, 16384, 16390],
                "truncate 5 [16384, 16390]".to_owned(),
            ),
        ] {
            assert_eq!(
                told(Major::V17, rmid, info, &numbers(values)).unwrap(),
                [text]
            );
        }
        let create = [&16400u32.to_le_bytes()[..], b"/srv/fast\0"].concat();
        let got = told(Major::V13, rmgr::TABLESPACE, 0, &main_data(&create)).unwrap();
        assert_eq!(
            got,
            [format!(
                "TablespaceCreate {{ tablespace: 16400, path: {:?} }}",
                b"/srv/fast"
            )]
        );
    }

    #[test]
    fn bits_that_heap_records_clear_mark_pages_of_the_visibility_map() {
        let one = block_reference(0, 0, (1663, 5, 7), 40_000, 0);
        let two = [one.clone(), block_reference(1, 0x80, (0, 0, 0), 100_000, 0)].concat();
        let with = |blocks: &[u8], main: &[u8]| [blocks.to_vec(), main_data(main)].concat();
        let flags = |at: usize, value: u8, len: usize| {
            let mut main = vec![0u8; len];
            main[at] = value;
            main
        };
        let plain = &["block 0 40000"][..];
        let cleared = &["block 0 40000", "block 2 1"][..];
        let both = &["block 0 40000", "block 0 100000", "block 2 1", "block 2 3"][..];
        let other = &["block 0 40000", "block 0 100000", "block 2 3"][..];
        for (rmid, info, blocks, main, text) in [
            (rmgr::HEAP, 0x00, &one, flags(2, 1, 3), cleared),
            (rmgr::HEAP, 0x80, &one, flags(2, 0, 3), plain),
            (rmgr::HEAP, 0x10, &one, flags(7, 1, 8), cleared),
            (rmgr::HEAP, 0x60, &one, flags(7, 1, 8), cleared),
            (rmgr::HEAP, 0x20, &two, flags(7, 3, 14), both),
            (rmgr::HEAP, 0x20, &two, flags(7, 1, 14), other),
            (rmgr::HEAP, 0x40, &one, flags(7, 1, 14), cleared),
            (rmgr::HEAP2, 0xD0, &one, flags(0, 1, 4), cleared),
            (rmgr::HEAP2, 0x60, &one, flags(7, 1, 8), cleared),
            (rmgr::HEAP2, 0x40, &one, flags(0, 1, 8), plain),
        ] {
            assert_eq!(
                told(Major::V16, rmid, info, &with(blocks, &main)).unwrap(),
                text,
                "{rmid} {info:02X}"
            );
        }
        assert!(told(Major::V16, rmgr::HEAP, 0x10, &with(&one, &[0; 4])).is_err());
    }

    #[test]
    fn relations_dropped_at_a_transaction_end_are_told() {
        let mut main = 5i64.to_le_bytes().to_vec();
        for v in [4u32, 1, 1663, 5, 7] {
            main.extend_from_slice(&v.to_le_bytes());
        }
        let got = told(Major::V13, rmgr::TRANSACTION, 0x80, &main_data(&main)).unwrap();
        assert_eq!(
            got,
            ["Drop(Relation { tablespace: 1663, database: 5, number: 7 })"]
        );
    }

    proptest! {
        #[test]
        fn any_record_is_read_or_refused(rmid in 0u8..22, info: u8, blocks in 0u8..3, main in proptest::collection::vec(any::<u8>(), 0..64), major in 0usize..7) {
            let mut payload = Vec::new();
            for id in 0..blocks {
                payload.extend(block_reference(id, 0, (1, 2, 3), u32::from(info) << 24, 0));
            }
            payload.extend(main_data(&main));
            let _ = told(Major::ALL[major], rmid, info, &payload);
        }
    }
}
