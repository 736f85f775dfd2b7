//! Rescue: tables of an earlier moment, back into the live server or into a file.
//!
//! | file | what it owns |
//! |---|---|
//! | `tables` | what is meant, as the moment has it and as the live server has it |
//! | `carry` | whole tables, by pg_dump and pg_restore |
//! | `large_objects` | the large objects that carried rows name |
//! | `rows` | rows alone, by COPY in one transaction |
//! | `database` | the way back of a whole database |
//!
//! The moment is a clone, which is thrown away. Nothing is overwritten unless the operator says so, and each table arrives whole or not at all.

mod carry;
mod database;
mod large_objects;
mod rows;
pub(super) mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use self::large_objects::{Carried, Columns};
use self::tables::Table;
use super::clone::{self, Running, folder::Folder, folder::State};
use super::server::Server;
use super::session::Session;
use crate::config::secret::Secret;
use crate::err;
use crate::error::Result;

/// The objects that are rescued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Tables, by names as SQL writes them. The partitions of a partitioned one belong to it.
    Tables(Vec<String>),
    /// A schema with all that is in it.
    Schema(String),
    /// The whole database.
    Database,
}

/// The fate of a table that the live server has, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// It is refused.
    Create,
    /// The rows go into a new table of this name.
    As(String),
    /// Only rows whose key is missing are added.
    MissingRows,
    /// Its rows are replaced.
    Replace,
}

/// The place for them.
#[derive(Clone)]
pub enum To {
    /// Into an archive of pg_dump.
    File(PathBuf),
    /// Into a live server.
    Server {
        /// How to connect.
        conninfo: Secret,
        /// The fate of tables that are there.
        mode: Mode,
    },
}

impl To {
    /// The client programs that it takes.
    pub fn clients(&self) -> &'static [&'static str] {
        match self {
            To::File(_) => &["pg_dump", "pg_restore"],
            To::Server { mode, .. } if *mode == Mode::Create => &["pg_dump", "pg_restore"],
            To::Server { .. } => &[],
        }
    }
}

/// The operator's request.
#[derive(Clone)]
pub struct Asked {
    /// The moment.
    pub clone: clone::Asked,
    /// The database at that moment; that of the live server without it.
    pub database: Option<String>,
    /// The objects that are rescued.
    pub what: What,
    /// The place for them.
    pub to: To,
    /// The options that lead to the same objects of the same moment, each with a space before it: a hint repeats them.
    pub words: String,
}

/// A table that was rescued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rescued {
    /// Its name at that moment.
    pub table: String,
    /// Its name now, where that differs.
    pub new_name: Option<String>,
    /// The rows that it had.
    pub rows: u64,
    /// The rows that were added, where only some were.
    pub added_rows: Option<u64>,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The moment.
    pub clone: State,
    pub database: String,
    pub tables: Vec<Rescued>,
    /// The large objects that rows of the tables name. Those of a whole database come with it, and are not counted.
    pub large_objects: Carried,
    /// The file, where it went into one.
    pub file: Option<PathBuf>,
    /// Things that were not carried, and have to be done by hand.
    pub notes: Vec<String>,
}

/// Rescues what is asked for, by a clone below a directory.
///
/// # Errors
/// `Refused` where something is in the way, before anything is done where that is known by then; `NotFound` for what the moment does not
/// have; those of [`clone::for_a_while`]; `Server`.
pub fn run(session: &Session, asked: &Asked, below: &Path) -> Result<Report> {
    let database = match (&asked.database, &asked.to) {
        (Some(database), _) => database.clone(),
        (None, To::Server { conninfo, .. }) => database_of(session, asked, conninfo)?,
        (None, To::File(_)) => {
            return Err(err!(Usage, "the database is not named")
                .hint("Nothing was done. Name it: --database NAME"));
        }
    };
    check_free(session, asked)?;
    let place = (&*database, below);
    clone::for_a_while(session, &asked.clone, place, |folder, running| {
        session.host.progress.phase("rescue", None);
        let from = (folder, running);
        match &asked.to {
            To::File(path) => into_file(session, asked, from, &database, path),
            To::Server { conninfo, mode } => {
                into_server(session, asked, from, &database, (conninfo, mode))
            }
        }
    })
}

