//! The facts of a cluster's root that are known without a key (format, section 11). A janitor needs them to expire;
//! they show nothing of the files that were backed up.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::cluster::{BackupRoot, LeftOutDatabase, Tablespace, named};
use super::parts::{Parts, check_lists, check_room, names, parts};
use super::{BackupKind, Stored, another};
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::container::{history_facts, history_text};
use crate::repo::healed;
use crate::repo::id::{BackupId, PartName};
use crate::repo::scope::{Scope, Tag};
use crate::repo::wal_proof::WalProof;
use crate::store::Store;
use crate::text::decimal;

/// Segments of WAL that one backup may need. No cluster writes 64 TiB during a backup, and a root may be forged: a list of more would fill the memory.
const SEGMENTS_MAX: u64 = 1 << 22;

/// Returns the first and the last segment of a backup's WAL.
///
/// # Errors
/// `Damaged` where they are more than a backup can need.
pub fn wal_span(start: Lsn, end: Lsn, size: SegmentSize) -> Result<(SegmentNumber, SegmentNumber)> {
    let first = SegmentNumber::of(start, size);
    let last = SegmentNumber::ending_at(end, size);
    match last.0.saturating_sub(first.0) < SEGMENTS_MAX {
        true => Ok((first, last)),
        false => Err(err!(
            Damaged,
            "the WAL from {start} to {end} is more than a backup can need"
        )),
    }
}

/// A root, as far as it can be known without a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outline {
    /// The backup's id.
    pub id: BackupId,
    /// 32 hexadecimal digits.
    pub nonce: String,
    /// Full or incremental.
    pub backup_kind: BackupKind,
    /// Cluster name.
    pub cluster: String,
    /// The cluster's system identifier.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// PostgreSQL major.
    pub major: u32,
    /// Start of the replay.
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
    /// The switch points of that timeline.
    history: Value,
    /// Server's clock at the start.
    pub start_time: TimestampTz,
    /// Server's clock at the stop.
    pub stop_time: TimestampTz,
    /// Raw bytes of all files.
    pub size_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// How many pages failed their checksum.
    pub damage_count: u64,
    /// Whether it was damaged when it was taken.
    pub damaged: bool,
    /// Whether databases lie in it without their content.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    layers: Parts,
    packs: Parts,
    /// Proof of its WAL; with keyed hashes where the root is sealed.
    #[serde(default)]
    pub wal_proof: Option<WalProof>,
    /// Facts that only the root itself shows; none without a key.
    #[serde(skip)]
    pub details: Option<Details>,
}

/// The facts of a root that do not stay plain.
#[derive(Debug, Clone, PartialEq)]
pub struct Details {
    /// Label that the operator gave it.
    pub label: String,
    /// The cluster's `timezone` setting, where it could be read.
    pub timezone: Option<String>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Whether the server was in recovery.
    pub from_standby: bool,
    pub wal_segment_size_bytes: u64,
    /// Databases whose files hold no content.
    pub left_out_databases: Vec<LeftOutDatabase>,
}

/// Returns the facts of `root` that stay plain in an encrypted repository; `keyed` gives the keyed hash of a hash of
/// raw content.
///
/// # Errors
/// `Damaged` when its history cannot be read, or it names too many parts; errors of `keyed`.
pub fn facts(
    root: &BackupRoot,
    keyed: &dyn Fn(&[u8; 32]) -> Result<[u8; 32]>,
) -> Result<Map<String, Value>> {
    let layers = root
        .map
        .shards
        .iter()
        .map(|s| s.layers.len())
        .sum::<usize>();
    check_room(layers + root.map.packs.len())?;
    let mut outline = Outline::of(root)?;
    let proof = outline.wal_proof.as_ref().map(|p| p.keyed(keyed));
    outline.wal_proof = proof.transpose()?;
    match serde_json::to_value(outline) {
        Ok(Value::Object(facts)) => Ok(facts),
        _ => Err(err!(Internal, "the facts of a root are no object")),
    }
}

impl Outline {
    /// Returns the outline of a whole root.
    ///
    /// # Errors
    /// `Damaged` when its history cannot be read.
    pub fn of(root: &BackupRoot) -> Result<Outline> {
        let (head, content) = (&root.head, &root.content);
        let timeline = TimelineId::new(content.timeline);
        let history = match (content.history_bytes(), timeline) {
            (Some(text), Some(timeline)) => history_facts(&History::parse(timeline, &text)?),
            _ => Value::Null,
        };
        let layers = root.map.shards.iter().flat_map(|s| &s.layers);
        Ok(Outline {
            id: head.id.clone(),
            nonce: head.nonce.clone(),
            backup_kind: head.backup_kind,
            cluster: content.cluster.clone(),
            system_identifier: content.system_identifier,
            major: content.major,
            start_lsn: content.start_lsn,
            stop_lsn: content.stop_lsn,
            consistent_lsn: content.consistent_lsn,
            checkpoint_lsn: content.checkpoint_lsn,
            start_timeline: content.start_timeline,
            timeline: content.timeline,
            history,
            start_time: head.start_time,
            stop_time: head.stop_time,
            size_bytes: head.size_bytes,
            stored_bytes: head.stored_bytes,
            damage_count: content.damage_count,
            damaged: content.is_damaged(),
            partial: !content.left_out_databases.is_empty(),
            layers: parts(layers.map(|layer| &layer.key)),
            packs: parts(root.map.packs.iter().map(|pack| &pack.key)),
            wal_proof: content.wal_proof.clone(),
            details: Some(Details {
                label: head.label.clone(),
                timezone: content.timezone.clone(),
                tablespaces: content.tablespaces.clone(),
                from_standby: content.from_standby,
                wal_segment_size_bytes: content.wal_segment_size_bytes,
                left_out_databases: content.left_out_databases.clone(),
            }),
        })
    }

