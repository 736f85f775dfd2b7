//! A set of files that is backed up beside clusters.

use std::path::PathBuf;

use super::Period;

/// A directory with what is in it, under one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Its name, which is part of object keys.
    pub name: String,
    /// The directory, absolute.
    pub source: PathBuf,
    /// Patterns of paths that are left out, in the syntax of gitignore; a later one goes before an earlier one.
    pub exclude: Vec<String>,
    /// A directory that has a file of one of these names is left out but for itself.
    pub exclude_if_present: Vec<String>,
    /// Directories that a `CACHEDIR.TAG` marks are left out but for themselves.
    pub exclude_caches: bool,
    /// Files of more bytes are left out.
    pub exclude_larger_than_bytes: Option<u64>,
    /// Other filesystems that are mounted below are left out but for their mount points.
    pub one_file_system: bool,
    /// The identity of the source; else the host's machine id.
    pub identity: Option<String>,
    /// How old the newest backup may become before that is reported.
    pub max_backup_age: Option<Period>,
}
