//! The files that a failover left behind in a server's pg_wal, and which of them are worth archiving.
//!
//! A segment is taken only when its records reach its end. A segment that is still written, was preallocated, or holds
//! the remains of an earlier use of the file is left alone. The caller pushes the files; push itself refuses tails that
//! were padded when they were restored.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::version::Major;
use crate::wal::index::{Summary, flag};
use crate::wal::undecoded::Indexing;

/// Bytes that the header of a segment's first page takes.
const HEAD_BYTES: usize = 40;

/// A file of pg_wal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The path of the file.
    pub path: PathBuf,
    pub name: WalFileName,
    /// Why it is not taken; none = it is.
    pub left_out: Option<String>,
    /// The server keeps it for WAL to come: it was preallocated, or is an old segment under the name of a later one.
    pub is_spare: bool,
    /// How its WAL ends where it is the last written one of its timeline, and that is inside.
    pub ending: Option<Ending>,
}

/// How the WAL of a segment ends that its server did not fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Behind a whole record: whole as far as the server came.
    Sound,
    /// In a record that was written in part, as by a power cut. PostgreSQL ends there, too.
    Torn,
}

/// The directory with the WAL files: the one given, or the pg_wal in it.
///
/// # Errors
/// `NotFound` when it is not there; what the filesystem says.
pub fn directory(given: &Path) -> Result<PathBuf> {
    let inner = given.join("pg_wal");
    match std::fs::metadata(&inner) {
        Ok(meta) if meta.is_dir() => return Ok(inner),
        _ => {}
    }
    match std::fs::metadata(given) {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(err!(
            NotFound,
            "directory \"{}\" does not exist",
            given.display()
        )
        .hint("Nothing was archived. Name a data directory, its pg_wal, or a directory with WAL files: pitr wal backfill DIRECTORY")),
        _ => Ok(given.to_owned()),
    }
}

/// Looks at the WAL files of a directory: history files first, then by name, as the archiver would offer them.
///
/// # Errors
/// `SourceMissing` when the directory cannot be read.
pub fn candidates(directory: &Path) -> Result<Vec<Candidate>> {
    let failed = |e: std::io::Error| {
        Error::from_io(format!("read directory \"{}\"", directory.display()), e)
            .with_code(Code::SourceMissing)
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        found.push((name, entry.path()));
    }
    found.sort_by_key(|(name, _)| (!matches!(name, WalFileName::History(_)), name.to_string()));
    let (spare, last) = spare(&found);
    Ok(found
        .into_iter()
        .map(|(name, path)| {
            if spare.contains(&path) {
                return Candidate {
                    path,
                    name,
                    left_out: Some("kept for WAL to come".into()),
                    is_spare: true,
                    ending: None,
                };
            }
            let is_last = last.contains(&path);
            let (left_out, ending) = match name {
                WalFileName::Segment(segment) => incomplete(&path, segment, is_last),
                _ => (None, None),
            };
            Candidate {
                ending: ending.filter(|_| is_last),
                path,
                name,
                left_out,
                is_spare: false,
            }
        })
        .collect())
}

/// The files at the end of each timeline that hold nothing of what their names say, and the last one that does. A damaged one is
/// behind nothing of the kind: a segment that was written follows it.
fn spare(ascending: &[(WalFileName, PathBuf)]) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let (mut spare, mut last) = (BTreeSet::new(), BTreeSet::new());
    let mut written = BTreeSet::new();
    for (name, path) in ascending.iter().rev() {
        let WalFileName::Segment(segment) = name else {
            continue;
        };
        if !written.contains(&segment.timeline) && is_unwritten(path, *segment) {
            spare.insert(path.clone());
        } else if written.insert(segment.timeline) {
            last.insert(path.clone());
        }
    }
    (spare, last)
}

/// Whether a file begins with zeros, or with the first page of an earlier segment.
fn is_unwritten(path: &Path, name: SegmentName) -> bool {
    let mut head = [0; HEAD_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    if read.is_err() {
        return false;
    }
    if head == [0; HEAD_BYTES] {
        return true;
    }
    WalIdentity::read(&head).is_ok_and(|identity| {
        let own = name.number(identity.segment_size);
        own.is_ok_and(|own| identity.start_lsn < own.start_lsn(identity.segment_size))
    })
}

/// Whether a file begins with the WAL of its name. One that the server keeps for WAL to come does not.
pub fn is_of_name(path: &Path, name: SegmentName) -> bool {
    let mut head = [0; HEAD_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && WalIdentity::read(&head).is_ok_and(|found| found.matches(name).is_ok())
}

/// The end of the sound WAL in a file of `pg_wal`; none where nothing in it can be read.
pub fn end_of(path: &Path, name: SegmentName) -> Option<Lsn> {
    let summary = decode(path, name, false).ok().flatten();
    summary.map(|summary| summary.valid_end)
}

/// Returns why a file of `pg_wal` is not the whole segment of its name; none where it is.
pub fn unfit(path: &Path, name: SegmentName) -> Option<String> {
    incomplete(path, name, false).0
}

/// Why a segment is not whole, if it is not, and how its WAL ends. Headers of pages do not tell how far the last
/// written segment of a server was filled.
fn incomplete(path: &Path, name: SegmentName, is_last: bool) -> (Option<String>, Option<Ending>) {
    match decode(path, name, false) {
        Ok(None) => (Some("it is empty".into()), None),
        Ok(Some(summary)) if is_last && summary.has(flag::UNDECODED) => {
            let why = format!(
                "it is the last one, and a PostgreSQL newer than {} wrote it: whether it is whole is unknown",
                Major::NEWEST
            );
            (Some(why), None)
        }
        Ok(Some(summary)) if is_whole(&summary) => (None, None),
        Ok(Some(summary)) => {
            let why = format!("its records end at {}", summary.valid_end);
            let ending = match summary.has(flag::DAMAGED) {
                true => Ending::Torn,
                false => Ending::Sound,
            };
            (Some(why), Some(ending))
        }
        Err(e) => (Some(e.to_string()), None),
    }
}

fn is_whole(summary: &Summary) -> bool {
    summary.has(flag::SWITCH) || !(summary.has(flag::DAMAGED) || summary.has(flag::ENDS_INSIDE))
}

/// Decodes a segment's file; `None` when it is empty.
///
/// # Errors
/// `Damaged` when its first page does not belong to the name; what reading says.
pub(super) fn decode(path: &Path, name: SegmentName, is_partial: bool) -> Result<Option<Summary>> {
    let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 256 << 10];
    let mut indexer: Option<Indexing> = None;
    loop {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
            match file.read(rest).map_err(failed)? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        let piece = buffer.get(..filled).unwrap_or_default();
        if indexer.is_none() {
            let identity = WalIdentity::read(piece)?;
            identity.matches(name)?;
            indexer = Some(Indexing::new(&identity, name.timeline)?);
        }
        if let Some(indexer) = &mut indexer {
            indexer.feed(piece)?;
        }
    }
    Ok(indexer.map(|indexer| indexer.finish(is_partial).summary))
}
