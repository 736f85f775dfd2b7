//! The newest commits that would be lost if the server were gone now: WAL that it has, and that no repository holds.

use std::time::Duration;

use super::receiver::Receiver;
use super::server_state::ServerState;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::plan::window::Window;
use crate::wal::inventory::Inventory;

/// A server that archived everything stands behind the header of the next segment's first page at most.
const HEADER_BYTES: u64 = 40;

/// The WAL that is not safe, and since when commits may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposure {
    /// The server's end of WAL minus the end that is safe.
    pub bytes: u64,
    /// Since the last commit that is safe; 0 where no WAL is at risk. The true age of the first lost commit is not more.
    pub age: Duration,
    /// The server's end of WAL.
    pub server_lsn: Lsn,
    /// The end that is safe.
    pub safe_lsn: Lsn,
}

/// Compares the server's end of WAL with what is safe. There is none of a standby.
pub fn look(
    server: &ServerState,
    window: &Window,
    inventory: &Inventory,
    receiver: Option<&Receiver>,
    now: TimestampTz,
) -> Option<Exposure> {
    let server_lsn = server.end_lsn?;
    let received = receiver.and_then(Receiver::safe_lsn);
    let safe_lsn = archived_end(window, inventory).max(received.unwrap_or_default());
    let until = receiver
        .filter(|_| received.is_some_and(|lsn| lsn >= window.to_lsn))
        .and_then(Receiver::safe_time);
    let last = until.map_or(window.to, |until| until.max(window.to));
    Some(judge(server_lsn, safe_lsn, last, now))
}

/// A standby that has replayed everything that is archived does not lag, however old its newest commit is.
pub fn settle(server: &mut ServerState, window: &Window, inventory: &Inventory) {
    let end = archived_end(window, inventory);
    if let Some(replay) = server.replay.as_mut().filter(|r| r.lsn >= end) {
        replay.lag_s = Some(0.0);
    }
}

fn judge(server_lsn: Lsn, safe_lsn: Lsn, last: TimestampTz, now: TimestampTz) -> Exposure {
    let bytes = server_lsn.0.saturating_sub(safe_lsn.0);
    let bytes = if bytes <= HEADER_BYTES { 0 } else { bytes };
    let age = now.duration_since(last).unwrap_or_default();
    Exposure {
        bytes,
        age: if bytes == 0 { Duration::ZERO } else { age },
        server_lsn,
        safe_lsn,
    }
}

/// The end of the last complete record, or of its segment where that is there as a whole: behind a switch nothing follows in it.
fn archived_end(window: &Window, inventory: &Inventory) -> Lsn {
    let size = inventory.segment_size;
    let last = SegmentNumber::ending_at(window.to_lsn, size);
    let held = inventory.timelines.get(&window.timeline);
    match held.is_some_and(|t| t.segments.contains(last)) {
        true => last.next().start_lsn(size).max(window.to_lsn),
        false => window.to_lsn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_at_risk_behind_the_last_archived_segment() {
        let time = |text: &str| text.parse::<TimestampTz>().unwrap();
        let now = time("2026-11-20T06:10:00Z");
        let last = time("2026-11-20T06:00:00Z");
        let idle = judge(Lsn(0x0300_0028), Lsn(0x0300_0000), last, now);
        assert_eq!((idle.bytes, idle.age), (0, Duration::ZERO));
        let busy = judge(Lsn(0x0300_1000), Lsn(0x0300_0000), last, now);
        assert_eq!((busy.bytes, busy.age.as_secs()), (0x1000, 600));
    }
}
