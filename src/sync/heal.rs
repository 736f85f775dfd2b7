//! Healed copies of damaged objects, and missing parts, from another repository (format, section 12).
//!
//! A copy was read whole from the other side, and proven to be what this side lost: by the hashes of the backup's root and
//! layers, by what the damaged original still says of itself, by the links of its neighbours, or by the MAC of the key set.
//! An original that is whole is left alone. Objects are only created.

use std::collections::BTreeMap;

use super::copy::{Copied, Tee, is_same};
use super::{Options, Pair};
use crate::err;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::repo::container::{Container, Identity, Kind};
use crate::repo::healed::{self, COPIES_MAX, belongs, copy_key, is_of_the_object};
use crate::repo::id::{BackupId, PartName};
use crate::repo::json;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::root::{BackupRoot, Map};
use crate::repo::scope::{self, Scope};
use crate::snapshot::filekey::Naming;
use crate::snapshot::layer::Layer;
use crate::snapshot::pack::PackReader;
use crate::snapshot::reader::{Snapshot, SnapshotRoot};
use crate::store::{Key, Object, Store, get};
use crate::text::hex;
use crate::wal::link::{Brief, Joined, Link};

/// One scope, of which one repository is healed from another.
pub struct Healing<'a> {
    pair: Pair<'a>,
    /// The size of segments, in a cluster.
    segment_size: Option<SegmentSize>,
    dry_run: bool,
}

/// The facts that prove that an object is the one that was lost.
pub(super) enum Proof {
    /// The identity that the damaged original still shows; the hash in the backup's root.
    Container {
        own: Option<(Kind, Identity)>,
        hash: Option<String>,
    },
    Pack {
        part: PartName,
        naming: Naming,
        hash: [u8; 32],
        size_bytes: u64,
    },
    /// Offset, length and hash of each layer that a root names.
    Layers {
        part: PartName,
        layers: Vec<(u64, u64, [u8; 32])>,
        /// Whether the object may hold more than those.
        has_others: bool,
    },
    Root(BackupId),
}

