//! Every file of a backup against PostgreSQL's own manifest: its size, and its CRC-32C computed anew from the frames.
//!
//! Frames come in another order than the manifest names files, from several threads. A sorter with a memory ceiling takes down what both say of a
//! file, and the end compares them.

use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::check::panicked;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::joined_crc;
use crate::pg::manifest::{FileChecksum, ManifestReader};
use crate::repo::container::Container;
use crate::repo::varint::{self, Reader};
use crate::snapshot::byte_queue::byte_queue;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;
use crate::snapshot::sort::Sorter;

/// Bytes of sums that are kept in memory before they are sorted.
const SORTED_BYTES: usize = 4 << 20;
/// Faults that are listed, at most.
const WRONG_MAX: usize = 1000;

/// A thing that is known of a file: by the manifest, or by a frame.
#[derive(Debug, Clone, Copy)]
enum Known {
    Expected {
        size: u64,
        crc: u32,
    },
    Stretch {
        position: u64,
        length: u64,
        crc: u32,
    },
}

/// Brings the two together.
pub(super) struct Sums(Mutex<State>);

struct State {
    /// Why sums are not compared: what is known does not fit onto the disk.
    known: Result<Sorter>,
    wrong: Wrong,
}

/// Files that are wrong, and how.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    /// At most a thousand.
    pub listed: Vec<String>,
    /// How many there are.
    pub count: u64,
}

/// The result of the comparison.
pub(super) struct Compared {
    pub wrong: Wrong,
    /// Why the sums were not compared, if they were not.
    pub not_compared: Option<Error>,
}

impl Sums {
    /// Nothing is known yet; `scratch` takes what does not fit into memory.
    pub fn new(scratch: &Path) -> Sums {
        Sums(Mutex::new(State {
            known: Ok(Sorter::new(scratch, SORTED_BYTES)),
            wrong: Wrong::default(),
        }))
    }

    fn take_down(&self, file: &FileKey, known: Known) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = match &mut state.known {
            Ok(sorter) => known.put(file, sorter),
            Err(_) => return,
        };
        if let Err(e) = taken {
            state.known = Err(e);
        }
    }

    fn complain(&self, what: String) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.wrong.complain(what);
    }

    /// Adds bytes of a file that came from a frame.
    pub fn add(&self, file: &FileKey, position: u64, bytes: &[u8]) {
        let (length, crc) = (bytes.len() as u64, crc32c::crc32c(bytes));
        let stretch = Known::Stretch {
            position,
            length,
            crc,
        };
        self.take_down(file, stretch);
    }

    /// Reads the manifest through: sizes are compared with those of the map, sums are taken down.
    ///
    /// # Errors
    /// `Damaged` when the manifest itself is; what reading says.
    pub fn read(&self, container: &Container, snapshot: &Snapshot<'_>) -> Result<()> {
        let (sender, input) = byte_queue(2);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                container.read_body(&mut |piece| {
                    sender
                        .send(Bytes::copy_from_slice(piece))
                        .map_err(|_| err!(Interrupted, "the reader of the manifest has ended"))
                })
            });
            let parsed = self.parse(ManifestReader::new(input), snapshot);
            let body = thread.join().unwrap_or_else(|_| Err(panicked()));
            match (parsed, body) {
                // The parser ended first, and the body could not be sent any more.
                (Err(e), Err(b)) if b.code() == Code::Interrupted => Err(e),
                (_, Err(b)) => Err(b),
                (parsed, Ok(())) => parsed,
            }
        })
    }

    fn parse<R: Read>(
        &self,
        mut manifest: ManifestReader<R>,
        snapshot: &Snapshot<'_>,
    ) -> Result<()> {
        while let Some(file) = manifest.next_file()? {
            let key = FileKey::from_path(&file.path, snapshot.naming())?;
            let size = file.size;
            let shown = String::from_utf8_lossy(&file.path);
            match snapshot.metadata(&key)? {
                Some(Metadata::File { length, .. }) if length == size => {}
                Some(Metadata::File { length, .. }) => {
                    self.complain(format!(
                        "file \"{shown}\" has {length} bytes, {size} by the server's manifest"
                    ));
                    continue;
                }
                _ => {
                    self.complain(format!(
                        "file \"{shown}\" of the server's manifest is not in the backup"
                    ));
                    continue;
                }
            }
            if let Some(FileChecksum::Crc32c(crc)) = file.checksum {
                self.take_down(&key, Known::Expected { size, crc });
            }
        }
        manifest.finish().map(|_| ())
    }

    /// Compares the sums of all files.
    pub fn finish(self, naming: Naming) -> Compared {
        let State { known, mut wrong } =
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let sorter = match known {
            Ok(sorter) => sorter,
            Err(e) => {
                return Compared {
                    wrong,
                    not_compared: Some(e),
                };
            }
        };
        let mut open: Option<Open> = None;
        let mut unequal = Wrong::default();
        let drained = sorter.drain(&mut |key, payload| {
            let (file, known) = Known::read(key, payload)?;
            let mut of_it = match open.take() {
                Some(open) if open.file == file => open,
                before => {
                    before
                        .into_iter()
                        .for_each(|open| open.close(naming, &mut unequal));
                    Open::new(file)
                }
            };
            of_it.add(known);
            open = Some(of_it);
            Ok(())
        });
        open.into_iter()
            .for_each(|open| open.close(naming, &mut unequal));
        // A file of which not everything was read again is not wrong for that.
        if drained.is_ok() {
            wrong.extend(unequal);
        }
        Compared {
            wrong,
            not_compared: drained.err(),
        }
    }
}

