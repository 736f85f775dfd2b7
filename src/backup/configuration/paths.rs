//! Paths of a set of configuration: those that are named, and the default ones.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use super::trust::{self, Stop};
use crate::archive::server_conf::{self, Files, Line, Look, Started};
use crate::secrets::matches;
use crate::tree::status::Status;

/// PostgreSQL's files are not read further for what they include.
const LIMIT_BYTES: u64 = 1 << 20;
/// Crontabs and units. Users' crontabs lie in `crontabs` below the spool on Debian, in `tabs` on SUSE, and in the spool itself on Red Hat.
const HOST: &[&str] = &[
    "/etc/crontab",
    "/etc/cron.d",
    "/var/spool/cron",
    "/etc/systemd/system",
];

/// Paths of this host beside PostgreSQL's and pitr's.
pub fn of_host() -> impl Iterator<Item = PathBuf> {
    HOST.iter().map(PathBuf::from)
}

/// Paths that were found, and those that could not be looked at.
#[derive(Debug, Default)]
pub struct Paths {
    pub found: Vec<PathBuf>,
    /// Paths that are not taken, and why.
    pub left_out: Vec<(PathBuf, String)>,
}

/// The files that fit a path in which `*` stands for a part of a name. Nothing at all is left out with a reason.
pub fn expand(pattern: &str) -> Paths {
    let mut paths = Paths {
        found: vec![PathBuf::from("/")],
        left_out: Vec::new(),
    };
    for part in Path::new(pattern).components() {
        match part {
            Component::Normal(part) => match part.to_str().filter(|part| part.contains('*')) {
                Some(wanted) => paths.descend(wanted),
                None => paths.found.iter_mut().for_each(|path| path.push(part)),
            },
            Component::ParentDir => paths.found.iter_mut().for_each(|path| path.push("..")),
            _ => {}
        }
    }
    if pattern.contains('*') {
        let is_there = |path: &PathBuf| !trust::place(path).is_err_and(|stop| stop.is_absence());
        paths.found.retain(is_there);
        if paths.found.is_empty() && paths.left_out.is_empty() {
            let why = "no file fits the pattern".to_owned();
            paths.left_out.push((PathBuf::from(pattern), why));
        }
    }
    paths
}

impl Paths {
    /// Puts the entries that fit in the place of each directory.
    fn descend(&mut self, wanted: &str) {
        let mut next = Vec::new();
        for directory in std::mem::take(&mut self.found) {
            let listed = trust::resolve(&directory).and_then(|real| {
                let names = trust::list(&real).map_err(Stop::Failed)?;
                Ok((real, names))
            });
            match listed {
                Ok((real, names)) => {
                    let fits = |name: &OsString| name.to_str().is_some_and(|n| matches(wanted, n));
                    next.extend(names.iter().filter(|name| fits(name)).map(|n| real.join(n)));
                }
                Err(stop) if stop.is_absence() => {}
                Err(stop) => self.left_out.push((directory, stop.to_string())),
            }
        }
        self.found = next;
    }
}

/// The user whose server reads the files, and who may not have others read by root.
#[derive(Debug, Clone, Copy)]
pub struct Reader(u32);

impl Reader {
    /// The owner of a data directory.
    ///
    /// # Errors
    /// The errors of the system.
    pub fn of(pgdata: &Path) -> std::io::Result<Reader> {
        Ok(Reader(std::fs::metadata(pgdata)?.uid()))
    }

