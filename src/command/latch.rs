//! The decision taken when a standby is promoted, for the calls that come after it.
//!
//! PostgreSQL asks for several files while it promotes: the next segment, with the file `promote` still there; then the last segment
//! again, the next history file, and its own history file, when neither `promote` nor, at last, a signal file tells what is going on
//! (measured on 15.20). If the archive is out of reach then, the decision of the first call holds for ten minutes: a standby that has streamed
//! everything is let through, one that lacks archived WAL is stopped.
//!
//! It lies in `pg_wal/pitr.promotion`, which no backup copies, and is not durable: after a crash promotion begins anew. A server that was
//! started since takes nothing from it.

use std::time::{Duration, UNIX_EPOCH};

use crate::archive::datadir::DataDirectory;

const NAME: &str = "pitr.promotion";
const VALID: Duration = Duration::from_secs(600);

/// What becomes of a promotion while the archive is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Everything was streamed: the server goes on without the archive.
    Proceed,
    /// The archive is needed: the server stops.
    Refuse,
}

/// The decision that holds, if there is one. Archive recovery takes none from a standby's time.
pub(super) fn read(directory: &DataDirectory) -> Option<Decision> {
    if directory.has("recovery.signal") {
        return None;
    }
    let path = directory.wal().join(NAME);
    let taken = std::fs::metadata(&path).ok()?.modified().ok()?;
    // A time in the future is no proof of anything.
    if taken.elapsed().ok()? > VALID || taken < UNIX_EPOCH + server_started(directory)? {
        let _ = std::fs::remove_file(&path);
        return None;
    }
    match std::fs::read(&path).ok()?.as_slice() {
        b"proceed\n" => Some(Decision::Proceed),
        b"refuse\n" => Some(Decision::Refuse),
        _ => None,
    }
}

/// Takes down a decision. That it cannot be written changes nothing for the call that took it.
pub(super) fn write(directory: &DataDirectory, decision: Decision) {
    let text = match decision {
        Decision::Proceed => "proceed\n",
        Decision::Refuse => "refuse\n",
    };
    let _ = std::fs::write(directory.wal().join(NAME), text);
}

/// When the server was started, since 1970. PostgreSQL: src/include/utils/pidfile.h, `LOCK_FILE_LINE_START_TIME`.
fn server_started(directory: &DataDirectory) -> Option<Duration> {
    let text = std::fs::read_to_string(directory.path().join("postmaster.pid")).ok()?;
    let seconds = text.lines().nth(2)?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
