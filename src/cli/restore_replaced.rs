//! `pitr restore --replace` and `--undo`: a restored cluster takes the place of another one, and gives it back.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::erasure::{Copied, apply_to_restored, print_applied, tell};
use super::restore::{Args, check_no_consent, erases, lacking, status, unknown};
use super::{Context, done_or_unconfirmed, unconfirmed};
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate::archive_command::shell_word;
use crate::operate::aside;
use crate::operate::erasure::Lacking;
use crate::operate::erasure::scripts::Applied;
use crate::operate::human;
use crate::operate::replace::{self, Earlier, Undone};
use crate::operate::restore::Asked;
use crate::operate::restoring::Prepared;
use crate::restore::replace::{Old, Standing, State};

/// A replacement, planned or made, as JSON.
#[derive(Serialize)]
pub(super) struct Replaced {
    /// The directories that are moved aside.
    moved: Vec<String>,
    /// The names that they have since, in the same order; empty while nothing was done.
    aside: Vec<String>,
    undo_command: Option<String>,
}

impl Replaced {
    /// That of a plan.
    pub(super) fn planned(old: &Old) -> Replaced {
        Replaced {
            moved: old.moved().iter().map(|path| text(path)).collect(),
            aside: Vec::new(),
            undo_command: None,
        }
    }

    /// One that was made.
    pub(super) fn done(standing: &Standing) -> Replaced {
        Replaced {
            moved: standing.places().into_iter().map(text).collect(),
            aside: standing.replaced().into_iter().map(text).collect(),
            undo_command: Some(replace::undo_line(standing.data())),
        }
    }

