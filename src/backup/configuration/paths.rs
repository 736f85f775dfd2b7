//! Paths of a set of configuration: those that are named, and the default ones.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::archive::server_conf::{self, Disk, Files, Look, Started};
use crate::error::Result;
use crate::secrets::matches;

/// Crontabs and units.
const HOST: &[&str] = &[
    "/etc/crontab",
    "/etc/cron.d",
    "/var/spool/cron/crontabs",
    "/etc/systemd/system",
];

/// Paths of this host beside PostgreSQL's and pitr's.
pub fn of_host() -> impl Iterator<Item = PathBuf> {
    HOST.iter().map(PathBuf::from)
}

/// The files that fit a path in which `*` stands for a part of a name.
pub fn expand(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in Path::new(pattern).components() {
        let Component::Normal(part) = part else {
            continue;
        };
        let Some(wanted) = part.to_str().filter(|part| part.contains('*')) else {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let below = found.iter().filter_map(|path| std::fs::read_dir(path).ok());
        let mut next: Vec<PathBuf> = below
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| matches(wanted, name))
            })
            .collect();
        next.sort();
        found = next;
    }
    if pattern.contains('*') {
        found.retain(|path| path.symlink_metadata().is_ok());
    }
    found
}

/// The host's files, with a note of each that was asked for.
#[derive(Default)]
struct Noted(RefCell<BTreeSet<PathBuf>>);

impl Files for Noted {
    fn read(&self, path: &Path) -> Result<Look<Vec<u8>>> {
        self.0.borrow_mut().insert(path.to_owned());
        Disk.read(path)
    }

    fn list(&self, directory: &Path) -> Result<Look<Vec<PathBuf>>> {
        self.0.borrow_mut().insert(directory.to_owned());
        Disk.list(directory)
    }
}

/// The places of a server's configuration, as the server says.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// `config_file`.
    pub config_file: Option<PathBuf>,
    /// `hba_file` and `ident_file`.
    pub others: Vec<PathBuf>,
}

/// Files of a server's configuration, with what they include; as the server said, else as its data directory shows.
///
/// # Errors
/// Those of reading the files.
pub fn of_server(pgdata: &Path, said: &Said) -> Result<Vec<PathBuf>> {
    let started = Started::read(pgdata);
    let place = |name: &str, usual: &str| {
        let named = started
            .option(name)
            .map(str::to_owned)
            .or_else(|| server_conf::value_of(pgdata, name));
        pgdata.join(named.as_deref().unwrap_or(usual))
    };
    let main = said.config_file.clone();
    let main = main.unwrap_or_else(|| place("config_file", "postgresql.conf"));
    let noted = Noted::default();
    let mut configuration = server_conf::Configuration::default();
    configuration.add(&main, &noted)?;
    configuration.add(&pgdata.join("postgresql.auto.conf"), &noted)?;
    let mut paths = noted.0.into_inner();
    match said.others.is_empty() {
        true => {
            paths.insert(place("hba_file", "pg_hba.conf"));
            paths.insert(place("ident_file", "pg_ident.conf"));
        }
        false => paths.extend(said.others.iter().cloned()),
    }
    Ok(paths.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_parts_of_names() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["a/x.conf", "b/x.conf", "b/y.conf", "b/z.txt"] {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
        }
        let expand = |pattern: &str| expand(at(pattern).to_str().unwrap());
        assert_eq!(expand("*/x.conf"), [at("a/x.conf"), at("b/x.conf")]);
        assert_eq!(expand("b/*.conf"), [at("b/x.conf"), at("b/y.conf")]);
        assert_eq!(expand("*/none"), Vec::<PathBuf>::new());
        assert_eq!(expand("none"), [at("none")]);
    }

    #[test]
    fn a_servers_files_include_others() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("conf.d")).unwrap();
        std::fs::write(
            at("postgresql.conf"),
            "include_dir 'conf.d'\nhba_file = 'hba'\n",
        )
        .unwrap();
        std::fs::write(at("conf.d/a.conf"), "include '../more.conf'\n").unwrap();
        std::fs::write(at("more.conf"), "port = 1\n").unwrap();
        let found = of_server(directory.path(), &Said::default()).unwrap();
        for name in [
            "postgresql.conf",
            "postgresql.auto.conf",
            "conf.d/a.conf",
            "conf.d/../more.conf",
            "hba",
            "pg_ident.conf",
        ] {
            assert!(found.contains(&at(name)), "{name}: {found:?}");
        }
    }
}
