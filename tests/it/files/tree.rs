//! A tree of files as a test sees it: described in words that tell all that has to come back, and changed at random.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::{Display, Formatter};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, XattrFlags};

use crate::common::random::Random;
use crate::common::user;

pub type Tree = BTreeMap<PathBuf, String>;

/// Every entry below a directory, and the directory itself, with all that a restore has to give back.
pub fn describe(root: &Path) -> Tree {
    let paths = paths(root).into_iter().map(|path| (path, true));
    as_text(&entries(root, paths))
}

pub fn as_text(entries: &BTreeMap<PathBuf, Entry>) -> Tree {
    let texts = entries
        .iter()
        .map(|(path, e)| (path.clone(), e.to_string()));
    texts.collect()
}

/// All of an entry that has to come back.
#[derive(Clone)]
pub struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    length: u64,
    is_sparse: bool,
    /// The first path of the same inode.
    same: PathBuf,
    xattrs: BTreeMap<String, Vec<u8>>,
    content: String,
}

impl Display for Entry {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let (uid, gid) = self.owner;
        let (seconds, nanoseconds) = self.modified;
        write!(
            f,
            "{} {:o} {uid}:{gid} {seconds}.{nanoseconds:09} {} bytes, sparse {}, as {:?}, {:?} {}",
            self.kind, self.mode, self.length, self.is_sparse, self.same, self.xattrs, self.content
        )
    }
}

impl Entry {
    fn of(place: &Path, same: PathBuf) -> Entry {
        let status = fs::symlink_metadata(place).unwrap();
        let kind = status.file_type();
        let number = || {
            let (major, minor) = (rustix::fs::major, rustix::fs::minor);
            format!("{}:{}", major(status.rdev()), minor(status.rdev()))
        };
        let content = match kind {
            kind if kind.is_file() => blake3::hash(&fs::read(place).unwrap()).to_string(),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(place).unwrap()),
            kind if kind.is_char_device() || kind.is_block_device() => number(),
            _ => String::new(),
        };
        let kind = [
            (kind.is_file(), "file"),
            (kind.is_dir(), "directory"),
            (kind.is_symlink(), "link"),
            (kind.is_fifo(), "pipe"),
            (kind.is_socket(), "socket"),
            (kind.is_char_device(), "character device"),
            (kind.is_block_device(), "block device"),
        ];
        let (_, kind) = kind.iter().find(|(is_so, _)| *is_so).unwrap();
        let length = if *kind == "file" { status.len() } else { 0 };
        Entry {
            kind,
            mode: status.mode() & 0o7777,
            owner: (status.uid(), status.gid()),
            modified: (status.mtime(), status.mtime_nsec()),
            length,
            is_sparse: length > 1 << 20 && status.blocks() * 512 < length / 2,
            same,
            xattrs: xattrs(place),
            content,
        }
    }

    /// The entry that a user makes of it without `--privileged`.
    pub fn made_by(mut self, user: (u32, u32)) -> Option<Entry> {
        self.owner = user;
        if self.kind != "link" {
            self.mode &= !0o6000;
        }
        self.xattrs
            .retain(|name, _| name.starts_with("user.") || name.starts_with("system.posix_acl_"));
        ["file", "directory", "link"]
            .contains(&self.kind)
            .then_some(self)
    }
}