    /// Says where the old cluster is, and how it comes back.
    pub(super) fn print(&self, cx: &Context) -> Result<()> {
        cx.line("The old cluster is kept, and cannot be started there:")?;
        for (was, is) in self.moved.iter().zip(&self.aside) {
            cx.line(&format!("  {was} is now {is}"))?;
        }
        let undo = self.undo_command.as_deref().unwrap_or_default();
        cx.line("This puts it back while no server runs there:")?;
        cx.line(&format!("  {undo}"))?;
        cx.line("Add --discard-changes to it once a server of the new cluster has accepted writes: they are kept aside then.")
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Shows what would be moved aside.
pub(super) fn show(cx: &Context, prepared: &Prepared) -> Result<()> {
    let Some(old) = prepared.replaces.as_ref().filter(|_| !cx.is_json()) else {
        return Ok(());
    };
    for path in old.moved() {
        let path = path.display();
        cx.line(&format!("\"{path}\" is moved aside, and kept"))?;
    }
    Ok(())
}

/// Warns of what the old cluster has, and what the repository lacks.
pub(super) fn warn(cx: &Context, prepared: &Prepared) -> Result<()> {
    let Some(old) = &prepared.replaces else {
        return Ok(());
    };
    if old.unarchived > 0 {
        let wal = shell_word(&text(&old.data.join("pg_wal")));
        cx.warn(&format!(
            "{} of the old cluster wait to be archived, so its last commits may be missing in the new one. They are kept with it; pitr wal backfill --from {wal} brings them in beforehand",
            human::count(old.unarchived as u64, "WAL file")
        ));
    }
    let wal = old.data.join("pg_wal");
    if old.is_crashed && !wal.is_dir() {
        cx.warn("the server of the old cluster was not shut down cleanly, and its pg_wal is gone: commits that were neither archived nor received are lost");
    } else if old.is_crashed {
        let wal = shell_word(&text(&wal));
        cx.warn(&format!(
            "the server of the old cluster was not shut down cleanly, and its last WAL was never offered to be archived, so its last commits may be missing in the new one. They are kept with it. Beforehand, start it and stop it cleanly, or run pitr wal backfill --from {wal}, which brings in the segments that are whole"
        ));
    }
    if let Some(earlier) = Standing::find(&old.data)? {
        let aside = earlier.replaced();
        cx.warn(&format!(
            "--undo leads back to the cluster that is there now, and no more to \"{}\"",
            aside.first().map(|path| text(path)).unwrap_or_default()
        ));
    }
    Ok(())
}

/// A replacement of an earlier run, as JSON.
#[derive(Serialize)]
struct TakenUp<'a> {
    to: &'a str,
    backup: &'a str,
    target: &'a str,
    complete: bool,
    dry_run: bool,
    replaced: &'a Replaced,
    #[serde(skip_serializing_if = "Option::is_none")]
    erasures: Option<&'a Lacking>,
    /// The outcome of each of them, where they were repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    erased: Option<&'a [Applied]>,
}

/// The erasures that the cluster of an earlier run may lack, and whether `--erase` has to repeat some. None where its record does not tell its plan.
fn erasures_of(
    args: &Args,
    cx: &Context,
    standing: &Standing,
) -> Result<Option<(Option<Lacking>, bool)>> {
    let (opened, plan) = match replace::source_of(&cx.session, standing) {
        Ok(Some(source)) => source,
        Ok(None) => return Ok(None),
        Err(e) if args.erase => return Err(e),
        Err(e) => return Ok(Some((unknown(cx, &e), false))),
    };
    let is_needed = erases(args, cx, (&opened, &plan), &args.erasures.consent())?;
    if let Some(backup) = plan.backup.as_ref().filter(|_| is_needed) {
        aside::require_private(&cx.session, backup.major)?;
    }
    Ok(Some((lacking(cx, (&opened, &plan)), is_needed)))
}

/// Goes on with a replacement that was interrupted while names were exchanged, or tells that it is complete. None where there is none.
pub(super) fn taken_up(args: &Args, asked: &Asked, cx: &Context) -> Result<Option<u8>> {
    let (mut standing, is_complete) = match replace::earlier(&cx.session, asked, args.erase)? {
        Earlier::None => return Ok(None),
        Earlier::Interrupted(standing) => (standing, false),
        Earlier::Complete(standing) => (standing, true),
    };
    let is_confirmed = args.confirm && !args.dry_run;
    let is_due = !is_complete && is_confirmed;
    // An obstacle to the erasures is found before anything changes. Nothing else waits for a repository: no server starts there until names are exchanged.
    let mut known = match args.erase || !is_due {
        true => erasures_of(args, cx, &standing)?,
        false => None,
    };
    if is_due {
        if !args.erase {
            check_no_consent(args)?;
        }
        standing.finish(&cx.session.host)?;
        if known.is_none() {
            known = erasures_of(args, cx, &standing)?;
        }
    }
    let is_in_place = is_complete || is_due;
    let (lacking, is_needed) = known.unwrap_or((None, args.erase));
    let replaced = Replaced::done(&standing);
    let data = text(standing.data());
    let is_run = is_needed && is_in_place && is_confirmed;
    let erased = is_run.then(|| apply_to_restored(cx, &data, &args.erasures.consent()));
    let shown = TakenUp {
        to: &data,
        backup: standing.backup(),
        target: standing.target(),
        complete: is_in_place,
        dry_run: args.dry_run,
        replaced: &replaced,
        erasures: lacking.as_ref(),
        erased: None,
    };
    if cx.is_json() {
        let erased = erased.transpose()?;
        let applied = erased.as_ref().map(|(applied, _)| applied.as_slice());
        cx.json(&TakenUp {
            erased: applied,
            ..shown
        })?;
        if erased.is_some() {
            return status(cx, erased.as_ref()).map(Some);
        }
    } else {
        let how = match (is_complete, is_due) {
            (true, _) => "was put in place before, and no server has run since",
            (false, true) => "is in its place",
            (false, false) => "waits to be put in its place: an earlier run was interrupted",
        };
        cx.line(&format!(
            "the cluster restored from backup {} to {} {how}: {data}",
            standing.backup(),
            standing.target()
        ))?;
        if is_in_place {
            replaced.print(cx)?;
        }
        if let Some(erased) = erased {
            let erased = erased?;
            print_applied(cx, &erased.0)?;
            return status(cx, Some(&erased)).map(Some);
        }
        if is_in_place {
            let is_guarded = DataDirectory::at(standing.data()).has(&format!("pg_wal/{GUARD}"));
            let copied = match is_guarded {
                true => Copied::Guarded,
                false => Copied::Adopted,
            };
            tell(cx, lacking.as_ref(), (&data, copied))?;
        }
    }
    let is_done = (is_in_place && !is_needed) || args.dry_run;
    let would = match is_in_place {
        true => "The erasures that the restored cluster lacks would be repeated in it.",
        false => "The restored cluster would take its place.",
    };
    done_or_unconfirmed(is_done, would).map(Some)
}

/// Puts the old cluster back, or shows what that does.
pub(super) fn undo(args: &Args, cx: &Context) -> Result<u8> {
    let is_confirmed = args.confirm && !args.dry_run;
    let (to, discards) = (&args.to, args.discard_changes);
    let Undone { standing, adopted } = replace::undo(&cx.session, to, discards, is_confirmed)?;
    let wrote = !is_confirmed && standing.has_accepted_writes()?;
    // An undo that has begun was allowed.
    let lacks_discard = wrote && !discards && standing.state() != State::Undoing;
    let (data, aside) = (text(standing.data()), standing.undone());
    if cx.is_json() {
        cx.json(&json!({
            "to": data,
            "backup": standing.backup(),
            "target": standing.target(),
            "replaced_at": standing.began(),
            "interrupted": standing.state() != State::Switched,
            "accepted_writes": wrote,
            "confirmed": is_confirmed,
            "adopted_timeline": adopted,
            "aside": aside.iter().map(|path| text(path)).collect::<Vec<_>>(),
        }))?;
    } else {
        let verb = if is_confirmed { "undone" } else { "found" };
        cx.line(&format!(
            "replacement of {} in {data} {verb}: backup {}, {}",
            standing.began(),
            standing.backup(),
            standing.target()
        ))?;
        let is = if is_confirmed { "is now" } else { "would be" };
        for path in aside {
            cx.line(&format!(
                "  the restored cluster {is} kept in {}",
                path.display()
            ))?;
        }
        if let Some(timeline) = adopted {
            // Under which name it was adopted is not known here.
            let timeline = timeline.decimal();
            cx.line(&format!("It was adopted: its timeline {timeline} may be archived, and followed still: \"pitr timeline list\" shows it, and \"pitr timeline abandon {timeline} --reason TEXT\" gives it up."))?;
        } else if is_confirmed && discards {
            cx.line("Where it was adopted and has archived, its timeline is followed still: \"pitr timeline list\" shows it, and \"pitr timeline abandon N --reason TEXT\" gives it up.")?;
        }
        if lacks_discard {
            cx.line("It has accepted writes, which the old cluster does not have: --discard-changes is needed.")?;
        }
    }
    match (is_confirmed, args.dry_run) {
        (true, _) | (false, true) => Ok(exit::SUCCESS),
        (false, false) if lacks_discard => Err(err!(
            Refused,
            "nothing was changed, because --confirm and --discard-changes are not given"
        )
        .hint("The old cluster would be put back, without what was written since.\nAdd --confirm and --discard-changes to do it, or --dry-run to only look.")),
        (false, false) => Err(unconfirmed("The old cluster would be put back.")),
    }
}
