//! Configuration files of this host: read whole, with what of them is secret.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::paths::Reader;
use super::trust::{self, Stop, relative};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::repo::keyring::is_private_key;
use crate::seal::share::Share;
use crate::secrets::{Found, Overrides, Searched, Values, matches, recognise};
use crate::snapshot::node::{Node, NodeKind, unstable};
use crate::tree::beneath;
use crate::tree::left_out::{LeftOut, Part};
use crate::tree::names::Names;
use crate::tree::replace::DEPOT_PREFIX;
use crate::tree::status::{Holder, Status, XattrReader};

/// A larger file is no configuration.
const FILE_LIMIT_BYTES: u64 = 8 << 20;
/// Room for a file that tells no length.
const UNTOLD_BYTES: usize = 64 << 10;
/// All files are in memory at one time: a secret of one may stand in another.
const ALL_LIMIT_BYTES: usize = 32 << 20;
/// No set has more entries.
const ENTRIES_MAX: usize = 20_000;

/// One entry.
pub struct Entry {
    /// Its path without the first slash.
    pub path: Vec<u8>,
    /// Its metadata.
    pub node: Node,
    /// The content of a file.
    pub content: Option<Zeroizing<Vec<u8>>>,
    /// The secrets in it.
    pub found: Vec<Found>,
}

/// All entries, by their paths.
#[derive(Default)]
pub struct Collected {
    pub entries: Vec<Entry>,
    /// Things that were not taken.
    pub left_out: LeftOut,
}

/// The files that are wanted.
#[derive(Default)]
pub struct Wanted<'w> {
    /// Paths that must be there.
    pub required: Vec<PathBuf>,
    /// Paths that may be absent.
    pub optional: Vec<PathBuf>,
    /// Files that a server's configuration names, and the user who reads them.
    pub of_server: Option<(Reader, Vec<PathBuf>)>,
    /// Paths that could not be looked at, and why.
    pub left_out: Vec<(PathBuf, String)>,
    /// Patterns of paths that are left out.
    pub exclude: &'w [String],
    /// Keys that the operator judges.
    pub overrides: Overrides,
    /// Files that open the repository, which are refused; none where nothing is stored.
    pub forbidden: Option<Vec<PathBuf>>,
}

struct Collector<'c> {
    root: File,
    wanted: &'c Wanted<'c>,
    host: &'c Host,
    names: Names,
    xattrs: XattrReader,
    entries: BTreeMap<Vec<u8>, Entry>,
    left_out: LeftOut,
    total_bytes: usize,
    /// Set while files are taken that a server's configuration names.
    reader: Option<Reader>,
}

/// Reads the files.
///
/// # Errors
/// `Refused` for a file that opens the repository, and for more than a set may hold; `Interrupted`.
pub fn collect(wanted: &Wanted<'_>, host: &Host) -> Result<Collected> {
    let root = File::open("/").map_err(|e| Error::from_io("open \"/\"", e))?;
    let mut collector = Collector {
        root,
        wanted,
        host,
        names: Names::of_host(),
        xattrs: XattrReader::new(),
        entries: BTreeMap::new(),
        left_out: LeftOut::default(),
        total_bytes: 0,
        reader: None,
    };
    for (path, why) in &wanted.left_out {
        if !collector.is_excluded(relative(path)) {
            collector.left_out.add(relative(path), Part::Entry, why);
        }
    }
    for path in &wanted.required {
        collector.named(path, true)?;
    }
    for path in &wanted.optional {
        collector.named(path, false)?;
    }
    if let Some((reader, paths)) = &wanted.of_server {
        collector.reader = Some(*reader);
        for path in paths {
            collector.named(path, false)?;
        }
    }
    collector.add_directories();
    collector.finish()
}

