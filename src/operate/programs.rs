//! The programs of PostgreSQL on this host.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::err;
use crate::error::Result;
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
        let in_path: Vec<PathBuf> = search_path
            .map(|path| std::env::split_paths(path).collect())
            .unwrap_or_default();
        let of_major = Major::ALL.into_iter().rev().flat_map(|major| {
            let debian = format!("/usr/lib/postgresql/{major}/bin");
            [debian, format!("/usr/pgsql-{major}/bin")].map(PathBuf::from)
        });
        in_path
            .into_iter()
            .chain(of_major)
            .find_map(|folder| Programs::in_folder(&folder))
            .ok_or_else(|| {
                none("no PostgreSQL server was found in the search path, /usr/lib/postgresql and /usr/pgsql-*".into())
            })
    }

    fn in_folder(folder: &Path) -> Option<Programs> {
        if !NEEDED.iter().all(|name| folder.join(name).is_file()) {
            return None;
        }
        let output = Command::new(folder.join("initdb"))
            .arg("--version")
            .output();
        let text = String::from_utf8(output.ok()?.stdout).ok()?;
        let version = text.split_whitespace().nth(2)?;
        let number: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(Programs {
            folder: folder.to_owned(),
            major: Major::from_number(number.parse().ok()?).ok()?,
            version: version.to_owned(),
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
