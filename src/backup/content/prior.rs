//! The prior of a backup of content: the newest good backup of the same source, claimed so that `pitr expire` keeps it and its packs.
//!
//! The order is the format's (section 10.1): claim, then events and root once more, then the layers.

use crate::backup::incremental::held::is_whole;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::claim::Claim;
use crate::repo::event::{self, Writer};
use crate::repo::id::BackupId;
use crate::repo::root::aux_root::{AuxBackup, AuxRoot};
use crate::repo::scope::Scope;
use crate::store::Store;

/// A root names no more parts than 2^18; a prior leaves room for those of the new backup.
const PARTS_MAX: usize = 1 << 17;

/// A claimed prior.
pub struct Held<'a> {
    pub root: AuxRoot,
    /// Keeps it.
    pub claim: Claim<'a>,
}

/// Finds the prior of a backup of `source`, and claims it; else returns why a full backup is taken.
///
/// # Errors
/// Errors of the store.
pub fn hold<'a>(
    store: &'a dyn Store,
    scope: &'a Scope,
    source: Option<&str>,
    host: &'a Host,
) -> Result<std::result::Result<Held<'a>, String>> {
    let mut why = None;
    for id in candidates(store, scope, source)? {
        let claim = Claim::take((store, scope), Writer::of(host), &id, "prior", None)?;
        match good_root(store, scope, &id) {
            Ok(Some(root)) => return Ok(Ok(Held { root, claim })),
            Ok(None) => {
                claim.release(host.progress.as_ref());
                why.get_or_insert_with(|| format!("backup \"{id}\" cannot be built on"));
            }
            Err(e) => {
                claim.release(host.progress.as_ref());
                return match e.code() {
                    Code::Key => Ok(Err(
                        "this host has no key to read earlier backups".to_owned()
                    )),
                    _ => Err(e),
                };
            }
        }
    }
    Ok(Err(why.unwrap_or_else(|| {
        "the repository has no backup of this source".to_owned()
    })))
}

/// The backups of a source that are neither marked nor damaged, newest first.
fn candidates(store: &dyn Store, scope: &Scope, source: Option<&str>) -> Result<Vec<BackupId>> {
    let catalog: Catalog<AuxBackup> = Reading::begin(store, scope)?.backups()?;
    let mut found: Vec<_> = catalog
        .committed()
        .filter(|(_, subject, backup)| {
            backup.root.source.as_deref() == source
                && !backup.root.is_foreign
                && !event::is_marked(&subject.events)
                && event::damage(&subject.events).is_empty()
        })
        .map(|(id, _, backup)| (backup.root.stop_time, id.clone()))
        .collect();
    found.sort();
    Ok(found.into_iter().rev().map(|(_, id)| id).collect())
}

/// Reads the root of a backup that is claimed by now; `None` where it is not whole, unmarked and undamaged, or has no room for another one's parts.
fn good_root(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Option<AuxRoot>> {
    let events = event::read_all(store, scope, &id.to_string())?;
    let is_clean = !event::is_marked(&events) && event::damage(&events).is_empty();
    let stored = match AuxRoot::read(store, scope, id) {
        Err(e) if e.is_damage() => None,
        stored => stored?,
    };
    let Some(root) = stored.filter(|root| is_clean && root.check_content().is_ok()) else {
        return Ok(None);
    };
    let layers = root.map.shards.iter().map(|shard| shard.layers.len());
    let has_room = layers.sum::<usize>() + root.map.packs.len() < PARTS_MAX;
    Ok((has_room && is_whole(store, scope, &root)?).then_some(root))
}
