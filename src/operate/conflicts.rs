//! Refused copies of WAL files beside what is stored.

use serde::Serialize;

use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::segment::WalFileName;
use crate::pg::time::TimestampTz;
use crate::repo::container::Container;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::Life;
use crate::repo::scope;
use crate::store::{Key, Store};

/// A refused copy.
#[derive(Serialize)]
pub struct Conflict {
    /// The file.
    pub name: String,
    /// The key of the refused copy.
    pub key: String,
    /// The cluster's system identifier.
    pub system_identifier: String,
    /// The timeline of the file.
    pub timeline: u32,
    /// The hash of the refused copy.
    pub hash: Option<String>,
    /// The hash of what is followed.
    pub stored_hash: Option<String>,
    /// The length of the refused copy as stored.
    pub stored_bytes: Option<u64>,
    /// When it was refused.
    pub refused: Option<TimestampTz>,
    /// The end of its key, which names it to `pitr wal resolve`.
    pub copy: Option<String>,
    /// `pitr wal resolve` made it the one that is followed.
    pub is_followed: bool,
    /// The part that cannot be read.
    pub error: Option<String>,
}

/// The refused copies of a cluster, and what was decided about them.
#[derive(Serialize)]
pub struct Conflicts {
    /// The refused copies.
    pub conflicts: Vec<Conflict>,
    /// The decisions of `pitr wal resolve` that stand.
    pub resolutions: Vec<Life>,
}

/// Returns one refused copy beside the one that is stored; `None` when it is not there any more. A damaged copy is
/// returned with its error, so that the others are listed all the same.
fn conflict(
    store: &dyn Store,
    layout: &ClusterLayout,
    name: WalFileName,
    key: &Key,
) -> Result<Option<Conflict>> {
    let mut error: Option<String> = None;
    let mut open = |key: &Key| -> Result<Option<Option<Container>>> {
        let under = |object| Container::open_under(key, object);
        match store
            .open(key)
            .and_then(|found| found.map(under).transpose())
        {
            Ok(None) => Ok(None),
            Ok(container) => Ok(Some(container)),
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
    Ok(Some(Conflict {
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

/// Looks for refused copies, of one file or of all.
///
/// # Errors
/// Errors of the repository.
pub fn look(session: &Session, wanted: Option<WalFileName>) -> Result<Conflicts> {
    let reading = Reading::open(session)?;
    let inventory = reading.inventory(session)?;
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
    Ok(Conflicts {
        conflicts,
        resolutions,
    })
}
