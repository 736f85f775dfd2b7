//! The files of a journal: its lock, one file for each segment of a timeline, and spare ones that were used before.
//!
//! A file is filled with zeros, given its header and synced under a spare name; then it gets its segment's name. So a file that has
//! such a name has a header, and writing into it changes no metadata.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, Mode, OFlags};

use super::Options;
use super::frame::{FileHeader, Frames, HEADER_BYTES, HEADER_USED};
use crate::config::account::Account;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::progress::Progress;

const LOCK: &str = "lock";
const SUFFIX: &str = ".wal";
const SPARE: &str = "spare-";
const DAMAGED: &str = "damaged-";
/// Files that are kept for the next segment; one is being filled by then.
const SPARES_MAX: usize = 2;
/// A file begins with this much room at most; a longer one grows as it is written.
const FIRST_BYTES: u64 = HEADER_BYTES + (17 << 20);
/// By how much it grows.
const STEP_BYTES: u64 = 1 << 20;
/// How much of a file without a complete segment is read to see whether anything lies behind its end.
const ZEROS: usize = 64 << 10;

/// A file being written: the segment it holds and where the next frame goes.
pub struct Open {
    pub header: FileHeader,
    pub file: File,
    /// Start of the next frame.
    pub offset: u64,
    /// The position of its first byte.
    pub lsn: Lsn,
    /// How far the file is filled with zeros.
    pub size: u64,
}

/// The WAL that recovery found of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub header: FileHeader,
    /// Behind the last byte of its last whole frame.
    pub to: Lsn,
}

impl Found {
    /// Whether the file holds the whole segment.
    pub fn is_complete(&self) -> bool {
        self.to == self.header.end_lsn()
    }
}

/// The result of recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The WAL of each segment's file, in the order of timelines and positions.
    pub found: Vec<Found>,
    /// Segments of which the journal held more: a file that follows begins at their end.
    pub damaged: Vec<SegmentName>,
}

/// The WAL that one file was found to hold.
enum Examined {
    Found(Found),
    /// No whole frame, in so many bytes.
    Empty(FileHeader, u64),
    /// The header is damaged, and the file was set aside.
    SetAside,
}

/// A file that takes the place of the damaged one of a segment once it is written.
pub struct StandIn {
    /// The name that it bears meanwhile.
    spare: String,
    header: FileHeader,
    file: File,
    size: u64,
    offset: u64,
    lsn: Lsn,
}

impl StandIn {
    /// Writes the next bytes of the segment: one frame, of [`PAYLOAD_MAX`](super::frame::PAYLOAD_MAX) bytes at most.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn write(&mut self, payload: &[u8]) -> Result<()> {
        let frame = [
            &self.header.frame(self.lsn, std::iter::once(payload)),
            payload,
        ]
        .concat();
        let written = self.file.write_all_at(&frame, self.offset);
        written.map_err(|e| Error::from_io(format!("write journal file \"{}\"", self.spare), e))?;
        self.offset += frame.len() as u64;
        self.lsn.0 += payload.len() as u64;
        Ok(())
    }

    /// The position behind the last byte that was written.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}

/// The directory of a journal, locked.
pub struct Files {
    directory: OwnedFd,
    path: PathBuf,
    system_identifier: u64,
    segment_size: SegmentSize,
    limit_bytes: Option<u64>,
    salt: AtomicU64,
    kept: Mutex<Kept>,
    _lock: File,
}

/// The files there are.
#[derive(Default)]
struct Kept {
    /// Names and lengths of spare files.
    spares: Vec<(String, u64)>,
    /// Lengths of the files of segments.
    segments: BTreeMap<SegmentName, u64>,
}

impl Kept {
    fn bytes(&self) -> u64 {
        let spares: u64 = self.spares.iter().map(|(_, size)| size).sum();
        spares + self.segments.values().sum::<u64>()
    }
}

