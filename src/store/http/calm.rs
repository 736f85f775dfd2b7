//! The rest that a store asks for: when it tells one request to slow down, all that go to it wait.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Until when nothing is asked.
#[derive(Debug, Default)]
pub(in crate::store) struct Calm(Mutex<Option<Instant>>);

impl Calm {
    /// Nobody is to begin an attempt for so long.
    pub(in crate::store) fn keep(&self, pause: Duration, now: Instant) {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(now.checked_add(pause));
    }

    /// How long that still is.
    pub(in crate::store) fn left(&self, now: Instant) -> Duration {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_told_to_wait_longest_decides() {
        let (calm, now) = (Calm::default(), Instant::now());
        let seconds = Duration::from_secs;
        assert_eq!(calm.left(now), seconds(0));
        calm.keep(seconds(3), now);
        calm.keep(seconds(1), now + seconds(1));
        assert_eq!(calm.left(now + seconds(1)), seconds(2));
        assert_eq!(calm.left(now + seconds(4)), seconds(0));
    }
}
