//! Sorts records by key within a memory ceiling: full runs go to an unnamed temporary file and are merged at the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Bytes of records kept in memory.
pub const MEMORY_BYTES: usize = 12 << 20;
/// Memory for reading all runs during the merge.
const MERGE_BYTES: usize = 8 << 20;

/// Takes key and payload of one record after another.
pub type Sink<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// Key and payload.
type Record = (Vec<u8>, Vec<u8>);

/// Collects records in any order.
pub struct Sorter {
    folder: PathBuf,
    limit_bytes: usize,
    arena: Vec<u8>,
    /// Offset of each record in the arena.
    starts: Vec<u32>,
    file: Option<BufWriter<File>>,
    file_bytes: u64,
    runs: Vec<(u64, u64)>,
}

impl Sorter {
    /// Keeps `limit_bytes` in memory; more goes to an unnamed file in `folder`.
    pub fn new(folder: &Path, limit_bytes: usize) -> Sorter {
        Sorter {
            folder: folder.to_owned(),
            limit_bytes,
            arena: Vec::with_capacity(limit_bytes),
            starts: Vec::new(),
            file: None,
            file_bytes: 0,
            runs: Vec::new(),
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// `Full`, `Io` when the temporary file cannot be written.
    pub fn push(&mut self, key: &[u8], payload: &[u8]) -> Result<()> {
        // A record costs its bytes and its place in the list.
        let used = self.arena.len() + 4 * self.starts.len();
        if !self.starts.is_empty() && used + key.len() + payload.len() + 12 > self.limit_bytes {
            self.spill().map_err(|e| failed(&self.folder, e))?;
        }
        let start = u32::try_from(self.arena.len()).unwrap_or(u32::MAX);
        self.starts.push(start);
        put_part(&mut self.arena, key);
        put_part(&mut self.arena, payload);
        Ok(())
    }

    fn sort(&mut self) {
        let arena = &self.arena;
        self.starts
            .sort_unstable_by(|a, b| key_at(arena, *a).cmp(key_at(arena, *b)));
    }

    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::with_capacity(
                256 << 10,
                tempfile::tempfile_in(&self.folder)?,
            )),
        };
        let start = self.file_bytes;
        for at in &self.starts {
            let record = record_at(&self.arena, *at);
            file.write_all(record)?;
            self.file_bytes += record.len() as u64;
        }
        self.runs.push((start, self.file_bytes));
        self.arena.clear();
        self.starts.clear();
        Ok(())
    }

    /// Hands all records to `sink` in key order.
    ///
    /// # Errors
    /// Those of the temporary file and of `sink`.
    pub fn drain(mut self, sink: &mut Sink<'_>) -> Result<()> {
        self.sort();
        let Some(mut writer) = self.file.take() else {
            for at in &self.starts {
                let (key, payload) = parts(record_at(&self.arena, *at));
                sink(key, payload)?;
            }
            return Ok(());
        };
        self.file = None;
        // The last run joins the others, so that the merge has one kind of input and the arena's memory is free.
        if !self.starts.is_empty() {
            self.file = Some(writer);
            self.spill().map_err(|e| failed(&self.folder, e))?;
            writer = match self.file.take() {
                Some(writer) => writer,
                None => return Ok(()),
            };
        }
        self.arena = Vec::new();
        self.starts = Vec::new();
        let file = writer
            .into_inner()
            .map_err(|e| failed(&self.folder, e.into_error()))?;
        merge(&file, &self.runs, sink).map_err(|e| match e {
            MergeError::Read(e) => Error::from_io("read a temporary file", e),
            MergeError::Sink(e) => e,
        })
    }
}

/// The error of a temporary file that cannot be written in a directory.
pub(super) fn failed(folder: &Path, e: io::Error) -> Error {
    let what = format!("write a temporary file in \"{}\"", folder.display());
    Error::from_io(what, e).hint("Free space there, or let TMPDIR name another directory.")
}

fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(part);
}

/// The first length-prefixed part and what follows.
fn cut_part(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return (&[], &[]);
    };
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
        .unwrap_or((rest, &[]))
}

fn key_at(arena: &[u8], at: u32) -> &[u8] {
    cut_part(arena.get(at as usize..).unwrap_or_default()).0
}

