//! The end of a clone by hand: what is thrown away, and what is a data directory then.

use std::path::Path;
use std::time::Duration;

use super::folder::{self, Stage, State};
use crate::archive::guard::UNFINISHED;
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::restore::target_dir::{CONTROL, WAITING_CONTROL};

/// How often a clone that stops is looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// Stops the clone of this id below a directory, and returns its state where it was kept. `options` lead other commands to it.
///
/// # Errors
/// `Refused` where something would be lost, and that is not confirmed; `Io` where something of it is left.
pub fn stop(
    session: &Session,
    (below, id): (&Path, &str),
    is_confirmed: bool,
    options: &str,
) -> Result<Option<State>> {
    let (path, state) = folder::find(below, id)?;
    if state.stage == Stage::Kept {
        return Err(err!(
            Refused,
            "clone {id} was stopped and kept: it is the data directory \"{}\"",
            state.data.display()
        )
        .hint("Nothing was done. Remove the directory by hand where it is not needed."));
    }
    if let Some(why) = not_settled(&path, &state, options) {
        if !is_confirmed {
            return Err(why);
        }
        folder::discard(&path)?;
        return Ok(None);
    }
    // A wish that could not be fulfilled is one all the same.
    let is_wanted = folder::is_asked_for(&path) || state.not_kept.is_some();
    if is_wanted && !state.stage.has_all() && !is_confirmed {
        return Err(err!(Refused, "clone {id} is to be kept, and is not whole yet: stopped now, it would be lost")
            .hint(format!("Nothing was done. Wait until pitr clone list{options} says \"whole\", ask again where it says why it is not kept (pitr clone keep {id}{options}), or throw it away: pitr clone stop {id} --confirm{options}")));
    }
    folder::ask_to_stop(&path, &state);
    while folder::is_held(&path) {
        session.host.check_stop()?;
        std::thread::sleep(PAUSE);
    }
    // Also where its process was killed: the list removes or finishes what that has left.
    let left = folder::list(below).into_iter().find(|one| one.id == id);
    let left_state = left.as_ref();
    let why = left_state.and_then(|state| not_settled(&path, state, options));
    match (why, left.filter(|state| state.stage == Stage::Kept)) {
        (Some(why), _) => Err(why),
        (None, None) if path.exists() => Err(err!(
            Io,
            "clone {id} is stopped, and \"{}\" could not be removed",
            path.display()
        )
        .hint("Nobody holds it any more. Look whose the files in it are, and remove it by hand.")),
        (None, kept) => Ok(kept),
    }
}

/// Why a clone that was stopped, and has all content, is no data directory yet.
pub fn not_settled(path: &Path, state: &State, options: &str) -> Option<Error> {
    let is_left = matches!(state.stage, Stage::Settling | Stage::Whole) && !folder::is_held(path);
    if !is_left {
        return None;
    }
    let why = state.not_kept.as_deref();
    let why = why.unwrap_or("there was no room to take down why");
    let (id, data) = (&state.id, state.data.display());
    let hint = match state.stage {
        Stage::Whole => format!(
            "All of it is in \"{data}\", and durable. Correct the cause: pitr clone list{options} tries again. To throw it away: pitr clone stop {id} --confirm{options}"
        ),
        _ => format!(
            "All of it is in \"{data}\". Correct the cause and sync the filesystem before the host goes down; then \"rm {data}/pg_wal/{UNFINISHED}; mv {data}/{WAITING_CONTROL} {data}/{CONTROL}\" makes it a data directory. To throw it away: pitr clone stop {id} --confirm{options}"
        ),
    };
    let failed = "could not be made a data directory";
    Some(err!(Io, "clone {id} is stopped, and {failed}: {why}").hint(hint))
}
