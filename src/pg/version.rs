//! Everything in which PostgreSQL 13 to 19 differ, as one table.
//!
//! A reader of WAL finds its row by the magic number of a page, a reader of `pg_control` by its version and that of the catalogs. Knowledge:
//! src/include/access/xlog_internal.h (XLOG_PAGE_MAGIC), src/include/catalog/{pg_control,catversion}.h,
//! src/include/access/{xlogrecord,xact,twophase_rmgr}.h, src/include/commands/dbcommands_xlog.h of each branch.

use std::fmt;

use crate::err;
use crate::error::{Error, Result};

/// A major version of PostgreSQL that is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Major {
    /// PostgreSQL 13.
    V13,
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
    /// PostgreSQL 19.
    V19,
}

/// Settings that end a statement, a transaction or a session after some time, as far as a server of this major knows them.
///
/// PostgreSQL: src/backend/utils/misc/guc_tables.c (13 to 15: guc.c).
pub fn time_limits(major: u32) -> &'static [&'static str] {
    match major {
        ..=13 => &["statement_timeout", "idle_in_transaction_session_timeout"],
        14..=16 => &[
            "statement_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
        ],
        _ => &[
            "statement_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
            "transaction_timeout",
        ],
    }
}

/// Bits of `bimg_info` in the header of a full-page image; 0 where the major does not have the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageBits {
    /// The image must be restored by replay (it is not only there for consistency checks).
    pub apply: u8,
    /// Compressed with pglz.
    pub pglz: u8,
    /// Compressed with LZ4.
    pub lz4: u8,
    /// Compressed with zstd.
    pub zstd: u8,
}

/// How the state of a prepared transaction begins (struct TwoPhaseFileHeader).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrepareLayout {
    /// Size of the header, a multiple of 8.
    pub size: usize,
    /// Offset of `gidlen` (u16).
    pub gid_length: usize,
    /// Offset of `origin_lsn` (u64), followed by `origin_timestamp` (i64).
    pub origin: usize,
}

/// Offsets of fields of `pg_control` that majors have in different places (struct ControlFileData).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlLayout {
    /// `minRecoveryPoint`, which the points of recovery follow.
    pub min_recovery_point: usize,
    /// `blcksz`, followed by `relseg_size`.
    pub block_size: usize,
    /// `xlog_blcksz`, followed by `xlog_seg_size`.
    pub wal_block_size: usize,
    /// `data_checksum_version`.
    pub checksum_version: usize,
    pub crc: usize,
}

/// Offsets of fields of a checkpoint record that majors have in different places (struct CheckPoint).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointLayout {
    /// `nextXid`.
    pub next_xid: usize,
    /// `time`.
    pub time: usize,
}

/// The properties that depend on the major.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// The major itself.
    pub major: Major,
    /// `xlp_magic` of every WAL page.
    pub page_magic: u16,
    /// `pg_control_version`; 13 to 16 share one.
    pub control_version: u32,
    /// `catalog_version_no` of the release.
    pub catalog_version: u32,
    /// Offsets in `pg_control`.
    pub control: ControlLayout,
    /// Offsets of `nextXid` and `time` in the body of a checkpoint record.
    pub checkpoint: CheckpointLayout,
    /// The flag of a page that replaces the continuation of a record that was never finished; the highest flag there is.
    pub overwrite_flag: u16,
    /// Whether a checkpoint record (and the copy in `pg_control`) holds `wal_level`, at offset 20.
    pub checkpoint_has_wal_level: bool,
    /// Whether an end-of-recovery record holds `wal_level`, at offset 16.
    pub end_of_recovery_has_wal_level: bool,
    /// Whether an online checkpoint begins with a CHECKPOINT_REDO record (XLOG 0xE0).
    pub has_checkpoint_redo: bool,
    /// Bits of a full-page image.
    pub image: ImageBits,
    /// Whether a record may carry the xid of its top-level transaction (fragment 252).
    pub has_toplevel_xid: bool,
    /// Largest built-in resource manager.
    pub max_rmid: u8,
    /// Whether extensions may have resource managers 128 to 255.
    pub has_custom_rmgrs: bool,
    /// Opcode of "database made block by block" (Database rmgr), where it exists.
    pub database_create_wal_log: Option<u8>,
    /// Opcode of "database dropped" (Database rmgr).
    pub database_drop: u8,
    /// Size of an item of the dropped statistics in transaction-end records, where they exist.
    pub dropped_stats_item: Option<usize>,
    /// The state of a prepared transaction.
    pub prepare: PrepareLayout,
}

const PGLZ_ONLY: ImageBits = ImageBits {
    apply: 0x04,
    pglz: 0x02,
    lz4: 0,
    zstd: 0,
};

