//! The files that a restore leaves behind in pg_wal until the copy has recovered and is adopted, and how they are
//! removed.
//!
//! | file | there from | until |
//! |---|---|---|
//! | `pitr.restore` | before the first byte is copied | everything but the name of pg_control is durable |
//! | `pitr.settings` | the copy's end | the copy is adopted; without a guard (adopted restores, standbys) recovery has ended |
//! | `pitr.guard` | the copy's end | the copy is adopted |
//!
//! PostgreSQL ignores names in pg_wal that are none of its own, and no base backup copies them. Settings are removed by
//! name *and* value: a setting that the operator has changed stays. ALTER SYSTEM, which writes the file anew, does not
//! hide them.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::datadir::{DataDirectory, GUARD};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::conf::{self, Setting};
use crate::pg::time::TimestampTz;

/// The plan of a restore that is not finished, in pg_wal.
pub const UNFINISHED: &str = "pitr.restore";
/// The settings that a restore has written, in pg_wal.
pub const SETTINGS: &str = "pitr.settings";
/// The file that holds them.
pub const AUTO_CONF: &str = "postgresql.auto.conf";
/// The comment above them.
pub const COMMENT: &str = "written by pitr; removed when recovery has ended";

const LIMIT_BYTES: u64 = 16 << 20;

/// Content of `pitr.guard`: for people, and for `pitr adopt`. The file's presence alone makes the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// The purpose of the file, for people.
    pub note: String,
    /// The cluster that was restored.
    pub cluster: String,
    /// Its system identifier, as a string: it exceeds 2^53.
    #[serde(with = "crate::text::decimal")]
    pub system_identifier: u64,
    /// The repository it came from.
    pub repository: String,
    pub backup: String,
    pub restored: TimestampTz,
    /// Name and version of the program.
    pub program: String,
}

/// Content of `pitr.settings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct WrittenSettings {
    /// Taken away when recovery has ended.
    pub until_recovery_ended: Vec<Setting>,
    /// Taken away when the copy is adopted.
    pub until_adopted: Vec<Setting>,
    /// The restore that wrote them, so that its last step can be distinguished from a foreign directory.
    #[serde(default)]
    pub job: serde_json::Value,
    /// Whether the directory was a standby, which recovers where it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_standby: bool,
    /// BLAKE3 of pg_control once the copy has recovered in private and waits for its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<String>,
    /// Whether a recovery that was cut short goes on, whose end is yet to be held to the plan.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_resumed: bool,
    /// Whether erasures have begun to be run, and some of them have not succeeded yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_erasing: bool,
}

/// Which of the settings to take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those of recovery: it has ended.
    Recovery,
    /// Those that keep a copy from archiving: recovery is yet to come.
    Clone,
    /// All.
    All,
}

/// Takes settings away from postgresql.auto.conf; returns those that were there.
///
/// When nothing is left to take away, the record goes too, unless recovery has ended and the copy is not adopted: it tells where the copy comes from.
/// Repeating it does no harm. `nonce` is random, for a temporary name.
///
/// # Errors
/// `Io`, `Denied`, `Full` when the files cannot be read or written; `Damaged` when the record is none. Nothing has changed then.
pub fn take_away(directory: &DataDirectory, which: Which, nonce: u64) -> Result<Vec<Setting>> {
    let record_path = directory.wal().join(SETTINGS);
    let Some(mut record) = read_json::<WrittenSettings>(&record_path)? else {
        return Ok(Vec::new());
    };
    let mut unwanted = Vec::new();
    if which != Which::Clone {
        unwanted.append(&mut record.until_recovery_ended);
    }
    if which != Which::Recovery {
        unwanted.append(&mut record.until_adopted);
    }
    let path = directory.path().join(AUTO_CONF);
    let text = read_limited(&path)?.unwrap_or_default();
    let found: Vec<Setting> = conf::settings(&text)
        .into_iter()
        .filter(|s| unwanted.contains(s))
        .collect();
    // The comment stays while settings below it do.
    let comment = if which == Which::Clone { "" } else { COMMENT };
    if let Some(left) = conf::without(&text, comment, &unwanted) {
        durable::rewrite(&path, &left, nonce)
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
    }
    let is_empty = record.until_recovery_ended.is_empty() && record.until_adopted.is_empty();
    let is_guarded = || std::fs::symlink_metadata(directory.wal().join(GUARD)).is_ok();
    let is_kept = which == Which::Recovery && is_guarded();
    if is_empty && !is_kept {
        remove(&record_path)?;
    } else if !unwanted.is_empty() {
        let json = serde_json::to_vec_pretty(&record)
            .map_err(|e| err!(Internal, "could not write \"{SETTINGS}\"").source(e))?;
        durable::rewrite(&record_path, &json, nonce)
            .map_err(|e| Error::from_io(format!("write \"{}\"", record_path.display()), e))?;
    }
    Ok(found)
}

