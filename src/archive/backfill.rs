//! What a failover left behind in a server's pg_wal: which files are worth archiving.
//!
//! A segment is taken only when its records reach its end: one that is still written, was preallocated, or holds the remains of an
//! earlier use of the file is left alone. Who pushes the files is the caller; push itself refuses tails that were padded when they
//! were restored.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::repo::index::{Summary, flag};
use crate::repo::indexer::Indexer;

/// A file of pg_wal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
    /// Its name.
    pub name: WalFileName,
    /// Why it is not taken; none = it is.
    pub left_out: Option<String>,
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
    Ok(found
        .into_iter()
        .map(|(name, path)| {
            let left_out = match name {
                WalFileName::Segment(segment) => incomplete(&path, segment),
                _ => None,
            };
            Candidate {
                path,
                name,
                left_out,
            }
        })
        .collect())
}

/// Why a segment is not whole, if it is not.
fn incomplete(path: &Path, name: SegmentName) -> Option<String> {
    match read(path, name) {
        Ok(problem) => problem,
        Err(e) => Some(e.to_string()),
    }
}

fn read(path: &Path, name: SegmentName) -> Result<Option<String>> {
    let Some(summary) = decode(path, name, false)? else {
        return Ok(Some("it is empty".into()));
    };
    Ok(if summary.has(flag::SWITCH) {
        None
    } else if summary.has(flag::DAMAGED) || summary.has(flag::ENDS_INSIDE) {
        Some(format!("its records end at {}", summary.valid_end))
    } else {
        None
    })
}

/// Decodes a segment's file; `None` when it is empty.
///
/// # Errors
/// `Damaged` when its first page does not belong to the name; what reading says.
pub(super) fn decode(path: &Path, name: SegmentName, is_partial: bool) -> Result<Option<Summary>> {
    let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 256 << 10];
    let mut indexer: Option<Indexer> = None;
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
            indexer = Some(Indexer::new(&identity, identity.start_lsn, name.timeline)?);
        }
        if let Some(indexer) = &mut indexer {
            indexer.feed(piece)?;
        }
    }
    Ok(indexer.map(|indexer| indexer.finish(is_partial).summary))
}
