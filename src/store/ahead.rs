//! Reading across a network: an object's end at first, and what follows a piece that was read before it is asked for.
//!
//! A map of a large cluster has thousands of layers. So all objects of the process share the memory for what was read ahead: who was not read
//! for the longest time loses it, and the more objects are read side by side, the less is read ahead of each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Key;
use crate::err;
use crate::error::Result;
use crate::recent::Recent;

/// The first read near an object's end takes so much of it: small objects whole, of large ones what says where everything is.
pub const TAIL_BYTES: u64 = 64 << 10;
/// A reader that goes on where it was gets so much ahead at first, and twice as much each time.
const AHEAD_MIN: u64 = 1 << 20;
/// No piece read ahead is longer.
pub const AHEAD_MAX: u64 = 4 << 20;
/// A piece is no shorter, however many objects are read side by side.
const AHEAD_LEAST: u64 = 64 << 10;
/// Memory for the ends of all objects.
const TAILS_BYTES: usize = 8 << 20;
/// Memory for the pieces of all objects.
const PIECES_BYTES: usize = 16 << 20;

/// Pieces of objects by the number of their reader, those of all readers of the process.
type Pieces = Mutex<Recent<u64, Piece>>;

static TAILS: LazyLock<Pieces> = LazyLock::new(|| Mutex::new(Recent::new(usize::MAX, TAILS_BYTES)));
static WINDOWS: LazyLock<Pieces> =
    LazyLock::new(|| Mutex::new(Recent::new(usize::MAX, PIECES_BYTES)));
static READERS: AtomicU64 = AtomicU64::new(0);

/// Bytes of an object.
struct Piece {
    offset: u64,
    bytes: Bytes,
}

/// An object that is read piece by piece.
pub struct Ahead {
    size_bytes: u64,
    reader: u64,
    pace: Mutex<Pace>,
}

/// How a reader goes on.
#[derive(Default)]
struct Pace {
    /// End of the last read.
    next: u64,
    /// How much is read ahead.
    ahead: u64,
}

impl Ahead {
    /// Begins with what is known of the end; it may be empty.
    pub fn new(size_bytes: u64, tail_at: u64, tail: Bytes) -> Ahead {
        let ahead = Ahead {
            size_bytes,
            reader: READERS.fetch_add(1, Ordering::Relaxed),
            pace: Mutex::default(),
        };
        if !tail.is_empty() {
            ahead.keep(&TAILS, tail_at, tail);
        }
        ahead
    }

