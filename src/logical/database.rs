//! The dump of one database, in a snapshot that a session of this process holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::member::{DatabaseMember, LargeObjects};
use super::read_check::Dump;
use super::rows::{self, TableRows};
use super::source::{Database, Source, SqlSession, size_of};
use super::tool::{self, Tick, Tool};
use crate::config::LogicalContent;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::progress::Progress;
use crate::wire::service_file::in_database;

/// How long a dump waits for a lock: longer, everybody behind it would wait, too.
const LOCK_WAIT: &str = "10s";

/// The tables whose data is dumped. Those of extensions come with them, and an unlogged table has no content on a standby.
const TABLES: &str = "from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where c.relkind = 'r' and c.relpersistence <> 't' and (c.relpersistence <> 'u' or not pg_is_in_recovery()) \
    and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' \
    and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')";

/// Tables that one statement locks.
const LOCKED_AT_ONCE: usize = 500;
/// How often the operator is heard while a session is opened.
const TICK: Duration = Duration::from_millis(50);

/// How a dump is made.
pub struct Making<'a> {
    /// The server.
    pub source: &'a Source,
    /// `pg_dump`.
    pub pg_dump: &'a Tool,
    /// `pg_restore` of the same major, which reads what was written.
    pub pg_restore: &'a Tool,
    /// The service file.
    pub service: &'a Path,
    /// Connections of the dump.
    pub jobs: u32,
    /// Parts of the database that are dumped.
    pub content: LogicalContent,
    /// Hears notices of the server.
    pub progress: &'a Arc<dyn Progress>,
}

/// The session that holds a snapshot, and what identifies that.
struct Held {
    session: SqlSession,
    exported: String,
    snapshot: String,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    is_standby: bool,
}

impl Held {
    fn open(making: &Making<'_>, name: &str, stop: &Arc<AtomicBool>) -> Result<Held> {
        let info = making.source.info_of(name);
        let mut session = SqlSession::connect(&info, making.progress, stop)?;
        let is_standby = making.source.is_standby;
        // Names are looked up in the catalog alone. Rows that row security hides would be missing in silence: it is an error instead.
        session.query(
            "set search_path = pg_catalog; set row_security = off; set statement_timeout = 0; set lock_timeout = '10s'; \
             set idle_in_transaction_session_timeout = 0; set client_min_messages = warning",
        )?;
        let version = session.session().version_num();
        if version >= 170_000 {
            session.query("set transaction_timeout = 0")?;
        }
        if version >= 140_000 {
            // A count that nobody waits for any more ends by itself.
            session.query("set client_connection_check_interval = '10s'")?;
        }
        // Servers that know the setting read nothing but tables, whatever a name leads to by then (CVE-2024-7348).
        session.query(
            "select set_config(name, 'view, foreign-table', false) from pg_settings where name = 'restrict_nonsystem_relation_kind'; \
             set tcp_keepalives_idle = 60; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 6",
        )?;
        let start_lsn = position(&mut session, is_standby)?;
        session.query("begin isolation level repeatable read read only")?;
        let rows = session.query("select pg_export_snapshot(), pg_current_snapshot()")?;
        let (exported, snapshot) = (rows.value(0, 0)?, rows.value(0, 1)?);
        let stop_lsn = position(&mut session, is_standby)?;
        Ok(Held {
            session,
            exported,
            snapshot,
            start_lsn,
            stop_lsn,
            is_standby,
        })
    }

    /// Lists the tables whose data is dumped, and locks them as `pg_dump` does: nobody exchanges or empties one before its rows are counted.
    fn lock(&mut self) -> Result<Vec<(TableRows, String)>> {
        let tables = self.session.query(&format!(
            "select c.oid, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname) {TABLES} order by n.nspname, c.relname"
        ));
        let tables = tables.map_err(|e| self.explained(e))?;
        let mut all = Vec::new();
        for row in 0..tables.rows.len() {
            let table = TableRows {
                oid: tables.value(row, 0)?,
                schema: tables.value(row, 1)?,
                table: tables.value(row, 2)?,
                rows: 0,
            };
            all.push((table, tables.value::<String>(row, 3)?));
        }
        for some in all.chunks(LOCKED_AT_ONCE) {
            let names: Vec<&str> = some.iter().map(|(_, name)| name.as_str()).collect();
            let names = names.join(", only ");
            self.session
                .query(&format!("lock table only {names} in access share mode"))?;
        }
        for (table, name) in &all {
            self.check_same(table, name)?;
        }
        Ok(all)
    }

