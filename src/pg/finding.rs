//! The findings of a reader of WAL: faults, and their positions.

use std::fmt;

use super::lsn::Lsn;
use super::page::PageFault;

/// Something that is wrong with the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// The record or page it is about.
    pub lsn: Lsn,
    /// Kind of the fault.
    pub kind: FindingKind,
}

/// The kind of a fault in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// The checksum of a record.
    Crc,
    /// A record does not name the one before it; its own checksum may be right.
    Prev {
        /// Start of the record before.
        expected: Lsn,
        /// Position that the record names.
        found: Lsn,
    },
    /// The header of a page, or a page that was never written before pages that were.
    Page(PageFault),
    /// The header of a page does not continue the record before it: how many bytes were expected, and are announced.
    Continuation {
        /// Bytes still missing of the record before the page.
        expected: u32,
        /// Bytes that the page announces.
        found: u32,
    },
    /// The header of a record: its length or its resource manager.
    Header,
    /// A page announces that it replaces the end of a record, but its first record names another one.
    Overwrite,
    /// Bytes behind a switch record that are not zero.
    AfterSwitch,
}

impl FindingKind {
    /// A fault of this kind at a position.
    #[inline]
    pub fn at(self, lsn: Lsn) -> Finding {
        Finding { lsn, kind: self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lsn = self.lsn;
        match self.kind {
            FindingKind::Crc => write!(f, "WAL record at {lsn} has an incorrect checksum"),
            FindingKind::Prev { expected, found } => write!(
                f,
                "WAL record at {lsn} names {found} as the record before it, expected {expected}"
            ),
            FindingKind::Page(fault) => write!(f, "{fault}, at {lsn}"),
            FindingKind::Continuation { expected, found } => write!(
                f,
                "WAL page at {lsn} continues a record by {found} bytes, expected {expected}"
            ),
            FindingKind::Header => write!(f, "WAL record at {lsn} has an impossible header"),
            FindingKind::Overwrite => write!(
                f,
                "WAL record at {lsn} does not name the unfinished record that it replaces"
            ),
            FindingKind::AfterSwitch => {
                write!(f, "WAL at {lsn}, behind a switch record, is not zero")
            }
        }
    }
}
