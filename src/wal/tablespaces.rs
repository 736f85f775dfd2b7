//! The tablespaces that a stretch of WAL makes. Recovery makes them again in the directories that records name, whatever lies there.
//!
//! PostgreSQL: src/backend/commands/tablespace.c (`tblspc_redo`, `create_tablespace_directories`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::facts::{Wal as _, flag};
use super::index::WalEvent;
use super::unlogged::Replayed;
use crate::error::Result;
use crate::pg::change::{self, Change};
use crate::pg::lsn::Lsn;
use crate::pg::record::Record;
use crate::pg::segment::SegmentName;

/// Tablespaces by their oid, each with its directory.
pub type Made = BTreeMap<u32, PathBuf>;

impl Replayed<'_> {
    /// Returns the tablespaces outside of the data directory that records behind `from` make. Facts tell which indexes name any; only these are read.
    /// The record that crosses the end of a segment is in no index.
    ///
    /// # Errors
    /// Errors of the store; `Interrupted`.
    pub fn tablespaces(&self, from: Lsn) -> Result<Made> {
        let is_replayed = |lsn: Lsn| from <= lsn && lsn < self.until;
        let all = self.each(|name| {
            let mut made = match self.rollup.facts(*name)?.has(flag::TABLESPACES) {
                true => self.made(*name, &is_replayed)?,
                false => Made::new(),
            };
            self.crossing(*name, &mut |record| {
                if is_replayed(record.start_lsn) {
                    add_record(&mut made, record);
                }
            })?;
            Ok(made)
        })?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Returns those that a segment makes; its records tell where the index does not have them.
    fn made(&self, name: SegmentName, is_replayed: &dyn Fn(Lsn) -> bool) -> Result<Made> {
        let mut made = Made::new();
        match self.rollup.events(name)? {
            Some(events) => {
                for (lsn, event) in &events {
                    if let WalEvent::Tablespace {
                        action: 0,
                        oid,
                        path,
                        ..
                    } = event
                        && is_replayed(*lsn)
                    {
                        add(&mut made, *oid, path);
                    }
                }
            }
            None => self.records(name, &mut |record| {
                if is_replayed(record.start_lsn) {
                    add_record(&mut made, record);
                }
            })?,
        }
        Ok(made)
    }
}

/// Adds what a record makes; one that cannot be taken apart makes nothing.
fn add_record(made: &mut Made, record: &Record<'_>) {
    let Ok(body) = record.body() else { return };
    let _ = change::changes(record, &body, |change| {
        if let Change::TablespaceCreate { tablespace, path } = change {
            add(made, tablespace, path);
        }
    });
}

/// One that lies in the data directory has no path.
fn add(made: &mut Made, oid: u32, path: &[u8]) {
    if !path.is_empty() {
        made.insert(oid, OsStr::from_bytes(path).into());
    }
}