fn record_at(arena: &[u8], at: u32) -> &[u8] {
    let from = arena.get(at as usize..).unwrap_or_default();
    let (_, rest) = cut_part(from);
    let (_, behind) = cut_part(rest);
    from.get(..from.len() - behind.len()).unwrap_or_default()
}

fn parts(record: &[u8]) -> (&[u8], &[u8]) {
    let (key, rest) = cut_part(record);
    (key, cut_part(rest).0)
}

enum MergeError {
    Read(io::Error),
    Sink(Error),
}

fn merge(
    file: &File,
    runs: &[(u64, u64)],
    sink: &mut Sink<'_>,
) -> std::result::Result<(), MergeError> {
    let buffer_bytes = (MERGE_BYTES / runs.len().max(1)).clamp(4 << 10, 256 << 10);
    let mut inputs: Vec<Run<'_>> = runs
        .iter()
        .map(|&(at, end)| Run {
            file,
            at,
            end,
            buffer: vec![0; buffer_bytes],
            from: 0,
            to: 0,
        })
        .collect();
    let mut heap = BinaryHeap::new();
    for (i, input) in inputs.iter_mut().enumerate() {
        if let Some(record) = input.next().map_err(MergeError::Read)? {
            heap.push(Reverse((record, i)));
        }
    }
    while let Some(Reverse(((key, payload), i))) = heap.pop() {
        sink(&key, &payload).map_err(MergeError::Sink)?;
        let Some(input) = inputs.get_mut(i) else {
            continue;
        };
        if let Some(record) = input.next().map_err(MergeError::Read)? {
            heap.push(Reverse((record, i)));
        }
    }
    Ok(())
}

struct Run<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl Run<'_> {
    fn next(&mut self) -> io::Result<Option<Record>> {
        if self.from == self.to && self.at == self.end {
            return Ok(None);
        }
        Ok(Some((self.part()?, self.part()?)))
    }

    fn part(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        // The length was written by this process a moment ago; the run's end bounds it all the same.
        let left = self.end - self.at + (self.to - self.from) as u64;
        let length = u32::from_le_bytes(length);
        if u64::from(length) > left {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut part = vec![0; length as usize];
        self.fill(&mut part)?;
        Ok(part)
    }

    fn fill(&mut self, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            if self.from == self.to {
                let want = usize::try_from(self.end - self.at)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                let piece = self.buffer.get_mut(..want).unwrap_or_default();
                self.file.read_exact_at(piece, self.at)?;
                if want == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.at += want as u64;
                (self.from, self.to) = (0, want);
            }
            let have = self.buffer.get(self.from..self.to).unwrap_or_default();
            let n = have.len().min(out.len());
            let (now, later) = std::mem::take(&mut out).split_at_mut(n);
            now.copy_from_slice(have.get(..n).unwrap_or_default());
            self.from += n;
            out = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(records: &[Record], limit: usize) -> Vec<Record> {
        let mut sorter = Sorter::new(&std::env::temp_dir(), limit);
        for (key, payload) in records {
            sorter.push(key, payload).unwrap();
        }
        let mut out = Vec::new();
        sorter
            .drain(&mut |key, payload| {
                out.push((key.to_vec(), payload.to_vec()));
                Ok(())
            })
            .unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn records_come_in_order_whatever_the_memory(
            keys in proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 0..20), 0..200),
            limit in 1_usize..3000,
        ) {
            let expected: Vec<Record> = keys
                .into_iter()
                .map(|k| { let p = k.repeat(k.len() % 7); (k, p) })
                .collect();
            let mut shuffled = expected.clone();
            shuffled.sort_by_key(|(k, _)| blake3::hash(k).to_hex());
            prop_assert_eq!(sorted(&shuffled, limit), expected);
        }
    }

    #[test]
    fn records_larger_than_the_memory_are_sorted_too() {
        let records: Vec<Record> = (0..4_u8)
            .rev()
            .map(|i| (vec![i], vec![i; 300_000]))
            .collect();
        let mut expected = records.clone();
        expected.reverse();
        assert_eq!(sorted(&records, 10), expected);
    }
}
