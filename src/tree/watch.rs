//! Hears that something in a directory changed, by inotify. A walk finds out what changed: a lost event costs a walk, and no change.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::filesystem::Filesystem;
use super::selection::Selection;
use super::status::Status;
use crate::error::{Code, Error, Result};

const BUFFER_BYTES: usize = 64 << 10;
/// So many events are taken at once, and what a buffer has beyond them. The caller would hear nothing while they come without end.
const EVENTS_MOST: usize = 100_000;

/// Hears of changes below a directory.
pub struct Watch<'w> {
    /// By name: an open directory would keep its filesystem from being unmounted.
    root: &'w Path,
    selection: &'w Selection,
    inotify: OwnedFd,
    /// Path of each directory that is watched.
    paths: BTreeMap<i32, Vec<u8>>,
    /// Device and inode of the directory: its name may lead elsewhere later.
    identity: (u64, u64),
    is_complete: bool,
}

/// News of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// Something changed.
    Changed,
    /// More than the kernel keeps: anything may have changed, and directories may be watched no more.
    Overflow,
    /// The directory itself is gone, or its filesystem.
    Gone,
}

impl<'w> Watch<'w> {
    /// Watches a directory with all that is in it, but for what the rules leave out.
    ///
    /// # Errors
    /// `SourceMissing` when the directory cannot be read; those of the system.
    pub fn start(root: &'w Path, selection: &'w Selection) -> Result<Watch<'w>> {
        let failed = |e: Errno| {
            Error::from_io(format!("watch \"{}\"", root.display()), e.into())
                .with_code(Code::SourceMissing)
        };
        let opened = open(root).map_err(failed)?;
        let status = Status::of(opened.as_fd()).map_err(failed)?;
        drop(opened);
        let created = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let mut watch = Watch {
            root,
            selection,
            inotify: created.map_err(failed)?,
            paths: BTreeMap::new(),
            identity: (status.device, status.inode),
            is_complete: true,
        };
        watch.add(Vec::new());
        Ok(watch)
    }

    /// The filesystem of the directory.
    pub fn device(&self) -> u64 {
        self.identity.0
    }

    /// Whether the name leads to the directory that is watched. No event tells that one above it was exchanged, or a link.
    pub fn is_current(&self) -> bool {
        let found = open(self.root).and_then(|root| Status::of(root.as_fd()));
        found.is_ok_and(|now| (now.device, now.inode) == self.identity)
    }

    /// How many directories are watched.
    pub fn directories(&self) -> usize {
        self.paths.len()
    }

    /// Whether the kernel lets this user watch all of them.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Waits for an event, and takes those that are there. The next call takes what is more than can be taken at once.
    ///
    /// # Errors
    /// Those of the system.
    pub fn hear(&mut self, patience: Duration) -> Result<Heard> {
        let failed = |e: Errno| Error::from_io("hear of changes", e.into());
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut poll = [PollFd::new(&self.inotify, PollFlags::IN)];
        match rustix::event::poll(&mut poll, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e)),
        }
        let events = self.events(EVENTS_MOST).map_err(failed)?;
        let mut heard = Heard::Nothing;
        for event in events {
            let told = self.take(&event);
            heard = match (heard, told) {
                (_, Heard::Gone) => return Ok(Heard::Gone),
                (Heard::Overflow, _) | (_, Heard::Overflow) => Heard::Overflow,
                (Heard::Changed, _) | (_, Heard::Changed) => Heard::Changed,
                _ => Heard::Nothing,
            };
        }
        Ok(heard)
    }

    fn events(&self, most: usize) -> rustix::io::Result<Vec<Event>> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            // Events in the buffer would be lost with it.
            if events.len() >= most && reader.is_buffer_empty() {
                return Ok(events);
            }
            match reader.next() {
                Ok(event) => events.push(Event {
                    directory: event.wd(),
                    flags: event.events(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                }),
                Err(Errno::WOULDBLOCK) => return Ok(events),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn take(&mut self, event: &Event) -> Heard {
        let has = |flag| event.flags.contains(flag);
        if has(ReadFlags::QUEUE_OVERFLOW) {
            return Heard::Overflow;
        }
        let Some(directory) = self.paths.get(&event.directory).cloned() else {
            return Heard::Nothing;
        };
        if has(ReadFlags::IGNORED) {
            self.paths.remove(&event.directory);
            return match directory.is_empty() {
                true => Heard::Gone,
                false => Heard::Changed,
            };
        }
        let Some(name) = &event.name else {
            let is_root = directory.is_empty();
            let is_gone = has(ReadFlags::UNMOUNT) || has(ReadFlags::MOVE_SELF);
            return match is_root && is_gone {
                true => Heard::Gone,
                false => Heard::Changed,
            };
        };
        let path = beneath::joined(&directory, name);
        let is_directory = has(ReadFlags::ISDIR);
        if self.selection.excludes(&path, is_directory).is_some() {
            return Heard::Nothing;
        }
        if is_directory && has(ReadFlags::MOVED_FROM) {
            self.forget(&path);
        }
        // Another one may be in the place of one that was moved: two can exchange their names. One that was closed may be open by now.
        let is_added = has(ReadFlags::CREATE)
            || has(ReadFlags::MOVED_FROM)
            || has(ReadFlags::MOVED_TO)
            || has(ReadFlags::ATTRIB);
        if is_directory && is_added {
            self.add(path);
        }
        Heard::Changed
    }

    /// Watches what no event tells: a filesystem that was mounted below, a directory that could not be read, and more once the kernel allows it.
    pub fn complete(&mut self) {
        self.is_complete = true;
        self.add_all(Vec::new(), true);
    }

    /// Watches a directory, then those in it: what appears meanwhile is heard of.
    fn add(&mut self, path: Vec<u8>) {
        self.add_all(path, false);
    }

    /// As [`Watch::add`]; `looks_below` tells whether directories are looked into that were watched before.
    fn add_all(&mut self, path: Vec<u8>, looks_below: bool) {
        let mut is_first = true;
        let mut pending = vec![path];
        while let Some(path) = pending.pop() {
            let added = self.add_one(&path, looks_below || is_first);
            is_first = false;
            match added {
                Ok(below) => pending.extend(below),
                Err(Errno::NOSPC | Errno::NOMEM | Errno::MFILE) => {
                    self.is_complete = false;
                    return;
                }
                // A directory that is gone or closed: the walk says what it cannot read.
                Err(_) => {}
            }
        }
    }

    fn add_one(&mut self, path: &[u8], looks_below: bool) -> rustix::io::Result<Vec<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = open(self.root)?;
        let directory = beneath::open(root.as_fd(), path, flags, Mode::empty())?;
        let status = Status::of(directory.as_fd())?;
        let is_outside = self.selection.one_file_system && status.device != self.device();
        if is_outside || Filesystem::of(directory.as_fd()) == Filesystem::Invented {
            return Ok(Vec::new());
        }
        // By the open directory: a name may lead elsewhere by now.
        let place = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let events = WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::EXCL_UNLINK
            | WatchFlags::ONLYDIR;
        let number = inotify::add_watch(&self.inotify, place, events)?;
        let before = self.paths.insert(number, path.to_vec());
        if before.as_deref() == Some(path) && !looks_below {
            return Ok(Vec::new());
        }
        let mut below = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let is_directory = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => Status::at(directory.as_fd(), name)
                    .is_ok_and(|status| status.kind == FileType::Directory),
                _ => false,
            };
            if !is_directory || [&b"."[..], b".."].contains(&name) {
                continue;
            }
            let path = beneath::joined(path, name);
            if self.selection.excludes(&path, true).is_none() {
                below.push(path);
            }
        }
        Ok(below)
    }

    /// Watches a directory no more that was moved, nor those in it: it may be outside by now.
    fn forget(&mut self, path: &[u8]) {
        let is_in = |of: &Vec<u8>| {
            let rest = of.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        let moved = self.paths.iter().filter(|(_, of)| is_in(of));
        let moved: Vec<i32> = moved.map(|(number, _)| *number).collect();
        for number in moved {
            self.paths.remove(&number);
            // One that the kernel has dropped already is what is wanted.
            let _ = inotify::remove_watch(&self.inotify, number);
        }
    }
}

