//! `pitr wal resolve`: gives the fork of a timeline to the server whose copy was refused.

use super::{Context, done_or_unconfirmed, partial_unless, timeline};
use crate::archive::resolve::Fork;
use crate::err;
use crate::error::Result;
use crate::operate::resolve::{self, Resolution};
use crate::pg::segment::SegmentName;
use crate::repo::lives::is_copy;

/// The decision about a fork.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["segment", "undo"])))]
pub struct Args {
    /// The first segment of which two servers have different content
    #[arg(value_name = "SEGMENT", requires = "keep")]
    pub segment: Option<SegmentName>,

    /// The refused copy, as "pitr wal conflicts" shows it: 16 hexadecimal digits
    #[arg(long, value_name = "COPY", value_parser = copy, requires = "segment")]
    pub keep: Option<String>,

    /// End a decision, as "pitr wal conflicts" shows it
    #[arg(long, value_name = "EVENT")]
    pub undo: Option<String>,

    /// Why, for those who read the list later
    #[arg(long, value_name = "TEXT", value_parser = timeline::reason)]
    pub reason: Option<String>,

    /// Record the decision
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what follows, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

fn copy(text: &str) -> Result<String> {
    match is_copy(text) {
        true => Ok(text.to_owned()),
        false => Err(err!(
            Usage,
            "a copy has 16 hexadecimal digits, in lower case"
        )),
    }
}

pub fn run(cx: &Context, args: &Args) -> Result<u8> {
    let reason = args.reason.as_deref();
    let mut resolution = match (args.segment, &args.keep, &args.undo) {
        (Some(segment), Some(copy), None) => {
            let copy = copy.clone();
            resolve::give(&cx.session, Fork { segment, copy }, reason)?
        }
        (None, _, Some(event)) => resolve::take_back(&cx.session, event, reason)?,
        _ => {
            return Err(err!(
                Usage,
                "either SEGMENT with --keep COPY or --undo EVENT is needed"
            ));
        }
    };
    if !cx.is_json() {
        print(cx, &resolution)?;
    }
    if args.confirm {
        resolution.record(&cx.session)?;
    }
    if cx.is_json() {
        cx.json(&resolution)?;
    } else if args.confirm {
        for one in &resolution.recorded {
            cx.report(&match &one.event {
                Some(event) => format!("recorded in {} as {event}", one.repository),
                None => format!("{} follows that copy already", one.repository),
            })?;
        }
    }
    let is_whole = cx.told(resolution.failures)?;
    let is_enough = args.confirm || args.dry_run;
    done_or_unconfirmed(is_enough, "The decision above would be recorded.")?;
    partial_unless(is_whole)
}

fn print(cx: &Context, shown: &Resolution) -> Result<()> {
    let Resolution {
        timeline, segment, ..
    } = shown;
    let then = match shown.decision {
        "resolve" => format!("the server of copy {}", shown.copy),
        _ => "its server before that decision".to_owned(),
    };
    cx.line(&format!(
        "timeline {timeline} is followed from {segment} on as {then} wrote it"
    ))?;
    if !shown.backups.is_empty() {
        let backups = shown.backups.join(", ");
        let other = match shown.decision {
            "resolve" => "need --as-stored then",
            _ => "cannot be restored until another \"pitr wal resolve\" chooses it",
        };
        cx.line(&format!(
            "backups of timeline {timeline} behind the fork, of which those of the other server {other}: {backups}"
        ))?;
    }
    for id in &shown.in_use {
        cx.warn(&format!(
            "backup {id} is being taken, restored or copied: let that end first, for its WAL may change below it"
        ));
    }
    cx.warn_all(&shown.warnings);
    let note = match shown.decision {
        "resolve" => {
            "nothing is deleted: the other life stays, and pitr plan and restore --as-stored lead there. Stop its server. Versions of pitr before this command ignore the decision: every host that archives or restores needs this one"
        }
        _ => {
            "nothing is deleted. The server whose life is not followed any more waits with its next segment"
        }
    };
    cx.note(note);
    Ok(())
}
