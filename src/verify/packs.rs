//! The files of a backup of any content: the chain of hashes from the root to every frame, and the map against the frames.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::check::{Check, is_damage, panicked};
use super::looked::{self, Identity, Verdict};
use super::{About, FindingKind};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::SegmentNumber;
use crate::repo::catalog::Parts;
use crate::repo::healed;
use crate::repo::id::PartName;
use crate::repo::root::PackRef;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::frame::{Frame, check_pages};
use crate::snapshot::layer::Layer;
use crate::snapshot::piece::WholeChunk;
use crate::snapshot::reader::{PackOfSnapshot, Snapshot, SnapshotRoot, VisibleFrame, Watch};
use crate::snapshot::uses::{ChunkPlace, Record, Uses};
use crate::store::Store;

/// Findings about one pack, at most.
const LISTED_MAX: usize = 20;

/// Which packs of a backup are read, and how much of them.
#[derive(Clone, Copy)]
pub(super) enum Chosen<'a> {
    /// Every byte of each; what they hold is compared with the map.
    All,
    /// Every byte of each that this run has not read as another backup's; the bytes of files are not counted.
    Rest,
    /// The directory of each, which says where its frames are. It shows that the pack is there, in its length, and the
    /// one that the map means.
    Directories,
    /// Every byte of these; nothing of others.
    Only(&'a Parts),
}

impl Chosen<'_> {
    fn contains(self, part: &PartName) -> bool {
        match self {
            Chosen::All | Chosen::Rest | Chosen::Directories => true,
            Chosen::Only(parts) => {
                let of = parts.get(&part.id);
                of.is_some_and(|runs| runs.contains(SegmentNumber(part.number.into())))
            }
        }
    }

    /// Returns what is read of a snapshot: where no pack was read before, the rest is all, and is compared.
    pub fn of(self, work: &Check<'_>, snapshot: &Snapshot<'_>) -> Self {
        let was_read = |part: &PackRef| {
            let pack = looked::pack(part, snapshot.pack_hash(&part.key));
            work.looked.verdict(&pack) == Some(Verdict::Whole)
        };
        match self {
            Chosen::Rest if !snapshot.packs().iter().any(was_read) => Chosen::All,
            other => other,
        }
    }
}

/// Characters of a path in a finding, at most.
const SHOWN_CHARS: usize = 400;

/// Looks at content that the map leads to and that passed every check of the engine.
pub(super) trait Inspect: Sync {
    fn frame(&self, _frame: &VisibleFrame) {}

    /// Whether no backup that needs other bytes of the frame can find a fault in them that [`Inspect::frame`] looks for.
    fn is_clean(&self, _frame: &VisibleFrame) -> bool {
        true
    }
}

/// Content of which nothing more is known.
pub(super) struct Nothing;

impl Inspect for Nothing {}

/// Reads every block of every layer, so that a finding names the object that has the fault. A layer that has passed is not read again.
pub(super) fn check_layers(work: &Check<'_>, root: &SnapshotRoot<'_>) -> Result<bool> {
    let mut is_sound = true;
    let mut known: BTreeMap<&PartName, u64> = BTreeMap::new();
    for reference in root.map.shards.iter().flat_map(|s| &s.layers) {
        work.host.check_stop()?;
        work.map_bytes
            .fetch_add(reference.length, Ordering::Relaxed);
        *known.entry(&reference.key).or_default() += reference.length;
        let layer = looked::layer(reference);
        if work.looked.verdict(&layer).is_some() {
            continue;
        }
        let key = work.scope.layer(&reference.key);
        let read = |store: &dyn Store| -> Result<()> {
            let object = store
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
        let read = healed::read(work.store, &key, read);
        match work.settle(read, key.as_str(), about)? {
            Some(()) => work.looked.set(layer, Verdict::Sound),
            None => is_sound = false,
        }
        work.count(reference.length);
    }
    for (part, length) in known {
        // Only its own root names all that is in an object.
        let key = work.scope.layer(part);
        if !is_sound || part.id != root.head.id {
            continue;
        }
        let read = healed::read(work.store, &key, |store| {
            let stored = store.open(&key)?.map_or(0, |o| o.size_bytes());
            match stored == length {
                true => Ok(()),
                false => Err(err!(
                    Damaged,
                    "it has {stored} bytes, its layers have {length}"
                )),
            }
        });
        let about = About::Backup(root.head.id.clone());
        work.settle(read, key.as_str(), about)?;
    }
    Ok(is_sound)
}

/// The content that a map expects of packs.
pub(super) struct Mapped {
    /// Bytes of files in extents of their own.
    bytes: u64,
    /// Chunks, and the files that need them.
    uses: Mutex<Uses>,
}

impl Mapped {
    /// Nothing: not all of the packs is compared with the map.
    pub(super) fn nothing(work: &Check<'_>) -> Mapped {
        Mapped {
            bytes: 0,
            uses: Mutex::new(Uses::new(&work.host.scratch)),
        }
    }

    /// Walks the whole map.
    fn of(work: &Check<'_>, snapshot: &Snapshot<'_>) -> Result<Mapped> {
        let mut uses = Uses::new(&work.host.scratch);
        let watch: &mut Watch<'_> = &mut |file, at, place| uses.add(file, at, place);
        let mut bytes = 0_u64;
        for item in snapshot.items_watched(watch) {
            work.host.check_stop()?;
            bytes = bytes.saturating_add(item?.mapped_bytes);
        }
        Ok(Mapped {
            bytes,
            uses: Mutex::new(uses),
        })
    }
}

/// The data that the threads that read packs share.
struct Shared<'a> {
    work: &'a Check<'a>,
    root: SnapshotRoot<'a>,
    snapshot: &'a Snapshot<'a>,
    inspect: &'a dyn Inspect,
    chosen: Chosen<'a>,
    /// Takes the chunks down that are there, where files are compared with them.
    uses: &'a Mutex<Uses>,
    /// Packs that were read as another backup's: their chunks are not taken down.
    known: Mutex<BTreeSet<usize>>,
    next: AtomicUsize,
    visible: AtomicU64,
    is_incomplete: AtomicUsize,
    /// A frame is of a newer version: nothing is known of its content.
    is_unread: AtomicBool,
}