fn open(root: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty())
}

/// An event of the kernel's.
struct Event {
    directory: i32,
    flags: ReadFlags,
    name: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const SOON: Duration = Duration::from_secs(5);
    const NOW: Duration = Duration::from_millis(50);

    fn is_heard(watch: &mut Watch<'_>) -> bool {
        let mut heard = watch.hear(SOON).unwrap() == Heard::Changed;
        while watch.hear(NOW).unwrap() != Heard::Nothing {
            heard = true;
        }
        heard
    }

    #[test]
    fn what_appears_in_a_new_directory_is_heard_of() {
        use rustix::fs::rename;
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("cache")).unwrap();
        let selection = Selection::new(&["/cache/".to_owned(), "*.tmp".to_owned()]).unwrap();
        let mut watch = Watch::start(&root, &selection).unwrap();
        assert_eq!(watch.directories(), 3);
        assert_eq!(watch.hear(NOW).unwrap(), Heard::Nothing);
        fs::write(root.join("a/b/file"), "x").unwrap();
        assert!(is_heard(&mut watch));
        fs::create_dir_all(root.join("new/deep/er")).unwrap();
        assert!(is_heard(&mut watch));
        assert_eq!(watch.directories(), 6);
        fs::write(root.join("new/deep/er/file"), "x").unwrap();
        assert!(is_heard(&mut watch));
        // Moved within the tree, it is watched under its new name; moved out of it, no more.
        rename(root.join("new"), root.join("a/moved")).unwrap();
        assert!(is_heard(&mut watch));
        fs::write(root.join("a/moved/deep/file"), "x").unwrap();
        assert!(is_heard(&mut watch));
        rename(root.join("a/moved"), place.path().join("outside")).unwrap();
        assert!(is_heard(&mut watch));
        assert_eq!(watch.directories(), 3);
        for quiet in ["outside/deep/file", "root/cache/file", "root/a/x.tmp"] {
            fs::write(place.path().join(quiet), "y").unwrap();
            assert_eq!(watch.hear(NOW).unwrap(), Heard::Nothing, "{quiet}");
        }
        fs::remove_dir_all(&root).unwrap();
        let mut last = watch.hear(SOON).unwrap();
        while last == Heard::Changed {
            last = watch.hear(SOON).unwrap();
        }
        assert_eq!(last, Heard::Gone);
    }

    #[test]
    fn u105_directories_that_exchange_their_names_are_watched_on() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("a/in-a")).unwrap();
        fs::create_dir_all(at("b/in-b")).unwrap();
        let selection = Selection::all().unwrap();
        let mut watch = Watch::start(place.path(), &selection).unwrap();
        let exchange = RenameFlags::EXCHANGE;
        renameat_with(CWD, at("a"), CWD, at("b"), exchange).unwrap();
        assert!(is_heard(&mut watch));
        assert_eq!(watch.directories(), 5);
        for place in ["a/x", "b/x", "a/in-b/x", "b/in-a/x"] {
            fs::write(at(place), "x").unwrap();
            assert!(is_heard(&mut watch), "{place}");
        }
    }

    #[test]
    fn u105_what_the_watch_lacks_is_added() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let below = place.path().join("a/b/c");
        fs::create_dir_all(&below).unwrap();
        let selection = Selection::all().unwrap();
        let mut watch = Watch::start(place.path(), &selection).unwrap();
        watch.forget(b"a/b");
        assert_eq!(watch.directories(), 2);
        watch.complete();
        assert_eq!(watch.directories(), 4);
        while watch.hear(NOW).unwrap() != Heard::Nothing {}
        // One that could not be read, and now can.
        watch.forget(b"a/b");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(place.path().join("a/b"), open).unwrap();
        assert!(is_heard(&mut watch));
        assert_eq!(watch.directories(), 4);
        fs::write(below.join("x"), "x").unwrap();
        assert!(is_heard(&mut watch));
    }

    #[test]
    fn events_without_end_are_taken_in_parts() {
        let place = tempfile::tempdir().unwrap();
        let selection = Selection::all().unwrap();
        let watch = Watch::start(place.path(), &selection).unwrap();
        let files = 3000;
        for n in 0..files {
            fs::write(place.path().join(n.to_string()), "").unwrap();
        }
        let parts: Vec<_> = std::iter::repeat_with(|| watch.events(1).unwrap())
            .take_while(|part| !part.is_empty())
            .collect();
        assert!(parts.len() > 1, "one buffer has no room for all of them");
        let made = |event: &&Event| event.flags.contains(ReadFlags::CREATE);
        assert_eq!(parts.iter().flatten().filter(made).count(), files);
    }

    #[test]
    fn more_than_the_kernel_keeps_is_said() {
        let place = tempfile::tempdir().unwrap();
        let selection = Selection::all().unwrap();
        let mut watch = Watch::start(place.path(), &selection).unwrap();
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        // Each is made, changed and closed; equal events in a row would be one.
        for n in 0..limit / 2 + 1 {
            fs::write(place.path().join(n.to_string()), "").unwrap();
        }
        let mut heard = Vec::new();
        while let told @ (Heard::Changed | Heard::Overflow) = watch.hear(NOW).unwrap() {
            heard.push(told);
        }
        assert!(heard.contains(&Heard::Overflow), "{heard:?}");
    }
}
