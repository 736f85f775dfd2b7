//! A living server as the source of a backup: one connection for replication and, where the server allows it, one for SQL.
//!
//! SQL is a help, never a need: it gives the server's clock and the state of its archiver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;

use super::backoff::{Load, Probe};
use super::keeper::{Keeping, Waiting};
use super::relations;
use super::source::{Archiver, Lister, Receivers, ServerFacts, Source, WalSource, WantedWal};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;
use crate::wire::basebackup::{BackupEvent, BaseBackup, BaseBackupOptions};
use crate::wire::client::{Client, Rows, Session, SystemIdentity};
use crate::wire::conninfo::ConnInfo;
use crate::wire::replication::{Positions, ReplicationStream, StartReplication, StreamEvent};
use crate::wire::runtime;
use crate::wire::slot::SlotName;
use crate::wire::sql::Sql;
use crate::wire::stop::{unless_ended, unless_stopped, within};

/// How often a wait for the server looks at the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// How long a server may take for an answer that can be done without: it may stand still.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the last slot of a backup may take.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take for an answer by which a backup is refused.
const FACT_LIMIT: Duration = Duration::from_secs(120);
/// Since this version a server may end sessions that are idle.
const IDLE_LIMIT_SINCE: u32 = 140_000;
/// Takes the limit of the role or the database away from a session for SQL.
const NO_IDLE_LIMIT: &str = "select pg_catalog.set_config('idle_session_timeout', '0', false) \
     where pg_catalog.current_setting('idle_session_timeout') <> '0'";

/// A server and the connections to it.
pub struct LiveServer {
    runtime: Runtime,
    replication: Replication,
    sql: Option<Sql>,
    stop: Arc<AtomicBool>,
    /// For another connection, should this one end.
    info: ConnInfo,
    /// The server of which the facts are.
    known: Option<(u64, TimelineId)>,
    progress: Arc<dyn Progress>,
    keeping: Keeping,
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
        let runtime = runtime::start()?;
        let connecting = Client::connect(info, Session::Replication, Arc::clone(&progress));
        let client = runtime.block_on(connecting)?;
        // No other of several hosts has the same WAL for sure, nor the same clock and archiver.
        let mut info = info.clone();
        info.hosts = vec![client.place().clone()];
        let client = runtime.block_on(without_idle_limit(client, &mut info, &progress));
        let session = session(&info, Arc::clone(&progress));
        let sql = match runtime.block_on(session) {
            Ok(sql) => Some(sql),
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
            info,
            known: None,
            progress,
            keeping: Keeping::new(),
        })
    }

    /// Gives the connection of a backup that has ended back for other commands.
    fn end_backup(&mut self) {
        let running = std::mem::replace(&mut self.replication, Replication::Gone);
        self.replication = match running {
            Replication::Running(backup) => backup
                .into_client()
                .map_or(Replication::Gone, Replication::Idle),
            other => other,
        };
    }

    fn client(&mut self) -> Result<(&Runtime, &mut Client)> {
        match &mut self.replication {
            Replication::Idle(client) => Ok((&self.runtime, client)),
            _ => Err(busy()),
        }
    }

    /// Takes the connection for replication out, unless a backup runs on it.
    fn take_idle(&mut self) -> Result<Option<Client>> {
        match std::mem::replace(&mut self.replication, Replication::Gone) {
            Replication::Idle(client) => Ok(Some(client)),
            Replication::Gone => Ok(None),
            running @ Replication::Running(_) => {
                self.replication = running;
                Err(busy())
            }
        }
    }

    /// Makes sure that the connection for replication answers, on which nothing may have been asked for hours.
    fn wake(&mut self) -> Result<SystemIdentity> {
        let idle = self.take_idle()?;
        let awake = awake(idle, &self.info, &self.progress);
        let awake = unless_stopped(&self.stop, awake);
        let (client, identity) = self.runtime.block_on(awake)?;
        self.replication = Replication::Idle(client);
        Ok(identity)
    }

    /// The setting decides what is refused: the answer may take its time.
    fn show(&mut self, setting: &str) -> Option<String> {
        let stop = Arc::clone(&self.stop);
        let (runtime, client) = self.client().ok()?;
        let shown = unless_stopped(&stop, client.show(setting));
        runtime.block_on(shown).ok()
    }

    /// Runs a query whose first row matters; a failure only means that it is not known, and so does an answer that takes too long.
    fn ask(&mut self, query: &str) -> Option<Vec<Option<String>>> {
        self.ask_for(ANSWER_LIMIT, query)
    }

    /// As [`LiveServer::ask`], for no longer than `limit`.
    fn ask_for(&mut self, limit: Duration, query: &str) -> Option<Vec<Option<String>>> {
        let client = self.sql.as_mut()?;
        let asked = within(limit, &self.stop, client.query(query));
        match self.runtime.block_on(asked) {
            Ok(rows) => {
                let columns = rows.columns.len();
                let text = |column| rows.text(0, column).ok().flatten().map(str::to_owned);
                (!rows.rows.is_empty()).then(|| (0..columns).map(text).collect())
            }
            Err(e) => {
                if e.code() == Code::Unreachable {
                    self.sql = None;
                }
                None
            }
        }
    }
}

