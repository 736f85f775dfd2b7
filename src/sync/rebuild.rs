//! A damaged pack of a plain repository, healed from pages that other backups of the repository have, too.

use std::collections::BTreeMap;

use super::copy::Copied;
use super::heal::{Healing, Proof};
use crate::err;
use crate::error::Result;
use crate::repo::id::{BackupId, PartName};
use crate::repo::root::BackupRoot;
use crate::snapshot::pack::PackReader;
use crate::snapshot::reader::Snapshot;
use crate::snapshot::rebuilt::Rebuilt;
use crate::store::{Key, Object};

/// Damaged frames of a pack, at most: each is held in memory.
const FRAMES_MAX: usize = 64;

/// A damaged object, of which some bytes are known otherwise.
struct Patched {
    object: Box<dyn Object>,
    /// By offset.
    known: BTreeMap<u64, Vec<u8>>,
}

impl Object for Patched {
    fn size_bytes(&self) -> u64 {
        self.object.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.object.read_at(buffer, offset)?;
        let end = offset.saturating_add(buffer.len() as u64);
        for (at, bytes) in self.known.range(..end) {
            let skip = usize::try_from(offset.saturating_sub(*at)).unwrap_or(usize::MAX);
            let to = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
            let known = bytes.get(skip..).unwrap_or_default();
            let pairs = buffer.iter_mut().skip(to).zip(known);
            pairs.for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

impl Healing<'_> {
    /// Writes a healed copy of a damaged pack, whose damaged frames are put together from other backups of the same repository; returns the key
    /// of what was written, or would be.
    ///
    /// # Errors
    /// `Damaged`, `NotFound` and `Unsupported` say why that cannot be; what the store says.
    pub fn rebuild(&self, key: &Key) -> Result<Key> {
        let repository = self.repository();
        let store = repository.store();
        if repository.marker().key_set.is_some() {
            return Err(err!(
                Unsupported,
                "frames of an encrypted pack are not put together again"
            ));
        }
        if self.scope().kind().is_some() {
            return Err(err!(
                Unsupported,
                "packs of clusters alone are put together again"
            ));
        }
        let proof = self.proof(key)?;
        let Proof::Pack {
            part,
            naming,
            hash,
            size_bytes,
        } = &proof
        else {
            return Err(err!(Unsupported, "packs alone are put together again"));
        };
        store.forget_healed(key);
        let open = || {
            let object = store.open(key)?;
            object.ok_or_else(|| err!(NotFound, "nothing of it is left"))
        };
        let pack = self.open_pack(open()?, (part, *naming), (hash, *size_bytes))?;
        let mut lost = self.lost(&pack)?;
        self.find(&mut lost, part)?;
        let mut known = BTreeMap::new();
        for frame in &lost {
            if !frame.is_whole() {
                return Err(err!(
                    NotFound,
                    "no other backup has all pages of its frame {}",
                    frame.number()
                ));
            }
            known.insert(frame.at(), frame.stored()?);
        }
        let target = self.free_copy(key)?;
        let patched = Patched {
            object: open()?,
            known,
        };
        match self.write_proven(Box::new(patched), (key, &target), &proof)? {
            Copied::Gone => Err(err!(NotFound, "it has gone meanwhile")),
            Copied::Stored(_) | Copied::There => {
                store.forget_healed(key);
                Ok(target)
            }
        }
    }

    /// The frames that fail a check.
    fn lost(&self, pack: &PackReader) -> Result<Vec<Rebuilt>> {
        let hashes = pack.page_hashes()?;
        let mut rest = hashes.as_slice();
        let mut lost = Vec::new();
        for number in 0..pack.frame_count() {
            self.check_stop()?;
            let Some(entry) = pack.entry(number) else {
                continue;
            };
            let pages = rest.split_at_checked(entry.page_hashes as usize);
            let (own, behind) = pages.unwrap_or((rest, &[]));
            rest = behind;
            match pack.frame(number) {
                Ok(_) => {}
                Err(e) if e.is_damage() => lost.push(Rebuilt::of(pack, number, *entry, own)?),
                Err(e) => return Err(e),
            }
            if lost.len() > FRAMES_MAX {
                return Err(err!(
                    Damaged,
                    "more than {FRAMES_MAX} of its frames are damaged"
                ));
            }
        }
        Ok(lost)
    }

    /// Looks for the pages of frames in one backup after another, the newest first.
    fn find(&self, lost: &mut [Rebuilt], part: &PartName) -> Result<()> {
        let (store, scope) = (self.repository().store(), self.scope());
        let listed = store.list(&scope.backups())?;
        let ids = listed
            .iter()
            .filter_map(|l| l.name.parse::<BackupId>().ok());
        let mut ids: Vec<BackupId> = ids.collect();
        ids.sort();
        for id in ids.iter().rev() {
            self.check_stop()?;
            if lost.iter().all(Rebuilt::is_whole) {
                return Ok(());
            }
            // A backup that is damaged itself may not tell; the others do.
            let taken = BackupRoot::read(store, scope, id).and_then(|root| {
                let Some(root) = root else {
                    return Ok(());
                };
                let snapshot = Snapshot::open(store, scope, &root)?;
                let lacking = lost.iter_mut().filter(|frame| !frame.is_whole());
                lacking
                    .into_iter()
                    .try_for_each(|frame| frame.take(&snapshot, part))
            });
            match taken {
                Err(e) if !e.is_damage() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}