const THREE_CODECS: ImageBits = ImageBits {
    apply: 0x02,
    pglz: 0x04,
    lz4: 0x08,
    zstd: 0x10,
};

const PREPARE_13: PrepareLayout = PrepareLayout {
    size: 64,
    gid_length: 46,
    origin: 48,
};

const PREPARE_15: PrepareLayout = PrepareLayout {
    size: 72,
    gid_length: 54,
    origin: 56,
};

const CONTROL_13: ControlLayout = ControlLayout {
    min_recovery_point: 136,
    block_size: 216,
    wal_block_size: 224,
    checksum_version: 252,
    crc: 288,
};

const V13: Version = Version {
    major: Major::V13,
    page_magic: 0xD106,
    control_version: 1300,
    catalog_version: 202_007_201,
    control: CONTROL_13,
    checkpoint: CheckpointLayout {
        next_xid: 24,
        time: 64,
    },
    overwrite_flag: 0x0008,
    checkpoint_has_wal_level: false,
    end_of_recovery_has_wal_level: false,
    has_checkpoint_redo: false,
    image: PGLZ_ONLY,
    has_toplevel_xid: false,
    max_rmid: 21,
    has_custom_rmgrs: false,
    database_create_wal_log: None,
    database_drop: 0x10,
    dropped_stats_item: None,
    prepare: PREPARE_13,
};

const V14: Version = Version {
    major: Major::V14,
    page_magic: 0xD10D,
    catalog_version: 202_107_181,
    has_toplevel_xid: true,
    ..V13
};

const V15: Version = Version {
    major: Major::V15,
    page_magic: 0xD110,
    catalog_version: 202_209_061,
    image: THREE_CODECS,
    has_custom_rmgrs: true,
    database_create_wal_log: Some(0x10),
    database_drop: 0x20,
    dropped_stats_item: Some(12),
    prepare: PREPARE_15,
    ..V14
};

const V16: Version = Version {
    major: Major::V16,
    page_magic: 0xD113,
    catalog_version: 202_307_071,
    ..V15
};

const V17: Version = Version {
    major: Major::V17,
    page_magic: 0xD116,
    control_version: 1700,
    catalog_version: 202_406_281,
    checkpoint_has_wal_level: true,
    end_of_recovery_has_wal_level: true,
    has_checkpoint_redo: true,
    ..V16
};

const V18: Version = Version {
    major: Major::V18,
    page_magic: 0xD118,
    control_version: 1800,
    catalog_version: 202_506_291,
    control: ControlLayout {
        crc: 292,
        ..CONTROL_13
    },
    dropped_stats_item: Some(16),
    ..V17
};

const V19: Version = Version {
    major: Major::V19,
    page_magic: 0xD122,
    control_version: 1905,
    catalog_version: 202_610_061,
    control: ControlLayout {
        min_recovery_point: 144,
        block_size: 224,
        wal_block_size: 236,
        checksum_version: 268,
        crc: 308,
    },
    checkpoint: CheckpointLayout {
        next_xid: 32,
        time: 72,
    },
    overwrite_flag: 0x0004,
    ..V18
};

static TABLE: [Version; 7] = [V13, V14, V15, V16, V17, V18, V19];

impl Major {
    /// Every supported major, oldest first.
    pub const ALL: [Major; 7] = [
        Major::V13,
        Major::V14,
        Major::V15,
        Major::V16,
        Major::V17,
        Major::V18,
        Major::V19,
    ];

    /// The number: 13 to 19.
    pub const fn number(self) -> u32 {
        match self {
            Major::V13 => 13,
            Major::V14 => 14,
            Major::V15 => 15,
            Major::V16 => 16,
            Major::V17 => 17,
            Major::V18 => 18,
            Major::V19 => 19,
        }
    }