/// Reads the guard; `None` when there is none.
///
/// # Errors
/// `Damaged` when its content is not ours, which does not make it less of a guard.
pub fn read(directory: &DataDirectory) -> Result<Option<Guard>> {
    read_json(&directory.wal().join(GUARD))
}

/// Notes that the copy has recovered in private and waits for its place: from here on no server changes `control`, the BLAKE3 of its pg_control.
///
/// # Errors
/// `Damaged`, `NotFound` without a record; what the system says.
pub fn note_recovered(directory: &DataDirectory, control: &str, nonce: u64) -> Result<()> {
    note(directory, nonce, |record| {
        record.recovered = Some(control.to_owned());
    })
}

/// Notes something in the record of a copy.
///
/// # Errors
/// As [`note_recovered`].
pub fn note(
    directory: &DataDirectory,
    nonce: u64,
    change: impl FnOnce(&mut WrittenSettings),
) -> Result<()> {
    let path = directory.wal().join(SETTINGS);
    let mut record = written(directory)?;
    change(&mut record);
    let json = serde_json::to_vec_pretty(&record)
        .map_err(|e| err!(Internal, "could not write \"{SETTINGS}\"").source(e))?;
    durable::rewrite(&path, &json, nonce)
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}

/// Reads what a restore has written down of a copy.
///
/// # Errors
/// `NotFound` without a record; `Damaged`; what the system says.
pub fn written(directory: &DataDirectory) -> Result<WrittenSettings> {
    let path = directory.wal().join(SETTINGS);
    let record = read_json(&path)?;
    record.ok_or_else(|| err!(NotFound, "\"{}\" is not there", path.display()))
}

/// Removes the guard durably: from then on the directory may archive.
pub fn remove_guard(directory: &DataDirectory) -> Result<()> {
    remove(&directory.wal().join(GUARD))
}

fn remove(path: &Path) -> Result<()> {
    durable::remove(path).map_err(|e| Error::from_io(format!("remove \"{}\"", path.display()), e))
}

/// Reads a small JSON file of ours; `None` when it is not there.
///
/// # Errors
/// `Damaged` when it cannot be parsed; what the system says.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read_limited(path)? {
        None => Ok(None),
        Some(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| err!(Damaged, "\"{}\" is damaged", path.display()).source(e)),
    }
}

