//! What a server is configured with, as far as its files tell: command line, postgresql.auto.conf, postgresql.conf with what it includes.
//!
//! The configuration need not lie in the data directory: Debian keeps it in /etc, and names it on the command line, which the server writes
//! into postmaster.opts.
//!
//! PostgreSQL: src/backend/utils/misc/guc-file.l (`ProcessConfigFileInternal`, `ParseConfigFp`, `ParseConfigDirectory`); src/backend/postmaster/
//! postmaster.c (`CreateOptsFile`).

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::pg::conf;

/// No configuration file is larger; what is behind that is not read.
const LIMIT_BYTES: u64 = 1 << 20;
/// As many as PostgreSQL follows (`CONF_FILE_MAX_DEPTH`).
const DEPTH_MAX: u32 = 10;

/// The value that a server on the data directory `root` has, or would have once started, for `name` (in lower case); `None` where
/// nothing sets it.
pub fn value_of(root: &Path, name: &str) -> Option<String> {
    let options = options(root);
    let given = |wanted: &str| {
        let found = options.iter().rfind(|(n, _)| n == wanted);
        found.map(|(_, value)| value.clone())
    };
    given(name)
        .or_else(|| conf::value_of(&read(&root.join("postgresql.auto.conf"))?, name))
        .or_else(|| {
            let file =
                given("config_file").map_or_else(|| root.join("postgresql.conf"), PathBuf::from);
            let mut value = None;
            follow(&root.join(file), name, &mut value, 0);
            value
        })
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(LIMIT_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Of several lines with one name the last counts, wherever it stands.
fn follow(path: &Path, name: &str, value: &mut Option<String>, depth: u32) {
    let (Some(text), true) = (read(path), depth < DEPTH_MAX) else {
        return;
    };
    let beside = |other: &str| path.parent().unwrap_or(Path::new("")).join(other);
    for setting in conf::settings(&text) {
        match setting.name.as_str() {
            "include" | "include_if_exists" => {
                follow(&beside(&setting.value), name, value, depth + 1);
            }
            "include_dir" => {
                for file in directory(&beside(&setting.value)) {
                    follow(&file, name, value, depth + 1);
                }
            }
            found if found == name => *value = Some(setting.value),
            _ => {}
        }
    }
}

fn directory(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| {
            let name = p.file_name().unwrap_or_default().as_encoded_bytes();
            !name.starts_with(b".") && name.ends_with(b".conf")
        })
        .collect();
    files.sort();
    files
}

/// Settings on the server's command line, the last time it was started: `"-c" "name=value"`, `"--name=value"`.
fn options(root: &Path) -> Vec<(String, String)> {
    let text = read(&root.join("postmaster.opts")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut words = text
        .trim_end()
        .trim_end_matches('"')
        .split(" \"")
        .skip(1)
        .map(|w| w.trim_end_matches('"'));
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word {
            "-c" => words.next(),
            _ => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")),
        };
        if let Some((name, value)) = setting.and_then(|s| s.split_once('=')) {
            options.push((name.to_lowercase().replace('-', "_"), value.to_owned()));
        }
    }
    options
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
