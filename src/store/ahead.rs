//! Reading across a network: an object's end at first, and what follows a piece that was read before it is asked for.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::Key;
use crate::err;
use crate::error::Result;

/// The first read near an object's end takes so much of it: small objects whole, of large ones what says where everything is.
pub(super) const TAIL_BYTES: u64 = 64 << 10;
/// A reader that goes on where it was gets so much ahead at first, and twice as much each time.
const AHEAD_MIN: u64 = 1 << 20;
/// No piece read ahead is longer.
pub(super) const AHEAD_MAX: u64 = 4 << 20;

/// The pieces that are kept of an object.
pub(super) struct Ahead {
    size_bytes: u64,
    /// The end of the object, and where it begins.
    tail: Mutex<(u64, Bytes)>,
    window: Mutex<Window>,
}

/// The bytes that were read last.
#[derive(Default)]
struct Window {
    offset: u64,
    bytes: Bytes,
    /// End of the last read.
    next: u64,
    /// How much is read ahead.
    ahead: u64,
}

impl Ahead {
    /// Begins with what is known of the end; it may be empty.
    pub(super) fn new(size_bytes: u64, tail_at: u64, tail: Bytes) -> Ahead {
        Ahead {
            size_bytes,
            tail: Mutex::new((tail_at, tail)),
            window: Mutex::new(Window::default()),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buffer` from `offset`. `fetch` reads so many bytes from an offset; all of them are there.
    pub(super) fn read_at(
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
        if buffer.is_empty() || self.copy_known(buffer, offset, end) {
            return Ok(());
        }
        let tail_at = self.size_bytes.saturating_sub(TAIL_BYTES);
        let is_tail = offset >= tail_at && lock(&self.tail).1.is_empty();
        let (from, bytes) = match is_tail {
            true => (tail_at, self.size_bytes - tail_at),
            false => (offset, self.ask(offset, buffer.len() as u64)),
        };
        let piece = fetch(from, bytes)?;
        if !copy(&piece, from, buffer, offset) {
            return Err(err!(Damaged, "object \"{key}\" changed while it was read"));
        }
        if is_tail {
            *lock(&self.tail) = (from, piece);
            return Ok(());
        }
        let mut window = lock(&self.window);
        window.next = end;
        // Bytes are kept only if the next read may go on with them.
        if piece.len() > buffer.len() {
            (window.offset, window.bytes) = (from, piece);
        }
        Ok(())
    }

    fn copy_known(&self, buffer: &mut [u8], offset: u64, end: u64) -> bool {
        {
            let tail = lock(&self.tail);
            if copy(&tail.1, tail.0, buffer, offset) {
                return true;
            }
        }
        let mut window = lock(&self.window);
        let is_there = copy(&window.bytes, window.offset, buffer, offset);
        if is_there {
            window.next = end;
        }
        is_there
    }

    /// How much to ask for: what is wanted, and more for a reader that goes on where it was.
    fn ask(&self, offset: u64, wanted: u64) -> u64 {
        let mut window = lock(&self.window);
        window.ahead = match window.next == offset {
            true => window.ahead.saturating_mul(2).clamp(AHEAD_MIN, AHEAD_MAX),
            false => 0,
        };
        wanted
            .max(window.ahead)
            .min(self.size_bytes.saturating_sub(offset))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
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
}
