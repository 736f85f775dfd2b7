//! What archiving waits for on this machine: files that the server offers and that could not be archived (`archive::spool`).

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{Context, human};
use crate::archive::datadir::DataDirectory;
use crate::archive::spool;
use crate::config;
use crate::pg::segment::WalFileName;
use crate::pg::time::TimestampTz;

/// A file that has blocked archiving for so long is no passing trouble.
const PASSING: Duration = Duration::from_secs(300);

/// A file that could not be archived and is still offered.
#[derive(Debug, Serialize)]
pub struct Blocked {
    /// Its name.
    pub file: WalFileName,
    /// The name of the code.
    pub code: String,
    /// Since when it fails with that.
    pub since: TimestampTz,
    #[serde(skip)]
    text: String,
    #[serde(skip)]
    age: Duration,
}

impl Blocked {
    /// Those of a cluster, in order; none where its data directory is not known, or its spool cannot be read from here.
    pub fn all(cluster: &config::Cluster, pgdata: Option<&Path>, cx: &Context) -> Vec<Blocked> {
        let Some(pgdata) = pgdata.or(cluster.pgdata.as_deref()) else {
            return Vec::new();
        };
        let data = DataDirectory::at(pgdata);
        let found = spool::failures(cluster, &cx.environment, &data).into_iter();
        let offered = found.filter(|(file, _)| {
            let ready = data.wal().join(format!("archive_status/{file}.ready"));
            std::fs::symlink_metadata(ready).is_ok()
        });
        let blocked = offered.map(|(file, (failure, since))| {
            let since = TimestampTz::from_system_time(since);
            Blocked {
                file,
                code: failure.code,
                since,
                text: failure.text.lines().next().unwrap_or_default().to_owned(),
                age: cx.now().duration_since(since).unwrap_or_default(),
            }
        });
        blocked.collect()
    }

    /// Whether it has lasted so long that somebody has to come.
    pub fn has_lasted(&self) -> bool {
        self.age >= PASSING
    }

    /// One line.
    pub fn line(&self) -> String {
        format!(
            "archiving waits for \"{}\" since {} ({}): {}",
            self.file,
            human::time(self.since),
            human::duration(self.age),
            self.text.trim_start_matches("pitr-archive: error ")
        )
    }
}
