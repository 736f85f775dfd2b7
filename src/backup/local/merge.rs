//! Joins the files that are there with those that the prior has, in key order: which are new, which may have changed, which are gone.

use std::path::Path;

use super::task::{Queue, Task};
use super::walk::{Listed, Walk};
use crate::backup::incremental::Prior;
use crate::error::Result;
use crate::progress::Progress;
use crate::repo::varint::{self, Reader};
use crate::snapshot::filekey::{ClusterNaming, FileKey};
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::{Item, Items};
use crate::snapshot::sink::FileSink;
use crate::snapshot::sort::{MEMORY_BYTES, Sorter};

/// Files that every backup writes anew when it stops.
const ENDS: [&[u8]; 2] = [b"backup_label", b"global/pg_control"];

/// The prior's entries, beside which files are laid.
struct Beside<'s, 'a> {
    items: Items<'s, 'a>,
    next: Option<Item>,
    /// Links of tablespaces that the prior has: the server's stop tells which of them are still there.
    links: Vec<FileKey>,
}

/// Sends the files of `walk` to `queue`, each with what `prior` has of it; records directories that changed, and what is gone. Returns the
/// prior's links of tablespaces.
///
/// # Errors
/// Those of the filesystem, of the prior's map and of the scratch file.
pub fn run(
    (walk, prior): (&Walk<'_>, &Prior<'_>),
    (sink, queue): (&FileSink<'_>, &Queue<'_>),
    (naming, scratch): (ClusterNaming, &Path),
    progress: &dyn Progress,
) -> Result<Vec<FileKey>> {
    let mut sorter = Sorter::new(scratch, MEMORY_BYTES);
    walk.run(
        &mut |listed| {
            let (key, payload) = encode(&listed);
            sorter.push(key.as_bytes(), &payload)
        },
        progress,
    )?;
    let mut beside = Beside {
        items: prior.snapshot.items(),
        next: None,
        links: Vec::new(),
    };
    beside.advance()?;
    sorter.drain(&mut |key, payload| {
        let key = FileKey::decode(key, &naming)?;
        let known = beside.up_to(&key, sink)?;
        match decode(payload)? {
            Some((mode, mtime)) => {
                let mode = mode & 0o7777;
                match known == Some(Metadata::Directory { mode, mtime }) {
                    true => Ok(()),
                    false => sink.directory(&key, mode, mtime),
                }
            }
            None => queue.send(Task { key, prior: known }),
        }
    })?;
    beside.rest(sink)?;
    Ok(beside.links)
}

fn encode(listed: &Listed) -> (&FileKey, Vec<u8>) {
    let mut payload = Vec::new();
    match listed {
        Listed::File(key) => (key, payload),
        Listed::Directory(key, mode, mtime) => {
            varint::put(&mut payload, u64::from(*mode));
            varint::put_zigzag(&mut payload, *mtime);
            (key, payload)
        }
    }
}

/// Permission bits and time of a directory; `None` for a file.
fn decode(payload: &[u8]) -> Result<Option<(u32, i64)>> {
    if payload.is_empty() {
        return Ok(None);
    }
    let mut r = Reader::new(payload, "a directory that was listed");
    Ok(Some((r.number()?, r.zigzag()?)))
}

impl Beside<'_, '_> {
    fn advance(&mut self) -> Result<()> {
        self.next = self.items.next().transpose()?;
        Ok(())
    }

    /// Goes on to `key`, and returns the prior's metadata there. The files that the prior has before it are gone.
    fn up_to(&mut self, key: &FileKey, sink: &FileSink<'_>) -> Result<Option<Metadata>> {
        while let Some(item) = self.next.take_if(|item| item.key < *key) {
            self.gone(item, sink)?;
            self.advance()?;
        }
        let Some(item) = self.next.take_if(|item| item.key == *key) else {
            return Ok(None);
        };
        self.advance()?;
        Ok(Some(item.metadata))
    }

    fn rest(&mut self, sink: &FileSink<'_>) -> Result<()> {
        while let Some(item) = self.next.take() {
            self.gone(item, sink)?;
            self.advance()?;
        }
        Ok(())
    }

    fn gone(&mut self, item: Item, sink: &FileSink<'_>) -> Result<()> {
        match item.metadata {
            Metadata::Symlink { .. } if item.path.starts_with(b"pg_tblspc/") => {
                self.links.push(item.key);
                Ok(())
            }
            _ if ENDS.contains(&item.path.as_slice()) => Ok(()),
            _ => sink.gone(&item.key),
        }
    }
}
