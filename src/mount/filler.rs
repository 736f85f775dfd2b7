//! The threads that bring frames from the repository.
//!
//! A reader waits for its blocks until a deadline; what is read ahead nobody waits for. A frame that two want is brought once. All of a
//! frame that the backup shows is written, to whichever files it belongs.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::shadow::{Hollow, LastFile, Shadow};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::lock::locked;
use crate::snapshot::reader::{FramePlace, PackOfSnapshot, Place, Snapshot, VisibleFrame};

/// How long a reader waits.
const DEADLINE: Duration = Duration::from_secs(180);
/// How long a repository that is away is left alone.
const PAUSE: Duration = Duration::from_millis(500);
/// Threads that bring frames: a bucket that answers slowly is asked several times at once.
const THREADS: usize = 8;
/// Bytes that one request for what lies ahead covers.
const STEP_BYTES: u64 = 1 << 20;
/// Requests ahead that may wait; more of them are forgotten.
const AHEAD_MAX: usize = 64;
/// Packs that stay open.
const PACKS: usize = 64;
/// Errors that are told one by one.
const TOLD_MAX: u64 = 20;

/// Takes requests from the mount, and hands them to the threads.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// The first error of a reader that says nothing about the backup.
    outside: Mutex<Option<Error>>,
}

#[derive(Default)]
struct Waiting {
    urgent: VecDeque<Request>,
    ahead: VecDeque<Request>,
    is_closed: bool,
}

struct Request {
    hollow: Arc<Hollow>,
    bytes: Range<u64>,
    since: Instant,
    answer: Option<SyncSender<Result<()>>>,
}

impl Queue {
    /// Waits until all blocks that these bytes touch are there.
    ///
    /// # Errors
    /// `Unreachable` at the deadline; those of the repository and of the local directory.
    pub fn bring(&self, hollow: &Arc<Hollow>, from: u64, to: u64) -> Result<()> {
        let Some(absent) = hollow.absent(from, to) else {
            return Ok(());
        };
        let (answer, answered) = sync_channel(1);
        {
            let mut waiting = locked(&self.waiting);
            if waiting.is_closed {
                return Err(err!(Interrupted, "the mount is ending"));
            }
            let since = Instant::now();
            waiting.urgent.push_back(Request {
                hollow: Arc::clone(hollow),
                bytes: absent.start..to,
                since,
                answer: Some(answer),
            });
            for bytes in hollow.ahead_of(from, to).into_iter().flat_map(steps) {
                if waiting.ahead.len() < AHEAD_MAX {
                    waiting.ahead.push_back(Request {
                        hollow: Arc::clone(hollow),
                        bytes,
                        since,
                        answer: None,
                    });
                }
            }
        }
        self.changed.notify_all();
        let late = |_| err!(Unreachable, "the repository has not answered in time");
        answered.recv_timeout(deadline() + PAUSE).map_err(late)?
    }

    /// Keeps the first error of a reader that says nothing about the backup; returns the system's error for that reader.
    pub fn failed(&self, e: Error) -> std::io::Error {
        let errno = match e.code() {
            Code::Full => rustix::io::Errno::NOSPC,
            _ => rustix::io::Errno::IO,
        };
        if is_outside(&e) {
            let mut outside = locked(&self.outside);
            outside.get_or_insert(e);
        }
        errno.into()
    }

    /// The first error of a reader that says nothing about the backup: a repository that was away, a full disk.
    pub fn outside(&self) -> Option<Error> {
        let mut outside = locked(&self.outside);
        outside.take()
    }

