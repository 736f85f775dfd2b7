//! Rows in WAL: what heap records do to rows, and the rows themselves.
//!
//! PostgreSQL: src/include/access/heapam_xlog.h, htup_details.h, src/backend/access/heap/heapam.c (log_heap_update, heap_xlog_update;
//! 18: heapam_xlog.c), 13–19.

use super::cursor::{self, Cursor};
use super::datapage;
use super::record::Record;
use super::rmgr;

/// Bytes of a row's header before its null bitmap.
const HEADER: usize = 23;
const XMIN_COMMITTED: u16 = 0x0100;
const XMIN_INVALID: u16 = 0x0200;
const XMAX_INVALID: u16 = 0x0800;

const PREFIX_FROM_OLD: u8 = 1 << 5;
const SUFFIX_FROM_OLD: u8 = 1 << 6;

/// The statement behind a DELETE record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteCause {
    /// The row is gone.
    Delete,
    /// An UPDATE moved it to another partition.
    PartitionMove,
    /// INSERT … ON CONFLICT took its own row back.
    Retraction,
}

const DELETE_IS_SUPER: u8 = 1 << 3;
const DELETE_IS_PARTITION_MOVE: u8 = 1 << 4;

/// The change that a heap record makes to rows; offsets are those of line pointers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowChange {
    /// A row was inserted into block reference 0.
    Insert { offset: u16 },
    /// A row of block reference 0 was deleted.
    Delete {
        offset: u16,
        /// Why: the row moved to another partition, or its insertion was taken back.
        cause: DeleteCause,
    },
    /// A row of block reference 1, or 0 where there is no other, got a new version in block reference 0.
    Update {
        /// Offset of the old version.
        old: u16,
        /// Offset of the new version.
        new: u16,
        /// Flags of the record.
        flags: u8,
    },
    /// A row of block reference 0 was overwritten, whatever becomes of the transaction.
    InPlace { offset: u16 },
}

/// Returns the change that a record makes to a single row; `None` for every other record.
pub fn row_change(record: &Record<'_>, main: &[u8]) -> Option<RowChange> {
    if record.rmid != rmgr::HEAP {
        return None;
    }
    let half = |at| cursor::u16_at(main, at);
    Some(match record.info & 0x70 {
        0x00 => RowChange::Insert { offset: half(0)? },
        0x10 => RowChange::Delete {
            offset: half(4)?,
            cause: match cursor::u8_at(main, 7)? {
                flags if flags & DELETE_IS_SUPER != 0 => DeleteCause::Retraction,
                flags if flags & DELETE_IS_PARTITION_MOVE != 0 => DeleteCause::PartitionMove,
                _ => DeleteCause::Delete,
            },
        },
        0x20 | 0x40 => RowChange::Update {
            old: half(4)?,
            flags: cursor::u8_at(main, 7)?,
            new: half(12)?,
        },
        0x70 => RowChange::InPlace { offset: half(0)? },
        _ => return None,
    })
}

/// A row as pages and records have it, without the fields that say who may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Length of the whole header.
    header_length: u8,
    /// Everything behind the first 23 bytes: null bitmap, padding, columns.
    bytes: Vec<u8>,
}

impl Row {
    /// Reads a row of a page.
    fn of_page(item: &[u8]) -> Option<Row> {
        Some(Row {
            header_length: cursor::u8_at(item, 22)?,
            bytes: item.get(HEADER..)?.to_vec(),
        })
    }

    /// Reads the row of the data of an INSERT record's block.
    pub fn inserted(data: &[u8]) -> Option<Row> {
        let mut c = Cursor::new(data);
        let header = c.take(5)?;
        Some(Row {
            header_length: cursor::u8_at(header, 4)?,
            bytes: c.rest().to_vec(),
        })
    }

