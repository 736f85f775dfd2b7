//! Keeps all readers together below a number of bytes per second, which may change while they read.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a reader that waits looks whether all is over.
const TICK: Duration = Duration::from_millis(50);
const UNLIMITED: u64 = u64::MAX;

/// A limit.
pub struct Rate {
    /// The operator's own, which never changes.
    fixed_bytes_per_s: u64,
    /// A lower one, for as long as the server is busy.
    lowered_bytes_per_s: AtomicU64,
    /// When everything taken so far has been paid for.
    paid_at: Mutex<Instant>,
    taken_bytes: AtomicU64,
}

impl Rate {
    /// At most so many bytes in a second; no limit without.
    pub fn new(bytes_per_s: Option<u64>) -> Rate {
        Rate {
            fixed_bytes_per_s: bytes_per_s.map_or(UNLIMITED, |rate| rate.max(1)),
            lowered_bytes_per_s: AtomicU64::new(UNLIMITED),
            paid_at: Mutex::new(Instant::now()),
            taken_bytes: AtomicU64::new(0),
        }
    }

    /// Sets a limit below the operator's own, or takes it away.
    pub fn lower_to(&self, bytes_per_s: Option<u64>) {
        let rate = bytes_per_s.map_or(UNLIMITED, |rate| rate.max(1));
        self.lowered_bytes_per_s.store(rate, Ordering::Relaxed);
    }

    /// All bytes that were taken so far.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }

    /// Takes bytes, and waits for as long as they cost.
    pub fn take(&self, bytes: usize, is_over: &AtomicBool) {
        self.taken_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let lowered = self.lowered_bytes_per_s.load(Ordering::Relaxed);
        let rate = lowered.min(self.fixed_bytes_per_s);
        if rate == UNLIMITED {
            return;
        }
        let until = match self.paid_at.lock() {
            Ok(mut paid_at) => {
                let cost = Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate);
                // Time in which nobody read is not saved up.
                *paid_at = (*paid_at).max(Instant::now()) + cost;
                *paid_at
            }
            Err(_) => return,
        };
        while !is_over.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cost_time() {
        let (rate, is_over) = (Rate::new(Some(1 << 20)), AtomicBool::new(false));
        let started = Instant::now();
        for _ in 0..4 {
            rate.take(32 << 10, &is_over);
        }
        assert!(started.elapsed() >= Duration::from_millis(120));
        assert_eq!(rate.taken_bytes(), 128 << 10);
        is_over.store(true, Ordering::Relaxed);
        rate.take(1 << 30, &is_over);
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_limit_can_be_lowered_and_never_raised() {
        let (rate, is_over) = (Rate::new(None), AtomicBool::new(false));
        let took = |bytes| {
            let started = Instant::now();
            rate.take(bytes, &is_over);
            started.elapsed()
        };
        assert!(took(1 << 30) < Duration::from_secs(1));
        rate.lower_to(Some(1 << 20));
        assert!(took(128 << 10) >= Duration::from_millis(120));
        rate.lower_to(None);
        assert!(took(1 << 30) < Duration::from_secs(1));
        let own = Rate::new(Some(1 << 20));
        own.lower_to(Some(1 << 40));
        let started = Instant::now();
        own.take(128 << 10, &is_over);
        assert!(started.elapsed() >= Duration::from_millis(120));
    }
}
