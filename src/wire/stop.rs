//! Waiting for a server, until the operator wants to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::err;
use crate::error::Result;

/// How often the wish to stop is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Waits for the end of `work`, or of the operator's patience. Work that is given up is dropped at its await.
///
/// # Errors
/// `Interrupted`; those of `work`.
pub async fn unless_stopped<T>(
    stop: &AtomicBool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(err!(Interrupted, "interrupted"));
        }
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}
