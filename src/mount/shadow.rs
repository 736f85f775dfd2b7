//! The local directory beneath a mount: files without content, and the names they have now.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::blocks::{BLOCK_BYTES, Blocks};
use super::directory::{Alias, Directory};
use crate::lock::locked;
use crate::snapshot::filekey::FileKey;

/// A file of a backup that was laid out without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HollowFile {
    /// Its key in the snapshot.
    pub key: FileKey,
    /// Its absolute path.
    pub path: PathBuf,
    pub length: u64,
}

/// The same file while it is mounted.
#[derive(Debug)]
pub struct Hollow {
    /// Its key in the snapshot.
    pub key: FileKey,
    state: Mutex<State>,
    /// Whether a program has changed it since it was synced.
    is_changed: AtomicBool,
    /// Held by the one that syncs: another one that asks must not return before.
    syncing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Its path now; none once it was removed.
    path: Option<PathBuf>,
    blocks: Blocks,
    /// The end of what was asked for last, and how far ahead of it is read.
    ahead: Ahead,
}

/// How a file is read: one after the other, or here and there.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    expected: u64,
    window: u64,
    asked: u64,
}

/// The first step ahead of a reader that goes on where it was.
const WINDOW_MIN_BYTES: u64 = 1 << 20;
/// The last one.
const WINDOW_MAX_BYTES: u64 = 16 << 20;

impl Hollow {
    fn new(file: HollowFile, path: PathBuf) -> Hollow {
        Hollow {
            key: file.key,
            state: Mutex::new(State {
                path: Some(path),
                blocks: Blocks::new(file.length),
                ahead: Ahead::default(),
            }),
            is_changed: AtomicBool::new(false),
            syncing: Mutex::default(),
        }
    }

    /// The first stretch of absent blocks that these bytes touch.
    pub fn absent(&self, from: u64, to: u64) -> Option<std::ops::Range<u64>> {
        locked(&self.state).blocks.absent(from, to)
    }

    /// Whether all of it is there, or it was removed.
    pub fn is_whole(&self) -> bool {
        let state = locked(&self.state);
        state.path.is_none() || state.blocks.is_whole()
    }

    /// Takes down that these bytes are there; false once the file was removed, for then nothing was written.
    pub fn add(&self, from: u64, to: u64) -> bool {
        let mut state = locked(&self.state);
        if state.path.is_some() {
            state.blocks.add(from, to);
        }
        state.path.is_some()
    }

    /// The bytes that a reader of `[from, to)`, which were absent, is going to ask for.
    pub fn ahead_of(&self, from: u64, to: u64) -> Option<std::ops::Range<u64>> {
        let mut state = locked(&self.state);
        let ahead = &mut state.ahead;
        let goes_on = from >= ahead.expected && from - ahead.expected <= ahead.window;
        ahead.window = match goes_on && ahead.expected > 0 {
            true => (ahead.window * 2).clamp(WINDOW_MIN_BYTES, WINDOW_MAX_BYTES),
            false => 0,
        };
        ahead.expected = to;
        if ahead.window == 0 {
            ahead.asked = to;
            return None;
        }
        let start = ahead.asked.max(to);
        let end = to + ahead.window;
        ahead.asked = end.max(start);
        (start < end).then_some(start..end)
    }

