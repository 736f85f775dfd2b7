//! The reservation of a backup's id (format, sections 9 and 10).

use crate::err;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::process;
use crate::repo::clock;
use crate::repo::event::Writer;
use crate::repo::event::{self, Event};
use crate::repo::id::BackupId;
use crate::repo::root::BackupKind;
use crate::repo::scope::Scope;
use crate::store::{Published, Store};

/// Ids that are tried: of a million in each second, so many in a row are never taken.
const MOST_ATTEMPTS: u64 = 100;

/// Reserves an id for a backup that begins now; `source` is what an aux scope backs up.
///
/// # Errors
/// `Refused` when the clocks of host and store differ; what the store says.
pub fn reserve(
    store: &dyn Store,
    scope: &Scope,
    kind: BackupKind,
    source: Option<&str>,
    host: &Host,
) -> Result<BackupId> {
    let now = host.now();
    clock::check(store, now).map_err(|e| match e.code() {
        Code::Refused => e.hint("Nothing was stored: the id, the reservation and the claim of a backup are dated by this clock, and one from the future would keep WAL from expire.\nCorrect the clock that is wrong: timedatectl set-ntp true"),
        _ => e,
    })?;
    let stamp = event::compact(now);
    let stamp = format!("{}Z", stamp.get(..15).unwrap_or_default());
    let random = host.random();
    let (suffix, kind) = match kind {
        BackupKind::Full => ("full", "full"),
        BackupKind::Incremental => ("incr", "incremental"),
    };
    for attempt in 0..MOST_ATTEMPTS {
        let id = BackupId::compose(&stamp, random.wrapping_add(attempt), suffix)?;
        let begin = Event {
            time: now,
            backup_kind: Some(kind.into()),
            pid: Some(std::process::id()),
            process: process::own_name(),
            resumable: true,
            source: source.map(str::to_owned),
            ..Writer::of(host).event("begin", &id.to_string())
        };
        if event::begin(store, scope, &begin)? == Published::Created {
            return Ok(id);
        }
    }
    Err(err!(
        Locked,
        "{MOST_ATTEMPTS} ids of the second {stamp} are taken"
    ))
}
