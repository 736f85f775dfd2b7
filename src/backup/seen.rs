//! The content that arrived of each file, compared with the server's own manifest.
//!
//! Names, sizes and CRC-32C go to an unnamed temporary file as files arrive. The manifest comes last and lists the files in the order in
//! which they were sent (src/backend/backup/backup_manifest.c, AddFileToBackupManifest; 13, 14: src/backend/replication), so that one
//! pass over both, in bounded memory, proves that every file arrived as the server read it, and none is missing.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::err;
use crate::error::{Error, Result};
use crate::pg::manifest::{FileChecksum, ManifestEnd, ManifestFile, ManifestReader};

/// Pieces of the manifest on their way to the thread that reads it.
pub(super) const QUEUED_PIECES: usize = 16;

/// Records files as they arrive.
pub struct Seen {
    folder: PathBuf,
    file: BufWriter<File>,
    count: u64,
}

impl Seen {
    /// Begins a record in `folder`.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn new(folder: &Path) -> Result<Seen> {
        let file = tempfile::tempfile_in(folder).map_err(|e| failed(folder, e))?;
        Ok(Seen {
            folder: folder.to_owned(),
            file: BufWriter::with_capacity(64 << 10, file),
            count: 0,
        })
    }

    /// Adds a file that has arrived.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn add(&mut self, path: &[u8], size: u64, crc: u32) -> Result<()> {
        let length = u32::try_from(path.len()).unwrap_or(u32::MAX);
        self.count += 1;
        let mut record = Vec::with_capacity(path.len() + 16);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(path);
        record.extend_from_slice(&size.to_le_bytes());
        record.extend_from_slice(&crc.to_le_bytes());
        let written = self.file.write_all(&record);
        written.map_err(|e| failed(&self.folder, e))
    }

    /// Turns to comparing: everything has arrived.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn rewind(self) -> Result<Expected> {
        let Seen {
            folder,
            file,
            count,
        } = self;
        let rewound = file
            .into_inner()
            .map_err(|e| e.into_error())
            .and_then(|mut file| file.seek(SeekFrom::Start(0)).map(|_| file));
        Ok(Expected {
            file: BufReader::with_capacity(64 << 10, rewound.map_err(|e| failed(&folder, e))?),
            folder,
            left: count,
        })
    }
}

fn failed(folder: &Path, e: io::Error) -> Error {
    Error::from_io(
        format!("use a temporary file in \"{}\"", folder.display()),
        e,
    )
    .hint("Free space there, or let TMPDIR name another directory.")
}

/// The record, read in order.
pub struct Expected {
    folder: PathBuf,
    file: BufReader<File>,
    left: u64,
}

impl Expected {
    /// Compares with the whole manifest read from `manifest`, which is proven by its own checksum.
    ///
    /// # Errors
    /// `Damaged`, naming the first file that differs; `Unsupported` for a manifest of a newer version.
    pub fn compare(mut self, manifest: impl Read) -> Result<ManifestEnd> {
        let mut reader = ManifestReader::new(manifest);
        while let Some(listed) = reader.next_file()? {
            let arrived = self.next().map_err(|e| failed(&self.folder, e))?;
            let shown = listed.path.escape_ascii();
            let Some((path, size, crc)) = arrived else {
                return Err(differs(format!(
                    "file \"{shown}\" of the server's manifest did not arrive"
                )));
            };
            if path != listed.path {
                return Err(differs(format!(
                    "file \"{}\" arrived where the server's manifest lists \"{shown}\"",
                    path.escape_ascii()
                )));
            }
            check_file(&listed, size, crc)?;
        }
        let end = reader.finish()?;
        match self.next().map_err(|e| failed(&self.folder, e))? {
            None => Ok(end),
            Some((path, _, _)) => Err(differs(format!(
                "file \"{}\" is not in the server's manifest",
                path.escape_ascii()
            ))),
        }
    }

