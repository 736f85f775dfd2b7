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
use crate::repo::repository::{Marker, Repository};
use crate::store;
use crate::store::pace::Pace;

/// How long a store may be silent before a note reports it.
const SILENCE: Duration = Duration::from_secs(5);
/// For how long the answer "away" is given again: a command that looks several times would wait as often for the same.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long a directory may take to answer where another repository can be asked instead.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take where another one is read in its place, which may have older content: a mount is there by then.
pub const PATIENCE_BESIDE: Duration = Duration::from_secs(30);
/// How long it may take where there is no other: a disk that sleeps is awake by then.
pub const PATIENCE_ALONE: Duration = Duration::from_secs(60);

/// Repositories that did not answer, by their names: since when, and the error then. Copies of it know the same.
#[derive(Debug, Default, Clone)]
pub struct Away(Arc<Mutex<BTreeMap<String, (Instant, String)>>>);

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
        if let Some(message) = self.message(configured) {
            return Err(as_before(configured, message));
        }
        if !configured.location.is_remote() {
            return repo::open_at_pace(configured, nonce, pace);
        }
        let opened = telling(configured, host.progress.as_ref(), || {
            repo::open_at_pace(configured, nonce, pace)
        });
        opened.map_err(|e| {
            if e.code() == Code::Unreachable {
                self.remember(configured, e.to_string());
            }
            explained(configured, e)
        })
    }

    /// Requires that a directory answers within a time, be it with an error. An object store is asked for a bounded time when it is opened.
    ///
    /// # Errors
    /// `Unreachable` where it hangs.
    pub fn require_answer(
        &self,
        configured: &config::Repository,
        nonce: u64,
        patience: Duration,
    ) -> Result<()> {
        if configured.location.is_remote() {
            return Ok(());
        }
        let place = configured.clone();
        self.require(configured, patience, move || {
            // The opened store closes there, too: that may hang as well.
            let _ = store::open(&place, nonce).and_then(|store| Marker::read(store.as_ref()));
        })
    }

    /// Requires that `ask` ends within a time. A thread that hangs is left behind; it ends with the process.
    fn require(
        &self,
        configured: &config::Repository,
        patience: Duration,
        ask: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        if let Some(message) = self.message(configured) {
            return Err(as_before(configured, message));
        }
        let (done, answer) = mpsc::channel();
        std::thread::spawn(move || {
            ask();
            let _ = done.send(());
        });
        if answer.recv_timeout(patience) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
        let seconds = patience.as_secs();
        let message = format!("it has not answered for {seconds} s: whatever touches it hangs");
        self.remember(configured, message.clone());
        Err(as_before(configured, message))
    }

    fn remember(&self, configured: &config::Repository, message: String) {
        let mut known = locked(&self.0);
        known.insert(configured.name.to_string(), (Instant::now(), message));
    }

    fn message(&self, configured: &config::Repository) -> Option<String> {
        let known = locked(&self.0);
        let (since, message) = known.get(configured.name.as_str())?;
        (since.elapsed() < REMEMBERED).then(|| message.clone())
    }
}

/// The error of a repository that did not answer, with a next step.
fn as_before(configured: &config::Repository, message: String) -> Error {
    let error = Error::new(Code::Unreachable, message);
    match configured.location.is_remote() {
        true => explained(configured, error),
        false => error
            .hint("Look at the mount: a dead NFS server, a stuck FUSE program, a failing disk."),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w72_a_directory_that_hangs_is_waited_for_once() {
        let mut place = config::Repository::at(Location::File("/r".into()));
        place.name = "offsite".into();
        let away = Away::default();
        let (_never, hangs) = mpsc::channel::<()>();
        let soon = Duration::from_millis(50);
        let ask = move || {
            let _ = hangs.recv();
        };
        let hung = away.require(&place, soon, ask).unwrap_err();
        assert_eq!(hung.code(), Code::Unreachable);
        assert!(hung.to_string().contains("has not answered"), "{hung}");
        // A copy knows it, too, and asks nothing.
        let copy = away.clone();
        let again = copy.require(&place, soon, || panic!("it is asked again"));
        let again = again.unwrap_err();
        assert_eq!(again.to_string(), hung.to_string());
        let host = Host::still(crate::pg::time::TimestampTz(0), 0);
        let pace = Arc::new(Pace::new(&host.stop));
        let opened = copy.open(&place, &host, pace).err().unwrap();
        assert_eq!(opened.code(), Code::Unreachable);
        assert!(opened.hint_text().unwrap().contains("the mount"));
        // Another one is asked, and an error is an answer.
        place.name = "near".into();
        assert!(away.require_answer(&place, 0, PATIENCE).is_ok());
    }
}
