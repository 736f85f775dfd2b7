//! The status of a receiver, for `pitr info`: a small file in its journal.
//!
//! Written at most once a second, by rename and without a sync: after a power cut it may be empty or old, and nothing depends on it.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable::Delivery;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;

/// Its name in the journal's directory.
pub const NAME: &str = "status.json";
const LIMIT_BYTES: u64 = 1 << 20;

/// The state of a receiver at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Status {
    /// When this was written.
    pub time: TimestampTz,
    /// The process.
    pub pid: u32,
    /// When the process started.
    pub started: TimestampTz,
    /// When it ended; none while it runs, and when it was killed.
    #[serde(default)]
    pub ended: Option<TimestampTz>,
    /// Since when there is no connection; none while there is one.
    #[serde(default)]
    pub disconnected: Option<TimestampTz>,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's.
    #[serde(with = "crate::text::decimal")]
    pub system_identifier: u64,
    /// The server, `host:port`; none while there is no connection.
    pub server: Option<String>,
    /// The slot, where one is used.
    pub slot: Option<String>,
    /// The timeline that is streamed.
    pub timeline: Option<TimelineId>,
    /// Behind the last byte that came from the server.
    pub received_lsn: Option<Lsn>,
    /// When that byte came.
    pub received_time: Option<TimestampTz>,
    /// Behind the last byte that is durable in the journal.
    pub flushed_lsn: Option<Lsn>,
    /// Up to when all commits of the server are durable in the journal.
    #[serde(default)]
    pub safe_time: Option<TimestampTz>,
    /// The position that the receiver has acknowledged to the server as safe.
    pub acknowledged_lsn: Option<Lsn>,
    /// The server's own end of WAL, as it said last.
    pub server_lsn: Option<Lsn>,
    /// The WAL that each repository holds.
    pub repositories: Vec<RepositoryStatus>,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// How large it may become.
    pub journal_limit_bytes: Option<u64>,
    /// The last error that has not been overcome.
    pub last_error: Option<String>,
}

impl Status {
    /// Since when it is known to stream no more: a connection that was lost, or its end.
    pub fn down_since(&self) -> Option<TimestampTz> {
        self.disconnected.into_iter().chain(self.ended).min()
    }
}

/// The WAL that one repository holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Whether it is required.
    pub required: bool,
    /// Behind the last byte that it holds.
    pub archived_lsn: Option<Lsn>,
    /// The timeline of that position.
    pub timeline: Option<TimelineId>,
    /// When it was reached.
    pub archived_time: Option<TimestampTz>,
    /// Why it goes no further.
    pub last_error: Option<String>,
}

/// Replaces the file in a journal's directory, `<journal>/<system identifier>`.
///
/// # Errors
/// Those of the filesystem.
pub fn write(directory: &Path, status: &Status, nonce: u64) -> Result<()> {
    let path = directory.join(NAME);
    let put = || -> std::io::Result<()> {
        let mut file = Delivery::create(&path, nonce)?;
        file.write_all(&serde_json::to_vec(status)?)?;
        file.finish()
    };
    put().map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}

/// Reads the file of a journal's directory; `None` when there is none, or none that can be read as one.
///
/// # Errors
/// Those of the filesystem.
pub fn read(directory: &Path) -> Result<Option<Status>> {
    use std::io::Read;
    let path = directory.join(NAME);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(Error::from_io(format!("read \"{}\"", path.display()), e));
        }
    };
    let mut text = Vec::new();
    file.take(LIMIT_BYTES)
        .read_to_end(&mut text)
        .map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
    Ok(serde_json::from_slice(&text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            time: TimestampTz(2_000_000),
            pid: 7,
            started: TimestampTz(1_000_000),
            disconnected: Some(TimestampTz(1_000_000)),
            cluster: "main".to_owned(),
            system_identifier: u64::MAX,
            slot: Some("pitr".to_owned()),
            timeline: Some(TimelineId::FIRST),
            received_lsn: Some(Lsn(0x300_0100)),
            received_time: Some(TimestampTz(1_500_000)),
            flushed_lsn: Some(Lsn(0x300_0080)),
            safe_time: Some(TimestampTz(1_400_000)),
            repositories: vec![RepositoryStatus {
                name: "local".to_owned(),
                required: true,
                archived_lsn: Some(Lsn(0x300_0000)),
                timeline: Some(TimelineId::FIRST),
                archived_time: None,
                last_error: Some("full".to_owned()),
            }],
            journal_bytes: 1,
            ..Status::default()
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_rubbish_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
        write(directory.path(), &status(), 1).unwrap();
        write(directory.path(), &status(), 2).unwrap();
        assert_eq!(read(directory.path()).unwrap(), Some(status()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        std::fs::write(directory.path().join(NAME), b"").unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
    }
}
