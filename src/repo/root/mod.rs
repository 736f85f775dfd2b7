//! The root of a backup, its commit record (format, section 8.1): head, map and content.
//!
//! Head and map are the same for every kind of content. An [`outline::Outline`] is what can be known of a cluster's root without a key, an
//! `aux_root::AuxOutline` the same of other content.

use std::io::Write;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::id::{BackupId, PartName};
use super::scope::Scope;
use super::{healed, json};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::store::{Key, Object, Published, Store, read};

#[cfg(feature = "full")]
pub mod aux_root;
pub mod cluster;
pub mod outline;
mod parts;

pub use cluster::{BackupRoot, ClusterContent};

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

/// The entry under the key of a root.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored<R> {
    /// Nothing.
    Absent,
    /// A janitor gave the id up.
    Tombstone,
    /// The backup exists.
    Root(R),
}

impl<R> Stored<R> {
    /// The root, where the backup exists.
    pub fn root(self) -> Option<R> {
        match self {
            Stored::Root(root) => Some(root),
            Stored::Absent | Stored::Tombstone => None,
        }
    }

    /// Reduces the root.
    ///
    /// # Errors
    /// Those of `reduce`.
    pub fn reduced<T>(self, reduce: impl FnOnce(R) -> Result<T>) -> Result<Stored<T>> {
        Ok(match self {
            Stored::Root(root) => Stored::Root(reduce(root)?),
            Stored::Tombstone => Stored::Tombstone,
            Stored::Absent => Stored::Absent,
        })
    }
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

/// One layer inside a layer object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// The object.
    pub key: PartName,
    /// Offset at which the layer begins in it, in bytes.
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
    /// Raw bytes of them that are visible.
    pub live_bytes: u64,
    /// Frames that the pack has; none in a full backup, which reads them all, and in backups of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_frames: Option<u64>,
    /// Their raw bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_bytes: Option<u64>,
}

/// The members with which the root of every kind of content begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The backup's id.
    pub id: BackupId,
    /// 32 hexadecimal digits, so that two writers never make equal roots.
    pub nonce: String,
    /// Full or incremental.
    pub backup_kind: BackupKind,
    /// The backup an incremental was taken against.
    pub prior: Option<BackupId>,
    /// Label that the operator gave it.
    pub label: String,
    /// The clock of the content's owner at the start: of a cluster the server's.
    pub start_time: TimestampTz,
    /// The same clock at the stop.
    pub stop_time: TimestampTz,
    /// Files, without directories and links.
    pub file_count: u64,
    /// Raw bytes of all files.
    pub size_bytes: u64,
    /// Bytes that this backup wrote.
    pub stored_bytes: u64,
    /// Name and version of the program.
    pub program: String,
    /// Features that a reader must know.
    pub features: Vec<String>,
}

/// The places of the files of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Key ranges, ascending.
    pub shards: Vec<Shard>,
    /// Every pack that the layers lead to.
    pub packs: Vec<PackRef>,
}

/// The part of a root that belongs to its kind of content.
pub trait Content: Serialize + DeserializeOwned {
    /// Whether a root with this content belongs to the scope.
    fn is_of(&self, scope: &Scope) -> bool;
}

/// A root; its existence under `backups/<id>/manifest` makes the backup true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root<C> {
    /// The backup.
    #[serde(flatten)]
    pub head: Head,
    /// Members that its kind adds.
    #[serde(flatten)]
    pub content: C,
    /// Its files.
    #[serde(flatten)]
    pub map: Map,
}

/// Its map is read in one step: a flattened field would first be built as a tree of values, which takes five times the memory.
impl<'de, C: DeserializeOwned> Deserialize<'de> for Root<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// Reads the members of a root.
struct Members<C>(PhantomData<C>);

impl<'de, C: DeserializeOwned> Visitor<'de> for Members<C> {
    type Value = Root<C>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a root")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut members: A,
    ) -> std::result::Result<Root<C>, A::Error> {
        let (mut shards, mut packs) = (None, None);
        let mut others = serde_json::Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let is_first = match name.as_str() {
                "shards" => shards.replace(members.next_value()?).is_none(),
                "packs" => packs.replace(members.next_value()?).is_none(),
                _ => others.insert(name.clone(), members.next_value()?).is_none(),
            };
            if !is_first {
                return Err(A::Error::custom(format!(
                    "the member \"{name}\" is there twice"
                )));
            }
        }
        let map = Map {
            shards: shards.ok_or_else(|| A::Error::missing_field("shards"))?,
            packs: packs.ok_or_else(|| A::Error::missing_field("packs"))?,
        };
        let others = serde_json::Value::Object(others);
        Ok(Root {
            head: Head::deserialize(&others).map_err(A::Error::custom)?,
            content: C::deserialize(&others).map_err(A::Error::custom)?,
            map,
        })
    }
}

impl<C: Content> Root<C> {
    /// Reads a root; `None` when the backup does not exist.
    ///
    /// # Errors
    /// `Key` when it is sealed and no private half is at hand; `Damaged`, `Unsupported`, and what the store says.
    pub fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Option<Self>> {
        let key = scope.manifest(id);
        healed::read(store, &key, |store| match store.open(&key)? {
            Some(object) => Ok(Self::decode(object.as_ref(), &key, scope, id)?.root()),
            None => Ok(None),
        })
    }