    /// The row of this major.
    pub fn version(self) -> &'static Version {
        let [v13, v14, v15, v16, v17, v18, v19] = &TABLE;
        match self {
            Major::V13 => v13,
            Major::V14 => v14,
            Major::V15 => v15,
            Major::V16 => v16,
            Major::V17 => v17,
            Major::V18 => v18,
            Major::V19 => v19,
        }
    }

    /// The major with this number, as in `PG_VERSION`.
    ///
    /// # Errors
    /// `Unsupported` for any other number.
    pub fn from_number(number: u32) -> Result<Self> {
        Major::ALL
            .into_iter()
            .find(|m| m.number() == number)
            .ok_or_else(|| match Major::newer_means(number) {
                Some(means) => err!(Unsupported, "{means}").hint("Install a newer pitr."),
                None => unsupported(format!("PostgreSQL {number}")),
            })
    }

    /// The major of a server that reports this `server_version_num` (170011 → 17).
    ///
    /// # Errors
    /// `Unsupported` for any other major.
    pub fn from_server_version_num(number: u32) -> Result<Self> {
        Major::from_number(number / 10_000)
    }

    /// The newest supported major.
    pub const NEWEST: Major = Major::V19;

    /// Whether a server or a registration with this number is newer than every supported major.
    pub const fn is_newer(number: u32) -> bool {
        number > Major::NEWEST.number()
    }

    /// Returns the consequences of a newer server or registration for the operator; `None` for a supported number.
    pub fn newer_means(number: u32) -> Option<String> {
        Major::is_newer(number).then(|| {
            format!(
                "PostgreSQL {number} is newer than {}, the newest that this pitr knows: its WAL is archived undecoded, nothing of it can be planned or proven, and backups of it are refused",
                Major::NEWEST
            )
        })
    }

    /// The major whose WAL pages carry this magic number; `None` for a major newer than every supported one.
    ///
    /// # Errors
    /// `Unsupported` for magic numbers of older majors and of the other byte order; `Damaged` for what is no WAL at all.
    pub fn from_page_magic(magic: u16) -> Result<Option<Self>> {
        if let Some(version) = TABLE.iter().find(|v| v.page_magic == magic) {
            return Ok(Some(version.major));
        }
        if TABLE.iter().any(|v| v.page_magic.swap_bytes() == magic) {
            return Err(unsupported(format!(
                "WAL page magic {magic:04X}, of a host of the other byte order"
            )));
        }
        // Every release since 8.0 uses D0xx or D1xx, and each one a higher number than the one before.
        if magic > Major::NEWEST.version().page_magic && magic >> 8 == 0xD1 {
            return Ok(None);
        }
        if magic >> 8 == 0xD0 || magic >> 8 == 0xD1 {
            return Err(unsupported(format!("WAL page magic {magic:04X}")));
        }
        Err(err!(
            Damaged,
            "{magic:04X} is not the magic number of a WAL page"
        ))
    }

    /// The major whose `pg_control` has this version, and these catalogs. A layout that one major alone has names it, whatever
    /// its catalogs: they change until the release.
    ///
    /// # Errors
    /// `Unsupported` for all others.
    pub fn of_catalog(control_version: u32, catalog_version: u32) -> Result<Self> {
        let same = || {
            TABLE
                .iter()
                .filter(|v| v.control_version == control_version)
        };
        same()
            .find(|v| v.catalog_version == catalog_version || v.major == Major::V19)
            .map(|v| v.major)
            .ok_or_else(|| unsupported(format!("catalog version {catalog_version}")))
    }
}

impl Version {
    /// The first major whose `pg_control` has this layout.
    pub fn of_control(control_version: u32) -> Option<&'static Version> {
        TABLE.iter().find(|v| v.control_version == control_version)
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl serde::Serialize for Major {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.number())
    }
}

impl<'de> serde::Deserialize<'de> for Major {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        Major::from_number(u32::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn unsupported(what: String) -> Error {
    err!(Unsupported, "{what} is not supported").hint("PostgreSQL 13 to 19 are supported.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn every_major_finds_its_own_row() {
        for major in Major::ALL {
            let version = major.version();
            assert_eq!(version.major, major);
            assert_eq!(
                Major::from_page_magic(version.page_magic).unwrap(),
                Some(major)
            );
            assert_eq!(
                Major::of_catalog(version.control_version, version.catalog_version).unwrap(),
                major
            );
            assert_eq!(Major::from_number(major.number()).unwrap(), major);
        }
        assert_eq!(Major::from_server_version_num(170_011).unwrap(), Major::V17);
        assert_eq!(
            Major::from_server_version_num(120_022).unwrap_err().code(),
            Code::Unsupported
        );
        assert_eq!(
            Major::from_server_version_num(90_624).unwrap_err().code(),
            Code::Unsupported
        );
    }

    #[test]
    fn a_strange_magic_number_says_what_it_is() {
        for (magic, code, text) in [
            (0xD0FF, Code::Unsupported, "D0FF"),
            (0xD200, Code::Damaged, "D200"),
            (0xD107, Code::Unsupported, "D107"),
            (0x06D1, Code::Unsupported, "other byte order"),
            (0x0000, Code::Damaged, "0000"),
            (0x1234, Code::Damaged, "1234"),
        ] {
            let error = Major::from_page_magic(magic).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_magic_number_above_the_newest_is_that_of_a_newer_major() {
        let newest = Major::NEWEST.version().page_magic;
        for magic in [newest + 1, 0xD1FF] {
            assert_eq!(Major::from_page_magic(magic).unwrap(), None, "{magic:04X}");
        }
        assert_eq!(Major::ALL.last(), Some(&Major::NEWEST));
        assert!(Major::is_newer(20) && !Major::is_newer(19));
    }
}
