//! Packs that interrupted backups left behind: content to which a new snapshot leads, instead of storing it again.
//!
//! No root vouches for such a pack. So each is read back whole, and one that fails a check is left alone. Its writer may have died before it was
//! durable, so that is made sure of, too. Its frames say which bytes of which files they hold. These places lie sorted in an unnamed file, so that memory does not grow with the packs. A page is
//! taken over where a pack holds one of its length and hash, at its position in its file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::filekey::{FileKey, Naming};
use super::frame::{Frame, PAGE_BYTES, check_pages};
use super::pack::PackReader;
use super::page_hashes;
use super::sort::{self, MEMORY_BYTES, Sorter};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::progress::Progress;
use crate::recent::Recent;
use crate::repo::id::PartName;
use crate::repo::root::PackRef;
use crate::repo::scope::Scope;
use crate::repo::varint::{self, Reader};
use crate::store::Store;

/// Places that are read at once.
const BLOCK_PLACES: usize = 128;
/// Memory for the page hashes of packs.
const HASHES_BYTES: usize = 24 << 20;
/// Most readers.
const MOST_READERS: usize = 8;
/// How often the reading is looked at.
const TICK: Duration = Duration::from_millis(50);
const PAGE: u64 = PAGE_BYTES as u64;

/// The packs, and what they hold.
pub struct Leftovers<'a> {
    store: &'a dyn Store,
    scope: Scope,
    naming: Naming,
    parts: Vec<PartName>,
    /// None of a pack that is left alone.
    proven: Vec<Option<Proven>>,
    index: Index,
    hashes: Mutex<Recent<u32, Vec<u64>>>,
}

/// A pack of which every byte passed its checks.
#[derive(Debug, Clone, Copy)]
struct Proven {
    hash: [u8; 32],
    size_bytes: u64,
    frames: u32,
    raw_bytes: u64,
}

/// A page that a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftPage {
    /// Index of the pack.
    pub pack: u32,
    /// Frame in that pack.
    pub frame: u32,
    /// Byte offset in the frame's raw content.
    pub offset: u32,
}

