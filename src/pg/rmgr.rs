//! Resource managers: the owners of WAL records.
//!
//! Knowledge: src/include/access/rmgrlist.h (identical in 13–19), src/backend/access/transam/rmgr.c (custom ones, 15+).

use std::borrow::Cow;

/// Checkpoints, switches, restore points and plain page images.
pub const XLOG: u8 = 0;
/// Commit, abort, prepare.
pub const TRANSACTION: u8 = 1;
/// Files of relations made and cut.
pub const STORAGE: u8 = 2;
/// Databases made and dropped.
pub const DATABASE: u8 = 4;
/// Tablespaces made and dropped.
pub const TABLESPACE: u8 = 5;
/// The map of catalogs whose file numbers are not in `pg_class`.
pub const RELMAP: u8 = 7;
/// More heap operations.
pub const HEAP2: u8 = 9;
/// Heap operations.
pub const HEAP: u8 = 10;

/// The first of the numbers that extensions may take (15+).
pub const CUSTOM: u8 = 128;

const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// The name as `pg_waldump` prints it.
pub fn name(id: u8) -> Cow<'static, str> {
    match NAMES.get(usize::from(id)) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("custom{id:03}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_pg_waldump() {
        assert_eq!(name(HEAP2), "Heap2");
        assert_eq!(name(RELMAP), "RelMap");
        assert_eq!(name(21), "LogicalMessage");
        assert_eq!(name(CUSTOM), "custom128");
    }
}
