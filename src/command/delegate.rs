//! The work that the small programs leave to `pitr`: repositories in an object store, and encrypted ones. They have no
//! TLS, no runtime and no ciphers, and start in a millisecond.
//!
//! `pitr serve` does all of the work with the same code, and prints its messages in place of the small program. It has
//! a session of its own, and ends with the program that started it. Its exit status counts only if standard output
//! repeats it. A `pitr` that is too old, or another program of that name, must not be able to report "stored" or "not
//! in the archive".

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::config::Settings;
use crate::err;
use crate::error::{Error, Result};
use crate::exit::Program;

/// The beginning of the line on standard output; the status follows.
const ANSWER: &str = "status ";

/// The line that goes with a status.
pub fn answer(status: u8) -> String {
    format!("{ANSWER}{status}\n")
}

/// The word for a program on the command line of `pitr serve`.
pub fn word(program: Program) -> &'static str {
    match program {
        Program::Archive => "archive",
        Program::Restore => "restore",
        Program::Pitr => "pitr",
    }
}

/// Whether any of the repositories is one that only `pitr` reaches.
pub fn is_needed(settings: &Settings) -> bool {
    settings.repositories.iter().any(is_far)
}

/// Whether only `pitr` reaches the repository.
fn is_far(repository: &crate::config::Repository) -> bool {
    repository.location.is_remote() || repository.encryption.is_some()
}

/// Has `pitr` do it, for at most `limit` where there is one; the status to leave with.
///
/// # Errors
/// `Config` when `pitr` does not lie beside this program; `Deadline`; `Internal` when it ends without an answer.
pub fn run(program: Program, arguments: Vec<OsString>, limit: Option<Duration>) -> Result<u8> {
    let pitr = beside()?;
    // Standard error stays: PostgreSQL's log is where messages belong.
    let child = Command::new(&pitr)
        .args(["serve", "--caller", &std::process::id().to_string()])
        .args(limit.map(|limit| format!("--limit-ms={}", sooner(limit).as_millis())))
        .args([word(program), "--"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let child = child.map_err(|e| {
        err!(Config, "could not run \"{}\"", pitr.display())
            .source(e)
            .hint("Repositories in an object store and encrypted ones need it: install the three programs of one version side by side.")
    })?;
    let (done, ended) = channel();
    // This thread is the one that has the child ended with it, so another one waits.
    std::thread::spawn(move || {
        let _ = done.send(child.wait_with_output());
    });
    let output = match limit {
        None => ended.recv().ok(),
        Some(limit) => match ended.recv_timeout(limit) {
            Ok(output) => Some(output),
            Err(_) => return Err(super::archive::deadline_error(limit)),
        },
    };
    match output {
        Some(Ok(output)) => status(&output, &pitr),
        Some(Err(e)) => Err(Error::from_io("wait for pitr", e)),
        None => Err(err!(Internal, "pitr was not waited for")),
    }
}

/// Who does work for somebody who waits for so long ends by itself before: its own word on the cause says more.
pub fn sooner(limit: Duration) -> Duration {
    limit * 24 / 25
}

/// The program `pitr`, which lies beside this one.
///
/// # Errors
/// Errors of the system when it looks for this program.
pub(super) fn beside() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Error::from_io("find this program", e))?;
    Ok(own.with_file_name("pitr"))
}

fn status(output: &Output, pitr: &std::path::Path) -> Result<u8> {
    let said = output.status.code().and_then(|c| u8::try_from(c).ok());
    match said {
        Some(status) if output.stdout == answer(status).as_bytes() => Ok(status),
        _ => Err(err!(
            Internal,
            "\"{}\" ended without an answer: {}",
            pitr.display(),
            output.status
        )
        .hint("Install the three programs of one version side by side.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_status_counts_only_when_it_is_said_too() {
        let ended = |raw: i32, stdout: &str| {
            let output = Output {
                status: std::process::ExitStatus::from_raw(raw),
                stdout: stdout.into(),
                stderr: Vec::new(),
            };
            status(&output, std::path::Path::new("/usr/bin/pitr")).ok()
        };
        assert_eq!(ended(0, "status 0\n"), Some(0));
        assert_eq!(ended(1 << 8, "status 1\n"), Some(1));
        for (raw, stdout) in [
            (0, ""),
            (1 << 8, ""),
            (2 << 8, "error: unrecognized subcommand\n"),
            (1 << 8, "status 0\n"),
            (0, "status 0"),
            (9, "status 0\n"),
        ] {
            assert_eq!(ended(raw, stdout), None, "{raw} {stdout:?}");
        }
    }
}
