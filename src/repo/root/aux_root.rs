//! The root of a backup of an aux scope (format, section 16.1), and what can be known of it without a key.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::parts::{Parts, check_lists, check_room, names, parts};
use super::{BackupKind, Content, Root, Stored, another};
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{self, Needs, Reduced, by_writer};
use crate::repo::clock;
use crate::repo::healed;
use crate::repo::id::{BackupId, PartName};
use crate::repo::json;
use crate::repo::log_keys::is_replid;
use crate::repo::scope::Scope;
use crate::store::{Published, Store};

/// The feature of a map with entries of kind 8.
pub const NODES: &str = "nodes";
/// The feature of a map with files that belong to no tree.
pub const ATTACHMENTS: &str = "attachments";
/// The feature of a backup whose originals lie in envelopes.
pub const SECRETS: &str = "secrets";
/// The feature of a map with content that files share.
pub const CHUNKS: &str = "chunks";
/// Features of layers and frames that this version can read.
const CONTENT_FEATURES: [&str; 4] = [NODES, ATTACHMENTS, SECRETS, CHUNKS];
/// Features that a janitor of this version knows.
const EXPIRE_FEATURES: [&str; 0] = [];
/// The kind of content whose facts have a position.
const REDIS: &str = "redis";

/// The root of a backup of an aux scope, without the member of its kind.
pub type AuxRoot = Root<AuxContent>;

/// The members of an aux scope's root beside head, map and the member of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuxContent {
    /// `aux/<kind>/<name>`.
    pub scope: String,
    /// Source that was backed up: 32 hexadecimal digits; none where any host writes.
    pub source: Option<String>,
    /// Files that changed while they were read.
    pub unstable_count: u64,
    /// Entries that could not be read, and that the root does not claim.
    pub incomplete_count: u64,
    /// The time until which the writer asked the store to lock each object.
    pub lock_until: Option<TimestampTz>,
    /// Features that a reader of layers and frames must know.
    pub content_features: Vec<String>,
    /// Features that a janitor must know.
    pub expire_features: Vec<String>,
    /// How keys and paths lead to one another: `tree`.
    pub naming: String,
    /// The path that keys are relative to.
    pub base: Option<String>,
}

impl Content for AuxContent {
    fn is_of(&self, scope: &Scope) -> bool {
        self.scope == scope.prefix()
    }
}

/// A root with the member of its kind, as it is stored.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    root: &'a AuxRoot,
    #[serde(flatten)]
    member: serde_json::Map<String, Value>,
}

impl AuxRoot {
    /// Commits the backup with the member of its kind: everything its root names must be durable before.
    ///
    /// # Errors
    /// `Damaged` when it names too many parts; what the store says.
    pub fn commit(&self, store: &dyn Store, scope: &Scope, member: Value) -> Result<Published> {
        let kind = scope.kind().unwrap_or_default().to_owned();
        let outline = AuxOutline::of(self)?.with_position(scope, || Some(member.clone()));
        let facts = outline.facts()?;
        let whole = Whole {
            root: self,
            member: std::iter::once((kind, member)).collect(),
        };
        super::write(store, &scope.manifest(&self.head.id), &whole, facts)
    }

    /// Reads the member of the backup's kind; `None` when the backup does not exist.
    ///
    /// # Errors
    /// `Damaged` when the root has none; `Key`, `Unsupported`, and what the store says.
    pub fn member(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Option<Value>> {
        let key = scope.manifest(id);
        let bytes = healed::read(store, &key, |store| {
            let bytes = crate::store::get(store, &key, json::ROOT_LIMIT_BYTES)?;
            let checked = bytes
                .as_deref()
                .map(|b| json::decode::<IgnoredAny>(&key, super::KIND, b));
            checked.transpose()?;
            Ok(bytes)
        })?;
        let (Some(kind), Some(bytes)) = (scope.kind(), bytes) else {
            return Ok(None);
        };
        let member = json::member(&bytes, kind);
        let damaged = || {
            err!(
                Damaged,
                "the root of backup \"{id}\" says nothing of \"{kind}\""
            )
        };
        member.ok_or_else(damaged).map(Some)
    }

    /// Requires that this version can read layers and frames of the backup.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn check_content(&self) -> Result<()> {
        require(
            &self.content.content_features,
            &CONTENT_FEATURES,
            &self.head.id,
        )?;
        match self.content.naming.as_str() {
            "tree" => Ok(()),
            other => Err(err!(
                Unsupported,
                "backup \"{}\" names its files by \"{other}\"",
                self.head.id
            )
            .hint("Use a newer version of pitr.")),
        }
    }
}

