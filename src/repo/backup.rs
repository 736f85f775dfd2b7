//! The root of a backup, its commit record (format, section 8.1).

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::id::{BackupId, PartName};
use super::scope::{Scope, Tag};
use super::wal_proof::WalProof;
use super::{json, outline};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::store::{Key, Published, Store, read};

/// The kind in the JSON of a root.
pub const KIND: &str = "backup";

/// The kind in the JSON of a tombstone.
pub const TOMBSTONE: &str = "tombstone";

/// Stands in the place of a root that must never be committed (format, section 10.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The aborted backup.
    pub id: BackupId,
    /// 32 hexadecimal digits.
    pub nonce: String,
}

/// Full or incremental.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupKind {
    /// Holds every extent in its own packs.
    Full,
    /// Refers to packs of earlier backups too.
    Incremental,
}

/// How the files were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Over the replication protocol.
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
    /// Where the link led to.
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

/// A path as text, or in hexadecimal where it is not UTF-8; exactly one of the two.
pub fn text_or_hex(path: &Path) -> (Option<String>, Option<String>) {
    match path.to_str() {
        Some(text) => (Some(text.to_owned()), None),
        None => (None, Some(hex(path.as_os_str().as_bytes()))),
    }
}

/// The path that [`text_or_hex`] was given; `None` when there is none.
pub fn path_of(text: Option<String>, hex: Option<&str>) -> Option<PathBuf> {
    match (text, hex) {
        (Some(text), None) => Some(PathBuf::from(text)),
        (None, Some(hex)) => Some(PathBuf::from(OsString::from_vec(unhex(hex)?))),
        _ => None,
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

/// One layer inside a layer object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// The object.
    pub key: PartName,
    /// Where the layer begins in it.
    pub offset: u64,
    /// Length of the layer in bytes.
    pub length: u64,
    /// BLAKE3 of the layer's head, index and trailer, 64 hexadecimal digits.
    pub hash: String,
}

/// A key range and the layers that map it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Hexadecimal; empty for the first shard.
    pub first_key: String,
    /// Oldest first.
    pub layers: Vec<LayerRef>,
}

/// A pack that the layers lead to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRef {
    /// The object.
    pub key: PartName,
    /// Its stored length.
    pub size_bytes: u64,
    /// Frames of it that this backup reads.
    pub live_frames: u64,
    /// Their raw bytes.
    pub live_bytes: u64,
}

/// Everything that is known of a backup; its existence under `backups/<id>/manifest` makes the backup true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRoot {
    /// The backup's id.
    pub id: BackupId,
    /// 32 hexadecimal digits, so that two writers never make equal roots.
    pub nonce: String,
    /// Full or incremental.
    pub backup_kind: BackupKind,
    /// How the files were read.
    pub method: Method,
    /// The backup an incremental was taken against.
    pub prior: Option<BackupId>,
    /// What the operator called it.
    pub label: String,
    /// Cluster name.
    pub cluster: String,
    /// As a string: it exceeds 2^53.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// PostgreSQL major.
    pub major: u32,
    /// `server_version_num`.
    pub server_version_num: u32,
    /// Of pg_control; part of tablespace directory names.
    pub catalog_version: u32,
    /// Redo point of the checkpoint that opened the backup.
    pub start_lsn: Lsn,
    /// End of the WAL that the backup needs.
    pub stop_lsn: Lsn,
    /// From here on the restored cluster is consistent.
    pub consistent_lsn: Lsn,
    /// The checkpoint record.
    pub checkpoint_lsn: Lsn,
    /// Timeline at the start.
    pub start_timeline: u32,
    /// Timeline at the stop.
    pub timeline: u32,
    /// Text of that timeline's history file; none on timeline 1, or where it is not UTF-8.
    pub history: Option<String>,
    /// The same in hexadecimal, where it is not UTF-8: the name of a restore point in it has the server's encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_hex: Option<String>,
    /// Server's clock at the start.
    pub start_time: TimestampTz,
    /// Server's clock at the stop.
    pub stop_time: TimestampTz,
    /// Whether the server was in recovery.
    pub from_standby: bool,
    /// Whether data checksums were on.
    pub data_checksums: bool,
    /// WAL segment size.
    pub wal_segment_size_bytes: u64,
    /// Page size of data files.
    pub block_size_bytes: u32,
    /// Blocks per segment file of a relation.
    pub relseg_blocks: u32,
    /// The cluster's `timezone` setting, where it could be read.
    pub timezone: Option<String>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Files, without directories and links.
    pub file_count: u64,
    /// Raw bytes of all files.
    pub size_bytes: u64,
    /// Bytes of the packs, layers and server manifest that this backup wrote.
    pub stored_bytes: u64,
    /// BLAKE3 of the raw server manifest, 64 hexadecimal digits.
    pub server_manifest: Option<String>,
    /// What was proven of its WAL; none in backups of before.
    #[serde(default)]
    pub wal_proof: Option<WalProof>,
    /// Pages that failed their checksum; at most the first 10 000.
    pub damage: Vec<DamagedPage>,
    /// How many pages failed in all.
    pub damage_count: u64,
    /// Whether the server itself reported checksum failures: its word decides.
    pub damage_reported_by_server: bool,
    /// Name and version of the program.
    pub program: String,
    /// What a reader must know.
    pub features: Vec<String>,
    /// Key ranges, ascending.
    pub shards: Vec<Shard>,
    /// Every pack that the layers lead to.
    pub packs: Vec<PackRef>,
}