impl Wrong {
    fn complain(&mut self, what: String) {
        self.count += 1;
        if self.listed.len() < WRONG_MAX {
            self.listed.push(what);
        }
    }

    fn extend(&mut self, more: Wrong) {
        self.count += more.count;
        let room = WRONG_MAX.saturating_sub(self.listed.len());
        self.listed.extend(more.listed.into_iter().take(room));
    }
}

impl Known {
    /// The key sorts by file, then what the manifest says, then stretches by position.
    fn put(self, file: &FileKey, sorter: &mut Sorter) -> Result<()> {
        let (position, length, crc) = match self {
            Known::Expected { size, crc } => (0, size, crc),
            Known::Stretch {
                position,
                length,
                crc,
            } => (position, length, crc),
        };
        let file = file.as_bytes();
        let mut key = Vec::with_capacity(file.len() + 13);
        // No key of a file is then the beginning of another one's.
        key.extend_from_slice(&u32::try_from(file.len()).unwrap_or(u32::MAX).to_be_bytes());
        key.extend_from_slice(file);
        key.push(u8::from(matches!(self, Known::Stretch { .. })));
        key.extend_from_slice(&position.to_be_bytes());
        let mut payload = crc.to_be_bytes().to_vec();
        varint::put(&mut payload, length);
        sorter.push(&key, &payload)
    }

    fn read(key: &[u8], payload: &[u8]) -> Result<(Vec<u8>, Known)> {
        let mut k = Reader::new(key, "a sum of a file");
        let length = u32::from_be_bytes(k.array()?);
        let file = k.bytes(length as usize)?.to_vec();
        let [is_stretch] = k.array()?;
        let position = u64::from_be_bytes(k.array()?);
        let mut p = Reader::new(payload, "a sum of a file");
        let crc = u32::from_be_bytes(p.array()?);
        let length = p.varint()?;
        let known = match is_stretch {
            0 => Known::Expected { size: length, crc },
            _ => Known::Stretch {
                position,
                length,
                crc,
            },
        };
        Ok((file, known))
    }
}

/// A file of which more may come.
struct Open {
    file: Vec<u8>,
    /// Size and sum by the manifest.
    expected: Option<(u64, u32)>,
    /// The bytes that came, with zeros between them, and their sum; none where more than one came for a position.
    came: Option<(u64, u32)>,
}

impl Open {
    fn new(file: Vec<u8>) -> Open {
        Open {
            file,
            expected: None,
            came: Some((0, 0)),
        }
    }

    fn add(&mut self, known: Known) {
        match known {
            Known::Expected { size, crc } => self.expected = Some((size, crc)),
            Known::Stretch {
                position,
                length,
                crc,
            } => {
                self.came = self.came.and_then(|(at, sum)| {
                    let sum = joined_crc::with_zeros(sum, position.checked_sub(at)?);
                    Some((position + length, joined_crc::join(sum, crc, length)))
                });
            }
        }
    }

