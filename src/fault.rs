//! Named fault points for tests, where no system call marks the spot. Nothing of it is in a release build.

use std::time::Duration;

/// Panics here when `$PITR_FAULT` names this point.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    if std::env::var_os("PITR_FAULT").is_some_and(|wanted| wanted == name) {
        panic!("fault point \"{name}\"");
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}

/// A length of time that `$PITR_FAULT_SECONDS` shortens, so that a test need not wait for the real one.
#[cfg(debug_assertions)]
pub fn shortened(time: Duration) -> Duration {
    let seconds = std::env::var("PITR_FAULT_SECONDS").ok();
    let wanted = seconds
        .and_then(|s| s.parse().ok())
        .map(Duration::from_secs);
    wanted.map_or(time, |w| w.min(time))
}

/// The time itself.
#[cfg(not(debug_assertions))]
pub fn shortened(time: Duration) -> Duration {
    time
}

/// A limit that `$PITR_FAULT_LIMIT` lowers, so that a test need not reach the real one.
#[cfg(debug_assertions)]
pub fn lowered(limit: usize) -> usize {
    let wanted = std::env::var("PITR_FAULT_LIMIT").ok();
    let wanted = wanted.and_then(|s| s.parse().ok());
    wanted.map_or(limit, |w: usize| w.min(limit))
}

/// The limit itself.
#[cfg(not(debug_assertions))]
pub fn lowered(limit: usize) -> usize {
    limit
}