impl Collector<'_> {
    /// Takes what the operator named. A link is taken with what it leads to, if it is trusted.
    fn named(&mut self, path: &Path, is_required: bool) -> Result<()> {
        let found = trust::place(path).and_then(|place| {
            let metadata = place.symlink_metadata().map_err(Stop::Failed)?;
            Ok((metadata, place))
        });
        let (metadata, place) = match found {
            Ok(found) => found,
            Err(stop) if stop.is_absence() && !is_required => return Ok(()),
            Err(stop) => return self.stopped(path, &stop),
        };
        self.take(relative(&place), 0)?;
        if !metadata.is_symlink() {
            return Ok(());
        }
        match trust::resolve(&place) {
            Ok(target) => self.take(relative(&target), 0),
            Err(stop) if stop.is_absence() => Ok(()),
            Err(stop) => self.stopped(path, &stop),
        }
    }

    /// Names what was not reached. The link that ended the way is kept as one.
    fn stopped(&mut self, path: &Path, stop: &Stop) -> Result<()> {
        if self.is_excluded(relative(path)) {
            return Ok(());
        }
        self.left_out.add(relative(path), Part::Entry, stop);
        match stop {
            Stop::Untrusted(link) => self.take(relative(link), 0),
            Stop::Failed(_) => Ok(()),
        }
    }

    fn is_excluded(&self, path: &[u8]) -> bool {
        // Entries that a restore in place keeps.
        let is_kept = |name: &[u8]| name.starts_with(DEPOT_PREFIX.as_bytes());
        if path.split(|b| *b == b'/').any(is_kept) {
            return true;
        }
        let shown = format!("/{}", String::from_utf8_lossy(path));
        self.wanted.exclude.iter().any(|p| matches(p, &shown))
    }

    fn take(&mut self, path: &[u8], depth: usize) -> Result<()> {
        self.host.check_stop()?;
        if self.is_excluded(path) || self.entries.contains_key(path) {
            return Ok(());
        }
        if self.entries.len() >= ENTRIES_MAX || depth > 100 {
            return Err(too_much("more entries than configuration has"));
        }
        let (above, name) = beneath::cut(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = beneath::open(self.root.as_fd(), above, flags, Mode::empty());
        let status = opened.and_then(|above| Ok((Status::at(above.as_fd(), name)?, above)));
        let (status, above) = match status {
            Ok(found) => found,
            Err(e) => return self.left_out.leave(path, Part::Entry, e),
        };
        match status.kind {
            FileType::Directory if self.reader.is_some() => {
                let why = "PostgreSQL's configuration names it as a file, and it is a directory";
                self.left_out.leave(path, Part::Entry, why)
            }
            FileType::Directory => self.directory(path, depth),
            FileType::RegularFile => self.file(path),
            FileType::Symlink => {
                match rustix::fs::readlinkat(above.as_fd(), name, Vec::new()) {
                    Ok(target) => {
                        let node = status.node(NodeKind::Symlink(target.into_bytes()), &self.names);
                        self.add(path, node, None);
                    }
                    Err(e) => self.left_out.add(path, Part::Entry, e),
                }
                Ok(())
            }
            _ => self
                .left_out
                .leave(path, Part::Entry, "it is no file, directory or link"),
        }
    }

    fn directory(&mut self, path: &[u8], depth: usize) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = beneath::open(self.root.as_fd(), path, flags, Mode::empty());
        let read = opened.and_then(|directory| {
            let status = Status::of(directory.as_fd())?;
            let names: rustix::io::Result<Vec<Vec<u8>>> = rustix::fs::Dir::read_from(&directory)?
                .map(|entry| Ok(entry?.file_name().to_bytes().to_vec()))
                .collect();
            Ok((status, names?))
        });
        let (status, mut names) = match read {
            Ok(read) => read,
            Err(e) => return self.left_out.leave(path, Part::Content, e),
        };
        self.add(path, status.node(NodeKind::Directory, &self.names), None);
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        for name in names {
            let below = match path.is_empty() {
                true => name,
                false => [path, b"/", &name].concat(),
            };
            self.take(&below, depth + 1)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8]) -> Result<()> {
        let opened = beneath::open_file(self.root.as_fd(), path).map(File::from);
        let read = opened.and_then(|file| {
            let before = Status::of(file.as_fd())?;
            let refusal = self.reader.and_then(|reader| reader.refusal(&before));
            if let Some(why) = refusal {
                return Ok(Err(why));
            }
            let content = content(&file, before.length)
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            Ok(Ok((Status::of(file.as_fd())?, before, content, file)))
        });
        let (after, before, content, file) = match read {
            Ok(Ok(read)) => read,
            Ok(Err(why)) => return self.left_out.leave(path, Part::Entry, why),
            Err(e) => return self.left_out.leave(path, Part::Entry, e),
        };
        if before.length.max(content.len() as u64) > FILE_LIMIT_BYTES {
            let why = "it has more than 8 MiB, and is no configuration: pitr files takes it";
            return self.left_out.leave(path, Part::Entry, why);
        }
        self.check_own(path, &content)?;
        self.total_bytes += content.len();
        if self.total_bytes > ALL_LIMIT_BYTES {
            return Err(too_much("more than 32 MiB"));
        }
        let mut node = before.node(NodeKind::File(0), &self.names);
        let left_out = &mut self.left_out;
        node.xattrs = self.xattrs.read(Holder::Open(file.as_fd()), &mut |why| {
            left_out.add(path, Part::Xattr, why);
        });
        // Attributes of users may hold anything.
        node.xattrs.retain(|(name, _)| !name.starts_with(b"user."));
        node.links = None;
        let is_longer = before.length > 0 && content.len() as u64 > before.length;
        for (is_so, bit) in [
            (is_longer || after.length != before.length, unstable::SIZE),
            (after.mtime != before.mtime, unstable::MTIME),
            (after.ctime != before.ctime, unstable::CTIME),
            ((content.len() as u64) < before.length, unstable::SHRANK),
        ] {
            node.unstable |= if is_so { bit } else { 0 };
        }
        self.add(path, node, Some(content));
        Ok(())
    }

    /// Refuses a key file of the repository: it would be lost with the repository, and each reader of the backup could open everything.
    fn check_own(&self, path: &[u8], content: &[u8]) -> Result<()> {
        let Some(forbidden) = &self.wanted.forbidden else {
            return Ok(());
        };
        let place = Path::new("/").join(std::ffi::OsStr::from_bytes(path));
        let is_forbidden = forbidden
            .iter()
            .any(|one| one.canonicalize().is_ok_and(|one| one == place) || *one == place);
        if !is_forbidden && !is_private_key(content) && !Share::is_in(content) {
            return Ok(());
        }
        let shown = place.display();
        Err(
            err!(Refused, "\"{shown}\" is a private key, a share of one or a passphrase of a repository, which does not belong into it").hint(format!(
                "Nothing was stored. Keep it in a safe, and leave it out here: exclude = [\"{shown}\"]."
            )),
        )
    }

    fn add(&mut self, path: &[u8], node: Node, content: Option<Zeroizing<Vec<u8>>>) {
        let name = String::from_utf8_lossy(path);
        let bytes = content.as_deref().map_or(&[][..], Vec::as_slice);
        let found = recognise(&name, bytes, &self.wanted.overrides);
        let entry = Entry {
            path: path.to_vec(),
            node,
            content,
            found,
        };
        self.entries.insert(path.to_vec(), entry);
    }

    /// Adds the directories on the way to the entries.
    fn add_directories(&mut self) {
        let mut above: Vec<Vec<u8>> = vec![Vec::new()];
        for path in self.entries.keys() {
            let mut path = path.as_slice();
            while !path.is_empty() {
                path = beneath::cut(path).0;
                above.push(path.to_vec());
            }
        }
        above.sort();
        above.dedup();
        for path in above {
            if self.entries.contains_key(&path) {
                continue;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let opened = beneath::open(self.root.as_fd(), &path, flags, Mode::empty());
            let node = match opened.and_then(|directory| Status::of(directory.as_fd())) {
                Ok(status) => status.node(NodeKind::Directory, &self.names),
                // It went meanwhile; the tree needs it all the same.
                Err(_) => Node::new(NodeKind::Directory, 0o700, Default::default()),
            };
            self.add(&path, node, None);
        }
    }

    fn finish(self) -> Result<Collected> {
        let mut entries: Vec<Entry> = self.entries.into_values().collect();
        let mut values = Values::default();
        for entry in &entries {
            if let (Some(content), Some(owner)) = (&entry.content, &entry.node.owner) {
                values.add(owner.uid, content, &entry.found);
            }
        }
        values.find(entries.iter_mut().filter_map(|entry| {
            Some(Searched {
                owner: entry.node.owner.as_ref()?.uid,
                content: entry.content.as_ref()?.as_slice(),
                found: &mut entry.found,
            })
        }))?;
        Ok(Collected {
            entries,
            left_out: self.left_out,
        })
    }
}

