//! The host that work runs on, as one value: clock, random numbers, the wish to stop, progress, room for temporary files.
//!
//! Nothing below `cli` asks the system for the time or for random numbers; tests bring a host of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::progress::{Progress, Silent};

/// A clock.
pub type Clock = Arc<dyn Fn() -> TimestampTz + Send + Sync>;
/// A source of random numbers.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

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

    /// The same host with another listener.
    pub fn with_progress(&self, progress: Arc<dyn Progress>) -> Host {
        Host {
            progress,
            ..self.clone()
        }
    }
}
