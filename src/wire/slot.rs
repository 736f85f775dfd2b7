//! Physical replication slots: what keeps WAL on the server until we have it.
//!
//! PostgreSQL: src/backend/replication/walsender.c (ReadReplicationSlot, CreateReplicationSlot), slot.c (ReplicationSlotAcquire),
//! doc/src/sgml/system-views.sgml (pg_replication_slots).

use std::fmt;
use std::str::FromStr;

use super::client::Client;
use super::server_error::sqlstate;
use super::sql::Sql;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::slot::{NAME_SIZE_MAX, is_slot_name};

/// The name of a slot: 1 to 63 of `a-z`, `0-9` and `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotName(String);

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SlotName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if !is_slot_name(text) {
            return Err(err!(
                Usage,
                "\"{}\" is not the name of a replication slot: 1 to {NAME_SIZE_MAX} of a-z, 0-9 and _ are needed",
                text.escape_debug()
            ));
        }
        Ok(SlotName(text.to_owned()))
    }
}

/// The server's report about a physical slot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotState {
    /// From where on WAL is kept; `None` for a slot that was never used and reserves nothing, and for one that has lost its WAL.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; known only by SQL.
    pub wal_status: Option<String>,
}

/// How much WAL a slot keeps on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptWal {
    /// Between the slot's position and the end of WAL.
    pub bytes: u64,
    /// How much there may be before the slot loses WAL.
    pub limit_bytes: u64,
}

impl SlotState {
    /// Whether the server has removed WAL that the slot was to keep: the slot is of no use any more.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

impl Client {
    /// Asks for a slot over the replication protocol; `None` if there is none of this name. Works on 15 and later.
    ///
    /// # Errors
    /// `Config` for a logical slot; those of [`Client::query`].
    pub async fn read_replication_slot(&mut self, name: &SlotName) -> Result<Option<SlotState>> {
        let rows = match self
            .query(&format!("READ_REPLICATION_SLOT \"{name}\""))
            .await
        {
            Err(error) if sqlstate(&error) == Some("0A000") => return Err(logical(name)),
            result => result?,
        };
        if rows.text(0, 0)?.is_none() {
            return Ok(None);
        }
        let restart_lsn = rows.text(0, 1)?.map(|_| rows.value(0, 1)).transpose()?;
        Ok(Some(SlotState {
            restart_lsn,
            ..SlotState::default()
        }))
    }

    /// Creates a physical slot that keeps WAL from now on.
    ///
    /// # Errors
    /// `Refused` if the name is taken; those of [`Client::query`], with the setting to change if there is no room for another slot.
    pub async fn create_physical_slot(&mut self, name: &SlotName) -> Result<()> {
        self.create_slot(name, "").await.map_err(|error| match sqlstate(&error) {
            Some("42710") => error
                .with_code(Code::Refused)
                .hint("Nothing was changed. Leave out --create-slot to use the slot that is there, or name another with --slot."),
            Some("53400") => error.hint("Raise max_replication_slots on the server and restart it, or drop a slot that nobody uses."),
            _ => error,
        })
    }

    /// As [`Client::create_physical_slot`], of a slot that the server drops with the connection.
    ///
    /// # Errors
    /// Those of [`Client::query`].
    pub async fn create_temporary_slot(&mut self, name: &SlotName) -> Result<()> {
        self.create_slot(name, "TEMPORARY ").await
    }

    async fn create_slot(&mut self, name: &SlotName, temporary: &str) -> Result<()> {
        let option = match self.version_num() {
            ..150_000 => "RESERVE_WAL",
            _ => "(RESERVE_WAL)",
        };
        let command = format!("CREATE_REPLICATION_SLOT \"{name}\" {temporary}PHYSICAL {option}");
        self.query(&command).await.map(|_| ())
    }

