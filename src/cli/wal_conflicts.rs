//! `pitr wal conflicts`: refused copies beside what is stored.

use serde::Serialize;

use super::Context;
use super::output::{Align, Table};
use crate::error::Result;
use crate::exit::{self};
use crate::operate::human::{self};
use crate::operate::reading::Reading;
use crate::pg::segment::WalFileName;
use crate::pg::time::TimestampTz;
use crate::repo::container::Container;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::Life;
use crate::repo::scope;
use crate::store::{Key, Store};

#[derive(Serialize)]
struct ShownConflict {
    name: String,
    key: String,
    system_identifier: String,
    timeline: u32,
    hash: Option<String>,
    stored_hash: Option<String>,
    stored_bytes: Option<u64>,
    refused: Option<TimestampTz>,
    /// The end of its key, which names it to `pitr wal resolve`.
    copy: Option<String>,
    /// `pitr wal resolve` made it the one that is followed.
    is_followed: bool,
    /// What of it cannot be read.
    error: Option<String>,
}

#[derive(Serialize)]
struct ShownConflicts {
    conflicts: Vec<ShownConflict>,
    /// The decisions of `pitr wal resolve` that stand.
    resolutions: Vec<Life>,
}

/// One refused copy beside the one that is stored; `None` when it is not there any more. A damaged copy is told, the others are listed all the
/// same.
fn conflict(
    store: &dyn Store,
    layout: &ClusterLayout,
    name: WalFileName,
    key: &Key,
) -> Result<Option<ShownConflict>> {
    let mut error: Option<String> = None;
    let mut open = |key: &Key| -> Result<Option<Option<Container>>> {
        let Some(object) = store.open(key)? else {
            return Ok(None);
        };
        match Container::open_under(key, object) {
            Ok(container) => Ok(Some(Some(container))),
            Err(e) if e.is_damage() => {
                error.get_or_insert(format!("object \"{key}\": {e}"));
                Ok(Some(None))
            }
            Err(e) => Err(e.context(format!("read object \"{key}\""))),
        }
    };
    let Some(refused) = open(key)? else {
        return Ok(None);
    };
    let stored = open(&layout.wal_file(name))?.flatten();
    let copy = scope::own_key(key).rsplit_once('-').map(|(_, copy)| copy);
    let life = match name {
        WalFileName::Segment(segment) => layout.lives().of(segment),
        _ => None,
    };
    let is_first = |l: &&Life| name == WalFileName::Segment(l.segment) && Some(&*l.copy) == copy;
    let hex = |c: &Container| {
        let hash = blake3::Hash::from_bytes(c.identity().hash);
        hash.to_hex().to_string()
    };
    let meta = store.head(key)?;
    Ok(Some(ShownConflict {
        name: name.to_string(),
        key: key.to_string(),
        system_identifier: layout.system_identifier().to_string(),
        timeline: name.timeline().decimal(),
        hash: refused.as_ref().map(hex),
        stored_hash: stored.as_ref().map(hex),
        stored_bytes: meta.map(|m| m.size_bytes),
        refused: meta.map(|m| m.modified),
        copy: copy.map(str::to_owned),
        is_followed: life.filter(is_first).is_some(),
        error,
    }))
}

/// `pitr wal conflicts`.
pub fn conflicts(cx: &Context, wanted: Option<&str>) -> Result<u8> {
    let wanted: Option<WalFileName> = wanted.map(str::parse).transpose()?;
    let reading = Reading::open(&cx.session)?;
    let inventory = reading.inventory(&cx.session)?;
    let layout = inventory.layout()?;
    let store = reading.repository.store();
    let mut names: Vec<String> = store
        .list(&layout.conflicts())?
        .into_iter()
        .filter(|l| !l.is_prefix)
        .map(|l| l.name)
        .collect();
    names.sort();
    let mut conflicts = Vec::new();
    for entry in names {
        let Some(name) = entry
            .rsplit_once('-')
            .and_then(|(name, _)| name.parse::<WalFileName>().ok())
        else {
            continue;
        };
        if wanted.is_some_and(|w| w != name) {
            continue;
        }
        let key = Key::new(format!("{}/{entry}", layout.conflicts()))?;
        conflicts.extend(conflict(store, &layout, name, &key)?);
    }
    let resolutions: Vec<Life> = layout.lives().iter().cloned().collect();
    if cx.out.is_json() {
        cx.out.json(&ShownConflicts {
            conflicts,
            resolutions,
        })?;
        return Ok(exit::SUCCESS);
    }
    for life in &resolutions {
        cx.out.line(&format!(
            "{}: timeline {} is followed from {} on as the server of copy {} wrote it",
            life.event,
            life.segment.timeline.decimal(),
            life.segment,
            life.copy
        ))?;
    }
    if conflicts.is_empty() {
        cx.out.note("no conflicts");
        return Ok(exit::SUCCESS);
    }
    let mut table = Table::new(&[
        ("file", Align::Left),
        ("refused", Align::Left),
        ("followed content", Align::Left),
        ("refused copy", Align::Left),
    ]);
    let short = |hash: &str| hash.get(..16).unwrap_or(hash).to_owned();
    for c in &conflicts {
        table.row([
            c.name.clone(),
            c.refused.map(human::time).unwrap_or_default(),
            c.stored_hash.as_deref().map(short).unwrap_or_default(),
            c.copy.clone().unwrap_or_default(),
        ]);
    }
    cx.out.table(&table)?;
    for error in conflicts.iter().filter_map(|c| c.error.as_deref()) {
        cx.out.warn(error);
    }
    cx.out.note("Both copies are kept. Two servers wrote different WAL under one name: find out which one is the cluster, and stop the other. If the refused copies are the cluster's: pitr wal resolve FILE --keep COPY, for the first of them.");
    Ok(exit::SUCCESS)
}
