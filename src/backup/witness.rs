//! Hashes of the WAL of a backup, as the server itself has it.
//!
//! The first segment is listened to while files are copied, on a connection of its own, for a long backup outlives it in pg_wal. Whatever
//! else is wanted is asked for when the backup has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::source::{WalSource, WantedWal};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentNumber, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;
use crate::repo::wal_proof::{Prefix, RawHash};

/// A server that did not answer a question is asked again after this long, and then after twice as long each time.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A connection that is slower than this gives a segment at another time.
const SLOWEST_BYTES_PER_S: u64 = 1 << 20;
/// How long an answer may take besides.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<T> {
    /// The answer.
    Yes(T),
    /// None so far, for this reason.
    NotYet(String),
    /// It has removed that WAL.
    Gone(String),
}

/// Listens to the first segment of a backup, until it is complete.
pub struct Listener {
    thread: Option<JoinHandle<Result<RawHash>>>,
    over: Arc<AtomicBool>,
}

impl Listener {
    /// Begins to listen.
    ///
    /// # Errors
    /// Those of the system, when it starts no thread.
    pub fn start(
        mut beside: Box<dyn WalSource + Send>,
        over: Arc<AtomicBool>,
        timeline: TimelineId,
        range: LsnRange,
    ) -> Result<Listener> {
        let what = WantedWal {
            timeline,
            range,
            limit: None,
        };
        let listen = move || hash(beside.as_mut(), &what, range.end);
        let thread = std::thread::Builder::new()
            .name("witness".into())
            .spawn(listen);
        Ok(Listener {
            thread: Some(thread.map_err(|e| Error::from_io("start a thread", e))?),
            over,
        })
    }

    /// Returns what was heard; `None` as long as the server has more to say.
    fn heard(&mut self) -> Option<Result<RawHash>> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        let panicked = |_| Err(err!(Internal, "the thread that listens panicked"));
        Some(thread.join().unwrap_or_else(panicked))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks for WAL, and hashes it up to `cut`.
fn hash(source: &mut dyn WalSource, what: &WantedWal, cut: Lsn) -> Result<RawHash> {
    let mut prefix = Prefix::new(cut.0 - what.range.start.0);
    source.stream_wal(what, &mut |bytes| {
        prefix.update(bytes);
        Ok(())
    })?;
    prefix
        .finish()
        .ok_or_else(|| err!(Server, "the server sent less WAL than it was asked for"))
}

/// A question for the hash of a part of the server's WAL, which is asked until it is answered.
#[derive(Debug)]
pub struct Question {
    timeline: TimelineId,
    range: LsnRange,
    heard: Heard<RawHash>,
    again: Instant,
    pause: Duration,
}

impl Question {
    /// Asks nothing yet.
    pub fn new(timeline: TimelineId, range: LsnRange) -> Question {
        Question {
            timeline,
            range,
            heard: Heard::NotYet("it was not asked".into()),
            again: Instant::now(),
            pause: ASK_AGAIN,
        }
    }

    /// Asks the server, unless it has answered, or was asked a moment ago.
    ///
    /// # Errors
    /// `Interrupted`, and what speaks neither of WAL that is gone nor of a connection that failed.
    pub fn ask(&mut self, source: &mut dyn WalSource) -> Result<Heard<RawHash>> {
        if matches!(self.heard, Heard::NotYet(_)) && Instant::now() >= self.again {
            let length = self.range.end.0 - self.range.start.0;
            let what = WantedWal {
                timeline: self.timeline,
                range: self.range,
                limit: Some(PATIENCE + Duration::from_secs(length / SLOWEST_BYTES_PER_S)),
            };
            self.heard = match hash(source, &what, self.range.end) {
                Ok(hash) => Heard::Yes(hash),
                Err(e) if e.code() == Code::Gap => Heard::Gone(e.to_string()),
                Err(e) if matches!(e.code(), Code::Server | Code::Denied | Code::Deadline) => {
                    Heard::NotYet(e.to_string())
                }
                Err(e) => return Err(e),
            };
            self.again = Instant::now() + self.pause;
            self.pause *= 2;
        }
        Ok(self.heard.clone())
    }
}

/// Hashes of the server's own WAL, as far as they are known.
pub struct Witness {
    listener: Option<Listener>,
    first: Question,
    last: Question,
    /// The last segment, whole.
    whole: Question,
}

impl Witness {
    /// A witness of the WAL from the segment `first` up to `stop_lsn`.
    pub fn new(
        listener: Option<Listener>,
        timeline: TimelineId,
        (first, last): (SegmentNumber, SegmentNumber),
        stop_lsn: Lsn,
        size: SegmentSize,
    ) -> Witness {
        let whole = last.range(size);
        let part = LsnRange {
            start: whole.start,
            end: stop_lsn,
        };
        Witness {
            // A backup may stop in its first segment: then only a part of that counts.
            listener: listener.filter(|_| first != last),
            first: Question::new(timeline, first.range(size)),
            last: Question::new(timeline, part),
            whole: Question::new(timeline, whole),
        }
    }

    /// The hash of the first segment.
    ///
    /// # Errors
    /// As [`Question::ask`].
    pub fn first(
        &mut self,
        source: &mut dyn WalSource,
        progress: &dyn Progress,
    ) -> Result<Heard<RawHash>> {
        if let Some(listener) = &mut self.listener {
            match listener.heard() {
                None => return Ok(Heard::NotYet("the server has not sent it yet".into())),
                Some(Ok(hash)) => self.first.heard = Heard::Yes(hash),
                Some(Err(e)) if e.code() == Code::Interrupted => return Err(e),
                Some(Err(e)) => progress.note(&format!(
                    "the first WAL of the backup is asked for once more, for a second connection did not bring it: {e}"
                )),
            }
            self.listener = None;
        }
        self.first.ask(source)
    }

    /// The hash of the last segment up to the stop LSN.
    ///
    /// # Errors
    /// As [`Question::ask`].
    pub fn last(&mut self, source: &mut dyn WalSource) -> Result<Heard<RawHash>> {
        self.last.ask(source)
    }

    /// The hash of the whole last segment, which a standby has only once its primary has ended it.
    ///
    /// # Errors
    /// As [`Question::ask`].
    pub fn whole_last(&mut self, source: &mut dyn WalSource) -> Result<Heard<RawHash>> {
        self.whole.ask(source)
    }
}
