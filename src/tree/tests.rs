//! Trees with everything that a filesystem has, taken into a snapshot and made again: as root, and as a user without rights.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::extract::{Extracted, Permit, extract};
use super::left_out::{LeftOut, Part};
use super::replace::compare::{Change, Plan};
use super::replace::{Refuses, Target, Wanted};
use super::selection::Selection;
use super::status::{Holder, Status, XattrReader};
use super::walk::{Taken, Tree, has_more, is_sparse, take};
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::progress::Progress;
use crate::repo::scope::Scope;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Device, Moment, Node, NodeKind, unstable};
use crate::snapshot::reader::{Snapshot, SnapshotRoot};
use crate::snapshot::sink::FileSink;
use crate::snapshot::writer::{Options, SnapshotWriter, Written};
use crate::store::file::FileStore;

const READERS: usize = 3;
const NOBODY: u32 = 65534;

/// A directory with room for a source, a repository and a target.
struct Site {
    directory: tempfile::TempDir,
    host: Host,
}

impl Site {
    fn new() -> Site {
        let directory = tempfile::Builder::new().prefix("pitr").tempdir().unwrap();
        for name in ["source", "repository", "target", "outside"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Site {
            directory,
            host: Host::still(TimestampTz(0), 1),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source")
    }

    fn scope() -> Scope {
        Scope::aux("test", "x").unwrap()
    }

    fn write<T>(
        &self,
        produce: impl FnOnce(&SnapshotWriter<'_>) -> Result<T>,
    ) -> Result<(T, Written)> {
        let store = FileStore::open(&self.path("repository"), 1)?;
        let id = "20261120T064049Z-full".parse().unwrap();
        let mut options = Options::new(FrameCodec::Lz4, 2, std::env::temp_dir());
        options.sinks = READERS;
        std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, &store, &Site::scope(), &id, &options);
            let produced = produce(&writer)?;
            Ok((produced, writer.finish()?))
        })
    }

    fn take(&self) -> Result<(Taken, Written)> {
        self.write(|writer| self.take_with(writer, READERS))
    }

    fn take_with(&self, writer: &SnapshotWriter<'_>, readers: usize) -> Result<Taken> {
        let tree = Tree {
            root: &self.source(),
            selection: &Selection::all()?,
            before: None,
            readers,
            is_shared: true,
            host: &self.host,
        };
        take(&tree, writer, &mut || Ok(()))
    }

    fn read<T>(
        &self,
        written: &Written,
        read: impl FnOnce(&Snapshot<'_>) -> Result<T>,
    ) -> Result<T> {
        let store = FileStore::open(&self.path("repository"), 1)?;
        let id = "20261120T064049Z-full".parse().unwrap();
        let (head, map) = written.clone().head_and_map(id);
        let root = SnapshotRoot {
            head: &head,
            map: &map,
            naming: Naming::Tree,
        };
        read(&Snapshot::open(&store, &Site::scope(), root)?)
    }

    fn extract(&self, written: &Written, permit: Permit) -> Result<Extracted> {
        self.read(written, |snapshot| {
            let tick = &mut || self.host.check_stop();
            extract(
                snapshot,
                &self.path("target"),
                permit,
                2,
                (&self.host, tick),
            )
        })
    }

    fn nodes(&self, written: &Written) -> BTreeMap<Vec<u8>, Node> {
        let nodes = self.read(written, |snapshot| {
            snapshot
                .items()
                .map(|item| item.map(|i| (i.path, i.metadata)))
                .collect::<Result<Vec<_>>>()
        });
        let node = |metadata| match metadata {
            Metadata::Node(node) => *node,
            other => panic!("{other:?}"),
        };
        nodes
            .unwrap()
            .into_iter()
            .map(|(path, metadata)| (path, node(metadata)))
            .collect()
    }
}

/// Runs the named test's body as a user without rights: where this is root, in a process of its own.
fn as_user(test: &str, body: fn()) {
    if !is_root() {
        return body();
    }
    let name = format!("tree::tests::{test}");
    let ran = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name.as_str(), "--exact", "--nocapture"])
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}\n{errors}"
    );
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything below a directory, in words that tell all that has to come back.
fn describe(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
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
    let mut inodes: HashMap<u64, Vec<u8>> = HashMap::new();
    for path in paths {
        let (above, name) = (root.join(&path), OsStr::new("."));
        let is_directory = fs::symlink_metadata(&above).unwrap().is_dir();
        let (above, name) = match is_directory {
            true => (above.as_path(), name),
            false => (above.parent().unwrap(), above.file_name().unwrap()),
        };
        let directory = File::open(above).unwrap();
        let status = Status::at(directory.as_fd(), name.as_bytes()).unwrap();
        let holder = Holder::Named(directory.as_fd(), name.as_bytes());
        let xattrs = XattrReader::new().read(holder, &mut |why| panic!("{why}"));
        let place = root.join(&path);
        let content = match status.kind {
            FileType::RegularFile if status.length <= 4 << 20 => {
                blake3::hash(&fs::read(&place).unwrap()).to_string()
            }
            FileType::Symlink => format!("{:?}", fs::read_link(&place).unwrap()),
            FileType::CharacterDevice | FileType::BlockDevice => status.number.to_string(),
            _ => String::new(),
        };
        let path = path.as_os_str().as_bytes().to_vec();
        let same = inodes.entry(status.inode).or_insert_with(|| path.clone());
        let length = if is_directory { 0 } else { status.length };
        let is_sparse = status.allocated < length / 2;
        let text = format!(
            "{:?} {:o} {}:{} {:?} {length} {is_sparse} as {} {xattrs:?} {content}",
            status.kind,
            status.mode,
            status.uid,
            status.gid,
            status.mtime,
            same.escape_ascii(),
        );
        found.insert(path, text);
    }
    found
}

