//! A cluster's receiver, from the status file in its journal; and the gaps that it recorded.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::finding::{Finding, Level};
use super::human;
use crate::config::Cluster;
use crate::error::{Code, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::gap;
use crate::receive::status::{self, Status};
use crate::repo::event;
use crate::repo::repository::Repository;
use crate::wal::inventory::Inventory;

/// The slot where neither configuration nor command line name one.
pub const SLOT_DEFAULT: &str = "pitr";

/// The status is written every second; one that is older than this is of a receiver that does not run.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A receiver that is down for so long is no passing trouble: a restart of the server, or of the receiver.
pub const PASSING: Duration = Duration::from_secs(120);

/// A receiver as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receiver {
    /// Whether it has said something lately.
    running: bool,
    /// When it last said something.
    time: TimestampTz,
    /// When it ended, where it could say so.
    ended: Option<TimestampTz>,
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
    /// It has said nothing for long.
    #[serde(skip)]
    is_silent: bool,
    /// Since when it is known to stream no more.
    #[serde(skip)]
    down_since: Option<TimestampTz>,
    /// Up to when all commits are durable in its journal.
    #[serde(skip)]
    safe_time: Option<TimestampTz>,
    /// All of it on one line, while it runs.
    #[serde(skip)]
    line: String,
}

impl Receiver {
    /// Reads what the receiver of this cluster wrote; `None` without a journal, or when no receiver ever ran here.
    ///
    /// # Errors
    /// Errors of the filesystem, except that the journal may be another user's: then nothing is known.
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
        let archived = archived(status);
        let repositories = status.repositories.iter();
        let since = repositories.filter_map(|r| r.archived_time).min();
        let lag = match (status.server_lsn.max(status.received_lsn), archived) {
            (Some(end), Some(archived)) => Some(end.0.saturating_sub(archived.0)),
            _ => None,
        };
        let waits = since.and_then(|since| now.duration_since(since));
        let lag_ms = match lag {
            Some(0) => Some(0),
            Some(_) => waits.map(human::millis),
            None => None,
        };
        let is_silent = age(status.time, now) > SILENCE_MAX;
        Receiver {
            running: status.ended.is_none() && status.server.is_some() && !is_silent,
            time: status.time,
            ended: status.ended,
            is_silent,
            down_since: status.down_since(),
            safe_time: status.safe_time.filter(|time| *time <= now),
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
            line: line(status),
        }
    }

    /// The end of WAL that is safe in its journal, while it runs.
    pub fn safe_lsn(&self) -> Option<Lsn> {
        self.flushed_lsn.filter(|_| self.running)
    }

    /// Up to when all commits are durable in its journal; one of an older version does not know.
    pub fn safe_time(&self) -> Option<TimestampTz> {
        self.safe_time
    }

    /// Whether it streams.
    pub fn is_connected(&self) -> bool {
        self.running
    }

    /// The positions that it reported, by the name that metrics give each.
    pub fn positions(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("pitr_receiver_received_lsn", self.received_lsn.map(|l| l.0)),
            ("pitr_receiver_flushed_lsn", self.flushed_lsn.map(|l| l.0)),
            ("pitr_receiver_uploaded_lsn", self.archived_lsn.map(|l| l.0)),
            ("pitr_receiver_lag_bytes", self.lag_bytes),
        ]
    }

    /// The slot that it streams from.
    pub fn slot(&self) -> &str {
        self.slot.as_deref().unwrap_or(SLOT_DEFAULT)
    }

    /// The line for people.
    pub fn line(&self) -> String {
        if let Some(over) = self.over() {
            return format!(
                "receiver: {over}; it had received to {}, safe {}, archived {}",
                lsn(self.received_lsn),
                lsn(self.acknowledged_lsn),
                lsn(self.archived_lsn)
            );
        }
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

    /// That it ended, or is not heard of any more.
    fn over(&self) -> Option<String> {
        match self.ended {
            Some(ended) => Some(format!("ended {}", human::time(ended))),
            None if self.is_silent => {
                Some(format!("not heard of since {}", human::time(self.time)))
            }
            None => None,
        }
    }

    /// For how long it has not streamed, where that is known; none while it streams.
    pub fn down_for(&self, now: TimestampTz) -> Option<Duration> {
        let silent = Some(self.time).filter(|_| self.is_silent);
        let since = self.down_since.or(silent).filter(|_| !self.running)?;
        Some(age(since, now))
    }

    /// The finding about its trouble. The name is `state` while it is down, `passing` in the first two minutes of that, else `trouble`.
    pub fn finding(&self, now: TimestampTz) -> Option<Finding> {
        let name = match self.down_for(now) {
            _ if self.running => "trouble",
            Some(lasts) if lasts < PASSING => "passing",
            _ => "state",
        };
        let problem = self.problem()?;
        let next = match self.over() {
            Some(_) => "pitr receive",
            None => "pitr doctor",
        };
        Some(Finding::new("receiver", name, Level::Warn, problem).with_next(next))
    }

    /// Its damage or trouble.
    pub fn problem(&self) -> Option<String> {
        let why = |error: &String| format!(": {error}");
        let error = self.last_error.as_ref().map(why).unwrap_or_default();
        if let Some(over) = self.over() {
            return Some(format!(
                "the receiver does not run, {over}{error}; start it: pitr receive"
            ));
        }
        if !self.running {
            return Some(format!("the receiver is not connected{error}"));
        }
        self.last_error
            .as_ref()
            .map(|error| format!("the receiver has trouble: {error}"))
    }
}

