//! The worker: follows the segments that the server gets, and fetches those that come next on the same timeline.
//!
//! It looks around a hundred times a second, and does nothing that may hang itself: the threads of `fetcher` do. Whatever ends it, the
//! directory goes with it; after a kill whoever comes next removes it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::fetcher::{Fetcher, Outcome};
use super::{cluster_of, recovers};
use crate::archive::datadir::DataDirectory;
use crate::archive::prefetched::{Purpose, Store};
use crate::command::{Arguments, detach};
use crate::config::{self, Environment, PREFETCH_SEGMENTS};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::process;
use crate::repo::layout::ClusterLayout;

/// How often the worker looks what was asked for.
const TICK: Duration = Duration::from_millis(10);
/// In how many of these it looks whether it is still wanted.
const TICKS_BETWEEN_LOOKS: u32 = 5;
/// For how long nothing need be asked for: recovery is paused, waits, or has ended.
const IDLE: Duration = Duration::from_secs(60);
/// How long nothing is fetched when the disk is full.
const PAUSE: Duration = Duration::from_secs(10);
/// Bytes that the segments may take on the disk; one segment is allowed in any case.
const BYTES_MAX: u64 = 256 << 20;
/// How many segments are fetched at once from a disk, and from elsewhere.
const JOBS_NEAR: usize = 2;
const JOBS_FAR: usize = 4;

/// Fetches ahead of the segment that the arguments name, until nobody needs it.
///
/// # Errors
/// Errors that keep the worker from beginning.
pub fn run(arguments: &Arguments, environment: &Environment, nonce: u64) -> Result<()> {
    detach::own_session();
    let wanted = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&wanted))
            .map_err(|e| Error::from_io("watch for signals", e))?;
    }
    let Some(mut worker) = Worker::begin(arguments, environment, wanted, nonce)? else {
        return Ok(());
    };
    worker.work();
    // Threads may still be writing.
    durable::remove_temporaries();
    worker.store.remove();
    Ok(())
}

struct Worker {
    directory: DataDirectory,
    server: (i32, String),
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
    size: SegmentSize,
    /// How many segments may wait or be on their way.
    count: u64,
    jobs_max: usize,
    is_stopped: Arc<AtomicBool>,
    /// The segment that the server got last.
    position: SegmentName,
    /// When it got that, or another segment was fetched.
    moved: Instant,
    /// The first segment that could not be had since then. It is not remembered beyond.
    not_had: Option<SegmentName>,
    jobs: Vec<(SegmentName, JoinHandle<Outcome>)>,
    /// The disk is full until then.
    paused_until: Option<Instant>,
    is_over: bool,
}

impl Worker {
    /// `None` where there is nothing to do, or another worker at it.
    fn begin(
        arguments: &Arguments,
        environment: &Environment,
        is_stopped: Arc<AtomicBool>,
        nonce: u64,
    ) -> Result<Option<Worker>> {
        let [name, target] = arguments.files.as_slice() else {
            return Err(err!(Usage, "two arguments expected"));
        };
        let position = name.to_str().unwrap_or_default().parse()?;
        let directory = DataDirectory::of_wal_file(Path::new(target));
        let settings = crate::command::settings(arguments, environment)?;
        let cluster = cluster_of(&settings);
        let limit = cluster
            .as_ref()
            .map_or(PREFETCH_SEGMENTS, |c| c.prefetch_segments);
        let name = cluster.map(|c| c.name.to_string());
        let purpose = name.and_then(|name| Purpose::of(&directory, name, &settings.repositories));
        let Some(purpose) = purpose.filter(|_| limit > 0) else {
            return Ok(None);
        };
        let layout = ClusterLayout::new(&purpose.cluster, purpose.system_identifier)?;
        let Some(store) = Store::take_over(&directory, &purpose, nonce)? else {
            return Ok(None);
        };
        store.begin_behind(position);
        let store = Arc::new(store);
        let places = settings.repositories;
        Ok(Some(Worker {
            jobs_max: jobs_for(&places),
            fetcher: Arc::new(Fetcher::new(
                Arc::clone(&store),
                places,
                layout,
                &purpose,
                nonce,
            )),
            directory,
            server: purpose.server,
            store,
            size: purpose.size,
            count: how_many(limit, purpose.size),
            is_stopped,
            position,
            moved: Instant::now(),
            not_had: None,
            jobs: Vec::new(),
            paused_until: None,
            is_over: false,
        }))
    }

    fn work(&mut self) {
        let mut tick = 0;
        loop {
            self.follow();
            self.collect();
            self.fill();
            if self.is_done() || (tick == 0 && !self.is_wanted()) {
                return;
            }
            tick = (tick + 1) % TICKS_BETWEEN_LOOKS;
            std::thread::sleep(TICK);
        }
    }

