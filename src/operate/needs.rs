//! The objects that a backup needs to be restored.

use std::collections::BTreeSet;

use crate::err;
use crate::error::Result;
use crate::pg::segment::{SegmentNumber, SegmentSize};
use crate::repo::event;
use crate::repo::id::{BackupId, PartName};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxOutline;
use crate::repo::root::outline::{Outline, wal_span};
use crate::repo::scope::{self, Scope};
use crate::repo::{epochs, keyring};
use crate::store::{Key, Store};

/// Layers and packs, and the WAL from its start to its end. Each segment is of one of two timelines.
pub(super) struct Content {
    /// The layout, with the lives that are followed.
    pub layout: ClusterLayout,
    pub first: SegmentNumber,
    pub size: SegmentSize,
    pub keys: BTreeSet<Key>,
    /// The same in groups, of each of which one has to be there.
    pub groups: Vec<BTreeSet<Key>>,
}

/// Layers and packs as keys.
pub(super) fn parts(
    scope: &Scope,
    layers: impl Iterator<Item = PartName>,
    packs: impl Iterator<Item = PartName>,
) -> BTreeSet<Key> {
    let layers = layers.map(|part| scope.layer(&part));
    layers.chain(packs.map(|part| scope.pack(&part))).collect()
}

/// The content of a backup, and the WAL to its end.
pub(super) fn content(
    repository: &Repository,
    layout: &ClusterLayout,
    root: &Outline,
) -> Result<Content> {
    let layout = repository.read_lives(layout)?;
    let mut groups = alone(parts(&layout, root.layers(), root.packs()));
    let size = repository.require_readable(&layout)?.segment_size_bytes;
    let size = SegmentSize::new(size)?;
    let end = root.consistent_lsn.max(root.stop_lsn);
    let (first, last) = wal_span(root.start_lsn, end, size)
        .map_err(|e| e.context(format!("read the root of backup \"{}\"", root.id)))?;
    let (begun, ended) = root.timelines()?;
    for number in first.0..=last.0 {
        let names = [begun, ended].map(|timeline| SegmentNumber(number).name(timeline, size));
        let names = names.into_iter().flatten();
        groups.push(names.map(|name| layout.segment(name)).collect());
    }
    Ok(Content {
        layout,
        first,
        size,
        keys: groups.iter().flatten().cloned().collect(),
        groups,
    })
}

fn alone(keys: BTreeSet<Key>) -> Vec<BTreeSet<Key>> {
    keys.into_iter().map(|key| BTreeSet::from([key])).collect()
}

/// The owner of a backup.
pub(super) enum Owner {
    /// A cluster, with its WAL.
    Cluster(ClusterLayout),
    /// Other content: each of its backups is whole by itself.
    Aux(Scope),
}

impl Owner {
    /// Its place in the repository.
    pub(super) fn scope(&self) -> &Scope {
        match self {
            Owner::Cluster(layout) => layout,
            Owner::Aux(scope) => scope,
        }
    }

    /// The owners of all backups of a repository.
    ///
    /// # Errors
    /// Errors of the store.
    pub(super) fn all(repository: &Repository) -> Result<Vec<Owner>> {
        let scopes = repository.aux_scopes()?.into_iter();
        let mut all: Vec<Owner> = scopes.map(Owner::Aux).collect();
        for name in repository.cluster_names()? {
            all.extend(repository.clusters(&name)?.into_iter().map(Owner::Cluster));
        }
        Ok(all)
    }

    /// Layers, packs and WAL of a backup in groups, of each of which one has to be there.
    ///
    /// # Errors
    /// `NotFound` without a root; what the store says.
    pub(super) fn groups(
        &self,
        repository: &Repository,
        id: &BackupId,
    ) -> Result<Vec<BTreeSet<Key>>> {
        let store = repository.store();
        let none = || err!(NotFound, "backup \"{id}\" is not there");
        match self {
            Owner::Cluster(layout) => {
                let root = Outline::read(store, layout, id)?.ok_or_else(none)?;
                Ok(content(repository, layout, &root)?.groups)
            }
            Owner::Aux(scope) => {
                let root = AuxOutline::stored(store, scope, id)?.root();
                let root = root.ok_or_else(none)?;
                Ok(alone(parts(scope, root.layers(), root.packs())))
            }
        }
    }

