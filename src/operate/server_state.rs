//! The state of a cluster's server, in one look: its end of WAL, its clock, its replication slots, its archiver.

use std::time::{Duration, SystemTime};

use super::finding::{Finding, Level};
use super::repository_state;
use super::server::Server;
use crate::config::Cluster;
use crate::err;
use crate::error::Result;
use crate::fault;
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::wire::client::Rows;

/// A standby is behind by that at most, in seconds.
const LAG_S: f64 = 3600.0;

/// Group and name of the finding of a server that does not answer.
const SERVER: &str = "server";
const CONNECTION: &str = "connection";

/// Whether the finding is of a server that does not answer.
pub fn is_silence(finding: &Finding) -> bool {
    finding.group == SERVER && finding.name == CONNECTION && finding.level != Level::Ok
}

/// The state of a server. Every role may see it, apart from the archiver's process.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServerState {
    /// Its end of WAL; none of a standby.
    pub end_lsn: Option<Lsn>,
    /// How far its clock is ahead of this host's, in seconds; none where it did not tell.
    pub clock_offset_s: Option<f64>,
    /// The counts of its archiver; none where it did not tell them.
    pub archiver: Option<Archiver>,
    /// Its replication slots, apart from temporary ones, by name; none where it did not tell them.
    pub slots: Option<Vec<Slot>>,
    /// How far it has replayed; none of a primary.
    pub replay: Option<Replay>,
}

/// How far a standby has replayed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Replay {
    /// The end of the WAL that it has replayed.
    pub lsn: Lsn,
    /// How old its newest commit is, less the delay that it is configured for, in seconds. 0 while it replays what streams in.
    /// None before it replayed a commit since its start.
    pub lag_s: Option<f64>,
}

/// The counts of pg_stat_archiver.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Archiver {
    /// Files that archive_command took.
    pub archived: u64,
    /// Runs of archive_command that failed.
    pub failed: u64,
    /// When it took the last one, in seconds of Unix time; none where it took none.
    pub last_archived_s: Option<f64>,
    /// When the last run failed.
    pub last_failed_s: Option<f64>,
    /// When the counts began.
    pub reset_s: Option<f64>,
    /// Its process; none where the server needs none, before PostgreSQL 14, and for a role that is not of pg_monitor.
    pub process: Option<Process>,
    /// Whether it archives as a standby, too: `archive_mode = always`.
    pub is_always: bool,
}

/// The process of an archiver that is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The start of the server that it belongs to.
    pub server: String,
    /// Its number and its own start: a number comes again, the two do not. None while none runs.
    pub name: Option<String>,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    /// WAL that the server keeps for it; none where it keeps none.
    pub retained_bytes: Option<u64>,
    /// WAL that may still follow before the slot can lose some; negative behind the limit, none without a limit and of a lost slot.
    pub safe_bytes: Option<i64>,
    /// Whether it lost WAL that it was to keep; none where it keeps none.
    pub is_lost: Option<bool>,
    /// Whether commits wait for its receiver; none where that is not known: nobody receives, or this role may not see it.
    pub sync: Option<SyncState>,
}

/// How a server takes a receiver for a synchronous standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SyncState {
    /// No commit waits for it.
    No,
    /// It takes the place of a synchronous one that goes.
    Potential,
    /// It is one of several, of which some are enough.
    Quorum,
    /// Commits wait for it.
    Yes,
}

impl SyncState {
    fn of(text: &str) -> Option<SyncState> {
        Some(match text {
            "async" => SyncState::No,
            "potential" => SyncState::Potential,
            "quorum" => SyncState::Quorum,
            "sync" => SyncState::Yes,
            _ => return None,
        })
    }

    /// Whether commits may wait for it.
    pub fn delays(self) -> bool {
        self >= SyncState::Quorum
    }
}

impl Slot {
    /// How much it keeps of what it may keep, in per cent, and what limits that; none without a limit. `free_bytes` are those of the disk of
    /// `pg_wal`.
    pub fn share(&self, free_bytes: Option<u64>) -> Option<(u64, &'static str)> {
        let kept = self.retained_bytes?;
        let percent = |left: u64| {
            let whole = kept.saturating_add(left).max(1);
            kept.saturating_mul(100) / whole
        };
        // Negative where the server has let go of its limit already.
        let left = self.safe_bytes.map(|safe| u64::try_from(safe).unwrap_or(0));
        let of_limit = left.map(|left| (percent(left), "max_slot_wal_keep_size"));
        let of_disk = free_bytes.map(|free| (percent(free), "the disk of pg_wal"));
        of_limit.max(of_disk)
    }
}

