//! Keeps all readers together below a number of bytes per second.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a reader that waits looks whether all is over.
const TICK: Duration = Duration::from_millis(50);

/// A limit.
pub struct Rate {
    bytes_per_s: Option<u64>,
    /// When everything taken so far has been paid for.
    paid_at: Mutex<Instant>,
}

impl Rate {
    /// At most so many bytes in a second; no limit without.
    pub fn new(bytes_per_s: Option<u64>) -> Rate {
        Rate {
            bytes_per_s,
            paid_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes bytes, and waits for as long as they cost.
    pub fn take(&self, bytes: usize, is_over: &AtomicBool) {
        let Some(rate) = self.bytes_per_s else {
            return;
        };
        let until = match self.paid_at.lock() {
            Ok(mut paid_at) => {
                let cost = Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate.max(1));
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
        is_over.store(true, Ordering::Relaxed);
        rate.take(1 << 30, &is_over);
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
