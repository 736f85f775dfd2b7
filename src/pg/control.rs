//! `global/pg_control`: identity, state, latest checkpoint and compile-time settings of a cluster.
//!
//! Owns the layout for 13–19 on little-endian 64-bit machines and the CRC check. Reading the
//! file is left to the caller, with one duty: a copy whose CRC fails may be a torn read of a file that the server is just writing, so
//! it is read again after 10 ms, up to ten times, before it is called damaged (PostgreSQL: src/common/controldata_utils.c,
//! get_controlfile).
//!
//! PostgreSQL: src/include/catalog/pg_control.h. Offsets are those of a compiled header (x86-64).

use crate::err;
use crate::error::{Error, Result};
use crate::pg::cursor::{i32_at, i64_at, u32_at, u64_at};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentSize;
use crate::pg::timeline::TimelineId;
use crate::pg::version::{Major, Version};

/// The size of the file; the structure fills fewer than 512 bytes of it, the rest is zero.
pub const CONTROL_FILE_SIZE: usize = 8192;

/// The content of `pg_control`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity, given at initdb.
    pub system_identifier: u64,
    /// Version of this file's layout: 1300 (13–16), 1700, 1800 or 1905.
    pub control_version: u32,
    /// Version of the system catalogs; one per major release.
    pub catalog_version: u32,
    /// PostgreSQL's major version, by the catalog version.
    pub major: Major,
    /// State of the server when it wrote the file.
    pub state: ClusterState,
    /// When the file was written, in Unix seconds.
    pub time: i64,
    /// Position of the latest checkpoint record.
    pub checkpoint: Lsn,
    /// The body of that record.
    pub checkpoint_copy: Checkpoint,
    /// Recovery has to get here before the data are consistent; invalid outside recovery.
    pub min_recovery_point: Lsn,
    /// The timeline of that position; none outside of recovery.
    pub min_recovery_timeline: Option<TimelineId>,
    /// Whether it began with a base backup whose end was not replayed yet.
    pub is_backup_unfinished: bool,
    /// Settings that a standby or a restored copy has to match.
    pub settings: ControlSettings,
    /// Bytes in a data page.
    pub block_size: u32,
    /// Data pages in one file of a relation (131072 unless compiled otherwise).
    pub relation_segment_blocks: u32,
    /// Bytes in a WAL page.
    pub wal_block_size: u32,
    pub wal_segment_size: SegmentSize,
    /// 1 if all data pages carry checksums.
    pub data_checksum_version: u32,
}

/// The server's settings that `pg_control` repeats (the values of the primary, on a standby too).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlSettings {
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
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
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// The body of a checkpoint record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Replay starts here.
    pub redo: Lsn,
    /// Timeline of the checkpoint.
    pub timeline: TimelineId,
    /// Timeline before it; differs only in the checkpoint that begins a timeline.
    pub previous_timeline: TimelineId,
    /// Next transaction id with its epoch in the upper half.
    pub next_xid: u64,
    /// When the checkpoint was made, in Unix seconds.
    pub time: i64,
}

/// `DBState`: what the server was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting up.
    Startup = 0,
    /// Shut down cleanly.
    ShutDown = 1,
    /// A standby, shut down cleanly.
    ShutDownInRecovery = 2,
    /// Shutting down.
    ShuttingDown = 3,
    /// In crash recovery.
    InCrashRecovery = 4,
    /// In archive recovery: a restored copy or a standby.
    InArchiveRecovery = 5,
    /// In production (or crashed there).
    InProduction = 6,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        let all = [
            ClusterState::Startup,
            ClusterState::ShutDown,
            ClusterState::ShutDownInRecovery,
            ClusterState::ShuttingDown,
            ClusterState::InCrashRecovery,
            ClusterState::InArchiveRecovery,
            ClusterState::InProduction,
        ];
        all.into_iter().find(|state| *state as u32 == number)
    }

    /// The words of pg_controldata.
    pub fn name(self) -> &'static str {
        match self {
            ClusterState::Startup => "starting up",
            ClusterState::ShutDown => "shut down",
            ClusterState::ShutDownInRecovery => "shut down in recovery",
            ClusterState::ShuttingDown => "shutting down",
            ClusterState::InCrashRecovery => "in crash recovery",
            ClusterState::InArchiveRecovery => "in archive recovery",
            ClusterState::InProduction => "in production",
        }
    }
}

/// The fields that the file has had at its front from 13 to 19, and is taken to have in a newer major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlHead {
    /// The cluster's identity, given at initdb.
    pub system_identifier: u64,
    /// State of the server when it wrote the file.
    pub state: ClusterState,
}

/// The offsets at which the CRC of a newer major may stand: behind those of 13, before the end of a disk sector. The CRC ends the structure.
const NEWER_CRC: std::ops::Range<usize> = 288..509;

