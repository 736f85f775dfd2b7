//! The bandwidth limit: bodies of requests begin only when those before them would have passed at the configured rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::store::life;

/// Who waits for its turn says so that often: it is not the store that is silent.
const SIGN: Duration = Duration::from_secs(1);

/// Paces what is sent and received together.
pub(super) struct Limit {
    bytes_per_second: Option<u64>,
    /// When what was let through will have passed.
    free: Mutex<Option<Instant>>,
}

impl Limit {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Limit {
        Limit {
            bytes_per_second,
            free: Mutex::new(None),
        }
    }

    /// Waits for the turn of `bytes`.
    pub(super) async fn pass(&self, bytes: usize) {
        self.wait(bytes, life::sign).await;
    }

    async fn wait(&self, bytes: usize, sign: impl Fn()) {
        let mut pause = self.turn(bytes, Instant::now());
        while !pause.is_zero() {
            let slice = pause.min(SIGN);
            tokio::time::sleep(slice).await;
            sign();
            pause -= slice;
        }
    }

    fn turn(&self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second.filter(|r| *r > 0) else {
            return Duration::ZERO;
        };
        let takes = u128::from(bytes as u64) * 1_000_000 / u128::from(rate);
        let takes = Duration::from_micros(u64::try_from(takes).unwrap_or(u64::MAX));
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free.unwrap_or(now).max(now);
        *free = begin.checked_add(takes).or(Some(begin));
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_wait_for_those_before_them() {
        let limit = Limit::new(Some(1000));
        let now = Instant::now();
        let seconds = Duration::from_secs;
        assert_eq!(limit.turn(2000, now), seconds(0));
        assert_eq!(limit.turn(1000, now), seconds(2));
        assert_eq!(limit.turn(1, now + seconds(10)), seconds(0));
        assert_eq!(Limit::new(None).turn(usize::MAX, now), seconds(0));
    }

    #[test]
    fn who_waits_for_its_turn_shows_that_it_lives() {
        let limit = Limit::new(Some(1000));
        let signs = std::cell::Cell::new(0);
        let work = async {
            for bytes in [2200, 1] {
                limit.wait(bytes, || signs.set(signs.get() + 1)).await;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        runtime.block_on(work);
        assert_eq!(signs.get(), 3);
    }
}
