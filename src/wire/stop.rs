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
    unless_ended(work, &mut || match stop.load(Ordering::Relaxed) {
        true => Err(err!(Interrupted, "interrupted")),
        false => Ok(()),
    })
    .await
}

/// Waits for the end of `work`, and calls `tick` meanwhile, which may end it with an error.
///
/// # Errors
/// Those of `work` and `tick`.
pub async fn unless_ended<T>(
    work: impl Future<Output = Result<T>>,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tick()?;
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}
