//! The worker that archives ahead: one for each cluster on a host, started by `pitr-archive` (`ahead`), ended by itself.
//!
//! It archives what archive_status calls ready, several files at once and in PostgreSQL's order, each in the way `pitr-archive` would: every check is made
//! for every file, and a repository that is not required keeps nobody waiting. A file's note is written once it is durable in every required repository.
//!
//! A file that cannot be archived for its own sake is left to `pitr-archive`, and the others go ahead. A conflict stops everything behind it on its
//! timeline: another server writes the same names, and what it has not written yet must not become the truth beside what it has. For the
//! same reason files of a timeline go one by one until the archive has taken a new one. Any other error ends the worker: what
//! may work later is tried again when PostgreSQL offers the file again. It also ends when nothing is ready, when the server has
//! stopped, when no more notes can be written, and when a file, or opening the repositories, takes longer than `pitr-archive` would wait and no object
//! store shows a sign of life: over a slow link it is the worker that brings a file in. Killed at any moment, it has acknowledged nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::archive::{self, Archiver, PATIENCE_REST, deadline, deadline_error, without_the_rest};
use super::watch::{self, Pulse};
use super::{Arguments, detach};
use crate::archive::datadir::DataDirectory;
use crate::archive::spool::{self, Failure, FileIdentity, Holder, Known, Note, Spool};
use crate::config::{Environment, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit;
use crate::pg::segment::WalFileName;
use crate::pg::timeline::TimelineId;

/// The name of the worker on the command line of `pitr serve`.
pub const WORD: &str = "ship";
/// The exit status of the worker, in every case: never that of a file that is archived, and not above 1. If the server
/// is process 1, as in a container, it inherits the worker. Up to PostgreSQL 16 it takes any other status of an unknown
/// process for a crash of its own.
pub const STATUS: u8 = 1;

/// Files shipped at once to local repositories: one more than there are processors, for one waits for the disk; within
/// these limits.
const AT_ONCE: (usize, usize) = (2, 5);
/// To an object store: the more the better while one waits for round trips, but each file may be held in memory as a whole, and all of
/// them are to fit into 100 MiB.
const AT_ONCE_REMOTE: usize = 6;
/// How long a worker works with repositories that it opens when it begins. A path or a name may lead to another
/// repository later: the next worker looks.
const SESSION: Duration = Duration::from_secs(20);
/// How long a file may stay ready after its note was there and has gone: so long PostgreSQL takes to note the acknowledgement.
const SETTLING: Duration = Duration::from_secs(10);
/// How long a worker whose start and first request cost more waits for the next file, and how often it looks.
const LINGER_REMOTE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);
/// How long a thread waits whose file must not go before another one has landed.
const NAP: Duration = Duration::from_micros(500);

/// Works until there is nothing to do. Standard input must be the lock of the spool, held.
///
/// # Errors
/// `Usage` when nobody has started it who could; what ended it. No one reads it but a person who looks for what is wrong. The process leaves
/// with [`STATUS`] all the same.
pub fn run(arguments: &Arguments, nonce: u64) -> Result<()> {
    detach::own_session();
    let job = Arc::new(Job::new(arguments, &Environment::of_process(), nonce)?);
    let looked = Arc::clone(&job);
    watch::run_to_an_end(move || job.work(), move || looked.is_late())
}

/// Whether the server waits for others to be archived that a worker would take.
pub(super) fn has_others(data: &DataDirectory, spool: &Spool, own: WalFileName) -> bool {
    let (Ok(known), Ok(mut ready)) = (spool.known(), ready(data)) else {
        return false;
    };
    ready.any(|name| name != own && !is_left_alone(spool, name, known.get(&name)))
}

/// The files that the server waits for, in no order; backup history files are left to `pitr-archive`.
fn ready(data: &DataDirectory) -> Result<impl Iterator<Item = WalFileName> + use<>> {
    let path = data.wal().join("archive_status");
    let entries = std::fs::read_dir(&path)
        .map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
    Ok(entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let name = name.to_str()?.strip_suffix(".ready")?.parse().ok()?;
        (!matches!(name, WalFileName::BackupHistory { .. })).then_some(name)
    }))
}

/// PostgreSQL's order: histories first, then by name.
///
/// PostgreSQL: src/backend/postmaster/pgarch.c, `ready_file_comparator`.
fn turn(name: &WalFileName) -> (bool, String) {
    (!matches!(name, WalFileName::History(_)), name.to_string())
}

/// Codes of errors that are about the file alone, so that others may go ahead.
const OF_THE_FILE: [Code; 7] = [
    Code::Conflict,
    Code::TimelineReused,
    Code::SourceMissing,
    Code::SourceSize,
    Code::SourceHeader,
    Code::SourceChanged,
    Code::Damaged,
];

