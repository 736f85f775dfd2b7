//! The point at which PostgreSQL stops: its own rules, applied record by record.
//!
//! The index finds the segments in which recovery may stop; the records of their bodies, run through [`Replay`], prove it.
//!
//! PostgreSQL: src/backend/access/transam/xlogrecovery.c (recoveryStopsBefore, recoveryStopsAfter, CheckRecoveryConsistency; 13, 14:
//! xlog.c).

use super::recovery::{EndKind, Side, Stop, StopRecord, TransactionEnd};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::wal::facts::{Crossing, Entry, EntryKind, Facts, flag};
use crate::wal::index::TailClass;

/// Concurrent commits may carry times out of order by less than this; more is a clock that was set back.
pub const CLOCK_SLACK: std::time::Duration = std::time::Duration::from_secs(2);

/// The rule by which recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Before the first transaction end behind this time, or at it where `inclusive` is false.
    Time {
        /// The time.
        at: TimestampTz,
        /// Whether transaction ends at exactly this time are replayed.
        inclusive: bool,
    },
    /// At the end of a transaction: equality of 32 bits.
    Xid {
        xid: u32,
        /// Whether it is replayed.
        inclusive: bool,
    },
    /// At the first record that starts at or behind a position.
    Lsn {
        /// The position.
        at: Lsn,
        /// Whether that record is replayed.
        inclusive: bool,
    },
    /// Behind the first restore point of this name.
    Name(Vec<u8>),
    /// As soon as the cluster is consistent.
    Immediate,
}

impl Rule {
    /// recoveryStopsBefore.
    pub fn stops_before(&self, entry: &Entry, consistent: bool) -> bool {
        match (self, &entry.kind) {
            (Rule::Immediate, _) => consistent,
            (
                Rule::Lsn {
                    at,
                    inclusive: false,
                },
                _,
            ) => entry.start >= *at,
            (
                Rule::Xid {
                    xid,
                    inclusive: false,
                },
                EntryKind::End { xid: ended, .. },
            ) => ended == xid,
            (Rule::Time { at, inclusive }, EntryKind::End { time, .. }) => {
                beyond(*time, *at, *inclusive)
            }
            _ => false,
        }
    }

    /// recoveryStopsAfter; `consistent` tells how things are once the record was replayed.
    pub fn stops_after(&self, entry: &Entry, consistent: bool) -> bool {
        match (self, &entry.kind) {
            (Rule::Name(wanted), EntryKind::RestorePoint { name, .. }) => name == wanted,
            (
                Rule::Lsn {
                    at,
                    inclusive: true,
                },
                _,
            ) => entry.start >= *at,
            (
                Rule::Xid {
                    xid,
                    inclusive: true,
                },
                EntryKind::End { xid: ended, .. },
            ) => ended == xid,
            // The server looks at consistency after records of the transaction manager only; else before the next record.
            (Rule::Immediate, EntryKind::End { .. } | EntryKind::Transaction) => consistent,
            _ => false,
        }
    }

    /// Whether recovery may stop at a record that begins in this segment. False is certain.
    ///
    /// `crossing` is asked only where a record begins in the segment and ends behind it. Restore points and xids are pruned
    /// further by who calls.
    pub fn may_stop_in(
        &self,
        facts: &Facts,
        crossing: &mut dyn FnMut() -> crate::error::Result<Crossing>,
    ) -> crate::error::Result<bool> {
        let has_tail = facts.tail_length > 0;
        Ok(match self {
            Rule::Immediate => true,
            Rule::Lsn { at, .. } => facts.last_begun >= *at,
            // Something could not be decoded when the index was made: it does not know all times and xids.
            Rule::Time { .. }
                if facts.has(flag::XIDS_UNKNOWN) && facts.has(flag::RESTORE_POINTS) =>
            {
                true
            }
            Rule::Xid { .. } if facts.has(flag::XIDS_UNKNOWN) => true,
            Rule::Time { at, inclusive } => {
                (facts.ends > 0 && beyond(facts.times.1, *at, *inclusive))
                    || (has_tail
                        && may_end_transaction(facts)
                        && match crossing()? {
                            Crossing::End { time, .. } => beyond(time, *at, *inclusive),
                            other => other == Crossing::Unknown,
                        })
            }
            Rule::Xid { xid, .. } => {
                let inside = facts.ends > 0 && facts.xids.0 <= *xid && *xid <= facts.xids.1;
                inside
                    || (has_tail
                        && may_end_transaction(facts)
                        && match crossing()? {
                            Crossing::End { xid: ended, .. } => ended == *xid || ended == 0,
                            other => other == Crossing::Unknown,
                        })
            }
            Rule::Name(_) => {
                facts.has(flag::RESTORE_POINTS)
                    || (has_tail && crosses_restore_point(facts, crossing)?)
            }
        })
    }
}

fn may_end_transaction(facts: &Facts) -> bool {
    matches!(
        facts.tail_class,
        TailClass::TransactionEnd | TailClass::Unknown
    )
}

/// Whether the record that leaves the segment may be a restore point.
pub fn crosses_restore_point(
    facts: &Facts,
    crossing: &mut dyn FnMut() -> crate::error::Result<Crossing>,
) -> crate::error::Result<bool> {
    Ok(
        facts.may_cross_event()
            && matches!(crossing()?, Crossing::RestorePoint | Crossing::Unknown),
    )
}

