//! The clusters of this host: running servers, and data directories where distributions put them.
//!
//! A cluster is offered only to its own user. The content of another user's directory decides nothing: no link is
//! followed there, and no program in it is run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::owner::User;
use crate::archive::datadir::{DataDirectory, read_small};
use crate::archive::pid_file::PidFile;

/// A cluster of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its data directory.
    pub pgdata: PathBuf,
    /// The text of PG_VERSION.
    pub major: String,
    /// Whether its server runs.
    pub is_running: bool,
}

/// The clusters that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clusters {
    /// Those of this user, by data directory.
    pub own: Vec<Candidate>,
    /// Data directories of other users, with the user's name.
    pub foreign: Vec<(PathBuf, String)>,
}

impl Clusters {
    /// Looks in `given` (say `$PGDATA`), at the running servers, and in the places of distributions.
    pub fn find(given: Option<PathBuf>) -> Clusters {
        let places = given
            .into_iter()
            .chain(running("/proc".as_ref()))
            .chain(of_distributions("".as_ref()));
        Clusters::among(places, rustix::process::geteuid().as_raw())
    }

    /// Returns the system identifiers of the clusters of this host, by data directory, as far as they can be read.
    pub fn identified() -> Vec<(PathBuf, u64)> {
        let found = Clusters::find(None);
        let own = found.own.into_iter().map(|c| c.pgdata);
        let all = own.chain(found.foreign.into_iter().map(|(pgdata, _)| pgdata));
        let identified = all.filter_map(|pgdata| {
            let control = DataDirectory::at(&pgdata).control_head().ok()??;
            Some((pgdata, control.system_identifier))
        });
        identified.collect()
    }

    fn among(places: impl Iterator<Item = PathBuf>, uid: u32) -> Clusters {
        let (mut own, mut foreign) = (BTreeMap::new(), BTreeMap::new());
        for place in places {
            let Ok(pgdata) = fs::canonicalize(&place) else {
                continue;
            };
            match fs::metadata(&pgdata) {
                Ok(metadata) if metadata.uid() == uid => {
                    if let Some(candidate) = candidate(&pgdata) {
                        own.insert(pgdata, candidate);
                    }
                }
                Ok(metadata) if metadata.is_dir() => {
                    let owner = User::owner_of(&pgdata).map(|user| user.name());
                    foreign.insert(pgdata, owner.unwrap_or_default());
                }
                _ => {}
            }
        }
        Clusters {
            own: own.into_values().collect(),
            foreign: foreign.into_iter().collect(),
        }
    }
}

fn candidate(pgdata: &Path) -> Option<Candidate> {
    let version = pgdata.join("PG_VERSION");
    fs::symlink_metadata(&version)
        .ok()
        .filter(fs::Metadata::is_file)?;
    Some(Candidate {
        major: read_small(&version).ok()?.trim().to_owned(),
        is_running: PidFile::read(pgdata).is_ok_and(|file| {
            file.pid
                .is_some_and(|pid| is_postgres("/proc".as_ref(), pid))
        }),
        pgdata: pgdata.to_owned(),
    })
}

fn is_postgres(proc: &Path, pid: i32) -> bool {
    let name = fs::read_to_string(proc.join(pid.to_string()).join("comm"));
    name.is_ok_and(|name| name.trim() == "postgres")
}

/// The working directories of postmasters: their data directories. PostgreSQL: src/backend/utils/init/miscinit.c, `ChangeToDataDir`.
fn running(proc: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            if !is_postgres(proc, pid) {
                return None;
            }
            // Only root can read the link of another user's process.
            let pgdata = fs::read_link(entry.path().join("cwd")).ok()?;
            let own = PidFile::read(&pgdata).ok()?;
            (own.pid == Some(pid)).then_some(pgdata)
        })
        .collect()
}

/// The data directories where Debian and Red Hat put them.
fn of_distributions(root: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let debian = below(&root.join("var/lib/postgresql"));
    let debian = debian.iter().flat_map(|major| below(major));
    let red_hat = root.join("var/lib/pgsql");
    let versions = below(&red_hat);
    let data = versions.iter().map(|version| version.join("data"));
    let all = debian.chain(data).chain([red_hat.join("data")]);
    all.filter(|pgdata| pgdata.join("PG_VERSION").exists() || pgdata.join("base").exists())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(path: &Path) {
        fs::create_dir_all(path.join("base")).unwrap();
        fs::write(path.join("PG_VERSION"), "17\n").unwrap();
    }

    #[test]
    fn data_directories_of_this_user_are_offered_and_those_of_others_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(root.path()).unwrap();
        let debian = folder.join("var/lib/postgresql/17/main");
        let red_hat = folder.join("var/lib/pgsql/17/data");
        for path in [&debian, &red_hat] {
            cluster(path);
        }
        fs::create_dir_all(folder.join("var/lib/postgresql/16/empty")).unwrap();
        let linked = folder.join("var/lib/pgsql/16/data");
        fs::create_dir_all(linked.join("base")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", linked.join("PG_VERSION")).unwrap();
        let uid = fs::metadata(&folder).unwrap().uid();
        let found = Clusters::among(of_distributions(&folder).into_iter(), uid);
        let own: Vec<_> = found.own.iter().map(|c| c.pgdata.clone()).collect();
        assert_eq!(own, [red_hat.clone(), debian.clone()]);
        assert!(found.own.iter().all(|c| c.major == "17" && !c.is_running));
        // The link is not followed.
        assert!(!found.foreign.iter().any(|(path, _)| *path == linked));
        let other = Clusters::among(of_distributions(&folder).into_iter(), uid + 1);
        assert_eq!((other.own.len(), other.foreign.len()), (0, 3));
    }

    #[test]
    fn a_postmaster_is_known_by_its_own_pid_file() {
        let root = tempfile::tempdir().unwrap();
        let (proc, pgdata) = (root.path().join("proc"), root.path().join("data"));
        cluster(&pgdata);
        fs::write(pgdata.join("postmaster.pid"), "4711\n/data\n").unwrap();
        for (pid, name) in [
            ("4711", "postgres"),
            ("4712", "postgres"),
            ("4713", "sleep"),
        ] {
            fs::create_dir_all(proc.join(pid)).unwrap();
            fs::write(proc.join(pid).join("comm"), format!("{name}\n")).unwrap();
            std::os::unix::fs::symlink(&pgdata, proc.join(pid).join("cwd")).unwrap();
        }
        // A backend of it has the same working directory.
        assert_eq!(running(&proc), [pgdata]);
    }
}