impl<'a> Leftovers<'a> {
    /// Reads packs back, on several threads; `tick` is called meanwhile.
    ///
    /// # Errors
    /// Those of `tick`, of the scratch file, and of the store. A pack that is damaged, that cannot be read here, or that cannot be made durable, is no
    /// error.
    pub fn read(
        (store, scope): (&'a dyn Store, &Scope),
        naming: Naming,
        parts: Vec<PartName>,
        (threads, scratch): (usize, &Path),
        progress: &dyn Progress,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Leftovers<'a>> {
        let reading = Reading {
            store,
            scope,
            naming,
            parts: &parts,
            next: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            places: Mutex::new(Sorter::new(scratch, MEMORY_BYTES)),
            progress,
        };
        let found = reading.run(threads.clamp(1, MOST_READERS), tick)?;
        let places = reading.places.into_inner().map_err(poisoned)?;
        let mut proven = vec![None; parts.len()];
        for (at, pack) in found {
            if let Some(slot) = proven.get_mut(at) {
                *slot = Some(pack);
            }
        }
        Ok(Leftovers {
            store,
            scope: scope.clone(),
            naming,
            index: Index::sorted(places, scratch)?,
            proven,
            parts,
            hashes: Mutex::new(Recent::new(usize::MAX, HASHES_BYTES)),
        })
    }

    /// The packs that are used.
    pub fn packs(&self) -> impl Iterator<Item = &PartName> {
        let all = self.parts.iter().zip(&self.proven);
        all.filter_map(|(part, proven)| proven.map(|_| part))
    }

    /// The name and the hash of a pack, as layers have it.
    pub(super) fn pack(&self, index: u32) -> Option<(PartName, [u8; 32])> {
        let proven = self.proven.get(index as usize).copied().flatten()?;
        Some((self.parts.get(index as usize)?.clone(), proven.hash))
    }

    /// A pack for the root; how much of it is visible is counted later.
    pub(super) fn reference(&self, index: u32) -> Option<PackRef> {
        let proven = self.proven.get(index as usize).copied().flatten()?;
        let frames = u64::from(proven.frames);
        Some(PackRef {
            key: self.parts.get(index as usize)?.clone(),
            size_bytes: proven.size_bytes,
            live_frames: frames,
            live_bytes: proven.raw_bytes,
            all_frames: Some(frames),
            all_bytes: Some(proven.raw_bytes),
        })
    }

    /// Looks up what the packs hold of a file; none where that is nothing.
    pub(super) fn of(&'a self, file: &FileKey) -> Result<Option<LeftFile<'a>>> {
        let mut places = self.index.of(file)?;
        places.retain(|place| self.pack(place.pack).is_some());
        Ok((!places.is_empty()).then_some(LeftFile {
            left: self,
            places,
            passed: 0,
            hashes: None,
        }))
    }

    fn hashes(&self, pack: u32) -> Result<Arc<Vec<u64>>> {
        if let Some(known) = self.hashes.lock().map_err(poisoned)?.get(pack) {
            return Ok(known);
        }
        let (part, hash) = self
            .pack(pack)
            .ok_or_else(|| err!(Internal, "a pack that is left alone was asked"))?;
        let reader = open((self.store, &self.scope), &part, self.naming)?;
        if *reader.hash() != hash {
            return Err(err!(Damaged, "pack \"{part}\" is another one than before"));
        }
        let hashes = Arc::new(reader.page_hashes()?);
        let bytes = hashes.len() * size_of::<u64>();
        let mut kept = self.hashes.lock().map_err(poisoned)?;
        kept.put(pack, &hashes, bytes);
        Ok(hashes)
    }
}

fn poisoned<T>(_: T) -> Error {
    err!(Internal, "a thread that reads packs panicked")
}

fn open(
    (store, scope): (&dyn Store, &Scope),
    part: &PartName,
    naming: Naming,
) -> Result<PackReader> {
    let object = store
        .open(&scope.pack(part))?
        .ok_or_else(|| err!(Damaged, "pack \"{part}\" is missing"))?;
    PackReader::open(object, part, scope.tag(), naming)
        .map_err(|e| e.context(format!("open pack \"{part}\"")))
}

/// Whether a pack can be read on this host: one that only writes has no key, or no right to.
///
/// # Errors
/// Errors of the store.
pub fn is_readable(place: (&dyn Store, &Scope), part: &PartName, naming: Naming) -> Result<bool> {
    match open(place, part, naming) {
        Err(e) if matches!(e.code(), Code::Key | Code::Denied) => Ok(false),
        // The fault is told when it is read back.
        Err(e) if is_of_the_pack(&e) => Ok(true),
        opened => opened.map(|_| true),
    }
}

/// Whether an error leaves one pack alone, and not the backup without its leftovers.
fn is_of_the_pack(e: &Error) -> bool {
    e.is_damage() || e.is_frozen() || matches!(e.code(), Code::Unsupported | Code::Key)
}

/// The pages that packs hold of one file.
pub struct LeftFile<'l> {
    left: &'l Leftovers<'l>,
    /// By position.
    places: Vec<Place>,
    /// So many of the first places end before the page that comes.
    passed: usize,
    /// The pack that was asked last.
    hashes: Option<(u32, Arc<Vec<u64>>)>,
}

impl LeftFile<'_> {
    /// Finds a page of the file; pages come in ascending order.
    ///
    /// # Errors
    /// `Damaged` where a pack has changed since it was read; what the store says.
    pub fn find(&mut self, position: u64, page: &[u8]) -> Result<Option<LeftPage>> {
        let passed = |place: &&Place| place.end() <= position;
        let rest = self.places.get(self.passed..).unwrap_or_default();
        self.passed += rest.iter().take_while(passed).count();
        let mut own = None;
        for at in self.passed..self.places.len() {
            let Some(place) = self.places.get(at).copied() else {
                break;
            };
            if place.position > position {
                break;
            }
            let Some((page_of_place, length)) = place.page_at(position) else {
                continue;
            };
            if length != page.len() as u64 {
                continue;
            }
            let own = *own.get_or_insert_with(|| page_hashes::hash(page));
            if self.hash(&place, page_of_place)? == Some(own) {
                let skipped = u32::try_from(position - place.position).unwrap_or(u32::MAX);
                return Ok(Some(LeftPage {
                    pack: place.pack,
                    frame: place.frame,
                    offset: place.offset.saturating_add(skipped),
                }));
            }
        }
        Ok(None)
    }

