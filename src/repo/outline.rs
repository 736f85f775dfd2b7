//! What of a sealed root stays plain (format, section 11): what a janitor without keys needs to expire, and nothing of what was backed up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::backup::{BackupKind, BackupRoot, LayerRef, Method, PackRef, Shard, decimal};
use super::container::{history_facts, history_text};
use super::id::{BackupId, PartName};
use super::wal_proof::WalProof;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};

/// The facts of a root.
#[derive(Serialize, Deserialize)]
struct Outline {
    id: BackupId,
    nonce: String,
    backup_kind: BackupKind,
    cluster: String,
    #[serde(with = "decimal")]
    system_identifier: u64,
    major: u32,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    consistent_lsn: Lsn,
    checkpoint_lsn: Lsn,
    start_timeline: u32,
    timeline: u32,
    history: Value,
    start_time: TimestampTz,
    stop_time: TimestampTz,
    size_bytes: u64,
    stored_bytes: u64,
    damage_count: u64,
    damaged: bool,
    layers: Parts,
    packs: Parts,
    /// With keyed hashes.
    #[serde(default)]
    wal_proof: Option<WalProof>,
}

/// A sealed root names no more layers and packs: of packs alone these are 64 TiB.
const PARTS_MAX: usize = 1 << 18;

/// Layers or packs, as runs of numbers by the backup that wrote them.
type Parts = BTreeMap<BackupId, Vec<(u32, u32)>>;

fn parts<'a>(names: impl Iterator<Item = &'a PartName>) -> Parts {
    let mut sorted: Vec<&PartName> = names.collect();
    sorted.sort();
    sorted.dedup();
    let mut parts = Parts::new();
    for name in sorted {
        let runs = parts.entry(name.id.clone()).or_default();
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == name.number => *last = name.number,
            _ => runs.push((name.number, name.number)),
        }
    }
    parts
}

fn too_many() -> Error {
    err!(Damaged, "a root names more than {PARTS_MAX} parts")
}

/// The names in `parts`, of which `room` is left for so many: a few bytes can tell of a million, and who made them need not be proven.
fn names(parts: &Parts, room: &mut usize) -> Result<Vec<PartName>> {
    let mut names = Vec::new();
    for (id, runs) in parts {
        let mut after = None;
        for &(first, last) in runs {
            if last > 999_999 || first > last || after.is_some_and(|a| first <= a) {
                return Err(err!(Damaged, "the parts of a root are not in order"));
            }
            after = Some(last);
            *room = room
                .checked_sub((last - first) as usize + 1)
                .ok_or_else(too_many)?;
            names.extend((first..=last).map(|number| PartName {
                id: id.clone(),
                number,
            }));
        }
    }
    Ok(names)
}

/// What stays plain of `root`; `keyed` gives the keyed hash of a hash of raw content.
///
/// # Errors
/// `Damaged` when its history cannot be read, or it names too many parts; what `keyed` returns.
pub fn facts(
    root: &BackupRoot,
    keyed: &dyn Fn(&[u8; 32]) -> Result<[u8; 32]>,
) -> Result<Map<String, Value>> {
    let layers = root.shards.iter().map(|s| s.layers.len()).sum::<usize>();
    if layers + root.packs.len() > PARTS_MAX {
        return Err(too_many());
    }
    let history = match (&root.history, &root.history_hex) {
        (Some(text), _) => Some(text.as_bytes().to_vec()),
        (None, Some(hex)) => super::backup::unhex(hex),
        (None, None) => None,
    };
    let timeline = TimelineId::new(root.timeline);
    let history = match (history, timeline) {
        (Some(text), Some(timeline)) => history_facts(&History::parse(timeline, &text)?),
        _ => Value::Null,
    };
    let outline = Outline {
        id: root.id.clone(),
        nonce: root.nonce.clone(),
        backup_kind: root.backup_kind,
        cluster: root.cluster.clone(),
        system_identifier: root.system_identifier,
        major: root.major,
        start_lsn: root.start_lsn,
        stop_lsn: root.stop_lsn,
        consistent_lsn: root.consistent_lsn,
        checkpoint_lsn: root.checkpoint_lsn,
        start_timeline: root.start_timeline,
        timeline: root.timeline,
        history,
        start_time: root.start_time,
        stop_time: root.stop_time,
        size_bytes: root.size_bytes,
        stored_bytes: root.stored_bytes,
        damage_count: root.damage_count,
        damaged: root.is_damaged(),
        layers: parts(
            root.shards
                .iter()
                .flat_map(|s| &s.layers)
                .map(|layer| &layer.key),
        ),
        packs: parts(root.packs.iter().map(|pack| &pack.key)),
        wal_proof: root
            .wal_proof
            .as_ref()
            .map(|p| p.keyed(keyed))
            .transpose()?,
    };
    match serde_json::to_value(outline) {
        Ok(Value::Object(facts)) => Ok(facts),
        _ => Err(err!(Internal, "the facts of a root are no object")),
    }
}

