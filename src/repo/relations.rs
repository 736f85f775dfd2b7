//! The list of relations that is kept with a backup (format, section 8.4): names, for who looks for a table later. No restore needs it.

use serde::{Deserialize, Serialize};

use super::container::{Codec, Container, ContainerWriter, Identity, Kind};
use super::healed;
use super::id::BackupId;
use super::scope::Scope;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::store::{Published, Store};

/// The name in the object's identity.
const NAME: &str = "relations";
/// Longer lists are not read, and not written: who has so many relations finds names in WAL.
pub const LIMIT_BYTES: u64 = 256 << 20;

/// The member of a backup's root that names its list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOfRelations {
    /// BLAKE3 of the raw list, 64 hexadecimal digits.
    pub hash: String,
    /// Its length.
    pub raw_bytes: u64,
    /// Databases in it.
    pub databases: u64,
    /// Relations in it.
    pub relations: u64,
    /// Databases that could not be read.
    pub unread: u64,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    kind: String,
    backup: String,
    databases: u64,
}

/// A database, or, without a name, what all share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Database {
    /// Its name; none for the shared relations.
    pub database: Option<String>,
    /// Its oid; 0 for the shared relations.
    pub oid: u32,
    /// Oid of its tablespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<u32>,
    /// Its encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// The server's position when it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// The server's clock then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimestampTz>,
    /// Why it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
    /// How many relations follow.
    pub relations: u64,
}

/// A relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// Its oid.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `relkind`.
    pub kind: char,
    /// `relpersistence`.
    pub persistence: char,
    /// Oid of its tablespace.
    pub tablespace: u32,
    /// Number of its file; 0 where it has none.
    pub file: u32,
    /// The table of an index or of a TOAST table, else 0.
    #[serde(default)]
    pub of: u32,
}

/// The databases of a server, each with its relations.
pub type Listed = Vec<(Database, Vec<Relation>)>;

/// Writes the list of a backup; `identity` has the cluster's values. Returns the member of its root, `None` where the list is too long.
///
/// # Errors
/// `Conflict` where there is one already; what the store says.
pub fn write(
    store: &dyn Store,
    (scope, id): (&Scope, &BackupId),
    listed: &Listed,
    identity: &Identity,
) -> Result<Option<ListOfRelations>> {
    let Some(raw) = encode(id, listed)? else {
        return Ok(None);
    };
    let key = scope.relations(id);
    let failed = |e| Error::from_io(format!("write object \"{key}\""), e);
    let object = store.create(&key)?;
    let mut writer = ContainerWriter::new(object, Kind::Relations, Codec::Lz4).map_err(failed)?;
    writer.write(&raw).map_err(failed)?;
    let hash = blake3::hash(&raw);
    let identity = Identity {
        hash: *hash.as_bytes(),
        raw_bytes: raw.len() as u64,
        name: NAME.to_owned(),
        ..identity.clone()
    };
    let object = writer.complete(&identity, Vec::new()).map_err(failed)?;
    if object.publish()? == Published::Exists {
        return Err(err!(Conflict, "the backup has a list of relations already"));
    }
    Ok(Some(ListOfRelations {
        hash: hash.to_hex().to_string(),
        raw_bytes: raw.len() as u64,
        databases: listed.len() as u64,
        relations: listed
            .iter()
            .map(|(_, relations)| relations.len() as u64)
            .sum(),
        unread: listed.iter().filter(|(d, _)| d.unread.is_some()).count() as u64,
    }))
}

fn encode(id: &BackupId, listed: &Listed) -> Result<Option<Vec<u8>>> {
    let mut raw = Vec::new();
    let mut line = |value: serde_json::Result<Vec<u8>>| -> Result<()> {
        raw.extend(value.map_err(|e| err!(Internal, "a line of JSON cannot be made: {e}"))?);
        raw.push(b'\n');
        Ok(())
    };
    line(serde_json::to_vec(&Head {
        format: 1,
        kind: NAME.to_owned(),
        backup: id.to_string(),
        databases: listed.len() as u64,
    }))?;
    for (database, relations) in listed {
        line(serde_json::to_vec(database))?;
        for relation in relations {
            line(serde_json::to_vec(relation))?;
        }
    }
    Ok((raw.len() as u64 <= LIMIT_BYTES).then_some(raw))
}

