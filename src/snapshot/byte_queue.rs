//! A queue of bytes: one thread sends pieces of any length, another reads a stream.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;

/// The end of a queue that is read.
pub struct ByteQueue {
    receiver: Receiver<Bytes>,
    piece: Bytes,
}

/// A queue of at most so many pieces. The reader sees its end when the sender is dropped.
pub fn byte_queue(queued: usize) -> (SyncSender<Bytes>, ByteQueue) {
    let (sender, receiver) = sync_channel(queued);
    let piece = Bytes::new();
    (sender, ByteQueue { receiver, piece })
}

impl Read for ByteQueue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.recv() {
                Ok(piece) => self.piece = piece,
                Err(_) => return Ok(0),
            }
        }
        let n = self.piece.len().min(buffer.len());
        // A slice is copied as a whole.
        (&self.piece.split_to(n)[..]).read(buffer)
    }
}