/// The root as far as it can be known without a key: for expiry, not for a restore. Of what is not known stands the least.
///
/// # Errors
/// `Damaged` when they are not those of a root.
pub fn root(facts: &Value) -> Result<BackupRoot> {
    let known: Outline = serde_json::from_value(facts.clone())
        .map_err(|e| err!(Damaged, "what stays plain of a root is not whole").source(e))?;
    let mut room = PARTS_MAX;
    let layers = names(&known.layers, &mut room)?
        .into_iter()
        .map(|key| LayerRef {
            key,
            offset: 0,
            length: 0,
            hash: String::new(),
        });
    let packs = names(&known.packs, &mut room)?
        .into_iter()
        .map(|key| PackRef {
            key,
            size_bytes: 0,
            live_frames: 0,
            live_bytes: 0,
        });
    Ok(BackupRoot {
        id: known.id,
        nonce: known.nonce,
        backup_kind: known.backup_kind,
        method: Method::Stream,
        prior: None,
        label: String::new(),
        cluster: known.cluster,
        system_identifier: known.system_identifier,
        major: known.major,
        server_version_num: 0,
        catalog_version: 0,
        start_lsn: known.start_lsn,
        stop_lsn: known.stop_lsn,
        consistent_lsn: known.consistent_lsn,
        checkpoint_lsn: known.checkpoint_lsn,
        start_timeline: known.start_timeline,
        timeline: known.timeline,
        history: history_text(&known.history)?,
        history_hex: None,
        start_time: known.start_time,
        stop_time: known.stop_time,
        from_standby: false,
        data_checksums: false,
        wal_segment_size_bytes: 0,
        block_size_bytes: 0,
        relseg_blocks: 0,
        timezone: None,
        tablespaces: Vec::new(),
        file_count: 0,
        size_bytes: known.size_bytes,
        stored_bytes: known.stored_bytes,
        server_manifest: None,
        wal_proof: known.wal_proof,
        damage: Vec::new(),
        damage_count: known.damage_count,
        damage_reported_by_server: known.damaged,
        program: String::new(),
        features: Vec::new(),
        shards: vec![Shard {
            first_key: String::new(),
            layers: layers.collect(),
        }],
        packs: packs.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bytes_do_not_make_a_million_names() {
        let id = |n: u32| {
            format!("20261120T0640{n:02}Z-full")
                .parse::<BackupId>()
                .unwrap()
        };
        let whole = |ids: u32| {
            (0..ids)
                .map(|n| (id(n), vec![(0, 199_999)]))
                .collect::<Parts>()
        };
        let mut room = PARTS_MAX;
        assert_eq!(names(&whole(1), &mut room).unwrap().len(), 200_000);
        assert!(
            names(&whole(1), &mut room).is_err(),
            "layers and packs count together"
        );
        assert!(names(&whole(60), &mut PARTS_MAX.clone()).is_err());
        let unordered = Parts::from([(id(1), vec![(5, 6), (6, 7)])]);
        assert!(names(&unordered, &mut room).is_err());
    }
}