impl Files {
    /// Opens the directory below the configured one, creating both where they are missing, and locks it.
    ///
    /// # Errors
    /// `Locked` when another process has it; `Config` when the limit leaves no room for two segments; what the filesystem says.
    pub fn open(options: &Options) -> Result<Files> {
        let path = options
            .directory
            .join(options.system_identifier.to_string());
        let least = 2 * whole_size(options.segment_size);
        if let Some(limit) = options.limit_bytes.filter(|limit| *limit < least) {
            return Err(err!(
                Config,
                "journal_limit_bytes is {limit}, less than two segments need ({least})"
            ));
        }
        let failed = |e| {
            let e = Error::from_io(format!("open the journal \"{}\"", path.display()), e);
            match e.code() {
                Code::Denied => {
                    let owner = std::fs::metadata(&options.directory).map(|meta| meta.uid());
                    let own = rustix::process::geteuid().as_raw();
                    e.hint(next_of_denied(&options.directory, owner.ok(), own))
                }
                _ => e,
            }
        };
        create_directories(&path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let lock = lock(&directory, &path, options)?;
        Ok(Files {
            directory,
            system_identifier: options.system_identifier,
            segment_size: options.segment_size,
            limit_bytes: options.limit_bytes,
            salt: AtomicU64::new(options.nonce),
            kept: Mutex::default(),
            _lock: lock,
            path,
        })
    }

    /// The directory, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster's.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// Returns the path of a segment's file.
    pub fn path_of(&self, name: SegmentName) -> PathBuf {
        self.path.join(file_name(name))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.kept().bytes()
    }

    /// Bytes of the files of segments: spare ones give way.
    pub fn segment_bytes(&self) -> u64 {
        self.kept().segments.values().sum()
    }

    /// Bytes of the file of a segment; 0 where there is none.
    pub fn bytes_of(&self, name: SegmentName) -> u64 {
        self.kept().segments.get(&name).copied().unwrap_or(0)
    }

    /// How large they may become together, by the configuration and the filesystem.
    pub fn ceiling_bytes(&self) -> u64 {
        let free = rustix::fs::fstatvfs(&self.directory)
            .map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        let room = self.bytes().saturating_add(free);
        self.limit_bytes.map_or(room, |limit| limit.min(room))
    }

    /// Whether a file bears the name of this segment.
    pub fn has(&self, name: SegmentName) -> bool {
        self.kept().segments.contains_key(&name)
    }

    /// Reads every file, and returns what each segment's file holds. A file that holds nothing becomes spare.
    ///
    /// Call it once, before anything is created. A file whose header is damaged is set aside, and so is one that lost its first frame.
    pub fn recover(&self, progress: &dyn Progress) -> Result<Recovered> {
        let failed = |e| Error::from_io(format!("read the journal \"{}\"", self.path.display()), e);
        let (mut names, mut aside) = (Vec::<SegmentName>::new(), Vec::new());
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if name.starts_with(durable::TEMPORARY_PREFIX) {
                // A status that was not finished; only the holder of the lock writes it.
                durable::remove_in(self.directory.as_fd(), &name).map_err(failed)?;
            } else if name.starts_with(SPARE) {
                let size = entry.metadata().map_err(failed)?.len();
                self.kept().spares.push((name, size));
            } else if let Some(segment) = name.strip_suffix(SUFFIX).and_then(|n| n.parse().ok()) {
                names.push(segment);
            } else {
                aside.extend(set_aside_before(&name));
            }
        }
        names.sort_unstable();
        let (mut found, mut empty) = (Vec::new(), Vec::new());
        for name in &names {
            let next = name.next(self.segment_size);
            let is_followed = next.is_some_and(|next| names.binary_search(&next).is_ok());
            match self.examine(*name, is_followed, progress)? {
                Examined::Found(one) => found.push(one),
                Examined::Empty(header, size) => empty.push((header, size)),
                Examined::SetAside => aside.push(*name),
            }
        }
        // The file that is made ahead is empty, too, and nothing follows it.
        for (header, size) in empty {
            let shown = file_name(header.name());
            let next = header.name().next(self.segment_size);
            match found.iter().any(|f| Some(f.header.name()) == next) {
                true => {
                    self.set_aside(&shown).map_err(failed)?;
                    progress.warn(&told_aside(&shown, "it has no whole frame"));
                    aside.push(header.name());
                }
                false => self.to_spare(&shown, size).map_err(failed)?,
            }
        }
        // Nothing was written into a file before all of the one before was synced: so only the last can be torn where its headers say
        // that it is whole.
        if let Some(mut last) = found.pop() {
            last.to = self.verify(&last.header)?;
            if last.to == last.header.start_lsn {
                self.release(last.header.name()).map_err(failed)?;
            } else {
                if !last.is_complete() {
                    self.cut(&last)?;
                }
                found.push(last);
            }
        }
        self.trim_spares().map_err(failed)?;
        let damaged = damaged(&found, aside, self.segment_size);
        Ok(Recovered { found, damaged })
    }