/// Refuses what would be in the way, before the clone is made.
fn check_free(session: &Session, asked: &Asked) -> Result<()> {
    match &asked.to {
        To::File(path) if path.exists() => {
            Err(err!(Refused, "\"{}\" is there already", path.display())
                .hint("Nothing was done. Name another file."))
        }
        To::File(_) => Ok(()),
        To::Server { conninfo, mode } => {
            let mut live = connect(session, asked, conninfo)?;
            match (&asked.what, mode) {
                (What::Tables(names), _) if *mode != Mode::Create && names.len() != 1 => {
                    Err(rows::not_one(names.len()))
                }
                (What::Tables(names), Mode::Create) => names
                    .iter()
                    .try_for_each(|name| tables::check_absent(&mut live, name)),
                (What::Tables(_), Mode::As(name)) => tables::check_absent(&mut live, name),
                (What::Tables(names), Mode::MissingRows) => names
                    .iter()
                    .try_for_each(|name| tables::check_present(&mut live, name)),
                (What::Tables(names), Mode::Replace) => names.iter().try_for_each(|name| {
                    tables::check_present(&mut live, name)?;
                    tables::check_unreferenced(&mut live, name)
                }),
                (What::Schema(_) | What::Database, _) => Ok(()),
            }
        }
    }
}

/// Connects to the live server. A database that it does not have may be the one that is to come back.
fn connect(session: &Session, asked: &Asked, conninfo: &Secret) -> Result<Server> {
    let live = Server::connect(conninfo.expose()).map_err(|e| {
        let is_missing = database::is_missing(&e);
        match is_missing.then(|| database::way_back(session, asked, conninfo)) {
            Some(Some(hint)) => e.hint(hint),
            _ => e,
        }
    })?;
    // It is idle while the clone counts rows, and asked again once what took hours is there.
    live.heeding(&session.host.stop).without_time_limits()
}

/// Connects to a database of the moment.
fn connect_then(running: &mut Running<'_>, database: &str) -> Result<Server> {
    running.server.connect(database).map_err(|e| match database::is_missing(&e) {
        true => err!(NotFound, "there is no database \"{database}\" at that moment").hint("Nothing was done. pitr find --kind database says when it was dropped; pitr query 'select datname from pg_database' with the same target lists them."),
        false => e,
    })
}

fn database_of(session: &Session, asked: &Asked, conninfo: &Secret) -> Result<String> {
    let mut live = connect(session, asked, conninfo)?;
    let rows = live.query("select current_database()")?;
    rows.value(0, 0)
}

/// The tables that are meant, with their partitions; none where more than tables is.
fn meant(source: &mut Server, what: &What) -> Result<Vec<Table>> {
    match what {
        What::Tables(names) => {
            let found = names.iter().map(|name| tables::find(source, name));
            Ok(found.collect::<Result<Vec<_>>>()?.concat())
        }
        What::Schema(schema) => tables::of_schema(source, Some(schema)),
        What::Database => tables::of_schema(source, None),
    }
}

