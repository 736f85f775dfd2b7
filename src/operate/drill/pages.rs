//! The checksums of all pages, by PostgreSQL's own pg_checksums, once the server was stopped in order.

use std::path::Path;
use std::process::Stdio;

use super::{Checked, Findings};
use crate::error::{Code, Error, Result};
use crate::operate::programs::Programs;
use crate::operate::session::Session;
use crate::pg::control::ControlFile;
use crate::program::{self, Running};
use crate::repo::drilled::Phase;

/// Checks the pages of a stopped data directory.
///
/// # Errors
/// `Interrupted`; `Io`.
pub(super) fn run(session: &Session, programs: &Programs, data: &Path) -> Result<Findings> {
    let mut found = Findings::default();
    let path = data.join("global/pg_control");
    let control = std::fs::read(&path)
        .map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
    if !ControlFile::parse(&control)?.checksums_enabled() {
        let note = "the cluster has no data checksums, so its pages were not checked";
        found.notes.push(note.to_owned());
        return Ok(found);
    }
    let words = [
        programs.program("pg_checksums").display().to_string(),
        "--check".to_owned(),
        "-D".to_owned(),
        data.display().to_string(),
    ];
    let mut command = program::command(&words)?;
    command.env("LC_ALL", "C").stdout(Stdio::null());
    let running = match Running::start(&mut command) {
        Err(e) if e.code() == Code::SourceMissing => {
            found.notes.push(format!(
                "pg_checksums is not on this host, so the pages were not checked: {e}"
            ));
            return Ok(found);
        }
        running => running?,
    };
    let (status, said) = running.wait(&mut || session.host.check_stop())?;
    let lines: Vec<&str> = said.lines().take(3).collect();
    let wrong = (!status.success()).then(|| match lines.is_empty() {
        true => format!("pg_checksums ended with {status}"),
        false => lines.join(" · "),
    });
    let name = "checksums of all pages".to_owned();
    found.checks.push(Checked::new(Phase::Pages, name, wrong));
    Ok(found)
}
