//! The files of a backup of any content: the chain of hashes from the root to every frame, and the map against the frames.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::check::{Check, is_damage};
use super::{About, FindingKind};
use crate::err;
use crate::error::{Code, Result};
use crate::pg::segment::SegmentNumber;
use crate::repo::catalog::Parts;
use crate::repo::id::PartName;
use crate::snapshot::frame::check_pages;
use crate::snapshot::layer::Layer;
use crate::snapshot::reader::{PackOfSnapshot, Snapshot, SnapshotRoot, VisibleFrame};

/// Findings about one pack, at most.
const LISTED_MAX: usize = 20;

/// Which packs of a backup are read, and how much of them.
#[derive(Clone, Copy)]
pub(super) enum Chosen<'a> {
    /// Every byte of each.
    All,
    /// The directory of each, which says where its frames are. It shows that the pack is there, in its length, and the
    /// one that the map means.
    Directories,
    /// Every byte of these; nothing of others.
    Only(&'a Parts),
}

impl Chosen<'_> {
    fn contains(self, part: &PartName) -> bool {
        match self {
            Chosen::All | Chosen::Directories => true,
            Chosen::Only(parts) => {
                let of = parts.get(&part.id);
                of.is_some_and(|runs| runs.contains(SegmentNumber(part.number.into())))
            }
        }
    }
}

/// Looks at content that the map leads to and that passed every check of the engine.
pub(super) trait Inspect: Sync {
    fn frame(&self, _frame: &VisibleFrame) {}
}

/// Content of which nothing more is known.
pub(super) struct Nothing;

impl Inspect for Nothing {}

/// Reads every block of every layer, so that a finding names the object that has the fault.
pub(super) fn check_layers(work: &Check<'_>, root: &SnapshotRoot<'_>) -> Result<bool> {
    let mut is_sound = true;
    let mut known: BTreeMap<&PartName, u64> = BTreeMap::new();
    for reference in root.map.shards.iter().flat_map(|s| &s.layers) {
        work.host.check_stop()?;
        let key = work.scope.layer(&reference.key);
        let read = || -> Result<()> {
            let object = work
                .store
                .open(&key)?
                .ok_or_else(|| err!(Damaged, "the layer is missing"))?;
            let hash = blake3::Hash::from_hex(&reference.hash)
                .map_err(|e| err!(Damaged, "the root has no hash of the layer").source(e))?;
            let layer = Layer::open(
                object,
                (reference.offset, reference.length),
                hash.as_bytes(),
                &reference.key,
                work.scope.tag(),
            )?;
            (0..layer.block_count()).try_for_each(|n| layer.block(n).map(|_| ()))
        };
        let about = About::Backup(root.head.id.clone());
        is_sound &= work.settle(read(), key.as_str(), about)?.is_some();
        work.count(reference.length);
        *known.entry(&reference.key).or_default() += reference.length;
    }
    for (part, length) in known {
        // Only its own root names all that is in an object.
        let key = work.scope.layer(part);
        let stored = work.store.open(&key)?.map_or(0, |o| o.size_bytes());
        if is_sound && part.id == root.head.id && stored != length {
            let detail = format!("it has {stored} bytes, its layers have {length}");
            let about = About::Backup(root.head.id.clone());
            work.find(FindingKind::Damaged, key.as_str(), detail, about);
        }
    }
    Ok(is_sound)
}

/// Walks the whole map; returns how many bytes it expects from frames.
pub(super) fn mapped_bytes(work: &Check<'_>, snapshot: &Snapshot<'_>) -> Result<u64> {
    let mut mapped = 0_u64;
    for item in snapshot.items() {
        work.host.check_stop()?;
        mapped = mapped.saturating_add(item?.mapped_bytes);
    }
    Ok(mapped)
}

/// The data that the threads that read packs share.
struct Shared<'a> {
    work: &'a Check<'a>,
    root: SnapshotRoot<'a>,
    snapshot: &'a Snapshot<'a>,
    inspect: &'a dyn Inspect,
    chosen: Chosen<'a>,
    next: AtomicUsize,
    visible: AtomicU64,
    is_incomplete: AtomicUsize,
}