fn busy() -> Error {
    err!(Internal, "the connection is busy with a backup")
}

/// Gives a connection for replication back that the server does not end for being idle.
///
/// Such a connection takes settings at its start alone, and an older server refuses one that it does not know. So it is made anew, and only where the
/// server has such a limit. PostgreSQL: src/backend/tcop/postgres.c, `PostgresMain`; src/backend/utils/init/postinit.c, `InitPostgres`;
/// src/backend/replication/walsender.c, `exec_replication_command`.
async fn without_idle_limit(
    mut client: Client,
    info: &mut ConnInfo,
    progress: &Arc<dyn Progress>,
) -> Client {
    if client.version_num() < IDLE_LIMIT_SINCE {
        return client;
    }
    match client.show("idle_session_timeout").await {
        Ok(limit) if limit != "0" => {}
        _ => return client,
    }
    let mut patient = info.clone();
    let options = patient.options.take().unwrap_or_default();
    patient.options = Some(format!("{options} -c idle_session_timeout=0"));
    match Client::connect(&patient, Session::Replication, Arc::clone(progress)).await {
        Ok(other) => {
            *info = patient;
            other
        }
        // The server has no second connection to spare. One that it ends is made anew when it is needed.
        Err(_) => client,
    }
}

/// Connects for SQL. A limit for idle sessions that cannot be taken away is none of a session that is used often.
async fn session(info: &ConnInfo, progress: Arc<dyn Progress>) -> Result<Sql> {
    let mut sql = Sql::connect(info, progress).await?;
    if sql.version_num() >= IDLE_LIMIT_SINCE {
        let _ = sql.query(NO_IDLE_LIMIT).await;
    }
    Ok(sql)
}

/// Returns the idle connection for replication where it still answers, else another one: the server or a firewall may have ended it.
async fn awake(
    idle: Option<Client>,
    info: &ConnInfo,
    progress: &Arc<dyn Progress>,
) -> Result<(Client, SystemIdentity)> {
    if let Some(mut client) = idle {
        let asked = tokio::time::timeout(ANSWER_LIMIT, client.identify_system()).await;
        if let Ok(Ok(identity)) = asked {
            return Ok((client, identity));
        }
    }
    let connecting = Client::connect(info, Session::Replication, Arc::clone(progress));
    let mut client = connecting.await.map_err(of_server)?;
    let identity = client.identify_system().await.map_err(of_server)?;
    Ok((client, identity))
}

