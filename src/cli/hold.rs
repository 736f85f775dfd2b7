//! `pitr hold` and `pitr unhold`: a backup stays until a person ends the hold.

use super::timeline::reason;
use super::{Context, pin};
use crate::error::Result;
use crate::operate::pin::Kind;
use crate::operate::pin_content::Wanted;
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

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let wanted = Wanted {
        reason: args.reason.clone(),
        until: None,
    };
    let of = (args.of.as_deref(), &args.backup);
    pin::begin(cx, of, wanted, Kind::Hold, (args.confirm, args.dry_run))
}

pub fn run_unhold(args: &UnholdArgs, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let of = (args.of.as_deref(), &args.backup);
    pin::end(cx, of, Kind::Hold, (args.confirm, args.dry_run))
}
