//! Refused copies of WAL files beside what is stored, in every repository.

use std::time::Duration;

use serde::Serialize;

use super::failures::Failures;
use super::held::Held;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::segment::WalFileName;
use crate::pg::time::TimestampTz;
use crate::repo::container::Container;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::Life;
use crate::repo::scope;
use crate::store::{Key, Listed, Meta, Store};
use crate::wal::inventory::Inventory;

/// A copy that was refused before has been looked at, or its own host tells of it.
const NEW: Duration = Duration::from_secs(24 * 3600);

/// A refused copy.
#[derive(Serialize)]
pub struct Conflict {
    /// The repository that refused it.
    pub repository: String,
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
    pub refused: Option<TimestampTz>,
    /// The end of its key, which names it to `pitr wal resolve`.
    pub copy: Option<String>,
    /// `pitr wal resolve` made it the one that is followed.
    pub is_followed: bool,
    /// The part that cannot be read.
    pub error: Option<String>,
}

/// A decision that stands in a repository.
#[derive(Serialize)]
pub struct Standing {
    /// The repository.
    pub repository: String,
    /// The decision.
    #[serde(flatten)]
    pub life: Life,
}

/// The refused copies of a cluster, and what was decided about them.
#[derive(Serialize)]
pub struct Conflicts {
    /// The refused copies, in the order of their files.
    pub conflicts: Vec<Conflict>,
    /// The decisions of `pitr wal resolve` that stand.
    pub resolutions: Vec<Standing>,
    /// How many repositories were looked at.
    #[serde(skip)]
    pub looked_at: usize,
    /// Errors of those that could not be.
    #[serde(skip)]
    pub failures: Failures,
}

/// Returns one refused copy beside the one that is stored; `None` when it is not there any more. A damaged copy is
/// returned with its error, so that the others are listed all the same.
fn conflict(
    reading: &Reading,
    layout: &ClusterLayout,
    name: WalFileName,
    key: &Key,
) -> Result<Option<Conflict>> {
    let store = reading.repository.store();
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
        repository: reading.configured.name.clone(),
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

/// Looks for refused copies, of one file or of all, in every repository.
///
/// # Errors
/// Errors of the first repository; where none could be looked at, of the others.
pub fn look(session: &Session, wanted: Option<WalFileName>) -> Result<Conflicts> {
    let Held { readings, failures } = Held::read(session)?;
    let mut found = Conflicts {
        conflicts: Vec::new(),
        resolutions: Vec::new(),
        looked_at: 0,
        failures,
    };
    for place in &readings {
        let name = &place.0.configured.name;
        let looked = look_in(place, wanted);
        let doing = format!("look into repository \"{name}\"");
        if let Some((conflicts, resolutions)) = found.failures.note(looked, doing) {
            found.conflicts.extend(conflicts);
            found.resolutions.extend(resolutions);
            found.looked_at += 1;
        }
    }
    found.failures.first_if(session, found.looked_at == 0)?;
    found.conflicts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Looks for refused copies in one repository.
fn look_in(
    (reading, inventory): &(Reading, Inventory),
    wanted: Option<WalFileName>,
) -> Result<(Vec<Conflict>, Vec<Standing>)> {
    let layout = inventory.layout()?;
    let listed = reading.repository.store().list(&layout.conflicts())?;
    let objects = listed.into_iter();
    let mut names: Vec<String> = objects.filter(|l| !l.is_prefix).map(|l| l.name).collect();
    names.sort();
    let mut conflicts = Vec::new();
    for entry in names {
        let Some(name) = file_of(&entry) else {
            continue;
        };
        if wanted.is_some_and(|w| w != name) {
            continue;
        }
        let key = key(&layout, &entry)?;
        conflicts.extend(conflict(reading, &layout, name, &key)?);
    }
    let standing = layout.lives().iter().map(|life| Standing {
        repository: reading.configured.name.clone(),
        life: life.clone(),
    });
    Ok((conflicts, standing.collect()))
}

/// The file of which an object is a refused copy.
fn file_of(entry: &str) -> Option<WalFileName> {
    let (name, _) = entry.rsplit_once('-')?;
    name.parse().ok()
}

fn key(layout: &ClusterLayout, entry: &str) -> Result<Key> {
    Key::new(format!("{}/{entry}", layout.conflicts()))
}

/// Lists the refused copies of one repository about which nothing was decided. `layout` has the decisions.
///
/// # Errors
/// Errors of the store.
pub fn waiting(store: &dyn Store, layout: &ClusterLayout) -> Result<Vec<Listed>> {
    // The copy that a resolution made the one that is followed waits for nobody.
    let lives = layout.lives().iter();
    let resolved: Vec<String> = lives
        .map(|life| format!("{}-{}", life.segment, life.copy))
        .collect();
    let mut refused = store.list(&layout.conflicts())?;
    refused.retain(|l| !l.is_prefix && !resolved.contains(&l.name));
    Ok(refused)
}

/// Counts the segments among them that were refused within the last day. A refused partial keeps nobody waiting.
///
/// # Errors
/// Errors of the store.
pub fn newly_refused(store: &dyn Store, layout: &ClusterLayout, now: TimestampTz) -> Result<u64> {
    let is_new = |meta: Meta| {
        let age = now.duration_since(meta.modified);
        age.is_none_or(|age| age <= NEW)
    };
    let mut count = 0;
    for listed in waiting(store, layout)? {
        let Some(WalFileName::Segment(_)) = file_of(&listed.name) else {
            continue;
        };
        let meta = match listed.meta {
            None => store.head(&key(layout, &listed.name)?)?,
            known => known,
        };
        count += u64::from(meta.is_some_and(is_new));
    }
    Ok(count)
}
