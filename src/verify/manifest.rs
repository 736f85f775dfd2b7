//! Every file of a backup against PostgreSQL's own manifest: its size, and its CRC-32C computed anew from the frames.
//!
//! Frames come in the order in which the server sent the files, and so does the manifest. Few files are therefore open
//! on both sides at any time; the side that runs ahead waits. If the two orders differ too much, the check leaves the
//! sums alone and reports that. The chain of hashes has proven every byte all the same.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::joined_crc;
use crate::pg::manifest::{FileChecksum, ManifestReader};
use crate::repo::container::Container;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;

/// Files that are known on one side only, at most.
const OPEN_MAX: usize = 100_000;

/// A stretch of a file whose sum is known.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    position: u64,
    length: u64,
    crc: u32,
}

#[derive(Debug, Default)]
struct File {
    /// Size and sum by the manifest.
    expected: Option<(u64, u32)>,
    /// Stretches of it that came from frames, ascending, neighbours joined.
    stretches: Vec<Stretch>,
}

#[derive(Default)]
struct State {
    files: HashMap<FileKey, File>,
    /// Files that the manifest has named and that did not come yet.
    waiting: usize,
    manifest_is_done: bool,
    frames_are_done: bool,
    gave_up: bool,
    wrong: Vec<String>,
    wrong_count: u64,
}

/// Brings the two together.
#[derive(Default)]
pub(super) struct Join {
    state: Mutex<State>,
    changed: Condvar,
}

/// The result of the comparison.
pub(super) struct Compared {
    /// Files that are wrong, and how; at most a thousand.
    pub wrong: Vec<String>,
    /// How many there are.
    pub wrong_count: u64,
    /// Whether sums were compared.
    pub sums_compared: bool,
}

impl Join {
    fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// Adds bytes of a file that came from a frame.
    pub fn add(&self, file: &FileKey, position: u64, bytes: &[u8]) {
        let stretch = Stretch {
            position,
            length: bytes.len() as u64,
            crc: crc32c::crc32c(bytes),
        };
        let mut state = self.lock();
        if state.gave_up {
            return;
        }
        let known = state.files.entry(file.clone()).or_default();
        let was_waiting = known.expected.is_some() && known.stretches.is_empty();
        known.insert(stretch);
        let is_whole = known.is_whole();
        if was_waiting {
            state.waiting = state.waiting.saturating_sub(1);
        }
        if is_whole {
            state.close(file);
        }
        self.changed.notify_all();
        // The manifest has to come nearer first; where it cannot, the orders differ too much.
        while state.files.len() - state.waiting > OPEN_MAX && !state.gave_up {
            if state.manifest_is_done || state.waiting >= OPEN_MAX {
                state.give_up();
                self.changed.notify_all();
                return;
            }
            state = match self.changed.wait(state) {
                Ok(state) => state,
                Err(poisoned) => poisoned.into_inner(),
            };
        }
    }

    /// Says that no more bytes come.
    pub fn end_of_frames(&self) {
        self.lock().frames_are_done = true;
        self.changed.notify_all();
    }

    /// Reads the manifest through, against the map for sizes, against the frames for sums.
    ///
    /// # Errors
    /// `Damaged` when the manifest itself is; what reading says.
    pub fn read(&self, container: &Container, snapshot: &Snapshot<'_>) -> Result<()> {
        let (sender, receiver) = sync_channel::<Vec<u8>>(8);
        let read = std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                container.read_body(&mut |piece| {
                    sender
                        .send(piece.to_vec())
                        .map_err(|_| err!(Interrupted, "the reader of the manifest has ended"))
                })
            });
            let pieces = Pieces {
                receiver,
                current: Vec::new(),
                at: 0,
            };
            let parsed = self.parse(ManifestReader::new(pieces), snapshot);
            let body = thread
                .join()
                .unwrap_or_else(|_| Err(err!(Internal, "a reading thread panicked")));
            match (parsed, body) {
                // The parser ended first, and the body could not be sent any more.
                (Err(e), Err(b)) if b.code() == Code::Interrupted => Err(e),
                (_, Err(b)) => Err(b),
                (parsed, Ok(())) => parsed,
            }
        });
        let mut state = self.lock();
        state.manifest_is_done = true;
        if read.is_err() {
            state.give_up();
        }
        self.changed.notify_all();
        read
    }

    fn parse<R: Read>(
        &self,
        mut manifest: ManifestReader<R>,
        snapshot: &Snapshot<'_>,
    ) -> Result<()> {
        while let Some(file) = manifest.next_file()? {
            let key = FileKey::from_path(&file.path, snapshot.naming())?;
            let shown = String::from_utf8_lossy(&file.path).into_owned();
            match snapshot.metadata(&key)? {
                Some(Metadata::File { length, .. }) if length == file.size => {}
                Some(Metadata::File { length, .. }) => {
                    self.lock().complain(format!(
                        "file \"{shown}\" has {length} bytes, {} by the server's manifest",
                        file.size
                    ));
                    continue;
                }
                _ => {
                    self.lock().complain(format!(
                        "file \"{shown}\" of the server's manifest is not in the backup"
                    ));
                    continue;
                }
            }
            if let Some(FileChecksum::Crc32c(crc)) = file.checksum {
                self.expect(key, file.size, crc);
            }
        }
        manifest.finish().map(|_| ())
    }

    fn expect(&self, key: FileKey, size: u64, crc: u32) {
        let mut state = self.lock();
        while state.waiting >= OPEN_MAX && !state.gave_up && !state.frames_are_done {
            state = match self.changed.wait(state) {
                Ok(state) => state,
                Err(poisoned) => poisoned.into_inner(),
            };
        }
        if state.gave_up {
            return;
        }
        let known = state.files.entry(key.clone()).or_default();
        known.expected = Some((size, crc));
        let (is_whole, is_new) = (known.is_whole(), known.stretches.is_empty());
        if is_new {
            state.waiting += 1;
        }
        if is_whole || state.frames_are_done {
            if is_new {
                state.waiting = state.waiting.saturating_sub(1);
            }
            state.close(&key);
        }
        self.changed.notify_all();
    }

    /// Compares what is left: files with zeros in them, which no frame holds.
    pub fn finish(self) -> Compared {
        let mut state = match self.state.into_inner() {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        };
        let left: Vec<FileKey> = state.files.keys().cloned().collect();
        for key in left {
            state.close(&key);
        }
        Compared {
            wrong: state.wrong,
            wrong_count: state.wrong_count,
            sums_compared: !state.gave_up,
        }
    }
}

