//! The content of a cluster's root (format, section 8.1): the fields that PostgreSQL's backups alone have.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Content, Root};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::repo::id::BackupId;
use crate::repo::relations::ListOfRelations;
use crate::repo::scope::{Scope, Tag};
use crate::repo::wal_proof::WalProof;
use crate::text::{decimal, hex, path_of, text_or_hex, unhex};

/// The root of a backup of a cluster.
pub type BackupRoot = Root<ClusterContent>;

/// How the files were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Over the replication protocol.
    #[default]
    Stream,
    /// From the data directory.
    Local,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TablespaceText", into = "TablespaceText")]
pub struct Tablespace {
    /// Its oid, the name of its link in pg_tblspc.
    pub oid: u32,
    /// Directory that the link led to.
    pub location: PathBuf,
}

/// A tablespace as JSON has it: a location that is no text stands in hexadecimal.
#[derive(Serialize, Deserialize)]
struct TablespaceText {
    oid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    location_hex: Option<String>,
}

impl From<Tablespace> for TablespaceText {
    fn from(tablespace: Tablespace) -> TablespaceText {
        let (location, location_hex) = text_or_hex(&tablespace.location);
        TablespaceText {
            oid: tablespace.oid,
            location,
            location_hex,
        }
    }
}

impl TryFrom<TablespaceText> for Tablespace {
    type Error = &'static str;

    fn try_from(text: TablespaceText) -> std::result::Result<Tablespace, Self::Error> {
        let location = path_of(text.location, text.location_hex.as_deref());
        Ok(Tablespace {
            oid: text.oid,
            location: location.ok_or("a tablespace without a location")?,
        })
    }
}

/// A page that failed its checksum when the backup was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    /// Relative to the data directory.
    pub path: String,
    /// Block number within the relation fork.
    pub block: u64,
    /// The LSN in the page's header.
    pub lsn: Lsn,
}

/// A page of which the server read a part, for its file was cut or dropped meanwhile; zeros follow. Replay cuts or drops the file, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutPage {
    /// Relative to the data directory.
    pub path: String,
    /// Block number within the relation fork.
    pub block: u64,
}

/// A database whose files hold no content: a restore left it out, and it was not dropped yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftOutDatabase {
    /// The name of its directories.
    pub oid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
}

impl LeftOutDatabase {
    /// A database by its name, which has an encoding of its own.
    pub fn new(oid: u32, name: &[u8]) -> LeftOutDatabase {
        let (name, name_hex) = match std::str::from_utf8(name) {
            Ok(name) => (Some(name.to_owned()), None),
            Err(_) => (None, Some(hex(name))),
        };
        LeftOutDatabase {
            oid,
            name,
            name_hex,
        }
    }

    /// A database whose name is not known.
    pub fn unnamed(oid: u32) -> LeftOutDatabase {
        LeftOutDatabase {
            oid,
            name: None,
            name_hex: None,
        }
    }

    /// Its name for people, where it is known.
    pub fn name(&self) -> Option<String> {
        let hex = self.name_hex.as_deref().and_then(unhex);
        let hex = hex.map(|name| name.escape_ascii().to_string());
        self.name.clone().or(hex)
    }
}

impl std::fmt::Display for LeftOutDatabase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            // A line break in a name would cut the sentence that has it.
            Some(name) => {
                let name = name.replace(char::is_control, "?");
                write!(f, "\"{name}\" (oid {})", self.oid)
            }
            None => write!(f, "(oid {})", self.oid),
        }
    }
}

/// Several of them for a sentence, the first ones by name.
pub fn named(databases: &[LeftOutDatabase]) -> String {
    const NAMED: usize = 5;
    let first = databases.iter().take(NAMED).map(ToString::to_string);
    let more = match databases.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", first.collect::<Vec<_>>().join(", "))
}

/// The feature of a root that names databases without content: a program that lacks it would restore them as if they were whole.
pub const PARTIAL: &str = "partial";

