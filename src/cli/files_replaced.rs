//! `pitr files restore` into a directory that has entries: the plan, and the result.

use std::path::Path;

use serde_json::{Value, json};

use super::files::{RestoreArgs, left_out_as_json, permit, status, tell, tell_of_backup};
use super::{Context, unconfirmed};
use crate::error::Result;
use crate::exit;
use crate::operate::files_replace::{self, Asked, Changes, Replaced};
use crate::operate::human;
use crate::tree::replace::compare::Change;
use crate::tree::replace::depot::Run;

/// Changes that are printed.
const SHOWN: usize = 20;

/// Takes a directory back.
pub(super) fn run(args: &RestoreArgs, cx: &Context) -> Result<u8> {
    let replaced = files_replace::replace(
        &cx.session,
        &Asked {
            name: args.name.clone(),
            choice: args.choice.choice(),
            globs: args.path.clone(),
            to: args.to.clone(),
            permit: permit(args.privileged),
            compares_content: args.replace.checksum,
            deletes: args.replace.delete,
            is_confirmed: args.replace.confirm,
        },
    )?;
    if cx.out.is_json() {
        cx.out.json(&as_json(args, &replaced))?;
    } else {
        print(args, cx, &replaced)?;
    }
    if !replaced.is_carried_out {
        return match args.replace.dry_run {
            true => Ok(exit::SUCCESS),
            false => Err(unconfirmed("The plan above would be carried out.")),
        };
    }
    let content = &replaced.root.content;
    let troubles = content.incomplete_count + content.unstable_count;
    Ok(status(replaced.done.left_out.total() + troubles))
}

fn as_json(args: &RestoreArgs, replaced: &Replaced) -> Value {
    let content = &replaced.root.content;
    json!({
        "backup": replaced.root.head.id,
        "name": args.name,
        "to": replaced.to,
        "paths": args.path,
        "confirmed": replaced.is_carried_out,
        "run": replaced.run.as_ref().map(ToString::to_string),
        "undone_runs": runs_as_json(&replaced.interrupted),
        "changes": changes_as_json(&replaced.changes),
        "written_bytes": replaced.done.written_bytes,
        "left_out": left_out_as_json(&replaced.done.left_out),
        "incomplete_count": content.incomplete_count,
        "unstable_count": content.unstable_count,
        "not_stored": replaced.not_stored,
        "duration_ms": u64::try_from(replaced.took.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Changes as JSON has them.
pub(super) fn changes_as_json(changes: &Changes) -> Value {
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

fn print(args: &RestoreArgs, cx: &Context, replaced: &Replaced) -> Result<()> {
    let (changes, done) = (&replaced.changes, &replaced.done);
    tell_of_interrupted(cx, &replaced.interrupted, replaced.is_carried_out);
    if !replaced.is_carried_out {
        list(cx, changes)?;
    }
    let what = match replaced.is_carried_out {
        true => format!("{} written", human::size(done.written_bytes)),
        false => format!("{} to write", human::size(changes.content_bytes)),
    };
    cx.out.report(&format!(
        "backup {} of \"{}\" {} \"{}\": {}, {what} in {}",
        replaced.root.head.id,
        args.name,
        match replaced.is_carried_out {
            true => "restored to",
            false => "compared with",
        },
        replaced.to.display(),
        summary(changes),
        human::duration(replaced.took)
    ))?;
    tell_of_runs(
        cx,
        ("files", &args.name),
        replaced.run.as_ref(),
        &replaced.to,
    );
    let lacking = match replaced.is_carried_out {
        true => "were not made as they were",
        false => "would not be made as they were",
    };
    tell(cx, lacking, &done.left_out);
    tell_of_backup(cx, &replaced.root.content, &replaced.not_stored);
    Ok(())
}

/// Runs as JSON has them.
pub(super) fn runs_as_json(runs: &[Run]) -> Vec<String> {
    runs.iter().map(ToString::to_string).collect()
}

/// Tells of restores that did not come to their end.
pub(super) fn tell_of_interrupted(cx: &Context, runs: &[Run], is_undone: bool) {
    for run in runs {
        cx.out.note(&match is_undone {
            true => format!("restore {run} had been interrupted, and was undone first"),
            false => format!("restore {run} was interrupted, and is undone first: the plan shows its remains, too"),
        });
    }
}

/// Tells how a restore is undone.
pub(super) fn tell_of_runs(cx: &Context, (kind, name): (&str, &str), run: Option<&Run>, to: &Path) {
    if let Some(run) = run {
        let kept = to.join(run.shown());
        cx.out.note(&format!(
            "the entries before lie in \"{}\": pitr {kind} rollback {name} {run} puts them back, and rm -r makes the restore final",
            kept.display()
        ));
    }
}

/// Prints the first changes.
pub(super) fn list(cx: &Context, changes: &Changes) -> Result<()> {
    for (change, path) in changes.examples.iter().take(SHOWN) {
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
        cx.out.line(&format!("{sign} {path}"))?;
    }
    let more = changes.total().saturating_sub(SHOWN as u64);
    if more > 0 {
        cx.out.line(&format!("and {more} more"))?;
    }
    Ok(())
}

/// The counts of changes.
pub(super) fn summary(changes: &Changes) -> String {
    format!(
        "{} made, {} replaced, {} removed, {} with other attributes, {} kept",
        changes.created, changes.replaced, changes.removed, changes.settled, changes.kept
    )
}