/// Reads packs. Returns `false` where something is missing, which the check then reports, or where not every byte was
/// to be read.
///
/// If all are read, the bytes that they hold are compared with the bytes that the map expects.
pub(super) fn read_packs(
    work: &Check<'_>,
    root: SnapshotRoot<'_>,
    (snapshot, chosen): (&Snapshot<'_>, Chosen<'_>),
    mapped: u64,
    inspect: &dyn Inspect,
) -> Result<bool> {
    let id = &root.head.id;
    let key = work.scope.manifest(id);
    let about = || About::Backup(id.clone());
    let shared = Shared {
        work,
        root,
        snapshot,
        inspect,
        chosen,
        next: AtomicUsize::new(0),
        visible: AtomicU64::new(0),
        is_incomplete: AtomicUsize::new(0),
    };
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..work.threads.max(1))
            .map(|_| scope.spawn(|| shared.packs()))
            .collect();
        let mut result = Ok(());
        for thread in threads {
            let read = thread
                .join()
                .unwrap_or_else(|_| Err(err!(Internal, "a reading thread panicked")));
            result = result.and(read);
        }
        result
    })?;
    let is_complete = shared.is_incomplete.load(Ordering::Relaxed) == 0;
    if !is_complete || !matches!(chosen, Chosen::All) {
        return Ok(false);
    }
    let visible = shared.visible.load(Ordering::Relaxed);
    if visible != mapped {
        let detail = format!("the map expects {mapped} bytes, the packs hold {visible} of them");
        work.find(FindingKind::Damaged, key.as_str(), detail, about());
    }
    Ok(true)
}

impl Shared<'_> {
    fn packs(&self) -> Result<()> {
        while let Some(pack) = {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            self.root.map.packs.get(index).map(|p| (index, p))
        } {
            let (index, part) = pack;
            if !self.chosen.contains(&part.key) {
                continue;
            }
            self.work.host.check_stop()?;
            let key = self.work.scope.pack(&part.key);
            let about = || About::Backup(self.root.head.id.clone());
            let opened = self.snapshot.pack(index);
            match self.work.settle(opened, key.as_str(), about())? {
                Some(_) if matches!(self.chosen, Chosen::Directories) => self.work.count(0),
                Some(pack) => {
                    if self.frames(&pack, key.as_str())? {
                        self.work.read_pack(&part.key);
                    }
                }
                None => {
                    self.is_incomplete.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Reads every frame of a pack. `true` when each of them passed.
    fn frames(&self, pack: &PackOfSnapshot<'_, '_>, key: &str) -> Result<bool> {
        self.work.count(pack.reader().stored_bytes());
        let about = || About::Backup(self.root.head.id.clone());
        let hashes = pack.reader().page_hashes();
        let hashes = self.work.settle(hashes, key, about())?;
        let mut at = 0;
        let mut found = 0;
        for number in 0..pack.frame_count() {
            self.work.host.check_stop()?;
            let count = pack
                .reader()
                .entry(number)
                .map_or(0, |e| e.page_hashes as usize);
            let own = hashes.as_deref().and_then(|h| h.get(at..at + count));
            at += count;
            let frame = pack.frame(number).and_then(|frame| {
                if let Some(own) = own {
                    check_pages(frame.frame(), own)?;
                }
                Ok(frame)
            });
            match frame {
                Ok(frame) => {
                    let bytes = frame.visible_bytes();
                    self.visible.fetch_add(bytes, Ordering::Relaxed);
                    self.work.host.progress.advance(bytes);
                    self.inspect.frame(&frame);
                }
                Err(e) if is_damage(&e) => {
                    self.is_incomplete.fetch_add(1, Ordering::Relaxed);
                    found += 1;
                    match found > LISTED_MAX {
                        true => self.work.find_more(FindingKind::Damaged, about(), 1),
                        false => {
                            self.work
                                .find(FindingKind::Damaged, key, e.to_string(), about());
                        }
                    }
                }
                Err(e) if e.code() == Code::Unsupported => {
                    self.is_incomplete.fetch_add(1, Ordering::Relaxed);
                    self.work.pass_over(&e, key, about());
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(found == 0 && hashes.is_some())
    }
}