fn require(features: &[String], known: &[&str], id: &BackupId) -> Result<()> {
    let unknown = features.iter().find(|f| !known.contains(&f.as_str()));
    match unknown {
        None => Ok(()),
        Some(feature) => Err(
            err!(Unsupported, "backup \"{id}\" needs feature \"{feature}\"")
                .hint("Use the version of pitr that wrote it, or a newer one."),
        ),
    }
}

/// The root of an aux scope, as far as it can be known without a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuxOutline {
    /// The backup's id.
    pub id: BackupId,
    /// 32 hexadecimal digits.
    pub nonce: String,
    /// Full or incremental.
    pub backup_kind: BackupKind,
    /// `aux/<kind>/<name>`.
    pub scope: String,
    /// Source that was backed up; none where any host writes.
    pub source: Option<String>,
    /// The writing host's clock at the start.
    pub start_time: TimestampTz,
    /// The same clock at the stop.
    pub stop_time: TimestampTz,
    /// Raw bytes of all files.
    pub size_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Files that changed while they were read.
    pub unstable_count: u64,
    /// Entries that could not be read.
    pub incomplete_count: u64,
    /// The time until which the writer asked the store to lock each object.
    pub lock_until: Option<TimestampTz>,
    layers: Parts,
    packs: Parts,
    #[serde(default)]
    expire_features: Vec<String>,
    /// The position of a data set of Redis, for janitors that delete its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replid: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<Value>,
    /// Label that the operator gave it; none without a key.
    #[serde(skip)]
    pub label: Option<String>,
    /// Whether this version can read its layers and frames; without a key nothing tells.
    #[serde(skip)]
    pub is_foreign: bool,
}

impl AuxOutline {
    /// Returns the outline of a whole root.
    ///
    /// # Errors
    /// `Damaged` when it names too many parts; `Unsupported` when a janitor must know more than this version does.
    pub fn of(root: &AuxRoot) -> Result<AuxOutline> {
        let (head, content) = (&root.head, &root.content);
        require(&content.expire_features, &EXPIRE_FEATURES, &head.id)?;
        let layers = || root.map.shards.iter().flat_map(|s| &s.layers);
        check_room(layers().count() + root.map.packs.len())?;
        Ok(AuxOutline {
            id: head.id.clone(),
            nonce: head.nonce.clone(),
            backup_kind: head.backup_kind,
            scope: content.scope.clone(),
            source: content.source.clone(),
            start_time: head.start_time,
            stop_time: head.stop_time,
            size_bytes: head.size_bytes,
            stored_bytes: head.stored_bytes,
            unstable_count: content.unstable_count,
            incomplete_count: content.incomplete_count,
            lock_until: content.lock_until,
            layers: parts(layers().map(|layer| &layer.key)),
            packs: parts(root.map.packs.iter().map(|pack| &pack.key)),
            expire_features: content.expire_features.clone(),
            replid: None,
            offset: None,
            label: Some(head.label.clone()),
            is_foreign: root.check_content().is_err(),
        })
    }

    /// When it ended, for its place among others: by its own clock, unless that was ahead of the store's. Stores tell whole seconds, which would
    /// turn the order of two quick backups around.
    pub fn end(&self, stored: Option<TimestampTz>) -> TimestampTz {
        let end = self.stop_time;
        let is_ahead = |stored: &TimestampTz| end > stored.saturating_add(clock::MAY_DIFFER);
        stored.filter(is_ahead).unwrap_or(end)
    }