    /// Why an opened file is not taken, if it is not.
    pub fn refusal(self, status: &Status) -> Option<&'static str> {
        // The system has judged a process that runs as the owner.
        let is_owner = rustix::process::geteuid().as_raw() == self.0;
        if status.kind != FileType::RegularFile {
            Some("it is no regular file, as PostgreSQL's configuration should name")
        } else if !is_owner && status.uid != self.0 && status.mode & 0o004 == 0 {
            Some(
                "PostgreSQL's configuration names it, and it neither belongs to the owner of the data directory nor may everybody read it: name it in paths",
            )
        } else {
            None
        }
    }

    fn read(self, path: &Path) -> Result<Vec<u8>, Stop> {
        let real = trust::resolve(path)?;
        let read = || -> std::io::Result<Vec<u8>> {
            let file = trust::open(&real)?;
            if let Some(why) = self.refusal(&Status::of(file.as_fd())?) {
                return Err(std::io::Error::other(why));
            }
            let mut bytes = Vec::new();
            file.take(LIMIT_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(Stop::Failed)
    }

    fn list(path: &Path) -> Result<Vec<PathBuf>, Stop> {
        let names = trust::list(&trust::resolve(path)?).map_err(Stop::Failed)?;
        let files = names.iter().map(|name| path.join(name));
        Ok(files.filter(|path| !path.is_dir()).collect())
    }
}

/// The host's files, with a note of each that was read.
struct Noted {
    reader: Reader,
    found: RefCell<BTreeSet<PathBuf>>,
    refused: RefCell<BTreeMap<PathBuf, String>>,
}

impl Noted {
    fn looked<T>(&self, path: &Path, result: Result<T, Stop>) -> Look<T> {
        match result {
            Ok(there) => Look::There(there),
            Err(stop) if stop.is_absence() => Look::Absent,
            Err(stop) => {
                let mut refused = self.refused.borrow_mut();
                refused.insert(path.to_owned(), stop.to_string());
                Look::Unseen
            }
        }
    }

    /// Notes an include that led nowhere, unless the reason is known.
    fn note(&self, line: &Line, why: &str) {
        let above = line.file.parent().unwrap_or(Path::new(""));
        let path = above.join(&line.setting.value);
        let mut refused = self.refused.borrow_mut();
        if !refused.keys().any(|known| known.starts_with(&path)) {
            refused.insert(path, why.to_owned());
        }
    }
}

impl Files for Noted {
    fn read(&self, path: &Path) -> crate::error::Result<Look<Vec<u8>>> {
        let looked = self.looked(path, self.reader.read(path));
        if let Look::There(_) = looked {
            self.found.borrow_mut().insert(path.to_owned());
        }
        Ok(looked)
    }

    fn list(&self, directory: &Path) -> crate::error::Result<Look<Vec<PathBuf>>> {
        Ok(self.looked(directory, Reader::list(directory)))
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
/// Those of following the includes.
pub fn of_server(pgdata: &Path, said: &Said, reader: Reader) -> crate::error::Result<Paths> {
    let started = Started::read(pgdata);
    let main = said
        .config_file
        .clone()
        .unwrap_or_else(|| pgdata.join(started.option("config_file").unwrap_or("postgresql.conf")));
    let noted = Noted {
        reader,
        found: RefCell::default(),
        refused: RefCell::default(),
    };
    let mut configuration = server_conf::Configuration::default();
    for file in [main, pgdata.join("postgresql.auto.conf")] {
        configuration.add(&file, &noted)?;
    }
    for line in &configuration.unseen {
        noted.note(line, "it is included, and cannot be followed");
    }
    for line in &configuration.absent {
        noted.note(line, "it is included, and is not there");
    }
    let mut found = noted.found.into_inner();
    match said.others.is_empty() {
        true => {
            for (name, usual) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
                let named = started
                    .option(name)
                    .or_else(|| configuration.value_of(name));
                found.insert(pgdata.join(named.unwrap_or(usual)));
            }
        }
        false => found.extend(said.others.iter().cloned()),
    }
    Ok(Paths {
        found: found.into_iter().collect(),
        left_out: noted.refused.into_inner().into_iter().collect(),
    })
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
        let expand = |pattern: &str| expand(at(pattern).to_str().unwrap()).found;
        assert_eq!(expand("*/x.conf"), [at("a/x.conf"), at("b/x.conf")]);
        assert_eq!(expand("b/*.conf"), [at("b/x.conf"), at("b/y.conf")]);
        assert_eq!(expand("*/none"), Vec::<PathBuf>::new());
        assert_eq!(expand("none"), [at("none")]);
        let none = super::expand(at("*/none").to_str().unwrap());
        assert_eq!(none.left_out[0].0, at("*/none"));
        // The directory of a test lies where others write, so that no link is followed.
        std::os::unix::fs::symlink("b", at("c")).unwrap();
        let through = super::expand(at("c/*.conf").to_str().unwrap());
        assert!(through.found.is_empty(), "{through:?}");
        assert!(
            through.left_out[0].1.contains("is not followed"),
            "{through:?}"
        );
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
        std::fs::write(at("postgresql.auto.conf"), "").unwrap();
        std::fs::write(at("conf.d/other"), "").unwrap();
        std::fs::write(at("conf.d/a.conf"), "include '../more.conf'\n").unwrap();
        std::fs::write(at("more.conf"), "port = 1\n").unwrap();
        let reader = Reader::of(directory.path()).unwrap();
        let found = of_server(directory.path(), &Said::default(), reader).unwrap();
        assert_eq!(found.left_out, [], "{found:?}");
        let found = found.found;
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
        assert_eq!(found.len(), 6, "{found:?}");
        std::fs::write(at("more.conf"), "include 'none'\ninclude 'loop'\n").unwrap();
        std::fs::write(at("loop"), "include 'loop'\n").unwrap();
        let found = of_server(directory.path(), &Said::default(), reader).unwrap();
        let names: Vec<_> = found.left_out.iter().map(|(path, _)| path).collect();
        assert!(names.iter().any(|path| path.ends_with("none")), "{names:?}");
        assert!(names.iter().any(|path| path.ends_with("loop")), "{names:?}");
    }
}
