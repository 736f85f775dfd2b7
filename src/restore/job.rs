//! The job of a restore, as a value: made from a plan, kept in the directory while it runs, taken up again after a kill.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::databases::Wanted;
use super::target_dir::{CONTROL, Found, PlacedTablespace};
use crate::archive::guard::WrittenSettings;
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::recovery::{Action, Plan};
use crate::plan::target::RecoveryTarget;
use crate::repo::id::BackupId;
use crate::repo::root::cluster::LeftOutDatabase;

/// Format of the record.
const FORMAT: u32 = 1;
/// Format of the record of a restore that leaves databases out: an older program would fill them in.
const PARTIAL_FORMAT: u32 = 2;

/// The operator's request; two runs with equal requests are the same restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The data directory, without links.
    pub to: String,
    /// Cluster name.
    pub cluster: String,
    /// The repository that the command line names.
    pub repository: Option<String>,
    /// The backup that it names.
    pub backup: Option<String>,
    /// Whether the WAL is read that was archived first, whatever `pitr wal resolve` decided.
    #[serde(default)]
    pub as_stored: bool,
    /// Whether a data directory is restored in place.
    #[serde(default)]
    pub delta: bool,
    /// `OLD=NEW`, as given.
    pub tablespace_mappings: Vec<String>,
    /// The databases whose content is wanted; of all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub databases: Option<Wanted>,
    /// A restore to a target, or a standby.
    pub purpose: Purpose,
}

/// The purpose of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A copy at a target.
    Restore {
        target: RecoveryTarget,
        /// The action at the target.
        action: Action,
        /// Whether it may archive.
        adopt: bool,
    },
    /// A standby of the cluster.
    Standby {
        /// How it reaches the primary.
        primary_conninfo: String,
        /// The slot it uses.
        slot: Option<String>,
    },
}

/// A restore: everything that was decided before the first write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// 1, or 2 where databases are left out.
    pub format: u32,
    /// The operator's request.
    pub request: Request,
    pub planned: TimestampTz,
    /// The repository, as a location.
    pub repository: String,
    /// From pg_control, as a string: it exceeds 2^53.
    #[serde(with = "crate::text::decimal")]
    pub system_identifier: u64,
    /// The backup that is copied.
    pub backup: BackupId,
    /// Its nonce: another backup under the same id is another one.
    pub backup_nonce: String,
    /// The places for its tablespaces.
    pub tablespaces: Vec<PlacedTablespace>,
    /// Databases whose content is not restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOutDatabase>,
    pub restore_command: String,
    /// The plan of recovery; none for a standby, which never ends.
    pub plan: Option<Plan>,
    /// The timeline that a standby follows by its number; the latest without one.
    #[serde(default)]
    pub timeline: Option<TimelineId>,
    /// Values that the WAL on the way of a standby requires of its settings.
    #[serde(default)]
    pub parameters: BTreeMap<String, u32>,
    /// The lives that the WAL of the plan belonged to, by the repository that it was planned on; none in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lives: Option<Vec<String>>,
}

impl Job {
    /// The record's format, for new jobs that restore everything.
    pub const FORMAT: u32 = FORMAT;

    /// The same job without the content of these databases.
    #[must_use]
    pub fn without(self, left_out: Vec<LeftOutDatabase>) -> Job {
        let format = match left_out.is_empty() {
            true => FORMAT,
            false => PARTIAL_FORMAT,
        };
        Job {
            format,
            left_out,
            ..self
        }
    }

    /// Whether the directory may archive at once.
    pub fn may_archive(&self) -> bool {
        match self.request.purpose {
            Purpose::Restore { adopt, .. } => adopt,
            Purpose::Standby { .. } => true,
        }
    }

    /// As the bytes of the record.
    ///
    /// # Errors
    /// `Internal`.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| err!(Internal, "could not serialize the restore").source(e))
    }
}

/// How far an earlier run of a job came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Earlier {
    /// There was none.
    None,
    /// It was copying.
    Copying(Box<Job>),
    /// Everything is durable; pg_control has to get its name.
    LastStep(Box<Job>),
}

