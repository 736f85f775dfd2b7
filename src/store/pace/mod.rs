//! Limits of bandwidth: a token bucket for each repository, which all processes of an account share, and one of a command's own.
//!
//! A command takes a share ahead of the bytes that it moves, and waits until the share is paid for. WAL never comes here: archiving,
//! receiving and fetching for recovery open repositories without a pace ([`crate::repo::open`]).

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::progress::Progress;

mod shared;
pub mod store;

use shared::SharedFile;

/// Bytes that pass at once after a pause, as time at the full rate.
const BURST: Duration = Duration::from_millis(250);
/// A share that is taken at once, as time at the full rate. Each process owes one share at most.
const SHARE: Duration = Duration::from_millis(125);
/// Everything that is owed by all processes together. A later moment is a remnant, or was made up.
const OWED_MAX: Duration = Duration::from_secs(60);
/// The interval at which a wait looks whether the command is stopping.
const TICK: Duration = Duration::from_millis(50);

/// Whether a limit holds at the moment.
pub type When = Arc<dyn Fn() -> bool + Send + Sync>;

/// Limits of what is read from and written to one repository.
pub struct Pace {
    buckets: Vec<Bucket>,
    /// The command is stopping: nothing waits any more.
    stop: Arc<AtomicBool>,
}

impl Pace {
    /// Without a limit.
    pub fn new(stop: &Arc<AtomicBool>) -> Pace {
        Pace {
            buckets: Vec::new(),
            stop: Arc::clone(stop),
        }
    }

    /// Adds a limit that no other process knows of.
    pub fn own(mut self, bytes_per_s: u64) -> Pace {
        self.buckets.push(Bucket::new(bytes_per_s, None));
        self
    }

    /// Adds a limit that all processes of this account share, by a file in `directory` for the repository at `location`.
    ///
    /// If that file cannot be used, the limit holds for this process alone, and `progress` gets a warning with the
    /// reason. With `when` it holds at these times only.
    pub fn shared(
        mut self,
        (bytes_per_s, when): (u64, Option<When>),
        (directory, location): (Option<&Path>, &str),
        progress: Arc<dyn Progress>,
    ) -> Pace {
        let said = |why: String| {
            progress.warn(&format!(
                "the limit of repository \"{location}\" holds for this process alone: {why}"
            ));
        };
        let file = match directory {
            Some(directory) => SharedFile::open(directory, location)
                .map_err(|e| said(format!("\"{}\": {e}", directory.display())))
                .ok(),
            None => {
                said("no directory for caches is configured (cache_dir)".to_owned());
                None
            }
        };
        let file = file.map(|file| (file, progress));
        let mut bucket = Bucket::new(bytes_per_s, file);
        bucket.when = when;
        self.buckets.push(bucket);
        self
    }

    /// Whether there is no limit.
    pub fn is_free(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Waits until so many bytes may pass.
    pub fn take(&self, bytes: usize) {
        for bucket in &self.buckets {
            bucket.take(bytes as u64, &self.stop);
        }
    }
}

/// One limit.
struct Bucket {
    bytes_per_s: u64,
    /// None: always.
    when: Option<When>,
    /// Bytes that are paid for and have not passed yet. Threads of this process wait here for one another.
    paid_bytes: Mutex<u64>,
    /// The moment at which everything taken is paid for, where no other process has to know it.
    paid_at_ns: AtomicU64,
    file: Option<(SharedFile, Arc<dyn Progress>)>,
    is_file_lost: AtomicBool,
}

impl Bucket {
    fn new(bytes_per_s: u64, file: Option<(SharedFile, Arc<dyn Progress>)>) -> Bucket {
        Bucket {
            bytes_per_s: bytes_per_s.max(1),
            when: None,
            paid_bytes: Mutex::new(0),
            paid_at_ns: AtomicU64::new(0),
            file,
            is_file_lost: AtomicBool::new(false),
        }
    }

    fn take(&self, bytes: u64, stop: &AtomicBool) {
        let share = share_bytes(self.bytes_per_s);
        let mut paid = self
            .paid_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut left = bytes;
        while left > *paid {
            left -= *paid;
            *paid = 0;
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // Asked once for each share, so that a long transfer follows the clock.
            if self.when.as_ref().is_none_or(|holds| holds()) {
                wait_until(self.reserve(share), stop);
            }
            *paid = share;
        }
        *paid -= left;
    }