/// Reads a small file; `None` when it is not there.
///
/// # Errors
/// `Damaged` when it is larger than 16 MiB; what the system says.
pub fn read_limited(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    let read = file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > LIMIT_BYTES {
        return Err(err!(
            Damaged,
            "\"{}\" is larger than 16 MiB",
            path.display()
        ));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, DataDirectory, WrittenSettings) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let data = DataDirectory::at(dir.path());
        let record = WrittenSettings {
            until_recovery_ended: vec![
                Setting::new("restore_command", "x %f %p"),
                Setting::new("recovery_target_lsn", "0/5"),
            ],
            until_adopted: vec![Setting::new("archive_mode", "off")],
            ..WrittenSettings::default()
        };
        let all = [&record.until_recovery_ended[..], &record.until_adopted].concat();
        let text = conf::append(b"work_mem = '4MB'\n", COMMENT, &all).unwrap();
        std::fs::write(dir.path().join(AUTO_CONF), text).unwrap();
        let json = serde_json::to_vec(&record).unwrap();
        std::fs::write(data.wal().join(SETTINGS), json).unwrap();
        (dir, data, record)
    }

    fn auto_conf(data: &DataDirectory) -> String {
        std::fs::read_to_string(data.path().join(AUTO_CONF)).unwrap()
    }

    #[test]
    fn recovery_ends_then_the_copy_is_adopted() {
        let (_dir, data, record) = directory();
        let removed = take_away(&data, Which::Recovery, 1).unwrap();
        assert_eq!(removed, record.until_recovery_ended);
        assert_eq!(auto_conf(&data), "work_mem = '4MB'\narchive_mode = 'off'\n");
        assert!(take_away(&data, Which::Recovery, 1).unwrap().is_empty());
        let removed = take_away(&data, Which::All, 1).unwrap();
        assert_eq!(removed, record.until_adopted);
        assert_eq!(auto_conf(&data), "work_mem = '4MB'\n");
        assert!(!data.wal().join(SETTINGS).exists());
        assert!(take_away(&data, Which::All, 1).unwrap().is_empty());
    }

    #[test]
    fn adopted_before_the_first_start_the_settings_of_recovery_stay() {
        let (_dir, data, _) = directory();
        take_away(&data, Which::Clone, 1).unwrap();
        assert!(auto_conf(&data).ends_with("recovery_target_lsn = '0/5'\n"));
        assert_eq!(take_away(&data, Which::Recovery, 1).unwrap().len(), 2);
        assert_eq!(auto_conf(&data), "work_mem = '4MB'\n");
        assert!(!data.wal().join(SETTINGS).exists());
    }

    #[test]
    fn t86_the_record_of_a_copy_with_a_guard_outlives_its_recovery() {
        let (_dir, data, record) = directory();
        // The operator's own archive_mode is off, so that the restore has none to take away.
        let record = WrittenSettings {
            until_adopted: Vec::new(),
            job: "a job".into(),
            was_standby: true,
            ..record
        };
        let path = data.wal().join(SETTINGS);
        std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        std::fs::write(data.wal().join(GUARD), "{}").unwrap();
        for found in [2, 0] {
            let removed = take_away(&data, Which::Recovery, 1).unwrap();
            assert_eq!(removed.len(), found);
            let left = written(&data).unwrap();
            assert!(left.was_standby && left.job == record.job);
            assert!(left.until_recovery_ended.is_empty());
        }
        note_recovered(&data, "a digest", 1).unwrap();
        note(&data, 1, |record| record.is_resumed = true).unwrap();
        let left = written(&data).unwrap();
        assert!(left.is_resumed && left.recovered.is_some());
        take_away(&data, Which::All, 1).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_the_operator_changed_stays() {
        let (_dir, data, _) = directory();
        let text = auto_conf(&data).replace("0/5", "0/6");
        std::fs::write(data.path().join(AUTO_CONF), text).unwrap();
        take_away(&data, Which::All, 1).unwrap();
        assert_eq!(
            auto_conf(&data),
            "work_mem = '4MB'\nrecovery_target_lsn = '0/6'\n"
        );
    }

    #[test]
    fn a_damaged_record_changes_nothing() {
        let (_dir, data, _) = directory();
        std::fs::write(data.wal().join(SETTINGS), "{").unwrap();
        let before = auto_conf(&data);
        assert!(take_away(&data, Which::All, 1).is_err());
        assert_eq!(auto_conf(&data), before);
    }
}