/// The members of a cluster's root beside head and map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ClusterContent {
    /// How the files were read.
    pub method: Method,
    /// Cluster name.
    pub cluster: String,
    /// As a string: it exceeds 2^53.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// PostgreSQL major.
    pub major: u32,
    /// `server_version_num`.
    pub server_version_num: u32,
    /// Catalog version of pg_control; part of tablespace directory names.
    pub catalog_version: u32,
    /// Redo point of the checkpoint that opened the backup.
    pub start_lsn: Lsn,
    /// End of the WAL that the backup needs.
    pub stop_lsn: Lsn,
    /// From here on the restored cluster is consistent.
    pub consistent_lsn: Lsn,
    /// The checkpoint record.
    pub checkpoint_lsn: Lsn,
    pub start_timeline: u32,
    /// Timeline at the stop.
    pub timeline: u32,
    /// Text of that timeline's history file; none on timeline 1, or where it is not UTF-8.
    pub history: Option<String>,
    /// The same in hexadecimal, where it is not UTF-8: the name of a restore point in it has the server's encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_hex: Option<String>,
    /// Whether the server was in recovery.
    pub from_standby: bool,
    /// Whether data checksums were on.
    pub data_checksums: bool,
    pub wal_segment_size_bytes: u64,
    /// Page size of data files.
    pub block_size_bytes: u32,
    /// Blocks per segment file of a relation.
    pub relseg_blocks: u32,
    /// The cluster's `timezone` setting, where it could be read.
    pub timezone: Option<String>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// BLAKE3 of the raw server manifest, 64 hexadecimal digits.
    pub server_manifest: Option<String>,
    /// The list of its relations; none where none could be made, and in backups of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relations: Option<ListOfRelations>,
    /// Proof of its WAL; none in backups of earlier versions.
    #[serde(default)]
    pub wal_proof: Option<WalProof>,
    /// Incremental backups: when the newest backup of the chain was begun for which every page was read. None in a full one, for which that is so, and
    /// in incrementals of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_scan_time: Option<TimestampTz>,
    /// Databases whose files hold no content; then the root bears the feature [`PARTIAL`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out_databases: Vec<LeftOutDatabase>,
    /// The backup with which the content begins, where compaction stored its part again; else the parts themselves tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_content: Option<BackupId>,
    /// Pages that failed their checksum; at most the first 10 000.
    pub damage: Vec<DamagedPage>,
    /// How many pages failed in all.
    pub damage_count: u64,
    /// Whether the server itself reported checksum failures: its word decides.
    pub damage_reported_by_server: bool,
    /// Pages that fail their checksum and are no damage; at most the first 10 000. Only where the server reported no failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cut_pages: Vec<CutPage>,
}

impl Content for ClusterContent {
    fn is_of(&self, scope: &Scope) -> bool {
        Tag::cluster(self.system_identifier) == scope.tag()
    }
}

impl ClusterContent {
    /// Whether the backup holds pages that failed their check when it was taken.
    pub fn is_damaged(&self) -> bool {
        self.damage_reported_by_server || self.damage_count > 0
    }

    /// Sets the text of the timeline's history file.
    pub fn set_history(&mut self, content: &[u8]) {
        match std::str::from_utf8(content) {
            Ok(text) => (self.history, self.history_hex) = (Some(text.to_owned()), None),
            Err(_) => (self.history, self.history_hex) = (None, Some(hex(content))),
        }
    }

    /// The bytes of the timeline's history file, where the root has them.
    pub fn history_bytes(&self) -> Option<Vec<u8>> {
        match (&self.history, &self.history_hex) {
            (Some(text), _) => Some(text.as_bytes().to_vec()),
            (None, Some(hex)) => unhex(hex),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
impl ClusterContent {
    /// The content of a backup of a cluster of PostgreSQL 17, for tests.
    pub fn sample() -> ClusterContent {
        ClusterContent {
            cluster: "main".into(),
            system_identifier: 7,
            major: 17,
            server_version_num: 170_009,
            catalog_version: 202_406_281,
            start_timeline: 1,
            timeline: 1,
            data_checksums: true,
            wal_segment_size_bytes: 1 << 20,
            block_size_bytes: 8192,
            relseg_blocks: 131_072,
            ..ClusterContent::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_location_that_is_no_text_stands_in_hexadecimal() {
        for (bytes, json) in [
            (&b"/a"[..], r#"{"oid":7,"location":"/a"}"#),
            (b"/caf\xe9", r#"{"oid":7,"location_hex":"2f636166e9"}"#),
        ] {
            let tablespace = Tablespace {
                oid: 7,
                location: PathBuf::from(OsString::from_vec(bytes.to_vec())),
            };
            assert_eq!(serde_json::to_string(&tablespace).unwrap(), json);
            let back: Tablespace = serde_json::from_str(json).unwrap();
            assert_eq!(back, tablespace);
        }
        for bad in [
            r#"{"oid":7}"#,
            r#"{"oid":7,"location":"/a","location_hex":"2f"}"#,
            r#"{"oid":7,"location_hex":"2"}"#,
            r#"{"oid":7,"location_hex":"zz"}"#,
        ] {
            assert!(serde_json::from_str::<Tablespace>(bad).is_err(), "{bad}");
        }
    }
}