    /// Reads what can be known of a root with the keys at hand; `None` when the backup does not exist.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    pub fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Option<Outline>> {
        Ok(Outline::stored(store, scope, id)?.root())
    }

    /// As [`Outline::read`], and tells a tombstone from nothing.
    ///
    /// # Errors
    /// Those of [`Outline::read`].
    pub fn stored(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<Outline>> {
        let key = scope.manifest(id);
        healed::read(store, &key, |store| Outline::stored_in(store, scope, id))
    }

    fn stored_in(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<Outline>> {
        let key = scope.manifest(id);
        let Some(object) = store.open(&key)? else {
            return Ok(Stored::Absent);
        };
        let Some(opaque) = object.opaque() else {
            let stored = BackupRoot::decode(object.as_ref(), &key, scope, id)?;
            return stored.reduced(|root| Outline::of(&root));
        };
        let outline = Outline::from_facts(opaque.facts())
            .map_err(|e| e.context(format!("read object \"{key}\"")))?;
        match outline.id == *id && Tag::cluster(outline.system_identifier) == scope.tag() {
            true => Ok(Stored::Root(outline)),
            false => Err(another(&key)),
        }
    }

    fn from_facts(facts: &Value) -> Result<Outline> {
        let outline: Outline = serde_json::from_value(facts.clone())
            .map_err(|e| err!(Damaged, "what stays plain of a root is not whole").source(e))?;
        check_lists([&outline.layers, &outline.packs])?;
        Ok(outline)
    }

    /// Layer objects it names, ascending.
    pub fn layers(&self) -> impl Iterator<Item = PartName> + '_ {
        names(&self.layers)
    }

    /// Packs it names, ascending.
    pub fn packs(&self) -> impl Iterator<Item = PartName> + '_ {
        names(&self.packs)
    }

    /// The ids that wrote its parts.
    pub fn writers(&self) -> impl Iterator<Item = &BackupId> {
        let ids: BTreeSet<_> = self.layers.keys().chain(self.packs.keys()).collect();
        ids.into_iter()
    }

    /// The timelines at its start and at its stop.
    ///
    /// # Errors
    /// `Damaged` when one is 0.
    pub fn timelines(&self) -> Result<(TimelineId, TimelineId)> {
        let timeline = |n: u32| {
            TimelineId::new(n).ok_or_else(|| err!(Damaged, "backup \"{}\" has timeline 0", self.id))
        };
        Ok((timeline(self.start_timeline)?, timeline(self.timeline)?))
    }

    /// The history of its timeline, without reasons; none where the root has none.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn history(&self) -> Result<Option<History>> {
        let (_, timeline) = self.timelines()?;
        let text = history_text(&self.history)?;
        text.map(|text| History::parse(timeline, text.as_bytes()))
            .transpose()
    }

    /// Why it stands for no whole backup: what was wrong with its pages when it was taken, or what it lacks.
    pub fn damage(&self) -> Option<String> {
        let damaged = self.damaged.then(|| {
            format!(
                "{} pages failed their checksum when it was taken",
                self.damage_count
            )
        });
        damaged.or_else(|| self.partial.then(|| self.lacks()))
    }

    /// Names the databases without content, as far as they can be known without a key.
    fn lacks(&self) -> String {
        let left_out = self.details.as_ref().map(|d| &d.left_out_databases[..]);
        match left_out {
            Some(left_out) => format!("it has no content of database {}", named(left_out)),
            None => "it has no content of some databases".to_owned(),
        }
    }

    /// Requires positions that one backup can have. Plans and deletions ask this, so that neither takes for a backup what the other does
    /// not.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn check_positions(&self) -> Result<()> {
        // A standby is consistent before its stop LSN; without a key nothing tells whether it was one.
        let may_be_standby = self.details.as_ref().is_none_or(|d| d.from_standby);
        let is_ordered = self.start_lsn <= self.checkpoint_lsn
            && self.checkpoint_lsn <= self.stop_lsn
            && (self.stop_lsn <= self.consistent_lsn || may_be_standby)
            && self.start_lsn <= self.consistent_lsn
            && self.start_lsn < self.stop_lsn
            && 0 < self.start_timeline
            && self.start_timeline <= self.timeline;
        match is_ordered {
            true => Ok(()),
            false => Err(err!(
                Damaged,
                "the positions of backup \"{}\" are not in order",
                self.id
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn x65_a_forged_root_makes_no_list_of_segments_that_fills_the_memory() {
        let size = SegmentSize::DEFAULT;
        let forged = wal_span(Lsn(1), Lsn(1 << 62), size).unwrap_err();
        assert_eq!(forged.code(), Code::Damaged);
        let large = wal_span(Lsn(1), Lsn(32 << 40), size).unwrap();
        assert_eq!(large.1.0 - large.0.0, (2 << 20) - 1);
    }
}
