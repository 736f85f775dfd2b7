//! Files that wait for a reader.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use crate::err;
use crate::error::Result;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::layer::Metadata;

/// How long the walk rests when all readers are busy.
const PAUSE: Duration = Duration::from_millis(2);

/// A file to read.
pub struct Task {
    pub key: FileKey,
    /// Metadata that the prior has under this key.
    pub prior: Option<Metadata>,
}

/// Takes files to the readers.
pub struct Queue<'q> {
    /// To the readers.
    pub sender: SyncSender<Task>,
    /// Set when everything has to end.
    pub is_over: &'q AtomicBool,
}

impl Queue<'_> {
    /// Waits until a reader has room for the file.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn send(&self, mut task: Task) -> Result<()> {
        loop {
            if self.is_over.load(Ordering::Relaxed) {
                return Err(err!(Interrupted, "interrupted"));
            }
            match self.sender.try_send(task) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(same)) => task = same,
                Err(TrySendError::Disconnected(_)) => {
                    return Err(err!(Interrupted, "the readers have ended"));
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}