/// Whether a recorded failure is about the file alone.
pub(super) fn is_of_the_file(failure: &Failure) -> bool {
    OF_THE_FILE
        .iter()
        .any(|code| exit::name(*code) == failure.code)
}

/// Whether a worker leaves the file alone: it has a note, or a recorded failure of its own. After any other failure the file is
/// taken again, for a call may be too short for it.
fn is_left_alone(spool: &Spool, name: WalFileName, known: Option<&Known>) -> bool {
    match known {
        None => false,
        Some(Known::Shipped) => true,
        Some(Known::Failed) => spool.failure(name).is_some_and(|f| is_of_the_file(&f)),
    }
}

/// The identity of a file before it is read, and the system identifier of its header.
type Before = Option<(FileIdentity, u64)>;

/// A file on its way.
struct Flight {
    begun: Instant,
    before: Before,
    /// When every required repository had it; then only the others keep it.
    acknowledged: Option<Instant>,
}

/// The work to do.
#[derive(Default)]
struct Queue {
    files: VecDeque<WalFileName>,
    /// Histories that were archived; their files stay ready until PostgreSQL offers them.
    histories: BTreeSet<WalFileName>,
    /// Timelines of which a file was new to the archive: the next ones may go side by side.
    leading: BTreeSet<TimelineId>,
    /// Timelines on which another server's WAL was found.
    contested: BTreeSet<TimelineId>,
    idle_since: Option<Instant>,
}

/// The result of choosing the next file.
enum Turn {
    /// This file's.
    Of(WalFileName),
    /// Nobody's before another one has landed.
    Wait,
    /// Nothing is waiting.
    Nobody,
}

impl Queue {
    fn next(&mut self, flights: &BTreeMap<WalFileName, Flight>) -> Turn {
        loop {
            let Some(name) = self.files.front().copied() else {
                return Turn::Nobody;
            };
            let timeline = name.timeline();
            if self.contested.contains(&timeline) {
                self.files.pop_front();
                continue;
            }
            let is_alone = || flights.keys().all(|f| f.timeline() != timeline);
            if !self.leading.contains(&timeline) && !is_alone() {
                return Turn::Wait;
            }
            self.files.pop_front();
            return Turn::Of(name);
        }
    }

    /// Says that the archive has a file, and whether it was new there.
    fn archived(&mut self, name: WalFileName, is_new: bool) {
        match is_new && matches!(name, WalFileName::Segment(_)) {
            true => self.leading.insert(name.timeline()),
            false => self.leading.remove(&name.timeline()),
        };
    }
}

struct Job {
    settings: Settings,
    data: DataDirectory,
    spool: Spool,
    /// That of the spool, for as long as the worker lives.
    lock: OwnedFd,
    begun: Instant,
    /// The server ran when the worker was started.
    has_server: bool,
    at_once: usize,
    linger: Duration,
    nonce: AtomicU64,
    /// No further file is begun.
    is_over: AtomicBool,
    queue: Mutex<Queue>,
    flights: Mutex<BTreeMap<WalFileName, Flight>>,
    /// The required repositories, once they are open.
    holders: OnceLock<Vec<Holder>>,
    /// Whether an object store goes on; of directories it knows nothing.
    pulse: Pulse,
    shipped: Mutex<BTreeMap<WalFileName, Instant>>,
}

