//! `pitr files rollback` and `pitr config rollback`: a restore in place is undone.

use serde_json::json;

use super::left_out::{self, SHOWN, status};
use super::replaced::list;
use super::{Context, done_or_unconfirmed};
use crate::error::Result;
use crate::operate::rollback::{Asked, RolledBack};
use crate::tree::replace::depot::Run;

/// Entries that JSON has.
const EXAMPLES: usize = 1000;

/// Which restore is undone, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The name in the configuration
    pub name: String,

    /// The restore, as it printed it; the newest without it
    pub run: Option<Run>,

    /// Undo it even though restored entries were changed since; these changes are lost
    #[arg(long)]
    pub discard_changes: bool,

    /// Carry the plan out
    #[arg(long)]
    pub confirm: bool,

    /// Show the plan, and leave with 0
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,
}

/// Undoes a restore of a kind, and prints what became of it.
pub(super) fn run(
    args: &Args,
    kind: &'static str,
    undo: &dyn Fn(&Asked) -> Result<RolledBack>,
    cx: &Context,
) -> Result<u8> {
    let done = undo(&Asked {
        kind,
        name: args.name.clone(),
        run: args.run.clone(),
        discards: args.discard_changes,
        is_confirmed: args.confirm,
    })?;
    cx.answer(&as_json(args, &done), || print(args, cx, &done))?;
    match args.confirm {
        true => Ok(status(done.left_out.total())),
        false => done_or_unconfirmed(args.dry_run, "The plan above would be carried out."),
    }
}

fn as_json(args: &Args, done: &RolledBack) -> serde_json::Value {
    let paths = |paths: &[Vec<u8>]| -> Vec<String> {
        let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
        paths.iter().take(EXAMPLES).map(text).collect()
    };
    json!({
        "name": args.name,
        "run": done.run.to_string(),
        "backup": done.restore.backup,
        "restore_time": done.restore.began,
        "confirmed": args.confirm,
        "back_count": done.back.len(),
        "back": paths(&done.back),
        "gone_count": done.gone.len(),
        "gone": paths(&done.gone),
        "changed_count": done.changed.len(),
        "changed": paths(&done.changed),
        "left_out": left_out::as_json(&done.left_out),
    })
}

fn print(args: &Args, cx: &Context, done: &RolledBack) -> Result<()> {
    if !args.confirm {
        let back = done.back.iter().map(|path| ('*', path));
        let gone = done.gone.iter().map(|path| ('-', path));
        let all = back.chain(gone);
        let lines = all.map(|(sign, path)| format!("{sign} {}", String::from_utf8_lossy(path)));
        list(cx, lines, (done.back.len() + done.gone.len()) as u64)?;
    }
    let verb = if args.confirm { "undone" } else { "found" };
    cx.report(&format!(
        "restore {} of \"{}\" {verb}: {} put back, {} removed",
        done.run,
        args.name,
        done.back.len(),
        done.gone.len()
    ))?;
    for path in done.changed.iter().take(SHOWN) {
        let path = String::from_utf8_lossy(path);
        cx.warn(&format!("\"{path}\" was changed since the restore"));
    }
    left_out::warn(cx, &done.left_out, "", "more could not be put back");
    Ok(())
}
