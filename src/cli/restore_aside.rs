//! `pitr restore --aside` and `--switch`: a cluster recovers beside the data directory of one that runs, and takes its place later.

use serde_json::json;

use super::restore::{Args, adopt_line};
use super::restore_replaced::Replaced;
use super::{Context, done_or_unconfirmed};
use crate::error::Result;
use crate::operate::archive_command::shell_word;
use crate::operate::aside;
use crate::operate::opened::Opened;

/// Says how the cluster gets into its place.
pub(super) fn print_switch(cx: &Context, args: &Args) -> Result<()> {
    let to = shell_word(&args.to.to_string_lossy());
    cx.line("It has recovered there, and waits. To put it in its place, stop the server, then:")?;
    cx.line(&format!("  pitr restore --switch --to {to} --confirm"))
}

/// Says what comes last, before its first start.
pub(super) fn print_adopt(cx: &Context, args: &Args, opened: &Opened) -> Result<()> {
    let to = shell_word(&args.to.to_string_lossy());
    cx.line(&format!("  {}", adopt_line(cx, opened, &to)))
}

/// Puts the cluster that waits in its place.
pub(super) fn switch(args: &Args, cx: &Context) -> Result<u8> {
    let to = cx.session.environment.absolute(&args.to);
    let is_confirmed = args.confirm && !args.dry_run;
    let Some(standing) = aside::switch(&cx.session, &to, is_confirmed)? else {
        const WOULD: &str = "The cluster that has recovered aside would take its place.";
        if args.dry_run {
            cx.answer(
                &json!({ "to": args.to.to_string_lossy(), "replaced": null }),
                || cx.line(WOULD),
            )?;
        }
        return done_or_unconfirmed(args.dry_run, WOULD);
    };
    let replaced = Replaced::done(&standing);
    let (backup, target) = (standing.backup(), standing.target());
    let to = args.to.to_string_lossy();
    let shown = json!({ "to": to, "backup": backup, "target": target, "replaced": replaced });
    cx.answered(&shown, || {
        cx.line(&format!(
            "the cluster restored from backup {backup} to {target} is in its place: {}",
            standing.data().display()
        ))?;
        replaced.print(cx)
    })
}

/// Removes the copy that waits.
pub(super) fn give_up(args: &Args, cx: &Context) -> Result<u8> {
    const WOULD: &str = "The copy that waits would be removed.";
    let to = cx.session.environment.absolute(&args.to);
    done_or_unconfirmed(args.confirm || args.dry_run, WOULD)?;
    let is_removed = !args.dry_run && aside::give_up(&to)?;
    let text = match is_removed {
        true => "the copy that waited is removed",
        false if args.dry_run && aside::waits(&to) => WOULD,
        false => "no copy waits",
    };
    cx.answered(&json!({ "removed": is_removed }), || cx.line(text))
}