/// A lock is only held for moments in which nothing panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    fn new(arguments: &Arguments, environment: &Environment, nonce: u64) -> Result<Job> {
        let refused = || {
            err!(
                Usage,
                "a worker is started by pitr-archive and by nobody else"
            )
        };
        let [wal] = arguments.files.as_slice() else {
            return Err(refused());
        };
        let settings = super::settings(arguments, environment)?;
        let data = DataDirectory::of_wal_file(&Path::new(wal).join("-"));
        let cluster = settings.cluster()?;
        let place = spool::place(&cluster, &settings, environment, &data);
        let spool = place.ok().flatten().and_then(|p| Spool::open(&p).ok()?);
        let spool = spool.ok_or_else(refused)?;
        let lock = detach::held().map_err(|e| Error::from_io("keep the lock", e))?;
        if !spool.is_locked_by(&lock) {
            return Err(refused());
        }
        let is_remote = settings.repositories.iter().any(|r| r.location.is_remote());
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let job = Job {
            has_server: data.has("postmaster.pid"),
            settings,
            data,
            spool,
            lock,
            begun: Instant::now(),
            at_once: match is_remote {
                true => AT_ONCE_REMOTE,
                false => (processors + 1).clamp(AT_ONCE.0, AT_ONCE.1),
            },
            linger: match is_remote {
                true => LINGER_REMOTE,
                false => Duration::ZERO,
            },
            nonce: AtomicU64::new(nonce),
            is_over: AtomicBool::new(false),
            queue: Mutex::default(),
            flights: Mutex::default(),
            holders: OnceLock::new(),
            // Nobody hears it.
            pulse: Pulse::new(|_| {}),
            shipped: Mutex::default(),
        };
        job.sweep()?;
        Ok(job)
    }

    /// Forgets what is over, and what a worker before left half-done.
    fn sweep(&self) -> Result<()> {
        let failed = |e| Error::from_io("write into the spool", e);
        self.spool.remove_unfinished();
        self.spool.sign(&self.lock);
        self.spool.unmark_hung();
        self.spool.try_out(self.next_nonce()).map_err(failed)?;
        let ready: BTreeSet<WalFileName> = ready(&self.data)?.collect();
        for (name, known) in self.spool.known().map_err(failed)? {
            if !ready.contains(&name) {
                match known {
                    Known::Shipped => {
                        self.spool.remove_note(name);
                    }
                    Known::Failed => self.spool.remove_failure(name),
                }
            } else if known == Known::Failed && self.is_contested(name) {
                lock(&self.queue).contested.insert(name.timeline());
            }
        }
        Ok(())
    }

    /// Whether an earlier call found another server's WAL in the file's place.
    fn is_contested(&self, name: WalFileName) -> bool {
        let contested = [Code::Conflict, Code::TimelineReused].map(exit::name);
        let failure = self.spool.failure(name);
        failure.is_some_and(|failure| contested.contains(&failure.code.as_str()))
    }

    fn next_nonce(&self) -> u64 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    fn work(&self) -> Result<()> {
        let mut archiver = Archiver::new(&self.settings, self.next_nonce())?;
        let holders = archiver.open().inspect_err(|e| self.fail_first(e))?;
        let set = self.holders.set(holders);
        set.map_err(|_| err!(Internal, "a worker began twice"))?;
        let hand = Hand {
            job: self,
            archiver: &archiver,
        };
        std::thread::scope(|scope| {
            for _ in 0..self.at_once {
                scope.spawn(|| {
                    while let Some(name) = hand.next() {
                        hand.ship(name);
                    }
                });
            }
        });
        Ok(())
    }

    /// Returns the files that are ready and not left alone, in PostgreSQL's order.
    fn scan(&self) -> Result<Vec<WalFileName>> {
        let failed = |e| Error::from_io("read the spool", e);
        let flying: BTreeSet<WalFileName> = lock(&self.flights).keys().copied().collect();
        // After that: a note that is written meanwhile is seen.
        let known = self.spool.known().map_err(failed)?;
        let mut shipped = lock(&self.shipped);
        shipped.retain(|_, at| at.elapsed() < SETTLING);
        let is_open = |name: &WalFileName| {
            !is_left_alone(&self.spool, *name, known.get(name))
                && !flying.contains(name)
                && !shipped.contains_key(name)
        };
        let mut found: Vec<WalFileName> = ready(&self.data)?.filter(is_open).collect();
        found.sort_by_cached_key(turn);
        Ok(found)
    }

    /// Whether nothing more is to be begun.
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
            || self.begun.elapsed() >= SESSION
            || self.has_stopped()
    }

    /// Whether the server that the worker was started for has stopped: its data directory may go anywhere then.
    fn has_stopped(&self) -> bool {
        self.has_server && !self.data.has("postmaster.pid")
    }

    /// Records that the repositories cannot be opened, for the `pitr-archive` that waits. The record is for the first
    /// file, for PostgreSQL offers in that order. The other files were not tried.
    fn fail_first(&self, error: &Error) {
        let ready = ready(&self.data).map(|names| names.min_by_key(turn));
        let open = self.scan().unwrap_or_default();
        let first = ready.ok().flatten();
        if let Some(first) = first.filter(|name| open.first() == Some(name)) {
            self.fail(first, error);
        }
    }

    fn fail(&self, name: WalFileName, error: &Error) {
        let failure = archive::failure_of(error);
        if self
            .spool
            .write_failure(name, &failure, self.next_nonce())
            .is_err()
        {
            self.stop();
        }
    }

    fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Returns whether the worker must end: a file, or opening the repositories, takes too long, or the server has
    /// stopped. Called four times a second. A file that waits only for optional repositories is noted first.
    fn is_late(&self) -> Option<Result<()>> {
        if self.has_stopped() {
            return Some(Ok(()));
        }
        let deadline = deadline();
        let is_silent = self.pulse.silence() >= deadline;
        let is_late = |begun: Instant| is_silent && begun.elapsed() >= deadline;
        if self.holders.get().is_none() && is_late(self.begun) {
            let error = deadline_error(deadline);
            self.fail_first(&error);
            return Some(Err(error));
        }
        let flights = lock(&self.flights);
        let late = flights
            .iter()
            .find(|(_, flight)| match flight.acknowledged {
                Some(at) => at.elapsed() > PATIENCE_REST,
                None => is_late(flight.begun),
            });
        late?;
        for (name, flight) in flights.iter() {
            match flight.acknowledged {
                Some(_) => self.note(*name, flight.before, without_the_rest().warnings),
                None if is_late(flight.begun) => self.fail(*name, &deadline_error(deadline)),
                None => {}
            }
        }
        Some(Err(deadline_error(deadline)))
    }

    fn path(&self, name: WalFileName) -> PathBuf {
        self.data.wal().join(name.to_string())
    }

    /// Writes the note, unless the file is not what it was before it was read. It is durable in every required repository.
    fn note(&self, name: WalFileName, before: Before, warnings: Vec<String>) {
        let is_same = spool::look_at(&self.path(name), name) == before;
        let note = before.filter(|_| is_same).zip(self.holders.get());
        let note = note.map(|((file, system_identifier), holders)| Note {
            holders: holders.clone(),
            written_ms: archive::millis(super::since_boot()),
            boot: spool::boot().unwrap_or_default(),
            server: self.data.server(),
            warnings,
            ..Note::new(name, file, system_identifier)
        });
        let nonce = self.next_nonce();
        if note.is_none_or(|note| self.spool.write_note(&note, nonce).is_err()) {
            self.stop();
        }
        self.spool.unmark_hung();
    }
}

