//! The server: connecting to it, and what it says of itself before streaming begins.

use std::sync::Arc;
use std::time::Duration;

use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::SegmentSize;
use crate::pg::timeline::History;
use crate::progress::Progress;
use crate::wire::client::{Client, Session, SystemIdentity};
use crate::wire::conninfo::ConnInfo;
use crate::wire::slot::{SlotName, SlotState};
use crate::wire::sql::Sql;

/// How long the answer to a question may take: behind it the connection is half-open, or the server hangs.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A server's description of itself.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Identity, timeline, end of WAL.
    pub identity: SystemIdentity,
    /// The history of its timeline.
    pub history: History,
    pub segment_size: SegmentSize,
    /// Whether it is a standby: then its end may be behind what its primary had sent already.
    pub in_recovery: bool,
}

/// Connects for replication to the first host that will do.
///
/// # Errors
/// Those of [`Client::connect`].
pub async fn connect(info: &ConnInfo, progress: Arc<dyn Progress>) -> Result<Client> {
    Client::connect(info, Session::Replication, progress).await
}

/// Waits for the answer to a question, but not for ever. A client whose question was given up is of no more use.
///
/// # Errors
/// `Unreachable` when none comes; those of `question`.
pub async fn answered<T>(host: &str, question: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = crate::fault::shortened(ANSWER_MAX);
    tokio::time::timeout(limit, question)
        .await
        .unwrap_or_else(|_| {
            Err(err!(
                Unreachable,
                "server \"{host}\" has not answered for {} s",
                limit.as_secs()
            ))
        })
}

/// Asks a server for what it is.
///
/// # Errors
/// Those of [`Client::query`]; `Damaged` for a history that cannot be read.
pub async fn facts(client: &mut Client) -> Result<ServerFacts> {
    let identity = client.identify_system().await?;
    let size = client.show("wal_segment_size").await?;
    let history = client.history(identity.timeline).await?;
    let in_recovery = match client.parameter("in_hot_standby") {
        Some(value) => value == "on",
        // Servers tell by themselves from 14 on. Every transaction of a standby is read-only.
        None => client.show("transaction_read_only").await? == "on",
    };
    Ok(ServerFacts {
        identity,
        history,
        segment_size: SegmentSize::from_setting(&size)
            .ok_or_else(|| err!(Server, "wal_segment_size \"{size}\" cannot be read"))?,
        in_recovery,
    })
}

/// Returns the slot on the server that `client` is connected to; creates it if it is not there and `create` says so.
///
/// # Errors
/// `NotFound` if it is not there, `SlotLost` if it was invalidated, `Config` if it is a logical one; those of [`Client::query`].
pub async fn slot(
    client: &mut Client,
    info: &ConnInfo,
    name: &SlotName,
    create: bool,
    progress: &Arc<dyn Progress>,
) -> Result<SlotState> {
    if let Some(state) = look_up(client, info, name, progress).await? {
        return match state.is_lost() {
            false => Ok(state),
            true => Err(lost(name)),
        };
    }
    if !create {
        return Err(err!(NotFound, "replication slot \"{name}\" does not exist on \"{}\"", client.host())
            .hint(format!("Without it the server removes WAL before it is received. Create it: pitr receive --slot {name} --create-slot")));
    }
    client.create_physical_slot(name).await?;
    progress.note(&format!(
        "created replication slot \"{name}\" on \"{}\"",
        client.host()
    ));
    let state = look_up(client, info, name, progress).await?;
    Ok(state.unwrap_or_default())
}

/// Drops a slot that has lost WAL, and creates it again.
///
/// # Errors
/// `Locked` if it is in use; those of [`Client::query`].
pub async fn renew_slot(
    client: &mut Client,
    info: &ConnInfo,
    name: &SlotName,
    progress: &Arc<dyn Progress>,
) -> Result<SlotState> {
    client.drop_slot(name).await?;
    progress.note(&format!(
        "dropped replication slot \"{name}\" on \"{}\": it has lost WAL, and the server has what the journal ends with",
        client.host()
    ));
    slot(client, info, name, true, progress).await
}

fn lost(name: &SlotName) -> Error {
    err!(SlotLost, "replication slot \"{name}\" has lost WAL that it was to keep (wal_status \"lost\")").hint(format!(
        "It grew beyond max_slot_wal_keep_size while nobody received. Drop it and create it again (pitr receive --slot {name} --drop-slot, then \
         --create-slot): what archiving does not have of the WAL between is recorded as a gap. Then take a base backup."
    ))
}

/// SQL says most. Without an SQL connection (it has rules and limits of its own, and streaming must not depend on them),
/// the replication protocol says whether the slot is there, from 15 on.
async fn look_up(
    client: &mut Client,
    info: &ConnInfo,
    name: &SlotName,
    progress: &Arc<dyn Progress>,
) -> Result<Option<SlotState>> {
    let mut same = info.clone();
    same.hosts.retain(|host| host.display() == client.host());
    if let Ok(mut sql) = Sql::connect(&same, Arc::clone(progress)).await {
        let state = sql.slot_by_sql(name).await;
        // An answer is an answer, whatever becomes of the connection.
        sql.close().await;
        match state {
            Err(error) if error.code() != Code::Config => {}
            answer => return answer,
        }
    }
    if client.version_num() >= 150_000 {
        return client.read_replication_slot(name).await;
    }
    // Whether it is there comes out when streaming begins.
    Ok(Some(SlotState::default()))
}
