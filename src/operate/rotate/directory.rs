//! The directory of a rotation: `rotation.key` until every repository has the epoch, `writer.key` from then on.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::places::KeySet;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::lock;
use crate::operate::keys::{NewFile, write};
use crate::operate::session::Session;
use crate::repo::keyring::WriterFile;
use crate::seal::MacKey;

const WRITER: &str = "writer.key";
const ROTATION: &str = "rotation.key";

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No pair was made.
    New,
    /// Repositories may have it. No host takes its file.
    Unfinished,
    /// Every repository that was configured had it, and the file for hosts was made.
    Finished,
}

/// The directory that the operator names.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub fn of(session: &Session, dir: &Path) -> Directory {
        Directory(session.environment.absolute(dir))
    }

    pub fn shown(&self) -> String {
        self.0.display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn shown_writer(&self) -> String {
        self.path(WRITER).display().to_string()
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Returns the rotation that it holds.
    ///
    /// # Errors
    /// `Key` for a file that is none; `Refused` for one of another key set.
    pub fn read(&self, set: &KeySet) -> Result<Option<(State, WriterFile)>> {
        let (path, file) = match (self.has(WRITER), self.has(ROTATION)) {
            (true, _) => {
                let path = self.path(WRITER);
                let file = WriterFile::read(&path)?;
                (path, file)
            }
            (false, true) => {
                let path = self.path(ROTATION);
                let file = WriterFile::read_of_rotation(&path)?;
                (path, file)
            }
            (false, false) => return Ok(None),
        };
        let (_, mac) = file.keys(&path)?;
        if mac.id() != set.mac()?.id() {
            return Err(err!(
                Refused,
                "\"{}\" is of key set {}, the repositories are of {}",
                path.display(),
                mac.id(),
                set.mac()?.id()
            ));
        }
        let state = match file.is_of_rotation() {
            true => State::Unfinished,
            false => State::Finished,
        };
        Ok(Some((state, file)))
    }

    /// Requires that a rotation follows on the file for hosts that is configured, or is that file.
    ///
    /// # Errors
    /// `Refused` when it does not.
    pub fn check_follows(&self, (state, file): (State, &WriterFile), set: &KeySet) -> Result<()> {
        let current = &set.current;
        let is_next = file.epoch().checked_sub(1) == Some(current.epoch());
        let is_current =
            file.epoch() == current.epoch() && file.public_half() == current.public_half();
        match is_next || (is_current && state == State::Finished) {
            true => Ok(()),
            false => Err(err!(
                Refused,
                "\"{}\" has epoch {}, and key_set is of epoch {}",
                self.shown(),
                file.epoch(),
                current.epoch()
            )
            .hint("Nothing was stored. Name an empty directory to begin another rotation, or one with the file of key_set to give its epochs to repositories that lack them.")),
        }
    }

    /// Makes the pair durable, before anything is stored.
    pub fn begin(&self, file: &WriterFile, session: &Session) -> Result<()> {
        let file = NewFile {
            path: self.path(ROTATION),
            content: file.text()?,
        };
        write(&self.0, &[file], session)
    }

    /// Keeps other processes from the rotation.
    ///
    /// # Errors
    /// `Locked` while another one works on it.
    pub fn lock(&self) -> Result<File> {
        let failed = |e| Error::from_io(format!("open directory \"{}\"", self.shown()), e);
        let directory = File::open(&self.0).map_err(failed)?;
        match lock::within(&directory, Duration::ZERO).map_err(failed)? {
            true => Ok(directory),
            false => Err(err!(
                Locked,
                "another process works on the rotation in \"{}\"",
                self.shown()
            )),
        }
    }

    /// Requires that no other process has changed the state before the lock.
    ///
    /// # Errors
    /// `Refused` when it did.
    pub fn check_unchanged(&self, state: State) -> Result<()> {
        let is_same = match state {
            State::New => true,
            State::Unfinished => {
                !self.has(WRITER)
                    && WriterFile::read_of_rotation(&self.path(ROTATION))
                        .is_ok_and(|file| file.is_of_rotation())
            }
            State::Finished => self.has(WRITER) || self.has(ROTATION),
        };
        match is_same {
            true => Ok(()),
            false => Err(
                err!(Refused, "another process has changed \"{}\"", self.shown())
                    .hint("Repeat the command."),
            ),
        }
    }

    /// Makes the file of the rotation one for hosts: nothing takes the epoch back any more. Its name comes after.
    pub fn finish(&self, file: &WriterFile, mac: &MacKey, session: &Session) -> Result<()> {
        let finished = file.finished(mac);
        let path = self.path(ROTATION);
        let doing = |e| Error::from_io(format!("write \"{}\"", self.shown_writer()), e);
        durable::replace(&path, &finished.text()?, session.host.random()).map_err(doing)
    }

    /// Gives the file for hosts its name.
    pub fn name(&self) -> Result<()> {
        let doing = |e| Error::from_io(format!("write \"{}\"", self.shown_writer()), e);
        if self.has(ROTATION) && !self.has(WRITER) {
            let directory = File::open(&self.0).map_err(doing)?;
            durable::name_in(directory.as_fd(), ROTATION, WRITER).map_err(doing)?;
        }
        Ok(())
    }

    /// Removes a rotation that was taken back.
    pub fn forget(&self) -> Result<()> {
        let path = self.path(ROTATION);
        durable::remove(&path)
            .map_err(|e| Error::from_io(format!("remove \"{}\"", path.display()), e))
    }
}
