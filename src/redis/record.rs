//! Received bytes of a history, as records in the journal (`docs/journal-format.md`).
//!
//! The journal keeps bytes under positions of its own. Its segments begin with the state of the reader: so each can be read when the ones before are gone, and
//! a history that begins anywhere, or that follows another one, is nothing special to the journal.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::{Command, Reader};
use super::history::{Beginning, Parent};
use crate::err;
use crate::error::Result;

/// The size of the journal's segments.
pub const SEGMENT_BYTES: u64 = 16 << 20;
/// Kind and length.
const HEADER_BYTES: usize = 5;
/// The time of arrival, before the bytes of a history.
const TIME_BYTES: usize = 8;
/// The longest record.
const RECORD_BYTES_MAX: usize = 256 << 10;
/// No state is longer.
const STATE_BYTES_MAX: usize = 64 << 10;
/// Zeros up to the end of a segment have this kind, and no length.
const FILL: u8 = 0;
const STATE: u8 = 1;
const BYTES: u8 = 2;

/// The history whose bytes follow, and the reader's state in front of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The history: 40 hexadecimal digits.
    pub replid: String,
    /// The process that sends it.
    pub run_id: String,
    /// The history that this one goes on from.
    pub parent: Option<Parent>,
    /// The version of the server, as it names it.
    pub server_version: String,
    /// The family of the server.
    pub flavor: String,
    /// The place where reception began without the bytes before it; none where it goes on with what was received.
    pub beginning: Option<Beginning>,
    /// The reader in front of the next byte.
    pub reader: Reader,
}

#[cfg(test)]
impl State {
    /// A state in front of a position of a history.
    pub(crate) fn sample(replid: &str, position: u64) -> State {
        State {
            replid: replid.to_owned(),
            run_id: String::new(),
            parent: None,
            server_version: "7.2.4".to_owned(),
            flavor: "redis".to_owned(),
            beginning: None,
            reader: Reader::new(position, None),
        }
    }
}

/// Makes records of what arrives.
#[derive(Debug, Clone)]
pub struct Recorder {
    /// The journal's position of the next record.
    place: u64,
    state: State,
}

impl Recorder {
    /// Begins at a segment of the journal.
    pub fn new(place: u64, state: State) -> Recorder {
        Recorder { place, state }
    }

    /// The journal's position behind all records so far.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// The state behind all records so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Goes on with another history, or another process.
    ///
    /// # Errors
    /// `Internal` for a state that is too long.
    pub fn begin(&mut self, state: State, out: &mut Vec<u8>) -> Result<()> {
        self.state = state;
        self.put_state(out)
    }

    /// Appends the records of `bytes` to `out`. Each command that ends in them goes to `seen`.
    ///
    /// # Errors
    /// `Damaged` for bytes that are no commands. `out` may hold some of them then.
    pub fn append(
        &mut self,
        arrived_us: i64,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        seen: &mut dyn FnMut(&Command<'_>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room();
            if self.place.is_multiple_of(SEGMENT_BYTES) {
                self.put_state(out)?;
                continue;
            }
            if room <= HEADER_BYTES + TIME_BYTES {
                out.resize(out.len() + room, FILL);
                self.place += room as u64;
                continue;
            }
            let most = room.min(RECORD_BYTES_MAX) - HEADER_BYTES - TIME_BYTES;
            let (now, later) = bytes.split_at(most.min(bytes.len()));
            self.put_header(BYTES, TIME_BYTES + now.len(), out)?;
            out.extend_from_slice(&arrived_us.to_le_bytes());
            out.extend_from_slice(now);
            self.place += (TIME_BYTES + now.len()) as u64;
            self.state.reader.read(now, seen)?;
            bytes = later;
        }
        Ok(())
    }

    fn put_state(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let text = serde_json::to_vec(&self.state)
            .map_err(|e| err!(Internal, "write the state of a history").source(e))?;
        if text.len() > STATE_BYTES_MAX {
            return Err(err!(
                Internal,
                "the state of a history has {} bytes",
                text.len()
            ));
        }
        let room = self.room();
        if room < HEADER_BYTES + text.len() {
            out.resize(out.len() + room, FILL);
            self.place += room as u64;
        }
        self.put_header(STATE, text.len(), out)?;
        out.extend_from_slice(&text);
        self.place += text.len() as u64;
        Ok(())
    }

    fn put_header(&mut self, kind: u8, length: usize, out: &mut Vec<u8>) -> Result<()> {
        let length = u32::try_from(length).map_err(|e| err!(Internal, "a record").source(e))?;
        out.push(kind);
        out.extend_from_slice(&length.to_le_bytes());
        self.place += HEADER_BYTES as u64;
        Ok(())
    }

    /// Bytes up to the end of the segment.
    fn room(&self) -> usize {
        let left = SEGMENT_BYTES - self.place % SEGMENT_BYTES;
        usize::try_from(left).unwrap_or(usize::MAX)
    }
}

/// A record of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The bytes behind it begin here.
    State(Box<State>),
    /// Bytes of the history.
    Bytes {
        /// When they had arrived: microseconds since 1970.
        arrived_us: i64,
        /// They themselves.
        bytes: Bytes,
    },
}

