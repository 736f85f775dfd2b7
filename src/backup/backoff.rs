//! Slows a backup down while the server is busy: while its WAL archiving lags, or while its answers take long.
//!
//! A thread with a session of its own asks the server once a second. The backup's thread halves its speed for each second in which the
//! server is too busy, and raises it by a quarter for each in which it is not. The backup always goes on at 1 MiB a second: a backup that stands
//! still would keep the server from nothing, and would never end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::rate::Rate;
use crate::config::{Backoff as Limits, Size};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// The interval of questions, and of changes of speed.
const INTERVAL: Duration = Duration::from_secs(1);
/// The interval at which the asking thread looks whether the copy is over.
const TICK: Duration = Duration::from_millis(50);
/// The lowest speed, in bytes a second.
const FLOOR: u64 = 1 << 20;

/// How busy a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// The time that `select 1` took.
    pub latency: Duration,
    /// Bytes of whole segments that neither the archiver nor a receiver has brought away; none where that cannot be known.
    pub wal_lag_bytes: Option<u64>,
}

/// Asks a server how busy it is, on a session of its own.
pub trait Probe: Send {
    /// Asks once.
    ///
    /// # Errors
    /// Those of the connection, and of the server.
    fn ask(&mut self) -> Result<Load>;
}

/// The cost of slowing down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct HeldBack {
    /// Time below full speed, in milliseconds.
    pub slowed_ms: u64,
    /// Time in which WAL archiving lagged too much, in milliseconds.
    pub wal_lag_ms: u64,
    /// Time in which answers took too long, in milliseconds.
    pub latency_ms: u64,
    /// The largest lag seen.
    pub most_wal_lag_bytes: u64,
    /// The slowest answer seen, in milliseconds.
    pub most_latency_ms: u64,
}

/// The knowledge of the asking thread.
#[derive(Default)]
struct Known {
    load: Option<Load>,
    /// A question that has no answer yet.
    asked_at: Option<Instant>,
    failure: Option<Error>,
}

/// A backup that slows down.
pub struct Backoff {
    limits: Limits,
    known: Arc<Mutex<Known>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    governor: Governor,
    looked: Instant,
    taken_bytes: u64,
    held_back: HeldBack,
}

impl Backoff {
    /// Begins to ask; `None` where no limit is configured.
    ///
    /// # Errors
    /// Those of the system, when it starts no thread.
    pub fn start(limits: Limits, probe: Option<Box<dyn Probe>>) -> Result<Option<Backoff>> {
        let (Some(mut probe), false) = (probe, limits.is_none()) else {
            return Ok(None);
        };
        let (known, over) = <(Arc<Mutex<Known>>, Arc<AtomicBool>)>::default();
        let asking = {
            let (known, over) = (Arc::clone(&known), Arc::clone(&over));
            move || ask(probe.as_mut(), &known, &over)
        };
        let thread = std::thread::Builder::new()
            .name("backoff".into())
            .spawn(asking)
            .map_err(|e| Error::from_io("start a thread", e))?;
        Ok(Some(Backoff {
            limits,
            known,
            over,
            thread: Some(thread),
            governor: Governor::default(),
            looked: Instant::now(),
            taken_bytes: 0,
            held_back: HeldBack::default(),
        }))
    }