    fn examine(
        &self,
        name: SegmentName,
        is_followed: bool,
        progress: &dyn Progress,
    ) -> Result<Examined> {
        let shown = file_name(name);
        let failed = |e| Error::from_io(format!("read journal file \"{shown}\""), e);
        let file = self.open_file(&shown).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let header = match read_header(&file).and_then(|h| self.belongs(&h, name).map(|()| h)) {
            Ok(header) => header,
            Err(e) if e.code() == Code::Damaged => {
                self.set_aside(&shown).map_err(failed)?;
                progress.warn(&told_aside(&shown, &e.to_string()));
                return Ok(Examined::SetAside);
            }
            Err(e) => return Err(e.context(format!("read journal file \"{shown}\""))),
        };
        // A process that was killed may have written without syncing, and after a failed sync the pages in memory may differ from the
        // disk. So first everything goes to the disk, and then it is read from there.
        durable::sync_file(&file).map_err(failed)?;
        let whole = Frames::new(file, header).skip_to(header.end_lsn());
        let to = match whole.map_err(failed) {
            Ok(true) => Ok(header.end_lsn()),
            Ok(false) => self.verify(&header),
            Err(e) => Err(e),
        };
        let to = match to {
            // A sector that cannot be read ends the file, as one that rotted does, where nothing is to be written behind it.
            Err(e) if is_followed => {
                let to = self.readable_end(name)?;
                (to > header.start_lsn).then_some(to).ok_or(e)?
            }
            to => to?,
        };
        if to > header.start_lsn {
            self.kept().segments.insert(name, size);
            return Ok(Examined::Found(Found { header, to }));
        }
        Ok(Examined::Empty(header, size))
    }

    /// Returns the position up to which the file of a segment can be read, whatever the disk says of the rest; the segment's start where its
    /// header cannot be.
    ///
    /// # Errors
    /// `Usage` when the name is none of this segment size.
    pub fn readable_end(&self, name: SegmentName) -> Result<Lsn> {
        let start = name.start_lsn(self.segment_size)?;
        Ok(self.read(name).map_or(start, |mut frames| {
            let _ = frames.read_to_end();
            frames.lsn()
        }))
    }

    /// Reads and checks all frames of a file from the disk; returns the position behind the last whole one.
    fn verify(&self, header: &FileHeader) -> Result<Lsn> {
        let shown = file_name(header.name());
        let verify = || -> std::io::Result<Lsn> {
            let file = self.open_file(&shown)?;
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            let mut frames = Frames::new(file, *header);
            frames.read_to_end()?;
            Ok(frames.lsn())
        };
        verify().map_err(|e| Error::from_io(format!("read journal file \"{shown}\""), e))
    }

    fn belongs(&self, header: &FileHeader, name: SegmentName) -> Result<()> {
        if header.system_identifier != self.system_identifier {
            return Err(err!(
                Damaged,
                "it belongs to system identifier {}",
                header.system_identifier
            ));
        }
        if header.segment_size != self.segment_size {
            return Err(err!(
                Refused,
                "it holds a segment of {} bytes, the server has segments of {}",
                header.segment_size.bytes(),
                self.segment_size.bytes()
            )
            .hint("After pg_resetwal --wal-segsize the same name means another position. Move the journal's files away."));
        }
        match header.name() == name {
            true => Ok(()),
            false => Err(err!(Damaged, "it holds segment \"{}\"", header.name())),
        }
    }

    /// Cuts what lies behind the last whole frame of a file that will be written on. A clean end is left as it is, with its zeros.
    fn cut(&self, found: &Found) -> Result<()> {
        let shown = file_name(found.header.name());
        let cut = || -> std::io::Result<()> {
            let mut frames = Frames::new(self.open_file(&shown)?, found.header);
            frames.read_to_end()?;
            let offset = frames.offset();
            let file = frames.into_file();
            if is_zero_from(&file, offset)? {
                return Ok(());
            }
            file.set_len(offset)?;
            durable::sync_file(&file)?;
            self.kept().segments.insert(found.header.name(), offset);
            Ok(())
        };
        cut().map_err(|e| Error::from_io(format!("cut journal file \"{shown}\""), e))
    }

    /// Opens the file of a segment to write on behind its last whole frame.
    pub fn resume(&self, found: &Found) -> std::io::Result<Open> {
        let mut frames = Frames::new(
            self.open_file(&file_name(found.header.name()))?,
            found.header,
        );
        frames.read_to_end()?;
        let (offset, lsn) = (frames.offset(), frames.lsn());
        let file = frames.into_file();
        Ok(Open {
            header: found.header,
            offset,
            lsn,
            size: file.metadata()?.len(),
            file,
        })
    }

