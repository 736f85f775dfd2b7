//! Up to when the commits of a server are durable here: what the server says of its end of WAL, beside what has become durable.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;

/// Ends are remembered so far apart.
const APART: Duration = Duration::from_secs(1);
/// So many ends are remembered; behind them a stream that is slower than its server tells less than it could.
const ENDS_MAX: usize = 3600;

/// The server's ends of WAL that are not durable here, with when they were told.
#[derive(Debug, Default)]
pub struct InStep {
    told: VecDeque<(Lsn, TimestampTz)>,
    until: Option<TimestampTz>,
}

impl InStep {
    /// Remembers the server's end of WAL at a time.
    pub fn told(&mut self, end: Lsn, now: TimestampTz) {
        let is_due = self.told.back().is_none_or(|(_, last)| {
            // A clock that was put back is believed.
            let since = now.duration_since(*last);
            since.is_none_or(|since| since >= APART)
        });
        if is_due && self.told.len() < ENDS_MAX {
            self.told.push_back((end, now));
        }
    }

    /// Returns up to when all commits are durable, now that WAL up to `flushed` is; none before the first time.
    pub fn durable(&mut self, flushed: Lsn) -> Option<TimestampTz> {
        while let Some((_, time)) = self.told.front().filter(|(end, _)| *end <= flushed) {
            self.until = Some(*time);
            self.told.pop_front();
        }
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_durable_up_to_when_the_server_stood_where_wal_is_durable_now() {
        let second = |n: i64| TimestampTz(n * 1_000_000);
        let mut stream = InStep::default();
        assert_eq!(stream.durable(Lsn(100)), None);
        // An idle server says the same again.
        for n in 1..4 {
            stream.told(Lsn(100), second(n));
            assert_eq!(stream.durable(Lsn(100)), Some(second(n)));
        }
        // One that is ahead all the time.
        for n in 4..10_i64 {
            stream.told(Lsn(100 * n.unsigned_abs()), second(n));
        }
        assert_eq!(stream.durable(Lsn(399)), Some(second(3)));
        assert_eq!(stream.durable(Lsn(650)), Some(second(6)));
        assert_eq!(stream.durable(Lsn(650)), Some(second(6)));
        assert_eq!(stream.durable(Lsn(900)), Some(second(9)));
        // Ends that come faster than once a second are passed over; a clock that was put back counts.
        stream.told(Lsn(1000), second(10));
        stream.told(Lsn(2000), second(10));
        assert_eq!(stream.durable(Lsn(1000)), Some(second(10)));
        stream.told(Lsn(3000), second(2));
        assert_eq!(stream.durable(Lsn(2999)), Some(second(10)));
        assert_eq!(stream.durable(Lsn(3000)), Some(second(2)));
    }
}