    /// Sets the speed anew, once a second however often this is called.
    pub fn tick(&mut self, rate: &Rate, progress: &dyn Progress) {
        let passed = self.looked.elapsed();
        if passed < INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let taken = rate.taken_bytes();
        let speed = per_second(taken - self.taken_bytes, passed);
        self.taken_bytes = taken;
        let load = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(e) = known.failure.take() {
                progress.warn(&format!(
                    "the server cannot be asked how busy it is ({e}): backoff of the configuration has no effect until it can"
                ));
            }
            load_now(&known)
        };
        let excess = load.map_or(Excess::default(), |load| self.limits_passed_by(load));
        let before = self.governor.limit;
        self.governor.step(speed, excess.any());
        rate.lower_to(self.governor.limit);
        self.count(passed, load.unwrap_or_default(), excess);
        self.tell((before, self.governor.limit), load, excess, progress);
    }

    /// Ends the questions, and returns what was held back.
    pub fn finish(mut self, rate: &Rate) -> HeldBack {
        rate.lower_to(None);
        self.stop();
        self.held_back
    }

    fn limits_passed_by(&self, load: Load) -> Excess {
        let lag = load.wal_lag_bytes.unwrap_or(0);
        Excess {
            wal_lag: self.limits.wal_lag_bytes.is_some_and(|most| lag > most),
            latency: self.limits.latency.is_some_and(|most| load.latency > most),
        }
    }

    fn count(&mut self, passed: Duration, load: Load, excess: Excess) {
        let all = &mut self.held_back;
        let ms = millis(passed);
        let add = |total: &mut u64, is_so: bool| *total += if is_so { ms } else { 0 };
        add(&mut all.slowed_ms, self.governor.limit.is_some());
        add(&mut all.wal_lag_ms, excess.wal_lag);
        add(&mut all.latency_ms, excess.latency);
        let lag = load.wal_lag_bytes.unwrap_or(0);
        all.most_wal_lag_bytes = all.most_wal_lag_bytes.max(lag);
        all.most_latency_ms = all.most_latency_ms.max(millis(load.latency));
    }

    fn tell(
        &self,
        change: (Option<u64>, Option<u64>),
        load: Option<Load>,
        excess: Excess,
        progress: &dyn Progress,
    ) {
        match (change, load) {
            ((None, Some(_)), Some(load)) => {
                let lag = load.wal_lag_bytes.unwrap_or(0);
                let causes = [
                    (
                        excess.wal_lag,
                        format!("{} of WAL wait to be archived", Size(lag)),
                    ),
                    (
                        excess.latency,
                        format!("an answer of the server took {} ms", millis(load.latency)),
                    ),
                ];
                let causes = causes.into_iter().filter(|(is_so, _)| *is_so);
                let causes: Vec<_> = causes.map(|(_, cause)| cause).collect();
                progress.note(&format!(
                    "the backup slows down: {} (backoff)",
                    causes.join(", and ")
                ));
            }
            ((Some(_), None), _) => progress.note("the backup goes on at full speed"),
            _ => {}
        }
    }

    fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // A question that the server does not answer is left behind, with its thread.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

impl Drop for Backoff {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Which limits a load passes.
#[derive(Debug, Clone, Copy, Default)]
struct Excess {
    wal_lag: bool,
    latency: bool,
}

impl Excess {
    fn any(self) -> bool {
        self.wal_lag || self.latency
    }
}

/// The speed of a backup.
#[derive(Debug, Default)]
struct Governor {
    /// None is full speed.
    limit: Option<u64>,
    /// The highest speed seen without a limit.
    fastest: u64,
}

impl Governor {
    /// Goes on by one interval in which the backup had this speed.
    fn step(&mut self, speed: u64, is_too_busy: bool) {
        if self.limit.is_none() {
            self.fastest = self.fastest.max(speed);
        }
        self.limit = match (is_too_busy, self.limit) {
            (true, limit) => {
                let present = limit.map_or(speed, |limit| limit.min(speed.max(FLOOR)));
                Some((present / 2).max(FLOOR))
            }
            (false, Some(limit)) => {
                let raised = limit.saturating_add(limit / 4);
                (raised <= self.fastest.max(FLOOR)).then_some(raised)
            }
            (false, None) => None,
        };
    }
}

/// Asks until the copy is over.
fn ask(probe: &mut dyn Probe, known: &Mutex<Known>, over: &AtomicBool) {
    let lock = || known.lock().unwrap_or_else(PoisonError::into_inner);
    let mut has_failed = false;
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        lock().asked_at = Some(begun);
        let answer = probe.ask();
        {
            let mut known = lock();
            known.asked_at = None;
            match answer {
                Ok(load) => {
                    has_failed = false;
                    known.load = Some(load);
                }
                Err(e) => {
                    known.load = None;
                    // Once for as long as it lasts.
                    if !std::mem::replace(&mut has_failed, true) {
                        known.failure = Some(e);
                    }
                }
            }
        }
        while begun.elapsed() < INTERVAL && !over.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
    }
}

