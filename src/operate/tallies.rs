//! Counts that are made by looking: each look compares what it sees with what the look before saw.
//!
//! Nobody tells how often an archiver was started anew, or when a copy of WAL was refused. So a count here is what looks saw, and may be less than what
//! happened between two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::server_state::Process;
use super::trend::Trend;
use crate::pg::segment::WalFileName;
use crate::pg::time::TimestampTz;

/// The server starts an archiver 10 s after the one before at the latest (PGARCH_RESTART_INTERVAL). So one that is missing for longer was started meanwhile, and
/// ended again.
const STARTED_AFTER: Duration = Duration::from_secs(20);
/// Ends of archivers are remembered for so long.
const LATELY: Duration = Duration::from_secs(900);
/// A copy that was refused is new for so long.
const REFUSED_NEW: Duration = Duration::from_secs(3600);
/// The room of `pg_wal` is noted so often, and for so long.
const ROOM_EVERY: Duration = Duration::from_secs(300);
const ROOM_LONGEST: Duration = Duration::from_secs(3600);
/// Notes of a shorter time foretell nothing: a checkpoint, or a load that passes.
const ROOM_SPAN: Duration = Duration::from_secs(600);
/// Locked bytes are noted so often, and for so long.
const LOCKED_EVERY: Duration = Duration::from_secs(86_400);
const LOCKED_LONGEST: Duration = Duration::from_secs(9 * 86_400);
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// The counts, and what the last look saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallies {
    /// The archiver of each cluster.
    #[serde(default)]
    pub archivers: BTreeMap<String, ArchiverTally>,
    /// Refused copies of each cluster in each repository, as `cluster repository`.
    #[serde(default)]
    pub refused: BTreeMap<String, RefusedTally>,
    /// The free bytes on the filesystem of `pg_wal` of each cluster.
    #[serde(default)]
    pub pg_wal_free: BTreeMap<String, Trend>,
    /// The bytes that `pitr expire` found locked, as `cluster repository`.
    #[serde(default)]
    pub locked: BTreeMap<String, Trend>,
    /// The clusters whose servers do not answer, and when a look first saw that.
    #[serde(default)]
    pub silent: BTreeMap<String, TimestampTz>,
    /// The clusters whose servers lag, and when a look first saw that.
    #[serde(default)]
    pub lagging: BTreeMap<String, TimestampTz>,
    /// The clusters whose commits waited for the receiver when a server last told.
    #[serde(default)]
    pub synchronous: BTreeSet<String>,
}

/// The archiver of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiverTally {
    /// The start of the server that it was last seen at.
    server: String,
    /// The process that the last look saw; none where none ran.
    process: Option<String>,
    /// When the last end was counted, or the server was first seen.
    counted: Option<TimestampTz>,
    /// How often one ended of a server that went on.
    pub restarts: u64,
    /// When looks saw it end lately.
    #[serde(default)]
    ended: Vec<TimestampTz>,
}

impl ArchiverTally {
    /// How often one ended in the last 15 minutes.
    pub fn lately(&self, now: TimestampTz) -> usize {
        let ended = self.ended.iter();
        ended.filter(|at| is_late(now, **at)).count()
    }
}

/// Whether it was in the last 15 minutes. A clock that went back forgets what lies ahead.
fn is_late(now: TimestampTz, at: TimestampTz) -> bool {
    now.duration_since(at).is_some_and(|age| age <= LATELY)
}

/// Refused copies in a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTally {
    /// Those that are there.
    names: BTreeSet<String>,
    /// How many segments were ever seen.
    pub segments: u64,
    /// How many history files were ever seen.
    pub histories: u64,
    /// When a look saw one that was not there before.
    #[serde(default)]
    newest: Option<TimestampTz>,
}

impl RefusedTally {
    /// Whether a copy was refused within the last hour.
    pub fn is_new(&self, now: TimestampTz) -> bool {
        let age = self.newest.and_then(|at| now.duration_since(at));
        age.is_some_and(|age| age <= REFUSED_NEW)
    }
}

