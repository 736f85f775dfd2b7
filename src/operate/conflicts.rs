//! Refused copies of WAL files beside what is stored, in every repository.

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
use crate::repo::repository::Repository;
use crate::repo::scope;
use crate::store::{Key, Listed};
use crate::wal::inventory::Inventory;

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

/// Counts the refused copies of a repository about which nobody has decided.
///
/// # Errors
/// Errors of the store.
pub fn waiting(repository: &Repository, layout: &ClusterLayout) -> Result<usize> {
    // The copy that a resolution made the one that is followed waits for nobody.
    let layout = repository.read_lives(layout)?;
    let lives = layout.lives().iter();
    let resolved: Vec<String> = lives
        .map(|life| format!("{}-{}", life.segment, life.copy))
        .collect();
    let listed = repository.store().list(&layout.conflicts())?;
    let waits = |l: &&Listed| !l.is_prefix && !resolved.contains(&l.name);
    Ok(listed.iter().filter(waits).count())
}

/// A number of refused copies, in words.
pub fn counted(count: usize) -> String {
    match count {
        1 => "1 refused copy".to_owned(),
        n => format!("{n} refused copies"),
    }
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
        conflicts.extend(conflict(reading, &layout, name, &key)?);
    }
    let standing = layout.lives().iter().map(|life| Standing {
        repository: reading.configured.name.clone(),
        life: life.clone(),
    });
    Ok((conflicts, standing.collect()))
}