    /// Drops a slot, after which the server removes the WAL that it kept.
    ///
    /// # Errors
    /// `NotFound` if there is none of this name, `Locked` if it is in use; those of [`Client::query`].
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<()> {
        let dropped = self
            .query(&format!("DROP_REPLICATION_SLOT \"{name}\""))
            .await;
        dropped.map(|_| ()).map_err(|error| match sqlstate(&error) {
            Some("55006") => error.with_code(Code::Locked).hint(format!(
                "Nothing was changed: slot \"{name}\" is in use.\nStop the receiver or standby that streams from it, and drop the slot again."
            )),
            Some("42704") => error
                .with_code(Code::NotFound)
                .hint(format!("Slot \"{name}\" keeps no WAL on this server.")),
            _ => error,
        })
    }
}

impl Sql {
    /// Asks for a slot by SQL, which says more and works on every version; `None` if there is none of this name.
    ///
    /// # Errors
    /// `Config` for a logical slot; those of [`Sql::query`].
    pub async fn slot_by_sql(&mut self, name: &SlotName) -> Result<Option<SlotState>> {
        let query = format!(
            "select slot_type, restart_lsn, wal_status from pg_replication_slots where slot_name = '{name}'"
        );
        let rows = self.query(&query).await?;
        match rows.text(0, 0)? {
            None => return Ok(None),
            Some("physical") => {}
            Some(_) => return Err(logical(name)),
        }
        Ok(Some(SlotState {
            restart_lsn: rows.text(0, 1)?.map(|_| rows.value(0, 1)).transpose()?,
            wal_status: rows.text(0, 2)?.map(str::to_owned),
        }))
    }

    /// Asks by SQL how much WAL a slot keeps; `None` if there is no such slot, no limit, or nothing left to lose.
    ///
    /// # Errors
    /// Those of [`Sql::query`].
    pub async fn kept_wal(&mut self, name: &SlotName) -> Result<Option<KeptWal>> {
        let query = format!(
            "select greatest(0, pg_catalog.pg_wal_lsn_diff(case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn() \
             else pg_catalog.pg_current_wal_lsn() end, restart_lsn))::bigint, greatest(0, safe_wal_size) \
             from pg_catalog.pg_replication_slots where slot_name = '{name}' and restart_lsn is not null and safe_wal_size is not null"
        );
        let rows = self.query(&query).await?;
        if rows.text(0, 0)?.is_none() {
            return Ok(None);
        }
        let (bytes, safe): (u64, u64) = (rows.value(0, 0)?, rows.value(0, 1)?);
        Ok(Some(KeptWal {
            bytes,
            limit_bytes: bytes.saturating_add(safe),
        }))
    }
}

fn logical(name: &SlotName) -> Error {
    err!(
        Config,
        "replication slot \"{name}\" is a logical slot, and a physical one is needed"
    )
    .hint("Name another slot with --slot or receive.slot, and create it with --create-slot.")
}

/// Says what follows from an error of a command that uses a slot.
pub(super) fn slot_failed(error: Error, name: &SlotName) -> Error {
    match sqlstate(&error) {
        // object_in_use
        Some("55006") => error.with_code(Code::Locked).hint(format!(
            "Another receiver or standby streams from slot \"{name}\". Each needs a slot of its own: name another with --slot and --create-slot, or stop the other one."
        )),
        // undefined_object
        Some("42704") => error.with_code(Code::NotFound).hint(format!(
            "WAL is not kept for the receiver. Create the slot: pitr receive --slot {name} --create-slot"
        )),
        _ => error,
    }
}

/// The error of `START_REPLICATION` with a slot.
pub(super) fn stream_failed(error: Error, name: Option<&SlotName>) -> Error {
    let Some(name) = name else {
        return wal_removed(error);
    };
    match sqlstate(&error) {
        // object_not_in_prerequisite_state: what every version answers for a slot that was invalidated.
        Some("55000") => error.with_code(Code::SlotLost).hint(format!(
            "The server has removed WAL that slot \"{name}\" was to keep, because it grew beyond max_slot_wal_keep_size. Drop the slot and create it again \
             (pitr receive --drop-slot, then --create-slot): what archiving does not have of the WAL between is recorded as a gap. Then take a base backup."
        )),
        _ => wal_removed(slot_failed(error, name)),
    }
}

/// undefined_file: the WAL asked for is not there any more.
fn wal_removed(error: Error) -> Error {
    match sqlstate(&error) {
        Some("58P01") => error.with_code(Code::Gap),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_server_accepts() {
        for good in ["a", "pitr_1", &"x".repeat(63)] {
            assert_eq!(good.parse::<SlotName>().unwrap().to_string(), good);
        }
        for bad in ["", "A", "a-b", "a b", "a\"b", "é", &"x".repeat(64)] {
            assert_eq!(bad.parse::<SlotName>().unwrap_err().code(), Code::Usage);
        }
    }
}
