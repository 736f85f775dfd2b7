//! A tree of files as a test sees it: described in words that tell all that has to come back, and changed at random.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::common::random::Random;

/// Every entry below a directory, and the directory itself, with all that a restore has to give back.
pub fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut inodes: HashMap<u64, PathBuf> = HashMap::new();
    let mut found = BTreeMap::new();
    for path in paths(root) {
        let place = root.join(&path);
        let status = fs::symlink_metadata(&place).unwrap();
        let kind = status.file_type();
        let content = match kind {
            kind if kind.is_file() => blake3::hash(&fs::read(&place).unwrap()).to_string(),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&place).unwrap()),
            _ => String::new(),
        };
        let kind = [
            (kind.is_file(), "file"),
            (kind.is_dir(), "directory"),
            (kind.is_symlink(), "link"),
            (kind.is_fifo(), "pipe"),
            (kind.is_socket(), "socket"),
        ];
        let (_, kind) = kind.iter().find(|(is_so, _)| *is_so).unwrap();
        let length = if *kind == "file" { status.len() } else { 0 };
        let same = inodes.entry(status.ino()).or_insert_with(|| path.clone());
        let text = format!(
            "{kind} {:o} {}:{} {}.{:09} {length} bytes, sparse {}, as {same:?}, {:?} {content}",
            status.mode() & 0o7777,
            status.uid(),
            status.gid(),
            status.mtime(),
            status.mtime_nsec(),
            length > 1 << 20 && status.blocks() * 512 < length / 2,
            xattrs(&place),
        );
        found.insert(path, text);
    }
    found
}

fn paths(root: &Path) -> Vec<PathBuf> {
    let mut pending = vec![PathBuf::new()];
    let mut paths = Vec::new();
    while let Some(path) = pending.pop() {
        let place = root.join(&path);
        if fs::symlink_metadata(&place).unwrap().is_dir() {
            let entries = fs::read_dir(&place).unwrap();
            pending.extend(entries.map(|e| path.join(e.unwrap().file_name())));
        }
        paths.push(path);
    }
    paths.sort();
    paths
}

fn xattrs(place: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut room = vec![0; 4096];
    let length = rustix::fs::llistxattr(place, &mut room[..]).unwrap_or(0);
    let names = room[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(place, name, &mut value[..]).unwrap();
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

/// Changes a tree at random, one step at a time.
pub struct Changes {
    pub root: PathBuf,
    pub random: Random,
    number: u64,
}

impl Changes {
    pub fn new(root: PathBuf, seed: u64) -> Changes {
        Changes {
            root,
            random: Random::new(seed),
            number: 0,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.next() % end.max(1)
    }

    /// One of the paths for which `fits` holds.
    fn pick(&mut self, fits: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
        let places = paths(&self.root).into_iter().map(|p| self.root.join(p));
        let mut found: Vec<_> = places
            .filter(|place| fits(&fs::symlink_metadata(place).unwrap()))
            .collect();
        if found.is_empty() {
            return None;
        }
        let at = self.random.below(found.len());
        Some(found.swap_remove(at))
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = usize::try_from(self.below(most)).unwrap();
        let mut bytes = vec![0; length];
        let seed = self.below(u64::MAX).to_le_bytes();
        let mut noise = blake3::Hasher::new().update(&seed).finalize_xof();
        noise.fill(&mut bytes);
        bytes
    }

    fn new_name(&mut self) -> Option<PathBuf> {
        let directory = self.pick(fs::Metadata::is_dir)?;
        self.number += 1;
        let mut name = match self.below(4) {
            0 => b"caf\xE9 \xFF\n".to_vec(),
            1 => b"-rf *".to_vec(),
            2 => b".hidden".to_vec(),
            _ => b"name".to_vec(),
        };
        name.extend_from_slice(self.number.to_string().as_bytes());
        Some(directory.join(OsStr::from_bytes(&name)))
    }

    /// Makes one change; says which.
    pub fn step(&mut self) -> &'static str {
        loop {
            if let Some(done) = self.try_step() {
                return done;
            }
        }
    }

    fn try_step(&mut self) -> Option<&'static str> {
        let is_file = |m: &fs::Metadata| m.is_file();
        Some(match self.below(17) {
            0..=2 => {
                let most = if self.below(5) == 0 { 3 << 20 } else { 30_000 };
                let (name, bytes) = (self.new_name()?, self.bytes(most));
                fs::write(name, bytes).unwrap();
                "create"
            }
            3 => {
                fs::create_dir(self.new_name()?).unwrap();
                "directory"
            }
            4 => {
                let (file, bytes) = (self.pick(is_file)?, self.bytes(10_000));
                let length = fs::metadata(&file).unwrap().len();
                let at = self.below(length + 1);
                File::options()
                    .write(true)
                    .open(file)
                    .unwrap()
                    .write_all_at(&bytes, at)
                    .unwrap();
                "write"
            }
            5 => {
                let file = self.pick(is_file)?;
                let length = self.below(fs::metadata(&file).unwrap().len() + 1);
                File::options()
                    .write(true)
                    .open(file)
                    .unwrap()
                    .set_len(length)
                    .unwrap();
                "truncate"
            }
            6 => {
                let file = File::create(self.new_name()?).unwrap();
                file.write_all_at(b"end", 40 << 20).unwrap();
                "sparse"
            }
            7 => {
                let (file, name) = (self.pick(|m| !m.is_dir())?, self.new_name()?);
                fs::rename(file, name).unwrap();
                "rename"
            }
            8 => {
                let (from, over) = (self.pick(is_file)?, self.pick(is_file)?);
                fs::rename(from, over).unwrap();
                "rename over"
            }
            9 => {
                let (file, name) = (self.pick(is_file)?, self.new_name()?);
                fs::hard_link(file, name).unwrap();
                "hard link"
            }
            10 => {
                symlink("no where/\u{e9}", self.new_name()?).unwrap();
                "symbolic link"
            }
            11 => {
                let (place, value) = (self.pick(|m| m.is_file() || m.is_dir())?, self.bytes(100));
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(place, "user.pitr", &value, flags).unwrap();
                "xattr"
            }
            12 => {
                let place = self.pick(|m| m.is_file() || m.is_dir())?;
                let more = if place.is_dir() { 0o700 } else { 0o600 };
                let mode = u32::try_from(self.below(0o1000)).unwrap() | more;
                fs::set_permissions(place, Permissions::from_mode(mode)).unwrap();
                "mode"
            }
            13 => {
                let file = self.pick(is_file)?;
                let back = UNIX_EPOCH + Duration::new(self.below(2_000_000_000), 7);
                let times = FileTimes::new().set_modified(back);
                File::open(file).unwrap().set_times(times).unwrap();
                "time"
            }
            14 => {
                fs::remove_file(self.pick(|m| !m.is_dir())?).unwrap();
                "remove"
            }
            15 => {
                let directory = self.pick(fs::Metadata::is_dir)?;
                // The root stays.
                if directory == self.root || self.below(3) > 0 {
                    return None;
                }
                fs::remove_dir_all(directory).unwrap();
                "remove all"
            }
            _ => {
                // Another type under the same name.
                let file = self.pick(is_file)?;
                fs::remove_file(&file).unwrap();
                match self.below(3) {
                    0 => fs::create_dir(&file).unwrap(),
                    1 => symlink("/etc/passwd", &file).unwrap(),
                    _ => fs::write(&file, self.bytes(50_000)).unwrap(),
                }
                "another type"
            }
        })
    }
}