    /// Names the table whose name is not UTF-8, where that was it. The transaction has ended then.
    fn explained(&mut self, e: Error) -> Error {
        let _ = self.session.query("rollback");
        let names = format!(
            "select c.oid, encode(textsend(n.nspname || '.' || c.relname), 'hex') {TABLES} order by 1"
        );
        match self.session.name_not_utf8(&e, &names) {
            Some(name) => err!(Server, "the name of table {name} is not UTF-8").source(e).hint(
                "Nothing was stored. Rename the table or its schema, or leave the database out of [logical.NAME]; pitr backup has it all the same.",
            ),
            None => e,
        }
    }

    /// Requires that a name, now that it is locked, leads to the table that the snapshot has. These functions read the catalog as it is, not as the
    /// snapshot has it; a view has no file.
    fn check_same(&mut self, table: &TableRows, name: &str) -> Result<()> {
        let literal = name.replace('\'', "''");
        let found = self.session.query(&format!(
            "select to_regclass('{literal}')::oid = {} and pg_relation_filenode(to_regclass('{literal}')) is not null",
            table.oid
        ))?;
        match found.text(0, 0)? {
            Some("t") => Ok(()),
            _ => Err(
                err!(Server, "table {name} was replaced while the dump began")
                    .hint("Nothing was stored. Take the backup again."),
            ),
        }
    }

    /// Counts the rows of tables. The locks of indexes, which a count takes, too, are given back after each.
    fn count(&mut self, tables: Vec<(TableRows, String)>) -> Result<Vec<TableRows>> {
        let mut all = Vec::with_capacity(tables.len());
        for (table, name) in tables {
            let counted = self.session.query(&format!(
                "savepoint counted; select count(*) from only {name}; rollback to savepoint counted; release savepoint counted"
            ))?;
            let rows = counted.value(0, 0)?;
            all.push(TableRows { rows, ..table });
        }
        Ok(all)
    }

    /// Counts the large objects that the snapshot has.
    fn count_large_objects(&mut self) -> Result<LargeObjects> {
        let rows = self.session.query(LargeObjects::QUERY)?;
        LargeObjects::of(&rows)
    }

    /// Requires that the session still holds the snapshot.
    fn end(mut self) -> Result<()> {
        position(&mut self.session, self.is_standby)?;
        self.session.query("commit").map(|_| ())
    }
}

/// The position that the server has reached.
fn position(session: &mut SqlSession, is_standby: bool) -> Result<Lsn> {
    let function = match is_standby {
        true => "pg_last_wal_replay_lsn",
        false => "pg_current_wal_insert_lsn",
    };
    let rows = session.query(&format!("select pg_catalog.{function}()"))?;
    rows.value(0, 0)
}