/// Opens the list of a backup; `None` where there is none. `wanted` is the member of the root.
///
/// # Errors
/// `Damaged` where it is another object than the root names; what the store says.
pub fn open(
    store: &dyn Store,
    (scope, id): (&Scope, &BackupId),
    system_identifier: u64,
    wanted: &ListOfRelations,
) -> Result<Option<Container>> {
    let key = scope.relations(id);
    healed::read(store, &key, |store| {
        let Some(object) = store.open(&key)? else {
            return Ok(None);
        };
        let container = Container::open_under(&key, object)?;
        match is_own(&container, system_identifier, wanted) {
            true => Ok(Some(container)),
            false => Err(err!(
                Damaged,
                "object \"{key}\" is not the list of its backup"
            )),
        }
    })
}

/// Whether a container is the list that a root names.
pub fn is_own(container: &Container, system_identifier: u64, wanted: &ListOfRelations) -> bool {
    let identity = container.identity();
    container.kind() == Kind::Relations
        && identity.name == NAME
        && identity.system_identifier == system_identifier
        && identity.raw_bytes == wanted.raw_bytes
        && blake3::Hash::from_bytes(identity.hash).to_hex().as_str() == wanted.hash
}

/// Reads the list of a backup; `None` where there is none.
///
/// # Errors
/// Those of [`open`]; `Damaged` where a line cannot be read; `Unsupported` for a format that is not known.
pub fn read(
    store: &dyn Store,
    place: (&Scope, &BackupId),
    system_identifier: u64,
    wanted: &ListOfRelations,
) -> Result<Option<Listed>> {
    let Some(container) = open(store, place, system_identifier, wanted)? else {
        return Ok(None);
    };
    decode(&container.read_small(LIMIT_BYTES)?, place.1).map(Some)
}

fn decode(raw: &[u8], id: &BackupId) -> Result<Listed> {
    let damaged =
        |e: &dyn std::fmt::Display| err!(Damaged, "a list of relations cannot be read: {e}");
    let mut lines = raw.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let head = lines.next().unwrap_or_default();
    let head: Head = serde_json::from_slice(head).map_err(|e| damaged(&e))?;
    if head.format != 1 || head.kind != NAME {
        return Err(err!(
            Unsupported,
            "a list of relations has format {}, which this pitr does not know",
            head.format
        ));
    }
    if head.backup != id.to_string() {
        return Err(damaged(&"it is that of another backup"));
    }
    let mut listed = Listed::new();
    while let Some(line) = lines.next() {
        let database: Database = serde_json::from_slice(line).map_err(|e| damaged(&e))?;
        let mut relations = Vec::new();
        for _ in 0..database.relations {
            let line = lines.next().ok_or_else(|| damaged(&"it is cut short"))?;
            // Another kind of name is skipped: a relation without a name is no use.
            if let Ok(relation) = serde_json::from_slice(line) {
                relations.push(relation);
            }
        }
        listed.push((database, relations));
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn listed() -> Listed {
        let shared = Database {
            relations: 0,
            ..Database::default()
        };
        let app = Database {
            database: Some("app".into()),
            oid: 16384,
            tablespace: Some(1663),
            lsn: Some(Lsn(0x300_0060)),
            relations: 1,
            ..Database::default()
        };
        let orders = Relation {
            oid: 16390,
            schema: "public".into(),
            name: "orders \"x\"".into(),
            kind: 'r',
            persistence: 'p',
            tablespace: 1663,
            file: 16390,
            of: 0,
        };
        vec![(shared, Vec::new()), (app, vec![orders])]
    }

    #[test]
    fn a_list_comes_back_and_a_cut_or_foreign_one_does_not() {
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let raw = encode(&id, &listed()).unwrap().unwrap();
        assert_eq!(decode(&raw, &id).unwrap(), listed());
        let lines: Vec<&[u8]> = raw.split_inclusive(|b| *b == b'\n').collect();
        let cut = lines[..lines.len() - 1].concat();
        assert_eq!(decode(&cut, &id).unwrap_err().code(), Code::Damaged);
        let other: BackupId = "20261120T064050Z-full".parse().unwrap();
        assert_eq!(decode(&raw, &other).unwrap_err().code(), Code::Damaged);
        let newer = String::from_utf8(raw)
            .unwrap()
            .replacen("\"format\":1", "\"format\":2", 1);
        let error = decode(newer.as_bytes(), &id).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert_eq!(decode(b"", &id).unwrap_err().code(), Code::Damaged);
    }
}
