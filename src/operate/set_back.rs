//! Times that a cluster has had twice, because its clock was set back: a time target among them stops at the first later transaction.

use crate::error::{Code, Result};
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::plan::chain::Chain;
use crate::plan::stop::CLOCK_SLACK;
use crate::plan::window::Window;
use crate::wal::facts::{Facts, Wal};
use crate::wal::inventory::Inventory;

/// The first and the last time that occur twice.
#[derive(Debug, PartialEq, Eq)]
pub struct SetBack {
    /// The first.
    pub from: TimestampTz,
    /// The last.
    pub to: TimestampTz,
}

/// Looks for them in the WAL of a window. A clock that was set back inside the only segment with transactions is not seen.
///
/// # Errors
/// Errors of [`Wal`], apart from damage.
pub(super) fn look(
    inventory: &Inventory,
    wal: &dyn Wal,
    window: &Window,
) -> Result<Option<SetBack>> {
    let chain = Chain::new(inventory, wal, inventory.history(window.timeline)?);
    let first = SegmentNumber::of(window.from_lsn, chain.size());
    let last = SegmentNumber::ending_at(window.to_lsn, chain.size());
    let mut times = Times::default();
    for number in (first.0..=last.0).map(SegmentNumber) {
        match wal.facts(chain.name(chain.path().holder(number), number)?) {
            Ok(facts) => times.add(&facts),
            Err(e) if matches!(e.code(), Code::NotFound | Code::Damaged) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(times.twice)
}

#[derive(Default)]
struct Times {
    latest: Option<TimestampTz>,
    twice: Option<SetBack>,
}

impl Times {
    /// Takes the next segment.
    fn add(&mut self, facts: &Facts) {
        if facts.ends == 0 {
            return;
        }
        let (earliest, latest) = facts.times;
        let before = self.latest.unwrap_or(earliest);
        if earliest < before.saturating_sub(CLOCK_SLACK) {
            let known = self.twice.take();
            let (from, to) = known.map_or((earliest, before), |k| {
                (k.from.min(earliest), k.to.max(before))
            });
            self.twice = Some(SetBack { from, to });
        }
        self.latest = Some(before.max(latest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::lsn::Lsn;

    /// Segments with transactions between these seconds.
    fn twice(segments: &[(i64, i64)]) -> Option<(i64, i64)> {
        let mut times = Times::default();
        for (from, to) in segments {
            times.add(&Facts {
                ends: 1,
                times: (TimestampTz(from * 1_000_000), TimestampTz(to * 1_000_000)),
                ..Facts::empty(Lsn(0))
            });
            times.add(&Facts::empty(Lsn(0)));
        }
        times
            .twice
            .map(|t| (t.from.0 / 1_000_000, t.to.0 / 1_000_000))
    }

    #[test]
    fn k05_times_that_occur_twice_are_those_between_both_clocks() {
        assert_eq!(twice(&[]), None);
        assert_eq!(twice(&[(10, 20), (20, 30)]), None);
        // Concurrent transactions end out of order.
        assert_eq!(twice(&[(10, 20), (18, 30)]), None);
        assert_eq!(twice(&[(10, 20), (17, 30)]), Some((17, 20)));
        assert_eq!(twice(&[(10, 20), (5, 8), (6, 30)]), Some((5, 20)));
        let more = twice(&[(10, 20), (5, 30), (40, 50), (45, 60)]);
        assert_eq!(more, Some((5, 50)));
    }
}