/// The last answer. A question that waits for longer than the last one did is as good as an answer.
fn load_now(known: &Known) -> Option<Load> {
    let waiting = known.asked_at.map_or(Duration::ZERO, |at| at.elapsed());
    // Also of the first question: a server that never answers is busy.
    let load = match known.load {
        Some(load) => load,
        None if waiting > INTERVAL => Load::default(),
        None => return None,
    };
    Some(Load {
        latency: load.latency.max(waiting),
        ..load
    })
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let speed = u128::from(bytes) * 1000 / time.as_millis().max(1);
    u64::try_from(speed).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::err;
    use crate::progress::Collector;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_speed_falls_at_once_and_rises_slowly() {
        let mut governor = Governor::default();
        governor.step(400 * MIB, false);
        assert_eq!(governor.limit, None);
        governor.step(300 * MIB, true);
        assert_eq!(governor.limit, Some(150 * MIB));
        governor.step(150 * MIB, true);
        assert_eq!(governor.limit, Some(75 * MIB));
        governor.step(75 * MIB, false);
        assert_eq!(governor.limit, Some(75 * MIB + 75 * MIB / 4));
        let mut seconds = 1;
        while governor.limit.is_some() {
            governor.step(10 * MIB, false);
            seconds += 1;
        }
        assert!((6..12).contains(&seconds), "{seconds}");
    }

    proptest! {
        #[test]
        fn a_backup_never_stands_still(steps in proptest::collection::vec((0_u64..1 << 34, any::<bool>()), 1..200)) {
            let mut governor = Governor::default();
            for (speed, is_too_busy) in steps {
                governor.step(speed, is_too_busy);
                prop_assert!(governor.limit.is_none_or(|limit| limit >= FLOOR));
                prop_assert!(!is_too_busy || governor.limit.is_some());
            }
        }
    }

    /// Answers with each load, the last one first, then fails.
    struct Scripted(Vec<Load>);

    impl Probe for Scripted {
        fn ask(&mut self) -> Result<Load> {
            self.0.pop().ok_or_else(|| err!(Server, "it is away"))
        }
    }

    #[test]
    fn a_server_that_cannot_be_asked_slows_nothing_down_and_is_named_once() {
        let limits = Limits {
            wal_lag_bytes: Some(100),
            latency: None,
        };
        let busy = Load {
            wal_lag_bytes: Some(1000),
            ..Load::default()
        };
        assert!(Backoff::start(Limits::default(), None).unwrap().is_none());
        // Several answers, for some may be out of date by the first look.
        let probe: Box<dyn Probe> = Box::new(Scripted(vec![busy; 5]));
        let mut backoff = Backoff::start(limits, Some(probe)).unwrap().unwrap();
        let (rate, heard) = (Rate::new(None), Collector::default());
        let ended = Instant::now() + Duration::from_secs(60);
        while heard.lines().len() < 3 {
            assert!(Instant::now() < ended, "{:?}", heard.lines());
            std::thread::sleep(Duration::from_millis(100));
            backoff.tick(&rate, &heard);
        }
        let lines = heard.lines();
        assert!(lines[0].contains("1KB of WAL wait"), "{lines:?}");
        assert!(lines[1].contains("cannot be asked"), "{lines:?}");
        assert!(lines[2].contains("full speed"), "{lines:?}");
        let held_back = backoff.finish(&rate);
        assert_eq!(held_back.most_wal_lag_bytes, 1000);
        assert!(held_back.slowed_ms >= 900 && held_back.wal_lag_ms >= 900);
        assert_eq!(held_back.latency_ms, 0);
    }

    #[test]
    fn a_question_without_an_answer_is_a_slow_answer() {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(5));
        let known = Known {
            load: Some(Load::default()),
            asked_at: long_ago,
            failure: None,
        };
        assert!(load_now(&known).unwrap().latency >= Duration::from_secs(5));
        assert!(load_now(&Known::default()).is_none());
    }
}
