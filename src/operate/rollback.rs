//! Undoes a restore in place.

use std::path::Path;

use super::session::Session;
use crate::err;
use crate::error::Result;
use crate::tree::left_out::LeftOut;
use crate::tree::replace::Target;
use crate::tree::replace::depot::Run;
use crate::tree::replace::journal::Restore;

/// An undo that is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `files` or `config`.
    pub kind: &'static str,
    /// Name of the set.
    pub name: String,
    /// The restore; the newest one without it.
    pub run: Option<Run>,
    /// Whether changes that were made since are lost.
    pub discards: bool,
    /// Whether the plan is carried out.
    pub is_confirmed: bool,
}

/// The result of an undo.
pub struct RolledBack {
    /// The restore that is undone.
    pub run: Run,
    /// The same.
    pub restore: Restore,
    /// Entries that go back to their places.
    pub back: Vec<Vec<u8>>,
    /// Entries that the restore had made, and that go.
    pub gone: Vec<Vec<u8>>,
    /// Entries that were changed since.
    pub changed: Vec<Vec<u8>>,
    /// Attributes of directories that could not be put back.
    pub left_out: LeftOut,
}

/// Undoes a restore of a set into `to`, or tells what that changes.
///
/// # Errors
/// `NotFound` without such a restore; those of [`Target::undo`] and of carrying it out.
pub fn run(session: &Session, to: &Path, asked: &Asked) -> Result<RolledBack> {
    undo(session, &Target::open(to)?, to, asked)
}

/// As [`run`], in a place that is open.
pub(super) fn undo(
    session: &Session,
    target: &Target,
    to: &Path,
    asked: &Asked,
) -> Result<RolledBack> {
    let run = match &asked.run {
        Some(run) => run.clone(),
        None => {
            let mut kept = target.kept()?;
            kept.retain(|kept| is_of(&kept.restore, asked));
            let newest = kept.pop().ok_or_else(|| {
                err!(
                    NotFound,
                    "no restore of \"{}\" can be undone in \"{}\"",
                    asked.name,
                    to.display()
                )
            })?;
            newest.run
        }
    };
    let mut undo = target.undo(&run)?;
    let restore = undo.restore().clone();
    if !is_of(&restore, asked) {
        return Err(
            err!(Usage, "the restore {run} is one of \"{}\"", restore.name).hint(format!(
                "Nothing was changed. Run: pitr {} rollback {} {run}",
                restore.kind, restore.name
            )),
        );
    }
    let mut done = RolledBack {
        run,
        restore,
        back: std::mem::take(&mut undo.back),
        gone: std::mem::take(&mut undo.gone),
        changed: undo.changed.clone(),
        left_out: LeftOut::default(),
    };
    if asked.is_confirmed {
        let host = &session.host;
        done.left_out = undo.carry_out(asked.discards, &mut || host.check_stop())?;
    }
    Ok(done)
}

fn is_of(restore: &Restore, asked: &Asked) -> bool {
    restore.kind == asked.kind && restore.name == asked.name
}