impl<'a> Healing<'a> {
    /// Puts together what is needed to heal a scope of `to` from `from`.
    ///
    /// # Errors
    /// `Refused` when the two do not have the same keys; `Key` where what comes could not be told from forged objects.
    pub fn new(
        (from, to): (&'a Repository, &'a Repository),
        (scope, segment_size): (&Scope, Option<SegmentSize>),
        host: &'a Host,
        dry_run: bool,
    ) -> Result<Healing<'a>> {
        let options = Options {
            jobs: 1,
            everything: true,
            rules: None,
        };
        let pair = Pair::new((from, to), scope, options, host)?;
        let is_encrypted = to.marker().key_set.is_some();
        if is_encrypted && to.store().mac(&scope::marker(), b"")?.is_none() {
            return Err(err!(
                Key,
                "the MAC key of repository \"{}\" is not configured",
                to.store().location()
            )
            .hint("Nothing was healed: without it a forged object looks like a genuine one. Run the command on a host that has key_set or key_file."));
        }
        Ok(Healing {
            pair,
            segment_size,
            dry_run,
        })
    }

    /// Writes what the other side has whole of an object that is damaged or missing here, and returns the key of what was written, or would
    /// be; `None` where the original is whole.
    ///
    /// # Errors
    /// `Damaged`, `NotFound`, `Conflict` and `Unsupported` say why this object cannot be healed from there; what the stores say.
    pub fn heal(&self, key: &Key) -> Result<Option<Key>> {
        let pair = &self.pair;
        pair.check_stop()?;
        if !scope::is_sealed_form(key) || scope::healed_base(key.as_str()).is_some() {
            return Err(err!(
                Unsupported,
                "objects of this kind have no healed copies"
            ));
        }
        let to = pair.to.store();
        let proof = self.proof(key)?;
        let is_there = to.head(key)?.is_some();
        if is_there {
            match self.check_stored(to, (key, key), &proof) {
                Ok(()) => return Ok(None),
                Err(e) if is_of_the_object(&e) => {}
                Err(e) => return Err(e),
            }
        }
        let target = match is_there {
            false => self.place_of_missing(key)?,
            true => self.free_copy(key)?,
        };
        // An object that is damaged over there may have been healed there.
        let copies = pair.from.store().healed_copies(key)?;
        let mut failed = None;
        for source in std::iter::once(key).chain(&copies) {
            match self.copy((key, source), &target, &proof) {
                Ok(Copied::Gone) => {}
                Ok(Copied::Stored(_) | Copied::There) => {
                    to.forget_healed(key);
                    return Ok(Some(target));
                }
                Err(e) if is_of_one(&e) => failed = failed.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        Err(failed.unwrap_or_else(|| {
            err!(
                NotFound,
                "it is not in \"{}\"",
                pair.from.store().location()
            )
        }))
    }

    /// A root makes its backup true: it comes after all that it names, as a sync brings it.
    fn place_of_missing(&self, key: &Key) -> Result<Key> {
        match key.name() {
            "manifest" => Err(err!(
                Unsupported,
                "the root is missing: \"pitr repo sync\" brings the backup back"
            )),
            _ => Ok(key.clone()),
        }
    }

    /// The first free key of a healed copy. Those that are there were looked at before: none of them is whole.
    pub(super) fn free_copy(&self, key: &Key) -> Result<Key> {
        for number in 1..=COPIES_MAX {
            let copy = copy_key(key, number)?;
            if self.pair.to.store().head(&copy)?.is_none() {
                return Ok(copy);
            }
        }
        Err(err!(
            Conflict,
            "{COPIES_MAX} healed copies are there, and none of them is whole"
        ))
    }

    fn copy(&self, (key, source): (&Key, &Key), target: &Key, proof: &Proof) -> Result<Copied> {
        let pair = &self.pair;
        let from = pair.from.store();
        from.forget_healed(key);
        if from.head(source)?.is_none() {
            return Ok(Copied::Gone);
        }
        if pair.is_sealed() || self.dry_run {
            self.check_stored(from, (key, source), proof)?;
        }
        if self.dry_run {
            return Ok(Copied::There);
        }
        if pair.is_sealed() {
            // Proven above and as it is opened; every stored byte is compared while it is copied.
            let unsealed = || err!(Damaged, "object \"{key}\" is not sealed");
            return pair.copy_as((source, target), &|_| Err(unsealed()), &|_| Err(unsealed()));
        }
        let object = from.open(source)?;
        let object = object.ok_or_else(|| err!(NotFound, "it has gone meanwhile"))?;
        self.write_proven(object, (key, target), proof)
    }

    /// Writes an object, whose every byte is checked while it passes.
    pub(super) fn write_proven(
        &self,
        object: Box<dyn Object>,
        (key, target): (&Key, &Key),
        proof: &Proof,
    ) -> Result<Copied> {
        let pair = &self.pair;
        let check = |tee: &Tee| -> Result<()> {
            self.check(pair.from.store(), key, tee.object(), proof)?;
            let may_pass = match proof {
                Proof::Container { .. } => true,
                Proof::Layers { has_others, .. } => *has_others,
                Proof::Pack { .. } | Proof::Root(_) => false,
            };
            tee.pass(tee.size_bytes(), may_pass)
        };
        if self.dry_run {
            self.check(pair.from.store(), key, object, proof)?;
            return Ok(Copied::There);
        }
        let is_whole = |there: Box<dyn Object>| {
            self.check(pair.to.store(), key, there, proof)?;
            Ok(true)
        };
        pair.write_as(object, target, &check, &is_whole)
    }

    /// The repository that is healed.
    pub(super) fn repository(&self) -> &'a Repository {
        self.pair.to
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.pair.scope
    }

    pub(super) fn check_stop(&self) -> Result<()> {
        self.pair.check_stop()
    }

    /// Checks every byte of what a store holds of the object `key` under `source`: that key, or a healed copy's.
    fn check_stored(
        &self,
        store: &dyn Store,
        (key, source): (&Key, &Key),
        proof: &Proof,
    ) -> Result<()> {
        // The bytes under the key itself, and not what is read in their place.
        store.forget_healed(key);
        let object = store.open(source)?;
        let object = object.ok_or_else(|| err!(NotFound, "it is not there"))?;
        match self.pair.is_sealed() {
            true => self.check_sealed(key, object, proof),
            false => self.check(store, key, object, proof),
        }
    }

    /// The MAC covers key and bytes; of containers it is compared besides whether the content is that of the original.
    fn check_sealed(&self, key: &Key, object: Box<dyn Object>, proof: &Proof) -> Result<()> {
        let Some(sealed) = object.sealed() else {
            return Err(err!(Damaged, "object \"{key}\" is not sealed"));
        };
        sealed.check_stored()?;
        match proof {
            Proof::Container { own, .. } => {
                let container = Container::open_under(key, object)?;
                match own {
                    Some(own) => same_as(own, &container),
                    None => self.check_neighbours(key, &container),
                }
            }
            Proof::Root(id) => self.check_begin(id),
            // The MAC says nothing of whose backup it is: two may have one id.
            Proof::Pack { part, .. } | Proof::Layers { part, .. } => self.check_no_other(&part.id),
        }
    }

    /// Two reservations of one id must not differ. That of a backup that was expired is gone, while others still need its parts.
    fn check_no_other(&self, id: &BackupId) -> Result<()> {
        match self.reservations(id)? {
            [Some(here), Some(there)] if here != there => Err(err!(
                Conflict,
                "the two repositories have different reservations of its id: it is another backup"
            )),
            _ => Ok(()),
        }
    }

    /// The bytes of the reservation of an id, here and over there.
    fn reservations(&self, id: &BackupId) -> Result<[Option<Vec<u8>>; 2]> {
        let key = self.pair.scope.begin(id);
        let of = |repository: &Repository| get(repository.store(), &key, json::LIMIT_BYTES);
        Ok([of(self.pair.to)?, of(self.pair.from)?])
    }

    /// Checks every byte of an object.
    fn check(
        &self,
        store: &dyn Store,
        key: &Key,
        object: Box<dyn Object>,
        proof: &Proof,
    ) -> Result<()> {
        let stop = || self.pair.check_stop();
        match proof {
            Proof::Container { own, hash } => {
                let container = Container::open_under(key, object)?;
                if !belongs(store, key, &container)? {
                    return Err(err!(Damaged, "it is not the object of its key"));
                }
                if let Some(own) = own {
                    same_as(own, &container)?;
                }
                let found = blake3::Hash::from_bytes(container.identity().hash).to_hex();
                if hash.as_deref().is_some_and(|hash| hash != found.as_str()) {
                    return Err(err!(Damaged, "it is not what the root of its backup names"));
                }
                healed::check_whole(&container)?;
                match own {
                    None => self.check_neighbours(key, &container),
                    Some(_) => Ok(()),
                }
            }
            Proof::Pack {
                part,
                naming,
                hash,
                size_bytes,
            } => {
                let reader = self.open_pack(object, (part, *naming), (hash, *size_bytes))?;
                for number in 0..reader.frame_count() {
                    stop()?;
                    reader
                        .frame(number)
                        .map_err(|e| e.context(format!("read frame {number}")))?;
                }
                reader.page_hashes().map(|_| ())
            }
            Proof::Layers {
                part,
                layers,
                has_others,
            } => {
                let object: std::sync::Arc<dyn Object> = object.into();
                let mut end = 0;
                for (offset, length, hash) in layers {
                    stop()?;
                    let inner = std::sync::Arc::clone(&object);
                    let shared = Box::new(super::parts::Shared { inner });
                    let tag = self.pair.scope.tag();
                    let layer = Layer::open(shared, (*offset, *length), hash, part, tag)?;
                    (0..layer.block_count()).try_for_each(|n| layer.block(n).map(|_| ()))?;
                    end = offset.saturating_add(*length);
                }
                match !has_others && object.size_bytes() != end {
                    true => Err(err!(Damaged, "it is longer than its layers")),
                    false => Ok(()),
                }
            }
            Proof::Root(id) => {
                self.pair.check_root(object.as_ref(), id)?;
                self.check_begin(id)
            }
        }
    }

    /// Opens a pack whose directory is the one that the map leads to.
    pub(super) fn open_pack(
        &self,
        object: Box<dyn Object>,
        (part, naming): (&PartName, Naming),
        (hash, size_bytes): (&[u8; 32], u64),
    ) -> Result<PackReader> {
        let pack = PackReader::open(object, part, self.pair.scope.tag(), naming)?;
        match pack.hash() == hash && pack.stored_bytes() == size_bytes {
            true => Ok(pack),
            false => Err(err!(Damaged, "it is not the pack that the map leads to")),
        }
    }

    /// Both sides must have the same reservation: another backup may have the id over there.
    fn check_begin(&self, id: &BackupId) -> Result<()> {
        let [here, there] = self.reservations(id)?;
        match here.is_some() && here == there {
            true => Ok(()),
            false => Err(err!(
                Conflict,
                "the two repositories do not have the same reservation of its id: nothing proves that it is the same backup"
            )),
        }
    }

    /// Whether a container is one that was kept beside the first of its name. Below `lives/` such a copy is followed.
    fn is_refused(&self, key: &Key, container: &Container) -> Result<bool> {
        if key.as_str().contains("/lives/") {
            return Ok(false);
        }
        let to = self.pair.to.store();
        let hash = match container.is_opaque() {
            true => container.identity().hash,
            false => to.public_hash(&container.identity().hash)?,
        };
        let digits: String = hex(&hash).chars().take(16).collect();
        let prefix = self.pair.scope.prefix();
        let conflict = Key::new(format!("{prefix}/conflicts/{}-{digits}", key.name()))?;
        Ok(to.head(&conflict)?.is_some())
    }

    /// An object of which the original says nothing any more is none that was refused here. A segment has to be joined to its neighbours, too, as
    /// far as links tell.
    fn check_neighbours(&self, key: &Key, container: &Container) -> Result<()> {
        if self.is_refused(key, container)? {
            return Err(err!(
                Conflict,
                "it is the copy of another server that was refused here under this name"
            ));
        }
        if container.kind() == Kind::History {
            return self.check_history(key);
        }
        let (Ok(name), Some(size)) = (key.name().parse::<SegmentName>(), self.segment_size) else {
            return Ok(());
        };
        if container.kind() != Kind::Segment {
            return Ok(());
        }
        let link = Link::read(container)?;
        let number = name.number(size)?;
        let to = self.pair.to.store();
        // In the same home: a neighbour elsewhere belongs to another life.
        let place = |number: Option<u64>| -> Option<(SegmentName, Key)> {
            let other = SegmentNumber(number?).name(name.timeline, size)?;
            let (home, log) = key.parent()?.rsplit_once('/')?;
            let other_log = format!("{:08X}", other.log);
            let is_alike = log.len() == other_log.len();
            let key = Key::new(format!("{home}/{other_log}/{other}")).ok();
            Some((other, key.filter(|_| is_alike)?))
        };
        let neighbour = |number: Option<u64>| -> Result<Option<(SegmentName, Link)>> {
            let Some((other, key)) = place(number) else {
                return Ok(None);
            };
            // One that cannot be asked may be the one that does not join it.
            let found = match Link::stored(to, &key) {
                Err(e) if healed::is_of_the_object(&e) => None,
                found => found?,
            };
            let found = found.filter(|(_, is_keyed)| *is_keyed == container.is_opaque());
            Ok(found.map(|(link, _)| (other, link)))
        };
        let differs = |first: Link, timeline, second: Link| {
            let joined = Brief::from(second).continues(Brief::from(first).own, timeline);
            joined == Joined::No && !Brief::from(second).is_first
        };
        let before = neighbour(number.0.checked_sub(1))?;
        let after = neighbour(number.0.checked_add(1))?;
        let is_other = before.is_some_and(|(b, before)| differs(before, b.timeline, link))
            || after.is_some_and(|(_, after)| differs(link, name.timeline, after));
        match is_other {
            false => Ok(()),
            true => Err(err!(
                Conflict,
                "it is the WAL of another server: the segments beside the damaged one do not join it"
            )),
        }
    }

    /// Two servers may have been promoted to one timeline. So a history of which the original says nothing any more has to come from where the
    /// WAL of that timeline is the same as here.
    fn check_history(&self, key: &Key) -> Result<()> {
        let (to, from) = (self.pair.to.store(), self.pair.from.store());
        let timeline = key.parent().unwrap_or_default();
        for log in to.list(timeline)?.iter().filter(|log| log.is_prefix) {
            for listed in to.list(&format!("{timeline}/{}", log.name))? {
                if listed.name.parse::<SegmentName>().is_err() {
                    continue;
                }
                let segment = Key::new(format!("{timeline}/{}/{}", log.name, listed.name))?;
                match is_same((to, &segment), (from, &segment)) {
                    Ok(Some(true)) => return Ok(()),
                    Ok(Some(false)) => {
                        return Err(err!(
                            Conflict,
                            "it is the history of another server: the WAL of its timeline is not the one that is here"
                        ));
                    }
                    Ok(None) => {}
                    Err(e) if is_of_one(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Err(err!(
            Conflict,
            "nothing proves that it is the history of the server whose WAL is here: the two repositories have no segment of its timeline in common"
        ))
    }

    /// Returns the facts that an object has to agree with.
    pub(super) fn proof(&self, key: &Key) -> Result<Proof> {
        let pair = &self.pair;
        let to = pair.to.store();
        let relative = key
            .as_str()
            .strip_prefix(&format!("{}/", pair.scope.prefix()));
        let parts: Vec<&str> = relative.unwrap_or_default().split('/').collect();
        match parts.as_slice() {
            ["packs" | "layers", id, number] => {
                let part: PartName = format!("{id}/{number}").parse()?;
                // The MAC of a sealed part covers its key and all of its bytes.
                if pair.is_sealed() {
                    return Ok(Proof::Layers {
                        part,
                        layers: Vec::new(),
                        has_others: true,
                    });
                }
                match parts.first() {
                    Some(&"packs") => self.pack(part),
                    _ => self.layers(part),
                }
            }
            ["backups", id, "manifest"] => Ok(Proof::Root(id.parse()?)),
            ["backups", id, name] if healed::is_container(key) => {
                let id: BackupId = id.parse()?;
                let hash = match (pair.is_sealed(), BackupRoot::read(to, &pair.scope, &id)) {
                    (true, _) => None,
                    (false, root) => {
                        let root = root?.ok_or_else(|| err!(NotFound, "the backup has no root"))?;
                        let hash = match *name {
                            "server-manifest" => root.content.server_manifest,
                            _ => root.content.relations.map(|list| list.hash),
                        };
                        Some(hash.ok_or_else(|| err!(NotFound, "the root names no such object"))?)
                    }
                };
                Ok(Proof::Container {
                    own: self.own(key),
                    hash,
                })
            }
            _ if healed::is_container(key) => Ok(Proof::Container {
                own: self.own(key),
                hash: None,
            }),
            _ => Err(err!(
                Unsupported,
                "objects of this kind have no healed copies"
            )),
        }
    }

    /// Returns the identity that a damaged original still shows.
    fn own(&self, key: &Key) -> Option<(Kind, Identity)> {
        let to = self.pair.to.store();
        to.forget_healed(key);
        let object = to.open(key).ok()??;
        let container = Container::open_under(key, object).ok()?;
        Some((container.kind(), container.identity().clone()))
    }

    /// Calls `see` with each root that can be read, until it has found something.
    fn roots<T>(
        &self,
        see: &mut dyn FnMut(&SnapshotRoot<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let (store, scope) = (self.pair.to.store(), &self.pair.scope);
        let mut failed = None;
        for listed in store.list(&scope.backups())? {
            let Ok(id) = listed.name.parse::<BackupId>() else {
                continue;
            };
            let found = match scope.kind() {
                None => BackupRoot::read(store, scope, &id)
                    .and_then(|root| root.map_or(Ok(None), |root| see(&(&root).into()))),
                Some(_) => AuxRoot::read(store, scope, &id)
                    .and_then(|root| root.map_or(Ok(None), |root| see(&(&root).into()))),
            };
            match found {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                // One backup whose root or layers are lost must not keep the others from being healed.
                Err(e) if e.is_damage() => failed = Some(e),
                Err(e) => return Err(e),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn pack(&self, part: PartName) -> Result<Proof> {
        let (store, scope) = (self.pair.to.store(), &self.pair.scope);
        let found = self.roots(&mut |root| {
            let Some(named) = root.map.packs.iter().find(|p| p.key == part) else {
                return Ok(None);
            };
            let snapshot = Snapshot::open(store, scope, *root)?;
            let hash = snapshot.pack_hash(&part).copied();
            Ok(hash.map(|hash| (root.naming, hash, named.size_bytes)))
        })?;
        let (naming, hash, size_bytes) =
            found.ok_or_else(|| err!(NotFound, "no backup names it"))?;
        Ok(Proof::Pack {
            part,
            naming,
            hash,
            size_bytes,
        })
    }

    fn layers(&self, part: PartName) -> Result<Proof> {
        let mut known: Layers = Layers::new();
        let mut has_own_root = false;
        self.roots(&mut |root| -> Result<Option<()>> {
            has_own_root |= root.head.id == part.id;
            known.extend(layers_of(root.map, &part)?);
            Ok(None)
        })
        .or_else(|e| match known.is_empty() {
            true => Err(e),
            false => Ok(None),
        })?;
        if known.is_empty() {
            return Err(err!(NotFound, "no backup names it"));
        }
        Ok(Proof::Layers {
            part,
            layers: known.into_iter().map(|(o, (l, h))| (o, l, h)).collect(),
            has_others: !has_own_root,
        })
    }
}

/// Length and hash of a layer, by its offset.
type Layers = BTreeMap<u64, (u64, [u8; 32])>;

fn layers_of(map: &Map, part: &PartName) -> Result<Layers> {
    let layers = map.shards.iter().flat_map(|s| &s.layers);
    let own = layers.filter(|layer| layer.key == *part);
    own.map(|layer| {
        let hash = blake3::Hash::from_hex(&layer.hash)
            .map_err(|e| err!(Damaged, "the root has no hash of a layer").source(e))?;
        Ok((layer.offset, (layer.length, *hash.as_bytes())))
    })
    .collect()
}

/// Requires that a container is what the damaged original says that it was.
fn same_as(own: &(Kind, Identity), container: &Container) -> Result<()> {
    match container.kind() == own.0 && *container.identity() == own.1 {
        true => Ok(()),
        false => Err(err!(
            Conflict,
            "it is other content than the damaged object held"
        )),
    }
}

/// Whether an error of [`Healing::heal`] is about this object, so that others can still be healed.
pub fn is_of_one(e: &crate::error::Error) -> bool {
    is_of_the_object(e)
        || e.is_frozen()
        || matches!(
            e.code(),
            Code::NotFound
                | Code::Conflict
                | Code::Unsupported
                | Code::WrongCluster
                | Code::WalName
        )
}
