//! A private server into which a dump is restored to prove that it can be.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::err;
use crate::error::{Code, Error, Result};
use crate::logical::member::{DatabaseMember, LargeObjects};
use crate::logical::rows::TableRows;
use crate::logical::source::write_service;
use crate::logical::spool::Spool;
use crate::logical::tool::{self, Tool};
use crate::operate::playground::{Place, Playground};
use crate::operate::programs::Programs;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::wire::conninfo::{ConnInfo, Environment};
use crate::wire::service_file::in_database;

const PLACE: Place = Place {
    data: "data",
    port: 5503,
};
/// Nothing outlives the check, nothing is connected to, and nothing runs by itself.
const SETTINGS: &str = "fsync = off\nfull_page_writes = off\nwal_level = minimal\nmax_wal_senders = 0\narchive_mode = off\n\
    autovacuum = off\njit = off\nmax_logical_replication_workers = 0\nshared_preload_libraries = ''\nlogging_collector = off\n";
/// The database into which each dump is restored in turn.
const DATABASE: &str = "pitr_check";
/// The most findings of one dump that are listed.
const FINDINGS: usize = 100;

/// The server, and what reaches it.
pub struct Scratch {
    ground: Playground,
    info: ConnInfo,
    conninfo: String,
}

impl Scratch {
    /// Makes and starts the server.
    ///
    /// # Errors
    /// Those of [`Playground`].
    pub fn start(session: &Session, programs: Programs) -> Result<Scratch> {
        let mut ground = Playground::new(programs, &session.host.scratch, "check")?;
        ground.initdb(PLACE)?;
        let file = ground.path().join(PLACE.data).join("postgresql.conf");
        let appended = std::fs::OpenOptions::new().append(true).open(&file);
        appended
            .and_then(|mut file| file.write_all(SETTINGS.as_bytes()))
            .map_err(|e| Error::from_io(format!("write \"{}\"", file.display()), e))?;
        ground.start(PLACE)?;
        let (host, port) = (ground.path().display(), PLACE.port);
        let conninfo = format!("host={host} port={port} user=postgres");
        let info = ConnInfo::resolve(&conninfo, &Environment::of_process())?;
        Ok(Scratch {
            ground,
            info,
            conninfo,
        })
    }

