//! Whether the WAL of a backup can reach the repository at all, before hours of copying.
//!
//! A backup is refused only when it is certain that its WAL comes by no way: a primary without a working archiver, from which nobody
//! receives. If that cannot be known, the backup goes on, and waits for its WAL in the end.

use super::source::{Receivers, ServerFacts, Source};
use crate::err;
use crate::error::Result;
use crate::progress::Progress;

/// Why a server's archiver brings nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// `archive_mode = off`.
    ModeOff,
    /// Neither command nor library.
    NoCommand,
}

impl Idle {
    fn of(facts: &ServerFacts) -> Option<Idle> {
        // The command is shown as "(disabled)" while archive_mode is off.
        match facts.archive_mode.as_deref()? {
            "off" => Some(Idle::ModeOff),
            _ => {
                let is_empty = facts.archive_command.as_deref()?.is_empty()
                    && facts.archive_library.as_deref()?.is_empty();
                is_empty.then_some(Idle::NoCommand)
            }
        }
    }

    fn what(self) -> &'static str {
        match self {
            Idle::ModeOff => "archive_mode is off",
            Idle::NoCommand => "archive_command is empty",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Idle::ModeOff => {
                "Set archive_mode = on and archive_command as \"pitr init\" prints them, and restart the server. If they are set, only the restart is missing. If this is a restored copy that replaces the cluster: pitr adopt. Or receive its WAL: pitr receive --create-slot"
            }
            Idle::NoCommand => {
                "Set archive_command as \"pitr init\" prints it, and select pg_reload_conf(); or receive the server's WAL: pitr receive --create-slot"
            }
        }
    }
}

/// Refuses a backup that could only wait for its WAL in vain, and warns of what would keep it waiting.
///
/// # Errors
/// `Refused`.
pub(super) fn check(
    source: &mut dyn Source,
    facts: &ServerFacts,
    progress: &dyn Progress,
) -> Result<()> {
    // The WAL of a standby's backup is archived by the primary, whatever the standby does.
    if facts.in_recovery == Some(true) {
        return Ok(());
    }
    let Some(idle) = Idle::of(facts) else {
        warn_of_failures(source, progress);
        return Ok(());
    };
    let what = idle.what();
    match source.receivers() {
        Some(receivers) if receivers.connected_count > 0 => progress.note(&format!(
            "{what}: the backup completes once a receiver has brought its WAL"
        )),
        Some(Receivers { slot_count: 0, .. }) if facts.in_recovery == Some(false) => {
            return Err(err!(
                Refused,
                "{what} on \"{}\", and nobody receives its WAL",
                facts.host
            )
            .hint(format!(
                "Nothing was copied: without its WAL a backup cannot be restored.\n{}",
                idle.remedy()
            )));
        }
        Some(_) => progress.warn(&format!(
            "{what}, and no receiver is connected: the backup completes only when one brings its WAL (pitr receive)"
        )),
        None => progress.warn(&format!(
            "{what}: the backup completes only when its WAL reaches the repository in another way"
        )),
    }
    Ok(())
}

fn warn_of_failures(source: &mut dyn Source, progress: &dyn Progress) {
    if let Some(archiver) = source.archiver()
        && archiver.fails_now
    {
        progress.warn(&format!(
            "archiving fails on the server ({} times so far, last for \"{}\"): the backup completes only when it works again",
            archiver.failed_count,
            archiver.last_failed.unwrap_or_default()
        ));
    }
}