impl Tallies {
    /// Sees the archiver of a cluster. One that ends at each file runs for moments only: that none runs tells of it.
    pub fn see_archiver(&mut self, cluster: &str, process: &Process, now: TimestampTz) {
        let seen = self.archivers.entry(cluster.to_owned()).or_default();
        let is_first = seen.server != process.server;
        let has_ended = match (&seen.process, &process.name) {
            _ if is_first => false,
            (Some(before), other) => other.as_ref() != Some(before),
            // Its end was counted when it was missed.
            (None, Some(_)) => false,
            (None, None) => {
                let missing = seen.counted.and_then(|at| now.duration_since(at));
                missing.is_some_and(|missing| missing >= STARTED_AFTER)
            }
        };
        seen.restarts += u64::from(has_ended);
        if is_first || has_ended {
            seen.counted = Some(now);
        }
        seen.ended.retain(|at| is_late(now, *at));
        seen.ended.extend(has_ended.then_some(now));
        seen.server.clone_from(&process.server);
        seen.process.clone_from(&process.name);
    }

    /// Sees whether the server of a cluster lags. One that does not tell ends nothing.
    pub fn see_lag(&mut self, cluster: &str, is_lagging: Option<bool>, now: TimestampTz) {
        match is_lagging {
            Some(true) => drop(self.lagging.entry(cluster.to_owned()).or_insert(now)),
            Some(false) => drop(self.lagging.remove(cluster)),
            None => {}
        }
    }

    /// Sees whether commits of a cluster wait for its receiver.
    pub fn see_synchronous(&mut self, cluster: &str, is_so: bool) {
        match is_so {
            true => self.synchronous.insert(cluster.to_owned()),
            false => self.synchronous.remove(cluster),
        };
    }

    /// Sees the refused copies of a cluster in a repository: all that are there. Those that the first look finds may be old.
    pub fn see_refused(
        &mut self,
        (cluster, repository): (&str, &str),
        names: &[String],
        now: TimestampTz,
    ) {
        let place = place(cluster, repository);
        let is_first = !self.refused.contains_key(&place);
        let seen = self.refused.entry(place).or_default();
        let before = seen.segments + seen.histories;
        for name in names.iter().filter(|name| !seen.names.contains(*name)) {
            let file = name
                .rsplit_once('-')
                .and_then(|(file, _)| file.parse().ok());
            match file {
                Some(WalFileName::Segment(_)) => seen.segments += 1,
                Some(WalFileName::History(_)) => seen.histories += 1,
                // Archiving went on beside it, with a warning.
                Some(WalFileName::Partial(_) | WalFileName::BackupHistory { .. }) | None => {}
            }
        }
        if !is_first && seen.segments + seen.histories > before {
            seen.newest = Some(now);
        }
        seen.names = names.iter().cloned().collect();
    }

    /// Sees that the server of a cluster does not answer. A clock that went back begins the time anew.
    pub fn see_silence(&mut self, cluster: &str, now: TimestampTz) {
        let since = self.silent.entry(cluster.to_owned()).or_insert(now);
        *since = (*since).min(now);
    }

    /// How long the server of a cluster has not answered, as far as looks saw.
    pub fn silence(&self, cluster: &str, now: TimestampTz) -> Option<Duration> {
        now.duration_since(*self.silent.get(cluster)?)
    }

    /// Sees the room on the filesystem of `pg_wal` of a cluster.
    pub fn see_pg_wal(&mut self, cluster: &str, free_bytes: u64, now: TimestampTz) {
        let seen = self.pg_wal_free.entry(cluster.to_owned()).or_default();
        seen.note(now, free_bytes, (ROOM_EVERY, ROOM_LONGEST));
    }

    /// Seconds until the filesystem of `pg_wal` of a cluster is full, as it filled within the last hour.
    pub fn pg_wal_full_in_s(
        &self,
        cluster: &str,
        free_bytes: u64,
        now: TimestampTz,
    ) -> Option<u64> {
        let seen = self.pg_wal_free.get(cluster)?;
        seen.gone_in_s(now, free_bytes, ROOM_SPAN)
    }