impl BackupRoot {
    /// Whether the backup holds pages that failed their check when it was taken.
    pub fn is_damaged(&self) -> bool {
        self.damage_reported_by_server
    }

    /// Sets the text of the timeline's history file.
    pub fn set_history(&mut self, content: &[u8]) {
        match std::str::from_utf8(content) {
            Ok(text) => (self.history, self.history_hex) = (Some(text.to_owned()), None),
            Err(_) => (self.history, self.history_hex) = (None, Some(hex(content))),
        }
    }

    /// Requires positions that one backup can have. Whoever plans and whoever deletes asks this, so that neither takes for a backup what
    /// the other does not.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn check_positions(&self) -> Result<()> {
        let is_ordered = self.start_lsn <= self.checkpoint_lsn
            && self.checkpoint_lsn <= self.stop_lsn
            && (self.stop_lsn <= self.consistent_lsn || self.from_standby)
            && self.start_lsn <= self.consistent_lsn
            && self.start_lsn < self.stop_lsn
            && 0 < self.start_timeline
            && self.start_timeline <= self.timeline;
        if is_ordered {
            return Ok(());
        }
        Err(err!(
            Damaged,
            "the positions of backup \"{}\" are not in order",
            self.id
        ))
    }

    /// Reads a root; `None` when the backup does not exist.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    pub fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Option<Self>> {
        let key = scope.manifest(id);
        let Some(object) = store.open(&key)? else {
            return Ok(None);
        };
        if let Some(opaque) = object.opaque() {
            let root = outline::root(opaque.facts());
            let root = root.map_err(|e| e.context(format!("read object \"{key}\"")))?;
            return root.of(&key, scope, id).map(Some);
        }
        let bytes = read(object.as_ref(), &key, json::ROOT_LIMIT_BYTES)?;
        // A tombstone stands where a janitor gave up an aborted backup, so that its writer cannot commit any more.
        if json::kind_of(&bytes).as_deref() == Some(TOMBSTONE) {
            json::decode::<Tombstone>(&key, TOMBSTONE, &bytes)?;
            return Ok(None);
        }
        let root: Self = json::decode(&key, KIND, &bytes)?;
        root.of(&key, scope, id).map(Some)
    }

    /// Requires that it is the root of this backup.
    fn of(self, key: &Key, scope: &Scope, id: &BackupId) -> Result<Self> {
        match self.id == *id && Tag::cluster(self.system_identifier) == scope.tag() {
            true => Ok(self),
            false => Err(err!(
                Damaged,
                "object \"{key}\" is the root of another backup"
            )),
        }
    }

    /// Writes the root: the commit point. Everything it names must be durable before.
    pub fn commit(&self, store: &dyn Store, scope: &Scope) -> Result<Published> {
        let key = scope.manifest(&self.id);
        let bytes = json::encode(&key, KIND, self)?;
        let mut object = store.create(&key)?;
        let keyed = |hash: &[u8; 32]| store.public_hash(hash);
        object.describe(outline::facts(self, &keyed)?, None);
        object
            .write_all(&bytes)
            .map_err(|e| Error::from_io(format!("write object \"{key}\""), e))?;
        object.publish()
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of [`hex`].
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let bytes = pairs.iter().map(|&[a, b]| Some(digit(a)? << 4 | digit(b)?));
    bytes.collect()
}

/// A 64-bit number as decimal string in JSON.
pub mod decimal {
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the number as a string.
    pub fn serialize<S: Serializer>(value: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    /// Reads it back.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
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
