//! Heartbeats: an outside service hears that all is well, and raises an alarm when it hears nothing.
//!
//! Silence is the alarm, so nothing else is ever sent: no beat while a condition is critical, and none of a look that was given up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decide::{Book, Condition};
use super::sink;
use crate::config::{Severity, Sink, SinkKind};
use crate::error::Result;
use crate::operate::metrics::Metrics;
use crate::operate::proven::Proven;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;

/// A beat that is due within this time is sent: the next look would be late for it.
const HALF_LOOK: Duration = Duration::from_secs(30);

/// A beat that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub time: TimestampTz,
    /// The newest success that it told of.
    pub success: Option<TimestampTz>,
}

/// Returns when a backup or a drill succeeded last.
pub fn success(metrics: &Metrics) -> Option<TimestampTz> {
    let clusters = metrics.info.iter().flat_map(|info| &info.clusters);
    let read = clusters.flat_map(|one| {
        let backups = one.backups.iter().map(|backup| backup.stop_time);
        backups.chain(passed(&one.drills)).max()
    });
    let clusters = metrics.info.iter().flat_map(|info| &info.written);
    let written = clusters.flat_map(|one| {
        let backups = one.backups.iter().map(|backup| backup.time);
        backups.chain(passed(&one.drills)).max()
    });
    read.chain(written).max()
}

/// Returns the times of the newest drills that passed.
fn passed(drills: &[Proven]) -> impl Iterator<Item = TimestampTz> + '_ {
    let proven = drills.iter().filter_map(|own| own.drills.proven.as_ref());
    proven.map(|held| held.time)
}

/// Sends the beats that are due, and notes them. Returns whether the book has changed.
pub(super) fn beat(
    session: &Session,
    (sinks, book): (&[Sink], &mut Book),
    conditions: &[Condition],
    success: Option<TimestampTz>,
    anchor: Option<&str>,
) -> bool {
    let is_critical = |one: &Condition| one.severity == Severity::Critical;
    if conditions.iter().any(is_critical) {
        return false;
    }
    let now = session.host.now();
    let due: Vec<&Sink> = sinks
        .iter()
        .filter(|one| one.kind == SinkKind::Heartbeat && is_due(one, book, now, success))
        .collect();
    // Each on a thread of its own: one that hangs delays no other.
    let sent: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = due
            .iter()
            .map(|one| scope.spawn(|| sink::beat(one, anchor)))
            .collect();
        let broken = || Err(crate::err!(Internal, "the heartbeat broke off"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| broken()))
            .collect()
    });
    for (one, sent) in due.iter().zip(sent) {
        if let Err(e) = &sent {
            session.warn(&format!("alert sink \"{}\": {e}", one.name));
        } else {
            let beat = Beat { time: now, success };
            book.beats.insert(one.name.clone(), beat);
        }
        book.fail(&one.name, now, sent.err().map(|e| e.to_string()));
    }
    !due.is_empty()
}

fn is_due(one: &Sink, book: &Book, now: TimestampTz, success: Option<TimestampTz>) -> bool {
    let Some(last) = book.beats.get(&one.name) else {
        return true;
    };
    // A clock that went back lets it beat again.
    let passed = now.duration_since(last.time);
    let is_old = passed.is_none_or(|passed| passed.saturating_add(HALF_LOOK) >= one.repeat);
    is_old || success > last.success || book.failing.contains_key(&one.name)
}
