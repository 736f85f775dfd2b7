//! `pitr receive`.

use std::cell::Cell;

use serde::Serialize;

use super::output::members;
use super::{Context, partial_unless};
use crate::error::{Error, Result};
use crate::operate::notify::Notify;
use crate::operate::receive::{self, Asked, Dropped};
use crate::operate::receiver::{archived, line, lsn};
use crate::pg::lsn::Lsn;
use crate::receive::session::{self, Ended, Options};
use crate::receive::status::Status;
use crate::wire::slot::SlotName;

/// Receive WAL as it is written, through a replication slot
///
/// Runs until it is stopped. It acknowledges to PostgreSQL only WAL that lies on this machine's disk, or with acknowledge = "repository" in
/// every required repository. Settings are in [clusters.NAME.receive].
///
/// Example: pitr receive --create-slot
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The physical replication slot; else receive.slot, else "pitr"
    #[arg(long, value_name = "NAME", value_parser = slot_name)]
    pub slot: Option<SlotName>,

    /// Create the slot on a server that does not have it
    #[arg(long)]
    pub create_slot: bool,

    /// Drop the slot, and do nothing else
    ///
    /// The server removes the WAL that it kept for it. A slot that is not there is none to drop, and no error.
    #[arg(long, conflicts_with_all = ["create_slot", "until_lsn"])]
    pub drop_slot: bool,

    /// End once everything before this position is safe
    #[arg(long, value_name = "LSN")]
    pub until_lsn: Option<Lsn>,
}

fn slot_name(text: &str) -> std::result::Result<SlotName, String> {
    text.parse().map_err(|e: Error| e.to_string())
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    if args.drop_slot {
        return drop_slot(cx, args.slot.as_ref());
    }
    let asked = Asked {
        slot: args.slot.clone(),
        create_slot: args.create_slot,
        until: args.until_lsn,
    };
    let options = receive::options(&cx.session, asked)?;
    let Some(ended) = followed(cx, &options)? else {
        // It waited for server and repositories to say which cluster it is.
        let slot = options.slot.to_string();
        let shown = shown((&options.cluster, Some(&slot)), None);
        cx.answer(&shown, || cx.line("stopped before anything was received"))?;
        return partial_unless(options.until.is_none());
    };
    let (status, complete) = (&ended.status, ended.is_shipped);
    let shown = shown((&status.cluster, status.slot.as_deref()), Some(&ended));
    cx.answer(&shown, || cx.report(&summary(&ended)))?;
    if !complete {
        cx.warn("not everything is in the repositories yet: the rest is in the journal, and goes out when the receiver runs again");
    }
    partial_unless(complete || args.until_lsn.is_none())
}

fn followed(cx: &Context, options: &Options) -> Result<Option<Ended>> {
    cx.stop_in_order()?;
    let (terminal, host) = (cx.progress(), &cx.session.host);
    let notify = Notify::new(&cx.session.environment);
    let ready = Cell::new(false);
    let watch = |status: &Status| {
        let line = line(status);
        if status.server.is_some() && !ready.replace(true) {
            notify.send("READY=1");
        }
        notify.send(&format!("STATUS={line}"));
        terminal.show_line(&line);
    };
    let ended = session::run(options, host, &watch);
    notify.send("STOPPING=1");
    ended
}

fn drop_slot(cx: &Context, wanted: Option<&SlotName>) -> Result<u8> {
    let Dropped {
        slot,
        host,
        was_there,
    } = receive::drop_slot(&cx.session, wanted)?;
    let shown = serde_json::json!({ "slot": slot.to_string(), "dropped": was_there });
    cx.answered(&shown, || {
        cx.report(&match was_there {
            true => format!("dropped replication slot \"{slot}\" on \"{host}\""),
            false => format!(
                "there is no replication slot \"{slot}\" on \"{host}\": nothing was dropped"
            ),
        })
    })
}

fn shown<'s>(
    (name, of_slot): (&'s str, Option<&'s str>),
    ended: Option<&'s Ended>,
) -> impl Serialize + use<'s> {
    let status = ended.map(|ended| &ended.status);
    members! {
        's;
        cluster: &'s str = name;
        system_identifier: Option<String> = status.map(|s| s.system_identifier.to_string());
        slot: Option<&'s str> = of_slot;
        timeline: Option<u32> = status.and_then(|s| s.timeline).map(|t| t.decimal());
        received_lsn: Option<Lsn> = status.and_then(|s| s.received_lsn);
        flushed_lsn: Option<Lsn> = status.and_then(|s| s.flushed_lsn);
        acknowledged_lsn: Option<Lsn> = status.and_then(|s| s.acknowledged_lsn);
        archived_lsn: Option<Lsn> = status.and_then(archived);
        complete: bool = ended.is_some_and(|ended| ended.is_shipped);
    }
}

fn summary(ended: &Ended) -> String {
    let status = &ended.status;
    format!(
        "received to {} on timeline {}, safe to {}",
        lsn(status.received_lsn),
        status
            .timeline
            .map_or_else(|| "-".to_owned(), |t| t.decimal().to_string()),
        lsn(status.flushed_lsn)
    )
}
