//! A repository that is used again and again.

use std::time::{Duration, Instant};

use super::repository::Repository;
use crate::config;
use crate::error::Result;

/// A remote repository is used for so long before its marker is read again.
const KEPT_OPEN: Duration = Duration::from_secs(60);

/// A repository that is open, and since when.
pub type Open = (Repository, Instant);

/// A directory is opened each time: a place that is not mounted any more is not mistaken for the repository, and none is kept from being
/// unmounted. A remote one stays open for a minute: nothing else would show that it was emptied, or is another one, than its marker.
#[derive(Default)]
pub struct KeptOpen(Option<Open>);

impl KeptOpen {
    /// Takes the open one, or opens it. It is forgotten unless it is given back: a failure may have been the repository's.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn take(
        &mut self,
        place: &config::Repository,
        nonce: impl FnOnce() -> u64,
    ) -> Result<Open> {
        match self.0.take() {
            Some((open, since)) if since.elapsed() < KEPT_OPEN => Ok((open, since)),
            _ => Ok((super::open(place, nonce())?, Instant::now())),
        }
    }

    /// Gives it back.
    pub fn keep(&mut self, (repository, since): Open) {
        self.0 = Some((repository, since)).filter(|(r, _)| r.store().is_remote());
    }

    /// Closes it.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}