impl ServerState {
    /// Asks the server of a cluster; none without a connection in the configuration.
    ///
    /// # Errors
    /// Those of the connection; `WrongCluster` when the server of another cluster answers.
    pub fn ask(cluster: &Cluster, identifier: u64, host: &Host) -> Result<Option<ServerState>> {
        let Some(conninfo) = &cluster.conninfo else {
            return Ok(None);
        };
        let mut server = Server::connect(conninfo.expose())?;
        let mut state = end_of_wal(&mut server, identifier)?;
        // One question that fails takes nothing from what the others have told.
        state.clock_offset_s = clock_offset(&mut server, host).ok().flatten();
        state.archiver = archiver(&mut server).ok();
        state.slots = slots(&mut server).ok();
        state.replay = replay(&mut server).ok().flatten();
        Ok(Some(state))
    }

    /// Whether commits wait for what receives by this slot; none where that is not known.
    pub fn sync(&self, slot: &str) -> Option<SyncState> {
        let slot = self.slots.iter().flatten().find(|one| one.name == slot);
        slot?.sync
    }

    /// Whether it is a standby that is behind by more than an hour; none of one that did not tell.
    pub fn is_lagging(&self) -> Option<bool> {
        let lag = self.replay.as_ref().and_then(|replay| replay.lag_s);
        // A standby has no end of WAL, and a primary lags behind nobody.
        let of_primary = || self.end_lsn.map(|_| false);
        lag.map(|lag| lag > LAG_S).or_else(of_primary)
    }

    /// As [`ServerState::ask`]. A server that does not answer is a finding.
    pub fn look(
        cluster: &Cluster,
        identifier: u64,
        host: &Host,
    ) -> (Option<ServerState>, Option<Finding>) {
        match ServerState::ask(cluster, identifier, host) {
            Ok(state) => (state, None),
            Err(e) => {
                let value = format!("PostgreSQL does not answer: {e}");
                let found = Finding::new(SERVER, CONNECTION, Level::Warn, value);
                (None, Some(found.with_next("pitr doctor")))
            }
        }
    }
}

fn end_of_wal(server: &mut Server, identifier: u64) -> Result<ServerState> {
    let rows = server.query(
        "select system_identifier, case when pg_catalog.pg_is_in_recovery() then null else pg_catalog.pg_current_wal_insert_lsn() end \
         from pg_catalog.pg_control_system()",
    )?;
    // Another server's WAL says nothing.
    if rows.text(0, 0)? != Some(identifier.to_string().as_str()) {
        return Err(err!(
            WrongCluster,
            "conninfo leads to the server of another cluster"
        ));
    }
    Ok(ServerState {
        end_lsn: rows.text(0, 1)?.and_then(|lsn| lsn.parse().ok()),
        ..ServerState::default()
    })
}

fn clock_offset(server: &mut Server, host: &Host) -> Result<Option<f64>> {
    let before = host.now();
    let rows = server
        .query("select (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint")?;
    let after = host.now();
    let micros: u64 = rows.value(0, 0)?;
    let theirs = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros));
    let theirs = theirs.map(|time| TimestampTz::from_system_time(fault::time_elsewhere(time)));
    Ok(theirs.and_then(|theirs| repository_state::offset(theirs, before, after)))
}

fn archiver(server: &mut Server) -> Result<Archiver> {
    // Every server has a checkpointer: who does not see it sees no archiver, either.
    let rows = server.query(
        "select a.archived_count, a.failed_count, extract(epoch from pg_catalog.pg_postmaster_start_time())::text, \
         (select p.pid::text || ' ' || extract(epoch from p.backend_start)::text from pg_catalog.pg_stat_activity p where p.backend_type = 'archiver' limit 1), \
         pg_catalog.current_setting('server_version_num')::int >= 140000 \
         and exists (select from pg_catalog.pg_stat_activity p where p.backend_type = 'checkpointer') \
         and (pg_catalog.current_setting('archive_mode') = 'always' \
         or pg_catalog.current_setting('archive_mode') = 'on' and not pg_catalog.pg_is_in_recovery()), \
         extract(epoch from a.last_archived_time), extract(epoch from a.last_failed_time), extract(epoch from a.stats_reset), \
         pg_catalog.current_setting('archive_mode') = 'always' \
         from pg_catalog.pg_stat_archiver a",
    )?;
    let is_to_be_seen = rows.text(0, 4)? == Some("t");
    let name = rows.text(0, 3)?.map(str::to_owned);
    let server = rows.text(0, 2)?.filter(|_| is_to_be_seen);
    let process = server.map(|server| Process {
        server: server.to_owned(),
        name,
    });
    Ok(Archiver {
        archived: rows.value(0, 0)?,
        failed: rows.value(0, 1)?,
        last_archived_s: real(&rows, 5)?,
        last_failed_s: real(&rows, 6)?,
        reset_s: real(&rows, 7)?,
        process,
        is_always: rows.text(0, 8)? == Some("t"),
    })
}

