//! Compares what was copied with the server's own backup_manifest: every file there and back, sizes, CRC-32C. A backup without one gets a
//! manifest of what was written, for pg_verifybackup.
//!
//! Checksums of stretches arrive in the order of the packs and from several threads; they are sorted by path and position within a
//! memory ceiling, and combined. Stretches that no frame holds are zeros. A manifest with SHA checksums is compared by sizes: our own
//! hashes cover the content.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;

use super::extract::{panicked, withholds_file};
use super::tree::{shown, write_error};
use super::unlogged::Unlogged;
use crate::err;
use crate::error::Result;
use crate::pg::joined_crc;
use crate::pg::manifest::{FileChecksum, ManifestReader, ManifestWriter};
use crate::snapshot::filekey::{FileKey, Naming, RelationFile};
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;
use crate::snapshot::sort::Sorter;

/// Memory for records: a merge of more and smaller runs costs little, and the copy needs memory at the same time.
const RECORDS_BYTES: usize = 4 << 20;
/// Kinds of records; they follow the path in the key.
const LISTED: u8 = 0;
const MAPPED: u8 = 1;
const STRETCH: u8 = 2;

/// Collects checksums while files are copied.
pub struct ManifestCheck {
    records: Mutex<Sorter>,
    /// Databases whose relations are files of zeros, and so not those of the manifest.
    left_out: BTreeSet<u32>,
    /// Relations that are left out.
    unlogged: Unlogged,
}

impl ManifestCheck {
    /// `folder` takes what does not fit into memory; relations of the databases of `left_out`, and those of `unlogged`, are not
    /// looked at.
    pub fn new(folder: &Path, left_out: BTreeSet<u32>, unlogged: Unlogged) -> ManifestCheck {
        ManifestCheck {
            records: Mutex::new(Sorter::new(folder, RECORDS_BYTES)),
            left_out,
            unlogged,
        }
    }

    fn leaves_out(&self, path: &[u8], naming: &Naming) -> bool {
        let is_whole = self.left_out.is_empty() && self.unlogged.relations.is_empty();
        let is_left_out = |key: FileKey| {
            let is_of = |r: RelationFile| self.left_out.contains(&r.database);
            self.unlogged.holds(&key) || key.relation().is_some_and(is_of)
        };
        withholds_file(path)
            || (!is_whole && FileKey::from_path(path, *naming).is_ok_and(is_left_out))
    }

    /// Adds the checksum of a stretch.
    ///
    /// # Errors
    /// `Full`, `Io` from the temporary file.
    pub fn add(&self, path: &[u8], position: u64, length: u32, crc: u32) -> Result<()> {
        let mut payload = length.to_le_bytes().to_vec();
        payload.extend_from_slice(&crc.to_le_bytes());
        self.push(path, STRETCH, position, &payload)
    }

    fn push(&self, path: &[u8], kind: u8, position: u64, payload: &[u8]) -> Result<()> {
        let mut key = path.to_vec();
        key.extend_from_slice(&[0, kind]);
        key.extend_from_slice(&position.to_be_bytes());
        self.records
            .lock()
            .map_err(|_| panicked())?
            .push(&key, payload)
    }

    /// Reads the manifest and the map, and compares; returns how many files were compared.
    ///
    /// # Errors
    /// `Damaged` naming the first file that differs, or when the manifest fails its own checksum.
    pub fn finish(self, snapshot: &Snapshot<'_>, manifest: impl Read) -> Result<u64> {
        self.push_map(snapshot)?;
        let mut reader = ManifestReader::new(manifest);
        while let Some(file) = reader.next_file()? {
            if self.leaves_out(&file.path, snapshot.naming()) {
                continue;
            }
            let mut payload = file.size.to_le_bytes().to_vec();
            if let Some(FileChecksum::Crc32c(crc)) = file.checksum {
                payload.extend_from_slice(&crc.to_le_bytes());
            }
            self.push(&file.path, LISTED, 0, &payload)?;
        }
        reader.finish()?;
        let mut files = 0;
        self.join(&mut |file| {
            files += 1;
            file.compare()
        })?;
        Ok(files)
    }

    /// Lists every file of the map in a manifest, with the CRC-32C of what was written of it.
    ///
    /// # Errors
    /// `TargetWrite`; `Damaged` when frames hold a byte twice.
    pub fn write<W: Write>(
        self,
        snapshot: &Snapshot<'_>,
        manifest: &mut ManifestWriter<W>,
    ) -> Result<()> {
        self.push_map(snapshot)?;
        self.join(&mut |file| {
            let (length, mtime) = file.mapped.unwrap_or_default();
            let added = manifest.file(&file.path, length, mtime, file.crc);
            added.map_err(|e| write_error("backup_manifest", e))
        })
    }

    fn push_map(&self, snapshot: &Snapshot<'_>) -> Result<()> {
        for item in snapshot.items() {
            let item = item?;
            if let Metadata::File { length, mtime, .. } = item.metadata
                && !self.leaves_out(&item.path, snapshot.naming())
            {
                let payload = [length.to_le_bytes(), mtime.to_le_bytes()].concat();
                self.push(&item.path, MAPPED, 0, &payload)?;
            }
        }
        Ok(())
    }

    /// Hands every file to `end`, in the order of paths.
    fn join(self, end: &mut dyn FnMut(&Joined) -> Result<()>) -> Result<()> {
        let records = self.records.into_inner();
        let mut file = Joined::default();
        records
            .map_err(|_| panicked())?
            .drain(&mut |key, payload| file.take(key, payload, end))?;
        file.close(end)
    }
}

