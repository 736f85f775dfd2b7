//! The runtime that connections need.

use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, Result};

/// Starts a runtime that works on the calling thread.
///
/// # Errors
/// Errors of the system.
pub fn start() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::from_io("start the runtime", e))
}
