//! Signs of life of stores across a network, for a watch that has to tell slow from dead.
//!
//! A request may take seconds without a byte of the file, although nothing is wrong: connecting, signing in, listing.
//! Only the store's answers count. One count serves the process: the watch ends the process, too.

use std::sync::atomic::{AtomicU64, Ordering};

static SIGNS: AtomicU64 = AtomicU64::new(0);

/// A store has answered, or a piece of its answer has come.
#[cfg(feature = "program")]
pub(super) fn sign() {
    SIGNS.fetch_add(1, Ordering::Relaxed);
}

/// How many there were.
pub fn signs() -> u64 {
    SIGNS.load(Ordering::Relaxed)
}
