//! Reads files of a running server into a sink.
//!
//! A file is read up to the length that it has when it is opened; what is added later is in the WAL of the backup. One that has
//! vanished or shrunk by then is left out or stays short: the WAL says so, too. A full file of a relation keeps its length, with zeros at its
//! end: replay of a truncation looks for the files after it only behind a full one.
//!
//! PostgreSQL: src/backend/backup/basebackup.c, sendFile, which fills up a file that shrinks with zeros; src/backend/storage/smgr/md.c, mdnblocks
//! and mdtruncate.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use rustix::fs::{Advice, OFlags};

use super::against::Against;
use super::pages::{Checked, Findings};
use super::task::Task;
use super::walk::existing;
use crate::backup::rate::Rate;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::progress::Progress;
use crate::snapshot::filekey::{ClusterNaming, FileKey, RelationFile};
use crate::snapshot::frame::PAGE_BYTES;
use crate::snapshot::sink::{FRAME_BYTES, FileSink};
use crate::tree::walk;

/// Bytes read at once, a multiple of a page's.
const BUFFER_BYTES: usize = 256 << 10;

/// The parameters that all readers of a copy share.
pub struct Reading<'r, 'p> {
    /// The data directory.
    pub root: &'r Path,
    /// The real paths of the data directory and its tablespaces.
    pub real_roots: &'r [PathBuf],
    /// How tablespaces name their directories.
    pub naming: ClusterNaming,
    /// The start LSN, where pages have checksums.
    pub check_from: Option<Lsn>,
    /// Blocks in one file of a relation.
    pub relation_segment_blocks: u32,
    /// The prior of an incremental, and what changed since.
    pub against: Option<&'r Against<'p>>,
    /// The operator's limit.
    pub rate: &'r Rate,
    /// Set when everything has to end.
    pub is_over: &'r AtomicBool,
    /// Hears of bytes.
    pub progress: &'r dyn Progress,
}

/// One reader.
pub struct Reader<'r, 'p, 't> {
    reading: &'r Reading<'r, 'p>,
    pub(super) sink: FileSink<'t>,
    buffer: Vec<u8>,
    found: Findings,
}

