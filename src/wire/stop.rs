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

/// As [`unless_stopped`], for no longer than `limit`: for a question whose answer can be done without.
///
/// # Errors
/// `Deadline`; those of [`unless_stopped`].
pub async fn within<T>(
    limit: Duration,
    stop: &AtomicBool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let limited = async {
        let done = tokio::time::timeout(limit, work).await;
        done.unwrap_or_else(|_| Err(err!(Deadline, "no answer within {} s", limit.as_secs())))
    };
    unless_stopped(stop, limited).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_given_up_at_the_limit_or_at_the_stop() {
        let (go_on, stop) = (AtomicBool::new(false), AtomicBool::new(true));
        let limit = Duration::from_millis(10);
        let never = std::future::pending::<Result<()>>;
        let late = within(limit, &go_on, never()).await.unwrap_err();
        assert_eq!(late.code(), Code::Deadline);
        let long = Duration::from_secs(3600);
        let stopped = within(long, &stop, never()).await.unwrap_err();
        assert_eq!(stopped.code(), Code::Interrupted);
        let answered = within(limit, &go_on, async { Ok(7) }).await;
        assert_eq!(answered.unwrap(), 7);
    }
}