    fn is_done(&self) -> bool {
        let is_at_the_end =
            self.not_had.is_some() && self.jobs.is_empty() && self.store.held().is_empty();
        self.is_over
            || is_at_the_end
            || self.is_stopped.load(Ordering::Relaxed)
            || (self.jobs.is_empty() && self.moved.elapsed() >= fault::shortened(IDLE))
    }

    /// Whether the server still recovers, and this is its worker.
    fn is_wanted(&self) -> bool {
        recovers(&self.directory)
            && !self.directory.has("promote")
            && self.directory.server().as_ref() == Some(&self.server)
            && process::is_alive(self.server.0)
            && self.store.is_own()
    }

    /// Takes note of what the server got, and removes what it will not ask for any more.
    fn follow(&mut self) {
        if let Some(asked) = self.store.asked().filter(|a| *a != self.position) {
            self.position = asked;
            self.moved = Instant::now();
            self.not_had = None;
        }
        let next = self.next();
        for name in self.store.held() {
            if !next.contains(&name) {
                self.store.drop_segment(name);
            }
        }
    }

    fn next(&self) -> Vec<SegmentName> {
        following(self.position, self.size, self.count)
    }

    /// Takes in what the threads have done.
    fn collect(&mut self) {
        let (done, going) = self.jobs.drain(..).partition(|(_, job)| job.is_finished());
        self.jobs = going;
        let done: Vec<(SegmentName, JoinHandle<Outcome>)> = done;
        for (name, job) in done {
            match job.join().unwrap_or(Outcome::NotHad) {
                // On a slow line that is all that moves.
                Outcome::Fetched => self.moved = Instant::now(),
                // A miss for a segment that the server has got by now does not predict the next ones.
                Outcome::NotHad if name <= self.position => {}
                Outcome::NotHad => {
                    self.not_had = Some(self.not_had.map_or(name, |other| other.min(name)));
                }
                Outcome::NoRoom => self.make_room(),
                Outcome::Stranger => self.is_over = true,
            }
        }
    }

    /// The server needs the disk more than this.
    fn make_room(&mut self) {
        for name in self.store.held() {
            self.store.drop_segment(name);
        }
        self.paused_until = Some(Instant::now() + PAUSE);
    }

    /// Has threads fetch what is to come and is not there.
    fn fill(&mut self) {
        if self
            .paused_until
            .is_some_and(|until| Instant::now() < until)
        {
            return;
        }
        let held = self.store.held();
        for name in self.next() {
            let is_known = held.contains(&name) || self.jobs.iter().any(|(job, _)| *job == name);
            if is_known {
                continue;
            }
            let is_beyond = self.not_had.is_some_and(|not_had| name >= not_had);
            if is_beyond || self.jobs.len() >= self.jobs_max {
                return;
            }
            if !self.store.has_room(self.count + 1) {
                return self.make_room();
            }
            let fetcher = Arc::clone(&self.fetcher);
            let job = std::thread::Builder::new().spawn(move || fetcher.fetch(name));
            match job {
                Ok(job) => self.jobs.push((name, job)),
                Err(_) => return,
            }
        }
    }
}

/// Enough to keep ahead of a server that replays on one processor, and to bridge the way to a store.
fn jobs_for(places: &[config::Repository]) -> usize {
    match places.iter().any(|p| p.location.is_remote()) {
        true => JOBS_FAR,
        false => JOBS_NEAR,
    }
}

/// How many segments may wait.
fn how_many(limit: u32, size: SegmentSize) -> u64 {
    u64::from(limit).min((BYTES_MAX / size.bytes()).max(1))
}

/// The segments that come after one on its timeline, in order.
fn following(position: SegmentName, size: SegmentSize, count: u64) -> Vec<SegmentName> {
    let mut next = Vec::new();
    let mut at = position;
    for _ in 0..count {
        let Some(name) = at.next(size) else {
            break;
        };
        next.push(name);
        at = name;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_what_comes_next_depends_on_the_segment_size() {
        let names = |from: &str, mib: u64, limit: u32| -> Vec<String> {
            let size = SegmentSize::new(mib << 20).unwrap();
            let next = following(from.parse().unwrap(), size, how_many(limit, size));
            next.iter().map(ToString::to_string).collect()
        };
        let from = "000000030000000100000003";
        assert_eq!(names(from, 1024, 8), ["000000030000000200000000"]);
        assert_eq!(names(from, 16, 8).len(), 8);
        assert_eq!(
            names(from, 16, 2),
            ["000000030000000100000004", "000000030000000100000005"]
        );
        let from = "00000003000000010000003D";
        let next = names(from, 64, 8);
        assert_eq!(next.len(), 4);
        assert_eq!(
            next[1..3],
            ["00000003000000010000003F", "000000030000000200000000"]
        );
        assert!(names("00000003FFFFFFFF00000003", 1024, 8).is_empty());
    }
}
