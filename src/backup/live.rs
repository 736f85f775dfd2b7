//! A living server as the source of a backup: one connection for replication and, where the server allows it, one for SQL.
//!
//! SQL is a help, never a need: it gives the server's clock and the state of its archiver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};

use super::source::{Archiver, ServerFacts, Source};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::SegmentSize;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;
use crate::wire::basebackup::{BackupEvent, BaseBackup, BaseBackupOptions};
use crate::wire::client::{Client, Session};
use crate::wire::conninfo::ConnInfo;

/// How often a wait for the server looks at the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// A server and the connections to it.
pub struct LiveServer {
    runtime: Runtime,
    replication: Replication,
    sql: Option<Client>,
    stop: Arc<AtomicBool>,
}

enum Replication {
    Idle(Client),
    Running(Box<BaseBackup>),
    Gone,
}

impl LiveServer {
    /// Connects. Messages of the server go to `progress`.
    ///
    /// # Errors
    /// `Unreachable` when no server can be reached; `Denied` when it refuses; those of [`Client::connect`].
    pub fn connect(
        info: &ConnInfo,
        progress: Arc<dyn Progress>,
        stop: Arc<AtomicBool>,
    ) -> Result<LiveServer> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::from_io("start the runtime", e))?;
        let connect = |session| {
            let progress = Arc::clone(&progress);
            runtime.block_on(Client::connect(info, session, progress))
        };
        let client = connect(Session::Replication)?;
        let sql = match connect(Session::Sql) {
            Ok(client) => Some(client),
            Err(e) => {
                progress.note(&format!(
                    "no SQL connection ({e}): times are those of this host, and the archiver is not watched"
                ));
                None
            }
        };
        Ok(LiveServer {
            runtime,
            replication: Replication::Idle(client),
            sql,
            stop,
        })
    }

    fn client(&mut self) -> Result<(&Runtime, &mut Client)> {
        match &mut self.replication {
            Replication::Idle(client) => Ok((&self.runtime, client)),
            _ => Err(err!(Internal, "the connection is busy with a backup")),
        }
    }

    fn show(&mut self, setting: &str) -> Option<String> {
        let (runtime, client) = self.client().ok()?;
        runtime.block_on(client.show(setting)).ok()
    }

    /// Runs a query whose first row matters; a failure only means that it is not known.
    fn ask(&mut self, query: &str) -> Option<Vec<Option<String>>> {
        let client = self.sql.as_mut()?;
        match self.runtime.block_on(client.query(query)) {
            Ok(rows) => {
                let columns = rows.columns.len();
                let text = |column| rows.text(0, column).ok().flatten().map(str::to_owned);
                (!rows.rows.is_empty()).then(|| (0..columns).map(text).collect())
            }
            Err(_) => {
                self.sql = None;
                None
            }
        }
    }
}

/// Losing the server on the way is an error of the server: "unreachable" is then said of repositories.
fn of_server(e: Error) -> Error {
    match e.code() {
        Code::Unreachable => e.with_code(Code::Server),
        _ => e,
    }
}

impl Source for LiveServer {
    fn facts(&mut self) -> Result<ServerFacts> {
        let timezone = self.show("TimeZone");
        let archive_mode = self.show("archive_mode");
        let in_recovery = self
            .ask("select pg_is_in_recovery()")
            .and_then(|row| row.into_iter().next().flatten())
            .map(|text| text == "t");
        let (runtime, client) = self.client()?;
        let size = runtime
            .block_on(client.show("wal_segment_size"))
            .map_err(of_server)?;
        let identity = runtime
            .block_on(client.identify_system())
            .map_err(of_server)?;
        Ok(ServerFacts {
            host: client.host().to_owned(),
            system_identifier: identity.system_identifier,
            version_num: client.version_num(),
            major: client.major()?,
            segment_size: SegmentSize::from_setting(&size)
                .ok_or_else(|| err!(Server, "wal_segment_size \"{size}\" cannot be read"))?,
            timezone,
            archive_mode,
            // Since 14 the server says so by itself.
            in_recovery: in_recovery
                .or_else(|| client.parameter("in_hot_standby").map(|text| text == "on")),
        })
    }

    fn clock(&mut self) -> Option<TimestampTz> {
        let row = self.ask("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")?;
        TimestampTz::from_unix_micros(row.first()?.as_ref()?.parse().ok()?)
    }

    fn archiver(&mut self) -> Option<Archiver> {
        let row = self.ask(
            "select last_archived_wal, last_failed_wal, failed_count, \
             coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) \
             from pg_stat_archiver",
        )?;
        let mut row = row.into_iter();
        let (last_archived, last_failed) = (row.next()?, row.next()?);
        Some(Archiver {
            last_archived,
            last_failed,
            failed_count: row.next()??.parse().ok()?,
            fails_now: row.next()?? == "t",
        })
    }

    fn begin(&mut self, options: &BaseBackupOptions) -> Result<()> {
        match std::mem::replace(&mut self.replication, Replication::Gone) {
            Replication::Idle(client) => {
                let backup = self.runtime.block_on(BaseBackup::start(client, options));
                self.replication = Replication::Running(Box::new(backup.map_err(of_server)?));
                Ok(())
            }
            _ => Err(err!(Internal, "the connection is busy with a backup")),
        }
    }

    fn next_event(&mut self) -> Result<Option<BackupEvent>> {
        let Replication::Running(backup) = &mut self.replication else {
            return Ok(None);
        };
        let stop = &self.stop;
        self.runtime.block_on(async {
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Err(err!(Interrupted, "interrupted"));
                }
                tokio::select! {
                    biased;
                    event = backup.next_event() => return event.map_err(of_server),
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        })
    }

    fn history(&mut self, timeline: TimelineId) -> Result<Bytes> {
        if let Replication::Running(backup) =
            std::mem::replace(&mut self.replication, Replication::Gone)
            && let Some(client) = backup.into_client()
        {
            self.replication = Replication::Idle(client);
        }
        let (runtime, client) = self.client()?;
        let history = runtime.block_on(client.timeline_history(timeline));
        history.map(|h| h.content).map_err(of_server)
    }
}