/// The end that every required repository has reached.
pub fn archived(status: &Status) -> Option<Lsn> {
    let required = status.repositories.iter().any(|r| r.required);
    let repositories = status.repositories.iter();
    let counting = repositories.filter(|r| r.required == required);
    counting.map(|r| r.archived_lsn).min().flatten()
}

/// A position, or a dash.
pub fn lsn(position: Option<Lsn>) -> String {
    position.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string())
}

/// The status on one line.
pub fn line(status: &Status) -> String {
    let from = match &status.server {
        Some(server) => format!("streaming from {server}"),
        None => "not connected".to_owned(),
    };
    let behind = match (status.server_lsn, status.acknowledged_lsn) {
        (Some(server), Some(safe)) if server > safe => {
            format!(", {} behind", human::size(server.0.saturating_sub(safe.0)))
        }
        _ => String::new(),
    };
    let trouble = status
        .last_error
        .as_ref()
        .map_or_else(String::new, |error| format!(": {error}"));
    format!(
        "{from}, received {}, safe {}, archived {}{behind}{trouble}",
        lsn(status.received_lsn),
        lsn(status.acknowledged_lsn),
        lsn(archived(status))
    )
}

/// How long ago; a clock that went back says nothing, so it counts as just now.
fn age(time: TimestampTz, now: TimestampTz) -> Duration {
    now.duration_since(time).unwrap_or_default()
}