    fn hash(&mut self, place: &Place, page: u64) -> Result<Option<u64>> {
        let hashes = match &self.hashes {
            Some((pack, hashes)) if *pack == place.pack => hashes,
            _ => {
                let hashes = self.left.hashes(place.pack)?;
                &self.hashes.insert((place.pack, hashes)).1
            }
        };
        let at = usize::try_from(u64::from(place.first_hash) + page).ok();
        Ok(at.and_then(|at| hashes.get(at)).copied())
    }
}

/// A stretch of a file in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    position: u64,
    length: u32,
    pack: u32,
    frame: u32,
    /// Byte offset in the frame's raw content.
    offset: u32,
    /// Index of its first page's hash among those of the pack.
    first_hash: u32,
}

impl Place {
    fn end(&self) -> u64 {
        self.position.saturating_add(u64::from(self.length))
    }

    /// The page that begins at a position, counted from the place's start, and its length.
    fn page_at(&self, position: u64) -> Option<(u64, u64)> {
        let from = position.checked_sub(self.position)?;
        let left = u64::from(self.length)
            .checked_sub(from)
            .filter(|n| *n > 0)?;
        (from % PAGE == 0).then_some((from / PAGE, left.min(PAGE)))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.position);
        for number in [
            self.length,
            self.pack,
            self.frame,
            self.offset,
            self.first_hash,
        ] {
            varint::put(out, u64::from(number));
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Place> {
        Ok(Place {
            position: r.varint()?,
            length: r.number()?,
            pack: r.number()?,
            frame: r.number()?,
            offset: r.number()?,
            first_hash: r.number()?,
        })
    }
}

/// A reading under way.
struct Reading<'r> {
    store: &'r dyn Store,
    scope: &'r Scope,
    naming: Naming,
    parts: &'r [PartName],
    next: AtomicUsize,
    is_over: AtomicBool,
    places: Mutex<Sorter>,
    progress: &'r dyn Progress,
}

type Found = Vec<(usize, Proven)>;

