//! Records of the WAL itself: checkpoints, switches, ends of backups and of recovery.
//!
//! Knowledge: src/include/catalog/pg_control.h, src/include/access/xlog_internal.h, src/backend/access/rmgrdesc/xlogdesc.c,
//! PostgreSQL 13–19.

use crate::err;
use crate::error::Result;

use super::control::Checkpoint;
use super::cursor::{self, Cursor};
use super::lsn::Lsn;
use super::record::{HEADER, Record, RecordHeader};
use super::rmgr;
use super::time::TimestampTz;
use super::xact::{self, RestorePoint};

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
/// Info bits of a change of parameters.
pub const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
/// Opcode of a restore point, for who looks at headers only.
pub const RESTORE_POINT_OPCODE: u8 = RESTORE_POINT;
const FPW_CHANGE: u8 = 0x80;
const END_OF_RECOVERY: u8 = 0x90;
const OVERWRITE_CONTRECORD: u8 = 0xD0;
const CHECKPOINT_REDO: u8 = 0xE0;

/// `wal_level` as records number it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Not enough for archiving: bulk loads are missing.
    Minimal,
    /// Enough for archiving and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

impl WalLevel {
    fn read(number: i32) -> Option<Self> {
        Some(match number {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            _ => return None,
        })
    }
}

/// A checkpoint record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// Made when the server was shut down, or at the start of a timeline; nothing runs beside it.
    pub shutdown: bool,
    /// Content of the checkpoint.
    pub checkpoint: Checkpoint,
    /// `wal_level` (17+).
    pub wal_level: Option<WalLevel>,
}

/// Settings that a standby must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterChange {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// Recovery ended without a checkpoint, usually on a new timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndOfRecovery {
    pub time: TimestampTz,
    /// The timeline from here on.
    pub timeline: u32,
    /// The timeline before.
    pub previous_timeline: u32,
    /// `wal_level` (17+).
    pub wal_level: Option<WalLevel>,
}

/// The content of a record of the XLOG resource manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XlogRecord<'a> {
    /// A checkpoint.
    Checkpoint(CheckpointRecord),
    /// The segment ends here.
    Switch,
    /// A base backup ended that started at this redo point.
    BackupEnd(Lsn),
    /// Settings changed.
    ParameterChange(ParameterChange),
    /// A restore point.
    RestorePoint(RestorePoint<'a>),
    /// `full_page_writes` was switched.
    FullPageWrites(bool),
    /// Recovery ended.
    EndOfRecovery(EndOfRecovery),
    /// This record replaces the end of one that was never finished.
    OverwriteContrecord {
        /// Start of the record that was never finished.
        overwritten: Lsn,
        /// When it was replaced.
        time: TimestampTz,
    },
    /// The redo point of an online checkpoint that began (17+).
    CheckpointRedo(Option<WalLevel>),
    /// Something that does not matter here: page images, object numbers.
    Other,
}

/// Whether a record ends its segment.
#[inline]
pub fn is_switch(rmid: u8, info: u8) -> bool {
    rmid == rmgr::XLOG && info & 0xF0 == SWITCH
}

/// The start of the unfinished record that this one says it replaces. The payload is a short main data fragment: `255`, `16`,
/// then the LSN.
pub(super) fn overwritten_lsn(header: &RecordHeader, record: &[u8]) -> Option<Lsn> {
    if header.rmid != rmgr::XLOG || header.info & 0xF0 != OVERWRITE_CONTRECORD {
        return None;
    }
    cursor::u64_at(record, HEADER + 2).map(Lsn)
}

/// Returns the content of a record of the XLOG resource manager; `main_data` is that of its body. `None` for records of
/// others.
///
/// # Errors
/// `Damaged` if the record is shorter than what it should hold, or says something that does not exist.
pub fn decode<'a>(record: &Record<'a>, main_data: &'a [u8]) -> Result<Option<XlogRecord<'a>>> {
    if record.rmid != rmgr::XLOG {
        return Ok(None);
    }
    read(record, main_data)
        .map(Some)
        .ok_or_else(|| err!(Damaged, "XLOG record at {} is not valid", record.start_lsn))
}

fn read<'a>(record: &Record<'a>, main_data: &'a [u8]) -> Option<XlogRecord<'a>> {
    let version = record.version;
    let mut c = Cursor::new(main_data);
    Some(match record.opcode() {
        code @ (CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => {
            XlogRecord::Checkpoint(CheckpointRecord {
                shutdown: code == CHECKPOINT_SHUTDOWN,
                checkpoint: Checkpoint::parse(main_data, version)?,
                wal_level: optional_level(version.checkpoint_has_wal_level, main_data, 20)?,
            })
        }
        SWITCH => XlogRecord::Switch,
        BACKUP_END => XlogRecord::BackupEnd(Lsn(c.u64()?)),
        PARAMETER_CHANGE => XlogRecord::ParameterChange(ParameterChange {
            max_connections: c.i32()?,
            max_worker_processes: c.i32()?,
            max_wal_senders: c.i32()?,
            max_prepared_transactions: c.i32()?,
            max_locks_per_transaction: c.i32()?,
            wal_level: WalLevel::read(c.i32()?)?,
            wal_log_hints: c.u8()? != 0,
            track_commit_timestamp: c.u8()? != 0,
        }),
        RESTORE_POINT => XlogRecord::RestorePoint(xact::restore_point(record, main_data)?),
        FPW_CHANGE => XlogRecord::FullPageWrites(c.u8()? != 0),
        END_OF_RECOVERY => XlogRecord::EndOfRecovery(EndOfRecovery {
            time: TimestampTz(c.i64()?),
            timeline: c.u32()?,
            previous_timeline: c.u32()?,
            wal_level: optional_level(version.end_of_recovery_has_wal_level, main_data, 16)?,
        }),
        OVERWRITE_CONTRECORD => XlogRecord::OverwriteContrecord {
            overwritten: Lsn(c.u64()?),
            time: TimestampTz(c.i64()?),
        },
        CHECKPOINT_REDO if version.has_checkpoint_redo => {
            XlogRecord::CheckpointRedo(optional_level(true, main_data, 0)?)
        }
        _ => XlogRecord::Other,
    })
}

/// Returns the `wal_level` that a record changes parameters to; `None` for every other record.
pub fn changed_level(record: &Record<'_>) -> Option<WalLevel> {
    if record.rmid != rmgr::XLOG || record.opcode() != PARAMETER_CHANGE {
        return None;
    }
    match decode(record, record.body().ok()?.main_data) {
        Ok(Some(XlogRecord::ParameterChange(change))) => Some(change.wal_level),
        _ => None,
    }
}

/// The `wal_level` at `offset` of the versions that have it; `None` if it should be there and is not.
#[expect(
    clippy::option_option,
    reason = "not there by version, and not there by damage, differ"
)]
fn optional_level(has: bool, main_data: &[u8], offset: usize) -> Option<Option<WalLevel>> {
    if !has {
        return Some(None);
    }
    WalLevel::read(cursor::i32_at(main_data, offset)?).map(Some)
}