    /// Reads the new version of the data of an UPDATE record's block; what it has in common with the old one is taken from that.
    pub fn updated(data: &[u8], flags: u8, old: Option<&Row>) -> Option<Row> {
        let mut c = Cursor::new(data);
        let mut length = |flag: u8| match flags & flag != 0 {
            true => c.u16().map(usize::from),
            false => Some(0),
        };
        let (prefix, suffix) = (length(PREFIX_FROM_OLD)?, length(SUFFIX_FROM_OLD)?);
        let header_length = cursor::u8_at(c.take(5)?, 4)?;
        let mut bytes = Vec::new();
        if prefix > 0 {
            bytes.extend_from_slice(c.take(usize::from(header_length).checked_sub(HEADER)?)?);
            bytes.extend_from_slice(old?.columns()?.get(..prefix)?);
        }
        bytes.extend_from_slice(c.rest());
        if suffix > 0 {
            let old = &old?.bytes;
            bytes.extend_from_slice(old.get(old.len().checked_sub(suffix)?..)?);
        }
        Some(Row {
            header_length,
            bytes,
        })
    }

    /// Returns the row with the columns of the data of an in-place record's block.
    pub fn overwritten(&self, data: &[u8]) -> Option<Row> {
        let start = usize::from(self.header_length).checked_sub(HEADER)?;
        let mut bytes = self.bytes.clone();
        bytes
            .get_mut(start..start.checked_add(data.len())?)?
            .copy_from_slice(data);
        Some(Row {
            header_length: self.header_length,
            bytes,
        })
    }

    /// Returns the columns, as far as the first bytes of a row have fixed places.
    pub fn columns(&self) -> Option<&[u8]> {
        self.bytes
            .get(usize::from(self.header_length).checked_sub(HEADER)?..)
    }
}

/// A row on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRow {
    /// Number of its line pointer.
    pub offset: u16,
    /// Transaction that inserted it; 0 where that is certain to have committed or to have been rolled back.
    pub xmin: u32,
    /// Whether its inserter is known to have been rolled back.
    pub is_void: bool,
    /// Whether no transaction deleted it, or tried to.
    pub is_untouched: bool,
    pub row: Row,
}

/// Reads the rows of a heap page; damaged line pointers are left out.
pub fn rows_of(page: &[u8]) -> Vec<PageRow> {
    let read = |(offset, item)| {
        let mask = cursor::u16_at(item, 20)?;
        let (is_committed, is_void) = (mask & XMIN_COMMITTED != 0, mask & XMIN_INVALID != 0);
        let xmin = cursor::u32_at(item, 0)?;
        Some(PageRow {
            offset,
            xmin: if is_committed || is_void { 0 } else { xmin },
            // Both bits together mean frozen.
            is_void: is_void && !is_committed,
            is_untouched: mask & XMAX_INVALID != 0 || cursor::u32_at(item, 4)? == 0,
            row: Row::of_page(item)?,
        })
    };
    datapage::items(page).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_update_takes_from_the_old_row_what_it_has_in_common() {
        let old = Row {
            header_length: 24,
            bytes: b"\0orders-7-end".to_vec(),
        };
        let data = [
            &6u16.to_le_bytes()[..],
            &3u16.to_le_bytes(),
            &[0, 0, 0, 0, 24, 0],
            b"-9-",
        ]
        .concat();
        let new = Row::updated(&data, PREFIX_FROM_OLD | SUFFIX_FROM_OLD, Some(&old)).unwrap();
        assert_eq!(new.columns().unwrap(), b"orders-9-end");
        assert_eq!(
            Row::updated(&data, PREFIX_FROM_OLD | SUFFIX_FROM_OLD, None),
            None
        );
        let whole = Row::updated(b"\0\0\0\0\x18\0all", 0, None).unwrap();
        assert_eq!(whole.columns().unwrap(), b"all");
    }

    proptest! {
        #[test]
        fn any_page_is_read(page in proptest::collection::vec(any::<u8>(), 0..400)) {
            for row in rows_of(&page) {
                let _ = row.row.columns();
            }
        }
    }
}
