//! The times to which all shards of a cluster can be taken back.

use super::info::{self, Info};
use super::list;
use super::shards::{self, Stored};
use crate::error::Result;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::redis::window::{self, Base, Window};

/// The logs of a cluster, and the times that all of them have.
pub struct Logs {
    /// The times, ascending, that each shard with slots has behind a backup.
    pub common: Vec<Window>,
    /// The shards, each with its log.
    pub shards: Vec<OfShard>,
}

/// A shard.
pub struct OfShard {
    pub name: String,
    /// Its log; none where nothing was received.
    pub info: Option<Info>,
    /// Whether it had slots when that was recorded last; a shard without any has no part in the times of all.
    pub is_live: bool,
    /// Whether it has any window; a shard without one leaves none to all.
    pub has_window: bool,
}

/// Looks at the logs of all shards.
///
/// # Errors
/// Those of [`info::run`] and [`list::run`].
pub fn run(session: &Session, names: &[String], with_commands: bool) -> Result<Logs> {
    let (mut stored, mut shards, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        let seen = shards::look(session, name)?;
        let info = info::run(session, name, with_commands)?;
        let own = of(session, name, info.as_ref())?;
        let is_live = seen.is_live();
        shards.push(OfShard {
            name: name.clone(),
            info,
            is_live,
            has_window: !own.is_empty(),
        });
        if is_live {
            windows.push(own);
        }
        stored.push(seen);
    }
    Ok(Logs {
        common: recorded(window::common(&windows), &stored),
        shards,
    })
}

/// The windows of one server, or of one shard.
///
/// # Errors
/// Those of the repositories.
pub fn of(session: &Session, name: &str, info: Option<&Info>) -> Result<Vec<Window>> {
    let Some(info) = info else {
        return Ok(Vec::new());
    };
    let (_, backups) = list::run(session, name)?;
    let members = backups.iter().filter_map(|one| one.redis.as_ref());
    let bases: Vec<Base<'_>> = members
        .filter_map(|member| {
            let (replid, offset) = member.position()?;
            Some(Base {
                replid,
                offset,
                time: member.received_time,
            })
        })
        .collect();
    Ok(window::of(&info.histories, &bases))
}

/// Ends the times where the slots of all shards were recorded last, as a plan does.
fn recorded(common: Vec<Window>, stored: &[Stored]) -> Vec<Window> {
    match shards::latest(stored).and_then(TimestampTz::from_unix_micros) {
        Some(end) => window::until(common, end),
        None => common,
    }
}
