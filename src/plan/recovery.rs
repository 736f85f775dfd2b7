//! The plan of a recovery as a value, which `pitr plan` prints and `pitr restore` executes.
//!
//! A plan is made by [`super::base::plan`] without I/O of its own and never changes afterwards. Its JSON form is an interface
//! (`docs/json-output.md`): fields may be added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cluster::Cluster;
use super::target::RecoveryTarget;
use crate::pg::lsn::Lsn;
use crate::pg::parameters::Parameters;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::id::BackupId;
use crate::repo::root::BackupKind;
use crate::repo::root::cluster::Tablespace;

/// Names of missing segments that a plan lists; the rest is only counted.
pub const MISSING_LISTED_MAX: usize = 1000;
/// From this major on recovery reads WAL ahead of the replay.
const READS_AHEAD: u32 = 15;

/// The action of PostgreSQL at the target: recovery_target_action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Accept writes.
    #[default]
    Promote,
    /// Accept reads, and wait.
    Pause,
    /// Stop.
    Shutdown,
}

impl Action {
    /// As PostgreSQL spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Promote => "promote",
            Action::Pause => "pause",
            Action::Shutdown => "shutdown",
        }
    }
}

/// The operator's choices besides the target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// This backup and no other.
    pub backup: Option<BackupId>,
    /// Action of PostgreSQL at the target.
    pub action: Action,
    /// A time or position behind the archived WAL means its end.
    pub allow_end: bool,
    /// Value of restore_command, with absolute paths.
    pub restore_command: String,
    /// Value of recovery_end_command.
    pub recovery_end_command: Option<String>,
    /// Which timeline is the cluster, where other repositories were asked, too.
    pub cluster: Option<Cluster>,
}

/// How recovery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// PostgreSQL stops at the target.
    StopsAtTarget,
    /// All archived WAL is replayed.
    EndOfWal,
    /// PostgreSQL would stop with FATAL, or there is nothing to restore.
    #[default]
    Fatal,
}

/// Why a target cannot be reached, or why a backup was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The repository holds no backup that can be read.
    NoBackup,
    /// The timeline asked for does not exist.
    UnknownTimeline,
    /// The history file of the timeline is missing or damaged.
    HistoryMissing,
    /// It is undecided which timeline is the cluster.
    Undecided,
    /// The backup was not taken on the way to the timeline.
    OtherTimeline,
    /// WAL that the backup itself needs is missing.
    BackupWalMissing,
    /// WAL that the backup itself needs is stored as another server of the cluster wrote it.
    BackupWalForeign,
    /// The target lies before the backup is consistent.
    BeforeBackup,
    /// WAL between the backup and the target is missing.
    Gap,
    /// WAL between the backup and the target is damaged.
    DamagedWal,
    /// WAL between the backup and the target was written with wal_level minimal.
    MinimalWal,
    /// WAL between the backup and the target was written by a PostgreSQL newer than this program knows.
    UndecodedWal,
    /// The target lies behind the end of the archived WAL.
    AfterEnd,
    /// The target lies in the future.
    InFuture,
    /// No such transaction ends in the WAL that can be reached.
    UnknownXid,
    /// No such restore point is in the WAL that can be reached.
    UnknownName,
    /// The transaction id is one of another epoch.
    OtherEpoch,
    /// Another backup serves better: it is newer, or nearer to the target.
    OtherBetter,
    /// The backup is damaged, and an undamaged one serves; or a check found it damaged, and it is the only copy.
    DamagedBackup,
    /// Databases lie in the backup without their content: it is taken only when it is named.
    PartialBackup,
    /// The backup is marked for deletion, and another one serves.
    MarkedForDeletion,
}

/// The backup that a plan restores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenBackup {
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// Start of the replay.
    pub start_lsn: Lsn,
    /// End of the WAL that it needs by itself.
    pub stop_lsn: Lsn,
    /// From here on the cluster is consistent.
    pub consistent_lsn: Lsn,
    /// Server's clock at its start.
    pub start_time: TimestampTz,
    /// Server's clock at its stop.
    pub stop_time: TimestampTz,
    /// Timeline at its stop.
    pub timeline: TimelineId,
    /// PostgreSQL major.
    pub major: u32,
    /// Damage of the backup, where no undamaged backup serves.
    pub damage: Option<String>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
}

/// A backup that a plan does not restore, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotChosen {
    pub id: BackupId,
    /// Why.
    pub reason: Reason,
    /// Why, in words.
    pub detail: String,
}

/// A stretch of WAL on one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelinePart {
    pub timeline: TimelineId,
    /// Position where it takes over: the backup's start, then the switch points.
    pub from_lsn: Lsn,
    /// Position where the next one takes over, or recovery ends.
    pub to_lsn: Option<Lsn>,
}

/// The segments that recovery reads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SegmentsNeeded {
    pub count: u64,
    pub first: Option<SegmentName>,
    pub last: Option<SegmentName>,
    /// All of them, in the order in which they are read: from one timeline to the next.
    #[serde(default)]
    pub parts: Vec<SegmentRun>,
}

/// Segments of one timeline without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRun {
    pub first: SegmentName,
    pub last: SegmentName,
}

