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
        .map(|(id, subject, backup)| (backup.end(subject.stored), id.clone()))
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::backup::content::{check_order, newest_end};
    use crate::pg::time::TimestampTz;
    use crate::repo::crafted;
    use crate::repo::root::aux_root::{AuxContent, NODES};
    use crate::repo::root::{BackupKind, Head, Map};

    fn commit(store: &dyn Store, scope: &Scope, id: &str, stop_time: TimestampTz) -> BackupId {
        let id: BackupId = id.parse().unwrap();
        let root = AuxRoot {
            head: Head {
                id: id.clone(),
                nonce: format!("{:032x}", stop_time.0),
                backup_kind: BackupKind::Full,
                prior: None,
                label: String::new(),
                start_time: stop_time,
                stop_time,
                file_count: 0,
                size_bytes: 0,
                stored_bytes: 0,
                program: String::new(),
                features: Vec::new(),
            },
            map: Map {
                shards: Vec::new(),
                packs: Vec::new(),
            },
            content: AuxContent {
                scope: scope.prefix(),
                source: None,
                unstable_count: 0,
                incomplete_count: 0,
                lock_until: None,
                content_features: vec![NODES.to_owned()],
                expire_features: Vec::new(),
                naming: "tree".to_owned(),
                base: None,
            },
        };
        root.commit(store, scope, serde_json::json!({})).unwrap();
        id
    }

    /// The clock of the first was a day ahead while the store's was right.
    #[allow(
        clippy::disallowed_methods,
        reason = "the store's times are those of this clock"
    )]
    #[test]
    fn b51_a_backup_of_a_clock_that_jumped_stands_where_the_store_received_it() {
        let (_dir, store) = crafted::store();
        let scope = Scope::aux("files", "etc").unwrap();
        let now = || TimestampTz::from_system_time(SystemTime::now());
        let ahead = now().saturating_add(Duration::from_secs(86_400));
        let jumped = commit(&store, &scope, "20261120T064049Z-full", ahead);
        let newest = newest_end(&store, &scope, now()).unwrap();
        assert!(newest.is_some_and(|newest| newest < ahead), "{newest:?}");
        check_order(newest, now()).unwrap();
        // A second later: stores tell whole seconds.
        let later = now().saturating_add(Duration::from_secs(1));
        let next = commit(&store, &scope, "20261120T064050Z-full", later);
        let found = candidates(&store, &scope, None).unwrap();
        assert_eq!(found, [next, jumped]);
    }
}