    /// The length of the object.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buffer` from `offset`. `fetch` reads so many bytes from an offset; all of them are there.
    ///
    /// # Errors
    /// `Damaged` when the object ends before; those of `fetch`.
    pub fn read_at(
        &self,
        key: &Key,
        buffer: &mut [u8],
        offset: u64,
        fetch: impl FnOnce(u64, u64) -> Result<Bytes>,
    ) -> Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.size_bytes {
            return Err(err!(Damaged, "object \"{key}\" ends before its byte {end}"));
        }
        if buffer.is_empty() || self.copy_known(&TAILS, buffer, offset) {
            return Ok(());
        }
        if self.copy_known(&WINDOWS, buffer, offset) {
            lock(&self.pace).next = end;
            return Ok(());
        }
        let tail_at = self.size_bytes.saturating_sub(TAIL_BYTES);
        let is_tail = offset >= tail_at;
        let (from, bytes) = match is_tail {
            true => (tail_at, self.size_bytes - tail_at),
            false => (offset, self.ask(offset, buffer.len() as u64)),
        };
        let piece = fetch(from, bytes)?;
        if !copy(&piece, from, buffer, offset) {
            return Err(err!(Damaged, "object \"{key}\" changed while it was read"));
        }
        if is_tail {
            self.keep(&TAILS, from, piece);
            return Ok(());
        }
        lock(&self.pace).next = end;
        // Bytes are kept only if the next read may go on with them.
        if piece.len() > buffer.len() {
            self.keep(&WINDOWS, from, piece);
        }
        Ok(())
    }

    fn keep(&self, pieces: &Pieces, offset: u64, bytes: Bytes) {
        let length = bytes.len();
        let piece = std::sync::Arc::new(Piece { offset, bytes });
        lock(pieces).put(self.reader, &piece, length);
    }

    fn copy_known(&self, pieces: &Pieces, buffer: &mut [u8], offset: u64) -> bool {
        let piece = lock(pieces).get(self.reader);
        piece.is_some_and(|piece| copy(&piece.bytes, piece.offset, buffer, offset))
    }

    /// How much to ask for: what is wanted, and more for a reader that goes on where it was.
    fn ask(&self, offset: u64, wanted: u64) -> u64 {
        let others = lock(&WINDOWS).count() as u64;
        let share = (PIECES_BYTES as u64 / (others + 1)).clamp(AHEAD_LEAST, AHEAD_MAX);
        let mut pace = lock(&self.pace);
        pace.ahead = match pace.next == offset {
            true => pace.ahead.saturating_mul(2).max(AHEAD_MIN).min(share),
            false => 0,
        };
        wanted
            .max(pace.ahead)
            .min(self.size_bytes.saturating_sub(offset))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        lock(&TAILS).remove(self.reader);
        lock(&WINDOWS).remove(self.reader);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies what `bytes`, which lie at `offset`, have of the wanted range; whether that was all.
fn copy(bytes: &Bytes, offset: u64, buffer: &mut [u8], wanted: u64) -> bool {
    let Some(begin) = wanted
        .checked_sub(offset)
        .and_then(|b| usize::try_from(b).ok())
    else {
        return false;
    };
    let Some(found) = begin
        .checked_add(buffer.len())
        .and_then(|end| bytes.get(begin..end))
    else {
        return false;
    };
    buffer.copy_from_slice(found);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests that count what is asked: all readers of the process share the memory.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn pieces_give_what_they_have() {
        let bytes = Bytes::from_static(b"0123456789");
        let mut two = [0; 2];
        assert!(copy(&bytes, 100, &mut two, 108));
        assert_eq!(&two, b"89");
        for offset in [99, 109, u64::MAX] {
            assert!(!copy(&bytes, 100, &mut two, offset), "{offset}");
        }
    }

    #[test]
    fn a_reader_that_goes_on_asks_seldom_and_the_end_is_read_once() {
        let _alone = lock(&ALONE);
        let all: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
        let ahead = Ahead::new(all.len() as u64, 0, Bytes::new());
        let key = Key::new("x").unwrap();
        let mut asked = Vec::new();
        let mut read = |offset: usize, length: usize| {
            let mut buffer = vec![0; length];
            let fetch = |from: u64, bytes: u64| {
                asked.push((from, bytes));
                let from = usize::try_from(from).unwrap();
                let bytes = usize::try_from(bytes).unwrap();
                Ok(Bytes::copy_from_slice(&all[from..from + bytes]))
            };
            ahead
                .read_at(&key, &mut buffer, offset as u64, fetch)
                .unwrap();
            assert!(buffer == all[offset..offset + length]);
        };
        read(all.len() - 10, 10);
        read(all.len() - 60_000, 100);
        for n in 0..180 {
            read(n * 50_000, 50_000);
        }
        assert!(asked.len() <= 5, "{asked:?}");
        let mut two = [0; 2];
        let behind = ahead.read_at(&key, &mut two, all.len() as u64 - 1, |_, _| unreachable!());
        assert_eq!(behind.unwrap_err().code(), crate::error::Code::Damaged);
    }

    #[test]
    fn r175_hundreds_of_objects_read_side_by_side_share_the_memory() {
        let _alone = lock(&ALONE);
        let size = 1_u64 << 20;
        let byte = |at: u64| (at % 249).to_le_bytes()[0];
        let all: Bytes = (0..size).map(byte).collect::<Vec<u8>>().into();
        let key = Key::new("x").unwrap();
        let readers: Vec<Ahead> = (0..500)
            .map(|_| Ahead::new(size, 0, Bytes::new()))
            .collect();
        let mut buffer = vec![0; 16 << 10];
        let (mut requests, mut fetched) = (0_u64, 0_u64);
        // As a merge goes along its layers: each is read on a little in turn.
        for offset in (0..size).step_by(buffer.len()) {
            for reader in &readers {
                let fetch = |from: u64, bytes: u64| {
                    (requests, fetched) = (requests + 1, fetched + bytes);
                    let from = usize::try_from(from).unwrap();
                    // A copy, for slices would share what the budget counts.
                    let to = from + usize::try_from(bytes).unwrap();
                    Ok(Bytes::copy_from_slice(&all[from..to]))
                };
                reader.read_at(&key, &mut buffer, offset, fetch).unwrap();
                assert_eq!(buffer[0], byte(offset));
                assert!(lock(&WINDOWS).bytes() <= PIECES_BYTES);
                assert!(lock(&TAILS).bytes() <= TAILS_BYTES);
            }
        }
        let asked = (requests, fetched >> 20);
        assert!(requests <= 500 * size / (16 << 10), "{asked:?}");
        // The few that are read side by side in a merge of 64 layers read each byte once.
        let mut fetched = 0;
        let few: Vec<Ahead> = (0..64).map(|_| Ahead::new(size, 0, Bytes::new())).collect();
        for offset in (0..size).step_by(buffer.len()) {
            for reader in &few {
                let fetch = |from: u64, bytes: u64| {
                    fetched += bytes;
                    let from = usize::try_from(from).unwrap();
                    Ok(all.slice(from..from + usize::try_from(bytes).unwrap()))
                };
                reader.read_at(&key, &mut buffer, offset, fetch).unwrap();
            }
        }
        assert!(fetched <= 64 * size * 3 / 2, "{}", fetched >> 20);
        drop(readers);
        drop(few);
    }
}