impl State {
    fn give_up(&mut self) {
        self.gave_up = true;
        self.files = HashMap::new();
        self.waiting = 0;
    }

    fn complain(&mut self, what: String) {
        self.wrong_count += 1;
        if self.wrong.len() < 1000 {
            self.wrong.push(what);
        }
    }

    /// Compares a file of which everything has come.
    fn close(&mut self, key: &FileKey) {
        let Some(file) = self.files.remove(key) else {
            return;
        };
        let Some((size, expected)) = file.expected else {
            self.complain(format!("{key:?} is not in the server's manifest"));
            return;
        };
        let computed = file.crc(size);
        if computed != Some(expected) {
            self.complain(format!(
                "the CRC-32C of {key:?} is {:08x}, {expected:08x} by the server's manifest",
                computed.unwrap_or_default()
            ));
        }
    }
}

impl File {
    fn insert(&mut self, new: Stretch) {
        let at = self
            .stretches
            .partition_point(|s| s.position < new.position);
        self.stretches.insert(at, new);
        self.join(at);
        if let Some(before) = at.checked_sub(1) {
            self.join(before);
        }
    }

    /// Joins the stretch at `at` with the one behind it, where they touch.
    fn join(&mut self, at: usize) {
        let (Some(a), Some(b)) = (self.stretches.get(at), self.stretches.get(at + 1)) else {
            return;
        };
        if a.position + a.length == b.position {
            let joined = Stretch {
                crc: joined_crc::join(a.crc, b.crc, b.length),
                length: a.length + b.length,
                ..*a
            };
            self.stretches.remove(at + 1);
            if let Some(slot) = self.stretches.get_mut(at) {
                *slot = joined;
            }
        }
    }

    fn is_whole(&self) -> bool {
        match (self.expected, self.stretches.as_slice()) {
            (Some((0, _)), []) => true,
            (Some((size, _)), [all]) => all.position == 0 && all.length == size,
            _ => false,
        }
    }

    /// The sum of the whole file, with zeros where nothing came; `None` when more came than it has.
    fn crc(&self, size: u64) -> Option<u32> {
        let mut crc = 0;
        let mut at = 0;
        for stretch in &self.stretches {
            let gap = stretch.position.checked_sub(at)?;
            crc = joined_crc::with_zeros(crc, gap);
            crc = joined_crc::join(crc, stretch.crc, stretch.length);
            at = stretch.position + stretch.length;
        }
        let rest = size.checked_sub(at)?;
        Some(joined_crc::with_zeros(crc, rest))
    }
}

/// The manifest as a stream, from the thread that unpacks it.
struct Pieces {
    receiver: Receiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            match self.receiver.recv() {
                Ok(piece) => {
                    self.current = piece;
                    self.at = 0;
                }
                Err(_) => return Ok(0),
            }
        }
        let rest = self.current.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += n;
        Ok(n)
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

    #[test]
    fn sums_of_stretches_in_any_order_with_zeros_between_are_the_files() {
        let mut content = vec![0_u8; 100_000];
        for (i, byte) in content.iter_mut().enumerate().skip(20_000).take(50_000) {
            *byte = u8::try_from(i % 251).unwrap();
        }
        let mut file = File::default();
        for (from, to) in [(40_000, 70_000), (20_000, 30_000), (30_000, 40_000)] {
            file.insert(Stretch {
                position: from as u64,
                length: (to - from) as u64,
                crc: crc32c::crc32c(&content[from..to]),
            });
        }
        assert_eq!(file.stretches.len(), 1);
        assert_eq!(file.crc(100_000), Some(crc32c::crc32c(&content)));
        assert_eq!(file.crc(60_000), None);
    }
}
