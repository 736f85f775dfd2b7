//! A finding, as a value.

use serde::Serialize;

use crate::pg::catalog::ClassRow;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A table or materialized view was dropped.
    Drop,
    /// A table was truncated.
    Truncate,
    /// Rows were deleted.
    Delete,
    /// Rows were updated.
    Update,
    /// A table was written anew: VACUUM FULL, CLUSTER, ALTER TABLE, REFRESH MATERIALIZED VIEW.
    Rewrite,
    /// A database was dropped.
    Database,
    /// A tablespace was dropped.
    Tablespace,
    /// The file of a relation was removed, and WAL does not tell why.
    Unclear,
}

impl Kind {
    /// Those that may be asked for.
    pub const ALL: [Kind; 7] = [
        Kind::Drop,
        Kind::Truncate,
        Kind::Delete,
        Kind::Update,
        Kind::Rewrite,
        Kind::Database,
        Kind::Tablespace,
    ];

    /// As it is shown and asked for.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Drop => "drop",
            Kind::Truncate => "truncate",
            Kind::Delete => "delete",
            Kind::Update => "update",
            Kind::Rewrite => "rewrite",
            Kind::Database => "database",
            Kind::Tablespace => "tablespace",
            Kind::Unclear => "unclear",
        }
    }

    /// Whether finding it takes the rows of every segment: indexes do not tell.
    pub fn needs_rows(self) -> bool {
        matches!(self, Kind::Delete | Kind::Update)
    }
}

/// Something with an oid, and its name where that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Named {
    pub oid: u32,
    pub name: Option<String>,
}

/// A relation, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Relation {
    pub oid: Option<u32>,
    /// Number of the file that it had before; none where it had none.
    pub file: Option<u32>,
    /// Oid of the tablespace of that file, where it is known.
    pub tablespace: Option<u32>,
    /// Schema at that time.
    pub schema: Option<String>,
    /// Name at that time.
    pub name: Option<String>,
    /// Schema and name that it has later, where they differ.
    pub name_now: Option<String>,
    /// `relkind` of pg_class: `r`, `p`, `m`.
    pub kind: Option<char>,
    /// `relpersistence` of pg_class: a table that is `u` (unlogged) comes back empty.
    pub persistence: Option<char>,
    /// Oid of the schema.
    #[serde(skip)]
    pub namespace: u32,
    /// Whether it may have had other names than lists and servers of other moments give it.
    #[serde(skip)]
    pub is_unsure: bool,
}

impl Relation {
    /// Whether its schema and name are known.
    pub fn is_named(&self) -> bool {
        self.schema.is_some() && self.name.is_some()
    }
}

impl Relation {
    /// Takes oid, name and kind of a row; the schema is known by its oid alone.
    pub fn take(&mut self, row: &ClassRow) {
        self.oid = Some(row.oid);
        self.name = Some(row.name.clone());
        self.kind = Some(char::from(row.kind));
        self.persistence = Some(char::from(row.persistence));
        (self.namespace, self.schema) = (row.namespace, None);
    }

    /// Schema and name, as far as they are known.
    pub fn full_name(&self) -> Option<String> {
        let name = self.name.as_ref()?;
        Some(match &self.schema {
            Some(schema) => format!("{schema}.{name}"),
            None => name.clone(),
        })
    }
}

/// A commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Commit {
    /// Its transaction.
    pub xid: u32,
    /// Start of its record.
    pub lsn: Lsn,
    /// Its time, by the server's clock.
    pub time: TimestampTz,
}

/// Something that happened to data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    pub kind: Kind,
    /// When it was committed, by the server's clock; none where no commit of it is archived.
    pub time: Option<TimestampTz>,
    /// The transaction.
    pub xid: u32,
    /// Subtransactions that did it, where it was not the transaction itself.
    pub subxids: Vec<u32>,
    /// Name of a prepared transaction: it is still prepared at the target.
    pub gid: Option<String>,
    pub database: Option<Named>,
    pub relation: Option<Relation>,
    /// The tablespace that was dropped.
    pub tablespace: Option<Named>,
    /// Rows that were deleted or updated.
    pub rows: Option<u64>,
    /// Start of the commit record.
    pub commit_lsn: Option<Lsn>,
    /// Start of the first record of it.
    pub first_lsn: Lsn,
    /// Recovery must stop before the record that begins here.
    pub target_lsn: Lsn,
    /// The last commit before the target: everything was whole then.
    pub last_commit: Option<Commit>,
}