    /// Sees the bytes of a cluster that a repository keeps only since they are locked.
    pub fn see_locked(&mut self, cluster: &str, repository: &str, bytes: u64, now: TimestampTz) {
        let seen = self.locked.entry(place(cluster, repository)).or_default();
        seen.note(now, bytes, (LOCKED_EVERY, LOCKED_LONGEST));
    }

    /// The bytes that were locked a week ago; none where no look saw them then.
    pub fn locked_before(&self, cluster: &str, repository: &str, now: TimestampTz) -> Option<u64> {
        let seen = self.locked.get(&place(cluster, repository))?;
        seen.before(now, WEEK)
    }

    /// The refused copies of a cluster in a repository; none where no look saw them.
    pub fn refused(&self, cluster: &str, repository: &str) -> Option<&RefusedTally> {
        self.refused.get(&place(cluster, repository))
    }
}

/// Neither name has a blank.
fn place(cluster: &str, repository: &str) -> String {
    format!("{cluster} {repository}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_archiver_counts_once_and_not_with_its_server() {
        let mut tallies = Tallies::default();
        let begin: TimestampTz = "2026-11-20T06:00:00Z".parse().unwrap();
        let mut seen = |second: u64, server: &str, name: Option<&str>| {
            let process = Process {
                server: server.into(),
                name: name.map(str::to_owned),
            };
            let now = begin.saturating_add(Duration::from_secs(second));
            tallies.see_archiver("main", &process, now);
            let seen = &tallies.archivers["main"];
            assert_eq!(seen.lately(now) as u64, seen.restarts, "all were lately");
            assert_eq!(seen.lately(now.saturating_add(LATELY * 2)), 0);
            seen.restarts
        };
        assert_eq!(seen(0, "1", Some("77 1.5")), 0, "the first look");
        assert_eq!(seen(60, "1", Some("77 1.5")), 0);
        assert_eq!(seen(120, "1", Some("78 2.5")), 1);
        assert_eq!(seen(180, "1", Some("78 3.5")), 2, "its number came again");
        let anew = seen(240, "2", Some("90 4.5"));
        assert_eq!(anew, 2, "the server was started anew");
        assert_eq!(seen(300, "2", Some("91 5.5")), 3);
        assert_eq!(seen(360, "2", None), 4);
        assert_eq!(seen(361, "2", None), 4, "it was not started meanwhile");
        assert_eq!(seen(380, "2", None), 5);
        assert_eq!(seen(440, "2", None), 6);
        assert_eq!(seen(500, "2", Some("99 6.5")), 6);
        assert_eq!(seen(560, "3", None), 6, "a server that starts has none yet");
        assert_eq!(seen(561, "3", Some("7 7.5")), 6);
    }

    #[test]
    fn a_refused_copy_counts_once_and_stays_counted_when_it_is_gone() {
        let mut tallies = Tallies::default();
        let mut see = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let now = "2026-11-20T06:00:00Z".parse().unwrap();
            tallies.see_refused(("main", "local"), &names, now);
            let seen = tallies.refused("main", "local").unwrap();
            assert_eq!(seen.is_new(now), seen.segments + seen.histories > 0);
            assert!(!seen.is_new(now.saturating_add(REFUSED_NEW * 2)));
            (seen.segments, seen.histories)
        };
        let segment = "00000001000000000000000A-abababababababab";
        let history = "00000002.history-abababababababab";
        let partial = "00000001000000000000000A.partial-abababababababab";
        assert_eq!(see(&[]), (0, 0));
        assert_eq!(see(&[segment, partial, "x"]), (1, 0));
        assert_eq!(see(&[segment, history]), (1, 1));
        assert_eq!(see(&[history]), (1, 1));
        assert_eq!(see(&[history, segment]), (2, 1), "refused once more");
        assert_eq!(tallies.refused("main", "offsite"), None);
    }
}