    /// Makes the file of a segment, of a spare one if there is one, durably.
    ///
    /// # Errors
    /// `Full` when there is no room, by the filesystem or by the limit; nothing is left then.
    pub fn create(&self, name: SegmentName) -> Result<Open> {
        let shown = file_name(name);
        let failed = |e| Error::from_io(format!("create journal file \"{shown}\""), e);
        let made = self.stand_in(name)?;
        let named = || -> std::io::Result<()> {
            durable::sync_data(&made.file)?;
            durable::name_in(self.directory.as_fd(), &made.spare, &shown)
        };
        if let Err(e) = named() {
            self.give_back(made);
            return Err(failed(e));
        }
        self.kept().segments.insert(name, made.size);
        Ok(Open {
            header: made.header,
            file: made.file,
            offset: made.offset,
            lsn: made.lsn,
            size: made.size,
        })
    }

    /// Makes a file with the header of a segment that bears a spare name still.
    ///
    /// # Errors
    /// As [`Files::create`].
    pub fn stand_in(&self, name: SegmentName) -> Result<StandIn> {
        let lsn = name.start_lsn(self.segment_size)?;
        let header = FileHeader {
            timeline: name.timeline,
            system_identifier: self.system_identifier,
            segment_size: self.segment_size,
            start_lsn: lsn,
            salt: self.next_salt(),
        };
        let shown = file_name(name);
        let failed = |e| Error::from_io(format!("create journal file \"{shown}\""), e);
        let spare = self.kept().spares.pop();
        let (spare, file, size) = match spare {
            Some((spare, size)) => {
                let file = self.open_file(&spare).map_err(failed)?;
                (spare, file, size)
            }
            None => {
                let size = FIRST_BYTES.min(whole_size(self.segment_size));
                self.check_limit(size)?;
                let spare = format!("{SPARE}{:016x}", header.salt);
                let file = self.fill_new(&spare, size).map_err(failed)?;
                (spare, file, size)
            }
        };
        if let Err(e) = file.write_all_at(&header.encode(), 0) {
            self.kept().spares.push((spare, size));
            return Err(failed(e));
        }
        Ok(StandIn {
            spare,
            header,
            file,
            size,
            offset: HEADER_BYTES,
            lsn,
        })
    }

    /// Keeps a file that takes no segment's place as a spare one.
    pub fn give_back(&self, made: StandIn) {
        self.kept().spares.push((made.spare, made.size));
    }