/// Opens the map of a backup. `None` where it is damaged.
pub(super) fn open_map<'r>(
    work: &'r Check<'_>,
    root: SnapshotRoot<'r>,
) -> Result<Option<Snapshot<'r>>> {
    let opened = Snapshot::open(work.store, &work.scope, root);
    let opened = opened.map(|snapshot| snapshot.spooling(&work.host.scratch));
    let key = work.scope.manifest(&root.head.id);
    work.settle(opened, key.as_str(), About::Backup(root.head.id.clone()))
}

/// Opens the map of a backup, and walks all of it. `None` where it is damaged.
pub(super) fn walk_map<'r>(
    work: &'r Check<'_>,
    root: SnapshotRoot<'r>,
) -> Result<Option<(Snapshot<'r>, Mapped)>> {
    let Some(snapshot) = open_map(work, root)? else {
        return Ok(None);
    };
    let key = work.scope.manifest(&root.head.id);
    let about = About::Backup(root.head.id.clone());
    let mapped = work.settle(Mapped::of(work, &snapshot), key.as_str(), about)?;
    Ok(mapped.map(|mapped| (snapshot, mapped)))
}

/// Reads packs. Returns `false` where something is missing, which the check then reports, or where not every byte was
/// to be read.
///
/// If all are read, the bytes that they hold are compared with the bytes that the map expects.
pub(super) fn read_packs(
    work: &Check<'_>,
    root: SnapshotRoot<'_>,
    (snapshot, chosen): (&Snapshot<'_>, Chosen<'_>),
    mapped: Mapped,
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
        uses: &mapped.uses,
        known: Mutex::default(),
        next: AtomicUsize::new(0),
        visible: AtomicU64::new(0),
        is_incomplete: AtomicUsize::new(0),
        is_unread: AtomicBool::new(false),
    };
    work.on_threads(&|| shared.packs())?;
    let is_complete = shared.is_incomplete.load(Ordering::Relaxed) == 0;
    let visible = shared.visible.load(Ordering::Relaxed);
    let is_unread = shared.is_unread.load(Ordering::Relaxed);
    if !matches!(chosen, Chosen::All | Chosen::Rest) {
        return Ok(false);
    }
    let known = shared.known.into_inner().map_err(|_| panicked())?;
    let uses = mapped.uses.into_inner().map_err(|_| panicked())?;
    if !is_unread && let Some(detail) = without_content(uses, &known)? {
        work.find(FindingKind::Damaged, key.as_str(), detail, about());
    }
    if matches!(chosen, Chosen::Rest) {
        return Ok(false);
    }
    let expected = mapped.bytes;
    if is_complete && visible != expected {
        let detail = format!("the map expects {expected} bytes, the packs hold {visible} of them");
        work.find(FindingKind::Damaged, key.as_str(), detail, about());
    }
    Ok(is_complete)
}

/// Says which files need chunks that no pack holds whole; none where all are there. Packs that are known to be whole hold theirs.
fn without_content(uses: Uses, known: &BTreeSet<usize>) -> Result<Option<String>> {
    let mut there = None;
    let mut files: BTreeSet<FileKey> = BTreeSet::new();
    let mut is_more = false;
    uses.drain(&mut |record| {
        match record {
            Record::There(chunk) => there = Some(chunk),
            Record::Used(chunk, of) if there != Some(chunk) && !known.contains(&chunk.pack) => {
                is_more |= files.len() >= LISTED_MAX && !files.contains(&of.file);
                if files.len() < LISTED_MAX {
                    files.insert(of.file);
                }
            }
            Record::Used(..) => {}
        }
        Ok(())
    })?;
    let names: Vec<String> = files.iter().map(shown).collect();
    let more = if is_more { ", and more" } else { "" };
    Ok(match names.is_empty() {
        true => None,
        false => Some(format!(
            "packs do not hold the content of these files whole: {}{more}",
            names.join(", ")
        )),
    })
}

