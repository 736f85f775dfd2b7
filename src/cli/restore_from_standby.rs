//! `pitr restore --from-standby`: a standby that has not replayed the target yet recovers to it in its place.

use serde::Serialize;
use serde_json::json;

use super::output::members;
use super::restore::{Args, adopt_line};
use super::{Context, done_or_unconfirmed, erasure as told, plan, unconfirmed};
use crate::error::Result;
use crate::exit;
use crate::operate::archive_command::shell_word;
use crate::operate::erasure::Lacking;
use crate::operate::from_standby::{self, Asked, Prepared};
use crate::operate::human;
use crate::plan::recovery::Plan;

#[derive(Serialize)]
struct Standby {
    /// The end of what it has replayed.
    replayed_lsn: String,
    /// The position from which it recovers.
    restartpoint_lsn: String,
    bytes_to_replay: u64,
}

pub(super) fn run(args: &Args, cx: &Context) -> Result<u8> {
    let asked = Asked {
        to: args.to.clone(),
        target: args.target.parse()?,
        dry_run: args.dry_run,
    };
    let prepared = from_standby::prepare(&cx.session, &asked)?;
    let lacking = super::restore::lacking(cx, (&prepared.opened, &prepared.plan));
    if !cx.is_json() {
        show(cx, &prepared)?;
    } else if args.dry_run {
        cx.json(&shown(args, &prepared, lacking.as_ref(), false))?;
    }
    if args.dry_run {
        return Ok(exit::SUCCESS);
    }
    let data = prepared.data().display();
    if !args.confirm {
        return Err(unconfirmed(&format!(
            "The standby in \"{data}\" would recover to the target, be promoted, and be no standby any more."
        )));
    }
    cx.stop_in_order()?;
    from_standby::recover(&cx.session, &prepared)?;
    if cx.is_json() {
        cx.json(&shown(args, &prepared, lacking.as_ref(), true))?;
        return Ok(exit::SUCCESS);
    }
    cx.line(&format!(
        "it has recovered as planned, and is shut down: {data}"
    ))?;
    told::tell(
        cx,
        lacking.as_ref(),
        (&data.to_string(), told::Copied::Recovered),
    )?;
    let to = shell_word(&data.to_string());
    cx.line("Before its service starts, let it archive:")?;
    cx.line(&format!("  {}", adopt_line(cx, &prepared.opened, &to)))?;
    Ok(exit::SUCCESS)
}

fn shown<'s>(
    args: &'s Args,
    prepared: &'s Prepared,
    lacking: Option<&'s Lacking>,
    has_recovered: bool,
) -> impl Serialize + use<'s> {
    let positions = Standby {
        replayed_lsn: prepared.replayed.to_string(),
        restartpoint_lsn: prepared.restartpoint.to_string(),
        bytes_to_replay: prepared.bytes_to_replay(),
    };
    members! {
        's;
        #[serde(flatten)]
        plan: &'s Plan = &prepared.plan;
        to: String = prepared.data().to_string_lossy().into_owned();
        standby: Standby = positions;
        dry_run: bool = args.dry_run;
        recovered: bool = has_recovered;
        #[serde(skip_serializing_if = "Option::is_none")]
        erasures: Option<&'s Lacking> = lacking;
    }
}

fn show(cx: &Context, prepared: &Prepared) -> Result<()> {
    plan::show(cx, &prepared.plan, None)?;
    cx.line(&format!(
        "no backup is copied: the standby in \"{}\" has replayed up to {}, and recovers from {} ({} of WAL)",
        prepared.data().display(),
        prepared.replayed,
        prepared.restartpoint,
        human::size(prepared.bytes_to_replay())
    ))
}

/// Makes a standby of it again.
pub(super) fn give_back(args: &Args, cx: &Context) -> Result<u8> {
    const WOULD: &str = "The recovery would be given up, and the directory be a standby again.";
    let is_confirmed = args.confirm && !args.dry_run;
    let is_begun = from_standby::give_back(&cx.session, &args.to, is_confirmed)?;
    done_or_unconfirmed(!is_begun || is_confirmed || args.dry_run, WOULD)?;
    let text = match (is_begun, is_confirmed) {
        (true, true) => "it is a standby again, and follows as before once it is started",
        (true, false) => WOULD,
        (false, _) => "no recovery was begun there",
    };
    let is_back = is_begun && is_confirmed;
    cx.answered(&json!({ "given_back": is_back }), || cx.line(text))
}
