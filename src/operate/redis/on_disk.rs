//! Whether the data set that a server got by replication is on its disk, so that it starts with it.
//!
//! Behind a full resynchronisation Redis rewrites its append-only file in the background, and the one on disk has the former data until that has ended. Without
//! that file it keeps the dump that it received, but for one that it loaded from the connection.
//!
//! Redis: src/replication.c (readSyncBulkPayload), src/aof.c (startAppendOnly, backgroundRewriteDoneHandler), src/rdb.c (bgsaveCommand).

use std::time::{Duration, Instant};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::redis::connection::Tick;
use crate::redis::info::Info;
use crate::redis::source::Source;

const GLANCE: Duration = Duration::from_millis(100);

/// Work of the server in the background, by its names in `INFO`.
struct Job {
    is_running: &'static str,
    is_scheduled: &'static str,
    status: &'static str,
}

const REWRITE: Job = Job {
    is_running: "aof_rewrite_in_progress",
    is_scheduled: "aof_rewrite_scheduled",
    status: "aof_last_bgrewrite_status",
};
const DUMP: Job = Job {
    is_running: "rdb_bgsave_in_progress",
    is_scheduled: "",
    status: "rdb_last_bgsave_status",
};

#[derive(Debug, PartialEq, Eq)]
enum State {
    Running,
    Waiting,
    Done,
    Failed,
}

impl Job {
    /// Redis tries a rewrite that failed again: it is scheduled then, and its status is that of the failure.
    fn state(&self, info: &Info, has_run: bool) -> State {
        let is_well = info.field(self.status) == Some("ok");
        match info.is_on(self.is_running) {
            true => State::Running,
            false if !is_well && has_run => State::Failed,
            false if info.is_on(self.is_scheduled) || !is_well => State::Waiting,
            false => State::Done,
        }
    }

    /// Waits until it has ended. Only a server that does nothing is given up after `stall`.
    fn wait(
        &self,
        running: &mut Source,
        (stall, mut has_run): (Duration, bool),
        tick: Tick<'_>,
    ) -> Result<()> {
        let mut since = Instant::now();
        loop {
            let info = running.ask("persistence", tick)?;
            match self.state(&info, has_run) {
                State::Done => return Ok(()),
                State::Failed => {
                    let status = self.status;
                    return Err(err!(Server, "the server failed to write it: {status}:err"));
                }
                State::Running => has_run = true,
                State::Waiting => {}
            }
            if is_busy(&info) {
                since = Instant::now();
            } else if since.elapsed() > stall {
                return Err(err!(
                    Deadline,
                    "the server has not begun to write it for {} s",
                    stall.as_secs()
                ));
            }
            tick()?;
            std::thread::sleep(GLANCE);
        }
    }
}

fn is_busy(info: &Info) -> bool {
    info.is_on(REWRITE.is_running) || info.is_on(DUMP.is_running)
}

/// Waits until a server that was a replica has its data set on disk.
///
/// # Errors
/// `Partial`, with what helps; `Interrupted`.
pub fn require(running: &mut Source, stall: Duration, tick: Tick<'_>) -> Result<()> {
    written(running, stall, tick).map_err(lost_at_its_end)
}

fn written(running: &mut Source, stall: Duration, tick: Tick<'_>) -> Result<()> {
    if running.ask("persistence", tick)?.is_on("aof_enabled") {
        return REWRITE.wait(running, (stall, false), tick);
    }
    let way = running.setting("repl-diskless-load", tick)?;
    if way.is_none_or(|way| way.expose() == "disabled") {
        return Ok(());
    }
    while is_busy(&running.ask("persistence", tick)?) {
        tick()?;
        std::thread::sleep(GLANCE);
    }
    running.connection.ask(&[b"BGSAVE"], tick)?;
    DUMP.wait(running, (stall, true), tick)
}

fn lost_at_its_end(error: Error) -> Error {
    let code = match error.code() {
        Code::Interrupted => Code::Interrupted,
        _ => Code::Partial,
    };
    let error = error.context("THE KEYS ARE REPLACED, AND NOT YET ON THE SERVER'S DISK");
    error.with_code(code).hint(
        "A server that ends now starts with its former keys. Its log says why nothing is written. Then: redis-cli BGREWRITEAOF with appendonly yes, else redis-cli BGSAVE; redis-cli INFO persistence tells when it has ended.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(running: u8, scheduled: u8, status: &str) -> Info {
        let mut info = Info::default();
        info.add(&format!(
            "aof_rewrite_in_progress:{running}\r\naof_rewrite_scheduled:{scheduled}\r\naof_last_bgrewrite_status:{status}\r\n"
        ));
        info
    }

    #[test]
    fn a_rewrite_is_done_when_it_neither_runs_nor_waits_and_ended_well() {
        let state = |running, scheduled, status, has_run| {
            REWRITE.state(&info(running, scheduled, status), has_run)
        };
        assert_eq!(state(0, 0, "ok", false), State::Done);
        assert_eq!(state(1, 0, "ok", false), State::Running);
        assert_eq!(state(1, 0, "err", true), State::Running);
        assert_eq!(state(0, 1, "ok", false), State::Waiting);
        // A failure of before, and one that was seen.
        assert_eq!(state(0, 1, "err", false), State::Waiting);
        assert_eq!(state(0, 1, "err", true), State::Failed);
        assert_eq!(state(0, 0, "err", true), State::Failed);
    }
}