impl Making<'_> {
    /// Dumps a database into `below`, and requires that the dump can be read and has every row of its snapshot.
    ///
    /// # Errors
    /// `Server` and others of `pg_dump`, `Unreachable` when the session is lost, `Damaged` when the dump is not whole; those of `tick`.
    pub fn dump(
        &self,
        database: &Database,
        below: &Path,
        scratch: &Path,
        tick: Tick<'_>,
    ) -> Result<DatabaseMember> {
        let doing = |e: Error| e.context(format!("dump database \"{}\"", database.name));
        let directory = below.join(database.oid.to_string());
        let stop = Arc::new(AtomicBool::new(false));
        let (mut held, tables) = self.open(database, &stop, tick).map_err(doing)?;
        let (rows, large_objects) = self
            .run((&mut held, tables), database, &directory, (&stop, tick))
            .map_err(doing)?;
        let (snapshot, start_lsn, stop_lsn) =
            (held.snapshot.clone(), held.start_lsn, held.stop_lsn);
        held.end().map_err(doing)?;
        let dump = Dump {
            directory: directory.clone(),
            content: self.content,
            rows: &rows,
            large_objects,
        };
        let findings = dump.check_read(self.pg_restore, scratch, tick)?;
        if let Some(first) = findings.first() {
            return Err(err!(
                Damaged,
                "the dump of database \"{}\" is not whole: {first}",
                database.name
            )
            .hint("Nothing was stored. Check the disk below TMPDIR, then take the backup again."));
        }
        let member = DatabaseMember {
            name: database.name.clone(),
            oid: database.oid,
            encoding: database.encoding.clone(),
            snapshot,
            start_lsn,
            stop_lsn,
            size_bytes: size_below(&directory)?,
            table_count: rows.len() as u64,
            row_count: rows.iter().map(|t| t.rows).sum(),
            large_objects,
        };
        let file = below.join(member.rows_file());
        super::spool::write(&file, &rows::write(&rows)?)?;
        Ok(member)
    }

    /// Opens the session that holds the snapshot, and locks the tables. A server that does not answer does not keep the operator from stopping.
    fn open(
        &self,
        database: &Database,
        stop: &Arc<AtomicBool>,
        tick: Tick<'_>,
    ) -> Result<(Held, Vec<(TableRows, String)>)> {
        std::thread::scope(|threads| {
            let opening = threads.spawn(|| {
                let mut held = Held::open(self, &database.name, stop)?;
                let tables = match self.content {
                    LogicalContent::Schema => Vec::new(),
                    LogicalContent::Full | LogicalContent::Data => held.lock()?,
                };
                Ok((held, tables))
            });
            let mut ticked = Ok(());
            while !opening.is_finished() {
                if ticked.is_ok() {
                    ticked = tick();
                    stop.store(ticked.is_err(), Ordering::Relaxed);
                }
                std::thread::sleep(TICK);
            }
            let panicked = |_| Err(err!(Internal, "a thread that opens a session panicked"));
            let opened = opening.join().unwrap_or_else(panicked);
            ticked.and(opened)
        })
    }

    /// Runs `pg_dump`, and counts rows and large objects meanwhile in the session that holds the snapshot.
    fn run(
        &self,
        (held, tables): (&mut Held, Vec<(TableRows, String)>),
        database: &Database,
        directory: &Path,
        (stop, tick): (&Arc<AtomicBool>, Tick<'_>),
    ) -> Result<(Vec<TableRows>, Option<LargeObjects>)> {
        let mut command = self.pg_dump.command(Some(self.service));
        command
            .args(["-Fd", "-Z0", "--no-password", "--no-sync"])
            .arg(format!("--lock-wait-timeout={LOCK_WAIT}"))
            .arg(format!("--snapshot={}", held.exported))
            .arg(format!("--jobs={}", self.jobs))
            .args(match self.content {
                LogicalContent::Full => None,
                LogicalContent::Schema => Some("--schema-only"),
                LogicalContent::Data => Some("--data-only"),
            })
            .arg("-f")
            .arg(directory)
            .arg(format!("--dbname={}", in_database(&database.name)));
        let has_failed = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let counting = threads.spawn(|| {
                let counted = held.count(tables).and_then(|rows| {
                    let large_objects = match self.content {
                        LogicalContent::Schema => None,
                        LogicalContent::Full | LogicalContent::Data => {
                            Some(held.count_large_objects()?)
                        }
                    };
                    Ok((rows, large_objects))
                });
                has_failed.store(counted.is_err(), Ordering::Relaxed);
                counted
            });
            let dumped = tool::run(
                &mut command,
                &mut || match has_failed.load(Ordering::Relaxed) {
                    true => Err(err!(Interrupted, "the rows could not be counted")),
                    false => tick(),
                },
            );
            let dumped = dumped.and_then(|warnings| {
                warnings.iter().for_each(|line| self.progress.warn(line));
                while !counting.is_finished() {
                    tick()?;
                    std::thread::sleep(TICK);
                }
                Ok(())
            });
            stop.store(dumped.is_err(), Ordering::Relaxed);
            let counted = counting
                .join()
                .unwrap_or_else(|_| Err(err!(Internal, "a thread that counts rows panicked")));
            match (dumped, counted) {
                (Ok(()), counted) => counted,
                // The dump was given up for the sake of the count.
                (Err(_), Err(e)) if e.code() != Code::Interrupted => Err(e),
                (Err(e), _) => Err(e),
            }
        })
    }
}

fn size_below(directory: &Path) -> Result<u64> {
    let failed = |e| Error::from_io(format!("read \"{}\"", directory.display()), e);
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()
        .map_err(failed)?;
    paths.iter().map(|path| size_of(path)).sum()
}
