//! A backup of dumps read back: its contents, all of its bytes, or restored into a scratch server.

use std::path::Path;

use serde::Serialize;

use super::restore::extract;
use super::scratch::{self, Scratch};
use super::{Stored, find, folders};
use crate::config::LogicalContent;
use crate::err;
use crate::error::Result;
use crate::logical::kind::GLOBALS;
use crate::logical::read_check::Dump;
use crate::logical::rows;
use crate::logical::spool::Spool;
use crate::logical::tool::Tool;
use crate::operate::session::Session;
use crate::pg::lsn::Lsn;
use crate::pg::version::Major;
use crate::repo::id::BackupId;

/// How much is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The contents can be parsed.
    List,
    /// Every file can be read, and has the rows of its snapshot.
    Read,
    /// A server takes all of it, and has the rows of its snapshot then.
    Restore,
}

impl Level {
    /// Returns the proof that an empty list of findings is.
    pub fn proves(self) -> &'static str {
        match self {
            Level::List => {
                "every file came back with the hash of its backup, and each dump's table of contents can be parsed; data files were not parsed"
            }
            Level::Read => {
                "every file came back with the hash of its backup, pg_restore reads it, and each table's data file has the rows of its snapshot; no server has parsed them"
            }
            Level::Restore => {
                "a server took every definition and every row, and each table has as many rows as in its snapshot; values were not compared"
            }
        }
    }
}

/// The result of a check.
#[derive(Serialize)]
pub struct Checked {
    pub id: BackupId,
    /// The repository that gave it.
    pub repository: String,
    /// How much was asked to be proven.
    pub level: Level,
    /// The proof, where nothing was found.
    pub proves: Option<&'static str>,
    /// Findings about the backup as a whole.
    pub findings: Vec<String>,
    pub databases: Vec<CheckedDatabase>,
}

/// A database of a check.
#[derive(Serialize)]
pub struct CheckedDatabase {
    pub name: String,
    /// Tables whose rows are known.
    pub table_count: u64,
    pub row_count: u64,
    /// The snapshot of the dump, as `pg_current_snapshot` printed it: its commits are those that the dump holds.
    pub snapshot: String,
    /// The end of the WAL just before the snapshot.
    pub start_lsn: Lsn,
    /// The end of the WAL just after it.
    pub stop_lsn: Lsn,
    /// Whatever is wrong.
    pub findings: Vec<String>,
}

impl Checked {
    /// How much is wrong.
    pub fn finding_count(&self) -> usize {
        let databases = self.databases.iter().map(|d| d.findings.len());
        self.findings.len() + databases.sum::<usize>()
    }
}

/// Checks the newest backup, or the one that is named.
///
/// # Errors
/// `NotFound`; `Refused` for a restore of data without definitions; those of the repository, the programs and the system. Damage is no error.
pub fn run(
    session: &Session,
    name: &str,
    (backup, level): (Option<&BackupId>, Level),
    bin: Option<&Path>,
) -> Result<Checked> {
    let stored = find(session, name, backup)?;
    let least = Major::from_number(stored.member.pg_dump_major)?;
    let pg_restore = Tool::find("pg_restore", least, &folders(session, bin))?;
    let programs = match level {
        Level::Restore if stored.member.content == LogicalContent::Data => {
            return Err(err!(
                Refused,
                "the dumps of backup \"{}\" have data and no definitions: no server can take them by themselves",
                stored.backup.id
            )
            .hint(format!("Nothing was done. Check it with pitr logical check {name} --read")));
        }
        Level::Restore => Some(scratch::programs(session, &pg_restore, bin)?),
        _ => None,
    };
    let mut checked = Checked {
        id: stored.backup.id.clone(),
        repository: stored.backup.configured.name.clone(),
        level,
        proves: None,
        findings: Vec::new(),
        databases: Vec::new(),
    };
    let spool = Spool::new(&session.host.scratch)?;
    let dumps = spool.directory("dumps")?;
    match extract(session, &stored, &dumps) {
        Err(e) if e.is_damage() => checked.findings.push(e.to_string()),
        other => {
            other?;
            let scratch = programs.map(|programs| Scratch::start(session, programs));
            let scratch = scratch.transpose()?;
            let (places, tools) = ((&spool, &*dumps), (&pg_restore, scratch.as_ref()));
            checked.databases = databases(session, (&stored, level), places, tools)?;
        }
    }
    checked.proves = (checked.finding_count() == 0).then(|| level.proves());
    Ok(checked)
}

fn databases(
    session: &Session,
    (stored, level): (&Stored, Level),
    (spool, dumps): (&Spool, &Path),
    (pg_restore, scratch): (&Tool, Option<&Scratch>),
) -> Result<Vec<CheckedDatabase>> {
    if let Some(scratch) = scratch {
        scratch.create_roles(&dumps.join(GLOBALS))?;
    }
    let list = spool.file("list", b"")?;
    let mut all = Vec::new();
    for database in &stored.member.databases {
        let phase = format!("check database \"{}\"", database.name);
        session.host.progress.phase(&phase, None);
        let rows = rows::read(&dumps.join(database.rows_file()))?;
        let dump = Dump {
            directory: dumps.join(database.directory()),
            content: stored.member.content,
            rows: &rows,
            large_objects: database.large_objects,
        };
        let mut tick = || session.host.check_stop();
        let mut findings = match level {
            Level::List => dump.check_list(pg_restore, &list, &mut tick)?,
            Level::Read | Level::Restore => dump.check_read(pg_restore, &list, &mut tick)?,
        };
        if let (Some(scratch), true) = (scratch, findings.is_empty()) {
            let place = (database, dump.directory.as_path());
            findings = scratch.check(session, pg_restore, place, &rows)?;
        }
        all.push(CheckedDatabase {
            name: database.name.clone(),
            table_count: database.table_count,
            row_count: database.row_count,
            snapshot: database.snapshot.clone(),
            start_lsn: database.start_lsn,
            stop_lsn: database.stop_lsn,
            findings,
        });
    }
    Ok(all)
}