/// Gives a directory a default ACL by which everything that is made in it belongs to user 4711 as well (Linux: include/uapi/linux/posix_acl_xattr.h).
pub fn open_to_another(directory: &Path) {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    // rwx for the owner, for that user, for the group, for the mask, and for others.
    for (tag, id) in [
        (1_u16, u32::MAX),
        (2, 4711),
        (4, u32::MAX),
        (16, u32::MAX),
        (32, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(7_u16.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(directory, "system.posix_acl_default", &acl, flags).unwrap();
}

/// Requires that neither a directory nor anything in it has an ACL.
pub fn has_no_acl(directory: &Path) {
    let names = crate::common::files_below(directory).into_iter();
    let all = names.flat_map(|name| {
        let path = directory.join(name);
        path.ancestors().map(Path::to_owned).collect::<Vec<_>>()
    });
    let all: Vec<_> = all.filter(|path| path.starts_with(directory)).collect();
    assert!(all.len() > 1, "{all:?}");
    for path in all {
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            let found = rustix::fs::lgetxattr(&path, name, &mut [0_u8; 256]);
            assert!(found.is_err(), "{} has {name}", path.display());
        }
    }
}

/// Entries at these paths. A directory that is not readable shows its status alone.
fn entries(root: &Path, paths: impl Iterator<Item = (PathBuf, bool)>) -> BTreeMap<PathBuf, Entry> {
    let mut inodes: HashMap<u64, PathBuf> = HashMap::new();
    let mut found = BTreeMap::new();
    for (path, is_readable) in paths {
        let place = root.join(&path);
        let inode = fs::symlink_metadata(&place).unwrap().ino();
        let same = inodes.entry(inode).or_insert_with(|| path.clone());
        let mut entry = Entry::of(&place, same.clone());
        if !is_readable {
            entry.xattrs.clear();
        }
        found.insert(path, entry);
    }
    found
}

/// The part of a tree that the user without rights may read.
pub struct Seen {
    pub entries: BTreeMap<PathBuf, Entry>,
    /// The number of entries that it meets, and may not read.
    pub closed: u64,
}

/// Asks the kernel, as that user.
pub fn seen_by_user(root: &Path) -> Seen {
    const WALK: &str = "import os, stat, sys
def walk(root, path):
    place = os.path.join(root, path) if path else root
    try:
        mode = os.lstat(place).st_mode
    except OSError:
        return sys.stdout.buffer.write(b'?\\0')
    is_readable = not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) or os.access(place, os.R_OK)
    kind = b'd' if stat.S_ISDIR(mode) else b'f'
    sys.stdout.buffer.write((b'+' if is_readable else b'-') + kind + path + b'\\0')
    if kind == b'd' and is_readable:
        for name in os.listdir(place):
            walk(root, os.path.join(path, name))
walk(os.fsencode(sys.argv[1]), b'')
";
    let mut walk = user::command("/usr/bin/python3");
    let out = walk.args(["-c", WALK]).arg(root).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let (mut paths, mut closed) = (BTreeMap::new(), 0);
    for line in out
        .stdout
        .split(|b| *b == 0)
        .filter(|line| !line.is_empty())
    {
        let is_readable = line.starts_with(b"+");
        closed += u64::from(!is_readable);
        if is_readable || line.starts_with(b"-d") {
            let path = PathBuf::from(OsStr::from_bytes(&line[2..]));
            paths.insert(path, is_readable);
        }
    }
    let mut entries = entries(root, paths.into_iter());
    for entry in entries.values_mut() {
        entry.xattrs.retain(|name, _| !name.starts_with("trusted."));
    }
    Seen { entries, closed }
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

/// With more entries, removals are more likely: a long campaign costs the same at its end as at its beginning.
const CROWD: usize = 100;
const STEP_KINDS: u64 = 22;

/// Changes a tree at random, one step at a time.
pub struct Changes {
    pub root: PathBuf,
    pub random: Random,
    number: u64,
    /// The directory itself may be closed, to those who are not root.
    pub may_close_root: bool,
}

impl Changes {
    pub fn new(root: PathBuf, seed: u64) -> Changes {
        Changes {
            root,
            random: Random::new(seed),
            number: 0,
            may_close_root: true,
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
        let mut name = match self.below(6) {
            0 => b"caf\xE9 \xFF\n".to_vec(),
            1 => b"-rf *".to_vec(),
            2 => b".hidden".to_vec(),
            3 => b"x".repeat(240),
            4 => b"...\\ \x01$'\"".to_vec(),
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
        let is_crowded = paths(&self.root).len() > CROWD && self.below(2) == 0;
        Some(
            match if is_crowded {
                14
            } else {
                self.below(STEP_KINDS)
            } {
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
                    file.write_all_at(b"end", 5 << 20).unwrap();
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
                    let (file, name) = (self.pick(|m| !m.is_dir())?, self.new_name()?);
                    fs::hard_link(file, name).unwrap();
                    "hard link"
                }
                10 => {
                    symlink("no where/\u{e9}", self.new_name()?).unwrap();
                    "symbolic link"
                }
                11 => {
                    let (place, value) =
                        (self.pick(|m| m.is_file() || m.is_dir())?, self.bytes(100));
                    set_xattr(&place, "user.pitr", &value);
                    "xattr"
                }
                12 => {
                    let place = self.pick(|m| m.is_file() || m.is_dir())?;
                    let kept = match () {
                        () if user::is_root() && (self.may_close_root || place != self.root) => 0,
                        () if place.is_dir() => 0o700,
                        () => 0o600,
                    };
                    let special = if self.below(3) == 0 { 0o10000 } else { 0o1000 };
                    let mode = u32::try_from(self.below(special)).unwrap() | kept;
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
                16 => {
                    let kind = [FileType::Fifo, FileType::Socket][self.random.below(2)];
                    self.make_special(kind, (0, 0))?;
                    "pipe or socket"
                }
                17 if user::is_root() => {
                    let kind = [FileType::CharacterDevice, FileType::BlockDevice];
                    let number = (self.below(500), self.below(70_000));
                    let kind = kind[self.random.below(2)];
                    self.make_special(kind, number)?;
                    "device"
                }
                18 if user::is_root() => {
                    let place = self.pick_inner(|_| true)?;
                    let ids = match self.below(3) {
                        0 => user::ids(),
                        _ => (
                            self.random.next() as u32 >> 15,
                            self.random.next() as u32 >> 15,
                        ),
                    };
                    lchown(place, Some(ids.0), Some(ids.1)).unwrap();
                    "owner"
                }
                19 => {
                    let place = self.pick_inner(|m| m.is_file() || m.is_dir())?;
                    let of = match place.is_dir() && self.below(2) == 0 {
                        true => "system.posix_acl_default",
                        false => "system.posix_acl_access",
                    };
                    set_xattr(&place, of, &self.acl());
                    assert!(xattrs(&place).contains_key(of), "ACLs are seen");
                    "ACL"
                }
                20 if user::is_root() => {
                    let place = self.pick(is_file)?;
                    match self.below(2) {
                        0 => set_xattr(&place, "trusted.pitr", &self.bytes(100)),
                        // cap_net_bind_service=ep, in the second revision (Linux: include/uapi/linux/capability.h).
                        _ => {
                            let words = [0x0200_0001_u32, 1 << 10, 0, 0, 0];
                            let value = words.map(u32::to_le_bytes).concat();
                            set_xattr(&place, "security.capability", &value);
                        }
                    }
                    "privileged xattr"
                }
                21 => {
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
                _ => return None,
            },
        )
    }

    /// Picks an entry that is not the directory itself.
    fn pick_inner(&mut self, fits: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
        self.pick(fits).filter(|place| *place != self.root)
    }

    fn make_special(&mut self, kind: FileType, (major, minor): (u64, u64)) -> Option<()> {
        let number = rustix::fs::makedev(major as u32, minor as u32);
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, self.new_name()?, kind, mode, number).unwrap();
        Some(())
    }

    /// An ACL with one named user, as the kernel takes it (Linux: include/uapi/linux/posix_acl_xattr.h).
    fn acl(&mut self) -> Vec<u8> {
        const NONE: u32 = u32::MAX;
        let own = if user::is_root() { 0 } else { 6 };
        let (uid, _) = user::ids();
        let id = if self.below(2) == 0 { uid } else { 70_001 };
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, id) in [(1, NONE), (2, id), (4, NONE), (0x10, NONE), (0x20, NONE)] {
            let kept = if tag == 1 { own } else { 0 };
            let allowed = self.below(8) as u16 | kept;
            value.extend(u16::to_le_bytes(tag));
            value.extend(allowed.to_le_bytes());
            value.extend(u32::to_le_bytes(id));
        }
        value
    }
}

fn set_xattr(place: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(place, name, value, XattrFlags::empty()).unwrap();
}