    fn facts(&self) -> Result<serde_json::Map<String, Value>> {
        match serde_json::to_value(self) {
            Ok(Value::Object(facts)) => Ok(facts),
            _ => Err(err!(Internal, "the facts of a root are no object")),
        }
    }

    fn from_facts(facts: &Value) -> Result<AuxOutline> {
        let outline: AuxOutline = serde_json::from_value(facts.clone())
            .map_err(|e| err!(Damaged, "what stays plain of a root is not whole").source(e))?;
        require(&outline.expire_features, &EXPIRE_FEATURES, &outline.id)?;
        check_lists([&outline.layers, &outline.packs])?;
        Ok(outline)
    }

    /// Takes the position of a data set out of the member of its kind.
    fn with_position(
        mut self,
        scope: &Scope,
        member: impl FnOnce() -> Option<Value>,
    ) -> AuxOutline {
        if scope.kind() == Some(REDIS)
            && let Some(member) = member()
        {
            self.replid = member.get("replid").cloned();
            self.offset = member.get("offset").cloned();
        }
        self
    }

    /// The history of a data set, and the bytes of it that the data set holds; none of other content.
    pub fn position(&self) -> Option<(&str, u64)> {
        let replid = self.replid.as_ref()?.as_str()?;
        is_replid(replid).then_some(())?;
        Some((replid, self.offset.as_ref()?.as_u64()?))
    }

    /// Layer objects it names, ascending.
    pub fn layers(&self) -> impl Iterator<Item = PartName> + '_ {
        names(&self.layers)
    }

    /// Packs it names, ascending.
    pub fn packs(&self) -> impl Iterator<Item = PartName> + '_ {
        names(&self.packs)
    }
}

impl AuxOutline {
    /// The ids that wrote its parts.
    pub fn writers(&self) -> impl Iterator<Item = &BackupId> {
        let ids: std::collections::BTreeSet<_> =
            self.layers.keys().chain(self.packs.keys()).collect();
        ids.into_iter()
    }

    /// Reads what can be known of a root with the keys at hand.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    pub fn stored(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<AuxOutline>> {
        let key = scope.manifest(id);
        healed::read(store, &key, |store| AuxOutline::stored_in(store, scope, id))
    }

    fn stored_in(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<AuxOutline>> {
        let key = scope.manifest(id);
        let Some(object) = store.open(&key)? else {
            return Ok(Stored::Absent);
        };
        let Some(opaque) = object.opaque() else {
            let bytes = crate::store::read(object.as_ref(), &key, json::ROOT_LIMIT_BYTES)?;
            let stored = AuxRoot::of_bytes(&bytes, &key, scope, id)?;
            return stored.reduced(|root| {
                let member = || json::member(&bytes, REDIS);
                Ok(AuxOutline::of(&root)?.with_position(scope, member))
            });
        };
        let outline = AuxOutline::from_facts(opaque.facts())
            .map_err(|e| e.context(format!("read object \"{key}\"")))?;
        match outline.id == *id && outline.scope == scope.prefix() {
            true => Ok(Stored::Root(outline)),
            false => Err(another(&key)),
        }
    }
}

/// An outline with the parts that it names as runs, as a catalog has it.
#[derive(Debug, Clone, PartialEq)]
pub struct AuxBackup {
    pub root: AuxOutline,
    /// Layer objects it names, by the id that wrote them.
    pub layers: catalog::Parts,
    /// Packs it names.
    pub packs: catalog::Parts,
}

impl AuxBackup {
    /// As [`AuxOutline::end`].
    pub fn end(&self, stored: Option<TimestampTz>) -> TimestampTz {
        self.root.end(stored)
    }
}

impl Needs for AuxBackup {
    fn needs(&self) -> (&catalog::Parts, &catalog::Parts) {
        (&self.layers, &self.packs)
    }
}

impl Reduced for AuxBackup {
    fn ordered_by(&self) -> Option<TimestampTz> {
        Some(self.root.stop_time)
    }

    fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<AuxBackup>> {
        AuxOutline::stored(store, scope, id)?.reduced(|root| {
            Ok(AuxBackup {
                layers: by_writer(root.layers()),
                packs: by_writer(root.packs()),
                root,
            })
        })
    }
}
