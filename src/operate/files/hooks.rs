//! Programs of the operator's that run before and after a set of files is read, such as those that make and remove a snapshot.

use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::Stdio;

use super::source::cache;
use crate::backup::sources;
use crate::config::{Files, Source};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::operate::session::Session;
use crate::program::{self, Running};

/// More than a path.
const OUTPUT_LIMIT_BYTES: usize = 64 << 10;

/// Keeps other runs of a name with such programs away: they would share a snapshot, and remove it from under one another.
///
/// # Errors
/// `Locked` while another one is under way; `Config` without a cache.
pub fn alone(session: &Session, files: &Files) -> Result<Option<File>> {
    if files.before.is_empty() && files.after.is_empty() {
        return Ok(None);
    }
    sources::lock(&cache(session, "files", &files.name)?).map(Some)
}

/// Runs the program before; returns the directory that it printed, to be read in place of the source.
///
/// # Errors
/// `SourceMissing` when it fails, or prints what is no path; `Interrupted`.
pub fn before(files: &Files, host: &Host) -> Result<Option<PathBuf>> {
    if files.before.is_empty() {
        return Ok(None);
    }
    let mut command = program::command(&files.before)?;
    set_source(&mut command, files);
    let printed = program::output(&mut command, OUTPUT_LIMIT_BYTES, &mut || host.check_stop());
    let printed = printed.and_then(|printed| path(printed, &files.source));
    let failed = printed.map_err(|e| e.context("run the program before the backup"));
    failed.map_err(|e| e.hint("Nothing was stored."))
}

/// Pure: the path that a program printed; none where it printed nothing.
fn path(mut printed: Vec<u8>, source: &Source) -> Result<Option<PathBuf>> {
    while printed.last() == Some(&b'\n') {
        printed.pop();
    }
    if printed.is_empty() {
        return Ok(None);
    }
    let is_path = printed.first() == Some(&b'/') && !printed.contains(&b'\n');
    match (is_path, source) {
        (true, Source::Directory(_)) => Ok(Some(std::ffi::OsString::from_vec(printed).into())),
        (true, _) => Err(err!(
            SourceMissing,
            "it printed a directory, and the source is none"
        )),
        (false, _) => Err(err!(
            SourceMissing,
            "it printed something else than one absolute path"
        )),
    }
}

/// Runs the program after, whatever became of the backup, which `PITR_STATUS` tells.
///
/// # Errors
/// `Partial` when it fails.
pub fn after(files: &Files, root: Option<&PathBuf>, is_stored: bool) -> Result<()> {
    if files.after.is_empty() {
        return Ok(());
    }
    let run = || {
        let mut command = program::command(&files.after)?;
        set_source(&mut command, files);
        if let Some(root) = root {
            command.env("PITR_ROOT", root);
        }
        command.env("PITR_STATUS", if is_stored { "stored" } else { "failed" });
        // It cleans up: also for an operator who has asked to stop, and whatever it prints.
        Running::start(command.stdout(Stdio::null()))?.succeed(&mut || Ok(()))
    };
    run().map_err(|e| Error::new(Code::Partial, "the program after the backup failed").source(e))
}

fn set_source(command: &mut std::process::Command, files: &Files) {
    command.env("PITR_NAME", &files.name);
    if let Source::Directory(directory) = &files.source {
        command.env("PITR_SOURCE", directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_prints_one_path_or_nothing() {
        let directory = Source::default();
        let read = |text: &[u8], source: &Source| path(text.to_vec(), source).ok();
        assert_eq!(read(b"", &directory), Some(None));
        assert_eq!(read(b"\n", &Source::Command), Some(None));
        assert_eq!(read(b"/a b\n", &directory), Some(Some("/a b".into())));
        for wrong in [&b"a"[..], b"/a\n/b\n", b"mounted /a"] {
            assert_eq!(read(wrong, &directory), None, "{wrong:?}");
        }
        assert_eq!(read(b"/a", &Source::Command), None);
    }
}