/// Reads a file to its end, or to one byte more than the limit. A length of 0 may say nothing: the kernel's own files have it with any content.
fn content(file: &File, length: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = usize::try_from(FILE_LIMIT_BYTES).unwrap_or(usize::MAX);
    let mut room = match usize::try_from(length).unwrap_or(limit).min(limit) {
        // Some of them give all they have in one piece, or lose the rest.
        0 => UNTOLD_BYTES,
        room => room,
    };
    let mut content = Zeroizing::new(Vec::new());
    loop {
        // With room for all of it no copy of it stays behind.
        let mut more = Zeroizing::new(Vec::with_capacity(room + 2));
        more.extend_from_slice(&content);
        content = more;
        let rest = (room + 1).saturating_sub(content.len());
        file.take(rest as u64).read_to_end(&mut content)?;
        if content.len() <= room || room >= limit {
            break;
        }
        room = room.saturating_mul(2).max(UNTOLD_BYTES).min(limit);
    }
    match length {
        // Most are short.
        0 => Ok(Zeroizing::new(content.to_vec())),
        _ => Ok(content),
    }
}

fn too_much(what: &str) -> Error {
    err!(Refused, "the set has {what}")
        .hint("Nothing was stored. Name fewer paths, or back the directory up with pitr files.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::time::TimestampTz;

    #[test]
    fn u116_a_file_that_tells_no_length_is_read_to_its_end() {
        let place = PathBuf::from("/proc/sys/kernel/ostype");
        let wanted = Wanted {
            required: vec![place.clone()],
            ..Wanted::default()
        };
        let collected = collect(&wanted, &Host::still(TimestampTz(0), 1)).unwrap();
        let entry = collected.entries.iter().find(|e| e.content.is_some());
        let entry = entry.unwrap();
        assert_eq!(entry.content.as_deref(), Some(&b"Linux\n".to_vec()));
        assert_eq!(
            (entry.node.unstable, entry.path.as_slice()),
            (0, relative(&place))
        );
        assert_eq!(collected.left_out, LeftOut::default());
    }

    #[test]
    fn a_file_that_grows_is_read_whole_as_far_as_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grown");
        for length in [0, 1, 100_000, 1_000_000] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            let file = || File::open(&path).unwrap();
            for told in [0, 1, 1000, length as u64] {
                assert_eq!(content(&file(), told).unwrap().len(), length, "{told}");
            }
        }
        let limit = usize::try_from(FILE_LIMIT_BYTES).unwrap();
        std::fs::write(&path, vec![b'x'; limit + 9]).unwrap();
        for told in [0, 1, FILE_LIMIT_BYTES * 2] {
            let file = File::open(&path).unwrap();
            assert_eq!(content(&file, told).unwrap().len(), limit + 1, "{told}");
        }
    }
}