    /// Creates the roles that the dumps name, without passwords and rights.
    ///
    /// # Errors
    /// Errors of the server and the system.
    pub fn create_roles(&self, globals: &Path) -> Result<()> {
        let text = std::fs::read_to_string(globals)
            .map_err(|e| Error::from_io(format!("read \"{}\"", globals.display()), e))?;
        let mut server = self.ground.connect(PLACE)?;
        for line in text.lines().filter(|line| creates_role(line)) {
            match server.query(line) {
                Err(e) if !e.to_string().contains("already exists") => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Restores a dump, and compares the rows of its tables with those of the dump's snapshot; returns what is wrong.
    ///
    /// # Errors
    /// Errors of the system and the server; `Interrupted`.
    pub fn check(
        &self,
        session: &Session,
        pg_restore: &Tool,
        (database, directory): (&DatabaseMember, &Path),
        rows: &[TableRows],
    ) -> Result<Vec<String>> {
        let mut server = self.ground.connect(PLACE)?;
        server.query(&format!("drop database if exists {DATABASE}"))?;
        server.query(&format!(
            "create database {DATABASE} template template0 encoding '{}' lc_collate 'C' lc_ctype 'C'",
            database.encoding.replace('\'', "''")
        ))?;
        let spool = Spool::new(&session.host.scratch)?;
        let service = write_service(&self.conninfo, &self.info, &spool)?;
        let mut command = pg_restore.command(Some(&service));
        command
            .args(["--exit-on-error", "--no-password", "--no-tablespaces"])
            .args(["--no-security-labels", "--no-subscriptions"])
            .arg(format!("--dbname={}", in_database(DATABASE)))
            .arg(directory);
        match tool::run(&mut command, &mut || session.host.check_stop()) {
            Err(e) if e.code() == Code::Server => return Ok(vec![refused(&e.to_string())]),
            other => other.map(|_| ())?,
        }
        let mut restored = Server::connect(&format!("{} dbname={DATABASE}", self.conninfo))?;
        let mut comparison = Comparison::new(&mut restored)?;
        for table in rows {
            session.host.check_stop()?;
            comparison.add(&mut restored, table)?;
        }
        if let Some(had) = database.large_objects {
            let found = LargeObjects::of(&restored.query(LargeObjects::QUERY)?)?;
            if found != had {
                comparison.find(format!("{found} were restored, the snapshot had {had}"));
            }
        }
        Ok(comparison.finish())
    }
}

/// Pure: a finding of what the server refused. The order and the classes of letters are those of locale C here, so a refused row or key may be whole.
fn refused(said: &str) -> String {
    let by_locale = [
        "violates check constraint",
        "violates partition constraint",
        "violates exclusion constraint",
        "could not create exclusion constraint",
        "is violated by some row",
        "violates unique constraint",
        "could not create unique index",
        "no partition of relation",
        "would overlap partition",
        "empty range bound",
    ];
    // A materialized view that reads foreign tables is filled by a query of another server.
    let by_network = ["could not connect to server \"", "user mapping not found"];
    let is_one = |of: &[&str]| of.iter().any(|words| said.contains(words));
    let reason = if is_one(&by_locale) {
        "the database of the check has locale C, and another locale of the dumped one may be the reason"
    } else if is_one(&by_network) {
        "the server of the check reaches no other one, and a materialized view reads foreign tables"
    } else {
        return said.to_owned();
    };
    format!("{said}; unproven: {reason}")
}

/// Whether a line of the globals is a whole statement that creates a role: a line of a comment may look like the beginning of one.
fn creates_role(line: &str) -> bool {
    let statement = line.strip_prefix("CREATE ROLE ");
    let Some(name) = statement.and_then(|rest| rest.strip_suffix(';')) else {
        return false;
    };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | 0x80..);
    let quoted = name
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    match quoted {
        Some(quoted) => !quoted.replace("\"\"", "").contains('"'),
        None => name.bytes().all(is_plain),
    }
}

/// Rows that were restored beside those of the dump's snapshot.
struct Comparison {
    /// The root of each partition into which rows are sorted by a hash. That of an enum differs from server to server, so only sums are compared.
    roots: BTreeMap<(String, String), String>,
    /// Rows of such a root: those that were restored, and those of the snapshot.
    sums: BTreeMap<String, (u64, u64)>,
    findings: Vec<String>,
}

impl Comparison {
    fn new(server: &mut Server) -> Result<Comparison> {
        let found = server.query(
            "select n.nspname, c.relname, pg_partition_root(c.oid)::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relispartition and exists (select from pg_partition_ancestors(c.oid) a join pg_partitioned_table p on p.partrelid = a.relid where p.partstrat = 'h')",
        )?;
        let root = |row| {
            let table = (found.value(row, 0)?, found.value(row, 1)?);
            Ok((table, found.value(row, 2)?))
        };
        Ok(Comparison {
            roots: (0..found.rows.len()).map(root).collect::<Result<_>>()?,
            sums: BTreeMap::new(),
            findings: Vec::new(),
        })
    }

    /// Counts a table. The server's word about it is a finding; a lost server is none.
    fn add(&mut self, server: &mut Server, table: &TableRows) -> Result<()> {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let name = format!("{}.{}", quoted(&table.schema), quoted(&table.table));
        let counted = server.query(&format!("select count(*) from only {name}"));
        let rows = match counted.and_then(|rows| rows.value::<u64>(0, 0)) {
            Err(e) if e.code() == Code::Server => {
                self.find(format!("table {name}: {e}"));
                return Ok(());
            }
            counted => counted?,
        };
        let of = (table.schema.clone(), table.table.clone());
        match self.roots.get(&of) {
            Some(root) => {
                let sums = self.sums.entry(root.clone()).or_default();
                *sums = (sums.0 + rows, sums.1 + table.rows);
            }
            None if rows != table.rows => self.find(format!(
                "table {name}: {rows} rows were restored, its snapshot had {}",
                table.rows
            )),
            None => {}
        }
        Ok(())
    }

    fn find(&mut self, wrong: String) {
        if self.findings.len() < FINDINGS {
            self.findings.push(wrong);
        }
    }

    fn finish(mut self) -> Vec<String> {
        for (root, (rows, had)) in std::mem::take(&mut self.sums) {
            if rows != had {
                self.find(format!(
                    "partitions of {root}: {rows} rows were restored, their snapshot had {had}"
                ));
            }
        }
        self.findings
    }
}

/// Finds the programs of a server that can hold a dump.
///
/// # Errors
/// `NotFound`.
pub fn programs(session: &Session, least: &Tool, bin: Option<&Path>) -> Result<Programs> {
    let path = session.environment.get("PATH");
    let found = Programs::at_least(least.major, bin, path);
    found.ok_or_else(|| {
        err!(
            NotFound,
            "no PostgreSQL server of {} or newer was found for the restore",
            least.major
        )
        .hint("Nothing was done. Install PostgreSQL's server, name the folder of its programs with --bin DIR, or check with --read.")
    })
}

#[cfg(test)]
mod tests {
    use super::{creates_role, refused};

    #[test]
    fn u112_what_the_locale_of_the_check_may_cause_is_unproven() {
        let said =
            "pg_restore failed: ERROR:  new row for relation \"p\" violates partition constraint";
        assert!(refused(said).contains("unproven") && refused(said).contains("locale C"));
        for said in [
            "pg_restore failed: ERROR:  could not create exclusion constraint \"spans\"",
            "pg_restore failed: ERROR:  check constraint \"low\" of relation \"t\" is violated by some row",
        ] {
            assert!(refused(said).contains("locale C"), "{said}");
        }
        let said = "pg_restore failed: ERROR:  could not connect to server \"far\"";
        assert!(refused(said).contains("unproven") && refused(said).contains("foreign tables"));
        let said = "pg_restore failed: ERROR:  invalid input syntax for type integer";
        assert_eq!(refused(said), said);
    }

    #[test]
    fn statements_that_create_roles_are_told_from_others() {
        for line in ["CREATE ROLE app;", "CREATE ROLE \"a \"\"b\"\"; c\";"] {
            assert!(creates_role(line), "{line}");
        }
        for line in [
            "CREATE ROLE x; COPY t TO PROGRAM 'id';",
            "CREATE ROLE \"x\"; COPY t TO PROGRAM \"id\";",
            "CREATE ROLE x",
            "ALTER ROLE x;",
        ] {
            assert!(!creates_role(line), "{line}");
        }
    }
}