impl ControlHead {
    /// Reads the front of the bytes of `pg_control`.
    ///
    /// # Errors
    /// Those of [`ControlFile::parse`]; `Damaged` for the file of a newer major in which no CRC is right.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let newest = Major::NEWEST.version().control_version;
        let version = u32_at(bytes, 8).unwrap_or_default();
        // PostgreSQL: src/include/catalog/pg_control.h, PG_CONTROL_VERSION: a hundredfold of the major.
        if version <= newest || version >= 10_000 {
            return ControlFile::parse(bytes).map(|control| ControlHead {
                system_identifier: control.system_identifier,
                state: control.state,
            });
        }
        let has_crc = |at: &usize| {
            let content = bytes.get(..*at).unwrap_or_default();
            u32_at(bytes, *at) == Some(crc32c::crc32c(content))
        };
        let state = u32_at(bytes, 16).and_then(ClusterState::from_number);
        match (
            NEWER_CRC.step_by(4).any(|at| has_crc(&at)),
            u64_at(bytes, 0),
            state,
        ) {
            (true, Some(system_identifier), Some(state)) => Ok(ControlHead {
                system_identifier,
                state,
            }),
            _ => Err(err!(
                Damaged,
                "control file version {version}, of a PostgreSQL newer than {}, has no CRC that fits",
                Major::NEWEST
            )),
        }
    }
}

impl ControlFile {
    /// Reads the bytes of `pg_control`; fewer than 8192 are accepted as long as the structure is whole.
    ///
    /// # Errors
    /// `Damaged` if the file is short or its CRC fails (see the module head for torn reads); `Unsupported` if it was written by
    /// another major or on a machine of other byte order.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse(bytes).unwrap_or_else(|| Err(short(bytes)))
    }

    /// Whether data pages carry checksums.
    pub fn checksums_enabled(&self) -> bool {
        are_checksums_on(self.data_checksum_version)
    }
}

/// Whether a version of data checksums says that every page carries one. Since 19 there are others, of servers that are being switched.
///
/// PostgreSQL: src/include/storage/checksum.h, `ChecksumStateType`.
pub fn are_checksums_on(version: u32) -> bool {
    version == 1
}

fn short(bytes: &[u8]) -> Error {
    err!(
        Damaged,
        "control file \"global/pg_control\" has {} bytes, which is too short",
        bytes.len()
    )
}

/// `None` where the bytes end too early.
fn parse(bytes: &[u8]) -> Option<Result<ControlFile>> {
    let (control_version, catalog_version) = (u32_at(bytes, 8)?, u32_at(bytes, 12)?);
    let Some(version) = Version::of_control(control_version) else {
        return Some(Err(match control_version % 65536 {
            0 if control_version != 0 => err!(
                Unsupported,
                "control file was written on a machine of other byte order"
            ),
            _ => err!(
                Unsupported,
                "control file version {control_version} is not one of PostgreSQL 13 to 19"
            )
            .hint("Install a newer pitr for a newer PostgreSQL."),
        }));
    };
    let layout = version.control;
    let (stored, computed) = (
        u32_at(bytes, layout.crc)?,
        crc32c::crc32c(bytes.get(..layout.crc)?),
    );
    if stored != computed {
        return Some(Err(err!(
            Damaged,
            "control file has CRC {stored:08X}, but its content gives {computed:08X}"
        )));
    }
    let major = match Major::of_catalog(control_version, catalog_version) {
        Ok(major) => major,
        Err(error) => return Some(Err(error.context("read control file"))),
    };
    let state = u32_at(bytes, 16)?;
    let Some(state) = ClusterState::from_number(state) else {
        return Some(Err(err!(
            Damaged,
            "control file names cluster state {state}, which does not exist"
        )));
    };
    let wal_segment_size =
        match SegmentSize::new(u64::from(u32_at(bytes, layout.wal_block_size + 4)?)) {
            Ok(size) => size,
            Err(error) => return Some(Err(error.context("read control file"))),
        };
    let Some(checkpoint_copy) = Checkpoint::parse(bytes.get(40..)?, version) else {
        return Some(Err(err!(Damaged, "control file names no timeline")));
    };
    Some(Ok(ControlFile {
        system_identifier: u64_at(bytes, 0)?,
        control_version,
        catalog_version,
        major,
        state,
        time: i64_at(bytes, 24)?,
        checkpoint: lsn_at(bytes, 32)?,
        checkpoint_copy,
        min_recovery_point: lsn_at(bytes, layout.min_recovery_point)?,
        min_recovery_timeline: TimelineId::new(u32_at(bytes, layout.min_recovery_point + 8)?),
        is_backup_unfinished: lsn_at(bytes, layout.min_recovery_point + 16)? != Lsn(0)
            || lsn_at(bytes, layout.min_recovery_point + 24)? != Lsn(0)
            || bool_at(bytes, layout.min_recovery_point + 32)?,
        settings: settings(bytes.get(layout.min_recovery_point + 36..)?)?,
        block_size: u32_at(bytes, layout.block_size)?,
        relation_segment_blocks: u32_at(bytes, layout.block_size + 4)?,
        wal_block_size: u32_at(bytes, layout.wal_block_size)?,
        wal_segment_size,
        data_checksum_version: u32_at(bytes, layout.checksum_version)?,
    }))
}