/// The records of a file, as they come in order.
#[derive(Default)]
struct Joined {
    path: Vec<u8>,
    /// Size and checksum by the manifest.
    listed: Option<(u64, Option<u32>)>,
    /// Length and time by the map.
    mapped: Option<(u64, i64)>,
    position: u64,
    crc: u32,
}

impl Joined {
    fn take(
        &mut self,
        key: &[u8],
        payload: &[u8],
        end: &mut dyn FnMut(&Joined) -> Result<()>,
    ) -> Result<()> {
        let broken = || err!(Internal, "a record of the manifest check is broken");
        let (path, tail) = key
            .len()
            .checked_sub(10)
            .and_then(|at| key.split_at_checked(at))
            .ok_or_else(broken)?;
        if path != self.path {
            self.close(end)?;
            *self = Joined {
                path: path.to_vec(),
                ..Joined::default()
            };
        }
        let number = |from: usize, to: usize| {
            let mut bytes = [0; 8];
            let found = payload.get(from..to)?;
            bytes.get_mut(..found.len())?.copy_from_slice(found);
            Some(u64::from_le_bytes(bytes))
        };
        let small = |from: usize| number(from, from + 4).and_then(|n| u32::try_from(n).ok());
        match tail.get(1) {
            Some(&LISTED) => {
                self.listed = Some((number(0, 8).ok_or_else(broken)?, small(8)));
            }
            Some(&MAPPED) => {
                let (length, mtime) = number(0, 8).zip(number(8, 16)).ok_or_else(broken)?;
                self.mapped = Some((length, mtime.cast_signed()));
            }
            Some(&STRETCH) => {
                let position = tail.get(2..).and_then(|p| p.try_into().ok());
                let position = u64::from_be_bytes(position.ok_or_else(broken)?);
                let (length, crc) = (small(0).ok_or_else(broken)?, small(4).ok_or_else(broken)?);
                self.zeros_to(position)?;
                self.crc = joined_crc::join(self.crc, crc, u64::from(length));
                self.position = position + u64::from(length);
            }
            _ => return Err(broken()),
        }
        Ok(())
    }

    /// Up to here no frame held anything.
    fn zeros_to(&mut self, position: u64) -> Result<()> {
        let zeros = position.checked_sub(self.position).ok_or_else(|| {
            err!(
                Damaged,
                "two frames hold the same byte of \"{}\"",
                self.shown()
            )
        })?;
        self.crc = joined_crc::with_zeros(self.crc, zeros);
        self.position = position;
        Ok(())
    }

    fn shown(&self) -> String {
        shown(&self.path)
    }

    /// Ends the file: what no frame held up to its length is zeros.
    fn close(&mut self, end: &mut dyn FnMut(&Joined) -> Result<()>) -> Result<()> {
        if self.path.is_empty() {
            return Ok(());
        }
        if let Some((length, _)) = self.mapped {
            self.zeros_to(length)?;
        }
        end(self)
    }

    fn compare(&self) -> Result<()> {
        let ((size, crc), length) = match (self.listed, self.mapped) {
            (Some(listed), Some((length, _))) => (listed, length),
            (None, _) => {
                return Err(err!(
                    Damaged,
                    "the server's manifest does not list file \"{}\" of the backup",
                    self.shown()
                ));
            }
            (_, None) => {
                return Err(err!(
                    Damaged,
                    "the backup does not hold file \"{}\" of the server's manifest",
                    self.shown()
                ));
            }
        };
        if size != length || crc.is_some_and(|crc| crc != self.crc) {
            return Err(err!(
                Damaged,
                "file \"{}\" is not the one of the server's manifest",
                self.shown()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs records through the comparison as sorted.
    fn compare(
        listed: Option<(u64, u32)>,
        mapped: Option<u64>,
        stretches: &[(u64, &[u8])],
    ) -> Result<u64> {
        let check = ManifestCheck::new(
            Path::new("/nonexistent"),
            BTreeSet::new(),
            Unlogged::default(),
        );
        for (at, bytes) in stretches {
            let length = u32::try_from(bytes.len()).unwrap();
            check.add(b"f", *at, length, crc32c::crc32c(bytes))?;
        }
        if let Some(length) = mapped {
            let payload = [length.to_le_bytes(), [0; 8]].concat();
            check.push(b"f", MAPPED, 0, &payload)?;
        }
        if let Some((size, crc)) = listed {
            let payload = [&size.to_le_bytes()[..], &crc.to_le_bytes()].concat();
            check.push(b"f", LISTED, 0, &payload)?;
        }
        let mut files = 0;
        check.join(&mut |file| {
            files += 1;
            file.compare()
        })?;
        Ok(files)
    }

    #[test]
    fn stretches_in_any_order_and_holes_make_the_checksum_of_the_file() {
        let mut file = vec![0; 200_000];
        file[..5].copy_from_slice(b"hello");
        file[150_000..150_003].copy_from_slice(b"abc");
        let listed = Some((200_000, crc32c::crc32c(&file)));
        let stretches: &[(u64, &[u8])] = &[(150_000, b"abc"), (0, b"hello")];
        assert_eq!(compare(listed, Some(200_000), stretches).unwrap(), 1);
        assert!(compare(listed, Some(200_000), &stretches[..1]).is_err());
        assert!(compare(listed, Some(199_999), stretches).is_err());
        assert!(compare(None, Some(200_000), stretches).is_err());
        assert!(compare(listed, None, stretches).is_err());
        assert!(compare(listed, Some(200_000), &[(0, b"hello"), (3, b"x")]).is_err());
        assert_eq!(compare(Some((0, 0)), Some(0), &[]).unwrap(), 1);
    }
}
