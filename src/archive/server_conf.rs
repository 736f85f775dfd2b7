//! The configuration of a server, as far as its files show it: command line, postgresql.auto.conf, postgresql.conf with
//! its includes.
//!
//! The configuration need not lie in the data directory: Debian keeps it in /etc, and names it on the command line, which the server writes
//! into postmaster.opts.
//!
//! PostgreSQL: src/backend/utils/misc/guc-file.l (`ProcessConfigFileInternal`, `ParseConfigFp`, `ParseConfigDirectory`); src/backend/postmaster/
//! postmaster.c (`CreateOptsFile`).

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::datadir::open_at_once;
use crate::error::Result;
use crate::pg::conf::{self, Setting};

/// No configuration file is larger; what is behind that is not read.
const LIMIT_BYTES: u64 = 1 << 20;
/// As many as PostgreSQL follows (`CONF_FILE_MAX_DEPTH`).
const DEPTH_MAX: u32 = 10;
/// More files than this are a loop, which PostgreSQL refuses at the depth above.
const FILES_MAX: usize = 1000;

/// The result of looking for a file.
pub enum Look<T> {
    /// It is there.
    There(T),
    /// It is not.
    Absent,
    /// Its presence cannot be determined from here.
    Unseen,
}

/// The place from which configuration files are read: this host, or a backup.
pub trait Files {
    /// The content of a file.
    ///
    /// # Errors
    /// Errors that make the whole configuration unreadable.
    fn read(&self, path: &Path) -> Result<Look<Vec<u8>>>;

    /// All files of a directory.
    ///
    /// # Errors
    /// As [`Files::read`].
    fn list(&self, directory: &Path) -> Result<Look<Vec<PathBuf>>>;
}

/// A setting and the file it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub file: PathBuf,
    /// The setting as the file has it.
    pub setting: Setting,
}

/// A configuration file with everything that it includes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// All settings but the includes, in the order in which they count.
    pub lines: Vec<Line>,
    /// Includes that could not be looked at.
    pub unseen: Vec<Line>,
    /// Includes that lead to nothing, at which a server refuses to start.
    pub absent: Vec<Line>,
    files: usize,
}

impl Configuration {
    /// Reads `path` behind what was read before; whether it is there.
    ///
    /// # Errors
    /// Those of [`Files`].
    pub fn add(&mut self, path: &Path, files: &dyn Files) -> Result<bool> {
        Ok(matches!(self.follow(path, files, 0)?, Look::There(())))
    }

    /// The value that counts: of several lines with one name the last, wherever it stands.
    pub fn value_of(&self, name: &str) -> Option<&str> {
        let found = self.lines.iter().rfind(|l| l.setting.name == name);
        found.map(|l| l.setting.value.as_str())
    }

    fn follow(&mut self, path: &Path, files: &dyn Files, depth: u32) -> Result<Look<()>> {
        if depth >= DEPTH_MAX || self.files >= FILES_MAX {
            return Ok(Look::Unseen);
        }
        self.files += 1;
        let text = match files.read(path)? {
            Look::There(text) => text,
            Look::Absent => return Ok(Look::Absent),
            Look::Unseen => return Ok(Look::Unseen),
        };
        for setting in conf::settings(&text) {
            let line = Line {
                file: path.to_owned(),
                setting,
            };
            let name = line.setting.name.as_str();
            let wanted = path
                .parent()
                .unwrap_or(Path::new(""))
                .join(&line.setting.value);
            let done = match name {
                "include" | "include_if_exists" => self.follow(&wanted, files, depth + 1)?,
                "include_dir" => self.follow_all(&wanted, files, depth + 1)?,
                _ => {
                    self.lines.push(line);
                    continue;
                }
            };
            match done {
                Look::There(()) => {}
                Look::Absent if name == "include_if_exists" => {}
                Look::Absent => self.absent.push(line),
                Look::Unseen => self.unseen.push(line),
            }
        }
        Ok(Look::There(()))
    }

    fn follow_all(&mut self, path: &Path, files: &dyn Files, depth: u32) -> Result<Look<()>> {
        let mut found = match files.list(path)? {
            Look::There(found) => found,
            Look::Absent => return Ok(Look::Absent),
            Look::Unseen => return Ok(Look::Unseen),
        };
        found.retain(|p| {
            let name = p.file_name().unwrap_or_default().as_encoded_bytes();
            !name.starts_with(b".") && name.ends_with(b".conf")
        });
        found.sort();
        let mut all = Look::There(());
        for file in found {
            if matches!(self.follow(&file, files, depth)?, Look::Unseen) {
                all = Look::Unseen;
            }
        }
        Ok(all)
    }
}

