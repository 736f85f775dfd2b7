//! `[config.NAME]`: configuration files of a host.

use super::Period;

/// The path that stands for PostgreSQL's configuration, pitr's own, crontabs and units.
pub const DEFAULT: &str = "default";

/// One set of configuration files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigSet {
    /// Its name, which is part of object keys.
    pub name: String,
    /// Absolute paths, in which `*` stands for a part of a name; a directory with all in it; or [`DEFAULT`].
    pub paths: Vec<String>,
    /// Patterns of absolute paths that are left out.
    pub exclude: Vec<String>,
    /// Patterns of keys whose values are secrets.
    pub secret: Vec<String>,
    /// Patterns of keys whose values are none.
    pub plain: Vec<String>,
    /// The cluster whose configuration belongs to the default; else the only one.
    pub cluster: Option<String>,
    /// The identity of the source; else the host's machine id.
    pub identity: Option<String>,
    /// How old the newest backup may become before that is reported.
    pub max_backup_age: Option<Period>,
}

impl ConfigSet {
    /// A set of which nothing but the name is known.
    pub(super) fn named(name: String) -> ConfigSet {
        ConfigSet {
            name,
            paths: vec![DEFAULT.to_owned()],
            ..ConfigSet::default()
        }
    }
}
