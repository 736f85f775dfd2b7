//! One backup: reserved and claimed, then its WAL, packs, layers and the server's manifest, and its root when all of that is proven.

use super::Transfer;
use super::copy::Copied;
use super::wal::Wal;
use crate::err;
use crate::error::{Code, Result};
use crate::repo::claim::Claim;
use crate::repo::container::Kind;
use crate::repo::id::BackupId;
use crate::repo::relations;
use crate::repo::root::BackupRoot;
use crate::repo::root::outline::Outline;
use crate::snapshot::reader::Snapshot;
use crate::store::Store;

impl Transfer<'_> {
    /// Copies a backup; what is wrong with it is taken down.
    ///
    /// # Errors
    /// Errors of the stores, but for damage.
    pub(super) fn copy_backup(&self, id: &BackupId, wal: &Wal<'_>) -> Result<()> {
        self.check_stop()?;
        self.settle_backup(id, self.copy_claimed(id, wal))
    }

    /// `false` when it is not to be had any more.
    fn copy_claimed(&self, id: &BackupId, wal: &Wal<'_>) -> Result<bool> {
        let store = self.from.store();
        // An encrypted root is copied as it is stored.
        let (root, whole) = match self.is_sealed() {
            true => (Outline::read(store, &self.layout, id)?, None),
            false => {
                let read = BackupRoot::read(store, &self.layout, id)?;
                let whole = read.zip(self.root_bytes(id)?);
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
        let claim = |id| Claim::take((to, &self.layout), self.writer(), id, "sync", start);
        let mut there = vec![claim(id)?];
        // Parts of former backups that are there stay there, too.
        for other in root.writers().filter(|other| *other != id) {
            there.push(claim(other)?);
        }
        let here = Claim::take((from, &self.layout), self.writer(), id, "sync", start);
        let mut here = Claim::if_possible(
            here,
            (from, id),
            "while it is copied",
            self.host.progress.as_ref(),
        )?;
        // Objects that a running deletion removes meanwhile are found missing below, and copied by the next run.
        self.wait_for_deletion(&mut || there.iter_mut().try_for_each(Claim::keep))?;
        let copied = self.copy_content(&root, whole.as_ref(), wal, &mut there, here.as_mut());
        if let Some(here) = here {
            here.release(self.host.progress.as_ref());
        }
        for claim in there {
            claim.release(self.host.progress.as_ref());
        }
        copied
    }

    fn copy_content(
        &self,
        root: &Outline,
        whole: Option<&(BackupRoot, Vec<u8>)>,
        wal: &Wal<'_>,
        there: &mut [Claim<'_>],
        mut here: Option<&mut Claim<'_>>,
    ) -> Result<bool> {
        let Some(events) = self.events_of(&root.id)? else {
            return Ok(false);
        };
        let mut tick = || -> Result<()> {
            there.iter_mut().try_for_each(Claim::keep)?;
            here.as_mut().map_or(Ok(()), |claim| claim.keep())
        };
        let name = format!("copy backup {}", root.id);
        let packs = whole.map(|(whole, _)| whole.map.packs.iter().map(|p| p.size_bytes).sum());
        self.host.progress.phase(&name, packs);
        wal.copy_path(root, &mut tick)?;
        match whole {
            None => {
                let parts = (root.packs().collect(), root.layers().collect());
                self.copy_sealed_parts(parts, &mut tick)?;
                self.copy_sealed_manifest(root)?;
            }
            Some((whole, _)) => {
                let snapshot = Snapshot::open(self.from.store(), &self.layout, whole)?;
                self.copy_parts((&whole.head.id, &whole.map), &snapshot, &mut tick)?;
                self.copy_server_manifest(whole)?;
                self.copy_relations(whole)?;
            }
        }
        wal.prove(root)?;
        for store in [self.from.store(), self.to.store()] {
            self.check_life(root, store)?;
        }
        let parts = (root.packs().collect(), root.layers().collect());
        let bytes = whole.map(|(_, bytes)| bytes.as_slice());
        self.complete((&root.id, parts, bytes), &events, there, &|writer| {
            writer.completed(root)
        })
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

    fn copy_sealed_manifest(&self, root: &Outline) -> Result<()> {
        let key = self.layout.server_manifest(&root.id);
        match self.copy_as_stored(&key)? {
            // Not every server gives one, and only the root tells.
            Copied::Gone => self.require_no_server_manifest(&root.id)?,
            copied => self.settle_some(&key, Ok(copied))?,
        }
        let key = self.layout.relations(&root.id);
        match self.copy_as_stored(&key)? {
            Copied::Gone => Ok(()),
            copied => self.settle_some(&key, Ok(copied)),
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

    /// Copies the list of relations, where there is one: a program that did not know it may have brought the backup here without.
    fn copy_relations(&self, root: &BackupRoot) -> Result<()> {
        let Some(wanted) = &root.content.relations else {
            return Ok(());
        };
        let key = self.layout.relations(&root.head.id);
        let system_identifier = self.layout.system_identifier();
        let copied = self.copy_container(&key, &|container| match relations::is_own(
            container,
            system_identifier,
            wanted,
        ) {
            true => Ok(()),
            false => Err(err!(Damaged, "it is not the list of this backup")),
        });
        match copied {
            Ok(Copied::Gone) => Ok(()),
            Err(e) => Err(e.context(format!("copy object \"{key}\""))),
            copied => self.settle_some(&key, copied),
        }
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
            copied => self.settle_some(&key, copied),
        }
    }
}
