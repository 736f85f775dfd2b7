//! What `pitr info` says of a cluster's receiver, from the status file in its journal; and the gaps that it recorded.

use std::time::Duration;

use serde::Serialize;

use super::human;
use super::receive;
use crate::config::Cluster;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::receive::status::{self, Status};
use crate::repo::event;
use crate::repo::inventory::Inventory;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;

/// The status is written every second; one that is older than this is of a receiver that does not run.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A receiver as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receiver {
    /// Whether it has said something lately.
    running: bool,
    /// When it last said something.
    time: TimestampTz,
    server: Option<String>,
    slot: Option<String>,
    timeline: Option<u32>,
    received_lsn: Option<Lsn>,
    flushed_lsn: Option<Lsn>,
    acknowledged_lsn: Option<Lsn>,
    archived_lsn: Option<Lsn>,
    server_lsn: Option<Lsn>,
    /// From the server's end of WAL to what every required repository holds.
    lag_bytes: Option<u64>,
    /// For how long that has not been in step.
    lag_ms: Option<u64>,
    journal_bytes: u64,
    journal_limit_bytes: Option<u64>,
    last_error: Option<String>,
    /// All of it on one line.
    #[serde(skip)]
    line: String,
}

impl Receiver {
    /// Reads what the receiver of this cluster wrote; `None` without a journal, or when no receiver ever ran here.
    ///
    /// # Errors
    /// What the filesystem says, except that the journal may be another user's: then nothing is known.
    pub fn read(
        cluster: &Cluster,
        system_identifier: u64,
        now: TimestampTz,
    ) -> Result<Option<Receiver>> {
        let Some(journal) = &cluster.receive.journal else {
            return Ok(None);
        };
        match status::read(&journal.join(system_identifier.to_string())) {
            Ok(status) => Ok(status.map(|status| Receiver::new(&status, now))),
            Err(error) if error.code() == Code::Denied => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new(status: &Status, now: TimestampTz) -> Receiver {
        let archived = receive::archived(status);
        let since = status
            .repositories
            .iter()
            .filter_map(|r| r.archived_time)
            .min();
        let lag = match (status.server_lsn.max(status.received_lsn), archived) {
            (Some(end), Some(archived)) => Some(end.0.saturating_sub(archived.0)),
            _ => None,
        };
        let waits = since.and_then(|since| now.duration_since(since));
        let lag_ms = match lag {
            Some(0) => Some(0),
            Some(_) => waits.map(|w| u64::try_from(w.as_millis()).unwrap_or(u64::MAX)),
            None => None,
        };
        Receiver {
            running: status.server.is_some() && age(status.time, now) <= SILENCE_MAX,
            time: status.time,
            server: status.server.clone(),
            slot: status.slot.clone(),
            timeline: status.timeline.map(|t| t.decimal()),
            received_lsn: status.received_lsn,
            flushed_lsn: status.flushed_lsn,
            acknowledged_lsn: status.acknowledged_lsn,
            archived_lsn: archived,
            server_lsn: status.server_lsn,
            lag_bytes: lag,
            lag_ms,
            journal_bytes: status.journal_bytes,
            journal_limit_bytes: status.journal_limit_bytes,
            last_error: status.last_error.clone(),
            line: receive::line(status),
        }
    }

    /// The line for people.
    pub fn line(&self) -> String {
        let lag = match (self.lag_bytes, self.lag_ms) {
            (Some(0), _) => ", everything is archived".to_owned(),
            (Some(bytes), Some(ms)) => format!(
                ", {} not archived for {}",
                human::size(bytes),
                human::duration(Duration::from_millis(ms))
            ),
            (Some(bytes), None) => format!(", {} not archived", human::size(bytes)),
            (None, _) => String::new(),
        };
        format!("receiver: {}{lag}", self.line)
    }

    /// What is wrong with it.
    pub fn problem(&self) -> Option<String> {
        if !self.running {
            return Some(format!(
                "the receiver does not receive since {}{}",
                human::time(self.time),
                self.last_error
                    .as_ref()
                    .map_or_else(String::new, |error| format!(": {error}"))
            ));
        }
        let error = self.last_error.as_ref()?;
        Some(format!("the receiver has trouble: {error}"))
    }
}

/// How long ago; a clock that went back says nothing, so it counts as just now.
fn age(time: TimestampTz, now: TimestampTz) -> Duration {
    now.duration_since(time).unwrap_or_default()
}

/// Gaps that were recorded while receiving, and that nothing has filled since.
///
/// # Errors
/// What the store says.
pub fn recorded_gaps(repository: &Repository, inventory: &Inventory) -> Result<Vec<String>> {
    let layout = ClusterLayout::new(&inventory.cluster, inventory.system_identifier)?;
    let mut found = Vec::new();
    for timeline in inventory.timelines.keys() {
        let subject = format!("wal-{timeline}");
        let events = match event::read_all(repository.store(), &layout, &subject) {
            Ok(events) => events,
            Err(error) if matches!(error.code(), Code::Damaged | Code::Unsupported) => {
                found.push(format!(
                    "recorded gaps of timeline {} cannot be read: {error}",
                    timeline.decimal()
                ));
                continue;
            }
            Err(error) => return Err(error),
        };
        for recorded in events.iter().map(|r| &r.event).filter(|e| e.event == "gap") {
            let (Some(from), Some(to)) = (recorded.from_lsn, recorded.to_lsn) else {
                continue;
            };
            let size = inventory.segment_size;
            let last = SegmentNumber::ending_at(to, size);
            let mut number = SegmentNumber::of(from, size);
            while number < last && inventory.has(*timeline, number) {
                number = number.next();
            }
            if from < to && !inventory.has(*timeline, number) {
                found.push(format!(
                    "WAL of timeline {} from {from} to {to} was lost before it was received",
                    timeline.decimal()
                ));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::TimelineId;
    use crate::receive::status::RepositoryStatus;

    fn status() -> Status {
        Status {
            time: TimestampTz(100_000_000),
            pid: 7,
            started: TimestampTz(0),
            cluster: "main".to_owned(),
            system_identifier: 7,
            server: Some("db1:5432".to_owned()),
            slot: Some("pitr".to_owned()),
            timeline: Some(TimelineId::FIRST),
            received_lsn: Some(Lsn(0x300_0100)),
            received_time: Some(TimestampTz(99_000_000)),
            flushed_lsn: Some(Lsn(0x300_0100)),
            acknowledged_lsn: Some(Lsn(0x300_0100)),
            server_lsn: Some(Lsn(0x300_0100)),
            repositories: [0x300_0100, 0x300_0000]
                .map(|lsn| RepositoryStatus {
                    name: "r".to_owned(),
                    required: true,
                    archived_lsn: Some(Lsn(lsn)),
                    timeline: Some(TimelineId::FIRST),
                    archived_time: Some(TimestampTz(98_000_000)),
                    last_error: None,
                })
                .to_vec(),
            journal_bytes: 1,
            journal_limit_bytes: None,
            last_error: None,
        }
    }

    #[test]
    fn lag_is_that_of_the_repository_that_is_behind_most() {
        let receiver = Receiver::new(&status(), TimestampTz(101_000_000));
        assert_eq!(
            (receiver.lag_bytes, receiver.lag_ms),
            (Some(0x100), Some(3000))
        );
        assert_eq!(
            receiver.line(),
            "receiver: streaming from db1:5432, received 0/3000100, safe 0/3000100, archived 0/3000000, 256 B not archived for 3 s"
        );
        assert_eq!(receiver.problem(), None);
    }

    #[test]
    fn a_receiver_that_is_silent_does_not_run() {
        let mut status = status();
        let receiver = Receiver::new(&status, TimestampTz(131_000_000));
        assert!(
            receiver
                .problem()
                .unwrap()
                .starts_with("the receiver does not receive since ")
        );
        // A clock that went back is no outage.
        assert_eq!(Receiver::new(&status, TimestampTz(0)).problem(), None);
        status.last_error = Some("the journal has no room".to_owned());
        let problem = Receiver::new(&status, TimestampTz(100_000_000)).problem();
        assert_eq!(
            problem.unwrap(),
            "the receiver has trouble: the journal has no room"
        );
    }
}
