//! The process of a clone, from its start until the clone takes queries.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::folder::{self, State};
use super::namespace;
use crate::error::{Error, Result};
use crate::operate::session::Session;

/// Tells the process of a clone its folder.
pub const FOLDER: &str = "PITR_CLONE_FOLDER";

/// How often the state of a clone that is made is looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// A process that was started for a clone.
pub struct Begun {
    /// How far it came.
    pub end: End,
    /// Bytes that it wrote to standard error.
    pub said: Vec<u8>,
    /// Bytes that it wrote to standard output; none while it runs.
    pub answered: Vec<u8>,
}

/// How far the process of a clone came.
pub enum End {
    /// It runs, and the clone takes queries.
    Serves(Box<State>),
    /// It has ended with this status; none where it was killed.
    ///
    /// The clone is there where another command has kept and stopped it since.
    Ended(Option<u8>, Option<Box<State>>),
}

/// Starts the process of the clone in a folder, with these arguments, and waits until it takes queries or ends.
///
/// # Errors
/// `Io`.
pub fn begin(
    session: &Session,
    at: &Path,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Begun> {
    let failed = |e| Error::from_io("start the process of the clone", e);
    let said = tempfile::tempfile().map_err(failed)?;
    let answered = tempfile::tempfile().map_err(failed)?;
    let mut command = namespace::command(session, arguments)?;
    command.env(FOLDER, at);
    command
        // Ctrl-C at the terminal is not meant for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(answered.try_clone().map_err(failed)?)
        .stderr(said.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    let mut stage = None;
    let mut is_stopped = false;
    loop {
        if let Some(state) = folder::state(at) {
            // One that is to be kept may have gone on from there already.
            if state.connection.is_some() {
                return Ok(Begun {
                    end: End::Serves(Box::new(state)),
                    said: written(said),
                    answered: Vec::new(),
                });
            }
            if stage != Some(state.stage) {
                stage = Some(state.stage);
                session.host.progress.phase(state.stage.word(), None);
            }
        }
        if let Some(status) = child.try_wait().map_err(failed)? {
            let status = status.code().and_then(|code| u8::try_from(code).ok());
            let state = folder::state(at).filter(|_| status == Some(0));
            return Ok(Begun {
                end: End::Ended(status, state.map(Box::new)),
                said: written(said),
                answered: written(answered),
            });
        }
        if session.host.is_stopping() && !is_stopped {
            is_stopped = true;
            if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Everything that the process has written into a file; nothing where it cannot be read.
fn written(mut file: File) -> Vec<u8> {
    let mut text = Vec::new();
    match file.rewind().and_then(|()| file.read_to_end(&mut text)) {
        Ok(_) => text,
        Err(_) => Vec::new(),
    }
}