    /// Gives a file that was written the name of its segment, durably, in the place of the one that bears it.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn put_in_place(&self, made: StandIn) -> Result<()> {
        let shown = file_name(made.header.name());
        let put = || -> std::io::Result<u64> {
            durable::sync_file(&made.file)?;
            let directory = self.directory.as_fd();
            durable::move_over(
                (directory, made.spare.as_bytes()),
                (directory, shown.as_bytes()),
            )?;
            durable::sync_directory(directory)?;
            Ok(made.file.metadata()?.len())
        };
        let size =
            put().map_err(|e| Error::from_io(format!("replace journal file \"{shown}\""), e))?;
        self.kept().segments.insert(made.header.name(), size);
        Ok(())
    }

    fn fill_new(&self, name: &str, size: u64) -> std::io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(&self.directory, name, flags, mode)?);
        let filled = fill(&file, 0, size).and_then(|()| durable::sync_file(&file));
        if let Err(e) = filled {
            durable::remove_in(self.directory.as_fd(), name)?;
            return Err(e);
        }
        Ok(file)
    }

    /// Makes room for `length` bytes in a file. It is not durable before the next sync of the file.
    ///
    /// # Errors
    /// `Full` when there is no room, by the filesystem or by the limit.
    pub fn extend(&self, open: &mut Open, length: u64) -> Result<()> {
        let needed = open.offset + length;
        if needed <= open.size {
            return Ok(());
        }
        let name = open.header.name();
        let size = needed.max(whole_size(self.segment_size).min(open.size + STEP_BYTES));
        let grow = || {
            self.check_limit(size - open.size)?;
            fill(&open.file, open.size, size).map_err(|e| {
                Error::from_io(format!("extend journal file \"{}\"", file_name(name)), e)
            })
        };
        let mut grown = grow();
        // Spare files are the first to give way.
        while grown.as_ref().is_err_and(|e| e.code() == Code::Full) {
            let Some((spare, _)) = self.kept().spares.pop() else {
                break;
            };
            durable::remove_in(self.directory.as_fd(), &spare)
                .map_err(|e| Error::from_io(format!("remove journal file \"{spare}\""), e))?;
            grown = grow();
        }
        grown?;
        open.size = size;
        self.kept().segments.insert(name, size);
        Ok(())
    }

    fn check_limit(&self, more: u64) -> Result<()> {
        let bytes = self.bytes();
        match self.limit_bytes {
            Some(limit) if bytes + more > limit => Err(err!(
                Full,
                "the journal \"{}\" has {bytes} bytes, and {limit} are allowed",
                self.path.display()
            )),
            _ => Ok(()),
        }
    }

    /// Lets the file of a segment go: kept for another segment, or removed.
    pub fn release(&self, name: SegmentName) -> std::io::Result<()> {
        let Some(size) = self.kept().segments.remove(&name) else {
            return Ok(());
        };
        self.to_spare(&file_name(name), size)?;
        self.trim_spares()
    }

    fn to_spare(&self, name: &str, size: u64) -> std::io::Result<()> {
        let spare = format!("{SPARE}{:016x}", self.next_salt());
        durable::name_in(self.directory.as_fd(), name, &spare)?;
        self.kept().spares.push((spare, size));
        Ok(())
    }

    fn trim_spares(&self) -> std::io::Result<()> {
        loop {
            let surplus = {
                let mut kept = self.kept();
                match kept.spares.len() > SPARES_MAX {
                    true => kept.spares.pop(),
                    false => None,
                }
            };
            match surplus {
                Some((name, _)) => durable::remove_in(self.directory.as_fd(), &name)?,
                None => return Ok(()),
            }
        }
    }

    fn set_aside(&self, name: &str) -> std::io::Result<()> {
        let aside = format!("{DAMAGED}{:016x}-{name}", self.next_salt());
        durable::name_in(self.directory.as_fd(), name, &aside)
    }

    /// Opens the file of a segment for reading.
    ///
    /// # Errors
    /// `Damaged` when it is not what its name says; what the filesystem says.
    pub fn read(&self, name: SegmentName) -> Result<Frames<File>> {
        let shown = file_name(name);
        let file = self
            .open_file(&shown)
            .map_err(|e| Error::from_io(format!("open journal file \"{shown}\""), e))?;
        let header = read_header(&file)
            .and_then(|h| self.belongs(&h, name).map(|()| h))
            .map_err(|e| e.context(format!("read journal file \"{shown}\"")))?;
        Ok(Frames::new(file, header))
    }

    fn open_file(&self, name: &str) -> std::io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(rustix::fs::openat(
            &self.directory,
            name,
            flags,
            Mode::empty(),
        )?))
    }

    fn next_salt(&self) -> u64 {
        self.salt.fetch_add(1, Ordering::Relaxed)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Nothing panics while it holds this; a list is good even so.
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn file_name(name: SegmentName) -> String {
    format!("{name}{SUFFIX}")
}

/// The segment whose file an earlier process set aside under this name.
fn set_aside_before(name: &str) -> Option<SegmentName> {
    let rest = name.strip_prefix(DAMAGED)?.strip_suffix(SUFFIX)?;
    let (_, segment) = rest.split_once('-')?;
    segment.parse().ok()
}

fn told_aside(shown: &str, why: &str) -> String {
    format!(
        "journal file \"{shown}\" cannot be read ({why}) and was set aside; what it held is streamed again or, if the server no longer has it, recorded as a gap"
    )
}

/// The segments of which the journal held more: files that end early, and files that were set aside, where the next one begins at their end.
/// Once that one is let go, this was settled.
fn damaged(found: &[Found], mut aside: Vec<SegmentName>, size: SegmentSize) -> Vec<SegmentName> {
    let mut damaged: Vec<SegmentName> = found
        .iter()
        .zip(found.iter().skip(1))
        .filter(|(one, next)| !one.is_complete() && next.header.start_lsn >= one.header.end_lsn())
        .map(|(one, _)| one.header.name())
        .collect();
    let mut held: Vec<SegmentName> = found.iter().map(|f| f.header.name()).collect();
    aside.sort_unstable();
    aside.dedup();
    for name in aside.into_iter().rev() {
        let next = name.next(size);
        if !held.contains(&name) && next.is_some_and(|next| held.contains(&next)) {
            held.push(name);
            damaged.push(name);
        }
    }
    damaged
}

/// The usual size of a whole segment's file: a sixteenth is for frames that are short.
fn whole_size(segment: SegmentSize) -> u64 {
    HEADER_BYTES + segment.bytes() + segment.bytes() / 16
}

fn read_header(file: &File) -> Result<FileHeader> {
    let mut bytes = [0; HEADER_USED];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => FileHeader::decode(&bytes),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(err!(Damaged, "the journal file is shorter than its header"))
        }
        Err(e) => Err(Error::from_io("read the header", e)),
    }
}