/// A number of the first row, which may be null.
fn real(rows: &Rows, column: usize) -> Result<Option<f64>> {
    Ok(rows.text(0, column)?.and_then(|text| text.parse().ok()))
}

fn replay(server: &mut Server) -> Result<Option<Replay>> {
    // Commits that stream in may be old: a standby that replays all of them does not lag.
    // GREATEST ignores a null: without a commit since its start, the lag would be 0.
    let rows = server.query(
        "select pg_catalog.pg_last_wal_replay_lsn(), case \
         when pg_catalog.pg_last_wal_receive_lsn() = pg_catalog.pg_last_wal_replay_lsn() \
         and exists (select from pg_catalog.pg_stat_wal_receiver) then 0 \
         when pg_catalog.pg_last_xact_replay_timestamp() is not null then greatest(0, extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()) \
         - (select s.setting::numeric / 1000 from pg_catalog.pg_settings s where s.name = 'recovery_min_apply_delay')) end \
         where pg_catalog.pg_is_in_recovery()",
    )?;
    if rows.rows.is_empty() {
        return Ok(None);
    }
    let lsn = rows.text(0, 0)?.and_then(|lsn| lsn.parse().ok());
    let lag_s = real(&rows, 1)?;
    Ok(lsn.map(|lsn| Replay { lsn, lag_s }))
}

fn slots(server: &mut Server) -> Result<Vec<Slot>> {
    // The server tells a safe size of slots that keep nothing, too, counted from the begin of all WAL.
    let rows = server.query(
        "with here as (select case when pg_catalog.pg_is_in_recovery() \
         then coalesce(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()) \
         else pg_catalog.pg_current_wal_lsn() end as lsn) \
         select s.slot_name, pg_catalog.pg_wal_lsn_diff(here.lsn, s.restart_lsn)::bigint, case when s.restart_lsn is not null then s.safe_wal_size end, s.wal_status = 'lost', \
         case when pg_catalog.current_setting('synchronous_standby_names') = '' then 'async' \
         else (select r.sync_state from pg_catalog.pg_stat_replication r where r.pid = s.active_pid) end \
         from pg_catalog.pg_replication_slots s, here where not s.temporary order by s.slot_name",
    )?;
    let number = |row: usize, column: usize| -> Result<Option<i64>> {
        Ok(rows.text(row, column)?.and_then(|text| text.parse().ok()))
    };
    let mut slots = Vec::new();
    for row in 0..rows.rows.len() {
        slots.push(Slot {
            name: rows.text(row, 0)?.unwrap_or_default().to_owned(),
            // A standby may have replayed less than the slot was made at.
            retained_bytes: number(row, 1)?.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            safe_bytes: number(row, 2)?,
            is_lost: rows.text(row, 3)?.map(|is_lost| is_lost == "t"),
            sync: rows.text(row, 4)?.and_then(SyncState::of),
        });
    }
    Ok(slots)
}

#[cfg(test)]
impl ServerState {
    /// A standby that lags by so many seconds.
    pub fn standby(lag_s: Option<f64>) -> ServerState {
        let lsn = Lsn::default();
        ServerState {
            replay: Some(Replay { lsn, lag_s }),
            ..ServerState::default()
        }
    }

    /// A server that is no standby.
    pub fn primary() -> ServerState {
        ServerState {
            end_lsn: Some(Lsn::default()),
            ..ServerState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_does_not_tell_its_lag_is_neither_behind_nor_up_to_date() {
        let replayed = |lag_s| ServerState::standby(lag_s).is_lagging();
        assert_eq!(replayed(Some(3600.0)), Some(false));
        assert_eq!(replayed(Some(3601.0)), Some(true));
        assert_eq!(replayed(None), None, "it replayed no commit yet");
        let unknown = ServerState::default();
        assert_eq!(unknown.is_lagging(), None, "the question failed");
        assert_eq!(ServerState::primary().is_lagging(), Some(false));
    }
}