/// Reads the records of one segment of the journal. `fill` fills a buffer with its next bytes, of which there are `left`.
///
/// A record whose end is not there counts as far as its bytes go: the receiver was killed while they were written, and went on behind them in another
/// segment.
pub struct Records<F> {
    fill: F,
    left: u64,
}

impl<F: FnMut(&mut [u8]) -> Result<()>> Records<F> {
    /// Begins at the start of a record.
    pub fn new(left: u64, fill: F) -> Records<F> {
        Records { fill, left }
    }

    /// Bytes that were not read so far.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next record; none at the end.
    ///
    /// # Errors
    /// `Damaged` for what is no record; those of `fill`.
    pub fn read(&mut self) -> Result<Option<Record>> {
        if self.left == 0 {
            return Ok(None);
        }
        let kind = self.take(1)?;
        if kind.first() == Some(&FILL) {
            self.left = 0;
            return Ok(None);
        }
        if self.left < 4 {
            self.left = 0;
            return Ok(None);
        }
        let length = self.take(4)?;
        let length = length.try_into().map_or(u32::MAX, u32::from_le_bytes);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > RECORD_BYTES_MAX {
            return Err(no_record());
        }
        let is_whole = length as u64 <= self.left;
        match kind.first() {
            Some(&STATE) if !is_whole => {
                self.left = 0;
                Ok(None)
            }
            Some(&STATE) => {
                let text = self.take(length)?;
                let state = serde_json::from_slice(&text).map_err(|e| no_record().source(e))?;
                Ok(Some(Record::State(Box::new(state))))
            }
            Some(&BYTES) if length > TIME_BYTES => {
                if self.left <= TIME_BYTES as u64 {
                    self.left = 0;
                    return Ok(None);
                }
                let time = self.take(TIME_BYTES)?;
                let arrived_us = time.try_into().map_or(0, i64::from_le_bytes);
                let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                let bytes = self.take((length - TIME_BYTES).min(left))?;
                Ok(Some(Record::Bytes {
                    arrived_us,
                    bytes: bytes.into(),
                }))
            }
            _ => Err(no_record()),
        }
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        (self.fill)(&mut bytes)?;
        self.left -= count as u64;
        Ok(bytes)
    }
}

fn no_record() -> crate::error::Error {
    err!(Damaged, "the journal holds no record of a history")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::resp;

    fn state(position: u64) -> State {
        State {
            run_id: "b".repeat(40),
            ..State::sample(&"a".repeat(40), position)
        }
    }

    fn read(segment: &[u8]) -> Vec<Record> {
        let mut rest = segment;
        let mut records = Records::new(segment.len() as u64, |buffer: &mut [u8]| {
            let (now, later) = rest.split_at(buffer.len());
            buffer.copy_from_slice(now);
            rest = later;
            Ok(())
        });
        std::iter::from_fn(|| records.read().unwrap()).collect()
    }

    /// The position behind the records, proven by reading them.
    fn replay(records: &[Record]) -> Reader {
        let mut reader = None;
        for record in records {
            match record {
                Record::State(state) => {
                    assert!(reader.is_none_or(|r| r == state.reader));
                    reader = Some(state.reader.clone());
                }
                Record::Bytes { bytes, .. } => {
                    let reader = reader.as_mut().unwrap();
                    reader.read(bytes, &mut |_| Ok(())).unwrap();
                }
            }
        }
        reader.unwrap()
    }

    #[test]
    fn each_segment_of_the_journal_can_be_read_alone() {
        let value = vec![b'v'; 300_000];
        let command = resp::command(&[b"SET", b"key", &value]);
        let mut recorder = Recorder::new(SEGMENT_BYTES, state(77));
        let mut out = Vec::new();
        for n in 0..150 {
            let (a, b) = command.split_at(n * 1000);
            for piece in [a, b] {
                let seen = &mut |_: &Command<'_>| Ok(());
                recorder.append(n as i64, piece, &mut out, seen).unwrap();
            }
        }
        let end = recorder.place() - SEGMENT_BYTES;
        assert_eq!(end, out.len() as u64);
        let segment = usize::try_from(SEGMENT_BYTES).unwrap();
        let parts: Vec<Vec<Record>> = out.chunks(segment).map(read).collect();
        assert_eq!(parts.len(), 3);
        for (part, next) in parts.iter().zip(parts.iter().skip(1)) {
            let Record::State(state) = &next[0] else {
                panic!("no state");
            };
            assert_eq!(replay(part), state.reader);
        }
        let last = replay(parts.last().unwrap());
        assert_eq!(&last, &recorder.state().reader);
        assert_eq!(last.position(), 77 + 150 * command.len() as u64);
    }

    #[test]
    fn a_record_that_was_cut_counts_as_far_as_it_goes() {
        let command = resp::command(&[b"SET", b"key", b"value"]);
        let mut recorder = Recorder::new(0, state(0));
        let mut out = Vec::new();
        recorder
            .append(5, &command, &mut out, &mut |_| Ok(()))
            .unwrap();
        let records = out.len() - command.len();
        for at in 1..=out.len() {
            let found = read(&out[..at]);
            let got: usize = found
                .iter()
                .map(|record| match record {
                    Record::State(_) => 0,
                    Record::Bytes { bytes, .. } => bytes.len(),
                })
                .sum();
            assert_eq!(got, at.saturating_sub(records), "at {at}");
        }
    }
}