    /// The objects that restore a backup, with those that open and prove it: the root, its reservation and holds, histories, the registration, the marker and the
    /// recipients of the key set. Some may not be there.
    ///
    /// # Errors
    /// `NotFound` without a root; what the store says.
    pub(super) fn everything(
        &self,
        repository: &Repository,
        id: &BackupId,
    ) -> Result<BTreeSet<Key>> {
        let (store, scope) = (repository.store(), self.scope());
        let none = || err!(NotFound, "backup \"{id}\" is not there");
        let mut keys = match self {
            Owner::Cluster(layout) => {
                let root = Outline::read(store, layout, id)?.ok_or_else(none)?;
                with_wal(repository, layout, (id, &root))?
            }
            Owner::Aux(scope) => {
                let root = AuxOutline::stored(store, scope, id)?.root();
                let root = root.ok_or_else(none)?;
                parts(scope, root.layers(), root.packs())
            }
        };
        keys.extend([scope.manifest(id), scope.begin(id)]);
        keys.extend([scope.registration(), scope::marker()]);
        keys.extend(recipients(repository)?);
        for listed in store.list(&scope.subject(&id.to_string()))? {
            if ["pin", "held"].contains(&event::kind_in(&listed.name)) {
                keys.insert(scope.event(&id.to_string(), &listed.name)?);
            }
        }
        with_healed(store, keys)
    }
}

/// One key of each sort that restores of the newest backups need: a root, its oldest pack and layer, its registration, the marker, a recipient.
///
/// # Errors
/// Errors of the store.
pub(super) fn samples(repository: &Repository) -> Result<BTreeSet<Key>> {
    let store = repository.store();
    let mut keys: BTreeSet<Key> = recipients(repository)?.into_iter().take(1).collect();
    keys.insert(scope::marker());
    for owner in Owner::all(repository)? {
        let scope = owner.scope();
        let listed = store.list(&scope.backups())?.into_iter();
        let ids: BTreeSet<BackupId> = listed.filter_map(|l| l.name.parse().ok()).collect();
        for id in ids.iter().rev() {
            let parts = match &owner {
                Owner::Cluster(layout) => Outline::read(store, layout, id)?
                    .map(|root| (root.layers().next(), root.packs().next())),
                Owner::Aux(scope) => AuxOutline::stored(store, scope, id)?
                    .root()
                    .map(|root| (root.layers().next(), root.packs().next())),
            };
            if let Some((layer, pack)) = parts {
                keys.extend([scope.manifest(id), scope.registration()]);
                keys.extend(layer.map(|part| scope.layer(&part)));
                keys.extend(pack.map(|part| scope.pack(&part)));
                break;
            }
        }
    }
    Ok(keys)
}

/// The content of a cluster's backup, what tells of it, its WAL and the histories of its timelines.
fn with_wal(
    repository: &Repository,
    layout: &ClusterLayout,
    (id, root): (&BackupId, &Outline),
) -> Result<BTreeSet<Key>> {
    let Content {
        layout, mut keys, ..
    } = content(repository, layout, root)?;
    keys.extend([layout.server_manifest(id), layout.relations(id)]);
    let (begun, ended) = root.timelines()?;
    let histories = (begun.decimal()..=ended.decimal()).filter(|n| *n > 1);
    let histories = histories.filter_map(crate::pg::timeline::TimelineId::new);
    keys.extend(histories.map(|timeline| layout.history(timeline)));
    Ok(keys)
}

/// The keys that recipients open: of the key set, and of pairs for secrets.
fn recipients(repository: &Repository) -> Result<BTreeSet<Key>> {
    let (store, mut keys) = (repository.store(), BTreeSet::new());
    if repository.marker().key_set.is_some() {
        for epoch in epochs::shown(store)? {
            for name in keyring::recipient_names(store, epoch)? {
                keys.insert(scope::recipient(epoch, &name)?);
            }
        }
    }
    for listed in store.list(scope::KEYS)? {
        let Some(pair) = listed.name.strip_prefix(scope::SECRETS) else {
            continue;
        };
        for name in store.list(&scope::secrets_recipients(pair))? {
            keys.insert(scope::secrets_recipient(pair, &name.name)?);
        }
    }
    Ok(keys)
}

/// With the copies that are read in the place of damaged objects.
fn with_healed(store: &dyn Store, keys: BTreeSet<Key>) -> Result<BTreeSet<Key>> {
    let mut all = keys.clone();
    for key in &keys {
        all.extend(store.healed_copies(key)?);
    }
    Ok(all)
}
