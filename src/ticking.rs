//! Work that lasts, beside a claim that ends where nobody renews it.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::err;
use crate::error::Result;

/// How often the claim may be renewed meanwhile.
const TICK: Duration = Duration::from_millis(200);

/// Returns the result of `work`, and calls `tick` about five times a second meanwhile: a slow network or a directory of a million files ends no
/// claim. The work is not cut short by an error of `tick`, which comes first then.
///
/// # Errors
/// The first one of `tick`; those of `work`.
pub fn ticking<T: Send>(
    tick: &mut dyn FnMut() -> Result<()>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    // The channel carries nothing: it is closed when the thread ends.
    let (alive, ended) = channel::<()>();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let _alive = alive;
            work()
        });
        let mut ticked = Ok(());
        while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            ticked = ticked.and_then(|()| tick());
        }
        let panicked = |_| Err(err!(Internal, "a thread panicked"));
        let done = worker.join().unwrap_or_else(panicked);
        ticked.and(done)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_lasts_is_accompanied_and_errors_come_through() {
        let ticks = std::cell::Cell::new(0);
        let mut count = || {
            ticks.set(ticks.get() + 1);
            Ok(())
        };
        let last = || {
            std::thread::sleep(TICK * 5 / 2);
            Ok(7)
        };
        assert_eq!(ticking(&mut count, last).unwrap(), 7);
        // A busy machine may begin the work late.
        assert!(ticks.get() >= 2, "{}", ticks.get());
        let mut failing = || Err(err!(Interrupted, "stop"));
        let stopped = ticking(&mut failing, last).unwrap_err();
        assert_eq!(stopped.code(), crate::error::Code::Interrupted);
        let failed: Result<()> = ticking(&mut count, || Err(err!(Damaged, "work")));
        assert_eq!(failed.unwrap_err().code(), crate::error::Code::Damaged);
        let panicked: Result<()> = ticking(&mut count, || panic!("of the test"));
        assert_eq!(panicked.unwrap_err().code(), crate::error::Code::Internal);
    }
}
