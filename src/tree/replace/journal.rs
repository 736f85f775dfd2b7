//! The journal of a restore that can be undone: what it moves, and what directories were before.
//!
//! It is written before anything moves. A run without it has moved nothing; one with it and without the record of its end was interrupted.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::compare::Was;
use super::depot::Depot;
use super::failed;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::id::BackupId;
use crate::snapshot::node::Moment;
use crate::text::{hex, unhex};
use crate::tree::status::Status;

/// The record of all moves.
const JOURNAL: &str = "journal";
/// Written when everything is in its place.
const END: &str = "done";
const FORMAT: u32 = 1;
const LIMIT_BYTES: u64 = 1 << 30;

/// The restore that a journal is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// `files` or `config`.
    pub kind: String,
    /// Name of the set.
    pub name: String,
    pub backup: BackupId,
    /// When the restore began.
    pub began: TimestampTz,
}

/// Bytes of a path or an attribute, as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Bytes, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = unhex(&text).ok_or_else(|| D::Error::custom("no hexadecimal digits"))?;
        Ok(Bytes(bytes))
    }
}

/// Seconds and nanoseconds.
type Time = (i64, u32);

pub(super) fn time(moment: Moment) -> Time {
    (moment.seconds, moment.nanoseconds)
}

/// The facts by which an entry that was made is known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) is_directory: bool,
    pub(super) inode: u64,
    length: u64,
    mtime: Time,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Facts {
    pub(super) fn of(status: &Status) -> Facts {
        Facts {
            is_directory: status.kind == rustix::fs::FileType::Directory,
            inode: status.inode,
            length: status.length,
            mtime: time(status.mtime),
            mode: status.mode,
            uid: status.uid,
            gid: status.gid,
        }
    }

    /// Whether an entry is as it was made. Directories are settled later, and change with their entries.
    pub(super) fn are_of(&self, status: &Status) -> bool {
        let now = Facts::of(status);
        match self.is_directory && now.is_directory {
            true => self.inode == now.inode,
            false => *self == now,
        }
    }
}

/// An entry that is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) path: Bytes,
    /// Number of its slot.
    pub(super) slot: usize,
    /// The entry that takes the path; none where the path is removed.
    pub(super) made: Option<Facts>,
}

/// A directory before the restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    pub(super) path: Bytes,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) mtime: Time,
    /// None where they could not be read: an undo leaves them alone.
    pub(super) xattrs: Option<Vec<(Bytes, Bytes)>>,
}

impl Directory {
    pub(super) fn of(path: &[u8], was: &Was) -> Directory {
        let bytes = |one: &(Vec<u8>, Vec<u8>)| (Bytes(one.0.clone()), Bytes(one.1.clone()));
        let xattrs = was.xattrs.as_ref();
        Directory {
            path: Bytes(path.to_vec()),
            uid: was.status.uid,
            gid: was.status.gid,
            mode: was.status.mode,
            mtime: time(was.status.mtime),
            xattrs: xattrs.map(|xattrs| xattrs.iter().map(bytes).collect()),
        }
    }
}

/// All that a restore moves and settles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    format: u32,
    pub(super) run: String,
    pub(super) restore: Restore,
    /// In the order of the moves.
    pub(super) entries: Vec<Entry>,
    /// Parents come first.
    pub(super) directories: Vec<Directory>,
}

impl Journal {
    pub(super) fn new(run: String, restore: Restore) -> Journal {
        Journal {
            format: FORMAT,
            run,
            restore,
            entries: Vec::new(),
            directories: Vec::new(),
        }
    }

    /// Writes it, durably.
    pub(super) fn write(&self, depot: &Depot, nonce: u64) -> Result<()> {
        write(depot, JOURNAL, self, nonce)
    }

    /// Reads it; none where there is none.
    pub(super) fn read(depot: &Depot) -> Result<Option<Journal>> {
        let found: Option<Journal> = read(depot.directory.as_fd(), JOURNAL)?;
        match found {
            Some(journal) if journal.format != FORMAT => Err(err!(
                Unsupported,
                "the journal of a restore has format {}, and this version knows {FORMAT}",
                journal.format
            )
            .hint("Nothing was changed. Use the version of pitr that made it, or a newer one.")),
            found => Ok(found),
        }
    }

    /// Whether a directory has one.
    pub(super) fn is_in(directory: BorrowedFd<'_>) -> bool {
        Status::at(directory, JOURNAL.as_bytes()).is_ok()
    }

    /// Ends a run: what is in the depot is of no use from here on.
    pub(super) fn remove(depot: &Depot) -> Result<()> {
        durable::remove_in(depot.directory.as_fd(), JOURNAL).map_err(not_written)
    }
}

