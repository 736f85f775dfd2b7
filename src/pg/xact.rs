//! Records that end transactions, and restore points: what recovery targets are about.
//!
//! Knowledge: src/include/access/xact.h, src/backend/access/rmgrdesc/xactdesc.c (ParseCommitRecord, ParseAbortRecord,
//! ParsePrepareRecord), src/backend/access/transam/twophase.c (TwoPhaseFileHeader), PostgreSQL 13–19.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::err;
use crate::error::Result;

use super::cursor::{self, Cursor};
use super::lsn::Lsn;
use super::record::{Record, Relation};
use super::rmgr;
use super::time::TimestampTz;

/// A transaction number as records carry it, 32 bits wide; 0 means none.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Xid(pub u32);

impl Xid {
    /// No transaction.
    pub const NONE: Xid = Xid(0);
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// COMMIT.
    Commit,
    /// ABORT.
    Abort,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    AbortPrepared,
}

impl Outcome {
    /// Whether the transaction's changes stay.
    pub fn is_commit(self) -> bool {
        matches!(self, Outcome::Commit | Outcome::CommitPrepared)
    }
}

/// A list of `u32` numbers in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers<'a>(&'a [u8]);

impl<'a> Numbers<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Numbers(bytes)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        self.0.as_chunks().0.iter().copied().map(u32::from_le_bytes)
    }
}

/// A list of relations in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relations<'a>(&'a [u8]);

impl<'a> Relations<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len() / Relation::SIZE
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The relations, in order.
    pub fn iter(&self) -> impl Iterator<Item = Relation> + 'a {
        self.0
            .chunks_exact(Relation::SIZE)
            .filter_map(|c| Relation::read(&mut Cursor::new(c)))
    }
}

/// A record that ends a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd<'a> {
    /// How it ends.
    pub outcome: Outcome,
    /// The transaction that ends: of a prepared one the number it was prepared under. 0 if the record is truncated before it.
    pub xid: Xid,
    /// The clock of the server; it may run backwards from record to record.
    pub time: TimestampTz,
    /// Parts that the record holds (bits of `xinfo`).
    pub xinfo: u32,
    /// Database and its tablespace, where the record names them.
    pub database: Option<(u32, u32)>,
    /// Subtransactions that end with it.
    pub subxids: Numbers<'a>,
    /// Relations whose files are removed now.
    pub dropped: Relations<'a>,
    /// Name of a prepared transaction, in the server's encoding (only with `wal_level=logical`).
    pub gid: Option<&'a [u8]>,
    /// LSN and time of the end at the replication origin.
    pub origin: Option<(Lsn, TimestampTz)>,
    /// Whether the record was longer than what is kept, and parts are missing.
    pub truncated: bool,
}

/// A transaction that was prepared; it is still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared<'a> {
    /// The transaction.
    pub xid: Xid,
    pub time: TimestampTz,
    pub database: u32,
    /// Its name, in the server's encoding.
    pub gid: &'a [u8],
    /// Its subtransactions.
    pub subxids: Numbers<'a>,
    /// LSN and time of the prepare at the replication origin.
    pub origin: Option<(Lsn, TimestampTz)>,
}

/// A restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestorePoint<'a> {
    /// When it was made.
    pub time: TimestampTz,
    /// Its name, in the server's encoding; at most 63 bytes.
    pub name: &'a [u8],
}

/// The content of a record of the transaction manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionRecord<'a> {
    /// A transaction ends.
    End(TransactionEnd<'a>),
    /// A transaction is prepared.
    Prepare(Prepared<'a>),
    /// Something that does not matter here.
    Other,
}

const OPMASK: u8 = 0x70;
const HAS_INFO: u8 = 0x80;

const DBINFO: u32 = 1 << 0;
const SUBXACTS: u32 = 1 << 1;
const RELATIONS: u32 = 1 << 2;
const INVALIDATIONS: u32 = 1 << 3;
const TWOPHASE: u32 = 1 << 4;
const ORIGIN: u32 = 1 << 5;
const GID: u32 = 1 << 7;
const DROPPED_STATS: u32 = 1 << 8;

const INVALIDATION_SIZE: usize = 16;
const PREPARE_MAGIC: u32 = 0x57F9_4534;
const RESTORE_POINT: u8 = 0x70;
/// Size of `rp_name`, its terminating zero included.
const RESTORE_POINT_NAME: usize = 64;

/// How the transaction ends that this record ends; `None` for every other record. Costs nothing.
#[inline]
pub fn outcome(record: &Record<'_>) -> Option<Outcome> {
    if record.rmid != rmgr::TRANSACTION {
        return None;
    }
    match record.info & OPMASK {
        0x00 => Some(Outcome::Commit),
        0x20 => Some(Outcome::Abort),
        0x30 => Some(Outcome::CommitPrepared),
        0x40 => Some(Outcome::AbortPrepared),
        _ => None,
    }
}

/// Returns the content of a record of the transaction manager; `main_data` is that of its body. `None` for records of
/// others.
///
/// # Errors
/// `Damaged` if the record is shorter than what it says it holds, and was not cut by the reader.
pub fn decode<'a>(
    record: &Record<'a>,
    main_data: &'a [u8],
) -> Result<Option<TransactionRecord<'a>>> {
    if record.rmid != rmgr::TRANSACTION {
        return Ok(None);
    }
    let decoded = match (outcome(record), record.info & OPMASK) {
        (Some(outcome), _) => end(record, outcome, main_data).map(TransactionRecord::End),
        (None, 0x10) => prepare(record, main_data).map(TransactionRecord::Prepare),
        _ => Some(TransactionRecord::Other),
    };
    decoded.map(Some).ok_or_else(|| {
        err!(
            Damaged,
            "transaction record at {} is cut short",
            record.start_lsn
        )
    })
}

