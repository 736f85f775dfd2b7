//! `pitr hold` and `pitr unhold`: a backup stays until a person ends the hold.

use super::Context;
use super::pin::{finish, print_backup, print_content, print_pins, warn_of_damage};
use super::timeline::reason;
use crate::error::Result;
use crate::operate::hold::{self, By, Objects};
use crate::operate::pin_content;
use crate::repo::id::BackupId;

/// Put a backup on legal hold
///
/// The backup stays, with the WAL from its start to its end, until "pitr unhold" ends the hold: retention, "pitr backup delete" and "pitr repo compact" keep
/// it as they keep a pinned one, and "pitr unpin" does not end it. In a bucket with Object Lock the store's own hold is set on every object that the backup
/// needs, which takes s3:PutObjectLegalHold and s3:GetObjectLegalHold: nobody deletes these then. Elsewhere the hold is advisory, and the output says so.
///
/// Without --confirm it shows what is held, and changes nothing. Repeated, it holds what is not held yet. Exit status 10 when a repository did not answer
/// or not everything could be held.
///
/// Example: pitr hold 20261120T064049Z-full --reason "case 17/2026" --confirm
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: BackupId,

    /// The content that it is a backup of, such as files:uploads, redis:cache, config:host or logical:main; a cluster without it
    #[arg(long, value_name = "KIND:NAME")]
    pub of: Option<String>,

    /// Why, for those who read it later
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,

    /// Record the hold
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what is held, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// End every legal hold of a backup
///
/// From then on pins and retention decide about it. Nothing is deleted by this command. The store's own holds are taken away, but for objects that another
/// backup on hold needs. Without --confirm it shows which holds end, and changes nothing. Repeated, it goes on with what is left.
///
/// Example: pitr unhold 20261120T064049Z-full --confirm
#[derive(clap::Args, Debug)]
pub struct UnholdArgs {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: BackupId,

    /// The content that it is a backup of, such as files:uploads; a cluster without it
    #[arg(long, value_name = "KIND:NAME")]
    pub of: Option<String>,

    /// End the holds
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what ends, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs `pitr hold`.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    if let Some(of) = &args.of {
        let asked = (of.as_str(), &args.backup);
        return of_content(cx, asked, Some(&args.reason), (args.confirm, args.dry_run));
    }
    let mut holding = hold::plan(&cx.session, &args.backup, &args.reason)?;
    if !cx.out.is_json() {
        super::pin::print(cx, &holding.pinning)?;
        print_stores(cx, &holding.holds)?;
    }
    warn_of_damage(cx, &holding.pinning);
    if args.confirm {
        holding.record(&cx.session)?;
    }
    let failures = std::mem::take(&mut holding.pinning.failures);
    finish(cx, &holding, (args.confirm, args.dry_run), failures, || {
        done("on hold", &holding.pinning.recorded_in, &holding.holds)
    })
}

/// Runs `pitr unhold`.
pub fn run_unhold(args: &UnholdArgs, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    if let Some(of) = &args.of {
        let asked = (of.as_str(), &args.backup);
        return of_content(cx, asked, None, (args.confirm, args.dry_run));
    }
    let mut unholding = hold::plan_end(&cx.session, &args.backup)?;
    if !cx.out.is_json() {
        let ending = &unholding.pinning;
        print_backup(cx, &ending.backup, ending.stop_time, &ending.held_in)?;
        print_pins(cx, &ending.pins)?;
        cx.out.line("then: no hold keeps it; pins and retention decide about it and the WAL that only it needs")?;
    }
    if args.confirm {
        unholding.record(&cx.session)?;
    }
    let failures = std::mem::take(&mut unholding.pinning.failures);
    let recorded = &unholding.pinning.recorded_in;
    finish(
        cx,
        &unholding,
        (args.confirm, args.dry_run),
        failures,
        || done("no longer on hold", recorded, &unholding.holds),
    )
}

/// Puts a backup of other content on hold, or ends its holds.
fn of_content(
    cx: &Context,
    (of, backup): (&str, &BackupId),
    reason: Option<&str>,
    (confirm, dry_run): (bool, bool),
) -> Result<u8> {
    let scope = pin_content::scope(of)?;
    let mut holding = hold::plan_of(&cx.session, (&scope, backup), reason)?;
    if !cx.out.is_json() {
        print_content(cx, of, &holding.pinning)?;
        match reason {
            Some(_) => print_stores(cx, &holding.holds)?,
            None => cx
                .out
                .line("then: no hold keeps it; pins and retention decide about it")?,
        }
    }
    if confirm {
        holding.record(&cx.session)?;
    }
    let failures = std::mem::take(&mut holding.pinning.failures);
    let what = match reason {
        Some(_) => "on hold",
        None => "no longer on hold",
    };
    finish(cx, &holding, (confirm, dry_run), failures, || {
        done(what, &holding.pinning.recorded_in, &holding.holds)
    })
}

fn print_stores(cx: &Context, holds: &[Objects]) -> Result<()> {
    for hold in holds {
        cx.out.line(&format!(
            "in {} it is held by {}",
            hold.repository,
            hold.by.words()
        ))?;
    }
    Ok(())
}

/// The outcome, repository by repository.
fn done(what: &str, recorded_in: &[String], holds: &[Objects]) -> String {
    let recorded = holds
        .iter()
        .filter(|hold| recorded_in.contains(&hold.repository));
    let one = |hold: &Objects| match hold.by {
        By::Store => format!("{what} in {}: {} objects", hold.repository, hold.objects),
        By::Advisory => format!("{what} in {} (advisory)", hold.repository),
    };
    recorded.map(one).collect::<Vec<_>>().join("\n")
}
