//! How long to wait before the server is tried again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// Waits that grow with every failure in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: twice the one before, and somewhere in its upper half, so that many receivers do not come back at the same moment.
    pub fn next(&mut self, random: u64) -> Duration {
        let full = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half + Duration::from_micros(random % (micros + 1))
    }

    /// Something worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_again() {
        let mut backoff = Backoff::default();
        let mut longest = FIRST;
        for round in 0..40 {
            let wait = backoff.next(round * 7_919_777);
            assert!(wait >= longest / 2 && wait <= longest, "{round}: {wait:?}");
            longest = (longest * 2).min(LONGEST);
        }
        assert_eq!(longest, LONGEST);
        backoff.reset();
        assert!(backoff.next(u64::MAX) <= FIRST);
    }
}