impl Reading<'_> {
    fn run(&self, threads: usize, tick: &mut dyn FnMut() -> Result<()>) -> Result<Found> {
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.packs())).collect();
            let mut result = Ok(Vec::new());
            while !running.iter().all(ScopedJoinHandle::is_finished) {
                if let Err(e) = tick() {
                    result = Err(e);
                    break;
                }
                thread::sleep(TICK);
            }
            self.is_over.fetch_or(result.is_err(), Ordering::Relaxed);
            for thread in running {
                let found = thread.join().unwrap_or_else(|e| Err(poisoned(e)));
                result = match (result, found) {
                    (Ok(mut all), Ok(found)) => {
                        all.extend(found);
                        Ok(all)
                    }
                    // An error that only says that another one came is no answer.
                    (Err(e), Err(first)) if e.code() == Code::Interrupted => Err(first),
                    (Err(e), _) | (Ok(_), Err(e)) => Err(e),
                };
            }
            result
        })
    }

    fn packs(&self) -> Result<Found> {
        let mut found = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = self.parts.get(at) else {
                return Ok(found);
            };
            match self.pack(at, part) {
                Ok((pack, proven)) => match pack.settle() {
                    Ok(()) => found.push((at, proven)),
                    Err(e) => self.leave_alone(part, &e),
                },
                Err(e) if is_of_the_pack(&e) => self.leave_alone(part, &e),
                Err(e) => {
                    self.is_over.store(true, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    }

    fn leave_alone(&self, part: &PartName, why: &Error) {
        self.progress.warn(&format!(
            "pack \"{part}\" of an interrupted backup is not used: {why}"
        ));
    }

    /// Reads every byte of a pack, and takes down what it holds.
    fn pack(&self, at: usize, part: &PartName) -> Result<(PackReader, Proven)> {
        let index = u32::try_from(at).map_err(|_| err!(Unsupported, "too many packs"))?;
        let pack = open((self.store, self.scope), part, self.naming)?;
        let hashes = pack.page_hashes()?;
        let (mut first, mut raw_bytes) = (0, 0);
        for number in 0..pack.frame_count() {
            if self.is_over.load(Ordering::Relaxed) {
                return Err(err!(Interrupted, "interrupted"));
            }
            let frame = pack.frame(number)?;
            let entry = pack.entry(number).copied();
            let entry = entry.ok_or_else(|| err!(Damaged, "the pack has no frame {number}"))?;
            let end = first + entry.page_hashes as usize;
            check_pages(&frame, hashes.get(first..end).unwrap_or_default())?;
            self.add(index, &frame, first)?;
            first = end;
            raw_bytes += u64::from(entry.raw_bytes);
            self.progress.advance(u64::from(entry.stored_bytes));
        }
        let proven = Proven {
            hash: *pack.hash(),
            size_bytes: pack.stored_bytes(),
            frames: pack.frame_count(),
            raw_bytes,
        };
        Ok((pack, proven))
    }

    /// Takes down the places of a frame, whose page hashes begin at `first`.
    fn add(&self, pack: u32, frame: &Frame, first: usize) -> Result<()> {
        let mut first_hash = u32::try_from(first).unwrap_or(u32::MAX);
        let mut offset = 0_u32;
        let mut places = self.places.lock().map_err(poisoned)?;
        let mut payload = Vec::new();
        for extent in &frame.extents {
            let place = Place {
                position: extent.position,
                length: extent.length,
                pack,
                frame: frame.number,
                offset,
                first_hash,
            };
            let mut key = extent.file.as_bytes().to_vec();
            let prefix = key.len();
            key.extend_from_slice(&extent.position.to_be_bytes());
            // Newer packs come last in the list, and are asked first.
            key.extend_from_slice(&(u32::MAX - pack).to_be_bytes());
            payload.clear();
            varint::put(&mut payload, prefix as u64);
            place.encode(&mut payload);
            places.push(&key, &payload)?;
            offset = offset.saturating_add(extent.length);
            let pages = u32::try_from(extent.pages()).unwrap_or(u32::MAX);
            first_hash = first_hash.saturating_add(pages);
        }
        Ok(())
    }
}

/// Places sorted by file and position, in an unnamed file.
struct Index {
    file: File,
    bytes: u64,
    /// The first file's key of each block, and the block's offset.
    blocks: Vec<(Box<[u8]>, u64)>,
}

impl Index {
    fn sorted(places: Sorter, scratch: &Path) -> Result<Index> {
        let failed = |e| sort::failed(scratch, e);
        let file = tempfile::tempfile_in(scratch).map_err(failed)?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        let (mut bytes, mut count) = (0_u64, 0_usize);
        let mut blocks = Vec::new();
        let mut record = Vec::new();
        places.drain(&mut |key, payload| {
            let mut r = Reader::new(payload, "a place in a pack");
            let file = key.get(..r.number()?).unwrap_or_default();
            if count.is_multiple_of(BLOCK_PLACES) {
                blocks.push((file.into(), bytes));
            }
            count += 1;
            record.clear();
            varint::put_blob(&mut record, file);
            record.extend_from_slice(r.bytes(r.remaining())?);
            bytes += record.len() as u64;
            out.write_all(&record).map_err(failed)
        })?;
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        Ok(Index {
            file,
            bytes,
            blocks,
        })
    }

    /// The places of a file, by position.
    fn of(&self, file: &FileKey) -> Result<Vec<Place>> {
        let wanted = file.as_bytes();
        let first = self.blocks.partition_point(|(key, _)| **key < *wanted);
        let mut places = Vec::new();
        for at in first.saturating_sub(1)..self.blocks.len() {
            let Some((key, from)) = self.blocks.get(at) else {
                break;
            };
            if **key > *wanted {
                break;
            }
            let end = self
                .blocks
                .get(at + 1)
                .map_or(self.bytes, |(_, next)| *next);
            let mut block = vec![0; usize::try_from(end - from).unwrap_or(0)];
            self.file
                .read_exact_at(&mut block, *from)
                .map_err(|e| Error::from_io("read a temporary file", e))?;
            let mut r = Reader::new(&block, "a place in a pack");
            while r.remaining() > 0 {
                let is_own = r.blob()? == wanted;
                let place = Place::decode(&mut r)?;
                if is_own {
                    places.push(place);
                }
            }
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Collector;
    use crate::repo::id::BackupId;
    use crate::snapshot::filekey::tests::NAMING;
    use crate::snapshot::frame::FrameCodec;
    use crate::snapshot::writer::{Options, SnapshotWriter, Written};
    use crate::store::file::FileStore;
    use crate::store::{Key, NewObject, Object};

    const ONE: &str = "20261120T064049Z-000001-full";
    const TWO: &str = "20261120T064149Z-000002-full";

    struct Place {
        folder: tempfile::TempDir,
        store: FileStore,
        scope: Scope,
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().unwrap();
            let store = FileStore::open(folder.path(), 1).unwrap();
            let scope = Scope::cluster("main", 7).unwrap();
            Place {
                folder,
                store,
                scope,
            }
        }

        fn write(
            &self,
            id: &str,
            files: &[(&str, &[u8])],
            leftovers: Option<&Leftovers<'_>>,
        ) -> Written {
            let id: BackupId = id.parse().unwrap();
            let scratch = self.folder.path().to_owned();
            let options = Options::new(FrameCodec::Lz4, 1, scratch);
            let place = (&self.store as &dyn Store, &self.scope);
            thread::scope(|threads| {
                let writer = SnapshotWriter::start_upon(threads, place, &id, &options, leftovers);
                let mut sink = writer.sink();
                for (path, content) in files {
                    sink.begin(key(path)).unwrap();
                    sink.append(content).unwrap();
                    sink.end(0o600, 0).unwrap();
                }
                sink.finish().unwrap();
                writer.finish().unwrap()
            })
        }

        fn read(&self, ids: &[&str], progress: &Collector) -> Result<Leftovers<'_>> {
            self.read_by(&self.store, ids, progress)
        }

        fn read_by<'a>(
            &'a self,
            store: &'a dyn Store,
            ids: &[&str],
            progress: &Collector,
        ) -> Result<Leftovers<'a>> {
            let part = |id: &&str| format!("{id}/000000").parse().unwrap();
            Leftovers::read(
                (store, &self.scope),
                NAMING,
                ids.iter().map(part).collect(),
                (2, self.folder.path()),
                progress,
                &mut || Ok(()),
            )
        }

        fn pack(&self, id: &str) -> std::path::PathBuf {
            let part = format!("{id}/000000").parse().unwrap();
            self.folder.path().join(self.scope.pack(&part).as_str())
        }
    }

    /// A store that keeps the keys of objects that were made durable again. That fails for those of one backup.
    struct Settling<'s> {
        inner: &'s FileStore,
        broken: &'static str,
        settled: Settled,
    }

    type Settled = Arc<Mutex<Vec<String>>>;

    struct SettlingObject {
        inner: Box<dyn Object>,
        key: String,
        is_broken: bool,
        settled: Settled,
    }

    impl Store for Settling<'_> {
        crate::store::pass_on!();

        fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
            let settling = |inner| -> Box<dyn Object> {
                Box::new(SettlingObject {
                    inner,
                    key: key.to_string(),
                    is_broken: key.as_str().contains(self.broken),
                    settled: Arc::clone(&self.settled),
                })
            };
            Ok(self.inner.open(key)?.map(settling))
        }

        fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
            self.inner.create(key)
        }
    }

    impl Object for SettlingObject {
        crate::store::forward! {
            fn size_bytes(&self) -> u64;
            fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
        }

        fn settle(&self) -> Result<()> {
            if self.is_broken {
                return Err(err!(Io, "the sync failed"));
            }
            self.settled.lock().unwrap().push(self.key.clone());
            self.inner.settle()
        }
    }

    fn key(path: &str) -> FileKey {
        FileKey::from_path(path.as_bytes(), NAMING).unwrap()
    }

    fn pages(seeds: &[u8]) -> Vec<u8> {
        let one = |seed: u8| (0..8192_u32).map(move |i| seed.wrapping_add(i.to_le_bytes()[0]) | 1);
        seeds.iter().flat_map(|seed| one(*seed)).collect()
    }

    #[test]
    fn a_page_is_found_in_its_file_at_its_position_with_its_content_and_length() {
        let place = Place::new();
        let mut content = pages(&[1, 2]);
        content.extend_from_slice(&pages(&[3])[..100]);
        let small = b"a small file beside others".as_slice();
        place.write(ONE, &[("base/1/2", &content), ("PG_VERSION", small)], None);
        let left = place.read(&[ONE], &Collector::default()).unwrap();
        let found = |path: &str, position: u64, page: &[u8]| {
            let file = left.of(&key(path)).unwrap();
            file.and_then(|mut file| file.find(position, page).unwrap())
        };
        assert_eq!(found("base/1/2", 0, &content[..8192]).unwrap().offset, 0);
        let second = found("base/1/2", 8192, &content[8192..16384]).unwrap();
        assert_eq!((second.frame, second.offset), (0, 8192));
        assert!(found("base/1/2", 16384, &content[16384..]).is_some());
        assert!(found("PG_VERSION", 0, small).is_some());
        assert_eq!(found("base/1/3", 0, &content[..8192]), None, "another file");
        assert_eq!(found("base/1/2", 8192, &content[..8192]), None, "elsewhere");
        assert_eq!(found("base/1/2", 0, &content[..100]), None, "shorter");
        let longer = pages(&[3]);
        assert_eq!(found("base/1/2", 16384, &longer), None, "longer");
        let mut changed = content[..8192].to_vec();
        changed[5000] ^= 1;
        assert_eq!(found("base/1/2", 0, &changed), None, "changed");
        // In order, as a file is written.
        let mut file = left.of(&key("base/1/2")).unwrap().unwrap();
        let all = content.chunks(8192).zip(0..);
        assert!(all.clone().count() == 3);
        for (page, n) in all {
            assert!(file.find(n * 8192, page).unwrap().is_some(), "{n}");
        }
    }

    /// The map of a new snapshot leads to old frames, and to new ones for what changed.
    #[test]
    fn what_is_left_is_not_stored_again() {
        let place = Place::new();
        let (old, mut new) = (pages(&[1, 2, 3, 4]), pages(&[1, 2, 3, 4, 5]));
        place.write(ONE, &[("base/1/2", &old)], None);
        new[8192] ^= 2;
        let left = place.read(&[ONE], &Collector::default()).unwrap();
        let written = place.write(TWO, &[("base/1/2", &new)], Some(&left));
        let packs: Vec<String> = written.packs.iter().map(|p| p.key.to_string()).collect();
        assert_eq!(packs, [format!("{TWO}/000000"), format!("{ONE}/000000")]);
        assert_eq!(written.packs[0].live_bytes, 2 * 8192);
        assert_eq!(written.packs[1].all_bytes, Some(4 * 8192));
        // Nothing new: no pack of its own, and none is named that is not used.
        let third = "20261120T064249Z-000003-full";
        let left = place.read(&[ONE, TWO], &Collector::default()).unwrap();
        let written = place.write(third, &[("base/1/2", &new)], Some(&left));
        let ids: Vec<String> = written.packs.iter().map(|p| p.key.id.to_string()).collect();
        assert_eq!(ids, [ONE, TWO]);
        let fourth = "20261120T064349Z-000004-full";
        let written = place.write(fourth, &[("base/1/9", &new)], Some(&left));
        assert_eq!(written.packs.len(), 1);
        assert_eq!(written.packs[0].key.id.to_string(), fourth);
    }

    #[test]
    fn a_pack_that_fails_a_check_anywhere_is_left_alone() {
        let place = Place::new();
        let content = pages(&[1, 2, 3]);
        place.write(ONE, &[("base/1/2", &content)], None);
        place.write(TWO, &[("base/1/2", &content)], None);
        let path = place.pack(ONE);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(37).chain([whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            let progress = Collector::default();
            let left = place.read(&[ONE, TWO], &progress).unwrap();
            let used: Vec<String> = left.packs().map(|p| p.id.to_string()).collect();
            assert_eq!(used, [TWO], "byte {at}");
            assert_eq!(progress.lines().len(), 1, "byte {at}");
            let mut file = left.of(&key("base/1/2")).unwrap().unwrap();
            assert_eq!(file.find(0, &content[..8192]).unwrap().unwrap().pack, 1);
        }
        std::fs::remove_file(&path).unwrap();
        let left = place.read(&[ONE], &Collector::default()).unwrap();
        assert_eq!(left.packs().count(), 0);
        assert!(left.of(&key("base/1/2")).unwrap().is_none());
    }

    #[test]
    fn b43_a_pack_is_made_durable_before_it_is_used_and_left_alone_where_that_fails() {
        let place = Place::new();
        let content = pages(&[1, 2, 3]);
        place.write(ONE, &[("base/1/2", &content)], None);
        place.write(TWO, &[("base/1/2", &content)], None);
        let settled = Settled::default();
        let store = Settling {
            inner: &place.store,
            broken: ONE,
            settled: Arc::clone(&settled),
        };
        let progress = Collector::default();
        let left = place.read_by(&store, &[ONE, TWO], &progress).unwrap();
        let used: Vec<String> = left.packs().map(|p| p.id.to_string()).collect();
        assert_eq!(used, [TWO]);
        let part = format!("{TWO}/000000").parse().unwrap();
        let own = place.scope.pack(&part).to_string();
        assert_eq!(*settled.lock().unwrap(), [own]);
        assert_eq!(progress.lines().len(), 1);
        assert!(progress.lines()[0].contains("the sync failed"));
        let mut file = left.of(&key("base/1/2")).unwrap().unwrap();
        assert_eq!(file.find(0, &content[..8192]).unwrap().unwrap().pack, 1);
    }

    /// A pack that changes while it is used is no answer.
    #[test]
    fn a_pack_that_changes_later_ends_the_work() {
        let place = Place::new();
        let content = pages(&[1, 2, 3]);
        place.write(ONE, &[("base/1/2", &content)], None);
        place.write(TWO, &[("base/1/2", &pages(&[7, 8, 9]))], None);
        let left = place.read(&[ONE], &Collector::default()).unwrap();
        let mut file = left.of(&key("base/1/2")).unwrap().unwrap();
        std::fs::remove_file(place.pack(ONE)).unwrap();
        let gone = file.find(0, &content[..8192]).unwrap_err();
        assert_eq!(gone.code(), Code::Damaged);
    }
}
