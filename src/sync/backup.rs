//! One backup: reserved and claimed, then its WAL, packs, layers and the server's manifest, and its root when all of that is proven.

use std::collections::{BTreeMap, BTreeSet};

use super::copy::{Copied, Tee};
use super::wal::Wal;
use super::{Transfer, is_of_the_object};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::repo::claim::Claim;
use crate::repo::container::Kind;
use crate::repo::event;
use crate::repo::id::{BackupId, PartName};
use crate::repo::json;
use crate::repo::root::outline::Outline;
use crate::repo::root::{BackupRoot, LayerRef, PackRef};
use crate::repo::scope;
use crate::snapshot::layer::Layer;
use crate::snapshot::pack::PackReader;
use crate::snapshot::reader::Snapshot;
use crate::store::{Key, Object, Published, Store, get, put};

/// An object of a backup.
enum Part<'a> {
    Pack(&'a PackRef),
    /// A layer object with the layers in it, ascending by offset.
    Layers(&'a PartName, Vec<&'a LayerRef>),
}

impl Transfer<'_> {
    /// Copies a backup; what is wrong with it is taken down.
    ///
    /// # Errors
    /// What the stores say, but for damage.
    pub(super) fn copy_backup(&self, id: &BackupId, wal: &Wal<'_>) -> Result<()> {
        self.check_stop()?;
        let copied = self.copy_claimed(id, wal);
        match copied {
            Ok(true) => {
                self.locked().backups.push(id.clone());
                self.host.progress.note(&format!("copied backup {id}"));
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(e) if is_of_the_object(&e) => {
                self.problem(&format!("backup {id}"), &e);
                Ok(())
            }
            Err(e) => Err(e.context(format!("copy backup \"{id}\""))),
        }
    }

    /// `false` when it is not to be had any more.
    fn copy_claimed(&self, id: &BackupId, wal: &Wal<'_>) -> Result<bool> {
        let key = self.layout.manifest(id);
        let store = self.from.store();
        // An encrypted root is copied as it is stored.
        let (root, whole) = match self.is_sealed() {
            true => (Outline::read(store, &self.layout, id)?, None),
            false => {
                let read = BackupRoot::read(store, &self.layout, id)?;
                let whole = read.zip(get(store, &key, json::ROOT_LIMIT_BYTES)?);
                let root = whole.as_ref().map(|(root, _)| Outline::of(root));
                (root.transpose()?, whole)
            }
        };
        let Some(root) = root else {
            return Ok(false);
        };
        root.check_positions()?;
        if wal.is_torn(root.timeline) || wal.is_torn(root.start_timeline) {
            return Err(err!(
                Conflict,
                "the two repositories have different WAL of its timeline"
            ));
        }
        self.reserve(id)?;
        let start = Some((root.start_timeline, root.start_lsn));
        let (from, to) = (self.from.store(), self.to.store());
        let mut there = Claim::take((to, &self.layout), self.writer(), id, "sync", start)?;
        let here = Claim::take((from, &self.layout), self.writer(), id, "sync", start);
        let mut here = Claim::if_possible(
            here,
            (from, id),
            "while it is copied",
            self.host.progress.as_ref(),
        )?;
        // What it deletes meanwhile is found missing below, and copied by the next run.
        self.wait_for_deletion(&mut || there.keep())?;
        let copied = self.copy_content(&root, whole.as_ref(), wal, &mut there, here.as_mut());
        if let Some(here) = here {
            here.release(self.host.progress.as_ref());
        }
        there.release(self.host.progress.as_ref());
        copied
    }

    /// Reserves the id there, by the same event as here.
    fn reserve(&self, id: &BackupId) -> Result<()> {
        let key = self.layout.begin(id);
        let copied = self.copy_small(&key, json::LIMIT_BYTES, &|bytes| {
            event::check(self.from.store(), &key, bytes)
        });
        match copied {
            Ok(Copied::Gone) => Err(err!(Damaged, "its reservation is missing")),
            Err(e) if e.code() == Code::Conflict => {
                Err(err!(Conflict, "another backup has the same id there").source(e))
            }
            copied => self.settle(key.as_str(), Ok(copied?)).map(|_| ()),
        }
    }

    fn copy_content(
        &self,
        root: &Outline,
        whole: Option<&(BackupRoot, Vec<u8>)>,
        wal: &Wal<'_>,
        there: &mut Claim<'_>,
        mut here: Option<&mut Claim<'_>>,
    ) -> Result<bool> {
        let events = event::read_all(self.from.store(), &self.layout, &root.id.to_string())?;
        if !event::standing(&events, "expire", "unexpire").is_empty() {
            self.host.progress.note(&format!(
                "backup {} was marked for deletion meanwhile, and is not copied",
                root.id
            ));
            return Ok(false);
        }
        let mut tick = || -> Result<()> {
            there.keep()?;
            here.as_mut().map_or(Ok(()), |claim| claim.keep())
        };
        let name = format!("copy backup {}", root.id);
        let packs = whole.map(|(whole, _)| whole.map.packs.iter().map(|p| p.size_bytes).sum());
        self.host.progress.phase(&name, packs);
        wal.copy_path(root, &mut tick)?;
        match whole {
            None => self.copy_sealed_parts(root, &mut tick)?,
            Some((whole, _)) => {
                let snapshot = Snapshot::open(self.from.store(), &self.layout, whole)?;
                self.copy_parts(whole, &snapshot, &mut tick)?;
                self.copy_server_manifest(whole)?;
            }
        }
        wal.prove(root)?;
        for store in [self.from.store(), self.to.store()] {
            self.check_life(root, store)?;
        }
        // A backup that is there and not yet pinned could be expired there.
        for pin in events.iter().filter(|e| !e.is_doubted) {
            if ["pin", "unpin"].contains(&pin.event.event.as_str()) {
                self.copy_event(&self.layout.event(&root.id.to_string(), &pin.name)?)?;
            }
        }
        there.check()?;
        if !self.commit(root, whole.map(|(_, bytes)| bytes.as_slice()))? {
            return Ok(false);
        }
        if let Err(e) = self.copy_completed(root, &events) {
            self.host.progress.warn(&format!(
                "backup {} is copied, but that could not be recorded: should its root be lost there, nothing will tell ({e})",
                root.id
            ));
        }
        Ok(true)
    }

    /// Records there that the root exists: by the event of here, which needs no key, else by an own one, where it can be proven.
    fn copy_completed(&self, root: &Outline, events: &[event::Recorded]) -> Result<()> {
        let id = root.id.to_string();
        let known = events
            .iter()
            .find(|e| e.event.event == "completed" && !e.is_doubted);
        if let Some(known) = known {
            return self.copy_event(&self.layout.event(&id, &known.name)?);
        }
        let is_provable =
            !self.is_sealed() || self.to.store().mac(&scope::marker(), b"")?.is_some();
        if is_provable {
            let writer = self.writer();
            writer.record(self.to.store(), &self.layout, &writer.completed(root))?;
        }
        Ok(())
    }

    /// Requires that the WAL in a repository is that of the backup's own server, by the segments in which it starts and stops.
    fn check_life(&self, root: &Outline, store: &dyn Store) -> Result<()> {
        let proof = root.wal_proof.as_ref();
        match proof
            .map(|proof| proof.disagreement(store, &self.layout))
            .transpose()?
            .flatten()
        {
            None => Ok(()),
            Some(name) => Err(err!(
                Conflict,
                "segment \"{name}\" in repository \"{}\" is another server's, not that of the backup's",
                store.location()
            )),
        }
    }

    /// Whether both sides are encrypted, with one key set: then nothing need be opened to be copied.
    fn is_sealed(&self) -> bool {
        self.from.store().encrypted().is_some()
    }

    fn copy_as_stored(&self, key: &Key) -> Result<Copied> {
        let unsealed = || err!(Damaged, "object \"{key}\" is not sealed");
        self.copy(key, &|_| Err(unsealed()), &|_| Err(unsealed()))
            .map_err(|e| e.context(format!("copy object \"{key}\"")))
    }

    fn copy_sealed_parts(
        &self,
        root: &Outline,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let packs = root.packs().map(|name| self.layout.pack(&name));
        let layers = root.layers().map(|name| self.layout.layer(&name));
        let keys: Vec<Key> = packs.chain(layers).collect();
        let one = |key: &Key| -> Result<()> {
            match self.copy_as_stored(key)? {
                Copied::Gone => Err(err!(Damaged, "object \"{key}\" is missing")),
                copied => self.settle(key.as_str(), Ok(copied)).map(|_| ()),
            }
        };
        self.side_by_side(&keys, &one, tick)?;
        let key = self.layout.server_manifest(&root.id);
        match self.copy_as_stored(&key)? {
            // Not every server gives one, and only the root tells.
            Copied::Gone => self.require_no_server_manifest(&root.id),
            copied => self.settle(key.as_str(), Ok(copied)).map(|_| ()),
        }
    }

    /// Requires that the server gave no manifest, as far as the keys at hand tell.
    fn require_no_server_manifest(&self, id: &BackupId) -> Result<()> {
        match BackupRoot::read(self.from.store(), &self.layout, id) {
            Ok(Some(root)) if root.content.server_manifest.is_some() => {
                Err(err!(Damaged, "the server's manifest is missing"))
            }
            Err(e) if e.code() != Code::Key => Err(e),
            _ => Ok(()),
        }
    }

    fn copy_parts(
        &self,
        root: &BackupRoot,
        snapshot: &Snapshot<'_>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut layers: BTreeMap<&PartName, Vec<&LayerRef>> = BTreeMap::new();
        for layer in root.map.shards.iter().flat_map(|s| &s.layers) {
            layers.entry(&layer.key).or_default().push(layer);
        }
        let have = self.parts_there(root)?;
        let packs = root.map.packs.iter().map(Part::Pack);
        let layers = layers.into_iter().map(|(name, mut layers)| {
            layers.sort_by_key(|l| l.offset);
            Part::Layers(name, layers)
        });
        let parts: Vec<Part<'_>> = packs.chain(layers).collect();
        let one = |part: &Part<'_>| -> Result<()> {
            let (key, copied) = match part {
                Part::Pack(pack) => (
                    self.layout.pack(&pack.key),
                    self.copy_pack(pack, snapshot, &have),
                ),
                Part::Layers(name, layers) => (
                    self.layout.layer(name),
                    self.copy_layers(root, name, layers, &have),
                ),
            };
            match copied {
                Ok(Copied::Gone) => Err(err!(Damaged, "object \"{key}\" is missing")),
                // One part that is damaged is the end of this backup, and the next one is tried.
                Err(e) => Err(e.context(format!("copy object \"{key}\""))),
                copied => self.settle(key.as_str(), copied).map(|_| ()),
            }
        };
        self.side_by_side(&parts, &one, tick)
    }

    /// Which parts an earlier run has left there.
    fn parts_there(&self, root: &BackupRoot) -> Result<BTreeSet<String>> {
        use crate::repo::id::PartKind;
        let mut ids: BTreeSet<&BackupId> = root.map.packs.iter().map(|p| &p.key.id).collect();
        ids.extend(
            root.map
                .shards
                .iter()
                .flat_map(|s| &s.layers)
                .map(|l| &l.key.id),
        );
        let mut have = BTreeSet::new();
        for id in ids {
            for kind in [PartKind::Layer, PartKind::Pack] {
                let prefix = self.layout.parts(kind, Some(id));
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
        let key = self.layout.pack(&pack.key);
        let open = |object: Box<dyn Object>| {
            let tag = self.layout.tag();
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
        self.copy(&key, &check, &is_same)
    }

    fn copy_layers(
        &self,
        root: &BackupRoot,
        name: &PartName,
        layers: &[&LayerRef],
        have: &BTreeSet<String>,
    ) -> Result<Copied> {
        let key = self.layout.layer(name);
        let open = |object: Box<dyn Object>, layer: &LayerRef| -> Result<Layer> {
            let hash = blake3::Hash::from_hex(&layer.hash)
                .map_err(|e| err!(Damaged, "the root has no hash of a layer").source(e))?;
            let place = (layer.offset, layer.length);
            let tag = self.layout.tag();
            Layer::open(object, place, hash.as_bytes(), name, tag)
        };
        let is_same = |object: Box<dyn Object>| -> Result<bool> {
            // The one open object serves all its layers.
            let object: std::sync::Arc<dyn Object> = object.into();
            for layer in layers {
                open(Box::new(Shared(std::sync::Arc::clone(&object))), layer)?;
            }
            Ok(true)
        };
        if have.contains(key.as_str()) {
            return self.compare(&key, &is_same);
        }
        // Only its own root names all that is in an object.
        let may_pass = name.id != root.head.id;
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
        self.copy(&key, &check, &is_same)
    }

    fn copy_server_manifest(&self, root: &BackupRoot) -> Result<()> {
        let Some(wanted) = root.content.server_manifest.as_deref() else {
            return Ok(());
        };
        let key = self.layout.server_manifest(&root.head.id);
        let copied = self.copy_container(&key, &|container| {
            let identity = container.identity();
            let is_own = container.kind() == Kind::ServerManifest
                && identity.name == "backup_manifest"
                && identity.system_identifier == self.layout.system_identifier()
                && blake3::Hash::from_bytes(identity.hash).to_hex().as_str() == wanted;
            match is_own {
                true => Ok(()),
                false => Err(err!(Damaged, "it is not the manifest of this backup")),
            }
        });
        match copied {
            Ok(Copied::Gone) => Err(err!(Damaged, "the server's manifest is missing")),
            Err(e) => Err(e.context(format!("copy object \"{key}\""))),
            copied => self.settle(key.as_str(), copied).map(|_| ()),
        }
    }

    /// From here on the backup exists there.
    fn commit(&self, root: &Outline, bytes: Option<&[u8]>) -> Result<bool> {
        let key = self.layout.manifest(&root.id);
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
struct Shared(std::sync::Arc<dyn Object>);

impl Object for Shared {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buffer, offset)
    }

    fn settle(&self) -> Result<()> {
        self.0.settle()
    }
}
