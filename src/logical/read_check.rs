//! Checks of a dump that need no server.

use std::path::{Path, PathBuf};

use super::member::LargeObjects;
use super::rows::{self, TableRows};
use super::tool::{self, Tick, Tool};
use crate::config::LogicalContent;
use crate::error::{Code, Error, Result};

/// The most findings of one dump that are listed.
const FINDINGS: usize = 100;

/// A dump as `pg_dump -Fd` wrote it, with what tells whether it is whole.
pub struct Dump<'a> {
    pub directory: PathBuf,
    /// Parts of the database that it has.
    pub content: LogicalContent,
    /// Rows of the tables, in its snapshot.
    pub rows: &'a [TableRows],
    /// Large objects, in its snapshot, where they were counted.
    pub large_objects: Option<LargeObjects>,
}

/// Returns the contents of an archive as `pg_restore --list` prints them; `options` narrow them. The text passes through `file`.
///
/// # Errors
/// `Server` when they cannot be read; those of `tick`.
pub fn contents(
    pg_restore: &Tool,
    directory: &Path,
    options: &[String],
    file: &Path,
    tick: Tick<'_>,
) -> Result<String> {
    let options = [&["--list".to_owned()], options].concat();
    printed(pg_restore, directory, &options, file, tick)
}

/// Returns what `pg_restore` prints of an archive. The text passes through `file`.
///
/// # Errors
/// Those of [`contents`].
pub fn printed(
    pg_restore: &Tool,
    directory: &Path,
    options: &[String],
    file: &Path,
    tick: Tick<'_>,
) -> Result<String> {
    let mut command = pg_restore.command(None);
    command.args(options).arg("-f").arg(file).arg(directory);
    tool::run(&mut command, tick)?;
    let bytes = std::fs::read(file)
        .map_err(|e| Error::from_io(format!("read \"{}\"", file.display()), e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Dump<'_> {
    /// Reads the table of contents; returns what is wrong with it.
    ///
    /// # Errors
    /// Errors of the system; those of `tick`.
    pub fn check_list(
        &self,
        pg_restore: &Tool,
        scratch: &Path,
        tick: Tick<'_>,
    ) -> Result<Vec<String>> {
        found(contents(pg_restore, &self.directory, &[], scratch, tick).map(|_| Vec::new()))
    }

    /// Reads everything: the contents, each file through `pg_restore`, the rows of each data file and the sizes of large objects against those of
    /// the snapshot. Returns what is wrong.
    ///
    /// # Errors
    /// Errors of the system; those of `tick`.
    pub fn check_read(
        &self,
        pg_restore: &Tool,
        scratch: &Path,
        tick: Tick<'_>,
    ) -> Result<Vec<String>> {
        let list = match contents(pg_restore, &self.directory, &[], scratch, tick) {
            Ok(list) => list,
            Err(e) => return found(Err(e)),
        };
        let mut command = pg_restore.command(None);
        command.args(["-f", "/dev/null"]).arg(&self.directory);
        let mut findings = found(tool::run(&mut command, tick).map(|_| Vec::new()))?;
        if self.content != LogicalContent::Schema {
            let files = rows::data_files(&list);
            for table in self.rows {
                let file = files.get(&table.oid);
                let wrong = self.check_table(table, file.map(String::as_str), tick)?;
                findings.extend(wrong.filter(|_| findings.len() < FINDINGS));
            }
            if let Some(had) = self.large_objects {
                let found = rows::large_objects(&self.directory)?;
                if found != had {
                    findings.push(format!("the dump has {found}, its snapshot had {had}"));
                }
            }
        }
        Ok(findings)
    }

    fn check_table(
        &self,
        table: &TableRows,
        file: Option<&str>,
        tick: Tick<'_>,
    ) -> Result<Option<String>> {
        let name = format!("table \"{}\".\"{}\"", table.schema, table.table);
        let Some(file) = file else {
            return Ok(Some(format!("{name}: the dump has no data of it")));
        };
        let path = self.directory.join(file);
        if !path.is_file() {
            return Ok(Some(format!("{name}: data file \"{file}\" is missing")));
        }
        Ok(match rows::in_file(&path, tick)? {
            Some(rows) if rows == table.rows => None,
            Some(rows) => Some(format!(
                "{name}: data file \"{file}\" has {rows} rows, its snapshot had {}",
                table.rows
            )),
            None => Some(format!("{name}: data file \"{file}\" is cut short")),
        })
    }
}

/// The failure of a program is a finding; that of the system is none.
pub(super) fn found(result: Result<Vec<String>>) -> Result<Vec<String>> {
    match result {
        Err(e) if e.code() == Code::Server => Ok(vec![e.to_string()]),
        other => other,
    }
}