/// Streams WAL, and gives the connection back where it can be used again.
async fn stream(
    client: Client,
    what: &WantedWal,
    slot: Option<SlotName>,
    stop: &AtomicBool,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> (Option<Client>, Result<()>) {
    let start = StartReplication {
        slot,
        timeline: what.timeline,
        from: what.range.start,
    };
    let mut stream = match ReplicationStream::start(client, &start).await {
        Ok(stream) => stream,
        Err(e) => return (None, Err(of_server(e))),
    };
    if let Err(e) = receive(&mut stream, what, stop, sink).await {
        return (None, Err(e));
    }
    // Everything wanted is there: what goes wrong now only costs the connection.
    let client = stream.finish().await.ok().map(|(client, _)| client);
    (client, Ok(()))
}

async fn receive(
    stream: &mut ReplicationStream,
    what: &WantedWal,
    stop: &AtomicBool,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut at = what.range.start;
    while at < what.range.end {
        if stop.load(Ordering::Relaxed) {
            return Err(err!(Interrupted, "interrupted"));
        }
        let event = tokio::select! {
            biased;
            event = stream.next_event() => event.map_err(of_server)?,
            () = tokio::time::sleep(TICK) => continue,
        };
        match event {
            StreamEvent::Data(data) => {
                let wanted = data.end().min(what.range.end).0 - at.0;
                let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                sink(data.bytes.get(..wanted).unwrap_or(&data.bytes))?;
                at = data.end();
            }
            StreamEvent::Keepalive(keepalive) if keepalive.reply_requested => {
                // Nothing is called safe: it would count as a synchronous standby, and let a slot go on.
                let positions = Positions {
                    written: at,
                    flushed: Lsn::INVALID,
                    applied: Lsn::INVALID,
                };
                let sent = stream.send_status(positions, false, keepalive.server_time);
                sent.await.map_err(of_server)?;
            }
            StreamEvent::Keepalive(_) => {}
            StreamEvent::Done | StreamEvent::Shutdown => {
                return Err(err!(Server, "the server ended its WAL at {at}"));
            }
        }
    }
    Ok(())
}

/// Adds the operator's wish to stop.
fn stopping<'t>(
    stop: &'t AtomicBool,
    tick: &'t mut dyn FnMut() -> Result<()>,
) -> impl FnMut() -> Result<()> + 't {
    move || match stop.load(Ordering::Relaxed) {
        true => Err(err!(Interrupted, "interrupted")),
        false => tick(),
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
        let identity = self.wake()?;
        self.known = Some((identity.system_identifier, identity.timeline));
        let stop = Arc::clone(&self.stop);
        let (runtime, client) = self.client()?;
        let size = unless_stopped(&stop, client.show("wal_segment_size"));
        let size = runtime.block_on(size).map_err(of_server)?;
        let timezone = self.show("TimeZone");
        let archive_mode = self.show("archive_mode");
        let archive_command = self.show("archive_command");
        let has_libraries = self.client()?.1.version_num() >= 150_000;
        let archive_library = match has_libraries {
            true => self.show("archive_library"),
            false => Some(String::new()),
        };
        let in_recovery = self
            .ask_for(FACT_LIMIT, "select pg_is_in_recovery()")
            .and_then(|row| row.into_iter().next().flatten())
            .map(|text| text == "t");
        let catalog_version = self
            .ask_for(
                FACT_LIMIT,
                "select catalog_version_no from pg_control_system()",
            )
            .and_then(|row| row.into_iter().next().flatten()?.parse().ok());
        let (_, client) = self.client()?;
        Ok(ServerFacts {
            host: client.host().to_owned(),
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            replication_pid: client.pid(),
            version_num: client.version_num(),
            major: client.major()?,
            catalog_version: catalog_version.unwrap_or(client.major()?.version().catalog_version),
            segment_size: SegmentSize::from_setting(&size)
                .ok_or_else(|| err!(Server, "wal_segment_size \"{size}\" cannot be read"))?,
            timezone,
            archive_mode,
            archive_command,
            archive_library,
            // Since 14 the server says so by itself.
            in_recovery: in_recovery
                .or_else(|| client.parameter("in_hot_standby").map(|text| text == "on")),
        })
    }

    fn clock(&mut self) -> Option<TimestampTz> {
        let row = self.ask("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")?;
        TimestampTz::from_unix_micros(row.first()?.as_ref()?.parse().ok()?)
    }

    fn keep_alive(&mut self) {
        self.clock();
        if let Replication::Idle(client) = &mut self.replication {
            let asked = within(ANSWER_LIMIT, &self.stop, client.identify_system());
            // One that does not answer is made anew when it is needed.
            if self.runtime.block_on(asked).is_err() {
                self.replication = Replication::Gone;
            }
        }
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

    fn receivers(&mut self) -> Option<Receivers> {
        // Without rights every row is seen, of others their process alone.
        let own = self.client().ok()?.1.pid()?;
        let row = self.ask(&format!(
            "select (select count(*) from pg_catalog.pg_stat_replication where pid <> {own}), \
             (select count(*) from pg_catalog.pg_replication_slots where slot_type = 'physical' \
             and restart_lsn is not null and wal_status is distinct from 'lost')"
        ))?;
        let mut counts = row.into_iter().map(|text| text?.parse().ok());
        Some(Receivers {
            connected_count: counts.next()??,
            slot_count: counts.next()??,
        })
    }

    fn query(&mut self, query: &str) -> Result<Rows> {
        let client = self.sql.as_mut().ok_or_else(no_session)?;
        let rows = self
            .runtime
            .block_on(unless_stopped(&self.stop, client.query(query)));
        rows.map_err(of_server)
    }

    fn query_long(&mut self, query: &str, tick: &mut dyn FnMut() -> Result<()>) -> Result<Rows> {
        let client = self.sql.as_mut().ok_or_else(no_session)?;
        let mut tick = stopping(&self.stop, tick);
        let rows = unless_ended(client.query(query), &mut tick);
        self.runtime.block_on(rows).map_err(of_server)
    }

    fn begin(&mut self, options: &BaseBackupOptions) -> Result<()> {
        let identity = self.wake()?;
        let now = (identity.system_identifier, identity.timeline);
        if self.known.is_some_and(|known| known != now) {
            return Err(err!(
                Server,
                "behind the connection is another server than before, or it has been promoted"
            )
            .hint("Nothing was stored. Take the backup again."));
        }
        let client = self.take_idle()?.ok_or_else(busy)?;
        let backup = unless_stopped(&self.stop, BaseBackup::start(client, options));
        let backup = self.runtime.block_on(backup);
        self.replication = Replication::Running(Box::new(backup.map_err(of_server)?));
        Ok(())
    }

    fn next_event(&mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<Option<BackupEvent>> {
        let Replication::Running(backup) = &mut self.replication else {
            return Ok(None);
        };
        let mut tick = stopping(&self.stop, tick);
        let event = unless_ended(backup.next_event(), &mut tick);
        self.runtime.block_on(event).map_err(of_server)
    }

    fn beside(&mut self, over: Arc<AtomicBool>) -> Box<dyn WalSource + Send> {
        Box::new(Beside {
            info: self.info.clone(),
            over,
            progress: Arc::clone(&self.progress),
        })
    }

    fn relations(&mut self) -> Option<Lister> {
        self.sql.as_ref()?;
        let (info, stop) = (self.info.clone(), Arc::clone(&self.stop));
        Some(Box::new(move || relations::list(&info, &stop)))
    }

    fn probe(&mut self, segment_size: SegmentSize) -> Option<Box<dyn Probe>> {
        Some(Box::new(Asking {
            info: self.info.clone(),
            progress: Arc::clone(&self.progress),
            segment_size,
            session: None,
        }))
    }

    fn keep_wal(&mut self, is_last: bool) {
        let server = (&self.info, &self.progress);
        let wait = Waiting {
            runtime: &self.runtime,
            stop: &self.stop,
            // Without it WAL of the backup may go before it is archived, and there is one try.
            limit: if is_last { SETTLE_LIMIT } else { ANSWER_LIMIT },
        };
        if is_last {
            return self.keeping.settle(wait, server);
        }
        let Replication::Running(backup) = &self.replication else {
            return;
        };
        // Without a session nobody says when an old slot may go, and a slot for the whole backup could fill the server's disk.
        let (Some(sql), Some(pid)) = (&mut self.sql, backup.pid()) else {
            return;
        };
        let phase = format!(
            "select phase = 'streaming database files' from pg_catalog.pg_stat_progress_basebackup where pid = {pid}"
        );
        let is_sending = || {
            let rows = wait.answer(sql.query(&phase))?;
            Ok(!rows.rows.is_empty() && rows.text(0, 0)? == Some("t"))
        };
        self.keeping.tick(wait, server, is_sending);
    }

    fn let_wal_go(&mut self) {
        self.keeping.end(Waiting {
            runtime: &self.runtime,
            stop: &self.stop,
            limit: ANSWER_LIMIT,
        });
    }

    fn history(&mut self, timeline: TimelineId) -> Result<Bytes> {
        self.end_backup();
        // A stream of WAL may have ended with the connection.
        self.wake()?;
        let stop = Arc::clone(&self.stop);
        let (runtime, client) = self.client()?;
        let history = unless_stopped(&stop, client.timeline_history(timeline));
        let history = runtime.block_on(history);
        history.map(|h| h.content).map_err(of_server)
    }

    fn start_over(&mut self) -> Result<()> {
        let (progress, stop) = (Arc::clone(&self.progress), Arc::clone(&self.stop));
        *self = LiveServer::connect(&self.info, progress, stop).map_err(of_server)?;
        Ok(())
    }
}

impl WalSource for LiveServer {
    fn stream_wal(
        &mut self,
        what: &WantedWal,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.end_backup();
        let idle = self.take_idle()?;
        let (info, progress) = (&self.info, &self.progress);
        let streamed = async {
            // A stream before it may have ended with the connection.
            let (client, _) = awake(idle, info, progress).await?;
            let (client, result) = stream(client, what, None, &self.stop, sink).await;
            Ok((client, result))
        };
        let streamed = unless_stopped(&self.stop, limited(what, streamed));
        let (client, result) = self.runtime.block_on(streamed)?;
        if let Some(client) = client {
            self.replication = Replication::Idle(client);
        }
        // An error of the sink about the repository stays as it is.
        result
    }
}

fn no_session() -> Error {
    err!(Denied, "the server lets this user have no session for SQL").hint(
        "Nothing was stored. --method local starts and stops the backup by SQL: let pg_hba.conf admit this user to the database that conninfo names, as well as for replication.",
    )
}

/// Waits for a stream for as long as it may take.
async fn limited<T>(what: &WantedWal, streamed: impl Future<Output = Result<T>>) -> Result<T> {
    match what.limit {
        None => streamed.await,
        Some(limit) => tokio::time::timeout(limit, streamed)
            .await
            .unwrap_or_else(|_| Err(err!(Deadline, "the server does not send its WAL"))),
    }
}

/// A second connection.
struct Beside {
    info: ConnInfo,
    over: Arc<AtomicBool>,
    progress: Arc<dyn Progress>,
}

impl WalSource for Beside {
    fn stream_wal(
        &mut self,
        what: &WantedWal,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let runtime = runtime::start()?;
        let progress = Arc::clone(&self.progress);
        let streamed = async {
            let mut client = Client::connect(&self.info, Session::Replication, progress)
                .await
                .map_err(of_server)?;
            let slot = reserve(&mut client).await;
            let (_, result) = stream(client, what, slot, &self.over, sink).await;
            result
        };
        let over = async {
            while !self.over.load(Ordering::Relaxed) {
                tokio::time::sleep(TICK).await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                streamed = limited(what, streamed) => streamed,
                () = over => Err(err!(Interrupted, "interrupted")),
            }
        })
    }
}