    /// Requires that an object is the root of this backup, whole.
    ///
    /// # Errors
    /// `Damaged`, also for a tombstone; `Unsupported`, and what the store says.
    pub fn check(object: &dyn Object, scope: &Scope, id: &BackupId) -> Result<()> {
        let key = scope.manifest(id);
        match Self::decode(object, &key, scope, id)? {
            Stored::Root(_) => Ok(()),
            _ => Err(err!(Damaged, "object \"{key}\" is no root")),
        }
    }

    /// Reads the root, or the tombstone, that stands in this object.
    fn decode(
        object: &dyn Object,
        key: &Key,
        scope: &Scope,
        id: &BackupId,
    ) -> Result<Stored<Self>> {
        let bytes = read(object, key, json::ROOT_LIMIT_BYTES)?;
        Self::of_bytes(&bytes, key, scope, id)
    }

    fn of_bytes(bytes: &[u8], key: &Key, scope: &Scope, id: &BackupId) -> Result<Stored<Self>> {
        // A tombstone stands where a janitor gave up an aborted backup, so that its writer cannot commit any more.
        if json::kind_of(bytes).as_deref() == Some(TOMBSTONE) {
            json::decode::<Tombstone>(key, TOMBSTONE, bytes)?;
            return Ok(Stored::Tombstone);
        }
        let root: Self = json::decode(key, KIND, bytes)?;
        match root.head.id == *id && root.content.is_of(scope) {
            true => Ok(Stored::Root(root)),
            false => Err(another(key)),
        }
    }
}

/// Writes a root: the commit point. Everything it names must be durable before. `facts` are what stays plain of it.
fn write(
    store: &dyn Store,
    key: &Key,
    root: &impl Serialize,
    facts: serde_json::Map<String, serde_json::Value>,
) -> Result<Published> {
    let bytes = json::encode(key, KIND, root)?;
    let mut object = store.create(key)?;
    object.describe(facts, None);
    object.keep(true);
    object
        .write_all(&bytes)
        .map_err(|e| Error::from_io(format!("write object \"{key}\""), e))?;
    object.publish()
}

fn another(key: &Key) -> Error {
    err!(Damaged, "object \"{key}\" is the root of another backup")
}

impl BackupRoot {
    /// Commits the backup: everything its root names must be durable before.
    ///
    /// # Errors
    /// `Damaged` when its history cannot be read, or it names too many parts; what the store says.
    pub fn commit(&self, store: &dyn Store, scope: &Scope) -> Result<Published> {
        let keyed = |hash: &[u8; 32]| store.public_hash(hash);
        let facts = outline::facts(self, &keyed)?;
        write(store, &scope.manifest(&self.head.id), self, facts)
    }
}

#[cfg(test)]
impl Head {
    /// The head of a backup of which tests give the files, their bytes and the stored bytes alone.
    pub fn sample(id: BackupId, (file_count, size_bytes, stored_bytes): (u64, u64, u64)) -> Head {
        Head {
            nonce: String::new(),
            backup_kind: match id.is_incremental() {
                true => BackupKind::Incremental,
                false => BackupKind::Full,
            },
            id,
            prior: None,
            label: String::new(),
            start_time: TimestampTz(0),
            stop_time: TimestampTz(0),
            file_count,
            size_bytes,
            stored_bytes,
            program: String::new(),
            features: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Extra {
        extra: u64,
    }

    fn root() -> Root<Extra> {
        let id = "20261120T064049Z-full".parse().unwrap();
        Root {
            head: Head::sample(id, (1, u64::MAX, 3)),
            content: Extra { extra: u64::MAX },
            map: Map {
                shards: vec![Shard {
                    first_key: String::new(),
                    layers: Vec::new(),
                }],
                packs: Vec::new(),
            },
        }
    }

    #[test]
    fn members_of_a_root_come_in_any_order_and_each_once() {
        let text = serde_json::to_string(&root()).unwrap();
        let read = |text: &str| serde_json::from_str::<Root<Extra>>(text);
        assert_eq!(read(&text).unwrap(), root());
        let packs = ",\"packs\":[]";
        let without = text.replace(packs, "");
        let first = without.replacen('{', "{\"new\":{\"a\":[1]},\"packs\":[],", 1);
        assert_eq!(read(&first).unwrap(), root());
        for twice in [
            "\"packs\":[]",
            "\"shards\":[]",
            "\"label\":\"x\"",
            "\"extra\":1",
        ] {
            let text = text.replacen('{', &format!("{{{twice},"), 1);
            let refusal = read(&text).unwrap_err().to_string();
            assert!(refusal.contains("is there twice"), "{refusal}");
        }
        for missing in [packs, ",\"extra\":18446744073709551615", ",\"label\":\"\""] {
            let without = text.replace(missing, "");
            assert!(
                without.len() < text.len() && read(&without).is_err(),
                "{missing}"
            );
        }
    }
}