fn settings(bytes: &[u8]) -> Option<ControlSettings> {
    Some(ControlSettings {
        wal_level: i32_at(bytes, 0)?,
        wal_log_hints: bool_at(bytes, 4)?,
        max_connections: i32_at(bytes, 8)?,
        max_worker_processes: i32_at(bytes, 12)?,
        max_wal_senders: i32_at(bytes, 16)?,
        max_prepared_transactions: i32_at(bytes, 20)?,
        max_locks_per_transaction: i32_at(bytes, 24)?,
        track_commit_timestamp: bool_at(bytes, 28)?,
    })
}

impl Checkpoint {
    /// Reads the body of a checkpoint record; `None` if it is shorter or names no timeline.
    pub fn parse(bytes: &[u8], version: &Version) -> Option<Self> {
        let layout = version.checkpoint;
        Some(Checkpoint {
            redo: lsn_at(bytes, 0)?,
            timeline: TimelineId::new(u32_at(bytes, 8)?)?,
            previous_timeline: TimelineId::new(u32_at(bytes, 12)?)?,
            next_xid: u64_at(bytes, layout.next_xid)?,
            time: i64_at(bytes, layout.time)?,
        })
    }
}

fn lsn_at(bytes: &[u8], offset: usize) -> Option<Lsn> {
    u64_at(bytes, offset).map(Lsn)
}

fn bool_at(bytes: &[u8], offset: usize) -> Option<bool> {
    bytes.get(offset).map(|&byte| byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    /// 19 has 2 and 3 while checksums are switched on and off.
    #[test]
    fn checksums_that_are_switched_are_not_on() {
        let on = (0..4).filter(|version| are_checksums_on(*version));
        assert!(on.eq([1]));
    }

    fn sample(control_version: u32, catalog_version: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; CONTROL_FILE_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(0, &7_710_144_769_480_392_331u64.to_le_bytes());
        put(8, &control_version.to_le_bytes());
        put(12, &catalog_version.to_le_bytes());
        put(16, &6u32.to_le_bytes());
        put(24, &1_800_000_000i64.to_le_bytes());
        put(32, &0x300_0060u64.to_le_bytes());
        put(40, &0x300_0028u64.to_le_bytes());
        put(48, &3u32.to_le_bytes());
        put(52, &2u32.to_le_bytes());
        let (block, wal_block, checksum, end) = match control_version {
            1905 => (224, 236, 268, 308),
            1800 => (216, 224, 252, 292),
            _ => (216, 224, 252, 288),
        };
        put(block, &8192u32.to_le_bytes());
        put(block + 4, &131_072u32.to_le_bytes());
        put(wal_block, &8192u32.to_le_bytes());
        put(wal_block + 4, &0x10_0000u32.to_le_bytes());
        put(checksum, &1u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn every_major_is_read() {
        for (control, catalog, major) in [
            (1300, 202_007_201, Major::V13),
            (1300, 202_107_181, Major::V14),
            (1300, 202_209_061, Major::V15),
            (1300, 202_307_071, Major::V16),
            (1700, 202_406_281, Major::V17),
            (1800, 202_506_291, Major::V18),
            (1905, 202_610_061, Major::V19),
            // A release after the candidate.
            (1905, 202_610_071, Major::V19),
        ] {
            let file = ControlFile::parse(&sample(control, catalog)).unwrap();
            assert_eq!(file.major, major);
            assert_eq!(file.system_identifier, 7_710_144_769_480_392_331);
            assert_eq!(file.state, ClusterState::InProduction);
            assert_eq!(file.checkpoint, Lsn(0x300_0060));
            assert_eq!(file.checkpoint_copy.redo, Lsn(0x300_0028));
            assert_eq!(
                (
                    file.checkpoint_copy.timeline.get(),
                    file.checkpoint_copy.previous_timeline.get()
                ),
                (3, 2)
            );
            assert_eq!(file.wal_segment_size.bytes(), 0x10_0000);
            assert_eq!(file.block_size, 8192);
            assert!(file.checksums_enabled());
        }
    }

    #[test]
    fn what_is_not_a_control_file_of_ours_is_refused() {
        let code = |bytes: &[u8]| ControlFile::parse(bytes).unwrap_err().code();
        let good = sample(1300, 202_209_061);
        for length in [0, 8, 15, 100, 290] {
            assert_eq!(code(&good[..length]), Code::Damaged, "{length}");
        }
        let mut flipped = good.clone();
        flipped[33] ^= 1;
        assert_eq!(code(&flipped), Code::Damaged);
        assert_eq!(code(&sample(1201, 201_909_212)), Code::Unsupported);
        assert_eq!(code(&sample(1300, 202_209_062)), Code::Unsupported);
        assert_eq!(code(&sample(1700, 202_610_061)), Code::Unsupported);
        assert_eq!(code(&sample(1300u32.swap_bytes(), 1)), Code::Unsupported);
    }
}
