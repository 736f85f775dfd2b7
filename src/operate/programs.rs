//! The programs of PostgreSQL on this host.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::err;
use crate::error::Result;
use crate::logical::tool;
use crate::pg::version::Major;

/// The folder with initdb, pg_ctl and postgres of one major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The folder.
    pub folder: PathBuf,
    /// The major.
    pub major: Major,
    /// The version as `initdb --version` has it, say `17.11`.
    pub version: String,
}

/// The programs that a private server needs.
const NEEDED: [&str; 3] = ["initdb", "pg_ctl", "postgres"];

impl Programs {
    /// Finds those in the folder given; else those in the search path, and where distributions put them: the newest major that is supported.
    ///
    /// # Errors
    /// `NotFound` where there are none.
    pub fn find(given: Option<&Path>, search_path: Option<&OsStr>) -> Result<Programs> {
        if let Some(folder) = given {
            return Programs::in_folder(folder).ok_or_else(|| {
                none(format!(
                    "\"{}\" has no initdb, pg_ctl and postgres of PostgreSQL 13 to {}",
                    folder.display(),
                    Major::NEWEST
                ))
            });
        }
        tool::folders(None, search_path)
            .iter()
            .find_map(|folder| Programs::in_folder(folder))
            .ok_or_else(|| {
                none("no PostgreSQL server was found in the search path, /usr/lib/postgresql and /usr/pgsql-*".into())
            })
    }

    /// Finds those of the lowest major that is at least `least`, in the folder given or in the places of [`Programs::find`].
    pub fn at_least(
        least: Major,
        given: Option<&Path>,
        search_path: Option<&OsStr>,
    ) -> Option<Programs> {
        let folders = tool::folders(given, search_path);
        let found = folders.iter().filter_map(|f| Programs::in_folder(f));
        found.filter(|p| p.major >= least).min_by_key(|p| p.major)
    }

    /// Finds those of exactly this major, likewise.
    pub fn of(major: Major, given: Option<&Path>, search_path: Option<&OsStr>) -> Option<Programs> {
        let folders = tool::folders(given, search_path);
        let mut found = folders.iter().filter_map(|f| Programs::in_folder(f));
        found.find(|p| p.major == major)
    }

    fn in_folder(folder: &Path) -> Option<Programs> {
        if !NEEDED.iter().all(|name| folder.join(name).is_file()) {
            return None;
        }
        let (major, version) = tool::version_of(&folder.join("initdb"))?;
        Some(Programs {
            folder: folder.to_owned(),
            major,
            version,
        })
    }

    /// One of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn none(what: String) -> crate::error::Error {
    err!(NotFound, "{what}").hint("Nothing was done. Install a PostgreSQL server, or name the folder of its programs: --bin DIR")
}
