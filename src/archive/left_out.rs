//! The marker of a data directory in which databases lie without their content, as `pitr restore --databases` leaves them.
//!
//! It lies in the data directory itself, so that base backups of every kind take it along. PostgreSQL ignores the name.

use serde::{Deserialize, Serialize};

use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::root::cluster::LeftOutDatabase;

/// The name of the marker in a data directory.
pub const MARKER: &str = "pitr.partial";
/// Markers are read up to this size.
pub const MARKER_LIMIT_BYTES: usize = 1 << 20;

/// The content of the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The purpose of the file, for a person who finds it.
    pub note: String,
    /// The databases without content.
    pub left_out_databases: Vec<LeftOutDatabase>,
    /// The backup that was restored.
    pub backup: String,
    /// When.
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
