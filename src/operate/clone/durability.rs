//! A clone that is to stay becomes durable while it serves: from then on it survives a power cut.
//!
//! | step | what holds afterwards |
//! |---|---|
//! | every process of the server works with `fsync` and `full_page_writes` | what is flushed from now on is on the disk |
//! | a checkpoint that began after that | recovery needs no WAL from before, and each page changed since has its image in WAL |
//! | a sync of the whole directory | everything that was written before the first step is on the disk, too |
//!
//! The settings are changed by a reload, for sessions go on. A statement that began before the reload works without them until its end: it
//! might commit, or let a page be written, without WAL on the disk. So those statements are waited for.
//!
//! PostgreSQL: src/backend/tcop/postgres.c (`PostgresMain`: a reload is taken between statements), src/backend/storage/sync/sync.c
//! (`ProcessSyncRequests` forgets requests without fsync), src/backend/access/transam/xlog.c (`UpdateFullPageWrites`, called by the
//! checkpointer alone; `CreateCheckPoint`, which records it at the redo point).

use std::time::{Duration, Instant};

use super::lifetime::Until;
use crate::err;
use crate::error::Result;
use crate::fault;
use crate::operate::server::Server;

/// How often the server is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// The time within which a server takes new settings.
const PATIENCE: Duration = Duration::from_secs(60);
/// The settings as a new session has them.
const IS_ON: &str =
    "select current_setting('fsync') = 'on' and current_setting('full_page_writes') = 'on'";
/// Sessions that are in a statement which began before this session was opened. One that hides its statements counts as long as it is there.
const OLDER: &str = "select count(*) from pg_stat_activity other, pg_stat_activity own where own.pid = pg_backend_pid() and other.pid <> own.pid and other.backend_type <> 'walsender' and other.state in ('active', 'fastpath function call', 'disabled') and coalesce(other.query_start, other.backend_start) < own.backend_start";
/// Whether page images were on at the redo point of the last checkpoint. The checkpointer alone switches them, so it has all new settings.
const HAS_IMAGES: &str = "select full_page_writes from pg_control_checkpoint()";

/// Makes a server durable whose settings were changed; `sync` syncs all of its files.
///
/// # Errors
/// `Server` where it does not take the settings; those of `sync`; `Interrupted`.
pub(super) fn settle(
    conninfo: &str,
    sync: &(dyn Fn() -> Result<()> + Sync),
    until: &Until<'_>,
) -> Result<()> {
    let mut server = with_settings(conninfo, until)?;
    server.query("set statement_timeout = 0")?;
    while answer(&mut server, OLDER)? != "0" {
        until.pause(PAUSE)?;
    }
    let began = Instant::now();
    loop {
        server.query("checkpoint")?;
        if answer(&mut server, HAS_IMAGES)? == "t" {
            break;
        }
        check_patience(began)?;
        until.pause(PAUSE)?;
    }
    sync()
}

/// A session that was opened after the server had taken the settings: by then it had told every other process of them.
fn with_settings(conninfo: &str, until: &Until<'_>) -> Result<Server> {
    let began = Instant::now();
    loop {
        let mut server = Server::connect_alone(conninfo)?;
        if answer(&mut server, IS_ON)? == "t" {
            return Ok(server);
        }
        check_patience(began)?;
        until.pause(PAUSE)?;
    }
}

fn answer(server: &mut Server, sql: &str) -> Result<String> {
    let rows = server.query(sql)?;
    Ok(rows.text(0, 0)?.unwrap_or_default().to_owned())
}

fn check_patience(began: Instant) -> Result<()> {
    match began.elapsed() > fault::shortened(PATIENCE) {
        true => Err(err!(
            Server,
            "the server of the clone goes on without fsync or full_page_writes: ALTER SYSTEM may have set them"
        )),
        false => Ok(()),
    }
}
