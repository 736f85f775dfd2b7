//! The member `logical` of a root (format, section 16.4).

use serde::{Deserialize, Serialize};

use crate::config::LogicalContent;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::wire::client::Rows;

/// The facts of a backup of dumps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The server's `server_version`.
    pub server_version: String,
    /// The server's major.
    pub server_major: u32,
    /// The version of `pg_dump`.
    pub pg_dump_version: String,
    /// The major of `pg_dump`, on which the archives' format depends.
    pub pg_dump_major: u32,
    /// Whether the server was a standby.
    pub from_standby: bool,
    /// The parts of each database that were dumped.
    pub content: LogicalContent,
    /// The size of `globals.sql`.
    pub globals_bytes: u64,
    /// Whether `globals.sql` has the roles' password hashes.
    pub role_passwords: bool,
    /// The checks that passed before the root was written: `read`.
    pub checks: Vec<String>,
    /// The databases, in the order in which they were dumped.
    pub databases: Vec<DatabaseMember>,
}

/// The dump of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseMember {
    pub name: String,
    /// Its OID, which names the directory of its dump.
    pub oid: u32,
    /// Its encoding, as PostgreSQL names it.
    pub encoding: String,
    /// `pg_current_snapshot()` of the dump: `xmin:xmax:xip`.
    pub snapshot: String,
    /// The server's position just before the snapshot.
    pub start_lsn: Lsn,
    /// The server's position just after the snapshot.
    pub stop_lsn: Lsn,
    /// Bytes of the dump.
    pub size_bytes: u64,
    /// Tables whose rows were counted.
    pub table_count: u64,
    /// Their rows, in the snapshot.
    pub row_count: u64,
    /// Large objects, in the snapshot; none of dumps without data, and of programs that did not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<LargeObjects>,
}

/// The large objects of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjects {
    /// How many there are.
    pub count: u64,
    /// Their bytes, holes included.
    pub bytes: u64,
}

impl LargeObjects {
    /// Counts all that a session sees. Each is closed before the next is opened.
    pub const QUERY: &'static str = "select count(*), coalesce(sum(size), 0) from (select size, lo_close(fd) as closed from \
        (select fd, lo_lseek64(fd, 0, 2) as size from (select lo_open(oid, 262144) as fd from pg_largeobject_metadata offset 0) o \
        offset 0) s offset 0) c where closed = 0";

    /// Reads the row of [`QUERY`](Self::QUERY).
    ///
    /// # Errors
    /// Those of the row.
    pub fn of(rows: &Rows) -> Result<LargeObjects> {
        Ok(LargeObjects {
            count: rows.value(0, 0)?,
            bytes: rows.value(0, 1)?,
        })
    }
}

impl std::fmt::Display for LargeObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} large objects with {} bytes", self.count, self.bytes)
    }
}

impl Member {
    /// Reads a member.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn read(value: &serde_json::Value) -> Result<Member> {
        serde_json::from_value(value.clone())
            .map_err(|e| err!(Damaged, "the member \"logical\" cannot be read").source(e))
    }

    /// Finds the database that is meant: the one of this name, or the only one.
    ///
    /// # Errors
    /// `NotFound`; `Usage` when several could be meant.
    pub fn database(&self, name: Option<&str>) -> Result<&DatabaseMember> {
        let known = || -> String {
            let names: Vec<&str> = self.databases.iter().map(|d| d.name.as_str()).collect();
            names.join(", ")
        };
        let Some(name) = name else {
            return match self.databases.as_slice() {
                [only] => Ok(only),
                _ => Err(
                    err!(Usage, "the backup has several databases and none is named")
                        .hint(format!("Add --database NAME. Known: {}", known())),
                ),
            };
        };
        self.databases
            .iter()
            .find(|d| d.name == name)
            .ok_or_else(|| {
                err!(NotFound, "the backup has no database \"{name}\"")
                    .hint(format!("Known: {}", known()))
            })
    }
}

impl DatabaseMember {
    /// Returns the name of the directory of its dump.
    pub fn directory(&self) -> String {
        self.oid.to_string()
    }

    /// Returns the name of the file with the rows of its tables.
    pub fn rows_file(&self) -> String {
        format!("{}.rows.json", self.oid)
    }
}
