//! Unresponsive repositories: reports the wait, and never waits for the same one twice.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::human;
use crate::config::{self, Location};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::lock::locked;
use crate::progress::Progress;
use crate::repo;
use crate::repo::repository::Repository;
use crate::store::pace::Pace;

/// How long a store may be silent before a note reports it.
const SILENCE: Duration = Duration::from_secs(5);
/// For how long the answer "away" is given again: a command that looks several times would wait as often for the same.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Object stores that did not answer, by the name of the repository: since when, and the error then.
#[derive(Debug, Default)]
pub struct Away(Mutex<BTreeMap<String, (Instant, String)>>);

impl Away {
    /// Opens a repository at a pace, unless it has just been tried in vain.
    ///
    /// # Errors
    /// Those of [`repo::open_at_pace`].
    pub fn open(
        &self,
        configured: &config::Repository,
        host: &Host,
        pace: Arc<Pace>,
    ) -> Result<Repository> {
        let nonce = host.random();
        if !configured.location.is_remote() {
            return repo::open_at_pace(configured, nonce, pace);
        }
        if let Some(message) = self.message(configured) {
            return Err(explained(
                configured,
                Error::new(Code::Unreachable, message),
            ));
        }
        let opened = telling(configured, host.progress.as_ref(), || {
            repo::open_at_pace(configured, nonce, pace)
        });
        opened.map_err(|e| {
            if e.code() == Code::Unreachable {
                let mut known = locked(&self.0);
                known.insert(configured.name.to_string(), (Instant::now(), e.to_string()));
            }
            explained(configured, e)
        })
    }

    fn message(&self, configured: &config::Repository) -> Option<String> {
        let known = locked(&self.0);
        let (since, message) = known.get(configured.name.as_str())?;
        (since.elapsed() < REMEMBERED).then(|| message.clone())
    }
}

/// The error of a store that does not answer, with a next step where it has none.
pub fn explained(configured: &config::Repository, error: Error) -> Error {
    if error.code() != Code::Unreachable
        || error.hint_text().is_some()
        || !configured.location.is_remote()
    {
        return error;
    }
    let (place, key) = match (&configured.location, &configured.s3.endpoint) {
        (Location::Sftp { host, .. }, _) => (host.clone(), "url"),
        (_, Some(endpoint)) => (endpoint.to_string(), "endpoint"),
        (_, None) => ("the store".to_owned(), "endpoint"),
    };
    error.hint(format!(
        "Look at the network between this host and {place}, and at {key} in the section of repository \"{}\".",
        configured.name
    ))
}

/// Does something that asks a store, and says so where that takes long.
pub fn telling<T>(
    configured: &config::Repository,
    progress: &dyn Progress,
    work: impl FnOnce() -> T,
) -> T {
    let (done, silent) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if silent.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
                progress.note(&format!(
                    "waiting for repository \"{}\" ({}): what fails is tried again for {}",
                    configured.name,
                    configured.location,
                    human::duration(configured.s3.retry_budget)
                ));
            }
        });
        let result = work();
        drop(done);
        result
    })
}