/// The state in which a restore left the target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    /// Times of change, by slot: a move changes them, so they are taken at the end.
    pub(super) ctimes: BTreeMap<usize, Time>,
    /// Owner, group and permissions of directories.
    pub(super) directories: BTreeMap<Bytes, (u32, u32, u32)>,
}

impl End {
    pub(super) fn write(&self, depot: &Depot, nonce: u64) -> Result<()> {
        // Keys of JSON are text: pairs instead.
        let pairs = Pairs {
            ctimes: self.ctimes.iter().map(|(a, b)| (*a, *b)).collect(),
            directories: self
                .directories
                .iter()
                .map(|(a, b)| (a.clone(), *b))
                .collect(),
        };
        write(depot, END, &pairs, nonce)
    }

    pub(super) fn read(depot: &Depot) -> Result<Option<End>> {
        let pairs: Option<Pairs> = read(depot.directory.as_fd(), END)?;
        Ok(pairs.map(|pairs| End {
            ctimes: pairs.ctimes.into_iter().collect(),
            directories: pairs.directories.into_iter().collect(),
        }))
    }

    /// Takes it back: the run is one that was interrupted from here on.
    pub(super) fn remove(depot: &Depot) -> Result<()> {
        durable::remove_in(depot.directory.as_fd(), END).map_err(not_written)
    }
}

#[derive(Serialize, Deserialize)]
struct Pairs {
    ctimes: Vec<(usize, Time)>,
    directories: Vec<(Bytes, (u32, u32, u32))>,
}

fn write(depot: &Depot, name: &str, value: &impl Serialize, nonce: u64) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| err!(Internal, "write JSON: {e}"))?;
    let write = || {
        let directory = depot.directory.try_clone()?;
        let mut file = durable::NewFile::create(directory, name, nonce)?;
        file.write_all(&text)?;
        file.publish()
    };
    match write() {
        Ok(durable::Published::Created) => Ok(()),
        Ok(durable::Published::Exists) => Err(err!(TargetWrite, "\"{name}\" is there already")),
        Err(e) => Err(not_written(e)),
    }
}

fn not_written(e: std::io::Error) -> Error {
    let error = Error::from_io("write the journal of the restore", e);
    match error.code() {
        Code::Full => error.hint("Free space there, then run the same command again."),
        _ => error.with_code(Code::TargetWrite),
    }
}

fn read<T: DeserializeOwned>(directory: BorrowedFd<'_>, name: &str) -> Result<Option<T>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(failed(name.as_bytes(), "open", e)),
    };
    let status = Status::of(file.as_fd()).map_err(|e| failed(name.as_bytes(), "look at", e))?;
    let own = rustix::process::geteuid().as_raw();
    if status.uid != own || status.length > LIMIT_BYTES {
        return Err(err!(Refused, "the journal of a restore is not ours")
            .hint("Nothing was changed. Look who made it."));
    }
    let mut text = Vec::new();
    let read = file.take(LIMIT_BYTES).read_to_end(&mut text);
    read.map_err(|e| {
        failed(
            name.as_bytes(),
            "read",
            Errno::from_io_error(&e).unwrap_or(Errno::IO),
        )
    })?;
    let value = serde_json::from_slice(&text);
    value.map(Some).map_err(|e| {
        err!(Damaged, "the journal of a restore cannot be read: {e}").hint(
            "Nothing was changed. What was replaced lies beside it, under the number of its slot.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_bytes_come_back() {
        let end = End {
            ctimes: [(3, (-5, 7))].into(),
            directories: [(Bytes(b"a\xff\n/b".to_vec()), (1, 2, 0o700))].into(),
        };
        let folder = tempfile::tempdir().unwrap();
        let run = "20261120T064049Z-482913".parse().unwrap();
        let root = std::fs::File::open(folder.path()).unwrap();
        let depot = Depot::make(root.as_fd(), b"", &run).unwrap();
        end.write(&depot, 1).unwrap();
        assert_eq!(End::read(&depot).unwrap(), Some(end));
        // Another one in its place is not replaced.
        let e = End::default().write(&depot, 2).unwrap_err();
        assert_eq!(e.code(), Code::TargetWrite);
        assert_eq!(Journal::read(&depot).unwrap(), None);
        let place = folder
            .path()
            .join(".pitr-rollback-20261120T064049Z-482913/journal");
        for (text, code) in [
            ("{", Code::Damaged),
            ("{\"format\":1}", Code::Damaged),
            (
                "{\"format\":2,\"run\":\"\",\"restore\":{\"kind\":\"\",\"name\":\"\",\"backup\":\"20261120T064049Z-482913-full\",\"began\":\"2026-11-20T06:40:49Z\"},\"entries\":[],\"directories\":[]}",
                Code::Unsupported,
            ),
        ] {
            std::fs::write(&place, text).unwrap();
            assert_eq!(Journal::read(&depot).unwrap_err().code(), code, "{text}");
        }
    }
}