fn is_zero_from(file: &File, mut offset: u64) -> std::io::Result<bool> {
    let mut buffer = vec![0; ZEROS];
    loop {
        let n = file.read_at(&mut buffer, offset)?;
        if n == 0 {
            return Ok(true);
        }
        if buffer.iter().take(n).any(|b| *b != 0) {
            return Ok(false);
        }
        offset += n as u64;
    }
}

/// Writes zeros. Allocating alone would not do: the first write of an allocated block still changes metadata.
fn fill(file: &File, from: u64, to: u64) -> std::io::Result<()> {
    use rustix::io::Errno;
    // This asks for all of the room before anything is written, where the filesystem can.
    match rustix::fs::fallocate(file, FallocateFlags::empty(), from, to - from) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(e) => return Err(e.into()),
    }
    let zeros = vec![0; ZEROS];
    let mut at = from;
    while at < to {
        let n = usize::try_from(to - at).map_or(ZEROS, |rest| rest.min(ZEROS));
        file.write_all_at(zeros.get(..n).unwrap_or_default(), at)?;
        at += n as u64;
    }
    Ok(())
}

fn create_directories(path: &Path) -> std::io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.exists()).collect();
    for directory in missing.iter().rev() {
        let parent = match directory.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let name = directory
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| std::io::Error::from(rustix::io::Errno::INVAL))?;
        durable::create_directory(File::open(parent)?.as_fd(), name)?;
    }
    Ok(())
}

/// The next step where user `own` may not use the configured directory; `owner` has it, where it is there.
fn next_of_denied(directory: &Path, owner: Option<u32>, own: u32) -> String {
    let me = Account::name_of(own);
    match owner.filter(|owner| *owner != own && *owner != 0) {
        Some(owner) => {
            let owner = Account::name_of(owner);
            format!(
                "The journal belongs to user {owner}, and this runs as {me}.\nRun the receiver as that user: sudo -u {owner} pitr receive"
            )
        }
        // It does not matter whose the directories above are: the receiver needs its own.
        None => format!(
            "The receiver runs as {me}, and needs a directory of its own.\nsudo install -d -m 0700 -o {me} {}",
            directory.display()
        ),
    }
}

/// Locks the directory for as long as the file is open, and writes into it by whom.
fn lock(directory: &OwnedFd, path: &Path, options: &Options) -> Result<File> {
    let failed =
        |e: std::io::Error| Error::from_io(format!("lock the journal \"{}\"", path.display()), e);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let fd = rustix::fs::openat(directory, LOCK, flags, mode).map_err(|e| failed(e.into()))?;
    let mut file = File::from(fd);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = (&file).take(200).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                text => text.escape_debug().to_string(),
            };
            return Err(
                err!(Locked, "journal \"{}\" is in use by {holder}", path.display()).hint(
                    "Two receivers cannot share a journal. Stop the other one, or give this one another directory and another slot.",
                ),
            );
        }
        Err(e) => return Err(failed(e.into())),
    }
    let text = format!("process {} since {}\n", std::process::id(), options.now);
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(text.as_bytes()));
    match written {
        // The lock is held all the same; only the other one's message says less.
        Err(e) if crate::error::io_code(&e) == Code::Full => {}
        other => other.map_err(failed)?,
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_is_denied_names_the_user_who_runs_or_has_it() {
        let directory = Path::new("/var/lib/pitr/journal");
        // No account has these numbers.
        let (own, other) = (3_999_999_001, 3_999_999_002);
        for owner in [None, Some(0), Some(own)] {
            let next = next_of_denied(directory, owner, own);
            let command = "install -d -m 0700 -o 3999999001 /var/lib/pitr/journal";
            assert!(next.ends_with(command), "{next}");
        }
        let next = next_of_denied(directory, Some(other), own);
        assert!(next.ends_with("sudo -u 3999999002 pitr receive"), "{next}");
    }
}
