//! Files that the server offers and that could not be archived (`archive::spool`).

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::human;
use super::session::Session;
use crate::archive::datadir::DataDirectory;
use crate::archive::spool;
use crate::config;
use crate::error::Code;
use crate::exit;
use crate::pg::segment::WalFileName;
use crate::pg::time::TimestampTz;

/// A file that has blocked archiving for so long is no passing trouble.
pub const PASSING: Duration = Duration::from_secs(300);

/// One that has blocked archiving for so long is critical.
pub const STUCK: Duration = Duration::from_secs(900);

/// WAL files that the server offers and nobody has archived yet.
#[derive(Debug, Default)]
pub struct Waiting {
    /// How many there are.
    pub count: u64,
    /// The name of the one that waits longest.
    pub oldest: String,
    /// How long that is.
    pub age: Duration,
}

impl Waiting {
    /// Reads what waits in a data directory.
    ///
    /// # Errors
    /// Errors of the system about `pg_wal/archive_status`.
    pub fn read(pgdata: &Path, now: TimestampTz) -> std::io::Result<Waiting> {
        let mut waiting = Waiting::default();
        let mut oldest: Option<TimestampTz> = None;
        for entry in std::fs::read_dir(pgdata.join("pg_wal/archive_status"))?.flatten() {
            let name = entry.file_name();
            let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".ready")) else {
                continue;
            };
            if stem.parse::<WalFileName>().is_err() {
                continue;
            }
            waiting.count += 1;
            let since = entry.metadata().and_then(|m| m.modified());
            if let Ok(since) = since.map(TimestampTz::from_system_time)
                && oldest.is_none_or(|known| since < known)
            {
                oldest = Some(since);
                stem.clone_into(&mut waiting.oldest);
            }
        }
        waiting.age = oldest
            .and_then(|since| now.duration_since(since))
            .unwrap_or_default();
        Ok(waiting)
    }
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Waiting { count, oldest, age } = self;
        let (files, age) = (human::count(*count, "file"), human::duration(*age));
        match count {
            0 => write!(f, "nothing"),
            _ => write!(f, "{files}, the oldest for {age}: {oldest}"),
        }
    }
}

/// A file that could not be archived and is still offered.
#[derive(Debug, Serialize)]
pub struct Blocked {
    pub file: WalFileName,
    /// The name of the code.
    pub code: String,
    /// Since when it fails with that.
    pub since: TimestampTz,
    #[serde(skip)]
    text: String,
    #[serde(skip)]
    hint: String,
    #[serde(skip)]
    age: Duration,
}

impl Blocked {
    /// Those of a cluster, in order; none where its data directory is not known, or its spool cannot be read from here.
    pub fn all(
        cluster: &config::Cluster,
        pgdata: Option<&Path>,
        session: &Session,
    ) -> Vec<Blocked> {
        let Some(pgdata) = pgdata.or(cluster.pgdata.as_deref()) else {
            return Vec::new();
        };
        let data = DataDirectory::at(pgdata);
        let found = spool::failures(cluster, &session.environment, &data).into_iter();
        let offered = found.filter(|(file, _)| {
            let ready = data.wal().join(format!("archive_status/{file}.ready"));
            std::fs::symlink_metadata(ready).is_ok()
        });
        let blocked = offered.map(|(file, (failure, since))| {
            let since = TimestampTz::from_system_time(since);
            let mut lines = failure.text.lines();
            Blocked {
                file,
                code: failure.code,
                since,
                text: lines.next().unwrap_or_default().to_owned(),
                hint: lines.map(str::trim).collect::<Vec<_>>().join(" "),
                age: session.host.now().duration_since(since).unwrap_or_default(),
            }
        });
        blocked.collect()
    }

    /// Whether it has lasted so long that somebody has to come.
    pub fn has_lasted(&self) -> bool {
        self.age >= STUCK
    }

    /// Tells whether other content has its name.
    pub fn is_conflict(&self) -> bool {
        self.code == exit::name(Code::Conflict)
    }

    /// The command that tells of the cause.
    pub fn next(&self) -> &'static str {
        match self.is_conflict() {
            true => "pitr wal conflicts",
            false => "pitr doctor",
        }
    }

    /// The hint of pitr-archive, where it gave one: what helps.
    pub fn hint(&self) -> Option<&str> {
        Some(self.hint.as_str()).filter(|hint| !hint.is_empty())
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
