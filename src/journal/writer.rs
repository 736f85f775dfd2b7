//! The thread that writes the journal.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::files::Open;
use super::frame::{FRAME_HEADER, FileHeader, PAYLOAD_MAX};
use super::growth::Growth;
use super::{Condition, Shared};
use crate::durable;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;

/// The usual size of one round.
const ROUND_BYTES: usize = 4 << 20;
/// Linux takes so many pieces in one call (UIO_MAXIOV).
const SLICES_MAX: usize = 1024;
/// How often it is tried again when there is no room.
const RETRY: Duration = Duration::from_secs(1);
/// A full journal is logged no more often: each segment that a repository takes makes room for one only.
const REPEAT: Duration = Duration::from_secs(30);

/// A message to the writer.
pub(super) enum Message {
    Wal(Piece),
    Close,
}

/// WAL as it was fed; no piece crosses the end of a segment once it is in the queue.
pub(super) struct Piece {
    pub timeline: TimelineId,
    pub lsn: Lsn,
    pub wal: Bytes,
    /// Given back when the piece is written; held by the last part of one that was divided.
    pub _room: Option<OwnedSemaphorePermit>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    progress: Arc<dyn Progress>,
    queue: VecDeque<Piece>,
    queued_bytes: usize,
    is_closed: bool,
    open: Option<Open>,
    ahead: Ahead,
    growth: Growth,
    full: Option<Full>,
    /// When the lack of room was logged last, of whichever time without room.
    logged_full: Option<Instant>,
}

