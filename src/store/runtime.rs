//! The runtime of all stores across a network, and the moment at which everything asked of them must be over.

use std::future::Future;
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

use tokio::runtime::Runtime;

use crate::err;
use crate::error::{Error, Result};

/// The moment at which everything that this process asks of such stores must be over.
static END: OnceLock<Instant> = OnceLock::new();

/// Ends all requests of this process at a moment, so that several in a row are not each tried for their whole time; the first call counts.
pub fn end_at(moment: Instant) {
    let _ = END.set(moment);
}

/// Returns that moment, where one was set.
pub(super) fn end() -> Option<Instant> {
    END.get().copied()
}

/// Runs a future on the stores' own runtime and waits for it. Callers may be inside another runtime, whose threads must not enter this
/// one: only a channel is waited for.
///
/// # Errors
/// `Internal` when the runtime cannot be started, or the future panics.
pub(super) fn wait<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    let (done, answer) = std::sync::mpsc::channel();
    runtime()?.spawn(async move {
        let _ = done.send(future.await);
    });
    answer
        .recv()
        .map_err(|_| err!(Internal, "a request ended without an answer"))
}

/// As [`wait`], for a request.
///
/// # Errors
/// Those of [`wait`], and of the request.
pub(super) fn answer<T: Send + 'static, E: Send + 'static>(
    request: impl Future<Output = std::result::Result<T, E>> + Send + 'static,
) -> Result<T>
where
    Error: From<E>,
{
    Ok(wait(request)??)
}

/// Waits for a request that owns copies of what it needs.
macro_rules! asked {
    ($($own:ident = $of:expr),+ => $request:expr) => {{
        $(let $own = $of.to_owned();)+
        $crate::store::runtime::answer(async move { $request.await })
    }};
}
pub(super) use asked;

/// Returns the runtime. One thread drives all requests of the process; it also sees connections end that nobody uses just then.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            // Names are resolved by threads of their own, and a name server that is away holds each for long.
            .max_blocking_threads(64)
            .thread_name("store")
            .enable_all()
            .build()
    });
    RUNTIME
        .as_ref()
        .map_err(|e| err!(Internal, "could not start the runtime of the stores: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_works_inside_another_runtime() {
        let other = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(other.block_on(async { wait(async { 7 }).unwrap() }), 7);
    }
}