/// Whether a change of parameters may begin in the segment.
pub fn may_change_parameters(
    facts: &Facts,
    crossing: &mut dyn FnMut() -> crate::error::Result<Crossing>,
) -> crate::error::Result<bool> {
    Ok(facts.has(flag::PARAMETERS)
        || (facts.may_cross_event()
            && matches!(
                crossing()?,
                Crossing::ParameterChange { .. } | Crossing::Unknown
            )))
}

/// Whether a transaction end of this time is behind the target.
fn beyond(time: TimestampTz, at: TimestampTz, inclusive: bool) -> bool {
    if inclusive { time > at } else { time >= at }
}

/// Recovery from one backup, record by record.
///
/// May begin in the middle: records are contiguous, so whether the cluster is consistent follows from a record's own position.
#[derive(Debug, Clone)]
pub struct Replay<'a> {
    rule: &'a Rule,
    /// Start of the replay.
    start_lsn: Lsn,
    /// From here on the cluster is consistent.
    consistent_lsn: Lsn,
    /// Point at which recovery stops, once it does.
    pub stop: Option<Stop>,
    /// Whether the cluster is consistent then.
    pub consistent: bool,
    /// End of the last record replayed of those seen.
    pub replayed: Option<Lsn>,
    /// The last commit replayed of those seen.
    pub last_commit: Option<TransactionEnd>,
    /// The last transaction end replayed of those seen.
    pub last_end: Option<TransactionEnd>,
    /// The first transaction end behind the stop.
    pub excluded: Option<TransactionEnd>,
    /// The first commit behind the stop.
    pub excluded_commit: Option<TransactionEnd>,
    /// The first transaction end behind the stop of a time target whose own time is before it: the clock was set back.
    pub late: Option<TransactionEnd>,
    /// Only times up to this one count as such.
    pub late_before: Option<TimestampTz>,
}

impl<'a> Replay<'a> {
    /// Creates the recovery of a backup that stops by `rule`.
    pub fn new(rule: &'a Rule, start_lsn: Lsn, consistent_lsn: Lsn) -> Replay<'a> {
        Replay {
            rule,
            start_lsn,
            consistent_lsn,
            stop: None,
            consistent: false,
            replayed: None,
            last_commit: None,
            last_end: None,
            excluded: None,
            excluded_commit: None,
            late: None,
            late_before: None,
        }
    }

    /// Takes the next record.
    pub fn record(&mut self, entry: &Entry) {
        if entry.start < self.start_lsn {
            return;
        }
        if self.stop.is_some() {
            return self.behind(entry);
        }
        // The record that makes it consistent ends at the LSN itself: every later one starts at or behind it.
        let consistent = entry.start >= self.consistent_lsn;
        if self.rule.stops_before(entry, consistent) {
            self.consistent = consistent;
            let end = self.replayed.unwrap_or(entry.start);
            self.stop = Some(stop_at(entry, Side::Before, end));
            if let (Rule::Time { at, .. }, EntryKind::End { time, .. }) = (self.rule, &entry.kind) {
                self.late_before = Some(time.saturating_sub(CLOCK_SLACK).min(*at));
            }
            return self.behind(entry);
        }
        self.replayed = Some(entry.end);
        if let Some(end) = transaction_end(entry) {
            self.last_end = Some(end);
            if end.kind == EndKind::Commit {
                self.last_commit = Some(end);
            }
        }
        let consistent = entry.end >= self.consistent_lsn;
        if self.rule.stops_after(entry, consistent) {
            self.consistent = consistent;
            self.stop = Some(stop_at(entry, Side::After, entry.end));
        }
    }

    fn behind(&mut self, entry: &Entry) {
        let Some(end) = transaction_end(entry) else {
            return;
        };
        self.excluded.get_or_insert(end);
        if end.kind == EndKind::Commit {
            self.excluded_commit.get_or_insert(end);
        }
        if self.late_before.is_some_and(|t| end.time <= t) {
            self.late.get_or_insert(end);
        }
    }
}

fn stop_at(entry: &Entry, side: Side, recovery_end_lsn: Lsn) -> Stop {
    let (record, xid, time) = match &entry.kind {
        EntryKind::End {
            xid,
            time,
            is_commit: true,
        } => (StopRecord::Commit, Some(*xid), Some(*time)),
        EntryKind::End { xid, time, .. } => (StopRecord::Abort, Some(*xid), Some(*time)),
        EntryKind::RestorePoint { time, .. } => (StopRecord::RestorePoint, None, Some(*time)),
        _ => (StopRecord::Record, None, None),
    };
    Stop {
        side,
        record,
        lsn: entry.start,
        end_lsn: entry.end,
        xid,
        time,
        recovery_end_lsn,
    }
}

/// The transaction end that a record is.
pub fn transaction_end(entry: &Entry) -> Option<TransactionEnd> {
    let EntryKind::End {
        xid,
        time,
        is_commit,
    } = entry.kind
    else {
        return None;
    };
    Some(TransactionEnd {
        xid,
        lsn: entry.start,
        end_lsn: entry.end,
        time,
        kind: if is_commit {
            EndKind::Commit
        } else {
            EndKind::Abort
        },
    })
}