/// A session for questions about the server's load, made anew when it is lost.
struct Asking {
    info: ConnInfo,
    progress: Arc<dyn Progress>,
    segment_size: SegmentSize,
    session: Option<(Runtime, Sql)>,
}

/// On a standby nothing is known: its primary archives. A receiver that is not far behind is enough where there is no archiver.
const WAL_LAG: &str = "select case when pg_is_in_recovery() then null else pg_current_wal_lsn() end, \
     case when current_setting('archive_mode') = 'off' then null else (select last_archived_wal from pg_stat_archiver) end, \
     case when current_setting('archive_mode') = 'off' then (select max(flush_lsn) from pg_stat_replication) end";

impl Asking {
    fn session(&mut self) -> Result<&mut (Runtime, Sql)> {
        if self.session.is_none() {
            let runtime = runtime::start()?;
            let sql = Sql::connect(&self.info, Arc::clone(&self.progress));
            let sql = runtime.block_on(sql).map_err(of_server)?;
            self.session = Some((runtime, sql));
        }
        let made = self.session.as_mut();
        made.ok_or_else(|| err!(Internal, "no session for SQL"))
    }

    fn load(&mut self) -> Result<Load> {
        let segment_size = self.segment_size;
        let (runtime, sql) = self.session()?;
        let begun = Instant::now();
        runtime.block_on(sql.query("select 1"))?;
        let latency = begun.elapsed();
        let rows = runtime.block_on(sql.query(WAL_LAG))?;
        let current = rows.text(0, 0)?.and_then(|text| text.parse().ok());
        let archived = rows
            .text(0, 1)?
            .and_then(|name| name.get(..24)?.parse::<SegmentName>().ok())
            .and_then(|name| Some(name.number(segment_size).ok()?.range(segment_size).end));
        let received = rows.text(0, 2)?.and_then(|text| text.parse().ok());
        Ok(Load {
            latency,
            wal_lag_bytes: current.zip(archived.or(received)).map(|(current, safe)| {
                let whole = SegmentNumber::of(current, segment_size).start_lsn(segment_size);
                whole.0.saturating_sub(safe.0)
            }),
        })
    }
}

impl Probe for Asking {
    fn ask(&mut self) -> Result<Load> {
        let load = self.load();
        if load.is_err() {
            self.session = None;
        }
        load.map_err(of_server)
    }
}

/// Takes a slot that goes with the connection. Without one the WAL is there most of the time, too.
async fn reserve(client: &mut Client) -> Option<SlotName> {
    let name: SlotName = format!("pitr_backup_{}", client.pid()?).parse().ok()?;
    client.create_temporary_slot(&name).await.ok()?;
    Some(name)
}