/// Reads what an earlier run left, and requires that it did the same.
///
/// # Errors
/// `Refused` when the directory holds the unfinished restore of another request; `Damaged` when its record cannot be read.
pub fn earlier(found: &Found, request: &Request) -> Result<Earlier> {
    let (job, wrap): (Job, fn(Box<Job>) -> Earlier) = match found {
        Found::Empty | Found::Data { .. } => return Ok(Earlier::None),
        Found::Unfinished(record) => (decode(record, request)?, Earlier::Copying),
        Found::LastStep(record) => {
            let written: WrittenSettings =
                serde_json::from_slice(record).map_err(|e| damaged(request).source(e))?;
            let record = written.job.to_string();
            (decode(record.as_bytes(), request)?, Earlier::LastStep)
        }
    };
    if job.request == *request {
        return Ok(wrap(Box::new(job)));
    }
    Err(err!(
        Refused,
        "directory \"{}\" holds an unfinished restore of another request, planned at {}",
        request.to,
        job.planned
    )
    .hint(match is_whole(request) {
        true => "Nothing was changed. Run the command that began it. It has changed nothing yet: pg_control is there, so do not empty the directory.",
        false => "Nothing was changed. Run the command that began it, or empty the directory first. What --aside made: pitr restore --aside --undo --to DIR --confirm",
    }))
}

/// Whether pg_control is there: a restore in place takes it away before it changes anything.
fn is_whole(request: &Request) -> bool {
    request.delta && Path::new(&request.to).join(CONTROL).exists()
}

fn decode(record: &[u8], request: &Request) -> Result<Job> {
    let job: Job = serde_json::from_slice(record).map_err(|e| damaged(request).source(e))?;
    if ![FORMAT, PARTIAL_FORMAT].contains(&job.format) {
        return Err(err!(
            Unsupported,
            "the unfinished restore in \"{}\" was begun by another version of pitr",
            request.to
        )
        .hint("Run that version again, or empty the directory first."));
    }
    Ok(job)
}

fn damaged(request: &Request) -> crate::error::Error {
    err!(
        Refused,
        "the record of the unfinished restore in \"{}\" cannot be read",
        request.to
    )
    .hint("Nothing was changed. Empty the directory, then restore again.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn job() -> Job {
        Job {
            format: FORMAT,
            request: Request {
                to: "/data".into(),
                cluster: "main".into(),
                repository: None,
                backup: None,
                as_stored: false,
                delta: false,
                tablespace_mappings: vec!["/a=/b".into()],
                databases: None,
                purpose: Purpose::Restore {
                    target: RecoveryTarget::default(),
                    action: Action::Promote,
                    adopt: false,
                },
            },
            planned: "2026-11-20T06:40:49Z".parse().unwrap(),
            repository: "file:///r".into(),
            system_identifier: u64::MAX,
            backup: "20261120T064049Z-full".parse().unwrap(),
            backup_nonce: "7".into(),
            tablespaces: Vec::new(),
            left_out: Vec::new(),
            restore_command: "r".into(),
            plan: None,
            timeline: None,
            parameters: BTreeMap::new(),
            lives: None,
        }
    }

    #[test]
    fn only_the_same_request_takes_an_unfinished_restore_up_again() {
        let job = job();
        let record = job.encode().unwrap();
        let found = Found::Unfinished(record.clone());
        assert_eq!(
            earlier(&found, &job.request).unwrap(),
            Earlier::Copying(Box::new(job.clone()))
        );
        let mut other = job.request.clone();
        other.purpose = Purpose::Restore {
            target: RecoveryTarget::default(),
            action: Action::Pause,
            adopt: false,
        };
        let refused = |found: &Found, request: &Request| {
            assert_eq!(earlier(found, request).unwrap_err().code(), Code::Refused);
        };
        refused(&found, &other);
        refused(&Found::Unfinished(record[..100].to_vec()), &job.request);
        let written = WrittenSettings {
            job: serde_json::to_value(&job).unwrap(),
            ..WrittenSettings::default()
        };
        let last = Found::LastStep(serde_json::to_vec(&written).unwrap());
        assert_eq!(
            earlier(&last, &job.request).unwrap(),
            Earlier::LastStep(Box::new(job.clone()))
        );
        refused(&last, &other);
        assert_eq!(earlier(&Found::Empty, &other).unwrap(), Earlier::None);
        // The same restore of other databases is another one.
        let mut fewer = job.request.clone();
        fewer.databases = Some(Wanted::Only(vec!["a".into()]));
        refused(&found, &fewer);
        let partial = job
            .clone()
            .without(vec![LeftOutDatabase::new(16_384, b"b")]);
        let found = Found::Unfinished(partial.encode().unwrap());
        assert_eq!(
            earlier(&found, &job.request).unwrap(),
            Earlier::Copying(Box::new(partial.clone()))
        );
        let newer = Job {
            format: 3,
            ..partial
        };
        let found = Found::Unfinished(newer.encode().unwrap());
        let refusal = earlier(&found, &job.request).unwrap_err();
        assert_eq!(refusal.code(), Code::Unsupported);
    }
}