fn shown(file: &FileKey) -> String {
    let path = file.path(Naming::Tree).escape_ascii().to_string();
    let short: String = path.chars().take(SHOWN_CHARS).collect();
    format!("\"{short}\"")
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
            let identity = looked::pack(part, self.snapshot.pack_hash(&part.key));
            if self.is_known(index, &identity)? {
                continue;
            }
            let key = self.work.scope.pack(&part.key);
            let about = || About::Backup(self.root.head.id.clone());
            let opened = self.snapshot.pack(index);
            // A frozen pack may hold the chunks that no other does.
            if opened.as_ref().is_err_and(Error::is_frozen) {
                self.is_unread.store(true, Ordering::Relaxed);
                if self.work.store.has_archive() {
                    self.work.looked.set(identity, Verdict::Archived);
                }
            }
            match self.work.settle(opened, key.as_str(), about())? {
                Some(_) if matches!(self.chosen, Chosen::Directories) => {
                    self.work.count(0);
                    self.work.looked.set(identity, Verdict::Sound);
                }
                Some(pack) => {
                    if let Some(verdict) = self.frames(&pack, key.as_str())? {
                        self.work.read_pack(&part.key);
                        self.work.looked.set(identity, verdict);
                    }
                }
                None => {
                    self.is_incomplete.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Whether this run has looked at a pack as another backup's, and would find nothing else here.
    fn is_known(&self, index: usize, pack: &Identity) -> Result<bool> {
        match (self.work.looked.verdict(pack), self.chosen) {
            (Some(Verdict::Archived), _) => {
                self.is_unread.store(true, Ordering::Relaxed);
                self.is_incomplete.fetch_add(1, Ordering::Relaxed);
                self.work.pass_archived(&self.root.head.id);
                Ok(true)
            }
            (Some(Verdict::Whole), Chosen::Rest) => {
                let known = self.known.lock();
                let mut known = known.map_err(|_| panicked())?;
                known.insert(index);
                Ok(true)
            }
            (Some(Verdict::Whole | Verdict::Sound), Chosen::Directories) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Reads every frame of a pack. Returns the verdict when each of them passed.
    fn frames(&self, pack: &PackOfSnapshot<'_, '_>, key: &str) -> Result<Option<Verdict>> {
        self.work.count(pack.reader().stored_bytes());
        let about = || About::Backup(self.root.head.id.clone());
        let hashes = pack.page_hashes();
        let hashes = self.work.settle(hashes, key, about())?;
        let mut at = 0;
        let mut found = 0;
        // Packs of a portion are read as one backup's each, whatever the others see in them.
        let mut is_clean = !matches!(self.chosen, Chosen::Only(_));
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
                let chunk_bytes = self.chunks(pack.index(), frame.frame())?;
                Ok((frame, chunk_bytes))
            });
            match frame {
                Ok((frame, chunk_bytes)) => {
                    let bytes = frame.visible_bytes();
                    self.work.host.progress.advance(chunk_bytes);
                    self.visible.fetch_add(bytes, Ordering::Relaxed);
                    self.work.host.progress.advance(bytes);
                    self.inspect.frame(&frame);
                    is_clean = is_clean && self.inspect.is_clean(&frame);
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
                    self.is_unread.store(true, Ordering::Relaxed);
                    self.work.pass_over(&e, key, about());
                    return Ok(None);
                }
                Err(e) => return Err(e),
            }
        }
        let verdict = match is_clean {
            true => Verdict::Whole,
            false => Verdict::Sound,
        };
        Ok(Some(verdict).filter(|_| found == 0 && hashes.is_some()))
    }

    /// Checks the chunks of a frame, and takes them down; returns how many bytes they have.
    fn chunks(&self, pack: usize, frame: &Frame) -> Result<u64> {
        let (mut offset, mut bytes) = (0_u32, 0);
        for extent in &frame.extents {
            let whole = extent.file.as_chunk().map(|id| (id, extent.length));
            if let Some((id, length)) = whole {
                let from = offset as usize;
                let content = frame.raw.get(from..from + length as usize);
                self.snapshot
                    .check_chunk(&id, content.unwrap_or_default())?;
                let chunk = ChunkPlace {
                    pack,
                    frame: frame.number,
                    whole: WholeChunk {
                        offset,
                        length,
                        hash: id.hash,
                    },
                };
                if matches!(self.chosen, Chosen::All | Chosen::Rest) {
                    let mut uses = self.uses.lock().map_err(|_| panicked())?;
                    uses.add_there(&chunk)?;
                }
                bytes += u64::from(length);
            }
            offset = offset.saturating_add(extent.length);
        }
        Ok(bytes)
    }
}
