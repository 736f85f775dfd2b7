//! A client program of PostgreSQL: found by its major, and run to its end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::version::Major;
use crate::program::{self, Running};

/// How many of these lines a message repeats.
const SHOWN_LINES: usize = 5;

/// A function that is called again and again while a program works: an error of it ends the program.
pub type Tick<'t> = &'t mut dyn FnMut() -> Result<()>;

/// A program of a known version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// The program.
    pub path: PathBuf,
    pub major: Major,
    /// Its version, say `17.6`.
    pub version: String,
}

/// The folders in which programs are looked for: the one that is given, else the search path and those of distributions, newest major first.
pub fn folders(given: Option<&Path>, search_path: Option<&OsStr>) -> Vec<PathBuf> {
    if let Some(folder) = given {
        return vec![folder.to_owned()];
    }
    let in_path = search_path.into_iter().flat_map(std::env::split_paths);
    let of_major = Major::ALL.into_iter().rev().flat_map(|major| {
        let debian = format!("/usr/lib/postgresql/{major}/bin");
        [debian, format!("/usr/pgsql-{major}/bin")].map(PathBuf::from)
    });
    in_path.chain(of_major).collect()
}

/// Returns the version that a program reports, where it is one of a major that is supported.
pub fn version_of(program: &Path) -> Option<(Major, String)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(2)?;
    let number: String = version.chars().take_while(char::is_ascii_digit).collect();
    let major = Major::from_number(number.parse().ok()?).ok()?;
    Some((major, version.to_owned()))
}

impl Tool {
    /// Finds the program of the lowest major that is at least `least`.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn find(name: &str, least: Major, folders: &[PathBuf]) -> Result<Tool> {
        let found = folders.iter().filter_map(|folder| {
            let path = folder.join(name);
            // Debian's wrapper runs another program for each cluster, and has no version of its own.
            let real = std::fs::canonicalize(&path).ok()?;
            if real.file_name() != Some(OsStr::new(name)) {
                return None;
            }
            let (major, version) = version_of(&path)?;
            (major >= least).then_some(Tool {
                path,
                major,
                version,
            })
        });
        found.min_by_key(|tool| tool.major).ok_or_else(|| {
            err!(
                NotFound,
                "no {name} of PostgreSQL {least} or newer was found in the search path, /usr/lib/postgresql and /usr/pgsql-*"
            )
            .hint(format!("Nothing was done. Install the client programs of PostgreSQL {least}, or name their folder: --bin DIR"))
        })
    }

    /// Returns a command that finds the service file and nothing else of libpq's environment.
    pub fn command(&self, service_file: Option<&Path>) -> Command {
        self.command_under(&[], service_file)
    }

    /// As [`Tool::command`], with words before the program's own, of one that runs it in its place.
    pub fn command_under(&self, before: &[String], service_file: Option<&Path>) -> Command {
        let mut command = match before {
            [] => Command::new(&self.path),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.path);
                command
            }
        };
        program::without_libpq(&mut command);
        if let Some(file) = service_file {
            command.env("PGSERVICEFILE", file);
        }
        command.env_remove("LANGUAGE").env("LC_ALL", "C");
        command
    }
}

/// Runs a program to its end, and asks `tick` all the while whether to go on. Returns the warnings of the program.
///
/// # Errors
/// `Full` when the program found no room, `Server` when it failed otherwise, with the end of what it said; those of `tick`, after the program
/// was stopped.
pub fn run(command: &mut Command, tick: Tick<'_>) -> Result<Vec<String>> {
    let name = Path::new(command.get_program());
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let name = name.into_owned();
    run_as(&name, command, tick)
}

/// As [`run`], of a program that another one runs in its place.
///
/// # Errors
/// Those of [`run`].
pub fn run_as(name: &str, command: &mut Command, tick: Tick<'_>) -> Result<Vec<String>> {
    let running = Running::start(command.stdin(Stdio::null()))?;
    let (status, said) = running.wait(tick)?;
    match status.success() {
        true => {
            let warnings = said.lines().filter(|line| line.contains("warning: "));
            Ok(warnings.map(str::to_owned).collect())
        }
        false => Err(failed(name, status, &said)),
    }
}

fn failed(name: &str, status: ExitStatus, said: &str) -> Error {
    let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
    // pg_restore repeats the statement behind its error.
    let is_error = |line: &&&str| line.contains("error: ") || line.contains("ERROR: ");
    let errors: Vec<&str> = lines.iter().filter(is_error).copied().collect();
    let shown = match errors.is_empty() {
        true => lines,
        false => errors,
    };
    let last = shown.get(shown.len().saturating_sub(SHOWN_LINES)..);
    let shown = last.unwrap_or_default().join(" · ");
    let code = match said.contains("No space left on device") {
        true => Code::Full,
        false => Code::Server,
    };
    Error::new(code, format!("{name} failed ({status}): {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let mut go_on = || Ok(());
        let warnings = run(
            &mut shell("echo 'x: warning: a circle' >&2; echo detail >&2"),
            &mut go_on,
        );
        assert_eq!(warnings.unwrap(), ["x: warning: a circle"]);
        let e = run(
            &mut shell("for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 3"),
            &mut go_on,
        )
        .unwrap_err();
        assert_eq!(e.code(), Code::Server);
        assert_eq!(
            e.to_string(),
            "sh failed (exit status: 3): line 3 · line 4 · line 5 · line 6 · line 7"
        );
        let e = run(
            &mut shell("echo 'could not write: No space left on device' >&2; exit 1"),
            &mut go_on,
        )
        .unwrap_err();
        assert_eq!(e.code(), Code::Full);
        let e = run(
            &mut shell("echo 'x: error: no such type' >&2; echo 'Command was: CREATE' >&2; exit 1"),
            &mut go_on,
        )
        .unwrap_err();
        assert_eq!(
            e.to_string(),
            "sh failed (exit status: 1): x: error: no such type"
        );
    }

    #[test]
    fn the_lowest_major_that_will_do_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = ["18.1", "15.4", "16beta2", "12.3"]
            .iter()
            .map(|version| {
                let folder = root.path().join(version);
                std::fs::create_dir(&folder).unwrap();
                let path = folder.join("pg_dump");
                let script = format!("#!/bin/sh\necho \"pg_dump (PostgreSQL) {version} (X)\"\n");
                std::fs::write(&path, script).unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
                folder
            })
            .collect();
        let found = |least: u32| {
            let least = Major::from_number(least).unwrap();
            Tool::find("pg_dump", least, &folders).map(|t| t.version)
        };
        assert_eq!(found(13).unwrap(), "15.4");
        assert_eq!(found(16).unwrap(), "16beta2");
        assert_eq!(found(17).unwrap(), "18.1");
        assert_eq!(found(19).unwrap_err().code(), Code::NotFound);
    }
}
