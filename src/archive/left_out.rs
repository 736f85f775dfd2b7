//! The marker of a data directory in which databases lie without their content, as `pitr restore --databases` leaves them.
//!
//! It lies in the data directory itself, so that base backups of every kind take it along. PostgreSQL ignores the name.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::root::cluster::LeftOutDatabase;

/// The name of the marker in a data directory.
pub const MARKER: &str = "pitr.partial";
/// Markers are read up to this size.
pub const MARKER_LIMIT_BYTES: usize = 1 << 20;

/// The version file of a database that lies there without content. It begins with no number: no session gets as far as the catalogs.
///
/// PostgreSQL: src/backend/utils/init/miscinit.c (`ValidatePgVersion`). Sessions that find empty catalogs make all of the server panic, among them
/// those of autovacuum (src/backend/utils/cache/relcache.c, `load_critical_index`). DROP DATABASE reads neither.
pub const NO_VERSION: &[u8] = b"left out by pitr restore\n";

/// Returns the oid of the database whose version file says that it has no content: the marker does not name one that was copied from
/// another file by file (`CREATE DATABASE … STRATEGY file_copy`).
pub fn closed(path: &[u8], content: &[u8]) -> Option<u32> {
    of_version_file(path).filter(|_| content == NO_VERSION)
}

/// Returns the oid of the database whose version file this is.
pub fn of_version_file(path: &[u8]) -> Option<u32> {
    let mut parts = path.rsplit(|&b| b == b'/');
    let is_version = parts.next() == Some(b"PG_VERSION");
    let directory = parts.next().filter(|_| is_version)?;
    std::str::from_utf8(directory).ok()?.parse().ok()
}

/// Joins the databases that the marker names and that have files with those whose version files say that they have no content.
pub fn join(marked: Vec<LeftOutDatabase>, closed: BTreeSet<u32>) -> Vec<LeftOutDatabase> {
    let mut all = marked;
    let is_known = |oid: &u32| all.iter().any(|database| database.oid == *oid);
    let unnamed: Vec<u32> = closed.into_iter().filter(|oid| !is_known(oid)).collect();
    all.extend(unnamed.into_iter().map(LeftOutDatabase::unnamed));
    all
}

/// The content of the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The purpose of the file, for a person who finds it.
    pub note: String,
    /// The databases without content.
    pub left_out_databases: Vec<LeftOutDatabase>,
    /// The backup that was restored.
    pub backup: String,
    pub restored: TimestampTz,
    /// Name and version of the program.
    pub program: String,
}

/// Returns the databases that a marker names.
///
/// # Errors
/// `Damaged` when it cannot be read.
pub fn read(marker: &[u8]) -> Result<Vec<LeftOutDatabase>> {
    let marker: Marker = serde_json::from_slice(marker).map_err(|e| {
        err!(
            Damaged,
            "\"{MARKER}\" in the data directory cannot be read, and it names the databases without content"
        )
        .hint("Nothing was stored. Remove the file if every database was restored or dropped; else restore the cluster again.")
        .source(e)
    })?;
    Ok(marker.left_out_databases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_version_file_tells_what_no_marker_names() {
        assert_eq!(closed(b"base/16390/PG_VERSION", NO_VERSION), Some(16_390));
        let in_space = b"pg_tblspc/16400/PG_17_202406281/16391/PG_VERSION";
        assert_eq!(closed(in_space, NO_VERSION), Some(16_391));
        assert_eq!(closed(b"base/16390/PG_VERSION", b"17\n"), None);
        assert_eq!(closed(b"PG_VERSION", NO_VERSION), None);
        assert_eq!(closed(b"base/16390/1259", NO_VERSION), None);
        let named = LeftOutDatabase::new(16_390, b"app");
        let all = join(vec![named.clone()], [16_390, 16_391].into());
        assert_eq!(all, [named, LeftOutDatabase::unnamed(16_391)]);
        assert_eq!(all[1].to_string(), "(oid 16391)");
    }

    #[test]
    fn a_marker_tells_its_databases_or_is_damaged() {
        let marker = Marker {
            note: "n".into(),
            left_out_databases: vec![
                LeftOutDatabase::new(16_384, b"app"),
                LeftOutDatabase::new(16_385, b"caf\xe9"),
            ],
            backup: "b".into(),
            restored: TimestampTz(0),
            program: "p".into(),
        };
        let json = serde_json::to_vec(&marker).unwrap();
        let found = read(&json).unwrap();
        assert_eq!(found, marker.left_out_databases);
        assert_eq!(found[0].to_string(), "\"app\" (oid 16384)");
        assert_eq!(found[1].to_string(), "\"caf\\xe9\" (oid 16385)");
        let broken = read(&json[..json.len() - 3]).unwrap_err();
        assert_eq!(broken.code(), Code::Damaged);
    }
}