    /// Takes a share, and returns when it is paid for.
    fn reserve(&self, bytes: u64) -> u64 {
        if let Some((file, progress)) = &self.file
            && !self.is_file_lost.load(Ordering::Relaxed)
        {
            match file.update(|paid_at_ns| turn(paid_at_ns, now_ns(), bytes, self.bytes_per_s)) {
                Ok(paid_at_ns) => return paid_at_ns,
                Err(e) => {
                    self.is_file_lost.store(true, Ordering::Relaxed);
                    progress.warn(&format!(
                        "a limit that processes share holds for this process alone from here on: {e}"
                    ));
                }
            }
        }
        // Only under the lock of `take`.
        let paid_at_ns = turn(
            self.paid_at_ns.load(Ordering::Relaxed),
            now_ns(),
            bytes,
            self.bytes_per_s,
        );
        self.paid_at_ns.store(paid_at_ns, Ordering::Relaxed);
        paid_at_ns
    }
}

fn share_bytes(bytes_per_s: u64) -> u64 {
    let share = u128::from(bytes_per_s) * SHARE.as_nanos() / 1_000_000_000;
    u64::try_from(share).unwrap_or(u64::MAX).max(1)
}

/// Returns the moment at which `bytes` are paid for, when everything before them is at `paid_at_ns`.
fn turn(paid_at_ns: u64, now_ns: u64, bytes: u64, bytes_per_s: u64) -> u64 {
    let cost = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_s.max(1));
    let cost = u64::try_from(cost).unwrap_or(u64::MAX);
    let earliest = now_ns.saturating_sub(nanos(BURST));
    let is_owed = paid_at_ns <= now_ns.saturating_add(nanos(OWED_MAX));
    let begin = match is_owed {
        true => paid_at_ns.max(earliest),
        false => earliest,
    };
    begin.saturating_add(cost)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads the monotonic clock, which all processes of the host have in common.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (s, ns) = (
        u64::try_from(now.tv_sec).unwrap_or(0),
        u64::try_from(now.tv_nsec).unwrap_or(0),
    );
    s.saturating_mul(1_000_000_000).saturating_add(ns)
}

fn wait_until(moment_ns: u64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let left = Duration::from_nanos(moment_ns.saturating_sub(now_ns()));
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(TICK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Collector;
    use proptest::prelude::*;
    use std::time::Instant;

    const S: u64 = 1_000_000_000;

    #[test]
    fn bytes_are_paid_for_one_after_the_other() {
        let now = 100 * S;
        // After a pause the burst passes at once, and no more of the pause is saved up.
        assert_eq!(turn(0, now, 250, 1000), now);
        assert_eq!(turn(now, now, 250, 1000), now + S / 4);
        assert_eq!(turn(now + 3 * S, now, 1000, 1000), now + 4 * S);
        // A moment that nobody can owe: the machine was started again, or somebody wrote it.
        assert_eq!(turn(now + 61 * S, now, 250, 1000), now);
        assert_eq!(turn(u64::MAX, now, u64::MAX, 1), u64::MAX);
        assert_eq!(turn(0, 0, 1000, 0), 1000 * S);
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_and_a_burst(
            rate in 1_u64..1 << 40, steps in proptest::collection::vec((0_u64..S, 1_u64..4), 1..200)
        ) {
            let share = share_bytes(rate);
            let (mut now, mut paid_at, mut passed, start) = (1000 * S, 0, 0_u128, 1000 * S);
            for (pause, shares) in steps {
                now += pause;
                for _ in 0..shares {
                    paid_at = turn(paid_at, now, share, rate);
                    now = now.max(paid_at);
                    passed += u128::from(share);
                }
                let allowed = u128::from(now - start + S / 4) * u128::from(rate) / u128::from(S);
                // Times are rounded to a nanosecond, each share by itself.
                prop_assert!(passed <= allowed + allowed / 1000 + u128::from(share));
            }
        }
    }

    #[test]
    fn processes_share_what_a_file_says() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("rate");
        let heard = Arc::new(Collector::default());
        let stop = Arc::default();
        let pace = || {
            let file = (Some(directory.as_path()), "file:///r");
            Pace::new(&stop).shared((4 << 20, None), file, heard.clone())
        };
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                // Each opens the file as a process of its own does.
                let pace = pace();
                scope.spawn(move || (0..32).for_each(|_| pace.take(64 << 10)));
            }
        });
        // 4 MiB at 4 MiB a second, less the burst.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(700), "{took:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert!(heard.lines().is_empty(), "{:?}", heard.lines());
    }

    #[test]
    fn without_a_file_the_limit_holds_for_the_process() {
        let heard = Arc::new(Collector::default());
        let pace =
            Pace::new(&Arc::default()).shared((1 << 20, None), (None, "file:///r"), heard.clone());
        let begun = Instant::now();
        (0..16).for_each(|_| pace.take(64 << 10));
        assert!(begun.elapsed() >= Duration::from_millis(700));
        let lines = heard.lines();
        assert!(
            lines[0].contains("holds for this process alone"),
            "{lines:?}"
        );
    }

    #[test]
    fn outside_of_its_hours_a_limit_holds_nothing_up() {
        let place = tempfile::tempdir().unwrap();
        let is_day = Arc::new(AtomicBool::new(false));
        let when: When = {
            let is_day = Arc::clone(&is_day);
            Arc::new(move || is_day.load(Ordering::Relaxed))
        };
        let file = (Some(place.path()), "file:///r");
        let heard = Arc::new(Collector::default());
        let pace = Pace::new(&Arc::default()).shared((1 << 20, Some(when)), file, heard);
        let begun = Instant::now();
        (0..1600).for_each(|_| pace.take(64 << 10));
        assert!(begun.elapsed() < Duration::from_secs(50));
        is_day.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        (0..16).for_each(|_| pace.take(64 << 10));
        assert!(begun.elapsed() >= Duration::from_millis(500));
    }

    #[test]
    fn a_command_that_stops_waits_for_nothing() {
        let stop = Arc::new(AtomicBool::new(false));
        let pace = Arc::new(Pace::new(&stop).own(1));
        assert!(!pace.is_free());
        let waiting = {
            let pace = Arc::clone(&pace);
            std::thread::spawn(move || pace.take(1 << 30))
        };
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        stop.store(true, Ordering::Relaxed);
        waiting.join().unwrap();
        assert!(Pace::new(&stop).is_free());
    }
}
