//! The decision taken when a standby is promoted, for the calls that come after it.
//!
//! PostgreSQL asks for several files while it promotes: the next segment, with the file `promote` still there; then the last segment
//! again, the next history file, and its own history file, when neither `promote` nor, at last, a signal file tells what is going on
//! (measured on 13, 15 and 18; while a standby streams `promote` is gone before the first call, and that is one for the next history file). If
//! the archive is out of reach then, the decision of the first call holds for ten minutes: a standby that has streamed everything is let
//! through, one that lacks archived WAL is stopped.
//!
//! It lies in `pg_wal/pitr.promotion`, which no backup copies, and is not durable: after a crash promotion begins anew. It names the
//! server that is promoted, so that one that was started since takes nothing from it, and counts its age by a clock that nobody sets.

use crate::archive::datadir::DataDirectory;

const NAME: &str = "pitr.promotion";
const VALID_SECONDS: u64 = 600;

/// The decision about a promotion while the archive is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// A standby streams: it goes on without the archive.
    Proceed,
    /// It is being promoted, and everything was streamed: likewise, but for the number of a timeline that is known to exist.
    Promote,
    /// The archive is needed: the server stops.
    Refuse,
}

/// The decision that holds, if there is one. Archive recovery takes none from a standby's time.
pub(super) fn read(directory: &DataDirectory) -> Option<Decision> {
    if directory.has("recovery.signal") {
        return None;
    }
    let path = directory.wal().join(NAME);
    let text = std::fs::read_to_string(&path).ok()?;
    let decision = parse(&text, &server(directory)?, super::since_boot().as_secs());
    if decision.is_none() {
        let _ = std::fs::remove_file(&path);
    }
    decision
}

/// Takes down a decision. That it cannot be written changes nothing for the call that took it.
pub(super) fn write(directory: &DataDirectory, decision: Decision) {
    let Some(server) = server(directory) else {
        return;
    };
    let word = match decision {
        Decision::Proceed => "proceed",
        Decision::Promote => "promote",
        Decision::Refuse => "refuse",
    };
    let text = format!("{word}\n{}\n{server}\n", super::since_boot().as_secs());
    let _ = std::fs::write(directory.wal().join(NAME), text);
}

/// The word, the moment and the server that took it, a line each.
fn parse(text: &str, server: &str, now: u64) -> Option<Decision> {
    let mut lines = text.lines();
    let decision = match lines.next()? {
        "proceed" => Decision::Proceed,
        "promote" => Decision::Promote,
        "refuse" => Decision::Refuse,
        _ => return None,
    };
    let age = now.checked_sub(lines.next()?.parse().ok()?)?;
    (age <= VALID_SECONDS && lines.next()? == server).then_some(decision)
}

/// The server that is promoted, as text.
fn server(directory: &DataDirectory) -> Option<String> {
    let (pid, started) = directory.server()?;
    Some(format!("{pid} {started}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_holds_for_its_server_and_for_ten_minutes() {
        let text = "refuse\n1000\n77 1700000000\n";
        let same = "77 1700000000";
        assert_eq!(parse(text, same, 1000), Some(Decision::Refuse));
        assert_eq!(parse(text, same, 1600), Some(Decision::Refuse));
        for (server, now) in [
            (same, 1601),
            (same, 999),
            ("77 1700000001", 1000),
            ("78 1700000000", 1000),
        ] {
            assert_eq!(parse(text, server, now), None, "{server} {now}");
        }
        for bad in [
            "",
            "refuse",
            "refuse\nx\n77 1700000000\n",
            "stay\n1000\n77 1700000000\n",
            "refuse\n-9223372036854775808\n77 1700000000\n",
        ] {
            assert_eq!(parse(bad, same, 1000), None, "{bad}");
        }
    }
}