/// The restore point that this record makes; `None` for every other record.
///
/// PostgreSQL: src/include/access/xlog_internal.h, xl_restore_point. The bytes after the name are not initialised.
pub fn restore_point<'a>(record: &Record<'a>, main_data: &'a [u8]) -> Option<RestorePoint<'a>> {
    if record.rmid != rmgr::XLOG || record.opcode() != RESTORE_POINT {
        return None;
    }
    let mut c = Cursor::new(main_data);
    let time = TimestampTz(c.i64()?);
    let field = c.rest().get(..RESTORE_POINT_NAME).unwrap_or(c.rest());
    Some(RestorePoint {
        time,
        name: until_zero(field),
    })
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

fn end<'a>(
    record: &Record<'a>,
    outcome: Outcome,
    main_data: &'a [u8],
) -> Option<TransactionEnd<'a>> {
    let prepared = matches!(outcome, Outcome::CommitPrepared | Outcome::AbortPrepared);
    let mut c = Cursor::new(main_data);
    let mut end = TransactionEnd {
        outcome,
        xid: if prepared { Xid::NONE } else { record.xid },
        time: TimestampTz(c.i64()?),
        xinfo: 0,
        database: None,
        subxids: Numbers::default(),
        dropped: Relations::default(),
        gid: None,
        origin: None,
        truncated: false,
    };
    if record.info & HAS_INFO != 0 {
        end.xinfo = c.u32()?;
    }
    match end_details(record, &mut c, &mut end) {
        Some(()) => Some(end),
        // The time comes first and is always there; the caller learns that the rest may not be.
        None if record.is_truncated() => {
            end.truncated = true;
            Some(end)
        }
        None => None,
    }
}

fn end_details<'a>(
    record: &Record<'a>,
    c: &mut Cursor<'a>,
    end: &mut TransactionEnd<'a>,
) -> Option<()> {
    let has = |bit: u32| end.xinfo & bit != 0;
    let (subxacts, relations, stats, invalidations, twophase, gid, origin) = (
        has(SUBXACTS),
        has(RELATIONS),
        has(DROPPED_STATS),
        has(INVALIDATIONS),
        has(TWOPHASE),
        has(GID),
        has(ORIGIN),
    );
    if has(DBINFO) {
        end.database = Some((c.u32()?, c.u32()?));
    }
    if subxacts {
        end.subxids = Numbers(c.counted(4)?);
    }
    if relations {
        end.dropped = Relations(c.counted(Relation::SIZE)?);
    }
    if stats && let Some(size) = record.version.dropped_stats_item {
        c.counted(size)?;
    }
    // Aborts never have them (ParseAbortRecord does not look).
    if invalidations && end.outcome.is_commit() {
        c.counted(INVALIDATION_SIZE)?;
    }
    if twophase {
        let xid = Xid(c.u32()?);
        if matches!(
            end.outcome,
            Outcome::CommitPrepared | Outcome::AbortPrepared
        ) {
            end.xid = xid;
        }
        if gid {
            let name = until_zero(c.rest());
            c.take(name.len() + 1)?;
            end.gid = Some(name);
        }
    }
    if origin {
        end.origin = Some((Lsn(c.u64()?), TimestampTz(c.i64()?)));
    }
    Some(())
}

