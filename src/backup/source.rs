//! The questions of a backup to a server, as a trait, so that a recorded stream can take the place of a living one.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;

use super::backoff::Probe;
use crate::error::Result;
use crate::pg::lsn::LsnRange;
use crate::pg::segment::SegmentSize;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::repo::relations::Draft;
use crate::wire::basebackup::{BackupEvent, BaseBackupOptions};
use crate::wire::client::Rows;

/// Facts about a server before the backup begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// As messages name it.
    pub host: String,
    /// From `IDENTIFY_SYSTEM`.
    pub system_identifier: u64,
    /// From `IDENTIFY_SYSTEM`.
    pub timeline: TimelineId,
    /// The server's process for the replication connection, where it says so.
    pub replication_pid: Option<i32>,
    /// `server_version_num`.
    pub version_num: u32,
    pub major: Major,
    /// Its catalog version: it says so, or it is that of the major's release.
    pub catalog_version: u32,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// The `TimeZone` setting.
    pub timezone: Option<String>,
    /// The `archive_mode` setting.
    pub archive_mode: Option<String>,
    /// The `archive_command` setting.
    pub archive_command: Option<String>,
    /// The `archive_library` setting; empty where there is none of the name.
    pub archive_library: Option<String>,
    /// Whether it is a standby; `None` if that cannot be found out.
    pub in_recovery: Option<bool>,
}

/// A row of `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archiver {
    /// The file that was archived last.
    pub last_archived: Option<String>,
    /// The file whose archiving failed last.
    pub last_failed: Option<String>,
    /// How often archiving failed.
    pub failed_count: u64,
    /// Whether the last attempt failed.
    pub fails_now: bool,
}

/// The receivers of a server's WAL, other than its archiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receivers {
    /// Connections for replication, but for that of the backup.
    pub connected_count: u64,
    /// Physical slots that keep WAL for somebody, used or not.
    pub slot_count: u64,
}

/// WAL that is asked of a server.
#[derive(Debug, Clone, Copy)]
pub struct WantedWal {
    pub timeline: TimelineId,
    /// The positions.
    pub range: LsnRange,
    /// For how long at most; `None` for as long as it takes.
    pub limit: Option<Duration>,
}

/// Lists the relations of a server.
pub type Lister = Box<dyn FnOnce() -> Result<Draft> + Send>;

/// A stream of the WAL of a server.
pub trait WalSource {
    /// Streams the WAL of `what` to `sink` in order, piece by piece. The connection of a backup must have ended it before.
    ///
    /// # Errors
    /// `Gap` when the server has removed it; `Deadline` when it does not come; `Interrupted`; `Server`, `Denied` as the connection fails;
    /// what `sink` returns.
    fn stream_wal(
        &mut self,
        what: &WantedWal,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;
}

/// A server to back up.
pub trait Source: WalSource {
    /// Returns the server's identity.
    ///
    /// # Errors
    /// `Server`, `Denied` as the connection fails.
    fn facts(&mut self) -> Result<ServerFacts>;

    /// The server's clock; `None` where it cannot be read.
    fn clock(&mut self) -> Option<TimestampTz>;

    /// Uses the connections that wait, so that nothing between takes them for dead.
    fn keep_alive(&mut self) {
        self.clock();
    }

    /// The state of the server's archiver; `None` where it cannot be read.
    fn archiver(&mut self) -> Option<Archiver>;

    /// Returns the other receivers of the server's WAL; `None` where they cannot be known.
    fn receivers(&mut self) -> Option<Receivers>;

    /// Runs a query on the session for SQL, which lasts as long as this.
    ///
    /// # Errors
    /// `Interrupted` once a stop was asked for; `Denied` where there is no such session, or a right is missing; `Server`.
    fn query(&mut self, query: &str) -> Result<Rows>;

    /// Runs a query that may take long, and calls `tick` meanwhile.
    ///
    /// # Errors
    /// Those of [`Source::query`] and of `tick`.
    fn query_long(&mut self, query: &str, tick: &mut dyn FnMut() -> Result<()>) -> Result<Rows> {
        tick()?;
        self.query(query)
    }

    /// Asks for the backup.
    ///
    /// # Errors
    /// `Usage` for options that the server would refuse; `Server`, `Denied` as the connection fails.
    fn begin(&mut self, options: &BaseBackupOptions) -> Result<()>;

    /// The next event of the backup; `None` behind the last. The first one comes behind a checkpoint: `tick` is called until there is one.
    ///
    /// # Errors
    /// `Interrupted` once a stop was asked for; `Server`, `Denied`, `Damaged`: the backup is then worth nothing; those of `tick`.
    fn next_event(&mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<Option<BackupEvent>>;

    /// Lists the server's relations over connections of its own, in a thread beside the backup; `None` where no SQL can be asked.
    fn relations(&mut self) -> Option<Lister> {
        None
    }

    /// A session that asks the server how busy it is; `None` where that cannot be asked.
    fn probe(&mut self, _segment_size: SegmentSize) -> Option<Box<dyn Probe>> {
        None
    }

    /// Another connection to the same server, for a thread beside the backup: made when WAL is first asked of it, given up once `over` is set.
    /// While it lasts the server keeps that WAL, where it has a slot to spare.
    fn beside(&mut self, over: Arc<AtomicBool>) -> Box<dyn WalSource + Send>;

    /// Makes the server keep the WAL in which the backup is going to stop, as far as it can. Called often while files arrive, and once with `is_last` just
    /// before the backup is stopped.
    fn keep_wal(&mut self, _is_last: bool) {}

    /// Lets the server remove that WAL.
    fn let_wal_go(&mut self) {}

    /// The history file of a timeline, before the backup or once it has ended.
    ///
    /// # Errors
    /// `Server` when there is none, or the connection fails.
    fn history(&mut self, timeline: TimelineId) -> Result<Bytes>;

    /// Leaves a backup that failed, and connects anew for another one.
    ///
    /// # Errors
    /// `Server`, `Denied` as the connection fails.
    fn start_over(&mut self) -> Result<()> {
        Ok(())
    }
}