    /// Writes bytes of the backup where they are absent; nothing once the file was removed.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn fill(
        &self,
        position: u64,
        bytes: &[u8],
        files: &mut LastFile,
        shadow: &Shadow,
    ) -> std::io::Result<()> {
        let mut state = locked(&self.state);
        let end = position + bytes.len() as u64;
        let Some(path) = state.path.clone() else {
            return Ok(());
        };
        let mut at = position;
        while let Some(absent) = state.blocks.absent(at, end) {
            let (from, to) = (absent.start.max(position), absent.end.min(end));
            let file = files.get(&self.key, || shadow.directory.file(&path, true))?;
            file.write_all_at(part(bytes, position, from, to), from)?;
            at = absent.end;
        }
        state.blocks.add(position, end);
        Ok(())
    }

    /// Writes a user's bytes. Blocks that they cover in part are there already.
    ///
    /// # Errors
    /// `WouldBlock` where one is not, for it has to be brought first; errors of the filesystem.
    pub fn write(&self, file: &File, bytes: &[u8], position: u64) -> std::io::Result<()> {
        let mut state = locked(&self.state);
        let end = position + bytes.len() as u64;
        if partly(position, end).any(|(from, to)| state.blocks.absent(from, to).is_some()) {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        let written = file.write_all_at(bytes, position);
        self.changed();
        written?;
        state.blocks.add(position, end);
        Ok(())
    }

    /// Takes down that a program has changed the file; called after the change.
    pub fn changed(&self) {
        self.is_changed.store(true, Ordering::Release);
    }

    /// Has `sync` make durable what programs have written; returns at once where that is nothing. Bytes of the backup alone need no sync: what
    /// becomes durable as a whole is synced as a whole.
    ///
    /// # Errors
    /// Those of `sync`.
    pub fn sync(&self, sync: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        let _alone = locked(&self.syncing);
        if !self.is_changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        sync().inspect_err(|_| self.changed())
    }

    /// Cuts or lengthens the file. The block in which it is cut is there already.
    ///
    /// # Errors
    /// As [`Hollow::write`].
    pub fn set_length(&self, file: &File, length: u64) -> std::io::Result<()> {
        let mut state = locked(&self.state);
        if let Some((from, to)) = cut_block(length)
            && state.blocks.absent(from, to).is_some()
        {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        file.set_len(length)?;
        self.changed();
        state.blocks.cut(length);
        Ok(())
    }
}

/// The bytes `[from, to)` of a file, out of those that begin at `position`.
fn part(bytes: &[u8], position: u64, from: u64, to: u64) -> &[u8] {
    let at = |n: u64| usize::try_from(n - position).unwrap_or(usize::MAX);
    bytes.get(at(from)..at(to)).unwrap_or_default()
}

/// The blocks at both ends that the bytes `[from, to)` cover in part, as bytes.
pub fn partly(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let start = !from.is_multiple_of(BLOCK_BYTES);
    let end = !to.is_multiple_of(BLOCK_BYTES);
    let first = start.then(|| (from / BLOCK_BYTES * BLOCK_BYTES, from));
    let last = end.then(|| (to, to.next_multiple_of(BLOCK_BYTES)));
    first.into_iter().chain(last)
}

/// The kept bytes of the block in which a file of this length ends.
pub fn cut_block(length: u64) -> Option<(u64, u64)> {
    let from = length / BLOCK_BYTES * BLOCK_BYTES;
    (from < length).then_some((from, length))
}

/// The file that one thread wrote last. A file that is removed or replaced keeps its inode, so that nothing is written to another one.
#[derive(Default)]
pub struct LastFile(Option<(FileKey, File)>);

impl LastFile {
    fn get(
        &mut self,
        key: &FileKey,
        open: impl FnOnce() -> std::io::Result<File>,
    ) -> std::io::Result<&File> {
        let last = self.0.take().filter(|(last, _)| last == key);
        let last = match last {
            Some(last) => last,
            None => (key.clone(), open()?),
        };
        Ok(&self.0.insert(last).1)
    }
}

/// The local directory, and the files of the backup in it.
#[derive(Debug)]
pub struct Shadow {
    /// The directory itself.
    pub directory: Directory,
    /// User and group that the directory is shown to belong to, while root holds it.
    pub owner: Option<(u32, u32)>,
    by_key: HashMap<FileKey, Arc<Hollow>>,
    by_path: RwLock<HashMap<PathBuf, Arc<Hollow>>>,
}

impl Shadow {
    /// Opens the directory; it is not mounted over yet.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn open_root(
        path: &Path,
        files: Vec<HollowFile>,
        alias: Alias,
        owner: Option<(u32, u32)>,
    ) -> std::io::Result<Shadow> {
        let directory = Directory::open(path, alias)?;
        let (mut by_key, mut by_path) = (HashMap::new(), HashMap::new());
        for file in files {
            let below = file
                .path
                .strip_prefix(path)
                .map_err(std::io::Error::other)?;
            let below = below.to_owned();
            let hollow = Arc::new(Hollow::new(file, below.clone()));
            by_key.insert(hollow.key.clone(), Arc::clone(&hollow));
            by_path.insert(below, hollow);
        }
        Ok(Shadow {
            directory,
            owner,
            by_key,
            by_path: RwLock::new(by_path),
        })
    }

    /// The file of a key.
    pub fn of_key(&self, key: &FileKey) -> Option<&Arc<Hollow>> {
        self.by_key.get(key)
    }

    /// The file that has this path now.
    pub fn of_path(&self, path: &Path) -> Option<Arc<Hollow>> {
        let paths = self.by_path.read().unwrap_or_else(PoisonError::into_inner);
        paths.get(path).cloned()
    }

    /// Whether a path is a directory now.
    pub fn is_directory(&self, path: &Path) -> bool {
        let metadata = self.directory.metadata(path);
        metadata.is_ok_and(|metadata| metadata.is_dir())
    }

    /// All files that are not whole.
    pub fn lacking(&self) -> impl Iterator<Item = &Arc<Hollow>> {
        self.by_key.values().filter(|hollow| !hollow.is_whole())
    }

    /// Removes a name by `remove`; a file of the backup is never filled any more.
    ///
    /// # Errors
    /// Those of `remove`.
    pub fn removed(
        &self,
        path: &Path,
        remove: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut paths = self.by_path.write().unwrap_or_else(PoisonError::into_inner);
        let Some(hollow) = paths.get(path).cloned() else {
            return remove();
        };
        let mut state = locked(&hollow.state);
        remove()?;
        state.path = None;
        paths.remove(path);
        Ok(())
    }

    /// Renames by `rename`; what had the new name before is gone.
    ///
    /// # Errors
    /// Those of `rename`.
    pub fn renamed(
        &self,
        from: &Path,
        to: &Path,
        rename: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut paths = self.by_path.write().unwrap_or_else(PoisonError::into_inner);
        let replaced = paths.get(to).cloned().filter(|_| from != to);
        // All names are looked through for a directory alone.
        let moved: Vec<(PathBuf, Arc<Hollow>)> = match paths.get(from) {
            Some(hollow) => vec![(from.to_owned(), Arc::clone(hollow))],
            None if self.is_directory(from) => paths
                .iter()
                .filter(|(path, _)| path.starts_with(from))
                .map(|(path, hollow)| (path.clone(), Arc::clone(hollow)))
                .collect(),
            None => Vec::new(),
        };
        let mut replaced_state = replaced.as_ref().map(|hollow| locked(&hollow.state));
        let hollows = moved.iter();
        let mut states: Vec<_> = hollows.map(|(_, hollow)| locked(&hollow.state)).collect();
        rename()?;
        if let Some(state) = &mut replaced_state {
            state.path = None;
            paths.remove(to);
        }
        for ((path, hollow), state) in moved.iter().zip(&mut states) {
            let below = path.strip_prefix(from).unwrap_or(path);
            let new = match below.as_os_str().is_empty() {
                true => to.to_owned(),
                false => to.join(below),
            };
            state.path = Some(new.clone());
            paths.remove(path);
            paths.insert(new, Arc::clone(hollow));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::filekey::Naming;

    const B: u64 = BLOCK_BYTES;

    fn file(folder: &Path, name: &str, length: u64) -> HollowFile {
        HollowFile {
            key: FileKey::from_path(name.as_bytes(), Naming::Tree).unwrap(),
            path: folder.join(name),
            length,
        }
    }

    fn shadow_of(folder: &Path, files: Vec<HollowFile>) -> Shadow {
        let alias = Alias {
            shown: "shown".into(),
            stored: "stored".into(),
        };
        Shadow::open_root(folder, files, alias, None).unwrap()
    }

    #[test]
    fn only_what_programs_have_changed_is_synced() {
        let folder = tempfile::tempdir().unwrap();
        let absent = file(folder.path(), "f", 4 * B);
        let file = File::create(&absent.path).unwrap();
        file.set_len(4 * B).unwrap();
        let hollow = Hollow::new(absent, "f".into());
        let synced = |result: std::io::Result<()>| {
            let mut count = 0;
            let answer = hollow.sync(|| {
                count += 1;
                result
            });
            (count, answer.is_ok())
        };
        let failed = || Err(rustix::io::Errno::IO.into());
        assert_eq!(synced(Ok(())), (0, true));
        hollow.write(&file, &[7; 8192], 0).unwrap();
        assert_eq!(synced(failed()), (1, false));
        assert_eq!(synced(Ok(())), (1, true));
        assert_eq!(synced(failed()), (0, true));
        hollow.set_length(&file, 0).unwrap();
        assert_eq!(synced(Ok(())), (1, true));
    }

    #[test]
    fn the_absent_blocks_of_a_removed_file_are_never_taken_for_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path(), "f", 4 * B);
        File::create(&file.path).unwrap().set_len(4 * B).unwrap();
        let shadow = shadow_of(folder.path(), vec![file]);
        let hollow = shadow.of_path(Path::new("f")).unwrap();
        let block = [7; 8192];
        let mut files = LastFile::default();
        hollow.fill(0, &block, &mut files, &shadow).unwrap();
        let remove = || shadow.directory.remove(Path::new("f"), false);
        shadow.removed(Path::new("f"), remove).unwrap();
        // A program that has it open reads what was there, and gets an error for the rest.
        hollow.fill(B, &block, &mut files, &shadow).unwrap();
        assert!(!hollow.add(B, 4 * B));
        assert_eq!(hollow.absent(0, B), None);
        assert_eq!(hollow.absent(0, 4 * B), Some(B..4 * B));
    }

    /// A rename that looked through all names would take half a second here.
    #[test]
    fn k52_the_rename_of_a_file_costs_the_same_among_very_many() {
        use crate::mount::nodes::Nodes;
        use std::time::{Duration, Instant};
        let folder = tempfile::tempdir().unwrap();
        let name = |number| format!("base/1/{number}");
        let files = (0..300_000).map(|number| file(folder.path(), &name(number), 0));
        let shadow = shadow_of(folder.path(), files.collect());
        let mut nodes = Nodes::new();
        for number in 0..300_000 {
            nodes.look_up(Path::new(&name(number)));
        }
        let began = Instant::now();
        for number in 0..500 {
            // A file of the backup, and one that PostgreSQL has made.
            for name in ["base/1/", "pg_stat/"] {
                let from = PathBuf::from(format!("{name}{number}"));
                let to = PathBuf::from(format!("{name}{number}.new"));
                shadow.renamed(&from, &to, || Ok(())).unwrap();
                nodes.renamed(&from, &to, false);
            }
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(shadow.of_path(Path::new("base/1/7")).is_none());
        let moved = shadow.of_path(Path::new("base/1/7.new")).unwrap();
        assert_eq!(moved.key.path(Naming::Tree), b"base/1/7");
    }
}
