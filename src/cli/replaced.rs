//! Restores into a place that has entries: the plan, and the result.

use serde_json::{Value, json};

use super::files::tell_of_backup;
use super::left_out::{self, SHOWN, status};
use super::{Context, done_or_unconfirmed};
use crate::error::Result;
use crate::operate::human;
use crate::operate::in_place::{Changes, Replaced};
use crate::tree::replace::compare::Change;
use crate::tree::replace::depot::Run;

/// The restore that was asked for.
pub(super) struct Shown<'a> {
    /// `files` or `config`.
    pub(super) kind: &'static str,
    /// Name of the set.
    pub(super) name: &'a str,
    /// Globs of what is restored.
    pub(super) globs: &'a [String],
    /// Whether the operator only looks.
    pub(super) is_dry_run: bool,
}

pub(super) fn show(shown: &Shown<'_>, cx: &Context, replaced: &Replaced) -> Result<u8> {
    cx.answer(&as_json(shown, replaced), || print(shown, cx, replaced))?;
    if !replaced.is_carried_out {
        return done_or_unconfirmed(shown.is_dry_run, "The plan above would be carried out.");
    }
    let content = &replaced.root.content;
    let troubles = content.incomplete_count + content.unstable_count;
    Ok(status(replaced.done.left_out.total() + troubles))
}

fn as_json(shown: &Shown<'_>, replaced: &Replaced) -> Value {
    let content = &replaced.root.content;
    let undone = replaced.interrupted.iter().map(ToString::to_string);
    json!({
        "backup": replaced.root.head.id,
        "name": shown.name,
        "to": replaced.to.to_string_lossy(),
        "paths": shown.globs,
        "confirmed": replaced.is_carried_out,
        "run": replaced.run.as_ref().map(ToString::to_string),
        "undone_runs": undone.collect::<Vec<_>>(),
        "changes": changes_as_json(&replaced.changes),
        "written_bytes": replaced.done.written_bytes,
        "left_out": left_out::as_json(&replaced.done.left_out),
        "incomplete_count": content.incomplete_count,
        "unstable_count": content.unstable_count,
        "not_stored": replaced.not_stored,
        "duration_ms": human::millis(replaced.took),
    })
}

fn changes_as_json(changes: &Changes) -> Value {
    let examples = changes.examples.iter().map(|(change, path)| {
        let change = match change {
            Change::Create => "create",
            Change::Replace => "replace",
            Change::Remove => "remove",
            Change::Settle => "attributes",
        };
        json!({ "change": change, "path": String::from_utf8_lossy(path) })
    });
    json!({
        "created_count": changes.created,
        "replaced_count": changes.replaced,
        "removed_count": changes.removed,
        "attributes_count": changes.settled,
        "kept_count": changes.kept,
        "content_bytes": changes.content_bytes,
        "examples": examples.collect::<Vec<_>>(),
    })
}

fn print(shown: &Shown<'_>, cx: &Context, replaced: &Replaced) -> Result<()> {
    let (changes, done) = (&replaced.changes, &replaced.done);
    tell_of_interrupted(cx, &replaced.interrupted, replaced.is_carried_out);
    if !replaced.is_carried_out {
        list(cx, changed(changes), changes.total())?;
    }
    let what = match replaced.is_carried_out {
        true => format!("{} written", human::size(done.written_bytes)),
        false => format!("{} to write", human::size(changes.content_bytes)),
    };
    cx.report(&format!(
        "backup {} of \"{}\" {} \"{}\": {}, {what} in {}",
        replaced.root.head.id,
        shown.name,
        match replaced.is_carried_out {
            true => "restored to",
            false => "compared with",
        },
        replaced.to.display(),
        summary(changes),
        human::duration(replaced.took)
    ))?;
    tell_of_run(cx, shown, replaced);
    let lacking = match replaced.is_carried_out {
        true => "more were not made as they were",
        false => "more would not be made as they were",
    };
    let root = if shown.kind == "files" { "" } else { "/" };
    left_out::warn(cx, &done.left_out, root, lacking);
    tell_of_backup(cx, &replaced.root.content, &replaced.not_stored);
    Ok(())
}

/// Tells of restores that did not come to their end.
fn tell_of_interrupted(cx: &Context, runs: &[Run], is_undone: bool) {
    for run in runs {
        cx.note(&match is_undone {
            true => format!("restore {run} had been interrupted, and was undone first"),
            false => format!("restore {run} was interrupted, and is undone first: the plan shows its remains, too"),
        });
    }
}

/// Tells how a restore is undone.
fn tell_of_run(cx: &Context, shown: &Shown<'_>, replaced: &Replaced) {
    if let Some(run) = &replaced.run {
        let kept = replaced.to.join(run.shown());
        cx.note(&format!(
            "the entries before lie in \"{}\": pitr {} rollback {} {run} puts them back, and rm -r makes the restore final",
            kept.display(),
            shown.kind,
            shown.name
        ));
    }
}

/// Prints the first lines of so many.
pub(super) fn list(cx: &Context, lines: impl Iterator<Item = String>, total: u64) -> Result<()> {
    cx.lines(lines.take(SHOWN))?;
    match total.saturating_sub(SHOWN as u64) {
        0 => Ok(()),
        more => cx.line(&format!("and {more} more")),
    }
}

fn changed(changes: &Changes) -> impl Iterator<Item = String> {
    changes.examples.iter().map(|(change, path)| {
        let sign = match change {
            Change::Create => '+',
            Change::Replace => '*',
            Change::Remove => '-',
            Change::Settle => 'm',
        };
        let path = match &**path {
            b"" => ".".into(),
            path => String::from_utf8_lossy(path),
        };
        format!("{sign} {path}")
    })
}

fn summary(changes: &Changes) -> String {
    format!(
        "{} made, {} replaced, {} removed, {} with other attributes, {} kept",
        changes.created, changes.replaced, changes.removed, changes.settled, changes.kept
    )
}