    /// The sum of the whole file, with zeros where nothing came; `None` when more came than it has.
    fn crc(&self, size: u64) -> Option<u32> {
        let (at, sum) = self.came?;
        Some(joined_crc::with_zeros(sum, size.checked_sub(at)?))
    }

    /// Compares the file, of which everything has come.
    fn close(self, naming: Naming, wrong: &mut Wrong) {
        let computed = self.expected.and_then(|(size, _)| self.crc(size));
        let expected = self.expected.map(|(_, crc)| crc);
        if expected.is_some() && computed == expected {
            return;
        }
        let file = FileKey::decode(&self.file, naming);
        let path = file.map_or(self.file, |file| file.path(naming));
        let path = String::from_utf8_lossy(&path);
        wrong.complain(match expected {
            None => format!("file \"{path}\" is not in the server's manifest"),
            Some(expected) => format!(
                "the CRC-32C of file \"{path}\" is {:08x}, {expected:08x} by the server's manifest",
                computed.unwrap_or_default()
            ),
        });
    }
}

/// Whether the manifest's own bytes are those that the root names.
pub(super) fn check_hash(container: &Container, wanted: Option<&str>) -> Result<()> {
    let found = blake3::Hash::from_bytes(container.identity().hash).to_hex();
    match wanted {
        Some(wanted) if wanted == found.as_str() => Ok(()),
        _ => Err(Error::new(
            Code::Damaged,
            "it is not the manifest that the root names",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &[u8]) -> FileKey {
        FileKey::from_path(path, Naming::Tree).unwrap()
    }

    fn compared(sums: Sums) -> Compared {
        sums.finish(Naming::Tree)
    }

    #[test]
    fn sums_of_stretches_in_any_order_with_zeros_between_are_the_files() {
        let mut content = vec![0_u8; 100_000];
        for (i, byte) in content.iter_mut().enumerate().skip(20_000).take(50_000) {
            *byte = u8::try_from(i % 251).unwrap();
        }
        let scratch = tempfile::tempdir().unwrap();
        let with = |size: u64, stretches: &[(usize, usize)]| {
            let sums = Sums::new(scratch.path());
            // Its name begins like the other one's.
            sums.add(&file(b"a/bc"), 0, b"xyz");
            for (from, to) in stretches {
                sums.add(&file(b"a/b"), *from as u64, &content[*from..*to]);
            }
            let crc = crc32c::crc32c(&content);
            sums.take_down(&file(b"a/b"), Known::Expected { size, crc });
            let crc = crc32c::crc32c(b"xyz");
            sums.take_down(&file(b"a/bc"), Known::Expected { size: 3, crc });
            compared(sums).wrong.listed
        };
        let all = [(40_000, 70_000), (20_000, 30_000), (30_000, 40_000)];
        assert!(with(100_000, &all).is_empty());
        for wrong in [
            with(60_000, &all),
            with(100_000, &all[1..]),
            with(100_000, &[(20_000, 70_000), (30_000, 40_000)]),
        ] {
            assert!(
                matches!(&wrong[..], [one] if one.contains("CRC-32C of file \"a/b\"")),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn files_that_the_manifest_lacks_are_told() {
        let scratch = tempfile::tempdir().unwrap();
        let sums = Sums::new(scratch.path());
        for n in 0..1500 {
            sums.add(&file(format!("f{n}").as_bytes()), 0, b"x");
        }
        let wrong = compared(sums).wrong;
        assert_eq!((wrong.count, wrong.listed.len()), (1500, WRONG_MAX));
        assert!(wrong.listed[0].contains("file \"f0\" is not in the server's manifest"));
    }

    #[test]
    fn without_room_for_the_sums_they_are_not_compared() {
        let sums = Sums::new(Path::new("/nowhere"));
        let one = file(b"f");
        for n in 0..400_000 {
            sums.add(&one, n, b"x");
        }
        let compared = compared(sums);
        assert!(compared.not_compared.is_some());
        assert_eq!(compared.wrong.count, 0);
    }
}
