//! `[logical.NAME]`: dumps of a cluster's databases.

use super::Period;

/// One set of dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical {
    /// Its name in configuration and repository.
    pub name: String,
    /// Name of the configured cluster whose databases are dumped.
    pub cluster: Option<String>,
    /// Databases that are dumped; none: every one that takes connections, but `template0`.
    pub databases: Vec<String>,
    /// Connections that each dump uses.
    pub jobs: u32,
    /// Parts of each database that are dumped.
    pub content: LogicalContent,
    /// How old the newest backup may become before that is reported.
    pub max_backup_age: Option<Period>,
}

/// The parts of a database that a dump has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogicalContent {
    /// Definitions and data.
    #[default]
    Full,
    /// Definitions alone.
    Schema,
    /// Data alone.
    Data,
}

/// Connections of a dump where none are configured.
pub(super) const JOBS: u32 = 2;
/// More connections than this would be the server's load, and not the dump's speed.
pub(super) const JOBS_MAX: u32 = 64;

impl Logical {
    /// A set of which nothing but the name is known.
    pub(super) fn named(name: String) -> Logical {
        Logical {
            name,
            cluster: None,
            databases: Vec::new(),
            jobs: JOBS,
            content: LogicalContent::default(),
            max_backup_age: None,
        }
    }
}
