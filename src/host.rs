//! The host that work runs on, as one value: clock, random numbers, the wish to stop, progress, room for temporary files.
//!
//! Nothing below `cli` asks the system for the time or for random numbers; tests bring a host of their own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::progress::{Progress, Silent};

/// A clock.
pub type Clock = Arc<dyn Fn() -> TimestampTz + Send + Sync>;
/// A source of random numbers.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Makes a folder that nobody else can enter, whatever the umask is. It goes when the value is dropped.
///
/// # Errors
/// Those of the system.
pub fn private_folder(below: &Path, prefix: &str) -> std::io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(PermissionsExt::from_mode(0o700))
        .tempdir_in(below)
}

/// The host that work runs on.
#[derive(Clone)]
pub struct Host {
    /// The system's clock, for times that are written down; every wait goes by the monotonic clock.
    pub clock: Clock,
    /// Random numbers, for nonces.
    pub random: Random,
    /// Set when the operator wants to stop.
    pub stop: Arc<AtomicBool>,
    /// Hears progress, notes and warnings.
    pub progress: Arc<dyn Progress>,
    /// The directory of temporary files.
    pub scratch: PathBuf,
}

impl Host {
    /// A host for tests: its clock stands at `now`, its random numbers count from `first`, and it says nothing.
    pub fn still(now: TimestampTz, first: u64) -> Host {
        let next = AtomicU64::new(first);
        Host {
            clock: Arc::new(move || now),
            random: Arc::new(move || next.fetch_add(1, Ordering::Relaxed)),
            stop: Arc::default(),
            progress: Arc::new(Silent),
            scratch: std::env::temp_dir(),
        }
    }

    /// Reads the clock.
    pub fn now(&self) -> TimestampTz {
        (self.clock)()
    }

    /// Draws a random number.
    pub fn random(&self) -> u64 {
        (self.random)()
    }

    /// Whether the operator wants to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends work that the operator wants to stop.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn check_stop(&self) -> Result<()> {
        match self.is_stopping() {
            true => Err(err!(Interrupted, "interrupted")),
            false => Ok(()),
        }
    }

    /// Runs `work` on every item, several at once, and returns the results in order. No item is begun once the operator wants to stop.
    ///
    /// # Errors
    /// `Internal` when a thread panicked.
    pub fn parallel<I: Sync, T: Send>(
        &self,
        threads: usize,
        items: &[I],
        work: impl Fn(&I) -> Result<T> + Sync,
    ) -> Result<Vec<Result<T>>> {
        let at = AtomicUsize::new(0);
        let take = || {
            let mut done = Vec::new();
            while let Some((n, item)) = {
                let n = at.fetch_add(1, Ordering::Relaxed);
                items.get(n).map(|item| (n, item))
            } {
                done.push((n, self.check_stop().and_then(|()| work(item))));
            }
            done
        };
        let mut all: Vec<(usize, Result<T>)> = Vec::with_capacity(items.len());
        std::thread::scope(|scope| {
            let count = threads.min(items.len()).max(1);
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(take)).collect();
            for thread in threads {
                match thread.join() {
                    Ok(done) => all.extend(done),
                    Err(_) => return Err(err!(Internal, "a thread panicked")),
                }
            }
            Ok(())
        })?;
        all.sort_unstable_by_key(|(n, _)| *n);
        Ok(all.into_iter().map(|(_, result)| result).collect())
    }

    /// The same host with another listener.
    pub fn with_progress(&self, progress: Arc<dyn Progress>) -> Host {
        Host {
            progress,
            ..self.clone()
        }
    }
}