/// Whether the record is a checkpoint, without taking it apart.
#[inline]
pub fn is_checkpoint(record: &Record<'_>) -> bool {
    record.rmid == rmgr::XLOG && matches!(record.opcode(), CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::craft;
    use crate::pg::record::DEFAULT_BLOCK_SIZE;
    use crate::pg::version::Major;
    use proptest::prelude::*;

    fn decoded(major: Major, info: u8, main: &[u8]) -> Result<String> {
        let bytes = craft::header_and(rmgr::XLOG, info, 0, Lsn(0), &craft::main_data(main));
        let record = Record::parse(major, DEFAULT_BLOCK_SIZE, Lsn(8), Lsn(16), &bytes)?;
        let body = record.body()?;
        Ok(format!("{:?}", decode(&record, body.main_data)?.unwrap()))
    }

    #[test]
    fn records_say_what_their_layout_says() {
        let cases: [(Major, u8, Vec<u8>, &str); 8] = [
            (Major::V13, SWITCH, vec![], "Switch"),
            (
                Major::V13,
                BACKUP_END,
                0x900_0028u64.to_le_bytes().to_vec(),
                "BackupEnd(Lsn(150994984))",
            ),
            (Major::V15, FPW_CHANGE, vec![1], "FullPageWrites(true)"),
            (
                Major::V17,
                CHECKPOINT_REDO,
                vec![1, 0, 0, 0],
                "CheckpointRedo(Some(Replica))",
            ),
            (Major::V16, CHECKPOINT_REDO, vec![1, 0, 0, 0], "Other"),
            (
                Major::V15,
                END_OF_RECOVERY,
                [vec![9, 0, 0, 0, 0, 0, 0, 0], vec![2, 0, 0, 0, 1, 0, 0, 0]].concat(),
                "EndOfRecovery(EndOfRecovery { time: TimestampTz(9), timeline: 2, previous_timeline: 1, wal_level: None })",
            ),
            (
                Major::V17,
                END_OF_RECOVERY,
                [
                    vec![9, 0, 0, 0, 0, 0, 0, 0],
                    vec![2, 0, 0, 0, 1, 0, 0, 0],
                    vec![2, 0, 0, 0, 0, 0, 0, 0],
                ]
                .concat(),
                "EndOfRecovery(EndOfRecovery { time: TimestampTz(9), timeline: 2, previous_timeline: 1, wal_level: Some(Logical) })",
            ),
            (
                Major::V18,
                OVERWRITE_CONTRECORD,
                [vec![8, 0, 0, 0, 0, 0, 0, 0], vec![9, 0, 0, 0, 0, 0, 0, 0]].concat(),
                "OverwriteContrecord { overwritten: Lsn(8), time: TimestampTz(9) }",
            ),
        ];
        for (major, info, main, text) in cases {
            assert_eq!(decoded(major, info, &main).unwrap(), text);
            if !main.is_empty() && text != "Other" {
                let cut = decoded(major, info, &main[..main.len() / 2]);
                assert_eq!(cut.unwrap_err().code(), Code::Damaged, "{text}");
            }
        }
    }

    #[test]
    fn a_checkpoint_tells_wal_level_from_17_on() {
        let mut main = vec![0u8; 88];
        main[0..8].copy_from_slice(&0x100_0028u64.to_le_bytes());
        main[8] = 2;
        main[12] = 1;
        main[20] = 2;
        let old = decoded(Major::V16, CHECKPOINT_ONLINE, &main).unwrap();
        assert!(
            old.contains("shutdown: false") && old.ends_with("wal_level: None })"),
            "{old}"
        );
        let new = decoded(Major::V17, CHECKPOINT_SHUTDOWN, &main).unwrap();
        assert!(
            new.contains("shutdown: true") && new.ends_with("wal_level: Some(Logical) })"),
            "{new}"
        );
        assert!(
            new.contains("timeline: TimelineId(2), previous_timeline: TimelineId(1)"),
            "{new}"
        );
        main[20] = 3;
        assert!(decoded(Major::V17, CHECKPOINT_SHUTDOWN, &main).is_err());
    }

    proptest! {
        #[test]
        fn any_main_data_is_read_or_refused(info: u8, main in proptest::collection::vec(any::<u8>(), 0..120), major in 0usize..7) {
            let _ = decoded(Major::ALL[major], info, &main);
        }
    }
}
