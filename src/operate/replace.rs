//! A restored cluster that takes the place of another one: a replacement that has begun, and its undo.

use std::path::Path;

use super::archive_command::shell_word;
use super::restore::Asked;
use super::session::Session;
use crate::err;
use crate::error::{Code, Result};
use crate::restore::replace::{Standing, State};

/// A replacement of an earlier run.
#[derive(Debug)]
pub enum Earlier {
    /// There is none that the same command has begun.
    None,
    /// It was interrupted while names were exchanged.
    Interrupted(Box<Standing>),
    /// It is complete, and no server has run since.
    Complete(Box<Standing>),
}

/// The request in the record, by which the same command is known again.
pub fn words(session: &Session, asked: &Asked) -> String {
    let flags = (&session.flags.cluster, &session.flags.repository);
    let what = (&asked.target, asked.action, &asked.mappings);
    format!("{flags:?} {what:?} {:?} {}", asked.databases, asked.adopt)
}

/// Finds what an earlier run has left at the data directory.
///
/// # Errors
/// `Refused` for an interrupted replacement of another request, and for an interrupted undo; those of [`Standing::find`].
pub fn earlier(session: &Session, asked: &Asked) -> Result<Earlier> {
    let to = session.environment.absolute(&asked.to);
    let Some(standing) = Standing::find(&to)? else {
        return Ok(Earlier::None);
    };
    let is_same = standing.is_of(&words(session, asked));
    let undo = undo_line(&to);
    match standing.state() {
        State::Switching if is_same => Ok(Earlier::Interrupted(Box::new(standing))),
        State::Switching => Err(err!(
            Refused,
            "another replacement of \"{}\" was interrupted, of {}",
            to.display(),
            standing.began()
        )
        .hint(format!(
            "Nothing was changed. Run the command that began it, or put the old cluster back: {undo}"
        ))),
        State::Undoing => Err(err!(
            Refused,
            "an undo at \"{}\" was interrupted",
            to.display()
        )
        .hint(format!("Nothing was changed. Complete it first: {undo}"))),
        // Whoever has moved the directories by hand wants another restore.
        State::Switched if is_same && standing.is_untouched().unwrap_or(false) => {
            Ok(Earlier::Complete(Box::new(standing)))
        }
        State::Switched => Ok(Earlier::None),
    }
}

/// The line that puts the old cluster back.
pub fn undo_line(to: &Path) -> String {
    let to = shell_word(&to.to_string_lossy());
    format!("pitr restore --undo --to {to} --confirm")
}

/// Puts the old cluster back where that is confirmed; returns what was found.
///
/// # Errors
/// `NotFound` without a replacement; those of [`Standing::undo`].
pub fn undo(session: &Session, to: &Path, discards: bool, is_confirmed: bool) -> Result<Standing> {
    let to = session.environment.absolute(to);
    let mut standing = Standing::find(&to)?.ok_or_else(|| {
        err!(
            NotFound,
            "no replacement of \"{}\" is recorded",
            to.display()
        )
        .hint("Nothing was changed. A restore that did not come to its end has moved nothing: the data directory is as it was.")
    })?;
    match standing.check_undo(discards) {
        // The plan says it.
        Err(e)
            if !is_confirmed && e.code() == Code::Refused && standing.has_accepted_writes()? => {}
        answer => answer?,
    }
    if is_confirmed {
        standing.clone().undo(discards, &session.host)?;
    }
    Ok(standing)
}
