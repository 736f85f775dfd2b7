//! The objects of one backup of any content: reservation, packs, layers, root.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::copy::{Copied, Tee, is_same_sealed};
use super::{Pair, is_of_the_object};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::repo::event;
use crate::repo::healed;
use crate::repo::id::{BackupId, PartKind, PartName};
use crate::repo::json;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::root::{BackupRoot, LayerRef, Map, PackRef};
use crate::repo::scope::{self, Scope};
use crate::snapshot::layer::Layer;
use crate::snapshot::pack::PackReader;
use crate::snapshot::reader::Snapshot;
use crate::store::{Key, Object, Published, get, put};

/// The packs and layers that a root names.
pub(super) type Parts = (Vec<PartName>, Vec<PartName>);

/// An object of a backup.
enum Part<'a> {
    Pack(&'a PackRef),
    /// A layer object with the layers in it, ascending by offset.
    Layers(&'a PartName, Vec<&'a LayerRef>),
}

impl Part<'_> {
    fn key(&self, scope: &Scope) -> Key {
        match self {
            Part::Pack(pack) => scope.pack(&pack.key),
            Part::Layers(name, _) => scope.layer(name),
        }
    }

    /// Stands for what its check compares: of an object with several layers, for each of them. None where the map leads to no hash.
    fn proofs(&self, key: &Key, snapshot: &Snapshot<'_>) -> Vec<Proof> {
        match self {
            Part::Pack(pack) => {
                let hash = snapshot.pack_hash(&pack.key);
                hash.map(|hash| proof(key, (0, pack.size_bytes), hash))
                    .into_iter()
                    .collect()
            }
            Part::Layers(_, layers) => layers
                .iter()
                .map(|layer| proof(key, (layer.offset, layer.length), layer.hash.as_bytes()))
                .collect(),
        }
    }
}

/// Key, place and hash of a part, in little room.
type Proof = [u8; 16];

fn proof(key: &Key, (offset, length): (u64, u64), hash: &[u8]) -> Proof {
    let whole = blake3::Hasher::new()
        .update(key.as_str().as_bytes())
        .update(&[0])
        .update(&offset.to_le_bytes())
        .update(&length.to_le_bytes())
        .update(hash)
        .finalize();
    let proof = whole.as_bytes().first_chunk::<16>();
    proof.copied().unwrap_or_default()
}

/// So many parts are remembered, which takes some megabytes.
const PROVEN_MAX: usize = 1 << 18;

/// The parts that a run has copied, or compared: backups that share one do not have it read again.
#[derive(Default)]
pub(super) struct Proven(Mutex<BTreeSet<Proof>>);

impl Proven {
    fn locked(&self) -> MutexGuard<'_, BTreeSet<Proof>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers parts. Those of before are forgotten where there are too many, and compared once more.
    fn add(&self, proofs: &[Proof]) {
        let mut all = self.locked();
        if all.len().saturating_add(proofs.len()) > PROVEN_MAX {
            all.clear();
        }
        all.extend(proofs);
    }

    fn has(&self, proofs: &[Proof]) -> bool {
        let all = self.locked();
        !proofs.is_empty() && proofs.iter().all(|proof| all.contains(proof))
    }
}

