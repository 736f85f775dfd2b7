//! `pitr receive`.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Context;
use super::notify::Notify;
use crate::config::Cluster;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit;
use crate::operate::receiver::{SLOT_DEFAULT, archived, line, lsn};
use crate::pg::lsn::Lsn;
use crate::progress::Progress;
use crate::receive::session::{self, Ended, Options};
use crate::receive::status::Status;
use crate::wire::client::{Client, Session};
use crate::wire::conninfo::{self, ConnInfo};
use crate::wire::slot::SlotName;

/// A connection that is dead on the way is noticed by the kernel too, unless conninfo says otherwise.
const PROBE_IDLE: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_COUNT: u32 = 3;
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Receive WAL as it is written, through a replication slot
///
/// Runs until it is stopped. What PostgreSQL is told is safe lies on this machine's disk, or with acknowledge = "repository" in every
/// required repository. Settings are in [clusters.NAME.receive].
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

/// What was received, as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    cluster: &'a str,
    system_identifier: Option<String>,
    slot: Option<&'a str>,
    timeline: Option<u32>,
    received_lsn: Option<Lsn>,
    flushed_lsn: Option<Lsn>,
    acknowledged_lsn: Option<Lsn>,
    archived_lsn: Option<Lsn>,
    complete: bool,
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let settings = cx.session.settings()?;
    let cluster = settings.cluster()?;
    let slot = match (&args.slot, &cluster.receive.slot) {
        (Some(slot), _) => slot.clone(),
        (None, Some(name)) => name.parse::<SlotName>()?,
        (None, None) => SLOT_DEFAULT.parse::<SlotName>()?,
    };
    let conninfo = conninfo(&cluster)?;
    if args.drop_slot {
        return drop_slot(cx, &conninfo, &slot);
    }
    let options = Options {
        cluster: cluster.name.to_string(),
        conninfo,
        slot,
        create_slot: args.create_slot,
        until: args.until_lsn,
        journal: cluster.receive.journal.clone().ok_or_else(no_journal)?,
        journal_limit_bytes: cluster.receive.journal_limit_bytes,
        acknowledge: cluster.receive.acknowledge,
        repositories: settings.repositories.clone(),
    };
    let Some(ended) = receive(cx, &options)? else {
        return stopped_early(cx, &options);
    };
    let complete = ended.is_shipped;
    if cx.out.is_json() {
        cx.out.json(&shown(&ended))?;
    } else {
        cx.out.report(&summary(&ended))?;
    }
    if !complete {
        cx.out.warn("not everything is in the repositories yet: the rest is in the journal, and goes out when the receiver runs again");
    }
    Ok(match complete || args.until_lsn.is_none() {
        true => exit::SUCCESS,
        false => exit::status(exit::Program::Pitr, Code::Partial),
    })
}

/// It was stopped while it waited for server and repositories to say which cluster it is.
fn stopped_early(cx: &Context, options: &Options) -> Result<u8> {
    if cx.out.is_json() {
        let slot = options.slot.to_string();
        cx.out.json(&Shown {
            cluster: &options.cluster,
            system_identifier: None,
            slot: Some(&slot),
            timeline: None,
            received_lsn: None,
            flushed_lsn: None,
            acknowledged_lsn: None,
            archived_lsn: None,
            complete: false,
        })?;
    } else {
        cx.out.line("stopped before anything was received")?;
    }
    Ok(match options.until {
        None => exit::SUCCESS,
        Some(_) => exit::status(exit::Program::Pitr, Code::Partial),
    })
}

fn no_journal() -> Error {
    err!(Config, "receive.journal is not set").hint(
        "The receiver keeps WAL there until the repository has it. Add a directory on a disk that syncs, to [clusters.NAME.receive]: journal = \"/var/lib/pitr/journal\"",
    )
}

/// The server's settings. The receiver's name in pg_stat_replication, which synchronous_standby_names compares, is application_name, else
/// "pitr".
fn conninfo(cluster: &Cluster) -> Result<ConnInfo> {
    let text = cluster.conninfo.as_ref().map_or("", |c| c.expose());
    let mut info = ConnInfo::resolve(text, &conninfo::Environment::of_process())?;
    let keep_alive = &mut info.keep_alive;
    keep_alive.idle.get_or_insert(PROBE_IDLE);
    keep_alive.interval.get_or_insert(PROBE_INTERVAL);
    keep_alive.count.get_or_insert(PROBE_COUNT);
    keep_alive.user_timeout.get_or_insert(UNACKNOWLEDGED_MAX);
    Ok(info)
}

fn receive(cx: &Context, options: &Options) -> Result<Option<Ended>> {
    cx.stop_in_order()?;
    let (terminal, host) = (cx.out.progress(), &cx.session.host);
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

fn drop_slot(cx: &Context, info: &ConnInfo, slot: &SlotName) -> Result<u8> {
    let progress: Arc<dyn Progress> = cx.out.progress();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::from_io("start the runtime", e))?;
    let (host, dropped) = runtime.block_on(async {
        let mut client = Client::connect(info, Session::Replication, progress).await?;
        let dropped = match client.drop_slot(slot).await {
            Ok(()) => true,
            // It is as it should be, whoever saw to that.
            Err(error) if error.code() == Code::NotFound => false,
            Err(error) => return Err(error),
        };
        let host = client.host().to_owned();
        let _ = client.close().await;
        Ok::<_, Error>((host, dropped))
    })?;
    if cx.out.is_json() {
        cx.out
            .json(&serde_json::json!({ "slot": slot.to_string(), "dropped": dropped }))?;
    } else {
        cx.out.report(&match dropped {
            true => format!("dropped replication slot \"{slot}\" on \"{host}\""),
            false => format!(
                "there is no replication slot \"{slot}\" on \"{host}\": nothing was dropped"
            ),
        })?;
    }
    Ok(exit::SUCCESS)
}

fn shown(ended: &Ended) -> Shown<'_> {
    let status = &ended.status;
    Shown {
        cluster: &status.cluster,
        system_identifier: Some(status.system_identifier.to_string()),
        slot: status.slot.as_deref(),
        timeline: status.timeline.map(|t| t.decimal()),
        received_lsn: status.received_lsn,
        flushed_lsn: status.flushed_lsn,
        acknowledged_lsn: status.acknowledged_lsn,
        archived_lsn: archived(status),
        complete: ended.is_shipped,
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
