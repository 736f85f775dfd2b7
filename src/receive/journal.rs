//! The journal: received WAL on the local disk, and how far it is durable (`docs/journal-format.md`).
//!
//! One thread writes: all that has arrived becomes one write and one `fdatasync`, then the position is published; what arrives
//! meanwhile is the next round.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentSize;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;

/// Received WAL that waits for the disk, at most.
pub const QUEUE_BYTES: usize = 8 << 20;

/// Where a journal is and whose it is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configured directory; the journal is below it, under the system identifier.
    pub directory: PathBuf,
    /// Of the cluster.
    pub system_identifier: u64,
    /// Of the cluster.
    pub segment_size: SegmentSize,
    /// How much room its files may take.
    pub limit_bytes: Option<u64>,
    /// Random, for names and for what tells one use of a file from the next.
    pub nonce: u64,
    /// When it is opened, for the lock.
    pub now: TimestampTz,
}

/// WAL that the journal holds without a hole, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The timeline it was streamed on.
    pub timeline: TimelineId,
    /// Its first byte: the start of a segment.
    pub from: Lsn,
    /// Behind its last byte.
    pub to: Lsn,
}

/// A position on a timeline. Order: timeline first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte that is not covered.
    pub lsn: Lsn,
}

/// How the journal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// What comes is written.
    Writing,
    /// There is no room: nothing is written or acknowledged until there is.
    Full,
    /// Writing has failed for good, and the process must end; [`Journal::failure`] says why.
    Failed,
}

/// What is published after every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// Behind the last byte that is durable; none before the first.
    pub position: Option<Position>,
    /// Whether writing goes on.
    pub condition: Condition,
}

/// An open journal. There is one for a directory: it is locked for as long as this lives.
pub struct Journal {
    watch: watch::Receiver<Durable>,
}

impl Journal {
    /// Locks and recovers the journal, creating it where there is none, and starts the thread that writes.
    ///
    /// A torn end is cut, and what is kept is synced before it counts. Notes, and warnings about room, go to `progress`.
    ///
    /// # Errors
    /// `Locked` when another process has it; `Damaged` when it belongs to another cluster; what the filesystem says.
    pub fn open(options: &Options, progress: Arc<dyn Progress>) -> Result<Journal> {
        let _ = (options, progress);
        Err(err!(Internal, "the journal is not written yet"))
    }

    /// What is durable without holes: every contiguous run, ascending by timeline and position. Between two runs of a timeline WAL is
    /// missing here (a repository may have it).
    pub fn held(&self) -> Vec<Held> {
        Vec::new()
    }

    /// How far it is durable, after every round. It starts with the end of the last run of [`Journal::held`].
    pub fn watch(&self) -> watch::Receiver<Durable> {
        self.watch.clone()
    }

    /// The way in.
    pub fn feeder(&self) -> Feeder {
        Feeder {}
    }

    /// Why writing has failed: once, when the condition is [`Condition::Failed`].
    pub fn failure(&self) -> Option<Error> {
        None
    }

    /// Waits until all that was fed is durable, and ends the writing thread. Room that is missing is not waited for.
    ///
    /// # Errors
    /// Why writing has failed; `Full` when there is no room for the rest.
    pub fn close(self) -> Result<()> {
        Ok(())
    }
}

/// Room in the queue; given back when it is dropped or its bytes are written.
pub struct Room {}

/// Feeds the journal, from the session.
#[derive(Clone)]
pub struct Feeder {}

impl Feeder {
    /// Waits for room for `length` bytes. Cancelling the wait loses nothing: answer keepalives meanwhile.
    ///
    /// # Errors
    /// `Internal` when the writing thread has ended; [`Journal::failure`] has the cause.
    #[expect(clippy::unused_async, reason = "its body follows")]
    pub async fn room(&self, length: usize) -> Result<Room> {
        let _ = length;
        Ok(Room {})
    }

    /// Hands over WAL that begins at `lsn` of `timeline`; does not wait.
    ///
    /// It goes on where the last fed bytes ended (at the start: where a run of [`Journal::held`] ends), or begins a segment that the
    /// journal has nothing of: after a switch to another timeline, or behind WAL that a repository has already. Anything else fails the
    /// journal, for it would make a hole or an overlap.
    ///
    /// # Errors
    /// `Internal` when the writing thread has ended; [`Journal::failure`] has the cause.
    pub fn feed(&self, room: Room, timeline: TimelineId, lsn: Lsn, wal: Bytes) -> Result<()> {
        let _ = (room, timeline, lsn, wal);
        Ok(())
    }

    /// Where the next byte is expected: the end of all that was fed, durable or not. Streaming goes on here after a lost connection.
    pub fn expected(&self) -> Option<Position> {
        None
    }
}
