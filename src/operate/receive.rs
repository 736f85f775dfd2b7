//! The options of a receiver, and the end of its slot.

use std::sync::Arc;
use std::time::Duration;

use super::receiver::SLOT_DEFAULT;
use super::session::Session;
use crate::config::Cluster;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::receive::session::Options;
use crate::wire::client::{self, Client};
use crate::wire::conninfo::{self, ConnInfo};
use crate::wire::runtime;
use crate::wire::slot::SlotName;

/// A connection that is dead on the way is noticed by the kernel too, unless conninfo says otherwise.
const PROBE_IDLE: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_COUNT: u32 = 3;
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The slot; else that of the configuration.
    pub slot: Option<SlotName>,
    /// Whether it is created on a server that does not have it.
    pub create_slot: bool,
    /// The position at which receiving ends.
    pub until: Option<Lsn>,
}

/// A slot that is not there any more.
pub struct Dropped {
    pub slot: SlotName,
    /// The server.
    pub host: String,
    /// Whether it was there.
    pub was_there: bool,
}

/// Reads what a receiver of the configured cluster is run with.
///
/// # Errors
/// `Config` without a journal; those of the configuration.
pub fn options(session: &Session, asked: Asked) -> Result<Options> {
    let settings = session.settings()?;
    let cluster = settings.cluster()?;
    let slot = slot_name(&cluster, asked.slot.as_ref())?;
    Ok(Options {
        cluster: cluster.name.to_string(),
        conninfo: conninfo(&cluster)?,
        slot,
        create_slot: asked.create_slot,
        until: asked.until,
        journal: cluster.receive.journal.clone().ok_or_else(no_journal)?,
        journal_limit_bytes: cluster.receive.journal_limit_bytes,
        acknowledge: cluster.receive.acknowledge,
        repositories: settings.repositories,
    })
}

fn slot_name(cluster: &Cluster, wanted: Option<&SlotName>) -> Result<SlotName> {
    match (wanted, &cluster.receive.slot) {
        (Some(slot), _) => Ok(slot.clone()),
        (None, Some(name)) => name.parse(),
        (None, None) => SLOT_DEFAULT.parse(),
    }
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

/// Drops the slot. One that is not there is as good.
///
/// # Errors
/// Those of the configuration and the server.
pub fn drop_slot(session: &Session, wanted: Option<&SlotName>) -> Result<Dropped> {
    let cluster = session.settings()?.cluster()?;
    let slot = slot_name(&cluster, wanted)?;
    let info = conninfo(&cluster)?;
    let progress = Arc::clone(&session.host.progress);
    let runtime = runtime::start()?;
    let (host, was_there) = runtime.block_on(async {
        let mut client = Client::connect(&info, client::Session::Replication, progress).await?;
        let dropped = match client.drop_slot(&slot).await {
            Ok(()) => true,
            // It is as it should be, whoever saw to that.
            Err(error) if error.code() == Code::NotFound => false,
            Err(error) => return Err(error),
        };
        let host = client.host().to_owned();
        let _ = client.close().await;
        Ok::<_, Error>((host, dropped))
    })?;
    Ok(Dropped {
        slot,
        host,
        was_there,
    })
}