    /// Ends the threads; who still waits gets an error.
    pub fn close(&self) {
        let mut waiting = locked(&self.waiting);
        waiting.is_closed = true;
        waiting.urgent.clear();
        waiting.ahead.clear();
        drop(waiting);
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Request> {
        let mut waiting = locked(&self.waiting);
        loop {
            if waiting.is_closed {
                return None;
            }
            let next = waiting.urgent.pop_front();
            if let Some(request) = next.or_else(|| waiting.ahead.pop_front()) {
                return Some(request);
            }
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn steps(bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = bytes.end;
    let starts = (0..).map(move |n| bytes.start + n * STEP_BYTES);
    starts
        .take_while(move |start| *start < end)
        .map(move |start| start..end.min(start + STEP_BYTES))
}

/// Brings what is asked for from a snapshot into a local directory.
pub struct Filler<'f, 's> {
    snapshot: &'f Snapshot<'s>,
    shadow: &'f Shadow,
    queue: &'f Queue,
    host: &'f Host,
    packs: Mutex<VecDeque<Arc<PackOfSnapshot<'f, 's>>>>,
    /// Frames that a thread is bringing.
    under_way: Mutex<HashSet<(usize, u32)>>,
    brought: Condvar,
    told: Mutex<u64>,
}

impl<'f, 's> Filler<'f, 's> {
    /// Brings content of `snapshot` into `shadow`, as `queue` asks.
    pub fn new(
        snapshot: &'f Snapshot<'s>,
        shadow: &'f Shadow,
        queue: &'f Queue,
        host: &'f Host,
    ) -> Filler<'f, 's> {
        Filler {
            snapshot,
            shadow,
            queue,
            host,
            packs: Mutex::default(),
            under_way: Mutex::default(),
            brought: Condvar::new(),
            told: Mutex::default(),
        }
    }

    /// Runs `work` while the threads serve the queue, and ends them.
    pub fn serve<T>(&self, work: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| self.run());
            }
            let ended = CloseOnDrop(self.queue);
            let result = work();
            drop(ended);
            result
        })
    }

    fn run(&self) {
        let mut files = LastFile::default();
        while let Some(request) = self.queue.next() {
            let brought = self.bring(&request, &mut files);
            if let Err(e) = &brought {
                self.tell(e);
            }
            if let Some(answer) = &request.answer {
                // The reader may have given up.
                let _ = answer.send(brought);
            }
        }
    }

    fn tell(&self, e: &Error) {
        let mut told = locked(&self.told);
        *told += 1;
        if *told <= TOLD_MAX {
            self.host.progress.warn(&format!("a read failed: {e}"));
        }
    }