fn moment(seconds: i64, nanoseconds: u32) -> Moment {
    Moment {
        seconds,
        nanoseconds,
    }
}

fn set(path: &Path, mode: u32, seconds: i64, nanoseconds: u32) {
    let file = File::open(path).unwrap();
    let holder = Holder::Open(file.as_fd());
    holder.set_mtime(moment(seconds, nanoseconds)).unwrap();
    holder.set_mode(mode).unwrap();
}

/// Gives a file below `at` another name there.
fn name_again(at: &Path, from: &str, to: &str) {
    let directory = File::open(at).unwrap();
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let directory = directory.as_fd();
    crate::durable::name_again((directory, from), (directory, to)).unwrap();
}

/// An ACL that gives user 12345 the right to read: version 2, then tag, permissions and id of each entry.
fn acl() -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    let nobody_in_particular = u32::MAX;
    for (tag, permissions, id) in [
        (1_u16, 6_u16, nobody_in_particular),
        (2, 4, 12345),
        (4, 4, nobody_in_particular),
        (16, 4, nobody_in_particular),
        (32, 0, nobody_in_particular),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

/// Makes one of everything that a user may make.
fn make_everything(at: &Path) {
    let names: [&[u8]; 6] = [
        b"a",
        b"a-b",
        b"a b\n",
        b"caf\xE9\xFF",
        b"a/deep",
        b"a/deep/er",
    ];
    for name in names {
        fs::create_dir(at.join(OsStr::from_bytes(name))).unwrap();
        let inside = at
            .join(OsStr::from_bytes(name))
            .join(OsStr::from_bytes(b"\x01 *\xF0"));
        fs::write(inside, name).unwrap();
    }
    fs::write(at.join("empty"), "").unwrap();
    let noise: Vec<u8> = (0..3_000_001_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect();
    fs::write(at.join("large"), noise).unwrap();
    name_again(at, "large", "a/large too");
    name_again(at, "large", "z");
    symlink("nowhere", at.join("a/link")).unwrap();
    symlink("/etc", at.join("a-link")).unwrap();
    name_again(at, "a/link", "link again");
    let (directory, mode) = (File::open(at).unwrap(), Mode::from_raw_mode(0o620));
    let none = rustix::fs::makedev(0, 0);
    for (name, kind) in [("pipe", FileType::Fifo), ("socket", FileType::Socket)] {
        rustix::fs::mknodat(&directory, name, kind, mode, none).unwrap();
    }
    name_again(at, "pipe", "pipe again");
    let sparse = File::create(at.join("sparse")).unwrap();
    sparse.write_all_at(b"first", 5).unwrap();
    sparse.write_all_at(b"middle", (500 << 20) + 4097).unwrap();
    sparse.set_len(1 << 30).unwrap();
    for (name, value) in [
        ("user.b", &b""[..]),
        ("user.a", b"\0\xFF"),
        ("system.posix_acl_access", &acl()),
    ] {
        Holder::Open(sparse.as_fd())
            .set_xattr(name.as_bytes(), value)
            .unwrap();
    }
    let deep = File::open(at.join("a/deep")).unwrap();
    Holder::Open(deep.as_fd())
        .set_xattr(b"system.posix_acl_default", &acl())
        .unwrap();
    let holder = Holder::Named(directory.as_fd(), b"a-link");
    holder.set_mtime(moment(5, 7)).unwrap();
    set(&at.join("large"), 0o4751, -3, 999_999_999);
    set(&at.join("empty"), 0o400, 4_000_000_000, 1);
    set(&at.join("a-b"), 0o1777, 77, 5);
    set(&at.join("a/deep"), 0o2750, 78, 6);
    set(&at.join("a"), 0o500, 79, 7);
    set(at, 0o751, 80, 8);
}

fn check_everything(permit: Permit) -> (Site, Written, Extracted) {
    let site = Site::new();
    make_everything(&site.source());
    if is_root() {
        make_what_root_makes(&site.source());
    }
    let (taken, written) = site.take().unwrap();
    assert_eq!((taken.left_out, taken.unstable), (LeftOut::default(), 0));
    assert!(written.stored_bytes < 4_000_000, "{written:?}");
    let extracted = site.extract(&written, permit).unwrap();
    if permit == Permit::ALL {
        assert_eq!(extracted.left_out, Default::default());
        let (was, is) = (describe(&site.source()), describe(&site.path("target")));
        assert_eq!(extracted.entries, was.len() as u64);
        for (path, text) in &was {
            assert_eq!(is.get(path), Some(text), "{}", path.escape_ascii());
        }
        assert_eq!(is.len(), was.len());
    }
    let sparse = fs::metadata(site.path("target/sparse")).unwrap();
    assert!(sparse.blocks() < 200, "{} blocks", sparse.blocks());
    (site, written, extracted)
}

fn make_what_root_makes(at: &Path) {
    let directory = File::open(at).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    for (name, kind) in [
        ("char", FileType::CharacterDevice),
        ("block", FileType::BlockDevice),
    ] {
        let device = rustix::fs::makedev(240, 1_000);
        rustix::fs::mknodat(&directory, name, kind, mode, device).unwrap();
    }
    for (name, uid) in [
        ("large", 12345),
        ("a/deep", NOBODY),
        ("a-link", 12345),
        ("pipe", 12346),
    ] {
        Holder::Named(directory.as_fd(), name.as_bytes())
            .set_owner(uid, 54321)
            .unwrap();
    }
    Holder::Named(directory.as_fd(), b"large")
        .set_mode(0o4751)
        .unwrap();
    Holder::Named(directory.as_fd(), b"large")
        .set_mtime(moment(-3, 9))
        .unwrap();
    for name in ["a-link", "pipe", "large", "a-b"] {
        let holder = Holder::Named(directory.as_fd(), name.as_bytes());
        holder.set_xattr(b"trusted.pitr", name.as_bytes()).unwrap();
    }
    fs::create_dir(at.join("closed")).unwrap();
    fs::write(at.join("closed/inside"), "x").unwrap();
    fs::set_permissions(at.join("closed/inside"), Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(at.join("closed"), Permissions::from_mode(0o000)).unwrap();
}

#[test]
fn everything_comes_back() {
    check_everything(Permit::ALL);
}

#[test]
fn everything_of_a_user_comes_back() {
    as_user("everything_of_a_user_comes_back", || {
        check_everything(Permit::ALL);
    });
}

#[test]
fn what_was_not_asked_for_is_left_out_and_counted() {
    let (site, written, extracted) = check_everything(Permit::default());
    let left_out = extracted.left_out;
    let target = site.path("target");
    // Pipe, its other name, and socket; as root, two devices.
    let devices = if is_root() { 2 } else { 0 };
    assert_eq!(left_out.count(Part::Entry), 3 + devices, "{left_out:?}");
    assert!(!target.join("pipe").exists() && !target.join("pipe again").exists());
    // The file and the directory.
    assert_eq!(left_out.count(Part::Mode), 2);
    assert_eq!(
        fs::metadata(target.join("large")).unwrap().mode() & 0o7777,
        0o751
    );
    assert_eq!(left_out.count(Part::Owner), if is_root() { 3 } else { 0 });
    assert_eq!(left_out.count(Part::Xattr), if is_root() { 3 } else { 0 });
    let sparse = File::open(target.join("sparse")).unwrap();
    let xattrs = XattrReader::new().read(Holder::Open(sparse.as_fd()), &mut |why| panic!("{why}"));
    assert_eq!(xattrs.len(), 3);
    assert_eq!(left_out.total(), left_out.examples().len() as u64);
    let again = site.extract(&written, Permit::default()).unwrap_err();
    assert_eq!(again.code(), Code::Refused);
}

#[test]
fn what_cannot_be_read_is_counted_and_not_claimed() {
    as_user("what_cannot_be_read_is_counted_and_not_claimed", || {
        let site = Site::new();
        let source = site.source();
        for directory in ["closed", "listed"] {
            fs::create_dir(source.join(directory)).unwrap();
            fs::write(source.join(directory).join("inside"), "x").unwrap();
        }
        for name in ["open", "secret"] {
            fs::write(source.join(name), name).unwrap();
        }
        name_again(&source, "secret", "secret too");
        let mode = |name: &str, mode| {
            fs::set_permissions(source.join(name), Permissions::from_mode(mode)).unwrap();
        };
        mode("secret", 0);
        mode("closed", 0);
        mode("listed", 0o400);
        let (taken, written) = site.take().unwrap();
        let count = |part| taken.left_out.count(part);
        assert_eq!(
            (count(Part::Entry), count(Part::Content)),
            (3, 1),
            "{taken:?}"
        );
        let names: Vec<_> = site.nodes(&written).into_keys().collect();
        assert_eq!(names, [&b""[..], b"closed", b"listed", b"open"]);
        let extracted = site.extract(&written, Permit::ALL).unwrap();
        assert_eq!(extracted.left_out, Default::default());
        let closed = fs::metadata(site.path("target/closed")).unwrap();
        assert_eq!(closed.mode() & 0o7777, 0);
        mode("closed", 0o700);
        mode("listed", 0o700);
        fs::set_permissions(site.path("target/closed"), Permissions::from_mode(0o700)).unwrap();
    });
}

/// Does something once, when the first bytes have passed.
struct Meanwhile<F>(AtomicBool, F);

impl<F: Fn() + Send + Sync> Progress for Meanwhile<F> {
    fn advance(&self, _bytes: u64) {
        if !self.0.swap(true, Ordering::Relaxed) {
            self.1();
        }
    }
}

fn meanwhile(host: &Host, act: impl Fn() + Send + Sync + 'static) -> Host {
    host.with_progress(Arc::new(Meanwhile(AtomicBool::new(false), act)))
}

#[test]
fn a_file_that_changes_meanwhile_is_marked() {
    for (length, bits, expected) in [
        (300_000, unstable::SIZE | unstable::SHRANK, 300_000),
        (900_000, unstable::SIZE, 600_000),
        (600_000, 0, 600_000),
    ] {
        let mut site = Site::new();
        let path = site.source().join("busy");
        fs::write(&path, vec![7; 600_000]).unwrap();
        set(&path, 0o600, 1, 1);
        site.host = meanwhile(&site.host, move || {
            let mut file = File::options().append(true).open(&path).unwrap();
            file.set_len(length).unwrap();
            if length > 600_000 {
                file.write_all(b"more").unwrap();
            }
        });
        let (taken, written) = site.take().unwrap();
        assert_eq!(taken.unstable, 1);
        let node = &site.nodes(&written)[&b"busy"[..]];
        let always = unstable::MTIME | unstable::CTIME;
        assert_eq!(node.unstable & !always, bits, "cut or grown to {length}");
        assert_eq!(node.unstable & always, always);
        assert_eq!(
            (&node.kind, node.mtime.seconds),
            (&NodeKind::File(expected), 1)
        );
        site.host = Host::still(TimestampTz(0), 1);
        site.extract(&written, Permit::ALL).unwrap();
        let restored = fs::read(site.path("target/busy")).unwrap();
        assert!(restored == vec![7; usize::try_from(expected).unwrap()]);
    }
}

#[test]
fn a_name_that_leaves_its_hard_link_meanwhile_has_its_own_content() {
    let mut site = Site::new();
    let source = site.source();
    fs::write(source.join("b"), "old").unwrap();
    for name in ["a", "c"] {
        name_again(&source, "b", name);
    }
    fs::write(source.join("read before"), "x").unwrap();
    let place = source.clone();
    site.host = meanwhile(&site.host, move || {
        for (name, content) in [("a", "new a"), ("c", "new c")] {
            fs::remove_file(place.join(name)).unwrap();
            fs::write(place.join(name), content).unwrap();
        }
    });
    // With one reader, names of one file come last.
    let (taken, written) = site.write(|writer| site.take_with(writer, 1)).unwrap();
    assert_eq!(taken.left_out, LeftOut::default());
    site.host = Host::still(TimestampTz(0), 1);
    site.extract(&written, Permit::default()).unwrap();
    let content = |name: &str| fs::read_to_string(site.path("target").join(name)).unwrap();
    assert_eq!(
        (content("a"), content("b"), content("c")),
        ("new a".into(), "old".into(), "new c".into())
    );
}

/// A read error in the middle of a file: what was written of it by then is in no map.
#[test]
fn of_a_file_that_was_given_up_nothing_is_left() {
    let site = Site::new();
    let written = by_hand(&site, |sink| {
        sink.begin(tree_key("x")).unwrap();
        for number in 0..2000_u32 {
            let page = [u8::from(number % 2 == 0); 8192];
            sink.append(&page).unwrap();
        }
        sink.abandon();
        sink.gone(&tree_key("x")).unwrap();
    });
    assert_eq!(site.nodes(&written).len(), 2);
    let extracted = site.extract(&written, Permit::default()).unwrap();
    assert_eq!(extracted.entries, 2);
}

/// An object of a bucket that is replaced while it is read is read again: pieces of its former version stand in the unsorted map.
#[test]
fn a_file_that_is_begun_again_has_the_pieces_of_its_last_attempt_alone() {
    const HOLE: usize = 16 << 10;
    let site = Site::new();
    let written = by_hand(&site, |sink| {
        // An entry of the map has 512 pieces.
        for (byte, stretches) in [(1_u8, 900), (2, 700), (3, 600)] {
            sink.begin_shared(tree_key("x")).unwrap();
            for _ in 0..stretches {
                sink.append(&[byte; 64]).unwrap();
                sink.hole(HOLE as u64).unwrap();
            }
            match byte {
                3 => {
                    sink.limit(&tree_key("x"), 0).unwrap();
                    sink.end_node(node(NodeKind::File(0))).unwrap();
                }
                _ => sink.abandon(),
            }
        }
    });
    site.extract(&written, Permit::default()).unwrap();
    let expected = [&[3; 64][..], &[0; HOLE]].concat().repeat(600);
    assert!(fs::read(site.path("target/x")).unwrap() == expected);
}

/// As some filesystems in user space do, those of the kernel tell no length of files that have content.
#[test]
fn content_behind_the_length_is_seen() {
    assert!(has_more(&File::open("/proc/sys/kernel/ostype").unwrap(), 0));
    let mut file = tempfile::tempfile().unwrap();
    assert!(!has_more(&file, 0));
    file.write_all(b"ab").unwrap();
    assert!(has_more(&file, 1) && !has_more(&file, 2));
}

/// The zeros of a sparse file are not hashed, and so it has no turn. One that the filesystem compresses has one.
#[test]
fn fewer_blocks_than_bytes_are_no_hole() {
    let hole = |at: u64| move || Ok(at);
    assert!(!is_sparse(4096, 100_000, hole(100_000)));
    assert!(is_sparse(4096, 100_000, hole(4096)));
    assert!(is_sparse(4096, 100_000, || Err(Errno::INVAL)));
    assert!(!is_sparse(102_400, 100_000, || Err(Errno::INVAL)));
}

#[test]
fn sparse_files_without_end_make_a_backup_that_can_be_read() {
    let site = Site::new();
    let written = by_hand(&site, |sink| {
        for name in ["x", "y", "z"] {
            sink.begin(tree_key(name)).unwrap();
            sink.hole((1 << 63) - 1).unwrap();
            sink.end_node(node(NodeKind::File(0))).unwrap();
        }
    });
    assert_eq!(written.size_bytes, u64::MAX);
    assert_eq!(site.nodes(&written).len(), 5);
}

#[test]
fn a_directory_of_somebody_else_gets_no_files() {
    let site = Site::new();
    fs::write(site.source().join("f"), "x").unwrap();
    set(&site.source(), 0o755, 1, 1);
    let (_, written) = site.take().unwrap();
    let target = site.path("target");
    // Nobody but root can give a directory away.
    if is_root() {
        std::os::unix::fs::chown(&target, Some(NOBODY), Some(NOBODY)).unwrap();
        let refused = site.extract(&written, Permit::ALL).unwrap_err();
        assert_eq!(refused.code(), Code::Refused, "{refused}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        std::os::unix::fs::chown(&target, Some(0), Some(0)).unwrap();
    }
    // One's own is closed meanwhile.
    fs::set_permissions(&target, Permissions::from_mode(0o777)).unwrap();
    let seen = Arc::new(Mutex::new(0));
    let (place, noted) = (target.clone(), Arc::clone(&seen));
    let mut site = site;
    site.host = meanwhile(&site.host, move || {
        *noted.lock().unwrap() = fs::metadata(&place).unwrap().mode() & 0o7777;
    });
    site.extract(&written, Permit::ALL).unwrap();
    assert_eq!(*seen.lock().unwrap(), 0o700);
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_link_that_is_planted_meanwhile_leads_nowhere() {
    let mut site = Site::new();
    for directory in ["a", "b"] {
        fs::create_dir(site.source().join(directory)).unwrap();
        fs::write(site.source().join(directory).join("f"), directory).unwrap();
    }
    let (_, written) = site.take().unwrap();
    let (target, outside) = (site.path("target"), site.path("outside"));
    let planted = outside.clone();
    fs::write(outside.join("f"), "untouched").unwrap();
    site.host = meanwhile(&site.host, move || {
        for name in ["a", "b"] {
            fs::remove_dir_all(target.join(name)).unwrap();
            symlink(&planted, target.join(name)).unwrap();
        }
    });
    let refused = site.extract(&written, Permit::ALL).unwrap_err();
    assert_eq!(refused.code(), Code::TargetWrite, "{refused}");
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

fn node(kind: NodeKind) -> Node {
    Node::new(kind, 0o700, Moment::default())
}

fn put(sink: &FileSink<'_>, path: &str, kind: NodeKind) {
    sink.node(&tree_key(path), node(kind)).unwrap();
}

fn put_file(sink: &mut FileSink<'_>, key: FileKey, content: &[u8]) {
    sink.begin(key).unwrap();
    sink.append(content).unwrap();
    sink.end_node(node(NodeKind::File(0))).unwrap();
}

fn tree_key(path: &str) -> FileKey {
    FileKey::from_path(path.as_bytes(), Naming::Tree).unwrap()
}

/// A tree that is written by hand.
fn by_hand(site: &Site, produce: impl FnOnce(&mut FileSink<'_>)) -> Written {
    let write = |writer: &SnapshotWriter<'_>| {
        let mut sink = writer.sink();
        sink.node(&tree_key(""), node(NodeKind::Directory))?;
        sink.node(&tree_key("d"), node(NodeKind::Directory))?;
        produce(&mut sink);
        sink.finish()
    };
    site.write(write).unwrap().1
}

/// A repository may say that a link has entries below it.
#[test]
fn entries_below_a_link_are_not_made_where_it_leads() {
    for target in ["absolute", "../outside"] {
        let site = Site::new();
        let outside = site.path("outside");
        let target = match target {
            "absolute" => outside.as_os_str().as_bytes().to_vec(),
            _ => target.as_bytes().to_vec(),
        };
        let written = by_hand(&site, |sink| {
            put(sink, "a", NodeKind::Symlink(target));
            for (path, kind) in [
                ("a/d", NodeKind::Directory),
                ("a/p", NodeKind::Fifo),
                ("a/s", NodeKind::Symlink(b"x".to_vec())),
            ] {
                put(sink, path, kind);
            }
            put_file(sink, tree_key("a/x"), b"planted");
        });
        site.extract(&written, Permit::ALL).unwrap_err();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}

#[test]
fn other_names_of_what_has_none_are_damage() {
    for to in ["d", "nothing", "z/later", "l"] {
        let site = Site::new();
        let written = by_hand(&site, |sink| {
            put(sink, "l", NodeKind::HardLink(tree_key("d")));
            put(sink, "x", NodeKind::HardLink(tree_key(to)));
            put(sink, "z", NodeKind::Directory);
            put(sink, "z/later", NodeKind::Fifo);
        });
        let refused = site.extract(&written, Permit::ALL).unwrap_err();
        assert_eq!(refused.code(), Code::Damaged, "{to}");
    }
}

/// Plans a restore in place of a tree that is written by hand; the target has the file "own". The plan goes on to `then`.
fn compared<T>(
    refuses: Option<&Refuses<'_>>,
    produce: impl FnOnce(&mut FileSink<'_>),
    then: impl FnOnce(&Site, &Target, Plan, &mut ContentReader<'_, '_>) -> Result<T>,
) -> Result<T> {
    let site = Site::new();
    let own = site.path("target/own");
    fs::write(&own, "own").unwrap();
    set(&own, 0o700, 0, 0);
    let written = by_hand(&site, produce);
    site.read(&written, |snapshot| {
        let wanted = Wanted {
            snapshot,
            part: None,
            permit: Permit::ALL,
            trusts_times: true,
            settles_directories: false,
            refuses,
            removes: None,
        };
        let mut contents = ContentReader::new(snapshot);
        let target = Target::open(&site.path("target"))?;
        let plan = target.compare(&wanted, &mut contents, &mut || Ok(()))?;
        then(&site, &target, plan, &mut contents)
    })
}

/// A device cannot be made without the right to it, and then the file in its place is not what the backup means.
#[test]
fn a_file_in_the_place_of_what_cannot_be_made_gets_no_other_name() {
    as_user(
        "a_file_in_the_place_of_what_cannot_be_made_gets_no_other_name",
        || {
            let device = NodeKind::CharDevice(Device { major: 1, minor: 3 });
            let has_device = |sink: &mut FileSink<'_>| {
                put(sink, "own", device);
                put(sink, "x", NodeKind::HardLink(tree_key("own")));
            };
            compared(None, has_device, |site, target, plan, contents| {
                let tick = &mut || Ok(());
                let staged = target.stage(plan, Permit::ALL, contents, (&site.host, tick))?;
                let done = staged.switch(&mut || Ok(()))?;
                assert_eq!(done.left_out.count(Part::Entry), 2);
                assert!(!site.path("target/x").exists());
                assert_eq!(fs::read(site.path("target/own")).unwrap(), b"own");
                Ok(())
            })
            .unwrap();
        },
    );
}

/// A forged backup gives a file of the target another name, under which others may read it or an application writes into it.
#[test]
fn u84_files_of_the_target_that_the_backup_lacks_get_no_other_name() {
    let attachment = FileKey::attachment(b"own").unwrap();
    for to in [tree_key("own"), tree_key("d"), attachment.clone()] {
        let has_link = |sink: &mut FileSink<'_>| {
            sink.begin(attachment.clone()).unwrap();
            sink.end_node(node(NodeKind::File(0))).unwrap();
            let link = node(NodeKind::HardLink(to.clone()));
            sink.node(&tree_key("x"), link).unwrap();
        };
        let refused = compared(None, has_link, |_, _, _, _| Ok(())).unwrap_err();
        assert_eq!(refused.code(), Code::Damaged, "{to:?}");
    }
}

#[test]
fn u84_a_file_that_is_not_made_gets_no_other_name() {
    let has_own = |sink: &mut FileSink<'_>| {
        put_file(sink, tree_key("own"), b"own");
        put(sink, "x", NodeKind::HardLink(tree_key("own")));
    };
    let refuses: &Refuses<'_> = &|path, _| (path == b"own").then_some("lies outside");
    let plan = compared(Some(refuses), has_own, |_, _, plan, _| Ok(plan)).unwrap();
    assert_eq!(plan.count(Change::Create), 1, "the directory alone");
    let left: Vec<_> = plan.left_out.examples().iter().collect();
    assert_eq!((left.len(), &left[0].path[..]), (1, &b"x"[..]), "{left:?}");
    let plan = compared(None, has_own, |_, _, plan, _| Ok(plan)).unwrap();
    assert_eq!(plan.count(Change::Create), 2);
}

#[test]
fn attachments_stay_out_and_tags_that_are_not_known_are_reported() {
    let site = Site::new();
    let written = by_hand(&site, |sink| {
        put_file(
            sink,
            FileKey::attachment(b"d/f").unwrap(),
            b"no file of the tree",
        );
        sink.begin(tree_key("d/f")).unwrap();
        sink.append(b"a file").unwrap();
        let mut tagged = node(NodeKind::File(0));
        tagged.passed_over = vec![(1000, b"?".to_vec())];
        sink.end_node(tagged).unwrap();
        // Longer than any filesystem takes: it is left out, and all below it.
        let long = "x".repeat(300);
        put(sink, &long, NodeKind::Directory);
        put(sink, &format!("{long}/y"), NodeKind::Fifo);
    });
    let extracted = site.extract(&written, Permit::ALL).unwrap();
    assert_eq!(extracted.left_out.count(Part::Tag), 1);
    assert_eq!(extracted.left_out.count(Part::Entry), 2);
    assert_eq!((extracted.entries, extracted.written_bytes), (3, 6));
    assert_eq!(fs::read(site.path("target/d/f")).unwrap(), b"a file");
}

#[test]
fn a_walk_ends_when_it_is_told_to_or_has_nowhere_to_begin() {
    let site = Site::new();
    fs::write(site.source().join("f"), "x").unwrap();
    site.host.stop.store(true, Ordering::Relaxed);
    assert_eq!(site.take().unwrap_err().code(), Code::Interrupted);
    site.host.stop.store(false, Ordering::Relaxed);
    fs::remove_dir_all(site.source()).unwrap();
    assert_eq!(site.take().unwrap_err().code(), Code::SourceMissing);
}

/// Backups of before bound all content to paths, and their layers stay below newer ones.
#[test]
fn files_that_share_content_come_back_beside_files_that_do_not() {
    let site = Site::new();
    let noise = |seed: &str, length: usize| {
        let mut bytes = vec![0; length];
        blake3::Hasher::new_derive_key(seed)
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    };
    let (one, two) = (noise("one", 2_500_000), noise("two", 70_000));
    let files = [
        ("a", &one),
        ("b", &two),
        ("c", &one),
        ("d", &one),
        ("e", &two),
    ];
    let ((), written) = site
        .write(|writer| {
            let mut sink = writer.sink();
            sink.node(&tree_key(""), node(NodeKind::Directory))?;
            for (path, content) in files {
                match path {
                    "a" | "b" => sink.begin(tree_key(path))?,
                    _ => sink.begin_shared(tree_key(path))?,
                }
                sink.append(content)?;
                sink.end_node(node(NodeKind::File(0)))?;
            }
            sink.finish()
        })
        .unwrap();
    let stored: u64 = written.packs.iter().map(|pack| pack.live_bytes).sum();
    assert_eq!(stored, 2 * (one.len() + two.len()) as u64);
    let extracted = site.extract(&written, Permit::ALL).unwrap();
    let all = files.iter().map(|(_, content)| content.len() as u64);
    assert_eq!(extracted.written_bytes, all.sum::<u64>());
    for (path, content) in files {
        assert!(
            fs::read(site.path("target").join(path)).unwrap() == *content,
            "{path}"
        );
    }
}