/// Commit or abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// Its changes stay.
    Commit,
    /// They do not.
    Abort,
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionEnd {
    /// Id of the transaction; of a prepared one the id under which it was prepared.
    pub xid: u32,
    /// Start of the record.
    pub lsn: Lsn,
    /// End of the record.
    pub end_lsn: Lsn,
    /// The server's clock.
    pub time: TimestampTz,
    /// Commit or abort.
    pub kind: EndKind,
}

/// On which side of a record recovery stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The record is not replayed.
    Before,
    /// The record is the last one that is replayed.
    After,
}

/// The kind of the record at which recovery stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopRecord {
    /// The end of a transaction.
    Commit,
    /// Likewise.
    Abort,
    /// A restore point.
    RestorePoint,
    /// Any record: LSN targets, consistency and the end stop at any.
    Record,
}

/// The point at which recovery stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Before the record, or after it.
    pub side: Side,
    /// Kind of the record.
    pub record: StopRecord,
    /// Its start.
    pub lsn: Lsn,
    pub end_lsn: Lsn,
    /// The transaction, where the record ends one.
    pub xid: Option<u32>,
    /// The time in the record, where it has one.
    pub time: Option<TimestampTz>,
    /// End of the last record that is replayed: a new timeline begins here.
    pub recovery_end_lsn: Lsn,
}

/// A moment that can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The clock at it, where a transaction or a backup tells.
    pub time: Option<TimestampTz>,
    /// Its position.
    pub lsn: Lsn,
    /// The transaction that ends there.
    pub xid: Option<u32>,
}

/// The plan of a recovery, from beginning to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Plan {
    /// The repository whose WAL was looked at, without secrets.
    pub repository: String,
    /// Cluster name.
    pub cluster: String,
    /// System identifier of pg_control, as a string: it exceeds 2^53.
    #[serde(with = "crate::text::decimal")]
    pub system_identifier: u64,
    /// Requested target.
    pub target: RecoveryTarget,
    /// Whether recovery ends as asked.
    pub reachable: bool,
    /// Why not.
    pub reason: Option<Reason>,
    /// Why not, in words.
    pub explanation: Option<String>,
    /// How recovery ends.
    pub outcome: Outcome,
    /// Message that PostgreSQL would print if recovery were tried all the same.
    pub fatal_message: Option<String>,
    pub backup: Option<ChosenBackup>,
    /// The others.
    pub backups_not_chosen: Vec<NotChosen>,
    /// The timeline that recovery follows.
    pub target_timeline: Option<TimelineId>,
    /// The way to it.
    pub timelines: Vec<TimelinePart>,
    /// WAL segment size.
    pub segment_size_bytes: u64,
    /// Segments that are read.
    pub segments_needed: SegmentsNeeded,
    /// Segments that are missing between the backup and the target; at most the first 1000.
    pub segments_missing: Vec<SegmentName>,
    pub segments_missing_count: u64,
    /// Point at which recovery stops.
    pub stop: Option<Stop>,
    /// The last commit that is replayed; none when none is, after the backup's start.
    pub last_commit: Option<TransactionEnd>,
    /// The last commit or abort that is replayed: the server's "last completed transaction".
    pub last_transaction: Option<TransactionEnd>,
    /// The first commit or abort that is not replayed.
    pub first_excluded: Option<TransactionEnd>,
    /// The first commit that is not replayed.
    pub first_excluded_commit: Option<TransactionEnd>,
    /// Raw bytes of the backup's files.
    pub bytes_to_copy: u64,
    /// WAL from the backup's start to where recovery ends.
    pub bytes_to_replay: u64,
    /// Settings that the restored cluster is started with.
    pub recovery_settings: BTreeMap<String, String>,
    /// The nearest moment before a target that is out of reach.
    pub nearest_before: Option<Moment>,
    pub nearest_after: Option<Moment>,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
    /// Repository from which the backup is read, when not `repository`; without secrets.
    #[serde(default)]
    pub backup_repository: Option<String>,
    /// Names of repositories that could not be asked and that may lead farther.
    #[serde(default)]
    pub unasked: Vec<String>,
    /// The timelines that may be the cluster, where that is undecided.
    #[serde(default)]
    pub candidates: Vec<TimelineId>,
    /// Timelines besides the one that is followed which the target may mean as well; the warnings say why.
    #[serde(skip)]
    pub others_meant: Vec<TimelineId>,
}

impl Plan {
    /// Makes recovery have these parameters, or the larger ones that it has already.
    pub fn require(&mut self, parameters: Parameters) {
        for (name, value) in parameters.iter() {
            let known = self.recovery_settings.get(name);
            let known = known.and_then(|v| v.parse().ok()).unwrap_or(0);
            let largest = value.max(known).to_string();
            self.recovery_settings.insert(name.to_owned(), largest);
        }
    }

    /// Makes recovery ask for no segment behind the one that holds the target. PostgreSQL 15 and later read ahead of the replay, over several
    /// segments where these are nearly empty: a hole there would end recovery before the target.
    ///
    /// PostgreSQL: src/backend/access/transam/xlogprefetcher.c (`XLogPrefetcherNextBlock`), xlogarchive.c (`RestoreArchivedFile`).
    pub fn read_no_farther(&mut self) {
        if self.backup.as_ref().is_some_and(|b| b.major >= READS_AHEAD) {
            let off = ("recovery_prefetch".to_owned(), "off".to_owned());
            self.recovery_settings.extend([off]);
        }
    }
}
