//! The programs of PostgreSQL on this host.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::err;
use crate::error::Result;
use crate::logical::tool::{self, Tool};
use crate::pg::version::Major;

/// The folder with initdb, pg_ctl and postgres of one major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub folder: PathBuf,
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

    /// Finds a client program of this major: beside them, else in the search path and where distributions put it.
    ///
    /// # Errors
    /// `NotFound` where none is of this major.
    pub fn client(&self, name: &str, search_path: Option<&OsStr>) -> Result<Tool> {
        let beside = std::iter::once(self.folder.clone());
        let mut places = beside
            .chain(tool::folders(None, search_path))
            .map(|f| f.join(name));
        places
            .find_map(|path| {
                let (major, version) = path.is_file().then(|| tool::version_of(&path))??;
                (major == self.major).then_some(Tool { path, major, version })
            })
            .ok_or_else(|| {
                let beside = self.program(name);
                err!(
                    NotFound,
                    "there is no {name} of PostgreSQL {}: neither \"{}\" nor one in the search path",
                    self.major,
                    beside.display()
                )
                .hint("Nothing was done. Install the client programs of that PostgreSQL: beside the server's, or in the search path. Rows alone need none: pitr rescue --as NAME")
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_client_of_the_same_major_is_found_in_the_search_path() {
        let host = tempfile::tempdir().unwrap();
        let put = |folder: &str, name: &str, version: &str| {
            let folder = host.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let script = format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n");
            std::fs::write(folder.join(name), script).unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder.join(name), mode).unwrap();
            folder
        };
        let programs = Programs {
            folder: host.path().join("server"),
            major: Major::from_number(17).unwrap(),
            version: "17.5".into(),
        };
        let search_path = |folders: &[&Path]| std::env::join_paths(folders).unwrap();
        let (newer, same) = (put("a", "pg_dump", "18.1"), put("b", "pg_dump", "17.2"));
        let path = search_path(&[&newer, &same]);
        let tool = programs.client("pg_dump", Some(&path)).unwrap();
        assert_eq!(tool.path, same.join("pg_dump"));
        assert_eq!(tool.version, "17.2");
        put("server", "pg_dump", "17.5");
        let beside = programs.client("pg_dump", Some(&path)).unwrap();
        assert_eq!(beside.version, "17.5");
        let none = programs.client("pg_restored", Some(&search_path(&[&newer])));
        let error = none.unwrap_err().to_string();
        assert!(error.contains("no pg_restored of PostgreSQL 17"));
    }
}