    /// Brings a request's blocks. A repository that is away is asked again until the deadline.
    fn bring(&self, request: &Request, files: &mut LastFile) -> Result<()> {
        loop {
            match self.bring_once(request, files) {
                Err(e) if is_passing(&e) && request.answer.is_some() => {
                    let is_late = request.since.elapsed() + PAUSE > deadline();
                    if is_late || self.host.is_stopping() || locked(&self.queue.waiting).is_closed {
                        return Err(e);
                    }
                    std::thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
    }

    fn bring_once(&self, request: &Request, files: &mut LastFile) -> Result<()> {
        let hollow = &request.hollow;
        let Range { start, end } = request.bytes;
        while let Some(absent) = hollow.absent(start, end) {
            let places = self
                .snapshot
                .places(&hollow.key, absent.start, absent.end)?;
            for place in &places {
                if let Some(at) = place.at {
                    self.place(hollow, place, at, files)?;
                }
            }
            // The rest of these blocks is zeros, as in the file itself.
            if !hollow.add(absent.start, absent.end) {
                return Err(err!(NotFound, "the file was removed"));
            }
        }
        Ok(())
    }

    /// Brings the frame of a place, unless another thread has brought it meanwhile.
    fn place(
        &self,
        hollow: &Hollow,
        place: &Place,
        at: FramePlace,
        files: &mut LastFile,
    ) -> Result<()> {
        let end = place.position + place.length;
        let frame = (at.pack, at.frame);
        let mut under_way = locked(&self.under_way);
        while !under_way.insert(frame) {
            under_way = self
                .brought
                .wait(under_way)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(under_way);
        let _under_way = UnderWay(self, frame);
        if hollow.absent(place.position, end).is_none() {
            return Ok(());
        }
        let frame = self.pack(at.pack)?.frame(at.frame)?;
        let has_it = frame.visible.iter().any(|visible| {
            frame.file(visible) == Some(&hollow.key)
                && visible.position <= place.position
                && end <= visible.position + u64::from(visible.length)
        });
        if !has_it {
            return Err(err!(
                Damaged,
                "frame {} does not hold what the map expects of \"{}\"",
                at.frame,
                String::from_utf8_lossy(&hollow.key.path(*self.snapshot.naming()))
            ));
        }
        self.write(&frame, files)
    }

    /// Writes what is visible of a frame, where it is absent.
    fn write(&self, frame: &VisibleFrame, files: &mut LastFile) -> Result<()> {
        for visible in &frame.visible {
            let hollow = frame.file(visible).and_then(|key| self.shadow.of_key(key));
            let Some(hollow) = hollow else { continue };
            let bytes = frame.bytes(visible);
            hollow
                .fill(visible.position, bytes, files, self.shadow)
                .map_err(|e| of_the_disk(&e))?;
        }
        Ok(())
    }

    fn pack(&self, index: usize) -> Result<Arc<PackOfSnapshot<'f, 's>>> {
        let packs = || locked(&self.packs);
        if let Some(pack) = packs().iter().find(|pack| pack.index() == index) {
            return Ok(Arc::clone(pack));
        }
        // Opened outside the lock; two threads may do it twice.
        let pack = Arc::new(self.snapshot.pack(index)?);
        let mut packs = packs();
        packs.truncate(PACKS - 1);
        packs.push_front(Arc::clone(&pack));
        Ok(pack)
    }

    /// Brings everything that is still absent, unless `is_over` becomes true. Called on one thread, it works with the others' queue untouched.
    ///
    /// # Errors
    /// Those of the repository; `Damaged` when a file is not whole in the end; `Interrupted`.
    pub fn bring_all(&self, is_over: &AtomicBool) -> Result<()> {
        let mut files = LastFile::default();
        for index in 0..self.snapshot.packs().len() {
            let pack = self.again(is_over, || self.pack(index))?;
            for number in 0..pack.frame_count() {
                self.check_over(is_over)?;
                let frame = self.again(is_over, || pack.frame(number))?;
                self.write(&frame, &mut files)?;
            }
        }
        for hollow in self.shadow.lacking() {
            let request = Request {
                hollow: Arc::clone(hollow),
                bytes: 0..u64::MAX,
                since: Instant::now(),
                answer: None,
            };
            let brought = self.again(is_over, || {
                self.bring_once(&request, &mut LastFile::default())
            });
            if !hollow.is_whole() {
                brought?;
            }
        }
        match self.shadow.lacking().next() {
            None => Ok(()),
            Some(hollow) => Err(err!(
                Damaged,
                "\"{}\" is not whole",
                String::from_utf8_lossy(&hollow.key.path(*self.snapshot.naming()))
            )),
        }
    }

    fn check_over(&self, is_over: &AtomicBool) -> Result<()> {
        self.host.check_stop()?;
        match is_over.load(Ordering::Relaxed) {
            true => Err(err!(Interrupted, "what is copied is not wanted any more")),
            false => Ok(()),
        }
    }

    /// Asks a repository that is away again, for as long as it takes. A medium that fails may do so for ever: it gets the time of a reader.
    fn again<T>(&self, is_over: &AtomicBool, ask: impl Fn() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        loop {
            match ask() {
                Err(e) if is_passing(&e) => {
                    if is_of_the_medium(&e) && began.elapsed() > deadline() {
                        return Err(e);
                    }
                    self.tell(&e);
                    self.check_over(is_over)?;
                    std::thread::sleep(PAUSE);
                }
                answer => return answer,
            }
        }
    }
}

/// Whether the same question may be answered later.
fn is_passing(e: &Error) -> bool {
    matches!(e.code(), Code::Unreachable | Code::NoRepository) || is_of_the_medium(e)
}

/// Whether a repository that is a directory has failed. A disk that is mounted over a network does so while its server is away.
fn is_of_the_medium(e: &Error) -> bool {
    matches!(e.code(), Code::Io | Code::Deadline)
}

/// Whether an error says nothing about the backup.
fn is_outside(e: &Error) -> bool {
    let codes = [
        Code::Full,
        Code::TargetWrite,
        Code::Denied,
        Code::Key,
        Code::Config,
    ];
    codes.contains(&e.code()) || e.is_frozen() || (is_passing(e) && !e.is_medium())
}

/// An error of the local directory, for which nobody waits.
fn of_the_disk(e: &std::io::Error) -> Error {
    let code = match crate::error::io_code(e) {
        Code::Full => Code::Full,
        _ => Code::TargetWrite,
    };
    Error::new(code, format!("write a file of the mount: {e}"))
}

/// How long a reader waits.
fn deadline() -> Duration {
    fault::shortened(DEADLINE)
}

struct CloseOnDrop<'q>(&'q Queue);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A frame that this thread brings.
struct UnderWay<'f, 'a, 's>(&'f Filler<'a, 's>, (usize, u32));

impl Drop for UnderWay<'_, '_, '_> {
    fn drop(&mut self) {
        let mut under_way = locked(&self.0.under_way);
        under_way.remove(&self.1);
        drop(under_way);
        self.0.brought.notify_all();
    }
}