/// Returns the WAL that a receiver recorded as lost, that nothing has filled since, and that lies behind the start of the oldest backup. WAL in a
/// hole that expiry made on purpose is left out.
///
/// # Errors
/// Errors of the store.
pub fn recorded_gaps(
    repository: &Repository,
    inventory: &Inventory,
    abandoned: &BTreeSet<TimelineId>,
) -> Result<Vec<String>> {
    let layout = inventory.layout()?;
    let size = inventory.segment_size;
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    let oldest = oldest.unwrap_or_default();
    let mut found = Vec::new();
    let open = inventory.timelines.iter();
    for (timeline, stored) in open.filter(|(t, _)| !abandoned.contains(t)) {
        let subject = event::timeline_subject(*timeline);
        let events = match event::read_all(repository.store(), &layout, &subject) {
            Ok(events) => events,
            Err(error) if error.is_damage() => {
                found.push(format!(
                    "recorded gaps of timeline {} cannot be read: {error}",
                    timeline.decimal()
                ));
                continue;
            }
            Err(error) => return Err(error),
        };
        found.extend(event::forged(&events).into_iter().map(|forged| {
            format!(
                "event \"{}\" of \"{subject}\" is {}",
                forged.name,
                event::FORGED
            )
        }));
        let recorded = event::gaps(&events, &layout, *timeline, size).into_iter();
        let lost = recorded.flat_map(|gap| stored.lacks(gap, size));
        let mut lost: Vec<LsnRange> = lost.filter(|lost| lost.end > oldest).collect();
        if !lost.is_empty() {
            let holes = gap::let_go(inventory, *timeline);
            lost.retain(|lost| !holes.iter().any(|hole| hole.holds(*lost)));
        }
        lost.sort_unstable_by_key(|lost| (lost.start, lost.end));
        lost.dedup();
        found.extend(lost.into_iter().map(|lost| {
            format!(
                "WAL of timeline {} from {} to {} was lost before it was received",
                timeline.decimal(),
                lost.start,
                lost.end
            )
        }));
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
            ended: None,
            disconnected: None,
            cluster: "main".to_owned(),
            system_identifier: 7,
            server: Some("db1:5432".to_owned()),
            slot: Some("pitr".to_owned()),
            timeline: Some(TimelineId::FIRST),
            received_lsn: Some(Lsn(0x300_0100)),
            received_time: Some(TimestampTz(99_000_000)),
            flushed_lsn: Some(Lsn(0x300_0100)),
            safe_time: None,
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
        assert_eq!(receiver.lag_bytes, Some(0x100));
        assert_eq!(receiver.lag_ms, Some(3000));
        assert_eq!(
            receiver.line(),
            "receiver: streaming from db1:5432, received 0/3000100, safe 0/3000100, archived 0/3000000, 256 B not archived for 3 s"
        );
        assert_eq!(receiver.problem(), None);
    }

    #[test]
    fn a_receiver_that_catches_up_does_not_say_up_to_when_commits_are_safe() {
        let (mut status, now) = (status(), TimestampTz(101_000_000));
        assert_eq!(Receiver::new(&status, now).safe_time(), None);
        status.safe_time = Some(TimestampTz(100_500_000));
        assert_eq!(Receiver::new(&status, now).safe_time(), status.safe_time);
        // By a clock that was ahead.
        status.safe_time = Some(TimestampTz(101_000_001));
        assert_eq!(Receiver::new(&status, now).safe_time(), None);
    }

    #[test]
    fn a_receiver_that_is_down_for_two_minutes_is_no_passing_trouble() {
        let at = |seconds: i64| TimestampTz(seconds * 1_000_000);
        let name = |status: &Status, now| {
            let finding = Receiver::new(status, at(now)).finding(at(now));
            finding.map(|f| f.name)
        };
        let (passing, down) = (Some("passing".to_owned()), Some("state".to_owned()));
        let mut status = status();
        assert_eq!(name(&status, 101), None);
        assert_eq!(name(&status, 140), passing, "silent");
        assert_eq!(name(&status, 220), down, "silent");
        status.last_error = Some("the journal has no room".to_owned());
        assert_eq!(name(&status, 101), Some("trouble".to_owned()));
        status.server = None;
        status.disconnected = Some(at(90));
        assert_eq!(name(&status, 101), passing, "not connected");
        (status.time, status.disconnected) = (at(300), Some(at(90)));
        assert_eq!(name(&status, 301), down, "not connected");
        status.disconnected = None;
        assert_eq!(name(&status, 301), down, "nobody knows since when");
        status.ended = Some(at(300));
        assert_eq!(name(&status, 419), passing, "ended");
        assert_eq!(name(&status, 420), down, "ended");
    }

    #[test]
    fn a_receiver_that_is_silent_does_not_run() {
        let mut status = status();
        let receiver = Receiver::new(&status, TimestampTz(131_000_000));
        let silent = "not heard of since 2000-01-01 00:01:40Z";
        let problem = format!("the receiver does not run, {silent}; start it: pitr receive");
        assert_eq!(receiver.problem().unwrap(), problem);
        let ends = "it had received to 0/3000100, safe 0/3000100, archived 0/3000000";
        assert_eq!(receiver.line(), format!("receiver: {silent}; {ends}"));
        // A clock that went back is no outage.
        assert_eq!(Receiver::new(&status, TimestampTz(0)).problem(), None);
        let error = "the journal has no room";
        status.last_error = Some(error.to_owned());
        let problem = Receiver::new(&status, TimestampTz(100_000_000)).problem();
        let trouble = format!("the receiver has trouble: {error}");
        assert_eq!(problem.unwrap(), trouble);
        // One that ended says so at once, and the moment stays.
        status.ended = Some(TimestampTz(100_000_000));
        for now in [100_000_000, 900_000_000] {
            let receiver = Receiver::new(&status, TimestampTz(now));
            let line = receiver.line();
            let begins = "receiver: ended 2000-01-01 00:01:40Z;";
            assert!(line.starts_with(begins), "{line}");
            assert!(receiver.problem().unwrap().contains(error));
        }
    }
}