fn into_file(
    session: &Session,
    asked: &Asked,
    (folder, running): (&Folder, &mut Running<'_>),
    database: &str,
    path: &Path,
) -> Result<Report> {
    let mut source = connect_then(running, database)?;
    let (tables, mut notes) = tables::carried(&asked.what, meant(&mut source, &asked.what)?)?;
    notes.extend(tables::without_rows(&tables));
    carry::dump(session, running, (database, &asked.what, &tables), path)?;
    let contents = folder.path().join("contents");
    carry::check_archive(session, running, (path, &contents), &tables)?;
    notes.extend(tables::lacking(&mut source, &asked.what, &tables)?);
    if asked.what != What::Database {
        let columns = Columns::of(&mut source, &tables)?;
        notes.extend(columns.names().map(|column| format!("{column} may name large objects, which an archive of tables does not have: they come with rows into a live server (--into), and with the whole database")));
    }
    if asked.what == What::Database {
        let name = tables::identifier(database);
        notes.extend(database::properties(&mut source, &name)?);
    }
    report(&mut source, running, (database, &tables), notes, Some(path))
}

fn into_server(
    session: &Session,
    asked: &Asked,
    (folder, running): (&Folder, &mut Running<'_>),
    database: &str,
    (conninfo, mode): (&Secret, &Mode),
) -> Result<Report> {
    let mut source = connect_then(running, database)?;
    let tables = meant(&mut source, &asked.what)?;
    let mut live = connect(session, asked, conninfo)?;
    let unlogged: Vec<String> = tables::without_rows(&tables).collect();
    if let (What::Tables(names), Mode::MissingRows | Mode::Replace) = (&asked.what, mode) {
        let mut both = names.iter().zip(&tables);
        both.try_for_each(|(name, table)| tables::check_same(&mut live, name, table))?;
    }
    let from = running.server.conninfo(database);
    let (rescued, large_objects, mut notes) = match mode {
        Mode::Create => {
            let (tables, left) = tables::carried(&asked.what, tables)?;
            let archive = folder.path().join("rescued.dump");
            carry::dump(session, running, (database, &asked.what, &tables), &archive)?;
            let mut beside = None;
            let mut carried = Carried::default();
            if asked.what != What::Database {
                let columns = Columns::of(&mut source, &tables)?;
                let live = beside.insert(connect(session, asked, conninfo)?);
                live.query("begin")?;
                let named = (&columns, None);
                carried = large_objects::carry(session, (&mut source, &from), live, named)?;
                // Objects without rows cost room alone, and rows without objects are lost data.
                live.query("commit")?;
            }
            let servers = (&mut source, conninfo, &mut live);
            let carried_as = (&asked.what, &tables[..]);
            let restored =
                carry::restore(session, running, (folder, &archive), servers, carried_as);
            if let Err(e) = restored {
                take_back(session, beside, carried.made, &tables);
                return Err(e);
            }
            let mut after = || -> Result<_> {
                let rescued = tables::compare(&mut source, &mut live, &tables)?;
                let mut notes = tables::lacking(&mut source, &asked.what, &tables)?;
                notes.extend(database::lacking(&mut source, &mut live, &asked.what)?);
                Ok((rescued, notes))
            };
            let (rescued, mut notes) = after().map_err(|e| e.hint(IS_THERE))?;
            notes.extend(left);
            (rescued, carried, notes)
        }
        _ => {
            let inheriting = tables::inheriting(&mut source, &tables)?;
            let (rescued, carried, mut notes) =
                rows::carry(session, (&mut source, &from), &mut live, (&tables, mode))?;
            notes.extend(inheriting);
            (rescued, carried, notes)
        }
    };
    notes.extend(unlogged);
    if let Mode::As(_) = mode {
        let note =
            "the new table has the rows and columns alone: no index, no constraint, no default";
        notes.push(note.to_owned());
    }
    if !large_objects.different.is_empty() {
        let numbers: Vec<String> = large_objects.different.iter().map(u32::to_string).collect();
        notes.push(format!(
            "large objects of the live server have other content than at that moment, and stayed as they are: {}",
            numbers.join(", ")
        ));
    }
    Ok(Report {
        clone: running.state.clone(),
        database: database.to_owned(),
        tables: rescued,
        large_objects,
        file: None,
        notes,
    })
}

/// The hint of an error behind the commit.
const IS_THERE: &str = "pg_restore has committed: all that was asked for is in the live server. Look at it there before anything is asked for again.";

/// Removes large objects whose rows did not arrive. A table that is there keeps them: the connection may have been lost behind the commit.
fn take_back(session: &Session, beside: Option<Server>, made: u64, tables: &[Table]) {
    let Some(beside) = beside.filter(|_| made > 0) else {
        return;
    };
    // The operator may have ended the wait for the rows, and this is no wait.
    let mut beside = beside.heeding(&Arc::default());
    let mut all = tables.iter();
    let done = all
        .try_for_each(|table| tables::check_absent(&mut beside, &table.quoted()))
        .and_then(|()| large_objects::unmake(&mut beside));
    if let Err(e) = done {
        session.warn(&format!(
            "{made} large objects were made, and stay: {e}. Where nothing names them vacuumlo removes them."
        ));
    }
}

fn report(
    source: &mut Server,
    running: &Running<'_>,
    (database, tables): (&str, &[Table]),
    notes: Vec<String>,
    file: Option<&Path>,
) -> Result<Report> {
    let counted = tables.iter().filter(|table| table.has_rows());
    let counted = counted.map(|table| {
        Ok(Rescued {
            table: table.shown(),
            new_name: None,
            rows: table.count(source)?,
            added_rows: None,
        })
    });
    Ok(Report {
        clone: running.state.clone(),
        database: database.to_owned(),
        tables: counted.collect::<Result<_>>()?,
        large_objects: Carried::default(),
        file: file.map(Path::to_owned),
        notes,
    })
}