impl<'r, 'p, 't> Reader<'r, 'p, 't> {
    /// A reader into `sink`.
    pub fn new(reading: &'r Reading<'r, 'p>, sink: FileSink<'t>) -> Reader<'r, 'p, 't> {
        Reader {
            reading,
            sink,
            buffer: vec![0; BUFFER_BYTES],
            found: Findings::default(),
        }
    }

    /// Reads files as they come, until there are no more.
    ///
    /// # Errors
    /// `Interrupted`; those of the filesystem and of the sink.
    pub fn run(mut self, files: &Mutex<Receiver<Task>>) -> Result<Findings> {
        while let Some(task) = walk::next(files, "reads files")? {
            self.file(&task)?;
        }
        self.sink.finish()?;
        Ok(self.found)
    }

    fn file(&mut self, task: &Task) -> Result<()> {
        let path = task.key.path(&self.reading.naming);
        let place = self.reading.root.join(OsStr::from_bytes(&path));
        let failed = |e| Error::from_io(format!("read \"{}\"", place.display()), e);
        let Some(file) = existing(open(&place), &place)? else {
            return self.vanished(task);
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        self.reading.check_place(&file, &place)?;
        let opened = Opened {
            key: &task.key,
            checked: self.reading.checked(&file, &task.key),
            is_full: self.reading.is_full(&task.key, metadata.len()),
            file: &file,
            place: &place,
            length: metadata.len(),
            mode: metadata.mode() & 0o7777,
            mtime: metadata.mtime(),
        };
        let reading = self.reading;
        match (reading.against, &task.prior) {
            (Some(against), Some(prior)) => match prior.file_length() {
                Some(length) => against.read(self, &opened, prior, length),
                None => self.whole(&opened),
            },
            _ => self.whole(&opened),
        }
    }

    /// A file that has vanished since it was listed is in no backup.
    fn vanished(&self, task: &Task) -> Result<()> {
        match task.prior {
            Some(_) => self.sink.gone(&task.key),
            None => Ok(()),
        }
    }

    fn whole(&mut self, opened: &Opened<'_>) -> Result<()> {
        self.sink.limit_frames(FRAME_BYTES);
        self.sink.begin(opened.key.clone())?;
        let is_whole = self.stretch(opened, 0, opened.length, &mut |sink, bytes| {
            sink.append(bytes)
        })?;
        if !is_whole {
            self.fill_up(opened)?;
        }
        self.sink.end(opened.mode, opened.mtime).map(|_| ())
    }

    /// Fills a full file of a relation up with zeros after a stretch that ended before. Any other file ends there.
    pub(super) fn fill_up(&mut self, opened: &Opened<'_>) -> Result<()> {
        let lacks = opened.length.saturating_sub(self.sink.position());
        match opened.is_full {
            true => self.sink.hole(lacks),
            false => Ok(()),
        }
    }

    /// The first block of a file, counted over all files of the fork.
    pub(super) fn first_block(&self, file: &RelationFile) -> u64 {
        u64::from(file.segment) * u64::from(self.reading.relation_segment_blocks)
    }

    /// Reads the bytes from `at` to `end`, in order, and hands them to `take`, pages whole. `false` where the file ends before.
    pub(super) fn stretch(
        &mut self,
        opened: &Opened<'_>,
        mut at: u64,
        end: u64,
        take: &mut Taker<'_, 't>,
    ) -> Result<bool> {
        while at < end {
            if self.reading.is_over.load(Ordering::Relaxed) {
                return Err(err!(Interrupted, "interrupted"));
            }
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let wanted = left.min(BUFFER_BYTES);
            let room = self.buffer.get_mut(..wanted).unwrap_or_default();
            let n = fill(opened.file, room, at).map_err(|e| opened.failed(e))?;
            let n = match n < wanted && opened.is_full {
                // A part of a page with zeros behind it would be a damaged one.
                true => n - n % PAGE_BYTES,
                false => n,
            };
            let bytes = room.get_mut(..n).unwrap_or_default();
            let n = match &opened.checked {
                Some(checked) => checked.check(bytes, at, &mut self.found)?,
                None => n,
            };
            take(&mut self.sink, bytes.get(..n).unwrap_or_default())?;
            self.reading.progress.advance(n as u64);
            self.reading.rate.take(n, self.reading.is_over);
            at += n as u64;
            if n < wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Takes bytes that were read.
pub(super) type Taker<'k, 't> = dyn FnMut(&mut FileSink<'t>, &[u8]) -> Result<()> + 'k;

/// A file that is open, and what it was like then.
pub(super) struct Opened<'o> {
    pub key: &'o FileKey,
    checked: Option<Checked<'o>>,
    /// Whether it is a file of a relation after which others of its fork may come.
    is_full: bool,
    file: &'o File,
    place: &'o Path,
    pub length: u64,
    pub mode: u32,
    pub mtime: i64,
}

impl Opened<'_> {
    fn failed(&self, e: io::Error) -> Error {
        Error::from_io(format!("read \"{}\"", self.place.display()), e)
    }
}

impl Reading<'_, '_> {
    /// Requires that no link on the way led out: root would read for the server's user what that user may not.
    fn check_place(&self, file: &File, place: &Path) -> Result<()> {
        let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map_err(|e| Error::from_io("read a link in \"/proc/self/fd\"", e))?;
        match self.real_roots.iter().any(|root| real.starts_with(root)) {
            true => Ok(()),
            false => Err(err!(
                Refused,
                "\"{}\" leads to \"{}\", out of data directory and tablespaces",
                place.display(),
                real.display()
            )
            .hint("Nothing was committed: PostgreSQL allows no link there. Put the directory in its place, or make it a tablespace.")),
        }
    }

    /// Whether a file is one of a relation that can grow no more.
    fn is_full(&self, key: &FileKey, length: u64) -> bool {
        let full = u64::from(self.relation_segment_blocks) * PAGE_BYTES as u64;
        key.relation().is_some() && length >= full
    }

    /// The check for a file whose pages have checksums.
    fn checked<'c>(&self, file: &'c File, key: &'c FileKey) -> Option<Checked<'c>> {
        let (relation, start_lsn) = (key.relation()?, self.check_from?);
        let first_block = u64::from(relation.segment) * u64::from(self.relation_segment_blocks);
        Some(Checked {
            file,
            key,
            first_block,
            start_lsn,
        })
    }
}

/// Opens a file; a link or a pipe that took its place is neither followed nor waited for.
fn open(place: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(place)?;
    // Reading ahead is a help, no need.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    Ok(file)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, position + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::progress::Silent;

    /// A directory that is replaced by a link between the walk and the reading.
    #[test]
    fn a_file_behind_a_link_that_leads_out_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (
            directory.path().join("data"),
            directory.path().join("other"),
        );
        for place in [&inside, &outside] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("f"), "x").unwrap();
        }
        std::os::unix::fs::symlink(&outside, inside.join("base")).unwrap();
        let reading = Reading {
            root: &inside,
            real_roots: &[inside.canonicalize().unwrap()],
            naming: ClusterNaming {
                major: 17,
                catalog_version: 1,
            },
            check_from: None,
            relation_segment_blocks: 1,
            against: None,
            rate: &Rate::new(None),
            is_over: &AtomicBool::new(false),
            progress: &Silent,
        };
        let check = |place: &Path| reading.check_place(&open(place).unwrap(), place);
        check(&inside.join("f")).unwrap();
        let refused = check(&inside.join("base/f")).unwrap_err();
        assert_eq!(refused.code(), Code::Refused);
        assert!(refused.to_string().contains("out of data directory"));
    }
}