/// One time without room.
struct Full {
    since: Instant,
    is_logged: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Message>,
        open: Option<Open>,
        progress: Arc<dyn Progress>,
    ) -> Result<Writer> {
        Ok(Writer {
            ahead: Ahead::start(Arc::clone(&shared))?,
            growth: Growth::new(Instant::now(), shared.files.bytes()),
            shared,
            inbox,
            progress,
            queue: VecDeque::new(),
            queued_bytes: 0,
            is_closed: false,
            open,
            full: None,
            logged_full: None,
        })
    }

    /// Writes until the journal is closed or writing fails.
    pub(super) fn run(mut self) {
        /// A thread that panics must not leave the session waiting.
        struct Guard(Arc<Shared>, bool);
        impl Drop for Guard {
            fn drop(&mut self) {
                if !self.1 {
                    self.0.fail(crate::err!(
                        Internal,
                        "the thread that writes the journal panicked"
                    ));
                }
            }
        }
        let mut guard = Guard(Arc::clone(&self.shared), false);
        if let Err(e) = self.serve() {
            self.shared.fail(e);
        }
        guard.1 = true;
    }

    fn serve(&mut self) -> Result<()> {
        while self.collect() {
            match self.round() {
                Ok(()) => {}
                Err(e) if e.code() == Code::Full => {
                    if self.shared.is_closing() {
                        return Err(e);
                    }
                    self.wait_for_room(&e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes all that has arrived, waiting for the first; `false` when all is written and nothing comes any more.
    fn collect(&mut self) -> bool {
        if self.queue.is_empty() && !self.is_closed {
            match self.inbox.recv() {
                Ok(message) => self.take(message),
                Err(_) => self.is_closed = true,
            }
        }
        while self.queued_bytes < ROUND_BYTES {
            match self.inbox.try_recv() {
                Ok(message) => self.take(message),
                Err(_) => break,
            }
        }
        !self.queue.is_empty()
    }

    fn take(&mut self, message: Message) {
        let mut piece = match message {
            Message::Wal(piece) => piece,
            Message::Close => {
                self.is_closed = true;
                return;
            }
        };
        self.queued_bytes += piece.wal.len();
        let size = self.shared.segment_size.bytes();
        while !piece.wal.is_empty() {
            let left = size - piece.lsn.0 % size;
            let Some(length) = usize::try_from(left)
                .ok()
                .filter(|left| *left < piece.wal.len())
            else {
                self.queue.push_back(piece);
                return;
            };
            self.queue.push_back(Piece {
                wal: piece.wal.split_to(length),
                _room: None,
                ..piece
            });
            piece.lsn.0 += length as u64;
        }
    }

    /// Writes what is queued for one segment, syncs it, and says so.
    fn round(&mut self) -> Result<()> {
        let Some(first) = self.queue.front() else {
            return Ok(());
        };
        let offered = first.lsn;
        let name = SegmentName::of(first.timeline, offered, self.shared.segment_size);
        self.open_segment(name)?;
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let mut parts: Vec<Bytes> = Vec::new();
        let mut length = 0;
        let mut end = open.lsn;
        for piece in &self.queue {
            let continues = piece.timeline == name.timeline
                && piece.lsn == end
                && end < open.header.end_lsn()
                && (length == 0 || length + piece.wal.len() <= ROUND_BYTES);
            if !continues {
                break;
            }
            parts.push(piece.wal.clone());
            length += piece.wal.len();
            end.0 += piece.wal.len() as u64;
        }
        if parts.is_empty() {
            // The feeder lets no such piece through.
            return Err(crate::err!(
                Internal,
                "WAL from {offered} on does not continue the journal, which ends at {end}"
            ));
        }
        let frames = Framed::new(&open.header, open.lsn, &parts);
        self.shared.files.extend(open, frames.bytes)?;
        write(open, &frames)?;
        durable::sync_data(&open.file).map_err(|e| {
            // Never again on this file: Linux may have dropped the pages and would answer success. So this is no lack of room either.
            Error::from_io(format!("sync the journal's file of segment \"{name}\""), e)
                .with_code(Code::Io)
                .hint("Nothing of it was acknowledged, so nothing is lost. Check the disk of the journal, then start the receiver again.")
        })?;
        open.offset += frames.bytes;
        open.lsn = end;
        fault::point("journal-synced");
        self.room_is_back();
        self.shared.publish(name, end);
        let done = parts.len();
        drop(parts);
        self.queue.drain(..done);
        self.queued_bytes -= length;
        Ok(())
    }

    fn open_segment(&mut self, name: SegmentName) -> Result<()> {
        if self.open.as_ref().is_some_and(|o| o.header.name() == name) {
            return Ok(());
        }
        self.open = None;
        let prepared = match self.ahead.take(name) {
            Some(prepared) => prepared,
            None => self.shared.files.create(name),
        };
        self.open = Some(prepared?);
        if let Some(next) = name.next(self.shared.segment_size) {
            self.ahead.ask(next);
        }
        let files = &self.shared.files;
        let (bytes, ceiling) = (files.bytes(), files.ceiling_bytes());
        if let Some(reached) = self.growth.observe(Instant::now(), bytes, ceiling) {
            self.progress.warn(&format!(
                "the journal takes {} % of the room it may take ({bytes} of {ceiling} bytes){}; it shrinks when every required repository takes WAL",
                reached.percent,
                reached.in_words("it is full")
            ));
        }
        Ok(())
    }

    fn wait_for_room(&mut self, error: &Error) {
        let now = Instant::now();
        let full = self.full.get_or_insert(Full {
            since: now,
            is_logged: false,
        });
        let is_due = |logged: Instant| now.duration_since(logged) >= REPEAT;
        if self.logged_full.is_none_or(is_due) {
            self.logged_full = Some(now);
            full.is_logged = true;
            self.progress.warn(&format!(
                "{error}: no WAL is acknowledged until there is room ({} s so far); commits that wait for this receiver wait, and the server keeps the WAL",
                now.duration_since(full.since).as_secs()
            ));
        }
        self.shared.set_condition(Condition::Full);
        self.shared.wait(RETRY);
    }

    fn room_is_back(&mut self) {
        if let Some(full) = self.full.take().filter(|full| full.is_logged) {
            self.progress.note(&format!(
                "the journal has room again after {} s",
                full.since.elapsed().as_secs()
            ));
        }
    }
}

/// Payloads with their headers, as they are written.
struct Framed<'a> {
    heads: Vec<[u8; FRAME_HEADER]>,
    payloads: Vec<Vec<&'a [u8]>>,
    bytes: u64,
}

impl<'a> Framed<'a> {
    fn new(header: &FileHeader, mut lsn: Lsn, parts: &'a [Bytes]) -> Framed<'a> {
        let mut framed = Framed {
            heads: Vec::new(),
            payloads: Vec::new(),
            bytes: 0,
        };
        let mut payload: Vec<&[u8]> = Vec::new();
        let mut length = 0;
        for part in parts {
            let mut rest = part.as_ref();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(PAYLOAD_MAX - length));
                payload.push(now);
                length += now.len();
                rest = later;
                if length == PAYLOAD_MAX {
                    framed.push(header, &mut lsn, std::mem::take(&mut payload), length);
                    length = 0;
                }
            }
        }
        if length > 0 {
            framed.push(header, &mut lsn, payload, length);
        }
        framed
    }

    fn push(&mut self, header: &FileHeader, lsn: &mut Lsn, payload: Vec<&'a [u8]>, length: usize) {
        self.heads.push(header.frame(*lsn, payload.iter().copied()));
        self.payloads.push(payload);
        self.bytes += (FRAME_HEADER + length) as u64;
        lsn.0 += length as u64;
    }
}

fn write(open: &Open, framed: &Framed<'_>) -> Result<()> {
    let mut slices = Vec::new();
    for (head, payload) in framed.heads.iter().zip(&framed.payloads) {
        slices.push(IoSlice::new(head));
        slices.extend(payload.iter().map(|p| IoSlice::new(p)));
    }
    let mut rest = slices.as_mut_slice();
    let mut offset = open.offset;
    while !rest.is_empty() {
        let now = rest.get(..rest.len().min(SLICES_MAX)).unwrap_or_default();
        match rustix::io::pwritev(&open.file, now, offset) {
            Ok(0) => {
                let e = std::io::Error::from(std::io::ErrorKind::WriteZero);
                return Err(failed(open, e));
            }
            Ok(n) => {
                offset += n as u64;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(open, e.into())),
        }
    }
    Ok(())
}

fn failed(open: &Open, e: std::io::Error) -> Error {
    Error::from_io(
        format!(
            "write the journal's file of segment \"{}\"",
            open.header.name()
        ),
        e,
    )
}

/// Makes the file of the next segment while this one is being written.
struct Ahead {
    shared: Arc<Shared>,
    /// Taken when the thread shall end.
    requests: Option<Sender<SegmentName>>,
    made: Receiver<Result<Open>>,
    asked: Option<SegmentName>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // It shares the journal's lock.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Ahead {
    fn start(shared: Arc<Shared>) -> Result<Ahead> {
        let (requests, asked) = channel::<SegmentName>();
        let (give, made) = channel();
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("journal-ahead".to_owned())
            .spawn(move || {
                for name in asked {
                    if give.send(its.files.create(name)).is_err() {
                        break;
                    }
                }
            })
            .map_err(|e| Error::from_io("start a thread of the journal", e))?;
        Ok(Ahead {
            shared,
            requests: Some(requests),
            made,
            asked: None,
            thread: Some(thread),
        })
    }

    fn ask(&mut self, name: SegmentName) {
        let sent = self.requests.as_ref().map(|r| r.send(name));
        if sent.is_some_and(|s| s.is_ok()) {
            self.asked = Some(name);
        }
    }

    /// The file of `name`, waiting for it if it is in the making; `None` when it was not asked for or there was no room.
    fn take(&mut self, name: SegmentName) -> Option<Result<Open>> {
        let asked = self.asked.take()?;
        let made = self.made.recv().ok()?;
        match made {
            Ok(open) if asked == name => Some(Ok(open)),
            Ok(_) => {
                // The timeline changed. It holds nothing.
                let released = self.shared.files.release(asked);
                released.err().map(|e| {
                    Err(Error::from_io(
                        format!("let the file of segment \"{asked}\" go"),
                        e,
                    ))
                })
            }
            // Asked again, it may have room.
            Err(e) if e.code() == Code::Full => None,
            Err(e) => Some(Err(e)),
        }
    }
}