impl Pair<'_> {
    /// Reserves the id there, by the same event as here.
    pub(super) fn reserve(&self, id: &BackupId) -> Result<()> {
        let key = self.scope.begin(id);
        let copied = self.copy_small(&key, json::LIMIT_BYTES, &|bytes| {
            event::check(self.from.store(), &key, bytes)
        });
        match copied {
            Ok(Copied::Gone) => Err(err!(Damaged, "its reservation is missing")),
            Err(e) if e.code() == Code::Conflict => {
                Err(err!(Conflict, "another backup has the same id there").source(e))
            }
            copied => self.settle_some(&key, Ok(copied?)),
        }
    }

    /// Whether both sides are encrypted, with one key set: then nothing need be opened to be copied.
    pub(super) fn is_sealed(&self) -> bool {
        self.from.store().encrypted().is_some()
    }

    pub(super) fn copy_as_stored(&self, key: &Key) -> Result<Copied> {
        let unsealed = || err!(Damaged, "object \"{key}\" is not sealed");
        self.copy_healed(key, &|_| Err(unsealed()), &|_| Err(unsealed()))
            .map_err(|e| e.context(format!("copy object \"{key}\"")))
    }

    /// Copies encrypted packs and layers as they are stored.
    pub(super) fn copy_sealed_parts(
        &self,
        parts: Parts,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let have = self.named_there(&parts)?;
        let keys: Vec<Key> = self.keys_of(&parts).collect();
        let one = |key: &Key| -> Result<()> {
            let is_there = have.contains(key.as_str());
            // A root without keys names no hashes. In a key set a name is given once, so the name stands for the content.
            let proofs = [proof(key, (0, 0), b"")];
            if is_there && self.proven.has(&proofs) {
                return Ok(());
            }
            let copied = match is_there {
                true => self.compare_sealed(key),
                false => self.copy_as_stored(key),
            };
            match copied? {
                Copied::Gone => Err(err!(Damaged, "object \"{key}\" is missing")),
                copied => self.settle_part(key, Ok(copied), &proofs),
            }
        };
        self.side_by_side(&keys, &one, tick)
    }

    /// As [`Pair::settle`]; a part that is there now is not looked at again.
    fn settle_part(&self, key: &Key, copied: Result<Copied>, proofs: &[Proof]) -> Result<()> {
        if self.settle(key.as_str(), copied)? {
            self.proven.add(proofs);
        }
        Ok(())
    }

    /// Compares the feet of an encrypted part that both sides have. Nothing else of it is read: a backup inherits most of its parts.
    fn compare_sealed(&self, key: &Key) -> Result<Copied> {
        let here = match self.from.store().open(key) {
            Err(e) if is_of_the_object(&e) => None,
            here => here?,
        };
        let here = here.as_ref().and_then(|here| here.sealed());
        // A name is given once in a key set. So the MAC of the part there says whose it is, where the one here is damaged or lacking.
        if here.is_none() && self.to.store().mac(&scope::marker(), b"")?.is_none() {
            return self.copy_as_stored(key);
        }
        let is_same = |there: Box<dyn Object>| {
            let there = there.sealed();
            Ok(there.is_some_and(|there| here.is_none_or(|here| is_same_sealed(here, there))))
        };
        self.compare(key, &is_same)
            .map_err(|e| e.context(format!("compare object \"{key}\"")))
    }

    /// Copies packs and layers, each checked down to its frames and blocks.
    pub(super) fn copy_parts(
        &self,
        (id, map): (&BackupId, &Map),
        snapshot: &Snapshot<'_>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut layers: BTreeMap<&PartName, Vec<&LayerRef>> = BTreeMap::new();
        for layer in map.shards.iter().flat_map(|s| &s.layers) {
            layers.entry(&layer.key).or_default().push(layer);
        }
        let packs = map.packs.iter().map(|p| &p.key.id);
        let shards = map.shards.iter().flat_map(|s| &s.layers);
        let have = self.parts_there(packs.chain(shards.map(|l| &l.key.id)).collect())?;
        let packs = map.packs.iter().map(Part::Pack);
        let layers = layers.into_iter().map(|(name, mut layers)| {
            layers.sort_by_key(|l| l.offset);
            Part::Layers(name, layers)
        });
        let parts: Vec<Part<'_>> = packs.chain(layers).collect();
        let one = |part: &Part<'_>| -> Result<()> {
            let key = part.key(&self.scope);
            let proofs = part.proofs(&key, snapshot);
            // The listing is of now: what was deleted there since is copied again.
            if have.contains(key.as_str()) && self.proven.has(&proofs) {
                if let Part::Pack(pack) = part {
                    self.host.progress.advance(pack.size_bytes);
                }
                return Ok(());
            }
            let copied = match part {
                Part::Pack(pack) => self.copy_pack(pack, snapshot, &have),
                Part::Layers(name, layers) => self.copy_layers(id, name, layers, &have),
            };
            match copied {
                Ok(Copied::Gone) => Err(err!(Damaged, "object \"{key}\" is missing")),
                // One part that is damaged is the end of this backup, and the next one is tried.
                Err(e) => Err(e.context(format!("copy object \"{key}\""))),
                copied => self.settle_part(&key, copied, &proofs),
            }
        };
        self.side_by_side(&parts, &one, tick)
    }

    /// Requires that every part which the root names is there, before the root is: an older "pitr expire" heeds no claim below a tombstone.
    fn require_parts(&self, parts: &Parts) -> Result<()> {
        fault::pause("sync-commit");
        let have = self.named_there(parts)?;
        match self.keys_of(parts).find(|key| !have.contains(key.as_str())) {
            Some(key) => Err(err!(
                Conflict,
                "object \"{key}\" was deleted there meanwhile: run the command again"
            )),
            None => Ok(()),
        }
    }

    fn keys_of(&self, (packs, layers): &Parts) -> impl Iterator<Item = Key> {
        let packs = packs.iter().map(|name| self.scope.pack(name));
        packs.chain(layers.iter().map(|name| self.scope.layer(name)))
    }

    /// The parts there, of the backups that these are of.
    fn named_there(&self, (packs, layers): &Parts) -> Result<BTreeSet<String>> {
        let ids = packs.iter().chain(layers).map(|name| &name.id);
        self.parts_there(ids.collect())
    }

    /// The parts below these ids that are there.
    fn parts_there(&self, ids: BTreeSet<&BackupId>) -> Result<BTreeSet<String>> {
        let mut have = BTreeSet::new();
        for id in ids {
            for kind in [PartKind::Layer, PartKind::Pack] {
                let prefix = self.scope.parts(kind, Some(id));
                for listed in self.to.store().list(&prefix)? {
                    have.insert(format!("{prefix}/{}", listed.name));
                }
            }
        }
        Ok(have)
    }

    fn copy_pack(
        &self,
        pack: &PackRef,
        snapshot: &Snapshot<'_>,
        have: &BTreeSet<String>,
    ) -> Result<Copied> {
        let key = self.scope.pack(&pack.key);
        let open = |object: Box<dyn Object>| {
            let tag = self.scope.tag();
            PackReader::open(object, &pack.key, tag, snapshot.naming())
        };
        let is_own = |reader: &PackReader| {
            snapshot.pack_hash(&pack.key) == Some(reader.hash())
                && reader.stored_bytes() == pack.size_bytes
        };
        let is_same = |object: Box<dyn Object>| open(object).map(|reader| is_own(&reader));
        if have.contains(key.as_str()) {
            self.host.progress.advance(pack.size_bytes);
            return self.compare(&key, &is_same);
        }
        let check = |tee: &Tee| -> Result<()> {
            let reader = open(tee.object())?;
            if !is_own(&reader) {
                return Err(err!(Damaged, "it is not the pack that the map leads to"));
            }
            for number in 0..reader.frame_count() {
                self.check_stop()?;
                let frame = reader
                    .entry(number)
                    .map_or(0, |e| u64::from(e.stored_bytes));
                reader
                    .frame(number)
                    .map_err(|e| e.context(format!("read frame {number}")))?;
                self.host.progress.advance(frame);
            }
            reader.page_hashes()?;
            tee.pass(tee.size_bytes(), false)
        };
        self.copy_healed(&key, &check, &is_same)
    }

    fn copy_layers(
        &self,
        own: &BackupId,
        name: &PartName,
        layers: &[&LayerRef],
        have: &BTreeSet<String>,
    ) -> Result<Copied> {
        let key = self.scope.layer(name);
        let open = |object: Box<dyn Object>, layer: &LayerRef| -> Result<Layer> {
            let hash = blake3::Hash::from_hex(&layer.hash)
                .map_err(|e| err!(Damaged, "the root has no hash of a layer").source(e))?;
            let place = (layer.offset, layer.length);
            let tag = self.scope.tag();
            Layer::open(object, place, hash.as_bytes(), name, tag)
        };
        let is_same = |object: Box<dyn Object>| -> Result<bool> {
            // The one open object serves all its layers.
            let object: std::sync::Arc<dyn Object> = object.into();
            for layer in layers {
                let inner = std::sync::Arc::clone(&object);
                open(Box::new(Shared { inner }), layer)?;
            }
            Ok(true)
        };
        if have.contains(key.as_str()) {
            return self.compare(&key, &is_same);
        }
        // Only its own root names all that is in an object.
        let may_pass = name.id != *own;
        let check = |tee: &Tee| -> Result<()> {
            for layer in layers {
                tee.pass(layer.offset, may_pass)?;
                let opened = open(tee.object(), layer)?;
                for number in 0..opened.block_count() {
                    opened.block(number)?;
                }
                tee.pass(layer.offset.saturating_add(layer.length), false)?;
            }
            tee.pass(tee.size_bytes(), may_pass)
        };
        self.copy_healed(&key, &check, &is_same)
    }

    /// The bytes of a root as it was read: those of its healed copy where the original is damaged.
    pub(super) fn root_bytes(&self, id: &BackupId) -> Result<Option<Vec<u8>>> {
        let key = self.scope.manifest(id);
        healed::read(self.from.store(), &key, |view| {
            let Some(object) = view.open(&key)? else {
                return Ok(None);
            };
            self.check_root(object.as_ref(), id)?;
            get(view, &key, json::ROOT_LIMIT_BYTES)
        })
    }

    /// Checks the root of a backup.
    pub(super) fn check_root(&self, object: &dyn Object, id: &BackupId) -> Result<()> {
        match self.scope.kind() {
            None => BackupRoot::check(object, &self.scope, id),
            Some(_) => AuxRoot::check(object, &self.scope, id),
        }
    }

    /// Has the other side keep for another period what earlier backups have stored there and this one needs, and what opens the repository.
    /// The backup is copied where it cannot. `tick` is called meanwhile.
    ///
    /// # Errors
    /// Those of `tick`.
    pub(super) fn extend_locks(
        &self,
        id: &BackupId,
        (packs, layers): &Parts,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let packs = packs.iter().map(|name| (PartKind::Pack, name));
        let layers = layers.iter().map(|name| (PartKind::Layer, name));
        let foreign = packs.chain(layers).filter(|(_, name)| name.id != *id);
        let mut places: BTreeSet<String> = foreign
            .map(|(kind, name)| self.scope.parts(kind, Some(&name.id)))
            .collect();
        let fixed = [scope::marker(), self.scope.registration()];
        places.extend(fixed.map(|key| key.to_string()));
        places.insert(scope::KEYS.to_owned());
        for place in places {
            let mut is_stopped = false;
            let mut tick = || tick().inspect_err(|_| is_stopped = true);
            match self.to.store().extend_locks(&place, &mut tick) {
                Ok(_) => {}
                Err(e) if is_stopped => return Err(e),
                Err(e) => {
                    self.host.progress.warn(&format!(
                        "what backup \"{id}\" needs of earlier ones in \"{}\" can be deleted once its first lock ends: {e}",
                        self.to.store().location()
                    ));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// From here on the backup exists there.
    pub(super) fn commit(
        &self,
        (id, parts): (&BackupId, Parts),
        bytes: Option<&[u8]>,
    ) -> Result<bool> {
        self.require_parts(&parts)?;
        let key = self.scope.manifest(id);
        let Some(bytes) = bytes else {
            return match self.copy_as_stored(&key)? {
                Copied::Gone => Ok(false),
                copied => self.settle(key.as_str(), Ok(copied)),
            };
        };
        let published = put(self.to.store(), &key, bytes)
            .map_err(|e| Error::context(e, format!("write object \"{key}\"")))?;
        let copied = match published {
            Published::Created => Copied::Stored(bytes.len() as u64),
            Published::Exists => {
                let there = get(self.to.store(), &key, json::ROOT_LIMIT_BYTES)?;
                if there.as_deref() != Some(bytes) {
                    return Err(err!(
                        Conflict,
                        "something else took its place there meanwhile: another backup, or pitr expire gave the id up"
                    ));
                }
                Copied::There
            }
        };
        self.settle(key.as_str(), Ok(copied))
    }
}

/// An object that several readers have open.
pub(super) struct Shared {
    pub(super) inner: std::sync::Arc<dyn Object>,
}

impl Object for Shared {
    crate::store::forward! {
        fn size_bytes(&self) -> u64;
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
        fn settle(&self) -> Result<()>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn y48_a_part_is_known_by_its_name_its_place_and_its_hash() {
        let key = |n: u32| Key::new(format!("clusters/main/7/packs/a/{n:06}")).unwrap();
        let one = proof(&key(1), (0, 7), &[1; 32]);
        let proven = Proven::default();
        assert!(!proven.has(&[one]) && !proven.has(&[]));
        proven.add(&[one]);
        assert!(proven.has(&[one]) && !proven.has(&[]));
        for other in [
            proof(&key(2), (0, 7), &[1; 32]),
            proof(&key(1), (1, 7), &[1; 32]),
            proof(&key(1), (0, 8), &[1; 32]),
            proof(&key(1), (0, 7), &[2; 32]),
        ] {
            assert!(!proven.has(&[other]) && !proven.has(&[one, other]));
        }
    }

    #[test]
    fn y48_no_more_parts_are_remembered_than_there_is_room_for() {
        let proven = Proven::default();
        let all: Vec<Proof> = (0..=PROVEN_MAX as u128).map(u128::to_le_bytes).collect();
        all.chunks(1000).for_each(|some| proven.add(some));
        assert!(proven.locked().len() <= PROVEN_MAX);
        assert!(proven.has(&all[PROVEN_MAX..]) && !proven.has(&all[..1]));
    }
}
