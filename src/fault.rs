//! Named fault points for tests, where no system call marks the spot. Nothing of it is in a release build.

use std::process::Command;
use std::time::{Duration, SystemTime};

/// The variable of [`time`].
#[cfg(debug_assertions)]
const CLOCK: &str = "PITR_FAULT_CLOCK";

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

/// Makes the file `PATH` and waits until it is gone, when `$PITR_FAULT_PAUSE` is `NAME=PATH`.
#[cfg(debug_assertions)]
pub fn pause(name: &str) {
    let wanted = std::env::var("PITR_FAULT_PAUSE").unwrap_or_default();
    let path = wanted.split_once('=').filter(|(wanted, _)| *wanted == name);
    if let Some((_, path)) = path
        && std::fs::write(path, "").is_ok()
    {
        while std::fs::exists(path).unwrap_or(false) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn pause(_name: &str) {}

/// Whether a test counts the calls of this process: `$PITR_FAULT_UNSEEN` spares it the thread that shows other processes what it does.
#[cfg(debug_assertions)]
pub fn is_unseen() -> bool {
    std::env::var_os("PITR_FAULT_UNSEEN").is_some()
}

/// No.
#[cfg(not(debug_assertions))]
pub fn is_unseen() -> bool {
    false
}

/// Whether this filesystem is one that cannot `feature`: `$PITR_FAULT_LACKS` names some, parted by commas.
#[cfg(debug_assertions)]
pub fn lacks(feature: &str) -> bool {
    let lacked = std::env::var("PITR_FAULT_LACKS").unwrap_or_default();
    lacked.split(',').any(|lacked| lacked == feature)
}

/// No.
#[cfg(not(debug_assertions))]
pub fn lacks(_feature: &str) -> bool {
    false
}

/// A length of time that `$PITR_FAULT_SECONDS` shortens, so that a test need not wait for the real one.
#[cfg(debug_assertions)]
pub fn shortened(time: Duration) -> Duration {
    shortened_by("PITR_FAULT_SECONDS", time)
}

/// The time itself.
#[cfg(not(debug_assertions))]
pub fn shortened(time: Duration) -> Duration {
    time
}

/// The time that a directory or a server may be silent, which `$PITR_FAULT_SILENCE_SECONDS` shortens.
#[cfg(debug_assertions)]
pub fn silence(time: Duration) -> Duration {
    shortened_by("PITR_FAULT_SILENCE_SECONDS", time)
}

/// The time itself.
#[cfg(not(debug_assertions))]
pub fn silence(time: Duration) -> Duration {
    time
}

/// The length of a round of turns, which `$PITR_FAULT_ROUND_SECONDS` shortens.
#[cfg(debug_assertions)]
pub fn round(time: Duration) -> Duration {
    shortened_by("PITR_FAULT_ROUND_SECONDS", time)
}

#[cfg(debug_assertions)]
fn shortened_by(variable: &str, time: Duration) -> Duration {
    let seconds = std::env::var(variable).ok();
    let wanted = seconds
        .and_then(|s| s.parse().ok())
        .map(Duration::from_secs);
    wanted.map_or(time, |w| w.min(time))
}

/// The length itself.
#[cfg(not(debug_assertions))]
pub fn round(time: Duration) -> Duration {
    time
}

/// A length of time of the clock of schedules, on the clock of the host: `$PITR_FAULT_CLOCK` makes it go faster.
#[cfg(debug_assertions)]
pub fn hastened(time: Duration) -> Duration {
    match clock() {
        // Whoever looks more often than this does nothing else.
        Some((_, _, factor)) => (time / factor.max(1)).max(Duration::from_millis(50)),
        None => time,
    }
}

/// The time itself.
#[cfg(not(debug_assertions))]
pub fn hastened(time: Duration) -> Duration {
    time
}

/// The time that `$PITR_FAULT_CLOCK` makes of the system's: `<start>,<origin>,<factor>`. At `<origin>`, in seconds of the system's clock, it is `<start>`, and from
/// then on `<factor>` seconds pass in each.
#[cfg(debug_assertions)]
pub fn time(system: SystemTime) -> SystemTime {
    let Some((start, origin, factor)) = clock() else {
        return system;
    };
    let origin = SystemTime::UNIX_EPOCH + Duration::from_secs(origin);
    let passed = system.duration_since(origin).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(start) + passed * factor
}

/// The time itself.
#[cfg(not(debug_assertions))]
pub fn time(system: SystemTime) -> SystemTime {
    system
}

/// The time of another machine, which goes along with this host's where `$PITR_FAULT_CLOCK` ends in `,all`.
#[cfg(debug_assertions)]
pub fn time_elsewhere(system: SystemTime) -> SystemTime {
    match clock_goes("all") {
        true => time(system),
        false => system,
    }
}

/// The time itself.
#[cfg(not(debug_assertions))]
pub fn time_elsewhere(system: SystemTime) -> SystemTime {
    system
}

/// Gives the command of a job the system's own clock where `$PITR_FAULT_CLOCK` ends in `,agent`: a server and a store have no other.
#[cfg(debug_assertions)]
pub fn keep_clock(command: &mut Command) {
    if clock_goes("agent") {
        command.env_remove(CLOCK);
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn keep_clock(_command: &mut Command) {}

#[cfg(debug_assertions)]
fn clock_goes(with: &str) -> bool {
    let text = std::env::var(CLOCK).unwrap_or_default();
    text.split(',').nth(3) == Some(with)
}

#[cfg(debug_assertions)]
fn clock() -> Option<(u64, u64, u32)> {
    let text = std::env::var(CLOCK).ok()?;
    let mut parts = text.split(',');
    let mut next = || parts.next()?.parse().ok();
    let (start, origin, factor) = (next()?, next()?, next()?);
    Some((start, origin, u32::try_from(factor).ok()?))
}

/// A limit that `$PITR_FAULT_LIMIT` lowers, so that a test need not reach the real one.
#[cfg(debug_assertions)]
pub fn lowered(limit: usize) -> usize {
    lowered_by("PITR_FAULT_LIMIT", limit)
}

/// The length of packs, which `$PITR_FAULT_PACK_BYTES` lowers likewise.
#[cfg(debug_assertions)]
pub fn pack_bytes(limit: usize) -> usize {
    lowered_by("PITR_FAULT_PACK_BYTES", limit)
}

/// The number of findings that a report lists, which `$PITR_FAULT_LISTED` lowers likewise.
#[cfg(debug_assertions)]
pub fn listed(limit: usize) -> usize {
    lowered_by("PITR_FAULT_LISTED", limit)
}

#[cfg(debug_assertions)]
fn lowered_by(variable: &str, limit: usize) -> usize {
    let wanted = std::env::var(variable).ok();
    let wanted = wanted.and_then(|s| s.parse().ok());
    wanted.map_or(limit, |w: usize| w.min(limit))
}

/// The limit itself.
#[cfg(not(debug_assertions))]
pub fn lowered(limit: usize) -> usize {
    limit
}

/// The number itself.
#[cfg(not(debug_assertions))]
pub fn listed(limit: usize) -> usize {
    limit
}

/// The length itself.
#[cfg(not(debug_assertions))]
pub fn pack_bytes(limit: usize) -> usize {
    limit
}