fn prepare<'a>(record: &Record<'a>, main_data: &'a [u8]) -> Option<Prepared<'a>> {
    let layout = &record.version.prepare;
    let header = main_data.get(..layout.size)?;
    if cursor::u32_at(header, 0)? != PREPARE_MAGIC {
        return None;
    }
    let gid_length = usize::from(cursor::u16_at(header, layout.gid_length)?);
    let subxids = usize::try_from(cursor::i32_at(header, 28)?).ok()?;
    let mut c = Cursor::new(main_data.get(layout.size..)?);
    // Every part begins at a multiple of 8.
    let gid = c.take(gid_length.next_multiple_of(8))?;
    let subxids = c.take(subxids.checked_mul(4)?)?;
    let origin = Lsn(cursor::u64_at(header, layout.origin)?);
    Some(Prepared {
        xid: Xid(cursor::u32_at(header, 8)?),
        time: TimestampTz(cursor::i64_at(header, 16)?),
        database: cursor::u32_at(header, 12)?,
        gid: until_zero(gid.get(..gid_length)?),
        subxids: Numbers(subxids),
        origin: (origin != Lsn::INVALID)
            .then(|| cursor::i64_at(header, layout.origin + 8))
            .flatten()
            .map(|time| (origin, TimestampTz(time))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::craft;
    use crate::pg::record::DEFAULT_BLOCK_SIZE;
    use crate::pg::version::Major;
    use proptest::prelude::*;

    fn with<R>(major: Major, bytes: &[u8], f: impl FnOnce(&Record<'_>, &[u8]) -> R) -> R {
        let record = Record::parse(major, DEFAULT_BLOCK_SIZE, Lsn(8), Lsn(16), bytes).unwrap();
        let body = record.body().unwrap();
        f(&record, body.main_data)
    }

    fn crafted(info: u8, xid: u32, main: &[u8]) -> Vec<u8> {
        let main = craft::main_data(main);
        craft::header_and(rmgr::TRANSACTION, info, xid, Lsn(0), &main)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        crate::text::unhex(hex).unwrap()
    }

    type EndParts = (
        Xid,
        Vec<u32>,
        usize,
        Option<(Lsn, TimestampTz)>,
        Option<Vec<u8>>,
    );

    fn end_of(major: Major, info: u8, xid: u32, main: &[u8]) -> Result<EndParts> {
        let record = crafted(info, xid, main);
        with(major, &record, |r, main| match decode(r, main)? {
            Some(TransactionRecord::End(e)) => Ok((
                e.xid,
                e.subxids.iter().collect(),
                e.dropped.len(),
                e.origin,
                e.gid.map(<[u8]>::to_vec),
            )),
            other => panic!("{other:?}"),
        })
    }

    /// Records of a 15 server.
    #[test]
    fn commits_of_a_server_tell_xid_time_and_database() {
        let plain = bytes("22000000e0020000d848b70000000000000100002191115eff082af82292ae030300");
        with(Major::V15, &plain, |r, main| {
            let Ok(Some(TransactionRecord::End(end))) = decode(r, main) else {
                panic!()
            };
            assert_eq!((end.outcome, end.xid), (Outcome::Commit, Xid(736)));
            assert_eq!(end.time.to_string(), "2026-11-20T07:00:41.090090Z");
            assert_eq!(end.database, None);
        });
        let with_info = bytes(
            "42000000cc020000a059840000000000800100008a40d6b6ff28f471728cae03030009000080010000007f06000001000000150000000000000085b29c2400000000",
        );
        with(Major::V15, &with_info, |r, main| {
            let Ok(Some(TransactionRecord::End(end))) = decode(r, main) else {
                panic!()
            };
            assert_eq!((end.xid, end.xinfo), (Xid(716), 0x8000_0009));
            assert_eq!(end.database, Some((1, 1663)));
            assert!(end.subxids.is_empty() && end.dropped.is_empty());
        });
    }

    #[test]
    fn the_name_of_a_restore_point_ends_at_its_zero() {
        let record = bytes(
            "620000000000000008b6b7000000000070000000cdfb9c80ff48be5f2392ae03030072705f6f6e650000b032a4c4fe7f00001814b8b479550000b82f33d879550000b8d440d879550000e0d140d879550000d0d340d879550000d032a4c4fe7f0000",
        );
        with(Major::V15, &record, |r, main| {
            assert_eq!(restore_point(r, main).unwrap().name, b"rp_one");
            assert_eq!(decode(r, main).unwrap(), None);
            assert_eq!(outcome(r), None);
        });
    }

    /// All parts at once, in the order of xact.h, for the three layouts of the dropped statistics.
    #[test]
    fn every_part_of_a_commit_is_found_behind_the_others() {
        for (major, item) in [
            (Major::V13, 0),
            (Major::V14, 0),
            (Major::V15, 12),
            (Major::V17, 12),
            (Major::V18, 16),
            (Major::V19, 16),
        ] {
            let stats = if item > 0 { DROPPED_STATS } else { 0 };
            let xinfo =
                DBINFO | SUBXACTS | RELATIONS | stats | INVALIDATIONS | TWOPHASE | GID | ORIGIN;
            let mut main = 1_000_000i64.to_le_bytes().to_vec();
            let mut put = |v: u32| main.extend_from_slice(&v.to_le_bytes());
            for v in [xinfo, 5, 1663, 2, 101, 102, 1, 1663, 5, 16384] {
                put(v);
            }
            if item > 0 {
                put(1);
            }
            main.extend(vec![0xEE; item]);
            main.extend_from_slice(&1i32.to_le_bytes());
            main.extend([0xDD; 16]);
            main.extend_from_slice(&4711u32.to_le_bytes());
            main.extend_from_slice(b"gid-1\0");
            main.extend_from_slice(&0x1234u64.to_le_bytes());
            main.extend_from_slice(&2_000_000i64.to_le_bytes());
            let got = end_of(major, HAS_INFO | 0x30, 0, &main).unwrap();
            let origin = Some((Lsn(0x1234), TimestampTz(2_000_000)));
            let gid = Some(b"gid-1".to_vec());
            let expected = (Xid(4711), vec![101, 102], 1, origin, gid);
            assert_eq!(got, expected, "{major}");
            // Every shorter record is refused, never misread.
            for len in 0..main.len() {
                if len != 8 {
                    let error = end_of(major, HAS_INFO | 0x30, 0, &main[..len]).unwrap_err();
                    assert_eq!(error.code(), Code::Damaged, "{len}");
                }
            }
        }
    }

    #[test]
    fn an_abort_never_has_invalidations() {
        let mut main = 5i64.to_le_bytes().to_vec();
        main.extend_from_slice(&(INVALIDATIONS | TWOPHASE).to_le_bytes());
        main.extend_from_slice(&9u32.to_le_bytes());
        for (info, xid) in [(0x40, 9), (0x20, 3)] {
            let end = end_of(Major::V16, HAS_INFO | info, 3, &main).unwrap();
            assert_eq!(end.0, Xid(xid));
        }
    }

    #[test]
    fn a_prepared_transaction_is_told_by_both_layouts() {
        for major in [Major::V14, Major::V15] {
            let layout = major.version().prepare;
            let mut main = vec![0u8; layout.size];
            main[0..4].copy_from_slice(&PREPARE_MAGIC.to_le_bytes());
            main[8..12].copy_from_slice(&77u32.to_le_bytes());
            main[12..16].copy_from_slice(&5u32.to_le_bytes());
            main[16..24].copy_from_slice(&123i64.to_le_bytes());
            main[28..32].copy_from_slice(&2i32.to_le_bytes());
            main[layout.gid_length..layout.gid_length + 2].copy_from_slice(&4u16.to_le_bytes());
            main[layout.origin..layout.origin + 8].copy_from_slice(&0x99u64.to_le_bytes());
            main.extend_from_slice(b"abc\0\0\0\0\0");
            main.extend_from_slice(&78u32.to_le_bytes());
            main.extend_from_slice(&79u32.to_le_bytes());
            let record = crafted(0x10, 77, &main);
            with(major, &record, |r, main| {
                let Ok(Some(TransactionRecord::Prepare(p))) = decode(r, main) else {
                    panic!()
                };
                assert_eq!((p.xid, p.database, p.gid), (Xid(77), 5, &b"abc"[..]));
                assert_eq!(p.subxids.iter().collect::<Vec<_>>(), [78, 79]);
                assert_eq!(p.time, TimestampTz(123));
                assert_eq!(p.origin, Some((Lsn(0x99), TimestampTz(0))));
                for len in 0..main.len() {
                    assert!(decode(r, &main[..len]).is_err());
                }
            });
        }
    }

    proptest! {
        #[test]
        fn any_main_data_is_read_or_refused(info: u8, main in proptest::collection::vec(any::<u8>(), 0..160), small: bool, major in 0usize..7) {
            let main: Vec<u8> = if small { main.iter().enumerate().map(|(i, b)| if i >= 12 && i % 4 != 0 { 0 } else { b % 8 }).collect() } else { main };
            let record = crafted(info, 3, &main);
            with(Major::ALL[major], &record, |r, main| {
                if let Ok(Some(TransactionRecord::End(e))) = decode(r, main) {
                    assert_eq!(e.subxids.iter().count(), e.subxids.len());
                    assert_eq!(e.dropped.iter().count(), e.dropped.len());
                }
            });
        }
    }
}