/// The data that the threads of a worker share.
struct Hand<'a> {
    job: &'a Job,
    archiver: &'a Archiver,
}

impl Hand<'_> {
    /// The next file; `None` when this thread is not needed any more.
    fn next(&self) -> Option<WalFileName> {
        loop {
            let mut queue = lock(&self.job.queue);
            if self.job.is_over() {
                return None;
            }
            let mut flights = lock(&self.job.flights);
            match queue.next(&flights) {
                Turn::Of(name) => {
                    queue.idle_since = None;
                    flights.insert(name, Flight::begin());
                    return Some(name);
                }
                Turn::Wait => {
                    drop((flights, queue));
                    std::thread::sleep(NAP);
                    continue;
                }
                Turn::Nobody => drop(flights),
            }
            let Ok(found) = self.job.scan() else {
                self.job.stop();
                return None;
            };
            for name in found {
                match name {
                    // Before everything that belongs to the timeline, so nobody gets a file meanwhile.
                    WalFileName::History(_) if queue.histories.insert(name) => {
                        self.push_history(name);
                    }
                    WalFileName::History(_) => {}
                    _ if queue.contested.contains(&name.timeline()) => {}
                    _ => queue.files.push_back(name),
                }
            }
            if queue.files.is_empty() {
                let since = *queue.idle_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.job.linger {
                    return None;
                }
                drop(queue);
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Archives a history; its note would be of no use, because a history is small.
    fn push_history(&self, name: WalFileName) {
        lock(&self.job.flights).insert(name, Flight::begin());
        let pushed = self.archiver.archive(&self.job.path(name), name, &|| {});
        lock(&self.job.flights).remove(&name);
        if let Err(e) = pushed {
            self.job.fail(name, &e);
            self.job.stop();
        }
    }

    /// Archives one file, and leaves word of it.
    fn ship(&self, name: WalFileName) {
        let path = self.job.path(name);
        let before = spool::look_at(&path, name);
        self.of_flight(name, |flight| flight.before = before);
        let acknowledged = || {
            self.of_flight(name, |flight| flight.acknowledged = Some(Instant::now()));
        };
        match self.archiver.archive(&path, name, &acknowledged) {
            Ok(archived) => {
                lock(&self.job.queue).archived(name, archived.is_new_everywhere);
                self.job.note(name, before, archived.warnings);
            }
            Err(e) => {
                if matches!(e.code(), Code::Conflict | Code::TimelineReused) {
                    lock(&self.job.queue).contested.insert(name.timeline());
                }
                self.job.fail(name, &e);
                if !OF_THE_FILE.contains(&e.code()) {
                    self.job.stop();
                }
            }
        }
        lock(&self.job.shipped).insert(name, Instant::now());
        lock(&self.job.flights).remove(&name);
    }

    fn of_flight(&self, name: WalFileName, change: impl FnOnce(&mut Flight)) {
        if let Some(flight) = lock(&self.job.flights).get_mut(&name) {
            change(flight);
        }
    }
}

impl Flight {
    fn begin() -> Flight {
        Flight {
            begun: Instant::now(),
            before: None,
            acknowledged: None,
        }
    }
}