/// The files of this host.
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<Look<Vec<u8>>> {
        let mut bytes = Vec::new();
        let file = open_at_once(path);
        let read = file.and_then(|f| f.take(LIMIT_BYTES).read_to_end(&mut bytes));
        Ok(looked(read.map(|_| bytes)))
    }

    fn list(&self, directory: &Path) -> Result<Look<Vec<PathBuf>>> {
        let entries = std::fs::read_dir(directory);
        let paths = |entries: std::fs::ReadDir| {
            let found = entries.filter_map(|e| Some(e.ok()?.path()));
            found.filter(|p| !p.is_dir()).collect()
        };
        Ok(looked(entries.map(paths)))
    }
}

fn looked<T>(found: std::io::Result<T>) -> Look<T> {
    match found {
        Ok(found) => Look::There(found),
        Err(e) if e.kind() == ErrorKind::NotFound => Look::Absent,
        Err(_) => Look::Unseen,
    }
}

/// The value that a server on the data directory `root` has, or would have once started, for `name` (in lower case); `None` where
/// nothing sets it.
pub fn value_of(root: &Path, name: &str) -> Option<String> {
    let started = Started::read(root);
    if let Some(value) = started.option(name) {
        return Some(value.to_owned());
    }
    let mut configuration = Configuration::default();
    let main = started.option("config_file").unwrap_or("postgresql.conf");
    for file in [main, "postgresql.auto.conf"] {
        configuration.add(&root.join(file), &Disk).ok()?;
    }
    configuration.value_of(name).map(str::to_owned)
}

/// How a server was started the last time, as it wrote into postmaster.opts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Started {
    pub program: Option<PathBuf>,
    /// The argument of `-D`: the data directory, or that of its configuration.
    pub directory: Option<PathBuf>,
    options: Vec<(String, String)>,
}

impl Started {
    /// Reads it in the data directory `root`; nothing is known where it cannot be read.
    pub fn read(root: &Path) -> Started {
        match Disk.read(&root.join("postmaster.opts")) {
            Ok(Look::There(text)) => Started::parse(&String::from_utf8_lossy(&text)),
            _ => Started::default(),
        }
    }

    /// `program "-D" "directory" "-c" "name=value" "--name=value"`.
    fn parse(text: &str) -> Started {
        let mut words = text
            .trim_end()
            .trim_end_matches('"')
            .split(" \"")
            .map(|w| w.trim_end_matches('"'));
        let mut started = Started {
            program: words.next().filter(|w| !w.is_empty()).map(PathBuf::from),
            ..Started::default()
        };
        while let Some(word) = words.next() {
            let setting = match word {
                "-D" => {
                    started.directory = words.next().map(PathBuf::from);
                    continue;
                }
                "-c" => words.next(),
                _ => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")),
            };
            if let Some((name, value)) = setting.and_then(|s| s.split_once('=')) {
                let name = name.to_lowercase().replace('-', "_");
                started.options.push((name, value.to_owned()));
            }
        }
        started
    }

    /// The value of a setting on its command line.
    pub fn option(&self, name: &str) -> Option<&str> {
        let found = self.options.iter().rfind(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_that_counts_is_found_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let (data, etc) = (dir.path().join("data"), dir.path().join("etc"));
        std::fs::create_dir_all(etc.join("conf.d")).unwrap();
        std::fs::create_dir(&data).unwrap();
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
        let value = || value_of(&data, "primary_conninfo");
        assert_eq!(value(), None);
        write(
            data.join("postgresql.conf"),
            "#primary_conninfo = 'a'\nPrimary_Conninfo='x'\nprimary_conninfo_x = 'y'\n",
        );
        assert_eq!(value().as_deref(), Some("x"));

        // As Debian has it.
        let opts = format!(
            "/usr/bin/postgres \"-D\" \"/data\" \"-c\" \"config_file={}\"\n",
            etc.join("postgresql.conf").display()
        );
        write(data.join("postmaster.opts"), &opts);
        assert_eq!(value(), None);
        write(
            etc.join("postgresql.conf"),
            "primary_conninfo = 'first'\ninclude_dir 'conf.d'\ninclude_if_exists = 'none'\n",
        );
        write(
            etc.join("conf.d/b.conf"),
            "primary_conninfo = 'second'\ninclude '../loop.conf'\n",
        );
        write(etc.join("conf.d/a.conf"), "primary_conninfo = 'third'\n");
        write(
            etc.join("conf.d/z.disabled"),
            "primary_conninfo = 'never'\n",
        );
        write(etc.join("loop.conf"), "include 'loop.conf'\n");
        assert_eq!(value().as_deref(), Some("second"));
        write(data.join("postgresql.auto.conf"), "primary_conninfo = ''\n");
        assert_eq!(value().as_deref(), Some(""));
        write(
            data.join("postmaster.opts"),
            "/usr/bin/postgres \"-cprimary_conninfo=host=a b\" \"--primary-conninfo=host=c d\"\n",
        );
        assert_eq!(value().as_deref(), Some("host=c d"));
    }
}