    fn next(&mut self) -> io::Result<Option<(Vec<u8>, u64, u32)>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut number = [0; 4];
        self.file.read_exact(&mut number)?;
        let mut path = vec![0; u32::from_le_bytes(number) as usize];
        self.file.read_exact(&mut path)?;
        let mut size = [0; 8];
        self.file.read_exact(&mut size)?;
        self.file.read_exact(&mut number)?;
        Ok(Some((
            path,
            u64::from_le_bytes(size),
            u32::from_le_bytes(number),
        )))
    }
}

fn differs(what: String) -> Error {
    Error::new(crate::error::Code::Damaged, what).hint(
        "Nothing was committed. Bytes were changed or lost between the server and here; take the backup again.",
    )
}

fn check_file(listed: &ManifestFile, size: u64, crc: u32) -> Result<()> {
    let shown = listed.path.escape_ascii();
    if listed.size != size {
        return Err(differs(format!(
            "{size} bytes of file \"{shown}\" arrived, the server's manifest says {}",
            listed.size
        )));
    }
    match &listed.checksum {
        Some(FileChecksum::Crc32c(expected)) if *expected == crc => Ok(()),
        Some(FileChecksum::Crc32c(_)) => Err(differs(format!(
            "file \"{shown}\" does not have the checksum of the server's manifest"
        ))),
        _ => Err(err!(
            Server,
            "the server's manifest has no CRC-32C of file \"{shown}\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::snapshot::byte_queue::byte_queue;

    use super::*;
    use std::fmt::Write;

    fn manifest(files: &[(&str, &[u8])]) -> String {
        let mut text = String::from("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [");
        for (i, (path, content)) in files.iter().enumerate() {
            let crc: String = crc32c::crc32c(content)
                .to_le_bytes()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            let comma = if i == 0 { "" } else { "," };
            write!(
                text,
                "{comma}\n{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-11-20 07:01:58 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}",
                content.len()
            )
            .unwrap();
        }
        text += "\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n\"Manifest-Checksum\": \"";
        use sha2::Digest;
        // The checksum covers every line before its own.
        let covered = text.rfind('\n').unwrap() + 1;
        let sum = sha2::Sha256::digest(&text.as_bytes()[..covered]);
        for byte in sum {
            write!(text, "{byte:02x}").unwrap();
        }
        text + "\"}\n"
    }

    fn compare(arrived: &[(&str, &[u8])], listed: &[(&str, &[u8])]) -> Result<ManifestEnd> {
        let mut seen = Seen::new(&std::env::temp_dir()).unwrap();
        for (path, content) in arrived {
            let crc = crc32c::crc32c(content);
            seen.add(path.as_bytes(), content.len() as u64, crc)
                .unwrap();
        }
        let expected = seen.rewind().unwrap();
        let (sender, input) = byte_queue(QUEUED_PIECES);
        let text = manifest(listed);
        std::thread::scope(|scope| {
            let compared = scope.spawn(|| expected.compare(input));
            for piece in text.as_bytes().chunks(7) {
                if sender.send(Bytes::copy_from_slice(piece)).is_err() {
                    break;
                }
            }
            drop(sender);
            compared.join().unwrap()
        })
    }

    #[test]
    fn files_that_arrived_as_listed_pass_and_all_others_do_not() {
        let two: &[(&str, &[u8])] = &[("backup_label", b"x"), ("base/1/2", b"abc")];
        let end = compare(two, two).unwrap();
        assert_eq!(end.file_count, 2);
        assert!(compare(&[], &[]).is_ok());
        for wrong in [
            &two[..1],
            &[two[1], two[0]],
            &[two[0], ("base/1/2", b"abd")],
            &[two[0], ("base/1/2", b"ab")],
            &[two[0], two[1], ("base/1/3", b"")],
        ] {
            let refused = compare(wrong, two).unwrap_err();
            assert_eq!(refused.code(), crate::error::Code::Damaged, "{refused}");
        }
    }
}
